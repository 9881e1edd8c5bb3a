//! What the store's files look like from inside: pinned bytes, and a broken record of each kind that is noticed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::batches::{AppliedLine, Fate, Provisional};
use super::budgets;
use super::engine::Writes;
use super::keys::{self, Key, Tree};
use super::{NewRequest, SessionIn, Store, StoreError, batches, codec, requests};
use crate::domain::batch::{
    Batch, Credentials, InputFile, Intent, Problem, ProviderIdentity, Running, Terminal,
};
use crate::domain::budget::{Booking, Money, Month};
use crate::domain::company::Company;
use crate::domain::cut::Limits;
use crate::domain::event::{Event, Observation, ObservedStatus};
use crate::domain::id::{BatchId, FileId, Nonce, ProviderBatchId, RequestId, Revision, SessionId, Timestamp};
use crate::domain::request::{Answered, Cost, Endpoint, Group, Outcome, Request, RequestStatus, Source};
use crate::domain::retry;
use crate::domain::session::{Message, Role, Session, SessionFacts, SessionState};
use crate::domain::source::{
    Fetch, FetchState, ReadOutcome, SourceId, SourceRecord, TranscriptAt, Validators,
};
use crate::domain::step::{self, Policy, Step};

pub(super) const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);

fn group() -> Group {
    let company = "acme".parse().unwrap();
    Group { company, endpoint: Endpoint::ChatCompletions, model: "gpt-4o-mini".to_owned() }
}

pub(super) fn request_id(number: u8) -> RequestId {
    RequestId::from_bytes([number; 16])
}

pub(super) fn batch_id() -> BatchId {
    BatchId::from_bytes([9; 16])
}

fn empty_batch() -> Batch {
    Batch::open(batch_id(), group(), ProviderIdentity::default(), NOW)
}

pub(super) fn new_request(number: u8) -> NewRequest {
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
        output_max: None,
        inputs: 0,
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

/// A change that a bug could make: the committer stores it like any other.
pub(super) async fn tamper(store: &Store, tree: Tree, key: Vec<u8>, value: Option<Vec<u8>>) {
    let op = move |tx: &mut super::tx::Tx<'_>| {
        match value {
            Some(value) => tx.put(tree, key, value),
            None => tx.remove(tree, key),
        }
        Ok(())
    };
    store.committer.commit(1, op).await.unwrap();
}

/// A change that nobody made: damage.
fn damage(store: &Store, tree: Tree, key: Vec<u8>, value: Option<Vec<u8>>) {
    let mut writes = Writes::new();
    writes.entry(tree).or_default().insert(key, value);
    store.reader.engine.apply(&writes).unwrap();
}

fn invariants_broken(store: &Store) -> Vec<u8> {
    let report = store.reader().verify().unwrap();
    report.violations.iter().map(|violation| violation.invariant).collect()
}

/// Three requests, two of them in a batch and one of these complete; one that waits for its time; a session.
pub(super) async fn full_store() -> Store {
    let store = store().await;
    let later = NewRequest { not_before: Some(NOW.plus(Duration::from_secs(60))), ..new_request(4) };
    let keyed = NewRequest { key: Some(super::ClientKey::Id("order".to_owned())), ..new_request(5) };
    store.accept_requests(vec![later, keyed], NOW).await.unwrap();
    let message = Message { role: Role::User, at: None, text: "Hello".to_owned() };
    let session = SessionIn {
        company: "acme".parse().unwrap(),
        external_id: "chat".to_owned(),
        id: SessionId::from_bytes([4; 16]),
        facts: SessionFacts::default(),
        messages: Some(vec![message]),
        content_hash: [1; 32],
        settles_at: NOW,
        fetch: None,
        line: None,
    };
    store.accept_sessions(vec![session], NOW).await.unwrap();
    complete(&store, 1).await;
    assert_eq!(store.verify().await.unwrap().violations, []);
    store
}

/// Takes in a good result of a request of the batch, by the same step once more.
async fn complete(store: &Store, number: u8) {
    let batch = store.reader().batch(batch_id()).unwrap().unwrap();
    let step = Step { next: batch.state.clone(), changes: Vec::new(), effects: Vec::new(), story: None };
    let outcome = Outcome { answered: Answered::default(), result: Ok("{}".to_owned()) };
    let line =
        AppliedLine::Line { repair: None, request: request_id(number), outcome, analysis: None, cost: None };
    store.apply_lines(batch_id(), batch.revision, step, vec![line], NOW).await.unwrap();
}

