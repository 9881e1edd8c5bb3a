//! What a company may list of its own: requests and sessions, newest first, by filters.
//!
//! A page looks at no more than [`LOOKED_AT_MAX`] rows, so that a rare filter cannot make it slow: it may then be short,
//! or empty, and still name where the next one begins.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;

use super::client_keys::{ClientKey, KnownKey, client_key};
use super::keys::{self, Key, Tree};
use super::{StoreError, StoreReader};
use crate::domain::id::{CompanyId, RequestId, SessionId, Timestamp};
use crate::domain::request::{Endpoint, FailureClass, Request, RequestStatus, Source};
use crate::domain::session::{Session, SessionState};
use crate::domain::source::Fetch;

/// Rows that a page looks at, about.
pub const LOOKED_AT_MAX: usize = 5000;
/// Keys that are read at once.
const KEYS: usize = 250;
/// A request's id is made a moment before the request is stored: so far apart the two times may be.
const APART: Duration = Duration::from_secs(3600);

/// Which requests of a company.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestsOf {
    /// Whose.
    pub company: CompanyId,
    /// Only with this status.
    pub status: Option<RequestStatus>,
    /// Only those that were made then or later.
    pub from: Option<Timestamp>,
    /// Only those that were made before.
    pub to: Option<Timestamp>,
    /// Only for this endpoint.
    pub endpoint: Option<Endpoint>,
    /// Only for this model.
    pub model: Option<String>,
    /// Only those whose error has this in it, in whatever case.
    pub error: Option<String>,
    /// Only those that failed, or failed last, like this.
    pub class: Option<FailureClass>,
    /// Only the analyses of this session.
    pub session: Option<SessionId>,
}

impl RequestsOf {
    /// All of a company.
    pub const fn all(company: CompanyId) -> Self {
        Self {
            company,
            status: None,
            from: None,
            to: None,
            endpoint: None,
            model: None,
            error: None,
            class: None,
            session: None,
        }
    }

    fn wants(&self, request: &Request) -> bool {
        let session = match request.source {
            Source::Session { session, .. } => Some(session),
            Source::Generic { .. } => None,
        };
        request.group.company == self.company
            && self.status.is_none_or(|status| status == request.status)
            && self.from.is_none_or(|from| request.requested_at >= from)
            && self.to.is_none_or(|to| request.requested_at < to)
            && self.endpoint.is_none_or(|endpoint| endpoint == request.group.endpoint)
            && self.model.as_ref().is_none_or(|model| *model == request.group.model)
            && self.class.is_none_or(|class| request.failure.as_ref().is_some_and(|is| is.class == class))
            && self.session.is_none_or(|wanted| session == Some(wanted))
            && self.error.as_ref().is_none_or(|part| failed_with(request, part))
    }
}

/// Which sessions of a company.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionsOf {
    /// Whose.
    pub company: CompanyId,
    /// Only in this state.
    pub state: Option<SessionState>,
    /// Only those that came in then or later.
    pub from: Option<Timestamp>,
    /// Only those that came in before.
    pub to: Option<Timestamp>,
    /// Only those whose analysis says so; case does not matter, here and below.
    pub sentiment: Option<String>,
    /// Only those whose analysis says so.
    pub category: Option<String>,
    /// Only those whose analysis says so.
    pub language: Option<String>,
    /// Only from there.
    pub country: Option<String>,
    /// Only those whose request has this in its error.
    pub error: Option<String>,
}

/// The words of an analysis that can be asked for.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Words {
    sentiment: Option<String>,
    category: Option<String>,
    language: Option<String>,
}

impl SessionsOf {
    /// All of a company.
    pub const fn all(company: CompanyId) -> Self {
        Self {
            company,
            state: None,
            from: None,
            to: None,
            sentiment: None,
            category: None,
            language: None,
            country: None,
            error: None,
        }
    }

    /// What the session alone tells, before anything else is read for it.
    fn may_want(&self, session: &Session) -> bool {
        session.company == self.company
            && self.state.is_none_or(|state| state == session.state)
            && is_word(self.country.as_deref(), session.facts.country.as_deref())
    }

    fn wants(&self, found: &SessionFound) -> bool {
        let failed = |part| found.request.as_ref().is_some_and(|request| failed_with(request, part));
        if self.error.as_deref().is_some_and(|part| !failed(part)) {
            return false;
        }
        if [&self.sentiment, &self.category, &self.language].into_iter().all(Option::is_none) {
            return true;
        }
        let analysis = found.analysis.as_deref().unwrap_or("{}");
        let Ok(words) = serde_json::from_str::<Words>(analysis) else { return false };
        is_word(self.sentiment.as_deref(), words.sentiment.as_deref())
            && is_word(self.category.as_deref(), words.category.as_deref())
            && is_word(self.language.as_deref(), words.language.as_deref())
    }
}

