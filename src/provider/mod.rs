//! OpenAI's Files and Batch API as a client sees it: a trait, its errors, and one implementation over HTTP.
//!
//! Nothing here decides what to do next; it says exactly what is known about a call, above all whether
//! it can have had an effect.

#[cfg(feature = "crash-points")]
pub mod crashing;
pub mod jsonl;
pub mod openai;
pub mod wire;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::id::{FileId, ProviderBatchId};
use crate::domain::request::Endpoint;
use wire::{BatchObject, FileObject, Page};

/// A file that was brought home whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

/// What a batch is created from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBatch {
    /// The uploaded input.
    pub input_file: FileId,
    /// The endpoint of all its lines.
    pub endpoint: Endpoint,
    /// At most 16 pairs; keys up to 64, values up to 512 characters.
    pub metadata: Vec<(&'static str, String)>,
}

/// The provider's calls. Safe ones (reads, deletes, cancel) repeat themselves on passing faults;
/// `upload_file` and `create_batch` send exactly once.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// `POST /files` with purpose `batch`, streamed from `path`. Sent once.
    async fn upload_file(&self, path: &Path, filename: &str) -> Result<FileObject, ProviderError>;
    /// `GET /files?purpose=batch`, newest first, at most `limit`, after the file `after`.
    async fn list_files(&self, after: Option<&FileId>, limit: u32)
    -> Result<Page<FileObject>, ProviderError>;
    /// `GET /files/{id}`; none if there is no such file.
    async fn get_file(&self, id: &FileId) -> Result<Option<FileObject>, ProviderError>;
    /// `GET /files/{id}/content` into `to`: a temporary name, synced, renamed, the folder synced.
    async fn download_file(&self, id: &FileId, to: &Path) -> Result<Downloaded, ProviderError>;
    /// `DELETE /files/{id}`; a file that is already gone is fine.
    async fn delete_file(&self, id: &FileId) -> Result<(), ProviderError>;
    /// `POST /batches`. Sent once; no redirect is followed.
    async fn create_batch(&self, new: &NewBatch) -> Result<BatchObject, ProviderError>;
    /// `GET /batches/{id}`; none if there is no such batch.
    async fn get_batch(&self, id: &ProviderBatchId) -> Result<Option<BatchObject>, ProviderError>;
    /// `GET /batches`, newest first, at most `limit` (1..100), after the batch `after`.
    async fn list_batches(
        &self,
        after: Option<&ProviderBatchId>,
        limit: u32,
    ) -> Result<Page<BatchObject>, ProviderError>;
    /// `POST /batches/{id}/cancel`; a 409 is resolved by a read.
    async fn cancel_batch(&self, id: &ProviderBatchId) -> Result<BatchObject, ProviderError>;
}

/// What is known about a call that did not succeed, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// No connection was made, so the call had no effect.
    #[error("{call}: the provider cannot be reached")]
    NotSent {
        /// Method and path pattern.
        call: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The provider answered that it will not do it: a 4xx other than 408, 409 and 429. No effect.
    #[error("{call}: refused with {status} {code}: {message}")]
    Refused {
        /// Method and path pattern.
        call: &'static str,
        /// The HTTP status.
        status: u16,
        /// The provider's `error.code`, or its `type`, or empty.
        code: String,
        /// The provider's `error.message`, cut to 500 characters.
        message: String,
        /// The provider's `error.param`.
        param: Option<String>,
    },
    /// 429: not done, come back later. No effect.
    #[error("{call}: rate limited ({code})")]
    RateLimited {
        /// Method and path pattern.
        call: &'static str,
        /// The provider's `error.code`, or empty.
        code: String,
        /// The provider's words, cut to 500 characters.
        message: String,
        /// How long the provider asks to wait.
        retry_after: Option<Duration>,
    },
    /// The key, the quota or the account is the trouble: 401, 403, or a billing code at any status. No effect.
    #[error("{call}: the account is refused with {status} {code}: {message}")]
    Account {
        /// Method and path pattern.
        call: &'static str,
        /// The HTTP status.
        status: u16,
        /// The provider's code.
        code: String,
        /// The provider's words, cut to 500 characters.
        message: String,
    },
    /// Sent, and no readable answer: a time-out, a reset, 408, 409, 3xx, 5xx, an unreadable 2xx.
    /// It may have had its effect.
    #[error("{call}: no certain answer ({what})")]
    Uncertain {
        /// Method and path pattern.
        call: &'static str,
        /// What came instead, in a few words.
        what: String,
    },
    /// A file of ours could not be read or written.
    #[error("{call}: {path}")]
    Local {
        /// Method and path pattern.
        call: &'static str,
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
