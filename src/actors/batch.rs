//! One batch: event, step, commit, effects. The only writer of its record and of its members' outcomes.

use std::collections::HashMap;
use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::OwnedSemaphorePermit;

use super::account::{Cause, Success};
use super::creator::{Creator, Nudge};
use super::effects::{self, Chunk, ChunkError};
use super::finding::{self, Looking};
use super::registry::{Died, Moved, Registry};
use super::{CreatingOne, Shared, later, named, spool};
use crate::domain::batch::{Batch, BatchState, Cancel, ResultKind, Then};
use crate::domain::effect::Effect;
use crate::domain::event::{Event, Observation};
use crate::domain::id::{BatchId, RequestId, Revision, Timestamp};
use crate::domain::request::{Failure, FailureClass};
use crate::domain::step::{self, Change, Step};
use crate::store::{AppliedLine, Store, StoreError};

/// Tells the registry when the actor is gone, however it went: also by a panic.
struct Obituary {
    registry: Addr<Registry>,
    id: BatchId,
    retired: bool,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        let died = Died { id: self.id, panicked: std::thread::panicking(), retired: self.retired };
        self.registry.do_send(died);
    }
}

/// A live batch.
pub struct BatchActor {
    batch: Batch,
    fresh: bool,
    shared: Arc<Shared>,
    creator: Option<Addr<Creator>>,
    obituary: Obituary,
    /// When this process began to look for an uncertain creation, on the monotonic clock.
    uncertain_since: Option<u64>,
    /// When this process first heard of a batch that has ended without its files, on the monotonic clock.
    settling_since: Option<u64>,
    /// Whether it was told that the list in which it is looked for is not proven to be ours.
    told_unproven: bool,
    /// Why the provider does not delete an input file, as it was told last.
    told_unfenced: Option<String>,
    /// The lines that the provider said are wrong, once they have been looked up.
    named: Option<HashMap<RequestId, Failure>>,
    /// When the actor began, by the wall clock and by the monotonic one.
    began: (Timestamp, u64),
    /// The call that was begun last.
    running: Option<SpawnHandle>,
    /// The result file as it was when it was found to be whole.
    whole: Option<(ResultKind, spool::Stamp)>,
    /// Held from a create call until what came of it is stored.
    creating: Option<CreatingOne>,
}

impl BatchActor {
    pub(super) fn new(
        batch: Batch,
        fresh: bool,
        shared: Arc<Shared>,
        registry: Addr<Registry>,
        creator: Option<Addr<Creator>>,
    ) -> Self {
        let began = (shared.clock.now(), shared.clock.monotonic_ms());
        let obituary = Obituary { registry, id: batch.id, retired: false };
        Self {
            batch,
            fresh,
            shared,
            creator,
            obituary,
            uncertain_since: None,
            settling_since: None,
            told_unproven: false,
            told_unfenced: None,
            began,
            named: None,
            running: None,
            whole: None,
            creating: None,
        }
    }

    /// Wall time by a clock that nobody turns: what is given up after some time must not be by a jump.
    fn steady_now(&self) -> Timestamp {
        let (wall, monotonic) = self.began;
        let since = self.shared.clock.monotonic_ms().saturating_sub(monotonic);
        wall.plus(std::time::Duration::from_millis(since))
    }

    /// When an answer about the batch came. Of one whose files are waited for only the time counts in which this process
    /// waited: a restart knows no clock that nobody turned meanwhile.
    fn answered_at(&mut self) -> Timestamp {
        let BatchState::Settling { since, .. } = &self.batch.state else { return self.steady_now() };
        let now = self.shared.clock.monotonic_ms();
        let waited = now.saturating_sub(*self.settling_since.get_or_insert(now));
        since.plus(std::time::Duration::from_millis(waited))
    }

    fn happened(&mut self, event: &Event, ctx: &mut Context<Self>) {
        self.told_unproven |= *event == Event::ListUnproven;
        if let Event::NotFenced { why } = event {
            self.told_unfenced = Some(why.clone());
        }
        // A store that cannot be read is told where it is written.
        let orders = self.shared.reader.orders(&self.batch).unwrap_or_else(|_| self.batch.orders());
        match step::step(&self.batch.state, orders, event, &self.shared.policy) {
            Ok(step) if step.changes_nothing(&self.batch.state) => self.run(step.effects, ctx),
            Ok(step) => self.commit(event.clone(), step, ctx),
            Err(illegal) => {
                tracing::error!(batch.id = %self.batch.id, error = %illegal, "a bug: {illegal}");
                ctx.stop();
            }
        }
    }

