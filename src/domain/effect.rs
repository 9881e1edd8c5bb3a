//! What to do for a batch after a step is stored, in the imperative.
//!
//! An effect may be run again after a crash. One that would be unsafe to repeat looks before it acts.

use super::batch::{Intent, ResultKind};
use super::id::{FileId, Timestamp};

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Move requests of the group into the batch until it is full or none is left.
    Fill,
    /// End the filling with what is there.
    EndFilling,
    /// Wait until batches may be sent.
    AwaitRelease,
    /// Send `WaitEnded` at the given time.
    WakeAt(Timestamp),
    /// Write the input file and send it. Nothing was sent under this upload number yet.
    UploadInput {
        /// Which upload this is.
        upload: u32,
    },
    /// The same, but look for the file's name among the provider's files first.
    FindOrUploadInput {
        /// Which upload this is.
        upload: u32,
    },
    /// Make an intent for a create call.
    MakeIntent,
    /// Send the create call, once.
    CreateBatch(Intent),
    /// Search the provider's list for the intent's batch.
    Sweep(Intent),
    /// Delete the intent's input file and see that it is gone.
    Fence(Intent),
    /// Try a parked batch again: whoever starts the program anew, or says so, has had a look.
    Unpark,
    /// Have the provider asked about the batch.
    Observe,
    /// Have the provider cancel the batch, again and again until it has heard.
    CancelRemote,
    /// The account was refused: nothing more is sent until that is better.
    PauseAccount {
        /// For people.
        why: String,
    },
    /// Bring a result file home.
    Download {
        /// Which.
        kind: ResultKind,
        /// Its id.
        file: FileId,
    },
    /// Apply the next lines of a file at home.
    ApplyLines {
        /// Which file.
        kind: ResultKind,
        /// From where.
        offset: u64,
    },
    /// Close the next chunk of outstanding members.
    CloseChunk,
    /// Remove the local files.
    Clean,
    /// Nothing is left to do: the actor can go.
    Retire,
}
