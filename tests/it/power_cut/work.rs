//! The process that is traced: a real store under load, which says on standard output what it was told is stored.
//! And the one that looks at an image: whether all of that is still there.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use nightshift::domain::batch::{
    Batch, BatchState, Credentials, InputFile, Intent, ProviderIdentity, ResultKind, Running, Terminal,
};
use nightshift::domain::cut::Limits;
use nightshift::domain::event::{Event, Observation, ObservedStatus};
use nightshift::domain::id::{BatchId, FileId, Nonce, ProviderBatchId, RequestId, Timestamp};
use nightshift::domain::request::{
    Answered, Cost, Endpoint, Failure, FailureClass, Group, Outcome, RequestStatus, Source,
};
use nightshift::domain::retry;
use nightshift::domain::step::{self, Policy};
use nightshift::store::{Accepted, AppliedLine, NewRequest, Store};

use super::disk::Dice;

const POLICY: Policy = Policy { backoff: Duration::ZERO, capacity_backoff: Duration::ZERO, sweeps_min: 3 };
const RETRY: retry::Policy =
    retry::Policy { max_attempts: 3, backoff: Duration::ZERO, capacity_backoff: Duration::ZERO };
const LIMITS: Limits =
    Limits { requests_max: 60, bytes_max: 10_000_000, tokens_max: None, age_max: Duration::ZERO };

/// Clients that send at the same time.
const CLIENTS: u8 = 3;
/// A client stops here, so that the trace stays small on a fast machine.
const CALLS_MAX: u32 = 150;
/// And makes at least so many, however slow the machine is.
const CALLS_MIN: u32 = 8;

/// The session in which the store is exchanged for a compacted one, and the words around that.
pub const COMPACTED: u8 = 1;
pub const COMPACTING: &str = "compacting";
pub const COMPACTED_WELL: &str = "compacted";

static MILLIS: AtomicI64 = AtomicI64::new(1_795_000_000_000);

fn now() -> Timestamp {
    Timestamp::from_millis(MILLIS.fetch_add(1, Ordering::Relaxed))
}

/// Says that something is stored: one line and one write, so that it has one place in the trace.
fn acknowledge(what: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("ACK {what}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn group(client: u8) -> Group {
    let company = ["acme", "beta", "gamma"][usize::from(client) % 3].parse().unwrap();
    Group { company, endpoint: Endpoint::ChatCompletions, model: "gpt-4o-mini".to_owned() }
}

fn request_id(session: u8, client: u8, number: u32) -> RequestId {
    let mut bytes = [0; 16];
    bytes[5] = session;
    bytes[6] = 0x70 | client;
    bytes[8] = 0x80;
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    RequestId::from_bytes(bytes)
}

fn seed_of(id: RequestId) -> u64 {
    id.as_bytes().iter().fold(1, |seed, byte| seed.wrapping_mul(257).wrapping_add(u64::from(*byte)))
}

/// What a request asks, out of its id: words that do not shrink, and now and then too many for one value.
fn body(id: RequestId) -> String {
    let mut dice = Dice(seed_of(id));
    let words = if dice.one_in(60) { 9_000 } else { 2 + dice.below(60) };
    let text: String = (0..words).map(|_| format!("{:016x}", dice.next())).collect();
    format!("{{\"model\":\"gpt-4o-mini\",\"q\":\"{text}\"}}")
}

fn answer(id: RequestId) -> String {
    format!("{{\"a\":\"{:032x}\"}}", u128::from(seed_of(id)) << 7)
}

fn new_request(id: RequestId, client: u8) -> NewRequest {
    let body = body(id);
    NewRequest {
        id,
        group: group(client),
        source: Source::Generic { client_id: None },
        key: None,
        content_hash: [0; 32],
        line_bytes: u32::try_from(body.len()).unwrap(),
        body: Some(body),
        line_crc: 0,
        estimated_tokens: 1,
        output_max: None,
        inputs: 0,
        metadata: None,
        priority: 0,
        not_before: None,
    }
}

/// Works on the store below `data` for about `time`, then leaves as a kill does: without a word to anybody.
pub fn drive(data: &Path, session: u8, time: Duration) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let instance = uuid::Uuid::from_u128(7);
        let store = Store::open(data, instance, std::sync::Arc::new(|err| panic!("{err}"))).await.unwrap();
        // A slow start is none of the work.
        let end = Instant::now() + time;
        let clients = (0..CLIENTS).map(|client| tokio::spawn(accept(store.clone(), session, client, end)));
        let clients: Vec<_> = clients.collect();
        let batches = tokio::spawn(work(store.clone(), session, end));
        for client in clients {
            client.await.unwrap();
        }
        batches.await.unwrap();
    });
    std::process::exit(0)
}

