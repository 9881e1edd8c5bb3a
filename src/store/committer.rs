//! The one writer. Operations queue up, run one after the other on one thread, and are stored in groups:
//! one transaction, one sync, then the replies. An operation that fails leaves no trace and disturbs no other.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::StoreError;
use super::anchor::Anchor;
use super::engine::{Engine, Writes};
use super::keys::Tree;
use super::sums::{Sum, Sums};
use super::tx::Tx;
use super::verify::{Report, Scan};
use crate::domain::id::Timestamp;

/// A group ends at this many records: larger transactions cost memory and latency and gain nothing.
const GROUP_RECORDS_MAX: usize = 250;
/// A group ends when it has been collecting for this long.
const GROUP_TIME_MAX: Duration = Duration::from_millis(5);
/// While something changes the anchor is this old at most.
const ANCHOR_AGE_MAX: Duration = Duration::from_secs(1);
/// Operations that may wait; more than that wait before they are taken.
const QUEUE_MAX: usize = 256;

const HEAD: &[u8] = b"head";

/// What every group ends with: how many groups there were, and a chain over all they wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// How many groups were stored.
    pub revision: u64,
    /// `SHA-256(previous chain, digest of this group's changes)`.
    pub chain: [u8; 32],
}

impl Head {
    /// The head of a store whose `meta` is this.
    pub fn read(meta: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError>) -> Result<Self, StoreError> {
        meta(HEAD)?.map_or_else(|| Ok(Self::default()), |bytes| super::codec::decode(&bytes))
    }
}

/// Told once when a commit or a sync failed: nothing more is acknowledged after that.
pub type OnFatal = Arc<dyn Fn(&StoreError) + Send + Sync>;

type Finish = Box<dyn FnOnce(Option<StoreError>) + Send>;
type Run = Box<dyn FnOnce(&mut Tx<'_>) -> (bool, Finish) + Send>;

enum Job {
    /// A change, which may share a group with others.
    Change { records: usize, run: Run },
    /// Something between two groups that sees the store at rest.
    Alone(Box<dyn FnOnce(&mut Writer) + Send>),
}

#[derive(Clone)]
pub struct Committer {
    kind: Kind,
    /// Why the store cannot be believed, if so.
    doubt: Doubt,
}

type Doubt = Arc<Mutex<Option<String>>>;

#[derive(Clone)]
enum Kind {
    Thread(mpsc::Sender<Job>),
    /// Every operation is a group of its own, stored before the call returns: for simulations.
    Inline(Arc<Mutex<Writer>>),
}

/// What the committer's thread has.
pub struct Writer {
    engine: Arc<Engine>,
    head: Head,
    sums: Sums,
    dead: Option<StoreError>,
    doubt: Doubt,
    /// A check of the whole store under way, which has to learn of every change.
    scan: Option<Scan>,
    /// Where there are files to be anchored, and when that was done last.
    anchor: Option<(Anchor, Option<Instant>)>,
}

impl Committer {
    /// Starts the thread. The store is checked against the anchor in `folder` first, where one is given.
    pub fn start(engine: Arc<Engine>, on_fatal: OnFatal, folder: Option<&Path>) -> Result<Self, StoreError> {
        let (mut writer, mut doubts) = Writer::new(engine)?;
        if let Some(folder) = folder {
            let (anchor, doubt) =
                Anchor::check(folder, |key| writer.engine.get(Tree::Meta, key), &writer.head)?;
            doubts.splice(0..0, doubt);
            // The first doubt is the one that matters; a restart in doubt finds it, and perhaps more.
            if let Some(before) = anchor.doubt()? {
                doubts.retain(|doubt| !before.contains(doubt));
                doubts.insert(0, before);
            }
            writer.anchor = Some((anchor, None));
        }
        if !doubts.is_empty() {
            writer.raise_doubt(&doubts.join("; "))?;
        }
        let doubt = writer.doubt.clone();
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || {
                // What one operation or the database does is caught below; without a writer the process is of no use.
                let served = std::panic::catch_unwind(AssertUnwindSafe(|| writer.serve(jobs, &on_fatal)));
                if served.is_err() {
                    on_fatal(&StoreError::Io("the writer gave up".to_owned()));
                }
            })
            .map_err(|err| StoreError::Io(err.to_string()))?;
        Ok(Self { kind: Kind::Thread(queue), doubt })
    }

    /// Runs operations in the caller's thread.
    pub fn inline(engine: Arc<Engine>) -> Result<Self, StoreError> {
        let (writer, _) = Writer::new(engine)?;
        let doubt = writer.doubt.clone();
        Ok(Self { kind: Kind::Inline(Arc::new(Mutex::new(writer))), doubt })
    }

    /// Why the store cannot be believed, if so.
    pub fn doubt(&self) -> Option<String> {
        self.doubt.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs `op` between two groups, where it sees the store at rest.
    pub async fn alone<T: Send + 'static>(
        &self,
        op: impl FnOnce(&mut Writer) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Job::Alone(Box::new(move |writer| {
            let result = match &writer.dead {
                Some(err) => Err(err.clone()),
                // sled panics on some kinds of damage.
                None => std::panic::catch_unwind(AssertUnwindSafe(|| op(writer)))
                    .unwrap_or_else(|_| Err(StoreError::Io("the database gave up".to_owned()))),
            };
            // Nobody waiting any more is fine.
            let _ = reply.send(result);
        }));
        self.queue(job).await?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    async fn queue(&self, job: Job) -> Result<(), StoreError> {
        match &self.kind {
            Kind::Thread(queue) => queue.send(job).await.map_err(|_| StoreError::Stopped)?,
            Kind::Inline(writer) => {
                writer.lock().unwrap_or_else(PoisonError::into_inner).run(job, || None);
            }
        }
        Ok(())
    }

    /// Runs `op` and returns what it returned, once all it wrote, and all it may have read, is synced.
    pub async fn commit<T: Send + 'static>(
        &self,
        records: usize,
        op: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let run: Run = Box::new(move |tx| {
            // A bug in one operation must not take the writer with it.
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
                op(tx).and_then(|done| tx.check().map(|()| done))
            }))
            .unwrap_or_else(|_| Err(StoreError::Broken("an operation panicked".to_owned())));
            let good = result.is_ok();
            let finish: Finish = Box::new(move |fatal| {
                // Nobody waiting any more is fine: what is stored is stored.
                let _ = reply.send(match fatal {
                    Some(err) => Err(err),
                    None => result,
                });
            });
            (good, finish)
        });
        self.queue(Job::Change { records, run }).await?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }
}

