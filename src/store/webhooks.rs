//! Webhooks of companies: made, changed, deleted. What they are told lies in `outbox`.

use super::keys::{Key, Tree};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, codec, erasing, outbox};
use crate::domain::id::{CompanyId, DeliveryId, EventId, Timestamp, WebhookId};
use crate::domain::webhook::signature::SigningSecret;
use crate::domain::webhook::{self, EventKind, OLD_SECRET_SIGNS, Standing, WEBHOOKS_MAX, Webhook};

/// Records of a company, with those that are deleted and not gone yet.
const RECORDS_MAX: usize = 2 * WEBHOOKS_MAX;

/// What a webhook's owner may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookChange {
    /// Where messages are sent.
    pub url: String,
    /// What it is told of.
    pub events: Vec<EventKind>,
    /// What people call it.
    pub description: Option<String>,
    /// Whether it is used.
    pub enabled: bool,
}

/// What became of an order to make a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookMade {
    /// It is there.
    Made(Box<Webhook>),
    /// The company has as many as it may.
    TooMany,
}

pub(super) fn key(company: &CompanyId, id: WebhookId) -> Vec<u8> {
    Key::new().company(company).bytes(id.as_bytes()).done()
}

/// A webhook that is not deleted.
pub(super) fn load(tx: &Tx<'_>, company: &CompanyId, id: WebhookId) -> Result<Option<Webhook>, StoreError> {
    let webhook: Option<Webhook> = tx.read(Tree::Webhooks, &key(company, id))?;
    Ok(webhook.filter(|webhook| webhook.standing != Standing::Deleted))
}

pub(super) fn save(tx: &mut Tx<'_>, webhook: &Webhook) -> Result<(), StoreError> {
    tx.write(Tree::Webhooks, key(&webhook.company, webhook.id), webhook)
}

/// The company's webhooks that are to be told of such an event.
pub(super) fn listening(
    tx: &Tx<'_>,
    company: &CompanyId,
    kind: EventKind,
) -> Result<Vec<Webhook>, StoreError> {
    let entries = tx.scan_prefix(Tree::Webhooks, &Key::new().company(company).done(), RECORDS_MAX)?;
    let webhooks = entries.iter().map(|(_, value)| codec::decode::<Webhook>(value));
    let listening =
        webhooks.filter(|webhook| webhook.as_ref().map_or(true, |webhook| webhook.listens_to(kind)));
    listening.collect()
}

/// Takes the next piece of a company's webhooks away, with their deliveries and the texts of those; says whether there
/// was one.
pub(super) fn remove_of(tx: &mut Tx<'_>, company: &CompanyId, now: Timestamp) -> Result<bool, StoreError> {
    let first = tx.scan_prefix(Tree::Webhooks, &Key::new().company(company).done(), 1)?;
    let Some((_, value)) = first.first() else { return Ok(false) };
    let webhook: Webhook = codec::decode(value)?;
    let id = webhook.id;
    save(tx, &Webhook { standing: Standing::Deleted, ..webhook })?;
    outbox::remove_deliveries(tx, company, id, now)?;
    Ok(true)
}

fn standing(enabled: bool) -> Standing {
    if enabled { Standing::Enabled } else { Standing::Disabled { why: "by its owner".to_owned() } }
}

impl Store {
    /// Stores a new webhook, if the company has not as many as it may.
    pub async fn make_webhook(
        &self,
        company: CompanyId,
        id: WebhookId,
        secret: SigningSecret,
        change: WebhookChange,
        now: Timestamp,
    ) -> Result<WebhookMade, StoreError> {
        self.committer
            .commit(1, move |tx| {
                if erasing::is_erased(tx, &company)? {
                    return Err(StoreError::NotFound { what: "company", id: company.to_string() });
                }
                let prefix = Key::new().company(&company).done();
                let records = tx.scan_prefix(Tree::Webhooks, &prefix, RECORDS_MAX)?;
                let mut live = 0;
                for (_, value) in &records {
                    let webhook: Webhook = codec::decode(value)?;
                    live += usize::from(webhook.standing != Standing::Deleted);
                }
                if live >= WEBHOOKS_MAX || records.len() >= RECORDS_MAX {
                    return Ok(WebhookMade::TooMany);
                }
                let WebhookChange { url, events, description, enabled } = change;
                let webhook = Webhook {
                    id,
                    company,
                    url,
                    events,
                    description,
                    standing: standing(enabled),
                    secret,
                    old_secrets: Vec::new(),
                    created_at: now,
                    changed_at: now,
                    pending: 0,
                    ended: 0,
                    dropped: 0,
                };
                save(tx, &webhook)?;
                Ok(WebhookMade::Made(Box::new(webhook)))
            })
            .await
    }

