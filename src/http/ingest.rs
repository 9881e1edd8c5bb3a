//! Ingest: requests and sessions come in, one, many, or as a stream, and are stored before they are acknowledged.

mod kinds;

use std::time::Duration;

use futures_util::StreamExt;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};
use warp::http::StatusCode;
use warp::http::header::{CONTENT_ENCODING, HeaderMap};

use kinds::{Requests, Sessions};
pub(super) use kinds::{read_request, read_session};

use super::Api;
use super::body;
use super::lines::{self, Body, JSON_BYTES_MAX, Json, Line, Lines, Shape};
use super::reply::{Answer, ApiError};
use super::{auth, csv, encoding, still_good};
use crate::actors::intake::{CHUNK, CHUNK_BYTES};
use crate::domain::id::CompanyId;
use crate::import::csv::{ID_CHARS_MAX, Row};
use crate::serving::BodyError;

/// Errors that a reply tells of; the count goes on.
const ERRORS_MAX: usize = 1000;
/// Accepted lines that a reply names with their ids.
const IDS_MAX: usize = 1000;

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
