//! What happens between two starts of a lane: a backup is put back, two days pass, or the folder is a new one.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use super::lane::{Case, DONE_WITHIN, LOOK, Lane, named};
use super::program::Process;
use super::work::{CREATED, DOUBTED, Work};
use crate::process::{copy_folder, read, run, text, turn_clock};

/// Longer than intents are watched, files of ours are kept and the word of an `Idempotency-Key` holds.
const HOURS: u32 = 50;

impl Lane {
    /// Comes before a start that is to end at a point.
    pub(super) fn set_out(&mut self) {
        if self.work == Work::Restored {
            self.put_a_backup_back();
        } else if self.work.is_old() {
            self.let_two_days_pass();
        } else if self.work == Work::Starting {
            // Each case has a new folder; nothing was sent yet.
            let data = self.folder.path().join("data");
            if data.exists() {
                std::fs::remove_dir_all(data).unwrap();
            }
        }
    }

    pub(super) fn token_file(&self) -> String {
        read(&self.folder.path().join("data/admin-token")).trim().to_owned()
    }

    /// A start that is to pass what a doubt passes finds a folder that has been in use, and no anchor in it.
    pub(super) fn lose_the_anchor_for(&mut self, point: &str) {
        if self.work == Work::Starting && DOUBTED.contains(&point) {
            self.come_in(&[], 1);
            std::fs::remove_file(self.folder.path().join("data/ANCHOR")).unwrap();
        }
    }

    /// The doubt is found again, or is there already, until an operator accepts the store.
    pub(super) fn believe_without_anchor(&mut self, point: &str) {
        if !DOUBTED.contains(&point) {
            return;
        }
        let process = self.start_well();
        let doubted = process.seen.iter().any(|line| line.contains("ANCHOR that belongs to it is missing"));
        self.stop(process);
        let accepted = run(self.program().args(["store", "accept", "--yes"]));
        assert!(accepted.status.success(), "{}: {}", self.name, text(&accepted.stderr));
        let stays = self.folder.path().join("data/DOUBT").exists();
        if !doubted || stays {
            self.wrong.push(format!("{}: {point}: in doubt {doubted}, when accepted {stays}", self.name));
        }
    }

    /// A start is ended, or a command that makes a token in the folder of one that came through. A reset passes what the
    /// first start passes, so it is ended there, too.
    pub(super) fn crash_starting(&mut self, case: Case) {
        let (point, _) = case;
        self.lose_the_anchor_for(point);
        if !CREATED.contains(&point) {
            let (process, ended) = self.start("NIGHTSHIFT_CRASH_AT", &named(&[case]));
            self.must_be_hit(case, ended, &process.tail());
        }
        self.believe_without_anchor(point);
        self.come_in(&[], 1);
        let command: &[&str] = match point.rsplit_once('.') {
            Some(("token.admin", _)) => &["token", "reset"],
            Some(("token.create", _)) => &["token", "create", "--role", "admin"],
            _ => return,
        };
        let before = self.token_file();
        let ended = run(self.program().args(command).env("NIGHTSHIFT_CRASH_AT", named(&[case])));
        self.must_be_hit(case, Some(ended.status), &text(&ended.stderr));
        // Nobody is locked out: the old token is good, or the new one, which is in its file.
        self.come_in(&[before], 1);
        // Who was not answered begins again.
        let made = run(self.program().args(command));
        assert!(made.status.success(), "{}: {}", self.name, text(&made.stderr));
        let made = text(&made.stdout).trim().to_owned();
        let all = if made == self.token_file() { 1 } else { 2 };
        self.come_in(&[made], all);
    }

    pub(super) fn must_be_hit(&mut self, (point, nth): Case, ended: Option<ExitStatus>, tail: &str) {
        if ended.and_then(|status| status.signal()) != Some(9) {
            self.wrong.push(format!("{}: {point}:{nth} was not hit: {ended:?}\n{tail}", self.name));
        }
    }

