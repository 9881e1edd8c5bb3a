//! A company: the tenant to which every session, request, batch and figure belongs.

use serde::{Deserialize, Serialize};

use super::id::CompanyId;
use super::retention::Retention;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Company {
    /// Its id, part of every key of its data.
    pub id: CompanyId,
    /// What people call it.
    pub name: String,
    /// The model that its sessions are analysed with.
    pub model: String,
    /// Nothing new is cut for a suspended company; its running batches still finish.
    pub suspended: bool,
    /// What it may spend in a calendar month (UTC), in millionths of the price table's currency; none for no limit.
    pub budget_micros: Option<u64>,
    /// How long what has ended is kept; what it does not say is as for all.
    pub retention: Retention,
}

/// What is to be another way at a company; what is none stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CompanyChange {
    /// What people call it.
    pub name: Option<String>,
    /// The model that its sessions are analysed with.
    pub model: Option<String>,
    /// Whether nothing new is cut for it.
    pub suspended: Option<bool>,
    /// What it may spend in a month.
    pub budget_micros: Option<u64>,
    /// How long what has ended is kept, as a whole.
    pub retention: Option<Retention>,
}

impl CompanyChange {
    /// The company with the change.
    pub fn made_to(self, company: Company) -> Company {
        Company {
            name: self.name.unwrap_or(company.name),
            model: self.model.unwrap_or(company.model),
            suspended: self.suspended.unwrap_or(company.suspended),
            budget_micros: self.budget_micros.or(company.budget_micros),
            retention: self.retention.unwrap_or(company.retention),
            ..company
        }
    }
}

/// A company as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredCompany {
    /// What it is where it is new.
    pub new: Company,
    /// What the configuration says of it, which holds from each start on.
    pub says: CompanyChange,
}