    fn commit(&mut self, event: Event, step: Step, ctx: &mut Context<Self>) {
        let (shared, now) = (self.shared.clone(), self.shared.clock.now());
        let (id, revision) = (self.batch.id, self.batch.revision);
        crash_point!("step.before_commit");
        let commit = async move {
            if let Event::IntentMade(intent) = event {
                // There may be no room any more; then it is another step, and nothing is created.
                let intended = shared.store.commit_intent(id, revision, intent, shared.policy, now).await?;
                if !matches!(intended.0.state, BatchState::Creating { .. }) {
                    shared.pace.not_created(&intended.0.group.company);
                }
                return Ok(intended);
            }
            let batch = shared.store.commit_step(id, revision, step.clone(), now).await?;
            Ok((batch, step))
        };
        self.store_then(commit, ctx, |this, (batch, step), ctx| this.advance(batch, step, ctx));
    }

    /// Waits for a commit; `wait` shuts the mailbox until it is on disk.
    fn store_then<T: 'static>(
        &mut self,
        commit: impl Future<Output = Result<T, StoreError>> + 'static,
        ctx: &mut Context<Self>,
        then: impl FnOnce(&mut Self, T, &mut Context<Self>) + 'static,
    ) {
        ctx.wait(commit.into_actor(self).map(move |stored, this, ctx| match stored {
            Ok(stored) => then(this, stored, ctx),
            Err(StoreError::Unproven { why, .. }) => {
                tracing::error!(batch.id = %this.batch.id, "batch {} does not close, and nothing of it is lost: {why}", this.batch.id);
                ctx.stop();
            }
            Err(err) => {
                tracing::error!(batch.id = %this.batch.id, error = %err, "a step of batch {} was not stored", this.batch.id);
                ctx.stop();
            }
        }));
    }

    /// The step is stored: tell of it and act.
    fn advance(&mut self, batch: Batch, step: Step, ctx: &mut Context<Self>) {
        crash_point!("step.after_commit");
        self.batch = batch;
        if matches!(self.batch.state, BatchState::Dissolving { .. })
            && let Some(running) = self.running.take()
        {
            // Whatever it waits for, or sends, is of no use any more.
            ctx.cancel_future(running);
        }
        if step.changes.contains(&Change::Admitted) {
            self.shared.account.succeeded(Success::Admitted);
            self.obituary.registry.do_send(Admitted { model: self.batch.group.model.clone() });
        }
        if step.changes.contains(&Change::Overdue) {
            tracing::warn!(batch.id = %self.batch.id, "batch {} should have ended hours ago, says the provider itself", self.batch.id);
        }
        let batch = &self.batch;
        if let Some(story) = &step.story {
            tracing::info!(
                batch.id = %batch.id,
                company.id = %batch.group.company,
                step = batch.state.label(),
                status = batch.state.status().label(),
                provider_batch = batch.provider_batch.as_ref().map(|id| id.as_str()),
                members = batch.counts.members,
                completed = batch.counts.completed,
                failed = batch.counts.failed,
                returned = batch.counts.returned,
                "batch {}: {story}", batch.id,
            );
        }
        if !matches!(batch.state, BatchState::Uncertain { .. } | BatchState::Fencing { .. }) {
            self.uncertain_since = None;
            self.told_unproven = false;
            self.told_unfenced = None;
        }
        let observed = if batch.state.is_observed() { batch.provider_batch.clone() } else { None };
        if !matches!(batch.state, BatchState::Creating { .. }) {
            // A cancel that is ordered during the call does not end the call.
            self.creating = None;
        }
        self.obituary.registry.do_send(Moved { id: batch.id, observed });
        self.run(step.effects, ctx);
    }

    fn run(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        for effect in effects {
            self.run_one(effect, ctx);
        }
    }

    fn run_one(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        let (shared, batch) = (self.shared.clone(), self.batch.clone());
        match effect {
            Effect::Fill => self.fill(ctx),
            Effect::EndFilling => {
                let event = Event::FillEnded { members: batch.counts.members, at: shared.clock.now() };
                self.happened(&event, ctx);
                if let Some(creator) = &self.creator {
                    creator.do_send(Nudge);
                }
            }
            Effect::AwaitRelease => self.spawn(ctx, async move {
                effects::creation_enabled(&shared).await;
                Event::Released
            }),
            Effect::WakeAt(at) => {
                let after = step::wait_for(at, shared.clock.now());
                later(ctx, &shared.clock, after, |this, ctx| {
                    this.in_turn(ctx, |this, ctx| this.happened(&Event::WaitEnded, ctx));
                });
            }
            Effect::UploadInput { upload } => {
                self.spawn(ctx, async move { effects::upload(&shared, &batch, upload, false).await });
            }
            Effect::FindOrUploadInput { upload } => {
                self.spawn(ctx, async move { effects::upload(&shared, &batch, upload, true).await });
            }
            Effect::MakeIntent => {
                let BatchState::Ready { input, .. } = batch.state.clone() else { return };
                self.spawn(ctx, async move { effects::make_intent(&shared, &batch, input).await });
            }
            Effect::CreateBatch(intent) => {
                self.creating = Some(shared.creating.begin());
                self.spawn(ctx, async move { effects::create(&shared, &batch, intent).await });
            }
            Effect::Sweep(intent) => {
                let first = self.uncertain_since.is_none();
                let since_ms = *self.uncertain_since.get_or_insert_with(|| shared.clock.monotonic_ms());
                // The last search has told all when it comes to that.
                let told = self.told_unproven || matches!(batch.state, BatchState::Fencing { .. });
                let looking = Looking { since_ms, first, told };
                self.spawn(ctx, async move { finding::sweep(&shared, intent, looking).await });
            }
            Effect::Fence(intent) => {
                let told = self.told_unfenced.clone();
                self.spawn(ctx, async move { effects::fence(&shared, &intent, told.as_deref()).await });
            }
            Effect::Unpark => self.happened(&Event::Unparked, ctx),
            // The registry knows from `Moved`; the poller asks with its next tick.
            Effect::Observe => {}
            Effect::CancelRemote => {
                let Some(id) = batch.provider_batch.clone() else { return };
                self.spawn(ctx, async move { effects::cancel(&shared, &id).await });
            }
            Effect::PauseAccount { why } => {
                shared.account.pause(shared.clock.as_ref(), Cause::Admission, &why);
            }
            Effect::Download { kind, file } => {
                self.spawn(ctx, async move { effects::download(&shared, &batch, kind, file).await });
            }
            Effect::ApplyLines { kind, offset } => self.apply_lines(kind, offset, ctx),
            Effect::CloseChunk => self.close_chunk(ctx),
            Effect::Clean => self.spawn(ctx, async move { effects::clean(&shared, &batch).await }),
            Effect::Retire => {
                self.obituary.retired = true;
                ctx.stop();
            }
        }
    }

    /// Runs a call beside the mailbox; what it says comes back as an event.
    fn spawn(&mut self, ctx: &mut Context<Self>, call: impl Future<Output = Event> + 'static) {
        let running = ctx.spawn(call.into_actor(self).map(|mut event, this, ctx| {
            if let Event::Observed { at, .. } = &mut event {
                *at = this.answered_at();
            }
            if let Some(turn) = this.in_turn(ctx, move |this, ctx| this.happened(&event, ctx)) {
                this.running = Some(turn);
            }
        }));
        self.running = Some(running);
    }

    /// Runs `then` once no commit is waited for. actix polls the calls of an actor once more when a message has just
    /// begun such a wait: two steps would start from the same record, and the second not be stored.
    fn in_turn(
        &mut self,
        ctx: &mut Context<Self>,
        then: impl FnOnce(&mut Self, &mut Context<Self>) + 'static,
    ) -> Option<SpawnHandle> {
        if !ctx.waiting() {
            then(self, ctx);
            return None;
        }
        let turn = actix::fut::wrap_future::<_, Self>(std::future::ready(()));
        Some(ctx.spawn(turn.map(|(), this, ctx| {
            if let Some(turn) = this.in_turn(ctx, then) {
                this.running = Some(turn);
            }
        })))
    }

    fn fill(&mut self, ctx: &mut Context<Self>) {
        let (shared, limits) = (self.shared.clone(), self.shared.limits);
        let (id, revision) = (self.batch.id, self.batch.revision);
        crash_point!("cut.before_commit");
        let cut = async move {
            shared.disk.room_to_finish().await;
            shared.store.cut_chunk(id, revision, limits).await
        };
        self.store_then(cut, ctx, |this, cut, ctx| {
            crash_point!("cut.after_commit");
            this.batch = cut.batch;
            this.run_one(if cut.done { Effect::EndFilling } else { Effect::Fill }, ctx);
        });
    }

    fn apply_lines(&mut self, kind: ResultKind, offset: u64, ctx: &mut Context<Self>) {
        let (shared, batch) = (self.shared.clone(), self.batch.clone());
        let whole = self.whole.take().filter(|(of, _)| *of == kind).map(|(_, stamp)| stamp);
        let read = async move { effects::read_chunk(&shared, batch, kind, offset, whole).await };
        ctx.spawn(read.into_actor(self).map(move |chunk, this, ctx| {
            this.in_turn(ctx, move |this, ctx| this.chunk_read(kind, offset, chunk, ctx));
        }));
    }

    fn chunk_read(
        &mut self,
        kind: ResultKind,
        offset: u64,
        chunk: Result<Chunk, ChunkError>,
        ctx: &mut Context<Self>,
    ) {
        match chunk {
            Ok(Chunk { lines, to, end, whole, place }) => {
                self.whole = Some((kind, whole));
                self.store_lines(&Event::LinesRead { kind, from: offset, to, end }, (lines, place), ctx);
            }
            Err(ChunkError::Gone) => self.happened(&Event::CopyLost { kind }, ctx),
            Err(ChunkError::Failed(err)) => {
                tracing::error!(batch.id = %self.batch.id, error = %err, "a result file of batch {} cannot be read here", self.batch.id);
                ctx.stop();
            }
        }
    }

    fn store_lines(
        &mut self,
        event: &Event,
        (lines, place): (Vec<AppliedLine>, Option<OwnedSemaphorePermit>),
        ctx: &mut Context<Self>,
    ) {
        let step = match step::step(&self.batch.state, self.batch.orders(), event, &self.shared.policy) {
            Ok(step) => step,
            Err(illegal) => {
                tracing::error!(batch.id = %self.batch.id, error = %illegal, "a bug: {illegal}");
                return ctx.stop();
            }
        };
        let (store, now, kept) = (self.shared.store.clone(), self.shared.clock.now(), step.clone());
        let (id, revision) = (self.batch.id, self.batch.revision);
        crash_point!("apply.before_commit");
        let apply = async move {
            let _place = place;
            store.apply_lines(id, revision, kept, lines, now).await
        };
        self.store_then(apply, ctx, move |this, batch, ctx| {
            crash_point!("apply.after_commit");
            this.advance(batch, step, ctx);
        });
    }

    fn close_chunk(&mut self, ctx: &mut Context<Self>) {
        let (shared, batch, known) = (self.shared.clone(), self.batch.clone(), self.named.take());
        let close = async move {
            shared.disk.room_to_finish().await;
            let named = match known {
                Some(named) => named,
                None => named::named_lines(&shared, &batch).await?,
            };
            let now = shared.clock.now();
            let (retry, policy) = (shared.retry, shared.policy);
            crash_point!("close.before_commit");
            let closed =
                shared.store.close_chunk(batch.id, batch.revision, named.clone(), retry, policy, now).await?;
            crash_point!("close.after_commit");
            Ok((closed, named))
        };
        self.store_then(close, ctx, |this, (closed, named), ctx| {
            this.named = Some(named);
            this.advance(closed.batch, closed.step, ctx);
        });
    }
}

