//! A batch: the facts, the state it is in, and how it is shown. How it moves is `step`'s matter.

use serde::{Deserialize, Serialize};

use super::id::{BatchId, FileId, Nonce, ProviderBatchId, Revision, Timestamp};
use super::request::{Failure, Group};
use super::retry::{BatchFailure, BatchFault};

/// The input file as the provider has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// The provider's id.
    pub id: FileId,
    /// Which upload of this batch it was, from 1; part of its name.
    pub upload: u32,
    /// When the provider made it, by the provider's clock: no batch made from it can be older.
    pub created_at: Timestamp,
}

/// Stored before a create call is sent, so that a batch that comes of it can be told for ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Sent as `metadata.ns_nonce`, never used again.
    pub nonce: Nonce,
    /// The file that it is made from: the second key, where a server drops metadata.
    pub input: InputFile,
    /// When it was stored.
    pub at: Timestamp,
}

/// Where a running batch stands at the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Running {
    /// The input is being checked.
    Validating,
    /// Lines are being run.
    InProgress,
    /// Results are being put together, or a cancellation is under way.
    Finalizing,
}

/// How a batch ended at the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Terminal {
    /// Every line was tried.
    Completed,
    /// It was not admitted; where it has files all the same, it ran.
    Failed,
    /// The window closed first.
    Expired,
    /// It was cancelled.
    Cancelled,
}

impl Terminal {
    /// The provider's word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One entry of the provider's list of what is wrong with a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Problem {
    /// For instance `token_limit_exceeded`.
    pub code: Option<String>,
    /// The provider's words, cut.
    pub message: Option<String>,
    /// For instance `body.model`.
    pub param: Option<String>,
    /// The line of the input file, from 1.
    pub line: Option<u64>,
}

impl Problem {
    fn fault(&self) -> BatchFault<'_> {
        BatchFault {
            code: self.code.as_deref(),
            message: self.message.as_deref(),
            param: self.param.as_deref(),
            line: self.line,
        }
    }
}

/// What the provider said of the end of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub how: Terminal,
    /// When, by the provider's clock where it says, else by ours.
    pub at: Timestamp,
    /// The file of good lines.
    pub output: Option<FileId>,
    /// The file of the other lines.
    pub error: Option<FileId>,
    /// Lines that the provider counts as completed, where it ever said.
    pub completed_lines: Option<u64>,
    /// Lines that it counts as failed.
    pub failed_lines: Option<u64>,
    /// What is wrong with it, as much as is kept.
    pub problems: Vec<Problem>,
}

impl Ended {
    /// Bytes of problems that are kept: the state is one value of the store, which has a bound.
    pub const PROBLEM_BYTES_MAX: usize = 32 << 10;

