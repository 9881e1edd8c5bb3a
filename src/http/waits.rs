//! Why a session or a request waits just now: one decision over what is known, without a read of its own.
//!
//! It goes through the same questions in the same order as those who do the work: `actors/creator.rs` for what is
//! pending, `actors/effects.rs` for what is in a batch. `tests/it/results.rs` holds it to them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::actors::account::{Cause, Pause};
use crate::actors::pace::Waits;
use crate::condition::Standing;
use crate::domain::batch::{Batch, BatchState, ProviderIdentity, Running, Wait};
use crate::domain::cut::{self, Due, Limits};
use crate::domain::id::Timestamp;
use crate::domain::request::{Request, RequestStatus};
use crate::domain::room::{Admission, LOOK_AGAIN, Room};
use crate::domain::session::{Session, SessionState};
use crate::store::{Anomaly, GROUPS_OF_ONE_MAX, GroupWaiting};

/// What it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// The session may still change.
    Settle,
    /// Its group is neither full nor old enough.
    CountOrAge,
    /// The next look at what is due.
    Interval,
    /// The time that its client asked for.
    NotBefore,
    /// The end of a pause after a failure.
    Backoff,
    /// Requests for fewer other models of its company.
    TooManyModels,
    /// Room for tokens at the provider.
    Room,
    /// Money that may be spent.
    Budget,
    /// The account at the provider.
    PausedProvider,
    /// Something in this program or its disk.
    Hindrance,
    /// The switch that is off.
    SwitchedOff,
    /// The company, which is suspended.
    CompanySuspended,
    /// A limit of our own toward the provider.
    HourlyLimit,
    /// The provider, which asked for a pause.
    RateLimited,
    /// The provider, which has the batch.
    Provider,
    /// A step of its batch here.
    BatchStep,
    /// Its batch, which does not close because its members do not add up.
    Anomaly,
}

impl For {
    /// The word in the API.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Settle => "settle",
            Self::CountOrAge => "count_or_age",
            Self::Interval => "interval",
            Self::NotBefore => "not_before",
            Self::Backoff => "backoff",
            Self::TooManyModels => "too_many_models",
            Self::Room => "room",
            Self::Budget => "budget",
            Self::PausedProvider => "paused_provider",
            Self::Hindrance => "hindrance",
            Self::SwitchedOff => "switched_off",
            Self::CompanySuspended => "company_suspended",
            Self::HourlyLimit => "hourly_limit",
            Self::RateLimited => "rate_limited",
            Self::Provider => "provider",
            Self::BatchStep => "batch_step",
            Self::Anomaly => "anomaly",
        }
    }
}

/// Why something waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// For what.
    pub for_what: For,
    /// In words.
    pub detail: String,
    /// Since when, where that is known.
    pub since: Option<Timestamp>,
    /// Until when at the latest, or when it is looked at again, where that is known.
    pub until: Option<Timestamp>,
}

impl Waiting {
    fn new(for_what: For, detail: impl Into<String>) -> Self {
        Self { for_what, detail: detail.into(), since: None, until: None }
    }

    fn since(self, since: Timestamp) -> Self {
        Self { since: Some(since), ..self }
    }

    fn until(self, until: Option<Timestamp>) -> Self {
        Self { until, ..self }
    }

    /// As the API shows it.
    pub fn view(&self) -> Value {
        json!({
            "for": self.for_what.label(),
            "detail": self.detail,
            "since": self.since.map(|at| at.to_string()),
            "until": self.until.map(|at| at.to_string()),
        })
    }
}

/// What holds for everything that waits.
#[derive(Debug, Clone)]
pub struct Around {
    /// Now.
    pub now: Timestamp,
    /// Whether batches are cut and sent.
    pub creation: bool,
    /// Whether the provider is asked.
    pub polling: bool,
    /// What stands in the way.
    pub standing: Standing,
    /// The account's pause.
    pub paused: Option<Pause>,
    /// How long nothing is sent because the provider asked for that.
    pub rate_limited: Option<Duration>,
    /// Our own limit on batches an hour, where somebody waits for it.
    pub pace: Option<Waits>,
    /// Bounds of a batch.
    pub limits: Limits,
    /// How often the creator looks.
    pub creation_interval: Duration,
    /// The provider that is configured.
    pub provider: ProviderIdentity,
}

