//! OpenAI's paths: authorization, routing, the planned faults of calls, and what each call answers.
//!
//! Every request ends in one function that looks at method and path, so that nothing is left to rejections: what is
//! unknown is told in OpenAI's envelope, too.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use futures_util::{Stream, StreamExt};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use warp::reply::{Reply, Response};

use super::SimulatorError;
use super::engine::Engine;
use super::faults::{BatchFault, Call, CallFault, RetryAfter};
use super::timeline::CancelRule;
use super::uploads::{self, Body};
use super::wire::{Refusal, file_view, json_response, page};
use super::world::FileRecord;
use crate::serving::{self, BodyLimits};

mod batches;
mod content;

use content::Part;

/// Seconds that a file may be told to live.
pub(super) const LIFE_SECONDS: RangeInclusive<i64> = 3600..=2_592_000;
/// The largest upload, its form included.
const UPLOAD_LIMITS: BodyLimits = BodyLimits {
    max_bytes: 600 * 1024 * 1024,
    idle: Duration::from_secs(30),
    total: Duration::from_secs(1800),
};
/// The largest JSON body.
const JSON_LIMITS: BodyLimits =
    BodyLimits { max_bytes: 1024 * 1024, idle: Duration::from_secs(10), total: Duration::from_secs(30) };

/// All paths below `/v1`, answers to everything else included.
pub(super) fn routes(engine: Arc<Engine>) -> BoxedFilter<(Response,)> {
    let query = warp::query::<HashMap<String, String>>().or(warp::any().map(HashMap::new)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |method, path: warp::path::FullPath, query, headers, body| {
            let request = Request::new(method, path.as_str(), query, headers, body);
            serve(engine.clone(), request)
        })
        .recover(|_| async {
            Ok::<_, Infallible>(Refusal::new(400, "The request cannot be understood.").into_response())
        })
        .map(Reply::into_response)
        .boxed()
}

struct Request {
    method: Method,
    /// The parts of the path behind `/v1/`; none if it is another path.
    path: Option<Vec<String>>,
    shown_path: String,
    query: HashMap<String, String>,
    headers: HeaderMap,
    body: Body,
}

impl Request {
    fn new<S, B>(
        method: Method,
        path: &str,
        query: HashMap<String, String>,
        headers: HeaderMap,
        body: S,
    ) -> Self
    where
        S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
        B: Buf + Send + 'static,
    {
        let parts = path.strip_prefix("/v1/").map(|rest| rest.split('/').map(str::to_owned).collect());
        let is_upload = path == "/v1/files";
        let limits = if is_upload { UPLOAD_LIMITS } else { JSON_LIMITS };
        let body: Body = Box::pin(serving::limited(body, limits));
        Self { method, path: parts, shown_path: path.to_owned(), query, headers, body }
    }
}

/// A call and the id that it is about.
enum Route {
    Known(Call, String),
    WrongMethod,
    Unknown,
}

fn route(request: &Request) -> Route {
    let parts: Vec<&str> = request.path.iter().flatten().map(String::as_str).collect();
    let method = &request.method;
    let known = |call: Call, id: &str| Route::Known(call, id.to_owned());
    match parts.as_slice() {
        ["files"] if method == Method::POST => known(Call::FilesCreate, ""),
        ["files"] if method == Method::GET => known(Call::FilesList, ""),
        ["files", id] if method == Method::GET => known(Call::FilesGet, id),
        ["files", id] if method == Method::DELETE => known(Call::FilesDelete, id),
        ["files", id, "content"] if method == Method::GET => known(Call::FilesContent, id),
        ["batches"] if method == Method::POST => known(Call::BatchesCreate, ""),
        ["batches"] if method == Method::GET => known(Call::BatchesList, ""),
        ["batches", id] if method == Method::GET => known(Call::BatchesGet, id),
        ["batches", id, "cancel"] if method == Method::POST => known(Call::BatchesCancel, id),
        ["files" | "batches"]
        | ["files" | "batches", _]
        | ["files", _, "content"]
        | ["batches", _, "cancel"] => Route::WrongMethod,
        _ => Route::Unknown,
    }
}

async fn serve(engine: Arc<Engine>, request: Request) -> Response {
    let request_id = engine.next_request_id();
    let mut response = match checked(&engine, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        headers.insert("x-request-id", value);
    }
    headers.insert("openai-version", HeaderValue::from_static("2020-10-01"));
    response
}

