//! Companies: made, shown, changed, suspended. None is removed but by an erasure.

use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::body::{Object, object_or_none};
use super::reply::ApiError;
use super::retention::RetentionBody;
use super::{Api, blocking, takes_in, unknown_company, view};
use crate::domain::company::{Company, CompanyChange};
use crate::domain::id::CompanyId;

/// Longer names and models are refused.
const TEXT_CHARS_MAX: usize = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewBody {
    id: String,
    name: Option<String>,
    model: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeBody {
    name: Option<String>,
    model: Option<String>,
    suspended: Option<bool>,
    retention: Option<Object<RetentionBody>>,
}

/// `POST /api/admin/legacy/companies`
pub async fn create(api: &Api, body: &[u8]) -> Result<(StatusCode, Value), ApiError> {
    let body: NewBody = object_or_none(body, "{\"id\": \"acme\", \"name\"?: \"…\", \"model\"?: \"…\"}")?;
    let id: CompanyId = body
        .id
        .parse()
        .map_err(|_| ApiError::invalid("bad_company_id", "id must be 1 to 64 of a-z A-Z 0-9 _ -"))?;
    let company = Company {
        name: text("name", body.name)?.unwrap_or_else(|| id.to_string()),
        model: text("model", body.model)?.unwrap_or_else(|| api.shared.model_default.clone()),
        suspended: false,
        budget_micros: None,
        id: id.clone(),
        retention: Default::default(),
    };
    crash_point!("company.new.before_commit");
    let is_new = api.shared.store.create_company(company.clone()).await?;
    crash_point!("company.new.after_commit");
    if !is_new {
        let detail = format!("there is a company {:?} already; change it with PUT", id.as_str());
        return Err(ApiError::new(StatusCode::CONFLICT, "company_exists", detail));
    }
    tracing::info!(company.id = %id, "company {id} is new");
    Ok((StatusCode::CREATED, json!({ "ok": true, "company": view::company(&company, [0; 4]) })))
}

/// `GET /api/admin/legacy/companies/{id}`
pub async fn show(api: &Api, id: &str) -> Result<Value, ApiError> {
    let parsed: CompanyId = id.parse().map_err(|_| unknown_company(id))?;
    let reader = api.shared.reader.clone();
    let found = blocking(move || match reader.company(&parsed)? {
        Some(company) => Ok(Some((reader.summary(Some(&parsed))?, company))),
        None => Ok(None),
    });
    let (counts, company) = found.await?.ok_or_else(|| unknown_company(id))?;
    Ok(json!({ "ok": true, "company": view::company(&company, counts) }))
}

/// `PUT /api/admin/legacy/companies/{id}`: what is left out stays.
pub async fn change(api: &Api, id: &str, body: &[u8]) -> Result<Value, ApiError> {
    let body: ChangeBody = object_or_none(
        body,
        "{\"name\"?: \"…\", \"model\"?: \"…\", \"suspended\"?: true, \"retention\"?: {\"complete\"?: \"90d\"}}",
    )?;
    let change = CompanyChange {
        // It has a call of its own.
        budget_micros: None,
        name: text("name", body.name)?,
        model: text("model", body.model)?,
        suspended: body.suspended,
        retention: body.retention.map(|Object(body)| body.read()).transpose()?,
    };
    store(api, id, change).await
}

/// `POST /api/admin/legacy/companies/{id}/suspend` and `…/resume`
pub async fn suspend(api: &Api, id: &str, suspended: bool) -> Result<Value, ApiError> {
    takes_in(api)?;
    store(api, id, CompanyChange { suspended: Some(suspended), ..CompanyChange::default() }).await
}

async fn store(api: &Api, id: &str, change: CompanyChange) -> Result<Value, ApiError> {
    let parsed: CompanyId = id.parse().map_err(|_| unknown_company(id))?;
    crash_point!("company.before_commit");
    let changed = api.shared.store.change_company(parsed, change).await?;
    crash_point!("company.after_commit");
    let company = changed.ok_or_else(|| unknown_company(id))?;
    tracing::info!(company.id = %company.id, suspended = company.suspended, "company {id} was changed");
    show(api, id).await
}

fn text(name: &'static str, text: Option<String>) -> Result<Option<String>, ApiError> {
    match text {
        Some(text) if text.trim().is_empty() || text.chars().count() > TEXT_CHARS_MAX => {
            let detail = format!("{name} must be a text of 1 to {TEXT_CHARS_MAX} characters");
            Err(ApiError::invalid("bad_text", detail))
        }
        text => Ok(text),
    }
}
