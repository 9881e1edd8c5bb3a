//! The eraser: carries out what is to be erased, step by step, and goes on with it after a restart.
//!
//! The records go first, then the files of each batch that had something of it, once that batch is over; then the
//! store is compacted, and only then an erasure is done.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::aging::{self, Aging, Place};
use super::erasing::{Compaction, EVERY, Holds, go_through, remove_all};
use super::registry::{Registry, blocking};
use super::{Shared, alone, every, later};
use crate::domain::id::ErasureId;
use crate::store::Removed;

/// How often it looks whether anything is to be erased; who orders it says so besides.
const IDLE: Duration = Duration::from_secs(600);
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
    /// Records are being removed beside a look that waits for the provider.
    removing: bool,
    /// And once more, for what was ordered since.
    remove_again: bool,
    /// Somebody asked for a look while one was under way, and whether for a compaction.
    again: Option<bool>,
    /// Which look is the next one; those that were planned before it are not.
    turn: u64,
    /// When a compaction was tried last, on the monotonic clock: one that failed is not repeated at each look, either.
    tried: Option<u64>,
    /// Whether it was told that there is no room for one.
    lacks_room: bool,
    /// Erasures that met with trouble.
    holds: Holds,
    aging: Aging,
}

impl Eraser {
    /// An eraser that has `registry` end the batches in its way.
    pub fn new(shared: Arc<Shared>, registry: Addr<Registry>) -> Self {
        let (holds, aging) = (Holds::default(), Aging::default());
        Self {
            shared,
            registry,
            busy: false,
            removing: false,
            remove_again: false,
            again: None,
            turn: 0,
            tried: None,
            lacks_room: false,
            holds,
            aging,
        }
    }

    fn look(&mut self, compact: bool, ctx: &mut Context<Self>) {
        if self.busy {
            // What was ordered meanwhile may have come too late for the look that is under way.
            self.again = Some(compact || self.again.unwrap_or(false));
            self.remove_meanwhile(ctx);
            return;
        }
        if self.shared.condition.intake_stopped().is_some() {
            self.look_in(EVERY, ctx);
            return;
        }
        self.busy = true;
        let (shared, registry) = (self.shared.clone(), self.registry.clone());
        let now = shared.clock.monotonic_ms();
        let hour = u64::try_from(COMPACTED_EVERY.as_millis()).unwrap_or(u64::MAX);
        let may_compact = compact || self.tried.is_none_or(|at| now.saturating_sub(at) >= hour);
        // A copy: whoever asks meanwhile why one waits is answered.
        let mut holds = self.holds.clone();
        let round = async move {
            let gone = alone(go_through(&shared, &registry, may_compact, &mut holds)).await;
            let reader = shared.reader.clone();
            let left = blocking(move || reader.open_erasures(None, 1)).await;
            (gone, holds, left.is_ok_and(|left| left.is_empty()))
        };
        ctx.spawn(round.into_actor(self).map(move |(gone, holds, idle), this, ctx| {
            this.busy = false;
            this.holds = holds;
            match gone {
                Ok(Compaction::Tried) => {
                    this.tried = Some(this.shared.clock.monotonic_ms());
                    this.lacks_room = false;
                }
                Ok(Compaction::NoRoom) if !this.lacks_room => {
                    this.lacks_room = true;
                    let bytes = this.shared.reader.size_on_disk();
                    tracing::warn!(bytes, "erasures are not done: there is no room on the disk for a compacted copy of the store of {bytes} bytes; it is made once there is");
                }
                Ok(Compaction::NoRoom | Compaction::None) => {}
                Err(err) => tracing::error!(error = %err, "erasures could not go on; trying again"),
            }
            match this.again.take() {
                Some(compact) => this.look(compact, ctx),
                None => this.look_in(if idle { IDLE } else { EVERY }, ctx),
            }
        }));
    }
}

impl Eraser {
    /// Removes the records of what was ordered during a look: that may wait for the provider long, and what is to be
    /// erased is not to be seen meanwhile.
    fn remove_meanwhile(&mut self, ctx: &mut Context<Self>) {
        if self.shared.condition.intake_stopped().is_some() {
            return;
        }
        if self.removing {
            // It may have passed the place at which the newest one stands.
            self.remove_again = true;
            return;
        }
        self.removing = true;
        let (shared, registry) = (self.shared.clone(), self.registry.clone());
        let removing = async move { alone(remove_all(&shared, &registry)).await };
        ctx.spawn(removing.into_actor(self).map(|removed, this, ctx| {
            this.removing = false;
            if let Err(err) = removed {
                tracing::error!(error = %err, "records could not be erased; the next look tries again");
            }
            if std::mem::take(&mut this.remove_again) {
                this.remove_meanwhile(ctx);
            }
        }));
    }

    /// Plans the next look.
    fn look_in(&mut self, wait: Duration, ctx: &mut Context<Self>) {
        self.turn += 1;
        let turn = self.turn;
        later(ctx, &self.shared.clock, wait, move |this, ctx| {
            if this.turn == turn {
                this.look(false, ctx);
            }
        });
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

/// Asks what an erasure met with when it was tried last; nothing since the start, or if it went well.
#[derive(Message)]
#[rtype(result = "Option<String>")]
pub struct Trouble(pub ErasureId);

impl Handler<Trouble> for Eraser {
    type Result = Option<String>;

    fn handle(&mut self, Trouble(id): Trouble, _: &mut Context<Self>) -> Self::Result {
        self.holds.get(&id).map(|hold| hold.why.clone())
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
