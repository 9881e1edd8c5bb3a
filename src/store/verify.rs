//! The invariants, checked on a whole store by full scan and never from its own counters.
//!
//! The numbers are those of the design's list, which `docs/state-machine.md` repeats.
//!
//! The store may be live meanwhile, and there are no false alarms: a page is read on the committer's thread between
//! two groups, where everything agrees with everything, and what a later group changes behind the place that the
//! check has come to is added to what it has counted (`Scan::note`). So at the end of a tree its counts are those of
//! that very moment, and single entries are compared with their likes at one moment. Nobody waits longer than a page
//! takes. Memory is bounded by what is counted: companies, statuses and groups, and one batch at a time.

mod entries;
mod totals;
mod waiting;

use std::collections::{BTreeMap, HashSet};

use entries::{batch, booked, get, is_or_was, member, outstanding, provider_batch, request, session};

use super::batches::{Fate, Provisional, StoryLine};
use super::budgets;
use super::client_keys;
use super::engine::{Engine, Found, Writes};
use super::intents::NotedIntent;
use super::keys::{self, Key, Tree};
use super::outbox;
use super::requests::GroupStat;
use super::rooms::{self, Hold};
use super::sums::{Sum, Sums};
use super::{Store, StoreError, StoreReader, StoredToken, anomalies, codec, erasing, sources, tx};
use crate::domain::batch::{Batch, BatchState, Counts, Origin};
use crate::domain::budget::{Booking, Money};
use crate::domain::company::Company;
use crate::domain::erasure::{Erasure, Gone};
use crate::domain::id::{BatchId, ErasureId, RequestId, SessionId, Timestamp};
use crate::domain::request::{Group, Request, RequestStatus, Source};
use crate::domain::room::Room;
use crate::domain::session::{Session, SessionState};

/// One sentence of the invariants that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant, by its number.
    pub invariant: u8,
    /// Where: tree and key in hex, or a tree alone.
    pub place: String,
    /// What is wrong, with the ids.
    pub what: String,
    /// Whether an acceptance of the store mends it: it follows from what else is stored.
    pub is_mended: bool,
}

/// What a check of the whole store found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Entries of all trees read.
    pub entries: u64,
    /// Sessions read.
    pub sessions: u64,
    /// Requests read.
    pub requests: u64,
    /// Batches read.
    pub batches: u64,
    /// Members read.
    pub members: u64,
    /// Booked lines read.
    pub bookings: u64,
    /// What is wrong: of what the scan found at most [`Report::VIOLATIONS_MAX`].
    pub violations: Vec<Violation>,
    /// How much more the scan found wrong.
    pub more: u64,
    /// What is wrong and was accepted by an operator before.
    pub accepted: u64,
    /// Why the store cannot be believed although it may agree with itself; that is a violation, too.
    pub doubt: Option<String>,
    /// By how much trees differ from their sums.
    differences: Vec<(Tree, Sum)>,
    /// What follows from the records and is stored otherwise: totals, and the entries of what waits.
    mends: Writes,
}

impl Report {
    /// More are counted and not kept: the first ones tell enough.
    pub const VIOLATIONS_MAX: usize = 1000;

    /// Whether every invariant holds.
    pub const fn is_whole(&self) -> bool {
        self.violations.is_empty()
    }

    /// How much is wrong, whether it is kept here or not.
    pub fn found(&self) -> u64 {
        u64::try_from(self.violations.len()).unwrap_or(u64::MAX).saturating_add(self.more)
    }
}

/// Entries that are read at once; the committer does nothing else meanwhile. Few in tests, so that there are pages.
const PAGE: usize = if cfg!(test) { 3 } else { 250 };

