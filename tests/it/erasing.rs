//! Erasing sessions and companies: nothing is left of them but what they cost, and everything else goes on.

use std::path::Path;
use std::time::{Duration, Instant};

use nightshift::actors::eraser::Look;
use nightshift::actors::registry::Resume;
use nightshift::domain::analysis::Misfit;
use nightshift::domain::batch::{BatchState, Problem, Terminal, Then};
use nightshift::domain::event::{Event, ObservedStatus};
use nightshift::domain::id::{ErasureId, Timestamp};
use nightshift::domain::request::{Cost, Failure, FailureClass, RequestStatus};
use nightshift::domain::session::SessionFacts;
use nightshift::domain::source::{SourceId, TranscriptAt};
use nightshift::store::{AppliedLine, ErasedChunk, Repair, RequestFilter, SessionIn, Store};
use serde_json::{Value, json};

use crate::harness::{
    Call, Nightshift, batch_id, body_in_pieces, company, good_line, polling, refused_line, request_id,
    session_id, until, with_actors,
};
use crate::process::{PATIENCE, Server, free_port, nightshift, run, text};
use crate::trouble::bench::Provider;

const ERASURES: &str = "/api/admin/legacy/erasures";

async fn whole(store: &Store) {
    assert_eq!(store.verify().await.unwrap().violations, []);
}

/// Erases what is there to erase, with a look at every invariant after each step.
async fn erase_all(store: &Store, id: ErasureId, now: Timestamp) -> ErasedChunk {
    for _ in 0..100 {
        let chunk = store.erase_chunk(id, now).await.unwrap();
        whole(store).await;
        if chunk.gone || !chunk.moved {
            return chunk;
        }
    }
    panic!("it does not come to an end");
}

/// What an erasure waits for, once it was told why that does not come. It may not be done.
pub async fn trouble(nightshift: &Nightshift, id: ErasureId) -> Value {
    let waiting = until("it is told why it waits", async || {
        nightshift.clock.advance(Duration::from_secs(1));
        let erasure = nightshift.get(&format!("{ERASURES}/{id}")).await["erasure"].clone();
        assert_ne!(erasure["state"], "done", "{erasure:#}");
        erasure["waiting"]["trouble"].is_string().then(|| erasure["waiting"].clone())
    });
    let waiting = waiting.await;
    assert!(waiting["trouble"].as_str().unwrap().contains("refuses to delete"), "{waiting}");
    waiting
}

/// What an erasure counted, once it is done.
pub async fn done(nightshift: &Nightshift, id: ErasureId) -> Value {
    let erasure = until("it is done", async || {
        nightshift.clock.advance(Duration::from_secs(60));
        let erasure = nightshift.get(&format!("{ERASURES}/{id}")).await["erasure"].clone();
        (erasure["state"] == "done").then_some(erasure)
    });
    erasure.await["counts"].clone()
}

pub async fn ordered(nightshift: &Nightshift, path: &str, body: &Value) -> ErasureId {
    let reply = nightshift.call(Call::json(path, body)).await;
    assert_eq!(reply.status, 202, "{:#}", reply.body);
    reply.body["erasure"]["id"].as_str().unwrap().parse().unwrap()
}

fn of_session(number: u64) -> String {
    format!("/api/v1/companies/demo/sessions/chat-{number}/erase")
}

/// One who looks after the erasures by hand: the eraser's own looks come with the clock.
async fn erase_session(nightshift: &Nightshift, number: u64) -> ErasureId {
    let (id, by, now) = (ErasureId::from_bytes([number as u8; 16]), "a test".to_owned(), nightshift.now());
    let begun = nightshift.store().erase_session(company("demo"), format!("chat-{number}"), id, by, now);
    assert_eq!(begun.await.unwrap().unwrap().id, id);
    id
}

