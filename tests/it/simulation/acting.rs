//! Runs one effect against the provider, as `actors::effects` does, with what can go wrong on the way.

use std::time::Duration;

use nightshift::actors::{is_of, keep, mark, named_in, observation};
use nightshift::domain::batch::{Batch, BatchState, Credentials, InputFile, Intent, ResultKind};
use nightshift::domain::effect::Effect;
use nightshift::domain::event::{Event, Observation, Trouble};
use nightshift::domain::id::{BatchId, FileId, Nonce, RequestId, Timestamp};
use nightshift::domain::request::{Cost, Failure, FailureClass};
use nightshift::domain::room::Admission;
use nightshift::domain::step;
use nightshift::provider::jsonl::{self, Decoded};
use nightshift::provider::wire::BatchObject;
use nightshift::store::AppliedLine;
use serde_json::{Map, Value, json};

use super::checks::custom_ids;
use super::sim::{Broken, Checked, FOR_EVER, GRACE, LIMITS, Late, POLICY, RETRY, Sim, now, text};

fn later(why: &str) -> Trouble {
    Trouble::Later { retry_after_ms: None, why: why.to_owned() }
}

pub fn read(object: &Value) -> BatchObject {
    BatchObject::from_json(object.to_string().as_bytes()).unwrap()
}

impl Sim {
    /// Puts an effect off.
    fn again(&mut self, id: BatchId, seconds: u64, effect: Effect) -> Checked {
        let due = self.mono().plus(Duration::from_secs(seconds));
        if let Some(actor) = self.actors.get_mut(&id) {
            actor.effects.push_back((due, effect));
        }
        Ok(())
    }

    /// What became of a call; or a crash before anybody heard of it.
    fn told(&mut self, id: BatchId, event: Event) -> Checked {
        if self.dice.chance(self.rates.crash) { self.crash() } else { self.happened(id, event) }
    }

    /// What goes wrong with a call that has had no effect.
    fn trouble(&mut self) -> Option<Trouble> {
        let rates = self.rates;
        if self.dice.chance(rates.later) {
            let retry_after_ms = [None, Some(5), Some(30_000), Some(200_000)][self.dice.below(4)];
            return Some(Trouble::Later { retry_after_ms, why: "429".to_owned() });
        }
        if self.dice.chance(rates.refused) {
            let code = if self.dice.chance(20) { "token_limit_exceeded" } else { "http_400" };
            return Some(Trouble::Refused(Failure::new(FailureClass::Permanent, code, "no")));
        }
        if self.dice.chance(rates.account) {
            self.paused_until = self.mono().plus(Duration::from_secs(60));
            return Some(Trouble::Account { why: "401".to_owned() });
        }
        self.dice.chance(rates.local).then(|| Trouble::Local { why: "the disk is full".to_owned() })
    }

    /// Whether something may be sent.
    fn may_send(&self) -> bool {
        self.compared && self.mono() >= self.paused_until
    }

