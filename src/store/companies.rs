//! Companies.

use super::keys::{Key, Tree};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, erasing};
use crate::domain::company::{Company, CompanyChange, ConfiguredCompany};
use crate::domain::id::CompanyId;

impl Store {
    /// Adds or updates companies; removes none.
    pub async fn put_companies(&self, companies: Vec<Company>) -> Result<(), StoreError> {
        self.committer
            .commit(companies.len(), move |tx| companies.iter().try_for_each(|company| save(tx, company)))
            .await
    }

    /// Adds the companies of the configuration, or makes them what it says of them. What it leaves open stays as it
    /// was changed here, and none is removed.
    pub async fn configure_companies(&self, companies: Vec<ConfiguredCompany>) -> Result<(), StoreError> {
        self.committer
            .commit(companies.len(), move |tx| {
                for ConfiguredCompany { new, says } in companies {
                    if erasing::is_erased(tx, &new.id)? {
                        // The file still names it; to begin anew with it is for somebody to say.
                        tracing::warn!(company.id = %new.id, "company {} was erased and is not made again", new.id);
                        continue;
                    }
                    let company = match load(tx, &new.id)? {
                        Some(known) => says.made_to(known),
                        None => new,
                    };
                    save(tx, &company)?;
                }
                Ok(())
            })
            .await
    }

    /// Adds a company; says no where there is one with this id, or one whose erasure is not done. One that was erased
    /// begins anew.
    pub async fn create_company(&self, company: Company) -> Result<bool, StoreError> {
        self.committer
            .commit(1, move |tx| {
                let is_new = load(tx, &company.id)?.is_none() && erasing::may_begin_anew(tx, &company.id)?;
                if is_new {
                    save(tx, &company)?;
                }
                Ok(is_new)
            })
            .await
    }

    /// Changes a company; none where there is no such one.
    pub async fn change_company(
        &self,
        id: CompanyId,
        change: CompanyChange,
    ) -> Result<Option<Company>, StoreError> {
        self.committer
            .commit(1, move |tx| {
                let Some(known) = load(tx, &id)? else { return Ok(None) };
                let company = change.made_to(known);
                save(tx, &company)?;
                Ok(Some(company))
            })
            .await
    }
}

fn load(tx: &Tx<'_>, id: &CompanyId) -> Result<Option<Company>, StoreError> {
    tx.read(Tree::Companies, &Key::new().company(id).done())
}

fn save(tx: &mut Tx<'_>, company: &Company) -> Result<(), StoreError> {
    tx.write(Tree::Companies, Key::new().company(&company.id).done(), company)
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
}
