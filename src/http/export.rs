//! Exports: everything of a list as lines of JSON or as CSV, read page by page while the client reads.
//!
//! What is ready and not yet taken is bounded, so a slow client slows the reading and a gone one ends it. An error in
//! the midst cuts the connection: a body that ends in order is whole.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_DISPOSITION, HeaderMap, HeaderValue};

use super::limits::Running;
use super::query::Query;
use super::reply::{Answer, ApiError, Piece};
use super::{Api, auth, blocking, cells, filters, results, still_good, view};
use crate::domain::id::{CompanyId, RequestId, SessionId};
use crate::domain::request::Request;
use crate::store::{RequestsOf, SessionFound, SessionsOf, StoreError, StoreReader};

/// Rows that are read at once.
const PAGE: usize = 250;
/// A piece of the body is sent once it is so long; a single row may be longer.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that are ready and not yet taken.
const PIECES: usize = 2;
/// How many rows there are at the moment, where that is known without reading them: for whoever shows how far it is.
pub const TOTAL_ROWS: &str = "x-total-rows";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Ndjson,
    Csv,
}

impl Format {
    fn of(query: &Query) -> Result<Self, ApiError> {
        match query.get("format") {
            None | Some("ndjson") => Ok(Self::Ndjson),
            Some("csv") => Ok(Self::Csv),
            Some(_) => Err(ApiError::invalid("unknown_format", "format can be ndjson or csv")),
        }
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
        }
    }

    const fn extension(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }
}

