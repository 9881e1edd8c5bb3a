//! Looks for batches of ours in the provider's list, and says what one that is found means.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::Shared;
use super::account::{Call, Success};
use super::effects::observation;
use crate::domain::batch::{BatchState, Credentials, InputFile, Intent, Origin};
use crate::domain::event::{Event, Observation};
use crate::domain::id::{BatchId, FileId, Nonce, RequestId, Timestamp};
use crate::provider::ProviderError;
use crate::provider::jsonl::{self, LineReader, RawLine};
use crate::provider::wire::{BatchObject, FileObject};
use crate::store::{NotedIntent, StoreError, StoreReader};

/// Pages of a list that are read at most; more mean that the provider's paging goes in circles.
pub const PAGES_MAX: u32 = 2000;

/// Reads the provider's list of batches, newest first, back to `since` by the provider's clock, and hands every batch
/// to `see`. Says whether it came so far.
pub async fn look_back(
    shared: &Shared,
    since: Timestamp,
    mut see: impl FnMut(BatchObject),
) -> Result<bool, ProviderError> {
    let _turn = shared.pace.search().await;
    let mut reading = Reading::since(since);
    for _ in 0..PAGES_MAX {
        let page = read(shared, shared.provider.list_batches(reading.after(), 100)).await?;
        let turn = reading.turn(page.data.iter().map(|batch| (&batch.id, batch.created_at)), page.has_more);
        page.data.into_iter().for_each(&mut see);
        if let Turn::Ended { whole } = turn {
            return Ok(whole);
        }
    }
    Ok(false)
}

/// Makes a call that costs nothing, once the key may be used, and tells the account what came of it.
pub async fn read<T>(
    shared: &Shared,
    call: impl Future<Output = Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    let (account, clock) = (&shared.account, shared.clock.as_ref());
    account.pass(clock, Call::Read).await;
    match call.await {
        Ok(answer) => {
            account.succeeded(Success::Read);
            Ok(answer)
        }
        Err(err) => {
            account.heed(clock, &err);
            Err(err)
        }
    }
}

/// The first file in the provider's list, newest first, that is `wanted`; those from before `since` are not looked at.
pub async fn find_file(
    shared: &Shared,
    since: Timestamp,
    wanted: impl Fn(&FileObject) -> bool,
) -> Result<Option<FileObject>, ProviderError> {
    let mut reading: Reading<FileId> = Reading::since(since);
    for _ in 0..PAGES_MAX {
        let page = read(shared, shared.provider.list_files(reading.after(), 1000)).await?;
        let turn = reading.turn(page.data.iter().map(|file| (&file.id, file.created_at)), page.has_more);
        let is_empty = page.data.is_empty();
        if let Some(file) = page.data.into_iter().find(&wanted) {
            return Ok(Some(file));
        }
        match turn {
            Turn::Next(_) => {}
            // One that says that there is more, and has nothing, may have it the next time.
            Turn::Ended { whole: false } if is_empty => break,
            // Of one that shows the same again and again everything has been seen that can be.
            Turn::Ended { .. } => return Ok(None),
        }
    }
    Err(ProviderError::Uncertain { call: "GET /files", what: "the list does not end".to_owned() })
}

/// All files that are wanted, as far back as `since`.
pub async fn find_files(
    shared: &Shared,
    since: Timestamp,
    wanted: impl Fn(&FileObject) -> bool,
) -> Result<Vec<FileObject>, ProviderError> {
    let found = std::cell::RefCell::new(Vec::new());
    // None is the one that ends the search.
    find_file(shared, since, |file| {
        if wanted(file) {
            found.borrow_mut().push(file.clone());
        }
        false
    })
    .await?;
    Ok(found.into_inner())
}

/// What the names of all input files of a batch begin with, before the number of the upload.
pub fn file_stem(shared: &Shared, batch: BatchId) -> String {
    format!("ns-{}-{batch}", shared.store.instance())
}

