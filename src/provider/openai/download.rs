//! Brings a file home: under a temporary name, synced, and only then under its own.

use std::io;
use std::path::{Path, PathBuf};

use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::{Method, Response, Url};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use super::OpenAi;
use super::exchange::{Answer, Call, Repeat, lost, read_answer};
use crate::clock::within;
use crate::disk::sync_failed;
use crate::provider::{Downloaded, ProviderError};

/// Method and path pattern.
pub(super) const CALL: &str = "GET /files/{id}/content";
const REDIRECTS_MAX: u32 = 5;

/// What came of asking for the content.
enum Opened {
    /// It comes.
    Content(Response),
    /// Something else came.
    Answer(Answer),
}

impl OpenAi {
    /// Downloads what is at `url`, a resource of ours, into the file `to`.
    pub(super) async fn download(&self, url: Url, to: &Path) -> Result<Downloaded, ProviderError> {
        let response = self.open_content(url).await?;
        let mut name = to.as_os_str().to_owned();
        name.push(".part");
        let part = PathBuf::from(name);
        let local = |source| ProviderError::Local { call: CALL, path: to.display().to_string(), source };
        let stored = match self.store(response, &part).await {
            Ok(downloaded) => keep(&part, to).await.map(|()| downloaded).map_err(local),
            Err(error) => Err(error),
        };
        if stored.is_err() {
            // Best effort: what is left over is overwritten by the next try.
            let _ = tokio::fs::remove_file(&part).await;
        }
        stored
    }

    /// Follows redirects by hand, so that the key goes to no other origin.
    async fn open_content(&self, mut url: Url) -> Result<Response, ProviderError> {
        for _ in 0..=REDIRECTS_MAX {
            let answer = match self.open(&url).await? {
                Opened::Content(response) => return Ok(response),
                Opened::Answer(answer) => answer,
            };
            let location = answer.headers.get(LOCATION).and_then(|location| location.to_str().ok());
            let Some(location) =
                location.filter(|_| matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308))
            else {
                return Err(self.not_content(&url, &answer));
            };
            let next = url.join(location).ok().filter(|next| is_allowed(&url, next));
            let Some(next) = next else {
                return Err(uncertain("a redirect that is not followed"));
            };
            url = next;
        }
        Err(uncertain("too many redirects"))
    }

    /// What another origin refuses says nothing about our key or our file.
    fn not_content(&self, url: &Url, answer: &Answer) -> ProviderError {
        if url.origin() == self.base.origin() {
            return self.refused(CALL, answer);
        }
        uncertain(&format!("the place that it was redirected to answered {}", answer.status.as_u16()))
    }

    /// Asks for the content, and again on passing faults. Once it comes, nothing is repeated here.
    async fn open(&self, url: &Url) -> Result<Opened, ProviderError> {
        let call = Call { name: CALL, cap: 0, repeat: Repeat::Safe };
        let mut repeats = 0;
        loop {
            let tried = self.open_once(url).await;
            let pause = match &tried {
                Ok(Opened::Content(_)) => None,
                Ok(Opened::Answer(answer)) => self.pause(&call, Ok(answer), repeats),
                Err(error) => self.pause(&call, Err(error), repeats),
            };
            let Some(pause) = pause else { return tried };
            self.clock.sleep(pause).await;
            repeats += 1;
        }
    }

    async fn open_once(&self, url: &Url) -> Result<Opened, ProviderError> {
        let request = if url.origin() == self.base.origin() {
            self.request(Method::GET, url.clone())
        } else {
            self.client.get(url.clone())
        };
        let sent = self.send(CALL, request.timeout(self.options.download_timeout));
        let response = tokio::time::timeout(self.options.call_timeout, sent)
            .await
            .map_err(|_| uncertain("timed out"))??;
        if response.status().is_success() {
            return Ok(Opened::Content(response));
        }
        let read = read_answer(CALL, 0, response);
        let answer = tokio::time::timeout(self.options.call_timeout, read)
            .await
            .map_err(|_| uncertain("timed out"))??;
        Ok(Opened::Answer(answer))
    }

    /// Writes the body to `part` and syncs it.
    async fn store(&self, mut response: Response, part: &Path) -> Result<Downloaded, ProviderError> {
        let local = |source| ProviderError::Local { call: CALL, path: part.display().to_string(), source };
        let mut file = tokio::fs::File::create(part).await.map_err(local)?;
        let mut hasher = Sha256::new();
        let mut bytes = 0_u64;
        let is_html = is_html(&response);
        loop {
            let chunk = within(&*self.clock, self.options.idle_timeout, response.chunk())
                .await
                .ok_or_else(|| uncertain("the download stands still"))?
                .map_err(|error| lost(CALL, error))?;
            let Some(chunk) = chunk else { break };
            // Of a proxy that wants something first: taken for the file, all of its lines would be missing, and bought
            // again. What a server merely calls HTML may well be the lines.
            if bytes == 0 && is_html && chunk.trim_ascii_start().starts_with(b"<") {
                return Err(uncertain("a page of HTML came instead of the file"));
            }
            hasher.update(&chunk);
            bytes += chunk.len() as u64;
            file.write_all(&chunk).await.map_err(local)?;
            crash_point!("download.mid_body");
        }
        file.flush().await.map_err(local)?;
        file.sync_all().await.map_err(sync_failed).map_err(local)?;
        crash_point!("download.after_fsync");
        Ok(Downloaded { bytes, sha256: hasher.finalize().into() })
    }
}

/// Never from https to something that others can read.
pub(super) fn is_allowed(from: &Url, to: &Url) -> bool {
    to.scheme() == "https" || (to.scheme() == "http" && from.scheme() == "http")
}

fn is_html(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

fn uncertain(what: &str) -> ProviderError {
    ProviderError::Uncertain { call: CALL, what: what.to_owned() }
}

/// Gives the file its name, and makes sure of the name too.
async fn keep(part: &Path, to: &Path) -> io::Result<()> {
    tokio::fs::rename(part, to).await?;
    crash_point!("download.after_rename");
    let folder = match to.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    tokio::fs::File::open(folder).await?.sync_all().await.map_err(sync_failed)
}
