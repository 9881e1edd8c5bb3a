//! The simulator's state and rules, pure: no files, no sockets, and time comes in as a value.
//!
//! Everything that lasts is an [`Entry`]. The disk keeps the entries in a journal, and applying them in order gives
//! the same world again.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::faults::BatchFault;

/// A change of the world, as it stands in the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub(super) enum Entry {
    /// The simulator started; the first start names the instance that ids are made from.
    Started {
        instance: u64,
    },
    File {
        file: FileRecord,
    },
    FileGone {
        id: String,
    },
    Batch {
        batch: Box<BatchRecord>,
    },
    Validated {
        batch: String,
        verdict: Verdict,
    },
    CancelRequested {
        batch: String,
        at: i64,
    },
    /// The results are computed and their files are in place.
    Ended {
        batch: String,
        results: Results,
        files: Vec<FileRecord>,
    },
}

/// A file. Times are milliseconds since 1970.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub(super) serial: u64,
    pub(super) id: String,
    pub(super) bytes: u64,
    pub(super) created_at: i64,
    pub(super) expires_at: Option<i64>,
    pub(super) filename: String,
    pub(super) purpose: String,
}

/// A batch as it was created, and what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BatchRecord {
    pub(super) serial: u64,
    /// Which batch this is, counted from 1 since the folder was new.
    pub(super) ordinal: u64,
    pub(super) id: String,
    pub(super) input_file_id: String,
    pub(super) endpoint: String,
    pub(super) metadata: Option<Map<String, Value>>,
    /// Seconds that its result files live.
    pub(super) output_expires_after: Option<i64>,
    pub(super) created_at: i64,
    /// How long it takes, kept here so that a start with other options does not move what is under way.
    pub(super) turnaround: i64,
    pub(super) window: i64,
    /// The faults planned for it, each with the number of its rule.
    pub(super) faults: Vec<(usize, BatchFault)>,
    pub(super) verdict: Option<Verdict>,
    pub(super) cancel_requested_at: Option<i64>,
    pub(super) results: Option<Results>,
}

/// What validation found.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Failed { at: i64, errors: Vec<BatchError> },
    Passed { at: i64, total: u64, model: String, tokens: u64 },
}

/// An entry of a batch's `errors.data`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BatchError {
    pub(super) code: String,
    pub(super) message: String,
    pub(super) param: Option<String>,
    pub(super) line: Option<u64>,
}

/// How a batch that was valid ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ending {
    Completed,
    Expired,
    Cancelled,
}

/// What running a batch gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Results {
    pub(super) ending: Ending,
    pub(super) at: i64,
    pub(super) output: Option<String>,
    pub(super) error: Option<String>,
    pub(super) completed: u64,
    pub(super) failed: u64,
    pub(super) usage: Usage,
}

/// Tokens of a batch or of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Usage {
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
}

impl Usage {
    pub(super) fn add(&mut self, other: Self) {
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
    }
}

/// The status of a batch at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl Status {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    pub(super) fn is_terminal(self) -> bool {
        match self {
            Self::Failed | Self::Completed | Self::Expired | Self::Cancelled => true,
            Self::Validating | Self::InProgress | Self::Finalizing | Self::Cancelling => false,
        }
    }
}

/// Work on a batch that is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Work {
    /// Read the input and judge it, as of `at`.
    Validate { at: i64 },
    /// Run `share` of the lines and end as `ending`, as of `at`.
    Run { share: f64, ending: Ending, at: i64 },
}

/// The longest that a cancel takes.
const CANCEL_MAX_MS: i64 = 10 * 60 * 1000;

impl BatchRecord {
    /// When validation ends, never later than half the window.
    fn validated_at(&self) -> i64 {
        self.created_at + (self.turnaround * 15 / 100).min(self.window / 2)
    }

    fn finalizing_at(&self) -> i64 {
        self.created_at + self.turnaround * 85 / 100
    }

    fn completed_at(&self) -> i64 {
        self.created_at + self.turnaround
    }

    pub(super) fn expires_at(&self) -> i64 {
        self.created_at + self.window
    }

    fn cancelled_at(&self, requested_at: i64) -> i64 {
        requested_at + (self.turnaround / 20).min(CANCEL_MAX_MS)
    }

    /// Which share of the lines is done at `now`.
    fn share(&self, now: i64) -> f64 {
        let (from, to) = (self.validated_at(), self.finalizing_at());
        if now >= to {
            return 1.0;
        }
        #[allow(clippy::cast_precision_loss, reason = "a share need not be exact")]
        let share = (now - from) as f64 / (to - from) as f64;
        share.clamp(0.0, 1.0)
    }

