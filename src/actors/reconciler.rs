//! The reconciler: compares the provider's batches with ours after a start, and watches for batches that surface
//! after their create call was given up.
//!
//! Until the first comparison has ended nothing is sent: a store that went back in time would buy again what the
//! provider already has.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::Mutex;

use super::effects::observation;
use super::finding::{self, Finding, Intents};
use super::registry::{GiveBack, Host, Registry, Resume, blocking};
use super::{Shared, every, later};
use crate::condition::{Hindrance, safe_mode};
use crate::domain::batch::{Batch, BatchState, Cancel, Intent, Origin, Running, Then, Wait};
use crate::domain::effect::Effect;
use crate::domain::event::ObservedStatus;
use crate::domain::id::{BatchId, ProviderBatchId, RequestId, Timestamp};
use crate::domain::request::{Failure, FailureClass, RequestStatus};
use crate::domain::step::{Change, Step};
use crate::panics;
use crate::provider::ProviderError;
use crate::provider::wire::BatchObject;
use crate::store::{NotedIntent, StoreError, StoreReader};

/// So far back the provider's list is compared at least.
const LOOK_BACK: Duration = Duration::from_secs(48 * 3600);
/// And where nothing was ever compared: no provider keeps files longer.
const LOOK_BACK_FIRST: Duration = Duration::from_secs(30 * 24 * 3600);
/// How far two clocks may be apart.
const SKEW: Duration = Duration::from_secs(3600);
/// What has to wait is looked at again after this at the latest.
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// How often intents of late are looked for, at the least.
const WATCH_MAX: Duration = Duration::from_secs(300);
/// More intents than a provider lets us create batches in the time that they are watched.
const INTENTS_MAX: usize = 200_000;

/// A batch at the provider, and the requests that it was made of.
type LastRead = Arc<Mutex<Option<(ProviderBatchId, Vec<RequestId>)>>>;

/// Finds batches at the provider that nobody here waits for.
pub struct Reconciler {
    shared: Arc<Shared>,
    registry: Addr<Registry>,
    /// Whether the first comparison has ended.
    compared: bool,
    busy: bool,
    tried: u32,
    theirs: Theirs,
    /// The requests of the batch that was read last and has to wait: reading it again each time would gain nothing.
    read: LastRead,
}

impl Reconciler {
    /// A reconciler that has compared nothing yet; nothing is sent until it has.
    pub fn new(shared: Arc<Shared>, registry: Addr<Registry>) -> Self {
        let why = "the provider's batches are being compared with ours; nothing is sent until that has ended";
        shared.condition.raise(Hindrance::Reconciling, why);
        Self {
            shared,
            registry,
            compared: false,
            busy: false,
            tried: 0,
            theirs: Theirs::default(),
            read: Arc::default(),
        }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        if self.busy {
            return;
        }
        self.busy = true;
        let mut look = Look {
            shared: self.shared.clone(),
            registry: self.registry.clone(),
            theirs: self.theirs,
            read: self.read.clone(),
        };
        let compared = self.compared;
        let look = async move {
            let work = async { if compared { look.watch().await } else { look.compare().await } };
            let looked = panics::caught(work).await.unwrap_or_else(|_| Err(Trouble::Panicked));
            (looked, look.theirs)
        };
        ctx.spawn(look.into_actor(self).map(|(looked, theirs), this, ctx| {
            this.theirs = theirs;
            this.looked(looked, ctx);
        }));
    }

    fn looked(&mut self, looked: Result<Looked, Trouble>, ctx: &mut Context<Self>) {
        self.busy = false;
        match looked {
            Ok(Looked::Through) => {
                self.tried = 0;
                self.compared = true;
                self.shared.condition.clear(Hindrance::Reconciling);
                return;
            }
            // Something waits for a batch here to be given back, or for one there to end.
            Ok(Looked::Again) => {}
            Err(Trouble::NoList) => {
                tracing::warn!(
                    "the provider has no list of batches: what was created and not noted cannot be found"
                );
                self.compared = true;
                self.shared.condition.clear(Hindrance::Reconciling);
                return;
            }
            Err(trouble) => {
                tracing::warn!(error = %trouble, "the provider's batches could not be compared with ours yet");
                if matches!(trouble, Trouble::Store(_) | Trouble::Panicked) {
                    // One that was opened and not told of: it gives its requests back, or is watched.
                    self.registry.do_send(Resume { creator: None });
                }
            }
        }
        let again = Duration::from_secs(1 << self.tried.min(6)).min(AGAIN_MAX);
        self.tried = self.tried.saturating_add(1);
        later(ctx, &self.shared.clock, again, Self::look);
    }
}

