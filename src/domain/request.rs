//! A request: one AI call to be made, and what became of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::id::{BatchId, CompanyId, RequestId, SessionId, Timestamp};

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RequestStatus {
    /// Waits for a batch.
    PendingBatching,
    /// Is outstanding in one live batch.
    BatchingInProgress,
    /// Has its result.
    ProcessingComplete,
    /// Will not be tried again unless an operator says so.
    ProcessingFailed,
}

impl RequestStatus {
    /// All of them, in the order of their life.
    pub const ALL: [Self; 4] =
        [Self::PendingBatching, Self::BatchingInProgress, Self::ProcessingComplete, Self::ProcessingFailed];

    /// The status as the API names it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::PendingBatching => "pending_batching",
            Self::BatchingInProgress => "batching_in_progress",
            Self::ProcessingComplete => "processing_complete",
            Self::ProcessingFailed => "processing_failed",
        }
    }
}

impl FromStr for RequestStatus {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|status| status.label() == text).ok_or(())
    }
}

/// The provider's endpoints that a request may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    ChatCompletions,
    /// `/v1/responses`
    Responses,
    /// `/v1/embeddings`
    Embeddings,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ChatCompletions, Self::Responses, Self::Embeddings];

    /// The path, as it stands in the line and in the batch.
    pub const fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
        }
    }
}

impl FromStr for Endpoint {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == text).ok_or(())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

/// What may share a batch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Group {
    /// The tenant.
    pub company: CompanyId,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The model, as the request names it.
    pub model: String,
}

/// Where a request comes from, which says how its body is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The analysis of one version of a session; the body is built from the stored messages.
    Session {
        /// The session.
        session: SessionId,
        /// The version of its content.
        version: u32,
        /// The version of the prompt ([`super::analysis::PROMPT_VERSION`] when it was made).
        prompt: u32,
    },
    /// A request from the API; the body is stored as it came.
    Generic {
        /// The client's own key, unique in the company.
        client_id: Option<String>,
    },
}

impl Source {
    /// The session of an analysis.
    pub const fn session(&self) -> Option<SessionId> {
        match self {
            Self::Session { session, .. } => Some(*session),
            Self::Generic { .. } => None,
        }
    }
}

/// Tokens as the provider counts them. `cached` is part of `prompt`, `reasoning` of `completion`, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Input tokens.
    pub prompt: u64,
    /// Output tokens.
    pub completion: u64,
    /// As the provider sums them.
    pub total: u64,
    /// Input tokens read from the provider's cache.
    pub cached: u64,
    /// Input tokens written to the provider's cache.
    pub cache_write: u64,
    /// Output tokens spent on reasoning.
    pub reasoning: u64,
    /// Audio tokens of the input.
    pub audio_prompt: u64,
    /// Audio tokens of the output.
    pub audio_completion: u64,
    /// Predicted tokens that were used.
    pub accepted_prediction: u64,
    /// Predicted tokens that were not used.
    pub rejected_prediction: u64,
}

/// Money in millionths of a currency unit; never a float.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Millionths of one unit of `currency`.
    pub micros: u64,
    /// ISO 4217 code.
    pub currency: String,
    /// The version of the price table that it was reckoned with.
    pub price_version: String,
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureClass {
    /// May go well another time: rate limits, server errors, time-outs, expiry, a missing line.
    Transient,
    /// Will fail every time: bad request, content policy, unknown model.
    Permanent,
    /// The answer came and was paid for but cannot be used: cut off, refused, not as the schema says.
    Unusable,
    /// The account is the trouble: quota, billing, key.
    Account,
    /// No room for the tokens at the provider.
    Capacity,
    /// The provider ran it, and the result cannot be had.
    Lost,
}

impl FailureClass {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Transient, Self::Permanent, Self::Unusable, Self::Account, Self::Capacity, Self::Lost];

    /// Whether it may go well another time, and nothing was bought that would be bought again.
    pub const fn may_pass(self) -> bool {
        match self {
            Self::Transient | Self::Account | Self::Capacity => true,
            Self::Permanent | Self::Unusable | Self::Lost => false,
        }
    }

    /// The class as the API names it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Permanent => "permanent",
            Self::Unusable => "unusable",
            Self::Account => "account",
            Self::Capacity => "capacity",
            Self::Lost => "lost",
        }
    }
}

impl FromStr for FailureClass {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|class| class.label() == text).ok_or(())
    }
}

/// Why a request has no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What to do about it.
    pub class: FailureClass,
    /// A short code: the provider's (`batch_expired`, `context_length_exceeded`) or ours (`missing_result`).
    pub code: String,
    /// The provider's words, or ours, at most [`Failure::DETAIL_CHARS_MAX`] characters; no conversation text.
    pub detail: String,
    /// The HTTP status of the line, where there was one.
    pub http_status: Option<u16>,
}

