//! The legacy admin API: the views are asked of the registry, requeueing of the intake.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::body::object;
use super::cursor;
use super::query::Query;
use super::reply::{Answer, ApiError};
use super::view;
use crate::actors::intake::Requeue;
use crate::actors::registry::{BatchShown, ListBatches, ListRequests, ShowBatch, ShowRequest, Summary};
use crate::domain::batch::BatchStatus;
use crate::domain::id::{BatchId, CompanyId, RequestId};
use crate::domain::request::RequestStatus;
use crate::panics;
use crate::store::RequestFilter;

/// A view that takes longer is given up with 503.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ids in one call of requeue.
pub const REQUEUE_IDS_MAX: usize = 10_000;
/// Batches that do not close which are named at once: one is a bug already.
const ANOMALIES_MAX: usize = 100;

/// `GET /api/admin/legacy/summary`
pub async fn summary(api: &Api, query: &Query) -> Result<Value, ApiError> {
    query.only(&["companyId"])?;
    let company = query.company("companyId")?;
    let counts = api.parts.registry.send(Summary { company }).timeout(PATIENCE).await??;
    Ok(json!({ "ok": true, "summary": view::summary(counts) }))
}

/// `GET /api/admin/legacy/requests?status=&limit=&cursor=&companyId=&batchId=`
pub async fn requests(api: &Api, query: &Query) -> Result<Value, ApiError> {
    query.only(&["status", "limit", "cursor", "companyId", "batchId"])?;
    let words = || RequestStatus::ALL.map(RequestStatus::label).join(", ");
    let status = match query.get("status") {
        None => return Err(ApiError::invalid("status_required", format!("status is required: {}", words()))),
        Some(word) => word.parse::<RequestStatus>().map_err(|()| {
            ApiError::invalid("unknown_status", format!("{word:?} is not a status: {}", words()))
        })?,
    };
    let company: Option<CompanyId> = query.company("companyId")?;
    let batch = query.parsed::<BatchId>("batchId")?;
    let limit = query.limit()?;
    let scope = format!(
        "requests/{}/{}/{}",
        status.label(),
        company.as_ref().map_or("", |company| company.as_str()),
        batch.map(|batch| batch.to_string()).unwrap_or_default(),
    );
    let before = cursor::of_query(api, &scope, query)?.map(RequestId::from_bytes);
    let filter = RequestFilter { status, company, batch };
    let (requests, next) =
        api.parts.registry.send(ListRequests { filter, before, limit }).timeout(PATIENCE).await??;
    Ok(json!({
        "ok": true,
        "requests": requests.iter().map(view::request).collect::<Vec<_>>(),
        "nextCursor": next.map(|id| cursor::make(api, &scope, id.as_bytes())),
    }))
}

