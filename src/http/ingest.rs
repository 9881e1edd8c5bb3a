//! Ingest: requests and sessions come in, one, many, or as a stream, and are stored before they are acknowledged.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value, json};
use tokio::time::{Instant, timeout_at};
use warp::http::StatusCode;
use warp::http::header::{CONTENT_ENCODING, HeaderMap};

use super::Api;
use super::body::{self, Object};
use super::lines::{self, Body, JSON_BYTES_MAX, Json, Line, Lines, Shape};
use super::reply::{Answer, ApiError};
use super::request_body::{Checked, check};
use super::{auth, csv, encoding, still_good};
use crate::actors::intake::{AcceptRequests, AcceptSessions, CHUNK, CHUNK_BYTES, ChatSession, RequestIn};
use crate::domain::id::{CompanyId, Timestamp};
use crate::domain::line_ends;
use crate::domain::request::Endpoint;
use crate::domain::session::{Message, Role, SessionFacts};
use crate::import::csv::{ID_CHARS_MAX, Row, is_id};
use crate::serving::BodyError;
use crate::store::{Accepted, CallLine, ClientKey, GROUPS_OF_ONE_MAX, SessionTaken};

/// Errors that a reply tells of; the count goes on.
const ERRORS_MAX: usize = 1000;
/// Accepted lines that a reply names with their ids.
const IDS_MAX: usize = 1000;
/// It lies in one value with everything else that is known of a request or session.
const METADATA_BYTES_MAX: usize = 4 << 10;

/// What becomes of a body, line by line.
#[derive(Default)]
struct Tally {
    accepted: u64,
    duplicate: u64,
    updated: u64,
    rejected: u64,
    errors: Vec<Value>,
    /// The first of them.
    first_error: Option<LineError>,
    ids: Vec<Value>,
    ids_left_out: bool,
    /// Of it and of every line before it is known what became of it: they are stored or refused.
    last_line: u64,
    /// How many were refused by then. Those behind it are told again once a client goes on behind it.
    rejected_by_then: u64,
}

impl Tally {
    /// What an error tells of the lines before it: they are stored or refused, whatever became of the rest.
    fn done(&self, with_updated: bool) -> Option<Map<String, Value>> {
        if self.last_line == 0 {
            return None;
        }
        let mut done = Map::new();
        done.insert("accepted".to_owned(), Value::from(self.accepted));
        done.insert("duplicate".to_owned(), Value::from(self.duplicate));
        done.insert("rejected".to_owned(), Value::from(self.rejected_by_then));
        done.insert("lastLine".to_owned(), Value::from(self.last_line));
        let known = |error: &&Value| error["line"].as_u64().is_some_and(|line| line <= self.last_line);
        done.insert("errors".to_owned(), self.errors.iter().filter(known).cloned().collect());
        if with_updated {
            done.insert("updated".to_owned(), Value::from(self.updated));
        }
        Some(done)
    }