impl Store {
    /// Checks every invariant on the live store and says what it found. A store in doubt is not whole: an older copy
    /// agrees with itself.
    pub async fn verify(&self) -> Result<Report, StoreError> {
        let _one = self.checking.lock().await;
        let mut report = self.scan().await?;
        if let Some(why) = self.doubt() {
            let violation = Violation {
                invariant: ANCHOR,
                place: "anchor".to_owned(),
                what: format!("the store is in doubt: {why}"),
                is_mended: true,
            };
            report.violations.insert(0, violation);
            report.doubt = Some(why);
        }
        Ok(report)
    }

    /// The check after an opening: what it finds puts the store in doubt, for good.
    pub async fn check(&self) -> Result<Report, StoreError> {
        let _one = self.checking.lock().await;
        let report = self.scan().await?;
        if let Some(first) = report.violations.first() {
            let more = match report.found() {
                1 => String::new(),
                all => format!(", and {} more", all - 1),
            };
            let why = format!(
                "it is damaged: {} ({}, invariant {}){more}",
                first.what, first.place, first.invariant
            );
            self.distrust(why).await?;
        }
        Ok(report)
    }

    /// Adds a reason to doubt the store; it holds until an operator accepts the store.
    pub async fn distrust(&self, why: String) -> Result<(), StoreError> {
        let raise = move |writer: &mut super::committer::Writer| {
            let before = writer.standing().doubt;
            match before {
                Some(before) if before.contains(&why) => Ok(()),
                Some(before) => writer.raise_doubt(&format!("{before}; {why}")),
                None => writer.raise_doubt(&why),
            }
        };
        self.committer.alone(raise).await
    }

    async fn scan(&self) -> Result<Report, StoreError> {
        self.committer.alone(|writer| writer.begin_scan()).await?;
        loop {
            if let Some(report) = self.committer.alone(|writer| writer.scan_page()).await? {
                return Ok(report);
            }
        }
    }

    /// Takes the store as `report` found it, on an operator's word, and lifts the doubt. What follows from the records is
    /// made to: a total that is wrong, or an entry that is missing, would hold the work up for ever.
    pub async fn accept(&self, report: &Report, at: Timestamp) -> Result<(), StoreError> {
        let _one = self.checking.lock().await;
        if report.violations.len() >= Report::VIOLATIONS_MAX {
            let what = "more of the store is broken than can be accepted; restore it from a backup";
            return Err(StoreError::Broken(what.to_owned()));
        }
        let mut notes = report.mends.clone();
        // What the new sums and the moved anchor cover, or is mended, is not noted: another one would be a new one.
        let noted = |violation: &&Violation| !violation.is_of_sums() && !violation.is_mended;
        for violation in report.violations.iter().filter(noted) {
            let value = violation.what.bytes().take(1000).collect();
            notes.entry(Tree::Meta).or_default().insert(violation.key(), Some(value));
        }
        let found = report.differences.clone();
        self.committer.alone(move |writer| writer.accept(&found, notes, at)).await
    }
}

impl StoreReader {
    /// Checks every invariant. Reads the whole store; nothing may write meanwhile.
    pub fn verify(&self) -> Result<Report, StoreError> {
        let sums = match self.engine.get(Tree::Meta, super::sums::KEY)? {
            Some(bytes) => Sums::decode(&bytes)?.1,
            None => Sums::default(),
        };
        let mut scan = Scan::new(&self.engine)?;
        while !scan.page(&self.engine, &sums)? {}
        Ok(scan.into_report())
    }
}

const ACCEPTED: &[u8] = b"accepted/";

impl Violation {
    /// Where its acceptance is noted.
    fn key(&self) -> Vec<u8> {
        [ACCEPTED, format!("{}/{}", self.invariant, self.place).as_bytes()].concat()
    }

    fn is_of_sums(&self) -> bool {
        self.invariant == LOSS && !self.place.contains('/')
    }
}

/// What was acknowledged is there.
const LOSS: u8 = 6;
/// The store is the latest one, and nothing speaks against believing it.
const ANCHOR: u8 = 7;