#[test]
fn a_session_in_a_running_batch_leaves_the_others_alone_and_its_line_is_paid_and_dropped() {
    with_actors(async |nightshift| {
        for number in [1, 2, 3] {
            nightshift.session(number, "demo").await;
        }
        let mut batch = nightshift.open_batch(1, "demo", 3).await;
        batch.send().await;
        let store = nightshift.store();
        for number in [1, 3] {
            let id = erase_session(&nightshift, number).await;
            assert!(erase_all(store, id, nightshift.now()).await.gone);
        }
        let reader = store.reader();
        batch.batch = reader.batch(batch.batch.id).unwrap().unwrap();
        assert_eq!((batch.batch.counts.erased, batch.batch.counts.outstanding()), (2, 1));
        let analysis = Some(r#"{"language":"en"}"#);
        batch.finish(vec![good_line(1, analysis), good_line(2, analysis)], vec![refused_line(3)]).await;
        whole(store).await;
        let counts = batch.batch.counts;
        assert_eq!((counts.members, counts.completed, counts.erased), (3, 1, 2));
        assert_eq!(batch.batch.cost_micros, 36, "what was bought was bought");
        assert_eq!(reader.gone(request_id(1)).unwrap().unwrap().cost.unwrap().micros, 18);
        assert_eq!(
            (reader.result(request_id(1)).unwrap(), reader.request(request_id(1)).unwrap()),
            (None, None)
        );
        assert!(reader.result(request_id(2)).unwrap().is_some());
        let one = "/api/v1/companies/demo/sessions";
        nightshift.call(Call::get(format!("{one}/chat-1"))).await.problem(404);
        assert_eq!(nightshift.get(&format!("{one}/chat-2")).await["session"]["state"], "analysed");
    });
}

#[test]
fn an_erased_session_does_not_come_in_again_and_is_erased_once() {
    with_actors(async |nightshift| {
        nightshift.session(1, "demo").await;
        let id = ordered(&nightshift, &of_session(1), &json!({})).await;
        assert_eq!(ordered(&nightshift, &of_session(1), &json!({})).await, id);
        // Nothing is left to wait for, so that it comes to its end at once.
        let erasure = until("it is done", async || {
            let shown = nightshift.get(&format!("{ERASURES}/{id}")).await["erasure"].clone();
            (shown["state"] == "done").then_some(shown)
        })
        .await;
        assert_eq!(erasure["waiting"], Value::Null);
        assert_eq!(erasure["counts"], json!({ "sessions": 1, "requests": 1, "batches": 0 }));
        assert_eq!(ordered(&nightshift, &of_session(1), &json!({})).await, id);
        assert!(!erasure.to_string().contains("chat-1"));
        let line = json!({ "externalId": "chat-1", "messages": [{ "role": "user", "content": "Hello" }] });
        let other = json!({ "externalId": "chat-2", "messages": [{ "role": "user", "content": "Hello" }] });
        let sent = Call::json("/api/v1/companies/demo/sessions", &json!([line, other]));
        let reply = nightshift.call(sent).await.body;
        assert_eq!((&reply["accepted"], &reply["rejected"]), (&json!(1), &json!(1)), "{reply:#}");
        assert_eq!(reply["errors"][0]["code"], "erased");
        let alone = Call::json("/api/v1/companies/demo/sessions", &line);
        assert_eq!(nightshift.call(alone).await.problem(422), "erased");
        assert_eq!(
            nightshift.call(Call::json(of_session(9), &json!({}))).await.problem(404),
            "unknown_session"
        );
        let listed = nightshift.get(&format!("{ERASURES}?limit=1")).await;
        assert_eq!((listed["erasures"].as_array().unwrap().len(), &listed["nextCursor"]), (1, &Value::Null));
        whole(nightshift.store()).await;
    });
}

#[test]
fn a_batch_that_was_not_sent_gives_back_what_is_erased_first() {
    with_actors(async |nightshift| {
        nightshift.session(1, "demo").await;
        nightshift.session(2, "demo").await;
        let mut batch = nightshift.open_batch(1, "demo", 2).await;
        let id = erase_session(&nightshift, 1).await;
        let held = erase_all(nightshift.store(), id, nightshift.now()).await;
        assert_eq!((held.held, held.gone), (vec![batch.batch.id], false));
        let failure = Failure::new(FailureClass::Transient, "batch_given_back", "");
        batch.step(Event::GivenBack(failure)).await;
        while batch.batch.state.label() == "dissolving" {
            let (id, revision, now) = (batch.batch.id, batch.batch.revision, nightshift.now());
            let (retry, policy) = (nightshift.shared.retry, nightshift.shared.policy);
            let named = std::collections::HashMap::new();
            let closed =
                nightshift.store().close_chunk(id, revision, named, retry, policy, now).await.unwrap();
            batch.batch = closed.batch;
        }
        assert!(erase_all(nightshift.store(), id, nightshift.now()).await.gone);
        let filter = RequestFilter {
            status: RequestStatus::PendingBatching,
            company: Some(company("demo")),
            batch: None,
        };
        let (left, _) = nightshift.store().reader().list_requests(&filter, None, 9).unwrap();
        assert_eq!(left.iter().map(|request| request.id).collect::<Vec<_>>(), [request_id(2)]);
    });
}

/// Hosts the batches that are there by now.
async fn host(nightshift: &Nightshift) {
    let resume = Resume { creator: Some(nightshift.creator.clone()) };
    nightshift.registry.send(resume).await.unwrap().unwrap();
}

#[test]
fn a_file_with_an_erased_line_is_not_sent_again() {
    with_actors(async |nightshift| {
        nightshift.session(1, "demo").await;
        nightshift.session(2, "demo").await;
        let mut batch = nightshift.open_batch(1, "demo", 2).await;
        batch.send().await;
        let id = erase_session(&nightshift, 1).await;
        assert!(erase_all(nightshift.store(), id, nightshift.now()).await.gone);
        batch.batch = nightshift.store().reader().batch(batch.batch.id).unwrap().unwrap();
        let mut seen = batch.seen(ObservedStatus::Ended(Terminal::Failed));
        (seen.output, seen.error) = (None, None);
        seen.problems = vec![Problem { code: Some("something_new".to_owned()), ..Problem::default() }];
        batch.step(Event::Observed { seen, at: nightshift.now() }).await;
        assert!(matches!(batch.batch.state, BatchState::Ready { .. }), "{:?}", batch.batch.state);
        host(&nightshift).await;
        nightshift.clock.advance(Duration::from_secs(600));
        let state = || nightshift.store().reader().batch(batch.batch.id).unwrap().unwrap().state;
        until("its file is made anew", async || {
            // It may have looked at the clock before it was moved.
            nightshift.clock.advance(Duration::from_secs(1));
            (!matches!(state(), BatchState::Ready { .. })).then_some(())
        })
        .await;
        assert!(matches!(state(), BatchState::Uploading { upload: 2, .. }), "{:?}", state());
    });
}

#[test]
fn a_batch_that_an_erasure_emptied_is_to_be_cancelled_however_often_nobody_heard_it() {
    with_actors(async |nightshift| {
        nightshift.session(1, "demo").await;
        let mut batch = nightshift.open_batch(1, "demo", 1).await;
        batch.send().await;
        let id = erase_session(&nightshift, 1).await;
        // Whoever removed the records was cut off before it asked.
        assert!(erase_all(nightshift.store(), id, nightshift.now()).await.gone);
        host(&nightshift).await;
        let cancel = || nightshift.store().reader().batch(batch.batch.id).unwrap().unwrap().cancel;
        let cancel = until("it is to be cancelled", async || {
            nightshift.eraser.send(Look { compact: false }).await.unwrap();
            cancel()
        });
        assert_eq!(cancel.await.then, Then::End);
    });
}

#[test]
fn a_company_is_erased_with_all_that_it_has_and_nobody_else_is_touched() {
    with_actors(async |nightshift| {
        nightshift.session(1, "demo").await;
        nightshift.request(2, "demo", |_| ()).await;
        nightshift.request(3, "demo", |_| ()).await;
        let mut batch = nightshift.open_batch(1, "demo", 3).await;
        batch.send().await;
        batch.finish(vec![good_line(1, Some("{}")), good_line(2, None)], vec![refused_line(3)]).await;
        nightshift.request(4, "demo", |_| ()).await;
        nightshift.request(5, "acme", |_| ()).await;
        let path = "/api/admin/legacy/companies/demo/erase";
        let unsure = Call::json(path, &json!({ "confirm": "acme" }));
        assert_eq!(nightshift.call(unsure).await.problem(422), "not_confirmed");
        let id = ordered(&nightshift, path, &json!({ "confirm": "demo" })).await;
        // The batch's files are the provider's matter, and nobody is there; the records go by themselves.
        let shown = async || nightshift.get(&format!("{ERASURES}/{id}")).await["erasure"].clone();
        let counts = json!({ "sessions": 1, "requests": 4, "batches": 0 });
        until("the records are gone", async || (shown().await["counts"] == counts).then_some(())).await;
        let trouble = until("it is told why it waits", async || {
            // The call is tried again by the clock.
            nightshift.clock.advance(Duration::from_secs(1));
            shown().await["waiting"]["trouble"].as_str().map(str::to_owned)
        });
        assert!(trouble.await.starts_with("files at the provider cannot be deleted yet"));
        assert_eq!(shown().await["state"], "running");
        assert_eq!(shown().await["waiting"]["batches"], 1);
        let all = nightshift.get("/api/admin/legacy/summary").await;
        assert_eq!(all["summary"]["pending_batching"], 1, "{all}");
        assert_eq!(nightshift.get("/api/admin/legacy/companies").await["companies"][0]["id"], "acme");
        nightshift.call(Call::get("/api/v1/companies/demo/sessions/chat-1")).await.problem(404);
        let again = Call::json("/api/admin/legacy/companies", &json!({ "id": "demo" }));
        assert_eq!(nightshift.call(again).await.problem(409), "company_exists");
        // The company's key is good for nothing.
        let own = Call::get("/api/v1/companies/demo/sessions/chat-1").token(crate::harness::DEMO);
        nightshift.call(own).await.problem(401);
        let cost = nightshift.store().reader().gone(request_id(2)).unwrap().unwrap().cost;
        assert_eq!(cost.unwrap().micros, 18);
        erase_all(nightshift.store(), id, nightshift.now()).await;
        nightshift.eraser.send(Look { compact: true }).await.unwrap();
    });
}

#[test]
fn a_company_is_not_erased_while_files_are_left_that_an_earlier_erasure_of_its_session_has_still_to_delete() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(folder.path(), "{}", |_| ());
    provider.refuse_to_delete();
    polling(&provider.url, async |nightshift| {
        nightshift.session(1, "demo").await;
        let mut batch = nightshift.open_batch(1, "demo", 1).await;
        batch.send().await;
        batch.finish(vec![good_line(1, None)], Vec::new()).await;
        let session = ordered(&nightshift, &of_session(1), &json!({})).await;
        assert_eq!(trouble(&nightshift, session).await["batches"], 1);
        // Of what was in the batch nothing is left that the company could find.
        let path = "/api/admin/legacy/companies/demo/erase";
        let company = ordered(&nightshift, path, &json!({ "confirm": "demo" })).await;
        assert_eq!(trouble(&nightshift, company).await["batches"], 1);
        assert_eq!(trouble(&nightshift, session).await["batches"], 1);
        provider.open();
        for id in [company, session] {
            assert_eq!(done(&nightshift, id).await["batches"], 1);
        }
        whole(nightshift.store()).await;
    });
}

