//! How much a company may send, and have sent: calls a minute and bytes an hour, told with each reply in the standard
//! headers, and messages a minute to its webhooks.
//!
//! The headers are `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers, and `Retry-After`. The
//! counts are kept in memory: after a restart they begin anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use warp::http::StatusCode;
use warp::http::header::HeaderValue;

use super::reply::ApiError;
use crate::clock::Clock;
use crate::config::Ingest;
use crate::domain::id::CompanyId;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Messages a minute that somebody may have sent to the webhooks of a company by a call. Whoever answers quickly, whoever
/// that is, would have as many else as the caller likes.
const MESSAGES_PER_MINUTE: u64 = 60;

/// Bodies that are read at the same time, of all companies,
const RUNNING_MAX: usize = 64;
/// and of one.
const RUNNING_OF_ONE_MAX: usize = 8;

/// A body that is being read, until it is dropped.
pub struct Running {
    limiter: Arc<Limiter>,
    company: CompanyId,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.limiter.with(&self.company, |used| used.running = used.running.saturating_sub(1));
    }
}

/// Counts what each company sends.
#[derive(Debug)]
pub struct Limiter {
    quotas: Ingest,
    /// As many as there are companies.
    used: Mutex<HashMap<CompanyId, Used>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Used {
    calls: Window,
    bytes: Window,
    messages: Window,
    /// Calls whose body is being read.
    running: usize,
}

/// A span of time that begins with the first use.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    /// Milliseconds of the monotonic clock.
    since: u64,
    used: u64,
}

impl Window {
    /// How much is used at `now`, and how long that still counts.
    fn at(&mut self, now: u64, length: Duration) -> Duration {
        let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        if now.saturating_sub(self.since) >= length {
            *self = Self { since: now, used: 0 };
        }
        Duration::from_millis(length - now.saturating_sub(self.since))
    }
}