async fn checked(engine: &Arc<Engine>, mut request: Request) -> Result<Response, Refusal> {
    authorize(engine, &request.headers)?;
    let (call, id) = match route(&request) {
        Route::Known(call, id) => (call, id),
        Route::WrongMethod => {
            return Err(Refusal::new(405, format!("Not allowed to {} here.", request.method)));
        }
        Route::Unknown => {
            let message = format!("Unknown request URL: {} {}.", request.method, request.shown_path);
            return Err(Refusal::new(404, message).code("unknown_url"));
        }
    };
    let fault = engine.faults.on_call(call);
    match &fault {
        Some(CallFault::DropBefore {}) => return Ok(serving::severed()),
        Some(CallFault::Status { effect: false, .. }) => {
            // Read to its end, or a client that is still sending might not hear the answer.
            while let Some(Ok(_)) = request.body.next().await {}
        }
        Some(CallFault::EmptyPage {}) => return Ok(json_response(&page(&[], true))),
        Some(
            CallFault::DropAfter {}
            | CallFault::Status { .. }
            | CallFault::Truncate { .. }
            | CallFault::Stall { .. }
            | CallFault::Garbled {},
        )
        | None => {}
    }
    if let Some(response) = planned_status(engine, fault.as_ref(), false) {
        return Ok(response);
    }
    let part = match &fault {
        Some(CallFault::Truncate { share }) => Part::Cut(*share),
        Some(CallFault::Stall { share }) => Part::Stalled(*share),
        Some(
            CallFault::DropBefore {}
            | CallFault::DropAfter {}
            | CallFault::Status { .. }
            | CallFault::EmptyPage {}
            | CallFault::Garbled {},
        )
        | None => Part::Whole,
    };
    let answer = dispatch(engine, call, &id, request, part).await;
    if fault == Some(CallFault::DropAfter {}) {
        return Ok(serving::severed());
    }
    if fault == Some(CallFault::Garbled {}) {
        return Ok(warp::reply::html("<html><body>Please sign in.</body></html>").into_response());
    }
    planned_status(engine, fault.as_ref(), true).map_or(answer, Ok)
}

async fn dispatch(
    engine: &Arc<Engine>,
    call: Call,
    id: &str,
    request: Request,
    part: Part,
) -> Result<Response, Refusal> {
    match call {
        Call::FilesCreate => create_file(engine, request).await,
        Call::FilesList => list_files(engine, &request.query).map(|list| json_response(&list)),
        Call::FilesGet => find_file(engine, id).map(|file| json_response(&file_view(&file))),
        Call::FilesDelete => match engine.delete_file(id).map_err(|error| internal(&error))? {
            true => Ok(json_response(&json!({"id": id, "object": "file", "deleted": true}))),
            false => Err(Refusal::no_file(id)),
        },
        Call::FilesContent => content::respond(engine, &find_file(engine, id)?, part).await,
        Call::BatchesCreate => {
            let body = whole(request.body).await?;
            batches::create(engine, &body).map(|batch| json_response(&batch))
        }
        Call::BatchesList => batches::list(engine, &request.query).await.map(|list| json_response(&list)),
        Call::BatchesGet => {
            engine.advance(id).await.map_err(|error| internal(&error))?;
            batches::show(engine, id).map(|batch| json_response(&batch))
        }
        Call::BatchesCancel => batches::cancel(engine, id).await.map(|batch| json_response(&batch)),
    }
}

fn authorize(engine: &Engine, headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = given
        .and_then(|value| value.split_once(' '))
        .filter(|(kind, key)| kind.eq_ignore_ascii_case("bearer") && !key.trim().is_empty());
    let Some((_, key)) = key else {
        return Err(Refusal::new(401, "There is no API key: send it as 'Authorization: Bearer KEY'."));
    };
    let is_right =
        engine.options.required_key.as_ref().is_none_or(|required| {
            bool::from(required.expose_secret().as_bytes().ct_eq(key.trim().as_bytes()))
        });
    if is_right { Ok(()) } else { Err(Refusal::new(401, "The API key is wrong.").code("invalid_api_key")) }
}

