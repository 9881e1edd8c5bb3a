//! What must hold for any bytes, one function a reader. The fuzz targets and the replay of the corpus share it.
//!
//! Each function panics where something does not hold; that it ends, and soon, is part of what must hold.

use std::io::{BufReader, Read};

use futures_util::FutureExt;
use nightshift::domain::id::RequestId;
use nightshift::domain::request::{Endpoint, Failure};
use nightshift::http::fuzzing;
use nightshift::import::{Options, csv, transcript};
use nightshift::provider::jsonl::{Decoded, LineReader, RawLine, custom_id_in, decode_line, input_line};
use nightshift::provider::wire::{BatchObject, ErrorBody, FileObject, MESSAGE_CHARS_MAX, Page};
use nightshift::store::StoreReader;
use serde::de::IgnoredAny;

/// What must hold for some bytes; it panics where it does not.
pub type Check = fn(&[u8]);

/// The targets by name: the name of the corpus folder, too.
pub const TARGETS: [(&str, Check); 11] = [
    ("result_line", result_line),
    ("batch_object", batch_object),
    ("file_list", file_list),
    ("error_body", error_body),
    ("csv", csv_export),
    ("transcript", transcript_file),
    ("cursor", cursor),
    ("query", query),
    ("ingest_line", ingest_line),
    ("config", config),
    ("record", record),
];

/// Hands out a few bytes at a time, by a pattern that the data themselves give.
struct Crumbs<'a> {
    data: &'a [u8],
    turn: usize,
}

impl Crumbs<'_> {
    fn size(&mut self) -> usize {
        self.turn += 1;
        [1, 3, 2, 7, 1, 64, 5][(self.turn + self.data.len()) % 7]
    }
}

impl Read for Crumbs<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let size = self.size().min(self.data.len()).min(into.len());
        let (now, later) = self.data.split_at(size);
        into[..size].copy_from_slice(now);
        self.data = later;
        Ok(size)
    }
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

/// A whole result file: its lines, and what each of them means.
pub fn result_line(data: &[u8]) {
    const SHORT: usize = 48;
    let mut offset = 0;
    let mut expected = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        // The reader's rule, written once more: too long by its length alone, blank lines passed over.
        if line.len() > SHORT || !line.trim_ascii().is_empty() {
            expected.push((offset as u64, line));
        }
        offset += line.len() + 1;
    }
    for capacity in [1, 2, 13, 8192] {
        let source = BufReader::with_capacity(capacity, Crumbs { data, turn: capacity });
        let mut reader = LineReader::with_line_max(source, 0, SHORT);
        let mut lines = expected.iter();
        while let Some(line) = reader.next_line().expect("reading from memory") {
            let (at, whole) = *lines.next().expect("a line more than there are");
            match line {
                RawLine::Whole { offset, bytes } => {
                    assert_eq!((offset, bytes), (at, whole));
                    assert!(bytes.len() <= SHORT);
                }
                RawLine::Oversized { offset, length, head } => {
                    assert_eq!((offset, length), (at, whole.len() as u64));
                    assert!(length > SHORT as u64 && head == &whole[..SHORT]);
                }
            }
        }
        assert_eq!(lines.next(), None, "a line less than there are");
        assert_eq!(reader.offset(), data.len() as u64);
    }
    for line in data.split(|byte| *byte == b'\n') {
        decoded(line);
    }
    one_input_line(data);
}

fn decoded(line: &[u8]) {
    match decode_line(line) {
        Decoded::Line { custom_id, provider_id, outcome } => {
            assert!(custom_id.len() <= 256);
            assert_eq!(custom_id_in(line), Some(custom_id), "the same line says two names");
            let known = [&outcome.answered.model, &outcome.answered.provider_request_id, &provider_id];
            assert!(known.into_iter().flatten().all(|word| word.len() <= line.len()));
            match outcome.result {
                Ok(body) => {
                    assert!(body.len() <= line.len());
                    assert!(is_json(body.as_bytes()), "a result that is no JSON: {body}");
                }
                Err(failure) => {
                    assert!(failure.code.chars().count() <= 100);
                    assert!(failure.detail.chars().count() <= Failure::DETAIL_CHARS_MAX);
                }
            }
        }
        Decoded::Bad { custom_id, .. } => assert!(custom_id.is_none_or(|id| id.len() <= 256)),
    }
}

