//! Moves batches on as time passes, and keeps disk and world in step.
//!
//! Every change is recorded on the disk first and applied to the world under the same lock. A batch is worked on by
//! one task at a time, which goes on although the client that asked has hung up.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use super::answers::Endpoint;
use super::disk::Disk;
use super::faults::{BatchFault, Faults};
use super::running::{self, Job};
use super::timeline::{CancelRule, Status, Work, cancel_rule};
use super::world::{BatchError, BatchRecord, Entry, FileRecord, Results, Verdict, World};
use super::{Options, SimulatorError, dice, validation};
use crate::clock::SharedClock;

/// Milliseconds that a file of a batch lives unless said otherwise: 30 days.
pub(super) const FILE_LIFE_MS: i64 = 30 * 24 * 60 * 60 * 1000;
/// Batches that are computed at once.
const WORKERS: usize = 2;
/// Tasks of the engine at most.
const MAX_TASKS: u32 = 1 << 16;

/// The simulator behind its server.
pub(super) struct Engine {
    pub(super) options: Options,
    pub(super) disk: Disk,
    pub(super) faults: Faults,
    pub(super) instance: u64,
    clock: SharedClock,
    world: Mutex<World>,
    /// How often a batch was shown, and how often a list left it out; not kept over a restart.
    shown: Mutex<HashMap<String, Shown>>,
    at_work: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    workers: Semaphore,
    /// One permit for each task of the engine, so that its end can be waited for.
    tasks: Arc<Semaphore>,
    start: u64,
    requests: AtomicU64,
    uploads: AtomicU64,
}

/// What clients have seen of a batch.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Shown {
    /// Lists that left it out.
    pub(super) left_out: u64,
    /// Reads that did not find it although it is there.
    pub(super) missed: u64,
    /// Reads of it at all.
    pub(super) reads: u64,
    /// Reads of it after it had ended.
    pub(super) reads_after_end: u64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("state_dir", &self.options.state_dir).finish_non_exhaustive()
    }
}

impl Engine {
    pub(super) fn open(options: Options, clock: SharedClock) -> Result<Self, SimulatorError> {
        let (disk, mut world) = Disk::open(&options.state_dir)?;
        let instance = match (world.starts, options.instance) {
            (1.., _) => world.instance,
            (0, Some(instance)) => instance,
            (0, None) => getrandom::u64().map_err(SimulatorError::NoRandom)?,
        };
        let started = Entry::Started { instance };
        disk.record(&started)?;
        world.apply(started);
        Ok(Self {
            faults: Faults::new(options.faults.clone(), world.starts),
            start: world.starts,
            world: Mutex::new(world),
            instance,
            options,
            disk,
            clock,
            shown: Mutex::default(),
            at_work: Mutex::default(),
            workers: Semaphore::new(WORKERS),
            tasks: Arc::new(Semaphore::new(MAX_TASKS as usize)),
            requests: AtomicU64::new(0),
            uploads: AtomicU64::new(0),
        })
    }

