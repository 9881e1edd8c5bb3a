//! What keeps the bytes: sled on disk, or a map in memory for simulations. Both know trees, keys, values,
//! and one way to write: a whole group of changes at once.

mod compaction;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use sled::transaction::{ConflictableTransactionError, TransactionError};
use sled::{IVec, Transactional};

use super::StoreError;
use super::committer::OnFatal;
use super::keys::Tree;
use super::lock::FolderLock;
use super::sums::{self, Print, Sums};

/// Changes of one group, by tree; none removes the key.
pub type Writes = BTreeMap<Tree, BTreeMap<Vec<u8>, Option<Vec<u8>>>>;

/// A tree in memory.
type MemoryTree = BTreeMap<Vec<u8>, Vec<u8>>;
/// All trees in memory.
type MemoryTrees = RwLock<BTreeMap<Tree, MemoryTree>>;

/// One entry of a tree.
pub type Entry = (Vec<u8>, Vec<u8>);

/// sled puts a page of more than a quarter of this into a file of its own, which it never syncs and removes too
/// early: neither a power cut nor a kill may find one. A page has 20 values at most, each of at most
/// [`VALUE_BYTES_MAX`](super::codec::VALUE_BYTES_MAX), so none is that large.
const SEGMENT_BYTES: usize = 8 << 20;
/// So much of a file is read at once before the database opens it, in bytes.
const READ_BYTES: usize = 1 << 20;
/// How long a thread of sled's may still hold its lock.
const UNLOCKED_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);
/// A change as sled gets it: the key, and the sealed value or none.
type Sealed<'a> = (&'a [u8], Option<IVec>);

/// One entry as it lies there, for a check: it may be damaged.
pub struct Found {
    pub key: Vec<u8>,
    /// None where it is not what was written.
    pub value: Option<Vec<u8>>,
    pub print: Print,
}

/// What storing a group changed.
pub struct Stored {
    /// The sums after it.
    pub sums: Sums,
    /// The values before it, in the order of the writes; only where they were asked for.
    pub replaced: Vec<Option<Vec<u8>>>,
}

pub enum Engine {
    Sled(OnDisk),
    Memory(MemoryTrees),
}

/// A database on disk, which may be exchanged for a compacted copy of itself between two calls.
pub struct OnDisk {
    /// None after an exchange that failed half-way: the process must leave.
    open: RwLock<Option<SledEngine>>,
    dir: PathBuf,
    /// Told where it cannot be read.
    on_fatal: Option<OnFatal>,
    /// Held as long as anybody can touch the files: dropped after the database.
    _lock: FolderLock,
}

pub struct SledEngine {
    db: sled::Db,
    trees: Vec<sled::Tree>,
    // sled's own flush is no fsync on Linux (reliability finding 1), so the file is synced through this handle.
    file: File,
}

impl Engine {
    /// Opens or creates the database in `dir`, under the data folder's lock.
    pub fn open(dir: &Path, lock: FolderLock) -> Result<Self, StoreError> {
        compaction::recover(dir)?;
        if !dir.exists() {
            make(dir)?;
        }
        let open = RwLock::new(Some(SledEngine::open(dir)?));
        Ok(Self::Sled(OnDisk { open, dir: dir.to_owned(), on_fatal: None, _lock: lock }))
    }

    /// Whom to tell of an error of the disk that a read meets: no write may follow that would find it.
    pub fn tell(&mut self, on_fatal: OnFatal) {
        match self {
            Self::Sled(disk) => disk.on_fatal = Some(on_fatal),
            Self::Memory(_) => {}
        }
    }

    /// An empty store in memory.
    pub fn memory() -> Self {
        Self::Memory(RwLock::new(BTreeMap::new()))
    }

    /// A second store with the same content; none of one on disk.
    pub fn copy_of_memory(&self) -> Option<Self> {
        match self {
            Self::Sled(_) => None,
            Self::Memory(trees) => {
                let trees = trees.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                Some(Self::Memory(RwLock::new(trees.clone())))
            }
        }
    }

