//! The accept loop that every HTTP server here stands behind.
//!
//! warp's own server waits for ever on a client that sends nothing, so filters are served by this loop: a header
//! time-out, a bound on connections in all and per address, and a drain with an end. It decides nothing about
//! what is answered. A filter given to it recovers from its own rejections.

mod rest;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use hyper::body::Incoming;
use hyper::header::EXPECT;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// How long the loop rests after a failed accept: long enough for a descriptor to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The bounds of a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// Open connections at most; one more is closed at once, never queued.
    pub max_connections: usize,
    /// Open connections at most from one address (an IPv6 network of 64 bits counts as one).
    pub max_per_address: usize,
    /// How long a client may take to send a request's head, and may rest between two requests.
    pub header_read_timeout: Duration,
    /// Headers at most in a request.
    pub max_headers: usize,
    /// Bytes at most that are held for one connection.
    pub max_buf_size: usize,
    /// How long a client may rest in the midst of an answer: as long as it does, what is to be sent to it lies in memory.
    pub write_timeout: Duration,
    /// How long running requests get to end once the server is told to stop.
    pub drain_timeout: Duration,
}

/// Connections that leave enough file descriptors for everything else that a server opens.
pub fn connections_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    // Where there are few, most of them are taken by the program itself.
    let left = limit.saturating_sub(64).max(limit / 4);
    usize::try_from(left).unwrap_or(usize::MAX).min(512)
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_connections: connections_max(),
            max_per_address: 32,
            header_read_timeout: Duration::from_secs(10),
            max_headers: 64,
            max_buf_size: 64 * 1024,
            write_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every request that was running got its answer.
    Fully,
    /// The drain timed out with so many connections still open; they were cut.
    Cut {
        /// Connections that were still open.
        connections: usize,
    },
}

/// An extension of a response that makes the loop cut the connection instead of answering.
#[derive(Debug, Clone, Copy)]
pub struct Sever;

/// A response that is never sent: the client sees the connection close without an answer.
pub fn severed() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(Sever);
    response
}

/// Serves `routes` on `listener` until `shutdown` completes, then lets what is running end.
///
/// The peer's [`SocketAddr`] is in the request's extensions: `warp::ext::get::<SocketAddr>()`.
pub async fn serve(
    listener: TcpListener,
    routes: BoxedFilter<(Response,)>,
    options: Options,
    shutdown: impl Future<Output = ()> + Send,
) -> Drained {
    let graceful = GracefulShutdown::new();
    let mut connections = tokio::task::JoinSet::new();
    let room = Room::new(&options);
    let stopping = watch::Sender::new(false);
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
            // Ended connections are reaped as they end, or the set would grow for ever.
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place) = room.place(peer.ip()) else {
                    tracing::debug!(%peer, "shed a connection: the server or its share is full");
                    continue;
                };
                let connection = Connection {
                    routes: routes.clone(),
                    peer,
                    options: options.clone(),
                    stopping: stopping.subscribe(),
                };
                let watcher = graceful.watcher();
                connections.spawn(async move {
                    connection.run(stream, watcher).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    let drained = match tokio::time::timeout(options.drain_timeout, graceful.shutdown()).await {
        Ok(()) => Drained::Fully,
        Err(_) => {
            while connections.try_join_next().is_some() {}
            Drained::Cut { connections: connections.len() }
        }
    };
    // Waits for the tasks themselves, so that nothing that the routes hold is held once this returns.
    connections.shutdown().await;
    drained
}

/// One accepted connection and what it needs.
struct Connection {
    routes: BoxedFilter<(Response,)>,
    peer: SocketAddr,
    options: Options,
    /// Whether the server stops.
    stopping: watch::Receiver<bool>,
}

impl Connection {
    async fn run(self, stream: TcpStream, watcher: Watcher) {
        // Answers are small and written whole: waiting to fill a packet only adds delay.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(peer = %self.peer, %error, "could not set TCP_NODELAY");
        }
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.options.write_timeout));
        let peer = self.peer;
        let routes = TowerToHyperService::new(warp::service(self.routes));
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let waits = request.headers().contains_key(EXPECT);
            let (head, body) = request.into_parts();
            let (body, rest) = rest::lend(body, waits);
            let answer = routes.call(hyper::Request::from_parts(head, body));
            let stopping = self.stopping.clone();
            async move {
                let response = answer.await.unwrap_or_else(|never: Infallible| match never {});
                // Beside the answer, and no longer than the connection.
                tokio::spawn(rest.pass_over(stopping));
                if response.extensions().get::<Sever>().is_some() { Err(Severed) } else { Ok(response) }
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.options.header_read_timeout)
            .max_headers(self.options.max_headers)
            .max_buf_size(self.options.max_buf_size)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%peer, %error, "a connection ended early");
        }
    }
}

