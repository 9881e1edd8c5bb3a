//! The real actors and the real routes over a store in memory, without a socket.
//!
//! The clock moves only when told to and creation is off, so nothing happens that a test did not ask for; the
//! provider's address is a port where nobody listens, so a call to it would be seen. Ids and times that a test
//! makes through here are fixed, so that whole replies can be compared.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Actor;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use nightshift::actors::creator::Creator;
use nightshift::actors::eraser::Eraser;
use nightshift::actors::intake::Intake;
use nightshift::actors::poller::Poller;
use nightshift::actors::registry::{Registry, Resume};
use nightshift::actors::{Shared, Switches};
use nightshift::clock::{Clock, Ids, ManualClock, SharedClock};
use nightshift::condition::Condition;
use nightshift::config::{Ingest, Secret};
use nightshift::disk::{Bounds, Disk};
use nightshift::domain::batch::{
    Batch, BatchState, Cancel, Credentials, InputFile, Intent, Origin, ProviderIdentity, ResultKind, Running,
    Terminal, Then, Wait,
};
use nightshift::domain::company::Company;
use nightshift::domain::cut::Limits;
use nightshift::domain::event::{Event, Observation, ObservedStatus};
use nightshift::domain::id::{
    BatchId, CompanyId, FileId, KeyId, Nonce, ProviderBatchId, RequestId, Revision, SessionId, Timestamp,
};
use nightshift::domain::price::PriceTable;
use nightshift::domain::request::{
    Answered, Cost, Endpoint, Failure, FailureClass, Group, Outcome, Source, Usage,
};
use nightshift::domain::retention::Retention;
use nightshift::domain::session::{Message, Role as Speaker, SessionFacts};
use nightshift::domain::webhook::signature::SigningSecret;
use nightshift::domain::{retry, step};
use nightshift::fetch::{Fetcher, Guard, SystemNames};
use nightshift::http;
use nightshift::provider::openai::{OpenAi, Options};
use nightshift::store::{Accepted, AppliedLine, ClientKey, NewRequest, Role, SessionIn, Store, StoredToken};
use serde_json::Value;
use uuid::Uuid;
use warp::filters::BoxedFilter;
use warp::http::HeaderMap;
use warp::reply::Response;

use crate::process::PATIENCE;

pub const ADMIN: &str = "admin-token";
pub const VIEWER: &str = "viewer-token";
/// Of the company `demo`.
pub const DEMO: &str = "demo-token";
/// Of the company `acme`.
pub const ACME: &str = "acme-token";

/// What the provider signs with.
pub const PROVIDER_SECRET: &str = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c=";

pub const MODEL: &str = "gpt-4o-mini";
const POLICY: step::Policy = step::Policy {
    backoff: Duration::from_secs(60),
    capacity_backoff: Duration::from_secs(60),
    sweeps_min: 3,
};
const RETRY: retry::Policy = retry::Policy {
    max_attempts: 3,
    backoff: Duration::from_secs(60),
    capacity_backoff: Duration::from_secs(60),
};

/// When every test begins: 2026-11-24T08:00:00Z.
const START: i64 = 1_795_507_200_000;

/// A UUIDv7 of the moment when the test begins; they sort by kind and number.
fn uuid(kind: u16, number: u64) -> Uuid {
    let (high, low) = (START >> 16, START & 0xffff);
    format!("{high:08x}-{low:04x}-7{kind:03x}-8000-{number:012x}").parse().unwrap()
}

pub fn request_id(number: u64) -> RequestId {
    RequestId::new(uuid(1, number))
}

pub fn batch_id(number: u64) -> BatchId {
    BatchId::new(uuid(2, number))
}

pub fn session_id(number: u64) -> SessionId {
    SessionId::new(uuid(3, number))
}

pub fn company(id: &str) -> CompanyId {
    id.parse().unwrap()
}

pub fn group(id: &str) -> Group {
    Group { company: company(id), endpoint: Endpoint::ChatCompletions, model: MODEL.to_owned() }
}

/// Looks until there is something to be seen, while everything else goes on; fails where that does not come.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "it does not come to this: {what}");
        tokio::task::yield_now().await;
    }
}