#[test]
fn a_stream_of_a_company_that_is_erased_meanwhile_ends_as_for_one_that_is_not_there() {
    with_actors(async |nightshift| {
        let lines = |from: u32| -> String {
            let body = json!({ "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": "x" }] });
            (from..from + 250).map(|number| format!("{{\"id\":\"r{number}\",\"body\":{body}}}\n")).collect()
        };
        let (pieces, body) = body_in_pieces();
        pieces.send(Ok(lines(0))).unwrap();
        let call = Call::streamed("/api/v1/companies/demo/requests", "application/x-ndjson", body);
        let erase = async {
            until("the first chunk is stored", async || {
                let summary = nightshift.get("/api/admin/legacy/summary").await;
                (summary["summary"]["pending_batching"] == 250).then_some(())
            })
            .await;
            let (id, by) = (ErasureId::from_bytes([1; 16]), "a test".to_owned());
            let begun = nightshift.store().erase_company(company("demo"), id, by, nightshift.now());
            begun.await.unwrap().unwrap();
            pieces.send(Ok(lines(250))).unwrap();
            drop(pieces);
        };
        let (reply, ()) = tokio::join!(nightshift.call(call), erase);
        assert_eq!(reply.problem(404), "unknown_company");
        let done = ["accepted", "duplicate", "rejected", "lastLine"].map(|name| reply.body[name].as_u64());
        assert_eq!(done, [Some(250), Some(0), Some(0), Some(250)], "{:#}", reply.body);
    });
}

