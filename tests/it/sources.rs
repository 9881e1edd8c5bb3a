//! Exports and transcripts by address, from a real server to the session: the whole program, and who moves its clock.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nightshift::clock::Clock;
use nightshift::condition::Hindrance;
use nightshift::config::{self, Settings};
use nightshift::domain::id::Timestamp;
use serde_json::Value;

use crate::process::{PATIENCE, Server, TOKEN, free_port, nightshift};
use crate::running::{Running, START};
use crate::web::{Answer, Asked, Shape, Web};

const MINUTE: Duration = Duration::from_secs(60);

/// What a server has at each path; it can be changed while it runs.
#[derive(Clone, Default)]
struct Files(Arc<Mutex<HashMap<String, Vec<Answer>>>>);

impl Files {
    fn set(&self, path: &str, answer: Answer) {
        self.in_turn(path, vec![answer]);
    }

    /// Each answer once, and the last one for ever.
    fn in_turn(&self, path: &str, answers: Vec<Answer>) {
        self.0.lock().unwrap().insert(path.to_owned(), answers);
    }

    fn text(&self, path: &str, text: &str) {
        self.set(path, Answer::ok(text).header("etag", &format!("\"{}\"", text.len())));
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let mut files = self.0.lock().unwrap();
        let Some(answers) = files.get_mut(&asked.path) else { return Answer::new(404, "") };
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        let etag = answer.headers.iter().find(|(name, _)| name == "etag").map(|(_, value)| value);
        match etag {
            Some(etag) if asked.headers.get("if-none-match") == Some(etag) => Answer::new(304, ""),
            Some(_) | None => answer,
        }
    }

    async fn serve(&self) -> Web {
        let files = self.clone();
        Web::start(move |asked| files.answer(asked)).await
    }

    /// To those with the password only.
    async fn serve_to_ann(&self) -> Web {
        let files = self.clone();
        Web::start(move |asked| match asked.headers.get("authorization").map(String::as_str) {
            Some("Basic YW5uOnMzY3JldA==") => files.answer(asked),
            _ => Answer::new(401, ""),
        })
        .await
    }
}

fn row(id: &str, day: &str, transcript: &str) -> String {
    format!("{id},{day} 10:00:00,{day} 10:05:00,,NL,nl,1,,,,{transcript},1,1,0,,hello\n")
}

/// A configuration with one import, of the company `demo`.
fn config_file(folder: &Path, import: &str, allowed: &[String]) -> std::path::PathBuf {
    let file = folder.join("config.toml");
    let text = format!(
        "[fetch]\nallow_hosts = {allowed:?}\nattempts = 3\ntimeout = \"5s\"\n\
         [[companies]]\nid = \"demo\"\n[[companies]]\nid = \"other\"\n[[imports]]\ncompany = \"demo\"\n{import}\n"
    );
    std::fs::write(&file, text).unwrap();
    file
}

/// The program with such a file, and one more setting.
fn started(folder: &Path, file: &Path, set: &str) -> Server {
    let port = free_port();
    let mut command = nightshift(folder);
    command.arg("--config").arg(file).args(["--set", "creation.enabled=false", "--set", set]);
    command.args(["--set", &format!("server.bind=127.0.0.1:{port}")]);
    Server::spawn(command, port)
}

