//! Identifiers and time, each a type of its own so that one is never taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Text that is not an identifier of the kind it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct BadId {
    text: String,
    expected: &'static str,
}

impl BadId {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), expected }
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID, which should be of version 7 so that ids sort by time.
            pub const fn new(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The 16 bytes, in the order in which they sort.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// When it was made: the time that an id of version 7 begins with.
            pub fn made_at(&self) -> Timestamp {
                let [a, b, c, d, e, f, ..] = *self.as_bytes();
                Timestamp(i64::from_be_bytes([0, 0, a, b, c, d, e, f]))
            }

            /// From the 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0.hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                // Only the hyphenated form, 36 characters: one id has one spelling.
                if text.len() != 36 {
                    return Err(BadId::new(text, $expected));
                }
                Uuid::parse_str(text).map(Self).map_err(|_| BadId::new(text, $expected))
            }
        }
    };
}

uuid_id!(
    /// A request. Its text is the `custom_id` that the provider sees.
    RequestId, "a request id (a UUID)"
);
uuid_id!(
    /// A batch of ours; the provider's own id for it is a [`ProviderBatchId`].
    BatchId, "a batch id (a UUID)"
);
uuid_id!(
    /// A session of ours; the export's own id for it is its external id.
    SessionId, "a session id (a UUID)"
);
uuid_id!(
    /// A value made for one create call and never used again, by which its batch is recognised.
    Nonce, "a nonce (a UUID)"
);
uuid_id!(
    /// An address of a company that is told what has happened.
    WebhookId, "a webhook id (a UUID)"
);
uuid_id!(
    /// Something that has happened and is told; several webhooks may be told of it.
    EventId, "an event id (a UUID)"
);
uuid_id!(
    /// One event on its way to one webhook.
    DeliveryId, "a delivery id (a UUID)"
);

uuid_id!(
    /// An access key, by which it is named without being told.
    KeyId, "a key id (a UUID)"
);
uuid_id!(
    /// The erasing of a session or of a company.
    ErasureId, "an erasure id (a UUID)"
);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(String);

        impl $name {
            /// Wraps the provider's text as it came.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The text as the provider gave it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

text_id!(
    /// The provider's id of a batch (`batch_…`), opaque.
    ProviderBatchId
);
text_id!(
    /// The provider's id of a file (`file-…`), opaque.
    FileId
);

/// A company's id: 1 to 64 of `a-z A-Z 0-9 _ -`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CompanyId(String);

impl CompanyId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CompanyId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if text.is_empty() || text.len() > 64 || !text.chars().all(allowed) {
            return Err(BadId::new(text, "a company id (1 to 64 of a-z A-Z 0-9 _ -)"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for CompanyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CompanyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompanyId({})", self.0)
    }
}

/// How often a record was written; a writer names the revision it read, and a second writer loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A moment, UTC, in whole milliseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since 1970.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// From seconds since 1970, as the provider counts.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This moment and `duration` more.
    pub fn plus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This moment less `duration`.
    pub fn minus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// RFC 3339 in UTC with milliseconds: `2026-11-24T08:00:00.000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{at:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

/// RFC 3339 with any offset; what is finer than a millisecond is dropped.
impl FromStr for Timestamp {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        match text.parse::<jiff::Timestamp>() {
            Ok(at) => Ok(Self(at.as_millisecond())),
            Err(_) => Err(BadId::new(text, "a time (RFC 3339, as in 2026-11-24T08:00:00Z)")),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_reads_as_rfc_3339_in_utc() {
        assert_eq!(Timestamp::from_secs(1_795_000_000).to_string(), "2026-11-18T11:06:40.000Z");
    }

    #[test]
    fn an_id_has_one_spelling() {
        let text = "0190f3c2-7b1a-7c3d-8e4f-0123456789ab";
        assert_eq!(text.parse::<RequestId>().unwrap().to_string(), text);
        assert!("0190f3c27b1a7c3d8e4f0123456789ab".parse::<RequestId>().is_err());
        assert!("../../etc/passwd".parse::<RequestId>().is_err());
    }

    #[test]
    fn a_company_id_has_no_separator_in_it() {
        assert!("demo-1_A".parse::<CompanyId>().is_ok());
        for bad in ["", "a/b", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert!(bad.parse::<CompanyId>().is_err(), "{bad:?}");
        }
    }
}