/// A reply, read.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The body of a call that must have gone well.
    pub fn good(self) -> Value {
        assert_eq!((self.status, &self.body["ok"]), (200, &Value::Bool(true)), "{}", self.body);
        assert_eq!(self.header("content-type"), Some("application/json"));
        self.body
    }

    /// The same of what was made.
    pub fn made(self) -> Value {
        assert_eq!((self.status, &self.body["ok"]), (201, &Value::Bool(true)), "{}", self.body);
        self.body
    }

    /// An error in the form that every one has; gives its code.
    pub fn problem(&self, status: u16) -> &str {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!(self.body["ok"], Value::Bool(false));
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["requestId"].as_str(), self.header("x-request-id"));
        let text = |name: &str| self.body[name].as_str().filter(|text| !text.is_empty());
        assert!(text("title").is_some() && text("detail").is_some(), "{}", self.body);
        text("code").unwrap()
    }
}

type Pieces = tokio::sync::mpsc::UnboundedSender<Result<String, std::io::Error>>;

/// A body that comes as it is sent, and ends with its sender.
pub fn body_in_pieces() -> (Pieces, reqwest::Body) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    });
    (sender, reqwest::Body::wrap_stream(pieces))
}

/// A reply as it came.
#[derive(Debug)]
pub struct Raw {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

/// A call to be made; as an admin from 192.0.2.1 unless said otherwise.
pub struct Call {
    method: &'static str,
    path: String,
    token: Option<&'static str>,
    peer: [u8; 4],
    headers: Vec<(&'static str, String)>,
    body: reqwest::Body,
}

impl Call {
    pub fn new(method: &'static str, path: impl Into<String>) -> Self {
        let headers = vec![("x-request-id", "a-test".to_owned())];
        Self {
            method,
            path: path.into(),
            token: Some(ADMIN),
            peer: [192, 0, 2, 1],
            headers,
            body: reqwest::Body::default(),
        }
    }

    pub fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: impl Into<String>, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::streamed(path, content_type, body.into().into())
    }

    /// The same with a body that comes piece by piece.
    pub fn streamed(path: impl Into<String>, content_type: &str, body: reqwest::Body) -> Self {
        let call = Self::new("POST", path).header("content-type", content_type);
        Self { body, ..call }
    }

    pub fn json(path: impl Into<String>, body: &Value) -> Self {
        Self::post(path, "application/json", body.to_string())
    }

    pub fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    pub fn token(self, token: &'static str) -> Self {
        Self { token: Some(token), ..self }
    }

    pub fn without_token(self) -> Self {
        Self { token: None, ..self }
    }

    pub fn peer(self, peer: [u8; 4]) -> Self {
        Self { peer, ..self }
    }

    /// Sets a header, in place of the one that was there.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn without_header(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }
}

/// Everything but the socket.
pub struct Nightshift {
    pub shared: Arc<Shared>,
    pub clock: Arc<ManualClock>,
    pub creator: actix::Addr<Creator>,
    pub registry: actix::Addr<Registry>,
    pub eraser: actix::Addr<Eraser>,
    routes: BoxedFilter<(Response,)>,
    _spool: tempfile::TempDir,
}

/// Starts the actors, runs the test beside them, and stops them.
pub fn with_actors(test: impl AsyncFnOnce(Nightshift)) {
    let start = Nightshift::start(Switches::new(false, false));
    actix::System::new().block_on(async { test(start.await).await });
}

/// The same where what has ended is kept so long.
pub fn keeping(retention: Retention, test: impl AsyncFnOnce(Nightshift)) {
    let start = Nightshift::start_with(|shared| Shared { retention, ..shared });
    actix::System::new().block_on(async { test(start.await).await });
}

/// The same where the poller asks this provider.
pub fn polling(base_url: &str, test: impl AsyncFnOnce(Nightshift)) {
    polling_and_keeping(base_url, Retention::default(), test);
}

/// The same where what has ended is kept so long, too.
pub fn polling_and_keeping(base_url: &str, retention: Retention, test: impl AsyncFnOnce(Nightshift)) {
    let start = Nightshift::start_with(|shared| {
        let options = Options { api_key: Some("a-key".to_owned().into()), ..Options::new(base_url) };
        let client = OpenAi::new(options, shared.clock.clone()).unwrap();
        Shared { provider: Arc::new(client), switches: Switches::new(false, true), retention, ..shared }
    });
    actix::System::new().block_on(async { test(start.await).await });
}

/// The same with creation on.
pub fn with_a_creator(test: impl AsyncFnOnce(Nightshift)) {
    let start = Nightshift::start(Switches::new(true, false));
    actix::System::new().block_on(async { test(start.await).await });
}

/// The same where so many requests fill a batch.
pub fn with_a_creator_of(requests_max: u64, test: impl AsyncFnOnce(Nightshift)) {
    let start = Nightshift::start_with(|shared| {
        let limits = Limits { requests_max, ..shared.limits };
        Shared { switches: Switches::new(true, false), limits, ..shared }
    });
    actix::System::new().block_on(async { test(start.await).await });
}

impl Nightshift {
    async fn start(switches: Switches) -> Self {
        Self::start_with(|shared| Shared { switches, ..shared }).await
    }

