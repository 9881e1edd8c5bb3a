//! The body of a request: the rules of contract section 3.1, because one bad line would fail a whole batch.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::body::Object;
use super::ingest::{LineError, place, wrong};
use crate::domain::nesting::is_deeper;
use crate::domain::request::Endpoint;

const MODEL_CHARS_MAX: usize = 128;
/// Readers of JSON give up at 128, and the line is one deeper than its body.
const DEPTH_MAX: usize = 100;
/// Inputs of an embeddings request. The provider takes 2,048, but one line must bring all their vectors home.
const INPUTS_MAX: usize = 1024;
/// Tokens of one input, and of all inputs of a request. Only lists of tokens are counted: a text is what its model makes
/// of it.
const INPUT_TOKENS_MAX: usize = 8192;
const TOKENS_MAX: usize = 300_000;

#[derive(serde::Deserialize)]
struct BodyPeek<'a> {
    model: Option<Value>,
    stream: Option<Value>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    max_completion_tokens: Option<Value>,
    max_tokens: Option<Value>,
    max_output_tokens: Option<Value>,
    n: Option<Value>,
}

/// Any JSON, read to its last escape and kept nowhere: a body of some megabytes would take gigabytes as a tree.
struct Sound;

impl<'de> Deserialize<'de> for Sound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Sound {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// The entries of a list, as they stand in the text; none where it is no list.
fn entries(list: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(list.get()).ok()
}

fn is_text(value: &RawValue) -> bool {
    value.get().starts_with('"') && value.get() != "\"\""
}

/// A list that is not empty, of objects.
fn are_objects(list: &RawValue) -> bool {
    let is_object = |entry: &&RawValue| entry.get().starts_with('{');
    entries(list).is_some_and(|entries| !entries.is_empty() && entries.iter().all(is_object))
}

/// A prompt that is kept at the provider, which stands for an input.
fn is_prompt(value: &RawValue) -> bool {
    #[derive(serde::Deserialize)]
    struct Prompt<'a> {
        #[serde(borrow)]
        id: &'a RawValue,
    }
    let prompt: Option<Object<Prompt<'_>>> = serde_json::from_str(value.get()).ok();
    prompt.is_some_and(|Object(prompt)| is_text(prompt.id))
}

/// How many tokens an input has that is a list of numbers; none where it is something else.
fn tokens(value: &RawValue) -> Option<usize> {
    let tokens = entries(value).filter(|tokens| !tokens.is_empty())?;
    let is_number = |token: &&RawValue| token.get().bytes().all(|byte| byte.is_ascii_digit());
    tokens.iter().all(is_number).then_some(tokens.len())
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
    if is_deeper(text, DEPTH_MAX) {
        return Err(invalid(format!("body is nested more than {DEPTH_MAX} deep")));
    }
    // Reading it whole finds what a look at the outline does not: escapes that are no characters, for instance.
    let _: Sound = serde_json::from_str(text).map_err(|err| invalid(format!("body: {}", place(&err))))?;
    let peek: BodyPeek<'_> =
        serde_json::from_str(text).map_err(|err| invalid(format!("body: {}", place(&err))))?;
    let output_max = peek.output_max(endpoint);
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
            let Some(messages) = peek.messages else {
                return Err(invalid("body.messages is missing".to_owned()));
            };
            if !are_objects(messages) {
                return Err(invalid("body.messages must be a list of at least one message".to_owned()));
            }
        }
        Endpoint::Responses => {
            if peek.prompt.is_some_and(|prompt| !is_prompt(prompt)) {
                return Err(invalid("body.prompt must be an object with the id of a prompt".to_owned()));
            }
            match peek.input {
                None if peek.prompt.is_some() => {}
                None => return Err(invalid("body.input is missing".to_owned())),
                Some(input) if is_text(input) || are_objects(input) => {}
                Some(_) => {
                    let detail = "body.input must be a text or a list of at least one item, each an object";
                    return Err(invalid(detail.to_owned()));
                }
            }
        }
        Endpoint::Embeddings => inputs = count_inputs(peek.input)?,
    }
    // Byte for byte as it came: the order of its keys and the digits of its numbers are the client's.
    Ok(Checked { output_max, inputs, model, body: text.to_owned() })
}

/// How many inputs an embeddings request has.
fn count_inputs(input: Option<&RawValue>) -> Result<u32, LineError> {
    let invalid = |detail: String| wrong("invalid_request", detail);
    let Some(input) = input else { return Err(invalid("body.input is missing".to_owned())) };
    let too_long = |place: &str, count: usize| {
        let tokens = format!("{place} has {count} tokens, and one input may have {INPUT_TOKENS_MAX}");
        invalid(format!("{tokens}: split it into several inputs"))
    };
    if is_text(input) {
        return Ok(1);
    }
    if let Some(count) = tokens(input) {
        return if count > INPUT_TOKENS_MAX { Err(too_long("body.input", count)) } else { Ok(1) };
    }
    let Some(items) = entries(input).filter(|items| (1..=INPUTS_MAX).contains(&items.len())) else {
        return Err(invalid("body.input must be a text or a list of 1 to 1,024 inputs".to_owned()));
    };
    let mut all = 0;
    for (at, item) in items.iter().enumerate() {
        match tokens(item) {
            Some(count) if count > INPUT_TOKENS_MAX => {
                return Err(too_long(&format!("body.input[{at}]"), count));
            }
            Some(count) => all += count,
            None if is_text(item) => {}
            None => {
                return Err(invalid(format!("body.input[{at}] must be a text, or tokens, and not empty")));
            }
        }
    }
    if all > TOKENS_MAX {
        let tokens = format!("body.input has {all} tokens in all, and a request may have {TOKENS_MAX}");
        return Err(invalid(format!("{tokens}: send its inputs as several requests")));
    }
    Ok(u32::try_from(items.len()).unwrap_or(u32::MAX))
}

impl BodyPeek<'_> {
    /// How many tokens all answers to a body may have together, where it says so.
    fn output_max(&self, endpoint: Endpoint) -> Option<u32> {
        let number = |value: &Option<Value>| value.as_ref().and_then(Value::as_u64);
        let (one, times) = match endpoint {
            Endpoint::ChatCompletions => {
                let max = number(&self.max_completion_tokens).or_else(|| number(&self.max_tokens))?;
                (max, number(&self.n).unwrap_or(1))
            }
            Endpoint::Responses => (number(&self.max_output_tokens)?, 1),
            Endpoint::Embeddings => (0, 1),
        };
        Some(u32::try_from(one.saturating_mul(times)).unwrap_or(u32::MAX))
    }
}
