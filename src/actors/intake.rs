//! Intake: the only writer of new and requeued requests, and of sessions.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use sha2::{Digest, Sha256};

use super::creator::{Creator, Nudge};
use super::registry::blocking;
use super::{Shared, alone, every};
use crate::condition::Hindrance;
use crate::domain::analysis::{self, Misfit};
use crate::domain::fingerprint;
use crate::domain::id::{CompanyId, RequestId, SessionId};
use crate::domain::line_ends;
use crate::domain::request::{Endpoint, Group, Source};
use crate::domain::session::{Message as ChatMessage, Session, SessionFacts};
use crate::domain::source::{TranscriptAt, Validators};
use crate::provider::jsonl;
use crate::store::{
    Accepted, CallLine, ClientKey, Content, NewRequest, Requeued, SessionIn, SessionTaken, StoreError,
    TranscriptIn,
};

/// How many requests or sessions one message may carry.
pub const CHUNK: usize = 250;
/// A message with so many bytes of text takes no more.
pub const CHUNK_BYTES: usize = 8 << 20;

/// Why nothing was stored of what came in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// Nothing is taken in just now.
    #[error("nothing is taken in just now: {1}")]
    Stopped(Hindrance, String),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether something may be taken in; the disk is looked at anew for each chunk, for a second is long.
fn may_take_in(shared: &Shared) -> Result<(), IntakeError> {
    shared.disk.look();
    match shared.condition.intake_stopped() {
        None => Ok(()),
        Some((hindrance, why)) => Err(IntakeError::Stopped(hindrance, why)),
    }
}

/// Writes what comes in.
pub struct Intake {
    shared: Arc<Shared>,
    creator: Addr<Creator>,
    settling: bool,
}

impl Intake {
    /// Intake that nudges `creator` when something new waits.
    pub const fn new(shared: Arc<Shared>, creator: Addr<Creator>) -> Self {
        Self { shared, creator, settling: false }
    }

    /// Makes the requests of all sessions that have settled.
    fn settle(&mut self, ctx: &mut Context<Self>) {
        if self.settling || may_take_in(&self.shared).is_err() {
            return;
        }
        self.settling = true;
        let shared = self.shared.clone();
        ctx
            .spawn(async move { alone(request_settled(&shared)).await }.into_actor(self).map(|made, this, _| {
            this.settling = false;
            match made {
                Ok(0) => {}
                Ok(made) => {
                    tracing::info!(requests = made, "{made} analyses requested");
                    this.creator.do_send(Nudge);
                }
                Err(err) => {
                    tracing::error!(error = %err, "the analyses of settled sessions could not be requested")
                }
            }
        }));
    }
}

impl Actor for Intake {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(64);
        self.settle(ctx);
        let interval = self.shared.settle.clamp(Duration::from_secs(1), Duration::from_secs(30));
        every(ctx, &self.shared.clock, interval, Self::settle);
    }
}

/// A request from the API, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestIn {
    /// By which a repeat is recognised.
    pub key: Option<ClientKey>,
    /// Where it goes.
    pub endpoint: Endpoint,
    /// `body.model`
    pub model: String,
    /// The body as JSON text on one line.
    pub body: String,
    /// The client's own pairs as JSON text.
    pub metadata: Option<String>,
    /// Tokens that its answer may have at most, where it says so.
    pub output_max: Option<u32>,
    /// How many inputs an embeddings request has.
    pub inputs: u32,
    /// Higher goes first.
    pub priority: i8,
    /// Not to be batched before.
    pub not_before: Option<crate::domain::id::Timestamp>,
}

impl RequestIn {
    /// SHA-256 over everything that makes it what it is; nothing where no repeat could be recognised.
    fn content_hash(&self) -> [u8; 32] {
        if self.key.is_none() {
            return [0; 32];
        }
        let mut hash = Sha256::new();
        hash.update(self.endpoint.path());
        hash.update([0]);
        hash.update(fingerprint::of_json(&self.body));
        hash.update(fingerprint::of_json(self.metadata.as_deref().unwrap_or_default()));
        hash.update(self.priority.to_be_bytes());
        hash.update(self.not_before.map_or(i64::MIN, |at| at.as_millis()).to_be_bytes());
        hash.finalize().into()
    }
}

/// Take in requests of one company, at most [`CHUNK`].
#[derive(Message)]
#[rtype(result = "Result<Vec<Accepted>, IntakeError>")]
pub struct AcceptRequests {
    /// Whose.
    pub company: CompanyId,
    /// What.
    pub requests: Vec<RequestIn>,
}

impl Handler<AcceptRequests> for Intake {
    type Result = ResponseFuture<Result<Vec<Accepted>, IntakeError>>;

