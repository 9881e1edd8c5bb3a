//! Configurations as people write them, right and wrong.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

mod prices;

/// Settings from a file's text, variables and flags.
fn load_with(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Settings, ConfigErrors> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nightshift.toml");
    std::fs::write(&path, text).unwrap();
    let env: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let flags = flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    load(Some(&path), &|name| env.get(name).cloned(), env.clone(), flags)
}

fn good(text: &str) -> Settings {
    load_with(text, &[], &[]).unwrap()
}

/// The only error.
fn error(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> ConfigError {
    let ConfigErrors(mut errors) = load_with(text, env, flags).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors.remove(0)
}

fn place(err: &ConfigError) -> (usize, usize) {
    match &err.origin {
        Origin::File { line, column, .. } => (*line, *column),
        other @ (Origin::Default | Origin::Env(_) | Origin::Flag) => panic!("{other:?} is no file"),
    }
}

#[test]
fn without_anything_said_the_defaults_are_those_of_the_design() {
    let settings = good("");
    assert_eq!(settings.server.bind.to_string(), "127.0.0.1:8080");
    assert!(settings.data.path.ends_with("data") && settings.data.path.is_absolute());
    assert_eq!(settings.provider.kind, ProviderKind::Simulator);
    assert_eq!(settings.provider.base_url, "https://api.openai.com/v1");
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    assert_eq!(
        settings.creation,
        Creation {
            enabled: true,
            interval: minutes(10),
            max_requests: 50_000,
            max_file_size: 190_000_000,
            max_age: minutes(30)
        }
    );
    assert_eq!(settings.polling, Polling { enabled: true, interval: minutes(2), max_calls: 100 });
    assert_eq!(settings.submission.grace, minutes(15));
    let capacity_hold = minutes(10);
    assert_eq!(
        settings.retry,
        Retry { max_attempts: 3, backoff: minutes(1), capacity_backoff: minutes(1), capacity_hold }
    );
    assert_eq!(
        settings.analysis,
        Analysis { model: "gpt-4o-mini".to_owned(), settle: minutes(60), repair_rounds: 1 }
    );
    assert_eq!(settings.fetch.allow_hosts, [""; 0]);
    assert_eq!(settings.import.time_zone.iana_name(), Some("Europe/Amsterdam"));
    assert_eq!(settings.simulator.turnaround, Duration::from_secs(10));
    assert_eq!((settings.log.level, settings.log.format), (LogLevel::Info, LogFormat::Auto));
    assert!(settings.companies.is_empty() && settings.imports.is_empty() && settings.notes.is_empty());
}

#[test]
fn a_later_layer_wins() {
    let file = "[server]\nbind = \"127.0.0.1:1\"\n[provider]\nbase_url = \"http://file/\"\n[creation]\nenabled = true";
    let bind = |env: &[(&str, &str)], flags: &[(&str, &str)]| {
        load_with(file, env, flags).unwrap().server.bind.port()
    };
    assert_eq!(bind(&[], &[]), 1);
    assert_eq!(bind(&[("NIGHTSHIFT_SERVER__BIND", "127.0.0.1:2")], &[]), 2);
    assert_eq!(bind(&[("NIGHTSHIFT_SERVER__BIND", "127.0.0.1:2")], &[("server.bind", "127.0.0.1:3")]), 3);
    assert_eq!(bind(&[("NIGHTSHIFT_SERVER__BIND", " ")], &[]), 1, "an empty variable is none");
    let env = [("OPENAI_BASE_URL", "http://env/v1"), ("BATCH_CREATION_ENABLED", "off")];
    let settings = load_with(file, &env, &[]).unwrap();
    assert_eq!(settings.provider.base_url, "http://env/v1");
    assert!(!settings.creation.enabled && settings.polling.enabled);
    let both = [("BATCH_CREATION_ENABLED", "off"), ("NIGHTSHIFT_CREATION__ENABLED", "on")];
    assert!(load_with("", &both, &[]).unwrap().creation.enabled);
}

#[test]
fn every_key_can_be_set_by_a_variable_and_by_a_flag() {
    for (key, default) in keys::KEYS {
        let Some(default) = default.filter(|default| !default.is_empty()) else { continue };
        let variable = format!("NIGHTSHIFT_{}", key.replace('.', "__").to_uppercase());
        for settings in [
            load_with("", &[(&variable, default)], &[]).unwrap(),
            load_with("", &[], &[(key, default)]).unwrap(),
        ] {
            let listed = settings.describe().iter().find(|listed| listed.key == key).unwrap();
            assert_ne!(listed.origin, Origin::Default, "{key}");
        }
    }
}

#[test]
fn an_unknown_key_names_itself_its_place_and_the_nearest_one() {
    let err = error("[creation]\n  interva = \"10m\"\n", &[], &[]);
    assert_eq!((err.key.as_str(), place(&err)), ("creation.interva", (2, 3)));
    assert_eq!(err.remedy, "did you mean creation.interval?");
    assert_eq!(error("[pooling]\ninterval = \"1s\"\n", &[], &[]).remedy, "did you mean polling?");
    assert_eq!(error("bind = \"127.0.0.1:80\"\n", &[], &[]).key, "bind");
    let err = error("[[companies]]\nid = \"a\"\nmodle = \"x\"\n", &[], &[]);
    assert_eq!((err.key.as_str(), place(&err)), ("companies[0].modle", (3, 1)));
    assert_eq!(err.remedy, "did you mean model?");
    let err = error("", &[("NIGHTSHIFT_POLLING__INTERVALL", "1s")], &[]);
    assert_eq!(err.origin, Origin::Env("NIGHTSHIFT_POLLING__INTERVALL".to_owned()));
    assert_eq!(err.remedy, "did you mean polling.interval?");
    assert_eq!(error("", &[], &[("server.bin", "x")]).remedy, "did you mean server.bind?");
    assert_eq!(error("[creation]\nsettle = \"1s\"\n", &[], &[]).remedy, "did you mean analysis.settle?");
    let err = error("[server]\nworkers_per_core = 2\n", &[], &[]);
    assert_eq!(err.remedy, "known in server: bind");
}

#[test]
fn variables_that_are_not_ours_are_left_alone() {
    let env =
        [("NIGHTSHIFT_HOME", "x"), ("OTHER__THING", "x"), ("NIGHTSHIFT_ADMIN_TOKEN", "a-token-long-enough")];
    assert!(load_with("", &env, &[]).unwrap().server.admin_token.is_some());
}

#[test]
fn wrong_toml_is_an_error_with_line_and_column() {
    let err = error("[server]\nbind = \"127.0.0.1:8080\n", &[], &[]);
    assert_eq!(place(&err).0, 2);
    assert!(err.problem.contains("not TOML"), "{err}");
    assert!(
        error("[server]\nbind = \"127.0.0.1:1\"\nbind = \"127.0.0.1:2\"\n", &[], &[])
            .problem
            .contains("duplicate")
    );
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let text = "[creation]\ninterval = \"0s\"\nmax_requests = 50001\n[polling]\ninterval = 5\n\
        [[companies]]\nid = \"a b\"\n[[imports]]\ncompany = \"nobody\"\n";
    let ConfigErrors(errors) =
        load_with(text, &[("OPENAI_BASE_URL", "ftp://x")], &[("log.level", "loud")]).unwrap_err();
    let keys: Vec<&str> = errors.iter().map(|err| err.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "creation.interval",
            "creation.max_requests",
            "polling.interval",
            "companies[0].id",
            "imports[0].csv",
            "imports[0].company",
            "provider.base_url",
            "log.level",
        ]
    );
    let text = ConfigErrors(errors).to_string();
    assert_eq!(text.lines().count(), 9);
    assert!(text.contains("nightshift.toml:2:1): \"0s\" is less than 1s; use \"1s\" or more"), "{text}");
}

