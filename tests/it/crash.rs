//! Kills the real binary while it works, at every step, and counts what the provider ran.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nightshift::store::Store;
use serde_json::Value;

use crate::process::{Server, free_port, nightshift, read, run, text, until_it_is_free};

/// Each must be hit: what a batch goes through from its opening to its end.
const STEPS: [&str; 10] = [
    "filling",
    "sealed",
    "uploading",
    "creating",
    "uncertain",
    "observing",
    "downloading",
    "applying",
    "closing",
    "cleaning",
];

/// Kills between the provider's creation of a batch and our knowledge of it: without these the test proves little.
const CREATED_MIN: u32 = 4;

const SETTINGS: [&str; 12] = [
    "creation.interval=1s",
    "creation.max_age=0s",
    "creation.max_requests=600",
    "polling.interval=1s",
    "submission.grace=1s",
    "retry.backoff=1s",
    "simulator.turnaround=1s",
    "analysis.settle=0s",
    "log.level=info",
    "retry.max_attempts=20",
    "simulator.faults=faults.json",
    "provider.kind=simulator",
];

/// Create calls whose answer is lost, with and without an effect, and lists that lag behind; lines that were not run.
const FAULTS: &str = r#"{
    "seed": 11,
    "calls": [
        {"call": "batches.create", "fault": "drop_after", "probability": 0.4},
        {"call": "batches.create", "fault": "drop_before", "probability": 0.1},
        {"call": "files.create", "fault": "drop_after", "probability": 0.1},
        {"call": "files.content", "fault": "truncate", "share": 0.5, "probability": 0.1}
    ],
    "lines": [{"fault": "error", "code": "request_timeout", "probability": 0.02}],
    "batches": [{"fault": "invisible", "lists": 1, "probability": 0.5}]
}"#;

fn lines(from: usize, count: usize) -> String {
    let line = |number: usize| {
        format!(
            "{{\"id\":\"r{number}\",\"endpoint\":\"/v1/chat/completions\",\"body\":{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":\"Question {number}?\"}}]}}}}\n"
        )
    };
    (from..from + count).map(line).collect()
}

/// The steps of all batches that were not idle when the process died, from the store itself.
pub fn steps_in_store(data: &std::path::Path) -> Vec<&'static str> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let steps = runtime.block_on(async {
        let store = Store::open(data, uuid::Uuid::nil(), std::sync::Arc::new(|_| {})).await.unwrap();
        // An ordinary kill never puts the store in doubt.
        assert!(store.check().await.unwrap().is_whole());
        assert_eq!(store.doubt(), None);
        let reader = store.reader();
        let live = reader.live_batches().unwrap();
        live.into_iter().map(|id| reader.batch(id).unwrap().unwrap().state.label()).collect()
    });
    until_it_is_free(data);
    steps
}

/// What the log says when a batch has come to a step.
fn reached(step: &'static str) -> impl Fn(&str) -> bool {
    move |line| line.contains(&format!("\"step\":\"{step}\""))
}

#[test]
fn kills_at_every_step_lose_nothing_and_pay_for_nothing_twice() {
    let long = std::env::var("NIGHTSHIFT_TEST_LONG").is_ok();
    let (kills_min, attempts_max) = if long { (200, 600) } else { (20, 120) };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("faults.json"), FAULTS).unwrap();
    let port = free_port();
    let mut kills: BTreeMap<&str, u32> = BTreeMap::new();
    let ledger = folder.path().join("data/simulator/ledger.jsonl");
    let length = || std::fs::metadata(&ledger).map_or(0, |file| file.len());
    let (mut sent, mut total, mut attempt, mut created) = (0, 0, 0, 0);
    let wave = 550;
    while total < kills_min || created < CREATED_MIN || STEPS.iter().any(|step| !kills.contains_key(step)) {
        attempt += 1;
        assert!(attempt < attempts_max, "{total} kills after {attempt} starts, by step {kills:?}");
        let mut server = Server::start(folder.path(), port, &SETTINGS);
        let [pending, in_progress, _, _] = server.summary();
        if pending + in_progress < wave as u64 {
            let answer =
                server.post("/api/v1/companies/demo/requests", "application/x-ndjson", lines(sent, wave));
            assert_eq!(answer["rejected"], 0, "{answer}");
            sent += wave;
        }
        // The step that was hit least often is next.
        let least = *STEPS.iter().min_by_key(|step| kills.get(*step).copied().unwrap_or(0)).unwrap();
        let target = if total % 2 == 1 && created < CREATED_MIN { "creating" } else { least };
        server.wait_until(Duration::from_secs(20), reached(target));
        let before = length();
        if target == "creating" {
            // The worst moment: the provider has done it and written so, and nobody here knows.
            let end = Instant::now() + Duration::from_millis(50);
            while length() == before && Instant::now() < end {}
        }
        server.kill();
        let steps = steps_in_store(&folder.path().join("data"));
        if target == "creating" && steps.contains(&"creating") && length() > before {
            created += 1;
        }
        // A batch that the provider works on is idle here: only a kill in the midst of a step counts.
        if steps.iter().any(|step| *step != "observing") {
            total += 1;
        }
        for step in STEPS.iter().filter(|step| steps.contains(step)) {
            *kills.entry(step).or_default() += 1;
        }
    }
    println!("{total} kills, by the step that a batch was in: {kills:?}");
    println!("{created} of them when the provider had created the batch and nobody here knew");

    let mut server = Server::start(folder.path(), port, &SETTINGS);
    // Sent once more, as a client does that got no answer: nothing doubles.
    let answer = server.post("/api/v1/companies/demo/requests", "application/x-ndjson", lines(0, sent));
    assert_eq!(
        (&answer["duplicate"], &answer["rejected"]),
        (&Value::from(sent), &Value::from(0)),
        "{answer}"
    );
    server.wait_until_done(sent as u64, Duration::from_secs(120));
    assert_eq!(server.summary(), [0, 0, sent as u64, 0], "{}", server.tail());
    assert!(server.terminate().success());

    let ledger = read(&ledger);
    let mut runs: BTreeMap<String, u32> = BTreeMap::new();
    for line in ledger.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["event"] == "line_run" {
            *runs.entry(line["custom_id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    assert_eq!(runs.len(), sent, "every request was run");
    let twice: Vec<_> = runs.iter().filter(|(_, runs)| **runs > 1).collect();
    assert!(twice.is_empty(), "paid more than once: {twice:?}");

    let verified = run(nightshift(folder.path()).arg("verify"));
    assert!(verified.status.success(), "{}{}", text(&verified.stdout), text(&verified.stderr));
}
