//! An operator cancels a batch, at every stretch of its way.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::bench::{
    HALF, Provider, assert_once, assert_whole, batch, batches, cancel, command, folder, id, question, send,
    serve, until,
};
use crate::process::{free_port, run, text};

const REQUEUE: &str = r#"{"then":"requeue"}"#;
const END: &str = r#"{"then":"end"}"#;

#[test]
fn a_batch_that_was_not_sent_dissolves_and_its_requests_go_back_or_end() {
    let folder = folder();
    let port = free_port();
    let provider = Provider::start(&folder.path().join("provider"), "{}", |_| ());
    provider.shut(|call| (call == "POST /v1/files").then_some((503, "overloaded")));
    let size = "creation.max_requests=5";
    let mut server = serve(folder.path(), &provider, port, &[size]);
    send(&server, "demo", 10, question);
    let live = until(&mut server, "two batches", |server| {
        let live = batches(server);
        (live.len() == 2 && live.iter().all(|batch| batch["step"] == "uploading")).then_some(live)
    });
    server.kill();
    let off = "creation.enabled=false";
    let mut server = serve(folder.path(), &provider, port, &[size, off]);
    let [first, second] = [id(&live[0]), id(&live[1])];
    assert_eq!(cancel(&server, &first, r#"{"then":"later"}"#), (422, "unknown_then".to_owned()));
    assert_eq!(cancel(&server, &first, r#"{"than":"end"}"#), (422, "invalid_body".to_owned()));
    assert_eq!(cancel(&server, &first, "["), (400, "invalid_json".to_owned()));
    assert_eq!(cancel(&server, "nothing", REQUEUE), (404, "unknown_batch".to_owned()));
    let unknown = "01930000-0000-7000-8000-000000000000";
    assert_eq!(cancel(&server, unknown, REQUEUE), (404, "unknown_batch".to_owned()));
    assert_eq!(cancel(&server, &first, REQUEUE).0, 200);
    assert_eq!(cancel(&server, &second, END).0, 200);
    until(&mut server, "the end of both", |server| (server.summary() == [5, 0, 0, 5]).then_some(()));
    for (id, order, other) in [(&first, REQUEUE, END), (&second, END, REQUEUE)] {
        assert_eq!(batch(&server, id)["status"], "cancelled");
        // Whoever got no answer asks again, and hears the same.
        assert_eq!(cancel(&server, id, order).0, 200, "{}", batch(&server, id));
        assert_eq!(cancel(&server, id, other), (409, "already_cancelled".to_owned()));
    }
    assert!(server.terminate().success());
    provider.open();
    let mut server = serve(folder.path(), &provider, port, &[size]);
    until(&mut server, "the rest", |server| (server.summary() == [0, 0, 5, 5]).then_some(()));
    let done = batches(&server).pop().unwrap();
    assert_eq!(cancel(&server, &id(&done), REQUEUE), (409, "batch_over".to_owned()), "{done}");
    let mut late = command(folder.path(), &provider.url, port, &[size]);
    let late = run(late.args(["cancel", &id(&done)]));
    assert_eq!(late.status.code(), Some(1));
    assert!(text(&late.stderr).contains("the batch is over"), "{}", text(&late.stderr));
    assert!(server.terminate().success());
    assert_once(&provider.runs(), 5);
    assert_whole(folder.path());
}

#[test]
fn a_running_batch_keeps_what_it_has_and_a_kill_after_the_order_changes_nothing() {
    let folder = folder();
    let port = free_port();
    let (provider, clock) = Provider::start_still(&folder.path().join("provider"), "{}");
    let size = "creation.max_requests=20";
    let mut server = serve(folder.path(), &provider, port, &[size]);
    send(&server, "demo", 40, question);
    until(&mut server, "two batches", |server| {
        let live = batches(server);
        (live.len() == 2 && live.iter().all(|batch| batch["openaiBatchId"].is_string())).then_some(())
    });
    // Half of each is done now, and no more of it until both are cancelled.
    clock.advance(HALF);
    let live = until(&mut server, "two running batches", |server| {
        Some(batches(server)).filter(|live| live.iter().all(|batch| batch["status"] == "in_progress"))
    });
    let [ends, returns] = [id(&live[0]), id(&live[1])];
    let ordered =
        run(command(folder.path(), &provider.url, port, &[size]).args(["cancel", &ends, "--then", "end"]));
    assert!(ordered.status.success(), "{}", text(&ordered.stderr));
    assert_eq!(cancel(&server, &returns, REQUEUE).0, 200);
    server.kill();
    let mut server = serve(folder.path(), &provider, port, &[size]);
    for (id, order, other) in [(&ends, END, REQUEUE), (&returns, REQUEUE, END)] {
        assert_eq!(cancel(&server, id, order).0, 200);
        assert_eq!(cancel(&server, id, other), (409, "already_cancelled".to_owned()));
    }
    until(&mut server, "that the provider heard", |_| {
        live.iter().all(|batch| provider.status(batch) == "cancelling").then_some(())
    });
    for id in [&ends, &returns] {
        until(&mut server, "the end", |server| {
            clock.advance(HALF);
            (batch(server, id)["step"] == "closed").then_some(())
        });
        assert_eq!(batch(&server, id)["status"], "cancelled");
    }
    let counts = batch(&server, &ends)["counts"].clone();
    let kept = counts["completed"].as_u64().unwrap();
    assert!(kept > 0 && kept < 20, "{counts}");
    assert_eq!(counts["failed"].as_u64().unwrap(), 20 - kept);
    let counts = batch(&server, &returns)["counts"].clone();
    let returned = counts["returned"].as_u64().unwrap();
    assert!(returned > 0 && returned < 20, "{counts}");
    until(&mut server, "the rest", |server| {
        clock.advance(HALF);
        (server.summary() == [0, 0, 20 + kept, 20 - kept]).then_some(())
    });
    assert!(server.terminate().success());
    assert_once(&provider.runs(), usize::try_from(20 + kept).unwrap());
    assert_whole(folder.path());
}

#[test]
fn a_cancel_that_is_refused_is_called_again_until_the_batch_shows_that_it_heard() {
    let folder = folder();
    let port = free_port();
    let slow = |options: &mut nightshift::simulator::Options| {
        options.turnaround = std::time::Duration::from_secs(100);
    };
    let provider = Provider::start(&folder.path().join("provider"), "{}", slow);
    let refusals = AtomicUsize::new(0);
    provider.shut(move |call| {
        let statuses = [(404, "not_found"), (400, "not_yet"), (409, "conflict")];
        let is_cancel = call.ends_with("/cancel");
        is_cancel.then(|| statuses.get(refusals.fetch_add(1, Ordering::SeqCst)).copied()).flatten()
    });
    let mut server = serve(folder.path(), &provider, port, &["creation.max_requests=10"]);
    send(&server, "demo", 10, question);
    let running = until(&mut server, "a running batch", |server| {
        batches(server).into_iter().find(|batch| batch["step"] == "observing")
    });
    assert_eq!(cancel(&server, &id(&running), END).0, 200);
    until(&mut server, "the end", |server| (batch(server, &id(&running))["step"] == "closed").then_some(()));
    assert_eq!(batch(&server, &id(&running))["status"], "cancelled");
    assert_eq!(provider.calls("/cancel"), 4);
    assert!(server.terminate().success());
    assert_whole(folder.path());
}

#[test]
fn an_uncertain_batch_is_found_or_fenced_before_the_order_is_carried_out() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{
        "calls": [{"call": "batches.create", "fault": "drop_after", "nth": 1},
                  {"call": "batches.create", "fault": "drop_before", "nth": 2}],
        "batches": [{"fault": "invisible", "lists": 6, "nth": 1}]
    }"#;
    let slow = |options: &mut nightshift::simulator::Options| {
        options.turnaround = std::time::Duration::from_secs(12);
    };
    let provider = Provider::start(&folder.path().join("provider"), faults, slow);
    // Neither is found, nor proven not to be there, before both are to be cancelled.
    provider.shut_after_a_create(|call| call == "GET /v1/batches");
    let set = ["creation.max_requests=10", "submission.grace=3s"];
    let mut server = serve(folder.path(), &provider, port, &set);
    send(&server, "demo", 10, question);
    let there = until(&mut server, "an uncertain batch", |server| {
        batches(server).into_iter().find(|batch| batch["step"] == "uncertain")
    });
    send(&server, "other", 10, question);
    let absent = until(&mut server, "another one", |server| {
        batches(server)
            .into_iter()
            .find(|batch| batch["step"] == "uncertain" && batch["companyId"] == "other")
    });
    assert_eq!(cancel(&server, &id(&there), END).0, 200);
    assert_eq!(cancel(&server, &id(&absent), END).0, 200);
    for batch in [&there, &absent] {
        let shown = super::bench::batch(&server, &id(batch));
        assert_eq!(shown["step"], "uncertain", "{shown}");
    }
    provider.open();
    for each in [&there, &absent] {
        until(&mut server, "the end", |server| (batch(server, &id(each))["step"] == "closed").then_some(()));
    }
    let [there, absent] = [batch(&server, &id(&there)), batch(&server, &id(&absent))];
    assert!(there["openaiBatchId"].is_string() && absent["openaiBatchId"].is_null(), "{there}{absent}");
    assert_eq!(absent["counts"]["failed"], 10);
    let [pending, in_progress, completed, failed] = server.summary();
    assert_eq!((pending, in_progress, completed + failed), (0, 0, 20));
    assert!(server.terminate().success());
    assert_once(&provider.runs(), usize::try_from(completed).unwrap());
    assert_whole(folder.path());
}

#[test]
fn a_stop_waits_for_the_answer_to_a_create_call_although_its_batch_was_cancelled_meanwhile() {
    let folder = folder();
    let port = free_port();
    let provider = Provider::start(&folder.path().join("provider"), "{}", |_| ());
    let (go, held) = std::sync::mpsc::channel::<()>();
    provider.shut(move |call| {
        if call == "POST /v1/batches" {
            // Until the other end is dropped.
            let _ = held.recv();
        }
        None
    });
    let mut server = serve(folder.path(), &provider, port, &[]);
    send(&server, "demo", 10, question);
    server.wait_for("\"step\":\"creating\"").unwrap();
    let held = id(&batches(&server)[0]);
    assert_eq!(cancel(&server, &held, REQUEUE).0, 200);
    server.signal(rustix::process::Signal::TERM);
    server.wait_for("stopping").unwrap();
    drop(go);
    let left = server.left(std::time::Duration::from_secs(10)).expect("it leaves in time");
    assert!(left.success(), "{left}");
    assert!(server.tail().contains("\"step\":\"observing\""), "the answer was not heard: {}", server.tail());
    let mut server = serve(folder.path(), &provider, port, &[]);
    until(&mut server, "the end", |server| (server.summary() == [0, 0, 10, 0]).then_some(()));
    assert_eq!(batch(&server, &held)["status"], "cancelled");
    assert!(server.terminate().success());
    assert_once(&provider.runs(), 10);
    assert_whole(folder.path());
}
