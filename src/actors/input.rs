//! The input file of a batch: where it lies in the spool, and how it is made of its members' lines.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::effects::{CHUNK_LINES, as_stored, beside, remove};
use super::{Shared, intake, spool};
use crate::domain::batch::Batch;
use crate::domain::id::RequestId;
use crate::domain::request::Source;
use crate::provider::jsonl;
use crate::store::StoreError;

/// Where it lies.
pub(super) fn path_of(shared: &Shared, batch: &Batch) -> PathBuf {
    shared.spool.join(format!("{}-input.jsonl", batch.id))
}

/// Sees to it that the whole input file lies in the spool, and says how long it is; waits while there is no room for it. A
/// request whose text is lost is left out: it holds up no other.
pub(super) async fn prepare(shared: &Arc<Shared>, batch: &Batch, path: &Path) -> io::Result<u64> {
    let mut batch = batch.clone();
    loop {
        if batch.counts.outstanding() == 0 {
            return Err(io::Error::other("nothing of it is left to be sent"));
        }
        let checked = path.to_owned();
        if beside(move || spool::check(&checked)).await?.is_some_and(|file| file.len() == batch.input_bytes) {
            return Ok(batch.input_bytes);
        }
        let room = shared.disk.room_for(batch.input_bytes).await;
        let (worker, owned) = (shared.clone(), batch.clone());
        let written = beside(move || write(&worker, &owned)).await;
        drop(room);
        match written {
            Ok(()) => {
                shared.disk.written();
                return Ok(batch.input_bytes);
            }
            Err(err) => {
                // Half a file only takes room.
                remove(&spool::names(path)).await;
                let lost = err.get_ref().and_then(|err| err.downcast_ref::<LineLost>());
                if let Some(LineLost { request, why }) = lost {
                    tracing::error!(batch.id = %batch.id, request.id = %request, "request {request} fails alone: {why}");
                    let noted =
                        shared.store.lose_input(batch.id, *request, why.to_string(), shared.clock.now());
                    noted.await.map_err(io::Error::other)?;
                    let stored = as_stored(shared, &batch).await;
                    if stored.counts == batch.counts {
                        return Err(err);
                    }
                    batch = stored;
                    continue;
                }
                if !shared.disk.is_to_be_tried_again(path, &err).await {
                    return Err(err);
                }
            }
        }
    }
}

/// Writes the input file from the members, byte for byte as they were taken in.
fn write(shared: &Shared, batch: &Batch) -> io::Result<()> {
    spool::write(&path_of(shared, batch), |file| {
        let mut after: Option<RequestId> = None;
        loop {
            let page = shared.reader.outstanding(batch.id, after, CHUNK_LINES).map_err(io::Error::other)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(*last);
            for id in page {
                file.write_all(&line_of(shared, id).map_err(|err| lost_line(id, err))?)?;
            }
        }
    })
}

/// The line of a request cannot be made: its text is gone, or another one than was taken in.
#[derive(Debug, thiserror::Error)]
#[error("its line cannot be made: {why}")]
struct LineLost {
    request: RequestId,
    why: StoreError,
}

/// Whether it is only this line, or the store that cannot be read.
fn lost_line(request: RequestId, err: StoreError) -> io::Error {
    if matches!(err, StoreError::NotFound { .. } | StoreError::Broken(_) | StoreError::Codec(_)) {
        io::Error::other(LineLost { request, why: err })
    } else {
        io::Error::other(err)
    }
}

fn line_of(shared: &Shared, id: RequestId) -> Result<Vec<u8>, StoreError> {
    let missing = |what| StoreError::NotFound { what, id: id.to_string() };
    let request = shared.reader.request(id)?.ok_or_else(|| missing("request"))?;
    let body = match &request.source {
        Source::Session { session, version, prompt } => {
            let content = shared.reader.content(*session, *version)?;
            let content = content.ok_or_else(|| missing("session content of request"))?;
            let misfit = match request.repair {
                Some(number) => Some(
                    shared
                        .reader
                        .misfit(id, number)?
                        .ok_or_else(|| missing("answer that did not fit of request"))?,
                ),
                None => None,
            };
            intake::analysis_body(&request.group.model, *prompt, &content, misfit.as_ref())
        }
        Source::Generic { .. } => {
            let body = shared.reader.body(id)?.ok_or_else(|| missing("body of request"))?;
            String::from_utf8(body).map_err(|err| StoreError::Codec(err.to_string()))?
        }
    };
    let line = jsonl::input_line(id, request.group.endpoint, &body);
    if crc32c::crc32c(&line) != request.line_crc {
        return Err(StoreError::Broken(format!("the line of request {id} is not what was taken in")));
    }
    Ok(line)
}
