//! Limits of our own toward the provider: batches an hour, uploads a minute, files in transit at once.
//!
//! Whoever waits for one is let through by company: the one that has had least goes first, so that a company with a
//! million requests does not hold up another's ten.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};

use crate::clock::Clock;
use crate::domain::id::CompanyId;

/// They are stored one after the other anyway.
const PIECES_MAX: usize = 4;

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
    creations: Limit,
    uploads: Limit,
    transfers: Limit,
    /// Whole searches of the provider's list go one after the other.
    searches: Semaphore,
    /// Pieces of result files in memory at the same time: a line may be long.
    pieces: Arc<Semaphore>,
}

impl Pace {
    /// A pace that knows of the creations of the last hour, each with its age and whose it was.
    pub fn new(paces: Paces, created: impl IntoIterator<Item = (Duration, CompanyId)>) -> Self {
        let hour = Duration::from_secs(3600);
        let mut created: Vec<_> = created.into_iter().filter(|(age, _)| *age < hour).collect();
        created.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        let before = created
            .into_iter()
            .map(|(age, company)| (-i64::try_from(age.as_millis()).unwrap_or(i64::MAX), Some(company)));
        Self {
            creations: Limit::new(paces.batches_per_hour, Some(hour), before),
            uploads: Limit::new(paces.uploads_per_minute, Some(Duration::from_secs(60)), []),
            transfers: Limit::new(paces.transfers, None, []),
            searches: Semaphore::new(1),
            pieces: Arc::new(Semaphore::new(PIECES_MAX)),
        }
    }

    /// Returns when one more batch of the company may be created.
    pub async fn creation(&self, clock: &dyn Clock, company: &CompanyId) {
        self.creations.turn(clock, &Some(company.clone())).await;
    }

    /// A creation that surely did not come about is no creation: another one may take its place.
    pub fn not_created(&self, company: &CompanyId) {
        self.creations.give_back(&Some(company.clone()));
    }

    /// How many batches wait for our own limit, and how long the first of them still has to; none if nobody waits.
    pub fn waits(&self, clock: &dyn Clock) -> Option<Waits> {
        let left = self.creations.left(clock);
        let state = self.creations.lock();
        let batches = state.waiting.len();
        (batches > 0).then_some(Waits { batches, per_hour: self.creations.max, left })
    }

    /// How many batches were created within the last hour, and how many may be.
    pub fn used(&self, clock: &dyn Clock) -> (usize, usize) {
        let mut state = self.creations.lock();
        self.creations.forget(&mut state, now(clock));
        (state.had.len(), self.creations.max)
    }

    /// Returns when one more file of the company may be sent, with the right to send it.
    pub async fn upload(&self, clock: &dyn Clock, company: &CompanyId) -> Transit<'_> {
        let company = Some(company.clone());
        self.uploads.turn(clock, &company).await;
        self.transit(clock, company).await
    }

    /// Returns when one more file may be fetched, with the right to fetch it; of nobody's where that is not known yet.
    pub async fn download(&self, clock: &dyn Clock, company: Option<&CompanyId>) -> Transit<'_> {
        self.transit(clock, company.cloned()).await
    }

    async fn transit(&self, clock: &dyn Clock, company: Whose) -> Transit<'_> {
        self.transfers.turn(clock, &company).await;
        Transit { limit: &self.transfers, company }
    }

    /// Returns when the provider's list may be searched, with the right to do so.
    pub async fn search(&self) -> Option<SemaphorePermit<'_>> {
        self.searches.acquire().await.ok()
    }

    /// Returns when one more piece of a result file may be read, with the right to hold it.
    pub async fn piece(&self) -> Option<OwnedSemaphorePermit> {
        self.pieces.clone().acquire_owned().await.ok()
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

/// A file on its way, until it is dropped.
pub struct Transit<'a> {
    limit: &'a Limit,
    company: Whose,
}

impl Drop for Transit<'_> {
    fn drop(&mut self) {
        self.limit.give_back(&self.company);
    }
}

/// Whose turn it is; nobody's is one of its own.
type Whose = Option<CompanyId>;

