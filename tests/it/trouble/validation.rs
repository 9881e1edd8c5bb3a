//! The provider refuses a batch for some of its lines.

use super::bench::{
    Provider, assert_once, assert_whole, batch, batches, folder, id, requests, send, serve, until,
};
use crate::process::free_port;

fn only_the_bad_ones_fail(faults: &str, set: &[&str], bad: usize, batches_max: usize) {
    let folder = folder();
    let port = free_port();
    let provider = Provider::start(&folder.path().join("provider"), faults, |options| {
        options.turnaround = std::time::Duration::from_millis(500);
    });
    let mut server = serve(folder.path(), &provider, port, set);
    let text =
        |number: usize| if number % 5 == 2 { format!("poison {number}") } else { format!("good {number}") };
    send(&server, "demo", 16, text);
    let (good, bad) = (16 - bad as u64, bad as u64);
    until(&mut server, "the end", |server| (server.summary() == [0, 0, good, bad]).then_some(()));
    for request in requests(&server) {
        let failed = request["status"] == "processing_failed";
        let client = request["clientId"].as_str().unwrap();
        assert_eq!(failed, ["demo-2", "demo-7", "demo-12"].contains(&client), "{request}");
        assert_eq!(request["attempts"], u64::from(!failed), "what was refused has not run: {request}");
    }
    let made = batches(&server).len();
    assert!(made <= batches_max, "{made} batches");
    assert!(server.terminate().success());
    assert_once(&provider.runs(), 16 - usize::try_from(bad).unwrap());
    assert_whole(folder.path());
}

#[test]
fn lines_that_are_named_round_by_round_fail_and_the_others_complete() {
    let faults = r#"{"batches": [{"fault": "refuse", "containing": "poison", "code": "invalid_request", "named": true}]}"#;
    only_the_bad_ones_fail(faults, &[], 3, 4);
}

#[test]
fn a_line_that_is_never_named_is_found_by_halving() {
    let faults = r#"{"batches": [{"fault": "refuse", "containing": "poison", "code": "invalid_json_line"}]}"#;
    only_the_bad_ones_fail(faults, &[], 3, 40);
}

/// A provider that refuses what has a poisoned line, for words that nobody knows.
fn refusing_without_a_reason(folder: &std::path::Path) -> Provider {
    let faults = r#"{"batches": [{"fault": "refuse", "containing": "poison", "code": "something_new"}]}"#;
    Provider::start(&folder.join("provider"), faults, |options| {
        options.turnaround = std::time::Duration::from_millis(300);
    })
}

fn one_line_holds_up_no_other(bad: usize, all: usize, set: &[&str]) {
    let folder = folder();
    let port = free_port();
    let provider = refusing_without_a_reason(folder.path());
    let mut server = serve(folder.path(), &provider, port, set);
    let text = |number| if number == bad { "poison".to_owned() } else { format!("good {number}") };
    send(&server, "demo", all, text);
    let parked = until(&mut server, "the bad one alone", |server| {
        let parked = batches(server).into_iter().find(|batch| batch["step"] == "parked");
        parked.filter(|_| server.summary() == [0, 1, all as u64 - 1, 0])
    });
    assert_eq!(parked["counts"]["members"], 1, "{parked}");
    assert!(server.terminate().success());
    assert_once(&provider.runs(), all - 1);
    assert_whole(folder.path());
}

#[test]
fn a_line_that_is_refused_for_a_reason_that_nobody_knows_holds_up_no_other_and_waits_alone() {
    one_line_holds_up_no_other(2, 8, &[]);
}

/// The other half is admitted before the bad one is even cut.
#[test]
fn halves_that_are_cut_at_different_times_find_such_a_line_too() {
    one_line_holds_up_no_other(3, 4, &["creation.interval=4s"]);
}

#[test]
fn a_half_that_was_parked_before_the_other_one_was_cut_is_tried_again_once_that_is_admitted() {
    let folder = folder();
    let port = free_port();
    let provider = refusing_without_a_reason(folder.path());
    // All four are cut at once, and each half waits for the timer.
    let set = ["creation.interval=30s", "creation.max_requests=4"];
    let mut server = serve(folder.path(), &provider, port, &set);
    let text = |number| if number == 0 { "poison".to_owned() } else { format!("good {number}") };
    send(&server, "demo", 4, text);
    let parked = until(&mut server, "the half with the bad one parked", |server| {
        batches(server).into_iter().find(|batch| batch["step"] == "parked")
    });
    assert_eq!(parked["counts"]["members"], 2, "{parked}");
    assert_eq!(server.summary(), [2, 2, 0, 0], "the other half waits");
    let halved = until(&mut server, "its end", |server| {
        let half = batch(server, &id(&parked));
        half["closedAt"].is_string().then_some(half)
    });
    assert_eq!(halved["counts"]["returned"], 2, "{halved}");
    assert!(server.terminate().success());
    assert!(provider.runs().values().all(|runs| *runs == 1));
    assert_whole(folder.path());
}
