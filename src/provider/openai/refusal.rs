//! What an answer other than 2xx means, and how long it asks to wait.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use secrecy::ExposeSecret as _;

use super::OpenAi;
use super::exchange::Answer;
use crate::domain::retry::{is_billing, is_key_trouble};
use crate::provider::ProviderError;
use crate::provider::wire::ErrorBody;

impl OpenAi {
    /// The error for an answer that is no success.
    pub(super) fn refused(&self, call: &'static str, answer: &Answer) -> ProviderError {
        let ErrorBody { code, kind, message, param } = self.words(answer);
        let status = answer.status.as_u16();
        let billing = is_billing(&code) || is_billing(&kind);
        match status {
            // A gateway's 500 may carry such a code, and say nothing of what was done.
            400..500 if billing && !matches!(status, 408 | 409) => {
                ProviderError::Account { call, status, code, message }
            }
            401 | 403 => ProviderError::Account { call, status, code, message },
            429 => {
                ProviderError::RateLimited { call, code, message, retry_after: retry_after(&answer.headers) }
            }
            408 | 409 => uncertain(call, status, &message),
            400..500 if is_key_trouble(&code) || is_key_trouble(&kind) => {
                ProviderError::Account { call, status, code, message }
            }
            400..500 => ProviderError::Refused { call, status, code, message, param },
            _ => uncertain(call, status, &message),
        }
    }

    /// The server's words, without our key should they repeat it. It is taken out before anything is cut,
    /// or a part of it might stay.
    fn words(&self, answer: &Answer) -> ErrorBody {
        let key = self.options.api_key.as_ref().map_or("", |key| key.expose_secret());
        let text = String::from_utf8_lossy(&answer.body);
        if !key.is_empty() && text.contains(key) {
            return ErrorBody::read(text.replace(key, "[key]").as_bytes());
        }
        ErrorBody::read(&answer.body)
    }
}

fn uncertain(call: &'static str, status: u16, message: &str) -> ProviderError {
    let what =
        if message.is_empty() { format!("status {status}") } else { format!("status {status}: {message}") };
    ProviderError::Uncertain { call, what }
}

/// Whether a safe call may go well if it is repeated. The server's own word counts before its status, except
/// that an account out of money is not knocked at again.
pub(super) fn should_retry(answer: &Answer) -> bool {
    if answer.status.is_success() {
        return false;
    }
    let words = ErrorBody::read(&answer.body);
    if is_billing(&words.code) || is_billing(&words.kind) {
        return false;
    }
    match answer.headers.get("x-should-retry").map(|value| value.as_bytes()) {
        Some(b"true") => true,
        Some(b"false") => false,
        Some(_) | None => {
            matches!(
                answer.status,
                StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS
            ) || answer.status.is_server_error()
        }
    }
}

/// How long the server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date. A date is
/// reckoned against the server's own `Date`, so that a clock that is off does no harm.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let seconds = |number: f64| Duration::try_from_secs_f64(number).ok().filter(|wait| !wait.is_zero());
    let millis = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok());
    if let Some(wait) = millis.and_then(|millis| seconds(millis / 1000.0)) {
        return Some(wait);
    }
    let after = text(RETRY_AFTER.as_str())?;
    if let Ok(number) = after.parse::<f64>() {
        return seconds(number);
    }
    let moment = |text: &str| jiff::fmt::rfc2822::parse(text).ok().map(|at| at.timestamp().as_second());
    let wait = moment(after)?.checked_sub(moment(text(DATE.as_str())?)?)?;
    u64::try_from(wait).ok().map(Duration::from_secs).filter(|wait| !wait.is_zero())
}
