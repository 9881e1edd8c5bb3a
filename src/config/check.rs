//! From what was said to settings that hold together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{ConfigError, ConfigErrors, Origin, Problem};
use super::keys::KEYS;
use super::raw::{Entry, Raw};
use super::values::{self, Scalar};
use super::{
    Analysis, Creation, Data, Fetch, Import, Ingest, Listed, Log, Polling, Provider, ProviderKind, Retry,
    Secret, Server, Settings, Simulator, Submission, lists,
};
use crate::domain::retention::Retention;
use crate::domain::webhook::signature::SigningSecret;
use crate::fetch::Guard;

const SECOND: Duration = Duration::from_secs(1);
/// The provider's own limits of a batch.
const LINES_MAX: u32 = 50_000;
const FILE_BYTES_MAX: u64 = 200_000_000;
const FILE_BYTES_MIN: u64 = 1_000;
/// More is no floor but a mistake.
const ROOM_BYTES_MAX: u64 = 1_000_000_000_000_000;
const TRANSCRIPT_BYTES_MAX: u64 = 8 << 20;
const ADMIN_TOKEN_CHARS_MIN: usize = 16;

/// Collects what is wrong while values are read.
#[derive(Debug)]
pub(super) struct Check {
    entries: BTreeMap<&'static str, Entry>,
    base: PathBuf,
    pub(super) errors: Vec<ConfigError>,
    pub(super) notes: Vec<String>,
    listing: Vec<Listed>,
}

impl Check {
    /// Where relative paths of a value start.
    pub(super) fn base(&self, origin: &Origin) -> &Path {
        match origin {
            Origin::Default | Origin::File { .. } => &self.base,
            Origin::Env(_) | Origin::Flag => Path::new(""),
        }
    }

    /// The value of an entry; none after an error, which is noted.
    pub(super) fn read<T>(
        &mut self,
        key: &str,
        entry: &Entry,
        parse: impl FnOnce(&Scalar) -> Result<T, Problem>,
    ) -> Option<T> {
        parse(&entry.value).map_err(|problem| self.errors.push(problem.at(key, &entry.origin))).ok()
    }

    pub(super) fn fail(&mut self, key: impl Into<String>, origin: &Origin, problem: Problem) {
        self.errors.push(problem.at(key, origin));
    }

    pub(super) fn list(&mut self, key: impl Into<String>, value: impl Into<String>, origin: &Origin) {
        self.listing.push(Listed { key: key.into(), value: value.into(), origin: origin.clone() });
    }

    /// The value of a key that has a default.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Scalar) -> Result<T, Problem>,
    ) -> Option<T> {
        self.optional(key, parse).flatten()
    }

    /// The value of a key that may be left out: `Some(None)` where it is, none after an error.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Scalar) -> Result<T, Problem>,
    ) -> Option<Option<T>> {
        match self.entries.get(key).cloned() {
            Some(entry) => self.read(key, &entry, parse).map(Some),
            None => Some(None),
        }
    }

    fn base_of(&self, key: &str) -> PathBuf {
        let origin = self.entries.get(key).map_or(&Origin::Default, |entry| &entry.origin);
        self.base(origin).to_owned()
    }

    /// Whether somebody said something other than the default.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.origin_of(key) != Origin::Default
    }

    fn origin_of(&self, key: &str) -> Origin {
        self.entries.get(key).map_or(Origin::Default, |entry| entry.origin.clone())
    }

    fn list_entries(&mut self) {
        for (key, _) in KEYS {
            if let Some(entry) = self.entries.get(key) {
                let (value, origin) = (entry.value.plain(), entry.origin.clone());
                self.listing.push(Listed { key: key.to_owned(), value, origin });
            }
        }
    }
}

/// Checks everything; either all of it is right, or all that is wrong is told.
pub(super) fn settings(raw: Raw, env: &dyn Fn(&str) -> Option<String>) -> Result<Settings, ConfigErrors> {
    let base = raw.file.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
    let Raw { file, entries, companies, imports, models, errors } = raw;
    let mut check = Check { entries, base, errors, notes: Vec::new(), listing: Vec::new() };
    check.list_entries();
    let server = server(&mut check, env);
    let data = data(&mut check);
    let provider = provider(&mut check, env);
    let (creation, polling) = (creation(&mut check), polling(&mut check));
    let submission = submission(&mut check);
    let retry = retry(&mut check);
    let analysis = analysis(&mut check);
    let import = check.get("import.time_zone", values::time_zone).map(|time_zone| Import { time_zone });
    let ingest = ingest(&mut check);
    let fetch = fetch(&mut check);
    let retention = retention(&mut check);
    let simulator = simulator(&mut check);
    let level = check.get("log.level", values::log_level);
    let format = check.get("log.format", values::log_format);
    let model = analysis.as_ref().map(|analysis| analysis.model.as_str());
    let companies = lists::companies(&mut check, &companies, model);
    let zone = import.as_ref().map(|import| &import.time_zone);
    let guard = fetch.as_ref().and_then(|fetch| Guard::new(&fetch.allow_hosts).ok());
    let imports = lists::imports(&mut check, &imports, &companies, zone, guard.as_ref(), env);
    let companies = companies.into_iter().flat_map(|(_, company)| company).collect();
    let prices = lists::prices(&mut check, models);
    let Check { mut errors, notes, listing, .. } = check;
    // In the order in which they are mended: the file from top to bottom, then variables, then flags.
    errors.sort_by(|a, b| a.origin.cmp(&b.origin));
    let built = (|| {
        Some(Settings {
            file,
            server: server?,
            data: data?,
            provider: provider?,
            creation: creation?,
            polling: polling?,
            submission: submission?,
            retry: retry?,
            analysis: analysis?,
            import: import?,
            ingest: ingest?,
            fetch: fetch?,
            retention: retention?,
            simulator: simulator?,
            log: Log { level: level?, format: format? },
            companies,
            imports,
            prices: prices?,
            notes,
            listing,
        })
    })();
    match built {
        Some(settings) if errors.is_empty() => Ok(settings),
        Some(_) | None => Err(ConfigErrors(errors)),
    }
}

