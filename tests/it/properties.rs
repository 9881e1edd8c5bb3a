//! The machine and the store together, against a provider that drops, delays and duplicates.
//!
//! The real `step`, the real store functions (over memory) and nothing else; the driver below stands for the
//! actors, and may lose everything it holds between any two moments, as a kill does. Every decision comes from a
//! list that proptest shrinks; where it is at its end, all goes well, so every run also shows that the work ends.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use futures_util::FutureExt;
use nightshift::clock::{Clock, ManualClock};
use nightshift::domain::batch::{
    Batch, BatchState, Cancel, Credentials, InputFile, Intent, Origin, Problem, ProviderIdentity, ResultKind,
    Running, Terminal, Then,
};
use nightshift::domain::cut::Limits;
use nightshift::domain::effect::Effect;
use nightshift::domain::event::{Event, Observation, ObservedStatus, Trouble};
use nightshift::domain::id::{BatchId, FileId, Nonce, ProviderBatchId, RequestId, Timestamp};
use nightshift::domain::request::{
    Answered, Cost, Endpoint, Failure, FailureClass, Group, Outcome, RequestStatus, Source,
};
use nightshift::domain::retry::{self, BatchFailure};
use nightshift::domain::room::Admission;
use nightshift::domain::step::{self, Policy};
use nightshift::store::{Accepted, AppliedLine, NewRequest, RequestFilter, Store};
use proptest::prelude::*;

const POLICY: Policy =
    Policy { backoff: Duration::from_secs(60), capacity_backoff: Duration::from_secs(60), sweeps_min: 3 };
const RETRY: retry::Policy = retry::Policy {
    max_attempts: 3,
    backoff: Duration::from_secs(60),
    capacity_backoff: Duration::from_secs(60),
};
const LIMITS: Limits =
    Limits { requests_max: 6, bytes_max: 10_000, tokens_max: None, age_max: Duration::ZERO };

/// A rule that the driver breaks on purpose, to see that the checks notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// An uncertain create call is simply sent again.
    ResendsWithoutSearch,
    /// After a restart a stored intent counts as not sent.
    ForgetsIntents,
    /// One fruitless search is enough, and the old file stays.
    SkipsTheFence,
    /// Lines are applied to whatever request is at hand.
    TakesLinesOfOthers,
}

/// The list of decisions; at its end, the first choice everywhere.
struct Dice(VecDeque<u8>);

impl Dice {
    fn pick(&mut self, choices: usize) -> usize {
        self.0.pop_front().map_or(0, |roll| usize::from(roll) % choices)
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}

struct RemoteFile {
    name: String,
    members: Vec<RequestId>,
    deleted: bool,
}

struct RemoteBatch {
    nonce: Nonce,
    input: FileId,
    status: ObservedStatus,
    problems: Vec<Problem>,
    files: BTreeMap<u8, Vec<(RequestId, Outcome)>>,
    hidden_for: usize,
}

/// What the provider really did.
#[derive(Default)]
struct Remote {
    files: Vec<RemoteFile>,
    batches: Vec<RemoteBatch>,
    /// Create calls whose effect comes later.
    late: Vec<Intent>,
    /// Every run of a request, by the provider's batch.
    ledger: BTreeMap<RequestId, Vec<usize>>,
}

impl Remote {
    fn file(&self, id: &FileId) -> usize {
        id.as_str().parse().unwrap()
    }

    fn create(&mut self, intent: &Intent, hidden_for: usize) -> usize {
        let gone = self.files[self.file(&intent.input.id)].deleted;
        let (status, problems) = if gone {
            let problem = Problem {
                code: Some("invalid_request".to_owned()),
                param: Some("file_id".to_owned()),
                ..Problem::default()
            };
            (ObservedStatus::Ended(Terminal::Failed), vec![problem])
        } else {
            (ObservedStatus::Running(Running::Validating), Vec::new())
        };
        self.batches.push(RemoteBatch {
            nonce: intent.nonce,
            input: intent.input.id.clone(),
            status,
            problems,
            files: BTreeMap::new(),
            hidden_for,
        });
        self.batches.len() - 1
    }

