//! What happens between two starts of a lane: a backup is put back, or two days pass.

use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

use super::lane::{Case, DONE_WITHIN, LOOK, Lane, named};
use super::program::Process;
use super::work::Work;
use crate::process::{copy_folder, run, text, turn_clock};

/// Longer than intents are watched, files of ours are kept and the word of an `Idempotency-Key` holds.
const HOURS: u32 = 50;

impl Lane {
    /// Comes before a start that is to end at a point.
    pub(super) fn set_out(&mut self) {
        if self.work == Work::Restored {
            self.put_a_backup_back();
        } else if self.work.is_old() {
            self.let_two_days_pass();
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
        if ended.status.signal() != Some(9) {
            self.wrong.push(format!("{}: {} was not hit: {}", self.name, case.0, text(&ended.stderr)));
        }
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
