//! Erasing a session or a company, step by step; each function is one transaction, and each may be repeated.
//!
//! What is left: the erasure itself, what each request cost (`gone`), which batches it was in (its id, as a member),
//! and a tombstone by which the session, or the company, is known when it comes again. None of it has content.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::batches::Fate;
use super::engine::Engine;
use super::keys::{self, Key, Tree};
use super::tx::Tx;
use super::{
    Store, StoreError, StoreReader, batches, client_keys, codec, outcomes, requests, sessions, sources,
    tokens, webhooks,
};
use crate::domain::batch::Batch;
use crate::domain::company::Company;
use crate::domain::erasure::{Erasure, ErasureState, Subject};
use crate::domain::id::{BatchId, CompanyId, ErasureId, RequestId, SessionId, Timestamp};
use crate::domain::request::{Request, RequestStatus};
use crate::domain::session::Session;

/// Requests that one transaction removes: each has index entries, texts and a batch to be told.
const REQUESTS: usize = 50;
/// Sessions that one transaction removes.
const SESSIONS: usize = 10;
/// Client keys that one transaction removes.
const CLIENT_KEYS: usize = 250;
/// Batches whose files one transaction takes over from what was removed before, or is being removed.
const TAKEN_OVER: usize = 100;
/// Shadows of one batch that are looked for; it has one for each create call that was given up, if any.
const SHADOWS: usize = 250;

/// Answers of one request that are looked for; it has one for each time that it was run.
const BOOKINGS: usize = 250;

/// What a step of an erasure did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErasedChunk {
    /// Whether something was removed.
    pub moved: bool,
    /// Batches that were not sent and have requests of it: those have to give them back first.
    pub held: Vec<BatchId>,
    /// Whether nothing of it is left in the records.
    pub gone: bool,
}

impl Store {
    /// Begins to erase a session, which is kept out from now on. Gives the erasure that was begun before, if one was;
    /// none where there is no such session.
    pub async fn erase_session(
        &self,
        company: CompanyId,
        external_id: String,
        id: ErasureId,
        by: String,
        now: Timestamp,
    ) -> Result<Option<Erasure>, StoreError> {
        self.committer
            .commit(1, move |tx| {
                let print = print(tx, &company, &external_id)?;
                let tombstone = session_tombstone(&company, &print);
                if let Some(known) = known(tx, &tombstone)? {
                    return Ok(Some(known));
                }
                let key = Key::new().company(&company).text(&external_id).done();
                let Some(session) = tx.read::<SessionId>(Tree::SessionKeys, &key)? else { return Ok(None) };
                if let Some(session) = tx.read::<Session>(Tree::Sessions, session.as_bytes())? {
                    sessions::still(tx, session)?;
                }
                begin(tx, tombstone, id, Subject::Session { company, session, print }, by, now).map(Some)
            })
            .await
    }

    /// Begins to erase a company, which is gone for everybody else from now on. Gives the erasure that was begun
    /// before, if one was; none where there is no such company.
    pub async fn erase_company(
        &self,
        company: CompanyId,
        id: ErasureId,
        by: String,
        now: Timestamp,
    ) -> Result<Option<Erasure>, StoreError> {
        self.committer
            .commit(1, move |tx| {
                let tombstone = company_tombstone(&company);
                if let Some(known) = known(tx, &tombstone)? {
                    return Ok(Some(known));
                }
                let key = Key::new().company(&company).done();
                if tx.read::<Company>(Tree::Companies, &key)?.is_none() {
                    return Ok(None);
                }
                tx.remove(Tree::Companies, key);
                begin(tx, tombstone, id, Subject::Company(company), by, now).map(Some)
            })
            .await
    }

    /// Removes the next records of what is erased.
    pub async fn erase_chunk(&self, id: ErasureId, now: Timestamp) -> Result<ErasedChunk, StoreError> {
        self.committer
            .commit(CLIENT_KEYS, move |tx| {
                let mut erasure = load(tx, id)?;
                let chunk = match erasure.subject.clone() {
                    Subject::Session { company, session, .. } => {
                        session_chunk(tx, &mut erasure, &company, session, now)?
                    }
                    Subject::Company(company) => company_chunk(tx, &mut erasure, &company, now)?,
                };
                if chunk.moved {
                    save(tx, &erasure)?;
                }
                Ok(chunk)
            })
            .await
    }

