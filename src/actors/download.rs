//! Brings an export home from its address, into a file that is removed when it was read.

use std::path::{Path, PathBuf};

use tokio::io::AsyncWriteExt as _;

use super::Shared;
use super::importer::Remote;
use crate::domain::id::CompanyId;
use crate::domain::source::{SourceId, Validators};
use crate::fetch::{FetchError, Fetched, Get, Limits, Version};

/// Why an export did not come home.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// It could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The disk fell below its floor.
    #[error("the disk has no room for it")]
    NoRoom,
    /// The file could not be written.
    #[error("it cannot be written to {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// An export at home; the file goes with the value.
pub struct Downloaded {
    /// Where it lies.
    pub path: PathBuf,
    /// The state that it is of.
    pub validators: Validators,
}

impl Drop for Downloaded {
    fn drop(&mut self) {
        // What is left over is overwritten by the next reading, or removed with the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Where a source's export lies while it is read. Two companies may have the same address, and other logins there.
fn path_of(shared: &Shared, company: &CompanyId, source: SourceId) -> PathBuf {
    shared.spool.join(format!("export-{company}-{source}.part"))
}

/// Removes what a kill left over: before anything is read, and also of sources that are not configured any more, whose
/// companies may be erased by now.
pub fn clean(spool: &Path) {
    if let Err(err) = remove(spool, |_| true) {
        tracing::warn!(path = %spool.display(), error = %err, "an export that a kill left in the spool stays");
    }
}

/// Removes what lies there of a company's exports, of which none is being read.
pub fn remove_of(spool: &Path, company: &CompanyId) -> std::io::Result<()> {
    remove(spool, |of| of == company.as_str())
}

fn remove(spool: &Path, is_wanted: impl Fn(&str) -> bool) -> std::io::Result<()> {
    let company_of = |path: &Path| {
        let name = path.file_name()?.to_str()?.strip_prefix("export-")?.strip_suffix(".part")?;
        Some(name.rsplit_once('-')?.0.to_owned())
    };
    for entry in std::fs::read_dir(spool)? {
        let path = entry?.path();
        if company_of(&path).is_some_and(|company| is_wanted(&company)) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Fetches the export, unless it is as `have` says.
pub async fn download(
    shared: &Shared,
    company: &CompanyId,
    source: SourceId,
    remote: &Remote,
    have: &Validators,
) -> Result<Option<Downloaded>, DownloadError> {
    let have = version(have);
    let limits = Limits { timeout: shared.fetching.timeout, bytes: shared.fetching.export_bytes_max };
    let get = Get { url: &remote.url, login: remote.login.as_ref(), have: &have, limits };
    let mut body = match shared.fetcher.get(get).await? {
        Fetched::NotModified => return Ok(None),
        Fetched::Body(body) => body,
    };
    let home = Downloaded { path: path_of(shared, company, source), validators: validators(&body.version) };
    let room = shared.disk.room_for(body.length().unwrap_or(0)).await;
    let written = tokio::select! {
        written = write(&mut body, &home.path) => written,
        () = shared.disk.until_low() => Err(DownloadError::NoRoom),
    };
    drop(room);
    written.map(|()| Some(home))
}

async fn write(body: &mut crate::fetch::Body, path: &Path) -> Result<(), DownloadError> {
    let local = |source| DownloadError::File { path: path.display().to_string(), source };
    let mut file = tokio::fs::File::create(path).await.map_err(local)?;
    while let Some(chunk) = body.chunk().await? {
        file.write_all(&chunk).await.map_err(local)?;
    }
    // No sync: after a crash it is fetched anew.
    file.flush().await.map_err(local)
}

/// As the client takes them.
pub fn version(of: &Validators) -> Version {
    Version { etag: of.etag.clone(), last_modified: of.last_modified.clone() }
}

/// As the store keeps them.
pub fn validators(of: &Version) -> Validators {
    Validators { etag: of.etag.clone(), last_modified: of.last_modified.clone() }
}