/// Tells hyper to close the connection without a byte.
#[derive(Debug, thiserror::Error)]
#[error("the answer was withheld on purpose")]
struct Severed;

/// Counts open connections.
struct Room {
    all: Arc<Semaphore>,
    per_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    max_per_address: usize,
}

impl Room {
    fn new(options: &Options) -> Self {
        Self {
            all: Arc::new(Semaphore::new(options.max_connections)),
            per_address: Arc::default(),
            max_per_address: options.max_per_address,
        }
    }

    fn place(&self, address: IpAddr) -> Option<Place> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let network = network_of(address);
        let mut counts = self.per_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(network).or_insert(0);
        if *count >= self.max_per_address {
            return None;
        }
        *count += 1;
        Some(Place { per_address: self.per_address.clone(), network, _permit: permit })
    }
}

/// One connection's place, given back when it is dropped, also after a panic.
struct Place {
    per_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    network: IpAddr,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.per_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

/// One home or host usually owns a whole IPv6 network of 64 bits, so that is what is counted.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
    }
}

/// How much of a body is read, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Bytes at most.
    pub max_bytes: u64,
    /// How long the client may rest between two pieces.
    pub idle: Duration,
    /// How long the whole body may take.
    pub total: Duration,
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// More bytes than allowed: answer 413.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// Bytes allowed.
        limit: u64,
    },
    /// The client was too slow: answer 408.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// It is not what its `Content-Encoding` says: answer 400.
    #[error("the body is no whole {encoding} data")]
    Undecodable {
        /// As the header names it.
        encoding: &'static str,
    },
    /// It becomes too many times as long once it is unpacked: answer 413.
    #[error("the body becomes more than {times} times as long once it is unpacked")]
    Expands {
        /// Times allowed.
        times: u64,
    },
    /// More bytes than whoever sends them may send for now: answer 429.
    #[error("too many bytes were sent within the hour")]
    OverQuota,
    /// The connection or its framing broke; nobody is left to answer to.
    #[error("the body broke off")]
    Broken(#[source] warp::Error),
}

/// The pieces of `body` under `limits`; the first error ends it.
pub fn limited<S, B>(body: S, limits: BodyLimits) -> impl Stream<Item = Result<Bytes, BodyError>> + Send
where
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf + Send,
{
    let deadline = tokio::time::Instant::now() + limits.total;
    let state = Some((Box::pin(body), 0_u64));
    futures_util::stream::unfold(state, move |state| async move {
        let (mut body, read) = state?;
        let until = deadline.min(tokio::time::Instant::now() + limits.idle);
        let mut piece = match tokio::time::timeout_at(until, body.next()).await {
            Err(_) => return Some((Err(BodyError::TooSlow), None)),
            Ok(None) => return None,
            Ok(Some(Err(error))) => return Some((Err(BodyError::Broken(error)), None)),
            Ok(Some(Ok(piece))) => piece,
        };
        let bytes = piece.copy_to_bytes(piece.remaining());
        let read = read.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if read > limits.max_bytes {
            return Some((Err(BodyError::TooLarge { limit: limits.max_bytes }), None));
        }
        Some((Ok(bytes), Some((body, read))))
    })
}