pub(super) fn variable(env: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// A variable that goes into a header: visible characters only.
fn header(check: &mut Check, env: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    let value = variable(env, name)?;
    if value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(value);
    }
    let problem =
        Problem::new("it has white space or letters beyond ASCII in it", "copy it anew, on one line");
    check.fail(name, &Origin::Env(name.to_owned()), problem);
    None
}

fn secret(check: &mut Check, env: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<Secret> {
    let value = header(check, env, name);
    let state = if value.is_some() { "set (hidden)" } else { "not set" };
    let origin = if value.is_some() { Origin::Env(name.to_owned()) } else { Origin::Default };
    check.list(name, state, &origin);
    value.map(Secret::new)
}

fn server(check: &mut Check, env: &dyn Fn(&str) -> Option<String>) -> Option<Server> {
    let name = "NIGHTSHIFT_ADMIN_TOKEN";
    let admin_token = secret(check, env, name);
    if admin_token.as_ref().is_some_and(|token| token.expose().len() < ADMIN_TOKEN_CHARS_MIN) {
        let remedy =
            format!("use {ADMIN_TOKEN_CHARS_MIN} or more, for instance the output of `openssl rand -hex 24`");
        let problem = Problem::new("it is short enough to be guessed", remedy);
        check.fail(name, &Origin::Env(name.to_owned()), problem);
    }
    let bind = check.get("server.bind", values::address)?;
    Some(Server { bind, admin_token })
}

fn data(check: &mut Check) -> Option<Data> {
    let base = check.base_of("data.path");
    let path = check.get("data.path", values::path(&base));
    let free_space_floor = check.get("data.free_space_floor", values::size(0, ROOM_BYTES_MAX));
    let ballast = check.get("data.ballast", values::size(0, ROOM_BYTES_MAX));
    Some(Data { path: path?, free_space_floor: free_space_floor?, ballast: ballast? })
}

fn provider(check: &mut Check, env: &dyn Fn(&str) -> Option<String>) -> Option<Provider> {
    let kind = check.get("provider.kind", values::kind);
    let base_url = check.get("provider.base_url", values::base_url);
    let api_key = secret(check, env, "OPENAI_API_KEY");
    let webhook_secret = webhook_secret(check, env);
    let organization = header(check, env, "OPENAI_ORG_ID");
    let project = header(check, env, "OPENAI_PROJECT_ID");
    for (name, value) in [("OPENAI_ORG_ID", &organization), ("OPENAI_PROJECT_ID", &project)] {
        match value {
            Some(value) => check.list(name, value, &Origin::Env(name.to_owned())),
            None => check.list(name, "not set", &Origin::Default),
        }
    }
    match kind {
        Some(ProviderKind::OpenAi) => {
            // A key that is there but cannot be used has been told of already.
            if variable(env, "OPENAI_API_KEY").is_none() {
                let problem = Problem::new(
                    "\"openai\" needs a key and there is none",
                    "set OPENAI_API_KEY in the environment, or use kind = \"simulator\"",
                );
                let origin = check.origin_of("provider.kind");
                check.fail("provider.kind", &origin, problem);
            }
            if base_url.as_deref().is_some_and(|url| url.starts_with("http://") && !is_loopback(url)) {
                check.notes.push("provider.base_url is not https: the key travels in the clear".to_owned());
            }
        }
        Some(ProviderKind::Simulator) if api_key.is_some() => {
            let note = "OPENAI_API_KEY is set, but provider.kind is \"simulator\": nothing is sent to OpenAI";
            check.notes.push(note.to_owned());
        }
        Some(ProviderKind::Simulator) | None => {}
    }
    Some(Provider { kind: kind?, base_url: base_url?, api_key, organization, project, webhook_secret })
}

/// What the provider signs its messages with.
fn webhook_secret(check: &mut Check, env: &dyn Fn(&str) -> Option<String>) -> Option<SigningSecret> {
    let name = "OPENAI_WEBHOOK_SECRET";
    let secret = SigningSecret::of_provider(secret(check, env, name)?.expose());
    if secret.is_none() {
        let remedy =
            "copy it anew from where the provider showed it: whsec_ and base64, or a text of another kind";
        let problem = Problem::new("what stands behind whsec_ is no base64", remedy);
        check.fail(name, &Origin::Env(name.to_owned()), problem);
    }
    secret
}

fn is_loopback(url: &str) -> bool {
    ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|prefix| {
        url.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
    })
}

