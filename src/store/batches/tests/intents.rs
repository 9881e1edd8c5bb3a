//! Intents: what is stored before a create call, and what becomes of it.

use super::*;

#[tokio::test]
async fn an_intent_is_noted_and_what_is_given_up_is_watched_for_two_days() {
    let (store, _) = store_with(2).await;
    let id = batch_id(1);
    store.open_batch(Batch::open(id, group(), ProviderIdentity::default(), NOW)).await.unwrap();
    let mut batch = store.cut_chunk(id, Revision(0), LIMITS).await.unwrap().batch;
    let swept = Event::Swept { complete: true, grace_over: true, found: None };
    for event in [
        Event::FillEnded { members: 2, at: NOW },
        Event::Released,
        Event::Uploaded(intent(1).input),
        Event::IntentMade(intent(1)),
        swept.clone(),
        swept.clone(),
        swept.clone(),
        Event::Fenced,
    ] {
        batch = take(&store, &batch, &event).await;
    }
    let noted = || store.reader().intents_since(Timestamp::from_secs(0), 10).unwrap();
    assert_eq!(noted().iter().map(|noted| noted.superseded).collect::<Vec<_>>(), [false]);
    take(&store, &batch, &swept).await;
    assert_eq!(noted().iter().map(|noted| noted.superseded).collect::<Vec<_>>(), [true]);
    assert_eq!(store.forget_intents(NOW.plus(Duration::from_secs(48 * 3600))).await.unwrap(), 0);
    assert_eq!(store.forget_intents(NOW.plus(Duration::from_secs(48 * 3601))).await.unwrap(), 1);
    assert_eq!(noted(), []);
}

/// As the provider has it once it was sent.
fn input_of(number: u8, batch: &Batch) -> InputFile {
    InputFile { bytes: batch.input_bytes, ..intent(number).input }
}

/// Cuts a batch of at most `members` and takes it as far as its intent.
pub async fn ready(store: &Store, number: u8, members: u64) -> Batch {
    let id = batch_id(number);
    store.open_batch(Batch::open(id, group(), ProviderIdentity::default(), NOW)).await.unwrap();
    let limits = Limits { requests_max: members, ..LIMITS };
    let mut batch = store.cut_chunk(id, Revision(0), limits).await.unwrap().batch;
    for event in [
        Event::FillEnded { members: batch.counts.members, at: NOW },
        Event::Released,
        Event::Uploaded(input_of(number, &batch)),
    ] {
        batch = take(store, &batch, &event).await;
    }
    batch
}

pub async fn intend(store: &Store, number: u8, batch: &Batch) -> Batch {
    let intent = Intent { input: input_of(number, batch), ..intent(number) };
    store.commit_intent(batch.id, batch.revision, intent, POLICY, NOW).await.unwrap().0
}

#[tokio::test]
async fn what_leaves_a_batch_until_its_intent_is_stored_is_not_sent_with_it() {
    let (store, ids) = store_with(2).await;
    let first = expired(&store).await;
    let read = ready(&store, 2, 2).await;
    answer_after_all(&store, &first, ids[0]).await;
    // It was looked at before that: its revision is the same.
    let without = intend(&store, 2, &read).await;
    assert!(matches!(without.state, BatchState::Uploading { .. }), "{:?}", without.state);
    let again = take(&store, &without, &Event::Uploaded(input_of(2, &without))).await;
    answer_after_all(&store, &first, ids[1]).await;
    let emptied = intend(&store, 2, &again).await;
    assert!(matches!(emptied.state, BatchState::Dissolving { .. }), "{:?}", emptied.state);
    assert_eq!(store.reader().intents_since(NOW, 10).unwrap().len(), 1, "of the first batch");
    sound(&store);
}

#[tokio::test]
async fn a_batch_that_is_parked_leaves_the_gate_to_others() {
    let (store, _) = store_with(6).await;
    let first = ready(&store, 1, 1).await;
    let large = ready(&store, 2, 4).await;
    let large = intend(&store, 2, &large).await;
    let running = seen(2, ObservedStatus::Running(Running::Validating));
    let large = take(&store, &large, &Event::Created(running)).await;
    let problem = Problem { code: Some("token_limit_exceeded".to_owned()), ..Problem::default() };
    refused(&store, 2, &large, problem).await;
    let mut first = intend(&store, 1, &first).await;
    let probe = |batch: &Batch| store.reader().room(batch).unwrap().closed.unwrap().probe;
    assert_eq!(probe(&first), Some(first.id), "it tries");
    while !matches!(first.state, BatchState::Parked { .. }) {
        let trouble = Trouble::Refused(Failure::new(FailureClass::Permanent, "bad", "no"));
        let refused = Event::CreateFailed { trouble, input_gone: false, at: NOW };
        first = take(&store, &first, &refused).await;
        if matches!(first.state, BatchState::Ready { .. }) {
            first = intend(&store, 1, &first).await;
        }
    }
    assert_eq!(probe(&first), None);
    sound(&store);
}

#[tokio::test]
async fn of_two_that_saw_the_same_room_one_goes_and_the_other_waits() {
    let (store, _) = store_with(9).await;
    let first = ready(&store, 1, 2).await;
    let second = ready(&store, 2, 2).await;
    let large = ready(&store, 3, 4).await;
    let large = intend(&store, 3, &large).await;
    let running = seen(3, ObservedStatus::Running(Running::Validating));
    let large = take(&store, &large, &Event::Created(running)).await;
    let problem = Problem { code: Some("token_limit_exceeded".to_owned()), ..Problem::default() };
    refused(&store, 3, &large, problem).await;
    let room = || store.reader().room(&first).unwrap();
    for batch in [&first, &second] {
        assert_eq!(room().turns_away(batch, NOW), None, "each for itself may try");
    }
    let first = intend(&store, 1, &first).await;
    assert!(matches!(first.state, BatchState::Creating { .. }));
    let second = intend(&store, 2, &second).await;
    let BatchState::Ready { wait, .. } = &second.state else { panic!("{:?}", second.state) };
    assert!(wait.until.unwrap() > NOW);
    assert_eq!((room().enqueued, room().closed.unwrap().probe), (20, Some(first.id)));
    assert_eq!(store.reader().intents_since(NOW, 10).unwrap().len(), 2, "no intent of one that waits");

    // The gate is open again, and the room that was learned is enough for one of them.
    let admitted = seen(1, ObservedStatus::Running(Running::InProgress));
    let running = seen(1, ObservedStatus::Running(Running::Validating));
    let first = take(&store, &first, &Event::Created(running)).await;
    let first = take(&store, &first, &Event::Observed { seen: admitted, at: NOW }).await;
    assert_eq!((room().closed, room().limit(NOW)), (None, Some(32)));
    let second = intend(&store, 2, &second).await;
    assert!(matches!(second.state, BatchState::Ready { .. }));
    completed(&store, 1, &first).await;
    store.release_room(NOW.plus(Duration::from_secs(600))).await.unwrap();
    let second = intend(&store, 2, &second).await;
    assert!(matches!(second.state, BatchState::Creating { .. }));
    // What would never fit gives its members back.
    let whole = ready(&store, 4, 100).await;
    let whole = intend(&store, 4, &whole).await;
    assert!(matches!(whole.state, BatchState::Dissolving { .. }), "{:?}", whole.state);
    sound(&store);
}
