//! Times as exports and transcripts write them.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::domain::id::Timestamp;

/// What [`parse`] understands, for messages.
pub(super) const EXPECTED: &str = "a time like 31.12.2026 23:59:59";

/// Reads `DD.MM.YYYY HH:MM[:SS]` or `YYYY-MM-DD HH:MM:SS` in `zone`, or RFC 3339 with its own offset.
pub(super) fn parse(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    let text = text.trim();
    let local = match dotted(text) {
        Some(local) => local,
        // Shorter text would be a date, and a date alone is not a moment.
        None if text.len() < "2026-12-31T23:59".len() => return None,
        None => match text.parse::<jiff::Timestamp>() {
            Ok(at) => return Some(Timestamp::from_millis(at.as_millisecond())),
            Err(_) => text.parse::<DateTime>().ok()?,
        },
    };
    let at = zone.to_ambiguous_timestamp(local).compatible().ok()?;
    Some(Timestamp::from_millis(at.as_millisecond()))
}

fn dotted(text: &str) -> Option<DateTime> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut date = date.split('.');
    let (day, month, year) = (date.next()?, date.next()?, date.next()?);
    if date.next().is_some() || year.len() != 4 {
        return None;
    }
    let mut time = time.trim_start().split(':');
    let (hour, minute, second) = (time.next()?, time.next()?, time.next().unwrap_or("0"));
    if time.next().is_some() {
        return None;
    }
    let year = i16::try_from(number(year, 4)?).ok()?;
    DateTime::new(year, small(month)?, small(day)?, small(hour)?, small(minute)?, small(second)?, 0).ok()
}

fn small(text: &str) -> Option<i8> {
    i8::try_from(number(text, 2)?).ok()
}

/// Digits only: `parse` alone would take a sign as well.
fn number(text: &str, digits_max: usize) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if digits && text.len() <= digits_max { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amsterdam() -> TimeZone {
        TimeZone::get("Europe/Amsterdam").unwrap()
    }

    fn read(text: &str) -> Option<String> {
        parse(text, &amsterdam()).map(|at| at.to_string())
    }

    #[test]
    fn a_time_is_read_in_its_zone() {
        assert_eq!(read("03.06.2025 19:10:20").as_deref(), Some("2025-06-03T17:10:20.000Z"));
        assert_eq!(read("3.1.2025 9:05").as_deref(), Some("2025-01-03T08:05:00.000Z"));
        assert_eq!(read("2025-06-03 19:10:20").as_deref(), Some("2025-06-03T17:10:20.000Z"));
        assert_eq!(read("2025-06-03T19:10:20.5Z").as_deref(), Some("2025-06-03T19:10:20.500Z"));
        assert_eq!(read("2025-06-03T19:10:20+05:30").as_deref(), Some("2025-06-03T13:40:20.000Z"));
    }

    #[test]
    fn an_hour_that_the_clock_skips_is_read_as_if_it_had_not_been_put_forward() {
        assert_eq!(read("30.03.2025 02:30:00").as_deref(), Some("2025-03-30T01:30:00.000Z"));
        assert_eq!(read("30.03.2025 03:30:00").as_deref(), Some("2025-03-30T01:30:00.000Z"));
    }

    #[test]
    fn an_hour_that_the_clock_repeats_is_the_first_of_the_two() {
        assert_eq!(read("26.10.2025 02:30:00").as_deref(), Some("2025-10-26T00:30:00.000Z"));
        assert_eq!(read("26.10.2025 03:00:00").as_deref(), Some("2025-10-26T02:00:00.000Z"));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for bad in [
            "",
            "31.02.2025 10:00:00",
            "01.13.2025 10:00:00",
            "01.01.2025 24:00:00",
            "01.01.2025",
            "2025-01-01",
            "01.01.25 10:00:00",
            "1.1.2025 10:00:00:00",
            "+1.1.2025 10:00:00",
            "06/03/2025 10:00:00",
        ] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String, day in "[0-9.: TZ+-]{0,30}") {
            let _ = parse(&text, &amsterdam());
            let _ = parse(&day, &amsterdam());
        }

        #[test]
        fn what_is_written_in_utc_reads_back(
            // The years 1000 to 9998.
            secs in -30_610_224_000_i64..253_370_764_800
        ) {
            let text = jiff::Timestamp::from_second(secs).unwrap().strftime("%d.%m.%Y %H:%M:%S").to_string();
            prop_assert_eq!(parse(&text, &TimeZone::UTC), Some(Timestamp::from_secs(secs)));
        }
    }
}
