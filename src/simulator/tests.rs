//! The simulator over real HTTP, with a clock that the tests turn.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::*;
use crate::clock::ManualClock;
use crate::domain::id::Timestamp;

const TURNAROUND: Duration = Duration::from_secs(100);

struct Running {
    address: SocketAddr,
    clock: Arc<ManualClock>,
    client: reqwest::Client,
    simulator: Simulator,
    _stop: tokio::sync::oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

/// Starts with a clock that stands `at` so many seconds after an arbitrary start.
async fn start_with(folder: &Path, at: u64, change: impl FnOnce(&mut Options)) -> Running {
    let start = Timestamp::from_secs(1_795_000_000).plus(Duration::from_secs(at));
    let clock = Arc::new(ManualClock::new(start));
    let mut options = Options {
        turnaround: TURNAROUND,
        tick: Duration::from_secs(3600),
        instance: Some(1),
        ..Options::new(folder)
    };
    change(&mut options);
    let simulator = Simulator::open(options, clock.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = simulator.clone();
    let served = tokio::spawn(async move {
        serving
            .serve(listener, async {
                let _ = stopped.await;
            })
            .await;
    });
    let client = crate::tls::client_builder().no_proxy().build().unwrap();
    Running { address, clock, client, simulator, _stop: stop, served }
}

async fn start(folder: &Path) -> Running {
    start_with(folder, 0, |_| ()).await
}

async fn start_with_faults(folder: &Path, plan: Value) -> Running {
    start_with(folder, 0, |options| options.faults = FaultPlan::parse(&plan.to_string()).unwrap()).await
}

impl Running {
    fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let response = request.bearer_auth("any").send().await.unwrap();
        assert!(response.headers().contains_key("x-request-id"));
        (response.status().as_u16(), response.json().await.unwrap())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send(self.client.get(self.url(path))).await
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(self.client.post(self.url(path)).json(body)).await
    }

    async fn upload(&self, form: Form) -> (u16, Value) {
        self.send(self.client.post(self.url("/v1/files")).multipart(form)).await
    }

    /// Uploads `lines` and gives the file's id.
    async fn input(&self, lines: &str) -> String {
        let part = Part::bytes(lines.as_bytes().to_vec()).file_name("in.jsonl");
        let (status, file) = self.upload(Form::new().text("purpose", "batch").part("file", part)).await;
        assert_eq!(status, 200, "{file}");
        file["id"].as_str().unwrap().to_owned()
    }

    /// Makes a batch of `lines` and gives its id.
    async fn batch(&self, lines: &str) -> String {
        let body = order(&self.input(lines).await);
        let (status, batch) = self.post("/v1/batches", &body).await;
        assert_eq!(status, 200, "{batch}");
        batch["id"].as_str().unwrap().to_owned()
    }

    async fn show(&self, batch: &str) -> Value {
        let (status, batch) = self.get(&format!("/v1/batches/{batch}")).await;
        assert_eq!(status, 200, "{batch}");
        batch
    }

    /// The lines of a result file, by custom id; bad lines are left out.
    async fn results(&self, file: &Value) -> HashMap<String, Value> {
        let Some(id) = file.as_str() else { return HashMap::new() };
        let request = self.client.get(self.url(&format!("/v1/files/{id}/content"))).bearer_auth("any");
        let text = request.send().await.unwrap().text().await.unwrap();
        assert!(text.ends_with('\n'));
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.map(|line| (line["custom_id"].as_str().unwrap().to_owned(), line)).collect()
    }

    /// Ends the server, so that the folder is free.
    async fn stop(self) {
        let Self { served, simulator, _stop, client, .. } = self;
        drop((client, _stop));
        served.await.unwrap();
        drop(simulator);
    }
}

fn order(input: &str) -> Value {
    json!({"input_file_id": input, "endpoint": "/v1/chat/completions", "completion_window": "24h",
        "metadata": {"job": "one"}})
}

fn lines(count: usize) -> String {
    let line = |n: usize| {
        json!({"custom_id": format!("line-{n}"), "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": "Name a river."}]}})
    };
    (0..count).map(|n| line(n).to_string() + "\n").collect()
}