/// The name under which an input file is sent.
pub fn file_name(shared: &Shared, batch: BatchId, upload: u32) -> String {
    format!("{}-{upload}.jsonl", file_stem(shared, batch))
}

/// Whether the provider's list, as we see it, is that of the project in which the call was made. If not, nothing is sent
/// until it is: what was looked for there in vain may be there all the same.
pub async fn is_proven(shared: &Shared, intent: &Intent) -> Result<bool, ProviderError> {
    let (account, other) = (&shared.account, intent.made_with);
    if other == shared.made_with || account.is_proven(other) {
        return Ok(true);
    }
    // Another key of the same project sees the same files. Any other file of ours would prove nothing: this store may
    // have been used with both projects.
    let shown = match read(shared, shared.provider.get_file(&intent.input.id)).await {
        Ok(file) => file.is_some(),
        Err(ProviderError::Refused { .. }) => false,
        Err(err) => return Err(err),
    };
    if shown {
        account.prove(other);
    } else {
        let why = format!(
            "a create call is looked for that was made with another key or project, and the provider does not show its \
             input file {}: is this the right key and project? If it is, the file was deleted or has expired",
            intent.input.id
        );
        account.doubt(shared.clock.as_ref(), other, &why);
    }
    Ok(shown)
}

/// What the batch that looks for its creation knows of its search.
#[derive(Debug, Clone, Copy)]
pub struct Looking {
    /// Since when this process looks, on the monotonic clock.
    pub since_ms: u64,
    /// The first search of a process begins at once, later ones a while after.
    pub first: bool,
    /// Whether it was told already that the list is not proven to be ours, or need not be.
    pub told: bool,
}

/// Searches the provider's list once for an uncertain creation.
pub async fn sweep(shared: &Shared, intent: Intent, looking: Looking) -> Event {
    if !looking.first {
        let pause = (shared.grace / 4).clamp(Duration::from_millis(500), Duration::from_secs(60));
        shared.clock.sleep(pause).await;
    }
    crash_point!("sweep.before_search");
    let searched = search(shared, &intent).await;
    crash_point!("sweep.after_search");
    let (complete, found) = match searched {
        Ok(Searched { proven: false, .. }) if !looking.told => return Event::ListUnproven,
        Ok(Searched { complete, found, proven }) => (complete && proven, found),
        Err(err) => {
            tracing::warn!(nonce = %intent.nonce, error = %err, "the search for an uncertain batch did not get through");
            (false, None)
        }
    };
    let looked_for = Duration::from_millis(shared.clock.monotonic_ms().saturating_sub(looking.since_ms));
    Event::Swept { complete, grace_over: looked_for >= shared.grace, found }
}

struct Searched {
    /// Whether every page back to the input file's own time was read.
    complete: bool,
    /// What was found.
    found: Option<Observation>,
    /// Whether what was not found is known to be no matter of the wrong key or project.
    proven: bool,
}

async fn search(shared: &Shared, intent: &Intent) -> Result<Searched, ProviderError> {
    let mut found: Vec<BatchObject> = Vec::new();
    let see = |batch: BatchObject| {
        if is_of(&batch, intent, &shared.reader) {
            found.push(batch);
        }
    };
    let complete = look_back(shared, intent.input.created_at, see).await?;
    let found = keep(found);
    if found.is_some() {
        shared.account.prove(intent.made_with);
    }
    let proven = found.is_some() || !complete || is_proven(shared, intent).await?;
    Ok(Searched { complete, found, proven })
}

/// Entries that are so little older than the one after them are still in order: not every server sorts by the time that it
/// shows.
const OUT_OF_ORDER: Duration = Duration::from_secs(60);

/// How the reading of a list goes on after a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn<Id> {
    /// With the page after this entry.
    Next(Id),
    /// Not at all.
    Ended {
        /// Whether everything back to the time that was asked for has been seen.
        whole: bool,
    },
}

