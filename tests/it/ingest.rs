//! Ingest: what is taken, what is known already, what is refused and how that is told.

mod bodies;

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Call, DEMO, Nightshift, body_in_pieces, golden, with_a_creator, with_actors};

const REQUESTS: &str = "/api/v1/companies/demo/requests";
const SESSIONS: &str = "/api/v1/companies/demo/sessions";
const LINES: &str = "application/x-ndjson";

fn line(id: Option<&str>, text: &str) -> Value {
    let body = json!({ "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": text }] });
    match id {
        Some(id) => json!({ "id": id, "body": body }),
        None => json!({ "body": body }),
    }
}

/// Accepted, duplicate, rejected.
fn counts(reply: &Value) -> [u64; 3] {
    ["accepted", "duplicate", "rejected"].map(|name| reply[name].as_u64().unwrap())
}

async fn send(nightshift: &Nightshift, body: &Value) -> Value {
    nightshift.call(Call::json(REQUESTS, body)).await.good()
}

async fn send_lines(nightshift: &Nightshift, path: &str, body: String) -> Value {
    nightshift.call(Call::post(path, LINES, body)).await.good()
}

async fn pending(nightshift: &Nightshift) -> u64 {
    let summary = nightshift.get("/api/admin/legacy/summary").await;
    summary["summary"]["pending_batching"].as_u64().unwrap()
}

/// The view of the one request that a reply names.
async fn show(nightshift: &Nightshift, reply: &Value) -> Value {
    let id = reply["requests"][0]["id"].as_str().unwrap();
    let shown = nightshift.get(&format!("/api/admin/legacy/requests/{id}")).await;
    shown["request"].clone()
}

/// The code and the detail with which a single request is refused.
async fn refusal(nightshift: &Nightshift, status: u16, call: Call) -> (String, String) {
    let reply = nightshift.call(call).await;
    let code = reply.problem(status).to_owned();
    (code, reply.body["detail"].as_str().unwrap().to_owned())
}

#[test]
fn an_object_an_array_and_lines_are_taken_alike() {
    with_actors(async |nightshift| {
        let one = send(&nightshift, &line(Some("a"), "one")).await;
        assert_eq!(counts(&one), [1, 0, 0]);
        assert_eq!(one["errors"], json!([]));
        let many = send(&nightshift, &json!([line(Some("b"), "two"), line(Some("c"), "three")])).await;
        assert_eq!(counts(&many), [2, 0, 0]);
        let lines = format!("{}\n{}\n", line(Some("d"), "four"), line(Some("e"), "five"));
        for content_type in [LINES, "application/jsonl", "Application/X-NDJSON; charset=utf-8"] {
            let call = Call::post(REQUESTS, content_type, lines.clone());
            let reply = nightshift.call(call).await.good();
            assert_eq!(counts(&reply).iter().sum::<u64>(), 2);
        }
        assert_eq!(pending(&nightshift).await, 5);
        assert_eq!(counts(&send(&nightshift, &json!([])).await), [0, 0, 0]);
        let shown = show(&nightshift, &one).await;
        assert_eq!(shown["clientId"], "a");
        assert_eq!(shown["sessionId"], Value::Null);
        assert_eq!(shown["endpoint"], "/v1/chat/completions");
    });
}

#[test]
fn a_company_sends_its_own_requests() {
    with_actors(async |nightshift| {
        let call = Call::json(REQUESTS, &line(Some("a"), "one")).token(DEMO);
        assert_eq!(counts(&nightshift.call(call).await.good()), [1, 0, 0]);
    });
}

#[test]
fn bad_lines_in_the_middle_are_told_by_their_number_and_stop_nothing() {
    with_actors(async |nightshift| {
        let lines = [
            line(Some("a"), "one").to_string(),
            "{\"body\":".to_owned(),
            String::new(),
            json!({ "id": "b", "bodi": {} }).to_string(),
            line(Some("c"), "two").to_string() + "\r",
            json!({ "id": "d", "body": { "model": "m", "messages": [{}], "stream": true } }).to_string(),
            "x".repeat((4 << 20) + 1),
            // Bytes that are no UTF-8 come further down: this one is JSON, but no object.
            "[1]".to_owned(),
            line(Some("e"), "three").to_string(),
        ];
        let mut body = lines.join("\n").into_bytes();
        body.extend_from_slice(b"\n{\"id\":\"\xff\",\"body\":{}}");
        let reply = nightshift.call(Call::post(REQUESTS, LINES, body)).await.good();
        assert_eq!(counts(&reply), [3, 0, 6]);
        let told = |list: &str, name: &str| -> Vec<Value> {
            reply[list].as_array().unwrap().iter().map(|entry| entry[name].clone()).collect()
        };
        assert_eq!(told("errors", "line"), [2, 4, 6, 7, 8, 10]);
        assert_eq!(
            told("errors", "code"),
            [
                "invalid_json",
                "invalid_request",
                "invalid_request",
                "too_large",
                "invalid_request",
                "invalid_json"
            ]
        );
        assert_eq!(told("requests", "line"), [1, 5, 9]);
        assert_eq!(pending(&nightshift).await, 3);
    });
}

