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
use crate::store::{StoreError, StoreReader};

/// The requests whose lines the provider named when it refused the batch, read off the actors' thread.
pub async fn named_lines(
    shared: &Arc<Shared>,
    batch: &Batch,
) -> Result<HashMap<RequestId, Failure>, StoreError> {
    if ended(batch).is_none() {
        return Ok(HashMap::new());
    }
    let (reader, batch) = (shared.reader.clone(), batch.clone());
    blocking(move || named_in(&reader, &batch)).await
}

/// The same from the store alone.
pub fn named_in(reader: &StoreReader, batch: &Batch) -> Result<HashMap<RequestId, Failure>, StoreError> {
    let mut named = HashMap::new();
    let Some(ended) = ended(batch) else { return Ok(named) };
    let BatchFailure::Lines(faults) = ended.refusal() else { return Ok(named) };
    if has_moved(batch) {
        // Which line of the file was whose is not known any more; without names the batch is tried again.
        return Ok(named);
    }
    let mut faults = faults.into_iter().peekable();
    let (mut after, mut line) = (None, 0);
    while faults.peek().is_some() {
        let page = reader.members(batch.id, after, CHUNK_LINES)?;
        let Some(last) = page.last() else { break };
        after = Some(*last);
        for request in page {
            line += 1;
            if let Some(fault) = faults.next_if(|fault| fault.line == line) {
                named.insert(request, fault.failure);
            }
        }
    }
    // It may have happened while they were read.
    let moved = reader.batch(batch.id)?.is_none_or(|batch| has_moved(&batch));
    Ok(if moved { HashMap::new() } else { named })
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
