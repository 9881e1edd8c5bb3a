//! A chat session: facts from the export, its messages, and what is known of its analysis.

use serde::{Deserialize, Serialize};

use super::id::{CompanyId, RequestId, SessionId, Timestamp};

/// Who said a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// The customer.
    User,
    /// The bot or the agent.
    Assistant,
    /// The chat program itself.
    System,
}

impl Role {
    /// `user`, `assistant` or `system`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::System => "system",
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// When, where the transcript says.
    pub at: Option<Timestamp>,
    /// What was said; may have several lines.
    pub text: String,
}

/// What an export says of a session besides its messages. All but the times are as the export has them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SessionFacts {
    /// Begin of the conversation.
    pub started_at: Option<Timestamp>,
    /// End of the conversation.
    pub ended_at: Option<Timestamp>,
    /// The customer's address.
    pub ip_address: Option<String>,
    /// ISO 3166 code.
    pub country: Option<String>,
    /// As the export names it.
    pub language: Option<String>,
    /// How many messages the customer sent.
    pub messages_sent: Option<u64>,
    /// The export's own sentiment.
    pub sentiment: Option<String>,
    /// Whether a person was called in.
    pub escalated: Option<bool>,
    /// Whether it was forwarded to HR.
    pub forwarded_hr: Option<bool>,
    /// Where the transcript lies: a URL, or a path relative to the export.
    pub transcript: Option<String>,
    /// Average response time, in milliseconds.
    pub avg_response_ms: Option<u64>,
    /// Tokens of the chat itself.
    pub tokens: Option<u64>,
    /// What those tokens cost, in millionths of a euro.
    pub tokens_eur_micros: Option<u64>,
    /// The export's own category.
    pub category: Option<String>,
    /// The customer's first message.
    pub first_message: Option<String>,
    /// The client's own pairs, a flat JSON object of strings; kept and shown, never sent.
    pub metadata: Option<String>,
}

impl SessionFacts {
    /// Longer texts are cut: they are facts about a conversation, not its place.
    pub const TEXT_CHARS_MAX: usize = 2000;

    /// The same with every text cut to size.
    pub fn cut(mut self) -> Self {
        let texts = [
            &mut self.ip_address,
            &mut self.country,
            &mut self.language,
            &mut self.sentiment,
            &mut self.transcript,
            &mut self.category,
            &mut self.first_message,
        ];
        for text in texts.into_iter().flatten() {
            if let Some((end, _)) = text.char_indices().nth(Self::TEXT_CHARS_MAX) {
                text.truncate(end);
            }
        }
        self
    }
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionState {
    /// It has no messages, so there is nothing to analyse.
    Empty,
    /// Its transcript could not be had; tried again with the next import.
    TranscriptMissing,
    /// It waits until it was unchanged for `analysis.settle`.
    Settling,
    /// A request for the current version has been made.
    Requested,
    /// The current version is analysed.
    Analysed,
    /// The request for the current version failed.
    AnalysisFailed,
    /// It was removed for its age. By what is left of it the same session is known when it comes again.
    Expired,
}

impl SessionState {
    /// Those that are listed, in the order of their life.
    pub const ALL: [Self; 6] = [
        Self::Empty,
        Self::TranscriptMissing,
        Self::Settling,
        Self::Requested,
        Self::Analysed,
        Self::AnalysisFailed,
    ];

    /// The state as the API names it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TranscriptMissing => "transcript_missing",
            Self::Settling => "settling",
            Self::Requested => "requested",
            Self::Analysed => "analysed",
            Self::AnalysisFailed => "analysis_failed",
            Self::Expired => "expired",
        }
    }
}

impl std::str::FromStr for SessionState {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|state| state.label() == text).ok_or(())
    }
}

/// One session as stored; its messages lie apart, by (session, version).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Our id.
    pub id: SessionId,
    /// The tenant.
    pub company: CompanyId,
    /// The export's id; (company, external id) is unique.
    pub external_id: String,
    /// Counts the different contents seen; the first is 1.
    pub version: u32,
    /// SHA-256 of facts and messages of this version.
    pub content_hash: [u8; 32],
    /// What the export says.
    pub facts: SessionFacts,
    /// How many messages this version has.
    pub message_count: u32,
    /// Where it stands.
    pub state: SessionState,
    /// When the content last changed.
    pub changed_at: Timestamp,
    /// When it will have settled, while it has not.
    pub settles_at: Option<Timestamp>,
    /// The request for the current version.
    pub request: Option<RequestId>,
}
