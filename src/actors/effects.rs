//! Runs one effect and says what happened. Whatever goes wrong is an event, too; only the machine decides.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::account::{Call, Cause, Success};
use super::finding::{self, read};
use super::registry::blocking;
use super::spool::{self, Stamp, Sum};
use super::{Shared, input, intake};
use crate::clock::within;
use crate::domain::analysis::{self, Misfit};
use crate::domain::batch::{Batch, InputFile, Intent, Problem, ResultKind, Running, Terminal};
use crate::domain::event::{Event, Observation, ObservedStatus, Trouble};
use crate::domain::id::{FileId, Nonce, ProviderBatchId, RequestId, Timestamp};
use crate::domain::request::{Answered, Failure, FailureClass, Outcome, Request, Source};
use crate::domain::retry;
use crate::domain::room::LOOK_AGAIN;
use crate::provider::jsonl::{self, Decoded, LineReader, RawLine};
use crate::provider::wire::{BatchObject, FileObject, ProviderStatus};
use crate::provider::{NewBatch, ProviderError};
use crate::store::{AppliedLine, Repair, StoreError};

/// Lines that are read and stored at once.
pub(super) const CHUNK_LINES: usize = 250;
/// Bytes of lines that are read and stored at once, unless a single line is longer.
const CHUNK_BYTES: u64 = 4 << 20;
/// How far two clocks may be apart.
const SKEW: Duration = Duration::from_secs(24 * 3600);

/// Returns once batches may be sent.
pub async fn creation_enabled(shared: &Shared) {
    let mut changes = shared.condition.changes();
    while !shared.switches.creation() || !shared.condition.may_submit() {
        // The switches tell nobody of a change, hence the time-out.
        let _ = within(shared.clock.as_ref(), Duration::from_secs(1), changes.changed()).await;
    }
}

/// Writes the input file and sends it, unless it was sent before and `look` finds it.
pub async fn upload(shared: &Arc<Shared>, batch: &Batch, upload: u32, look: bool) -> Event {
    creation_enabled(shared).await;
    let batch = &as_stored(shared, batch).await;
    if let Some(emptied) = Event::of_emptied(batch) {
        return emptied;
    }
    let sent = try_upload(shared, batch, upload, look).await;
    match sent {
        Ok(input) => Event::Uploaded(input),
        Err(trouble) => Event::UploadFailed { trouble, at: shared.clock.now() },
    }
}

/// A batch as it is now: members may have left it since its actor read it, erased or answered from elsewhere.
pub(super) async fn as_stored(shared: &Shared, batch: &Batch) -> Batch {
    let (reader, id) = (shared.reader.clone(), batch.id);
    match blocking(move || reader.batch(id)).await {
        Ok(Some(stored)) => stored,
        Ok(None) | Err(_) => batch.clone(),
    }
}

