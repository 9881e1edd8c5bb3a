//! The admin and ingest API.
//!
//! One filter takes every call and a table of routes decides, so that a path that is not there, a method that it does not
//! have and a caller who may not are told apart on every route alike. Whatever is not in the table is denied.

pub mod auth;
mod body;
mod budget;
mod cells;
mod companies;
mod control;
mod csv;
mod cursor;
mod encoding;
mod erasures;
mod export;
mod filters;
#[doc(hidden)]
pub mod fuzzing;
mod hints;
mod ingest;
mod keys;
mod legacy;
mod limits;
mod lines;
mod query;
mod reply;
mod request_body;
mod results;
mod retention;
mod sources;
#[doc(hidden)]
pub mod table;
mod timeline;
mod view;
mod waits;
#[doc(hidden)]
pub mod webhooks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Addr;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;

use crate::actors::Shared;
use crate::actors::eraser::Eraser;
use crate::actors::intake::{Intake, IntakeError};
use crate::actors::poller::Poller;
use crate::actors::registry::Registry;
use crate::config::{Ingest, Secret};
use crate::domain::id::CompanyId;
use crate::domain::webhook::signature::SigningSecret;
use crate::serving::{self, BodyLimits};
use crate::store::{Report, Role, StoreError};
use auth::{Auth, Caller};
pub use export::TOTAL_ROWS;
use hints::Hints;
use limits::Limiter;
use lines::Body;
use query::Query;
use reply::{Answer, ApiError};
use table::{Access, Entry, Found, Params, Route};
use webhooks::Action;

/// A stream may be as long as it likes, but must keep coming.
const STREAM_IDLE: Duration = Duration::from_secs(30);

/// Replies that are built at the same time with what may be some ten megabytes.
const LARGE_REPLIES: usize = 4;

/// The actors whom the routes ask.
#[derive(Debug, Clone)]
pub struct Parts {
    /// For the admin views.
    pub registry: Addr<Registry>,
    /// For what comes in.
    pub intake: Addr<Intake>,
    /// For what is to be erased.
    pub eraser: Addr<Eraser>,
    /// For what the provider says by itself.
    pub poller: Addr<Poller>,
}

/// What is known only from the configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// One more token, of an admin.
    pub admin_token: Option<Secret>,
    /// How much a company may send.
    pub quotas: Ingest,
    /// What the provider signs its messages with.
    pub webhook_secret: Option<SigningSecret>,
}

/// What the routes need.
#[derive(Debug, Clone)]
pub struct Api {
    parts: Parts,
    shared: Arc<Shared>,
    auth: Arc<Auth>,
    limiter: Arc<Limiter>,
    hints: Arc<Hints>,
    /// For large bodies that are read whole.
    room: Arc<body::Room>,
    /// For large replies that are built whole.
    building: Arc<Semaphore>,
}

impl Api {
    /// The routes over these parts.
    pub fn new(parts: Parts, shared: Arc<Shared>, options: Options) -> Self {
        let auth = Arc::new(Auth::new(shared.store.clone(), options.admin_token.as_ref()));
        let limiter = Arc::new(Limiter::new(options.quotas));
        let hints = Arc::new(Hints::new(options.webhook_secret));
        Self {
            parts,
            shared,
            auth,
            limiter,
            hints,
            room: Arc::default(),
            building: Arc::new(Semaphore::new(LARGE_REPLIES)),
        }
    }
}

/// All routes as one filter.
pub fn routes(api: Api) -> BoxedFilter<(Response,)> {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<SocketAddr>())
        .and(warp::body::stream())
        .then(move |method, path: FullPath, query, headers, peer, body| {
            let api = api.clone();
            let body: Body = Box::pin(serving::limited(
                body,
                BodyLimits { max_bytes: u64::MAX, idle: STREAM_IDLE, total: Duration::from_secs(24 * 3600) },
            ));
            async move { Call { api, method, path, query, headers, peer }.answer(body).await }
        })
        .boxed()
}

struct Call {
    api: Api,
    method: Method,
    path: FullPath,
    query: String,
    headers: HeaderMap,
    peer: Option<SocketAddr>,
}

impl Call {
    async fn answer(self, body: Body) -> Response {
        let started = Instant::now();
        let id = self.request_id();
        let mut reply = match self.run(body).await {
            Ok(answer) => answer.reply(),
            Err(err) => err.reply(&id),
        };
        let status = reply.status().as_u16();
        let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(request.id = id, method = %self.method, path = self.path.as_str(), status, millis, "a call");
        if let Ok(id) = HeaderValue::from_str(&id) {
            reply.headers_mut().insert("x-request-id", id);
        }
        reply
    }