    /// Milliseconds since 1970.
    pub(super) fn now(&self) -> i64 {
        self.clock.now().as_millis()
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `entry` last, then true.
    pub(super) fn commit(&self, world: &mut World, entry: Entry) -> Result<(), SimulatorError> {
        self.disk.record(&entry)?;
        world.apply(entry);
        Ok(())
    }

    pub(super) fn next_request_id(&self) -> String {
        let serial = self.requests.fetch_add(1, Ordering::Relaxed).to_string();
        format!("req_{}", dice::hex(self.instance, &["http", &self.start.to_string(), &serial], 32))
    }

    pub(super) fn next_upload_name(&self) -> String {
        format!("upload-{}", self.uploads.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn new_id(&self, prefix: &str, serial: u64) -> String {
        format!("{prefix}{}", dice::hex(self.instance, &[prefix, &serial.to_string()], 24))
    }

    /// Counts what clients see of a batch.
    pub(super) fn shown(&self, batch: &str, count: impl FnOnce(&mut Shown)) -> Shown {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = shown.entry(batch.to_owned()).or_default();
        count(shown);
        *shown
    }

    /// Removes a file; false if there is none.
    pub(super) fn delete_file(&self, id: &str) -> Result<bool, SimulatorError> {
        let mut world = self.world();
        if world.file(id, self.now()).is_none() {
            return Ok(false);
        }
        self.forget_file(&mut world, id)?;
        Ok(true)
    }

    fn forget_file(&self, world: &mut World, id: &str) -> Result<(), SimulatorError> {
        self.commit(world, Entry::FileGone { id: id.to_owned() })?;
        // What stays behind is removed at the next start.
        if let Err(error) = fs::remove_file(self.disk.file_path(id)) {
            tracing::warn!(file = id, %error, "could not remove the bytes of a deleted file");
        }
        Ok(())
    }

    /// Moves every batch on, and forgets files that have expired.
    pub(super) async fn tick(self: &Arc<Self>) {
        let now = self.now();
        let due: Vec<String> = {
            let mut world = self.world();
            for id in world.expired_files(now) {
                if let Err(error) = self.forget_file(&mut world, &id) {
                    tracing::warn!(file = id, %error, "could not forget an expired file");
                }
            }
            let due = world.batches().filter(|batch| batch.due(now).is_some());
            due.map(|batch| batch.id.clone()).collect()
        };
        for id in due {
            if let Err(error) = self.advance(&id).await {
                tracing::warn!(batch = id, %error, "could not move a batch on; it is tried again");
            }
        }
    }

    /// Does what is due for a batch, so that it may be shown.
    pub(super) async fn advance(self: &Arc<Self>, id: &str) -> Result<(), SimulatorError> {
        if self.due(id).is_none() {
            return Ok(());
        }
        let id = id.to_owned();
        self.spawn(|engine| async move {
            let lock = engine.lock_of(&id);
            let _held = lock.lock().await;
            engine.advance_held(&id).await
        })
        .await
    }

    /// Runs `work` as a task of its own: a client that hangs up must not leave half of it without its lock.
    async fn spawn<T, F>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> F) -> Result<T, SimulatorError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SimulatorError>> + Send + 'static,
    {
        let permit = self.tasks.clone().acquire_owned().await.map_err(|_| SimulatorError::BrokeOff)?;
        let work = work(self.clone());
        let task = tokio::spawn(async move {
            let done = work.await;
            // Given back last, when the task no longer holds the engine.
            drop(permit);
            done
        });
        task.await.map_err(|_| SimulatorError::BrokeOff)?
    }

    /// Waits until no task is left that holds the engine.
    pub(super) async fn settle(&self) {
        // The semaphore is never closed, so that there is nothing to do about an error.
        let _all = self.tasks.acquire_many(MAX_TASKS).await;
    }

    /// Asks a batch to stop if it may be; gives its record and what the rule said.
    pub(super) async fn cancel(
        self: &Arc<Self>,
        id: &str,
    ) -> Result<Option<(CancelRule, Status)>, SimulatorError> {
        let id = id.to_owned();
        self.spawn(|engine| async move {
            let lock = engine.lock_of(&id);
            let _held = lock.lock().await;
            engine.advance_held(&id).await?;
            let at = engine.now();
            let mut world = engine.world();
            let Some(batch) = world.batch(&id) else { return Ok(None) };
            let status = batch.status(at);
            let rule = cancel_rule(status);
            if rule == CancelRule::Request {
                engine.commit(&mut world, Entry::CancelRequested { batch: id, at })?;
            }
            Ok(Some((rule, status)))
        })
        .await
    }

    fn lock_of(&self, id: &str) -> Arc<AsyncMutex<()>> {
        let mut at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        // Locks that nobody holds are forgotten, so that ended batches cost nothing.
        at_work.retain(|_, lock| Arc::strong_count(lock) > 1);
        at_work.entry(id.to_owned()).or_default().clone()
    }

    fn due(&self, id: &str) -> Option<(BatchRecord, Work)> {
        let now = self.now();
        let world = self.world();
        let batch = world.batch(id)?;
        batch.due(now).map(|work| (batch.clone(), work))
    }

    /// As [`Engine::advance`], by whoever holds the batch's lock.
    async fn advance_held(self: &Arc<Self>, id: &str) -> Result<(), SimulatorError> {
        while let Some((batch, work)) = self.due(id) {
            let _permit = self.workers.acquire().await.map_err(|_| SimulatorError::BrokeOff)?;
            let engine = self.clone();
            let done = tokio::task::spawn_blocking(move || match work {
                Work::Validate { at } => engine.validate(&batch, at),
                Work::Run { .. } => engine.run(&batch, work),
            });
            done.await.map_err(|_| SimulatorError::BrokeOff)??;
        }
        Ok(())
    }

    fn validate(&self, batch: &BatchRecord, at: i64) -> Result<(), SimulatorError> {
        let found = self.judge(batch)?;
        let mut world = self.world();
        let verdict = verdict(found, &world, self.options.enqueued_token_limit, self.now(), at);
        let has_failed = matches!(verdict, Verdict::Failed { .. });
        self.commit(&mut world, Entry::Validated { batch: batch.id.clone(), verdict })?;
        drop(world);
        if has_failed {
            self.drop_input(batch);
        }
        Ok(())
    }

    /// Judges a batch's input, and keeps the input of a good one for as long as it runs.
    fn judge(
        &self,
        batch: &BatchRecord,
    ) -> Result<Result<validation::Found, Vec<BatchError>>, SimulatorError> {
        if let Some(error) = planned_failure(batch) {
            return Ok(Err(vec![error]));
        }
        let missing = || Ok(Err(vec![input_missing(batch)]));
        let is_there = {
            let world = self.world();
            world.file(&batch.input_file_id, self.now()).is_some_and(|file| file.purpose == "batch")
        };
        let Some(endpoint) = Endpoint::of(&batch.endpoint).filter(|_| is_there) else { return missing() };
        let path = self.disk.input_path(&batch.id);
        let failed = |source| SimulatorError::Disk { path: path.clone(), source };
        match keep(&self.disk.file_path(&batch.input_file_id), &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return missing(),
            kept => kept.map_err(failed)?,
        }
        let input = BufReader::new(File::open(&path).map_err(failed)?);
        let refused = batch.faults.iter().find_map(|(_, fault)| {
            let BatchFault::Refuse { containing, code, named } = fault else { return None };
            Some((containing, code, *named))
        });
        if let Some((containing, code, named)) = refused {
            let text = fs::read_to_string(&path).map_err(failed)?;
            let lines = text.lines().zip(1_u64..);
            if let Some((_, line)) = lines.into_iter().find(|(line, _)| line.contains(containing.as_str())) {
                let error = general(code, "A line is refused, as was planned.".to_owned(), None);
                return Ok(Err(vec![BatchError { line: named.then_some(line), ..error }]));
            }
        }
        validation::validate(input, endpoint).map_err(failed)
    }

    fn run(&self, batch: &BatchRecord, work: Work) -> Result<(), SimulatorError> {
        let Work::Run { share, ending, at } = work else { return Ok(()) };
        let Some(endpoint) = Endpoint::of(&batch.endpoint) else { return Ok(()) };
        let serials = {
            let mut world = self.world();
            [world.take_serial(), world.take_serial()]
        };
        let file_ids = serials.map(|serial| self.new_id("file-", serial));
        let job = Job { batch, endpoint, seed: self.instance, share, ending, at, file_ids };
        let outcome = running::run(&job, &self.disk, &self.faults)?;
        let life = batch.output_expires_after.map_or(FILE_LIFE_MS, |seconds| seconds * 1000);
        let [output, error] = [0, 1].map(|index: usize| {
            let bytes = outcome.bytes.get(index).copied().flatten()?;
            let name = if index == 0 { "output" } else { "error" };
            Some(FileRecord {
                serial: *serials.get(index)?,
                id: job.file_ids.get(index)?.clone(),
                bytes,
                created_at: at,
                expires_at: Some(self.now().max(at) + life),
                filename: format!("{}_{name}.jsonl", batch.id),
                purpose: "batch_output".to_owned(),
            })
        });
        let id_of = |file: &Option<FileRecord>| file.as_ref().map(|file| file.id.clone());
        let results = Results {
            ending,
            at,
            output: id_of(&output),
            error: id_of(&error),
            completed: outcome.completed,
            failed: outcome.failed,
            usage: outcome.usage,
        };
        let files = [output, error].into_iter().flatten().collect();
        self.commit(&mut self.world(), Entry::Ended { batch: batch.id.clone(), results, files })?;
        self.disk.set_interrupted(&batch.id, false);
        self.drop_input(batch);
        Ok(())
    }

    fn drop_input(&self, batch: &BatchRecord) {
        let path = self.disk.input_path(&batch.id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(batch = batch.id, %error, "could not remove the input of a batch that ended");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// The failure that is planned for a batch.
pub(super) fn planned_failure(batch: &BatchRecord) -> Option<BatchError> {
    batch.faults.iter().find_map(|(_, fault)| {
        let BatchFault::Fail { code, message, param, line } = fault else { return None };
        let message = message.clone().unwrap_or_else(|| "A fault that was planned.".to_owned());
        Some(BatchError { code: code.clone(), message, param: param.clone(), line: *line })
    })
}

/// The error of a batch whose input file is not there.
pub(super) fn input_missing(batch: &BatchRecord) -> BatchError {
    let message = format!("The input file '{}' could not be found.", batch.input_file_id);
    general("invalid_request", message, Some("file_id"))
}

/// What follows from what was found in the input, and from what else is under way.
pub(super) fn verdict(
    found: Result<validation::Found, Vec<BatchError>>,
    world: &World,
    limit: Option<u64>,
    now: i64,
    at: i64,
) -> Verdict {
    let found = match found {
        Err(errors) => return Verdict::Failed { at, errors },
        Ok(found) => found,
    };
    let enqueued = world.enqueued_tokens(&found.model, now).saturating_add(found.tokens);
    match limit {
        Some(limit) if enqueued > limit => {
            let message = format!(
                "Enqueued token limit reached for `{}`: {limit} tokens. Try again once batches in progress have \
                 ended.",
                found.model
            );
            Verdict::Failed { at, errors: vec![general("token_limit_exceeded", message, None)] }
        }
        Some(_) | None => {
            let validation::Found { total, model, tokens } = found;
            Verdict::Passed { at, total, model, tokens }
        }
    }
}

/// An error of a whole batch.
fn general(code: &str, message: String, param: Option<&str>) -> BatchError {
    BatchError { code: code.to_owned(), message, param: param.map(str::to_owned), line: None }
}

/// Gives a file a second name, so that its bytes outlive its deletion.
fn keep(from: &std::path::Path, to: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Where a folder cannot hold second names a copy does.
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))
}
