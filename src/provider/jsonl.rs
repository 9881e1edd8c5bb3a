//! The provider's JSONL: input lines out, result lines in.
//!
//! Reading is split in two: [`LineReader`] finds the lines of a file in bounded memory, [`decode_line`] says
//! what one line means. Each line stands for itself, so a bad one spoils nothing.

mod answer;
mod peek;
mod reader;

use std::borrow::Cow;

use crate::domain::analysis::estimate_tokens;
use crate::domain::id::RequestId;
use crate::domain::nesting::is_deeper;
use crate::domain::request::{Answered, Endpoint, Failure, FailureClass, Outcome};
use crate::domain::retry::classify;

use peek::{Peek, number, peek, present, word};
pub use reader::{LINE_BYTES_MAX, LineReader, RawLine};

/// Deeper JSON is not passed on: readers behind us, serde_json too, refuse it.
pub const DEPTH_MAX: usize = 127;
/// A longer `custom_id` cannot be one of ours.
const CUSTOM_ID_BYTES_MAX: usize = 256;

/// What is fixed of a request's input line when it is made, so that it can be built again and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Length with the line end.
    pub line_bytes: u32,
    /// CRC32C.
    pub line_crc: u32,
    /// Estimated input tokens of the body.
    pub estimated_tokens: u32,
}

/// Measures the input line of a request.
pub fn measure(custom_id: RequestId, endpoint: Endpoint, body_json: &str) -> Measured {
    let line = input_line(custom_id, endpoint, body_json);
    Measured {
        line_bytes: u32::try_from(line.len()).unwrap_or(u32::MAX),
        line_crc: crc32c::crc32c(&line),
        estimated_tokens: estimate_tokens(body_json.len()),
    }
}

/// One line of an input file, with its line end. `body_json` is valid JSON and is written as it is; only
/// where it holds raw line breaks are its blanks between tokens dropped, so that it stays one line.
pub fn input_line(custom_id: RequestId, endpoint: Endpoint, body_json: &str) -> Vec<u8> {
    let mut line = Vec::with_capacity(body_json.len() + 128);
    line.extend_from_slice(b"{\"custom_id\":\"");
    line.extend_from_slice(custom_id.to_string().as_bytes());
    line.extend_from_slice(b"\",\"method\":\"POST\",\"url\":\"");
    line.extend_from_slice(endpoint.path().as_bytes());
    line.extend_from_slice(b"\",\"body\":");
    if body_json.bytes().any(|byte| byte == b'\n' || byte == b'\r') {
        push_on_one_line(&mut line, body_json);
    } else {
        line.extend_from_slice(body_json.as_bytes());
    }
    line.extend_from_slice(b"}\n");
    line
}

/// Drops blanks between tokens and keeps every token as it is written: numbers and escapes, too.
fn push_on_one_line(line: &mut Vec<u8>, json: &str) {
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            // No valid JSON has these inside a string; should they come, the line must still be one line.
            b'\n' if in_string => line.extend_from_slice(b"\\n"),
            b'\r' if in_string => line.extend_from_slice(b"\\r"),
            b' ' | b'\t' | b'\n' | b'\r' if !in_string => {}
            _ => line.push(byte),
        }
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else {
            in_string = byte == b'"';
        }
    }
}

/// What one line of a result file says.
#[allow(clippy::large_enum_variant, reason = "made one at a time and taken apart at once")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// What became of one request.
    Line {
        /// Whose line it is; whether it is one of ours is for the caller to see.
        custom_id: String,
        /// The provider's id of the line (`batch_req_…`).
        provider_id: Option<String>,
        /// What became of it.
        outcome: Outcome,
    },
    /// Nothing that can be relied on.
    Bad {
        /// What is wrong, in a few words.
        reason: &'static str,
        /// Whose line it seems to be. It may be cut off behind the id, so it says nothing about the outcome.
        custom_id: Option<String>,
    },
}

