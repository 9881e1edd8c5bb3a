//! The importer: reads the configured exports, at the start and then each on its own timer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use crate::domain::source::{
    self, ReadCounts, ReadOutcome, SourceId, SourceRecord, TranscriptAt, Validators,
};
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
    ordered: Notify,
    /// Told when its company is being erased.
    unwanted: Notify,
    /// Readings that are under way, with what they hold of the export.
    readings: AtomicUsize,
}

/// A reading that is under way, until it is dropped.
struct Held(Arc<Source>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.readings.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Source {
    /// A source; `label` is what people see of its place.
    pub fn new(company: CompanyId, place: Place, label: String, options: Options, every: Duration) -> Self {
        let text = match &place {
            Place::File { csv, .. } => csv.display().to_string(),
            Place::Remote(remote) => remote.url.to_string(),
        };
        let id = SourceId::from_bytes(first(&text));
        let (ordered, unwanted, readings) = (Notify::new(), Notify::new(), AtomicUsize::new(0));
        Self {
            id,
            company,
            place,
            label,
            options,
            every,
            transcript_concurrency: 4,
            ordered,
            unwanted,
            readings,
        }
    }

    /// Has it read soon. An order that is stored has all of it read, whatever its server says of changes.
    pub fn read_now(&self) {
        self.ordered.notify_one();
    }

    /// Has readings that are under way broken off.
    pub fn break_off(&self) {
        self.unwanted.notify_waiters();
    }

    /// Whether a reading is under way. One that begins after this was asked sees what was stored before it was.
    pub fn is_being_read(&self) -> bool {
        self.readings.fetch_add(0, Ordering::SeqCst) > 0
    }

    fn hold(self: &Arc<Self>) -> Held {
        self.readings.fetch_add(1, Ordering::SeqCst);
        Held(self.clone())
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
    /// This process has not read it yet.
    is_first: bool,
    /// Somebody wants it read once the reading that is under way has ended.
    wanted: bool,
    /// Readings in a row that failed and may go well soon.
    failures: u32,
    /// Its company was not there when it was last looked at, and that was told.
    is_orphaned: bool,
}

impl Importer {
    /// An importer that hands what it reads to `intake`.
    pub const fn new(source: Arc<Source>, intake: Addr<Intake>, shared: Arc<Shared>) -> Self {
        Self {
            source,
            intake,
            shared,
            busy: false,
            is_first: true,
            wanted: false,
            failures: 0,
            is_orphaned: false,
        }
    }

    fn read(&mut self, ctx: &mut Context<Self>) {
        if self.busy {
            return;
        }
        self.busy = true;
        self.wanted = false;
        let (source, intake, shared) = (self.source.clone(), self.intake.clone(), self.shared.clone());
        let again = source::pause(self.failures + 1, false).min(source.every);
        let is_first = self.is_first;
        let read = async move {
            panics::caught(import(source, intake, shared, again, is_first)).await.unwrap_or_else(|_| {
                tracing::error!("an import broke off; it is read again in its time");
                (Again::InItsTime, false)
            })
        };
        ctx.spawn(read.into_actor(self).map(move |(next, came), this, ctx| {
            this.busy = false;
            this.is_first &= !came;
            this.note_company(next != Again::WithItsCompany);
            let soon = next == Again::Soon;
            this.failures = if soon { this.failures + 1 } else { 0 };
            if this.wanted {
                this.read(ctx);
            } else if soon && again < this.source.every {
                let clock = this.shared.clock.clone();
                later(ctx, &clock, again, Self::read);
            }
        }));
    }

    /// Tells once that there is nobody to read for.
    fn note_company(&mut self, is_there: bool) {
        if !std::mem::replace(&mut self.is_orphaned, !is_there) && !is_there {
            let source = &self.source;
            tracing::warn!(company.id = %source.company, source.id = %source.id,
                "the export {} is not read: there is no company {}", source.label, source.company);
        }
    }

    /// Reads when somebody asks for it, again and again.
    fn listen(&mut self, ctx: &mut Context<Self>) {
        let source = self.source.clone();
        let ordered = async move { source.ordered.notified().await };
        ctx.spawn(ordered.into_actor(self).map(|(), this, ctx| {
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

/// When a source is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// As it is configured.
    InItsTime,
    /// Before that: what went wrong may pass.
    Soon,
    /// Once there is its company.
    WithItsCompany,
}

/// Reads the source once and notes how it ended; says when it is read again, and whether it was there.
async fn import(
    source: Arc<Source>,
    intake: Addr<Intake>,
    shared: Arc<Shared>,
    again: Duration,
    is_first: bool,
) -> (Again, bool) {
    // Before the company is looked for: the erasure of one that is found waits for this.
    let _held = source.hold();
    let known = match known(&source, &shared).await {
        Ok(Some(known)) => Ok(known),
        Ok(None) => return (Again::WithItsCompany, false),
        Err(err) => Err(NotRead::failed(err)),
    };
    let known = known.map(|known| match known.wants_transcripts(shared.clock.now(), is_first) {
        // All of it, whatever its server says: only its rows name what was given up.
        true => SourceRecord { validators: Validators::default(), ..known },
        false => known,
    });
    let orders = known.as_ref().map_or(0, |known| known.orders);
    let ended = match known {
        Ok(known) => tokio::select! {
            ended = read_once(&source, &intake, &shared, &known) => ended,
            // It may wait long, for room or because nothing is taken in, and nobody has anything of it any more.
            () = source.unwanted.notified() => return (Again::WithItsCompany, false),
        },
        Err(err) => Some(Err(err)),
    };
    let came = matches!(ended, Some(Ok(_)));
    let mut soon = false;
    let reading = |outcome, error, whole, pause| Reading {
        outcome,
        error,
        whole,
        orders,
        next_at: shared.clock.now().plus(pause),
    };
    let reading = match ended {
        // The program is leaving.
        None => return (Again::InItsTime, false),
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
    (if soon { Again::Soon } else { Again::InItsTime }, came)
}

/// What is known of the source; none where there is no company to read it for.
async fn known(source: &Arc<Source>, shared: &Shared) -> Result<Option<SourceRecord>, StoreError> {
    let (reader, asked) = (shared.reader.clone(), source.clone());
    blocking(move || match reader.company(&asked.company)? {
        Some(_) => Ok(Some(reader.source(&asked.company, asked.id)?.unwrap_or_default())),
        None => Ok(None),
    })
    .await
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
    known: &SourceRecord,
) -> Option<Result<Whole, NotRead>> {
    let remote = match &source.place {
        Place::File { csv, .. } => {
            let counts = take_in(source, csv, intake, shared).await?;
            return Some(counts.map(|counts| Some((counts, Validators::default()))));
        }
        Place::Remote(remote) => remote,
    };
    // The state that is wholly taken in, if it was read as it would be now and nobody wants all of it again.
    let is_had = known.orders == 0 && known.time_zone == source.zone();
    let have = if is_had { known.validators.clone() } else { Validators::default() };
    let home: Downloaded = match download::download(shared, &source.company, source.id, remote, &have).await {
        Ok(Some(home)) => home,
        Ok(None) => return Some(Ok(None)),
        Err(err) => return Some(Err(err.into())),
    };
    let counts = take_in(source, &home.path, intake, shared).await?;
    Some(counts.map(|counts| Some((counts, home.validators.clone()))))
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
    // It has the file open, also where nobody waits for its chunks any more.
    let (reading, path) = (source.hold(), path.to_owned());
    let reader = tokio::task::spawn_blocking(move || read(&reading.0, &path, &sender));
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
