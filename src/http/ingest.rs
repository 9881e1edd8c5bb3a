//! Ingest: requests and sessions come in, one, many, or as a stream, and are stored before they are acknowledged.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use warp::http::StatusCode;
use warp::http::header::HeaderMap;

use super::Api;
use super::lines::{self, Body, JSON_BYTES_MAX, Json, Line, Lines, Shape};
use super::reply::ApiError;
use crate::actors::intake::{AcceptRequests, AcceptSessions, CHUNK, ChatSession, RequestIn};
use crate::domain::id::{CompanyId, Timestamp};
use crate::domain::request::Endpoint;
use crate::domain::session::{Message, Role, SessionFacts};
use crate::store::{Accepted, ClientKey, SessionTaken};

/// Errors that a reply tells of; the count goes on.
const ERRORS_MAX: usize = 1000;
/// Accepted lines that a reply names with their ids.
const IDS_MAX: usize = 1000;
/// Bytes that wait for the store at most.
const CHUNK_BYTES: usize = 8 << 20;
const ID_CHARS_MAX: usize = 256;
const MODEL_CHARS_MAX: usize = 128;
/// Readers of JSON give up at 128, and the line is one deeper than its body.
const DEPTH_MAX: usize = 100;
const METADATA_BYTES_MAX: usize = 16 << 10;

/// What becomes of a body, line by line.
#[derive(Default)]
struct Tally {
    accepted: u64,
    duplicate: u64,
    updated: u64,
    rejected: u64,
    errors: Vec<Value>,
    ids: Vec<Value>,
    ids_left_out: bool,
    /// The last line of what was stored; all before it are stored or refused.
    last_line: u64,
}

impl Tally {
    /// What an error tells of the lines before it: they are stored, whatever became of the rest.
    fn done(&self, with_updated: bool) -> Option<Map<String, Value>> {
        if self.last_line == 0 {
            return None;
        }
        let mut done = Map::new();
        done.insert("accepted".to_owned(), Value::from(self.accepted));
        done.insert("duplicate".to_owned(), Value::from(self.duplicate));
        done.insert("rejected".to_owned(), Value::from(self.rejected));
        done.insert("lastLine".to_owned(), Value::from(self.last_line));
        if with_updated {
            done.insert("updated".to_owned(), Value::from(self.updated));
        }
        Some(done)
    }

    fn reject(&mut self, line: u64, err: &LineError) {
        self.rejected += 1;
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(json!({ "line": line, "code": err.code, "detail": err.detail }));
        }
    }

    fn named(&mut self, line: u64, id: &str, what: &str) {
        if self.ids.len() < IDS_MAX {
            self.ids.push(json!({ "line": line, "id": id, "outcome": what }));
        } else {
            self.ids_left_out = true;
        }
    }

    fn reply(self, with_updated: bool) -> Value {
        let mut reply = json!({
            "ok": true,
            "accepted": self.accepted,
            "duplicate": self.duplicate,
            "rejected": self.rejected,
            "errors": self.errors,
        });
        if let Value::Object(fields) = &mut reply {
            if with_updated {
                fields.insert("updated".to_owned(), Value::from(self.updated));
            } else if !self.ids_left_out {
                fields.insert("requests".to_owned(), Value::Array(self.ids));
            }
        }
        reply
    }
}

/// Why a line is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LineError {
    code: &'static str,
    detail: String,
}

fn wrong(code: &'static str, detail: impl Into<String>) -> LineError {
    LineError { code, detail: detail.into() }
}

/// A kind of thing that comes in.
trait Kind {
    type Item;

    fn read(&self, line: u64, json: &[u8]) -> Result<(Self::Item, usize), LineError>;

    async fn store(
        &self,
        api: &Api,
        company: &CompanyId,
        items: Vec<(u64, Self::Item)>,
        tally: &mut Tally,
    ) -> Result<(), ApiError>;
}

