//! The service as a user meets it: one command, clear errors, and the demonstration.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{PATIENCE, Server, TOKEN, free_port, nightshift, run, text};
use crate::trouble::bench::until;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// What a command that has to fail says, after its exit code.
fn refused(data: &Path, set: &[&str]) -> (i32, String) {
    let mut command = nightshift(data);
    for set in set {
        command.args(["--set", set]);
    }
    let output = run(&mut command);
    (output.status.code().unwrap(), text(&output.stderr))
}

#[test]
fn one_command_takes_the_sample_to_the_end_within_a_minute() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = nightshift(folder.path());
    command.current_dir(root()).args(["--set", &format!("server.bind=127.0.0.1:{port}")]);
    let started = Instant::now();
    let mut server = Server::spawn(command, port);
    server.wait_for("analyses requested").unwrap();
    server.wait_until_done(20, Duration::from_secs(60));
    let [_, _, complete, failed] = server.summary();
    assert_eq!((complete, failed), (22, 0), "{}", server.tail());
    assert!(started.elapsed() < Duration::from_secs(60));
    server.wait_for("all work is done").unwrap();
    let log = server.seen.join("\n");
    // What somebody said in a conversation is nowhere in the log.
    let transcript = fs::read_to_string(
        fs::read_dir(root().join("data/sample/transcripts")).unwrap().next().unwrap().unwrap().path(),
    )
    .unwrap();
    let said = transcript.lines().next().unwrap().rsplit_once(": ").unwrap().1.to_owned();
    assert!(!log.contains(&said), "{said}");

    let page = server.get("/api/admin/legacy/requests?status=processing_complete&limit=1");
    let id = page["requests"][0]["id"].as_str().unwrap();
    let request = &server.get(&format!("/api/admin/legacy/requests/{id}"))["request"];
    for field in
        ["sessionId", "providerRequestId", "answeredModel", "serviceTier", "systemFingerprint", "costMicros"]
    {
        assert!(!request[field].is_null(), "{field}: {request}");
    }
    assert!(request["analysis"]["summary"].as_str().unwrap().chars().count() >= 10);
    assert!(server.terminate().success());
}

#[test]
fn an_export_is_sent_by_the_command_line_twice_without_doubling() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let bind = format!("server.bind=127.0.0.1:{port}");
    let fast = [
        "creation.interval=1s",
        "creation.max_age=0s",
        "polling.interval=1s",
        "analysis.settle=0s",
        "simulator.turnaround=1s",
    ];
    let mut server = Server::start(folder.path(), port, &fast);
    let import = |file: &Path| {
        let output = run(nightshift(folder.path())
            .args(["--json", "--set", &bind, "import", "--company", "demo"])
            .arg(file));
        assert!(output.status.success(), "{}", text(&output.stderr));
        (serde_json::from_slice::<Value>(&output.stdout).unwrap(), text(&output.stderr))
    };
    let sample = root().join("data/sample/sessions.csv");
    let (first, _) = import(&sample);
    assert_eq!((&first["accepted"], &first["duplicate"]), (&Value::from(24), &Value::from(0)), "{first}");
    let (second, _) = import(&sample);
    assert_eq!((&second["accepted"], &second["duplicate"]), (&Value::from(0), &Value::from(24)), "{second}");

    // A bad row is named with its line and stops nothing.
    let mut bad = fs::read_to_string(&sample).unwrap();
    bad.push_str("x-1,not a date,01.02.2026 10:00:00,,NL,nl,1,,,,,1,1,0,,hello\n");
    let broken = root().join("data/sample").join("sessions.csv");
    let copy = folder.path().join("bad.csv");
    fs::write(&copy, bad).unwrap();
    let output = run(nightshift(folder.path())
        .args(["--json", "--set", &bind, "import", "--company", "demo", "--transcripts"])
        .arg(broken.parent().unwrap())
        .arg(&copy));
    let counts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&counts["badRows"], &counts["duplicate"]), (&Value::from(1), &Value::from(24)), "{counts}");
    let said = text(&output.stderr);
    assert!(said.contains("line ") && said.contains("column 2"), "{said}");

    server.wait_until_done(22, Duration::from_secs(60));
    assert_eq!(server.summary(), [0, 0, 22, 0]);
    for command in [&["status"][..], &["batches"], &["requests", "--status", "processing_complete"]] {
        let output = run(nightshift(folder.path()).args(["--set", &bind]).args(command));
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{command:?}: {}",
            text(&output.stderr)
        );
        let output = run(nightshift(folder.path()).args(["--json", "--set", &bind]).args(command));
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["ok"], true);
    }
}

