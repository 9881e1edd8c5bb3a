//! From filling to the provider's answer: the stretch in which money could be spent twice.

use std::time::Duration;

use super::{Change, Policy, Step, backoff, go};
use crate::domain::batch::{BatchState, Cancel, Closing, InputFile, Intent, Orders, Running, Then, Wait};
use crate::domain::effect::Effect;
use crate::domain::event::{Observation, ObservedStatus, Trouble};
use crate::domain::id::Timestamp;
use crate::domain::request::{Failure, FailureClass};
use crate::domain::retry;

pub(super) fn fill_ended(members: u64, at: Timestamp) -> Step {
    if members == 0 {
        return go(BatchState::Closed { closing: Closing::Cancelled })
            .changing(Change::Closed(at))
            .with([Effect::Retire])
            .telling("closed: nothing was left to send");
    }
    go(BatchState::Sealed).with([Effect::AwaitRelease]).telling(format!("sealed with {members} requests"))
}

/// The order is stored. What it does in this state is `honour`'s matter, but for the call that a running batch needs.
pub(super) fn cancel_asked(state: &BatchState, cancel: &Cancel) -> Step {
    let step = go(state.clone()).changing(Change::Cancel(cancel.clone())).telling(format!(
        "to be cancelled, says {}; what it does not finish will {}",
        cancel.by,
        match cancel.then {
            Then::Requeue => "wait for another batch",
            Then::End => "not be tried again",
        }
    ));
    let runs = matches!(state, BatchState::Observing { .. });
    step.with(runs.then_some(Effect::CancelRemote))
}

pub(super) fn given_back(failure: &Failure) -> Step {
    go(BatchState::Dissolving { then: Then::Requeue, failure: failure.clone() })
        .with([Effect::CloseChunk])
        .telling(format!("not sent, its requests go back: {failure}"))
}

pub(super) fn room_shut(input: &InputFile, wait: &Wait, until: Timestamp) -> Step {
    let why = "there is no room for its tokens at the provider".to_owned();
    let told = wait.why.as_ref() == Some(&why);
    let wait = Wait { until: Some(until), why: Some(why), ..wait.clone() };
    let step = go(BatchState::Ready { input: input.clone(), wait }).with([Effect::WakeAt(until)]);
    if told { step } else { step.telling("waits for room at the provider") }
}

/// What was erased must not be sent again, and the file at the provider still has it.
pub(super) fn outdated(input: &InputFile, wait: &Wait) -> Step {
    let upload = input.upload + 1;
    go(BatchState::Uploading { upload, wait: Wait { until: None, why: None, ..wait.clone() } })
        .with([Effect::UploadInput { upload }])
        .telling("a request of it was erased since the input file was sent; uploading it without that")
}

pub(super) fn released() -> Step {
    go(BatchState::Uploading { upload: 1, wait: Wait::default() })
        .with([Effect::UploadInput { upload: 1 }])
        .telling("uploading the input file")
}

pub(super) fn uploaded(input: &InputFile) -> Step {
    go(BatchState::Ready { input: input.clone(), wait: Wait::default() })
        .changing(Change::Input(input.id.clone()))
        .with([Effect::MakeIntent])
        .telling(format!("the input file is at the provider as {}", input.id))
}

pub(super) fn upload_failed(
    (upload, wait): (u32, &Wait),
    orders: Orders,
    trouble: &Trouble,
    at: Timestamp,
    policy: &Policy,
) -> Step {
    match next_wait(wait, trouble, at, policy) {
        Ok(wait) => {
            let story = waiting("the upload", &wait);
            let wake = wait.until.map(Effect::WakeAt);
            go(BatchState::Uploading { upload, wait }).with(wake).telling(story)
        }
        Err(failure) => halved_or_parked(orders, upload, failure),
    }
}

/// Refused again and again: one of its requests may be what the provider does not take, and then smaller batches find it.
fn halved_or_parked(orders: Orders, upload: u32, failure: Failure) -> Step {
    if !orders.at_fault {
        return parked(upload, failure);
    }
    let story = format!("refused again and again ({}); its requests are tried in halves", failure.code);
    let failure = Failure::new(FailureClass::Transient, retry::NOT_NAMED, &failure.to_string());
    given_back(&failure).telling(story)
}

