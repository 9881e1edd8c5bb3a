//! Ends the real binary at every crash point, and lets it panic there, and counts what the provider ran.
//!
//! The binary is one of its own, built with the feature `crash-points` (`NIGHTSHIFT_CRASH_POINTS_BIN` names it, else
//! it is built here). The simulator runs as a process of its own, so it lives on as a provider does. Several lanes
//! run beside each other; each goes through its points with one data folder: end there, start again with the next
//! point and more work, and at last come to the end without one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nightshift::crash_points::CRASH_POINTS;
use serde_json::{Value, json};

use crate::process::{TOKEN, program, read, run, text};

/// A point that is not passed in this time is not passed at all.
const HIT_WITHIN: Duration = Duration::from_secs(40);
/// The work of a lane is done in this time once nothing ends it any more.
const DONE_WITHIN: Duration = Duration::from_secs(120);
/// How often a lane looks how far the work is.
const LOOK: Duration = Duration::from_millis(200);

/// Points that no work passes yet, and why. `nothing_calls_what_is_said_not_to_be_called` watches the reasons.
const UNREACHED: &[(&str, &str)] = &[];

/// Passed when the process is told to stop, once a process.
const ON_STOP: &[&str] = &["drain.before_anchor"];

/// Passed once in the life of a data folder.
const ONCE: &[&str] = &["store.before_name"];

/// What only some work passes.
const ROUGH: &[&str] = &[
    "list_files.before_send",
    "list_files.after_send",
    "sweep.before_search",
    "sweep.after_search",
    "fence.before_delete",
    "fence.after_delete",
    "delete_file.before_send",
    "delete_file.after_send",
];
const ALONE: &[&str] = &["get_batch.before_send", "get_batch.after_send", "poll.single.before_tell"];
const CANCELLED: &[&str] = &["cancel.before_send", "cancel.after_send"];
const FAILING: &[&str] = &["requeue.before_commit", "requeue.after_commit"];
const TOLD: &[&str] = &["webhook.before_send", "webhook.after_send_before_commit"];
const IMPORT: &[&str] = &[
    "import.mid_read",
    "import.before_commit",
    "import.after_commit",
    "import.after_chunk",
    "settle.before_commit",
    "settle.after_commit",
];

/// A panic here ends the process by design, with this code: the store cannot go on, or a part that nothing replaces.
const ENDS_THE_PROCESS: &[(&str, i32)] = &[
    // First of all: it is passed in a new folder only.
    ("store.before_name", 1),
    ("commit.before_apply", 74),
    ("commit.after_apply_before_sync", 74),
    ("commit.after_sync_before_anchor", 74),
    ("commit.after_anchor_before_replies", 74),
    ("anchor.after_tmp", 74),
    ("anchor.after_fsync", 74),
    ("anchor.after_rename", 74),
    ("host.before_start", 1),
    ("drain.before_anchor", 1),
];

/// Points that are passed all the time, so that each passage is another moment.
const OFTEN: &[&str] = &[
    "commit.before_apply",
    "commit.after_apply_before_sync",
    "commit.after_sync_before_anchor",
    "commit.after_anchor_before_replies",
    "step.before_commit",
    "step.after_commit",
];

const WEBHOOKS: &str = "/api/v1/companies/demo/webhooks";

/// A kind of work, and what goes wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Two batches a wave, nothing goes wrong.
    Calm,
    /// One batch a wave.
    Alone,
    /// Answers to uploads and create calls are lost, with and without an effect.
    Rough,
    /// Half of the lines fail for good, and are requeued by hand.
    Failing,
    /// Batches that run are cancelled by hand; what they did not finish goes into others.
    Cancelled,
    /// Sessions out of an export that grows.
    Import,
    /// A webhook is told of all that is finished.
    Told,
}

impl Work {
    fn of(point: &str) -> Self {
        let kinds = [
            (ROUGH, Self::Rough),
            (ALONE, Self::Alone),
            (CANCELLED, Self::Cancelled),
            (FAILING, Self::Failing),
            (IMPORT, Self::Import),
            (TOLD, Self::Told),
        ];
        let found = kinds.into_iter().find(|(points, _)| points.contains(&point));
        found.map_or(Self::Calm, |(_, work)| work)
    }