fn settings(folder: &Path, import: &str, allowed: &[String]) -> Settings {
    let env = |name: &str| match name {
        "NIGHTSHIFT_ADMIN_TOKEN" => Some(TOKEN.to_owned()),
        "DEMO_PASSWORD" => Some("s3cret".to_owned()),
        _ => None,
    };
    let data = folder.join("data").display().to_string();
    let flags = [
        ("server.bind", "127.0.0.1:0"),
        ("data.path", &data),
        ("creation.enabled", "false"),
        ("data.ballast", "0"),
        ("data.free_space_floor", "0"),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
    config::load(Some(&config_file(folder, import, allowed)), &env, [], flags).unwrap()
}

impl Running {
    async fn call(&self, method: &str, path: &str) -> Value {
        self.ask(method, &format!("/api/v1/companies/demo/{path}"), None).await
    }

    async fn session(&self, id: &str) -> Value {
        self.call("GET", &format!("sessions/{id}")).await["session"].clone()
    }

    async fn source(&self) -> Value {
        self.call("GET", "sources").await["sources"][0].clone()
    }

    async fn later_fetch(&self, session: &str, state: &str, attempts: u64) {
        self.later(&format!("{session} is {state} after {attempts}"), async |it| {
            let fetch = &it.session(session).await["fetch"];
            fetch["state"] == state && fetch["attempts"] == attempts
        })
        .await;
    }

    async fn until_fetch(&self, session: &str, state: &str, attempts: u64) {
        self.until(&format!("{session} is {state} after {attempts}"), async |it| {
            let fetch = &it.session(session).await["fetch"];
            fetch["state"] == state && fetch["attempts"] == attempts
        })
        .await;
    }

    async fn until_outcome(&self, outcome: &str) {
        self.until(outcome, async |it| it.source().await["outcome"] == outcome).await;
    }
}

#[test]
fn an_export_by_address_comes_in_with_its_transcripts_and_changes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let (files, elsewhere) = (Files::default(), Files::default());
        let (web, other) = (files.serve_to_ann().await, elsewhere.serve().await);
        let slow = format!("http://localhost:{}/slow", other.address.port());
        let rows = row("a", "01.02.2026", "t/a.txt")
            + &row("twice", "01.02.2026", "t/twice.txt")
            + &row("never", "01.02.2026", "t/never.txt")
            + &row("inside", "01.02.2026", "http://127.0.0.1:1/secret")
            + &row("slow", "01.02.2026", &slow)
            + &row("young", "24.11.2026", "/young.txt?a=b")
            + &row("none", "01.02.2026", "");
        files.text("/in/export.csv", &rows);
        files.text("/in/t/a.txt", "User: hello a");
        let twice = vec![Answer::new(503, ""), Answer::new(500, ""), Answer::ok("User: at last")];
        files.in_turn("/in/t/twice.txt", twice);
        files.text("/young.txt?a=b", "User: hello");
        elsewhere.set("/slow", Answer::ok("").shape(Shape::Silent));
        let import = format!(
            "csv = \"{}\"\nevery = \"15m\"\nusername = \"ann\"\npassword_env = \"DEMO_PASSWORD\"",
            web.url("/in/export.csv")
        );
        let allowed = [web.host(), format!("localhost:{}", other.address.port())];
        let running = Running::start(&settings(folder.path(), &import, &allowed)).await;
        running.until_outcome("read").await;
        // What is due is looked for each second.
        running.later("fetching begins", async |_| web.count("/in/t/a.txt") > 0).await;
        running.until_fetch("a", "had", 0).await;
        running.until_fetch("young", "had", 0).await;
        running.until_fetch("twice", "waiting", 1).await;
        running.until_fetch("never", "waiting", 1).await;
        running.until_fetch("inside", "not_allowed", 1).await;
        running.until_fetch("slow", "waiting", 1).await;
        let session = running.session("a").await;
        assert_eq!((&session["state"], &session["messages"]), (&"settling".into(), &1.into()), "{session}");
        assert_eq!(running.session("none").await["fetch"], Value::Null);
        let error = running.session("inside").await["fetch"]["error"].as_str().unwrap().to_owned();
        assert!(error.contains("no public address"), "{error}");
        let source = running.source().await;
        assert_eq!(source["counts"]["new"], 7, "{source:#}");
        assert_eq!(source["counts"]["toFetch"], 6, "{source:#}");
        let transcripts = &source["transcripts"];
        assert_eq!(transcripts["waiting"], 3, "{transcripts}");
        assert_eq!(
            (&transcripts["had"], &transcripts["notAllowed"]),
            (&2.into(), &1.into()),
            "{transcripts}"
        );
        // The password is for its own origin only, and nowhere to be seen.
        assert!(other.asked().iter().all(|asked| !asked.headers.contains_key("authorization")));
        assert!(!format!("{source}{:?}", running.application.shared().sources).contains("s3cret"));

        // Its second try is a minute later, the third two minutes after that.
        running.advance(MINUTE).await;
        running.later_fetch("twice", "waiting", 2).await;
        assert_eq!(web.count("/in/t/never.txt"), 1, "what is not there is tried again later");
        running.advance(2 * MINUTE).await;
        running.later_fetch("twice", "had", 0).await;
        assert_eq!(running.session("twice").await["messages"], 1);

        // Nothing has changed, so nothing comes again.
        running.advance(12 * MINUTE).await;
        running.later("unchanged", async |it| it.source().await["outcome"] == "unchanged").await;
        assert_eq!(web.count("/in/t/a.txt"), 1);
        assert_eq!(running.source().await["counts"]["new"], 7, "those of the last whole reading stay");

        // A row that is new, one that is as before, and one of today, whose transcript has grown.
        files.text("/in/export.csv", &(rows.clone() + &row("new", "01.02.2026", "t/new.txt")));
        files.text("/in/t/new.txt", "User: I am new");
        files.text("/young.txt?a=b", "User: hello\nAssistant: there");
        running.advance(15 * MINUTE).await;
        running.later("read", async |it| it.source().await["outcome"] == "read").await;
        running.later_fetch("new", "had", 0).await;
        running.later("young has grown", async |it| it.session("young").await["messages"] == 2).await;
        assert_eq!(running.session("young").await["version"], 2);
        assert_eq!((web.count("/in/t/a.txt"), web.count("/in/t/twice.txt")), (1, 3));

        // What never came is given up, until somebody has the export read anew.
        running.advance(5 * 60 * MINUTE).await;
        running.later_fetch("never", "failed", 3).await;
        files.text("/in/t/never.txt", "User: better late");
        let id = running.source().await["id"].as_str().unwrap().to_owned();
        let order = running.call("POST", &format!("sources/{id}/read")).await;
        assert_eq!(order["ok"], true, "{order}");
        running.until_fetch("never", "waiting", 0).await;
        running.later_fetch("never", "had", 0).await;
        let report = running.application.shared().store.verify().await.unwrap();
        assert_eq!(report.violations, []);
        // The file that the export came in is gone.
        let spool = std::fs::read_dir(folder.path().join("data/spool")).unwrap();
        let left: Vec<_> = spool.map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn what_a_kill_left_of_an_export_is_gone_with_the_next_start_although_nobody_reads_its_source_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("data/spool");
    std::fs::create_dir_all(&spool).unwrap();
    let left = spool.join(format!("export-gone-{}.part", "a5".repeat(16)));
    std::fs::write(&left, "words of a chat").unwrap();
    let input = spool.join("018f0000-input.part");
    std::fs::write(&input, "").unwrap();
    actix::System::new().block_on(async {
        let web = Files::default().serve().await;
        let import = format!("csv = \"{}\"", web.url("/export.csv"));
        Running::start(&settings(folder.path(), &import, &[web.host()])).await;
        assert!(!left.exists() && input.exists(), "only what is of an export");
    });
}

