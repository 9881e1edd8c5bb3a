//! Webhooks of a company: made, changed, tested, deleted, and what became of each message.

use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::body::object;
use super::query::Query;
use super::reply::ApiError;
use super::table::Params;
use super::{Api, blocking, cursor, takes_in};
use crate::domain::id::{CompanyId, DeliveryId, EventId, Timestamp, WebhookId};
use crate::domain::webhook::signature::SigningSecret;
use crate::domain::webhook::{self, Delivery, DeliveryState, EventKind, Standing, Try, Webhook};
use crate::fetch::Url;
use crate::store::{WebhookChange, WebhookMade};

/// What is done with webhooks and their deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `POST …/webhooks`
    Make,
    /// `GET …/webhooks`
    List,
    /// `GET …/webhooks/{id}`
    Show,
    /// `PUT …/webhooks/{id}`
    Change,
    /// `DELETE …/webhooks/{id}`
    Delete,
    /// `POST …/webhooks/{id}/rotate`
    Rotate,
    /// `POST …/webhooks/{id}/test`
    Test,
    /// `GET …/webhooks/{id}/deliveries?status=&limit=&cursor=`
    Deliveries,
    /// `GET …/webhooks/{id}/deliveries/{otherId}`
    Delivery,
    /// `POST …/webhooks/{id}/deliveries/{otherId}/redeliver`
    Redeliver,
}

impl Action {
    /// Whether the call has a body that says what is wanted.
    pub const fn has_body(self) -> bool {
        match self {
            Self::Make | Self::Change => true,
            Self::List
            | Self::Show
            | Self::Delete
            | Self::Rotate
            | Self::Test
            | Self::Deliveries
            | Self::Delivery
            | Self::Redeliver => false,
        }
    }

    const fn writes(self) -> bool {
        match self {
            Self::Make | Self::Change | Self::Delete | Self::Rotate | Self::Test | Self::Redeliver => true,
            Self::List | Self::Show | Self::Deliveries | Self::Delivery => false,
        }
    }
}

/// One call about a company's webhooks. `body` is that of an [`Action`] that has one.
pub async fn run(
    api: &Api,
    action: Action,
    company: CompanyId,
    params: Params<'_>,
    query: &Query,
    body: &[u8],
) -> Result<Value, ApiError> {
    query.only(if action == Action::Deliveries { &["status", "limit", "cursor"] } else { &[] })?;
    if action.writes() {
        takes_in(api)?;
    }
    let id = params.id.unwrap_or_default();
    match action {
        Action::Make => make(api, company, body).await,
        Action::List => list(api, company).await,
        Action::Show => {
            let webhook = load(api, &company, id).await?;
            Ok(json!({ "ok": true, "webhook": view(&webhook, api.shared.clock.now()) }))
        }
        Action::Change => {
            let wanted = wish(api, body)?;
            let (known, now) = (load(api, &company, id).await?, api.shared.clock.now());
            crash_point!("webhook.change.before_commit");
            let changed = api.shared.store.change_webhook(company, known.id, wanted, now).await?;
            crash_point!("webhook.change.after_commit");
            let changed = changed.ok_or_else(|| unknown(id))?;
            Ok(json!({ "ok": true, "webhook": view(&changed, now) }))
        }
        Action::Delete => {
            let known = load(api, &company, id).await?;
            crash_point!("webhook.delete.before_commit");
            let deleted = api.shared.store.delete_webhook(company, known.id, api.shared.clock.now()).await?;
            crash_point!("webhook.delete.after_commit");
            if deleted { Ok(json!({ "ok": true })) } else { Err(unknown(id)) }
        }
        Action::Rotate => {
            let (known, now) = (load(api, &company, id).await?, api.shared.clock.now());
            crash_point!("webhook.rotate.before_commit");
            let rotated = api.shared.store.rotate_webhook(company, known.id, new_secret()?, now).await?;
            crash_point!("webhook.rotate.after_commit");
            Ok(with_secret(&rotated.ok_or_else(|| unknown(id))?, now))
        }
        Action::Test => {
            let known = in_use(load(api, &company, id).await?)?;
            api.limiter.message(api.shared.clock.as_ref(), &company)?;
            let event = EventId::new(api.shared.ids.next());
            crash_point!("webhook.test.before_commit");
            let queued =
                api.shared.store.test_webhook(company, known.id, event, api.shared.clock.now()).await?;
            crash_point!("webhook.test.after_commit");
            let queued = queued.ok_or_else(|| unknown(id))?;
            Ok(json!({ "ok": true, "deliveryId": webhook::message_id(queued) }))
        }
        Action::Deliveries => {
            let known = load(api, &company, id).await?;
            deliveries(api, &known, query).await
        }
        Action::Delivery => {
            let known = load(api, &company, id).await?;
            let delivery = load_delivery(api, &known, params.other.unwrap_or_default()).await?;
            let (reader, event) = (api.shared.reader.clone(), delivery.event);
            let text = blocking(move || reader.event_text(event)).await?;
            let mut shown = view_delivery(&delivery);
            if let Value::Object(fields) = &mut shown {
                let payload = text.and_then(|text| serde_json::from_slice(&text).ok());
                fields.insert("payload".to_owned(), payload.unwrap_or(Value::Null));
            }
            Ok(json!({ "ok": true, "delivery": shown }))
        }
        Action::Redeliver => {
            let known = in_use(load(api, &company, id).await?)?;
            let text = params.other.unwrap_or_default();
            let delivery = load_delivery(api, &known, text).await?;
            api.limiter.message(api.shared.clock.as_ref(), &company)?;
            let (store, now) = (&api.shared.store, api.shared.clock.now());
            crash_point!("webhook.redeliver.before_commit");
            let queued = store.deliver_again(company, known.id, delivery.id, now).await?;
            crash_point!("webhook.redeliver.after_commit");
            let queued = queued.ok_or_else(|| unknown_delivery(text))?;
            Ok(json!({ "ok": true, "delivery": view_delivery(&queued) }))
        }
    }
}

