//! Limits of our own toward the provider: batches an hour, uploads a minute, files in transit at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

use crate::clock::Clock;

/// How much is done at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paces {
    /// Batches created within an hour.
    pub batches_per_hour: usize,
    /// Files sent within a minute.
    pub uploads_per_minute: usize,
    /// Files on their way up or down at the same time.
    pub transfers: usize,
}

impl Default for Paces {
    /// What OpenAI allows (contract section 4.1), and four transfers.
    fn default() -> Self {
        Self { batches_per_hour: 2000, uploads_per_minute: 1000, transfers: 4 }
    }
}

/// Holds the pace.
pub struct Pace {
    creations: Window,
    uploads: Window,
    transfers: Semaphore,
    /// Whole searches of the provider's list go one after the other.
    searches: Semaphore,
}

impl Pace {
    /// A pace that knows of the creations of the last hour, each with its age.
    pub fn new(paces: Paces, created: impl IntoIterator<Item = Duration>) -> Self {
        let hour = Duration::from_secs(3600);
        let mut ages: Vec<_> = created.into_iter().filter(|age| *age < hour).collect();
        ages.sort_unstable_by(|a, b| b.cmp(a));
        let before = ages.into_iter().map(|age| -i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        Self {
            creations: Window::new(paces.batches_per_hour, hour, before),
            uploads: Window::new(paces.uploads_per_minute, Duration::from_secs(60), []),
            transfers: Semaphore::new(paces.transfers.max(1)),
            searches: Semaphore::new(1),
        }
    }

    /// Returns when one more batch may be created.
    pub async fn creation(&self, clock: &dyn Clock) {
        self.creations.slot(clock).await;
    }

    /// How many batches wait for our own limit, and how long the first of them still has to; none if nobody waits.
    pub fn waits(&self, clock: &dyn Clock) -> Option<Waits> {
        let batches = self.creations.waiting.load(Ordering::Relaxed);
        let now = i64::try_from(clock.monotonic_ms()).unwrap_or(i64::MAX);
        let left = u64::try_from(self.creations.free_at.load(Ordering::Relaxed) - now).unwrap_or(0);
        let per_hour = self.creations.max;
        (batches > 0).then_some(Waits { batches, per_hour, left: Duration::from_millis(left) })
    }

    /// Returns when one more file may be sent, with the right to send it.
    pub async fn upload(&self, clock: &dyn Clock) -> Option<SemaphorePermit<'_>> {
        self.uploads.slot(clock).await;
        self.transfers.acquire().await.ok()
    }

    /// Returns when one more file may be fetched, with the right to fetch it.
    pub async fn download(&self) -> Option<SemaphorePermit<'_>> {
        self.transfers.acquire().await.ok()
    }

    /// Returns when the provider's list may be searched, with the right to do so.
    pub async fn search(&self) -> Option<SemaphorePermit<'_>> {
        self.searches.acquire().await.ok()
    }
}

/// Who waits for a limit of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// How many batches.
    pub batches: usize,
    /// The limit.
    pub per_hour: usize,
    /// How long the first of them still waits.
    pub left: Duration,
}

/// Counts one that waits, until it is dropped: whoever waits may be cancelled.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// So many things within so long.
struct Window {
    max: usize,
    length: Duration,
    /// When the last ones were, in milliseconds of the monotonic clock; before its start below zero. The lock is held
    /// while waiting, so that whoever came first goes first.
    times: Mutex<VecDeque<i64>>,
    waiting: AtomicUsize,
    /// When the first of those that wait may go on.
    free_at: AtomicI64,
}

impl Window {
    fn new(max: usize, length: Duration, before: impl IntoIterator<Item = i64>) -> Self {
        let times = Mutex::new(before.into_iter().collect());
        Self { max: max.max(1), length, times, waiting: AtomicUsize::new(0), free_at: AtomicI64::new(0) }
    }

    async fn slot(&self, clock: &dyn Clock) {
        let length = i64::try_from(self.length.as_millis()).unwrap_or(i64::MAX);
        let _waits = Waiting::new(&self.waiting);
        let mut times = self.times.lock().await;
        let mut told = false;
        loop {
            let now = i64::try_from(clock.monotonic_ms()).unwrap_or(i64::MAX);
            while times.front().is_some_and(|time| now - time >= length) {
                times.pop_front();
            }
            let Some(first) = times.front().filter(|_| times.len() >= self.max) else {
                times.push_back(now);
                return;
            };
            self.free_at.store(first + length, Ordering::Relaxed);
            let wait = u64::try_from(first + length - now).unwrap_or(1).clamp(1, 60_000);
            if !told {
                tracing::info!(max = self.max, "our own limit is reached; what is above it waits");
                told = true;
            }
            tracing::debug!(wait_ms = wait, max = self.max, "our own limit is reached; waiting");
            clock.sleep(Duration::from_millis(wait)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::domain::id::Timestamp;
    use futures_util::FutureExt;

    #[test]
    fn what_is_above_the_limit_waits_until_the_oldest_is_out_of_the_window() {
        let clock = ManualClock::new(Timestamp::from_secs(0));
        let paces = Paces { batches_per_hour: 2, ..Paces::default() };
        let pace = Pace::new(paces, [Duration::from_secs(3000), Duration::from_secs(9000)]);
        assert!(pace.creation(&clock).now_or_never().is_some());
        clock.advance(Duration::from_secs(599));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _inside = runtime.enter();
        let third = pace.creation(&clock);
        let mut third = Box::pin(third);
        assert!(third.as_mut().now_or_never().is_none(), "two within the hour");
        let waits = Waits { batches: 1, per_hour: 2, left: Duration::from_secs(1) };
        assert_eq!(pace.waits(&clock), Some(waits));
        drop(third);
        assert_eq!(pace.waits(&clock), None);
        clock.advance(Duration::from_secs(1));
        assert!(pace.creation(&clock).now_or_never().is_some());
        assert!(pace.creation(&clock).now_or_never().is_none());
    }

    #[test]
    fn only_so_many_files_are_in_transit() {
        let clock = ManualClock::new(Timestamp::from_secs(0));
        let pace = Pace::new(Paces { transfers: 2, ..Paces::default() }, []);
        let one = pace.upload(&clock).now_or_never().unwrap();
        let _two = pace.download().now_or_never().unwrap();
        assert!(pace.download().now_or_never().is_none());
        drop(one);
        assert!(pace.download().now_or_never().is_some());
    }
}