    fn faults(self) -> Value {
        let every = |from: u64, step: usize| (from..2000).step_by(step).collect::<Vec<_>>();
        match self {
            Self::Calm | Self::Alone | Self::Cancelled | Self::Import | Self::Told => json!({}),
            Self::Rough => json!({ "calls": [
                { "call": "files.create", "fault": "drop_after", "nth": every(1, 2) },
                { "call": "batches.create", "fault": "drop_before", "nth": every(1, 3) },
                { "call": "batches.create", "fault": "drop_after", "nth": every(2, 3) },
            ] }),
            Self::Failing => json!({ "seed": 5, "lines": [{ "fault": "error", "probability": 0.5 }] }),
        }
    }

    const fn wave(self) -> usize {
        match self {
            Self::Calm | Self::Rough | Self::Cancelled | Self::Failing | Self::Told => 10,
            Self::Alone => 3,
            Self::Import => 2,
        }
    }
}

/// One passage of one point.
type Case = (&'static str, u64);

/// Says in an environment variable which passages are meant.
fn named(cases: &[Case]) -> String {
    cases.iter().map(|(point, nth)| format!("{point}:{nth}")).collect::<Vec<_>>().join(",")
}

fn is_long() -> bool {
    std::env::var("NIGHTSHIFT_TEST_LONG").is_ok()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The binary that has the points.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("NIGHTSHIFT_CRASH_POINTS_BIN") {
            return path.into();
        }
        let target = root().join("target/crash-points");
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--locked", "--quiet", "--features", "crash-points", "--target-dir"])
            .arg(&target);
        assert!(build.current_dir(root()).status().unwrap().success(), "the binary cannot be built");
        target.join("debug/nightshift")
    })
}

fn command(folder: &Path) -> Command {
    program(binary(), folder)
}

/// One client for all lanes: making one takes longer than a call.
fn http() -> &'static (tokio::runtime::Runtime, reqwest::Client) {
    static HTTP: OnceLock<(tokio::runtime::Runtime, reqwest::Client)> = OnceLock::new();
    HTTP.get_or_init(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).pool_max_idle_per_host(0);
        (runtime, client.build().unwrap())
    })
}

/// A running process; it is ended with the test.
struct Process {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    url: String,
}

