//! What the simulated model answers to one request, in the endpoint's own shape.

use serde_json::{Value, json};

use super::conversation::Conversation;
use super::dice;
use super::schema::fill;
use super::world::Usage;

/// The fingerprint that says that no model was asked.
pub(super) const FINGERPRINT: &str = "fp_nightshift_simulator";

/// An endpoint that the simulator can answer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Responses,
    Embeddings,
}

impl Endpoint {
    pub(super) const ALL: [Self; 3] = [Self::Chat, Self::Responses, Self::Embeddings];

    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    pub(super) fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }

    /// The member of the body that holds what is asked.
    pub(super) fn subject(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Responses | Self::Embeddings => "input",
        }
    }

    /// What is asked: a prompt where there is no input.
    pub(super) fn asked(self, body: &Value) -> &Value {
        let asked = &body[self.subject()];
        if self == Self::Responses && asked.is_null() { &body["prompt"] } else { asked }
    }
}

/// How an answer is spoiled on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoil {
    Not,
    Length,
    ContentFilter,
    Refusal,
    Nonsense,
}

/// An HTTP answer of the endpoint.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
    pub(super) usage: Usage,
}

/// An error in the endpoint's envelope; nothing was used.
pub(super) fn refusal(status: u16, code: Option<&str>, message: &str) -> Answer {
    let kind = match status {
        429 => "requests",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    };
    let error = json!({"message": message, "type": kind, "param": null, "code": code});
    Answer { status, body: json!({"error": error}), usage: Usage::default() }
}

/// The name that the simulated model goes by.
pub(super) fn model_name(asked: &str) -> String {
    format!("{asked}-simulated")
}

/// Answers `body`; `seed` and `key` decide ids, `at` (seconds) is when.
pub(super) fn answer(
    endpoint: Endpoint,
    body: &Value,
    spoil: Spoil,
    seed: u64,
    key: &str,
    at: i64,
) -> Answer {
    let subject = &body[endpoint.subject()];
    if subject.as_array().is_some_and(Vec::is_empty) || subject.as_str().is_some_and(str::is_empty) {
        let message = format!("'{}' is empty.", endpoint.subject());
        return refusal(400, Some("invalid_value"), &message);
    }
    let asked = Asked { body, model: model_name(body["model"].as_str().unwrap_or_default()), seed, key, at };
    match endpoint {
        Endpoint::Chat => asked.chat(spoil),
        Endpoint::Responses => asked.response(spoil),
        Endpoint::Embeddings => asked.embeddings(),
    }
}

struct Asked<'a> {
    body: &'a Value,
    model: String,
    seed: u64,
    key: &'a str,
    at: i64,
}

impl Asked<'_> {
    fn id(&self, kind: &str) -> String {
        dice::hex(self.seed, &[kind, self.key], 24)
    }

    /// The answer's text, by the schema if one was given.
    fn text(&self, schema: Option<&Value>, spoil: Spoil) -> String {
        let talk = Conversation::of(self.body);
        match (spoil, schema) {
            (Spoil::Nonsense, _) => "This is not what was asked for.".to_owned(),
            (Spoil::Not | Spoil::Length | Spoil::ContentFilter | Spoil::Refusal, Some(schema)) => {
                fill(schema, &talk).to_string()
            }
            (Spoil::Not | Spoil::Length | Spoil::ContentFilter | Spoil::Refusal, None) => {
                let gist: String = talk.gist().chars().take(200).collect();
                format!("A simulated answer to: {gist}")
            }
        }
    }

    fn chat(&self, spoil: Spoil) -> Answer {
        let schema = self.body.pointer("/response_format/json_schema/schema");
        let text = cut(self.text(schema, spoil), spoil);
        let usage = used(self.body, &text);
        let (content, refusal) = if spoil == Spoil::Refusal {
            (Value::Null, json!("The simulated model refuses."))
        } else {
            (json!(text), Value::Null)
        };
        let reason = match spoil {
            Spoil::Length => "length",
            Spoil::ContentFilter => "content_filter",
            Spoil::Not | Spoil::Refusal | Spoil::Nonsense => "stop",
        };
        let body = json!({
            "id": format!("chatcmpl-{}", self.id("chat")),
            "object": "chat.completion",
            "created": self.at,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": refusal, "annotations": []},
                "logprobs": null,
                "finish_reason": reason,
            }],
            "usage": {
                "prompt_tokens": usage.input_tokens,
                "completion_tokens": usage.output_tokens,
                "total_tokens": usage.input_tokens + usage.output_tokens,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0, "cache_write_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": 0, "audio_tokens": 0,
                    "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
                },
            },
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        });
        Answer { status: 200, body, usage }
    }

    fn response(&self, spoil: Spoil) -> Answer {
        let text = cut(self.text(self.body.pointer("/text/format/schema"), spoil), spoil);
        let usage = used(self.body, &text);
        let content = if spoil == Spoil::Refusal {
            json!({"type": "refusal", "refusal": "The simulated model refuses."})
        } else {
            json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
        };
        let why_incomplete = match spoil {
            Spoil::Length => Some("max_output_tokens"),
            Spoil::ContentFilter => Some("content_filter"),
            Spoil::Not | Spoil::Refusal | Spoil::Nonsense => None,
        };
        let status = if why_incomplete.is_some() { "incomplete" } else { "completed" };
        let member = |name: &str, otherwise: Value| self.body.get(name).cloned().unwrap_or(otherwise);
        let body = json!({
            "id": format!("resp_{}", self.id("response")),
            "object": "response",
            "created_at": self.at,
            "status": status,
            "error": null,
            "incomplete_details": why_incomplete.map(|reason| json!({ "reason": reason })),
            "instructions": member("instructions", Value::Null),
            "max_output_tokens": member("max_output_tokens", Value::Null),
            "metadata": member("metadata", json!({})),
            "model": self.model,
            "output": [{
                "id": format!("msg_{}", self.id("message")),
                "type": "message",
                "status": status,
                "role": "assistant",
                "content": [content],
            }],
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "service_tier": "default",
            "store": false,
            "system_fingerprint": FINGERPRINT,
            "temperature": member("temperature", json!(1.0)),
            "text": member("text", json!({"format": {"type": "text"}})),
            "tool_choice": "auto",
            "tools": [],
            "top_p": member("top_p", json!(1.0)),
            "truncation": "disabled",
            "usage": {
                "input_tokens": usage.input_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": usage.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.input_tokens + usage.output_tokens,
            },
        });
        Answer { status: 200, body, usage }
    }

    fn embeddings(&self) -> Answer {
        let inputs = embedding_inputs(&self.body["input"]);
        let input_tokens = inputs.iter().map(|input| tokens_of(&input.to_string())).sum();
        let data = inputs.iter().enumerate().map(|(index, input)| {
            let text = input.to_string();
            let vector: Vec<f64> = (0..8)
                .map(|n: u32| dice::fraction(0, &["vector", &text, &n.to_string()]) * 2.0 - 1.0)
                .collect();
            json!({"object": "embedding", "index": index, "embedding": vector})
        });
        let body = json!({
            "object": "list",
            "data": data.collect::<Vec<_>>(),
            "model": self.model,
            "usage": {"prompt_tokens": input_tokens, "total_tokens": input_tokens},
            "system_fingerprint": FINGERPRINT,
        });
        Answer { status: 200, body, usage: Usage { input_tokens, output_tokens: 0 } }
    }
}