#[test]
fn values_of_the_wrong_kind_say_how_to_write_them() {
    let cases = [
        ("[server]\nbind = \"localhost:8080\"", "127.0.0.1:8080"),
        ("[server]\nbind = 8080", "in quotes"),
        ("[polling]\ninterval = 30", "\"30s\""),
        ("[polling]\ninterval = \"soon\"", "\"10m\""),
        ("[polling]\ninterval = \"400days\"", "use less"),
        ("[creation]\nmax_file_size = \"201MB\"", "from 1KB to 200MB"),
        ("[creation]\nmax_file_size = \"999\"", "from 1KB to 200MB"),
        ("[creation]\nmax_file_size = \"big\"", "190MB"),
        ("[creation]\nmax_requests = 0", "from 1 to 50000"),
        ("[creation]\nmax_requests = 1.5", "from 1 to 50000"),
        ("[creation]\nenabled = \"maybe\"", "true or false"),
        ("[polling]\nmax_calls = true", "whole number"),
        ("[provider]\nkind = \"azure\"", "\"simulator\" or \"openai\""),
        ("[provider]\nbase_url = \"api.openai.com/v1\"", "https://api.openai.com/v1"),
        ("[provider]\nbase_url = \"https://user:hunter2@host/v1\"", "https://api.openai.com/v1"),
        ("[provider]\napi_key = \"sk-123\"", "OPENAI_API_KEY"),
        ("[import]\ntime_zone = \"Amsterdam\"", "Europe/Amsterdam"),
        ("[fetch]\nallow_hosts = [\"http://x\"]", "without scheme"),
        ("[fetch]\nallow_hosts = [1]", "list of"),
        ("[analysis]\nmodel = \"\"", "leave it out"),
        ("[analysis]\nmodel = \"gpt 4\"", "gpt-4o-mini"),
        ("[data]\npath = 1979-05-27", "in quotes"),
        ("creation = 5", "[creation]"),
        ("companies = 5", "[[companies]]"),
        ("companies = [5]", "[[companies]]"),
    ];
    for (text, words) in cases {
        let err = error(text, &[], &[]);
        let shown = err.to_string();
        assert!(shown.contains(words), "{text}: {shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("sk-123"), "{shown}");
    }
}

#[test]
fn sizes_and_truths_have_several_spellings() {
    let size = |text: &str| good(&format!("[creation]\nmax_file_size = {text}")).creation.max_file_size;
    assert_eq!(size("\"200MB\""), 200_000_000);
    assert_eq!(size("\"64 MiB\""), 64 << 20);
    assert_eq!(size("\"4kb\""), 4_000);
    assert_eq!(size("1_000_000"), 1_000_000);
    for (word, truth) in
        [("true", true), ("1", true), ("YES", true), ("on", true), ("0", false), ("No", false)]
    {
        let settings = load_with("", &[("BATCH_POLLING_ENABLED", word)], &[]).unwrap();
        assert_eq!(settings.polling.enabled, truth, "{word}");
    }
}

#[test]
fn openai_needs_a_key() {
    let text = "[provider]\nkind = \"openai\"";
    let err = error(text, &[], &[]);
    assert!(err.key == "provider.kind" && err.remedy.contains("OPENAI_API_KEY"), "{err}");
    assert_eq!(place(&err), (2, 1));
    let settings =
        load_with(text, &[("OPENAI_API_KEY", " sk-secret\n"), ("OPENAI_ORG_ID", "org-1")], &[]).unwrap();
    assert_eq!(settings.provider.api_key.as_ref().unwrap().expose(), "sk-secret");
    assert_eq!(settings.provider.organization.as_deref(), Some("org-1"));
    let err = error(text, &[("OPENAI_API_KEY", "sk-se cret")], &[]);
    assert!(err.key == "OPENAI_API_KEY" && !err.to_string().contains("cret"), "{err}");
    assert!(error("", &[("NIGHTSHIFT_ADMIN_TOKEN", "hunter2")], &[]).remedy.contains("16 or more"));
}

#[test]
fn what_is_probably_not_meant_is_noted() {
    let env = [("OPENAI_API_KEY", "sk-secret")];
    assert!(load_with("", &env, &[]).unwrap().notes[0].contains("nothing is sent to OpenAI"));
    let noted = |url: &str| {
        load_with("", &env, &[("provider.kind", "openai"), ("provider.base_url", url)]).unwrap().notes.len()
    };
    let urls =
        ["http://llm.example/v1", "http://localhost.example/v1", "http://127.0.0.1:8000/v1", "https://x/v1"];
    assert_eq!(urls.map(noted), [1, 1, 0, 0]);
}

#[test]
fn no_secret_is_shown_anywhere() {
    let text = "[[companies]]\nid = \"a\"\n[[imports]]\ncompany = \"a\"\n\
        csv = \"https://files.example/a/export.csv?token=SECRET\"\n\
        username = \"user\"\npassword_env = \"EXPORT_PASSWORD\"";
    let env = [
        ("OPENAI_API_KEY", "sk-SECRET"),
        ("OPENAI_WEBHOOK_SECRET", "whsec_SECRETAA"),
        ("NIGHTSHIFT_ADMIN_TOKEN", "SECRETSECRETSECRET"),
        ("EXPORT_PASSWORD", "SECRET"),
    ];
    let settings = load_with(text, &env, &[]).unwrap();
    // The name of a variable is no secret.
    let debug = format!("{settings:?}").replace("WEBHOOK_SECRET", "");
    assert!(!debug.contains("SECRET"), "{debug}");
    let shown: Vec<String> =
        settings.describe().iter().map(|listed| format!("{} {}", listed.key, listed.value)).collect();
    assert!(shown.iter().all(|line| !line.replace("WEBHOOK_SECRET", "").contains("SECRET")), "{shown:#?}");
    assert!(shown.iter().any(|line| line == "OPENAI_API_KEY set (hidden)"), "{shown:#?}");
    assert!(shown.iter().any(|line| line.contains("https://files.example/a/export.csv?[hidden]")));
    assert_eq!(
        settings.imports[0].csv,
        Location::Url("https://files.example/a/export.csv?token=SECRET".into())
    );
}

#[test]
fn companies_and_imports_are_read() {
    let text = "[analysis]\nmodel = \"gpt-5-mini\"\n[[companies]]\nid = \"a\"\n\
        [[companies]]\nid = \"b\"\nname = \"B\"\nmodel = \"gpt-4o\"\nsuspended = true\n\
        [[imports]]\ncompany = \"b\"\ncsv = \"in/b.csv\"\nevery = \"1m\"\ntranscripts = \"in/t\"\ntime_zone = \"UTC\"\n\
        [[imports]]\ncompany = \"a\"\ncsv = \"/srv/a.csv\"\n";
    let settings = good(text);
    let [a, b] = settings.companies.as_slice() else { panic!("{:?}", settings.companies) };
    assert_eq!((&a.says.name, a.says.suspended, b.says.suspended), (&None, None, Some(true)));
    let (a, b) = (&a.new, &b.new);
    assert_eq!(
        (a.id.as_str(), a.name.as_str(), a.model.as_str(), a.suspended),
        ("a", "a", "gpt-5-mini", false)
    );
    assert_eq!((b.id.as_str(), b.name.as_str(), b.model.as_str(), b.suspended), ("b", "B", "gpt-4o", true));
    let [first, second] = settings.imports.as_slice() else { panic!("{:?}", settings.imports) };
    let folder = settings.file.as_deref().unwrap().parent().unwrap();
    assert_eq!(first.csv, Location::Path(folder.join("in/b.csv")));
    assert_eq!(first.transcripts.as_deref(), Some(folder.join("in/t").as_path()));
    assert_eq!((first.every, first.time_zone.iana_name()), (Duration::from_secs(60), Some("UTC")));
    assert_eq!(second.csv, Location::Path("/srv/a.csv".into()));
    assert_eq!(
        (second.every, second.time_zone.iana_name()),
        (Duration::from_secs(900), Some("Europe/Amsterdam"))
    );
}

#[test]
fn what_is_kept_how_long_is_said_for_all_or_for_a_company() {
    use crate::domain::retention::{Keep, Retention};
    assert!(good("").retention.is_silent());
    let text = "[retention]\ncomplete = \"90d\"\nfailed = \"never\"\n[[companies]]\nid = \"a\"\n\
        [[companies]]\nid = \"b\"\nretention_sessions = \"12h\"\n";
    let settings = good(text);
    let hours = |hours: u64| Some(Keep::For { seconds: hours * 3600 });
    let general = Retention { complete: hours(90 * 24), failed: Some(Keep::Always), sessions: None };
    assert_eq!(settings.retention, general);
    let says: Vec<_> = settings.companies.iter().map(|company| company.says.retention).collect();
    assert_eq!(says, [None, Some(Retention { sessions: hours(12), ..Retention::default() })]);
    let wrong = error("[retention]\nsessions = \"soon\"\n", &[], &[]);
    assert!(wrong.remedy.contains("\"90d\""), "{wrong:?}");
    let wrong = error("[[companies]]\nid = \"a\"\nretention_complete = 90\n", &[], &[]);
    assert_eq!(wrong.key, "companies[0].retention_complete");
}

#[test]
fn companies_that_cannot_be_told_apart_and_imports_for_nobody_are_errors() {
    let err = error("[[companies]]\nid = \"a\"\n[[companies]]\nid = \"a\"\n", &[], &[]);
    assert!(err.key == "companies[1].id" && err.problem.contains("twice"), "{err}");
    let err = error("[[companies]]\nid = \"a\"\n[[imports]]\ncompany = \"b\"\ncsv = \"x\"\n", &[], &[]);
    assert!(err.problem.contains("no company \"b\"") && err.remedy.contains("one of: a"), "{err}");
    let err = error(
        "[[companies]]\nid = \"a\"\n[[imports]]\ncompany = \"a\"\ncsv = \"x\"\nevery = \"0s\"\n",
        &[],
        &[],
    );
    assert_eq!(err.key, "imports[0].every");
    let err = error("[[companies]]\nname = \"a\"\n", &[], &[]);
    assert!(err.key == "companies[0].id" && err.problem == "it is missing", "{err}");
    // A company that has another fault is still a company: one mistake is told once.
    let text = "[[companies]]\nid = \"a\"\nmodel = 5\n[[imports]]\ncompany = \"a\"\ncsv = \"x\"\n";
    assert_eq!(error(text, &[], &[]).key, "companies[0].model");
}

#[test]
fn paths_in_variables_and_flags_start_where_the_person_is() {
    let path = |env: &[(&str, &str)]| load_with("[data]\npath = \"store\"", env, &[]).unwrap().data.path;
    assert!(path(&[]).is_absolute() && path(&[]).ends_with("store"));
    assert_eq!(path(&[("NIGHTSHIFT_DATA__PATH", "here")]), Path::new("here"));
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let missing = load(Some(Path::new("/nowhere/nightshift.toml")), &|_| None, [], []).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/nightshift.toml:1:1): it cannot be read"), "{missing}");
}

