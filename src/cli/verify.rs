//! `nightshift verify`

use std::sync::Arc;

use serde_json::Value;

use super::client::Client;
use super::{CliError, block_on, data_folder, output};
use crate::clock::{Ids, SystemClock};
use crate::config::Settings;
use crate::disk;
use crate::http::report_view;
use crate::store::{Store, StoreError};

const VERIFY: &str = "/api/admin/legacy/verify";

pub fn run(settings: &Settings, server: Option<&str>, json: bool) -> Result<(), CliError> {
    let answer = block_on(async {
        if server.is_some() {
            return Client::new(settings, server)?.get_slowly(VERIFY).await;
        }
        let ids = Ids::new(Arc::new(SystemClock::new()));
        disk::make_openable(data_folder(settings));
        match Store::open_existing(data_folder(settings), ids.next(), Arc::new(|_| {})).await {
            Ok(store) => Ok(report_view(&store.verify().await?)),
            Err(StoreError::InUse { path, holder }) => {
                output::talk(&format!("the store is in use by {holder}, so the server is asked"));
                match Client::new(settings, server)?.get_slowly(VERIFY).await {
                    Ok(answer) => Ok(answer),
                    Err(err) => {
                        output::talk(&err.to_string());
                        Err(StoreError::InUse { path, holder }.into())
                    }
                }
            }
            Err(err) => Err(err.into()),
        }
    })?;
    let whole = answer["whole"] == true;
    if json {
        output::json(&answer);
    } else {
        show(&answer);
        output::talk(if whole { "every invariant holds" } else { "the store is not as it should be" });
    }
    if whole { Ok(()) } else { Err(CliError::Told) }
}

/// Prints what was counted and what is wrong.
pub fn show(answer: &Value) {
    let count = |name: &str| answer["counts"][name].as_u64().unwrap_or(0);
    output::data(&format!(
        "{} entries: {} sessions, {} requests, {} batches, {} members, {} booked lines read",
        count("entries"),
        count("sessions"),
        count("requests"),
        count("batches"),
        count("members"),
        count("bookings")
    ));
    for violation in answer["violations"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let text = |name: &str| violation[name].as_str().unwrap_or("").to_owned();
        output::data(&format!(
            "invariant {} is broken: {} ({})",
            violation["invariant"],
            text("what"),
            text("place")
        ));
    }
    if let Some(more) = answer["moreViolations"].as_u64().filter(|more| *more > 0) {
        output::data(&format!("and {more} more"));
    }
    if let Some(accepted) = answer["acceptedBefore"].as_u64().filter(|accepted| *accepted > 0) {
        output::talk(&format!("{accepted} more were accepted before and are not listed"));
    }
}
