//! The anchor: a small file outside the database that says how far the store was at the least.
//!
//! sled opens a damaged or older file as if nothing were missing, and a store that went back in time would buy
//! everything again. So the last anchored revision is written to `ANCHOR`, and the store holds the same line under
//! `anchor/<revision>`. A store that does not have the line of the file, or is behind it, is not the one that was
//! last acknowledged. Being ahead is normal: a kill between the two writes leaves it so.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::committer::Head;
use super::engine::Engine;
use super::keys::Tree;

const FILE: &str = "ANCHOR";

/// Where the anchor is, and which revision it says.
pub struct Anchor {
    folder: PathBuf,
    revision: u64,
    /// The one that the file named before; its entry is of no use any more.
    before: Option<u64>,
}

impl Anchor {
    /// Checks the opened store against the anchor in `folder`; `fresh` says that there was no store before.
    pub fn check(folder: &Path, engine: &Engine, head: &Head, fresh: bool) -> Result<Self, StoreError> {
        let path = folder.join(FILE);
        let line = match std::fs::read(&path) {
            Ok(line) => line,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
                // A kill may come between the making of the store and that of its anchor; then it is still empty.
                if !fresh && head.revision > 0 {
                    return Err(corrupt(folder, "the file ANCHOR that belongs to it is missing"));
                }
                return Self::write(folder, &Head::default());
            }
            Err(err) => return Err(StoreError::folder(&path, err)),
        };
        let revision = parse(&line).ok_or_else(|| corrupt(folder, "its ANCHOR cannot be read"))?;
        let known = revision == 0 || engine.get(Tree::Meta, &key(revision))?.as_deref() == Some(&line);
        if head.revision < revision || !known {
            let what = format!(
                "it is at revision {}, but revision {revision} was acknowledged: something of it is missing",
                head.revision
            );
            return Err(corrupt(folder, &what));
        }
        Ok(Self { folder: folder.to_owned(), revision, before: None })
    }

    /// The revision that the file names.
    pub const fn revision(&self) -> u64 {
        self.revision
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
        *self = Self { before: Some(before), ..Self::write(&self.folder, head)? };
        Ok(())
    }

    fn write(folder: &Path, head: &Head) -> Result<Self, StoreError> {
        let (path, part) = (folder.join(FILE), folder.join("ANCHOR.part"));
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(&line(head))?;
            crash_point!("anchor.after_tmp");
            file.sync_all()?;
            crash_point!("anchor.after_fsync");
            std::fs::rename(&part, &path)?;
            crash_point!("anchor.after_rename");
            File::open(folder)?.sync_all()
        };
        write().map_err(|err: std::io::Error| StoreError::folder(&path, err))?;
        Ok(Self { folder: folder.to_owned(), revision: head.revision, before: None })
    }
}

fn corrupt(folder: &Path, what: &str) -> StoreError {
    StoreError::Corrupt { path: folder.display().to_string(), what: what.to_owned() }
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
