//! `GET /v1/files/{id}/content`: the bytes of a file, chunked and without a length, as OpenAI sends them.

use futures_util::{Stream, StreamExt};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use warp::http::{HeaderValue, header};
use warp::reply::{Reply, Response};

use super::super::engine::Engine;
use super::super::wire::Refusal;
use super::super::world::FileRecord;

/// How much of a body is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Part {
    Whole,
    /// This share, then the connection is cut.
    Cut(f64),
    /// This share, then nothing more comes.
    Stalled(f64),
}

/// Streams the file, or that part of it.
pub(super) async fn respond(engine: &Engine, file: &FileRecord, part: Part) -> Result<Response, Refusal> {
    let bytes = match tokio::fs::File::open(engine.disk.file_path(&file.id)).await {
        Ok(bytes) => bytes,
        // Deleted between the look-up and here.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Refusal::no_file(&file.id)),
        Err(error) => {
            tracing::error!(file = file.id, %error, "could not read a file");
            return Err(Refusal::internal());
        }
    };
    let mut response = match part {
        Part::Whole => warp::reply::stream(ReaderStream::new(bytes)).into_response(),
        Part::Cut(share) => {
            let begin = ReaderStream::new(bytes.take(bytes_of(file, share)));
            warp::reply::stream(begin.chain(cut())).into_response()
        }
        Part::Stalled(share) => {
            let begin = ReaderStream::new(bytes.take(bytes_of(file, share)));
            warp::reply::stream(begin.chain(futures_util::stream::pending())).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    // A name with a quote or a line end in it would break out of the header.
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._- ".contains(c) { c } else { '_' };
    let name: String = file.filename.chars().map(plain).collect();
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "where a body stops need not be exact"
)]
fn bytes_of(file: &FileRecord, share: f64) -> u64 {
    (file.bytes as f64 * share) as u64
}

/// An error, after a pause in which what came before it is sent.
fn cut() -> impl Stream<Item = std::io::Result<bytes::Bytes>> {
    futures_util::stream::once(async {
        tokio::task::yield_now().await;
        Err(std::io::Error::other("a body that was planned to be cut"))
    })
}
