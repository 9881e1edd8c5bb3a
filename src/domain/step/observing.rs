//! While the provider has the batch, until it says that it has ended.

use super::submitting::{next_wait, parked};
use super::{Change, Policy, Step, applying, go};
use crate::domain::batch::{BatchState, Ended, Intent, Missing, Orders, Problem, Running, Terminal, Wait};
use crate::domain::effect::Effect;
use crate::domain::event::{Observation, ObservedStatus, Trouble};
use crate::domain::id::Timestamp;
use crate::domain::request::{Failure, FailureClass};
use crate::domain::retry::BatchFailure;

pub(super) fn observed(
    (intent, running, wait): (&Intent, Running, &Wait),
    orders: Orders,
    seen: &Observation,
    at: Timestamp,
    policy: &Policy,
) -> Step {
    match seen.status {
        Some(ObservedStatus::Ended(how)) => {
            let ended = ended(how, seen, at);
            if ended.ran_nothing() {
                turned_away((intent, wait), orders, ended, at, policy)
            } else {
                over(ended, at, None).changing(Change::Admitted)
            }
        }
        // States are skipped and may even seem to go back: only a move forward is shown.
        Some(ObservedStatus::Running(now)) if rank(now) > rank(running) => {
            let step = observing(intent, now, wait, None).telling(format!("the provider says {}", word(now)));
            // A cancellation may come before admission, and says nothing about room.
            let step = if now == Running::InProgress { step.changing(Change::Admitted) } else { step };
            overdue(step, orders, seen, at)
        }
        Some(ObservedStatus::Running(_)) | None => {
            overdue(observing(intent, running, wait, None), orders, seen, at)
        }
    }
}

/// Tells once that a batch runs although its window closed long ago. It is waited for all the same: it may end yet, and is
/// paid for.
fn overdue(step: Step, orders: Orders, seen: &Observation, at: Timestamp) -> Step {
    match seen.expires_at {
        Some(by) if !orders.is_overdue && at.since(by) >= Policy::OVERDUE_AFTER => {
            step.changing(Change::Overdue).telling_more(&format!(
                "its window closed at {by} and the provider has not ended it; it is still waited for"
            ))
        }
        Some(_) | None => step,
    }
}

fn observing(intent: &Intent, running: Running, wait: &Wait, missing: Option<Missing>) -> Step {
    go(BatchState::Observing { intent: intent.clone(), running, wait: wait.clone(), missing })
}

/// A batch that was given an id is gone. It may come back, as after a change of the key; if it does not, it was
/// presumably paid for, and only an operator buys it again.
pub(super) fn not_known(
    intent: &Intent,
    running: Running,
    wait: &Wait,
    missing: Option<Missing>,
    at: Timestamp,
) -> Step {
    let before = missing.unwrap_or(Missing { since: at, times: 0 });
    // A time that is still to come was stored by a clock that was turned back since.
    let missing = Missing { times: before.times.saturating_add(1), since: before.since.min(at) };
    if missing.times < Policy::NOT_KNOWN_MIN || at.since(missing.since) < Policy::NOT_KNOWN_FOR {
        let step = observing(intent, running, wait, Some(missing));
        return match missing.times {
            1 => step.telling("the provider says that it does not know the batch; asking again"),
            _ => step,
        };
    }
    let ended = Ended {
        how: Terminal::Failed,
        at,
        output: None,
        error: None,
        completed_lines: None,
        failed_lines: None,
        problems: Vec::new(),
    };
    applying::first_file(ended.clone(), true)
        .changing(Change::Ended(ended))
        .telling("the provider does not know the batch any more: its results are lost, presumably paid for")
}

/// It has ended, and nothing more will be learned of it.
pub(super) fn settled(ended: &Ended, since: Timestamp, at: Timestamp) -> Step {
    over(ended.clone(), at, Some(since))
}

pub(super) fn settling(before: &Ended, since: Timestamp, seen: &Observation, at: Timestamp) -> Step {
    let mut ended = before.clone();
    // Nothing leaves a terminal state: an answer that says otherwise is an old one, and takes nothing back.
    if let Some(ObservedStatus::Ended(_)) = seen.status {
        ended.output = seen.output.clone().or(ended.output);
        ended.error = seen.error.clone().or(ended.error);
        ended.completed_lines = ended.completed_lines.max(seen.completed_lines);
        ended.failed_lines = ended.failed_lines.max(seen.failed_lines);
    }
    over(ended, at, Some(since))
}

