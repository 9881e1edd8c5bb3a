//! What is removed by its age: what is set, and how that does.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::reply::ApiError;
use crate::actors::eraser::HowAging;
use crate::domain::retention::{Keep, Retention};

/// What a company says for itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionBody {
    complete: Option<String>,
    failed: Option<String>,
    sessions: Option<String>,
}

impl RetentionBody {
    /// The same, checked.
    pub fn read(self) -> Result<Retention, ApiError> {
        Ok(Retention {
            complete: keep("complete", self.complete)?,
            failed: keep("failed", self.failed)?,
            sessions: keep("sessions", self.sessions)?,
        })
    }
}

fn keep(name: &'static str, text: Option<String>) -> Result<Option<Keep>, ApiError> {
    let bad = || ApiError::invalid("bad_retention", format!("retention.{name}: expected {}", Keep::EXPECTED));
    text.map(|text| text.parse().map_err(|()| bad())).transpose()
}

/// How long each kind is kept, as it was said.
pub fn view(retention: &Retention) -> Value {
    let text = |keep: Option<Keep>| keep.map(|keep| keep.to_string());
    json!({
        "complete": text(retention.complete),
        "failed": text(retention.failed),
        "sessions": text(retention.sessions),
    })
}

/// `GET /api/admin/legacy/retention`
pub async fn show(api: &Api) -> Result<Value, ApiError> {
    let aging = api.parts.eraser.send(HowAging).await?;
    Ok(json!({
        "ok": true,
        "retention": view(&api.shared.retention),
        "running": aging.running,
        "lastBeganAt": aging.began_at.map(|at| at.to_string()),
        "lastEndedAt": aging.ended_at.map(|at| at.to_string()),
        "removed": { "requests": aging.removed.requests, "sessions": aging.removed.sessions },
    }))
}
