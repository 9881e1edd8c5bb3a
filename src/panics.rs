//! Panics: each is counted and told with its place, never with its words, and ends no more than the work it was in.

use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Work that did not come to its end because of a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a bug: the work ended in a panic")]
pub struct Panicked;

/// From now on every panic of the process is counted and logged.
pub fn install() {
    std::panic::set_hook(Box::new(tell));
}

/// How many panics there were since the start.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Runs `work` to its end or to its panic.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    // What the work held is dropped with it, and what it shares is guarded by locks that take a panic into account.
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_| Panicked)
}

/// Why a task did not come to its end. The error itself repeats what the panic said.
pub fn broke_off(err: &tokio::task::JoinError) -> &'static str {
    if err.is_panic() { "a bug: it ended in a panic" } else { "the program is leaving" }
}

fn tell(info: &PanicHookInfo<'_>) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
    let (place, thread) = (place.unwrap_or_default(), std::thread::current());
    // What a panic says may hold what a client sent, or a key.
    tracing::error!(
        place,
        thread = thread.name(),
        "a bug: a panic at {place}; what it was in is begun anew from the store, please report it"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_words_of_a_panic_are_not_passed_on() {
        let task = tokio::task::spawn_blocking(|| panic!("what a client sent"));
        let err = task.await.unwrap_err();
        assert!(err.to_string().contains("what a client sent"));
        assert_eq!(broke_off(&err), "a bug: it ended in a panic");
    }

    #[tokio::test]
    async fn a_panic_ends_the_work_it_was_in_and_nothing_else() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        let bad = caught(async {
            tokio::task::yield_now().await;
            panic!("as a bug does")
        });
        assert_eq!(bad.await, Err::<(), _>(Panicked));
    }
}