#[test]
fn the_same_id_with_the_same_content_is_a_duplicate_and_with_other_content_a_conflict() {
    with_actors(async |nightshift| {
        let first = send(&nightshift, &line(Some("a"), "one")).await;
        let again = send(&nightshift, &line(Some("a"), "one")).await;
        assert_eq!(counts(&again), [0, 1, 0]);
        assert_eq!(again["requests"][0]["id"], first["requests"][0]["id"]);
        assert_eq!(again["requests"][0]["outcome"], "duplicate");
        let call = Call::json(REQUESTS, &line(Some("a"), "other"));
        let (code, detail) = refusal(&nightshift, 409, call).await;
        assert_eq!(code, "conflict");
        assert!(detail.contains(first["requests"][0]["id"].as_str().unwrap()), "{detail}");
        // Among many it is one line's matter, also where both come in one call.
        let many =
            json!([line(Some("b"), "x"), line(Some("b"), "x"), line(Some("b"), "y"), line(Some("a"), "z")]);
        let reply = send(&nightshift, &many).await;
        assert_eq!(counts(&reply), [1, 1, 2]);
        assert_eq!(reply["errors"][0]["line"], 3);
        assert_eq!(reply["errors"][1]["code"], "conflict");
        // Another company's ids are its own.
        let call = Call::json("/api/v1/companies/acme/requests", &line(Some("a"), "other"));
        assert_eq!(counts(&nightshift.call(call).await.good()), [1, 0, 0]);
        assert_eq!(pending(&nightshift).await, 3);
    });
}

