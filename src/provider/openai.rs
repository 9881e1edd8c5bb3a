//! The provider over HTTP: OpenAI, or a server that follows it.
//!
//! Calls that may cost money or leave something behind are sent once and follow no redirect. The others repeat
//! themselves a little (`exchange`). What an answer other than 2xx means is told in `refusal`.

mod download;
mod exchange;
mod refusal;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url, multipart};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use tokio_util::io::ReaderStream;

use super::wire::{BatchObject, Entry, FileObject, Page, WireError};
use super::{Downloaded, NewBatch, Provider, ProviderError};
use crate::clock::SharedClock;
use crate::domain::id::{FileId, ProviderBatchId};
use exchange::{Answer, Call, Repeat};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection may be gone without our knowing; a call sent on it would be of uncertain effect.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// The slowest upload that is waited for, in bytes a second.
const UPLOAD_BYTES_PER_SEC_MIN: u64 = 64 * 1024;
const UPLOAD_CHUNK_BYTES: usize = 256 * 1024;

/// Where the provider is and who we are there.
#[derive(Debug, Clone)]
pub struct Options {
    /// For instance `https://api.openai.com/v1`.
    pub base_url: String,
    /// The key; a server of our own may need none.
    pub api_key: Option<SecretString>,
    /// `OpenAI-Organization`
    pub organization: Option<String>,
    /// `OpenAI-Project`; files and batches belong to one.
    pub project: Option<String>,
    /// How long one call may take in all; uploads get more by their size.
    pub call_timeout: Duration,
    /// How long a download may stand still.
    pub idle_timeout: Duration,
    /// How long a download may take in all.
    pub download_timeout: Duration,
    /// The pause before a safe call is repeated the first time; doubled the second time.
    pub repeat_after: Duration,
}

impl Options {
    /// The usual options, without a key.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            api_key: None,
            organization: None,
            project: None,
            call_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
            download_timeout: Duration::from_secs(3600),
            repeat_after: Duration::from_millis(500),
        }
    }
}

/// Options that no client can be built from.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The address is no http(s) address, or carries a user, a password, a query or a fragment.
    #[error("the provider's base URL must be a plain http or https address")]
    BaseUrl,
    /// A value that cannot stand in a header. The value itself is not told: it may be the key.
    #[error("the provider's {0} holds characters that cannot be sent")]
    Header(&'static str),
    /// No HTTP client, most likely because the machine has no CA certificates.
    #[error("no HTTPS client can be made (are the system's CA certificates installed?)")]
    Client(#[source] reqwest::Error),
}

/// The client.
pub struct OpenAi {
    client: Client,
    /// By which pauses between two calls are made, and how long a download may stand still; how long one call may take
    /// is the network's time.
    clock: SharedClock,
    base: Url,
    /// Sent to the base's own origin only; the key in it is marked sensitive.
    headers: HeaderMap,
    options: Options,
}

impl std::fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenAi").field("options", &self.options).finish_non_exhaustive()
    }
}

impl OpenAi {
    /// Builds the one HTTP client; nothing is sent yet.
    pub fn new(options: Options, clock: SharedClock) -> Result<Self, OptionsError> {
        let base = read_base(&options.base_url)?;
        let mut headers = HeaderMap::new();
        if let Some(key) = options.api_key.as_ref().filter(|key| !key.expose_secret().is_empty()) {
            let mut value = header_value("key", &format!("Bearer {}", key.expose_secret()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        for (name, what, value) in [
            ("openai-organization", "organization", &options.organization),
            ("openai-project", "project", &options.project),
        ] {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                headers.insert(HeaderName::from_static(name), header_value(what, value)?);
            }
        }
        let client = build_client(&base).map_err(OptionsError::Client)?;
        Ok(Self { client, clock, base, headers, options })
    }

    /// The address of a resource. Ids are opaque, so each is one encoded segment whatever it holds.
    fn url(&self, call: &'static str, segments: &[&str]) -> Result<Url, ProviderError> {
        let unusable = || ProviderError::NotSent {
            call,
            source: Box::new(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "an id that cannot be sent",
            )),
        };
        // Such a segment would name another resource than the one meant.
        if segments.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
            return Err(unusable());
        }
        let mut url = self.base.clone();
        url.path_segments_mut().map_err(|()| unusable())?.pop_if_empty().extend(segments);
        Ok(url)
    }

