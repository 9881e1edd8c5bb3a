//! What a company reads of its own: lists of requests and sessions, and single ones. A foreign id is like one that is
//! not there.

use serde_json::{Value, json};

use super::query::Query;
use super::reply::ApiError;
use super::{Api, blocking, cursor, filters, timeline, view, waits};
use crate::domain::id::{CompanyId, RequestId, SessionId};
use crate::domain::request::Request;
use crate::store::{SessionFound, StoreError, StoreReader};

/// `GET /api/v1/companies/{companyId}/requests`
pub async fn requests(api: &Api, company: CompanyId, query: &Query) -> Result<Value, ApiError> {
    query.only(&[&filters::OF_REQUESTS[..], &["limit", "cursor"]].concat())?;
    let scope = filters::scope("requests_of", &company, query, &filters::OF_REQUESTS);
    let before = cursor::of_query(api, &scope, query)?.map(RequestId::from_bytes);
    let (filter, limit) = (filters::requests(company, query)?, query.limit()?);
    let reader = api.shared.reader.clone();
    let (found, next) = blocking(move || reader.requests_of(&filter, before, limit)).await?;
    Ok(json!({
        "ok": true,
        "requests": found.iter().map(view::request).collect::<Vec<_>>(),
        "nextCursor": next.map(|id| cursor::make(api, &scope, id.as_bytes())),
    }))
}

/// `GET /api/v1/companies/{companyId}/requests/{id}`
pub async fn request(api: &Api, company: CompanyId, id: &str) -> Result<Value, ApiError> {
    let (reader, asked) = (api.shared.reader.clone(), id.to_owned());
    let shown = blocking(move || {
        let found = find_request(&reader, &company, &asked)?;
        found.map(|request| view::whole_request(&reader, &request)).transpose()
    });
    let shown = shown.await?.ok_or_else(|| unknown_request(id))?;
    Ok(json!({ "ok": true, "request": shown }))
}

/// `GET /api/v1/companies/{companyId}/requests/{id}/timeline`
pub async fn timeline(api: &Api, company: CompanyId, id: &str) -> Result<Value, ApiError> {
    let (shared, asked) = (api.shared.clone(), id.to_owned());
    let shown = blocking(move || {
        let found = find_request(&shared.reader, &company, &asked)?;
        found.map(|request| timeline::of(&shared, &request)).transpose()
    });
    let shown = shown.await?.ok_or_else(|| unknown_request(id))?;
    Ok(json!({ "ok": true, "timeline": shown }))
}

/// `GET /api/admin/legacy/requests/{id}/timeline`
pub async fn timeline_for_operators(api: &Api, id: &str) -> Result<Value, ApiError> {
    let parsed: RequestId = id.parse().map_err(|_| unknown_request(id))?;
    let shared = api.shared.clone();
    let shown = blocking(move || {
        shared.reader.request(parsed)?.map(|request| timeline::of(&shared, &request)).transpose()
    });
    let shown = shown.await?.ok_or_else(|| unknown_request(id))?;
    Ok(json!({ "ok": true, "timeline": shown }))
}

/// `GET /api/v1/companies/{companyId}/sessions`
pub async fn sessions(api: &Api, company: CompanyId, query: &Query) -> Result<Value, ApiError> {
    query.only(&[&filters::OF_SESSIONS[..], &["limit", "cursor"]].concat())?;
    let scope = filters::scope("sessions_of", &company, query, &filters::OF_SESSIONS);
    let before = cursor::of_query(api, &scope, query)?.map(SessionId::from_bytes);
    let (filter, limit) = (filters::sessions(company, query)?, query.limit()?);
    let reader = api.shared.reader.clone();
    let (found, next) = blocking(move || reader.sessions_of(&filter, before, limit)).await?;
    Ok(json!({
        "ok": true,
        "sessions": found.iter().map(view::session).collect::<Vec<_>>(),
        "nextCursor": next.map(|id| cursor::make(api, &scope, id.as_bytes())),
    }))
}

/// `GET /api/v1/companies/{companyId}/sessions/{id}`
pub async fn session(api: &Api, company: CompanyId, id: &str, query: &Query) -> Result<Value, ApiError> {
    query.only(&["include"])?;
    let with_messages = includes_messages(query)?;
    let (shared, asked) = (api.shared.clone(), id.to_owned());
    let shown = blocking(move || {
        let Some(found) = find_session(&shared.reader, &company, &asked)? else { return Ok(None) };
        let mut shown = whole_session(&shared.reader, &found, with_messages)?;
        let waiting = match (waits::of_session(&found.session), &found.request) {
            (Some(waiting), _) => Some(waiting),
            (None, Some(request)) => timeline::waiting(&shared, request)?,
            (None, None) => None,
        };
        if let Value::Object(fields) = &mut shown {
            let waiting = waiting.map_or(Value::Null, |waiting| waiting.view());
            fields.insert("waiting".to_owned(), waiting);
        }
        Ok(Some(shown))
    });
    let unknown = || ApiError::not_found("unknown_session", format!("there is no session {id}"));
    Ok(json!({ "ok": true, "session": shown.await?.ok_or_else(unknown)? }))
}

/// Whether `include` asks for the messages.
pub(super) fn includes_messages(query: &Query) -> Result<bool, ApiError> {
    match query.get("include") {
        None => Ok(false),
        Some("messages") => Ok(true),
        Some(_) => Err(ApiError::invalid("unknown_include", "include can only be messages")),
    }
}

/// A session, with its messages where they are wanted.
pub(super) fn whole_session(
    reader: &StoreReader,
    found: &SessionFound,
    with_messages: bool,
) -> Result<Value, StoreError> {
    let mut shown = view::session(found);
    if let (true, Value::Object(fields)) = (with_messages, &mut shown) {
        let content = reader.content(found.session.id, found.session.version)?;
        let messages = content.map(|content| content.messages).unwrap_or_default();
        fields.insert("conversation".to_owned(), messages.iter().map(view::message).collect());
    }
    Ok(shown)
}

fn unknown_request(id: &str) -> ApiError {
    ApiError::not_found("unknown_request", format!("there is no request {id}"))
}

/// A company's request by our id, else by the client's own.
fn find_request(reader: &StoreReader, company: &CompanyId, id: &str) -> Result<Option<Request>, StoreError> {
    let own = |request: &Request| request.group.company == *company;
    let ours = match id.parse::<RequestId>() {
        Ok(id) => reader.request(id)?.filter(own),
        Err(_) => None,
    };
    match ours {
        Some(request) => Ok(Some(request)),
        None => Ok(reader.request_by_client_id(company, id)?.filter(own)),
    }
}

/// A company's session by the id that its export knows, else by ours.
fn find_session(
    reader: &StoreReader,
    company: &CompanyId,
    id: &str,
) -> Result<Option<SessionFound>, StoreError> {
    let session = match (reader.session_by_external_id(company, id)?, id.parse::<SessionId>()) {
        (None, Ok(id)) => reader.session(id)?.filter(|session| session.company == *company),
        (session, _) => session,
    };
    session.map(|session| reader.with_outcome(session)).transpose()
}