fn ledger(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("ledger.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How often each line of a batch ran, by the ledger.
fn runs(folder: &Path, batch: &str) -> HashMap<String, usize> {
    let mut runs = HashMap::new();
    for line in ledger(folder).iter().filter(|line| line["event"] == "line_run" && line["batch"] == batch) {
        *runs.entry(line["custom_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    runs
}

#[tokio::test]
async fn a_batch_goes_all_the_way_and_its_results_are_in_files() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let batch = server.batch(&lines(20)).await;
    let created = server.show(&batch).await;
    assert_eq!(created["status"], "validating");
    assert_eq!(created["expires_at"], 1_795_086_400);
    assert_eq!(created["metadata"], json!({"job": "one"}));
    assert!(created["model"].is_null());
    assert_eq!(ledger(folder.path())[0]["event"], "batch_created");
    server.pass(50);
    let running = server.show(&batch).await;
    assert_eq!(
        (running["status"].as_str(), running["model"].as_str()),
        (Some("in_progress"), Some("m-simulated"))
    );
    assert_eq!(running["request_counts"], json!({"total": 20, "completed": 10, "failed": 0}));
    server.pass(40);
    let finalizing = server.show(&batch).await;
    assert_eq!(finalizing["status"], "finalizing");
    assert!(finalizing["output_file_id"].is_null());
    server.pass(10);
    let done = server.show(&batch).await;
    assert_eq!(done["status"], "completed");
    assert_eq!(done["completed_at"], 1_795_000_100);
    assert_eq!(done["request_counts"], json!({"total": 20, "completed": 20, "failed": 0}));
    assert!(done["error_file_id"].is_null() && done["usage"]["total_tokens"].as_u64().unwrap() > 0);
    let id = done["output_file_id"].as_str().unwrap();
    let request = server.client.get(server.url(&format!("/v1/files/{id}/content"))).bearer_auth("any");
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/octet-stream");
    let disposition = format!("attachment; filename=\"{batch}_output.jsonl\"");
    assert_eq!(response.headers()["content-disposition"], disposition.as_str());
    assert_eq!(response.content_length(), None);
    let text = response.text().await.unwrap();
    let (_, file) = server.get(&format!("/v1/files/{id}")).await;
    assert_eq!(
        (file["purpose"].as_str(), file["bytes"].as_u64()),
        (Some("batch_output"), Some(text.len() as u64))
    );
    let order: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["custom_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(order.len(), 20);
    assert_ne!(order, (0..20).map(|n| format!("line-{n}")).collect::<Vec<_>>());
    let results = server.results(&done["output_file_id"]).await;
    assert_eq!(results["line-3"]["response"]["status_code"], 200);
    assert!(results["line-3"]["error"].is_null());
    assert!(runs(folder.path(), &batch).values().all(|count| *count == 1));
    let (status, refused) = server.post(&format!("/v1/batches/{batch}/cancel"), &json!({})).await;
    assert_eq!(status, 409);
    assert_eq!(refused["error"]["message"], "Cannot cancel a batch with status 'completed'.");
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_run_runs_no_line_twice() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let batch = server.batch(&lines(50)).await;
    server.pass(90);
    assert_eq!(server.show(&batch).await["status"], "finalizing");
    server.stop().await;
    // As if the process had been killed half-way: the journal does not know of the end, the ledger is torn.
    let journal = folder.path().join("journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    let kept = text.lines().filter(|line| !line.contains(r#""entry":"ended""#));
    std::fs::write(&journal, kept.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let path = folder.path().join("ledger.jsonl");
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    std::fs::write(folder.path().join("work").join(format!("{batch}.jsonl")), lines(50)).unwrap();

    let server = start_with(folder.path(), 200, |_| ()).await;
    let done = server.show(&batch).await;
    assert_eq!(
        (done["status"].as_str(), done["completed_at"].as_i64()),
        (Some("completed"), Some(1_795_000_100))
    );
    assert_eq!(server.results(&done["output_file_id"]).await.len(), 50);
    let runs = runs(folder.path(), &batch);
    assert_eq!(runs.len(), 50);
    assert!(runs.values().all(|count| *count == 1), "{runs:?}");
    assert_eq!(ledger(folder.path()).iter().filter(|line| line["event"] == "batch_created").count(), 1);
}

#[tokio::test]
async fn a_restart_finds_files_and_batches_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let input = server.input(&lines(3)).await;
    let (_, batch) = server.post("/v1/batches", &order(&input)).await;
    let batch = batch["id"].as_str().unwrap().to_owned();
    server.pass(20);
    assert_eq!(server.show(&batch).await["status"], "in_progress");
    // The input may go once the batch has it.
    let (status, _) = server.send(server.client.delete(server.url(&format!("/v1/files/{input}")))).await;
    assert_eq!(status, 200);
    server.stop().await;
    let server = start_with(folder.path(), 60, |options| options.turnaround = TURNAROUND * 9).await;
    assert_eq!(server.show(&batch).await["status"], "in_progress");
    assert_eq!(server.get(&format!("/v1/files/{input}")).await.0, 404);
    server.pass(60);
    server.simulator.tick().await;
    assert_eq!(runs(folder.path(), &batch).len(), 3);
    let done = server.show(&batch).await;
    assert_eq!(server.results(&done["output_file_id"]).await.len(), 3);
    let other = server.batch(&lines(1)).await;
    assert_ne!(other, batch);
}

#[tokio::test]
async fn a_cancel_keeps_what_is_done_and_says_so_of_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let batch = server.batch(&lines(60)).await;
    server.pass(50);
    let (status, cancelling) = server.post(&format!("/v1/batches/{batch}/cancel"), &json!({})).await;
    assert_eq!((status, cancelling["status"].as_str()), (200, Some("cancelling")));
    server.pass(10);
    let done = server.show(&batch).await;
    assert_eq!(done["status"], "cancelled");
    assert_eq!(done["cancelling_at"], 1_795_000_050);
    assert_eq!(done["cancelled_at"], 1_795_000_055);
    let output = server.results(&done["output_file_id"]).await;
    let errors = server.results(&done["error_file_id"]).await;
    assert_eq!(output.len() + errors.len(), 60);
    assert!((15..45).contains(&output.len()), "{}", output.len());
    assert!(
        errors.values().all(|line| line["error"]["code"] == "batch_cancelled" && line["response"].is_null())
    );
    assert_eq!(runs(folder.path(), &batch).len(), output.len());
    let (status, again) = server.post(&format!("/v1/batches/{batch}/cancel"), &json!({})).await;
    assert_eq!((status, again["status"].as_str()), (200, Some("cancelled")));
    let early = server.batch(&lines(2)).await;
    server.post(&format!("/v1/batches/{early}/cancel"), &json!({})).await;
    server.pass(10);
    let early = server.show(&early).await;
    assert_eq!((early["status"].as_str(), &early["in_progress_at"]), (Some("cancelled"), &Value::Null));
    assert!(early["output_file_id"].is_null() && early["error_file_id"].is_null());
}

#[tokio::test]
async fn a_batch_that_outlasts_its_window_expires() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with(folder.path(), 0, |options| options.window = Duration::from_secs(50)).await;
    let batch = server.batch(&lines(40)).await;
    server.pass(60);
    let done = server.show(&batch).await;
    assert_eq!(
        (done["status"].as_str(), done["expired_at"].as_i64()),
        (Some("expired"), Some(1_795_000_050))
    );
    let errors = server.results(&done["error_file_id"]).await;
    assert!(errors.values().all(|line| line["error"]["code"] == "batch_expired"));
    assert_eq!(server.results(&done["output_file_id"]).await.len() + errors.len(), 40);
}

#[tokio::test]
async fn a_missing_input_is_noticed_only_later_and_bad_lines_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let (status, batch) = server.post("/v1/batches", &order("file-none")).await;
    assert_eq!((status, batch["status"].as_str()), (200, Some("validating")));
    let bad = server.batch(&format!("{}{{\n", lines(2))).await;
    server.pass(20);
    let failed = server.show(batch["id"].as_str().unwrap()).await;
    assert_eq!(
        (failed["status"].as_str(), failed["failed_at"].as_i64()),
        (Some("failed"), Some(1_795_000_015))
    );
    assert_eq!(failed["errors"]["data"][0]["code"], "invalid_request");
    assert_eq!(failed["errors"]["data"][0]["param"], "file_id");
    let bad = server.show(&bad).await;
    assert_eq!(bad["errors"]["object"], "list");
    assert_eq!(
        (&bad["errors"]["data"][0]["code"], &bad["errors"]["data"][0]["line"]),
        (&json!("invalid_json_line"), &json!(3))
    );
    assert_eq!(bad["request_counts"]["total"], 0);
}

#[tokio::test]
async fn uploads_are_checked_and_the_purpose_may_come_last() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with(folder.path(), 0, |options| options.max_input_bytes = 1000).await;
    let part = |name: &str, text: String| Part::bytes(text.into_bytes()).file_name(name.to_owned());
    let good = Form::new()
        .part("file", part("a.jsonl", lines(1)))
        .text("purpose", "batch")
        .text("expires_after[anchor]", "created_at")
        .text("expires_after[seconds]", "3600");
    let (status, file) = server.upload(good).await;
    assert_eq!((status, file["expires_at"].as_i64()), (200, Some(1_795_003_600)), "{file}");
    assert_eq!(
        (file["status"].as_str(), file["bytes"].as_u64()),
        (Some("processed"), Some(lines(1).len() as u64))
    );
    let form = |name: &str, text: &str| {
        Form::new().text("purpose", "batch").part("file", part(name, text.to_owned()))
    };
    let (status, refused) = server.upload(form("a.json", &lines(1))).await;
    assert_eq!(status, 400);
    assert_eq!(
        refused["error"],
        json!({"message": "Invalid file format for Batch API. Must be .jsonl",
        "type": "invalid_request_error", "param": null, "code": null})
    );
    assert_eq!(server.upload(form("a.jsonl", "")).await.0, 400);
    assert_eq!(server.upload(form("a.jsonl", "not json\n")).await.0, 400);
    assert_eq!(server.upload(form("a.jsonl", &format!("\u{feff}{}", lines(1)))).await.0, 200);
    assert_eq!(server.upload(form("a.jsonl", &lines(10))).await.0, 413);
    let (status, refused) = server.upload(form("a.jsonl", &lines(1)).text("odd", "1")).await;
    assert_eq!((status, refused["error"]["param"].as_str()), (400, Some("odd")));
    let (status, _) = server.upload(form("a.jsonl", &lines(1)).text("expires_after[seconds]", "3600")).await;
    assert_eq!(status, 400);
    let (status, refused) = server.upload(Form::new().text("purpose", "batch")).await;
    assert_eq!((status, refused["error"]["param"].as_str()), (400, Some("file")));
    let (_, list) = server.get("/v1/files?purpose=batch").await;
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    assert_eq!(std::fs::read_dir(folder.path().join("work")).unwrap().count(), 0);
    server.pass(3600);
    server.simulator.tick().await;
    let id = file["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/files/{id}")).await.0, 404);
    assert!(!folder.path().join("files").join(id).exists());
}

