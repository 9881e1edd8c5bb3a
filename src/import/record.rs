//! The records of a CSV file as bytes: quotes, line ends and limits, but not what a column means.
//!
//! A library reads one record after another as long as the file is sound. This one also has to get over a file that
//! is not: an opening quote without its end would swallow every row after it, and all memory. So the raw bytes of the
//! current record are kept, up to a limit, and a record that turns out to be broken is given up after its first line.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};

const CHUNK_BYTES: usize = 64 * 1024;
/// More text than this in one field is no chat message.
pub(super) const FIELD_BYTES_MAX: usize = 1024 * 1024;
/// All fields of one record together, with quotes.
pub(super) const RECORD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// An export has 16 columns; this leaves room for those of a later version. It also bounds how often the same bytes
/// can be read again.
pub(super) const FIELDS_MAX: usize = 64;

/// One record: its fields without their quotes.
#[derive(Debug, Default)]
pub(super) struct Record {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Where it starts in the file, from 1.
    pub(super) line: u64,
    /// Whether it goes on over several lines.
    pub(super) multi_line: bool,
}

impl Record {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn field(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { *self.ends.get(index - 1)? };
        self.bytes.get(start..end)
    }

    /// Each field for itself: two halves of a character in two fields make no character.
    pub(super) fn is_utf8(&self) -> bool {
        (0..self.len()).all(|index| self.field(index).is_none_or(|field| std::str::from_utf8(field).is_ok()))
    }

    fn clear(&mut self, line: u64) {
        self.bytes.clear();
        self.ends.clear();
        self.line = line;
        self.multi_line = false;
    }

    fn end_field(&mut self) {
        self.ends.push(self.bytes.len());
    }

    fn field_len(&self) -> usize {
        self.bytes.len() - self.ends.last().copied().unwrap_or(0)
    }

    /// An empty line has one empty field.
    pub(super) fn is_blank(&self) -> bool {
        self.ends.len() == 1 && self.bytes.iter().all(u8::is_ascii_whitespace)
    }
}

/// Why a record could not be read.
#[derive(Debug)]
pub(super) enum Broken {
    /// A field is larger than [`FIELD_BYTES_MAX`]; its index.
    FieldTooLong(usize),
    /// The whole is larger than [`RECORD_BYTES_MAX`].
    RecordTooLong,
    /// It has more than [`FIELDS_MAX`] fields.
    TooManyFields,
    /// The file ends inside a quoted field; its index.
    QuoteNeverClosed(usize),
    /// The file itself could not be read on. Nothing comes after it.
    Io(io::Error),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// Just after a quote inside a quoted field: the end of it, or the first half of a doubled one.
    QuoteInQuoted,
}

/// Splits a stream into records.
#[derive(Debug)]
pub(super) struct Records<R> {
    reader: R,
    chunk: Vec<u8>,
    at: usize,
    filled: usize,
    /// Bytes to be read again before those of the chunk.
    again: VecDeque<u8>,
    /// The current record as it stands in the file.
    raw: Vec<u8>,
    delimiter: u8,
    line: u64,
}