#[test]
fn an_erased_company_has_no_export_read_and_its_erasure_breaks_off_a_reading_that_is_under_way() {
    let folder = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let files = Files::default();
        let web = files.serve().await;
        files.text("/export.csv", &row("a", "01.02.2026", ""));
        files.text("/other.csv", &row("b", "01.02.2026", ""));
        let import = format!(
            "csv = \"{}\"\n[[imports]]\ncompany = \"other\"\ncsv = \"{}\"",
            web.url("/export.csv"),
            web.url("/other.csv")
        );
        let mut settings = settings(folder.path(), &import, &[web.host()]);
        settings.fetch.timeout = Duration::from_secs(600);
        let running = Running::start(&settings).await;
        running.until_outcome("read").await;
        let others = async |it: &Running| it.call("GET", "../other/sources").await["sources"][0].clone();
        running.until("the other is read", async |it| others(it).await["outcome"] == "read").await;
        // What a reading left that could not remove its file, and what is of a company with a longer name.
        let spool = folder.path().join("data/spool");
        let left = |company: &str| spool.join(format!("export-{company}-{}.part", "a5".repeat(16)));
        std::fs::write(left("demo"), "words of a chat").unwrap();
        std::fs::write(left("demo-2"), "").unwrap();
        files.set("/export.csv", Answer::ok(row("a", "01.02.2026", "")).shape(Shape::Held));
        let source = running.source().await["id"].as_str().unwrap().to_owned();
        running.call("POST", &format!("sources/{source}/read")).await;
        running.until("it is read again", async |_| web.count("/export.csv") == 2).await;

        let order = Some(serde_json::json!({ "confirm": "demo" }));
        let ordered = running.ask("POST", "/api/admin/legacy/companies/demo/erase", order.as_ref()).await;
        let state = async |it: &Running, ordered: &Value| {
            let id = ordered["erasure"]["id"].as_str().unwrap();
            it.get(&format!("/api/admin/legacy/erasures/{id}")).await["erasure"]["state"].clone()
        };
        // One that came later is done beside it.
        let later = running.call("POST", "../other/sessions/b/erase").await;
        running.later("the later one is done", async |it| state(it, &later).await == "done").await;
        // The answer is held all the while: the reading that waits for it is broken off.
        running.later("it is done", async |it| state(it, &ordered).await == "done").await;
        web.open();
        assert!(!left("demo").exists() && left("demo-2").exists());
        let others_read = web.count("/other.csv");
        running.later("the other is read again", async |_| web.count("/other.csv") > others_read + 1).await;
        assert_eq!(web.count("/export.csv"), 2);
        assert_eq!(running.application.shared().store.verify().await.unwrap().violations, []);
    });
}