async fn try_upload(
    shared: &Arc<Shared>,
    batch: &Batch,
    upload: u32,
    look: bool,
) -> Result<InputFile, Trouble> {
    let name = finding::file_name(shared, batch.id, upload);
    let input = |file: FileObject, bytes: u64| InputFile {
        id: file.id,
        upload,
        bytes,
        // Without the provider's word the batch's own time is the earliest that is certain.
        created_at: file.created_at.unwrap_or_else(|| batch.created_at.minus(SKEW)),
    };
    let is_it = |file: &FileObject| {
        // One of which no length is told may have a line that was erased since.
        let length = file.bytes.map_or(batch.counts.erased == 0, |bytes| bytes == batch.input_bytes);
        file.filename.as_ref() == Some(&name) && length
    };
    if look {
        let found = finding::find_file(shared, batch.created_at.minus(SKEW), is_it).await;
        if let Some(file) = found.map_err(|err| trouble(shared, err))? {
            return Ok(input(file, batch.input_bytes));
        }
    }
    shared.account.pass(shared.clock.as_ref(), Call::Send).await;
    let path = input::path_of(shared, batch);
    let bytes = input::prepare(shared, batch, &path)
        .await
        .map_err(|err| Trouble::Local { why: format!("{}: {err}", path.display()) })?;
    let clock = shared.clock.as_ref();
    let _slot = loop {
        let slot = shared.pace.upload(clock, &batch.group.company).await;
        // Much may have come between while there was no room, or no slot.
        if shared.switches.creation() && shared.condition.may_submit() && shared.account.may_send_on(clock) {
            break slot;
        }
        // Not while it is held: results come home although nothing is sent.
        drop(slot);
        creation_enabled(shared).await;
        shared.account.pass(clock, Call::Send).await;
    };
    let local = |err: StoreError| Trouble::Local { why: err.to_string() };
    // Before it: an erasure has to know of a file of which nobody heard.
    crash_point!("upload.begin.before_commit");
    shared.store.note_upload(batch.id, false).await.map_err(local)?;
    crash_point!("upload.begin.after_commit");
    let sent = match shared.provider.upload_file(&path, &name).await {
        Ok(sent) => sent,
        Err(err) => {
            shared.account.rest(clock, &err);
            if !matches!(err, ProviderError::Uncertain { .. }) {
                crash_point!("upload.nothing.before_commit");
                shared.store.note_upload(batch.id, true).await.map_err(local)?;
                crash_point!("upload.nothing.after_commit");
            }
            return Err(trouble(shared, err));
        }
    };
    shared.account.succeeded(Success::Uploaded);
    Ok(input(sent, bytes))
}

/// Runs work on files beside the actors.
pub(super) async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|err| io::Error::other(crate::panics::broke_off(&err)))?
}

fn result_path(shared: &Shared, batch: &Batch, kind: ResultKind) -> PathBuf {
    shared.spool.join(format!("{}-{}.jsonl", batch.id, kind.label()))
}

/// A nonce for a create call, once it may be made: there is room, the account works, our own limits allow it. Whether
/// there is still room after all that waiting, and whether all its members are still to be sent, is decided where the
/// intent is stored.
pub async fn make_intent(shared: &Arc<Shared>, batch: &Batch, input: InputFile) -> Event {
    if let Some(outdated) = Event::of_outdated(&as_stored(shared, batch).await, &input) {
        return outdated;
    }
    creation_enabled(shared).await;
    let (reader, owned) = (shared.reader.clone(), batch.clone());
    match blocking(move || reader.room(&owned)).await {
        Ok(room) => {
            if let Some(turned_away) = room.turns_away(batch, shared.clock.now()) {
                return turned_away;
            }
        }
        Err(err) => {
            tracing::error!(batch.id = %batch.id, error = %err, "the room for a batch cannot be read");
            return Event::RoomShut { until: shared.clock.now().plus(LOOK_AGAIN) };
        }
    }
    let clock = shared.clock.as_ref();
    loop {
        shared.account.pass(clock, Call::Send).await;
        shared.pace.creation(clock, &batch.group.company).await;
        // Something may have come in the way meanwhile.
        creation_enabled(shared).await;
        if shared.account.may_send_on(clock) {
            break;
        }
        shared.pace.not_created(&batch.group.company);
    }
    if let Some(outdated) = Event::of_outdated(&as_stored(shared, batch).await, &input) {
        shared.pace.not_created(&batch.group.company);
        return outdated;
    }
    let nonce = Nonce::new(shared.ids.next());
    Event::IntentMade(Intent { nonce, input, at: shared.clock.now(), made_with: shared.made_with })
}

/// Sends the create call, once.
pub async fn create(shared: &Shared, batch: &Batch, intent: Intent) -> Event {
    let new = NewBatch {
        input_file: intent.input.id.clone(),
        endpoint: batch.group.endpoint,
        metadata: vec![
            ("ns_instance", shared.store.instance().to_string()),
            ("ns_batch", batch.id.to_string()),
            ("ns_nonce", intent.nonce.to_string()),
        ],
    };
    match shared.provider.create_batch(&new).await {
        Ok(created) => {
            shared.account.succeeded(Success::Created);
            Event::Created(observation(created))
        }
        Err(err) => {
            if matches!(err, ProviderError::NotSent { .. } | ProviderError::RateLimited { .. }) {
                shared.pace.not_created(&batch.group.company);
            }
            let input_gone = is_input_gone(&err);
            let trouble = no_room(&err).map_or_else(
                || {
                    shared.account.rest(shared.clock.as_ref(), &err);
                    trouble(shared, err)
                },
                Trouble::Refused,
            );
            Event::CreateFailed { trouble, input_gone, at: shared.clock.now() }
        }
    }
}