    pub fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self {
            Self::Sled(disk) => disk.read(|sled| match sled.tree(tree).get(key).map_err(StoreError::io)? {
                Some(sealed) => Ok(Some(unseal(tree, key, &sealed)?.to_vec())),
                None => Ok(None),
            }),
            Self::Memory(trees) => {
                let trees = trees.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                Ok(trees.get(&tree).and_then(|tree| tree.get(key)).cloned())
            }
        }
    }

    /// At most `limit` entries from `from` on (included) up to `end` (excluded), in order.
    pub fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        match self {
            Self::Sled(disk) => {
                disk.read(|sled| collect(tree, range(sled.tree(tree), from, end).take(limit)))
            }
            Self::Memory(trees) => Ok(with_memory(trees, tree, |tree| {
                memory_range(tree, from, end).take(limit).map(|(k, v)| (k.clone(), v.clone())).collect()
            })),
        }
    }

    /// The same from the end backwards.
    pub fn scan_back(
        &self,
        tree: Tree,
        from: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        match self {
            Self::Sled(disk) => {
                disk.read(|sled| collect(tree, range(sled.tree(tree), from, end).rev().take(limit)))
            }
            Self::Memory(trees) => Ok(with_memory(trees, tree, |tree| {
                memory_range(tree, from, end).rev().take(limit).map(|(k, v)| (k.clone(), v.clone())).collect()
            })),
        }
    }

    /// At most `limit` entries from `from` on as they lie there, damaged ones too.
    pub fn look(&self, tree: Tree, from: &[u8], limit: usize) -> Result<Vec<Found>, StoreError> {
        match self {
            Self::Sled(disk) => disk.read(|sled| {
                range(sled.tree(tree), from, None)
                    .take(limit)
                    .map(|entry| {
                        let (key, sealed) = entry.map_err(StoreError::io)?;
                        let value = unseal(tree, &key, &sealed).ok().map(<[u8]>::to_vec);
                        Ok(Found { key: key.to_vec(), value, print: print(&sealed) })
                    })
                    .collect()
            }),
            Self::Memory(trees) => Ok(with_memory(trees, tree, |entries| {
                let found = memory_range(entries, from, None).take(limit);
                found
                    .map(|(key, value)| Found {
                        key: key.clone(),
                        value: Some(value.clone()),
                        print: Print::new(checksum(tree, key, value), value.len()),
                    })
                    .collect()
            })),
        }
    }

    /// What stands for an entry in the sums.
    pub fn print_of(tree: Tree, key: &[u8], value: &[u8]) -> Print {
        Print::new(checksum(tree, key, value), value.len())
    }

    /// Stores a group of changes, all or nothing, with the sums after it, which are those of `revision`. `keep` asks
    /// for the values before.
    pub fn store(
        &self,
        writes: &Writes,
        sums: &Sums,
        revision: u64,
        keep: bool,
    ) -> Result<Stored, StoreError> {
        match self {
            Self::Sled(disk) => disk.with(|sled| sled.store(writes, sums, revision, keep)),
            Self::Memory(trees) => {
                let mut trees = trees.write().unwrap_or_else(std::sync::PoisonError::into_inner);
                let mut stored = Stored { sums: sums.clone(), replaced: Vec::new() };
                for (name, changes) in writes {
                    let tree = trees.entry(*name).or_default();
                    let sum = stored.sums.of_mut(*name);
                    let print =
                        |key: &[u8], value: &[u8]| Print::new(checksum(*name, key, value), value.len());
                    for (key, value) in changes {
                        let old = match value {
                            Some(value) => {
                                sum.add(print(key, value));
                                tree.insert(key.clone(), value.clone())
                            }
                            None => tree.remove(key),
                        };
                        if let Some(old) = &old {
                            sum.remove(print(key, old));
                        }
                        if keep {
                            stored.replaced.push(old);
                        }
                    }
                }
                let meta = trees.entry(Tree::Meta).or_default();
                meta.insert(sums::KEY.to_vec(), stored.sums.encode(revision)?);
                Ok(stored)
            }
        }
    }

    /// Changes entries of a store in memory behind the back of the sums.
    #[cfg(test)]
    pub fn apply(&self, writes: &Writes) -> Result<(), StoreError> {
        let Self::Memory(trees) = self else { return Err(StoreError::Broken("only in memory".to_owned())) };
        let mut trees = trees.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (tree, changes) in writes {
            let tree = trees.entry(*tree).or_default();
            for (key, value) in changes {
                match value {
                    Some(value) => tree.insert(key.clone(), value.clone()),
                    None => tree.remove(key),
                };
            }
        }
        Ok(())
    }

    /// Returns when everything applied so far survives a power cut.
    pub fn sync(&self) -> Result<(), StoreError> {
        match self {
            Self::Sled(disk) => disk.with(|sled| {
                sled.db.flush().map_err(StoreError::io)?;
                sled.file.sync_data().map_err(|err| StoreError::SyncFailed(err.to_string()))
            }),
            Self::Memory(_) => Ok(()),
        }
    }

    /// Makes the files anew from what is stored, which must be what `sums` say; the pages of before are gone after it.
    pub fn compact(&self, sums: &Sums) -> Result<(), StoreError> {
        match self {
            Self::Sled(disk) => compaction::compact(disk, sums),
            // It keeps nothing of what was removed.
            Self::Memory(_) => Ok(()),
        }
    }

    /// Bytes on disk.
    pub fn size_on_disk(&self) -> u64 {
        match self {
            Self::Sled(disk) => {
                disk.with(|sled| sled.db.size_on_disk().map_err(StoreError::io)).unwrap_or_default()
            }
            Self::Memory(_) => 0,
        }
    }
}

