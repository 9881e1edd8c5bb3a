//! What a company may spend in a month: what is spent, what is set aside for batches under way, and what a request
//! is thought to cost.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::id::{CompanyId, Timestamp};
use super::request::Cost;

/// A calendar month in UTC, as in 202611.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Month(u32);

impl Month {
    /// The month of a time.
    pub fn of(at: Timestamp) -> Self {
        let Ok(at) = jiff::Timestamp::from_millisecond(at.as_millis()) else { return Self(0) };
        let date = jiff::tz::TimeZone::UTC.to_datetime(at).date();
        let (year, month) = (u32::try_from(date.year()).unwrap_or(0), date.month().unsigned_abs());
        Self(year * 100 + u32::from(month))
    }

    /// The number on disk.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The month of a number on disk.
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// `2026-11`
impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / 100, self.0 % 100)
    }
}

impl FromStr for Month {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (year, month) = text.split_once('-').ok_or(())?;
        let digits =
            |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(year, 4) || !digits(month, 2) {
            return Err(());
        }
        let (year, month): (u32, u32) = (year.parse().map_err(|_| ())?, month.parse().map_err(|_| ())?);
        if (1..=12).contains(&month) { Ok(Self(year * 100 + month)) } else { Err(()) }
    }
}

/// A company's money in one month, in millionths of the price table's currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Money {
    /// What answers cost, each booked once.
    pub spent: u64,
    /// What batches under way are thought to cost still.
    pub reserved: u64,
}

impl Money {
    /// Whether `more` may be set aside under `limit`.
    pub const fn allows(&self, more: u64, limit: u64) -> bool {
        self.spent.saturating_add(self.reserved).saturating_add(more) <= limit
    }
}

/// What the answer to one line cost, as it is booked: once for each provider's batch and request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booking {
    /// Who pays.
    pub company: CompanyId,
    /// Of which month's money.
    pub month: Month,
    /// How much.
    pub cost: Cost,
}

/// The part of a month's money that belongs to one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Purse {
    /// The month in which it was cut; all that it costs belongs to that month.
    pub month: Month,
    /// What is still set aside for it: the estimate at the cut, less what was booked since.
    pub reserved: u64,
}

/// Whether a company's next request may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affordable {
    /// It may: there is no limit, or room below it.
    Yes,
    /// There is a limit, and no price for the model to reckon with.
    NoPrice,
    /// What could be cut costs more than the whole month's limit.
    TooDear {
        /// The limit of the month.
        limit: u64,
        /// What the first request is thought to cost.
        next: u64,
    },
    /// The limit is reached.
    Spent {
        /// The limit of the month.
        limit: u64,
        /// What is spent and set aside of it.
        money: Money,
        /// What the next request is thought to cost.
        next: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_is_that_of_the_calendar_in_utc() {
        let month = |secs| Month::of(Timestamp::from_secs(secs)).to_string();
        assert_eq!(
            [0, 2_678_399, 2_678_400, 1_795_507_200].map(month),
            ["1970-01", "1970-01", "1970-02", "2026-11"]
        );
        assert_eq!("2026-11".parse(), Ok(Month::from_number(202_611)));
        for bad in ["2026-13", "2026-00", "2026-1", "26-11", "2026", "+026-11", ""] {
            assert_eq!(bad.parse::<Month>(), Err(()), "{bad}");
        }
        assert_eq!(Month::of(Timestamp::from_millis(i64::MAX)), Month::from_number(0));
    }

    #[test]
    fn what_is_set_aside_counts_like_what_is_spent() {
        let money = Money { spent: 60, reserved: 30 };
        assert!(money.allows(10, 100) && !money.allows(11, 100));
        assert!(!Money { spent: u64::MAX, reserved: 1 }.allows(1, 5));
    }
}
