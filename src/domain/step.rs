//! The state machine: what follows from an event, and what to do after a restart.
//!
//! `step` only decides; the store commits what it returns, and only then the effects run. One file a busy
//! stretch: `submitting` up to the provider's answer, `observing` until it ends, `applying` until it is over.

mod applying;
mod observing;
mod submitting;

use std::time::Duration;

use super::batch::{BatchState, Ended, Intent, Wait};
use super::effect::Effect;
use super::event::Event;
use super::id::{FileId, ProviderBatchId, Timestamp};

/// A change of the batch's facts that is stored together with the next state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The provider has this input file.
    Input(FileId),
    /// The provider's batch is ours from now on; the id is indexed.
    Adopt(ProviderBatchId),
    /// An intent is given up; what surfaces for it later is a shadow.
    Supersede(Intent),
    /// The provider's batch has ended like this.
    Ended(Ended),
    /// Every member has its outcome.
    Processed(Timestamp),
    /// The batch is over.
    Closed(Timestamp),
}

/// What follows from an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The state to store.
    pub next: BatchState,
    /// What else to store with it.
    pub changes: Vec<Change>,
    /// What to do once that is stored.
    pub effects: Vec<Effect>,
    /// A sentence for the batch's story and the log; none where nothing is worth telling.
    pub story: Option<String>,
}

/// An event that cannot happen in this state: a bug, and it says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {event} is not possible in state {state}")]
pub struct IllegalEvent {
    /// The state's label.
    pub state: &'static str,
    /// The event's label.
    pub event: &'static str,
}

/// Durations that the machine decides with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The first wait after a call that may go well later.
    pub backoff: Duration,
    /// The first wait after the provider had no room.
    pub capacity_backoff: Duration,
    /// Complete sweeps before an intent counts as not found.
    pub sweeps_min: u32,
}

impl Policy {
    /// Waits never grow beyond this.
    pub const WAIT_MAX: Duration = Duration::from_secs(600);
    /// The first wait after the account was refused.
    pub const ACCOUNT_WAIT: Duration = Duration::from_secs(30);
    /// How often in a row a batch is turned away for want of room before it is given back and cut smaller.
    pub const ROOM_TRIES: u32 = 3;
    /// How long a missing output id is asked for again (contract section 2.3).
    pub const SETTLE: Duration = Duration::from_secs(600);
    /// Refusals in a row that park a batch.
    pub const REFUSALS_MAX: u32 = 3;
    /// Refusals in a row after which a result file counts as lost: with the growing wait more than half an hour.
    pub const DOWNLOAD_REFUSALS_MAX: u32 = 9;
    /// The first wait after a result file was refused.
    pub const DOWNLOAD_WAIT: Duration = Duration::from_secs(30);
    /// Uploads of one input file before the operator decides.
    pub const UPLOADS_MAX: u32 = 5;
    /// A longer wait that the provider asks for is cut to this.
    pub const ASKED_WAIT_MAX: Duration = Duration::from_secs(3600);
}

