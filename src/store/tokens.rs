//! Access tokens: known by their hash only, each with an id by which people name it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::{Key, Tree};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, codec, erasing};
use crate::domain::id::{CompanyId, KeyId, Timestamp};

/// Tokens that may be good at a time, for one company and for those of no company.
const LIVE_MAX: usize = 100;
/// Tokens that are kept although they are over, so that it can be seen who had one; the oldest go first.
const ENDED_MAX: usize = 100;
/// When a token was used last is known to the day: that is enough to find those that nobody uses.
const DAY: i64 = 24 * 3600 * 1000;

/// What a token may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Everything, for all companies.
    Admin,
    /// Reads everything, for all companies.
    Viewer,
    /// Ingest and own results of one company.
    Company(CompanyId),
}

impl Role {
    /// `admin`, `viewer` or `company`.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Viewer => "viewer",
            Self::Company(_) => "company",
        }
    }

    /// The company that it is for.
    pub const fn company(&self) -> Option<&CompanyId> {
        match self {
            Self::Admin | Self::Viewer => None,
            Self::Company(company) => Some(company),
        }
    }
}

/// A token as stored: never the token itself, only its SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredToken {
    /// What people name it by.
    pub id: KeyId,
    /// SHA-256 of the token's text.
    pub hash: [u8; 32],
    /// What it may do.
    pub role: Role,
    /// What people call it.
    pub label: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends, or ended: it was revoked, or replaced by another one.
    pub ends_at: Option<Timestamp>,
    /// The day of its last use.
    pub used_at: Option<Timestamp>,
    /// Whether it was ended at once: then no clock that goes back makes it good again.
    pub revoked: bool,
}

impl StoredToken {
    /// A token that was never used.
    pub const fn new(id: KeyId, hash: [u8; 32], role: Role, label: String, created_at: Timestamp) -> Self {
        Self { id, hash, role, label, created_at, ends_at: None, used_at: None, revoked: false }
    }

    /// Whether it is good.
    pub fn is_live(&self, now: Timestamp) -> bool {
        !self.revoked && self.ends_at.is_none_or(|at| now < at)
    }

    /// Whether its use on this day is not noted yet.
    pub fn is_news(&self, now: Timestamp) -> bool {
        self.used_at != Some(day(now))
    }
}

fn day(at: Timestamp) -> Timestamp {
    Timestamp::from_millis(at.as_millis() - at.as_millis().rem_euclid(DAY))
}

/// Why nothing was done with a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There are too many.
    #[error("there are {LIVE_MAX} keys already; revoke those that nobody uses")]
    TooMany,
    /// There is none of this id there.
    #[error("there is no such key")]
    Unknown,
    /// It has ended.
    #[error("this key has ended; make a new one")]
    Ended,
    /// Without it nobody could do anything any more.
    #[error("this is the last key of an admin; make another one first")]
    Last,
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Stores a token; with `only`, all others of its role go.
    pub async fn put_token(&self, token: StoredToken, only: bool) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                if only {
                    for old in of(tx, token.role.company())?.into_iter().filter(|old| old.role == token.role)
                    {
                        forget(tx, &old);
                    }
                }
                save(tx, &token)
            })
            .await
    }

    /// Makes room for a new token and stores it.
    pub async fn create_token(&self, token: StoredToken, now: Timestamp) -> Result<(), TokenError> {
        self.committer
            .commit(1, move |tx| {
                if let Some(company) = token.role.company()
                    && erasing::is_erased(tx, company)?
                {
                    // Whoever asked looked before that: the key would outlive what it is for.
                    let id = company.to_string();
                    return Err(StoreError::NotFound { what: "company", id });
                }
                if !make_room(tx, token.role.company(), None, now)? {
                    return Ok(Err(TokenError::TooMany));
                }
                save(tx, &token).map(Ok)
            })
            .await?
    }

    /// Stores a token in place of another one, which ends after `overlap`. The new one has its role and its label.
    pub async fn rotate_token(
        &self,
        scope: Option<CompanyId>,
        old: KeyId,
        new: (KeyId, [u8; 32]),
        overlap: Duration,
        now: Timestamp,
    ) -> Result<StoredToken, TokenError> {
        self.committer
            .commit(1, move |tx| {
                let Some(mut old) = by_id(tx, scope.as_ref(), old)? else {
                    return Ok(Err(TokenError::Unknown));
                };
                if !old.is_live(now) {
                    return Ok(Err(TokenError::Ended));
                }
                // One that ends at once makes the room that the new one takes.
                let goes = overlap.is_zero().then_some(old.id);
                if !make_room(tx, scope.as_ref(), goes, now)? {
                    return Ok(Err(TokenError::TooMany));
                }
                let end = now.plus(overlap);
                old.ends_at = Some(old.ends_at.map_or(end, |at| at.min(end)));
                old.revoked = overlap.is_zero();
                save(tx, &old)?;
                let token = StoredToken::new(new.0, new.1, old.role, old.label, now);
                save(tx, &token)?;
                Ok(Ok(token))
            })
            .await?
    }

    /// Ends a token at once. `another` says whether an admin can come in without any.
    pub async fn revoke_token(
        &self,
        scope: Option<CompanyId>,
        id: KeyId,
        another: bool,
        now: Timestamp,
    ) -> Result<StoredToken, TokenError> {
        self.committer
            .commit(1, move |tx| {
                let Some(mut token) = by_id(tx, scope.as_ref(), id)? else {
                    return Ok(Err(TokenError::Unknown));
                };
                if !token.is_live(now) {
                    return Ok(Ok(token));
                }
                // One that ends some time soon is no other one.
                let lasts = |other: &StoredToken| other.role == Role::Admin && other.ends_at.is_none();
                if token.role == Role::Admin
                    && !another
                    && !of(tx, None)?.iter().any(|other| other.id != id && lasts(other))
                {
                    return Ok(Err(TokenError::Last));
                }
                (token.ends_at, token.revoked) = (Some(now), true);
                save(tx, &token)?;
                Ok(Ok(token))
            })
            .await?
    }

    /// Notes the day on which a token was used.
    pub async fn note_token_used(&self, hash: [u8; 32], now: Timestamp) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| match tx.read::<StoredToken>(Tree::Tokens, &hash)? {
                Some(token) if token.is_news(now) => {
                    save(tx, &StoredToken { used_at: Some(day(now)), ..token })
                }
                Some(_) | None => Ok(()),
            })
            .await
    }
}