    fn reject(&mut self, line: u64, err: &LineError) {
        self.rejected += 1;
        if self.first_error.is_none() {
            self.first_error = Some(err.clone());
        }
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(json!({ "line": line, "code": err.code, "detail": err.detail }));
        }
    }

    /// Nothing up to this line waits any more.
    fn settled(&mut self, line: u64) {
        (self.last_line, self.rejected_by_then) = (line, self.rejected);
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
pub(super) struct LineError {
    pub(super) code: &'static str,
    pub(super) detail: String,
}

/// More of what is wrong is not told: a reader quotes what it does not like, and that may be the whole line.
const DETAIL_CHARS_MAX: usize = 300;

pub(super) fn wrong(code: &'static str, detail: impl Into<String>) -> LineError {
    let mut detail: String = detail.into();
    if let Some((end, _)) = detail.char_indices().nth(DETAIL_CHARS_MAX) {
        detail.truncate(end);
        detail.push('…');
    }
    LineError { code, detail }
}

/// A kind of thing that comes in.
trait Kind {
    type Item;

    fn read(&self, line: u64, json: &[u8]) -> Result<(Self::Item, usize), LineError>;

    /// The zone of times without an offset, where such things come as exports, too.
    fn csv_zone(&self) -> Option<TimeZone> {
        None
    }

    /// An item from a row of an export.
    fn of_row(&self, _: u64, _: Row) -> Result<(Self::Item, usize), LineError> {
        Err(wrong("invalid_row", "rows are sessions"))
    }

    async fn store(
        &self,
        api: &Api,
        company: &CompanyId,
        items: Vec<(u64, Self::Item)>,
        tally: &mut Tally,
    ) -> Result<(), ApiError>;
}

/// `POST /api/v1/companies/{companyId}/requests`, and `…/sessions`
pub async fn take(
    api: &Api,
    company: &CompanyId,
    headers: &HeaderMap,
    body: Body,
    sessions: bool,
) -> Result<Answer, ApiError> {
    let clock = api.shared.clock.as_ref();
    let idempotency_key = idempotency_key(headers)?;
    let _running = api.limiter.enter(clock, company)?;
    api.limiter.call(clock, company)?;
    // What is packed counts both as it comes and as it is: an endless body that unpacks to nothing has an end, too.
    let packed = headers.contains_key(CONTENT_ENCODING);
    let body = if packed { counted(api, company, body) } else { body };
    let body = counted(api, company, encoding::decoded(headers, body)?);
    let mut tally = Tally::default();
    let taken = if sessions {
        let kind = Sessions { idempotency_key, zone: api.shared.time_zone.clone() };
        take_in(api, company, headers, body, &kind, &mut tally).await
    } else {
        let kind = Requests { idempotency_key, bytes_max: api.shared.limits.bytes_max };
        take_in(api, company, headers, body, &kind, &mut tally).await
    };
    let left = || api.limiter.headers(clock, company);
    match answer(taken, tally, sessions) {
        Ok(answer) => Ok(Answer::from(answer).with(left())),
        // A body that went over its bound is refused like a call that does, with what was stored of it.
        Err(err) if err.code == "rate_limited" && err.retry_after.is_none() => {
            let refusal = api.limiter.over(clock, company);
            Err(ApiError { done: err.done, ..refusal })
        }
        Err(err) if err.headers.is_empty() => Err(ApiError { headers: left(), ..err }),
        Err(err) => Err(err),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    match headers.get("idempotency-key").map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok(key)) if (1..=ID_CHARS_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        Some(_) => {
            let detail = "Idempotency-Key must be 1 to 256 visible ASCII characters";
            Err(ApiError::invalid("bad_idempotency_key", detail))
        }
    }
}

/// By what a line is known again.
fn call_line(idempotency_key: Option<&String>, line: u64) -> Option<CallLine> {
    idempotency_key.map(|key| CallLine { idempotency_key: key.clone(), line })
}

/// The body, whose bytes count for the company.
fn counted(api: &Api, company: &CompanyId, body: Body) -> Body {
    let (limiter, clock, company) = (api.limiter.clone(), api.shared.clock.clone(), company.clone());
    Box::pin(body.map(move |piece| {
        let piece = piece?;
        match limiter.bytes(clock.as_ref(), &company, piece.len()) {
            Ok(()) => Ok(piece),
            Err(_) => Err(BodyError::OverQuota),
        }
    }))
}

/// A single object that is refused is an error of the call; of many, each line is told.
fn answer(
    taken: Result<bool, ApiError>,
    tally: Tally,
    with_updated: bool,
) -> Result<(StatusCode, Value), ApiError> {
    let single = taken.map_err(|err| ApiError { done: tally.done(with_updated), ..err })?;
    if let (true, Some(LineError { code, detail })) = (single, &tally.first_error) {
        let status = match *code {
            "conflict" => StatusCode::CONFLICT,
            "too_large" => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        return Err(ApiError::new(status, code, detail));
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
    let mut chunk =
        Chunk { items: Vec::new(), bytes: 0, since: None, looked_at: 0, token: auth::presented(headers) };
    match Shape::of(headers)? {
        Shape::Lines => {
            let mut lines = Lines::new(body);
            loop {
                let next = match soon(&chunk, lines.next()).await {
                    None => {
                        chunk.store(api, company, kind, tally).await?;
                        continue;
                    }
                    // What came whole is taken in, whatever became of the rest.
                    Some(Err(err)) => {
                        chunk.store(api, company, kind, tally).await?;
                        return Err(err);
                    }
                    Some(Ok(next)) => next,
                };
                let Some((number, line)) = next else { break };
                chunk.looked_at = number;
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
        Shape::Csv => {
            let Some(zone) = kind.csv_zone() else {
                let detail =
                    "requests come as application/json or application/x-ndjson; text/csv is for sessions";
                let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
                return Err(ApiError::new(status, "unsupported_media_type", detail));
            };
            let mut rows = csv::rows(body, zone);
            loop {
                let Some(next) = soon(&chunk, rows.next()).await else {
                    chunk.store(api, company, kind, tally).await?;
                    continue;
                };
                let Some((number, row)) = next else { break };
                chunk.looked_at = number;
                match row
                    .map_err(|reason| wrong("invalid_row", reason))
                    .and_then(|row| kind.of_row(number, row))
                {
                    Ok((item, bytes)) => chunk.push(number, item, bytes),
                    Err(err) => tally.reject(number, &err),
                }
                chunk.store_if_full(api, company, kind, tally).await?;
            }
            chunk.store(api, company, kind, tally).await?;
            rows.ended()?;
            Ok(false)
        }
        Shape::Json => {
            let (body, _held) = body::large(body, JSON_BYTES_MAX, &api.room).await?;
            match lines::json(&body)? {
                Json::One(json) => {
                    chunk.looked_at = 1;
                    chunk.add(kind, 1, json.get().as_bytes(), tally);
                    chunk.store(api, company, kind, tally).await?;
                    Ok(true)
                }
                Json::Many(entries) => {
                    for (number, json) in (1..).zip(entries) {
                        chunk.looked_at = number;
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

/// What was read is stored by then, also where the sender is slow.
const STORED_WITHIN: Duration = Duration::from_secs(1);

/// What `next` gives, which may be begun anew; none where what was read before has waited long enough.
async fn soon<T, N>(chunk: &Chunk<T>, next: impl Future<Output = N>) -> Option<N> {
    match chunk.since {
        None => Some(next.await),
        Some(since) => timeout_at(since + STORED_WITHIN, next).await.ok(),
    }
}

/// What was read and is not stored yet.
struct Chunk<T> {
    items: Vec<(u64, T)>,
    bytes: usize,
    /// When the first of them was read.
    since: Option<Instant>,
    /// The last line that was read, whether it is in here or was refused.
    looked_at: u64,
    /// The hash of the caller's, which may end while the body comes.
    token: Option<[u8; 32]>,
}

impl<T> Chunk<T> {
    fn add<K: Kind<Item = T>>(&mut self, kind: &K, number: u64, json: &[u8], tally: &mut Tally) {
        if json.len() > lines::LINE_BYTES_MAX {
            let detail = format!("it is longer than {} bytes", lines::LINE_BYTES_MAX);
            return tally.reject(number, &wrong("too_large", detail));
        }
        match kind.read(number, json) {
            Ok((item, bytes)) => self.push(number, item, bytes),
            Err(err) => tally.reject(number, &err),
        }
    }

    fn push(&mut self, number: u64, item: T, bytes: usize) {
        self.items.push((number, item));
        self.bytes += bytes;
        self.since.get_or_insert_with(Instant::now);
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
        } else if self.items.is_empty() {
            tally.settled(self.looked_at);
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
        (self.bytes, self.since) = (0, None);
        let items = std::mem::take(&mut self.items);
        if !items.is_empty() {
            still_good(api, self.token).await?;
            kind.store(api, company, items, tally).await?;
        }
        tally.settled(self.looked_at);
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
    metadata: Option<BTreeMap<String, String>>,
    priority: Option<Number>,
    #[serde(borrow)]
    not_before: Option<Cow<'a, str>>,
}

impl Kind for Requests {
    type Item = RequestIn;

    fn read(&self, number: u64, json: &[u8]) -> Result<(RequestIn, usize), LineError> {
        let Object(line): Object<RequestLine<'_>> =
            serde_json::from_slice(json).map_err(|err| line_error(&err))?;
        let endpoint = match line.endpoint.as_deref() {
            None => Endpoint::ChatCompletions,
            Some(path) => path.parse().map_err(|()| {
                let known = Endpoint::ALL.map(Endpoint::path).join(", ");
                wrong("invalid_request", format!("endpoint must be one of {known}"))
            })?,
        };
        let Checked { model, body, output_max, inputs } = check(endpoint, line.body)?;
        // What is around the body in its line is well under a kilobyte.
        if line_ends::escape(&body, &line_ends::ALL).len() as u64 + 1024 > self.bytes_max {
            let detail = format!("the body is longer than a whole batch may be ({} bytes)", self.bytes_max);
            return Err(wrong("too_large", detail));
        }
        let key = match line.id {
            Some(id) if !is_id(&id) => {
                return Err(wrong(
                    "invalid_request",
                    "id must have 1 to 256 characters, none of them a control character",
                ));
            }
            Some(id) => Some(ClientKey::Id(id.into_owned())),
            None => call_line(self.idempotency_key.as_ref(), number).map(ClientKey::Line),
        };
        let not_before = line.not_before.as_deref().map(|text| time("notBefore", text)).transpose()?;
        let metadata = metadata(line.metadata.as_ref())?;
        let bytes = body.len();
        let priority = line.priority.as_ref().map_or(Ok(0), priority)?;
        Ok((
            RequestIn { key, endpoint, model, body, metadata, output_max, inputs, priority, not_before },
            bytes,
        ))
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
        let accepted = api.parts.intake.send(asked).await??;
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
                Accepted::TooManyGroups => {
                    let detail = format!(
                        "requests for {GROUPS_OF_ONE_MAX} other models and endpoints wait already; send it again once some are through"
                    );
                    tally.reject(number, &wrong("too_many_models", detail));
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
    let read =
        Sessions { idempotency_key: None, zone: TimeZone::UTC }.read(1, json).map_err(|err| err.code)?;
    Ok(read.0.messages.map_or(0, |messages| messages.len()))
}

struct Sessions {
    idempotency_key: Option<String>,
    /// Of times in an export that have no offset.
    zone: TimeZone,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SessionLine {
    external_id: String,
    started_at: Option<String>,
    ended_at: Option<String>,
    language: Option<String>,
    country: Option<String>,
    /// Null where the transcript could not be had.
    messages: Option<Vec<Object<MessageLine>>>,
    metadata: Option<BTreeMap<String, String>>,
    facts: Option<Object<FactsLine>>,
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

    fn csv_zone(&self) -> Option<TimeZone> {
        Some(self.zone.clone())
    }

    fn of_row(&self, number: u64, row: Row) -> Result<(ChatSession, usize), LineError> {
        // As with an export that is read from a file: without a reference nothing was said. With one, its messages may
        // come by another call: only a source of the configuration has its transcripts fetched.
        let messages = row.facts.transcript.is_none().then(Vec::new);
        // Facts are cut to size; this is what they come to at most.
        let line = call_line(self.idempotency_key.as_ref(), number);
        Ok((
            ChatSession { external_id: row.external_id, facts: row.facts, messages, fetch: None, line },
            4096,
        ))
    }

    fn read(&self, number: u64, json: &[u8]) -> Result<(ChatSession, usize), LineError> {
        let Object(line): Object<SessionLine> =
            serde_json::from_slice(json).map_err(|err| line_error(&err))?;
        if !is_id(&line.external_id) {
            let detail = "externalId must have 1 to 256 characters, none of them a control character";
            return Err(wrong("invalid_session", detail));
        }
        let Object(facts) = line.facts.unwrap_or_default();
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
            metadata: metadata(line.metadata.as_ref())?,
        };
        let messages = match line.messages {
            None => None,
            Some(messages) => Some(messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?),
        };
        let of_call = call_line(self.idempotency_key.as_ref(), number);
        let external_id = line.external_id;
        Ok((ChatSession { external_id, facts, messages, fetch: None, line: of_call }, json.len()))
    }

    async fn store(
        &self,
        api: &Api,
        company: &CompanyId,
        items: Vec<(u64, ChatSession)>,
        tally: &mut Tally,
    ) -> Result<(), ApiError> {
        let (lines, sessions): (Vec<u64>, Vec<ChatSession>) = items.into_iter().unzip();
        let taken = api.parts.intake.send(AcceptSessions { company: company.clone(), sessions }).await??;
        for (line, taken) in lines.into_iter().zip(taken) {
            match taken {
                SessionTaken::Erased => {
                    tally.reject(line, &wrong("erased", "this session was erased and is not taken in again"));
                }
                SessionTaken::Conflict => {
                    let detail = "this line of the same Idempotency-Key brought another session, or said other things of it";
                    tally.reject(line, &wrong("conflict", detail));
                }
                SessionTaken::New | SessionTaken::Changed => tally.accepted += 1,
                SessionTaken::Updated => tally.updated += 1,
                SessionTaken::Unchanged => tally.duplicate += 1,
            }
        }
        Ok(())
    }
}

/// The client's own pairs as JSON text.
fn metadata(pairs: Option<&BTreeMap<String, String>>) -> Result<Option<String>, LineError> {
    let text = pairs.map(|pairs| json!(pairs).to_string());
    if text.as_ref().is_some_and(|text| text.len() > METADATA_BYTES_MAX) {
        return Err(wrong("invalid_request", format!("metadata is longer than {METADATA_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn message(Object(line): Object<MessageLine>) -> Result<Message, LineError> {
    let role = match line.role.as_str() {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        _ => return Err(wrong("invalid_session", "a message's role must be user, assistant or system")),
    };
    let at = line.at.as_deref().map(|text| time("at", text)).transpose()?;
    Ok(Message { role, at, text: line.content })
}

fn priority(number: &Number) -> Result<i8, LineError> {
    let (min, max) = (i8::MIN, i8::MAX);
    let whole = number.as_i64().and_then(|number| i8::try_from(number).ok());
    whole.ok_or_else(|| {
        wrong("invalid_request", format!("priority must be a whole number from {min} to {max}"))
    })
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

/// What serde says. Within one line without the line number, which is 1 and would be taken for the file's.
pub(super) fn place(err: &serde_json::Error) -> String {
    let text = err.to_string();
    match text.rfind(" at line ") {
        Some(end) if err.line() > 1 => {
            format!("{} (line {} of it, column {})", &text[..end], err.line(), err.column())
        }
        Some(end) => format!("{} (column {})", &text[..end], err.column()),
        None => text,
    }
}
