//! Removing what has been kept long enough: found in pages by the time when it was made, and looked at once more in the
//! transaction that removes it.
//!
//! Nothing is removed that has not ended, or that a live batch had. A request leaves what it cost (`gone`) and its
//! client's key, by which the same one is a duplicate when it comes again; a session its external id, version and the
//! hash of its messages, so that an export that still lists it does not have it analysed anew.

use super::keys::{self, Key, Tree};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, erasing, requests, sessions};
use crate::domain::id::{CompanyId, RequestId, SessionId, Timestamp};
use crate::domain::request::{Request, RequestStatus, Source};
use crate::domain::retention::Kind;
use crate::domain::session::{Session, SessionState};
use crate::domain::source::{Fetch, FetchState};

/// Entries that a page looks at.
const LOOKED_AT: usize = 250;
/// Requests that one transaction removes, and so the most that a page finds.
const REQUESTS: usize = 50;
/// Sessions that one transaction removes.
const SESSIONS: usize = 10;

/// A page of what may be due.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Aged {
    /// Entries that were looked at.
    pub looked_at: usize,
    /// The ids of what is due.
    pub due: Vec<[u8; 16]>,
    /// Behind which id the next page begins; none where all that is old enough was looked at.
    pub next: Option<[u8; 16]>,
}

/// How much was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Requests, those of sessions among them.
    pub requests: u64,
    /// Sessions.
    pub sessions: u64,
}

const fn status_of(kind: Kind) -> Option<RequestStatus> {
    match kind {
        Kind::Complete => Some(RequestStatus::ProcessingComplete),
        Kind::Failed => Some(RequestStatus::ProcessingFailed),
        Kind::Sessions => None,
    }
}

/// Whether a request has ended then or before.
fn has_ended(request: &Request, limit: Timestamp) -> bool {
    let over = match request.status {
        RequestStatus::ProcessingComplete | RequestStatus::ProcessingFailed => true,
        RequestStatus::PendingBatching | RequestStatus::BatchingInProgress => false,
    };
    over && request.completed_at.is_some_and(|at| at <= limit)
}

fn is_due_request(request: &Request, status: RequestStatus, limit: Timestamp) -> bool {
    request.status == status && matches!(request.source, Source::Generic { .. }) && has_ended(request, limit)
}

/// Whether nothing is under way for a session, and nothing of it has changed since.
fn may_be_due(session: &Session, limit: Timestamp) -> bool {
    let still = match session.state {
        SessionState::Empty
        | SessionState::TranscriptMissing
        | SessionState::Analysed
        | SessionState::AnalysisFailed => true,
        SessionState::Settling | SessionState::Requested | SessionState::Expired => false,
    };
    still && session.settles_at.is_none() && session.changed_at <= limit
}

impl StoreReader {
    /// The next page of a company's requests or sessions that ended at `limit` or before, in the order in which they
    /// were made, behind `after`. What was made later is not looked at: it ended later, too.
    pub fn aged(
        &self,
        company: &CompanyId,
        kind: Kind,
        after: Option<[u8; 16]>,
        limit: Timestamp,
    ) -> Result<Aged, StoreError> {
        let key = Key::new().company(company);
        let (tree, prefix, due_max) = match status_of(kind) {
            Some(status) => (Tree::ByCompany, key.status(status).done(), REQUESTS),
            None => (Tree::SessionsOf, key.done(), SESSIONS),
        };
        let from = match after {
            Some(after) => Key::new().bytes(&prefix).bytes(&after).byte(0).done(),
            None => prefix.clone(),
        };
        let entries = self.engine.scan(tree, &from, keys::after_prefix(&prefix).as_deref(), LOOKED_AT)?;
        let more = entries.len() == LOOKED_AT;
        let mut page = Aged::default();
        for (key, _) in entries {
            let Some(id) = key.last_chunk::<16>().copied() else { continue };
            if RequestId::from_bytes(id).made_at() > limit {
                return Ok(Aged { next: None, ..page });
            }
            page.looked_at += 1;
            page.next = Some(id);
            // It may have moved since the index was read.
            let due = match status_of(kind) {
                Some(status) => self
                    .request(RequestId::from_bytes(id))?
                    .is_some_and(|request| is_due_request(&request, status, limit)),
                None => self
                    .session(SessionId::from_bytes(id))?
                    .is_some_and(|session| may_be_due(&session, limit)),
            };
            if due {
                page.due.push(id);
            }
            if page.due.len() == due_max {
                return Ok(page);
            }
        }
        Ok(if more { page } else { Aged { next: None, ..page } })
    }
}

