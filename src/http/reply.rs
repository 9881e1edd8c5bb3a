//! Replies: `{"ok": true, …}`, or an error as RFC 9457 `application/problem+json` with `"ok": false`.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use warp::Reply;
use warp::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use warp::http::{Response as Plain, StatusCode};
use warp::reply::Response;

use super::unknown_company;
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
        if let StoreError::NotFound { what: "company", id } = &err {
            // It was erased while the call was under way.
            return unknown_company(id);
        }
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

/// A body broke off in its midst: the connection is cut, so that nobody takes what came for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body broke off")]
pub struct BrokenOff;

/// A piece of a body, or its end in order. A sender that goes away without it cuts the connection.
pub enum Piece {
    /// So much of it.
    Some(Bytes),
    /// It is whole.
    End,
}

/// What a body is made of.
enum Content {
    Json(Value),
    /// JSON that is text already.
    Text(String),
    Stream {
        content_type: &'static str,
        pieces: mpsc::Receiver<Piece>,
    },
}

/// What a call is answered with.
pub struct Answer {
    status: StatusCode,
    content: Content,
    /// More headers.
    headers: Vec<(&'static str, HeaderValue)>,
}

impl From<(StatusCode, Value)> for Answer {
    fn from((status, body): (StatusCode, Value)) -> Self {
        Self { status, content: Content::Json(body), headers: Vec::new() }
    }
}

impl Answer {
    /// The same with more headers.
    pub fn with(self, headers: Vec<(&'static str, HeaderValue)>) -> Self {
        Self { headers, ..self }
    }

    /// JSON that is text already.
    pub fn json(text: String) -> Self {
        Self { status: StatusCode::OK, content: Content::Text(text), headers: Vec::new() }
    }

    /// A body that comes piece by piece.
    pub fn stream(status: StatusCode, content_type: &'static str, pieces: mpsc::Receiver<Piece>) -> Self {
        Self { status, content: Content::Stream { content_type, pieces }, headers: Vec::new() }
    }

    /// The reply.
    pub fn reply(self) -> Response {
        let mut reply = match self.content {
            Content::Json(body) => bytes(self.status, "application/json", &body),
            Content::Text(body) => text(self.status, "application/json", body),
            Content::Stream { content_type, pieces } => {
                let pieces = futures_util::stream::unfold(Some(pieces), |open| async move {
                    let mut open = open?;
                    match open.recv().await {
                        Some(Piece::Some(bytes)) => Some((Ok(bytes), Some(open))),
                        Some(Piece::End) => None,
                        None => Some((Err(BrokenOff), None)),
                    }
                });
                let reply = warp::reply::stream(pieces).into_response();
                dressed(reply, self.status, content_type)
            }
        };
        for (name, value) in self.headers {
            reply.headers_mut().insert(name, value);
        }
        reply
    }
}

fn bytes(status: StatusCode, content_type: &'static str, body: &Value) -> Response {
    text(status, content_type, body.to_string())
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response {
    dressed(Plain::new(body).map(Into::into), status, content_type)
}

fn dressed(mut reply: Response, status: StatusCode, content_type: &'static str) -> Response {
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}