/// A line whose answer does not fit and is shown to the model once more.
fn misfit_line(number: u64) -> AppliedLine {
    let mut line = refused_line(number);
    if let AppliedLine::Line { repair, cost, .. } = &mut line {
        let misfit = Misfit { answer: "words of a chat".to_owned(), error: "no JSON".to_owned() };
        *repair = Some(Repair { misfit, line_bytes: 300, line_crc: 8, estimated_tokens: 40 });
        *cost = Some(Cost { micros: 5, currency: "USD".to_owned(), price_version: "test".to_owned() });
    }
    line
}

const SOURCE: SourceId = SourceId::from_bytes([7; 16]);

/// Gives a session a transcript that is to be fetched.
async fn fetched(nightshift: &Nightshift, number: u64) {
    let at = TranscriptAt { source: SOURCE, url: "https://example.com/chat".to_owned(), host: [1; 8] };
    let session = SessionIn {
        company: company("demo"),
        external_id: format!("chat-{number}"),
        id: session_id(number),
        facts: SessionFacts::default(),
        messages: None,
        content_hash: [0; 32],
        settles_at: nightshift.now(),
        fetch: Some(at),
        line: None,
    };
    nightshift.store().accept_sessions(vec![session], nightshift.now()).await.unwrap();
}

#[test]
fn what_is_to_be_erased_is_gone_at_once_although_files_of_another_erasure_cannot_be_deleted() {
    with_actors(async |nightshift| {
        nightshift.session(1, "demo").await;
        let mut batch = nightshift.open_batch(1, "demo", 1).await;
        batch.send().await;
        batch.finish(vec![good_line(1, None)], Vec::new()).await;
        nightshift.session(2, "demo").await;
        let first = ordered(&nightshift, &of_session(1), &json!({})).await;
        // Nobody answers for the files, and the clock by which that is tried again stands.
        let shown = async || nightshift.get(&format!("{ERASURES}/{first}")).await["erasure"].clone();
        until("its records are gone", async || (shown().await["counts"]["requests"] == 1).then_some(()))
            .await;
        ordered(&nightshift, &of_session(2), &json!({})).await;
        let path = "/api/v1/companies/demo/sessions/chat-2?include=messages";
        until("the other is gone", async || {
            (nightshift.call(Call::get(path)).await.status == 404).then_some(())
        })
        .await;
        assert_eq!(shown().await["state"], "running");
    });
}

