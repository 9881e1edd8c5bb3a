//! The provider does not know a batch any more that it has given an id.

use std::time::Duration;

use nightshift::domain::batch::{BatchState, Credentials, InputFile, Intent, Orders, Running, Wait};
use nightshift::domain::event::Event;
use nightshift::domain::id::{FileId, Nonce, Timestamp};
use nightshift::domain::step::{Policy, step};

use super::bench::{
    HALF, Provider, assert_once, assert_whole, batch, batches, folder, id, provider, question, send, serve,
    until, watch,
};
use crate::process::{Server, free_port};

const GONE: [&str; 2] = ["creation.max_requests=5", "polling.interval=1s"];

/// Whether the provider has a batch.
fn is_there(server: &Server) -> Option<()> {
    batches(server).iter().any(|batch| batch["openaiBatchId"].is_string()).then_some(())
}

#[test]
fn one_old_batch_that_is_gone_holds_nobody_up_and_may_come_back() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"batches": [{"fault": "gone", "after": 3, "reads": 6, "nth": 1}]}"#;
    let (simulator, clock) = Provider::start_still(&folder.path().join("provider"), faults);
    // It is not read before there are newer ones, or it would be gone as the newest.
    simulator.shut_after_a_create(|call| call.starts_with("GET /v1/batches"));
    let mut server = serve(folder.path(), &simulator, port, &GONE);
    send(&server, "demo", 5, question);
    until(&mut server, "the old batch", is_there);
    let old = id(&batches(&server)[0]);
    send(&server, "other", 10, question);
    until(&mut server, "two newer ones", |server| {
        let made = batches(server);
        (made.len() == 3 && made.iter().all(|batch| batch["openaiBatchId"].is_string())).then_some(())
    });
    simulator.open();
    until(&mut server, "that it is gone", |server| {
        assert!(provider(server)["paused"].is_null(), "{}", server.tail());
        let story = server.get(&format!("/api/admin/legacy/batches/{old}")).to_string();
        story.contains("does not know the batch").then_some(())
    });
    // As long as the newer ones run, it is an old one: they end only when it has been seen again.
    clock.advance(HALF);
    until(&mut server, "that it is back", |server| {
        assert!(provider(server)["paused"].is_null(), "{}", server.tail());
        (batch(server, &old)["status"] == "in_progress").then_some(())
    });
    until(&mut server, "the end", |server| {
        clock.advance(HALF);
        assert!(provider(server)["paused"].is_null(), "{}", server.tail());
        (server.summary() == [0, 0, 15, 0]).then_some(())
    });
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 15);
    assert_whole(folder.path());
}

#[test]
fn the_newest_batch_that_is_gone_pauses_the_account_and_it_stays_paused() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"batches": [{"fault": "gone", "after": 2, "reads": 100000, "nth": 2}]}"#;
    let simulator = Provider::start(&folder.path().join("provider"), faults, |options| {
        options.turnaround = Duration::from_secs(60);
    });
    let mut server = serve(folder.path(), &simulator, port, &GONE);
    send(&server, "demo", 5, question);
    until(&mut server, "a batch", is_there);
    send(&server, "other", 5, question);
    until(&mut server, "the pause", |server| {
        (provider(server)["paused"]["cause"] == "batches_gone").then_some(())
    });
    let newest = id(&batches(&server)[1]);
    let created = simulator.calls("POST /v1/batches");
    let line = "{\"id\":\"more\",\"endpoint\":\"/v1/chat/completions\",\"body\":{\"model\":\"gpt-4o-mini\",\"messages\":[{\"role\":\"user\",\"content\":\"More?\"}]}}\n";
    server.post("/api/v1/companies/demo/requests", "application/x-ndjson", line.to_owned());
    // The other batch is seen all the time, and proves nothing.
    watch(&mut server, 5000, |server| {
        assert_eq!(provider(server)["paused"]["cause"], "batches_gone", "{}", server.tail());
    });
    assert_eq!(simulator.calls("POST /v1/batches"), created);
    let resumed = server.post("/api/admin/legacy/provider/resume", "application/json", "{}".to_owned());
    assert_eq!(resumed["wasPaused"], true);
    // On an operator's word it goes on, and the one that is gone is asked for half an hour more.
    until(&mut server, "a creation", |_| (simulator.calls("POST /v1/batches") > created).then_some(()));
    watch(&mut server, 3000, |server| assert!(provider(server)["paused"].is_null()));
    assert_eq!(batch(&server, &newest)["step"], "observing");
    let story = server.get(&format!("/api/admin/legacy/batches/{newest}")).to_string();
    assert!(story.contains("does not know the batch"), "{story}");
    assert_eq!(server.summary()[3], 0);
}

#[test]
fn what_stays_gone_for_half_an_hour_is_lost() {
    let policy =
        Policy { backoff: Duration::from_secs(60), capacity_backoff: Duration::from_secs(60), sweeps_min: 3 };
    let at = |secs: i64| Timestamp::from_secs(1_800_000_000 + secs);
    let input = InputFile { id: FileId::new("file-1"), upload: 1, bytes: 0, created_at: at(0) };
    let intent =
        Intent { nonce: Nonce::new(uuid::Uuid::nil()), input, at: at(0), made_with: Credentials::default() };
    let mut state =
        BatchState::Observing { intent, running: Running::InProgress, wait: Wait::default(), missing: None };
    for minutes in [0, 5, 10, 15, 20, 29] {
        state =
            step(&state, Orders::default(), &Event::NotKnown { at: at(minutes * 60) }, &policy).unwrap().next;
        assert!(matches!(state, BatchState::Observing { .. }), "{state:?}");
    }
    let lost = step(&state, Orders::default(), &Event::NotKnown { at: at(1800) }, &policy).unwrap();
    assert!(matches!(lost.next, BatchState::Closing { lost: true, .. }), "{lost:?}");
}
