//! One seed: the lives of the program from start to kill, and who moves the clock.

use std::collections::{BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nightshift::actors::Shared;
use nightshift::app::{self, Application, Surroundings};
use nightshift::clock::{Clock, ManualClock};
use nightshift::config::{self, Settings};
use nightshift::domain::id::Timestamp;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::Sum;
use super::plan::{Plan, plan};
use super::watched::{Calls, Watched};
use crate::harness::PROVIDER_SECRET;
use crate::hints::{event, signed};
use crate::process::until_it_is_free;
use crate::simulation::plan::Dice;
use crate::trouble::bench::Provider;

/// 2026-11-24T08:00:00Z
const START: i64 = 1_795_507_200_000;
/// A message that is older is not believed, nor one from so far ahead.
const BELIEVED_MS: i64 = 300_000;
const TOKEN: &str = "a-token-for-the-simulation";
/// More than any seed needs; what is not at its end by then hangs.
const STEPS_MAX: u64 = 60_000;
/// The longest step of the clock.
const LEAP_MAX: Duration = Duration::from_secs(600);
/// Milliseconds that the wall clock jumps by: +25 h, -2 h, +1 h, -25 h, a leap second back, and far beyond 2038.
const TURNS: [i64; 6] = [90_000_000, -7_200_000, 3_600_000, -90_000_000, -1000, 12 * 365 * 86_400_000];

/// More calls while no time passes are a loop.
const CALLS_MAX: u64 = 200;
/// So often at most in one run.
const TURNED_MAX: u64 = 20;

fn note_states(shared: &Shared, states: &mut BTreeSet<&'static str>) -> Result<(), String> {
    for id in shared.reader.live_batches().map_err(text)? {
        if let Some(batch) = shared.reader.batch(id).map_err(text)? {
            states.insert(batch.state.label());
        }
    }
    Ok(())
}

pub fn text(err: impl std::fmt::Display) -> String {
    err.to_string()
}

pub struct Seed {
    pub remote: Provider,
    /// The ids of requests whose acceptance was told.
    pub acknowledged: BTreeSet<String>,
    plan: Plan,
    dice: Dice,
    folder: tempfile::TempDir,
    settings: Settings,
    /// The provider's clock; nobody turns it.
    theirs: Arc<ManualClock>,
    /// What our wall clock is ahead of the provider's.
    ahead: i64,
    sent: usize,
    /// Messages of the provider's.
    told: usize,
    lives: u64,
    steps: u64,
    turned: u64,
    /// The states of batches when the program was killed, and when the clock jumped.
    killed_in: BTreeSet<&'static str>,
    turned_in: BTreeSet<&'static str>,
    requeues: usize,
    calls: u64,
    most_calls: u64,
    prints: bool,
    trace: Vec<String>,
    log: Log,
}

/// The end of what the program says.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<VecDeque<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut end = self.0.lock().unwrap();
        end.extend(bytes);
        let over = end.len().saturating_sub(16 << 10);
        end.drain(..over);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How a life ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Killed,
    Stopped,
    /// Everything has come to its end.
    Done,
}

