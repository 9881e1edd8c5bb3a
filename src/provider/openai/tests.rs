//! Tests against small servers on loopback.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use warp::Filter as _;

use super::*;
use crate::domain::request::Endpoint;

const KEY: &str = "sk-test-very-secret";

/// One answer that a scripted server gives.
#[derive(Clone)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn reply(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply { status, headers: Vec::new(), body: body.into() }
}

impl Reply {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// One request that it saw.
#[derive(Clone)]
struct Seen {
    method: String,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// A server that answers from a list and then goes on with its last answer.
struct Scripted {
    origin: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Scripted {
    async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let replies = Arc::new(Mutex::new(replies.into_iter().collect::<VecDeque<_>>()));
        let log = seen.clone();
        let routes = warp::any()
            .and(warp::method())
            .and(warp::path::full())
            .and(warp::query::raw().or(warp::any().map(String::new)).unify())
            .and(warp::header::headers_cloned())
            .and(warp::body::bytes())
            .map(
                move |method: warp::http::Method,
                      path: warp::path::FullPath,
                      query: String,
                      headers,
                      body| {
                    let query = if query.is_empty() { query } else { format!("?{query}") };
                    let path = format!("{}{query}", path.as_str());
                    log.lock().unwrap().push(Seen { method: method.to_string(), path, headers, body });
                    let mut replies = replies.lock().unwrap();
                    let reply =
                        if replies.len() > 1 { replies.pop_front() } else { replies.front().cloned() }
                            .unwrap();
                    let mut response = warp::http::Response::builder().status(reply.status);
                    for (name, value) in reply.headers {
                        response = response.header(name, value);
                    }
                    response.body(reply.body).unwrap()
                },
            );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(warp::serve(routes).incoming(listener).run());
        Self { origin, seen }
    }

    fn client(&self) -> OpenAi {
        client(&self.origin)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Method and path of each request.
    fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }
}

fn options(origin: &str) -> Options {
    Options {
        api_key: Some(KEY.into()),
        project: Some("proj_1".into()),
        repeat_after: Duration::from_millis(1),
        ..Options::new(format!("{origin}/v1/"))
    }
}

fn clock() -> SharedClock {
    Arc::new(crate::clock::SystemClock::new())
}

fn client(origin: &str) -> OpenAi {
    OpenAi::new(options(origin), clock()).unwrap()
}

/// A server that reads one whole request per connection, writes `answer` and closes the connection.
async fn raw_server(answer: &'static [u8]) -> (String, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(Mutex::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            *counter.lock().unwrap() += 1;
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            // Small requests only: the head, and a body of the length it names.
            loop {
                let read = socket.read(&mut buffer).await.unwrap_or(0);
                request.extend_from_slice(&buffer[..read]);
                if read == 0 || is_whole(&request) {
                    break;
                }
            }
            let _ = socket.write_all(answer).await;
            if answer.ends_with(STALL) {
                // Held open until the client goes away.
                let _ = socket.read(&mut buffer).await;
            }
        }
    });
    (origin, count)
}

const STALL: &[u8] = b"never ends";

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    body.len() >= length.unwrap_or(0)
}

fn new_batch() -> NewBatch {
    NewBatch {
        input_file: FileId::new("file-1"),
        endpoint: Endpoint::Responses,
        metadata: vec![("ns_batch", "b1".into()), ("ns_nonce", "n1".into())],
    }
}

async fn upload(client: &OpenAi, content: &[u8]) -> Result<FileObject, ProviderError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("input");
    std::fs::write(&path, content).unwrap();
    client.upload_file(&path, "ns-1.jsonl").await
}

const BATCH: &str = r#"{"id":"batch_1","status":"validating"}"#;
const ENVELOPE: &str = r#"{"error":{"message":"Invalid","type":"invalid_request_error","param":"file","code":"bad"},"detail":{"x":1}}"#;

