//! Disks that fill up and are freed again, folders that cannot be written, spool files that are not what was written:
//! the real binary on small file systems of its own, against a simulator that has its state elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nightshift::disk::{BALLAST, Space};
use serde_json::Value;

use crate::crash::steps_in_store;
use crate::harness::body_in_pieces;
use crate::process::{PATIENCE, Server, TOKEN, call, free_port, nightshift, read, run, text};

/// Everything happens at once, and nothing is analysed.
pub const FAST: [&str; 7] = [
    "creation.interval=1s",
    "creation.max_age=0s",
    "polling.interval=1s",
    "submission.grace=1s",
    "retry.backoff=1s",
    "analysis.settle=0s",
    "provider.kind=openai",
];

const REQUESTS: &str = "/api/v1/companies/demo/requests";

/// A simulator in a process of its own.
pub struct Provider {
    child: Child,
    port: u16,
    url: String,
    folder: PathBuf,
}

impl Provider {
    pub fn start(folder: &Path, turnaround: &str, faults: &str) -> Self {
        Self::on(free_port(), folder, turnaround, faults)
    }

    /// Ends it and starts it with other faults, at the same address and with what it knows.
    pub fn restart(self, turnaround: &str, faults: &str) -> Self {
        let (port, folder) = (self.port, self.folder.clone());
        drop(self);
        Self::on(port, &folder, turnaround, faults)
    }

