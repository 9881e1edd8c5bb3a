//! What webhooks are told: an event is stored in the same transaction as what it tells of, with one delivery for each
//! webhook that listens, and stays until the log of the last of them forgets it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::engine::Engine;
use super::keys::{self, Key, Tree};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, codec, webhooks};
use crate::domain::batch::Batch;
use crate::domain::id::{CompanyId, DeliveryId, EventId, RequestId, Timestamp, WebhookId};
use crate::domain::request::{Request, Source};
use crate::domain::session::Session;
use crate::domain::webhook::{
    self, Answer, BUNDLE_MAX, CLIENT_ID, Delivery, DeliveryState, EXTERNAL_ID, EventKind, FinishedRequest,
    Standing, Try, Webhook,
};

/// Deliveries that may wait for one webhook; of more the oldest are dropped. Few in tests, so that it happens.
const PENDING_MAX: u64 = if cfg!(test) { 6 } else { 10_000 };
/// Deliveries that have ended and are kept, for one webhook.
const ENDED_MAX: u64 = if cfg!(test) { 4 } else { 1000 };
/// They are kept no longer than this; what waits for a webhook that is disabled, neither.
const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Deliveries that one transaction removes.
const REMOVED_MAX: usize = 100;

/// Tells the one who delivers that there is something for a company.
#[derive(Debug, Default)]
pub(super) struct Bell {
    /// As many as there are companies at most.
    rung: Mutex<BTreeSet<CompanyId>>,
    notify: Notify,
}

impl Bell {
    pub(super) fn ring(&self, company: CompanyId) {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner).insert(company);
        self.notify.notify_one();
    }
}

/// An event, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredEvent {
    /// How many deliveries there are of it; with the last one it goes.
    pub(super) deliveries: u64,
    /// Parts of its text.
    parts: u32,
}

/// The requests that get their last outcome in a transaction, for those who are to be told.
pub(super) struct Finished {
    listening: Vec<Webhook>,
    requests: Vec<FinishedRequest>,
}

impl Finished {
    /// Looks who is to be told. Where nobody is, nothing more is done.
    pub(super) fn begin(tx: &Tx<'_>, batch: &Batch) -> Result<Self, StoreError> {
        let listening = webhooks::listening(tx, &batch.group.company, EventKind::RequestFinished)?;
        Ok(Self { listening, requests: Vec::new() })
    }

    /// Takes note of a request that is complete or has failed.
    pub(super) fn note(&mut self, tx: &Tx<'_>, request: &Request, now: Timestamp) -> Result<(), StoreError> {
        if self.listening.is_empty() {
            return Ok(());
        }
        let (session_id, client_id) = match &request.source {
            Source::Session { session, .. } => (Some(*session), None),
            Source::Generic { client_id } => (None, client_id.clone()),
        };
        let session: Option<Session> = match session_id {
            Some(id) => tx.read(Tree::Sessions, id.as_bytes())?,
            None => None,
        };
        self.requests.push(FinishedRequest {
            id: request.id,
            client_id,
            session_id,
            external_id: session.map(|session| session.external_id),
            status: request.status,
            batch_id: request.batch.map(|batch| batch.to_string()),
            completed_at: request.completed_at.unwrap_or(now),
            error_class: request.failure.as_ref().map(|failure| failure.class),
        });
        Ok(())
    }

    /// Stores what there is to be told.
    pub(super) fn tell(self, tx: &mut Tx<'_>, batch: &Batch, now: Timestamp) -> Result<(), StoreError> {
        for (number, requests) in self.requests.chunks(BUNDLE_MAX).enumerate() {
            let first = requests.first().map(|request| request.id);
            let whole = webhook::requests_finished(&batch.group.company, requests, now);
            // Texts are kept for a month, and what names a request or a session may be erased before: it is filled in
            // when somebody reads the text.
            let nameless: Vec<_> = requests.iter().map(FinishedRequest::nameless).collect();
            let text = webhook::requests_finished(&batch.group.company, &nameless, now);
            // Counted anew from one bundle to the next.
            let listening = match number {
                0 => self.listening.clone(),
                _ => webhooks::listening(tx, &batch.group.company, EventKind::RequestFinished)?,
            };
            let event = event_id(batch, EventKind::RequestFinished, first, now);
            put(tx, listening, event, EventKind::RequestFinished, (&text, whole.len()), now)?;
        }
        Ok(())
    }
}

