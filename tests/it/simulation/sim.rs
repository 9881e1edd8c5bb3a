//! The driver: it stands for the actors, and loses everything but the store and the provider when it is told to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Arguments;
use std::time::Duration;

use futures_util::FutureExt;
use nightshift::actors::reconciler::{Theirs, compared_at};
use nightshift::clock::{Clock, ManualClock};
use nightshift::domain::batch::{Batch, BatchState, Cancel, ProviderIdentity, Then};
use nightshift::domain::cut::Limits;
use nightshift::domain::effect::Effect;
use nightshift::domain::event::{Event, Observation};
use nightshift::domain::id::{BatchId, RequestId, Timestamp};
use nightshift::domain::request::{Endpoint, Group, RequestStatus, Source};
use nightshift::domain::retry;
use nightshift::domain::step::{self, Policy};
use nightshift::provider::jsonl;
use nightshift::simulator::testing::Provider;
use nightshift::store::{Accepted, NewRequest, RequestFilter, Store};

use super::plan::{Dice, Plan, Rates};

pub const POLICY: Policy =
    Policy { backoff: Duration::from_secs(60), capacity_backoff: Duration::from_secs(60), sweeps_min: 3 };
pub const RETRY: retry::Policy = retry::Policy {
    max_attempts: 3,
    backoff: Duration::from_secs(60),
    capacity_backoff: Duration::from_secs(60),
};
pub const LIMITS: Limits =
    Limits { requests_max: 6, bytes_max: 100_000, tokens_max: None, age_max: Duration::ZERO };
/// How long an uncertain call is looked for at least.
pub const GRACE: Duration = Duration::from_secs(300);
/// Turns with faults.
const TURNS: usize = 220;
/// Rounds without, in which everything has to come to its end.
const ROUNDS: usize = 600;

/// A rule that the driver breaks on purpose, to see that the checks notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    Nothing,
    /// An uncertain create call is simply sent again.
    ResendsWithoutSearch,
    /// After a restart a stored intent counts as not sent.
    ForgetsIntents,
    /// Lines are applied to whatever request is at hand.
    TakesLinesOfOthers,
    /// After the restore of a backup it sends at once.
    SendsBeforeComparing,
    /// A batch that came after the backup counts as a shadow unless the batch here was never sent.
    TakesStrangersForShadows,
    /// What fails every time, or was answered and is of no use, is tried again.
    RetriesWhatIsFinal,
    /// After a restore the requests go to the oldest batch that they were in.
    TakesOverTheOldestFirst,
    /// And what had them in the backup is sent all the same.
    LeavesRequestsWhereTheyWere,
    /// A list that broke off proves that what it did not show is not there.
    TakesPartsForWhole,
    /// A batch without metadata is nobody's.
    ForgetsFiles,
    /// The input file of a call that was not found stays where it is.
    SkipsTheFence,
}

impl Broken {
    /// Has happen what the rule is for, where that is rare.
    pub fn needs(self, plan: &mut Plan) {
        match self {
            Self::TakesPartsForWhole => {
                plan.broken_list = (0, 1);
                plan.rates = Rates { lists: 100, uncertain: 60, crash: 5, ..Rates::default() };
            }
            // Only a run with a restore can break it.
            Self::SendsBeforeComparing => {
                plan.restores = true;
                plan.drops_metadata = false;
            }
            // Calls of which nobody heard, and their effects, are what these are about.
            Self::ResendsWithoutSearch | Self::ForgetsIntents | Self::SkipsTheFence => {
                plan.rates = Rates { uncertain: 60, crash: 5, ..Rates::default() };
            }
            Self::ForgetsFiles => {
                plan.rates.uncertain = 60;
                plan.drops_metadata = true;
                plan.restores = false;
            }
            Self::TakesStrangersForShadows => {
                plan.restores = true;
                plan.drops_metadata = false;
            }
            Self::Nothing
            | Self::TakesLinesOfOthers
            | Self::RetriesWhatIsFinal
            | Self::TakesOverTheOldestFirst
            | Self::LeavesRequestsWhereTheyWere => {}
        }
    }
}

pub type Checked = Result<(), String>;