impl OnDisk {
    /// A read. Where the disk fails, the handle is dead, and the process has to leave.
    fn read<T>(&self, run: impl FnOnce(&SledEngine) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let read = self.with(run);
        if let (Err(err @ (StoreError::Io(_) | StoreError::Full(_))), Some(on_fatal)) =
            (&read, &self.on_fatal)
        {
            on_fatal(err);
        }
        read
    }

    fn with<T>(&self, run: impl FnOnce(&SledEngine) -> Result<T, StoreError>) -> Result<T, StoreError> {
        match &*self.open.read().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(sled) => run(sled),
            None => Err(StoreError::Stopped),
        }
    }
}

impl SledEngine {
    fn open(dir: &Path) -> Result<Self, StoreError> {
        remove_half_made_snapshots(dir)?;
        read_through(dir)?;
        let (db, trees) = open_database(dir)?;
        let file = File::open(dir.join("db")).map_err(|err| StoreError::folder(dir, err))?;
        sync(dir, &file)?;
        Ok(Self { db, trees, file })
    }

    fn tree(&self, tree: Tree) -> &sled::Tree {
        &self.trees[usize::from(tree as u8)]
    }

    fn store(&self, writes: &Writes, sums: &Sums, revision: u64, keep: bool) -> Result<Stored, StoreError> {
        if writes.keys().next() != Some(&Tree::Meta) {
            return Err(StoreError::Broken("a group without a head".to_owned()));
        }
        let trees: Vec<&sled::Tree> = writes.keys().map(|tree| self.tree(*tree)).collect();
        // Sealed once, outside: sled may run the closure again.
        let sealed: Vec<(Tree, Vec<Sealed<'_>>)> = writes
            .iter()
            .map(|(tree, changes)| {
                let seal = |key: &[u8], value: &[u8]| IVec::from(seal(*tree, key, value));
                let sealed = |(key, value): (&'_ Vec<u8>, &Option<Vec<u8>>)| {
                    value.as_ref().map(|value| seal(key, value))
                };
                (*tree, changes.iter().map(|change| (change.0.as_slice(), sealed(change))).collect())
            })
            .collect();
        let done = trees.as_slice().transaction(|views| {
            let mut stored = Stored { sums: sums.clone(), replaced: Vec::new() };
            for (view, (tree, changes)) in views.iter().zip(&sealed) {
                let sum = stored.sums.of_mut(*tree);
                for (key, value) in changes {
                    let old = match value {
                        Some(value) => {
                            sum.add(print(value));
                            view.insert(*key, value.clone())?
                        }
                        None => view.remove(*key)?,
                    };
                    if let Some(old) = &old {
                        sum.remove(print(old));
                    }
                    if keep {
                        stored.replaced.push(old.map(|old| old[..old.len().saturating_sub(4)].to_vec()));
                    }
                }
            }
            let encoded = stored.sums.encode(revision).map_err(ConflictableTransactionError::Abort)?;
            if let Some(meta) = views.first() {
                meta.insert(sums::KEY, seal(Tree::Meta, sums::KEY, &encoded))?;
            }
            Ok(stored)
        });
        match done {
            Ok(stored) => Ok(stored),
            Err(TransactionError::Storage(err)) => Err(StoreError::io(err)),
            Err(TransactionError::Abort(err)) => Err(err),
        }
    }
}

fn range<'a>(
    tree: &'a sled::Tree,
    from: &[u8],
    end: Option<&[u8]>,
) -> impl DoubleEndedIterator<Item = sled::Result<(IVec, IVec)>> + use<'a> {
    match end {
        Some(end) => tree.range(from.to_vec()..end.to_vec()),
        None => tree.range(from.to_vec()..),
    }
}

