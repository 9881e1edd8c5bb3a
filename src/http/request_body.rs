//! The body of a request: the rules of contract section 3.1, because one bad line would fail a whole batch.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::ingest::{LineError, place, wrong};
use crate::domain::request::Endpoint;

const MODEL_CHARS_MAX: usize = 128;
/// Readers of JSON give up at 128, and the line is one deeper than its body.
const DEPTH_MAX: usize = 100;

#[derive(Deserialize)]
struct BodyPeek<'a> {
    model: Option<Value>,
    stream: Option<Value>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    input: Option<Value>,
}

/// A body that no provider refuses for its shape.
pub struct Checked {
    /// `body.model`
    pub model: String,
    /// As it came.
    pub body: String,
    /// Tokens that all answers may have together, where it says so.
    pub output_max: Option<u32>,
    /// How many inputs an embeddings request has.
    pub inputs: u32,
}

/// What is to be known of a body, or why no provider would take it.
pub fn check(endpoint: Endpoint, body: &RawValue) -> Result<Checked, LineError> {
    let invalid = |detail: String| wrong("invalid_request", detail);
    let text = body.get();
    if !text.starts_with('{') {
        return Err(invalid("body must be an object".to_owned()));
    }
    if depth(text) > DEPTH_MAX {
        return Err(invalid(format!("body is nested more than {DEPTH_MAX} deep")));
    }
    // Reading it whole finds what a look at the outline does not: escapes that are no characters, for instance.
    let whole: Value = serde_json::from_str(text).map_err(|err| invalid(format!("body: {}", place(&err))))?;
    let peek: BodyPeek<'_> =
        serde_json::from_str(text).map_err(|err| invalid(format!("body: {}", place(&err))))?;
    let model = match peek.model {
        Some(Value::String(model)) if (1..=MODEL_CHARS_MAX).contains(&model.chars().count()) => model,
        Some(_) => {
            return Err(invalid(format!("body.model must be a text of 1 to {MODEL_CHARS_MAX} characters")));
        }
        None => return Err(invalid("body.model is missing".to_owned())),
    };
    if peek.stream.is_some_and(|stream| stream != Value::Bool(false) && !stream.is_null()) {
        return Err(invalid("body.stream cannot be used in a batch; leave it out".to_owned()));
    }
    let mut inputs = 0;
    match endpoint {
        Endpoint::ChatCompletions => {
            match peek.messages.map(|raw| serde_json::from_str::<Vec<Value>>(raw.get())) {
                Some(Ok(messages)) if !messages.is_empty() && messages.iter().all(Value::is_object) => {}
                Some(_) => {
                    return Err(invalid("body.messages must be a list of at least one message".to_owned()));
                }
                None => return Err(invalid("body.messages is missing".to_owned())),
            }
        }
        Endpoint::Responses => match peek.input {
            None if whole.get("prompt").is_some() => {}
            Some(Value::String(text)) if !text.is_empty() => {}
            Some(Value::Array(items)) if !items.is_empty() => {}
            Some(_) => {
                return Err(invalid("body.input must be a text or a list that is not empty".to_owned()));
            }
            None => return Err(invalid("body.input is missing".to_owned())),
        },
        Endpoint::Embeddings => match peek.input {
            Some(Value::String(text)) if !text.is_empty() => inputs = 1,
            // A list of numbers is one input in tokens.
            Some(Value::Array(items)) if !items.is_empty() && items.iter().all(Value::is_u64) => inputs = 1,
            // The provider takes 2,048, but one line must bring all their vectors home.
            Some(Value::Array(items)) if (1..=1024).contains(&items.len()) => {
                let empty = |item: &Value| match item {
                    Value::String(text) => text.is_empty(),
                    Value::Array(tokens) => tokens.is_empty() || !tokens.iter().all(Value::is_u64),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => true,
                };
                if let Some(at) = items.iter().position(empty) {
                    return Err(invalid(format!(
                        "body.input[{at}] must be a text, or tokens, and not empty"
                    )));
                }
                inputs = u32::try_from(items.len()).unwrap_or(u32::MAX);
            }
            Some(_) => {
                return Err(invalid("body.input must be a text or a list of 1 to 1,024 inputs".to_owned()));
            }
            None => return Err(invalid("body.input is missing".to_owned())),
        },
    }
    // Byte for byte as it came: the order of its keys and the digits of its numbers are the client's.
    let output_max = output_max(endpoint, &whole);
    Ok(Checked { output_max, inputs, model, body: text.to_owned() })
}

/// How many tokens all answers to a body may have together, where it says so.
fn output_max(endpoint: Endpoint, body: &Value) -> Option<u32> {
    let number = |name: &str| body.get(name).and_then(Value::as_u64);
    let (one, times) = match endpoint {
        Endpoint::ChatCompletions => {
            (number("max_completion_tokens").or_else(|| number("max_tokens"))?, number("n").unwrap_or(1))
        }
        Endpoint::Responses => (number("max_output_tokens")?, 1),
        Endpoint::Embeddings => (0, 1),
    };
    Some(u32::try_from(one.saturating_mul(times)).unwrap_or(u32::MAX))
}

/// How deep objects and lists lie in one another.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
