//! The embedded database. Its functions are named for what they do in the domain; nobody outside names a tree.
//!
//! [`Store`] changes, [`StoreReader`] reads. Every change goes through one committer and returns when it is
//! synced, so a reply that rests on it survives a power cut.

mod adoption;
mod aging;
mod anchor;
mod anomalies;
mod batch_views;
mod batches;
mod budgets;
mod client_keys;
mod codec;
mod committer;
mod companies;
mod endings;
mod engine;
mod erasing;
mod intents;
mod keys;
mod lists;
mod lock;
mod outbox;
mod outcomes;
mod requests;
mod rooms;
mod sessions;
mod sources;
mod sums;
mod tokens;
mod tx;
mod verify;
mod webhooks;

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

pub use aging::{Aged, Removed};
pub use anomalies::Anomaly;
pub use batches::{AppliedLine, CHUNK, Closed, Cut, GroupWaiting, Repair, StoryLine};
pub use client_keys::{CallLine, ClientKey};
pub use committer::{OnFatal, Standing};
pub use endings::Endings;
pub use erasing::ErasedChunk;
pub use intents::NotedIntent;
pub use lists::{LOOKED_AT_MAX, RequestsOf, SessionFound, SessionsOf};
pub use requests::{Accepted, GROUPS_OF_ONE_MAX, NewRequest, RequestFilter, Requeued};
pub use sessions::{Content, SessionIn, SessionTaken};
pub use sources::{Behind, Breadth, FetchFailed, Lane, Reading, TranscriptIn};
pub use tokens::{Role, StoredToken, TokenError};
pub use verify::{Report, Violation};
pub use webhooks::{WebhookChange, WebhookMade};

use committer::Committer;
use engine::Engine;
use keys::Tree;
use lock::FolderLock;

/// Where the store's own id is, in `meta`.
const INSTANCE: &[u8] = b"instance";

