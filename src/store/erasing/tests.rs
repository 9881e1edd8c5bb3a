//! What an erasure leaves, and what it waits for.

use std::time::Duration;

use super::*;
use crate::domain::batch::{BatchState, Cancel, Origin, ProviderIdentity, Running, Terminal, Then, Wait};
use crate::domain::event::{Event, ObservedStatus};
use crate::domain::id::{EventId, FileId, Revision, WebhookId};
use crate::domain::request::{Failure, FailureClass, Group, Source};
use crate::domain::retention::Kind;
use crate::domain::session::{Message, Role, SessionFacts};
use crate::domain::source::{ReadOutcome, SourceId, TranscriptAt};
use crate::domain::step::{Change, Step};
use crate::domain::webhook::EventKind;
use crate::domain::webhook::signature::SigningSecret;
use crate::store::batches::tests as batches;
use crate::store::{CallLine, ClientKey, NewRequest, Reading, SessionIn, WebhookChange};

const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const SOURCE: SourceId = SourceId::from_bytes([7; 16]);

fn company(id: &str) -> CompanyId {
    id.parse().unwrap()
}

fn reading() -> Reading {
    Reading { outcome: ReadOutcome::Unchanged, error: None, whole: None, orders: 0, next_at: START }
}

async fn webhook(store: &Store, of: &str, number: u8) {
    let change = WebhookChange {
        url: "https://example.com/".to_owned(),
        events: vec![EventKind::RequestFinished],
        description: None,
        enabled: true,
    };
    let (id, secret) = (WebhookId::from_bytes([number; 16]), SigningSecret::new([1; SigningSecret::BYTES]));
    store.make_webhook(company(of), id, secret, change, START).await.unwrap();
    for event in 0..3 {
        let event = EventId::from_bytes([number * 16 + event; 16]);
        store.test_webhook(company(of), id, event, START).await.unwrap().unwrap();
    }
}

async fn request(store: &Store, of: &str, number: u8, key: &str, now: Timestamp) {
    let group = Group { company: company(of), ..batches::group() };
    let key = Some(ClientKey::Line(CallLine { idempotency_key: key.to_owned(), line: 1 }));
    let request = NewRequest { group, key, ..batches::request(number) };
    store.accept_requests(vec![request], now).await.unwrap();
}

async fn session(store: &Store, of: &str, number: u8) {
    let session = SessionIn {
        company: company(of),
        external_id: "chat".to_owned(),
        id: SessionId::from_bytes([number; 16]),
        facts: SessionFacts::default(),
        messages: None,
        content_hash: [0; 32],
        settles_at: START,
        fetch: Some(TranscriptAt { source: SOURCE, url: "u".to_owned(), host: [1; 8] }),
        line: None,
    };
    store.accept_sessions(vec![session], START).await.unwrap();
}

/// How many entries each tree has, but for those of an erasure itself and of what is kept.
fn entries(store: &Store) -> Vec<(&'static str, usize)> {
    let kept = [Tree::Meta, Tree::Erasures, Tree::Erasing, Tree::Tombstones, Tree::Gone, Tree::Counters];
    let trees = Tree::ALL.iter().filter(|tree| !kept.contains(tree));
    trees
        .map(|tree| (tree.name(), store.reader().engine.scan(*tree, &[], None, 999).unwrap().len()))
        .collect()
}

#[tokio::test]
async fn a_company_leaves_nothing_in_any_tree_and_its_neighbour_everything() {
    let store = Store::in_memory(Uuid::nil()).await.unwrap();
    let later = START.plus(Duration::from_secs(25 * 3600));
    let fill = async |of: &str, number: u8| {
        webhook(&store, of, number).await;
        session(&store, of, number).await;
        store.note_reading(company(of), SOURCE, reading(), START).await.unwrap();
        // A key that is used anew after its day leaves an end behind that nobody has come for.
        request(&store, of, number, "key", START).await;
        request(&store, of, number + 100, "key", later).await;
    };
    let company_of = |id: &str| Company {
        id: company(id),
        name: id.to_owned(),
        model: "gpt-4o-mini".to_owned(),
        suspended: false,
        budget_micros: None,
        retention: Default::default(),
    };
    store.put_companies(vec![company_of("stays")]).await.unwrap();
    fill("stays", 1).await;
    while store.forget_keys(later).await.unwrap() > 0 {}
    let before = entries(&store);
    store.put_companies(vec![company_of("goes")]).await.unwrap();
    fill("goes", 2).await;
    let id = ErasureId::from_bytes([9; 16]);
    store.erase_company(company("goes"), id, "a test".to_owned(), later).await.unwrap().unwrap();
    for _ in 0..99 {
        let chunk = store.erase_chunk(id, later).await.unwrap();
        assert_eq!(store.verify().await.unwrap().violations, []);
        if chunk.gone {
            break;
        }
    }
    assert_eq!(entries(&store), before);
    // What was under way when the company went comes too late.
    store.note_reading(company("goes"), SOURCE, reading(), later).await.unwrap();
    session(&store, "goes", 3).await;
    assert_eq!(entries(&store), before);
}

