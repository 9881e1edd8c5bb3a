//! Finds the lines of a result file: from any offset, in bounded memory, split on `\n` only.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

/// A longer line is passed over.
/// The largest honest one is an embedding of many inputs: 1,024 of them at 3,072 numbers each are some 70 MB.
pub const LINE_BYTES_MAX: usize = 96 * 1024 * 1024;

/// One line that is not blank.
#[derive(Debug, PartialEq, Eq)]
pub enum RawLine<'a> {
    /// A line as it stands, without its `\n`.
    Whole {
        /// Where it begins in the file.
        offset: u64,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// A line too long to be read.
    Oversized {
        /// Where it begins in the file.
        offset: u64,
        /// Its length without the `\n`.
        length: u64,
        /// Its beginning, for [`custom_id_in`](super::custom_id_in).
        head: &'a [u8],
    },
}

/// Yields lines one by one and knows where it stands, so that reading can go on there another time.
#[derive(Debug)]
pub struct LineReader<R> {
    source: R,
    offset: u64,
    line_bytes_max: usize,
    line: Vec<u8>,
}

impl LineReader<BufReader<File>> {
    /// Reads the file at `path` from `offset`, which is where a line begins.
    pub fn open(path: &Path, offset: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self::new(BufReader::with_capacity(256 * 1024, file), offset))
    }
}

impl<R: BufRead> LineReader<R> {
    /// Reads from `source`, which stands at `offset` of its file.
    pub fn new(source: R, offset: u64) -> Self {
        Self::with_line_max(source, offset, LINE_BYTES_MAX)
    }

    /// The same with another limit.
    pub fn with_line_max(source: R, offset: u64, line_bytes_max: usize) -> Self {
        Self { source, offset, line_bytes_max, line: Vec::new() }
    }

    /// The offset behind the last line, its `\n` included: where the next one begins.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The next line that is not blank; none at the end. A last line without `\n` counts.
    pub fn next_line(&mut self) -> io::Result<Option<RawLine<'_>>> {
        loop {
            let begin = self.offset;
            let Some(length) = self.read_line()? else { return Ok(None) };
            if length > self.line_bytes_max as u64 {
                return Ok(Some(RawLine::Oversized { offset: begin, length, head: &self.line }));
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(Some(RawLine::Whole { offset: begin, bytes: &self.line }));
            }
        }
    }

    /// Reads up to the next `\n`, keeping no more than the limit; the length without the `\n`.
    fn read_line(&mut self) -> io::Result<Option<u64>> {
        self.line.clear();
        let mut length = 0_u64;
        let mut began = false;
        loop {
            let chunk = match self.source.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                return Ok(began.then_some(length));
            }
            began = true;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let content = &chunk[..end.unwrap_or(chunk.len())];
            length += content.len() as u64;
            let room = self.line_bytes_max.saturating_sub(self.line.len());
            self.line.extend_from_slice(&content[..content.len().min(room)]);
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.source.consume(used);
            self.offset += used as u64;
            if end.is_some() {
                return Ok(Some(length));
            }
        }
    }
}
