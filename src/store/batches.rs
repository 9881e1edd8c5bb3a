//! Batches: opened, filled, stepped, applied, closed. Each function here is one transaction.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::budgets::Reserved;
use super::keys::{self, Key, Tree};
use super::tx::Tx;
use super::{Store, StoreError};
use super::{anomalies, budgets, erasing, intents, outbox, outcomes, requests, rooms};
use crate::domain::analysis::Misfit;
use crate::domain::batch::{Batch, BatchState, Intent, Origin, ProviderIdentity};
use crate::domain::cut::{self, Limits};
use crate::domain::event::Event;
use crate::domain::id::{BatchId, FileId, ProviderBatchId, RequestId, Revision, Timestamp};
use crate::domain::request::{Answered, Cost, Failure, Group, INPUTS_MAX, Outcome, Request, RequestStatus};
use crate::domain::retry;
use crate::domain::step::{self, Change, Policy, Step};

/// A transaction moves at most this many requests.
pub const CHUNK: usize = 250;
/// Of requests that each cost more than a month's budget so many are passed over for what lies behind them.
pub(super) const LOOKED_AT_MAX: usize = 10 * CHUNK;
/// Input files are deleted at the provider this long after the batch was closed: until then something could
/// still come of an old create call.
const KEEP_INPUT: Duration = Duration::from_secs(48 * 3600);
/// Due once the batch of a file is closed; no clock gets there.
const AFTER_THE_CLOSE: Timestamp = Timestamp::from_millis(i64::MAX);

/// A batch that waits out a long outage must not fill the disk with its story: it has at most so many lines.
pub(super) const STORY_MAX: u32 = 2000;

/// What became of a member of a batch; its number is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Outstanding = 0,
    Completed = 1,
    Failed = 2,
    Returned = 3,
    Erased = 4,
    /// It was taken out before it was sent, so its line is in no file of this batch: its result came from elsewhere, or its
    /// text is lost.
    Left = 5,
}

impl Fate {
    pub(super) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Outstanding),
            1 => Some(Self::Completed),
            2 => Some(Self::Failed),
            3 => Some(Self::Returned),
            4 => Some(Self::Erased),
            5 => Some(Self::Left),
            _ => None,
        }
    }
}

/// A failure read from a file while a success may still follow.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Provisional(pub Option<Read>);

/// What was read of a member that failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Read {
    pub failure: Failure,
    pub answered: Answered,
    /// How it is asked again, if it may be.
    pub again: Option<Again>,
}

/// The line with which a request is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Again {
    /// Which stored answer it shows.
    pub misfit: u32,
    pub line_bytes: u32,
    pub line_crc: u32,
    pub estimated_tokens: u32,
}

/// A line of a batch's story.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoryLine {
    /// When it was stored.
    pub at: Timestamp,
    /// The step that the batch was in after it.
    pub step: String,
    /// What happened.
    pub text: String,
}

/// What waits in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupWaiting {
    /// The group.
    pub group: Group,
    /// Eligible requests, their bytes, and the oldest.
    pub waiting: cut::Waiting,
    /// The batch that is being filled from it.
    pub filling: Option<BatchId>,
}

/// What one chunk of filling did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The batch after it.
    pub batch: Batch,
    /// How many requests were moved.
    pub moved: usize,
    /// Whether the batch is full, or nothing that fits is left.
    pub done: bool,
}

/// A line of a result file, decoded and judged, ready to be stored.
#[expect(clippy::large_enum_variant, reason = "nearly all of them are of the large kind")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppliedLine {
    /// It could not be read; where it still names a request, that one's result is lost, not missing: it was
    /// run, and to run it again is for an operator to say.
    Unreadable {
        /// Whose line it seems to be.
        request: Option<RequestId>,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It names something that is no request id.
    Unknown,
    /// It is about this request.
    Line {
        /// The `custom_id`.
        request: RequestId,
        /// What became of it.
        outcome: Outcome,
        /// The analysis as JSON text, where the request asked for one and the answer is valid.
        analysis: Option<String>,
        /// How the model is asked once more, where its answer does not fit and that may help.
        repair: Option<Repair>,
        /// What it cost.
        cost: Option<Cost>,
    },
}

