//! Exports as they come, sound and broken.

use super::*;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use std::io::{self, Cursor};

fn options() -> Options {
    Options { time_zone: TimeZone::get("Europe/Amsterdam").unwrap() }
}

fn read(bytes: impl AsRef<[u8]>) -> Vec<Result<Row, RowError>> {
    Rows::new(Cursor::new(bytes.as_ref().to_vec()), options()).collect()
}

/// The ids of good rows, and the lines of bad ones.
fn outline(bytes: impl AsRef<[u8]>) -> Vec<Result<String, u64>> {
    read(bytes).into_iter().map(|row| row.map(|row| row.external_id).map_err(|err| err.line)).collect()
}

fn ok(id: &str) -> Result<String, u64> {
    Ok(id.to_owned())
}

fn plain(id: &str) -> String {
    format!("{id},,,,,,,,,,,,,,,\n")
}

const FULL: &str = "id-1,03.06.2025 19:10:20,03.06.2025 19:17:44,192.0.2.81,NL,dutch,12,happy,true,nee,\
    transcripts/1.txt,3.580,1234,\"0,0123\",Leave,\"Hi, I am\nill\"\n";

#[test]
fn every_column_of_a_full_row_is_read() {
    let rows = read(FULL);
    let row = rows[0].as_ref().unwrap();
    assert_eq!((row.line, row.external_id.as_str(), row.encoding), (1, "id-1", Encoding::Utf8));
    let facts = &row.facts;
    assert_eq!(facts.started_at.unwrap().to_string(), "2025-06-03T17:10:20.000Z");
    assert_eq!(facts.ended_at.unwrap().to_string(), "2025-06-03T17:17:44.000Z");
    assert_eq!(facts.ip_address.as_deref(), Some("192.0.2.81"));
    assert_eq!((facts.country.as_deref(), facts.language.as_deref()), (Some("NL"), Some("dutch")));
    assert_eq!((facts.messages_sent, facts.sentiment.as_deref()), (Some(12), Some("happy")));
    assert_eq!((facts.escalated, facts.forwarded_hr), (Some(true), Some(false)));
    assert_eq!(facts.transcript.as_deref(), Some("transcripts/1.txt"));
    assert_eq!((facts.avg_response_ms, facts.tokens), (Some(3580), Some(1234)));
    assert_eq!((facts.tokens_eur_micros, facts.category.as_deref()), (Some(12_300), Some("Leave")));
    assert_eq!(facts.first_message.as_deref(), Some("Hi, I am\nill"));
}

#[test]
fn nought_stays_nought_and_nothing_is_none() {
    let rows = read("a,,,,,,0,,0,,,0,0,0,,\nb,,,,,, ,,,,,,,,,\n");
    let facts = &rows[0].as_ref().unwrap().facts;
    assert_eq!((facts.messages_sent, facts.tokens, facts.tokens_eur_micros), (Some(0), Some(0), Some(0)));
    assert_eq!((facts.escalated, facts.avg_response_ms), (Some(false), Some(0)));
    assert_eq!(rows[1].as_ref().unwrap().facts, SessionFacts::default());
}

#[test]
fn a_header_is_no_session_and_may_change_the_order() {
    let file = "Category,Session ID,start-time,unknown thing,TOKENS_EUR\nLeave,x,01.01.2025 10:00:00,?,1.5\n";
    let rows = read(file);
    assert_eq!(rows.len(), 1);
    let row = rows[0].as_ref().unwrap();
    assert_eq!((row.line, row.external_id.as_str()), (2, "x"));
    assert_eq!(row.facts.category.as_deref(), Some("Leave"));
    assert_eq!(row.facts.tokens_eur_micros, Some(1_500_000));
    assert_eq!(row.facts.started_at.unwrap().to_string(), "2025-01-01T09:00:00.000Z");
}

