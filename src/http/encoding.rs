//! `Content-Encoding` of what comes in: gzip and zstd, unpacked while they arrive.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, BufReader};
use tokio_util::io::{ReaderStream, StreamReader};
use warp::http::StatusCode;
use warp::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue};

use super::lines::Body;
use super::reply::ApiError;
use crate::serving::BodyError;

/// What is known, as the header `Accept-Encoding` lists it.
const KNOWN: &str = "gzip, zstd";
/// A body may become so many times as long, once it is longer than [`EXPANDED_FREE`]: text does not shrink more, and
/// what does is made to cost time.
const EXPANSION_MAX: u64 = 200;
/// A short body may shrink as it likes.
const EXPANDED_FREE: u64 = 64 << 20;
/// A frame may look back 8 MiB at most (2 to this power): that much memory it takes.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
const PIECE_BYTES: usize = 64 << 10;

/// The body as it was before it was encoded.
pub fn decoded(headers: &HeaderMap, body: Body) -> Result<Body, ApiError> {
    let mut given = headers.get_all(CONTENT_ENCODING).iter();
    let encoding = match (given.next(), given.next()) {
        (None, _) => return Ok(body),
        (Some(value), None) => value.to_str().unwrap_or("?").trim().to_ascii_lowercase(),
        (Some(_), Some(_)) => "more than one encoding".to_owned(),
    };
    match encoding.as_str() {
        "identity" => Ok(body),
        "gzip" | "x-gzip" => Ok(unpacked(body, "gzip", |reader| {
            let mut decoder = GzipDecoder::new(reader);
            // Some programs write one member after another.
            decoder.multiple_members(true);
            Box::pin(decoder)
        })),
        "zstd" => Ok(unpacked(body, "zstd", |reader| {
            let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX)];
            let mut decoder = ZstdDecoder::with_params(reader, &window);
            decoder.multiple_members(true);
            Box::pin(decoder)
        })),
        other => {
            let other: String = other.chars().take(40).collect();
            let detail = format!("the content encoding {other:?} is not known here; send {KNOWN}, or none");
            Err(ApiError {
                headers: vec![(ACCEPT_ENCODING.as_str(), HeaderValue::from_static(KNOWN))],
                ..ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", detail)
            })
        }
    }
}

type Reader = Box<dyn tokio::io::AsyncBufRead + Send + Unpin>;

fn unpacked(
    body: Body,
    name: &'static str,
    decoder: impl FnOnce(Reader) -> std::pin::Pin<Box<dyn AsyncRead + Send>>,
) -> Body {
    let packed = Arc::new(AtomicU64::new(0));
    let counter = packed.clone();
    let body = body.map(move |piece| match piece {
        Ok(bytes) => {
            counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Ok(bytes)
        }
        // It comes out of the decoder as it went in.
        Err(err) => Err(io::Error::other(err)),
    });
    let reader: Reader = Box::new(BufReader::new(StreamReader::new(body)));
    let pieces = ReaderStream::with_capacity(decoder(reader), PIECE_BYTES);
    let unpacked = pieces.scan((0_u64, false), move |(length, ended), piece| {
        if *ended {
            return std::future::ready(None);
        }
        let piece = match piece.map_err(|err| as_body_error(err, name)) {
            // No body at all is none in any encoding.
            Err(BodyError::Undecodable { .. }) if packed.load(Ordering::Relaxed) == 0 => {
                *ended = true;
                return std::future::ready(None);
            }
            piece => piece,
        };
        let checked = piece.and_then(|bytes: Bytes| {
            *length += bytes.len() as u64;
            let allowed = packed.load(Ordering::Relaxed).saturating_mul(EXPANSION_MAX);
            if *length > EXPANDED_FREE && *length > allowed {
                Err(BodyError::Expands { times: EXPANSION_MAX })
            } else {
                Ok(bytes)
            }
        });
        *ended = checked.is_err();
        std::future::ready(Some(checked))
    });
    Box::pin(unpacked)
}