pub(super) fn intent_made(intent: &Intent, wait: &Wait) -> Step {
    let wait = Wait { until: None, why: None, ..wait.clone() };
    go(BatchState::Creating { intent: intent.clone(), wait })
        .with([Effect::CreateBatch(intent.clone())])
        .telling(format!("creating the batch from {}", intent.input.id))
}

pub(super) fn created(intent: &Intent, wait: &Wait, seen: &Observation) -> Step {
    // Whatever status the answer names, the batch is now observed: the next look handles an end.
    let running = match seen.status {
        Some(ObservedStatus::Running(running)) => running,
        Some(ObservedStatus::Ended(_)) | None => Running::Validating,
    };
    go(BatchState::Observing { intent: intent.clone(), running, wait: wait.clone(), missing: None })
        .changing(Change::Adopt(seen.id.clone()))
        .with([Effect::Observe])
        .telling(format!("the provider has it as {}", seen.id))
}

pub(super) fn create_failed(
    (intent, wait): (&Intent, &Wait),
    orders: Orders,
    trouble: &Trouble,
    input_gone: bool,
    at: Timestamp,
    policy: &Policy,
) -> Step {
    if let Trouble::Uncertain { why } = trouble {
        return go(BatchState::Uncertain { intent: intent.clone(), sweeps: 0 })
            .with([Effect::Sweep(intent.clone())])
            .telling(format!(
                "it is uncertain whether the create call had its effect ({why}); looking for it"
            ));
    }
    if let Trouble::Refused(failure) = trouble
        && retry::is_no_room(failure)
    {
        // Some servers say at once what others say of the batch.
        let story = format!("the provider has no room ({}); its requests go back", failure.code);
        let failure = Failure { class: FailureClass::Capacity, ..failure.clone() };
        let first = policy.capacity_backoff;
        return given_back(&failure).changing(Change::NoRoom { first }).telling(story);
    }
    if input_gone {
        return sent_again(intent, at, policy);
    }
    match next_wait(wait, trouble, at, policy) {
        Ok(wait) => {
            let story = waiting("the create call", &wait);
            let wake = wait.until.map(Effect::WakeAt);
            go(BatchState::Ready { input: intent.input.clone(), wait }).with(wake).telling(story)
        }
        Err(failure) => halved_or_parked(orders, intent.input.upload, failure),
    }
}

/// The provider does not find the input file. It need not have lost it: what was just sent may not be seen everywhere yet,
/// so there is a pause that grows, and an end to it.
fn sent_again(intent: &Intent, at: Timestamp, policy: &Policy) -> Step {
    let upload = intent.input.upload;
    let why = "the provider does not find the input file";
    if upload >= Policy::UPLOADS_MAX {
        return parked(upload, Failure::new(FailureClass::Permanent, "input_gone", why));
    }
    let until = at.plus(backoff(policy.backoff, upload.saturating_sub(1)));
    let wait = Wait { until: Some(until), why: Some(why.to_owned()), failures: 1, refusals: 0 };
    go(BatchState::Uploading { upload: upload + 1, wait })
        .with([Effect::WakeAt(until)])
        .telling(format!("{why}; uploading it again at {until}"))
}

pub(super) fn swept(
    intent: &Intent,
    sweeps: u32,
    complete: bool,
    grace_over: bool,
    found: Option<&Observation>,
    policy: &Policy,
) -> Step {
    if let Some(seen) = found {
        let step = created(intent, &Wait::default(), seen);
        return step.telling(format!("found at the provider as {}, adopted", seen.id));
    }
    let sweeps = if complete { sweeps.saturating_add(1) } else { sweeps };
    if complete && grace_over && sweeps >= policy.sweeps_min {
        return go(BatchState::Fencing { intent: intent.clone(), gone: false })
            .with([Effect::Fence(intent.clone())])
            .telling(format!(
                "not found in {sweeps} complete searches; deleting the input file before it is sent again"
            ));
    }
    go(BatchState::Uncertain { intent: intent.clone(), sweeps }).with([Effect::Sweep(intent.clone())])
}

