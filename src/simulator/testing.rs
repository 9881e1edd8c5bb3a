//! The simulator without its server, its disk and its own clock: for simulations in one thread.
//!
//! The rules are the same ones: `world`, `timeline`, `validation`, `running`, `faults` and `wire`. Only what the
//! engine keeps on the disk is held in memory here, and every call says what time it is.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use super::answers::Endpoint;
use super::engine::{FILE_LIFE_MS, Shown, input_missing, planned_failure, verdict};
use super::faults::{BatchFault, Faults};
use super::running::{self, Job};
use super::timeline::{CancelRule, Work, cancel_rule};
use super::validation;
use super::wire::{batch_view, file_view};
use super::world::{BatchError, BatchRecord, Ending, Entry, FileRecord, Results, Verdict, World};
use super::{FaultPlan, SimulatorError, dice};

/// How the provider behaves.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// What ids are made from.
    pub instance: u64,
    /// How long a batch takes, in milliseconds.
    pub turnaround: i64,
    /// After how many milliseconds a batch expires.
    pub window: i64,
    /// Prompt tokens at most of one model that may be under way.
    pub enqueued_token_limit: Option<u64>,
    /// What goes wrong with batches and lines. Calls are the caller's matter.
    pub faults: FaultPlan,
}

/// The provider. Times are milliseconds since 1970; objects are the provider's JSON.
#[derive(Debug)]
pub struct Provider {
    behaviour: Behaviour,
    faults: Faults,
    world: World,
    bytes: HashMap<String, Vec<u8>>,
    /// What the batches that were admitted are made of.
    inputs: HashMap<String, Vec<u8>>,
    shown: HashMap<String, Shown>,
    ledger: BTreeMap<String, Vec<String>>,
    ended: Vec<String>,
    poison: HashSet<String>,
}

impl Provider {
    /// A provider that has nothing yet.
    pub fn new(behaviour: Behaviour) -> Self {
        let faults = Faults::new(behaviour.faults.clone(), 1);
        Self {
            behaviour,
            faults,
            world: World::default(),
            bytes: HashMap::new(),
            inputs: HashMap::new(),
            shown: HashMap::new(),
            ledger: BTreeMap::new(),
            ended: Vec::new(),
            poison: HashSet::new(),
        }
    }

    /// From now on nothing goes wrong with batches and lines; what was planned for batches at their creation stays.
    pub fn end_faults(&mut self) {
        self.faults = Faults::new(FaultPlan::default(), 1);
        self.behaviour.enqueued_token_limit = None;
    }

    fn id(&self, prefix: &str, serial: u64) -> String {
        format!("{prefix}{}", dice::hex(self.behaviour.instance, &[prefix, &serial.to_string()], 24))
    }

    /// From now on no batch with this custom id is admitted, and the error names a line that is not there.
    pub fn poison(&mut self, custom_id: String) {
        self.poison.insert(custom_id);
    }

    /// `POST /files`.
    pub fn upload(&mut self, filename: &str, content: Vec<u8>, now: i64) -> Value {
        let serial = self.world.take_serial();
        let file = FileRecord {
            serial,
            id: self.id("file-", serial),
            bytes: u64::try_from(content.len()).unwrap_or(u64::MAX),
            created_at: now,
            expires_at: Some(now + FILE_LIFE_MS),
            filename: filename.to_owned(),
            purpose: "batch".to_owned(),
        };
        let view = file_view(&file);
        self.bytes.insert(file.id.clone(), content);
        self.world.apply(Entry::File { file });
        view
    }

    /// `GET /files`, newest first, all of them.
    pub fn files(&self, now: i64) -> Vec<Value> {
        self.world.files(now).rev().map(file_view).collect()
    }

    /// `GET /files/{id}`.
    pub fn file(&self, id: &str, now: i64) -> Option<Value> {
        self.world.file(id, now).map(file_view)
    }

    /// `GET /files/{id}/content`.
    pub fn content(&self, id: &str, now: i64) -> Option<&[u8]> {
        self.world.file(id, now)?;
        self.bytes.get(id).map(Vec::as_slice)
    }

    /// Changes what a file holds; for faults that the plan has no word for.
    pub fn edit(&mut self, id: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        if let Some(bytes) = self.bytes.get_mut(id) {
            edit(bytes);
        }
    }

    /// `DELETE /files/{id}`.
    pub fn delete_file(&mut self, id: &str) {
        self.bytes.remove(id);
        self.world.apply(Entry::FileGone { id: id.to_owned() });
    }

