//! Room at the provider, and limits of our own.

use std::time::Duration;

use super::bench::{
    HALF, Ledger, Provider, assert_once, assert_whole, batches, folder, provider, question, requests, send,
    send_from, serve, until, watch,
};
use crate::process::{Server, free_port};

fn long(number: usize) -> String {
    format!("Question {number}: {}", "what do you think of the night shift? ".repeat(20))
}

/// Room that the provider gives back at once, unlike OpenAI.
const SET: [&str; 1] = ["retry.capacity_hold=0s"];

#[test]
fn a_batch_that_is_too_large_is_cut_smaller_until_it_fits() {
    let folder = folder();
    let port = free_port();
    let simulator = Provider::start(&folder.path().join("provider"), "{}", |options| {
        options.turnaround = Duration::from_secs(1);
        options.enqueued_token_limit = Some(3000);
    });
    let mut server = serve(folder.path(), &simulator, port, &SET);
    send(&server, "demo", 40, long);
    until(&mut server, "the closed gate", |server| {
        let room = provider(server)["rooms"][0].clone();
        (room["gate"] == "closed" && room["learnedLimit"].is_u64()).then_some(())
    });
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 40, 0]).then_some(()));
    let room = provider(&server)["rooms"][0].clone();
    assert_eq!((&room["gate"], room["enqueuedTokens"].is_u64()), (&"open".into(), true), "{room}");
    assert!(requests(&server).iter().all(|request| request["attempts"] == 1));
    let made = batches(&server);
    let refused = made.iter().filter(|batch| batch["status"] == "failed").count();
    assert!(refused <= 4 && made.len() <= 12, "{refused} refused of {}", made.len());
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 40);
    assert_whole(folder.path());
}

#[test]
fn two_companies_share_the_room_that_there_is() {
    let folder = folder();
    let port = free_port();
    let simulator = Provider::start(&folder.path().join("provider"), "{}", |options| {
        options.turnaround = Duration::from_secs(2);
        options.enqueued_token_limit = Some(5000);
    });
    let set = ["creation.max_requests=15", SET[0]];
    let mut server = serve(folder.path(), &simulator, port, &set);
    send(&server, "demo", 30, long);
    send(&server, "other", 30, long);
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 60, 0]).then_some(()));
    assert!(requests(&server).iter().all(|request| request["attempts"] == 1));
    let made = batches(&server);
    let refused = made.iter().filter(|batch| batch["status"] == "failed").count();
    println!("{refused} refused of {}", made.len());
    assert!((1..=4).contains(&refused), "{refused} refused of {}", made.len());
    assert!(provider(&server)["rooms"][0]["learnedLimit"].is_u64());
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 60);
    assert_whole(folder.path());
}

#[test]
fn no_more_batches_an_hour_than_allowed_are_created_and_the_rest_waits_where_it_is_seen() {
    let folder = folder();
    let port = free_port();
    let simulator = Provider::start(&folder.path().join("provider"), "{}", |_| ());
    let set = ["creation.max_requests=5", "submission.batches_per_hour=2"];
    let mut server = serve(folder.path(), &simulator, port, &set);
    send(&server, "demo", 20, question);
    until(&mut server, "two batches", |server| (server.summary() == [0, 10, 10, 0]).then_some(()));
    for start in 0..2 {
        let waits = until(&mut server, "two that wait", |server| {
            let waits = provider(server)["waits"].clone();
            (waits["batches"] == 2).then_some(waits)
        });
        assert_eq!(waits["batchesPerHour"], 2, "{waits}");
        assert!(waits["until"].is_string(), "{waits}");
        watch(&mut server, 1500, |_| ());
        assert_eq!(simulator.calls("POST /v1/batches"), 2, "start {start}");
        server.kill();
        server = serve(folder.path(), &simulator, port, &set);
    }
    assert_eq!(server.summary(), [0, 10, 10, 0]);
    assert_once(&simulator.runs(), 10);
}