    /// The files of a batch are deleted, at the provider and here. Those of a batch that surfaced for an old create call of
    /// it while they were waited for come next.
    pub async fn note_files_erased(&self, id: ErasureId, batch: BatchId) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                let key = of_batch(id, batch);
                if tx.has(Tree::Erasing, &key)? {
                    tx.remove(Tree::Erasing, key);
                    let mut erasure = load(tx, id)?;
                    erasure.batches += 1;
                    save(tx, &erasure)?;
                    for shadow in shadows_of(tx, batch)? {
                        let found = tx.read::<Batch>(Tree::Batches, shadow.as_bytes())?;
                        if found.is_some_and(|shadow| shadow.may_have_files()) {
                            tx.put(Tree::Erasing, of_batch(id, shadow), Vec::new());
                        }
                    }
                }
                if let Some(mut batch) = tx.read::<Batch>(Tree::Batches, batch.as_bytes())?
                    && batch.closed_at.is_some()
                {
                    batch.files.clear();
                    batch.unsure_uploads = 0;
                    tx.write(Tree::Batches, batch.id.as_bytes().to_vec(), &batch)?;
                }
                Ok(())
            })
            .await
    }

    /// Nothing refers to it any more: what is left lies in the store's old pages. Not while files are waited for.
    pub async fn note_records_erased(&self, id: ErasureId) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                let mut erasure = load(tx, id)?;
                if erasure.state == ErasureState::Running && !waits_for_files(tx, &erasure)? {
                    erasure.state = ErasureState::Compacting;
                    save(tx, &erasure)?;
                }
                Ok(())
            })
            .await
    }

    /// The store was compacted after these erasures, at most 250, had removed what they erase: they are done. Gives those;
    /// one for which files were found meanwhile goes on with them.
    pub async fn finish_erasures(
        &self,
        ids: Vec<ErasureId>,
        now: Timestamp,
    ) -> Result<Vec<ErasureId>, StoreError> {
        self.committer
            .commit(ids.len(), move |tx| {
                let mut done = Vec::with_capacity(ids.len());
                for id in ids {
                    let erasure = load(tx, id)?;
                    if erasure.state != ErasureState::Compacting {
                        continue;
                    }
                    if waits_for_files(tx, &erasure)? {
                        save(tx, &Erasure { state: ErasureState::Running, ..erasure })?;
                        continue;
                    }
                    save(tx, &Erasure { state: ErasureState::Done, done_at: Some(now), ..erasure })?;
                    tx.remove(Tree::Erasing, id.as_bytes().to_vec());
                    done.push(id);
                }
                Ok(done)
            })
            .await
    }
}

fn begin(
    tx: &mut Tx<'_>,
    tombstone: Vec<u8>,
    id: ErasureId,
    subject: Subject,
    by: String,
    at: Timestamp,
) -> Result<Erasure, StoreError> {
    tx.write(Tree::Tombstones, tombstone, &id)?;
    tx.put(Tree::Erasing, id.as_bytes().to_vec(), Vec::new());
    let state = ErasureState::Running;
    let erasure = Erasure { id, subject, by, at, state, sessions: 0, requests: 0, batches: 0, done_at: None };
    save(tx, &erasure)?;
    Ok(erasure)
}

fn load(tx: &Tx<'_>, id: ErasureId) -> Result<Erasure, StoreError> {
    tx.read(Tree::Erasures, id.as_bytes())?
        .ok_or_else(|| StoreError::NotFound { what: "erasure", id: id.to_string() })
}

fn save(tx: &mut Tx<'_>, erasure: &Erasure) -> Result<(), StoreError> {
    tx.write(Tree::Erasures, erasure.id.as_bytes().to_vec(), erasure)
}

/// The erasure that keeps something out.
fn known(tx: &Tx<'_>, tombstone: &[u8]) -> Result<Option<Erasure>, StoreError> {
    match tx.read::<ErasureId>(Tree::Tombstones, tombstone)? {
        Some(id) => load(tx, id).map(Some),
        None => Ok(None),
    }
}

