//! What the body of an answer says about itself: model, tokens, and whether it can be used.

use crate::domain::entries::Entries;
use crate::domain::request::{Answered, Failure, FailureClass, Usage};
use serde_json::value::RawValue;

use super::peek::{Peek, number, peek, present, word};

/// The members of a body that matter here.
pub(super) struct Looked<'a> {
    /// `error`, for whatever it is worth.
    pub error: Option<String>,
    /// Whether it is the body of `/v1/responses`.
    pub is_response: bool,
    model: Option<String>,
    service_tier: Option<String>,
    system_fingerprint: Option<String>,
    usage: Option<Usage>,
    choices: Option<&'a str>,
    status: Option<String>,
    incomplete_details: Option<&'a str>,
    output: Option<&'a str>,
}

/// Looks at the body of an answer, which is an object.
pub(super) fn look_at(body: &str) -> Looked<'_> {
    let Peek { values, .. } = peek(
        body,
        [
            "object",
            "model",
            "service_tier",
            "system_fingerprint",
            "usage",
            "error",
            "choices",
            "status",
            "incomplete_details",
            "output",
        ],
    );
    let [object, model, service_tier, system_fingerprint, usage, error, choices, status, incomplete, output] =
        values;
    let status = status.and_then(word);
    let is_response = object.is_some_and(|object| object == "\"response\"")
        || (object.is_none() && status.is_some() && output.is_some());
    Looked {
        error: present(error).map(str::to_owned),
        is_response,
        model: model.and_then(word),
        service_tier: service_tier.and_then(word),
        system_fingerprint: system_fingerprint.and_then(word),
        usage: present(usage).and_then(read_usage),
        choices: present(choices),
        status,
        incomplete_details: present(incomplete),
        output: present(output),
    }
}

impl Looked<'_> {
    /// Writes down what the provider says of how it answered.
    pub fn fill(&self, answered: &mut Answered) {
        answered.model.clone_from(&self.model);
        answered.service_tier.clone_from(&self.service_tier);
        answered.system_fingerprint.clone_from(&self.system_fingerprint);
        answered.usage = self.usage;
    }

    /// Why an answer that came cannot be used; none if it can.
    pub fn unusable(&self) -> Option<Failure> {
        if self.is_response {
            return self.unusable_response();
        }
        let choices = items(self.choices?);
        let mut first = None;
        for choice in &choices {
            match unusable_choice(choice) {
                // Of several choices one good one is an answer.
                None => return None,
                Some(failure) => first = first.or(Some(failure)),
            }
        }
        first.or_else(|| Some(unusable("no_choices", "")))
    }

    fn unusable_response(&self) -> Option<Failure> {
        match self.status.as_deref() {
            Some("incomplete" | "in_progress" | "queued") => {
                let reason = self.incomplete_details.and_then(|details| peek(details, ["reason"]).values[0]);
                let reason = reason.and_then(word).or_else(|| self.status.clone()).unwrap_or_default();
                Some(unusable("incomplete", &reason))
            }
            Some("failed" | "cancelled") => {
                let words = self.error.as_deref().map(super::Words::from_text).unwrap_or_default();
                let detail = match words.code {
                    Some(code) if words.message.is_empty() => code,
                    Some(code) => format!("{code}: {}", words.message),
                    None => words.message,
                };
                Some(unusable("response_failed", &detail))
            }
            Some(_) | None => {
                self.output.filter(|output| is_refusal(output)).map(|_| unusable("refusal", ""))
            }
        }
    }
}

fn unusable(code: &str, detail: &str) -> Failure {
    Failure::new(FailureClass::Unusable, code, detail)
}

/// Elements of an array that are looked at: more than any answer has.
const ITEMS_MAX: usize = 1024;

/// The first elements of an array; none of anything else.
fn items(array: &str) -> Vec<&RawValue> {
    serde_json::from_str::<Entries<'_, ITEMS_MAX>>(array).map(|Entries(items)| items).unwrap_or_default()
}

fn unusable_choice(choice: &RawValue) -> Option<Failure> {
    let Peek { values: [finish_reason, message], .. } = peek(choice.get(), ["finish_reason", "message"]);
    match finish_reason {
        Some("\"length\"") => return Some(unusable("length", "the answer was cut off at its token limit")),
        Some("\"content_filter\"") => return Some(unusable("content_filter", "")),
        Some(_) | None => {}
    }
    // The words of a refusal are model output, so they stay out of the failure.
    let refusal = present(message).and_then(|message| present(peek(message, ["refusal"]).values[0]));
    refusal.filter(|words| *words != "\"\"").map(|_| unusable("refusal", ""))
}

/// Whether the output of a response refuses and says nothing else.
fn is_refusal(output: &str) -> bool {
    let mut refused = false;
    for item in items(output) {
        let Some(content) = present(peek(item.get(), ["content"]).values[0]) else { continue };
        for part in items(content) {
            match peek(part.get(), ["type"]).values[0] {
                Some("\"refusal\"") => refused = true,
                Some("\"output_text\"") => return false,
                Some(_) | None => {}
            }
        }
    }
    refused
}

/// Tokens, in the shape of chat, of responses or of embeddings; none if no count is there.
fn read_usage(usage: &str) -> Option<Usage> {
    let Peek {
        values:
            [
                prompt,
                input,
                completion,
                output,
                total,
                prompt_details,
                input_details,
                completion_details,
                output_details,
            ],
        ..
    } = peek(
        usage,
        [
            "prompt_tokens",
            "input_tokens",
            "completion_tokens",
            "output_tokens",
            "total_tokens",
            "prompt_tokens_details",
            "input_tokens_details",
            "completion_tokens_details",
            "output_tokens_details",
        ],
    );
    let prompt = prompt.and_then(number).or_else(|| input.and_then(number));
    let completion = completion.and_then(number).or_else(|| output.and_then(number));
    let total = total.and_then(number);
    if prompt.is_none() && completion.is_none() && total.is_none() {
        return None;
    }
    let details = present(prompt_details).or_else(|| present(input_details)).unwrap_or("{}");
    let [cached, cache_write, audio_prompt] =
        peek(details, ["cached_tokens", "cache_write_tokens", "audio_tokens"]).values;
    let details = present(completion_details).or_else(|| present(output_details)).unwrap_or("{}");
    let [reasoning, audio_completion, accepted, rejected] = peek(
        details,
        ["reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"],
    )
    .values;
    let (prompt, completion) = (prompt.unwrap_or(0), completion.unwrap_or(0));
    Some(Usage {
        prompt,
        completion,
        total: total.unwrap_or(prompt.saturating_add(completion)),
        cached: tokens(cached),
        cache_write: tokens(cache_write),
        reasoning: tokens(reasoning),
        audio_prompt: tokens(audio_prompt),
        audio_completion: tokens(audio_completion),
        accepted_prediction: tokens(accepted),
        rejected_prediction: tokens(rejected),
    })
}

/// A count, or the sum of one that is split up (cache writes are, by how long they are kept).
fn tokens(member: Option<&str>) -> u64 {
    let Some(text) = present(member) else { return 0 };
    if let Some(count) = number(text) {
        return count;
    }
    let parts: std::collections::BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap_or_default();
    parts.values().filter_map(|part| number(part.get())).fold(0, u64::saturating_add)
}
