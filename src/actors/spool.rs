//! Files of the spool: written whole or not at all, and each with its sum beside it, so that a copy that was cut or
//! altered since is noticed before anything is done with it.
//!
//! The sum is written and synced before the file gets its name: a file without one comes from before there were sums.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::disk::sync_failed;

/// What a file is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// Length and CRC-32C: for what was checked line by line when it was written.
    Crc { bytes: u64, crc: u32 },
    /// Length and SHA-256: for what came from elsewhere.
    Sha { bytes: u64, sha256: [u8; 32] },
}

impl Sum {
    fn line(&self) -> String {
        match self {
            Self::Crc { bytes, crc } => format!("crc32c {bytes} {crc:08x}\n"),
            Self::Sha { bytes, sha256 } => format!("sha256 {bytes} {}\n", hex(sha256)),
        }
    }
}

/// How a file looks from outside; another one has been written since if this changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    len: u64,
    inode: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// The file as it is; none if there is none.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::metadata(path) {
            Ok(file) => Ok(Some(Self {
                len: file.len(),
                inode: file.ino(),
                modified: (file.mtime(), file.mtime_nsec()),
            })),
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Its length.
    pub const fn len(&self) -> u64 {
        self.len
    }
}

/// All names that a file of the spool may have left behind.
pub fn names(path: &Path) -> [PathBuf; 7] {
    let with = |end: &str| path.with_extension(end);
    // The data goes first: a sum without its file is nothing, a file without its sum is less than one.
    [
        path.to_owned(),
        with("part"),
        with("jsonl.part"),
        with("new"),
        with("new.part"),
        with("sum.part"),
        with("sum"),
    ]
}

/// Where a file is put until it has its sum.
pub fn unsealed(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Writes a file anew with its sum, and gives it its name when all of it is synced.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let part = unsealed(path);
    let file = io::BufWriter::with_capacity(1 << 20, File::create(&part)?);
    let mut summed = Summed { file, bytes: 0, crc: 0 };
    fill(&mut summed)?;
    let Summed { file, bytes, crc } = summed;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    crash_point!("file.after_tmp");
    file.sync_all().map_err(sync_failed)?;
    crash_point!("file.after_fsync");
    seal(path, Sum::Crc { bytes, crc })
}

/// Gives what lies at [`unsealed`] its name, after its sum.
pub fn seal(path: &Path, sum: Sum) -> io::Result<()> {
    let (name, part) = (path.with_extension("sum"), path.with_extension("sum.part"));
    let mut file = File::create(&part)?;
    file.write_all(sum.line().as_bytes())?;
    file.sync_all().map_err(sync_failed)?;
    std::fs::rename(&part, &name)?;
    std::fs::rename(unsealed(path), path)?;
    crash_point!("file.after_rename");
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all().map_err(sync_failed)
}

/// Reads the file and compares it with its sum; none if it is not there or not what was written.
pub fn check(path: &Path) -> io::Result<Option<Stamp>> {
    let Some(stamp) = Stamp::of(path)? else { return Ok(None) };
    let wanted = match std::fs::read_to_string(path.with_extension("sum")) {
        Ok(line) => line,
        Err(err) if err.kind() == ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), "a spool file has no sum beside it; it is taken as it is");
            return Ok(Some(stamp));
        }
        // No text at all: nothing that we wrote.
        Err(err) if err.kind() == ErrorKind::InvalidData => return Ok(None),
        Err(err) => return Err(err),
    };
    let found = if wanted.starts_with("crc32c ") { crc_of(path)? } else { sha_of(path)? };
    if found.line() == wanted {
        return Ok(Some(stamp));
    }
    tracing::error!(path = %path.display(), "a spool file is not what was written: it was cut or altered since");
    Ok(None)
}

struct Summed {
    file: io::BufWriter<File>,
    bytes: u64,
    crc: u32,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        self.crc = crc32c::crc32c_append(self.crc, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn crc_of(path: &Path) -> io::Result<Sum> {
    let (mut bytes, mut crc) = (0, 0);
    read(path, |piece| {
        bytes += piece.len() as u64;
        crc = crc32c::crc32c_append(crc, piece);
    })?;
    Ok(Sum::Crc { bytes, crc })
}

fn sha_of(path: &Path) -> io::Result<Sum> {
    let (mut bytes, mut hash) = (0, Sha256::new());
    read(path, |piece| {
        bytes += piece.len() as u64;
        hash.update(piece);
    })?;
    Ok(Sum::Sha { bytes, sha256: hash.finalize().into() })
}

fn read(path: &Path, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => each(&buffer[..read]),
            Err(err) if err.kind() == ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(path: &Path, text: &str) {
        std::fs::write(unsealed(path), text).unwrap();
        let sha256 = Sha256::digest(text).into();
        seal(path, Sum::Sha { bytes: text.len() as u64, sha256 }).unwrap();
    }

    #[test]
    fn a_file_that_was_cut_altered_or_removed_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a-input.jsonl");
        let whole = "one\ntwo\n";
        for make in
            [sealed, |path: &Path, text: &str| write(path, |file| file.write_all(text.as_bytes())).unwrap()]
        {
            make(&path, whole);
            let stamp = check(&path).unwrap().unwrap();
            assert_eq!((stamp.len(), Stamp::of(&path).unwrap()), (8, Some(stamp)));
            for wrong in ["", "one\n", "one\ntwp\n", "one\ntwo\n\n"] {
                std::fs::write(&path, wrong).unwrap();
                assert_eq!(check(&path).unwrap(), None, "{wrong:?}");
            }
            make(&path, whole);
            std::fs::write(path.with_extension("sum"), [0xff, 0]).unwrap();
            assert_eq!(check(&path).unwrap(), None);
            std::fs::remove_file(path.with_extension("sum")).unwrap();
            assert!(check(&path).unwrap().is_some(), "from before there were sums");
            std::fs::remove_file(&path).unwrap();
            assert_eq!(check(&path).unwrap(), None);
        }
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 0, "nothing temporary is left");
    }
}