fn session_chunk(
    tx: &mut Tx<'_>,
    erasure: &mut Erasure,
    company: &CompanyId,
    id: SessionId,
    now: Timestamp,
) -> Result<ErasedChunk, StoreError> {
    let mut chunk = ErasedChunk::default();
    let found = tx.scan_prefix(Tree::SessionRequests, id.as_bytes(), REQUESTS)?;
    for (key, _) in &found {
        remove_request(tx, erasure, key, &mut chunk, now)?;
    }
    if !found.is_empty() {
        return Ok(chunk);
    }
    if take_over_aged(tx, erasure.id, &aged_of(company, id))? {
        chunk.moved = true;
        return Ok(chunk);
    }
    // Its last request may have ended before it was gone, and so may have left it behind.
    if let Some(session) = tx.read::<Session>(Tree::Sessions, id.as_bytes())? {
        sessions::remove(tx, session)?;
        erasure.sessions += 1;
        chunk.moved = true;
    }
    chunk.gone = true;
    Ok(chunk)
}

fn company_chunk(
    tx: &mut Tx<'_>,
    erasure: &mut Erasure,
    company: &CompanyId,
    now: Timestamp,
) -> Result<ErasedChunk, StoreError> {
    let mut chunk = ErasedChunk::default();
    let prefix = Key::new().company(company).done();
    let mut left = REQUESTS;
    let mut none = true;
    for status in RequestStatus::ALL {
        let of_status = Key::new().company(company).status(status).done();
        for (key, _) in tx.scan_prefix(Tree::ByCompany, &of_status, left)? {
            none = false;
            left -= 1;
            remove_request(tx, erasure, &key, &mut chunk, now)?;
        }
    }
    if !none {
        return Ok(chunk);
    }
    for token in tokens::of(tx, Some(company))? {
        tokens::forget(tx, &token);
        chunk.moved = true;
    }
    if client_keys::forget_keys_of(tx, company, CLIENT_KEYS, now)? > 0
        || webhooks::remove_of(tx, company, now)?
        || take_over_aged(tx, erasure.id, &prefix)?
    {
        chunk.moved = true;
        return Ok(chunk);
    }
    for (_, value) in tx.scan_prefix(Tree::SessionKeys, &prefix, SESSIONS)? {
        let id: SessionId = codec::decode(&value)?;
        if let Some(session) = tx.read::<Session>(Tree::Sessions, id.as_bytes())? {
            sessions::remove(tx, session)?;
            erasure.sessions += 1;
        }
        chunk.moved = true;
    }
    // Behind the sessions: a fetch that goes is taken off the counts of its source.
    if !chunk.moved {
        chunk.moved = sources::remove_of(tx, company, CLIENT_KEYS)? > 0;
    }
    let mut batches_left = TAKEN_OVER;
    for (key, value) in tx.scan_prefix(Tree::Tombstones, &prefix, CLIENT_KEYS)? {
        let other: ErasureId = codec::decode(&value)?;
        // Its own stays, and says for all of them that nothing comes again.
        if other != erasure.id {
            if see_to_files_of(tx, erasure.id, other, &mut batches_left)? {
                tx.remove(Tree::Tombstones, key);
            }
            chunk.moved = true;
        }
    }
    chunk.gone = !chunk.moved;
    Ok(chunk)
}

/// Removes a request. In a batch that the provider has, or may have, its place stays and its line is dropped when it
/// comes; one that is in a batch that was not sent waits until that gives it back.
fn remove_request(
    tx: &mut Tx<'_>,
    erasure: &mut Erasure,
    key: &[u8],
    chunk: &mut ErasedChunk,
    now: Timestamp,
) -> Result<(), StoreError> {
    let id: RequestId = keys::request_at_end(key)
        .ok_or_else(|| StoreError::Codec("the key of a request is too short".to_owned()))?;
    let request: Request = requests::load(tx, id)?;
    for batch in batches_that_had(tx, &request)? {
        tx.put(Tree::Erasing, of_batch(erasure.id, batch), Vec::new());
    }
    if let (RequestStatus::BatchingInProgress, Some(batch)) = (request.status, request.batch) {
        let mut batch: Batch = tx
            .read(Tree::Batches, batch.as_bytes())?
            .ok_or_else(|| StoreError::Broken(format!("batch {batch} is named but not there")))?;
        if batch.state.is_unsent() {
            if !chunk.held.contains(&batch.id) {
                chunk.held.push(batch.id);
            }
            return Ok(());
        }
        outcomes::settle(tx, &mut batch, id, Fate::Erased);
        // Were it sent again, it would be without this line.
        batch.input_bytes = batch.input_bytes.saturating_sub(u64::from(request.line_bytes));
        // Its revision stays: its actor has read nothing of what changes here.
        tx.write(Tree::Batches, batch.id.as_bytes().to_vec(), &batch)?;
        if batch.counts.outstanding() == 0 && !chunk.held.contains(&batch.id) {
            // Nobody waits for it any more.
            chunk.held.push(batch.id);
        }
    }
    requests::remove(tx, request, now)?;
    erasure.requests += 1;
    chunk.moved = true;
    Ok(())
}

