//! Fetches the transcripts that exports name by their addresses: what is due in the store, a few from each host at
//! the same time, so that one slow host or one missing file holds up nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::download::{validators, version};
use super::importer::{Place, Source};
use super::intake::{AcceptTranscript, Intake};
use super::registry::blocking;
use super::{Shared, every};
use crate::domain::id::{CompanyId, SessionId};
use crate::domain::session::Message as ChatMessage;
use crate::domain::source::{self, Fetch, FetchState, SourceId, Validators};
use crate::fetch::{FetchError, Fetched, Get, Limits, Url};
use crate::import::transcript;
use crate::panics;
use crate::store::FetchFailed;

/// How often the store is asked for what is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many are fetched at the same time, from all hosts; each may be in memory as a whole.
const ALL_MAX: usize = 16;
/// How many from one host.
const HOST_MAX: usize = 4;
/// How many hosts a look takes in; the next one goes on behind them.
const HOSTS_A_LOOK: usize = 64;

/// Bounds of what is fetched.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long a fetch may take; a large body gets more.
    pub timeout: Duration,
    /// The largest export.
    pub export_bytes_max: u64,
    /// The largest transcript.
    pub transcript_bytes_max: u64,
    /// How often a transcript is tried before it is given up.
    pub attempts: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            export_bytes_max: 1_000_000_000,
            transcript_bytes_max: 8_000_000,
            attempts: 12,
        }
    }
}

/// A fetch under way: which source it is of, to which host it goes, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    source: SourceId,
    host: [u8; 8],
    company: CompanyId,
}

/// Fetches transcripts.
pub struct Transcripts {
    intake: Addr<Intake>,
    shared: Arc<Shared>,
    under_way: HashMap<SessionId, Way>,
    looking: bool,
    /// The host behind which the next look begins.
    after: Option<[u8; 8]>,
}

impl Transcripts {
    /// One for all sources.
    pub fn new(intake: Addr<Intake>, shared: Arc<Shared>) -> Self {
        Self { intake, shared, under_way: HashMap::new(), looking: false, after: None }
    }

    /// Starts what is due and has a place.
    fn look(&mut self, ctx: &mut Context<Self>) {
        let stopped = self.shared.condition.intake_stopped().is_some();
        if self.looking || stopped || self.under_way.len() >= ALL_MAX {
            return;
        }
        self.looking = true;
        let (reader, now, after) = (self.shared.reader.clone(), self.shared.clock.now(), self.after);
        // Those under way are still listed: as many again may begin.
        let due = blocking(move || reader.fetches_due(now, after, HOSTS_A_LOOK, 2 * HOST_MAX));
        ctx.spawn(due.into_actor(self).map(|due, this, ctx| {
            this.looking = false;
            match due {
                Ok((due, after)) => {
                    this.after = after;
                    for (session, fetch) in due {
                        let host = fetch.at.host;
                        this.start(session, fetch, ctx);
                        if this.under_way.len() >= ALL_MAX {
                            // The next look goes on behind it, or a few slow hosts would have every place for ever.
                            this.after = Some(host);
                            break;
                        }
                    }
                }
                Err(err) => tracing::error!(error = %err, "the transcripts that are due could not be read"),
            }
        }));
    }

    fn start(&mut self, session: SessionId, fetch: Fetch, ctx: &mut Context<Self>) {
        let host = fetch.at.host;
        let of_host = self.under_way.values().filter(|other| other.host == host).count();
        let way = Way { source: fetch.at.source, host, company: fetch.company.clone() };
        let of_company = self.under_way.values().filter(|other| other.company == way.company).count();
        // However many slow hosts one company's exports name, some places are for the others.
        let shared_with = self.shared.sources.iter().any(|source| source.company != way.company);
        let of_company_max = if shared_with { ALL_MAX - HOST_MAX } else { ALL_MAX };
        let of_way = self.under_way.values().filter(|other| **other == way).count();
        let source = self
            .shared
            .sources
            .iter()
            .find(|source| source.id == fetch.at.source && source.company == fetch.company);
        let of_way_max = source.map_or(HOST_MAX, |source| source.transcript_concurrency);
        if self.under_way.len() >= ALL_MAX
            || of_host >= HOST_MAX
            || of_way >= of_way_max
            || of_company >= of_company_max
            || self.under_way.contains_key(&session)
        {
            return;
        }
        self.under_way.insert(session, way);
        let (shared, intake, source) = (self.shared.clone(), self.intake.clone(), source.cloned());
        let work =
            async move { panics::caught(bring(&shared, &intake, session, fetch, source.as_deref())).await };
        ctx.spawn(work.into_actor(self).map(move |stored, this, ctx| {
            this.under_way.remove(&session);
            match stored {
                // What is stored is not due any more; anything else waits for the timer.
                Ok(true) => this.look(ctx),
                Ok(false) => {}
                Err(_) => tracing::error!(session.id = %session, "the fetch of a transcript broke off"),
            }
        }));
    }
}

