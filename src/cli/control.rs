//! `nightshift cancel` and `nightshift resume`

use clap::Args;
use serde_json::json;

use super::client::Client;
use super::{CliError, block_on, output};
use crate::config::Settings;

/// Which batch, and what becomes of the rest.
#[derive(Debug, Args)]
pub struct Cancel {
    /// The batch.
    batch: String,
    /// What becomes of the requests that it does not finish: they wait for another batch, or end as failed.
    #[arg(long, value_parser = ["requeue", "end"], default_value = "requeue")]
    then: String,
}

/// `nightshift cancel`
pub fn cancel(
    command: &Cancel,
    settings: &Settings,
    server: Option<&str>,
    json: bool,
) -> Result<(), CliError> {
    let client = Client::new(settings, server)?;
    let path = format!("/api/admin/legacy/batches/{}/cancel", command.batch);
    let answer = block_on(client.post(&path, &json!({ "then": command.then })))?;
    if json {
        output::json(&answer);
        return Ok(());
    }
    let text = |name: &str| answer["batch"][name].as_str().unwrap_or("-").to_owned();
    output::table(&["BATCH", "STATUS", "STEP"], &[vec![text("id"), text("status"), text("step")]]);
    output::talk("the order is stored; what the batch has finished is kept");
    Ok(())
}

/// `nightshift resume`
pub fn resume(settings: &Settings, server: Option<&str>, json: bool) -> Result<(), CliError> {
    let client = Client::new(settings, server)?;
    let answer = block_on(client.post("/api/admin/legacy/provider/resume", &json!({})))?;
    if json {
        output::json(&answer);
        return Ok(());
    }
    let was = answer["wasPaused"].as_bool().unwrap_or(false);
    output::talk(if was {
        "the account goes on"
    } else {
        "the account was not paused; batches that are parked are tried again"
    });
    Ok(())
}
