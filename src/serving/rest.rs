//! What of a body is still to come when its answer is ready.
//!
//! Most clients send all of a body before they look for the answer. A connection that is closed while they do is reset
//! by the kernel, and the answer is lost with it: so what is left is read for a while, and thrown away.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::{oneshot, watch};

/// How much is read at most,
const BYTES_MAX: usize = 64 << 20;
/// for how long
const TIME_MAX: Duration = Duration::from_secs(30);
/// and how long the client may rest meanwhile.
const IDLE_MAX: Duration = Duration::from_secs(2);

/// How long a client that is still sending is heard while the server stops.
const STOPPING: Duration = Duration::from_secs(1);

/// The body of a request. What is dropped of it before its end comes back to whoever lent it.
pub struct Lent {
    body: Option<Incoming>,
    back: Option<oneshot::Sender<Incoming>>,
    /// Whether the client sends it in any case. One that asks first is not told to go on for nothing.
    comes: bool,
}

/// Where a body comes back to.
pub struct Rest(oneshot::Receiver<Incoming>);

/// A body to hand out; `waits` says that the client sends it only once it is asked to (`Expect: 100-continue`).
pub fn lend(body: Incoming, waits: bool) -> (Lent, Rest) {
    let (back, rest) = oneshot::channel();
    (Lent { body: Some(body), back: Some(back), comes: !waits }, Rest(rest))
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.comes = true;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (true, Some(body), Some(back)) = (self.comes, self.body.take(), self.back.take())
            && !body.is_end_stream()
        {
            // Nobody takes it where the connection is gone.
            let _ = back.send(body);
        }
    }
}

impl Rest {
    /// Reads what is left, as far as the bounds go; once the server stops, only for a moment more.
    pub async fn pass_over(self, mut stopping: watch::Receiver<bool>) {
        let stopped = async {
            // An end of whoever tells is a stop, too.
            let _ = stopping.wait_for(|stops| *stops).await;
            tokio::time::sleep(STOPPING).await;
        };
        tokio::select! {
            () = self.read_on() => {}
            () = stopped => {}
        }
    }

    async fn read_on(self) {
        let Ok(mut body) = self.0.await else { return };
        let until = tokio::time::Instant::now() + TIME_MAX;
        let mut left = BYTES_MAX;
        loop {
            let next = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            let by = until.min(tokio::time::Instant::now() + IDLE_MAX);
            let Ok(Some(Ok(frame))) = tokio::time::timeout_at(by, next).await else { return };
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }
}
