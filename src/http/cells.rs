//! Rows as CSV after RFC 4180: quoted where needed, lines ended by CRLF, UTF-8.
//!
//! A spreadsheet takes a cell for a formula by how it begins, and formulas read files and call addresses. So a text that
//! would be taken for one gets a `'` in front. One that takes `;` or a tab for the separator splits our texts there and,
//! since it does not see our quotes, begins a new row at each line end within them: behind these a formula gets a `'`,
//! too. Numbers are ours and stay as they are.

use serde_json::Value;

use crate::store::StoreError;

/// A column: its name, and where the value lies in the row.
pub type Column = (&'static str, &'static str);

/// Of requests.
const REQUEST: &[Column] = &[
    ("id", "/id"),
    ("clientId", "/clientId"),
    ("sessionId", "/sessionId"),
    ("status", "/status"),
    ("endpoint", "/endpoint"),
    ("model", "/model"),
    ("requestedAt", "/requestedAt"),
    ("completedAt", "/completedAt"),
    ("attempts", "/attempts"),
    ("errorClass", "/errorClass"),
    ("error", "/error"),
    ("batchId", "/batchId"),
    ("priority", "/priority"),
    ("notBefore", "/notBefore"),
    ("metadata", "/metadata"),
    ("answeredModel", "/answeredModel"),
    ("promptTokens", "/usage/promptTokens"),
    ("completionTokens", "/usage/completionTokens"),
    ("totalTokens", "/usage/totalTokens"),
    ("cachedTokens", "/usage/cachedTokens"),
    ("reasoningTokens", "/usage/reasoningTokens"),
    ("costMicros", "/costMicros"),
    ("currency", "/currency"),
    ("result", "/result"),
];

/// Of sessions.
const SESSION: &[Column] = &[
    ("id", "/id"),
    ("externalId", "/externalId"),
    ("state", "/state"),
    ("version", "/version"),
    ("messages", "/messages"),
    ("receivedAt", "/receivedAt"),
    ("startedAt", "/startedAt"),
    ("endedAt", "/endedAt"),
    ("changedAt", "/changedAt"),
    ("requestId", "/requestId"),
    ("requestStatus", "/requestStatus"),
    ("errorClass", "/errorClass"),
    ("error", "/error"),
    ("costMicros", "/costMicros"),
    ("currency", "/currency"),
    ("language", "/analysis/language"),
    ("sentiment", "/analysis/sentiment"),
    ("escalated", "/analysis/escalated"),
    ("forwardedHr", "/analysis/forwarded_hr"),
    ("category", "/analysis/category"),
    ("questions", "/analysis/questions"),
    ("summary", "/analysis/summary"),
    ("facts.country", "/facts/country"),
    ("facts.language", "/facts/language"),
    ("facts.ipAddress", "/facts/ipAddress"),
    ("facts.messagesSent", "/facts/messagesSent"),
    ("facts.sentiment", "/facts/sentiment"),
    ("facts.escalated", "/facts/escalated"),
    ("facts.forwardedHr", "/facts/forwardedHr"),
    ("facts.transcript", "/facts/transcript"),
    ("facts.avgResponseMs", "/facts/avgResponseMs"),
    ("facts.tokens", "/facts/tokens"),
    ("facts.tokensEurMicros", "/facts/tokensEurMicros"),
    ("facts.category", "/facts/category"),
    ("facts.firstMessage", "/facts/firstMessage"),
    ("metadata", "/metadata"),
];

/// Of requests, with what is shown besides.
pub fn of_requests(include: &[&str]) -> Vec<Column> {
    with(REQUEST, include, &[("body", ("body", "/body")), ("misfits", ("misfits", "/misfits"))])
}

/// Of sessions, with what is shown besides.
pub fn of_sessions(include: &[&str]) -> Vec<Column> {
    with(SESSION, include, &[("messages", ("conversation", "/conversation"))])
}

fn with(columns: &[Column], include: &[&str], more: &[(&str, Column)]) -> Vec<Column> {
    let more = more.iter().filter(|(word, _)| include.contains(word));
    columns.iter().copied().chain(more.map(|(_, column)| *column)).collect()
}

/// The line of names.
pub fn head(columns: &[Column], to: &mut Vec<u8>) -> Result<(), StoreError> {
    record(columns.iter().map(|(name, _)| (*name).to_owned()), to)
}

/// The line of one row.
pub fn row(columns: &[Column], row: &Value, to: &mut Vec<u8>) -> Result<(), StoreError> {
    record(columns.iter().map(|(_, pointer)| cell(row.pointer(pointer).unwrap_or(&Value::Null))), to)
}

fn record(cells: impl Iterator<Item = String>, to: &mut Vec<u8>) -> Result<(), StoreError> {
    let mut builder = csv::WriterBuilder::new();
    let mut writer = builder.terminator(csv::Terminator::CRLF).from_writer(to);
    let written = writer.write_record(cells.map(String::into_bytes));
    written.map_err(|err| StoreError::Codec(err.to_string()))?;
    writer.flush().map_err(|err| StoreError::Codec(err.to_string()))
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => harmless(text.clone()),
        Value::Array(_) | Value::Object(_) => harmless(value.to_string()),
    }
}