impl Seed {
    pub fn new(number: u64, prints: bool) -> Self {
        let mut dice = Dice::new(number ^ 0x77_686f_6c65);
        let plan = plan(number, &mut dice);
        // In memory, where there is such a place: the disk is not what is tried here.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.unwrap();
        let theirs = Arc::new(ManualClock::new(Timestamp::from_millis(START)));
        let remote =
            Provider::start_by(theirs.clone(), &folder.path().join("provider"), &plan.faults, |options| {
                options.turnaround = plan.turnaround;
                options.window = plan.window;
                options.tick = Duration::from_millis(20);
                options.enqueued_token_limit = plan.token_limit;
                options.instance = Some(number);
            });
        let settings = settings(folder.path(), &remote.url, &plan);
        Self {
            remote,
            acknowledged: BTreeSet::new(),
            plan,
            dice,
            folder,
            settings,
            theirs,
            ahead: 0,
            sent: 0,
            told: 0,
            lives: 0,
            steps: 0,
            turned: 0,
            killed_in: BTreeSet::new(),
            turned_in: BTreeSet::new(),
            requeues: 0,
            calls: 0,
            most_calls: 0,
            prints,
            trace: Vec::new(),
            log: Log::default(),
        }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn sum(&self) -> Sum {
        Sum {
            lives: self.lives,
            steps: self.steps,
            millis: self.theirs.monotonic_ms(),
            calls: self.calls,
            most_calls: self.most_calls,
            turns: self.turned,
            killed_in: self.killed_in.clone(),
            turned_in: self.turned_in.clone(),
        }
    }

    /// The last things that happened.
    pub fn trace(&self) -> String {
        let from = self.trace.len().saturating_sub(40);
        let log: Vec<u8> = self.log.0.lock().unwrap().iter().copied().collect();
        let log = String::from_utf8_lossy(&log);
        format!("{:?}\n{}\n{log}", self.plan, self.trace[from..].join("\n"))
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let line = format!("{:>9} s  {what}", self.theirs.monotonic_ms() / 1000);
        if self.prints {
            println!("{line}");
        }
        self.trace.push(line);
    }

    pub fn play(&mut self) -> Result<(), String> {
        while self.live()? != End::Done {}
        Ok(())
    }

    /// One life, on a thread of its own: what actix keeps for a thread dies with it.
    fn live(&mut self) -> Result<End, String> {
        self.lives += 1;
        let log = self.log.clone();
        let lived = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let subscriber = tracing_subscriber::fmt()
                    .with_max_level(tracing::Level::INFO)
                    .with_ansi(false)
                    .without_time()
                    .with_writer(move || log.clone())
                    .finish();
                let _logs = tracing::subscriber::set_default(subscriber);
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    // What was begun before is done when one more piece of work is.
                    .max_blocking_threads(1)
                    .build()
                    .unwrap();
                let system = actix::System::with_tokio_rt(move || runtime);
                let lived = std::panic::catch_unwind(AssertUnwindSafe(|| system.block_on(self.life())));
                drop(system);
                lived.unwrap_or_else(|_| Err("a panic".to_owned()))
            });
            thread.join()
        });
        let end = lived.unwrap_or_else(|_| Err("a panic while it was taken apart".to_owned()))?;
        let lives = self.lives;
        self.note(format_args!("life {lives} ended: {end:?}"));
        Ok(end)
    }

    async fn life(&mut self) -> Result<End, String> {
        let wall = self.theirs.now().as_millis() + self.ahead;
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(wall)));
        let calls = Arc::new(Calls::default());
        let application = self.start(&clock, &calls).await?;
        let shared = application.shared().clone();
        let url = format!("http://{}", application.address());
        let (stop, stopped) = oneshot::channel::<()>();
        let run = application.run(
            async move {
                let _ = stopped.await;
            },
            |_| (),
        );
        let mut run = std::pin::pin!(run);
        let mut life = Life {
            shared,
            clock,
            calls: calls.clone(),
            http: nightshift::tls::client_builder().build().unwrap(),
            url,
        };
        let end = tokio::select! {
            biased;
            ended = &mut run => return Err(format!("it left by itself: {ended:?}")),
            end = self.drive(&mut life) => end,
        };
        self.calls += calls.begun.load(Ordering::SeqCst);
        let end = end?;
        if end != End::Killed {
            let _ = stop.send(());
            let ended = tokio::time::timeout(Duration::from_secs(20), run).await;
            ended.map_err(|_| "it does not stop".to_owned())?.map_err(text)?;
        }
        Ok(end)
    }

    async fn start(&self, clock: &Arc<ManualClock>, calls: &Arc<Calls>) -> Result<Application, String> {
        until_it_is_free(&self.data());
        let calls = calls.clone();
        let surroundings = Surroundings {
            clock: clock.clone(),
            around_provider: Box::new(move |inner| Arc::new(Watched::new(inner, calls))),
            chunk: self.plan.chunk,
        };
        let started = app::start(&self.settings, surroundings).await;
        started.map_err(|err| format!("it does not start: {err}"))
    }

    async fn drive(&mut self, life: &mut Life) -> Result<End, String> {
        loop {
            // In the midst of things, wherever that is.
            let most = [10, 60, 400][self.dice.below(3)];
            let after = self.dice.below(most);
            if self.dice.chance(self.plan.kills) {
                // With the answer to a call that is not heard any more, in its time; of the kinds of calls that
                // cost something more often.
                life.calls.deadly.store(1 + self.dice.below(6), Ordering::SeqCst);
                life.calls.costly_only.store(self.dice.chance(50), Ordering::SeqCst);
            }
            if self.dice.chance(self.plan.kills) && self.dice.chance(50) {
                life.settle(Some(after)).await?;
                note_states(&life.shared, &mut self.killed_in)?;
                return Ok(End::Killed);
            }
            if self.dice.chance(self.plan.turns) && self.turned < TURNED_MAX {
                life.settle(Some(after)).await?;
                self.turn(life)?;
            }
            let calls = life.calls.begun.load(Ordering::SeqCst);
            life.settle(None).await?;
            let calls = life.calls.begun.load(Ordering::SeqCst) - calls;
            // Whatever asks again waits before; no clock moves here.
            if calls > CALLS_MAX {
                return Err(format!("invariant 9: {calls} calls in no time; {}", life.standing().await?));
            }
            self.most_calls = self.most_calls.max(calls);
            if life.calls.died.load(Ordering::SeqCst) {
                note_states(&life.shared, &mut self.killed_in)?;
                return Ok(End::Killed);
            }
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err(format!("invariant 9: it comes to no end; {}", life.standing().await?));
            }
            if self.dice.chance(self.plan.kills) && self.dice.chance(10) {
                return Ok(End::Stopped);
            }
            if self.sent < self.plan.requests && self.dice.chance(20) {
                self.send(life).await?;
                continue;
            }
            if self.dice.chance(self.plan.cancels) {
                self.cancel(life).await?;
            }
            if self.dice.chance(2) {
                let (status, _) = life.post("/api/admin/legacy/provider/resume", Value::Null).await?;
                self.note(format_args!("an operator resumes: {status}"));
            }
            if self.dice.chance(self.plan.messages) {
                self.tell(life).await?;
            }
            if self.sent == self.plan.requests && life.is_done()? && !self.requeue(life).await? {
                return Ok(End::Done);
            }
            self.wait(life);
        }
    }

    /// Lets our wall clock jump.
    fn turn(&mut self, life: &Life) -> Result<(), String> {
        let by = TURNS[self.dice.below(TURNS.len())];
        self.turned += 1;
        self.ahead += by;
        life.clock.turn(by);
        self.note(format_args!("our wall clock jumps by {by} ms"));
        note_states(&life.shared, &mut self.turned_in)
    }

    /// Moves both clocks to where somebody wakes.
    fn wait(&mut self, life: &Life) {
        let until = life.clock.until_next().unwrap_or(LEAP_MAX).clamp(Duration::from_millis(1), LEAP_MAX);
        // Mostly in time, now and then late, as on a machine with much to do.
        let late = if self.dice.chance(10) { self.dice.below(5000) } else { 0 };
        let by = until + Duration::from_millis(late as u64);
        self.theirs.advance(by);
        life.clock.advance(by);
    }

    async fn send(&mut self, life: &Life) -> Result<(), String> {
        let count = (1 + self.dice.below(20)).min(self.plan.requests - self.sent);
        let company = ["demo", "other"][self.dice.below(2)];
        // Now and then some once more, as a client does that heard no answer.
        let from = self.sent.saturating_sub(if self.dice.chance(30) { 5 } else { 0 });
        let ids: Vec<_> = (from..self.sent + count).map(|number| format!("{company}-{number}")).collect();
        let lines: String = ids.iter().map(|id| line(id)).collect();
        let path = format!("/api/v1/companies/{company}/requests");
        let (status, answer) = life.call("POST", &path, Some(("application/x-ndjson", lines))).await?;
        self.note(format_args!("sent {count} of {company}: {status} {}", answer["detail"]));
        match status {
            200 if answer["rejected"] == 0 => {
                self.acknowledged.extend(ids);
                self.sent += count;
                Ok(())
            }
            503 => Ok(()),
            _ => Err(format!("requests are answered with {status} {answer}")),
        }
    }

    async fn cancel(&mut self, life: &Life) -> Result<(), String> {
        let live = life.shared.reader.live_batches().map_err(text)?;
        if live.is_empty() {
            return Ok(());
        }
        let id = live[self.dice.below(live.len())];
        let then = if self.dice.chance(80) { "requeue" } else { "end" };
        let path = format!("/api/admin/legacy/batches/{id}/cancel");
        let (status, answer) = life.post(&path, json!({"then": then})).await?;
        self.note(format_args!("cancel of {id}, then {then}: {status}"));
        if matches!(status, 200 | 202 | 404 | 409) { Ok(()) } else { Err(format!("{status} {answer}")) }
    }

    /// A message of the provider's by its own clock, about a batch of ours or of nobody's: new, a second time, too late, or
    /// of somebody who does not have its secret.
    async fn tell(&mut self, life: &Life) -> Result<(), String> {
        let reader = &life.shared.reader;
        let live = reader.live_batches().map_err(text)?;
        let mut about = "batch_of_nobody".to_owned();
        if !live.is_empty()
            && let Some(batch) = reader.batch(live[self.dice.below(live.len())]).map_err(text)?
            && let Some(remote) = batch.provider_batch
        {
            about = remote.to_string();
        }
        let kind = ["new", "again", "late", "forged"][self.dice.below(4)];
        let number = if kind == "again" { self.told } else { self.told + 1 };
        self.told = number;
        let body = event(&about);
        let late = if kind == "late" { BELIEVED_MS + 1000 } else { 0 };
        let sent = Timestamp::from_millis(self.theirs.now().as_millis() - late);
        let mut headers = signed(&format!("wh_{number}"), sent, &body);
        if kind == "forged" {
            headers[2].1.replace_range(3..7, "AAAA");
        }
        let (status, answer) = life.deliver(&headers, body).await?;
        self.note(format_args!("a message about {about}, {kind}: {status} {}", answer["heeded"]));
        let far = (life.clock.now().as_millis() - sent.as_millis()).abs() > BELIEVED_MS;
        let expected = if far || kind == "forged" { 400 } else { 200 };
        if status == expected { Ok(()) } else { Err(format!("a message, {kind}: {status} {answer}")) }
    }

    /// Takes failed requests up again, a few times; says whether there were any.
    async fn requeue(&mut self, life: &Life) -> Result<bool, String> {
        if self.requeues >= 3 {
            return Ok(false);
        }
        self.requeues += 1;
        let (_, failed) = life.get("/api/admin/legacy/requests?status=processing_failed&limit=100").await?;
        let failed = failed["requests"].as_array().cloned().unwrap_or_default();
        let ids: Vec<_> = failed.iter().map(|request| request["id"].clone()).collect();
        if ids.is_empty() {
            return Ok(false);
        }
        let count = ids.len();
        let (status, answer) =
            life.post("/api/admin/legacy/requests/requeue", json!({"requestIds": ids})).await?;
        self.note(format_args!("requeued {count}: {status} {answer}"));
        if status == 200 { Ok(true) } else { Err(format!("{status} {answer}")) }
    }
}

