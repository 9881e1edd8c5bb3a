//! The creator: looks at what waits and opens batches. The only one that makes them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use actix::prelude::*;

use super::registry::{Host, Registry, Resume, blocking};
use super::{Shared, alone, every};
use crate::domain::batch::Batch;
use crate::domain::budget::Affordable;
use crate::domain::cut::{self, Due};
use crate::domain::id::{BatchId, CompanyId, Timestamp};
use crate::domain::request::Group;
use crate::domain::room::RELEASE_AFTER;
use crate::store::{GroupWaiting, StoreError};

/// Opens batches.
pub struct Creator {
    shared: Arc<Shared>,
    registry: Addr<Registry>,
    looking: bool,
    /// Look once more after this look, and whether only for full batches.
    again: Option<bool>,
    /// The timer came while nothing could be sent: there is to be a look at everything once that is over.
    missed: bool,
}

impl Creator {
    /// A creator whose batches `registry` hosts.
    pub const fn new(shared: Arc<Shared>, registry: Addr<Registry>) -> Self {
        Self { shared, registry, looking: false, again: None, missed: false }
    }

    /// Looks at every group. Between two ticks of the timer only full batches are cut.
    fn look(&mut self, only_full: bool, ctx: &mut Context<Self>) {
        if !self.shared.switches.creation() {
            return;
        }
        if !self.shared.condition.may_submit() {
            if !only_full && !self.missed {
                self.look_later(ctx);
            }
            return;
        }
        if self.looking {
            // A look at everything must not be lost to one at full batches only.
            self.again = Some(self.again.unwrap_or(true) && only_full);
            return;
        }
        self.looking = true;
        let (shared, registry) = (self.shared.clone(), self.registry.clone());
        let look = async move { alone(open_due(&shared, &registry, only_full)).await };
        ctx.spawn(look.into_actor(self).map(|opened, this, ctx| {
            this.looking = false;
            if let Err(err) = opened {
                tracing::error!(error = %err, "no batches could be opened");
                // One that was opened and not told of would keep its group waiting until the next start.
                this.registry.do_send(Resume { creator: Some(ctx.address()) });
            } else if let Some(only_full) = this.again.take() {
                this.look(only_full, ctx);
            }
        }));
    }

    /// Looks at every group as soon as nothing stands in the way: a long interval must not begin anew for that.
    fn look_later(&mut self, ctx: &mut Context<Self>) {
        self.missed = true;
        let shared = self.shared.clone();
        let clear = async move {
            let mut changes = shared.condition.changes();
            while !shared.condition.may_submit() && changes.changed().await.is_ok() {}
        };
        ctx.spawn(clear.into_actor(self).map(|(), this, ctx| {
            this.missed = false;
            this.look(false, ctx);
        }));
    }
}

impl Actor for Creator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        every(ctx, &self.shared.clock, self.shared.creation_interval, |this, ctx| this.look(false, ctx));
    }
}

/// Something new waits, or a batch is full: perhaps there is enough for another one.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Nudge;

impl Handler<Nudge> for Creator {
    type Result = ();

    fn handle(&mut self, _: Nudge, ctx: &mut Context<Self>) {
        self.look(true, ctx);
    }
}

