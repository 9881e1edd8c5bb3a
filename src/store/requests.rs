//! Requests: how they come in, wait, move between statuses, and are found.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client_keys::ClientKey;
use super::keys::{self, Key, Tree};
use super::tx::{self, Tx};
use super::{Store, StoreError, StoreReader, client_keys, erasing};
use crate::domain::batch::Counts;
use crate::domain::erasure::Gone;
use crate::domain::id::{BatchId, CompanyId, RequestId, Timestamp};
use crate::domain::request::{Answered, Group, Request, RequestStatus, Source};
use crate::domain::retry;
use crate::domain::session::SessionState;

/// A request to be taken in, checked, with everything that is fixed when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRequest {
    /// Its id, used only if it is new.
    pub id: RequestId,
    /// What it may share a batch with.
    pub group: Group,
    /// Where it comes from.
    pub source: Source,
    /// By which a repeat is recognised.
    pub key: Option<ClientKey>,
    /// SHA-256 over everything that makes it what it is.
    pub content_hash: [u8; 32],
    /// The body as JSON text; none for the analysis of a session, which is built from the session.
    pub body: Option<String>,
    /// Length of its input line with the line end.
    pub line_bytes: u32,
    /// CRC32C of its input line.
    pub line_crc: u32,
    /// Estimated input tokens.
    pub estimated_tokens: u32,
    /// Tokens that its answer may have at most, where it says so.
    pub output_max: Option<u32>,
    /// How many inputs an embeddings request has.
    pub inputs: u32,
    /// The client's own pairs as JSON text.
    pub metadata: Option<String>,
    /// Higher goes first.
    pub priority: i8,
    /// Not to be batched before.
    pub not_before: Option<Timestamp>,
}

/// What became of a request that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is new and stored under this id.
    New(RequestId),
    /// The same was here before, under this id.
    Duplicate(RequestId),
    /// Its key is taken by a request with other content, which has this id.
    Conflict(RequestId),
    /// Its company has requests waiting for as many other models and endpoints as it may.
    TooManyGroups,
}

/// For so many models and endpoints a company may have requests waiting: each makes batches of its own, and those are few
/// for all.
pub const GROUPS_OF_ONE_MAX: usize = 100;

/// What became of a request that was to be requeued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeued {
    /// It waits for a batch again.
    Requeued,
    /// It is not failed.
    Skipped,
    /// There is none with this id.
    NotFound,
}

/// Which requests to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestFilter {
    /// Only with this status.
    pub status: RequestStatus,
    /// Only of this company.
    pub company: Option<CompanyId>,
    /// Only those whose last batch this is.
    pub batch: Option<BatchId>,
}

/// What waits in a group, stored beside the entries so that nobody has to count them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupStat {
    pub group: Group,
    pub requests: u64,
    pub bytes: u64,
    pub filling: Option<BatchId>,
}

impl Store {
    /// Takes in at most 250 requests of one company, each once.
    pub async fn accept_requests(
        &self,
        requests: Vec<NewRequest>,
        now: Timestamp,
    ) -> Result<Vec<Accepted>, StoreError> {
        self.committer
            .commit(requests.len(), move |tx| {
                requests.into_iter().map(|request| accept(tx, request, now)).collect()
            })
            .await
    }

    /// Puts failed requests back to wait for a batch, with their attempts at zero and their history kept.
    pub async fn requeue(&self, ids: Vec<RequestId>, now: Timestamp) -> Result<Vec<Requeued>, StoreError> {
        self.committer
            .commit(ids.len(), move |tx| ids.into_iter().map(|id| requeue(tx, id, now)).collect())
            .await
    }