async fn accept(store: Store, session: u8, client: u8, end: Instant) {
    let mut dice = Dice(u64::from(session) << 8 | u64::from(client));
    let mut next = 0;
    for call in 0..CALLS_MAX {
        if call >= CALLS_MIN && Instant::now() >= end {
            return;
        }
        let count = 1 + u32::try_from(dice.below(12)).unwrap();
        let ids = (next..next + count).map(|number| request_id(session, client, number));
        let new = ids.map(|id| new_request(id, client)).collect();
        let accepted = store.accept_requests(new, now()).await.unwrap();
        assert!(accepted.iter().all(|accepted| matches!(accepted, Accepted::New(_))));
        acknowledge(&format!("requests {session} {client} {next} {count}"));
        next += count;
    }
}

/// Fills batches and takes each through its life, as if the provider answered at once.
async fn work(store: Store, session: u8, end: Instant) {
    let (mut number, mut compacted) = (0_u32, false);
    let compacts = session == COMPACTED;
    // On a machine with much to do the time may be over before there was a compaction.
    while Instant::now() < end || (compacts && !compacted) {
        for id in store.reader().live_batches().unwrap() {
            let mut batch = store.reader().batch(id).unwrap().unwrap();
            while !matches!(batch.state, BatchState::Closed { .. }) && Instant::now() < end {
                batch = advance(&store, batch).await;
                acknowledge(&format!("batch {} {}", batch.id, batch.revision.0));
            }
        }
        store.release_due(now()).await.unwrap();
        for waits in store.reader().waiting().unwrap() {
            if waits.filling.is_some() || waits.waiting.requests == 0 {
                continue;
            }
            number += 1;
            let mut bytes = [session; 16];
            bytes[12..].copy_from_slice(&number.to_be_bytes());
            let id = BatchId::from_bytes(bytes);
            let batch = Batch::open(id, waits.group, ProviderIdentity::default(), now());
            store.open_batch(batch).await.unwrap();
            acknowledge(&format!("batch {id} 0"));
            let mut batch = store.reader().batch(id).unwrap().unwrap();
            loop {
                let cut = store.cut_chunk(id, batch.revision, LIMITS).await.unwrap();
                batch = cut.batch;
                acknowledge(&format!("batch {id} {}", batch.revision.0));
                if cut.done {
                    break;
                }
            }
        }
        if number.is_multiple_of(5) {
            store.anchor().await.unwrap();
        }
        if compacts && !compacted {
            // In the midst of it all: clients go on sending.
            acknowledge(COMPACTING);
            store.compact().await.unwrap();
            acknowledge(COMPACTED_WELL);
            compacted = true;
        }
    }
}

/// The next step of a batch, stored.
async fn advance(store: &Store, batch: Batch) -> Batch {
    let (id, at) = (batch.id, now());
    let seen = |status, output: bool| Observation {
        id: ProviderBatchId::new(format!("batch_{id}")),
        status: Some(status),
        output: output.then(|| FileId::new("output")),
        error: None,
        completed_lines: output.then_some(1),
        failed_lines: None,
        problems: Vec::new(),
        expires_at: None,
        ended_at: None,
    };
    let event = match &batch.state {
        BatchState::Filling => Event::FillEnded { members: batch.counts.members, at },
        BatchState::Sealed => Event::Released,
        BatchState::Uploading { .. } => Event::Uploaded(InputFile {
            id: FileId::new(format!("file-{id}")),
            upload: 1,
            bytes: 0,
            created_at: at,
        }),
        BatchState::Ready { input, .. } => {
            let nonce = Nonce::from_bytes(*id.as_bytes());
            Event::IntentMade(Intent { nonce, input: input.clone(), at, made_with: Credentials::default() })
        }
        BatchState::Creating { .. } => {
            Event::Created(seen(ObservedStatus::Running(Running::InProgress), false))
        }
        BatchState::Observing { .. } => {
            Event::Observed { seen: seen(ObservedStatus::Ended(Terminal::Completed), true), at }
        }
        BatchState::Downloading { kind, .. } => Event::Downloaded { kind: *kind, torn: false },
        BatchState::Applying { kind, offset, .. } => return apply(store, &batch, *kind, *offset).await,
        BatchState::Closing { .. } => {
            let closed = store.close_chunk(id, batch.revision, HashMap::new(), RETRY, POLICY, at).await;
            return closed.unwrap().batch;
        }
        BatchState::Cleaning { .. } => Event::Cleaned { at },
        other => panic!("nothing here leads to {}", other.label()),
    };
    let step = step::step(&batch.state, batch.orders(), &event, &POLICY).unwrap();
    store.commit_step(id, batch.revision, step, at).await.unwrap()
}

