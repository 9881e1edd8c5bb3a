//! Webhooks: who is told of what, how often it is tried, and what the messages say. Ids and outcomes, and never what
//! somebody said or what a model answered.

pub mod signature;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::signature::SigningSecret;
use super::batch::Batch;
use super::id::{CompanyId, DeliveryId, EventId, RequestId, SessionId, Timestamp, WebhookId};
use super::request::{FailureClass, RequestStatus};

/// Webhooks of one company.
pub const WEBHOOKS_MAX: usize = 10;
/// Outcomes in one message.
pub const BUNDLE_MAX: usize = 250;
/// After a rotation the old secret signs beside the new one for so long.
pub const OLD_SECRET_SIGNS: Duration = Duration::from_secs(24 * 3600);
/// A delivery is tried again until so long after its first try.
pub const TRIES_FOR: Duration = Duration::from_secs(24 * 3600);
/// A receiver that names a time to wait is not believed beyond this.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// No delivery waits longer than this for its next try.
pub const WAIT_MAX: Duration = Duration::from_secs(8 * 3600);

/// The waits after the first, second, … failure; the last one repeats.
const WAITS: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(3600),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(4 * 3600),
    WAIT_MAX,
];

/// What a webhook can be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EventKind {
    /// Requests have their last outcome, many in one message.
    RequestFinished,
    /// A batch is over.
    BatchFinished,
    /// Somebody wants to see whether messages arrive.
    Test,
}

impl EventKind {
    /// Those that a webhook asks for; a test comes without.
    pub const TO_ASK_FOR: [Self; 2] = [Self::RequestFinished, Self::BatchFinished];

    /// The word in messages and in the API.
    pub const fn label(self) -> &'static str {
        match self {
            Self::RequestFinished => "request.finished",
            Self::BatchFinished => "batch.finished",
            Self::Test => "webhook.test",
        }
    }
}

/// Whether a webhook is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It is told of what happens.
    Enabled,
    /// It is told of nothing, and what waits for it goes on waiting.
    Disabled {
        /// Why.
        why: String,
    },
    /// It is gone for its company; what is left of it is removed piece by piece.
    Deleted,
}

/// An address of a company that is told what has happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// Its id.
    pub id: WebhookId,
    /// Whose.
    pub company: CompanyId,
    /// Where messages are sent. It may hold what only the receiver is to know, so it is in no log.
    pub url: String,
    /// What it is told of.
    pub events: Vec<EventKind>,
    /// What people call it.
    pub description: Option<String>,
    /// Whether it is used.
    pub standing: Standing,
    /// What its messages are signed with.
    pub secret: SigningSecret,
    /// What they are signed with besides, each until then, the oldest first: a second rotation, as after a reply that was
    /// lost, must not take away what receivers have.
    pub old_secrets: Vec<(SigningSecret, Timestamp)>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed by hand, or by a receiver that wants nothing more.
    pub changed_at: Timestamp,
    /// Deliveries that wait.
    pub pending: u64,
    /// Deliveries that have ended and are kept in the log.
    pub ended: u64,
    /// Deliveries that were given up because too many waited, since it was made.
    pub dropped: u64,
}

impl Webhook {
    /// Secrets of before at most: each is one more signature of each message.
    const OLD_SECRETS_MAX: usize = 4;

    /// Whether it is to be told of such an event.
    pub fn listens_to(&self, kind: EventKind) -> bool {
        self.standing == Standing::Enabled && self.events.contains(&kind)
    }

    /// The secrets that sign a message now, the newest first.
    pub fn secrets(&self, now: Timestamp) -> impl Iterator<Item = &SigningSecret> {
        let old =
            self.old_secrets.iter().rev().filter(move |(_, until)| now < *until).map(|(secret, _)| secret);
        std::iter::once(&self.secret).chain(old)
    }

    /// Gives it a new secret; the one before signs beside it until `until`, as do those before that have time left.
    pub fn rotate(&mut self, secret: SigningSecret, now: Timestamp, until: Timestamp) {
        let old = std::mem::replace(&mut self.secret, secret);
        self.old_secrets.retain(|(_, until)| now < *until);
        self.old_secrets.push((old, until));
        if self.old_secrets.len() > Self::OLD_SECRETS_MAX {
            self.old_secrets.remove(0);
        }
        self.changed_at = now;
    }

    /// Until when every secret of before signs that still does; none where there is no such secret.
    pub fn old_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.old_secrets.iter().map(|(_, until)| *until).filter(|until| now < *until).min()
    }
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeliveryState {
    /// It is to be tried then.
    Pending {
        /// When.
        due: Timestamp,
    },
    /// The receiver has it.
    Delivered {
        /// Since when.
        at: Timestamp,
    },
    /// It is not tried any more.
    Failed {
        /// Since when.
        at: Timestamp,
    },
    /// It was given up because too many waited.
    Dropped {
        /// When.
        at: Timestamp,
    },
}

