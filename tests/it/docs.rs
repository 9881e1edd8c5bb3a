//! What the documentation shows is run as it stands there: each example of the API's page, and the client.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nightshift::http::table;
use serde_json::{Value, json};

use crate::harness::PROVIDER_SECRET;
use crate::process::{PATIENCE, Server, TOKEN, free_port, nightshift, run, text};

/// Parts the outputs of the commands; no answer has it.
const MARK: &str = "=====";
/// A host that may be told of what is finished, and where nobody listens.
const RECEIVER: &str = "127.0.0.1:9";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The demonstration, its first batch behind it. A batch takes long enough to be cancelled meanwhile.
fn demonstration(folder: &Path, set: &[&str]) -> Server {
    let port = free_port();
    let mut command = nightshift(folder);
    let bind = format!("server.bind=127.0.0.1:{port}");
    for set in [bind.as_str()].iter().chain(set) {
        command.args(["--set", set]);
    }
    command.current_dir(root()).env("OPENAI_WEBHOOK_SECRET", PROVIDER_SECRET);
    let mut server = Server::spawn(command, port);
    server.wait_for("analyses requested").unwrap();
    server.wait_until_done(22, PATIENCE);
    server
}

/// A command of the page, and what it says that it answers.
struct Example {
    line: usize,
    command: String,
    expected: Vec<String>,
}

/// The commands of every block of a page, in order.
fn examples(page: &str) -> Vec<Example> {
    let (mut examples, mut inside) = (Vec::new(), false);
    let mut open: Option<Example> = None;
    for (number, line) in (1..).zip(page.lines()) {
        if line.starts_with("```") {
            inside = line == "```sh";
            assert!(open.is_none(), "line {number}: the command before it does not end");
        } else if let (true, None, Some(told)) = (inside, &open, line.strip_prefix("# ")) {
            let last: &mut Example = examples.last_mut().expect("what is answered stands below a command");
            last.expected.push(told.to_owned());
        } else if inside {
            let example = open.get_or_insert_with(|| Example {
                line: number,
                command: String::new(),
                expected: Vec::new(),
            });
            example.command.push_str(line);
            example.command.push('\n');
            if is_whole(&example.command) {
                examples.extend(open.take());
            }
        }
    }
    examples
}

/// Whether the shell would not wait for more.
fn is_whole(command: &str) -> bool {
    let open = command.trim_end().ends_with(['\\', '|']);
    !open && run(Command::new("bash").args(["-n", "-c", command])).status.success()
}

/// One script of all, each command's output behind its mark. It stops at the first that fails.
fn script(examples: &[Example]) -> String {
    let mut script = String::new();
    for (number, example) in examples.iter().enumerate() {
        script += &format!("printf '\\n%s %s\\n' {MARK} {number}\n{}", example.command);
    }
    script
}

/// What was expected as values: `…` alone stands for anything, in an object or a list for what else there is.
fn values(told: &str) -> Result<Vec<Value>, serde_json::Error> {
    let (mut json, mut inside, mut escaped, mut before) = (String::new(), false, false, ' ');
    let mut around = Vec::new();
    for char in told.chars() {
        match char {
            '"' if !escaped => inside = !inside,
            '{' | '[' if !inside => around.push(char),
            '}' | ']' if !inside => drop(around.pop()),
            _ => {}
        }
        if char == '…' && !inside {
            let member = around.last() == Some(&'{') && matches!(before, '{' | ',');
            json.push_str(if member { r#""…":"…""# } else { r#""…""# });
        } else {
            json.push(char);
        }
        escaped = inside && char == '\\' && !escaped;
        if !char.is_whitespace() {
            before = char;
        }
    }
    serde_json::Deserializer::from_str(&json).into_iter().collect()
}

/// Where and how an answer is not what was expected.
fn differs(at: &str, expected: &Value, found: &Value) -> Option<String> {
    let other = || Some(format!("{at}: expected {expected}, found {found}"));
    match (expected, found) {
        (Value::String(any), _) if any == "…" => None,
        (Value::String(pattern), Value::String(found)) if fits(pattern, found) => None,
        (Value::Object(expected), Value::Object(members)) => {
            if !expected.contains_key("…")
                && let Some(name) = members.keys().find(|name| !expected.contains_key(*name))
            {
                return Some(format!("{at}: {name} is not told of"));
            }
            let told = expected.iter().filter(|(name, _)| *name != "…");
            told.map(|(name, value)| (format!("{at}.{name}"), value, members.get(name))).find_map(
                |(at, value, found)| match found {
                    Some(found) => differs(&at, value, found),
                    None => Some(format!("{at} is not there: {found:?} in {members:?}")),
                },
            )
        }
        (Value::Array(expected), Value::Array(found)) => {
            let rest = expected.last() == Some(&json!("…"));
            let told = expected.len() - usize::from(rest);
            if found.len() < told || (!rest && found.len() > told) {
                return other();
            }
            let pairs = expected[..told].iter().zip(found).enumerate();
            pairs.map(|(n, (one, other))| differs(&format!("{at}[{n}]"), one, other)).find_map(|said| said)
        }
        _ if expected == found => None,
        _ => other(),
    }
}

/// Whether a text has the parts of a pattern, `…` between them standing for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let parts: Vec<&str> = pattern.split('…').collect();
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return false };
    if parts.len() == 1 {
        return pattern == text;
    }
    let Some(mut left) = text.strip_prefix(first).and_then(|left| left.strip_suffix(last)) else {
        return false;
    };
    parts[1..parts.len() - 1].iter().all(|part| {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
        true
    })
}