#[tokio::test]
async fn every_record_that_does_not_fit_the_others_breaks_its_invariant() {
    let pending = RequestStatus::PendingBatching;
    let listed = |status| Key::new().status(status).bytes(request_id(3).as_bytes()).done();
    let company = "acme".parse().unwrap();
    let of_company = Key::new().company(&company).bytes(&listed(pending)).done();
    let batch = || batch_id().as_bytes().to_vec();
    let cost = Cost { micros: 3, currency: "USD".to_owned(), price_version: "1".to_owned() };
    let booked = Booking { company: "acme".parse().unwrap(), month: Month::of(NOW), cost };
    let cost = codec::encode(&booked).unwrap();
    let months = budgets::key(&booked.company, booked.month);
    let money = |spent, reserved| Some(codec::encode(&Money { spent, reserved }).unwrap());
    let booking = |request: RequestId| Key::new().bytes(request.as_bytes()).text("batch_1").done();
    let member = |number| keys::member(batch_id(), request_id(number));
    let nobody = codec::encode(&BatchId::from_bytes([8; 16])).unwrap();
    let provisional = codec::encode(&Provisional::default()).unwrap();
    let time = |number| Key::new().time(NOW).bytes(&[number; 16]).done();
    let unlisted = listed(RequestStatus::ProcessingFailed);
    let later = keys::time_at_start(&time(1)).unwrap().plus(Duration::from_secs(60));
    let backoff = Key::new().time(later).bytes(request_id(4).as_bytes()).done();
    let key_of =
        |tree| move |store: &Store| store.reader.engine.scan(tree, &[], None, 1).unwrap().pop().unwrap().0;
    type Where = Box<dyn Fn(&Store) -> Vec<u8>>;
    let at = |key: Vec<u8>| -> Where { Box::new(move |_| key.clone()) };
    let none: Option<Vec<u8>> = None;
    let some = |value: &[u8]| Some(value.to_vec());
    let counter = keys::counter(None, pending);
    let cases: Vec<(u8, Tree, Where, Option<Vec<u8>>)> = vec![
        (1, Tree::ByStatus, at(listed(pending)), none.clone()),
        (1, Tree::ByStatus, at(unlisted), some(b"")),
        (1, Tree::ByCompany, at(of_company), none.clone()),
        (1, Tree::Bodies, at(keys::part(request_id(3).as_bytes(), 0)), none.clone()),
        (1, Tree::Counters, at(counter.clone()), some(&7u64.to_be_bytes())),
        (1, Tree::Counters, at(counter), none.clone()),
        (1, Tree::Groups, Box::new(key_of(Tree::Groups)), none.clone()),
        (1, Tree::Pending, Box::new(key_of(Tree::Pending)), none.clone()),
        (1, Tree::Backoff, at(backoff), none.clone()),
        (1, Tree::Backoff, at(time(3)), some(b"")),
        (1, Tree::Settling, at(time(4)), none.clone()),
        (1, Tree::Settling, at(time(5)), some(b"")),
        (1, Tree::SessionKeys, Box::new(key_of(Tree::SessionKeys)), none.clone()),
        (1, Tree::SessionsOf, Box::new(key_of(Tree::SessionsOf)), none.clone()),
        (1, Tree::SessionsOf, at(vec![9; 20]), some(b"")),
        (
            6,
            Tree::SessionKeys,
            Box::new(key_of(Tree::SessionKeys)),
            Some(codec::encode(&SessionId::from_bytes([6; 16])).unwrap()),
        ),
        (2, Tree::Outstanding, at(member(2)), none.clone()),
        (3, Tree::Outstanding, at(member(3)), Some(provisional.clone())),
        (2, Tree::Outstanding, at(member(9)), Some(provisional)),
        (2, Tree::LiveBatches, at(batch()), none.clone()),
        (2, Tree::LiveBatches, at(vec![8; 16]), some(b"")),
        (3, Tree::ProviderBatches, at(Key::new().text("batch_1").done()), Some(nobody)),
        (4, Tree::Members, at(member(1)), some(&[Fate::Failed as u8])),
        (4, Tree::Members, at(member(2)), some(&[9])),
        (4, Tree::Members, at(member(1)), none.clone()),
        (4, Tree::Batches, at(batch()), none.clone()),
        (5, Tree::Bookings, at(booking(request_id(1))), Some(cost.clone())),
        (5, Tree::Bookings, at(booking(request_id(99))), Some(cost)),
        (5, Tree::Budgets, at(months.clone()), money(1, 0)),
        (5, Tree::Budgets, at(months), money(0, 1)),
        (5, Tree::Results, at(keys::part(request_id(1).as_bytes(), 0)), none.clone()),
        (6, Tree::Requests, at(request_id(5).as_bytes().to_vec()), none),
        (6, Tree::Requests, at(request_id(5).as_bytes().to_vec()), some(b"no record")),
    ];
    for (number, (invariant, tree, key, value)) in cases.into_iter().enumerate() {
        let store = full_store().await;
        let key = key(&store);
        tamper(&store, tree, key, value).await;
        let found = store.check().await.unwrap().violations;
        let told = found.iter().any(|violation| violation.invariant == invariant);
        assert!(told, "case {number}, {tree:?}: invariant {invariant} is not among {found:?}");
        assert!(store.doubt().unwrap().contains(&found[0].what), "case {number}");
    }
}