    /// Changes what its owner may change; none if there is no such webhook.
    pub async fn change_webhook(
        &self,
        company: CompanyId,
        id: WebhookId,
        change: WebhookChange,
        now: Timestamp,
    ) -> Result<Option<Webhook>, StoreError> {
        let owner = company.clone();
        let changed = self
            .change(company, id, move |webhook| {
                webhook.url = change.url;
                webhook.events = change.events;
                webhook.description = change.description;
                let as_it_was = (webhook.standing == Standing::Enabled) == change.enabled;
                if !as_it_was {
                    webhook.standing = standing(change.enabled);
                }
                webhook.changed_at = now;
            })
            .await?;
        // What waited while it was disabled goes on.
        self.bell.ring(owner);
        Ok(changed)
    }

    /// Gives it a new secret; the one before signs beside it for a day.
    pub async fn rotate_webhook(
        &self,
        company: CompanyId,
        id: WebhookId,
        secret: SigningSecret,
        now: Timestamp,
    ) -> Result<Option<Webhook>, StoreError> {
        self.change(company, id, move |webhook| {
            webhook.rotate(secret, now, now.plus(OLD_SECRET_SIGNS));
        })
        .await
    }

    /// Takes it from its company; what is left of it goes with [`Store::remove_deliveries`].
    pub async fn delete_webhook(
        &self,
        company: CompanyId,
        id: WebhookId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let owner = company.clone();
        let deleted = self
            .change(company, id, move |webhook| {
                webhook.standing = Standing::Deleted;
                webhook.changed_at = now;
            })
            .await?;
        self.bell.ring(owner);
        Ok(deleted.is_some())
    }

    async fn change(
        &self,
        company: CompanyId,
        id: WebhookId,
        change: impl FnOnce(&mut Webhook) + Send + 'static,
    ) -> Result<Option<Webhook>, StoreError> {
        self.committer
            .commit(1, move |tx| {
                let Some(mut webhook) = load(tx, &company, id)? else { return Ok(None) };
                change(&mut webhook);
                save(tx, &webhook)?;
                Ok(Some(webhook))
            })
            .await
    }

    /// Puts a message that tests the way into the queue; gives its id, or none if there is no such webhook.
    pub async fn test_webhook(
        &self,
        company: CompanyId,
        id: WebhookId,
        event: EventId,
        now: Timestamp,
    ) -> Result<Option<DeliveryId>, StoreError> {
        let owner = company.clone();
        let queued = self
            .committer
            .commit(1, move |tx| {
                let Some(webhook) = load(tx, &company, id)? else { return Ok(None) };
                let text = webhook::test(&webhook, now);
                let ids = outbox::put(tx, vec![webhook], event, EventKind::Test, (&text, text.len()), now)?;
                Ok(ids.first().copied())
            })
            .await?;
        self.bell.ring(owner);
        Ok(queued)
    }
}

impl StoreReader {
    /// A webhook of a company.
    pub fn webhook(&self, company: &CompanyId, id: WebhookId) -> Result<Option<Webhook>, StoreError> {
        let webhook: Option<Webhook> = self.read(Tree::Webhooks, &key(company, id))?;
        Ok(webhook.filter(|webhook| webhook.standing != Standing::Deleted))
    }

    /// The webhooks of a company, oldest first, with those that are deleted and not gone yet.
    pub fn webhooks(&self, company: &CompanyId) -> Result<Vec<Webhook>, StoreError> {
        let prefix = Key::new().company(company).done();
        let end = super::keys::after_prefix(&prefix);
        let entries = self.engine.scan(Tree::Webhooks, &prefix, end.as_deref(), RECORDS_MAX)?;
        entries.into_iter().map(|(_, value)| codec::decode(&value)).collect()
    }

    /// At most `limit` webhooks of all companies behind `after`, with those that are deleted and not gone yet.
    pub fn webhooks_after(
        &self,
        after: Option<(&CompanyId, WebhookId)>,
        limit: usize,
    ) -> Result<Vec<Webhook>, StoreError> {
        let from = after.map(|(company, id)| Key::new().bytes(&key(company, id)).byte(0).done());
        let entries = self.engine.scan(Tree::Webhooks, &from.unwrap_or_default(), None, limit)?;
        entries.into_iter().map(|(_, value)| codec::decode(&value)).collect()
    }
}