impl Actor for Reconciler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.look(ctx);
        let interval = (self.shared.grace / 3).clamp(Duration::from_secs(1), WATCH_MAX);
        every(ctx, &self.shared.clock, interval, Self::look);
    }
}

enum Looked {
    Through,
    Again,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Provider(ProviderError),
    #[error("the provider has no list of batches")]
    NoList,
    #[error("the provider's list does not end")]
    Endless,
    #[error("a bug: it ended in a panic")]
    Panicked,
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
}

impl From<ProviderError> for Trouble {
    fn from(err: ProviderError) -> Self {
        match err {
            ProviderError::Refused { status: 404 | 405 | 501, .. } => Self::NoList,
            other @ (ProviderError::Refused { .. }
            | ProviderError::NotSent { .. }
            | ProviderError::RateLimited { .. }
            | ProviderError::Account { .. }
            | ProviderError::Uncertain { .. }
            | ProviderError::Local { .. }) => Self::Provider(other),
        }
    }
}

/// What time it is at the provider at the least: that of the newest batch that its list has shown, and what has passed
/// since. Our own wall clock may be ahead by years.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Theirs(Option<(Timestamp, u64)>);

impl Theirs {
    /// The newest batch in the list was created at `newest`; that was seen now.
    pub fn saw(&mut self, newest: Option<Timestamp>, monotonic_ms: u64) {
        if let Some(newest) = newest
            && self.0.is_none_or(|(before, _)| before < newest)
        {
            self.0 = Some((newest, monotonic_ms));
        }
    }

    /// The time by our wall clock, but not later than at the provider.
    pub fn cap(&self, wall: Timestamp, monotonic_ms: u64) -> Timestamp {
        let since = |seen: u64| Duration::from_millis(monotonic_ms.saturating_sub(seen));
        self.0.map_or(wall, |(newest, seen)| wall.min(newest.plus(since(seen))))
    }
}

/// How far back the first comparison goes: two days, or to the last time that a comparison was noted in this store,
/// whichever is further; a store from an old backup remembers an old time. What was noted by a clock that was ahead says
/// nothing.
#[doc(hidden)]
pub fn compared_since(noted: Option<Timestamp>, began: Timestamp) -> Timestamp {
    let noted = noted.filter(|noted| *noted <= began);
    noted.map_or(began.minus(LOOK_BACK_FIRST), |noted| noted.min(began.minus(LOOK_BACK))).minus(SKEW)
}

/// The time that is noted when a comparison that began at `began` has come through.
#[doc(hidden)]
pub fn compared_at(began: Timestamp) -> Timestamp {
    began.minus(SKEW)
}

/// How far back the intents are watched; none where there are none to watch.
#[doc(hidden)]
pub fn watched_since(intents: &[NotedIntent], began: Timestamp) -> Option<Timestamp> {
    let late = began.minus(2 * SKEW);
    let watched = intents.iter().filter(|noted| noted.superseded || noted.intent.at > late);
    watched.map(|noted| noted.intent.input.created_at).min()
}

/// One look at the provider's list.
struct Look {
    shared: Arc<Shared>,
    registry: Addr<Registry>,
    theirs: Theirs,
    read: LastRead,
}

impl Look {
    /// Now, by our clock, but not later than at the provider.
    fn now(&self) -> Timestamp {
        let clock = self.shared.clock.as_ref();
        self.theirs.cap(clock.now(), clock.monotonic_ms())
    }

    /// The first comparison.
    async fn compare(&mut self) -> Result<Looked, Trouble> {
        let reader = self.shared.reader.clone();
        let noted = blocking(move || reader.reconciled()).await?;
        let since = compared_since(noted, self.shared.clock.now());
        self.back_to(since).await
    }

    /// Later looks: as far back as there are intents that were given up, or that a call may have had two effects for.
    async fn watch(&mut self) -> Result<Looked, Trouble> {
        let began = self.now();
        while self.shared.store.forget_intents(began).await? > 0 {
            crash_point!("intents.after_commit");
        }
        let Some(oldest) = watched_since(&self.intents().await?, began) else {
            return Ok(Looked::Through);
        };
        self.back_to(oldest).await
    }

