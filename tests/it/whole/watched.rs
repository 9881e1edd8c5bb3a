//! The provider's client, with a count of its calls, and a death behind the answer to one of them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use nightshift::domain::id::{FileId, ProviderBatchId};
use nightshift::provider::wire::{BatchObject, FileObject, Page};
use nightshift::provider::{Downloaded, NewBatch, Provider, ProviderError};
use tokio::sync::Notify;

/// The calls to the provider.
#[derive(Default)]
pub struct Calls {
    pub begun: AtomicU64,
    ended: AtomicU64,
    pub changed: Notify,
    /// The answer to the call that comes as this one from now kills; 0 kills never.
    pub deadly: AtomicUsize,
    /// Only uploads and creations count for that.
    pub costly_only: AtomicBool,
    pub died: AtomicBool,
}

impl Calls {
    /// Whether the program dies with this answer.
    fn kills(&self, costly: bool) -> bool {
        let left = self.deadly.load(Ordering::SeqCst);
        if left == 0 || (self.costly_only.load(Ordering::SeqCst) && !costly) {
            return false;
        }
        self.deadly.store(left - 1, Ordering::SeqCst);
        left == 1
    }

    pub fn under_way(&self) -> bool {
        self.begun.load(Ordering::SeqCst) > self.ended.load(Ordering::SeqCst)
    }
}

/// Counts a call, until it is dropped: it may be broken off.
struct Counted<'a>(&'a Calls);

impl<'a> Counted<'a> {
    fn new(calls: &'a Calls) -> Self {
        calls.begun.fetch_add(1, Ordering::SeqCst);
        Self(calls)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

/// The client, with a count of its calls.
pub struct Watched {
    inner: Arc<dyn Provider>,
    calls: Arc<Calls>,
}

impl Watched {
    pub fn new(inner: Arc<dyn Provider>, calls: Arc<Calls>) -> Self {
        Self { inner, calls }
    }

    async fn through<T>(&self, costly: bool, call: impl Future<Output = T>) -> T {
        let counted = Counted::new(&self.calls);
        let answer = call.await;
        if self.calls.kills(costly) {
            self.calls.died.store(true, Ordering::SeqCst);
            drop(counted);
            return std::future::pending().await;
        }
        answer
    }
}

#[async_trait]
impl Provider for Watched {
    async fn upload_file(&self, path: &Path, filename: &str) -> Result<FileObject, ProviderError> {
        self.through(true, self.inner.upload_file(path, filename)).await
    }

    async fn list_files(
        &self,
        after: Option<&FileId>,
        limit: u32,
    ) -> Result<Page<FileObject>, ProviderError> {
        self.through(false, self.inner.list_files(after, limit)).await
    }

    async fn get_file(&self, id: &FileId) -> Result<Option<FileObject>, ProviderError> {
        self.through(false, self.inner.get_file(id)).await
    }

    async fn download_file(&self, id: &FileId, to: &Path) -> Result<Downloaded, ProviderError> {
        self.through(false, self.inner.download_file(id, to)).await
    }

    async fn delete_file(&self, id: &FileId) -> Result<(), ProviderError> {
        self.through(false, self.inner.delete_file(id)).await
    }

    async fn create_batch(&self, new: &NewBatch) -> Result<BatchObject, ProviderError> {
        self.through(true, self.inner.create_batch(new)).await
    }

    async fn get_batch(&self, id: &ProviderBatchId) -> Result<Option<BatchObject>, ProviderError> {
        self.through(false, self.inner.get_batch(id)).await
    }

    async fn list_batches(
        &self,
        after: Option<&ProviderBatchId>,
        limit: u32,
    ) -> Result<Page<BatchObject>, ProviderError> {
        self.through(false, self.inner.list_batches(after, limit)).await
    }

    async fn cancel_batch(&self, id: &ProviderBatchId) -> Result<BatchObject, ProviderError> {
        self.through(false, self.inner.cancel_batch(id)).await
    }
}
