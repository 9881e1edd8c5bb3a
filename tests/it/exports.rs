//! Exports out of the real binary: slow readers, a server that is killed in the midst, and the command line.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{PATIENCE, Server, TOKEN, free_port, nightshift, run, text};

/// More than what fits between the two processes without being read.
const REQUESTS: usize = 12_000;
const METADATA_BYTES: usize = 4_000;

/// A server that sends nothing and has many wide requests of `demo`.
fn filled(folder: &Path) -> (Server, u16) {
    fs::write(folder.join("config.toml"), "[[companies]]\nid = \"demo\"\n").unwrap();
    let port = free_port();
    let server = Server::start(folder, port, &["creation.enabled=false"]);
    let wide = "x".repeat(METADATA_BYTES);
    for chunk in 0..REQUESTS / 1000 {
        let mut lines = String::new();
        for number in 0..1000 {
            let line = json!({
                "id": format!("order-{}", chunk * 1000 + number),
                "body": { "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": "Name a river." }] },
                "metadata": { "wide": wide },
            });
            lines.push_str(&line.to_string());
            lines.push('\n');
        }
        let answer = server.post("/api/v1/companies/demo/requests", "application/x-ndjson", lines);
        assert_eq!(answer["accepted"], 1000, "{answer}");
    }
    (server, port)
}

fn export(folder: &Path, port: u16, rest: &[&str]) -> Command {
    let mut command = nightshift(folder);
    command.args(["--set", &format!("server.bind=127.0.0.1:{port}"), "export"]).args(rest);
    command
}

/// What a command shows on a terminal.
fn on_a_terminal(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> =
        words.map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''"))).collect();
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line.join(" "), "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    script.envs(set).current_dir(command.get_current_dir().unwrap_or(Path::new(".")));
    let output = run(&mut script);
    assert!(output.status.success(), "{}", text(&output.stdout));
    text(&output.stdout)
}

/// Resident memory of a process, in bytes.
fn memory(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn an_export_by_the_command_line_is_whole_also_where_its_reader_is_slow() {
    let folder = tempfile::tempdir().unwrap();
    let (server, port) = filled(folder.path());
    let file = folder.path().join("requests.csv");
    let shown = file.display().to_string();
    let arguments = ["requests", "--company", "demo", "--format", "csv", "--output", &shown];
    let output = run(&mut export(folder.path(), port, &arguments));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = fs::read_to_string(&file).unwrap();
    assert_eq!(written.matches("\r\n").count(), REQUESTS + 1);
    assert!(written.starts_with("id,clientId,"));

    // Who looks on sees how far it is, and the file is the same.
    let shown = on_a_terminal(&export(folder.path(), port, &arguments));
    // It is drawn some times a second, so not at the very end.
    assert!(shown.contains(&format!("/{REQUESTS} rows")), "{shown}");
    assert_eq!(fs::read_to_string(&file).unwrap(), written);

    // A reader that rests: the server waits, with little in its memory, and then goes on to the end.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET /api/v1/companies/demo/export/requests HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut first = [0; 1024];
    stream.read_exact(&mut first).unwrap();
    let before = memory(&server);
    // It answers others meanwhile.
    for _ in 0..50 {
        server.summary();
    }
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < (REQUESTS * METADATA_BYTES) as u64 / 2, "{grown} bytes more");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let body = [first.as_slice(), &rest].concat();
    assert!(body.ends_with(b"\r\n0\r\n\r\n"), "the body has an end");
    assert_eq!(text(&body).matches("\"clientId\":\"order-").count(), REQUESTS);

    // A reader that is gone leaves nothing behind that would keep the server from leaving.
    drop(stream);
    let mut server = server;
    let began = Instant::now();
    assert!(server.terminate().success());
    assert!(began.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_server_that_is_killed_in_the_midst_leaves_no_file_and_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let (mut server, port) = filled(folder.path());
    let file = folder.path().join("requests.ndjson");
    // Its standard output is a pipe that nobody reads: it stands still in the midst of the export.
    let mut piped = export(folder.path(), port, &["requests", "--company", "demo"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(piped.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let whole: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(whole["companyId"], "demo");

    // The other one writes to a file; it is stopped as soon as it has begun.
    let shown = file.display().to_string();
    let mut to_file = export(folder.path(), port, &["requests", "--company", "demo", "--output", &shown])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let part = folder.path().join(format!(".requests.ndjson.{}.part", to_file.id()));
    let end = Instant::now() + PATIENCE;
    while fs::metadata(&part).map_or(0, |part| part.len()) == 0 {
        assert!(Instant::now() < end, "it writes nothing");
        std::thread::yield_now();
    }
    let signal = |name: &str| {
        let kill = Command::new("kill").args([name, &to_file.id().to_string()]).status().unwrap();
        assert!(kill.success());
    };
    signal("-STOP");
    server.kill();
    signal("-CONT");

    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let ended = piped.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended.stderr));
    assert!(text(&ended.stderr).contains("not all of it"), "{}", text(&ended.stderr));
    assert!(rest.lines().count() < REQUESTS);

    let mut said = String::new();
    to_file.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(to_file.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("not all of it"), "{said}");
    assert!(!file.exists() && !part.exists(), "half a file is left");
}