/// `POST /api/v1/companies/{companyId}/requests`
pub async fn requests(
    api: &Api,
    company: &CompanyId,
    headers: &HeaderMap,
    body: Body,
) -> Result<(StatusCode, Value), ApiError> {
    let idempotency_key = match headers.get("idempotency-key").map(|value| value.to_str()) {
        None => None,
        Some(Ok(key)) if (1..=ID_CHARS_MAX).contains(&key.len()) => Some(key.to_owned()),
        Some(_) => {
            let detail = "Idempotency-Key must be 1 to 256 visible ASCII characters";
            return Err(ApiError::invalid("bad_idempotency_key", detail));
        }
    };
    let kind = Requests { idempotency_key, bytes_max: api.shared.limits.bytes_max };
    let mut tally = Tally::default();
    let taken = take_in(api, company, headers, body, &kind, &mut tally).await;
    answer(taken, tally, false)
}

/// `POST /api/v1/companies/{companyId}/sessions`
pub async fn sessions(
    api: &Api,
    company: &CompanyId,
    headers: &HeaderMap,
    body: Body,
) -> Result<(StatusCode, Value), ApiError> {
    let mut tally = Tally::default();
    let taken = take_in(api, company, headers, body, &Sessions, &mut tally).await;
    answer(taken, tally, true)
}

/// A single object that is refused is an error of the call; of many, each line is told.
fn answer(
    taken: Result<bool, ApiError>,
    tally: Tally,
    with_updated: bool,
) -> Result<(StatusCode, Value), ApiError> {
    let single = taken.map_err(|err| ApiError { done: tally.done(with_updated), ..err })?;
    if let (true, Some(error)) = (single, tally.errors.first()) {
        let detail = error.get("detail").and_then(Value::as_str).unwrap_or_default().to_owned();
        return Err(match error.get("code").and_then(Value::as_str) {
            Some("conflict") => ApiError::new(StatusCode::CONFLICT, "conflict", detail),
            Some("too_large") => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail),
            Some(_) | None => ApiError::invalid("invalid_request", detail),
        });
    }
    Ok((StatusCode::OK, tally.reply(with_updated)))
}

async fn take_in<K: Kind>(
    api: &Api,
    company: &CompanyId,
    headers: &HeaderMap,
    body: Body,
    kind: &K,
    tally: &mut Tally,
) -> Result<bool, ApiError> {
    let mut chunk = Chunk { items: Vec::new(), bytes: 0 };
    match Shape::of(headers)? {
        Shape::Lines => {
            let mut lines = Lines::new(body);
            while let Some((number, line)) = lines.next().await? {
                match line {
                    Line::Whole(json) => chunk.add(kind, number, &json, tally),
                    Line::TooLong => {
                        let detail = format!("the line is longer than {} bytes", lines::LINE_BYTES_MAX);
                        tally.reject(number, &wrong("too_large", detail));
                    }
                }
                chunk.store_if_full(api, company, kind, tally).await?;
            }
            chunk.store(api, company, kind, tally).await?;
            Ok(false)
        }
        Shape::Json => {
            let body = super::read_whole(body, JSON_BYTES_MAX).await?;
            match lines::json(&body)? {
                Json::One(json) => {
                    chunk.add(kind, 1, json.get().as_bytes(), tally);
                    chunk.store(api, company, kind, tally).await?;
                    Ok(true)
                }
                Json::Many(entries) => {
                    for (number, json) in (1..).zip(&entries) {
                        chunk.add(kind, number, json.get().as_bytes(), tally);
                        chunk.store_if_full(api, company, kind, tally).await?;
                        if number % 256 == 0 {
                            // Refused entries alone would never let go of the thread.
                            tokio::task::yield_now().await;
                        }
                    }
                    chunk.store(api, company, kind, tally).await?;
                    Ok(false)
                }
            }
        }
    }
}

/// What was read and is not stored yet.
struct Chunk<T> {
    items: Vec<(u64, T)>,
    bytes: usize,
}

impl<T> Chunk<T> {
    fn add<K: Kind<Item = T>>(&mut self, kind: &K, number: u64, json: &[u8], tally: &mut Tally) {
        match kind.read(number, json) {
            Ok((item, bytes)) => {
                self.items.push((number, item));
                self.bytes += bytes;
            }
            Err(err) => tally.reject(number, &err),
        }
    }