    fn observe(&self, index: usize) -> Observation {
        let batch = &self.batches[index];
        let file = |kind: ResultKind| {
            batch.files.contains_key(&(kind as u8)).then(|| FileId::new(format!("{index}-{}", kind as u8)))
        };
        Observation {
            id: ProviderBatchId::new(format!("batch_{index}")),
            status: Some(batch.status),
            output: file(ResultKind::Output),
            error: file(ResultKind::Error),
            completed_lines: None,
            failed_lines: None,
            problems: batch.problems.clone(),
            ended_at: None,
        }
    }

    /// Moves a running batch on, and runs its lines when it ends.
    fn advance(&mut self, index: usize, dice: &mut Dice) {
        let ObservedStatus::Running(running) = self.batches[index].status else { return };
        let next = match dice.pick(5) {
            0 => ObservedStatus::Ended(Terminal::Completed),
            1 if running == Running::Validating => ObservedStatus::Running(Running::InProgress),
            2 => ObservedStatus::Ended(Terminal::Expired),
            3 => ObservedStatus::Ended(Terminal::Cancelled),
            4 if running == Running::Validating => return self.turn_away(index, dice),
            _ => ObservedStatus::Ended(Terminal::Completed),
        };
        self.batches[index].status = next;
        let ObservedStatus::Ended(how) = next else { return };
        let members = self.files[self.file(&self.batches[index].input)].members.clone();
        for request in members {
            self.run(index, request, how, dice);
        }
    }

    /// Ends a running batch as cancelled: some lines have run, the others have not.
    fn cancel(&mut self, index: usize, dice: &mut Dice) {
        if !matches!(self.batches[index].status, ObservedStatus::Running(_)) {
            return;
        }
        self.batches[index].status = ObservedStatus::Ended(Terminal::Cancelled);
        let members = self.files[self.file(&self.batches[index].input)].members.clone();
        for request in members {
            if dice.pick(2) == 0 {
                let failure = Failure::new(FailureClass::Transient, "batch_cancelled", "");
                let outcome = Outcome { answered: Answered::default(), result: Err(failure) };
                let lines = self.batches[index].files.entry(ResultKind::Error as u8).or_default();
                lines.push((request, outcome));
            } else {
                self.run(index, request, Terminal::Cancelled, dice);
            }
        }
    }

    fn turn_away(&mut self, index: usize, dice: &mut Dice) {
        let problem = |code: &str, line| Problem {
            code: Some(code.to_owned()),
            message: Some("no".to_owned()),
            param: None,
            line,
        };
        let batch = &mut self.batches[index];
        batch.status = ObservedStatus::Ended(Terminal::Failed);
        batch.problems = match dice.pick(4) {
            0 => vec![problem("token_limit_exceeded", None)],
            1 => vec![problem("missing_required_parameter", Some(1))],
            2 => vec![problem("something_new", None)],
            _ => vec![problem("insufficient_quota", None)],
        };
    }

    fn run(&mut self, index: usize, request: RequestId, how: Terminal, dice: &mut Dice) {
        let good = |words: &str| Outcome {
            answered: Answered::default(),
            result: Ok(format!("{{\"by\":\"{index}{words}\"}}")),
        };
        let bad = |class, code: &str| Outcome {
            answered: Answered::default(),
            result: Err(Failure::new(class, code, "")),
        };
        let choice = dice.pick(8);
        let ran = !(choice == 1 && how != Terminal::Completed);
        if ran {
            self.ledger.entry(request).or_default().push(index);
        }
        let (output, error) = (ResultKind::Output as u8, ResultKind::Error as u8);
        let lines: Vec<(u8, Outcome)> = match choice {
            // Not run: it stands in the error file as expired, or nowhere.
            1 if !ran => vec![(error, bad(FailureClass::Transient, "batch_expired"))],
            2 => vec![(error, bad(FailureClass::Transient, "server_error"))],
            3 => vec![(error, bad(FailureClass::Permanent, "invalid_value"))],
            4 => Vec::new(),
            5 => vec![(output, good("")), (output, good(" again"))],
            6 => vec![(output, bad(FailureClass::Transient, "status_0")), (error, good(" late"))],
            _ => vec![(output, good(""))],
        };
        for (kind, outcome) in lines {
            self.batches[index].files.entry(kind).or_default().push((request, outcome));
        }
    }
}

struct Actor {
    batch: Batch,
    effects: VecDeque<Effect>,
    home: HashMap<u8, Vec<(RequestId, Outcome)>>,
}

struct World {
    store: Store,
    clock: ManualClock,
    ids: u128,
    remote: Remote,
    actors: BTreeMap<BatchId, Actor>,
    accepted: BTreeSet<RequestId>,
    results: BTreeMap<RequestId, Vec<u8>>,
    broken: Broken,
    checks: u64,
}

/// The store over memory answers at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the store over memory answers at once")
}