/// A check of the whole store under way.
pub struct Scan {
    /// The trees that are still to be read, the current one last.
    trees: Vec<Tree>,
    /// Where the next page of the current tree begins; what lies before it is counted.
    from: Vec<u8>,
    /// What the current tree contains, up to there.
    sum: Sum,
    tally: Tally,
    known: HashSet<Vec<u8>>,
    report: Report,
}

/// What is counted of the current tree. Signed, because a change may take away first what a page adds later.
#[derive(Default)]
struct Tally {
    counters: BTreeMap<Vec<u8>, i64>,
    groups: BTreeMap<Vec<u8>, (Group, i64, i64)>,
    requests: i64,
    waiting: i64,
    backing_off: i64,
    in_progress: i64,
    sessions: i64,
    /// Sessions that were not removed for their age.
    listed: i64,
    /// Requests for the analysis of a session.
    analyses: i64,
    settling: i64,
    /// Requests and sessions that have not their own entry among those that wait.
    unlisted: u64,
    live: i64,
    /// Tokens that batches hold of each room: reserved and enqueued.
    held: BTreeMap<Vec<u8>, (i64, i64)>,
    /// What is booked, and what batches have set aside, of each company's months.
    booked: BTreeMap<Vec<u8>, i64>,
    aside: BTreeMap<Vec<u8>, i64>,
    /// The batch whose members are being read, and how many of each fate they are.
    batch: Option<(BatchId, [i64; 6])>,
}

impl Tally {
    /// Counts an entry, or takes it away again.
    fn count(&mut self, tree: Tree, key: &[u8], value: &[u8], sign: i64) -> Result<(), StoreError> {
        if tree == Tree::Requests {
            self.count_request(&codec::decode(value)?, sign);
        } else if tree == Tree::Sessions {
            let session: Session = codec::decode(value)?;
            self.sessions += sign;
            self.listed += if session.state == SessionState::Expired { 0 } else { sign };
            self.settling += if session.settles_at.is_some() { sign } else { 0 };
        } else if tree == Tree::Batches {
            let batch: Batch = codec::decode(value)?;
            self.live += if batch.state.is_live() { sign } else { 0 };
            let tokens = sign * i64::try_from(batch.held_tokens).unwrap_or(i64::MAX);
            let held = self.held.entry(rooms::key(&batch)).or_default();
            match rooms::hold(&batch.state) {
                Hold::Reserved => held.0 += tokens,
                Hold::Enqueued => held.1 += tokens,
                Hold::Nothing => {}
            }
            let aside = i64::try_from(batch.purse.reserved).unwrap_or(i64::MAX);
            *self.aside.entry(budgets::key_of(&batch)).or_default() += sign * aside;
        } else if tree == Tree::Bookings {
            let booking: Booking = codec::decode(value)?;
            let cost = i64::try_from(booking.cost.micros).unwrap_or(i64::MAX);
            *self.booked.entry(budgets::key(&booking.company, booking.month)).or_default() += sign * cost;
        } else if tree == Tree::Members {
            let fate = value.first().copied().and_then(Fate::from_byte);
            if let (Some((batch, fates)), Some(fate)) = (&mut self.batch, fate)
                && keys::batch_at_start(key) == Some(*batch)
            {
                fates[usize::from(fate as u8)] += sign;
            }
        }
        Ok(())
    }

    fn count_request(&mut self, request: &Request, sign: i64) {
        self.requests += sign;
        self.analyses += if matches!(request.source, Source::Session { .. }) { sign } else { 0 };
        for company in [None, Some(&request.group.company)] {
            *self.counters.entry(keys::counter(company, request.status)).or_default() += sign;
        }
        match request.status {
            RequestStatus::PendingBatching if request.not_before.is_some() => self.backing_off += sign,
            RequestStatus::PendingBatching => {
                self.waiting += sign;
                let key = Key::new().group(&request.group).done();
                let (_, requests, bytes) =
                    self.groups.entry(key).or_insert_with(|| (request.group.clone(), 0, 0));
                *requests += sign;
                *bytes += sign * i64::from(request.line_bytes);
            }
            RequestStatus::BatchingInProgress => self.in_progress += sign,
            RequestStatus::ProcessingComplete | RequestStatus::ProcessingFailed => {}
        }
    }
}