    async fn store_if_full<K: Kind<Item = T>>(
        &mut self,
        api: &Api,
        company: &CompanyId,
        kind: &K,
        tally: &mut Tally,
    ) -> Result<(), ApiError> {
        if self.items.len() >= CHUNK || self.bytes >= CHUNK_BYTES {
            self.store(api, company, kind, tally).await?;
        }
        Ok(())
    }

    async fn store<K: Kind<Item = T>>(
        &mut self,
        api: &Api,
        company: &CompanyId,
        kind: &K,
        tally: &mut Tally,
    ) -> Result<(), ApiError> {
        self.bytes = 0;
        let items = std::mem::take(&mut self.items);
        let Some((last, _)) = items.last() else { return Ok(()) };
        let last = *last;
        kind.store(api, company, items, tally).await?;
        tally.last_line = last;
        Ok(())
    }
}

struct Requests {
    idempotency_key: Option<String>,
    bytes_max: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RequestLine<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    endpoint: Option<Cow<'a, str>>,
    #[serde(borrow)]
    body: &'a RawValue,
    metadata: Option<std::collections::BTreeMap<String, String>>,
    priority: Option<i8>,
    #[serde(borrow)]
    not_before: Option<Cow<'a, str>>,
}

impl Kind for Requests {
    type Item = RequestIn;

    fn read(&self, number: u64, json: &[u8]) -> Result<(RequestIn, usize), LineError> {
        let line: RequestLine<'_> = serde_json::from_slice(json).map_err(|err| line_error(&err))?;
        let endpoint = match line.endpoint.as_deref() {
            None => Endpoint::ChatCompletions,
            Some(path) => path.parse().map_err(|()| {
                let known = Endpoint::ALL.map(Endpoint::path).join(", ");
                wrong("invalid_request", format!("endpoint must be one of {known}"))
            })?,
        };
        let (model, body) = check_body(endpoint, line.body)?;
        // What is around the body in its line is well under a kilobyte.
        if body.len() as u64 + 1024 > self.bytes_max {
            let detail = format!("the body is longer than a whole batch may be ({} bytes)", self.bytes_max);
            return Err(wrong("too_large", detail));
        }
        let key = match line.id {
            Some(id) if id.is_empty() || id.chars().count() > ID_CHARS_MAX => {
                return Err(wrong("invalid_request", "id must have 1 to 256 characters"));
            }
            Some(id) => Some(ClientKey::Id(id.into_owned())),
            None => self
                .idempotency_key
                .clone()
                .map(|idempotency_key| ClientKey::Line { idempotency_key, line: number }),
        };
        let not_before = line.not_before.as_deref().map(|text| time("notBefore", text)).transpose()?;
        let metadata = line.metadata.as_ref().map(|pairs| json!(pairs).to_string());
        if metadata.as_ref().is_some_and(|text| text.len() > METADATA_BYTES_MAX) {
            return Err(wrong(
                "invalid_request",
                format!("metadata is longer than {METADATA_BYTES_MAX} bytes"),
            ));
        }
        let bytes = body.len();
        let priority = line.priority.unwrap_or(0);
        Ok((RequestIn { key, endpoint, model, body, metadata, priority, not_before }, bytes))
    }

    async fn store(
        &self,
        api: &Api,
        company: &CompanyId,
        items: Vec<(u64, RequestIn)>,
        tally: &mut Tally,
    ) -> Result<(), ApiError> {
        let (numbers, requests): (Vec<_>, Vec<_>) = items.into_iter().unzip();
        let asked = AcceptRequests { company: company.clone(), requests };
        let accepted = api.intake.send(asked).await??;
        for (number, accepted) in numbers.into_iter().zip(accepted) {
            match accepted {
                Accepted::New(id) => {
                    tally.accepted += 1;
                    tally.named(number, &id.to_string(), "accepted");
                }
                Accepted::Duplicate(id) => {
                    tally.duplicate += 1;
                    tally.named(number, &id.to_string(), "duplicate");
                }
                Accepted::Conflict(id) => {
                    let detail = format!("request {id} has this key and other content");
                    tally.reject(number, &wrong("conflict", detail));
                }
            }
        }
        Ok(())
    }
}