fn settings(folder: &Path, url: &str, plan: &Plan) -> Settings {
    let file = folder.join("config.toml");
    std::fs::write(&file, "[[companies]]\nid = \"demo\"\n[[companies]]\nid = \"other\"\n").unwrap();
    let (url, data) = (url.to_owned(), folder.join("data").display().to_string());
    let env = move |name: &str| match name {
        "OPENAI_API_KEY" => Some("a-key".to_owned()),
        "OPENAI_BASE_URL" => Some(url.clone()),
        "OPENAI_WEBHOOK_SECRET" => Some(PROVIDER_SECRET.to_owned()),
        "NIGHTSHIFT_ADMIN_TOKEN" => Some(TOKEN.to_owned()),
        _ => None,
    };
    let max_requests = plan.max_requests.to_string();
    let flags = [
        ("server.bind", "127.0.0.1:0"),
        ("data.path", &data),
        ("provider.kind", "openai"),
        ("creation.interval", "30s"),
        ("creation.max_age", "60s"),
        ("creation.max_requests", &max_requests),
        ("polling.interval", "60s"),
        ("submission.grace", "10m"),
        ("retry.backoff", "60s"),
        ("retry.capacity_backoff", "5m"),
        ("retry.max_attempts", "4"),
        ("analysis.settle", "30s"),
        ("data.ballast", "0"),
        ("data.free_space_floor", "0"),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
    config::load(Some(&file), &env, [], flags).unwrap()
}

fn line(id: &str) -> String {
    let content = format!("Question of {id}?");
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}]});
    format!("{}\n", json!({"id": id, "endpoint": "/v1/chat/completions", "body": body}))
}

