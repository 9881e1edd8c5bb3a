//! Defaults, file, environment and flags become checked settings.
//!
//! The only place that reads the environment. A configuration is checked as a whole, and everything that is wrong
//! with it is told at once: the key, where its value comes from, and the remedy.
//!
//! A later layer wins: default, file, `OPENAI_…` and `BATCH_…` variables, `NIGHTSHIFT_<SECTION>__<KEY>`, flags. An
//! empty variable counts as none. Paths in the file, and default ones, start at the file's folder; those in variables
//! and flags at the working directory, as people who type them expect.

mod check;
mod error;
mod keys;
mod lists;
mod raw;
mod secret;
mod values;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::domain::company::ConfiguredCompany;
use crate::domain::id::CompanyId;
use crate::domain::price::PriceTable;
use crate::domain::retention::Retention;
use crate::domain::webhook::signature::SigningSecret;

pub use error::{ConfigError, ConfigErrors, Origin};
pub use secret::Secret;

/// The file that is read where no other is named, if it exists.
pub const DEFAULT_FILE: &str = "config.toml";

/// Everything that can be set, checked and typed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// `[server]`
    pub server: Server,
    /// `[data]`
    pub data: Data,
    /// `[provider]`
    pub provider: Provider,
    /// `[creation]`
    pub creation: Creation,
    /// `[polling]`
    pub polling: Polling,
    /// `[submission]`
    pub submission: Submission,
    /// `[retry]`
    pub retry: Retry,
    /// `[analysis]`
    pub analysis: Analysis,
    /// `[import]`
    pub import: Import,
    /// `[ingest]`
    pub ingest: Ingest,
    /// `[fetch]`
    pub fetch: Fetch,
    /// How long what has ended is kept.
    pub retention: Retention,
    /// `[simulator]`
    pub simulator: Simulator,
    /// `[log]`
    pub log: Log,
    /// `[[companies]]`: to be added or updated; none is ever removed.
    pub companies: Vec<ConfiguredCompany>,
    /// `[[imports]]`
    pub imports: Vec<ImportSource>,
    /// `[prices]` over the prices that come with the program.
    pub prices: PriceTable,
    /// What is allowed but probably not meant; for the log.
    pub notes: Vec<String>,
    listing: Vec<Listed>,
}

/// One line of the listing of all settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// As in `creation.interval`.
    pub key: String,
    /// As it was given; of a secret only whether it is set.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

impl Settings {
    /// All settings with their values and where these come from, for `config check`. No secret is in it.
    pub fn describe(&self) -> &[Listed] {
        &self.listing
    }
}

/// Where the service listens.
#[derive(Debug, Clone)]
pub struct Server {
    /// Address and port.
    pub bind: SocketAddr,
    /// `NIGHTSHIFT_ADMIN_TOKEN`: an admin's token that is always valid.
    pub admin_token: Option<Secret>,
}

/// Where the data lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// `store/`, `spool/` and `simulator/` live below it.
    pub path: PathBuf,
    /// With less free space nothing is taken in or sent.
    pub free_space_floor: u64,
    /// How large the file is that is given back when the disk is full.
    pub ballast: u64,
}

/// Who runs the batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    /// The simulator that comes with the program.
    Simulator,
    /// OpenAI, or a server that follows it.
    OpenAi,
}

impl ProviderKind {
    /// The word in the file.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Simulator => "simulator",
            Self::OpenAi => "openai",
        }
    }
}

/// The provider and the account there.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Who it is.
    pub kind: ProviderKind,
    /// Without a slash at its end. Not used by the simulator, which has its own.
    pub base_url: String,
    /// `OPENAI_API_KEY`; always there for OpenAI.
    pub api_key: Option<Secret>,
    /// `OPENAI_ORG_ID`
    pub organization: Option<String>,
    /// `OPENAI_PROJECT_ID`
    pub project: Option<String>,
    /// `OPENAI_WEBHOOK_SECRET`: what the provider signs its messages with.
    pub webhook_secret: Option<SigningSecret>,
}

/// When requests become batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Creation {
    /// Whether anything is cut, uploaded or created at all.
    pub enabled: bool,
    /// How often the groups are looked at.
    pub interval: Duration,
    /// A group with so many requests is due.
    pub max_requests: u32,
    /// A group with so many bytes of lines is due.
    pub max_file_size: u64,
    /// A group whose oldest request has waited so long is due.
    pub max_age: Duration,
}

/// How batches are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Polling {
    /// Whether the provider is asked at all.
    pub enabled: bool,
    /// How often.
    pub interval: Duration,
    /// At most so many calls a tick.
    pub max_calls: u32,
}

/// How batches are sent, and what is done about a creation without a certain answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// So long it is looked for before it is sent again.
    pub grace: Duration,
    /// Batches that are created within an hour at most.
    pub batches_per_hour: u32,
    /// Files that are sent within a minute at most.
    pub uploads_per_minute: u32,
    /// Files that are on their way at the same time at most.
    pub transfers: u32,
}