    /// Lets at most 250 requests whose back-off is over wait for a batch; says how many.
    pub async fn release_due(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.committer
            .commit(250, move |tx| {
                let end = Key::new().time(now.plus(Duration::from_millis(1))).done();
                let due = tx.scan(Tree::Backoff, &[], Some(&end), 250)?;
                let far = Key::new().time(now.plus(2 * retry::Policy::BACKOFF_MAX)).done();
                let far = tx.scan(Tree::Backoff, &far, None, 250 - due.len())?;
                let mut released = 0;
                for (key, _) in due.iter().chain(&far) {
                    let Some(mut request) = waiting_at(tx, Tree::Backoff, key)? else { continue };
                    let is_due = request.not_before.is_none_or(|at| at <= now);
                    // Whoever failed waits no longer than that: the clock was turned back. Others wait as they asked.
                    if !is_due && request.failure.is_none() {
                        continue;
                    }
                    released += 1;
                    dequeue(tx, &request)?;
                    if has_no_room(tx, &request.group)? {
                        // Behind the others, so that those go on. It waits anew: so it is told from one whose own time
                        // has not come.
                        request.not_before = Some(now.plus(NO_ROOM_FOR));
                        enqueue(tx, &mut request, now)?;
                        save(tx, &request)?;
                        continue;
                    }
                    let since = request.not_before.take().unwrap_or(now);
                    enqueue(tx, &mut request, since)?;
                    save(tx, &request)?;
                }
                if released > 0 {
                    crash_point!("release.before_commit");
                }
                Ok(released)
            })
            .await
    }
}

fn accept(tx: &mut Tx<'_>, new: NewRequest, now: Timestamp) -> Result<Accepted, StoreError> {
    if erasing::is_erased(tx, &new.group.company)? {
        return Err(StoreError::NotFound { what: "company", id: new.group.company.to_string() });
    }
    let used = match &new.key {
        Some(key) => Some(client_keys::look_up(tx, &new.group.company, key, now)?),
        None => None,
    };
    match used.as_ref().and_then(|used| used.known.as_ref()) {
        Some(known) if known.content_hash == new.content_hash => {
            return Ok(Accepted::Duplicate(known.request));
        }
        Some(known) => return Ok(Accepted::Conflict(known.request)),
        None => {}
    }
    if has_no_room(tx, &new.group)? {
        return Ok(Accepted::TooManyGroups);
    }
    if let Some(used) = used {
        used.note(tx, new.id, new.content_hash)?;
    }
    insert(tx, new, now).map(Accepted::New)
}

/// One that may wait for a batch, but not beside so many other models and endpoints, is looked at again so much later.
const NO_ROOM_FOR: Duration = Duration::from_secs(600);

/// Whether nothing waits for this model and endpoint yet, and for as many others as may be.
fn has_no_room(tx: &Tx<'_>, group: &Group) -> Result<bool, StoreError> {
    if tx.has(Tree::Groups, &Key::new().group(group).done())? {
        return Ok(false);
    }
    let prefix = Key::new().company(&group.company).done();
    Ok(tx.scan_prefix(Tree::Groups, &prefix, GROUPS_OF_ONE_MAX)?.len() >= GROUPS_OF_ONE_MAX)
}

/// Stores a new request, pending.
pub(super) fn insert(tx: &mut Tx<'_>, new: NewRequest, now: Timestamp) -> Result<RequestId, StoreError> {
    let id = new.id;
    if tx.has(Tree::Requests, id.as_bytes())? {
        return Err(StoreError::Broken(format!("request {id} exists already")));
    }
    if let Some(body) = &new.body {
        tx.put_text(Tree::Bodies, id.as_bytes(), body.as_bytes())?;
    }
    let mut request = Request {
        id,
        group: new.group,
        source: new.source,
        status: RequestStatus::PendingBatching,
        batch: None,
        line_bytes: new.line_bytes,
        line_crc: new.line_crc,
        estimated_tokens: new.estimated_tokens,
        output_max: new.output_max,
        inputs: new.inputs,
        repair: None,
        stale: Vec::new(),
        misfits: 0,
        repairs: 0,
        metadata: new.metadata,
        priority: new.priority,
        not_before: new.not_before.filter(|at| *at > now),
        requested_at: now,
        pending_since: now,
        completed_at: None,
        attempts: 0,
        failure: None,
        answered: Answered::default(),
        cost: None,
        history: Vec::new(),
    };
    if let Source::Session { session, .. } = &request.source {
        tx.put(Tree::SessionRequests, keys::session_request(*session, id), Vec::new());
    }
    index(tx, &request, true)?;
    enqueue(tx, &mut request, now)?;
    save(tx, &request)?;
    Ok(id)
}