    /// `POST /batches`. A batch that comes `late` is in every list from then on.
    pub fn create(
        &mut self,
        input: &str,
        endpoint: &str,
        metadata: Map<String, Value>,
        now: i64,
        late: bool,
    ) -> Value {
        let serial = self.world.take_serial();
        let ordinal = self.world.batches_made() + 1;
        let mut faults = self.faults.on_batch(ordinal, |rule| self.world.fault_uses(rule));
        faults.retain(|(_, fault)| !(late && matches!(fault, BatchFault::Invisible { .. })));
        let batch = BatchRecord {
            serial,
            ordinal,
            id: self.id("batch_", serial),
            input_file_id: input.to_owned(),
            endpoint: endpoint.to_owned(),
            metadata: Some(metadata),
            output_expires_after: None,
            created_at: now,
            turnaround: self.behaviour.turnaround,
            window: self.behaviour.window,
            faults,
            verdict: None,
            cancel_requested_at: None,
            results: None,
        };
        let view = batch_view(&batch, now, Shown::default());
        self.world.apply(Entry::Batch { batch: Box::new(batch) });
        view
    }

    /// `GET /batches/{id}`.
    pub fn batch(&mut self, id: &str, now: i64) -> Option<Value> {
        let batch = self.world.batch(id)?;
        let has_ended = batch.status(now).is_terminal();
        let shown = self.shown.entry(id.to_owned()).or_default();
        shown.reads += 1;
        shown.reads_after_end += u64::from(has_ended);
        Some(batch_view(batch, now, *shown))
    }

    /// `GET /batches`, newest first, all of them.
    pub fn batches(&mut self, now: i64) -> Vec<Value> {
        let ids: Vec<String> = self.world.batches().rev().map(|batch| batch.id.clone()).collect();
        let shown = |id: String| if self.is_left_out(&id) { None } else { self.batch(&id, now) };
        ids.into_iter().filter_map(shown).collect()
    }

    fn is_left_out(&mut self, id: &str) -> bool {
        let Some(batch) = self.world.batch(id) else { return true };
        let lists = batch.faults.iter().find_map(|(_, fault)| {
            if let BatchFault::Invisible { lists } = fault { Some(*lists) } else { None }
        });
        let shown = self.shown.entry(id.to_owned()).or_default();
        let left_out = lists.is_some_and(|lists| shown.left_out < lists);
        shown.left_out += u64::from(left_out);
        left_out
    }

    /// From now on lists lack nothing that is there.
    pub fn catch_up_lists(&mut self) {
        for id in self.world.batches().map(|batch| batch.id.clone()) {
            self.shown.entry(id).or_default().left_out = u64::MAX / 2;
        }
    }

    /// `POST /batches/{id}/cancel`; false is a 409.
    pub fn cancel(&mut self, id: &str, now: i64) -> bool {
        let Some(batch) = self.world.batch(id) else { return false };
        match cancel_rule(batch.status(now)) {
            CancelRule::Request => {
                self.world.apply(Entry::CancelRequested { batch: id.to_owned(), at: now });
                true
            }
            CancelRule::Already => true,
            CancelRule::Refuse => false,
        }
    }

    /// Moves every batch on to where it is at `now`.
    pub fn tick(&mut self, now: i64) -> Result<(), SimulatorError> {
        // Batches that are over and done with are not looked at again.
        let ids: Vec<String> = self
            .world
            .batches()
            .filter(|batch| batch.due(now).is_some())
            .map(|batch| batch.id.clone())
            .collect();
        for id in ids {
            while let Some((batch, work)) =
                self.world.batch(&id).and_then(|batch| Some((batch.clone(), batch.due(now)?)))
            {
                match work {
                    Work::Validate { at } => self.validate(&batch, now, at),
                    Work::Run { share, ending, at } => self.run(&batch, share, ending, now, at)?,
                }
            }
        }
        Ok(())
    }