/// A line in which the model is shown an answer of its own that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The answer, and what is wrong with it.
    pub misfit: Misfit,
    /// Length of the input line with the line end.
    pub line_bytes: u32,
    /// CRC32C of the input line.
    pub line_crc: u32,
    /// Estimated input tokens.
    pub estimated_tokens: u32,
}

/// What a closing chunk did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The batch after it.
    pub batch: Batch,
    /// What follows.
    pub step: Step,
}

impl Store {
    /// Stores a new, empty batch. There is at most one filling batch a group.
    pub async fn open_batch(&self, mut batch: Batch) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                let id = batch.id;
                if batch.origin == Origin::Cut {
                    requests::change_group(tx, &batch.group, |stat| match stat.filling {
                        Some(other) => {
                            Err(StoreError::Broken(format!("batch {other} of this group is filling")))
                        }
                        None => {
                            stat.filling = Some(id);
                            Ok(())
                        }
                    })?;
                }
                if batch.tokens_max.is_some() {
                    // Where the gate waits for one that tries, it is this one: no other is cut meanwhile.
                    rooms::change(tx, &batch, |room| room.trying(id))?;
                }
                if let Some(provider_batch) = batch.provider_batch.clone() {
                    adopt(tx, &mut batch, &provider_batch)?;
                }
                if let Some(input) = batch.input.clone() {
                    batch.has_file(&input);
                }
                tx.put(Tree::LiveBatches, id.as_bytes().to_vec(), Vec::new());
                if let Origin::Shadow { of } = batch.origin {
                    tx.put(Tree::Shadows, keys::shadow(of, id), Vec::new());
                }
                let story = match batch.origin {
                    Origin::Cut => "opened".to_owned(),
                    Origin::Shadow { of } => format!(
                        "found at the provider for a create call of batch {of} that was given up: a shadow batch"
                    ),
                    Origin::Adopted => "found at the provider and not known here: taken over".to_owned(),
                };
                tell(tx, &mut batch, &story, batch_at(&id))?;
                tx.write(Tree::Batches, id.as_bytes().to_vec(), &batch)
            })
            .await
    }

    /// Moves the next requests of the batch's group into it, at most 250.
    pub async fn cut_chunk(
        &self,
        id: BatchId,
        revision: Revision,
        limits: Limits,
    ) -> Result<Cut, StoreError> {
        let chunk = self.chunk;
        self.committer.commit(chunk, move |tx| cut_chunk(tx, id, revision, &limits, chunk)).await
    }

    /// Stores a step.
    pub async fn commit_step(
        &self,
        id: BatchId,
        revision: Revision,
        step: Step,
        now: Timestamp,
    ) -> Result<Batch, StoreError> {
        let stored = self
            .committer
            .commit(1, move |tx| {
                let mut batch = load(tx, id, revision)?;
                take_step(tx, &mut batch, &step, now)?;
                save(tx, &mut batch)?;
                Ok(batch)
            })
            .await;
        let batch = self.noting(id, stored, now).await?;
        if batch.closed_at.is_some() {
            self.bell.ring(batch.group.company.clone());
        }
        Ok(batch)
    }

    /// Stores the intent for a create call, or that there is no room for the batch, or that a member left it since its
    /// input file was sent. That is decided here, one batch after the other: of several that saw the same room only so
    /// many go as fit into it, and what leaves a batch after this is in a batch that was sent.
    pub async fn commit_intent(
        &self,
        id: BatchId,
        revision: Revision,
        intent: Intent,
        policy: Policy,
        now: Timestamp,
    ) -> Result<(Batch, Step), StoreError> {
        self.committer
            .commit(1, move |tx| {
                let mut batch = load(tx, id, revision)?;
                let turned_away = match Event::of_outdated(&batch, &intent.input) {
                    None => rooms::read(tx, &batch)?.turns_away(&batch, now),
                    outdated => outdated,
                };
                let event = turned_away.unwrap_or(Event::IntentMade(intent));
                let step = step::step(&batch.state, batch.orders(), &event, &policy)
                    .map_err(|err| StoreError::Broken(err.to_string()))?;
                take_step(tx, &mut batch, &step, now)?;
                save(tx, &mut batch)?;
                Ok((batch, step))
            })
            .await
    }

    /// Stores what a chunk of lines says, with the step that moves the cursor behind it.
    pub async fn apply_lines(
        &self,
        id: BatchId,
        revision: Revision,
        step: Step,
        lines: Vec<AppliedLine>,
        now: Timestamp,
    ) -> Result<Batch, StoreError> {
        let stored = self
            .committer
            .commit(lines.len(), move |tx| {
                let mut batch = load(tx, id, revision)?;
                let mut finished = outbox::Finished::begin(tx, &batch)?;
                for line in lines {
                    outcomes::apply_line(tx, &mut batch, line, &mut finished, now)?;
                }
                finished.tell(tx, &batch, now)?;
                take_step(tx, &mut batch, &step, now)?;
                save(tx, &mut batch)?;
                Ok(batch)
            })
            .await;
        let batch = self.noting(id, stored, now).await?;
        self.bell.ring(batch.group.company.clone());
        Ok(batch)
    }

    /// Gives at most 250 outstanding members their end. `named` are those that the provider said are wrong.
    pub async fn close_chunk(
        &self,
        id: BatchId,
        revision: Revision,
        named: HashMap<RequestId, Failure>,
        retry: retry::Policy,
        policy: Policy,
        now: Timestamp,
    ) -> Result<Closed, StoreError> {
        let chunk = self.chunk;
        let stored = self
            .committer
            .commit(chunk, move |tx| {
                outcomes::close_chunk(tx, (id, revision), chunk, &named, &retry, &policy, now)
            })
            .await;
        let closed = self.noting(id, stored, now).await?;
        self.bell.ring(closed.batch.group.company.clone());
        Ok(closed)
    }

    /// Has a file that could not be deleted tried again at another time, behind those that can.
    pub async fn put_off_deletion(
        &self,
        key: Vec<u8>,
        file: FileId,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                if let Some(of) = tx.get(Tree::Deletions, &key)? {
                    tx.put(Tree::Deletions, deletion(until, &file), of);
                }
                tx.remove(Tree::Deletions, key);
                Ok(())
            })
            .await
    }

    /// Fails a request whose line cannot be made any more, and takes it out of its batch, which is not sent yet. Nothing
    /// where it is not outstanding there, as one that was erased meanwhile.
    pub async fn lose_input(
        &self,
        id: BatchId,
        request: RequestId,
        why: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let lost =
            self.committer.commit(1, move |tx| outcomes::lose_input(tx, id, request, &why, now)).await?;
        if let Some(company) = lost {
            self.bell.ring(company);
        }
        Ok(())
    }

    /// Notes that a file of ours is deleted at the provider, so that nobody waits for that any more.
    pub async fn forget_deletion(&self, key: Vec<u8>, file: FileId) -> Result<(), StoreError> {
        loop {
            let (key, file) = (key.clone(), file.clone());
            let all = self.committer.commit(CHUNK, move |tx| {
                let of = tx.get(Tree::Deletions, &key)?;
                let all = match of.as_deref().and_then(keys::batch_at_start) {
                    Some(batch) => file_gone(tx, batch, &file)?,
                    None => true,
                };
                if all {
                    tx.remove(Tree::Deletions, key);
                }
                Ok(all)
            });
            if all.await? {
                return Ok(());
            }
        }
    }
}