impl World {
    fn new(broken: Broken) -> Self {
        Self {
            store: now(Store::in_memory(uuid::Uuid::from_u128(1))).unwrap(),
            clock: ManualClock::new(Timestamp::from_secs(1_795_000_000)),
            ids: 1,
            remote: Remote::default(),
            actors: BTreeMap::new(),
            accepted: BTreeSet::new(),
            results: BTreeMap::new(),
            broken,
            checks: 0,
        }
    }

    fn id(&mut self) -> [u8; 16] {
        self.ids += 1;
        self.ids.to_be_bytes()
    }

    fn group(number: usize) -> Group {
        let company = ["acme", "beta"][number % 2].parse().unwrap();
        Group { company, endpoint: Endpoint::ChatCompletions, model: "gpt-4o-mini".to_owned() }
    }

    fn accept(&mut self, dice: &mut Dice) {
        let group = Self::group(dice.pick(2));
        let count = 1 + dice.pick(9);
        let new = (0..count).map(|_| NewRequest {
            id: RequestId::from_bytes(self.id()),
            group: group.clone(),
            source: Source::Generic { client_id: None },
            key: None,
            content_hash: [0; 32],
            body: Some("{}".to_owned()),
            line_bytes: 100,
            line_crc: 0,
            estimated_tokens: 1,
            output_max: None,
            inputs: 0,
            metadata: None,
            priority: 0,
            not_before: None,
        });
        let new = new.collect();
        for accepted in now(self.store.accept_requests(new, self.clock.now())).unwrap() {
            let Accepted::New(id) = accepted else { panic!("{accepted:?}") };
            self.accepted.insert(id);
        }
    }

    fn open_batches(&mut self) {
        for waits in self.store.reader().waiting().unwrap() {
            if waits.filling.is_some() || waits.waiting.requests == 0 {
                continue;
            }
            let mut batch = Batch::open(
                BatchId::from_bytes(self.id()),
                waits.group,
                ProviderIdentity::default(),
                self.clock.now(),
            );
            batch.tokens_max = self.store.reader().room(&batch).unwrap().for_a_cut(self.clock.now(), 1, true);
            if batch.tokens_max == Some(0) {
                continue;
            }
            now(self.store.open_batch(batch.clone())).unwrap();
            let batch = self.store.reader().batch(batch.id).unwrap().unwrap();
            let actor = Actor { batch, effects: VecDeque::from([Effect::Fill]), home: HashMap::new() };
            self.actors.insert(actor.batch.id, actor);
        }
    }

    /// A kill: everything but the store and the provider is gone.
    fn crash(&mut self) {
        self.actors.clear();
        for id in self.store.reader().live_batches().unwrap() {
            let batch = self.store.reader().batch(id).unwrap().unwrap();
            let mut effects: VecDeque<_> = step::resume(&batch.state, batch.orders()).into();
            if let (Broken::ForgetsIntents, BatchState::Creating { intent, .. }) = (self.broken, &batch.state)
            {
                effects = VecDeque::from([Effect::CreateBatch(intent.clone())]);
            }
            self.actors.insert(id, Actor { batch, effects, home: HashMap::new() });
        }
    }

    fn happened(&mut self, id: BatchId, event: Event) -> Result<(), String> {
        let Some(actor) = self.actors.get_mut(&id) else { return Ok(()) };
        let step = step::step(&actor.batch.state, actor.batch.orders(), &event, &POLICY)
            .map_err(|err| err.to_string())?;
        if !step.changes_nothing(&actor.batch.state) {
            let (revision, at) = (actor.batch.revision, self.clock.now());
            let stored = now(self.store.commit_step(id, revision, step.clone(), at));
            actor.batch = stored.map_err(|err| err.to_string())?;
        }
        actor.effects.extend(step.effects);
        Ok(())
    }