#[test]
fn an_order_to_read_an_export_outlives_a_kill_and_is_carried_out_once() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let files = Files::default();
    let web = runtime.block_on(files.serve());
    files.text("/export.csv", &row("a", "01.02.2026", ""));
    let import = format!("csv = \"{}\"\nevery = \"1h\"", web.url("/export.csv"));
    let file = config_file(folder.path(), &import, &[web.host()]);
    let start = || started(folder.path(), &file, "fetch.timeout=600s");
    let until = |server: &Server, what: &str, is_so: &dyn Fn(&Value) -> bool| {
        let end = Instant::now() + PATIENCE;
        loop {
            let source = server.get("/api/v1/companies/demo/sources")["sources"][0].clone();
            if is_so(&source) {
                return source;
            }
            assert!(Instant::now() < end, "not {what}: {source:#}; log:\n{}", server.tail());
            std::thread::yield_now();
        }
    };
    let mut server = start();
    let source = until(&server, "read", &|source| source["outcome"] == "read");
    files.set("/export.csv", Answer::ok("").shape(Shape::Silent));
    let order = format!("/api/v1/companies/demo/sources/{}/read", source["id"].as_str().unwrap());
    assert_eq!(server.post(&order, "application/json", String::new())["ok"], true);
    until(&server, "asked for", &|_| web.count("/export.csv") == 2);
    server.kill();
    files.text("/export.csv", &row("a", "01.02.2026", ""));
    let mut server = start();
    until(&server, "read again", &|now| now["lastWhole"] != source["lastWhole"]);
    server.kill();
    let server = start();
    until(&server, "unchanged", &|source| source["outcome"] == "unchanged");
    let asked = web.asked();
    let conditions: Vec<_> = asked.iter().map(|asked| asked.headers.contains_key("if-none-match")).collect();
    assert_eq!(conditions, [false, false, false, true]);
}

#[test]
fn transcripts_that_could_not_be_had_are_tried_anew_each_day_although_the_export_is_as_before() {
    let folder = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let files = Files::default();
        let web = files.serve().await;
        files.text("/export.csv", &row("never", "01.02.2026", "never.txt"));
        let import = format!("csv = \"{}\"\nevery = \"1h\"", web.url("/export.csv"));
        let running = Running::start(&settings(folder.path(), &import, &[web.host()])).await;
        running.later_fetch("never", "waiting", 1).await;
        running.advance(5 * 60 * MINUTE).await;
        running.later_fetch("never", "failed", 3).await;
        files.text("/never.txt", "User: better late");
        let whole = async |it: &Running| it.source().await["lastWhole"].clone();
        let before = whole(&running).await;
        running.advance(60 * MINUTE).await;
        running.later("unchanged", async |it| it.source().await["outcome"] == "unchanged").await;
        assert_eq!((whole(&running).await, web.count("/never.txt")), (before, 3));
        running.advance(24 * 60 * MINUTE).await;
        running.later_fetch("never", "had", 0).await;
        // And nothing more is missing, so nothing more is read for it.
        let before = whole(&running).await;
        running.advance(25 * 60 * MINUTE).await;
        running.later("unchanged", async |it| it.source().await["outcome"] == "unchanged").await;
        assert_eq!((whole(&running).await, web.count("/never.txt")), (before, 4));
    });
}

