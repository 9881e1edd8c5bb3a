//! What becomes of a batch's members: lines applied as they are read, and an end for whoever had none.

use std::collections::HashMap;
use std::time::Duration;

use super::batches::{self, Again, AppliedLine, Closed, Fate, Provisional, Read, Repair};
use super::keys::{self, Key, Tree};
use super::outbox::Finished;
use super::tx::Tx;
use super::{StoreError, StoreReader, budgets, codec, endings, erasing, requests, rooms, sessions};
use crate::domain::analysis::Misfit;
use crate::domain::batch::{Batch, BatchState, Ended, Origin, Terminal, Then};
use crate::domain::budget::Booking;
use crate::domain::erasure::Gone;
use crate::domain::event::Event;
use crate::domain::id::{BatchId, CompanyId, RequestId, Revision, Timestamp};
use crate::domain::request::{
    Answered, Attempt, Cost, Failure, FailureClass, Outcome, Request, RequestStatus,
};
use crate::domain::retry::{self, BatchFailure, Decision};
use crate::domain::session::SessionState;
use crate::domain::step::{self, Policy};

pub(super) fn apply_line(
    tx: &mut Tx<'_>,
    batch: &mut Batch,
    line: AppliedLine,
    finished: &mut Finished,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (id, outcome, analysis, repair, cost) = match line {
        AppliedLine::Line { request, outcome, analysis, repair, cost } => {
            (request, outcome, analysis, repair, cost)
        }
        AppliedLine::Unreadable { request, reason } => {
            batch.anomalies.unreadable += 1;
            endings::note(tx, batch.id, endings::Kind::Unreadable, reason)?;
            let Some(request) = request else {
                return endings::note(tx, batch.id, endings::Kind::Nameless, reason);
            };
            let detail = format!("its line in the result file cannot be read: {reason}");
            let failure = Failure::new(FailureClass::Lost, "result_lost", &detail);
            let outcome = Outcome { answered: Answered::default(), result: Err(failure) };
            (request, outcome, None, None, None)
        }
        AppliedLine::Unknown => {
            batch.anomalies.unknown += 1;
            return Ok(());
        }
    };
    let member = keys::member(batch.members_of(), id);
    let is_member = tx.has(Tree::Members, &member)?;
    // An adopted batch was made of requests that may have had another outcome here since.
    let is_there = tx.has(Tree::Requests, id.as_bytes())? || tx.has(Tree::Gone, id.as_bytes())?;
    let is_known = is_member || (batch.origin == Origin::Adopted && is_there);
    if !is_known {
        batch.anomalies.unknown += 1;
        return Ok(());
    }
    if let Some(mut gone) = tx.read::<Gone>(Tree::Gone, id.as_bytes())? {
        // What it says is dropped unread; what it cost was spent all the same.
        if book(tx, batch, id, &mut gone.cost, cost)? {
            tx.write(Tree::Gone, id.as_bytes().to_vec(), &gone)?;
        }
        batches::delete_results(tx, batch);
        let was_in_it = is_member && batch.members_of() == batch.id;
        // Whoever removed it knew of the batches that it was in, and of no other one that has an answer to it.
        return if was_in_it {
            Ok(())
        } else {
            erasing::note_aged(tx, &gone.company, gone.session, batch.id)
        };
    }
    let mut request = requests::load(tx, id)?;
    if book(tx, batch, id, &mut request.cost, cost)?
        && let Some(usage) = &outcome.answered.usage
    {
        let (estimated, counted) = (u64::from(request.estimated_tokens), usage.prompt);
        rooms::change(tx, batch, |room| {
            room.measured(estimated, counted);
            room.answered(usage.completion);
        })?;
    }
    if (!is_member || batch.members_of() != batch.id) && outcome.result.is_err() {
        // It has no member here to fail: only what it completes counts.
        return requests::save(tx, &request);
    }
    let outstanding: Option<Provisional> = tx.read(Tree::Outstanding, &member)?;
    match outcome.result {
        Ok(body) if request.stale.contains(&batch.members_of()) => {
            // It answers what the session was before: paid for, and not what is asked now.
            drop(body);
            batch.anomalies.repeated += 1;
        }
        Ok(body) if request.status == RequestStatus::ProcessingComplete => {
            // A success is never overwritten.
            drop(body);
            batch.anomalies.repeated += 1;
        }
        Ok(body) => {
            request.answered = outcome.answered;
            complete(tx, batch, &mut request, &body, analysis.as_deref(), now)?;
            finished.note(tx, &request, now)?;
        }
        Err(failure) => match outstanding {
            Some(Provisional(None)) => {
                let again = note_misfit(tx, &mut request, repair)?;
                let read = Read { failure, answered: outcome.answered, again };
                tx.write(Tree::Outstanding, member, &Provisional(Some(read)))?;
            }
            // A line that says that it was answered, or fails every time, counts before one that says it may go well
            // another time: that one would buy it again.
            Some(Provisional(Some(before)))
                if before.failure.class.may_pass() && !failure.class.may_pass() =>
            {
                batch.anomalies.repeated += 1;
                let again = note_misfit(tx, &mut request, repair)?;
                let read = Read { failure, answered: outcome.answered, again };
                tx.write(Tree::Outstanding, member, &Provisional(Some(read)))?;
            }
            Some(Provisional(Some(_))) | None => batch.anomalies.repeated += 1,
        },
    }
    requests::save(tx, &request)
}