#[test]
fn the_committed_file_is_valid_and_fast() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DEFAULT_FILE);
    let settings = load(Some(&path), &|_| None, [], []).unwrap();
    assert_eq!((settings.analysis.settle, settings.creation.interval.as_secs()), (Duration::ZERO, 1));
    assert_eq!(settings.companies.len(), 1);
    let [Location::Path(csv)] = [settings.imports[0].csv.clone()] else { panic!("{:?}", settings.imports) };
    assert!(csv.is_file());
    // Every key that there is stands in it, so that it serves as the reference.
    let text = std::fs::read_to_string(&path).unwrap();
    for (key, _) in keys::KEYS {
        let name = key.rsplit('.').next().unwrap();
        assert!(text.contains(name), "{key} is not in {DEFAULT_FILE}");
    }
}

#[test]
fn a_login_for_an_export_stands_in_two_keys_and_a_variable() {
    let import = |rest: &str| format!("[[companies]]\nid = \"a\"\n[[imports]]\ncompany = \"a\"\n{rest}");
    let env = [("EXPORT_PASSWORD", "hunter2")];
    let url = "csv = \"https://files.example/a.csv\"\n";
    let whole = import(&format!(
        "{url}username = \"ann\"\npassword_env = \"EXPORT_PASSWORD\"\ntranscript_concurrency = 2"
    ));
    let settings = load_with(&whole, &env, &[]).unwrap();
    let (name, password) = settings.imports[0].login.clone().unwrap();
    assert_eq!((name.as_str(), password.expose()), ("ann", "hunter2"));
    assert_eq!(settings.imports[0].transcript_concurrency, 2);
    for (text, key, remedy) in [
        ("csv = \"https://ann:hunter2@files.example/a.csv\"", "imports[0].csv", "password_env"),
        ("csv = \"https://ann@files.example/a.csv\"", "imports[0].csv", "password_env"),
        (&format!("{url}username = \"ann\""), "imports[0].username", "give password_env"),
        (&format!("{url}password_env = \"EXPORT_PASSWORD\""), "imports[0].password_env", "give username"),
        (
            &format!("{url}username = \"a:b\"\npassword_env = \"EXPORT_PASSWORD\""),
            "imports[0].username",
            "another",
        ),
        (
            &format!("{url}username = \"ann\"\npassword_env = \"OTHER\""),
            "imports[0].password_env",
            "set OTHER",
        ),
        (
            &format!("{url}username = \"ann\"\npassword_env = \"hunter2\""),
            "imports[0].password_env",
            "into that",
        ),
        (&format!("{url}password = \"hunter2\""), "imports[0].password", "password_env"),
        ("csv = \"a.csv\"\nusername = \"ann\"", "imports[0].username", "leave it out"),
        (&format!("{url}transcript_concurrency = 5"), "imports[0].transcript_concurrency", "1 to 4"),
    ] {
        let err = error(&import(text), &env, &[]);
        assert!(err.key == key && err.remedy.contains(remedy), "{text}: {err}");
        assert!(!err.to_string().contains("hunter2"), "{err}");
    }
}