    /// Runs the first effect of the batch that is due.
    pub fn act(&mut self, id: BatchId) -> Checked {
        let (at, mono) = (self.at(), self.mono());
        let Some(actor) = self.actors.get_mut(&id) else { return Ok(()) };
        let Some(first) = actor.effects.iter().position(|(due, _)| *due <= mono) else { return Ok(()) };
        let Some((_, effect)) = actor.effects.remove(first) else { return Ok(()) };
        let batch = actor.batch.clone();
        self.note(format_args!("{id} does {effect:?}"));
        match effect {
            Effect::AwaitRelease
            | Effect::UploadInput { .. }
            | Effect::FindOrUploadInput { .. }
            | Effect::MakeIntent
                if !self.may_send() =>
            {
                self.again(id, 30, effect)
            }
            Effect::Fill => self.fill(id, &batch),
            Effect::EndFilling => self.happened(id, Event::FillEnded { members: batch.counts.members, at }),
            Effect::AwaitRelease => self.happened(id, Event::Released),
            Effect::WakeAt(_) => self.happened(id, Event::WaitEnded),
            Effect::UploadInput { upload } => self.upload(id, &batch, upload, false),
            Effect::FindOrUploadInput { upload } => self.upload(id, &batch, upload, true),
            Effect::MakeIntent => self.make_intent(id, &batch),
            Effect::CreateBatch(intent) => self.create(id, &batch, &intent),
            Effect::Sweep(intent) => self.sweep(id, &intent),
            Effect::Fence(intent) => {
                if self.trouble().is_some() {
                    return self.again(id, 60, Effect::Fence(intent));
                }
                if self.broken != Broken::SkipsTheFence {
                    self.remote.delete_file(intent.input.id.as_str());
                }
                self.told(id, Event::Fenced)
            }
            // An operator may have come before.
            Effect::Unpark if !matches!(batch.state, BatchState::Parked { .. }) => Ok(()),
            Effect::Unpark => self.happened(id, Event::Unparked),
            Effect::Observe => Ok(()),
            Effect::PauseAccount { .. } => {
                self.paused_until = mono.plus(Duration::from_secs(120));
                Ok(())
            }
            Effect::CancelRemote => self.cancel_remote(id, &batch),
            Effect::Download { kind, file } => self.download(id, kind, &file),
            Effect::ApplyLines { kind, offset } => self.apply(id, kind, offset),
            Effect::CloseChunk => self.close(id, &batch),
            Effect::Clean => {
                self.spool.retain(|(batch, _), _| *batch != id);
                self.told(id, Event::Cleaned { at })
            }
            Effect::Retire => {
                self.actors.remove(&id);
                Ok(())
            }
        }
    }

    fn fill(&mut self, id: BatchId, batch: &Batch) -> Checked {
        // The real actor fills without a pause; here an operator may come in between.
        if batch.state != BatchState::Filling {
            return Ok(());
        }
        let cut = now(self.store.cut_chunk(id, batch.revision, LIMITS)).map_err(text)?;
        let next = if cut.done { Effect::EndFilling } else { Effect::Fill };
        if let Some(actor) = self.actors.get_mut(&id) {
            actor.batch = cut.batch;
        }
        self.advance(id, vec![next]);
        Ok(())
    }

    fn upload(&mut self, id: BatchId, batch: &Batch, upload: u32, look: bool) -> Checked {
        let (at, millis) = (self.at(), self.millis());
        let name = format!("ns-{id}-{upload}.jsonl");
        let input = |file: &Value| InputFile {
            id: FileId::new(file["id"].as_str().unwrap()),
            upload,
            bytes: batch.input_bytes,
            created_at: Timestamp::from_secs(file["created_at"].as_i64().unwrap()),
        };
        if let Some(trouble) = self.trouble() {
            return self.told(id, Event::UploadFailed { trouble, at });
        }
        if look {
            // As the program does: one of another length is not what is to be sent.
            let is_it =
                |file: &Value| file["filename"] == name.as_str() && file["bytes"] == batch.input_bytes;
            let found = self.remote.files(millis).into_iter().find(is_it);
            if let Some(file) = found {
                return self.told(id, Event::Uploaded(input(&file)));
            }
        }
        let uncertain = self.dice.chance(self.rates.uncertain);
        let trouble = Trouble::Uncertain { why: "reset".to_owned() };
        if uncertain && self.dice.chance(50) {
            return self.told(id, Event::UploadFailed { trouble, at });
        }
        let content = self.input_of(batch)?;
        let file = self.remote.upload(&name, content, millis);
        let event =
            if uncertain { Event::UploadFailed { trouble, at } } else { Event::Uploaded(input(&file)) };
        self.told(id, event)
    }

    fn input_of(&self, batch: &Batch) -> Result<Vec<u8>, String> {
        let reader = self.store.reader();
        let mut content = Vec::new();
        for member in reader.outstanding(batch.id, None, 1000).map_err(text)? {
            let body = reader.body(member).map_err(text)?.ok_or("a body is gone")?;
            let body = String::from_utf8(body).map_err(text)?;
            content.extend(jsonl::input_line(member, batch.group.endpoint, &body));
        }
        Ok(content)
    }