#[test]
fn a_transcript_whose_host_was_not_allowed_comes_in_once_it_is_although_the_export_is_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (files, elsewhere) = (Files::default(), Files::default());
    let (web, other) = (runtime.block_on(files.serve()), runtime.block_on(elsewhere.serve()));
    let there = format!("localhost:{}", other.address.port());
    files.text("/export.csv", &row("inside", "01.02.2026", &format!("http://{there}/inside.txt")));
    elsewhere.text("/inside.txt", "User: hello");
    let import = format!("csv = \"{}\"\nevery = \"1h\"", web.url("/export.csv"));
    let file = config_file(folder.path(), &import, &[web.host()]);
    let until = |server: &mut Server, state: &str| {
        crate::trouble::bench::until(server, state, |server| {
            let session = server.get("/api/v1/companies/demo/sessions/inside");
            (session["session"]["fetch"]["state"] == state).then_some(())
        });
    };
    let mut server = started(folder.path(), &file, "fetch.timeout=600s");
    until(&mut server, "not_allowed");
    server.kill();
    let file = config_file(folder.path(), &import, &[web.host(), there.clone()]);
    let mut server = started(folder.path(), &file, "fetch.timeout=600s");
    until(&mut server, "had");
}

#[test]
fn an_export_that_cannot_be_had_says_why_and_is_tried_again_soon() {
    let folder = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let files = Files::default();
        let web = files.serve().await;
        let rows = row("a", "01.02.2026", "a.txt");
        files.in_turn(
            "/export.csv",
            vec![Answer::new(503, ""), Answer::ok(rows.clone()).shape(Shape::Half), Answer::ok(rows)],
        );
        files.text("/a.txt", "User: hello");
        let import = format!("csv = \"{}\"\nevery = \"6h\"", web.url("/export.csv"));
        let running = Running::start(&settings(folder.path(), &import, &[web.host()])).await;
        let until_error = async |error: &str| {
            running.until(error, async |it| it.source().await["error"] == error).await;
        };
        until_error("the server answered 503").await;
        let next = running.clock.now().plus(MINUTE).to_string();
        assert_eq!(running.source().await["nextRead"], next);
        running.advance(MINUTE).await;
        running
            .later("broken", async |it| {
                let source = it.source().await;
                source["outcome"] == "failed"
                    && source["error"].as_str().unwrap().contains("connection broke")
            })
            .await;
        running.advance(2 * MINUTE).await;
        running.later("read", async |it| it.source().await["outcome"] == "read").await;
        running.later_fetch("a", "had", 0).await;
        assert!(running.clock.now() < Timestamp::from_millis(START).plus(6 * 60 * MINUTE));
    });
}

#[test]
fn an_address_that_is_not_allowed_is_told_at_the_start_and_in_its_state() {
    let folder = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let web = Files::default().serve().await;
        let import = format!("csv = \"{}\"", web.url("/export.csv?key=s3cret"));
        let settings = settings(folder.path(), &import, &[]);
        let note = settings.notes.iter().find(|note| note.starts_with("imports[0].csv"));
        assert!(note.is_some_and(|note| note.contains("no public address")), "{:?}", settings.notes);
        let running = Running::start(&settings).await;
        running.until_outcome("not_allowed").await;
        let source = running.source().await;
        assert!(source["error"].as_str().unwrap().contains("fetch.allow_hosts"), "{source:#}");
        assert_eq!(source["location"], web.url("/export.csv?[hidden]"));
        assert_eq!(web.asked().len(), 0);
        let unknown = running.call("POST", &format!("sources/{}/read", "a5".repeat(16))).await;
        assert_eq!(unknown["code"], "unknown_source", "{unknown}");
        running.application.shared().condition.raise(Hindrance::SafeMode, "a test");
        let order = format!("sources/{}/read", source["id"].as_str().unwrap());
        let refused = running.call("POST", &order).await;
        assert_eq!((&refused["status"], &refused["code"]), (&503.into(), &"safe_mode".into()), "{refused}");
        let others = running.call("GET", "../other/sources").await;
        assert_eq!(others["sources"], serde_json::json!([]), "{others}");
    });
}

