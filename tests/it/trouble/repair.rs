//! Answers that do not fit their form: the model is shown what is wrong, once more, and that is counted apart.

use serde_json::{Value, json};

use super::bench::{Provider, assert_whole, batches, folder, serve, until};
use crate::process::{Server, free_port, read};

fn session(server: &Server, id: &str) {
    let session = json!({
        "externalId": id, "messages": [{ "role": "user", "content": format!("When do I work, {id}?") }],
    });
    let answer = server.post("/api/v1/companies/demo/sessions", "application/json", session.to_string());
    assert_eq!(answer["accepted"], 1, "{answer}");
}

fn request(server: &Server, id: &str) -> Value {
    let session = server.get(&format!("/api/v1/companies/demo/sessions/{id}"));
    let request = session["session"]["requestId"].as_str().unwrap_or_else(|| panic!("{session}")).to_owned();
    server.get(&format!("/api/admin/legacy/requests/{request}"))["request"].clone()
}

#[test]
fn an_answer_that_does_not_fit_is_shown_to_the_model_once_more_and_no_attempt_is_used() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"lines":[{"fault":"nonsense","probability":1,"batches":[1]}]}"#;
    let simulator = Provider::start(&folder.path().join("provider"), faults, |_| ());
    let mut server = serve(folder.path(), &simulator, port, &[]);
    session(&server, "one");
    until(&mut server, "the way back", |server| (batches(server).len() > 1).then_some(()));
    // Its line must be built again from what is stored.
    server.kill();
    let mut server = serve(folder.path(), &simulator, port, &[]);
    session(&server, "two");
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 2, 0]).then_some(()));
    let requests = ["one", "two"].map(|id| request(&server, id));
    let (fitting, repaired): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request["repairs"] == 0);
    let [repaired] = repaired[..] else { panic!("{requests:?}") };
    assert_eq!((fitting.len(), &repaired["repairs"], &repaired["attempts"]), (1, &json!(1), &json!(1)));
    assert_eq!(repaired["history"][0]["code"], "not_json", "{repaired}");
    assert_eq!(repaired["history"][0]["attempt"], 0, "{repaired}");
    assert!(repaired["analysis"]["sentiment"].is_string(), "{repaired}");
    let listed = batches(&server);
    assert_eq!(listed.iter().map(|batch| batch["repairs"].as_u64().unwrap()).sum::<u64>(), 1);
    // What the provider was sent the second time.
    let id = repaired["id"].as_str().unwrap();
    let sent = std::fs::read_dir(simulator.state.join("files")).unwrap();
    let lines: Vec<String> = sent
        .map(|file| read(&file.unwrap().path()))
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.contains(id) && line.contains("\"method\""))
        .collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let again = lines.iter().find(|line| line.contains("cannot be used")).unwrap();
    let again: Value = serde_json::from_str(again).unwrap();
    let messages = again["body"]["messages"].as_array().unwrap();
    assert_eq!(
        messages.iter().map(|m| m["role"].as_str().unwrap()).collect::<Vec<_>>(),
        ["system", "user", "assistant", "user"]
    );
    assert_eq!(messages[2]["content"], "This is not what was asked for.");
    assert!(messages[3]["content"].as_str().unwrap().contains("the answer is not JSON"), "{again}");
    assert_eq!(simulator.runs()[id], 2);
    assert!(server.terminate().success());
    assert_whole(folder.path());
}

#[test]
fn an_answer_that_never_fits_fails_after_the_rounds_that_are_set() {
    for (rounds, runs) in [(0, 1), (2, 3)] {
        let folder = folder();
        let port = free_port();
        let faults = r#"{"lines":[{"fault":"nonsense","probability":1}]}"#;
        let simulator = Provider::start(&folder.path().join("provider"), faults, |_| ());
        let set = [format!("analysis.repair_rounds={rounds}")];
        let mut server = serve(folder.path(), &simulator, port, &[&set[0]]);
        session(&server, "one");
        until(&mut server, "the end", |server| (server.summary() == [0, 0, 0, 1]).then_some(()));
        let request = request(&server, "one");
        assert_eq!((&request["repairs"], &request["errorClass"]), (&json!(rounds), &json!("unusable")));
        assert_eq!(simulator.runs()[request["id"].as_str().unwrap()], runs);
        assert_eq!(request["history"].as_array().unwrap().len(), runs as usize, "{request}");
        assert!(server.terminate().success());
        assert_whole(folder.path());
    }
}