    /// All that are still watched: which are too old is decided where they are forgotten.
    async fn intents(&self) -> Result<Vec<NotedIntent>, StoreError> {
        let reader = self.shared.reader.clone();
        blocking(move || reader.intents_since(Timestamp::from_secs(0), INTENTS_MAX)).await
    }

    async fn back_to(&mut self, since: Timestamp) -> Result<Looked, Trouble> {
        let (shared, registry) = (self.shared.clone(), self.registry.clone());
        let intents = Intents::new(self.intents().await?);
        let (wall, began) = (shared.clock.now(), shared.clock.monotonic_ms());
        let (mut theirs, mut failed) = (self.theirs, None);
        let mut found: Vec<(BatchObject, Finding)> = Vec::new();
        let through = finding::look_back(&shared, since, |batch| {
            // The list begins with the newest.
            theirs.saw(batch.created_at, began);
            let now = theirs.cap(wall, began);
            match finding::judge(&shared.reader, shared.store.instance(), now, &batch, &intents) {
                Ok(Finding::Nothing) => {}
                Ok(finding) => found.push((batch, finding)),
                Err(err) => failed = Some(err),
            }
        })
        .await?;
        if let Some(err) = failed {
            return Err(err.into());
        }
        if !through {
            return Err(Trouble::Endless);
        }
        self.theirs = theirs;
        let mut looked = Looked::Through;
        // The newest first, as the list has them: a request is taken in for the last batch that it was in. Those before
        // ended without a result for it, and would give it back while the last one runs.
        for (batch, finding) in found {
            match finding {
                Finding::Nothing => {}
                Finding::Shadow { of, intent } => open_shadow(&shared, &registry, &batch, of, intent).await?,
                Finding::Unknown { unsent, intent } => {
                    let why = format!(
                        "the provider has batch {} of this store, which the store does not know: it has gone back in \
                         time, as after the restore of an old backup. Its results are taken over",
                        batch.id
                    );
                    shared.store.distrust(why.clone()).await?;
                    let doubt = shared.store.doubt().unwrap_or(why);
                    shared.condition.raise(Hindrance::SafeMode, safe_mode(&doubt));
                    // While one waits, those before it would take its requests.
                    if matches!(looked, Looked::Again) || !self.take_over(&batch, unsent, intent).await? {
                        looked = Looked::Again;
                    }
                }
            }
        }
        if matches!(looked, Looked::Through) {
            crash_point!("reconciled.before_commit");
            shared.store.note_reconciled(compared_at(theirs.cap(wall, began))).await?;
            crash_point!("reconciled.after_commit");
        }
        Ok(looked)
    }
}

fn observing(intent: Intent, batch: &BatchObject) -> BatchState {
    let running = match observation(batch.clone()).status {
        Some(ObservedStatus::Running(running)) => running,
        Some(ObservedStatus::Ended(_)) | None => Running::Validating,
    };
    BatchState::Observing { intent, running, wait: Wait::default(), missing: None }
}

async fn open_shadow(
    shared: &Arc<Shared>,
    registry: &Addr<Registry>,
    found: &BatchObject,
    of: BatchId,
    intent: Intent,
) -> Result<(), Trouble> {
    let reader = shared.reader.clone();
    let Some(original) = blocking(move || reader.batch(of)).await? else { return Ok(()) };
    let now = shared.clock.now();
    let id = BatchId::new(shared.ids.next());
    tracing::error!(batch.id = %id, provider_batch = %found.id, "a create call of batch {of} that was given up had its \
        effect after all: the provider has it as {}. It is cancelled, what it did is taken in and booked apart as \
        batch {id}", found.id);
    let mut batch = Batch::open(id, original.group, shared.identity.clone(), now);
    batch.origin = Origin::Shadow { of: original.id };
    batch.provider_batch = Some(found.id.clone());
    batch.cancel =
        Some(Cancel { by: "nightshift (a shadow batch)".to_owned(), at: now, then: Then::Requeue });
    batch.state = observing(intent, found);
    crash_point!("shadow.before_commit");
    shared.store.open_batch(batch).await?;
    crash_point!("shadow.after_commit");
    registry.do_send(Host { id, fresh: false });
    Ok(())
}

