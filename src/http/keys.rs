//! Access keys: made and shown once, listed without themselves, rotated, revoked.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::body::object_or_none;
use super::reply::ApiError;
use super::{Api, auth, blocking, takes_in};
use crate::domain::id::{CompanyId, KeyId, Timestamp};
use crate::store::{Role, StoredToken, TokenError};

/// A key that was replaced works on for no longer than this.
const OVERLAP_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longer labels are refused.
const LABEL_CHARS_MAX: usize = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewBody {
    #[serde(default)]
    label: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewForAllBody {
    role: String,
    #[serde(default)]
    label: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateBody {
    overlap: Option<String>,
}

/// `GET /api/v1/companies/{companyId}/keys` and `GET /api/admin/legacy/keys`
pub async fn list(api: &Api, company: Option<CompanyId>) -> Result<Value, ApiError> {
    let reader = api.shared.reader.clone();
    let tokens = blocking(move || reader.tokens(company.as_ref())).await?;
    let now = api.shared.clock.now();
    Ok(json!({ "ok": true, "keys": tokens.iter().map(|token| view(token, now)).collect::<Vec<_>>() }))
}

/// `POST /api/v1/companies/{companyId}/keys`
pub async fn create(api: &Api, company: CompanyId, body: &[u8]) -> Result<(StatusCode, Value), ApiError> {
    let body: NewBody = object_or_none(body, "{\"label\"?: \"…\"}")?;
    make(api, Role::Company(company), body.label).await
}

/// `POST /api/admin/legacy/keys`
pub async fn create_for_all(api: &Api, body: &[u8]) -> Result<(StatusCode, Value), ApiError> {
    let body: NewForAllBody = object_or_none(body, "{\"role\": \"viewer\" or \"admin\", \"label\"?: \"…\"}")?;
    let role = match body.role.as_str() {
        "admin" => Role::Admin,
        "viewer" => Role::Viewer,
        other => {
            let detail = format!(
                "{other:?} is neither \"viewer\" nor \"admin\"; a company's keys are made at \
                 /api/v1/companies/{{companyId}}/keys"
            );
            return Err(ApiError::invalid("unknown_role", detail));
        }
    };
    make(api, role, body.label).await
}

async fn make(api: &Api, role: Role, label: String) -> Result<(StatusCode, Value), ApiError> {
    if label.chars().count() > LABEL_CHARS_MAX {
        let detail = format!("label may have {LABEL_CHARS_MAX} characters at most");
        return Err(ApiError::invalid("bad_label", detail));
    }
    let (key, now) = (new_key()?, api.shared.clock.now());
    let token = StoredToken::new(KeyId::new(api.shared.ids.next()), auth::hash(&key), role, label, now);
    crash_point!("key.before_commit");
    api.shared.store.create_token(token.clone(), now).await?;
    crash_point!("key.after_commit");
    tracing::info!(key.id = %token.id, role = token.role.label(), "key {} is new", token.id);
    Ok((StatusCode::CREATED, shown_once(&token, &key, now)))
}

/// `POST /api/v1/companies/{companyId}/keys/{id}/rotate` and `POST /api/admin/legacy/keys/{id}/rotate`
pub async fn rotate(api: &Api, company: Option<CompanyId>, id: &str, body: &[u8]) -> Result<Value, ApiError> {
    let body: RotateBody = object_or_none(body, "{\"overlap\"?: \"24h\"}")?;
    let overlap = match body.overlap {
        None => Duration::ZERO,
        Some(text) => match humantime::parse_duration(text.trim()) {
            Ok(overlap) if overlap <= OVERLAP_MAX => overlap,
            Ok(_) | Err(_) => {
                let detail = format!("{text:?} is no time like \"24h\", of at most 30 days");
                return Err(ApiError::invalid("bad_overlap", detail));
            }
        },
    };
    let old: KeyId = id.parse().map_err(|_| TokenError::Unknown)?;
    let (key, now) = (new_key()?, api.shared.clock.now());
    let new = (KeyId::new(api.shared.ids.next()), auth::hash(&key));
    crash_point!("key.rotate.before_commit");
    let token = api.shared.store.rotate_token(company, old, new, overlap, now).await?;
    crash_point!("key.rotate.after_commit");
    tracing::info!(key.id = %token.id, "key {old} is replaced by {}", token.id);
    Ok(shown_once(&token, &key, now))
}

/// `DELETE /api/v1/companies/{companyId}/keys/{id}` and `DELETE /api/admin/legacy/keys/{id}`
pub async fn revoke(api: &Api, company: Option<CompanyId>, id: &str) -> Result<Value, ApiError> {
    takes_in(api)?;
    let id: KeyId = id.parse().map_err(|_| TokenError::Unknown)?;
    let (now, another) = (api.shared.clock.now(), api.auth.has_own_admin());
    crash_point!("key.revoke.before_commit");
    let token = api.shared.store.revoke_token(company, id, another, now).await?;
    crash_point!("key.revoke.after_commit");
    tracing::info!(key.id = %id, "key {id} is revoked");
    Ok(json!({ "ok": true, "key": view(&token, now) }))
}

fn new_key() -> Result<String, ApiError> {
    auth::new_token().map_err(|err| {
        tracing::error!(error = %err, "the system gives no random numbers");
        ApiError::unavailable("no key can be made at the moment")
    })
}

fn shown_once(token: &StoredToken, key: &str, now: Timestamp) -> Value {
    let mut shown = view(token, now);
    if let Value::Object(fields) = &mut shown {
        fields.insert("key".to_owned(), Value::from(key));
    }
    json!({ "ok": true, "key": shown })
}

/// A key as people see it: never itself, nor its hash.
fn view(token: &StoredToken, now: Timestamp) -> Value {
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    json!({
        "id": token.id.to_string(),
        "role": token.role.label(),
        "companyId": token.role.company().map(CompanyId::as_str),
        "label": token.label,
        "createdAt": token.created_at.to_string(),
        "endsAt": time(token.ends_at),
        "lastUsedOn": time(token.used_at).map(|at| at.chars().take(10).collect::<String>()),
        "live": token.is_live(now),
    })
}

impl From<TokenError> for ApiError {
    fn from(err: TokenError) -> Self {
        let detail = err.to_string();
        match err {
            TokenError::TooMany => Self::new(StatusCode::CONFLICT, "too_many_keys", detail),
            TokenError::Unknown => Self::not_found("unknown_key", detail),
            TokenError::Ended => Self::new(StatusCode::CONFLICT, "key_ended", detail),
            TokenError::Last => Self::new(StatusCode::CONFLICT, "last_admin_key", detail),
            TokenError::Store(err) => err.into(),
        }
    }
}
