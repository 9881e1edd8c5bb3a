//! The database copied into a fresh one, which takes its place: sled keeps pages of what was removed for as long as it
//! likes, and an erasure is not done before they are gone.
//!
//! Of a kill at any moment one of these is left, each with a whole store in it:
//!
//! | `store` | `store.compact` | `store.old` | what a start does |
//! | --- | --- | --- | --- |
//! | there | half or whole | – | removes the copy; the erasure asks for another one |
//! | – | whole | there | gives the old one its name back, removes the copy |
//! | there | – | there | removes the old one |

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Instant;

use rustix::fs::{FlockOperation, flock};

use super::{OnDisk, SledEngine, StoreError, Sums, UNLOCKED_WITHIN, open_database, print, range};
use crate::store::keys::Tree;
use crate::store::sums::Sum;

/// The copy is written to disk after so many entries, so that it does not lie in memory.
const FLUSHED_AFTER: usize = 20_000;

fn copy_of(dir: &Path) -> PathBuf {
    dir.with_extension("compact")
}

fn old_of(dir: &Path) -> PathBuf {
    dir.with_extension("old")
}

/// Puts in order what a kill left. Comes before anything else looks at the folder.
pub(super) fn recover(dir: &Path) -> Result<(), StoreError> {
    let (copy, old) = (copy_of(dir), old_of(dir));
    if old.exists() && !dir.exists() {
        rename(&old, dir)?;
    }
    remove(&copy)?;
    remove(&old)
}

/// Copies, and exchanges the two. Readers go on meanwhile, but for the exchange itself.
pub(super) fn compact(disk: &OnDisk, sums: &Sums) -> Result<(), StoreError> {
    let dir = &disk.dir;
    let (copy, old) = (copy_of(dir), old_of(dir));
    remove(&copy)?;
    remove(&old)?;
    let copied = disk.with(|sled| copy_all(sled, &copy, sums));
    if let Err(err) = copied.and_then(|()| unlocked(&copy)) {
        // The store is as it was; half a copy only takes room, and the next start removes it, too.
        if let Err(err) = remove(&copy) {
            tracing::warn!(error = %err, "half a copy of the store stays");
        }
        // A failure of the copy says nothing about the store itself, which was only read.
        return Err(match err.is_fatal() {
            true => StoreError::Folder { path: copy.display().to_string(), why: err.to_string() },
            false => err,
        });
    }
    let mut open = disk.open.write().unwrap_or_else(PoisonError::into_inner);
    drop(open.take());
    // From here on an error leaves the process without a store, and the next start with a whole one.
    let exchanged = unlocked(dir).and_then(|()| {
        rename(dir, &old)?;
        rename(&copy, dir)?;
        SledEngine::open(dir)
    });
    match exchanged {
        Ok(fresh) => *open = Some(fresh),
        Err(err) => return Err(StoreError::Io(format!("the compacted store cannot be used: {err}"))),
    }
    drop(open);
    remove(&old)
}

/// Writes all entries as they lie there, sealed, and sees that they are all that was stored.
fn copy_all(sled: &SledEngine, to: &Path, sums: &Sums) -> Result<(), StoreError> {
    std::fs::create_dir(to).map_err(|err| StoreError::folder(to, err))?;
    let (db, trees) = open_database(to)?;
    let mut unflushed = 0;
    for (tree, fresh) in Tree::ALL.iter().zip(&trees) {
        let mut sum = Sum::default();
        for entry in range(sled.tree(*tree), &[], None) {
            let (key, sealed) = entry.map_err(StoreError::io)?;
            sum.add(print(&sealed));
            fresh.insert(key, sealed).map_err(StoreError::io)?;
            unflushed += 1;
            if unflushed >= FLUSHED_AFTER {
                unflushed = 0;
                db.flush().map_err(StoreError::io)?;
            }
        }
        if *tree != Tree::Meta && sum != sums.of(*tree) {
            let what = format!("{} is not what was stored; it is not compacted", tree.name());
            return Err(StoreError::Broken(what));
        }
    }
    db.flush().map_err(StoreError::io)?;
    let file = File::open(to.join("db")).map_err(|err| StoreError::folder(to, err))?;
    super::sync(to, &file)
}