/// The batches that have some of `ids` and must give them back, or come to their end, first: those that were cut here,
/// since in the backup they had not yet moved on to the batch that was found, and what was left of a take-over that broke
/// off.
#[doc(hidden)]
pub fn holders(reader: &StoreReader, ids: &[RequestId]) -> Result<Vec<BatchId>, StoreError> {
    let mut holders = Vec::new();
    for id in ids {
        let Some(request) = reader.request(*id)? else { continue };
        if let (RequestStatus::BatchingInProgress, Some(batch)) = (request.status, request.batch)
            && !holders.contains(&batch)
            && reader.batch(batch)?.is_some_and(|batch| {
                batch.state.is_live() && (batch.origin == Origin::Cut || batch.state.is_unsent())
            })
        {
            holders.push(batch);
        }
    }
    Ok(holders)
}

impl Look {
    /// Takes a batch over that this store does not know. False where that has to wait: for a batch here to give its
    /// requests back, or for the one there to end, because its input file is gone.
    async fn take_over(
        &self,
        found: &BatchObject,
        unsent: Option<BatchId>,
        intent: Intent,
    ) -> Result<bool, Trouble> {
        let (shared, registry) = (&self.shared, &self.registry);
        if let Some(id) = unsent {
            let detail = "the provider has a batch that was made from it, so it must not be sent again";
            let failure = Failure::new(FailureClass::Transient, "batch_known_elsewhere", detail);
            registry.do_send(GiveBack { id, failure });
            let reader = shared.reader.clone();
            if blocking(move || reader.batch(id)).await?.is_some_and(|batch| batch.state.is_live()) {
                return Ok(false);
            }
        }
        let Some(ids) = self.requests_of(found).await? else { return Ok(false) };
        let (reader, some) = (shared.reader.clone(), ids.clone());
        let holders = blocking(move || holders(&reader, &some)).await?;
        for id in &holders {
            let detail = "the provider has a later batch with some of its requests";
            let failure = Failure::new(FailureClass::Transient, "batch_known_elsewhere", detail);
            registry.do_send(GiveBack { id: *id, failure });
        }
        if !holders.is_empty() {
            return Ok(false);
        }
        let (reader, some) = (shared.reader.clone(), ids.clone());
        let first = blocking(move || {
            for id in some {
                if let Some(request) = reader.request(id)? {
                    return Ok(Some(request));
                }
            }
            Ok(None)
        });
        let Some(first) = first.await? else {
            tracing::error!(provider_batch = %found.id, "none of the requests of batch {} is known here: its results are \
                for nobody", found.id);
            return Ok(true);
        };
        let id = BatchId::new(shared.ids.next());
        let mut batch = Batch::open(id, first.group, shared.identity.clone(), shared.clock.now());
        batch.origin = Origin::Adopted;
        crash_point!("adopt.open.before_commit");
        shared.store.open_batch(batch.clone()).await?;
        crash_point!("adopt.open.after_commit");
        for chunk in ids.chunks(250) {
            batch = shared.store.take_over_members(id, batch.revision, chunk.to_vec()).await?;
            crash_point!("adopt.members.after_commit");
        }
        // Its file bears the name of a batch that is not known here: this is how it is deleted in its time.
        let input = found.input_file_id.clone().map(Change::Input);
        // Only now is it known as taken over: a kill before this gives its requests back, and it is found again.
        let step = Step {
            next: observing(intent, found),
            changes: input.into_iter().chain([Change::Adopt(found.id.clone())]).collect(),
            effects: vec![Effect::Observe],
            story: Some(format!(
                "taken over as {} with {} requests that waited here",
                found.id, batch.counts.members
            )),
        };
        crash_point!("adopt.before_commit");
        shared.store.commit_step(id, batch.revision, step, shared.clock.now()).await?;
        crash_point!("adopt.after_commit");
        tracing::error!(batch.id = %id, provider_batch = %found.id, members = batch.counts.members,
            "batch {} of the provider was not known here and is taken over as batch {id}", found.id);
        registry.do_send(Host { id, fresh: false });
        Ok(true)
    }