/// Twenty lines of the result file: most are good, some failed, some are missing.
async fn apply(store: &Store, batch: &Batch, kind: ResultKind, offset: u64) -> Batch {
    let members = store.reader().members(batch.id, None, 1000).unwrap();
    let from = usize::try_from(offset).unwrap();
    let to = (from + 20).min(members.len());
    let mut done = Vec::new();
    let mut lines = Vec::new();
    for request in members[from..to].iter().copied() {
        let result = match seed_of(request) % 11 {
            0 => continue,
            1 => Err(Failure::new(FailureClass::Transient, "server_error", "")),
            2 => Err(Failure::new(FailureClass::Permanent, "invalid_value", "")),
            _ => {
                done.push(request.to_string());
                Ok(answer(request))
            }
        };
        let outcome = Outcome { answered: Answered::default(), result };
        let cost = Cost { micros: 3, currency: "USD".to_owned(), price_version: "1".to_owned() };
        lines.push(AppliedLine::Line { repair: None, request, outcome, analysis: None, cost: Some(cost) });
    }
    let event = Event::LinesRead { kind, from: offset, to: to as u64, end: to == members.len() };
    let step = step::step(&batch.state, batch.orders(), &event, &POLICY).unwrap();
    let batch = store.apply_lines(batch.id, batch.revision, step, lines, now()).await.unwrap();
    if !done.is_empty() {
        acknowledge(&format!("results {}", done.join(" ")));
    }
    batch
}

/// What an image is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All that was acknowledged is there, and the store goes on.
    Good,
    /// The store opens, and something that was acknowledged is not there.
    Lost(String),
    /// The store opens, and contradicts itself.
    Violated(String),
    /// The store does not open, or breaks when it is used.
    Refused(String),
}

/// Opens the store below `data` and looks for all that was acknowledged.
pub fn verify(data: &Path, acknowledged: &[&str]) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = match Store::open(data, uuid::Uuid::from_u128(8), std::sync::Arc::new(|_| {})).await {
            Ok(store) => store,
            Err(err) => return Verdict::Refused(err.to_string()),
        };
        for line in acknowledged {
            if let Err(lost) = find(&store, line) {
                return Verdict::Lost(format!("{lost} ({line})"));
            }
        }
        match store.reader().verify() {
            Ok(report) if report.violations.is_empty() => {}
            Ok(report) => return Verdict::Violated(format!("{:?}", report.violations[0])),
            Err(err) => return Verdict::Refused(err.to_string()),
        }
        let id = request_id(99, 0, 0);
        let more = store.accept_requests(vec![new_request(id, 0)], now()).await;
        if more != Ok(vec![Accepted::New(id)]) || store.anchor().await.is_err() {
            return Verdict::Refused(format!("it does not go on: {more:?}"));
        }
        Verdict::Good
    })
}

/// Whether the store has what one line says; else what is not there.
fn find(store: &Store, line: &str) -> Result<(), String> {
    let reader = store.reader();
    let words: Vec<&str> = line.split(' ').collect();
    let number = |index: usize| words[index].parse::<u32>().unwrap();
    let byte = |index: usize| words[index].parse::<u8>().unwrap();
    match words[0] {
        "requests" => {
            for request in number(3)..number(3) + number(4) {
                let id = request_id(byte(1), byte(2), request);
                let stored = reader.request(id).map_err(|err| err.to_string())?;
                stored.ok_or_else(|| format!("request {id} is gone"))?;
                let stored = reader.body(id).map_err(|err| err.to_string())?;
                if stored.as_deref() != Some(body(id).as_bytes()) {
                    return Err(format!("the body of request {id} is gone or another"));
                }
            }
            Ok(())
        }
        "batch" => {
            let id: BatchId = words[1].parse().unwrap();
            let stored = reader.batch(id).map_err(|err| err.to_string())?;
            let revision = stored.ok_or_else(|| format!("batch {id} is gone"))?.revision.0;
            if revision < u64::from(number(2)) {
                return Err(format!("batch {id} went back to revision {revision}"));
            }
            Ok(())
        }
        "results" => {
            for id in &words[1..] {
                let id: RequestId = id.parse().unwrap();
                let stored = reader.request(id).map_err(|err| err.to_string())?;
                let result = reader.result(id).map_err(|err| err.to_string())?;
                let status = stored.map(|request| request.status);
                if status != Some(RequestStatus::ProcessingComplete)
                    || result.as_deref() != Some(answer(id).as_bytes())
                {
                    return Err(format!("the result of request {id} is gone"));
                }
            }
            Ok(())
        }
        COMPACTING | COMPACTED_WELL => Ok(()),
        other => panic!("what is {other}?"),
    }
}
