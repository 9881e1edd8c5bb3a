//! Single members of the provider's JSON, in every shape that some server gives them.

use serde_json::{Map, Value};

use crate::domain::id::Timestamp;

/// At most `chars` characters, with line breaks and other control characters made blank.
pub(in crate::provider) fn cut(text: &str, chars: usize) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(chars).collect()
}

/// A text that is not empty.
pub(in crate::provider) fn text(map: &Map<String, Value>, name: &str) -> Option<String> {
    map.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// An id goes into a path and into the store: it is short, printable, and no step up the path.
pub(in crate::provider) fn id(map: &Map<String, Value>) -> Option<String> {
    let usable =
        |id: &String| id.len() <= 1024 && id != "." && id != ".." && !id.chars().any(char::is_control);
    text(map, "id").filter(usable)
}

/// A text, or a number as text.
pub(in crate::provider) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A whole number from zero up, also as a float or as text.
pub(in crate::provider) fn count(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be within 2^53")]
fn whole(number: f64) -> Option<u64> {
    (0.0..=9_007_199_254_740_992.0).contains(&number).then_some(number as u64)
}

/// A moment: seconds since 1970 as a number or as text, or RFC 3339. Zero means that there is none.
pub(in crate::provider) fn time(map: &Map<String, Value>, name: &str) -> Option<Timestamp> {
    match map.get(name)? {
        Value::Number(number) => number.as_f64().and_then(moment),
        Value::String(text) => {
            let text = text.trim();
            if let Ok(number) = text.parse::<f64>() {
                return moment(number);
            }
            // Without an offset it is taken for UTC, as those who leave it out mean it.
            let at = text.parse::<jiff::Timestamp>().or_else(|_| format!("{text}Z").parse()).ok()?;
            Some(Timestamp::from_millis(at.as_millisecond()))
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn moment(number: f64) -> Option<Timestamp> {
    // Nobody counts seconds beyond the year 5000: such a number is in milliseconds.
    let millis = if number > 1e11 { number } else { number * 1000.0 };
    whole(millis.round())
        .filter(|millis| *millis > 0)
        .and_then(|millis| i64::try_from(millis).ok())
        .map(Timestamp::from_millis)
}
