//! One go through what is old enough to be removed. The eraser sends it out every hour, a bounded piece at a time.

use std::sync::Arc;

use super::Shared;
use super::registry::blocking;
use crate::domain::id::{CompanyId, Timestamp};
use crate::domain::retention::Kind;
use crate::store::{Removed, StoreError};

/// Entries that are looked at, about, before others have their turn.
const LOOKED_AT_MAX: usize = 20_000;

/// How the removal by age does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Aging {
    /// When the last pass began.
    pub began_at: Option<Timestamp>,
    /// When the last whole pass ended.
    pub ended_at: Option<Timestamp>,
    /// Whether a pass is under way.
    pub running: bool,
    /// What was removed since the program started.
    pub removed: Removed,
}

impl Aging {
    /// Adds what a piece of a pass removed.
    pub(super) const fn add(&mut self, more: Removed) {
        self.removed.requests += more.requests;
        self.removed.sessions += more.sessions;
    }
}

/// How far a pass has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    company: Option<CompanyId>,
    kind: Kind,
    after: Option<[u8; 16]>,
}

impl Place {
    /// Behind what a pass goes on with a company and a kind; none where it has done that.
    fn within(&self, company: &CompanyId, kind: Kind) -> Option<Option<[u8; 16]>> {
        match &self.company {
            Some(at) if at > company => None,
            Some(at) if at == company && self.kind > kind => None,
            Some(at) if at == company && self.kind == kind => Some(self.after),
            Some(_) | None => Some(None),
        }
    }
}

/// Goes on from a place; gives what was removed, and where the next piece begins.
pub(super) async fn piece(
    shared: &Arc<Shared>,
    place: Place,
) -> Result<(Removed, Option<Place>), StoreError> {
    let (reader, now) = (shared.reader.clone(), shared.clock.now());
    let mut companies = blocking(move || reader.companies()).await?;
    companies.sort_by(|a, b| a.id.cmp(&b.id));
    let (mut looked_at, mut removed) = (0, Removed::default());
    for company in companies {
        let keeps = company.retention.or(shared.retention);
        for kind in Kind::ALL {
            let Some(limit) = keeps.limit(kind, now) else { continue };
            let Some(mut after) = place.within(&company.id, kind) else { continue };
            loop {
                if looked_at >= LOOKED_AT_MAX {
                    return Ok((removed, Some(Place { company: Some(company.id), kind, after })));
                }
                let (reader, of) = (shared.reader.clone(), company.id.clone());
                let page = blocking(move || reader.aged(&of, kind, after, limit)).await?;
                looked_at += page.looked_at.max(1);
                if !page.due.is_empty() {
                    crash_point!("aged.before_commit");
                    let more = shared.store.remove_aged(kind, page.due, limit, now).await?;
                    crash_point!("aged.after_commit");
                    removed.requests += more.requests;
                    removed.sessions += more.sessions;
                }
                if page.next.is_none() {
                    break;
                }
                after = page.next;
            }
        }
    }
    Ok((removed, None))
}