#[test]
fn a_header_behind_blank_lines_is_one() {
    for (blank, delimiter) in [("\n", ","), ("\r\n \t\r\n", ","), ("\n\n", ";")] {
        let header = ["session_id", "language", "country"].join(delimiter);
        let text = format!("{blank}{header}\n{}\n", ["a", "dutch", "NL"].join(delimiter));
        let rows = read(&text);
        assert_eq!(rows.len(), 1, "{text:?}");
        let row = rows[0].as_ref().unwrap();
        assert_eq!(
            (row.facts.language.as_deref(), row.facts.country.as_deref()),
            (Some("dutch"), Some("NL"))
        );
        assert_eq!(row.line as usize, text.matches('\n').count());
    }
}

#[test]
fn the_names_that_we_print_are_a_header_that_we_read() {
    let names: Vec<&str> = COLUMNS.iter().map(|names| names[0]).collect();
    assert_eq!(outline(format!("{}\n{}", names.join(","), plain("a"))), [ok("a")]);
    let all: Vec<String> = COLUMNS.iter().flat_map(|names| names.iter()).map(|name| letters(name)).collect();
    let mut unique = all.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(all.len(), unique.len(), "one name means one column");
}

#[test]
fn a_session_called_id_is_not_a_header() {
    assert_eq!(outline(plain("id")), [ok("id")]);
}

#[test]
fn byte_order_mark_carriage_returns_blank_lines_and_a_missing_last_line_end_are_fine() {
    let file = format!("\u{feff}{}\r\n\n  \r\n{}", plain("a").replace('\n', "\r\n"), plain("b").trim_end());
    let rows = read(file);
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].as_ref().unwrap().external_id, "a");
    assert_eq!(rows[1].as_ref().unwrap().line, 5);
    assert_eq!(outline(format!("{}{}", plain("a"), plain("b")).replace('\n', "\r")), [ok("a"), ok("b")]);
    assert_eq!(outline(""), []);
    assert_eq!(outline("\u{feff}"), []);
    assert_eq!(outline("\n\n"), []);
}

#[test]
fn lines_are_counted_also_inside_quotes() {
    let file = format!("{FULL}{}{FULL}bad\n{}", plain("b"), plain("c"));
    let lines: Vec<u64> =
        read(file).iter().map(|row| row.as_ref().map_or_else(|err| err.line, |row| row.line)).collect();
    assert_eq!(lines, [1, 3, 4, 6, 7]);
}

#[test]
fn semicolons_are_taken_where_the_first_row_has_sixteen_columns_with_them() {
    let file = "a;;;;;;;;;;;;;0,5;;one, two\nb;;;;;;;;;;;;;;;\n";
    let rows = read(file);
    assert_eq!(rows[0].as_ref().unwrap().facts.tokens_eur_micros, Some(500_000));
    assert_eq!(rows[0].as_ref().unwrap().facts.first_message.as_deref(), Some("one, two"));
    assert_eq!(outline(file), [ok("a"), ok("b")]);
    assert_eq!(outline("session_id;category\na;x\n"), [ok("a")]);
}

#[test]
fn a_row_that_is_not_utf_8_is_windows_1252_and_says_so() {
    let mut file = plain("a").into_bytes();
    file.extend(b"b,,,,,,,,,,,,,\x80 1,caf\xe9,\n");
    file.extend("c,,,,,,,,,,,,,,café,\n".bytes());
    let rows = read(file);
    let encodings: Vec<Encoding> = rows.iter().map(|row| row.as_ref().unwrap().encoding).collect();
    assert_eq!(encodings, [Encoding::Utf8, Encoding::Windows1252, Encoding::Utf8]);
    for row in &rows[1..] {
        assert_eq!(row.as_ref().unwrap().facts.category.as_deref(), Some("café"));
    }
    assert_eq!(rows[1].as_ref().unwrap().facts.tokens_eur_micros, Some(1_000_000));
}

#[test]
fn utf_16_is_refused_in_words() {
    let rows = read([0xff, 0xfe, b'a', 0]);
    assert!(rows[0].as_ref().unwrap_err().reason.contains("UTF-16"));
    assert_eq!(rows.len(), 1);
}

