//! When a group becomes a batch, and how much of it.

use std::time::Duration;

use super::id::{BatchId, Timestamp};
use super::request::{Attempt, FailureClass};
use super::retry;

/// Bounds of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Lines.
    pub requests_max: u64,
    /// Bytes of the input file.
    pub bytes_max: u64,
    /// Input tokens, where there is a limit.
    pub tokens_max: Option<u64>,
    /// How long the oldest request may wait before a batch that is not full goes.
    pub age_max: Duration,
}

/// What waits in a group, from the stored counters and its oldest entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Eligible requests.
    pub requests: u64,
    /// Bytes of their lines.
    pub bytes: u64,
    /// Since when the oldest waits.
    pub oldest: Timestamp,
}

/// Why a group is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// There are enough requests for a full batch.
    Count,
    /// There are enough bytes for a full file.
    Bytes,
    /// The oldest has waited long enough.
    Age,
    /// Another company has its next batch, and this one has none.
    Turn,
}

impl Due {
    /// For the log and the story.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Count => "enough requests",
            Self::Bytes => "enough bytes",
            Self::Age => "the oldest has waited long enough",
            Self::Turn => "it is its turn before another company's next batch",
        }
    }
}

/// What waits since a time so far ahead was there before the clock was turned back: how long it has waited nobody knows.
const CLOCK_BACK: Duration = Duration::from_secs(60);

/// Whether a group is due at `now`, and why.
pub fn due(waiting: &Waiting, limits: &Limits, now: Timestamp) -> Option<Due> {
    if waiting.requests == 0 {
        None
    } else if waiting.requests >= limits.requests_max {
        Some(Due::Count)
    } else if waiting.bytes >= limits.bytes_max {
        Some(Due::Bytes)
    } else if now.since(waiting.oldest) >= limits.age_max || waiting.oldest.since(now) > CLOCK_BACK {
        Some(Due::Age)
    } else {
        None
    }
}

/// The age at which a batch that is not full goes, when `used` of `max` batches were created within the hour: above
/// three quarters it grows, to four times as long at the limit, so that what is left goes to fuller batches.
pub fn stretched(age_max: Duration, used: usize, max: usize) -> Duration {
    const STRETCH_MAX: u32 = 3;
    let from = max / 4 * 3;
    if used <= from || max <= from {
        return age_max;
    }
    let (above, all) = ((used.min(max) - from) as u64, (max - from) as u64);
    let thousandths = u32::try_from(u64::from(STRETCH_MAX) * 1000 * above / all).unwrap_or(u32::MAX);
    age_max.saturating_add(age_max.saturating_mul(thousandths) / 1000)
}

/// Whether one more line fits. The first one always does: a line above the bound, taken in under a larger one,
/// must not keep its group waiting for ever.
pub fn fits(
    members: u64,
    bytes: u64,
    tokens: u64,
    line_bytes: u64,
    line_tokens: u64,
    limits: &Limits,
) -> bool {
    members == 0
        || (members < limits.requests_max
            && bytes + line_bytes <= limits.bytes_max
            && limits.tokens_max.is_none_or(|max| tokens.saturating_add(line_tokens) <= max))
}

/// Batches with the same requests that are refused for their lines before they are cut in halves.
const REFUSED_ROUNDS_MAX: usize = 5;

