//! Which members of a batch the provider named when it refused the batch for its lines.

use std::collections::HashMap;
use std::sync::Arc;

use super::Shared;
use super::effects::CHUNK_LINES;
use super::registry::blocking;
use crate::domain::batch::{Batch, BatchState, Ended};
use crate::domain::id::RequestId;
use crate::domain::request::Failure;
use crate::domain::retry::BatchFailure;
use crate::store::StoreError;

/// The requests whose lines the provider named when it refused the batch.
pub async fn named_lines(
    shared: &Arc<Shared>,
    batch: &Batch,
) -> Result<HashMap<RequestId, Failure>, StoreError> {
    let Some(ended) = ended(batch) else { return Ok(HashMap::new()) };
    if has_moved(batch) {
        // Which line of the file was whose is not known any more; without names the batch is tried again.
        return Ok(HashMap::new());
    }
    let BatchFailure::Lines(faults) = ended.refusal() else { return Ok(HashMap::new()) };
    let (shared, id) = (shared.clone(), batch.id);
    blocking(move || {
        let mut named = HashMap::new();
        let mut faults = faults.into_iter().peekable();
        let (mut after, mut line) = (None, 0);
        while faults.peek().is_some() {
            let page = shared.reader.members(id, after, CHUNK_LINES)?;
            let Some(last) = page.last() else { break };
            after = Some(*last);
            for request in page {
                line += 1;
                if let Some(fault) = faults.next_if(|fault| fault.line == line) {
                    named.insert(request, fault.failure);
                }
            }
        }
        let moved = shared.reader.batch(id)?.is_none_or(|batch| has_moved(&batch));
        Ok(if moved { HashMap::new() } else { named })
    })
    .await
}

/// Whether a member was erased, or answered from elsewhere after it was sent: it may have been in the file, or not.
fn has_moved(batch: &Batch) -> bool {
    batch.counts.erased > 0 || batch.counts.completed > 0
}

fn ended(batch: &Batch) -> Option<&Ended> {
    use BatchState as S;
    match &batch.state {
        S::Settling { ended, .. }
        | S::Downloading { ended, .. }
        | S::Applying { ended, .. }
        | S::Closing { ended, .. } => Some(ended),
        S::Filling
        | S::Sealed
        | S::Uploading { .. }
        | S::Ready { .. }
        | S::Creating { .. }
        | S::Uncertain { .. }
        | S::Fencing { .. }
        | S::Parked { .. }
        | S::Observing { .. }
        | S::Dissolving { .. }
        | S::Cleaning { .. }
        | S::Closed { .. } => None,
    }
}
