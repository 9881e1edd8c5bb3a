//! `nightshift status`, `requests`, `batches` and `requeue`

use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::{CliError, block_on, output};
use crate::config::Settings;

const REQUESTS: &str = "/api/admin/legacy/requests";
const BATCHES: &str = "/api/admin/legacy/batches";
const STATUSES: [&str; 4] =
    ["pending_batching", "batching_in_progress", "processing_complete", "processing_failed"];

/// How far the work is.
#[derive(Debug, Args)]
pub struct Status {
    /// Only of this company.
    #[arg(long)]
    company: Option<String>,
}

/// Which requests.
#[derive(Debug, Args)]
pub struct Requests {
    /// Show this one instead of a list.
    id: Option<String>,
    /// Only with this status.
    #[arg(long, value_parser = STATUSES, default_value = "processing_failed")]
    status: String,
    /// Only of this company.
    #[arg(long)]
    company: Option<String>,
    /// Only those of this batch.
    #[arg(long)]
    batch: Option<String>,
    /// How many at most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
    limit: u16,
    /// Where the page begins: the nextCursor of the page before.
    #[arg(long)]
    cursor: Option<String>,
}

/// Which batches.
#[derive(Debug, Args)]
pub struct Batches {
    /// Show this one with its story instead of a list.
    id: Option<String>,
    /// Only of this company.
    #[arg(long)]
    company: Option<String>,
    /// Only with this status.
    #[arg(long)]
    status: Option<String>,
    /// How many at most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
    limit: u16,
    /// Where the page begins.
    #[arg(long)]
    cursor: Option<String>,
}

/// Which requests to put back.
#[derive(Debug, Args)]
pub struct Requeue {
    /// Ids of failed requests.
    #[arg(required = true)]
    ids: Vec<String>,
}

/// `nightshift status`
pub fn status(
    command: &Status,
    settings: &Settings,
    server: Option<&str>,
    json: bool,
) -> Result<(), CliError> {
    let client = Client::new(settings, server)?;
    let mut query = Vec::new();
    query.extend(command.company.clone().map(|company| ("companyId", company)));
    let answer = block_on(client.get("/api/admin/legacy/summary", &query))?;
    if json {
        output::json(&answer);
        return Ok(());
    }
    let count = |name: &str| answer["summary"][name].as_u64().unwrap_or(0);
    let rows = STATUSES.map(|name| vec![name.to_owned(), count(name).to_string()]);
    output::table(&["STATUS", "REQUESTS"], &rows);
    let provider = block_on(client.get("/api/admin/legacy/provider", &[]))?;
    if let Some(why) = provider["paused"]["why"].as_str() {
        output::talk(&format!(
            "the account at the provider is paused: {why}; `nightshift resume` lets it go on"
        ));
    }
    for hindrance in provider["hindrances"].as_array().map(Vec::as_slice).unwrap_or_default() {
        output::talk(&format!("nothing is sent: {}", cell(&hindrance["why"])));
    }
    let health = block_on(client.get("/api/admin/legacy/health", &[]))?;
    for anomaly in health["health"]["anomalies"].as_array().map(Vec::as_slice).unwrap_or_default() {
        output::talk(&format!(
            "batch {} does not close since {}: {}",
            cell(&anomaly["batchId"]),
            cell(&anomaly["at"]),
            cell(&anomaly["what"])
        ));
    }
    for room in provider["rooms"].as_array().map(Vec::as_slice).unwrap_or_default() {
        if let Some(until) = room["closedUntil"].as_str() {
            output::talk(&format!(
                "no room for {} at the provider; tried again at {until}",
                cell(&room["model"])
            ));
        }
    }
    Ok(())
}

/// `nightshift requests`
pub fn requests(
    command: &Requests,
    settings: &Settings,
    server: Option<&str>,
    json: bool,
) -> Result<(), CliError> {
    let client = Client::new(settings, server)?;
    if let Some(id) = &command.id {
        return show(&block_on(client.get(&format!("{REQUESTS}/{id}"), &[]))?, "request", json);
    }
    let mut query = vec![("status", command.status.clone()), ("limit", command.limit.to_string())];
    query.extend(command.company.clone().map(|company| ("companyId", company)));
    query.extend(command.batch.clone().map(|batch| ("batchId", batch)));
    query.extend(command.cursor.clone().map(|cursor| ("cursor", cursor)));
    let answer = block_on(client.get(REQUESTS, &query))?;
    let columns = ["id", "companyId", "status", "model", "attempts", "batchId", "error"];
    list(&answer, "requests", &columns, json);
    Ok(())
}

/// `nightshift batches`
pub fn batches(
    command: &Batches,
    settings: &Settings,
    server: Option<&str>,
    json: bool,
) -> Result<(), CliError> {
    let client = Client::new(settings, server)?;
    if let Some(id) = &command.id {
        let answer = block_on(client.get(&format!("{BATCHES}/{id}"), &[]))?;
        return show(&answer, "batch", json);
    }
    let mut query = vec![("limit", command.limit.to_string())];
    query.extend(command.company.clone().map(|company| ("companyId", company)));
    query.extend(command.status.clone().map(|status| ("status", status)));
    query.extend(command.cursor.clone().map(|cursor| ("cursor", cursor)));
    let answer = block_on(client.get(BATCHES, &query))?;
    let columns = ["id", "companyId", "status", "step", "model", "openaiBatchId", "createdAt"];
    list(&answer, "batches", &columns, json);
    Ok(())
}

/// `nightshift requeue`
pub fn requeue(
    command: &Requeue,
    settings: &Settings,
    server: Option<&str>,
    json: bool,
) -> Result<(), CliError> {
    let client = Client::new(settings, server)?;
    let body = json!({ "requestIds": command.ids });
    let answer = block_on(client.post(&format!("{REQUESTS}/requeue"), &body))?;
    if json {
        output::json(&answer);
        return Ok(());
    }
    let count = |name: &str| answer[name].as_u64().unwrap_or(0).to_string();
    output::table(
        &["REQUEUED", "NOT FOUND", "NOT FAILED"],
        &[vec![count("requeuedCount"), count("notFoundCount"), count("skippedCount")]],
    );
    Ok(())
}

fn list(answer: &Value, name: &str, columns: &[&str], json: bool) {
    if json {
        return output::json(answer);
    }
    let entries = answer[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<Vec<String>> =
        entries.iter().map(|entry| columns.iter().map(|column| cell(&entry[*column])).collect()).collect();
    let head: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
    output::table(&head.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
    if let Some(cursor) = answer["nextCursor"].as_str() {
        output::talk(&format!("there is more: --cursor {cursor}"));
    }
}

fn show(answer: &Value, name: &str, json: bool) -> Result<(), CliError> {
    if json {
        output::json(answer);
        return Ok(());
    }
    let Some(fields) = answer[name].as_object() else {
        return Err(CliError::Failed(format!("the server's answer has no {name}")));
    };
    let lists = ["story", "history"];
    let rows: Vec<Vec<String>> = fields
        .iter()
        .filter(|(key, _)| !lists.contains(&key.as_str()))
        .map(|(key, value)| vec![key.clone(), cell(value)])
        .collect();
    output::table(&["FIELD", "VALUE"], &rows);
    for name in lists {
        for entry in fields.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default() {
            output::data(&format!("{}  {}", cell(&entry["at"]), cell(entry.get("text").unwrap_or(entry))));
        }
    }
    Ok(())
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}