/// What a server that says so with a 429 means by it: not too many calls, but too many tokens. To come again with the same
/// batch would not help.
fn no_room(err: &ProviderError) -> Option<Failure> {
    match err {
        ProviderError::RateLimited { code, message, .. } => {
            Some(Failure::new(FailureClass::Capacity, code.as_str(), message)).filter(retry::is_no_room)
        }
        ProviderError::NotSent { .. }
        | ProviderError::Refused { .. }
        | ProviderError::Account { .. }
        | ProviderError::Uncertain { .. }
        | ProviderError::Local { .. } => None,
    }
}

fn is_input_gone(err: &ProviderError) -> bool {
    match err {
        ProviderError::Refused { param: Some(param), message, status, .. } => {
            let words = message.to_ascii_lowercase();
            let gone = ["not find", "not found", "no such", "not exist"];
            matches!(param.as_str(), "input_file_id" | "file_id")
                && (*status == 404 || gone.iter().any(|word| words.contains(word)))
        }
        ProviderError::Refused { .. }
        | ProviderError::NotSent { .. }
        | ProviderError::RateLimited { .. }
        | ProviderError::Account { .. }
        | ProviderError::Uncertain { .. }
        | ProviderError::Local { .. } => false,
    }
}

/// Deletes the input file and sees that it is gone, however long that takes. What stands in the way for more than a
/// moment is an event of its own, unless it is what was `told`.
pub async fn fence(shared: &Shared, intent: &Intent, told: Option<&str>) -> Event {
    const PASSING: u32 = 4;
    let file = &intent.input.id;
    let mut pause = Duration::from_millis(500);
    let (mut before, mut times) = (None, 0_u32);
    loop {
        crash_point!("fence.before_delete");
        let why = match delete_surely(shared, intent).await {
            Ok(Deletion::Gone) => {
                crash_point!("fence.after_delete");
                return Event::Fenced;
            }
            Ok(Deletion::StillThere) => Some("the provider shows it still".to_owned()),
            // The account says that for all such batches.
            Ok(Deletion::Unproven) => None,
            Err(err) => Some(err.to_string()),
        };
        tracing::warn!(file = %file, why, "an input file is not surely deleted; trying again");
        times = if before == why { times.saturating_add(1) } else { 0 };
        if let Some(why) = &why
            && times >= PASSING
            && told != Some(why)
        {
            return Event::NotFenced { why: why.clone() };
        }
        before = why;
        shared.clock.sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(60));
    }
}

/// What a deletion came to.
enum Deletion {
    Gone,
    StillThere,
    /// It was not tried: with a key of another project the file would look as if it were gone.
    Unproven,
}

/// Deletes the input file of a call, in the project where the call was made.
async fn delete_surely(shared: &Shared, intent: &Intent) -> Result<Deletion, ProviderError> {
    if !finding::is_proven(shared, intent).await? {
        return Ok(Deletion::Unproven);
    }
    shared.account.pass(shared.clock.as_ref(), Call::Read).await;
    let deleted = shared.provider.delete_file(&intent.input.id).await;
    if let Err(err) = deleted {
        // A key that may do all but delete is one that works.
        if !matches!(err, ProviderError::Account { status: 403, .. }) {
            shared.account.heed(shared.clock.as_ref(), &err);
        }
        return Err(err);
    }
    let left = read(shared, shared.provider.get_file(&intent.input.id)).await?;
    Ok(left.map_or(Deletion::Gone, |_| Deletion::StillThere))
}

