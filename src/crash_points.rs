//! Named moments at which a test can end the process as a power switch would, or panic.
//!
//! `NIGHTSHIFT_CRASH_AT=name:nth` ends it at the nth passage, with nothing flushed and nothing dropped;
//! `NIGHTSHIFT_PANIC_AT` panics there instead. Both take several, parted by commas. All of this is there only with
//! the feature `crash-points`: in a release a point is nothing at all. `tests/it/matrix.rs` goes through the table.

/// Every point, in the order of the work. Each stands at one place in the code.
pub const CRASH_POINTS: &[&str] = &[
    // The store: each group of changes, and the anchor.
    "commit.before_apply",
    "commit.after_apply_before_sync",
    "commit.after_sync_before_anchor",
    "commit.after_anchor_before_replies",
    "anchor.after_tmp",
    "anchor.after_fsync",
    "anchor.after_rename",
    // That it cannot be believed, whoever found it out.
    "doubt.before_write",
    "doubt.after_write",
    // What a start makes and writes of the configuration, and `nightshift token`.
    "store.before_name",
    "instance.before_commit",
    "instance.after_commit",
    "configure.before_commit",
    "configure.after_commit",
    "token.admin.before_commit",
    "token.admin.after_commit",
    "token.create.before_commit",
    "token.create.after_commit",
    // What comes in.
    "ingest.before_commit",
    "ingest.after_commit_before_ack",
    "import.mid_read",
    "import.before_commit",
    "import.after_commit",
    "import.after_chunk",
    "reading.before_commit",
    "reading.after_commit",
    "upload.begin.before_commit",
    "upload.begin.after_commit",
    "upload.nothing.before_commit",
    "upload.nothing.after_commit",
    "reading.order.before_commit",
    "reading.order.after_commit",
    "transcript.before_commit",
    "transcript.after_commit",
    "fetch_failed.before_commit",
    "fetch_failed.after_commit",
    "settle.before_commit",
    "settle.after_commit",
    "requeue.before_commit",
    "requeue.between_commits",
    "requeue.after_commit",
    // Where there is something that has waited long enough; before the commit, that is within the committer.
    "release.before_commit",
    "release.after_commit",
    "room.before_commit",
    "room.after_commit",
    // A batch from its opening to its end.
    "open.before_commit",
    "open.after_commit_before_host",
    "host.before_start",
    "cut.before_commit",
    "cut.after_commit",
    "step.before_commit",
    "step.after_commit",
    "file.after_tmp",
    "file.after_fsync",
    "file.after_rename",
    "sweep.before_search",
    "sweep.after_search",
    "fence.before_delete",
    "fence.after_delete",
    "poll.list.before_tell",
    "poll.single.before_tell",
    "download.mid_body",
    "download.after_fsync",
    "download.after_rename",
    "apply.after_read",
    "apply.before_commit",
    "apply.after_commit",
    "close.before_commit",
    "close.after_commit",
    "cancel.order.before_commit",
    "cancel.order.after_commit",
    "clean.before",
    "clean.mid",
    "clean.after",
    // Each call to the provider.
    "upload.before_send",
    "upload.after_send_before_commit",
    "list_files.before_send",
    "list_files.after_send",
    "get_file.before_send",
    "get_file.after_send",
    "download.before_send",
    "download.after_send_before_commit",
    "delete_file.before_send",
    "delete_file.after_send",
    "create.after_intent_before_send",
    "create.after_send_before_commit",
    "get_batch.before_send",
    "get_batch.after_send",
    "list_batches.before_send",
    "list_batches.after_send",
    "cancel.before_send",
    "cancel.after_send",
    // Batches at the provider that nobody here waits for.
    "reconciled.before_commit",
    "reconciled.after_commit",
    "shadow.before_commit",
    "shadow.after_commit",
    "adopt.open.before_commit",
    "adopt.open.after_commit",
    "adopt.members.after_commit",
    "adopt.before_commit",
    "adopt.after_commit",
    "accept.before_commit",
    "accept.between_commits",
    "accept.after_commit",
    // What has had its time.
    "intents.before_commit",
    "intents.after_commit",
    "deletion.before_commit",
    "deletion.after_commit",
    "put_off.before_commit",
    "put_off.after_commit",
    "keys.before_commit",
    "keys.after_commit",
    "aged.before_commit",
    "aged.after_commit",
    // What an operator changes.
    "company.new.before_commit",
    "company.new.after_commit",
    "company.before_commit",
    "company.after_commit",
    "key.before_commit",
    "key.after_commit",
    "key.rotate.before_commit",
    "key.rotate.after_commit",
    "key.revoke.before_commit",
    "key.revoke.after_commit",
    "key.used.before_commit",
    "key.used.after_commit",
    "budget.before_commit",
    "budget.after_commit",
    // An erasure from its order to its end.
    "erase.order.before_commit",
    "erase.order.after_commit",
    "erase.company.before_commit",
    "erase.company.after_commit",
    "erase.chunk.before_commit",
    "erase.chunk.after_commit",
    "erase.files.before_commit",
    "erase.files.after_commit",
    "erase.records.before_commit",
    "erase.records.after_commit",
    "erase.done.before_commit",
    "erase.done.after_commit",
    "compact.before_copy",
    "compact.after_copy",
    "compact.after_old_away",
    "compact.after_new_in_place",
    "compact.after_new_open",
    "compact.after_old_renamed",
    "compact.after_old_gone",
    // What webhooks are told.
    "webhook.before_send",
    "webhook.after_send_before_commit",
    "webhook.after_commit",
    "webhook.make.before_commit",
    "webhook.make.after_commit",
    "webhook.change.before_commit",
    "webhook.change.after_commit",
    "webhook.rotate.before_commit",
    "webhook.rotate.after_commit",
    "webhook.test.before_commit",
    "webhook.test.after_commit",
    "webhook.redeliver.before_commit",
    "webhook.redeliver.after_commit",
    "webhook.delete.before_commit",
    "webhook.delete.after_commit",
    "deliveries.before_commit",
    "deliveries.after_commit",
    // Leaving.
    "drain.before_anchor",
];

