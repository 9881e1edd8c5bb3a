//! What a single entry must agree with.

use crate::domain::batch::{Batch, Counts, Origin};
use crate::domain::budget::Booking;
use crate::domain::id::{BatchId, ProviderBatchId};
use crate::domain::request::{Cost, Request, RequestStatus, Source};
use crate::domain::session::{Session, SessionState};
use crate::store::batches::{Fate, STORY_MAX, StoryLine};
use crate::store::engine::Engine;
use crate::store::keys::{self, Key, Tree};
use crate::store::{StoreError, codec};

pub(super) fn get<T: serde::de::DeserializeOwned>(
    engine: &Engine,
    tree: Tree,
    key: &[u8],
) -> Result<Option<T>, StoreError> {
    engine.get(tree, key)?.map(|bytes| codec::decode(&bytes)).transpose()
}

/// Invariants 1, 2 and 5: a request's index entries, where it is outstanding, its result, and what it cost.
pub(super) fn request(
    engine: &Engine,
    request: &Request,
    wrong: &mut Vec<(u8, String)>,
) -> Result<(), StoreError> {
    let id = request.id;
    let by_status = Key::new().status(request.status).bytes(id.as_bytes()).done();
    let by_company =
        Key::new().company(&request.group.company).status(request.status).bytes(id.as_bytes()).done();
    // As many entries as requests, and each request has its own: so none has another one besides.
    for (tree, key) in [(Tree::ByStatus, by_status), (Tree::ByCompany, by_company)] {
        if engine.get(tree, &key)?.is_none() {
            wrong.push((
                1,
                format!("request {id} is not listed in {} as {}", tree.name(), request.status.label()),
            ));
        }
    }
    match request.status {
        RequestStatus::BatchingInProgress => {
            let member = request.batch.map(|batch| keys::member(batch, id));
            let waits = member.map(|key| engine.get(Tree::Outstanding, &key)).transpose()?.flatten();
            if waits.is_none() {
                wrong.push((2, format!("request {id} is in progress and outstanding in no batch")));
            }
        }
        RequestStatus::ProcessingComplete => {
            if engine.get(Tree::Results, &keys::part(id.as_bytes(), 0))?.is_none() {
                wrong.push((5, format!("request {id} is complete without a result")));
            }
        }
        RequestStatus::PendingBatching | RequestStatus::ProcessingFailed => {}
    }
    let to_be_sent =
        matches!(request.status, RequestStatus::PendingBatching | RequestStatus::BatchingInProgress);
    if to_be_sent
        && matches!(request.source, Source::Generic { .. })
        && engine.get(Tree::Bodies, &keys::part(id.as_bytes(), 0))?.is_none()
    {
        wrong.push((1, format!("request {id} is to be sent and has no body")));
    }
    if let Source::Session { session, .. } = &request.source
        && engine.get(Tree::SessionRequests, &keys::session_request(*session, id))?.is_none()
    {
        wrong.push((1, format!("request {id} is not listed in {}", Tree::SessionRequests.name())));
    }
    booked(engine, id.as_bytes(), request.cost.as_ref(), wrong)
}

/// Invariant 5: what a request cost is what was booked for it.
pub(super) fn booked(
    engine: &Engine,
    id: &[u8],
    cost: Option<&Cost>,
    wrong: &mut Vec<(u8, String)>,
) -> Result<(), StoreError> {
    let end = keys::after_prefix(id);
    let mut booked = 0u64;
    for (_, value) in engine.scan(Tree::Bookings, id, end.as_deref(), usize::MAX)? {
        booked = booked.saturating_add(codec::decode::<Booking>(&value)?.cost.micros);
    }
    let cost = cost.map_or(0, |cost| cost.micros);
    if booked != cost {
        let id = keys::request_at_end(id).map(|id| id.to_string()).unwrap_or_default();
        wrong.push((5, format!("request {id} cost {cost}, booked are {booked}")));
    }
    Ok(())
}

/// Invariant 1: a session is listed, unless it was removed for its age: then it has nothing.
pub(super) fn session(
    engine: &Engine,
    session: &Session,
    wrong: &mut Vec<(u8, String)>,
) -> Result<(), StoreError> {
    let id = session.id;
    let listed = engine.get(Tree::SessionsOf, &keys::session_of(&session.company, id))?.is_some();
    let expired = session.state == SessionState::Expired;
    if !expired && !listed {
        wrong.push((1, format!("session {id} is not listed in {}", Tree::SessionsOf.name())));
    }
    if !expired {
        return Ok(());
    }
    let end = keys::after_prefix(id.as_bytes());
    for tree in [Tree::Contents, Tree::Analyses, Tree::SessionRequests, Tree::Fetches] {
        if !engine.scan(tree, id.as_bytes(), end.as_deref(), 1)?.is_empty() {
            wrong.push((1, format!("session {id} was removed for its age and has {}", tree.name())));
        }
    }
    Ok(())
}

/// Whether a request is there, or was and is removed.
pub(super) fn is_or_was(engine: &Engine, id: &[u8]) -> Result<bool, StoreError> {
    Ok(engine.get(Tree::Requests, id)?.is_some() || engine.get(Tree::Gone, id)?.is_some())
}