impl Actor for BatchActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if self.batch.provider != self.shared.identity && self.batch.state.is_unsent() {
            let detail = "it was cut for another provider than the one configured now, and never sent";
            let failure = Failure::new(FailureClass::Transient, "other_provider", detail);
            return self.happened(&Event::GivenBack(failure), ctx);
        }
        let resume = || step::resume(&self.batch.state, self.batch.orders());
        let effects = if self.fresh { vec![Effect::Fill] } else { resume() };
        self.run(effects, ctx);
    }
}

/// The provider was asked about the batch.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Observed {
    /// What it said.
    pub seen: Observation,
}

impl Handler<Observed> for BatchActor {
    type Result = ();

    fn handle(&mut self, Observed { seen }: Observed, ctx: &mut Context<Self>) {
        if self.batch.provider_batch.as_ref() == Some(&seen.id) {
            let at = self.answered_at();
            self.happened(&Event::Observed { seen, at }, ctx);
        }
    }
}

/// The provider says that it does not know the batch.
#[derive(Message)]
#[rtype(result = "()")]
pub struct NotKnown;

impl Handler<NotKnown> for BatchActor {
    type Result = ();

    fn handle(&mut self, NotKnown: NotKnown, ctx: &mut Context<Self>) {
        let at = self.answered_at();
        self.happened(&Event::NotKnown { at }, ctx);
    }
}

