//! Who calls: bearer tokens, known by their hash only, compared in constant time.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use warp::http::StatusCode;
use warp::http::header::{AUTHORIZATION, HeaderMap};

use super::reply::ApiError;
use crate::config::Secret;
use crate::domain::id::{KeyId, Timestamp};
use crate::store::{Role, Store, StoreError, StoreReader};

/// Wrong tokens from one address within [`WINDOW`] before it is told to wait.
const FAILURES_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered; the map never grows beyond.
const ADDRESSES_MAX: usize = 10_000;

/// A new token: `ns_` and 32 random bytes in base64url, too many to be guessed or to need a slow hash.
pub fn new_token() -> Result<String, getrandom::Error> {
    let mut random = [0; 32];
    getrandom::fill(&mut random)?;
    Ok(format!("ns_{}", URL_SAFE_NO_PAD.encode(random)))
}

/// What is stored of a token.
pub fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The hash of the token that a call brings; none where it brings none.
pub fn presented(headers: &HeaderMap) -> Option<[u8; 32]> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok())?;
    let (_, token) = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))?;
    Some(hash(token.trim()))
}

/// Whose guesses count together: an address, and of IPv6 a network of 64 bits, which is what one subscriber has.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// What it may do.
    pub role: Role,
    /// The id of its key; none for the token of the environment.
    pub key: Option<KeyId>,
}

impl fmt::Display for Caller {
    /// As records name who ordered something: for good, and also once the key is gone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key {
            Some(id) => write!(f, "key {id}"),
            None => f.write_str("NIGHTSHIFT_ADMIN_TOKEN"),
        }
    }
}

/// Knows the tokens: each call is looked up in the store, so that one that is revoked ends with the next call.
pub struct Auth {
    store: Store,
    reader: StoreReader,
    /// The one of the environment, which is an admin's.
    admin: Option<[u8; 32]>,
    failures: Mutex<HashMap<IpAddr, (u32, Timestamp)>>,
    /// Whose use is being noted.
    noting: Mutex<HashSet<[u8; 32]>>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth")
    }
}

impl Auth {
    /// The stored tokens and the one of the environment.
    pub fn new(store: Store, admin_token: Option<&Secret>) -> Self {
        Self {
            reader: store.reader(),
            store,
            admin: admin_token.map(|token| hash(token.expose())),
            failures: Mutex::default(),
            noting: Mutex::default(),
        }
    }

    /// Whether an admin comes in without any stored token.
    pub const fn has_own_admin(&self) -> bool {
        self.admin.is_some()
    }

    /// The caller, or 401; and 429 for an address that has guessed too often. `may_write` says whether the
    /// store takes anything just now.
    pub fn caller(
        self: &Arc<Self>,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
        now: Timestamp,
        may_write: bool,
    ) -> Result<Caller, ApiError> {
        let Some(presented) = presented(headers) else {
            let detail = "send an `Authorization: Bearer` header with a token";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail));
        };
        // How far a lookup gets tells of a hash, and no hash tells of its token; what is found is compared whole.
        let same = |known: &[u8; 32]| bool::from(known.ct_eq(&presented));
        let stored = self.reader.token(&presented)?.filter(|token| same(&token.hash) && token.is_live(now));
        if self.admin.as_ref().is_some_and(same) {
            return Ok(Caller { role: Role::Admin, key: None });
        }
        let Some(stored) = stored else { return Err(self.failed(peer, now)) };
        if may_write && stored.is_news(now) {
            self.note_use(presented, now);
        }
        Ok(Caller { role: stored.role, key: Some(stored.id) })
    }

    /// Whether the token of a call that was let in is good still: a stream goes on for long after that.
    pub fn still_knows(&self, presented: &[u8; 32], now: Timestamp) -> Result<bool, StoreError> {
        let same = |known: &[u8; 32]| bool::from(known.ct_eq(presented));
        let stored = self.reader.token(presented)?;
        let is_live = stored.is_some_and(|token| same(&token.hash) && token.is_live(now));
        Ok(is_live || self.admin.as_ref().is_some_and(same))
    }

    /// Notes the day of a token's use beside the call: that it could not be noted is nobody's trouble.
    fn note_use(self: &Arc<Self>, hash: [u8; 32], now: Timestamp) {
        let noting = |auth: &Self| auth.noting.lock().unwrap_or_else(PoisonError::into_inner).insert(hash);
        if !noting(self) {
            return;
        }
        let auth = self.clone();
        tokio::spawn(async move {
            crash_point!("key.used.before_commit");
            let noted = auth.store.note_token_used(hash, now).await;
            crash_point!("key.used.after_commit");
            if let Err(err) = noted {
                tracing::warn!(error = %err, "the use of a key was not noted");
            }
            auth.noting.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash);
        });
    }

    fn failed(&self, peer: Option<IpAddr>, now: Timestamp) -> ApiError {
        let peer = peer.map(network);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= ADDRESSES_MAX {
            failures.retain(|_, (_, since)| now.since(*since) < WINDOW);
        }
        if let Some(peer) = peer.filter(|peer| failures.len() < ADDRESSES_MAX || failures.contains_key(peer))
        {
            let (count, since) = failures.entry(peer).or_insert((0, now));
            if now.since(*since) >= WINDOW {
                (*count, *since) = (0, now);
            }
            *count += 1;
            if *count > FAILURES_MAX {
                let left = WINDOW.saturating_sub(now.since(*since)).as_secs().max(1);
                tracing::warn!(peer = %peer, "too many wrong tokens from one address");
                return ApiError {
                    retry_after: Some(left),
                    ..ApiError::new(
                        StatusCode::TOO_MANY_REQUESTS,
                        "too_many_failures",
                        "too many wrong tokens from this address; wait and try again",
                    )
                };
            }
        }
        ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", "this token is not known")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_from_one_network_count_together() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::9"));
        assert_ne!(of("2001:db8:1:2::9"), of("2001:db8:1:3::9"));
        assert_eq!(of("::ffff:203.0.113.7"), of("203.0.113.7"));
        assert_ne!(of("203.0.113.7"), of("203.0.113.8"));
    }
}