impl Scan {
    /// A check that has read nothing yet.
    pub fn new(engine: &Engine) -> Result<Self, StoreError> {
        let accepted =
            engine.scan(Tree::Meta, ACCEPTED, keys::after_prefix(ACCEPTED).as_deref(), usize::MAX)?;
        Ok(Self {
            trees: Tree::ALL.iter().rev().copied().collect(),
            from: Vec::new(),
            sum: Sum::default(),
            tally: Tally::default(),
            known: accepted.into_iter().map(|(key, _)| key).collect(),
            report: Report::default(),
        })
    }

    /// What was found.
    pub fn into_report(self) -> Report {
        self.report
    }

    /// Learns of a stored group. `replaced` are the values before it, in the order of the writes.
    pub fn note(&mut self, writes: &Writes, replaced: &[Option<Vec<u8>>]) {
        let Some(current) = self.trees.last().copied() else { return };
        let changes =
            writes.iter().flat_map(|(tree, changes)| changes.iter().map(move |change| (*tree, change)));
        for ((tree, (key, new)), old) in changes.zip(replaced) {
            if tree != current || *key >= self.from {
                continue;
            }
            for (value, sign) in [(old.as_deref(), -1), (new.as_deref(), 1)] {
                let Some(value) = value else { continue };
                let print = Engine::print_of(tree, key, value);
                if sign > 0 {
                    self.sum.add(print)
                } else {
                    self.sum.remove(print)
                }
                // A value that cannot be read was blamed when its page was read, or is a bug of the next check.
                let _ = self.tally.count(tree, key, value, sign);
            }
        }
    }

    /// Reads the next page, at rest; says whether that was the last one.
    pub fn page(&mut self, engine: &Engine, sums: &Sums) -> Result<bool, StoreError> {
        let Some(tree) = self.trees.last().copied() else { return Ok(true) };
        let found = engine.look(tree, &self.from, PAGE)?;
        for entry in &found {
            self.entry(engine, tree, entry)?;
        }
        if let (Some(last), true) = (found.last(), found.len() == PAGE) {
            self.from = [last.key.as_slice(), &[0]].concat();
            return Ok(false);
        }
        self.finish(engine, tree, sums)?;
        self.trees.pop();
        self.from.clear();
        self.sum = Sum::default();
        Ok(self.trees.is_empty())
    }

    fn blame(&mut self, invariant: u8, place: String, what: String) {
        self.note_violation(Violation { invariant, place, what, is_mended: false });
    }

    fn note_violation(&mut self, violation: Violation) {
        if self.known.contains(&violation.key()) {
            self.report.accepted += 1;
        } else if self.report.violations.len() < Report::VIOLATIONS_MAX {
            self.report.violations.push(violation);
        } else {
            self.report.more += 1;
        }
    }

    fn entry(&mut self, engine: &Engine, tree: Tree, found: &Found) -> Result<(), StoreError> {
        self.report.entries += 1;
        self.sum.add(found.print);
        let place = || format!("{}/{}", tree.name(), super::engine::hex(&found.key));
        let Some(value) = &found.value else {
            self.blame(LOSS, place(), "a value is not what was written".to_owned());
            return Ok(());
        };
        let wrong = match self.read(engine, tree, &found.key, value) {
            Ok(wrong) => wrong,
            // What it was compared with is damaged, which is told at its own place; or the record itself has no
            // shape that we know.
            Err(StoreError::Damaged { .. }) => return Ok(()),
            Err(StoreError::Codec(why)) => vec![(LOSS, format!("a record cannot be read: {why}"))],
            Err(err) => return Err(err),
        };
        for (invariant, what) in wrong {
            self.blame(invariant, place(), what);
        }
        Ok(())
    }