/// The batch has ended and may have results.
fn over(ended: Ended, at: Timestamp, since: Option<Timestamp>) -> Step {
    let first = since.unwrap_or(at).min(at);
    if ended.lacks_files() && at.since(first) < Policy::SETTLE {
        let step = go(BatchState::Settling { ended, since: first }).with([Effect::Observe]);
        return match since {
            Some(_) => step,
            None => step.telling("ended, but its result files are not there yet; asking again"),
        };
    }
    let lost = ended.has_lost_lines();
    let story = format!("the provider says {}", ended.how.label());
    applying::first_file(ended.clone(), lost).changing(Change::Ended(ended)).telling(story)
}

/// Validation failed: nothing ran and nothing was billed.
fn turned_away(
    (intent, wait): (&Intent, &Wait),
    orders: Orders,
    ended: Ended,
    at: Timestamp,
    policy: &Policy,
) -> Step {
    let words = words(&ended.problems);
    match ended.refusal() {
        BatchFailure::Account(_) => {
            let trouble = Trouble::Account { why: words.clone() };
            let step = tried_again(intent, wait, &trouble, at, policy);
            step.with([Effect::PauseAccount { why: format!("a batch was refused: {words}") }])
        }
        BatchFailure::InputGone(_) if intent.input.upload < Policy::UPLOADS_MAX => {
            let upload = intent.input.upload + 1;
            let wait = Wait { until: None, why: Some(words), failures: wait.failures + 1, refusals: 0 };
            go(BatchState::Uploading { upload, wait })
                .with([Effect::UploadInput { upload }])
                .telling("the provider could not find the input file; uploading it again")
        }
        BatchFailure::InputGone(_) => {
            parked(intent.input.upload, Failure::new(FailureClass::Permanent, "input_gone", &words))
        }
        // The provider's own trouble, or words that we do not know: the same again a few times. Then smaller batches, if
        // it is one of its requests, and the operator, if it is not.
        BatchFailure::Unknown(failure) => {
            let step = tried_again(intent, wait, &Trouble::Refused(failure), at, policy);
            if orders.at_fault && matches!(step.next, BatchState::Parked { .. }) {
                given_up(
                    ended,
                    format!("refused again and again ({words}); its requests are tried in halves"),
                )
            } else {
                step
            }
        }
        BatchFailure::Capacity(_) => {
            let first = policy.capacity_backoff;
            let story = format!("the provider has no room ({words}); its requests go back");
            given_up(ended, story).changing(Change::NoRoom { first })
        }
        BatchFailure::Group(_)
        | BatchFailure::TooLarge(_)
        | BatchFailure::Lines(_)
        | BatchFailure::SomeLine(_) => given_up(ended, format!("not admitted: {words}")),
    }
}

fn given_up(ended: Ended, story: String) -> Step {
    applying::first_file(ended.clone(), false).changing(Change::Ended(ended)).telling(story)
}

/// The same file with a new intent, after a wait.
fn tried_again(intent: &Intent, wait: &Wait, trouble: &Trouble, at: Timestamp, policy: &Policy) -> Step {
    match next_wait(wait, trouble, at, policy) {
        Ok(wait) => {
            let wake = wait.until.map(Effect::WakeAt);
            let story = format!("not admitted ({})", wait.why.as_deref().unwrap_or("no reason given"));
            go(BatchState::Ready { input: intent.input.clone(), wait }).with(wake).telling(story)
        }
        Err(failure) => parked(intent.input.upload, failure),
    }
}

fn ended(how: Terminal, seen: &Observation, at: Timestamp) -> Ended {
    Ended {
        how,
        at: seen.ended_at.unwrap_or(at),
        output: seen.output.clone(),
        error: seen.error.clone(),
        completed_lines: seen.completed_lines,
        failed_lines: seen.failed_lines,
        problems: Ended::keep(&seen.problems),
    }
}

const fn rank(running: Running) -> u8 {
    match running {
        Running::Validating => 0,
        Running::InProgress => 1,
        Running::Finalizing => 2,
    }
}

const fn word(running: Running) -> &'static str {
    match running {
        Running::Validating => "validating",
        Running::InProgress => "in_progress",
        Running::Finalizing => "finalizing",
    }
}

/// The first problem by its code and place, and how many there are. Not the provider's words: they may repeat what
/// stands in a line, and this goes to the log.
fn words(problems: &[Problem]) -> String {
    let Some(first) = problems.first() else { return "no reason given".to_owned() };
    let code = first.code.as_deref().unwrap_or("no code");
    let param = first.param.as_deref().map(|param| format!(" {param}")).unwrap_or_default();
    let line = first.line.map(|line| format!(" in line {line}")).unwrap_or_default();
    match problems.len() {
        1 => format!("{code}{param}{line}"),
        n => format!("{code}{param}{line}, and {} more", n - 1),
    }
}
