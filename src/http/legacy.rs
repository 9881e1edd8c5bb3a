//! The legacy admin API: the views are asked of the registry, requeueing of the intake.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;
use uuid::Uuid;
use warp::http::StatusCode;

use super::Api;
use super::query::Query;
use super::reply::ApiError;
use super::view;
use crate::actors::intake::Requeue;
use crate::actors::registry::{ListBatches, ListRequests, ShowBatch, ShowRequest, Summary};
use crate::domain::batch::BatchStatus;
use crate::domain::id::{BatchId, CompanyId, RequestId};
use crate::domain::request::{RequestStatus, Source};
use crate::panics;
use crate::store::RequestFilter;

/// A view that takes longer is given up with 503.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ids in one call of requeue.
pub const REQUEUE_IDS_MAX: usize = 10_000;

/// `GET /api/admin/legacy/summary`
pub async fn summary(api: &Api, query: &Query) -> Result<Value, ApiError> {
    query.only(&["companyId"])?;
    let company = query.company("companyId")?;
    let counts = api.registry.send(Summary { company }).timeout(PATIENCE).await??;
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
    let before = match query.get("cursor") {
        Some(cursor) => Some(RequestId::from_bytes(open_cursor(api, &scope, cursor)?)),
        None => None,
    };
    let filter = RequestFilter { status, company, batch };
    let (requests, next) =
        api.registry.send(ListRequests { filter, before, limit }).timeout(PATIENCE).await??;
    Ok(json!({
        "ok": true,
        "requests": requests.iter().map(view::request).collect::<Vec<_>>(),
        "nextCursor": next.map(|id| cursor(api, &scope, id.as_bytes())),
    }))
}

/// `GET /api/admin/legacy/requests/{id}`
pub async fn request(api: &Api, id: &str) -> Result<Value, ApiError> {
    let unknown = || ApiError::not_found("unknown_request", format!("there is no request {id}"));
    let parsed: RequestId = id.parse().map_err(|_| unknown())?;
    let request = api.registry.send(ShowRequest(parsed)).timeout(PATIENCE).await??.ok_or_else(unknown)?;
    let (result, analysis) = {
        let (reader, source) = (api.shared.reader.clone(), request.source.clone());
        super::blocking(move || {
            let analysis = match source {
                Source::Session { session, version, .. } => reader.analysis(session, version)?,
                Source::Generic { .. } => None,
            };
            Ok((reader.result(parsed)?, analysis))
        })
        .await?
    };
    let mut shown = view::request(&request);
    if let Value::Object(fields) = &mut shown {
        let json_of = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap_or(Value::Null);
        fields.insert("history".to_owned(), request.history.iter().map(view::attempt).collect());
        fields.insert("result".to_owned(), result.as_deref().map_or(Value::Null, json_of));
        let analysis = analysis.as_deref().map_or(Value::Null, |text| json_of(text.as_bytes()));
        fields.insert("analysis".to_owned(), analysis);
    }
    Ok(json!({ "ok": true, "request": shown }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RequeueBody {
    request_ids: Vec<String>,
}

/// `POST /api/admin/legacy/requests/requeue`
pub async fn requeue(api: &Api, body: &[u8]) -> Result<Value, ApiError> {
    let value: Value = serde_json::from_slice(body).map_err(|err| {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not JSON: {err}"))
    })?;
    let body: RequeueBody = serde_json::from_value(value).map_err(|err| {
        ApiError::invalid("invalid_body", format!("expected {{\"requestIds\": [\"…\"]}}: {err}"))
    })?;
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
    let counts = api.intake.send(Requeue(known)).await??;
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
    let before = match query.get("cursor") {
        Some(cursor) => Some(BatchId::from_bytes(open_cursor(api, &scope, cursor)?)),
        None => None,
    };
    let (batches, next) =
        api.registry.send(ListBatches { company, status, before, limit }).timeout(PATIENCE).await??;
    Ok(json!({
        "ok": true,
        "batches": batches.iter().map(view::batch).collect::<Vec<_>>(),
        "nextCursor": next.map(|id| cursor(api, &scope, id.as_bytes())),
    }))
}

/// `GET /api/admin/legacy/batches/{id}`
pub async fn batch(api: &Api, id: &str) -> Result<Value, ApiError> {
    let unknown = || ApiError::not_found("unknown_batch", format!("there is no batch {id}"));
    let parsed: BatchId = id.parse().map_err(|_| unknown())?;
    let (batch, story) =
        api.registry.send(ShowBatch(parsed)).timeout(PATIENCE).await??.ok_or_else(unknown)?;
    let mut shown = view::batch(&batch);
    if let Value::Object(fields) = &mut shown {
        fields.insert("story".to_owned(), story.iter().map(view::story_line).collect());
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
pub fn health() -> Value {
    json!({ "ok": true, "health": { "panics": panics::count() } })
}

/// `GET /api/admin/legacy/switches`
pub fn switches(api: &Api) -> Value {
    let switches = &api.shared.switches;
    json!({ "ok": true, "switches": { "creation": switches.creation(), "polling": switches.polling() } })
}

type Signature = Hmac<Sha256>;

const CURSOR_SIGNATURE: usize = 16;

/// A cursor: the last id of the page, signed together with what the list was asked for.
pub(super) fn cursor(api: &Api, scope: &str, id: &[u8; 16]) -> String {
    seal(api.shared.store.instance(), scope, id)
}

pub(super) fn seal(instance: Uuid, scope: &str, id: &[u8; 16]) -> String {
    let mut bytes = id.to_vec();
    bytes.extend(signature(instance, scope, id).iter().take(CURSOR_SIGNATURE));
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn open_cursor(api: &Api, scope: &str, cursor: &str) -> Result<[u8; 16], ApiError> {
    unseal(api.shared.store.instance(), scope, cursor)
}

pub(super) fn unseal(instance: Uuid, scope: &str, cursor: &str) -> Result<[u8; 16], ApiError> {
    let bad = || {
        let detail = "this cursor is not from this list: take nextCursor as it is, with the same filter, or start anew";
        ApiError::invalid("bad_cursor", detail)
    };
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| bad())?;
    let (id, signed) = bytes.split_first_chunk::<16>().ok_or_else(bad)?;
    let expected = signature(instance, scope, id);
    let expected = expected.get(..CURSOR_SIGNATURE).unwrap_or_default();
    if bool::from(subtle::ConstantTimeEq::ct_eq(signed, expected)) { Ok(*id) } else { Err(bad()) }
}

fn signature(instance: Uuid, scope: &str, id: &[u8; 16]) -> Vec<u8> {
    // Not a secret worth much: the signature keeps mistakes out, the token keeps people out.
    let key = format!("cursor/{instance}");
    match Signature::new_from_slice(key.as_bytes()) {
        Ok(mut mac) => {
            mac.update(scope.as_bytes());
            mac.update(id);
            mac.finalize().into_bytes().to_vec()
        }
        // HMAC takes keys of every length.
        Err(_) => Vec::new(),
    }
}
