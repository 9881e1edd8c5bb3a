//! What JSON says, whatever way it is written: the order of an object's members, blanks and escapes do not count.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

/// From so many digits on a reader of JSON may round: what is written is what counts then.
const DIGITS_EXACT: usize = 15;
/// Of a longer text what is written counts: to take it apart would hold up everybody else.
const BYTES_MAX: usize = 64 << 10;

/// A SHA-256 that is the same for the same JSON. Texts that are no JSON, long ones, and those with numbers that a reader
/// would round are taken as they are written. Of a member that is there twice both count.
pub fn of_json(json: &str) -> [u8; 32] {
    let canonical = if json.len() > BYTES_MAX || has_long_number(json) {
        None
    } else {
        serde_json::from_str::<Canonical>(json).ok()
    };
    let mut hash = Sha256::new();
    match &canonical {
        Some(Canonical(bytes)) => {
            hash.update(b"c");
            hash.update(bytes);
        }
        None => {
            hash.update(b"w");
            hash.update(json);
        }
    }
    hash.finalize().into()
}

fn has_long_number(json: &str) -> bool {
    let mut digits = 0;
    json.bytes().any(|byte| {
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        digits > DIGITS_EXACT
    })
}

/// A value in the one form that it has here: what it is, how long it is, and its parts; members in order.
struct Canonical(Vec<u8>);

impl Canonical {
    fn of<E>(kind: u8, content: &[u8]) -> Result<Self, E> {
        let mut bytes = Vec::with_capacity(9 + content.len());
        bytes.push(kind);
        bytes.extend_from_slice(&(content.len() as u64).to_be_bytes());
        bytes.extend_from_slice(content);
        Ok(Self(bytes))
    }
}

impl<'de> Deserialize<'de> for Canonical {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading)
    }
}

struct Reading;

impl<'de> Visitor<'de> for Reading {
    type Value = Canonical;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Canonical, E> {
        Canonical::of(b'n', &[])
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Canonical, E> {
        Canonical::of(b'b', &[u8::from(truth)])
    }

    fn visit_u64<E>(self, number: u64) -> Result<Canonical, E> {
        Canonical::of(b'u', &number.to_be_bytes())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Canonical, E> {
        Canonical::of(b'i', &number.to_be_bytes())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Canonical, E> {
        Canonical::of(b'f', &number.to_bits().to_be_bytes())
    }

    fn visit_str<E>(self, text: &str) -> Result<Canonical, E> {
        Canonical::of(b's', text.as_bytes())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Canonical, A::Error> {
        let mut entries = Vec::new();
        while let Some(Canonical(entry)) = seq.next_element()? {
            entries.extend_from_slice(&entry);
        }
        Canonical::of(b'l', &entries)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Canonical, A::Error> {
        let mut members = Vec::new();
        while let Some((Canonical(mut member), Canonical(value))) = map.next_entry()? {
            member.extend_from_slice(&value);
            members.push(member);
        }
        members.sort_unstable();
        Canonical::of(b'o', &members.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_in_another_spelling_is_the_same() {
        let one = of_json(r#"{"a":[1,-2,2.5,"A\n",null,true],"b":{"x":"","y":{}}}"#);
        for same in [
            r#" { "b" : {"y":{ },"x":""}, "a" : [ 1, -2, 2.50, "\u0041\n", null, true ] } "#,
            "{\"b\":{\"x\":\"\",\"y\":{}},\n\"a\":[1,-2,25e-1,\"A\\u000a\",null,true]}",
        ] {
            assert_eq!(of_json(same), one, "{same}");
        }
        assert_eq!(of_json("[1000000000000000000000]"), of_json("[1000000000000000000000]"));
    }

    #[test]
    fn what_says_something_else_is_another() {
        let all = [
            "null",
            "true",
            "false",
            "0",
            "1",
            "-1",
            "1.5",
            "\"\"",
            "\"1\"",
            "\"null\"",
            "[]",
            "[[]]",
            "[1]",
            "[1,1]",
            "[[1],1]",
            "{}",
            "[{}]",
            r#"{"a":1}"#,
            r#"{"a":"1"}"#,
            r#"{"a":1,"b":2}"#,
            r#"{"a":2,"b":1}"#,
            r#"["a",1]"#,
            r#"{"a":{"b":1}}"#,
            r#"{"a":1,"a":2}"#,
            "9007199254740993",
            "9007199254740992",
            "18446744073709551616",
            "18446744073709551617",
            "0.1234567890123456789",
            "0.1234567890123456788",
            "not JSON",
            "{",
            "",
        ];
        let prints: std::collections::HashSet<_> = all.iter().map(|json| of_json(json)).collect();
        assert_eq!(prints.len(), all.len());
    }
}
