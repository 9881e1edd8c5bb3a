//! The binary that has the crash points, running.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{TOKEN, program};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The binary that has the points.
pub fn binary() -> &'static Path {
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

pub fn command(folder: &Path) -> Command {
    program(binary(), folder)
}

/// One client for all lanes: making one takes longer than a call.
fn http() -> &'static (tokio::runtime::Runtime, reqwest::Client) {
    static HTTP: OnceLock<(tokio::runtime::Runtime, reqwest::Client)> = OnceLock::new();
    HTTP.get_or_init(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = nightshift::tls::client_builder()
            .no_proxy()
            .timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(0);
        (runtime, client.build().unwrap())
    })
}

/// A running process; it is ended with the test.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    pub seen: Vec<String>,
    pub url: String,
    /// What it is called with.
    pub token: String,
}

impl Process {
    pub fn spawn(mut command: Command) -> Self {
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
        Self { child, lines, seen: Vec::new(), url: String::new(), token: TOKEN.to_owned() }
    }

    /// Reads on until a line has `part`, or until the process has ended.
    pub fn read_until(&mut self, part: &str, patience: Duration) -> Result<String, Option<ExitStatus>> {
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

    pub fn signal(&self, name: &str) {
        // Only a process that this test started, by its own id.
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Whether the log has the words of a panic, and not only that a point was reached.
    pub fn repeats_words(&self) -> bool {
        self.seen.iter().any(|line| line.contains("crash point ") && !line.contains(" is reached"))
    }

    pub fn tail(&self) -> String {
        self.seen.iter().rev().take(30).rev().cloned().collect::<Vec<_>>().join("\n")
    }

    pub fn call(&self, method: &str, path: &str, content_type: &str, body: String) -> Option<Value> {
        self.call_as(&self.token, method, path, &[("content-type", content_type)], body)
    }

    /// The same with another token and these headers.
    pub fn call_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Option<Value> {
        let (runtime, client) = http();
        let mut request =
            client.request(method.parse().unwrap(), format!("{}{path}", self.url)).bearer_auth(token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body);
        runtime.block_on(async {
            let answer = request.send().await.ok()?;
            serde_json::from_slice(&answer.bytes().await.ok()?).ok()
        })
    }

    /// What an export has, line by line.
    pub fn lines(&self, path: &str) -> Option<Vec<Value>> {
        let (runtime, client) = http();
        let asked = client.get(format!("{}{path}", self.url)).bearer_auth(&self.token);
        let text = runtime.block_on(async { asked.send().await.ok()?.text().await.ok() })?;
        text.lines().map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.call("GET", &format!("/api/admin/legacy/{path}"), "application/json", String::new())
    }

    /// The four counts of the summary.
    pub fn summary(&self) -> Option<[u64; 4]> {
        let counts = self.get("summary")?;
        let names = ["pending_batching", "batching_in_progress", "processing_complete", "processing_failed"];
        let counts = names.map(|name| counts["summary"][name].as_u64());
        counts.iter().all(Option::is_some).then(|| counts.map(Option::unwrap))
    }

    pub fn batches(&self) -> Option<Vec<Value>> {
        self.get("batches?limit=500")?["batches"].as_array().cloned()
    }

    /// Cancels batches that the provider has, and some of the others, whatever they are at; says in which steps they
    /// were.
    pub fn cancel_running(&self) -> Vec<String> {
        let mut steps = Vec::new();
        for batch in self.batches().unwrap_or_default() {
            let (id, step) = (batch["id"].as_str().unwrap(), batch["step"].as_str().unwrap());
            // Uploads that have to wait are always caught; of the rest some, so that others come to the provider.
            let some = step != "closed" && id.ends_with(['0', '2', '4', '6', '8']);
            if batch["cancel"].is_null() && (matches!(step, "observing" | "uploading") || some) {
                let path = format!("/api/admin/legacy/batches/{id}/cancel");
                let answer = self.call("POST", &path, "application/json", String::new());
                // Without an answer it ended in the midst of it.
                if answer.is_none_or(|answer| answer["ok"] == true) {
                    steps.push(step.to_owned());
                }
            }
        }
        steps
    }

    pub fn requeue_failed(&self) {
        let failed = self.get("requests?status=processing_failed&limit=500");
        let Some(failed) = failed.as_ref().and_then(|failed| failed["requests"].as_array()) else { return };
        let mut ids: Vec<_> =
            failed.iter().map(|request| request["id"].as_str().unwrap().to_owned()).collect();
        let rest = ids.split_off(ids.len().div_ceil(2));
        // In two calls, so that there is a second passage; and the first has two commits, as a call of many has.
        let unknown = (0..250).map(|number| uuid::Uuid::from_u128(number).to_string());
        let last = ids.pop();
        let first = ids.into_iter().chain(unknown).chain(last).collect();
        for ids in [first, rest] {
            let body = json!({ "requestIds": ids as Vec<String> }).to_string();
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