    /// Reads one entry, counts it, and compares it with those that must agree with it.
    fn read(
        &mut self,
        engine: &Engine,
        tree: Tree,
        key: &[u8],
        value: &[u8],
    ) -> Result<Vec<(u8, String)>, StoreError> {
        if tree == Tree::Members {
            self.next_batch(engine, keys::batch_at_start(key))?;
        }
        self.tally.count(tree, key, value, 1)?;
        let mut wrong = Vec::new();
        match tree {
            Tree::Companies => drop(codec::decode::<Company>(value)?),
            Tree::Tokens => {
                let token: StoredToken = codec::decode(value)?;
                let listed = engine.get(Tree::TokenIds, &super::tokens::id_key(&token))?;
                if listed.as_deref() != Some(key) {
                    wrong.push((1, format!("key {} is not listed in {}", token.id, Tree::TokenIds.name())));
                }
            }
            Tree::Sessions => {
                self.report.sessions += 1;
                let record: Session = codec::decode(value)?;
                session(engine, &record, &mut wrong)?;
                self.settles(engine, &record)?;
            }
            Tree::SessionKeys => {
                let id: SessionId = codec::decode(value)?;
                let session: Option<Session> = get(engine, Tree::Sessions, id.as_bytes())?;
                let own = |session: &Session| {
                    Key::new().company(&session.company).text(&session.external_id).done() == key
                };
                if !session.as_ref().is_some_and(own) {
                    wrong.push((LOSS, format!("session {id} is not there under its own key")));
                }
            }
            Tree::Requests => {
                self.report.requests += 1;
                let record: Request = codec::decode(value)?;
                request(engine, &record, &mut wrong)?;
                self.waits(engine, &record)?;
            }
            Tree::ClientKeys => {
                if let Some(id) = client_keys::named_by(key, value)?
                    && !is_or_was(engine, id.as_bytes())?
                {
                    wrong.push((LOSS, format!("request {id} has a client key and is not there")));
                }
            }
            Tree::TokenIds => {
                if engine.get(Tree::Tokens, value)?.is_none() {
                    wrong.push((1, "a key is listed and not there".to_owned()));
                }
            }
            Tree::Batches => {
                self.report.batches += 1;
                batch(engine, &codec::decode(value)?, &mut wrong)?;
            }
            Tree::Members => {
                self.report.members += 1;
                member(engine, key, value, &mut wrong)?;
            }
            Tree::Outstanding => {
                drop(codec::decode::<Provisional>(value)?);
                outstanding(engine, key, &mut wrong)?;
            }
            Tree::ProviderBatches => provider_batch(engine, key, value, &mut wrong)?,
            Tree::Bookings => {
                self.report.bookings += 1;
                drop(codec::decode::<Booking>(value)?);
                match key.first_chunk::<16>() {
                    Some(id) if is_or_was(engine, id)? => {}
                    Some(id) => {
                        let id = RequestId::from_bytes(*id);
                        wrong.push((5, format!("something is booked for request {id}, which is not there")));
                    }
                    None => wrong.push((5, format!("a booking key of {} bytes", key.len()))),
                }
            }
            Tree::SessionRequests => match keys::request_at_end(key) {
                Some(id) if engine.get(Tree::Requests, id.as_bytes())?.is_some() => {}
                Some(_) | None => wrong.push((1, "a session has a request that is not there".to_owned())),
            },
            Tree::Gone => {
                let gone: Gone = codec::decode(value)?;
                if engine.get(Tree::Requests, key)?.is_some() {
                    wrong.push((1, "a request is there and is removed".to_owned()));
                }
                booked(engine, key, gone.cost.as_ref(), &mut wrong)?;
            }
            Tree::Erasures => drop(codec::decode::<Erasure>(value)?),
            Tree::Tombstones => {
                let id: ErasureId = codec::decode(value)?;
                if engine.get(Tree::Erasures, id.as_bytes())?.is_none() {
                    wrong.push((1, format!("erasure {id} keeps something out and is not there")));
                }
            }
            Tree::Erasing => {
                let id = key.first_chunk::<16>();
                let known = id.map(|id| engine.get(Tree::Erasures, id)).transpose()?.flatten();
                if known.is_none() {
                    wrong.push((1, "an erasure is under way and is not there".to_owned()));
                }
            }
            Tree::AgedBatches | Tree::AgedOf => {
                wrong.extend(erasing::verify_aged(engine, tree == Tree::AgedOf, key)?.map(|what| (4, what)));
            }
            Tree::Deletions => {
                let batch = keys::batch_at_start(value);
                if batch.map(|id| engine.get(Tree::Batches, id.as_bytes())).transpose()?.flatten().is_none() {
                    wrong.push((4, "a file is to be deleted of a batch that is not there".to_owned()));
                }
            }
            Tree::Shadows => {
                let shadow =
                    keys::batch_at_end(key).map(|id| get::<Batch>(engine, Tree::Batches, id.as_bytes()));
                let of = keys::batch_at_start(key);
                let is_one = shadow.transpose()?.flatten().is_some_and(
                    |batch| matches!(batch.origin, Origin::Shadow { of: original } if Some(original) == of),
                );
                if !is_one {
                    wrong.push((3, "a shadow is listed of a batch, and is none of it".to_owned()));
                }
            }
            Tree::Anomalies => wrong.extend(anomalies::verify(engine, key, value)?.map(|what| (4, what))),
            Tree::Story => drop(codec::decode::<StoryLine>(value)?),
            Tree::Groups => drop(codec::decode::<GroupStat>(value)?),
            Tree::Endings => {
                tx::number(Some(value))?;
                let batch = key.first_chunk::<16>();
                if batch.map(|id| engine.get(Tree::Batches, id)).transpose()?.flatten().is_none() {
                    wrong.push((4, "ends are counted of a batch that is not there".to_owned()));
                }
            }
            Tree::Counters => drop(tx::number(Some(value))?),
            Tree::Rooms => drop(codec::decode::<Room>(value)?),
            Tree::Budgets => drop(codec::decode::<Money>(value)?),
            Tree::Releases => drop(codec::decode::<(Vec<u8>, u64)>(value)?),
            Tree::Intents => drop(codec::decode::<NotedIntent>(value)?),
            Tree::Webhooks | Tree::Deliveries | Tree::DeliveryOrder | Tree::Events | Tree::EventTexts => {
                outbox::check(engine, tree, key, value, &mut wrong)?;
            }
            Tree::Sources => sources::verify_source(value)?,
            Tree::Fetches => {
                wrong.extend(sources::verify_fetch(engine, key, value)?.map(|what| (LOSS, what)));
            }
            Tree::FetchesDue => wrong.extend(sources::verify_due(engine, key)?.map(|what| (LOSS, what))),
            // Their values are nothing, plain bytes, or parts of packed texts: their checksums say all there is.
            Tree::Meta
            | Tree::Settling
            | Tree::Contents
            | Tree::Analyses
            | Tree::Bodies
            | Tree::Results
            | Tree::Misfits
            | Tree::KeyEnds
            | Tree::ByStatus
            | Tree::ByCompany
            | Tree::Pending
            | Tree::Backoff
            | Tree::LiveBatches
            | Tree::SessionsOf => {}
        }
        Ok(wrong)
    }