/// The batch of which a request is one of the suspects: it was refused for its size, or for a line that nobody names, at
/// once or in several rounds. None where the request is in no such trouble.
pub fn refused_with(history: &[Attempt]) -> Option<BatchId> {
    let code =
        |attempt: &Attempt| attempt.failure.as_ref().map(|failure| failure.code.clone()).unwrap_or_default();
    let is_of_lines = |attempt: &Attempt| {
        [retry::REFUSED, retry::TOO_LARGE, retry::NOT_NAMED].contains(&code(attempt).as_str())
    };
    // A batch that was turned away for another reason says nothing of its lines: what is known of them stays true.
    let ran = |attempt: &Attempt| {
        let class = attempt.failure.as_ref().map(|failure| failure.class);
        attempt.number > 0 || matches!(class, None | Some(FailureClass::Unusable))
    };
    let said: Vec<_> = history.iter().rev().filter(|attempt| is_of_lines(attempt) || ran(attempt)).collect();
    let last = said.first().filter(|last| is_of_lines(last))?;
    let rounds = said.iter().take_while(|attempt| code(attempt) == retry::REFUSED).count();
    (code(last) != retry::REFUSED || rounds >= REFUSED_ROUNDS_MAX).then_some(last.batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { requests_max: 10, bytes_max: 1000, tokens_max: Some(70), age_max: Duration::from_secs(60) };

    fn waiting(requests: u64, bytes: u64) -> Waiting {
        Waiting { requests, bytes, oldest: Timestamp::from_secs(0) }
    }

    #[test]
    fn a_group_is_due_by_count_by_bytes_or_by_age_and_not_before() {
        let soon = Timestamp::from_secs(59);
        assert_eq!(due(&waiting(10, 1), &LIMITS, soon), Some(Due::Count));
        assert_eq!(due(&waiting(2, 1000), &LIMITS, soon), Some(Due::Bytes));
        assert_eq!(due(&waiting(1, 1), &LIMITS, soon), None);
        assert_eq!(due(&waiting(1, 1), &LIMITS, Timestamp::from_secs(60)), Some(Due::Age));
        assert_eq!(due(&waiting(0, 0), &LIMITS, Timestamp::from_secs(600)), None);
        let back = |secs: i64| due(&waiting(1, 1), &LIMITS, Timestamp::from_secs(-secs));
        assert_eq!((back(60), back(7200)), (None, Some(Due::Age)));
    }

    #[test]
    fn near_the_limit_of_an_hour_batches_wait_until_they_are_fuller() {
        let age = Duration::from_secs(60);
        let at = |used| stretched(age, used, 2000).as_secs();
        assert_eq!([0, 1500, 1750, 2000, 3000].map(at), [60, 60, 150, 240, 240]);
        assert_eq!(stretched(age, 1, 1), age * 4, "a limit of one is always near");
        assert_eq!(stretched(Duration::MAX, 2000, 2000), Duration::MAX);
    }

    #[test]
    fn what_is_known_of_a_suspect_stays_known_when_its_batch_is_turned_away_for_another_reason() {
        use FailureClass::{Account, Capacity, Permanent, Transient, Unusable};
        let attempt = |number: u32, batch: u128, class, code: &str| {
            let failure = Some(crate::domain::request::Failure::new(class, code, ""));
            let batch = BatchId::from_bytes(batch.to_be_bytes());
            Attempt { number, batch, failure, at: Timestamp::from_secs(0) }
        };
        let refused = |batch| attempt(0, batch, Transient, retry::REFUSED);
        let id = |batch: u128| Some(BatchId::from_bytes(batch.to_be_bytes()));
        let mut history: Vec<_> = (1..5).map(refused).collect();
        assert_eq!(refused_with(&history), None, "it may be named yet");
        history.push(attempt(0, 8, Account, "insufficient_quota"));
        history.push(refused(5));
        assert_eq!(refused_with(&history), id(5));
        for (class, code) in [(Capacity, "token_limit_exceeded"), (Transient, "batch_cancelled")] {
            history.push(attempt(0, 9, class, code));
            assert_eq!(refused_with(&history), id(5), "{code}");
        }
        for ran in [
            attempt(1, 10, Transient, "server_error"),
            attempt(0, 10, Unusable, "does_not_fit"),
            Attempt { failure: None, ..attempt(1, 10, Permanent, "") },
        ] {
            assert_eq!(refused_with(&[history.clone(), vec![ran]].concat()), None, "its batch was admitted");
        }
        assert_eq!(refused_with(&[attempt(0, 7, Transient, retry::TOO_LARGE)]), id(7));
        assert_eq!(refused_with(&[]), None);
    }

    #[test]
    fn a_batch_takes_exactly_what_fits() {
        assert!(fits(9, 900, 60, 100, 10, &LIMITS));
        assert!(!fits(10, 0, 0, 1, 1, &LIMITS));
        assert!(!fits(1, 901, 0, 100, 1, &LIMITS));
        assert!(!fits(1, 0, 61, 1, 10, &LIMITS));
        assert!(fits(1, 0, 1 << 40, 1, 10, &Limits { tokens_max: None, ..LIMITS }));
        assert!(fits(0, 0, 0, 5000, 5000, &LIMITS));
    }
}