/// How failures are tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all.
    pub max_attempts: u32,
    /// The wait after the first.
    pub backoff: Duration,
    /// The wait after the provider's queue was full.
    pub capacity_backoff: Duration,
    /// How long the provider is thought to count the tokens of a batch that has ended.
    pub capacity_hold: Duration,
}

/// How sessions are analysed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Analysis {
    /// For companies that name none.
    pub model: String,
    /// A session is analysed when it was unchanged so long.
    pub settle: Duration,
    /// How often the model is asked once more for an answer that does not fit.
    pub repair_rounds: u32,
}

/// How exports are read.
#[derive(Debug, Clone)]
pub struct Import {
    /// The zone of times without an offset, for sources that name none.
    pub time_zone: TimeZone,
}

/// What each company may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ingest {
    /// Calls that bring something, within a minute.
    pub calls_per_minute: u64,
    /// Bytes of their bodies, unpacked, within an hour.
    pub bytes_per_hour: u64,
}

/// What may be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Hosts that exports and transcripts may come from, and webhooks go to, although they are private or loopback;
    /// lower case. One with a port allows that port, one without 80 and 443.
    pub allow_hosts: Vec<String>,
    /// How long a fetch may take; a large body gets more, at 64 KiB a second.
    pub timeout: Duration,
    /// The largest export that is fetched, in bytes.
    pub max_export_size: u64,
    /// The largest transcript that is fetched, in bytes.
    pub max_transcript_size: u64,
    /// How often a transcript is tried before it is given up.
    pub attempts: u32,
}

/// How the simulator behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simulator {
    /// How long a batch takes.
    pub turnaround: Duration,
    /// A JSON file with the faults it is to have.
    pub faults: Option<PathBuf>,
    /// Tokens that may be enqueued for a model.
    pub token_limit: Option<u64>,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// What an operator has to see to.
    Error,
    /// What may become that.
    Warn,
    /// What happens.
    Info,
    /// How it happens.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// The word in the file.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// What the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people on a terminal, else JSON.
    Auto,
    /// For people.
    Human,
    /// One object a line.
    Json,
}

/// The log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// How much.
    pub level: LogLevel,
    /// How it looks.
    pub format: LogFormat,
}

/// Where an export lies.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A file.
    Path(PathBuf),
    /// An http or https address without user and password. Its query may hold a secret, which [`fmt::Display`] and
    /// [`fmt::Debug`] leave out.
    Url(String),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Url(url) => f.write_str(&values::without_secrets(url)),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

/// An export that is read again and again.
#[derive(Debug, Clone)]
pub struct ImportSource {
    /// Whose sessions they are.
    pub company: CompanyId,
    /// The export.
    pub csv: Location,
    /// How often it is read.
    pub every: Duration,
    /// A folder that transcript references start at, instead of the export's own.
    pub transcripts: Option<PathBuf>,
    /// The zone of times without an offset.
    pub time_zone: TimeZone,
    /// Name and password at the export's address.
    pub login: Option<(String, Secret)>,
    /// How many of its transcripts are fetched from one host at the same time.
    pub transcript_concurrency: u32,
}

/// Reads and checks the configuration.
///
/// `path` is the file that was asked for; without one it is [`DEFAULT_FILE`], and if that does not exist the built-in
/// defaults with one company `demo`. `env` gives single variables, `vars` those that start with `NIGHTSHIFT_` (others
/// are skipped), `flags` pairs of key and value.
pub fn load(
    path: Option<&Path>,
    env: &dyn Fn(&str) -> Option<String>,
    vars: impl IntoIterator<Item = (String, String)>,
    flags: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings, ConfigErrors> {
    let mut raw = raw::Raw::new();
    raw.read_file(path);
    raw.read_variables(env, vars);
    raw.read_flags(flags);
    check::settings(raw, env)
}

/// Whether a variable is the provider's key or the password of an export, which only the service itself needs.
fn is_needed_to_serve(name: &str) -> bool {
    name == "OPENAI_API_KEY"
        || !["OPENAI_", "BATCH_", "NIGHTSHIFT_"].iter().any(|ours| name.starts_with(ours))
}

/// The same with the environment of this process.
///
/// Commands that only ask the server, or serve as a provider, do not need the provider's key, nor the password of
/// an export: for them `needs_key` is false, and the absence of these is no error.
pub fn from_process(
    path: Option<&Path>,
    needs_key: bool,
    flags: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings, ConfigErrors> {
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    let env = |name: &str| match std::env::var(name) {
        Ok(value) => Some(value),
        Err(_) if !needs_key && is_needed_to_serve(name) => Some("not-needed".to_owned()),
        Err(_) => None,
    };
    let vars = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    load(path, &env, vars, flags)
}

#[cfg(test)]
mod tests;