/// What is known of a pending request's group.
#[derive(Debug, Clone)]
pub struct GroupNow {
    /// Whether nothing new is cut for the company: it is suspended, or not there.
    pub suspended: bool,
    /// What waits in it; none where nothing does.
    pub waits: Option<GroupWaiting>,
    /// The room for its model.
    pub room: Room,
    /// Companies with something due for the model, this one included.
    pub sharers: u64,
    /// Whether its company has no live batch.
    pub newcomer: bool,
    /// Why its company's money does not let it be cut.
    pub out_of_money: Option<String>,
}

/// What is known of the batch that a request is in.
#[derive(Debug, Clone)]
pub struct BatchNow {
    /// The batch.
    pub batch: Batch,
    /// When something last happened in it.
    pub since: Timestamp,
    /// The room for its model.
    pub room: Room,
    /// What keeps it from closing.
    pub anomaly: Option<Anomaly>,
}

/// Where a request stands, with what is known of that place.
#[derive(Debug, Clone)]
pub enum Place {
    /// It waits for a batch.
    Pending(Box<GroupNow>),
    /// It is in a batch.
    Batch(Box<BatchNow>),
    /// It is over.
    Over,
}

/// Why a session waits, as long as no request has been made for it.
pub fn of_session(session: &Session) -> Option<Waiting> {
    match session.state {
        SessionState::Settling => {
            let detail = "it is analysed once it has been unchanged long enough";
            Some(Waiting::new(For::Settle, detail).since(session.changed_at).until(session.settles_at))
        }
        SessionState::Empty
        | SessionState::TranscriptMissing
        | SessionState::Requested
        | SessionState::Analysed
        | SessionState::AnalysisFailed
        | SessionState::Expired => None,
    }
}

/// Why a request waits.
pub fn of_request(request: &Request, place: &Place, around: &Around) -> Option<Waiting> {
    match (request.status, place) {
        (RequestStatus::PendingBatching, Place::Pending(group)) => Some(pending(request, group, around)),
        (RequestStatus::BatchingInProgress, Place::Batch(batch)) => Some(in_batch(batch, around)),
        // It moved on while that was read.
        (RequestStatus::PendingBatching | RequestStatus::BatchingInProgress, _) => {
            Some(Waiting::new(For::BatchStep, "it is on its way: look again"))
        }
        (RequestStatus::ProcessingComplete | RequestStatus::ProcessingFailed, _) => None,
    }
}

/// What stops everything that is sent: the creator and `effects::creation_enabled` ask the same.
fn stopped(around: &Around) -> Option<Waiting> {
    if !around.creation {
        return Some(Waiting::new(For::SwitchedOff, "the creation of batches is switched off"));
    }
    let (hindrance, why) = around.standing.iter().next()?;
    Some(Waiting::new(For::Hindrance, format!("{}: {why}", hindrance.code())))
}

fn pending(request: &Request, group: &GroupNow, around: &Around) -> Waiting {
    let since = request.pending_since;
    if let Some(stopped) = stopped(around) {
        return stopped.since(since);
    }
    if group.suspended {
        return Waiting::new(For::CompanySuspended, "nothing new is sent for a suspended company")
            .since(since);
    }
    if let Some(at) = request.not_before {
        let every = humantime::format_duration(around.creation_interval);
        return match &request.failure {
            _ if at <= around.now => {
                let detail = format!("its time has come; that is looked at every {every}");
                Waiting::new(For::Interval, detail).since(at).until(Some(at.plus(around.creation_interval)))
            }
            _ if is_put_off(request) => {
                let detail = format!(
                    "its time came while requests for {GROUPS_OF_ONE_MAX} other models and endpoints of its company waited; it is looked at again then"
                );
                Waiting::new(For::TooManyModels, detail).since(since).until(Some(at))
            }
            Some(failure) => {
                let detail = format!("a pause after its last failure ({})", failure.code);
                Waiting::new(For::Backoff, detail).since(since).until(Some(at))
            }
            None => {
                Waiting::new(For::NotBefore, "its client asked for that time").since(since).until(Some(at))
            }
        };
    }
    let Some(waits) = &group.waits else {
        return Waiting::new(For::Interval, "it is on its way into a batch").since(since);
    };
    let Some(due) = cut::due(&waits.waiting, &around.limits, around.now) else {
        return not_due(waits, around).since(since);
    };
    // The creator looks at its batches one after another: while one of the group is filled no other one is opened.
    if waits.filling.is_some() {
        return Waiting::new(For::Interval, "a batch of its group is being filled just now").since(since);
    }
    if let Some(why) = &group.out_of_money {
        return Waiting::new(For::Budget, why).since(since);
    }
    if let Some(room) = no_room(waits, group, around) {
        return room.since(since);
    }
    due_now(waits, due, around).since(since)
}