/// Why an output is not what the page says, if so.
fn wrong(example: &Example, output: &str) -> Option<String> {
    let told = example.expected.join("\n");
    if told.starts_with('{') {
        let expected = values(&told).unwrap_or_else(|err| panic!("line {}: {err}: {told}", example.line));
        let found: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(output).into_iter().collect();
        return match found {
            Ok(found) => differs("answer", &Value::from(expected), &Value::from(found)),
            Err(err) => Some(format!("no JSON ({err}): {output}")),
        };
    }
    let mut lines = output.lines().map(str::trim_end);
    let missing = example.expected.iter().find(|told| !lines.any(|line| fits(told, line)));
    missing.map(|missing| format!("no line {missing:?} in {output}"))
}

/// The names of all members that are ours. What a model answered, and a client's own words, are not.
fn names(answer: &Value, named: &mut BTreeSet<String>) {
    match answer {
        Value::Object(members) => {
            for (name, value) in members {
                named.insert(name.clone());
                if !["result", "analysis", "metadata"].contains(&name.as_str()) {
                    names(value, named);
                }
            }
        }
        Value::Array(entries) => entries.iter().for_each(|entry| names(entry, named)),
        _ => {}
    }
}

/// The path of the table that a call went to, with its method.
fn route_of(line: &str) -> Option<(&'static str, &'static str, u64)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = if line["fields"].is_object() { &line["fields"] } else { &line };
    if fields["message"] != "a call" {
        return None;
    }
    let parts: Vec<&str> = fields["path"].as_str()?.split('/').skip(1).collect();
    let entry = table::find(&parts)?.of(fields["method"].as_str()?)?;
    Some((entry.method, entry.path, fields["status"].as_u64()?))
}