fn collect(
    tree: Tree,
    entries: impl Iterator<Item = sled::Result<(IVec, IVec)>>,
) -> Result<Vec<Entry>, StoreError> {
    entries
        .map(|entry| {
            let (key, sealed) = entry.map_err(StoreError::io)?;
            let value = unseal(tree, &key, &sealed)?.to_vec();
            Ok((key.to_vec(), value))
        })
        .collect()
}

fn with_memory<T>(trees: &MemoryTrees, tree: Tree, read: impl FnOnce(&MemoryTree) -> T) -> T {
    let trees = trees.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    match trees.get(&tree) {
        Some(tree) => read(tree),
        None => read(&BTreeMap::new()),
    }
}

fn memory_range<'a>(
    tree: &'a MemoryTree,
    from: &[u8],
    end: Option<&[u8]>,
) -> impl DoubleEndedIterator<Item = (&'a Vec<u8>, &'a Vec<u8>)> + use<'a> {
    use std::ops::Bound;
    let upper = match end {
        // An end before the start is an empty range here, not a panic.
        Some(end) if end <= from => Bound::Excluded(from.to_vec()),
        Some(end) => Bound::Excluded(end.to_vec()),
        None => Bound::Unbounded,
    };
    tree.range((Bound::Included(from.to_vec()), upper))
}

/// The value with a checksum over tree, key and value, so that a value in the wrong place is noticed, too.
fn seal(tree: Tree, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(value.len() + 4);
    sealed.extend_from_slice(value);
    sealed.extend_from_slice(&checksum(tree, key, value).to_le_bytes());
    sealed
}

fn unseal<'a>(tree: Tree, key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], StoreError> {
    let damaged = || StoreError::Damaged { tree: tree.name(), key: hex(key) };
    let (value, sum) = sealed.split_last_chunk::<4>().ok_or_else(damaged)?;
    if checksum(tree, key, value) == u32::from_le_bytes(*sum) { Ok(value) } else { Err(damaged()) }
}

/// What stands for a sealed value in the sums.
fn print(sealed: &[u8]) -> Print {
    match sealed.split_last_chunk::<4>() {
        Some((value, sum)) => Print::new(u32::from_le_bytes(*sum), value.len()),
        None => Print::new(0, sealed.len()),
    }
}

fn checksum(tree: Tree, key: &[u8], value: &[u8]) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(tree.name().as_bytes()), key);
    crc32c::crc32c_append(sum, value)
}

