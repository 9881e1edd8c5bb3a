//! Exports that are read again and again, and the transcripts that they name and that are fetched.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::{CompanyId, Timestamp};

/// A configured export: the first half of the SHA-256 of where it lies, so that it is the same after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SourceId([u8; 16]);

impl SourceId {
    /// Wraps the bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Text that is not the id of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a source is 32 hexadecimal digits")]
pub struct BadSourceId;

impl FromStr for SourceId {
    type Err = BadSourceId;

    fn from_str(text: &str) -> Result<Self, BadSourceId> {
        let lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.as_bytes().iter().all(lower) {
            return Err(BadSourceId);
        }
        u128::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes())).map_err(|_| BadSourceId)
    }
}

/// By which a server tells one state of a file from the next.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Validators {
    /// `ETag`
    pub etag: Option<String>,
    /// `Last-Modified`
    pub last_modified: Option<String>,
}

/// How a reading of an export ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOutcome {
    /// All of it was taken in.
    Read,
    /// The server says that it is as it was when it was last taken in.
    Unchanged,
    /// It could not be had, or not to its end.
    Failed,
    /// Its address may not be fetched.
    NotAllowed,
}

impl ReadOutcome {
    /// As the API names it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Unchanged => "unchanged",
            Self::Failed => "failed",
            Self::NotAllowed => "not_allowed",
        }
    }
}

/// What a reading of an export came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReadCounts {
    /// Sessions that were not known.
    pub new: u64,
    /// Sessions with other messages than before.
    pub changed: u64,
    /// Sessions with other facts than before.
    pub updated: u64,
    /// Sessions as they were.
    pub unchanged: u64,
    /// Rows that could not be read.
    pub bad_rows: u64,
    /// Sessions whose transcript could not be had from its file.
    pub without_transcript: u64,
    /// Sessions whose transcript is fetched by itself.
    pub to_fetch: u64,
}

/// How many transcripts of a source stand where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FetchCounts {
    /// To be fetched.
    pub waiting: u64,
    /// Fetched.
    pub had: u64,
    /// Given up.
    pub failed: u64,
    /// Their address may not be fetched.
    pub not_allowed: u64,
}

impl FetchCounts {
    /// The count of a state.
    pub const fn of(&mut self, state: FetchState) -> &mut u64 {
        match state {
            FetchState::Waiting => &mut self.waiting,
            FetchState::Had => &mut self.had,
            FetchState::Failed => &mut self.failed,
            FetchState::NotAllowed => &mut self.not_allowed,
        }
    }
}

/// What is known of a source besides its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Those of the last reading that was wholly taken in.
    pub validators: Validators,
    /// By which its times were read then; another zone makes another reading of the same bytes.
    pub time_zone: String,
    /// When it was last asked for.
    pub read_at: Option<Timestamp>,
    /// When it was last wholly taken in.
    pub whole_at: Option<Timestamp>,
    /// How the last reading ended.
    pub outcome: Option<ReadOutcome>,
    /// Why, unless well.
    pub error: Option<String>,
    /// What the last whole reading came to.
    pub counts: ReadCounts,
    /// When it is read again.
    pub next_at: Option<Timestamp>,
    /// Its transcripts.
    pub transcripts: FetchCounts,
    /// Orders to read all of it that no reading has carried out yet.
    pub orders: u32,
}

impl SourceRecord {
    /// How often all of it is read for the transcripts that are missing.
    const MISSING_TRIED: Duration = Duration::from_secs(24 * 3600);

    /// Whether all of it is to be read at `now` so that transcripts that could not be had are tried anew: each day, and
    /// with the first reading of a process, which may be allowed other hosts than the one before.
    pub fn wants_transcripts(&self, now: Timestamp, is_first: bool) -> bool {
        let missing = self.transcripts.failed > 0 || self.transcripts.not_allowed > 0;
        let is_old = self.whole_at.is_none_or(|whole| whole.plus(Self::MISSING_TRIED) <= now);
        missing && (is_first || is_old)
    }
}

/// Where the fetching of a transcript stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchState {
    /// It is fetched when its time has come.
    Waiting,
    /// It was fetched.
    Had,
    /// It is not tried again until the export is read anew.
    Failed,
    /// Its address may not be fetched; likewise.
    NotAllowed,
}

impl FetchState {
    /// As the API names it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Had => "had",
            Self::Failed => "failed",
            Self::NotAllowed => "not_allowed",
        }
    }
}

/// A transcript that an export names by its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranscriptAt {
    /// The export.
    pub source: SourceId,
    /// The address, whole.
    pub url: String,
    /// Stands for the address's host, so that the transcripts of one host stand together.
    pub host: [u8; 8],
}

/// The fetching of one session's transcript.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Whose.
    pub company: CompanyId,
    /// What is fetched.
    pub at: TranscriptAt,
    /// Where it stands.
    pub state: FetchState,
    /// How often it was tried since it was last had or named anew.
    pub attempts: u32,
    /// Why the last try brought nothing.
    pub error: Option<String>,
    /// When it is tried next.
    pub due: Option<Timestamp>,
    /// Those of what was had.
    pub validators: Validators,
    /// When it was last had.
    pub had_at: Option<Timestamp>,
}

impl Fetch {
    /// Whether it was tried and not had since it was last had or named anew.
    pub const fn was_tried_in_vain(&self) -> bool {
        self.attempts > 0
    }
}

/// The first pause; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_secs(60);
/// The first one where nothing tells that time will help.
const PAUSE_FIRST_SLOW: Duration = Duration::from_secs(60 * 60);
/// The longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// How long to wait after so many tries that failed. What is permanent as far as one can tell may have been put
/// right meanwhile, but hardly within a minute.
pub fn pause(attempts: u32, permanent: bool) -> Duration {
    let first = if permanent { PAUSE_FIRST_SLOW } else { PAUSE_FIRST };
    first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let id = SourceId::from_bytes([0xa5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "a5", &"A5".repeat(16), &"+1".repeat(16), &"a5".repeat(17)] {
            assert_eq!(bad.parse::<SourceId>(), Err(BadSourceId), "{bad}");
        }
    }

    #[test]
    fn pauses_double_to_their_bound() {
        let minutes = |attempts, permanent| pause(attempts, permanent).as_secs() / 60;
        assert_eq!([1, 2, 3, 9, 10, 99].map(|attempts| minutes(attempts, false)), [1, 2, 4, 256, 360, 360]);
        assert_eq!([1, 2, 3, 4, 99].map(|attempts| minutes(attempts, true)), [60, 120, 240, 360, 360]);
    }
}
