//! The real binary as a child process, with a data folder of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::ops::Range;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Long enough for a loaded machine; nothing waits this long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const TOKEN: &str = "a-token-for-the-tests";

/// The binary, which sees no settings but those of the test.
pub fn nightshift(data: &Path) -> Command {
    program(env!("CARGO_BIN_EXE_nightshift").as_ref(), data)
}

/// The same with another build of it.
pub fn program(binary: &Path, data: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars() {
        if name.starts_with("NIGHTSHIFT_") || name.starts_with("OPENAI_") || name.starts_with("BATCH_") {
            command.env_remove(name);
        }
    }
    command
        .current_dir(data)
        .env("NIGHTSHIFT_DATA__PATH", data.join("data"))
        .env("NIGHTSHIFT_ADMIN_TOKEN", TOKEN)
        .env("NIGHTSHIFT_LOG__FORMAT", "json");
    command
}

/// Has a command take its wall time from a file, as libfaketime reads it; the monotonic clock stays as it is.
pub fn with_clock(command: &mut Command, clock: &Path) {
    let folders = std::fs::read_dir("/usr/lib").unwrap();
    let mut found = folders.filter_map(|entry| {
        let library = entry.unwrap().path().join("faketime/libfaketimeMT.so.1");
        library.exists().then_some(library)
    });
    command
        .env("LD_PRELOAD", found.next().expect("libfaketime is needed: tests/run installs it"))
        .env("FAKETIME_TIMESTAMP_FILE", clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// Turns that clock, in one step.
pub fn turn_clock(clock: &Path, to: &str) {
    std::fs::write(clock.with_extension("part"), to).unwrap();
    std::fs::rename(clock.with_extension("part"), clock).unwrap();
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Returns when nobody holds a data folder any more: the store's thread lets go of it only when it has ended.
pub fn until_it_is_free(data: &Path) {
    if let Ok(lock) = std::fs::File::open(data.join("LOCK")) {
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    }
}

/// The ports of this process's own.
struct Ports {
    left: Range<u16>,
    /// A name for each stretch that was taken; the system takes it back when the process ends.
    held: Vec<UnixListener>,
}

impl Ports {
    /// How many are taken at once.
    const STRETCH: u16 = 64;
    /// Where they begin.
    const FIRST: u16 = 10_000;

    /// Takes a stretch that no other process of tests has, beside the ports that the system gives out by itself.
    fn take(&mut self) {
        let given_out = read(Path::new("/proc/sys/net/ipv4/ip_local_port_range"));
        let mut ends = given_out.split_whitespace().map(|end| end.parse::<u16>().unwrap());
        let (first, last) = (ends.next().unwrap(), ends.next().unwrap());
        let all = (Self::FIRST..u16::MAX - Self::STRETCH).step_by(Self::STRETCH.into());
        let mut beside = all.filter(|start| start + Self::STRETCH <= first || *start > last);
        let held = beside.find_map(|start| {
            let name = SocketAddr::from_abstract_name(format!("nightshift-tests-{start}")).unwrap();
            UnixListener::bind_addr(&name).ok().map(|listener| (start, listener))
        });
        let (start, listener) = held.expect("outside of ip_local_port_range there are no ports left");
        self.left = start..start + Self::STRETCH;
        self.held.push(listener);
    }
}

/// A port that nobody else gets, also not while a server that was killed starts again: it is given out once, and the
/// system never gives it to who binds to port 0.
pub fn free_port() -> u16 {
    static PORTS: Mutex<Ports> = Mutex::new(Ports { left: 0..0, held: Vec::new() });
    let mut ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        match ports.left.next() {
            Some(port) if TcpListener::bind(("127.0.0.1", port)).is_ok() => return port,
            // Something else on this machine uses it.
            Some(_) => {}
            None => ports.take(),
        }
    }
}

/// Runs a command to its end; one that does not come to an end fails the test.
pub fn run(command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (done, waiting) = channel();
    let waiter = std::thread::spawn(move || {
        let output = child.wait_with_output().unwrap();
        let _ = done.send(());
        output
    });
    if waiting.recv_timeout(PATIENCE).is_err() {
        let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        let output = waiter.join().unwrap();
        panic!("it did not end: {}{}", text(&output.stdout), text(&output.stderr));
    }
    waiter.join().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running server.
pub struct Server {
    child: Child,
    lines: Receiver<String>,
    pub seen: Vec<String>,
    pub url: String,
}

impl Server {
    /// Starts it; `set` are settings as in `creation.interval=1s`.
    pub fn start(data: &Path, port: u16, set: &[&str]) -> Self {
        let mut command = nightshift(data);
        for set in set {
            command.args(["--set", set]);
        }
        command.args(["--set", &format!("server.bind=127.0.0.1:{port}")]);
        Self::spawn(command, port)
    }

    pub fn spawn(command: Command, port: u16) -> Self {
        match Self::try_spawn(command, port) {
            Ok(server) => server,
            Err((_, log)) => panic!("the server did not come up: {log}"),
        }
    }

    /// The same for one that may not come up: how it ended, and what it said.
    pub fn try_spawn(mut command: Command, port: u16) -> Result<Self, (ExitStatus, String)> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let url = format!("http://127.0.0.1:{port}");
        let mut server = Self { child, lines, seen: Vec::new(), url };
        if server.wait_for("nightshift is up").is_none() {
            let status = server.left(Duration::from_secs(1)).expect("it neither comes up nor ends");
            return Err((status, server.tail()));
        }
        Ok(server)
    }

    /// How it left by itself; none if it is still there.
    pub fn left(&mut self, patience: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.seen.extend(self.lines.iter());
                return Some(status);
            }
            // Its log ends with it, and what it says meanwhile is kept.
            self.wait_until(Duration::from_millis(20), |_| false);
        }
        None
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, at once; its end is not waited for.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The next line of the log that contains `part`; none if the process ends before.
    pub fn wait_for(&mut self, part: &str) -> Option<String> {
        self.wait_until(PATIENCE, |line| line.contains(part))
    }

    pub fn wait_until(&mut self, patience: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return Some(line);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// SIGKILL, and everything that the kill left in the pipe.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.seen.extend(self.lines.iter());
    }

    /// SIGTERM; how it left.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let status = self.child.wait().unwrap();
        self.seen.extend(self.lines.iter());
        status
    }

    pub fn get(&self, path: &str) -> Value {
        self.call("GET", path, None)
    }

    pub fn post(&self, path: &str, content_type: &str, body: String) -> Value {
        self.call("POST", path, Some((content_type, body)))
    }

    fn call(&self, method: &str, path: &str, body: Option<(&str, String)>) -> Value {
        self.try_call(method, path, body).unwrap().1
    }

    /// Status and body; an error if no whole answer came.
    pub fn try_call(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, String)>,
    ) -> Result<(u16, Value), reqwest::Error> {
        call(&self.url, method, path, body)
    }

    /// The four counts of the summary.
    pub fn summary(&self) -> [u64; 4] {
        let summary = self.get("/api/admin/legacy/summary");
        ["pending_batching", "batching_in_progress", "processing_complete", "processing_failed"]
            .map(|name| summary["summary"][name].as_u64().unwrap())
    }

    /// Waits until all work is done.
    pub fn wait_until_done(&mut self, requests: u64, patience: Duration) {
        let end = Instant::now() + patience;
        loop {
            let [pending, in_progress, complete, failed] = self.summary();
            if pending + in_progress == 0 && complete + failed >= requests {
                return;
            }
            assert!(
                Instant::now() < end,
                "not done: {pending} pending, {in_progress} in batches, {complete} complete, {failed} failed; log:\n{}",
                self.tail()
            );
            // The log speaks whenever something happens, so there is nothing to wait for but its next line.
            self.wait_until(Duration::from_millis(300), |line| line.contains("progress"));
        }
    }

    pub fn tail(&self) -> String {
        self.seen.iter().rev().take(40).rev().cloned().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only a process that this test started, by its own handle.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One call to the server at `base`: status and body, an error if no whole answer came.
pub fn call(
    base: &str,
    method: &str,
    path: &str,
    body: Option<(&str, String)>,
) -> Result<(u16, Value), reqwest::Error> {
    call_with(base, method, path, &[], body)
}

/// The same with more headers.
pub fn call_with(
    base: &str,
    method: &str,
    path: &str,
    headers: &[(&str, String)],
    body: Option<(&str, String)>,
) -> Result<(u16, Value), reqwest::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = nightshift::tls::client_builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let mut request = client.request(method.parse().unwrap(), format!("{base}{path}")).bearer_auth(TOKEN);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some((content_type, body)) = body {
            request = request.header("content-type", content_type).body(body);
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await?;
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("no JSON: {}", text(&bytes)));
        Ok((status, body))
    })
}

/// Reads a file that may not be there.
pub fn read(path: &Path) -> String {
    let mut text = String::new();
    if let Ok(mut file) = std::fs::File::open(path) {
        file.read_to_string(&mut text).unwrap();
    }
    text
}