    /// When this share of the lines is done.
    fn at_share(&self, share: f64) -> i64 {
        let (from, to) = (self.validated_at(), self.finalizing_at());
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "a time within the run"
        )]
        let passed = ((to - from) as f64 * share) as i64;
        from + passed
    }

    /// What has to be computed before the batch may show what it is at `now`.
    pub(super) fn due(&self, now: i64) -> Option<Work> {
        let Some(verdict) = &self.verdict else {
            let at = self.validated_at();
            // A batch that is cancelled while it is validated never runs.
            return (self.cancel_requested_at.is_none() && now >= at).then_some(Work::Validate { at });
        };
        if matches!(verdict, Verdict::Failed { .. }) || self.results.is_some() {
            return None;
        }
        let (share, ending, at) = self.end();
        (now >= at).then_some(Work::Run { share, ending, at })
    }

    /// How and when this valid batch ends.
    fn end(&self) -> (f64, Ending, i64) {
        if let Some(requested_at) = self.cancel_requested_at {
            return (self.share(requested_at), Ending::Cancelled, self.cancelled_at(requested_at));
        }
        for (_, fault) in &self.faults {
            match fault {
                BatchFault::Expire { share } => return (*share, Ending::Expired, self.at_share(*share)),
                BatchFault::Cancel { share } => return (*share, Ending::Cancelled, self.at_share(*share)),
                BatchFault::Invisible { .. }
                | BatchFault::Fail { .. }
                | BatchFault::NullOutput { .. }
                | BatchFault::EmptyIds {}
                | BatchFault::SkipStates {}
                | BatchFault::WrongCounts {}
                | BatchFault::UnknownStatus { .. }
                | BatchFault::IsoTimes {} => {}
            }
        }
        if self.expires_at() < self.finalizing_at() {
            return (self.share(self.expires_at()), Ending::Expired, self.expires_at());
        }
        (1.0, Ending::Completed, self.finalizing_at())
    }

    /// The status at `now`, given that no work is due.
    pub(super) fn status(&self, now: i64) -> Status {
        match (&self.verdict, &self.results, self.cancel_requested_at) {
            (Some(Verdict::Failed { .. }), _, _) => Status::Failed,
            (None, _, Some(requested_at)) if now >= self.cancelled_at(requested_at) => Status::Cancelled,
            (None, _, Some(_)) | (Some(Verdict::Passed { .. }), None, Some(_)) => Status::Cancelling,
            (None, _, None) => Status::Validating,
            (Some(Verdict::Passed { .. }), None, None) => Status::InProgress,
            (Some(Verdict::Passed { .. }), Some(results), _) => match results.ending {
                Ending::Completed if now < self.completed_at() => Status::Finalizing,
                Ending::Completed => Status::Completed,
                Ending::Expired => Status::Expired,
                Ending::Cancelled => Status::Cancelled,
            },
        }
    }

    /// The moments that the batch has passed at `now`.
    pub(super) fn stamps(&self, now: i64) -> Stamps {
        let status = self.status(now);
        let mut stamps = Stamps { cancelling_at: self.cancel_requested_at, ..Stamps::default() };
        match &self.verdict {
            Some(Verdict::Failed { at, .. }) => stamps.failed_at = Some(*at),
            Some(Verdict::Passed { at, .. }) => stamps.in_progress_at = Some(*at),
            None => {}
        }
        let ended_at = self.results.as_ref().map(|results| results.at);
        match status {
            Status::Finalizing => stamps.finalizing_at = ended_at,
            Status::Completed => {
                stamps.finalizing_at = ended_at;
                stamps.completed_at = Some(self.completed_at());
            }
            Status::Expired => stamps.expired_at = ended_at,
            Status::Cancelled => {
                let requested_at = self.cancel_requested_at.or(ended_at);
                stamps.cancelling_at = requested_at;
                stamps.cancelled_at = ended_at.or(requested_at.map(|at| self.cancelled_at(at)));
            }
            Status::Validating | Status::Failed | Status::InProgress | Status::Cancelling => {}
        }
        stamps
    }

    /// `total`, `completed` and `failed` at `now`.
    pub(super) fn counts(&self, now: i64) -> (u64, u64, u64) {
        let Some(Verdict::Passed { total, .. }) = self.verdict else { return (0, 0, 0) };
        if let Some(results) = &self.results {
            return (total, results.completed, results.failed);
        }
        let until = self.cancel_requested_at.unwrap_or(now);
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of at most 50,000 lines"
        )]
        let completed = (total as f64 * self.share(until)) as u64;
        (total, completed, 0)
    }

    pub(super) fn has_fault(&self, fault: &BatchFault) -> bool {
        self.faults.iter().any(|(_, planned)| planned == fault)
    }
}