    /// As many problems as are kept, with the provider's words cut.
    pub fn keep(problems: &[Problem]) -> Vec<Problem> {
        let mut left = Self::PROBLEM_BYTES_MAX;
        let cut = |text: &Option<String>, chars| text.as_ref().map(|text| text.chars().take(chars).collect());
        let mut kept = Vec::new();
        for problem in problems {
            let problem = Problem {
                code: cut(&problem.code, 60),
                message: cut(&problem.message, 200),
                param: cut(&problem.param, 60),
                line: problem.line,
            };
            let words = [&problem.code, &problem.message, &problem.param];
            let bytes: usize = words.into_iter().flatten().map(String::len).sum::<usize>() + 16;
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => break,
            }
            kept.push(problem);
        }
        kept
    }

    /// Whether the provider must have result files that it does not show yet.
    pub fn lacks_files(&self) -> bool {
        if self.output.is_none() && self.completed_lines.is_some_and(|lines| lines > 0) {
            return true;
        }
        let lines = match (self.completed_lines, self.failed_lines) {
            (None, None) => None,
            (completed, failed) => Some(completed.unwrap_or(0) + failed.unwrap_or(0)),
        };
        let none = self.output.is_none() && self.error.is_none();
        none && match self.how {
            // A batch has lines, so one that was worked through has results.
            Terminal::Completed => true,
            // Cancelled or expired before anything ran, and says so.
            Terminal::Expired | Terminal::Cancelled => lines != Some(0),
            Terminal::Failed => lines.is_some_and(|lines| lines > 0),
        }
    }

    /// The result files that exist, in the order in which they are taken in.
    pub fn files(&self) -> impl Iterator<Item = (ResultKind, &FileId)> {
        let output = self.output.iter().map(|id| (ResultKind::Output, id));
        output.chain(self.error.iter().map(|id| (ResultKind::Error, id)))
    }

    /// Whether it ran nothing and cost nothing: it failed, left no file and counts no line.
    pub fn ran_nothing(&self) -> bool {
        let lines = self.completed_lines.unwrap_or(0) + self.failed_lines.unwrap_or(0);
        self.how == Terminal::Failed && self.files().next().is_none() && lines == 0
    }

    /// What the provider's list of problems means for a batch that ran nothing.
    pub fn refusal(&self) -> BatchFailure {
        BatchFailure::from_faults(&self.problems.iter().map(Problem::fault).collect::<Vec<_>>())
    }

    /// The result file of one kind.
    pub const fn file(&self, kind: ResultKind) -> Option<&FileId> {
        match kind {
            ResultKind::Output => self.output.as_ref(),
            ResultKind::Error => self.error.as_ref(),
        }
    }
}

/// Which of the two result files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResultKind {
    /// The good lines, mostly.
    Output,
    /// The other lines.
    Error,
}

impl ResultKind {
    /// `output` or `error`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Error => "error",
        }
    }
}

/// Why and until when a batch does nothing, and how often it has already waited in this place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Wait {
    /// Not to be tried before.
    pub until: Option<Timestamp>,
    /// Why, for people.
    pub why: Option<String>,
    /// How often in a row this has failed.
    pub failures: u32,
    /// How often in a row it was refused for good; three park the batch.
    pub refusals: u32,
}

/// How a batch came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Closing {
    /// The provider completed it and every member has its outcome.
    Processed,
    /// It was not admitted, or expired.
    Failed,
    /// It was cancelled, or had nothing to send.
    Cancelled,
}

/// The state. Each variant holds what it needs to go on after a restart and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchState {
    /// Requests are being moved into it, chunk by chunk.
    Filling,
    /// Its members are fixed; waits for its turn.
    Sealed,
    /// The input file is written and sent.
    Uploading {
        /// Which upload this is, from 1.
        upload: u32,
        /// When it may be tried.
        wait: Wait,
    },
    /// The input file is at the provider; no create call is under way.
    Ready {
        /// The file.
        input: InputFile,
        /// When the create call may be made.
        wait: Wait,
    },
    /// The intent is stored; the create call is, or may be, under way.
    Creating {
        /// What was stored before the call.
        intent: Intent,
        /// How it went before.
        wait: Wait,
    },
    /// It is not known whether the create call had its effect: the provider's list is searched.
    Uncertain {
        /// What to search for.
        intent: Intent,
        /// Complete sweeps that did not find it.
        sweeps: u32,
    },
    /// Not found: the old input file is deleted first, so that a late creation fails unpaid.
    Fencing {
        /// The intent that is given up.
        intent: Intent,
        /// Whether the file is gone, so that only what was created before is still to be searched for.
        gone: bool,
    },
    /// Refused for good three times; the operator decides. The members are kept.
    Parked {
        /// Uploads made so far.
        upload: u32,
        /// The provider's words.
        failure: Failure,
    },
    /// At the provider.
    Observing {
        /// What it was made from; sent again where the provider had no room for it.
        intent: Intent,
        /// Where it stands there.
        running: Running,
        /// How often it was turned away before.
        wait: Wait,
    },
    /// Ended with completed lines but without an output file id: asked again for ten minutes.
    Settling {
        /// What was seen last.
        ended: Ended,
        /// Since when.
        since: Timestamp,
    },
    /// The result files are brought home.
    Downloading {
        /// How it ended.
        ended: Ended,
        /// The file.
        kind: ResultKind,
        /// Whether a file before this one is lost.
        lost: bool,
        /// When it may be tried.
        wait: Wait,
    },
    /// The lines of a file at home are applied; everything before `offset` is.
    Applying {
        /// How it ended.
        ended: Ended,
        /// The file.
        kind: ResultKind,
        /// The byte after the last applied line.
        offset: u64,
        /// Whether a file is lost, or not whole.
        lost: bool,
    },
    /// Every file has been read: what is outstanding fails or goes back, chunk by chunk.
    Closing {
        /// How it ended.
        ended: Ended,
        /// Whether a file is lost.
        lost: bool,
    },
    /// Nothing is outstanding; the local files are removed.
    Cleaning {
        /// How it came to its end.
        closing: Closing,
    },
    /// Over.
    Closed {
        /// How it came to its end.
        closing: Closing,
    },
}