    /// The next start comes up with the company of the configuration; so many of `tokens` and the one of the file are
    /// good.
    pub(super) fn come_in(&mut self, tokens: &[String], expected: usize) {
        let process = self.start_well();
        let mut good = 0;
        let all: BTreeSet<_> = tokens.iter().cloned().chain([self.token_file()]).collect();
        for token in &all {
            let path = "/api/admin/legacy/companies/demo";
            let answer = process.call_as(token, "GET", path, &[], String::new()).unwrap_or_default();
            good += usize::from(answer["company"]["id"] == "demo");
        }
        if good != expected {
            self.wrong.push(format!(
                "{}: {good} of {} tokens are good, not {expected}\n{}",
                self.name,
                all.len(),
                process.tail()
            ));
        }
        self.stop(process);
        let verified = run(self.program().arg("verify"));
        if !verified.status.success() {
            self.wrong.push(format!("{}: {}{}", self.name, text(&verified.stdout), text(&verified.stderr)));
        }
    }

    fn start_well(&mut self) -> Process {
        let (process, ended) = self.start("", "");
        assert!(ended.is_none(), "{}: {ended:?}\n{}", self.name, process.tail());
        process
    }

    /// The provider has done what the store of the backup does not know to have been sent.
    fn put_a_backup_back(&mut self) {
        self.believe_again();
        let mut program = self.program();
        program.args(["--set", "creation.enabled=false"]);
        let (process, ended) = self.run(program, "", "");
        assert!(ended.is_none(), "{}: {ended:?}\n{}", self.name, process.tail());
        let before = self.acknowledged.len();
        self.send_wave(&process);
        assert!(self.acknowledged.len() > before, "{}: nothing is taken in\n{}", self.name, process.tail());
        self.stop(process);
        let (data, backup) = (self.folder.path().join("data"), self.folder.path().join("backup"));
        copy_folder(&data, &backup);

        let mut process = self.start_well();
        self.until_all_is_over(&mut process);
        // It is killed.
        drop(process);
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::rename(&backup, &data).unwrap();
        self.in_doubt = true;
    }

    /// What the provider did is taken over, and an operator accepts the store.
    pub(super) fn believe_again(&mut self) {
        if !self.in_doubt {
            return;
        }
        let mut process = self.start_well();
        self.until_all_is_over(&mut process);
        self.stop(process);
        let accepted = run(self.program().args(["store", "accept", "--yes"]));
        assert!(accepted.status.success(), "{}: {}", self.name, text(&accepted.stderr));
        self.in_doubt = false;
    }

    /// The command that accepts the store is ended.
    pub(super) fn crash_accepting(&mut self, case: Case) {
        let mut process = self.start_well();
        self.until_all_is_over(&mut process);
        self.stop(process);
        let mut program = self.program();
        program.args(["store", "accept", "--yes"]).env("NIGHTSHIFT_CRASH_AT", named(&[case]));
        let ended = run(&mut program);
        self.must_be_hit(case, Some(ended.status), &text(&ended.stderr));
    }

    /// All that was sent comes to its end, and the next start is two days later, for the provider, too.
    fn let_two_days_pass(&mut self) {
        let mut process = self.start_well();
        self.send_wave(&process);
        self.until_all_is_over(&mut process);
        self.stop(process);
        self.hours += HOURS;
        turn_clock(&self.folder.path().join("clock"), &format!("+{}h", self.hours));
    }

    /// Waits until nothing waits or runs any more, and every batch is closed.
    pub(super) fn until_all_is_over(&self, process: &mut Process) {
        let end = Instant::now() + DONE_WITHIN;
        loop {
            let summary = process.summary();
            let open = process.batches().map(|batches| {
                batches
                    .iter()
                    .filter(|batch| batch["closedAt"].is_null())
                    .map(|batch| batch["step"].to_string())
                    .collect()
            });
            match (summary, open) {
                (Some([0, 0, _, 0]), Some::<Vec<String>>(open)) if open.is_empty() => return,
                (summary, open) => assert!(
                    Instant::now() < end,
                    "{}: {summary:?}, batches are {open:?}\n{}",
                    self.name,
                    process.tail()
                ),
            }
            if let Err(Some(ended)) = process.read_until("progress", LOOK) {
                panic!("{}: {ended}\n{}", self.name, process.tail());
            }
        }
    }
}
