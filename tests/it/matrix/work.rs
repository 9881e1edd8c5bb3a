//! Kinds of work, and which crash points only some of them pass.

use serde_json::{Value, json};

/// Passed when the process is told to stop, once a process.
pub const ON_STOP: &[&str] = &["drain.before_anchor"];

/// Passed once in the life of a data folder.
pub const ONCE: &[&str] = &["store.before_name"];

/// What only some work passes.
const ROUGH: &[&str] = &[
    "list_files.before_send",
    "list_files.after_send",
    "sweep.before_search",
    "sweep.after_search",
    "fence.before_delete",
    "fence.after_delete",
    "delete_file.before_send",
    "delete_file.after_send",
];
const ALONE: &[&str] = &["get_batch.before_send", "get_batch.after_send", "poll.single.before_tell"];
const CANCELLED: &[&str] = &["cancel.before_send", "cancel.after_send"];
const FAILING: &[&str] = &["requeue.before_commit", "requeue.after_commit"];
/// What an operator changes and erases.
const OFFICE: &[&str] = &[
    "company.before_commit",
    "company.after_commit",
    "key.before_commit",
    "key.after_commit",
    "budget.before_commit",
    "budget.after_commit",
    "erase.order.before_commit",
    "erase.order.after_commit",
    "erase.chunk.before_commit",
    "erase.chunk.after_commit",
    "erase.files.before_commit",
    "erase.files.after_commit",
    "erase.records.before_commit",
    "erase.records.after_commit",
];
/// The end of erasures, once a process at the most: the store is compacted once an hour.
pub const COMPACTED: &[&str] = &[
    "compact.before_copy",
    "compact.after_copy",
    "compact.after_old_away",
    "compact.after_new_in_place",
    "compact.after_new_open",
    "compact.after_old_renamed",
    "compact.after_old_gone",
    "erase.done.before_commit",
    "erase.done.after_commit",
];
const TOLD: &[&str] = &["webhook.before_send", "webhook.after_send_before_commit"];
const IMPORT: &[&str] = &[
    "import.mid_read",
    "import.before_commit",
    "import.after_commit",
    "import.after_chunk",
    "settle.before_commit",
    "settle.after_commit",
    "reading.before_commit",
    "reading.after_commit",
    "transcript.before_commit",
    "transcript.after_commit",
];

/// A panic here ends the process by design, with this code: the store cannot go on, or a part that nothing replaces.
pub const ENDS_THE_PROCESS: &[(&str, i32)] = &[
    // First of all: it is passed in a new folder only.
    ("store.before_name", 1),
    ("commit.before_apply", 74),
    ("commit.after_apply_before_sync", 74),
    ("commit.after_sync_before_anchor", 74),
    ("commit.after_anchor_before_replies", 74),
    ("anchor.after_tmp", 74),
    ("anchor.after_fsync", 74),
    ("anchor.after_rename", 74),
    ("host.before_start", 1),
    ("drain.before_anchor", 1),
    // There is no store just then; before and after a panic only fails the compaction, which is tried again later.
    ("compact.after_old_away", 74),
    ("compact.after_new_in_place", 74),
    ("compact.after_new_open", 74),
];

/// Points that are passed all the time, so that each passage is another moment.
pub const OFTEN: &[&str] = &[
    "commit.before_apply",
    "commit.after_apply_before_sync",
    "commit.after_sync_before_anchor",
    "commit.after_anchor_before_replies",
    "step.before_commit",
    "step.after_commit",
];

/// A kind of work, and what goes wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Two batches a wave, nothing goes wrong.
    Calm,
    /// One batch a wave.
    Alone,
    /// Answers to uploads and create calls are lost, with and without an effect.
    Rough,
    /// Half of the lines fail for good, and are requeued by hand.
    Failing,
    /// Batches that run are cancelled by hand; what they did not finish goes into others.
    Cancelled,
    /// Sessions out of an export that grows, half of them with transcripts that are fetched.
    Import,
    /// Companies, keys and budgets are changed, and sessions erased, in whatever state they are.
    Office,
    /// A webhook is told of all that is finished.
    Told,
}

impl Work {
    pub fn of(point: &str) -> Self {
        let kinds = [
            (ROUGH, Self::Rough),
            (ALONE, Self::Alone),
            (CANCELLED, Self::Cancelled),
            (FAILING, Self::Failing),
            (IMPORT, Self::Import),
            (TOLD, Self::Told),
            (OFFICE, Self::Office),
            (COMPACTED, Self::Office),
        ];
        let found = kinds.into_iter().find(|(points, _)| points.contains(&point));
        found.map_or(Self::Calm, |(_, work)| work)
    }

    pub fn faults(self) -> Value {
        let every = |from: u64, step: usize| (from..2000).step_by(step).collect::<Vec<_>>();
        match self {
            Self::Calm | Self::Alone | Self::Cancelled | Self::Import | Self::Told | Self::Office => {
                json!({})
            }
            Self::Rough => json!({ "calls": [
                { "call": "files.create", "fault": "drop_after", "nth": every(1, 2) },
                { "call": "batches.create", "fault": "drop_before", "nth": every(1, 3) },
                { "call": "batches.create", "fault": "drop_after", "nth": every(2, 3) },
            ] }),
            Self::Failing => json!({ "seed": 5, "lines": [{ "fault": "error", "probability": 0.5 }] }),
        }
    }

    pub const fn wave(self) -> usize {
        match self {
            Self::Calm | Self::Rough | Self::Cancelled | Self::Failing | Self::Told => 10,
            Self::Alone => 3,
            Self::Office => 4,
            Self::Import => 2,
        }
    }
}