/// Stores that a batch is over. One that nothing was ever in is nobody's concern.
pub(super) fn batch_finished(tx: &mut Tx<'_>, batch: &Batch, now: Timestamp) -> Result<(), StoreError> {
    if batch.counts.members == 0 {
        return Ok(());
    }
    let kind = EventKind::BatchFinished;
    let listening = webhooks::listening(tx, &batch.group.company, kind)?;
    if listening.is_empty() {
        return Ok(());
    }
    let text = webhook::batch_finished(batch, now);
    put(tx, listening, event_id(batch, kind, None, now), kind, (&text, text.len()), now).map(drop)
}

/// An id that nothing else has: a request ends once in each revision of a batch. Several may end by themselves in the
/// same one, which stays as it is for inputs that are lost.
fn event_id(batch: &Batch, kind: EventKind, first: Option<RequestId>, now: Timestamp) -> EventId {
    let first = first.map(|request| request.to_string()).unwrap_or_default();
    let of = format!("{}/{}/{}/{first}", batch.id, batch.revision.0, kind.label());
    EventId::from_bytes(timed(now, of.as_bytes()))
}

/// A UUID of version 7, of a time and a hash, so that ids sort by time.
fn timed(now: Timestamp, of: &[u8]) -> [u8; 16] {
    let hash: [u8; 32] = Sha256::digest(of).into();
    let millis = u64::try_from(now.as_millis()).unwrap_or(0).to_be_bytes();
    let mut bytes = [0; 16];
    let (time, rest) = bytes.split_at_mut(6);
    time.copy_from_slice(millis.get(2..).unwrap_or_default());
    for (byte, hashed) in rest.iter_mut().zip(hash) {
        *byte = hashed;
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    bytes
}

const PENDING: u8 = 1;
const ENDED: u8 = 2;

fn delivery_key(webhook: WebhookId, id: DeliveryId) -> Vec<u8> {
    Key::new().bytes(webhook.as_bytes()).bytes(id.as_bytes()).done()
}

/// The place of a delivery among those of its webhook: what waits by when it is due, then what has ended by when.
pub(super) fn order_key(delivery: &Delivery) -> Vec<u8> {
    let (kind, at) = match delivery.state {
        DeliveryState::Pending { due } => (PENDING, due),
        DeliveryState::Delivered { at } | DeliveryState::Failed { at } | DeliveryState::Dropped { at } => {
            (ENDED, at)
        }
    };
    let key = Key::new().bytes(delivery.webhook.as_bytes()).byte(kind).time(at);
    key.bytes(delivery.id.as_bytes()).done()
}

fn order_prefix(webhook: WebhookId, kind: u8) -> Vec<u8> {
    Key::new().bytes(webhook.as_bytes()).byte(kind).done()
}

fn delivery_at_end(key: &[u8]) -> Result<DeliveryId, StoreError> {
    let id = key.last_chunk::<16>().copied();
    id.map(DeliveryId::from_bytes).ok_or_else(|| StoreError::Codec("an order key is too short".to_owned()))
}

/// Stores an event and a delivery of it to each of `listening`: its text, and how long that is as it is sent.
pub(super) fn put(
    tx: &mut Tx<'_>,
    listening: Vec<Webhook>,
    event: EventId,
    kind: EventKind,
    (text, bytes): (&str, usize),
    now: Timestamp,
) -> Result<Vec<DeliveryId>, StoreError> {
    let mut ids = Vec::with_capacity(listening.len());
    for mut webhook in listening {
        let of = [event.as_bytes().as_slice(), webhook.id.as_bytes()].concat();
        let delivery = Delivery {
            id: DeliveryId::from_bytes(timed(now, &of)),
            webhook: webhook.id,
            event,
            kind,
            state: DeliveryState::Pending { due: now },
            created_at: now,
            tried_since: now,
            tries: 0,
            log: Vec::new(),
            bytes: bytes as u64,
        };
        while webhook.pending >= PENDING_MAX {
            drop_oldest(tx, &mut webhook, now)?;
        }
        ids.push(delivery.id);
        place(tx, &mut webhook, None, &delivery)?;
        webhooks::save(tx, &webhook)?;
    }
    if !ids.is_empty() {
        tx.put_text(Tree::EventTexts, event.as_bytes(), text.as_bytes())?;
        let parts = tx.scan_prefix(Tree::EventTexts, event.as_bytes(), usize::MAX)?.len();
        let parts = u32::try_from(parts).map_err(|err| StoreError::Codec(err.to_string()))?;
        tx.write(
            Tree::Events,
            event.as_bytes().to_vec(),
            &StoredEvent { deliveries: ids.len() as u64, parts },
        )?;
    }
    Ok(ids)
}

/// Writes a delivery, in place of what it was before, and counts it. The caller saves the webhook.
fn place(
    tx: &mut Tx<'_>,
    webhook: &mut Webhook,
    before: Option<&Delivery>,
    delivery: &Delivery,
) -> Result<(), StoreError> {
    if let Some(before) = before {
        displace(tx, webhook, before);
    }
    tx.put(Tree::DeliveryOrder, order_key(delivery), Vec::new());
    tx.write(Tree::Deliveries, delivery_key(delivery.webhook, delivery.id), delivery)?;
    match delivery.state.due() {
        Some(_) => webhook.pending += 1,
        None => webhook.ended += 1,
    }
    Ok(())
}

fn displace(tx: &mut Tx<'_>, webhook: &mut Webhook, delivery: &Delivery) {
    tx.remove(Tree::DeliveryOrder, order_key(delivery));
    let count = if delivery.state.due().is_some() { &mut webhook.pending } else { &mut webhook.ended };
    *count = count.saturating_sub(1);
}

/// Removes a delivery, and its event where it was the last one of it. The caller saves the webhook.
fn remove(tx: &mut Tx<'_>, webhook: &mut Webhook, delivery: &Delivery) -> Result<(), StoreError> {
    displace(tx, webhook, delivery);
    tx.remove(Tree::Deliveries, delivery_key(delivery.webhook, delivery.id));
    let event: Option<StoredEvent> = tx.read(Tree::Events, delivery.event.as_bytes())?;
    let Some(mut event) = event else { return Ok(()) };
    event.deliveries = event.deliveries.saturating_sub(1);
    if event.deliveries > 0 {
        return tx.write(Tree::Events, delivery.event.as_bytes().to_vec(), &event);
    }
    tx.remove(Tree::Events, delivery.event.as_bytes().to_vec());
    for part in 0..event.parts {
        tx.remove(Tree::EventTexts, keys::part(delivery.event.as_bytes(), part));
    }
    Ok(())
}

/// Gives up the oldest delivery that waits, which stays in the log as dropped. Before it lie at most those that have
/// ended and are kept.
fn drop_oldest(tx: &mut Tx<'_>, webhook: &mut Webhook, now: Timestamp) -> Result<(), StoreError> {
    let looked_at = usize::try_from(webhook.ended).unwrap_or(usize::MAX).saturating_add(1);
    for (_, value) in tx.scan_prefix(Tree::Deliveries, webhook.id.as_bytes(), looked_at)? {
        let before: Delivery = codec::decode(&value)?;
        if before.state.due().is_none() {
            continue;
        }
        let dropped = Delivery { state: DeliveryState::Dropped { at: now }, ..before.clone() };
        place(tx, webhook, Some(&before), &dropped)?;
        webhook.dropped = webhook.dropped.saturating_add(1);
        return forget_ended(tx, webhook, now);
    }
    // Counted wrong, which a check tells: the count must not stand in the way of what happens.
    webhook.pending = webhook.pending.saturating_sub(1);
    Ok(())
}

/// Removes what the log holds too much or for too long, a few at once. The caller saves the webhook.
fn forget_ended(tx: &mut Tx<'_>, webhook: &mut Webhook, now: Timestamp) -> Result<(), StoreError> {
    const AT_ONCE: usize = 4;
    let oldest = tx.scan_prefix(Tree::DeliveryOrder, &order_prefix(webhook.id, ENDED), AT_ONCE)?;
    for (key, _) in oldest {
        let delivery = read(tx, webhook.id, delivery_at_end(&key)?)?;
        let old = delivery.state.ended_at().is_some_and(|at| now.since(at) > KEPT_FOR);
        if !old && webhook.ended <= ENDED_MAX {
            break;
        }
        remove(tx, webhook, &delivery)?;
    }
    Ok(())
}

fn read(tx: &Tx<'_>, webhook: WebhookId, id: DeliveryId) -> Result<Delivery, StoreError> {
    tx.read(Tree::Deliveries, &delivery_key(webhook, id))?
        .ok_or_else(|| StoreError::Broken(format!("delivery {id} has a place and is not there")))
}

impl Store {
    /// Returns when there may be something to deliver, with the companies. One at a time may wait here.
    pub async fn something_to_deliver(&self) -> BTreeSet<CompanyId> {
        loop {
            let rung = std::mem::take(&mut *self.bell.rung.lock().unwrap_or_else(PoisonError::into_inner));
            if !rung.is_empty() {
                return rung;
            }
            self.bell.notify.notified().await;
        }
    }

    /// Stores what a try came to. Whoever says that it is gone is told nothing more.
    pub async fn note_try(
        &self,
        company: CompanyId,
        webhook: WebhookId,
        id: DeliveryId,
        tried: Try,
        answer: Answer,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.committer
            .commit(1, move |tx| {
                let Some(mut webhook) = webhooks::load(tx, &company, webhook)? else { return Ok(()) };
                let key = delivery_key(webhook.id, id);
                let before: Option<Delivery> = tx.read(Tree::Deliveries, &key)?;
                // It was dropped, or forgotten, while it was under way.
                let Some(before) = before.filter(|before| before.state.due().is_some()) else {
                    return Ok(());
                };
                let mut delivery = before.clone();
                delivery.tried(tried, answer, now);
                place(tx, &mut webhook, Some(&before), &delivery)?;
                forget_ended(tx, &mut webhook, now)?;
                if answer == Answer::Gone && webhook.standing == Standing::Enabled {
                    webhook.standing =
                        Standing::Disabled { why: "the receiver answered 410 Gone".to_owned() };
                    webhook.changed_at = now;
                }
                webhooks::save(tx, &webhook)
            })
            .await
    }

    /// Has a delivery tried again at once, under the id that it has; none if it is not there.
    pub async fn deliver_again(
        &self,
        company: CompanyId,
        webhook: WebhookId,
        id: DeliveryId,
        now: Timestamp,
    ) -> Result<Option<Delivery>, StoreError> {
        let owner = company.clone();
        let queued = self
            .committer
            .commit(1, move |tx| {
                let Some(mut webhook) = webhooks::load(tx, &company, webhook)? else { return Ok(None) };
                let before: Option<Delivery> = tx.read(Tree::Deliveries, &delivery_key(webhook.id, id))?;
                let Some(before) = before else { return Ok(None) };
                let mut delivery = before.clone();
                delivery.again(now);
                place(tx, &mut webhook, Some(&before), &delivery)?;
                webhooks::save(tx, &webhook)?;
                Ok(Some(delivery))
            })
            .await?;
        self.bell.ring(owner);
        Ok(queued)
    }

    /// Removes what a webhook's log holds for too long, and of a deleted one everything and at last itself, a bounded
    /// number at once; says whether there is more.
    pub async fn remove_deliveries(
        &self,
        company: CompanyId,
        webhook: WebhookId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.committer.commit(REMOVED_MAX, move |tx| remove_deliveries(tx, &company, webhook, now)).await
    }
}

pub(super) fn remove_deliveries(
    tx: &mut Tx<'_>,
    company: &CompanyId,
    webhook: WebhookId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let key = webhooks::key(company, webhook);
    let Some(mut webhook) = tx.read::<Webhook>(Tree::Webhooks, &key)? else { return Ok(false) };
    let deleted = webhook.standing == Standing::Deleted;
    let mut removed = 0;
    for kind in [PENDING, ENDED] {
        let prefix = order_prefix(webhook.id, kind);
        let entries = tx.scan_prefix(Tree::DeliveryOrder, &prefix, REMOVED_MAX - removed)?;
        for (key, _) in entries {
            let delivery = read(tx, webhook.id, delivery_at_end(&key)?)?;
            if !deleted && now.since(delivery.state.ended_at().unwrap_or(delivery.tried_since)) <= KEPT_FOR {
                break;
            }
            remove(tx, &mut webhook, &delivery)?;
            removed += 1;
        }
    }
    if deleted || removed > 0 {
        crash_point!("deliveries.before_commit");
    }
    if deleted && removed < REMOVED_MAX {
        tx.remove(Tree::Webhooks, key);
        return Ok(false);
    }
    if removed > 0 {
        webhooks::save(tx, &webhook)?;
    }
    Ok(removed == REMOVED_MAX)
}

impl StoreReader {
    /// The delivery of a webhook that is due first.
    pub fn next_delivery(&self, webhook: WebhookId) -> Result<Option<Delivery>, StoreError> {
        let prefix = order_prefix(webhook, PENDING);
        let end = keys::after_prefix(&prefix);
        let first = self.engine.scan(Tree::DeliveryOrder, &prefix, end.as_deref(), 1)?;
        let Some((key, _)) = first.first() else { return Ok(None) };
        // It may have moved since.
        self.delivery(webhook, delivery_at_end(key)?)
    }

    /// One delivery.
    pub fn delivery(&self, webhook: WebhookId, id: DeliveryId) -> Result<Option<Delivery>, StoreError> {
        self.read(Tree::Deliveries, &delivery_key(webhook, id))
    }

    /// The text of an event as it is sent now: with the names that clients and exports gave to what it tells of, as far
    /// as that is still there.
    pub fn event_text(&self, id: EventId) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(text) = self.text(Tree::EventTexts, id.as_bytes())? else { return Ok(None) };
        let mut message: Value =
            serde_json::from_slice(&text).map_err(|err| StoreError::Codec(err.to_string()))?;
        let Some(requests) = message.pointer_mut("/data/requests").and_then(Value::as_array_mut) else {
            return Ok(Some(text));
        };
        for told in requests {
            let id = |name: &str| told.get(name).and_then(Value::as_str);
            let request = id("id").and_then(|id| id.parse().ok());
            let session = id("sessionId").and_then(|id| id.parse().ok());
            let request = request.map(|id| self.request(id)).transpose()?.flatten();
            let session = session.map(|id| self.session(id)).transpose()?.flatten();
            let client_id = request.and_then(|request| match request.source {
                Source::Generic { client_id } => client_id,
                Source::Session { .. } => None,
            });
            if let Value::Object(told) = told {
                told.insert(CLIENT_ID.to_owned(), Value::from(client_id));
                told.insert(EXTERNAL_ID.to_owned(), Value::from(session.map(|session| session.external_id)));
            }
        }
        Ok(Some(message.to_string().into_bytes()))
    }

    /// At most `limit` deliveries of a webhook, newest first, older than `before`, of one state (by its label) or of all;
    /// and where the next page begins, if there may be one.
    pub fn list_deliveries(
        &self,
        webhook: WebhookId,
        state: Option<&str>,
        before: Option<DeliveryId>,
        limit: usize,
    ) -> Result<(Vec<Delivery>, Option<DeliveryId>), StoreError> {
        // A page looks at no more than this, so that a rare filter cannot make it slow.
        const LOOKED_AT_MAX: usize = 5000;
        const AT_ONCE: usize = 100;
        let mut found: Vec<Delivery> = Vec::new();
        let mut before = before;
        let mut looked_at = 0;
        loop {
            let end = match before {
                Some(id) => Some(delivery_key(webhook, id)),
                None => keys::after_prefix(webhook.as_bytes()),
            };
            let entries =
                self.engine.scan_back(Tree::Deliveries, webhook.as_bytes(), end.as_deref(), AT_ONCE)?;
            let last_page = entries.len() < AT_ONCE;
            looked_at += entries.len();
            for (_, value) in entries {
                let delivery: Delivery = codec::decode(&value)?;
                if state.is_none_or(|state| state == delivery.state.label()) {
                    if found.len() == limit {
                        return Ok((found, before));
                    }
                    before = Some(delivery.id);
                    found.push(delivery);
                } else if found.len() < limit {
                    before = Some(delivery.id);
                }
            }
            if last_page {
                return Ok((found, None));
            }
            if looked_at >= LOOKED_AT_MAX {
                return Ok((found, before));
            }
        }
    }
}

