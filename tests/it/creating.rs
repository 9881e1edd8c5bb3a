//! When the creator looks at what waits.

use std::time::Duration;

use nightshift::actors::creator::Nudge;
use nightshift::condition::Hindrance;
use nightshift::config::{self, Settings};
use nightshift::domain::id::BatchId;
use nightshift::domain::request::RequestStatus;
use nightshift::provider::jsonl;
use nightshift::store::NewRequest;
use serde_json::{Value, json};

use crate::harness::{Call, Nightshift, good_line, until, with_a_creator, with_a_creator_of};
use crate::process::TOKEN;
use crate::running::Running;

/// Gives a request the length and sum of its line, so that it can be sent.
fn measured(request: &mut NewRequest) {
    let body = request.body.as_deref().unwrap();
    let measured = jsonl::measure(request.id, request.group.endpoint, body);
    (request.line_bytes, request.line_crc) = (measured.line_bytes, measured.line_crc);
}

fn opened(nightshift: &Nightshift) -> usize {
    nightshift.shared.reader.live_batches().unwrap().len()
}

#[test]
fn a_tick_that_came_while_nothing_could_be_sent_is_made_up_for_when_that_is_over() {
    with_a_creator(async |nightshift| {
        let condition = &nightshift.shared.condition;
        condition.raise(Hindrance::Checking, "the store is being checked");
        condition.raise(Hindrance::Reconciling, "the lists are being compared");
        nightshift.request(1, "demo", |_| ()).await;
        // It is due for its age, which is a matter of the timer alone.
        nightshift.clock.advance(Duration::from_secs(3600));
        condition.clear(Hindrance::Checking);
        nightshift.creator.send(Nudge).await.unwrap();
        assert_eq!(opened(&nightshift), 0);
        condition.clear(Hindrance::Reconciling);
        // The next tick is ten minutes away.
        until("a batch is opened", async || (opened(&nightshift) > 0).then_some(())).await;
    });
}

#[test]
fn a_company_without_a_batch_comes_before_one_whose_batches_hold_nothing_any_more() {
    with_a_creator(async |nightshift| {
        let going_on = Call::json("/api/admin/legacy/companies/acme", &json!({ "suspended": false }));
        nightshift.call(going_on.method("PUT")).await.good();
        nightshift.request(1, "demo", measured).await;
        let mut batch = nightshift.open_batch(1, "demo", 1).await;
        batch.send().await;
        batch.read(vec![good_line(1, None)], Vec::new()).await;
        assert!(batch.batch.state.is_live() && batch.batch.held_tokens == 0);
        // That company's next request waits longer than the first one of the other.
        nightshift.request(2, "demo", measured).await;
        nightshift.clock.advance(Duration::from_secs(60));
        nightshift.request(3, "acme", measured).await;
        nightshift.clock.advance(Duration::from_secs(3600));
        let cut = until("a batch of each", async || {
            let reader = &nightshift.shared.reader;
            let mut live = reader.live_batches().unwrap();
            live.retain(|id| *id != batch.batch.id);
            live.sort();
            let company = |id: &BatchId| reader.batch(*id).unwrap().unwrap().group.company.to_string();
            (live.len() == 2).then(|| live.iter().map(company).collect::<Vec<_>>())
        });
        assert_eq!(cut.await, ["acme", "demo"]);
    });
}

/// Whose batches are cut, in their order, where `demo` has one that runs and enough for another one, and `acme` has so many
/// that run and one request that has just come.
fn cut_beside(running: u64) -> Vec<String> {
    let mut cut = Vec::new();
    with_a_creator_of(5, async |nightshift| {
        let going_on = Call::json("/api/admin/legacy/companies/acme", &json!({ "suspended": false }));
        nightshift.call(going_on.method("PUT")).await.good();
        let mut before = Vec::new();
        for number in 1..=running {
            nightshift.request(number, "acme", measured).await;
            let mut batch = nightshift.open_batch(number, "acme", 1).await;
            batch.send().await;
            before.push(batch.batch.id);
        }
        for number in 10..15 {
            nightshift.request(number, "demo", measured).await;
        }
        let mut batch = nightshift.open_batch(10, "demo", 5).await;
        batch.send().await;
        before.push(batch.batch.id);
        for number in 20..25 {
            nightshift.request(number, "demo", measured).await;
        }
        nightshift.request(30, "acme", measured).await;
        nightshift.creator.send(Nudge).await.unwrap();
        let reader = &nightshift.shared.reader;
        let companies = || {
            let mut live = reader.live_batches().unwrap();
            live.retain(|id| !before.contains(id));
            live.sort();
            let company = |id: &BatchId| reader.batch(*id).unwrap().unwrap().group.company.to_string();
            live.iter().map(company).collect::<Vec<_>>()
        };
        let is_cut = async || companies().contains(&"demo".to_owned()).then_some(());
        until("the full one is cut", is_cut).await;
        cut = companies();
    });
    cut
}

#[test]
fn a_company_with_no_more_batches_than_another_has_its_next_one_before_that_ones_next() {
    assert_eq!(cut_beside(0), ["acme", "demo"]);
    assert_eq!(cut_beside(1), ["acme", "demo"]);
    assert_eq!(cut_beside(2), ["demo"], "it waits until it is due");
}