impl BatchState {
    /// The finer step, as the API and the log name it.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Filling => "filling",
            Self::Sealed => "sealed",
            Self::Uploading { .. } => "uploading",
            Self::Ready { .. } | Self::Creating { .. } => "creating",
            Self::Uncertain { .. } => "uncertain",
            Self::Fencing { .. } => "fencing",
            Self::Parked { .. } => "parked",
            Self::Observing { .. } => "observing",
            Self::Settling { .. } => "settling",
            Self::Downloading { .. } => "downloading",
            Self::Applying { .. } => "applying",
            Self::Closing { .. } => "closing",
            Self::Cleaning { .. } => "cleaning",
            Self::Closed { .. } => "closed",
        }
    }

    /// The status that follows from the state.
    pub const fn status(&self) -> BatchStatus {
        match self {
            Self::Filling | Self::Sealed => BatchStatus::Pending,
            Self::Uploading { .. }
            | Self::Ready { .. }
            | Self::Creating { .. }
            | Self::Uncertain { .. }
            | Self::Fencing { .. }
            | Self::Parked { .. } => BatchStatus::Uploading,
            Self::Observing { running: Running::Validating, .. } => BatchStatus::Validating,
            Self::Observing { running: Running::InProgress, .. } => BatchStatus::InProgress,
            Self::Observing { running: Running::Finalizing, .. } => BatchStatus::Finalizing,
            Self::Settling { .. }
            | Self::Downloading { .. }
            | Self::Applying { .. }
            | Self::Closing { .. } => BatchStatus::Completed,
            Self::Cleaning { closing } | Self::Closed { closing } => match closing {
                Closing::Processed => BatchStatus::Processed,
                Closing::Failed => BatchStatus::Failed,
                Closing::Cancelled => BatchStatus::Cancelled,
            },
        }
    }

    /// Whether the batch still has something to do.
    pub const fn is_live(&self) -> bool {
        !matches!(self, Self::Closed { .. })
    }

    /// Whether the provider has it and it is worth asking about.
    pub const fn is_observed(&self) -> bool {
        matches!(self, Self::Observing { .. } | Self::Settling { .. })
    }

    /// Why it waits and until when, where it does.
    pub const fn wait(&self) -> Option<&Wait> {
        match self {
            Self::Uploading { wait, .. }
            | Self::Ready { wait, .. }
            | Self::Creating { wait, .. }
            | Self::Downloading { wait, .. } => Some(wait),
            Self::Filling
            | Self::Sealed
            | Self::Uncertain { .. }
            | Self::Fencing { .. }
            | Self::Parked { .. }
            | Self::Observing { .. }
            | Self::Settling { .. }
            | Self::Applying { .. }
            | Self::Closing { .. }
            | Self::Cleaning { .. }
            | Self::Closed { .. } => None,
        }
    }
}

