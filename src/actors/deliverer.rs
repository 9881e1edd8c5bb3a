//! The deliverer: tells webhooks what has happened. Each webhook has a lane of its own, in which one message goes out
//! after the other, so that a receiver that is slow or away holds up nobody else.
//!
//! Everything that a lane works on lies in the store: after a kill it goes on from there, and a message that was under way
//! goes out once more, under the same id.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{Notify, Semaphore};

use super::registry::blocking;
use super::{Shared, every};
use crate::domain::id::{CompanyId, Timestamp, WebhookId};
use crate::domain::webhook::signature;
use crate::domain::webhook::{Answer, Delivery, RETRY_AFTER_MAX, Standing, Try, WAIT_MAX, Webhook};
use crate::fetch::{FetchError, Reply, Url};
use crate::panics;
use crate::store::StoreError;

/// A receiver has so long to answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Messages of one company that are under way at once: its slow receivers do not take the places of others.
const UNDER_WAY_OF_COMPANY: usize = 4;
/// Messages that are under way at once.
const UNDER_WAY: usize = 64;
/// How often old deliveries are removed, and every webhook is looked at.
const TIDY: Duration = Duration::from_secs(3600);
/// A lane looks again after so long, whatever it waits for: the wall clock may have been turned.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// After trouble of our own a lane rests so long.
const REST: Duration = Duration::from_secs(10);
/// Webhooks that are read at once.
const PAGE: usize = 100;

type Name = (CompanyId, WebhookId);

/// Gives each webhook that is to be told of something a lane.
pub struct Deliverer {
    shared: Arc<Shared>,
    /// The lanes, each with what wakes it.
    lanes: HashMap<Name, Arc<Notify>>,
    companies: HashMap<CompanyId, Arc<Semaphore>>,
    all: Arc<Semaphore>,
}

impl Deliverer {
    /// One for all companies of the store.
    pub fn new(shared: Arc<Shared>) -> Self {
        let all = Arc::new(Semaphore::new(UNDER_WAY));
        Self { shared, lanes: HashMap::new(), companies: HashMap::new(), all }
    }

    /// Waits for what there is to be told, again and again.
    fn listen(&mut self, ctx: &mut Context<Self>) {
        let (store, reader) = (self.shared.store.clone(), self.shared.reader.clone());
        let rung = async move {
            let companies = store.something_to_deliver().await;
            blocking(move || {
                let mut webhooks = Vec::new();
                for company in companies {
                    webhooks.extend(reader.webhooks(&company)?);
                }
                Ok(webhooks)
            })
            .await
        };
        ctx.spawn(panics::caught(rung).into_actor(self).map(|webhooks, this, ctx| {
            match webhooks {
                Ok(Ok(webhooks)) => this.wake(webhooks, ctx),
                Ok(Err(err)) => tracing::error!(error = %err, "webhooks cannot be read; they are read again within the hour"),
                Err(_) => {}
            }
            this.listen(ctx);
        }));
    }

    /// Wakes the lanes of webhooks that have something waiting, and makes those that are not there.
    fn wake(&mut self, webhooks: Vec<Webhook>, ctx: &mut Context<Self>) {
        for webhook in webhooks {
            let name = (webhook.company, webhook.id);
            if let Some(lane) = self.lanes.get(&name) {
                lane.notify_one();
            } else if webhook.pending > 0 || webhook.standing == Standing::Deleted {
                let of_company = self
                    .companies
                    .entry(name.0.clone())
                    .or_insert_with(|| Arc::new(Semaphore::new(UNDER_WAY_OF_COMPANY)));
                let woken = Arc::new(Notify::new());
                let lane = Lane {
                    shared: self.shared.clone(),
                    company: name.0.clone(),
                    webhook: name.1,
                    woken: woken.clone(),
                    of_company: of_company.clone(),
                    all: self.all.clone(),
                    rests_until: None,
                };
                self.lanes.insert(name.clone(), woken);
                // A task of its own, so that many lanes are not all asked whenever one of them has something to do.
                let run = tokio::spawn(lane.run());
                ctx.spawn(actix::fut::wrap_future::<_, Self>(run).map(move |_, this, _| {
                    this.lanes.remove(&name);
                }));
            }
        }
    }