#[tokio::test]
async fn an_upload_that_is_cut_off_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let head = "POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer a\r\ncontent-length: 9999\r\n\
                content-type: multipart/form-data; boundary=b\r\n\r\n--b\r\n\
                content-disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n{\"half\":";
    socket.write_all(head.as_bytes()).await.unwrap();
    drop(socket);
    assert_eq!(server.get("/v1/files").await.1["data"], json!([]));
    server.stop().await;
    assert_eq!(std::fs::read_dir(folder.path().join("work")).unwrap().count(), 0);
}

#[tokio::test]
async fn wrong_requests_are_refused_in_the_envelope() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with(folder.path(), 0, |options| options.required_key = Some("right".into())).await;
    let get = |path: &str| server.client.get(server.url(path));
    let status =
        |request: reqwest::RequestBuilder| async move { request.send().await.unwrap().status().as_u16() };
    assert_eq!(status(get("/v1/files")).await, 401);
    assert_eq!(status(get("/v1/files").bearer_auth("wrong")).await, 401);
    assert_eq!(status(get("/v1/files").bearer_auth("right")).await, 200);
    drop(server);

    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    for (path, expected) in [
        ("/v1/nothing", 404),
        ("/", 404),
        ("/v1/batches/batch_none", 404),
        ("/v1/files/file-none", 404),
        ("/v1/files/file-none/content", 404),
        ("/v1/batches/x/cancel", 405),
        ("/v1/batches?limit=101", 400),
        ("/v1/batches?after=nothing", 404),
        ("/v1/files?order=up", 400),
    ] {
        let (status, body) = server.get(path).await;
        assert_eq!(status, expected, "{path}");
        assert!(body["error"]["message"].is_string() && body["error"]["type"].is_string(), "{body}");
    }
    let good = order("file-1");
    let changed = |key: &str, value: Value| {
        let mut order = good.clone();
        order[key] = value;
        order
    };
    for (body, param, code) in [
        (changed("odd", json!(1)), "odd", "unknown_parameter"),
        (changed("endpoint", json!("/v1/odd")), "endpoint", "invalid_value"),
        (changed("completion_window", json!("1h")), "completion_window", "invalid_value"),
        (changed("input_file_id", Value::Null), "input_file_id", "missing_required_parameter"),
        (changed("metadata", json!({"n": 1})), "metadata.n", "invalid_type"),
        (changed("metadata", json!({"n": "x".repeat(513)})), "metadata.n", "string_above_max_length"),
        (
            changed("output_expires_after", json!({"anchor": "created_at", "seconds": 1})),
            "output_expires_after.seconds",
            "invalid_value",
        ),
    ] {
        let (status, refused) = server.post("/v1/batches", &body).await;
        assert_eq!(
            (status, refused["error"]["param"].as_str(), refused["error"]["code"].as_str()),
            (400, Some(param), Some(code))
        );
    }
    assert_eq!(server.get("/v1/batches").await.1["data"], json!([]));
}

