//! What records look like on the wire. A field's name and meaning, once here, stays.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::retention;
use crate::domain::batch::{Batch, Origin};
use crate::domain::company::Company;
use crate::domain::id::Timestamp;
use crate::domain::request::{Attempt, Request, Source, Usage};
use crate::domain::session::{Message, SessionFacts};
use crate::store::{Anomaly, SessionFound, StoreError, StoreReader, StoryLine};

pub fn time(at: Option<Timestamp>) -> Value {
    at.map_or(Value::Null, |at| Value::String(at.to_string()))
}

/// A request.
pub fn request(request: &Request) -> Value {
    let (session, client) = match &request.source {
        Source::Session { session, .. } => (Some(session.to_string()), None),
        Source::Generic { client_id } => (None, client_id.clone()),
    };
    let answered = &request.answered;
    let usage = answered.usage.as_ref();
    json!({
        "id": request.id.to_string(),
        "companyId": request.group.company.as_str(),
        "sessionId": session,
        "clientId": client,
        "status": request.status.label(),
        "endpoint": request.group.endpoint.path(),
        "model": request.group.model,
        "batchId": request.batch.map(|batch| batch.to_string()),
        "attempts": request.attempts,
        "repairs": request.repairs,
        "errorClass": request.failure.as_ref().map(|failure| failure.class.label()),
        "error": request.failure.as_ref().map(ToString::to_string),
        "notBefore": time(request.not_before),
        "priority": request.priority,
        "metadata": request.metadata.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok()),
        "requestedAt": time(Some(request.requested_at)),
        "completedAt": time(request.completed_at),
        "usage": usage.map(tokens),
        "costMicros": request.cost.as_ref().map(|cost| cost.micros),
        "currency": request.cost.as_ref().map(|cost| cost.currency.as_str()),
        "priceVersion": request.cost.as_ref().map(|cost| cost.price_version.as_str()),
        "providerRequestId": answered.provider_request_id,
        "answeredModel": answered.model,
        "serviceTier": answered.service_tier,
        "systemFingerprint": answered.system_fingerprint,
        "processingType": Request::PROCESSING_TYPE,
    })
}

fn tokens(usage: &Usage) -> Value {
    json!({
        "promptTokens": usage.prompt,
        "completionTokens": usage.completion,
        "totalTokens": usage.total,
        "cachedTokens": usage.cached,
        "cacheWriteTokens": usage.cache_write,
        "reasoningTokens": usage.reasoning,
        "audioPromptTokens": usage.audio_prompt,
        "audioCompletionTokens": usage.audio_completion,
        "acceptedPredictionTokens": usage.accepted_prediction,
        "rejectedPredictionTokens": usage.rejected_prediction,
    })
}

/// A record and what is stored of it as JSON text, which is told as it stands: a result of some ten megabytes would take
/// as many hundreds as a tree.
pub struct Whole {
    /// What else is told.
    pub fields: Value,
    result: Option<Box<RawValue>>,
}

impl Serialize for Whole {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Part<'a> {
            Value(&'a Value),
            Text(&'a RawValue),
        }
        let fields = self.fields.as_object().into_iter().flatten();
        let mut parts: BTreeMap<&str, Part<'_>> =
            fields.map(|(name, value)| (name.as_str(), Part::Value(value))).collect();
        parts.insert("result", self.result.as_deref().map_or(Part::Value(&Value::Null), Part::Text));
        parts.serialize(serializer)
    }
}

impl Whole {
    /// The reply with this request.
    pub fn reply(&self) -> Result<String, StoreError> {
        #[derive(Serialize)]
        struct Reply<'a> {
            ok: bool,
            request: &'a Whole,
        }
        let reply = Reply { ok: true, request: self };
        serde_json::to_string(&reply).map_err(|err| StoreError::Codec(err.to_string()))
    }
}

/// Stored JSON text as it stands; nothing where it is none.
fn text_of(text: Vec<u8>) -> Option<Box<RawValue>> {
    String::from_utf8(text).ok().and_then(|text| RawValue::from_string(text).ok())
}

/// A request with its history, its result and, for a session, the analysis.
pub fn whole_request(reader: &StoreReader, shown: &Request) -> Result<Whole, StoreError> {
    let analysis = match shown.source {
        Source::Session { session, version, .. } => reader.analysis(session, version)?,
        Source::Generic { .. } => None,
    };
    let result = reader.result(shown.id)?;
    let mut view = request(shown);
    if let Value::Object(fields) = &mut view {
        fields.insert("history".to_owned(), shown.history.iter().map(attempt).collect());
        fields.insert("analysis".to_owned(), json_of(analysis.as_deref().map(str::as_bytes)));
    }
    Ok(Whole { fields: view, result: result.and_then(text_of) })
}

/// Stored JSON text as a value; null where there is none.
pub fn json_of(text: Option<&[u8]>) -> Value {
    text.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or(Value::Null)
}

/// One attempt of a request's history.
pub fn attempt(attempt: &Attempt) -> Value {
    json!({
        "attempt": attempt.number,
        "batchId": attempt.batch.to_string(),
        "errorClass": attempt.failure.as_ref().map(|failure| failure.class.label()),
        "code": attempt.failure.as_ref().map(|failure| failure.code.as_str()),
        "error": attempt.failure.as_ref().map(ToString::to_string),
        "httpStatus": attempt.failure.as_ref().and_then(|failure| failure.http_status),
        "at": attempt.at.to_string(),
    })
}