/// So many things at a time, or within so long.
struct Limit {
    max: usize,
    /// None where each is given back by whoever had it.
    length: Option<Duration>,
    state: Mutex<State>,
    /// Told whenever somebody else may be next.
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    /// When the last ones were, in milliseconds of the monotonic clock (before its start below zero), and whose.
    had: VecDeque<(i64, Whose)>,
    /// How many of these each company had.
    by_company: BTreeMap<Whose, usize>,
    /// Who waits, in the order in which they came.
    waiting: BTreeMap<u64, Whose>,
    tickets: u64,
    /// Whose turn it is.
    next: Option<u64>,
}

impl State {
    fn took(&mut self, company: &Whose, change: isize) {
        let count = self.by_company.entry(company.clone()).or_default();
        *count = count.saturating_add_signed(change);
        if *count == 0 {
            self.by_company.remove(company);
        }
    }

    fn choose(&mut self) {
        let had = |company: &Whose| self.by_company.get(company).copied().unwrap_or(0);
        let waiting = self.waiting.iter();
        self.next =
            waiting.min_by_key(|(ticket, company)| (had(company), **ticket)).map(|(ticket, _)| *ticket);
    }
}

/// One that waits, until it is dropped: whoever waits may be cancelled.
struct Ticket<'a> {
    limit: &'a Limit,
    number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.limit.lock();
        state.waiting.remove(&self.number);
        self.limit.changed(state);
    }
}

fn now(clock: &dyn Clock) -> i64 {
    i64::try_from(clock.monotonic_ms()).unwrap_or(i64::MAX)
}

