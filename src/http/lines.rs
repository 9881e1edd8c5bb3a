//! A body as a sequence of JSON texts: one object, an array, or lines of any number, as they arrive.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use serde_json::value::RawValue;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderMap};

use super::reply::ApiError;
use crate::domain::entries::Entries;
use crate::serving::BodyError;

/// A body with its bounds already around it.
pub type Body = Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>;

/// A longer line is refused and the stream goes on behind it.
pub const LINE_BYTES_MAX: usize = 4 << 20;
/// A longer JSON body is refused: lines have no such bound.
pub const JSON_BYTES_MAX: u64 = 16 << 20;

/// Some programs begin every text with it. It is no part of JSON, and says nothing of what follows.
pub const BOM: &[u8] = b"\xef\xbb\xbf";

/// A longer array is refused: each entry costs memory of its own.
pub const ENTRIES_MAX: usize = 100_000;

/// How a body is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `application/json`: one object or an array.
    Json,
    /// `application/x-ndjson`: one object a line.
    Lines,
    /// `text/csv`: an export.
    Csv,
}

impl Shape {
    /// By the content type; 415 for others.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let essence = value.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => Ok(Self::Json),
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines" => Ok(Self::Lines),
            "text/csv" => Ok(Self::Csv),
            _ => Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "send application/json (an object or an array), application/x-ndjson (an object a line), or sessions as \
                 text/csv",
            )),
        }
    }
}

/// The error of a body that did not come whole.
pub fn body_error(err: &BodyError) -> ApiError {
    match err {
        BodyError::TooLarge { limit } => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("the body is larger than {limit} bytes; send many objects as application/x-ndjson"),
        ),
        BodyError::Undecodable { .. } => {
            ApiError::new(StatusCode::BAD_REQUEST, "bad_content_encoding", err.to_string())
        }
        BodyError::Expands { .. } => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("{err}; send it in smaller parts, or as it is"),
        ),
        BodyError::TooSlow => {
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the body did not come in time")
        }
        BodyError::OverQuota => ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", err.to_string()),
        BodyError::Broken(_) => ApiError::new(StatusCode::BAD_REQUEST, "broken_body", "the body broke off"),
    }
}

/// Whether the whole body is one object, or its entries if it is an array, as they stand in it.
pub enum Json<'a> {
    /// One object.
    One(&'a RawValue),
    /// The entries of an array.
    Many(Vec<&'a RawValue>),
}

/// Reads a JSON body.
pub fn json(body: &[u8]) -> Result<Json<'_>, ApiError> {
    let body = body.strip_prefix(BOM).unwrap_or(body);
    let bad = |err: serde_json::Error| {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not JSON: {err}"))
    };
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'[') {
        return match serde_json::from_slice::<Entries<'_, ENTRIES_MAX>>(body) {
            Ok(Entries(entries)) if entries.len() <= ENTRIES_MAX => Ok(Json::Many(entries)),
            Ok(_) => Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                format!("an array may have {ENTRIES_MAX} entries; send more as application/x-ndjson"),
            )),
            Err(err) => Err(bad(err)),
        };
    }
    serde_json::from_slice(body).map(Json::One).map_err(bad)
}

/// One line of a body.
pub enum Line {
    /// A line as it stands; blank ones are passed over.
    Whole(Vec<u8>),
    /// A line above the bound.
    TooLong,
}

/// Splits a body at its line ends.
pub struct Lines {
    body: Body,
    buffer: BytesMut,
    /// So much of the buffer is known to have no line end.
    searched: usize,
    skipping: bool,
    ended: bool,
    /// The number of the line that comes next, from 1.
    next: u64,
}

impl Lines {
    /// The lines of `body`.
    pub fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0, skipping: false, ended: false, next: 1 }
    }

    /// The next line that is not blank, with its number.
    pub async fn next(&mut self) -> Result<Option<(u64, Line)>, ApiError> {
        loop {
            let fresh = self.buffer.iter().skip(self.searched).position(|byte| *byte == b'\n');
            if let Some(end) = fresh.map(|end| end + self.searched) {
                self.searched = 0;
                let line = self.buffer.split_to(end + 1);
                let line = line.get(..end).unwrap_or_default();
                if let Some(found) = self.take(line.to_vec()) {
                    return Ok(Some(found));
                }
                continue;
            }
            self.searched = self.buffer.len();
            if self.skipping || self.buffer.len() > LINE_BYTES_MAX {
                self.skipping = true;
                self.buffer.clear();
                self.searched = 0;
            }
            if self.ended {
                if self.buffer.is_empty() && !self.skipping {
                    return Ok(None);
                }
                let line = std::mem::take(&mut self.buffer).to_vec();
                match self.take(line) {
                    Some(found) => return Ok(Some(found)),
                    None => continue,
                }
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(err)) => return Err(body_error(&err)),
                None => self.ended = true,
            }
        }
    }

    fn take(&mut self, mut line: Vec<u8>) -> Option<(u64, Line)> {
        let number = self.next;
        self.next += 1;
        if number == 1 && line.starts_with(BOM) {
            line.drain(..BOM.len());
        }
        if std::mem::take(&mut self.skipping) || line.len() > LINE_BYTES_MAX {
            return Some((number, Line::TooLong));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        Some((number, Line::Whole(line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(chunks: Vec<Vec<u8>>) -> Vec<(u64, Option<String>)> {
        let body = futures_util::stream::iter(chunks.into_iter().map(|chunk| Ok(Bytes::from(chunk))));
        let mut lines = Lines::new(Box::pin(body));
        let mut read = Vec::new();
        while let Some((number, line)) = lines.next().await.unwrap() {
            read.push((
                number,
                match line {
                    Line::Whole(line) => Some(String::from_utf8(line).unwrap()),
                    Line::TooLong => None,
                },
            ));
        }
        read
    }

    #[tokio::test]
    async fn lines_are_the_same_however_the_body_is_cut() {
        let text = b"{\"a\":1}\r\n\n  \n{\"b\":2}\n{\"c\":3}";
        let whole = read(vec![text.to_vec()]).await;
        let text_of = |text: &str| Some(text.to_owned());
        assert_eq!(
            whole,
            [(1, text_of("{\"a\":1}\r")), (4, text_of("{\"b\":2}")), (5, text_of("{\"c\":3}"))]
        );
        for text in [text.to_vec(), [BOM, text].concat()] {
            for cut in 0..text.len() {
                assert_eq!(read(vec![text[..cut].to_vec(), text[cut..].to_vec()]).await, whole);
            }
        }
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_passed_over_and_the_next_one_is_read() {
        let long = vec![b'x'; LINE_BYTES_MAX / 2 + 1];
        let chunks = vec![b"a\n".to_vec(), long.clone(), long.clone(), long, b"\nb\n".to_vec()];
        let read = read(chunks).await;
        assert_eq!(read, [(1, Some("a".to_owned())), (2, None), (3, Some("b".to_owned()))]);
    }
}