/// The text with a `'` wherever a spreadsheet would take what comes next for a formula.
fn harmless(text: String) -> String {
    if guards(&text).next().is_none() {
        return text;
    }
    let (mut safe, mut from) = (String::with_capacity(text.len() + 8), 0);
    for at in guards(&text) {
        safe.push_str(&text[from..at]);
        safe.push('\'');
        from = at;
    }
    safe.push_str(&text[from..]);
    safe
}

/// Where a `'` has to stand: in front of a text that begins like a formula, and of a formula's sign behind what some
/// reader takes for the end of a cell. That is a sign also behind white space, quotes or a byte order mark, which some
/// programs drop, and in the full-width forms that some take for the plain ones.
fn guards(text: &str) -> impl Iterator<Item = usize> {
    let in_front = text.starts_with(['\t', '\r', '\n', '\0']);
    let (mut is_first, mut begins) = (true, true);
    let signs = text.char_indices().filter_map(move |(at, c)| {
        let is_sign = begins && matches!(c, '=' | '+' | '-' | '@' | '＝' | '＋' | '－' | '＠');
        let place = if is_first { 0 } else { at };
        let is_new = is_sign && !(is_first && in_front);
        let ends_cell = matches!(c, ';' | '\t' | '\r' | '\n');
        is_first &= !ends_cell;
        begins =
            ends_cell || begins && (c.is_whitespace() || c.is_control() || matches!(c, '"' | '\u{feff}'));
        is_new.then_some(place)
    });
    in_front.then_some(0).into_iter().chain(signs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn what_begins_like_a_formula_gets_a_quote_in_front_and_numbers_do_not() {
        for bad in [
            "=1+1",
            "+1",
            "-1",
            "@a",
            "\tx",
            "\rx",
            "\nx",
            "\0x",
            "＝1",
            "＋1",
            "－1",
            "＠a",
            "  =1",
            "\u{feff}=1",
            "\"=1\"",
        ] {
            assert_eq!(cell(&json!(bad)), format!("'{bad}"));
        }
        for (within, safe) in [
            ("hello;=HYPERLINK(\"http://x\")", "hello;'=HYPERLINK(\"http://x\")"),
            ("a\t @b", "a\t '@b"),
            ("a:\n- b\r\n\"-c", "a:\n'- b\r\n\"'-c"),
            ("=1; \u{feff}＝2;3", "'=1; \u{feff}'＝2;3"),
            ("\t=1", "'\t'=1"),
        ] {
            assert_eq!(cell(&json!(within)), safe);
        }
        for good in ["", "a=1", "1-2", "'=1", " a", "{}", "a, -b", "a; b - c\nd;", "a;b=-c"] {
            assert_eq!(cell(&json!(good)), good);
        }
        assert_eq!((cell(&json!(-128)).as_str(), cell(&json!(true)).as_str()), ("-128", "true"));
        assert_eq!((cell(&json!(["-a"])).as_str(), cell(&Value::Null).as_str()), (r#"["-a"]"#, ""));
    }

    #[test]
    fn a_line_ends_with_crlf_and_is_quoted_where_it_must_be() {
        let mut bytes = Vec::new();
        let columns = [("a", "/a"), ("b", "/b/c"), ("d", "/d")];
        head(&columns, &mut bytes).unwrap();
        row(&columns, &json!({ "a": "x\"y", "b": { "c": 7 }, "d": "1,2\r\n3" }), &mut bytes).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), "a,b,d\r\n\"x\"\"y\",7,\"1,2\r\n3\"\r\n");
    }

    /// Whether a reader would take this for a formula.
    fn is_formula(piece: &str) -> bool {
        let dropped = |c: char| c.is_whitespace() || c.is_control() || "\"\u{feff}".contains(c);
        piece.trim_start_matches(dropped).starts_with(|c| "=+-@＝＋－＠".contains(c))
    }

    proptest! {
        #[test]
        fn wherever_a_reader_splits_no_text_begins_like_a_formula_and_every_text_is_still_there(
            texts in prop::collection::vec(
                "[ \t\r\n\0\u{feff}]{0,2}([=+@＝＋－＠-]?\\PC{0,4}[\",;\t\r\n]{0,2}[ \"]?){0,4}[=+-]?",
                3..=3
            )
        ) {
            let columns = [("a", "/0"), ("b", "/1"), ("c", "/2")];
            let mut bytes = Vec::new();
            // A reader drops a byte order mark at the very begin: there stands the line of names.
            head(&columns, &mut bytes).unwrap();
            row(&columns, &json!(texts), &mut bytes).unwrap();
            let mut reader = csv::Reader::from_reader(bytes.as_slice());
            let record = reader.records().next().unwrap().unwrap();
            prop_assert_eq!(record.len(), 3);
            for (cell, text) in record.iter().zip(&texts) {
                prop_assert_eq!(cell.replace('\'', ""), text.replace('\'', ""));
                prop_assert!(!is_formula(cell) && !cell.starts_with(['\t', '\r', '\0']), "{:?}", cell);
            }
            let raw = String::from_utf8(bytes).unwrap();
            for ends in [&[';'][..], &['\t'], &['\r', '\n'], &[';', '\t', '\r', '\n']] {
                for piece in raw.split(ends) {
                    prop_assert!(!is_formula(piece), "{:?} of {:?}", piece, raw);
                }
            }
        }
    }
}
