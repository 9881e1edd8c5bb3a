//! The state folder: an append-only journal of entries, the ledger, and the bytes of files.
//!
//! An append is one write of whole lines. A kill in the middle leaves a torn last line, which the next start cuts
//! off: what it stood for was never answered. There is no fsync, so that a kill loses nothing but a power cut may.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};

use super::SimulatorError;
use super::world::{BatchRecord, Entry, World};

/// A file of JSON lines that only grows.
#[derive(Debug)]
struct Lines {
    file: File,
    /// Bytes of whole lines; an append that failed half-way is cut back to here.
    len: u64,
    path: PathBuf,
}

impl Lines {
    /// Opens `path`, cuts off a torn last line, and shows every whole line with its number to `each`.
    fn open(
        path: PathBuf,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), SimulatorError>,
    ) -> Result<Self, SimulatorError> {
        let failed = |source| SimulatorError::Disk { path: path.clone(), source };
        let file = OpenOptions::new().create(true).read(true).append(true).open(&path).map_err(failed)?;
        let mut reader = BufReader::new(&file);
        let (mut len, mut number, mut line) = (0, 0, Vec::new());
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(failed)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            number += 1;
            each(number, &line)?;
            len += u64::try_from(read).unwrap_or(0);
        }
        file.set_len(len).map_err(failed)?;
        Ok(Self { file, len, path })
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), SimulatorError> {
        let failed = |source| SimulatorError::Disk { path: self.path.clone(), source };
        // What an earlier failure left behind must not run together with this line.
        if self.file.seek(SeekFrom::End(0)).map_err(failed)? != self.len {
            self.file.set_len(self.len).map_err(failed)?;
        }
        self.file.write_all(lines).map_err(failed)?;
        self.len += u64::try_from(lines.len()).unwrap_or(0);
        Ok(())
    }
}

/// One JSON value as a line.
pub(super) fn line_of(value: &impl Serialize) -> Vec<u8> {
    // Values of ours have string keys only, which is all that can fail here.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The state folder, held by one process.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    journal: Mutex<Lines>,
    ledger: Mutex<Lines>,
    /// Batches whose run broke off: the ledger says which of their lines ran.
    interrupted: Mutex<HashSet<String>>,
    /// Held until the process ends.
    _lock: File,
}

impl Disk {
    /// Opens or makes the folder and gives the world that its journal describes.
    pub(super) fn open(folder: &Path) -> Result<(Self, World), SimulatorError> {
        for name in ["", "files", "work"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).map_err(|source| SimulatorError::Disk { path, source })?;
        }
        let lock = lock(folder)?;
        let mut world = World::default();
        let path = folder.join("journal.jsonl");
        let journal =
            Lines::open(path.clone(), |line, bytes| {
                let entry: Entry = serde_json::from_slice(bytes)
                    .map_err(|source| SimulatorError::Journal { path: path.clone(), line, source })?;
                world.apply(entry);
                Ok(())
            })?;
        let (mut created, mut interrupted) = (HashSet::new(), HashSet::new());
        let path = folder.join("ledger.jsonl");
        let ledger =
            Lines::open(path.clone(), |line, bytes| {
                let value: Value = serde_json::from_slice(bytes)
                    .map_err(|source| SimulatorError::Journal { path: path.clone(), line, source })?;
                let id = value["batch"].as_str().unwrap_or_default();
                match value["event"].as_str() {
                    Some("batch_created") => {
                        created.insert(id.to_owned());
                    }
                    Some("line_run") if world.batch(id).is_some_and(|batch| batch.results.is_none()) => {
                        if !interrupted.contains(id) {
                            interrupted.insert(id.to_owned());
                        }
                    }
                    Some(_) | None => {}
                }
                Ok(())
            })?;
        let disk = Self {
            folder: folder.to_owned(),
            journal: Mutex::new(journal),
            ledger: Mutex::new(ledger),
            interrupted: Mutex::new(interrupted),
            _lock: lock,
        };
        // A kill between journal and ledger: the batch exists, so the ledger has to say so.
        for batch in world.batches().filter(|batch| !created.contains(&batch.id)) {
            disk.book_created(batch)?;
        }
        disk.sweep(&world)?;
        Ok((disk, world))
    }

    /// Removes the bytes of what never became an object, or no longer is one.
    fn sweep(&self, world: &World) -> Result<(), SimulatorError> {
        let keeps_work = |name: &str| {
            let batch = name.strip_suffix(".jsonl").and_then(|id| world.batch(id));
            batch.is_some_and(|batch| batch.verdict.is_some() && batch.results.is_none())
        };
        for (folder, is_file) in [("files", true), ("work", false)] {
            let path = self.folder.join(folder);
            let failed = |source| SimulatorError::Disk { path: path.clone(), source };
            for entry in fs::read_dir(&path).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let keep = if is_file { world.knows_file(&name) } else { keeps_work(&name) };
                if !keep {
                    fs::remove_file(entry.path()).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// Makes `entry` last. It must be applied to the world right after, under the world's lock.
    pub(super) fn record(&self, entry: &Entry) -> Result<(), SimulatorError> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).append(&line_of(entry))
    }

    /// Appends whole lines to the ledger.
    pub(super) fn book(&self, lines: &[u8]) -> Result<(), SimulatorError> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).append(lines)
    }

    /// Books that a batch was created.
    pub(super) fn book_created(&self, batch: &BatchRecord) -> Result<(), SimulatorError> {
        self.book(&line_of(&json!({
            "event": "batch_created",
            "batch": batch.id,
            "input_file_id": batch.input_file_id,
            "metadata": batch.metadata,
            "at": batch.created_at / 1000,
        })))
    }

    /// Which lines of a batch are in the ledger already, because an earlier run of it broke off.
    pub(super) fn already_ran(&self, batch: &str) -> Result<HashSet<String>, SimulatorError> {
        let is_interrupted = self.interrupted.lock().unwrap_or_else(PoisonError::into_inner).contains(batch);
        let mut ran = HashSet::new();
        if !is_interrupted {
            return Ok(ran);
        }
        let path = self.folder.join("ledger.jsonl");
        let failed = |source| SimulatorError::Disk { path: path.clone(), source };
        // Held so that no half-written line is read.
        let _ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        for line in BufReader::new(File::open(&path).map_err(failed)?).split(b'\n') {
            let Ok(value) = serde_json::from_slice::<Value>(&line.map_err(failed)?) else { continue };
            if value["event"] == "line_run" && value["batch"] == batch {
                ran.extend(value["custom_id"].as_str().map(str::to_owned));
            }
        }
        Ok(ran)
    }

    /// Notes whether a run of this batch is under way, so that a run after a failure looks into the ledger.
    pub(super) fn set_interrupted(&self, batch: &str, interrupted: bool) {
        let mut set = self.interrupted.lock().unwrap_or_else(PoisonError::into_inner);
        if interrupted {
            set.insert(batch.to_owned());
        } else {
            set.remove(batch);
        }
    }

    /// Where a file's bytes are.
    pub(super) fn file_path(&self, id: &str) -> PathBuf {
        self.folder.join("files").join(id)
    }

    /// Where bytes are collected until they become a file; what is left here is removed at the next start.
    pub(super) fn work_path(&self, name: &str) -> PathBuf {
        self.folder.join("work").join(name)
    }

    /// Where the input of a running batch stays although its file is deleted.
    pub(super) fn input_path(&self, batch: &str) -> PathBuf {
        self.work_path(&format!("{batch}.jsonl"))
    }
}

