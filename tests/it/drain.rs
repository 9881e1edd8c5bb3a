//! Leaving: a signal in the midst of every kind of work. The process is gone in time with 0, the next start goes on, and
//! nothing is lost or paid for twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::disk::{Provider, assert_known, send, send_to, until, verify};
use crate::process::{PATIENCE, Server, free_port};

/// The longest that a stop may take.
const TIME: Duration = Duration::from_secs(10);

/// Sends more work.
fn send_more(server: &Server, sent: &mut usize) {
    assert_eq!(send(server, *sent, 550).unwrap().0, 200);
    *sent += 550;
}

/// Waits until a batch comes to a step. What is there may be past it: the batch that the signal before was meant for
/// went on until it came, and is not told of again.
fn until_reached(server: &mut Server, step: &str, sent: &mut usize) {
    let reached = |line: &str| {
        line.contains(&format!("\"step\":\"{step}\"")) || (step == "filling" && line.contains("progress"))
    };
    let end = Instant::now() + PATIENCE;
    while server.wait_until(Duration::from_secs(10), reached).is_none() {
        assert!(Instant::now() < end, "{step} is not reached: {}", server.tail());
        send_more(server, sent);
    }
}

#[test]
fn a_signal_in_the_midst_of_each_step_ends_it_in_time_and_the_next_start_goes_on() {
    let rounds = if std::env::var("NIGHTSHIFT_TEST_LONG").is_ok() { 8 } else { 2 };
    let folder = tempfile::tempdir().unwrap();
    let mut provider = Provider::start(folder.path(), "1s", "{}");
    let port = free_port();
    let mut sent = 0;
    for round in 0..rounds {
        for step in ["filling", "uploading", "creating", "downloading", "applying", "closing", "cleaning"] {
            let mut server = provider.server(folder.path(), port, &["creation.max_requests=600"]);
            if sent == 0 || server.summary()[0] + server.summary()[1] < 300 {
                send_more(&server, &mut sent);
            }
            until_reached(&mut server, step, &mut sent);
            let begun = Instant::now();
            let left = server.terminate();
            let took = begun.elapsed();
            assert!(left.success() && took < TIME, "round {round}, {step}: {left} after {took:?}");
            assert!(server.tail().contains("stopping"), "{}", server.tail());
        }
    }
    // It may be restarted as well.
    provider = provider.restart("1s", "{}");
    let mut server = provider.server(folder.path(), port, &[]);
    assert_known(&server, sent);
    server.wait_until_done(sent as u64, Duration::from_secs(120));
    assert_eq!(server.summary(), [0, 0, sent as u64, 0], "{}", server.tail());
    assert!(server.terminate().success());
    provider.assert_ran_once(sent);
    verify(folder.path());
}

#[test]
fn a_signal_under_load_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(folder.path(), "1s", "{}");
    let port = free_port();
    let mut server = provider.server(folder.path(), port, &[]);
    let (acknowledged, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    std::thread::scope(|scope| {
        let url = server.url.clone();
        let (counted, stopped) = (acknowledged.clone(), stop.clone());
        let load = scope.spawn(move || {
            let mut next = 0;
            while !stopped.load(Ordering::SeqCst) {
                match send_to(&url, next, 500) {
                    Ok((200, _)) => {
                        next += 500;
                        counted.store(next, Ordering::SeqCst);
                    }
                    // A part of it may be stored, and is told.
                    Ok((503, answer)) => {
                        counted.store(
                            next + answer["lastLine"].as_u64().unwrap_or(0) as usize,
                            Ordering::SeqCst,
                        );
                        return;
                    }
                    Ok((status, answer)) => panic!("{status}: {answer}"),
                    Err(_) => return,
                }
            }
        });
        while acknowledged.load(Ordering::SeqCst) < 2000 {
            std::thread::yield_now();
        }
        server.signal(Signal::TERM);
        load.join().unwrap();
        stop.store(true, Ordering::SeqCst);
    });
    let left = server.left(TIME).expect("it leaves in time");
    assert!(left.success(), "{left}: {}", server.tail());
    let acknowledged = acknowledged.load(Ordering::SeqCst);
    let mut server = provider.server(folder.path(), port, &[]);
    assert_known(&server, acknowledged);
    server.wait_until_done(acknowledged as u64, Duration::from_secs(120));
    assert!(server.terminate().success());
    verify(folder.path());
}

#[test]
fn a_second_signal_ends_it_at_once_although_a_client_holds_on() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(folder.path(), "1s", "{}");
    let port = free_port();
    for (first, second) in
        [(Signal::TERM, Some(Signal::INT)), (Signal::INT, Some(Signal::TERM)), (Signal::TERM, None)]
    {
        let mut server = provider.server(folder.path(), port, &[]);
        // A body that does not come to an end.
        let mut holds_on = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let head = format!(
            "POST /api/v1/companies/demo/requests HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
             content-type: application/x-ndjson\r\ncontent-length: 100000\r\n\r\n{{",
            crate::process::TOKEN
        );
        holds_on.write_all(head.as_bytes()).unwrap();
        until(&mut server, "it is up", |server| server.summary() == [0; 4]);
        server.signal(first);
        server.wait_for("stopping").unwrap();
        match second {
            Some(second) => {
                server.signal(second);
                let left = server.left(Duration::from_secs(3)).expect("it leaves at once");
                assert_eq!(left.code(), Some(1), "{}", server.tail());
            }
            None => {
                let left = server.left(TIME).expect("it leaves in time");
                assert!(left.success(), "{left}: {}", server.tail());
            }
        }
    }
    verify(folder.path());
}