/// The reading of a list, newest first, back to a time: page by page, each after the last entry of the one before.
#[derive(Debug)]
pub struct Reading<Id> {
    since: Timestamp,
    after: Option<Id>,
    /// When the entry before was made, where it says.
    before: Option<Timestamp>,
    /// Whether an entry was newer than the one before it. Then an old one says nothing of what comes after it.
    is_mixed: bool,
}

impl<Id: Clone + PartialEq> Reading<Id> {
    /// One that wants everything since then.
    pub const fn since(since: Timestamp) -> Self {
        Self { since, after: None, before: None, is_mixed: false }
    }

    /// After which entry the next page begins.
    pub const fn after(&self) -> Option<&Id> {
        self.after.as_ref()
    }

    /// What a page says of the reading that it is part of. A list that does not go on where it says that there is more
    /// proves nothing.
    pub fn turn<'a>(
        &mut self,
        entries: impl IntoIterator<Item = (&'a Id, Option<Timestamp>)>,
        has_more: bool,
    ) -> Turn<Id>
    where
        Id: 'a,
    {
        let mut last = None;
        for (id, created_at) in entries {
            if let Some(at) = created_at {
                self.is_mixed |= self.before.is_some_and(|before| at > before.plus(OUT_OF_ORDER));
                self.before = Some(at);
            }
            last = Some((id, created_at));
        }
        let Some((last, created_at)) = last else { return Turn::Ended { whole: !has_more } };
        let is_older = created_at.is_some_and(|at| at < self.since.minus(OUT_OF_ORDER)) && !self.is_mixed;
        if is_older || !has_more {
            return Turn::Ended { whole: true };
        }
        if self.after.as_ref() == Some(last) {
            return Turn::Ended { whole: false };
        }
        self.after = Some(last.clone());
        Turn::Next(last.clone())
    }
}

/// Whether a batch in the list came of the call that `intent` was stored for.
pub fn is_of(batch: &BatchObject, intent: &Intent, reader: &StoreReader) -> bool {
    match mark(batch, "ns_nonce") {
        // The nonce decides where there is one: the same file may have been sent before, and turned away.
        Some(found) => found == intent.nonce.to_string(),
        // Some servers drop metadata; then the file tells, unless that batch is known already.
        None => {
            batch.input_file_id.as_ref() == Some(&intent.input.id)
                && matches!(reader.batch_of_provider(&batch.id), Ok(None))
        }
    }
}

/// The one to keep: the one with results, else the oldest. The others are found again as shadows.
pub fn keep(mut found: Vec<BatchObject>) -> Option<Observation> {
    if found.len() > 1 {
        let ids: Vec<_> = found.iter().map(|batch| batch.id.as_str().to_owned()).collect();
        tracing::error!(provider_batches = ?ids, "two batches came of one create call; the better one is kept, the others may cost money");
    }
    found.sort_by_key(|batch| (batch.output_file_id.is_none(), batch.created_at));
    found.into_iter().next().map(observation)
}

/// What we wrote into a batch's metadata.
pub fn mark<'a>(batch: &'a BatchObject, name: &str) -> Option<&'a str> {
    batch.metadata.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// What a batch in the provider's list is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It is not of this store, or it is known, or somebody is looking for it at this moment.
    Nothing,
    /// It came of a create call that was given up, or is one more of a call that had its effect twice.
    Shadow {
        /// Whose call it was.
        of: BatchId,
        /// Made from its marks.
        intent: Intent,
    },
    /// This store does not know the call: it went back in time.
    Unknown {
        /// The batch here that it was made from, where it is there. It gives its requests back if it was never sent as
        /// far as is known, and has to come to its end first otherwise.
        unsent: Option<BatchId>,
        /// Made from its marks.
        intent: Intent,
    },
}

/// The intents of the last days.
pub struct Intents(HashMap<Nonce, NotedIntent>);

impl Intents {
    /// By their nonces.
    pub fn new(noted: Vec<NotedIntent>) -> Self {
        Self(noted.into_iter().map(|noted| (noted.intent.nonce, noted)).collect())
    }
}