impl Failure {
    /// Longer words are cut.
    pub const DETAIL_CHARS_MAX: usize = 500;

    /// A failure with its words cut to size.
    pub fn new(class: FailureClass, code: impl Into<String>, detail: &str) -> Self {
        let code: String = code.into();
        Self {
            class,
            code: code.chars().take(100).collect(),
            detail: detail.chars().take(Self::DETAIL_CHARS_MAX).collect(),
            http_status: None,
        }
    }

    /// The same with the line's HTTP status.
    pub fn with_status(mut self, status: u16) -> Self {
        self.http_status = Some(status);
        self
    }
}

/// `code: detail`
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            f.write_str(&self.code)
        } else {
            write!(f, "{}: {}", self.code, self.detail)
        }
    }
}

/// What the provider says of how it answered one line; all of it optional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Answered {
    /// `response.request_id`
    pub provider_request_id: Option<String>,
    /// `response.body.model`: the snapshot that answered.
    pub model: Option<String>,
    /// `response.body.service_tier`
    pub service_tier: Option<String>,
    /// `response.body.system_fingerprint`
    pub system_fingerprint: Option<String>,
    /// What it counted.
    pub usage: Option<Usage>,
}

/// One line of a result file, decoded: what became of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What the provider said of the answer, also where it failed.
    pub answered: Answered,
    /// The body of a good answer as JSON text, or why there is none.
    pub result: Result<String, Failure>,
}

/// One inclusion of a request in a batch that came to an end for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// 1 for the first; 0 for what counts for none: the provider ran nothing, or the answer did not fit its form and
    /// the model is asked once more.
    pub number: u32,
    /// The batch.
    pub batch: BatchId,
    /// Why it failed; none for the attempt that completed it.
    pub failure: Option<Failure>,
    /// When that was stored.
    pub at: Timestamp,
}

/// Embedding inputs of a batch at most (contract section 3.1).
pub const INPUTS_MAX: u64 = 50_000;

/// One AI call to be made, as stored. Its body and its result lie apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Our id; also the `custom_id` of its line.
    pub id: RequestId,
    /// What it may share a batch with: company, endpoint, model.
    pub group: Group,
    /// Where it comes from.
    pub source: Source,
    /// Where it stands.
    pub status: RequestStatus,
    /// The batch that it is in, or was last in.
    pub batch: Option<BatchId>,
    /// Length of its input line with the line end, in bytes.
    pub line_bytes: u32,
    /// CRC32C of its input line: a line built again must be the same.
    pub line_crc: u32,
    /// Estimated input tokens.
    pub estimated_tokens: u32,
    /// Tokens that its answer may have at most, where it says so; none at all of embeddings.
    pub output_max: Option<u32>,
    /// How many inputs an embeddings request has; of those a batch takes no more than [`INPUTS_MAX`].
    pub inputs: u32,
    /// Which of the stored answers that did not fit its line shows to the model; none in its first form.
    pub repair: Option<u32>,
    /// How many answers that did not fit are stored.
    pub misfits: u32,
    /// How often it was asked once more for such an answer, since it was made or last requeued. No attempts.
    pub repairs: u32,
    /// Batches that it was in before it was made to ask about a newer version of its session: what comes of them late is
    /// about the older one.
    pub stale: Vec<BatchId>,
    /// The client's own pairs, a flat JSON object of strings; kept and shown, never sent.
    pub metadata: Option<String>,
    /// Higher goes first within a group.
    pub priority: i8,
    /// Not to be batched before: a back-off, or the client's wish.
    pub not_before: Option<Timestamp>,
    /// When it was made.
    pub requested_at: Timestamp,
    /// Since when it waits for a batch.
    pub pending_since: Timestamp,
    /// When it got its last outcome.
    pub completed_at: Option<Timestamp>,
    /// Attempts that count, since it was made or last requeued.
    pub attempts: u32,
    /// Why it failed, or failed last.
    pub failure: Option<Failure>,
    /// What the provider said of the last answer.
    pub answered: Answered,
    /// What all answers to it cost.
    pub cost: Option<Cost>,
    /// What became of it each time; the oldest are dropped after [`Request::HISTORY_MAX`].
    pub history: Vec<Attempt>,
}

impl Request {
    /// How many attempts the history keeps.
    pub const HISTORY_MAX: usize = 20;

    /// How the request is processed; one kind so far.
    pub const PROCESSING_TYPE: &'static str = "batch";

    /// Adds to the history. Gives the oldest entry, which goes when it is full.
    pub fn remember(&mut self, attempt: Attempt) -> Option<Attempt> {
        let full = self.history.len() >= Self::HISTORY_MAX;
        let oldest = full.then(|| self.history.remove(0));
        self.history.push(attempt);
        oldest
    }
}