    fn handle(&mut self, asked: AcceptRequests, _: &mut Context<Self>) -> Self::Result {
        let (shared, creator) = (self.shared.clone(), self.creator.clone());
        Box::pin(alone(async move {
            let AcceptRequests { company, requests } = asked;
            may_take_in(&shared)?;
            let made = requests.into_iter().map(|request| generic(&shared, &company, request)).collect();
            crash_point!("ingest.before_commit");
            let accepted = shared.store.accept_requests(made, shared.clock.now()).await?;
            crash_point!("ingest.after_commit_before_ack");
            if accepted.iter().any(|accepted| matches!(accepted, Accepted::New(_))) {
                creator.do_send(Nudge);
            }
            Ok(accepted)
        }))
    }
}

fn generic(shared: &Shared, company: &CompanyId, request: RequestIn) -> NewRequest {
    let id = RequestId::new(shared.ids.next());
    // A repeat is known by what the client sent, and that is what is hashed.
    let content_hash = request.content_hash();
    let body = line_ends::escape(&request.body, &line_ends::ALL).into_owned();
    let line = jsonl::measure(id, request.endpoint, &body);
    NewRequest {
        id,
        group: Group { company: company.clone(), endpoint: request.endpoint, model: request.model },
        source: Source::Generic {
            client_id: match &request.key {
                Some(ClientKey::Id(id)) => Some(id.clone()),
                Some(ClientKey::Line(_)) | None => None,
            },
        },
        key: request.key,
        content_hash,
        line_bytes: line.line_bytes,
        line_crc: line.line_crc,
        estimated_tokens: line.estimated_tokens,
        output_max: request.output_max,
        inputs: request.inputs,
        body: Some(body),
        metadata: request.metadata,
        priority: request.priority,
        not_before: request.not_before,
    }
}

/// A session as an export or a client gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatSession {
    /// The client's id.
    pub external_id: String,
    /// What it says of the session.
    pub facts: SessionFacts,
    /// The messages; none where the transcript could not be had.
    pub messages: Option<Vec<ChatMessage>>,
    /// Where its transcript is fetched from, if it is.
    pub fetch: Option<TranscriptAt>,
    /// The line that brought it, where its call can be known again.
    pub line: Option<CallLine>,
}

/// Take in sessions of one company, at most [`CHUNK`].
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Vec<SessionTaken>, IntakeError>")]
pub struct AcceptSessions {
    /// Whose.
    pub company: CompanyId,
    /// What.
    pub sessions: Vec<ChatSession>,
}

impl Handler<AcceptSessions> for Intake {
    type Result = ResponseActFuture<Self, Result<Vec<SessionTaken>, IntakeError>>;

    fn handle(&mut self, asked: AcceptSessions, _: &mut Context<Self>) -> Self::Result {
        let shared = self.shared.clone();
        let taken = async move {
            let AcceptSessions { company, sessions } = asked;
            may_take_in(&shared)?;
            let now = shared.clock.now();
            let take = |session: ChatSession| SessionIn {
                company: company.clone(),
                external_id: session.external_id,
                id: SessionId::new(shared.ids.next()),
                facts: session.facts.cut(),
                content_hash: content_hash(session.messages.as_deref().unwrap_or_default()),
                messages: session.messages,
                settles_at: now.plus(shared.settle),
                fetch: session.fetch,
                line: session.line,
            };
            let sessions = sessions.into_iter().map(take).collect();
            crash_point!("import.before_commit");
            let taken = shared.store.accept_sessions(sessions, now).await?;
            crash_point!("import.after_commit");
            Ok(taken)
        };
        Box::pin(alone(taken).into_actor(self).map(|taken, this, ctx| {
            if this.shared.settle.is_zero() {
                this.settle(ctx);
            }
            taken
        }))
    }
}

/// Give a session the transcript that was fetched for it.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Option<SessionTaken>, IntakeError>")]
pub struct AcceptTranscript {
    /// Of which session.
    pub session: SessionId,
    /// The address that it was fetched from.
    pub url: String,
    /// What it says; none where it has not changed.
    pub messages: Option<Vec<ChatMessage>>,
    /// By which the next change is told.
    pub validators: Validators,
}

impl Handler<AcceptTranscript> for Intake {
    type Result = ResponseActFuture<Self, Result<Option<SessionTaken>, IntakeError>>;

    fn handle(&mut self, asked: AcceptTranscript, _: &mut Context<Self>) -> Self::Result {
        let shared = self.shared.clone();
        let taken = async move {
            may_take_in(&shared)?;
            let now = shared.clock.now();
            let content = asked.messages.map(|messages| {
                let hash = content_hash(&messages);
                (messages, hash)
            });
            let transcript = TranscriptIn {
                session: asked.session,
                url: asked.url,
                content,
                validators: asked.validators,
                settles_at: now.plus(shared.settle),
            };
            crash_point!("transcript.before_commit");
            let taken = shared.store.take_transcript(transcript, now).await?;
            crash_point!("transcript.after_commit");
            Ok(taken)
        };
        Box::pin(alone(taken).into_actor(self).map(|taken, this, ctx| {
            if this.shared.settle.is_zero() && matches!(taken, Ok(Some(SessionTaken::Changed))) {
                this.settle(ctx);
            }
            taken
        }))
    }
}

