//! Damaged stores: none may be opened as if it were whole.
//!
//! sled opens most of them without a word. Each case is opened and checked in a process of its own, because sled may
//! also panic in a thread of its own, or never answer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nightshift::domain::batch::{Batch, ProviderIdentity};
use nightshift::domain::company::Company;
use nightshift::domain::cut::Limits;
use nightshift::domain::id::{BatchId, KeyId, RequestId, Revision, SessionId, Timestamp};
use nightshift::domain::request::{Endpoint, Group, RequestStatus, Source};
use nightshift::domain::session::{Message, Role as Speaker, SessionFacts};
use nightshift::store::{
    ClientKey, NewRequest, RequestFilter, Role, SessionIn, Store, StoreError, StoredToken,
};
use sha2::{Digest, Sha256};

use crate::process::{PATIENCE, Server, free_port, nightshift, run, text};

const CASES: usize = 200;
/// Tells the child which folder to open.
const FOLDER: &str = "DAMAGED_STORE";
const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);

/// A small random generator, so that a seed makes the same cases on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }
}

fn group() -> Group {
    Group {
        company: "acme".parse().unwrap(),
        endpoint: Endpoint::ChatCompletions,
        model: "gpt-4o-mini".to_owned(),
    }
}

fn id(kind: u8, number: usize) -> [u8; 16] {
    let mut id = [kind; 16];
    id[8..].copy_from_slice(&(number as u64).to_be_bytes());
    id
}

/// Takes in requests and sessions, and fills a batch: about a megabyte that does not shrink.
async fn fill(store: &Store, round: usize, random: &mut Random) {
    const MANY: usize = 60;
    let company = Company {
        id: "acme".parse().unwrap(),
        name: format!("Acme {round}"),
        model: "m".to_owned(),
        suspended: false,
        budget_micros: None,
        retention: Default::default(),
    };
    store.put_companies(vec![company]).await.unwrap();
    let token = StoredToken::new(
        KeyId::from_bytes([round as u8; 16]),
        [round as u8; 32],
        Role::Viewer,
        "ops".to_owned(),
        NOW,
    );
    store.put_token(token, false).await.unwrap();
    for chunk in 0..4 {
        let request = |number: usize, body: String| NewRequest {
            id: RequestId::from_bytes(id(1, number)),
            group: group(),
            source: Source::Generic { client_id: None },
            key: Some(ClientKey::Id(format!("order-{number}"))),
            content_hash: [0; 32],
            body: Some(body),
            line_bytes: 100,
            line_crc: 0,
            estimated_tokens: 1,
            output_max: None,
            inputs: 0,
            metadata: None,
            priority: 0,
            not_before: None,
        };
        let first = (round * 4 + chunk) * MANY;
        let requests = (first..first + MANY).map(|number| {
            let noise: String = (0..100).map(|_| format!("{:016x}", random.next())).collect();
            request(number, format!("{{\"input\":\"{noise}\"}}"))
        });
        store.accept_requests(requests.collect(), NOW).await.unwrap();
        let session = SessionIn {
            company: "acme".parse().unwrap(),
            external_id: format!("chat-{}", round * 4 + chunk),
            id: SessionId::from_bytes(id(3, round * 4 + chunk)),
            facts: SessionFacts::default(),
            messages: Some(vec![Message {
                role: Speaker::User,
                at: None,
                text: format!("{:x}", random.next()),
            }]),
            content_hash: [chunk as u8; 32],
            settles_at: NOW,
            fetch: None,
            line: None,
        };
        store.accept_sessions(vec![session], NOW).await.unwrap();
    }
    if round == 0 {
        let batch = BatchId::from_bytes(id(2, round));
        store.open_batch(Batch::open(batch, group(), ProviderIdentity::default(), NOW)).await.unwrap();
        let limits =
            Limits { requests_max: 100, bytes_max: 1_000_000, tokens_max: None, age_max: Duration::ZERO };
        store.cut_chunk(batch, Revision(0), limits).await.unwrap();
    }
}

