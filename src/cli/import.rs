//! `nightshift import`: reads an export here and sends its sessions to the running server.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::client::Client;
use super::{CliError, block_on, output};
use crate::config::Settings;
use crate::domain::id::CompanyId;
use crate::import::Options;
use crate::import::export::{self, ExportedSession, Transcript};

/// Sessions in one call.
const CHUNK: usize = 250;
/// Bytes in one call, unless a single session is longer.
const CHUNK_BYTES: usize = 8 << 20;

/// What to send.
#[derive(Debug, Args)]
pub struct Import {
    /// Whose sessions they are.
    #[arg(long)]
    company: CompanyId,
    /// The export.
    file: PathBuf,
    /// Where transcript references start, if not at the export's own folder.
    #[arg(long, value_name = "DIR")]
    transcripts: Option<PathBuf>,
    /// The zone of times without an offset, if not that of the configuration.
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: u64,
    duplicate: u64,
    updated: u64,
    rejected: u64,
    bad_rows: u64,
    without_transcript: u64,
}

/// Reads the export and sends it chunk by chunk.
pub fn run(command: &Import, settings: &Settings, server: Option<&str>, json: bool) -> Result<(), CliError> {
    let client = Client::new(settings, server)?;
    let failed =
        |err: std::io::Error| CliError::Failed(format!("{} cannot be read: {err}", command.file.display()));
    let file = File::open(&command.file).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let time_zone = match &command.time_zone {
        Some(name) => jiff::tz::TimeZone::get(name)
            .map_err(|err| CliError::Failed(format!("--time-zone {name}: {err}")))?,
        None => settings.import.time_zone.clone(),
    };
    let own = command.file.parent().map(Path::to_path_buf).unwrap_or_default();
    let folder = command.transcripts.clone().unwrap_or(own);
    let position = Arc::new(AtomicU64::new(0));
    let reader = Counting { file, position: position.clone() };
    let open = move |reference: &str| {
        let path = export::below(&folder, reference)?;
        File::open(path).map(Transcript::Here).map_err(|err| err.to_string())
    };
    let bar = bar(length);
    let path = format!("/api/v1/companies/{}/sessions", command.company);
    let mut counts = Counts::default();
    let mut chunk = Chunk::default();
    for session in export::sessions(reader, &Options { time_zone }, open) {
        bar.set_position(position.load(Ordering::Relaxed));
        match session {
            Ok(session) => {
                if let Some(note) = &session.note {
                    bar.suspend(|| output::talk(&format!("line {}: transcript {note}", session.line)));
                }
                counts.without_transcript += u64::from(session.messages.is_none());
                chunk.add(&session);
            }
            Err(err) => {
                counts.bad_rows += 1;
                bar.suspend(|| output::talk(&err.to_string()));
            }
        }
        if chunk.lines.len() >= CHUNK || chunk.bytes.len() >= CHUNK_BYTES {
            send(&client, &path, &mut chunk, &mut counts, &bar)?;
        }
    }
    send(&client, &path, &mut chunk, &mut counts, &bar)?;
    bar.finish_and_clear();
    tell(&counts, json);
    Ok(())
}

#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    /// The export's line of each session.
    lines: Vec<u64>,
}

impl Chunk {
    fn add(&mut self, session: &ExportedSession) {
        self.bytes.extend_from_slice(line(session).to_string().as_bytes());
        self.bytes.push(b'\n');
        self.lines.push(session.line);
    }
}

fn send(
    client: &Client,
    path: &str,
    chunk: &mut Chunk,
    counts: &mut Counts,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    let Chunk { bytes, lines } = std::mem::take(chunk);
    if lines.is_empty() {
        return Ok(());
    }
    let answer = block_on(client.post_lines(path, bytes))?;
    let count = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    counts.accepted += count("accepted");
    counts.duplicate += count("duplicate");
    counts.updated += count("updated");
    counts.rejected += count("rejected");
    for error in answer.get("errors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default() {
        let number = error.get("line").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let line = number.and_then(|n| lines.get(n.checked_sub(1)?)).copied().unwrap_or(0);
        let detail = error.get("detail").and_then(Value::as_str).unwrap_or("no reason given");
        bar.suspend(|| output::talk(&format!("line {line}: refused: {detail}")));
    }
    Ok(())
}

/// The session as the API takes it.
fn line(session: &ExportedSession) -> Value {
    let facts = &session.facts;
    let messages = session.messages.as_ref().map(|messages| {
        let message = |message: &crate::domain::session::Message| {
            json!({
                "role": message.role.label(),
                "content": message.text,
                "at": message.at.map(|at| at.to_string()),
            })
        };
        messages.iter().map(message).collect::<Vec<_>>()
    });
    json!({
        "externalId": session.external_id,
        "startedAt": facts.started_at.map(|at| at.to_string()),
        "endedAt": facts.ended_at.map(|at| at.to_string()),
        "language": facts.language,
        "country": facts.country,
        "messages": messages,
        "facts": {
            "ipAddress": facts.ip_address,
            "messagesSent": facts.messages_sent,
            "sentiment": facts.sentiment,
            "escalated": facts.escalated,
            "forwardedHr": facts.forwarded_hr,
            "transcript": facts.transcript,
            "avgResponseMs": facts.avg_response_ms,
            "tokens": facts.tokens,
            "tokensEurMicros": facts.tokens_eur_micros,
            "category": facts.category,
            "firstMessage": facts.first_message,
        },
    })
}

fn tell(counts: &Counts, json: bool) {
    if json {
        return output::json(&json!({
            "ok": true, "accepted": counts.accepted, "duplicate": counts.duplicate, "updated": counts.updated,
            "rejected": counts.rejected, "badRows": counts.bad_rows,
            "withoutTranscript": counts.without_transcript,
        }));
    }
    output::table(
        &["NEW OR CHANGED", "AS BEFORE", "FACTS UPDATED", "REFUSED", "BAD ROWS", "NO TRANSCRIPT"],
        &[vec![
            counts.accepted.to_string(),
            counts.duplicate.to_string(),
            counts.updated.to_string(),
            counts.rejected.to_string(),
            counts.bad_rows.to_string(),
            counts.without_transcript.to_string(),
        ]],
    );
}

fn bar(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    let style = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Knows how far the export has been read.
struct Counting {
    file: File,
    position: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.position.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
