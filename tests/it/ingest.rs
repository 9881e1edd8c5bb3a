//! What comes in over the API is stored once, or refused with its line and the reason.

use serde_json::{Value, json};

use crate::harness::{Harness, line, run};
use crate::process::TOKEN;

const REQUESTS: &str = "/api/v1/companies/acme/requests";
const SESSIONS: &str = "/api/v1/companies/acme/sessions";

fn request(id: &str, content: &str) -> Value {
    json!({"id": id, "endpoint": "/v1/chat/completions",
        "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}]}})
}

#[test]
fn an_object_an_array_and_lines_are_taken_alike() {
    run(async {
        let api = Harness::new().await;
        let one = api.post(REQUESTS, &request("a", "hi").to_string()).await;
        assert_eq!((one.status, &one.body["accepted"], &one.body["rejected"]), (200, &json!(1), &json!(0)));
        let many = json!([request("a", "hi"), request("b", "hi")]).to_string();
        let array = api.post(REQUESTS, &many).await.body;
        assert_eq!((&array["accepted"], &array["duplicate"]), (&json!(1), &json!(1)), "{array}");
        let lines = format!("{}\n\n{}\n", request("b", "hi"), request("c", "hi"));
        let lines = api.lines(REQUESTS, &lines).await.body;
        assert_eq!((&lines["accepted"], &lines["duplicate"]), (&json!(1), &json!(1)), "{lines}");
        assert_eq!(api.shared.reader.summary(None).unwrap(), [3, 0, 0, 0]);
    });
}

#[test]
fn a_bad_line_is_named_and_stops_nothing() {
    run(async {
        let api = Harness::new().await;
        let mut stream = json!({"id": "s", "body": {"model": "m", "messages": [{}], "stream": true}});
        stream["endpoint"] = json!("/v1/chat/completions");
        let body = [
            line("good-1"),
            "not json\n".to_owned(),
            "\n".to_owned(),
            format!("{stream}\n"),
            json!({"id": "m", "body": {"messages": [{}]}}).to_string() + "\n",
            json!({"id": "e", "body": {"model": "m", "messages": []}}).to_string() + "\n",
            json!({"id": "u", "body": {"model": "m", "messages": [{}]}, "priorty": 1}).to_string() + "\n",
            json!({"id": "p", "endpoint": "/v1/nope", "body": {"model": "m", "messages": [{}]}}).to_string()
                + "\n",
            "{\"id\":\"x\",\"body\":{\"model\":\"m\",\"messages\":[{\"content\":\"\\ud800\"}]}}\n".to_owned(),
            line("good-2"),
        ]
        .concat();
        let reply = api.lines(REQUESTS, &body).await;
        assert_eq!(reply.status, 200);
        assert_eq!(
            (&reply.body["accepted"], &reply.body["rejected"]),
            (&json!(2), &json!(7)),
            "{}",
            reply.body
        );
        let errors = reply.body["errors"].as_array().unwrap();
        let lines: Vec<_> = errors.iter().map(|error| error["line"].as_u64().unwrap()).collect();
        assert_eq!(lines, [2, 4, 5, 6, 7, 8, 9]);
        assert_eq!(errors[0]["code"], "invalid_json");
        for (error, part) in
            errors.iter().zip(["", "stream", "model", "messages", "priorty", "endpoint", "body"])
        {
            assert!(error["detail"].as_str().unwrap().contains(part), "{part}: {error}");
        }
    });
}

#[test]
fn the_same_key_with_other_content_is_a_conflict() {
    run(async {
        let api = Harness::new().await;
        api.post(REQUESTS, &request("a", "hi").to_string()).await;
        let single = api.post(REQUESTS, &request("a", "other").to_string()).await;
        assert_eq!((single.status, &single.body["code"]), (409, &json!("conflict")), "{}", single.body);
        let line = api.lines(REQUESTS, &format!("{}\n", request("a", "other"))).await.body;
        assert_eq!((&line["rejected"], &line["errors"][0]["code"]), (&json!(1), &json!("conflict")));
        // Another company's key is another key.
        let other = api.post("/api/v1/companies/beta/requests", &request("a", "other").to_string()).await;
        assert_eq!(other.body["accepted"], 1);
    });
}

#[test]
fn an_idempotency_key_makes_lines_without_ids_repeatable() {
    run(async {
        let api = Harness::new().await;
        let line = |content: &str| {
            json!({"body": {"model": "m", "messages": [{"content": content}]}}).to_string() + "\n"
        };
        let body = line("one") + &line("two");
        let send = async |key: Option<&'static str>, body: String| {
            let mut headers = vec![("content-type", "application/x-ndjson")];
            headers.extend(key.map(|key| ("idempotency-key", key)));
            let reply = api.call("POST", REQUESTS, Some(TOKEN), &headers, &body).await.body;
            (
                reply["accepted"].as_u64().unwrap(),
                reply["duplicate"].as_u64().unwrap(),
                reply["rejected"].as_u64().unwrap(),
            )
        };
        assert_eq!(send(Some("k"), body.clone()).await, (2, 0, 0));
        assert_eq!(send(Some("k"), body.clone()).await, (0, 2, 0));
        assert_eq!(send(Some("k"), line("two") + &line("one")).await, (0, 0, 2));
        assert_eq!(send(None, body.clone()).await, (2, 0, 0), "without a key each line is new");
    });
}

#[test]
fn what_cannot_be_taken_as_a_whole_is_refused_with_its_status() {
    run(async {
        let api = Harness::new().await;
        for (path, content_type, body, status, code) in [
            ("/api/v1/companies/nobody/requests", "application/json", "{}", 404, "unknown_company"),
            ("/api/v1/companies/a%2Fb/requests", "application/json", "{}", 404, "unknown_company"),
            (REQUESTS, "text/csv", "a,b", 415, "unsupported_media_type"),
            (REQUESTS, "application/json", "{", 400, "invalid_json"),
            (REQUESTS, "application/json", "{}", 422, "invalid_request"),
            (REQUESTS, "application/json", "7", 422, "invalid_request"),
        ] {
            let reply = api.call("POST", path, Some(TOKEN), &[("content-type", content_type)], body).await;
            assert_eq!(
                (reply.status, &reply.body["code"]),
                (status, &json!(code)),
                "{path} {body}: {}",
                reply.body
            );
        }
        let huge = format!("[{}]", "1,".repeat(9 << 20));
        let reply = api.post(REQUESTS, &huge).await;
        assert_eq!((reply.status, &reply.body["code"]), (413, &json!("too_large")));
        assert!(reply.body["detail"].as_str().unwrap().contains("x-ndjson"));
    });
}

#[test]
fn a_long_stream_is_stored_line_by_line() {
    run(async {
        let api = Harness::new().await;
        let body: String = (0..3000).map(|number| line(&format!("r{number}"))).collect();
        let reply = api.lines(REQUESTS, &body).await.body;
        assert_eq!(reply["accepted"], 3000);
        assert!(reply.get("requests").is_none(), "too many to be named");
        assert_eq!(api.lines(REQUESTS, &body).await.body["duplicate"], 3000);
        assert!(api.shared.reader.verify().unwrap().violations.is_empty());
    });
}

#[test]
fn metadata_priority_and_not_before_are_kept_and_shown() {
    run(async {
        let api = Harness::new().await;
        let mut request = request("a", "hi");
        request["metadata"] = json!({"order": "17"});
        request["priority"] = json!(5);
        request["notBefore"] = json!("2030-01-01T00:00:00Z");
        api.post(REQUESTS, &request.to_string()).await;
        let page = api.get("/api/admin/legacy/requests?status=pending_batching").await.body;
        let shown = &page["requests"][0];
        assert_eq!(shown["metadata"], json!({"order": "17"}));
        assert_eq!((&shown["priority"], &shown["clientId"]), (&json!(5), &json!("a")));
        assert_eq!(shown["notBefore"], "2030-01-01T00:00:00.000Z");
        assert!(api.shared.reader.waiting().unwrap().is_empty(), "it makes no group due");
    });
}

#[test]
fn a_session_is_taken_once_and_again_when_it_changed() {
    run(async {
        let api = Harness::new().await;
        let session = |text: &str| {
            json!({"externalId": "s1", "startedAt": "2026-11-01T10:00:00Z", "language": "nl",
            "messages": [{"role": "user", "content": text, "at": "2026-11-01T10:00:00Z"}]})
            .to_string()
        };
        assert_eq!(api.post(SESSIONS, &session("hi")).await.body["accepted"], 1);
        assert_eq!(api.post(SESSIONS, &session("hi")).await.body["duplicate"], 1);
        assert_eq!(api.post(SESSIONS, &session("hello")).await.body["accepted"], 1);
        let shown = api.get(&format!("{SESSIONS}/s1")).await.body;
        assert_eq!(
            (&shown["session"]["version"], &shown["session"]["messages"]),
            (&json!(2), &json!(1)),
            "{shown}"
        );
        let bad = api
            .post(SESSIONS, "{\"externalId\":\"s2\",\"messages\":[{\"role\":\"boss\",\"content\":\"x\"}]}")
            .await;
        assert_eq!(bad.status, 422);
        let empty = api.post(SESSIONS, "{\"externalId\":\"s3\",\"messages\":[]}").await;
        assert_eq!(empty.body["accepted"], 1);
        assert_eq!(api.get(&format!("{SESSIONS}/s3")).await.body["session"]["state"], "empty");
    });
}