/// Whatever a body looks like, its line is one line and has the body in it.
fn one_input_line(body: &[u8]) {
    let Ok(text) = std::str::from_utf8(body) else { return };
    if !text.trim_start().starts_with('{') || !is_json(body) {
        return;
    }
    let line = input_line(RequestId::from_bytes([7; 16]), Endpoint::ChatCompletions, text);
    assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
    // One level deeper than the body, which may be as deep as a reader can stand.
    if let (Ok(line), Ok(body)) =
        (serde_json::from_slice::<serde_json::Value>(&line), serde_json::from_str::<serde_json::Value>(text))
    {
        assert_eq!(line["body"], body);
    }
}

fn short(text: &Option<String>, chars: usize) {
    assert!(text.as_ref().is_none_or(|text| text.chars().count() <= chars), "{text:?}");
}

pub fn batch_object(data: &[u8]) {
    if let Ok(file) = FileObject::from_json(data) {
        assert!(!file.id.as_str().is_empty() && file.id.as_str().len() <= data.len());
    }
    let Ok(batch) = BatchObject::from_json(data) else { return };
    assert!(!batch.id.as_str().is_empty() && batch.id.as_str().len() <= data.len());
    assert!(batch.output_file_id.is_none_or(|id| !id.as_str().is_empty()));
    for error in &batch.errors {
        short(&error.message, MESSAGE_CHARS_MAX + 1);
    }
    assert!(batch.errors.len() <= data.len() && batch.metadata.len() <= data.len());
}

pub fn file_list(data: &[u8]) {
    if let Ok(page) = Page::<FileObject>::from_json(data, 100) {
        assert!(page.data.len() <= data.len());
    }
    if let Ok(page) = Page::<BatchObject>::from_json(data, 100) {
        assert!(page.data.len() <= data.len());
    }
}

pub fn error_body(data: &[u8]) {
    let error = ErrorBody::read(data);
    short(&Some(error.message), MESSAGE_CHARS_MAX + 1);
    for word in [error.code, error.kind, error.param.unwrap_or_default()] {
        assert!(word.len() <= data.len() + 32, "{word}");
    }
}

fn options() -> Options {
    thread_local! {
        static ZONE: jiff::tz::TimeZone = jiff::tz::TimeZone::get("Europe/Amsterdam").unwrap();
    }
    Options { time_zone: ZONE.with(Clone::clone) }
}

pub fn csv_export(data: &[u8]) {
    let whole: Vec<_> = csv::Rows::new(data, options()).collect();
    let crumbs: Vec<_> = csv::Rows::new(Crumbs { data, turn: 0 }, options()).collect();
    assert_eq!(whole, crumbs);
    assert!(whole.len() <= data.len() + 1);
    for row in whole {
        match row {
            Ok(row) => {
                assert!(!row.external_id.is_empty() && row.external_id.len() <= 256);
                // One byte of Windows-1252 takes three at most.
                let texts = [row.facts.first_message, row.facts.category, row.facts.transcript];
                assert!(texts.into_iter().flatten().all(|text| text.len() <= 3 * data.len()));
            }
            Err(err) => assert!(err.to_string().len() < 1000, "{err}"),
        }
    }
}

pub fn transcript_file(data: &[u8]) {
    let whole = transcript::read(data, &options());
    let crumbs = transcript::read(Crumbs { data, turn: 0 }, &options());
    let (Ok(whole), Ok(crumbs)) = (whole, crumbs) else { return };
    assert_eq!(whole, crumbs);
    assert!(whole.warnings.len() <= 100);
    let texts = whole.messages.iter().map(|message| message.text.len()).sum::<usize>();
    assert!(texts <= 3 * data.len());
    assert!(whole.messages.iter().all(|message| !message.text.trim().is_empty()));
}

pub fn cursor(data: &[u8]) {
    let instance = uuid::Uuid::from_u128(5);
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(id) = fuzzing::open_cursor(instance, "batches//", text)
    {
        assert_eq!(fuzzing::cursor(instance, "batches//", &id), text, "two cursors for one place");
    }
    let Some((id, rest)) = data.split_first_chunk::<16>() else { return };
    let scope = String::from_utf8_lossy(rest);
    let made = fuzzing::cursor(instance, &scope, id);
    assert_eq!(fuzzing::open_cursor(instance, &scope, &made), Some(*id));
    assert_eq!(fuzzing::open_cursor(instance, &format!("{scope}x"), &made), None);
    assert_eq!(fuzzing::open_cursor(uuid::Uuid::from_u128(6), &scope, &made), None);
    assert_eq!(fuzzing::open_cursor(instance, &scope, &made[1..]), None);
}