/// Reads the whole of `body` into memory under `limits`.
pub async fn read_body<S, B>(body: S, limits: BodyLimits) -> Result<Bytes, BodyError>
where
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf + Send,
{
    let mut pieces = std::pin::pin!(limited(body, limits));
    let mut whole = BytesMut::new();
    while let Some(piece) = pieces.next().await {
        whole.extend_from_slice(&piece?);
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use warp::Filter;

    /// More than what fits between two ends without being read.
    const LARGE: usize = 64 << 20;

    struct Running {
        address: SocketAddr,
        stop: tokio::sync::oneshot::Sender<()>,
        served: tokio::task::JoinHandle<Drained>,
    }

    async fn start(options: Options) -> Running {
        let routes = warp::ext::get::<SocketAddr>()
            .and(warp::path::full())
            .and(warp::body::stream())
            .then(|peer: SocketAddr, path: warp::path::FullPath, body| async move {
                let limits = BodyLimits {
                    max_bytes: 10,
                    idle: Duration::from_millis(50),
                    total: Duration::from_secs(5),
                };
                if path.as_str() == "/cut" {
                    return severed();
                }
                if path.as_str() == "/unread" {
                    return Response::new("not read".into());
                }
                if path.as_str() == "/large" {
                    return Response::new(vec![b'x'; LARGE].into());
                }
                if path.as_str() == "/endless" {
                    let first = futures_util::stream::once(async { Ok::<_, Infallible>("first") });
                    let endless = first.chain(futures_util::stream::pending());
                    return warp::Reply::into_response(warp::reply::stream(endless));
                }
                let text = match read_body(body, limits).await {
                    Ok(body) => format!("{} sent {}", peer.ip(), String::from_utf8_lossy(&body)),
                    Err(error) => error.to_string(),
                };
                Response::new(text.into())
            })
            .boxed();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let served = tokio::spawn(serve(listener, routes, options, async {
            let _ = stopped.await;
        }));
        Running { address, stop, served }
    }

    async fn post(address: SocketAddr, path: &str, body: &'static str) -> reqwest::Result<String> {
        let client = crate::tls::client_builder().no_proxy().build().unwrap();
        client.post(format!("http://{address}{path}")).body(body).send().await?.text().await
    }

    #[tokio::test]
    async fn a_handler_learns_the_peer_and_a_body_over_the_cap_is_refused() {
        let running = start(Options::default()).await;
        assert_eq!(post(running.address, "/", "hello").await.unwrap(), "127.0.0.1 sent hello");
        assert_eq!(
            post(running.address, "/", "far too long").await.unwrap(),
            "the body is larger than 10 bytes"
        );
        running.stop.send(()).unwrap();
        assert_eq!(running.served.await.unwrap(), Drained::Fully);
    }

    #[tokio::test]
    async fn a_severed_answer_is_a_connection_error_and_not_a_status() {
        let running = start(Options::default()).await;
        let error = post(running.address, "/cut", "hello").await.unwrap_err();
        assert!(error.is_request() && error.status().is_none(), "{error:?}");
    }

    #[tokio::test]
    async fn an_answer_that_comes_before_all_of_the_body_reaches_a_client_that_sends_first_and_reads_then() {
        let running = start(Options::default()).await;
        for head in ["content-length: 20000000", "transfer-encoding: chunked"] {
            let mut client = TcpStream::connect(running.address).await.unwrap();
            let head = format!("POST / HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            if head.contains("chunked") {
                client.write_all(b"1312d00\r\n").await.unwrap();
            }
            for _ in 0..200 {
                client.write_all(&[b'x'; 100_000]).await.unwrap();
            }
            if head.contains("chunked") {
                client.write_all(b"\r\n0\r\n\r\n").await.unwrap();
            }
            // And the connection is as good as new.
            client.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
            let mut answers = String::new();
            while !answers.ends_with("sent hi") {
                let mut piece = [0_u8; 1024];
                let length = client.read(&mut piece).await.unwrap();
                assert!(length > 0, "it ended with {answers:?}");
                answers.push_str(&String::from_utf8_lossy(&piece[..length]));
            }
            assert!(answers.contains("the body is larger than 10 bytes"), "{answers}");
        }
    }

    #[tokio::test]
    async fn a_stop_does_not_wait_long_for_a_client_that_sends_on_although_it_is_answered() {
        let running = start(Options::default()).await;
        let mut client = TcpStream::connect(running.address).await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n").await.unwrap();
        let (mut answers, mut body) = client.into_split();
        let sending = tokio::spawn(async move {
            let mut pause = tokio::time::interval(Duration::from_millis(20));
            while body.write_all(&[b'x'; 100]).await.is_ok() {
                pause.tick().await;
            }
        });
        let mut one = [0_u8; 1];
        answers.read_exact(&mut one).await.unwrap();
        running.stop.send(()).unwrap();
        assert_eq!(running.served.await.unwrap(), Drained::Fully);
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_asks_whether_to_send_is_not_told_to_for_nothing() {
        let running = start(Options::default()).await;
        let mut client = TcpStream::connect(running.address).await.unwrap();
        let head = "POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        let mut all = String::new();
        client.read_to_string(&mut all).await.unwrap();
        assert!(all.starts_with("HTTP/1.1 200 OK\r\n") && all.ends_with("not read"), "{all}");
    }

    #[tokio::test]
    async fn a_reader_that_rests_in_the_midst_of_an_answer_is_cut_off_and_its_place_is_free() {
        let write_timeout = Duration::from_millis(50);
        let running = start(Options { max_per_address: 1, write_timeout, ..Options::default() }).await;
        let mut resting = TcpStream::connect(running.address).await.unwrap();
        resting.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut one = [0_u8; 1];
        resting.read_exact(&mut one).await.unwrap();
        let until = tokio::time::Instant::now() + Duration::from_secs(20);
        while post(running.address, "/", "hello").await.is_err() {
            assert!(tokio::time::Instant::now() < until, "the place of a reader that rests is not free");
        }
        let mut rest = Vec::new();
        let _ = resting.read_to_end(&mut rest).await;
        assert!(rest.len() < LARGE, "it was not cut off");
    }

    #[tokio::test]
    async fn a_connection_over_the_share_of_its_address_is_closed_at_once() {
        let running = start(Options { max_per_address: 1, ..Options::default() }).await;
        let mut first = TcpStream::connect(running.address).await.unwrap();
        first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut one = [0_u8; 1];
        first.read_exact(&mut one).await.unwrap();
        let mut second = TcpStream::connect(running.address).await.unwrap();
        assert_eq!(second.read(&mut one).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_client_that_sends_half_a_head_or_half_a_body_is_not_waited_for() {
        let options = Options { header_read_timeout: Duration::from_millis(500), ..Options::default() };
        let running = start(options).await;
        let mut half_head = TcpStream::connect(running.address).await.unwrap();
        half_head.write_all(b"GET / HT").await.unwrap();
        let mut answer = Vec::new();
        half_head.read_to_end(&mut answer).await.unwrap();
        let mut half_body = TcpStream::connect(running.address).await.unwrap();
        half_body.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc").await.unwrap();
        let mut answer = Vec::new();
        half_body.read_to_end(&mut answer).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).ends_with("the body did not arrive in time"));
    }

    #[tokio::test]
    async fn a_drain_ends_although_a_client_holds_on() {
        let options = Options { drain_timeout: Duration::from_millis(50), ..Options::default() };
        let running = start(options).await;
        let mut holds_on = TcpStream::connect(running.address).await.unwrap();
        holds_on.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut begin = [0_u8; 1];
        holds_on.read_exact(&mut begin).await.unwrap();
        running.stop.send(()).unwrap();
        assert_eq!(running.served.await.unwrap(), Drained::Cut { connections: 1 });
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
    }
}
