//! The provider with a crash point before and behind each call. Tests only: with the feature `crash-points`.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::wire::{BatchObject, FileObject, Page};
use super::{Downloaded, NewBatch, Provider, ProviderError};
use crate::domain::id::{FileId, ProviderBatchId};

/// Hands every call on to the real one.
pub struct Crashing(Arc<dyn Provider>);

impl Crashing {
    /// Around `provider`.
    pub fn new(provider: Arc<dyn Provider>) -> Self {
        Self(provider)
    }
}

impl std::fmt::Debug for Crashing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Crashing")
    }
}

#[async_trait]
impl Provider for Crashing {
    async fn upload_file(&self, path: &Path, filename: &str) -> Result<FileObject, ProviderError> {
        crash_point!("upload.before_send");
        let answer = self.0.upload_file(path, filename).await;
        crash_point!("upload.after_send_before_commit");
        answer
    }

    async fn list_files(
        &self,
        after: Option<&FileId>,
        limit: u32,
    ) -> Result<Page<FileObject>, ProviderError> {
        crash_point!("list_files.before_send");
        let answer = self.0.list_files(after, limit).await;
        crash_point!("list_files.after_send");
        answer
    }

    async fn get_file(&self, id: &FileId) -> Result<Option<FileObject>, ProviderError> {
        crash_point!("get_file.before_send");
        let answer = self.0.get_file(id).await;
        crash_point!("get_file.after_send");
        answer
    }

    async fn download_file(&self, id: &FileId, to: &Path) -> Result<Downloaded, ProviderError> {
        crash_point!("download.before_send");
        let answer = self.0.download_file(id, to).await;
        crash_point!("download.after_send_before_commit");
        answer
    }

    async fn delete_file(&self, id: &FileId) -> Result<(), ProviderError> {
        crash_point!("delete_file.before_send");
        let answer = self.0.delete_file(id).await;
        crash_point!("delete_file.after_send");
        answer
    }

    async fn create_batch(&self, new: &NewBatch) -> Result<BatchObject, ProviderError> {
        crash_point!("create.after_intent_before_send");
        let answer = self.0.create_batch(new).await;
        crash_point!("create.after_send_before_commit");
        answer
    }

    async fn get_batch(&self, id: &ProviderBatchId) -> Result<Option<BatchObject>, ProviderError> {
        crash_point!("get_batch.before_send");
        let answer = self.0.get_batch(id).await;
        crash_point!("get_batch.after_send");
        answer
    }

    async fn list_batches(
        &self,
        after: Option<&ProviderBatchId>,
        limit: u32,
    ) -> Result<Page<BatchObject>, ProviderError> {
        crash_point!("list_batches.before_send");
        let answer = self.0.list_batches(after, limit).await;
        crash_point!("list_batches.after_send");
        answer
    }

    async fn cancel_batch(&self, id: &ProviderBatchId) -> Result<BatchObject, ProviderError> {
        crash_point!("cancel.before_send");
        let answer = self.0.cancel_batch(id).await;
        crash_point!("cancel.after_send");
        answer
    }
}
