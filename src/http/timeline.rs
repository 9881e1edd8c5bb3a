//! What happened to one request, in order of time, and what is known of the place where it waits now.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::waits::{self, Around, BatchNow, GroupNow, Place, Waiting};
use crate::actors::{Shared, creator};
use crate::domain::cut;
use crate::domain::id::{BatchId, CompanyId, Timestamp};
use crate::domain::request::{Attempt, FailureClass, Request, RequestStatus};
use crate::store::StoreError;

/// Lines of a batch's story that are shown: so many from its begin,
const STORY_FIRST: usize = 60;
/// and so many from its end.
const STORY_LAST: usize = 20;
/// Groups that are looked at for how many share the room: more would hardly change the answer.
const GROUPS_MAX: usize = 1000;

/// The timeline of a request.
pub fn of(shared: &Shared, request: &Request) -> Result<Value, StoreError> {
    let mut events = vec![event(request.requested_at, "accepted", None, &accepted(request))];
    for attempt in &request.history {
        events.push(event(attempt.at, "attempt", Some(attempt.batch), &attempted(attempt)));
    }
    let mut left_out = request.history.len() >= Request::HISTORY_MAX;
    for id in batches(request) {
        let Some(batch) = shared.reader.batch(id)? else { continue };
        let story = shared.reader.story_ends(id, STORY_FIRST, STORY_LAST)?;
        left_out |= usize::try_from(batch.story_lines).is_ok_and(|lines| lines > story.len());
        // What happened in the batch before the request was there is not its matter.
        let story = story.iter().filter(|line| line.at >= request.requested_at);
        events.extend(story.map(|line| event(line.at, "batch", Some(id), &line.text)));
    }
    if let (Some(at), Some((what, detail))) = (request.completed_at, ended(request)) {
        events.push(event(at, what, request.batch, &detail));
    }
    // Of the same moment the earlier kind stays first.
    events.sort_by_key(|(at, _)| *at);
    let events: Vec<Value> = events.into_iter().map(|(_, event)| event).collect();
    let waiting = waiting(shared, request)?;
    Ok(json!({
        "requestId": request.id.to_string(),
        "status": request.status.label(),
        "events": events,
        "leftOut": left_out,
        "waiting": waiting.map(|waiting| waiting.view()),
    }))
}

fn event(at: Timestamp, what: &str, batch: Option<BatchId>, detail: &str) -> (Timestamp, Value) {
    let batch = batch.map(|batch| batch.to_string());
    (at, json!({ "at": at.to_string(), "what": what, "batchId": batch, "detail": detail }))
}

fn accepted(request: &Request) -> String {
    format!("taken in for {} at {}", request.group.model, request.group.endpoint)
}

fn attempted(attempt: &Attempt) -> String {
    let outcome = match &attempt.failure {
        None => "it has its result".to_owned(),
        Some(failure) => format!("{} ({})", failure, failure.class.label()),
    };
    match (attempt.number, attempt.failure.as_ref().map(|failure| failure.class)) {
        // It was run and paid for.
        (0, Some(FailureClass::Unusable)) => format!("the model is asked once more: {outcome}"),
        (0, _) => format!("the provider ran nothing: {outcome}"),
        (number, _) => format!("attempt {number}: {outcome}"),
    }
}

fn ended(request: &Request) -> Option<(&'static str, String)> {
    match request.status {
        RequestStatus::ProcessingComplete => Some(("completed", "its result is stored".to_owned())),
        RequestStatus::ProcessingFailed => {
            let why = request.failure.as_ref().map_or_else(String::new, ToString::to_string);
            Some(("failed", format!("it is not tried again unless it is requeued: {why}")))
        }
        RequestStatus::PendingBatching | RequestStatus::BatchingInProgress => None,
    }
}

