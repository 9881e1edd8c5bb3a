//! OpenAI's shapes: the batch and file objects, lists, and the error envelope.

use serde_json::{Value, json};
use warp::http::{HeaderValue, StatusCode, header};
use warp::reply::Response;

use super::answers::model_name;
use super::engine::Shown;
use super::faults::BatchFault;
use super::world::{BatchRecord, FileRecord, Results, Verdict};
use crate::domain::id::Timestamp;

/// An error as OpenAI tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) message: String,
    pub(super) param: Option<String>,
    pub(super) code: Option<String>,
}

impl Refusal {
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    pub(super) fn param(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    pub(super) fn code(mut self, code: &str) -> Self {
        self.code = Some(code.to_owned());
        self
    }

    /// A parameter whose value is none of those that may be.
    pub(super) fn invalid_value(param: &str, message: impl Into<String>) -> Self {
        Self::new(400, message).param(param).code("invalid_value")
    }

    pub(super) fn invalid_type(param: &str, expected: &str) -> Self {
        let message = format!("Invalid type for '{param}': expected {expected}.");
        Self::new(400, message).param(param).code("invalid_type")
    }

    pub(super) fn missing(param: &str) -> Self {
        let message = format!("Missing required parameter: '{param}'.");
        Self::new(400, message).param(param).code("missing_required_parameter")
    }

    pub(super) fn unknown(param: &str) -> Self {
        let message = format!("Unknown parameter: '{param}'.");
        Self::new(400, message).param(param).code("unknown_parameter")
    }

    pub(super) fn no_file(id: &str) -> Self {
        Self::new(404, format!("No such File object: {id}")).param("id")
    }

    pub(super) fn no_batch(id: &str) -> Self {
        Self::new(404, format!("No batch found with id '{id}'."))
    }

    pub(super) fn internal() -> Self {
        Self::new(500, "The simulator could not do that; its log says why.")
    }

    pub(super) fn into_response(self) -> Response {
        let kind = match self.status {
            429 => "requests",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let error = json!({"message": self.message, "type": kind, "param": self.param, "code": self.code});
        let mut response = json_response(&json!({"error": error}));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response
    }
}

/// A 200 with a JSON body.
pub(super) fn json_response(value: &Value) -> Response {
    let mut response = Response::new(value.to_string().into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A file object.
pub(super) fn file_view(file: &FileRecord) -> Value {
    json!({
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at / 1000,
        "expires_at": file.expires_at.map(|at| at / 1000),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": null,
    })
}

/// A page of a list.
pub(super) fn page(data: &[Value], has_more: bool) -> Value {
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    json!({
        "object": "list",
        "data": data,
        "first_id": id(data.first()),
        "last_id": id(data.last()),
        "has_more": has_more,
    })
}

/// A batch object as it is at `now`, with the faults that are planned for how it shows.
pub(super) fn batch_view(batch: &BatchRecord, now: i64, shown: Shown) -> Value {
    let status = batch.status(now);
    let hidden = batch.has_fault(&BatchFault::SkipStates {}) && !status.is_terminal();
    let (stamps, counts, label) = if hidden {
        (super::timeline::Stamps::default(), (0, 0, 0), "validating")
    } else {
        (batch.stamps(now), batch.counts(now), status.label())
    };
    let seconds = |at: Option<i64>| at.map(|at| at / 1000);
    let results = batch.results.as_ref().filter(|_| status.is_terminal());
    let (total, completed, failed) = counts;
    let view = json!({
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": match &batch.verdict {
            Some(Verdict::Passed { model, .. }) if !hidden => Some(model_name(model)),
            Some(Verdict::Passed { .. } | Verdict::Failed { .. }) | None => None,
        },
        "errors": errors(batch),
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": label,
        "output_file_id": results.and_then(|results| results.output.clone()),
        "error_file_id": results.and_then(|results| results.error.clone()),
        "created_at": batch.created_at / 1000,
        "in_progress_at": seconds(stamps.in_progress_at),
        "expires_at": batch.expires_at() / 1000,
        "finalizing_at": seconds(stamps.finalizing_at),
        "completed_at": seconds(stamps.completed_at),
        "failed_at": seconds(stamps.failed_at),
        "expired_at": seconds(stamps.expired_at),
        "cancelling_at": seconds(stamps.cancelling_at),
        "cancelled_at": seconds(stamps.cancelled_at),
        "request_counts": {"total": total, "completed": completed, "failed": failed},
        "usage": usage(results),
        "metadata": batch.metadata,
    });
    disguised(batch, view, shown)
}

fn errors(batch: &BatchRecord) -> Value {
    match &batch.verdict {
        Some(Verdict::Failed { errors, .. }) => json!({"object": "list", "data": errors}),
        Some(Verdict::Passed { .. }) | None => Value::Null,
    }
}

fn usage(results: Option<&Results>) -> Value {
    let used = results.map(|results| results.usage).unwrap_or_default();
    json!({
        "input_tokens": used.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": used.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.input_tokens + used.output_tokens,
    })
}

/// Applies the planned faults that change only how a batch looks.
fn disguised(batch: &BatchRecord, mut view: Value, shown: Shown) -> Value {
    for (_, fault) in &batch.faults {
        match fault {
            BatchFault::NullOutput { polls, output_only } if shown.reads_after_end <= *polls => {
                view["output_file_id"] = Value::Null;
                if !output_only {
                    view["error_file_id"] = Value::Null;
                }
            }
            BatchFault::NoCounts {} => view["request_counts"] = Value::Null,
            BatchFault::WrongCounts {} => {
                view["request_counts"]["completed"] = json!(1);
                view["request_counts"]["failed"] = json!(0);
            }
            BatchFault::UnknownStatus { status, polls } if shown.reads <= *polls => {
                view["status"] = json!(status);
            }
            BatchFault::NullOutput { .. }
            | BatchFault::UnknownStatus { .. }
            | BatchFault::Invisible { .. }
            | BatchFault::Fail { .. }
            | BatchFault::Refuse { .. }
            | BatchFault::Gone { .. }
            | BatchFault::Expire { .. }
            | BatchFault::Cancel { .. }
            | BatchFault::EmptyIds {}
            | BatchFault::SkipStates {}
            | BatchFault::IsoTimes {}
            | BatchFault::UnknownFields {} => {}
        }
    }
    if batch.has_fault(&BatchFault::UnknownFields {}) {
        view["a_field_of_tomorrow"] = json!({"nested": [1, null]});
    }
    if batch.has_fault(&BatchFault::EmptyIds {}) {
        for key in ["output_file_id", "error_file_id"] {
            if view[key].is_null() {
                view[key] = json!("");
            }
        }
    }
    if let (true, Some(members)) = (batch.has_fault(&BatchFault::IsoTimes {}), view.as_object_mut()) {
        for (_, value) in members.iter_mut().filter(|(key, _)| key.ends_with("_at")) {
            if let Some(at) = value.as_i64() {
                *value = json!(Timestamp::from_secs(at).to_string());
            }
        }
    }
    view
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::batch;
    use super::*;

    #[test]
    fn a_new_batch_shows_every_field() {
        let view = batch_view(&batch(), 0, Shown::default());
        let members = view.as_object().unwrap();
        assert_eq!(members.len(), 22, "{members:?}");
        assert_eq!(view["expires_at"], 86_400);
        assert_eq!(view["request_counts"], json!({"total": 0, "completed": 0, "failed": 0}));
    }

    #[test]
    fn disguises_change_what_is_shown() {
        let mut disguised = batch();
        disguised.faults = vec![
            (0, BatchFault::EmptyIds {}),
            (1, BatchFault::IsoTimes {}),
            (2, BatchFault::UnknownStatus { status: "thinking".to_owned(), polls: 1 }),
        ];
        let first = batch_view(&disguised, 0, Shown { reads: 1, ..Shown::default() });
        assert_eq!(
            (first["status"].as_str(), first["output_file_id"].as_str()),
            (Some("thinking"), Some(""))
        );
        assert_eq!(first["created_at"], "1970-01-01T00:00:00.000Z");
        assert!(first["completed_at"].is_null());
        let second = batch_view(&disguised, 0, Shown { reads: 2, ..Shown::default() });
        assert_eq!(second["status"], "validating");
    }
}