#[tokio::test]
async fn a_loss_and_an_older_value_are_noticed_in_every_tree_although_each_value_is_good() {
    let store = full_store().await;
    for tree in Tree::ALL.iter().copied().filter(|tree| *tree != Tree::Meta) {
        let Some((key, value)) = store.reader.engine.scan(tree, &[], None, 1).unwrap().pop() else {
            continue;
        };
        let lost = |found: &super::Report| {
            found
                .violations
                .iter()
                .any(|violation| violation.invariant == 6 && violation.place == tree.name())
        };
        damage(&store, tree, key.clone(), None);
        assert!(lost(&store.verify().await.unwrap()), "{tree:?}: a loss");
        damage(&store, tree, key.clone(), Some([value.as_slice(), b"x"].concat()));
        assert!(lost(&store.verify().await.unwrap()), "{tree:?}: another value");
        damage(&store, tree, key, Some(value));
        assert!(store.verify().await.unwrap().is_whole(), "{tree:?}: as it was");
    }
}

/// One change to the store, the next of many that never end.
async fn go_on(store: &Store, number: u8) {
    let own = 100 + number;
    let later = Some(NOW.plus(Duration::from_millis(u64::from(number))));
    store.accept_requests(vec![NewRequest { not_before: later, ..new_request(own) }], NOW).await.unwrap();
    store.accept_requests(vec![new_request(number + 10)], NOW).await.unwrap();
    let id = BatchId::from_bytes([number | 0x80; 16]);
    let limits = Limits { requests_max: 2, bytes_max: 1000, tokens_max: None, age_max: Duration::ZERO };
    match number % 3 {
        0 => {
            let batch = Batch::open(id, group(), ProviderIdentity::default(), NOW);
            // Another one is filling, now and then.
            if store.open_batch(batch).await.is_ok() {
                let cut = store.cut_chunk(id, Revision(0), limits).await.unwrap();
                turned_away(store, id, cut.batch.revision, NOW).await;
            }
        }
        1 => {
            store.release_due(NOW.plus(Duration::from_secs(1))).await.unwrap();
        }
        _ => {
            let company = Company {
                id: "acme".parse().unwrap(),
                name: format!("Acme {number}"),
                model: "gpt-4o-mini".to_owned(),
                suspended: false,
                budget_micros: None,
                retention: Default::default(),
            };
            store.put_companies(vec![company]).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_check_beside_writes_raises_no_alarm_and_still_finds_what_is_wrong() {
    for broken in [false, true] {
        let store = store().await;
        // The first batch no longer fills, so that others can.
        turned_away(&store, batch_id(), store.reader().batch(batch_id()).unwrap().unwrap().revision, NOW)
            .await;
        if broken {
            let body = keys::part(request_id(3).as_bytes(), 0);
            damage(&store, Tree::Bodies, body, None);
        }
        store.committer.alone(|writer| writer.begin_scan()).await.unwrap();
        let (mut pages, mut report) = (0u8, None);
        while report.is_none() {
            report = store.committer.alone(|writer| writer.scan_page()).await.unwrap();
            pages = pages.saturating_add(1);
            if pages < 80 {
                go_on(&store, pages).await;
            }
        }
        assert!(pages > 100, "only {pages} pages");
        let found: Vec<_> = report.unwrap().violations.into_iter().map(|violation| violation.place).collect();
        let request = format!("requests/{}", "03".repeat(16));
        assert_eq!(found, if broken { vec![request, "bodies".to_owned()] } else { vec![] });
    }
}

fn open(folder: &Path) -> impl Future<Output = Result<Store, StoreError>> {
    Store::open(folder, uuid::Uuid::nil(), std::sync::Arc::new(|_| {}))
}

/// Closes a store and waits until its thread has let go of the files.
async fn close(store: Store, folder: &Path) {
    drop(store);
    while let Err(StoreError::InUse { .. }) = super::lock::FolderLock::take(folder) {
        tokio::task::yield_now().await;
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let to = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            copy(&entry, &to);
        } else {
            std::fs::copy(&entry, &to).unwrap();
        }
    }
}

fn waiting_id(number: u8) -> RequestId {
    batches::tests::request(number).id
}

#[tokio::test]
async fn a_damaged_store_that_is_accepted_works_on_and_sends_nothing_that_has_ended() {
    let (store, _) = batches::tests::store_with(6).await;
    let entry = |tree, number: u8| {
        let all = store.reader.engine.scan(tree, &[], None, 100).unwrap();
        let of = |(key, _): &(Vec<u8>, Vec<u8>)| keys::request_at_end(key) == Some(waiting_id(number));
        all.into_iter().find(of).unwrap()
    };
    let (ended, ended_value) = entry(Tree::Pending, 1);
    let (unlisted, _) = entry(Tree::Pending, 2);
    // The first one has ended, and its entry is there again; the second one has lost its own; the third cannot be read;
    // a fourth waits for a time that its record knows nothing of; counters are older ones, and what waits in the group is not
    // known at all.
    let fails = move |tx: &mut super::tx::Tx<'_>| {
        let mut request = requests::load(tx, waiting_id(1))?;
        requests::dequeue(tx, &request)?;
        requests::move_to(tx, &mut request, RequestStatus::ProcessingFailed)?;
        requests::save(tx, &request)
    };
    store.committer.commit(1, fails).await.unwrap();
    assert_eq!(store.verify().await.unwrap().violations, []);
    damage(&store, Tree::Pending, ended, Some(ended_value));
    damage(&store, Tree::Pending, unlisted, None);
    damage(&store, Tree::Requests, waiting_id(3).as_bytes().to_vec(), Some(vec![9; 9]));
    let stray = Key::new().time(NOW).bytes(waiting_id(4).as_bytes()).done();
    damage(&store, Tree::Backoff, stray, Some(Vec::new()));
    for (key, _) in store.reader.engine.scan(Tree::Counters, &[], None, 100).unwrap() {
        damage(&store, Tree::Counters, key, Some(1_u64.to_be_bytes().to_vec()));
    }
    let (group, _) = store.reader.engine.scan(Tree::Groups, &[], None, 1).unwrap().pop().unwrap();
    damage(&store, Tree::Groups, group, None);
    let report = store.check().await.unwrap();
    assert!(report.violations.iter().any(|violation| violation.is_mended), "{:?}", report.violations);
    store.accept(&report, NOW).await.unwrap();
    let left = store.verify().await.unwrap();
    assert_eq!((left.violations, left.accepted > 0), (Vec::new(), true), "the third one is lost");

    assert_eq!(store.release_due(NOW).await.unwrap(), 0);
    assert_eq!(store.reader().summary(None).unwrap(), [4, 0, 0, 1]);
    let batch = batches::tests::sent(&store, 1).await;
    let members = store.reader().members(batch.id, None, 10).unwrap();
    assert_eq!(members, [2, 4, 5, 6].map(waiting_id));
    assert_eq!(store.reader().summary(None).unwrap(), [0, 4, 0, 1]);
}

#[tokio::test]
async fn an_entry_of_what_does_not_wait_there_is_removed_and_holds_nothing_up() {
    let (store, _) = batches::tests::store_with(3).await;
    damage(&store, Tree::Requests, waiting_id(1).as_bytes().to_vec(), Some(vec![9; 9]));
    let stray = Key::new().time(NOW).bytes(waiting_id(2).as_bytes()).done();
    damage(&store, Tree::Backoff, stray, Some(Vec::new()));
    assert_eq!(store.release_due(NOW).await.unwrap(), 0);
    assert!(store.reader.engine.scan(Tree::Backoff, &[], None, 1).unwrap().is_empty());
    let batch = batches::tests::sent(&store, 1).await;
    assert_eq!(store.reader().members(batch.id, None, 10).unwrap(), [2, 3].map(waiting_id));
}

#[tokio::test]
async fn in_doubt_nothing_is_stored_that_a_create_call_would_follow() {
    let (store, _) = batches::tests::store_with(1).await;
    let ready = batches::tests::intents::ready(&store, 1, 1).await;
    store.distrust("for a test".to_owned()).await.unwrap();
    let intent = batches::tests::intent(1);
    let intent = Intent { input: InputFile { bytes: ready.input_bytes, ..intent.input }, ..intent };
    let policy = Policy { backoff: Duration::ZERO, capacity_backoff: Duration::ZERO, sweeps_min: 3 };
    let refused = store.commit_intent(ready.id, ready.revision, intent, policy, NOW).await;
    assert!(matches!(&refused, Err(StoreError::Broken(why)) if why.contains("in doubt")), "{refused:?}");
    let stored = store.reader().batch(ready.id).unwrap().unwrap();
    assert_eq!((&stored.state, stored.revision), (&ready.state, ready.revision));
    assert!(store.reader().intents_since(NOW, 10).unwrap().is_empty());
}

#[tokio::test]
async fn a_store_put_back_is_in_doubt_through_writes_and_restarts_until_it_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let (data, old) = (folder.path().join("data"), folder.path().join("old"));
    let store = open(&data).await.unwrap();
    store.accept_requests(vec![new_request(1)], NOW).await.unwrap();
    store.anchor().await.unwrap();
    close(store, &data).await;
    copy(&data.join("store"), &old);
    let store = open(&data).await.unwrap();
    assert_eq!(store.doubt(), None);
    store.accept_requests(vec![new_request(2)], NOW).await.unwrap();
    store.anchor().await.unwrap();
    close(store, &data).await;
    std::fs::remove_dir_all(data.join("store")).unwrap();
    copy(&old, &data.join("store"));
    let anchor = std::fs::read(data.join("ANCHOR")).unwrap();

    // Far more is written than is missing: that does not make the store the one that was acknowledged.
    for number in 3..30 {
        let store = open(&data).await.unwrap();
        assert!(store.doubt().unwrap().contains("missing"), "{:?}", store.doubt());
        store.accept_requests(vec![new_request(number)], NOW).await.unwrap();
        store.anchor().await.unwrap();
        assert!(store.reader().request(request_id(number)).unwrap().is_some());
        assert!(store.check().await.unwrap().is_whole(), "it agrees with itself");
        let found = store.verify().await.unwrap();
        let numbers: Vec<u8> = found.violations.iter().map(|violation| violation.invariant).collect();
        assert_eq!((numbers, found.doubt), (vec![7], store.doubt()), "and is not whole all the same");
        close(store, &data).await;
        assert_eq!(std::fs::read(data.join("ANCHOR")).unwrap(), anchor, "the anchor moved over the doubt");
        if number == 20 {
            // Even where the note is lost, the anchor still tells.
            std::fs::remove_file(data.join("DOUBT")).unwrap();
        }
    }
    let store = open(&data).await.unwrap();
    let standing = store.standing().await.unwrap();
    assert!(standing.anchored_at.is_some() && standing.revision > standing.anchored.unwrap());
    let report = store.verify().await.unwrap();
    store.accept(&report, NOW).await.unwrap();
    assert_eq!(store.doubt(), None);
    close(store, &data).await;
    let store = open(&data).await.unwrap();
    assert_eq!(store.doubt(), None);
    let whole = store.verify().await.unwrap();
    assert!(whole.is_whole() && whole.accepted == 0, "{whole:?}");
    // What was accepted is that doubt, and not the next one.
    store.distrust("another".to_owned()).await.unwrap();
    assert!(!store.verify().await.unwrap().is_whole());
}