/// An operator has had a look: try the batch again if it was parked.
#[derive(Message)]
#[rtype(result = "()")]
pub struct TryAgain;

impl Handler<TryAgain> for BatchActor {
    type Result = ();

    fn handle(&mut self, TryAgain: TryAgain, ctx: &mut Context<Self>) {
        if matches!(self.batch.state, BatchState::Parked { .. }) {
            self.happened(&Event::Unparked, ctx);
        }
    }
}

/// The provider admitted a batch of this model. The registry tells all: halves that were parked because none was are tried
/// again.
#[derive(Clone, Message)]
#[rtype(result = "()")]
pub(super) struct Admitted {
    pub model: String,
}

impl Handler<Admitted> for BatchActor {
    type Result = ();

    fn handle(&mut self, Admitted { model }: Admitted, ctx: &mut Context<Self>) {
        let batch = &self.batch;
        let is_parked_half = matches!(batch.state, BatchState::Parked { .. }) && batch.members_max.is_some();
        if is_parked_half
            && batch.group.model == model
            && self.shared.reader.orders(batch).is_ok_and(|orders| orders.at_fault)
        {
            self.happened(&Event::Unparked, ctx);
        }
    }
}

/// Give the members back, as far as the batch was never sent.
#[derive(Message)]
#[rtype(result = "()")]
pub struct GiveUp(pub Failure);

