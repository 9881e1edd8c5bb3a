//! The filters of a company's lists and exports, from the query of a call.

use std::str::FromStr;

use serde_json::json;

use super::query::Query;
use super::reply::ApiError;
use crate::domain::analysis::{Category, Sentiment};
use crate::domain::id::{CompanyId, Timestamp};
use crate::domain::request::{Endpoint, FailureClass, RequestStatus};
use crate::domain::session::SessionState;
use crate::store::{RequestsOf, SessionsOf};

/// What a list of requests can be asked for.
pub const OF_REQUESTS: [&str; 8] =
    ["status", "from", "to", "endpoint", "model", "error", "class", "sessionId"];
/// What a list of sessions can be asked for.
pub const OF_SESSIONS: [&str; 8] =
    ["state", "from", "to", "sentiment", "category", "language", "country", "error"];

/// Which requests of a company a call asks for.
pub fn requests(company: CompanyId, query: &Query) -> Result<RequestsOf, ApiError> {
    let (from, to) = times(query)?;
    Ok(RequestsOf {
        status: word(query, "status", "unknown_status", &RequestStatus::ALL.map(RequestStatus::label))?,
        from,
        to,
        endpoint: word(query, "endpoint", "unknown_endpoint", &Endpoint::ALL.map(Endpoint::path))?,
        model: query.get("model").map(str::to_owned),
        error: query.get("error").map(str::to_owned),
        class: word(query, "class", "unknown_class", &FailureClass::ALL.map(FailureClass::label))?,
        session: query.parsed("sessionId")?,
        company,
    })
}

/// Which sessions of a company a call asks for.
pub fn sessions(company: CompanyId, query: &Query) -> Result<SessionsOf, ApiError> {
    let (from, to) = times(query)?;
    let sentiments: Vec<_> = Sentiment::ALL.iter().map(|word| word.label()).collect();
    let categories: Vec<_> = Category::ALL.iter().map(|word| word.label()).collect();
    Ok(SessionsOf {
        state: word(query, "state", "unknown_state", &SessionState::ALL.map(SessionState::label))?,
        from,
        to,
        sentiment: label(query, "sentiment", "unknown_sentiment", &sentiments)?,
        category: label(query, "category", "unknown_category", &categories)?,
        language: query.get("language").map(str::to_owned),
        country: query.get("country").map(str::to_owned),
        error: query.get("error").map(str::to_owned),
        company,
    })
}

/// What a cursor of such a list is signed with: another filter, or another company, is another list.
pub fn scope(list: &str, company: &CompanyId, query: &Query, keys: &[&str]) -> String {
    let values: Vec<_> = keys.iter().map(|key| query.get(key)).collect();
    json!([list, company.as_str(), values]).to_string()
}

fn times(query: &Query) -> Result<(Option<Timestamp>, Option<Timestamp>), ApiError> {
    let (from, to) = (query.parsed::<Timestamp>("from")?, query.parsed::<Timestamp>("to")?);
    if from.zip(to).is_some_and(|(from, to)| from >= to) {
        return Err(ApiError::invalid("bad_range", "from must be before to, which is not included"));
    }
    Ok((from, to))
}

fn word<T: FromStr>(
    query: &Query,
    key: &str,
    code: &'static str,
    known: &[&str],
) -> Result<Option<T>, ApiError> {
    let parse = |text: &str| text.parse().map_err(|_| unknown(key, code, text, known));
    query.get(key).map(parse).transpose()
}

/// A word of an analysis, in whatever case. One that no analysis can have is a mistake, not an empty list.
fn label(query: &Query, key: &str, code: &'static str, known: &[&str]) -> Result<Option<String>, ApiError> {
    let find = |text: &str| {
        let found = known.iter().find(|word| word.eq_ignore_ascii_case(text));
        found.map(|word| (*word).to_owned()).ok_or_else(|| unknown(key, code, text, known))
    };
    query.get(key).map(find).transpose()
}

fn unknown(key: &str, code: &'static str, text: &str, known: &[&str]) -> ApiError {
    let text: String = text.chars().take(80).collect();
    ApiError::invalid(code, format!("{text:?} is no {key}: {}", known.join(", ")))
}