    /// Removes what has had its time, and looks for lanes that are missing.
    fn tidy(&mut self, ctx: &mut Context<Self>) {
        let shared = self.shared.clone();
        let work = async move {
            let mut all = Vec::new();
            loop {
                let (reader, last) =
                    (shared.reader.clone(), all.last().map(|last: &Webhook| (last.company.clone(), last.id)));
                let page = move || {
                    let after = last.as_ref().map(|(company, id)| (company, *id));
                    reader.webhooks_after(after, PAGE)
                };
                let page = blocking(page).await?;
                let is_last = page.len() < PAGE;
                for webhook in &page {
                    let now = shared.clock.now();
                    while shared.store.remove_deliveries(webhook.company.clone(), webhook.id, now).await? {}
                }
                all.extend(page);
                if is_last {
                    return Ok::<_, StoreError>(all);
                }
            }
        };
        ctx.spawn(panics::caught(work).into_actor(self).map(|all, this, ctx| match all {
            Ok(Ok(all)) => this.wake(all, ctx),
            Ok(Err(err)) => tracing::error!(error = %err, "webhooks cannot be tidied up; that is tried again within the hour"),
            Err(_) => {}
        }));
    }
}

impl Actor for Deliverer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.listen(ctx);
        self.tidy(ctx);
        every(ctx, &self.shared.clock, TIDY, Self::tidy);
    }
}

/// What a lane has to do.
enum Next {
    /// Tell it of this.
    Deliver(Box<(Webhook, Delivery)>),
    /// Nothing for so long, or until it is woken.
    Wait(Option<Duration>),
    /// The webhook is deleted.
    Gone,
}

/// The work for one webhook.
struct Lane {
    shared: Arc<Shared>,
    company: CompanyId,
    webhook: WebhookId,
    woken: Arc<Notify>,
    of_company: Arc<Semaphore>,
    all: Arc<Semaphore>,
    /// The receiver asked for a rest, or we have trouble, until then.
    rests_until: Option<Timestamp>,
}

impl Lane {
    async fn run(mut self) {
        loop {
            // What panics, or cannot be read or stored, is tried again after a rest.
            match panics::caught(self.turn()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return,
                Ok(Err(err)) => {
                    tracing::error!(webhook.id = %self.webhook, error = %err, "a webhook cannot be seen to now");
                    self.shared.clock.sleep(REST).await;
                }
                Err(_) => self.shared.clock.sleep(REST).await,
            }
        }
    }