/// Has the provider cancel a batch, again and again until the batch itself shows that it heard: a call may be refused for
/// what passes, as by a server that does not show everywhere yet what it has just made.
pub async fn cancel(shared: &Shared, id: &ProviderBatchId) -> Event {
    let mut pause = Duration::from_millis(500);
    loop {
        shared.account.pass(shared.clock.as_ref(), Call::Read).await;
        let answer = match shared.provider.cancel_batch(id).await {
            // Not there, or the server cannot cancel: the batch itself tells.
            Err(ProviderError::Refused { .. }) => shared.provider.get_batch(id).await,
            Ok(batch) => Ok(Some(batch)),
            Err(err) => Err(err),
        };
        if answer.is_ok() {
            // It may have been the one that tries whether the key is taken again.
            shared.account.succeeded(Success::Read);
        }
        match answer {
            Ok(Some(batch)) if is_ending(&batch.status) => {
                return Event::Observed { seen: observation(batch), at: shared.clock.now() };
            }
            // Whether one that is not there is gone is for the poller to find out.
            Ok(found) => {
                let how = found.as_ref().map_or("not there", |batch| batch.status.label());
                tracing::warn!(provider_batch = %id, "batch {id} is {how} after a call to cancel it; it is called again");
            }
            Err(err) => {
                shared.account.heed(shared.clock.as_ref(), &err);
                tracing::warn!(provider_batch = %id, error = %err, "batch {id} could not be cancelled yet");
            }
        }
        shared.clock.sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(60));
    }
}

/// Brings a result file home; waits while there is no room for it.
pub async fn download(shared: &Shared, batch: &Batch, kind: ResultKind, file: FileId) -> Event {
    let to = result_path(shared, batch, kind);
    loop {
        shared.account.pass(shared.clock.as_ref(), Call::Read).await;
        let said = match shared.provider.get_file(&file).await {
            Ok(found) => found.and_then(|file| file.bytes),
            // A server that cannot say how long it is does not make the copy at home worse.
            Err(ProviderError::Refused { .. }) => None,
            // Without its length half a file might be taken for all of it.
            Err(err) => {
                let trouble = trouble(shared, err);
                return Event::DownloadFailed { kind, trouble, at: shared.clock.now() };
            }
        };
        let room = shared.disk.room_for(said.unwrap_or(0)).await;
        let slot = shared.pace.download(shared.clock.as_ref(), Some(&batch.group.company)).await;
        let fetched = tokio::select! {
            fetched = fetch_whole(shared, &file, said, &to) => Some(fetched),
            () = shared.disk.until_low() => None,
        };
        drop((room, slot));
        let err = match fetched {
            Some(Ok(torn)) => {
                shared.disk.written();
                return Event::Downloaded { kind, torn };
            }
            Some(Err(err)) => Some(err),
            None => None,
        };
        // Half a file only takes room.
        remove(&spool::names(&to)).await;
        match err {
            None => {
                tracing::warn!(batch.id = %batch.id, "a download was broken off for lack of room; it begins anew when there is some")
            }
            Some(ProviderError::Local { source, .. })
                if shared.disk.is_to_be_tried_again(&to, &source).await => {}
            Some(err) => {
                let trouble = trouble(shared, err);
                return Event::DownloadFailed { kind, trouble, at: shared.clock.now() };
            }
        }
    }
}