/// Keeps an answer that does not fit, for the line that shows it to the model.
fn note_misfit(
    tx: &mut Tx<'_>,
    request: &mut Request,
    repair: Option<Repair>,
) -> Result<Option<Again>, StoreError> {
    let Some(Repair { misfit, line_bytes, line_crc, estimated_tokens }) = repair else { return Ok(None) };
    let number = request.misfits;
    request.misfits = request.misfits.saturating_add(1);
    let text = codec::encode(&misfit)?;
    tx.put_text(Tree::Misfits, &misfit_key(request.id, number), &text)?;
    Ok(Some(Again { misfit: number, line_bytes, line_crc, estimated_tokens }))
}

fn misfit_key(request: RequestId, number: u32) -> Vec<u8> {
    Key::new().bytes(request.as_bytes()).u32(number).done()
}

impl StoreReader {
    /// An answer to a request that did not fit, by its number.
    pub fn misfit(&self, request: RequestId, number: u32) -> Result<Option<Misfit>, StoreError> {
        let text = self.text(Tree::Misfits, &misfit_key(request, number))?;
        text.map(|text| codec::decode(&text)).transpose()
    }
}

/// Books what a line cost, once a provider batch and request, whatever its outcome; says whether it did.
fn book(
    tx: &mut Tx<'_>,
    batch: &mut Batch,
    request: RequestId,
    sum: &mut Option<Cost>,
    cost: Option<Cost>,
) -> Result<bool, StoreError> {
    let (Some(cost), Some(provider_batch)) = (cost, &batch.provider_batch) else { return Ok(false) };
    let key = Key::new().bytes(request.as_bytes()).text(provider_batch.as_str()).done();
    if tx.has(Tree::Bookings, &key)? {
        return Ok(false);
    }
    let booking =
        Booking { company: batch.group.company.clone(), month: batch.purse.month, cost: cost.clone() };
    tx.write(Tree::Bookings, key, &booking)?;
    budgets::spend(tx, batch, cost.micros)?;
    batch.cost_micros = batch.cost_micros.saturating_add(cost.micros);
    let before = sum.as_ref().map_or(0, |cost| cost.micros);
    *sum = Some(Cost { micros: before.saturating_add(cost.micros), ..cost });
    Ok(true)
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
    remember(tx, request, Attempt { number: request.attempts, batch: batch.id, failure: None, at: now })?;
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
        // Its line is left out of a file that is still to be sent, or is sent anew since nothing came of the first: it
        // would be bought again.
        let line_bytes = requests::load(tx, request)?.line_bytes;
        other.input_bytes = other.input_bytes.saturating_sub(u64::from(line_bytes));
        let fate = if other.state.is_unsent() { Fate::Left } else { Fate::Completed };
        settle(tx, &mut other, request, fate);
        // Its revision stays: its actor has read nothing of what changes here.
        tx.write(Tree::Batches, batch.as_bytes().to_vec(), &other)?;
    }
    Ok(())
}