/// Passes a point: nothing, unless the feature `crash-points` is on and the environment names it.
#[cfg(feature = "crash-points")]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::crash_points::pass($name)
    };
}

/// Passes a point: nothing, unless the feature `crash-points` is on and the environment names it.
#[cfg(not(feature = "crash-points"))]
macro_rules! crash_point {
    ($name:literal) => {};
}

#[cfg(feature = "crash-points")]
pub use armed::pass;

#[cfg(feature = "crash-points")]
mod armed {
    use std::collections::HashMap;
    use std::sync::{Mutex, OnceLock, PoisonError};

    /// What happens at a point.
    #[derive(Debug, Clone, Copy)]
    enum Act {
        Kill,
        Panic,
    }

    /// What the environment asks for.
    #[derive(Debug, Default)]
    struct Plan {
        targets: Vec<(String, u64, Act)>,
        passed: Mutex<HashMap<&'static str, u64>>,
    }

    static PLAN: OnceLock<Plan> = OnceLock::new();

    impl Plan {
        #[expect(
            clippy::disallowed_methods,
            reason = "no setting of the program: it is not there in a release"
        )]
        fn of_the_process() -> Self {
            let mut targets = Vec::new();
            for (variable, act) in [("NIGHTSHIFT_CRASH_AT", Act::Kill), ("NIGHTSHIFT_PANIC_AT", Act::Panic)] {
                let named = std::env::var(variable).unwrap_or_default();
                for point in named.split(',').filter(|point| !point.is_empty()) {
                    let (name, nth) = point.split_once(':').unwrap_or((point, "1"));
                    let nth = nth.parse().ok().filter(|_| super::CRASH_POINTS.contains(&name));
                    if nth.is_none() {
                        tracing::error!("{variable}: {point:?} is no point of the table");
                    }
                    targets.extend(nth.map(|nth| (name.to_owned(), nth, act)));
                }
            }
            Self { targets, ..Self::default() }
        }

        fn at(&self, name: &'static str) -> Option<(u64, Act)> {
            if self.targets.is_empty() {
                return None;
            }
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            let count = passed.entry(name).or_default();
            *count += 1;
            let wanted = self.targets.iter().find(|(target, nth, _)| target == name && nth == count);
            wanted.map(|(_, nth, act)| (*nth, *act))
        }
    }

    /// Ends the process, or panics, if the environment names this passage.
    pub fn pass(name: &'static str) {
        match PLAN.get_or_init(Plan::of_the_process).at(name) {
            None => {}
            Some((_, Act::Kill)) => die(),
            #[expect(clippy::panic, reason = "this is what was asked for")]
            Some((nth, Act::Panic)) => {
                tracing::warn!("crash point {name}:{nth} is reached");
                panic!("crash point {name}:{nth}");
            }
        }
    }

    /// As `kill -9` from outside: no destructor, no flush, no exit handler runs.
    fn die() -> ! {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort()
    }
}
