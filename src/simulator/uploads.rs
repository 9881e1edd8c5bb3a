//! `POST /v1/files`: a multipart form whose file goes to the disk as it comes, never into memory.
//!
//! An upload that is cut off or refused leaves no file: its bytes get their final name only when all is checked.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use multer::{Field, Multipart};
use tokio::io::AsyncWriteExt;

use super::engine::{Engine, FILE_LIFE_MS};
use super::validation::{InputLines, Line};
use super::wire::Refusal;
use super::world::{Entry, FileRecord};
use crate::serving::BodyError;

/// A body that is read under limits.
pub(super) type Body = Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>;

/// Bytes at most in any file.
const MAX_FILE_BYTES: u64 = 512 * 1024 * 1024;
/// Bytes at most in a field that is no file.
const MAX_FIELD_BYTES: usize = 1024;
const PURPOSES: [&str; 6] = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"];
const BATCH: &str = "batch";

/// Why no file came of an upload.
pub(super) enum Failed {
    /// The client is told.
    Refused(Refusal),
    /// The client is gone.
    Gone,
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<multer::Error> for Failed {
    fn from(error: multer::Error) -> Self {
        if let multer::Error::StreamReadFailed(source) = &error {
            match source.downcast_ref::<BodyError>() {
                Some(BodyError::TooLarge { .. }) => return too_large().into(),
                Some(BodyError::TooSlow) => {
                    return Refusal::new(408, "The body did not arrive in time.").into();
                }
                Some(
                    BodyError::Broken(_)
                    | BodyError::Undecodable { .. }
                    | BodyError::Expands { .. }
                    | BodyError::OverQuota,
                )
                | None => return Self::Gone,
            }
        }
        Refusal::new(400, format!("The multipart form cannot be read: {error}.")).into()
    }
}

fn too_large() -> Refusal {
    Refusal::new(413, "The file is larger than the limit for its purpose.")
}

/// Bytes on the disk that are not a file yet; removed unless they become one.
struct Draft {
    path: PathBuf,
    bytes: u64,
}

impl Drop for Draft {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "could not remove a refused upload");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

#[derive(Default)]
struct Form {
    file: Option<(Draft, String)>,
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
}

/// Takes a whole upload in and gives the file that it became.
pub(super) async fn receive(engine: &Engine, content_type: &str, body: Body) -> Result<FileRecord, Failed> {
    let boundary = multer::parse_boundary(content_type)
        .map_err(|_| Refusal::new(400, "The body has to be multipart/form-data with a boundary."))?;
    let mut parts = Multipart::new(body, boundary);
    let (mut form, mut seen) = (Form::default(), HashSet::new());
    while let Some(mut part) = parts.next_field().await? {
        let name = part.name().unwrap_or_default().to_owned();
        if !seen.insert(name.clone()) {
            return Err(Refusal::new(400, format!("'{name}' is given twice.")).param(&name).into());
        }
        match name.as_str() {
            "file" => form.file = Some(store(engine, part).await?),
            "purpose" => form.purpose = Some(text(&mut part, &name).await?),
            "expires_after[anchor]" => form.anchor = Some(text(&mut part, &name).await?),
            "expires_after[seconds]" => form.seconds = Some(text(&mut part, &name).await?),
            _ => return Err(Refusal::unknown(&name).into()),
        }
    }
    Ok(accept(engine, form)?)
}

/// Writes the file's bytes down as they come.
async fn store(engine: &Engine, mut part: Field<'_>) -> Result<(Draft, String), Failed> {
    let Some(filename) = part.file_name().map(str::to_owned) else {
        return Err(Refusal::invalid_type("file", "a file").into());
    };
    let path = engine.disk.work_path(&engine.next_upload_name());
    let mut draft = Draft { path, bytes: 0 };
    let failed = |error: io::Error| {
        tracing::warn!(%error, "could not store an upload");
        Failed::Refused(Refusal::internal())
    };
    let mut out = tokio::fs::File::create(&draft.path).await.map_err(failed)?;
    // What is too much is read to its end all the same, so that the client hears the answer.
    while let Some(chunk) = part.chunk().await? {
        draft.bytes += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        if draft.bytes <= MAX_FILE_BYTES {
            out.write_all(&chunk).await.map_err(failed)?;
        }
    }
    out.flush().await.map_err(failed)?;
    Ok((draft, filename))
}

async fn text(part: &mut Field<'_>, name: &str) -> Result<String, Failed> {
    let mut bytes = Vec::new();
    while let Some(chunk) = part.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_FIELD_BYTES {
            return Err(Refusal::invalid_value(name, format!("'{name}' is too long.")).into());
        }
    }
    String::from_utf8(bytes).map_err(|_| Refusal::invalid_type(name, "text").into())
}