/// Adds to a request's history. What had the one that falls out of it is not known any more, so its files go now.
fn remember(tx: &mut Tx<'_>, request: &mut Request, attempt: Attempt) -> Result<(), StoreError> {
    if let Some(oldest) = request.remember(attempt) {
        erasing::let_go_of(tx, request, oldest.batch)?;
    }
    Ok(())
}

/// A request whose text is lost fails alone: its batch goes without it. Gives its company, whose webhooks are told.
pub(super) fn lose_input(
    tx: &mut Tx<'_>,
    batch: BatchId,
    request: RequestId,
    why: &str,
    now: Timestamp,
) -> Result<Option<CompanyId>, StoreError> {
    if !tx.has(Tree::Outstanding, &keys::member(batch, request))? {
        return Ok(None);
    }
    let mut request = requests::load(tx, request)?;
    let failure = Failure::new(FailureClass::Permanent, "input_lost", why);
    remember(tx, &mut request, Attempt { number: 0, batch, failure: Some(failure.clone()), at: now })?;
    request.failure = Some(failure);
    leave(tx, batch, request.id)?;
    requests::move_to(tx, &mut request, RequestStatus::ProcessingFailed)?;
    request.completed_at = Some(now);
    sessions::note_request(tx, &request, SessionState::AnalysisFailed)?;
    if let Some(batch) = tx.read::<Batch>(Tree::Batches, batch.as_bytes())? {
        let mut finished = Finished::begin(tx, &batch)?;
        finished.note(tx, &request, now)?;
        finished.tell(tx, &batch, now)?;
    }
    requests::save(tx, &request)?;
    Ok(Some(request.group.company))
}

/// Gives a member its fate.
pub(super) fn settle(tx: &mut Tx<'_>, batch: &mut Batch, request: RequestId, fate: Fate) {
    let member = keys::member(batch.id, request);
    tx.remove(Tree::Outstanding, member.clone());
    tx.put(Tree::Members, member, vec![fate as u8]);
    requests::counted(&mut batch.counts, fate);
}

pub(super) fn close_chunk(
    tx: &mut Tx<'_>,
    (id, revision): (BatchId, Revision),
    chunk: usize,
    named: &HashMap<RequestId, Failure>,
    retry: &retry::Policy,
    policy: &Policy,
    now: Timestamp,
) -> Result<Closed, StoreError> {
    let mut batch = batches::load(tx, id, revision)?;
    let outstanding = tx.scan_prefix(Tree::Outstanding, id.as_bytes(), chunk)?;
    let nameless = endings::has_nameless(tx, id)?;
    let mut finished = Finished::begin(tx, &batch)?;
    for (key, value) in &outstanding {
        let request = keys::request_at_end(key)
            .ok_or_else(|| StoreError::Codec("an outstanding key is too short".to_owned()))?;
        let Provisional(read) = codec::decode(value)?;
        let mut request = requests::load(tx, request)?;
        let end = ending(&batch, named, request.id, read, nameless);
        if end.failure.code == "missing_result" {
            batch.anomalies.missing += 1;
        }
        endings::note(tx, id, endings::Kind::Failure, &end.failure.code)?;
        give_end(tx, &mut batch, &mut request, end, retry, now)?;
        if request.status == RequestStatus::ProcessingFailed {
            finished.note(tx, &request, now)?;
        }
    }
    finished.tell(tx, &batch, now)?;
    let remaining = !tx.scan_prefix(Tree::Outstanding, id.as_bytes(), 1)?.is_empty();
    let event = Event::ChunkClosed { remaining, at: now };
    let step = step::step(&batch.state, batch.orders(), &event, policy)
        .map_err(|err| StoreError::Broken(err.to_string()))?;
    batches::take_step(tx, &mut batch, &step, now)?;
    batches::save(tx, &mut batch)?;
    Ok(Closed { batch, step })
}

