//! Batches over a store in memory, led by hand through what a provider may say of them.

use std::collections::BTreeSet;

use super::*;
use crate::domain::batch::{
    Cancel, Credentials, InputFile, Intent, Problem, ProviderIdentity, Running, Terminal, Then, Wait,
};
use crate::domain::budget::{Affordable, Money, Month};
use crate::domain::company::Company;
use crate::domain::event::{Event, Observation, ObservedStatus, Trouble};
use crate::domain::id::{Nonce, SessionId};
use crate::domain::price::{ModelPrice, Rates};
use crate::domain::request::{Attempt, Endpoint, FailureClass, Source};
use crate::domain::session::{Message, Role, SessionFacts};
use crate::domain::step;
use crate::store::{Accepted, NewRequest, SessionIn};

pub mod intents;

use intents::{intend, ready};

pub const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
pub const LIMITS: Limits =
    Limits { requests_max: 100, bytes_max: 100_000, tokens_max: None, age_max: Duration::ZERO };
const POLICY: Policy = Policy { backoff: Duration::ZERO, capacity_backoff: Duration::ZERO, sweeps_min: 3 };
const RETRY: retry::Policy =
    retry::Policy { max_attempts: 3, backoff: Duration::ZERO, capacity_backoff: Duration::ZERO };

pub fn group() -> Group {
    Group { company: "acme".parse().unwrap(), endpoint: Endpoint::ChatCompletions, model: "m".to_owned() }
}

pub fn batch_id(number: u8) -> BatchId {
    BatchId::from_bytes([number; 16])
}

pub fn provider_id(number: u8) -> ProviderBatchId {
    ProviderBatchId::new(format!("batch_{number}"))
}

pub async fn store_with(requests: u8) -> (Store, Vec<RequestId>) {
    let store = Store::in_memory(uuid::Uuid::nil()).await.unwrap();
    let new = (1..=requests).map(request);
    let accepted = store.accept_requests(new.collect(), NOW).await.unwrap();
    let ids = accepted.into_iter().map(|accepted| match accepted {
        Accepted::New(id) => id,
        other @ (Accepted::Duplicate(_) | Accepted::Conflict(_) | Accepted::TooManyGroups) => {
            panic!("not new: {other:?}")
        }
    });
    let ids = ids.collect();
    (store, ids)
}

pub fn request(number: u8) -> NewRequest {
    NewRequest {
        id: RequestId::from_bytes([number; 16]),
        group: group(),
        source: Source::Generic { client_id: None },
        key: None,
        content_hash: [0; 32],
        body: Some("{}".to_owned()),
        line_bytes: 100,
        line_crc: 0,
        estimated_tokens: 10,
        output_max: None,
        inputs: 0,
        metadata: None,
        priority: 0,
        not_before: None,
    }
}

/// The company of the group, with a budget for each month.
pub fn acme_with(micros: u64) -> Company {
    Company {
        id: group().company,
        name: String::new(),
        model: "m".to_owned(),
        suspended: false,
        budget_micros: Some(micros),
        retention: Default::default(),
    }
}

pub fn sound(store: &Store) {
    assert_eq!(store.reader().verify().unwrap().violations, []);
}

pub async fn take(store: &Store, batch: &Batch, event: &Event) -> Batch {
    let step = step::step(&batch.state, batch.orders(), event, &POLICY).unwrap();
    store.commit_step(batch.id, batch.revision, step, NOW).await.unwrap()
}

pub fn seen(number: u8, status: ObservedStatus) -> Observation {
    Observation {
        id: provider_id(number),
        status: Some(status),
        output: None,
        error: None,
        completed_lines: Some(0),
        failed_lines: Some(0),
        problems: Vec::new(),
        expires_at: None,
        ended_at: None,
    }
}

pub fn intent(number: u8) -> Intent {
    let input = InputFile { id: FileId::new(format!("file-{number}")), upload: 1, bytes: 0, created_at: NOW };
    Intent { nonce: Nonce::from_bytes([number; 16]), input, at: NOW, made_with: Credentials::default() }
}

/// Cuts a batch of what waits and takes it to the provider.
pub async fn sent(store: &Store, number: u8) -> Batch {
    let id = batch_id(number);
    store.open_batch(Batch::open(id, group(), ProviderIdentity::default(), NOW)).await.unwrap();
    let batch = store.cut_chunk(id, Revision(0), LIMITS).await.unwrap().batch;
    send(store, number, batch).await
}

async fn send(store: &Store, number: u8, mut batch: Batch) -> Batch {
    for event in [
        Event::FillEnded { members: batch.counts.members, at: NOW },
        Event::Released,
        Event::Uploaded(intent(number).input),
        Event::IntentMade(intent(number)),
        Event::Created(seen(number, ObservedStatus::Running(Running::Validating))),
    ] {
        batch = take(store, &batch, &event).await;
    }
    batch
}

pub async fn close(store: &Store, mut batch: Batch, named: HashMap<RequestId, Failure>) -> Batch {
    while !matches!(batch.state, BatchState::Cleaning { .. }) {
        let closed = store.close_chunk(batch.id, batch.revision, named.clone(), RETRY, POLICY, NOW);
        batch = closed.await.unwrap().batch;
    }
    take(store, &batch, &Event::Cleaned { at: NOW }).await
}

