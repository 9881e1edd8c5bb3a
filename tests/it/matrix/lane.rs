//! A data folder through all its starts and ends, and what must be true of it at last.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::hearer::Hearer;
use super::program::{Process, command};
use super::work::{ACCEPTED, ON_STOP, Work};
use crate::process::{run, text, turn_clock, with_clock};

/// A point that is not passed in this time is not passed at all.
const HIT_WITHIN: Duration = Duration::from_secs(40);
/// The removal of what is old begins a minute after a start.
const AGED_WITHIN: Duration = Duration::from_secs(100);
/// The work of a lane is done in this time once nothing ends it any more.
pub(super) const DONE_WITHIN: Duration = Duration::from_secs(120);
/// How often a lane looks how far the work is.
pub(super) const LOOK: Duration = Duration::from_millis(200);

/// A word of every conversation of the office.
pub(super) const CANARY: &str = "nightjar";

/// One passage of one point.
pub type Case = (&'static str, u64);

/// How many lines of a call are stored, by this call or an earlier one.
pub(super) fn known(answer: &Value) -> usize {
    let count = |name: &str| answer[name].as_u64().unwrap_or_default();
    usize::try_from(count("accepted") + count("duplicate")).unwrap()
}

/// Says in an environment variable which passages are meant.
pub(super) fn named(cases: &[Case]) -> String {
    cases.iter().map(|(point, nth)| format!("{point}:{nth}")).collect::<Vec<_>>().join(",")
}

/// A data folder with its provider, through all starts.
pub struct Lane {
    pub(super) name: String,
    pub(super) work: Work,
    pub(super) folder: tempfile::TempDir,
    simulator: Process,
    /// How many requests were sent, answered or not.
    pub(super) sent: usize,
    pub(super) sessions: usize,
    /// What was answered whole before an end came: none of it may be taken in anew.
    pub(super) acknowledged: Vec<Range<usize>>,
    pub(super) acknowledged_sessions: Vec<Range<usize>>,
    /// Sessions below this one may be erased.
    pub(super) erase_asked: usize,
    /// Those whose erasure was acknowledged.
    pub(super) erase_ordered: BTreeSet<usize>,
    /// When the requests are to be sent at the earliest that wait by their own wish.
    pub(super) later: BTreeMap<usize, String>,
    /// In which steps batches were cancelled.
    pub(super) cancelled_in: BTreeSet<String>,
    /// What was sent besides, for another company.
    pub(super) besides: usize,
    /// How far the clock was turned ahead.
    pub(super) hours: u32,
    /// Whether a backup was put back and not accepted yet.
    pub(super) in_doubt: bool,
    /// The provider's names of batches that surfaced after they were given up.
    pub(super) shadows: BTreeSet<String>,
    /// Our names of what the provider must have run.
    pub(super) to_be_run: BTreeSet<String>,
    pub(super) receiver: Option<Hearer>,
    pub(super) wrong: Vec<String>,
}

impl Lane {
    pub fn new(name: &str, work: Work) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("faults.json"), work.faults().to_string()).unwrap();
        let mut config = String::from("[[companies]]\nid = \"demo\"\nmodel = \"gpt-4o-mini\"\n");
        if work.is_old() {
            config += "[[companies]]\nid = \"old\"\nmodel = \"gpt-4o-mini\"\n";
            turn_clock(&folder.path().join("clock"), "+0");
        }
        if work == Work::Import {
            std::fs::write(folder.path().join("sessions.csv"), "").unwrap();
            config += "[[imports]]\ncompany = \"demo\"\ncsv = \"sessions.csv\"\nevery = \"1s\"\n";
        }
        let receiver = matches!(work, Work::Told | Work::Import).then(Hearer::start);
        if let Some(receiver) = &receiver {
            config += &format!("[fetch]\nallow_hosts = [\"{}\"]\n", receiver.host);
        }
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        let mut simulate = command(folder.path());
        simulate.args(["simulate", "--port", "0", "--state", "provider", "--faults", "faults.json"]);
        simulate.args(["--turnaround", work.turnaround()]);
        if work.is_old() {
            with_clock(&mut simulate, &folder.path().join("clock"));
        }
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
            acknowledged: Vec::new(),
            acknowledged_sessions: Vec::new(),
            erase_asked: 0,
            erase_ordered: BTreeSet::new(),
            later: BTreeMap::new(),
            cancelled_in: BTreeSet::new(),
            besides: 0,
            hours: 0,
            in_doubt: false,
            shadows: BTreeSet::new(),
            to_be_run: BTreeSet::new(),
            receiver,
            wrong: Vec::new(),
        }
    }

    pub(super) fn program(&self) -> Command {
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
            "retry.capacity_hold=0s",
            &format!("retry.max_attempts={attempts}"),
            "analysis.settle=0s",
            "log.level=info",
        ] {
            program.args(["--set", set]);
        }
        program.env("OPENAI_API_KEY", "any");
        if self.work == Work::Starting {
            // So that it makes one.
            program.env_remove("NIGHTSHIFT_ADMIN_TOKEN");
        }
        if self.work.is_old() {
            with_clock(&mut program, &self.folder.path().join("clock"));
        }
        program
    }

    /// Starts it and waits until it is up; what it ended with, if it did not come so far.
    pub(super) fn start(&mut self, variable: &str, value: &str) -> (Process, Option<ExitStatus>) {
        if self.work == Work::Import {
            self.grow_export();
        }
        let program = self.program();
        self.run(program, variable, value)
    }

    /// The same with settings of its own.
    pub(super) fn run(
        &self,
        mut program: Command,
        variable: &str,
        value: &str,
    ) -> (Process, Option<ExitStatus>) {
        if !value.is_empty() {
            program.env(variable, value);
        }
        let mut process = Process::spawn(program);
        match process.read_until("nightshift is up", Duration::from_secs(60)) {
            Ok(line) => {
                let from = line.find("API on ").expect("no address") + "API on ".len();
                process.url = line[from..].split(',').next().unwrap().to_owned();
                if self.work == Work::Starting {
                    process.token = self.token_file();
                }
                (process, None)
            }
            Err(ended) => (process, Some(ended.expect("it neither came up nor ended"))),
        }
    }

    /// Goes on until a batch was cancelled that the provider did not have yet: which steps the looks before met was
    /// chance.
    fn cancel_before_it_is_sent(&mut self, process: &mut Process) {
        if self.work != Work::Cancelled {
            return;
        }
        let end = Instant::now() + DONE_WITHIN;
        while !self.cancelled_in.iter().any(|step| step != "observing") {
            assert!(Instant::now() < end, "{}: none is cancelled before it is sent", self.name);
            self.cancelled_in.extend(process.cancel_running());
            if let Some([0, 0, _, 0]) = process.summary() {
                self.send_wave(process);
            }
            let _ = process.read_until("never said", LOOK);
        }
    }

    /// Every session is erased for good: nothing of what was said is in any file, the provider's included.
    fn erase_all(&mut self, mut process: Process) -> Process {
        if self.work != Work::Office {
            return process;
        }
        self.erase(&process, 0..self.sessions);
        self.until_erased(&mut process, &["compacting", "done"]);
        // The store is compacted once an hour, and after a start.
        self.stop(process);
        let (mut process, ended) = self.start("", "");
        assert!(ended.is_none(), "{}: {ended:?}\n{}", self.name, process.tail());
        self.until_erased(&mut process, &["done"]);
        let found = containing(self.folder.path(), CANARY.as_bytes());
        if !found.is_empty() {
            self.wrong.push(format!("{}: what was erased is still in {found:?}", self.name));
        }
        process
    }

    fn until_erased(&self, process: &mut Process, states: &[&str]) {
        let end = Instant::now() + DONE_WITHIN;
        loop {
            let listed = process.get("erasures?limit=500").unwrap_or_default();
            let erasures = listed["erasures"].as_array().cloned().unwrap_or_default();
            let is_there = |erasure: &Value| states.iter().any(|state| erasure["state"] == *state);
            let sessions = erasures.iter().filter(|erasure| erasure["what"] == "session").count();
            if sessions == self.sessions && erasures.iter().all(is_there) {
                return;
            }
            let left: Vec<_> = erasures.iter().filter(|erasure| !is_there(erasure)).collect();
            assert!(
                Instant::now() < end,
                "{}: {} of {} are erased, not {left:?}\n{}",
                self.name,
                sessions,
                self.sessions,
                process.tail()
            );
            let _ = process.read_until("never said", LOOK);
        }
    }

    /// Keeps it busy until it ends or `enough` says so.
    fn drive(&mut self, process: &mut Process, enough: impl Fn(&Process) -> bool) -> Option<ExitStatus> {
        let within = if self.work == Work::Aged { AGED_WITHIN } else { HIT_WITHIN };
        let end = Instant::now() + within;
        if self.work != Work::Restored {
            self.send_wave(process);
        }
        while Instant::now() < end {
            match process.read_until("crash point", LOOK) {
                Ok(_) | Err(None) => {}
                Err(ended) => return ended,
            }
            if enough(process) {
                return None;
            }
            if self.work == Work::Cancelled {
                self.cancelled_in.extend(process.cancel_running());
            }
            match process.summary() {
                // It takes nothing in before the backup is accepted.
                Some(_) if self.work == Work::Restored => {}
                Some([0, 0, _, 0]) if self.work == Work::Import => {
                    self.grow_export();
                    Self::have_read(process);
                }
                Some([0, 0, _, 0]) => self.send_wave(process),
                Some([_, _, _, failed]) if failed > 0 => process.requeue_failed(),
                Some(_) | None => {}
            }
        }
        None
    }

    /// Ends the process at a point.
    pub fn crash_at(&mut self, case: Case) {
        self.set_out();
        if self.work == Work::Starting {
            return self.crash_starting(case);
        }
        if ACCEPTED.contains(&case.0) {
            return self.crash_accepting(case);
        }
        let (mut process, mut ended) = self.start("NIGHTSHIFT_CRASH_AT", &named(&[case]));
        if ON_STOP.contains(&case.0) && ended.is_none() {
            process.signal("-TERM");
        }
        if ended.is_none() {
            ended = self.drive(&mut process, |_| false);
        }
        self.must_be_hit(case, ended, &process.tail());
    }

    /// Lets it panic at points that end the process by design.
    pub fn leave_at(&mut self, point: &'static str, code: i32) {
        self.set_out();
        self.lose_the_anchor_for(point);
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
        if self.work == Work::Starting {
            self.believe_without_anchor(point);
            self.come_in(&[], 1);
        }
    }

    /// Lets it panic at all these points within one life, and sees it come to the end all the same.
    pub fn survive(&mut self, points: &[&'static str]) {
        self.set_out();
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
        if self.work == Work::Restored {
            // Nothing is taken in before it is accepted; that comes at the end.
            self.until_all_is_over(&mut process);
        } else {
            self.come_to_the_end(&mut process);
        }
        assert_eq!(
            panics(&process),
            Some(points.len() as u64),
            "{}: other panics\n{}",
            self.name,
            process.tail()
        );
        self.stop(process);
    }

    pub(super) fn stop(&self, mut process: Process) {
        process.signal("-TERM");
        let status = process.read_until("\n", Duration::from_secs(60)).unwrap_err().expect("it did not stop");
        assert!(status.success(), "{}: {status}\n{}", self.name, process.tail());
    }

    /// Comes to the end, and checks the provider's ledger and the store.
    pub fn finish(mut self) -> Vec<String> {
        self.believe_again();
        let (mut process, ended) = self.start("", "");
        assert!(ended.is_none(), "{}: {ended:?}\n{}", self.name, process.tail());
        self.send_wave(&process);
        self.cancel_before_it_is_sent(&mut process);
        self.come_to_the_end(&mut process);
        self.until_all_is_over(&mut process);
        self.hear_all(&mut process);
        self.known_by_id(&process);
        let process = self.erase_all(process);
        self.stop(process);

        self.look_at_the_ledger();
        let verified = run(command(self.folder.path()).arg("verify"));
        if !verified.status.success() {
            self.wrong.push(format!("{}: {}{}", self.name, text(&verified.stdout), text(&verified.stderr)));
        }
        println!("{}: {} requests, {} sessions, none run twice", self.name, self.sent, self.sessions);
        self.wrong
    }
}

/// The files below a folder that contain these bytes.
fn containing(folder: &Path, bytes: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(containing(&path, bytes));
        } else if std::fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes) {
            found.push(path);
        }
    }
    found
}