    /// The caller's id for the call where it is harmless, else one of ours.
    fn request_id(&self) -> String {
        let given = self.headers.get("x-request-id").and_then(|value| value.to_str().ok());
        let harmless = |id: &&str| {
            (1..=64).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        match given.filter(harmless) {
            Some(id) => id.to_owned(),
            None => self.api.shared.ids.next().to_string(),
        }
    }

    async fn run(&self, body: Body) -> Result<Answer, ApiError> {
        let decoded: Vec<String> = self
            .path
            .as_str()
            .split('/')
            .skip(1)
            .map(|part| query::decode(&part.replace('+', "%2B")))
            .collect::<Result<_, _>>()?;
        let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
        let found = table::find(&parts);
        if found.as_ref().is_some_and(Found::is_open) {
            let Some(found) = found else { return Err(no_such_path()) };
            let entry = self.of_method(&found)?;
            return self.dispatch(entry.route, found.params, body, "").await;
        }
        // Before anything else is told: without a token one does not even learn which paths there are.
        let caller = self.caller()?;
        let Some(found) = found else { return Err(no_such_path()) };
        let entry = self.of_method(&found)?;
        may(&caller.role, entry.access, found.params)?;
        self.dispatch(entry.route, found.params, body, &caller.to_string()).await
    }

    fn caller(&self) -> Result<Caller, ApiError> {
        let peer = self.peer.map(|peer| peer.ip());
        let shared = &self.api.shared;
        let may_write = shared.condition.intake_stopped().is_none();
        self.api.auth.caller(&self.headers, peer, shared.clock.now(), may_write)
    }

    fn of_method(&self, found: &Found<'_>) -> Result<&'static Entry, ApiError> {
        found.of(self.method.as_str()).ok_or_else(|| {
            let allowed = found.allowed();
            let detail = format!("this path takes {allowed}");
            ApiError {
                headers: HeaderValue::from_str(&allowed)
                    .map(|allowed| ("allow", allowed))
                    .into_iter()
                    .collect(),
                ..ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
            }
        })
    }

    /// `by` names the caller in what is kept of an order.
    async fn dispatch(
        &self,
        route: Route,
        params: Params<'_>,
        body: Body,
        by: &str,
    ) -> Result<Answer, ApiError> {
        let api = &self.api;
        let (company, id) = (params.company.unwrap_or_default(), params.id.unwrap_or_default());
        let query = Query::parse(&self.query)?;
        // Health checks may carry what their programs like; the lists say themselves what they know.
        if !route.has_parameters() {
            query.only(&[])?;
        }
        let shown = match route {
            Route::Health => json!({ "ok": true }),
            Route::Ready => return Ok(ready(api).into()),
            Route::Summary => legacy::summary(api, &query).await?,
            Route::Requests => legacy::requests(api, &query).await?,
            Route::Request => return legacy::request(api, id).await,
            Route::Requeue => {
                self.expect_json()?;
                takes_in(api)?;
                let body = self.small(body).await?;
                legacy::requeue(api, &body).await?
            }
            Route::Batches => legacy::batches(api, &query).await?,
            Route::Batch => legacy::batch(api, id).await?,
            Route::Cancel => {
                let body = self.small(body).await?;
                if !body.is_empty() {
                    self.expect_json()?;
                }
                control::cancel(api, id, &body, by).await?
            }
            Route::Provider => control::provider(api).await?,
            Route::Resume => control::resume(api),
            Route::Companies => legacy::companies(api).await?,
            Route::Switches => legacy::switches(api),
            Route::Inner => legacy::health(api).await?,
            Route::Verify => verify(api).await?,
            Route::IngestRequests | Route::IngestSessions => {
                takes_in(api)?;
                let company = self.company(company).await?;
                let sessions = route == Route::IngestSessions;
                return ingest::take(api, &company, &self.headers, body, sessions).await;
            }
            Route::Budget => budget::show(api, self.company(company).await?).await?,
            Route::SetBudget => {
                self.expect_json()?;
                takes_in(api)?;
                let company = self.company(company).await?;
                let body = self.small(body).await?;
                budget::set(api, company, &body).await?
            }
            Route::Sources => sources::list(api, &self.company(company).await?).await?,
            Route::ReadSource => {
                takes_in(api)?;
                sources::read_now(api, &self.company(company).await?, id).await?
            }
            Route::Session => {
                let company = self.company(company).await?;
                results::session(api, company, id, &query).await?
            }
            Route::Timeline => results::timeline_for_operators(api, id).await?,
            Route::OwnRequests => results::requests(api, self.company(company).await?, &query).await?,
            Route::OwnRequest => {
                return results::request(api, self.company(company).await?, id, &query).await;
            }
            Route::OwnTimeline => results::timeline(api, self.company(company).await?, id).await?,
            Route::OwnSessions => results::sessions(api, self.company(company).await?, &query).await?,
            Route::ExportRequests => {
                return export::requests(api, self.company(company).await?, &self.headers, &query).await;
            }
            Route::ExportSessions => {
                return export::sessions(api, self.company(company).await?, &self.headers, &query).await;
            }
            Route::Webhooks(action) => {
                let company = self.company(company).await?;
                if action.has_body() {
                    self.expect_json()?;
                }
                let body = self.small(body).await?;
                let shown = webhooks::run(api, action, company, params, &query, &body).await?;
                let status = if action == Action::Make { StatusCode::CREATED } else { StatusCode::OK };
                return Ok((status, shown).into());
            }
            Route::CreateCompany => {
                return Ok(companies::create(api, &self.small_json(body).await?).await?.into());
            }
            Route::Company => companies::show(api, id).await?,
            Route::ChangeCompany => companies::change(api, id, &self.small_json(body).await?).await?,
            Route::SuspendCompany => companies::suspend(api, id, true).await?,
            Route::ResumeCompany => companies::suspend(api, id, false).await?,
            Route::Keys => keys::list(api, Some(self.company(company).await?)).await?,
            Route::AdminKeys => keys::list(api, None).await?,
            Route::CreateKey => {
                let company = self.company(company).await?;
                return Ok(keys::create(api, company, &self.small_json(body).await?).await?.into());
            }
            Route::CreateAdminKey => {
                return Ok(keys::create_for_all(api, &self.small_json(body).await?).await?.into());
            }
            Route::RotateKey => {
                let company = self.company(company).await?;
                keys::rotate(api, Some(company), id, &self.small_json(body).await?).await?
            }
            Route::RotateAdminKey => keys::rotate(api, None, id, &self.small_json(body).await?).await?,
            Route::RevokeKey => keys::revoke(api, Some(self.company(company).await?), id).await?,
            Route::EraseSession => {
                let company = self.company(company).await?;
                return Ok(erasures::session(api, company, id, by).await?.into());
            }
            Route::EraseCompany => {
                return Ok(erasures::company(api, id, &self.small_json(body).await?, by).await?.into());
            }
            Route::Erasures => erasures::list(api, &query).await?,
            Route::Erasure => erasures::show(api, id).await?,
            Route::Retention => retention::show(api).await?,
            Route::RevokeAdminKey => keys::revoke(api, None, id).await?,
            Route::Hint => {
                let body = body::whole(body, hints::BODY_BYTES_MAX).await?;
                hints::take(api, &self.headers, &body)?
            }
        };
        Ok((StatusCode::OK, shown).into())
    }

    /// A small body, unpacked.
    async fn small(&self, body: Body) -> Result<Bytes, ApiError> {
        body::whole(encoding::decoded(&self.headers, body)?, body::SMALL_BYTES_MAX).await
    }

    /// A small body of JSON, or none.
    async fn small_json(&self, body: Body) -> Result<Bytes, ApiError> {
        takes_in(&self.api)?;
        let body = self.small(body).await?;
        if !body.is_empty() {
            self.expect_json()?;
        }
        Ok(body)
    }

    fn expect_json(&self) -> Result<(), ApiError> {
        let value = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        if value.split(';').next().is_some_and(|part| part.trim().eq_ignore_ascii_case("application/json")) {
            return Ok(());
        }
        let detail = "send the body as application/json";
        Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail))
    }

