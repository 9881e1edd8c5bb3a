//! Webhooks and what they are told, over a store in memory.

use futures_util::FutureExt as _;

use super::*;
use crate::domain::batch::{BatchState, Closing, ProviderIdentity};
use crate::domain::cut::Limits;
use crate::domain::id::{BatchId, Revision};
use crate::domain::request::{Answered, Endpoint, Group, Outcome, RequestStatus};
use crate::domain::step::{Change, Step};
use crate::domain::webhook::signature::SigningSecret;
use crate::store::{AppliedLine, NewRequest, WebhookChange, WebhookMade};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const BATCH: BatchId = BatchId::from_bytes([9; 16]);

fn acme() -> CompanyId {
    "acme".parse().unwrap()
}

fn hook(number: u8) -> WebhookId {
    WebhookId::from_bytes([number; 16])
}

fn request(number: u8) -> RequestId {
    RequestId::from_bytes([number; 16])
}

fn wish(events: &[EventKind]) -> WebhookChange {
    let url = "https://example.com/hook".to_owned();
    WebhookChange { url, events: events.to_vec(), description: None, enabled: true }
}

/// Members 1 to 3 in a batch, nobody who listens.
async fn store() -> Store {
    let store = Store::in_memory(uuid::Uuid::nil()).await.unwrap();
    let group = Group { company: acme(), endpoint: Endpoint::ChatCompletions, model: "m".to_owned() };
    let new = |number| NewRequest {
        id: request(number),
        group: group.clone(),
        source: Source::Generic { client_id: Some(format!("order-{number}")) },
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
    };
    store.accept_requests((1..=3).map(new).collect(), NOW).await.unwrap();
    let batch = Batch::open(BATCH, group.clone(), ProviderIdentity::default(), NOW);
    store.open_batch(batch).await.unwrap();
    let limits = Limits { requests_max: 3, bytes_max: 1000, tokens_max: None, age_max: Duration::ZERO };
    store.cut_chunk(BATCH, Revision(0), limits).await.unwrap();
    store
}

async fn listen(store: &Store, number: u8, events: &[EventKind]) {
    let secret = SigningSecret::new([number; 32]);
    let made = store.make_webhook(acme(), hook(number), secret, wish(events), NOW).await.unwrap();
    assert!(matches!(made, WebhookMade::Made(_)));
}

fn the_webhook(store: &Store, number: u8) -> Webhook {
    store.reader().webhook(&acme(), hook(number)).unwrap().unwrap()
}

fn the_batch(store: &Store) -> Batch {
    store.reader().batch(BATCH).unwrap().unwrap()
}

/// Takes in good results, with the batch's own step once more or another one.
async fn complete(store: &Store, numbers: &[u8], changes: Vec<Change>) -> Result<Batch, StoreError> {
    let batch = the_batch(store);
    let step = Step { next: batch.state.clone(), changes, effects: Vec::new(), story: None };
    let line = |number: &u8| AppliedLine::Line {
        repair: None,
        request: request(*number),
        outcome: Outcome { answered: Answered::default(), result: Ok("{\"secret\":1}".to_owned()) },
        analysis: None,
        cost: None,
    };
    store.apply_lines(BATCH, batch.revision, step, numbers.iter().map(line).collect(), NOW).await
}

async fn tests_sent(store: &Store, number: u8, events: std::ops::Range<u8>, at: Timestamp) {
    for event in events {
        let event = EventId::from_bytes([event; 16]);
        store.test_webhook(acme(), hook(number), event, at).await.unwrap().unwrap();
    }
}

fn deliveries(store: &Store, number: u8) -> Vec<Delivery> {
    store.reader().list_deliveries(hook(number), None, None, 500).unwrap().0
}

fn sound(store: &Store) {
    assert_eq!(store.reader().verify().unwrap().violations, []);
}

fn entries(store: &Store, tree: Tree) -> usize {
    store.reader.engine.scan(tree, &[], None, usize::MAX).unwrap().len()
}

async fn answered(store: &Store, number: u8, delivery: &Delivery, answer: Answer, at: Timestamp) {
    let tried = Try { at, millis: 1, http_status: Some(204), error: None };
    store.note_try(acme(), hook(number), delivery.id, tried, answer, at).await.unwrap();
}

