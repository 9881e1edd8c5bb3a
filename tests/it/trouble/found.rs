//! Batches that are at the provider and that nobody here waits for.

use std::time::Duration;

use super::bench::{
    HALF, Ledger, Provider, assert_once, assert_whole, batch, batches, command, folder, id, question,
    requests, runs, send, serve, until, watch,
};
use crate::process::{copy_folder, free_port, nightshift, run, text};

#[test]
fn a_batch_that_surfaces_after_it_was_given_up_is_a_shadow() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{
        "calls": [{"call": "batches.create", "fault": "drop_after", "nth": 1}],
        "batches": [{"fault": "invisible", "lists": 12, "nth": 1}]
    }"#;
    let (simulator, clock) = Provider::start_still(&folder.path().join("provider"), faults);
    let mut server = serve(folder.path(), &simulator, port, &["submission.grace=2s"]);
    send(&server, "demo", 20, question);
    until(&mut server, "a batch that nobody knows of", |_| {
        (Ledger::read(&simulator.state).created.len() == 1).then_some(())
    });
    // Half of it is done when it surfaces, however long that takes.
    clock.advance(HALF);
    let shadow = until(&mut server, "a shadow", |server| {
        batches(server).into_iter().find(|batch| batch["origin"] == "shadow")
    });
    let cut = batches(&server).into_iter().find(|batch| batch["origin"] == "cut").unwrap();
    assert_eq!(shadow["shadowOf"], cut["id"]);
    assert_eq!(shadow["cancel"]["by"], "nightshift (a shadow batch)");
    let id = id(&shadow);
    until(&mut server, "that the provider heard", |_| {
        (simulator.status(&shadow) == "cancelling").then_some(())
    });
    until(&mut server, "its end", |server| {
        clock.advance(HALF);
        (batch(server, &id)["step"] == "closed").then_some(())
    });
    let shadow = batch(&server, &id);
    assert_eq!(shadow["status"], "cancelled");
    assert!(shadow["costMicros"].as_u64() > Some(0), "what it cost is booked: {shadow}");
    until(&mut server, "the end", |server| {
        clock.advance(HALF);
        (server.summary() == [0, 0, 20, 0]).then_some(())
    });
    until(&mut server, "the end of all", |server| {
        batches(server).iter().all(|batch| batch["step"] == "closed").then_some(())
    });
    assert_eq!(batches(&server).len(), 2, "it was bought once more, and no more");
    assert!(requests(&server).iter().all(|request| request["status"] == "processing_complete"));
    assert!(server.terminate().success());
    assert_eq!(simulator.runs().len(), 20);
    assert_whole(folder.path());
}

#[test]
fn an_old_backup_buys_nothing_again_that_the_provider_has() {
    let folder = folder();
    let port = free_port();
    let simulator = Provider::start(&folder.path().join("provider"), "{}", |options| {
        options.turnaround = Duration::from_secs(3);
    });
    let size = "creation.max_requests=10";
    let data = folder.path().join("data");
    // One batch is cut and not sent, and ten more requests wait: that is what the backup knows.
    simulator.shut(|call| (call == "POST /v1/files").then_some((503, "overloaded")));
    let mut server = serve(folder.path(), &simulator, port, &[size]);
    send(&server, "demo", 10, question);
    until(&mut server, "a batch", |server| {
        batches(server).iter().any(|batch| batch["step"] == "uploading").then_some(())
    });
    assert!(server.terminate().success());
    let mut server = serve(folder.path(), &simulator, port, &[size, "creation.enabled=false"]);
    send(&server, "other", 10, question);
    assert!(server.terminate().success());
    let backup = folder.path().join("backup");
    copy_folder(&data, &backup);

    simulator.open();
    let mut server = serve(folder.path(), &simulator, port, &[size]);
    until(&mut server, "one that ended and one that runs", |server| {
        let [pending, _, complete, _] = server.summary();
        let made = batches(server);
        let both = made.len() == 2 && made.iter().all(|batch| batch["openaiBatchId"].is_string());
        (both && pending == 0 && complete >= 10).then_some(())
    });
    server.kill();
    std::fs::remove_dir_all(&data).unwrap();
    copy_folder(&backup, &data);

    let created = simulator.calls("POST /v1/batches");
    let mut server = serve(folder.path(), &simulator, port, &[size]);
    until(&mut server, "safe mode", |server| {
        let (status, ready) = server.try_call("GET", "/readyz", None).unwrap();
        (status == 503 && ready.to_string().contains("gone back in time")).then_some(())
    });
    until(&mut server, "the results", |server| (server.summary() == [0, 0, 20, 0]).then_some(()));
    let made = batches(&server);
    let adopted = made.iter().filter(|batch| batch["origin"] == "adopted").count();
    assert_eq!(adopted, 2, "{made:?}");
    assert_eq!(simulator.calls("POST /v1/batches"), created);
    assert!(server.terminate().success());

    let mut accept = command(folder.path(), &simulator.url, port, &[size]);
    let accepted = run(accept.args(["store", "accept", "--yes"]));
    assert!(accepted.status.success(), "{}", text(&accepted.stderr));
    let mut server = serve(folder.path(), &simulator, port, &[size]);
    let line = "{\"id\":\"new\",\"endpoint\":\"/v1/chat/completions\",\"body\":{\"model\":\"gpt-4o-mini\",\"messages\":[{\"role\":\"user\",\"content\":\"New?\"}]}}\n";
    server.post("/api/v1/companies/demo/requests", "application/x-ndjson", line.to_owned());
    until(&mut server, "the new one", |server| (server.summary() == [0, 0, 21, 0]).then_some(()));
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 21);
    assert_whole(folder.path());
}