impl Writer {
    /// The writer, and why the store cannot be believed, as far as it tells itself.
    fn new(engine: Arc<Engine>) -> Result<(Self, Vec<String>), StoreError> {
        let head = Head::read(|key| engine.get(Tree::Meta, key))?;
        let (revision, sums) = Sums::read(|key| engine.get(Tree::Meta, key))?;
        let doubts = if revision == head.revision {
            Vec::new()
        } else {
            vec![format!("its sums are of revision {revision}, and it is at revision {}", head.revision)]
        };
        let doubt = Doubt::default();
        Ok((Self { engine, head, sums, dead: None, doubt, scan: None, anchor: None }, doubts))
    }

    fn serve(&mut self, mut jobs: mpsc::Receiver<Job>, on_fatal: &OnFatal) {
        let mut held: Option<Job> = None;
        while let Some(first) = held.take().or_else(|| jobs.blocking_recv()) {
            let was_alive = self.dead.is_none();
            let mut records = first.records();
            self.run(first, || {
                let job = jobs.try_recv().ok()?;
                records += job.records();
                if records <= GROUP_RECORDS_MAX && matches!(job, Job::Change { .. }) {
                    return Some(job);
                }
                // It would make the group too large, or wants to be alone, so it comes next.
                held = Some(job);
                None
            });
            if let (true, Some(err)) = (was_alive, &self.dead) {
                on_fatal(err);
            }
        }
    }

    fn run(&mut self, first: Job, more: impl FnMut() -> Option<Job>) {
        match first {
            Job::Alone(op) => op(self),
            Job::Change { .. } => self.store_group(first, more),
        }
    }

    /// Runs `first` and what `more` has to give, stores it all, and then answers.
    fn store_group(&mut self, first: Job, mut more: impl FnMut() -> Option<Job>) {
        let started = Instant::now();
        let mut group = Writes::new();
        let mut finishes = Vec::new();
        let mut refused = Vec::new();
        let mut records = 0;
        let mut anchored = false;
        let mut next = Some(first);
        while let Some(Job::Change { records: own_records, run }) = next.take() {
            records += own_records.max(1);
            let mut tx = Tx::new(&self.engine, &group);
            let (good, finish) = run(&mut tx);
            let (own, wants_anchor) = tx.into_writes();
            if good && wants_anchor && !own.is_empty() && self.is_doubted() {
                // What comes behind it costs money, and it would be without the proof that it was stored.
                let why = "the store is in doubt: nothing is sent until an operator accepts it".to_owned();
                refused.push((StoreError::Broken(why), finish));
                next = more();
                continue;
            }
            if good {
                anchored |= wants_anchor;
                for (tree, changes) in own {
                    group.entry(tree).or_default().extend(changes);
                }
            }
            finishes.push((good && wants_anchor, finish));
            if records < GROUP_RECORDS_MAX && started.elapsed() < GROUP_TIME_MAX {
                next = more();
            }
        }
        let stored = match &self.dead {
            Some(err) => Err(err.clone()),
            // sled panics on some kinds of damage; the process must learn of it like of any other.
            None => std::panic::catch_unwind(AssertUnwindSafe(|| self.store(group, anchored)))
                .unwrap_or_else(|_| Err(StoreError::Io("the database gave up".to_owned()))),
        };
        let (fatal, unanchored) = match stored {
            Ok(unanchored) => (None, unanchored),
            Err(err) => (Some(err), None),
        };
        if let Some(err) = &fatal {
            // A failed sync is never tried again: what the disk has is not known any more.
            self.dead.get_or_insert_with(|| err.clone());
        }
        for (why, finish) in refused {
            finish(Some(fatal.clone().unwrap_or(why)));
        }
        for (wants_anchor, finish) in finishes {
            let unanchored = unanchored.as_ref().filter(|_| wants_anchor);
            finish(fatal.as_ref().or(unanchored).cloned());
        }
    }

