//! Batches: opened, filled, stepped, applied, closed. Each function here is one transaction.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::{self, Key, Tree};
use super::requests::{self, GroupStat};
use super::sessions;
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, codec};
use crate::domain::batch::{Batch, BatchState, Ended, Terminal};
use crate::domain::cut::{self, Limits};
use crate::domain::event::Event;
use crate::domain::id::{BatchId, CompanyId, FileId, ProviderBatchId, RequestId, Revision, Timestamp};
use crate::domain::request::{
    Answered, Attempt, Cost, Failure, FailureClass, Group, Outcome, Request, RequestStatus,
};
use crate::domain::retry::{self, BatchFailure, Decision};
use crate::domain::session::SessionState;
use crate::domain::step::{self, Change, Policy, Step};

/// A transaction moves at most this many requests.
pub const CHUNK: usize = 250;
/// Input files are deleted at the provider this long after the batch was closed: until then something could
/// still come of an old create call.
const KEEP_INPUT: Duration = Duration::from_secs(48 * 3600);

/// What became of a member of a batch; its number is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Outstanding = 0,
    Completed = 1,
    Failed = 2,
    Returned = 3,
    Erased = 4,
}

impl Fate {
    pub(super) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Outstanding),
            1 => Some(Self::Completed),
            2 => Some(Self::Failed),
            3 => Some(Self::Returned),
            4 => Some(Self::Erased),
            _ => None,
        }
    }
}

/// A failure read from a file while a success may still follow.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Provisional(Option<(Failure, Answered)>);

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
        /// What it cost.
        cost: Option<Cost>,
    },
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
    pub async fn open_batch(&self, batch: Batch) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                let id = batch.id;
                requests::change_group(tx, &batch.group, |stat| match stat.filling {
                    Some(other) => Err(StoreError::Broken(format!("batch {other} of this group is filling"))),
                    None => {
                        stat.filling = Some(id);
                        Ok(())
                    }
                })?;
                tx.put(Tree::LiveBatches, id.as_bytes().to_vec(), Vec::new());
                let mut batch = batch;
                tell(tx, &mut batch, "opened", batch_at(&id))?;
                tx.write(Tree::Batches, id.as_bytes().to_vec(), &batch)
            })
            .await
    }

    /// Moves at most 250 requests of the batch's group into it.
    pub async fn cut_chunk(
        &self,
        id: BatchId,
        revision: Revision,
        limits: Limits,
    ) -> Result<Cut, StoreError> {
        self.committer.commit(CHUNK, move |tx| cut_chunk(tx, id, revision, &limits)).await
    }

    /// Stores a step.
    pub async fn commit_step(
        &self,
        id: BatchId,
        revision: Revision,
        step: Step,
        now: Timestamp,
    ) -> Result<Batch, StoreError> {
        self.committer
            .commit(1, move |tx| {
                let mut batch = load(tx, id, revision)?;
                take_step(tx, &mut batch, &step, now)?;
                save(tx, &mut batch)?;
                Ok(batch)
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
        self.committer
            .commit(lines.len(), move |tx| {
                let mut batch = load(tx, id, revision)?;
                for line in lines {
                    apply_line(tx, &mut batch, line, now)?;
                }
                take_step(tx, &mut batch, &step, now)?;
                save(tx, &mut batch)?;
                Ok(batch)
            })
            .await
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
        self.committer
            .commit(CHUNK, move |tx| close_chunk(tx, id, revision, &named, &retry, &policy, now))
            .await
    }

    /// Forgets a file of ours that is deleted at the provider.
    pub async fn forget_deletion(&self, key: Vec<u8>) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                tx.remove(Tree::Deletions, key);
                Ok(())
            })
            .await
    }
}

fn batch_at(id: &BatchId) -> Timestamp {
    // The first six bytes of a UUIDv7 are its time.
    let millis = id.as_bytes().iter().take(6).fold(0i64, |sum, byte| (sum << 8) | i64::from(*byte));
    Timestamp::from_millis(millis)
}

