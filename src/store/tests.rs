//! What the store's files look like from inside: pinned bytes, and a broken record of each kind that is noticed.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::batches::Fate;
use super::engine::Writes;
use super::keys::{self, Key, Tree};
use super::{NewRequest, Store, codec};
use crate::domain::batch::{Batch, InputFile, Intent, Problem, ProviderIdentity, Running, Terminal};
use crate::domain::cut::Limits;
use crate::domain::event::{Event, Observation, ObservedStatus};
use crate::domain::id::{BatchId, FileId, Nonce, ProviderBatchId, RequestId, Revision, SessionId, Timestamp};
use crate::domain::request::{Cost, Endpoint, Group, Request, RequestStatus, Source};
use crate::domain::retry;
use crate::domain::session::{Session, SessionFacts, SessionState};
use crate::domain::step::{self, Policy};

const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);

fn group() -> Group {
    let company = "acme".parse().unwrap();
    Group { company, endpoint: Endpoint::ChatCompletions, model: "gpt-4o-mini".to_owned() }
}

fn request_id(number: u8) -> RequestId {
    RequestId::from_bytes([number; 16])
}

fn batch_id() -> BatchId {
    BatchId::from_bytes([9; 16])
}

fn empty_batch() -> Batch {
    Batch::open(batch_id(), group(), ProviderIdentity::default(), NOW)
}

fn new_request(number: u8) -> NewRequest {
    NewRequest {
        id: request_id(number),
        group: group(),
        source: Source::Generic { client_id: None },
        key: None,
        content_hash: [0; 32],
        body: Some("{}".to_owned()),
        line_bytes: 100,
        line_crc: 0,
        estimated_tokens: 1,
        metadata: None,
        priority: 0,
        not_before: None,
    }
}

/// Three requests, two of them in a batch.
async fn store() -> Store {
    let store = Store::in_memory(uuid::Uuid::nil()).await.unwrap();
    store.accept_requests((1..=3).map(new_request).collect(), NOW).await.unwrap();
    store.open_batch(empty_batch()).await.unwrap();
    let limits = Limits { requests_max: 2, bytes_max: 1000, tokens_max: None, age_max: Duration::ZERO };
    store.cut_chunk(batch_id(), Revision(0), limits).await.unwrap();
    assert_eq!(store.reader().verify().unwrap().violations, []);
    store
}

fn tamper(store: &Store, tree: Tree, key: Vec<u8>, value: Option<Vec<u8>>) {
    let mut writes = Writes::new();
    writes.entry(tree).or_default().insert(key, value);
    store.reader.engine.apply(&writes).unwrap();
}

fn invariants_broken(store: &Store) -> Vec<u8> {
    let report = store.reader().verify().unwrap();
    report.violations.iter().map(|violation| violation.invariant).collect()
}

#[tokio::test]
async fn an_index_entry_that_is_missing_breaks_the_first_invariant() {
    let store = store().await;
    let status = RequestStatus::PendingBatching;
    let key = Key::new().status(status).bytes(request_id(3).as_bytes()).done();
    tamper(&store, Tree::ByStatus, key, None);
    assert!(invariants_broken(&store).contains(&1));
}

#[tokio::test]
async fn a_counter_that_is_wrong_breaks_the_first_invariant() {
    let store = store().await;
    let key = keys::counter(None, RequestStatus::PendingBatching);
    tamper(&store, Tree::Counters, key, Some(7u64.to_be_bytes().to_vec()));
    assert_eq!(invariants_broken(&store), [1]);
}

#[tokio::test]
async fn a_request_in_progress_that_is_outstanding_nowhere_breaks_the_second() {
    let store = store().await;
    tamper(&store, Tree::Outstanding, keys::member(batch_id(), request_id(1)), None);
    assert!(invariants_broken(&store).contains(&2));
}

#[tokio::test]
async fn a_waiting_request_that_is_outstanding_somewhere_breaks_the_third() {
    let store = store().await;
    let value = store.reader.engine.get(Tree::Outstanding, &keys::member(batch_id(), request_id(1))).unwrap();
    tamper(&store, Tree::Outstanding, keys::member(batch_id(), request_id(3)), value);
    assert!(invariants_broken(&store).contains(&3));
}

#[tokio::test]
async fn a_sum_that_is_wrong_breaks_the_fourth() {
    let store = store().await;
    let member = keys::member(batch_id(), request_id(2));
    tamper(&store, Tree::Members, member, Some(vec![Fate::Completed as u8]));
    assert!(invariants_broken(&store).contains(&4));
}

#[tokio::test]
async fn a_cost_that_nobody_has_and_a_result_that_is_not_there_break_the_fifth() {
    let store = store().await;
    let cost = Cost { micros: 3, currency: "USD".to_owned(), price_version: "1".to_owned() };
    let key = Key::new().bytes(request_id(1).as_bytes()).text("batch_1").done();
    tamper(&store, Tree::Bookings, key, Some(codec::encode(&cost).unwrap()));
    assert_eq!(invariants_broken(&store), [5]);
}

