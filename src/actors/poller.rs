//! The poller: asks the provider about running batches, on a timer and when the provider says that one has changed, and
//! tells what it saw. Never changes a record.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::account::{Call, Cause, Success};
use super::effects::observation;
use super::registry::{Observable, Registry, Seen, Unseen, blocking};
use super::{Shared, every};
use crate::domain::id::{BatchId, ProviderBatchId};
use crate::panics;
use crate::provider::ProviderError;
use crate::provider::wire::BatchObject;

/// A batch that is asked about alone waits at most so many ticks between two questions.
const TICKS_BETWEEN_MAX: u32 = 8;
/// Batches that the provider has spoken of and that were not asked about yet; of others the next tick hears.
const CHANGED_MAX: usize = 1000;

/// Asks about running batches.
pub struct Poller {
    shared: Arc<Shared>,
    registry: Addr<Registry>,
    alone: HashMap<BatchId, Alone>,
    /// What the provider has spoken of since it was asked last.
    changed: HashSet<ProviderBatchId>,
    tick: u64,
    busy: bool,
    /// A tick came while a round was under way.
    missed: bool,
}

/// When a batch that no list shows is asked about next.
#[derive(Debug, Clone, Default)]
struct Alone {
    /// The provider said when it was asked last that it does not know it.
    missing: bool,
    due: u64,
    unchanged: u32,
    last: Option<String>,
}

impl Poller {
    /// A poller for what `registry` hosts.
    pub fn new(shared: Arc<Shared>, registry: Addr<Registry>) -> Self {
        Self {
            shared,
            registry,
            alone: HashMap::new(),
            changed: HashSet::new(),
            tick: 0,
            busy: false,
            missed: false,
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        if !self.shared.switches.polling() {
            return;
        }
        if self.busy {
            self.missed = true;
            return;
        }
        self.missed = false;
        self.tick += 1;
        self.round(None, ctx);
    }

    /// Asks at once about what the provider has spoken of, unless that has to wait for the round under way.
    fn ask_about_changed(&mut self, ctx: &mut Context<Self>) {
        if !self.busy && self.shared.switches.polling() && !self.changed.is_empty() {
            let changed = std::mem::take(&mut self.changed);
            self.round(Some(changed), ctx);
        }
    }

    /// Asks about all that is due, or about `only` these.
    fn round(&mut self, only: Option<HashSet<ProviderBatchId>>, ctx: &mut Context<Self>) {
        self.busy = true;
        let (shared, registry) = (self.shared.clone(), self.registry.clone());
        let (alone, tick) = (std::mem::take(&mut self.alone), self.tick);
        let round = async move {
            let targets = registry.send(Observable).await.unwrap_or_default();
            if only.is_none() && shared.account.paused().is_none() {
                delete_due_files(&shared).await;
            }
            // While the key is refused one call at a time tries, whoever makes it.
            if targets.is_empty() || !shared.account.may_now(shared.clock.as_ref(), Call::Read) {
                return alone;
            }
            Round { shared: &shared, registry: &registry, calls: 0, alone, tick, saw_one: false }
                .run(targets, only.as_ref())
                .await
        };
        // After a panic every batch is due again.
        ctx.spawn(panics::caught(round).into_actor(self).map(|alone, this, ctx| {
            this.alone = alone.unwrap_or_default();
            this.busy = false;
            // Whoever is spoken of all the time must not keep the others from being asked about.
            if std::mem::take(&mut this.missed) {
                this.tick(ctx);
            } else {
                this.ask_about_changed(ctx);
            }
        }));
    }
}

impl Actor for Poller {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.tick(ctx);
        every(ctx, &self.shared.clock, self.shared.polling_interval, Self::tick);
    }
}

/// The provider says of itself that something has become of a batch. It need not be one of ours: it speaks of
/// everything in its project.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Changed(pub ProviderBatchId);

impl Handler<Changed> for Poller {
    type Result = ();