fn batch_at(id: &BatchId) -> Timestamp {
    // The first six bytes of a UUIDv7 are its time.
    let millis = id.as_bytes().iter().take(6).fold(0i64, |sum, byte| (sum << 8) | i64::from(*byte));
    Timestamp::from_millis(millis)
}

pub(super) fn load(tx: &Tx<'_>, id: BatchId, revision: Revision) -> Result<Batch, StoreError> {
    let batch: Batch = tx
        .read(Tree::Batches, id.as_bytes())?
        .ok_or_else(|| StoreError::NotFound { what: "batch", id: id.to_string() })?;
    if batch.revision == revision {
        Ok(batch)
    } else {
        Err(StoreError::Stale { batch: id.to_string(), expected: revision.0, found: batch.revision.0 })
    }
}

pub(super) fn save(tx: &mut Tx<'_>, batch: &mut Batch) -> Result<(), StoreError> {
    batch.revision = batch.revision.next();
    tx.write(Tree::Batches, batch.id.as_bytes().to_vec(), batch)
}

fn cut_chunk(
    tx: &mut Tx<'_>,
    id: BatchId,
    revision: Revision,
    limits: &Limits,
    chunk: usize,
) -> Result<Cut, StoreError> {
    let mut batch = load(tx, id, revision)?;
    if batch.state != BatchState::Filling {
        return Err(StoreError::Broken(format!("batch {id} is not filling")));
    }
    let prefix = Key::new().group(&batch.group).done();
    let end = keys::after_prefix(&prefix);
    let room = rooms::read(tx, &batch)?;
    let (mut from, mut looked_at, mut moved, mut done) = (prefix, 0, 0, false);
    // Those that are passed over must not hold what lies behind them.
    while moved < chunk && !done && looked_at < LOOKED_AT_MAX {
        let waiting = tx.scan(Tree::Pending, &from, end.as_deref(), CHUNK)?;
        done = waiting.len() < CHUNK;
        looked_at += waiting.len();
        if let Some((last, _)) = waiting.last() {
            from = [last.as_slice(), &[0]].concat();
        }
        for (key, _) in &waiting {
            if moved == chunk {
                done = false;
                break;
            }
            let Some(mut request) = requests::waiting_at(tx, Tree::Pending, key)? else { continue };
            let bytes = u64::from(request.line_bytes);
            let tokens = room.corrected(u64::from(request.estimated_tokens));
            let suspects_max = suspects_max(tx, &request)?;
            let members_max = [batch.members_max, suspects_max].into_iter().flatten().min();
            let limits = Limits {
                requests_max: members_max.map_or(limits.requests_max, |max| max.min(limits.requests_max)),
                tokens_max: batch.tokens_max,
                ..*limits
            };
            let inputs = batch.inputs + u64::from(request.inputs);
            let too_many_inputs = batch.counts.members > 0 && inputs > INPUTS_MAX;
            if too_many_inputs
                || !cut::fits(
                    batch.counts.members,
                    batch.input_bytes,
                    batch.held_tokens,
                    bytes,
                    tokens,
                    &limits,
                )
            {
                if budgets::is_too_dear(tx, &batch, &room, &request)? {
                    continue;
                }
                done = true;
                break;
            }
            match budgets::reserve(tx, &mut batch, &room, &request)? {
                Reserved::Yes => {}
                Reserved::TooDear => continue,
                Reserved::Not => {
                    done = true;
                    break;
                }
            }
            batch.members_max = members_max;
            requests::dequeue(tx, &request)?;
            join(tx, &mut batch, &mut request)?;
            rooms::reserve(tx, &mut batch, tokens)?;
            moved += 1;
        }
    }
    // All that were looked at were passed over.
    done |= moved == 0;
    done |= batch.counts.members >= batch.members_max.unwrap_or(limits.requests_max).min(limits.requests_max);
    if moved > 0 {
        save(tx, &mut batch)?;
    }
    Ok(Cut { batch, moved, done })
}