    /// Compares the batch whose members were read so far with them, and begins with the next one.
    fn next_batch(&mut self, engine: &Engine, next: Option<BatchId>) -> Result<(), StoreError> {
        let current = self.tally.batch.as_ref().map(|(id, _)| *id);
        if current == next {
            return Ok(());
        }
        let ended = std::mem::replace(&mut self.tally.batch, next.map(|id| (id, [0; 6])));
        let Some((id, fates)) = ended else { return Ok(()) };
        let place = format!("{}/{}", Tree::Members.name(), super::engine::hex(id.as_bytes()));
        let batch: Option<Batch> = match get(engine, Tree::Batches, id.as_bytes()) {
            Err(StoreError::Damaged { .. } | StoreError::Codec(_)) => return Ok(()),
            read => read?,
        };
        let Some(batch) = batch else {
            self.blame(4, place, format!("batch {id} has members but is not there"));
            return Ok(());
        };
        let [outstanding, completed, failed, returned, erased, left] =
            fates.map(|count| u64::try_from(count).unwrap_or(u64::MAX));
        let members = fates.iter().sum::<i64>();
        let full = Counts {
            members: u64::try_from(members).unwrap_or(u64::MAX),
            completed,
            failed,
            returned: returned.saturating_add(left),
            erased,
        };
        if full != batch.counts {
            self.blame(4, place, format!("batch {id} counts {:?}, its members are {full:?}", batch.counts));
        } else if outstanding > 0
            && matches!(batch.state, BatchState::Cleaning { .. } | BatchState::Closed { .. })
        {
            self.blame(4, place, format!("batch {id} closed with {outstanding} outstanding"));
        }
        Ok(())
    }

