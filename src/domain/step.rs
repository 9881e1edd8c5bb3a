//! The state machine: what follows from an event, and what to do after a restart.
//!
//! `step` only decides; the store commits what it returns, and only then the effects run. One file a busy
//! stretch: `submitting` up to the provider's answer, `observing` until it ends, `applying` until it is over.

mod applying;
mod observing;
mod submitting;

use std::time::Duration;

use super::batch::{BatchState, Cancel, Ended, Intent, Orders, Then, Wait};
use super::effect::Effect;
use super::event::Event;
use super::id::{FileId, ProviderBatchId, Timestamp};
use super::request::{Failure, FailureClass};

/// A change of the batch's facts that is stored together with the next state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The provider has this input file.
    Input(FileId),
    /// The provider's batch is ours from now on; the id is indexed.
    Adopt(ProviderBatchId),
    /// An intent is given up; what surfaces for it later is a shadow.
    Supersede(Intent),
    /// It is to be cancelled.
    Cancel(Cancel),
    /// The provider had no room for it.
    NoRoom {
        /// The first wait after that.
        first: Duration,
    },
    /// The provider has admitted it.
    Admitted,
    /// The provider has not ended it long after its window closed.
    Overdue,
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
    /// The wait after the account was refused; how long the account as a whole then rests is decided elsewhere.
    pub const ACCOUNT_WAIT: Duration = Duration::from_secs(1);
    /// How often in a row the provider must say that it does not know a batch that it has given an id.
    pub const NOT_KNOWN_MIN: u32 = 5;
    /// And for how long.
    pub const NOT_KNOWN_FOR: Duration = Duration::from_secs(1800);
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
    /// How long after the end of its window a batch that runs is told of (contract section 2.3).
    pub const OVERDUE_AFTER: Duration = Duration::from_secs(2 * 3600);
    /// A longer wait that the provider asks for is cut to this.
    pub const ASKED_WAIT_MAX: Duration = Duration::from_secs(3600);
}

/// What follows from `event` in `state`, with what was ordered for the batch.
pub fn step(
    state: &BatchState,
    orders: Orders,
    event: &Event,
    policy: &Policy,
) -> Result<Step, IllegalEvent> {
    let step = decide(state, orders, event, policy)?;
    let cancel = if let Event::CancelAsked(cancel) = event { Some(cancel.then) } else { orders.cancel };
    Ok(honour(Orders { cancel, ..orders }, state, step))
}

/// A batch that is cancelled, or was not cut here, is never sent (again): where the machine would come to that, it is
/// given up instead.
fn honour(orders: Orders, state: &BatchState, mut step: Step) -> Step {
    let stops = orders.cancel.is_some() || orders.never_sent;
    if let BatchState::Dissolving { then, .. } = &mut step.next {
        *then = orders.cancel.unwrap_or(*then);
        return step;
    }
    if stops && step.next.is_unsent() {
        let detail = "its batch was cancelled before it was sent";
        let failure = Failure::new(FailureClass::Transient, "batch_cancelled", detail);
        step.next = BatchState::Dissolving { then: orders.cancel.unwrap_or(Then::Requeue), failure };
        step.effects = vec![Effect::CloseChunk];
        return step.telling_more("it will not be sent; its requests are given up");
    }
    let is_observed = |state: &BatchState| matches!(state, BatchState::Observing { .. });
    if orders.cancel.is_some() && is_observed(&step.next) && !is_observed(state) {
        step.effects.push(Effect::CancelRemote);
    }
    step
}