struct Ending {
    failure: Failure,
    answered: Option<Answered>,
    /// Whether the provider may have run it, so that it counts as an attempt.
    ran: bool,
    /// How it is asked once more.
    again: Option<Again>,
}

impl Ending {
    const fn not_run(failure: Failure) -> Self {
        Self { failure, answered: None, ran: false, again: None }
    }

    const fn run(failure: Failure) -> Self {
        Self { failure, answered: None, ran: true, again: None }
    }
}

const CANCELLED: &str = "batch_cancelled";

/// Why a member that is still outstanding when every file has been read has no result.
fn ending(
    batch: &Batch,
    named: &HashMap<RequestId, Failure>,
    request: RequestId,
    read: Option<Read>,
    nameless: bool,
) -> Ending {
    if let BatchState::Dissolving { failure, .. } = &batch.state {
        return Ending::not_run(failure.clone());
    }
    // What was cancelled by our own wish did not fail.
    let wished = batch.cancel.is_some();
    if let Some(Read { failure, answered, again }) = read {
        let ran = !(wished && failure.code == CANCELLED);
        return Ending { failure, answered: Some(answered), ran, again };
    }
    let none = "no line in any result file";
    let BatchState::Closing { ended, lost } = &batch.state else {
        return Ending::run(Failure::new(FailureClass::Transient, "missing_result", none));
    };
    if *lost {
        let detail = "the provider's result cannot be had; it may have been paid for";
        return Ending::run(Failure::new(FailureClass::Lost, "result_lost", detail));
    }
    if ended.ran_nothing() {
        return not_admitted(batch, ended, named, request);
    }
    if nameless {
        let detail = "a line of its batch cannot be read and does not say whose it is; it may be this one's, and paid for";
        return Ending::run(Failure::new(FailureClass::Lost, "result_lost", detail));
    }
    let code = match ended.how {
        Terminal::Expired => "batch_expired",
        Terminal::Cancelled => CANCELLED,
        Terminal::Completed | Terminal::Failed => "missing_result",
    };
    let ran = !(wished && code == CANCELLED);
    Ending { ran, ..Ending::run(Failure::new(FailureClass::Transient, code, none)) }
}

/// What a member's end is in a batch that was not admitted: nothing ran, so nothing was paid for and no attempt was
/// used. Where no line is named any more the batches are cut in halves, and what is refused alone is at fault.
fn not_admitted(
    batch: &Batch,
    ended: &Ended,
    named: &HashMap<RequestId, Failure>,
    request: RequestId,
) -> Ending {
    let alone = |failure: Failure| Failure { class: FailureClass::Permanent, ..failure };
    let single = batch.counts.members == 1;
    Ending::not_run(match ended.refusal() {
        BatchFailure::Group(failure)
        | BatchFailure::Capacity(failure)
        | BatchFailure::Account(failure)
        | BatchFailure::InputGone(failure) => failure,
        BatchFailure::Lines(faults) => match (named.get(&request), faults.into_iter().next()) {
            (Some(failure), _) => failure.clone(),
            (None, Some(fault)) if single => fault.failure,
            (None, _) => {
                let detail = "another line of its batch was refused, so nothing of it ran";
                Failure::new(FailureClass::Transient, retry::REFUSED, detail)
            }
        },
        BatchFailure::TooLarge(failure)
        | BatchFailure::SomeLine(failure)
        | BatchFailure::Unknown(failure)
            if single =>
        {
            alone(failure)
        }
        BatchFailure::SomeLine(failure) | BatchFailure::Unknown(failure) => {
            Failure::new(FailureClass::Transient, retry::NOT_NAMED, &failure.to_string())
        }
        BatchFailure::TooLarge(failure) => {
            Failure::new(FailureClass::Transient, retry::TOO_LARGE, &failure.to_string())
        }
    })
}