/// What can go wrong with the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error(
        "the data folder {path} is in use by {holder}; stop that one, or give this one another [data] path"
    )]
    InUse {
        /// The folder.
        path: String,
        /// Who has it, as far as it says.
        holder: String,
    },
    /// The folder cannot be used.
    #[error("the folder {path} cannot be used: {why}")]
    Folder {
        /// The folder.
        path: String,
        /// Why.
        why: String,
    },
    /// The database refuses the files, or gave up on them.
    #[error("the store in {path} is damaged: {what}. Nothing was changed; restore the folder from a backup")]
    Corrupt {
        /// The folder.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// One value is not what was written.
    #[error("the store is damaged: {tree}/{key} is not what was written; restore from a backup")]
    Damaged {
        /// The tree.
        tree: &'static str,
        /// The key, in hex.
        key: String,
    },
    /// The disk has no room.
    #[error("the disk is full: {0}")]
    Full(String),
    /// Reading or writing failed; the process must leave and start anew.
    #[error("the store cannot be read or written: {0}")]
    Io(String),
    /// What the disk has is not known any more; the process must leave and start anew.
    #[error("the store could not be synced to disk: {0}")]
    SyncFailed(String),
    /// The writer is gone.
    #[error("the store is closed")]
    Stopped,
    /// A record cannot be read or written in its shape.
    #[error("a record cannot be read: {0}")]
    Codec(String),
    /// A text is above the cap.
    #[error("a text of {bytes} bytes is above the {max} that are kept")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The cap.
        max: usize,
    },
    /// Somebody else wrote the record first.
    #[error("batch {batch} was changed by somebody else: revision {found} instead of {expected}")]
    Stale {
        /// The batch.
        batch: String,
        /// What the writer had read.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// There is no such record.
    #[error("there is no {what} {id}")]
    NotFound {
        /// What kind of record.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// A batch would close although the ends of its members do not add up: nothing was stored but that.
    #[error("batch {batch} may not close: {why}")]
    Unproven {
        /// The batch.
        batch: String,
        /// What does not add up.
        why: String,
    },
    /// An invariant would be broken: a bug, and nothing was stored.
    #[error("an invariant of the store would be broken: {0}")]
    Broken(String),
}

impl StoreError {
    /// Whether the handle is dead: the process has to leave.
    pub const fn is_fatal(&self) -> bool {
        match self {
            Self::Full(_) | Self::Io(_) | Self::SyncFailed(_) | Self::Stopped => true,
            Self::InUse { .. }
            | Self::Folder { .. }
            | Self::Corrupt { .. }
            | Self::Damaged { .. }
            | Self::Codec(_)
            | Self::TooLong { .. }
            | Self::Stale { .. }
            | Self::NotFound { .. }
            | Self::Unproven { .. }
            | Self::Broken(_) => false,
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
    fn io(err: sled::Error) -> Self {
        match &err {
            sled::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => Self::Full(io.to_string()),
            sled::Error::Corruption { .. } => {
                Self::Corrupt { path: "store".to_owned(), what: err.to_string() }
            }
            sled::Error::Io(_)
            | sled::Error::CollectionNotFound(_)
            | sled::Error::Unsupported(_)
            | sled::Error::ReportableBug(_) => Self::Io(err.to_string()),
        }
    }

    fn refused(dir: &Path, err: &sled::Error) -> Self {
        let path = dir.display().to_string();
        match err {
            sled::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => Self::Full(format!(
                "the store in {path} cannot be opened; make room on the disk and start again"
            )),
            sled::Error::Io(io) if io.to_string().contains("lock") => {
                Self::InUse { path, holder: "another process".to_owned() }
            }
            sled::Error::Io(io) => Self::Folder { path, why: io.to_string() },
            sled::Error::Corruption { .. }
            | sled::Error::CollectionNotFound(_)
            | sled::Error::Unsupported(_)
            | sled::Error::ReportableBug(_) => Self::Corrupt { path, what: err.to_string() },
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
    fn folder(path: &Path, err: std::io::Error) -> Self {
        let path = path.display().to_string();
        if err.kind() == std::io::ErrorKind::StorageFull {
            return Self::Full(path);
        }
        Self::Folder { path, why: err.to_string() }
    }
}

/// Changes the store. Clones share one committer.
#[derive(Clone)]
pub struct Store {
    committer: Committer,
    reader: StoreReader,
    instance: Uuid,
    /// One check of the whole store at a time.
    checking: Arc<tokio::sync::Mutex<()>>,
    /// Rung when a webhook may have to be told of something.
    bell: Arc<outbox::Bell>,
    /// A transaction cuts or closes so many requests.
    chunk: usize,
}

/// Reads the store. Its calls block for a disk read at most; long ones belong on a blocking thread.
#[derive(Clone)]
pub struct StoreReader {
    engine: Arc<Engine>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.instance)
    }
}

impl std::fmt::Debug for StoreReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreReader")
    }
}

impl Store {
    /// Opens or creates the store below `data`, whose lock it takes. `new_instance` names a store that is new.
    pub async fn open(data: &Path, new_instance: Uuid, on_fatal: OnFatal) -> Result<Self, StoreError> {
        let lock = FolderLock::take(data)?;
        let folder = data.join("store");
        let mut engine = Engine::open(&folder, lock)?;
        engine.tell(on_fatal.clone());
        let engine = Arc::new(engine);
        let committer = Committer::start(engine.clone(), on_fatal, Some(data))?;
        Self::with(committer, StoreReader { engine }, new_instance).await
    }

    /// Opens the store below `data` and makes none: for commands that look at one. [`StoreError::Folder`] where there is none.
    pub async fn open_existing(
        data: &Path,
        new_instance: Uuid,
        on_fatal: OnFatal,
    ) -> Result<Self, StoreError> {
        if ["store", "ANCHOR", "DOUBT"].iter().any(|name| data.join(name).exists()) {
            return Self::open(data, new_instance, on_fatal).await;
        }
        let why =
            "there is no store in it: look at data.path in the configuration, or at --config".to_owned();
        Err(StoreError::Folder { path: data.display().to_string(), why })
    }

    /// A store in memory whose changes are made in the caller's thread, for simulations.
    pub async fn in_memory(instance: Uuid) -> Result<Self, StoreError> {
        let engine = Arc::new(Engine::memory());
        let committer = Committer::inline(engine.clone())?;
        Self::with(committer, StoreReader { engine }, instance).await
    }

    /// A copy of a store in memory as it is now, as a backup would have it; none of a store on disk.
    #[doc(hidden)]
    pub async fn copy_of_memory(&self) -> Result<Option<Self>, StoreError> {
        let Some(engine) = self.reader.engine.copy_of_memory() else { return Ok(None) };
        let engine = Arc::new(engine);
        let committer = Committer::inline(engine.clone())?;
        let copy = Self::with(committer, StoreReader { engine }, self.instance).await?;
        Ok(Some(copy.with_chunk(self.chunk)))
    }

    /// Cuts and closes at most so many requests in a transaction: few, where small batches are to be in several.
    pub fn with_chunk(mut self, chunk: usize) -> Self {
        self.chunk = chunk.clamp(1, batches::CHUNK);
        self
    }

    async fn with(committer: Committer, reader: StoreReader, new_instance: Uuid) -> Result<Self, StoreError> {
        let revision = committer.alone(|writer| Ok(writer.standing().revision)).await?;
        let instance = match reader.read::<Uuid>(Tree::Meta, INSTANCE)? {
            Some(instance) => instance,
            None if revision > 0 => {
                // Under another name it would not know its own batches and files again.
                let what = "its instance id is missing".to_owned();
                return Err(StoreError::Corrupt { path: "store".to_owned(), what });
            }
            None => {
                crash_point!("instance.before_commit");
                committer.commit(1, move |tx| tx.write(Tree::Meta, INSTANCE.to_vec(), &new_instance)).await?;
                crash_point!("instance.after_commit");
                new_instance
            }
        };
        Ok(Self {
            committer,
            reader,
            instance,
            checking: Arc::default(),
            bell: Arc::default(),
            chunk: batches::CHUNK,
        })
    }

    /// Moves the anchor to what was stored last, if it is not there.
    pub async fn anchor(&self) -> Result<(), StoreError> {
        self.committer
            .commit(1, |tx| {
                tx.anchor();
                Ok(())
            })
            .await
    }

    /// Makes the files anew from what is stored: the database keeps pages of what was removed until then. It takes as
    /// much room again, and nothing is written meanwhile.
    pub async fn compact(&self) -> Result<(), StoreError> {
        self.committer.alone(|writer| writer.compact()).await
    }

    /// Why the store cannot be believed, if so: then it is read and reconciled, and nothing new is begun. A doubt
    /// outlives every restart until the store is accepted.
    pub fn doubt(&self) -> Option<String> {
        self.committer.doubt()
    }

    /// What is known of the store and its anchor.
    pub async fn standing(&self) -> Result<Standing, StoreError> {
        self.committer.alone(|writer| Ok(writer.standing())).await
    }

    /// The reading side.
    pub fn reader(&self) -> StoreReader {
        self.reader.clone()
    }

    /// Names this store in every batch and file at the provider; only such files are ever deleted.
    pub const fn instance(&self) -> Uuid {
        self.instance
    }
}

impl StoreReader {
    /// Bytes of the database on disk.
    pub fn size_on_disk(&self) -> u64 {
        self.engine.size_on_disk()
    }

    fn read<T: serde::de::DeserializeOwned>(&self, tree: Tree, key: &[u8]) -> Result<Option<T>, StoreError> {
        self.engine.get(tree, key)?.map(|bytes| codec::decode(&bytes)).transpose()
    }

    fn text(&self, tree: Tree, prefix: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let parts = self.engine.scan(tree, prefix, keys::after_prefix(prefix).as_deref(), usize::MAX)?;
        if parts.is_empty() {
            return Ok(None);
        }
        let packed: Vec<u8> = parts.into_iter().flat_map(|(_, part)| part).collect();
        codec::unpack(&packed).map(Some)
    }
}

#[cfg(test)]
mod tests;
