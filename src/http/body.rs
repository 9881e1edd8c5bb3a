//! Bodies that are read whole, and what of them is one object of JSON.

use std::fmt;
use std::marker::PhantomData;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use warp::http::StatusCode;

use super::lines::{self, Body};
use super::reply::ApiError;
use crate::serving::BodyError;

/// A body of a call that is not a stream.
pub const SMALL_BYTES_MAX: u64 = 1 << 20;
/// How long a body that is read whole may take.
const TIME: std::time::Duration = std::time::Duration::from_secs(15);

/// Reads a body whole.
pub async fn whole(mut body: Body, max_bytes: u64) -> Result<Bytes, ApiError> {
    let mut whole = BytesMut::new();
    let reading = async {
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|err| lines::body_error(&err))?;
            if (whole.len() + chunk.len()) as u64 > max_bytes {
                return Err(lines::body_error(&BodyError::TooLarge { limit: max_bytes }));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(())
    };
    let in_time = tokio::time::timeout(TIME, reading).await;
    in_time.map_err(|_| lines::body_error(&BodyError::TooSlow))??;
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