    fn on(port: u16, folder: &Path, turnaround: &str, faults: &str) -> Self {
        let (state, plan) = (folder.join("provider"), folder.join("faults.json"));
        fs::write(&plan, faults).unwrap();
        let mut command = nightshift(folder);
        command.arg("simulate").args(["--port", &port.to_string(), "--turnaround", turnaround]);
        command.arg("--state").arg(&state).arg("--faults").arg(&plan);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        let (sender, line) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = std::io::BufRead::read_line(&mut out, &mut line);
            let _ = sender.send(line);
            // Whatever else it says must find a reader.
            let _ = std::io::copy(&mut out, &mut std::io::sink());
        });
        let url = line.recv_timeout(PATIENCE).unwrap().trim().to_owned();
        assert!(url.starts_with("http"), "the simulator did not start: {url:?}");
        Self { child, port, url, folder: folder.to_owned() }
    }

    /// A command that goes to it.
    pub fn command(&self, folder: &Path, port: u16, set: &[&str]) -> Command {
        let mut command = nightshift(folder);
        self.point(&mut command, port, set);
        command
    }

    /// Makes a command go to it.
    pub fn point(&self, command: &mut Command, port: u16, set: &[&str]) {
        command.env("OPENAI_API_KEY", "a-key-for-the-tests").env("OPENAI_BASE_URL", &self.url);
        for set in FAST.iter().chain(set) {
            command.args(["--set", set]);
        }
        command.args(["--set", &format!("server.bind=127.0.0.1:{port}")]);
    }

    pub fn server(&self, folder: &Path, port: u16, set: &[&str]) -> Server {
        Server::spawn(self.command(folder, port, set), port)
    }

    /// How often each request was run, as it would be paid.
    pub fn runs(&self) -> BTreeMap<String, u32> {
        let mut runs = BTreeMap::new();
        for line in read(&self.folder.join("provider/ledger.jsonl")).lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            if line["event"] == "line_run" {
                *runs.entry(line["custom_id"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        runs
    }

    /// Every request was run, and none twice.
    pub fn assert_ran_once(&self, requests: usize) {
        let runs = self.runs();
        let twice: Vec<_> = runs.iter().filter(|(_, runs)| **runs > 1).collect();
        assert!(twice.is_empty(), "paid more than once: {twice:?}");
        assert_eq!(runs.len(), requests, "every request was run");
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A small file system, gone when it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(path: &Path, options: &str) -> Self {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).output();
        let mounted = mounted.expect("this test needs `mount` (util-linux)");
        assert!(
            mounted.status.success(),
            "this test mounts a small tmpfs and needs the right to (root with CAP_SYS_ADMIN, or start the tests under \
             `unshare --map-root-user --mount`): {}",
            text(&mounted.stderr)
        );
        Self(path.to_owned())
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }

    fn space(&self) -> Space {
        Space::of(&self.0).unwrap()
    }

    /// Fills it up but for `left` bytes.
    fn fill(&self, left: u64) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        let block = vec![7; 4096];
        while self.space().free > left && file.write_all(&block).is_ok() {}
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

pub fn lines(from: usize, count: usize) -> String {
    let line = |number: usize| {
        format!(
            "{{\"id\":\"r{number}\",\"endpoint\":\"/v1/chat/completions\",\"body\":{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":\"Question {number}?\"}}]}}}}\n"
        )
    };
    (from..from + count).map(line).collect()
}

/// Sends requests; status and body, an error if no answer came.
pub fn send(server: &Server, from: usize, count: usize) -> Result<(u16, Value), reqwest::Error> {
    send_to(&server.url, from, count)
}

pub fn send_to(base: &str, from: usize, count: usize) -> Result<(u16, Value), reqwest::Error> {
    call(base, "POST", REQUESTS, Some(("application/x-ndjson", lines(from, count))))
}

/// Everything that was acknowledged is there: sent again, it is known.
pub fn assert_known(server: &Server, count: usize) {
    let (status, answer) = send(server, 0, count).unwrap();
    assert_eq!((status, &answer["duplicate"]), (200, &Value::from(count)), "{answer}");
}

/// Asks again and again until it is as wanted.
pub fn until(server: &mut Server, what: &str, mut is: impl FnMut(&Server) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is(server) {
        assert!(Instant::now() < end, "it does not come to this: {what}; log:\n{}", server.tail());
        server.wait_until(Duration::from_millis(50), |_| false);
    }
}

/// The reasons why it is not ready.
fn reasons(server: &Server) -> String {
    let (status, ready) = server.try_call("GET", "/readyz", None).unwrap();
    assert_eq!(status == 200, ready["ok"] == true, "{ready}");
    if status == 200 { String::new() } else { ready["reasons"].to_string() }
}

pub fn verify(folder: &Path) {
    let verified = run(nightshift(folder).arg("verify"));
    assert!(verified.status.success(), "{}{}", text(&verified.stdout), text(&verified.stderr));
}

#[test]
fn a_disk_at_its_floor_stops_everything_and_room_lets_it_go_on_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let data = Mounted::new(&folder.path().join("data"), "size=64m");
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/sample");
    let config = format!(
        "[[companies]]\nid = \"demo\"\n[[imports]]\ncompany = \"demo\"\ncsv = \"sessions.csv\"\nevery = \"1s\"\ntranscripts = {sample:?}\n"
    );
    fs::write(folder.path().join("config.toml"), config).unwrap();
    let provider = Provider::start(folder.path(), "1s", "{}");
    let port = free_port();
    let mut server = provider.server(folder.path(), port, &["creation.enabled=false"]);
    let ballast = data.0.join(BALLAST);
    // On a small disk it is as large as what the opening of a store takes.
    let made = |_: &Server| fs::metadata(&ballast).is_ok_and(|file| file.len() == 10 << 20);
    until(&mut server, "the ballast is made", made);
    assert_eq!(send(&server, 0, 300).unwrap().0, 200);
    assert!(server.terminate().success());

    let mut server = provider.server(folder.path(), port, &["creation.enabled=false"]);
    // A stream that is under way: its first chunk is stored, then the disk is full, then the rest comes.
    let (chunks, body) = body_in_pieces();
    let answer = stream(&server.url, body);
    chunks.send(Ok(lines(300, 250))).unwrap();
    until(&mut server, "the first chunk is stored", |server| server.summary()[0] == 550);
    let filler = data.fill(1 << 20);
    until(&mut server, "the floor is noticed", |server| reasons(server).contains("free_space_floor"));
    let told = reasons(&server);
    for part in [data.0.to_str().unwrap(), " MB free", "6.7 MB", "Make room"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    let _ = chunks.send(Ok(lines(550, 500)));
    drop(chunks);
    let (status, answer) = answer.join().unwrap();
    assert_eq!((status, answer["code"].as_str()), (503, Some("disk")), "{answer}");
    assert_eq!(
        (&answer["accepted"], &answer["lastLine"]),
        (&Value::from(250), &Value::from(250)),
        "{answer}"
    );
    let (status, answer) = send(&server, 2000, 1).unwrap();
    assert_eq!((status, answer["code"].as_str()), (503, Some("disk")), "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("free_space_floor"));
    assert!(server.terminate().success());

    // A start below the floor that has no ballast left to give back: it answers, and sends and takes in nothing.
    for path in [&filler, &ballast] {
        fs::remove_file(path).unwrap();
    }
    let filler = data.fill(4 << 20);
    let mut server = provider.server(folder.path(), port, &[]);
    assert!(reasons(&server).contains("free_space_floor"));
    fs::copy(sample.join("sessions.csv"), folder.path().join("sessions.csv")).unwrap();
    server.wait_for("an import waits").expect("the importer stops");
    assert_eq!(server.summary(), [550, 0, 0, 0]);
    assert!(provider.runs().is_empty());
    fs::remove_file(filler).unwrap();
    server.wait_until_done(550, Duration::from_secs(60));
    until(&mut server, "the import goes on", |server| server.summary()[2] > 550);
    assert_eq!(reasons(&server), "");
    assert_known(&server, 550);
    until(&mut server, "the ballast is there again", |_| ballast.exists());
    server.wait_until_done(572, Duration::from_secs(60));
    assert!(server.terminate().success());
    verify(folder.path());
}

/// Posts a body that comes in pieces, on a thread of its own.
fn stream(url: &str, body: reqwest::Body) -> std::thread::JoinHandle<(u16, Value)> {
    let url = format!("{url}{REQUESTS}");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = nightshift::tls::client_builder().no_proxy().timeout(PATIENCE).build().unwrap();
            let request = client.post(url).bearer_auth(TOKEN).header("content-type", "application/x-ndjson");
            let answer = request.body(body).send().await.unwrap();
            (answer.status().as_u16(), answer.json().await.unwrap())
        })
    })
}