fn load(tx: &Tx<'_>, id: BatchId, revision: Revision) -> Result<Batch, StoreError> {
    let batch: Batch = tx
        .read(Tree::Batches, id.as_bytes())?
        .ok_or_else(|| StoreError::NotFound { what: "batch", id: id.to_string() })?;
    if batch.revision == revision {
        Ok(batch)
    } else {
        Err(StoreError::Stale { batch: id.to_string(), expected: revision.0, found: batch.revision.0 })
    }
}

fn save(tx: &mut Tx<'_>, batch: &mut Batch) -> Result<(), StoreError> {
    batch.revision = batch.revision.next();
    tx.write(Tree::Batches, batch.id.as_bytes().to_vec(), batch)
}

fn cut_chunk(tx: &mut Tx<'_>, id: BatchId, revision: Revision, limits: &Limits) -> Result<Cut, StoreError> {
    let mut batch = load(tx, id, revision)?;
    if batch.state != BatchState::Filling {
        return Err(StoreError::Broken(format!("batch {id} is not filling")));
    }
    let prefix = Key::new().group(&batch.group).done();
    let waiting = tx.scan_prefix(Tree::Pending, &prefix, CHUNK)?;
    let mut moved = 0;
    let mut done = waiting.len() < CHUNK;
    for (key, _) in &waiting {
        let request = keys::request_at_end(key)
            .ok_or_else(|| StoreError::Codec("a pending key is too short".to_owned()))?;
        let mut request = requests::load(tx, request)?;
        let bytes = u64::from(request.line_bytes);
        if !cut::fits(batch.counts.members, batch.input_bytes, bytes, limits) {
            done = true;
            break;
        }
        requests::dequeue(tx, &request)?;
        requests::move_to(tx, &mut request, RequestStatus::BatchingInProgress)?;
        request.batch = Some(id);
        requests::save(tx, &request)?;
        let member = keys::member(id, request.id);
        tx.put(Tree::Members, member.clone(), vec![Fate::Outstanding as u8]);
        tx.write(Tree::Outstanding, member, &Provisional::default())?;
        batch.counts.members += 1;
        batch.input_bytes += bytes;
        batch.estimated_tokens += u64::from(request.estimated_tokens);
        moved += 1;
    }
    done |= batch.counts.members >= limits.requests_max;
    if moved > 0 {
        save(tx, &mut batch)?;
    }
    Ok(Cut { batch, moved, done })
}