#[test]
fn with_another_provider_what_is_open_rests_and_the_rest_goes_there() {
    let folder = folder();
    let port = free_port();
    let (first, clock) = Provider::start_still(&folder.path().join("first"), "{}");
    let second = Provider::start(&folder.path().join("second"), "{}", |_| ());
    let set = ["creation.max_requests=5"];
    let mut server = serve(folder.path(), &first, port, &set);
    send(&server, "demo", 5, question);
    let open = until(&mut server, "a batch at the first", |server| {
        batches(server).into_iter().find(|batch| batch["openaiBatchId"].is_string())
    });
    first.shut(|call| (call == "POST /v1/files").then_some((503, "overloaded")));
    send(&server, "other", 5, question);
    until(&mut server, "one that was not sent", |server| {
        batches(server).iter().any(|batch| batch["step"] == "uploading").then_some(())
    });
    server.kill();
    first.open();

    let mut server = serve(folder.path(), &second, port, &set);
    let (status, ready) = server.try_call("GET", "/readyz", None).unwrap();
    assert!(status == 503 && ready.to_string().contains("another provider"), "{ready}");
    watch(&mut server, 2500, |_| ());
    assert_eq!(second.calls("POST"), 0);
    assert!(server.terminate().success());
    let accepted = run(command(folder.path(), &second.url, port, &set).args(["store", "accept", "--yes"]));
    assert!(accepted.status.success(), "{}", text(&accepted.stderr));

    let mut server = serve(folder.path(), &second, port, &set);
    until(&mut server, "the unsent ones", |server| (server.summary() == [0, 5, 5, 0]).then_some(()));
    assert_eq!(batch(&server, &id(&open))["step"], "observing");
    // It can be cancelled all the same, and is once its provider is back.
    assert_eq!(super::bench::cancel(&server, &id(&open), "{}").0, 200);
    let (status, answer) = super::bench::cancel(&server, &id(&open), r#"{"then": "end"}"#);
    assert_eq!((status, answer.as_str()), (409, "already_cancelled"));
    let rests = batch(&server, &id(&open));
    assert!(rests["step"] == "observing" && rests["cancel"].is_object(), "{rests}");
    assert!(server.terminate().success());
    // Back at the first, which is done meanwhile, it goes on by itself.
    clock.advance(2 * HALF);
    let mut server = serve(folder.path(), &first, port, &set);
    let ended = |server: &crate::process::Server| (server.summary() == [0, 0, 10, 0]).then_some(());
    until(&mut server, "the end", ended);
    assert!(server.terminate().success());
    let all: std::collections::BTreeMap<_, _> =
        runs(&first.state).into_iter().chain(runs(&second.state)).collect();
    assert_eq!(first.runs().len() + second.runs().len(), 10);
    assert_once(&all, 10);
    assert!(run(nightshift(folder.path()).arg("verify")).status.success());
}