/// The batches that it was in, as far as its history goes, and the one that it is in.
fn batches(request: &Request) -> Vec<BatchId> {
    let mut seen = HashSet::new();
    let ids = request.history.iter().map(|attempt| attempt.batch).chain(request.batch);
    ids.filter(|id| seen.insert(*id)).collect()
}

/// Why a request waits, if it does.
pub fn waiting(shared: &Shared, request: &Request) -> Result<Option<Waiting>, StoreError> {
    let around = around(shared);
    Ok(waits::of_request(request, &place(shared, request, &around)?, &around))
}

/// What holds for everything that waits.
pub fn around(shared: &Shared) -> Around {
    Around {
        now: shared.clock.now(),
        creation: shared.switches.creation(),
        polling: shared.switches.polling(),
        standing: shared.condition.standing(),
        paused: shared.account.paused(),
        rate_limited: shared.account.rests(shared.clock.as_ref()),
        pace: shared.pace.waits(shared.clock.as_ref()),
        limits: shared.limits_now(),
        creation_interval: shared.creation_interval,
        provider: shared.identity.clone(),
    }
}

fn place(shared: &Shared, request: &Request, around: &Around) -> Result<Place, StoreError> {
    match (request.status, request.batch) {
        (RequestStatus::PendingBatching, _) => Ok(Place::Pending(Box::new(group(shared, request, around)?))),
        (RequestStatus::BatchingInProgress, Some(id)) => match shared.reader.batch(id)? {
            Some(batch) => {
                let last = shared.reader.story_ends(id, 0, 1)?.pop();
                let since = last.map_or(batch.created_at, |line| line.at);
                let room = shared.reader.room(&batch)?;
                let anomaly = shared.reader.anomaly(id)?;
                Ok(Place::Batch(Box::new(BatchNow { batch, since, room, anomaly })))
            }
            None => Ok(Place::Over),
        },
        (
            RequestStatus::BatchingInProgress
            | RequestStatus::ProcessingComplete
            | RequestStatus::ProcessingFailed,
            _,
        ) => Ok(Place::Over),
    }
}

fn group(shared: &Shared, request: &Request, around: &Around) -> Result<GroupNow, StoreError> {
    let reader = &shared.reader;
    let is_served = |company: &CompanyId| -> Result<bool, StoreError> {
        Ok(reader.company(company)?.is_some_and(|company| !company.suspended))
    };
    let mut sharers = HashSet::from([request.group.company.clone()]);
    for other in reader.first_waiting(GROUPS_MAX)? {
        let due = cut::due(&other.waiting, &around.limits, around.now).is_some();
        let shares = due && other.filling.is_none() && other.group.model == request.group.model;
        if shares && !sharers.contains(&other.group.company) && is_served(&other.group.company)? {
            sharers.insert(other.group.company);
        }
    }
    // The room is asked for as for the batch that would be opened.
    let asked = creator::empty(shared, request.group.clone());
    let held = creator::held_by_company(shared)?;
    Ok(GroupNow {
        suspended: !is_served(&request.group.company)?,
        waits: reader.waiting_in(&request.group)?,
        room: reader.room(&asked)?,
        sharers: sharers.len() as u64,
        newcomer: !held.contains_key(&request.group.company),
        out_of_money: match reader.too_dear(&asked, request)? {
            Some(why) => creator::out_of_money(why, &asked),
            None => creator::out_of_money(reader.affordable(&asked)?, &asked),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::request::Failure;

    #[test]
    fn an_answer_that_did_not_fit_is_not_told_as_one_that_was_never_given() {
        let told = |class| {
            let failure = Some(Failure::new(class, "a_code", "why"));
            let (batch, at) = (BatchId::from_bytes([0; 16]), Timestamp::from_secs(0));
            attempted(&Attempt { number: 0, batch, failure, at })
        };
        assert!(told(FailureClass::Unusable).starts_with("the model is asked once more: "));
        assert!(told(FailureClass::Capacity).starts_with("the provider ran nothing: "));
    }
}