/// When a batch reached its states, in milliseconds; none where it did not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stamps {
    pub(super) in_progress_at: Option<i64>,
    pub(super) finalizing_at: Option<i64>,
    pub(super) completed_at: Option<i64>,
    pub(super) failed_at: Option<i64>,
    pub(super) expired_at: Option<i64>,
    pub(super) cancelling_at: Option<i64>,
    pub(super) cancelled_at: Option<i64>,
}

/// Whether a batch may be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CancelRule {
    /// It is running: ask it to stop.
    Request,
    /// It is being or was cancelled: nothing changes.
    Already,
    /// It has come too far.
    Refuse,
}

/// What cancelling means for a batch of this status.
pub(super) fn cancel_rule(status: Status) -> CancelRule {
    match status {
        Status::Validating | Status::InProgress => CancelRule::Request,
        Status::Cancelling | Status::Cancelled => CancelRule::Already,
        Status::Finalizing | Status::Failed | Status::Completed | Status::Expired => CancelRule::Refuse,
    }
}

/// All files and batches.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) instance: u64,
    /// How often the simulator started on this folder.
    pub(super) starts: u64,
    files: HashMap<String, FileRecord>,
    batches: HashMap<String, BatchRecord>,
    /// Ids by serial number, which is the order of creation.
    file_order: BTreeMap<u64, String>,
    batch_order: BTreeMap<u64, String>,
    next_serial: u64,
    fault_uses: HashMap<usize, u64>,
}

