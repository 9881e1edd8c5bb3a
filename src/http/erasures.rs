//! Erasing: ordered here, carried out by the eraser, and on record for good.

use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::body::object_or_none;
use super::cursor;
use super::query::Query;
use super::reply::ApiError;
use super::{Api, blocking, takes_in, unknown_company};
use crate::actors::eraser::{Look, Trouble};
use crate::domain::erasure::{Erasure, ErasureState, Subject};
use crate::domain::id::{CompanyId, ErasureId};

/// Batches that are counted for whoever asks what an erasure waits for; of more it is told that there are so many.
const BATCHES_COUNTED: usize = 1000;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompanyBody {
    confirm: Option<String>,
}

/// `POST /api/v1/companies/{companyId}/sessions/{id}/erase`
pub async fn session(
    api: &Api,
    company: CompanyId,
    external_id: &str,
    by: &str,
) -> Result<(StatusCode, Value), ApiError> {
    takes_in(api)?;
    let (id, now) = (ErasureId::new(api.shared.ids.next()), api.shared.clock.now());
    let (external_id, by) = (external_id.to_owned(), by.to_owned());
    crash_point!("erase.order.before_commit");
    let begun = api.shared.store.erase_session(company, external_id, id, by, now).await?;
    crash_point!("erase.order.after_commit");
    // The id is the caller's own words; it is not repeated, so that it is in no log of anybody's.
    begun.map(|erasure| taken(api, id, &erasure)).ok_or_else(|| {
        ApiError::not_found("unknown_session", "there is no such session, and none was erased")
    })
}

/// `POST /api/admin/legacy/companies/{id}/erase`
pub async fn company(api: &Api, text: &str, body: &[u8], by: &str) -> Result<(StatusCode, Value), ApiError> {
    let company: CompanyId = text.parse().map_err(|_| unknown_company(text))?;
    let body: CompanyBody = object_or_none(body, "{\"confirm\": \"<the company's id>\"}")?;
    if body.confirm.as_deref() != Some(company.as_str()) {
        let detail = format!("this cannot be undone: send {{\"confirm\": {:?}}}", company.as_str());
        return Err(ApiError::invalid("not_confirmed", detail));
    }
    let (id, now) = (ErasureId::new(api.shared.ids.next()), api.shared.clock.now());
    crash_point!("erase.company.before_commit");
    let begun = api.shared.store.erase_company(company, id, by.to_owned(), now).await?;
    crash_point!("erase.company.after_commit");
    begun.map(|erasure| taken(api, id, &erasure)).ok_or_else(|| unknown_company(text))
}

fn taken(api: &Api, new: ErasureId, erasure: &Erasure) -> (StatusCode, Value) {
    if erasure.id == new {
        tracing::info!(erasure.id = %new, company.id = %erasure.subject.company(), "a {} is to be erased", erasure.subject.label());
    }
    api.parts.eraser.do_send(Look { compact: false });
    (StatusCode::ACCEPTED, json!({ "ok": true, "erasure": view(erasure) }))
}

/// `GET /api/admin/legacy/erasures?limit=&cursor=`
pub async fn list(api: &Api, query: &Query) -> Result<Value, ApiError> {
    query.only(&["limit", "cursor"])?;
    let limit = query.limit()?;
    let before = cursor::of_query(api, "erasures", query)?.map(ErasureId::from_bytes);
    let reader = api.shared.reader.clone();
    let mut erasures = blocking(move || reader.erasures(before, limit + 1)).await?;
    let more = erasures.len() > limit;
    erasures.truncate(limit);
    let next = erasures.last().filter(|_| more).map(|last| cursor::make(api, "erasures", last.id.as_bytes()));
    let shown: Vec<Value> = erasures.iter().map(view).collect();
    Ok(json!({ "ok": true, "erasures": shown, "nextCursor": next }))
}

/// `GET /api/admin/legacy/erasures/{id}`
pub async fn show(api: &Api, id: &str) -> Result<Value, ApiError> {
    let unknown = || ApiError::not_found("unknown_erasure", format!("there is no erasure {id}"));
    let parsed: ErasureId = id.parse().map_err(|_| unknown())?;
    let reader = api.shared.reader.clone();
    let found = blocking(move || match reader.erasure(parsed)? {
        Some(erasure) => Ok(Some((erasure, reader.batches_to_erase(parsed, None, BATCHES_COUNTED)?.len()))),
        None => Ok(None),
    });
    let (erasure, batches) = found.await?.ok_or_else(unknown)?;
    let mut shown = view(&erasure);
    shown["waiting"] = match erasure.state {
        ErasureState::Running => {
            let trouble = api.parts.eraser.send(Trouble(parsed)).await?;
            json!({ "for": "batches", "batches": batches, "trouble": trouble })
        }
        ErasureState::Compacting => json!({ "for": "compaction" }),
        ErasureState::Done => Value::Null,
    };
    Ok(json!({ "ok": true, "erasure": shown }))
}

fn view(erasure: &Erasure) -> Value {
    let session = match &erasure.subject {
        Subject::Session { session, .. } => Some(session.to_string()),
        Subject::Company(_) => None,
    };
    json!({
        "id": erasure.id.to_string(),
        "what": erasure.subject.label(),
        "companyId": erasure.subject.company().as_str(),
        "sessionId": session,
        "by": erasure.by,
        "orderedAt": erasure.at.to_string(),
        "state": erasure.state.label(),
        "counts": {
            "sessions": erasure.sessions, "requests": erasure.requests, "batches": erasure.batches,
        },
        "doneAt": erasure.done_at.map(|at| at.to_string()),
    })
}
