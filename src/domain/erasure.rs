//! The erasing of what is stored of a session or of a company, and what is kept of what was erased: no content.

use serde::{Deserialize, Serialize};

use super::id::{CompanyId, ErasureId, SessionId, Timestamp};
use super::request::Cost;

/// What is erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// One session. The export's id for it is not kept, only a print by which it is known when it comes again.
    Session {
        /// Whose.
        company: CompanyId,
        /// Our id.
        session: SessionId,
        /// The print of the export's id.
        print: [u8; 32],
    },
    /// Everything of a company, and the company itself.
    Company(CompanyId),
}

impl Subject {
    /// `session` or `company`.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Session { .. } => "session",
            Self::Company(_) => "company",
        }
    }

    /// Whose data it is.
    pub const fn company(&self) -> &CompanyId {
        match self {
            Self::Session { company, .. } | Self::Company(company) => company,
        }
    }
}

/// How far an erasure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErasureState {
    /// Records are removed, batches are waited for, files are deleted.
    Running,
    /// Nothing refers to it any more; the store's old pages still hold it.
    Compacting,
    /// Nothing is left of it.
    Done,
}

impl ErasureState {
    /// The word in the API.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Compacting => "compacting",
            Self::Done => "done",
        }
    }
}

/// An erasure as stored; it stays, and has nothing of what it erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// Its id.
    pub id: ErasureId,
    /// What is erased.
    pub subject: Subject,
    /// Who ordered it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// How far it is.
    pub state: ErasureState,
    /// Sessions that were removed.
    pub sessions: u64,
    /// Requests that were removed.
    pub requests: u64,
    /// Batches whose files were deleted, at the provider and here.
    pub batches: u64,
    /// When nothing was left of it.
    pub done_at: Option<Timestamp>,
}

/// What is kept of a request that was removed: what it cost, and nothing that it said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// Whose it was.
    pub company: CompanyId,
    /// Of which session, by our id; an erasure of it has to know of files that come late.
    pub session: Option<SessionId>,
    /// The model, by which a line that comes late is priced.
    pub model: String,
    /// When it was removed.
    pub at: Timestamp,
    /// What all answers to it cost.
    pub cost: Option<Cost>,
}