/// Everything that was acknowledged, as the store tells it, in one hash. Independent of the store's own sums.
fn digest(store: &Store) -> Result<String, StoreError> {
    let reader = store.reader();
    let mut hash = Sha256::new();
    let mut take = |what: String| hash.update(what.as_bytes());
    for status in RequestStatus::ALL {
        let filter = RequestFilter { status, company: None, batch: None };
        let (mut before, mut more) = (None, true);
        while more {
            let (page, next) = reader.list_requests(&filter, before, 500)?;
            for request in page {
                take(format!("{request:?}{:?}{:?}", reader.body(request.id)?, reader.result(request.id)?));
            }
            (before, more) = (next, next.is_some());
        }
    }
    let company = "acme".parse().unwrap();
    for number in 0..12 {
        let session = reader.session_by_external_id(&company, &format!("chat-{number}"))?;
        let content =
            session.as_ref().map(|session| reader.content(session.id, session.version)).transpose()?;
        take(format!("{session:?}{content:?}"));
    }
    take(format!("{:?}", reader.settled(NOW, 1000)?));
    take(format!("{:?}", reader.waiting()?));
    for batch in reader.live_batches()? {
        take(format!("{:?}", reader.batch(batch)?));
    }
    take(format!("{:?}{:?}{:?}", reader.summary(None)?, reader.companies()?, reader.tokens(None)?));
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn open(folder: &Path) -> Result<Store, StoreError> {
    Store::open(folder, uuid::Uuid::nil(), std::sync::Arc::new(|_| {})).await
}

/// Opens the store and fills it once more, and closes it in order.
fn visit(folder: &Path, round: Option<usize>, random: &mut Random) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut store = open(folder).await;
        // The thread of the store before may not have let go of it yet.
        while let Err(StoreError::InUse { .. }) = store {
            store = open(folder).await;
        }
        let store = store.unwrap();
        if let Some(round) = round {
            fill(&store, round, random).await;
        }
        store.anchor().await.unwrap();
        assert!(store.check().await.unwrap().is_whole());
        digest(&store).unwrap()
    })
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let to = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            copy(&entry, &to);
        } else {
            fs::copy(&entry, &to).unwrap();
        }
    }
}

/// Damages the store in `data`; says how.
fn damage(number: usize, data: &Path, old: &Path, random: &mut Random) -> String {
    const PAGE: usize = 4096;
    let store = data.join("store");
    let db = store.join("db");
    let snapshots = || -> Vec<PathBuf> {
        let files = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("snap.")).collect();
        files.sort();
        files
    };
    let change = |path: &Path, change: &mut dyn FnMut(&mut Vec<u8>) -> String| {
        let mut bytes = fs::read(path).unwrap();
        let how = change(&mut bytes);
        fs::write(path, bytes).unwrap();
        how
    };
    // What was written: behind it a damage would damage nothing.
    let used = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    match number % 20 {
        0..4 => change(&db, &mut |bytes| {
            let end = random.below(used(bytes));
            bytes.truncate(end);
            format!("db cut at {end}")
        }),
        4..9 => change(&db, &mut |bytes| {
            let bit = random.below(used(bytes) * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            format!("bit {bit} of db flipped")
        }),
        9..13 => change(&db, &mut |bytes| {
            let page = random.below(used(bytes).div_ceil(PAGE));
            bytes.iter_mut().skip(page * PAGE).take(PAGE).for_each(|byte| *byte = 0);
            format!("page {page} of db zeroed")
        }),
        13 => change(&db, &mut |bytes| {
            let pages = used(bytes) / PAGE;
            let (a, b) = (random.below(pages), random.below(pages));
            let copy = bytes[a * PAGE..][..PAGE].to_vec();
            bytes.copy_within(b * PAGE..(b + 1) * PAGE, a * PAGE);
            bytes[b * PAGE..][..PAGE].copy_from_slice(&copy);
            format!("pages {a} and {b} of db swapped")
        }),
        14 => {
            fs::copy(old.join("db"), &db).unwrap();
            "an older db between newer files".to_owned()
        }
        15 => change(&store.join("conf"), &mut |bytes| {
            let end = if number % 40 == 15 { 0 } else { random.below(bytes.len()) };
            bytes.truncate(end);
            format!("conf cut at {end}")
        }),
        16 => {
            fs::remove_dir_all(&store).unwrap();
            copy(old, &store);
            "an older store put back".to_owned()
        }
        17 if number % 40 == 17 => {
            fs::remove_file(data.join("ANCHOR")).unwrap();
            "ANCHOR lost".to_owned()
        }
        17 => change(&data.join("ANCHOR"), &mut |bytes| {
            let end = random.below(bytes.len());
            bytes.truncate(end);
            format!("ANCHOR torn at {end}")
        }),
        18 => {
            let Some(path) = snapshots().pop() else { return "no snapshot".to_owned() };
            change(&path, &mut |bytes| {
                let bit = random.below(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                format!("bit {bit} of a snapshot flipped")
            })
        }
        _ => {
            let Some(path) = snapshots().pop() else { return "no snapshot".to_owned() };
            change(&path, &mut |bytes| {
                let end = random.below(bytes.len());
                bytes.truncate(end);
                format!("a snapshot cut at {end}")
            })
        }
    }
}

/// Runs in a child of the test below, on the store that it names; without one there is nothing to do.
#[test]
fn a_damaged_store_is_opened_and_checked_in_a_process_of_its_own() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let verdict = runtime.block_on(async {
        let store = match open(&folder.join("data")).await {
            Ok(store) => store,
            Err(
                err @ (StoreError::Corrupt { .. }
                | StoreError::Damaged { .. }
                | StoreError::Codec(_)
                | StoreError::Folder { .. }),
            ) => return format!("refused {err}"),
            Err(err) => return format!("failed {err}"),
        };
        if let Err(err) = store.check().await {
            return format!("doubt the check failed: {err}");
        }
        if let Some(why) = store.doubt() {
            return format!("doubt {why}");
        }
        digest(&store).map_or_else(|err| format!("failed {err}"), |digest| format!("whole {digest}"))
    });
    fs::write(folder.join("verdict"), verdict).unwrap();
    // What sled does at its end is of no interest.
    std::process::exit(0);
}