    /// Runs the next effect of the batch, or the event that it leads to.
    fn act(&mut self, id: BatchId, dice: &mut Dice) -> Result<(), String> {
        let Some(effect) = self.actors.get_mut(&id).and_then(|actor| actor.effects.pop_front()) else {
            return Ok(());
        };
        let at = self.clock.now();
        let batch = self.actors[&id].batch.clone();
        match effect {
            // The real actor fills without a pause; here an operator may come in between.
            Effect::Fill if batch.state != BatchState::Filling => Ok(()),
            Effect::Fill => {
                let cut =
                    now(self.store.cut_chunk(id, batch.revision, LIMITS)).map_err(|err| err.to_string())?;
                let actor = self.actors.get_mut(&id).unwrap();
                actor.batch = cut.batch;
                actor.effects.push_front(if cut.done { Effect::EndFilling } else { Effect::Fill });
                Ok(())
            }
            Effect::EndFilling => self.happened(id, Event::FillEnded { members: batch.counts.members, at }),
            Effect::AwaitRelease => self.happened(id, Event::Released),
            Effect::WakeAt(until) => {
                if until > at {
                    self.clock.advance(until.since(at));
                }
                self.happened(id, Event::WaitEnded)
            }
            Effect::UploadInput { upload } => self.upload(id, upload, false, dice),
            Effect::FindOrUploadInput { upload } => self.upload(id, upload, true, dice),
            Effect::MakeIntent => {
                let BatchState::Ready { input, .. } = batch.state.clone() else { return Ok(()) };
                let room = self.store.reader().room(&batch).unwrap();
                match room.admits(id, batch.held_tokens, batch.counts.members == 1, at) {
                    Admission::Now => {}
                    Admission::NotBefore(until) => return self.happened(id, Event::RoomShut { until }),
                    Admission::TooBig => {
                        let failure = Failure::new(FailureClass::Capacity, "too_large_for_room", "");
                        return self.happened(id, Event::GivenBack(failure));
                    }
                }
                let nonce = Nonce::from_bytes(self.id());
                self.happened(
                    id,
                    Event::IntentMade(Intent { nonce, input, at, made_with: Credentials::default() }),
                )
            }
            Effect::CreateBatch(intent) => self.create(id, &intent, dice),
            Effect::Sweep(intent) => self.sweep(id, &intent, dice),
            Effect::Fence(intent) => {
                let index = self.remote.file(&intent.input.id);
                self.remote.files[index].deleted = true;
                self.happened(id, Event::Fenced)
            }
            Effect::Unpark => self.happened(id, Event::Unparked),
            Effect::Observe | Effect::PauseAccount { .. } => Ok(()),
            Effect::CancelRemote => self.cancel_remote(id, dice),
            Effect::Download { kind, file } => self.download(id, kind, &file, dice),
            Effect::ApplyLines { kind, offset } => self.apply(id, kind, offset, dice),
            Effect::CloseChunk => self.close(id),
            Effect::Clean => self.happened(id, Event::Cleaned { at }),
            Effect::Retire => {
                self.actors.remove(&id);
                Ok(())
            }
        }
    }

    /// The call may be lost; then it is made again.
    fn cancel_remote(&mut self, id: BatchId, dice: &mut Dice) -> Result<(), String> {
        if dice.pick(3) == 2 {
            if let Some(actor) = self.actors.get_mut(&id) {
                actor.effects.push_back(Effect::CancelRemote);
            }
            return Ok(());
        }
        let Some(provider_batch) = self.actors[&id].batch.provider_batch.clone() else { return Ok(()) };
        let index = provider_batch.as_str().trim_start_matches("batch_").parse().unwrap();
        self.remote.cancel(index, dice);
        let seen = self.remote.observe(index);
        self.happened(id, Event::Observed { seen, at: self.clock.now() })
    }

    /// An operator cancels any batch at any moment.
    fn cancel(&mut self, dice: &mut Dice) -> Result<(), String> {
        let live: Vec<_> = self
            .actors
            .values()
            .filter(|actor| {
                let over =
                    matches!(actor.batch.state, BatchState::Cleaning { .. } | BatchState::Closed { .. });
                actor.batch.cancel.is_none() && !over
            })
            .map(|actor| actor.batch.id)
            .collect();
        if live.is_empty() {
            return Ok(());
        }
        let id = live[dice.pick(live.len())];
        let then = [Then::Requeue, Then::End][dice.pick(2)];
        let cancel = Cancel { by: "ops".to_owned(), at: self.clock.now(), then };
        self.happened(id, Event::CancelAsked(cancel))
    }