/// The start of a key, for people.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().take(64).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Makes an empty store, which has its name only once it is whole: sled could not open half of one, and nobody could
/// tell it from a damaged one.
fn make(dir: &Path) -> Result<(), StoreError> {
    let half = dir.with_extension("new");
    let failed = |err| StoreError::folder(&half, err);
    match std::fs::remove_dir_all(&half) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(failed(err)),
        Ok(()) | Err(_) => {}
    }
    std::fs::create_dir(&half).map_err(failed)?;
    drop(open_database(&half)?);
    sync(&half, &File::open(half.join("db")).map_err(failed)?)?;
    crash_point!("store.before_name");
    std::fs::rename(&half, dir).map_err(failed)?;
    let above = dir.parent().unwrap_or(Path::new("."));
    let synced = File::open(above).map_err(|err| StoreError::folder(above, err))?.sync_all();
    synced.map_err(|err| StoreError::SyncFailed(err.to_string()))
}

fn open_database(dir: &Path) -> Result<(sled::Db, Vec<sled::Tree>), StoreError> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(64 << 20)
        .segment_size(segment_bytes(dir))
        .flush_every_ms(Some(500))
        .mode(sled::Mode::HighThroughput);
    // sled panics on some kinds of damage; that must not look like a bug of ours.
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let db = open_unlocked(&config)?;
        let trees = Tree::ALL.iter().map(|tree| db.open_tree(tree.name())).collect::<Result<Vec<_>, _>>()?;
        db.flush()?;
        Ok::<_, sled::Error>((db, trees))
    }));
    match opened {
        Ok(Ok(opened)) => Ok(opened),
        // The disk fails, which says nothing about what is on it.
        Ok(Err(sled::Error::Io(err))) if err.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            Err(StoreError::Io(err.to_string()))
        }
        Ok(Err(err)) => Err(StoreError::refused(dir, &err)),
        Err(_) => Err(StoreError::Corrupt {
            path: dir.display().to_string(),
            what: "the database gave up on it while opening".to_owned(),
        }),
    }
}

/// Opens the database once sled's own lock is free. The data folder's lock is ours, so what still holds it can only be
/// a thread that sled leaves behind for a moment when a database is closed in this same process.
fn open_unlocked(config: &sled::Config) -> Result<sled::Db, sled::Error> {
    let began = std::time::Instant::now();
    loop {
        match config.open() {
            Err(sled::Error::Io(err))
                if err.to_string().contains("lock") && began.elapsed() < UNLOCKED_WITHIN =>
            {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

/// Makes sure of the database's files, and of their names.
fn sync(dir: &Path, file: &File) -> Result<(), StoreError> {
    // sled writes this once, in two pieces, and never syncs it; without it the store cannot be opened.
    let conf = File::open(dir.join("conf")).map_err(|err| StoreError::folder(dir, err))?;
    let folder = File::open(dir).map_err(|err| StoreError::folder(dir, err))?;
    let synced = file.sync_all().and_then(|()| conf.sync_all()).and_then(|()| folder.sync_all());
    synced.map_err(|err| StoreError::SyncFailed(err.to_string()))
}

/// A kill or a full disk while sled writes a snapshot leaves an empty file that blocks every later open
/// (stack.md section 3). It holds nothing, and nobody else can be writing it: we hold the lock.
fn remove_half_made_snapshots(dir: &Path) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(dir).map_err(|err| StoreError::folder(dir, err))? {
        let entry = entry.map_err(|err| StoreError::folder(dir, err))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(entry.path()).map_err(|err| StoreError::folder(dir, err))?;
        }
    }
    Ok(())
}

/// Reads every file of the database once. To sled a read that fails while it opens is a torn end, and it clears what
/// lies behind: a disk with a bad moment would lose what was acknowledged. So the disk has to show all of it first; what
/// sled reads then is in the machine's memory already.
fn read_through(dir: &Path) -> Result<(), StoreError> {
    let mut buffer = vec![0; READ_BYTES];
    for entry in std::fs::read_dir(dir).map_err(|err| StoreError::folder(dir, err))? {
        let path = entry.map_err(|err| StoreError::folder(dir, err))?.path();
        if !path.is_file() {
            continue;
        }
        let mut file = File::open(&path).map_err(|err| {
            if err.kind() == ErrorKind::PermissionDenied {
                return StoreError::folder(&path, err);
            }
            StoreError::Io(format!("{} cannot be opened: {err}. Nothing was changed", path.display()))
        })?;
        let mut at = 0;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => at += read,
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) => {
                    let what = format!("{} cannot be read from byte {at} on: {err}", path.display());
                    return Err(StoreError::Io(format!("{what}. Nothing was changed")));
                }
            }
        }
    }
    Ok(())
}