/// `GET /api/v1/companies/{companyId}/export/requests`
pub async fn requests(
    api: &Api,
    company: CompanyId,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Answer, ApiError> {
    query.only(&[&filters::OF_REQUESTS[..], &["format", "include"]].concat())?;
    let (filter, format) = (filters::requests(company.clone(), query)?, Format::of(query)?);
    let include = query.include(results::OF_REQUEST)?;
    let rows = Rows::Requests { filter, include, before: None, read: VecDeque::new() };
    start(api, ("requests", &company), headers, rows, format).await
}

/// `GET /api/v1/companies/{companyId}/export/sessions`
pub async fn sessions(
    api: &Api,
    company: CompanyId,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Answer, ApiError> {
    query.only(&[&filters::OF_SESSIONS[..], &["format", "include"]].concat())?;
    let (filter, format) = (filters::sessions(company.clone(), query)?, Format::of(query)?);
    let include = query.include(results::OF_SESSIONS)?;
    let rows = Rows::Sessions { filter, include, before: None, read: VecDeque::new(), older: None };
    start(api, ("sessions", &company), headers, rows, format).await
}

async fn start(
    api: &Api,
    (what, company): (&str, &CompanyId),
    headers: &HeaderMap,
    rows: Rows,
    format: Format,
) -> Result<Answer, ApiError> {
    let place = api.limiter.export(company)?;
    let mut export =
        Export { reader: api.shared.reader.clone(), rows, format, begun: false, is_last_page: false };
    // The first piece is read before the reply begins: until then an error can still be told.
    let read = move || {
        let total = export.rows.total(&export.reader)?;
        export.piece().map(|piece| (export, piece, total))
    };
    let (export, first, total) = blocking(read).await?;
    let (sender, pieces) = mpsc::channel(PIECES);
    tokio::spawn(export.send(api.clone(), auth::presented(headers), place, first, sender));
    let day: String = api.shared.clock.now().to_string().chars().take(10).collect();
    // Neither has anything in it that would need quoting.
    let name = format!("attachment; filename=\"{what}-{company}-{day}.{}\"", format.extension());
    let name = HeaderValue::from_str(&name).map(|name| (CONTENT_DISPOSITION.as_str(), name));
    let total = total.map(|total| (TOTAL_ROWS, HeaderValue::from(total)));
    let headers = name.into_iter().chain(total).collect();
    Ok(Answer::stream(StatusCode::OK, format.content_type(), pieces).with(headers))
}

/// The rows that are still to be sent.
enum Rows {
    Requests {
        filter: RequestsOf,
        include: Vec<&'static str>,
        before: Option<RequestId>,
        read: VecDeque<Request>,
    },
    Sessions {
        filter: SessionsOf,
        include: Vec<&'static str>,
        before: Option<SessionId>,
        read: VecDeque<SessionFound>,
        /// The one whose earlier versions are to be sent, from this one down.
        older: Option<(Box<SessionFound>, u32)>,
    },
}

/// A reader that takes nothing for so long is given up.
const READER_IDLE: Duration = Duration::from_secs(120);

struct Export {
    reader: StoreReader,
    rows: Rows,
    format: Format,
    begun: bool,
    is_last_page: bool,
}

impl Export {
    /// Sends the pieces one after another, as they are taken. The export's place is held here and not with the reply, which lives
    /// as long as the connection of a reader that has stopped.
    async fn send(
        self,
        api: Api,
        token: Option<[u8; 32]>,
        _place: Running,
        first: Option<Vec<u8>>,
        sender: mpsc::Sender<Piece>,
    ) {
        let (mut export, mut piece) = (self, first);
        while let Some(bytes) = piece {
            // An empty piece is a page in which nothing was wanted.
            if sender.is_closed() {
                return;
            }
            if !bytes.is_empty() {
                // A reader that has stopped reading must not hold its connection for ever.
                match tokio::time::timeout(READER_IDLE, sender.send(Piece::Some(bytes.into()))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                }
            }
            // Whose token ends while they read gets no more of it.
            let next = match still_good(&api, token).await {
                Ok(()) => blocking(move || export.piece().map(|piece| (export, piece))).await,
                Err(err) => Err(err),
            };
            match next {
                Ok((back, next)) => (export, piece) = (back, next),
                Err(err) => {
                    tracing::error!(code = err.code, "an export broke off in its midst");
                    return;
                }
            }
        }
        // Nobody listens where the caller is gone. The place is held until they have it all, or have stopped.
        if let Ok(Ok(())) = tokio::time::timeout(READER_IDLE, sender.send(Piece::End)).await {
            let _ = tokio::time::timeout(READER_IDLE, sender.closed()).await;
        }
    }

    /// The next piece, which may be empty; none at the end. Reads one page at most.
    fn piece(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let mut bytes = Vec::new();
        if !std::mem::replace(&mut self.begun, true) && self.format == Format::Csv {
            cells::head(&self.columns(), &mut bytes)?;
        }
        if self.rows.is_empty() {
            if self.is_last_page {
                return Ok(if bytes.is_empty() { None } else { Some(bytes) });
            }
            self.is_last_page = self.rows.read(&self.reader)?;
        }
        let columns = self.columns();
        while bytes.len() < PIECE_BYTES {
            let Some(row) = self.rows.next(&self.reader)? else { break };
            match self.format {
                Format::Ndjson => {
                    bytes.extend_from_slice(row.to_string().as_bytes());
                    bytes.push(b'\n');
                }
                Format::Csv => cells::row(&columns, &row, &mut bytes)?,
            }
        }
        Ok(Some(bytes))
    }

    fn columns(&self) -> Vec<cells::Column> {
        match &self.rows {
            Rows::Requests { include, .. } => cells::of_requests(include),
            Rows::Sessions { include, .. } => cells::of_sessions(include),
        }
    }
}

impl Rows {
    /// How many there are; none where only reading them would tell.
    fn total(&self, reader: &StoreReader) -> Result<Option<u64>, StoreError> {
        match self {
            Self::Requests { filter, .. } => reader.count_requests_of(filter),
            Self::Sessions { filter, include, .. } if !include.contains(&"versions") => {
                reader.count_sessions_of(filter)
            }
            Self::Sessions { .. } => Ok(None),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Requests { read, .. } => read.is_empty(),
            Self::Sessions { read, older, .. } => read.is_empty() && older.is_none(),
        }
    }

    /// Reads the next page; says whether it was the last one.
    fn read(&mut self, reader: &StoreReader) -> Result<bool, StoreError> {
        match self {
            Self::Requests { filter, before, read, .. } => {
                let (found, next) = reader.requests_of(filter, *before, PAGE)?;
                (*read, *before) = (found.into(), next);
                Ok(next.is_none())
            }
            Self::Sessions { filter, before, read, .. } => {
                let (found, next) = reader.sessions_of(filter, *before, PAGE)?;
                (*read, *before) = (found.into(), next);
                Ok(next.is_none())
            }
        }
    }

    /// The next row of the page that was read, as it is shown. What is long is only read here.
    fn next(&mut self, reader: &StoreReader) -> Result<Option<Value>, StoreError> {
        match self {
            Self::Requests { read, include, .. } => {
                let Some(request) = read.pop_front() else { return Ok(None) };
                let result = reader.result(request.id)?;
                let mut shown = view::request(&request);
                shown["result"] = view::json_of(result.as_deref());
                results::add_to_request(reader, &request, include, &mut shown)?;
                Ok(Some(shown))
            }
            Self::Sessions { read, include, older, .. } => {
                let messages = include.contains(&"messages");
                if let Some((found, version)) = older.take() {
                    let shown = results::older_version(reader, &found, version, messages)?;
                    *older = (version > 1).then(|| (found, version - 1));
                    return Ok(Some(shown));
                }
                let Some(found) = read.pop_front() else { return Ok(None) };
                let shown = results::whole_session(reader, &found, messages)?;
                let last = found.session.version;
                *older = (include.contains(&"versions") && last > 1).then(|| (Box::new(found), last - 1));
                Ok(Some(shown))
            }
        }
    }
}