/// The store over memory answers at once.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the store over memory answers at once")
}

pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub struct Actor {
    pub batch: Batch,
    /// What to do, and not before when.
    pub effects: VecDeque<(Timestamp, Effect)>,
    /// Since when this process looks for an uncertain call.
    pub uncertain_since: Option<Timestamp>,
    /// What the provider said before.
    pub before: Option<Observation>,
    /// When it began, by the wall clock and by the monotonic one.
    pub began: (Timestamp, Timestamp),
}

/// A create call that has its effect later.
pub struct Late {
    pub batch: BatchId,
    pub nonce: String,
    pub input: String,
    /// Who stands in its first line; the file may be gone before the call has its effect.
    pub first: Option<RequestId>,
    pub endpoint: &'static str,
}

/// A request that the provider ran in one of its batches.
pub struct Run {
    pub batch: String,
    /// Whether what the provider reported of it, or an operator, lets it be run again.
    pub explained: bool,
}

struct Backup {
    store: Store,
    accepted: BTreeSet<RequestId>,
}

pub struct Sim {
    pub dice: Dice,
    pub rates: Rates,
    pub broken: Broken,
    pub store: Store,
    thorough: bool,
    /// The provider's clock, which is also our monotonic one.
    pub clock: ManualClock,
    /// How far our wall clock is ahead of it, in milliseconds.
    ahead: i64,
    pub remote: Provider,
    pub actors: BTreeMap<BatchId, Actor>,
    /// Result files at home, which outlive a crash.
    pub spool: BTreeMap<(BatchId, u8), Vec<u8>>,
    pub late: Vec<Late>,
    /// The account is refused until then.
    pub paused_until: Timestamp,
    /// Whether the provider's list was compared since the start.
    pub compared: bool,
    pub theirs: Theirs,
    /// Batches that the provider says it does not know, until when.
    pub gone: BTreeMap<String, Timestamp>,
    /// Batches that are in no list, until when.
    pub unlisted: BTreeMap<String, Timestamp>,
    /// What a batch was marked with is not kept.
    pub drops_metadata: bool,
    /// At which page a list breaks off, and how.
    pub broken_list: (usize, usize),
    /// An operator has said that what is gone is really gone.
    pub trusted: bool,
    /// Provider batches that the provider has denied, or whose files it did not show: what ran in them need not count.
    pub denied: BTreeSet<String>,
    /// Provider batches that came of one create call, in pairs.
    pub twins: Vec<[String; 2]>,
    /// Lines that nobody could see were cut off a download.
    pub cut_off: BTreeSet<(String, RequestId)>,
    /// Lines beside which the provider says something else of the same request.
    pub contradicted: BTreeSet<(String, RequestId)>,
    /// The first line of the input of each batch that was created, which is the one that a refusal may name.
    pub first_lines: BTreeMap<String, RequestId>,
    pub accepted: BTreeSet<RequestId>,
    pub results: BTreeMap<RequestId, Vec<u8>>,
    /// What the provider ran and would be paid for, by request, in order.
    pub runs: BTreeMap<RequestId, Vec<Run>>,
    /// What changed since the last check.
    pub touched: BTreeSet<BatchId>,
    pub steps: u64,
    restores: bool,
    jumps: bool,
    backup: Option<Backup>,
    ids: u128,
    hash: u64,
    prints: bool,
}

impl Sim {
    pub fn new(plan: Plan, dice: Dice, broken: Broken, prints: bool) -> Self {
        let start = Timestamp::from_secs(1_795_000_000);
        Self {
            dice,
            rates: plan.rates,
            broken,
            store: now(Store::in_memory(uuid::Uuid::from_u128(1))).unwrap().with_chunk(plan.chunk),
            clock: ManualClock::new(start),
            ahead: 0,
            remote: Provider::new(plan.behaviour),
            actors: BTreeMap::new(),
            spool: BTreeMap::new(),
            late: Vec::new(),
            paused_until: start,
            compared: true,
            theirs: Theirs::default(),
            gone: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            drops_metadata: plan.drops_metadata,
            broken_list: plan.broken_list,
            trusted: false,
            denied: BTreeSet::new(),
            twins: Vec::new(),
            cut_off: BTreeSet::new(),
            contradicted: BTreeSet::new(),
            first_lines: BTreeMap::new(),
            accepted: BTreeSet::new(),
            results: BTreeMap::new(),
            runs: BTreeMap::new(),
            touched: BTreeSet::new(),
            steps: 0,
            restores: plan.restores,
            jumps: plan.jumps,
            thorough: plan.thorough,
            backup: None,
            ids: 1,
            hash: 0xcbf2_9ce4_8422_2325,
            prints,
        }
    }

