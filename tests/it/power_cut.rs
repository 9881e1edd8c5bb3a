//! Power cuts (reliability T3): what was acknowledged is there, whatever a cut leaves of the writes not synced.
//!
//! A child works on a real store under strace. Its writes are replayed on a model of a disk, the disk is cut at
//! random moments, and each image is opened by another child, which looks for all that was acknowledged before.
//!
//! `NIGHTSHIFT_POWER_SEED` repeats the cuts, together with `NIGHTSHIFT_POWER_TRACE`, a folder of kept traces: how
//! the threads of the child take turns is in the traces, not in the seed. A run that fails says both.

mod disk;
mod trace;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use disk::{Dice, Disk, Mode};
use trace::Op;
use work::Verdict;

/// What a child is to do, and where.
const ROLE: &str = "NIGHTSHIFT_POWER_ROLE";
const SESSION: &str = "NIGHTSHIFT_POWER_SESSION";
const FOLDER: &str = "NIGHTSHIFT_POWER_FOLDER";

/// Processes that follow one another on one store; each leaves as if it were killed.
const SESSIONS: u8 = 3;
const SESSION_TIME: Duration = Duration::from_millis(1000);

/// Not a test of its own: what the children of the tests below run.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    match role.as_str() {
        "work" => {
            let session = std::env::var(SESSION).unwrap().parse().unwrap();
            work::drive(&folder.join("data"), session, SESSION_TIME)
        }
        _ => {
            let acknowledged = std::fs::read_to_string(folder.with_extension("acknowledged")).unwrap();
            let verdict = work::verify(&folder.join("data"), &acknowledged.lines().collect::<Vec<_>>());
            let (word, why) = match verdict {
                Verdict::Good => ("good", String::new()),
                Verdict::Lost(why) => ("lost", why),
                Verdict::Violated(why) => ("violated", why),
                Verdict::Refused(why) => ("refused", why),
            };
            println!("\nVERDICT {word} {}", why.replace('\n', " "));
            std::process::exit(0);
        }
    }
}

