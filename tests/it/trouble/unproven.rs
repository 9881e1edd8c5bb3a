//! A create call is looked for, and its input file is not at the provider any more, or cannot be deleted.

use super::bench::{
    Provider, assert_once, assert_whole, batch, batches, cancel, command, folder, id, provider, question,
    send, serve, until, watch,
};
use crate::process::{Server, call, free_port, run, text};

/// What is uncertain, once there are so many.
fn uncertain(server: &mut Server, company: &str) -> serde_json::Value {
    until(server, "an uncertain batch", |server| {
        batches(server)
            .into_iter()
            .find(|batch| batch["step"] == "uncertain" && batch["companyId"] == company)
    })
}

/// Somebody deletes the input file of a batch at the provider.
fn delete_input(simulator: &Provider, batch: &serde_json::Value) {
    let file = batch["inputFileId"].as_str().unwrap();
    let (status, answer) = call(&simulator.url, "DELETE", &format!("/files/{file}"), None).unwrap();
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn without_any_proof_an_operator_says_that_it_is_our_project_and_a_cancel_comes_to_its_end() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"calls": [{"call": "batches.create", "fault": "drop_before", "nth": [1, 2]}]}"#;
    let simulator = Provider::start(&folder.path().join("provider"), faults, |_| ());
    let set = ["submission.grace=6s"];
    let mut server = serve(folder.path(), &simulator, port, &set);
    send(&server, "demo", 5, question);
    send(&server, "other", 5, question);
    let [ends, goes_on] = ["demo", "other"].map(|company| uncertain(&mut server, company));
    assert_eq!(cancel(&server, &id(&ends), r#"{"then":"end"}"#).0, 200);
    delete_input(&simulator, &ends);
    delete_input(&simulator, &goes_on);
    for start in 0..2 {
        until(&mut server, "the pause", |server| {
            (provider(server)["paused"]["cause"] == "list_unproven").then_some(())
        });
        let shown = provider(&server).to_string();
        assert!(shown.contains("is this the right key and project?"), "{shown}");
        for each in [&ends, &goes_on] {
            let told = "`nightshift resume`";
            until(&mut server, "the story", |server| {
                let story = server.get(&format!("/api/admin/legacy/batches/{}", id(each))).to_string();
                (story.matches(told).count() == start + 1).then_some(())
            });
        }
        // However long that lasts.
        watch(&mut server, 8000, |server| {
            assert_eq!(provider(server)["paused"]["cause"], "list_unproven", "{}", server.tail());
        });
        for each in [&ends, &goes_on] {
            assert_eq!(batch(&server, &id(each))["step"], "uncertain");
        }
        assert_eq!(simulator.calls("POST /v1/batches"), 2);
        if start == 0 {
            server.kill();
            server = serve(folder.path(), &simulator, port, &set);
        }
    }
    let resumed = run(command(folder.path(), &simulator.url, port, &set).arg("resume"));
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 5, 5]).then_some(()));
    until(&mut server, "the end of the cancelled one", |server| {
        (batch(server, &id(&ends))["step"] == "closed").then_some(())
    });
    assert_eq!(batch(&server, &id(&ends))["status"], "cancelled");
    assert!(provider(&server)["paused"].is_null());
    assert_eq!(simulator.calls("POST /v1/batches"), 3);
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 5);
    assert_whole(folder.path());
}

#[test]
fn another_file_of_ours_proves_that_the_list_is_ours() {
    let folder = folder();
    let port = free_port();
    // The first batch is in no list, so that only its input file is left to show whose project it is.
    let faults = r#"{
        "calls": [{"call": "batches.create", "fault": "drop_before", "nth": 2}],
        "batches": [{"fault": "invisible", "lists": 1000000, "nth": 1}]
    }"#;
    let simulator = Provider::start(&folder.path().join("provider"), faults, |_| ());
    let set = ["submission.grace=3s"];
    let mut server = serve(folder.path(), &simulator, port, &set);
    send(&server, "demo", 5, question);
    until(&mut server, "the first one", |server| (server.summary() == [0, 0, 5, 0]).then_some(()));
    send(&server, "other", 5, question);
    let gone = uncertain(&mut server, "other");
    delete_input(&simulator, &gone);
    server.kill();
    let mut server = serve(folder.path(), &simulator, port, &set);
    until(&mut server, "the end", |server| {
        assert!(provider(server)["paused"].is_null(), "{}", server.tail());
        (server.summary() == [0, 0, 10, 0]).then_some(())
    });
    assert!(simulator.calls("GET /v1/files/") > 0);
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 10);
    assert_whole(folder.path());
}

#[test]
fn a_key_that_is_refused_while_the_input_file_is_deleted_pauses_the_account() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"calls": [{"call": "batches.create", "fault": "drop_before", "nth": 1}]}"#;
    let simulator = Provider::start(&folder.path().join("provider"), faults, |_| ());
    simulator.shut(|call| call.starts_with("DELETE").then_some((401, "invalid_api_key")));
    let mut server = serve(folder.path(), &simulator, port, &["submission.grace=2s"]);
    send(&server, "demo", 5, question);
    until(&mut server, "the pause", |server| (provider(server)["paused"]["cause"] == "key").then_some(()));
    simulator.open();
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 5, 0]).then_some(()));
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 5);
}