async fn refused(store: &Store, number: u8, batch: &Batch, problem: Problem) -> Batch {
    let ended = seen(number, ObservedStatus::Ended(Terminal::Failed));
    let seen = Observation { problems: vec![problem], ..ended };
    let batch = take(store, batch, &Event::Observed { seen, at: NOW }).await;
    close(store, batch, HashMap::new()).await
}

pub async fn completed(store: &Store, number: u8, batch: &Batch) -> Batch {
    let members = store.reader().members(batch.id, None, 1000).unwrap();
    ended(store, number, batch, &members).await
}

/// The end of a batch that has an answer to these requests.
pub async fn ended(store: &Store, number: u8, batch: &Batch, answered: &[RequestId]) -> Batch {
    let ended = seen(number, ObservedStatus::Ended(Terminal::Completed));
    let seen = Observation { output: Some(FileId::new("out")), ..ended };
    let kind = crate::domain::batch::ResultKind::Output;
    let mut batch = take(store, batch, &Event::Observed { seen, at: NOW }).await;
    batch = take(store, &batch, &Event::Downloaded { kind, torn: false }).await;
    batch = apply(store, &batch, answered).await;
    close(store, batch, HashMap::new()).await
}

async fn apply(store: &Store, batch: &Batch, members: &[RequestId]) -> Batch {
    let kind = crate::domain::batch::ResultKind::Output;
    let lines = members.iter().map(|request| AppliedLine::Line {
        repair: None,
        request: *request,
        outcome: Outcome { answered: Answered::default(), result: Ok("{}".to_owned()) },
        analysis: None,
        cost: Some(Cost { micros: 3, currency: "USD".to_owned(), price_version: "1".to_owned() }),
    });
    let event = Event::LinesRead { kind, from: 0, to: 1, end: true };
    let step = step::step(&batch.state, batch.orders(), &event, &POLICY).unwrap();
    store.apply_lines(batch.id, batch.revision, step, lines.collect(), NOW).await.unwrap()
}

#[tokio::test]
async fn a_poison_line_that_is_never_named_is_found_by_halves_and_holds_the_others_no_longer() {
    let (store, ids) = store_with(60).await;
    let poison = ids[41];
    let (mut number, mut sizes) = (0, Vec::new());
    while store.reader().summary(None).unwrap()[0] > 0 {
        number += 1;
        let batch = sent(&store, number).await;
        sizes.push(batch.counts.members);
        let members = store.reader().members(batch.id, None, 1000).unwrap();
        if members.contains(&poison) {
            // It names a line that is not there.
            let problem = Problem { code: Some("odd".to_owned()), line: Some(9999), ..Problem::default() };
            refused(&store, number, &batch, problem).await;
        } else {
            completed(&store, number, &batch).await;
        }
        sound(&store);
    }
    assert_eq!(store.reader().summary(None).unwrap(), [0, 0, 59, 1]);
    let bad = store.reader().request(poison).unwrap().unwrap();
    assert_eq!((bad.status, bad.attempts), (RequestStatus::ProcessingFailed, 0));
    assert_eq!(sizes[..6], [60, 60, 60, 60, 60, 30], "{sizes:?}");
    assert!(sizes.len() < 20, "{sizes:?}");
}

/// Refuses the batch for a reason that nobody knows until it is given up or waits for the operator.
async fn close_dissolving(store: &Store, batch: Batch) -> Batch {
    assert!(matches!(batch.state, BatchState::Dissolving { .. }), "{:?}", batch.state);
    close(store, batch, HashMap::new()).await
}

async fn refused_without_a_reason(store: &Store, number: u8, mut batch: Batch) -> Batch {
    loop {
        let problem = Problem { code: Some("odd".to_owned()), ..Problem::default() };
        let ended = seen(number, ObservedStatus::Ended(Terminal::Failed));
        let seen_now = Observation { problems: vec![problem], ..ended };
        let orders = store.reader().orders(&batch).unwrap();
        let event = Event::Observed { seen: seen_now, at: NOW };
        let step = step::step(&batch.state, orders, &event, &POLICY).unwrap();
        batch = store.commit_step(batch.id, batch.revision, step, NOW).await.unwrap();
        if matches!(batch.state, BatchState::Parked { .. }) {
            return batch;
        }
        if !matches!(batch.state, BatchState::Ready { .. }) {
            return close(store, batch, HashMap::new()).await;
        }
        batch = take(store, &batch, &Event::IntentMade(intent(number))).await;
        let running = seen(number, ObservedStatus::Running(Running::Validating));
        batch = take(store, &batch, &Event::Created(running)).await;
    }
}

#[tokio::test]
async fn a_poison_line_that_is_refused_without_a_reason_is_found_by_halves_and_waits_alone() {
    let (store, ids) = store_with(60).await;
    let poison = ids[41];
    let (mut number, mut parked) = (0, None);
    while store.reader().summary(None).unwrap()[0] > 0 {
        number += 1;
        let batch = sent(&store, number).await;
        if store.reader().members(batch.id, None, 1000).unwrap().contains(&poison) {
            let batch = refused_without_a_reason(&store, number, batch).await;
            parked = matches!(batch.state, BatchState::Parked { .. }).then_some(batch);
        } else {
            completed(&store, number, &batch).await;
        }
        sound(&store);
    }
    assert!(number < 14, "{number}");
    assert_eq!(
        store.reader().summary(None).unwrap(),
        [0, 1, 59, 0],
        "no request failed for words that nobody knows"
    );
    let parked = parked.unwrap();
    assert_eq!(store.reader().members(parked.id, None, 10).unwrap(), [poison]);
    assert_eq!(store.reader().request(poison).unwrap().unwrap().attempts, 0);
}

