//! The account at the provider: paused as a whole when it is refused, so that no batch and no request suffers for it.
//!
//! While it is paused one call at a time may try whether it is better, after a wait that grows; an operator may say
//! so at once. What clears a pause depends on what it was for: a key that reads is a good key, but only an admitted
//! batch proves that there is money.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::{Clock, within};
use crate::domain::batch::Credentials;
use crate::domain::id::Timestamp;
use crate::domain::step::Policy;
use crate::provider::ProviderError;

/// A pause is never tried later than this after the try before.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(600);
/// How long an operator's word holds that batches which the provider does not know are really gone.
const TRUST: Duration = Duration::from_secs(2 * 3600);

/// Why the account is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The key is refused: nothing works.
    Key,
    /// Calls that cost money are refused.
    Money,
    /// Batches are refused for the account's sake after their creation.
    Admission,
    /// Known batches are gone: that looks like another key or project.
    Gone,
    /// A create call is looked for that was made with another key, in a list that nothing proves to be that of the same
    /// project.
    Unproven,
}

impl Cause {
    /// The word in the API.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Money => "billing",
            Self::Admission => "admission",
            Self::Gone => "batches_gone",
            Self::Unproven => "list_unproven",
        }
    }
}

/// A call, by what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A read: needs a key that is taken.
    Read,
    /// An upload or a creation: needs everything.
    Send,
}

/// Something went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Success {
    /// A read.
    Read,
    /// A file was sent.
    Uploaded,
    /// A batch was created.
    Created,
    /// A batch was admitted, or had results.
    Admitted,
    /// Known batches are there.
    Known,
}

/// The pause as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Why.
    pub cause: Cause,
    /// In words.
    pub why: String,
    /// Since when.
    pub since: Timestamp,
    /// How often it was tried in vain.
    pub tried: u32,
}

struct Paused {
    shown: Pause,
    /// When the next try may be made, on the monotonic clock.
    probe_at: u64,
    probing: bool,
}

#[derive(Default)]
struct State {
    paused: Option<Paused>,
    /// Until when nothing is sent because the provider asked for that, on the monotonic clock.
    rests_until: u64,
    /// How many were turned back for it.
    turned_back: u32,
    trusted_until: u64,
    /// That known batches are gone. It stands beside the pause: a key that is refused and taken again says nothing of them.
    gone: Option<Pause>,
    /// What create calls were made with that are looked for, and that may be of another project. It stands beside the
    /// pause: neither ends the other.
    unproven: BTreeMap<Credentials, Pause>,
    /// What was found to be of the project that we see.
    proven: BTreeSet<Credentials>,
}

/// Whether the account may be used.
pub struct Account {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    first_wait: Duration,
}

impl Account {
    /// Not paused. `first_wait` is how long a pause lasts before it is tried for the first time.
    pub fn new(first_wait: Duration) -> Self {
        Self { state: Mutex::default(), changes: watch::Sender::new(0), first_wait }
    }

    fn wait(&self, tried: u32) -> Duration {
        self.first_wait.saturating_mul(1 << tried.min(16)).min(PROBE_WAIT_MAX)
    }

    /// Pauses the account.
    pub fn pause(&self, clock: &dyn Clock, cause: Cause, why: &str) {
        let now = clock.monotonic_ms();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let why: String = why.chars().take(300).collect();
        if cause == Cause::Gone {
            state.gone.get_or_insert_with(|| {
                tell(cause, &why);
                Pause { cause, why, since: clock.now(), tried: 0 }
            });
            return;
        }
        let before = state.paused.as_ref();
        // Calls that were under way when it began to fail are no tries.
        let tried = before.map_or(0, |paused| paused.shown.tried + u32::from(paused.probing));
        if before.is_none_or(|paused| paused.shown.cause != cause) {
            tell(cause, &why);
        }
        let since = before.map_or_else(|| clock.now(), |paused| paused.shown.since);
        let probe_at = match before {
            Some(paused) if !paused.probing => paused.probe_at,
            _ => now.saturating_add(u64::try_from(self.wait(tried).as_millis()).unwrap_or(u64::MAX)),
        };
        let shown = Pause { cause, why, since, tried };
        state.paused = Some(Paused { shown, probe_at, probing: false });
    }

