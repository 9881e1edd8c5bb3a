//! An export with its transcripts: rows become whole sessions, one after another.
//!
//! Pure like its neighbours: opening what a row refers to is the caller's matter.

use std::io::Read;
use std::path::{Component, Path, PathBuf};

use super::Options;
use super::csv::{RowError, Rows};
use super::transcript;
use crate::domain::session::{Message, SessionFacts};

/// A session of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedSession {
    /// The line of the export on which it begins, from 1.
    pub line: u64,
    /// The export's id.
    pub external_id: String,
    /// What the export says of it.
    pub facts: SessionFacts,
    /// Its messages; none where there should be some and they could not be had.
    pub messages: Option<Vec<Message>>,
    /// Why they could not be had, or what is odd about them.
    pub note: Option<String>,
    /// The address that its transcript is to be fetched from.
    pub fetch: Option<String>,
}

/// Where a transcript is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transcript<T> {
    /// It can be read.
    Here(T),
    /// It is to be fetched from this address.
    At(String),
}

/// The sessions of an export. `open` opens what a row names as its transcript.
pub fn sessions<R: Read, T: Read>(
    reader: R,
    options: &Options,
    mut open: impl FnMut(&str) -> Result<Transcript<T>, String>,
) -> impl Iterator<Item = Result<ExportedSession, RowError>> {
    let options = options.clone();
    Rows::new(reader, options.clone()).map(move |row| {
        let row = row?;
        let mut fetch = None;
        let (messages, note) = match row.facts.transcript.as_deref() {
            // Nothing was said, or the export does not tell: a session without messages, not a missing one.
            None => (Some(Vec::new()), None),
            Some(reference) => match open(reference) {
                Ok(Transcript::At(address)) => {
                    fetch = Some(address);
                    (None, None)
                }
                Ok(Transcript::Here(file)) => match transcript::read(file, &options) {
                    Ok(read) => {
                        let note = read.warnings.first().map(|warning| format!("{reference}: {warning}"));
                        (Some(read.messages), note)
                    }
                    Err(err) => (None, Some(format!("{reference}: {err}"))),
                },
                Err(why) => (None, Some(format!("{reference}: {why}"))),
            },
        };
        let (line, external_id, facts) = (row.line, row.external_id, row.facts);
        Ok(ExportedSession { line, external_id, facts, messages, note, fetch })
    })
}

/// Whether a transcript is to be fetched from elsewhere.
pub fn is_url(reference: &str) -> bool {
    reference.starts_with("http://") || reference.starts_with("https://")
}

/// Where a relative reference lies. An export must not make us read outside the folder it names.
pub fn below(folder: &Path, reference: &str) -> Result<PathBuf, String> {
    if is_url(reference) {
        return Err("the transcript is fetched by the service only; add the export to [[imports]]".to_owned());
    }
    let relative = Path::new(reference);
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside || reference.contains('\0') {
        return Err("the reference does not stay inside the folder of the transcripts".to_owned());
    }
    Ok(folder.join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { time_zone: jiff::tz::TimeZone::UTC }
    }

    fn row(id: &str, transcript: &str) -> String {
        format!("{id},01.02.2026 10:00:00,01.02.2026 10:05:00,,NL,nl,1,,,,{transcript},1,1,0,,hello\n")
    }

    #[test]
    fn a_transcript_that_cannot_be_had_is_noted_and_stops_nothing() {
        let csv = row("a", "a.txt")
            + &row("b", "gone.txt")
            + &row("c", "")
            + &row("d", "https://files.example/d.txt");
        let open = |name: &str| match name {
            "a.txt" => Ok(Transcript::Here("User: hello\nthere".as_bytes())),
            "https://files.example/d.txt" => Ok(Transcript::At(name.to_owned())),
            _ => Err("no such file".to_owned()),
        };
        let read: Vec<_> = sessions(csv.as_bytes(), &options(), open).map(Result::unwrap).collect();
        assert_eq!(read.len(), 4);
        assert_eq!(read[0].messages.as_ref().unwrap()[0].text, "hello\nthere");
        assert_eq!(read[1].messages, None);
        assert_eq!(read[1].note.as_deref(), Some("gone.txt: no such file"));
        assert_eq!(read[2].messages, Some(Vec::new()));
        assert_eq!((&read[3].messages, &read[3].note), (&None, &None));
        assert_eq!(read[3].fetch.as_deref(), Some("https://files.example/d.txt"));
    }

    #[test]
    fn a_reference_stays_inside_its_folder() {
        let folder = Path::new("/exports");
        assert_eq!(below(folder, "transcripts/a.txt"), Ok(PathBuf::from("/exports/transcripts/a.txt")));
        for bad in ["../secret", "/etc/passwd", "a/../../b", "a\0b"] {
            assert!(below(folder, bad).is_err(), "{bad:?}");
        }
    }
}