fn creation(check: &mut Check) -> Option<Creation> {
    let enabled = check.get("creation.enabled", values::truth);
    let interval = check.get("creation.interval", values::duration(SECOND));
    let max_requests = check.get("creation.max_requests", values::small(1, LINES_MAX));
    let max_file_size = check.get("creation.max_file_size", values::size(FILE_BYTES_MIN, FILE_BYTES_MAX));
    let max_age = check.get("creation.max_age", values::duration(Duration::ZERO));
    Some(Creation {
        enabled: enabled?,
        interval: interval?,
        max_requests: max_requests?,
        max_file_size: max_file_size?,
        max_age: max_age?,
    })
}

fn polling(check: &mut Check) -> Option<Polling> {
    let enabled = check.get("polling.enabled", values::truth);
    let interval = check.get("polling.interval", values::duration(SECOND));
    let max_calls = check.get("polling.max_calls", values::small(1, 10_000));
    Some(Polling { enabled: enabled?, interval: interval?, max_calls: max_calls? })
}

fn submission(check: &mut Check) -> Option<Submission> {
    let grace = check.get("submission.grace", values::duration(SECOND));
    let batches_per_hour = check.get("submission.batches_per_hour", values::small(1, 1_000_000));
    let uploads_per_minute = check.get("submission.uploads_per_minute", values::small(1, 1_000_000));
    let transfers = check.get("submission.transfers", values::small(1, 64));
    Some(Submission {
        grace: grace?,
        batches_per_hour: batches_per_hour?,
        uploads_per_minute: uploads_per_minute?,
        transfers: transfers?,
    })
}

fn retry(check: &mut Check) -> Option<Retry> {
    let max_attempts = check.get("retry.max_attempts", values::small(1, 100));
    let backoff = check.get("retry.backoff", values::duration(Duration::ZERO));
    let capacity_backoff = check.get("retry.capacity_backoff", values::duration(SECOND));
    let capacity_hold = check.get("retry.capacity_hold", values::duration(Duration::ZERO));
    Some(Retry {
        max_attempts: max_attempts?,
        backoff: backoff?,
        capacity_backoff: capacity_backoff?,
        capacity_hold: capacity_hold?,
    })
}

fn analysis(check: &mut Check) -> Option<Analysis> {
    let model = check.get("analysis.model", values::model);
    let settle = check.get("analysis.settle", values::duration(Duration::ZERO));
    let repair_rounds = check
        .get("analysis.repair_rounds", values::whole(0, 5))
        .and_then(|rounds| u32::try_from(rounds).ok());
    Some(Analysis { model: model?, settle: settle?, repair_rounds: repair_rounds? })
}

fn ingest(check: &mut Check) -> Option<Ingest> {
    let calls_per_minute = check.get("ingest.calls_per_minute", values::whole(1, 1_000_000));
    let bytes_per_hour = check.get("ingest.bytes_per_hour", values::size(1, u64::MAX));
    Some(Ingest { calls_per_minute: calls_per_minute?, bytes_per_hour: bytes_per_hour? })
}

fn fetch(check: &mut Check) -> Option<Fetch> {
    let allow_hosts = check.get("fetch.allow_hosts", values::hosts);
    let timeout = check.get("fetch.timeout", values::duration(SECOND));
    let max_export_size = check.get("fetch.max_export_size", values::size(1, ROOM_BYTES_MAX));
    // The reader of transcripts takes no more.
    let max_transcript_size = check.get("fetch.max_transcript_size", values::size(1, TRANSCRIPT_BYTES_MAX));
    let attempts = check.get("fetch.attempts", values::small(1, 100));
    Some(Fetch {
        allow_hosts: allow_hosts?,
        timeout: timeout?,
        max_export_size: max_export_size?,
        max_transcript_size: max_transcript_size?,
        attempts: attempts?,
    })
}

fn retention(check: &mut Check) -> Option<Retention> {
    let complete = check.optional("retention.complete", values::keep);
    let failed = check.optional("retention.failed", values::keep);
    let sessions = check.optional("retention.sessions", values::keep);
    Some(Retention { complete: complete?, failed: failed?, sessions: sessions? })
}

fn simulator(check: &mut Check) -> Option<Simulator> {
    let turnaround = check.get("simulator.turnaround", values::duration(Duration::ZERO));
    let base = check.base_of("simulator.faults");
    let faults = check.optional("simulator.faults", values::path(&base));
    let token_limit = check.optional("simulator.token_limit", values::whole(1, u64::MAX));
    Some(Simulator { turnaround: turnaround?, faults: faults?, token_limit: token_limit? })
}
