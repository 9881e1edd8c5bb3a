//! Who calls: bearer tokens, known by their hash only, compared in constant time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use warp::http::StatusCode;
use warp::http::header::{AUTHORIZATION, HeaderMap};

use super::reply::ApiError;
use crate::config::Secret;
use crate::domain::id::Timestamp;
use crate::store::{Role, StoreError, StoreReader};

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

/// Knows the tokens.
pub struct Auth {
    tokens: Vec<([u8; 32], Role)>,
    failures: Mutex<HashMap<IpAddr, (u32, Timestamp)>>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth")
    }
}

impl Auth {
    /// The stored tokens and the one of the environment, which is an admin's.
    pub fn load(reader: &StoreReader, admin_token: Option<&Secret>) -> Result<Self, StoreError> {
        let mut tokens: Vec<_> = reader.tokens()?.into_iter().map(|token| (token.hash, token.role)).collect();
        tokens.extend(admin_token.map(|token| (hash(token.expose()), Role::Admin)));
        Ok(Self { tokens, failures: Mutex::new(HashMap::new()) })
    }

    /// The caller's role, or 401; and 429 for an address that has guessed too often.
    pub fn role(&self, headers: &HeaderMap, peer: Option<IpAddr>, now: Timestamp) -> Result<Role, ApiError> {
        let token = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let Some(token) = token else {
            let detail = "send an `Authorization: Bearer` header with a token";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail));
        };
        let presented = hash(token);
        let mut role = None;
        // Every token is looked at, so that the time tells nothing about which ones exist.
        for (known, its_role) in &self.tokens {
            if bool::from(known.ct_eq(&presented)) {
                role = Some(its_role.clone());
            }
        }
        role.ok_or_else(|| self.failed(peer, now))
    }

    fn failed(&self, peer: Option<IpAddr>, now: Timestamp) -> ApiError {
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