#[tokio::test]
async fn what_is_refused_at_the_create_call_itself_is_tried_in_halves() {
    let (store, ids) = store_with(8).await;
    let mut batch = ready(&store, 1, 8).await;
    let refusal = Failure::new(FailureClass::Permanent, "something_new", "");
    for _ in 0..3 {
        batch = intend(&store, 1, &batch).await;
        let trouble = Trouble::Refused(refusal.clone());
        batch = take(&store, &batch, &Event::CreateFailed { trouble, input_gone: false, at: NOW }).await;
    }
    let batch = close_dissolving(&store, batch).await;
    assert_eq!((batch.counts.returned, batch.counts.failed), (8, 0));
    let half = sent(&store, 2).await;
    assert_eq!((half.counts.members, half.members_max), (4, Some(4)));
    assert_eq!(store.reader().request(ids[0]).unwrap().unwrap().attempts, 0);
    sound(&store);
}

#[tokio::test]
async fn a_refusal_for_want_of_room_at_the_create_call_itself_teaches_how_much_there_is() {
    let (store, _) = store_with(4).await;
    let batch = ready(&store, 1, 4).await;
    let batch = intend(&store, 1, &batch).await;
    let trouble = Trouble::Refused(Failure::new(FailureClass::Permanent, "token_limit_exceeded", ""));
    let batch = take(&store, &batch, &Event::CreateFailed { trouble, input_gone: false, at: NOW }).await;
    let batch = close_dissolving(&store, batch).await;
    let room = store.reader().room(&batch).unwrap();
    assert_eq!((room.reserved, room.enqueued, room.learned.unwrap().tokens), (0, 0, 32));
    assert!(room.closed.is_some_and(|closed| closed.probe.is_none()), "{room:?}");
    assert_eq!(store.reader().summary(None).unwrap(), [4, 0, 0, 0]);
    sound(&store);
}