impl Handler<GiveUp> for BatchActor {
    type Result = ();

    fn handle(&mut self, GiveUp(failure): GiveUp, ctx: &mut Context<Self>) {
        if self.batch.state.is_unsent() && !matches!(self.batch.state, BatchState::Dissolving { .. }) {
            self.happened(&Event::GivenBack(failure), ctx);
        }
    }
}

/// Why a batch is not cancelled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCancelled {
    /// There is none.
    #[error("there is no such batch")]
    Unknown,
    /// It has come to its end.
    #[error("the batch is over")]
    Over,
    /// That was ordered before, with another wish for the rest.
    #[error("the batch is being cancelled already, and what it does not finish will {}", .0.label())]
    Ordered(Then),
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Stores an order to cancel: by the batch's actor, or for a batch that has none at the moment.
pub(super) async fn store_order(
    store: Store,
    id: BatchId,
    revision: Revision,
    step: Step,
    now: Timestamp,
) -> Result<Batch, StoreError> {
    crash_point!("cancel.order.before_commit");
    let batch = store.commit_step(id, revision, step, now).await?;
    crash_point!("cancel.order.after_commit");
    Ok(batch)
}

/// Cancel the batch. Answers when the order is stored; the rest follows by itself, also after a crash.
#[derive(Message)]
#[rtype(result = "Result<Batch, NotCancelled>")]
pub struct CancelBatch(pub Cancel);

impl Handler<CancelBatch> for BatchActor {
    type Result = ResponseFuture<Result<Batch, NotCancelled>>;

    fn handle(&mut self, CancelBatch(cancel): CancelBatch, ctx: &mut Context<Self>) -> Self::Result {
        let ready = |result| -> Self::Result { Box::pin(std::future::ready(result)) };
        match &self.batch.cancel {
            Some(before) if before.then == cancel.then => return ready(Ok(self.batch.clone())),
            Some(before) => return ready(Err(NotCancelled::Ordered(before.then))),
            None => {}
        }
        let event = Event::CancelAsked(cancel);
        let Ok(step) = step::step(&self.batch.state, self.batch.orders(), &event, &self.shared.policy) else {
            return ready(Err(NotCancelled::Over));
        };
        let (told, answer) = tokio::sync::oneshot::channel();
        let (store, now) = (self.shared.store.clone(), self.shared.clock.now());
        let commit = store_order(store, self.batch.id, self.batch.revision, step.clone(), now);
        self.store_then(commit, ctx, move |this, batch, ctx| {
            // Whoever asked may be gone; the order stands.
            let _ = told.send(batch.clone());
            this.advance(batch, step, ctx);
        });
        Box::pin(async move { answer.await.map_err(|_| NotCancelled::Store(StoreError::Stopped)) })
    }
}
