//! The actors over a store in memory and the API before them, without a socket and without a provider.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use nightshift::actors::creator::Creator;
use nightshift::actors::intake::Intake;
use nightshift::actors::registry::Registry;
use nightshift::actors::{Shared, Switches};
use nightshift::clock::{Clock, Ids, ManualClock};
use nightshift::config::Secret;
use nightshift::domain::batch::{
    Anomalies, Batch, BatchState, Counts, InputFile, Intent, ProviderIdentity, ResultKind, Running, Terminal,
};
use nightshift::domain::company::Company;
use nightshift::domain::cut::Limits;
use nightshift::domain::event::{Event, Observation, ObservedStatus};
use nightshift::domain::id::{BatchId, FileId, Nonce, ProviderBatchId, RequestId, Revision, Timestamp};
use nightshift::domain::price::PriceTable;
use nightshift::domain::request::{Answered, Cost, Failure, FailureClass, Outcome, Usage};
use nightshift::domain::{retry, step};
use nightshift::http::{self, auth};
use nightshift::provider::openai::{OpenAi, Options};
use nightshift::store::{AppliedLine, Role, Store, StoredToken};
use serde_json::Value;
use warp::filters::BoxedFilter;
use warp::http::HeaderMap;
use warp::reply::Response;

use crate::process::TOKEN;

/// Tokens of the three roles.
pub const VIEWER: &str = "a-viewer-token-for-the-tests";
pub const COMPANY: &str = "a-company-token-for-the-tests";

pub struct Harness {
    pub shared: Arc<Shared>,
    pub clock: Arc<ManualClock>,
    routes: BoxedFilter<(Response,)>,
}

pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

/// Runs a test in an actix system.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    System::new().block_on(test)
}