#[tokio::test]
async fn an_outcome_and_what_is_told_of_it_are_one_commit() {
    let store = store().await;
    listen(&store, 1, &[EventKind::RequestFinished]).await;
    listen(&store, 2, &EventKind::TO_ASK_FOR).await;
    listen(&store, 3, &[EventKind::BatchFinished]).await;
    // What fails as a whole leaves neither the outcome nor the event: the batch cannot be closed yet.
    let failed = complete(&store, &[1, 2], vec![Change::Closed(NOW)]).await;
    assert!(matches!(failed, Err(StoreError::Unproven { .. })), "{failed:?}");
    assert_eq!(
        store.reader().request(request(1)).unwrap().unwrap().status,
        RequestStatus::BatchingInProgress
    );
    assert_eq!((entries(&store, Tree::Events), entries(&store, Tree::Deliveries)), (0, 0));

    let before = store.standing().await.unwrap().revision;
    complete(&store, &[1, 2], Vec::new()).await.unwrap();
    assert_eq!(store.standing().await.unwrap().revision, before + 1, "one group, one transaction");
    assert_eq!(
        store.reader().request(request(1)).unwrap().unwrap().status,
        RequestStatus::ProcessingComplete
    );
    assert_eq!([1, 2, 3].map(|number| the_webhook(&store, number).pending), [1, 1, 0]);
    assert_eq!((entries(&store, Tree::Events), entries(&store, Tree::Deliveries)), (1, 2));
    let (one, two) = (deliveries(&store, 1).remove(0), deliveries(&store, 2).remove(0));
    assert!(one.event == two.event && one.id != two.id);
    let text = store.reader().event_text(one.event).unwrap().unwrap();
    assert_eq!(one.bytes, text.len() as u64);
    let said: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(said["data"]["requests"][1]["clientId"], "order-2");
    assert!(!String::from_utf8(text).unwrap().contains("secret"), "a result is told");
    sound(&store);
    // The same line again changes nothing, so nothing is told.
    complete(&store, &[1], Vec::new()).await.unwrap();
    assert_eq!(entries(&store, Tree::Events), 1);
    assert_eq!(store.something_to_deliver().await.into_iter().collect::<Vec<_>>(), [acme()]);
}

#[tokio::test]
async fn what_is_told_of_a_lost_input_is_delivered_at_once() {
    let store = store().await;
    listen(&store, 1, &[EventKind::RequestFinished]).await;
    // The webhook itself has rung.
    drop(store.something_to_deliver().now_or_never());
    store.lose_input(BATCH, request(1), "its text is lost".to_owned(), NOW).await.unwrap();
    assert_eq!(deliveries(&store, 1).len(), 1);
    let rung = store.something_to_deliver().now_or_never().unwrap_or_default();
    assert!(rung.contains(&acme()), "nobody is told that there is something to deliver");
    sound(&store);
}

#[tokio::test]
async fn inputs_that_are_lost_at_the_same_time_are_told_one_by_one() {
    let store = store().await;
    listen(&store, 1, &[EventKind::RequestFinished]).await;
    for number in [1, 2, 2] {
        store.lose_input(BATCH, request(number), "its text is lost".to_owned(), NOW).await.unwrap();
    }
    let mut told: Vec<_> = deliveries(&store, 1)
        .iter()
        .map(|delivery| {
            let text = store.reader().event_text(delivery.event).unwrap().unwrap();
            let said: serde_json::Value = serde_json::from_slice(&text).unwrap();
            said["data"]["requests"][0]["clientId"].as_str().unwrap().to_owned()
        })
        .collect();
    told.sort();
    assert_eq!(told, ["order-1", "order-2"]);
    sound(&store);
}

#[tokio::test]
async fn the_end_of_a_batch_is_told_with_its_counts() {
    let store = store().await;
    listen(&store, 1, &[EventKind::BatchFinished]).await;
    complete(&store, &[1, 2, 3], Vec::new()).await.unwrap();
    assert_eq!(entries(&store, Tree::Events), 0);
    let (id, revision) = (BATCH, the_batch(&store).revision);
    let next = BatchState::Closed { closing: Closing::Processed };
    let step = Step { next, changes: vec![Change::Closed(NOW)], effects: Vec::new(), story: None };
    store.commit_step(id, revision, step, NOW).await.unwrap();
    let told = deliveries(&store, 1).remove(0);
    let said = store.reader().event_text(told.event).unwrap().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(said["type"], "batch.finished");
    assert_eq!(
        (&said["data"]["status"], &said["data"]["counts"]["completed"]),
        (&"processed".into(), &3.into())
    );
    sound(&store);
}

#[tokio::test]
async fn without_anybody_who_listens_nothing_is_stored() {
    let store = store().await;
    listen(&store, 1, &EventKind::TO_ASK_FOR).await;
    let off = WebhookChange { enabled: false, ..wish(&EventKind::TO_ASK_FOR) };
    store.change_webhook(acme(), hook(1), off, NOW).await.unwrap().unwrap();
    complete(&store, &[1], Vec::new()).await.unwrap();
    assert_eq!((entries(&store, Tree::Events), the_webhook(&store, 1).pending), (0, 0));
}

