//! Kinds of work, and which crash points only some of them pass.

use serde_json::{Value, json};

/// Passed when the process is told to stop, once a process.
pub const ON_STOP: &[&str] = &["drain.before_anchor"];

/// What a start in a new folder passes, once, or one that cannot believe its store, and `nightshift token`.
const STARTING: &[&str] = &[
    "store.before_name",
    "instance.before_commit",
    "instance.after_commit",
    "configure.before_commit",
    "configure.after_commit",
    "token.admin.before_commit",
    "token.admin.after_commit",
    "token.create.before_commit",
    "token.create.after_commit",
    "doubt.before_write",
    "doubt.after_write",
];
/// Those of them that a start passes which finds no anchor; where a backup was put back they are passed later on.
pub const DOUBTED: &[&str] = &["doubt.before_write", "doubt.after_write"];
/// Those of them that `nightshift token create` passes.
pub const CREATED: &[&str] = &["token.create.before_commit", "token.create.after_commit"];

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
const CANCELLED: &[&str] = &[
    "cancel.before_send",
    "cancel.after_send",
    "cancel.order.before_commit",
    "cancel.order.after_commit",
    "upload.nothing.before_commit",
    "upload.nothing.after_commit",
];
const FAILING: &[&str] = &["requeue.before_commit", "requeue.between_commits", "requeue.after_commit"];
const SHADOWED: &[&str] = &["shadow.before_commit", "shadow.after_commit"];
/// Passed when a backup was put back, once for each.
pub const RESTORED: &[&str] = &[
    "adopt.open.before_commit",
    "adopt.open.after_commit",
    "adopt.members.after_commit",
    "adopt.before_commit",
    "adopt.after_commit",
    "accept.before_commit",
    "accept.between_commits",
    "accept.after_commit",
];
/// Those of them that `nightshift store accept` passes.
pub const ACCEPTED: &[&str] = &["accept.before_commit", "accept.between_commits", "accept.after_commit"];
/// What has waited for two days.
const OLD: &[&str] = &[
    "intents.before_commit",
    "intents.after_commit",
    "deletion.before_commit",
    "deletion.after_commit",
    "put_off.before_commit",
    "put_off.after_commit",
    "keys.before_commit",
    "keys.after_commit",
];
/// The same, and it begins a minute after a start.
pub const AGED: &[&str] = &["aged.before_commit", "aged.after_commit"];
/// What an operator changes and erases.
const OFFICE: &[&str] = &[
    "company.new.before_commit",
    "company.new.after_commit",
    "key.rotate.before_commit",
    "key.rotate.after_commit",
    "key.revoke.before_commit",
    "key.revoke.after_commit",
    "key.used.before_commit",
    "key.used.after_commit",
    "erase.company.before_commit",
    "erase.company.after_commit",
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
const TOLD: &[&str] = &[
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
    "release.before_commit",
    "release.after_commit",
];
const IMPORT: &[&str] = &[
    "import.mid_read",
    "import.before_commit",
    "import.after_commit",
    "import.after_chunk",
    "settle.before_commit",
    "settle.after_commit",
    "reading.before_commit",
    "reading.after_commit",
    "reading.order.before_commit",
    "reading.order.after_commit",
    "transcript.before_commit",
    "transcript.after_commit",
    "fetch_failed.before_commit",
    "fetch_failed.after_commit",
];

/// Points of which one passage is like another.
pub fn is_alike(point: &str) -> bool {
    let kinds = ["company.new.", "key.rotate.", "key.revoke.", "key.used.", "erase.company.", "deliveries."];
    let webhooks = ["make", "change", "rotate", "test", "redeliver", "delete"];
    kinds.iter().any(|kind| point.starts_with(kind))
        || webhooks.iter().any(|kind| point.strip_prefix("webhook.").is_some_and(|at| at.starts_with(kind)))
        || [STARTING, SHADOWED, RESTORED, OLD, AGED].iter().any(|points| points.contains(&point))
}

/// A panic here ends the process by design, with this code: the store cannot go on, or a part that nothing replaces.
pub const ENDS_THE_PROCESS: &[(&str, i32)] = &[
    // A start that does not come through.
    ("store.before_name", 1),
    ("instance.before_commit", 1),
    ("instance.after_commit", 1),
    ("configure.before_commit", 1),
    ("configure.after_commit", 1),
    ("token.admin.before_commit", 1),
    ("token.admin.after_commit", 1),
    ("doubt.before_write", 1),
    ("doubt.after_write", 1),
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

/// What lies around every commit: some of it in each kind of work.
pub const EVERYWHERE: &[(&str, u64)] = &[
    ("commit.before_apply", 6),
    ("commit.after_apply_before_sync", 9),
    ("commit.after_sync_before_anchor", 4),
    ("commit.after_anchor_before_replies", 7),
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
    /// The first start in a new folder, one that finds no anchor, and `nightshift token`.
    Starting,
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
    /// Webhooks are told of all that is finished, and changed all the time; some requests wait before they are sent.
    Told,
    /// A batch that was given up surfaces.
    Shadowed,
    /// The data folder is put back to what it was before the provider went on.
    Restored,
    /// Two days pass between two starts.
    Old,
    /// The same, and what is old is removed, which begins a minute after a start.
    Aged,
}

impl Work {
    pub const ALL: [Self; 13] = [
        Self::Starting,
        Self::Calm,
        Self::Rough,
        Self::Alone,
        Self::Cancelled,
        Self::Failing,
        Self::Import,
        Self::Told,
        Self::Office,
        Self::Shadowed,
        Self::Restored,
        Self::Old,
        Self::Aged,
    ];

    /// How many lanes share its points.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Calm => 4,
            Self::Rough
            | Self::Cancelled
            | Self::Import
            | Self::Office
            | Self::Told
            | Self::Restored
            | Self::Old
            | Self::Aged => 2,
            Self::Starting | Self::Alone | Self::Failing | Self::Shadowed => 1,
        }
    }

    /// Whether two days pass between two starts.
    pub fn is_old(self) -> bool {
        matches!(self, Self::Old | Self::Aged)
    }

    pub fn of(point: &str) -> Self {
        let kinds = [
            (STARTING, Self::Starting),
            (ROUGH, Self::Rough),
            (ALONE, Self::Alone),
            (CANCELLED, Self::Cancelled),
            (FAILING, Self::Failing),
            (IMPORT, Self::Import),
            (TOLD, Self::Told),
            (OFFICE, Self::Office),
            (COMPACTED, Self::Office),
            (SHADOWED, Self::Shadowed),
            (RESTORED, Self::Restored),
            (OLD, Self::Old),
            (AGED, Self::Aged),
        ];
        let found = kinds.into_iter().find(|(points, _)| points.contains(&point));
        found.map_or(Self::Calm, |(_, work)| work)
    }

    pub fn faults(self) -> Value {
        let every = |from: u64, step: usize| (from..2000).step_by(step).collect::<Vec<_>>();
        match self {
            Self::Starting
            | Self::Calm
            | Self::Alone
            | Self::Import
            | Self::Told
            | Self::Office
            | Self::Restored
            | Self::Aged => {
                json!({})
            }
            // Every other upload has to wait, so that a batch is cancelled before it is sent, too.
            Self::Cancelled => json!({ "calls": [
                { "call": "files.create", "fault": "status", "status": 429, "retry_after": { "seconds": 1 },
                  "nth": every(1, 2) },
            ] }),
            Self::Shadowed => json!({
                "calls": [{ "call": "batches.create", "fault": "drop_after", "nth": [1] }],
                "batches": [{ "fault": "invisible", "lists": 12, "nth": [1] }],
            }),
            Self::Old => json!({ "calls": [
                { "call": "files.delete", "fault": "status", "status": 400, "code": "not_allowed",
                  "nth": every(2, 2) },
            ] }),
            Self::Rough => json!({ "calls": [
                { "call": "files.create", "fault": "drop_after", "nth": every(1, 2) },
                { "call": "batches.create", "fault": "drop_before", "nth": every(1, 3) },
                { "call": "batches.create", "fault": "drop_after", "nth": every(2, 3) },
            ] }),
            Self::Failing => json!({ "seed": 5, "lines": [{ "fault": "error", "probability": 0.5 }] }),
        }
    }

    /// How long the provider takes for a batch: a shadow has to surface before it has ended.
    pub const fn turnaround(self) -> &'static str {
        match self {
            Self::Shadowed => "12s",
            Self::Starting
            | Self::Calm
            | Self::Alone
            | Self::Rough
            | Self::Failing
            | Self::Cancelled
            | Self::Import
            | Self::Office
            | Self::Told
            | Self::Restored
            | Self::Old
            | Self::Aged => "500ms",
        }
    }

    pub const fn wave(self) -> usize {
        match self {
            Self::Calm | Self::Rough | Self::Cancelled | Self::Failing | Self::Told => 10,
            Self::Starting | Self::Alone => 3,
            Self::Office | Self::Shadowed | Self::Restored | Self::Old | Self::Aged => 4,
            Self::Import => 2,
        }
    }
}