#[tokio::test]
async fn an_upload_sends_purpose_before_the_file_and_takes_200_and_201() {
    for status in [200, 201] {
        let server = Scripted::start([reply(status, r#"{"id":"file-9","bytes":8}"#)]).await;
        let file = upload(&server.client(), b"{\"a\":1}\n").await.unwrap();
        assert_eq!((file.id.as_str(), file.bytes), ("file-9", Some(8)));
        let seen = &server.seen()[0];
        assert_eq!(server.lines(), ["POST /v1/files"]);
        assert_eq!(seen.headers["authorization"], format!("Bearer {KEY}").as_str());
        assert_eq!(seen.headers["openai-project"], "proj_1");
        assert!(seen.headers.contains_key("content-length"));
        let body = String::from_utf8_lossy(&seen.body);
        let at = |what: &str| body.find(what).unwrap_or_else(|| panic!("no {what} in {body}"));
        assert!(at("name=\"purpose\"") < at("name=\"file\"; filename=\"ns-1.jsonl\""));
        assert!(at("\r\n\r\nbatch\r\n") < at("application/octet-stream\r\n\r\n{\"a\":1}\n\r\n"));
    }
}

#[tokio::test]
async fn an_upload_is_sent_once_whatever_comes_back() {
    for status in [408, 409, 429, 500, 503] {
        let server = Scripted::start([reply(status, "").with("x-should-retry", "true")]).await;
        upload(&server.client(), b"{}\n").await.unwrap_err();
        assert_eq!(server.lines().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_our_own_trouble() {
    let server = Scripted::start([reply(200, "{}")]).await;
    let error = server.client().upload_file(Path::new("/no/such/file"), "x.jsonl").await.unwrap_err();
    assert!(matches!(error, ProviderError::Local { .. }), "{error}");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_big_upload_arrives_whole() {
    let server = Scripted::start([reply(200, r#"{"id":"file-9"}"#)]).await;
    let content = b"0123456789abcdef".repeat(80_000);
    upload(&server.client(), &content).await.unwrap();
    let body = &server.seen()[0].body;
    assert!(body.windows(content.len()).any(|window| window == content));
}

#[tokio::test]
async fn a_batch_is_created_with_its_metadata() {
    let server = Scripted::start([reply(201, BATCH)]).await;
    assert_eq!(server.client().create_batch(&new_batch()).await.unwrap().id.as_str(), "batch_1");
    let seen = &server.seen()[0];
    assert!(!seen.headers.contains_key("idempotency-key"));
    let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
    let expected = json!({"input_file_id": "file-1", "endpoint": "/v1/responses", "completion_window": "24h",
        "metadata": {"ns_batch": "b1", "ns_nonce": "n1"}});
    assert_eq!(body, expected);
}

/// What a create call is told, and how often the server saw it.
async fn create_against(reply: Reply) -> (ProviderError, usize) {
    let server = Scripted::start([reply]).await;
    let error = server.client().create_batch(&new_batch()).await.unwrap_err();
    (error, server.lines().len())
}

#[tokio::test]
async fn a_creation_that_was_refused_says_what_the_provider_says() {
    let (error, calls) = create_against(reply(400, ENVELOPE)).await;
    let ProviderError::Refused { call, status, code, message, param } = error else { panic!("{error}") };
    assert_eq!((call, status, code.as_str(), message.as_str()), ("POST /batches", 400, "bad", "Invalid"));
    assert_eq!(param.as_deref(), Some("file"));
    assert_eq!(calls, 1);
    let (error, _) = create_against(reply(422, r#"{"detail":[{"msg":"no"}]}"#)).await;
    assert!(matches!(error, ProviderError::Refused { status: 422, .. }), "{error}");
    let (error, _) = create_against(reply(413, "too large, sorry")).await;
    assert!(
        matches!(&error, ProviderError::Refused { message, .. } if message == "too large, sorry"),
        "{error}"
    );
}

#[tokio::test]
async fn a_creation_of_unknown_effect_is_uncertain_and_not_repeated() {
    let html = "<html><body>\n<h1>502 Bad Gateway</h1></body></html>";
    let replies = [
        reply(502, html),
        reply(500, "").with("x-should-retry", "true"),
        reply(503, ENVELOPE),
        reply(408, ""),
        reply(409, ENVELOPE),
        reply(200, "not json"),
        reply(200, ""),
        reply(200, "{\"status\":\"validating\"}"),
        reply(302, "").with("location", "/v1/batches"),
        reply(307, "").with("location", "/elsewhere"),
    ];
    for reply in replies {
        let status = reply.status;
        let (error, calls) = create_against(reply).await;
        assert!(matches!(error, ProviderError::Uncertain { .. }), "{status}: {error}");
        assert_eq!(calls, 1, "{status}");
    }
    let (error, _) = create_against(reply(502, html)).await;
    assert!(error.to_string().contains("502 Bad Gateway"), "{error}");
}

#[tokio::test]
async fn a_creation_whose_connection_drops_is_uncertain_and_sent_once() {
    for answer in [&b""[..], b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"id\":", b"HTTP/1.1 2"] {
        let (origin, count) = raw_server(answer).await;
        let error = client(&origin).create_batch(&new_batch()).await.unwrap_err();
        assert!(matches!(error, ProviderError::Uncertain { .. }), "{error}");
        assert_eq!(*count.lock().unwrap(), 1);
    }
}

#[tokio::test]
async fn a_time_out_after_sending_is_uncertain() {
    // A head without its end: what is no head at all would be an error at once.
    let (origin, _) = raw_server(b"HTTP/1.1 200 OK\r\nanswer: never ends").await;
    // It counts from before the connection, and one that is not there in time is another error.
    let options = Options { call_timeout: Duration::from_secs(1), ..options(&origin) };
    let error = OpenAi::new(options, clock()).unwrap().create_batch(&new_batch()).await.unwrap_err();
    assert!(matches!(&error, ProviderError::Uncertain { what, .. } if what == "timed out"), "{error}");
}

#[tokio::test]
async fn without_a_connection_nothing_was_sent() {
    // A port that is taken, so that no other test gets it, but that nobody listens at.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let client = client(&format!("http://{}", socket.local_addr().unwrap()));
    for error in [
        client.create_batch(&new_batch()).await.unwrap_err(),
        upload(&client, b"{}\n").await.unwrap_err(),
        client.get_batch(&ProviderBatchId::new("b")).await.unwrap_err(),
    ] {
        assert!(matches!(error, ProviderError::NotSent { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_429_says_how_long_to_wait_in_any_of_its_forms() {
    let date = "Tue, 24 Nov 2026 13:00:00 GMT";
    let later = "Tue, 24 Nov 2026 13:01:30 GMT";
    let plain = || reply(429, r#"{"error":{"code":"rate_limit_exceeded","message":"slow"}}"#);
    let cases = [
        (plain(), None),
        (plain().with("retry-after", "7"), Some(7_000)),
        (plain().with("retry-after", "0.25"), Some(250)),
        (plain().with("retry-after", "300"), Some(300_000)),
        (plain().with("retry-after-ms", "40").with("retry-after", "7"), Some(40)),
        (plain().with("retry-after", later).with("date", date), Some(90_000)),
        (plain().with("retry-after", date).with("date", later), None),
        (plain().with("retry-after", "-3"), None),
        (plain().with("retry-after", "nan"), None),
        (plain().with("retry-after", "soon"), None),
    ];
    for (reply, millis) in cases {
        let (error, calls) = create_against(reply).await;
        let ProviderError::RateLimited { code, retry_after, .. } = error else { panic!("{error}") };
        assert_eq!(code, "rate_limit_exceeded");
        assert_eq!(retry_after, millis.map(Duration::from_millis));
        assert_eq!(calls, 1);
    }
}

#[tokio::test]
async fn trouble_with_the_account_is_told_apart() {
    let quota = r#"{"error":{"code":"insufficient_quota","type":"insufficient_quota","message":"pay"}}"#;
    let by_type = r#"{"error":{"code":null,"type":"billing_hard_limit_reached","message":"pay"}}"#;
    let gateway = r#"{"error":{"message":"wrong key","type":"auth_error","code":"400"}}"#;
    for reply in [
        reply(429, quota),
        reply(400, by_type),
        reply(400, gateway),
        reply(401, ""),
        reply(403, "<html>no</html>"),
    ] {
        let status = reply.status;
        let server = Scripted::start([reply]).await;
        let error = server.client().get_batch(&ProviderBatchId::new("b")).await.unwrap_err();
        assert!(matches!(error, ProviderError::Account { .. }), "{status}: {error}");
        assert_eq!(server.lines().len(), 1, "{status} was repeated");
    }
}

#[tokio::test]
async fn the_key_is_in_no_error_and_in_no_debug_output() {
    let words = format!(r#"{{"error":{{"message":"{}{KEY} is wrong"}}}}"#, "x".repeat(495));
    for status in [400, 401, 429, 500] {
        let (error, _) = create_against(reply(status, words.clone())).await;
        assert!(!format!("{error} {error:?}").contains("sk-t"), "{error}");
    }
    let client = client("http://127.0.0.1:9");
    assert!(!format!("{client:?} {:?}", options("http://x")).contains(KEY));
}

#[tokio::test]
async fn a_safe_call_is_repeated_twice_on_passing_faults() {
    for status in [408, 409, 429, 500, 502, 503] {
        let server = Scripted::start([reply(status, "")]).await;
        server.client().get_batch(&ProviderBatchId::new("b")).await.unwrap_err();
        assert_eq!(server.lines().len(), 3, "{status}");
    }
    for status in [400, 404, 422, 302] {
        let server = Scripted::start([reply(status, "")]).await;
        let _ = server.client().get_batch(&ProviderBatchId::new("b")).await;
        assert_eq!(server.lines().len(), 1, "{status}");
    }
    let server = Scripted::start([reply(500, ""), reply(429, ""), reply(200, BATCH)]).await;
    assert!(server.client().get_batch(&ProviderBatchId::new("b")).await.unwrap().is_some());
    let (origin, count) = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"id\":").await;
    client(&origin).get_batch(&ProviderBatchId::new("b")).await.unwrap_err();
    assert_eq!(*count.lock().unwrap(), 3);
}

#[tokio::test]
async fn the_servers_own_word_on_repeating_counts() {
    let cases = [
        (reply(500, "").with("x-should-retry", "false"), 1),
        (reply(400, "").with("x-should-retry", "true"), 3),
        (reply(429, "").with("retry-after", "121"), 1),
        (reply(429, "").with("retry-after-ms", "1"), 3),
    ];
    for (reply, calls) in cases {
        let server = Scripted::start([reply]).await;
        server.client().get_batch(&ProviderBatchId::new("b")).await.unwrap_err();
        assert_eq!(server.lines().len(), calls);
    }
}

#[tokio::test]
async fn what_is_not_there_is_none_and_is_deleted_already() {
    for status in [404, 410] {
        let server = Scripted::start([reply(status, ENVELOPE)]).await;
        let client = server.client();
        assert_eq!(client.get_batch(&ProviderBatchId::new("b")).await.unwrap(), None);
        assert_eq!(client.get_file(&FileId::new("f")).await.unwrap(), None);
        client.delete_file(&FileId::new("f")).await.unwrap();
        assert_eq!(server.lines(), ["GET /v1/batches/b", "GET /v1/files/f", "DELETE /v1/files/f"]);
    }
}

#[tokio::test]
async fn a_cancel_that_conflicts_is_resolved_by_a_read() {
    let server =
        Scripted::start([reply(409, ENVELOPE), reply(200, r#"{"id":"b","status":"completed"}"#)]).await;
    let batch = server.client().cancel_batch(&ProviderBatchId::new("b")).await.unwrap();
    assert_eq!(batch.status.label(), "completed");
    assert_eq!(server.lines(), ["POST /v1/batches/b/cancel", "GET /v1/batches/b"]);
    let server = Scripted::start([reply(503, ""), reply(200, r#"{"id":"b","status":"cancelling"}"#)]).await;
    let batch = server.client().cancel_batch(&ProviderBatchId::new("b")).await.unwrap();
    assert_eq!(batch.status.label(), "cancelling");
    let server = Scripted::start([reply(404, ENVELOPE)]).await;
    let error = server.client().cancel_batch(&ProviderBatchId::new("b")).await.unwrap_err();
    assert!(matches!(error, ProviderError::Refused { status: 404, .. }), "{error}");
}

#[tokio::test]
async fn lists_ask_for_what_they_need() {
    let page = r#"{"object":"list","data":[{"id":"x"}],"has_more":true}"#;
    let server = Scripted::start([reply(200, page)]).await;
    let client = server.client();
    assert!(client.list_batches(None, 100).await.unwrap().has_more);
    assert!(client.list_files(Some(&FileId::new("a&b")), 50).await.unwrap().has_more);
    assert_eq!(
        server.lines(),
        ["GET /v1/batches?limit=100", "GET /v1/files?purpose=batch&order=desc&limit=50&after=a%26b"]
    );
    let error = client.list_batches(Some(&ProviderBatchId::new("x")), 100).await.unwrap_err();
    assert!(error.to_string().contains("repeats itself"), "{error}");
}

#[tokio::test]
async fn an_id_is_one_segment_of_the_path_whatever_it_holds() {
    let server = Scripted::start([reply(404, "")]).await;
    let client = server.client();
    client.delete_file(&FileId::new("../batches?x#/y")).await.unwrap();
    assert_eq!(server.lines(), ["DELETE /v1/files/..%2Fbatches%3Fx%23%2Fy"]);
    for id in ["", ".", ".."] {
        assert!(matches!(
            client.delete_file(&FileId::new(id)).await.unwrap_err(),
            ProviderError::NotSent { .. }
        ));
    }
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn an_answer_that_never_ends_is_not_read_to_its_end() {
    let server = Scripted::start([reply(200, vec![b' '; exchange::ANSWER_BYTES_MAX + 1])]).await;
    let error = server.client().create_batch(&new_batch()).await.unwrap_err();
    assert!(matches!(error, ProviderError::Uncertain { .. }), "{error}");
    let server = Scripted::start([reply(400, vec![b'x'; exchange::ANSWER_BYTES_MAX + 1])]).await;
    let error = server.client().create_batch(&new_batch()).await.unwrap_err();
    assert!(matches!(&error, ProviderError::Refused { message, .. } if message.len() == 500), "{error}");
}

fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn a_download_comes_home_whole_and_under_its_name_only() {
    let content = b"{\"custom_id\":\"1\"}\n".repeat(50_000);
    let server = Scripted::start([reply(502, "<html>"), reply(200, content.clone())]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("output.jsonl");
    std::fs::write(folder.path().join("output.jsonl.part"), "left over").unwrap();
    let downloaded = server.client().download_file(&FileId::new("f"), &to).await.unwrap();
    assert_eq!(downloaded.bytes, content.len() as u64);
    assert_eq!(downloaded.sha256, <[u8; 32]>::from(Sha256::digest(&content)));
    assert_eq!(std::fs::read(&to).unwrap(), content);
    assert_eq!(names(folder.path()), ["output.jsonl"]);
    assert_eq!(server.lines(), ["GET /v1/files/f/content", "GET /v1/files/f/content"]);
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let server = Scripted::start([reply(200, "")]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("errors.jsonl");
    assert_eq!(server.client().download_file(&FileId::new("f"), &to).await.unwrap().bytes, 0);
    assert_eq!(names(folder.path()), ["errors.jsonl"]);
}

#[tokio::test]
async fn a_download_that_breaks_off_or_stands_still_leaves_nothing() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\nabcd",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnever ends",
    ] {
        let (origin, count) = raw_server(answer).await;
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("output.jsonl");
        let options = Options { idle_timeout: Duration::from_millis(100), ..options(&origin) };
        let error =
            OpenAi::new(options, clock()).unwrap().download_file(&FileId::new("f"), &to).await.unwrap_err();
        assert!(matches!(error, ProviderError::Uncertain { .. }), "{error}");
        assert_eq!(names(folder.path()), Vec::<String>::new());
        assert_eq!(*count.lock().unwrap(), 1);
    }
}

/// Otherwise each line would count as missing, and be bought again.
#[tokio::test]
async fn a_page_of_html_is_not_taken_for_the_file() {
    let page = reply(200, "<html>Please sign in</html>\n").with("content-type", "Text/HTML; charset=utf-8");
    let server = Scripted::start([page]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("output.jsonl");
    let error = server.client().download_file(&FileId::new("f"), &to).await.unwrap_err();
    assert!(matches!(error, ProviderError::Uncertain { .. }), "{error}");
    assert_eq!(names(folder.path()), Vec::<String>::new());
    // Some servers do not know what they send.
    let lines = reply(200, "{\"custom_id\":\"1\"}\n").with("content-type", "text/html");
    let server = Scripted::start([lines]).await;
    assert_eq!(server.client().download_file(&FileId::new("f"), &to).await.unwrap().bytes, 18);
}

#[tokio::test]
async fn a_download_into_a_folder_that_is_not_there_is_our_own_trouble() {
    let server = Scripted::start([reply(200, "x")]).await;
    let error =
        server.client().download_file(&FileId::new("f"), Path::new("/no/such/folder/f")).await.unwrap_err();
    assert!(matches!(error, ProviderError::Local { .. }), "{error}");
}

#[tokio::test]
async fn a_refused_download_creates_nothing() {
    let server = Scripted::start([reply(404, ENVELOPE)]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("output.jsonl");
    let error = server.client().download_file(&FileId::new("f"), &to).await.unwrap_err();
    assert!(matches!(error, ProviderError::Refused { status: 404, .. }), "{error}");
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_redirected_download_takes_the_key_to_its_own_origin_only() {
    let other = Scripted::start([reply(200, "content")]).await;
    let server = Scripted::start([
        reply(307, "").with("location", "/v1/moved"),
        reply(302, "").with("location", format!("{}/bucket/f?sig=1", other.origin)),
    ])
    .await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("output.jsonl");
    server.client().download_file(&FileId::new("f"), &to).await.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), b"content");
    assert_eq!(server.lines(), ["GET /v1/files/f/content", "GET /v1/moved"]);
    assert!(server.seen().iter().all(|seen| seen.headers.contains_key("authorization")));
    assert_eq!(other.lines(), ["GET /bucket/f?sig=1"]);
    let headers = &other.seen()[0].headers;
    assert!(["authorization", "openai-project", "referer"].iter().all(|name| !headers.contains_key(*name)));
}

#[tokio::test]
async fn a_refusal_by_another_origin_says_nothing_about_our_account() {
    let other = Scripted::start([reply(403, "<Error>expired</Error>")]).await;
    let server = Scripted::start([reply(302, "").with("location", format!("{}/f", other.origin))]).await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("output.jsonl");
    let error = server.client().download_file(&FileId::new("f"), &to).await.unwrap_err();
    assert!(matches!(error, ProviderError::Uncertain { .. }), "{error}");
}

#[tokio::test]
async fn redirects_without_end_or_to_nowhere_are_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("output.jsonl");
    for (location, calls) in [("/v1/again", 6), ("file:///etc/passwd", 1), ("http://[", 1)] {
        let server = Scripted::start([reply(302, "").with("location", location)]).await;
        let error = server.client().download_file(&FileId::new("f"), &to).await.unwrap_err();
        assert!(matches!(error, ProviderError::Uncertain { .. }), "{error}");
        assert_eq!(server.lines().len(), calls, "{location}");
    }
    let https = Url::parse("https://a/").unwrap();
    assert!(!download::is_allowed(&https, &Url::parse("http://a/").unwrap()));
}

#[test]
fn options_that_cannot_work_are_refused_without_telling_the_key() {
    for base in
        ["", "api.openai.com", "ftp://x/v1", "https://u:p@x/v1", "https://x/v1?key=1", "https://x/v1#a"]
    {
        assert!(matches!(OpenAi::new(Options::new(base), clock()), Err(OptionsError::BaseUrl)), "{base}");
    }
    let options = Options { api_key: Some("bad\nkey".into()), ..Options::new("http://x/v1") };
    let error = OpenAi::new(options, clock()).unwrap_err();
    assert!(matches!(error, OptionsError::Header("key")) && !error.to_string().contains("bad"));
    // Without CA certificates on the machine it is the client that cannot be made, and that is said.
    let built = OpenAi::new(Options::new("https://api.openai.com/v1"), clock());
    assert!(matches!(built, Ok(_) | Err(OptionsError::Client(_))));
}
