//! What stands in the way of the work just now, since when, and what is therefore not done.
//!
//! One place that every part reports to and asks, so that `/readyz`, a refused write and the log all give the same
//! reason. Nothing here ends the program; what ends it has an exit code of its own.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

/// What can stand in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hindrance {
    /// The store cannot prove that it is whole and the latest. It is read and answers, and nothing is taken in or sent
    /// until an operator accepts it.
    SafeMode,
    /// The store was just opened and is still being checked: nothing is sent until that has ended.
    Checking,
    /// The provider's batches are being compared with ours after the start: nothing is sent until that has ended.
    Reconciling,
    /// There is no room on the disk, or less than the floor: nothing is taken in or sent until there is.
    Disk,
    /// The program is leaving: nothing is taken in or sent.
    Draining,
}

impl Hindrance {
    /// The name for programs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::SafeMode => "safe_mode",
            Self::Checking => "checking",
            Self::Reconciling => "reconciling",
            Self::Disk => "disk",
            Self::Draining => "draining",
        }
    }

    /// Whether it belongs to each start and stop.
    pub const fn is_usual(self) -> bool {
        match self {
            Self::Checking | Self::Reconciling | Self::Draining => true,
            Self::SafeMode | Self::Disk => false,
        }
    }

    /// Whether it keeps new work out.
    pub const fn stops_intake(self) -> bool {
        match self {
            Self::SafeMode | Self::Disk | Self::Draining => true,
            Self::Checking | Self::Reconciling => false,
        }
    }
}

/// What is said of safe mode.
pub fn safe_mode(why: &str) -> String {
    format!("safe mode: the store cannot be believed: {why}. See `nightshift store accept`")
}

/// What stands in the way, with the reason for people.
pub type Standing = BTreeMap<Hindrance, String>;

/// The condition of the whole service.
#[derive(Debug)]
pub struct Condition {
    standing: Mutex<Standing>,
    /// Counts the changes, for those who wait for one.
    changes: watch::Sender<u64>,
}

impl Default for Condition {
    fn default() -> Self {
        Self::new()
    }
}

impl Condition {
    /// Nothing stands in the way.
    pub fn new() -> Self {
        Self { standing: Mutex::new(Standing::new()), changes: watch::Sender::new(0) }
    }

    /// Something stands in the way from now on, or for another reason than before.
    pub fn raise(&self, hindrance: Hindrance, why: impl Into<String>) {
        let why = why.into();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if standing.get(&hindrance) == Some(&why) {
            return;
        }
        if hindrance.is_usual() {
            tracing::info!(hindrance = hindrance.code(), "{why}");
        } else {
            tracing::warn!(hindrance = hindrance.code(), "{why}");
        }
        standing.insert(hindrance, why);
        drop(standing);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// It is out of the way.
    pub fn clear(&self, hindrance: Hindrance) {
        let cleared = self.standing.lock().unwrap_or_else(PoisonError::into_inner).remove(&hindrance);
        if cleared.is_some() {
            let code = hindrance.code();
            tracing::info!(hindrance = code, "`{code}` does not stand in the way any more");
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Everything that stands in the way.
    pub fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why no new work is taken in, if so.
    pub fn intake_stopped(&self) -> Option<(Hindrance, String)> {
        self.standing().into_iter().find(|(hindrance, _)| hindrance.stops_intake())
    }

    /// Whether something may be sent to the provider that could cost money.
    pub fn may_submit(&self) -> bool {
        self.standing().is_empty()
    }

    /// Learns of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_raised_stands_until_it_is_cleared_and_says_what_it_stops() {
        let condition = Condition::new();
        assert!(condition.may_submit());
        condition.raise(Hindrance::Checking, "looking");
        assert!(!condition.may_submit());
        assert_eq!(condition.intake_stopped(), None);
        condition.raise(Hindrance::Disk, "full");
        assert_eq!(condition.intake_stopped(), Some((Hindrance::Disk, "full".to_owned())));
        condition.clear(Hindrance::Checking);
        condition.clear(Hindrance::Disk);
        assert!(condition.may_submit() && condition.standing().is_empty());
    }

    #[tokio::test]
    async fn who_waits_learns_of_a_change() {
        let condition = Condition::new();
        let mut changes = condition.changes();
        condition.raise(Hindrance::Disk, "full");
        changes.changed().await.unwrap();
        condition.raise(Hindrance::Disk, "full");
        assert!(!changes.has_changed().unwrap());
    }
}