#[test]
fn an_address_that_will_be_refused_is_told_at_once() {
    let text = |allowed: &str| {
        format!(
            "[fetch]\nallow_hosts = [{allowed}]\n[[companies]]\nid = \"a\"\n[[imports]]\ncompany = \"a\"\n\
             csv = \"http://127.0.0.1:8000/a.csv\""
        )
    };
    let notes = good(&text("")).notes;
    assert!(
        notes
            .iter()
            .any(|note| note.contains("imports[0].csv is not fetched: the host is no public address")),
        "{notes:?}"
    );
    let login = "\nusername = \"ann\"\npassword_env = \"EXPORT_PASSWORD\"";
    let env = [("EXPORT_PASSWORD", "hunter2")];
    let notes = load_with(&(text("") + login), &env, &[]).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("in the clear")), "{notes:?}");
    let notes = good(&text("\"127.0.0.1:8000\"")).notes;
    assert!(!notes.iter().any(|note| note.contains("not fetched")), "{notes:?}");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text: String, toml in "(\\[[a-z.]{1,12}\\]\n|[a-z_]{1,12} = [\"0-9a-z]{1,9}\n){0,8}") {
        let _ = load_with(&text, &[], &[]);
        let _ = load_with(&toml, &[], &[]);
    }

    #[test]
    fn sizes_are_written_as_they_are_read(bytes in 1_000_u64..=200_000_000) {
        let text = values::size_text(bytes);
        prop_assert_eq!(values::size(1, u64::MAX)(&values::Scalar::Text(text)), Ok(bytes));
    }
}
