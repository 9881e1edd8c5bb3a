//! What keeps a batch from closing: the ends of its members do not add up. It is told once in the batch's story and stays
//! listed until they do; the results stay, and so does the batch.

use serde::{Deserialize, Serialize};

use super::batches::tell;
use super::engine::Engine;
use super::keys::{self, Tree};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, codec};
use crate::domain::batch::Batch;
use crate::domain::id::{BatchId, Timestamp};

/// Why a batch does not close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anomaly {
    /// Since when.
    pub at: Timestamp,
    /// What does not add up.
    pub what: String,
}

/// A batch may close only when its sum is right and nothing is outstanding. What was noted against it is over then.
pub(super) fn prove_closed(tx: &mut Tx<'_>, batch: &mut Batch, now: Timestamp) -> Result<(), StoreError> {
    let outstanding = tx.scan_prefix(Tree::Outstanding, batch.id.as_bytes(), 1)?;
    if !outstanding.is_empty() || batch.counts.ended() != Some(batch.counts.members) {
        let counts = &batch.counts;
        let why = format!(
            "it has {} members, of which {} completed, {} failed, {} went back and {} were erased, and {} outstanding",
            counts.members,
            counts.completed,
            counts.failed,
            counts.returned,
            counts.erased,
            if outstanding.is_empty() { "none is" } else { "some are" },
        );
        return Err(StoreError::Unproven { batch: batch.id.to_string(), why });
    }
    if tx.has(Tree::Anomalies, batch.id.as_bytes())? {
        tx.remove(Tree::Anomalies, batch.id.as_bytes().to_vec());
        tell(tx, batch, "its members add up again", now)?;
    }
    Ok(())
}

impl Store {
    /// Hands on how a step was stored; one that would have closed a batch that does not add up is noted, in a commit
    /// of its own, and once.
    pub(super) async fn noting<T>(
        &self,
        id: BatchId,
        stored: Result<T, StoreError>,
        now: Timestamp,
    ) -> Result<T, StoreError> {
        if let Err(StoreError::Unproven { why, .. }) = &stored {
            let why = why.clone();
            if let Err(err) = self.committer.commit(1, move |tx| note(tx, id, why, now)).await {
                // The step is tried again, and then this is, too.
                tracing::error!(batch.id = %id, error = %err, "that batch {id} does not close could not be noted");
            }
        }
        stored
    }
}

fn note(tx: &mut Tx<'_>, id: BatchId, what: String, now: Timestamp) -> Result<(), StoreError> {
    let known: Option<Anomaly> = tx.read(Tree::Anomalies, id.as_bytes())?;
    if known.is_some_and(|known| known.what == what) {
        return Ok(());
    }
    let Some(mut batch) =
        tx.read::<Batch>(Tree::Batches, id.as_bytes())?.filter(|batch| batch.state.is_live())
    else {
        return Ok(());
    };
    tell(tx, &mut batch, &format!("does not close, and nothing of it is lost: {what}"), now)?;
    // Its revision stays: its actor has read nothing of what changes here.
    tx.write(Tree::Batches, id.as_bytes().to_vec(), &batch)?;
    tx.write(Tree::Anomalies, id.as_bytes().to_vec(), &Anomaly { at: now, what })
}

/// Invariant 4: only what is still to be closed can be kept from it.
pub(super) fn verify(engine: &Engine, key: &[u8], value: &[u8]) -> Result<Option<String>, StoreError> {
    let _: Anomaly = codec::decode(value)?;
    let Some(id) = keys::batch_at_start(key) else {
        return Ok(Some(format!("a key of {} bytes says that a batch does not close", key.len())));
    };
    let batch = engine.get(Tree::Batches, id.as_bytes())?;
    let batch: Option<Batch> = batch.map(|bytes| codec::decode(&bytes)).transpose()?;
    if batch.is_some_and(|batch| batch.state.is_live()) {
        return Ok(None);
    }
    Ok(Some(format!("batch {id} is said not to close, and is not live")))
}

impl StoreReader {
    /// What keeps a batch from closing.
    pub fn anomaly(&self, id: BatchId) -> Result<Option<Anomaly>, StoreError> {
        self.read(Tree::Anomalies, id.as_bytes())
    }

    /// At most `limit` batches that do not close, oldest first, and why.
    pub fn anomalies(&self, limit: usize) -> Result<Vec<(BatchId, Anomaly)>, StoreError> {
        let entries = self.engine.scan(Tree::Anomalies, &[], None, limit)?;
        let read = |(key, value): &(Vec<u8>, Vec<u8>)| {
            keys::batch_at_start(key).map(|id| Ok((id, codec::decode(value)?)))
        };
        entries.iter().filter_map(read).collect()
    }
}