    fn make_intent(&mut self, id: BatchId, batch: &Batch) -> Checked {
        let BatchState::Ready { input, .. } = batch.state.clone() else { return Ok(()) };
        let at = self.at();
        let room = self.store.reader().room(batch).map_err(text)?;
        match room.admits(id, batch.held_tokens, batch.counts.members == 1, at) {
            Admission::Now => {
                let nonce = Nonce::from_bytes(self.id());
                self.told(
                    id,
                    Event::IntentMade(Intent { nonce, input, at, made_with: Credentials::default() }),
                )
            }
            Admission::NotBefore(until) => self.happened(id, Event::RoomShut { until }),
            Admission::TooBig => {
                let failure = Failure::new(FailureClass::Capacity, "too_large_for_room", "");
                self.happened(id, Event::GivenBack(failure))
            }
        }
    }

    /// The create call as it reaches the provider.
    pub fn effect_of(&mut self, call: &Late, late: bool) -> Observation {
        let mut metadata = Map::new();
        if !self.drops_metadata {
            metadata.insert("ns_instance".to_owned(), json!(self.store.instance().to_string()));
            metadata.insert("ns_batch".to_owned(), json!(call.batch.to_string()));
            metadata.insert("ns_nonce".to_owned(), json!(call.nonce));
        }
        let created = self.remote.create(&call.input, call.endpoint, metadata, self.millis(), late);
        if let (Some(batch), Some(first)) = (created["id"].as_str(), call.first) {
            self.first_lines.insert(batch.to_owned(), first);
        }
        self.note(format_args!("the provider creates {} of {}", created["id"], call.batch));
        observation(read(&created))
    }

    fn create(&mut self, id: BatchId, batch: &Batch, intent: &Intent) -> Checked {
        let at = self.at();
        let call = Late {
            batch: id,
            nonce: intent.nonce.to_string(),
            input: intent.input.id.as_str().to_owned(),
            first: {
                let lines = self.remote.content(intent.input.id.as_str(), self.millis());
                lines.and_then(|lines| custom_ids(lines).next())
            },
            endpoint: batch.group.endpoint.path(),
        };
        let failed = |trouble| Event::CreateFailed { trouble, input_gone: false, at };
        if let Some(trouble) = self.trouble() {
            return self.told(id, failed(trouble));
        }
        let loses = self.dice.chance(self.rates.file_gone);
        if loses {
            self.note(format_args!("the provider loses {}", call.input));
            self.remote.delete_file(&call.input);
        }
        let gone = self.remote.file(&call.input, self.millis()).is_none();
        if gone && self.dice.chance(50) {
            let trouble = Trouble::Refused(Failure::new(FailureClass::Permanent, "http_404", "not found"));
            return self.happened(id, Event::CreateFailed { trouble, input_gone: true, at });
        }
        let uncertain = if self.broken == Broken::ResendsWithoutSearch {
            later("reset")
        } else {
            Trouble::Uncertain { why: "reset".to_owned() }
        };
        if gone {
            let seen = self.effect_of(&call, true);
            return self.happened(id, Event::Created(seen));
        }
        if !self.dice.chance(self.rates.uncertain) {
            let seen = self.with_a_twin(&call);
            return self.told(id, Event::Created(seen));
        }
        match self.dice.below(3) {
            // The effect is there, the answer is not.
            0 => {
                self.with_a_twin(&call);
            }
            1 => {}
            _ => self.late.push(call),
        }
        self.told(id, failed(uncertain))
    }

