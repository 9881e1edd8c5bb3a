//! The anchor: a small file outside the database that says how far the store was at the least.
//!
//! sled opens a damaged or older file as if nothing were missing, and a store that went back in time would buy
//! everything again. So the last anchored revision is written to `ANCHOR`, and the store holds the same line under
//! `anchor/<revision>`. A store that does not have the line of the file, or is behind it, is not the one that was
//! last acknowledged. Being ahead is normal: a kill between the two writes leaves it so.
//!
//! A store that cannot be believed is in *doubt*. That is written to `DOUBT`, beside the anchor and outside the
//! database, so that it outlives every restart, and the anchor stays where it is until an operator accepts the store.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::committer::Head;
use crate::domain::id::Timestamp;

const FILE: &str = "ANCHOR";
const DOUBT: &str = "DOUBT";

/// Where the anchor is, and which revision it says.
pub struct Anchor {
    folder: PathBuf,
    /// None where the file cannot be read.
    revision: Option<u64>,
    /// The one that the file named before; its entry is of no use any more.
    before: Option<u64>,
}

impl Anchor {
    /// Checks the opened store, whose `meta` is this, against the anchor in `folder`; says why it cannot be believed, if
    /// so.
    pub fn check(
        folder: &Path,
        meta: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError>,
        head: &Head,
    ) -> Result<(Self, Option<String>), StoreError> {
        let path = folder.join(FILE);
        let unknown = Self { folder: folder.to_owned(), revision: None, before: None };
        let line = match std::fs::read(&path) {
            Ok(line) => line,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
                // A kill may come between the making of the store and that of its anchor; then it is still empty.
                if head.revision > 0 {
                    return Ok((unknown, Some("the file ANCHOR that belongs to it is missing".to_owned())));
                }
                return Ok((Self::write(folder, &Head::default())?, None));
            }
            Err(err) => return Err(StoreError::folder(&path, err)),
        };
        let revision = parse(&line);
        if head.revision == 0 && revision != Some(0) {
            // Nothing is left to read or to reconcile with: this is no store in doubt but none at all.
            let said = revision.map_or("something".to_owned(), |revision| format!("revision {revision}"));
            let what = format!("it is empty, but {said} was acknowledged by its ANCHOR");
            return Err(StoreError::Corrupt { path: folder.display().to_string(), what });
        }
        let Some(revision) = revision else {
            return Ok((unknown, Some("the file ANCHOR that belongs to it cannot be read".to_owned())));
        };
        let known = revision == 0 || meta(&key(revision))?.as_deref() == Some(&line);
        let anchor = Self { revision: Some(revision), ..unknown };
        if head.revision < revision || !known {
            let why = format!(
                "it is at revision {}, but ANCHOR says that revision {revision} was acknowledged, and the store does \
                 not have that: something of it is missing",
                head.revision
            );
            return Ok((anchor, Some(why)));
        }
        Ok((anchor, None))
    }

    /// The revision that the file names.
    pub const fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// When the file was written, as far as the file system says.
    pub fn written_at(&self) -> Option<Timestamp> {
        let changed = std::fs::metadata(self.folder.join(FILE)).ok()?.modified().ok()?;
        let since = changed.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(Timestamp::from_millis(i64::try_from(since.as_millis()).ok()?))
    }

    /// The entries that a group needs so that it can be anchored once it is synced.
    pub fn entries(&self, head: &Head) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
        // The entry of the anchor in the file stays until the file names the new one.
        let old = self.before.map(|revision| (key(revision), None));
        [(key(head.revision), Some(line(head)))].into_iter().chain(old)
    }

    /// Names a synced revision in the file.
    pub fn advance(&mut self, head: &Head) -> Result<(), StoreError> {
        let before = self.revision;
        *self = Self { before, ..Self::write(&self.folder, head)? };
        Ok(())
    }

    fn write(folder: &Path, head: &Head) -> Result<Self, StoreError> {
        replace(folder, FILE, &line(head))?;
        Ok(Self { folder: folder.to_owned(), revision: Some(head.revision), before: None })
    }

    /// The doubt that was written down and not lifted since.
    pub fn doubt(&self) -> Result<Option<String>, StoreError> {
        let path = self.folder.join(DOUBT);
        match std::fs::read(&path) {
            Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim().to_owned())),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(StoreError::folder(&path, err)),
        }
    }

    /// Writes a doubt down, in place of the one before.
    pub fn write_doubt(&self, why: &str) -> Result<(), StoreError> {
        replace(&self.folder, DOUBT, format!("{why}\n").as_bytes())
    }

    /// Lifts the doubt.
    pub fn lift_doubt(&self) -> Result<(), StoreError> {
        let path = self.folder.join(DOUBT);
        let lift = || match std::fs::remove_file(&path) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(err),
            Ok(()) => File::open(&self.folder)?.sync_all(),
        };
        lift().map_err(|err| StoreError::folder(&path, err))
    }
}

/// Replaces a file so that after a kill or a power cut it is the old one or the new one.
fn replace(folder: &Path, name: &str, text: &[u8]) -> Result<(), StoreError> {
    let (path, part) = (folder.join(name), folder.join(format!("{name}.part")));
    // What the disk has after that is not known any more.
    let synced = |file: &File| file.sync_all().map_err(|err| StoreError::SyncFailed(err.to_string()));
    let failed = |err| StoreError::folder(&path, err);
    let mut file = File::create(&part).map_err(failed)?;
    file.write_all(text).map_err(failed)?;
    crash_point!("anchor.after_tmp");
    synced(&file)?;
    crash_point!("anchor.after_fsync");
    std::fs::rename(&part, &path).map_err(failed)?;
    crash_point!("anchor.after_rename");
    synced(&File::open(folder).map_err(failed)?)
}

fn key(revision: u64) -> Vec<u8> {
    format!("anchor/{revision:020}").into_bytes()
}

fn line(head: &Head) -> Vec<u8> {
    use std::fmt::Write as _;
    let mut line = format!("{} ", head.revision);
    for byte in head.chain {
        // Writing to a String cannot fail.
        let _ = write!(line, "{byte:02x}");
    }
    line.push('\n');
    line.into_bytes()
}

fn parse(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    let (revision, chain) = text.strip_suffix('\n')?.split_once(' ')?;
    (chain.len() == 64).then(|| revision.parse().ok())?
}
