//! Signatures as the Standard Webhooks specification has them: `v1`, HMAC-SHA256 over id, time and body.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::domain::id::Timestamp;

/// How far the time of a message may be from that of its receiver.
pub const TOLERANCE: Duration = Duration::from_secs(300);

const PREFIX: &str = "whsec_";
const VERSION: &str = "v1,";

/// What the messages for one webhook are signed with. It is shown once and printed nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningSecret(Vec<u8>);

impl SigningSecret {
    /// Of random bytes.
    pub const BYTES: usize = 32;

    /// Wraps random bytes.
    pub fn new(random: [u8; Self::BYTES]) -> Self {
        Self(random.to_vec())
    }

    /// Reads `whsec_` and base64.
    pub fn parse(text: &str) -> Option<Self> {
        STANDARD.decode(text.strip_prefix(PREFIX)?).ok().map(Self)
    }

    /// Reads the secret that a provider gave: `whsec_` and base64, or else the text itself
    /// (`openai-batch-contract.md`, section 6). None where what stands behind `whsec_` is no base64, or nothing stands
    /// there at all.
    pub fn of_provider(text: &str) -> Option<Self> {
        let secret =
            if text.starts_with(PREFIX) { Self::parse(text)? } else { Self(text.as_bytes().to_vec()) };
        Some(secret).filter(|secret| !secret.0.is_empty())
    }

    /// `whsec_` and base64: for the one who made the webhook, and for nobody else.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.0))
    }

    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Option<Vec<u8>> {
        // HMAC takes keys of every length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        for piece in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(piece);
        }
        Some(mac.finalize().into_bytes().to_vec())
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret")
    }
}

/// The header `webhook-signature`: one signature a secret, with a space between.
pub fn sign<'a>(
    secrets: impl Iterator<Item = &'a SigningSecret>,
    id: &str,
    timestamp: &str,
    body: &[u8],
) -> String {
    let signatures: Vec<String> = secrets
        .filter_map(|secret| secret.mac(id, timestamp, body))
        .map(|mac| format!("{VERSION}{}", STANDARD.encode(mac)))
        .collect();
    signatures.join(" ")
}

/// Why a message is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotBelieved {
    /// Its time is no number of seconds.
    #[error("webhook-timestamp is not a number of seconds")]
    NoTime,
    /// It is of another time than now.
    #[error("webhook-timestamp is more than five minutes from now")]
    OtherTime,
    /// None of its signatures is right.
    #[error("none of the signatures fits")]
    BadSignature,
}

impl NotBelieved {
    /// The word for programs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NoTime | Self::OtherTime => "bad_timestamp",
            Self::BadSignature => "bad_signature",
        }
    }
}

