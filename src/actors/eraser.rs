//! The eraser: carries out what is to be erased, step by step, and goes on with it after a restart.
//!
//! The records go first, then the files of each batch that had something of it, once that batch is over; then the
//! store is compacted, and only then an erasure is done.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::aging::{self, Aging, Place};
use super::effects;
use super::finding::{self, read};
use super::registry::{CancelOf, GiveBack, Registry, blocking};
use super::{Shared, alone, every, later};
use crate::domain::batch::{Batch, Cancel, Then};
use crate::domain::erasure::{Erasure, ErasureState, Subject};
use crate::domain::id::{BatchId, ErasureId, Timestamp};
use crate::domain::request::{Failure, FailureClass};
use crate::provider::ProviderError;
use crate::store::{Removed, StoreError};

/// How often it looks whether it can go on.
const EVERY: Duration = Duration::from_secs(5);
/// Erasures that it works at in one look; those behind them have their turn in the next.
const AT_ONCE: usize = 100;
/// Batches whose files are looked for in one go through the provider's list.
const BATCHES: usize = 100;
/// How far the provider's clock may be from ours.
const SKEW: Duration = Duration::from_secs(24 * 3600);
/// Compactions are so far apart at the least: each copies the whole store.
const COMPACTED_EVERY: Duration = Duration::from_secs(3600);

/// How often it goes through what is old enough to be removed.
const AGING_EVERY: Duration = Duration::from_secs(3600);
/// So long after the start it does for the first time.
const AGING_FIRST: Duration = Duration::from_secs(60);
/// So long others have their turn between two pieces of that.
const AGING_PAUSE: Duration = Duration::from_secs(1);
/// It looks again so long after something stood in the way.
const AGING_HELD_FOR: Duration = Duration::from_secs(60);

/// Erases.
pub struct Eraser {
    shared: Arc<Shared>,
    registry: Addr<Registry>,
    busy: bool,
    /// When the store was compacted last, on the monotonic clock.
    compacted: Option<u64>,
    aging: Aging,
}

impl Eraser {
    /// An eraser that has `registry` end the batches in its way.
    pub fn new(shared: Arc<Shared>, registry: Addr<Registry>) -> Self {
        Self { shared, registry, busy: false, compacted: None, aging: Aging::default() }
    }

    fn look(&mut self, compact: bool, ctx: &mut Context<Self>) {
        if self.busy || self.shared.condition.intake_stopped().is_some() {
            return;
        }
        self.busy = true;
        let (shared, registry) = (self.shared.clone(), self.registry.clone());
        let now = shared.clock.monotonic_ms();
        let hour = u64::try_from(COMPACTED_EVERY.as_millis()).unwrap_or(u64::MAX);
        let may_compact = compact || self.compacted.is_none_or(|at| now.saturating_sub(at) >= hour);
        let round = async move { alone(go_through(&shared, &registry, may_compact)).await };
        ctx.spawn(round.into_actor(self).map(move |gone, this, _| {
            this.busy = false;
            match gone {
                Ok(true) => this.compacted = Some(this.shared.clock.monotonic_ms()),
                Ok(false) => {}
                Err(err) => tracing::error!(error = %err, "an erasure could not go on; trying again"),
            }
        }));
    }
}

impl Eraser {
    /// Begins to go through what is old enough, unless that is still under way.
    fn age(&mut self, ctx: &mut Context<Self>) {
        if !self.aging.running {
            self.aging.running = true;
            self.aging.began_at = Some(self.shared.clock.now());
            self.age_on(Place::default(), ctx);
        }
    }

    fn age_on(&mut self, place: Place, ctx: &mut Context<Self>) {
        // What a store in doubt says of ages is not to be believed, either.
        if self.shared.condition.intake_stopped().is_some() || self.shared.store.doubt().is_some() {
            later(ctx, &self.shared.clock, AGING_HELD_FOR, move |this, ctx| this.age_on(place, ctx));
            return;
        }
        let shared = self.shared.clone();
        let piece = async move { alone(aging::piece(&shared, place)).await };
        ctx.spawn(piece.into_actor(self).map(|gone, this, ctx| match gone {
            Ok((removed, next)) => {
                this.aging.add(removed);
                if removed != Removed::default() {
                    let Removed { requests, sessions } = removed;
                    tracing::info!(requests, sessions, "{requests} requests and {sessions} sessions were removed for their age");
                }
                match next {
                    Some(place) => {
                        later(ctx, &this.shared.clock, AGING_PAUSE, move |this, ctx| this.age_on(place, ctx));
                    }
                    None => {
                        this.aging.running = false;
                        this.aging.ended_at = Some(this.shared.clock.now());
                    }
                }
            }
            Err(err) => {
                this.aging.running = false;
                tracing::error!(error = %err, "the removal by age could not go on; trying again within the hour");
            }
        }));
    }
}

impl Actor for Eraser {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.look(false, ctx);
        every(ctx, &self.shared.clock, EVERY, |this, ctx| this.look(false, ctx));
        // Not only an hour later: a process may be started anew more often than that.
        later(ctx, &self.shared.clock, AGING_FIRST, Self::age);
        every(ctx, &self.shared.clock, AGING_EVERY, Self::age);
    }
}

/// There is something new to erase, or somebody wants the store compacted now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Look {
    /// Whether the store is to be compacted although that was done a short time ago.
    pub compact: bool,
}

impl Handler<Look> for Eraser {
    type Result = ();

    fn handle(&mut self, Look { compact }: Look, ctx: &mut Context<Self>) {
        self.look(compact, ctx);
    }
}