#[test]
fn a_second_process_on_the_same_folder_is_told_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let _server = Server::start(folder.path(), port, &[]);
    let (code, said) = refused(folder.path(), &[&format!("server.bind=127.0.0.1:{}", free_port())]);
    assert_eq!(code, 75, "{said}");
    assert!(said.contains("in use by process"), "{said}");
    let verify = run(nightshift(folder.path()).arg("verify"));
    assert_eq!(verify.status.code(), Some(75));
    // Where the server is known, it checks its store itself.
    let bind = format!("server.bind=127.0.0.1:{port}");
    let verify = run(nightshift(folder.path()).args(["--json", "--set", &bind, "verify"]));
    assert!(verify.status.success(), "{}", text(&verify.stderr));
    let found: Value = serde_json::from_slice(&verify.stdout).unwrap();
    assert_eq!((&found["whole"], &found["violations"]), (&Value::from(true), &Value::from(Vec::<u8>::new())));
    assert!(found["counts"]["entries"].as_u64().unwrap() > 0, "{found}");
}

#[test]
fn a_port_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, said) = refused(folder.path(), &[&format!("server.bind={address}")]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&address) && said.contains("[server] bind"), "{said}");
}

#[test]
fn openai_without_a_key_and_unknown_settings_are_refused_all_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let set = ["provider.kind=openai", "creation.intervall=1s", "polling.interval=10ms"];
    let (code, said) = refused(folder.path(), &set);
    assert_eq!(code, 78, "{said}");
    for part in ["OPENAI_API_KEY", "creation.intervall", "creation.interval", "polling.interval"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let check = run(nightshift(folder.path()).args(["config", "check"]));
    assert!(check.status.success(), "{}", text(&check.stderr));
    assert!(text(&check.stdout).contains("creation.interval"));
    assert!(!text(&check.stdout).contains(crate::process::TOKEN), "a secret is listed");
}

#[test]
fn a_store_that_is_no_store_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path(), free_port(), &[]);
    assert!(server.terminate().success());
    let store = folder.path().join("data/store");
    let whole = fs::read(store.join("db")).unwrap();
    let damages: [(&str, &dyn Fn()); 2] = [
        ("zeroed", &|| fs::write(store.join("db"), vec![0; whole.len()]).unwrap()),
        ("gone", &|| fs::remove_dir_all(&store).unwrap()),
    ];
    for (name, damage) in damages {
        damage();
        let (code, said) = refused(folder.path(), &[&format!("server.bind=127.0.0.1:{}", free_port())]);
        assert_eq!(code, 78, "{name}: {said}");
        assert!(said.contains("restore"), "{name}: {said}");
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a-file");
    fs::write(&file, "").unwrap();
    let (code, said) = refused(folder.path(), &[&format!("data.path={}/data", file.display())]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("a-file"), "{said}");
}

#[test]
fn an_export_that_cannot_be_read_is_named_and_the_service_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.toml");
    fs::write(&config, "[[companies]]\nid = \"demo\"\n[[imports]]\ncompany = \"demo\"\ncsv = \"gone.csv\"\n")
        .unwrap();
    let mut server = Server::start(folder.path(), free_port(), &[]);
    let said = server.wait_for("gone.csv").unwrap();
    assert!(said.contains("cannot be read"), "{said}");
    assert_eq!(server.summary(), [0, 0, 0, 0]);
}

#[test]
fn the_first_token_is_made_once_kept_private_and_can_be_reset() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let start = || {
        let mut command = nightshift(folder.path());
        command
            .env_remove("NIGHTSHIFT_ADMIN_TOKEN")
            .args(["--set", &format!("server.bind=127.0.0.1:{port}")]);
        Server::spawn(command, port)
    };
    let path = folder.path().join("data/admin-token");
    let mut server = start();
    let first = fs::read_to_string(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!server.seen.join("\n").contains(first.trim()), "the token is in the log");
    server.terminate();
    let mut server = start();
    assert_eq!(fs::read_to_string(&path).unwrap(), first);
    server.terminate();
    let reset = run(nightshift(folder.path()).env_remove("NIGHTSHIFT_ADMIN_TOKEN").args(["token", "reset"]));
    assert!(reset.status.success(), "{}", text(&reset.stderr));
    let second = fs::read_to_string(&path).unwrap();
    assert_ne!(first, second);
    assert_eq!(text(&reset.stdout), second);
    let _server = start();
    let bind = format!("server.bind=127.0.0.1:{port}");
    let status =
        run(nightshift(folder.path()).env_remove("NIGHTSHIFT_ADMIN_TOKEN").args(["--set", &bind, "status"]));
    assert!(status.status.success(), "{}", text(&status.stderr));
    fs::write(&path, first).unwrap();
    let status =
        run(nightshift(folder.path()).env_remove("NIGHTSHIFT_ADMIN_TOKEN").args(["--set", &bind, "status"]));
    assert!(text(&status.stderr).contains("401"), "{}", text(&status.stderr));
}

/// Sends these bytes and nothing more, and gives what comes back until the server ends the connection.
fn stuck(port: u16, sent: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(sent.as_bytes()).unwrap();
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    text(&reply)
}

