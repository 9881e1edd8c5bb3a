//! Calls to the disk that fail or are slow, one position after the other: strace makes the kernel answer with an error.
//! Whatever happens, the process goes on or leaves with 74, and nothing that was acknowledged is missing afterwards.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

use nightshift::domain::id::Timestamp;
use rustix::process::Signal;
use serde_json::Value;

use crate::disk::{Provider, assert_known, lines, send, send_to, verify};
use crate::process::{PATIENCE, Server, free_port, nightshift, run, text};

/// The server under strace with these faults; by its own process id.
fn traced(folder: &Path, provider: &Provider, port: u16, faults: &[String]) -> Command {
    let strace = Command::new("strace").arg("-V").output();
    assert!(
        strace.is_ok_and(|strace| strace.status.success()),
        "this test needs strace: apt-get install strace"
    );
    let mut command = Command::new("strace");
    // -D makes the server the child and strace its grandchild, so that signals and exit codes are the server's.
    // With --seccomp-bpf it stops the server at the calls that are named, and lets the others run as fast as ever.
    command.args(["-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"]).args(faults);
    command.arg(env!("CARGO_BIN_EXE_nightshift")).current_dir(folder);
    let usual = nightshift(folder);
    command.envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
    provider.point(&mut command, port, &[]);
    command
}

fn inject(call: &str, what: &str) -> Vec<String> {
    vec!["-e".to_owned(), format!("trace={call}"), "-e".to_owned(), format!("inject={call}:{what}")]
}

/// The same for one file only.
fn inject_at(path: &Path, call: &str, what: &str) -> Vec<String> {
    [vec!["-P".to_owned(), path.to_str().unwrap().to_owned()], inject(call, what)].concat()
}

/// A store that has been used, and how many requests it has acknowledged.
struct Tried {
    folder: tempfile::TempDir,
    provider: Provider,
    acknowledged: usize,
    left: u32,
    went_on: u32,
}