fn is_word(wanted: Option<&str>, is: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| is.is_some_and(|is| is.to_lowercase() == wanted.to_lowercase()))
}

fn failed_with(request: &Request, part: &str) -> bool {
    let error = request.failure.as_ref().map(|failure| failure.to_string().to_lowercase());
    error.is_some_and(|error| error.contains(&part.to_lowercase()))
}

/// A session with what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFound {
    /// The session.
    pub session: Session,
    /// The analysis of its current version, as JSON text.
    pub analysis: Option<String>,
    /// Its last request.
    pub request: Option<Request>,
    /// The fetching of its transcript, if that is fetched.
    pub fetch: Option<Fetch>,
}

/// The ids to look at: from `floor` on, below `before`; both without the 16 bytes' prefix.
struct Window {
    floor: [u8; 16],
    before: Option<[u8; 16]>,
}

/// No id that was made at this time or later is below.
fn first_id(at: Timestamp) -> [u8; 16] {
    let millis = u64::try_from(at.as_millis()).unwrap_or(0).min((1 << 48) - 1);
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(millis.to_be_bytes().into_iter().skip(2)) {
        *to = from;
    }
    id
}

impl Window {
    fn new(from: Option<Timestamp>, to: Option<Timestamp>, before: Option<[u8; 16]>) -> Self {
        let end = to.map(first_id);
        let before = match (before, end) {
            (Some(before), Some(end)) => Some(before.min(end)),
            (before, end) => before.or(end),
        };
        Self { floor: from.map_or([0; 16], first_id), before }
    }
}

impl StoreReader {
    /// At most `limit` requests, newest first, older than `before`; and where the next page begins, if there may be one.
    pub fn requests_of(
        &self,
        filter: &RequestsOf,
        before: Option<RequestId>,
        limit: usize,
    ) -> Result<(Vec<Request>, Option<RequestId>), StoreError> {
        let (from, to) = (filter.from.map(|at| at.minus(APART)), filter.to.map(|at| at.plus(APART)));
        self.page(
            Window::new(from, to, before.map(|id| *id.as_bytes())),
            limit,
            |window, keys| self.newest_requests(filter, window, keys),
            |id| Ok(self.request(RequestId::from_bytes(id))?.filter(|request| filter.wants(request))),
        )
        .map(|(found, next)| (found, next.map(RequestId::from_bytes)))
    }

    /// The same for sessions.
    pub fn sessions_of(
        &self,
        filter: &SessionsOf,
        before: Option<SessionId>,
        limit: usize,
    ) -> Result<(Vec<SessionFound>, Option<SessionId>), StoreError> {
        let prefix = Key::new().company(&filter.company).done();
        self.page(
            Window::new(filter.from, filter.to, before.map(|id| *id.as_bytes())),
            limit,
            |window, keys| self.newest(Tree::SessionsOf, &prefix, window, keys),
            |id| {
                let session = self.session(SessionId::from_bytes(id))?;
                let Some(session) = session.filter(|session| filter.may_want(session)) else {
                    return Ok(None);
                };
                Ok(Some(self.with_outcome(session)?).filter(|found| filter.wants(found)))
            },
        )
        .map(|(found, next)| (found, next.map(SessionId::from_bytes)))
    }

    /// How many requests a filter lets through, where the counters tell; none for others.
    pub fn count_requests_of(&self, filter: &RequestsOf) -> Result<Option<u64>, StoreError> {
        let plain = RequestsOf { status: filter.status, ..RequestsOf::all(filter.company.clone()) };
        if *filter != plain {
            return Ok(None);
        }
        let counts = self.summary(Some(&filter.company))?;
        let wanted = |status: &RequestStatus| filter.status.is_none_or(|only| only == *status);
        let counted = RequestStatus::ALL.into_iter().zip(counts).filter(|(status, _)| wanted(status));
        Ok(Some(counted.map(|(_, count)| count).sum()))
    }