/// How often the request failed like this in a row, as far as its history goes.
fn in_a_row(request: &Request, class: FailureClass) -> u32 {
    let latest = request.history.iter().rev();
    let alike =
        latest.take_while(|attempt| attempt.failure.as_ref().is_some_and(|failure| failure.class == class));
    u32::try_from(alike.count()).unwrap_or(u32::MAX)
}

/// The request goes into the next batch once more, with what was wrong with its answer. That is no attempt: the call
/// went well, and it is not the same call again.
fn ask_again(
    tx: &mut Tx<'_>,
    batch: &mut Batch,
    request: &mut Request,
    failure: Failure,
    answered: Option<Answered>,
    again: Again,
    now: Timestamp,
) -> Result<(), StoreError> {
    remember(tx, request, Attempt { number: 0, batch: batch.id, failure: Some(failure.clone()), at: now })?;
    if let Some(answered) = answered {
        request.answered = answered;
    }
    request.failure = Some(failure);
    request.repairs = request.repairs.saturating_add(1);
    request.repair = Some(again.misfit);
    (request.line_bytes, request.line_crc) = (again.line_bytes, again.line_crc);
    request.estimated_tokens = again.estimated_tokens;
    batch.repairs += 1;
    settle(tx, batch, request.id, Fate::Returned);
    requests::move_to(tx, request, RequestStatus::PendingBatching)?;
    request.not_before = None;
    requests::enqueue(tx, request, now)?;
    requests::save(tx, request)
}

fn give_end(
    tx: &mut Tx<'_>,
    batch: &mut Batch,
    request: &mut Request,
    end: Ending,
    retry: &retry::Policy,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Ending { failure, answered, ran, again } = end;
    if let Some(again) = again
        && batch.cancel.as_ref().is_none_or(|cancel| cancel.then == Then::Requeue)
        && sessions::is_current(tx, request)?
    {
        return ask_again(tx, batch, request, failure, answered, again, now);
    }
    if ran && retry::Policy::uses_attempt(failure.class) {
        request.attempts = request.attempts.saturating_add(1);
    }
    let number = if ran { request.attempts } else { 0 };
    remember(tx, request, Attempt { number, batch: batch.id, failure: Some(failure.clone()), at: now })?;
    if let Some(answered) = answered {
        request.answered = answered;
    }
    let seed = u64::from(crc32c::crc32c(request.id.as_bytes()));
    let times = if retry::Policy::uses_attempt(failure.class) {
        request.attempts
    } else {
        in_a_row(request, failure.class)
    };
    let mut decision = match failure.class {
        // Nothing ran, so no attempt was used, also where there are fewer of them than there were.
        FailureClass::Transient if !ran => Decision::Retry { after: Duration::ZERO },
        FailureClass::Transient
        | FailureClass::Permanent
        | FailureClass::Unusable
        | FailureClass::Account
        | FailureClass::Capacity
        | FailureClass::Lost => retry.next(times, failure.class, seed),
    };
    let then = if let BatchState::Dissolving { then, .. } = &batch.state {
        Some(*then)
    } else {
        batch.cancel.as_ref().map(|cancel| cancel.then)
    };
    let mut failure = failure;
    if let (Decision::Retry { .. }, Some(Then::End)) = (decision, then) {
        let detail = format!("an operator cancelled its batch and wanted this to end ({})", failure.code);
        failure =
            Failure { class: FailureClass::Permanent, ..Failure::new(failure.class, "cancelled", &detail) };
        decision = Decision::Fail;
    }
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
