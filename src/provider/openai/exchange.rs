//! Sends a call and reads its answer; repeats a safe call on passing faults.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, Response, StatusCode};

use super::OpenAi;
use super::refusal::{retry_after, should_retry};
use crate::provider::ProviderError;
use crate::provider::wire::cut;

/// The longest answer that is read.
pub(super) const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The longest page of a list that is read.
pub(super) const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The longest words about a failure that are read.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// How often a safe call is repeated.
const REPEATS_MAX: u32 = 2;
/// Whoever is asked to wait longer than this does not wait within the call.
const WAIT_MAX: Duration = Duration::from_secs(120);
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// A call that may be repeated.
pub(super) struct Call {
    /// Method and path pattern.
    pub name: &'static str,
    /// The longest good answer that is read.
    pub cap: usize,
    /// On what it is repeated.
    pub repeat: Repeat,
}

/// On what a call is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// On every passing fault.
    Safe,
    /// The same, but a 409 is an answer.
    SafeButConflict,
}

/// An answer of the server, whatever its status.
pub(super) struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body; of an answer that is no success perhaps only the beginning.
    pub body: Vec<u8>,
}

impl OpenAi {
    /// Sends the request exactly once and reads the whole answer.
    pub(super) async fn once(
        &self,
        call: &'static str,
        cap: usize,
        request: RequestBuilder,
    ) -> Result<Answer, ProviderError> {
        let response = self.send(call, request).await?;
        read_answer(call, cap, response).await
    }

    /// Sends the request exactly once; the body of the answer is still to be read.
    pub(super) async fn send(
        &self,
        call: &'static str,
        request: RequestBuilder,
    ) -> Result<Response, ProviderError> {
        let response = request.send().await.map_err(|error| lost(call, error))?;
        let request_id = response.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("");
        tracing::debug!(call, status = response.status().as_u16(), request_id, "the provider answered");
        Ok(response)
    }

    /// Sends the request, and again on passing faults.
    pub(super) async fn call(
        &self,
        call: &Call,
        build: impl Fn() -> RequestBuilder + Send + Sync,
    ) -> Result<Answer, ProviderError> {
        let mut repeats = 0;
        loop {
            let tried = self.once(call.name, call.cap, build()).await;
            let Some(pause) = self.pause(call, tried.as_ref(), repeats) else { return tried };
            self.clock.sleep(pause).await;
            repeats += 1;
        }
    }

    /// How long to wait before the call is repeated; none if it is not.
    pub(super) fn pause(
        &self,
        call: &Call,
        tried: Result<&Answer, &ProviderError>,
        repeats: u32,
    ) -> Option<Duration> {
        if repeats >= REPEATS_MAX {
            return None;
        }
        match tried {
            Err(ProviderError::NotSent { source, .. }) if source.is::<reqwest::Error>() => {}
            Err(ProviderError::Uncertain { .. }) => {}
            Err(
                ProviderError::NotSent { .. }
                | ProviderError::Refused { .. }
                | ProviderError::RateLimited { .. }
                | ProviderError::Account { .. }
                | ProviderError::Local { .. },
            ) => return None,
            Ok(answer) => {
                if call.repeat == Repeat::SafeButConflict && answer.status == StatusCode::CONFLICT {
                    return None;
                }
                if !should_retry(answer) {
                    return None;
                }
                match retry_after(&answer.headers) {
                    Some(wait) if wait > WAIT_MAX => return None,
                    Some(wait) => return Some(wait),
                    None => {}
                }
            }
        }
        Some(self.own_pause(call.name, repeats))
    }

    /// Half a second, then one, less up to a quarter that differs from call to call.
    fn own_pause(&self, call: &str, repeats: u32) -> Duration {
        let wait = self.options.repeat_after.saturating_mul(1 << repeats.min(8)).min(PAUSE_MAX);
        let mut hasher = DefaultHasher::new();
        (call, repeats, self.base.as_str()).hash(&mut hasher);
        let part = u32::try_from(hasher.finish() >> 56).unwrap_or(0);
        wait - (wait / 4).saturating_mul(part) / 256
    }
}

/// Reads the body. A good answer that breaks off or is too long is no answer; of another one the status is
/// what counts, and as much of its words as came.
pub(super) async fn read_answer(
    call: &'static str,
    cap: usize,
    mut response: Response,
) -> Result<Answer, ProviderError> {
    let (status, headers) = (response.status(), response.headers().clone());
    let cap = if status.is_success() { cap } else { REFUSAL_BYTES_MAX };
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => break,
            Ok(Some(chunk)) if body.len() + chunk.len() <= cap => body.extend_from_slice(&chunk),
            Ok(Some(chunk)) if !status.is_success() => {
                body.extend_from_slice(&chunk[..chunk.len().min(cap - body.len())]);
                break;
            }
            Ok(Some(_)) => {
                return Err(ProviderError::Uncertain {
                    call,
                    what: format!("an answer of more than {cap} bytes"),
                });
            }
            Err(_) if !status.is_success() => break,
            Err(error) => return Err(lost(call, error)),
        }
    }
    Ok(Answer { status, headers, body })
}

/// A call without an answer: without a connection it cannot have had an effect, otherwise it may.
pub(super) fn lost(call: &'static str, error: reqwest::Error) -> ProviderError {
    let error = error.without_url();
    if error.is_connect() || error.is_builder() {
        return ProviderError::NotSent { call, source: Box::new(error) };
    }
    let what = if error.is_timeout() { "timed out".to_owned() } else { chain(&error) };
    ProviderError::Uncertain { call, what }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    cut(&text, crate::provider::wire::MESSAGE_CHARS_MAX)
}