/// A length other than the provider's is tried once more and taken if the content is the same, or as long and of whole
/// lines, as where a server has them in another order each time. Says whether it is
/// torn all the same: shorter than the provider says, and ending within a line. The length alone proves nothing, for
/// it is not right everywhere.
async fn fetch_whole(
    shared: &Shared,
    file: &FileId,
    said: Option<u64>,
    to: &Path,
) -> Result<bool, ProviderError> {
    const CALL: &str = "GET /files/{id}/content";
    let local = |source| ProviderError::Local { call: CALL, path: to.display().to_string(), source };
    let part = spool::unsealed(to);
    let first = shared.provider.download_file(file, &part).await?;
    let (fetched, torn) = if said.is_none_or(|bytes| bytes == first.bytes) {
        (first, false)
    } else {
        let second = shared.provider.download_file(file, &part).await?;
        let whole_lines = ends_with_a_line(&part).await.map_err(local)?;
        let is_the_same = second.sha256 == first.sha256 || (second.bytes == first.bytes && whole_lines);
        if Some(second.bytes) != said && !is_the_same {
            return Err(ProviderError::Uncertain {
                call: CALL,
                what: "the content differs from one download to the next".to_owned(),
            });
        }
        let torn = said.is_some_and(|bytes| second.bytes < bytes) && !whole_lines;
        (second, torn)
    };
    let (to, sum) = (to.to_owned(), Sum::Sha { bytes: fetched.bytes, sha256: fetched.sha256 });
    beside(move || spool::seal(&to, sum)).await.map_err(local)?;
    Ok(torn)
}

/// Whether the last byte of a file is a line end; an empty file has no line that could be torn.
async fn ends_with_a_line(path: &Path) -> io::Result<bool> {
    use tokio::io::{AsyncReadExt, AsyncSeekExt};
    let mut file = tokio::fs::File::open(path).await?;
    if file.metadata().await?.len() == 0 {
        return Ok(true);
    }
    file.seek(io::SeekFrom::End(-1)).await?;
    Ok(file.read_u8().await? == b'\n')
}

/// Lines of a result file, judged.
pub struct Chunk {
    pub lines: Vec<AppliedLine>,
    pub to: u64,
    pub end: bool,
    /// The file that they are from.
    pub whole: Stamp,
    /// Until they are stored.
    pub place: Option<OwnedSemaphorePermit>,
}

/// Why no lines could be read.
pub enum ChunkError {
    /// The file is not there, or not what was written.
    Gone,
    /// Something else, which another copy would not mend.
    Failed(StoreError),
}

impl From<StoreError> for ChunkError {
    fn from(err: StoreError) -> Self {
        Self::Failed(err)
    }
}

/// Reads the next lines of a file at home. `whole` is how it was when it was last found to be whole.
pub async fn read_chunk(
    shared: &Arc<Shared>,
    batch: Batch,
    kind: ResultKind,
    offset: u64,
    whole: Option<Stamp>,
) -> Result<Chunk, ChunkError> {
    shared.disk.room_to_finish().await;
    let path = result_path(shared, &batch, kind);
    let named = path.display().to_string();
    let checked = path.clone();
    // All of it is read once; after that it is enough that nobody wrote it since.
    let found = beside(move || match whole {
        Some(stamp) if Stamp::of(&checked)? == whole => Ok(Some(stamp)),
        Some(_) | None => spool::check(&checked),
    });
    let whole = match found.await {
        Ok(Some(stamp)) if stamp.len() >= offset => stamp,
        Ok(_) => return Err(ChunkError::Gone),
        Err(err) => return Err(StoreError::Folder { path: named, why: err.to_string() }.into()),
    };
    let place = shared.pace.piece().await;
    let shared = shared.clone();
    let read = blocking(move || {
        let failed =
            |err: io::Error| StoreError::Folder { path: path.display().to_string(), why: err.to_string() };
        let mut reader = LineReader::open(&path, offset).map_err(failed)?;
        let mut lines = Vec::new();
        while lines.len() < CHUNK_LINES && reader.offset() - offset < CHUNK_BYTES {
            match reader.next_line().map_err(failed)? {
                None => return Ok(Chunk { lines, to: reader.offset(), end: true, whole, place }),
                Some(RawLine::Oversized { offset, length, head }) => {
                    tracing::warn!(batch.id = %batch.id, offset, length, "a result line is too long to be read");
                    let request = jsonl::custom_id_in(head).and_then(|id| id.parse().ok());
                    lines.push(AppliedLine::Unreadable { request, reason: "it is too long" });
                }
                Some(RawLine::Whole { offset, bytes }) => {
                    lines.push(judge(&shared, &batch, bytes, offset)?);
                }
            }
        }
        Ok(Chunk { lines, to: reader.offset(), end: false, whole, place })
    });
    let chunk = read.await?;
    crash_point!("apply.after_read");
    Ok(chunk)
}