    /// Looks for batches that came of create calls that were given up.
    fn find_shadows(&mut self) -> Result<(), String> {
        for index in 0..self.remote.batches.len() {
            let provider_batch = ProviderBatchId::new(format!("batch_{index}"));
            let (nonce, hidden) =
                (self.remote.batches[index].nonce, self.remote.batches[index].hidden_for > 0);
            let reader = self.store.reader();
            if hidden || reader.batch_of_provider(&provider_batch).unwrap().is_some() {
                continue;
            }
            let since = Timestamp::from_secs(0);
            let noted = reader.intents_since(since, 10_000).unwrap();
            let Some(noted) = noted.into_iter().find(|noted| noted.intent.nonce == nonce) else {
                return Err("a create call went out that was not noted".to_owned());
            };
            if !noted.superseded {
                continue;
            }
            let of = reader.batch(noted.batch).unwrap().unwrap();
            let mut batch = Batch::open(
                BatchId::from_bytes(self.id()),
                of.group,
                ProviderIdentity::default(),
                self.clock.now(),
            );
            batch.origin = Origin::Shadow { of: of.id };
            batch.provider_batch = Some(provider_batch);
            batch.cancel =
                Some(Cancel { by: "shadow".to_owned(), at: self.clock.now(), then: Then::Requeue });
            batch.state = BatchState::Observing {
                intent: noted.intent,
                running: Running::Validating,
                wait: Default::default(),
                missing: None,
            };
            now(self.store.open_batch(batch.clone())).map_err(|err| err.to_string())?;
            let batch = reader.batch(batch.id).unwrap().unwrap();
            let effects = step::resume(&batch.state, batch.orders()).into();
            self.actors.insert(batch.id, Actor { batch, effects, home: HashMap::new() });
        }
        Ok(())
    }

    fn upload(&mut self, id: BatchId, upload: u32, look: bool, dice: &mut Dice) -> Result<(), String> {
        let at = self.clock.now();
        let name = format!("ns-{id}-{upload}");
        let known = self.remote.files.iter().position(|file| file.name == name && !file.deleted);
        let input =
            |index: usize| InputFile { id: FileId::new(index.to_string()), upload, bytes: 0, created_at: at };
        if let (true, Some(index)) = (look, known) {
            return self.happened(id, Event::Uploaded(input(index)));
        }
        let fault = dice.pick(5);
        let mut arrived = None;
        if fault != 2 && fault != 3 {
            let members = self.store.reader().members(id, None, 1000).unwrap();
            self.remote.files.push(RemoteFile { name, members, deleted: false });
            arrived = Some(self.remote.files.len() - 1);
        }
        match (fault, arrived) {
            (0, Some(index)) => self.happened(id, Event::Uploaded(input(index))),
            (4, _) => {
                self.crash();
                Ok(())
            }
            (2, _) => {
                let trouble = Trouble::Later { retry_after_ms: None, why: "down".to_owned() };
                self.happened(id, Event::UploadFailed { trouble, at })
            }
            _ => {
                let trouble = Trouble::Uncertain { why: "reset".to_owned() };
                self.happened(id, Event::UploadFailed { trouble, at })
            }
        }
    }

    fn create(&mut self, id: BatchId, intent: &Intent, dice: &mut Dice) -> Result<(), String> {
        let at = self.clock.now();
        let failed = |trouble| Event::CreateFailed { trouble, input_gone: false, at };
        let mut uncertain = Trouble::Uncertain { why: "reset".to_owned() };
        if self.broken == Broken::ResendsWithoutSearch {
            uncertain = Trouble::Later { retry_after_ms: None, why: "reset".to_owned() };
        }
        match dice.pick(6) {
            0 => {
                let index = self.remote.create(intent, 0);
                let seen = self.remote.observe(index);
                self.happened(id, Event::Created(seen))
            }
            // The effect is there, the answer is not; and the list may lag behind.
            1 => {
                let hidden_for = dice.pick(3);
                self.remote.create(intent, hidden_for);
                self.happened(id, failed(uncertain))
            }
            2 => self.happened(id, failed(uncertain)),
            3 => self.happened(id, failed(Trouble::Later { retry_after_ms: Some(5), why: "429".to_owned() })),
            // A kill between the effect and everything that would tell of it.
            4 => {
                self.remote.create(intent, 0);
                self.crash();
                Ok(())
            }
            _ => {
                self.remote.late.push(intent.clone());
                self.happened(id, failed(uncertain))
            }
        }
    }

