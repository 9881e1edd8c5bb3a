//! A batch: the facts, the state it is in, and how it is shown. How it moves is `step`'s matter.

use serde::{Deserialize, Serialize};

use super::budget::{Month, Purse};
use super::id::{BatchId, FileId, Nonce, ProviderBatchId, Revision, Timestamp};
use super::price::ModelPrice;
use super::request::{Failure, Group};

pub use super::ended::{Ended, Problem, ResultKind, Terminal};

/// The input file as the provider has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// The provider's id.
    pub id: FileId,
    /// Which upload of this batch it was, from 1; part of its name.
    pub upload: u32,
    /// How long it was meant to be: the batch's own number is another one once a member was erased.
    pub bytes: u64,
    /// When the provider made it, by the provider's clock: no batch made from it can be older.
    pub created_at: Timestamp,
}

/// What a call was made with: a print of key, organization and project, from which none of them can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Credentials(pub [u8; 16]);

/// Stored before a create call is sent, so that a batch that comes of it can be told for ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Sent as `metadata.ns_nonce`, never used again.
    pub nonce: Nonce,
    /// The file that it is made from: the second key, where a server drops metadata.
    pub input: InputFile,
    /// When it was stored.
    pub at: Timestamp,
    /// What the call is made with: only a list that is read with the same, or with what shows the same files, can tell
    /// that nothing came of it.
    pub made_with: Credentials,
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

/// What becomes of what a cancelled batch did not finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// It waits for another batch.
    Requeue,
    /// It is not tried again unless an operator says so.
    End,
}

impl Then {
    /// The word in the API.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Requeue => "requeue",
            Self::End => "end",
        }
    }
}

impl std::str::FromStr for Then {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Requeue, Self::End].into_iter().find(|then| then.label() == text).ok_or(())
    }
}

/// The order to cancel a batch; it stands beside the state, which goes on until it can be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Who ordered it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// What becomes of the rest.
    pub then: Then,
}

/// How a batch came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// Cut here from what waited.
    Cut,
    /// Found at the provider for an intent that was given up. It has no members of its own: its lines are taken in for
    /// those of the other batch, where they have no result yet.
    Shadow {
        /// The batch whose intent it came of.
        of: BatchId,
    },
    /// Found at the provider and unknown here, as after the restore of an old backup. Its members are those of its
    /// input file that wait here.
    Adopted,
}

impl Origin {
    /// The word in the API.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Shadow { .. } => "shadow",
            Self::Adopted => "adopted",
        }
    }
}