fn content_hash(messages: &[ChatMessage]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for message in messages {
        hash.update(message.role.label());
        hash.update(message.at.map_or(i64::MIN, |at| at.as_millis()).to_be_bytes());
        hash.update((message.text.len() as u64).to_be_bytes());
        hash.update(message.text.as_bytes());
    }
    hash.finalize().into()
}

/// What became of the requests that were to be requeued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequeueCounts {
    /// Wait for a batch again.
    pub requeued: u64,
    /// Do not exist.
    pub not_found: u64,
    /// Are not failed.
    pub skipped: u64,
}

/// Put failed requests back to wait for a batch; one named twice counts once.
#[derive(Message)]
#[rtype(result = "Result<RequeueCounts, IntakeError>")]
pub struct Requeue(pub Vec<RequestId>);

impl Handler<Requeue> for Intake {
    type Result = ResponseFuture<Result<RequeueCounts, IntakeError>>;

    fn handle(&mut self, Requeue(ids): Requeue, _: &mut Context<Self>) -> Self::Result {
        let (shared, creator) = (self.shared.clone(), self.creator.clone());
        Box::pin(alone(async move {
            let mut seen = HashSet::new();
            let ids: Vec<_> = ids.into_iter().filter(|id| seen.insert(*id)).collect();
            let mut counts = RequeueCounts::default();
            crash_point!("requeue.before_commit");
            for (nth, chunk) in ids.chunks(CHUNK).enumerate() {
                if nth > 0 {
                    crash_point!("requeue.between_commits");
                }
                may_take_in(&shared)?;
                for fate in shared.store.requeue(chunk.to_vec(), shared.clock.now()).await? {
                    match fate {
                        Requeued::Requeued => counts.requeued += 1,
                        Requeued::Skipped => counts.skipped += 1,
                        Requeued::NotFound => counts.not_found += 1,
                    }
                }
            }
            crash_point!("requeue.after_commit");
            if counts.requeued > 0 {
                tracing::info!(
                    requests = counts.requeued,
                    "{} failed requests were requeued",
                    counts.requeued
                );
                creator.do_send(Nudge);
            }
            Ok(counts)
        }))
    }
}

/// Makes requests for what has settled, chunk by chunk; says how many.
async fn request_settled(shared: &Arc<Shared>) -> Result<usize, StoreError> {
    let mut made = 0;
    loop {
        let now = shared.clock.now();
        let worker = shared.clone();
        let settled = blocking(move || {
            let sessions = worker.reader.settled(now, CHUNK)?;
            let read = sessions.len();
            let requests =
                sessions.into_iter().filter_map(|session| for_analysis(&worker, session).transpose());
            Ok((read, requests.collect::<Result<Vec<_>, _>>()?))
        });
        let (read, requests) = settled.await?;
        if requests.is_empty() {
            break;
        }
        crash_point!("settle.before_commit");
        made += shared.store.request_analyses(requests, now).await?;
        crash_point!("settle.after_commit");
        if read < CHUNK {
            break;
        }
    }
    while shared.store.forget_keys(shared.clock.now()).await? > 0 {
        crash_point!("keys.after_commit");
    }
    Ok(made)
}

fn for_analysis(
    shared: &Shared,
    session: Session,
) -> Result<Option<(SessionId, u32, NewRequest)>, StoreError> {
    let Some(content) = shared.reader.content(session.id, session.version)? else { return Ok(None) };
    let Some(company) = shared.reader.company(&session.company)? else { return Ok(None) };
    let id = RequestId::new(shared.ids.next());
    let body = analysis_body(&company.model, analysis::PROMPT_VERSION, &content, None);
    let line = jsonl::measure(id, Endpoint::ChatCompletions, &body);
    let request = NewRequest {
        id,
        group: Group {
            company: session.company.clone(),
            endpoint: Endpoint::ChatCompletions,
            model: company.model,
        },
        source: Source::Session {
            session: session.id,
            version: session.version,
            prompt: analysis::PROMPT_VERSION,
        },
        key: None,
        content_hash: session.content_hash,
        body: None,
        line_bytes: line.line_bytes,
        line_crc: line.line_crc,
        estimated_tokens: line.estimated_tokens,
        // No limit is sent with it; how long such answers usually are is learned.
        output_max: None,
        inputs: 0,
        metadata: None,
        priority: 0,
        not_before: None,
    };
    Ok(Some((session.id, session.version, request)))
}

/// The body of a session's analysis, the same whenever it is built from the same content.
pub(super) fn analysis_body(model: &str, prompt: u32, content: &Content, misfit: Option<&Misfit>) -> String {
    analysis::request_body(model, prompt, &content.facts, &content.messages, misfit)
}