impl Process {
    fn spawn(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let to = sender.clone();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| to.send(line))
        });
        std::thread::spawn(move || {
            BufReader::new(err).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines, seen: Vec::new(), url: String::new() }
    }

    /// Reads on until a line has `part`, or until the process has ended.
    fn read_until(&mut self, part: &str, patience: Duration) -> Result<String, Option<ExitStatus>> {
        let end = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(part) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err(None),
                Err(RecvTimeoutError::Disconnected) => return Err(Some(self.child.wait().unwrap())),
            }
        }
    }

    fn signal(&self, name: &str) {
        // Only a process that this test started, by its own id.
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Whether the log has the words of a panic, and not only that a point was reached.
    fn repeats_words(&self) -> bool {
        self.seen.iter().any(|line| line.contains("crash point ") && !line.contains(" is reached"))
    }

    fn tail(&self) -> String {
        self.seen.iter().rev().take(30).rev().cloned().collect::<Vec<_>>().join("\n")
    }

    fn call(&self, method: &str, path: &str, content_type: &str, body: String) -> Option<Value> {
        let (runtime, client) = http();
        let request =
            client.request(method.parse().unwrap(), format!("{}{path}", self.url)).bearer_auth(TOKEN);
        let request = request.header("content-type", content_type).body(body);
        runtime.block_on(async {
            let answer = request.send().await.ok()?;
            serde_json::from_slice(&answer.bytes().await.ok()?).ok()
        })
    }

    fn get(&self, path: &str) -> Option<Value> {
        self.call("GET", &format!("/api/admin/legacy/{path}"), "application/json", String::new())
    }

    /// The four counts of the summary.
    fn summary(&self) -> Option<[u64; 4]> {
        let counts = self.get("summary")?;
        let names = ["pending_batching", "batching_in_progress", "processing_complete", "processing_failed"];
        let counts = names.map(|name| counts["summary"][name].as_u64());
        counts.iter().all(Option::is_some).then(|| counts.map(Option::unwrap))
    }

    fn cancel_running(&self) {
        let batches = self.get("batches?limit=100");
        let Some(batches) = batches.as_ref().and_then(|batches| batches["batches"].as_array()) else {
            return;
        };
        for batch in batches.iter().filter(|batch| batch["step"] == "observing" && batch["cancel"].is_null())
        {
            let path = format!("/api/admin/legacy/batches/{}/cancel", batch["id"].as_str().unwrap());
            self.call("POST", &path, "application/json", String::new());
        }
    }

    fn requeue_failed(&self) {
        let failed = self.get("requests?status=processing_failed&limit=500");
        let Some(failed) = failed.as_ref().and_then(|failed| failed["requests"].as_array()) else { return };
        let ids: Vec<_> = failed.iter().map(|request| &request["id"]).collect();
        // In two calls, so that there is a second passage.
        for ids in ids.chunks(ids.len().div_ceil(2).max(1)) {
            let body = json!({ "requestIds": ids }).to_string();
            self.call("POST", "/api/admin/legacy/requests/requeue", "application/json", body);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes what webhooks are told, and keeps of which requests it was.
struct Hearer {
    host: String,
    told: Arc<Mutex<BTreeSet<String>>>,
}

impl Hearer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (host, told) = (listener.local_addr().unwrap().to_string(), Arc::<Mutex<BTreeSet<_>>>::default());
        let heard = told.clone();
        // It ends with the process of the tests; a sender that dies in the midst is what is tested.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _ = Self::hear(stream, &heard);
            }
        });
        Self { host, told }
    }

    fn hear(stream: std::net::TcpStream, told: &Mutex<BTreeSet<String>>) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut reader = BufReader::new(&stream);
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line)? > 2 {
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let said: Value = serde_json::from_slice(&body).unwrap_or_default();
        let requests = said["data"]["requests"].as_array().cloned().unwrap_or_default();
        told.lock().unwrap().extend(requests.iter().map(|one| one["clientId"].as_str().unwrap().to_owned()));
        (&stream).write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
    }
}

/// A data folder with its provider, through all starts.
struct Lane {
    name: String,
    work: Work,
    folder: tempfile::TempDir,
    simulator: Process,
    /// How many requests were sent, answered or not.
    sent: usize,
    sessions: usize,
    receiver: Option<Hearer>,
    wrong: Vec<String>,
}