    fn sweep(&mut self, id: BatchId, intent: &Intent, dice: &mut Dice) -> Result<(), String> {
        if dice.pick(4) == 3 {
            return self.happened(id, Event::Swept { complete: false, grace_over: false, found: None });
        }
        let grace_over = dice.pick(2) == 0;
        let mut found = None;
        for index in 0..self.remote.batches.len() {
            let batch = &mut self.remote.batches[index];
            if batch.nonce == intent.nonce {
                if batch.hidden_for == 0 {
                    found = Some(index);
                } else {
                    batch.hidden_for -= 1;
                }
            }
        }
        let found = found.map(|index| self.remote.observe(index));
        if self.broken == Broken::SkipsTheFence && found.is_none() {
            let trouble = Trouble::Later { retry_after_ms: None, why: "not found".to_owned() };
            let at = self.clock.now();
            let actor = self.actors.get_mut(&id).unwrap();
            if let BatchState::Uncertain { intent, .. } = &actor.batch.state {
                // As if the call had been refused.
                actor.batch.state = BatchState::Creating { intent: intent.clone(), wait: Default::default() };
                return self.happened(id, Event::CreateFailed { trouble, input_gone: false, at });
            }
        }
        self.happened(id, Event::Swept { complete: true, grace_over, found })
    }

    fn download(
        &mut self,
        id: BatchId,
        kind: ResultKind,
        file: &FileId,
        dice: &mut Dice,
    ) -> Result<(), String> {
        if dice.pick(4) == 3 {
            let trouble = Trouble::Later { retry_after_ms: None, why: "502".to_owned() };
            return self.happened(id, Event::DownloadFailed { kind, trouble, at: self.clock.now() });
        }
        let (index, _) = file.as_str().split_once('-').unwrap();
        let lines = self.remote.batches[index.parse::<usize>().unwrap()].files[&(kind as u8)].clone();
        self.actors.get_mut(&id).unwrap().home.insert(kind as u8, lines);
        self.happened(id, Event::Downloaded { kind, torn: false })
    }

    fn apply(&mut self, id: BatchId, kind: ResultKind, offset: u64, dice: &mut Dice) -> Result<(), String> {
        let actor = self.actors.get_mut(&id).unwrap();
        let Some(lines) = actor.home.get(&(kind as u8)) else {
            return self.happened(id, Event::CopyLost { kind });
        };
        let from = usize::try_from(offset).unwrap();
        let to = (from + 1 + dice.pick(3)).min(lines.len());
        let end = to == lines.len();
        let foreign = self.accepted.iter().next_back().copied();
        let applied = lines[from..to].iter().map(|(request, outcome)| {
            let request = match (self.broken, foreign) {
                (Broken::TakesLinesOfOthers, Some(foreign)) => foreign,
                _ => *request,
            };
            let cost = outcome.result.is_ok().then(|| Cost {
                micros: 3,
                currency: "USD".to_owned(),
                price_version: "1".to_owned(),
            });
            AppliedLine::Line { repair: None, request, outcome: outcome.clone(), analysis: None, cost }
        });
        let applied = applied.collect();
        let event = Event::LinesRead { kind, from: offset, to: to as u64, end };
        let step = step::step(&actor.batch.state, actor.batch.orders(), &event, &POLICY)
            .map_err(|err| err.to_string())?;
        let (revision, at) = (actor.batch.revision, self.clock.now());
        let stored = now(self.store.apply_lines(id, revision, step.clone(), applied, at));
        actor.batch = stored.map_err(|err| err.to_string())?;
        actor.effects.extend(step.effects);
        Ok(())
    }