type Headers = Vec<(&'static str, HeaderValue)>;

impl Limiter {
    /// A limiter for these quotas.
    pub fn new(quotas: Ingest) -> Self {
        Self { quotas, used: Mutex::default() }
    }

    fn with<T>(&self, company: &CompanyId, change: impl FnOnce(&mut Used) -> T) -> T {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        change(used.entry(company.clone()).or_default())
    }

    /// The right to read a body; 429 where the company, or all companies together, have as many under way as they may:
    /// each takes memory, and an export a thread.
    pub fn enter(self: &Arc<Self>, clock: &dyn Clock, company: &CompanyId) -> Result<Running, ApiError> {
        let entered = {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let all: usize = used.values().map(|used| used.running).sum();
            let own = used.entry(company.clone()).or_default();
            let entered = all < RUNNING_MAX && own.running < RUNNING_OF_ONE_MAX;
            own.running += usize::from(entered);
            entered
        };
        if entered {
            return Ok(Running { limiter: self.clone(), company: company.clone() });
        }
        let detail = format!(
            "{RUNNING_OF_ONE_MAX} calls of a company may bring something at the same time, {RUNNING_MAX} of all; wait \
             until one has ended"
        );
        Err(self.refusal(clock, company, Duration::from_secs(1), detail))
    }

    /// Counts a call of a company that is there; 429 where it is one too many.
    pub fn call(&self, clock: &dyn Clock, company: &CompanyId) -> Result<(), ApiError> {
        let (allowed, calls_left, bytes_left) = self.with(company, |used| {
            let now = clock.monotonic_ms();
            let (calls, bytes) = (used.calls.at(now, MINUTE), used.bytes.at(now, HOUR));
            let allowed = used.calls.used < self.quotas.calls_per_minute
                && used.bytes.used < self.quotas.bytes_per_hour;
            used.calls.used += u64::from(allowed);
            (
                allowed,
                (used.calls.used >= self.quotas.calls_per_minute).then_some(calls),
                (used.bytes.used >= self.quotas.bytes_per_hour).then_some(bytes),
            )
        });
        if allowed {
            return Ok(());
        }
        Err(match bytes_left {
            Some(wait) => self.too_much(clock, company, wait),
            None => {
                let wait = calls_left.unwrap_or(MINUTE);
                let detail = format!(
                    "this company may make {} such calls a minute; send more in one call",
                    self.quotas.calls_per_minute
                );
                self.refusal(clock, company, wait, detail)
            }
        })
    }

    /// Counts a message that a call has sent to a webhook; 429 where it is one too many.
    pub fn message(&self, clock: &dyn Clock, company: &CompanyId) -> Result<(), ApiError> {
        let (allowed, wait) = self.with(company, |used| {
            let wait = used.messages.at(clock.monotonic_ms(), MINUTE);
            let allowed = used.messages.used < MESSAGES_PER_MINUTE;
            used.messages.used += u64::from(allowed);
            (allowed, seconds(wait).max(1))
        });
        if allowed {
            return Ok(());
        }
        let detail = format!(
            "{MESSAGES_PER_MINUTE} tests and redeliveries a minute may be asked for, for all webhooks of a company"
        );
        let policy = format!("\"messages\";q={MESSAGES_PER_MINUTE};w=60");
        Err(ApiError {
            retry_after: Some(wait),
            headers: in_headers(policy, format!("\"messages\";r=0;t={wait}")),
            ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
        })
    }

    /// Counts bytes of a body; 429 where they are too many.
    pub fn bytes(&self, clock: &dyn Clock, company: &CompanyId, bytes: usize) -> Result<(), ApiError> {
        let over = self.with(company, |used| {
            let wait = used.bytes.at(clock.monotonic_ms(), HOUR);
            used.bytes.used = used.bytes.used.saturating_add(bytes as u64);
            (used.bytes.used > self.quotas.bytes_per_hour).then_some(wait)
        });
        match over {
            None => Ok(()),
            Some(wait) => Err(self.too_much(clock, company, wait)),
        }
    }

    /// The refusal of a body that has gone over the bound.
    pub fn over(&self, clock: &dyn Clock, company: &CompanyId) -> ApiError {
        let wait = self.with(company, |used| used.bytes.at(clock.monotonic_ms(), HOUR));
        self.too_much(clock, company, wait)
    }

    fn too_much(&self, clock: &dyn Clock, company: &CompanyId, wait: Duration) -> ApiError {
        let detail = format!(
            "this company may send {} bytes an hour; what was stored of this call is told beside this",
            self.quotas.bytes_per_hour
        );
        self.refusal(clock, company, wait, detail)
    }

    fn refusal(&self, clock: &dyn Clock, company: &CompanyId, wait: Duration, detail: String) -> ApiError {
        ApiError {
            retry_after: Some(seconds(wait).max(1)),
            headers: self.headers(clock, company),
            ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
        }
    }

    /// What is left, for every reply.
    pub fn headers(&self, clock: &dyn Clock, company: &CompanyId) -> Headers {
        let Ingest { calls_per_minute, bytes_per_hour } = self.quotas;
        let (calls, calls_left, bytes, bytes_left) = self.with(company, |used| {
            let now = clock.monotonic_ms();
            let (calls, bytes) = (used.calls.at(now, MINUTE), used.bytes.at(now, HOUR));
            let left = |quota: u64, used: u64| quota.saturating_sub(used);
            (left(calls_per_minute, used.calls.used), calls, left(bytes_per_hour, used.bytes.used), bytes)
        });
        let policy = format!(
            "\"calls\";q={calls_per_minute};w=60, \"bytes\";q={bytes_per_hour};qu=\"content-bytes\";w=3600"
        );
        let state = format!(
            "\"calls\";r={calls};t={}, \"bytes\";r={bytes};t={}",
            seconds(calls_left),
            seconds(bytes_left)
        );
        in_headers(policy, state)
    }
}

fn in_headers(policy: String, state: String) -> Headers {
    let header = |name, text: String| Some((name, HeaderValue::from_str(&text).ok()?));
    [header("ratelimit-policy", policy), header("ratelimit", state)].into_iter().flatten().collect()
}

fn seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::domain::id::Timestamp;

    fn shown(limiter: &Limiter, clock: &ManualClock, company: &CompanyId) -> String {
        limiter.headers(clock, company)[1].1.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_company_is_told_what_is_left_and_when_there_is_more_and_others_have_their_own() {
        let clock = ManualClock::new(Timestamp::from_secs(0));
        let (a, b): (CompanyId, CompanyId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let limiter = Limiter::new(Ingest { calls_per_minute: 2, bytes_per_hour: 100 });
        assert!(limiter.call(&clock, &a).is_ok());
        clock.advance(Duration::from_millis(500));
        assert!(limiter.call(&clock, &a).is_ok());
        assert_eq!(shown(&limiter, &clock, &a), "\"calls\";r=0;t=60, \"bytes\";r=100;t=3600");
        let refused = limiter.call(&clock, &a).unwrap_err();
        assert_eq!(
            (refused.status.as_u16(), refused.code, refused.retry_after),
            (429, "rate_limited", Some(60))
        );
        assert!(limiter.call(&clock, &b).is_ok());
        clock.advance(Duration::from_secs(60));
        assert!(limiter.call(&clock, &a).is_ok());
        assert!(limiter.bytes(&clock, &a, 100).is_ok());
        assert_eq!(limiter.bytes(&clock, &a, 1).unwrap_err().retry_after, Some(3540));
        assert_eq!(limiter.call(&clock, &a).unwrap_err().retry_after, Some(3540));
        assert!(limiter.bytes(&clock, &b, 100).is_ok());
        let limiter = Arc::new(limiter);
        let running: Vec<_> = (0..RUNNING_OF_ONE_MAX).map(|_| limiter.enter(&clock, &a).unwrap()).collect();
        assert_eq!(limiter.enter(&clock, &a).err().unwrap().code, "rate_limited");
        assert!(limiter.enter(&clock, &b).is_ok());
        drop(running);
        assert!(limiter.enter(&clock, &a).is_ok());
    }
}