/// `GET /api/admin/legacy/requests/{id}`
pub async fn request(api: &Api, id: &str) -> Result<Answer, ApiError> {
    let unknown = || ApiError::not_found("unknown_request", format!("there is no request {id}"));
    let parsed: RequestId = id.parse().map_err(|_| unknown())?;
    let request =
        api.parts.registry.send(ShowRequest(parsed)).timeout(PATIENCE).await??.ok_or_else(unknown)?;
    let reader = api.shared.reader.clone();
    let shown = super::large(api, move || view::whole_request(&reader, &request)?.reply()).await?;
    Ok(Answer::json(shown))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RequeueBody {
    request_ids: Vec<String>,
}

/// `POST /api/admin/legacy/requests/requeue`
pub async fn requeue(api: &Api, body: &[u8]) -> Result<Value, ApiError> {
    let body: RequeueBody = object(body, "{\"requestIds\": [\"…\"]}")?;
    let ids = body.request_ids;
    if ids.is_empty() || ids.len() > REQUEUE_IDS_MAX {
        let detail = format!("requestIds must have 1 to {REQUEUE_IDS_MAX} ids, not {}", ids.len());
        return Err(ApiError::invalid("bad_request_ids", detail));
    }
    let mut known = Vec::with_capacity(ids.len());
    // What is no id of ours names nothing that is there; the same one twice counts once here, too.
    let mut strange = std::collections::HashSet::new();
    for id in ids {
        match id.parse::<RequestId>() {
            Ok(id) => known.push(id),
            Err(_) => drop(strange.insert(id)),
        }
    }
    let counts = api.parts.intake.send(Requeue(known)).await??;
    Ok(json!({
        "ok": true,
        "requeuedCount": counts.requeued,
        "notFoundCount": counts.not_found + strange.len() as u64,
        "skippedCount": counts.skipped,
    }))
}

/// `GET /api/admin/legacy/batches?companyId=&status=&limit=&cursor=`
pub async fn batches(api: &Api, query: &Query) -> Result<Value, ApiError> {
    query.only(&["companyId", "status", "limit", "cursor"])?;
    let company: Option<CompanyId> = query.company("companyId")?;
    let status = match query.get("status") {
        None => None,
        Some(word) => Some(word.parse::<BatchStatus>().map_err(|()| {
            let words = BatchStatus::ALL.map(BatchStatus::label).join(", ");
            ApiError::invalid("unknown_status", format!("{word:?} is not a status: {words}"))
        })?),
    };
    let limit = query.limit()?;
    let scope = format!(
        "batches/{}/{}",
        status.map(BatchStatus::label).unwrap_or_default(),
        company.as_ref().map_or("", |company| company.as_str()),
    );
    let before = cursor::of_query(api, &scope, query)?.map(BatchId::from_bytes);
    let (batches, next) =
        api.parts.registry.send(ListBatches { company, status, before, limit }).timeout(PATIENCE).await??;
    Ok(json!({
        "ok": true,
        "batches": batches.iter().map(view::batch).collect::<Vec<_>>(),
        "nextCursor": next.map(|id| cursor::make(api, &scope, id.as_bytes())),
    }))
}

/// `GET /api/admin/legacy/batches/{id}`
pub async fn batch(api: &Api, id: &str) -> Result<Value, ApiError> {
    let unknown = || ApiError::not_found("unknown_batch", format!("there is no batch {id}"));
    let parsed: BatchId = id.parse().map_err(|_| unknown())?;
    let BatchShown { batch, story, anomaly, endings } =
        api.parts.registry.send(ShowBatch(parsed)).timeout(PATIENCE).await??.ok_or_else(unknown)?;
    let mut shown = view::batch(&batch);
    if let Value::Object(fields) = &mut shown {
        fields.insert("story".to_owned(), story.iter().map(view::story_line).collect());
        fields.insert("anomaly".to_owned(), anomaly.as_ref().map_or(Value::Null, view::anomaly));
        fields.insert("failures".to_owned(), json!(endings.failures));
        fields.insert("unreadableLines".to_owned(), json!(endings.unreadable));
    }
    Ok(json!({ "ok": true, "batch": shown }))
}

/// `GET /api/admin/legacy/companies`
pub async fn companies(api: &Api) -> Result<Value, ApiError> {
    let reader = api.shared.reader.clone();
    let companies = super::blocking(move || {
        let companies = reader.companies()?.into_iter();
        companies
            .map(|company| Ok((reader.summary(Some(&company.id))?, company)))
            .collect::<Result<Vec<_>, _>>()
    })
    .await?;
    let shown: Vec<_> = companies.iter().map(|(counts, company)| view::company(company, *counts)).collect();
    Ok(json!({ "ok": true, "companies": shown }))
}

/// `GET /api/admin/legacy/health`
pub async fn health(api: &Api) -> Result<Value, ApiError> {
    let reader = api.shared.reader.clone();
    let anomalies = super::blocking(move || reader.anomalies(ANOMALIES_MAX)).await?;
    let shown = anomalies.iter().map(|(id, anomaly)| {
        let mut shown = view::anomaly(anomaly);
        shown["batchId"] = Value::String(id.to_string());
        shown
    });
    let shown: Vec<Value> = shown.collect();
    Ok(json!({ "ok": true, "health": { "panics": panics::count(), "anomalies": shown } }))
}

/// `GET /api/admin/legacy/switches`
pub fn switches(api: &Api) -> Value {
    let switches = &api.shared.switches;
    json!({ "ok": true, "switches": { "creation": switches.creation(), "polling": switches.polling() } })
}