#[tokio::test]
async fn lists_come_in_pages_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path()).await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.insert(0, server.batch(&lines(1)).await);
    }
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let (_, page) = server.get(&format!("/v1/batches?limit=2{after}")).await;
        seen.extend(
            page["data"].as_array().unwrap().iter().map(|batch| batch["id"].as_str().unwrap().to_owned()),
        );
        assert_eq!(page["last_id"].as_str(), seen.last().map(String::as_str));
        if page["has_more"] == false {
            break;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
    assert_eq!(seen, made);
    let (_, files) = server.get("/v1/files?limit=1&order=asc").await;
    assert_eq!((files["has_more"].as_bool(), files["data"].as_array().unwrap().len()), (Some(true), 1));
}

#[tokio::test]
async fn a_dropped_create_may_or_may_not_have_made_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let plan = json!({"calls": [
        {"call": "batches.create", "fault": "drop_before", "nth": 1},
        {"call": "batches.create", "fault": "drop_after", "nth": 2},
    ]});
    let server = start_with_faults(folder.path(), plan).await;
    let order = order(&server.input(&lines(1)).await);
    for expected in [0, 1] {
        let request = server.client.post(server.url("/v1/batches")).json(&order).bearer_auth("any");
        let error = request.send().await.unwrap_err();
        assert!(error.status().is_none() && error.is_request(), "{error:?}");
        let (_, list) = server.get("/v1/batches").await;
        assert_eq!(list["data"].as_array().unwrap().len(), expected);
    }
}