fn judge(shared: &Shared, batch: &Batch, bytes: &[u8], offset: u64) -> Result<AppliedLine, StoreError> {
    let (custom_id, mut outcome) = match jsonl::decode_line(bytes) {
        Decoded::Line { custom_id, outcome, .. } => (custom_id, outcome),
        Decoded::Bad { reason, custom_id } => {
            tracing::warn!(batch.id = %batch.id, offset, reason, "a result line cannot be read");
            let request = custom_id.and_then(|id| id.parse().ok());
            return Ok(AppliedLine::Unreadable { request, reason });
        }
    };
    let Ok(id) = custom_id.parse::<RequestId>() else { return Ok(AppliedLine::Unknown) };
    let Some(request) = shared.reader.request(id)? else { return of_gone(shared, batch, id, &outcome) };
    if request.group.company != batch.group.company {
        return Ok(AppliedLine::Unknown);
    }
    if let Err(failure) = &outcome.result
        && failure.class == FailureClass::Account
    {
        let why = format!("a line of a result file was refused with {}", failure.code);
        shared.account.pause(shared.clock.as_ref(), Cause::Admission, &why);
    }
    let (analysis, repair) = check_analysis(shared, &request, &mut outcome)?;
    let usage = outcome.answered.usage.as_ref();
    let model = outcome.answered.model.as_deref();
    let cost = usage.and_then(|usage| shared.prices.cost(&request.group.model, model, usage));
    Ok(AppliedLine::Line { request: id, outcome, analysis, repair, cost })
}

/// The line of a request that was erased: what it cost, and nothing of what it says.
fn of_gone(
    shared: &Shared,
    batch: &Batch,
    id: RequestId,
    outcome: &Outcome,
) -> Result<AppliedLine, StoreError> {
    let gone = shared.reader.gone(id)?.filter(|gone| gone.company == batch.group.company);
    let Some(gone) = gone else { return Ok(AppliedLine::Unknown) };
    let answered = &outcome.answered;
    let usage = answered.usage.as_ref();
    let cost = usage.and_then(|usage| shared.prices.cost(&gone.model, answered.model.as_deref(), usage));
    let result = Err(Failure::new(FailureClass::Permanent, "erased", ""));
    let outcome = Outcome { answered: Answered::default(), result };
    Ok(AppliedLine::Line { request: id, outcome, analysis: None, repair: None, cost })
}

/// For a session: the analysis as JSON, or the outcome turned into a failure that says why there is none, and how the
/// model is asked once more where that may help.
fn check_analysis(
    shared: &Shared,
    request: &Request,
    outcome: &mut Outcome,
) -> Result<(Option<String>, Option<Repair>), StoreError> {
    let (Source::Session { .. }, Ok(body)) = (&request.source, &outcome.result) else {
        return Ok((None, None));
    };
    let unusable = |code: &str, why: &str| Failure::new(FailureClass::Unusable, code, why);
    let (failure, repair) = match analysis::parse_answer(body) {
        Ok(analysis) => match serde_json::to_string(&analysis) {
            Ok(analysis) => return Ok((Some(analysis), None)),
            Err(err) => (unusable("invalid_answer", &err.to_string()), None),
        },
        Err(err) => {
            let misfit = Misfit::of(body, &err).filter(|_| request.repairs < shared.repair_rounds);
            let repair = misfit.map(|misfit| repair(shared, request, misfit)).transpose()?.flatten();
            (unusable(err.code(), &err.to_string()), repair)
        }
    };
    outcome.result = Err(failure);
    Ok((None, repair))
}

