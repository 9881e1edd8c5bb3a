//! The provider refuses the account: everything rests, nothing suffers.

use super::bench::{
    Provider, assert_once, assert_whole, batch, batches, command, folder, id, provider, question, requests,
    send, serve, until, watch,
};
use crate::process::{free_port, run, text};

fn is_running(server: &crate::process::Server) -> Option<()> {
    batches(server).iter().any(|batch| batch["status"] == "in_progress").then_some(())
}

#[test]
fn a_refused_key_pauses_everything_until_it_is_taken_again() {
    let folder = folder();
    let port = free_port();
    let simulator = Provider::start(&folder.path().join("provider"), "{}", |options| {
        options.turnaround = std::time::Duration::from_secs(10);
    });
    let mut server = serve(folder.path(), &simulator, port, &[]);
    send(&server, "demo", 5, question);
    until(&mut server, "a running batch", is_running);
    simulator.shut(|_| Some((401, "invalid_api_key")));
    send(&server, "other", 5, question);
    until(&mut server, "the pause", |server| (provider(server)["paused"]["cause"] == "key").then_some(()));
    let before = simulator.calls("");
    watch(&mut server, 6000, |server| assert_eq!(provider(server)["paused"]["cause"], "key"));
    let tried = simulator.calls("") - before;
    assert!(tried <= 4, "{tried} calls while the key was refused");
    assert_eq!(server.summary(), [0, 10, 0, 0]);
    simulator.open();
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 10, 0]).then_some(()));
    assert!(provider(&server)["paused"].is_null());
    assert!(requests(&server).iter().all(|request| request["attempts"] == 1));
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 10);
    assert_whole(folder.path());
}

#[test]
fn a_key_that_is_refused_from_the_start_goes_on_as_soon_as_it_is_taken() {
    let folder = folder();
    let port = free_port();
    let simulator = Provider::start(&folder.path().join("provider"), "{}", |_| ());
    simulator.shut(|_| Some((401, "invalid_api_key")));
    let mut server = serve(folder.path(), &simulator, port, &[]);
    until(&mut server, "the pause", |server| {
        let paused = provider(server)["paused"].clone();
        (paused["cause"] == "key" && paused["tried"].as_u64() >= Some(2)).then_some(())
    });
    simulator.open();
    // One read that goes well proves the key, although there is nothing to send.
    until(&mut server, "the end of the pause", |server| provider(server)["paused"].is_null().then_some(()));
    send(&server, "demo", 5, question);
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 5, 0]).then_some(()));
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 5);
}

#[test]
fn without_money_nothing_is_created_and_an_operator_may_say_that_there_is_some() {
    let folder = folder();
    let port = free_port();
    let simulator = Provider::start(&folder.path().join("provider"), "{}", |_| ());
    simulator.shut(|call| (call == "POST /v1/batches").then_some((429, "insufficient_quota")));
    let set = ["creation.max_requests=5"];
    let mut server = serve(folder.path(), &simulator, port, &set);
    send(&server, "demo", 15, question);
    let tried = until(&mut server, "the pause", |server| {
        let paused = provider(server)["paused"].clone();
        // It would be tried again by itself only after 16 seconds.
        let tried = paused["tried"].as_u64().filter(|tried| *tried >= 4);
        tried.filter(|_| paused["cause"] == "billing")
    });
    let before = simulator.calls("POST /v1/batches");
    watch(&mut server, 3000, |_| ());
    assert!(simulator.calls("POST /v1/batches") - before <= 1);
    // Each of the three once, one may have been under way, and the tries.
    assert!(before as u64 <= 4 + tried, "{before} creations in vain");
    assert_eq!(server.summary(), [0, 15, 0, 0]);
    simulator.open();
    let resumed = run(command(folder.path(), &simulator.url, port, &set).arg("resume"));
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    let started = std::time::Instant::now();
    until(&mut server, "all creations", |server| {
        batches(server).iter().all(|batch| batch["openaiBatchId"].is_string()).then_some(())
    });
    assert!(started.elapsed() < std::time::Duration::from_secs(10), "{:?}", started.elapsed());
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 15, 0]).then_some(()));
    assert!(requests(&server).iter().all(|request| request["attempts"] == 1));
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 15);
    assert_whole(folder.path());
}

#[test]
fn money_that_comes_back_is_found_by_itself_although_other_batches_still_upload() {
    let folder = folder();
    let port = free_port();
    let simulator = Provider::start(&folder.path().join("provider"), "{}", |_| ());
    simulator.shut(|call| (call.starts_with("POST")).then_some((429, "insufficient_quota")));
    let set = ["creation.max_requests=2"];
    let mut server = serve(folder.path(), &simulator, port, &set);
    send(&server, "demo", 16, question);
    until(&mut server, "the pause", |server| {
        (provider(server)["paused"]["tried"].as_u64() >= Some(1)).then_some(())
    });
    // Files are taken, batches are not: what uploads must not use up the tries.
    simulator.shut(|call| (call == "POST /v1/batches").then_some((429, "insufficient_quota")));
    until(&mut server, "a creation", |_| (simulator.calls("POST /v1/batches") > 0).then_some(()));
    simulator.open();
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 16, 0]).then_some(()));
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 16);
}

#[test]
fn a_batch_that_was_refused_three_times_waits_for_the_operator_and_goes_at_a_word() {
    let folder = folder();
    let provider = Provider::start(&folder.path().join("provider"), "{}", |_| ());
    provider.shut(|call| (call == "POST /v1/batches").then_some((400, "invalid_value")));
    let mut server = serve(folder.path(), &provider, free_port(), &[]);
    send(&server, "demo", 2, question);
    let parked = until(&mut server, "a parked batch", |server| {
        batches(server).into_iter().find(|batch| batch["step"] == "parked")
    });
    let calls = provider.calls("POST /v1/batches");
    let waiting = server.get("/api/v1/companies/demo/requests/demo-0/timeline");
    let told = waiting["timeline"]["waiting"]["detail"].as_str().unwrap();
    assert!(told.contains("nightshift resume"), "{told}");
    provider.open();
    assert_eq!(provider.calls("POST /v1/batches"), calls, "nothing is sent by itself");
    server.post("/api/admin/legacy/provider/resume", "application/json", String::new());
    until(&mut server, "its results", |server| (server.summary() == [0, 0, 2, 0]).then_some(()));
    assert_eq!(batch(&server, &id(&parked))["status"], "processed");
    assert!(server.terminate().success());
    assert_once(&provider.runs(), 2);
    assert_whole(folder.path());
}
