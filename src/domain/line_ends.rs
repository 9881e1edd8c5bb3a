//! Characters that JSON may have as they are within a string, and that some readers of lines take for line ends.

use std::borrow::Cow;
use std::fmt::Write as _;

/// NEXT LINE, LINE SEPARATOR and PARAGRAPH SEPARATOR.
pub const ALL: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];
/// Those that are escaped in a conversation. The lines of sessions are made again and compared with what they were, so
/// this stays as it is.
pub const OF_SESSIONS: [char; 2] = ['\u{2028}', '\u{2029}'];

/// The same JSON with these escaped. They can only stand within a string.
pub fn escape<'a>(json: &'a str, ends: &[char]) -> Cow<'a, str> {
    if !json.contains(ends) {
        return Cow::Borrowed(json);
    }
    let escaped = json.chars().fold(String::with_capacity(json.len()), |mut escaped, c| {
        match c {
            // Writing to a string cannot fail.
            c if ends.contains(&c) => drop(write!(escaped, "\\u{:04x}", u32::from(c))),
            c => escaped.push(c),
        }
        escaped
    });
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_says_the_same() {
        let json = "[\"a\u{2028}b\u{85}c\u{2029}\\u2028\u{e9}\"]";
        let escaped = escape(json, &ALL);
        assert_eq!(escaped, "[\"a\\u2028b\\u0085c\\u2029\\u2028\u{e9}\"]");
        let read = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(read(&escaped), read(json));
    }
}
