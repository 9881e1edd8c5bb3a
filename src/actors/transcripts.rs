//! Fetches the transcripts that exports name by their addresses: what is due in the store, a few from each host at
//! the same time, so that one slow host or one missing file holds up nothing else. The company that has least under way
//! goes first, so that one's dead addresses do not hold up another's good ones, not even on the same host; of a company
//! the source with least there, and of that what was tried in vain takes turns with what is new.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
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
use crate::store::{Behind, Breadth, FetchFailed, Lane};

/// How often the store is asked for what is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many are fetched at the same time, from all hosts; each may be in memory as a whole.
const ALL_MAX: usize = 16;
/// How many from one host.
const HOST_MAX: usize = 4;
/// How much a look takes in; the next one goes on behind it. What is under way is still listed: as many again may begin.
const A_LOOK: Breadth = Breadth { companies: 8, lanes: 8, each: 2 * HOST_MAX };
/// Lanes for which it is remembered that it is the turn of what was tried before.
const OWED_MAX: usize = 1000;

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

/// Which source a fetch is of, to which host it goes, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Way {
    source: SourceId,
    host: [u8; 8],
    company: CompanyId,
}

impl Way {
    fn of(fetch: &Fetch) -> Self {
        Self { source: fetch.at.source, host: fetch.at.host, company: fetch.company.clone() }
    }

    fn of_lane(lane: &Lane) -> Self {
        Self { source: lane.source, host: lane.host, company: lane.company.clone() }
    }
}

/// A fetch under way, and whether it was tried in vain before.
struct UnderWay {
    way: Way,
    again: bool,
}

/// What begins next: which lane's, of what was tried before or of what was not, and the how many-th of that.
#[derive(Debug, Clone, Copy)]
struct Turn {
    lane: usize,
    again: bool,
    place: usize,
}

/// By what the lanes of one host are compared: how much is under way for them, and where they stand in the look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Standing {
    /// Of the company at the host.
    here: usize,
    /// Of the company.
    all: usize,
    /// Of the lane.
    of_way: usize,
    at: usize,
}

/// Fetches transcripts.
pub struct Transcripts {
    intake: Addr<Intake>,
    shared: Arc<Shared>,
    under_way: HashMap<SessionId, UnderWay>,
    looking: bool,
    /// Behind whom the next look begins.
    behind: Behind,
    /// Where something new began last although something that was tried before was due, too.
    owed: HashSet<Way>,
}

/// Goes on behind the lanes of each company that come first and have nothing due. Where others hold every place nothing of
/// the company begins, and what is due behind these lanes would not be seen before they are due again.
fn pass_idle(behind: &mut Behind, lanes: &[Lane]) {
    let mut reached = HashSet::new();
    for lane in lanes {
        if !(lane.new.is_empty() && lane.again.is_empty()) {
            reached.insert(&lane.company);
        } else if !reached.contains(&lane.company) {
            behind.lanes.insert(lane.company.clone(), (lane.host, lane.source));
        }
    }
}

impl Transcripts {
    /// One for all sources.
    pub fn new(intake: Addr<Intake>, shared: Arc<Shared>) -> Self {
        let (under_way, owed) = (HashMap::new(), HashSet::new());
        Self { intake, shared, under_way, looking: false, behind: Behind::default(), owed }
    }

    /// Starts what is due and has a place.
    fn look(&mut self, ctx: &mut Context<Self>) {
        let stopped = self.shared.condition.intake_stopped().is_some();
        if self.looking || stopped || self.under_way.len() >= ALL_MAX {
            return;
        }
        self.looking = true;
        let (reader, now, behind) =
            (self.shared.reader.clone(), self.shared.clock.now(), self.behind.clone());
        let due = blocking(move || reader.fetches_due(now, &behind, A_LOOK));
        ctx.spawn(due.into_actor(self).map(|due, this, ctx| {
            this.looking = false;
            match due {
                Ok(lanes) => this.start_in_turn(lanes, ctx),
                Err(err) => tracing::error!(error = %err, "the transcripts that are due could not be read"),
            }
        }));
    }

    /// Starts what has a place, one after the other.
    fn start_in_turn(&mut self, mut lanes: Vec<Lane>, ctx: &mut Context<Self>) {
        pass_idle(&mut self.behind, &lanes);
        let mut begun = BTreeSet::new();
        while let Some(turn) = self.next(&lanes) {
            let Some(lane) = lanes.get_mut(turn.lane) else { break };
            self.remember(lane, turn);
            let due = if turn.again { &mut lane.again } else { &mut lane.new };
            let (session, fetch) = due.remove(turn.place);
            begun.insert(turn.lane);
            self.start(session, fetch, ctx);
        }
        // Where there was a place, nothing of the others was to begin: the next look goes on behind all of these.
        if self.under_way.len() < ALL_MAX {
            lanes.iter().for_each(|lane| self.go_on_behind(lane));
        }
        // Else behind what began, or a few slow hosts would have every place for ever.
        begun.into_iter().filter_map(|lane| lanes.get(lane)).for_each(|lane| self.go_on_behind(lane));
    }

    fn go_on_behind(&mut self, lane: &Lane) {
        self.behind.company = Some(lane.company.clone());
        self.behind.lanes.insert(lane.company.clone(), (lane.host, lane.source));
    }

