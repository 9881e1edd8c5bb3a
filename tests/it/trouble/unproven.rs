//! A create call is looked for, and its input file is not at the provider any more, or cannot be deleted.

use std::path::Path;

use super::bench::{
    Provider, assert_once, assert_whole, batch, batches, cancel, command, folder, id, provider, question,
    send, send_from, serve, until, watch,
};
use crate::process::{Server, call, free_port, run, text};

/// The batch of a company that is uncertain. It stays so while the provider shows no list.
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

const OTHER_KEY: &str = "another-key";

/// A server with another key than the others of these tests have.
fn serve_with_another_key(folder: &Path, simulator: &Provider, port: u16, set: &[&str]) -> Server {
    let mut command = command(folder, &simulator.url, port, set);
    command.env("OPENAI_API_KEY", OTHER_KEY);
    Server::spawn(command, port)
}

/// Without it no search for a batch comes to an end.
fn is_list(call: &str) -> bool {
    call == "GET /v1/batches"
}

fn is_unproven(server: &Server) -> bool {
    provider(server)["paused"]["cause"] == "list_unproven"
}

#[test]
fn with_another_key_an_operator_says_that_it_is_our_project_and_a_cancel_comes_to_its_end() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"calls": [{"call": "batches.create", "fault": "drop_before", "nth": [2, 3]}]}"#;
    let simulator = Provider::start(&folder.path().join("provider"), faults, |_| ());
    let set = ["submission.grace=6s"];
    let mut server = serve(folder.path(), &simulator, port, &set);
    // A batch and a file of ours that are there prove nothing: this store may have been used with both projects.
    send(&server, "demo", 3, question);
    until(&mut server, "an old batch", |server| (server.summary() == [0, 0, 3, 0]).then_some(()));
    simulator.shut_after_a_create(is_list);
    send_from(&server, "demo", 3, 5, question);
    send(&server, "other", 5, question);
    let [ends, goes_on] = ["demo", "other"].map(|company| uncertain(&mut server, company));
    assert_eq!(cancel(&server, &id(&ends), r#"{"then":"end"}"#).0, 200);
    delete_input(&simulator, &ends);
    delete_input(&simulator, &goes_on);
    for start in 0..2 {
        server.kill();
        simulator.open();
        server = serve_with_another_key(folder.path(), &simulator, port, &set);
        until(&mut server, "the pause", |server| is_unproven(server).then_some(()));
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
        watch(&mut server, 8000, |server| assert!(is_unproven(server), "{}", server.tail()));
        for each in [&ends, &goes_on] {
            assert_eq!(batch(&server, &id(each))["step"], "uncertain");
        }
        assert_eq!(simulator.calls("POST /v1/batches"), 3);
    }
    let resumed = run(command(folder.path(), &simulator.url, port, &set).arg("resume"));
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 8, 5]).then_some(()));
    until(&mut server, "the end of the cancelled one", |server| {
        (batch(server, &id(&ends))["step"] == "closed").then_some(())
    });
    assert_eq!(batch(&server, &id(&ends))["status"], "cancelled");
    assert!(provider(&server)["paused"].is_null());
    assert_eq!(simulator.calls("POST /v1/batches"), 4);
    assert!(server.terminate().success());
    assert_once(&simulator.runs(), 8);
    assert_whole(folder.path());
}

#[test]
fn with_the_same_key_or_one_that_shows_the_input_file_the_list_is_ours() {
    for same_key in [true, false] {
        let folder = folder();
        let port = free_port();
        let faults = r#"{"calls": [{"call": "batches.create", "fault": "drop_before", "nth": 1}]}"#;
        let simulator = Provider::start(&folder.path().join("provider"), faults, |_| ());
        simulator.shut_after_a_create(is_list);
        let set = ["submission.grace=3s"];
        let mut server = serve(folder.path(), &simulator, port, &set);
        send(&server, "other", 5, question);
        let lost = uncertain(&mut server, "other");
        if same_key {
            delete_input(&simulator, &lost);
        }
        server.kill();
        simulator.open();
        let again = if same_key { serve } else { serve_with_another_key };
        let mut server = again(folder.path(), &simulator, port, &set);
        until(&mut server, "the end", |server| {
            assert!(provider(server)["paused"].is_null(), "{}", server.tail());
            (server.summary() == [0, 0, 5, 0]).then_some(())
        });
        assert!(server.terminate().success());
        assert_once(&simulator.runs(), 5);
        assert_whole(folder.path());
    }
}

#[test]
fn nothing_is_fenced_with_a_key_that_may_be_that_of_another_project() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"calls": [{"call": "batches.create", "fault": "drop_before", "nth": 1}]}"#;
    let simulator = Provider::start(&folder.path().join("provider"), faults, |_| ());
    simulator.shut(|call| call.starts_with("DELETE").then_some((503, "overloaded")));
    let set = ["submission.grace=1s"];
    let mut server = serve(folder.path(), &simulator, port, &set);
    send(&server, "demo", 5, question);
    until(&mut server, "a fence", |server| {
        batches(server).iter().any(|batch| batch["step"] == "fencing").then_some(())
    });
    server.kill();
    // As another project answers.
    simulator.shut(|call| call.starts_with("GET /v1/files/").then_some((404, "not_found")));
    let mut server = serve_with_another_key(folder.path(), &simulator, port, &set);
    until(&mut server, "the pause", |server| is_unproven(server).then_some(()));
    send(&server, "other", 5, question);
    watch(&mut server, 3000, |server| assert!(is_unproven(server), "{}", server.tail()));
    assert_eq!((simulator.calls_by(OTHER_KEY, "DELETE"), simulator.calls("POST /v1/files")), (0, 1));
    server.kill();
    simulator.open();
    let mut server = serve(folder.path(), &simulator, port, &set);
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 10, 0]).then_some(()));
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
