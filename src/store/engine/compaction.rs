//! The database copied into a fresh one, which takes its place: sled keeps pages of what was removed for as long as it
//! likes, and an erasure is not done before they are gone.
//!
//! Of a kill at any moment one of these is left, each with a whole store in it:
//!
//! | `store` | `store.compact` | `store.old` | what a start does |
//! | --- | --- | --- | --- |
//! | there | half, whole or the old one | – | removes it; the erasure asks for another copy |
//! | – | whole | there | gives the old one its name back, removes the copy |
//! | there | – | there | sees that the copy is whole, and removes the old one; else puts the copy aside as `store.bad` and gives the old one its name back |
//!
//! Nothing is written while `store.old` is there, so that either of the two is as good as the other.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Instant;

use rustix::fs::{FlockOperation, flock};

use super::{OnDisk, SledEngine, StoreError, Sums, UNLOCKED_WITHIN, open_database, print, range, unseal};
use crate::store::anchor::Anchor;
use crate::store::committer::Head;
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

/// A copy that turned out not to be whole after it had taken the store's place.
fn bad_of(dir: &Path) -> PathBuf {
    dir.with_extension("bad")
}

/// Puts in order what a kill left. Comes before anything else looks at the folder.
pub(super) fn recover(dir: &Path) -> Result<(), StoreError> {
    let (copy, old) = (copy_of(dir), old_of(dir));
    remove(&copy)?;
    if !old.exists() {
        return Ok(());
    }
    if !dir.exists() {
        return rename(&old, dir);
    }
    let why = match proven(dir) {
        Ok(()) => return discard(&old, &copy),
        // The disk fails, or is full, or another process has it: that says nothing about the store.
        Err(err) if err.is_fatal() || matches!(err, StoreError::InUse { .. }) => return Err(err),
        Err(err) => err,
    };
    if let Err(old_why) = proven(&old) {
        tracing::error!(error = %why, old = %old_why, "neither the compacted store nor the one of before is whole: {why}; {old_why}. Both stay");
        return Ok(());
    }
    let bad = bad_of(dir);
    tracing::error!(error = %why, "the compacted store is not whole ({why}): it is put aside as {}, and the one of before takes its place again", bad.display());
    remove(&bad)?;
    rename(dir, &bad)?;
    rename(&old, dir)
}

/// Sees that a store opens, has what its sums say, and what its anchor says.
fn proven(dir: &Path) -> Result<(), StoreError> {
    let sled = SledEngine::open(dir)?;
    let seen = is_whole(&sled, dir);
    drop(sled);
    seen.and_then(|()| unlocked(dir))
}

fn is_whole(sled: &SledEngine, dir: &Path) -> Result<(), StoreError> {
    let broken = |what: String| StoreError::Corrupt { path: dir.display().to_string(), what };
    let meta = |key: &[u8]| -> Result<Option<Vec<u8>>, StoreError> {
        let sealed = sled.tree(Tree::Meta).get(key).map_err(StoreError::io)?;
        sealed.map(|sealed| Ok(unseal(Tree::Meta, key, &sealed)?.to_vec())).transpose()
    };
    let head = Head::read(meta)?;
    let (revision, sums) = Sums::read(meta)?;
    if revision != head.revision {
        return Err(broken(format!("its sums are of revision {revision}, not {}", head.revision)));
    }
    for tree in Tree::ALL.iter().filter(|tree| **tree != Tree::Meta) {
        if sum_of(sled, *tree)? != sums.of(*tree) {
            return Err(broken(format!("{} is not what was stored", tree.name())));
        }
    }
    let folder = dir.parent().unwrap_or(Path::new("."));
    match Anchor::check(folder, meta, &head)?.1 {
        Some(why) => Err(broken(why)),
        None => Ok(()),
    }
}

