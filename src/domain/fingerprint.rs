//! What JSON says, whatever way it is written: the order of an object's members, blanks and escapes do not count.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

/// From so many digits on a reader of JSON may round: what is written is what counts then.
const DIGITS_EXACT: usize = 15;

/// A SHA-256 that is the same for the same JSON. Texts that are no JSON, and those with numbers that a reader would round,
/// are taken as they are written. Of a member that is there twice both count.
pub fn of_json(json: &str) -> [u8; 32] {
    if !has_long_number(json)
        && let Ok(Print(print)) = serde_json::from_str(json)
    {
        return print;
    }
    tagged(b'w', [json.as_bytes()])
}

fn has_long_number(json: &str) -> bool {
    let mut digits = 0;
    json.bytes().any(|byte| {
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        digits > DIGITS_EXACT
    })
}

fn tagged<'a>(tag: u8, pieces: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update([tag]);
    for piece in pieces {
        hash.update((piece.len() as u64).to_be_bytes());
        hash.update(piece);
    }
    hash.finalize().into()
}

/// The print of one value, made of those in it.
struct Print([u8; 32]);

impl<'de> Deserialize<'de> for Print {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Printing)
    }
}

struct Printing;

impl<'de> Visitor<'de> for Printing {
    type Value = Print;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Print, E> {
        Ok(Print(tagged(b'n', [])))
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Print, E> {
        Ok(Print(tagged(b'b', [[u8::from(truth)].as_slice()])))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Print, E> {
        Ok(Print(tagged(b'u', [number.to_be_bytes().as_slice()])))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Print, E> {
        Ok(Print(tagged(b'i', [number.to_be_bytes().as_slice()])))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Print, E> {
        Ok(Print(tagged(b'f', [number.to_bits().to_be_bytes().as_slice()])))
    }

    fn visit_str<E>(self, text: &str) -> Result<Print, E> {
        Ok(Print(tagged(b's', [text.as_bytes()])))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Print, A::Error> {
        let mut hash = Sha256::new();
        hash.update(b"l");
        while let Some(Print(entry)) = seq.next_element()? {
            hash.update(entry);
        }
        Ok(Print(hash.finalize().into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Print, A::Error> {
        let mut members = Vec::new();
        while let Some((Print(name), Print(value))) = map.next_entry()? {
            members.push([name, value]);
        }
        members.sort_unstable();
        let mut hash = Sha256::new();
        hash.update(b"o");
        members.iter().flatten().for_each(|part| hash.update(part));
        Ok(Print(hash.finalize().into()))
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
