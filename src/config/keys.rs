//! The keys that there are, their defaults, and which one was meant.

use super::error::Problem;

/// Every single key with its default, written as a file would have it; none where it may be left out.
pub(super) const KEYS: [(&str, Option<&str>); 44] = [
    ("server.bind", Some("127.0.0.1:8080")),
    ("data.path", Some("data")),
    ("data.free_space_floor", Some("256MB")),
    ("data.ballast", Some("64MB")),
    ("provider.kind", Some("simulator")),
    ("provider.base_url", Some("https://api.openai.com/v1")),
    ("creation.enabled", Some("true")),
    ("creation.interval", Some("10m")),
    ("creation.max_requests", Some("50000")),
    ("creation.max_file_size", Some("190MB")),
    ("creation.max_age", Some("30m")),
    ("polling.enabled", Some("true")),
    ("polling.interval", Some("2m")),
    ("polling.max_calls", Some("100")),
    ("submission.grace", Some("15m")),
    ("submission.batches_per_hour", Some("2000")),
    ("submission.uploads_per_minute", Some("1000")),
    ("submission.transfers", Some("4")),
    ("retry.max_attempts", Some("3")),
    ("retry.backoff", Some("1m")),
    ("retry.capacity_backoff", Some("1m")),
    ("retry.capacity_hold", Some("10m")),
    ("analysis.model", Some("gpt-4o-mini")),
    ("analysis.settle", Some("1h")),
    ("analysis.repair_rounds", Some("1")),
    ("import.time_zone", Some("Europe/Amsterdam")),
    ("ingest.calls_per_minute", Some("600")),
    ("ingest.bytes_per_hour", Some("50GB")),
    ("fetch.allow_hosts", Some("")),
    ("fetch.timeout", Some("30s")),
    ("fetch.max_export_size", Some("1GB")),
    ("fetch.max_transcript_size", Some("8MB")),
    ("fetch.attempts", Some("12")),
    ("retention.complete", None),
    ("retention.failed", None),
    ("retention.sessions", None),
    ("simulator.turnaround", Some("10s")),
    ("simulator.faults", None),
    ("simulator.token_limit", None),
    ("log.level", Some("info")),
    ("log.format", Some("auto")),
    // The defaults of these two stand in prices.toml, with the prices that they belong to.
    ("prices.version", None),
    ("prices.currency", None),
    ("prices.models", None),
];

pub(super) const COMPANY_KEYS: [&str; 8] = [
    "id",
    "name",
    "model",
    "suspended",
    "monthly_budget",
    "retention_complete",
    "retention_failed",
    "retention_sessions",
];
pub(super) const IMPORT_KEYS: [&str; 8] = [
    "company",
    "csv",
    "every",
    "transcripts",
    "time_zone",
    "username",
    "password_env",
    "transcript_concurrency",
];
pub(super) const RATE_KEYS: [&str; 4] = ["input", "cached", "cache_write", "output"];
pub(super) const LONG_CONTEXT: &str = "long_context";
pub(super) const LONG_CONTEXT_ABOVE: &str = "above";
/// Names at the top of the file.
const LISTS: [&str; 2] = ["companies", "imports"];

/// Secrets stand in the environment, because files end up in repositories.
const SECRETS: [(&str, &str); 6] = [
    ("provider.api_key", "OPENAI_API_KEY"),
    ("provider.key", "OPENAI_API_KEY"),
    ("provider.organization", "OPENAI_ORG_ID"),
    ("provider.project", "OPENAI_PROJECT_ID"),
    ("provider.webhook_secret", "OPENAI_WEBHOOK_SECRET"),
    ("server.admin_token", "NIGHTSHIFT_ADMIN_TOKEN"),
];

/// The key as the table has it, if there is such a key.
pub(super) fn known(key: &str) -> Option<&'static str> {
    KEYS.iter().map(|(known, _)| *known).find(|known| *known == key && *known != "prices.models")
}

pub(super) fn is_section(name: &str) -> bool {
    KEYS.iter().any(|(key, _)| key.split_once('.').is_some_and(|(section, _)| section == name))
}

/// There is no such key: which one was meant?
pub(super) fn unknown(key: &str) -> Problem {
    let problem = "there is no such key";
    if let Some((_, variable)) = SECRETS.iter().find(|(secret, _)| *secret == key) {
        return Problem::new(problem, format!("set it in the environment as {variable}"));
    }
    let (section, name) = key.split_once('.').unwrap_or(("", key));
    let all = || KEYS.iter().filter_map(|(known, _)| Some((*known, known.split_once('.')?)));
    let here: Vec<&str> =
        all().filter(|(_, (known, _))| *known == section).map(|(_, (_, known))| known).collect();
    if let Some(near) = nearest(name, here.iter().copied()) {
        return Problem::new(problem, format!("did you mean {section}.{near}?"));
    }
    // A key in the wrong section, and then a section that is misspelt.
    let elsewhere = all().find(|(_, (_, known))| *known == name).map(|(known, _)| known);
    match elsewhere.or_else(|| nearest(key, all().map(|(known, _)| known))) {
        Some(near) => Problem::new(problem, format!("did you mean {near}?")),
        None if here.is_empty() => Problem::new(problem, "see config.toml for those there are"),
        None => Problem::new(problem, format!("known in {section}: {}", here.join(", "))),
    }
}

/// There is no such section at the top of the file.
pub(super) fn unknown_section(name: &str) -> Problem {
    let sections = KEYS.iter().filter_map(|(key, _)| key.split_once('.')).map(|(section, _)| section);
    let mut names: Vec<&str> = sections.chain(LISTS).collect();
    names.dedup();
    let remedy = match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known are: {}", names.join(", ")),
    };
    Problem::new("there is no such section", remedy)
}

/// There is no such key in an entry of a list.
pub(super) fn unknown_in_list(key: &str, known: &[&'static str]) -> Problem {
    let remedy = match nearest(key, known.iter().copied()) {
        _ if key == "password" && known.contains(&"password_env") => {
            "take the password out of the file; put it into an environment variable, and that variable's name into \
             password_env"
                .to_owned()
        }
        Some(near) => format!("did you mean {near}?"),
        None => format!("known here: {}", known.join(", ")),
    };
    Problem::new("there is no such key", remedy)
}

/// The most similar name, if it is similar at all.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (similarity, near) = known
        .map(|known| (strsim::jaro_winkler(&name.to_lowercase(), known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    let edits = strsim::osa_distance(&name.to_lowercase(), near);
    (similarity > 0.8 && edits <= 1 + near.len() / 4).then_some(near)
}