/// For the fuzz targets: the model and the body of a line, or the code of the refusal.
pub(super) fn read_request(json: &[u8]) -> Result<(String, String), &'static str> {
    let kind = Requests { idempotency_key: None, bytes_max: 1 << 20 };
    kind.read(1, json).map(|(request, _)| (request.model, request.body)).map_err(|err| err.code)
}

/// For the fuzz targets: how many messages a line has, or the code of the refusal.
pub(super) fn read_session(json: &[u8]) -> Result<usize, &'static str> {
    let read = Sessions.read(1, json).map_err(|err| err.code)?;
    Ok(read.0.messages.map_or(0, |messages| messages.len()))
}

#[derive(Deserialize)]
struct BodyPeek<'a> {
    model: Option<Value>,
    stream: Option<Value>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    input: Option<Value>,
}

/// The rules of contract section 3.1: one bad line would fail a whole batch. Returns the model, and the body as it
/// came.
fn check_body(endpoint: Endpoint, body: &RawValue) -> Result<(String, String), LineError> {
    let invalid = |detail: String| wrong("invalid_request", detail);
    let text = body.get();
    if !text.starts_with('{') {
        return Err(invalid("body must be an object".to_owned()));
    }
    if depth(text) > DEPTH_MAX {
        return Err(invalid(format!("body is nested more than {DEPTH_MAX} deep")));
    }
    // Reading it whole finds what a look at the outline does not: escapes that are no characters, for instance.
    let whole: Value = serde_json::from_str(text).map_err(|err| invalid(format!("body: {}", place(&err))))?;
    let peek: BodyPeek<'_> =
        serde_json::from_str(text).map_err(|err| invalid(format!("body: {}", place(&err))))?;
    let model = match peek.model {
        Some(Value::String(model)) if (1..=MODEL_CHARS_MAX).contains(&model.chars().count()) => model,
        Some(_) => {
            return Err(invalid(format!("body.model must be a text of 1 to {MODEL_CHARS_MAX} characters")));
        }
        None => return Err(invalid("body.model is missing".to_owned())),
    };
    if peek.stream.is_some_and(|stream| stream != Value::Bool(false) && !stream.is_null()) {
        return Err(invalid("body.stream cannot be used in a batch; leave it out".to_owned()));
    }
    match endpoint {
        Endpoint::ChatCompletions => {
            match peek.messages.map(|raw| serde_json::from_str::<Vec<Value>>(raw.get())) {
                Some(Ok(messages)) if !messages.is_empty() && messages.iter().all(Value::is_object) => {}
                Some(_) => {
                    return Err(invalid("body.messages must be a list of at least one message".to_owned()));
                }
                None => return Err(invalid("body.messages is missing".to_owned())),
            }
        }
        Endpoint::Responses => match peek.input {
            None if whole.get("prompt").is_some() => {}
            Some(Value::String(text)) if !text.is_empty() => {}
            Some(Value::Array(items)) if !items.is_empty() => {}
            Some(_) => {
                return Err(invalid("body.input must be a text or a list that is not empty".to_owned()));
            }
            None => return Err(invalid("body.input is missing".to_owned())),
        },
        Endpoint::Embeddings => match peek.input {
            Some(Value::String(text)) if !text.is_empty() => {}
            // The provider takes 2,048, but one line must bring all their vectors home.
            Some(Value::Array(items)) if (1..=1024).contains(&items.len()) => {}
            Some(_) => {
                return Err(invalid("body.input must be a text or a list of 1 to 1,024 inputs".to_owned()));
            }
            None => return Err(invalid("body.input is missing".to_owned())),
        },
    }
    // Byte for byte as it came: the order of its keys and the digits of its numbers are the client's.
    Ok((model, text.to_owned()))
}

/// How deep objects and lists lie in one another.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

