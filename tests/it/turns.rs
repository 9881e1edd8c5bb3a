//! A message and the end of a call that come to a batch at the same moment.

use nightshift::actors::registry::{CancelOf, Host};
use nightshift::condition::Hindrance;
use nightshift::domain::batch::{Cancel, Then};

use crate::harness::{Nightshift, batch_id, until, with_a_creator};

async fn until_it_is(nightshift: &Nightshift, number: u64, label: &str) {
    let state = || nightshift.shared.reader.batch(batch_id(number)).unwrap().unwrap().state.label();
    until(&format!("batch {number} is {label}"), async || (state() == label).then_some(())).await;
}

/// Runs `then` as the last of a row of tasks, each behind what is ready when the one before it runs.
fn after(turns: u64, then: impl FnOnce() + 'static) {
    actix::spawn(async move { if turns == 0 { then() } else { after(turns - 1, then) } });
}

#[test]
fn a_cancel_that_comes_with_the_end_of_a_wait_is_carried_out_after_it_or_before_it() {
    with_a_creator(async |nightshift| {
        let condition = &nightshift.shared.condition;
        // One of these is the moment at which both come in the same turn of the actor.
        for (turns, number) in (0..16).zip(1..) {
            condition.raise(Hindrance::Checking, "nothing is sent");
            nightshift.request(number, "demo", |_| ()).await;
            nightshift.open_batch(number, "demo", 1).await;
            nightshift.registry.send(Host { id: batch_id(number), fresh: false }).await.unwrap();
            until_it_is(&nightshift, number, "sealed").await;
            let cancel = Cancel { by: "a test".to_owned(), at: nightshift.now(), then: Then::End };
            let cancelled = nightshift.registry.send(CancelOf { id: batch_id(number), cancel });
            let condition = nightshift.shared.condition.clone();
            let clear = async { after(turns, move || condition.clear(Hindrance::Checking)) };
            let (cancelled, ()) = tokio::join!(cancelled, clear);
            let cancelled = cancelled.unwrap();
            assert!(cancelled.is_ok(), "after {turns} turns: {cancelled:?}");
            until_it_is(&nightshift, number, "closed").await;
        }
    });
}