#[test]
fn a_bad_row_names_its_column_and_stops_nothing() {
    let bad = [
        ("a,32.01.2025 10:00:00,,,,,,,,,,,,,,", 1, "start_time", "not a time"),
        ("a,,,,,,many,,,,,,,,,", 6, "messages_sent", "not a whole number"),
        ("a,,,,,,1.5,,,,,,,,,", 6, "messages_sent", "not a whole number"),
        ("a,,,,,,,,maybe,,,,,,,", 8, "escalated", "not yes or no"),
        ("a,,,,,,,,,,,fast,,,,", 11, "avg_response_time", "not a number of seconds"),
        ("a,,,,,,,,,,,,-5,,,", 12, "tokens", "not a whole number"),
        ("a,,,,,,,,,,,,,\"1.234,5\",,", 13, "tokens_eur", "not an amount"),
        (",,,,,,,,,,,,,,,x", 0, "session_id", "empty"),
        ("\u{1},,,,,,,,,,,,,,,", 0, "session_id", "control"),
    ];
    for (line, index, name, reason) in bad {
        let rows = read(format!("{}{line}\n{}", plain("before"), plain("after")));
        let err = rows[1].as_ref().unwrap_err();
        assert_eq!((err.line, err.column), (2, Some((index, name))), "{line}");
        assert!(err.reason.contains(reason), "{err}");
        assert!(!err.ends_file);
        assert_eq!(rows[2].as_ref().unwrap().external_id, "after");
    }
}

#[test]
fn a_row_of_the_wrong_width_is_an_error_and_empty_columns_more_are_not() {
    assert_eq!(outline(format!("{}a,b\n{}", plain("x"), plain("y"))), [ok("x"), Err(2), ok("y")]);
    assert_eq!(outline(format!("{},,,\n", plain("a").trim_end())), [ok("a")]);
    assert_eq!(outline(format!("{},,x\n{}", plain("a").trim_end(), plain("b"))), [Err(1), ok("b")]);
}

#[test]
fn a_quote_that_is_never_closed_costs_one_row_and_not_the_rest_of_the_file() {
    let torn = "t,,,,,,,,,,,,,,,\"oops\n";
    let file = format!("{}{torn}{}{}", plain("a"), plain("b"), plain("c"));
    assert_eq!(outline(file), [ok("a"), Err(2), ok("b"), ok("c")]);
    // The next quote closes it: the row in between must not be swallowed.
    assert_eq!(outline(format!("{torn}{}{FULL}", plain("b"))), [Err(1), ok("b"), ok("id-1")]);
    // Far from the end of the file it is the limit of a field that finds it.
    let rest: String = (0..80_000).map(|n| plain(&n.to_string())).collect();
    assert_eq!(outline(format!("{torn}{rest}")).iter().filter(|row| row.is_ok()).count(), 80_000);
}

#[test]
fn quotes_inside_a_field_are_doubled_or_plain() {
    let rows = read("a,,,,,,,,,,,,,,say \"hi\",\"say \"\"hi\"\"\"\n");
    let facts = &rows[0].as_ref().unwrap().facts;
    assert_eq!(facts.category.as_deref(), Some("say \"hi\""));
    assert_eq!(facts.first_message.as_deref(), Some("say \"hi\""));
}

#[test]
fn fields_and_rows_and_widths_beyond_all_reason_are_refused() {
    let long = "x".repeat(FIELD_BYTES_MAX + 1);
    let file = format!("{}a,,,,,,,,,,,,,,,{long}\n{}", plain("a"), plain("b"));
    assert_eq!(outline(file), [ok("a"), Err(2), ok("b")]);
    let file = format!("{}{}\n{}", plain("a"), ",".repeat(1_000), plain("b"));
    assert_eq!(outline(file), [ok("a"), Err(2), ok("b")]);
    let row = format!("a{}\n", format!(",{}", "x".repeat(FIELD_BYTES_MAX - 1)).repeat(5));
    assert_eq!(outline(format!("{}{row}{}", plain("a"), plain("b"))), [ok("a"), Err(2), ok("b")]);
}

/// Fails after its bytes.
struct Torn(Cursor<Vec<u8>>);

impl Read for Torn {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::other("the line went dead")),
            count => Ok(count),
        }
    }
}