    /// One that may also reach these hosts, as `fetch.allow_hosts` names them. Within an actix system.
    pub async fn reaching(hosts: &[String]) -> Self {
        let fetcher = Fetcher::new(Guard::new(hosts).unwrap(), Arc::new(SystemNames)).unwrap();
        Self::start_with(|shared| Shared { fetcher: Arc::new(fetcher), ..shared }).await
    }

    async fn start_with(change: impl FnOnce(Shared) -> Shared) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(START)));
        let shared_clock: SharedClock = clock.clone();
        let spool = tempfile::tempdir().unwrap();
        let store = Store::in_memory(uuid(9, 1)).await.unwrap();
        fill(&store, clock.now()).await;
        let shared = Arc::new(change(share(store, shared_clock, spool.path())));
        let registry = Registry::new(shared.clone()).start();
        let creator = Creator::new(shared.clone(), registry.clone()).start();
        let intake = Intake::new(shared.clone(), creator.clone()).start();
        registry.send(Resume { creator: Some(creator.clone()) }).await.unwrap().unwrap();
        let eraser = Eraser::new(shared.clone(), registry.clone()).start();
        let poller = Poller::new(shared.clone(), registry.clone()).start();
        let options = http::Options {
            admin_token: Some(Secret::new(ADMIN)),
            quotas: Ingest { calls_per_minute: 600, bytes_per_hour: 1 << 30 },
            webhook_secret: SigningSecret::of_provider(PROVIDER_SECRET),
        };
        let parts = http::Parts { registry: registry.clone(), intake, eraser: eraser.clone(), poller };
        let api = http::Api::new(parts, shared.clone(), options);
        Self { shared, clock, creator, registry, eraser, routes: http::routes(api), _spool: spool }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    pub async fn call(&self, call: Call) -> Reply {
        let Raw { status, headers, body } = self.raw(call).await;
        let body = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).unwrap() };
        Reply { status, headers, body }
    }

    /// The same where the body is no JSON, or of many lines.
    pub async fn raw(&self, call: Call) -> Raw {
        let reply = self.begin(call).await;
        let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
        let body = String::from_utf8(reply.bytes().await.unwrap().to_vec()).unwrap();
        Raw { status, headers, body }
    }

    /// A reply of whose body nothing is taken yet.
    pub async fn begin(&self, call: Call) -> reqwest::Response {
        let mut request = warp::http::Request::builder()
            .method(call.method)
            .uri(call.path)
            .extension(SocketAddr::from((call.peer, 40_000)));
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        if let Some(token) = call.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(call.body).unwrap();
        let service = TowerToHyperService::new(warp::service(self.routes.clone()));
        reqwest::Response::from(service.call(request).await.unwrap().map(reqwest::Body::wrap))
    }

    pub async fn get(&self, path: &str) -> Value {
        self.call(Call::get(path)).await.good()
    }

    /// Stores a generic request under a fixed id.
    pub async fn request(
        &self,
        number: u64,
        company: &str,
        change: impl FnOnce(&mut NewRequest),
    ) -> RequestId {
        let body = format!(r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"{number}"}}]}}"#);
        let client_id = format!("order-{number}");
        let mut request = NewRequest {
            source: Source::Generic { client_id: Some(client_id.clone()) },
            key: Some(ClientKey::Id(client_id)),
            body: Some(body),
            ..bare(request_id(number), company)
        };
        change(&mut request);
        let accepted = self.store().accept_requests(vec![request], self.now()).await.unwrap();
        assert_eq!(accepted, [Accepted::New(request_id(number))]);
        request_id(number)
    }

    /// Stores a session and the request for its analysis, both under fixed ids.
    pub async fn session(&self, number: u64, company_id: &str) -> RequestId {
        let message = |role, text: &str| Message { role, at: None, text: text.to_owned() };
        let session = SessionIn {
            company: company(company_id),
            external_id: format!("chat-{number}"),
            id: session_id(number),
            facts: SessionFacts { started_at: Some(self.now()), ..SessionFacts::default() },
            messages: Some(vec![
                message(Speaker::User, "When do I work?"),
                message(Speaker::Assistant, "On Monday."),
            ]),
            content_hash: [1; 32],
            settles_at: self.now(),
            fetch: None,
            line: None,
        };
        self.store().accept_sessions(vec![session], self.now()).await.unwrap();
        let source = Source::Session { session: session_id(number), version: 1, prompt: 1 };
        let request = NewRequest { source, ..bare(request_id(number), company_id) };
        let asked = vec![(session_id(number), 1, request)];
        assert_eq!(self.store().request_analyses(asked, self.now()).await.unwrap(), 1);
        request_id(number)
    }

    /// A batch that surfaced at the provider for a create call of another one that was given up.
    pub async fn shadow(&self, number: u64, of: &Batch) -> Driven<'_> {
        let mut batch = Batch::open(batch_id(number), of.group.clone(), of.provider.clone(), self.now());
        let input = InputFile {
            id: FileId::new(format!("file-input-{number}")),
            upload: 1,
            bytes: of.input_bytes,
            created_at: self.now(),
        };
        let nonce = Nonce::new(uuid(4, number));
        let intent = Intent { nonce, input, at: self.now(), made_with: Credentials::default() };
        batch.origin = Origin::Shadow { of: of.id };
        batch.cancel = Some(Cancel { by: "a test".to_owned(), at: self.now(), then: Then::Requeue });
        batch.provider_batch = Some(ProviderBatchId::new(format!("batch_{number}")));
        batch.state = BatchState::Observing {
            intent,
            running: Running::InProgress,
            wait: Wait::default(),
            missing: None,
        };
        self.store().open_batch(batch.clone()).await.unwrap();
        Driven { nightshift: self, number, batch }
    }

    /// Opens a batch and moves into it what waits in the company's group, at most `members`.
    pub async fn open_batch(&self, number: u64, company: &str, members: u64) -> Driven<'_> {
        let batch = Batch::open(batch_id(number), group(company), self.shared.identity.clone(), self.now());
        self.store().open_batch(batch).await.unwrap();
        let limits = Limits { requests_max: members, ..self.shared.limits };
        let cut = self.store().cut_chunk(batch_id(number), Revision::default(), limits).await.unwrap();
        Driven { nightshift: self, number, batch: cut.batch }
    }
}