    /// One line of the trace: it goes into the hash.
    pub fn note(&mut self, line: Arguments<'_>) {
        let line = line.to_string();
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.prints {
            println!("{} {line}", self.clock.now());
        }
    }

    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Our wall clock.
    pub fn at(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.now().as_millis() + self.ahead)
    }

    /// Our monotonic clock.
    pub fn mono(&self) -> Timestamp {
        self.clock.now()
    }

    /// The time that a batch's actor goes by: no jump is in it.
    pub fn steady(&self, id: BatchId) -> Timestamp {
        let mono = self.mono();
        self.actors.get(&id).map_or(mono, |actor| actor.began.0.plus(mono.since(actor.began.1)))
    }

    /// Our wall clock is set.
    fn jump(&mut self) {
        if !self.jumps {
            return;
        }
        let in_2038 = 2_147_483_640_000 - self.millis();
        let hour = 3_600_000;
        self.ahead = [0, 25 * hour, -2 * hour, in_2038, in_2038 + 9_000_000 * 1000][self.dice.below(5)];
        self.note(format_args!("the wall clock is set to {}", self.at()));
    }

    pub fn millis(&self) -> i64 {
        self.clock.now().as_millis()
    }

    pub fn id(&mut self) -> [u8; 16] {
        self.ids += 1;
        // As a UUIDv7 begins with its time.
        let time = u128::try_from(self.at().as_millis()).unwrap() << 80;
        (time | self.ids).to_be_bytes()
    }

    fn accept(&mut self) {
        let number = self.dice.below(3);
        let company = ["acme", "beta"][number % 2].parse().unwrap();
        let model = ["gpt-4o-mini", "gpt-4o-mini", "gpt-4o"][number].to_owned();
        let group = Group { company, endpoint: Endpoint::ChatCompletions, model };
        let count = 1 + self.dice.below(9);
        let new: Vec<_> = (0..count).map(|_| self.request(&group)).collect();
        for accepted in now(self.store.accept_requests(new, self.at())).unwrap() {
            let Accepted::New(id) = accepted else { panic!("{accepted:?}") };
            self.accepted.insert(id);
            if self.dice.chance(self.rates.poison) {
                self.note(format_args!("{id} is poison"));
                self.remote.poison(id.to_string());
            }
        }
        self.note(format_args!("accepted {count}"));
    }

    fn request(&mut self, group: &Group) -> NewRequest {
        let id = RequestId::from_bytes(self.id());
        let model = &group.model;
        let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"{id}"}}]}}"#);
        let line = jsonl::input_line(id, group.endpoint, &body);
        NewRequest {
            id,
            group: group.clone(),
            source: Source::Generic { client_id: None },
            key: None,
            content_hash: [0; 32],
            line_bytes: u32::try_from(line.len()).unwrap(),
            line_crc: crc32c::crc32c(&line),
            body: Some(body),
            estimated_tokens: 1 + u32::try_from(self.dice.below(20)).unwrap(),
            output_max: None,
            inputs: 0,
            metadata: None,
            priority: 0,
            not_before: None,
        }
    }

    fn open_batches(&mut self) -> Checked {
        if !self.compared && self.broken != Broken::SendsBeforeComparing {
            return Ok(());
        }
        for waits in self.store.reader().waiting().map_err(text)? {
            if waits.filling.is_some() || waits.waiting.requests == 0 {
                continue;
            }
            let id = BatchId::from_bytes(self.id());
            let mut batch = Batch::open(id, waits.group, ProviderIdentity::default(), self.at());
            batch.tokens_max = self.store.reader().room(&batch).map_err(text)?.for_a_cut(self.at(), 1, true);
            if batch.tokens_max == Some(0) {
                continue;
            }
            now(self.store.open_batch(batch)).map_err(text)?;
            self.host(id, Some(Effect::Fill))?;
        }
        Ok(())
    }

    /// Takes a batch up from the store, with what there is to do for it.
    pub fn host(&mut self, id: BatchId, fresh: Option<Effect>) -> Checked {
        let batch = self.store.reader().batch(id).map_err(text)?.ok_or("a batch is gone")?;
        let mut effects = step::resume(&batch.state, batch.orders());
        if let (Broken::ForgetsIntents, BatchState::Creating { intent, .. }) = (self.broken, &batch.state) {
            effects = vec![Effect::CreateBatch(intent.clone())];
        }
        if let Some(fresh) = fresh {
            effects = vec![fresh];
        }
        let began = (self.at(), self.mono());
        let effects = effects.into_iter().map(|effect| due(began, effect)).collect();
        self.note(format_args!("hosts {id} {}", batch.state.label()));
        self.actors.insert(id, Actor { batch, effects, uncertain_since: None, before: None, began });
        self.touched.insert(id);
        Ok(())
    }

    /// A kill: everything but the store, the spool and the provider is gone.
    pub fn crash(&mut self) -> Checked {
        self.note(format_args!("crash"));
        self.actors.clear();
        self.paused_until = self.mono();
        self.compared = false;
        self.theirs = Theirs::default();
        for id in self.store.reader().live_batches().map_err(text)? {
            self.host(id, None)?;
        }
        Ok(())
    }

    pub fn happened(&mut self, id: BatchId, event: Event) -> Checked {
        let at = self.at();
        let Some(actor) = self.actors.get_mut(&id) else { return Ok(()) };
        let orders = self.store.reader().orders(&actor.batch).map_err(text)?;
        let mut step = step::step(&actor.batch.state, orders, &event, &POLICY).map_err(text)?;
        if !step.changes_nothing(&actor.batch.state) {
            let revision = actor.batch.revision;
            if let Event::IntentMade(intent) = &event {
                // There may be no room any more; then it is another step.
                let stored = now(self.store.commit_intent(id, revision, intent.clone(), POLICY, at));
                (actor.batch, step) = stored.map_err(text)?;
            } else {
                actor.batch = now(self.store.commit_step(id, revision, step.clone(), at)).map_err(text)?;
            }
        }
        self.advance(id, step.effects);
        self.note(format_args!("{id} {event:?} -> {:?}", step.next));
        Ok(())
    }

    /// The step is stored: what there is to do now.
    pub fn advance(&mut self, id: BatchId, effects: Vec<Effect>) {
        let at = (self.at(), self.mono());
        self.steps += 1;
        self.touched.insert(id);
        let Some(actor) = self.actors.get_mut(&id) else { return };
        if matches!(actor.batch.state, BatchState::Dissolving { .. }) {
            // Whatever was under way is of no use any more.
            actor.effects.retain(|(_, effect)| matches!(effect, Effect::CloseChunk | Effect::WakeAt(_)));
        }
        if !matches!(actor.batch.state, BatchState::Uncertain { .. } | BatchState::Fencing { .. }) {
            actor.uncertain_since = None;
        }
        actor.effects.extend(effects.into_iter().map(|effect| due(at, effect)));
    }

    fn live(&self, wanted: impl Fn(&Batch) -> bool) -> Vec<BatchId> {
        self.actors.values().filter(|actor| wanted(&actor.batch)).map(|actor| actor.batch.id).collect()
    }

    /// An operator cancels any batch at any moment.
    fn cancel(&mut self) -> Checked {
        let live = self.live(|batch| {
            let over = matches!(batch.state, BatchState::Cleaning { .. } | BatchState::Closed { .. });
            batch.cancel.is_none() && !over
        });
        if live.is_empty() {
            return Ok(());
        }
        let id = live[self.dice.below(live.len())];
        let then = [Then::Requeue, Then::End][self.dice.below(2)];
        let cancel = Cancel { by: "ops".to_owned(), at: self.at(), then };
        self.happened(id, Event::CancelAsked(cancel))
    }

    /// An operator has parked batches tried again.
    fn unpark(&mut self) -> Checked {
        for id in self.live(|batch| matches!(batch.state, BatchState::Parked { .. })) {
            self.happened(id, Event::Unparked)?;
        }
        Ok(())
    }

    fn requeue(&mut self) -> Checked {
        let filter = RequestFilter { status: RequestStatus::ProcessingFailed, company: None, batch: None };
        let (failed, _) = self.store.reader().list_requests(&filter, None, 100).map_err(text)?;
        let ids: Vec<_> = failed.iter().map(|request| request.id).filter(|_| self.dice.chance(50)).collect();
        for id in &ids {
            // Whoever buys again knows what ran before.
            for run in self.runs.get_mut(id).into_iter().flatten() {
                run.explained = true;
            }
        }
        self.note(format_args!("requeue {}", ids.len()));
        now(self.store.requeue(ids, self.at())).map_err(text)?;
        Ok(())
    }

    /// The first time a backup is made, the second time it is restored: the provider is ahead then.
    fn backup(&mut self) -> Checked {
        if !self.restores {
            return Ok(());
        }
        let Some(backup) = self.backup.take() else {
            self.note(format_args!("backup"));
            let store = now(self.store.copy_of_memory()).map_err(text)?.unwrap();
            self.backup = Some(Backup { store, accepted: self.accepted.clone() });
            return Ok(());
        };
        self.note(format_args!("restore"));
        self.restores = false;
        self.store = backup.store;
        // What came after the backup is sent again by the client, as something new.
        self.accepted = backup.accepted;
        // A restore takes longer than lists lag and than calls are under way.
        self.remote.catch_up_lists();
        self.unlisted.clear();
        self.late.clear();
        self.spool.clear();
        let reader = self.store.reader();
        let accepted = &self.accepted;
        self.results.retain(|id, _| {
            let complete = |request: nightshift::domain::request::Request| {
                request.status == RequestStatus::ProcessingComplete
            };
            accepted.contains(id) && reader.request(*id).unwrap().is_some_and(complete)
        });
        self.crash()?;
        self.compared = self.broken == Broken::SendsBeforeComparing;
        Ok(())
    }

    fn advance_clock(&mut self, by: Duration) -> Checked {
        self.clock.advance(by);
        let at = self.at();
        now(self.store.release_due(at)).map_err(text)?;
        now(self.store.release_room(at)).map_err(text)?;
        self.tick()
    }

    fn ready(&self) -> Vec<BatchId> {
        let mono = self.mono();
        let is_due = |actor: &&Actor| actor.effects.iter().any(|(due, _)| *due <= mono);
        self.actors.values().filter(is_due).map(|actor| actor.batch.id).collect()
    }

    fn turn(&mut self) -> Checked {
        match self.dice.below(41) {
            0..=19 => {
                let ready = self.ready();
                if ready.is_empty() {
                    self.advance_clock(Duration::from_secs(30))?;
                } else {
                    let id = ready[self.dice.below(ready.len())];
                    self.act(id)?;
                }
            }
            20 => self.accept(),
            21 | 22 => self.open_batches()?,
            23..=26 => self.poll()?,
            27 => self.crash()?,
            28..=32 => {
                let seconds = [5, 30, 60, 60, 300, 1800][self.dice.below(6)];
                self.advance_clock(Duration::from_secs(seconds))?;
            }
            33 => self.late_effect(),
            34 => self.cancel()?,
            35 | 36 => self.reconcile()?,
            37 => self.requeue()?,
            38 => self.unpark()?,
            39 => self.jump(),
            _ => self.backup()?,
        }
        Ok(())
    }

    /// From its first to its last step, with the faults ending on the way.
    pub fn play(&mut self) -> Checked {
        let plan = (self.restores, self.drops_metadata, self.jumps, self.rates);
        self.note(format_args!("restores, drops metadata, jumps: {plan:?}"));
        // As the first start leaves it.
        now(self.store.note_reconciled(compared_at(self.at()))).map_err(text)?;
        self.accept();
        self.open_batches()?;
        for turn in 0..TURNS {
            self.turn()?;
            self.check_step()?;
            // The whole store with every turn of one run in twenty: what a step touched is looked at in each.
            if turn % 50 == 49 || self.thorough {
                self.check_all()?;
            }
        }
        self.finish()
    }

    /// The store goes back to where its requests were in one batch, while they are in another one at the provider.
    pub fn play_moved_on(&mut self) -> Checked {
        self.accept();
        self.work_until(|state| *state == BatchState::Sealed)?;
        self.backup()?;
        for id in self.live(|_| true) {
            let cancel = Cancel { by: "ops".to_owned(), at: self.at(), then: Then::Requeue };
            self.happened(id, Event::CancelAsked(cancel))?;
        }
        self.work_until(|state| matches!(state, BatchState::Observing { .. }))?;
        self.backup()?;
        self.finish()
    }

    /// The store goes back to before a batch that was turned away and sent again: the provider has both.
    pub fn play_sent_again(&mut self) -> Checked {
        self.accept();
        self.backup()?;
        self.work_until(|state| matches!(state, BatchState::Observing { wait, .. } if wait.refusals > 0))?;
        self.backup()?;
        self.finish()
    }

    /// Works without choice until a batch has come to such a state.
    fn work_until(&mut self, there: impl Fn(&BatchState) -> bool) -> Checked {
        for _ in 0..200 {
            if self.actors.values().any(|actor| there(&actor.batch.state)) {
                return Ok(());
            }
            if let Some(id) = self.ready().first() {
                self.act(*id)?;
            } else {
                self.open_batches()?;
                self.poll()?;
                self.advance_clock(Duration::from_secs(60))?;
            }
        }
        Err("no batch came to where it should".to_owned())
    }

    /// No more faults: everything must come to its end.
    fn finish(&mut self) -> Checked {
        self.note(format_args!("the faults end"));
        self.rates = Rates::default();
        self.remote.end_faults();
        self.gone.retain(|_, until| *until == FOR_EVER);
        self.unlisted.clear();
        self.trusted = true;
        // Clients go on.
        self.accept();
        for round in 0..ROUNDS {
            self.reconcile()?;
            self.open_batches()?;
            for _ in 0..40 {
                let ready = self.ready();
                if ready.is_empty() {
                    break;
                }
                for id in ready {
                    self.act(id)?;
                    self.check_step()?;
                }
            }
            self.poll()?;
            self.check_step()?;
            if round % 4 == 3 {
                self.unpark()?;
            }
            let [pending, in_progress, _, _] = self.store.reader().summary(None).map_err(text)?;
            if pending + in_progress == 0 && self.actors.is_empty() {
                self.check_all()?;
                return self.remember_store();
            }
            self.advance_clock(Duration::from_secs(if round % 3 == 0 { 3600 } else { 90 }))?;
        }
        let states: Vec<_> = self.actors.values().map(|actor| format!("{:?}", actor.batch.state)).collect();
        let sums = self.store.reader().summary(None).map_err(text)?;
        Err(format!("invariant 9: the work does not end: {sums:?}, batches {states:?}"))
    }

    /// Everything in the store goes into the hash.
    fn remember_store(&mut self) -> Checked {
        let reader = self.store.reader();
        for id in self.accepted.clone() {
            let request = reader.request(id).map_err(text)?;
            self.note(format_args!("{request:?}"));
        }
        let (batches, _) = reader.list_batches(None, None, None, 1000).map_err(text)?;
        let rooms = reader.rooms().map_err(text)?;
        self.note(format_args!("{batches:?} {rooms:?}"));
        Ok(())
    }
}

/// Until then what is gone for ever is gone.
pub const FOR_EVER: Timestamp = Timestamp::from_secs(9_000_000_000);

/// When an effect may be run, on the monotonic clock, where the wall clock and that one stand at `now`.
fn due(now: (Timestamp, Timestamp), effect: Effect) -> (Timestamp, Effect) {
    match effect {
        Effect::WakeAt(until) => (now.1.plus(step::wait_for(until, now.0)), effect),
        effect => (now.1, effect),
    }
}