#[test]
fn the_same_in_another_spelling_is_a_duplicate_and_another_priority_a_conflict() {
    with_actors(async |nightshift| {
        let line = |body: &str, more: &str| format!(r#"{{"id":"a","body":{body}{more}}}"#);
        let body = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hi"}],"temperature":1}"#;
        let turned = r#"{ "temperature": 1, "messages": [{"content":"\u0048i","role":"user"}], "model":"gpt-4o-mini" }"#;
        for (text, expected) in [
            (line(body, ""), [1, 0, 0]),
            (line(body, ""), [0, 1, 0]),
            (line(turned, ""), [0, 1, 0]),
            (line(&body.replace("Hi", "hi"), ""), [0, 0, 1]),
            (line(&body.replace(":1}", ":1.5}"), ""), [0, 0, 1]),
            (line(body, r#","priority":9"#), [0, 0, 1]),
            (line(body, r#","notBefore":"2030-01-01T00:00:00Z""#), [0, 0, 1]),
            (line(body, r#","metadata":{"a":"b"}"#), [0, 0, 1]),
        ] {
            assert_eq!(counts(&send_lines(&nightshift, REQUESTS, text.clone()).await), expected, "{text}");
        }
    });
}

#[test]
fn a_list_is_no_object_wherever_one_is_expected() {
    with_actors(async |nightshift| {
        let request = r#"["a",null,{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hi"}]},null,null,null]"#;
        let reply = send_lines(&nightshift, REQUESTS, request.to_owned()).await;
        assert_eq!((counts(&reply), &reply["errors"][0]["code"]), ([0, 0, 1], &json!("invalid_request")));
        let session = r#"{"externalId":"a","messages":[["user","hi",null]]}"#;
        let reply = send_lines(&nightshift, SESSIONS, session.to_owned()).await;
        assert_eq!(counts(&reply), [0, 0, 1]);
        assert!(reply["errors"][0]["detail"].as_str().unwrap().contains("expected an object"), "{reply}");
        let company = Call::json("/api/admin/legacy/companies", &json!(["new", null, null]));
        assert_eq!(nightshift.call(company).await.problem(422), "invalid_body");
    });
}

#[test]
fn a_call_of_sessions_that_is_repeated_changes_nothing_that_came_since() {
    with_actors(async |nightshift| {
        let call = |key: &str, body: &Value| Call::json(SESSIONS, body).header("idempotency-key", key);
        let (one, two) = (session("s", "one"), session("s", "two"));
        assert_eq!(counts(&nightshift.call(call("k1", &one)).await.good()), [1, 0, 0]);
        assert_eq!(counts(&nightshift.call(call("k2", &two)).await.good()), [1, 0, 0]);
        assert_eq!(counts(&nightshift.call(call("k1", &one)).await.good()), [0, 1, 0]);
        let version = async || nightshift.get(&format!("{SESSIONS}/s")).await["session"]["version"].clone();
        assert_eq!(version().await, 2);
        // The same key for something else is a mistake, whatever it is that differs.
        let mut facts = one.clone();
        facts["country"] = json!("NL");
        for other in [&two, &facts, &session("t", "one")] {
            assert_eq!(nightshift.call(call("k1", other)).await.problem(409), "conflict", "{other}");
        }
        // A key of requests is not one of sessions.
        let request = Call::json(REQUESTS, &line(None, "x")).header("idempotency-key", "k1");
        assert_eq!(counts(&nightshift.call(request).await.good()), [1, 0, 0]);
        let store = nightshift.store();
        assert!(store.verify().await.unwrap().is_whole());
        nightshift.clock.advance(Duration::from_secs(24 * 3600));
        while store.forget_keys(nightshift.now()).await.unwrap() > 0 {}
        assert!(store.verify().await.unwrap().is_whole());
        assert_eq!(counts(&nightshift.call(call("k1", &one)).await.good()), [1, 0, 0]);
        assert_eq!(version().await, 3, "its day is over");
    });
}

#[test]
fn an_idempotency_key_stands_for_the_ids_that_lines_do_not_have() {
    with_actors(async |nightshift| {
        let body = format!("{}\n{}\n{}", line(None, "one"), line(Some("own"), "two"), line(None, "three"));
        let call = |key: &str, body: &str| Call::post(REQUESTS, LINES, body).header("idempotency-key", key);
        let first = nightshift.call(call("k1", &body)).await.good();
        assert_eq!(counts(&first), [3, 0, 0]);
        let again = nightshift.call(call("k1", &body)).await.good();
        assert_eq!(counts(&again), [0, 3, 0]);
        let other = nightshift.call(call("k2", &body)).await.good();
        assert_eq!(counts(&other), [2, 1, 0]);
        let changed = body.replace("three", "four");
        assert_eq!(counts(&nightshift.call(call("k1", &changed)).await.good()), [0, 2, 1]);
        // A key is not sent, so nothing tells a repeat: each line is new.
        for _ in 0..2 {
            assert_eq!(counts(&send(&nightshift, &line(None, "one")).await), [1, 0, 0]);
        }
        for key in ["", &"k".repeat(257)] {
            let (code, _) = refusal(&nightshift, 422, call(key, &body)).await;
            assert_eq!(code, "bad_idempotency_key");
        }
    });
}

#[test]
fn what_is_no_request_is_refused_with_its_reason() {
    with_actors(async |nightshift| {
        let messages = json!([{ "role": "user", "content": "x" }]);
        let with = |body: Value| json!({ "body": body });
        let and = |name: &str, value: Value| {
            let mut line = line(None, "x");
            line[name] = value;
            line
        };
        let refused = [
            (
                with(json!({ "model": "m", "messages": messages, "stream": true })),
                "body.stream cannot be used",
            ),
            (with(json!({ "messages": messages })), "body.model is missing"),
            (with(json!({ "model": "", "messages": messages })), "body.model must be a text"),
            (with(json!({ "model": 4, "messages": messages })), "body.model must be a text"),
            (with(json!({ "model": "m" })), "body.messages is missing"),
            (with(json!({ "model": "m", "messages": [] })), "body.messages must be a list of at least one"),
            (
                with(json!({ "model": "m", "messages": ["x"] })),
                "body.messages must be a list of at least one",
            ),
            (with(json!("text")), "body must be an object"),
            (json!({ "id": "a" }), "missing field `body`"),
            (and("stream", json!(false)), "unknown field `stream`"),
            (and("id", json!("")), "id must have 1 to 256 characters"),
            (and("id", json!("x".repeat(257))), "id must have 1 to 256 characters"),
            (and("endpoint", json!("/v1/images")), "endpoint must be one of /v1/chat/completions"),
            (and("priority", json!(200)), "priority must be a whole number from -128 to 127"),
            (and("priority", json!(1.5)), "priority must be a whole number from -128 to 127"),
            (and("notBefore", json!("tomorrow")), "notBefore must be a time"),
            (and("metadata", json!({ "a": 1 })), "expected a string"),
            (and("metadata", json!({ "a": "x".repeat(17_000) })), "metadata is longer than"),
            (json!({ "endpoint": "/v1/embeddings", "body": { "model": "m" } }), "body.input is missing"),
            (
                json!({ "endpoint": "/v1/responses", "body": { "model": "m", "input": "" } }),
                "body.input must",
            ),
            (
                json!({ "endpoint": "/v1/responses", "body": { "model": "m", "input": [1, 2] } }),
                "body.input must",
            ),
            (
                json!({ "endpoint": "/v1/responses", "body": { "model": "m", "prompt": "pmpt_1" } }),
                "body.prompt must be an object",
            ),
            (
                json!({ "endpoint": "/v1/responses", "body": { "model": "m", "prompt": { "id": 1 } } }),
                "body.prompt must be an object",
            ),
            (
                json!({ "endpoint": "/v1/responses", "body": { "model": "m", "prompt": null } }),
                "body.input is missing",
            ),
        ];
        for (line, expected) in refused {
            let (code, detail) = refusal(&nightshift, 422, Call::json(REQUESTS, &line)).await;
            assert_eq!(code, "invalid_request", "{line}");
            assert!(detail.contains(expected), "{line}: {detail}");
            // The line number inside a line means nothing to whoever sent a file.
            assert!(!detail.contains("at line"), "{detail}");
        }
        assert_eq!(pending(&nightshift).await, 0);
    });
}

#[test]
fn what_is_allowed_beside_the_usual_is_taken() {
    with_actors(async |nightshift| {
        let taken = json!([
            { "endpoint": "/v1/embeddings", "body": { "model": "m", "input": ["a", "b"] } },
            { "endpoint": "/v1/responses", "body": { "model": "m", "input": "a" } },
            { "endpoint": "/v1/responses", "body": { "model": "m", "prompt": { "id": "pmpt_1" } } },
            { "endpoint": "/v1/responses", "body": { "model": "m", "input": [{ "role": "user", "content": "a" }] } },
            { "body": { "model": "m", "messages": [{}], "stream": false, "something_new": 1 } },
            { "priority": -128, "body": { "model": "m", "messages": [{}] } },
        ]);
        let reply = send(&nightshift, &taken).await;
        assert_eq!(counts(&reply), [6, 0, 0], "{reply}");
    });
}

#[test]
fn an_error_within_an_entry_of_several_lines_says_on_which_one() {
    with_actors(async |nightshift| {
        let entry = "{\n  \"body\": {},\n  \"stream\": true\n}";
        for (body, detail) in
            [(entry.to_owned(), "(line 3 of it, column 10)"), (entry.replace('\n', ""), "(column 24)")]
        {
            let call = Call::post(REQUESTS, "application/json", body);
            let (code, told) = refusal(&nightshift, 422, call).await;
            assert_eq!(code, "invalid_request");
            assert!(told.ends_with(detail), "{told}");
        }
    });
}

#[test]
fn what_some_readers_take_for_a_line_end_is_escaped_and_the_same_body_is_known_again() {
    with_actors(async |nightshift| {
        let line =
            "{\"id\":\"a\",\"body\":{\"model\":\"m\",\"messages\":[{\"x\":\"1\u{2028}2\u{2029}3\u{85}4\"}]}}";
        for expected in [[1, 0, 0], [0, 1, 0]] {
            let call = Call::post(REQUESTS, LINES, line);
            let reply = nightshift.call(call).await.good();
            assert_eq!(counts(&reply), expected, "{reply}");
            let id = reply["requests"][0]["id"].as_str().unwrap().parse().unwrap();
            let body = nightshift.store().reader().body(id).unwrap().unwrap();
            assert_eq!(
                String::from_utf8(body).unwrap(),
                r#"{"model":"m","messages":[{"x":"1\u20282\u20293\u00854"}]}"#
            );
        }
    });
}

#[test]
fn a_body_that_cannot_be_read_at_all_is_an_error_of_the_call() {
    with_actors(async |nightshift| {
        let to = |path: &str, content_type: &str, body: &str| Call::post(path, content_type, body);
        let one = line(None, "x").to_string();
        let mut errors = serde_json::Map::new();
        for (name, status, call) in [
            ("unknown_company", 404, to("/api/v1/companies/none/requests", LINES, &one)),
            ("company_that_can_be_none", 404, to("/api/v1/companies/a%2Fb/requests", LINES, &one)),
            ("unknown_company_of_sessions", 404, to("/api/v1/companies/none/sessions", LINES, &one)),
            ("with_put", 405, Call::json(REQUESTS, &json!({})).method("PUT")),
            ("wrong_content_type", 415, to(REQUESTS, "text/csv", &one)),
            ("no_content_type", 415, Call::new("POST", REQUESTS)),
            ("not_json", 400, to(REQUESTS, "application/json", "{\"body\"")),
            ("no_body", 400, to(REQUESTS, "application/json", "")),
            ("array_that_does_not_end", 400, to(REQUESTS, "application/json", "[{}")),
            ("too_large", 413, to(REQUESTS, "application/json", &" ".repeat((16 << 20) + 1))),
        ] {
            let reply = nightshift.call(call).await;
            reply.problem(status);
            errors.insert(name.to_owned(), reply.body);
        }
        golden("errors_of_ingest", &Value::Object(errors));
    });
}

#[test]
fn three_thousand_lines_are_taken_in_one_stream_and_once() {
    with_actors(async |nightshift| {
        let lines: Vec<_> = (0..3000)
            .map(|number| line(Some(&format!("r{number}")), &number.to_string()).to_string())
            .collect();
        let reply = send_lines(&nightshift, REQUESTS, lines.join("\n")).await;
        assert_eq!(counts(&reply), [3000, 0, 0]);
        assert_eq!(reply.get("requests"), None, "a reply to so many names none of them");
        let again = send_lines(&nightshift, REQUESTS, lines.join("\n")).await;
        assert_eq!(counts(&again), [0, 3000, 0]);
        assert_eq!(pending(&nightshift).await, 3000);
    });
}

#[test]
fn of_many_bad_lines_all_are_counted_and_a_thousand_are_told() {
    with_actors(async |nightshift| {
        let reply = send_lines(&nightshift, REQUESTS, "{}\n".repeat(1500)).await;
        assert_eq!(counts(&reply), [0, 0, 1500]);
        let errors = reply["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 1000);
        assert_eq!(errors[999]["line"], 1000);
    });
}

#[test]
fn not_before_in_the_future_keeps_a_request_waiting() {
    with_actors(async |nightshift| {
        let later = nightshift.now().plus(Duration::from_secs(3600));
        let mut request = line(Some("later"), "x");
        request["notBefore"] = json!(later.to_string());
        let reply = send(&nightshift, &request).await;
        assert_eq!(show(&nightshift, &reply).await["notBefore"], later.to_string());
        let waiting =
            || nightshift.shared.reader.waiting().unwrap().iter().map(|g| g.waiting.requests).sum::<u64>();
        let release = async || nightshift.store().release_due(nightshift.now()).await.unwrap();
        nightshift.clock.advance(Duration::from_secs(3599));
        assert_eq!((release().await, waiting()), (0, 0));
        nightshift.clock.advance(Duration::from_secs(1));
        assert_eq!((release().await, waiting()), (1, 1));
        assert_eq!(show(&nightshift, &reply).await["notBefore"], Value::Null);
        // One in the past does not hold anything back.
        request["id"] = json!("now");
        let reply = send(&nightshift, &request).await;
        assert_eq!(show(&nightshift, &reply).await["notBefore"], Value::Null);
        assert_eq!(waiting(), 2);
    });
}

#[test]
fn metadata_and_priority_are_shown_back() {
    with_actors(async |nightshift| {
        let mut request = line(Some("a"), "x");
        request["metadata"] = json!({ "b": "2", "a": "ä \" \\ \n" });
        request["priority"] = json!(7);
        let reply = send(&nightshift, &request).await;
        let shown = show(&nightshift, &reply).await;
        assert_eq!(shown["metadata"], request["metadata"]);
        assert_eq!(shown["priority"], 7);
        // It is part of what the request is.
        request["metadata"]["b"] = json!("3");
        let (code, _) = refusal(&nightshift, 409, Call::json(REQUESTS, &request)).await;
        assert_eq!(code, "conflict");
    });
}

fn session(id: &str, text: &str) -> Value {
    json!({
        "externalId": id,
        "startedAt": "2026-11-23T10:00:00Z",
        "language": "nl",
        "messages": [
            { "role": "user", "content": text, "at": "2026-11-23T10:00:01+01:00" },
            { "role": "assistant", "content": "b" },
        ],
    })
}

#[test]
fn a_session_that_is_sent_again_is_a_duplicate_and_a_changed_one_is_taken_again() {
    with_actors(async |nightshift| {
        let both = format!("{}\n{}\n", session("s1", "a"), session("s2", "a"));
        let first = send_lines(&nightshift, SESSIONS, both.clone()).await;
        assert_eq!(counts(&first), [2, 0, 0]);
        assert_eq!(first["updated"], 0);
        assert_eq!(counts(&send_lines(&nightshift, SESSIONS, both).await), [0, 2, 0]);
        let changed = nightshift.call(Call::json(SESSIONS, &session("s1", "c"))).await.good();
        assert_eq!(counts(&changed), [1, 0, 0]);
        let view = nightshift.get(&format!("{SESSIONS}/s1")).await;
        assert_eq!(view["session"]["version"], 2);
        assert_eq!(view["session"]["state"], "settling");
        // Other facts around the same messages ask for no other analysis.
        let mut facts = session("s2", "a");
        facts["country"] = json!("NL");
        let updated = nightshift.call(Call::json(SESSIONS, &facts)).await.good();
        assert_eq!((counts(&updated), &updated["updated"]), ([0, 0, 0], &json!(1)));
        assert_eq!(nightshift.get(&format!("{SESSIONS}/s2")).await["session"]["version"], 1);
    });
}

#[test]
fn a_session_without_messages_says_so_and_blocks_nothing() {
    with_actors(async |nightshift| {
        let sessions = json!([
            { "externalId": "empty", "messages": [] },
            { "externalId": "missing", "messages": null },
            session("a/b c", "x"),
        ]);
        let reply = nightshift.call(Call::json(SESSIONS, &sessions)).await.good();
        assert_eq!(counts(&reply), [3, 0, 0]);
        for (id, state) in [("empty", "empty"), ("missing", "transcript_missing"), ("a%2Fb%20c", "settling")]
        {
            let view = nightshift.get(&format!("{SESSIONS}/{id}")).await;
            assert_eq!(view["session"]["state"], state);
        }
    });
}

#[test]
fn what_is_no_session_is_refused_with_its_reason() {
    with_actors(async |nightshift| {
        for (line, expected) in [
            (json!({ "messages": [] }), "missing field `externalId`"),
            (json!({ "externalId": "" }), "externalId must have 1 to 256 characters"),
            (json!({ "externalId": "a", "startedAt": "24.11.2026" }), "startedAt must be a time"),
            (json!({ "externalId": "a", "message": [] }), "unknown field `message`"),
            (json!({ "externalId": "a", "facts": { "x": 1 } }), "unknown field `x`"),
            (
                json!({ "externalId": "a", "messages": [{ "role": "bot", "content": "" }] }),
                "role must be user",
            ),
        ] {
            let (_, detail) = refusal(&nightshift, 422, Call::json(SESSIONS, &line)).await;
            assert!(detail.contains(expected), "{line}: {detail}");
        }
    });
}

#[test]
fn a_body_keeps_its_order_its_digits_and_its_place_in_one_line() {
    with_actors(async |nightshift| {
        let body = "{\n\"model\":\"m\",\n\"zebra\":1,\"apple\":0.10000000000000000555,\"seed\":12345678901234567890123,\
             \n\"messages\":[{\"role\":\"user\",\"content\":\"a\\nb\"}]}";
        let call = Call::post(REQUESTS, "application/json", format!("{{\"id\":\"x\",\"body\":{body}}}"));
        let reply = nightshift.call(call).await.good();
        let id = reply["requests"][0]["id"].as_str().unwrap().parse().unwrap();
        let stored = nightshift.store().reader().body(id).unwrap().unwrap();
        assert_eq!(String::from_utf8(stored.clone()).unwrap(), body);
        let endpoint = nightshift::domain::request::Endpoint::ChatCompletions;
        let line = nightshift::provider::jsonl::input_line(id, endpoint, body);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let line = String::from_utf8(line).unwrap();
        assert!(
            line.contains("\"zebra\":1,\"apple\":0.10000000000000000555,\"seed\":12345678901234567890123"),
            "{line}"
        );
    });
}

#[test]
fn what_is_nested_too_deep_and_an_array_of_too_many_entries_are_refused() {
    with_actors(async |nightshift| {
        let deep = format!("{}1{}", "[".repeat(120), "]".repeat(120));
        let body = format!("{{\"body\":{{\"model\":\"m\",\"messages\":[{{}}],\"deep\":{deep}}}}}");
        let (_, detail) = refusal(&nightshift, 422, Call::post(REQUESTS, "application/json", body)).await;
        assert!(detail.contains("deep"), "{detail}");
        let many = format!("[{}0]", "0,".repeat(100_000));
        let (code, detail) = refusal(&nightshift, 413, Call::post(REQUESTS, "application/json", many)).await;
        assert_eq!(code, "too_large");
        assert!(detail.contains("x-ndjson"), "{detail}");
    });
}

#[test]
fn an_export_is_taken_as_csv_with_its_bad_rows_named() {
    with_actors(async |nightshift| {
        let row = |id: &str, start: &str, transcript: &str| {
            format!("{id},{start},01.02.2026 10:05:00,,NL,nl,1,,,,{transcript},1,1,0,,hello\n")
        };
        let start = "01.02.2026 10:00:00";
        let body = row("a", start, "") + &row("b", "yesterday", "") + &row("c", start, "c.txt");
        let csv = |body: &str| Call::post(SESSIONS, "text/csv; charset=utf-8", body);
        let reply = nightshift.call(csv(&body)).await.good();
        assert_eq!((counts(&reply), &reply["updated"]), ([2, 0, 1], &json!(0)), "{reply}");
        assert_eq!(
            (&reply["errors"][0]["line"], &reply["errors"][0]["code"]),
            (&json!(2), &json!("invalid_row"))
        );
        assert!(reply["errors"][0]["detail"].as_str().unwrap().contains("start_time"), "{reply}");
        let shown = nightshift.get(&format!("{SESSIONS}/a")).await;
        assert_eq!(
            (&shown["session"]["state"], &shown["session"]["startedAt"]),
            (&json!("empty"), &json!("2026-02-01T10:00:00.000Z"))
        );
        let again = nightshift.call(csv(&body)).await.good();
        assert_eq!(counts(&again), [0, 2, 1]);
        let refused = nightshift.call(Call::post(REQUESTS, "text/csv", body)).await;
        assert_eq!(refused.problem(415), "unsupported_media_type");
    });
}

#[test]
fn metadata_of_a_session_is_kept_and_a_change_of_it_is_an_update() {
    with_actors(async |nightshift| {
        let with = |pairs: Value| {
            let mut session = session("m-1", "hello");
            session["metadata"] = pairs;
            Call::json(SESSIONS, &session)
        };
        assert_eq!(counts(&nightshift.call(with(json!({"team": "blue"}))).await.good()), [1, 0, 0]);
        let changed = nightshift.call(with(json!({"team": "red"}))).await.good();
        assert_eq!((counts(&changed), &changed["updated"]), ([0, 0, 0], &json!(1)));
        let shown = nightshift.get(&format!("{SESSIONS}/m-1")).await;
        assert_eq!(shown["session"]["metadata"], json!({"team": "red"}));
        for bad in [json!({"a": 1}), json!("text"), json!({"a": "x".repeat(5000)})] {
            assert_eq!(nightshift.call(with(bad)).await.problem(422), "invalid_request");
        }
    });
}

#[test]
fn an_idempotency_key_is_known_for_a_day_and_then_it_is_a_new_one() {
    with_actors(async |nightshift| {
        let call = |text: &str| {
            let body = format!("{}\n{}\n", line(None, text), line(None, "the second"));
            Call::post(REQUESTS, "application/x-ndjson", body).header("idempotency-key", "k")
        };
        let send = async |text: &str| counts(&nightshift.call(call(text)).await.good());
        assert_eq!(send("one").await, [2, 0, 0]);
        nightshift.clock.advance(Duration::from_secs(24 * 3600 - 1));
        assert_eq!(send("one").await, [0, 2, 0]);
        assert_eq!(send("another").await, [0, 1, 1]);
        nightshift.clock.advance(Duration::from_secs(1));
        assert_eq!(send("another").await, [2, 0, 0]);
        assert_eq!(send("another").await, [0, 2, 0]);
        let store = nightshift.store();
        assert!(store.forget_keys(nightshift.now()).await.unwrap() <= 1, "they are in use again");
        assert_eq!(send("another").await, [0, 2, 0]);
        nightshift.clock.advance(Duration::from_secs(25 * 3600));
        let mut forgotten = 0;
        loop {
            match store.forget_keys(nightshift.now()).await.unwrap() {
                0 => break,
                some => forgotten += some,
            }
        }
        println!("{forgotten} forgotten");
        assert!(store.verify().await.unwrap().is_whole());
        assert_eq!(send("a third").await, [2, 0, 0]);
    });
}

#[test]
fn every_reply_says_how_much_may_still_be_sent_and_what_is_too_much_is_told_with_the_time_to_wait() {
    with_actors(async |nightshift| {
        let reply = nightshift.call(Call::json(REQUESTS, &line(Some("q"), "one"))).await;
        let policy = "\"calls\";q=600;w=60, \"bytes\";q=1073741824;qu=\"content-bytes\";w=3600";
        assert_eq!(reply.header("ratelimit-policy"), Some(policy));
        assert!(reply.header("ratelimit").unwrap().starts_with("\"calls\";r=599;t=60, \"bytes\";r=10737"));
        for _ in 1..600 {
            nightshift.call(Call::json(REQUESTS, &line(Some("q"), "one"))).await.good();
        }
        let refused = nightshift.call(Call::json(REQUESTS, &line(Some("q"), "one"))).await;
        assert_eq!((refused.problem(429), refused.header("retry-after")), ("rate_limited", Some("60")));
        assert!(refused.header("ratelimit").unwrap().starts_with("\"calls\";r=0;t=60"));
        let other =
            nightshift.call(Call::json("/api/v1/companies/acme/requests", &line(Some("q"), "one"))).await;
        other.good();
        nightshift.clock.advance(Duration::from_secs(60));
        nightshift.call(Call::json(REQUESTS, &line(Some("q"), "one"))).await.good();
    });
}

#[test]
fn inputs_of_embeddings_are_counted_and_empty_ones_refused() {
    with_actors(async |nightshift| {
        let body =
            |input: Value| json!({"endpoint": "/v1/embeddings", "body": {"model": "m", "input": input}});
        for good in [json!("a"), json!(["a", "b"]), json!([1, 2, 3]), json!([[1, 2], [3]])] {
            nightshift.call(Call::json(REQUESTS, &body(good))).await.good();
        }
        for bad in
            [json!(""), json!([]), json!(["a", ""]), json!([[]]), json!([["a"]]), json!([null]), json!({})]
        {
            let refused = nightshift.call(Call::json(REQUESTS, &body(bad.clone()))).await;
            assert_eq!(refused.problem(422), "invalid_request", "{bad}");
        }
    });
}

#[test]
fn lists_of_tokens_are_counted_and_too_long_ones_refused_with_place_and_remedy() {
    with_actors(async |nightshift| {
        let send = async |input: Value| {
            let body = json!({ "model": "m", "input": input });
            let line = json!({ "endpoint": "/v1/embeddings", "body": body });
            nightshift.call(Call::json(REQUESTS, &line)).await
        };
        let tokens = |count: usize| Value::from(vec![7; count]);
        let lists = |last: usize| {
            let mut lists = vec![tokens(8192); 36];
            lists.push(tokens(last));
            Value::from(lists)
        };
        // What is no list of tokens is not counted, however long it is.
        let text = json!(["river ".repeat(400_000), "lake"]);
        for good in [tokens(8192), json!(["a", tokens(8192)]), lists(300_000 - 36 * 8192), text] {
            send(good).await.good();
        }
        for (bad, detail) in [
            (
                tokens(8193),
                "body.input has 8193 tokens, and one input may have 8192: split it into several inputs",
            ),
            (
                json!([[1, 2], "a", tokens(8193)]),
                "body.input[2] has 8193 tokens, and one input may have 8192: split it into several inputs",
            ),
            (
                lists(300_001 - 36 * 8192),
                "body.input has 300001 tokens in all, and a request may have 300000: send its inputs as several requests",
            ),
        ] {
            let refused = send(bad).await;
            assert_eq!(refused.problem(422), "invalid_request");
            assert_eq!(refused.body["detail"], detail);
        }
    });
}

#[test]
fn requests_wait_for_a_hundred_models_and_not_for_more() {
    with_actors(async |nightshift| {
        let of = |model: usize| {
            let body =
                json!({ "model": format!("m{model}"), "messages": [{ "role": "user", "content": "x" }] });
            json!({ "id": format!("order-{model}"), "body": body }).to_string()
        };
        let lines: Vec<String> = (1..=102).map(of).collect();
        let reply = send_lines(&nightshift, REQUESTS, lines.join("\n")).await;
        assert_eq!((counts(&reply), &reply["errors"][0]["line"]), ([100, 0, 2], &json!(101)));
        assert_eq!(reply["errors"][1]["code"], "too_many_models");
        // What is there is told so, more for the same models are taken, and another company has its own hundred.
        let again = send_lines(&nightshift, REQUESTS, lines[..2].join("\n")).await;
        assert_eq!(counts(&again), [0, 2, 0]);
        let more = of(1).replace("order-1", "order-more");
        assert_eq!(counts(&send_lines(&nightshift, REQUESTS, more).await), [1, 0, 0]);
        let other = Call::post("/api/v1/companies/acme/requests", LINES, of(101));
        assert_eq!(counts(&nightshift.call(other).await.good()), [1, 0, 0]);
    });
}

#[test]
fn what_waits_for_its_time_comes_in_for_no_more_models_than_may_wait() {
    with_actors(async |nightshift| {
        let at = nightshift.now().plus(Duration::from_secs(60)).to_string();
        let of = |model: usize| {
            let body =
                json!({ "model": format!("m{model}"), "messages": [{ "role": "user", "content": "x" }] });
            json!({ "body": body, "notBefore": at }).to_string()
        };
        let lines: Vec<String> = (1..=130).map(of).collect();
        assert_eq!(counts(&send_lines(&nightshift, REQUESTS, lines.join("\n")).await), [130, 0, 0]);
        let (store, groups) = (nightshift.store(), || nightshift.shared.reader.waiting().unwrap().len());
        nightshift.clock.advance(Duration::from_secs(61));
        while store.release_due(nightshift.now()).await.unwrap() > 0 {}
        assert_eq!((groups(), pending(&nightshift).await), (100, 130));
        assert!(store.verify().await.unwrap().is_whole());
        // The others are looked at again, without end and without haste.
        nightshift.clock.advance(Duration::from_secs(601));
        while store.release_due(nightshift.now()).await.unwrap() > 0 {}
        assert_eq!((groups(), pending(&nightshift).await), (100, 130));
    });
}

#[test]
fn what_is_put_off_for_so_many_models_is_not_told_as_its_clients_wish() {
    with_a_creator(async |nightshift| {
        let at = nightshift.now().plus(Duration::from_secs(60)).to_string();
        let of = |model: usize| {
            let body =
                json!({ "model": format!("m{model}"), "messages": [{ "role": "user", "content": "x" }] });
            json!({ "body": body, "notBefore": at }).to_string()
        };
        let lines: Vec<String> = (1..=102).map(of).collect();
        let reply = send_lines(&nightshift, REQUESTS, lines.join("\n")).await;
        assert_eq!(counts(&reply), [102, 0, 0]);
        let waiting = async |number: usize| {
            let id = reply["requests"][number]["id"].as_str().unwrap();
            let shown = nightshift.get(&format!("{REQUESTS}/{id}/timeline")).await;
            shown["timeline"]["waiting"].clone()
        };
        let first = waiting(101).await;
        assert_eq!((&first["for"], &first["until"]), (&json!("not_before"), &json!(at)));
        nightshift.clock.advance(Duration::from_secs(61));
        let now = nightshift.now();
        while nightshift.store().release_due(now).await.unwrap() > 0 {}
        let mut told = Vec::new();
        for number in 0..102 {
            let waiting = waiting(number).await;
            if waiting["for"] != "count_or_age" {
                told.push((waiting["for"].clone(), waiting["since"].clone(), waiting["until"].clone()));
            }
        }
        let until = now.plus(Duration::from_secs(600)).to_string();
        let expected = (json!("too_many_models"), json!(now.to_string()), json!(until));
        assert_eq!(told, [expected.clone(), expected]);
    });
}