    /// The effect of a call, or two of them, of which one may be answered with and the other be seen a good while later.
    fn with_a_twin(&mut self, call: &Late) -> Observation {
        let first = self.effect_of(call, false);
        if !self.dice.chance(self.rates.twins) {
            return first;
        }
        // The provider's own fault: what it runs twice for one call is not ours to prevent.
        let second = self.effect_of(call, false);
        self.twins.push([&first.id, &second.id].map(|id| id.as_str().to_owned()));
        if self.dice.chance(50) {
            return first;
        }
        let until = self.mono().plus(Duration::from_secs([60, 900, 3600][self.dice.below(3)]));
        self.note(format_args!("{} is in no list until {until}", first.id));
        self.unlisted.insert(first.id.as_str().to_owned(), until);
        second
    }

    /// A create call of a while ago has its effect now.
    pub fn late_effect(&mut self) {
        if !self.late.is_empty() {
            let call = self.late.remove(0);
            self.effect_of(&call, true);
        }
    }

    fn sweep(&mut self, id: BatchId, intent: &Intent) -> Checked {
        let mono = self.mono();
        let since = self.actors.get_mut(&id).map(|actor| *actor.uncertain_since.get_or_insert(mono));
        let grace_over = since.is_some_and(|since| mono.since(since) >= GRACE);
        if self.dice.chance(self.rates.file_gone) {
            self.note(format_args!("the provider loses {} of a call that is looked for", intent.input.id));
            self.remote.delete_file(intent.input.id.as_str());
        }
        let mut complete = self.trouble().is_none();
        let mut found: Vec<BatchObject> = Vec::new();
        if complete {
            let (list, whole) = self.look_back(intent.input.created_at);
            // It is made with the same key all the time, so the list is that of the project.
            complete = whole;
            let reader = self.store.reader();
            let by_file = self.broken != Broken::ForgetsFiles;
            let is_of = |batch: &BatchObject| {
                is_of(batch, intent, &reader) && (by_file || mark(batch, "ns_nonce").is_some())
            };
            found.extend(list.into_iter().filter(is_of));
        }
        let found = keep(found);
        let is_found = found.is_some();
        self.told(id, Event::Swept { complete, grace_over, found })?;
        if !is_found && let Some(actor) = self.actors.get_mut(&id) {
            // The next search waits a while.
            for (due, effect) in &mut actor.effects {
                if matches!(effect, Effect::Sweep(_)) {
                    *due = mono.plus(GRACE / 4);
                }
            }
        }
        Ok(())
    }

    /// The provider's list of batches, newest first.
    pub fn listed(&mut self) -> Vec<Value> {
        let (mono, millis) = (self.mono(), self.millis());
        let mut all = self.remote.batches(millis);
        let left_out = [&self.gone, &self.unlisted];
        all.retain(|batch| {
            let id = batch["id"].as_str().unwrap();
            left_out.iter().all(|left_out| left_out.get(id).is_none_or(|until| *until <= mono))
        });
        all
    }

    /// The provider's word on one batch.
    fn asked(&mut self, provider_batch: &str) -> Option<Observation> {
        let mono = self.mono();
        if self.gone.get(provider_batch).is_some_and(|until| *until > mono) {
            return None;
        }
        let millis = self.millis();
        self.remote.batch(provider_batch, millis).map(|batch| observation(read(&batch)))
    }

    fn cancel_remote(&mut self, id: BatchId, batch: &Batch) -> Checked {
        let Some(provider_batch) = batch.provider_batch.clone() else { return Ok(()) };
        if self.trouble().is_some() {
            return self.again(id, 30, Effect::CancelRemote);
        }
        let millis = self.millis();
        // A 409 is no matter: the batch itself tells.
        self.remote.cancel(provider_batch.as_str(), millis);
        let at = self.steady(id);
        match self.asked(provider_batch.as_str()) {
            Some(seen) => self.told(id, Event::Observed { seen, at }),
            None => self.told(id, Event::NotKnown { at }),
        }
    }