async fn open_due(
    shared: &Arc<Shared>,
    registry: &Addr<Registry>,
    only_full: bool,
) -> Result<(), StoreError> {
    while shared.store.release_due(shared.clock.now()).await? > 0 {
        crash_point!("release.after_commit");
    }
    // The store keeps the longest time; where the provider is quicker it is as if that were over.
    let early = RELEASE_AFTER.saturating_sub(shared.capacity_hold);
    while shared.store.release_room(shared.clock.now().plus(early)).await? > 0 {
        crash_point!("room.after_commit");
    }
    let worker = shared.clone();
    let groups = blocking(move || {
        let mut groups = worker.reader.waiting()?;
        let mut allowed = Vec::new();
        for group in groups.drain(..) {
            let company = worker.reader.company(&group.group.company)?;
            if company.is_some_and(|company| !company.suspended) {
                allowed.push(group);
            }
        }
        Ok(allowed)
    })
    .await?;
    let now = shared.clock.now();
    let limits = shared.limits_now();
    let (mut due, mut young) = (Vec::new(), Vec::new());
    for waits in groups.into_iter().filter(|waits| waits.filling.is_none()) {
        match cut::due(&waits.waiting, &limits, now) {
            Some(why) => due.push((waits, why)),
            None => young.push(waits),
        }
    }
    let is_full = |(_, due): &(GroupWaiting, Due)| *due != Due::Age;
    if due.is_empty() || (only_full && !due.iter().any(is_full)) {
        return Ok(());
    }
    let worker = shared.clone();
    let held = blocking(move || held_by_company(&worker)).await?;
    // Where a full batch is cut, whoever has waited long enough has its turn as well, and whoever has no more batches than
    // the one with the full batch, and before it: else a company with a million requests would have its next batch before
    // another one's ten. Not where batches are short: then few go to many.
    if limits.age_max <= shared.limits.age_max && due.iter().any(is_full) {
        let worker = shared.clone();
        let full: Vec<_> = due.iter().filter(|one| is_full(one)).map(|(waits, _)| waits.clone()).collect();
        let cut = blocking(move || companies_to_cut(&worker, &full, now)).await?;
        let batches = |company: &CompanyId| held.get(company).map_or(0, |held| held.batches);
        let has_turn = |company: &CompanyId| {
            cut.iter().any(|other| other != company && batches(other) >= batches(company))
        };
        young.retain(|waits| waits.waiting.requests > 0 && has_turn(&waits.group.company));
        // One batch each: of the one that has waited longest.
        young.sort_by_key(|waits| waits.waiting.oldest);
        let mut served = HashSet::new();
        young.retain(|waits| served.insert(waits.group.company.clone()));
        due.extend(young.into_iter().map(|waits| (waits, Due::Turn)));
    }
    // Who has no batch comes before those whose batches hold nothing any more, and a turn before what it is taken from.
    due.sort_by_cached_key(|(waits, due)| {
        let held = held.get(&waits.group.company).map(|held| held.tokens);
        (held.is_some() && *due != Due::Turn, held, waits.waiting.oldest)
    });
    let mut sharers: HashMap<String, HashSet<CompanyId>> = HashMap::new();
    for (waits, _) in &due {
        let companies = sharers.entry(waits.group.model.clone()).or_default();
        companies.insert(waits.group.company.clone());
    }
    for (waits, due) in due {
        let mut batch = empty(shared, waits.group);
        let sharers = sharers.get(&batch.group.model).map_or(1, HashSet::len) as u64;
        let newcomer = !held.contains_key(&batch.group.company);
        let (reader, asked) = (shared.reader.clone(), batch.clone());
        // Read anew for each: the one before may have taken some.
        let room = blocking(move || reader.room(&asked)).await?;
        batch.tokens_max = room.for_these(&waits.waiting, now, sharers, newcomer);
        let (reader, asked) = (shared.reader.clone(), batch.clone());
        if let Some(why) = out_of_money(blocking(move || reader.affordable(&asked)).await?, &batch) {
            // Said once an interval, not with everything that comes in.
            if !only_full {
                tracing::warn!(company.id = %batch.group.company, model = batch.group.model,
                    waiting = waits.waiting.requests, "{why}");
            }
            continue;
        }
        match batch.tokens_max {
            Some(0) => {
                tracing::info!(company.id = %batch.group.company, model = batch.group.model, waiting = waits.waiting.requests,
                    "{} requests for {} wait for room at the provider", waits.waiting.requests, batch.group.model);
            }
            Some(_) | None => {
                let (id, group) = (batch.id, batch.group.clone());
                crash_point!("open.before_commit");
                if let Err(err) = shared.store.open_batch(batch).await {
                    // The other groups need not wait for this one.
                    tracing::error!(company.id = %group.company, error = %err, "a batch could not be opened");
                    continue;
                }
                tracing::info!(batch.id = %id, company.id = %group.company, model = group.model, step = "filling",
                    waiting = waits.waiting.requests, "batch {id} opened: {}", due.label());
                crash_point!("open.after_commit_before_host");
                registry.do_send(Host { id, fresh: true });
            }
        }
    }
    Ok(())
}

/// The companies of those groups of which a batch can be cut now, as far as money and room go.
fn companies_to_cut(
    shared: &Shared,
    full: &[GroupWaiting],
    now: Timestamp,
) -> Result<HashSet<CompanyId>, StoreError> {
    let mut companies = HashSet::new();
    for waits in full {
        let batch = empty(shared, waits.group.clone());
        let room = shared.reader.room(&batch)?.for_these(&waits.waiting, now, 1, true);
        if room != Some(0) && shared.reader.affordable(&batch)? == Affordable::Yes {
            companies.insert(waits.group.company.clone());
        }
    }
    Ok(companies)
}

/// What a company's live batches are and hold.
#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    /// How many there are.
    pub batches: usize,
    /// Tokens of them all.
    pub tokens: u64,
}

/// What each company has; one without a live batch is not in it.
pub fn held_by_company(shared: &Shared) -> Result<HashMap<CompanyId, Held>, StoreError> {
    let mut held: HashMap<CompanyId, Held> = HashMap::new();
    for id in shared.reader.live_batches()? {
        let Some(batch) = shared.reader.batch(id)? else { continue };
        let of = held.entry(batch.group.company).or_default();
        of.batches += 1;
        of.tokens = of.tokens.saturating_add(batch.held_tokens);
    }
    Ok(held)
}

/// Why a company's money does not let anything of a group be cut, if so.
pub fn out_of_money(affordable: Affordable, batch: &Batch) -> Option<String> {
    match affordable {
        Affordable::Yes => None,
        Affordable::NoPrice => Some(format!(
            "there is a monthly budget and no price for {}: set it in [prices], or take the budget away",
            batch.group.model
        )),
        Affordable::TooDear { limit, next } => Some(format!(
            "the budget of a whole month is {limit} micros, and what waits is thought to cost more alone ({next}): it \
             waits until the budget is raised"
        )),
        Affordable::Spent { limit, money, next } => Some(format!(
            "the budget of {} is reached: {} of {} micros are spent, {} are set aside, and the next request is \
             thought to cost {next}",
            batch.purse.month, money.spent, limit, money.reserved
        )),
    }
}

/// An empty batch for a group.
pub fn empty(shared: &Shared, group: Group) -> Batch {
    let price = shared.prices.price_of(&group.model).copied();
    let id = BatchId::new(shared.ids.next());
    Batch { price, ..Batch::open(id, group, shared.identity.clone(), shared.clock.now()) }
}