fn noted(store: &Store) -> [usize; 2] {
    [Tree::AgedBatches, Tree::AgedOf]
        .map(|tree| store.reader().engine.scan(tree, &[], None, 999).unwrap().len())
}

/// Removes what is complete, as retention does.
async fn age(store: &Store, ids: &[RequestId]) {
    let ids = ids.iter().map(|id| *id.as_bytes()).collect();
    store.remove_aged(Kind::Complete, ids, batches::NOW, batches::NOW).await.unwrap();
}

/// The files whose deletion is due, deleted.
async fn delete_files(store: &Store, at_most: usize) -> Vec<String> {
    let (at, provider) = (batches::NOW.plus(Duration::from_secs(1)), ProviderIdentity::default());
    let due = store.reader().due_deletions(&provider, at, at_most).unwrap();
    for (key, file) in due.clone() {
        store.forget_deletion(key, file).await.unwrap();
    }
    due.into_iter().map(|(_, file)| file.to_string()).collect()
}

async fn erase_acme(store: &Store) -> ErasureId {
    let (id, by) = (ErasureId::from_bytes([9; 16]), "a test".to_owned());
    store.put_companies(vec![batches::acme_with(1_000_000)]).await.unwrap();
    store.erase_company(company("acme"), id, by, batches::NOW).await.unwrap().unwrap();
    id
}

/// The batches whose files an erasure waits for, once the records are gone.
async fn waits_for(store: &Store, id: ErasureId) -> Vec<BatchId> {
    while !store.erase_chunk(id, batches::NOW).await.unwrap().gone {}
    batches::sound(store);
    store.reader().batches_to_erase(id, None, 99).unwrap()
}

#[tokio::test]
async fn what_waited_for_files_is_forgotten_with_the_last_of_them() {
    let (store, ids) = batches::store_with(2).await;
    let batch = batches::sent(&store, 1).await;
    batches::completed(&store, 1, &batch).await;
    age(&store, &ids[..1]).await;
    assert_eq!(noted(&store), [1, 1]);
    assert_eq!(delete_files(&store, 1).await, ["out"]);
    assert_eq!(noted(&store), [1, 1]);
    batches::sound(&store);
    assert_eq!(delete_files(&store, 9).await, ["file-1"]);
    assert_eq!(noted(&store), [0, 0]);
    // Nor is anything deleted again, or waited for, for the sake of the other one.
    age(&store, &ids[1..]).await;
    assert_eq!((noted(&store), delete_files(&store, 9).await), ([0, 0], Vec::new()));
    let id = erase_acme(&store).await;
    assert_eq!(waits_for(&store, id).await, []);
}

#[tokio::test]
async fn each_input_file_of_a_batch_is_waited_for_also_that_of_an_upload_that_was_repeated() {
    let (store, ids) = batches::store_with(1).await;
    let batch = batches::sent(&store, 1).await;
    let batch = batches::completed(&store, 1, &batch).await;
    assert_eq!(batch.files.iter().map(ToString::to_string).collect::<Vec<_>>(), ["file-1", "out"]);
    let again = Step {
        next: batch.state.clone(),
        changes: vec![Change::Input(FileId::new("file-2")), Change::Input(FileId::new("file-2"))],
        effects: Vec::new(),
        story: None,
    };
    store.commit_step(batch.id, batch.revision, again, batches::NOW).await.unwrap();
    age(&store, &ids).await;
    assert_eq!(delete_files(&store, 2).await, ["out", "file-1"]);
    assert_eq!(noted(&store), [1, 1]);
    assert_eq!(delete_files(&store, 9).await, ["file-2"]);
    assert_eq!(noted(&store), [0, 0]);
    batches::sound(&store);
}