/// Removes a request that no batch has, with its texts and its index entries. What it cost stays.
pub(super) fn remove(tx: &mut Tx<'_>, request: Request, now: Timestamp) -> Result<(), StoreError> {
    let id = request.id;
    if request.status == RequestStatus::PendingBatching {
        dequeue(tx, &request)?;
    }
    index(tx, &request, false)?;
    tx.remove_prefix(Tree::Bodies, id.as_bytes())?;
    tx.remove_prefix(Tree::Results, id.as_bytes())?;
    tx.remove_prefix(Tree::Misfits, id.as_bytes())?;
    let session = request.source.session();
    if let Some(session) = session {
        tx.remove(Tree::SessionRequests, keys::session_request(session, id));
        super::sessions::forget_request(tx, session, id)?;
    }
    tx.remove(Tree::Requests, id.as_bytes().to_vec());
    let Group { company, model, .. } = request.group;
    let gone = Gone { company, session, model, at: now, cost: request.cost };
    tx.write(Tree::Gone, id.as_bytes().to_vec(), &gone)
}

fn requeue(tx: &mut Tx<'_>, id: RequestId, now: Timestamp) -> Result<Requeued, StoreError> {
    let Some(mut request) = tx.read::<Request>(Tree::Requests, id.as_bytes())? else {
        return Ok(Requeued::NotFound);
    };
    if request.status != RequestStatus::ProcessingFailed {
        return Ok(Requeued::Skipped);
    }
    move_to(tx, &mut request, RequestStatus::PendingBatching)?;
    request.attempts = 0;
    request.repairs = 0;
    request.not_before = None;
    request.completed_at = None;
    enqueue(tx, &mut request, now)?;
    super::sessions::note_request(tx, &request, SessionState::Requested)?;
    save(tx, &request)?;
    Ok(Requeued::Requeued)
}

pub(super) fn load(tx: &Tx<'_>, id: RequestId) -> Result<Request, StoreError> {
    tx.read(Tree::Requests, id.as_bytes())?
        .ok_or_else(|| StoreError::Broken(format!("request {id} is named but not there")))
}

pub(super) fn save(tx: &mut Tx<'_>, request: &Request) -> Result<(), StoreError> {
    tx.write(Tree::Requests, request.id.as_bytes().to_vec(), request)
}

/// Moves a request to another status, with its index entries and counters; the caller saves it.
pub(super) fn move_to(tx: &mut Tx<'_>, request: &mut Request, to: RequestStatus) -> Result<(), StoreError> {
    index(tx, request, false)?;
    request.status = to;
    index(tx, request, true)
}

fn index(tx: &mut Tx<'_>, request: &Request, add: bool) -> Result<(), StoreError> {
    let company = &request.group.company;
    let by_status = Key::new().status(request.status).bytes(request.id.as_bytes()).done();
    let by_company = Key::new().company(company).status(request.status).bytes(request.id.as_bytes()).done();
    if add {
        tx.put(Tree::ByStatus, by_status, Vec::new());
        tx.put(Tree::ByCompany, by_company, Vec::new());
    } else {
        tx.remove(Tree::ByStatus, by_status);
        tx.remove(Tree::ByCompany, by_company);
    }
    let change = if add { 1 } else { -1 };
    tx.count(keys::counter(None, request.status), change)?;
    tx.count(keys::counter(Some(company), request.status), change)
}