/// Whether its time has come once, but nothing more could wait beside so many others: who waits for the first time does so
/// since it came in, or since its last attempt.
fn is_put_off(request: &Request) -> bool {
    let began = request.history.last().map_or(request.requested_at, |attempt| attempt.at);
    request.pending_since > began
}

fn not_due(waits: &GroupWaiting, around: &Around) -> Waiting {
    let (waiting, limits) = (&waits.waiting, &around.limits);
    let detail = format!(
        "{} of {} requests and {} of {} bytes wait in its group; a batch goes when one is reached, or once the oldest has waited {}",
        waiting.requests,
        limits.requests_max,
        waiting.bytes,
        limits.bytes_max,
        humantime::format_duration(limits.age_max)
    );
    Waiting::new(For::CountOrAge, detail).until(Some(waiting.oldest.plus(limits.age_max)))
}

/// As `creator::open_due` decides it.
fn no_room(waits: &GroupWaiting, group: &GroupNow, around: &Around) -> Option<Waiting> {
    let room = &group.room;
    let max = room.for_these(&waits.waiting, around.now, group.sharers, group.newcomer)?;
    if max > 0 {
        return None;
    }
    Some(shut(room, around.now))
}

/// There is no room, told by what shut it.
fn shut(room: &Room, now: Timestamp) -> Waiting {
    match room.closed {
        Some(closed) if closed.probe.is_some() => Waiting::new(
            For::Room,
            "the provider had no room; another batch tries whether there is some again",
        ),
        Some(closed) if closed.until > now => {
            let detail = format!(
                "the provider had no room for its model {} times in a row; it is tried again then",
                closed.times
            );
            Waiting::new(For::Room, detail).until(Some(closed.until))
        }
        // How much of it others hold is not a company's matter.
        Some(_) | None => {
            Waiting::new(For::Room, "the room for tokens of its model at the provider is taken")
        }
    }
}

fn due_now(waits: &GroupWaiting, due: Due, around: &Around) -> Waiting {
    let every = humantime::format_duration(around.creation_interval);
    let detail = format!("its group is due ({}); that is looked at every {every}", due.label());
    let until = match due {
        // By the next tick behind the moment at which it became due.
        Due::Age => {
            let became = waits.waiting.oldest.plus(around.limits.age_max);
            Some(became.plus(around.creation_interval)).filter(|until| *until > around.now)
        }
        // A full batch is opened at once.
        Due::Count | Due::Bytes | Due::Turn => None,
    };
    Waiting::new(For::Interval, detail).until(until)
}

fn in_batch(now: &BatchNow, around: &Around) -> Waiting {
    let batch = &now.batch;
    if batch.provider != around.provider && !batch.state.is_unsent() {
        let detail = "its batch went to another provider than the one configured now, and rests until that one is configured again";
        return Waiting::new(For::BatchStep, detail).since(now.since);
    }
    if let Some(anomaly) = &now.anomaly {
        let detail = format!(
            "its batch does not close, and nothing of it is lost: {}; that is for an operator to see to",
            anomaly.what
        );
        return Waiting::new(For::Anomaly, detail).since(anomaly.at);
    }
    if let Some(wait) = batch.state.wait()
        && let Some(waiting) = own_wait(now, wait, around)
    {
        return waiting.since(now.since);
    }
    let step = |detail: &str| Waiting::new(For::BatchStep, detail);
    let waiting = match &batch.state {
        BatchState::Filling => step("its batch is being filled"),
        BatchState::Sealed => stopped(around).unwrap_or_else(|| step("its batch is about to be sent")),
        BatchState::Uploading { .. } => stopped(around)
            .or_else(|| paused(around, |_| true))
            .or_else(|| rate_limited(around))
            .unwrap_or_else(|| step("the input file of its batch is being sent")),
        BatchState::Ready { .. } => ready(now, around),
        BatchState::Creating { .. } => step("the provider is being asked to create its batch"),
        BatchState::Uncertain { .. } | BatchState::Fencing { .. } => {
            let key = |cause| matches!(cause, Cause::Key | Cause::Unproven);
            paused(around, key).unwrap_or_else(|| {
                step(if matches!(batch.state, BatchState::Fencing { gone: false, .. }) {
                    "the provider did not create its batch as far as can be seen: its input file is deleted there before it \
                     is sent again, so that nothing is paid for twice"
                } else {
                    "it is uncertain whether the provider created its batch: it is looked for, so that nothing is paid \
                     for twice"
                })
            })
        }
        BatchState::Parked { failure, .. } => step(&format!(
            "its batch is parked for the operator, who may have it tried again with `nightshift resume`: {}",
            failure.code
        )),
        BatchState::Observing { running, missing, .. } => {
            observing(*running, missing.is_some(), batch.is_overdue, around)
        }
        BatchState::Settling { .. } => step("its batch has ended, and the result files are not there yet"),
        BatchState::Downloading { .. } => {
            let key = |cause| cause == Cause::Key;
            paused(around, key).unwrap_or_else(|| step("the results of its batch are being brought home"))
        }
        BatchState::Applying { .. } => step("the results of its batch are being taken in"),
        BatchState::Closing { .. } => {
            step("its batch is being closed: what has no result goes back or fails")
        }
        BatchState::Dissolving { .. } => step("its batch is given up, and its requests go back or end"),
        BatchState::Cleaning { .. } | BatchState::Closed { .. } => step("its batch is closed: look again"),
    };
    waiting.since(now.since)
}

