//! The wall clock of the real binary jumps while batches are under way; the provider's goes on.

use std::collections::BTreeSet;
use std::path::Path;

use super::bench::{
    Provider, assert_once, assert_whole, batches, command, folder, provider, question, send_from, serve,
    until,
};
use crate::process::{Server, free_port, turn_clock, with_clock};

/// What the clock says after each jump; the first by how much, the others as the time of day in Berlin: the hour
/// that summer time leaves out, the one that it has twice, the last second of 32 bits, a leap second, a clock whose
/// battery is empty, and a leap day.
const JUMPS: [&str; 10] = [
    "+25h",
    "-2h",
    "-3d",
    "@2027-03-28 01:59:59",
    "@2027-10-31 02:59:59",
    "@2038-01-19 04:14:06",
    "@2017-01-01 00:59:59",
    "@1970-01-02 00:59:59",
    "@2028-02-29 23:59:59",
    "+0",
];

/// A server that takes its wall time from a file.
fn serve_with_clock(data: &Path, remote: &Provider, port: u16, clock: &Path) -> Server {
    let mut command = command(data, &remote.url, port, &["creation.max_requests=5"]);
    with_clock(&mut command, clock);
    command.env("TZ", "Europe/Berlin");
    Server::spawn(command, port)
}

#[test]
fn whatever_the_clock_says_nothing_ends_early_hangs_or_is_paid_for_twice() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"seed": 5, "calls": [
        {"call": "batches.create", "fault": "drop_after", "probability": 0.3},
        {"call": "files.create", "fault": "status", "status": 429, "retry_after": {"seconds": 1}, "probability": 0.2}
    ]}"#;
    let remote = Provider::start(&folder.path().join("provider"), faults, |_| ());
    let clock = folder.path().join("clock");
    let turn = |to: &str| turn_clock(&clock, to);
    turn("+0");
    let mut server = serve_with_clock(folder.path(), &remote, port, &clock);
    let wave = 10;
    let mut sent = 0;
    for (nth, jump) in JUMPS.iter().enumerate() {
        send_from(&server, ["demo", "other"][nth % 2], sent, wave, question);
        sent += wave;
        until(&mut server, "work under way", |server| {
            batches(server).iter().any(|batch| batch["closedAt"].is_null()).then_some(())
        });
        turn(jump);
        let shown = || server.get("/api/admin/legacy/summary");
        assert_eq!(shown()["ok"], true, "{}", shown());
        if nth % 3 == 2 {
            server.kill();
            server = serve_with_clock(folder.path(), &remote, port, &clock);
        }
        until(&mut server, "the end of what was sent", |server| {
            (server.summary() == [0, 0, sent as u64, 0]).then_some(())
        });
        assert!(provider(&server)["paused"].is_null(), "{jump}: {}", server.tail());
    }
    let years: BTreeSet<_> =
        batches(&server).iter().map(|batch| batch["createdAt"].as_str().unwrap()[..4].to_owned()).collect();
    assert!(
        ["1970", "2017", "2027", "2028", "2038"].iter().all(|year| years.contains(*year)),
        "the clock did not jump: {years:?}"
    );
    assert!(server.terminate().success());
    // And with a clock that is right.
    let mut server = serve(folder.path(), &remote, port, &[]);
    until(&mut server, "an end of all batches", |server| {
        batches(server).iter().all(|batch| !batch["closedAt"].is_null()).then_some(())
    });
    assert!(server.terminate().success());
    assert_once(&remote.runs(), sent);
    assert_whole(folder.path());
}

#[test]
fn a_restart_with_a_clock_that_is_ahead_gives_no_result_file_up_that_comes_late() {
    let folder = folder();
    let port = free_port();
    let faults = r#"{"batches": [{"fault": "null_output", "polls": 12, "output_only": true, "nth": 1}, {"fault": "no_counts"}]}"#;
    let remote = Provider::start(&folder.path().join("provider"), faults, |_| ());
    let clock = folder.path().join("clock");
    turn_clock(&clock, "+0");
    let mut server = serve_with_clock(folder.path(), &remote, port, &clock);
    send_from(&server, "demo", 0, 5, question);
    until(&mut server, "a batch without its files", |server| {
        (batches(server)[..].first()?["step"] == "settling").then_some(())
    });
    server.kill();
    turn_clock(&clock, "+3h");
    let mut server = serve_with_clock(folder.path(), &remote, port, &clock);
    until(&mut server, "the end", |server| {
        let [pending, in_progress, completed, failed] = server.summary();
        (pending + in_progress == 0).then_some((completed, failed))
    });
    assert_eq!(server.summary(), [0, 0, 5, 0]);
    assert!(server.terminate().success());
    assert_once(&remote.runs(), 5);
    assert_whole(folder.path());
}