    fn handle(&mut self, Changed(batch): Changed, ctx: &mut Context<Self>) {
        if self.changed.len() < CHANGED_MAX {
            self.changed.insert(batch);
        }
        self.ask_about_changed(ctx);
    }
}

/// Deletes a few of our files that have had their time. One that the provider does not delete is tried again later, so
/// that it is in no other's way.
async fn delete_due_files(shared: &Arc<Shared>) {
    const AT_ONCE: usize = 10;
    const REFUSED_FOR: Duration = Duration::from_secs(24 * 3600);
    const TROUBLED_FOR: Duration = Duration::from_secs(600);
    let (reader, now, provider) = (shared.reader.clone(), shared.clock.now(), shared.identity.clone());
    let due = blocking(move || reader.due_deletions(&provider, now, AT_ONCE)).await.unwrap_or_default();
    for (key, file) in due {
        let noted = match shared.provider.delete_file(&file).await {
            Ok(()) => {
                crash_point!("deletion.before_commit");
                let noted = shared.store.forget_deletion(key, file.clone()).await;
                crash_point!("deletion.after_commit");
                noted
            }
            Err(err @ (ProviderError::NotSent { .. } | ProviderError::Account { .. })) => {
                tracing::warn!(file = %file, error = %err, "an old file could not be deleted yet");
                return;
            }
            Err(err) => {
                let refused = matches!(err, ProviderError::Refused { .. });
                let pause = if refused { REFUSED_FOR } else { TROUBLED_FOR };
                let until = now.plus(pause);
                tracing::warn!(file = %file, error = %err, "the provider does not delete an old file; trying again at {until}");
                crash_point!("put_off.before_commit");
                let noted = shared.store.put_off_deletion(key, file.clone(), until).await;
                crash_point!("put_off.after_commit");
                noted
            }
        };
        if let Err(err) = noted {
            tracing::warn!(file = %file, error = %err, "what became of an old file was not noted; it is deleted again");
            return;
        }
    }
}

struct Round<'a> {
    shared: &'a Shared,
    registry: &'a Addr<Registry>,
    calls: usize,
    alone: HashMap<BatchId, Alone>,
    tick: u64,
    /// Whether the provider knows at least one of the batches.
    saw_one: bool,
}