#[tokio::test]
async fn of_too_many_that_wait_the_oldest_are_dropped_and_counted() {
    let store = store().await;
    listen(&store, 1, &[]).await;
    let at = |number: u64| NOW.plus(Duration::from_secs(number));
    for number in 1..=10 {
        tests_sent(&store, 1, number..number + 1, at(number.into())).await;
    }
    let webhook = the_webhook(&store, 1);
    assert_eq!((webhook.pending, webhook.ended, webhook.dropped), (PENDING_MAX, 4, 4));
    let states: Vec<_> = deliveries(&store, 1).iter().map(|delivery| delivery.state.label()).collect();
    assert_eq!(states, [["pending"; 6].as_slice(), &["dropped"; 4]].concat());
    sound(&store);
    // An answer to one that was dropped meanwhile is of no use any more.
    let dropped = deliveries(&store, 1).pop().unwrap();
    answered(&store, 1, &dropped, Answer::Taken, at(11)).await;
    assert_eq!(deliveries(&store, 1).pop().unwrap().state.label(), "dropped");
}

#[tokio::test]
async fn the_log_keeps_so_many_and_so_long_and_a_text_goes_with_the_last_delivery_of_it() {
    let store = store().await;
    listen(&store, 1, &[EventKind::RequestFinished]).await;
    listen(&store, 2, &[EventKind::RequestFinished]).await;
    complete(&store, &[1], Vec::new()).await.unwrap();
    let shared = deliveries(&store, 1).remove(0);
    answered(&store, 1, &shared, Answer::Taken, NOW).await;
    let later = NOW.plus(Duration::from_secs(60));
    for number in 1..=ENDED_MAX as u8 {
        tests_sent(&store, 1, number..number + 1, later).await;
        let next = store.reader().next_delivery(hook(1)).unwrap().unwrap();
        answered(&store, 1, &next, Answer::Taken, later).await;
    }
    assert_eq!((the_webhook(&store, 1).ended, deliveries(&store, 1).len()), (ENDED_MAX, 4));
    assert!(!deliveries(&store, 1).iter().any(|delivery| delivery.id == shared.id));
    // The other one has still to be told.
    assert!(store.reader().event_text(shared.event).unwrap().is_some());
    let other = deliveries(&store, 2).remove(0);
    answered(&store, 2, &other, Answer::Taken, later).await;
    sound(&store);
    let month = later.plus(KEPT_FOR);
    assert!(!store.remove_deliveries(acme(), hook(2), month).await.unwrap());
    assert_eq!(deliveries(&store, 2).len(), 1, "a month is not over");
    for number in [1, 2] {
        let after = month.plus(Duration::from_millis(1));
        assert!(!store.remove_deliveries(acme(), hook(number), after).await.unwrap());
    }
    let trees = [Tree::Deliveries, Tree::DeliveryOrder, Tree::Events, Tree::EventTexts];
    assert_eq!(trees.map(|tree| entries(&store, tree)), [0; 4]);
    assert_eq!((the_webhook(&store, 1).ended, the_webhook(&store, 2).ended), (0, 0));
    sound(&store);
}

#[tokio::test]
async fn a_deleted_webhook_is_gone_at_once_and_leaves_nothing() {
    let store = store().await;
    listen(&store, 1, &EventKind::TO_ASK_FOR).await;
    complete(&store, &[1], Vec::new()).await.unwrap();
    tests_sent(&store, 1, 1..3, NOW).await;
    assert!(store.delete_webhook(acme(), hook(1), NOW).await.unwrap());
    assert!(!store.delete_webhook(acme(), hook(1), NOW).await.unwrap());
    assert_eq!(store.reader().webhook(&acme(), hook(1)).unwrap(), None);
    complete(&store, &[2], Vec::new()).await.unwrap();
    assert_eq!(entries(&store, Tree::Deliveries), 3, "it is told nothing more");
    sound(&store);
    while store.remove_deliveries(acme(), hook(1), NOW).await.unwrap() {}
    let trees = [Tree::Webhooks, Tree::Deliveries, Tree::DeliveryOrder, Tree::Events, Tree::EventTexts];
    assert_eq!(trees.map(|tree| entries(&store, tree)), [0; 5]);
    sound(&store);
}

#[tokio::test]
async fn a_company_has_so_many_webhooks_and_no_more() {
    let store = store().await;
    for number in 1..=10 {
        listen(&store, number, &[]).await;
    }
    let one_more =
        |number| store.make_webhook(acme(), hook(number), SigningSecret::new([1; 32]), wish(&[]), NOW);
    assert_eq!(one_more(11).await.unwrap(), WebhookMade::TooMany);
    store.delete_webhook(acme(), hook(1), NOW).await.unwrap();
    assert!(matches!(one_more(11).await.unwrap(), WebhookMade::Made(_)));
    let of_another = "other".parse().unwrap();
    assert_eq!(store.reader().webhook(&of_another, hook(2)).unwrap(), None);
}