fn unknown(id: &str) -> ApiError {
    let id: String = id.chars().take(80).collect();
    ApiError::not_found("unknown_webhook", format!("there is no webhook {id}"))
}

fn unknown_delivery(id: &str) -> ApiError {
    let id: String = id.chars().take(80).collect();
    ApiError::not_found(
        "unknown_delivery",
        format!("there is no delivery {id}; it may have been forgotten since"),
    )
}

async fn load(api: &Api, company: &CompanyId, text: &str) -> Result<Webhook, ApiError> {
    let id: WebhookId = text.parse().map_err(|_| unknown(text))?;
    let (reader, company) = (api.shared.reader.clone(), company.clone());
    blocking(move || reader.webhook(&company, id)).await?.ok_or_else(|| unknown(text))
}

fn delivery_id(text: &str) -> Option<DeliveryId> {
    text.strip_prefix("msg_")?.parse().ok()
}

async fn load_delivery(api: &Api, webhook: &Webhook, text: &str) -> Result<Delivery, ApiError> {
    let id = delivery_id(text).ok_or_else(|| unknown_delivery(text))?;
    let (reader, webhook) = (api.shared.reader.clone(), webhook.id);
    blocking(move || reader.delivery(webhook, id)).await?.ok_or_else(|| unknown_delivery(text))
}

/// Nothing is sent to one that is disabled, so an order to do so would wait for nobody knows what.
fn in_use(webhook: Webhook) -> Result<Webhook, ApiError> {
    if webhook.standing == Standing::Enabled {
        return Ok(webhook);
    }
    let detail = "this webhook is disabled; enable it first, with PUT and \"enabled\": true";
    Err(ApiError::new(StatusCode::CONFLICT, "webhook_disabled", detail))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    url: String,
    events: Vec<String>,
    description: Option<String>,
    enabled: Option<bool>,
}

/// Reads what a webhook is to be. Its address goes through the guard here, so that a mistake is told at once, and again
/// at each message.
fn wish(api: &Api, body: &[u8]) -> Result<WebhookChange, ApiError> {
    const DESCRIPTION_CHARS_MAX: usize = 200;
    let wish: Wish = object(
        body,
        "{\"url\": \"https://…\", \"events\": [\"request.finished\"], \"description\"?: \"…\", \"enabled\"?: true}",
    )?;
    let bad_url = |why: String| ApiError::invalid("bad_url", format!("url: {why}"));
    let url = Url::parse(&wish.url).map_err(|err| bad_url(err.to_string()))?;
    api.shared.fetcher.guard().check(&url).map_err(|why| bad_url(why.to_string()))?;
    let mut events = Vec::new();
    for word in &wish.events {
        let known = EventKind::TO_ASK_FOR.into_iter().find(|kind| kind.label() == word);
        let kind = known.ok_or_else(|| {
            let words = EventKind::TO_ASK_FOR.map(EventKind::label).join(", ");
            let word: String = word.chars().take(80).collect();
            ApiError::invalid("unknown_event", format!("events: {word:?} is none of {words}"))
        })?;
        if !events.contains(&kind) {
            events.push(kind);
        }
    }
    if events.is_empty() {
        return Err(ApiError::invalid(
            "no_events",
            "events: name at least one; to be told of nothing, use \"enabled\": false",
        ));
    }
    if wish.description.as_ref().is_some_and(|text| text.chars().count() > DESCRIPTION_CHARS_MAX) {
        let detail = format!("description: at most {DESCRIPTION_CHARS_MAX} characters");
        return Err(ApiError::invalid("description_too_long", detail));
    }
    Ok(WebhookChange {
        url: url.to_string(),
        events,
        description: wish.description,
        enabled: wish.enabled.unwrap_or(true),
    })
}