/// What the child says; none if it gave up without a word.
fn judge(folder: &Path) -> Option<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "damage::a_damaged_store_is_opened_and_checked_in_a_process_of_its_own"])
        .env(FOLDER, folder)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let (done, waiting) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let status = child.wait();
        let _ = done.send(());
        status
    });
    if waiting.recv_timeout(PATIENCE / 2).is_err() {
        let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
    }
    waiter.join().unwrap().unwrap();
    fs::read_to_string(folder.join("verdict")).ok()
}

#[test]
fn no_damaged_store_is_opened_as_if_it_were_whole() {
    let seed =
        std::env::var("NIGHTSHIFT_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_124);
    println!("seed {seed}; another one: NIGHTSHIFT_TEST_SEED");
    let began = Instant::now();
    let folder = tempfile::tempdir().unwrap();
    let (data, old) = (folder.path().join("data"), folder.path().join("old"));
    let mut random = Random(seed);
    visit(&data, Some(0), &mut random);
    visit(&data, Some(1), &mut random);
    copy(&data.join("store"), &old);
    visit(&data, Some(2), &mut random);
    // Once more, so that sled writes a snapshot of all of it.
    let whole = visit(&data, None, &mut random);

    let (next, tally, wrong) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= CASES {
                        return;
                    }
                    let case = folder.path().join(format!("case-{number}"));
                    copy(&data, &case.join("data"));
                    let mut random = Random(seed ^ ((number as u64 + 1) << 32));
                    let how = damage(number, &case.join("data"), &old, &mut random);
                    let verdict = judge(&case).unwrap_or_else(|| "gave up".to_owned());
                    let kind = verdict.split(' ').next().unwrap().to_owned();
                    let fine = match kind.as_str() {
                        "refused" | "doubt" => true,
                        "whole" => verdict == format!("whole {whole}"),
                        _ => false,
                    };
                    if !fine {
                        wrong.lock().unwrap().push(format!("case {number}, {how}: {verdict}"));
                    }
                    *tally.lock().unwrap().entry(kind).or_insert(0) += 1;
                    fs::remove_dir_all(&case).unwrap();
                }
            });
        }
    });
    let (tally, wrong) = (tally.into_inner().unwrap(), wrong.into_inner().unwrap());
    println!("{CASES} damaged stores in {:?}: {tally:?}", began.elapsed());
    assert!(wrong.is_empty(), "seed {seed}, of {whole}:\n{}", wrong.join("\n"));
    // Not all are refused by sled itself, and not all hit what is dead.
    assert!(tally.get("doubt").is_some_and(|count| *count > CASES / 20), "{tally:?}");
}

fn lines(count: usize) -> String {
    let line = |number: usize| {
        format!(
            "{{\"id\":\"r{number}\",\"body\":{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":\"{number}?\"}}]}}}}\n"
        )
    };
    (0..count).map(line).collect()
}