/// Checks the form and makes its file one that lasts.
fn accept(engine: &Engine, form: Form) -> Result<FileRecord, Refusal> {
    let (draft, filename) = form.file.ok_or_else(|| Refusal::missing("file"))?;
    let purpose = form.purpose.ok_or_else(|| Refusal::missing("purpose"))?;
    if !PURPOSES.contains(&purpose.as_str()) {
        let message =
            format!("'{purpose}' is not one of {}.", PURPOSES.map(|one| format!("'{one}'")).join(", "));
        return Err(Refusal::invalid_value("purpose", message));
    }
    let life = life(form.anchor.as_deref(), form.seconds.as_deref())?;
    let is_batch = purpose == BATCH;
    let limit = if is_batch { engine.options.max_input_bytes } else { MAX_FILE_BYTES };
    if draft.bytes > limit {
        return Err(too_large());
    }
    if is_batch && !filename.ends_with(".jsonl") {
        return Err(Refusal::new(400, "Invalid file format for Batch API. Must be .jsonl"));
    }
    if draft.bytes == 0 {
        return Err(Refusal::new(400, "The file is empty."));
    }
    let internal = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "could not keep an upload");
        Refusal::internal()
    };
    if is_batch && !starts_with_json(&draft).map_err(|error| internal(&error))? {
        return Err(Refusal::new(400, "The first line of the file is not JSON."));
    }
    let now = engine.now();
    let mut world = engine.world();
    let serial = world.take_serial();
    let id = engine.new_id("file-", serial);
    // The bytes first: a file that is known has its bytes, and bytes that nobody knows are swept.
    std::fs::rename(&draft.path, engine.disk.file_path(&id)).map_err(|error| internal(&error))?;
    let life = life.or(is_batch.then_some(FILE_LIFE_MS));
    let expires_at = life.map(|life| now + life);
    let file = FileRecord { serial, id, bytes: draft.bytes, created_at: now, expires_at, filename, purpose };
    engine.commit(&mut world, Entry::File { file: file.clone() }).map_err(|error| internal(&error))?;
    Ok(file)
}

/// How long the file lives, in milliseconds, if the form says.
fn life(anchor: Option<&str>, seconds: Option<&str>) -> Result<Option<i64>, Refusal> {
    let (anchor, seconds) = match (anchor, seconds) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(Refusal::missing("expires_after.anchor")),
        (Some(_), None) => return Err(Refusal::missing("expires_after.seconds")),
        (Some(anchor), Some(seconds)) => (anchor, seconds),
    };
    if anchor != "created_at" {
        return Err(Refusal::invalid_value("expires_after.anchor", "The anchor has to be 'created_at'."));
    }
    let seconds = seconds.parse().ok().filter(|seconds| super::server::LIFE_SECONDS.contains(seconds));
    let message = "The seconds have to be a whole number from 3600 to 2592000.";
    let seconds: i64 = seconds.ok_or_else(|| Refusal::invalid_value("expires_after.seconds", message))?;
    Ok(Some(seconds * 1000))
}

/// Whether the first line is JSON; all others are looked at when a batch is made of the file.
fn starts_with_json(draft: &Draft) -> io::Result<bool> {
    let mut lines = InputLines::new(BufReader::new(File::open(&draft.path)?));
    Ok(match lines.next_line()? {
        // A byte order mark passes here and fails in the batch, as at OpenAI.
        Some(Line::Bytes(line)) => {
            let line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
            serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok()
        }
        Some(Line::TooLong) | None => false,
    })
}