    /// A company that is there.
    async fn company(&self, text: &str) -> Result<CompanyId, ApiError> {
        let unknown = || unknown_company(text);
        let id: CompanyId = text.parse().map_err(|_| unknown())?;
        let (reader, wanted) = (self.api.shared.reader.clone(), id.clone());
        match blocking(move || reader.company(&wanted)).await? {
            Some(_) => Ok(id),
            None => Err(unknown()),
        }
    }
}

/// Whether a role may do what a route does; a company only what is its own.
fn may(role: &Role, access: Access, params: Params<'_>) -> Result<(), ApiError> {
    let allowed = match (role, access) {
        (Role::Admin, _)
        | (_, Access::Open | Access::Signed)
        | (Role::Viewer, Access::Read | Access::OwnRead) => true,
        (Role::Company(own), Access::OwnRead | Access::OwnWrite) => {
            let asked = params.company.unwrap_or_default();
            // A company learns nothing about which others there are.
            if asked != own.as_str() {
                return Err(unknown_company(asked));
            }
            true
        }
        (Role::Viewer, Access::Write | Access::OwnWrite)
        | (Role::Company(_), Access::Read | Access::Write) => false,
    };
    if allowed {
        return Ok(());
    }
    let detail = format!("the role {} may not do this", role.label());
    Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail))
}