impl Harness {
    pub async fn new() -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_secs(1_795_000_000)));
        let store = Store::in_memory(uuid::Uuid::from_u128(7)).await.unwrap();
        let company = |id: &str| Company {
            id: id.parse().unwrap(),
            name: id.to_uppercase(),
            model: "gpt-4o-mini".to_owned(),
            suspended: false,
        };
        store.put_companies(vec![company("acme"), company("beta")]).await.unwrap();
        for (token, role) in [(VIEWER, Role::Viewer), (COMPANY, Role::Company("acme".parse().unwrap()))] {
            let stored = StoredToken {
                hash: auth::hash(token),
                role,
                label: "test".to_owned(),
                created_at: clock.now(),
            };
            store.put_token(stored, false).await.unwrap();
        }
        let shared = Arc::new(Shared {
            reader: store.reader(),
            store,
            // Nothing here calls it: creation is switched off.
            provider: Arc::new(OpenAi::new(Options::new("http://127.0.0.1:9/v1")).unwrap()),
            identity: ProviderIdentity::default(),
            ids: Ids::new(clock.clone()),
            clock: clock.clone(),
            switches: Switches::new(false, false),
            prices: PriceTable {
                version: "1".to_owned(),
                currency: "USD".to_owned(),
                models: Default::default(),
            },
            spool: PathBuf::from("/nonexistent"),
            limits: Limits { requests_max: 50_000, bytes_max: 1_000_000, age_max: Duration::from_secs(60) },
            retry: RETRY,
            policy: POLICY,
            grace: Duration::from_secs(60),
            creation_interval: Duration::from_secs(3600),
            polling_interval: Duration::from_secs(3600),
            polling_calls_max: 100,
            settle: Duration::ZERO,
        });
        let registry = Registry::new(shared.clone()).start();
        let creator = Creator::new(shared.clone(), registry.clone()).start();
        let intake = Intake::new(shared.clone(), creator).start();
        let admin = Some(Secret::new(TOKEN));
        let routes = http::routes(http::Api::new(registry, intake, shared.clone(), admin).unwrap());
        Self { shared, clock, routes }
    }

    pub async fn call(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let mut request = warp::test::request()
            .method(method)
            .path(path)
            .extension(std::net::SocketAddr::from(([192, 0, 2, 7], 999)))
            .body(body);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let reply = request.reply(&self.routes).await;
        let json = serde_json::from_slice(reply.body()).unwrap_or(Value::Null);
        Reply { status: reply.status().as_u16(), headers: reply.headers().clone(), body: json }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, Some(TOKEN), &[], "").await
    }

    pub async fn post(&self, path: &str, body: &str) -> Reply {
        self.call("POST", path, Some(TOKEN), &[("content-type", "application/json")], body).await
    }

    pub async fn lines(&self, path: &str, body: &str) -> Reply {
        self.call("POST", path, Some(TOKEN), &[("content-type", "application/x-ndjson")], body).await
    }

    /// Sends so many requests of a company and returns their ids.
    pub async fn ingest(&self, company: &str, count: usize) -> Vec<String> {
        let body: String = (0..count).map(|n| line(&format!("{company}-{n}"))).collect();
        let reply = self.lines(&format!("/api/v1/companies/{company}/requests"), &body).await;
        assert_eq!(reply.body["accepted"], count, "{}", reply.body);
        let named = reply.body["requests"].as_array().unwrap();
        named.iter().map(|named| named["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Takes all that waits for a company through a batch: the first `good` requests complete, the next `bad` fail,
    /// the others go back to wait. Steps are the machine's own; only the provider is made up.
    pub async fn batch(&self, company: &str, good: usize, bad: usize) -> Batch {
        let store = &self.shared.store;
        let waits = self.shared.reader.waiting().unwrap();
        let group = waits.into_iter().find(|waits| waits.group.company.as_str() == company).unwrap().group;
        let id = BatchId::new(self.shared.ids.next());
        store.open_batch(empty(id, group, self.clock.now())).await.unwrap();
        let cut = store.cut_chunk(id, Revision(0), self.shared.limits).await.unwrap();
        let members = self.shared.reader.members(id, None, 1000).unwrap();
        let mut batch = cut.batch;
        let at = self.clock.now();
        let input = InputFile { id: FileId::new("file-in"), upload: 1, created_at: at };
        let intent = Intent { nonce: Nonce::from_bytes([1; 16]), input: input.clone(), at };
        let number = format!("{company}-{good}-{bad}");
        let seen = |status, files: bool| Observation {
            id: ProviderBatchId::new(format!("batch_{number}")),
            status: Some(status),
            output: files.then(|| FileId::new("file-out")),
            error: None,
            completed_lines: None,
            failed_lines: None,
            problems: Vec::new(),
            ended_at: None,
        };
        let kind = ResultKind::Output;
        for event in [
            Event::FillEnded { members: members.len() as u64, at },
            Event::Released,
            Event::Uploaded(input),
            Event::IntentMade(intent),
            Event::Created(seen(ObservedStatus::Running(Running::Validating), false)),
            Event::Observed { seen: seen(ObservedStatus::Ended(Terminal::Completed), true), at },
            Event::Downloaded { kind, torn: false },
        ] {
            let step = step::step(&batch.state, &event, &POLICY).unwrap();
            batch = store.commit_step(id, batch.revision, step, at).await.unwrap();
        }
        let lines = members
            .iter()
            .take(good + bad)
            .enumerate()
            .map(|(number, request)| answer(*request, number < good));
        let event = Event::LinesRead { kind, from: 0, to: 100, end: true };
        let step = step::step(&batch.state, &event, &POLICY).unwrap();
        batch = store.apply_lines(id, batch.revision, step, lines.collect(), at).await.unwrap();
        while matches!(batch.state, BatchState::Closing { .. }) {
            let named = Default::default();
            batch = store.close_chunk(id, batch.revision, named, RETRY, POLICY, at).await.unwrap().batch;
        }
        let step = step::step(&batch.state, &Event::Cleaned { at }, &POLICY).unwrap();
        store.commit_step(id, batch.revision, step, at).await.unwrap()
    }
}

/// One line of a body for ingest.
pub fn line(id: &str) -> String {
    format!(
        "{{\"id\":\"{id}\",\"endpoint\":\"/v1/chat/completions\",\"body\":{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}}}\n"
    )
}

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

fn empty(id: BatchId, group: nightshift::domain::request::Group, at: Timestamp) -> Batch {
    Batch {
        id,
        revision: Revision::default(),
        group,
        provider: ProviderIdentity::default(),
        state: BatchState::Filling,
        counts: Counts::default(),
        input_bytes: 0,
        estimated_tokens: 0,
        cost_micros: 0,
        anomalies: Anomalies::default(),
        input: None,
        provider_batch: None,
        output: None,
        error: None,
        superseded: Vec::new(),
        created_at: at,
        completed_at: None,
        processed_at: None,
        closed_at: None,
        story_lines: 0,
    }
}

fn answer(request: RequestId, good: bool) -> AppliedLine {
    let usage = Usage { prompt: 11, completion: 4, total: 15, ..Usage::default() };
    let answered = Answered {
        provider_request_id: Some("req_1".to_owned()),
        model: Some("gpt-4o-mini-2024-07-18".to_owned()),
        service_tier: Some("default".to_owned()),
        system_fingerprint: Some("fp_1".to_owned()),
        usage: good.then_some(usage),
    };
    let failure = || Failure::new(FailureClass::Permanent, "invalid_value", "no such thing").with_status(400);
    let result = if good { Ok("{\"id\":\"chatcmpl-1\"}".to_owned()) } else { Err(failure()) };
    let cost = good.then(|| Cost { micros: 3, currency: "USD".to_owned(), price_version: "1".to_owned() });
    AppliedLine::Line { request, outcome: Outcome { answered, result }, analysis: None, cost }
}
