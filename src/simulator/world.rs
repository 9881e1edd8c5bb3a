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
}