/// The batches whose files have something of a request: those that it was in, their shadows, which may be running yet, and
/// any other whose result files had a line for it although it was never in them, as far as was known.
pub(super) fn batches_that_had(tx: &Tx<'_>, request: &Request) -> Result<BTreeSet<BatchId>, StoreError> {
    let was_in = request.history.iter().map(|attempt| attempt.batch).chain(request.batch);
    let mut batches: BTreeSet<_> = was_in.collect();
    for batch in batches.clone() {
        batches.extend(shadows_of(tx, batch)?);
    }
    for (key, _) in tx.scan_prefix(Tree::Bookings, request.id.as_bytes(), BOOKINGS)? {
        let Some(provider_batch) = key.get(request.id.as_bytes().len()..) else { continue };
        batches.extend(tx.read::<BatchId>(Tree::ProviderBatches, provider_batch)?);
    }
    Ok(batches)
}

fn shadows_of(tx: &Tx<'_>, batch: BatchId) -> Result<Vec<BatchId>, StoreError> {
    let shadows = tx.scan_prefix(Tree::Shadows, batch.as_bytes(), SHADOWS)?;
    Ok(shadows.iter().filter_map(|(key, _)| keys::batch_at_end(key)).collect())
}

/// Whether files that have something of what is erased are to be deleted yet. Its own entry is no batch's.
fn waits_for_files(tx: &Tx<'_>, erasure: &Erasure) -> Result<bool, StoreError> {
    let aged = match &erasure.subject {
        Subject::Session { company, session, .. } => aged_of(company, *session),
        Subject::Company(company) => Key::new().company(company).done(),
    };
    Ok(tx.scan_prefix(Tree::Erasing, erasure.id.as_bytes(), 2)?.len() > 1
        || !tx.scan_prefix(Tree::AgedBatches, &aged, 1)?.is_empty())
}

/// Stands for a session where a request had none.
const NO_SESSION: SessionId = SessionId::from_bytes([0; 16]);

fn aged_of(company: &CompanyId, session: SessionId) -> Vec<u8> {
    Key::new().company(company).bytes(session.as_bytes()).done()
}

/// Has the provider's files of a batch deleted that have something of a request, which will not know of the batch any more.
/// An erasure that comes later has to see that they are gone.
pub(super) fn let_files_go(tx: &mut Tx<'_>, request: &Request, batch: BatchId) -> Result<(), StoreError> {
    match tx.read::<Batch>(Tree::Batches, batch.as_bytes())? {
        Some(batch) if batch.may_have_files() => {
            batches::delete_files(tx, &batch);
            note_aged(tx, &request.group.company, request.source.session(), batch.id)
        }
        Some(_) | None => Ok(()),
    }
}

/// Has the files go of a batch that fell out of the history of a request, and of those of its old create calls.
pub(super) fn let_go_of(tx: &mut Tx<'_>, request: &Request, batch: BatchId) -> Result<(), StoreError> {
    if request.batch == Some(batch) || request.history.iter().any(|attempt| attempt.batch == batch) {
        return Ok(());
    }
    for batch in shadows_of(tx, batch)?.into_iter().chain([batch]) {
        let_files_go(tx, request, batch)?;
    }
    Ok(())
}

/// Notes that the files of a batch have something of a request that is removed for its age, was removed before, or forgets
/// the batch: that they are deleted is only asked for, and an erasure has to know it.
pub(super) fn note_aged(
    tx: &mut Tx<'_>,
    company: &CompanyId,
    session: Option<SessionId>,
    batch: BatchId,
) -> Result<(), StoreError> {
    match known(tx, &company_tombstone(company))? {
        None => {
            let of = aged_of(company, session.unwrap_or(NO_SESSION));
            let batch = batch.as_bytes();
            tx.put(Tree::AgedOf, Key::new().bytes(batch).bytes(&of).done(), Vec::new());
            tx.put(Tree::AgedBatches, Key::new().bytes(&of).bytes(batch).done(), Vec::new());
        }
        // All of the company was erased already: nobody comes for it any more.
        Some(erasure) if erasure.state == ErasureState::Done => {}
        Some(erasure) => tx.put(Tree::Erasing, of_batch(erasure.id, batch), Vec::new()),
    }
    Ok(())
}