/// The line with which the model is asked once more; none where the session's content is gone.
fn repair(shared: &Shared, request: &Request, misfit: Misfit) -> Result<Option<Repair>, StoreError> {
    let Source::Session { session, version, prompt } = &request.source else { return Ok(None) };
    let Some(content) = shared.reader.content(*session, *version)? else { return Ok(None) };
    let body = intake::analysis_body(&request.group.model, *prompt, &content, Some(&misfit));
    let jsonl::Measured { line_bytes, line_crc, estimated_tokens } =
        jsonl::measure(request.id, request.group.endpoint, &body);
    Ok(Some(Repair { misfit, line_bytes, line_crc, estimated_tokens }))
}

/// Removes the local files. One that is not there is fine; one that stays only costs room, and is tried again.
pub async fn clean(shared: &Arc<Shared>, batch: &Batch) -> Event {
    let paths = [
        input::path_of(shared, batch),
        result_path(shared, batch, ResultKind::Output),
        result_path(shared, batch, ResultKind::Error),
    ];
    crash_point!("clean.before");
    for path in paths {
        crash_point!("clean.mid");
        remove(&spool::names(&path)).await;
    }
    crash_point!("clean.after");
    Event::Cleaned { at: shared.clock.now() }
}

pub(super) async fn remove(paths: &[PathBuf]) {
    for path in paths {
        match tokio::fs::remove_file(path).await {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => tracing::warn!(path = %path.display(), error = %err, "a spool file stays"),
        }
    }
}

fn trouble(shared: &Shared, err: ProviderError) -> Trouble {
    shared.account.heed(shared.clock.as_ref(), &err);
    let why = match std::error::Error::source(&err) {
        Some(source) => format!("{err}: {source}"),
        None => err.to_string(),
    };
    match err {
        ProviderError::NotSent { .. } => Trouble::Later { retry_after_ms: None, why },
        ProviderError::RateLimited { retry_after, .. } => {
            let millis = retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
            Trouble::Later { retry_after_ms: millis, why }
        }
        ProviderError::Account { .. } => Trouble::Account { why },
        ProviderError::Refused { status, code, message, .. } => {
            let code = if code.is_empty() { format!("http_{status}") } else { code };
            Trouble::Refused(Failure::new(FailureClass::Permanent, code, &message).with_status(status))
        }
        ProviderError::Uncertain { .. } => Trouble::Uncertain { why },
        ProviderError::Local { .. } => Trouble::Local { why },
    }
}

/// Whether a batch has ended, or comes to its end without more being run.
const fn is_ending(status: &ProviderStatus) -> bool {
    status.is_terminal() || matches!(status, ProviderStatus::Cancelling | ProviderStatus::Finalizing)
}

/// What the provider's object says, in the domain's words.
pub fn observation(batch: BatchObject) -> Observation {
    let running = |running| Some(ObservedStatus::Running(running));
    let ended = |how| Some(ObservedStatus::Ended(how));
    Observation {
        expires_at: batch.expires_at,
        status: match &batch.status {
            ProviderStatus::Validating => running(Running::Validating),
            ProviderStatus::InProgress => running(Running::InProgress),
            ProviderStatus::Finalizing | ProviderStatus::Cancelling => running(Running::Finalizing),
            ProviderStatus::Completed => ended(Terminal::Completed),
            ProviderStatus::Failed => ended(Terminal::Failed),
            ProviderStatus::Expired => ended(Terminal::Expired),
            ProviderStatus::Cancelled => ended(Terminal::Cancelled),
            ProviderStatus::Unknown(word) => {
                tracing::warn!(provider_batch = %batch.id, status = word, "the provider has a status that we do not know; waiting on");
                None
            }
        },
        id: batch.id,
        output: batch.output_file_id,
        error: batch.error_file_id,
        completed_lines: batch.counts.map(|counts| counts.completed),
        failed_lines: batch.counts.map(|counts| counts.failed),
        problems: batch
            .errors
            .into_iter()
            .map(|error| Problem {
                code: error.code,
                message: error.message,
                param: error.param,
                line: error.line,
            })
            .collect(),
        ended_at: batch.ended_at.filter(|at| *at > Timestamp::from_millis(0)),
    }
}
