//! A company's budget: what is set aside, spent and given back, and what happens at the limit.

use serde_json::{Value, json};

use super::bench::{HALF, Provider, assert_once, assert_whole, folder, question, send, serve, until};
use crate::process::{Server, free_port};

const PATH: &str = "/api/v1/companies/demo/budget";

fn budget(server: &Server) -> Value {
    server.get(PATH)["budget"].clone()
}

fn set(server: &Server, micros: &Value) {
    let body = json!({ "monthlyMicros": micros }).to_string();
    let (status, answer) = server.try_call("PUT", PATH, Some(("application/json", body))).unwrap();
    assert_eq!((status, &answer["budget"]["monthlyMicros"]), (200, micros), "{answer}");
}

#[test]
fn at_the_limit_a_company_pauses_where_it_is_seen_and_another_one_goes_on() {
    const LIMIT: u64 = 1000;
    let folder = folder();
    let port = free_port();
    let (simulator, clock) = Provider::start_still(&folder.path().join("provider"), "{}");
    let mut server = serve(folder.path(), &simulator, port, &[]);
    set(&server, &LIMIT.into());
    send(&server, "demo", 600, question);
    send(&server, "other", 20, question);
    // In the midst of it what is set aside and spent must be as it was.
    until(&mut server, "something spent and more set aside", |server| {
        let budget = budget(server);
        let spent = budget["spentMicros"].as_u64() > Some(0);
        if !spent {
            // The first batch comes to its end, and the second one cannot.
            clock.advance(HALF);
        }
        (spent && budget["reservedMicros"].as_u64() > Some(0)).then_some(())
    });
    server.kill();
    let mut server = serve(folder.path(), &simulator, port, &[]);
    let paused = until(&mut server, "the limit", |server| {
        clock.advance(HALF);
        let budget = budget(server);
        // Not between two batches: what the first one gave back is enough for another one then.
        let why = budget["paused"][0]["why"].as_str().unwrap_or_default();
        let done = budget["reservedMicros"] == 0 && why.contains(" 0 are set aside");
        done.then_some(budget)
    });
    let spent = paused["spentMicros"].as_u64().unwrap();
    println!("{paused}");
    assert!(spent <= LIMIT && spent > LIMIT / 2, "{paused}");
    assert!(paused["paused"][0]["why"].as_str().unwrap().contains("budget"), "{paused}");
    until(&mut server, "all of the other one", |server| {
        clock.advance(HALF);
        let other = server.get("/api/admin/legacy/summary?companyId=other");
        (other["summary"]["processing_complete"] == 20).then_some(())
    });
    let waiting =
        server.get("/api/admin/legacy/summary?companyId=demo")["summary"]["pending_batching"].clone();
    assert_eq!(waiting, paused["paused"][0]["waiting"]);
    assert!(waiting.as_u64() > Some(100), "{waiting}");
    set(&server, &Value::Null);
    until(&mut server, "the end", |server| {
        clock.advance(HALF);
        (server.summary() == [0, 0, 620, 0]).then_some(())
    });
    let ended = until(&mut server, "all given back", |server| {
        let budget = budget(server);
        (budget["reservedMicros"] == 0).then_some(budget)
    });
    assert!(ended["spentMicros"].as_u64().unwrap() > LIMIT, "{ended}");
    assert_eq!(ended["paused"], json!([]));
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 620);
    assert_whole(folder.path());
}

#[test]
fn with_a_budget_a_model_without_a_price_waits_and_says_why() {
    let folder = folder();
    let port = free_port();
    let simulator = Provider::start(&folder.path().join("provider"), "{}", |_| ());
    let mut server = serve(folder.path(), &simulator, port, &[]);
    set(&server, &1_000_000.into());
    let line = json!({ "endpoint": "/v1/embeddings", "body": { "model": "nobody-knows", "input": "a" } });
    server.post("/api/v1/companies/demo/requests", "application/json", line.to_string());
    let paused = until(&mut server, "the pause", |server| {
        let budget = budget(server);
        budget["paused"][0]["why"].as_str().map(str::to_owned)
    });
    assert!(paused.contains("no price for nobody-knows"), "{paused}");
    assert_eq!(server.summary(), [1, 0, 0, 0]);
    assert!(server.terminate().success());
    assert_whole(folder.path());
}