#[tokio::test]
async fn planned_errors_carry_their_headers_and_a_cut_body_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let plan = json!({"calls": [
        {"call": "batches.list", "fault": "status", "status": 429, "code": "slow_down", "retry_after": {"seconds": 7}, "nth": 1},
        {"call": "batches.list", "fault": "status", "status": 503, "retry_after": {"date_in": 5}, "nth": 2},
        {"call": "batches.list", "fault": "status", "status": 502, "nth": 3},
        {"call": "batches.list", "fault": "empty_page", "nth": 4},
        {"call": "files.content", "fault": "truncate", "nth": 1},
        {"call": "files.content", "fault": "stall", "nth": 3},
        {"call": "files.create", "fault": "status", "status": 500, "effect": true, "nth": 2},
    ]});
    let server = start_with_faults(folder.path(), plan).await;
    let list = || server.client.get(server.url("/v1/batches")).bearer_auth("any").send();
    let limited = list().await.unwrap();
    assert_eq!((limited.status().as_u16(), limited.headers()["retry-after"].to_str().unwrap()), (429, "7"));
    assert_eq!(limited.json::<Value>().await.unwrap()["error"]["code"], "slow_down");
    let dated = list().await.unwrap();
    assert_eq!(dated.headers()["retry-after"], "Wed, 18 Nov 2026 11:06:45 GMT");
    assert!(list().await.unwrap().text().await.unwrap().starts_with("<html>"));
    assert_eq!(list().await.unwrap().json::<Value>().await.unwrap()["has_more"], true);
    let input = server.input(&lines(1000)).await;
    let content =
        || server.client.get(server.url(&format!("/v1/files/{input}/content"))).bearer_auth("any").send();
    let cut = content().await.unwrap();
    assert_eq!(cut.status().as_u16(), 200);
    assert!(cut.bytes().await.is_err());
    assert_eq!(content().await.unwrap().text().await.unwrap(), lines(1000));
    let mut stalled = content().await.unwrap();
    let begin = stalled.chunk().await.unwrap().unwrap();
    assert!(!begin.is_empty() && begin.len() < lines(1000).len());
    let rest = async { while stalled.chunk().await.unwrap().is_some() {} };
    assert!(tokio::time::timeout(Duration::from_millis(50), rest).await.is_err());
    let part = Part::text(lines(1)).file_name("a.jsonl");
    assert_eq!(server.upload(Form::new().text("purpose", "batch").part("file", part)).await.0, 500);
    assert_eq!(server.get("/v1/files").await.1["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn planned_batches_go_wrong_as_planned() {
    let folder = tempfile::tempdir().unwrap();
    let plan = json!({"batches": [
        {"fault": "fail", "code": "token_limit_exceeded", "times": 2},
        {"fault": "invisible", "lists": 2, "nth": 3},
        {"fault": "null_output", "polls": 1, "nth": 3},
        {"fault": "skip_states", "nth": 3},
        {"fault": "expire", "share": 0.5, "nth": 4},
    ]});
    let server = start_with_faults(folder.path(), plan).await;
    let mut batches = Vec::new();
    for _ in 0..4 {
        batches.push(server.batch(&lines(30)).await);
    }
    for expected in [3, 3, 4] {
        assert_eq!(server.get("/v1/batches").await.1["data"].as_array().unwrap().len(), expected);
    }
    server.pass(60);
    for failed in &batches[..2] {
        assert_eq!(server.show(failed).await["errors"]["data"][0]["code"], "token_limit_exceeded");
    }
    assert_eq!(server.show(&batches[2]).await["status"], "validating");
    let expired = server.show(&batches[3]).await;
    assert_eq!(expired["status"], "expired");
    server.pass(60);
    let lagging = server.show(&batches[2]).await;
    assert_eq!((lagging["status"].as_str(), &lagging["output_file_id"]), (Some("completed"), &Value::Null));
    assert!(server.show(&batches[2]).await["output_file_id"].is_string());
}

#[tokio::test]
async fn planned_lines_go_wrong_as_planned() {
    let folder = tempfile::tempdir().unwrap();
    let rule = |fault: Value, n: usize| {
        let mut rule = fault;
        rule["custom_ids"] = json!([format!("line-{n}")]);
        rule
    };
    let plan = json!({"lines": [
        rule(json!({"fault": "status", "status": 500}), 0),
        rule(json!({"fault": "status", "status": 0}), 1),
        rule(json!({"fault": "missing"}), 2),
        rule(json!({"fault": "corrupt"}), 3),
        rule(json!({"fault": "duplicate"}), 4),
        rule(json!({"fault": "error"}), 5),
        rule(json!({"fault": "length"}), 6),
        rule(json!({"fault": "stranger"}), 7),
        rule(json!({"fault": "bom"}), 8),
    ]});
    let server = start_with_faults(folder.path(), plan).await;
    let batch = server.batch(&lines(9)).await;
    server.pass(100);
    let done = server.show(&batch).await;
    let output = server.results(&done["output_file_id"]).await;
    let errors = server.results(&done["error_file_id"]).await;
    assert_eq!(errors["line-0"]["response"]["status_code"], 500);
    assert!(errors["line-0"]["error"].is_null());
    assert_eq!(output["line-1"]["response"]["status_code"], 0);
    assert!(
        !output.contains_key("line-2") && !errors.contains_key("line-2") && !output.contains_key("line-3")
    );
    assert_eq!(errors["line-5"]["error"]["code"], "request_timeout");
    assert_eq!(output["line-6"]["response"]["body"]["choices"][0]["finish_reason"], "length");
    assert!(output.keys().any(|id| id.starts_with("stranger-")));
    let runs = runs(folder.path(), &batch);
    assert_eq!(runs.len(), 7);
    assert!(runs.values().all(|count| *count == 1));
}

#[tokio::test]
async fn too_many_enqueued_tokens_fail_a_batch_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_with(folder.path(), 0, |options| options.enqueued_token_limit = Some(25)).await;
    let (first, second) = (server.batch(&lines(2)).await, server.batch(&lines(2)).await);
    server.pass(20);
    assert_eq!(server.show(&first).await["status"], "in_progress");
    let refused = server.show(&second).await;
    assert_eq!(refused["errors"]["data"][0]["code"], "token_limit_exceeded");
    assert!(refused["errors"]["data"][0]["line"].is_null());
    server.pass(100);
    assert_eq!(server.show(&first).await["status"], "completed");
    let third = server.batch(&lines(2)).await;
    server.pass(20);
    assert_eq!(server.show(&third).await["status"], "in_progress");
}
