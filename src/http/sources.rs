//! Exports that are read again and again: how they stand, and an order to read one now.

use serde_json::{Value, json};

use super::reply::ApiError;
use super::view::time;
use super::{Api, blocking};
use crate::actors::importer::{Place, Source};
use crate::domain::id::CompanyId;
use crate::domain::source::{Fetch, SourceId, SourceRecord};

/// `GET /api/v1/companies/{companyId}/sources`
pub async fn list(api: &Api, company: &CompanyId) -> Result<Value, ApiError> {
    let own = api.shared.sources.iter().filter(|source| source.company == *company);
    // As many as the configuration has.
    let own: Vec<_> = own.cloned().collect();
    let reader = api.shared.reader.clone();
    let shown = blocking(move || {
        let view = |source: &std::sync::Arc<Source>| {
            Ok(view(source, reader.source(&source.company, source.id)?.unwrap_or_default()))
        };
        own.iter().map(view).collect::<Result<Vec<_>, _>>()
    });
    Ok(json!({ "ok": true, "sources": shown.await? }))
}

/// `POST /api/v1/companies/{companyId}/sources/{id}/read`
pub async fn read_now(api: &Api, company: &CompanyId, id: &str) -> Result<Value, ApiError> {
    let unknown = || ApiError::not_found("unknown_source", format!("there is no source {id}"));
    let wanted: SourceId = id.parse().map_err(|_| unknown())?;
    let found = api.shared.sources.iter().find(|source| source.id == wanted && source.company == *company);
    let found = found.ok_or_else(unknown)?;
    crash_point!("reading.order.before_commit");
    api.shared.store.order_reading(company.clone(), wanted).await?;
    crash_point!("reading.order.after_commit");
    found.read_now();
    tracing::info!(company.id = %company, source.id = %wanted, "an operator has a source read now");
    Ok(json!({ "ok": true, "id": wanted.to_string() }))
}

fn view(source: &Source, record: SourceRecord) -> Value {
    let (kind, location) = match &source.place {
        // Where the folders of this machine lie is nothing to its tenants.
        Place::File { csv, .. } => {
            ("file", csv.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
        }
        Place::Remote(_) => ("url", source.label.clone()),
    };
    let counts = record.counts;
    json!({
        "id": source.id.to_string(),
        "kind": kind,
        "location": location,
        "everySeconds": source.every.as_secs(),
        "lastRead": time(record.read_at),
        "lastWhole": time(record.whole_at),
        "nextRead": time(record.next_at),
        "outcome": record.outcome.map(|outcome| outcome.label()),
        "error": record.error,
        "counts": {
            "new": counts.new,
            "changed": counts.changed,
            "updated": counts.updated,
            "unchanged": counts.unchanged,
            "badRows": counts.bad_rows,
            "withoutTranscript": counts.without_transcript,
            "toFetch": counts.to_fetch,
        },
        "transcripts": {
            "waiting": record.transcripts.waiting,
            "had": record.transcripts.had,
            "failed": record.transcripts.failed,
            "notAllowed": record.transcripts.not_allowed,
        },
    })
}

/// The fetching of a session's transcript; null where nothing is fetched for it.
pub fn fetch(fetch: Option<&Fetch>) -> Value {
    fetch.map_or(Value::Null, |fetch| {
        json!({
            "state": fetch.state.label(),
            "attempts": fetch.attempts,
            "error": fetch.error,
            "next": time(fetch.due),
        })
    })
}