    /// The requests that a batch was made of, read once while it has to wait.
    async fn requests_of(&self, found: &BatchObject) -> Result<Option<Vec<RequestId>>, Trouble> {
        let mut read = self.read.lock().await;
        if let Some((id, ids)) = read.as_ref()
            && *id == found.id
        {
            return Ok(Some(ids.clone()));
        }
        let _slot = self.shared.pace.download(self.shared.clock.as_ref(), None).await;
        let ids = requests_of(&self.shared, found).await?;
        *read = ids.clone().map(|ids| (found.id.clone(), ids));
        Ok(ids)
    }
}

/// The requests that a batch at the provider was made of: those of its input file, or, where that is gone, those of
/// its results once it has ended.
async fn requests_of(shared: &Arc<Shared>, found: &BatchObject) -> Result<Option<Vec<RequestId>>, Trouble> {
    let results = || {
        let files = [&found.output_file_id, &found.error_file_id];
        found.status.is_terminal().then(|| files.into_iter().flatten().cloned().collect::<Vec<_>>())
    };
    let input = found.input_file_id.iter().cloned().collect::<Vec<_>>();
    let mut ids = Vec::new();
    for files in [Some(input), results()] {
        let Some(files) = files else { return Ok(None) };
        for file in files {
            let path = shared.spool.join(format!("found-{}.jsonl", shared.ids.next()));
            match shared.provider.download_file(&file, &path).await {
                Ok(_) => {}
                Err(ProviderError::Refused { .. }) => continue,
                Err(err) => return Err(Trouble::Provider(err)),
            }
            let read = path.clone();
            let named = tokio::task::spawn_blocking(move || finding::requests_in(&read)).await;
            let named = named.map_err(|err| StoreError::Broken(panics::broke_off(&err).to_owned()))?;
            // If this fails it stays in the way of nobody.
            let _ = tokio::fs::remove_file(&path).await;
            ids.extend(named.map_err(|err| Trouble::File(path, err))?);
        }
        if !ids.is_empty() {
            break;
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(Some(ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn day(number: u32) -> Timestamp {
        Timestamp::from_secs(1_800_000_000).plus(DAY * number)
    }

    #[test]
    fn a_time_that_a_clock_noted_which_was_ahead_shortens_no_look_back() {
        assert_eq!(compared_since(Some(day(10)), day(50)), day(10).minus(SKEW));
        assert_eq!(compared_since(Some(day(49)), day(50)), day(48).minus(SKEW));
        assert_eq!(compared_since(None, day(50)), day(20).minus(SKEW));
        assert_eq!(compared_since(Some(day(80)), day(50)), day(20).minus(SKEW), "noted in the future");
    }

    #[test]
    fn our_clock_is_believed_no_further_than_the_providers_list_and_what_passed_since() {
        let hour = 3_600_000;
        let mut theirs = Theirs::default();
        assert_eq!(theirs.cap(day(50), 0), day(50), "nothing is known of theirs");
        theirs.saw(Some(day(40)), hour);
        assert_eq!(theirs.cap(day(39), hour), day(39));
        assert_eq!(theirs.cap(day(50), hour), day(40));
        theirs.saw(Some(day(40)), 5 * hour);
        theirs.saw(None, 6 * hour);
        assert_eq!(theirs.cap(day(50), 25 * hour), day(41), "a list that shows nothing new stops no clock");
        theirs.saw(Some(day(45)), 26 * hour);
        assert_eq!(theirs.cap(day(50), 26 * hour), day(45));
    }

    #[test]
    fn a_jump_ahead_ends_no_watch() {
        let mut theirs = Theirs::default();
        theirs.saw(Some(day(1)), 0);
        let input = crate::domain::batch::InputFile {
            id: crate::domain::id::FileId::new("f"),
            upload: 1,
            bytes: 0,
            created_at: day(1),
        };
        let made_with = crate::domain::batch::Credentials::default();
        let nonce = crate::domain::id::Nonce::from_bytes([1; 16]);
        let intent = Intent { nonce, input, at: day(1), made_with };
        let noted = NotedIntent { batch: BatchId::from_bytes([1; 16]), intent, superseded: false };
        assert_eq!(watched_since(std::slice::from_ref(&noted), theirs.cap(day(4), 60_000)), Some(day(1)));
        assert_eq!(watched_since(&[noted], theirs.cap(day(4), 3 * 3_600_000)), None);
    }
}