fn new_secret() -> Result<SigningSecret, ApiError> {
    let mut random = [0; SigningSecret::BYTES];
    getrandom::fill(&mut random).map_err(|err| {
        tracing::error!(error = %err, "the system gives no random numbers");
        ApiError::unavailable("the system gives no random numbers for a secret at the moment")
    })?;
    Ok(SigningSecret::new(random))
}

async fn make(api: &Api, company: CompanyId, body: &[u8]) -> Result<Value, ApiError> {
    let wanted = wish(api, body)?;
    let (id, now) = (WebhookId::new(api.shared.ids.next()), api.shared.clock.now());
    crash_point!("webhook.make.before_commit");
    let made = api.shared.store.make_webhook(company, id, new_secret()?, wanted, now).await?;
    crash_point!("webhook.make.after_commit");
    match made {
        WebhookMade::Made(webhook) => Ok(with_secret(&webhook, now)),
        WebhookMade::TooMany => {
            let detail = format!(
                "a company has at most {} webhooks; delete one first, and give it a moment to go",
                webhook::WEBHOOKS_MAX
            );
            Err(ApiError::new(StatusCode::CONFLICT, "too_many_webhooks", detail))
        }
    }
}

async fn list(api: &Api, company: CompanyId) -> Result<Value, ApiError> {
    let reader = api.shared.reader.clone();
    let webhooks = blocking(move || reader.webhooks(&company)).await?;
    let now = api.shared.clock.now();
    let live = webhooks.iter().filter(|webhook| webhook.standing != Standing::Deleted);
    Ok(json!({ "ok": true, "webhooks": live.map(|webhook| view(webhook, now)).collect::<Vec<_>>() }))
}

async fn deliveries(api: &Api, webhook: &Webhook, query: &Query) -> Result<Value, ApiError> {
    let state = match query.get("status") {
        None => None,
        Some(word) => {
            Some(DeliveryState::LABELS.into_iter().find(|label| *label == word).ok_or_else(|| {
                let words = DeliveryState::LABELS.join(", ");
                ApiError::invalid("unknown_status", format!("{word:?} is not a status: {words}"))
            })?)
        }
    };
    let limit = query.limit()?;
    let instance = api.shared.store.instance();
    let scope = format!("deliveries/{}/{}", webhook.id, state.unwrap_or_default());
    let before = match query.get("cursor") {
        Some(cursor) => Some(DeliveryId::from_bytes(cursor::unseal(instance, &scope, cursor)?)),
        None => None,
    };
    let (reader, id) = (api.shared.reader.clone(), webhook.id);
    let (page, next) = blocking(move || reader.list_deliveries(id, state, before, limit)).await?;
    Ok(json!({
        "ok": true,
        "deliveries": page.iter().map(view_delivery).collect::<Vec<_>>(),
        "nextCursor": next.map(|id| cursor::seal(instance, &scope, id.as_bytes())),
    }))
}

/// A webhook. Its secrets are not shown.
fn view(webhook: &Webhook, now: Timestamp) -> Value {
    let old_until = webhook.old_until(now);
    json!({
        "id": webhook.id.to_string(),
        "companyId": webhook.company.as_str(),
        "url": webhook.url,
        "events": webhook.events.iter().map(|kind| kind.label()).collect::<Vec<_>>(),
        "description": webhook.description,
        "enabled": webhook.standing == Standing::Enabled,
        "disabledBecause": match &webhook.standing {
            Standing::Disabled { why } => Some(why),
            Standing::Enabled | Standing::Deleted => None,
        },
        "oldSecretSignsUntil": old_until.map(|until| until.to_string()),
        "createdAt": webhook.created_at.to_string(),
        "changedAt": webhook.changed_at.to_string(),
        "pendingDeliveries": webhook.pending,
        "endedDeliveries": webhook.ended,
        "droppedDeliveries": webhook.dropped,
    })
}

/// The same with its secret, which is shown this once.
fn with_secret(webhook: &Webhook, now: Timestamp) -> Value {
    let mut shown = view(webhook, now);
    if let Value::Object(fields) = &mut shown {
        fields.insert("secret".to_owned(), Value::from(webhook.secret.reveal()));
    }
    json!({ "ok": true, "webhook": shown })
}

fn view_delivery(delivery: &Delivery) -> Value {
    json!({
        "id": delivery.message_id(),
        "webhookId": delivery.webhook.to_string(),
        "eventId": delivery.event.to_string(),
        "type": delivery.kind.label(),
        "status": delivery.state.label(),
        "createdAt": delivery.created_at.to_string(),
        "dueAt": delivery.state.due().map(|at| at.to_string()),
        "endedAt": delivery.state.ended_at().map(|at| at.to_string()),
        "tries": delivery.tries,
        "payloadBytes": delivery.bytes,
        "attempts": delivery.log.iter().map(view_try).collect::<Vec<_>>(),
    })
}

fn view_try(tried: &Try) -> Value {
    json!({
        "at": tried.at.to_string(),
        "millis": tried.millis,
        "httpStatus": tried.http_status,
        "error": tried.error,
    })
}
