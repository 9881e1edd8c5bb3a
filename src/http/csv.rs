//! An export as a body: read row by row on a blocking thread while it arrives.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use jiff::tz::TimeZone;
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::lines::{self, Body};
use super::reply::ApiError;
use crate::import::Options;
use crate::import::csv::{Row, Rows};
use crate::serving::BodyError;

/// Rows that wait for the store at most.
const AHEAD: usize = 64;

/// The rows of an export, each with the line on which it begins.
pub struct CsvRows {
    rows: mpsc::Receiver<(u64, Result<Row, String>)>,
    /// Why the body did not come whole.
    broken: Arc<Mutex<Option<BodyError>>>,
}

/// Reads the rows of `body`; `zone` is that of times without an offset.
pub fn rows(body: Body, zone: TimeZone) -> CsvRows {
    let broken = Arc::new(Mutex::new(None));
    let (told, torn) = (broken.clone(), broken.clone());
    let body = body.map(move |piece| {
        piece.map_err(|err| {
            let words = err.to_string();
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(err);
            io::Error::other(words)
        })
    });
    let (sender, rows) = mpsc::channel(AHEAD);
    let reader = SyncIoBridge::new(StreamReader::new(body));
    tokio::task::spawn_blocking(move || {
        for row in Rows::new(reader, Options { time_zone: zone }) {
            let read = match row {
                // Cut to size here already: rows wait on their way.
                Ok(row) => (row.line, Ok(Row { facts: row.facts.cut(), ..row })),
                // What is left of a row where the body broke off is no row: the call's own error tells of it.
                Err(err) if err.ends_file && is_broken(&torn) => return,
                Err(err) => (err.line, Err(without_line(&err.to_string()))),
            };
            // Nobody listens where the call is over.
            if sender.blocking_send(read).is_err() {
                return;
            }
        }
    });
    CsvRows { rows, broken }
}

fn is_broken(broken: &Mutex<Option<BodyError>>) -> bool {
    broken.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// The reply has the line as a field of its own.
fn without_line(words: &str) -> String {
    match words.split_once([':', ',']) {
        Some((line, rest)) if line.starts_with("line ") => rest.trim_start().to_owned(),
        Some(_) | None => words.to_owned(),
    }
}

impl CsvRows {
    /// The next row, or why there is none in its place.
    pub async fn next(&mut self) -> Option<(u64, Result<Row, String>)> {
        self.rows.recv().await
    }

    /// Whether the body came whole.
    pub fn ended(self) -> Result<(), ApiError> {
        match self.broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => Ok(()),
            Some(err) => Err(lines::body_error(&err)),
        }
    }
}
