//! Replies: `{"ok": true, …}`, or an error as RFC 9457 `application/problem+json` with `"ok": false`.

use serde_json::{Map, Value, json};
use warp::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use warp::http::{Response as Plain, StatusCode};
use warp::reply::Response;

use crate::actors::intake::IntakeError;
use crate::store::StoreError;

/// Why a call is not answered with what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// For programs.
    pub code: &'static str,
    /// For people: what is wrong and what to do.
    pub detail: String,
    /// Seconds to wait before another try.
    pub retry_after: Option<u64>,
    /// What was stored before the error, as fields of the reply.
    pub done: Option<Map<String, Value>>,
    /// More headers.
    pub headers: Vec<(&'static str, HeaderValue)>,
}

impl ApiError {
    /// An error.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None, done: None, headers: Vec::new() }
    }

    /// 422: understood, and not possible.
    pub fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// 404
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 503 with a time to wait.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self { retry_after: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail) }
    }

    /// The reply, which names the call by its id.
    pub fn reply(&self, request_id: &str) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let mut body = json!({
            "ok": false,
            "type": "about:blank",
            "title": title,
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
            "requestId": request_id,
        });
        if let (Value::Object(fields), Some(done)) = (&mut body, &self.done) {
            fields.extend(done.clone());
        }
        let mut reply = bytes(self.status, "application/problem+json", &body);
        let headers = reply.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        for (name, value) in &self.headers {
            headers.insert(*name, value.clone());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"nightshift\""));
        }
        reply
    }
}

impl From<StoreError> for ApiError {
    fn from(err: StoreError) -> Self {
        if err.is_fatal() {
            return Self::unavailable("the store does not take anything at the moment");
        }
        tracing::error!(error = %err, "a call failed in the store");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "this should not happen; the log tells more")
    }
}

impl From<IntakeError> for ApiError {
    fn from(err: IntakeError) -> Self {
        match &err {
            IntakeError::Stopped(hindrance, _) => {
                Self { code: hindrance.code(), ..Self::unavailable(err.to_string()) }
            }
            IntakeError::Store(err) => err.clone().into(),
        }
    }
}

impl From<actix::MailboxError> for ApiError {
    fn from(_: actix::MailboxError) -> Self {
        Self::unavailable("a part of the program is busy or restarting")
    }
}

/// What a call is answered with.
pub struct Answer {
    status: StatusCode,
    body: Value,
    /// More headers.
    headers: Vec<(&'static str, HeaderValue)>,
}

impl From<(StatusCode, Value)> for Answer {
    fn from((status, body): (StatusCode, Value)) -> Self {
        Self { status, body, headers: Vec::new() }
    }
}

impl Answer {
    /// The same with more headers.
    pub fn with(self, headers: Vec<(&'static str, HeaderValue)>) -> Self {
        Self { headers, ..self }
    }

    /// The reply.
    pub fn reply(self) -> Response {
        let mut reply = bytes(self.status, "application/json", &self.body);
        for (name, value) in self.headers {
            reply.headers_mut().insert(name, value);
        }
        reply
    }
}

fn bytes(status: StatusCode, content_type: &'static str, body: &Value) -> Response {
    let mut reply: Response = Plain::new(body.to_string()).map(Into::into);
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}