    fn is_doubted(&self) -> bool {
        self.doubt.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Stores a group. An anchor for which there was no room is told apart: everything is stored, the anchor is where
    /// it was, and only who asked for it must not act.
    fn store(&mut self, group: Writes, anchored: bool) -> Result<Option<StoreError>, StoreError> {
        let doubtful = self.is_doubted();
        let behind = |(anchor, _): &(Anchor, _)| anchor.revision().is_none_or(|at| at < self.head.revision);
        let behind = self.anchor.as_ref().is_some_and(behind) && !doubtful;
        if group.is_empty() && !(anchored && behind) {
            return Ok(None);
        }
        let old = |last: &Option<Instant>| last.is_none_or(|last| last.elapsed() >= ANCHOR_AGE_MAX);
        // In doubt the anchor stays where it is: it is the proof that something is missing.
        let anchored = !doubtful && self.anchor.as_ref().is_some_and(|(_, last)| anchored || old(last));
        self.write(group, anchored)
    }

    /// Stores a group with its head and its sums, and moves the anchor behind it where that is wanted.
    fn write(&mut self, mut group: Writes, anchored: bool) -> Result<Option<StoreError>, StoreError> {
        let head = Head { revision: self.head.revision + 1, chain: chain(&self.head.chain, &group) };
        let meta = group.entry(Tree::Meta).or_default();
        meta.insert(HEAD.to_vec(), Some(super::codec::encode(&head)?));
        let anchor = self.anchor.as_mut().filter(|_| anchored);
        if let Some((anchor, _)) = &anchor {
            meta.extend(anchor.entries(&head));
        }
        crash_point!("commit.before_apply");
        let stored = self.engine.store(&group, &self.sums, head.revision, self.scan.is_some())?;
        crash_point!("commit.after_apply_before_sync");
        self.engine.sync()?;
        crash_point!("commit.after_sync_before_anchor");
        if let Some(scan) = &mut self.scan {
            scan.note(&group, &stored.replaced);
        }
        (self.head, self.sums) = (head, stored.sums);
        if let Some((anchor, last)) = anchor {
            *last = Some(Instant::now());
            match anchor.advance(&head) {
                Ok(()) => {}
                Err(err @ StoreError::Full(_)) => {
                    tracing::warn!(error = %err, "there is no room for the anchor; it stays where it was");
                    return Ok(Some(err));
                }
                Err(err) => return Err(err),
            }
        }
        crash_point!("commit.after_anchor_before_replies");
        Ok(None)
    }

    /// Makes the store's files anew without what was removed. Nothing else is stored meanwhile. A store in doubt stays as
    /// it is: what looks removed may be what is missing.
    pub fn compact(&mut self) -> Result<(), StoreError> {
        if self.standing().doubt.is_some() {
            return Err(StoreError::Broken("a store in doubt is not compacted".to_owned()));
        }
        let compacted = self.engine.compact(&self.sums);
        if let Err(err @ (StoreError::Broken(_) | StoreError::Damaged { .. } | StoreError::Corrupt { .. })) =
            &compacted
        {
            // The store itself, and nothing but a copy of the whole of it would have shown that.
            self.raise_doubt(&format!("a compaction found damage: {err}"))?;
        }
        if let Err(err) = &compacted
            && err.is_fatal()
        {
            self.dead = Some(err.clone());
        }
        compacted
    }

    /// Puts the store in doubt for this reason, for good.
    pub fn raise_doubt(&mut self, why: &str) -> Result<(), StoreError> {
        crash_point!("doubt.before_write");
        *self.doubt.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
        if let Some((anchor, _)) = &self.anchor {
            anchor.write_doubt(why)?;
        }
        crash_point!("doubt.after_write");
        Ok(())
    }

    /// What is known of the store and its anchor.
    pub fn standing(&self) -> Standing {
        let anchor = self.anchor.as_ref().map(|(anchor, _)| anchor);
        Standing {
            revision: self.head.revision,
            anchored: anchor.and_then(Anchor::revision),
            anchored_at: anchor.and_then(Anchor::written_at),
            doubt: self.doubt.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Begins a check of the whole store.
    pub fn begin_scan(&mut self) -> Result<(), StoreError> {
        self.scan = Some(Scan::new(&self.engine)?);
        Ok(())
    }

    /// Reads one page more of the check under way; gives the report at its end.
    pub fn scan_page(&mut self) -> Result<Option<Report>, StoreError> {
        // Taken out: where sled panics in the midst of it, it is over.
        let mut scan = self.scan.take().ok_or(StoreError::Stopped)?;
        if scan.page(&self.engine, &self.sums)? {
            return Ok(Some(scan.into_report()));
        }
        self.scan = Some(scan);
        Ok(None)
    }

    /// Takes the store as it was found: the sums are made to agree with it, the anchor moves to it, and the doubt
    /// is lifted last, so that a kill before that leaves it in doubt.
    pub fn accept(
        &mut self,
        found: &[(Tree, Sum)],
        mut notes: Writes,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let standing = self.standing();
        self.sums.add(found);
        let key = format!("acceptance/{:020}", self.head.revision + 1).into_bytes();
        let note = (at, standing.revision, standing.anchored, standing.doubt);
        notes.entry(Tree::Meta).or_default().insert(key, Some(super::codec::encode(&note)?));
        match self.write(notes, true) {
            Ok(None) => {}
            // Without its anchor the next start would doubt it again.
            Ok(Some(no_room)) => return Err(no_room),
            Err(err) => {
                self.dead = Some(err.clone());
                return Err(err);
            }
        }
        if let Some((anchor, _)) = &self.anchor {
            anchor.lift_doubt()?;
        }
        *self.doubt.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}

impl Job {
    const fn records(&self) -> usize {
        match self {
            Self::Change { records, .. } => *records,
            Self::Alone(_) => 0,
        }
    }
}

/// What is known of a store and its anchor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// How many groups it has stored.
    pub revision: u64,
    /// How many were acknowledged at the least; none where the anchor cannot be read.
    pub anchored: Option<u64>,
    /// When the anchor was written, as far as the file system says.
    pub anchored_at: Option<Timestamp>,
    /// Why the store cannot be believed, if so.
    pub doubt: Option<String>,
}

fn chain(previous: &[u8; 32], group: &Writes) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(previous);
    for (tree, changes) in group {
        hash.update([*tree as u8]);
        for (key, value) in changes {
            hash.update((key.len() as u64).to_be_bytes());
            hash.update(key);
            match value {
                Some(value) => {
                    hash.update((value.len() as u64).to_be_bytes());
                    hash.update(value);
                }
                None => hash.update(u64::MAX.to_be_bytes()),
            }
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static [u8]) -> impl FnOnce(&mut Tx<'_>) -> Result<(), StoreError> + Send {
        move |tx| {
            tx.put(Tree::Meta, key.to_vec(), b"x".to_vec());
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_operation_that_fails_or_panics_leaves_no_trace_and_disturbs_no_other() {
        let engine = Arc::new(Engine::memory());
        let committer = Committer::start(engine.clone(), Arc::new(|_| {}), None).unwrap();
        let bad = committer.commit(1, |tx| {
            tx.put(Tree::Meta, b"bad".to_vec(), b"x".to_vec());
            Err::<(), _>(StoreError::Broken("no".to_owned()))
        });
        let worse = committer.commit(1, |tx| -> Result<(), StoreError> {
            tx.put(Tree::Meta, b"worse".to_vec(), b"x".to_vec());
            panic!("a bug")
        });
        let (good, bad, worse) = tokio::join!(committer.commit(1, put(b"good")), bad, worse);
        assert!(good.is_ok() && bad.is_err() && worse.is_err());
        assert!(engine.get(Tree::Meta, b"good").unwrap().is_some());
        assert!(engine.get(Tree::Meta, b"bad").unwrap().is_none());
        assert!(engine.get(Tree::Meta, b"worse").unwrap().is_none());
    }

    #[tokio::test]
    async fn the_chain_depends_on_everything_written_before() {
        let head = async |keys: &[&'static [u8]]| {
            let engine = Arc::new(Engine::memory());
            let committer = Committer::inline(engine.clone()).unwrap();
            for key in keys {
                committer.commit(1, put(key)).await.unwrap();
            }
            let bytes = engine.get(Tree::Meta, HEAD).unwrap().unwrap();
            super::super::codec::decode::<Head>(&bytes).unwrap()
        };
        let (ab, ba) = (head(&[b"a", b"b"]).await, head(&[b"b", b"a"]).await);
        assert_eq!((ab.revision, ba.revision), (2, 2));
        assert_ne!(ab.chain, ba.chain);
    }
}