struct Sessions;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SessionLine {
    external_id: String,
    started_at: Option<String>,
    ended_at: Option<String>,
    language: Option<String>,
    country: Option<String>,
    /// Null where the transcript could not be had.
    messages: Option<Vec<MessageLine>>,
    facts: Option<FactsLine>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageLine {
    role: String,
    content: String,
    at: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct FactsLine {
    ip_address: Option<String>,
    messages_sent: Option<u64>,
    sentiment: Option<String>,
    escalated: Option<bool>,
    forwarded_hr: Option<bool>,
    transcript: Option<String>,
    avg_response_ms: Option<u64>,
    tokens: Option<u64>,
    tokens_eur_micros: Option<u64>,
    category: Option<String>,
    first_message: Option<String>,
}

impl Kind for Sessions {
    type Item = ChatSession;

    fn read(&self, _: u64, json: &[u8]) -> Result<(ChatSession, usize), LineError> {
        let line: SessionLine = serde_json::from_slice(json).map_err(|err| line_error(&err))?;
        if line.external_id.is_empty() || line.external_id.chars().count() > ID_CHARS_MAX {
            return Err(wrong("invalid_session", "externalId must have 1 to 256 characters"));
        }
        let facts = line.facts.unwrap_or_default();
        let at = |name: &str, text: Option<String>| text.map(|text| time(name, &text)).transpose();
        let facts = SessionFacts {
            started_at: at("startedAt", line.started_at)?,
            ended_at: at("endedAt", line.ended_at)?,
            ip_address: facts.ip_address,
            country: line.country,
            language: line.language,
            messages_sent: facts.messages_sent,
            sentiment: facts.sentiment,
            escalated: facts.escalated,
            forwarded_hr: facts.forwarded_hr,
            transcript: facts.transcript,
            avg_response_ms: facts.avg_response_ms,
            tokens: facts.tokens,
            tokens_eur_micros: facts.tokens_eur_micros,
            category: facts.category,
            first_message: facts.first_message,
        };
        let messages = match line.messages {
            None => None,
            Some(messages) => Some(messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?),
        };
        Ok((ChatSession { external_id: line.external_id, facts, messages }, json.len()))
    }

    async fn store(
        &self,
        api: &Api,
        company: &CompanyId,
        items: Vec<(u64, ChatSession)>,
        tally: &mut Tally,
    ) -> Result<(), ApiError> {
        let (lines, sessions): (Vec<u64>, Vec<ChatSession>) = items.into_iter().unzip();
        let taken = api.intake.send(AcceptSessions { company: company.clone(), sessions }).await??;
        for (line, taken) in lines.into_iter().zip(taken) {
            match taken {
                SessionTaken::Erased => {
                    tally.reject(line, &wrong("erased", "this session was erased and is not taken in again"));
                }
                SessionTaken::New | SessionTaken::Changed => tally.accepted += 1,
                SessionTaken::Updated => tally.updated += 1,
                SessionTaken::Unchanged => tally.duplicate += 1,
            }
        }
        Ok(())
    }
}

fn message(line: MessageLine) -> Result<Message, LineError> {
    let role = match line.role.as_str() {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        _ => return Err(wrong("invalid_session", "a message's role must be user, assistant or system")),
    };
    let at = line.at.as_deref().map(|text| time("at", text)).transpose()?;
    Ok(Message { role, at, text: line.content })
}

fn time(name: &str, text: &str) -> Result<Timestamp, LineError> {
    match text.parse::<jiff::Timestamp>() {
        Ok(at) => Ok(Timestamp::from_millis(at.as_millisecond())),
        Err(_) => Err(wrong("invalid_request", format!("{name} must be a time as in 2026-11-24T08:00:00Z"))),
    }
}

fn line_error(err: &serde_json::Error) -> LineError {
    let code = if err.is_data() { "invalid_request" } else { "invalid_json" };
    wrong(code, place(err))
}

/// What serde says, without the line number, which is the body's and would be taken for the file's.
fn place(err: &serde_json::Error) -> String {
    let text = err.to_string();
    match text.rfind(" at line ") {
        Some(end) => format!("{} (column {})", &text[..end], err.column()),
        None => text,
    }
}