/// Asks how the removal by age does.
#[derive(Message)]
#[rtype(result = "Aging")]
pub struct HowAging;

impl Handler<HowAging> for Eraser {
    type Result = MessageResult<HowAging>;

    fn handle(&mut self, _: HowAging, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.aging)
    }
}

/// Goes on with everything that is to be erased; says whether the store was compacted.
async fn go_through(
    shared: &Arc<Shared>,
    registry: &Addr<Registry>,
    may_compact: bool,
) -> Result<bool, StoreError> {
    let mut waiting = Vec::new();
    let mut after = None;
    loop {
        let reader = shared.reader.clone();
        let open = blocking(move || reader.open_erasures(after, AT_ONCE)).await?;
        for erasure in &open {
            let state = match erasure.state {
                ErasureState::Running => go_on(shared, registry, erasure).await?,
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
    if waiting.is_empty() || !may_compact || shared.store.doubt().is_some() {
        return Ok(false);
    }
    let room = shared.disk.room_for(shared.reader.size_on_disk()).await;
    let compacted = shared.store.compact().await;
    drop(room);
    compacted?;
    shared.disk.written();
    for id in &waiting {
        tracing::info!(erasure.id = %id, "erasure {id} is done");
    }
    shared.store.finish_erasures(waiting, shared.clock.now()).await?;
    Ok(true)
}

/// Goes on with one erasure as far as it comes now.
async fn go_on(
    shared: &Arc<Shared>,
    registry: &Addr<Registry>,
    erasure: &Erasure,
) -> Result<ErasureState, StoreError> {
    loop {
        let chunk = shared.store.erase_chunk(erasure.id, shared.clock.now()).await?;
        for id in &chunk.held {
            end_batch(shared, registry, *id).await?;
        }
        if chunk.gone {
            break;
        }
        if !chunk.moved {
            // What is left is in batches that have to give it back first.
            return Ok(ErasureState::Running);
        }
    }
    if let Subject::Company(_) = erasure.subject {
        end_batches(shared, registry, erasure.id).await?;
    }
    if !erase_files(shared, erasure.id).await? {
        return Ok(ErasureState::Running);
    }
    shared.store.note_records_erased(erasure.id).await?;
    let (reader, id) = (shared.reader.clone(), erasure.id);
    let after = blocking(move || reader.erasure(id)).await?;
    Ok(after.map_or(ErasureState::Done, |erasure| erasure.state))
}

/// Has a batch of which nobody waits for anything come to its end: one that was not sent gives its requests back, the
/// provider is to cancel another one.
async fn end_batch(shared: &Shared, registry: &Addr<Registry>, id: BatchId) -> Result<(), StoreError> {
    let reader = shared.reader.clone();
    let Some(batch) = blocking(move || reader.batch(id)).await? else { return Ok(()) };
    if !batch.state.is_live() {
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

/// Ends every batch that had requests of an erased company.
async fn end_batches(
    shared: &Shared,
    registry: &Addr<Registry>,
    erasure: ErasureId,
) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let reader = shared.reader.clone();
        let page = blocking(move || reader.batches_to_erase(erasure, after, BATCHES)).await?;
        for id in &page {
            end_batch(shared, registry, *id).await?;
        }
        match page.last() {
            Some(last) if page.len() == BATCHES => after = Some(*last),
            Some(_) | None => return Ok(()),
        }
    }
}

/// Deletes the files of those batches that are over; says whether that were all.
async fn erase_files(shared: &Arc<Shared>, erasure: ErasureId) -> Result<bool, StoreError> {
    let mut all = true;
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
        if !over.is_empty()
            && let Err(err) = delete_remote(shared, &over).await
        {
            tracing::warn!(erasure.id = %erasure, error = %err, "files of an erasure cannot be deleted yet; trying again");
            return Ok(false);
        }
        for batch in &over {
            effects::clean(shared, batch).await;
            shared.store.note_files_erased(erasure, batch.id).await?;
        }
        // One that is not there has no file that is known.
        for (id, _) in page.iter().filter(|(_, batch)| batch.is_none()) {
            shared.store.note_files_erased(erasure, *id).await?;
        }
        for (id, batch) in &page {
            if batch.as_ref().is_some_and(|batch| !batch.state.is_live() && batch.provider != shared.identity)
            {
                tracing::warn!(batch.id = %id, "batch {id} went to another provider; its files are deleted once that one is configured");
            }
        }
        all &= over.len() + page.iter().filter(|(_, batch)| batch.is_none()).count() == page.len();
        match page.last() {
            Some((last, _)) if page.len() == BATCHES => after = Some(*last),
            Some(_) | None => return Ok(all),
        }
    }
}

/// Deletes what the provider has of batches: their result files, and every input file that bears their name, also one
/// of an upload whose answer never came.
async fn delete_remote(shared: &Shared, batches: &[Batch]) -> Result<(), ProviderError> {
    let known = batches.iter().flat_map(|batch| [&batch.input, &batch.output, &batch.error]).flatten();
    let mut files: HashSet<_> = known.cloned().collect();
    let since = batches.iter().map(|batch| batch.created_at).min();
    let since = since.unwrap_or(Timestamp::from_millis(0)).minus(SKEW);
    let names: HashSet<String> = batches.iter().map(|batch| finding::file_stem(shared, batch.id)).collect();
    let found = finding::find_files(shared, since, |file| {
        let stem = file.filename.as_deref().and_then(|name| name.rsplit_once('-'));
        stem.is_some_and(|(stem, _)| names.contains(stem))
    });
    files.extend(found.await?);
    for file in files {
        read(shared, shared.provider.delete_file(&file)).await?;
    }
    Ok(())
}