/// What follows from `event` in `state`.
pub fn step(state: &BatchState, event: &Event, policy: &Policy) -> Result<Step, IllegalEvent> {
    use {BatchState as S, Event as E};
    match (state, event) {
        (S::Filling, E::FillEnded { members, at }) => Ok(submitting::fill_ended(*members, *at)),
        (S::Sealed, E::Released) => Ok(submitting::released()),
        (S::Uploading { upload, .. }, E::WaitEnded) => {
            Ok(stay(state).with([Effect::FindOrUploadInput { upload: *upload }]))
        }
        (S::Uploading { .. }, E::Uploaded(input)) => Ok(submitting::uploaded(input)),
        (S::Uploading { upload, wait }, E::UploadFailed { trouble, at }) => {
            Ok(submitting::upload_failed(*upload, wait, trouble, *at, policy))
        }
        (S::Parked { upload, .. }, E::Unparked) => Ok(submitting::unparked(*upload)),
        (S::Ready { .. }, E::WaitEnded) => Ok(stay(state).with([Effect::MakeIntent])),
        (S::Ready { wait, .. }, E::IntentMade(intent)) => Ok(submitting::intent_made(intent, wait)),
        (S::Creating { intent, wait }, E::CreateFailed { trouble, input_gone, at }) => {
            Ok(submitting::create_failed(intent, wait, trouble, *input_gone, *at, policy))
        }
        (S::Creating { intent, wait }, E::Created(seen)) => Ok(submitting::created(intent, wait, seen)),
        (S::Uncertain { intent, .. }, E::Created(seen)) => {
            Ok(submitting::created(intent, &Wait::default(), seen))
        }
        // A restart found the intent without an id: whatever became of the call, only a sweep can tell.
        (S::Creating { intent, .. }, E::Swept { complete, grace_over, found }) => {
            Ok(submitting::swept(intent, 0, *complete, *grace_over, found.as_ref(), policy))
        }
        (S::Uncertain { intent, sweeps }, E::Swept { complete, grace_over, found }) => {
            Ok(submitting::swept(intent, *sweeps, *complete, *grace_over, found.as_ref(), policy))
        }
        (S::Fencing { intent, gone: false }, E::Fenced) => Ok(submitting::fenced(intent)),
        (S::Fencing { intent, gone: true }, E::Swept { complete, found, .. }) => {
            Ok(submitting::last_swept(intent, *complete, found.as_ref()))
        }
        (S::Observing { intent, running, wait }, E::Observed { seen, at }) => {
            Ok(observing::observed(intent, *running, wait, seen, *at, policy))
        }
        (S::Settling { ended, since }, E::Observed { seen, at }) => {
            Ok(observing::settling(ended, *since, seen, *at))
        }
        (S::Downloading { ended, kind, lost, .. }, E::Downloaded { kind: home, torn }) if kind == home => {
            Ok(applying::downloaded(ended, *kind, *lost || *torn, *torn))
        }
        (S::Downloading { kind, .. }, E::DownloadFailed { kind: failed, trouble, at }) if kind == failed => {
            Ok(applying::download_failed(state, trouble, *at, policy))
        }
        (S::Downloading { ended, kind, .. }, E::WaitEnded) => {
            Ok(stay(state).with(applying::download(ended, *kind)))
        }
        (S::Applying { ended, kind, lost, .. }, E::CopyLost { kind: gone }) if kind == gone => {
            Ok(applying::copy_lost(ended, *kind, *lost))
        }
        (S::Applying { ended, kind, offset, lost }, E::LinesRead { kind: read, from, to, end })
            if kind == read && offset == from =>
        {
            Ok(applying::lines_read(ended, *kind, *to, *end, *lost))
        }
        (S::Closing { ended, lost }, E::ChunkClosed { remaining, at }) => {
            Ok(applying::chunk_closed(ended, *lost, *remaining, *at))
        }
        (S::Cleaning { closing }, E::Cleaned { at }) => Ok(applying::cleaned(*closing, *at)),
        // The provider's answer may come after what it tells is already known, and a timer after its reason
        // is gone: both are normal and change nothing. Any other surprise is a bug and says so.
        (
            S::Uploading { .. }
            | S::Ready { .. }
            | S::Creating { .. }
            | S::Uncertain { .. }
            | S::Fencing { .. }
            | S::Parked { .. }
            | S::Downloading { .. }
            | S::Applying { .. }
            | S::Closing { .. }
            | S::Cleaning { .. }
            | S::Closed { .. },
            E::Observed { .. },
        )
        | (
            S::Observing { .. }
            | S::Settling { .. }
            | S::Applying { .. }
            | S::Closing { .. }
            | S::Cleaning { .. }
            | S::Creating { .. }
            | S::Uncertain { .. }
            | S::Fencing { .. }
            | S::Parked { .. }
            | S::Closed { .. },
            E::WaitEnded,
        ) => Ok(stay(state)),
        (state, event) => Err(IllegalEvent { state: state.label(), event: event.label() }),
    }
}

/// What to do for a batch that was found in this state at a start.
pub fn resume(state: &BatchState) -> Vec<Effect> {
    use BatchState as S;
    match state {
        S::Filling => vec![Effect::EndFilling],
        S::Sealed => vec![Effect::AwaitRelease],
        S::Uploading { upload, wait } => vec![match wait.until {
            Some(until) => Effect::WakeAt(until),
            None => Effect::FindOrUploadInput { upload: *upload },
        }],
        S::Ready { wait, .. } => vec![wait.until.map_or(Effect::MakeIntent, Effect::WakeAt)],
        S::Creating { intent, .. } | S::Uncertain { intent, .. } => vec![Effect::Sweep(intent.clone())],
        S::Fencing { intent, gone: true } => vec![Effect::Sweep(intent.clone())],
        S::Fencing { intent, gone: false } => vec![Effect::Fence(intent.input.id.clone())],
        S::Parked { .. } => vec![Effect::Unpark],
        S::Observing { .. } | S::Settling { .. } => vec![Effect::Observe],
        S::Downloading { ended, kind, wait, .. } => match wait.until {
            Some(until) => vec![Effect::WakeAt(until)],
            None => applying::download(ended, *kind).into_iter().collect(),
        },
        S::Applying { kind, offset, .. } => vec![Effect::ApplyLines { kind: *kind, offset: *offset }],
        S::Closing { .. } => vec![Effect::CloseChunk],
        S::Cleaning { .. } => vec![Effect::Clean],
        S::Closed { .. } => vec![Effect::Retire],
    }
}

impl Step {
    /// Whether there is nothing to store.
    pub fn changes_nothing(&self, state: &BatchState) -> bool {
        self.next == *state && self.changes.is_empty() && self.story.is_none()
    }

    fn with(mut self, effects: impl IntoIterator<Item = Effect>) -> Self {
        self.effects.extend(effects);
        self
    }

    fn changing(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }

    fn telling(mut self, story: impl Into<String>) -> Self {
        self.story = Some(story.into());
        self
    }
}

fn go(next: BatchState) -> Step {
    Step { next, changes: Vec::new(), effects: Vec::new(), story: None }
}

fn stay(state: &BatchState) -> Step {
    go(state.clone())
}

/// `first`, doubled for each failure before this one, at most [`Policy::WAIT_MAX`].
fn backoff(first: Duration, failures_before: u32) -> Duration {
    let factor = 2u32.saturating_pow(failures_before.min(16));
    first.saturating_mul(factor).min(Policy::WAIT_MAX.max(first))
}

#[cfg(test)]
mod tests;