/// This binary as a child with a role.
fn as_child(command: &mut Command, role: &str, folder: &Path) {
    command
        .args(["--exact", "power_cut::child", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(FOLDER, folder)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
}

/// What happened on a store, and the folder it was in afterwards.
struct Recording {
    ops: Vec<Op>,
    root: PathBuf,
    traces: PathBuf,
    /// Goes away with the recording; none for kept traces.
    _folder: Option<tempfile::TempDir>,
}

impl Recording {
    fn make() -> Self {
        if let Some(traces) = std::env::var_os("NIGHTSHIFT_POWER_TRACE").map(PathBuf::from) {
            let root = std::fs::read_to_string(traces.join("root")).unwrap();
            return Self { ops: read_traces(&traces), root: root.into(), traces, _folder: None };
        }
        let folder = tempfile::tempdir().unwrap();
        let (root, traces) = (folder.path().join("root"), folder.path().join("traces"));
        std::fs::create_dir(&root).unwrap();
        std::fs::create_dir(&traces).unwrap();
        std::fs::write(traces.join("root"), root.to_str().unwrap()).unwrap();
        for session in 0..SESSIONS {
            let mut command = Command::new("strace");
            command
                .args(["-f", "--seccomp-bpf", "-qq", "-xx", "-s", "40000000", "-e", "signal=none", "-e"])
                .arg(format!("trace={}", trace::CALLS))
                .arg("-o")
                .arg(traces.join(format!("session-{session}")))
                .arg(std::env::current_exe().unwrap());
            as_child(&mut command, "work", &root);
            command.env(SESSION, session.to_string()).stdout(Stdio::null()).stderr(Stdio::piped());
            let output = command.output().expect("strace is needed: tests/run installs it");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Self { ops: read_traces(&traces), root, traces, _folder: Some(folder) }
    }

    fn cuts(&self, count: usize, dice: &mut Dice) -> BTreeSet<usize> {
        let acknowledgements: Vec<usize> =
            (0..self.ops.len()).filter(|at| matches!(self.ops[*at], Op::Acknowledged(_))).collect();
        let (copied, renamed) = self.exchange();
        let mut cuts = BTreeSet::new();
        while cuts.len() < count {
            cuts.insert(match cuts.len() % 5 {
                // While the store is made.
                3 => dice.below(acknowledgements[0]),
                // Right behind an acknowledgement nothing may be missing yet.
                0 | 2 => acknowledgements[dice.below(acknowledgements.len())],
                // While the store is exchanged: two in three of these where names change, and right behind that.
                4 if dice.one_in(3) => copied[dice.below(copied.len())],
                4 => renamed[dice.below(renamed.len())],
                _ => dice.below(self.ops.len()),
            });
        }
        cuts
    }

    /// The operations that copy the store, and those that exchange it for the copy, with the first ones on the new one.
    fn exchange(&self) -> (Vec<usize>, Vec<usize>) {
        const BEHIND: usize = 60;
        let said = |what: &str| self.ops.iter().position(|op| *op == Op::Acknowledged(what.to_owned()));
        let (from, to) = (said(work::COMPACTING).unwrap(), said(work::COMPACTED_WELL).unwrap());
        let first =
            (from..to).find(|at| matches!(self.ops[*at], Op::Renamed { .. })).expect("nothing was renamed");
        let counts = |at: &usize| {
            !matches!(self.ops[*at], Op::Close { .. } | Op::Seeked { .. } | Op::Opened { create: false, .. })
        };
        let to = (to + BEHIND).min(self.ops.len());
        ((from..first).filter(counts).collect(), (first..to).filter(counts).collect())
    }

    /// Cuts the power at `cuts` in each of `modes`; what the images are worth.
    fn images(
        &self,
        cuts: &BTreeSet<usize>,
        modes: &[Mode],
        deaf: Option<&'static str>,
        dice: &mut Dice,
    ) -> BTreeMap<(usize, Mode), Verdict> {
        let folder = tempfile::tempdir().unwrap();
        let verdicts = Mutex::new(BTreeMap::new());
        let (sender, jobs) = sync_channel::<(usize, Mode, PathBuf)>(1);
        let jobs = Mutex::new(jobs);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let Ok((at, mode, image)) = jobs.lock().unwrap().recv() else { return };
                        let verdict = look_at(&image);
                        std::fs::remove_dir_all(&image).unwrap();
                        verdicts.lock().unwrap().insert((at, mode), verdict);
                    }
                });
            }
            let mut disk = Disk::new(&self.root, deaf);
            let mut acknowledged = String::new();
            for (at, op) in self.ops.iter().enumerate() {
                disk.apply(op);
                if let Op::Acknowledged(line) = op {
                    acknowledged.push_str(line);
                    acknowledged.push('\n');
                }
                if cuts.contains(&at) {
                    for mode in modes {
                        let image = folder.path().join(format!("{at}-{mode:?}"));
                        std::fs::create_dir(&image).unwrap();
                        disk.image(*mode, dice, &image);
                        std::fs::write(image.with_extension("acknowledged"), &acknowledged).unwrap();
                        sender.send((at, *mode, image)).unwrap();
                    }
                }
            }
            drop(sender);
        });
        verdicts.into_inner().unwrap()
    }

    /// Keeps what a failure needs to be looked at again.
    fn keep(&self, seed: u64) -> String {
        let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("power-cut-{seed}"));
        std::fs::create_dir_all(&kept).unwrap();
        for entry in std::fs::read_dir(&self.traces).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), kept.join(entry.file_name())).unwrap();
        }
        format!("again: NIGHTSHIFT_POWER_SEED={seed} NIGHTSHIFT_POWER_TRACE={}", kept.display())
    }
}

fn read_traces(traces: &Path) -> Vec<Op> {
    let (mut ops, mut token) = (Vec::new(), 0);
    for session in 0..SESSIONS {
        let text = std::fs::read_to_string(traces.join(format!("session-{session}"))).unwrap();
        trace::read(&text, &mut ops, &mut token);
    }
    ops
}

