//! Room for tokens at the provider, held by batches in the same transaction as their state.

use super::keys::{self, Key, Tree};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, codec};
use crate::domain::batch::{Batch, BatchState, Orders};
use crate::domain::id::Timestamp;
use crate::domain::room::{RELEASE_AFTER, Room};

/// How a batch holds its tokens, by its state.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Reserved,
    Enqueued,
    Nothing,
}

pub(super) const fn hold(state: &BatchState) -> Hold {
    if state.is_unsent() {
        Hold::Reserved
    } else if state.may_be_running() {
        Hold::Enqueued
    } else {
        Hold::Nothing
    }
}

/// The key of the room that a batch takes its tokens from.
pub(super) fn key(batch: &Batch) -> Vec<u8> {
    Key::new().text(&batch.provider.key()).text(&batch.group.model).done()
}

pub(super) fn change(
    tx: &mut Tx<'_>,
    batch: &Batch,
    change: impl FnOnce(&mut Room),
) -> Result<(), StoreError> {
    change_at(tx, key(batch), change)
}

fn change_at(tx: &mut Tx<'_>, key: Vec<u8>, change: impl FnOnce(&mut Room)) -> Result<(), StoreError> {
    let mut room: Room = tx.read(Tree::Rooms, &key)?.unwrap_or_default();
    change(&mut room);
    tx.write(Tree::Rooms, key, &room)
}

pub(super) fn read(tx: &Tx<'_>, batch: &Batch) -> Result<Room, StoreError> {
    Ok(tx.read(Tree::Rooms, &key(batch))?.unwrap_or_default())
}

/// Holds `tokens` more for a batch that is being filled.
pub(super) fn reserve(tx: &mut Tx<'_>, batch: &mut Batch, tokens: u64) -> Result<(), StoreError> {
    batch.held_tokens = batch.held_tokens.saturating_add(tokens);
    change(tx, batch, |room| room.reserved = room.reserved.saturating_add(tokens))
}

/// Moves what a batch holds when it has gone from `before` to its state now.
pub(super) fn follow(
    tx: &mut Tx<'_>,
    batch: &mut Batch,
    before: &BatchState,
    ran_nothing: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (from, to) = (hold(before), hold(&batch.state));
    let (id, tokens) = (batch.id, batch.held_tokens);
    if matches!(batch.state, BatchState::Parked { .. }) && !matches!(before, BatchState::Parked { .. }) {
        // It waits for an operator: the gate may be tried by another.
        change(tx, batch, |room| room.gave_up(id))?;
    }
    if from == to {
        return Ok(());
    }
    let creating = matches!(batch.state, BatchState::Creating { .. });
    let later = from == Hold::Enqueued && to == Hold::Nothing && !ran_nothing;
    change(tx, batch, |room| {
        match from {
            Hold::Reserved => room.reserved = room.reserved.saturating_sub(tokens),
            Hold::Enqueued if later => {}
            Hold::Enqueued => room.enqueued = room.enqueued.saturating_sub(tokens),
            Hold::Nothing => {}
        }
        match to {
            Hold::Reserved => room.reserved = room.reserved.saturating_add(tokens),
            Hold::Enqueued => room.enqueued = room.enqueued.saturating_add(tokens),
            Hold::Nothing => room.gave_up(id),
        }
        if creating {
            room.trying(id);
        }
    })?;
    if to == Hold::Nothing {
        batch.held_tokens = 0;
        if later && tokens > 0 {
            // The provider counts them a while longer.
            let due = Key::new().time(now.plus(RELEASE_AFTER)).bytes(id.as_bytes()).done();
            tx.write(Tree::Releases, due, &(key(batch), tokens))?;
        }
    }
    Ok(())
}

impl Store {
    /// Gives back the tokens of batches that ended long enough ago; says how many batches. At most 250 at once.
    pub async fn release_room(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.committer
            .commit(1, move |tx| {
                let end = Key::new().time(now.plus(std::time::Duration::from_millis(1))).done();
                let mut due = tx.scan(Tree::Releases, &[], Some(&end), super::batches::CHUNK)?;
                // Nothing is held so long: the clock was turned back.
                let far = Key::new().time(now.plus(2 * RELEASE_AFTER)).done();
                due.extend(tx.scan(Tree::Releases, &far, None, super::batches::CHUNK)?);
                for (due, value) in &due {
                    let (room, tokens): (Vec<u8>, u64) = codec::decode(value)?;
                    change_at(tx, room, |room| room.enqueued = room.enqueued.saturating_sub(tokens))?;
                    tx.remove(Tree::Releases, due.clone());
                }
                if !due.is_empty() {
                    crash_point!("room.before_commit");
                }
                Ok(due.len())
            })
            .await
    }
}

impl StoreReader {
    /// What holds for a batch, with what is known of others: where the provider admitted one of the same model since
    /// its requests were refused together before, a refusal without a reason is not the account's.
    pub fn orders(&self, batch: &Batch) -> Result<Orders, StoreError> {
        let orders = batch.orders();
        if orders.at_fault || batch.counts.members < 2 {
            return Ok(orders);
        }
        // The halves of a batch need not be cut at the same time, and the good one may be over by then.
        let first = self.members(batch.id, None, 1)?.pop();
        let first = first.map(|first| self.request(first)).transpose()?.flatten();
        let refused_at = first.and_then(|first| first.history.last().map(|attempt| attempt.at));
        let since = refused_at.unwrap_or(batch.created_at).min(batch.created_at);
        let at_fault = self.room(batch)?.admitted_at.is_some_and(|at| at >= since);
        Ok(Orders { at_fault, ..orders })
    }

    /// The room for a batch's model at its provider.
    pub fn room(&self, batch: &Batch) -> Result<Room, StoreError> {
        Ok(self.read(Tree::Rooms, &key(batch))?.unwrap_or_default())
    }

    /// Every room, with the provider's text and the model.
    pub fn rooms(&self) -> Result<Vec<(String, String, Room)>, StoreError> {
        // A provider has some dozens of models; more than this are not shown.
        let entries = self.engine.scan(Tree::Rooms, &[], None, 10_000)?;
        let mut rooms = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let (provider, rest) = keys::text_at_start(&key).unwrap_or_default();
            let (model, _) = keys::text_at_start(rest).unwrap_or_default();
            rooms.push((provider, model, codec::decode(&value)?));
        }
        Ok(rooms)
    }
}