/// Moves the batch to the step's next state, with all that belongs to it. The caller saves it.
fn take_step(tx: &mut Tx<'_>, batch: &mut Batch, step: &Step, now: Timestamp) -> Result<(), StoreError> {
    if batch.state == BatchState::Filling && step.next != BatchState::Filling {
        requests::change_group(tx, &batch.group, |stat| {
            stat.filling = None;
            Ok(())
        })?;
    }
    batch.state = step.next.clone();
    if matches!(batch.state, BatchState::Creating { .. }) {
        // What comes next costs money: a store that went back behind this must be noticed.
        tx.anchor();
    }
    for change in &step.changes {
        match change {
            Change::Input(file) => batch.input = Some(file.clone()),
            Change::Adopt(provider_batch) => adopt(tx, batch, provider_batch)?,
            Change::Supersede(intent) => batch.superseded.push(intent.clone()),
            Change::Ended(ended) => {
                batch.completed_at = Some(ended.at);
                batch.output.clone_from(&ended.output);
                batch.error.clone_from(&ended.error);
            }
            Change::Processed(at) => {
                prove_closed(tx, batch)?;
                batch.processed_at = Some(*at);
            }
            Change::Closed(at) => {
                prove_closed(tx, batch)?;
                batch.closed_at = Some(*at);
                tx.remove(Tree::LiveBatches, batch.id.as_bytes().to_vec());
                let inputs = batch.input.iter().chain(batch.superseded.iter().map(|intent| &intent.input.id));
                let due = at.plus(KEEP_INPUT);
                let keys: Vec<_> =
                    inputs.map(|file| Key::new().time(due).text(file.as_str()).done()).collect();
                for key in keys {
                    tx.put(Tree::Deletions, key, Vec::new());
                }
            }
        }
    }
    if let Some(story) = &step.story {
        tell(tx, batch, story, now)?;
    }
    Ok(())
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

/// A batch may close only when its sum is right and nothing is outstanding.
fn prove_closed(tx: &Tx<'_>, batch: &Batch) -> Result<(), StoreError> {
    let outstanding = tx.scan_prefix(Tree::Outstanding, batch.id.as_bytes(), 1)?;
    if outstanding.is_empty() && batch.counts.outstanding() == 0 {
        return Ok(());
    }
    Err(StoreError::Broken(format!(
        "batch {} would close with {} members unaccounted for",
        batch.id,
        batch.counts.outstanding().max(1)
    )))
}

fn tell(tx: &mut Tx<'_>, batch: &mut Batch, text: &str, at: Timestamp) -> Result<(), StoreError> {
    // A batch that waits out a long outage must not fill the disk with its story.
    const STORY_MAX: u32 = 2000;
    if batch.story_lines >= STORY_MAX {
        return Ok(());
    }
    let line =
        StoryLine { at, step: batch.state.label().to_owned(), text: text.chars().take(1000).collect() };
    let key = Key::new().bytes(batch.id.as_bytes()).u32(batch.story_lines).done();
    batch.story_lines += 1;
    tx.write(Tree::Story, key, &line)
}

fn apply_line(
    tx: &mut Tx<'_>,
    batch: &mut Batch,
    line: AppliedLine,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (id, outcome, analysis, cost) = match line {
        AppliedLine::Line { request, outcome, analysis, cost } => (request, outcome, analysis, cost),
        AppliedLine::Unreadable { request, reason } => {
            batch.anomalies.unreadable += 1;
            let Some(request) = request else { return Ok(()) };
            let detail = format!("its line in the result file cannot be read: {reason}");
            let failure = Failure::new(FailureClass::Lost, "result_lost", &detail);
            let outcome = Outcome { answered: Answered::default(), result: Err(failure) };
            (request, outcome, None, None)
        }
        AppliedLine::Unknown => {
            batch.anomalies.unknown += 1;
            return Ok(());
        }
    };
    let member = keys::member(batch.id, id);
    if !tx.has(Tree::Members, &member)? {
        batch.anomalies.unknown += 1;
        return Ok(());
    }
    let mut request = requests::load(tx, id)?;
    book(tx, batch, &mut request, cost)?;
    let outstanding: Option<Provisional> = tx.read(Tree::Outstanding, &member)?;
    match outcome.result {
        Ok(body) if request.status == RequestStatus::ProcessingComplete => {
            // A success is never overwritten.
            drop(body);
            batch.anomalies.repeated += 1;
        }
        Ok(body) => {
            request.answered = outcome.answered;
            complete(tx, batch, &mut request, &body, analysis.as_deref(), now)?;
        }
        Err(failure) => match outstanding {
            Some(Provisional(None)) => {
                tx.write(Tree::Outstanding, member, &Provisional(Some((failure, outcome.answered))))?;
            }
            Some(Provisional(Some(_))) | None => batch.anomalies.repeated += 1,
        },
    }
    requests::save(tx, &request)
}

/// Books what a line cost, once a provider batch and request, whatever its outcome.
fn book(
    tx: &mut Tx<'_>,
    batch: &mut Batch,
    request: &mut Request,
    cost: Option<Cost>,
) -> Result<(), StoreError> {
    let (Some(cost), Some(provider_batch)) = (cost, &batch.provider_batch) else { return Ok(()) };
    let key = Key::new().bytes(request.id.as_bytes()).text(provider_batch.as_str()).done();
    if tx.has(Tree::Bookings, &key)? {
        return Ok(());
    }
    tx.write(Tree::Bookings, key, &cost)?;
    batch.cost_micros = batch.cost_micros.saturating_add(cost.micros);
    let before = request.cost.as_ref().map_or(0, |cost| cost.micros);
    request.cost = Some(Cost { micros: before.saturating_add(cost.micros), ..cost });
    Ok(())
}

fn complete(
    tx: &mut Tx<'_>,
    batch: &mut Batch,
    request: &mut Request,
    body: &str,
    analysis: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let member = keys::member(batch.id, request.id);
    if tx.has(Tree::Outstanding, &member)? {
        settle(tx, batch, request.id, Fate::Completed);
    } else if request.status == RequestStatus::PendingBatching {
        requests::dequeue(tx, request)?;
        request.not_before = None;
    } else if request.status == RequestStatus::BatchingInProgress {
        // It is outstanding in another batch by now: that one's line for it will be a repeat.
        if let Some(other) = request.batch {
            leave(tx, other, request.id)?;
        }
    }
    requests::move_to(tx, request, RequestStatus::ProcessingComplete)?;
    request.attempts = request.attempts.saturating_add(1);
    request.remember(Attempt { number: request.attempts, batch: batch.id, failure: None, at: now });
    request.completed_at = Some(now);
    request.failure = None;
    tx.put_text(Tree::Results, request.id.as_bytes(), body.as_bytes())?;
    if let Some(analysis) = analysis {
        sessions::note_analysis(tx, request, analysis)?;
    }
    Ok(())
}

/// Takes a request out of another batch in which it is outstanding, because its result came elsewhere.
fn leave(tx: &mut Tx<'_>, batch: BatchId, request: RequestId) -> Result<(), StoreError> {
    let Some(mut other) = tx.read::<Batch>(Tree::Batches, batch.as_bytes())? else { return Ok(()) };
    if tx.has(Tree::Outstanding, &keys::member(batch, request))? {
        settle(tx, &mut other, request, Fate::Completed);
        // Its revision stays: its actor has read nothing of what changes here.
        tx.write(Tree::Batches, batch.as_bytes().to_vec(), &other)?;
    }
    Ok(())
}

/// Gives a member its fate.
fn settle(tx: &mut Tx<'_>, batch: &mut Batch, request: RequestId, fate: Fate) {
    let member = keys::member(batch.id, request);
    tx.remove(Tree::Outstanding, member.clone());
    tx.put(Tree::Members, member, vec![fate as u8]);
    requests::counted(&mut batch.counts, fate);
}

fn close_chunk(
    tx: &mut Tx<'_>,
    id: BatchId,
    revision: Revision,
    named: &HashMap<RequestId, Failure>,
    retry: &retry::Policy,
    policy: &Policy,
    now: Timestamp,
) -> Result<Closed, StoreError> {
    let mut batch = load(tx, id, revision)?;
    let outstanding = tx.scan_prefix(Tree::Outstanding, id.as_bytes(), CHUNK)?;
    for (key, value) in &outstanding {
        let request = keys::request_at_end(key)
            .ok_or_else(|| StoreError::Codec("an outstanding key is too short".to_owned()))?;
        let Provisional(read) = codec::decode(value)?;
        let mut request = requests::load(tx, request)?;
        let end = ending(&batch, named, request.id, read);
        if end.failure.code == "missing_result" {
            batch.anomalies.missing += 1;
        }
        give_end(tx, &mut batch, &mut request, end, retry, now)?;
    }
    let remaining = !tx.scan_prefix(Tree::Outstanding, id.as_bytes(), 1)?.is_empty();
    let event = Event::ChunkClosed { remaining, at: now };
    let step = step::step(&batch.state, &event, policy).map_err(|err| StoreError::Broken(err.to_string()))?;
    take_step(tx, &mut batch, &step, now)?;
    save(tx, &mut batch)?;
    Ok(Closed { batch, step })
}

struct Ending {
    failure: Failure,
    answered: Option<Answered>,
    /// Whether the provider may have run it, so that it counts as an attempt.
    ran: bool,
}

/// Why a member that is still outstanding when every file has been read has no result.
fn ending(
    batch: &Batch,
    named: &HashMap<RequestId, Failure>,
    request: RequestId,
    read: Option<(Failure, Answered)>,
) -> Ending {
    if let Some((failure, answered)) = read {
        return Ending { failure, answered: Some(answered), ran: true };
    }
    let BatchState::Closing { ended, lost } = &batch.state else {
        let failure = Failure::new(FailureClass::Transient, "missing_result", "no line in any result file");
        return Ending { failure, answered: None, ran: true };
    };
    if *lost {
        let detail = "the provider's result cannot be had; it may have been paid for";
        return Ending {
            failure: Failure::new(FailureClass::Lost, "result_lost", detail),
            answered: None,
            ran: true,
        };
    }
    if ended.ran_nothing() {
        return not_admitted(ended, named, request);
    }
    let code = match ended.how {
        Terminal::Expired => "batch_expired",
        Terminal::Cancelled => "batch_cancelled",
        Terminal::Completed | Terminal::Failed => "missing_result",
    };
    let failure = Failure::new(FailureClass::Transient, code, "no line in any result file");
    Ending { failure, answered: None, ran: true }
}

/// What a member's end is in a batch that was not admitted: nothing ran, so nothing was paid for.
fn not_admitted(ended: &Ended, named: &HashMap<RequestId, Failure>, request: RequestId) -> Ending {
    let (failure, ran) = match ended.refusal() {
        BatchFailure::Group(failure) => (failure, false),
        BatchFailure::Lines(_) => match named.get(&request) {
            Some(failure) => (failure.clone(), false),
            None => {
                let detail = "another line of its batch was refused, so nothing of it ran";
                (Failure::new(FailureClass::Transient, "batch_refused", detail), false)
            }
        },
        // Nothing tells this batch's lines from the next one's, so the tries are counted.
        BatchFailure::TooLarge(failure)
        | BatchFailure::Unknown(failure)
        | BatchFailure::Account(failure)
        | BatchFailure::Capacity(failure)
        | BatchFailure::InputGone(failure) => (failure, true),
    };
    Ending { failure, answered: None, ran }
}

fn give_end(
    tx: &mut Tx<'_>,
    batch: &mut Batch,
    request: &mut Request,
    end: Ending,
    retry: &retry::Policy,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Ending { failure, answered, ran } = end;
    if ran && retry::Policy::uses_attempt(failure.class) {
        request.attempts = request.attempts.saturating_add(1);
    }
    let number = if ran { request.attempts } else { 0 };
    request.remember(Attempt { number, batch: batch.id, failure: Some(failure.clone()), at: now });
    if let Some(answered) = answered {
        request.answered = answered;
    }
    let seed = u64::from(crc32c::crc32c(request.id.as_bytes()));
    let decision = retry.next(request.attempts, failure.class, seed);
    request.failure = Some(failure);
    match decision {
        Decision::Retry { after } => {
            settle(tx, batch, request.id, Fate::Returned);
            requests::move_to(tx, request, RequestStatus::PendingBatching)?;
            // What did not run need not wait: nothing says that it would fail again.
            request.not_before = if ran { Some(now.plus(after)) } else { None };
            requests::enqueue(tx, request, now)?;
        }
        Decision::Fail => {
            settle(tx, batch, request.id, Fate::Failed);
            requests::move_to(tx, request, RequestStatus::ProcessingFailed)?;
            request.completed_at = Some(now);
            sessions::note_request(tx, request, SessionState::AnalysisFailed)?;
        }
    }
    requests::save(tx, request)
}

impl StoreReader {
    /// One batch.
    pub fn batch(&self, id: BatchId) -> Result<Option<Batch>, StoreError> {
        self.read(Tree::Batches, id.as_bytes())
    }

    /// The batch that a provider's batch belongs to.
    pub fn batch_of_provider(&self, id: &ProviderBatchId) -> Result<Option<BatchId>, StoreError> {
        self.read(Tree::ProviderBatches, &Key::new().text(id.as_str()).done())
    }

    /// The ids of all live batches.
    pub fn live_batches(&self) -> Result<Vec<BatchId>, StoreError> {
        let entries = self.engine.scan(Tree::LiveBatches, &[], None, usize::MAX)?;
        Ok(entries.iter().filter_map(|(key, _)| keys::batch_at_start(key)).collect())
    }

    /// At most `limit` batches, newest first, older than `before`, of one company or of all; and where the
    /// next page begins, if there may be one.
    pub fn list_batches(
        &self,
        company: Option<&CompanyId>,
        status: Option<crate::domain::batch::BatchStatus>,
        before: Option<BatchId>,
        limit: usize,
    ) -> Result<(Vec<Batch>, Option<BatchId>), StoreError> {
        // A page looks at no more than this, so that a rare filter cannot make it slow.
        const LOOKED_AT_MAX: usize = 5000;
        let mut found = Vec::new();
        let mut before = before;
        let mut looked_at = 0;
        loop {
            let end = before.map(|id| id.as_bytes().to_vec());
            let entries = self.engine.scan_back(Tree::Batches, &[], end.as_deref(), 100)?;
            let last_page = entries.len() < 100;
            looked_at += entries.len();
            for (_, value) in entries {
                let batch: Batch = codec::decode(&value)?;
                before = Some(batch.id);
                let wanted = company.is_none_or(|company| *company == batch.group.company)
                    && status.is_none_or(|status| status == batch.state.status());
                if !wanted {
                    continue;
                }
                if found.len() == limit {
                    let next = found.last().map(|batch: &Batch| batch.id);
                    return Ok((found, next));
                }
                found.push(batch);
            }
            if last_page {
                return Ok((found, None));
            }
            if looked_at >= LOOKED_AT_MAX {
                return Ok((found, before));
            }
        }
    }

    /// The story of a batch, oldest first.
    pub fn story(&self, id: BatchId) -> Result<Vec<StoryLine>, StoreError> {
        let prefix = id.as_bytes();
        let end = keys::after_prefix(prefix);
        let entries = self.engine.scan(Tree::Story, prefix, end.as_deref(), usize::MAX)?;
        entries.into_iter().map(|(_, value)| codec::decode(&value)).collect()
    }

    /// At most `limit` members of a batch after `after`, in the order of its input file.
    pub fn members(
        &self,
        id: BatchId,
        after: Option<RequestId>,
        limit: usize,
    ) -> Result<Vec<RequestId>, StoreError> {
        let from = match after {
            // The first key that is greater than the member's own.
            Some(request) => Key::new().bytes(&keys::member(id, request)).byte(0).done(),
            None => id.as_bytes().to_vec(),
        };
        let end = keys::after_prefix(id.as_bytes());
        let entries = self.engine.scan(Tree::Members, &from, end.as_deref(), limit)?;
        Ok(entries.iter().filter_map(|(key, _)| keys::request_at_end(key)).collect())
    }

    /// What waits, group by group.
    pub fn waiting(&self) -> Result<Vec<GroupWaiting>, StoreError> {
        let mut groups = Vec::new();
        for (key, value) in self.engine.scan(Tree::Groups, &[], None, usize::MAX)? {
            let stat: GroupStat = codec::decode(&value)?;
            let oldest = self.oldest(&key)?;
            groups.push(GroupWaiting {
                waiting: cut::Waiting {
                    requests: stat.requests,
                    bytes: stat.bytes,
                    oldest: oldest.unwrap_or(Timestamp::from_millis(i64::MAX)),
                },
                group: stat.group,
                filling: stat.filling,
            });
        }
        Ok(groups)
    }

    /// Since when the oldest request of a group waits: the first of each priority that is there.
    fn oldest(&self, group: &[u8]) -> Result<Option<Timestamp>, StoreError> {
        let end = keys::after_prefix(group);
        let mut from = group.to_vec();
        let mut oldest: Option<Timestamp> = None;
        loop {
            let first = self.engine.scan(Tree::Pending, &from, end.as_deref(), 1)?;
            let Some((key, _)) = first.first() else { return Ok(oldest) };
            let Some((priority, rest)) = key.get(group.len()..).and_then(<[u8]>::split_first) else {
                return Ok(oldest);
            };
            let since = keys::time_at_start(rest);
            oldest = match (oldest, since) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let Some(next) = priority.checked_add(1) else { return Ok(oldest) };
            from = [group, &[next]].concat();
        }
    }

    /// At most `limit` files of ours whose deletion at the provider is due, each with the key to forget it by.
    pub fn due_deletions(&self, now: Timestamp, limit: usize) -> Result<Vec<(Vec<u8>, FileId)>, StoreError> {
        let end = Key::new().time(now).done();
        let entries = self.engine.scan(Tree::Deletions, &[], Some(&end), limit)?;
        let file = |key: &[u8]| String::from_utf8(key.get(10..)?.to_vec()).ok().map(FileId::new);
        Ok(entries.into_iter().filter_map(|(key, _)| file(&key).map(|file| (key, file))).collect())
    }
}