struct Life {
    shared: Arc<Shared>,
    clock: Arc<ManualClock>,
    calls: Arc<Calls>,
    http: reqwest::Client,
    url: String,
}

impl Life {
    /// Lets everything happen that happens without the clock; with a number, only so many turns of it.
    async fn settle(&self, most: Option<usize>) -> Result<(), String> {
        let mut left = most.map_or(usize::MAX, |most| most + 1);
        let mut quiet = 0;
        let mut last = (0, 0, 0);
        while quiet < 2 {
            for _ in 0..8 {
                tokio::task::yield_now().await;
                left -= 1;
                if left == 0 {
                    return Ok(());
                }
            }
            if self.calls.under_way() {
                // One that pauses between two tries goes on with the clock only.
                let changed = self.calls.changed.notified();
                if tokio::time::timeout(Duration::from_millis(2), changed).await.is_ok() {
                    continue;
                }
            }
            let rest = tokio::task::spawn_blocking(|| ());
            rest.await.map_err(text)?;
            let revision = self.shared.store.standing().await.map_err(text)?.revision;
            let now = (self.calls.begun.load(Ordering::SeqCst), revision, self.clock.slept());
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
        }
        Ok(())
    }

    fn is_done(&self) -> Result<bool, String> {
        let [waiting, in_batches, ..] = self.shared.reader.summary(None).map_err(text)?;
        Ok(waiting + in_batches == 0 && self.shared.reader.live_batches().map_err(text)?.is_empty())
    }

