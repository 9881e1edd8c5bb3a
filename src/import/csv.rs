//! The export of sessions: 16 columns, one row a session.

use std::fmt;
use std::io::Read;

use super::record::{Broken, FIELD_BYTES_MAX, FIELDS_MAX, RECORD_BYTES_MAX, Record, Records};
use super::{Encoding, Options, decode, time};
use crate::domain::price::{Scaled, parse_decimal};
use crate::domain::session::SessionFacts;

/// One session of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The line of the file on which it begins, from 1.
    pub line: u64,
    /// The export's id of the session. The same id twice in one file is the caller's matter.
    pub external_id: String,
    /// What the export says of it.
    pub facts: SessionFacts,
    /// How its bytes were taken.
    pub encoding: Encoding,
}

/// Why a row could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    /// The line of the file on which the row begins, from 1.
    pub line: u64,
    /// Index (from 0) and name of the column, where one column is the trouble.
    pub column: Option<(usize, &'static str)>,
    /// In words, for the operator; at most 40 characters of the value are quoted, and never of a message.
    pub reason: String,
    /// Whether the file could not be read on: nothing comes after this, and rows may be missing.
    pub ends_file: bool,
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if let Some((index, name)) = self.column {
            write!(f, ", column {} ({name})", index + 1)?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for RowError {}

/// The columns in the order of an export without a header, each with the names that a header may give it, the first
/// of which is ours. They are compared by their letters and digits alone.
const COLUMNS: [&[&str]; 16] = [
    &["session_id", "id", "external_id", "external_session_id"],
    &["start_time", "start", "started", "started_at", "session_start"],
    &["end_time", "end", "ended", "ended_at", "session_end"],
    &["ip_address", "ip"],
    &["country", "country_code"],
    &["language", "lang"],
    &["messages_sent", "messages", "message_count", "nr_of_messages"],
    &["sentiment"],
    &["escalated"],
    &["forwarded_hr", "forwarded_to_hr"],
    &["transcript", "transcript_url", "full_transcript_url", "full_transcript"],
    &["avg_response_time", "average_response_time", "average_response_time_in_seconds", "response_time"],
    &["tokens", "token_count", "total_tokens"],
    &["tokens_eur", "tokens_in_eur", "token_cost", "token_costs", "cost_eur"],
    &["category"],
    &["first_message", "initial_message", "initial_msg", "initial_messages"],
];
const ID: usize = 0;
/// Longer ids are conversation text in the wrong column.
/// Characters of an id that a client gives, at most.
pub const ID_CHARS_MAX: usize = 256;

/// Whether a text may be the id of a session or request. Control characters would make a list that is read line by line
/// something else.
pub fn is_id(text: &str) -> bool {
    (1..=ID_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}
const QUOTED_CHARS_MAX: usize = 40;

/// The rows of an export, one after another. A row that cannot be read is reported and the next one follows;
/// only an error of the reader ends the file.
#[derive(Debug)]
pub struct Rows<R> {
    records: Records<R>,
    record: Record,
    options: Options,
    layout: Option<Layout>,
    opened: bool,
    ended: bool,
}

/// Which field of a record holds which column.
#[derive(Debug)]
struct Layout {
    /// By column, the index of its field.
    fields: [Option<usize>; COLUMNS.len()],
    width: usize,
}

impl Layout {
    fn without_header() -> Self {
        Self { fields: std::array::from_fn(Some), width: COLUMNS.len() }
    }

    /// A header has the id's name and knows at least half of the names in it; a row of data has neither.
    fn from_header(record: &Record) -> Option<Self> {
        let mut fields = [None; COLUMNS.len()];
        let (mut named, mut known) = (0, 0);
        for index in 0..record.len() {
            let (name, _) = decode(record.field(index)?);
            let name = letters(&name);
            named += usize::from(!name.is_empty());
            let column = COLUMNS.iter().position(|names| names.iter().any(|known| letters(known) == name));
            if let Some(slot) = column.and_then(|column| fields.get_mut(column)) {
                known += 1;
                // The first of two columns of one name counts.
                *slot = slot.or(Some(index));
            }
        }
        let is_header = fields.first().is_some_and(Option::is_some) && known * 2 >= named && known >= 2;
        is_header.then_some(Self { fields, width: record.len() })
    }
}

impl<R: Read> Rows<R> {
    /// Rows of `reader`, which should not be buffered again.
    pub fn new(reader: R, options: Options) -> Self {
        Self {
            records: Records::new(reader),
            record: Record::default(),
            options,
            layout: None,
            opened: false,
            ended: false,
        }
    }

    /// What the first bytes tell.
    fn open(&mut self) -> Result<(), RowError> {
        self.opened = true;
        let first = self.records.start().map_err(|err| self.broken(Broken::Io(err)))?;
        if first.starts_with(&[0xff, 0xfe]) || first.starts_with(&[0xfe, 0xff]) {
            self.ended = true;
            return Err(self.fail(None, "the file is UTF-16; export it as UTF-8".to_owned(), true));
        }
        Ok(())
    }

    /// What the first record that is neither blank nor torn tells: the delimiter, and whether it is a header.
    fn begin(&mut self) -> Result<(), RowError> {
        for delimiter in [b',', b';'] {
            self.records.set_delimiter(delimiter);
            loop {
                if !self.records.next(&mut self.record).map_err(|broken| self.broken(broken))? {
                    self.layout = Some(Layout::without_header());
                    return Ok(());
                }
                if !self.record.is_blank() {
                    break;
                }
            }
            if let Some(layout) = Layout::from_header(&self.record) {
                self.layout = Some(layout);
                return Ok(());
            }
            self.records.read_again(&self.record);
            if self.record.len() == COLUMNS.len() {
                self.layout = Some(Layout::without_header());
                return Ok(());
            }
        }
        self.records.set_delimiter(b',');
        self.layout = Some(Layout::without_header());
        Ok(())
    }

    fn broken(&mut self, broken: Broken) -> RowError {
        let (column, reason, ends_file) = match broken {
            Broken::FieldTooLong(index) => {
                (self.column_at(index), format!("a field of more than {FIELD_BYTES_MAX} bytes"), false)
            }
            Broken::RecordTooLong => (None, format!("a row of more than {RECORD_BYTES_MAX} bytes"), false),
            Broken::TooManyFields => (None, format!("more than {FIELDS_MAX} columns"), false),
            Broken::QuoteNeverClosed(index) => {
                (self.column_at(index), "an opening quote has no closing one".to_owned(), false)
            }
            Broken::Io(err) => (None, format!("the file cannot be read on: {err}"), true),
        };
        self.ended |= ends_file;
        self.fail(column, reason, ends_file)
    }

    fn fail(&self, column: Option<(usize, &'static str)>, reason: String, ends_file: bool) -> RowError {
        RowError { line: self.record.line.max(1), column, reason, ends_file }
    }

    fn column_at(&self, index: usize) -> Option<(usize, &'static str)> {
        let fields =
            self.layout.as_ref().map_or_else(|| Layout::without_header().fields, |layout| layout.fields);
        let column = fields.iter().position(|field| *field == Some(index))?;
        Some((index, COLUMNS.get(column).and_then(|names| names.first())?))
    }

    fn row(&mut self) -> Result<Row, RowError> {
        let width = self.layout.as_ref().map_or(COLUMNS.len(), |layout| layout.width);
        let has = self.record.len();
        let surplus_is_empty =
            (width..has).all(|index| self.record.field(index).is_none_or(<[u8]>::is_empty));
        if has < width || !surplus_is_empty {
            if self.record.multi_line {
                // Most likely a quote is missing, and the rows after this one were taken for a part of it.
                self.records.read_again_after_first_line(&self.record);
            }
            return Err(self.fail(None, format!("{has} columns, and {width} were expected"), false));
        }
        let fields =
            self.layout.as_ref().map_or_else(|| Layout::without_header().fields, |layout| layout.fields);
        Cells { record: &self.record, fields, options: &self.options }.row()
    }
}

impl<R: Read> Iterator for Rows<R> {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if !self.opened
            && let Err(err) = self.open()
        {
            return Some(Err(err));
        }
        if self.layout.is_none()
            && let Err(err) = self.begin()
        {
            return Some(Err(err));
        }
        loop {
            match self.records.next(&mut self.record) {
                Ok(true) if self.record.is_blank() => {}
                Ok(true) => return Some(self.row()),
                Ok(false) => {
                    self.ended = true;
                    return None;
                }
                Err(broken) => return Some(Err(self.broken(broken))),
            }
        }
    }
}

/// The cells of one record, by column.
struct Cells<'a> {
    record: &'a Record,
    fields: [Option<usize>; COLUMNS.len()],
    options: &'a Options,
}

impl Cells<'_> {
    fn row(&self) -> Result<Row, RowError> {
        let encoding = if self.record.is_utf8() { Encoding::Utf8 } else { Encoding::Windows1252 };
        let cell = |column| self.text(column, encoding);
        let facts = SessionFacts {
            started_at: self
                .read(1, encoding, time::EXPECTED, |text| time::parse(text, &self.options.time_zone))?,
            ended_at: self
                .read(2, encoding, time::EXPECTED, |text| time::parse(text, &self.options.time_zone))?,
            ip_address: cell(3),
            country: cell(4),
            language: cell(5),
            messages_sent: self.read(6, encoding, "a whole number", whole)?,
            sentiment: cell(7),
            escalated: self.read(8, encoding, "yes or no", truth)?,
            forwarded_hr: self.read(9, encoding, "yes or no", truth)?,
            transcript: cell(10),
            avg_response_ms: self.read(11, encoding, "a number of seconds", |text| {
                amount(text, 3).map(|seconds| seconds.value)
            })?,
            tokens: self.read(12, encoding, "a whole number", whole)?,
            tokens_eur_micros: self.read(13, encoding, "an amount in euros", |text| {
                let text = text.trim_start_matches('€').trim_end_matches('€').trim();
                amount(text, 6).map(|euros| euros.value)
            })?,
            category: cell(14),
            first_message: cell(15),
            metadata: None,
        };
        Ok(Row { line: self.record.line, external_id: self.id(encoding)?, facts, encoding })
    }

    fn id(&self, encoding: Encoding) -> Result<String, RowError> {
        let id = self.text(ID, encoding).ok_or_else(|| self.fail(ID, "the id is empty".to_owned()))?;
        if !is_id(&id) {
            let reason = format!("an id has at most {ID_CHARS_MAX} characters and no control characters");
            return Err(self.fail(ID, reason));
        }
        Ok(id)
    }

    /// The text of a column without white space around it; none if it is empty or not in the file. A line end is a
    /// line feed, however the file writes it, so that another program's save changes no content.
    fn text(&self, column: usize, encoding: Encoding) -> Option<String> {
        let index = (*self.fields.get(column)?)?;
        let bytes = self.record.field(index)?;
        let text = match encoding {
            Encoding::Utf8 => String::from_utf8_lossy(bytes),
            Encoding::Windows1252 => encoding_rs::WINDOWS_1252.decode_without_bom_handling(bytes).0,
        };
        let text = text.trim();
        match text {
            "" => None,
            text if text.contains('\r') => Some(text.replace("\r\n", "\n").replace('\r', "\n")),
            text => Some(text.to_owned()),
        }
    }

    fn read<T>(
        &self,
        column: usize,
        encoding: Encoding,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, RowError> {
        let Some(text) = self.text(column, encoding) else { return Ok(None) };
        match parse(&text) {
            Some(value) => Ok(Some(value)),
            None => {
                let quoted: String = text.chars().take(QUOTED_CHARS_MAX).collect();
                Err(self.fail(column, format!("{quoted:?} is not {expected}")))
            }
        }
    }

    fn fail(&self, column: usize, reason: String) -> RowError {
        let index = self.fields.get(column).copied().flatten();
        let name = COLUMNS.get(column).and_then(|names| names.first()).copied();
        RowError { line: self.record.line, column: index.zip(name), reason, ends_file: false }
    }
}

fn letters(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn truth(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" | "ja" | "j" | "wahr" | "waar" => Some(true),
        "false" | "f" | "no" | "n" | "0" | "nee" | "nein" | "falsch" | "onwaar" => Some(false),
        _ => None,
    }
}

/// `12`, and `12.0` as a spreadsheet may write it.
fn whole(text: &str) -> Option<u64> {
    amount(text, 0).filter(|number| number.exact).map(|number| number.value)
}

/// A number with a decimal point or, as most of Europe writes it, a decimal comma. With both, or with the comma
/// twice, it is unclear which one is meant, and a figure that is wrong by a thousand is worse than none.
fn amount(text: &str, places: u8) -> Option<Scaled> {
    if text.contains('.') {
        parse_decimal(text, places)
    } else {
        parse_decimal(&text.replacen(',', ".", 1), places)
    }
}

#[cfg(test)]
mod tests;
