//! Looks at a few members of a JSON object without reading the rest of it.
//!
//! Values stay as the text that they are, borrowed: nothing is built from what is not asked for, and nesting
//! costs no stack.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Some members of an object.
pub(super) struct Peek<'a, const N: usize> {
    /// The text of each member that was asked for; the last, where a name is repeated.
    pub values: [Option<&'a str>; N],
    /// Whether the text is one whole object. If not, `values` holds what stood before the trouble.
    pub whole: bool,
}

/// Looks for `names` at the top of the object `text`.
pub(super) fn peek<'a, const N: usize>(text: &'a str, names: [&str; N]) -> Peek<'a, N> {
    let mut values = [None; N];
    let mut json = serde_json::Deserializer::from_str(text);
    let read = json.deserialize_map(Members { names: &names, values: &mut values });
    let whole = read.is_ok() && json.end().is_ok();
    Peek { values, whole }
}

struct Members<'n, 'v, 'a> {
    names: &'n [&'n str],
    values: &'v mut [Option<&'a str>],
}

impl<'a> Visitor<'a> for Members<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(index) = map.next_key_seed(Name(self.names))? {
            match index.and_then(|index| self.values.get_mut(index)) {
                Some(slot) => *slot = Some(map.next_value::<&RawValue>()?.get()),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// The place of a member's name among those asked for.
struct Name<'n>(&'n [&'n str]);

impl<'a> DeserializeSeed<'a> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'a>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|asked| *asked == name))
    }
}

/// A member that is there and not null.
pub(super) fn present(member: Option<&str>) -> Option<&str> {
    member.filter(|text| *text != "null")
}

/// A text that is not empty, or a number as text.
pub(super) fn word(json: &str) -> Option<String> {
    match json.as_bytes().first()? {
        b'"' => serde_json::from_str::<String>(json).ok().filter(|text| !text.is_empty()),
        b'0'..=b'9' | b'-' => Some(json.to_owned()),
        _ => None,
    }
}

/// A whole number from zero up, also as a float or as text.
pub(super) fn number(json: &str) -> Option<u64> {
    let bare = json.trim_matches('"').trim();
    bare.parse().ok().or_else(|| bare.parse::<f64>().ok().and_then(whole))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be within 2^53")]
fn whole(number: f64) -> Option<u64> {
    (0.0..=9_007_199_254_740_992.0).contains(&number).then_some(number as u64)
}