/// Reads one line of an output or error file; a byte order mark before it and a `\r` behind it do no harm.
pub fn decode_line(line: &[u8]) -> Decoded {
    let bad = |reason, custom_id| Decoded::Bad { reason, custom_id };
    let Ok(text) = std::str::from_utf8(line) else { return bad("not UTF-8", custom_id_in(line)) };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_ascii().is_empty() {
        return bad("empty line", None);
    }
    let Peek { values: [provider_id, custom_id, response, error], whole } =
        peek(text, ["id", "custom_id", "response", "error"]);
    let custom_id = custom_id.and_then(usable_id);
    if !whole {
        return bad("not a JSON object", custom_id);
    }
    let Some(custom_id) = custom_id else { return bad("no usable custom_id", None) };
    let response = present(response);
    if response.is_some_and(|response| !response.starts_with('{')) {
        return bad("response is not an object", Some(custom_id));
    }
    let outcome = outcome(response, error);
    Decoded::Line { custom_id, provider_id: provider_id.and_then(word), outcome }
}

/// Whose line it seems to be that cannot be read, or of which only the beginning is at hand. It says nothing
/// about the outcome.
pub fn custom_id_in(line: &[u8]) -> Option<String> {
    let readable = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&line[..error.valid_up_to()]).unwrap_or_default(),
    };
    let text = readable.strip_prefix('\u{feff}').unwrap_or(readable);
    peek(text, ["custom_id"]).values[0].and_then(usable_id)
}

fn usable_id(json: &str) -> Option<String> {
    word(json).filter(|id| id.len() <= CUSTOM_ID_BYTES_MAX)
}

/// `response.body` as it can come.
enum Body<'a> {
    /// Missing, null or empty.
    None,
    /// An object, perhaps out of a string.
    Object(Cow<'a, str>),
    /// Anything else.
    Other,
}

fn outcome(response: Option<&str>, error: Option<&str>) -> Outcome {
    let Peek { values: [status, request_id, body], .. } =
        peek(response.unwrap_or("{}"), ["status_code", "request_id", "body"]);
    let status = status.and_then(number).map(|status| u16::try_from(status).unwrap_or(0));
    let body = read_body(body);
    let mut answered = Answered { provider_request_id: request_id.and_then(word), ..Answered::default() };
    let error = error_in(error);
    let Body::Object(body) = body else {
        let failure = match (&body, error) {
            (_, Some(error)) => failure_from(status, error),
            (Body::Other, None) => {
                Failure::new(FailureClass::Unusable, "unreadable_body", "the body is no object")
            }
            (_, None) => failure_without_words(status, response.is_some()),
        };
        return Outcome { answered, result: Err(with_status(failure, status)) };
    };
    let peeked = answer::look_at(&body);
    peeked.fill(&mut answered);
    let good_status = status.is_none_or(|status| (200..300).contains(&status));
    let failure = match error {
        Some(error) => Some(failure_from(status, error)),
        None if !good_status => Some(failure_from(status, Words::from_text(&body))),
        // A failed response carries its `error` inside; it is an answer all the same, and was paid for.
        None if peeked.is_response => peeked.unusable(),
        None => match error_in(peeked.error.as_deref()) {
            Some(error) => Some(failure_from(status, error)),
            None => peeked.unusable(),
        },
    };
    let result = match failure {
        Some(failure) => Err(with_status(failure, status)),
        None if is_deeper(&body, DEPTH_MAX) => Err(with_status(
            Failure::new(FailureClass::Unusable, "too_deep", "the body is nested too deeply"),
            status,
        )),
        None => Ok(body.into_owned()),
    };
    Outcome { answered, result }
}

fn read_body(body: Option<&str>) -> Body<'_> {
    match present(body) {
        None => Body::None,
        Some(text) if text.starts_with('{') => Body::Object(Cow::Borrowed(text)),
        Some(text) if text.starts_with('"') => match serde_json::from_str::<String>(text) {
            Ok(inner) if inner.trim().is_empty() => Body::None,
            Ok(inner) if peek(&inner, []).whole => Body::Object(Cow::Owned(inner)),
            Ok(_) | Err(_) => Body::Other,
        },
        Some(_) => Body::Other,
    }
}