    /// A request to the base's own origin, with the key.
    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.client.request(method, url).headers(self.headers.clone()).timeout(self.options.call_timeout)
    }

    async fn read(&self, call: &'static str, url: Url, cap: usize) -> Result<Answer, ProviderError> {
        self.call(&Call { name: call, cap, repeat: Repeat::Safe }, || self.request(Method::GET, url.clone()))
            .await
    }

    async fn list<T: Entry>(
        &self,
        call: &'static str,
        mut url: Url,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Page<T>, ProviderError> {
        url.query_pairs_mut().append_pair("limit", &limit.to_string());
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after);
        }
        let answer = self.read(call, url, exchange::PAGE_BYTES_MAX).await?;
        let page: Page<T> = self.decode(call, &answer, |body| Page::from_json(body, limit))?;
        // A server that does not know `after` sends the same page for ever. That is no proof of anything.
        if after.is_some_and(|after| page.data.iter().any(|entry| entry.id() == after)) {
            return Err(ProviderError::Uncertain { call, what: "the list repeats itself".to_owned() });
        }
        Ok(page)
    }

    fn decode<T>(
        &self,
        call: &'static str,
        answer: &Answer,
        read: impl FnOnce(&[u8]) -> Result<T, WireError>,
    ) -> Result<T, ProviderError> {
        if !answer.status.is_success() {
            return Err(self.refused(call, answer));
        }
        read(&answer.body).map_err(|error| ProviderError::Uncertain {
            call,
            what: format!("the answer to {} is {error}", answer.status.as_u16()),
        })
    }
}

