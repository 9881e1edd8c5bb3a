//! The map of `src/lib.rs` as a check: which module may use which, and which crate has which home.
//!
//! Source is read as text, so that a dependency in the wrong direction fails here by name and not as a feeling.

use std::path::{Path, PathBuf};

/// Each module and what of this crate it may name besides itself. A path means that path and what is below it.
const MAY_USE: &[(&str, &[&str])] = &[
    ("crash_points", &[]),
    ("panics", &[]),
    ("domain", &[]),
    ("clock", &["domain"]),
    ("condition", &[]),
    ("disk", &["condition"]),
    ("config", &["domain", "fetch"]),
    ("telemetry", &[]),
    ("serving", &["tls"]),
    ("tls", &[]),
    ("fetch", &["tls"]),
    ("store", &["domain"]),
    ("provider", &["domain", "disk", "clock", "tls"]),
    ("import", &["domain"]),
    ("actors", &["domain", "store", "provider", "import", "fetch", "clock", "condition", "disk", "panics"]),
    (
        "http",
        &[
            "actors",
            "domain",
            "store",
            "fetch",
            "serving",
            "import",
            "config",
            "clock",
            "condition",
            "panics",
        ],
    ),
    ("simulator", &["clock", "serving", "domain::id", "tls"]),
    ("app", &[""]),
    ("cli", &[""]),
    ("lib", &[]),
    ("main", &[]),
];

/// Crates that only their homes name, so that they can be exchanged there. Tests are free.
const HOMES: &[(&str, &[&str])] = &[
    ("sled", &["src/store/"]),
    ("bincode", &["src/store/"]),
    ("reqwest", &["src/provider/", "src/fetch/", "src/cli/client.rs", "src/tls.rs"]),
    ("rustls", &["src/tls.rs"]),
    ("actix", &["src/actors/", "src/app.rs", "src/http/"]),
    ("warp", &["src/http/", "src/simulator/", "src/serving.rs"]),
];

/// A longer file does more than one thing.
const LINES_MAX: usize = 700;

/// Files that are longer for now, each with the length that it may not grow beyond.
const LONGER: &[(&str, usize)] = &[];

struct Source {
    /// As in `src/http/mod.rs`.
    path: String,
    text: String,
}

impl Source {
    /// The module below the crate's root.
    fn module(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap();
        below.split('/').next().unwrap().trim_end_matches(".rs")
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// The text before the file's own tests.
    fn before_tests(&self) -> &str {
        let end = self.text.find("#[cfg(test)]\nmod ").unwrap_or(self.text.len());
        &self.text[..end]
    }
}

/// The lines that are not comments, numbered from 1.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn sources() -> Vec<Source> {
    fn walk(root: &Path, dir: &Path, found: &mut Vec<Source>) {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(root, &path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(root, &root.join("src"), &mut found);
    assert!(found.len() > 50, "only {} files were found", found.len());
    found
}

/// What stands behind each `crate::` of a line, as in `domain::id::Timestamp`.
fn named(line: &str) -> Vec<&str> {
    let starts = line.match_indices("crate::").filter(|(at, _)| {
        // Neither a macro's `$crate::` nor the end of a longer word.
        !line[..*at].ends_with(|c: char| c == '$' || c == '_' || c.is_alphanumeric())
    });
    starts
        .map(|(at, word)| {
            let rest = &line[at + word.len()..];
            let end = rest.find(|c: char| !(c == ':' || c == '_' || c.is_alphanumeric()));
            rest[..end.unwrap_or(rest.len())].trim_end_matches(':')
        })
        .collect()
}

/// Whether `path` is `allowed` or below it; nothing allowed by name means everything.
fn is_below(path: &str, allowed: &str) -> bool {
    allowed.is_empty()
        || path.strip_prefix(allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Whether a line names a crate: `sled::` or `use sled;`.
fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + name.len()..]);
        // `super::warp::…` would be a module of ours.
        let starts = !before.ends_with(|c: char| c == '_' || c == ':' || c.is_alphanumeric());
        let used = before.trim_end().ends_with("use") && after.starts_with([';', ' ']);
        starts && (after.starts_with("::") || used)
    })
}