/// Makes a request that waits for nothing else a member.
pub(super) fn join(tx: &mut Tx<'_>, batch: &mut Batch, request: &mut Request) -> Result<(), StoreError> {
    requests::move_to(tx, request, RequestStatus::BatchingInProgress)?;
    request.batch = Some(batch.id);
    requests::save(tx, request)?;
    let member = keys::member(batch.id, request.id);
    tx.put(Tree::Members, member.clone(), vec![Fate::Outstanding as u8]);
    tx.write(Tree::Outstanding, member, &Provisional::default())?;
    batch.counts.members += 1;
    batch.input_bytes += u64::from(request.line_bytes);
    batch.inputs += u64::from(request.inputs);
    batch.estimated_tokens += u64::from(request.estimated_tokens);
    Ok(())
}

/// How many members a batch with this request may have: half of the one before, once batches with it were refused for
/// their lines or their size too often. So a line that the provider never names is found in some twenty rounds, and
/// holds the others no longer than that.
fn suspects_max(tx: &Tx<'_>, request: &Request) -> Result<Option<u64>, StoreError> {
    let Some(refused) = cut::refused_with(&request.history) else { return Ok(None) };
    let before: Option<Batch> = tx.read(Tree::Batches, refused.as_bytes())?;
    Ok(before.map(|before| (before.counts.members / 2).max(1)))
}

