//! Arrays of JSON from outside, of which so many entries are kept: each costs memory of its own, however short it is.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The first entries of an array as they stand in it; of one with more than `MAX` one more than that, just enough to see
/// it.
#[derive(Debug)]
pub struct Entries<'a, const MAX: usize>(pub Vec<&'a RawValue>);

impl<'de, const MAX: usize> Deserialize<'de> for Entries<'de, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit<const MAX: usize>;
        impl<'de, const MAX: usize> Visitor<'de> for Visit<MAX> {
            type Value = Entries<'de, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while entries.len() <= MAX {
                    match seq.next_element()? {
                        Some(entry) => entries.push(entry),
                        None => return Ok(Entries(entries)),
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_seq(Visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_array_just_enough_is_kept_and_all_of_it_is_read() {
        let kept = |json| serde_json::from_str::<Entries<'_, 2>>(json).map(|Entries(entries)| entries.len());
        assert_eq!([kept("[]").unwrap(), kept("[1, {}]").unwrap(), kept("[1,2,3]").unwrap()], [0, 2, 3]);
        assert_eq!(kept("[1,2,3,4,5]").unwrap(), 3);
        assert!(kept("[1,2,3,4,").is_err() && kept("{}").is_err());
    }
}
