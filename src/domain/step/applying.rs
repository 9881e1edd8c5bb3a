//! From the provider's end to ours: bring the files home, apply them, close, clean.

use super::submitting::next_wait;
use super::{Change, Policy, Step, backoff, go};
use crate::domain::batch::{BatchState, Closing, Ended, ResultKind, Terminal, Wait};
use crate::domain::effect::Effect;
use crate::domain::event::Trouble;
use crate::domain::id::Timestamp;

/// Begins with the first file that exists, or closes where there is none.
pub(super) fn first_file(ended: Ended, lost: bool) -> Step {
    let kind = ended.files().map(|(kind, _)| kind).next();
    to_file(ended, kind, lost)
}

fn to_file(ended: Ended, kind: Option<ResultKind>, lost: bool) -> Step {
    match kind {
        Some(kind) => {
            let effects = download(&ended, kind);
            go(BatchState::Downloading { ended, kind, lost, wait: Wait::default() }).with(effects)
        }
        None => go(BatchState::Closing { ended, lost }).with([Effect::CloseChunk]),
    }
}

pub(super) fn download(ended: &Ended, kind: ResultKind) -> Option<Effect> {
    ended.file(kind).map(|file| Effect::Download { kind, file: file.clone() })
}

fn after(ended: &Ended, kind: ResultKind) -> Option<ResultKind> {
    match kind {
        ResultKind::Output => ended.error.as_ref().map(|_| ResultKind::Error),
        ResultKind::Error => None,
    }
}

pub(super) fn downloaded(ended: &Ended, kind: ResultKind, lost: bool, torn: bool) -> Step {
    let offset = 0;
    let step = go(BatchState::Applying { ended: ended.clone(), kind, offset, lost })
        .with([Effect::ApplyLines { kind, offset }]);
    let how = if torn { "is home, but not whole" } else { "is home" };
    step.telling(format!("the {} file {how}", kind.label()))
}

pub(super) fn download_failed(state: &BatchState, trouble: &Trouble, at: Timestamp, policy: &Policy) -> Step {
    let BatchState::Downloading { ended, kind, lost, wait } = state else { return go(state.clone()) };
    // Only refusals in a row count towards a loss; an outage waits as long as it lasts.
    let refusals = match trouble {
        Trouble::Refused(_) => wait.refusals.saturating_add(1),
        Trouble::Later { .. }
        | Trouble::Account { .. }
        | Trouble::Uncertain { .. }
        | Trouble::Local { .. } => 0,
    };
    if refusals >= Policy::DOWNLOAD_REFUSALS_MAX {
        let mut rest = ended.clone();
        match kind {
            ResultKind::Output => rest.output = None,
            ResultKind::Error => rest.error = None,
        }
        let next = after(ended, *kind);
        return to_file(rest, next, true)
            .telling(format!("the {} file cannot be had and is lost", kind.label()));
    }
    let wait = if refusals > 0 {
        let until = at.plus(backoff(Policy::DOWNLOAD_WAIT, refusals - 1));
        let why = Some("the provider refuses it".to_owned());
        Wait { until: Some(until), why, failures: wait.failures.saturating_add(1), refusals }
    } else {
        let before = Wait { refusals: 0, ..wait.clone() };
        next_wait(&before, trouble, at, policy).unwrap_or(before)
    };
    let story = format!(
        "the {} file did not come ({})",
        kind.label(),
        wait.why.as_deref().unwrap_or("no reason given")
    );
    let wake = wait.until.map(Effect::WakeAt);
    go(BatchState::Downloading { ended: ended.clone(), kind: *kind, lost: *lost, wait })
        .with(wake)
        .telling(story)
}

pub(super) fn copy_lost(ended: &Ended, kind: ResultKind, lost: bool) -> Step {
    // From the start: the next copy may be in another order, and what is applied twice changes nothing.
    let effects = download(ended, kind);
    go(BatchState::Downloading { ended: ended.clone(), kind, lost, wait: Wait::default() })
        .with(effects)
        .telling(format!("the local copy of the {} file is gone; fetching it again", kind.label()))
}

pub(super) fn lines_read(ended: &Ended, kind: ResultKind, to: u64, end: bool, lost: bool) -> Step {
    if end {
        return to_file(ended.clone(), after(ended, kind), lost)
            .telling(format!("the {} file has been read", kind.label()));
    }
    go(BatchState::Applying { ended: ended.clone(), kind, offset: to, lost })
        .with([Effect::ApplyLines { kind, offset: to }])
}

pub(super) fn chunk_closed(ended: &Ended, lost: bool, remaining: bool, at: Timestamp) -> Step {
    if remaining {
        return go(BatchState::Closing { ended: ended.clone(), lost }).with([Effect::CloseChunk]);
    }
    let closing = match ended.how {
        Terminal::Completed => Closing::Processed,
        Terminal::Failed | Terminal::Expired => Closing::Failed,
        Terminal::Cancelled => Closing::Cancelled,
    };
    go(BatchState::Cleaning { closing })
        .changing(Change::Processed(at))
        .with([Effect::Clean])
        .telling("every member has its outcome")
}

/// A chunk of a batch that is given up before the provider had it.
pub(super) fn dissolved(state: &BatchState, remaining: bool, at: Timestamp) -> Step {
    if remaining {
        return go(state.clone()).with([Effect::CloseChunk]);
    }
    go(BatchState::Cleaning { closing: Closing::Cancelled })
        .changing(Change::Processed(at))
        .with([Effect::Clean])
        .telling("given up, nothing was sent")
}

pub(super) fn cleaned(closing: Closing, at: Timestamp) -> Step {
    go(BatchState::Closed { closing })
        .changing(Change::Closed(at))
        .with([Effect::Retire])
        .telling("closed, local files removed")
}
