//! What an operator orders: cancel a batch, let the provider's account go on, and why nothing is sent.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::Api;
use super::body::object_or_none;
use super::reply::ApiError;
use super::view;
use crate::actors::batch::NotCancelled;
use crate::actors::registry::{CancelOf, TryParked};
use crate::domain::batch::{Cancel, Then};
use crate::domain::id::BatchId;

/// An order is stored within this, or the caller hears that it is not known.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CancelBody {
    then: Option<String>,
}

/// `POST /api/admin/legacy/batches/{id}/cancel`
pub async fn cancel(api: &Api, id: &str, body: &[u8], by: &str) -> Result<Value, ApiError> {
    let unknown = || ApiError::not_found("unknown_batch", format!("there is no batch {id}"));
    let parsed: BatchId = id.parse().map_err(|_| unknown())?;
    let body: CancelBody = object_or_none(body, "{\"then\": \"requeue\"} or \"end\"")?;
    let then = match body.then.as_deref() {
        None => Then::Requeue,
        Some(word) => word.parse().map_err(|()| {
            ApiError::invalid("unknown_then", format!("{word:?} is neither \"requeue\" nor \"end\""))
        })?,
    };
    let cancel = Cancel { by: by.to_owned(), at: api.shared.clock.now(), then };
    let batch = api.parts.registry.send(CancelOf { id: parsed, cancel }).timeout(PATIENCE).await?;
    match batch {
        Ok(batch) => Ok(json!({ "ok": true, "batch": view::batch(&batch) })),
        Err(NotCancelled::Unknown) => Err(unknown()),
        Err(NotCancelled::Store(err)) => Err(err.into()),
        Err(err @ NotCancelled::Over) => Err(conflict("batch_over", &err)),
        Err(err @ NotCancelled::Ordered(_)) => Err(conflict("already_cancelled", &err)),
    }
}

fn conflict(code: &'static str, err: &NotCancelled) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, code, err.to_string())
}

/// `GET /api/admin/legacy/provider`: whether the account works, what holds everything up, and the room for each model.
pub async fn provider(api: &Api) -> Result<Value, ApiError> {
    let (reader, now) = (api.shared.reader.clone(), api.shared.clock.now());
    let rooms = super::blocking(move || reader.rooms()).await?;
    let ours = api.shared.identity.key();
    let rooms: Vec<Value> = rooms
        .iter()
        .filter(|(provider, _, _)| *provider == ours)
        .map(|(_, model, room)| {
            json!({
                "model": model,
                "reservedTokens": room.reserved,
                "enqueuedTokens": room.enqueued,
                "learnedLimit": room.limit(now),
                "gate": if room.closed.is_some() { "closed" } else { "open" },
                "closedUntil": room.closed.map(|closed| closed.until.to_string()),
                "refusalsInARow": room.closed.map_or(0, |closed| closed.times),
                "probeBatchId": room.closed.and_then(|closed| closed.probe).map(|batch| batch.to_string()),
            })
        })
        .collect();
    let paused = api.shared.account.paused().map(|pause| {
        json!({
            "cause": pause.cause.label(),
            "why": pause.why,
            "since": pause.since.to_string(),
            "tried": pause.tried,
        })
    });
    let rests = api.shared.account.rests(api.shared.clock.as_ref());
    let waits = api.shared.pace.waits(api.shared.clock.as_ref()).map(|waits| {
        json!({
            "batches": waits.batches,
            "batchesPerHour": waits.per_hour,
            "until": now.plus(waits.left).to_string(),
        })
    });
    let (used, per_hour) = api.shared.pace.used(api.shared.clock.as_ref());
    let (age_max, age_now) = (api.shared.limits.age_max, api.shared.limits_now().age_max);
    let standing = api.shared.condition.standing();
    let hindrances: Vec<Value> =
        standing.iter().map(|(hindrance, why)| json!({ "code": hindrance.code(), "why": why })).collect();
    Ok(json!({
        "ok": true,
        "provider": { "kind": api.shared.identity.kind, "baseUrl": api.shared.identity.base_url },
        "paused": paused,
        "rateLimitedUntil": rests.map(|wait| now.plus(wait).to_string()),
        "waits": waits,
        "batchesLastHour": used,
        "batchesPerHour": per_hour,
        "maxAge": humantime::format_duration(age_max).to_string(),
        "maxAgeNow": humantime::format_duration(age_now).to_string(),
        "hindrances": hindrances,
        "rooms": rooms,
    }))
}

/// `POST /api/admin/legacy/provider/resume`
pub fn resume(api: &Api) -> Value {
    let was = api.shared.account.resume(api.shared.clock.as_ref());
    api.parts.registry.do_send(TryParked);
    json!({ "ok": true, "wasPaused": was })
}
