//! The trees and the bytes of their keys. Numbers are big-endian so that keys sort like what they stand for.
//!
//! A tree's name is on disk for ever: a retired one stays listed here so that it is never used for something else.
//! `docs/keyspace.md` is the table for people.

use crate::domain::id::{BatchId, CompanyId, RequestId, SessionId, Timestamp};
use crate::domain::request::{Endpoint, Group, RequestStatus};

macro_rules! trees {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// One tree of the store.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Tree { $($(#[$doc])* $variant,)+ }

        impl Tree {
            /// All of them; the position is the discriminant.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name on disk.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

trees! {
    /// Head, instance, anchored revisions.
    Meta = "meta",
    /// company → company
    Companies = "companies",
    /// token hash → token
    Tokens = "tokens",
    /// session → session
    Sessions = "sessions",
    /// company, external id → session
    SessionKeys = "session_keys",
    /// due time, session → nothing
    Settling = "settling",
    /// session, version, part → facts and messages, packed
    Contents = "contents",
    /// session, version → analysis
    Analyses = "analyses",
    /// request → request
    Requests = "requests",
    /// request, part → body, packed
    Bodies = "bodies",
    /// request, part → result, packed
    Results = "results",
    /// status, request → nothing
    ByStatus = "by_status",
    /// company, status, request → nothing
    ByCompany = "by_company",
    /// group, priority, pending since, request → bytes and tokens
    Pending = "pending",
    /// not before, request → nothing
    Backoff = "backoff",
    /// group → what waits in it
    Groups = "groups",
    /// company, kind, key → request and content hash
    ClientKeys = "client_keys",
    /// batch → batch
    Batches = "batches",
    /// batch → nothing, while it is live
    LiveBatches = "live_batches",
    /// batch, request → what became of the member
    Members = "members",
    /// batch, request → provisional failure
    Outstanding = "outstanding",
    /// provider's batch id → batch
    ProviderBatches = "provider_batches",
    /// request, provider's batch id → what its line cost
    Bookings = "bookings",
    /// batch, number → a line of its story
    Story = "story",
    /// company, status → how many
    Counters = "counters",
    /// due time, file id → whose file of ours is to be deleted, and at which provider
    Deletions = "deletions",
    /// provider, model → room for tokens there
    Rooms = "rooms",
    /// due time, batch → tokens to give back to a room
    Releases = "releases",
    /// time, nonce → an intent: whose, and whether it was given up
    Intents = "intents",
    /// company, month → money
    Budgets = "budgets",
    /// request, number, part → an answer that did not fit, packed
    Misfits = "misfits",
    /// end, company, Idempotency-Key → nothing
    KeyEnds = "key_ends",
    /// company, session → nothing
    SessionsOf = "sessions_of",
    /// company, webhook → webhook
    Webhooks = "webhooks",
    /// webhook, delivery → delivery
    Deliveries = "deliveries",
    /// webhook, whether it waits or has ended, due or end time, delivery → nothing
    DeliveryOrder = "delivery_order",
    /// event → how many deliveries there are of it
    Events = "events",
    /// event, part → what is told, packed
    EventTexts = "event_texts",
    /// company, source → what is known of an export that is read again and again
    Sources = "sources",
    /// session → the fetching of its transcript
    Fetches = "fetches",
    /// company, host, source, whether it is new or was tried in vain, due time, session → nothing
    FetchesDue = "fetches_due",
    /// company or nothing, key → the hash of the token
    TokenIds = "token_ids",
    /// session, request → nothing
    SessionRequests = "session_requests",
    /// request → what is kept of one that was removed
    Gone = "gone",
    /// company, kind, print → the erasure of what may not come again
    Tombstones = "tombstones",
    /// erasure → erasure
    Erasures = "erasures",
    /// erasure → nothing, while it is not done; erasure, batch → nothing, while its files may be there
    Erasing = "erasing",
    /// batch → why it does not close
    Anomalies = "anomalies",
    /// batch, kind, word → how often
    Endings = "endings",
    /// company, session or zeros, batch → nothing: its files had what was removed for its age
    AgedBatches = "aged_batches",
    /// batch, shadow of it → nothing
    Shadows = "shadows",
    /// batch, company, session or zeros → nothing: the same as in `aged_batches`, found by the batch
    AgedOf = "aged_of",
}

/// Builds a key piece by piece.
#[derive(Debug, Default, Clone)]
pub struct Key(Vec<u8>);

impl Key {
    /// An empty key.
    pub fn new() -> Self {
        Self(Vec::with_capacity(64))
    }

    /// Fixed-length bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    /// Four bytes, big-endian.
    pub fn u32(self, number: u32) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    /// Text behind its length, so that no text is a prefix of another; cut at 65,535 bytes, far above every cap.
    pub fn text(self, text: &str) -> Self {
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        let bytes = text.as_bytes().get(..usize::from(length)).unwrap_or_default().to_vec();
        self.bytes(&length.to_be_bytes()).bytes(&bytes)
    }

    /// A time: eight bytes that sort like it, also before 1970.
    pub fn time(self, at: Timestamp) -> Self {
        let biased = u64::from_be_bytes(at.as_millis().to_be_bytes()) ^ (1 << 63);
        self.bytes(&biased.to_be_bytes())
    }

    /// A company.
    pub fn company(self, company: &CompanyId) -> Self {
        self.text(company.as_str())
    }

    /// A group.
    pub fn group(self, group: &Group) -> Self {
        self.company(&group.company).byte(endpoint_code(group.endpoint)).text(&group.model)
    }

    /// A status.
    pub fn status(self, status: RequestStatus) -> Self {
        self.byte(status_code(status))
    }

    /// A priority: higher ones sort first.
    pub fn priority(self, priority: i8) -> Self {
        self.byte((i16::from(i8::MAX) - i16::from(priority)).to_be_bytes()[1])
    }

    /// The finished bytes.
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

/// The byte that stands for a status on disk.
pub const fn status_code(status: RequestStatus) -> u8 {
    match status {
        RequestStatus::PendingBatching => 1,
        RequestStatus::BatchingInProgress => 2,
        RequestStatus::ProcessingComplete => 3,
        RequestStatus::ProcessingFailed => 4,
    }
}

const fn endpoint_code(endpoint: Endpoint) -> u8 {
    match endpoint {
        Endpoint::ChatCompletions => 1,
        Endpoint::Responses => 2,
        Endpoint::Embeddings => 3,
    }
}

/// The key of a company in `counters`; none stands for all of them together.
pub fn counter(company: Option<&CompanyId>, status: RequestStatus) -> Vec<u8> {
    let key = Key::new();
    match company {
        Some(company) => key.company(company),
        None => key.text(""),
    }
    .status(status)
    .done()
}

/// The key of a member in `members` and `outstanding`.
pub fn member(batch: BatchId, request: RequestId) -> Vec<u8> {
    Key::new().bytes(batch.as_bytes()).bytes(request.as_bytes()).done()
}

/// The key of a session in `sessions_of`.
pub fn session_of(company: &CompanyId, session: SessionId) -> Vec<u8> {
    Key::new().company(company).bytes(session.as_bytes()).done()
}

/// The key of one part of a long value.
pub fn part(prefix: &[u8], part: u32) -> Vec<u8> {
    Key::new().bytes(prefix).u32(part).done()
}

/// The key of a session's content.
pub fn content(session: SessionId, version: u32) -> Vec<u8> {
    Key::new().bytes(session.as_bytes()).u32(version).done()
}

/// The key of a request in `session_requests`.
pub fn session_request(session: SessionId, request: RequestId) -> Vec<u8> {
    Key::new().bytes(session.as_bytes()).bytes(request.as_bytes()).done()
}

/// The request id at the end of a key.
pub fn request_at_end(key: &[u8]) -> Option<RequestId> {
    Some(RequestId::from_bytes(*key.last_chunk::<16>()?))
}

/// The batch id at the start of a key.
pub fn batch_at_start(key: &[u8]) -> Option<BatchId> {
    Some(BatchId::from_bytes(*key.first_chunk::<16>()?))
}

/// A batch, and one that surfaced for a create call of it that was given up.
pub fn shadow(of: BatchId, id: BatchId) -> Vec<u8> {
    Key::new().bytes(of.as_bytes()).bytes(id.as_bytes()).done()
}

/// The batch id at the end of a key.
pub fn batch_at_end(key: &[u8]) -> Option<BatchId> {
    Some(BatchId::from_bytes(*key.last_chunk::<16>()?))
}

/// The session id at the end of a key.
pub fn session_at_end(key: &[u8]) -> Option<SessionId> {
    Some(SessionId::from_bytes(*key.last_chunk::<16>()?))
}

/// The text at the start of a key, and what follows it.
pub fn text_at_start(key: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = key.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (text, rest) = rest.split_at_checked(length)?;
    Some((String::from_utf8_lossy(text).into_owned(), rest))
}

/// The time at the start of a key.
pub fn time_at_start(key: &[u8]) -> Option<Timestamp> {
    let biased = u64::from_be_bytes(*key.first_chunk::<8>()?);
    Some(Timestamp::from_millis(i64::from_be_bytes((biased ^ (1 << 63)).to_be_bytes())))
}

/// The first key after all that begin with `prefix`; none where that is the end of the tree.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tree_names_differ_and_sit_at_their_discriminant() {
        let mut names: Vec<_> = Tree::ALL.iter().map(|tree| tree.name()).collect();
        for (position, tree) in Tree::ALL.iter().enumerate() {
            assert_eq!(usize::from(*tree as u8), position);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Tree::ALL.len());
    }

    proptest! {
        #[test]
        fn times_sort_like_their_keys(a: i64, b: i64) {
            let key = |ms| Key::new().time(Timestamp::from_millis(ms)).done();
            prop_assert_eq!(a.cmp(&b), key(a).cmp(&key(b)));
            prop_assert_eq!(time_at_start(&key(a)), Some(Timestamp::from_millis(a)));
        }

        #[test]
        fn higher_priorities_sort_first(a: i8, b: i8) {
            let key = |p| Key::new().priority(p).done();
            prop_assert_eq!(b.cmp(&a), key(a).cmp(&key(b)));
        }

        #[test]
        fn what_has_a_prefix_lies_before_its_end(prefix in prop::collection::vec(any::<u8>(), 1..6), rest: Vec<u8>) {
            let mut key = prefix.clone();
            key.extend(rest);
            if let Some(end) = after_prefix(&prefix) {
                prop_assert!(key < end);
            }
        }
    }
}