/// Whether the resource is not there: 404, or 410 as some servers say of what was deleted.
fn is_gone(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

fn read_base(text: &str) -> Result<Url, OptionsError> {
    let url = Url::parse(text.trim()).map_err(|_| OptionsError::BaseUrl)?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if plain { Ok(url) } else { Err(OptionsError::BaseUrl) }
}

fn header_value(what: &'static str, value: &str) -> Result<HeaderValue, OptionsError> {
    HeaderValue::from_str(value).map_err(|_| OptionsError::Header(what))
}

fn build_client(base: &Url) -> Result<Client, reqwest::Error> {
    let builder = || {
        let builder = crate::tls::client_builder()
            .user_agent(concat!("nightshift/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never());
        // A proxy for the outside does not know the way to this machine itself.
        if is_loopback(base) { builder.no_proxy() } else { builder }
    };
    // A plain http provider needs no certificates, so a machine without any is no hindrance; for one on this machine, to
    // which no proxy leads either, they are not even read.
    let plain = || builder().tls_certs_only([]).build();
    match base.scheme() {
        "http" if is_loopback(base) => plain(),
        "http" => builder().build().or_else(|_| plain()),
        _ => builder().build(),
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The body of `POST /batches`.
#[derive(Serialize)]
struct CreateBatch<'a> {
    input_file_id: &'a str,
    endpoint: &'static str,
    completion_window: &'static str,
    metadata: serde_json::Map<String, serde_json::Value>,
}

#[async_trait]
impl Provider for OpenAi {
    async fn upload_file(&self, path: &Path, filename: &str) -> Result<FileObject, ProviderError> {
        const CALL: &str = "POST /files";
        let local = |source| ProviderError::Local { call: CALL, path: path.display().to_string(), source };
        let url = self.url(CALL, &["files"])?;
        let file = tokio::fs::File::open(path).await.map_err(local)?;
        let length = file.metadata().await.map_err(local)?.len();
        let stream = ReaderStream::with_capacity(file, UPLOAD_CHUNK_BYTES);
        let part = multipart::Part::stream_with_length(reqwest::Body::wrap_stream(stream), length)
            .file_name(filename.to_owned())
            .mime_str("application/octet-stream")
            .map_err(|error| ProviderError::NotSent { call: CALL, source: Box::new(error) })?;
        // `purpose` comes first, so that a server that reads as a stream knows it when the file comes.
        let form = multipart::Form::new().text("purpose", "batch").part("file", part);
        let timeout = self.options.call_timeout + Duration::from_secs(length / UPLOAD_BYTES_PER_SEC_MIN);
        let request = self.request(Method::POST, url).multipart(form).timeout(timeout);
        let answer = self.once(CALL, exchange::ANSWER_BYTES_MAX, request).await?;
        self.decode(CALL, &answer, FileObject::from_json)
    }

    async fn list_files(
        &self,
        after: Option<&FileId>,
        limit: u32,
    ) -> Result<Page<FileObject>, ProviderError> {
        const CALL: &str = "GET /files";
        let mut url = self.url(CALL, &["files"])?;
        url.query_pairs_mut().append_pair("purpose", "batch").append_pair("order", "desc");
        self.list(CALL, url, after.map(FileId::as_str), limit).await
    }

    async fn get_file(&self, id: &FileId) -> Result<Option<FileObject>, ProviderError> {
        const CALL: &str = "GET /files/{id}";
        let url = self.url(CALL, &["files", id.as_str()])?;
        let answer = self.read(CALL, url, exchange::ANSWER_BYTES_MAX).await?;
        if is_gone(answer.status) {
            return Ok(None);
        }
        self.decode(CALL, &answer, FileObject::from_json).map(Some)
    }

    async fn download_file(&self, id: &FileId, to: &Path) -> Result<Downloaded, ProviderError> {
        let url = self.url(download::CALL, &["files", id.as_str(), "content"])?;
        self.download(url, to).await
    }

    async fn delete_file(&self, id: &FileId) -> Result<(), ProviderError> {
        const CALL: &str = "DELETE /files/{id}";
        let url = self.url(CALL, &["files", id.as_str()])?;
        let call = Call { name: CALL, cap: exchange::ANSWER_BYTES_MAX, repeat: Repeat::Safe };
        let answer = self.call(&call, || self.request(Method::DELETE, url.clone())).await?;
        if answer.status.is_success() || is_gone(answer.status) {
            return Ok(());
        }
        Err(self.refused(CALL, &answer))
    }

    async fn create_batch(&self, new: &NewBatch) -> Result<BatchObject, ProviderError> {
        const CALL: &str = "POST /batches";
        let body = CreateBatch {
            input_file_id: new.input_file.as_str(),
            endpoint: new.endpoint.path(),
            completion_window: "24h",
            metadata: new
                .metadata
                .iter()
                .map(|(key, value)| ((*key).to_owned(), serde_json::Value::String(value.clone())))
                .collect(),
        };
        // Twice the time of other calls: to give up early would only make it uncertain.
        let request = self
            .request(Method::POST, self.url(CALL, &["batches"])?)
            .json(&body)
            .timeout(self.options.call_timeout * 2);
        let answer = self.once(CALL, exchange::ANSWER_BYTES_MAX, request).await?;
        self.decode(CALL, &answer, BatchObject::from_json)
    }

    async fn get_batch(&self, id: &ProviderBatchId) -> Result<Option<BatchObject>, ProviderError> {
        const CALL: &str = "GET /batches/{id}";
        let url = self.url(CALL, &["batches", id.as_str()])?;
        let answer = self.read(CALL, url, exchange::ANSWER_BYTES_MAX).await?;
        if is_gone(answer.status) {
            return Ok(None);
        }
        self.decode(CALL, &answer, BatchObject::from_json).map(Some)
    }

    async fn list_batches(
        &self,
        after: Option<&ProviderBatchId>,
        limit: u32,
    ) -> Result<Page<BatchObject>, ProviderError> {
        const CALL: &str = "GET /batches";
        let url = self.url(CALL, &["batches"])?;
        self.list(CALL, url, after.map(ProviderBatchId::as_str), limit).await
    }

    async fn cancel_batch(&self, id: &ProviderBatchId) -> Result<BatchObject, ProviderError> {
        const CALL: &str = "POST /batches/{id}/cancel";
        let url = self.url(CALL, &["batches", id.as_str(), "cancel"])?;
        let call = Call { name: CALL, cap: exchange::ANSWER_BYTES_MAX, repeat: Repeat::SafeButConflict };
        let answer = self.call(&call, || self.request(Method::POST, url.clone())).await?;
        if answer.status == StatusCode::CONFLICT
            // It has ended already; where it ended is what the caller wants to know.
            && let Some(batch) = self.get_batch(id).await?
        {
            return Ok(batch);
        }
        self.decode(CALL, &answer, BatchObject::from_json)
    }
}

#[cfg(test)]
mod tests;
