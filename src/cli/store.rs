//! `nightshift store accept` and `nightshift store compact`

use std::io::{BufRead, IsTerminal};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{CliError, block_on, data_folder, output, verify};
use crate::app;
use crate::clock::{Ids, SharedClock, SystemClock};
use crate::config::Settings;
use crate::disk;
use crate::domain::id::Timestamp;
use crate::http::report_view;
use crate::provider::ProviderError;
use crate::provider::wire::{BatchObject, ProviderStatus};
use crate::store::{Standing, Store, StoreError};

/// What to do with the store.
#[derive(Debug, Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Take the store as it is and leave safe mode. Shows first what is missing and what the provider knows.
    Accept {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Make the store's files anew from what is stored, without the pages of what was removed.
    Compact,
}

/// Pages of the provider's list that are read at most.
const PAGES_MAX: u32 = 2000;

pub fn run(command: &StoreArgs, settings: &Settings, json: bool) -> Result<(), CliError> {
    match command.what {
        What::Accept { yes } => accept(yes, settings, json),
        What::Compact => compact(settings, json),
    }
}

fn compact(settings: &Settings, json: bool) -> Result<(), CliError> {
    block_on(async {
        disk::make_openable(data_folder(settings));
        let ids = Ids::new(Arc::new(SystemClock::new()));
        let store = Store::open_existing(data_folder(settings), ids.next(), Arc::new(|_| {})).await?;
        let before = store.reader().size_on_disk();
        store.compact().await?;
        let after = store.reader().size_on_disk();
        if json {
            output::json(&json!({ "ok": true, "bytesBefore": before, "bytesAfter": after }));
        } else {
            output::data(&format!("{before} bytes before, {after} after"));
        }
        Ok(())
    })
}

fn accept(yes: bool, settings: &Settings, json: bool) -> Result<(), CliError> {
    block_on(async {
        let clock: SharedClock = Arc::new(SystemClock::new());
        let ids = Ids::new(clock.clone());
        // A full disk must not keep an operator from it.
        disk::make_openable(data_folder(settings));
        let store = Store::open_existing(data_folder(settings), ids.next(), Arc::new(|_| {})).await?;
        let standing = store.standing().await?;
        output::talk("reading the whole store");
        let report = store.verify().await?;
        if report.is_whole() {
            if json {
                output::json(&json!({ "ok": true, "accepted": false, "revision": standing.revision }));
            } else {
                output::data("the store is whole: there is nothing to accept");
            }
            return Ok(());
        }
        let batches = batches_of(settings, &store, &clock).await;
        let mut view = report_view(&report);
        view["revision"] = json!(standing.revision);
        view["anchored"] = json!(standing.anchored);
        view["anchoredAt"] = json!(standing.anchored_at.map(|at| at.to_string()));
        match &batches {
            Ok(batches) => view["providerBatches"] = json!(batches),
            Err(why) => view["providerError"] = json!(why),
        }
        if !json {
            show(&standing, &view, &batches);
        }
        let accepted = yes || confirmed()?;
        if accepted {
            crash_point!("accept.before_commit");
            store.accept(&report, clock.now()).await?;
            crash_point!("accept.between_commits");
            store.note_provider(app::identity(settings).key()).await?;
            crash_point!("accept.after_commit");
        }
        view["accepted"] = json!(accepted);
        if json {
            output::json(&view);
        }
        if !accepted {
            return Err(CliError::Failed("nothing was accepted; the store stays in doubt".to_owned()));
        }
        output::talk("accepted: the next start takes in and sends again");
        Ok(())
    })
}

