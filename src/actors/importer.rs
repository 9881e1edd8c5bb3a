//! The importer: reads the configured exports, at the start and then each on its own timer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, mpsc};

use super::download::{self, DownloadError, Downloaded};
use super::intake::{AcceptSessions, CHUNK, CHUNK_BYTES, ChatSession, Intake, IntakeError};
use super::registry::blocking;
use super::{Shared, every, later};
use crate::condition::Hindrance;
use crate::domain::id::CompanyId;
use crate::domain::session::SessionFacts;
use crate::domain::source::{self, ReadCounts, ReadOutcome, SourceId, TranscriptAt, Validators};
use crate::fetch::{FetchError, Login, Url};
use crate::import::export::Transcript;
use crate::import::{Options, export};
use crate::panics;
use crate::store::{Reading, SessionTaken, StoreError};

/// An export at an address.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The address.
    pub url: Url,
    /// Whom to be there, and nowhere else.
    pub login: Option<Login>,
}

/// Where an export lies.
#[derive(Debug, Clone)]
pub enum Place {
    /// A file, and the folder where its transcript references start.
    File {
        /// The file.
        csv: PathBuf,
        /// The folder.
        transcripts: PathBuf,
    },
    /// An address; transcript references start there, too.
    Remote(Remote),
}

/// An export that is read again and again.
#[derive(Debug)]
pub struct Source {
    /// Its id.
    pub id: SourceId,
    /// Whose sessions they are.
    pub company: CompanyId,
    /// Where it lies.
    pub place: Place,
    /// The same for people, without secrets.
    pub label: String,
    /// How it is read.
    pub options: Options,
    /// How often.
    pub every: Duration,
    /// How many of its transcripts are fetched from one host at the same time.
    pub transcript_concurrency: usize,
    wanted: Notify,
}

impl Source {
    /// A source; `label` is what people see of its place.
    pub fn new(company: CompanyId, place: Place, label: String, options: Options, every: Duration) -> Self {
        let text = match &place {
            Place::File { csv, .. } => csv.display().to_string(),
            Place::Remote(remote) => remote.url.to_string(),
        };
        let id = SourceId::from_bytes(first(&text));
        Self { id, company, place, label, options, every, transcript_concurrency: 4, wanted: Notify::new() }
    }

    /// Has it read soon, and all of it whatever its server says of changes.
    pub fn read_now(&self) {
        self.wanted.notify_one();
    }

    fn zone(&self) -> String {
        self.options.time_zone.iana_name().unwrap_or_default().to_owned()
    }

    /// Where a row's transcript is.
    fn open(&self, reference: &str) -> Result<Transcript<File>, String> {
        if reference.chars().count() >= SessionFacts::TEXT_CHARS_MAX {
            return Err("the reference is too long".to_owned());
        }
        match &self.place {
            Place::File { .. } if export::is_url(reference) => Ok(Transcript::At(reference.to_owned())),
            Place::File { transcripts, .. } => {
                let path = export::below(transcripts, reference)?;
                File::open(path).map(Transcript::Here).map_err(|err| err.to_string())
            }
            Place::Remote(remote) => {
                let mut url = remote.url.join(reference).map_err(|err| err.to_string())?;
                url.set_fragment(None);
                Ok(Transcript::At(url.into()))
            }
        }
    }
}

/// The first bytes of a text's SHA-256.
fn first<const N: usize>(text: &str) -> [u8; N] {
    let hash = Sha256::digest(text.as_bytes());
    let mut bytes = [0; N];
    bytes.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    bytes
}

/// What an address stands under in the store. One that cannot be read is told when it is fetched.
fn transcript_at(source: SourceId, url: String) -> TranscriptAt {
    let host = Url::parse(&url).ok().and_then(|url| url.host_str().map(first)).unwrap_or_default();
    TranscriptAt { source, url, host }
}

/// Reads one source.
pub struct Importer {
    source: Arc<Source>,
    intake: Addr<Intake>,
    shared: Arc<Shared>,
    busy: bool,
    /// Somebody wants it read, whatever its server says of changes.
    wanted: bool,
    /// Readings in a row that failed and may go well soon.
    failures: u32,
}

impl Importer {
    /// An importer that hands what it reads to `intake`.
    pub const fn new(source: Arc<Source>, intake: Addr<Intake>, shared: Arc<Shared>) -> Self {
        Self { source, intake, shared, busy: false, wanted: false, failures: 0 }
    }

    fn read(&mut self, ctx: &mut Context<Self>) {
        if self.busy {
            return;
        }
        self.busy = true;
        let whole = std::mem::take(&mut self.wanted);
        let (source, intake, shared) = (self.source.clone(), self.intake.clone(), self.shared.clone());
        let again = source::pause(self.failures + 1, false).min(source.every);
        let read = async move {
            panics::caught(import(source, intake, shared, whole, again)).await.unwrap_or_else(|_| {
                tracing::error!("an import broke off; it is read again in its time");
                false
            })
        };
        ctx.spawn(read.into_actor(self).map(move |soon, this, ctx| {
            this.busy = false;
            this.failures = if soon { this.failures + 1 } else { 0 };
            if this.wanted {
                this.read(ctx);
            } else if soon && again < this.source.every {
                let clock = this.shared.clock.clone();
                later(ctx, &clock, again, Self::read);
            }
        }));
    }

