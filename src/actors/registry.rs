//! The registry: hosts the batch actors, rebuilds those that died, and answers for the admin views.
//!
//! Counts come from the stored counters, lists from a reader on a blocking thread; the registry itself never
//! blocks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::batch::{
    Admitted, BatchActor, CancelBatch, GiveUp, NotCancelled, NotKnown, Observed, TryAgain, store_order,
};
use super::creator::Creator;
use super::{Shared, later};
use crate::domain::batch::{Batch, BatchStatus, Cancel};
use crate::domain::event::{Event, Observation};
use crate::domain::id::{BatchId, CompanyId, ProviderBatchId, RequestId};
use crate::domain::request::{Failure, Request};
use crate::domain::step;
use crate::store::{Anomaly, Endings, RequestFilter, StoreError, StoreReader, StoryLine};

/// A batch whose actor died this often in a row is left alone for a while.
const DEATHS_MAX: u32 = 8;
/// And then rebuilt so seldom.
const REVIVE_LATE: Duration = Duration::from_secs(600);
/// The first wait before a batch's actor is rebuilt; doubled with each death in a row.
const REVIVE_AFTER: Duration = Duration::from_millis(200);

/// Hosts the batch actors.
pub struct Registry {
    shared: Arc<Shared>,
    creator: Option<Addr<Creator>>,
    hosted: HashMap<BatchId, Hosted>,
    deaths: HashMap<BatchId, u32>,
}

struct Hosted {
    addr: Addr<BatchActor>,
    observed: Option<ProviderBatchId>,
}

impl Registry {
    /// A registry that hosts nothing yet; every live batch of the store is hosted when it starts.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, creator: None, hosted: HashMap::new(), deaths: HashMap::new() }
    }

    fn host(&mut self, id: BatchId, fresh: bool, ctx: &mut Context<Self>) {
        let reader = self.shared.reader.clone();
        let load = async move { blocking(move || reader.batch(id)).await };
        ctx.spawn(load.into_actor(self).map(move |loaded, this, ctx| match loaded {
            Ok(Some(batch))
                if batch.state.is_live()
                    && batch.provider != this.shared.identity
                    && !batch.state.is_unsent() =>
            {
                tracing::error!(batch.id = %id, provider.kind = batch.provider.kind, provider.base_url = batch.provider.base_url,
                    "batch {id} went to another provider than the one configured now; it rests until that one is configured again");
            }
            Ok(Some(batch)) if batch.state.is_live() => this.start(batch, fresh, ctx),
            Ok(_) => {
                this.deaths.remove(&id);
            }
            Err(err) => {
                tracing::error!(batch.id = %id, error = %err, "a batch cannot be read from the store; trying again");
                later(ctx, &this.shared.clock, REVIVE_LATE, move |this, ctx| this.host(id, fresh, ctx));
            }
        }));
    }

    fn start(&mut self, batch: Batch, fresh: bool, ctx: &mut Context<Self>) {
        let id = batch.id;
        if self.hosted.contains_key(&id) {
            return;
        }
        if self.shared.reader.batch(id).is_ok_and(|now| now.is_some_and(|now| now.revision != batch.revision))
        {
            // An order to cancel it was stored while it was read.
            return self.host(id, fresh, ctx);
        }
        let observed = if batch.state.is_observed() { batch.provider_batch.clone() } else { None };
        crash_point!("host.before_start");
        let actor = BatchActor::new(batch, fresh, self.shared.clone(), ctx.address(), self.creator.clone());
        self.hosted.insert(id, Hosted { addr: actor.start(), observed });
    }
}

impl Actor for Registry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(1024);
    }
}

/// Runs a read that may touch the disk off the actors' thread.
pub(super) async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result,
        Err(err) => Err(StoreError::Broken(format!("a read broke off: {}", crate::panics::broke_off(&err)))),
    }
}

/// Host every live batch of the store, and those to come. Sent at the start, and by whoever may have opened one and not
/// told of it.
#[derive(Message)]
#[rtype(result = "Result<usize, StoreError>")]
pub struct Resume {
    /// Told when a batch is full; none for the one who is told already.
    pub creator: Option<Addr<Creator>>,
}

impl Handler<Resume> for Registry {
    type Result = ResponseActFuture<Self, Result<usize, StoreError>>;

    fn handle(&mut self, Resume { creator }: Resume, _: &mut Context<Self>) -> Self::Result {
        self.creator = creator.or_else(|| self.creator.take());
        let reader = self.shared.reader.clone();
        let live = async move { blocking(move || reader.live_batches()).await };
        Box::pin(live.into_actor(self).map(|live, this, ctx| {
            let live = live?;
            for id in &live {
                this.host(*id, false, ctx);
            }
            Ok(live.len())
        }))
    }
}

/// Host a batch that was just opened.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Host {
    /// Which.
    pub id: BatchId,
    /// Whether it is to be filled.
    pub fresh: bool,
}

impl Handler<Host> for Registry {
    type Result = ();