#[tokio::test]
async fn a_batch_that_falls_out_of_a_requests_history_leaves_no_file_behind() {
    let (store, ids) = batches::store_with(1).await;
    let rounds = u8::try_from(Request::HISTORY_MAX + 2).unwrap();
    for number in 1..=rounds {
        let batch = batches::sent(&store, number).await;
        let cancel = Cancel { by: "a test".to_owned(), at: batches::NOW, then: Then::Requeue };
        let batch = batches::take(&store, &batch, &Event::CancelAsked(cancel)).await;
        let seen = batches::seen(number, ObservedStatus::Ended(Terminal::Cancelled));
        let batch = batches::take(&store, &batch, &Event::Observed { seen, at: batches::NOW }).await;
        batches::close(&store, batch, Default::default()).await;
        while store.release_due(batches::NOW).await.unwrap() > 0 {}
    }
    let request = store.reader().request(ids[0]).unwrap().unwrap();
    assert_eq!(request.history[0].batch, batches::batch_id(3));
    assert_eq!(noted(&store), [2, 2]);
    let id = erase_acme(&store).await;
    let all: Vec<_> = (1..=rounds).map(batches::batch_id).collect();
    assert_eq!(waits_for(&store, id).await, all);
    // Those that are forgotten go by themselves, too.
    assert_eq!(delete_files(&store, 9).await, ["file-1", "file-2"]);
}

/// A batch of an old create call of another one; it runs.
async fn shadow(store: &Store, number: u8, of: &Batch) -> Batch {
    let mut shadow =
        Batch::open(batches::batch_id(number), of.group.clone(), of.provider.clone(), batches::NOW);
    shadow.origin = Origin::Shadow { of: of.id };
    shadow.provider_batch = Some(batches::provider_id(number));
    shadow.state = BatchState::Observing {
        intent: batches::intent(number),
        running: Running::InProgress,
        wait: Wait::default(),
        missing: None,
    };
    store.open_batch(shadow).await.unwrap();
    store.reader().batch(batches::batch_id(number)).unwrap().unwrap()
}

#[tokio::test]
async fn an_erasure_waits_for_a_batch_that_surfaces_while_it_runs_or_has_something_to_say_before_it_is_done()
{
    let (store, ids) = batches::store_with(1).await;
    let first = batches::sent(&store, 1).await;
    let first = batches::completed(&store, 1, &first).await;
    let id = erase_acme(&store).await;
    assert_eq!(waits_for(&store, id).await, [first.id]);
    // It surfaces behind the last look at the records, and before the files of the other one are gone.
    let second = shadow(&store, 2, &first).await;
    store.note_files_erased(id, first.id).await.unwrap();
    assert_eq!(waits_for(&store, id).await, [second.id]);
    store.note_records_erased(id).await.unwrap();
    let state = || store.reader().erasure(id).unwrap().unwrap().state;
    assert_eq!(state(), ErasureState::Running);
    batches::ended(&store, 2, &second, &[]).await;
    // This one surfaces when they are, and tells of what was erased only while the store is compacted.
    let third = shadow(&store, 3, &first).await;
    store.note_files_erased(id, second.id).await.unwrap();
    store.note_records_erased(id).await.unwrap();
    assert_eq!(state(), ErasureState::Compacting);
    batches::ended(&store, 3, &third, &ids).await;
    assert_eq!(store.finish_erasures(vec![id], batches::NOW).await.unwrap(), []);
    assert_eq!((state(), waits_for(&store, id).await), (ErasureState::Running, vec![third.id]));
    store.note_files_erased(id, third.id).await.unwrap();
    store.note_records_erased(id).await.unwrap();
    assert_eq!(store.finish_erasures(vec![id], batches::NOW).await.unwrap(), [id]);
    assert_eq!(store.reader().erasure(id).unwrap().unwrap().batches, 3);
    batches::sound(&store);
}