/// What a tree has, each value looked at.
fn sum_of(sled: &SledEngine, tree: Tree) -> Result<Sum, StoreError> {
    let mut sum = Sum::default();
    for entry in range(sled.tree(tree), &[], None) {
        let (key, sealed) = entry.map_err(StoreError::io)?;
        unseal(tree, &key, &sealed)?;
        sum.add(print(&sealed));
    }
    Ok(sum)
}

/// Removes a store that is not wanted any more, under a name that is never opened: half of it says nothing.
fn discard(old: &Path, copy: &Path) -> Result<(), StoreError> {
    rename(old, copy)?;
    remove(copy)
}

/// Copies, and exchanges the two. Readers go on meanwhile, but for the exchange itself. [`StoreError::Broken`] and
/// [`StoreError::Damaged`] speak of the store itself, all others of the copy.
pub(super) fn compact(disk: &OnDisk, sums: &Sums) -> Result<(), StoreError> {
    let dir = &disk.dir;
    let (copy, old) = (copy_of(dir), old_of(dir));
    may_be_renamed(dir)?;
    if old.exists() {
        let why = "it is left of a compaction, and this store was not whole after that; remove the one that is not \
                   needed";
        return Err(StoreError::Folder { path: old.display().to_string(), why: why.to_owned() });
    }
    remove(&copy)?;
    crash_point!("compact.before_copy");
    let copied = disk.with(|sled| copy_all(sled, &copy, sums)).map_err(not_fatal(&copy));
    let checked = copied.and_then(|written| check_copy(&copy, &written).map_err(of_copy(&copy)));
    if let Err(err) = checked {
        // The store is as it was; half a copy only takes room, and the next start removes it, too.
        if let Err(err) = remove(&copy) {
            tracing::warn!(error = %err, "half a copy of the store stays");
        }
        return Err(err);
    }
    crash_point!("compact.after_copy");
    let mut open = disk.open.write().unwrap_or_else(PoisonError::into_inner);
    drop(open.take());
    // From here on an error leaves the process without a store, and the next start with a whole one.
    let lost = |err| StoreError::Io(format!("the compacted store cannot be used: {err}"));
    unlocked(dir).map_err(lost)?;
    if let Err(err) = rename(dir, &old) {
        if old.exists() {
            return Err(lost(err));
        }
        *open = Some(SledEngine::open(dir).map_err(lost)?);
        return Err(not_fatal(dir)(err));
    }
    crash_point!("compact.after_old_away");
    rename(&copy, dir).map_err(lost)?;
    crash_point!("compact.after_new_in_place");
    let fresh = SledEngine::open(dir).map_err(lost)?;
    crash_point!("compact.after_new_open");
    // Before anything is written to the new one: from now on the old one must never take its place again.
    rename(&old, &copy).map_err(lost)?;
    *open = Some(fresh);
    drop(open);
    crash_point!("compact.after_old_renamed");
    remove(&copy)?;
    crash_point!("compact.after_old_gone");
    // What is erased may lie in there, too.
    remove(&bad_of(dir))
}

/// A failure of the copy says nothing about the store itself, which was only read.
fn not_fatal(path: &Path) -> impl Fn(StoreError) -> StoreError {
    move |err| match err.is_fatal() {
        true => StoreError::Folder { path: path.display().to_string(), why: err.to_string() },
        false => err,
    }
}

fn of_copy(copy: &Path) -> impl Fn(StoreError) -> StoreError {
    move |err| StoreError::Folder { path: copy.display().to_string(), why: err.to_string() }
}