/// Lets a pending request wait: for its time where it has one, else for a batch. The caller saves it.
pub(super) fn enqueue(tx: &mut Tx<'_>, request: &mut Request, since: Timestamp) -> Result<(), StoreError> {
    request.pending_since = since;
    let (tree, key) = place(request);
    tx.put(tree, key, place_value(request));
    if tree == Tree::Backoff {
        return Ok(());
    }
    group_stat(tx, &request.group, 1, i64::from(request.line_bytes))
}

/// Takes a pending request out of what it waits in.
pub(super) fn dequeue(tx: &mut Tx<'_>, request: &Request) -> Result<(), StoreError> {
    let (tree, key) = place(request);
    tx.remove(tree, key);
    if tree == Tree::Backoff {
        return Ok(());
    }
    group_stat(tx, &request.group, -1, -i64::from(request.line_bytes))
}

/// Where a request waits that waits.
pub(super) fn place(request: &Request) -> (Tree, Vec<u8>) {
    match request.not_before {
        Some(at) => (Tree::Backoff, backoff_key(at, request.id)),
        None => (Tree::Pending, pending_key(request)),
    }
}

/// What stands there.
pub(super) fn place_value(request: &Request) -> Vec<u8> {
    match request.not_before {
        Some(_) => Vec::new(),
        None => [request.line_bytes.to_be_bytes(), request.estimated_tokens.to_be_bytes()].concat(),
    }
}

/// Whether a request waits, and there.
pub(super) fn is_at(request: &Request, tree: Tree, key: &[u8]) -> bool {
    request.status == RequestStatus::PendingBatching && place(request) == (tree, key.to_vec())
}

/// The request that waits at a place. An entry that is of none, as only damage leaves one, is removed: what has ended
/// would be sent once more for it, and what cannot be read would hold up everything behind it.
pub(super) fn waiting_at(tx: &mut Tx<'_>, tree: Tree, key: &[u8]) -> Result<Option<Request>, StoreError> {
    let id = keys::request_at_end(key);
    let request = match id.map(|id| tx.read::<Request>(Tree::Requests, id.as_bytes())).transpose() {
        Ok(request) => request.flatten().filter(|request| is_at(request, tree, key)),
        Err(StoreError::Damaged { .. } | StoreError::Codec(_)) => None,
        Err(err) => return Err(err),
    };
    if request.is_none() {
        let id = id.map(|id| id.to_string()).unwrap_or_default();
        tracing::error!(
            request.id = id,
            "an entry in {} is of no request that waits there, and is removed",
            tree.name()
        );
        tx.remove(tree, key.to_vec());
    }
    Ok(request)
}

fn backoff_key(at: Timestamp, id: RequestId) -> Vec<u8> {
    Key::new().time(at).bytes(id.as_bytes()).done()
}

fn pending_key(request: &Request) -> Vec<u8> {
    Key::new()
        .group(&request.group)
        .priority(request.priority)
        .time(request.pending_since)
        .bytes(request.id.as_bytes())
        .done()
}

fn group_stat(tx: &mut Tx<'_>, group: &Group, requests: i64, bytes: i64) -> Result<(), StoreError> {
    change_group(tx, group, |stat| {
        let below = || StoreError::Broken("a group's counter would fall below zero".to_owned());
        stat.requests = stat.requests.checked_add_signed(requests).ok_or_else(below)?;
        stat.bytes = stat.bytes.checked_add_signed(bytes).ok_or_else(below)?;
        Ok(())
    })
}

pub(super) fn change_group(
    tx: &mut Tx<'_>,
    group: &Group,
    change: impl FnOnce(&mut GroupStat) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let key = Key::new().group(group).done();
    let mut stat = tx.read(Tree::Groups, &key)?.unwrap_or_else(|| GroupStat {
        group: group.clone(),
        requests: 0,
        bytes: 0,
        filling: None,
    });
    change(&mut stat)?;
    if stat.requests == 0 && stat.filling.is_none() {
        tx.remove(Tree::Groups, key);
        return Ok(());
    }
    tx.write(Tree::Groups, key, &stat)
}