fn lock(folder: &Path) -> Result<File, SimulatorError> {
    let path = folder.join("lock");
    let failed = |source| SimulatorError::Disk { path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(SimulatorError::InUse { folder: folder.to_owned() }),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::batch;
    use super::*;

    #[test]
    fn a_torn_last_line_is_cut_off_and_what_stood_before_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, _) = Disk::open(folder.path()).unwrap();
        disk.record(&Entry::Batch { batch: Box::new(batch()) }).unwrap();
        drop(disk);
        let path = folder.path().join("journal.jsonl");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], br#"{"entry":"file_gone","#].concat()).unwrap();
        let (disk, world) = Disk::open(folder.path()).unwrap();
        assert!(world.batch("batch_1").is_some());
        disk.record(&Entry::CancelRequested { batch: "batch_1".to_owned(), at: 7 }).unwrap();
        drop(disk);
        let (_, world) = Disk::open(folder.path()).unwrap();
        assert_eq!(world.batch("batch_1").unwrap().cancel_requested_at, Some(7));
    }

    #[test]
    fn a_batch_that_a_kill_kept_out_of_the_ledger_is_booked_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, _) = Disk::open(folder.path()).unwrap();
        disk.record(&Entry::Batch { batch: Box::new(batch()) }).unwrap();
        drop(disk);
        drop(Disk::open(folder.path()).unwrap());
        drop(Disk::open(folder.path()).unwrap());
        let ledger = fs::read_to_string(folder.path().join("ledger.jsonl")).unwrap();
        assert_eq!(ledger.matches("batch_created").count(), 1, "{ledger}");
    }

    #[test]
    fn the_bytes_of_an_upload_that_was_cut_off_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, _) = Disk::open(folder.path()).unwrap();
        fs::write(disk.work_path("upload-1"), "half").unwrap();
        fs::write(disk.file_path("file-1"), "unknown").unwrap();
        let (upload, file) = (disk.work_path("upload-1"), disk.file_path("file-1"));
        drop(disk);
        drop(Disk::open(folder.path()).unwrap());
        assert!(!upload.exists() && !file.exists());
    }

    #[test]
    fn two_processes_cannot_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let _held = Disk::open(folder.path()).unwrap();
        assert!(matches!(Disk::open(folder.path()), Err(SimulatorError::InUse { .. })));
    }
}
