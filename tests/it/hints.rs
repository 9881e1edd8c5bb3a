//! What the provider says by itself: believed only with its signature, and a reason to ask at once.

use std::time::Duration;

use nightshift::clock::{Clock, SystemClock};
use nightshift::domain::id::Timestamp;
use nightshift::domain::webhook::signature::{SigningSecret, sign};
use serde_json::json;

use crate::harness::{Call, Nightshift, PROVIDER_SECRET, with_actors};
use crate::process::{Server, call, call_with, free_port};
use crate::trouble::bench::{Provider, assert_once, batches, command, folder, question, send, until};

const PATH: &str = "/webhooks/openai";

pub fn event(batch: &str) -> String {
    json!({
        "id": "evt_0001", "object": "event", "created_at": 1_790_000_000, "type": "batch.completed",
        "data": {"id": batch},
    })
    .to_string()
}

/// The three headers of a message of that time.
pub fn signed(id: &str, at: Timestamp, body: &str) -> [(&'static str, String); 3] {
    let secret = SigningSecret::of_provider(PROVIDER_SECRET).unwrap();
    let time = (at.as_millis() / 1000).to_string();
    let signature = sign([&secret].into_iter(), id, &time, body.as_bytes());
    [("webhook-id", id.to_owned()), ("webhook-timestamp", time), ("webhook-signature", signature)]
}

fn message(nightshift: &Nightshift, id: &str, body: &str) -> Call {
    let call = Call::post(PATH, "application/json", body).without_token();
    signed(id, nightshift.now(), body).iter().fold(call, |call, (name, value)| call.header(name, value))
}

#[test]
fn a_message_without_the_provider_s_signature_is_not_believed() {
    with_actors(async |nightshift| {
        let body = event("batch_1");
        let good = || message(&nightshift, "wh_1", &body);
        let other = SigningSecret::new([7; 32]);
        let now = (nightshift.now().as_millis() / 1000).to_string();
        let forged = sign([&other].into_iter(), "wh_1", &now, body.as_bytes());
        let late = signed("wh_1", nightshift.now().minus(Duration::from_secs(302)), &body);
        let late = late.iter().fold(good(), |call, (name, value)| call.header(name, value));
        for (call, code) in [
            (good().without_header("webhook-id"), "missing_header"),
            (good().without_header("webhook-timestamp"), "missing_header"),
            (good().without_header("webhook-signature"), "missing_header"),
            (good().header("webhook-id", &"w".repeat(257)), "invalid_header"),
            (good().header("webhook-id", "wh_2"), "bad_signature"),
            (good().header("webhook-signature", &forged), "bad_signature"),
            (good().header("webhook-signature", "v1,AAAA"), "bad_signature"),
            (good().header("webhook-timestamp", "yesterday"), "bad_timestamp"),
            (late, "bad_timestamp"),
            (message(&nightshift, "wh_1", "[]"), "invalid_event"),
            (message(&nightshift, "wh_1", "{"), "invalid_event"),
        ] {
            assert_eq!(nightshift.call(call).await.problem(400), code);
        }
        let long = " ".repeat(64 << 10) + &body;
        assert_eq!(nightshift.call(message(&nightshift, "wh_1", &long)).await.problem(413), "too_large");
        assert_eq!(nightshift.call(good().method("GET")).await.problem(405), "method_not_allowed");
        assert_eq!(nightshift.call(good()).await.good()["heeded"], true);
        // Its sender did not hear that it was, or somebody repeats what was overheard.
        assert_eq!(nightshift.call(good()).await.good()["heeded"], false);
        for other in [
            json!({"type": "response.completed", "data": {"id": "resp_1"}}),
            json!({"type": "batch.completed", "data": {}}),
            json!({"type": "batch.completed"}),
            json!({"type": "batch.completed", "data": {"id": "b".repeat(257)}}),
        ] {
            let call = message(&nightshift, "wh_3", &other.to_string());
            assert_eq!(nightshift.call(call).await.good()["heeded"], false, "{other}");
        }
    });
}

#[test]
fn a_batch_that_the_provider_says_is_over_is_asked_about_at_once() {
    let folder = folder();
    let provider = Provider::start(&folder.path().join("provider"), "{}", |_| ());
    let port = free_port();
    let mut server = command(folder.path(), &provider.url, port, &["polling.interval=1h"]);
    server.env("OPENAI_WEBHOOK_SECRET", PROVIDER_SECRET);
    let mut server = Server::spawn(server, port);
    send(&server, "demo", 3, question);
    let batch = until(&mut server, "a running batch", |server| {
        batches(server).first().and_then(|batch| batch["openaiBatchId"].as_str().map(str::to_owned))
    });
    let base = provider.url.clone();
    until(&mut server, "its end at the provider", |_| {
        let (_, seen) = call(&base, "GET", &format!("/batches/{batch}"), None).unwrap();
        (seen["status"] == "completed").then_some(())
    });
    let asked = format!("GET /v1/batches/{batch}");
    let before = provider.calls(&asked);
    let clock = SystemClock::new();
    let say = |url: &str, id: &str, of: &str| {
        let body = event(of);
        let headers = signed(id, clock.now(), &body);
        call_with(url, "POST", PATH, &headers, Some(("application/json", body))).unwrap()
    };
    let url = server.url.clone();
    let forged = call_with(&url, "POST", PATH, &[], Some(("application/json", event(&batch)))).unwrap();
    assert_eq!((forged.0, &forged.1["code"]), (400, &json!("missing_header")));
    // Somebody else's in the same project is nobody's trouble.
    assert_eq!(say(&url, "wh_1", "batch_of_others"), (200, json!({"ok": true, "heeded": true})));
    assert_eq!((provider.calls(&asked), server.summary()), (before, [0, 3, 0, 0]));
    assert_eq!(say(&url, "wh_2", &batch).0, 200);
    until(&mut server, "the results, an hour before the timer", |server| {
        (server.summary() == [0, 0, 3, 0]).then_some(())
    });
    assert_eq!(provider.calls(&asked), before + 1, "one question for one hint");
    assert!(server.terminate().success());
    assert_once(&provider.runs(), 3);
}

#[test]
fn without_a_secret_no_message_is_taken() {
    let folder = folder();
    let port = free_port();
    let server = Server::start(folder.path(), port, &["creation.enabled=false"]);
    let (status, answer) = server.try_call("POST", PATH, None).unwrap();
    assert_eq!((status, &answer["code"]), (404, &json!("webhooks_off")), "{answer}");
}