fn with_status(failure: Failure, status: Option<u16>) -> Failure {
    match (failure.http_status, status) {
        (None, Some(status)) => failure.with_status(status),
        (Some(_), _) | (None, None) => failure,
    }
}

/// No error and no body. With a good status the provider ran it, and what it said cannot be had: that is
/// lost, and only an operator buys it again. Everything else may go better another time.
fn failure_without_words(status: Option<u16>, has_response: bool) -> Failure {
    match status {
        Some(200..300) => {
            Failure::new(FailureClass::Lost, "empty_body", "the provider reports success and sends no body")
        }
        Some(status) => Failure::new(classify(Some(status), None, None), format!("http_{status}"), ""),
        None if has_response => Failure::new(FailureClass::Transient, "empty_response", ""),
        None => Failure::new(FailureClass::Transient, "empty_line", "neither a response nor an error"),
    }
}

/// What an error says, from whichever of its shapes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Words {
    code: Option<String>,
    kind: Option<String>,
    message: String,
    /// The HTTP status, where it stands only inside the error.
    status: Option<u16>,
}

impl Words {
    /// How often an error is unpacked from a message that is itself JSON.
    const UNPACK_MAX: usize = 3;

    fn from_text(text: &str) -> Self {
        Self::unpack(text, Self::UNPACK_MAX)
    }

    /// `text` is JSON: an object, or a string that is words or JSON in turn.
    fn unpack(text: &str, left: usize) -> Self {
        if !text.starts_with('{') {
            let message = serde_json::from_str::<String>(text).unwrap_or_else(|_| text.to_owned());
            return Self { message, ..Self::default() }.look_inside(left);
        }
        let Peek { values: [code, kind, message, error, detail, status, status_code], .. } =
            peek(text, ["code", "type", "message", "error", "detail", "status", "status_code"]);
        let status = status_code.or(status).and_then(number).and_then(|status| u16::try_from(status).ok());
        let inner = present(error).filter(|_| left > 0).map(|error| Self::unpack(error, left - 1));
        let message = present(message).or_else(|| present(detail));
        let own = Self {
            code: code.and_then(word),
            kind: kind.and_then(word).filter(|kind| kind != "None"),
            message: message.map(|words| word(words).unwrap_or_else(|| words.to_owned())).unwrap_or_default(),
            status,
        };
        inner.unwrap_or_default().or(&own).look_inside(left)
    }

    /// A message that is itself JSON, as some gateways pass it on, says more than what stands around it.
    fn look_inside(self, left: usize) -> Self {
        let start = self.message.trim_start();
        if left == 0 || !start.starts_with('{') || !peek(start, []).whole {
            return self;
        }
        Self::unpack(start, left - 1).or(&self)
    }

    /// Fills what is missing from what stands further out.
    fn or(mut self, outer: &Self) -> Self {
        self.code = self.code.or_else(|| outer.code.clone());
        self.kind = self.kind.or_else(|| outer.kind.clone());
        self.status = self.status.or(outer.status);
        if self.message.is_empty() {
            self.message.clone_from(&outer.message);
        }
        self
    }
}

/// The error in a member, unless it is missing, null, or an empty string or object.
fn error_in(member: Option<&str>) -> Option<Words> {
    let text = present(member)?;
    let empty = matches!(text, "\"\"" | "{}" | "false" | "[]");
    (!empty).then(|| Words::from_text(text))
}

fn failure_from(status: Option<u16>, words: Words) -> Failure {
    // The status around it, where it is a failure; otherwise the one inside.
    let known = status.filter(|status| *status >= 300).or(words.status);
    let class = classify(known, words.code.as_deref(), words.kind.as_deref());
    let is_status = |code: &String| code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit());
    let code = match (words.code, words.kind) {
        (Some(code), Some(kind)) if is_status(&code) => kind,
        (Some(code), _) => code,
        (None, Some(kind)) => kind,
        (None, None) => known.map_or_else(|| "unknown_error".to_owned(), |status| format!("http_{status}")),
    };
    let failure = Failure::new(class, code, words.message.trim());
    match known {
        Some(known) => failure.with_status(known),
        None => failure,
    }
}

#[cfg(test)]
mod tests;