fn no_such_path() -> ApiError {
    ApiError::not_found("not_found", "there is no such path")
}

fn unknown_company(id: &str) -> ApiError {
    let id: String = id.chars().take(80).collect();
    ApiError::not_found("unknown_company", format!("there is no company {id:?}"))
}

/// Ready means: takes in work and answers. A provider that is away does not make us unready.
fn ready(api: &Api) -> (StatusCode, Value) {
    let mut reasons = Vec::new();
    if !api.parts.registry.connected() || !api.parts.intake.connected() {
        reasons.push("a part of the program has ended");
    }
    if api.shared.reader.summary(None).is_err() {
        reasons.push("the store cannot be read");
    }
    let standing = api.shared.condition.standing();
    // The checks after a start hold up create calls only: work is taken in meanwhile.
    let stops = standing.iter().filter(|(hindrance, _)| hindrance.stops_intake());
    reasons.extend(stops.map(|(_, why)| why.as_str()));
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, json!({ "ok": reasons.is_empty(), "reasons": reasons }))
}

/// Checks the whole store, page by page beside the work. It is not broken off when the caller goes away: a check
/// that nobody ends would have the store report every change to it.
async fn verify(api: &Api) -> Result<Value, ApiError> {
    let store = api.shared.store.clone();
    let ended = tokio::spawn(async move { store.verify().await }).await.map_err(|err| {
        tracing::error!(error = %err, "a check panicked");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "this should not happen")
    })?;
    Ok(report_view(&ended?))
}

/// What a check of the store found, as it is shown.
pub fn report_view(report: &Report) -> Value {
    let violations: Vec<_> = report
        .violations
        .iter()
        .map(|violation| {
            json!({ "invariant": violation.invariant, "place": violation.place, "what": violation.what })
        })
        .collect();
    json!({
        "ok": true,
        "whole": report.is_whole(),
        "counts": {
            "entries": report.entries, "sessions": report.sessions, "requests": report.requests,
            "batches": report.batches, "members": report.members, "bookings": report.bookings,
        },
        "violations": violations,
        "moreViolations": report.more,
        "acceptedBefore": report.accepted,
        "doubt": report.doubt,
    })
}

/// Whether writes are taken just now.
fn takes_in(api: &Api) -> Result<(), ApiError> {
    match api.shared.condition.intake_stopped() {
        None => Ok(()),
        Some((hindrance, why)) => Err(IntakeError::Stopped(hindrance, why).into()),
    }
}

/// Looks whether a token that was let in is good still, before a stream goes on.
async fn still_good(api: &Api, token: Option<[u8; 32]>) -> Result<(), ApiError> {
    let (auth, now) = (api.auth.clone(), api.shared.clock.now());
    let knows = move || token.map_or(Ok(false), |token| auth.still_knows(&token, now));
    if blocking(knows).await? {
        return Ok(());
    }
    let detail = "this token has ended; go on with another one";
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail))
}

/// Runs a read that may touch the disk beside the connections.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => Ok(result?),
        Err(err) => {
            tracing::error!(error = crate::panics::broke_off(&err), "a read broke off");
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "this should not happen"))
        }
    }
}

/// The same for what may be large, of which a few are built at the same time.
async fn large<T: Send + 'static>(
    api: &Api,
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let place = api.building.clone().acquire_owned().await;
    // It goes on where the caller goes away, and so does its place.
    blocking(move || {
        let _place = place;
        read()
    })
    .await
}
