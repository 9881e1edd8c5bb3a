//! What comes in: requests and sessions, each read from a line and checked, and how they are handed to the intake.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::Number;
use serde_json::json;
use serde_json::value::RawValue;

use super::{Kind, LineError, Tally, place, wrong};
use crate::actors::intake::{AcceptRequests, AcceptSessions, ChatSession, RequestIn};
use crate::domain::id::{CompanyId, Timestamp};
use crate::domain::line_ends;
use crate::domain::request::Endpoint;
use crate::domain::session::{Message, Role, SessionFacts};
use crate::http::Api;
use crate::http::body::Object;
use crate::http::reply::ApiError;
use crate::http::request_body::{Checked, check};
use crate::import::csv::{Row, is_id};
use crate::store::{Accepted, CallLine, ClientKey, GROUPS_OF_ONE_MAX, SessionTaken};

/// It lies in one value with everything else that is known of a request or session.
const METADATA_BYTES_MAX: usize = 4 << 10;

/// Requests, of which none may be longer than a batch.
pub(super) struct Requests {
    pub(super) idempotency_key: Option<String>,
    pub(super) bytes_max: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RequestLine<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    endpoint: Option<Cow<'a, str>>,
    #[serde(borrow)]
    body: &'a RawValue,
    metadata: Option<BTreeMap<String, String>>,
    priority: Option<Number>,
    #[serde(borrow)]
    not_before: Option<Cow<'a, str>>,
}

impl Kind for Requests {
    type Item = RequestIn;

    fn read(&self, number: u64, json: &[u8]) -> Result<(RequestIn, usize), LineError> {
        let Object(line): Object<RequestLine<'_>> =
            serde_json::from_slice(json).map_err(|err| line_error(&err))?;
        let endpoint = match line.endpoint.as_deref() {
            None => Endpoint::ChatCompletions,
            Some(path) => path.parse().map_err(|()| {
                let known = Endpoint::ALL.map(Endpoint::path).join(", ");
                wrong("invalid_request", format!("endpoint must be one of {known}"))
            })?,
        };
        let Checked { model, body, output_max, inputs } = check(endpoint, line.body)?;
        // What is around the body in its line is well under a kilobyte.
        if line_ends::escape(&body, &line_ends::ALL).len() as u64 + 1024 > self.bytes_max {
            let detail = format!("the body is longer than a whole batch may be ({} bytes)", self.bytes_max);
            return Err(wrong("too_large", detail));
        }
        let key = match line.id {
            Some(id) if !is_id(&id) => {
                return Err(wrong(
                    "invalid_request",
                    "id must have 1 to 256 characters, none of them a control character",
                ));
            }
            Some(id) => Some(ClientKey::Id(id.into_owned())),
            None => call_line(self.idempotency_key.as_ref(), number).map(ClientKey::Line),
        };
        let not_before = line.not_before.as_deref().map(|text| time("notBefore", text)).transpose()?;
        let metadata = metadata(line.metadata.as_ref())?;
        let bytes = body.len();
        let priority = line.priority.as_ref().map_or(Ok(0), priority)?;
        Ok((
            RequestIn { key, endpoint, model, body, metadata, output_max, inputs, priority, not_before },
            bytes,
        ))
    }

    async fn store(
        &self,
        api: &Api,
        company: &CompanyId,
        items: Vec<(u64, RequestIn)>,
        tally: &mut Tally,
    ) -> Result<(), ApiError> {
        let (numbers, requests): (Vec<_>, Vec<_>) = items.into_iter().unzip();
        let asked = AcceptRequests { company: company.clone(), requests };
        let accepted = api.parts.intake.send(asked).await??;
        for (number, accepted) in numbers.into_iter().zip(accepted) {
            match accepted {
                Accepted::New(id) => {
                    tally.accepted += 1;
                    tally.named(number, &id.to_string(), "accepted");
                }
                Accepted::Duplicate(id) => {
                    tally.duplicate += 1;
                    tally.named(number, &id.to_string(), "duplicate");
                }
                Accepted::TooManyGroups => {
                    let detail = format!(
                        "requests for {GROUPS_OF_ONE_MAX} other models and endpoints wait already; send it again once some are through"
                    );
                    tally.reject(number, &wrong("too_many_models", detail));
                }
                Accepted::Conflict(id) => {
                    let detail = format!("request {id} has this key and other content");
                    tally.reject(number, &wrong("conflict", detail));
                }
            }
        }
        Ok(())
    }
}

/// For the fuzz targets: the model and the body of a line, or the code of the refusal.
pub(in crate::http) fn read_request(json: &[u8]) -> Result<(String, String), &'static str> {
    let kind = Requests { idempotency_key: None, bytes_max: 1 << 20 };
    kind.read(1, json).map(|(request, _)| (request.model, request.body)).map_err(|err| err.code)
}

/// For the fuzz targets: how many messages a line has, or the code of the refusal.
pub(in crate::http) fn read_session(json: &[u8]) -> Result<usize, &'static str> {
    let read =
        Sessions { idempotency_key: None, zone: TimeZone::UTC }.read(1, json).map_err(|err| err.code)?;
    Ok(read.0.messages.map_or(0, |messages| messages.len()))
}

