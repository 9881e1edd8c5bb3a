//! What the eraser carries out: records, then files, then the compacted store.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::Shared;
use super::download;
use super::effects;
use super::finding::{self, read};
use super::registry::{CancelOf, GiveBack, Registry, blocking};
use crate::condition::{Hindrance, safe_mode};
use crate::domain::batch::{Batch, BatchState, Cancel, Then};
use crate::domain::erasure::{Erasure, ErasureState, Subject};
use crate::domain::id::{BatchId, CompanyId, ErasureId, FileId, Timestamp};
use crate::domain::request::{Failure, FailureClass};
use crate::provider::ProviderError;
use crate::provider::wire::FileObject;
use crate::store::StoreError;

/// How often it is looked whether any can go on.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// Erasures that it works at in one look; those behind them have their turn in the next.
const AT_ONCE: usize = 100;
/// Batches whose files are looked for in one go through the provider's list.
const BATCHES: usize = 100;
/// How far the provider's clock may be from ours.
const SKEW: Duration = Duration::from_secs(24 * 3600);
/// One that meets with trouble again and again is left alone so long at the most.
const HELD_MAX: Duration = Duration::from_secs(600);
/// Those that are remembered for that; others are tried with each look.
const HOLDS_MAX: usize = 1000;

/// What a round came to.
pub(super) enum Compaction {
    /// Nothing was to be compacted, or not yet.
    None,
    /// There was no room for it.
    NoRoom,
    /// It was done, or failed.
    Tried,
}

/// Erasures that met with trouble.
pub(super) type Holds = HashMap<ErasureId, Hold>;

/// Why an erasure is left alone for a while.
#[derive(Debug, Clone, Default)]
pub(super) struct Hold {
    /// How often in a row it met with trouble.
    failures: u32,
    /// Until when what failed is not tried, on the monotonic clock.
    until: u64,
    /// What it was.
    pub(super) why: String,
}

/// Leaves an erasure alone for a while, the longer the more often.
fn hold(holds: &mut Holds, id: ErasureId, now: u64, why: String) {
    if holds.len() >= HOLDS_MAX && !holds.contains_key(&id) {
        return;
    }
    let hold = holds.entry(id).or_default();
    let pause = EVERY.saturating_mul(2_u32.saturating_pow(hold.failures + 1)).min(HELD_MAX);
    hold.failures = (hold.failures + 1).min(16);
    hold.until = now.saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
    hold.why = why;
}

/// Removes the records of everything that is to be erased, as far as they can go now.
pub(super) async fn remove_all(shared: &Arc<Shared>, registry: &Addr<Registry>) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let reader = shared.reader.clone();
        let open = blocking(move || reader.open_erasures(after, AT_ONCE)).await?;
        for erasure in open.iter().filter(|erasure| erasure.state == ErasureState::Running) {
            match remove_records(shared, registry, erasure).await {
                Err(err) if !err.is_fatal() => {
                    // The look that follows tells of it, and leaves it alone for a while.
                    tracing::debug!(erasure.id = %erasure.id, error = %err, "erasure {} could not go on", erasure.id);
                }
                gone => drop(gone?),
            }
        }
        match open.last() {
            Some(last) if open.len() == AT_ONCE => after = Some(last.id),
            Some(_) | None => return Ok(()),
        }
    }
}

