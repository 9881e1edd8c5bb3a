//! Exports that are read again and again, and the transcripts that are fetched for them.
//!
//! A session has at most one transcript that is fetched. While it is to be tried, `fetches_due` lists it by host and
//! time, so that a host with many due ones hides no other.

use std::time::Duration;

use super::engine::Engine;
use super::keys::{self, Key, Tree};
use super::sessions::{self, SessionTaken};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, codec};
use crate::domain::id::{CompanyId, SessionId, Timestamp};
use crate::domain::session::{Message, Session};
use crate::domain::source::{
    Fetch, FetchState, ReadCounts, ReadOutcome, SourceId, SourceRecord, TranscriptAt, Validators,
};

/// The transcript of a session that began or ended within this is asked for again with each reading of its export.
const YOUNG: Duration = Duration::from_secs(24 * 60 * 60);

/// How a reading of an export ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// How.
    pub outcome: ReadOutcome,
    /// Why, unless well.
    pub error: Option<String>,
    /// Of a whole reading: what it came to, what it was a reading of, and by which zone.
    pub whole: Option<(ReadCounts, Validators, String)>,
    /// When it is read again.
    pub next_at: Timestamp,
}

/// What became of a try to fetch a transcript that brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchFailed {
    /// Of which session.
    pub session: SessionId,
    /// The address that was tried.
    pub url: String,
    /// How it stands now.
    pub state: FetchState,
    /// Why.
    pub error: String,
    /// When it is tried again.
    pub due: Option<Timestamp>,
}

/// A transcript that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TranscriptIn {
    /// Of which session.
    pub session: SessionId,
    /// The address that it was fetched from.
    pub url: String,
    /// Its messages and their hash; none where the server says that it has not changed.
    pub content: Option<(Vec<Message>, [u8; 32])>,
    /// By which the next change is told.
    pub validators: Validators,
    /// When it may be analysed if it does not change before.
    pub settles_at: Timestamp,
}

impl Store {
    /// Notes how a reading ended.
    pub async fn note_reading(
        &self,
        company: CompanyId,
        source: SourceId,
        reading: Reading,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                let key = source_key(&company, source);
                let mut record: SourceRecord = tx.read(Tree::Sources, &key)?.unwrap_or_default();
                record.read_at = Some(now);
                record.outcome = Some(reading.outcome);
                record.error = reading.error;
                record.next_at = Some(reading.next_at);
                if let Some((counts, validators, time_zone)) = reading.whole {
                    (record.counts, record.validators, record.time_zone) = (counts, validators, time_zone);
                    record.whole_at = Some(now);
                }
                tx.write(Tree::Sources, key, &record)
            })
            .await
    }

    /// Notes that a try brought nothing; a session whose transcript lies elsewhere by now is left alone.
    pub async fn note_fetch_failed(&self, failed: FetchFailed) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                let Some(known) = current(tx, failed.session, &failed.url)? else { return Ok(()) };
                let next = Fetch {
                    state: failed.state,
                    attempts: known.attempts.saturating_add(1),
                    error: Some(failed.error),
                    due: failed.due,
                    ..known
                };
                put(tx, failed.session, Some(next))
            })
            .await
    }

    /// Gives a session the messages of its transcript. None where the transcript lies elsewhere by now.
    pub async fn take_transcript(
        &self,
        taken: TranscriptIn,
        now: Timestamp,
    ) -> Result<Option<SessionTaken>, StoreError> {
        self.committer
            .commit(1, move |tx| {
                let Some(known) = current(tx, taken.session, &taken.url)? else { return Ok(None) };
                let next = Fetch {
                    state: FetchState::Had,
                    attempts: 0,
                    error: None,
                    due: None,
                    validators: taken.validators,
                    had_at: Some(now),
                    ..known
                };
                put(tx, taken.session, Some(next))?;
                let Some((messages, hash)) = taken.content else { return Ok(Some(SessionTaken::Unchanged)) };
                sessions::add_messages(tx, taken.session, messages, hash, taken.settles_at, now).map(Some)
            })
            .await
    }
}

/// An export named a session's transcript. What waits goes on waiting; what was had is asked for again if the row
/// changed or the session is young; what was given up is tried anew.
pub(super) fn name(
    tx: &mut Tx<'_>,
    session: &Session,
    at: TranscriptAt,
    updated: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    let known: Option<Fetch> = tx.read(Tree::Fetches, session.id.as_bytes())?;
    let fresh = |validators| Fetch {
        company: session.company.clone(),
        at: at.clone(),
        state: FetchState::Waiting,
        attempts: 0,
        error: None,
        due: Some(now),
        validators,
        had_at: None,
    };
    let next = match known {
        Some(known) if known.at.url == at.url => match known.state {
            FetchState::Waiting if known.at == at => return Ok(()),
            FetchState::Waiting => Fetch { at, ..known },
            FetchState::Had if !updated && !is_young(session, now) => return Ok(()),
            FetchState::Had | FetchState::Failed | FetchState::NotAllowed => {
                Fetch { had_at: known.had_at, ..fresh(known.validators) }
            }
        },
        Some(_) | None => fresh(Validators::default()),
    };
    put(tx, session.id, Some(next))
}

fn is_young(session: &Session, now: Timestamp) -> bool {
    let last = session.facts.ended_at.max(session.facts.started_at);
    last.is_some_and(|last| last.plus(YOUNG) > now)
}

/// A session got its messages by another way: nothing is to be fetched for it.
pub(super) fn forget(tx: &mut Tx<'_>, session: SessionId) -> Result<(), StoreError> {
    if tx.has(Tree::Fetches, session.as_bytes())? { put(tx, session, None) } else { Ok(()) }
}