#[test]
fn the_files_of_a_shadow_batch_that_had_an_answer_to_what_is_erased_are_deleted_too() {
    with_actors(async |nightshift| {
        nightshift.session(1, "demo").await;
        nightshift.session(2, "demo").await;
        let mut batch = nightshift.open_batch(1, "demo", 2).await;
        batch.send().await;
        batch.finish(vec![good_line(1, None), good_line(2, None)], Vec::new()).await;
        let store = nightshift.store();
        let mut first = nightshift.shadow(2, &batch.batch).await;
        let mut later = nightshift.shadow(3, &batch.batch).await;
        first.finish(vec![good_line(1, None), good_line(2, None)], Vec::new()).await;
        let id = erase_session(&nightshift, 1).await;
        assert!(erase_all(store, id, nightshift.now()).await.gone);
        let reader = store.reader();
        assert_eq!(reader.batches_to_erase(id, None, 9).unwrap(), [1, 2, 3].map(batch_id));
        // The other one ends only now. Its files are needed until it is closed.
        let due = || {
            let end_of_time = nightshift.now().plus(Duration::from_secs(40 * 3600));
            let due = reader.due_deletions(&nightshift.shared.identity, end_of_time, 9).unwrap();
            due.into_iter().map(|(_, file)| file.to_string()).collect::<Vec<_>>()
        };
        later.read(vec![good_line(1, None), good_line(2, None)], Vec::new()).await;
        assert_eq!(due(), Vec::<String>::new());
        later.close().await;
        assert_eq!(due(), ["file-error-3", "file-output-3"]);
        whole(store).await;
    });
}