    fn validate(&mut self, batch: &BatchRecord, now: i64, at: i64) {
        let input = self.content(&batch.input_file_id, now).map(<[u8]>::to_vec);
        let found = match (planned_failure(batch), Endpoint::of(&batch.endpoint), &input) {
            (Some(error), _, _) => Err(vec![error]),
            (None, Some(endpoint), Some(input)) => validation::validate(input.as_slice(), endpoint)
                .unwrap_or_else(|_| Err(vec![input_missing(batch)])),
            (None, _, _) => Err(vec![input_missing(batch)]),
        };
        let found = match &input {
            Some(input) if found.is_ok() && self.is_poisoned(input) => {
                let message = "A line is wrong.".to_owned();
                Err(vec![BatchError {
                    code: "invalid_value".to_owned(),
                    message,
                    param: None,
                    line: Some(99_999),
                }])
            }
            Some(_) | None => found,
        };
        let verdict = verdict(found, &self.world, self.behaviour.enqueued_token_limit, now, at);
        if let (Verdict::Passed { .. }, Some(input)) = (&verdict, input) {
            self.inputs.insert(batch.id.clone(), input);
        }
        self.world.apply(Entry::Validated { batch: batch.id.clone(), verdict });
    }

    fn is_poisoned(&self, input: &[u8]) -> bool {
        !self.poison.is_empty()
            && input.split(|byte| *byte == b'\n').any(|line| {
                let line: Value = serde_json::from_slice(line).unwrap_or_default();
                line["custom_id"].as_str().is_some_and(|id| self.poison.contains(id))
            })
    }

    fn run(
        &mut self,
        batch: &BatchRecord,
        share: f64,
        ending: Ending,
        now: i64,
        at: i64,
    ) -> Result<(), SimulatorError> {
        let endpoint = Endpoint::of(&batch.endpoint).unwrap_or(Endpoint::Chat);
        let serials = [self.world.take_serial(), self.world.take_serial()];
        let file_ids = serials.map(|serial| self.id("file-", serial));
        let job = Job { batch, endpoint, seed: self.behaviour.instance, share, ending, at, file_ids };
        let input = self.inputs.get(&batch.id).cloned().unwrap_or_default();
        let (outcome, ran) = running::run_in_memory(&job, &input, &self.faults)?;
        for line in ran.ledger.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line: Value = serde_json::from_slice(line).unwrap_or_default();
            let custom_id = line["custom_id"].as_str().unwrap_or_default().to_owned();
            self.ledger.entry(custom_id).or_default().push(batch.id.clone());
        }
        let mut files = Vec::new();
        let mut ids = [None, None];
        let names = ["output", "error"];
        let parts = serials.into_iter().zip(job.file_ids).zip(ran.files).zip(names).zip(&mut ids);
        for ((((serial, id), content), name), kept) in parts {
            if content.is_empty() {
                continue;
            }
            files.push(FileRecord {
                serial,
                id: id.clone(),
                bytes: u64::try_from(content.len()).unwrap_or(u64::MAX),
                created_at: at,
                expires_at: Some(now.max(at) + FILE_LIFE_MS),
                filename: format!("{}_{name}.jsonl", batch.id),
                purpose: "batch_output".to_owned(),
            });
            self.bytes.insert(id.clone(), content);
            *kept = Some(id);
        }
        let [output, error] = ids;
        let (completed, failed, usage) = (outcome.completed, outcome.failed, outcome.usage);
        let results = Results { ending, at, output, error, completed, failed, usage };
        self.world.apply(Entry::Ended { batch: batch.id.clone(), results, files });
        self.ended.push(batch.id.clone());
        Ok(())
    }

    /// The batches that have run since this was asked last.
    pub fn take_ended(&mut self) -> Vec<String> {
        std::mem::take(&mut self.ended)
    }

    /// The ids of the output and error file, whatever is shown of them.
    pub fn results(&self, id: &str) -> [Option<String>; 2] {
        let results = self.world.batch(id).and_then(|batch| batch.results.as_ref());
        results.map_or([None, None], |results| [results.output.clone(), results.error.clone()])
    }

    /// Every run of a request, by its custom id: the batches, in order.
    pub fn ledger(&self) -> &BTreeMap<String, Vec<String>> {
        &self.ledger
    }

    /// The requests that were run in a batch, by their custom ids.
    pub fn runs_of(&self, id: &str) -> Vec<String> {
        let ran = self.ledger.iter().filter(|(_, batches)| batches.last().is_some_and(|last| last == id));
        ran.map(|(custom_id, _)| custom_id.clone()).collect()
    }

    /// The batches that were admitted and have not ended, with their input.
    pub fn running(&self, now: i64) -> impl Iterator<Item = (&str, &[u8])> {
        let running = self.world.batches().filter(move |batch| {
            matches!(batch.verdict, Some(Verdict::Passed { .. })) && !batch.status(now).is_terminal()
        });
        running.filter_map(|batch| Some((batch.id.as_str(), self.inputs.get(&batch.id)?.as_slice())))
    }
}