#[test]
fn a_disk_that_is_full_to_the_last_byte_ends_the_process_and_the_next_start_opens_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = Mounted::new(&folder.path().join("data"), "size=48m");
    let provider = Provider::start(folder.path(), "1s", "{}");
    let port = free_port();
    // Without a floor the store itself meets the end of the disk.
    let careless = ["data.free_space_floor=0", "creation.enabled=false"];
    let mut server = provider.server(folder.path(), port, &careless);
    let ballast = data.0.join(BALLAST);
    until(&mut server, "the ballast is made", |_| ballast.exists());
    assert_eq!(send(&server, 0, 250).unwrap().0, 200);
    let filler = data.fill(512 << 10);
    let mut acknowledged = 250;
    while let Ok((200, answer)) = send(&server, acknowledged, 250) {
        acknowledged += 250;
        assert_eq!(answer["accepted"], 250);
        assert!(acknowledged < 100_000, "the disk does not fill up");
    }
    let left = server.left(PATIENCE).expect("it leaves");
    assert_eq!(left.code(), Some(74), "{}", server.tail());
    assert!(server.tail().contains("the disk is full"), "{}", server.tail());
    let mut server = provider.server(folder.path(), port, &[]);
    assert!(reasons(&server).contains("free_space_floor"), "{}", server.tail());
    assert!(!ballast.exists(), "the ballast was given back");
    let [pending, in_batches, complete, _] = server.summary();
    assert!(pending >= acknowledged as u64, "{pending} of {acknowledged}");
    assert_eq!((in_batches, complete), (0, 0));
    fs::remove_file(filler).unwrap();
    server.wait_until_done(acknowledged as u64, Duration::from_secs(90));
    assert_known(&server, acknowledged);
    assert_eq!(reasons(&server), "");
    assert!(server.terminate().success());
    provider.assert_ran_once(usize::try_from(pending).unwrap());
    verify(folder.path());
}

#[test]
fn a_disk_without_inodes_stops_everything_and_goes_on_when_there_are_some() {
    let folder = tempfile::tempdir().unwrap();
    let data = Mounted::new(&folder.path().join("data"), "size=64m,nr_inodes=300");
    let provider = Provider::start(folder.path(), "1s", "{}");
    let port = free_port();
    let mut server = provider.server(folder.path(), port, &["creation.enabled=false"]);
    assert_eq!(send(&server, 0, 20).unwrap().0, 200);
    assert!(server.terminate().success());
    let mut server = provider.server(folder.path(), port, &[]);
    let fillers = data.0.join("fillers");
    fs::create_dir(&fillers).unwrap();
    let made =
        (0..300).take_while(|number| fs::File::create(fillers.join(number.to_string())).is_ok()).count();
    assert!(made < 300, "there are still inodes");
    until(&mut server, "their end is noticed", |server| reasons(server).contains("inodes are used up"));
    let (status, answer) = send(&server, 20, 1).unwrap();
    assert_eq!((status, answer["code"].as_str()), (503, Some("disk")), "{answer}");
    fs::remove_dir_all(fillers).unwrap();
    server.wait_until_done(20, Duration::from_secs(60));
    until(&mut server, "it goes on", |server| reasons(server).is_empty());
    assert_eq!(send(&server, 20, 1).unwrap().0, 200);
    server.wait_until_done(21, Duration::from_secs(60));
    assert!(server.terminate().success());
    provider.assert_ran_once(21);
    verify(folder.path());
}