    /// The provider's word on every batch that is worth asking about.
    pub fn poll(&mut self) -> Checked {
        let mono = self.mono();
        let observed = self.actors.values().filter(|actor| actor.batch.state.is_observed());
        let asked: Vec<_> = observed
            .filter_map(|actor| Some((actor.batch.id, actor.batch.provider_batch.clone()?)))
            .collect();
        let newest = asked.iter().map(|(id, _)| *id).max();
        let mut gone = Vec::new();
        for (id, provider_batch) in asked {
            if self.dice.chance(self.rates.later) {
                continue;
            }
            if self.dice.chance(self.rates.batch_gone) && !self.gone.contains_key(provider_batch.as_str()) {
                let until = [mono.plus(Duration::from_secs(900)), FOR_EVER][self.dice.below(2)];
                self.note(format_args!("{provider_batch} is not known until {until}"));
                self.gone.insert(provider_batch.as_str().to_owned(), until);
                self.denied.insert(provider_batch.as_str().to_owned());
            }
            let Some(seen) = self.asked(provider_batch.as_str()) else {
                gone.push(id);
                continue;
            };
            let stale = self.dice.chance(self.rates.stale);
            let actor = self.actors.get_mut(&id).ok_or("a batch has no actor")?;
            let before = actor.before.replace(seen.clone());
            // An answer of before may come once more; one about another batch is not heeded.
            let seen = before.filter(|before| stale && before.id == seen.id).unwrap_or(seen);
            let at = self.steady(id);
            let shows_nothing =
                seen.output.is_none() && seen.error.is_none() && seen.completed_lines.unwrap_or(0) == 0;
            self.happened(id, Event::Observed { seen, at })?;
            let observed = self.actors.get(&id).is_some_and(|actor| actor.batch.state.is_observed());
            if shows_nothing && !observed {
                self.denied.insert(provider_batch.as_str().to_owned());
            }
        }
        let suspicious = gone.len() > 1 || gone.iter().any(|id| Some(*id) == newest);
        if suspicious && !self.trusted {
            self.paused_until = mono.plus(Duration::from_secs(60));
            // Now and then an operator says that they are really gone.
            self.trusted = self.dice.chance(20);
            return Ok(());
        }
        for id in gone {
            let at = self.steady(id);
            self.happened(id, Event::NotKnown { at })?;
        }
        Ok(())
    }

    fn download(&mut self, id: BatchId, kind: ResultKind, file: &FileId) -> Checked {
        let (at, millis) = (self.at(), self.millis());
        let failed = |trouble| Event::DownloadFailed { kind, trouble, at };
        if self.dice.chance(self.rates.file_gone) {
            self.note(format_args!("the provider loses {file}"));
            self.cannot_be_had(id, &[]);
            self.remote.delete_file(file.as_str());
        }
        if let Some(trouble) = self.trouble() {
            if matches!(trouble, Trouble::Refused(_)) {
                // Nine in a row lose a file.
                self.cannot_be_had(id, &[]);
            }
            return self.told(id, failed(trouble));
        }
        let Some(content) = self.remote.content(file.as_str(), millis) else {
            let trouble = Trouble::Refused(Failure::new(FailureClass::Permanent, "http_404", "gone"));
            return self.told(id, failed(trouble));
        };
        let mut content = content.to_vec();
        if self.dice.chance(self.rates.torn) {
            if self.dice.chance(60) {
                return self.told(id, failed(later("the body broke off")));
            }
            // Torn each time, as far as the client can tell.
            let half = content.len() * 2 / 3;
            let lost = content.split_off(half);
            let torn = content.last().is_some_and(|byte| *byte != b'\n');
            self.cannot_be_had(id, if torn { &[] } else { &lost });
            self.spool.insert((id, kind as u8), content);
            return self.told(id, Event::Downloaded { kind, torn });
        }
        self.spool.insert((id, kind as u8), content);
        self.told(id, Event::Downloaded { kind, torn: false })
    }

    /// Some of a file is not to be had: whole lines at its end, of which nobody can tell, and perhaps a good line beside
    /// which the provider says that it failed.
    fn cannot_be_had(&mut self, id: BatchId, lines: &[u8]) {
        let Some(batch) = self.actors.get(&id).and_then(|actor| actor.batch.provider_batch.clone()) else {
            return;
        };
        let lines = lines.split(|byte| *byte == b'\n').filter_map(jsonl::custom_id_in);
        let lines = lines.filter_map(|id| Some((batch.as_str().to_owned(), id.parse().ok()?)));
        let contradicted = self.contradicted.iter().filter(|(of, _)| of == batch.as_str()).cloned();
        self.cut_off.extend(lines.chain(contradicted));
    }