impl DeliveryState {
    /// The words of [`DeliveryState::label`].
    pub const LABELS: [&'static str; 4] = ["pending", "delivered", "failed", "dropped"];

    /// The word in the API.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pending { .. } => "pending",
            Self::Delivered { .. } => "delivered",
            Self::Failed { .. } => "failed",
            Self::Dropped { .. } => "dropped",
        }
    }

    /// When it is due; none if it has ended.
    pub const fn due(self) -> Option<Timestamp> {
        match self {
            Self::Pending { due } => Some(due),
            Self::Delivered { .. } | Self::Failed { .. } | Self::Dropped { .. } => None,
        }
    }

    /// When it ended; none while it waits.
    pub const fn ended_at(self) -> Option<Timestamp> {
        match self {
            Self::Pending { .. } => None,
            Self::Delivered { at } | Self::Failed { at } | Self::Dropped { at } => Some(at),
        }
    }
}

/// One try to deliver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// When it began.
    pub at: Timestamp,
    /// How long it took.
    pub millis: u64,
    /// The receiver's status, where there was an answer.
    pub http_status: Option<u16>,
    /// Why it did not go well, at most [`Try::ERROR_CHARS_MAX`] characters.
    pub error: Option<String>,
}

impl Try {
    /// Longer words are cut.
    pub const ERROR_CHARS_MAX: usize = 300;
}

/// What a receiver's answer, or its absence, means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has the message.
    Taken,
    /// It did not take it, or nobody can tell; it may another time.
    NotTaken {
        /// The wait that it asked for.
        retry_after: Option<Duration>,
    },
    /// It wants no messages any more.
    Gone,
}

impl Answer {
    /// What a status means. Only 2xx is good: what is behind a redirection was never agreed on.
    pub fn of_status(status: u16, retry_after: Option<Duration>) -> Self {
        match status {
            200..=299 => Self::Taken,
            410 => Self::Gone,
            429 | 503 => Self::NotTaken { retry_after: retry_after.map(|wait| wait.min(RETRY_AFTER_MAX)) },
            _ => Self::NotTaken { retry_after: None },
        }
    }
}

/// One event on its way to one webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its id, the same at each try.
    pub id: DeliveryId,
    /// To whom.
    pub webhook: WebhookId,
    /// Of what; its text lies apart.
    pub event: EventId,
    /// What kind that is.
    pub kind: EventKind,
    /// Where it stands.
    pub state: DeliveryState,
    /// When the event happened.
    pub created_at: Timestamp,
    /// When it was tried first, or made: an order to deliver it again begins anew.
    pub tried_since: Timestamp,
    /// How often it was tried since then.
    pub tries: u32,
    /// The last tries, oldest first, at most [`Delivery::TRIES_KEPT`].
    pub log: Vec<Try>,
    /// The length of its text, in bytes.
    pub bytes: u64,
}

impl Delivery {
    /// Tries that are kept; older ones are dropped.
    pub const TRIES_KEPT: usize = 20;

    /// The id as the receiver sees it: `webhook-id`.
    pub fn message_id(&self) -> String {
        message_id(self.id)
    }

    /// Takes note of a try and of what it came to.
    pub fn tried(&mut self, tried: Try, answer: Answer, now: Timestamp) {
        if self.tries == 0 {
            // It may have waited long for reasons of ours: for a webhook to be enabled, or for room on the disk.
            self.tried_since = tried.at;
        }
        self.tries = self.tries.saturating_add(1);
        if self.log.len() >= Self::TRIES_KEPT {
            self.log.remove(0);
        }
        self.log.push(tried);
        self.state = match answer {
            Answer::Taken => DeliveryState::Delivered { at: now },
            Answer::Gone => DeliveryState::Failed { at: now },
            Answer::NotTaken { retry_after } => {
                let wait = self.wait().max(retry_after.unwrap_or_default());
                let due = now.plus(wait);
                if due.since(self.tried_since) > TRIES_FOR {
                    DeliveryState::Failed { at: now }
                } else {
                    DeliveryState::Pending { due }
                }
            }
        };
    }

    /// Has it tried at once, and for as long as a new one.
    pub fn again(&mut self, now: Timestamp) {
        self.state = DeliveryState::Pending { due: now };
        self.tried_since = now;
        self.tries = 0;
    }