#[tokio::test]
async fn whoever_is_gone_is_told_nothing_more() {
    let store = store().await;
    listen(&store, 1, &EventKind::TO_ASK_FOR).await;
    complete(&store, &[1], Vec::new()).await.unwrap();
    let first = store.reader().next_delivery(hook(1)).unwrap().unwrap();
    answered(&store, 1, &first, Answer::Gone, NOW).await;
    let webhook = the_webhook(&store, 1);
    assert!(matches!(webhook.standing, Standing::Disabled { .. }), "{webhook:?}");
    complete(&store, &[2], Vec::new()).await.unwrap();
    assert_eq!(the_webhook(&store, 1).pending, 0);
    // By hand it can be tried again, under the same id.
    let again = store.deliver_again(acme(), hook(1), first.id, NOW).await.unwrap().unwrap();
    assert_eq!((again.id, the_webhook(&store, 1).pending), (first.id, 1));
    sound(&store);
}

#[tokio::test]
async fn what_waits_is_taken_by_when_it_is_due() {
    let store = store().await;
    listen(&store, 1, &[]).await;
    tests_sent(&store, 1, 1..2, NOW).await;
    let first = store.reader().next_delivery(hook(1)).unwrap().unwrap();
    answered(&store, 1, &first, Answer::NotTaken { retry_after: None }, NOW).await;
    tests_sent(&store, 1, 2..3, NOW).await;
    let next = store.reader().next_delivery(hook(1)).unwrap().unwrap();
    assert_ne!(next.id, first.id, "one that waits out its failure holds up no other");
    answered(&store, 1, &next, Answer::Taken, NOW).await;
    assert_eq!(store.reader().next_delivery(hook(1)).unwrap().unwrap().id, first.id);
}

#[tokio::test]
async fn a_list_goes_page_by_page_and_by_state() {
    let store = store().await;
    listen(&store, 1, &[]).await;
    for number in 1..=6 {
        tests_sent(&store, 1, number..number + 1, NOW.plus(Duration::from_secs(number.into()))).await;
    }
    let all = deliveries(&store, 1);
    answered(&store, 1, &all[2], Answer::Taken, NOW.plus(Duration::from_secs(9))).await;
    let reader = store.reader();
    let mut seen = Vec::new();
    let mut before = None;
    loop {
        let (page, next) = reader.list_deliveries(hook(1), Some("pending"), before, 2).unwrap();
        seen.extend(page.iter().map(|delivery| delivery.id));
        if next.is_none() {
            break;
        }
        before = next;
    }
    let expected: Vec<_> = all.iter().filter(|one| one.id != all[2].id).map(|one| one.id).collect();
    assert_eq!(seen, expected);
    let (delivered, next) = reader.list_deliveries(hook(1), Some("delivered"), None, 2).unwrap();
    assert_eq!((delivered.len(), delivered[0].id, next), (1, all[2].id, None));
}

#[tokio::test]
async fn an_entry_that_does_not_fit_the_others_is_noticed() {
    async fn world() -> Store {
        let store = store().await;
        listen(&store, 1, &EventKind::TO_ASK_FOR).await;
        complete(&store, &[1], Vec::new()).await.unwrap();
        store
    }
    let sample = world().await;
    let delivery = deliveries(&sample, 1).remove(0);
    let order = order_key(&delivery);
    let own = delivery_key(hook(1), delivery.id);
    let (event, text) = (delivery.event.as_bytes().to_vec(), keys::part(delivery.event.as_bytes(), 0));
    let counted_wrong = Webhook { pending: 2, ..the_webhook(&sample, 1) };
    let elsewhere =
        order_key(&Delivery { state: DeliveryState::Pending { due: NOW.plus(KEPT_FOR) }, ..delivery });
    let broken = [
        (Tree::DeliveryOrder, order, None),
        (Tree::DeliveryOrder, elsewhere, Some(Vec::new())),
        (Tree::Deliveries, own, None),
        (Tree::Events, event, None),
        (Tree::EventTexts, vec![0; 20], Some(Vec::new())),
        (Tree::EventTexts, text, None),
        (Tree::Webhooks, webhooks::key(&acme(), hook(1)), Some(codec::encode(&counted_wrong).unwrap())),
    ];
    for (tree, key, value) in broken {
        let store = world().await;
        sound(&store);
        let op = move |tx: &mut Tx<'_>| {
            match value {
                Some(value) => tx.put(tree, key, value),
                None => tx.remove(tree, key),
            }
            Ok(())
        };
        store.committer.commit(1, op).await.unwrap();
        assert!(!store.reader().verify().unwrap().is_whole(), "{tree:?}");
    }
}