/// Sessions.
pub(super) struct Sessions {
    pub(super) idempotency_key: Option<String>,
    /// Of times in an export that have no offset.
    pub(super) zone: TimeZone,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SessionLine {
    external_id: String,
    started_at: Option<String>,
    ended_at: Option<String>,
    language: Option<String>,
    country: Option<String>,
    /// Null where the transcript could not be had.
    messages: Option<Vec<Object<MessageLine>>>,
    metadata: Option<BTreeMap<String, String>>,
    facts: Option<Object<FactsLine>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageLine {
    role: String,
    content: String,
    at: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct FactsLine {
    ip_address: Option<String>,
    messages_sent: Option<u64>,
    sentiment: Option<String>,
    escalated: Option<bool>,
    forwarded_hr: Option<bool>,
    transcript: Option<String>,
    avg_response_ms: Option<u64>,
    tokens: Option<u64>,
    tokens_eur_micros: Option<u64>,
    category: Option<String>,
    first_message: Option<String>,
}

impl Kind for Sessions {
    type Item = ChatSession;

    fn csv_zone(&self) -> Option<TimeZone> {
        Some(self.zone.clone())
    }

    fn of_row(&self, number: u64, row: Row) -> Result<(ChatSession, usize), LineError> {
        // As with an export that is read from a file: without a reference nothing was said. With one, its messages may
        // come by another call: only a source of the configuration has its transcripts fetched.
        let messages = row.facts.transcript.is_none().then(Vec::new);
        // Facts are cut to size; this is what they come to at most.
        let line = call_line(self.idempotency_key.as_ref(), number);
        Ok((
            ChatSession { external_id: row.external_id, facts: row.facts, messages, fetch: None, line },
            4096,
        ))
    }

    fn read(&self, number: u64, json: &[u8]) -> Result<(ChatSession, usize), LineError> {
        let Object(line): Object<SessionLine> =
            serde_json::from_slice(json).map_err(|err| line_error(&err))?;
        if !is_id(&line.external_id) {
            let detail = "externalId must have 1 to 256 characters, none of them a control character";
            return Err(wrong("invalid_session", detail));
        }
        let Object(facts) = line.facts.unwrap_or_default();
        let at = |name: &str, text: Option<String>| text.map(|text| time(name, &text)).transpose();
        let facts = SessionFacts {
            started_at: at("startedAt", line.started_at)?,
            ended_at: at("endedAt", line.ended_at)?,
            ip_address: facts.ip_address,
            country: line.country,
            language: line.language,
            messages_sent: facts.messages_sent,
            sentiment: facts.sentiment,
            escalated: facts.escalated,
            forwarded_hr: facts.forwarded_hr,
            transcript: facts.transcript,
            avg_response_ms: facts.avg_response_ms,
            tokens: facts.tokens,
            tokens_eur_micros: facts.tokens_eur_micros,
            category: facts.category,
            first_message: facts.first_message,
            metadata: metadata(line.metadata.as_ref())?,
        };
        let messages = match line.messages {
            None => None,
            Some(messages) => Some(messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?),
        };
        let of_call = call_line(self.idempotency_key.as_ref(), number);
        let external_id = line.external_id;
        Ok((ChatSession { external_id, facts, messages, fetch: None, line: of_call }, json.len()))
    }

    async fn store(
        &self,
        api: &Api,
        company: &CompanyId,
        items: Vec<(u64, ChatSession)>,
        tally: &mut Tally,
    ) -> Result<(), ApiError> {
        let (lines, sessions): (Vec<u64>, Vec<ChatSession>) = items.into_iter().unzip();
        let taken = api.parts.intake.send(AcceptSessions { company: company.clone(), sessions }).await??;
        for (line, taken) in lines.into_iter().zip(taken) {
            match taken {
                SessionTaken::Erased => {
                    tally.reject(line, &wrong("erased", "this session was erased and is not taken in again"));
                }
                SessionTaken::Conflict => {
                    let detail = "this line of the same Idempotency-Key brought another session, or said other things of it";
                    tally.reject(line, &wrong("conflict", detail));
                }
                SessionTaken::New | SessionTaken::Changed => tally.accepted += 1,
                SessionTaken::Updated => tally.updated += 1,
                SessionTaken::Unchanged => tally.duplicate += 1,
            }
        }
        Ok(())
    }
}

/// The client's own pairs as JSON text.
fn metadata(pairs: Option<&BTreeMap<String, String>>) -> Result<Option<String>, LineError> {
    let text = pairs.map(|pairs| json!(pairs).to_string());
    if text.as_ref().is_some_and(|text| text.len() > METADATA_BYTES_MAX) {
        return Err(wrong("invalid_request", format!("metadata is longer than {METADATA_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn message(Object(line): Object<MessageLine>) -> Result<Message, LineError> {
    let role = match line.role.as_str() {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        _ => return Err(wrong("invalid_session", "a message's role must be user, assistant or system")),
    };
    let at = line.at.as_deref().map(|text| time("at", text)).transpose()?;
    Ok(Message { role, at, text: line.content })
}

fn priority(number: &Number) -> Result<i8, LineError> {
    let (min, max) = (i8::MIN, i8::MAX);
    let whole = number.as_i64().and_then(|number| i8::try_from(number).ok());
    whole.ok_or_else(|| {
        wrong("invalid_request", format!("priority must be a whole number from {min} to {max}"))
    })
}

fn time(name: &str, text: &str) -> Result<Timestamp, LineError> {
    match text.parse::<jiff::Timestamp>() {
        Ok(at) => Ok(Timestamp::from_millis(at.as_millisecond())),
        Err(_) => Err(wrong("invalid_request", format!("{name} must be a time as in 2026-11-24T08:00:00Z"))),
    }
}

fn line_error(err: &serde_json::Error) -> LineError {
    let code = if err.is_data() { "invalid_request" } else { "invalid_json" };
    wrong(code, place(err))
}

/// By what a line is known again.
fn call_line(idempotency_key: Option<&String>, line: u64) -> Option<CallLine> {
    idempotency_key.map(|key| CallLine { idempotency_key: key.clone(), line })
}