/// What a receiver does before it believes a message: its time is near, and one of its signatures is right. They are
/// compared in constant time.
pub fn verify(
    secret: &SigningSecret,
    id: &str,
    timestamp: &str,
    body: &[u8],
    signatures: &str,
    now: Timestamp,
) -> Result<(), NotBelieved> {
    let digits = timestamp.bytes().all(|byte| byte.is_ascii_digit());
    let seconds: i64 = timestamp.parse().ok().filter(|_| digits).ok_or(NotBelieved::NoTime)?;
    let at = Timestamp::from_secs(seconds);
    if at.since(now).max(now.since(at)) >= TOLERANCE + Duration::from_secs(1) {
        return Err(NotBelieved::OtherTime);
    }
    let expected = secret.mac(id, timestamp, body).ok_or(NotBelieved::BadSignature)?;
    let mut fits = false;
    for signature in signatures.split(' ') {
        let given = signature.strip_prefix(VERSION).and_then(|text| STANDARD.decode(text).ok());
        fits |= given.is_some_and(|given| bool::from(given.ct_eq(&expected)));
    }
    if fits { Ok(()) } else { Err(NotBelieved::BadSignature) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c=";

    /// Secret, id, time, body and signature of others.
    const VECTORS: [(&str, &str, &str, &str, &str); 3] = [
        // The example of the Standard Webhooks specification's own libraries.
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        // The one that openai-python tests itself with.
        (
            SECRET,
            "wh_685c059ae39c8190af8c71ed1022a24d",
            "1750861210",
            r#"{"id": "evt_685c059ae3a481909bdc86819b066fb6", "object": "event", "created_at": 1750861210, "type": "response.completed", "data": {"id": "resp_123"}}"#,
            "v1,gUAg4R2hWouRZqRQG4uJypNS8YK885G838+EHb4nKBY=",
        ),
        (
            SECRET,
            "wh_0001",
            "1790000000",
            r#"{"id":"evt_0001","object":"event","created_at":1790000000,"type":"batch.completed","data":{"id":"batch_0001"}}"#,
            "v1,spUF3dZqfcn2LoPXDbk45Bkq/t/nrvG/Y/b3lpzNhaI=",
        ),
    ];

    #[test]
    fn signatures_are_those_of_other_implementations() {
        for (secret, id, timestamp, body, signature) in VECTORS {
            let secret = SigningSecret::parse(secret).unwrap();
            assert_eq!(sign([&secret].into_iter(), id, timestamp, body.as_bytes()), signature);
            let now = Timestamp::from_secs(timestamp.parse().unwrap());
            assert_eq!(verify(&secret, id, timestamp, body.as_bytes(), signature, now), Ok(()));
        }
    }

    #[test]
    fn a_bit_that_changed_anywhere_is_noticed() {
        let (secret, id, timestamp, body, signature) = VECTORS[2];
        let secret = SigningSecret::parse(secret).unwrap();
        let now = Timestamp::from_secs(1_790_000_000);
        for at in 0..body.len() {
            let mut changed = body.as_bytes().to_vec();
            changed[at] ^= 1;
            let judged = verify(&secret, id, timestamp, &changed, signature, now);
            assert_eq!(judged, Err(NotBelieved::BadSignature), "{at}");
        }
        let body = body.as_bytes();
        assert!(verify(&secret, "wh_0002", timestamp, body, signature, now).is_err());
        assert!(verify(&secret, id, "1790000001", body, signature, now).is_err());
        let other = SigningSecret::new([7; 32]);
        assert_eq!(verify(&other, id, timestamp, body, signature, now), Err(NotBelieved::BadSignature));
        for wrong in ["", "v1,", "v1,AAAA", "v2,spUF3dZqfcn2LoPXDbk45Bkq/t/nrvG/Y/b3lpzNhaI="] {
            assert!(verify(&secret, id, timestamp, body, wrong, now).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_message_of_another_time_is_not_believed() {
        let (secret, id, timestamp, body, signature) = VECTORS[2];
        let secret = SigningSecret::parse(secret).unwrap();
        let judged = |timestamp: &str, now: i64| {
            verify(&secret, id, timestamp, body.as_bytes(), signature, Timestamp::from_secs(now))
        };
        assert_eq!(judged(timestamp, 1_790_000_300), Ok(()));
        assert_eq!(judged(timestamp, 1_789_999_700), Ok(()));
        assert_eq!(judged(timestamp, 1_790_000_301), Err(NotBelieved::OtherTime));
        assert_eq!(judged(timestamp, 1_789_999_699), Err(NotBelieved::OtherTime));
        for wrong in ["", "now", "-5", "+1790000000", "1790000000.5"] {
            assert_eq!(judged(wrong, 1_790_000_000), Err(NotBelieved::NoTime), "{wrong}");
        }
    }

    #[test]
    fn while_a_secret_is_exchanged_either_one_fits() {
        let (old, new) = (SigningSecret::new([1; 32]), SigningSecret::new([2; 32]));
        let signatures = sign([&new, &old].into_iter(), "msg_1", "1790000000", b"{}");
        assert_eq!(signatures.split(' ').count(), 2);
        let now = Timestamp::from_secs(1_790_000_000);
        for secret in [&old, &new] {
            assert_eq!(verify(secret, "msg_1", "1790000000", b"{}", &signatures, now), Ok(()));
        }
    }

    #[test]
    fn a_provider_may_give_a_secret_as_plain_text_too() {
        let plain = SigningSecret::of_provider("no prefix").unwrap();
        assert_eq!(plain, SigningSecret(b"no prefix".to_vec()));
        assert_eq!(SigningSecret::of_provider(SECRET), SigningSecret::parse(SECRET));
        assert!(["", "whsec_", "whsec_*"].iter().all(|text| SigningSecret::of_provider(text).is_none()));
    }

    #[test]
    fn a_secret_is_read_as_it_is_shown_and_printed_nowhere() {
        let secret = SigningSecret::new([9; 32]);
        assert_eq!(SigningSecret::parse(&secret.reveal()), Some(secret.clone()));
        assert!(SigningSecret::parse("AAAA").is_none() && SigningSecret::parse("whsec_*").is_none());
        assert_eq!(format!("{secret:?}"), "SigningSecret");
    }
}
