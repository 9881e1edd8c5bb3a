//! The client: one GET or POST, bounded in every way.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, DATE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, LAST_MODIFIED, LOCATION, RETRY_AFTER,
};
use reqwest::{Client, RequestBuilder, Response};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::error::{FetchError, chain};
use super::guard::{Guard, NotAllowed, Way};
use super::names::{Checked, Names};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection may be gone without our knowing.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
const POOL_IDLE_MAX: usize = 4;
const REDIRECTS_MAX: u32 = 5;
/// Whoever sends less than this on average is too slow, however often a byte comes.
const BYTES_PER_SEC_MIN: u64 = 64 * 1024;
/// So much of the reply to a POST is kept.
const REPLY_BYTES_MAX: usize = 4096;
/// A validator that is longer is not kept: then the whole comes again, which is right, too.
const VALIDATOR_BYTES_MAX: usize = 512;

/// Whom to be at the address that is asked for, and at no other.
#[derive(Clone)]
pub struct Login {
    /// The name.
    pub username: String,
    /// The password.
    pub password: SecretString,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What tells one state of a resource from the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Version {
    /// `ETag`
    pub etag: Option<String>,
    /// `Last-Modified`
    pub last_modified: Option<String>,
}

/// What a fetch may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long it may take, all redirects included; a body gets more by its size, at 64 KiB a second.
    pub timeout: Duration,
    /// How many bytes the body may have.
    pub bytes: u64,
}

/// A GET.
#[derive(Debug, Clone, Copy)]
pub struct Get<'a> {
    /// What is asked for.
    pub url: &'a Url,
    /// Whom to be there.
    pub login: Option<&'a Login>,
    /// What we have already; the empty one asks for everything.
    pub have: &'a Version,
    /// What it may take.
    pub limits: Limits,
}

/// What a GET brought.
#[derive(Debug)]
pub enum Fetched {
    /// What we have is what there is.
    NotModified,
    /// A body that is still to be read.
    Body(Box<Body>),
}

/// A body on its way, within its limits.
#[derive(Debug)]
pub struct Body {
    /// The state that it is of.
    pub version: Version,
    response: Response,
    started: Instant,
    limits: Limits,
    received: u64,
}

impl Body {
    /// The next bytes; none at its proper end. A body that breaks off is an error and no end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let more = Duration::from_secs(self.received / BYTES_PER_SEC_MIN);
        let deadline = self.started + self.limits.timeout.saturating_add(more);
        let chunk = timeout_at(deadline, self.response.chunk()).await.map_err(|_| FetchError::TooSlow)?;
        let Some(chunk) = chunk.map_err(FetchError::lost)? else { return Ok(None) };
        self.received = self.received.saturating_add(chunk.len() as u64);
        if self.received > self.limits.bytes {
            return Err(FetchError::TooLarge { limit: self.limits.bytes });
        }
        Ok(Some(chunk))
    }

    /// How long the server says that it is.
    pub fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The rest of it at once, for what is small.
    pub async fn bytes(mut self) -> Result<Vec<u8>, FetchError> {
        let mut all = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }
}

/// The answer to a POST, whatever it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its status; a redirect is not followed.
    pub status: u16,
    /// The beginning of its body, at most 4 KiB; as much as came in time.
    pub body: Vec<u8>,
    /// How long the server asks to wait.
    pub retry_after: Option<Duration>,
}

impl Reply {
    /// Whether it took what was sent: 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Fetches what a [`Guard`] allows.
pub struct Fetcher {
    guard: Guard,
    /// Connects to public addresses only.
    public: Client,
    /// For hosts that the operator named.
    named: Client,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// A client; nothing is sent yet.
    pub fn new(guard: Guard, names: Arc<dyn Names>) -> Result<Self, FetchError> {
        let build = |public_only| {
            let resolver = Arc::new(Checked { names: names.clone(), public_only });
            build_client(resolver).map_err(|error| FetchError::Client(chain(&error)))
        };
        Ok(Self { guard, public: build(true)?, named: build(false)? })
    }