/// The status that people and programs see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BatchStatus {
    /// Being filled, or sealed.
    Pending,
    /// The input file or the create call is under way.
    Uploading,
    /// As the provider says.
    Validating,
    /// As the provider says.
    InProgress,
    /// As the provider says.
    Finalizing,
    /// The provider has ended and there are results to take in.
    Completed,
    /// Every member has its outcome and the provider said completed.
    Processed,
    /// Validation failed, or the batch expired.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl BatchStatus {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::Uploading,
        Self::Validating,
        Self::InProgress,
        Self::Finalizing,
        Self::Completed,
        Self::Processed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The status as the API names it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Uploading => "uploading",
            Self::Validating => "validating",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Processed => "processed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::str::FromStr for BatchStatus {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|status| status.label() == text).ok_or(())
    }
}

/// What became of the members. `members` = the sum of all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that were put into the batch.
    pub members: u64,
    /// Got their result from it.
    pub completed: u64,
    /// Failed for good by it.
    pub failed: u64,
    /// Went back to wait for another batch.
    pub returned: u64,
    /// Were erased while in it.
    pub erased: u64,
}

impl Counts {
    /// Members without an outcome.
    pub const fn outstanding(&self) -> u64 {
        self.members.saturating_sub(self.completed + self.failed + self.returned + self.erased)
    }
}

/// Lines in result files that were not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Anomalies {
    /// Could not be read.
    pub unreadable: u64,
    /// Named no member of the batch.
    pub unknown: u64,
    /// Came for a request that already had its line.
    pub repeated: u64,
    /// Members without a line in any file.
    pub missing: u64,
}

/// Which provider a batch went to; one of another is neither polled nor bought again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProviderIdentity {
    /// `simulator` or `openai`.
    pub kind: String,
    /// Where it is; empty for the embedded simulator, whose port changes.
    pub base_url: String,
    /// `OPENAI_ORG_ID`
    pub organization: Option<String>,
    /// `OPENAI_PROJECT_ID`
    pub project: Option<String>,
}

/// A batch as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Our id.
    pub id: BatchId,
    /// Grows with each write.
    pub revision: Revision,
    /// What its members share.
    pub group: Group,
    /// Which provider it goes to.
    pub provider: ProviderIdentity,
    /// Where it stands.
    pub state: BatchState,
    /// What became of its members.
    pub counts: Counts,
    /// Size of the input file, in bytes.
    pub input_bytes: u64,
    /// Estimated input tokens of its members.
    pub estimated_tokens: u64,
    /// What its lines cost so far, in millionths.
    pub cost_micros: u64,
    /// Lines that were not what they should be.
    pub anomalies: Anomalies,
    /// The input file of the last upload.
    pub input: Option<FileId>,
    /// The provider's id.
    pub provider_batch: Option<ProviderBatchId>,
    /// The output file.
    pub output: Option<FileId>,
    /// The error file.
    pub error: Option<FileId>,
    /// Intents that were given up, newest last; a batch that surfaces for one of them is a shadow.
    pub superseded: Vec<Intent>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the provider ended it.
    pub completed_at: Option<Timestamp>,
    /// When its results were taken in.
    pub processed_at: Option<Timestamp>,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
    /// How many lines its story has.
    pub story_lines: u32,
}

impl Batch {
    /// A batch that was just made: empty, being filled.
    pub fn open(id: BatchId, group: Group, provider: ProviderIdentity, created_at: Timestamp) -> Self {
        Self {
            id,
            revision: Revision::default(),
            group,
            provider,
            state: BatchState::Filling,
            counts: Counts::default(),
            input_bytes: 0,
            estimated_tokens: 0,
            cost_micros: 0,
            anomalies: Anomalies::default(),
            input: None,
            provider_batch: None,
            output: None,
            error: None,
            superseded: Vec::new(),
            created_at,
            completed_at: None,
            processed_at: None,
            closed_at: None,
            story_lines: 0,
        }
    }
}
