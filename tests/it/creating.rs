//! When the creator looks at what waits.

use std::time::Duration;

use nightshift::actors::creator::Nudge;
use nightshift::condition::Hindrance;
use nightshift::domain::request::RequestStatus;
use nightshift::provider::jsonl;
use nightshift::store::NewRequest;

use crate::harness::{Nightshift, until, with_a_creator};

fn opened(nightshift: &Nightshift) -> usize {
    nightshift.shared.reader.live_batches().unwrap().len()
}

#[test]
fn a_tick_that_came_while_nothing_could_be_sent_is_made_up_for_when_that_is_over() {
    with_a_creator(async |nightshift| {
        let condition = &nightshift.shared.condition;
        condition.raise(Hindrance::Checking, "the store is being checked");
        condition.raise(Hindrance::Reconciling, "the lists are being compared");
        nightshift.request(1, "demo", |_| ()).await;
        // It is due for its age, which is a matter of the timer alone.
        nightshift.clock.advance(Duration::from_secs(3600));
        condition.clear(Hindrance::Checking);
        nightshift.creator.send(Nudge).await.unwrap();
        assert_eq!(opened(&nightshift), 0);
        condition.clear(Hindrance::Reconciling);
        // The next tick is ten minutes away.
        until("a batch is opened", async || (opened(&nightshift) > 0).then_some(())).await;
    });
}

#[test]
fn a_request_whose_text_is_lost_fails_alone_and_holds_up_no_other() {
    with_a_creator(async |nightshift| {
        let measured = |request: &mut NewRequest| {
            let body = request.body.as_deref().unwrap();
            let measured = jsonl::measure(request.id, request.group.endpoint, body);
            (request.line_bytes, request.line_crc) = (measured.line_bytes, measured.line_crc);
        };
        let good = nightshift.request(1, "demo", measured).await;
        let lost = nightshift
            .request(2, "demo", |request| {
                measured(request);
                // As if the store had another text by now than was taken in.
                request.line_crc ^= 1;
            })
            .await;
        nightshift.clock.advance(Duration::from_secs(3600));
        nightshift.creator.send(Nudge).await.unwrap();
        let request = |id| nightshift.shared.reader.request(id).unwrap().unwrap();
        let failure = until("one has failed", async || request(lost).failure).await;
        assert_eq!(failure.code, "input_lost");
        assert_eq!(request(lost).status, RequestStatus::ProcessingFailed);
        let good = request(good);
        assert_eq!(good.status, RequestStatus::BatchingInProgress);
        let batch = nightshift.shared.reader.batch(good.batch.unwrap()).unwrap().unwrap();
        assert_eq!((batch.counts.outstanding(), batch.input_bytes), (1, u64::from(good.line_bytes)));
    });
}
