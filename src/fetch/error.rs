//! What can come of a fetch that brings nothing.

use std::time::Duration;

use super::guard::NotAllowed;

/// Why there is nothing. No text of these holds an address's path, query or user.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address, or where it led, may not be fetched.
    #[error("not allowed: {0}")]
    NotAllowed(#[source] NotAllowed),
    /// The server answered, but not with what was asked for.
    #[error("the server answered {status}")]
    Status {
        /// The status.
        status: u16,
        /// How long it asks to wait before the next try.
        retry_after: Option<Duration>,
    },
    /// More bytes than are taken.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// Nothing came in time, or less than a slow line brings.
    #[error("it takes too long")]
    TooSlow,
    /// A body in a coding that was not asked for.
    #[error("the body is compressed, which was not asked for")]
    Encoded,
    /// No connection: no such name, nobody there, or no trust in its certificate.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke, or what came was no HTTP.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// A header that cannot be sent. Its value is not told.
    #[error("the header {0} holds characters that cannot be sent")]
    Header(String),
    /// No client, most likely because TLS does not work here.
    #[error("no HTTP client can be made: {0}")]
    Client(String),
}

impl FetchError {
    /// Whether another try of the same thing would end the same way, as far as one can tell.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                (300..500).contains(status) && !matches!(status, 408 | 421 | 423 | 425 | 429)
            }
            Self::NotAllowed(_)
            | Self::TooLarge { .. }
            | Self::Encoded
            | Self::Header(_)
            | Self::Client(_) => true,
            Self::TooSlow | Self::Connect(_) | Self::Broken(_) => false,
        }
    }

    /// How long the server asked to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Status { retry_after, .. } = self { *retry_after } else { None }
    }

    /// A call that got no answer. The address is left out, since it may hold a secret.
    pub(super) fn lost(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if let Some(why) = not_allowed(&error) {
            return Self::NotAllowed(why);
        }
        match () {
            () if error.is_timeout() => Self::TooSlow,
            () if error.is_connect() => Self::Connect(chain(&error)),
            () => Self::Broken(chain(&error)),
        }
    }
}

/// The resolver's refusal, somewhere below a failed connection.
fn not_allowed(error: &reqwest::Error) -> Option<NotAllowed> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(why) = error.downcast_ref::<NotAllowed>() {
            return Some(why.clone());
        }
        cause = error.source();
    }
    None
}

const CHARS_MAX: usize = 200;

/// The causes of an error in one line; the innermost says most.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text.chars().take(CHARS_MAX).collect()
}