#[test]
fn every_example_of_the_api_answers_what_the_page_says_and_every_route_has_one() {
    let page = fs::read_to_string(root().join("docs/http-api.md")).unwrap();
    let examples = examples(&page);
    let folder = tempfile::tempdir().unwrap();
    let allowed = format!("fetch.allow_hosts={RECEIVER}");
    let mut server = demonstration(folder.path(), &["log.level=debug", "simulator.turnaround=8s", &allowed]);
    server.seen.clear();

    let place = folder.path().join("examples");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("examples.sh"), script(&examples)).unwrap();
    let output = Command::new("timeout")
        .args(["240", "bash", "-euo", "pipefail", "examples.sh"])
        .current_dir(&place)
        .env("URL", &server.url)
        .env("TOKEN", TOKEN)
        .env("OPENAI_WEBHOOK_SECRET", PROVIDER_SECRET)
        .env("RECEIVER", format!("http://{RECEIVER}"))
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = text(&output.stdout);

    let mut named = BTreeSet::new();
    let mark = format!("\n{MARK} ");
    let mut outputs = said.split(&mark).skip(1);
    for (number, example) in examples.iter().enumerate() {
        let came = outputs.next().and_then(|came| came.split_once('\n'));
        let (of, came) = came.unwrap_or_else(|| {
            panic!("nothing came of line {}: {}{}", example.line, example.command, text(&output.stderr))
        });
        assert_eq!(of, number.to_string());
        let answers = serde_json::Deserializer::from_str(came).into_iter().filter_map(Result::ok);
        answers.for_each(|answer| names(&answer, &mut named));
        if example.expected.is_empty() {
            assert!(!came.contains("\"ok\":false"), "line {}: {}{came}", example.line, example.command);
        } else if let Some(why) = wrong(example, came) {
            panic!("docs/http-api.md, line {}: {}{why}", example.line, example.command);
        }
    }
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    let words: BTreeSet<_> = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let untold: BTreeSet<_> = named.iter().filter(|name| !words.contains(name.as_str())).collect();
    assert!(untold.is_empty(), "docs/http-api.md says nothing of {untold:?}");

    // Which calls there were is what the server says, not what the page looks like.
    server.wait_until(Duration::from_secs(1), |_| false);
    let calls: Vec<_> = server.seen.iter().filter_map(|line| route_of(line)).collect();
    let called: BTreeSet<_> = calls.iter().map(|(method, path, _)| (*method, *path)).collect();
    let without = table::TABLE.iter().map(|entry| (entry.method, entry.path));
    let without: Vec<_> = without.filter(|route| !called.contains(route)).collect();
    assert!(without.is_empty(), "docs/http-api.md has no example of {without:?}");
    let refused = calls.iter().filter(|(_, _, status)| *status >= 400).count();
    let told = examples.iter().filter(|one| one.expected.iter().any(|told| told.contains("\"ok\":false")));
    assert_eq!(refused, told.count(), "calls that were refused: {calls:?}");
}

#[test]
fn an_answer_that_is_not_what_the_page_says_is_noticed() {
    let fails = |told: &str, output: &str| {
        let expected = told.lines().map(str::to_owned).collect();
        wrong(&Example { line: 1, command: String::new(), expected }, output).is_some()
    };
    let found = r#"{"ok":true,"list":[{"id":"msg_1","n":2},{"id":"msg_2","n":3}],"text":"a, b"}"#;
    for right in [
        r#"{"ok":true,"list":[{"id":"msg_1","n":2},{"id":"msg_2","n":3}],"text":"a, b"}"#,
        r#"{"ok":true,…}"#,
        r#"{…,"list":[{"id":"msg_…","n":…},…],"text":"…"}"#,
        r#"{"list":[{"id":"…",…},{"n":3,…}],…,"text":"a…b"}"#,
        "{\"ok\":true,\n \"list\":…,\"text\":…}",
    ] {
        assert!(!fails(right, found), "{right}");
    }
    for bad in [
        r#"{"ok":true}"#,
        r#"{"ok":false,…}"#,
        r#"{"okay":…,…}"#,
        r#"{"list":[{"id":"msg_1","n":2}],…}"#,
        r#"{"list":[{"id":"msg_1"},…],…}"#,
        r#"{"list":[…],"text":"b…",…}"#,
        r#"{"list":{…},…}"#,
    ] {
        assert!(fails(bad, found), "{bad}");
    }
    assert!(fails("{…}", "curl: (7)") && fails("{…}", ""));
    assert!(!fails("a: …\nb", "a: 1\r\nx\r\nb\r\n") && fails("b\na", "a\nb"));
}

#[test]
fn the_calls_of_the_readme_are_taken_as_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let server = demonstration(folder.path(), &[]);
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let block = readme.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    let block = block.into_iter().find(|block| block.contains("curl")).unwrap();
    let token = folder.path().join("admin-token");
    fs::write(&token, TOKEN).unwrap();
    // What differs is where the demonstration listens and keeps its token.
    for part in ["data/demo/admin-token", "http://127.0.0.1:8080"] {
        assert!(block.contains(part), "{part}");
    }
    let block = block.replace("data/demo/admin-token", token.to_str().unwrap());
    let block = block.replace("http://127.0.0.1:8080", &server.url);
    let send = |block: &str| {
        let mut shell = Command::new("bash");
        let output = run(shell.args(["-euo", "pipefail", "-c", block]).env("NO_PROXY", "*"));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let answers = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        answers.collect::<Result<Vec<Value>, _>>().unwrap()
    };
    let first = send(&block);
    assert_eq!(first[0]["summary"]["processing_complete"], 22);
    assert_eq!((&first[1]["accepted"], first[1]["requests"][0]["id"].is_string()), (&json!(1), true));
    assert_eq!(send(&block)[1]["duplicate"], 1);
    assert_eq!(send(&block.replace("Hello?", "Who?"))[1]["errors"][0]["code"], "conflict");
}

