//! The actors, and who messages whom:
//!
//! ```text
//! http, importer, transcripts ──► intake ──► (store: new and requeued requests, sessions)
//!                      │ Nudge
//!                      ▼
//!  timer ──────────► creator ──► (store: an empty batch) ──► registry: Host
//!                      ▲                                        │ starts
//!                      │ Nudge, when a batch is full             ▼
//!                      └──────────────────────────────────── batch ──► provider
//!  timer ──► reconciler ──► (store: shadows, adopted batches) ──► registry: Host
//!  timer ──► poller ──► registry: Observable    Observed ──────▲ │ Moved, Died
//!               └────────────────────────────────────────────┘  ▼
//! http ──► registry: the legacy views                         registry
//! store ──► deliverer ──► webhooks of the companies
//! ```
//!
//! A message lives in the file of the actor that handles it.

pub mod account;
pub mod aging;
pub mod batch;
pub mod creator;
pub mod deliverer;
pub(crate) mod download;
mod effects;
pub mod eraser;
mod erasing;
mod finding;
pub mod importer;
mod input;
pub mod intake;
mod named;
pub mod pace;
pub mod poller;
pub mod reconciler;
pub mod registry;
mod spool;
pub mod transcripts;

#[doc(hidden)]
pub use effects::observation;
#[doc(hidden)]
pub use finding::{Finding, Intents, Reading, Turn, is_of, judge, keep, mark};
#[doc(hidden)]
pub use named::named_in;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use actix::prelude::*;
use jiff::tz::TimeZone;

use crate::clock::{Ids, SharedClock};
use crate::condition::Condition;
use crate::disk::Disk;
use crate::domain::batch::{Credentials, ProviderIdentity};
use crate::domain::cut::{self, Limits};
use crate::domain::price::PriceTable;
use crate::domain::retention::Retention;
use crate::domain::{retry, step};
use crate::fetch::Fetcher;
use crate::panics;
use crate::provider::Provider;
use crate::store::{Store, StoreError, StoreReader};

/// What may be switched off while the program runs.
#[derive(Debug)]
pub struct Switches {
    creation: AtomicBool,
    polling: AtomicBool,
}

impl Switches {
    /// Both as configured.
    pub const fn new(creation: bool, polling: bool) -> Self {
        Self { creation: AtomicBool::new(creation), polling: AtomicBool::new(polling) }
    }

    /// Whether batches are cut, uploaded and created.
    pub fn creation(&self) -> bool {
        self.creation.load(Ordering::Relaxed)
    }

    /// Whether the provider is asked about running batches.
    pub fn polling(&self) -> bool {
        self.polling.load(Ordering::Relaxed)
    }
}

/// Counts the create calls that are under way: whoever leaves waits for their answers, for a while.
#[derive(Debug, Default)]
pub struct Creating(AtomicUsize);

impl Creating {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn begin(self: &Arc<Self>) -> CreatingOne {
        self.0.fetch_add(1, Ordering::SeqCst);
        CreatingOne(self.clone())
    }
}

/// One create call, until it is dropped.
struct CreatingOne(Arc<Creating>);

impl Drop for CreatingOne {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What the actors share: handles and bounds, nothing that one of them owns.
pub struct Shared {
    /// Changes.
    pub store: Store,
    /// Reads.
    pub reader: StoreReader,
    /// The provider.
    pub provider: Arc<dyn Provider>,
    /// What comes from, and goes to, addresses that others chose.
    pub fetcher: Arc<Fetcher>,
    /// Which provider that is.
    pub identity: ProviderIdentity,
    /// With what calls are made now.
    pub made_with: Credentials,
    /// The time.
    pub clock: SharedClock,
    /// New ids.
    pub ids: Ids,
    /// What stands in the way.
    pub condition: Arc<Condition>,
    /// The room on the disk.
    pub disk: Arc<Disk>,
    /// Create calls that are under way.
    pub creating: Arc<Creating>,
    /// What may be switched off.
    pub switches: Switches,
    /// Whether the account at the provider may be used.
    pub account: account::Account,
    /// Limits of our own toward the provider.
    pub pace: pace::Pace,
    /// What tokens cost.
    pub prices: PriceTable,
    /// Where input and result files lie while they are needed.
    pub spool: PathBuf,
    /// Bounds of a batch.
    pub limits: Limits,
    /// After a failure.
    pub retry: retry::Policy,
    /// How long the provider is thought to count the tokens of a batch that has ended.
    pub capacity_hold: Duration,
    /// Waits of the machine.
    pub policy: step::Policy,
    /// How long an uncertain creation is looked for before it is sent again.
    pub grace: Duration,
    /// How often the creator looks.
    pub creation_interval: Duration,
    /// How often the poller asks.
    pub polling_interval: Duration,
    /// How many calls a tick of the poller makes at most.
    pub polling_calls_max: usize,
    /// The model of companies that name none.
    pub model_default: String,
    /// A session is analysed when it was unchanged so long.
    pub settle: Duration,
    /// The zone of times in exports that have no offset.
    pub time_zone: TimeZone,
    /// How often the model is asked once more for an answer that does not fit.
    pub repair_rounds: u32,
    /// The exports that are read again and again.
    pub sources: Vec<Arc<importer::Source>>,
    /// How long what has ended is kept, for companies that say nothing else.
    pub retention: Retention,
    /// Bounds of what is fetched for them.
    pub fetching: transcripts::Bounds,
}

impl Shared {
    /// The bounds of a batch that is cut now: near our own limit of an hour the age at which a batch goes that is not
    /// full grows.
    pub fn limits_now(&self) -> Limits {
        let (used, max) = self.pace.used(self.clock.as_ref());
        Limits { age_max: cut::stretched(self.limits.age_max, used, max), ..self.limits }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// Runs `then` once `length` has passed by the clock that all share.
fn later<A: Actor<Context = Context<A>>>(
    ctx: &mut Context<A>,
    clock: &SharedClock,
    length: Duration,
    then: impl FnOnce(&mut A, &mut Context<A>) + 'static,
) {
    let slept = actix::fut::wrap_future::<_, A>(clock.sleep(length));
    ctx.spawn(slept.map(|(), this, ctx| then(this, ctx)));
}

/// Runs `run` again and again, so long apart by the clock that all share.
fn every<A: Actor<Context = Context<A>>>(
    ctx: &mut Context<A>,
    clock: &SharedClock,
    interval: Duration,
    run: fn(&mut A, &mut Context<A>),
) {
    let again = clock.clone();
    later(ctx, clock, interval, move |this, ctx| {
        every(ctx, &again, interval, run);
        run(this, ctx);
    });
}

/// Runs a piece of work by itself: a panic fails it, and the actor goes on.
async fn alone<T, E: From<StoreError>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    panics::caught(work).await.unwrap_or_else(|err| Err(StoreError::Broken(err.to_string()).into()))
}