#[expect(clippy::too_many_lines, reason = "one line a transition: the table is the point")]
fn decide(state: &BatchState, orders: Orders, event: &Event, policy: &Policy) -> Result<Step, IllegalEvent> {
    use {BatchState as S, Event as E};
    match (state, event) {
        (S::Filling, E::FillEnded { members, at }) => Ok(submitting::fill_ended(*members, *at)),
        (S::Sealed, E::Released) => Ok(submitting::released()),
        (S::Uploading { upload, .. }, E::WaitEnded) => {
            Ok(stay(state).with([Effect::FindOrUploadInput { upload: *upload }]))
        }
        (S::Uploading { .. }, E::Uploaded(input)) => Ok(submitting::uploaded(input)),
        (S::Uploading { upload, wait }, E::UploadFailed { trouble, at }) => {
            Ok(submitting::upload_failed((*upload, wait), orders, trouble, *at, policy))
        }
        (S::Parked { upload, .. }, E::Unparked) => Ok(submitting::unparked(*upload)),
        (S::Ready { .. }, E::WaitEnded) => Ok(stay(state).with([Effect::MakeIntent])),
        (S::Ready { wait, .. }, E::IntentMade(intent)) => Ok(submitting::intent_made(intent, wait)),
        (S::Creating { intent, wait }, E::CreateFailed { trouble, input_gone, at }) => {
            Ok(submitting::create_failed((intent, wait), orders, trouble, *input_gone, *at, policy))
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
        (S::Creating { intent, .. }, E::ListUnproven) => Ok(submitting::list_unproven(intent, 0)),
        (S::Uncertain { intent, sweeps }, E::ListUnproven) => Ok(submitting::list_unproven(intent, *sweeps)),
        (S::Fencing { intent, gone: false }, E::NotFenced { why }) => Ok(submitting::not_fenced(intent, why)),
        (S::Fencing { intent, gone: false }, E::Fenced) => Ok(submitting::fenced(intent)),
        (S::Fencing { intent, gone: true }, E::Swept { complete, found, .. }) => {
            Ok(submitting::last_swept(intent, *complete, found.as_ref()))
        }
        (S::Cleaning { .. } | S::Closed { .. }, E::CancelAsked(_)) => {
            Err(IllegalEvent { state: state.label(), event: event.label() })
        }
        (_, E::CancelAsked(cancel)) => Ok(submitting::cancel_asked(state, cancel)),
        (state, E::GivenBack(failure)) if state.is_unsent() => Ok(submitting::given_back(failure)),
        (S::Ready { input, wait }, E::RoomShut { until }) => Ok(submitting::room_shut(input, wait, *until)),
        (S::Ready { input, wait }, E::InputOutdated) => Ok(submitting::outdated(input, wait)),
        (S::Observing { intent, running, wait, .. }, E::Observed { seen, at }) => {
            Ok(observing::observed((intent, *running, wait), orders, seen, *at, policy))
        }
        (S::Observing { intent, running, wait, missing }, E::NotKnown { at }) => {
            Ok(observing::not_known(intent, *running, wait, *missing, *at))
        }
        (S::Settling { ended, since }, E::NotKnown { at }) => Ok(observing::settled(ended, *since, *at)),
        // What was under way when it was given up comes to nothing; a file that did arrive is deleted later.
        (S::Dissolving { .. }, E::Uploaded(input)) => {
            Ok(stay(state).changing(Change::Input(input.id.clone())))
        }
        (S::Dissolving { .. }, E::ChunkClosed { remaining, at }) => {
            Ok(applying::dissolved(state, *remaining, *at))
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
            | S::Dissolving { .. }
            | S::Cleaning { .. }
            | S::Closed { .. },
            E::Observed { .. } | E::NotKnown { .. },
        )
        | (
            S::Dissolving { .. } | S::Cleaning { .. } | S::Closed { .. },
            E::Released
            | E::UploadFailed { .. }
            | E::IntentMade(_)
            | E::RoomShut { .. }
            | E::InputOutdated
            | E::GivenBack(_)
            | E::FillEnded { .. },
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
            | S::Dissolving { .. }
            | S::Closed { .. },
            E::WaitEnded,
        ) => Ok(stay(state)),
        (state, event) => Err(IllegalEvent { state: state.label(), event: event.label() }),
    }
}

/// How long to wait until `until`, at `now`. No wait of the machine is longer than [`Policy::ASKED_WAIT_MAX`], so what
/// seems longer comes of a clock that was turned back.
pub fn wait_for(until: Timestamp, now: Timestamp) -> Duration {
    until.since(now).min(Policy::ASKED_WAIT_MAX)
}

/// What to do for a batch that was found in this state at a start.
pub fn resume(state: &BatchState, orders: Orders) -> Vec<Effect> {
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
        S::Fencing { intent, gone: false } => vec![Effect::Fence(intent.clone())],
        S::Parked { .. } => vec![Effect::Unpark],
        S::Observing { .. } if orders.cancel.is_some() => vec![Effect::CancelRemote, Effect::Observe],
        S::Observing { .. } | S::Settling { .. } => vec![Effect::Observe],
        S::Downloading { ended, kind, wait, .. } => match wait.until {
            Some(until) => vec![Effect::WakeAt(until)],
            None => applying::download(ended, *kind).into_iter().collect(),
        },
        S::Applying { kind, offset, .. } => vec![Effect::ApplyLines { kind: *kind, offset: *offset }],
        S::Closing { .. } | S::Dissolving { .. } => vec![Effect::CloseChunk],
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

    fn telling_more(mut self, more: &str) -> Self {
        self.story = Some(match self.story {
            Some(story) => format!("{story}; {more}"),
            None => more.to_owned(),
        });
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