/// A batch.
pub fn batch(batch: &Batch) -> Value {
    let counts = &batch.counts;
    let wait = batch.state.wait();
    json!({
        "id": batch.id.to_string(),
        "companyId": batch.group.company.as_str(),
        "openaiBatchId": batch.provider_batch.as_ref().map(|id| id.as_str()),
        "inputFileId": batch.input.as_ref().map(|id| id.as_str()),
        "outputFileId": batch.output.as_ref().map(|id| id.as_str()),
        "errorFileId": batch.error.as_ref().map(|id| id.as_str()),
        "status": batch.state.status().label(),
        "step": batch.state.label(),
        "origin": batch.origin.label(),
        "shadowOf": match batch.origin {
            Origin::Shadow { of } => Some(of.to_string()),
            Origin::Cut | Origin::Adopted => None,
        },
        "cancel": batch.cancel.as_ref().map(|cancel| json!({
            "by": cancel.by, "at": cancel.at.to_string(), "then": cancel.then.label(),
        })),
        "endpoint": batch.group.endpoint.path(),
        "model": batch.group.model,
        "createdAt": time(Some(batch.created_at)),
        "completedAt": time(batch.completed_at),
        "processedAt": time(batch.processed_at),
        "closedAt": time(batch.closed_at),
        "counts": {
            "members": counts.members,
            "completed": counts.completed,
            "failed": counts.failed,
            "returned": counts.returned,
            "erased": counts.erased,
            "outstanding": counts.outstanding(),
        },
        "overdue": batch.is_overdue,
        "waitingUntil": wait.map_or(Value::Null, |wait| time(wait.until)),
        "waitingFor": wait.and_then(|wait| wait.until.and(wait.why.as_deref())),
        "inputBytes": batch.input_bytes,
        "estimatedTokens": batch.estimated_tokens,
        "costMicros": batch.cost_micros,
        "reservedMicros": batch.purse.reserved,
        "repairs": batch.repairs,
        "anomalies": {
            "unreadable": batch.anomalies.unreadable,
            "unknown": batch.anomalies.unknown,
            "repeated": batch.anomalies.repeated,
            "missing": batch.anomalies.missing,
        },
        "provider": { "kind": batch.provider.kind, "baseUrl": batch.provider.base_url },
    })
}

/// What keeps a batch from closing.
pub fn anomaly(anomaly: &Anomaly) -> Value {
    json!({ "at": anomaly.at.to_string(), "what": anomaly.what })
}

/// A line of a batch's story.
pub fn story_line(line: &StoryLine) -> Value {
    json!({ "at": line.at.to_string(), "step": line.step, "text": line.text })
}

/// A company.
pub fn company(company: &Company, counts: [u64; 4]) -> Value {
    json!({
        "id": company.id.as_str(),
        "name": company.name,
        "model": company.model,
        "suspended": company.suspended,
        "budgetMicros": company.budget_micros,
        "retention": retention::view(&company.retention),
        "summary": summary(counts),
    })
}

/// Counts by status.
pub fn summary(counts: [u64; 4]) -> Value {
    let [pending, in_progress, complete, failed] = counts;
    json!({
        "pending_batching": pending,
        "batching_in_progress": in_progress,
        "processing_complete": complete,
        "processing_failed": failed,
    })
}

/// A session with what became of it, without its messages.
pub fn session(found: &SessionFound) -> Value {
    let SessionFound { session, analysis, request, fetch } = found;
    let request = request.as_ref();
    let failure = request.and_then(|request| request.failure.as_ref());
    let cost = request.and_then(|request| request.cost.as_ref());
    json!({
        "id": session.id.to_string(),
        "companyId": session.company.as_str(),
        "externalId": session.external_id,
        "state": session.state.label(),
        "version": session.version,
        "messages": session.message_count,
        "receivedAt": time(Some(session.id.made_at())),
        "startedAt": time(session.facts.started_at),
        "endedAt": time(session.facts.ended_at),
        "changedAt": time(Some(session.changed_at)),
        "metadata": session.facts.metadata.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok()),
        "facts": facts(&session.facts),
        "requestId": session.request.map(|request| request.to_string()),
        "fetch": super::sources::fetch(fetch.as_ref()),
        "requestStatus": request.map(|request| request.status.label()),
        "errorClass": failure.map(|failure| failure.class.label()),
        "error": failure.map(ToString::to_string),
        "costMicros": cost.map(|cost| cost.micros),
        "currency": cost.map(|cost| cost.currency.as_str()),
        "analysis": json_of(analysis.as_deref().map(str::as_bytes)),
    })
}

/// What an export said of a session besides its times, under the names that ingest takes.
fn facts(facts: &SessionFacts) -> Value {
    json!({
        "ipAddress": facts.ip_address,
        "country": facts.country,
        "language": facts.language,
        "messagesSent": facts.messages_sent,
        "sentiment": facts.sentiment,
        "escalated": facts.escalated,
        "forwardedHr": facts.forwarded_hr,
        "transcript": facts.transcript,
        "avgResponseMs": facts.avg_response_ms,
        "tokens": facts.tokens,
        "tokensEurMicros": facts.tokens_eur_micros,
        "category": facts.category,
        "firstMessage": facts.first_message,
    })
}

/// A message of a session.
pub fn message(message: &Message) -> Value {
    json!({ "role": message.role.label(), "content": message.text, "at": time(message.at) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_result_is_told_as_it_stands_among_the_rest() {
        let told = |result: &str| {
            let result = text_of(result.as_bytes().to_vec());
            Whole { fields: json!({ "id": "a", "usage": null }), result }.reply().unwrap()
        };
        let (before, behind) = (r#"{"ok":true,"request":{"id":"a","result":"#, r#","usage":null}}"#);
        assert_eq!(
            told(r#"{"b":1.50e0,"a":"\u00e9"}"#),
            format!(r#"{before}{{"b":1.50e0,"a":"\u00e9"}}{behind}"#)
        );
        assert_eq!(told("{broken"), format!("{before}null{behind}"));
    }
}
