//! The provider's JSON, read tolerantly.

use crate::domain::id::{FileId, ProviderBatchId, Timestamp};

/// A file at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileObject {
    /// Its id.
    pub id: FileId,
    /// Its length, where the provider says.
    pub bytes: Option<u64>,
    /// When the provider made it, by the provider's clock.
    pub created_at: Option<Timestamp>,
    /// Its name.
    pub filename: Option<String>,
    /// What it is for.
    pub purpose: Option<String>,
}

/// Where a batch stands at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderStatus {
    /// The input is being checked.
    Validating,
    /// Lines are being run.
    InProgress,
    /// Results are being put together.
    Finalizing,
    /// Ended: every line has been tried.
    Completed,
    /// Ended: not admitted.
    Failed,
    /// Ended: the window closed first.
    Expired,
    /// Being cancelled.
    Cancelling,
    /// Ended: cancelled.
    Cancelled,
    /// A word that we do not know: still running, as far as we can tell.
    Unknown(String),
}

/// One entry of a batch's `errors.data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchError {
    /// For instance `token_limit_exceeded`.
    pub code: Option<String>,
    /// The provider's words, cut to 500 characters.
    pub message: Option<String>,
    /// For instance `body.model`.
    pub param: Option<String>,
    /// The line of the input file, from 1.
    pub line: Option<u64>,
}

/// The provider's own counts; not an accounting identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProviderCounts {
    /// Lines in all; 0 while validating.
    pub total: u64,
    /// Lines that went well.
    pub completed: u64,
    /// Lines that did not.
    pub failed: u64,
}

/// A batch at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchObject {
    /// Its id.
    pub id: ProviderBatchId,
    /// Where it stands.
    pub status: ProviderStatus,
    /// The endpoint of its lines.
    pub endpoint: Option<String>,
    /// The model snapshot that it runs on.
    pub model: Option<String>,
    /// The input.
    pub input_file_id: Option<FileId>,
    /// The good lines; an empty id counts as none.
    pub output_file_id: Option<FileId>,
    /// The other lines; an empty id counts as none.
    pub error_file_id: Option<FileId>,
    /// Why it failed, when it did.
    pub errors: Vec<BatchError>,
    /// When it was made, by the provider's clock.
    pub created_at: Option<Timestamp>,
    /// When its window closes.
    pub expires_at: Option<Timestamp>,
    /// When it ended: the stamp that fits the status.
    pub ended_at: Option<Timestamp>,
    /// The provider's counts.
    pub counts: Option<ProviderCounts>,
    /// Pairs of ours, and perhaps others; values that are not text are left out.
    pub metadata: Vec<(String, String)>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries, newest first.
    pub data: Vec<T>,
    /// Whether there may be a next page. False for an empty page, whatever the provider says.
    pub has_more: bool,
}
