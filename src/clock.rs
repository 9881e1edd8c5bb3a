//! The only place that asks the machine for the time, and where new ids come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use uuid::{ContextV7, Uuid};

use crate::domain::id::Timestamp;

/// Tells the time. Everything that compares or stores a time asks a clock, so that a test can turn it.
pub trait Clock: Send + Sync + 'static {
    /// Wall time, UTC.
    fn now(&self) -> Timestamp;
    /// Milliseconds on a clock that never goes back while the process lives.
    fn monotonic_ms(&self) -> u64;
}

/// A clock that is shared by many parts.
pub type SharedClock = Arc<dyn Clock>;

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
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct ManualClock {
    millis: AtomicI64,
    started: i64,
}

impl ManualClock {
    /// A clock that stands at `start`.
    pub fn new(start: Timestamp) -> Self {
        Self { millis: AtomicI64::new(start.as_millis()), started: start.as_millis() }
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: std::time::Duration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.millis.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.millis.load(Ordering::SeqCst))
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.millis.load(Ordering::SeqCst) - self.started).unwrap_or(0)
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