/// Where the ids of a company's tokens lie, or of those of no company.
fn scope(company: Option<&CompanyId>) -> Key {
    match company {
        Some(company) => Key::new().company(company),
        None => Key::new().text(""),
    }
}

/// The key of a token in `token_ids`.
pub(super) fn id_key(token: &StoredToken) -> Vec<u8> {
    scope(token.role.company()).bytes(token.id.as_bytes()).done()
}

fn save(tx: &mut Tx<'_>, token: &StoredToken) -> Result<(), StoreError> {
    tx.put(Tree::TokenIds, id_key(token), token.hash.to_vec());
    tx.write(Tree::Tokens, token.hash.to_vec(), token)
}

pub(super) fn forget(tx: &mut Tx<'_>, token: &StoredToken) {
    tx.remove(Tree::TokenIds, id_key(token));
    tx.remove(Tree::Tokens, token.hash.to_vec());
}

pub(super) fn of(tx: &Tx<'_>, company: Option<&CompanyId>) -> Result<Vec<StoredToken>, StoreError> {
    let entries = tx.scan_prefix(Tree::TokenIds, &scope(company).done(), usize::MAX)?;
    entries.into_iter().filter_map(|(_, hash)| tx.read(Tree::Tokens, &hash).transpose()).collect()
}

fn by_id(tx: &Tx<'_>, company: Option<&CompanyId>, id: KeyId) -> Result<Option<StoredToken>, StoreError> {
    match tx.get(Tree::TokenIds, &scope(company).bytes(id.as_bytes()).done())? {
        Some(hash) => tx.read(Tree::Tokens, &hash),
        None => Ok(None),
    }
}

/// Forgets the oldest of too many that have ended; says no where too many are good besides the one that `goes`.
fn make_room(
    tx: &mut Tx<'_>,
    company: Option<&CompanyId>,
    goes: Option<KeyId>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let (live, mut ended): (Vec<_>, Vec<_>) =
        of(tx, company)?.into_iter().partition(|token| token.is_live(now));
    ended.sort_by_key(|token| token.ends_at);
    let too_many = (ended.len() + 1).saturating_sub(ENDED_MAX);
    ended.iter().take(too_many).for_each(|token| forget(tx, token));
    Ok(live.iter().filter(|token| Some(token.id) != goes).count() < LIVE_MAX)
}

impl StoreReader {
    /// The token with this hash.
    pub fn token(&self, hash: &[u8; 32]) -> Result<Option<StoredToken>, StoreError> {
        self.read(Tree::Tokens, hash)
    }