    fn close(&mut self, id: BatchId) -> Result<(), String> {
        let batch = self.actors[&id].batch.clone();
        let mut named = HashMap::new();
        if let BatchState::Closing { ended, .. } = &batch.state
            && let BatchFailure::Lines(faults) = ended.refusal()
        {
            let members = self.store.reader().members(id, None, 1000).unwrap();
            for fault in faults {
                let line = usize::try_from(fault.line - 1).unwrap();
                named.insert(members[line], fault.failure);
            }
        }
        let at = self.clock.now();
        let closed = now(self.store.close_chunk(id, batch.revision, named, RETRY, POLICY, at));
        let closed = closed.map_err(|err| err.to_string())?;
        let actor = self.actors.get_mut(&id).unwrap();
        actor.batch = closed.batch;
        actor.effects.extend(closed.step.effects);
        Ok(())
    }

    /// The provider's word on every batch that is worth asking about.
    fn poll(&mut self) -> Result<(), String> {
        let asked: Vec<_> = self.actors.values().filter(|actor| actor.batch.state.is_observed()).collect();
        let asked: Vec<_> = asked
            .iter()
            .filter_map(|actor| Some((actor.batch.id, actor.batch.provider_batch.clone()?)))
            .collect();
        for (id, provider_batch) in asked {
            let index = provider_batch.as_str().trim_start_matches("batch_").parse().unwrap();
            let seen = self.remote.observe(index);
            self.happened(id, Event::Observed { seen, at: self.clock.now() })?;
        }
        Ok(())
    }

    fn requeue(&mut self) {
        let filter = RequestFilter { status: RequestStatus::ProcessingFailed, company: None, batch: None };
        let (failed, _) = self.store.reader().list_requests(&filter, None, 100).unwrap();
        let ids = failed.iter().map(|request| request.id).collect();
        now(self.store.requeue(ids, self.clock.now())).unwrap();
    }

    /// What the provider did and what is told of requests, each time; the whole store now and then.
    fn check(&mut self) -> Result<(), String> {
        self.checks += 1;
        if self.checks.is_multiple_of(10) { self.check_all() } else { self.check_requests() }
    }

    fn check_all(&mut self) -> Result<(), String> {
        let reader = self.store.reader();
        let report = reader.verify().map_err(|err| err.to_string())?;
        if let Some(violation) = report.violations.first() {
            return Err(format!("invariant {}: {}", violation.invariant, violation.what));
        }
        if report.requests != self.accepted.len() as u64 {
            return Err(format!("{} requests of {} are there", report.requests, self.accepted.len()));
        }
        self.check_requests()
    }

    fn check_requests(&mut self) -> Result<(), String> {
        let reader = self.store.reader();
        for id in &self.accepted {
            let request = reader.request(*id).unwrap().ok_or("an accepted request is gone")?;
            let failures = request.history.iter().filter(|attempt| attempt.failure.is_some()).count();
            let runs = self.remote.ledger.get(id).map_or(0, Vec::len);
            // A run is paid for. A further one needs a failure that the provider told us of.
            if runs > failures + 1 {
                return Err(format!("invariant 3: request {id} ran {runs} times after {failures} failures"));
            }
            let by_file: usize =
                self.remote.batches.iter().map(|batch| usize::from(self.runs_now(batch, *id))).sum();
            if by_file > 1 {
                return Err(format!("invariant 3: request {id} is in {by_file} running batches"));
            }
            if request.status == RequestStatus::ProcessingComplete {
                let result = reader.result(*id).unwrap().ok_or("a complete request has no result")?;
                let first = self.results.entry(*id).or_insert_with(|| result.clone());
                if *first != result {
                    return Err(format!("invariant 5: the result of {id} was overwritten"));
                }
                if !self.remote.ledger.contains_key(id) {
                    return Err(format!("invariant 5: request {id} is complete and never ran"));
                }
            } else if self.results.contains_key(id) {
                return Err(format!("invariant 5: the result of {id} was taken back"));
            }
        }
        Ok(())
    }

    fn runs_now(&self, batch: &RemoteBatch, id: RequestId) -> bool {
        matches!(batch.status, ObservedStatus::Running(_))
            && self.remote.files[self.remote.file(&batch.input)].members.contains(&id)
    }

