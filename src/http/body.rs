//! Bodies that are read whole, and what of them is one object of JSON.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use tokio::time::{Instant, timeout_at};
use warp::http::StatusCode;

use super::lines::{self, Body};
use super::reply::ApiError;
use crate::serving::BodyError;

/// A body of a call that is not a stream.
pub const SMALL_BYTES_MAX: u64 = 1 << 20;
/// How long a body that is read whole may take; it gets more by what has come of it,
const TIME: Duration = Duration::from_secs(15);
/// at so many bytes a second. Whoever sends less on average is too slow, however often a byte comes.
const BYTES_PER_SEC_MIN: u64 = 64 << 10;

/// Bytes of large bodies that may be in memory at the same time, whoever sends them.
const HELD_BYTES_MAX: u64 = 256 << 20;
/// Bytes of each body that are not counted.
const FREE_BYTES: usize = 1 << 20;
/// Seconds until a body that found no room may be sent again.
const ROOM_WAIT: u64 = 5;

/// Room for large bodies.
#[derive(Debug)]
pub struct Room {
    max: u64,
    /// So much of each body needs none, so that a small one is let in beside any number of large ones.
    free: usize,
    held: AtomicU64,
}

impl Default for Room {
    fn default() -> Self {
        Self { max: HELD_BYTES_MAX, free: FREE_BYTES, held: AtomicU64::new(0) }
    }
}

/// What a body takes of the room, until it is dropped.
#[derive(Debug)]
pub struct Held {
    of: Arc<Room>,
    bytes: u64,
}

impl Held {
    /// Takes room for so many bytes more; 429 where there is none.
    fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let bytes = bytes as u64;
        let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= self.of.max);
        if self.of.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            let detail = "too much is sent as application/json at the moment; send it as application/x-ndjson, which is \
                          read as it arrives, or again later";
            let refusal = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
            return Err(ApiError { retry_after: Some(ROOM_WAIT), ..refusal });
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads a body whole.
pub async fn whole(body: Body, max_bytes: u64) -> Result<Bytes, ApiError> {
    within(TIME, body, max_bytes, None).await
}

/// Reads a large body whole, if there is room for it.
pub async fn large(body: Body, max_bytes: u64, room: &Arc<Room>) -> Result<(Bytes, Held), ApiError> {
    let mut held = Held { of: room.clone(), bytes: 0 };
    let whole = within(TIME, body, max_bytes, Some(&mut held)).await?;
    Ok((whole, held))
}

async fn within(
    time: Duration,
    mut body: Body,
    max_bytes: u64,
    mut held: Option<&mut Held>,
) -> Result<Bytes, ApiError> {
    let (started, mut whole) = (Instant::now(), BytesMut::new());
    loop {
        let deadline = started + time + Duration::from_secs(whole.len() as u64 / BYTES_PER_SEC_MIN);
        let next = timeout_at(deadline, body.next()).await;
        let Some(piece) = next.map_err(|_| lines::body_error(&BodyError::TooSlow))? else { break };
        let piece = piece.map_err(|err| lines::body_error(&err))?;
        if (whole.len() + piece.len()) as u64 > max_bytes {
            return Err(lines::body_error(&BodyError::TooLarge { limit: max_bytes }));
        }
        let before = whole.len();
        whole.extend_from_slice(&piece);
        if let Some(held) = held.as_deref_mut() {
            let counted = |length: usize| length.saturating_sub(held.of.free);
            held.grow(counted(whole.len()) - counted(before))?;
        }
    }
    Ok(whole.freeze())
}

/// Reads an object of JSON: 400 for what is no JSON, 422 for another one than `expected`.
pub fn object<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, ApiError> {
    let body = body.strip_prefix(lines::BOM).unwrap_or(body);
    let _: IgnoredAny = serde_json::from_slice(body).map_err(|err| {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not JSON: {err}"))
    })?;
    match serde_json::from_slice(body) {
        Ok(Object(body)) => Ok(body),
        Err(err) => Err(ApiError::invalid("invalid_body", format!("expected {expected}: {err}"))),
    }
}

/// The same where no body says as much as an empty object.
pub fn object_or_none<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, ApiError> {
    object(if body.is_empty() { b"{}" } else { body }, expected)
}

/// One that is an object. A reader that is derived takes a list for one, too, which nobody means.
#[derive(Debug, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Visit<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visit(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of so many bytes, each some time after the one before.
    fn pieces(sizes: &'static [usize]) -> Body {
        let later = async |size: &usize| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(5) {
                tokio::task::yield_now().await;
            }
            Ok(Bytes::from(vec![b' '; *size]))
        };
        let first = futures_util::stream::iter([Ok(Bytes::from(vec![b' '; sizes[0]]))]);
        Box::pin(first.chain(futures_util::stream::iter(&sizes[1..]).then(later)))
    }

    #[tokio::test]
    async fn a_body_has_the_longer_the_more_of_it_came_and_one_that_stops_is_given_up() {
        // Nothing at the start, and 16 seconds for its first mebibyte.
        let steady = within(Duration::ZERO, pieces(&[1 << 20, 1, 1]), 2 << 20, None).await;
        assert_eq!(steady.map(|whole| whole.len()), Ok((1 << 20) + 2));
        let slow = within(Duration::ZERO, pieces(&[1, 1]), 100, None).await;
        assert_eq!(slow.map_err(|err| err.code), Err("too_slow"));
        let silent = within(Duration::ZERO, Box::pin(futures_util::stream::pending()), 100, None).await;
        assert_eq!(silent.map_err(|err| err.code), Err("too_slow"));
        let large = within(TIME, pieces(&[60, 60]), 100, None).await;
        assert_eq!(large.map_err(|err| err.code), Err("too_large"));
    }

    #[tokio::test]
    async fn large_bodies_have_room_together_and_give_it_back() {
        let room = Arc::new(Room { max: 100, free: 10, held: AtomicU64::new(0) });
        let first = large(pieces(&[30, 40]), 1000, &room).await.unwrap();
        // Of one that is refused in its midst nothing stays.
        for _ in 0..2 {
            let refused = large(pieces(&[30, 30]), 1000, &room).await.map(|(whole, _)| whole).unwrap_err();
            let told = (refused.status.as_u16(), refused.code, refused.retry_after);
            assert_eq!(told, (429, "rate_limited", Some(ROOM_WAIT)));
        }
        let second = large(pieces(&[30, 20]), 1000, &room).await.unwrap();
        assert_eq!((first.0.len(), second.0.len(), room.held.load(Ordering::Relaxed)), (70, 50, 100));
        assert!(large(pieces(&[5, 5]), 1000, &room).await.is_ok(), "a small one has room beside them");
        drop(first);
        assert!(large(pieces(&[30, 30]), 1000, &room).await.is_ok());
    }
}