    fn handle(&mut self, Host { id, fresh }: Host, ctx: &mut Context<Self>) {
        self.host(id, fresh, ctx);
    }
}

/// Have every batch that is parked for an operator tried again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct TryParked;

impl Handler<TryParked> for Registry {
    type Result = ();

    fn handle(&mut self, TryParked: TryParked, _: &mut Context<Self>) {
        for hosted in self.hosted.values() {
            // One that is too busy to hear it is not parked.
            let _ = hosted.addr.try_send(TryAgain);
        }
    }
}

impl Handler<Admitted> for Registry {
    type Result = ();

    fn handle(&mut self, admitted: Admitted, _: &mut Context<Self>) {
        for hosted in self.hosted.values() {
            // One that is too busy to hear it is not parked.
            let _ = hosted.addr.try_send(admitted.clone());
        }
    }
}

/// Have a batch give its members back, if it was never sent.
#[derive(Message)]
#[rtype(result = "()")]
pub struct GiveBack {
    /// Which.
    pub id: BatchId,
    /// Why.
    pub failure: Failure,
}

impl Handler<GiveBack> for Registry {
    type Result = ();

    fn handle(&mut self, GiveBack { id, failure }: GiveBack, _: &mut Context<Self>) {
        if let Some(hosted) = self.hosted.get(&id) {
            // Whoever wants this asks until it is so.
            let _ = hosted.addr.try_send(GiveUp(failure));
        }
    }
}

/// The provider says that it does not know a batch.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Unseen {
    /// Which batch.
    pub id: BatchId,
}

impl Handler<Unseen> for Registry {
    type Result = ();

    fn handle(&mut self, Unseen { id }: Unseen, _: &mut Context<Self>) {
        if let Some(hosted) = self.hosted.get(&id) {
            // The next tick asks again.
            let _ = hosted.addr.try_send(NotKnown);
        }
    }
}

/// Cancel a batch.
#[derive(Message)]
#[rtype(result = "Result<Batch, NotCancelled>")]
pub struct CancelOf {
    /// Which.
    pub id: BatchId,
    /// The order.
    pub cancel: Cancel,
}

impl Handler<CancelOf> for Registry {
    type Result = ResponseFuture<Result<Batch, NotCancelled>>;

    fn handle(&mut self, CancelOf { id, cancel }: CancelOf, ctx: &mut Context<Self>) -> Self::Result {
        let (shared, addr) = (self.shared.clone(), self.hosted.get(&id).map(|hosted| hosted.addr.clone()));
        let registry = ctx.address();
        Box::pin(async move {
            if let Some(addr) = addr
                && let Ok(answer) = addr.send(CancelBatch(cancel.clone())).await
            {
                return answer;
            }
            let reader = shared.reader.clone();
            let Some(batch) = blocking(move || reader.batch(id)).await? else {
                return Err(NotCancelled::Unknown);
            };
            match batch.cancel.as_ref().map(|before| before.then) {
                // Whoever heard no answer asks again, and hears the same although it is carried out.
                Some(before) if before == cancel.then => return Ok(batch),
                Some(before) => return Err(NotCancelled::Ordered(before)),
                None => {}
            }
            // It rests: its actor is to be built anew, or it is with another provider. Whoever works on it next finds the
            // order in the store; one that read it a moment ago fails with its old revision, and is built anew.
            let event = Event::CancelAsked(cancel.clone());
            let Ok(step) = step::step(&batch.state, batch.orders(), &event, &shared.policy) else {
                return Err(NotCancelled::Over);
            };
            match store_order(shared.store.clone(), id, batch.revision, step, shared.clock.now()).await {
                // Its actor was built meanwhile, and may have the order.
                Err(StoreError::Stale { .. }) => registry
                    .send(CancelOf { id, cancel })
                    .await
                    .map_err(|_| NotCancelled::Store(StoreError::Stopped))?,
                Err(err) => Err(err.into()),
                Ok(stored) => {
                    // An actor that was built from what was there before has to hear of it.
                    let _ = registry.send(CancelOf { id, cancel }).await;
                    Ok(stored)
                }
            }
        })
    }
}

/// A batch's step is stored.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Moved {
    pub id: BatchId,
    /// The provider's id while the batch is worth asking about.
    pub observed: Option<ProviderBatchId>,
}

impl Handler<Moved> for Registry {
    type Result = ();

    fn handle(&mut self, Moved { id, observed }: Moved, _: &mut Context<Self>) {
        self.deaths.remove(&id);
        if let Some(hosted) = self.hosted.get_mut(&id) {
            hosted.observed = observed;
        }
    }
}

/// A batch actor is gone: it retired, it could not store its step, or it panicked.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Died {
    pub id: BatchId,
    pub panicked: bool,
    pub retired: bool,
}

impl Handler<Died> for Registry {
    type Result = ();

