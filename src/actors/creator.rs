//! The creator: looks at what waits and opens batches. The only one that makes them.

use std::sync::Arc;

use actix::prelude::*;

use super::registry::{Host, Registry, Resume, blocking};
use super::{Shared, alone};
use crate::domain::batch::Batch;
use crate::domain::cut::{self, Due};
use crate::domain::id::BatchId;
use crate::domain::request::Group;
use crate::store::StoreError;

/// Opens batches.
pub struct Creator {
    shared: Arc<Shared>,
    registry: Addr<Registry>,
    looking: bool,
    /// Look once more after this look, and whether only for full batches.
    again: Option<bool>,
}

impl Creator {
    /// A creator whose batches `registry` hosts.
    pub const fn new(shared: Arc<Shared>, registry: Addr<Registry>) -> Self {
        Self { shared, registry, looking: false, again: None }
    }

    /// Looks at every group. Between two ticks of the timer only full batches are cut.
    fn look(&mut self, only_full: bool, ctx: &mut Context<Self>) {
        if !self.shared.switches.creation() || !self.shared.condition.may_submit() {
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
                this.registry.do_send(Resume { creator: ctx.address() });
            } else if let Some(only_full) = this.again.take() {
                this.look(only_full, ctx);
            }
        }));
    }
}

impl Actor for Creator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(self.shared.creation_interval, |this, ctx| this.look(false, ctx));
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
    while shared.store.release_due(shared.clock.now()).await? > 0 {}
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
    for waits in groups {
        let due = cut::due(&waits.waiting, &shared.limits, shared.clock.now());
        match due {
            _ if waits.filling.is_some() => {}
            None => {}
            Some(Due::Age) if only_full => {}
            Some(due) => {
                let batch = empty(shared, waits.group);
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
                registry.do_send(Host(id));
            }
        }
    }
    Ok(())
}

fn empty(shared: &Shared, group: Group) -> Batch {
    Batch::open(BatchId::new(shared.ids.next()), group, shared.identity.clone(), shared.clock.now())
}