    /// Reads when somebody asks for it, again and again.
    fn listen(&mut self, ctx: &mut Context<Self>) {
        let source = self.source.clone();
        let wanted = async move { source.wanted.notified().await };
        ctx.spawn(wanted.into_actor(self).map(|(), this, ctx| {
            this.wanted = true;
            this.read(ctx);
            this.listen(ctx);
        }));
    }
}

impl Actor for Importer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.read(ctx);
        self.listen(ctx);
        every(ctx, &self.shared.clock, self.source.every, Self::read);
    }
}

/// Sends one chunk; waits for as long as nothing is taken in. None when the program is leaving.
async fn hand_in(
    asked: AcceptSessions,
    intake: &Addr<Intake>,
    shared: &Shared,
) -> Option<Result<Vec<SessionTaken>, IntakeError>> {
    let mut changes = shared.condition.changes();
    loop {
        match intake.send(asked.clone()).await {
            Ok(Err(IntakeError::Stopped(Hindrance::Draining, _))) | Err(_) => return None,
            Ok(Err(IntakeError::Stopped(_, why))) => {
                tracing::warn!(company.id = %asked.company, "an import waits: {why}");
                while shared.condition.intake_stopped().is_some_and(|(what, _)| what != Hindrance::Draining) {
                    // The condition lives as long as we do.
                    let _ = changes.changed().await;
                }
            }
            Ok(taken) => return Some(taken),
        }
    }
}

/// Reads the source once and notes how it ended. Says whether it should be tried again before its time.
async fn import(
    source: Arc<Source>,
    intake: Addr<Intake>,
    shared: Arc<Shared>,
    whole: bool,
    again: Duration,
) -> bool {
    let ended = read_once(&source, &intake, &shared, whole).await;
    let mut soon = false;
    let reading = |outcome, error, whole, pause| Reading {
        outcome,
        error,
        whole,
        next_at: shared.clock.now().plus(pause),
    };
    let reading = match ended {
        // The program is leaving.
        None => return false,
        Some(Ok(None)) => {
            tracing::debug!(company.id = %source.company, source.id = %source.id, "{} has not changed", source.label);
            reading(ReadOutcome::Unchanged, None, None, source.every)
        }
        Some(Ok(Some((counts, validators)))) => {
            tell(&source, &counts);
            reading(ReadOutcome::Read, None, Some((counts, validators, source.zone())), source.every)
        }
        Some(Err(NotRead { outcome, error, soon: passing })) => {
            soon = passing;
            tracing::error!(company.id = %source.company, source.id = %source.id, error,
                "the export {} cannot be read: {error}; it is tried again in its time", source.label);
            reading(outcome, Some(error), None, if soon { again } else { source.every })
        }
    };
    crash_point!("reading.before_commit");
    let noted =
        shared.store.note_reading(source.company.clone(), source.id, reading, shared.clock.now()).await;
    crash_point!("reading.after_commit");
    if let Err(err) = noted {
        tracing::error!(error = %err, source.id = %source.id, "how an import ended could not be stored");
    }
    soon
}

fn tell(source: &Source, counts: &ReadCounts) {
    tracing::info!(
        company.id = %source.company, source.id = %source.id,
        new = counts.new, changed = counts.changed, updated = counts.updated,
        unchanged = counts.unchanged, bad_rows = counts.bad_rows,
        without_transcript = counts.without_transcript, to_fetch = counts.to_fetch,
        "{} read: {} new sessions, {} changed, {} as before, {} bad rows",
        source.label, counts.new, counts.changed,
        counts.updated + counts.unchanged, counts.bad_rows,
    );
}

/// Why a reading came to nothing.
struct NotRead {
    outcome: ReadOutcome,
    error: String,
    /// Whether it may go well soon.
    soon: bool,
}

impl NotRead {
    fn failed(error: impl ToString) -> Self {
        Self { outcome: ReadOutcome::Failed, error: error.to_string(), soon: false }
    }
}

impl From<DownloadError> for NotRead {
    fn from(err: DownloadError) -> Self {
        let (outcome, soon) = match &err {
            DownloadError::Fetch(FetchError::NotAllowed(_)) => (ReadOutcome::NotAllowed, false),
            DownloadError::Fetch(err) => (ReadOutcome::Failed, !err.is_permanent()),
            DownloadError::NoRoom | DownloadError::File { .. } => (ReadOutcome::Failed, true),
        };
        Self { outcome, error: err.to_string(), soon }
    }
}

/// What a whole reading came to; none where the export is as before.
type Whole = Option<(ReadCounts, Validators)>;