    fn apply(&mut self, id: BatchId, kind: ResultKind, offset: u64) -> Checked {
        let at = self.at();
        if self.dice.chance(self.rates.local) {
            self.spool.remove(&(id, kind as u8));
        }
        let Some(bytes) = self.spool.get(&(id, kind as u8)).cloned() else {
            return self.happened(id, Event::CopyLost { kind });
        };
        let Some(actor) = self.actors.get(&id) else { return Ok(()) };
        let (batch, revision) = (actor.batch.clone(), actor.batch.revision);
        let from = usize::try_from(offset).map_err(text)?;
        let mut to = from;
        let mut lines = Vec::new();
        for line in bytes[from..].split_inclusive(|byte| *byte == b'\n').take(1 + self.dice.below(3)) {
            to += line.len();
            lines.push(self.judge(&batch, line.strip_suffix(b"\n").unwrap_or(line))?);
        }
        let event = Event::LinesRead { kind, from: offset, to: to as u64, end: to == bytes.len() };
        let step = step::step(&batch.state, batch.orders(), &event, &POLICY).map_err(text)?;
        let stored = now(self.store.apply_lines(id, revision, step.clone(), lines, at)).map_err(text)?;
        self.note(format_args!("{id} {event:?} -> {:?}", step.next));
        if let Some(actor) = self.actors.get_mut(&id) {
            actor.batch = stored;
        }
        self.advance(id, step.effects);
        if self.dice.chance(self.rates.crash) { self.crash() } else { Ok(()) }
    }

    fn judge(&mut self, batch: &Batch, line: &[u8]) -> Result<AppliedLine, String> {
        let (custom_id, outcome) = match jsonl::decode_line(line) {
            Decoded::Line { custom_id, outcome, .. } => (custom_id, outcome),
            Decoded::Bad { reason, custom_id } => {
                let request = custom_id.and_then(|id| id.parse().ok());
                return Ok(AppliedLine::Unreadable { request, reason });
            }
        };
        let Ok(id) = custom_id.parse::<RequestId>() else { return Ok(AppliedLine::Unknown) };
        let Some(request) = self.store.reader().request(id).map_err(text)? else {
            return Ok(AppliedLine::Unknown);
        };
        if request.group.company != batch.group.company {
            return Ok(AppliedLine::Unknown);
        }
        let mut outcome = outcome;
        if let (Broken::RetriesWhatIsFinal, Err(failure)) = (self.broken, &mut outcome.result) {
            failure.class = FailureClass::Transient;
        }
        let cost = outcome.answered.usage.map(|usage| Cost {
            micros: usage.total,
            currency: "USD".to_owned(),
            price_version: "1".to_owned(),
        });
        let last = self.accepted.iter().next_back().copied();
        let request = match (self.broken, last) {
            (Broken::TakesLinesOfOthers, Some(last)) => last,
            _ => id,
        };
        Ok(AppliedLine::Line { repair: None, request, outcome, analysis: None, cost })
    }

    fn close(&mut self, id: BatchId, batch: &Batch) -> Checked {
        let named = named_in(&self.store.reader(), batch).map_err(text)?;
        let at = self.at();
        let closed = now(self.store.close_chunk(id, batch.revision, named, RETRY, POLICY, at));
        let closed = closed.map_err(text)?;
        self.note(format_args!("{id} closes a chunk -> {:?}", closed.step.next));
        if let Some(actor) = self.actors.get_mut(&id) {
            actor.batch = closed.batch;
        }
        self.advance(id, closed.step.effects);
        if self.dice.chance(self.rates.crash) { self.crash() } else { Ok(()) }
    }
}
