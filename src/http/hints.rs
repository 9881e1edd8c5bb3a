//! What the provider says by itself: that something has become of a batch. It is only a hint, for which the batch is asked
//! about at once; that none comes costs nothing but time.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;
use warp::http::header::HeaderMap;

use super::Api;
use super::reply::ApiError;
use crate::actors::poller::Changed;
use crate::domain::id::ProviderBatchId;
use crate::domain::webhook::signature::{self, SigningSecret};

/// A message has some hundred bytes.
pub const BODY_BYTES_MAX: u64 = 64 << 10;
/// Messages that are known again when they come again, which they do where our answer was lost.
const HEARD_MAX: usize = 256;
/// A longer id is none of the provider's.
const ID_BYTES_MAX: usize = 256;

/// What is needed to believe the provider.
#[derive(Debug)]
pub struct Hints {
    secret: Option<SigningSecret>,
    heard: Mutex<VecDeque<String>>,
}

impl Hints {
    /// Believes what is signed with `secret`; without one, nothing.
    pub fn new(secret: Option<SigningSecret>) -> Self {
        Self { secret, heard: Mutex::default() }
    }

    fn was_heard(&self, id: &str) -> bool {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|heard| heard == id)
    }

    fn hear(&self, id: &str) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() >= HEARD_MAX {
            heard.pop_front();
        }
        heard.push_back(id.to_owned());
    }
}

/// An event of the provider's (contract section 6); what else it says is of no use here.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Data,
}

#[derive(Default, Deserialize)]
struct Data {
    id: Option<String>,
}

/// `POST /webhooks/openai`: a message signed by the Standard Webhooks scheme. Answered as soon as it is believed.
///
/// Errors: 404 without a secret, 400 for what is not signed as it should be or says nothing, 503 to have it sent again.
pub fn take(api: &Api, headers: &HeaderMap, body: &[u8]) -> Result<Value, ApiError> {
    let Some(secret) = &api.hints.secret else {
        let detail = "this server takes no messages of the provider: OPENAI_WEBHOOK_SECRET is not set";
        return Err(ApiError::not_found("webhooks_off", detail));
    };
    let header = |name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).ok_or_else(|| {
            not_believed("missing_header", format!("the header {name} is missing, or not of plain text"))
        })
    };
    let (id, time) = (header("webhook-id")?, header("webhook-timestamp")?);
    if id.len() > ID_BYTES_MAX {
        let detail = format!("webhook-id is longer than {ID_BYTES_MAX} bytes");
        return Err(not_believed("invalid_header", detail));
    }
    signature::verify(secret, id, time, body, header("webhook-signature")?, api.shared.clock.now())
        .map_err(|err| not_believed(err.code(), err.to_string()))?;
    let event: Event = serde_json::from_slice(body)
        .map_err(|err| not_believed("invalid_event", format!("the body is no event: {err}")))?;
    let is_of_batch = |id: &String| event.kind.starts_with("batch.") && id.len() <= ID_BYTES_MAX;
    let heeded = match event.data.id.filter(is_of_batch) {
        Some(_) if api.hints.was_heard(id) => false,
        Some(batch) => {
            tracing::debug!(
                provider_batch = batch,
                event = event.kind,
                "the provider says that a batch has changed"
            );
            if api.parts.poller.try_send(Changed(ProviderBatchId::new(batch))).is_err() {
                return Err(ApiError::unavailable("too much is said at the same time; send it again"));
            }
            api.hints.hear(id);
            true
        }
        None => false,
    };
    Ok(json!({ "ok": true, "heeded": heeded }))
}

fn not_believed(code: &'static str, detail: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, code, detail)
}