/// What a check of the whole store asks of each entry here: everything that belongs to it is there, and counted.
pub(super) fn check(
    engine: &Engine,
    tree: Tree,
    key: &[u8],
    value: &[u8],
    wrong: &mut Vec<(u8, String)>,
) -> Result<(), StoreError> {
    const INDEX: u8 = 1;
    const LOSS: u8 = 6;
    if tree == Tree::Webhooks {
        let webhook: Webhook = codec::decode(value)?;
        for (kind, counted, name) in
            [(PENDING, webhook.pending, "wait"), (ENDED, webhook.ended, "have ended")]
        {
            let prefix = order_prefix(webhook.id, kind);
            let end = keys::after_prefix(&prefix);
            let full = engine.scan(Tree::DeliveryOrder, &prefix, end.as_deref(), usize::MAX)?.len() as u64;
            if full != counted {
                wrong.push((
                    INDEX,
                    format!("webhook {} counts {counted} that {name}, they are {full}", webhook.id),
                ));
            }
        }
    } else if tree == Tree::Deliveries {
        let delivery: Delivery = codec::decode(value)?;
        let id = delivery.id;
        if engine.get(Tree::DeliveryOrder, &order_key(&delivery))?.is_none() {
            wrong.push((INDEX, format!("delivery {id} has no place among those of its webhook")));
        }
        if engine.get(Tree::Events, delivery.event.as_bytes())?.is_none() {
            wrong.push((LOSS, format!("delivery {id} is of an event that is not there")));
        }
    } else if tree == Tree::DeliveryOrder {
        let webhook = key.first_chunk::<16>().copied().map(WebhookId::from_bytes);
        let (Some(webhook), Ok(id)) = (webhook, delivery_at_end(key)) else {
            wrong.push((INDEX, format!("an order key of {} bytes", key.len())));
            return Ok(());
        };
        let delivery = engine.get(Tree::Deliveries, &delivery_key(webhook, id))?;
        let delivery: Option<Delivery> = delivery.map(|value| codec::decode(&value)).transpose()?;
        if delivery.is_none_or(|delivery| order_key(&delivery) != key) {
            wrong.push((INDEX, format!("delivery {id} is not there, or stands elsewhere")));
        }
    } else if tree == Tree::EventTexts {
        let event = key.first_chunk::<16>().map(|id| engine.get(Tree::Events, id)).transpose()?.flatten();
        if event.is_none() {
            wrong.push((INDEX, "a text is there whose event is not".to_owned()));
        }
    } else {
        let event: StoredEvent = codec::decode(value)?;
        let id = key.first_chunk::<16>().copied().map(EventId::from_bytes);
        let id = id.ok_or_else(|| StoreError::Codec("an event key is too short".to_owned()))?;
        for part in 0..event.parts {
            if engine.get(Tree::EventTexts, &keys::part(id.as_bytes(), part))?.is_none() {
                wrong.push((LOSS, format!("part {part} of the text of event {id} is not there")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