    async fn standing(&self) -> Result<String, String> {
        let (_, summary) = self.get("/api/admin/legacy/summary").await?;
        let (_, provider) = self.get("/api/admin/legacy/provider").await?;
        let (_, ready) = self.get("/readyz").await?;
        let (_, batches) = self.get("/api/admin/legacy/batches?limit=100").await?;
        let batches = batches["batches"].as_array().cloned().unwrap_or_default();
        let live = batches.into_iter().filter(|batch| batch["closedAt"].is_null());
        let live: Vec<_> = live.map(|batch| batch.to_string()).collect();
        Ok(format!("{summary} {provider} {ready}\n{}", live.join("\n")))
    }

    async fn get(&self, path: &str) -> Result<(u16, Value), String> {
        self.call("GET", path, None).await
    }

    async fn post(&self, path: &str, body: Value) -> Result<(u16, Value), String> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.call("POST", path, Some(("application/json", body))).await
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, String)>,
    ) -> Result<(u16, Value), String> {
        let method: reqwest::Method = method.parse().map_err(|_| "no such method".to_owned())?;
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(TOKEN)
            .timeout(Duration::from_secs(30));
        if let Some((kind, body)) = body {
            request = request.header("content-type", kind).body(body);
        }
        Self::answered(path, request).await
    }

    /// A message of the provider's.
    async fn deliver(
        &self,
        headers: &[(&'static str, String)],
        body: String,
    ) -> Result<(u16, Value), String> {
        let path = "/webhooks/openai";
        let mut request = self.http.post(format!("{}{path}", self.url)).timeout(Duration::from_secs(30));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        Self::answered(path, request.body(body)).await
    }

    async fn answered(path: &str, request: reqwest::RequestBuilder) -> Result<(u16, Value), String> {
        let response = request.send().await.map_err(|err| format!("{path}: {err:?}"))?;
        let status = response.status().as_u16();
        let body = response.text().await.map_err(text)?;
        Ok((status, serde_json::from_str(&body).unwrap_or(Value::Null)))
    }
}
