//! A provider that does not delete the input file of an uncertain call.

use serde_json::Value;

use super::bench::{
    Provider, assert_once, assert_whole, batch, batches, folder, id, provider, question, send, serve, until,
};
use crate::process::free_port;

#[test]
fn an_input_file_that_the_provider_does_not_delete_is_told_and_holds_nothing_else_up() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"calls": [{"call": "batches.create", "fault": "drop_before", "nth": 1}]}"#;
    let bench = Provider::start(&folder.path().join("provider"), faults, |_| ());
    // A key that may do everything else.
    bench.shut(|call| call.starts_with("DELETE").then_some((403, "insufficient_permissions")));
    let mut server = serve(folder.path(), &bench, port, &[]);
    send(&server, "demo", 5, question);
    let fencing = until(&mut server, "what stands in the way", |server| {
        let found = batches(server).into_iter().find(|batch| batch["step"] == "fencing")?;
        let story = batch(server, &id(&found))["story"].to_string();
        (story.contains("cannot be deleted so far") && story.contains("insufficient_permissions"))
            .then_some(found)
    });
    let timeline = server.get("/api/v1/companies/demo/requests/demo-0/timeline");
    let waiting = timeline["timeline"]["waiting"]["detail"].as_str().unwrap();
    assert!(waiting.contains("its input file is deleted there before it is sent again"), "{waiting}");
    send(&server, "other", 5, question);
    until(&mut server, "those of another company", |server| (server.summary()[2] == 5).then_some(()));
    assert_eq!(provider(&server)["paused"], Value::Null, "a key that may not delete is taken all the same");
    let shown = batch(&server, &id(&fencing));
    assert_eq!(shown["step"], "fencing");
    assert_eq!(shown["story"].to_string().matches("cannot be deleted so far").count(), 1, "it is said once");

    bench.open();
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 10, 0]).then_some(()));
    assert!(server.terminate().success());
    assert_once(&bench.runs(), 10);
    assert_whole(folder.path());
}