/// Since when, and how often in a row, the provider did not know a batch that it had given an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The first time.
    pub since: Timestamp,
    /// How often.
    pub times: u32,
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
        /// Whether the provider says that it does not know it.
        missing: Option<Missing>,
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
    /// It is given up before the provider has it: its members go back or end, chunk by chunk.
    Dissolving {
        /// What becomes of them.
        then: Then,
        /// Why, as their history tells it.
        failure: Failure,
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
            Self::Dissolving { .. } => "dissolving",
            Self::Cleaning { .. } => "cleaning",
            Self::Closed { .. } => "closed",
        }
    }

    /// The status that follows from the state.
    pub const fn status(&self) -> BatchStatus {
        match self {
            Self::Filling | Self::Sealed | Self::Dissolving { .. } => BatchStatus::Pending,
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

    /// Whether the provider cannot have it, so that giving it up is a matter of this side alone.
    pub const fn is_unsent(&self) -> bool {
        match self {
            Self::Filling
            | Self::Sealed
            | Self::Uploading { .. }
            | Self::Ready { .. }
            | Self::Parked { .. }
            | Self::Dissolving { .. } => true,
            Self::Creating { .. }
            | Self::Uncertain { .. }
            | Self::Fencing { .. }
            | Self::Observing { .. }
            | Self::Settling { .. }
            | Self::Downloading { .. }
            | Self::Applying { .. }
            | Self::Closing { .. }
            | Self::Cleaning { .. }
            | Self::Closed { .. } => false,
        }
    }

    /// Whether the provider has it, or may have it, and has not ended it as far as is known.
    pub const fn may_be_running(&self) -> bool {
        matches!(
            self,
            Self::Creating { .. } | Self::Uncertain { .. } | Self::Fencing { .. } | Self::Observing { .. }
        )
    }

    /// The intent that a create call went out for, or is about to, while that is still of interest.
    pub const fn intent(&self) -> Option<&Intent> {
        match self {
            Self::Creating { intent, .. }
            | Self::Uncertain { intent, .. }
            | Self::Fencing { intent, .. }
            | Self::Observing { intent, .. } => Some(intent),
            Self::Filling
            | Self::Sealed
            | Self::Uploading { .. }
            | Self::Ready { .. }
            | Self::Parked { .. }
            | Self::Settling { .. }
            | Self::Downloading { .. }
            | Self::Applying { .. }
            | Self::Closing { .. }
            | Self::Dissolving { .. }
            | Self::Cleaning { .. }
            | Self::Closed { .. } => None,
        }
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
            | Self::Dissolving { .. }
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
    /// Members with an outcome; none where that is more than a number can be.
    pub fn ended(&self) -> Option<u64> {
        let ends = [self.completed, self.failed, self.returned, self.erased];
        ends.into_iter().try_fold(0u64, u64::checked_add)
    }

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

impl ProviderIdentity {
    /// One text for all of it.
    pub fn key(&self) -> String {
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        [self.kind.clone(), self.base_url.clone(), part(&self.organization), part(&self.project)].join("\n")
    }
}

/// What holds for a batch in every state; the machine is asked with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orders {
    /// It is to be cancelled, and this becomes of the rest.
    pub cancel: Option<Then>,
    /// It may not be sent again: it was not cut here.
    pub never_sent: bool,
    /// It was told that it should have ended long ago.
    pub is_overdue: bool,
    /// Where the provider refuses it and names neither a line nor a reason that we know, one of its requests is thought
    /// to be at fault, and not the account.
    pub at_fault: bool,
}

/// A batch as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Our id.
    pub id: BatchId,
    /// Grows with each write.
    pub revision: Revision,
    /// How it came to be.
    pub origin: Origin,
    /// The order to cancel it.
    pub cancel: Option<Cancel>,
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
    /// Embedding inputs of its members.
    pub inputs: u64,
    /// Estimated input tokens of its members.
    pub estimated_tokens: u64,
    /// Tokens that it holds of the room for its model, corrected by what the provider counted before.
    pub held_tokens: u64,
    /// It may not hold more of them, where there is a limit.
    pub tokens_max: Option<u64>,
    /// It may not have more members, where some of them were refused together before.
    pub members_max: Option<u64>,
    /// What its lines cost so far, in millionths.
    pub cost_micros: u64,
    /// What its model's tokens cost when it was cut; none where that is not known.
    pub price: Option<ModelPrice>,
    /// Which month's money it costs, and how much of that is set aside for it.
    pub purse: Purse,
    /// Members that went back to be asked once more, with what was wrong with their answer.
    pub repairs: u64,
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
    /// Its files that the provider may have yet: each input file, also of an upload that was repeated, and the results.
    pub files: Vec<FileId>,
    /// Uploads that were begun, and of which it is not known what came of them: there may be a file that only its name
    /// tells of.
    pub unsure_uploads: u32,
    /// Whether it was told that the provider has not ended it long after its window closed.
    pub is_overdue: bool,
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
            origin: Origin::Cut,
            cancel: None,
            group,
            provider,
            state: BatchState::Filling,
            counts: Counts::default(),
            input_bytes: 0,
            inputs: 0,
            estimated_tokens: 0,
            held_tokens: 0,
            tokens_max: None,
            members_max: None,
            cost_micros: 0,
            price: None,
            purse: Purse { month: Month::of(created_at), reserved: 0 },
            repairs: 0,
            anomalies: Anomalies::default(),
            input: None,
            provider_batch: None,
            output: None,
            error: None,
            files: Vec::new(),
            unsure_uploads: 0,
            is_overdue: false,
            superseded: Vec::new(),
            created_at,
            completed_at: None,
            processed_at: None,
            closed_at: None,
            story_lines: 0,
        }
    }

    /// What holds for it in every state.
    pub fn orders(&self) -> Orders {
        Orders {
            cancel: self.cancel.as_ref().map(|cancel| cancel.then),
            never_sent: self.origin != Origin::Cut,
            is_overdue: self.is_overdue,
            // The first halves are a test: if it is a request, one of them is admitted.
            at_fault: self.counts.members > 1 && self.members_max.is_none(),
        }
    }

    /// Notes a file of it at the provider.
    pub fn has_file(&mut self, file: &FileId) {
        if !self.files.contains(file) {
            self.files.push(file.clone());
        }
    }

    /// Whether the provider has, or may get, a file that tells something of its members, as far as is known.
    pub const fn may_have_files(&self) -> bool {
        self.closed_at.is_none() || !self.files.is_empty() || self.unsure_uploads > 0
    }

    /// Whose members its lines are about.
    pub const fn members_of(&self) -> BatchId {
        match self.origin {
            Origin::Shadow { of } => of,
            Origin::Cut | Origin::Adopted => self.id,
        }
    }
}
