//! Batches that were found at the provider: what they are taken in for.

use super::batches;
use super::keys::Tree;
use super::requests;
use super::{Store, StoreError, StoreReader};
use crate::domain::batch::{Batch, BatchState, Origin};
use crate::domain::id::{BatchId, RequestId, Revision, Timestamp};
use crate::domain::request::RequestStatus;

const RECONCILED: &[u8] = b"reconciled";
const PROVIDER: &[u8] = b"accepted_provider";

impl Store {
    /// Makes those of `ids`, at most 250, members of an adopted batch that is still being filled, which wait here for
    /// a batch. Others have their result, or another batch, or came after the backup that this store was restored from.
    pub async fn take_over_members(
        &self,
        id: BatchId,
        revision: Revision,
        ids: Vec<RequestId>,
    ) -> Result<Batch, StoreError> {
        self.committer
            .commit(batches::CHUNK, move |tx| {
                let mut batch = batches::load(tx, id, revision)?;
                if batch.state != BatchState::Filling || batch.origin != Origin::Adopted {
                    return Err(StoreError::Broken(format!("batch {id} takes nobody over")));
                }
                for id in ids {
                    if !tx.has(Tree::Requests, id.as_bytes())? {
                        continue;
                    }
                    let mut request = requests::load(tx, id)?;
                    if request.status == RequestStatus::PendingBatching && request.group == batch.group {
                        requests::dequeue(tx, &request)?;
                        request.not_before = None;
                        batches::join(tx, &mut batch, &mut request)?;
                    }
                }
                batches::save(tx, &mut batch)?;
                Ok(batch)
            })
            .await
    }

    /// Notes that an operator accepted that this provider is used while batches of another one are open.
    pub async fn note_provider(&self, key: String) -> Result<(), StoreError> {
        self.committer.commit(1, move |tx| tx.write(Tree::Meta, PROVIDER.to_vec(), &key)).await
    }

    /// Notes that all batches of ours at the provider that are older than `at` are known here.
    pub async fn note_reconciled(&self, at: Timestamp) -> Result<(), StoreError> {
        self.committer.commit(1, move |tx| tx.write(Tree::Meta, RECONCILED.to_vec(), &at)).await
    }
}

impl StoreReader {
    /// The provider that an operator accepted last, as [`crate::domain::batch::ProviderIdentity::key`] has it.
    pub fn accepted_provider(&self) -> Result<Option<String>, StoreError> {
        self.read(Tree::Meta, PROVIDER)
    }

    /// Until when the provider's batches are known to be known here. A store that went back in time says an older
    /// time, so that whoever looks back to it finds all that was forgotten.
    pub fn reconciled(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read(Tree::Meta, RECONCILED)
    }
}