#[test]
fn an_error_of_the_reader_is_reported_once_and_ends_the_file() {
    let file = format!("{}{}half,a", plain("a"), plain("b"));
    let rows: Vec<_> = Rows::new(Torn(Cursor::new(file.into_bytes())), options()).collect();
    assert_eq!(rows.len(), 3);
    let err = rows[2].as_ref().unwrap_err();
    assert!(
        err.ends_file && err.to_string().contains("line 3: the file cannot be read on: the line went dead")
    );
}

/// As many plain rows as asked for, made while they are read.
struct Endless {
    left: u64,
    row: Vec<u8>,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        self.left -= 1;
        let count = self.row.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.row[..count]);
        Ok(count)
    }
}

#[test]
fn memory_does_not_grow_with_the_file() {
    let mut rows = Rows::new(Endless { left: 20_000, row: FULL.as_bytes().to_vec() }, options());
    assert_eq!(rows.by_ref().filter(Result::is_ok).count(), 20_000);
    assert_eq!(rows.records.held_bytes(), 0);
}

/// What a spreadsheet would write.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_run_for_ever(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let lines = 2 + bytes.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count();
        prop_assert!(read(&bytes).len() <= lines);
    }

    #[test]
    fn no_tangle_of_quotes_makes_it_panic_or_run_for_ever(text in "[a\",;\n\r]{0,300}") {
        let lines = 2 + text.bytes().filter(|byte| matches!(byte, b'\n' | b'\r')).count();
        prop_assert!(read(&text).len() <= lines);
    }

    #[test]
    fn what_is_written_reads_back(
        ids in proptest::collection::vec("[a-z0-9-]{1,20}", 1..20),
        message in "[^\r\u{0}]{0,100}",
        tokens: u64,
        eur in 0..1_000_000_000_000_u64,
        crlf: bool,
    ) {
        let line_end = if crlf { "\r\n" } else { "\n" };
        let file: String = ids.iter().map(|id| {
            let eur = format!("{},{:06}", eur / 1_000_000, eur % 1_000_000);
            format!("{id},,,,,,,,,,,,{tokens},{},,{}{line_end}", quoted(&eur), quoted(&message))
        }).collect();
        let rows = read(file);
        prop_assert_eq!(rows.len(), ids.len());
        for (row, id) in rows.into_iter().zip(&ids) {
            let row = row.unwrap();
            prop_assert_eq!(&row.external_id, id);
            prop_assert_eq!(row.facts.tokens, Some(tokens));
            prop_assert_eq!(row.facts.tokens_eur_micros, Some(eur));
            let message = message.trim();
            prop_assert_eq!(row.facts.first_message.as_deref(), (!message.is_empty()).then_some(message));
        }
    }

    #[test]
    fn one_broken_row_never_costs_a_good_one(at in 0..20_usize, junk in "[a\", ;]{0,40}") {
        let rows: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let mut lines: Vec<String> = rows.iter().map(|id| plain(id)).collect();
        lines.insert(at, format!("{junk}\n"));
        let found: Vec<String> =
            read(lines.concat()).into_iter().filter_map(Result::ok).map(|row| row.external_id).collect();
        for id in &rows {
            prop_assert!(found.contains(id), "{} is missing after {:?}", id, junk);
        }
    }
}

#[test]
fn the_sample_that_comes_with_the_program_is_sound() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/sample");
    let file = std::fs::File::open(folder.join("sessions.csv")).unwrap();
    let rows: Vec<Row> = Rows::new(file, options()).map(Result::unwrap).collect();
    let transcripts: Vec<&str> = rows.iter().filter_map(|row| row.facts.transcript.as_deref()).collect();
    assert_eq!((rows.len(), transcripts.len()), (24, 22), "two sessions have no messages");
    for reference in transcripts {
        let file = std::fs::File::open(folder.join(reference)).unwrap();
        let transcript = crate::import::transcript::read(file, &options()).unwrap();
        assert!(transcript.messages.len() > 1 && transcript.warnings.is_empty(), "{reference}");
    }
}