    /// The wait after the tries so far: up to a tenth less than the table says, so that those that failed together do
    /// not come back together.
    fn wait(&self) -> Duration {
        let nth = usize::try_from(self.tries.saturating_sub(1)).unwrap_or(usize::MAX);
        let wait = WAITS.get(nth).or(WAITS.last()).copied().unwrap_or_default();
        let seed = crc32c::crc32c(&[self.id.as_bytes().as_slice(), &self.tries.to_be_bytes()].concat());
        wait - (wait / 10).saturating_mul(seed % 1024) / 1024
    }
}

/// The id of a delivery as its receiver sees it.
pub fn message_id(id: DeliveryId) -> String {
    format!("msg_{id}")
}

/// What a message says of one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FinishedRequest {
    /// Its id.
    #[serde(serialize_with = "as_text")]
    pub id: RequestId,
    /// The client's own id for it.
    pub client_id: Option<String>,
    /// The session that it analyses.
    #[serde(serialize_with = "as_text_if_any")]
    pub session_id: Option<SessionId>,
    /// That session's id in its export.
    pub external_id: Option<String>,
    /// Complete or failed.
    #[serde(serialize_with = "as_label")]
    pub status: RequestStatus,
    /// The batch that it was in last.
    pub batch_id: Option<String>,
    /// When that was stored.
    #[serde(serialize_with = "as_text")]
    pub completed_at: Timestamp,
    /// What kind of failure.
    #[serde(serialize_with = "as_class")]
    pub error_class: Option<FailureClass>,
}

/// The field of [`FinishedRequest::client_id`].
pub const CLIENT_ID: &str = "clientId";
/// The field of [`FinishedRequest::external_id`].
pub const EXTERNAL_ID: &str = "externalId";