fn as_body_error(err: io::Error, name: &'static str) -> BodyError {
    if err.get_ref().is_some_and(|inner| inner.is::<BodyError>())
        && let Some(inner) = err.into_inner()
        && let Ok(inner) = inner.downcast::<BodyError>()
    {
        return *inner;
    }
    BodyError::Undecodable { encoding: name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
    use tokio::io::AsyncWriteExt;

    fn headers(encoding: &str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_str(encoding).unwrap())])
    }

    async fn read(encoding: &str, pieces: Vec<Result<Vec<u8>, BodyError>>) -> Result<Vec<u8>, BodyError> {
        let body = futures_util::stream::iter(pieces.into_iter().map(|piece| piece.map(Bytes::from)));
        let mut body = decoded(&headers(encoding), Box::pin(body)).map_err(|err| err.code).unwrap();
        let mut whole = Vec::new();
        while let Some(piece) = body.next().await {
            whole.extend_from_slice(&piece?);
        }
        Ok(whole)
    }

    async fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzipEncoder::new(Vec::new());
        encoder.write_all(text).await.unwrap();
        encoder.shutdown().await.unwrap();
        encoder.into_inner()
    }

    async fn zstd(text: &[u8]) -> Vec<u8> {
        let mut encoder = ZstdEncoder::new(Vec::new());
        encoder.write_all(text).await.unwrap();
        encoder.shutdown().await.unwrap();
        encoder.into_inner()
    }

    #[tokio::test]
    async fn what_is_packed_is_read_however_it_is_cut_and_in_several_members() {
        let text: Vec<u8> = (0..20_000_u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        for (encoding, one) in [("gzip", gzip(&text).await), ("zstd", zstd(&text).await)] {
            let packed = [one.clone(), one].concat();
            for size in [1000, packed.len()] {
                let pieces = packed.chunks(size).map(|piece| Ok(piece.to_vec())).collect();
                assert!(
                    read(encoding, pieces).await.unwrap() == [text.clone(), text.clone()].concat(),
                    "{encoding}"
                );
            }
        }
    }

    #[tokio::test]
    async fn what_is_broken_or_breaks_off_is_told_as_what_it_is() {
        for (encoding, packed) in [("gzip", gzip(&[b'a'; 9000]).await), ("zstd", zstd(&[b'a'; 9000]).await)] {
            let torn = read(encoding, vec![Ok(packed[..packed.len() - 4].to_vec())]).await;
            assert!(matches!(torn, Err(BodyError::Undecodable { .. })), "{torn:?}");
            assert_eq!(read(encoding, vec![]).await.unwrap(), b"", "no body is none, packed or not");
            let junk = read(encoding, vec![Ok(b"this is no such data at all".to_vec())]).await;
            assert!(matches!(junk, Err(BodyError::Undecodable { .. })), "{junk:?}");
            let slow = read(encoding, vec![Ok(packed[..5].to_vec()), Err(BodyError::TooSlow)]).await;
            assert!(matches!(slow, Err(BodyError::TooSlow)), "{slow:?}");
        }
    }

    #[tokio::test]
    async fn a_small_body_that_becomes_a_large_one_is_cut_off() {
        let zeros = vec![0; 80 << 20];
        for (encoding, packed) in [("gzip", gzip(&zeros).await), ("zstd", zstd(&zeros).await)] {
            let read = read(encoding, vec![Ok(packed)]).await;
            assert!(matches!(read, Err(BodyError::Expands { .. })), "{encoding}");
        }
    }

    #[test]
    fn an_encoding_that_is_not_known_is_refused_with_those_that_are() {
        for bad in ["br", "gzip, gzip", "deflate", "zstd;q=1"] {
            let err = decoded(&headers(bad), Box::pin(futures_util::stream::empty())).err().unwrap();
            assert_eq!((err.status.as_u16(), err.code), (415, "unsupported_encoding"));
            assert_eq!(err.headers[0].1, "gzip, zstd");
        }
    }
}