/// Two companies whose exports name transcripts of one host: those of `demo` never come, each takes a place for as long as
/// a fetch may.
struct OneHost {
    files: Files,
    web: Web,
    dead: Vec<String>,
    good: Vec<String>,
}

impl OneHost {
    async fn start() -> Self {
        let files = Files::default();
        let web = files.serve().await;
        let ids = |word: &str, many| (0..many).map(|number| format!("{word}{number}")).collect::<Vec<_>>();
        let (dead, good) = (ids("dead", 40), ids("good", 10));
        for id in &dead {
            files.set(&format!("/{id}.txt"), Answer::ok("").shape(Shape::Silent));
        }
        for id in &good {
            files.text(&format!("/{id}.txt"), &format!("User: {id}"));
        }
        let host = Self { files, web, dead, good };
        host.export("/dead.csv", &host.dead);
        host
    }

    fn export(&self, path: &str, ids: &[String]) {
        let rows = ids.iter().map(|id| row(id, "01.02.2026", &format!("{id}.txt")));
        self.files.text(path, &rows.collect::<String>());
    }

    fn settings(&self, folder: &Path) -> Settings {
        let import = format!(
            "csv = \"{}\"\n[[imports]]\ncompany = \"other\"\ncsv = \"{}\"\nevery = \"1m\"",
            self.web.url("/dead.csv"),
            self.web.url("/good.csv"),
        );
        settings(folder, &import, &[self.web.host()])
    }

    /// How many of the dead ones were asked for.
    fn tried(&self) -> usize {
        self.dead.iter().filter(|id| self.web.count(&format!("/{id}.txt")) > 0).count()
    }

    async fn until_the_good_ones_are_had(&self, running: &Running) {
        running
            .later("the good ones are had", async |it| {
                let sources = it.call("GET", "../other/sources").await;
                sources["sources"][0]["transcripts"]["had"] == self.good.len()
            })
            .await;
        assert_eq!(running.application.shared().store.verify().await.unwrap().violations, []);
    }
}

#[test]
fn the_dead_transcripts_of_one_company_do_not_hold_up_anothers_that_come_later_on_the_same_host() {
    let folder = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let host = OneHost::start().await;
        host.files.text("/good.csv", &row("none", "01.02.2026", ""));
        let running = Running::start(&host.settings(folder.path())).await;
        running.until_outcome("read").await;
        running.later("the dead ones have every place of the host", async |_| host.tried() >= 4).await;
        host.export("/good.csv", &host.good);
        host.until_the_good_ones_are_had(&running).await;
        let tried = host.tried();
        assert!(tried < host.dead.len(), "the good ones came behind all {tried} dead ones");
    });
}

#[test]
fn the_places_of_a_host_are_shared_between_the_companies_that_have_something_due_there() {
    let folder = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let host = OneHost::start().await;
        host.export("/good.csv", &host.good);
        let mut settings = host.settings(folder.path());
        // Whoever waits for a dead one waits longer than all of this takes.
        settings.fetch.timeout = Duration::from_secs(30);
        let running = Running::start(&settings).await;
        // Nothing is fetched before the clock moves.
        running.until_outcome("read").await;
        running
            .until("the other export is read", async |it| {
                it.call("GET", "../other/sources").await["sources"][0]["outcome"] == "read"
            })
            .await;
        host.until_the_good_ones_are_had(&running).await;
        // Two from the start, and those that the last good ones left.
        assert!(host.tried() <= 4, "{} dead ones ended before the good ones were had", host.tried() - 4);
    });
}