/// Invariants 2, 3 and 4, as far as the batch's record tells. Its members are summed up when they are read.
pub(super) fn batch(engine: &Engine, batch: &Batch, wrong: &mut Vec<(u8, String)>) -> Result<(), StoreError> {
    let id = batch.id;
    if batch.state.is_live() != engine.get(Tree::LiveBatches, id.as_bytes())?.is_some() {
        wrong.push((2, format!("batch {id} and the list of live ones disagree")));
    }
    if !batch.state.is_live() && batch.purse.reserved > 0 {
        wrong
            .push((5, format!("batch {id} is over and {} are still set aside for it", batch.purse.reserved)));
    }
    let end = keys::after_prefix(id.as_bytes());
    let none = engine.scan(Tree::Members, id.as_bytes(), end.as_deref(), 1)?.is_empty();
    if none && batch.counts != Counts::default() {
        wrong.push((4, format!("batch {id} has no members and counts {:?}", batch.counts)));
    }
    if let Origin::Shadow { of } = batch.origin
        && engine.get(Tree::Shadows, &keys::shadow(of, id))?.is_none()
    {
        wrong.push((3, format!("batch {id} is a shadow of {of} and not listed as one")));
    }
    if let Some(named) = &batch.provider_batch {
        let listed = get::<BatchId>(engine, Tree::ProviderBatches, &Key::new().text(named.as_str()).done())?;
        if listed != Some(id) {
            wrong.push((3, format!("batch {id} is {named} at the provider, which is not listed as its own")));
        }
    }
    Ok(())
}

/// Invariant 3: a batch of the provider belongs to the batch that names it, or that named it before it was created
/// once more, as its story tells.
pub(super) fn provider_batch(
    engine: &Engine,
    key: &[u8],
    value: &[u8],
    wrong: &mut Vec<(u8, String)>,
) -> Result<(), StoreError> {
    let id: BatchId = codec::decode(value)?;
    let Some((named, [])) = keys::text_at_start(key) else {
        wrong.push((3, format!("a key of {} bytes names a batch of the provider", key.len())));
        return Ok(());
    };
    let Some(batch) = get::<Batch>(engine, Tree::Batches, id.as_bytes())? else {
        wrong.push((3, format!("{named} of the provider belongs to batch {id}, which is not there")));
        return Ok(());
    };
    let is_named = |is: &ProviderBatchId| is.as_str() == named;
    let current = batch.provider_batch.as_ref();
    if current.is_none() || !(current.is_some_and(is_named) || told_of(engine, &batch, &named)?) {
        wrong.push((3, format!("{named} of the provider belongs to batch {id}, which does not name it")));
    }
    Ok(())
}

/// Whether a batch's story speaks of a batch of the provider, or ends before it could.
fn told_of(engine: &Engine, batch: &Batch, named: &str) -> Result<bool, StoreError> {
    let end = keys::after_prefix(batch.id.as_bytes());
    for (_, line) in engine.scan(Tree::Story, batch.id.as_bytes(), end.as_deref(), usize::MAX)? {
        if codec::decode::<StoryLine>(&line)?.text.split([' ', ',']).any(|word| word == named) {
            return Ok(true);
        }
    }
    Ok(batch.story_lines >= STORY_MAX)
}

/// Invariants 2, 4 and 5: a member has a fate, is outstanding exactly if that says so, and what was completed stays so.
pub(super) fn member(
    engine: &Engine,
    key: &[u8],
    value: &[u8],
    wrong: &mut Vec<(u8, String)>,
) -> Result<(), StoreError> {
    let (Some(batch), Some(request)) = (keys::batch_at_start(key), keys::request_at_end(key)) else {
        wrong.push((4, format!("a member key of {} bytes", key.len())));
        return Ok(());
    };
    let Some(fate) = value.first().copied().and_then(Fate::from_byte) else {
        wrong.push((4, format!("request {request} has no known fate in batch {batch}")));
        return Ok(());
    };
    if fate == Fate::Completed && engine.get(Tree::Gone, request.as_bytes())?.is_none() {
        let status =
            get::<Request>(engine, Tree::Requests, request.as_bytes())?.map(|request| request.status);
        if status != Some(RequestStatus::ProcessingComplete) {
            let is = status.map_or("not there", RequestStatus::label);
            wrong.push((5, format!("request {request} was completed by batch {batch} and is {is}")));
        }
    }
    if (fate == Fate::Outstanding) != engine.get(Tree::Outstanding, key)?.is_some() {
        wrong.push((2, format!("request {request} and batch {batch} disagree on whether it is outstanding")));
    }
    Ok(())
}

/// Invariants 2 and 3: what is outstanding in a batch is in progress, in that batch alone, and that is live.
pub(super) fn outstanding(
    engine: &Engine,
    key: &[u8],
    wrong: &mut Vec<(u8, String)>,
) -> Result<(), StoreError> {
    let (Some(batch), Some(id)) = (keys::batch_at_start(key), keys::request_at_end(key)) else {
        wrong.push((2, format!("an outstanding key of {} bytes", key.len())));
        return Ok(());
    };
    match get::<Request>(engine, Tree::Requests, id.as_bytes())? {
        None => wrong.push((2, format!("request {id} is outstanding in batch {batch} and is not there"))),
        Some(request) if request.status != RequestStatus::BatchingInProgress => {
            let label = request.status.label();
            wrong.push((3, format!("request {id} is {label} and outstanding in batch {batch}")));
        }
        Some(request) if request.batch != Some(batch) => {
            wrong.push((3, format!("request {id} is outstanding in batch {batch} and in another one")));
        }
        Some(_) => {}
    }
    if engine.get(Tree::LiveBatches, batch.as_bytes())?.is_none() {
        wrong.push((2, format!("request {id} is outstanding in batch {batch}, which is not live")));
    }
    Ok(())
}