/// Moves the batch to the step's next state, with all that belongs to it. The caller saves it.
pub(super) fn take_step(
    tx: &mut Tx<'_>,
    batch: &mut Batch,
    step: &Step,
    now: Timestamp,
) -> Result<(), StoreError> {
    if batch.state == BatchState::Filling && step.next != BatchState::Filling && batch.origin == Origin::Cut {
        requests::change_group(tx, &batch.group, |stat| {
            stat.filling = None;
            Ok(())
        })?;
    }
    let before = std::mem::replace(&mut batch.state, step.next.clone());
    let ran_nothing = step
        .changes
        .iter()
        .any(|change| if let Change::Ended(ended) = change { ended.ran_nothing() } else { false });
    if let BatchState::Creating { intent, .. } = &batch.state
        && before.intent() != Some(intent)
    {
        intents::note(tx, batch.id, intent)?;
    }
    if matches!(batch.state, BatchState::Creating { .. }) {
        // What comes next costs money: a store that went back behind this must be noticed.
        tx.anchor();
    }
    for change in &step.changes {
        match change {
            Change::Input(file) => {
                batch.has_file(file);
                // Its upload was noted when it was begun.
                batch.unsure_uploads = batch.unsure_uploads.saturating_sub(1);
                // An upload before this one is of no use any more.
                if let Some(old) = batch.input.replace(file.clone()).filter(|old| old != file) {
                    delete_later(tx, batch, now, &old);
                }
            }
            Change::Adopt(provider_batch) => adopt(tx, batch, provider_batch)?,
            Change::Supersede(intent) => {
                batch.superseded.push(intent.clone());
                intents::supersede(tx, batch.id, intent)?;
            }
            Change::Cancel(cancel) => batch.cancel = Some(cancel.clone()),
            // One that was taken over holds no tokens here: when it was turned away, and beside what, nobody knows.
            Change::NoRoom { .. } if batch.held_tokens == 0 => {}
            Change::NoRoom { first } => {
                let (tokens, first) = (batch.held_tokens, *first);
                rooms::change(tx, batch, |room| room.refused(tokens, now, first))?;
            }
            Change::Admitted => {
                let id = batch.id;
                rooms::change(tx, batch, |room| room.admitted(id, now))?;
            }
            Change::Overdue => batch.is_overdue = true,
            Change::Ended(ended) => {
                batch.is_overdue = false;
                batch.completed_at = Some(ended.at);
                batch.output.clone_from(&ended.output);
                batch.error.clone_from(&ended.error);
                for file in [&ended.output, &ended.error].into_iter().flatten() {
                    batch.has_file(file);
                }
            }
            Change::Processed(at) => {
                anomalies::prove_closed(tx, batch, now)?;
                batch.processed_at = Some(*at);
            }
            Change::Closed(at) => {
                anomalies::prove_closed(tx, batch, now)?;
                batch.closed_at = Some(*at);
                budgets::release(tx, batch)?;
                tx.remove(Tree::LiveBatches, batch.id.as_bytes().to_vec());
                if let Some(input) = batch.input.clone() {
                    delete_later(tx, batch, *at, &input);
                }
                for file in [&batch.output, &batch.error].into_iter().flatten() {
                    if tx.has(Tree::Deletions, &deletion(AFTER_THE_CLOSE, file))? {
                        tx.remove(Tree::Deletions, deletion(AFTER_THE_CLOSE, file));
                        delete_at(tx, batch, *at, file);
                    }
                }
                erasing::closed(tx, batch)?;
                outbox::batch_finished(tx, batch, now)?;
            }
        }
    }
    rooms::follow(tx, batch, &before, ran_nothing, now)?;
    if let Some(story) = &step.story {
        tell(tx, batch, story, now)?;
    }
    Ok(())
}