/// Waits until sled has let go of a database that was closed: a thread of it would still write under the old name.
fn unlocked(dir: &Path) -> Result<(), StoreError> {
    let file = File::open(dir.join("db")).map_err(|err| StoreError::folder(dir, err))?;
    let began = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < UNLOCKED_WITHIN => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(err) => return Err(StoreError::folder(dir, err.into())),
        }
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(|err| StoreError::folder(from, err))?;
    let above = to.parent().unwrap_or(Path::new("."));
    let synced = File::open(above).map_err(|err| StoreError::folder(above, err))?.sync_all();
    synced.map_err(|err| StoreError::SyncFailed(err.to_string()))
}

fn remove(dir: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(dir) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(StoreError::folder(dir, err)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Engine, FolderLock, Writes};
    use super::*;

    const CANARY: &[u8] = b"a-canary-that-must-not-stay";

    fn engine(folder: &Path) -> Engine {
        Engine::open(&folder.join("store"), FolderLock::take(folder).unwrap()).unwrap()
    }

    /// Stores changes, each in a group of its own.
    fn store(engine: &Engine, sums: Sums, changes: &[(&[u8], Option<&[u8]>)]) -> Sums {
        changes.iter().fold(sums, |sums, (key, value)| {
            let mut writes = Writes::new();
            writes.entry(Tree::Meta).or_default().insert(b"head".to_vec(), Some(Vec::new()));
            writes.entry(Tree::Bodies).or_default().insert(key.to_vec(), value.map(<[u8]>::to_vec));
            let stored = engine.store(&writes, &sums, 1, false).unwrap();
            engine.sync().unwrap();
            stored.sums
        })
    }

    fn files_with(folder: &Path, text: &[u8]) -> usize {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| {
                if path.is_dir() {
                    return files_with(&path, text);
                }
                let bytes = std::fs::read(&path).unwrap();
                usize::from(bytes.windows(text.len()).any(|window| window == text))
            })
            .sum()
    }

    #[test]
    fn what_was_removed_is_in_no_file_any_more_and_the_rest_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(folder.path());
        let sums =
            store(&engine, Sums::default(), &[(b"a", Some(CANARY)), (b"b", Some(b"stays")), (b"a", None)]);
        assert!(files_with(folder.path(), CANARY) > 0, "sled keeps it, or this proves nothing");
        engine.compact(&sums).unwrap();
        assert_eq!(files_with(folder.path(), CANARY), 0);
        assert_eq!(engine.get(Tree::Bodies, b"b").unwrap().as_deref(), Some(&b"stays"[..]));
        let sums = store(&engine, sums, &[(b"c", Some(b"new"))]);
        engine.compact(&sums).unwrap();
        drop(engine);
        let again = self::engine(folder.path());
        assert_eq!(again.scan(Tree::Bodies, &[], None, 9).unwrap().len(), 2);
    }

    #[test]
    fn a_store_that_lacks_something_is_not_made_anew_without_it() {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(folder.path());
        let sums = store(&engine, Sums::default(), &[(b"a", Some(b"a")), (b"b", Some(b"b"))]);
        store(&engine, sums.clone(), &[(b"a", None)]);
        assert!(matches!(engine.compact(&sums), Err(StoreError::Broken(_))));
        assert!(!folder.path().join("store.compact").exists());
        assert!(engine.get(Tree::Bodies, b"b").unwrap().is_some());
    }

    #[test]
    fn a_start_finds_a_whole_store_wherever_a_compaction_was_cut_off() {
        for (named, left) in
            [("store", "store.compact"), ("store.old", "store.compact"), ("store", "store.old")]
        {
            let folder = tempfile::tempdir().unwrap();
            let first = engine(folder.path());
            store(&first, Sums::default(), &[(b"a", Some(b"a"))]);
            drop(first);
            unlocked(&folder.path().join("store")).unwrap();
            std::fs::rename(folder.path().join("store"), folder.path().join(named)).unwrap_or_default();
            std::fs::create_dir(folder.path().join(left)).unwrap();
            let again = engine(folder.path());
            assert!(again.get(Tree::Bodies, b"a").unwrap().is_some(), "{named} {left}");
            let mut names: Vec<_> =
                std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["LOCK", "store"]);
        }
    }
}