impl StoreReader {
    /// One request.
    pub fn request(&self, id: RequestId) -> Result<Option<Request>, StoreError> {
        self.read(Tree::Requests, id.as_bytes())
    }

    /// What is kept of a request that was removed.
    pub fn gone(&self, id: RequestId) -> Result<Option<Gone>, StoreError> {
        self.read(Tree::Gone, id.as_bytes())
    }

    /// The body of a request from the API, as JSON text.
    pub fn body(&self, id: RequestId) -> Result<Option<Vec<u8>>, StoreError> {
        self.text(Tree::Bodies, id.as_bytes())
    }

    /// The provider's answer to a request, as JSON text.
    pub fn result(&self, id: RequestId) -> Result<Option<Vec<u8>>, StoreError> {
        self.text(Tree::Results, id.as_bytes())
    }

    /// How many requests have each status, in the order of [`RequestStatus::ALL`]; of one company or of all.
    pub fn summary(&self, company: Option<&CompanyId>) -> Result<[u64; 4], StoreError> {
        let mut counts = [0; 4];
        for (count, status) in counts.iter_mut().zip(RequestStatus::ALL) {
            let key = keys::counter(company, status);
            *count = tx::number(self.engine.get(Tree::Counters, &key)?.as_deref())?;
        }
        Ok(counts)
    }

    /// At most `limit` requests, newest first, older than `before`; and where the next page begins, if there is one.
    pub fn list_requests(
        &self,
        filter: &RequestFilter,
        before: Option<RequestId>,
        limit: usize,
    ) -> Result<(Vec<Request>, Option<RequestId>), StoreError> {
        let (tree, prefix) = match (&filter.batch, &filter.company) {
            (Some(batch), _) => (Tree::Members, Key::new().bytes(batch.as_bytes()).done()),
            (None, Some(company)) => {
                (Tree::ByCompany, Key::new().company(company).status(filter.status).done())
            }
            (None, None) => (Tree::ByStatus, Key::new().status(filter.status).done()),
        };
        let wanted = |request: &Request| {
            request.status == filter.status
                && filter.company.as_ref().is_none_or(|company| *company == request.group.company)
                && filter.batch.is_none_or(|batch| request.batch == Some(batch))
        };
        let mut found = Vec::with_capacity(limit.min(500));
        let mut before = before;
        loop {
            let end = match before {
                Some(id) => Some(Key::new().bytes(&prefix).bytes(id.as_bytes()).done()),
                None => keys::after_prefix(&prefix),
            };
            // One more than wanted shows whether there is a next page.
            let page = limit.saturating_sub(found.len()).saturating_add(1);
            let entries = self.engine.scan_back(tree, &prefix, end.as_deref(), page)?;
            let last_page = entries.len() < page;
            for (key, _) in entries {
                let Some(id) = keys::request_at_end(&key) else { continue };
                // The row may have moved since the index was read; then it is not on this page.
                if let Some(request) = self.request(id)?.filter(wanted) {
                    if found.len() == limit {
                        let next = found.last().map(|request: &Request| request.id);
                        return Ok((found, next));
                    }
                    found.push(request);
                }
                before = Some(id);
            }
            if last_page {
                return Ok((found, None));
            }
        }
    }
}

/// Which counter a member's fate belongs to.
pub(super) fn counted(counts: &mut Counts, fate: super::batches::Fate) {
    use super::batches::Fate;
    match fate {
        Fate::Outstanding => {}
        Fate::Completed => counts.completed += 1,
        Fate::Failed => counts.failed += 1,
        Fate::Returned | Fate::Left => counts.returned += 1,
        Fate::Erased => counts.erased += 1,
    }
}
