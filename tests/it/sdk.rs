//! The official OpenAI SDK for Python against our simulator.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::process::{nightshift, text};

#[test]
fn the_official_sdk_works_against_the_simulator() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".venv/bin/python");
    assert!(python.exists(), "tests/run installs the SDK into .venv");
    let folder = tempfile::tempdir().unwrap();
    let mut simulator = nightshift(folder.path())
        .args(["simulate", "--port", "0", "--turnaround", "3s", "--state"])
        .arg(folder.path().join("state"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(simulator.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let tested = Command::new(python)
        .arg(root.join("tests/sdk/test_openai_sdk.py"))
        .env("NIGHTSHIFT_SIMULATOR_URL", url.trim())
        .output()
        .unwrap();
    simulator.kill().unwrap();
    simulator.wait().unwrap();
    assert!(tested.status.success(), "{}{}", text(&tested.stdout), text(&tested.stderr));
}