#[test]
fn a_spool_without_room_stops_the_work_and_goes_on_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Mounted::new(&folder.path().join("data/spool"), "size=32k");
    let provider = Provider::start(folder.path(), "1s", "{}");
    let port = free_port();
    let mut server = provider.server(folder.path(), port, &["creation.enabled=false"]);
    assert_eq!(send(&server, 0, 500).unwrap().0, 200);
    assert!(server.terminate().success());
    let mut server = provider.server(folder.path(), port, &[]);
    until(&mut server, "the input file has no room", |server| reasons(server).contains("-input.jsonl"));
    assert!(reasons(&server).contains("could not be written"), "{}", reasons(&server));
    assert_eq!(send(&server, 500, 1).unwrap().0, 503);
    // Room for the input file, and not for the results beside it.
    spool.remount("size=160k");
    until(&mut server, "the results have no room", |server| reasons(server).contains("-output.jsonl"));
    spool.remount("size=8m");
    server.wait_until_done(500, Duration::from_secs(60));
    until(&mut server, "nothing stands in the way", |server| reasons(server).is_empty());
    assert_eq!(server.summary(), [0, 0, 500, 0]);
    until(&mut server, "the spool is clean", |_| fs::read_dir(&spool.0).unwrap().count() == 0);
    assert!(server.terminate().success());
    provider.assert_ran_once(500);
    verify(folder.path());
}

#[test]
fn folders_that_cannot_be_written_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = Mounted::new(&folder.path().join("data"), "size=16m");
    let port = free_port();
    let provider = Provider::start(folder.path(), "1s", "{}");
    let mut server = provider.server(folder.path(), port, &[]);
    assert_eq!(send(&server, 0, 10).unwrap().0, 200);
    assert!(server.terminate().success());
    let refused = |part: &str| {
        let output = run(&mut provider.command(folder.path(), port, &[]));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(part), "{part} in {said}");
        said
    };
    data.remount("ro");
    let said = refused(data.0.to_str().unwrap());
    assert!(said.contains("Read-only file system"), "{said}");
    data.remount("rw");

    let spool = data.0.join("spool");
    fs::remove_dir_all(&spool).unwrap();
    fs::write(&spool, "a file").unwrap();
    refused(spool.to_str().unwrap());
    fs::remove_file(&spool).unwrap();
    let mounted = Mounted::new(&spool, "size=1m,ro");
    refused(spool.to_str().unwrap());
    drop(mounted);
    let mut server = provider.server(folder.path(), port, &[]);
    server.wait_until_done(10, Duration::from_secs(60));
    assert_known(&server, 10);
    assert!(server.terminate().success());
}

/// Files of the spool with this end of their names.
fn spooled(folder: &Path, end: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.join("data/spool")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.to_str().unwrap().ends_with(end)).collect()
}