impl Actor for Transcripts {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.look(ctx);
        every(ctx, &self.shared.clock, LOOK_EVERY, Self::look);
    }
}

/// Why a transcript was not had.
struct NotHad {
    error: String,
    permanent: bool,
    not_allowed: bool,
    retry_after: Option<Duration>,
}

impl From<FetchError> for NotHad {
    fn from(err: FetchError) -> Self {
        Self {
            error: err.to_string(),
            permanent: err.is_permanent(),
            not_allowed: matches!(err, FetchError::NotAllowed(_)),
            retry_after: err.retry_after(),
        }
    }
}

impl NotHad {
    fn permanent(error: impl ToString) -> Self {
        Self { error: error.to_string(), permanent: true, not_allowed: false, retry_after: None }
    }
}

/// Fetches one transcript and has it, or that there is none, stored. Says whether that went well.
async fn bring(
    shared: &Arc<Shared>,
    intake: &Addr<Intake>,
    session: SessionId,
    fetch: Fetch,
    source: Option<&Source>,
) -> bool {
    // What is due was read while another try of it was under way, maybe, and that one has ended since.
    let reader = shared.reader.clone();
    match blocking(move || reader.fetch(session)).await {
        Ok(Some(now)) if now == fetch => {}
        Ok(_) => return true,
        Err(err) => {
            tracing::error!(session.id = %session, error = %err, "the fetch of a transcript could not be read");
            return false;
        }
    }
    let not_had = match source {
        Some(source) => match fetch_text(shared, &fetch, source).await {
            Ok((messages, validators)) => {
                let url = fetch.at.url;
                let taken = intake.send(AcceptTranscript { session, url, messages, validators }).await;
                return match taken {
                    Ok(Ok(_)) => true,
                    // Nothing is taken in just now, or the program is leaving: it stays due.
                    Ok(Err(err)) => {
                        tracing::warn!(session.id = %session, error = %err, "a transcript was not stored");
                        false
                    }
                    Err(_) => false,
                };
            }
            Err(not_had) => not_had,
        },
        None => NotHad { not_allowed: true, ..NotHad::permanent("its export is not configured any more") },
    };
    let attempts = fetch.attempts.saturating_add(1);
    let state = match () {
        () if not_had.not_allowed => FetchState::NotAllowed,
        () if attempts >= shared.fetching.attempts => FetchState::Failed,
        () => FetchState::Waiting,
    };
    let asked = not_had.retry_after.unwrap_or_default().min(source::PAUSE_MAX);
    let pause = source::pause(attempts, not_had.permanent).max(asked);
    let due = (state == FetchState::Waiting).then(|| shared.clock.now().plus(pause));
    tracing::warn!(
        company.id = %fetch.company, session.id = %session, attempts, state = state.label(), error = not_had.error,
        "a transcript was not had: {}", not_had.error
    );
    let failed = FetchFailed { session, url: fetch.at.url, state, error: not_had.error, due };
    crash_point!("fetch_failed.before_commit");
    let noted = shared.store.note_fetch_failed(failed).await;
    crash_point!("fetch_failed.after_commit");
    match noted {
        Ok(()) => true,
        Err(err) => {
            tracing::error!(session.id = %session, error = %err, "the fetch of a transcript could not be stored");
            false
        }
    }
}

/// The messages, and by what their next change is told; no messages where they are as they were.
async fn fetch_text(
    shared: &Shared,
    fetch: &Fetch,
    source: &Source,
) -> Result<(Option<Vec<ChatMessage>>, Validators), NotHad> {
    let url =
        Url::parse(&fetch.at.url).map_err(|err| NotHad { not_allowed: true, ..NotHad::permanent(err) })?;
    // An export may name any address, but its password is for its own server.
    let login = match &source.place {
        Place::Remote(remote) if remote.url.origin() == url.origin() => remote.login.as_ref(),
        Place::Remote(_) | Place::File { .. } => None,
    };
    let have = version(&fetch.validators);
    let limits = Limits { timeout: shared.fetching.timeout, bytes: shared.fetching.transcript_bytes_max };
    let body = match shared.fetcher.get(Get { url: &url, login, have: &have, limits }).await? {
        Fetched::NotModified => return Ok((None, fetch.validators.clone())),
        Fetched::Body(body) => body,
    };
    let validators = validators(&body.version);
    let bytes = body.bytes().await?;
    let options = source.options.clone();
    let read = tokio::task::spawn_blocking(move || transcript::read(bytes.as_slice(), &options)).await;
    match read {
        Ok(Ok(read)) => Ok((Some(read.messages), validators)),
        Ok(Err(err)) => Err(NotHad::permanent(err)),
        Err(err) => Err(NotHad::permanent(panics::broke_off(&err))),
    }
}