#[test]
fn an_erasure_waits_for_a_batch_of_an_old_create_call_that_runs_when_it_is_ordered() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(folder.path(), "{}", |_| ());
    polling(&provider.url, async |nightshift| {
        nightshift.session(1, "demo").await;
        nightshift.request(2, "acme", |_| ()).await;
        let mut shadows = Vec::new();
        for (number, of) in [(1, "demo"), (2, "acme")] {
            let mut batch = nightshift.open_batch(number, of, 1).await;
            batch.send().await;
            batch.finish(vec![good_line(number, None)], Vec::new()).await;
            shadows.push(nightshift.shadow(number + 4, &batch.batch).await);
        }
        let company = "/api/admin/legacy/companies/acme/erase";
        let erasures = [
            ordered(&nightshift, &of_session(1), &json!({})).await,
            ordered(&nightshift, company, &json!({ "confirm": "acme" })).await,
        ];
        for id in erasures {
            let erasure = until("the files of the batch that is over are gone", async || {
                nightshift.clock.advance(Duration::from_secs(60));
                let erasure = nightshift.get(&format!("{ERASURES}/{id}")).await["erasure"].clone();
                (erasure["counts"]["batches"] == 1).then_some(erasure)
            });
            let erasure = erasure.await;
            assert_eq!((&erasure["state"], &erasure["waiting"]["batches"]), (&json!("running"), &json!(1)));
        }
        for (number, mut shadow) in (1..).zip(shadows) {
            shadow.finish(vec![good_line(number, None)], Vec::new()).await;
        }
        for id in erasures {
            assert_eq!(done(&nightshift, id).await["batches"], 2);
        }
        for file in ["output-5", "error-5", "output-6", "error-6"] {
            assert!(provider.calls(&format!("DELETE /v1/files/file-{file}")) > 0, "{file}");
        }
        whole(nightshift.store()).await;
    });
}