/// Takes the one batch to the provider, which has no room for it until it is given back.
async fn turned_away(store: &Store, id: BatchId, revision: Revision, at: Timestamp) -> Batch {
    let capacity_backoff = Duration::from_secs(60);
    let policy = Policy { backoff: Duration::ZERO, capacity_backoff, sweeps_min: 3 };
    let retry = retry::Policy { max_attempts: 3, backoff: Duration::ZERO, capacity_backoff: Duration::ZERO };
    let input = InputFile { id: FileId::new("file"), upload: 1, created_at: NOW };
    let problem = Problem { code: Some("token_limit_exceeded".to_owned()), ..Problem::default() };
    let seen = |status| Observation {
        id: ProviderBatchId::new(format!("batch_{id}")),
        status: Some(status),
        output: None,
        error: None,
        completed_lines: None,
        failed_lines: None,
        problems: vec![problem.clone()],
        ended_at: None,
    };
    let mut batch = store.reader().batch(id).unwrap().unwrap();
    assert_eq!(batch.revision, revision);
    let mut events = vec![
        Event::FillEnded { members: batch.counts.members, at },
        Event::Released,
        Event::Uploaded(input.clone()),
    ];
    let intent = Intent { nonce: Nonce::new(uuid::Uuid::from_bytes(*id.as_bytes())), input, at };
    events.push(Event::IntentMade(intent));
    events.push(Event::Created(seen(ObservedStatus::Running(Running::Validating))));
    events.push(Event::Observed { seen: seen(ObservedStatus::Ended(Terminal::Failed)), at });
    for event in events {
        let step = step::step(&batch.state, batch.orders(), &event, &policy).unwrap();
        batch = store.commit_step(id, batch.revision, step, at).await.unwrap();
    }
    store.close_chunk(id, batch.revision, Default::default(), retry, policy, at).await.unwrap().batch
}

#[tokio::test]
async fn a_batch_that_there_is_no_room_for_is_given_back_and_cut_by_half_without_an_attempt_spent() {
    let store = Store::in_memory(uuid::Uuid::nil()).await.unwrap();
    store.accept_requests((1..=8).map(new_request).collect(), NOW).await.unwrap();
    let limits = Limits { requests_max: 100, bytes_max: 100_000, tokens_max: None, age_max: Duration::ZERO };
    let mut sizes = Vec::new();
    let mut at = NOW;
    for number in 20..24 {
        let id = BatchId::from_bytes([number; 16]);
        let mut batch = Batch::open(id, group(), ProviderIdentity::default(), NOW);
        let room = store.reader().room(&batch).unwrap();
        if let Some(closed) = room.closed {
            assert_eq!(room.for_a_cut(at, 1), Some(0), "the gate is closed");
            at = closed.until;
        }
        batch.tokens_max = room.for_a_cut(at, 1);
        store.open_batch(batch).await.unwrap();
        let cut = store.cut_chunk(id, Revision(0), limits).await.unwrap();
        sizes.push(cut.batch.counts.members);
        assert_eq!(store.reader().room(&cut.batch).unwrap().reserved, cut.batch.held_tokens);
        let closed = turned_away(&store, id, cut.batch.revision, at).await;
        assert_eq!((closed.counts.returned, closed.held_tokens), (closed.counts.members, 0));
    }
    assert_eq!(sizes, [8, 4, 2, 1]);
    let batch = store.reader().batch(BatchId::from_bytes([20; 16])).unwrap().unwrap();
    let room = store.reader().room(&batch).unwrap();
    assert_eq!((room.reserved, room.enqueued), (0, 0));
    assert_eq!(store.reader().summary(None).unwrap(), [8, 0, 0, 0]);
    assert_eq!(store.reader().request(request_id(1)).unwrap().unwrap().attempts, 0);
    assert!(invariants_broken(&store).is_empty());
}

#[tokio::test]
async fn a_value_that_is_too_long_fails_its_operation_and_no_other() {
    let store = store().await;
    let long = store
        .committer
        .commit(1, |tx| {
            tx.put(Tree::Meta, b"long".to_vec(), vec![0; codec::VALUE_BYTES_MAX + 1]);
            Ok(())
        })
        .await;
    assert!(matches!(long, Err(super::StoreError::TooLong { .. })), "{long:?}");
    assert_eq!(store.reader.engine.get(Tree::Meta, b"long").unwrap(), None);
    assert!(invariants_broken(&store).is_empty());
}

/// `UPDATE_GOLDEN=1 cargo test` writes the file anew. After a release that is never right: the version byte goes up
/// instead, and the old shape stays readable.
#[tokio::test]
async fn records_are_written_in_the_bytes_that_were_agreed() {
    let store = store().await;
    let request: Request = store.reader().request(request_id(1)).unwrap().unwrap();
    let batch = store.reader().batch(batch_id()).unwrap().unwrap();
    let session = Session {
        id: SessionId::from_bytes([4; 16]),
        company: "acme".parse().unwrap(),
        external_id: "s-1".to_owned(),
        version: 1,
        content_hash: [5; 32],
        facts: SessionFacts { country: Some("NL".to_owned()), ..SessionFacts::default() },
        message_count: 2,
        state: SessionState::Requested,
        changed_at: NOW,
        settles_at: None,
        request: Some(request_id(1)),
    };
    let mut text = String::new();
    for (name, bytes) in [
        ("request", codec::encode(&request).unwrap()),
        ("batch", codec::encode(&batch).unwrap()),
        ("session", codec::encode(&session).unwrap()),
    ] {
        let hex = bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        writeln!(text, "{name} {hex}").unwrap();
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/records.hex");
    #[expect(clippy::disallowed_methods, reason = "a switch of the test, not a setting")]
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap_or_default());
}