impl Tried {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::start(folder.path(), "1s", "{}");
        let mut tried = Self { folder, provider, acknowledged: 0, left: 0, went_on: 0 };
        let mut server = tried.provider.server(tried.folder.path(), free_port(), &[]);
        tried.send(&server);
        assert!(server.terminate().success());
        tried
    }

    /// Sends in small pieces until one does not get through.
    fn send(&mut self, server: &Server) {
        for _ in 0..8 {
            match send(server, self.acknowledged, 10) {
                Ok((200, answer)) => {
                    let known = answer["accepted"].as_u64().unwrap() + answer["duplicate"].as_u64().unwrap();
                    assert_eq!(known, 10, "{answer}");
                    self.acknowledged += 10;
                }
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// One run with a fault that is met within `patience` or not at all, then one without.
    fn with(&mut self, faults: &[String], patience: Duration) {
        let port = free_port();
        let before = self.acknowledged;
        match Server::try_spawn(traced(self.folder.path(), &self.provider, port, faults), port) {
            Ok(mut server) => {
                self.send(&server);
                // Also what happens without being asked: anchors, batches.
                let left = server.left(patience).unwrap_or_else(|| {
                    self.went_on += 1;
                    server.terminate()
                });
                assert!(matches!(left.code(), Some(0 | 74)), "{faults:?}: {left}: {}", server.tail());
                self.left += u32::from(left.code() == Some(74));
                if left.code() == Some(74) {
                    assert!(server.tail().contains("Leaving"), "{faults:?}: {}", server.tail());
                }
            }
            Err((left, log)) => {
                assert_eq!(left.code(), Some(74), "{faults:?}: {log}");
                self.left += 1;
            }
        }
        verify(self.folder.path());
        let mut server = self.provider.server(self.folder.path(), port, &[]);
        if self.acknowledged > 0 {
            assert_known(&server, self.acknowledged);
        }
        assert!(server.terminate().success(), "{faults:?}, {before}: {}", server.tail());
    }

    /// Everything to its end.
    fn end(self) {
        let mut server = self.provider.server(self.folder.path(), free_port(), &[]);
        // What got no answer may be there or not; sent again it is.
        let (status, answer) = send(&server, 0, self.acknowledged + 10).unwrap();
        assert_eq!((status, &answer["rejected"]), (200, &Value::from(0)), "{answer}");
        let all = self.acknowledged + 10;
        server.wait_until_done(all as u64, Duration::from_secs(120));
        assert_eq!(server.summary(), [0, 0, all as u64, 0], "{}", server.tail());
        assert!(server.terminate().success());
        self.provider.assert_ran_once(all);
        verify(self.folder.path());
    }
}

/// Which of the calls of a thread fail, a few, or many in the long form, and how long the server is waited for: up to
/// the one that is `surely` made it leaves, whenever that is; those after it may not come at all.
fn positions(few: &[u32], many: u32, surely: u32) -> Vec<(u32, Duration)> {
    let long = std::env::var("NIGHTSHIFT_TEST_LONG").is_ok();
    let all = if long { (1..=many).collect() } else { few.to_vec() };
    let patience = |nth| if nth <= surely { PATIENCE } else { Duration::from_millis(1500) };
    all.into_iter().map(|nth| (nth, patience(nth))).collect()
}

#[test]
fn a_sync_that_fails_ends_the_process_and_nothing_acknowledged_is_missing() {
    let mut tried = Tried::new();
    for (nth, patience) in positions(&[1, 2, 3, 6, 10], 40, 10) {
        tried.with(&inject("fdatasync", &format!("error=EIO:when={nth}")), patience);
    }
    for (nth, patience) in positions(&[1, 2, 3, 5], 20, 5) {
        tried.with(&inject("fsync", &format!("error=EIO:when={nth}")), patience);
    }
    for (nth, patience) in positions(&[1, 4, 9], 40, 4) {
        tried.with(&inject("sync_file_range", &format!("error=EIO:when={nth}")), patience);
    }
    // Files of ours: the anchor, and what lies in the spool.
    let data = tried.folder.path().join("data");
    for (path, nth) in [("ANCHOR.part", 1), ("ANCHOR.part", 2), ("spool", 1)] {
        let left = tried.left;
        tried.with(&inject_at(&data.join(path), "fsync", &format!("error=EIO:when={nth}+")), PATIENCE);
        assert_eq!(tried.left, left + 1, "{path}, {nth}");
    }
    println!("left with 74: {}, went on: {}", tried.left, tried.went_on);
    assert!(tried.left >= 12, "only {} of the faults were met", tried.left);
    tried.end();
}

#[test]
fn a_write_of_the_store_without_room_ends_the_process_and_nothing_acknowledged_is_missing() {
    let mut tried = Tried::new();
    for (nth, patience) in positions(&[1, 2, 3, 5, 8, 12], 60, 8) {
        tried.with(&inject("pwrite64", &format!("error=ENOSPC:when={nth}+")), patience);
    }
    println!("left with 74: {}, went on: {}", tried.left, tried.went_on);
    assert!(tried.left >= 4, "only {} of the faults were met", tried.left);
    tried.end();
}

#[test]
fn a_read_or_write_of_the_store_that_fails_ends_the_process_and_nothing_acknowledged_is_missing() {
    let mut tried = Tried::new();
    let db = tried.folder.path().join("data/store/db");
    // All of it is read before sled does, to which a failing read is a torn end.
    for nth in [1, 2, 4] {
        let left = tried.left;
        tried.with(&inject_at(&db, "read,pread64", &format!("error=EIO:when={nth}+")), PATIENCE);
        assert_eq!(tried.left, left + 1, "{nth}");
    }
    for (nth, patience) in positions(&[1, 2, 4, 7], 40, 7) {
        tried.with(&inject_at(&db, "pwrite64", &format!("error=EIO:when={nth}")), patience);
    }
    println!("left with 74: {}, went on: {}", tried.left, tried.went_on);
    assert!(tried.left >= 6, "only {} of the faults were met", tried.left);
    tried.end();
}

#[test]
fn an_anchor_without_room_sends_nothing_and_ends_nothing() {
    let mut tried = Tried::new();
    let part = tried.folder.path().join("data/ANCHOR.part");
    let port = free_port();
    let faults = inject_at(&part, "write", "error=ENOSPC:when=1+");
    let mut server = Server::spawn(traced(tried.folder.path(), &tried.provider, port, &faults), port);
    let before = tried.acknowledged;
    tried.send(&server);
    assert_eq!(tried.acknowledged, before + 80, "what needs no anchor is taken in: {}", server.tail());
    server.wait_for("there is no room for the anchor").unwrap();
    // The intent is stored, its anchor is not: the call must not be made.
    server.wait_for("was not stored").expect("a step that needs the anchor does not go on");
    assert!(tried.provider.runs().is_empty());
    assert!(server.terminate().success(), "{}", server.tail());
    tried.end();
}

#[test]
fn a_slow_disk_is_waited_for() {
    let mut tried = Tried::new();
    let port = free_port();
    let faults = inject("fdatasync,fsync", "delay_exit=200000");
    let mut server = Server::spawn(traced(tried.folder.path(), &tried.provider, port, &faults), port);
    tried.send(&server);
    let (status, answer) = server
        .try_call("POST", "/api/v1/companies/demo/requests", Some(("application/x-ndjson", lines(0, 90))))
        .unwrap();
    assert_eq!((status, &answer["rejected"]), (200, &Value::from(0)), "{answer}");
    server.wait_until_done(tried.acknowledged as u64, Duration::from_secs(90));
    assert!(server.terminate().success());
    let verified = run(nightshift(tried.folder.path()).arg("verify"));
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    tried.end();
}

/// When a line of the log was written, by the server's own clock.
fn said_at(line: &str) -> Timestamp {
    let line: Value = serde_json::from_str(line).unwrap();
    line["timestamp"].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_disk_that_hangs_does_not_hold_up_a_stop() {
    let mut tried = Tried::new();
    let port = free_port();
    let faults = inject("fdatasync", "delay_exit=20000000:when=4+");
    let mut server = Server::spawn(traced(tried.folder.path(), &tried.provider, port, &faults), port);
    let (url, from) = (server.url.clone(), tried.acknowledged);
    let (told, answers) = channel();
    // It gets no answer, or that nothing is taken in.
    let hangs = std::thread::spawn(move || {
        (0..8).all(|piece| {
            let taken = matches!(send_to(&url, from + 10 * piece, 10), Ok((200, _)));
            let _ = told.send(());
            taken
        })
    });
    while answers.recv_timeout(Duration::from_secs(3)).is_ok() {}
    server.signal(Signal::TERM);
    let stopping = server.wait_for("stopping").expect("it hears");
    // Long before the disk goes on, after which it would have left without a word.
    let leaves = server.wait_until(Duration::from_secs(13), |line| line.contains("leaving all the same"));
    let leaves = leaves.unwrap_or_else(|| panic!("it does not leave: {}", server.tail()));
    let took = said_at(&leaves).since(said_at(&stopping));
    assert!(took < Duration::from_secs(10), "it left only after {took:?}: {}", server.tail());
    // strace holds on to the thread that hangs, and so to the process.
    let left = server.left(PATIENCE).expect("it has left");
    assert!(left.success(), "{left}: {}", server.tail());
    assert!(!hangs.join().unwrap(), "the disk did not hang");
    tried.acknowledged += 80;
    tried.end();
}
