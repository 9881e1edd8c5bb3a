//! Companies and tokens.

use serde::{Deserialize, Serialize};

use super::keys::{Key, Tree};
use super::{Store, StoreError, StoreReader};
use crate::domain::company::Company;
use crate::domain::id::{CompanyId, Timestamp};

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
}

/// A token as stored: never the token itself, only its SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredToken {
    /// SHA-256 of the token's text.
    pub hash: [u8; 32],
    /// What it may do.
    pub role: Role,
    /// What people call it.
    pub label: String,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Store {
    /// Adds or updates companies; removes none.
    pub async fn put_companies(&self, companies: Vec<Company>) -> Result<(), StoreError> {
        self.committer
            .commit(companies.len(), move |tx| {
                for mut company in companies {
                    let key = Key::new().company(&company.id).done();
                    if company.budget_micros.is_none() {
                        // Where nothing is said of it, what was set through the API stays.
                        let known: Option<Company> = tx.read(Tree::Companies, &key)?;
                        company.budget_micros = known.and_then(|known| known.budget_micros);
                    }
                    tx.write(Tree::Companies, key, &company)?;
                }
                Ok(())
            })
            .await
    }

    /// Stores a token; with `only`, all others of its role go.
    pub async fn put_token(&self, token: StoredToken, only: bool) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                if only {
                    for (key, value) in tx.scan_prefix(Tree::Tokens, &[], usize::MAX)? {
                        let stored: StoredToken = super::codec::decode(&value)?;
                        if stored.role == token.role {
                            tx.remove(Tree::Tokens, key);
                        }
                    }
                }
                tx.write(Tree::Tokens, token.hash.to_vec(), &token)
            })
            .await
    }
}

impl StoreReader {
    /// One company.
    pub fn company(&self, id: &CompanyId) -> Result<Option<Company>, StoreError> {
        self.read(Tree::Companies, &Key::new().company(id).done())
    }

    /// All companies, by id.
    pub fn companies(&self) -> Result<Vec<Company>, StoreError> {
        let entries = self.engine.scan(Tree::Companies, &[], None, usize::MAX)?;
        entries.into_iter().map(|(_, value)| super::codec::decode(&value)).collect()
    }

    /// All tokens.
    pub fn tokens(&self) -> Result<Vec<StoredToken>, StoreError> {
        let entries = self.engine.scan(Tree::Tokens, &[], None, usize::MAX)?;
        entries.into_iter().map(|(_, value)| super::codec::decode(&value)).collect()
    }
}