#[test]
fn an_erased_session_leaves_no_answer_no_fetch_and_no_name_in_what_webhooks_are_told() {
    with_actors(async |nightshift| {
        let hooks = "/api/v1/companies/demo/webhooks";
        let wish = json!({ "url": "https://example.com/hook", "events": ["request.finished"] });
        let hook = nightshift.call(Call::json(hooks, &wish)).await.made()["webhook"]["id"].clone();
        let hook = hook.as_str().unwrap().to_owned();
        for number in [1, 2, 3] {
            nightshift.session(number, "demo").await;
        }
        fetched(&nightshift, 2).await;
        let mut batch = nightshift.open_batch(1, "demo", 3).await;
        batch.send().await;
        batch.finish(vec![good_line(1, Some("{}")), good_line(3, Some("{}"))], vec![misfit_line(2)]).await;
        let (store, reader) = (nightshift.store(), nightshift.store().reader());
        assert_eq!(reader.misfit(request_id(2), 0).unwrap().unwrap().answer, "words of a chat");
        assert!(reader.fetch(session_id(2)).unwrap().is_some());
        let told = async || {
            let list = nightshift.get(&format!("{hooks}/{hook}/deliveries")).await["deliveries"].clone();
            let id = list[0]["id"].as_str().unwrap();
            nightshift.get(&format!("{hooks}/{hook}/deliveries/{id}")).await["delivery"].clone()
        };
        let names = |delivery: &Value| {
            let requests = delivery["payload"]["data"]["requests"].as_array().unwrap().clone();
            requests.iter().map(|one| one["externalId"].clone()).collect::<Vec<_>>()
        };
        let before = told().await;
        assert_eq!(names(&before), [json!("chat-1"), json!("chat-3")]);
        assert_eq!(before["payloadBytes"], before["payload"].to_string().len());
        for number in [1, 2] {
            let id = erase_session(&nightshift, number).await;
            assert!(erase_all(store, id, nightshift.now()).await.gone);
        }
        assert_eq!(reader.misfit(request_id(2), 0).unwrap(), None);
        assert_eq!(reader.fetch(session_id(2)).unwrap(), None);
        assert_eq!(reader.gone(request_id(2)).unwrap().unwrap().cost.unwrap().micros, 5);
        assert_eq!(names(&told().await), [Value::Null, json!("chat-3")]);
        let listed = nightshift.get("/api/v1/companies/demo/sessions").await["sessions"].clone();
        assert_eq!(listed.as_array().unwrap().len(), 1, "{listed:#}");
    });
}

const SETTINGS: [&str; 9] = [
    "creation.interval=1s",
    "creation.max_age=0s",
    "polling.interval=1s",
    "submission.grace=1s",
    "retry.backoff=1s",
    "simulator.turnaround=2s",
    "analysis.settle=0s",
    "log.level=info",
    "provider.kind=simulator",
];

const CANARY: &str = "canary-7f3a";

/// The files below a folder in which the canary is.
fn found_in(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(found_in(&path));
        } else if std::fs::read(&path)
            .is_ok_and(|bytes| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()))
        {
            found.push(path);
        }
    }
    found
}

/// An export whose one transcript is fetched where nobody listens.
fn configured(folder: &Path) -> String {
    let row = format!(
        "{CANARY}-fetched,02.11.2026 10:00:00,02.11.2026 10:05:00,,NL,nl,1,,,,http://127.0.0.1:1/{CANARY}.txt,1,1,0,,\n"
    );
    std::fs::write(folder.join("sessions.csv"), row).unwrap();
    "[fetch]\nallow_hosts = [\"127.0.0.1:1\"]\n[[companies]]\nid = \"demo\"\n[[imports]]\ncompany = \"demo\"\n\
     csv = \"sessions.csv\"\n"
        .to_owned()
}