/// The batch waits for a time of its own.
fn own_wait(now: &BatchNow, wait: &Wait, around: &Around) -> Option<Waiting> {
    let until = wait.until.filter(|until| *until > around.now)?;
    if let (BatchState::Ready { .. }, Some(room)) = (&now.batch.state, no_admission(now, around)) {
        return Some(room.until(Some(until)));
    }
    let why = wait.why.as_deref().unwrap_or("it waits before the next try");
    Some(Waiting::new(For::BatchStep, why).until(Some(until)))
}

/// As `effects::make_intent` asks, in its order.
fn ready(now: &BatchNow, around: &Around) -> Waiting {
    let waiting = stopped(around)
        .or_else(|| no_admission(now, around))
        .or_else(|| paused(around, |_| true))
        .or_else(|| rate_limited(around));
    if let Some(waiting) = waiting {
        return waiting;
    }
    match around.pace {
        Some(pace) => {
            // How many of others wait, too, is not a company's matter.
            let detail =
                format!("our own limit of {} batches an hour toward the provider is reached", pace.per_hour);
            // The first of them may go then; whether it is this one is not known.
            Waiting::new(For::HourlyLimit, detail).until(Some(around.now.plus(pace.left)))
        }
        None => Waiting::new(For::BatchStep, "its batch is about to be created at the provider"),
    }
}

fn no_admission(now: &BatchNow, around: &Around) -> Option<Waiting> {
    let batch = &now.batch;
    match now.room.admits(batch.id, batch.held_tokens, batch.counts.members == 1, around.now) {
        Admission::Now => None,
        Admission::NotBefore(until) => {
            let looks = Some(until).filter(|until| *until > around.now);
            Some(shut(&now.room, around.now).until(looks.or(Some(around.now.plus(LOOK_AGAIN)))))
        }
        Admission::TooBig => Some(Waiting::new(
            For::Room,
            "the provider has no room for so many tokens at once: its batch is about to be cut smaller",
        )),
    }
}

fn paused(around: &Around, holds: impl Fn(Cause) -> bool) -> Option<Waiting> {
    let pause = around.paused.as_ref().filter(|pause| holds(pause.cause))?;
    let detail = format!(
        "the account at the provider is paused ({}) since {}: {}",
        pause.cause.label(),
        pause.since,
        pause.why
    );
    Some(Waiting::new(For::PausedProvider, detail))
}

/// As `Account::pass` asks.
fn rate_limited(around: &Around) -> Option<Waiting> {
    let wait = around.rate_limited?;
    let detail = "the provider said that there were too many calls and asked for a pause before the next";
    Some(Waiting::new(For::RateLimited, detail).until(Some(around.now.plus(wait))))
}

fn observing(running: Running, missing: bool, overdue: bool, around: &Around) -> Waiting {
    let mut detail = match running {
        Running::Validating => "the provider checks its batch",
        Running::InProgress => "the provider runs its batch; that may take a day",
        Running::Finalizing => "the provider puts the results of its batch together",
    }
    .to_owned();
    if overdue {
        detail.push_str("; its window closed hours ago, and it is still waited for");
    }
    if missing {
        detail = "the provider says that it does not know its batch; it is asked again".to_owned();
    }
    if !around.polling {
        detail.push_str("; polling is switched off, so nothing is learned of it");
    }
    Waiting::new(For::Provider, detail)
}

#[cfg(test)]
mod tests;
