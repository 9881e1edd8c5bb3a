//! A simulator behind a door, and what these tests ask again and again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nightshift::clock::{Clock as _, ManualClock, SharedClock, SystemClock};
use nightshift::simulator::{FaultPlan, Options, Simulator};
use serde_json::Value;
use tokio::sync::oneshot;
use warp::Filter;
use warp::reply::Reply;

use crate::process::{PATIENCE, Server, call, nightshift, read, run, text};

/// Half of the time that a batch takes where the provider's clock stands.
pub const HALF: Duration = Duration::from_secs(30);

/// A data folder with two companies, `demo` and `other`.
pub fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = "[[companies]]\nid = \"demo\"\n[[companies]]\nid = \"other\"\n";
    std::fs::write(folder.path().join("config.toml"), config).unwrap();
    folder
}

/// What the door answers to a call such as `POST /v1/batches`; none lets it through.
type Rule = Box<dyn Fn(&str) -> Option<(u16, &'static str)> + Send>;

struct Door {
    rule: Rule,
    calls: Vec<Called>,
}

/// A call such as `POST /v1/batches`, and with which key.
struct Called {
    call: String,
    key: String,
}

/// The simulator in this process, with a door before it that sees every call.
pub struct Provider {
    pub url: String,
    pub state: PathBuf,
    door: Arc<Mutex<Door>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Provider {
    /// One with its state in `state`; `set` changes how it behaves.
    pub fn start(state: &Path, faults: &str, set: impl FnOnce(&mut Options)) -> Self {
        Self::start_by(Arc::new(SystemClock::new()), state, faults, |options| {
            options.turnaround = Duration::from_secs(2);
            options.tick = Duration::from_millis(200);
            set(options);
        })
    }

    /// The same by a clock of the test's.
    pub fn start_by(clock: SharedClock, state: &Path, faults: &str, set: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::new(state);
        options.faults = FaultPlan::parse(faults).unwrap();
        set(&mut options);
        let door = Arc::new(Mutex::new(Door { rule: Box::new(|_| None), calls: Vec::new() }));
        let (stop, stopped) = oneshot::channel::<()>();
        let (told, address) = std::sync::mpsc::channel();
        let watched = door.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let simulator = Simulator::open(options, clock).unwrap();
                let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
                let listener = tokio::net::TcpListener::bind(loopback).await.unwrap();
                told.send(listener.local_addr().unwrap()).unwrap();
                let stop = async {
                    let _ = stopped.await;
                };
                let routes = guarded(watched, &simulator);
                simulator.serve_routes(listener, routes, stop).await;
            });
        });
        let address = address.recv().unwrap();
        Self {
            url: format!("http://{address}/v1"),
            state: state.to_owned(),
            door,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// One whose clock stands until the test moves it.
    pub fn start_still(state: &Path, faults: &str) -> (Self, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(SystemClock::new().now()));
        let provider = Self::start_by(clock.clone(), state, faults, |options| {
            options.turnaround = 2 * HALF;
        });
        (provider, clock)
    }

    /// Answers as `rule` says from now on.
    pub fn shut(&self, rule: impl Fn(&str) -> Option<(u16, &'static str)> + Send + 'static) {
        self.door.lock().unwrap().rule = Box::new(rule);
    }

    /// Refuses these calls from the next create call on, until it is opened again.
    pub fn shut_after_a_create(&self, refused: fn(&str) -> bool) {
        let created = AtomicBool::new(false);
        self.shut(move |call| {
            created.fetch_or(call == "POST /v1/batches", Ordering::SeqCst);
            (created.load(Ordering::SeqCst) && refused(call)).then_some((503, "overloaded"))
        });
    }

    /// Deletes nothing until it is opened again.
    pub fn refuse_to_delete(&self) {
        self.shut(|call| call.starts_with("DELETE").then_some((400, "This file cannot be deleted.")));
    }

    /// Lets everything through again.
    pub fn open(&self) {
        self.shut(|_| None);
    }

    /// How many calls that contain `part` came so far.
    pub fn calls(&self, part: &str) -> usize {
        self.calls_by("", part)
    }

    /// The same with this key.
    pub fn calls_by(&self, key: &str, part: &str) -> usize {
        let door = self.door.lock().unwrap();
        door.calls.iter().filter(|called| called.call.contains(part) && called.key.contains(key)).count()
    }

    /// What it says itself of a batch of ours.
    pub fn status(&self, batch: &Value) -> String {
        let path = format!("/batches/{}", batch["openaiBatchId"].as_str().unwrap());
        let (status, answer) = call(&self.url, "GET", &path, None).unwrap();
        assert_eq!(status, 200, "{answer}");
        answer["status"].as_str().unwrap().to_owned()
    }

    /// How often each line was run.
    pub fn runs(&self) -> BTreeMap<String, u32> {
        runs(&self.state)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let (Some(stop), Some(thread)) = (self.stop.take(), self.thread.take()) {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

fn guarded(
    door: Arc<Mutex<Door>>,
    simulator: &Simulator,
) -> warp::filters::BoxedFilter<(warp::reply::Response,)> {
    let key = warp::header::optional("authorization");
    let seen = warp::method().and(warp::path::full()).and(key).and_then(
        move |method: warp::http::Method, path: warp::path::FullPath, key: Option<String>| {
            let call = format!("{method} {}", path.as_str());
            let mut door = door.lock().unwrap();
            let answer = (door.rule)(&call);
            door.calls.push(Called { call, key: key.unwrap_or_default() });
            async move {
                let (status, code) = answer.ok_or_else(warp::reject::not_found)?;
                let body = serde_json::json!({"error": {"code": code, "message": "The door is shut."}});
                let status = warp::http::StatusCode::from_u16(status).unwrap();
                let reply = warp::reply::with_status(warp::reply::json(&body), status);
                Ok::<_, warp::Rejection>(reply.into_response())
            }
        },
    );
    seen.or(simulator.routes()).unify().boxed()
}

/// What a simulator has booked.
#[derive(Default)]
pub struct Ledger {
    /// The batches that were created.
    pub created: Vec<String>,
    /// What was run, by custom id: the batches in which it was.
    pub runs: BTreeMap<String, Vec<String>>,
}

impl Ledger {
    /// Reads the one in a simulator's folder.
    pub fn read(state: &Path) -> Self {
        let mut ledger = Self::default();
        let text = read(&state.join("ledger.jsonl"));
        // What is written at this moment has no end yet.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| line[name].as_str().unwrap().to_owned();
            match line["event"].as_str() {
                Some("batch_created") => ledger.created.push(text("batch")),
                Some("line_run") => ledger.runs.entry(text("custom_id")).or_default().push(text("batch")),
                _ => {}
            }
        }
        ledger
    }
}

/// How often each line was run, by the ledger in a simulator's folder.
pub fn runs(state: &Path) -> BTreeMap<String, u32> {
    let runs = Ledger::read(state).runs.into_iter();
    runs.map(|(id, batches)| (id, u32::try_from(batches.len()).unwrap())).collect()
}

/// Asserts that `count` requests ran and none of them twice.
pub fn assert_once(runs: &BTreeMap<String, u32>, count: usize) {
    let twice: Vec<_> = runs.iter().filter(|(_, runs)| **runs > 1).collect();
    assert!(twice.is_empty(), "run more than once: {twice:?}");
    assert_eq!(runs.len(), count);
}

const FAST: [&str; 8] = [
    "creation.interval=1s",
    "creation.max_age=0s",
    "polling.interval=1s",
    "submission.grace=1s",
    "retry.backoff=1s",
    "retry.capacity_backoff=1s",
    "analysis.settle=0s",
    "provider.kind=openai",
];

/// A command against the provider at `url`.
pub fn command(data: &Path, url: &str, port: u16, set: &[&str]) -> Command {
    let mut command = nightshift(data);
    command.env("OPENAI_API_KEY", "a-key").env("OPENAI_BASE_URL", url);
    for set in FAST.iter().chain(set) {
        command.args(["--set", set]);
    }
    command.args(["--set", &format!("server.bind=127.0.0.1:{port}")]);
    command
}

/// A server against this provider.
pub fn serve(data: &Path, provider: &Provider, port: u16, set: &[&str]) -> Server {
    Server::spawn(command(data, &provider.url, port, set), port)
}

/// Asks until there is an answer.
pub fn until<T>(server: &mut Server, what: &str, mut look: impl FnMut(&Server) -> Option<T>) -> T {
    let end = Instant::now() + 2 * PATIENCE;
    loop {
        if let Some(found) = look(server) {
            return found;
        }
        let batches = || server.get("/api/admin/legacy/batches");
        assert!(Instant::now() < end, "{what} did not come; {}; log:\n{}", batches(), server.tail());
        server.wait_until(Duration::from_millis(100), |_| false);
    }
}

/// Looks on for a while; `each` may complain.
pub fn watch(server: &mut Server, millis: u64, mut each: impl FnMut(&Server)) {
    let end = Instant::now() + Duration::from_millis(millis);
    while Instant::now() < end {
        each(server);
        server.wait_until(Duration::from_millis(100), |_| false);
    }
}

/// Sends requests of a company; `text` makes the text of each.
pub fn send(server: &Server, company: &str, count: usize, text: impl Fn(usize) -> String) {
    send_from(server, company, 0, count, text);
}

/// The same with ids that begin at a number.
pub fn send_from(server: &Server, company: &str, from: usize, count: usize, text: impl Fn(usize) -> String) {
    let line = |number: usize| {
        let body = serde_json::json!({
            "id": format!("{company}-{number}"),
            "endpoint": "/v1/chat/completions",
            "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text(number)}]},
        });
        format!("{body}\n")
    };
    let lines: String = (from..from + count).map(line).collect();
    let path = format!("/api/v1/companies/{company}/requests");
    let answer = server.post(&path, "application/x-ndjson", lines);
    assert_eq!((answer["accepted"].as_u64(), &answer["rejected"]), (Some(count as u64), &Value::from(0)));
}

pub fn question(number: usize) -> String {
    format!("Question {number}?")
}

/// Every batch, oldest first.
pub fn batches(server: &Server) -> Vec<Value> {
    let mut batches =
        server.get("/api/admin/legacy/batches?limit=100")["batches"].as_array().unwrap().clone();
    batches.reverse();
    batches
}

/// Every request that has come to its end.
pub fn requests(server: &Server) -> Vec<Value> {
    let ended = ["processing_complete", "processing_failed"].map(|status| {
        let page = server.get(&format!("/api/admin/legacy/requests?status={status}&limit=100"));
        page["requests"].as_array().unwrap_or_else(|| panic!("no list: {page}")).clone()
    });
    ended.concat()
}

pub fn batch(server: &Server, id: &str) -> Value {
    server.get(&format!("/api/admin/legacy/batches/{id}"))["batch"].clone()
}

pub fn id(batch: &Value) -> String {
    batch["id"].as_str().unwrap().to_owned()
}

pub fn provider(server: &Server) -> Value {
    server.get("/api/admin/legacy/provider")
}

/// The status and code, or the empty text, of an order to cancel.
pub fn cancel(server: &Server, id: &str, body: &str) -> (u16, String) {
    let path = format!("/api/admin/legacy/batches/{id}/cancel");
    let (status, answer) =
        server.try_call("POST", &path, Some(("application/json", body.to_owned()))).unwrap();
    (status, answer["code"].as_str().unwrap_or_default().to_owned())
}

/// Checks the store of a server that was stopped.
pub fn assert_whole(data: &Path) {
    let verified = run(nightshift(data).arg("verify"));
    assert!(verified.status.success(), "{}{}", text(&verified.stdout), text(&verified.stderr));
}