pub fn query(data: &[u8]) {
    const KEYS: [&str; 4] = ["companyId", "status", "limit", "cursor"];
    let encoded: String = data.iter().map(|byte| format!("%{byte:02x}")).collect();
    let text = std::str::from_utf8(data).ok();
    assert_eq!(fuzzing::percent_decode(&encoded).as_deref(), text);
    let Some(text) = text else { return };
    assert_eq!(fuzzing::percent_decode(text), decoded_again(text), "{text:?}");
    if let Ok((values, limit)) = fuzzing::query(text, &KEYS) {
        assert!((1..=500).contains(&limit));
        assert!(values.iter().flatten().all(|value| !value.is_empty() && value.len() <= text.len()));
        // Each key at most once.
        assert!(
            KEYS.iter()
                .all(|key| text.split('&').filter(|part| part.split('=').next() == Some(key)).count() <= 1)
        );
    }
}

/// Percent-decoding once more, as the standard says it.
fn decoded_again(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => return String::from_utf8(bytes).ok(),
            [b'+', rest @ ..] => {
                bytes.push(b' ');
                rest
            }
            [b'%', high, low, rest @ ..] => {
                let digit =
                    |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                bytes.push(digit(*high)? << 4 | digit(*low)?);
                rest
            }
            [b'%', ..] => return None,
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        };
    }
}

pub fn ingest_line(data: &[u8]) {
    let lines = |chunks| fuzzing::body_lines(chunks).now_or_never().expect("all of it is there");
    let whole = lines(vec![data.to_vec()]);
    let mut crumbs = Crumbs { data, turn: 0 };
    let mut chunks = Vec::new();
    while !crumbs.data.is_empty() {
        let size = crumbs.size().min(crumbs.data.len());
        let (now, later) = crumbs.data.split_at(size);
        chunks.push(now.to_vec());
        crumbs.data = later;
    }
    assert_eq!(whole, lines(chunks));
    // What stands before the first of them is no part of it.
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let numbered = (1..).zip(data.split(|byte| *byte == b'\n'));
    let split: Vec<_> = numbered
        .filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace))
        .map(|(number, line)| (number, Some(line.to_vec())))
        .collect();
    assert_eq!(whole, split);
    if let Ok(entries) = fuzzing::json_body(data) {
        assert!(entries <= data.len() && is_json(data));
    }
    for line in data.split(|byte| *byte == b'\n').chain([data]) {
        if let Ok((model, body)) = fuzzing::request_line(line) {
            assert!(!model.is_empty() && model.len() <= line.len());
            let sent = input_line(RequestId::from_bytes([7; 16]), Endpoint::ChatCompletions, &body);
            assert_eq!(sent.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert!(
                serde_json::from_slice::<serde_json::Value>(&sent).is_ok(),
                "a line that nobody can read"
            );
        }
        if let Ok(messages) = fuzzing::session_line(line) {
            assert!(messages <= line.len());
        }
    }
}

pub fn config(data: &[u8]) {
    use nightshift::config::load;
    const CANARY: &str = "sk-canary-5d1f";
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap();
    }
    let path = FOLDER.with(|folder| folder.path().join("config.toml"));
    std::fs::write(&path, data).unwrap();
    let env = |name: &str| (name == "OPENAI_API_KEY").then(|| CANARY.to_owned());
    let text = String::from_utf8_lossy(data);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let vars =
        pairs.clone().map(|(key, value)| (format!("NIGHTSHIFT_{}", key.trim()), value.trim().to_owned()));
    let flags = pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()));
    let said = [
        load(Some(&path), &env, [], []),
        load(None, &env, vars.collect::<Vec<_>>(), []),
        load(None, &env, [], flags.collect::<Vec<_>>()),
    ]
    .map(|loaded| match loaded {
        Ok(settings) => format!("{settings:?}{:?}", settings.describe().len()),
        Err(errors) => errors.to_string(),
    });
    assert!(said.iter().all(|said| !said.contains(CANARY)), "{said:?}");
}

pub fn record(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let kind = ["request", "batch", "session", "text"][usize::from(kind % 4)];
    let Ok(again) = StoreReader::record_again(kind, bytes) else { return };
    if kind != "text" {
        assert_eq!(StoreReader::record_again(kind, &again), Ok(again), "it does not read back");
    }
}