fn show(standing: &Standing, view: &Value, batches: &Result<Vec<Value>, String>) {
    let doubt = standing.doubt.as_deref().unwrap_or("the check found damage");
    output::data(&format!("the store cannot be believed: {doubt}"));
    let when = |at: Option<Timestamp>| at.map_or_else(String::new, |at| format!(", written at {at}"));
    output::data(&format!("revision found: {}", standing.revision));
    match standing.anchored {
        Some(anchored) => {
            output::data(&format!("revision anchored: {anchored}{}", when(standing.anchored_at)));
            if anchored > standing.revision {
                let lost = anchored - standing.revision;
                output::data(&format!(
                    "at least {lost} groups of changes that were acknowledged are missing"
                ));
            }
        }
        None => output::data("revision anchored: not known"),
    }
    verify::show(view);
    let batches = match batches {
        Ok(batches) => batches,
        Err(why) => return output::data(&format!("the provider could not be asked: {why}")),
    };
    let unknown = batches.iter().filter(|batch| batch["known"] == false).count();
    output::data(&format!(
        "the provider has {} batches of this store, {unknown} of which the store does not know",
        batches.len()
    ));
    let cell = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows: Vec<Vec<String>> = batches
        .iter()
        .map(|batch| {
            let known = if batch["known"] == true { "known" } else { "unknown" };
            let [id, own, status, at] = ["id", "batch", "status", "createdAt"].map(|name| cell(&batch[name]));
            vec![id, own, status, at, known.to_owned()]
        })
        .collect();
    if !rows.is_empty() {
        output::table(&["PROVIDER BATCH", "BATCH", "STATUS", "CREATED", "STORE"], &rows);
    }
}

/// Asks on a terminal; elsewhere nobody could answer.
fn confirmed() -> Result<bool, CliError> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(CliError::Failed("nobody can be asked here: say --yes to accept the store".to_owned()));
    }
    output::talk(
        "What is missing may be bought again. A backup that has it is better. Accept the store? [y/N]",
    );
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(|err| CliError::Failed(err.to_string()))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The provider's batches of this store; or why they cannot be had.
async fn batches_of(settings: &Settings, store: &Store, clock: &SharedClock) -> Result<Vec<Value>, String> {
    // Held until the list is read: the embedded simulator stops with it.
    let (_stop, stopping) = watch::channel(false);
    let (lost, _ended) = tokio::sync::mpsc::channel(1);
    let url = app::provider_url(settings, data_folder(settings), clock, stopping, &lost);
    let url = url.await.map_err(|err| err.to_string())?;
    let provider = app::client(settings, url, clock.clone()).map_err(|err| err.to_string())?;
    let told = |err: ProviderError| match std::error::Error::source(&err) {
        Some(source) => format!("{err}: {source}"),
        None => err.to_string(),
    };
    let mut batches = Vec::new();
    let mut after = None;
    for _ in 0..PAGES_MAX {
        let page = provider.list_batches(after.as_ref(), 100).await.map_err(told)?;
        for batch in &page.data {
            batches.extend(ours(store, batch).map_err(|err| err.to_string())?);
        }
        after = page.data.last().map(|batch| batch.id.clone());
        if !page.has_more || after.is_none() {
            return Ok(batches);
        }
    }
    Err("its list has no end".to_owned())
}

/// A batch of this store as it is shown; none if it is somebody else's.
fn ours(store: &Store, batch: &BatchObject) -> Result<Option<Value>, StoreError> {
    let pair =
        |name: &str| batch.metadata.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    if pair("ns_instance") != Some(store.instance().to_string()) {
        return Ok(None);
    }
    let known = store.reader().batch_of_provider(&batch.id)?.is_some();
    Ok(Some(json!({
        "id": batch.id.as_str(), "batch": pair("ns_batch"), "status": word(&batch.status),
        "createdAt": batch.created_at.map(|at| at.to_string()), "known": known,
    })))
}

fn word(status: &ProviderStatus) -> &str {
    match status {
        ProviderStatus::Validating => "validating",
        ProviderStatus::InProgress => "in_progress",
        ProviderStatus::Finalizing => "finalizing",
        ProviderStatus::Completed => "completed",
        ProviderStatus::Failed => "failed",
        ProviderStatus::Expired => "expired",
        ProviderStatus::Cancelling => "cancelling",
        ProviderStatus::Cancelled => "cancelled",
        ProviderStatus::Unknown(word) => word,
    }
}