    /// The end of a tree: what was counted must agree with what is stored, at this very moment.
    fn finish(&mut self, engine: &Engine, tree: Tree, sums: &Sums) -> Result<(), StoreError> {
        let (stored, found) = (sums.of(tree), self.sum);
        if stored != found && tree != Tree::Meta {
            self.report.differences.push((tree, stored.until(found)));
            let what = if stored.entries == found.entries {
                "an older value than was stored last is back".to_owned()
            } else {
                format!("it has {} entries, and {} were stored", found.entries, stored.entries)
            };
            self.blame(LOSS, tree.name().to_owned(), what);
        }
        let tally = &self.tally;
        let likes = [
            (Tree::Requests, 1, Tree::ByStatus, tally.requests, "requests"),
            (Tree::Requests, 1, Tree::ByCompany, tally.requests, "requests"),
            (Tree::Requests, 1, Tree::Pending, tally.waiting, "requests that wait"),
            (Tree::Requests, 1, Tree::Backoff, tally.backing_off, "requests that wait for their time"),
            (Tree::Requests, 2, Tree::Outstanding, tally.in_progress, "requests in batches"),
            (Tree::Requests, 1, Tree::SessionRequests, tally.analyses, "requests of sessions"),
            (Tree::Sessions, 1, Tree::SessionKeys, tally.sessions, "sessions"),
            (Tree::Sessions, 1, Tree::SessionsOf, tally.listed, "sessions that are listed"),
            (Tree::Sessions, 1, Tree::Settling, tally.settling, "sessions that settle"),
            (Tree::Batches, 2, Tree::LiveBatches, tally.live, "live batches"),
        ];
        let wrong: Vec<_> = likes
            .into_iter()
            .filter(|(of, _, like, full, _)| {
                *of == tree && u64::try_from(*full) != Ok(sums.of(*like).entries)
            })
            .map(|(_, invariant, like, full, name)| {
                let entries = sums.of(like).entries;
                let what = format!("{} has {entries} entries, and there are {full} {name}", like.name());
                (invariant, like.name().to_owned(), what)
            })
            .collect();
        let is_wrong = !wrong.is_empty() || std::mem::take(&mut self.tally.unlisted) > 0;
        for (invariant, place, what) in wrong {
            // Those of what waits are put in order below.
            let is_mended = waiting::TREES.iter().any(|tree| tree.name() == place);
            self.note_violation(Violation { invariant, place, what, is_mended });
        }
        if is_wrong {
            self.strays(engine, tree)?;
        }
        if tree == Tree::Members {
            self.next_batch(engine, None)?;
        }
        if tree == Tree::Batches {
            self.rooms(engine)?;
            self.aside(engine)?;
        }
        if tree == Tree::Bookings {
            self.booked(engine)?;
        }
        if tree == Tree::Requests { self.counters(engine) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