    /// Does what there is to do, or waits; says whether there may be more.
    async fn turn(&mut self) -> Result<bool, StoreError> {
        match self.next().await? {
            Next::Deliver(_) => {
                let (of_company, all) = (self.of_company.clone(), self.all.clone());
                // Neither is ever closed.
                let _places = (of_company.acquire().await.ok(), all.acquire().await.ok());
                // While it waited for its place it may have been changed, disabled or deleted.
                if let Next::Deliver(due) = self.next().await? {
                    let (webhook, delivery) = *due;
                    self.deliver(&webhook, delivery).await?;
                }
            }
            Next::Wait(length) => {
                let length = length.unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN);
                let clock = self.shared.clock.clone();
                tokio::select! {
                    () = self.woken.notified() => {}
                    () = clock.sleep(length) => {}
                }
            }
            Next::Gone => {
                let (store, now) = (&self.shared.store, self.shared.clock.now());
                while store.remove_deliveries(self.company.clone(), self.webhook, now).await? {}
                crash_point!("deliveries.after_commit");
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn next(&self) -> Result<Next, StoreError> {
        let (reader, company, id) = (self.shared.reader.clone(), self.company.clone(), self.webhook);
        let read = blocking(move || Ok((reader.webhook(&company, id)?, reader.next_delivery(id)?)));
        let (webhook, delivery) = match read.await? {
            (None, _) => return Ok(Next::Gone),
            (Some(_), None) => return Ok(Next::Wait(None)),
            (Some(webhook), Some(delivery)) => (webhook, delivery),
        };
        let now = self.shared.clock.now();
        if webhook.standing != Standing::Enabled {
            return Ok(Next::Wait(None));
        }
        // What came of it could not be stored, or the store may be an older one that was told of already.
        if self.shared.condition.intake_stopped().is_some() {
            return Ok(Next::Wait(Some(REST)));
        }
        // A time that is further away was stored by a clock that was ahead.
        let due = delivery.state.due().filter(|due| due.since(now) <= WAIT_MAX).unwrap_or(now);
        let rests_until = self.rests_until.filter(|until| until.since(now) <= RETRY_AFTER_MAX);
        let wait = due.max(rests_until.unwrap_or(due)).since(now);
        if wait > Duration::ZERO {
            Ok(Next::Wait(Some(wait)))
        } else {
            Ok(Next::Deliver(Box::new((webhook, delivery))))
        }
    }

    /// Tells the webhook of one event, and stores what came of it.
    async fn deliver(&mut self, webhook: &Webhook, delivery: Delivery) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        let (reader, event) = (shared.reader.clone(), delivery.event);
        let text = blocking(move || reader.event_text(event)).await?;
        let (at, began) = (shared.clock.now(), shared.clock.monotonic_ms());
        let came = match text {
            Some(text) => self.post(webhook, &delivery, text, at).await,
            None => Err("its text is not there any more".to_owned()),
        };
        let (answer, http_status, error) = match came {
            Ok(reply) => {
                let error = (!reply.is_success()).then(|| format!("the receiver answered {}", reply.status));
                (Answer::of_status(reply.status, reply.retry_after), Some(reply.status), error)
            }
            Err(why) => (Answer::NotTaken { retry_after: None }, None, Some(why)),
        };
        let now = shared.clock.now();
        self.rests_until = if let Answer::NotTaken { retry_after: Some(wait) } = answer {
            Some(now.plus(wait))
        } else {
            None
        };
        let tried = Try {
            at,
            millis: shared.clock.monotonic_ms().saturating_sub(began),
            http_status,
            error: error.map(|error| error.chars().take(Try::ERROR_CHARS_MAX).collect()),
        };
        tracing::debug!(
            webhook.id = %self.webhook, delivery.id = %delivery.id, status = http_status, error = tried.error,
            "a message was {}", if answer == Answer::Taken { "delivered" } else { "not taken" }
        );
        crash_point!("webhook.after_send_before_commit");
        shared.store.note_try(self.company.clone(), self.webhook, delivery.id, tried, answer, now).await?;
        crash_point!("webhook.after_commit");
        if answer == Answer::Gone {
            tracing::warn!(webhook.id = %self.webhook, company.id = %self.company, "a webhook answered 410 Gone and is disabled");
        }
        Ok(())
    }

    async fn post(
        &self,
        webhook: &Webhook,
        delivery: &Delivery,
        text: Vec<u8>,
        at: Timestamp,
    ) -> Result<Reply, String> {
        let url = Url::parse(&webhook.url).map_err(|_| "its address cannot be read".to_owned())?;
        let (id, timestamp) = (delivery.message_id(), at.as_millis().div_euclid(1000).to_string());
        let signatures = signature::sign(webhook.secrets(at), &id, &timestamp, &text);
        let headers = [
            ("content-type", "application/json"),
            ("webhook-id", id.as_str()),
            ("webhook-timestamp", timestamp.as_str()),
            ("webhook-signature", signatures.as_str()),
        ];
        crash_point!("webhook.before_send");
        let posted = self.shared.fetcher.post(&url, &headers, text.into(), TIMEOUT).await;
        posted.map_err(|err: FetchError| err.to_string())
    }
}