async fn read_once(
    source: &Arc<Source>,
    intake: &Addr<Intake>,
    shared: &Arc<Shared>,
    whole: bool,
) -> Option<Result<Whole, NotRead>> {
    let remote = match &source.place {
        Place::File { csv, .. } => {
            let counts = take_in(source, csv, intake, shared).await?;
            return Some(counts.map(|counts| Some((counts, Validators::default()))));
        }
        Place::Remote(remote) => remote,
    };
    let have = match last_read(source, shared).await {
        Ok(_) if whole => Validators::default(),
        Ok(have) => have,
        Err(err) => return Some(Err(NotRead::failed(err))),
    };
    let home: Downloaded = match download::download(shared, &source.company, source.id, remote, &have).await {
        Ok(Some(home)) => home,
        Ok(None) => return Some(Ok(None)),
        Err(err) => return Some(Err(err.into())),
    };
    let counts = take_in(source, &home.path, intake, shared).await?;
    Some(counts.map(|counts| Some((counts, home.validators.clone()))))
}

/// The state of the export that is wholly taken in, if it was read as it would be now.
async fn last_read(source: &Arc<Source>, shared: &Shared) -> Result<Validators, StoreError> {
    let (reader, asked) = (shared.reader.clone(), source.clone());
    let known = blocking(move || reader.source(&asked.company, asked.id)).await?;
    let known = known.filter(|known| known.time_zone == source.zone());
    Ok(known.map(|known| known.validators).unwrap_or_default())
}

/// Takes in the whole file. None when the program is leaving.
async fn take_in(
    source: &Arc<Source>,
    path: &Path,
    intake: &Addr<Intake>,
    shared: &Arc<Shared>,
) -> Option<Result<ReadCounts, NotRead>> {
    // Two chunks on the way at most: the reader waits for the store, not the memory.
    let (sender, mut chunks) = mpsc::channel::<Vec<ChatSession>>(2);
    let (reading, path) = (source.clone(), path.to_owned());
    let reader = tokio::task::spawn_blocking(move || read(&reading, &path, &sender));
    let mut counts = ReadCounts::default();
    while let Some(sessions) = chunks.recv().await {
        let asked = AcceptSessions { company: source.company.clone(), sessions };
        match hand_in(asked, intake, shared).await? {
            Ok(taken) => {
                crash_point!("import.after_chunk");
                for taken in taken {
                    match taken {
                        SessionTaken::New => counts.new += 1,
                        SessionTaken::Changed => counts.changed += 1,
                        SessionTaken::Updated => counts.updated += 1,
                        // What was erased stays so, however often an export has it.
                        SessionTaken::Unchanged | SessionTaken::Erased => counts.unchanged += 1,
                        // Of lines of a call only.
                        SessionTaken::Conflict => {}
                    }
                }
            }
            Err(err) => return Some(Err(NotRead::failed(err))),
        }
    }
    match reader.await {
        Ok(Ok(read)) => {
            counts.bad_rows = read.bad_rows;
            counts.without_transcript = read.without_transcript;
            counts.to_fetch = read.to_fetch;
            Some(Ok(counts))
        }
        Ok(Err(err)) => Some(Err(NotRead::failed(err))),
        Err(err) => Some(Err(NotRead::failed(panics::broke_off(&err)))),
    }
}

/// Reads the export on a blocking thread, chunk by chunk.
fn read(source: &Source, csv: &Path, chunks: &mpsc::Sender<Vec<ChatSession>>) -> std::io::Result<ReadCounts> {
    let mut counts = ReadCounts::default();
    let (mut chunk, mut bytes) = (Vec::with_capacity(CHUNK), 0);
    let open = |reference: &str| source.open(reference);
    for session in export::sessions(File::open(csv)?, &source.options, open) {
        crash_point!("import.mid_read");
        match session {
            Ok(session) => {
                if let Some(note) = &session.note {
                    tracing::warn!(company.id = %source.company, line = session.line, "transcript {note:?}");
                }
                counts.to_fetch += u64::from(session.fetch.is_some());
                counts.without_transcript += u64::from(session.messages.is_none() && session.fetch.is_none());
                bytes += session.messages.iter().flatten().map(|message| message.text.len()).sum::<usize>();
                chunk.push(ChatSession {
                    external_id: session.external_id,
                    facts: session.facts,
                    messages: session.messages,
                    fetch: session.fetch.map(|url| transcript_at(source.id, url)),
                    line: None,
                });
            }
            Err(err) => {
                counts.bad_rows += 1;
                tracing::warn!(company.id = %source.company, source.id = %source.id, "{}, {err}", source.label);
                if err.ends_file {
                    return Err(std::io::Error::other(err));
                }
            }
        }
        if chunk.len() >= CHUNK || bytes >= CHUNK_BYTES {
            bytes = 0;
            if chunks.blocking_send(std::mem::take(&mut chunk)).is_err() {
                return Ok(counts);
            }
        }
    }
    if !chunk.is_empty() {
        // Nobody listens any more only when the program is leaving.
        let _ = chunks.blocking_send(chunk);
    }
    Ok(counts)
}