impl World {
    /// Takes an entry in, whether just made or read from the journal.
    pub(super) fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Started { instance } => {
                self.starts += 1;
                self.instance = instance;
            }
            Entry::File { file } => self.add_file(file),
            Entry::FileGone { id } => {
                if let Some(file) = self.files.remove(&id) {
                    self.file_order.remove(&file.serial);
                }
            }
            Entry::Batch { batch } => {
                self.next_serial = self.next_serial.max(batch.serial + 1);
                for (rule, _) in &batch.faults {
                    *self.fault_uses.entry(*rule).or_default() += 1;
                }
                self.batch_order.insert(batch.serial, batch.id.clone());
                self.batches.insert(batch.id.clone(), *batch);
            }
            Entry::Validated { batch, verdict } => {
                if let Some(batch) = self.batches.get_mut(&batch) {
                    batch.verdict = Some(verdict);
                }
            }
            Entry::CancelRequested { batch, at } => {
                if let Some(batch) = self.batches.get_mut(&batch) {
                    batch.cancel_requested_at = Some(at);
                }
            }
            Entry::Ended { batch, results, files } => {
                files.into_iter().for_each(|file| self.add_file(file));
                if let Some(batch) = self.batches.get_mut(&batch) {
                    batch.results = Some(results);
                }
            }
        }
    }

    fn add_file(&mut self, file: FileRecord) {
        self.next_serial = self.next_serial.max(file.serial + 1);
        self.file_order.insert(file.serial, file.id.clone());
        self.files.insert(file.id.clone(), file);
    }

    /// A number that no object has; what is made with it and lost leaves a gap.
    pub(super) fn take_serial(&mut self) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        serial
    }

    /// How many batches there ever were.
    pub(super) fn batches_made(&self) -> u64 {
        u64::try_from(self.batches.len()).unwrap_or(u64::MAX)
    }

    /// How often the batch rule with this number was used.
    pub(super) fn fault_uses(&self, rule: usize) -> u64 {
        self.fault_uses.get(&rule).copied().unwrap_or(0)
    }

    /// The file, unless it is gone or has expired at `now`.
    pub(super) fn file(&self, id: &str, now: i64) -> Option<&FileRecord> {
        self.files.get(id).filter(|file| file.expires_at.is_none_or(|at| now < at))
    }

    /// Whether the file's bytes must stay on the disk.
    pub(super) fn knows_file(&self, id: &str) -> bool {
        self.files.contains_key(id)
    }

    /// The files that have expired at `now` and are still here.
    pub(super) fn expired_files(&self, now: i64) -> Vec<String> {
        let files = self.files.values();
        files.filter(|file| file.expires_at.is_some_and(|at| now >= at)).map(|file| file.id.clone()).collect()
    }

    pub(super) fn batch(&self, id: &str) -> Option<&BatchRecord> {
        self.batches.get(id)
    }

    /// Every batch, oldest first.
    pub(super) fn batches(&self) -> impl DoubleEndedIterator<Item = &BatchRecord> {
        self.batch_order.values().filter_map(|id| self.batches.get(id))
    }

    /// Every file, oldest first, without those that have expired at `now`.
    pub(super) fn files(&self, now: i64) -> impl DoubleEndedIterator<Item = &FileRecord> {
        self.file_order.values().filter_map(move |id| self.file(id, now))
    }

    /// Prompt tokens of this model's batches that are under way at `now`.
    pub(super) fn enqueued_tokens(&self, of_model: &str, now: i64) -> u64 {
        let live = self.batches.values().filter(|batch| !batch.status(now).is_terminal());
        live.filter_map(|batch| match &batch.verdict {
            Some(Verdict::Passed { model, tokens, .. }) if model == of_model => Some(*tokens),
            Some(Verdict::Passed { .. } | Verdict::Failed { .. }) | None => None,
        })
        .sum()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A batch that takes 100 seconds in a window of a day, created at 0.
    pub(crate) fn batch() -> BatchRecord {
        BatchRecord {
            serial: 1,
            ordinal: 1,
            id: "batch_1".to_owned(),
            input_file_id: "file-1".to_owned(),
            endpoint: "/v1/responses".to_owned(),
            metadata: None,
            output_expires_after: None,
            created_at: 0,
            turnaround: 100_000,
            window: 86_400_000,
            faults: Vec::new(),
            verdict: None,
            cancel_requested_at: None,
            results: None,
        }
    }

    fn passed(mut batch: BatchRecord) -> BatchRecord {
        batch.verdict = Some(Verdict::Passed { at: 15_000, total: 10, model: "m".to_owned(), tokens: 5 });
        batch
    }

    fn ended(mut batch: BatchRecord, work: Option<Work>) -> BatchRecord {
        let Some(Work::Run { ending, at, .. }) = work else { panic!("{work:?}") };
        let usage = Usage::default();
        batch.results =
            Some(Results { ending, at, output: None, error: None, completed: 0, failed: 0, usage });
        batch
    }

    #[test]
    fn a_batch_goes_through_its_states_as_time_passes() {
        let batch = batch();
        assert_eq!((batch.due(14_999), batch.status(14_999)), (None, Status::Validating));
        assert_eq!(batch.due(15_000), Some(Work::Validate { at: 15_000 }));
        let batch = passed(batch);
        assert_eq!((batch.due(50_000), batch.status(50_000)), (None, Status::InProgress));
        assert_eq!(batch.counts(50_000), (10, 5, 0));
        let work = batch.due(500_000);
        assert_eq!(work, Some(Work::Run { share: 1.0, ending: Ending::Completed, at: 85_000 }));
        let batch = ended(batch, work);
        assert_eq!(batch.status(99_999), Status::Finalizing);
        assert_eq!(batch.status(100_000), Status::Completed);
        assert_eq!(batch.stamps(100_000).completed_at, Some(100_000));
    }

    #[test]
    fn a_batch_cancelled_half_way_keeps_half_and_one_cancelled_early_never_runs() {
        let mut early = batch();
        early.cancel_requested_at = Some(1_000);
        assert_eq!((early.due(80_000), early.status(5_999)), (None, Status::Cancelling));
        assert_eq!(early.status(6_000), Status::Cancelled);
        let mut later = passed(batch());
        later.cancel_requested_at = Some(50_000);
        assert_eq!((later.due(54_999), later.status(54_999)), (None, Status::Cancelling));
        let work = later.due(55_000);
        assert_eq!(work, Some(Work::Run { share: 0.5, ending: Ending::Cancelled, at: 55_000 }));
        assert_eq!(ended(later, work).status(55_000), Status::Cancelled);
    }

    #[test]
    fn a_batch_that_outlasts_its_window_expires_with_what_it_has() {
        let slow = BatchRecord { window: 50_000, ..passed(batch()) };
        let work = slow.due(50_000);
        assert_eq!(work, Some(Work::Run { share: 0.5, ending: Ending::Expired, at: 50_000 }));
        assert_eq!(ended(slow, work).stamps(60_000).expired_at, Some(50_000));
    }

    #[test]
    fn what_has_ended_cannot_be_cancelled_and_what_was_cancelled_stays_so() {
        assert_eq!(cancel_rule(Status::Completed), CancelRule::Refuse);
        assert_eq!(cancel_rule(Status::Cancelled), CancelRule::Already);
        assert_eq!(cancel_rule(Status::InProgress), CancelRule::Request);
    }
}
