//! What a company reads of its own: lists of requests and sessions, and single ones. A foreign id is like one that is
//! not there.

use serde_json::{Value, json};

use super::query::Query;
use super::reply::{Answer, ApiError};
use super::{Api, blocking, cursor, filters, large, timeline, view, waits};
use crate::domain::analysis::Misfit;
use crate::domain::id::{CompanyId, RequestId, SessionId};
use crate::domain::request::Request;
use crate::domain::session::Session;
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
pub async fn request(api: &Api, company: CompanyId, id: &str, query: &Query) -> Result<Answer, ApiError> {
    query.only(&["include"])?;
    let include = query.include(OF_REQUEST)?;
    let (reader, asked) = (api.shared.reader.clone(), id.to_owned());
    let shown = large(api, move || {
        let Some(request) = find_request(&reader, &company, &asked)? else { return Ok(None) };
        let mut shown = view::whole_request(&reader, &request)?;
        add_to_request(&reader, &request, &include, &mut shown.fields)?;
        shown.reply().map(Some)
    });
    let shown = shown.await?.ok_or_else(|| unknown_request(id))?;
    Ok(Answer::json(shown))
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
    query.only(&["include", "version"])?;
    let with_messages = !query.include(&["messages"])?.is_empty();
    let version = match query.get("version") {
        None => None,
        Some(text) => Some(text.parse::<u32>().map_err(|_| {
            ApiError::invalid("bad_version", "version must be the number of one, as in version=1")
        })?),
    };
    let (shared, asked) = (api.shared.clone(), id.to_owned());
    let shown = blocking(move || {
        let Some(found) = find_session(&shared.reader, &company, &asked)? else { return Ok(None) };
        if let Some(version) = version.filter(|version| *version != found.session.version) {
            let known = (1..found.session.version).contains(&version);
            return match known {
                true => older_version(&shared.reader, &found, version, with_messages).map(Some),
                false => Ok(None),
            };
        }
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
    let unknown = || match version {
        None => ApiError::not_found("unknown_session", format!("there is no session {id}")),
        Some(version) => ApiError::not_found(
            "unknown_session",
            format!("there is no session {id} with a version {version}"),
        ),
    };
    Ok(json!({ "ok": true, "session": shown.await?.ok_or_else(unknown)? }))
}

/// What may be shown of a request besides: what was asked, and answers that did not fit.
pub(super) const OF_REQUEST: &[&str] = &["body", "misfits"];
/// What may be shown of sessions besides: what was said, and how they were before.
pub(super) const OF_SESSIONS: &[&str] = &["messages", "versions"];

/// Adds to a request what is shown only where it is asked for.
pub(super) fn add_to_request(
    reader: &StoreReader,
    request: &Request,
    include: &[&str],
    shown: &mut Value,
) -> Result<(), StoreError> {
    if include.contains(&"body") {
        // That of an analysis is made of its session each time.
        shown["body"] = view::json_of(reader.body(request.id)?.as_deref());
    }
    if include.contains(&"misfits") {
        let mut misfits = Vec::new();
        for number in 0..request.misfits {
            if let Some(Misfit { answer, error }) = reader.misfit(request.id, number)? {
                misfits.push(json!({ "answer": answer, "error": error }));
            }
        }
        shown["misfits"] = Value::Array(misfits);
    }
    Ok(())
}

/// A session as it was in an earlier version; what became of its requests since is not told with it.
pub(super) fn older_version(
    reader: &StoreReader,
    found: &SessionFound,
    version: u32,
    with_messages: bool,
) -> Result<Value, StoreError> {
    let content = reader.content(found.session.id, version)?;
    let (facts, messages) = content.map(|content| (content.facts, content.messages)).unwrap_or_default();
    let session = Session {
        version,
        facts,
        message_count: u32::try_from(messages.len()).unwrap_or(u32::MAX),
        request: None,
        ..found.session.clone()
    };
    let analysis = reader.analysis(session.id, version)?;
    let mut shown = view::session(&SessionFound { session, analysis, request: None, fetch: None });
    shown["state"] = Value::from("superseded");
    shown["changedAt"] = Value::Null;
    if with_messages {
        shown["conversation"] = messages.iter().map(view::message).collect();
    }
    Ok(shown)
}

/// A session, with its messages where they are wanted.
pub(super) fn whole_session(
    reader: &StoreReader,
    found: &SessionFound,
    with_messages: bool,
) -> Result<Value, StoreError> {
    let mut shown = view::session(found);
    if with_messages {
        let content = reader.content(found.session.id, found.session.version)?;
        let messages = content.map(|content| content.messages).unwrap_or_default();
        shown["conversation"] = messages.iter().map(view::message).collect();
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