/// The search goes on; whether that can come to an end is for an operator to say.
pub(super) fn list_unproven(intent: &Intent, sweeps: u32) -> Step {
    go(BatchState::Uncertain { intent: intent.clone(), sweeps }).with([Effect::Sweep(intent.clone())]).telling(
        format!(
            "the call was made with another key or project, and the provider does not show its input file {}; if the \
             key and project of now are right, `nightshift resume` says so and the search can come to its end",
            intent.input.id
        ),
    )
}

/// It is tried for as long as it takes.
pub(super) fn not_fenced(intent: &Intent, why: &str) -> Step {
    go(BatchState::Fencing { intent: intent.clone(), gone: false }).with([Effect::Fence(intent.clone())]).telling(
        format!(
            "the old input file {} cannot be deleted so far, and as long as it is there nothing is sent again: {why}",
            intent.input.id
        ),
    )
}

pub(super) fn fenced(intent: &Intent) -> Step {
    go(BatchState::Fencing { intent: intent.clone(), gone: true })
        .with([Effect::Sweep(intent.clone())])
        .telling(
            "the old input file is gone, so nothing can come of the old call any more; looking a last time",
        )
}

/// The last search: the call may have had its effect between the search before and the deletion.
pub(super) fn last_swept(intent: &Intent, complete: bool, found: Option<&Observation>) -> Step {
    if let Some(seen) = found {
        let step = created(intent, &Wait::default(), seen);
        return step.telling(format!("found at the provider as {} after all, adopted", seen.id));
    }
    if !complete {
        return go(BatchState::Fencing { intent: intent.clone(), gone: true })
            .with([Effect::Sweep(intent.clone())]);
    }
    let upload = intent.input.upload + 1;
    go(BatchState::Uploading { upload, wait: Wait::default() })
        .changing(Change::Supersede(intent.clone()))
        .with([Effect::UploadInput { upload }])
        .telling("the old create call came to nothing; uploading again")
}

pub(super) fn parked(upload: u32, failure: Failure) -> Step {
    let story = format!("parked for the operator, members kept: {}", failure.code);
    go(BatchState::Parked { upload, failure }).telling(story)
}

/// Only definite refusals park a batch, so nothing can have come of the calls before.
pub(super) fn unparked(upload: u32) -> Step {
    go(BatchState::Uploading { upload, wait: Wait::default() })
        .with([Effect::FindOrUploadInput { upload }])
        .telling("trying the parked batch again")
}

/// The wait that follows from trouble, or the failure that parks the batch.
pub(super) fn next_wait(
    wait: &Wait,
    trouble: &Trouble,
    at: Timestamp,
    policy: &Policy,
) -> Result<Wait, Failure> {
    let failures = wait.failures.saturating_add(1);
    let refusals_before = wait.refusals;
    let until = |duration: Duration| Some(at.plus(duration));
    let wait = |until, why: &str, refusals| Wait { until, why: Some(why.to_owned()), failures, refusals };
    let growing = backoff(policy.backoff, failures - 1);
    match trouble {
        Trouble::Later { retry_after_ms, why } => {
            let asked =
                retry_after_ms.map_or(Duration::ZERO, Duration::from_millis).min(Policy::ASKED_WAIT_MAX);
            Ok(wait(until(asked.max(growing)), why, refusals_before))
        }
        Trouble::Account { why } => Ok(wait(until(Policy::ACCOUNT_WAIT), why, refusals_before)),
        Trouble::Uncertain { why } | Trouble::Local { why } => Ok(wait(until(growing), why, refusals_before)),
        Trouble::Refused(failure) => {
            let refusals = refusals_before.saturating_add(1);
            if refusals >= Policy::REFUSALS_MAX {
                return Err(Failure { class: FailureClass::Permanent, ..failure.clone() });
            }
            // The code only: the provider's words may repeat what stands in a line, and this goes to the log.
            Ok(wait(until(growing), &format!("refused: {}", failure.code), refusals))
        }
    }
}

fn waiting(what: &str, wait: &Wait) -> String {
    let why = wait.why.as_deref().unwrap_or("no reason given");
    match wait.until {
        Some(until) => format!("{what} did not go through ({why}); again at {until}"),
        None => format!("{what} did not go through ({why})"),
    }
}