/// A batch that had something of what was removed while it was live is closed: its files go now, as those of others did.
pub(super) fn closed(tx: &mut Tx<'_>, batch: &Batch) -> Result<(), StoreError> {
    if tx.scan_prefix(Tree::AgedOf, batch.id.as_bytes(), 1)?.is_empty() {
        return Ok(());
    }
    batches::delete_files(tx, batch);
    if !batch.may_have_files() {
        forget_aged(tx, batch.id)?;
    }
    Ok(())
}

/// Forgets what had files of a batch whose files are gone, some of it at once; whether that was all.
pub(super) fn forget_aged(tx: &mut Tx<'_>, batch: BatchId) -> Result<bool, StoreError> {
    let found = tx.scan_prefix(Tree::AgedOf, batch.as_bytes(), batches::CHUNK)?;
    for (key, _) in &found {
        let of = key.get(batch.as_bytes().len()..).unwrap_or_default();
        tx.remove(Tree::AgedBatches, Key::new().bytes(of).bytes(batch.as_bytes()).done());
        tx.remove(Tree::AgedOf, key.clone());
    }
    Ok(found.len() < batches::CHUNK)
}

/// Has an erasure see to files that had something of what was removed for its age before; whether there were any.
fn take_over_aged(tx: &mut Tx<'_>, erasure: ErasureId, prefix: &[u8]) -> Result<bool, StoreError> {
    let found = tx.scan_prefix(Tree::AgedBatches, prefix, TAKEN_OVER)?;
    for (key, _) in &found {
        let batch = keys::batch_at_end(key)
            .ok_or_else(|| StoreError::Codec("the key of a batch is too short".to_owned()))?;
        // It may be that they went meanwhile, and only what waited for them did not.
        let known = tx.read::<Batch>(Tree::Batches, batch.as_bytes())?;
        if known.is_some_and(|batch| batch.may_have_files()) {
            tx.put(Tree::Erasing, of_batch(erasure, batch), Vec::new());
        }
        let of = key.get(..key.len().saturating_sub(batch.as_bytes().len())).unwrap_or_default();
        tx.remove(Tree::AgedOf, Key::new().bytes(batch.as_bytes()).bytes(of).done());
        tx.remove(Tree::AgedBatches, key.clone());
    }
    Ok(!found.is_empty())
}

/// Has an erasure of a company see to the files that an earlier one of a session has still to delete: all that is known of
/// what was in them went with that one's records. At most `left` of them; whether those are all. The earlier one goes on
/// with them as well, since it is not done before they are gone, either.
fn see_to_files_of(
    tx: &mut Tx<'_>,
    erasure: ErasureId,
    earlier: ErasureId,
    left: &mut usize,
) -> Result<bool, StoreError> {
    let own_entry = earlier.as_bytes().len();
    for (key, _) in tx.scan_prefix(Tree::Erasing, earlier.as_bytes(), usize::MAX)? {
        let Some(batch) = keys::batch_at_end(&key).filter(|_| key.len() > own_entry) else { continue };
        let taken = of_batch(erasure, batch);
        if tx.has(Tree::Erasing, &taken)? {
            continue;
        }
        if *left == 0 {
            return Ok(false);
        }
        *left -= 1;
        tx.put(Tree::Erasing, taken, Vec::new());
    }
    Ok(true)
}

/// What had files is a batch that is there, and is found by its batch as well as by whose it was.
pub(super) fn verify_aged(engine: &Engine, by_batch: bool, key: &[u8]) -> Result<Option<String>, StoreError> {
    const ID: usize = 16;
    let at = if by_batch { ID } else { key.len().saturating_sub(ID) };
    let (before, behind) = key.split_at_checked(at).unwrap_or_default();
    let (other, batch) = if by_batch { (Tree::AgedBatches, before) } else { (Tree::AgedOf, behind) };
    if engine.get(Tree::Batches, batch)?.is_none() {
        return Ok(Some("something was removed of a batch that is not there".to_owned()));
    }
    let turned = Key::new().bytes(behind).bytes(before).done();
    let is_there = engine.get(other, &turned)?.is_some();
    Ok((!is_there).then(|| format!("a batch had what was removed, and {} does not say so", other.name())))
}

fn of_batch(erasure: ErasureId, batch: BatchId) -> Vec<u8> {
    Key::new().bytes(erasure.as_bytes()).bytes(batch.as_bytes()).done()
}