/// Goes on with everything that is to be erased; one that cannot go on stops no other. The records of all go before the
/// files of one.
pub(super) async fn go_through(
    shared: &Arc<Shared>,
    registry: &Addr<Registry>,
    may_compact: bool,
    holds: &mut Holds,
) -> Result<Compaction, StoreError> {
    remove_all(shared, registry).await?;
    let mut waiting = Vec::new();
    let mut running = HashSet::new();
    let mut after = None;
    loop {
        let reader = shared.reader.clone();
        let open = blocking(move || reader.open_erasures(after, AT_ONCE)).await?;
        for erasure in &open {
            let state = match erasure.state {
                ErasureState::Running => {
                    if holds.contains_key(&erasure.id) {
                        running.insert(erasure.id);
                    }
                    go_on_or_hold(shared, registry, erasure, holds).await?
                }
                ErasureState::Compacting | ErasureState::Done => erasure.state,
            };
            if state == ErasureState::Compacting && waiting.len() < AT_ONCE {
                waiting.push(erasure.id);
            }
        }
        match open.last() {
            Some(last) if open.len() == AT_ONCE => after = Some(last.id),
            Some(_) | None => break,
        }
    }
    let now = shared.clock.monotonic_ms();
    holds.retain(|id, hold| running.contains(id) || hold.until > now);
    if waiting.is_empty() || !may_compact || shared.store.doubt().is_some() {
        return Ok(Compaction::None);
    }
    let Some(room) = shared.disk.room_now(shared.reader.size_on_disk()) else {
        return Ok(Compaction::NoRoom);
    };
    let compacted = shared.store.compact().await;
    drop(room);
    match compacted {
        Ok(()) => {}
        Err(err) if err.is_fatal() => return Err(err),
        Err(err) => {
            tracing::error!(error = %err, "the store could not be compacted, so that erasures are not done; trying again in an hour");
            if let Some(why) = shared.store.doubt() {
                shared.condition.raise(Hindrance::SafeMode, safe_mode(&why));
            }
            return Ok(Compaction::Tried);
        }
    }
    shared.disk.written();
    crash_point!("erase.done.before_commit");
    let done = shared.store.finish_erasures(waiting, shared.clock.now()).await?;
    crash_point!("erase.done.after_commit");
    for id in &done {
        tracing::info!(erasure.id = %id, "erasure {id} is done");
    }
    Ok(Compaction::Tried)
}

/// Goes on with one erasure; where that meets with trouble, it is told, and tried again later.
async fn go_on_or_hold(
    shared: &Arc<Shared>,
    registry: &Addr<Registry>,
    erasure: &Erasure,
    holds: &mut Holds,
) -> Result<ErasureState, StoreError> {
    let (id, now) = (erasure.id, shared.clock.monotonic_ms());
    let held = holds.get(&id).is_some_and(|hold| now < hold.until);
    match go_on(shared, registry, erasure, !held).await {
        Ok((state, Files::Trouble(why))) => {
            hold(holds, id, now, why);
            Ok(state)
        }
        Ok((state, Files::Gone | Files::Left)) => {
            if !held {
                holds.remove(&id);
            }
            Ok(state)
        }
        // The process has to leave.
        Err(err) if err.is_fatal() => Err(err),
        Err(err) => {
            if !held {
                hold(holds, id, now, err.to_string());
                tracing::error!(erasure.id = %id, error = %err, "erasure {id} could not go on; trying again");
            }
            Ok(ErasureState::Running)
        }
    }
}

/// What became of the files of an erasure.
#[derive(Clone, PartialEq, Eq)]
enum Files {
    /// All are deleted.
    Gone,
    /// Some batches are not over, or it is not time to try again.
    Left,
    /// Some cannot be deleted, for this reason.
    Trouble(String),
}

/// Removes the records of one erasure, and has the batches end that are in its way; whether nothing is left of it.
async fn remove_records(
    shared: &Arc<Shared>,
    registry: &Addr<Registry>,
    erasure: &Erasure,
) -> Result<bool, StoreError> {
    let gone = loop {
        crash_point!("erase.chunk.before_commit");
        let chunk = shared.store.erase_chunk(erasure.id, shared.clock.now()).await?;
        crash_point!("erase.chunk.after_commit");
        for id in &chunk.held {
            end_batch(shared, registry, *id, true).await?;
        }
        if chunk.gone || !chunk.moved {
            break chunk.gone;
        }
    };
    // At each look: whoever was asked to end one may not have heard it.
    let all = matches!(erasure.subject, Subject::Company(_));
    end_batches(shared, registry, erasure.id, all).await?;
    Ok(gone)
}

/// Goes on with one erasure as far as it comes now; with its files only if it is time for those.
async fn go_on(
    shared: &Arc<Shared>,
    registry: &Addr<Registry>,
    erasure: &Erasure,
    with_files: bool,
) -> Result<(ErasureState, Files), StoreError> {
    let gone = remove_records(shared, registry, erasure).await?;
    if !gone || !with_files {
        // What is left is in batches that have to give it back first.
        return Ok((ErasureState::Running, Files::Left));
    }
    let exports = match &erasure.subject {
        Subject::Company(company) => erase_exports(shared, company).await?,
        Subject::Session { .. } => Files::Gone,
    };
    let files = match erase_files(shared, erasure.id).await? {
        Files::Gone => exports,
        files @ (Files::Left | Files::Trouble(_)) => files,
    };
    if files != Files::Gone {
        return Ok((ErasureState::Running, files));
    }
    crash_point!("erase.records.before_commit");
    shared.store.note_records_erased(erasure.id).await?;
    crash_point!("erase.records.after_commit");
    let (reader, id) = (shared.reader.clone(), erasure.id);
    let after = blocking(move || reader.erasure(id)).await?;
    Ok((after.map_or(ErasureState::Done, |erasure| erasure.state), files))
}