#[tokio::test]
async fn what_the_account_is_refused_for_without_a_reason_is_halved_once_and_then_waits_for_the_operator() {
    let (store, _) = store_with(60).await;
    for (number, members) in [(1, 60), (2, 30), (3, 30)] {
        let batch = sent(&store, number).await;
        assert_eq!(batch.counts.members, members);
        let batch = refused_without_a_reason(&store, number, batch).await;
        assert_eq!(matches!(batch.state, BatchState::Parked { .. }), number > 1);
        sound(&store);
    }
    assert_eq!(store.reader().summary(None).unwrap(), [0, 60, 0, 0]);
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_halved_at_once() {
    let (store, _) = store_with(8).await;
    let batch = sent(&store, 1).await;
    let problem = Problem { code: Some("too_many_tasks".to_owned()), ..Problem::default() };
    refused(&store, 1, &batch, problem).await;
    assert_eq!(sent(&store, 2).await.counts.members, 4);
    assert_eq!(sent(&store, 3).await.counts.members, 4);
    sound(&store);
}

#[tokio::test]
async fn a_cancel_before_the_call_gives_the_members_back_or_ends_them_and_uses_no_attempt() {
    for (then, summary) in [(Then::Requeue, [4, 0, 0, 0]), (Then::End, [0, 0, 0, 4])] {
        let (store, ids) = store_with(4).await;
        let id = batch_id(1);
        store.open_batch(Batch::open(id, group(), ProviderIdentity::default(), NOW)).await.unwrap();
        let batch = store.cut_chunk(id, Revision(0), LIMITS).await.unwrap().batch;
        let cancel = Cancel { by: "ops".to_owned(), at: NOW, then };
        let batch = take(&store, &batch, &Event::CancelAsked(cancel)).await;
        let batch = close(&store, batch, HashMap::new()).await;
        assert_eq!(batch.state.status(), crate::domain::batch::BatchStatus::Cancelled);
        assert_eq!(store.reader().summary(None).unwrap(), summary);
        let request = store.reader().request(ids[0]).unwrap().unwrap();
        assert_eq!((request.attempts, request.history.len()), (0, 1));
        assert_eq!(request.not_before, None);
        assert!(store.reader().waiting().unwrap().iter().all(|group| group.filling.is_none()));
        sound(&store);
    }
}

#[tokio::test]
async fn what_a_cancelled_batch_has_finished_stays_finished() {
    for (then, summary) in [(Then::Requeue, [2, 0, 2, 0]), (Then::End, [0, 0, 2, 2])] {
        let (store, ids) = store_with(4).await;
        let batch = sent(&store, 1).await;
        let cancel = Cancel { by: "ops".to_owned(), at: NOW, then };
        let batch = take(&store, &batch, &Event::CancelAsked(cancel)).await;
        let ended = seen(1, ObservedStatus::Ended(Terminal::Cancelled));
        let seen = Observation { output: Some(FileId::new("out")), ..ended };
        let mut batch = take(&store, &batch, &Event::Observed { seen, at: NOW }).await;
        let kind = crate::domain::batch::ResultKind::Output;
        batch = take(&store, &batch, &Event::Downloaded { kind, torn: false }).await;
        batch = apply(&store, &batch, &ids[..2]).await;
        close(&store, batch, HashMap::new()).await;
        assert_eq!(store.reader().summary(None).unwrap(), summary);
        let rest = store.reader().request(ids[3]).unwrap().unwrap();
        assert_eq!(rest.attempts, 0, "the operator's wish is no failure of the request");
        sound(&store);
    }
}

#[tokio::test]
async fn a_shadow_completes_what_is_open_and_is_booked_apart() {
    let (store, ids) = store_with(3).await;
    let original = sent(&store, 1).await;
    let mut shadow = Batch::open(batch_id(2), group(), ProviderIdentity::default(), NOW);
    shadow.origin = Origin::Shadow { of: original.id };
    shadow.provider_batch = Some(provider_id(2));
    shadow.state = BatchState::Observing {
        intent: intent(2),
        running: Running::Validating,
        wait: Wait::default(),
        missing: None,
    };
    store.open_batch(shadow).await.unwrap();
    assert_eq!(store.reader().batch_of_provider(&provider_id(2)).unwrap(), Some(batch_id(2)));
    let shadow = store.reader().batch(batch_id(2)).unwrap().unwrap();
    let ended = seen(2, ObservedStatus::Ended(Terminal::Cancelled));
    let found = Observation { output: Some(FileId::new("out")), ..ended };
    let mut shadow = take(&store, &shadow, &Event::Observed { seen: found, at: NOW }).await;
    let kind = crate::domain::batch::ResultKind::Output;
    shadow = take(&store, &shadow, &Event::Downloaded { kind, torn: false }).await;
    shadow = apply(&store, &shadow, &ids[..1]).await;
    shadow = close(&store, shadow, HashMap::new()).await;
    assert_eq!((shadow.counts.members, shadow.cost_micros), (0, 3));
    assert_eq!(store.reader().summary(None).unwrap(), [0, 2, 1, 0]);
    sound(&store);
    // The original's own line for it is a repeat, and is booked all the same: it was paid for.
    let original = store.reader().batch(original.id).unwrap().unwrap();
    let original = completed(&store, 1, &original).await;
    assert_eq!((original.anomalies.repeated, original.cost_micros), (1, 9));
    assert_eq!(store.reader().request(ids[0]).unwrap().unwrap().cost.unwrap().micros, 6);
    sound(&store);
}

/// A batch that was found at the provider and takes over whom it names.
async fn adopted(store: &Store, number: u8, named: Vec<RequestId>) -> Batch {
    let mut adopted = Batch::open(batch_id(number), group(), ProviderIdentity::default(), NOW);
    adopted.origin = Origin::Adopted;
    store.open_batch(adopted).await.unwrap();
    store.take_over_members(batch_id(number), Revision(0), named).await.unwrap()
}

/// Observes what was found at the provider.
async fn found(store: &Store, batch: &Batch, number: u8) -> Batch {
    let next = BatchState::Observing {
        intent: intent(number),
        running: Running::InProgress,
        wait: Wait::default(),
        missing: None,
    };
    let step = Step { next, changes: vec![Change::Adopt(provider_id(number))], effects: vec![], story: None };
    store.commit_step(batch.id, batch.revision, step, NOW).await.unwrap()
}

#[tokio::test]
async fn a_batch_that_was_taken_over_and_turned_away_says_nothing_of_the_room() {
    let (store, ids) = store_with(4).await;
    let batch = adopted(&store, 9, ids).await;
    let batch = found(&store, &batch, 9).await;
    let problem = Problem { code: Some("token_limit_exceeded".to_owned()), ..Problem::default() };
    let batch = refused(&store, 9, &batch, problem).await;
    let room = store.reader().room(&batch).unwrap();
    assert_eq!((room.learned.is_none(), room.closed.is_none()), (true, true), "{room:?}");
    assert_eq!(sent(&store, 1).await.counts.members, 4, "they are sent again");
    sound(&store);
}

#[tokio::test]
async fn an_adopted_batch_takes_over_who_waits_and_completes_whom_it_names() {
    let (store, ids) = store_with(4).await;
    let unknown = RequestId::from_bytes([99; 16]);
    let batch = adopted(&store, 9, vec![ids[0], ids[1], unknown]).await;
    assert_eq!(batch.counts.members, 2);
    // A kill here gives them back: it is found again at the provider.
    let dissolved = take(&store, &batch, &Event::FillEnded { members: 2, at: NOW }).await;
    assert!(matches!(dissolved.state, BatchState::Dissolving { .. }));
    close(&store, dissolved, HashMap::new()).await;
    assert_eq!(store.reader().summary(None).unwrap(), [4, 0, 0, 0]);
    sound(&store);

    let batch = adopted(&store, 10, ids[..2].to_vec()).await;
    let batch = found(&store, &batch, 9).await;
    let ended = seen(9, ObservedStatus::Ended(Terminal::Completed));
    let with_file = Observation { output: Some(FileId::new("out")), ..ended };
    let mut batch = take(&store, &batch, &Event::Observed { seen: with_file, at: NOW }).await;
    let kind = crate::domain::batch::ResultKind::Output;
    batch = take(&store, &batch, &Event::Downloaded { kind, torn: false }).await;
    batch = apply(&store, &batch, &[ids[0], ids[1], ids[2], unknown]).await;
    let batch = close(&store, batch, HashMap::new()).await;
    assert_eq!((batch.counts.completed, batch.anomalies.unknown), (2, 1));
    assert_eq!(store.reader().summary(None).unwrap(), [1, 0, 3, 0]);
    sound(&store);
}

#[tokio::test]
async fn what_did_not_run_fails_in_no_case_also_where_there_are_fewer_attempts_than_there_were() {
    let (store, ids) = store_with(2).await;
    expired(&store).await;
    let used = |id| store.reader().request(id).unwrap().unwrap().attempts;
    assert_eq!([used(ids[0]), used(ids[1])], [1, 1]);
    let one = retry::Policy { max_attempts: 1, ..RETRY };
    let mut batch = ready(&store, 2, 2).await;
    let detail = "for a test";
    let given_back = Event::GivenBack(Failure::new(FailureClass::Transient, "batch_given_back", detail));
    batch = take(&store, &batch, &given_back).await;
    let closed = store.close_chunk(batch.id, batch.revision, HashMap::new(), one, POLICY, NOW).await.unwrap();
    assert_eq!((closed.batch.counts.returned, closed.batch.counts.failed), (2, 0));
    assert_eq!([used(ids[0]), used(ids[1])], [1, 1]);
    sound(&store);
}

#[tokio::test]
async fn what_is_lost_with_its_file_fails_and_completes_once_it_is_requeued() {
    let (store, ids) = store_with(2).await;
    let batch = sent(&store, 1).await;
    let ended = seen(1, ObservedStatus::Ended(Terminal::Completed));
    let ended = Observation { output: Some(FileId::new("out")), completed_lines: Some(2), ..ended };
    let mut batch = take(&store, &batch, &Event::Observed { seen: ended, at: NOW }).await;
    let kind = crate::domain::batch::ResultKind::Output;
    let refusal = Failure::new(FailureClass::Permanent, "http_404", "no such file");
    for _ in 0..Policy::DOWNLOAD_REFUSALS_MAX {
        let trouble = Trouble::Refused(refusal.clone());
        batch = take(&store, &batch, &Event::DownloadFailed { kind, trouble, at: NOW }).await;
    }
    let batch = close(&store, batch, HashMap::new()).await;
    assert_eq!((batch.counts.failed, batch.counts.returned), (2, 0));
    let request = || store.reader().request(ids[0]).unwrap().unwrap();
    let codes = || {
        let code = |attempt: &Attempt| attempt.failure.as_ref().map(|failure| failure.code.clone());
        request().history.iter().map(code).collect::<Vec<_>>()
    };
    assert_eq!(codes(), [Some("result_lost".to_owned())]);
    assert_eq!(request().failure.unwrap().class, FailureClass::Lost);
    assert_eq!(store.reader().summary(None).unwrap(), [0, 0, 0, 2], "nothing goes back by itself");
    store.requeue(ids.clone(), NOW).await.unwrap();
    assert_eq!(store.reader().summary(None).unwrap(), [2, 0, 0, 0]);
    let batch = sent(&store, 2).await;
    completed(&store, 2, &batch).await;
    assert_eq!(store.reader().summary(None).unwrap(), [0, 0, 2, 0]);
    assert_eq!(codes(), [Some("result_lost".to_owned()), None]);
    sound(&store);
}

#[tokio::test]
async fn room_is_held_from_the_cut_until_ten_minutes_after_the_end() {
    let (store, _) = store_with(4).await;
    let batch = sent(&store, 1).await;
    let room = || store.reader().room(&batch).unwrap();
    assert_eq!((room().reserved, room().enqueued), (0, 40));
    let over = completed(&store, 1, &batch).await;
    assert_eq!((over.held_tokens, room().enqueued), (0, 40));
    assert_eq!(store.release_room(NOW.plus(Duration::from_secs(599))).await.unwrap(), 0);
    assert_eq!(store.release_room(NOW.plus(Duration::from_secs(600))).await.unwrap(), 1);
    assert_eq!((room().reserved, room().enqueued), (0, 0));
    let names: BTreeSet<_> = store.reader().rooms().unwrap().into_iter().map(|(_, model, _)| model).collect();
    assert_eq!(names, BTreeSet::from(["m".to_owned()]));
    // One that is turned away never counted.
    let (store, _) = store_with(4).await;
    let batch = sent(&store, 1).await;
    let problem = Problem { code: Some("token_limit_exceeded".to_owned()), ..Problem::default() };
    let over = refused(&store, 1, &batch, problem).await;
    let room = store.reader().room(&over).unwrap();
    assert_eq!((room.enqueued, room.learned.unwrap().tokens), (0, 32));
    assert_eq!(store.reader().summary(None).unwrap(), [4, 0, 0, 0]);
    let class = |class| move |attempt: &Attempt| attempt.failure.as_ref().is_some_and(|f| f.class == class);
    let request = store.reader().request(RequestId::from_bytes([1; 16])).unwrap().unwrap();
    assert!(request.history.iter().all(class(FailureClass::Capacity)));
}

#[tokio::test]
async fn a_batch_takes_no_more_than_its_companys_month_allows_and_what_it_does_not_cost_is_given_back() {
    let (store, _) = store_with(10).await;
    let company = acme_with(4200);
    store.put_companies(vec![company.clone()]).await.unwrap();
    // A thousand tokens of an unknown answer come to 1,000 millionths, ten of the input to ten.
    let million = 1_000_000;
    let usual = Rates { input: million, cached: None, cache_write: None, output: million };
    let price = Some(ModelPrice { usual, long_context: None });
    let open =
        |number| Batch { price, ..Batch::open(batch_id(number), group(), ProviderIdentity::default(), NOW) };
    let money = || store.reader().money(&company.id, Month::of(NOW)).unwrap();
    store.open_batch(open(1)).await.unwrap();
    let cut = store.cut_chunk(batch_id(1), Revision(0), LIMITS).await.unwrap();
    assert_eq!((cut.moved, cut.done, money()), (4, true, Money { spent: 0, reserved: 4040 }));
    let next = store.reader().affordable(&open(2)).unwrap();
    assert_eq!(next, Affordable::Spent { limit: 4200, money: money(), next: 1010 });
    let no_price = Batch { price: None, ..open(2) };
    assert_eq!(store.reader().affordable(&no_price).unwrap(), Affordable::NoPrice);
    sound(&store);
    let batch = send(&store, 1, cut.batch).await;
    completed(&store, 1, &batch).await;
    assert_eq!(money(), Money { spent: 12, reserved: 0 });
    assert_eq!(store.reader().affordable(&open(2)).unwrap(), Affordable::Yes);
    sound(&store);
}

#[tokio::test]
async fn requests_that_cost_more_than_a_months_budget_hold_nothing_that_lies_behind_them() {
    let (store, _) = store_with(0).await;
    let company = acme_with(5000);
    store.put_companies(vec![company]).await.unwrap();
    let waits = |number: u64, priority, output_max| NewRequest {
        id: RequestId::from_bytes(u128::from(number).to_be_bytes()),
        priority,
        output_max: Some(output_max),
        ..request(1)
    };
    let dear: Vec<_> = (1..=600).map(|number| waits(number, 5, 10_000)).collect();
    for chunk in dear.chunks(250) {
        store.accept_requests(chunk.to_vec(), NOW).await.unwrap();
    }
    let million = 1_000_000;
    let usual = Rates { input: million, cached: None, cache_write: None, output: million };
    let price = Some(ModelPrice { usual, long_context: None });
    let open =
        |number| Batch { price, ..Batch::open(batch_id(number), group(), ProviderIdentity::default(), NOW) };
    let reader = store.reader();
    assert_eq!(reader.affordable(&open(1)).unwrap(), Affordable::TooDear { limit: 5000, next: 10_010 });
    store.accept_requests((1001..=1003).map(|number| waits(number, 0, 100)).collect(), NOW).await.unwrap();
    assert_eq!(reader.affordable(&open(1)).unwrap(), Affordable::Yes);
    store.open_batch(open(1)).await.unwrap();
    let cut = store.cut_chunk(batch_id(1), Revision(0), LIMITS).await.unwrap();
    assert_eq!((cut.moved, cut.batch.counts.members), (3, 3));
    let one = reader.request(dear[0].id).unwrap().unwrap();
    assert!(matches!(reader.too_dear(&open(2), &one).unwrap(), Some(Affordable::TooDear { .. })));
    sound(&store);
}

#[tokio::test]
async fn a_late_answer_about_an_older_version_of_a_session_is_not_taken_for_the_newer_one() {
    let store = Store::in_memory(uuid::Uuid::nil()).await.unwrap();
    let session_id = SessionId::from_bytes([3; 16]);
    let session = |text: &str, hash| SessionIn {
        company: group().company,
        external_id: "chat".to_owned(),
        id: session_id,
        facts: SessionFacts::default(),
        messages: Some(vec![Message { role: Role::User, at: None, text: text.to_owned() }]),
        fetch: None,
        line: None,
        content_hash: [hash; 32],
        settles_at: NOW,
    };
    let asked = |number: u8, version| NewRequest {
        id: RequestId::from_bytes([number; 16]),
        group: group(),
        source: Source::Session { session: session_id, version, prompt: 1 },
        key: None,
        content_hash: [0; 32],
        body: None,
        line_bytes: 100,
        line_crc: 0,
        estimated_tokens: 10,
        output_max: None,
        inputs: 0,
        metadata: None,
        priority: 0,
        not_before: None,
    };
    store.accept_sessions(vec![session("one", 1)], NOW).await.unwrap();
    store.request_analyses(vec![(session_id, 1, asked(1, 1))], NOW).await.unwrap();
    let batch = sent(&store, 1).await;
    let ended = seen(1, ObservedStatus::Ended(Terminal::Expired));
    let batch = take(&store, &batch, &Event::Observed { seen: ended, at: NOW }).await;
    let batch = close(&store, batch, HashMap::new()).await;
    store.accept_sessions(vec![session("two", 2)], NOW).await.unwrap();
    store.request_analyses(vec![(session_id, 2, asked(2, 2))], NOW).await.unwrap();
    let id = RequestId::from_bytes([1; 16]);
    let request = || store.reader().request(id).unwrap().unwrap();
    assert!(matches!(request().source, Source::Session { version: 2, .. }), "{:?}", request());
    let step = Step { next: batch.state.clone(), changes: Vec::new(), effects: Vec::new(), story: None };
    let line = AppliedLine::Line {
        repair: None,
        request: id,
        outcome: Outcome { answered: Answered::default(), result: Ok("{}".to_owned()) },
        analysis: Some("{}".to_owned()),
        cost: Some(Cost { micros: 3, currency: "USD".to_owned(), price_version: "1".to_owned() }),
    };
    store.apply_lines(batch.id, batch.revision, step, vec![line], NOW).await.unwrap();
    assert_eq!(request().status, RequestStatus::PendingBatching, "it is still to be asked");
    assert_eq!(request().cost.map(|cost| cost.micros), Some(3), "and the answer was paid for");
    assert_eq!(store.reader().analysis(session_id, 2).unwrap(), None);
    sound(&store);
}

fn good_line(request: RequestId) -> AppliedLine {
    let outcome = Outcome { answered: Answered::default(), result: Ok("{}".to_owned()) };
    AppliedLine::Line { repair: None, request, outcome, analysis: None, cost: None }
}

/// Sends a batch of what waits that ends without a result; its requests wait again.
async fn expired(store: &Store) -> Batch {
    let batch = sent(store, 1).await;
    let ended = seen(1, ObservedStatus::Ended(Terminal::Expired));
    let batch = take(store, &batch, &Event::Observed { seen: ended, at: NOW }).await;
    let batch = close(store, batch, HashMap::new()).await;
    while store.release_due(NOW).await.unwrap() > 0 {}
    batch
}

/// A batch that is over has an answer after all, as one has that was given up.
async fn answer_after_all(store: &Store, batch: &Batch, request: RequestId) {
    let batch = store.reader().batch(batch.id).unwrap().unwrap();
    let step = Step { next: batch.state.clone(), changes: Vec::new(), effects: Vec::new(), story: None };
    store.apply_lines(batch.id, batch.revision, step, vec![good_line(request)], NOW).await.unwrap();
}

#[tokio::test]
async fn what_was_answered_elsewhere_is_not_sent_with_a_batch_that_is_still_to_be_sent() {
    let (store, ids) = store_with(2).await;
    let first = expired(&store).await;
    let id = batch_id(2);
    store.open_batch(Batch::open(id, group(), ProviderIdentity::default(), NOW)).await.unwrap();
    let cut = store.cut_chunk(id, Revision(0), LIMITS).await.unwrap().batch;
    assert_eq!((cut.counts.members, cut.input_bytes), (2, 200));
    answer_after_all(&store, &first, ids[0]).await;
    assert_eq!(store.reader().members(id, None, 10).unwrap(), [ids[1]]);
    let left = store.reader().batch(id).unwrap().unwrap();
    assert_eq!((left.counts.outstanding(), left.input_bytes), (1, 100));
    sound(&store);
}

#[tokio::test]
async fn what_was_answered_elsewhere_is_not_sent_again_with_a_batch_that_came_to_nothing() {
    let (store, ids) = store_with(2).await;
    let first = expired(&store).await;
    let second = sent(&store, 2).await;
    assert_eq!((second.counts.members, second.input_bytes), (2, 200));
    answer_after_all(&store, &first, ids[0]).await;
    // It was in the file that was sent, and must not be in the next one.
    assert_eq!(store.reader().members(second.id, None, 10).unwrap(), ids);
    assert_eq!(store.reader().outstanding(second.id, None, 10).unwrap(), [ids[1]]);
    let left = store.reader().batch(second.id).unwrap().unwrap();
    assert_eq!((left.counts.completed, left.counts.outstanding(), left.input_bytes), (1, 1, 100));
    sound(&store);
}

#[tokio::test]
async fn the_lines_of_a_refused_batch_keep_their_numbers_while_it_is_closed_piece_by_piece() {
    let (store, ids) = store_with(255).await;
    let id = batch_id(1);
    store.open_batch(Batch::open(id, group(), ProviderIdentity::default(), NOW)).await.unwrap();
    let limits = Limits { requests_max: 255, ..LIMITS };
    let batch = store.cut_chunk(id, Revision(0), limits).await.unwrap().batch;
    let batch = store.cut_chunk(id, batch.revision, limits).await.unwrap().batch;
    let batch = send(&store, 1, batch).await;
    let problem =
        Problem { code: Some("invalid_json_line".to_owned()), line: Some(253), ..Problem::default() };
    let ended = seen(1, ObservedStatus::Ended(Terminal::Failed));
    let seen = Observation { problems: vec![problem], ..ended };
    let batch = take(&store, &batch, &Event::Observed { seen, at: NOW }).await;
    let closed = store.close_chunk(id, batch.revision, HashMap::new(), RETRY, POLICY, NOW).await.unwrap();
    // A kill comes here, and which line is whose is counted anew.
    assert_eq!((closed.batch.counts.returned, closed.batch.counts.outstanding()), (250, 5));
    assert_eq!(store.reader().members(id, None, 1000).unwrap(), ids);
}

#[tokio::test]
async fn who_has_no_line_beside_one_that_is_nobodys_is_not_bought_again() {
    let (store, ids) = store_with(2).await;
    let batch = sent(&store, 1).await;
    let ended = seen(1, ObservedStatus::Ended(Terminal::Completed));
    let seen = Observation { output: Some(FileId::new("out")), ..ended };
    let kind = crate::domain::batch::ResultKind::Output;
    let batch = take(&store, &batch, &Event::Observed { seen, at: NOW }).await;
    let batch = take(&store, &batch, &Event::Downloaded { kind, torn: false }).await;
    let event = Event::LinesRead { kind, from: 0, to: 1, end: true };
    let step = step::step(&batch.state, batch.orders(), &event, &POLICY).unwrap();
    let lines = vec![good_line(ids[0]), AppliedLine::Unreadable { request: None, reason: "it is not JSON" }];
    let batch = store.apply_lines(batch.id, batch.revision, step, lines, NOW).await.unwrap();
    close(&store, batch, HashMap::new()).await;
    let lost = store.reader().request(ids[1]).unwrap().unwrap();
    assert_eq!(lost.status, RequestStatus::ProcessingFailed);
    assert_eq!(lost.failure.unwrap().code, "result_lost");
    sound(&store);
}

/// Changes a batch's record behind everybody's back, as a bug would.
async fn tamper(store: &Store, id: BatchId, change: impl FnOnce(&mut Batch) + Send + 'static) {
    let op = move |tx: &mut Tx<'_>| {
        let mut batch: Batch = tx.read(Tree::Batches, id.as_bytes())?.unwrap();
        change(&mut batch);
        tx.write(Tree::Batches, id.as_bytes().to_vec(), &batch)
    };
    store.committer.commit(1, op).await.unwrap();
}