#[test]
fn a_sender_that_stops_in_the_midst_is_told_so_and_what_it_had_sent_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), "[[companies]]\nid = \"demo\"\n").unwrap();
    let port = free_port();
    let mut server = Server::start(folder.path(), port, &["creation.enabled=false"]);
    let head = |content_type: &str| {
        format!(
            "POST /api/v1/companies/demo/requests HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
             Content-Type: {content_type}\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n",
            TOKEN
        )
    };
    let body = r#""body":{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Name a river."}]}"#;
    let lines: String = (0..300).map(|number| format!("{{\"id\":\"r-{number}\",{body}}}\n")).collect();
    let calls = [head("application/x-ndjson") + &lines, head("application/json") + "{\"body\":"];
    let senders = calls.map(|call| std::thread::spawn(move || stuck(port, &call)));
    let [stream, whole] = senders.map(|sender| sender.join().unwrap());
    for reply in [&stream, &whole] {
        assert!(reply.starts_with("HTTP/1.1 408 ") && reply.contains("\"code\":\"too_slow\""), "{reply}");
    }
    // What came whole is stored, and the reply says how far it came.
    assert!(stream.contains("\"accepted\":300") && stream.contains("\"lastLine\":300"), "{stream}");
    assert_eq!(server.summary(), [300, 0, 0, 0]);
    assert!(server.terminate().success());
}

#[test]
fn lines_of_a_slow_sender_are_stored_while_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), "[[companies]]\nid = \"demo\"\n").unwrap();
    let port = free_port();
    let mut server = Server::start(folder.path(), port, &["creation.enabled=false"]);
    let stored = |server: &Server| {
        server.get("/api/v1/companies/demo/sessions?limit=100")["sessions"].as_array().unwrap().len()
    };
    let mut count = 0;
    for content_type in ["text/csv", "application/x-ndjson"] {
        let mut sender = TcpStream::connect(("127.0.0.1", port)).unwrap();
        sender.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = "POST /api/v1/companies/demo/sessions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked";
        write!(sender, "{head}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {content_type}\r\n\r\n")
            .unwrap();
        for _ in 0..3 {
            count += 1;
            let line = match content_type {
                "text/csv" => {
                    format!("s-{count},01.02.2026 10:00:00,01.02.2026 10:05:00,,DE,de,2,,,,,,,,,\n")
                }
                _ => format!("{{\"externalId\":\"s-{count}\",\"messages\":[]}}\n"),
            };
            write!(sender, "{:x}\r\n{line}\r\n", line.len()).unwrap();
            until(&mut server, "a session", |server| (stored(server) == count).then_some(()));
        }
        write!(sender, "0\r\n\r\n").unwrap();
        let mut reply = [0; 4096];
        let length = sender.read(&mut reply).unwrap();
        assert!(text(&reply[..length]).starts_with("HTTP/1.1 200 "), "{}", text(&reply[..length]));
    }
    assert!(server.terminate().success());
}

/// Sends all of a call, as most programs do, and only then looks for the answer.
fn sent_first(port: u16, head: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(stream, "{head}\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").unwrap();
    stream.write_all(body).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    text(&reply)
}

#[test]
fn what_is_refused_before_all_of_it_was_read_is_told_to_clients_that_send_first() {
    let folder = tempfile::tempdir().unwrap();
    let companies = "[[companies]]\nid = \"demo\"\n[[companies]]\nid = \"other\"\n";
    fs::write(folder.path().join("config.toml"), companies).unwrap();
    let port = free_port();
    let mut server =
        Server::start(folder.path(), port, &["creation.enabled=false", "ingest.bytes_per_hour=5MB"]);
    let line = format!(
        "{{\"body\":{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":\"{}\"}}]}}}}\n",
        "Name a river. ".repeat(1000)
    );
    let body = line.repeat((20 << 20) / line.len());
    let to = |path: &str, content_type: &str| {
        format!("POST {path} HTTP/1.1\r\nContent-Type: {content_type}\r\nAuthorization: Bearer {TOKEN}")
    };
    let (requests, lines) = ("/api/v1/companies/demo/requests", "application/x-ndjson");
    let no_token = format!("POST {requests} HTTP/1.1\r\nContent-Type: {lines}");
    for (head, status, code) in [
        (no_token, 401, "unauthorized"),
        (to("/nowhere", lines), 404, "not_found"),
        (to("/api/admin/legacy/summary", lines), 405, "method_not_allowed"),
        (to("/api/v1/companies/nobody/requests", lines), 404, "unknown_company"),
        (to(requests, "text/plain"), 415, "unsupported_media_type"),
        (to("/api/admin/legacy/companies", "application/json"), 413, "too_large"),
        (to(requests, lines), 429, "rate_limited"),
    ] {
        let reply = sent_first(port, &head, body.as_bytes());
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")) && reply.contains(code), "{head}: {reply}");
        if status == 429 {
            assert!(reply.contains("retry-after: ") && reply.contains("\"lastLine\":"), "{reply}");
        }
    }
    assert!(server.terminate().success());
}

#[test]
fn a_folder_without_a_store_is_not_said_to_be_whole_and_gets_none() {
    let folder = tempfile::tempdir().unwrap();
    for command in [&["verify"][..], &["store", "accept", "--yes"], &["store", "compact"]] {
        let ended = run(nightshift(folder.path()).args(command));
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(78), "{command:?}: {said}");
        assert!(said.contains("there is no store in it") && said.contains("data.path"), "{said}");
    }
    assert!(!folder.path().join("data/store").exists());
}