    fn turn(&mut self, dice: &mut Dice) -> Result<(), String> {
        match dice.pick(18) {
            0..=6 => {
                let ready: Vec<_> = self
                    .actors
                    .iter()
                    .filter(|(_, actor)| !actor.effects.is_empty())
                    .map(|(id, _)| *id)
                    .collect();
                if !ready.is_empty() {
                    let id = ready[dice.pick(ready.len())];
                    self.act(id, dice)?;
                }
            }
            7 => self.accept(dice),
            8 => self.open_batches(),
            9 => {
                if !self.remote.batches.is_empty() {
                    let index = dice.pick(self.remote.batches.len());
                    self.remote.advance(index, dice);
                }
            }
            10 | 11 => self.poll()?,
            12 => self.crash(),
            13 => {
                self.clock.advance(Duration::from_secs(30));
                now(self.store.release_due(self.clock.now())).unwrap();
                now(self.store.release_room(self.clock.now())).unwrap();
            }
            14 => {
                if let Some(intent) = self.remote.late.pop() {
                    self.remote.create(&intent, 0);
                }
            }
            15 => self.cancel(dice)?,
            16 => self.find_shadows()?,
            _ => self.requeue(),
        }
        self.check()
    }

    /// No more faults: everything must come to its end.
    fn finish(&mut self, dice: &mut Dice) -> Result<(), String> {
        for _ in 0..400 {
            let ids: Vec<_> = self.actors.keys().copied().collect();
            for id in ids {
                // Not to its end: it may wait for another one's turn.
                for turn in 0..60 {
                    if self.actors.get(&id).is_none_or(|actor| actor.effects.is_empty()) {
                        break;
                    }
                    self.act(id, dice)?;
                    if turn % 5 == 0 {
                        self.check()?;
                    }
                }
            }
            for index in 0..self.remote.batches.len() {
                self.remote.advance(index, dice);
            }
            self.poll()?;
            self.find_shadows()?;
            self.check()?;
            let [pending, in_progress, _, _] = self.store.reader().summary(None).unwrap();
            if pending + in_progress == 0 && self.actors.is_empty() {
                return self.check_all();
            }
            self.clock.advance(Duration::from_secs(3600));
            now(self.store.release_due(self.clock.now())).unwrap();
            now(self.store.release_room(self.clock.now())).unwrap();
            self.open_batches();
        }
        let states: Vec<_> = self.actors.values().map(|actor| actor.batch.state.label()).collect();
        Err(format!(
            "the work does not end: {:?}, batches {states:?}",
            self.store.reader().summary(None).unwrap()
        ))
    }
}

fn play(decisions: Vec<u8>, broken: Broken) -> Result<(), String> {
    let mut world = World::new(broken);
    let mut dice = Dice(decisions.into());
    world.accept(&mut dice);
    world.open_batches();
    while !dice.is_over() {
        world.turn(&mut dice)?;
    }
    world.finish(&mut dice)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_request_is_lost_or_paid_twice_whatever_the_provider_does(
        decisions in prop::collection::vec(any::<u8>(), 0..500)
    ) {
        if let Err(what) = play(decisions, Broken::Nothing) {
            prop_assert!(false, "{}", what);
        }
    }
}

/// Plays until a check notices; says what it noticed.
fn noticed(broken: Broken) -> Option<String> {
    let mut seed = 1u64;
    (0..2000).find_map(|_| {
        let roll = |_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u8::try_from(seed >> 56).unwrap()
        };
        play((0..400).map(roll).collect(), broken).err()
    })
}

#[test]
fn a_call_that_is_sent_again_without_a_search_is_noticed() {
    let what = noticed(Broken::ResendsWithoutSearch).expect("nothing was noticed");
    assert!(what.contains("invariant 3"), "{what}");
}

#[test]
fn an_intent_that_is_forgotten_at_a_restart_is_noticed() {
    let what = noticed(Broken::ForgetsIntents).expect("nothing was noticed");
    assert!(what.contains("invariant 3"), "{what}");
}

#[test]
fn a_search_that_gives_up_early_and_leaves_the_old_file_is_noticed() {
    let what = noticed(Broken::SkipsTheFence).expect("nothing was noticed");
    assert!(what.contains("invariant 3"), "{what}");
}

#[test]
fn a_line_that_is_applied_to_another_request_is_noticed() {
    let what = noticed(Broken::TakesLinesOfOthers).expect("nothing was noticed");
    assert!(what.contains("invariant"), "{what}");
}