    /// How many sessions a company has, where a filter lets all through and there are not too many to count; else none.
    pub fn count_sessions_of(&self, filter: &SessionsOf) -> Result<Option<u64>, StoreError> {
        const COUNTED_MAX: usize = 100_000;
        const PAGE: usize = 10_000;
        if *filter != SessionsOf::all(filter.company.clone()) {
            return Ok(None);
        }
        let prefix = Key::new().company(&filter.company).done();
        let end = keys::after_prefix(&prefix);
        let (mut from, mut count) = (prefix, 0);
        while count < COUNTED_MAX {
            let page = self.engine.scan(Tree::SessionsOf, &from, end.as_deref(), PAGE)?;
            count += page.len();
            match page.last() {
                Some((last, _)) if page.len() == PAGE => from = [last.as_slice(), &[0]].concat(),
                Some(_) | None => return Ok(Some(count as u64)),
            }
        }
        Ok(None)
    }

    /// What became of a session.
    pub fn with_outcome(&self, session: Session) -> Result<SessionFound, StoreError> {
        let analysis = self.analysis(session.id, session.version)?;
        let request = session.request.map(|id| self.request(id)).transpose()?.flatten();
        let fetch = self.fetch(session.id)?;
        Ok(SessionFound { session, analysis, request, fetch })
    }

    /// The request that a company knows by this key of its own.
    pub fn request_by_client_id(
        &self,
        company: &CompanyId,
        client_id: &str,
    ) -> Result<Option<Request>, StoreError> {
        let key = client_key(company, &ClientKey::Id(client_id.to_owned()));
        match self.read::<KnownKey>(Tree::ClientKeys, &key)? {
            Some(known) => self.request(known.request),
            None => Ok(None),
        }
    }

    fn page<T>(
        &self,
        mut window: Window,
        limit: usize,
        keys: impl Fn(&Window, usize) -> Result<BTreeSet<[u8; 16]>, StoreError>,
        read: impl Fn([u8; 16]) -> Result<Option<T>, StoreError>,
    ) -> Result<(Vec<T>, Option<[u8; 16]>), StoreError> {
        let mut found = Vec::with_capacity(limit.min(KEYS));
        let (mut looked_at, mut last_found) = (0, None);
        loop {
            // One more than wanted shows whether there is a next page.
            let wanted = limit.saturating_sub(found.len()).saturating_add(1).clamp(KEYS / 5, KEYS);
            let ids = keys(&window, wanted)?;
            let last_page = ids.len() < wanted;
            looked_at += ids.len();
            for id in ids.into_iter().rev().take(wanted) {
                if let Some(row) = read(id)? {
                    if found.len() >= limit {
                        return Ok((found, last_found));
                    }
                    found.push(row);
                    last_found = Some(id);
                }
                window.before = Some(id);
            }
            if last_page {
                return Ok((found, None));
            }
            if looked_at >= LOOKED_AT_MAX {
                return Ok((found, window.before));
            }
        }
    }

    /// At least the newest `limit` ids of the window, if there are so many.
    fn newest(
        &self,
        tree: Tree,
        prefix: &[u8],
        window: &Window,
        limit: usize,
    ) -> Result<BTreeSet<[u8; 16]>, StoreError> {
        let from = Key::new().bytes(prefix).bytes(&window.floor).done();
        let end = match window.before {
            Some(before) => Some(Key::new().bytes(prefix).bytes(&before).done()),
            None => keys::after_prefix(prefix),
        };
        if end.as_ref().is_some_and(|end| *end <= from) {
            return Ok(BTreeSet::new());
        }
        let entries = self.engine.scan_back(tree, &from, end.as_deref(), limit)?;
        Ok(entries.iter().filter_map(|(key, _)| key.last_chunk::<16>().copied()).collect())
    }

    fn newest_requests(
        &self,
        filter: &RequestsOf,
        window: &Window,
        limit: usize,
    ) -> Result<BTreeSet<[u8; 16]>, StoreError> {
        use RequestStatus as S;
        // The statuses are read one after another while rows move between them. Those that a row may leave for one that
        // was read before are read once more at the end, so that a row on its way is not missed.
        const ALL: [S; 6] = [
            S::PendingBatching,
            S::BatchingInProgress,
            S::ProcessingComplete,
            S::ProcessingFailed,
            S::PendingBatching,
            S::BatchingInProgress,
        ];
        let one = filter.status.map(|status| [status]);
        let mut newest = BTreeSet::new();
        for status in one.as_ref().map_or(&ALL[..], |one| &one[..]) {
            let prefix = Key::new().company(&filter.company).status(*status).done();
            newest.append(&mut self.newest(Tree::ByCompany, &prefix, window, limit)?);
        }
        // Below the newest of all, the list of one status may have holes.
        while newest.len() > limit {
            newest.pop_first();
        }
        Ok(newest)
    }
}