/// A request that is the same each time, without a body.
fn bare(id: RequestId, company: &str) -> NewRequest {
    NewRequest {
        id,
        group: group(company),
        source: Source::Generic { client_id: None },
        key: None,
        content_hash: [0; 32],
        body: None,
        line_bytes: 200,
        line_crc: 7,
        estimated_tokens: 25,
        output_max: None,
        inputs: 0,
        metadata: None,
        priority: 0,
        not_before: None,
    }
}

/// Companies and tokens.
async fn fill(store: &Store, now: Timestamp) {
    let known = |id: &str, name: &str, suspended| Company {
        id: company(id),
        name: name.to_owned(),
        model: MODEL.to_owned(),
        suspended,
        budget_micros: None,
        retention: Default::default(),
    };
    store.put_companies(vec![known("demo", "Demo", false), known("acme", "Acme", true)]).await.unwrap();
    let tokens = [
        (VIEWER, Role::Viewer),
        (DEMO, Role::Company(company("demo"))),
        (ACME, Role::Company(company("acme"))),
    ];
    for (number, (token, role)) in (1..).zip(tokens) {
        let (id, hash) = (KeyId::new(uuid(7, number)), http::auth::hash(token));
        let stored = StoredToken::new(id, hash, role, "test".to_owned(), now);
        store.put_token(stored, false).await.unwrap();
    }
}