impl FinishedRequest {
    /// The same without the words of clients and exports.
    pub fn nameless(&self) -> Self {
        Self { client_id: None, external_id: None, ..self.clone() }
    }
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_text_if_any<T: std::fmt::Display, S: serde::Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

fn as_label<S: serde::Serializer>(status: &RequestStatus, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(status.label())
}

fn as_class<S: serde::Serializer>(class: &Option<FailureClass>, serializer: S) -> Result<S::Ok, S::Error> {
    match class {
        Some(class) => serializer.serialize_str(class.label()),
        None => serializer.serialize_none(),
    }
}

/// The message for requests that have their last outcome, at most [`BUNDLE_MAX`] of them.
pub fn requests_finished(company: &CompanyId, requests: &[FinishedRequest], at: Timestamp) -> String {
    let requests = serde_json::json!(requests);
    message(
        EventKind::RequestFinished,
        at,
        serde_json::json!({ "companyId": company.as_str(), "requests": requests }),
    )
}

/// The message for a batch that is over.
pub fn batch_finished(batch: &Batch, at: Timestamp) -> String {
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let counts = &batch.counts;
    let data = serde_json::json!({
        "companyId": batch.group.company.as_str(),
        "id": batch.id.to_string(),
        "openaiBatchId": batch.provider_batch.as_ref().map(|id| id.as_str()),
        "status": batch.state.status().label(),
        "endpoint": batch.group.endpoint.path(),
        "model": batch.group.model,
        "counts": {
            "members": counts.members,
            "completed": counts.completed,
            "failed": counts.failed,
            "returned": counts.returned,
            "erased": counts.erased,
        },
        "createdAt": batch.created_at.to_string(),
        "completedAt": time(batch.completed_at),
        "closedAt": time(batch.closed_at),
    });
    message(EventKind::BatchFinished, at, data)
}

/// The message for a test.
pub fn test(webhook: &Webhook, at: Timestamp) -> String {
    let data =
        serde_json::json!({ "companyId": webhook.company.as_str(), "webhookId": webhook.id.to_string() });
    message(EventKind::Test, at, data)
}

fn message(kind: EventKind, at: Timestamp, data: serde_json::Value) -> String {
    serde_json::json!({ "type": kind.label(), "timestamp": at.to_string(), "data": data }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn delivery(id: u8) -> Delivery {
        Delivery {
            id: DeliveryId::from_bytes([id; 16]),
            webhook: WebhookId::from_bytes([1; 16]),
            event: EventId::from_bytes([2; 16]),
            kind: EventKind::Test,
            state: DeliveryState::Pending { due: NOW },
            created_at: NOW,
            tried_since: NOW,
            tries: 0,
            log: Vec::new(),
            bytes: 2,
        }
    }

    fn a_try(at: Timestamp) -> Try {
        Try { at, millis: 1, http_status: Some(500), error: None }
    }

    /// Tries until the end, when due each time; how long after the first each try was.
    fn tries(mut delivery: Delivery, answer: Answer) -> (Vec<Duration>, Delivery) {
        let mut times = Vec::new();
        while let Some(due) = delivery.state.due() {
            times.push(due.since(NOW));
            delivery.tried(a_try(due), answer, due);
        }
        (times, delivery)
    }

    #[test]
    fn what_nobody_takes_is_tried_eleven_times_in_a_day_and_then_given_up() {
        for id in 0..=255 {
            let (times, given_up) = tries(delivery(id), Answer::NotTaken { retry_after: None });
            assert_eq!(times.len(), 11);
            assert!(matches!(given_up.state, DeliveryState::Failed { .. }));
            assert!(
                times.last().is_some_and(|last| *last <= TRIES_FOR && *last > Duration::from_secs(20 * 3600))
            );
            let first = times[1];
            assert!(first <= Duration::from_secs(5) && first >= Duration::from_millis(4500), "{first:?}");
        }
        let waits: std::collections::BTreeSet<_> =
            (0..=255).map(|id| tries(delivery(id), Answer::NotTaken { retry_after: None }).0[2]).collect();
        assert!(waits.len() > 200, "they come back together");
    }

    #[test]
    fn what_waited_for_reasons_of_ours_has_its_whole_day() {
        let later = NOW.plus(TRIES_FOR * 3);
        let mut one = delivery(1);
        one.tried(a_try(later), Answer::NotTaken { retry_after: None }, later);
        assert!(one.state.due().is_some());
    }

    #[test]
    fn an_order_to_deliver_again_begins_anew() {
        let (_, mut given_up) = tries(delivery(1), Answer::NotTaken { retry_after: None });
        let later = NOW.plus(TRIES_FOR * 3);
        given_up.again(later);
        assert_eq!(given_up.state.due(), Some(later));
        given_up.tried(a_try(later), Answer::NotTaken { retry_after: None }, later);
        assert!(given_up.state.due().is_some_and(|due| due.since(later) <= Duration::from_secs(5)));
        assert_eq!((given_up.tries, given_up.log.len()), (1, 12));
    }

    #[test]
    fn a_receiver_may_ask_for_a_longer_wait_but_not_for_any() {
        let of = |status, wait| Answer::of_status(status, Some(Duration::from_secs(wait)));
        let wait = |secs| Answer::NotTaken { retry_after: Some(Duration::from_secs(secs)) };
        assert_eq!(of(429, 90), wait(90));
        assert_eq!(of(503, 1_000_000), wait(3600));
        assert_eq!(of(500, 90), Answer::NotTaken { retry_after: None });
        for status in [200, 202, 204, 299] {
            assert_eq!(of(status, 90), Answer::Taken);
        }
        for status in [100, 301, 302, 307, 308, 400, 404, 502] {
            assert_eq!(of(status, 90), Answer::NotTaken { retry_after: None }, "{status}");
        }
        assert_eq!(of(410, 90), Answer::Gone);
        let mut one = delivery(1);
        one.tried(a_try(NOW), wait(90), NOW);
        assert_eq!(one.state.due(), Some(NOW.plus(Duration::from_secs(90))));
        // One that asks for no wait does not shorten ours.
        let mut other = delivery(1);
        other.tried(a_try(NOW), wait(0), NOW);
        assert!(other.state.due().is_some_and(|due| due.since(NOW) >= Duration::from_millis(4500)));
    }

    #[test]
    fn the_log_of_a_delivery_is_bounded() {
        let mut one = delivery(1);
        for _ in 0..30 {
            one.again(NOW);
            one.tried(a_try(NOW), Answer::NotTaken { retry_after: None }, NOW);
        }
        assert_eq!(one.log.len(), Delivery::TRIES_KEPT);
    }

    #[test]
    fn a_message_says_ids_and_outcomes() {
        let request = FinishedRequest {
            id: RequestId::from_bytes([3; 16]),
            client_id: Some("order-1".to_owned()),
            session_id: None,
            external_id: None,
            status: RequestStatus::ProcessingFailed,
            batch_id: Some("b".to_owned()),
            completed_at: NOW,
            error_class: Some(FailureClass::Permanent),
        };
        let text = requests_finished(&"acme".parse().unwrap(), &[request], NOW);
        let said: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            said,
            serde_json::json!({
                "type": "request.finished",
                "timestamp": "2027-01-15T08:00:00.000Z",
                "data": { "companyId": "acme", "requests": [{
                    "id": "03030303-0303-0303-0303-030303030303",
                    "clientId": "order-1",
                    "sessionId": null,
                    "externalId": null,
                    "status": "processing_failed",
                    "batchId": "b",
                    "completedAt": "2027-01-15T08:00:00.000Z",
                    "errorClass": "permanent",
                }] },
            })
        );
    }
}