    /// What may be reached.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Asks for what is at an address, and follows at most five redirects.
    pub async fn get(&self, get: Get<'_>) -> Result<Fetched, FetchError> {
        let started = Instant::now();
        let deadline = started + get.limits.timeout;
        let mut url = get.url.clone();
        let mut login = get.login;
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.client(&url)?.get(url.clone()).headers(conditions(get.have)?);
            if let Some(Login { username, password }) = login {
                request = request.basic_auth(username, Some(password.expose_secret()));
            }
            let response = send(request, deadline).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return answer(response, &get, started);
            }
            let next = next_hop(&url, response.headers()).map_err(FetchError::NotAllowed)?;
            if next.origin() != url.origin() {
                // For good, even if the way leads back: whoever redirects there knows neither name nor password.
                login = None;
            }
            url = next;
        }
        Err(FetchError::NotAllowed(NotAllowed::Redirects))
    }

    /// Sends a body, and reads the beginning of the reply. It is sent once, and never to another address: a
    /// redirect is a reply like others, and no success.
    pub async fn post(
        &self,
        url: &Url,
        headers: &[(&str, &str)],
        body: Bytes,
        timeout: Duration,
    ) -> Result<Reply, FetchError> {
        let deadline = Instant::now() + timeout;
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            let bad = || FetchError::Header((*name).to_owned());
            let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
            all.insert(key, HeaderValue::from_str(value).map_err(|_| bad())?);
        }
        let mut response =
            send(self.client(url)?.post(url.clone()).headers(all).body(body), deadline).await?;
        let (status, retry_after) = (response.status().as_u16(), retry_after(response.headers()));
        let mut body = Vec::new();
        // The status is the answer: what fails behind it, or comes too late, takes nothing from it.
        while let Ok(Ok(Some(chunk))) = timeout_at(deadline, response.chunk()).await {
            body.extend_from_slice(&chunk[..chunk.len().min(REPLY_BYTES_MAX - body.len())]);
            if body.len() >= REPLY_BYTES_MAX {
                break;
            }
        }
        Ok(Reply { status, body, retry_after })
    }

    fn client(&self, url: &Url) -> Result<&Client, FetchError> {
        match self.guard.way(url).map_err(FetchError::NotAllowed)? {
            Way::Public => Ok(&self.public),
            Way::Named => Ok(&self.named),
        }
    }
}

fn build_client(resolver: Arc<Checked>) -> Result<Client, reqwest::Error> {
    let builder = || {
        crate::tls::client_builder()
            .user_agent(concat!("nightshift/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(POOL_IDLE_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            // A proxy would resolve names for us, and connect where it likes.
            .no_proxy()
            .dns_resolver(resolver.clone())
    };
    // Without certificates https fails where it is used, and http still works.
    builder().build().or_else(|_| builder().tls_certs_only([]).build())
}

async fn send(request: RequestBuilder, deadline: Instant) -> Result<Response, FetchError> {
    let request = request.header(ACCEPT_ENCODING, "identity");
    timeout_at(deadline, request.send()).await.map_err(|_| FetchError::TooSlow)?.map_err(FetchError::lost)
}

fn conditions(have: &Version) -> Result<HeaderMap, FetchError> {
    let mut headers = HeaderMap::new();
    for (name, value) in [(IF_NONE_MATCH, &have.etag), (IF_MODIFIED_SINCE, &have.last_modified)] {
        if let Some(value) = value {
            let value = HeaderValue::from_str(value).map_err(|_| FetchError::Header(name.to_string()))?;
            headers.insert(name, value);
        }
    }
    Ok(headers)
}

fn next_hop(from: &Url, headers: &HeaderMap) -> Result<Url, NotAllowed> {
    let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
    let next = location.and_then(|location| from.join(location).ok()).ok_or(NotAllowed::Nowhere)?;
    if from.scheme() == "https" && next.scheme() == "http" {
        return Err(NotAllowed::Downgrade);
    }
    Ok(next)
}

fn answer(response: Response, get: &Get<'_>, started: Instant) -> Result<Fetched, FetchError> {
    let limits = get.limits;
    let headers = response.headers();
    match response.status().as_u16() {
        200 | 203 => {}
        304 if *get.have != Version::default() => return Ok(Fetched::NotModified),
        status => return Err(FetchError::Status { status, retry_after: retry_after(headers) }),
    }
    // What is small on the line may be without end unpacked.
    let coded = |value: &HeaderValue| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
    if headers.get_all(CONTENT_ENCODING).iter().any(coded) {
        return Err(FetchError::Encoded);
    }
    if response.content_length().is_some_and(|length| length > limits.bytes) {
        return Err(FetchError::TooLarge { limit: limits.bytes });
    }
    let text = |name| {
        let value = headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
        value.filter(|value| value.len() <= VALIDATOR_BYTES_MAX)
    };
    let version = Version { etag: text(ETAG), last_modified: text(LAST_MODIFIED) };
    Ok(Fetched::Body(Box::new(Body { version, response, started, limits, received: 0 })))
}

/// `Retry-After` in seconds or as a date; a date is reckoned against the server's own `Date`.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let after = text(RETRY_AFTER)?;
    if let Ok(seconds) = after.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let moment = |text: &str| jiff::fmt::rfc2822::parse(text).ok().map(|at| at.timestamp().as_second());
    let wait = moment(after)?.checked_sub(moment(text(DATE)?)?)?;
    u64::try_from(wait).ok().map(Duration::from_secs)
}