    /// All tokens of a company, or those of no company, oldest first; at most some hundred.
    pub fn tokens(&self, company: Option<&CompanyId>) -> Result<Vec<StoredToken>, StoreError> {
        let prefix = scope(company).done();
        let end = super::keys::after_prefix(&prefix);
        let entries = self.engine.scan(Tree::TokenIds, &prefix, end.as_deref(), usize::MAX)?;
        let read = |hash: Vec<u8>| self.engine.get(Tree::Tokens, &hash).transpose();
        entries.into_iter().filter_map(|(_, hash)| read(hash)).map(|value| codec::decode(&value?)).collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::company::Company;
    use crate::domain::id::ErasureId;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    #[tokio::test]
    async fn a_key_that_was_ended_at_once_stays_so_where_the_clock_goes_back() {
        let store = Store::in_memory(Uuid::nil()).await.unwrap();
        for (number, rotated) in [(1, false), (2, true)] {
            let (id, hash) = (KeyId::from_bytes([number; 16]), [number; 32]);
            let token = StoredToken::new(id, hash, Role::Viewer, String::new(), NOW);
            store.create_token(token, NOW).await.unwrap();
            if rotated {
                let new = (KeyId::from_bytes([9; 16]), [9; 32]);
                store.rotate_token(None, id, new, Duration::ZERO, NOW).await.unwrap();
            } else {
                store.revoke_token(None, id, true, NOW).await.unwrap();
            }
            let ended = store.reader().token(&hash).unwrap().unwrap();
            assert!(!ended.is_live(NOW.minus(Duration::from_secs(3600))), "{ended:?}");
        }
        let new = store.reader().token(&[9; 32]).unwrap().unwrap();
        assert!(new.is_live(NOW), "{new:?}");
    }

    #[tokio::test]
    async fn where_no_more_keys_may_be_one_can_be_replaced_at_once_and_not_with_an_overlap() {
        let store = Store::in_memory(Uuid::nil()).await.unwrap();
        let key = |number: u8| KeyId::from_bytes([number; 16]);
        let token =
            |number: u8| StoredToken::new(key(number), [number; 32], Role::Viewer, String::new(), NOW);
        for number in 1..=100 {
            store.create_token(token(number), NOW).await.unwrap();
        }
        assert_eq!(store.create_token(token(101), NOW).await, Err(TokenError::TooMany));
        let rotate = async |old: u8, new: u8, overlap: Duration| {
            store
                .rotate_token(None, key(old), (key(new), [new; 32]), overlap, NOW)
                .await
                .map(|token| token.id)
        };
        assert_eq!(rotate(1, 101, Duration::from_secs(1)).await, Err(TokenError::TooMany));
        assert_eq!(rotate(1, 101, Duration::ZERO).await, Ok(key(101)));
        assert_eq!(rotate(101, 102, Duration::ZERO).await, Ok(key(102)));
        let live = store.reader().tokens(None).unwrap().into_iter().filter(|token| token.is_live(NOW));
        assert_eq!(live.count(), 100);
        assert_eq!(store.create_token(token(103), NOW).await, Err(TokenError::TooMany));
    }

    #[tokio::test]
    async fn a_company_that_is_being_erased_has_no_new_key() {
        let store = Store::in_memory(Uuid::nil()).await.unwrap();
        let company = |id: &str| Company {
            id: id.parse().unwrap(),
            name: id.to_owned(),
            model: "gpt-4o-mini".to_owned(),
            suspended: false,
            budget_micros: None,
            retention: Default::default(),
        };
        store.put_companies(vec![company("goes"), company("stays")]).await.unwrap();
        let goes = company("goes").id;
        let (erasure, by) = (ErasureId::from_bytes([1; 16]), "a test".to_owned());
        store.erase_company(goes.clone(), erasure, by, NOW).await.unwrap().unwrap();
        let create = async |id: &str, number: u8| {
            let (key, role) = (KeyId::from_bytes([number; 16]), Role::Company(id.parse().unwrap()));
            let token = StoredToken::new(key, [number; 32], role, String::new(), NOW);
            store.create_token(token, NOW).await
        };
        let refused = TokenError::Store(StoreError::NotFound { what: "company", id: "goes".to_owned() });
        assert_eq!(create("goes", 1).await, Err(refused));
        assert_eq!(store.reader().tokens(Some(&goes)).unwrap(), []);
        create("stays", 2).await.unwrap();
        // Begun anew it is like any other.
        while !store.erase_chunk(erasure, NOW).await.unwrap().gone {}
        store.note_records_erased(erasure).await.unwrap();
        store.finish_erasures(vec![erasure], NOW).await.unwrap();
        assert!(store.create_company(company("goes")).await.unwrap());
        create("goes", 3).await.unwrap();
    }
}