impl Limit {
    fn new(max: usize, length: Option<Duration>, before: impl IntoIterator<Item = (i64, Whose)>) -> Self {
        let mut state = State::default();
        for (time, company) in before {
            state.took(&company, 1);
            state.had.push_back((time, company));
        }
        Self { max: max.max(1), length, state: Mutex::new(state), changes: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the last that a company had, if it has one.
    fn give_back(&self, company: &Whose) {
        let mut state = self.lock();
        if let Some(at) = state.had.iter().rposition(|(_, whose)| whose == company) {
            state.had.remove(at);
            state.took(company, -1);
        }
        self.changed(state);
    }

    fn changed(&self, mut state: MutexGuard<'_, State>) {
        state.choose();
        drop(state);
        self.changes.send_replace(());
    }

    /// Forgets what is out of the window.
    fn forget(&self, state: &mut State, now: i64) {
        let Some(length) = self.length_ms() else { return };
        while state.had.front().is_some_and(|(time, _)| now.saturating_sub(*time) >= length) {
            if let Some((_, company)) = state.had.pop_front() {
                state.took(&company, -1);
            }
        }
    }

    fn length_ms(&self) -> Option<i64> {
        self.length.map(|length| i64::try_from(length.as_millis()).unwrap_or(i64::MAX))
    }

    /// How long until the window has room again.
    fn left(&self, clock: &dyn Clock) -> Duration {
        let (now, mut state) = (now(clock), self.lock());
        self.forget(&mut state, now);
        let first = state.had.front().filter(|_| state.had.len() >= self.max);
        let (Some((first, _)), Some(length)) = (first, self.length_ms()) else { return Duration::ZERO };
        Duration::from_millis(u64::try_from(first + length - now).unwrap_or(0))
    }

    /// Returns when it is this caller's turn, and counts it.
    async fn turn(&self, clock: &dyn Clock, company: &Whose) {
        let mut changes = self.changes.subscribe();
        let ticket = {
            let mut state = self.lock();
            let number = state.tickets;
            state.tickets += 1;
            state.waiting.insert(number, company.clone());
            self.changed(state);
            Ticket { limit: self, number }
        };
        let mut told = false;
        loop {
            changes.mark_unchanged();
            let left = self.left(clock);
            {
                let mut state = self.lock();
                if state.next == Some(ticket.number) && state.had.len() < self.max {
                    state.had.push_back((now(clock), company.clone()));
                    state.took(company, 1);
                    // The ticket's end tells the others.
                    return;
                }
            }
            if !told && self.length.is_some() {
                tracing::info!(max = self.max, "our own limit is reached; what is above it waits");
                told = true;
            }
            // Where each is given back, that is told.
            let wait =
                if left.is_zero() { Duration::from_secs(60) } else { left.min(Duration::from_secs(60)) };
            tokio::select! {
                () = clock.sleep(wait) => {}
                _ = changes.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::domain::id::Timestamp;
    use futures_util::FutureExt;

    fn company(id: &str) -> CompanyId {
        id.parse().unwrap()
    }

    #[test]
    fn what_is_above_the_limit_waits_until_the_oldest_is_out_of_the_window() {
        let clock = ManualClock::new(Timestamp::from_secs(0));
        let paces = Paces { batches_per_hour: 2, ..Paces::default() };
        let a = company("a");
        let before = [3000, 9000].map(|secs| (Duration::from_secs(secs), a.clone()));
        let pace = Pace::new(paces, before);
        assert_eq!(pace.used(&clock), (1, 2));
        assert!(pace.creation(&clock, &a).now_or_never().is_some());
        clock.advance(Duration::from_secs(599));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _inside = runtime.enter();
        let third = pace.creation(&clock, &a);
        let mut third = Box::pin(third);
        assert!(third.as_mut().now_or_never().is_none(), "two within the hour");
        let waits = Waits { batches: 1, per_hour: 2, left: Duration::from_secs(1) };
        assert_eq!(pace.waits(&clock), Some(waits));
        drop(third);
        assert_eq!(pace.waits(&clock), None);
        clock.advance(Duration::from_secs(1));
        assert!(pace.creation(&clock, &a).now_or_never().is_some());
        assert!(pace.creation(&clock, &a).now_or_never().is_none());
        // One that came to nothing leaves its place to another.
        pace.not_created(&company("b"));
        assert!(pace.creation(&clock, &a).now_or_never().is_none());
        pace.not_created(&a);
        assert!(pace.creation(&clock, &a).now_or_never().is_some());
        assert!(pace.creation(&clock, &a).now_or_never().is_none());
    }

    #[test]
    fn only_so_many_files_are_in_transit() {
        let clock = ManualClock::new(Timestamp::from_secs(0));
        let a = company("a");
        let pace = Pace::new(Paces { transfers: 2, ..Paces::default() }, []);
        let one = pace.upload(&clock, &a).now_or_never().unwrap();
        let _two = pace.download(&clock, Some(&a)).now_or_never().unwrap();
        assert!(pace.download(&clock, Some(&a)).now_or_never().is_none());
        drop(one);
        assert!(pace.download(&clock, Some(&a)).now_or_never().is_some());
    }

    #[test]
    fn the_company_that_had_least_goes_first_and_a_cancelled_wait_holds_up_nobody() {
        let clock = ManualClock::new(Timestamp::from_secs(0));
        let (a, b, c) = (company("a"), company("b"), company("c"));
        let pace = Pace::new(Paces { batches_per_hour: 2, ..Paces::default() }, []);
        for _ in 0..2 {
            assert!(pace.creation(&clock, &a).now_or_never().is_some());
            clock.advance(Duration::from_secs(60));
        }
        let mut first = Box::pin(pace.creation(&clock, &a));
        let mut second = Box::pin(pace.creation(&clock, &b));
        let mut third = Box::pin(pace.creation(&clock, &c));
        for waits in [&mut first, &mut second, &mut third] {
            assert!(waits.as_mut().now_or_never().is_none());
        }
        drop(second);
        clock.advance(Duration::from_secs(3600 - 120));
        assert!(first.as_mut().now_or_never().is_none(), "a had one more than c");
        assert!(third.as_mut().now_or_never().is_some());
        clock.advance(Duration::from_secs(60));
        assert!(first.as_mut().now_or_never().is_some());
    }

    #[test]
    fn a_company_with_many_files_in_transit_lets_another_one_through() {
        let clock = ManualClock::new(Timestamp::from_secs(0));
        let (a, b) = (company("a"), company("b"));
        let pace = Pace::new(Paces { transfers: 2, ..Paces::default() }, []);
        let one = pace.upload(&clock, &a).now_or_never().unwrap();
        let two = pace.upload(&clock, &a).now_or_never().unwrap();
        let mut of_a = Box::pin(pace.upload(&clock, &a));
        let mut of_b = Box::pin(pace.upload(&clock, &b));
        assert!(of_a.as_mut().now_or_never().is_none() && of_b.as_mut().now_or_never().is_none());
        drop(one);
        assert!(of_a.as_mut().now_or_never().is_none());
        let third = of_b.as_mut().now_or_never().unwrap();
        drop((two, third));
        assert!(of_a.as_mut().now_or_never().is_some());
    }
}
