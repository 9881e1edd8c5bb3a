//! CSV exports and transcripts, read as streams.
//!
//! Pure over [`std::io::Read`]: where the bytes come from, what is stored and what happens to a repeated id is the
//! caller's matter. Memory is bounded whatever the input.
//!
//! - [`csv`]: rows of an export, with the line on which each begins.
//! - [`transcript`]: the messages of one conversation.

pub mod csv;
pub mod export;
mod record;
mod time;
pub mod transcript;

use std::borrow::Cow;

use jiff::tz::TimeZone;

/// How an export and its transcripts are to be read.
#[derive(Debug, Clone)]
pub struct Options {
    /// The zone that times without an offset are in. An hour that the clock skips in spring is read as if the clock
    /// had not been put forward (02:30 becomes 03:30); an hour that it repeats in autumn is the first of the two.
    pub time_zone: TimeZone,
}

/// How the bytes of a row or a line were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As they should be.
    Utf8,
    /// They were no UTF-8, so every byte was taken for a character of Windows-1252, which covers Latin-1.
    Windows1252,
}

/// Valid UTF-8 is UTF-8; everything else is Windows-1252, in which every sequence of bytes means something.
fn decode(bytes: &[u8]) -> (Cow<'_, str>, Encoding) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Cow::Borrowed(text), Encoding::Utf8),
        Err(_) => (encoding_rs::WINDOWS_1252.decode_without_bom_handling(bytes).0, Encoding::Windows1252),
    }
}