/// The segment size of the store in `dir`: it is fixed when a store is made.
fn segment_bytes(dir: &Path) -> usize {
    let made_with = std::fs::read_to_string(dir.join("conf")).ok().and_then(|conf| {
        conf.lines().find_map(|line| line.strip_prefix("segment_size: ")?.trim().parse().ok())
    });
    made_with.unwrap_or(SEGMENT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_leaves_is_told_of_a_read_that_fails_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path()).unwrap();
        let mut engine = Engine::open(&folder.path().join("store"), lock).unwrap();
        let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let telling = told.clone();
        engine.tell(std::sync::Arc::new(move |err| telling.lock().unwrap().push(err.to_string())));
        let Engine::Sled(disk) = &engine else { panic!("it is on disk") };
        for err in [StoreError::Stopped, StoreError::Broken("a bug".to_owned())] {
            assert!(disk.read(|_| Err::<(), _>(err)).is_err());
        }
        assert!(disk.with(|_| Err::<(), _>(StoreError::Io("a write".to_owned()))).is_err());
        assert_eq!(*told.lock().unwrap(), [""; 0]);
        assert!(disk.read(|_| Err::<(), _>(StoreError::Io("a bad sector".to_owned()))).is_err());
        assert!(told.lock().unwrap().concat().contains("a bad sector"));
    }

    #[test]
    fn no_page_is_so_large_that_it_becomes_a_file_that_is_never_synced() {
        let (folder, keys_max) = (tempfile::tempdir().unwrap(), 1024);
        let lock = FolderLock::take(folder.path()).unwrap();
        let engine = Engine::open(&folder.path().join("store"), lock).unwrap();
        let value = vec![7; super::super::codec::VALUE_BYTES_MAX];
        for round in 0..40_u8 {
            let mut writes = Writes::new();
            let changes = writes.entry(Tree::Bodies).or_default();
            changes.extend((0..6_u8).map(|number| {
                let mut key = vec![number; keys_max];
                key[0] = round;
                (key, Some(value.clone()))
            }));
            writes.entry(Tree::Meta).or_default().insert(b"head".to_vec(), Some(Vec::new()));
            let sums = Sums::default();
            engine.store(&writes, &sums, u64::from(round) + 1, false).unwrap();
        }
        engine.sync().unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join("store/blobs")).unwrap().count(), 0);
        assert_eq!(engine.scan(Tree::Bodies, &[], None, 1000).unwrap().len(), 240);
    }

    #[test]
    fn a_value_that_lies_under_another_key_or_changed_is_damage() {
        let sealed = seal(Tree::Requests, b"key", b"value");
        assert_eq!(unseal(Tree::Requests, b"key", &sealed).unwrap(), b"value");
        assert!(unseal(Tree::Requests, b"kez", &sealed).is_err());
        assert!(unseal(Tree::Batches, b"key", &sealed).is_err());
        let mut flipped = sealed;
        flipped[0] ^= 1;
        assert!(unseal(Tree::Requests, b"key", &flipped).is_err());
        assert!(unseal(Tree::Requests, b"key", b"abc").is_err());
    }
}