fn company_tombstone(company: &CompanyId) -> Vec<u8> {
    Key::new().company(company).byte(1).done()
}

fn session_tombstone(company: &CompanyId, print: &[u8; 32]) -> Vec<u8> {
    Key::new().company(company).byte(2).bytes(print).done()
}

/// By what an external id is known again that is not kept. The store's own id goes in, so that prints of one store
/// cannot be looked up in another's.
fn print(tx: &Tx<'_>, company: &CompanyId, external_id: &str) -> Result<[u8; 32], StoreError> {
    let instance: Option<Uuid> = tx.read(Tree::Meta, super::INSTANCE)?;
    let mut hash = Sha256::new();
    hash.update(instance.unwrap_or_default().as_bytes());
    hash.update(Key::new().company(company).text(external_id).done());
    Ok(hash.finalize().into())
}

/// Whether a company was erased and not made anew since.
pub(super) fn is_erased(tx: &Tx<'_>, company: &CompanyId) -> Result<bool, StoreError> {
    tx.has(Tree::Tombstones, &company_tombstone(company))
}

/// Whether a session, or its company, was erased.
pub(super) fn is_kept_out(tx: &Tx<'_>, company: &CompanyId, external_id: &str) -> Result<bool, StoreError> {
    // Nearly every company has nothing erased: then there is nothing to look up.
    let prefix = Key::new().company(company).done();
    if tx.scan_prefix(Tree::Tombstones, &prefix, 1)?.is_empty() {
        return Ok(false);
    }
    let print = print(tx, company, external_id)?;
    Ok(is_erased(tx, company)? || tx.has(Tree::Tombstones, &session_tombstone(company, &print))?)
}

/// Whether a company of this id may be made: there was none, or its erasure is done. Its tombstone goes.
pub(super) fn may_begin_anew(tx: &mut Tx<'_>, company: &CompanyId) -> Result<bool, StoreError> {
    let tombstone = company_tombstone(company);
    match known(tx, &tombstone)? {
        Some(erasure) if erasure.state != ErasureState::Done => return Ok(false),
        Some(_) => tx.remove(Tree::Tombstones, tombstone),
        None => {}
    }
    Ok(true)
}

impl StoreReader {
    /// One erasure.
    pub fn erasure(&self, id: ErasureId) -> Result<Option<Erasure>, StoreError> {
        self.read(Tree::Erasures, id.as_bytes())
    }

    /// At most `limit` erasures, newest first, older than `before`.
    pub fn erasures(&self, before: Option<ErasureId>, limit: usize) -> Result<Vec<Erasure>, StoreError> {
        let end = before.map(|id| id.as_bytes().to_vec());
        let entries = self.engine.scan_back(Tree::Erasures, &[], end.as_deref(), limit)?;
        entries.into_iter().map(|(_, value)| codec::decode(&value)).collect()
    }

    /// At most `limit` erasures that are not done, oldest first, after `after`.
    pub fn open_erasures(&self, after: Option<ErasureId>, limit: usize) -> Result<Vec<Erasure>, StoreError> {
        let mut found = Vec::new();
        let mut from = after.and_then(|id| keys::after_prefix(id.as_bytes())).unwrap_or_default();
        while found.len() < limit {
            let next = self.engine.scan(Tree::Erasing, &from, None, 1)?;
            let Some(id) = next.first().and_then(|(key, _)| key.first_chunk::<16>()) else { break };
            found.extend(self.erasure(ErasureId::from_bytes(*id))?);
            // The batches of this one are passed over.
            let Some(after) = keys::after_prefix(id) else { break };
            from = after;
        }
        Ok(found)
    }

    /// At most `limit` batches, after `after`, whose files an erasure has still to delete.
    pub fn batches_to_erase(
        &self,
        id: ErasureId,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<BatchId>, StoreError> {
        // Behind the erasure's own entry, or the last one's.
        let from = match after {
            Some(batch) => Key::new().bytes(&of_batch(id, batch)).byte(0).done(),
            None => Key::new().bytes(id.as_bytes()).byte(0).done(),
        };
        let end = keys::after_prefix(id.as_bytes());
        let entries = self.engine.scan(Tree::Erasing, &from, end.as_deref(), limit)?;
        let batch = |key: &[u8]| key.last_chunk::<16>().map(|batch| BatchId::from_bytes(*batch));
        Ok(entries.iter().filter_map(|(key, _)| batch(key)).collect())
    }
}

#[cfg(test)]
mod tests;