    fn handle(&mut self, Died { id, panicked, retired }: Died, ctx: &mut Context<Self>) {
        self.hosted.remove(&id);
        if retired {
            self.deaths.remove(&id);
            return;
        }
        let deaths = self.deaths.entry(id).or_default();
        *deaths += 1;
        if *deaths > DEATHS_MAX {
            tracing::error!(batch.id = %id, deaths = *deaths,
                "batch {id} failed too often in a row; it is left alone for ten minutes, nothing of it is lost");
            later(ctx, &self.shared.clock, REVIVE_LATE, move |this, ctx| this.host(id, false, ctx));
            return;
        }
        let after = REVIVE_AFTER.saturating_mul(1 << (*deaths - 1).min(16));
        tracing::warn!(batch.id = %id, panicked, deaths = *deaths, "batch {id} stopped; rebuilding it from the store");
        later(ctx, &self.shared.clock, after, move |this, ctx| this.host(id, false, ctx));
    }
}

/// Which batches the provider should be asked about.
#[derive(Message)]
#[rtype(result = "Vec<(BatchId, ProviderBatchId)>")]
pub struct Observable;

impl Handler<Observable> for Registry {
    type Result = MessageResult<Observable>;

    fn handle(&mut self, _: Observable, _: &mut Context<Self>) -> Self::Result {
        let observed = self.hosted.iter();
        MessageResult(observed.filter_map(|(id, hosted)| Some((*id, hosted.observed.clone()?))).collect())
    }
}

/// The provider said this of a batch.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Seen {
    /// Which batch.
    pub id: BatchId,
    /// What it said.
    pub seen: Observation,
}

impl Handler<Seen> for Registry {
    type Result = ();

    fn handle(&mut self, Seen { id, seen }: Seen, _: &mut Context<Self>) {
        if let Some(hosted) = self.hosted.get(&id)
            && hosted.addr.try_send(Observed { seen }).is_err()
        {
            // Nothing is lost: the next tick asks again.
            tracing::debug!(batch.id = %id, "batch {id} is too busy for an observation");
        }
    }
}

/// How many requests have each status, in the order of `RequestStatus::ALL`.
#[derive(Message)]
#[rtype(result = "Result<[u64; 4], StoreError>")]
pub struct Summary {
    /// Of one company, or of all.
    pub company: Option<CompanyId>,
}

/// A page of requests, newest first.
#[derive(Message)]
#[rtype(result = "Result<(Vec<Request>, Option<RequestId>), StoreError>")]
pub struct ListRequests {
    /// Which.
    pub filter: RequestFilter,
    /// Where the page begins.
    pub before: Option<RequestId>,
    /// How many at most.
    pub limit: usize,
}

/// One request.
#[derive(Message)]
#[rtype(result = "Result<Option<Request>, StoreError>")]
pub struct ShowRequest(pub RequestId);

/// A page of batches, newest first.
#[derive(Message)]
#[rtype(result = "Result<(Vec<Batch>, Option<BatchId>), StoreError>")]
pub struct ListBatches {
    /// Only of this company.
    pub company: Option<CompanyId>,
    /// Only with this status.
    pub status: Option<BatchStatus>,
    /// Where the page begins.
    pub before: Option<BatchId>,
    /// How many at most.
    pub limit: usize,
}

/// One batch, with what is told of it.
#[derive(Message)]
#[rtype(result = "Result<Option<BatchShown>, StoreError>")]
pub struct ShowBatch(pub BatchId);

/// A batch with what is told of it.
#[derive(Debug)]
pub struct BatchShown {
    /// The batch.
    pub batch: Batch,
    /// Its story, oldest first.
    pub story: Vec<StoryLine>,
    /// What keeps it from closing.
    pub anomaly: Option<Anomaly>,
    /// How members ended without a result.
    pub endings: Endings,
}

/// Answers a message with a read on a blocking thread.
macro_rules! reads {
    ($message:ty, |$reader:ident, $asked:pat_param| $read:expr) => {
        impl Handler<$message> for Registry {
            type Result = ResponseFuture<<$message as Message>::Result>;

            fn handle(&mut self, $asked: $message, _: &mut Context<Self>) -> Self::Result {
                let $reader: StoreReader = self.shared.reader.clone();
                Box::pin(blocking(move || $read))
            }
        }
    };
}

reads!(Summary, |reader, Summary { company }| reader.summary(company.as_ref()));
reads!(ListRequests, |reader, ListRequests { filter, before, limit }| reader
    .list_requests(&filter, before, limit));
reads!(ShowRequest, |reader, ShowRequest(id)| reader.request(id));
reads!(ListBatches, |reader, ListBatches { company, status, before, limit }| reader.list_batches(
    company.as_ref(),
    status,
    before,
    limit
));
reads!(ShowBatch, |reader, ShowBatch(id)| match reader.batch(id)? {
    Some(batch) => Ok(Some(BatchShown {
        batch,
        story: reader.story(id)?,
        anomaly: reader.anomaly(id)?,
        endings: reader.endings(id)?,
    })),
    None => Ok(None),
});
