//! Exports that are read again and again, and the transcripts that are fetched for them.
//!
//! A session has at most one transcript that is fetched. While it is to be tried, `fetches_due` lists it by company, host,
//! source, whether it was tried in vain before, and time, so that none of these with many due ones hides another.

use std::collections::BTreeMap;
use std::time::Duration;

use super::engine::Engine;
use super::keys::{self, Key, Tree};
use super::sessions::{self, SessionTaken};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, codec, erasing};
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
    /// The orders that were there when it began; a whole reading has carried them out.
    pub orders: u32,
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
                // It was being read when its company was erased.
                if erasing::is_erased(tx, &company)? {
                    return Ok(());
                }
                let key = source_key(&company, source);
                let mut record: SourceRecord = tx.read(Tree::Sources, &key)?.unwrap_or_default();
                record.read_at = Some(now);
                record.outcome = Some(reading.outcome);
                record.error = reading.error;
                record.next_at = Some(reading.next_at);
                if let Some((counts, validators, time_zone)) = reading.whole {
                    (record.counts, record.validators, record.time_zone) = (counts, validators, time_zone);
                    record.whole_at = Some(now);
                    record.orders = record.orders.saturating_sub(reading.orders);
                }
                tx.write(Tree::Sources, key, &record)
            })
            .await
    }

    /// Stores an order to read all of a source.
    pub async fn order_reading(&self, company: CompanyId, source: SourceId) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                if erasing::is_erased(tx, &company)? {
                    return Err(StoreError::NotFound { what: "company", id: company.to_string() });
                }
                let key = source_key(&company, source);
                let mut record: SourceRecord = tx.read(Tree::Sources, &key)?.unwrap_or_default();
                record.orders = record.orders.saturating_add(1);
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
            tx.remove(Tree::FetchesDue, due_key(before, due, session));
        }
        count(tx, before, false)?;
    }
    match next {
        Some(next) => {
            if let Some(due) = next.due {
                tx.put(Tree::FetchesDue, due_key(&next, due, session), Vec::new());
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

/// Removes at most `limit` records of sources of a company; says how many.
pub(super) fn remove_of(tx: &mut Tx<'_>, company: &CompanyId, limit: usize) -> Result<usize, StoreError> {
    let records = tx.scan_prefix(Tree::Sources, &Key::new().company(company).done(), limit)?;
    for (key, _) in &records {
        tx.remove(Tree::Sources, key.clone());
    }
    Ok(records.len())
}

fn source_key(company: &CompanyId, source: SourceId) -> Vec<u8> {
    Key::new().company(company).bytes(source.as_bytes()).done()
}

fn due_key(fetch: &Fetch, due: Timestamp, session: SessionId) -> Vec<u8> {
    let lane = Key::new().company(&fetch.company).bytes(&fetch.at.host).bytes(fetch.at.source.as_bytes());
    lane.byte(if fetch.was_tried_in_vain() { AGAIN } else { NEW }).time(due).bytes(session.as_bytes()).done()
}

/// Never tried, or not since it was had or named anew;
const NEW: u8 = 1;
/// and tried in vain.
const AGAIN: u8 = 2;

/// The part of a key of `fetches_due` that says whose it is.
fn company_of(key: &[u8]) -> Option<&[u8]> {
    let (_, rest) = keys::text_at_start(key)?;
    key.get(..key.len() - rest.len())
}

/// The part that says whose it is, to which host it goes, and of which source it is.
fn lane_of(key: &[u8]) -> Option<&[u8]> {
    key.get(..company_of(key)?.len() + HOST_BYTES + SOURCE_BYTES)
}

/// Bytes of what stands for a host,
const HOST_BYTES: usize = 8;
/// and for a source.
const SOURCE_BYTES: usize = 16;

/// What a source of a company has due at one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// Whose.
    pub company: CompanyId,
    /// To which host it goes.
    pub host: [u8; HOST_BYTES],
    /// Of which source it is.
    pub source: SourceId,
    /// What was not tried yet, in the order of its times; nothing where all of it has to wait.
    pub new: Vec<(SessionId, Fetch)>,
    /// What was tried in vain, likewise.
    pub again: Vec<(SessionId, Fetch)>,
}

/// Behind whom a look at what is due begins; it goes round to them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Behind {
    /// Behind this company.
    pub company: Option<CompanyId>,
    /// In each company behind this host and source.
    pub lanes: BTreeMap<CompanyId, ([u8; HOST_BYTES], SourceId)>,
}

/// How much a look takes in.
#[derive(Debug, Clone, Copy)]
pub struct Breadth {
    /// Companies.
    pub companies: usize,
    /// Hosts of each, once for each source that has something due there.
    pub lanes: usize,
    /// Transcripts of each of these that were not tried yet, and as many that were.
    pub each: usize,
}

impl StoreReader {
    /// What is known of a source.
    pub fn source(&self, company: &CompanyId, source: SourceId) -> Result<Option<SourceRecord>, StoreError> {
        self.read(Tree::Sources, &source_key(company, source))
    }

    /// The fetching of a session's transcript.
    pub fn fetch(&self, session: SessionId) -> Result<Option<Fetch>, StoreError> {
        self.read(Tree::Fetches, session.as_bytes())
    }

    /// The transcripts that are due, company by company, host by host, and source by source.
    pub fn fetches_due(
        &self,
        now: Timestamp,
        behind: &Behind,
        breadth: Breadth,
    ) -> Result<Vec<Lane>, StoreError> {
        let mut lanes = Vec::new();
        let after = behind.company.as_ref().map(|company| Key::new().company(company).done());
        for prefix in self.waiting_round(&[], after.as_deref(), breadth.companies, company_of)? {
            let name = keys::text_at_start(&prefix).map(|(name, _)| name);
            let Some(company) = name.and_then(|name| name.parse::<CompanyId>().ok()) else { continue };
            let behind = behind.lanes.get(&company);
            let after = behind
                .map(|(host, source)| Key::new().bytes(&prefix).bytes(host).bytes(source.as_bytes()).done());
            for lane in self.waiting_round(&prefix, after.as_deref(), breadth.lanes, lane_of)? {
                let Some((rest, source)) = lane.split_last_chunk::<SOURCE_BYTES>() else { continue };
                let Some(host) = rest.last_chunk().copied() else { continue };
                lanes.push(Lane {
                    company: company.clone(),
                    host,
                    source: SourceId::from_bytes(*source),
                    new: self.due_of(&lane, NEW, now, breadth.each)?,
                    again: self.due_of(&lane, AGAIN, now, breadth.each)?,
                });
            }
        }
        Ok(lanes)
    }

    /// The first `limit` of one kind that are due in a lane.
    fn due_of(
        &self,
        lane: &[u8],
        kind: u8,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(SessionId, Fetch)>, StoreError> {
        let from = Key::new().bytes(lane).byte(kind).done();
        let end = Key::new().bytes(&from).time(now.plus(Duration::from_millis(1))).done();
        let mut due = Vec::new();
        for (key, _) in self.engine.scan(Tree::FetchesDue, &from, Some(&end), limit)? {
            let Some(session) = keys::session_at_end(&key) else { continue };
            if let Some(fetch) = self.fetch(session)? {
                due.push((session, fetch));
            }
        }
        Ok(due)
    }

    /// At most `limit` different beginnings, as `beginning` tells them, of keys of what waits: those within `prefix`,
    /// first the ones behind `after`, then the ones from the start to it.
    fn waiting_round(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        beginning: fn(&[u8]) -> Option<&[u8]>,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let (mut found, end) = (Vec::new(), keys::after_prefix(prefix));
        let behind = after.and_then(keys::after_prefix);
        let until = behind.clone().or_else(|| end.clone());
        for (from, end) in [(behind, end), (Some(prefix.to_vec()), until)] {
            let mut from = from;
            while let Some(start) = from.filter(|_| found.len() < limit) {
                let first = self.engine.scan(Tree::FetchesDue, &start, end.as_deref(), 1)?;
                let Some(next) = first.first().and_then(|(key, _)| beginning(key)) else { break };
                found.push(next.to_vec());
                from = keys::after_prefix(next);
            }
        }
        Ok(found)
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
        Some(due) if engine.get(Tree::FetchesDue, &due_key(&fetch, due, session))?.is_none() => {
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
        Some(fetch) => fetch.due.is_some_and(|due| due_key(&fetch, due, session) == key),
        None => false,
    };
    Ok((!listed).then(|| format!("a fetch of session {session} is listed at a time that is not its own")))
}

/// A record of a source has a shape that we know.
pub(super) fn verify_source(value: &[u8]) -> Result<(), StoreError> {
    codec::decode::<SourceRecord>(value).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::session::{Role, SessionFacts};
    use crate::store::SessionIn;

    const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
    const SOURCE: SourceId = SourceId::from_bytes([7; 16]);

    fn later(seconds: u64) -> Timestamp {
        START.plus(Duration::from_secs(seconds))
    }

    fn company() -> CompanyId {
        "acme".parse().unwrap()
    }

    fn session(number: u8) -> SessionId {
        SessionId::from_bytes([number; 16])
    }

    fn at(host: u8, url: &str) -> TranscriptAt {
        TranscriptAt { source: SOURCE, url: url.to_owned(), host: [host; 8] }
    }

    fn row(number: u8, country: &str, fetch: Option<TranscriptAt>) -> SessionIn {
        SessionIn {
            company: company(),
            external_id: number.to_string(),
            id: session(number),
            facts: SessionFacts { country: Some(country.to_owned()), ..SessionFacts::default() },
            messages: None,
            content_hash: [0; 32],
            settles_at: START,
            fetch,
            line: None,
        }
    }

    fn had(number: u8, url: &str, text: &str) -> TranscriptIn {
        let message = Message { role: Role::User, at: None, text: text.to_owned() };
        let hash = [u8::try_from(text.len()).unwrap(); 32];
        let validators = Validators { etag: Some(text.to_owned()), last_modified: None };
        let content = Some((vec![message], hash));
        TranscriptIn { session: session(number), url: url.to_owned(), content, validators, settles_at: START }
    }

    fn failed(number: u8, url: &str, state: FetchState, due: Option<Timestamp>) -> FetchFailed {
        FetchFailed { session: session(number), url: url.to_owned(), state, error: "no".to_owned(), due }
    }

    async fn store() -> Store {
        Store::in_memory(uuid::Uuid::nil()).await.unwrap()
    }

    async fn check(store: &Store, waiting: u64, had: u64, given_up: u64) {
        let counts = store.reader().source(&company(), SOURCE).unwrap().unwrap().transcripts;
        let given = counts.failed + counts.not_allowed;
        assert_eq!((counts.waiting, counts.had, given), (waiting, had, given_up));
        assert_eq!(store.verify().await.unwrap().violations, []);
    }

    const ALL: Breadth = Breadth { companies: 100, lanes: 100, each: 100 };

    fn due(store: &Store, now: Timestamp) -> Vec<SessionId> {
        let lanes = store.reader().fetches_due(now, &Behind::default(), ALL).unwrap();
        lanes
            .into_iter()
            .flat_map(|lane| lane.new.into_iter().chain(lane.again))
            .map(|(session, _)| session)
            .collect()
    }

    #[tokio::test]
    async fn what_an_export_names_again_is_fetched_again_only_with_a_reason() {
        let store = store().await;
        let name = async |country: &str, fetch: Option<TranscriptAt>, now| {
            store.accept_sessions(vec![row(1, country, fetch)], now).await.unwrap()
        };
        name("NL", Some(at(1, "u")), START).await;
        assert_eq!(due(&store, START), [session(1)]);
        check(&store, 1, 0, 0).await;
        // Tried in vain: the export's next reading does not hurry it.
        let again = failed(1, "u", FetchState::Waiting, Some(later(60)));
        store.note_fetch_failed(again).await.unwrap();
        name("NL", Some(at(1, "u")), later(1)).await;
        assert!(due(&store, later(59)).is_empty());
        assert_eq!(due(&store, later(60)), [session(1)]);
        // Had: a session of an unknown day that is as before is left alone.
        assert_eq!(
            store.take_transcript(had(1, "u", "hi"), later(61)).await,
            Ok(Some(SessionTaken::Changed))
        );
        name("NL", Some(at(1, "u")), later(62)).await;
        assert!(due(&store, later(1_000_000)).is_empty());
        check(&store, 0, 1, 0).await;
        // Other facts, and then another address, whose first version nobody has.
        name("DE", Some(at(1, "u")), later(63)).await;
        let fetch = store.reader().fetch(session(1)).unwrap().unwrap();
        assert_eq!((fetch.state, fetch.validators.etag.as_deref()), (FetchState::Waiting, Some("hi")));
        name("DE", Some(at(2, "v")), later(64)).await;
        assert_eq!(store.reader().fetch(session(1)).unwrap().unwrap().validators, Validators::default());
        check(&store, 1, 0, 0).await;
        // What was under way from the old address comes too late.
        assert_eq!(store.take_transcript(had(1, "u", "old"), later(65)).await, Ok(None));
        store.note_fetch_failed(failed(1, "u", FetchState::Failed, None)).await.unwrap();
        check(&store, 1, 0, 0).await;
        // Given up, and named anew.
        store.note_fetch_failed(failed(1, "v", FetchState::Failed, None)).await.unwrap();
        check(&store, 0, 0, 1).await;
        assert!(due(&store, later(1_000_000)).is_empty());
        name("DE", Some(at(2, "v")), later(66)).await;
        assert_eq!(due(&store, later(66)), [session(1)]);
        // Its messages came by another way.
        let whole = SessionIn { messages: Some(Vec::new()), ..row(1, "DE", None) };
        store.accept_sessions(vec![whole], later(67)).await.unwrap();
        assert_eq!(store.reader().fetch(session(1)).unwrap(), None);
        check(&store, 0, 0, 0).await;
    }

    #[tokio::test]
    async fn a_young_session_is_asked_for_with_each_reading() {
        let store = store().await;
        let facts = SessionFacts { ended_at: Some(START), ..SessionFacts::default() };
        let young = || SessionIn { facts: facts.clone(), ..row(1, "", Some(at(1, "u"))) };
        store.accept_sessions(vec![young()], START).await.unwrap();
        store.take_transcript(had(1, "u", "hi"), START).await.unwrap();
        let day = 24 * 60 * 60;
        store.accept_sessions(vec![young()], later(day)).await.unwrap();
        assert!(due(&store, later(day)).is_empty());
        store.accept_sessions(vec![young()], later(day - 1)).await.unwrap();
        assert_eq!(due(&store, later(day)), [session(1)]);
        // It has not changed.
        let same = TranscriptIn { content: None, ..had(1, "u", "hi") };
        assert_eq!(store.take_transcript(same, later(day)).await, Ok(Some(SessionTaken::Unchanged)));
        assert_eq!(store.reader().session(session(1)).unwrap().unwrap().version, 1);
    }

    #[tokio::test]
    async fn neither_a_company_nor_a_host_with_many_due_ones_hides_another() {
        let store = store().await;
        let of = |id: &str, number: u8, host: u8| SessionIn {
            company: id.parse().unwrap(),
            ..row(number, "", Some(at(host, "u")))
        };
        let acme = (1..=20).map(|number| of("acme", number, number / 10));
        let rows = acme.chain([of("bell", 21, 0), of("zeta", 22, 255)]).collect();
        store.accept_sessions(rows, START).await.unwrap();
        let look = |behind: &Behind, companies, lanes| {
            let breadth = Breadth { companies, lanes, each: 3 };
            let lanes = store.reader().fetches_due(START, behind, breadth).unwrap();
            lanes
                .into_iter()
                .map(|lane| (lane.company.to_string(), lane.host[0], lane.new.len()))
                .collect::<Vec<_>>()
        };
        let lane = |company: &str, host, due| (company.to_owned(), host, due);
        let start = Behind::default();
        assert_eq!(look(&start, 2, 2), [lane("acme", 0, 3), lane("acme", 1, 3), lane("bell", 0, 1)]);
        // Round to those behind which it began, also where those are the last.
        let mut behind = Behind { company: Some("bell".parse().unwrap()), ..start };
        behind.lanes.insert(company(), ([1; 8], SOURCE));
        behind.lanes.insert("zeta".parse().unwrap(), ([255; 8], SOURCE));
        let all = [
            lane("zeta", 255, 1),
            lane("acme", 2, 1),
            lane("acme", 0, 3),
            lane("acme", 1, 3),
            lane("bell", 0, 1),
        ];
        assert_eq!(look(&behind, 9, 9), all);
        assert_eq!(look(&behind, 2, 1), [lane("zeta", 255, 1), lane("acme", 2, 1)]);
        behind.company = Some("zeta".parse().unwrap());
        assert_eq!(look(&behind, 1, 1), [lane("acme", 2, 1)]);
    }

    #[tokio::test]
    async fn many_of_one_source_and_many_that_were_tried_in_vain_hide_nothing_of_the_same_company_and_host() {
        let store = store().await;
        let other = SourceId::from_bytes([8; 16]);
        let of = |number: u8, source| row(number, "", Some(TranscriptAt { source, ..at(1, "u") }));
        let rows = (1..=9).map(|number| of(number, SOURCE)).chain([of(10, other)]).collect();
        store.accept_sessions(rows, START).await.unwrap();
        for number in 1..=8 {
            let again = failed(number, "u", FetchState::Waiting, Some(START));
            store.note_fetch_failed(again).await.unwrap();
        }
        let breadth = Breadth { companies: 1, lanes: 2, each: 3 };
        let lanes = store.reader().fetches_due(START, &Behind::default(), breadth).unwrap();
        let ids = |due: &[(SessionId, Fetch)]| due.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        let seen: Vec<_> = lanes.iter().map(|lane| (lane.source, ids(&lane.new), ids(&lane.again))).collect();
        let tried = vec![session(1), session(2), session(3)];
        assert_eq!(seen, [(SOURCE, vec![session(9)], tried), (other, vec![session(10)], Vec::new())]);
        // The next look begins behind the source, not behind the host.
        let mut behind = Behind::default();
        behind.lanes.insert(company(), ([1; 8], SOURCE));
        let lanes = store.reader().fetches_due(START, &behind, Breadth { lanes: 1, ..breadth }).unwrap();
        assert_eq!(lanes.iter().map(|lane| lane.source).collect::<Vec<_>>(), [other]);
        assert_eq!(store.verify().await.unwrap().violations, []);
    }

    #[tokio::test]
    async fn a_fetch_that_is_not_listed_as_it_says_is_found() {
        let store = store().await;
        store.accept_sessions(vec![row(1, "", Some(at(1, "u")))], START).await.unwrap();
        let fetch = store.reader().fetch(session(1)).unwrap().unwrap();
        let key = due_key(&fetch, START, session(1));
        let others = Fetch { company: "b".parse().unwrap(), ..fetch.clone() };
        for (tree, key, value) in [
            (Tree::FetchesDue, key.clone(), None),
            (Tree::FetchesDue, due_key(&fetch, later(1), session(1)), Some(Vec::new())),
            (Tree::FetchesDue, due_key(&fetch, START, session(2)), Some(Vec::new())),
            (Tree::FetchesDue, due_key(&others, START, session(1)), Some(Vec::new())),
        ] {
            let before = store.reader().engine.get(tree, &key).unwrap();
            let set = async |value: Option<Vec<u8>>| {
                let key = key.clone();
                let op = move |tx: &mut Tx<'_>| {
                    match value {
                        Some(value) => tx.put(tree, key, value),
                        None => tx.remove(tree, key),
                    }
                    Ok(())
                };
                store.committer.commit(1, op).await.unwrap();
            };
            set(value).await;
            assert_eq!(store.verify().await.unwrap().violations.len(), 1);
            set(before).await;
            assert_eq!(store.verify().await.unwrap().violations, []);
        }
    }
}