type Damage = (&'static str, fn(&Path));

/// What can befall a file, each leaving it usable at first sight.
const DAMAGES: [Damage; 3] = [
    ("removed", |path| fs::remove_file(path).unwrap()),
    ("cut", |path| {
        let whole = fs::read_to_string(path).unwrap();
        let half = whole[..whole.len() / 2].rfind('\n').unwrap() + 1;
        fs::write(path, &whole[..half]).unwrap();
    }),
    ("altered", |path| {
        // Still whole lines of good JSON, and as long as before.
        let whole = fs::read_to_string(path).unwrap();
        fs::write(path, whole.replace("gpt", "gqt")).unwrap();
    }),
];

#[test]
fn an_input_file_that_was_removed_cut_or_altered_before_it_was_sent_is_written_anew() {
    // While the provider is down, the file lies in the spool.
    let down = r#"{"seed": 1, "calls": [{"call": "files.create", "fault": "status", "status": 500}]}"#;
    for (what, damage) in DAMAGES {
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::start(folder.path(), "1s", down);
        let mut server = provider.server(folder.path(), free_port(), &[]);
        assert_eq!(send(&server, 0, 300).unwrap().0, 200);
        until(&mut server, "an input file is written", |_| {
            !spooled(folder.path(), "-input.jsonl").is_empty()
        });
        server.wait_for("did not go through").unwrap();
        server.kill();
        for path in spooled(folder.path(), "-input.jsonl") {
            damage(&path);
        }
        let provider = provider.restart("1s", "{}");
        let mut server = provider.server(folder.path(), free_port(), &[]);
        server.wait_until_done(300, Duration::from_secs(60));
        assert_eq!(server.summary(), [0, 0, 300, 0], "{what}");
        assert!(server.terminate().success());
        provider.assert_ran_once(300);
    }
}

/// Kills a server while it takes in the results of its only open batch: how many requests were sent, and the file. It
/// does not wait for the kill, so one that comes too late is tried again with more work.
fn killed_while_applying(folder: &Path, provider: &Provider) -> (usize, PathBuf) {
    const PIECE: usize = 2000;
    for sent in (0..10).map(|tried| tried * PIECE) {
        // All of it is there before any of it is cut, so it is one batch.
        let mut server = provider.server(folder, free_port(), &["creation.enabled=false"]);
        assert_eq!(send(&server, sent, PIECE).unwrap().0, 200);
        until(&mut server, "the tries before are over", |server| server.summary()[1] == 0);
        assert!(server.terminate().success());
        let mut server = provider.server(folder, free_port(), &[]);
        server.wait_for("\"step\":\"applying\"").unwrap();
        server.kill();
        if steps_in_store(&folder.join("data")) == ["applying"] {
            let [results] = spooled(folder, "-output.jsonl").try_into().unwrap();
            return (sent + PIECE, results);
        }
    }
    panic!("no kill came in the midst of it");
}

#[test]
fn a_result_file_that_was_removed_cut_or_altered_before_it_was_applied_is_fetched_anew() {
    for (what, damage) in DAMAGES {
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::start(folder.path(), "1s", "{}");
        let (sent, results) = killed_while_applying(folder.path(), &provider);
        damage(&results);
        let mut server = provider.server(folder.path(), free_port(), &[]);
        server.wait_for("fetching it again").expect(what);
        server.wait_until_done(sent as u64, Duration::from_secs(60));
        assert_eq!(server.summary(), [0, 0, sent as u64, 0], "{what}");
        // The newest ones, which were damaged, come first.
        let page = server.get("/api/admin/legacy/requests?status=processing_complete&limit=500").to_string();
        assert!(!page.contains("gqt"), "{what}: an altered line was taken in");
        assert!(server.terminate().success());
        provider.assert_ran_once(sent);
        verify(folder.path());
    }
}

/// A server below a limit of the system.
fn limited(limit: &str, folder: &Path, provider: &Provider, port: u16, set: &[&str]) -> Server {
    let mut command = Command::new("prlimit");
    command.args([limit, env!("CARGO_BIN_EXE_nightshift")]).current_dir(folder);
    let usual = nightshift(folder);
    command.envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
    provider.point(&mut command, port, set);
    Server::spawn(command, port)
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_that_is_told_and_nothing_acknowledged_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(folder.path(), "1s", "{}");
    let port = free_port();
    let careless = ["creation.enabled=false", "data.ballast=0"];
    let mut server = limited("--fsize=33554432", folder.path(), &provider, port, &careless);
    let mut acknowledged = 0;
    while let Ok((200, answer)) = send(&server, acknowledged, 250) {
        acknowledged += 250;
        assert_eq!(answer["accepted"], 250);
        assert!(acknowledged < 200_000, "the limit is not reached");
    }
    let left = server.left(PATIENCE).expect("it leaves");
    assert_eq!(left.code(), Some(74), "{left:?}: {}", server.tail());
    assert!(acknowledged > 0);
    let mut server = provider.server(folder.path(), port, &[]);
    let pending = server.summary().iter().sum::<u64>();
    assert!(pending >= acknowledged as u64, "{pending} of {acknowledged}");
    assert_known(&server, acknowledged.min(1000));
    server.wait_until_done(pending, Duration::from_secs(120));
    assert!(server.terminate().success());
    provider.assert_ran_once(usize::try_from(pending).unwrap());
    verify(folder.path());
}

#[test]
fn with_few_file_descriptors_it_works_or_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(folder.path(), "1s", "{}");
    let port = free_port();
    let mut server = limited("--nofile=32:32", folder.path(), &provider, port, &[]);
    // More connections than there are descriptors: the surplus is shed, and neither store nor spool lacks any.
    let held: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(("127.0.0.1", port))).collect();
    server.wait_until(Duration::from_secs(2), |_| false);
    drop(held);
    until(&mut server, "it takes requests", |server| matches!(send(server, 0, 100), Ok((200, _))));
    server.wait_until_done(100, Duration::from_secs(60));
    assert_eq!(server.summary(), [0, 0, 100, 0]);
    assert!(server.terminate().success());
    provider.assert_ran_once(100);
    verify(folder.path());
}