#[test]
fn a_request_whose_text_is_lost_fails_alone_and_holds_up_no_other() {
    with_a_creator(async |nightshift| {
        let good = nightshift.request(1, "demo", measured).await;
        let lost = nightshift
            .request(2, "demo", |request| {
                measured(request);
                // As if the store had another text by now than was taken in.
                request.line_crc ^= 1;
            })
            .await;
        nightshift.clock.advance(Duration::from_secs(3600));
        nightshift.creator.send(Nudge).await.unwrap();
        let request = |id| nightshift.shared.reader.request(id).unwrap().unwrap();
        let failure = until("one has failed", async || request(lost).failure).await;
        assert_eq!(failure.code, "input_lost");
        assert_eq!(request(lost).status, RequestStatus::ProcessingFailed);
        let good = request(good);
        assert_eq!(good.status, RequestStatus::BatchingInProgress);
        let batch = nightshift.shared.reader.batch(good.batch.unwrap()).unwrap().unwrap();
        assert_eq!((batch.counts.outstanding(), batch.input_bytes), (1, u64::from(good.line_bytes)));
    });
}

/// A full batch has five requests, one that is not full goes after ten minutes, and eight go within an hour.
fn few_batches(folder: &std::path::Path) -> Settings {
    let file = folder.join("config.toml");
    std::fs::write(&file, "[[companies]]\nid = \"demo\"\n").unwrap();
    let data = folder.join("data").display().to_string();
    let flags = [
        ("server.bind", "127.0.0.1:0"),
        ("data.path", &data),
        ("data.ballast", "0"),
        ("data.free_space_floor", "0"),
        ("creation.interval", "1m"),
        ("creation.max_age", "10m"),
        ("creation.max_requests", "5"),
        ("submission.batches_per_hour", "8"),
        // What becomes of the batches is not the matter here.
        ("polling.enabled", "false"),
    ];
    let env = |name: &str| (name == "NIGHTSHIFT_ADMIN_TOKEN").then(|| TOKEN.to_owned());
    config::load(Some(&file), &env, [], flags.map(|(key, value)| (key.to_owned(), value.to_owned()))).unwrap()
}

const MINUTE_MS: i64 = 60_000;

/// How long the first request of a batch had waited when the batch was cut.
async fn waited_ms(running: &Running, request: &str) -> i64 {
    let path = format!("/api/v1/companies/demo/requests/{request}");
    let request = running.get(&path).await["request"].clone();
    let batch = format!("/api/admin/legacy/batches/{}", request["batchId"].as_str().unwrap());
    let batch = running.get(&batch).await["batch"].clone();
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond();
    time(&batch["createdAt"]) - time(&request["requestedAt"])
}

#[test]
fn near_the_hourly_limit_a_batch_that_is_not_full_waits_longer_and_everybody_can_see_it() {
    let folder = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let running = Running::start(&few_batches(folder.path())).await;
        let send = async |ids: Vec<String>| {
            let body =
                json!({ "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": "When?" }] });
            let lines: Vec<_> = ids.iter().map(|id| json!({ "id": id, "body": body })).collect();
            let lines = Value::from(lines);
            let sent = running.ask("POST", "/api/v1/companies/demo/requests", Some(&lines)).await;
            assert_eq!(sent["accepted"], ids.len(), "{sent}");
        };
        let provider = async || running.get("/api/admin/legacy/provider").await;
        let created = async |count: usize| {
            let listed = running.get("/api/admin/legacy/batches").await["batches"].clone();
            let ids = listed.as_array().unwrap().iter().filter(|batch| batch["openaiBatchId"].is_string());
            ids.count() == count && provider().await["batchesLastHour"] == count
        };
        running.until("it may send", async |_| provider().await["hindrances"] == json!([])).await;
        send(vec!["first".to_owned()]).await;
        assert_eq!(provider().await["maxAgeNow"], "10m");
        running.later("the first batch", async |_| created(1).await).await;
        let first = waited_ms(&running, "first").await;
        assert!((10 * MINUTE_MS..20 * MINUTE_MS).contains(&first), "{first} ms");

        // A quarter of the hour's batches is left, and then half of that.
        send((0..30).map(|number| format!("full-{number}")).collect()).await;
        running.until("six full batches", async |_| created(7).await).await;
        let shown = provider().await;
        assert_eq!((&shown["maxAge"], &shown["maxAgeNow"]), (&json!("10m"), &json!("25m")), "{shown}");
        send(vec!["last".to_owned()]).await;
        let timeline = running.get("/api/v1/companies/demo/requests/last/timeline").await["timeline"].clone();
        let waiting = &timeline["waiting"];
        assert_eq!(waiting["for"], "count_or_age", "{timeline:#}");
        assert!(waiting["detail"].as_str().unwrap().ends_with("has waited 25m"), "{waiting}");
        running.later("the last batch", async |_| created(8).await).await;
        let last = waited_ms(&running, "last").await;
        assert!(last >= 25 * MINUTE_MS, "{last} ms");
        assert_eq!(provider().await["maxAgeNow"], "40m");
    });
}