/// The inputs of an embeddings request: one text, one list of tokens, or a list of either.
pub(super) fn embedding_inputs(input: &Value) -> Vec<&Value> {
    match input.as_array() {
        Some(list) if !list.iter().all(Value::is_number) => list.iter().collect(),
        Some(_) | None => vec![input],
    }
}

/// About as many tokens as `text` has.
pub(super) fn tokens_of(text: &str) -> u64 {
    u64::try_from(text.len().div_ceil(4)).unwrap_or(u64::MAX).max(1)
}

fn used(body: &Value, text: &str) -> Usage {
    let asked = body.get("messages").or_else(|| body.get("input")).unwrap_or(&Value::Null);
    Usage { input_tokens: tokens_of(&asked.to_string()), output_tokens: tokens_of(text) }
}

/// A text that ran into the token limit stops in the middle.
fn cut(text: String, spoil: Spoil) -> String {
    if spoil != Spoil::Length {
        return text;
    }
    let half = text.chars().count() / 2;
    text.chars().take(half).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(endpoint: Endpoint, body: &Value, spoil: Spoil) -> Answer {
        answer(endpoint, body, spoil, 1, "a", 100)
    }

    #[test]
    fn a_chat_answer_says_that_it_is_simulated() {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "Name a river."}]});
        let answer = answered(Endpoint::Chat, &body, Spoil::Not);
        assert_eq!(answer.body["system_fingerprint"], FINGERPRINT);
        assert_eq!(answer.body["model"], "m-simulated");
        assert_eq!(answer.body["choices"][0]["message"]["content"], "A simulated answer to: Name a river.");
        assert_eq!(answer.body["usage"]["prompt_tokens"], answer.usage.input_tokens);
    }

    #[test]
    fn a_schema_is_followed_at_both_endpoints() {
        let schema = json!({"type": "object", "properties": {"done": {"type": "boolean"}}});
        let chat = json!({"model": "m", "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}});
        let answer = answered(Endpoint::Chat, &chat, Spoil::Not);
        assert_eq!(answer.body["choices"][0]["message"]["content"], r#"{"done":false}"#);
        let response = json!({"model": "m", "input": "x", "text": {"format": {"type": "json_schema", "schema": schema}}});
        let answer = answered(Endpoint::Responses, &response, Spoil::Not);
        assert_eq!(answer.body["output"][0]["content"][0]["text"], r#"{"done":false}"#);
        assert_eq!(answer.body["status"], "completed");
    }

    #[test]
    fn embeddings_come_one_for_each_input_and_are_the_same_each_time() {
        let body = json!({"model": "m", "input": ["a", "b", "a"]});
        let answer = answered(Endpoint::Embeddings, &body, Spoil::Not);
        let data = answer.body["data"].as_array().unwrap();
        assert_eq!(data.len(), 3);
        assert_eq!(data[0]["embedding"], data[2]["embedding"]);
        assert_ne!(data[0]["embedding"], data[1]["embedding"]);
    }

    #[test]
    fn spoiled_answers_are_still_answers() {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "Name a river."}]});
        let length = answered(Endpoint::Chat, &body, Spoil::Length);
        assert_eq!(length.body["choices"][0]["finish_reason"], "length");
        let refused = answered(Endpoint::Chat, &body, Spoil::Refusal);
        assert!(refused.body["choices"][0]["message"]["content"].is_null());
        let empty = json!({"model": "m", "messages": []});
        assert_eq!(answered(Endpoint::Chat, &empty, Spoil::Not).status, 400);
    }
}