#[test]
fn a_store_put_back_is_served_in_safe_mode_and_buys_nothing_until_it_is_accepted() {
    const INGEST: &str = "/api/v1/companies/demo/requests";
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let port = free_port();
    let fast = [
        "creation.interval=1s",
        "creation.max_age=0s",
        "polling.interval=1s",
        "simulator.turnaround=1s",
        "submission.grace=1s",
    ];
    let off = [&fast[..], &["creation.enabled=false"]].concat();
    let bind = format!("server.bind=127.0.0.1:{port}");
    let ledger = || fs::metadata(data.join("simulator/ledger.jsonl")).map_or(0, |file| file.len());

    let mut server = Server::start(folder.path(), port, &off);
    assert_eq!(server.post(INGEST, "application/x-ndjson", lines(3))["accepted"], 3);
    assert!(server.terminate().success());
    copy(&data.join("store"), &folder.path().join("old"));
    let mut server = Server::start(folder.path(), port, &fast);
    server.wait_until_done(3, PATIENCE);
    assert!(server.terminate().success());
    let paid = ledger();
    assert!(paid > 0);

    // The same requests wait again, as if nobody had sent them.
    fs::remove_dir_all(data.join("store")).unwrap();
    copy(&folder.path().join("old"), &data.join("store"));
    let mut server = Server::start(folder.path(), port, &fast);
    server.wait_for("the store is checked").unwrap();
    let ready = server.get("/readyz");
    assert_eq!(ready["ok"], false);
    assert!(ready["reasons"][0].as_str().unwrap().contains("safe mode"), "{ready}");
    // The provider has them already: they are taken over from there.
    server.wait_until_done(3, PATIENCE);
    let refused = server.post(INGEST, "application/x-ndjson", lines(4));
    assert_eq!((&refused["ok"], &refused["code"]), (&false.into(), &"safe_mode".into()), "{refused}");
    // Longer than two ticks of the creator, which would open a batch at the first.
    let opened = server.wait_until(Duration::from_secs(3), |line| line.contains("\"step\":\"filling\""));
    assert_eq!(opened, None);
    let verify = run(nightshift(folder.path()).args(["--set", &bind, "verify"]));
    let found = text(&verify.stdout);
    assert_eq!(verify.status.code(), Some(1), "{found}");
    assert!(found.contains("invariant 7 is broken: the store is in doubt"), "{found}");
    let busy = run(nightshift(folder.path()).args(["store", "accept", "--yes"]));
    assert_eq!(busy.status.code(), Some(75), "{}", text(&busy.stderr));
    // A kill does not help, either.
    server.kill();
    let mut server = Server::start(folder.path(), port, &fast);
    assert_eq!(server.get("/readyz")["ok"], false);
    assert!(server.terminate().success());
    assert_eq!(ledger(), paid, "something was bought in safe mode");
    let stopped = run(nightshift(folder.path()).arg("verify"));
    assert_eq!(stopped.status.code(), Some(1), "{}", text(&stopped.stdout));

    let asked = run(nightshift(folder.path()).args(["store", "accept"]));
    assert_eq!(asked.status.code(), Some(1));
    let said = format!("{}{}", text(&asked.stdout), text(&asked.stderr));
    for part in ["missing", "revision anchored", "the provider has 1 batches", "--yes"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let accepted = run(nightshift(folder.path()).args(["--json", "store", "accept", "--yes"]));
    assert!(accepted.status.success(), "{}", text(&accepted.stderr));
    let view: serde_json::Value = serde_json::from_slice(&accepted.stdout).unwrap();
    assert_eq!(
        (&view["accepted"], &view["providerBatches"][0]["known"]),
        (&true.into(), &true.into()),
        "{view}"
    );
    let clean = run(nightshift(folder.path()).arg("verify"));
    assert!(clean.status.success(), "{}", text(&clean.stdout));
    let mut server = Server::start(folder.path(), port, &fast);
    assert_eq!(server.get("/readyz")["ok"], true);
    server.wait_until_done(3, PATIENCE);
    assert!(server.terminate().success());
    let again = run(nightshift(folder.path()).args(["store", "accept"]));
    assert!(text(&again.stdout).contains("nothing to accept"), "{}", text(&again.stdout));
}