fn share(store: Store, clock: SharedClock, spool: &Path) -> Shared {
    let condition = Arc::new(Condition::new());
    let bounds = Bounds { folder: spool.to_owned(), floor: 0, ballast: 0 };
    Shared {
        disk: Arc::new(Disk::new(bounds, condition.clone(), Box::new(|why| panic!("{why}")))),
        creating: Arc::default(),
        account: nightshift::actors::account::Account::new(Duration::from_secs(30)),
        pace: nightshift::actors::pace::Pace::new(Default::default(), []),
        condition,
        reader: store.reader(),
        store,
        // Port 1 of this machine: nobody listens there.
        provider: Arc::new(OpenAi::new(Options::new("http://127.0.0.1:1/v1"), clock.clone()).unwrap()),
        fetcher: Arc::new(Fetcher::new(Guard::default(), Arc::new(SystemNames)).unwrap()),
        made_with: Credentials::default(),
        identity: ProviderIdentity { kind: "simulator".to_owned(), ..ProviderIdentity::default() },
        ids: Ids::new(clock.clone()),
        clock,
        switches: Switches::new(false, false),
        prices: PriceTable {
            version: "test".to_owned(),
            currency: "USD".to_owned(),
            models: std::collections::BTreeMap::new(),
        },
        spool: spool.to_owned(),
        limits: Limits {
            requests_max: 50_000,
            bytes_max: 190_000_000,
            tokens_max: None,
            age_max: Duration::from_secs(1800),
        },
        retry: RETRY,
        capacity_hold: Duration::from_secs(600),
        policy: POLICY,
        grace: Duration::from_secs(900),
        creation_interval: Duration::from_secs(600),
        polling_interval: Duration::from_secs(120),
        polling_calls_max: 100,
        model_default: MODEL.to_owned(),
        settle: Duration::from_secs(3600),
        time_zone: jiff::tz::TimeZone::UTC,
        repair_rounds: 1,
        sources: Vec::new(),
        retention: Default::default(),
        fetching: Default::default(),
    }
}

/// A batch that the test leads through its life, with the real steps and the real store and no actor.
pub struct Driven<'a> {
    nightshift: &'a Nightshift,
    number: u64,
    pub batch: Batch,
}

