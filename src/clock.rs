//! The only place that asks the machine for the time and waits for it, and where new ids come from.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use uuid::{ContextV7, Uuid};

use crate::domain::id::Timestamp;

/// Tells the time. Everything that compares or stores a time, or waits, asks a clock, so that a test can turn it.
pub trait Clock: Send + Sync + 'static {
    /// Wall time, UTC.
    fn now(&self) -> Timestamp;
    /// Milliseconds on a clock that never goes back while the process lives.
    fn monotonic_ms(&self) -> u64;
    /// Returns when `length` has passed on the monotonic clock, counted from this call.
    fn sleep(&self, length: Duration) -> BoxFuture<'static, ()>;
}

/// A clock that is shared by many parts.
pub type SharedClock = Arc<dyn Clock>;

/// What comes of `work` within `length`; none if it takes longer.
pub async fn within<T>(clock: &dyn Clock, length: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = clock.sleep(length) => None,
    }
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    started: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self { started: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn sleep(&self, length: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(length).boxed()
    }
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct ManualClock(Mutex<Hands>);

#[derive(Debug)]
struct Hands {
    wall: i64,
    monotonic: u64,
    /// Who sleeps until when; the number tells apart those that wake at the same moment, first come first.
    sleepers: BTreeMap<(u64, u64), oneshot::Sender<()>>,
    slept: u64,
}

impl ManualClock {
    /// A clock that stands at `start`.
    pub fn new(start: Timestamp) -> Self {
        let hands = Hands { wall: start.as_millis(), monotonic: 0, sleepers: BTreeMap::new(), slept: 0 };
        Self(Mutex::new(hands))
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the clock forward, and wakes who has slept long enough.
    pub fn advance(&self, by: Duration) {
        let mut hands = self.hands();
        hands.wall = hands.wall.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
        hands.monotonic = hands.monotonic.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX));
        let later = hands.monotonic.saturating_add(1);
        let asleep = hands.sleepers.split_off(&(later, 0));
        for (_, sleeper) in std::mem::replace(&mut hands.sleepers, asleep) {
            // Who has given up waiting is not there to be woken.
            let _ = sleeper.send(());
        }
    }

    /// Turns the hands, as an operator or a time server does: nobody sleeps longer or shorter for it.
    pub fn turn(&self, by_ms: i64) {
        let mut hands = self.hands();
        hands.wall = hands.wall.saturating_add(by_ms);
    }

    /// How long it takes until somebody wakes; none if nobody sleeps.
    pub fn until_next(&self) -> Option<Duration> {
        let mut hands = self.hands();
        hands.sleepers.retain(|_, sleeper| !sleeper.is_closed());
        let (due, _) = hands.sleepers.keys().next()?;
        Some(Duration::from_millis(due.saturating_sub(hands.monotonic)))
    }

    /// How often somebody went to sleep so far.
    pub fn slept(&self) -> u64 {
        self.hands().slept
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.hands().wall)
    }

    fn monotonic_ms(&self) -> u64 {
        self.hands().monotonic
    }

    fn sleep(&self, length: Duration) -> BoxFuture<'static, ()> {
        let mut hands = self.hands();
        // Who sleeps for no time at all still lets the others go first.
        let length = u64::try_from(length.as_micros().div_ceil(1000)).unwrap_or(u64::MAX).max(1);
        let (wake, woken) = oneshot::channel();
        hands.slept += 1;
        let key = (hands.monotonic.saturating_add(length), hands.slept);
        hands.sleepers.insert(key, wake);
        async move {
            if woken.await.is_err() {
                // The clock is gone: its time never comes.
                std::future::pending::<()>().await;
            }
        }
        .boxed()
    }
}

/// Makes UUIDv7 ids that grow with time, also within one millisecond.
pub struct Ids {
    clock: SharedClock,
    context: std::sync::Mutex<ContextV7>,
}

impl Ids {
    /// Ids stamped by `clock`.
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, context: std::sync::Mutex::new(ContextV7::new()) }
    }

    /// The next id.
    pub fn next(&self) -> Uuid {
        let millis = u64::try_from(self.clock.now().as_millis()).unwrap_or(0);
        let nanos = u32::try_from(millis % 1000).unwrap_or(0) * 1_000_000;
        // A poisoned lock only means that another thread panicked between two ids: the counter is whole.
        let context = self.context.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Uuid::new_v7(uuid::Timestamp::from_unix(&*context, millis / 1000, nanos))
    }
}

impl std::fmt::Debug for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ids")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleepers_wake_in_their_time_and_no_turn_of_the_hands_wakes_one() {
        let clock = ManualClock::new(Timestamp::from_secs(1000));
        let mut late = clock.sleep(Duration::from_secs(2));
        let mut soon = clock.sleep(Duration::from_secs(1));
        drop(clock.sleep(Duration::from_millis(1)));
        assert_eq!(clock.until_next(), Some(Duration::from_secs(1)), "who gave up does not count");
        clock.turn(7_200_000);
        assert!(soon.as_mut().now_or_never().is_none());
        clock.advance(Duration::from_secs(1));
        assert!(soon.now_or_never().is_some() && late.as_mut().now_or_never().is_none());
        assert_eq!((clock.now(), clock.monotonic_ms()), (Timestamp::from_secs(8201), 1000));
        clock.turn(-7_200_000);
        clock.advance(Duration::from_secs(1));
        assert!(late.now_or_never().is_some());
        assert_eq!(clock.until_next(), None);
    }

    #[tokio::test]
    async fn what_takes_too_long_is_left() {
        let clock = ManualClock::new(Timestamp::from_secs(0));
        assert_eq!(within(&clock, Duration::ZERO, std::future::ready(7)).await, Some(7));
        let never = within(&clock, Duration::from_secs(5), std::future::pending::<()>());
        let (left, ()) = tokio::join!(never, async { clock.advance(Duration::from_secs(5)) });
        assert_eq!(left, None);
    }
}