#[tokio::test]
async fn what_was_accepted_is_not_found_again_and_another_loss_is() {
    let store = full_store().await;
    let body = |number| keys::part(request_id(number).as_bytes(), 0);
    damage(&store, Tree::Bodies, body(3), None);
    tamper(&store, Tree::Outstanding, keys::member(batch_id(), request_id(2)), None).await;
    let report = store.check().await.unwrap();
    assert!(store.doubt().is_some() && report.violations.len() > 1);
    store.accept(&report, NOW).await.unwrap();
    assert_eq!(store.doubt(), None);
    let again = store.check().await.unwrap();
    assert!(again.is_whole() && again.accepted > 0, "{again:?}");
    damage(&store, Tree::Bodies, body(5), None);
    // Its request is told, too.
    assert_eq!(store.check().await.unwrap().violations.len(), 2);
    assert!(store.doubt().unwrap().contains("body"));
}

/// Takes the one batch to the provider, which has no room for it until it is given back.
async fn turned_away(store: &Store, id: BatchId, revision: Revision, at: Timestamp) -> Batch {
    let capacity_backoff = Duration::from_secs(60);
    let policy = Policy { backoff: Duration::ZERO, capacity_backoff, sweeps_min: 3 };
    let retry = retry::Policy { max_attempts: 3, backoff: Duration::ZERO, capacity_backoff: Duration::ZERO };
    let input = InputFile { id: FileId::new("file"), upload: 1, bytes: 0, created_at: NOW };
    let problem = Problem { code: Some("token_limit_exceeded".to_owned()), ..Problem::default() };
    let seen = |status| Observation {
        id: ProviderBatchId::new(format!("batch_{id}")),
        status: Some(status),
        output: None,
        error: None,
        completed_lines: None,
        failed_lines: None,
        problems: vec![problem.clone()],
        expires_at: None,
        ended_at: None,
    };
    let mut batch = store.reader().batch(id).unwrap().unwrap();
    assert_eq!(batch.revision, revision);
    let mut events = vec![
        Event::FillEnded { members: batch.counts.members, at },
        Event::Released,
        Event::Uploaded(input.clone()),
    ];
    let intent = Intent {
        nonce: Nonce::new(uuid::Uuid::from_bytes(*id.as_bytes())),
        input,
        at,
        made_with: Credentials([5; 16]),
    };
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
            assert_eq!(room.for_a_cut(at, 1, true), Some(0), "the gate is closed");
            at = closed.until;
        }
        batch.tokens_max = room.for_a_cut(at, 1, true);
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
    let validators = Validators { etag: Some("\"1\"".to_owned()), last_modified: None };
    let source = SourceRecord {
        validators: validators.clone(),
        time_zone: "UTC".to_owned(),
        read_at: Some(NOW),
        whole_at: Some(NOW),
        outcome: Some(ReadOutcome::Unchanged),
        next_at: Some(NOW),
        orders: 1,
        ..SourceRecord::default()
    };
    let fetch = Fetch {
        company: "acme".parse().unwrap(),
        at: TranscriptAt {
            source: SourceId::from_bytes([7; 16]),
            url: "https://files.example/a.txt".to_owned(),
            host: [8; 8],
        },
        state: FetchState::Waiting,
        attempts: 1,
        error: Some("the server answered 503".to_owned()),
        due: Some(NOW),
        validators,
        had_at: None,
    };
    let mut text = String::new();
    for (name, bytes) in [
        ("request", codec::encode(&request).unwrap()),
        ("batch", codec::encode(&batch).unwrap()),
        ("session", codec::encode(&session).unwrap()),
        ("source", codec::encode(&source).unwrap()),
        ("fetch", codec::encode(&fetch).unwrap()),
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

#[tokio::test]
async fn a_compaction_that_finds_the_store_damaged_puts_it_in_doubt() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), uuid::Uuid::nil(), std::sync::Arc::new(|_| {})).await.unwrap();
    store.compact().await.unwrap();
    assert_eq!(store.doubt(), None);
    // An entry that nobody has stored by the book.
    let mut writes = Writes::new();
    writes.entry(Tree::Meta).or_default().insert(b"other".to_vec(), Some(Vec::new()));
    writes.entry(Tree::Bodies).or_default().insert(b"stray".to_vec(), Some(vec![1]));
    store.reader().engine.store(&writes, &super::sums::Sums::default(), 1, false).unwrap();
    assert!(matches!(store.compact().await, Err(StoreError::Broken(_))));
    assert!(store.doubt().unwrap().contains("bodies"));
}
