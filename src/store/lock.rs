//! The data folder's lock: one process at a time, and a second one is told which.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::StoreError;

/// Held for as long as the folder is used; the system lets go of it when the process ends, however it ends.
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Makes the folder if it is missing, readable by its owner only, and locks it.
    pub fn take(folder: &Path) -> Result<Self, StoreError> {
        make(folder).map_err(|err| StoreError::folder(folder, err))?;
        let path = folder.join("LOCK");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|err| StoreError::folder(&path, err))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Who holds it is a courtesy; not knowing changes nothing.
                let _ = (&file).take(20).read_to_string(&mut pid);
                let holder = match pid.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(StoreError::InUse { path: folder.display().to_string(), holder });
            }
            Err(err) => return Err(StoreError::folder(&path, err.into())),
        }
        let note = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        match note(&mut file) {
            // The lock holds without the note; a full disk must not keep the store from being opened.
            Err(err) if err.kind() != std::io::ErrorKind::StorageFull => {
                return Err(StoreError::folder(&path, err));
            }
            Ok(()) | Err(_) => {}
        }
        Ok(Self { _file: file })
    }
}

/// Makes the folder and those above it that are missing. The name of each is synced in the folder that it lies in:
/// else a power cut could take the whole store with it, however well that itself is synced.
fn make(folder: &Path) -> std::io::Result<()> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let made: Vec<&Path> = folder.ancestors().take_while(is_missing).collect();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    for path in made {
        let above = match path.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            Some(_) | None => Path::new("."),
        };
        File::open(above)?.sync_all()?;
    }
    Ok(())
}
