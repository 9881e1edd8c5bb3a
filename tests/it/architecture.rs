//! Which module may use which, and which crate lives where.

use std::fs;
use std::path::{Path, PathBuf};

/// A module of `src`, and what it may use of this crate.
const USES: [(&str, &[&str]); 11] = [
    ("domain", &["domain"]),
    ("clock", &["domain"]),
    ("telemetry", &[]),
    ("serving", &[]),
    ("config", &["config", "domain"]),
    ("store", &["store", "domain"]),
    ("provider", &["provider", "domain"]),
    ("import", &["import", "domain"]),
    ("actors", &["actors", "clock", "domain", "import", "provider", "store"]),
    ("http", &["http", "actors", "config", "domain", "serving", "store"]),
    // Not the domain beyond the clock's time: the simulator must not share our mistakes.
    ("simulator", &["simulator", "clock", "domain::id::Timestamp", "serving"]),
];

/// A crate, and the only places that may name it.
const HOMES: [(&str, &[&str]); 5] = [
    ("sled", &["store"]),
    ("bincode", &["store/codec.rs"]),
    ("reqwest", &["provider/openai", "cli/client.rs", "simulator/tests", "serving.rs"]),
    ("actix", &["actors", "app.rs", "http"]),
    ("warp", &["http", "serving.rs", "simulator", "provider/openai/tests"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// Every source file by its path below `src`, with its text.
fn all() -> Vec<(String, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    found.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().display().to_string();
        (name, fs::read_to_string(path).unwrap())
    };
    found.into_iter().map(read).collect()
}

#[test]
fn a_module_uses_only_what_it_may() {
    let mut wrong = Vec::new();
    for (name, text) in all() {
        let module = name.split('/').next().unwrap().trim_end_matches(".rs");
        let Some((_, allowed)) = USES.iter().find(|(known, _)| *known == module) else { continue };
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                if !allowed.iter().any(|allowed| used.starts_with(allowed)) {
                    wrong.push(format!("{name}: {line}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_crate_is_named_only_where_it_lives() {
    let mut wrong = Vec::new();
    for (name, text) in all() {
        for (package, homes) in HOMES {
            let named = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.starts_with("//"))
                .any(|line| line.contains(&format!("{package}::")));
            if named && !homes.iter().any(|home| name.starts_with(home)) {
                wrong.push(format!("{name} names {package}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_lives_in_it_and_stays_readable() {
    for (name, text) in all() {
        assert!(text.starts_with("//!"), "{name} does not open with //!");
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        assert!(lines <= 700, "{name} has {lines} lines before its tests: two rooms in one");
    }
}