impl Lane {
    fn new(name: &str, work: Work) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("faults.json"), work.faults().to_string()).unwrap();
        let mut config = String::from("[[companies]]\nid = \"demo\"\nmodel = \"gpt-4o-mini\"\n");
        if work == Work::Import {
            std::fs::write(folder.path().join("sessions.csv"), "").unwrap();
            config += "[[imports]]\ncompany = \"demo\"\ncsv = \"sessions.csv\"\nevery = \"1s\"\n";
        }
        let receiver = (work == Work::Told).then(Hearer::start);
        if let Some(receiver) = &receiver {
            config += &format!("[fetch]\nallow_hosts = [\"{}\"]\n", receiver.host);
        }
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        let mut simulate = command(folder.path());
        simulate.args(["simulate", "--port", "0", "--state", "provider", "--turnaround", "500ms"]);
        simulate.args(["--faults", "faults.json"]);
        let mut simulator = Process::spawn(simulate);
        simulator.url = simulator.read_until("http://", Duration::from_secs(60)).expect("no simulator");
        if let Some(at) = simulator.url.find("http://") {
            let url = simulator.url[at..].split_whitespace().next().unwrap();
            simulator.url = url.to_owned();
        }
        Self {
            name: name.to_owned(),
            work,
            folder,
            simulator,
            sent: 0,
            sessions: 0,
            receiver,
            wrong: Vec::new(),
        }
    }

    fn program(&self) -> Command {
        let mut program = command(self.folder.path());
        let attempts = if self.work == Work::Failing { 1 } else { 20 };
        for set in [
            "server.bind=127.0.0.1:0",
            "provider.kind=openai",
            &format!("provider.base_url={}", self.simulator.url),
            "creation.interval=1s",
            "creation.max_age=0s",
            "creation.max_requests=5",
            "polling.interval=1s",
            "submission.grace=1s",
            "retry.backoff=1s",
            &format!("retry.max_attempts={attempts}"),
            "analysis.settle=0s",
            "log.level=info",
        ] {
            program.args(["--set", set]);
        }
        program.env("OPENAI_API_KEY", "any");
        program
    }

    /// Starts it and waits until it is up; what it ended with, if it did not come so far.
    fn start(&mut self, variable: &str, value: &str) -> (Process, Option<ExitStatus>) {
        if self.work == Work::Import {
            self.grow_export();
        }
        let mut program = self.program();
        if !value.is_empty() {
            program.env(variable, value);
        }
        let mut process = Process::spawn(program);
        match process.read_until("nightshift is up", Duration::from_secs(60)) {
            Ok(line) => {
                let from = line.find("API on ").expect("no address") + "API on ".len();
                process.url = line[from..].split(',').next().unwrap().to_owned();
                self.make_webhook(&process);
                (process, None)
            }
            Err(ended) => (process, Some(ended.expect("it neither came up nor ended"))),
        }
    }

    /// Makes the webhook at the first start, before anything is sent.
    fn make_webhook(&self, process: &Process) {
        if let (Some(receiver), 0) = (&self.receiver, self.sent) {
            let wish = json!({ "url": format!("http://{}/", receiver.host), "events": ["request.finished"] });
            let made = process.call("POST", WEBHOOKS, "application/json", wish.to_string()).unwrap();
            assert_eq!(made["ok"], true, "{made}");
        }
    }

    /// All that is finished has been told, at least once.
    fn hear_all(&mut self, process: &mut Process) {
        let Some(receiver) = &self.receiver else { return };
        let end = Instant::now() + DONE_WITHIN;
        while Instant::now() < end {
            let listed = process.call("GET", WEBHOOKS, "application/json", String::new());
            if listed.is_some_and(|listed| listed["webhooks"][0]["pendingDeliveries"] == 0) {
                break;
            }
            let _ = process.read_until("never said", LOOK);
        }
        let all: BTreeSet<_> = (0..self.sent).map(|number| format!("r{number}")).collect();
        let told = receiver.told.lock().unwrap();
        if *told != all {
            let missing: Vec<_> = all.difference(&told).collect();
            self.wrong.push(format!("{}: the receiver was not told of {missing:?}", self.name));
        }
    }

    fn grow_export(&mut self) {
        let path = self.folder.path().join("sessions.csv");
        let mut export = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        for number in self.sessions..self.sessions + self.work.wave() {
            let transcript =
                "[02.11.2026 08:12:05] User: When do I work?\n[02.11.2026 08:12:09] Assistant: On Monday.\n";
            std::fs::write(self.folder.path().join(format!("t{number}.txt")), transcript).unwrap();
            // In one write: the importer may be reading.
            let row = format!(
                "chat-{number},02.11.2026 08:12:05,02.11.2026 08:13:05,192.0.2.1,NL,dutch,2,neutral,false,false,\
                 t{number}.txt,3.333,245,0.000514,SCHEDULE_HOURS,When do I work?\n"
            );
            export.write_all(row.as_bytes()).unwrap();
        }
        self.sessions += self.work.wave();
    }

    fn lines(from: usize, to: usize) -> String {
        let body = |number: usize| json!({ "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": format!("Question {number}?") }] });
        (from..to)
            .map(|number| format!("{}\n", json!({ "id": format!("r{number}"), "body": body(number) })))
            .collect()
    }

    fn post(process: &Process, from: usize, to: usize) -> Option<Value> {
        process.call("POST", "/api/v1/companies/demo/requests", "application/x-ndjson", Self::lines(from, to))
    }

    fn send_wave(&mut self, process: &Process) {
        if self.work != Work::Import {
            let from = self.sent;
            self.sent += self.work.wave();
            // Whether it is answered or not: it is sent once more at the end.
            Self::post(process, from, self.sent);
        }
    }

    /// Keeps it busy until it ends or `enough` says so.
    fn drive(&mut self, process: &mut Process, enough: impl Fn(&Process) -> bool) -> Option<ExitStatus> {
        let end = Instant::now() + HIT_WITHIN;
        self.send_wave(process);
        while Instant::now() < end {
            match process.read_until("crash point", LOOK) {
                Ok(_) | Err(None) => {}
                Err(ended) => return ended,
            }
            if enough(process) {
                return None;
            }
            if self.work == Work::Cancelled {
                process.cancel_running();
            }
            match process.summary() {
                Some([0, 0, _, 0]) if self.work == Work::Import => self.grow_export(),
                Some([0, 0, _, 0]) => self.send_wave(process),
                Some([_, _, _, failed]) if failed > 0 => process.requeue_failed(),
                Some(_) | None => {}
            }
        }
        None
    }

    /// Ends the process at a point.
    fn crash_at(&mut self, case: Case) {
        let (mut process, mut ended) = self.start("NIGHTSHIFT_CRASH_AT", &named(&[case]));
        if ON_STOP.contains(&case.0) && ended.is_none() {
            process.signal("-TERM");
        }
        if ended.is_none() {
            ended = self.drive(&mut process, |_| false);
        }
        if ended.and_then(|status| status.signal()) != Some(9) {
            let tail = process.tail();
            self.wrong.push(format!("{}: {}:{} was not hit: {ended:?}\n{tail}", self.name, case.0, case.1));
        }
    }

    /// Lets it panic at points that end the process by design.
    fn leave_at(&mut self, point: &'static str, code: i32) {
        let (mut process, mut ended) = self.start("NIGHTSHIFT_PANIC_AT", &named(&[(point, 1)]));
        if ON_STOP.contains(&point) && ended.is_none() {
            process.signal("-TERM");
        }
        if ended.is_none() {
            ended = self.drive(&mut process, |_| false);
        }
        let said = process.seen.iter().any(|line| line.contains("a bug: a panic at"));
        if ended.and_then(|status| status.code()) != Some(code) || !said || process.repeats_words() {
            let tail = process.tail();
            self.wrong.push(format!("{}: {point} should leave with {code}: {ended:?}\n{tail}", self.name));
        }
    }

    /// Lets it panic at all these points within one life, and sees it come to the end all the same.
    fn survive(&mut self, points: &[&'static str]) {
        let cases: Vec<Case> = points.iter().map(|point| (*point, 1)).collect();
        let (mut process, ended) = self.start("NIGHTSHIFT_PANIC_AT", &named(&cases));
        assert!(ended.is_none(), "{}: {ended:?}\n{}", self.name, process.tail());
        let panics =
            |process: &Process| process.get("health").and_then(|health| health["health"]["panics"].as_u64());
        let ended = self.drive(&mut process, |process| panics(process) >= Some(points.len() as u64));
        // What was counted may not have been read yet.
        let _ = process.read_until("never said", 5 * LOOK);
        let reached =
            |point: &str| process.seen.iter().any(|line| line.contains(&format!("crash point {point}:1 is")));
        let missing: Vec<_> = points.iter().filter(|point| !reached(point)).collect();
        if process.repeats_words() {
            self.wrong.push(format!(
                "{}: the log repeats what a panic said\n{}",
                self.name,
                process.seen.join("\n")
            ));
        }
        if ended.is_some() || !missing.is_empty() {
            let tail = process.tail();
            self.wrong.push(format!("{}: {ended:?}, without a panic at {missing:?}\n{tail}", self.name));
            return;
        }
        self.come_to_the_end(&mut process);
        assert_eq!(
            panics(&process),
            Some(points.len() as u64),
            "{}: other panics\n{}",
            self.name,
            process.tail()
        );
        self.stop(process);
    }

    /// Sends everything once more, as a client does that got no answer, and waits until all is complete.
    fn come_to_the_end(&mut self, process: &mut Process) {
        for from in (0..self.sent).step_by(200) {
            let to = self.sent.min(from + 200);
            let answer = Self::post(process, from, to).unwrap();
            let known = answer["accepted"].as_u64().unwrap() + answer["duplicate"].as_u64().unwrap();
            assert_eq!(known, (to - from) as u64, "{}: {answer}", self.name);
        }
        let all = (self.sent + self.sessions) as u64;
        let end = Instant::now() + DONE_WITHIN;
        loop {
            let summary = process.summary();
            if summary == Some([0, 0, all, 0]) {
                return;
            }
            assert!(Instant::now() < end, "{}: {summary:?} of {all}\n{}", self.name, process.tail());
            process.requeue_failed();
            if let Err(Some(ended)) = process.read_until("progress", LOOK) {
                panic!("{}: {ended}\n{}", self.name, process.tail());
            }
        }
    }

    fn stop(&self, mut process: Process) {
        process.signal("-TERM");
        let status = process.read_until("\n", Duration::from_secs(60)).unwrap_err().expect("it did not stop");
        assert!(status.success(), "{}: {status}\n{}", self.name, process.tail());
    }

    /// Comes to the end, and checks the provider's ledger and the store.
    fn finish(mut self) -> Vec<String> {
        let (mut process, ended) = self.start("", "");
        assert!(ended.is_none(), "{}: {ended:?}\n{}", self.name, process.tail());
        self.send_wave(&process);
        self.come_to_the_end(&mut process);
        self.hear_all(&mut process);
        self.stop(process);

        let ledger = read(&self.folder.path().join("provider/ledger.jsonl"));
        let mut runs: BTreeMap<String, u32> = BTreeMap::new();
        for line in ledger.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            if line["event"] == "line_run" {
                *runs.entry(line["custom_id"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        let twice: Vec<_> = runs.iter().filter(|(_, runs)| **runs > 1).collect();
        if !twice.is_empty() || runs.len() != self.sent + self.sessions {
            let (ran, all) = (runs.len(), self.sent + self.sessions);
            self.wrong.push(format!("{}: {ran} of {all} were run, more than once: {twice:?}", self.name));
        }
        let verified = run(command(self.folder.path()).arg("verify"));
        if !verified.status.success() {
            self.wrong.push(format!("{}: {}{}", self.name, text(&verified.stdout), text(&verified.stderr)));
        }
        println!("{}: {} requests, {} sessions, each run once", self.name, self.sent, self.sessions);
        self.wrong
    }
}

/// Runs lanes beside each other and gathers what was wrong.
fn beside(lanes: Vec<Box<dyn FnOnce() -> Vec<String> + Send>>) {
    binary();
    let threads: Vec<_> = lanes.into_iter().map(std::thread::spawn).collect();
    let ended: Vec<_> = threads.into_iter().map(std::thread::JoinHandle::join).collect();
    let wrong: Vec<String> = ended
        .into_iter()
        .flat_map(|lane| {
            lane.unwrap_or_else(|panic| {
                vec![
                    panic.downcast_ref::<String>().map_or_else(|| "a lane panicked".to_owned(), Clone::clone),
                ]
            })
        })
        .collect();
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Which passages of a point are tried.
fn passages(point: &str) -> Vec<u64> {
    match (is_long(), OFTEN.contains(&point), ON_STOP.contains(&point)) {
        (_, _, true) => vec![1],
        (false, true, _) => vec![1, 2, 4, 7, 11, 16],
        (true, true, _) => (1..=30).collect(),
        (false, false, _) => vec![1, 2],
        (true, false, _) => vec![1, 2, 3],
    }
}

fn reachable() -> impl Iterator<Item = &'static str> {
    CRASH_POINTS.iter().copied().filter(|point| UNREACHED.iter().all(|(unreached, _)| unreached != point))
}

#[test]
fn an_end_at_any_point_loses_nothing_and_pays_for_nothing_twice() {
    let again = reachable().filter(|point| !ONCE.contains(point));
    let cases: Vec<Case> =
        again.flat_map(|point| passages(point).into_iter().map(move |nth| (point, nth))).collect();
    let mut lanes: Vec<(String, Work, Vec<Case>)> = Vec::new();
    for (work, among) in [
        (Work::Calm, 4),
        (Work::Rough, 2),
        (Work::Alone, 1),
        (Work::Cancelled, 1),
        (Work::Failing, 1),
        (Work::Import, 2),
        (Work::Told, 1),
    ] {
        let of_work: Vec<Case> = cases.iter().copied().filter(|(point, _)| Work::of(point) == work).collect();
        for lane in 0..among {
            let share = of_work.iter().copied().skip(lane).step_by(among).collect();
            lanes.push((format!("{work:?} {}", lane + 1), work, share));
        }
    }
    assert_eq!(lanes.iter().map(|(_, _, cases)| cases.len()).sum::<usize>(), cases.len());
    // The very first commits of a new folder are another matter than those of a later start.
    let first = [
        "commit.after_apply_before_sync",
        "commit.after_sync_before_anchor",
        "anchor.after_tmp",
        "anchor.after_fsync",
        "anchor.after_rename",
    ];
    lanes.extend(
        first
            .into_iter()
            .map(|point| (format!("new folder, {point}"), Work::Alone, vec![(point, 1), (point, 2)])),
    );
    lanes.extend(ONCE.iter().map(|point| (format!("new folder, {point}"), Work::Alone, vec![(*point, 1)])));
    println!(
        "{} ends at {} points",
        lanes.iter().map(|(_, _, cases)| cases.len()).sum::<usize>(),
        reachable().count()
    );
    let run = |(name, work, cases): (String, Work, Vec<Case>)| -> Box<dyn FnOnce() -> Vec<String> + Send> {
        Box::new(move || {
            let mut lane = Lane::new(&name, work);
            for case in cases {
                lane.crash_at(case);
            }
            lane.finish()
        })
    };
    beside(lanes.into_iter().map(run).collect());
}

#[test]
fn a_panic_at_any_point_is_counted_and_the_work_comes_to_its_end() {
    let ends = |point: &str| ENDS_THE_PROCESS.iter().any(|(ends, _)| *ends == point);
    let survived: Vec<_> = reachable().filter(|point| !ends(point)).collect();
    let mut lanes: Vec<Box<dyn FnOnce() -> Vec<String> + Send>> = Vec::new();
    for work in
        [Work::Calm, Work::Rough, Work::Alone, Work::Cancelled, Work::Failing, Work::Import, Work::Told]
    {
        let points: Vec<_> = survived.iter().copied().filter(|point| Work::of(point) == work).collect();
        lanes.push(Box::new(move || {
            let mut lane = Lane::new(&format!("panics, {work:?}"), work);
            lane.survive(&points);
            lane.finish()
        }));
    }
    lanes.push(Box::new(|| {
        let mut lane = Lane::new("panics that end the process", Work::Calm);
        for (point, code) in ENDS_THE_PROCESS {
            lane.leave_at(point, *code);
        }
        lane.finish()
    }));
    beside(lanes);
}

#[test]
fn nothing_calls_what_is_said_not_to_be_called() {
    for entry in std::fs::read_dir(root().join("src/actors")).unwrap() {
        let path = entry.unwrap().path();
        for (point, call) in UNREACHED {
            assert!(
                !read(&path).contains(call),
                "{} calls {call}: take {point} off the list",
                path.display()
            );
        }
    }
}

#[test]
#[cfg(not(feature = "crash-points"))]
fn a_binary_without_the_feature_knows_no_crash_point() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_nightshift")).unwrap();
    let has = |words: &[u8]| program.windows(words.len()).any(|window| window == words);
    assert!(has(b"NIGHTSHIFT_ADMIN_TOKEN"));
    assert!(!has(b"NIGHTSHIFT_CRASH_AT") && !has(b"NIGHTSHIFT_PANIC_AT") && !has(b"fence.before_delete"));
}
