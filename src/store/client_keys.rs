//! The client's words for what it sends, by which a repeat is recognised.
//!
//! An `id` is known as long as its request; an `Idempotency-Key` for a day, each line of its call by itself. Calls that
//! bring requests and calls that bring sessions have keys of their own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::{self, Key, Tree};
use super::tx::Tx;
use super::{Store, StoreError, codec};
use crate::domain::id::{CompanyId, RequestId, Timestamp};

/// The client's word for a request, by which a repeat is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientKey {
    /// The `id` in the line.
    Id(String),
    /// Its line of the call, for a line without an id.
    Line(CallLine),
}

/// A line of a call that has an `Idempotency-Key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallLine {
    /// The header's value.
    pub idempotency_key: String,
    /// The line, from 1.
    pub line: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct KnownKey {
    pub request: RequestId,
    pub content_hash: [u8; 32],
    /// When it was used.
    at: Timestamp,
}

/// A session that a line brought.
#[derive(Serialize, Deserialize)]
struct KnownLine {
    content_hash: [u8; 32],
    /// When it came.
    at: Timestamp,
}

/// What became of a line of sessions before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// It did not come within its key's day.
    Never,
    /// It came just so.
    Same,
    /// It was another one.
    Other,
}

/// What stands before the key of a call that brings sessions. No header has a line end.
const SESSIONS: &str = "sessions\n";

/// Kinds of keys, as they stand behind the company.
const ID: u8 = 1;
const LINE: u8 = 2;
const FIRST_USE: u8 = 3;
const SESSION_LINE: u8 = 4;

/// An `Idempotency-Key` is known so long after its first use.
const KEY_KEPT: Duration = Duration::from_secs(24 * 3600);

impl Store {
    /// Forgets `Idempotency-Key`s whose day is over, a chunk at a time; says how much.
    pub async fn forget_keys(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.committer
            .commit(250, move |tx| {
                let forgotten = forget_key(tx, now)?;
                if forgotten > 0 {
                    crash_point!("keys.before_commit");
                }
                Ok(forgotten)
            })
            .await
    }
}

/// A key of a request that came in.
pub(super) struct Used {
    place: Vec<u8>,
    at: Timestamp,
    /// What it was used for before.
    pub known: Option<KnownKey>,
}

/// Looks a key up.
pub(super) fn look_up(
    tx: &mut Tx<'_>,
    company: &CompanyId,
    key: &ClientKey,
    now: Timestamp,
) -> Result<Used, StoreError> {
    let place = client_key(company, key);
    let since = match key {
        ClientKey::Line(CallLine { idempotency_key, .. }) => {
            Some(first_use(tx, company, idempotency_key, now)?)
        }
        ClientKey::Id(_) => None,
    };
    let known = tx.read::<KnownKey>(Tree::ClientKeys, &place)?;
    let known = known.filter(|known| since.is_none_or(|since| known.at >= since));
    // A clock that was set back a little must not make a line older than its key.
    Ok(Used { place, at: since.map_or(now, |since| since.max(now)), known })
}

impl Used {
    /// Uses it for a request.
    pub(super) fn note(
        self,
        tx: &mut Tx<'_>,
        request: RequestId,
        content_hash: [u8; 32],
    ) -> Result<(), StoreError> {
        tx.write(Tree::ClientKeys, self.place, &KnownKey { request, content_hash, at: self.at })
    }
}

/// Notes that a line brings a session, unless it did before.
pub(super) fn use_for_session(
    tx: &mut Tx<'_>,
    company: &CompanyId,
    line: &CallLine,
    content_hash: [u8; 32],
    now: Timestamp,
) -> Result<Before, StoreError> {
    let key = format!("{SESSIONS}{}", line.idempotency_key);
    let place =
        Key::new().company(company).byte(SESSION_LINE).text(&key).bytes(&line.line.to_be_bytes()).done();
    let since = first_use(tx, company, &key, now)?;
    match tx.read::<KnownLine>(Tree::ClientKeys, &place)? {
        Some(known) if known.at >= since && known.content_hash == content_hash => Ok(Before::Same),
        Some(known) if known.at >= since => Ok(Before::Other),
        Some(_) | None => {
            tx.write(Tree::ClientKeys, place, &KnownLine { content_hash, at: since.max(now) })?;
            Ok(Before::Never)
        }
    }
}

/// Since when an `Idempotency-Key` is in use: since now, where it was not within the last day.
fn first_use(
    tx: &mut Tx<'_>,
    company: &CompanyId,
    key: &str,
    now: Timestamp,
) -> Result<Timestamp, StoreError> {
    let place = Key::new().company(company).byte(FIRST_USE).text(key).done();
    match tx.read::<Timestamp>(Tree::ClientKeys, &place)? {
        Some(first) if now.since(first) < KEY_KEPT => Ok(first),
        Some(_) | None => {
            tx.write(Tree::ClientKeys, place, &now)?;
            tx.put(Tree::KeyEnds, key_end(company.as_str(), key, now), Vec::new());
            Ok(now)
        }
    }
}

