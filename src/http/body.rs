//! Bodies that are read whole, and what of them is one object of JSON.

use std::fmt;
use std::marker::PhantomData;
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

/// Reads a body whole.
pub async fn whole(body: Body, max_bytes: u64) -> Result<Bytes, ApiError> {
    within(TIME, body, max_bytes).await
}

async fn within(time: Duration, mut body: Body, max_bytes: u64) -> Result<Bytes, ApiError> {
    let (started, mut whole) = (Instant::now(), BytesMut::new());
    loop {
        let deadline = started + time + Duration::from_secs(whole.len() as u64 / BYTES_PER_SEC_MIN);
        let next = timeout_at(deadline, body.next()).await;
        let Some(piece) = next.map_err(|_| lines::body_error(&BodyError::TooSlow))? else { break };
        let piece = piece.map_err(|err| lines::body_error(&err))?;
        if (whole.len() + piece.len()) as u64 > max_bytes {
            return Err(lines::body_error(&BodyError::TooLarge { limit: max_bytes }));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// Reads an object of JSON: 400 for what is no JSON, 422 for another one than `expected`.
pub fn object<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, ApiError> {
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
        let steady = within(Duration::ZERO, pieces(&[1 << 20, 1, 1]), 2 << 20).await;
        assert_eq!(steady.map(|whole| whole.len()), Ok((1 << 20) + 2));
        let slow = within(Duration::ZERO, pieces(&[1, 1]), 100).await;
        assert_eq!(slow.map_err(|err| err.code), Err("too_slow"));
        let silent = within(Duration::ZERO, Box::pin(futures_util::stream::pending()), 100).await;
        assert_eq!(silent.map_err(|err| err.code), Err("too_slow"));
        let large = within(TIME, pieces(&[60, 60]), 100).await;
        assert_eq!(large.map_err(|err| err.code), Err("too_large"));
    }
}
