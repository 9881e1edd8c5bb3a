//! How long what has ended is kept before it is removed by its age.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::Timestamp;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// How long something is kept behind its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keep {
    /// So long.
    For {
        /// In seconds.
        seconds: u64,
    },
    /// Nothing is removed for its age.
    Always,
}

impl Keep {
    /// Shorter would be a mistake: somebody has to fetch it, too.
    const SECONDS_MIN: u64 = HOUR;
    /// So would longer.
    const SECONDS_MAX: u64 = 36_525 * DAY;
    /// What may be said.
    pub const EXPECTED: &str = "a time of one hour to a hundred years like \"90d\", or \"never\"";
}

impl std::str::FromStr for Keep {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.trim() == "never" {
            return Ok(Self::Always);
        }
        let seconds = humantime::parse_duration(text.trim()).map_err(drop)?.as_secs();
        if (Self::SECONDS_MIN..=Self::SECONDS_MAX).contains(&seconds) {
            Ok(Self::For { seconds })
        } else {
            Err(())
        }
    }
}

impl std::fmt::Display for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // In the largest unit of the same length each: 90 days are no three months.
        match *self {
            Self::Always => f.write_str("never"),
            Self::For { seconds } if seconds % DAY == 0 => write!(f, "{}d", seconds / DAY),
            Self::For { seconds } if seconds % HOUR == 0 => write!(f, "{}h", seconds / HOUR),
            Self::For { seconds } if seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            Self::For { seconds } => write!(f, "{seconds}s"),
        }
    }
}

/// What is removed by its age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Kind {
    /// Generic requests that are complete.
    #[default]
    Complete,
    /// Generic requests that failed.
    Failed,
    /// Sessions, with their requests.
    Sessions,
}

impl Kind {
    /// All of them, in the order in which they are gone through.
    pub const ALL: [Self; 3] = [Self::Complete, Self::Failed, Self::Sessions];
}

/// How long each kind is kept; none where nothing is said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retention {
    /// Generic requests that are complete.
    pub complete: Option<Keep>,
    /// Generic requests that failed.
    pub failed: Option<Keep>,
    /// Sessions.
    pub sessions: Option<Keep>,
}

impl Retention {
    /// What a company says for itself, and where it says nothing, what holds for all.
    pub fn or(self, general: Self) -> Self {
        Self {
            complete: self.complete.or(general.complete),
            failed: self.failed.or(general.failed),
            sessions: self.sessions.or(general.sessions),
        }
    }

    /// Whether nothing is said.
    pub fn is_silent(self) -> bool {
        self == Self::default()
    }

    const fn of(self, kind: Kind) -> Option<Keep> {
        match kind {
            Kind::Complete => self.complete,
            Kind::Failed => self.failed,
            Kind::Sessions => self.sessions,
        }
    }

    /// What ended then or before is to go; none where nothing is.
    pub fn limit(self, kind: Kind, now: Timestamp) -> Option<Timestamp> {
        match self.of(kind) {
            Some(Keep::For { seconds }) => Some(now.minus(Duration::from_secs(seconds))),
            Some(Keep::Always) | None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_as_it_was_said_and_a_mistake_is_none() {
        for text in ["90d", "36h", "90m", "3601s", "never"] {
            assert_eq!(text.parse::<Keep>().unwrap().to_string(), text);
        }
        assert_eq!("12 weeks".parse::<Keep>().unwrap().to_string(), "84d");
        for text in ["59m", "0s", "", "soon", "90", "101y"] {
            assert!(text.parse::<Keep>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_company_that_says_never_keeps_what_others_do_not() {
        let general = Retention { complete: Some(Keep::For { seconds: DAY }), ..Retention::default() };
        let now = Timestamp::from_secs(1_800_000_000);
        let limit = |own: Retention, kind| own.or(general).limit(kind, now);
        let day = Some(now.minus(Duration::from_secs(DAY)));
        assert_eq!(limit(Retention::default(), Kind::Complete), day);
        assert_eq!(limit(Retention::default(), Kind::Sessions), None);
        let own = Retention { complete: Some(Keep::Always), failed: general.complete, sessions: None };
        assert_eq!((limit(own, Kind::Complete), limit(own, Kind::Failed)), (None, day));
    }
}