/// Whether a call has its batch, and none is looked for that would be of the same file: then another one of that file is
/// one too many.
fn has_another(reader: &StoreReader, noted: &NotedIntent) -> Result<bool, StoreError> {
    let Some(here) = reader.batch(noted.batch)? else { return Ok(false) };
    let is_looked_for = !matches!(here.state, BatchState::Observing { .. }) && here.state.intent().is_some();
    Ok(here.provider_batch.is_some() && !is_looked_for)
}

/// What a batch in the provider's list is to the store behind `reader`, by our wall clock.
pub fn judge(
    reader: &StoreReader,
    instance: Uuid,
    now: Timestamp,
    batch: &BatchObject,
    intents: &Intents,
) -> Result<Finding, StoreError> {
    if reader.batch_of_provider(&batch.id)?.is_some() {
        return Ok(Finding::Nothing);
    }
    let nonce = mark(batch, "ns_nonce").and_then(|nonce| nonce.parse::<Nonce>().ok());
    let Some(nonce) = nonce else {
        // Some servers drop metadata; then the file tells.
        let Some(file) = &batch.input_file_id else { return Ok(Finding::Nothing) };
        for noted in intents.0.values().filter(|noted| noted.intent.input.id == *file) {
            if noted.superseded || has_another(reader, noted)? {
                return Ok(Finding::Shadow { of: noted.batch, intent: noted.intent.clone() });
            }
        }
        return Ok(Finding::Nothing);
    };
    if mark(batch, "ns_instance") != Some(&instance.to_string()) {
        return Ok(Finding::Nothing);
    }
    let at = batch.created_at.unwrap_or(now);
    let input = batch.input_file_id.clone().unwrap_or_else(|| FileId::new("unknown"));
    let input = InputFile { id: input, upload: 0, bytes: 0, created_at: at };
    // Nobody looks for what was found, so it is of no interest with what it was made.
    let intent = Intent { nonce, input, at, made_with: Credentials::default() };
    let Some(of) = mark(batch, "ns_batch").and_then(|id| id.parse::<BatchId>().ok()) else {
        return Ok(Finding::Unknown { unsent: None, intent });
    };
    let Some(here) = reader.batch(of)? else { return Ok(Finding::Unknown { unsent: None, intent }) };
    if here.provider_batch.as_ref() == Some(&batch.id) {
        return Ok(Finding::Nothing);
    }
    let is_looked_for = !matches!(here.state, BatchState::Observing { .. })
        && here.state.intent().is_some_and(|now| now.nonce == nonce);
    if is_looked_for {
        return Ok(Finding::Nothing);
    }
    // A call that was made from here is noted here, whatever became of it: as long as it is watched, and for good if it
    // was given up. One that is neither was made after a backup, also where the batch has come to another end
    // meanwhile, as one that was still empty then, or ran as another batch that was turned away later.
    let is_its_own = here.state.intent().is_some_and(|own| own.nonce == nonce);
    let is_noted =
        is_its_own || intents.0.contains_key(&nonce) || here.superseded.iter().any(|old| old.nonce == nonce);
    if here.origin == Origin::Cut && !is_noted {
        return Ok(Finding::Unknown { unsent: Some(of), intent });
    }
    Ok(Finding::Shadow { of, intent })
}

/// The requests that a file of lines names, whichever kind of file it is.
pub fn requests_in(path: &Path) -> io::Result<Vec<RequestId>> {
    let mut reader = LineReader::open(path, 0)?;
    let mut ids = Vec::new();
    while let Some(line) = reader.next_line()? {
        let head = match line {
            RawLine::Whole { bytes, .. } => bytes,
            RawLine::Oversized { head, .. } => head,
        };
        ids.extend(jsonl::custom_id_in(head).and_then(|id| id.parse::<RequestId>().ok()));
    }
    Ok(ids)
}