#[test]
fn the_client_of_thirty_lines_sends_waits_and_brings_results_once() {
    let client = fs::read_to_string(root().join("docs/client.py")).unwrap();
    let code = client.rsplit("\"\"\"").next().unwrap().lines().filter(|line| !line.trim().is_empty());
    assert!(code.count() <= 30);

    let folder = tempfile::tempdir().unwrap();
    let server = demonstration(folder.path(), &["simulator.turnaround=1s"]);
    let script = folder.path().join("client.py");
    fs::write(&script, &client).unwrap();
    let send = |kind: &str, lines: &[Value]| {
        let file = folder.path().join("lines.ndjson");
        fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        let output = run(Command::new("python3")
            .arg(&script)
            .args(["demo", kind])
            .arg(&file)
            .env("NIGHTSHIFT_URL", &server.url)
            .env("NIGHTSHIFT_TOKEN", TOKEN)
            .env("no_proxy", "*"));
        let results = text(&output.stdout);
        let results: Vec<Value> = results.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (output.status.code().unwrap(), results, text(&output.stderr))
    };
    let question = |text: &str| json!({ "body": { "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": text }] } });
    let questions = [question("Name a river."), question("Name a lake.")];
    let (code, results, said) = send("requests", &questions);
    assert_eq!((code, results.len()), (0, 2), "{said}");
    assert!(said.contains("'accepted': 2"), "{said}");
    assert!(results.iter().all(|one| one["result"]["choices"].is_array()), "{results:?}");
    let (code, again, said) = send("requests", &questions);
    assert_eq!((code, &again), (0, &results), "{said}");
    assert!(said.contains("'duplicate': 2"), "{said}");

    let session = |id: &str, role: &str| json!({ "externalId": id, "messages": [{ "role": role, "content": "Where is my shift?" }] });
    let (code, results, said) = send("sessions", &[session("a/b", "user"), session("c", "nobody")]);
    assert_eq!((code, results.len()), (1, 1), "{said}");
    assert!(said.contains("role must be user"), "{said}");
    assert_eq!((&results[0]["externalId"], &results[0]["state"]), (&json!("a/b"), &json!("analysed")));

    let refused = send("requests", &[json!({ "body": {} })]);
    assert_eq!((refused.0, refused.1.len()), (1, 0));

    // Chunks that are equal are two all the same.
    let small = client.replace("islice(lines, 1000)", "islice(lines, 1)");
    assert_ne!(small, client);
    fs::write(&script, small).unwrap();
    let (code, results, said) = send("requests", &[question("Name a hill."), question("Name a hill.")]);
    assert_eq!((code, results.len()), (0, 2), "{said}");
    assert_ne!(results[0]["id"], results[1]["id"]);
}

#[test]
fn the_client_gives_up_on_a_server_that_never_takes_anything() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines.ndjson");
    fs::write(&file, "{}\n").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while line != "\r\n" {
                line.clear();
                reader.read_line(&mut line).unwrap();
                if let Some(said) = line.to_lowercase().strip_prefix("content-length:") {
                    length = said.trim().parse().unwrap();
                }
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let answer = "HTTP/1.1 503 Not now\r\nretry-after: 0\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfull";
            reader.into_inner().write_all(answer.as_bytes()).unwrap();
        }
    });
    let output = run(Command::new("python3")
        .arg(root().join("docs/client.py"))
        .args(["demo", "requests"])
        .arg(&file)
        .env("NIGHTSHIFT_URL", &url)
        .env("NIGHTSHIFT_TOKEN", TOKEN)
        .env("no_proxy", "*"));
    assert_eq!((output.status.code(), text(&output.stderr).trim()), (Some(1), "full"));
    assert_eq!(asked.load(Ordering::SeqCst), 100);
}
