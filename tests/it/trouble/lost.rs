//! The provider has lost results: what it may have been paid for is bought again only at an operator's word.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::bench::{
    Provider, assert_whole, batch, batches, folder, id, question, requests, send, serve, until, watch,
};
use crate::process::free_port;

#[test]
fn what_the_provider_has_lost_of_an_output_file_fails_and_is_bought_again_only_when_it_is_requeued() {
    let folder = folder();
    let port = free_port();
    let simulator = Provider::start(&folder.path().join("provider"), "{}", |_| ());
    simulator.shut(|call| call.ends_with("/content").then_some((503, "overloaded")));
    let mut server = serve(folder.path(), &simulator, port, &[]);
    send(&server, "demo", 10, question);
    let ended = until(&mut server, "a batch that has ended", |server| {
        batches(server).into_iter().find(|batch| batch["step"] == "downloading")
    });
    let batch_id = id(&ended);
    // Three lines are left, and half of a fourth one.
    let output = simulator.state.join("files").join(ended["outputFileId"].as_str().unwrap());
    let whole = std::fs::read(&output).unwrap();
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), 10);
    let left = lines[..3].iter().map(|line| line.len()).sum::<usize>() + lines[3].len() / 2;
    std::fs::write(&output, &whole[..left]).unwrap();
    simulator.open();

    until(&mut server, "its end", |server| (batch(server, &batch_id)["step"] == "closed").then_some(()));
    let closed = batch(&server, &batch_id);
    let counts = |name: &str| closed["counts"][name].as_u64().unwrap();
    assert_eq!((counts("completed"), counts("failed"), counts("returned")), (3, 7, 0), "{closed}");
    assert_eq!(closed["status"], "processed");
    let told = server.get(&format!("/api/admin/legacy/batches/{batch_id}")).to_string();
    assert!(told.contains("the output file is home, but not whole"), "{told}");
    // Nothing is bought again by itself.
    watch(&mut server, 3000, |server| assert_eq!(server.summary(), [0, 0, 3, 7]));
    assert_eq!(simulator.calls("POST /v1/batches"), 1);
    let lost: BTreeSet<String> = requests(&server)
        .iter()
        .filter(|request| request["status"] == "processing_failed")
        .map(|request| request["id"].as_str().unwrap().to_owned())
        .collect();
    for id in &lost {
        let shown = server.get(&format!("/api/admin/legacy/requests/{id}"));
        let history = shown["request"]["history"].as_array().unwrap_or_else(|| panic!("no history: {shown}"));
        assert_eq!(history.len(), 1, "{shown}");
        assert_eq!((&history[0]["errorClass"], &history[0]["code"]), (&json!("lost"), &json!("result_lost")));
        assert_eq!(history[0]["batchId"], Value::from(batch_id.as_str()));
    }

    let ids = json!({ "requestIds": lost });
    let path = "/api/admin/legacy/requests/requeue";
    let requeued = server.post(path, "application/json", ids.to_string());
    assert_eq!(requeued["ok"], true, "{requeued}");
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 10, 0]).then_some(()));
    for id in &lost {
        let shown = server.get(&format!("/api/admin/legacy/requests/{id}"));
        let history = shown["request"]["history"].as_array().unwrap();
        let codes: Vec<_> = history.iter().map(|attempt| attempt["code"].clone()).collect();
        assert_eq!(codes, [json!("result_lost"), Value::Null], "{shown}");
    }
    assert_eq!(simulator.calls("POST /v1/batches"), 2);
    assert!(server.terminate().success());
    let runs = simulator.runs();
    assert_eq!(runs.len(), 10);
    for (line, times) in &runs {
        assert_eq!(*times, if lost.contains(line) { 2 } else { 1 }, "{line}");
    }
    assert_whole(folder.path());
}