impl<R: Read> Records<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            chunk: vec![0; CHUNK_BYTES],
            at: 0,
            filled: 0,
            again: VecDeque::new(),
            raw: Vec::new(),
            delimiter: b',',
            line: 1,
        }
    }

    pub(super) fn set_delimiter(&mut self, delimiter: u8) {
        self.delimiter = delimiter;
    }

    /// The first bytes of the file, which tell its kind. Those of a UTF-8 byte order mark are dropped.
    pub(super) fn start(&mut self) -> io::Result<Vec<u8>> {
        let mut first = Vec::new();
        while first.len() < 3 {
            match self.next_byte()? {
                Some(byte) => first.push(byte),
                None => break,
            }
        }
        if first != [0xef, 0xbb, 0xbf] {
            for byte in first.iter().rev() {
                self.again.push_front(*byte);
            }
        }
        Ok(first)
    }

    /// Reads the next record into `record`; false at the end of the file.
    pub(super) fn next(&mut self, record: &mut Record) -> Result<bool, Broken> {
        record.clear(self.line);
        self.raw.clear();
        let mut state = State::FieldStart;
        loop {
            let Some(byte) = self.next_byte().map_err(Broken::Io)? else {
                return self.finish(record, state);
            };
            self.raw.push(byte);
            if state == State::Quoted && (byte == b'\n' || byte == b'\r') {
                record.multi_line = true;
            }
            let delimiter = byte == self.delimiter;
            state = match (state, byte) {
                (State::Quoted, b'"') => State::QuoteInQuoted,
                (State::QuoteInQuoted, b'"') | (State::Quoted, _) => {
                    record.bytes.push(byte);
                    State::Quoted
                }
                (State::FieldStart, b'"') => State::Quoted,
                (State::FieldStart | State::Plain | State::QuoteInQuoted, _) if delimiter => {
                    record.end_field();
                    State::FieldStart
                }
                (State::FieldStart | State::Plain | State::QuoteInQuoted, b'\n' | b'\r') => {
                    self.end_line(byte).map_err(Broken::Io)?;
                    record.end_field();
                    self.line += line_ends(&self.raw);
                    return Ok(true);
                }
                // A quote in the middle of a field is a character like any other, as spreadsheets take it.
                (State::FieldStart | State::Plain | State::QuoteInQuoted, _) => {
                    record.bytes.push(byte);
                    State::Plain
                }
            };
            if let Some(broken) = self.limit(record) {
                self.give_up().map_err(Broken::Io)?;
                return Err(broken);
            }
        }
    }

    /// Gives the record just read another chance: all of it is read again.
    pub(super) fn read_again(&mut self, record: &Record) {
        self.line = record.line;
        self.push_back(0);
    }

    /// Reads the lines of the record just read, but the first, again: a broken row must not take good ones with it.
    pub(super) fn read_again_after_first_line(&mut self, record: &Record) {
        if let Some(end) = first_line_end(&self.raw) {
            self.line = record.line + 1;
            self.push_back(end);
        }
    }

    /// Bytes that wait to be read again.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.again.len()
    }

    fn finish(&mut self, record: &mut Record, state: State) -> Result<bool, Broken> {
        if state == State::Quoted {
            let index = record.len();
            self.give_up().map_err(Broken::Io)?;
            return Err(Broken::QuoteNeverClosed(index));
        }
        if self.raw.is_empty() {
            return Ok(false);
        }
        record.end_field();
        Ok(true)
    }

    fn limit(&self, record: &Record) -> Option<Broken> {
        if record.field_len() > FIELD_BYTES_MAX {
            Some(Broken::FieldTooLong(record.len()))
        } else if self.raw.len() > RECORD_BYTES_MAX {
            Some(Broken::RecordTooLong)
        } else if record.len() >= FIELDS_MAX {
            Some(Broken::TooManyFields)
        } else {
            None
        }
    }

    /// Goes on with the line after the one on which the record began.
    fn give_up(&mut self) -> io::Result<()> {
        self.line += 1;
        if let Some(end) = first_line_end(&self.raw) {
            self.push_back(end);
            return Ok(());
        }
        while let Some(byte) = self.next_byte()? {
            if byte == b'\n' || byte == b'\r' {
                return self.end_line(byte);
            }
        }
        Ok(())
    }

    /// Takes the line feed that belongs to a carriage return. A carriage return alone ends a line as well.
    fn end_line(&mut self, byte: u8) -> io::Result<()> {
        if byte == b'\n' {
            return Ok(());
        }
        match self.next_byte()? {
            Some(b'\n') => self.raw.push(b'\n'),
            Some(other) => self.again.push_front(other),
            None => {}
        }
        Ok(())
    }

    fn push_back(&mut self, from: usize) {
        for byte in self.raw.drain(from..).rev() {
            self.again.push_front(byte);
        }
        self.raw.clear();
    }

    fn next_byte(&mut self) -> io::Result<Option<u8>> {
        if let Some(byte) = self.again.pop_front() {
            return Ok(Some(byte));
        }
        if self.at == self.filled {
            self.fill()?;
        }
        let byte = self.chunk.get(self.at..self.filled).and_then(<[u8]>::first).copied();
        self.at += usize::from(byte.is_some());
        Ok(byte)
    }

    fn fill(&mut self) -> io::Result<()> {
        self.at = 0;
        self.filled = 0;
        loop {
            match self.reader.read(&mut self.chunk) {
                Ok(count) => {
                    self.filled = count.min(self.chunk.len());
                    return Ok(());
                }
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
    }
}

/// Where the second line begins; none if there is no second line.
fn first_line_end(raw: &[u8]) -> Option<usize> {
    let end = raw.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
    match (raw.get(end), raw.get(end + 1)) {
        (Some(b'\r'), Some(b'\n')) => Some(end + 2),
        // Whether a line feed follows has not been seen yet.
        (Some(b'\r'), None) => None,
        (Some(_) | None, Some(_) | None) => Some(end + 1),
    }
}

/// Line ends of all three kinds.
fn line_ends(raw: &[u8]) -> u64 {
    let mut after_return = false;
    raw.iter().fold(0, |count, byte| {
        let ends = *byte == b'\r' || (*byte == b'\n' && !after_return);
        after_return = *byte == b'\r';
        count + u64::from(ends)
    })
}