/// Has a batch come to its end: one that was not sent gives its requests back, the provider is to cancel another one
/// of which nobody waits for anything. Without `any` a batch that has something for others is left alone.
async fn end_batch(
    shared: &Shared,
    registry: &Addr<Registry>,
    id: BatchId,
    any: bool,
) -> Result<(), StoreError> {
    let reader = shared.reader.clone();
    let Some(batch) = blocking(move || reader.batch(id)).await? else { return Ok(()) };
    let is_emptied = batch.counts.outstanding() == 0 && !matches!(batch.state, BatchState::Dissolving { .. });
    if !batch.state.is_live() || !(any || is_emptied) {
        return Ok(());
    }
    if batch.state.is_unsent() {
        let detail = "requests of its batch are erased before it is sent";
        let failure = Failure::new(FailureClass::Transient, "batch_given_back", detail);
        registry.do_send(GiveBack { id, failure });
    } else if batch.counts.outstanding() == 0 && batch.cancel.is_none() {
        let cancel = Cancel { by: "an erasure".to_owned(), at: shared.clock.now(), then: Then::End };
        // Whatever it says: the next look finds the batch over, or asks again.
        if let Ok(Err(err)) = registry.send(CancelOf { id, cancel }).await {
            tracing::info!(batch.id = %id, "batch {id} is not cancelled for an erasure: {err}");
        }
    }
    Ok(())
}

/// Ends every batch that had requests of an erasure; without `any` only those of which nobody waits for anything.
async fn end_batches(
    shared: &Shared,
    registry: &Addr<Registry>,
    erasure: ErasureId,
    any: bool,
) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let reader = shared.reader.clone();
        let page = blocking(move || reader.batches_to_erase(erasure, after, BATCHES)).await?;
        for id in &page {
            end_batch(shared, registry, *id, any).await?;
        }
        match page.last() {
            Some(last) if page.len() == BATCHES => after = Some(*last),
            Some(_) | None => return Ok(()),
        }
    }
}

/// Removes what lies here of a company's exports. A reading that found the company is broken off first; none that begins
/// now finds it.
async fn erase_exports(shared: &Arc<Shared>, company: &CompanyId) -> Result<Files, StoreError> {
    let own = shared.sources.iter().filter(|source| source.company == *company);
    let being_read: Vec<_> = own.filter(|source| source.is_being_read()).collect();
    if !being_read.is_empty() {
        for source in being_read {
            source.break_off();
        }
        return Ok(Files::Left);
    }
    let (spool, company) = (shared.spool.clone(), company.clone());
    match blocking(move || Ok(download::remove_of(&spool, &company))).await? {
        Ok(()) => Ok(Files::Gone),
        Err(err) => {
            let why = format!("an export in the spool cannot be removed: {err}");
            tracing::error!(path = %shared.spool.display(), "{why}; an erasure needs it gone, and tries again");
            Ok(Files::Trouble(why))
        }
    }
}