#[tokio::test]
async fn what_a_late_batch_says_of_an_erased_session_is_waited_for_until_the_erasure_is_done() {
    let store = Store::in_memory(Uuid::nil()).await.unwrap();
    let session_id = SessionId::from_bytes([3; 16]);
    let message = Message { role: Role::User, at: None, text: "Hello".to_owned() };
    let session = SessionIn {
        company: company("acme"),
        external_id: "chat".to_owned(),
        id: session_id,
        facts: SessionFacts::default(),
        messages: Some(vec![message]),
        fetch: None,
        line: None,
        content_hash: [1; 32],
        settles_at: batches::NOW,
    };
    let source = Source::Session { session: session_id, version: 1, prompt: 1 };
    let asked = NewRequest { source, body: None, ..batches::request(1) };
    let asked_id = asked.id;
    store.accept_sessions(vec![session], batches::NOW).await.unwrap();
    store.request_analyses(vec![(session_id, 1, asked)], batches::NOW).await.unwrap();
    let first = batches::sent(&store, 1).await;
    let first = batches::completed(&store, 1, &first).await;
    let (id, by) = (ErasureId::from_bytes([9; 16]), "a test".to_owned());
    let begun = store.erase_session(company("acme"), "chat".to_owned(), id, by, batches::NOW);
    begun.await.unwrap().unwrap();
    assert_eq!(waits_for(&store, id).await, [first.id]);
    store.note_files_erased(id, first.id).await.unwrap();
    let state = || store.reader().erasure(id).unwrap().unwrap().state;
    for (number, before) in [(2, ErasureState::Running), (3, ErasureState::Compacting)] {
        if before == ErasureState::Compacting {
            store.note_records_erased(id).await.unwrap();
        }
        assert_eq!(state(), before);
        let late = shadow(&store, number, &first).await;
        batches::ended(&store, number, &late, &[asked_id]).await;
        store.note_records_erased(id).await.unwrap();
        assert_eq!(store.finish_erasures(vec![id], batches::NOW).await.unwrap(), []);
        assert_eq!((state(), waits_for(&store, id).await), (ErasureState::Running, vec![late.id]));
        store.note_files_erased(id, late.id).await.unwrap();
    }
    store.note_records_erased(id).await.unwrap();
    assert_eq!(store.finish_erasures(vec![id], batches::NOW).await.unwrap(), [id]);
}

#[tokio::test]
async fn an_upload_that_nobody_heard_of_is_waited_for_until_it_was_looked_for() {
    let (store, _) = batches::store_with(1).await;
    let id = batches::batch_id(1);
    let batch = Batch::open(id, batches::group(), ProviderIdentity::default(), batches::NOW);
    store.open_batch(batch).await.unwrap();
    let mut batch = store.cut_chunk(id, Revision(0), batches::LIMITS).await.unwrap().batch;
    for event in [Event::FillEnded { members: 1, at: batches::NOW }, Event::Released] {
        batch = batches::take(&store, &batch, &event).await;
    }
    // One is refused, of one nobody hears, and one is found to be there.
    let unsure = || store.reader().batch(id).unwrap().unwrap().unsure_uploads;
    for came_to_nothing in [false, true, false, false] {
        store.note_upload(id, came_to_nothing).await.unwrap();
    }
    assert_eq!(unsure(), 2);
    batch = batches::take(&store, &batch, &Event::Uploaded(batches::intent(1).input)).await;
    assert_eq!(unsure(), 1);
    let failure = Failure::new(FailureClass::Transient, "other_provider", "");
    batch = batches::take(&store, &batch, &Event::GivenBack(failure)).await;
    batches::close(&store, batch, Default::default()).await;
    let at = batches::NOW.plus(Duration::from_secs(72 * 3600));
    for (key, file) in store.reader().due_deletions(&ProviderIdentity::default(), at, 9).unwrap() {
        store.forget_deletion(key, file).await.unwrap();
    }
    let batch = store.reader().batch(id).unwrap().unwrap();
    assert!(batch.files.is_empty() && batch.may_have_files());
    let erasure = erase_acme(&store).await;
    assert_eq!(waits_for(&store, erasure).await, [id]);
    store.note_files_erased(erasure, id).await.unwrap();
    assert!(!store.reader().batch(id).unwrap().unwrap().may_have_files());
}

#[tokio::test]
async fn what_waits_for_a_batch_that_ends_without_files_is_forgotten_when_it_is_closed() {
    let (store, ids) = batches::store_with(1).await;
    let first = batches::sent(&store, 1).await;
    let first = batches::completed(&store, 1, &first).await;
    let late = shadow(&store, 2, &first).await;
    age(&store, &ids).await;
    assert_eq!(noted(&store), [2, 2]);
    let seen = batches::seen(2, ObservedStatus::Ended(Terminal::Cancelled));
    let late = batches::take(&store, &late, &Event::Observed { seen, at: batches::NOW }).await;
    batches::close(&store, late, Default::default()).await;
    assert_eq!(noted(&store), [1, 1]);
    delete_files(&store, 9).await;
    assert_eq!(noted(&store), [0, 0]);
    batches::sound(&store);
}