    /// Sends nothing for as long as the provider asks for in its answer to an upload or a creation. What it says of reads
    /// is no matter for what is sent: those have limits of their own.
    pub fn rest(&self, clock: &dyn Clock, err: &ProviderError) {
        if let ProviderError::RateLimited { retry_after: Some(wait), .. } = err {
            let wait = u64::try_from((*wait).min(Policy::ASKED_WAIT_MAX).as_millis()).unwrap_or(u64::MAX);
            let until = clock.monotonic_ms().saturating_add(wait);
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.rests_until = state.rests_until.max(until);
        }
    }

    /// Whether one that was let through, and then had to wait for something else, may still send.
    pub fn may_send_on(&self, clock: &dyn Clock) -> bool {
        !self.is_in_doubt() && self.rests(clock).is_none()
    }

    /// Pauses it if that is what an error says.
    pub fn heed(&self, clock: &dyn Clock, err: &ProviderError) {
        if let ProviderError::Account { code, status, .. } = err {
            let cause = if crate::domain::retry::is_billing(code) { Cause::Money } else { Cause::Key };
            // The code only: the provider's words may hold a part of the key.
            self.pause(clock, cause, &format!("the provider answers {status} {code}"));
        }
    }

    /// Returns when the call may be made: at once, or when the pause is over, or as the one that tries.
    pub async fn pass(&self, clock: &dyn Clock, call: Call) {
        let mut changes = self.changes.subscribe();
        loop {
            let wait = match self.may(clock.monotonic_ms(), call) {
                Ok(()) => return,
                Err(wait) => wait,
            };
            let _ = within(clock, wait, changes.changed()).await;
        }
    }

    /// Whether the call may be made now; where the account is paused it is then the one that tries.
    pub fn may_now(&self, clock: &dyn Clock, call: Call) -> bool {
        self.may(clock.monotonic_ms(), call).is_ok()
    }

    fn may(&self, now: u64, call: Call) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether they are there again is seen by asking for them, not by sending more.
        if call == Call::Send && (state.gone.is_some() || !state.unproven.is_empty()) {
            return Err(PROBE_WAIT_MAX);
        }
        if call == Call::Send && now < state.rests_until {
            // Not all at once when it is over.
            state.turned_back = state.turned_back.wrapping_add(1);
            return Err(spread(Duration::from_millis(state.rests_until - now), state.turned_back));
        }
        let Some(paused) = &mut state.paused else { return Ok(()) };
        match (paused.shown.cause, call) {
            (Cause::Money | Cause::Admission | Cause::Gone | Cause::Unproven, Call::Read) => return Ok(()),
            (Cause::Gone | Cause::Unproven, Call::Send) => return Err(PROBE_WAIT_MAX),
            (Cause::Key, _) | (Cause::Money | Cause::Admission, Call::Send) => {}
        }
        if now < paused.probe_at {
            return Err(Duration::from_millis(paused.probe_at - now));
        }
        paused.probing = true;
        let wait = self.wait(paused.shown.tried + 1);
        paused.probe_at = now.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Something went well: the pause ends if that proves that its cause is gone.
    pub fn succeeded(&self, success: Success) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if success == Success::Known && state.gone.take().is_some() {
            tracing::info!(cause = Cause::Gone.label(), "the provider shows our batches again");
            self.changes.send_modify(|changes| *changes += 1);
        }
        let Some(paused) = &mut state.paused else { return };
        let over = match paused.shown.cause {
            Cause::Key => true,
            Cause::Money => matches!(success, Success::Created | Success::Admitted),
            Cause::Admission => success == Success::Admitted,
            // They stand beside the pause and never in it.
            Cause::Gone | Cause::Unproven => false,
        };
        if over {
            tracing::info!(cause = paused.shown.cause.label(), "the account at the provider works again");
            state.paused = None;
            drop(state);
            self.changes.send_modify(|changes| *changes += 1);
        } else if success == Success::Uploaded && paused.probing {
            // It got through and proves nothing: the next one need not wait for its turn.
            paused.probing = false;
            paused.probe_at = 0;
            drop(state);
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// An operator says that it may go on; says whether it was paused. Of batches that are gone that means that they
    /// really are, and of other keys that they are of this project.
    pub fn resume(&self, clock: &dyn Clock) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let paused = state.paused.take();
        let gone = state.gone.take();
        if gone.is_some() {
            let trust = u64::try_from(TRUST.as_millis()).unwrap_or(u64::MAX);
            state.trusted_until = clock.monotonic_ms().saturating_add(trust);
        }
        state.rests_until = 0;
        let unproven = std::mem::take(&mut state.unproven);
        let was = paused.is_some() || gone.is_some() || !unproven.is_empty();
        state.proven.extend(unproven.into_keys());
        drop(state);
        self.changes.send_modify(|changes| *changes += 1);
        was
    }