/// Deletes the files of those batches that are over.
async fn erase_files(shared: &Arc<Shared>, erasure: ErasureId) -> Result<Files, StoreError> {
    let mut files = Files::Gone;
    let mut after = None;
    loop {
        let reader = shared.reader.clone();
        let page = blocking(move || {
            let ids = reader.batches_to_erase(erasure, after, BATCHES)?;
            ids.into_iter().map(|id| Ok((id, reader.batch(id)?))).collect::<Result<Vec<_>, StoreError>>()
        });
        let page = page.await?;
        let over: Vec<Batch> = page
            .iter()
            .filter_map(|(_, batch)| batch.clone())
            .filter(|batch| !batch.state.is_live() && batch.provider == shared.identity)
            .collect();
        let refused = match over.is_empty() {
            true => Ok(HashMap::new()),
            false => delete_remote(shared, &over).await,
        };
        let refused = match refused {
            Ok(refused) => refused,
            Err(err) => {
                tracing::warn!(erasure.id = %erasure, error = %err, "files of an erasure cannot be deleted yet; trying again");
                return Ok(Files::Trouble(format!("files at the provider cannot be deleted yet: {err}")));
            }
        };
        let gone: Vec<_> = over.iter().filter(|batch| !refused.contains_key(&batch.id)).collect();
        for batch in &gone {
            effects::clean(shared, batch).await;
        }
        // One that is not there has no file that is known, and those at another provider may have gone before.
        let without = |batch: &Option<Batch>| batch.as_ref().is_none_or(|batch| !batch.may_have_files());
        let elsewhere =
            page.iter().filter(|(id, batch)| without(batch) && !over.iter().any(|batch| batch.id == *id));
        let mut done = 0;
        for id in gone.iter().map(|batch| batch.id).chain(elsewhere.map(|(id, _)| *id)) {
            crash_point!("erase.files.before_commit");
            shared.store.note_files_erased(erasure, id).await?;
            crash_point!("erase.files.after_commit");
            done += 1;
        }
        for (id, batch) in &page {
            if batch.as_ref().is_some_and(|batch| {
                !batch.state.is_live() && batch.provider != shared.identity && batch.may_have_files()
            }) {
                let why = format!(
                    "batch {id} went to another provider; its files are deleted once that one is configured"
                );
                tracing::warn!(batch.id = %id, "{why}");
                files = Files::Trouble(why);
            }
        }
        if let Some(why) = refused.into_values().next() {
            files = Files::Trouble(why);
        } else if done < page.len() && files == Files::Gone {
            files = Files::Left;
        }
        match page.last() {
            Some((last, _)) if page.len() == BATCHES => after = Some(*last),
            Some(_) | None => return Ok(files),
        }
    }
}

/// Deletes what the provider has of batches: their result files, and every input file that bears their name, also one
/// of an upload whose answer never came. Gives the batches of which it refuses to delete a file, and how; the others' are
/// gone.
async fn delete_remote(
    shared: &Shared,
    batches: &[Batch],
) -> Result<HashMap<BatchId, String>, ProviderError> {
    let known = batches.iter().flat_map(|batch| batch.files.iter().map(|file| (file.clone(), batch.id)));
    let mut files: HashMap<FileId, BatchId> = known.collect();
    let since = batches.iter().map(|batch| batch.created_at).min();
    let since = since.unwrap_or(Timestamp::from_millis(0)).minus(SKEW);
    let names: HashMap<String, BatchId> =
        batches.iter().map(|batch| (finding::file_stem(shared, batch.id), batch.id)).collect();
    let of = |file: &FileObject| {
        let (stem, _) = file.filename.as_deref()?.rsplit_once('-')?;
        names.get(stem).copied()
    };
    let found = finding::find_files(shared, since, |file| of(file).is_some()).await?;
    files.extend(found.into_iter().filter_map(|file| Some((file.id.clone(), of(&file)?))));
    let mut refused = HashMap::new();
    for (file, batch) in files {
        match read(shared, shared.provider.delete_file(&file)).await {
            Ok(()) => {}
            Err(ProviderError::Refused { status, code, .. }) => {
                // The others go all the same; the erasure stays open for this one.
                let why = format!(
                    "the provider refuses to delete file {file} of batch {batch} ({status} {code}): delete it there by hand"
                );
                tracing::error!(file = %file, batch.id = %batch, status, code, "{why}; an erasure needs it gone, and tries again");
                refused.insert(batch, why);
            }
            Err(err) => return Err(err),
        }
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_erasure_in_trouble_is_left_alone_longer_each_time_but_never_for_good() {
        let (mut holds, id) = (Holds::default(), ErasureId::from_bytes([1; 16]));
        let waits: Vec<u64> = (0..40)
            .map(|_| {
                hold(&mut holds, id, 1000, String::new());
                holds[&id].until - 1000
            })
            .collect();
        assert_eq!(waits[..3], [10_000, 20_000, 40_000]);
        assert!(waits[10..].iter().all(|wait| *wait == 600_000), "{waits:?}");
        for number in 0..2 * HOLDS_MAX as u128 {
            hold(&mut holds, ErasureId::from_bytes(number.to_be_bytes()), 0, String::new());
        }
        assert_eq!(holds.len(), HOLDS_MAX);
    }
}