/// Says no where another folder cannot take this one's name.
fn may_be_renamed(dir: &Path) -> Result<(), StoreError> {
    let failed = |err| StoreError::folder(dir, err);
    let refused = |what: &str| {
        let why = format!(
            "it is {what}, so that a compacted copy cannot take its place; make the data folder itself that ([data] path)"
        );
        Err(StoreError::Folder { path: dir.display().to_string(), why })
    };
    let own = std::fs::symlink_metadata(dir).map_err(failed)?;
    if own.is_symlink() {
        return refused("a symbolic link");
    }
    let above = std::fs::metadata(dir.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    if own.dev() != above.dev() {
        return refused("a mount point");
    }
    Ok(())
}

/// Writes all entries as they lie there, sealed, and sees that they are all that was stored. Gives what the copy must
/// have.
fn copy_all(sled: &SledEngine, to: &Path, sums: &Sums) -> Result<Sums, StoreError> {
    std::fs::create_dir(to).map_err(|err| StoreError::folder(to, err))?;
    let (db, trees) = open_database(to).map_err(of_copy(to))?;
    let mut written = sums.clone();
    let mut unflushed = 0;
    for (tree, fresh) in Tree::ALL.iter().zip(&trees) {
        let mut sum = Sum::default();
        for entry in range(sled.tree(*tree), &[], None) {
            let (key, sealed) = entry.map_err(StoreError::io)?;
            unseal(*tree, &key, &sealed)?;
            sum.add(print(&sealed));
            fresh.insert(key, sealed).map_err(StoreError::io).map_err(of_copy(to))?;
            unflushed += 1;
            if unflushed >= FLUSHED_AFTER {
                unflushed = 0;
                db.flush().map_err(StoreError::io).map_err(of_copy(to))?;
            }
        }
        if *tree == Tree::Meta {
            // It is in no sums: it holds them.
            *written.of_mut(Tree::Meta) = sum;
        } else if sum != sums.of(*tree) {
            let what = format!("{} is not what was stored; it is not compacted", tree.name());
            return Err(StoreError::Broken(what));
        }
    }
    db.flush().map_err(StoreError::io).map_err(of_copy(to))?;
    let file = File::open(to.join("db")).map_err(|err| StoreError::folder(to, err))?;
    super::sync(to, &file)?;
    Ok(written)
}

/// Opens the copy as the next start would, and reads everything back.
fn check_copy(copy: &Path, written: &Sums) -> Result<(), StoreError> {
    unlocked(copy)?;
    let sled = SledEngine::open(copy)?;
    for tree in Tree::ALL {
        if sum_of(&sled, *tree)? != written.of(*tree) {
            return Err(StoreError::Broken(format!("{} is not read back as it was written", tree.name())));
        }
    }
    drop(sled);
    unlocked(copy)
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

    const HEAD: Head = Head { revision: 1, chain: [1; 32] };

    fn anchor() -> Vec<u8> {
        format!("1 {}\n", "01".repeat(32)).into_bytes()
    }

    fn engine(folder: &Path) -> Engine {
        std::fs::write(folder.join("ANCHOR"), anchor()).unwrap();
        Engine::open(&folder.join("store"), FolderLock::take(folder).unwrap()).unwrap()
    }

    /// Stores changes, each in a group of its own.
    fn store(engine: &Engine, sums: Sums, changes: &[(&[u8], Option<&[u8]>)]) -> Sums {
        changes.iter().fold(sums, |sums, (key, value)| {
            let mut writes = Writes::new();
            let head = crate::store::codec::encode(&HEAD).unwrap();
            let meta = writes.entry(Tree::Meta).or_default();
            meta.insert(b"head".to_vec(), Some(head));
            meta.insert(b"anchor/00000000000000000001".to_vec(), Some(anchor()));
            writes.entry(Tree::Bodies).or_default().insert(key.to_vec(), value.map(<[u8]>::to_vec));
            let stored = engine.store(&writes, &sums, 1, false).unwrap();
            engine.sync().unwrap();
            stored.sums
        })
    }

    /// A whole store of this one entry under that name.
    fn store_as(folder: &Path, name: &str, key: &[u8], sums: Sums) {
        let dir = folder.join(name);
        std::fs::write(folder.join("ANCHOR"), anchor()).unwrap();
        let engine = Engine::open(&dir, FolderLock::take(folder).unwrap()).unwrap();
        store(&engine, sums, &[(key, Some(b"value"))]);
        drop(engine);
        unlocked(&dir).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
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
            assert_eq!(names(folder.path()), ["ANCHOR", "LOCK", "store"]);
        }
    }

    /// Sums that the entries of a store do not have.
    fn other_sums() -> Sums {
        let mut sums = Sums::default();
        sums.of_mut(Tree::Bodies).add(print(b"some other value"));
        sums
    }

    #[test]
    fn the_store_of_before_comes_back_where_the_copy_in_its_place_is_not_whole() {
        for (number, sums) in [(0, Sums::default()), (1, Sums::default()), (2, other_sums())] {
            let folder = tempfile::tempdir().unwrap();
            store_as(folder.path(), "before", b"old", Sums::default());
            store_as(folder.path(), "store", b"new", sums);
            std::fs::rename(folder.path().join("before"), folder.path().join("store.old")).unwrap();
            let db = folder.path().join("store/db");
            if number < 2 {
                std::fs::remove_file(&db).unwrap();
            }
            if number == 1 {
                // Now it cannot even be opened.
                std::fs::create_dir(&db).unwrap();
            }
            let again = engine(folder.path());
            assert!(again.get(Tree::Bodies, b"old").unwrap().is_some(), "{number}");
            assert_eq!(names(folder.path()), ["ANCHOR", "LOCK", "store", "store.bad"], "{number}");
            let sums = Sums::read(|key| again.get(Tree::Meta, key)).unwrap().1;
            again.compact(&sums).unwrap();
            assert_eq!(names(folder.path()), ["ANCHOR", "LOCK", "store"], "{number}");
        }
    }

    #[test]
    fn nothing_is_removed_where_neither_of_the_two_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        store_as(folder.path(), "before", b"old", other_sums());
        store_as(folder.path(), "store", b"new", other_sums());
        std::fs::rename(folder.path().join("before"), folder.path().join("store.old")).unwrap();
        let again = engine(folder.path());
        assert!(again.get(Tree::Bodies, b"new").unwrap().is_some());
        assert_eq!(names(folder.path()), ["ANCHOR", "LOCK", "store", "store.old"]);
        let sums = Sums::read(|key| again.get(Tree::Meta, key)).unwrap().1;
        assert!(matches!(again.compact(&sums), Err(StoreError::Folder { .. })));
        assert_eq!(names(folder.path()), ["ANCHOR", "LOCK", "store", "store.old"]);
    }

    #[test]
    fn a_copy_that_is_not_read_back_as_it_was_written_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(folder.path());
        let sums = store(&engine, Sums::default(), &[(b"a", Some(b"a")), (b"b", Some(b"b"))]);
        let Engine::Sled(disk) = &engine else { panic!("on disk") };
        let copy = folder.path().join("copy");
        for (tree, key) in [(Tree::Bodies, &b"a"[..]), (Tree::Meta, b"head")] {
            remove(&copy).unwrap();
            let written = disk.with(|sled| copy_all(sled, &copy, &sums)).unwrap();
            check_copy(&copy, &written).unwrap();
            let (db, trees) = open_database(&copy).unwrap();
            trees[usize::from(tree as u8)].remove(key).unwrap();
            db.flush().unwrap();
            drop((db, trees));
            let err = check_copy(&copy, &written).unwrap_err().to_string();
            assert!(err.contains(tree.name()), "{err}");
        }
    }

    #[test]
    fn a_store_that_cannot_be_exchanged_says_so_before_it_is_copied_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        store_as(folder.path(), "elsewhere", b"a", Sums::default());
        std::os::unix::fs::symlink("elsewhere", folder.path().join("store")).unwrap();
        let engine = engine(folder.path());
        let sums = Sums::read(|key| engine.get(Tree::Meta, key)).unwrap().1;
        let err = engine.compact(&sums).unwrap_err();
        assert!(!err.is_fatal() && err.to_string().contains("a symbolic link"), "{err}");
        assert!(engine.get(Tree::Bodies, b"a").unwrap().is_some());
    }
}
