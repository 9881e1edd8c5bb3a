//! Doors into the readers of this folder for the fuzz targets and their corpus. Nothing else uses them.

use bytes::Bytes;
use uuid::Uuid;

use super::lines::{Json, Line, Lines};
use super::query::{self, Query};
use super::{cursor, ingest, lines};

/// The lines of a body that comes in these chunks, by number; none for a line that is too long.
pub async fn body_lines(chunks: Vec<Vec<u8>>) -> Vec<(u64, Option<Vec<u8>>)> {
    let body = futures_util::stream::iter(chunks.into_iter().map(|chunk| Ok(Bytes::from(chunk))));
    let mut lines = Lines::new(Box::pin(body));
    let mut read = Vec::new();
    while let Ok(Some((number, line))) = lines.next().await {
        read.push((
            number,
            match line {
                Line::Whole(bytes) => Some(bytes),
                Line::TooLong => None,
            },
        ));
    }
    read
}

/// How many objects a JSON body has, or the code of the refusal.
pub fn json_body(body: &[u8]) -> Result<usize, &'static str> {
    match lines::json(body) {
        Ok(Json::One(_)) => Ok(1),
        Ok(Json::Many(entries)) => Ok(entries.len()),
        Err(err) => Err(err.code),
    }
}

/// Model and body of a request's line, or the code of the refusal.
pub fn request_line(json: &[u8]) -> Result<(String, String), &'static str> {
    ingest::read_request(json)
}

/// How many messages a session's line has, or the code of the refusal.
pub fn session_line(json: &[u8]) -> Result<usize, &'static str> {
    ingest::read_session(json)
}

/// The values of `keys` in a query, and the page's limit; or the code of the refusal.
pub fn query(raw: &str, keys: &[&str]) -> Result<(Vec<Option<String>>, usize), &'static str> {
    let read = || {
        let query = Query::parse(raw)?;
        query.only(keys)?;
        query.company("companyId")?;
        let values = keys.iter().map(|key| query.get(key).map(str::to_owned)).collect();
        Ok((values, query.limit()?))
    };
    read().map_err(|err: super::reply::ApiError| err.code)
}

/// A text without its percent-encoding; none if it is not encoded right.
pub fn percent_decode(text: &str) -> Option<String> {
    query::decode(text).ok()
}

/// A cursor for an id in a list.
pub fn cursor(instance: Uuid, scope: &str, id: &[u8; 16]) -> String {
    cursor::seal(instance, scope, id)
}

/// The id in a cursor of this list.
pub fn open_cursor(instance: Uuid, scope: &str, cursor: &str) -> Option<[u8; 16]> {
    cursor::unseal(instance, scope, cursor).ok()
}