#[tokio::test]
async fn a_batch_that_does_not_add_up_stays_open_says_so_once_and_closes_when_it_does() {
    // One member too many, and one end too many: the second hides behind a difference that stops at zero.
    let wrong: [fn(&mut Batch); 2] = [|batch| batch.counts.members += 1, |batch| batch.counts.completed += 1];
    let right: [fn(&mut Batch); 2] = [|batch| batch.counts.members -= 1, |batch| batch.counts.completed -= 1];
    for (wrong, right) in wrong.into_iter().zip(right) {
        let (store, ids) = store_with(2).await;
        let batch = sent(&store, 1).await;
        let ended = seen(1, ObservedStatus::Ended(Terminal::Completed));
        let observed = Observation { output: Some(FileId::new("out")), ..ended };
        let kind = crate::domain::batch::ResultKind::Output;
        let batch = take(&store, &batch, &Event::Observed { seen: observed, at: NOW }).await;
        let batch = take(&store, &batch, &Event::Downloaded { kind, torn: false }).await;
        let batch = apply(&store, &batch, &ids[..1]).await;
        let id = batch.id;
        tamper(&store, id, wrong).await;
        let reader = store.reader().clone();
        let told =
            || reader.story(id).unwrap().iter().filter(|line| line.text.contains("does not close")).count();
        let before = reader.story(id).unwrap().len();
        for number in 0..3 {
            let later = NOW.plus(Duration::from_secs(number));
            let closed = store.close_chunk(id, batch.revision, HashMap::new(), RETRY, POLICY, later).await;
            assert!(matches!(closed, Err(StoreError::Unproven { .. })), "{closed:?}");
            let anomaly = reader.anomaly(id).unwrap().unwrap();
            assert_eq!((anomaly.at, told()), (NOW, 1), "{anomaly:?}");
            assert_eq!(reader.story(id).unwrap().len(), before + 1);
            assert_eq!(reader.anomalies(9).unwrap(), [(id, anomaly)]);
        }
        // Nothing of it is lost: the result is there, the other one is still in the batch, and that is live.
        let status = |number: usize| reader.request(ids[number]).unwrap().unwrap().status;
        assert_eq!(
            (status(0), status(1)),
            (RequestStatus::ProcessingComplete, RequestStatus::BatchingInProgress)
        );
        assert_eq!(reader.result(ids[0]).unwrap().unwrap(), b"{}");
        assert_eq!(reader.live_batches().unwrap(), [id]);
        let stayed = reader.batch(id).unwrap().unwrap();
        assert_eq!((stayed.revision, &stayed.state), (batch.revision, &batch.state));
        let broken: Vec<u8> =
            reader.verify().unwrap().violations.iter().map(|violation| violation.invariant).collect();
        assert_eq!(broken, [4]);

        tamper(&store, id, right).await;
        let closed = close(&store, batch, HashMap::new()).await;
        assert!(matches!(closed.state, BatchState::Closed { .. }));
        assert_eq!(reader.anomalies(9).unwrap(), []);
        assert!(reader.story(id).unwrap().iter().any(|line| line.text.contains("add up again")));
        assert_eq!(status(1), RequestStatus::PendingBatching);
        sound(&store);
    }
}