/// Has a child look at an image.
fn look_at(image: &Path) -> Verdict {
    let mut command = Command::new(std::env::current_exe().unwrap());
    as_child(&mut command, "verify", image);
    let output = crate::process::run(&mut command);
    let said = String::from_utf8_lossy(&output.stdout);
    let Some(verdict) = said.lines().find_map(|line| line.strip_prefix("VERDICT ")) else {
        let (code, signal) = (output.status.code(), output.status.signal());
        let words = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
        return Verdict::Refused(format!("the child died (code {code:?}, signal {signal:?}): {words}"));
    };
    let (word, why) = verdict.split_once(' ').unwrap();
    let why = why.to_owned();
    match word {
        "good" => Verdict::Good,
        "lost" => Verdict::Lost(why),
        "violated" => Verdict::Violated(why),
        _ => Verdict::Refused(why),
    }
}

fn seed() -> u64 {
    match std::env::var("NIGHTSHIFT_POWER_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from_ne_bytes(uuid::Uuid::now_v7().as_bytes()[8..].try_into().unwrap()) >> 16,
    }
}

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let long = std::env::var_os("NIGHTSHIFT_TEST_LONG").is_some();
    let (rounds, cuts) = if long { (14, 150) } else { (1, 50) };
    for _ in 0..rounds {
        let seed = seed();
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let started = Instant::now();
        let recording = Recording::make();
        recording.check_the_tool();
        let recorded = started.elapsed();
        let images = recording.images(&recording.cuts(cuts, &mut dice), &Mode::EACH, None, &mut dice);
        let bad: Vec<_> = images.iter().filter(|(_, verdict)| **verdict != Verdict::Good).collect();
        println!("{} images, recorded in {recorded:?}, all in {:?}", images.len(), started.elapsed());
        assert!(bad.is_empty(), "{} images are bad; {}\n{bad:#?}", bad.len(), recording.keep(seed));
        recording.without_our_sync(&mut dice);
    }
}

impl Recording {
    /// With everything applied the image is what the child left, byte by byte; and the load was worth a test.
    fn check_the_tool(&self) {
        let mut disk = Disk::new(&self.root, None);
        let (mut acknowledged, mut bytes) = (0, 0);
        for op in &self.ops {
            disk.apply(op);
            match op {
                Op::Acknowledged(_) => acknowledged += 1,
                Op::Write { data, .. } => bytes += data.len(),
                // sled never syncs these, and removes them too early.
                Op::Opened { path, .. } => assert!(!path.contains("/blobs/"), "a page became a file: {path}"),
                _ => {}
            }
        }
        println!(
            "{} operations, {acknowledged} acknowledgements, {} syncs, {bytes} bytes written, {} writes over synced bytes",
            self.ops.len(),
            disk.syncs_done,
            disk.rewrites
        );
        assert!(acknowledged > 50, "the child did too little");
        if self._folder.is_some() {
            let image = tempfile::tempdir().unwrap();
            disk.image(Mode::All, &mut Dice(0), image.path());
            assert_same(&self.root, image.path());
        }
    }

    /// The test can fail: with our own sync ignored, sled's flush and its timer alone lose what was acknowledged.
    fn without_our_sync(&self, dice: &mut Dice) {
        let images = self.images(&self.cuts(8, dice), &[Mode::OnlySynced], Some("db"), dice);
        let bad = images.values().filter(|verdict| **verdict != Verdict::Good).count();
        println!("without our own sync {bad} of {} images are bad", images.len());
        assert!(bad > 0, "the images would not show a missing sync");
    }
}

fn assert_same(left: &Path, right: &Path) {
    let names = |folder: &Path| -> Vec<_> {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(left), names(right), "in {}", left.display());
    for name in names(left) {
        let (left, right) = (left.join(&name), right.join(&name));
        if left.is_dir() {
            assert_same(&left, &right);
        } else {
            assert!(std::fs::read(&left).unwrap() == std::fs::read(&right).unwrap(), "{}", left.display());
        }
    }
}