impl Store {
    /// Removes those of a page that are still due.
    pub async fn remove_aged(
        &self,
        kind: Kind,
        ids: Vec<[u8; 16]>,
        limit: Timestamp,
        now: Timestamp,
    ) -> Result<Removed, StoreError> {
        self.committer
            .commit(250, move |tx| {
                let mut removed = Removed::default();
                for id in ids {
                    match status_of(kind) {
                        Some(status) => {
                            remove_request(tx, RequestId::from_bytes(id), status, limit, now, &mut removed)?;
                        }
                        None => expire(tx, SessionId::from_bytes(id), limit, now, &mut removed)?,
                    }
                }
                Ok(removed)
            })
            .await
    }
}

fn remove_request(
    tx: &mut Tx<'_>,
    id: RequestId,
    status: RequestStatus,
    limit: Timestamp,
    now: Timestamp,
    removed: &mut Removed,
) -> Result<(), StoreError> {
    let Some(request) = tx.read::<Request>(Tree::Requests, id.as_bytes())? else { return Ok(()) };
    if is_due_request(&request, status, limit) && !had_by_a_live_batch(tx, &request)? {
        remove(tx, request, now)?;
        removed.requests += 1;
    }
    Ok(())
}

/// Removes a request, and has the provider's files deleted that have something of it.
fn remove(tx: &mut Tx<'_>, request: Request, now: Timestamp) -> Result<(), StoreError> {
    for batch in erasing::batches_that_had(tx, &request)? {
        erasing::let_files_go(tx, &request, batch)?;
    }
    requests::remove(tx, request, now)
}

/// Whether a batch that is not over has, or had, a request: it may have something to say of it yet.
fn had_by_a_live_batch(tx: &Tx<'_>, request: &Request) -> Result<bool, StoreError> {
    let mut batches = request.batch.into_iter().chain(request.history.iter().map(|attempt| attempt.batch));
    batches.try_fold(false, |live, batch| Ok(live || tx.has(Tree::LiveBatches, batch.as_bytes())?))
}

/// Removes what a session has, once all of it is old enough; one with very many requests over several passes.
fn expire(
    tx: &mut Tx<'_>,
    id: SessionId,
    limit: Timestamp,
    now: Timestamp,
    removed: &mut Removed,
) -> Result<(), StoreError> {
    let Some(session) = tx.read::<Session>(Tree::Sessions, id.as_bytes())? else { return Ok(()) };
    let fetch: Option<Fetch> = tx.read(Tree::Fetches, id.as_bytes())?;
    if !may_be_due(&session, limit) || fetch.is_some_and(|fetch| fetch.state == FetchState::Waiting) {
        return Ok(());
    }
    let asked = tx.scan_prefix(Tree::SessionRequests, id.as_bytes(), REQUESTS + 1)?;
    let mut over = Vec::with_capacity(asked.len());
    for (key, _) in &asked {
        let request = keys::request_at_end(key)
            .ok_or_else(|| StoreError::Codec("the key of a request is too short".to_owned()))?;
        let request = requests::load(tx, request)?;
        if !has_ended(&request, limit) || had_by_a_live_batch(tx, &request)? {
            return Ok(());
        }
        over.push(request);
    }
    // The session's last request tells what became of it: the others go first.
    let all = over.len() <= REQUESTS;
    for request in over.into_iter().take(REQUESTS) {
        remove(tx, request, now)?;
        removed.requests += 1;
    }
    if all {
        sessions::expire(tx, id)?;
        removed.sessions += 1;
    }
    Ok(())
}