    /// Remembers where it is the turn of what was tried before.
    fn remember(&mut self, lane: &Lane, turn: Turn) {
        let way = Way::of_lane(lane);
        if turn.again || lane.again.is_empty() {
            self.owed.remove(&way);
            return;
        }
        if self.owed.len() >= OWED_MAX {
            // They only wait for one more.
            self.owed.clear();
        }
        self.owed.insert(way);
    }

    /// Whose turn it is, and with which of those that are due. A host's next place is for the company that has least
    /// there, of those for the one that has least in all, and within it for the source that has least.
    fn next(&self, lanes: &[Lane]) -> Option<Turn> {
        let mut by_host: BTreeMap<_, (Standing, Turn)> = BTreeMap::new();
        for (at, lane) in lanes.iter().enumerate() {
            let Some(turn) = self.next_of(lane, at) else { continue };
            let way = Way::of_lane(lane);
            let here = self.under_way(|it| it.way.company == way.company && it.way.host == way.host);
            let all = self.under_way(|it| it.way.company == way.company);
            let of_way = self.under_way(|it| it.way == way);
            let standing = Standing { here, all, of_way, at };
            let first = by_host.entry(lane.host).or_insert((standing, turn));
            if standing < first.0 {
                *first = (standing, turn);
            }
        }
        let first = by_host.into_values().min_by_key(|(is, _)| (is.all, is.here, is.at));
        first.map(|(_, turn)| turn)
    }

    /// What of a lane may begin. What is new and what was tried before have as many places: of many dead ones each holds
    /// its place for as long as a fetch may take.
    fn next_of(&self, lane: &Lane, at: usize) -> Option<Turn> {
        let startable = |due: &[(SessionId, Fetch)]| {
            due.iter().position(|(session, fetch)| self.may_start(*session, fetch))
        };
        let new = startable(&lane.new).map(|place| Turn { lane: at, again: false, place });
        let again = startable(&lane.again).map(|place| Turn { lane: at, again: true, place });
        if new.is_none() || again.is_none() {
            return new.or(again);
        }
        let way = Way::of_lane(lane);
        let of = |again: bool| self.under_way(|it| it.way == way && it.again == again);
        let is_turn_of_again = match of(true).cmp(&of(false)) {
            Ordering::Less => true,
            Ordering::Equal => self.owed.contains(&way),
            Ordering::Greater => false,
        };
        if is_turn_of_again { again } else { new }
    }

    /// How many are under way of those that are `like` this.
    fn under_way(&self, like: impl Fn(&UnderWay) -> bool) -> usize {
        self.under_way.values().filter(|it| like(it)).count()
    }

    fn source(&self, fetch: &Fetch) -> Option<&Arc<Source>> {
        let is_its = |source: &&Arc<Source>| source.id == fetch.at.source && source.company == fetch.company;
        self.shared.sources.iter().find(is_its)
    }

    fn may_start(&self, session: SessionId, fetch: &Fetch) -> bool {
        let way = Way::of(fetch);
        // However many slow hosts one company's exports name, some places are for the others.
        let shared_with = self.shared.sources.iter().any(|source| source.company != way.company);
        let of_company_max = if shared_with { ALL_MAX - HOST_MAX } else { ALL_MAX };
        let of_way_max = || self.source(fetch).map_or(HOST_MAX, |source| source.transcript_concurrency);
        // Nor do many dead hosts of a company take all places that it may have.
        let again_is_full = || {
            let again = self.under_way(|other| other.again && other.way.company == way.company);
            fetch.was_tried_in_vain() && again >= of_company_max / 2
        };
        self.under_way.len() < ALL_MAX
            && self.under_way(|other| other.way.host == way.host) < HOST_MAX
            && self.under_way(|other| other.way.company == way.company) < of_company_max
            && self.under_way(|other| other.way == way) < of_way_max()
            && !again_is_full()
            && !self.under_way.contains_key(&session)
    }

    fn start(&mut self, session: SessionId, fetch: Fetch, ctx: &mut Context<Self>) {
        self.under_way.insert(session, UnderWay { way: Way::of(&fetch), again: fetch.was_tried_in_vain() });
        let source = self.source(&fetch).cloned();
        let (shared, intake) = (self.shared.clone(), self.intake.clone());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::source::TranscriptAt;

    fn lane(company: &str, host: u8, is_due: bool) -> Lane {
        let (source, host) = (SourceId::from_bytes([1; 16]), [host; 8]);
        let company: CompanyId = company.parse().unwrap();
        let fetch = Fetch {
            company: company.clone(),
            at: TranscriptAt { source, host, url: "https://example.com/1.txt".to_owned() },
            state: FetchState::Waiting,
            attempts: 0,
            error: None,
            due: None,
            validators: Validators::default(),
            had_at: None,
        };
        let new = if is_due { vec![(SessionId::from_bytes([1; 16]), fetch)] } else { Vec::new() };
        Lane { company, host, source, new, again: Vec::new() }
    }

    #[test]
    fn lanes_with_nothing_due_are_passed_up_to_the_first_that_has_something() {
        let mut behind = Behind::default();
        let lanes = [
            lane("a", 1, false),
            lane("b", 1, true),
            lane("a", 2, false),
            lane("a", 3, true),
            lane("a", 4, false),
            lane("b", 2, false),
        ];
        pass_idle(&mut behind, &lanes);
        let hosts: Vec<_> =
            behind.lanes.iter().map(|(company, (host, _))| (company.to_string(), host[0])).collect();
        assert_eq!(hosts, [("a".to_owned(), 2)], "what waits for a place is looked at again");
        assert_eq!(behind.company, None);
    }
}