impl Round<'_> {
    async fn run(
        mut self,
        targets: Vec<(BatchId, ProviderBatchId)>,
        only: Option<&HashSet<ProviderBatchId>>,
    ) -> HashMap<BatchId, Alone> {
        self.alone.retain(|id, _| targets.iter().any(|(target, _)| target == id));
        let newest = targets.iter().map(|(id, _)| *id).max();
        let asked = |batch: &ProviderBatchId| only.is_none_or(|only| only.contains(batch));
        let mut rest: HashMap<ProviderBatchId, BatchId> = targets
            .into_iter()
            .filter(|(_, provider_batch)| asked(provider_batch))
            .map(|(id, provider_batch)| (provider_batch, id))
            .collect();
        if rest.len() >= 2
            && let Err(err) = self.sweep(&mut rest).await
        {
            self.shared.account.heed(self.shared.clock.as_ref(), &err);
            tracing::warn!(error = %err, "the provider's batches cannot be listed");
            if matches!(err, ProviderError::Account { .. }) {
                // What is asked alone would be refused just so.
                return self.alone;
            }
        }
        let mut gone = Vec::new();
        let mut singles: Vec<_> = rest.into_iter().collect();
        // Those that have waited longest first, so that the bound on calls starves nobody.
        singles.sort_by_key(|(_, id)| (self.alone.get(id).map_or(0, |alone| alone.due), *id));
        for (provider_batch, id) in singles {
            if self.calls >= self.shared.polling_calls_max {
                break;
            }
            if only.is_none() && self.alone.get(&id).is_some_and(|alone| alone.due > self.tick) {
                continue;
            }
            self.calls += 1;
            match self.shared.provider.get_batch(&provider_batch).await {
                Ok(Some(batch)) => self.saw_alone(id, batch),
                Ok(None) => {
                    tracing::error!(batch.id = %id, provider_batch = %provider_batch,
                        "the provider does not know batch {provider_batch}; asking again");
                    gone.push((id, provider_batch));
                    self.unchanged(id);
                    self.alone.entry(id).or_default().missing = true;
                }
                Err(err) => {
                    self.shared.account.heed(self.shared.clock.as_ref(), &err);
                    tracing::warn!(batch.id = %id, error = %err, "the provider cannot be asked about a batch");
                    self.unchanged(id);
                    // What stopped this call would stop the others, too: the next tick is soon enough.
                    break;
                }
            }
        }
        self.judge_gone(&gone, newest);
        // One that is seen does not prove that those are there which were not.
        if self.saw_one && self.missing() == 0 {
            self.shared.account.succeeded(Success::Known);
        }
        self.alone
    }

    /// One old batch may be gone. Several at once, or the newest one, look like another key or project than the one
    /// that they were created with: then nothing is believed, and nothing sent, until they are there again or an
    /// operator says that they are really gone.
    fn judge_gone(&self, gone: &[(BatchId, ProviderBatchId)], newest: Option<BatchId>) {
        let Some((_, example)) = gone.first() else { return };
        let clock = self.shared.clock.as_ref();
        let suspicious = self.missing() > 1 || gone.iter().any(|(id, _)| Some(*id) == newest);
        if suspicious && !self.shared.account.is_trusted(clock) {
            let why = format!(
                "the provider does not know {} batches that it has created, {example} among them: is this the right \
                 key and project?",
                self.missing()
            );
            return self.shared.account.pause(clock, Cause::Gone, &why);
        }
        for (id, _) in gone {
            self.registry.do_send(Unseen { id: *id });
        }
    }

    /// How many batches the provider does not know.
    fn missing(&self) -> usize {
        self.alone.values().filter(|alone| alone.missing).count()
    }

    /// Reads the list while its pages hold at least two batches that are waited for.
    async fn sweep(&mut self, rest: &mut HashMap<ProviderBatchId, BatchId>) -> Result<(), ProviderError> {
        let mut after = None;
        while self.calls < self.shared.polling_calls_max && !rest.is_empty() {
            self.calls += 1;
            let page = self.shared.provider.list_batches(after.as_ref(), 100).await?;
            let last = page.data.last().map(|batch| batch.id.clone());
            let mut ours = 0;
            for batch in page.data {
                if let Some(id) = rest.remove(&batch.id) {
                    ours += 1;
                    self.saw(id, batch);
                }
            }
            if ours < 2 || !page.has_more || last == after {
                break;
            }
            after = last;
        }
        Ok(())
    }

    fn saw(&mut self, id: BatchId, batch: BatchObject) {
        self.works();
        self.alone.remove(&id);
        crash_point!("poll.list.before_tell");
        self.registry.do_send(Seen { id, seen: observation(batch) });
    }

    /// The provider answers about a batch of ours.
    fn works(&mut self) {
        self.saw_one = true;
        self.shared.account.succeeded(Success::Read);
    }

    fn saw_alone(&mut self, id: BatchId, batch: BatchObject) {
        self.works();
        let word = batch.status.label().to_owned();
        let alone = self.alone.entry(id).or_default();
        alone.missing = false;
        if alone.last.as_ref() == Some(&word) {
            self.unchanged(id);
        } else {
            *alone = Alone { missing: false, due: self.tick + 1, unchanged: 0, last: Some(word) };
        }
        crash_point!("poll.single.before_tell");
        self.registry.do_send(Seen { id, seen: observation(batch) });
    }

    fn unchanged(&mut self, id: BatchId) {
        let alone = self.alone.entry(id).or_default();
        alone.unchanged = alone.unchanged.saturating_add(1);
        let ticks = (1 << (alone.unchanged / 4).min(8)).min(TICKS_BETWEEN_MAX);
        alone.due = self.tick + u64::from(ticks);
    }
}