#[test]
fn no_file_has_a_word_of_an_erased_session_however_often_the_process_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let port = free_port();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, configured(folder.path())).unwrap();
    let start = || {
        let mut command = nightshift(folder.path());
        command.arg("--config").arg(&file);
        for set in SETTINGS {
            command.args(["--set", set]);
        }
        command.args(["--set", &format!("server.bind=127.0.0.1:{port}")]);
        Server::spawn(command, port)
    };
    let mut server = start();
    let session = |id: &str, words: &str| {
        json!({
            "externalId": id, "messages": [{ "role": "user", "content": words }],
            "metadata": { "note": words },
            "facts": { "firstMessage": words, "category": words },
        })
    };
    // A whole company, down to its name.
    let made = json!({ "id": "secret", "name": CANARY });
    server.post("/api/admin/legacy/companies", "application/json", made.to_string());
    let hook = json!({ "url": format!("http://127.0.0.1:1/{CANARY}"), "events": ["request.finished"], "description": CANARY });
    let hook = server.post("/api/v1/companies/secret/webhooks", "application/json", hook.to_string());
    let test = format!("/api/v1/companies/secret/webhooks/{}/test", hook["webhook"]["id"].as_str().unwrap());
    server.post(&test, "application/json", String::new());
    let body = json!({ "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": CANARY }] });
    let one = json!({ "id": format!("{CANARY}-client"), "body": body, "metadata": { "note": CANARY } });
    let sent = server.post("/api/v1/companies/secret/requests", "application/json", one.to_string());
    assert_eq!(sent["accepted"], 1, "{sent}");
    let line = json!({ "body": body }).to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let status = runtime.block_on(async {
        let client = nightshift::tls::client_builder().no_proxy().build().unwrap();
        let call = client.post(format!("{}/api/v1/companies/secret/requests", server.url));
        let call = call.bearer_auth(crate::process::TOKEN).header("idempotency-key", format!("{CANARY}-key"));
        call.header("content-type", "application/json").body(line).send().await.unwrap().status().as_u16()
    });
    assert_eq!(status, 200);
    let fetched = format!("/api/v1/companies/demo/sessions/{CANARY}-fetched");
    let end = Instant::now() + PATIENCE;
    while server.get(&fetched)["session"].is_null() {
        assert!(Instant::now() < end, "its transcript does not come: {}", server.tail());
        server.wait_until(Duration::from_millis(100), |_| false);
    }
    let mut sessions: Vec<Value> = (0..40).map(|n| session(&format!("chat-{n}"), "Hello")).collect();
    sessions.push(session(&format!("{CANARY}-id"), &format!("{CANARY}-words")));
    let sent =
        server.post("/api/v1/companies/demo/sessions", "application/json", Value::from(sessions).to_string());
    assert_eq!(sent["accepted"], 41, "{sent}");
    // In the midst of a batch that the provider runs.
    server.wait_until(PATIENCE, |line| line.contains("\"step\":\"observing\"")).unwrap();
    assert!(found_in(&data).len() > 1, "in the store and at the provider, or this proves nothing");
    let confirmed = json!({ "confirm": "secret" }).to_string();
    let orders = [
        (format!("/api/v1/companies/demo/sessions/{CANARY}-id/erase"), "{}".to_owned()),
        (format!("{fetched}/erase"), "{}".to_owned()),
        ("/api/admin/legacy/companies/secret/erase".to_owned(), confirmed),
    ];
    let erasures = orders.map(|(path, body)| {
        let erasure = server.post(&path, "application/json", body)["erasure"]["id"].clone();
        format!("{ERASURES}/{}", erasure.as_str().unwrap())
    });
    let states_of = |server: &Server| {
        erasures.each_ref().map(|path| server.get(path)["erasure"]["state"].as_str().unwrap().to_owned())
    };
    let mut states = Vec::new();
    for kill in 0..12_u64 {
        // Sooner and later, as the log comes.
        server.wait_until(Duration::from_millis(kill * 90), |_| false);
        server.kill();
        server = start();
        states.push(states_of(&server));
    }
    println!("found after the kills: {states:?}");
    let end = Instant::now() + PATIENCE;
    while states_of(&server).iter().any(|state| state != "done") {
        assert!(Instant::now() < end, "{:?}\n{}", states_of(&server), server.tail());
        server.wait_until(Duration::from_millis(200), |line| line.contains("is done"));
    }
    server.wait_until_done(40, PATIENCE);
    assert_eq!(server.summary(), [0, 0, 40, 0]);
    assert_eq!(found_in(&data), Vec::<std::path::PathBuf>::new());
    assert!(!server.seen.join("\n").contains(CANARY), "nor has the log");
    assert!(server.terminate().success());
    let verified = run(nightshift(folder.path()).arg("verify"));
    assert!(verified.status.success(), "{}{}", text(&verified.stdout), text(&verified.stderr));
}
