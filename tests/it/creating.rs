//! When the creator looks at what waits.

use std::time::Duration;

use nightshift::actors::creator::Nudge;
use nightshift::condition::Hindrance;

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
