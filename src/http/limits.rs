//! How much a company may send, and have sent: calls a minute and bytes an hour, told with each reply in the standard
//! headers, messages a minute to its webhooks, and how many streams it may have under way.
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

/// How many streams of a kind may be under way at the same time.
#[derive(Debug, Clone, Copy)]
struct Places {
    /// Of all companies,
    of_all: usize,
    /// and of one.
    of_one: usize,
    /// So many more for companies that have none: others that are slow on purpose cannot shut them out.
    kept: usize,
}

impl Places {
    const fn have_room(self, all: usize, own: usize) -> bool {
        own < self.of_one && (all < self.of_all || own == 0 && all < self.of_all + self.kept)
    }
}

/// Bodies that are read: each takes memory, and an export a thread.
const BODIES: Places = Places { of_all: 64, of_one: 8, kept: 16 };
/// Exports that are sent: each takes memory and, where its reader is slow, a connection for long.
const EXPORTS: Places = Places { of_all: 32, of_one: 4, kept: 8 };

/// Seconds until a refused export may be asked for again.
const EXPORT_WAIT: u64 = 5;

/// What is under way.
#[derive(Debug, Clone, Copy)]
enum Stream {
    Body,
    Export,
}

/// A stream that is under way, until it is dropped.
pub struct Running {
    limiter: Arc<Limiter>,
    company: CompanyId,
    stream: Stream,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.limiter.with(&self.company, |used| {
            let own = used.running(self.stream);
            *own = own.saturating_sub(1);
        });
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
    bodies: usize,
    /// Exports that are being sent.
    exports: usize,
}

impl Used {
    const fn running(&mut self, stream: Stream) -> &mut usize {
        match stream {
            Stream::Body => &mut self.bodies,
            Stream::Export => &mut self.exports,
        }
    }
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

    /// The right to read a body; 429 where the company, or all companies together, have as many under way as they may.
    pub fn enter(self: &Arc<Self>, clock: &dyn Clock, company: &CompanyId) -> Result<Running, ApiError> {
        self.place(company, Stream::Body, BODIES).ok_or_else(|| {
            let Places { of_all, of_one, .. } = BODIES;
            let detail = format!(
                "{of_one} calls of a company may bring something at the same time, {of_all} of all; wait until one has \
                 ended"
            );
            self.refusal(clock, company, Duration::from_secs(1), detail)
        })
    }

    /// The right to send an export; 429 likewise.
    pub fn export(self: &Arc<Self>, company: &CompanyId) -> Result<Running, ApiError> {
        self.place(company, Stream::Export, EXPORTS).ok_or_else(|| {
            let Places { of_all, of_one, .. } = EXPORTS;
            let detail = format!(
                "{of_one} exports of a company may be under way at the same time, {of_all} of all; wait until one has ended"
            );
            ApiError {
                retry_after: Some(EXPORT_WAIT),
                ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
            }
        })
    }

    fn place(self: &Arc<Self>, company: &CompanyId, stream: Stream, places: Places) -> Option<Running> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let all = used.values_mut().map(|used| *used.running(stream)).sum();
        let own = used.entry(company.clone()).or_default().running(stream);
        if !places.have_room(all, *own) {
            return None;
        }
        *own += 1;
        Some(Running { limiter: self.clone(), company: company.clone(), stream })
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
    }

    #[test]
    fn no_companies_together_have_every_place_and_shut_out_one_that_has_none() {
        let clock = ManualClock::new(Timestamp::from_secs(0));
        let limiter = Arc::new(Limiter::new(Ingest { calls_per_minute: 2, bytes_per_hour: 100 }));
        let company = |number: usize| -> CompanyId { format!("c{number}").parse().unwrap() };
        for (stream, of_all, of_one, kept) in [(Stream::Body, 64, 8, 16), (Stream::Export, 32, 4, 8)] {
            let enter = |number: usize| match stream {
                Stream::Body => limiter.enter(&clock, &company(number)),
                Stream::Export => limiter.export(&company(number)),
            };
            let full = |number: usize| match enter(number) {
                Ok(_) => panic!("a place for {number}"),
                Err(err) => assert_eq!(
                    (err.status.as_u16(), err.code, err.retry_after.is_some()),
                    (429, "rate_limited", true)
                ),
            };
            let mut running = Vec::new();
            for number in 0..of_all / of_one {
                running.extend((0..of_one).map(|_| enter(number).unwrap()));
                full(number);
            }
            for number in 100..100 + kept {
                running.push(enter(number).unwrap());
                full(number);
            }
            full(200);
            // Of the places that all may have none is free yet, and of the others one.
            drop(running.swap_remove(0));
            full(0);
            drop(enter(200).unwrap());
            running.clear();
            drop(enter(0).unwrap());
        }
    }
}
