//! What happened to a batch, in the past tense, with the time where it matters.

use super::batch::{Batch, Cancel, InputFile, Intent, Problem, ResultKind, Running, Terminal};
use super::id::{FileId, ProviderBatchId, Timestamp};
use super::request::{Failure, FailureClass};

/// What the provider said of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The provider's id.
    pub id: ProviderBatchId,
    /// Where it stands; none for a word that we do not know, which changes nothing.
    pub status: Option<ObservedStatus>,
    /// The file of good lines.
    pub output: Option<FileId>,
    /// The file of the other lines.
    pub error: Option<FileId>,
    /// Lines that the provider counts as completed; none where it does not say.
    pub completed_lines: Option<u64>,
    /// Lines that it counts as failed.
    pub failed_lines: Option<u64>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// When its window closes, by the provider's clock.
    pub expires_at: Option<Timestamp>,
    /// When it ended, by the provider's clock.
    pub ended_at: Option<Timestamp>,
}

/// Where a batch stands at the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObservedStatus {
    /// It goes on.
    Running(Running),
    /// It has ended.
    Ended(Terminal),
}

/// Why a call did not do what it should, by what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It had no effect and may go well later: not reached, rate limited.
    Later {
        /// How long the provider asks to wait, in milliseconds.
        retry_after_ms: Option<u64>,
        /// For people.
        why: String,
    },
    /// The account is refused; nothing is wrong with the batch.
    Account {
        /// For people.
        why: String,
    },
    /// It was refused for good.
    Refused(Failure),
    /// It may have had its effect.
    Uncertain {
        /// For people.
        why: String,
    },
    /// Something on this machine is the trouble.
    Local {
        /// For people.
        why: String,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Nothing more goes into the batch.
    FillEnded {
        /// How many members it has.
        members: u64,
        /// Now.
        at: Timestamp,
    },
    /// It is this batch's turn to be sent.
    Released,
    /// The time it waited for has come.
    WaitEnded,
    /// The input file is at the provider.
    Uploaded(InputFile),
    /// It is not, or not known to be.
    UploadFailed {
        /// Why.
        trouble: Trouble,
        /// Now.
        at: Timestamp,
    },
    /// A parked batch is to be tried again.
    Unparked,
    /// An operator, or the program itself, wants it cancelled.
    CancelAsked(Cancel),
    /// It must not be sent, for a reason that says nothing about its members.
    GivenBack(Failure),
    /// There is no room at the provider before that time.
    RoomShut {
        /// When to look again.
        until: Timestamp,
    },
    /// The input file has a line of a member that was erased since it was sent.
    InputOutdated,
    /// A create call is about to be made.
    IntentMade(Intent),
    /// The create call was answered, or a sweep found its batch.
    Created(Observation),
    /// The create call was not answered with a batch.
    CreateFailed {
        /// Why.
        trouble: Trouble,
        /// Whether the refusal says that the input file is gone.
        input_gone: bool,
        /// Now.
        at: Timestamp,
    },
    /// The provider's list was searched to its end, or as far as it went.
    Swept {
        /// Whether every page back to the input file's own time was read.
        complete: bool,
        /// Whether the grace since the intent is over.
        grace_over: bool,
        /// What was found for the intent: the one to keep.
        found: Option<Observation>,
    },
    /// Neither the input file nor anything else of ours is at the provider, so that what its list lacks proves
    /// nothing. Said once; after that such a search is one that is not complete.
    ListUnproven,
    /// The provider does not delete the old input file so far, for another reason than was told last.
    NotFenced {
        /// For people.
        why: String,
    },
    /// The old input file is gone.
    Fenced,
    /// The provider was asked about the batch.
    Observed {
        /// What it said.
        seen: Observation,
        /// Now.
        at: Timestamp,
    },
    /// The provider was asked about the batch and says that it does not know it.
    NotKnown {
        /// Now.
        at: Timestamp,
    },
    /// A result file is home.
    Downloaded {
        /// Which.
        kind: ResultKind,
        /// Whether it is known not to be whole.
        torn: bool,
    },
    /// It is not.
    DownloadFailed {
        /// Which.
        kind: ResultKind,
        /// Why.
        trouble: Trouble,
        /// Now.
        at: Timestamp,
    },
    /// The local copy of a result file is missing or not what was stored: it is fetched again.
    CopyLost {
        /// Which.
        kind: ResultKind,
    },
    /// A chunk of lines was read from a file at home, to be stored with this step.
    LinesRead {
        /// Which file.
        kind: ResultKind,
        /// Where the chunk began.
        from: u64,
        /// The byte after its last line.
        to: u64,
        /// Whether that is the end of the file.
        end: bool,
    },
    /// A closing chunk is about to be stored with this step.
    ChunkClosed {
        /// Whether members are still outstanding after it.
        remaining: bool,
        /// Now.
        at: Timestamp,
    },
    /// The local files are removed.
    Cleaned {
        /// Now.
        at: Timestamp,
    },
}

impl Event {
    /// What happens to a batch that has nothing to send any more.
    pub fn of_emptied(batch: &Batch) -> Option<Self> {
        let detail =
            "none of its requests is outstanding any more: they were erased, or answered from elsewhere";
        let failure = || Failure::new(FailureClass::Transient, "batch_given_back", detail);
        (batch.counts.outstanding() == 0).then(|| Self::GivenBack(failure()))
    }

    /// What happens where the input file at the provider is not what is to be sent any more.
    pub fn of_outdated(batch: &Batch, input: &InputFile) -> Option<Self> {
        Self::of_emptied(batch).or_else(|| (input.bytes != batch.input_bytes).then_some(Self::InputOutdated))
    }

    /// For the log and the story.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::FillEnded { .. } => "fill_ended",
            Self::Released => "released",
            Self::WaitEnded => "wait_ended",
            Self::Uploaded(_) => "uploaded",
            Self::UploadFailed { .. } => "upload_failed",
            Self::Unparked => "unparked",
            Self::CancelAsked(_) => "cancel_asked",
            Self::GivenBack(_) => "given_back",
            Self::RoomShut { .. } => "room_shut",
            Self::InputOutdated => "input_outdated",
            Self::IntentMade(_) => "intent_made",
            Self::Created(_) => "created",
            Self::CreateFailed { .. } => "create_failed",
            Self::Swept { .. } => "swept",
            Self::ListUnproven => "list_unproven",
            Self::NotFenced { .. } => "not_fenced",
            Self::Fenced => "fenced",
            Self::Observed { .. } => "observed",
            Self::NotKnown { .. } => "not_known",
            Self::Downloaded { .. } => "downloaded",
            Self::DownloadFailed { .. } => "download_failed",
            Self::CopyLost { .. } => "copy_lost",
            Self::LinesRead { .. } => "lines_read",
            Self::ChunkClosed { .. } => "chunk_closed",
            Self::Cleaned { .. } => "cleaned",
        }
    }
}