#[test]
fn modules_use_only_what_the_map_allows() {
    let mut wrong = Vec::new();
    for source in sources() {
        let module = source.module();
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{}: module {module} is not on the map", source.path));
            continue;
        };
        for (number, line) in code(&source.text) {
            for path in named(line) {
                if path.is_empty() {
                    wrong.push(format!("{}:{number}: name one module a line: {line}", source.path));
                } else if !is_below(path, module) && !allowed.iter().any(|allowed| is_below(path, allowed)) {
                    wrong.push(format!("{}:{number}: {module} may not use {path}", source.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn crates_are_named_only_in_their_homes() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (name, homes) in HOMES {
            if homes.iter().any(|home| source.path.starts_with(home)) {
                continue;
            }
            let named = code(source.before_tests()).filter(|(_, line)| names_crate(line, name));
            wrong.extend(named.map(|(number, _)| format!("{}:{number}: {name}", source.path)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_crate_still_lives_in_each_of_its_homes() {
    let sources = sources();
    for (name, homes) in HOMES {
        for home in *homes {
            let at_home = sources.iter().filter(|source| source.path.starts_with(home));
            let named =
                at_home.flat_map(|source| code(&source.text)).any(|(_, line)| names_crate(line, name));
            assert!(named, "{name} has left {home}: take it off the list");
        }
    }
}

#[test]
fn every_file_says_first_what_it_is_for() {
    let without: Vec<_> =
        sources().into_iter().filter(|source| !source.text.starts_with("//! ")).map(|s| s.path).collect();
    assert!(without.is_empty(), "{without:?}");
}

#[test]
fn no_file_is_too_long_before_its_tests() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let longer = LONGER.iter().find(|(path, _)| *path == source.path);
        let max = longer.map_or(LINES_MAX, |(_, max)| *max);
        let lines = source.before_tests().lines().count();
        if lines > max {
            wrong.push(format!("{}: {lines} lines, at most {max}", source.path));
        }
        if longer.is_some() && lines <= LINES_MAX {
            wrong.push(format!("{}: {lines} lines: take it off the list of longer ones", source.path));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_dependency_is_seen_wherever_it_stands_in_a_line() {
    assert_eq!(named("use crate::domain::id::{A, B};"), ["domain::id"]);
    assert_eq!(named("fn a(b: crate::store::X) -> crate::http::Y {"), ["store::X", "http::Y"]);
    assert_eq!(named("use crate::{domain, store};"), [""]);
    assert!(named("$crate::domain").is_empty() && named("mycrate::domain").is_empty());
    assert!(is_below("domain::id::X", "domain::id") && !is_below("domain::idle", "domain::id"));
    assert!(names_crate("use sled::Db;", "sled") && names_crate("-> warp::Reply", "warp"));
    assert!(names_crate("use warp;", "warp") && !names_crate("let warped = 1;", "warp"));
    assert!(!names_crate("super::warp::x()", "warp") && !names_crate("the warp reply", "warp"));
}

#[test]
fn every_http_client_begins_with_our_tls() {
    let begins = |line: &str| {
        ["Client::builder()", "Client::new()", "reqwest::get("].iter().any(|begin| line.contains(begin))
    };
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.path != "src/tls.rs") {
        let found = code(&source.text).filter(|(_, line)| begins(line));
        wrong.extend(found.map(|(number, line)| format!("{}:{number}: {line}", source.path)));
    }
    assert!(wrong.is_empty(), "use tls::client_builder()\n{}", wrong.join("\n"));
}

#[test]
fn each_crash_point_of_the_table_stands_at_one_place_in_the_code() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.module() != "crash_points") {
        for (_, line) in code(&source.text) {
            let named = line.split("crash_point!(\"").skip(1);
            found.extend(named.map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
    let mut table: Vec<_> = nightshift::crash_points::CRASH_POINTS.to_vec();
    table.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, table);
}