    /// Whether what was made with `other` is known to be of the project that we see.
    pub fn is_proven(&self, other: Credentials) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).proven.contains(&other)
    }

    /// The provider shows us what was made with `other`.
    pub fn prove(&self, other: Credentials) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.proven.insert(other);
        if state.unproven.remove(&other).is_some() {
            tracing::info!("the provider shows what was made with an earlier key: it is the same project");
            drop(state);
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Nothing is sent until `other` is proven: what is sent now might go to another project.
    pub fn doubt(&self, clock: &dyn Clock, other: Credentials, why: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.unproven.entry(other).or_insert_with(|| {
            tracing::error!(
                cause = Cause::Unproven.label(),
                "the account at the provider is paused: {why}. Nothing is failed; set the right key and project, or say with `nightshift resume` that they are right"
            );
            Pause { cause: Cause::Unproven, why: why.to_owned(), since: clock.now(), tried: 0 }
        });
    }

    /// Whether what is sent now might go to another project.
    pub fn is_in_doubt(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        !state.unproven.is_empty() || state.gone.is_some()
    }

    /// Whether an operator has lately said that what is gone is gone.
    pub fn is_trusted(&self, clock: &dyn Clock) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        clock.monotonic_ms() < state.trusted_until
    }

    /// How long nothing is sent yet because the provider asked for that.
    pub fn rests(&self, clock: &dyn Clock) -> Option<Duration> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let left = state.rests_until.checked_sub(clock.monotonic_ms()).filter(|left| *left > 0)?;
        Some(Duration::from_millis(left))
    }

    /// The pause, if there is one.
    pub fn paused(&self) -> Option<Pause> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let paused = state.paused.as_ref().map(|paused| &paused.shown);
        paused.or(state.gone.as_ref()).or_else(|| state.unproven.values().next()).cloned()
    }
}

/// The wait of the one that was turned back as the `number`th: up to a quarter longer than it was asked for, at most half a
/// minute, and each in another place between.
fn spread(wait: Duration, number: u32) -> Duration {
    const LONGEST: Duration = Duration::from_secs(30);
    // Steps of the golden ratio leave no two near each other.
    let place = number.wrapping_mul(0x9E37_79B9) >> 16;
    wait + (wait / 4).min(LONGEST) * place / (1 << 16)
}

