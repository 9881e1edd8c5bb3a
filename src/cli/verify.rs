//! `nightshift verify`

use std::sync::Arc;

use super::{CliError, block_on, data_folder, output};
use crate::clock::{Ids, SystemClock};
use crate::config::Settings;
use crate::disk;
use crate::store::Store;

pub fn run(settings: &Settings, json: bool) -> Result<(), CliError> {
    let report = block_on(async {
        let ids = Ids::new(Arc::new(SystemClock::new()));
        disk::make_openable(data_folder(settings));
        let store = Store::open(data_folder(settings), ids.next(), Box::new(|_| {})).await?;
        Ok(store.reader().verify()?)
    })?;
    let whole = report.violations.is_empty();
    if json {
        let violation = |violation: &crate::store::Violation| serde_json::json!({"invariant": violation.invariant, "what": violation.what});
        let violations: Vec<_> = report.violations.iter().map(violation).collect();
        output::json(&serde_json::json!({
            "ok": whole, "requests": report.requests, "batches": report.batches, "members": report.members,
            "bookings": report.bookings, "violations": violations,
        }));
    } else {
        output::data(&format!(
            "{} requests, {} batches, {} members, {} booked lines read",
            report.requests, report.batches, report.members, report.bookings
        ));
        for violation in &report.violations {
            output::data(&format!("invariant {} is broken: {}", violation.invariant, violation.what));
        }
        output::talk(if whole { "every invariant holds" } else { "the store is not as it should be" });
    }
    if whole { Ok(()) } else { Err(CliError::Told) }
}