/// Has a file of ours deleted at the provider, once nothing can come of it any more.
fn delete_later(tx: &mut Tx<'_>, batch: &Batch, at: Timestamp, file: &FileId) {
    delete_at(tx, batch, at.plus(KEEP_INPUT), file);
}

fn delete_at(tx: &mut Tx<'_>, batch: &Batch, due: Timestamp, file: &FileId) {
    tx.put(Tree::Deletions, deletion(due, file), of_deletion(batch.id, &batch.provider));
}

/// Has the result files of a batch deleted once it is closed: they hold an answer to what was removed here. Before that
/// they are still read.
pub(super) fn delete_results(tx: &mut Tx<'_>, batch: &Batch) {
    for file in [&batch.output, &batch.error].into_iter().flatten() {
        delete_at(tx, batch, AFTER_THE_CLOSE, file);
    }
}

/// Has the files of a batch deleted that had what is removed here. Those of a closed one are due at once: nobody reads
/// them any more, and of an old create call only something unpaid can come without the input file.
pub(super) fn delete_files(tx: &mut Tx<'_>, batch: &Batch) {
    let Some(closed_at) = batch.closed_at else {
        delete_results(tx, batch);
        return;
    };
    // Due since the close, for each of its requests: so a file is noted once, however many of them are removed.
    for file in &batch.files {
        tx.remove(Tree::Deletions, deletion(closed_at.plus(KEEP_INPUT), file));
        delete_at(tx, batch, closed_at, file);
    }
}

/// Notes that a file is gone at the provider, and forgets what a batch that has no other one had. At most so many entries
/// go; whether those are all.
fn file_gone(tx: &mut Tx<'_>, id: BatchId, file: &FileId) -> Result<bool, StoreError> {
    let Some(mut batch) = tx.read::<Batch>(Tree::Batches, id.as_bytes())? else { return Ok(true) };
    if batch.files.contains(file) {
        batch.files.retain(|other| other != file);
        // Its revision stays: its actor has read nothing of what changes here.
        tx.write(Tree::Batches, id.as_bytes().to_vec(), &batch)?;
    }
    Ok(batch.may_have_files() || erasing::forget_aged(tx, id)?)
}

fn deletion(due: Timestamp, file: &FileId) -> Vec<u8> {
    Key::new().time(due).text(file.as_str()).done()
}

/// Whose file it is, and where.
fn of_deletion(batch: BatchId, provider: &ProviderIdentity) -> Vec<u8> {
    Key::new().bytes(batch.as_bytes()).bytes(provider.key().as_bytes()).done()
}

fn adopt(tx: &mut Tx<'_>, batch: &mut Batch, provider_batch: &ProviderBatchId) -> Result<(), StoreError> {
    let key = Key::new().text(provider_batch.as_str()).done();
    match tx.read::<BatchId>(Tree::ProviderBatches, &key)? {
        Some(other) if other != batch.id => {
            return Err(StoreError::Broken(format!("{provider_batch} belongs to batch {other} already")));
        }
        Some(_) | None => {}
    }
    tx.write(Tree::ProviderBatches, key, &batch.id)?;
    batch.provider_batch = Some(provider_batch.clone());
    Ok(())
}

pub(super) fn tell(tx: &mut Tx<'_>, batch: &mut Batch, text: &str, at: Timestamp) -> Result<(), StoreError> {
    if batch.story_lines >= STORY_MAX {
        return Ok(());
    }
    let line =
        StoryLine { at, step: batch.state.label().to_owned(), text: text.chars().take(1000).collect() };
    let key = Key::new().bytes(batch.id.as_bytes()).u32(batch.story_lines).done();
    batch.story_lines += 1;
    tx.write(Tree::Story, key, &line)
}

#[cfg(test)]
pub(super) mod tests;
