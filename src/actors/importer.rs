//! The importer: reads the configured exports, at the start and then each on its own timer.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::mpsc;

use super::intake::{AcceptSessions, CHUNK, ChatSession, Intake, IntakeError};
use super::{Shared, every};
use crate::condition::Hindrance;
use crate::domain::id::CompanyId;
use crate::import::{Options, export};
use crate::panics;
use crate::store::SessionTaken;

/// An export that is read again and again.
#[derive(Debug, Clone)]
pub struct Source {
    /// Whose sessions they are.
    pub company: CompanyId,
    /// The file.
    pub csv: PathBuf,
    /// Where transcript references start.
    pub transcripts: PathBuf,
    /// How it is read.
    pub options: Options,
    /// How often.
    pub every: Duration,
}

/// Reads one source.
pub struct Importer {
    source: Arc<Source>,
    intake: Addr<Intake>,
    shared: Arc<Shared>,
    busy: bool,
}

impl Importer {
    /// An importer that hands what it reads to `intake`.
    pub fn new(source: Source, intake: Addr<Intake>, shared: Arc<Shared>) -> Self {
        Self { source: Arc::new(source), intake, shared, busy: false }
    }

    fn read(&mut self, ctx: &mut Context<Self>) {
        if self.busy {
            return;
        }
        self.busy = true;
        let (source, intake, shared) = (self.source.clone(), self.intake.clone(), self.shared.clone());
        let read = async move {
            if panics::caught(import(source, intake, shared)).await.is_err() {
                tracing::error!("an import broke off; it is read again in its time");
            }
        };
        ctx.spawn(read.into_actor(self).map(|(), this, _| this.busy = false));
    }
}

impl Actor for Importer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.read(ctx);
        every(ctx, &self.shared.clock, self.source.every, Self::read);
    }
}

/// What a reading of an export came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    new: u64,
    changed: u64,
    updated: u64,
    unchanged: u64,
    bad_rows: u64,
    without_transcript: u64,
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

async fn import(source: Arc<Source>, intake: Addr<Intake>, shared: Arc<Shared>) {
    // Two chunks on the way at most: the reader waits for the store, not the memory.
    let (sender, mut chunks) = mpsc::channel::<Vec<ChatSession>>(2);
    let reading = source.clone();
    let reader = tokio::task::spawn_blocking(move || read(&reading, &sender));
    let mut counts = Counts::default();
    while let Some(sessions) = chunks.recv().await {
        let asked = AcceptSessions { company: source.company.clone(), sessions };
        match hand_in(asked, &intake, &shared).await {
            Some(Ok(taken)) => {
                crash_point!("import.after_chunk");
                for taken in taken {
                    match taken {
                        SessionTaken::New => counts.new += 1,
                        SessionTaken::Changed => counts.changed += 1,
                        SessionTaken::Updated => counts.updated += 1,
                        // What was erased stays so, however often an export has it.
                        SessionTaken::Unchanged | SessionTaken::Erased => counts.unchanged += 1,
                    }
                }
            }
            Some(Err(err)) => {
                tracing::error!(company.id = %source.company, error = %err, "an import stopped; it is read again in its time");
                return;
            }
            // The program is leaving.
            None => return,
        }
    }
    match reader.await {
        Ok(Ok(read)) => {
            counts.bad_rows = read.bad_rows;
            counts.without_transcript = read.without_transcript;
            tracing::info!(
                company.id = %source.company,
                new = counts.new, changed = counts.changed, updated = counts.updated,
                unchanged = counts.unchanged, bad_rows = counts.bad_rows,
                without_transcript = counts.without_transcript,
                "{} read: {} new sessions, {} changed, {} as before, {} bad rows",
                source.csv.display(), counts.new, counts.changed,
                counts.updated + counts.unchanged, counts.bad_rows,
            );
        }
        Ok(Err(err)) => {
            tracing::error!(company.id = %source.company, path = %source.csv.display(), error = %err,
                "the export {} cannot be read: {err}; it is tried again in its time", source.csv.display());
        }
        Err(err) => {
            let error = panics::broke_off(&err);
            tracing::error!(company.id = %source.company, error, "reading an export broke off");
        }
    }
}

/// Reads the export on a blocking thread, chunk by chunk.
fn read(source: &Source, chunks: &mpsc::Sender<Vec<ChatSession>>) -> std::io::Result<Counts> {
    let mut counts = Counts::default();
    let mut chunk = Vec::with_capacity(CHUNK);
    let open = |reference: &str| {
        let path = export::below(&source.transcripts, reference)?;
        File::open(path).map_err(|err| err.to_string())
    };
    for session in export::sessions(File::open(&source.csv)?, &source.options, open) {
        crash_point!("import.mid_read");
        match session {
            Ok(session) => {
                if let Some(note) = &session.note {
                    tracing::warn!(company.id = %source.company, line = session.line, "transcript {note}");
                }
                counts.without_transcript += u64::from(session.messages.is_none());
                chunk.push(ChatSession {
                    external_id: session.external_id,
                    facts: session.facts,
                    messages: session.messages,
                });
            }
            Err(err) => {
                counts.bad_rows += 1;
                tracing::warn!(company.id = %source.company, path = %source.csv.display(), "{}, {err}", source.csv.display());
                if err.ends_file {
                    return Err(std::io::Error::other(err));
                }
            }
        }
        if chunk.len() >= CHUNK && chunks.blocking_send(std::mem::take(&mut chunk)).is_err() {
            return Ok(counts);
        }
    }
    if !chunk.is_empty() {
        // Nobody listens any more only when the program is leaving.
        let _ = chunks.blocking_send(chunk);
    }
    Ok(counts)
}