/// Where it is listed when an `Idempotency-Key` that was first used then is forgotten.
fn key_end(company: &str, key: &str, first: Timestamp) -> Vec<u8> {
    Key::new().time(first.plus(KEY_KEPT)).text(company).text(key).done()
}

/// Forgets at most `limit` keys of clients, and of what they stood for, of an erased company; says how many. Also of
/// all companies what is over: those ends lie at times that nobody knows any more.
pub(super) fn forget_keys_of(
    tx: &mut Tx<'_>,
    company: &CompanyId,
    limit: usize,
    now: Timestamp,
) -> Result<usize, StoreError> {
    let over = forget_key(tx, now.plus(Duration::from_millis(1)))?;
    if over > 0 {
        return Ok(over);
    }
    let keys = tx.scan_prefix(Tree::ClientKeys, &Key::new().company(company).done(), limit)?;
    for (place, value) in &keys {
        if let Some((_, [FIRST_USE, key @ ..])) = keys::text_at_start(place)
            && let Some((key, _)) = keys::text_at_start(key)
        {
            let first: Timestamp = codec::decode(value)?;
            tx.remove(Tree::KeyEnds, key_end(company.as_str(), &key, first));
        }
        tx.remove(Tree::ClientKeys, place.clone());
    }
    Ok(keys.len())
}

/// Forgets what an `Idempotency-Key` stood for whose day is over, at most a chunk of it; says how much.
fn forget_key(tx: &mut Tx<'_>, now: Timestamp) -> Result<usize, StoreError> {
    /// Lines of a key that is in use again are passed over, so many of them at once.
    const PAGES_MAX: usize = 8;
    let until = Key::new().time(now).done();
    let Some((ended, _)) = tx.scan(Tree::KeyEnds, &[], Some(&until), 1)?.pop() else { return Ok(0) };
    let bad = || StoreError::Codec("a key's end is too short".to_owned());
    let end = keys::time_at_start(&ended).ok_or_else(bad)?;
    let rest = ended.get(8..).ok_or_else(bad)?;
    let (company, rest) = keys::text_at_start(rest).ok_or_else(bad)?;
    let (key, _) = keys::text_at_start(rest).ok_or_else(bad)?;
    let of_sessions = key.starts_with(SESSIONS);
    let kind = if of_sessions { SESSION_LINE } else { LINE };
    let prefix = Key::new().text(&company).byte(kind).text(&key).done();
    let (mut from, mut removed) = (prefix.clone(), 0);
    let prefix_end = keys::after_prefix(&prefix);
    for _ in 0..PAGES_MAX {
        let page = tx.scan(Tree::ClientKeys, &from, prefix_end.as_deref(), 250)?;
        let last_page = page.len() < 250;
        for (line, value) in page {
            from = [line.as_slice(), &[0]].concat();
            let at = match of_sessions {
                true => codec::decode::<KnownLine>(&value)?.at,
                false => codec::decode::<KnownKey>(&value)?.at,
            };
            if at < end {
                tx.remove(Tree::ClientKeys, line);
                removed += 1;
            }
        }
        if removed >= 250 && !last_page {
            return Ok(removed);
        }
        if last_page {
            break;
        }
    }
    let first = Key::new().text(&company).byte(FIRST_USE).text(&key).done();
    if tx.read::<Timestamp>(Tree::ClientKeys, &first)?.is_some_and(|first| first.plus(KEY_KEPT) <= end) {
        tx.remove(Tree::ClientKeys, first);
    }
    tx.remove(Tree::KeyEnds, ended);
    Ok(removed + 1)
}

/// Which request an entry of `client_keys` stands for; none where it says since when a key is in use.
pub(super) fn named_by(key: &[u8], value: &[u8]) -> Result<Option<RequestId>, StoreError> {
    let kind = keys::text_at_start(key).and_then(|(_, rest)| rest.first().copied());
    match kind {
        Some(FIRST_USE) => codec::decode::<Timestamp>(value).map(|_| None),
        Some(SESSION_LINE) => codec::decode::<KnownLine>(value).map(|_| None),
        Some(_) | None => codec::decode::<KnownKey>(value).map(|known| Some(known.request)),
    }
}

pub(super) fn client_key(company: &CompanyId, key: &ClientKey) -> Vec<u8> {
    let start = Key::new().company(company);
    match key {
        ClientKey::Id(id) => start.byte(ID).text(id).done(),
        ClientKey::Line(CallLine { idempotency_key, line }) => {
            start.byte(LINE).text(idempotency_key).bytes(&line.to_be_bytes()).done()
        }
    }
}