/// The record, if it is still about this address.
fn current(tx: &Tx<'_>, session: SessionId, url: &str) -> Result<Option<Fetch>, StoreError> {
    let known: Option<Fetch> = tx.read(Tree::Fetches, session.as_bytes())?;
    Ok(known.filter(|known| known.at.url == url))
}

/// The only writer of the record, its place among the due ones, and the counts of its source.
fn put(tx: &mut Tx<'_>, session: SessionId, next: Option<Fetch>) -> Result<(), StoreError> {
    let before: Option<Fetch> = tx.read(Tree::Fetches, session.as_bytes())?;
    if let Some(before) = &before {
        if let Some(due) = before.due {
            tx.remove(Tree::FetchesDue, due_key(&before.at, due, session));
        }
        count(tx, before, false)?;
    }
    match next {
        Some(next) => {
            if let Some(due) = next.due {
                tx.put(Tree::FetchesDue, due_key(&next.at, due, session), Vec::new());
            }
            count(tx, &next, true)?;
            tx.write(Tree::Fetches, session.as_bytes().to_vec(), &next)
        }
        None => {
            tx.remove(Tree::Fetches, session.as_bytes().to_vec());
            Ok(())
        }
    }
}

fn count(tx: &mut Tx<'_>, fetch: &Fetch, more: bool) -> Result<(), StoreError> {
    let key = source_key(&fetch.company, fetch.at.source);
    let mut record: SourceRecord = tx.read(Tree::Sources, &key)?.unwrap_or_default();
    let count = record.transcripts.of(fetch.state);
    *count = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
    tx.write(Tree::Sources, key, &record)
}

fn source_key(company: &CompanyId, source: SourceId) -> Vec<u8> {
    Key::new().company(company).bytes(source.as_bytes()).done()
}

fn due_key(at: &TranscriptAt, due: Timestamp, session: SessionId) -> Vec<u8> {
    Key::new().bytes(&at.host).time(due).bytes(session.as_bytes()).done()
}

/// What is due, and from which host the next look goes on; none when all hosts were looked at.
pub type Due = (Vec<(SessionId, Fetch)>, Option<[u8; 8]>);

impl StoreReader {
    /// What is known of a source.
    pub fn source(&self, company: &CompanyId, source: SourceId) -> Result<Option<SourceRecord>, StoreError> {
        self.read(Tree::Sources, &source_key(company, source))
    }

    /// The fetching of a session's transcript.
    pub fn fetch(&self, session: SessionId) -> Result<Option<Fetch>, StoreError> {
        self.read(Tree::Fetches, session.as_bytes())
    }

    /// The transcripts that are due: at most `each` of each of at most `hosts` hosts, behind `after`.
    pub fn fetches_due(
        &self,
        now: Timestamp,
        after: Option<[u8; 8]>,
        hosts: usize,
        each: usize,
    ) -> Result<Due, StoreError> {
        let mut found = Vec::new();
        let mut from = after.map_or(Some(Vec::new()), |host| keys::after_prefix(&host));
        let mut last = None;
        for _ in 0..hosts {
            let Some(start) = from else { return Ok((found, None)) };
            let first = self.engine.scan(Tree::FetchesDue, &start, None, 1)?;
            let Some(host) = first.first().and_then(|(key, _)| key.first_chunk::<8>().copied()) else {
                return Ok((found, None));
            };
            let end = Key::new().bytes(&host).time(now.plus(Duration::from_millis(1))).done();
            for (key, _) in self.engine.scan(Tree::FetchesDue, &host, Some(&end), each)? {
                let Some(session) = keys::session_at_end(&key) else { continue };
                if let Some(fetch) = self.fetch(session)? {
                    found.push((session, fetch));
                }
            }
            last = Some(host);
            from = keys::after_prefix(&host);
        }
        Ok((found, last))
    }
}

/// A fetch belongs to a session, and is listed as due exactly if it has a time.
pub(super) fn verify_fetch(engine: &Engine, key: &[u8], value: &[u8]) -> Result<Option<String>, StoreError> {
    let fetch: Fetch = codec::decode(value)?;
    let Some(session) = keys::session_at_end(key).filter(|_| key.len() == 16) else {
        return Ok(Some(format!("a fetch key of {} bytes", key.len())));
    };
    if engine.get(Tree::Sessions, key)?.is_none() {
        return Ok(Some(format!("a transcript is fetched for session {session}, which is not there")));
    }
    if fetch.due.is_some() != (fetch.state == FetchState::Waiting) {
        return Ok(Some(format!(
            "the fetch of session {session} is {} and has no fitting time",
            fetch.state.label()
        )));
    }
    match fetch.due {
        Some(due) if engine.get(Tree::FetchesDue, &due_key(&fetch.at, due, session))?.is_none() => {
            Ok(Some(format!("the fetch of session {session} is not listed as due")))
        }
        Some(_) | None => Ok(None),
    }
}

/// What is listed as due has a fetch that says the same.
pub(super) fn verify_due(engine: &Engine, key: &[u8]) -> Result<Option<String>, StoreError> {
    let Some(session) = keys::session_at_end(key) else {
        return Ok(Some(format!("a key of {} bytes lists a fetch", key.len())));
    };
    let fetch = engine.get(Tree::Fetches, session.as_bytes())?.map(|bytes| codec::decode::<Fetch>(&bytes));
    let listed = match fetch.transpose()? {
        Some(fetch) => fetch.due.is_some_and(|due| due_key(&fetch.at, due, session) == key),
        None => false,
    };
    Ok((!listed).then(|| format!("a fetch of session {session} is listed at a time that is not its own")))
}

/// A record of a source has a shape that we know.
pub(super) fn verify_source(value: &[u8]) -> Result<(), StoreError> {
    codec::decode::<SourceRecord>(value).map(drop)
}