fn tell(cause: Cause, why: &str) {
    tracing::error!(
        cause = cause.label(),
        "the account at the provider is paused: {why}. Nothing is failed; it goes on by itself when that is mended, or with `nightshift resume`"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const FIRST: Duration = Duration::from_secs(10);

    fn account() -> (Account, ManualClock) {
        (Account::new(FIRST), ManualClock::new(Timestamp::from_secs(1_800_000_000)))
    }

    #[test]
    fn one_call_at_a_time_tries_and_the_wait_grows() {
        let (account, clock) = account();
        let may = |call| account.may(clock.monotonic_ms(), call);
        account.pause(&clock, Cause::Money, "no money");
        account.pause(&clock, Cause::Money, "no money");
        assert_eq!(may(Call::Read), Ok(()));
        assert_eq!(may(Call::Send), Err(FIRST));
        clock.advance(FIRST);
        assert_eq!(may(Call::Send), Ok(()));
        assert_eq!(may(Call::Send), Err(FIRST * 2), "only one tries");
        account.pause(&clock, Cause::Money, "no money");
        assert_eq!(account.paused().unwrap().tried, 1);
        clock.advance(FIRST);
        assert_eq!(may(Call::Send), Err(FIRST));
    }

    #[test]
    fn a_pause_ends_by_what_proves_that_its_cause_is_gone() {
        let ends = |cause, success| {
            let (account, clock) = account();
            account.pause(&clock, cause, "");
            account.succeeded(success);
            account.paused().is_none()
        };
        assert!(ends(Cause::Key, Success::Read));
        assert!(!ends(Cause::Money, Success::Read) && ends(Cause::Money, Success::Created));
        assert!(!ends(Cause::Admission, Success::Created) && ends(Cause::Admission, Success::Admitted));
        assert!(!ends(Cause::Gone, Success::Admitted) && ends(Cause::Gone, Success::Known));
    }

    #[test]
    fn a_key_that_is_taken_again_does_not_bring_back_batches_that_are_gone() {
        let (account, clock) = account();
        account.pause(&clock, Cause::Gone, "batches are gone");
        account.pause(&clock, Cause::Key, "401");
        account.succeeded(Success::Read);
        assert_eq!(account.paused().unwrap().cause, Cause::Gone);
        assert!(account.is_in_doubt());
        assert_eq!(account.may(clock.monotonic_ms(), Call::Send), Err(PROBE_WAIT_MAX));
        account.pause(&clock, Cause::Key, "401");
        assert!(account.resume(&clock) && account.is_trusted(&clock), "it is said of both");
        assert!(account.paused().is_none() && !account.is_in_doubt());
    }

    #[test]
    fn an_upload_that_goes_well_leaves_the_try_to_the_next_one() {
        let (account, clock) = account();
        account.pause(&clock, Cause::Money, "");
        clock.advance(FIRST);
        assert!(account.may_now(&clock, Call::Send) && !account.may_now(&clock, Call::Send));
        account.succeeded(Success::Uploaded);
        assert!(account.may_now(&clock, Call::Send), "it may try");
        account.pause(&clock, Cause::Money, "");
        account.succeeded(Success::Uploaded);
        assert!(!account.may_now(&clock, Call::Send), "one that was under way before is no try");
    }

    #[test]
    fn doubt_ends_by_its_own_proof_or_an_operators_word_about_it_and_by_no_other_success() {
        let (account, clock) = account();
        let [old, older] = [1, 2].map(|number| Credentials([number; 16]));
        let sends = || account.may(clock.monotonic_ms(), Call::Send).is_ok();
        account.doubt(&clock, old, "");
        account.doubt(&clock, older, "");
        account.pause(&clock, Cause::Key, "");
        account.succeeded(Success::Read);
        assert!(!sends() && account.is_in_doubt(), "a key that is taken may be that of another project");
        account.prove(old);
        assert!(!sends() && account.is_proven(old) && !account.is_proven(older));
        account.prove(older);
        assert!(sends() && account.paused().is_none());

        let (account, clock) = self::account();
        account.pause(&clock, Cause::Money, "");
        assert!(account.resume(&clock));
        account.doubt(&clock, old, "");
        assert!(!account.is_trusted(&clock) && !account.is_proven(old), "that was a word about money");
        assert!(account.resume(&clock) && account.is_proven(old) && !account.is_trusted(&clock));
    }

    #[test]
    fn nothing_is_sent_before_the_provider_wants_it_and_then_not_all_at_once() {
        let (account, clock) = account();
        let may = |call| account.may(clock.monotonic_ms(), call);
        let limited = |secs| {
            let retry_after = Some(Duration::from_secs(secs));
            let (code, message) = (String::new(), String::new());
            account.rest(&clock, &ProviderError::RateLimited { call: "a call", code, message, retry_after });
        };
        limited(40);
        limited(4);
        assert_eq!((may(Call::Read), account.paused()), (Ok(()), None), "it is no pause of the account");
        assert!(!account.may_send_on(&clock));
        let waits: BTreeSet<_> = (0..100).map(|_| may(Call::Send).unwrap_err()).collect();
        assert_eq!(waits.len(), 100);
        let bounds = Duration::from_secs(40)..=Duration::from_secs(50);
        assert!(waits.iter().all(|wait| bounds.contains(wait)), "{waits:?}");
        assert_eq!(account.rests(&clock), Some(Duration::from_secs(40)));
        clock.advance(Duration::from_secs(40));
        assert_eq!((may(Call::Send), account.rests(&clock)), (Ok(()), None));
        limited(7 * 24 * 3600);
        assert_eq!(account.rests(&clock), Some(Policy::ASKED_WAIT_MAX));
        account.resume(&clock);
        assert_eq!(may(Call::Send), Ok(()));
    }

    #[tokio::test]
    async fn an_operator_wakes_everybody_who_waits() {
        let (account, clock) = account();
        account.pause(&clock, Cause::Gone, "");
        let waits = account.pass(&clock, Call::Send);
        let resumes = async { assert!(account.resume(&clock)) };
        tokio::join!(waits, resumes);
        assert!(account.is_trusted(&clock) && !account.resume(&clock));
    }
}
