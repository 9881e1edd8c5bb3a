//! What was begun at the provider and may still surface: uploads, and the intents of the last days, from which it is also
//! known how many create calls went out lately.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::{Key, Tree};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, codec};
use crate::domain::batch::{Batch, Intent};
use crate::domain::id::{BatchId, Timestamp};

/// An intent that was given up is looked for so long after it was made.
const WATCHED_FOR: Duration = Duration::from_secs(48 * 3600);

/// An intent as it is kept after its batch has gone on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotedIntent {
    /// Whose.
    pub batch: BatchId,
    /// What was stored before the call.
    pub intent: Intent,
    /// Whether it was given up: what comes of it later is a shadow.
    pub superseded: bool,
}

fn key(intent: &Intent) -> Vec<u8> {
    Key::new().time(intent.at).text(&intent.nonce.to_string()).done()
}

pub(super) fn note(tx: &mut Tx<'_>, batch: BatchId, intent: &Intent) -> Result<(), StoreError> {
    let noted = NotedIntent { batch, intent: intent.clone(), superseded: false };
    tx.write(Tree::Intents, key(intent), &noted)
}

pub(super) fn supersede(tx: &mut Tx<'_>, batch: BatchId, intent: &Intent) -> Result<(), StoreError> {
    let noted = NotedIntent { batch, intent: intent.clone(), superseded: true };
    tx.write(Tree::Intents, key(intent), &noted)
}

impl Store {
    /// Notes that an upload is about to be begun, or with `came_to_nothing` that one surely left no file. That the file is there
    /// is noted with the step that its id brings.
    pub async fn note_upload(&self, id: BatchId, came_to_nothing: bool) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                let mut batch: Batch = tx
                    .read(Tree::Batches, id.as_bytes())?
                    .ok_or_else(|| StoreError::NotFound { what: "batch", id: id.to_string() })?;
                batch.unsure_uploads = match came_to_nothing {
                    false => batch.unsure_uploads.saturating_add(1),
                    true => batch.unsure_uploads.saturating_sub(1),
                };
                // Its revision stays: its actor has read nothing of what changes here.
                tx.write(Tree::Batches, id.as_bytes().to_vec(), &batch)
            })
            .await
    }

    /// Forgets intents that nothing can come of any more, at most 250 at once; says how many.
    pub async fn forget_intents(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.committer
            .commit(1, move |tx| {
                let end = Key::new().time(now.minus(WATCHED_FOR)).done();
                let old = tx.scan(Tree::Intents, &[], Some(&end), super::batches::CHUNK)?;
                for (key, _) in &old {
                    tx.remove(Tree::Intents, key.clone());
                }
                if !old.is_empty() {
                    crash_point!("intents.before_commit");
                }
                Ok(old.len())
            })
            .await
    }
}

impl StoreReader {
    /// The intents since `since`, oldest first, at most `limit`.
    pub fn intents_since(&self, since: Timestamp, limit: usize) -> Result<Vec<NotedIntent>, StoreError> {
        let entries = self.engine.scan(Tree::Intents, &Key::new().time(since).done(), None, limit)?;
        entries.into_iter().map(|(_, value)| codec::decode(&value)).collect()
    }
}