impl Driven<'_> {
    fn plan(&self, event: &Event) -> step::Step {
        step::step(&self.batch.state, self.batch.orders(), event, &POLICY).unwrap()
    }

    /// A second a step, so that the times in a story can be told apart.
    fn took(&mut self, batch: Batch) {
        self.batch = batch;
        self.nightshift.clock.advance(Duration::from_secs(1));
    }

    pub async fn step(&mut self, event: Event) {
        let step = self.plan(&event);
        let (id, revision) = (self.batch.id, self.batch.revision);
        let now = self.nightshift.now();
        let batch = self.nightshift.store().commit_step(id, revision, step, now).await.unwrap();
        self.took(batch);
    }

    pub fn seen(&self, status: ObservedStatus) -> Observation {
        let file = |kind: &str| Some(FileId::new(format!("file-{kind}-{}", self.number)));
        let ended = matches!(status, ObservedStatus::Ended(_));
        Observation {
            id: ProviderBatchId::new(format!("batch_{}", self.number)),
            status: Some(status),
            output: file("output").filter(|_| ended),
            error: file("error").filter(|_| ended),
            completed_lines: None,
            failed_lines: None,
            problems: Vec::new(),
            expires_at: None,
            ended_at: ended.then(|| self.nightshift.now()),
        }
    }

    /// Until the provider runs it.
    pub async fn send(&mut self) {
        let at = self.nightshift.now();
        let input = InputFile {
            id: FileId::new(format!("file-input-{}", self.number)),
            upload: 1,
            bytes: self.batch.input_bytes,
            created_at: self.nightshift.now(),
        };
        self.step(Event::FillEnded { members: self.batch.counts.members, at }).await;
        self.step(Event::Released).await;
        self.step(Event::Uploaded(input.clone())).await;
        let nonce = Nonce::new(uuid(4, self.number));
        self.step(Event::IntentMade(Intent { nonce, input, at, made_with: Credentials::default() })).await;
        self.step(Event::Created(self.seen(ObservedStatus::Running(Running::Validating)))).await;
        let seen = self.seen(ObservedStatus::Running(Running::InProgress));
        self.step(Event::Observed { seen, at: self.nightshift.now() }).await;
    }

    /// From the provider's end to ours, with these lines in the two files.
    pub async fn finish(&mut self, output: Vec<AppliedLine>, error: Vec<AppliedLine>) {
        self.read(output, error).await;
        self.close().await;
    }

    /// The lines of the two files, and no end yet for whoever has none.
    pub async fn read(&mut self, output: Vec<AppliedLine>, error: Vec<AppliedLine>) {
        let seen = self.seen(ObservedStatus::Ended(Terminal::Completed));
        self.step(Event::Observed { seen, at: self.nightshift.now() }).await;
        for (kind, lines) in [(ResultKind::Output, output), (ResultKind::Error, error)] {
            self.step(Event::Downloaded { kind, torn: false }).await;
            let step = self.plan(&Event::LinesRead { kind, from: 0, to: 100, end: true });
            let (id, revision) = (self.batch.id, self.batch.revision);
            let now = self.nightshift.now();
            let batch = self.nightshift.store().apply_lines(id, revision, step, lines, now).await.unwrap();
            self.took(batch);
        }
    }

    /// From there to the end.
    pub async fn close(&mut self) {
        while self.batch.state.label() == "closing" {
            let named = std::collections::HashMap::new();
            let (id, revision) = (self.batch.id, self.batch.revision);
            let now = self.nightshift.now();
            let closed =
                self.nightshift.store().close_chunk(id, revision, named, RETRY, POLICY, now).await.unwrap();
            self.took(closed.batch);
        }
        self.step(Event::Cleaned { at: self.nightshift.now() }).await;
    }
}

fn answered(number: u64) -> Answered {
    Answered {
        provider_request_id: Some(format!("req_{number}")),
        model: Some("gpt-4o-mini-2024-07-18".to_owned()),
        service_tier: Some("default".to_owned()),
        system_fingerprint: Some("fp_1".to_owned()),
        usage: Some(Usage { prompt: 120, completion: 30, total: 150, cached: 20, ..Usage::default() }),
    }
}

/// A line of an output file, good.
pub fn good_line(number: u64, analysis: Option<&str>) -> AppliedLine {
    let body = format!(r#"{{"id":"chatcmpl-{number}","choices":[]}}"#);
    AppliedLine::Line {
        repair: None,
        request: request_id(number),
        outcome: Outcome { answered: answered(number), result: Ok(body) },
        analysis: analysis.map(str::to_owned),
        cost: Some(Cost { micros: 18, currency: "USD".to_owned(), price_version: "test".to_owned() }),
    }
}

/// A line of an error file that no further try would change.
pub fn refused_line(number: u64) -> AppliedLine {
    let failure =
        Failure::new(FailureClass::Permanent, "context_length_exceeded", "too long").with_status(400);
    AppliedLine::Line {
        repair: None,
        request: request_id(number),
        outcome: Outcome { answered: Answered::default(), result: Err(failure) },
        analysis: None,
        cost: None,
    }
}

/// Compares a value with `tests/golden/<name>.json`. `NIGHTSHIFT_WRITE_GOLDEN=1` writes the file instead: look
/// at what changed before it is committed, since programs of others read these replies.
pub fn golden(name: &str, found: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json"));
    if std::env::var_os("NIGHTSHIFT_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, format!("{found:#}\n")).unwrap();
        return;
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let expected: Value = serde_json::from_str(&text).unwrap();
    assert!(expected == *found, "{} says\n{expected:#}\nbut the reply is\n{found:#}", path.display());
}