#[test]
fn ten_requests_do_not_wait_behind_another_companys_thirty_thousand() {
    let folder = folder();
    let port = free_port();
    // The company with much has batches all the while: it is no newcomer itself.
    let (simulator, clock) = Provider::start_still(&folder.path().join("provider"), "{}");
    // The ten are never due by themselves, and no timer has what waits looked at.
    let set = ["creation.max_requests=500", "creation.max_age=1h", "creation.interval=1h"];
    let mut server = serve(folder.path(), &simulator, port, &set);
    send(&server, "demo", 5000, question);
    until(&mut server, "the first batches", |_| (simulator.calls("POST /v1/batches") == 10).then_some(()));
    let order = |server: &Server, word: &str| {
        let path = format!("/api/admin/legacy/companies/demo/{word}");
        assert_eq!(server.post(&path, "application/json", String::new())["ok"], true);
    };
    order(&server, "suspend");
    for from in (5000..25_000).step_by(5000) {
        send_from(&server, "demo", from, 5000, question);
    }
    send_from(&server, "demo", 25_000, 4999, question);
    send(&server, "other", 10, question);
    order(&server, "resume");
    // At the latest this has what waits looked at: there are the ten, and full batches that came before them.
    send_from(&server, "demo", 29_999, 1, question);
    let batch = until(&mut server, "the small batch", |server| {
        let listed = server.get("/api/admin/legacy/batches?companyId=other");
        listed["batches"].as_array().unwrap().iter().find(|batch| batch["openaiBatchId"].is_string()).cloned()
    });
    assert_eq!(batch["counts"]["members"], 10);
    until(&mut server, "all batches at the provider", |_| {
        (Ledger::read(&simulator.state).created.len() == 61).then_some(())
    });
    clock.advance(2 * HALF);
    server.wait_until_done(30_010, Duration::from_secs(300));
    assert_eq!(server.summary(), [0, 0, 30_010, 0]);
    let cut = batches(&server);
    assert_eq!(cut.iter().position(|other| other["id"] == batch["id"]), Some(10), "it is the next one cut");
    assert_eq!(cut.len(), 61);
    assert!(server.terminate().success());
    let created = Ledger::read(&simulator.state).created;
    let place = created.iter().position(|id| batch["openaiBatchId"] == id.as_str()).unwrap();
    println!("at the provider it is number {place} of {}", created.len());
    // Those that were cut after it may be on their way at the same time.
    assert!(place < 10 + 8, "ten were there, and it is number {place}");
    assert_once(&simulator.runs(), 30_010);
    assert_whole(folder.path());
}

#[test]
fn a_refusal_for_want_of_room_at_the_call_itself_closes_the_gate_and_uses_no_attempt() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"calls": [
        {"call": "batches.create", "fault": "status", "status": 400, "code": "token_limit_exceeded", "times": 2}
    ]}"#;
    let simulator = Provider::start(&folder.path().join("provider"), faults, |_| ());
    let mut server = serve(folder.path(), &simulator, port, &SET);
    send(&server, "demo", 20, question);
    until(&mut server, "the closed gate", |server| {
        let room = provider(server)["rooms"][0].clone();
        (room["gate"] == "closed" && room["learnedLimit"].is_u64()).then_some(())
    });
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 20, 0]).then_some(()));
    assert!(requests(&server).iter().all(|request| request["attempts"] == 1));
    assert!(batches(&server).iter().all(|batch| batch["closedAt"].is_string() || batch["step"] != "parked"));
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 20);
    assert_whole(folder.path());
}

#[test]
fn a_pause_that_the_provider_asks_for_holds_for_every_batch_and_its_refusal_is_no_creation() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"calls": [
        {"call": "batches.create", "fault": "status", "status": 429, "retry_after": {"seconds": 15}, "nth": 1}
    ]}"#;
    let simulator = Provider::start(&folder.path().join("provider"), faults, |_| ());
    let mut server = serve(folder.path(), &simulator, port, &SET);
    send(&server, "demo", 5, question);
    until(&mut server, "the pause", |server| provider(server)["rateLimitedUntil"].is_string().then_some(()));
    send(&server, "other", 5, question);
    until(&mut server, "a request that waits for its end", |server| {
        let timeline = server.get("/api/v1/companies/other/requests/other-0/timeline");
        (timeline["timeline"]["waiting"]["for"] == "rate_limited").then_some(())
    });
    assert_eq!(simulator.calls("POST /v1/batches"), 1);
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 10, 0]).then_some(()));
    let shown = provider(&server);
    assert_eq!(
        (&shown["rateLimitedUntil"], &shown["batchesLastHour"]),
        (&serde_json::Value::Null, &2.into())
    );
    assert_eq!(simulator.calls("POST /v1/batches"), 3);
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 10);
    assert_whole(folder.path());
}