#[test]
fn transcripts_that_are_new_do_not_wait_behind_all_those_that_were_tried_in_vain_before() {
    let folder = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let host = OneHost::start().await;
        // They fail at once, and hold their places with each later try.
        for id in &host.dead {
            let silent = Answer::ok("").shape(Shape::Silent);
            host.files.in_turn(&format!("/{id}.txt"), vec![Answer::new(503, ""), silent]);
        }
        let import = format!("csv = \"{}\"\nevery = \"1m\"", host.web.url("/dead.csv"));
        let mut settings = settings(folder.path(), &import, &[host.web.host()]);
        settings.fetch.attempts = 12;
        let running = Running::start(&settings).await;
        running.until_outcome("read").await;
        running.later("all were tried", async |_| host.tried() == host.dead.len()).await;
        let tried_again = || host.dead.iter().filter(|id| host.web.count(&format!("/{id}.txt")) > 1).count();
        running.later("they are tried again", async |_| tried_again() > 0).await;
        let all: Vec<String> = host.dead.iter().chain(&host.good).cloned().collect();
        host.export("/dead.csv", &all);
        running
            .later("the good ones are had", async |it| {
                it.source().await["transcripts"]["had"] == host.good.len()
            })
            .await;
        let tried_again = tried_again();
        assert!(tried_again < host.dead.len() / 2, "the new ones came behind {tried_again} dead ones");
        assert_eq!(running.application.shared().store.verify().await.unwrap().violations, []);
    });
}

#[test]
fn a_source_with_few_places_leaves_its_host_to_another_source_of_the_same_company() {
    let folder = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let host = OneHost::start().await;
        host.files.text("/good.csv", &row("none", "01.02.2026", ""));
        let import = format!(
            "csv = \"{}\"\ntranscript_concurrency = 1\n[[imports]]\ncompany = \"demo\"\ncsv = \"{}\"\nevery = \"1m\"",
            host.web.url("/dead.csv"),
            host.web.url("/good.csv"),
        );
        let running = Running::start(&settings(folder.path(), &import, &[host.web.host()])).await;
        running.later("a dead one has the only place of its source", async |_| host.tried() > 0).await;
        host.export("/good.csv", &host.good);
        running
            .later("the good ones are had", async |it| {
                it.call("GET", "sources").await["sources"][1]["transcripts"]["had"] == host.good.len()
            })
            .await;
        let tried = host.tried();
        // As many are seen at once.
        assert!(tried < host.dead.len() - 8, "the good ones came behind {tried} dead ones");
    });
}

#[test]
fn a_kill_in_the_midst_of_fetching_loses_nothing() {
    const SESSIONS: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let files = Files::default();
    let web = runtime.block_on(files.serve());
    let ids: Vec<String> = (0..SESSIONS).map(|number| format!("s{number}")).collect();
    let rows: String = ids.iter().map(|id| row(id, "01.02.2026", &format!("{id}.txt"))).collect();
    files.text("/export.csv", &rows);
    // The first half comes; the second half never does, until the program was killed.
    for (number, id) in ids.iter().enumerate() {
        let silent = Answer::ok("").shape(Shape::Silent);
        let answer = if number < SESSIONS / 2 { Answer::ok(format!("User: {id}")) } else { silent };
        files.set(&format!("/{id}.txt"), answer);
    }
    let import = format!("csv = \"{}\"\nevery = \"1h\"", web.url("/export.csv"));
    let file = config_file(folder.path(), &import, &[web.host()]);
    let start = || started(folder.path(), &file, "fetch.timeout=30s");
    let had = |server: &Server| {
        let sources = server.get("/api/v1/companies/demo/sources");
        sources["sources"][0]["transcripts"]["had"].as_u64().unwrap_or_default()
    };
    let until = |server: &Server, wanted: usize| {
        let end = Instant::now() + PATIENCE;
        while had(server) < wanted as u64 {
            assert!(Instant::now() < end, "{} had; log:\n{}", had(server), server.tail());
            std::thread::yield_now();
        }
    };
    let mut server = start();
    until(&server, SESSIONS / 2);
    server.kill();
    for id in ids.iter().skip(SESSIONS / 2) {
        files.set(&format!("/{id}.txt"), Answer::ok(format!("User: {id}")));
    }
    let server = start();
    until(&server, SESSIONS);
    for id in [&ids[0], &ids[SESSIONS - 1]] {
        assert_eq!(server.get(&format!("/api/v1/companies/demo/sessions/{id}"))["session"]["messages"], 1);
    }
    // The export was wholly taken in before: it did not come again, and what was had was not fetched twice.
    assert_eq!(web.count(&format!("/{}.txt", ids[0])), 1);
}
