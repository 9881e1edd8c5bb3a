//! A company: the tenant to which every session, request, batch and figure belongs.

use serde::{Deserialize, Serialize};

use super::id::CompanyId;

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
}