/// The error that is planned for a call, if its place is before or after the effect.
fn planned_status(engine: &Engine, fault: Option<&CallFault>, after_effect: bool) -> Option<Response> {
    let Some(CallFault::Status { status, code, retry_after, effect }) = fault else { return None };
    if *effect != after_effect {
        return None;
    }
    let mut response = if *status == 502 {
        warp::reply::html("<html><body><h1>502 Bad Gateway</h1></body></html>").into_response()
    } else {
        let refusal = Refusal::new(*status, "A fault that was planned.");
        code.iter().fold(refusal, |refusal, code| refusal.code(code)).into_response()
    };
    *response.status_mut() = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let (name, value) = match retry_after {
        None => return Some(response),
        Some(RetryAfter::Seconds(seconds)) => ("retry-after", seconds.to_string()),
        Some(RetryAfter::Milliseconds(millis)) => ("retry-after-ms", millis.to_string()),
        Some(RetryAfter::DateIn(seconds)) => {
            let at = engine.now() / 1000 + i64::try_from(*seconds).unwrap_or(0);
            ("retry-after", http_date(at))
        }
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert(name, value);
    }
    Some(response)
}

fn http_date(seconds: i64) -> String {
    let at = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap_or_default()
}

fn internal(error: &SimulatorError) -> Refusal {
    tracing::error!(%error, source = ?std::error::Error::source(error), "the simulator failed");
    Refusal::internal()
}

/// Reads a small body whole.
async fn whole(mut body: Body) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(serving::BodyError::TooLarge { .. }) => {
                return Err(Refusal::new(413, "The body is too large."));
            }
            Err(
                serving::BodyError::TooSlow
                | serving::BodyError::Broken(_)
                | serving::BodyError::Undecodable { .. }
                | serving::BodyError::Expands { .. }
                | serving::BodyError::OverQuota,
            ) => {
                return Err(Refusal::new(408, "The body did not arrive in time."));
            }
        }
    }
    Ok(bytes)
}

async fn create_file(engine: &Engine, request: Request) -> Result<Response, Refusal> {
    let content_type = request.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    match uploads::receive(engine, content_type.unwrap_or_default(), request.body).await {
        Ok(file) => Ok(json_response(&file_view(&file))),
        Err(uploads::Failed::Refused(refusal)) => Err(refusal),
        Err(uploads::Failed::Gone) => Ok(serving::severed()),
    }
}

fn find_file(engine: &Engine, id: &str) -> Result<FileRecord, Refusal> {
    engine.world().file(id, engine.now()).cloned().ok_or_else(|| Refusal::no_file(id))
}

/// `limit` within `bounds`.
fn limit(
    query: &HashMap<String, String>,
    bounds: &RangeInclusive<usize>,
    default: usize,
) -> Result<usize, Refusal> {
    let Some(text) = query.get("limit") else { return Ok(default) };
    let message = format!("'limit' has to be a whole number from {} to {}.", bounds.start(), bounds.end());
    let limit = text.parse().ok().filter(|limit| bounds.contains(limit));
    limit.ok_or_else(|| Refusal::invalid_value("limit", message))
}

fn list_files(engine: &Engine, query: &HashMap<String, String>) -> Result<Value, Refusal> {
    let limit = limit(query, &(1..=10_000), 10_000)?;
    let newest_first = match query.get("order").map(String::as_str) {
        None | Some("desc") => true,
        Some("asc") => false,
        Some(_) => return Err(Refusal::invalid_value("order", "'order' has to be 'asc' or 'desc'.")),
    };
    let (world, now) = (engine.world(), engine.now());
    let purpose = query.get("purpose");
    let after = match query.get("after") {
        None => None,
        Some(id) => Some(world.file(id, now).ok_or_else(|| Refusal::no_file(id).param("after"))?.serial),
    };
    let is_next = |file: &&FileRecord| {
        let follows =
            after.is_none_or(|after| if newest_first { file.serial < after } else { file.serial > after });
        follows && purpose.is_none_or(|purpose| *purpose == file.purpose)
    };
    let mut files: Vec<&FileRecord> = if newest_first {
        world.files(now).rev().filter(is_next).take(limit + 1).collect()
    } else {
        world.files(now).filter(is_next).take(limit + 1).collect()
    };
    let has_more = files.len() > limit;
    files.truncate(limit);
    Ok(page(&files.into_iter().map(file_view).collect::<Vec<_>>(), has_more))
}
