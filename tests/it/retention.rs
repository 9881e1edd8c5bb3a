//! What has been kept long enough goes by itself, what it cost stays, and nothing that comes again is bought again.

use std::time::Duration;

use nightshift::condition::Hindrance;
use nightshift::domain::id::Timestamp;
use nightshift::domain::request::{RequestStatus, Source};
use nightshift::domain::retention::Retention;
use nightshift::domain::session::{Message, Role, SessionFacts, SessionState};
use nightshift::domain::source::{SourceId, TranscriptAt};
use nightshift::store::{Accepted, ClientKey, NewRequest, RequestFilter, Requeued, SessionIn, SessionTaken};
use serde_json::{Value, json};

use crate::erasing::{done, ordered, trouble};
use crate::harness::{
    Call, Nightshift, company, good_line, group, keeping, polling_and_keeping, refused_line, request_id,
    session_id, until, with_actors,
};
use crate::trouble::bench::Provider;

const DAY: Duration = Duration::from_secs(24 * 3600);
const RETENTION: &str = "/api/admin/legacy/retention";
const SESSIONS: &str = "/api/v1/companies/demo/sessions";

fn kept(complete: &str, failed: &str, sessions: &str) -> Retention {
    let keep = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
    Retention { complete: keep(complete), failed: keep(failed), sessions: keep(sessions) }
}

/// Lets time pass, and waits for the pass that this sets off.
async fn pass(nightshift: &Nightshift, length: Duration) -> Value {
    // Whoever answers has begun, and listens to the clock.
    nightshift.get(RETENTION).await;
    nightshift.clock.advance(length);
    let now = nightshift.now().to_string();
    let removed = until("it went through all", async || {
        let shown = nightshift.get(RETENTION).await;
        let ended = shown["running"] == false && shown["lastEndedAt"] == now.as_str();
        ended.then(|| shown["removed"].clone())
    });
    let removed = removed.await;
    assert_eq!(nightshift.store().verify().await.unwrap().violations, []);
    removed
}

fn there(nightshift: &Nightshift, numbers: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let reader = nightshift.store().reader();
    numbers.into_iter().filter(|number| reader.request(request_id(*number)).unwrap().is_some()).collect()
}

/// As `Nightshift::request` makes it, come again.
fn order(number: u64) -> NewRequest {
    NewRequest {
        id: request_id(9000 + number),
        group: group("demo"),
        source: Source::Generic { client_id: Some(format!("order-{number}")) },
        key: Some(ClientKey::Id(format!("order-{number}"))),
        content_hash: [0; 32],
        body: Some("{}".to_owned()),
        line_bytes: 200,
        line_crc: 7,
        estimated_tokens: 25,
        output_max: None,
        inputs: 0,
        metadata: None,
        priority: 0,
        not_before: None,
    }
}

/// As `Nightshift::session` makes it, come again.
fn chat(number: u64, hash: u8) -> SessionIn {
    SessionIn {
        company: company("demo"),
        external_id: format!("chat-{number}"),
        id: session_id(9000 + number),
        facts: SessionFacts { first_message: Some("When do I work?".to_owned()), ..SessionFacts::default() },
        messages: Some(vec![Message { role: Role::User, at: None, text: "When do I work?".to_owned() }]),
        content_hash: [hash; 32],
        settles_at: Timestamp::from_millis(0),
        fetch: None,
        line: None,
    }
}

#[test]
fn nothing_is_removed_where_nothing_is_said() {
    with_actors(async |nightshift| {
        nightshift.session(1, "demo").await;
        nightshift.request(2, "demo", |_| ()).await;
        nightshift.request(3, "demo", |_| ()).await;
        let mut batch = nightshift.open_batch(1, "demo", 3).await;
        batch.send().await;
        batch.finish(vec![good_line(1, Some("{}")), good_line(2, None)], vec![refused_line(3)]).await;
        let removed = pass(&nightshift, 3000 * DAY).await;
        assert_eq!(removed, json!({ "requests": 0, "sessions": 0 }));
        assert_eq!(there(&nightshift, 1..4), [1, 2, 3]);
        let shown = nightshift.get(RETENTION).await;
        assert_eq!(shown["retention"], json!({ "complete": null, "failed": null, "sessions": null }));
    });
}

#[test]
fn a_request_goes_by_its_end_and_what_it_cost_and_its_key_stay() {
    keeping(kept("2d", "3d", ""), async |nightshift| {
        for number in 1..=120 {
            nightshift.request(number, "demo", |_| ()).await;
        }
        let mut batch = nightshift.open_batch(1, "demo", 120).await;
        batch.send().await;
        let output = (1..=118).map(|number| good_line(number, None)).collect();
        batch.finish(output, vec![refused_line(119), refused_line(120)]).await;
        // Old as they are, these have not ended.
        nightshift.request(121, "demo", |_| ()).await;
        nightshift.request(122, "demo", |_| ()).await;
        let mut running = nightshift.open_batch(2, "demo", 1).await;
        running.send().await;
        assert_eq!(pass(&nightshift, DAY).await["requests"], 0);
        assert_eq!(pass(&nightshift, DAY).await["requests"], 118);
        assert_eq!(there(&nightshift, 1..=122), [119, 120, 121, 122]);
        assert_eq!(pass(&nightshift, DAY).await, json!({ "requests": 120, "sessions": 0 }));
        assert_eq!(pass(&nightshift, 300 * DAY).await["requests"], 120);
        assert_eq!(there(&nightshift, 1..=122), [121, 122]);
        let (store, reader) = (nightshift.store(), nightshift.store().reader());
        let one = request_id(1);
        assert_eq!(
            (reader.body(one).unwrap(), reader.result(one).unwrap(), reader.misfit(one, 0).unwrap()),
            (None, None, None)
        );
        assert_eq!(reader.gone(one).unwrap().unwrap().cost.unwrap().micros, 18);
        let complete = RequestFilter {
            status: RequestStatus::ProcessingComplete,
            company: Some(company("demo")),
            batch: None,
        };
        assert_eq!(reader.list_requests(&complete, None, 9).unwrap().0, []);
        let again = store.accept_requests(vec![order(1), order(120)], nightshift.now()).await.unwrap();
        assert_eq!(again, [Accepted::Duplicate(one), Accepted::Duplicate(request_id(120))]);
        assert_eq!(
            store.requeue(vec![request_id(120)], nightshift.now()).await.unwrap(),
            [Requeued::NotFound]
        );
        // Its batch is told of as it was.
        let closed = reader.batch(batch.batch.id).unwrap().unwrap();
        assert_eq!(
            (closed.counts.members, closed.counts.completed, closed.cost_micros),
            (120, 118, 118 * 18)
        );
    });
}

#[test]
fn nothing_goes_while_its_batch_is_not_over() {
    keeping(kept("1h", "1h", "1h"), async |nightshift| {
        nightshift.request(1, "demo", |_| ()).await;
        nightshift.request(2, "demo", |_| ()).await;
        nightshift.session(3, "demo").await;
        let mut batch = nightshift.open_batch(1, "demo", 3).await;
        batch.send().await;
        batch.read(vec![good_line(1, None), good_line(3, Some("{}"))], Vec::new()).await;
        let ended = nightshift.store().reader().request(request_id(1)).unwrap().unwrap();
        assert_eq!(ended.status, RequestStatus::ProcessingComplete);
        assert_eq!(pass(&nightshift, DAY).await, json!({ "requests": 0, "sessions": 0 }));
        batch.close().await;
        // The third has no result, and waits for another try.
        assert_eq!(pass(&nightshift, DAY).await, json!({ "requests": 2, "sessions": 1 }));
        assert_eq!(there(&nightshift, 1..=3), [2]);
    });
}

#[test]
fn a_session_that_is_gone_is_not_bought_again_and_a_changed_one_is_new() {
    keeping(kept("", "", "10d"), async |nightshift| {
        nightshift.session(1, "demo").await;
        nightshift.session(2, "demo").await;
        let mut batch = nightshift.open_batch(1, "demo", 2).await;
        batch.send().await;
        batch.finish(vec![good_line(1, Some(r#"{"language":"en"}"#))], vec![refused_line(2)]).await;
        // The one waits for its batch, the other to settle.
        nightshift.session(3, "demo").await;
        let (store, reader) = (nightshift.store(), nightshift.store().reader());
        let settling =
            SessionIn { id: session_id(4), settles_at: nightshift.now().plus(5000 * DAY), ..chat(4, 1) };
        store.accept_sessions(vec![settling], nightshift.now()).await.unwrap();
        assert_eq!(pass(&nightshift, 9 * DAY).await["sessions"], 0);
        assert_eq!(pass(&nightshift, DAY).await, json!({ "requests": 2, "sessions": 2 }));
        for number in [1, 2] {
            let session = reader.session(session_id(number)).unwrap().unwrap();
            assert_eq!((session.state, session.version), (SessionState::Expired, 1));
            assert_eq!((session.facts, session.request), (SessionFacts::default(), None));
            assert_eq!(reader.content(session_id(number), 1).unwrap(), None);
            assert_eq!(reader.analysis(session_id(number), 1).unwrap(), None);
            assert!(reader.gone(request_id(number)).unwrap().is_some());
        }
        let listed = nightshift.get(SESSIONS).await["sessions"].clone();
        assert_eq!(listed.as_array().unwrap().len(), 2, "{listed:#}");
        let shown = nightshift.get(&format!("{SESSIONS}/chat-1")).await["session"].clone();
        assert_eq!((&shown["state"], &shown["requestId"]), (&json!("expired"), &Value::Null));
        // The export still lists them: as they were, with other facts, and with a transcript to fetch.
        let now = nightshift.now();
        let at = TranscriptAt { source: SourceId::from_bytes([7; 16]), url: "u".to_owned(), host: [1; 8] };
        let again = vec![chat(1, 1), SessionIn { messages: None, fetch: Some(at), ..chat(2, 0) }];
        let taken = store.accept_sessions(again, now).await.unwrap();
        assert_eq!(taken, [SessionTaken::Unchanged, SessionTaken::Unchanged]);
        assert_eq!(reader.fetch(session_id(2)).unwrap(), None);
        assert_eq!(reader.session(session_id(1)).unwrap().unwrap().facts, SessionFacts::default());
        // One went on.
        assert_eq!(store.accept_sessions(vec![chat(1, 2)], now).await.unwrap(), [SessionTaken::Changed]);
        let session = reader.session(session_id(1)).unwrap().unwrap();
        assert_eq!((session.state, session.version), (SessionState::Settling, 2));
        assert!(session.facts.first_message.is_some());
        let listed = nightshift.get(SESSIONS).await["sessions"].clone();
        assert_eq!(listed.as_array().unwrap().len(), 3, "{listed:#}");
        assert_eq!(store.verify().await.unwrap().violations, []);
        // What is left of the other can be erased like any session.
        let erase = Call::json(format!("{SESSIONS}/chat-2/erase"), &json!({}));
        assert_eq!(nightshift.call(erase).await.status, 202);
        until("it is gone", async || reader.session(session_id(2)).unwrap().is_none().then_some(())).await;
        assert_eq!(store.verify().await.unwrap().violations, []);
    });
}

#[test]
fn an_export_without_the_transcript_of_an_expired_session_brings_nothing_of_it_back() {
    keeping(kept("", "", "10d"), async |nightshift| {
        nightshift.session(1, "demo").await;
        let mut batch = nightshift.open_batch(1, "demo", 1).await;
        batch.send().await;
        batch.finish(vec![good_line(1, Some("{}"))], Vec::new()).await;
        assert_eq!(pass(&nightshift, 11 * DAY).await["sessions"], 1);
        let (store, now) = (nightshift.store(), nightshift.now());
        let row = SessionIn { messages: Some(Vec::new()), ..chat(1, 0) };
        // Its messages are known again behind such a row, too.
        let taken = store.accept_sessions(vec![row, chat(1, 1)], now).await.unwrap();
        assert_eq!(taken, [SessionTaken::Unchanged, SessionTaken::Unchanged]);
        let session = store.reader().session(session_id(1)).unwrap().unwrap();
        assert_eq!((session.state, session.version), (SessionState::Expired, 1));
        assert_eq!(session.facts, SessionFacts::default());
    });
}

#[test]
fn the_providers_files_of_what_is_gone_for_its_age_are_deleted() {
    keeping(kept("1h", "", "1h"), async |nightshift| {
        for (number, id) in [(1, "demo"), (2, "demo"), (3, "demo"), (4, "acme")] {
            match number {
                1 => nightshift.session(number, id).await,
                _ => nightshift.request(number, id, |_| ()).await,
            };
        }
        // The session had an answer in a batch of an old create call, too.
        let mut first = nightshift.open_batch(1, "demo", 1).await;
        first.send().await;
        first.finish(vec![good_line(1, Some("{}"))], Vec::new()).await;
        let mut shadow = nightshift.shadow(5, &first.batch).await;
        shadow.finish(vec![good_line(1, None)], Vec::new()).await;
        // One of two is removed, and of these neither.
        let mut second = nightshift.open_batch(2, "demo", 2).await;
        second.send().await;
        second.finish(vec![good_line(2, None)], vec![refused_line(3)]).await;
        let mut others = nightshift.open_batch(4, "acme", 1).await;
        others.send().await;
        others.finish(Vec::new(), vec![refused_line(4)]).await;
        let due = |hours: u32| {
            let until = nightshift.now().plus(hours * Duration::from_secs(3600));
            let reader = nightshift.store().reader();
            let due = reader.due_deletions(&nightshift.shared.identity, until, 99).unwrap();
            let mut files: Vec<_> = due.into_iter().map(|(_, file)| file.to_string()).collect();
            files.sort();
            files
        };
        assert_eq!(due(0), Vec::<String>::new());
        assert_eq!(pass(&nightshift, 2 * Duration::from_secs(3600)).await["requests"], 2);
        let gone =
            ["error-1", "error-2", "error-5", "input-1", "input-2", "output-1", "output-2", "output-5"];
        assert_eq!(due(0), gone.map(|file| format!("file-{file}")));
        // Once each, and what nobody removed has its time.
        assert_eq!(due(72).len(), gone.len() + 1, "{:?}", due(72));
    });
}

#[test]
fn an_erasure_of_what_is_gone_for_its_age_is_done_only_once_the_provider_has_none_of_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(folder.path(), "{}", |_| ());
    // The provider deletes nothing, and waits are long: the poller comes back to a refused file after a day.
    provider.refuse_to_delete();
    let base_url = provider.url.clone();
    polling_and_keeping(&base_url, kept("1h", "", "1h"), async |nightshift| {
        nightshift.session(1, "demo").await;
        nightshift.session(2, "demo").await;
        nightshift.request(3, "acme", |_| ()).await;
        // Both sessions are in one batch and in that of an old create call, which had an answer to one.
        let mut first = nightshift.open_batch(1, "demo", 2).await;
        first.send().await;
        first.finish(vec![good_line(1, Some("{}")), good_line(2, Some("{}"))], Vec::new()).await;
        let mut shadow = nightshift.shadow(5, &first.batch).await;
        shadow.finish(vec![good_line(2, None)], Vec::new()).await;
        let mut others = nightshift.open_batch(3, "acme", 1).await;
        others.send().await;
        others.finish(vec![good_line(3, None)], Vec::new()).await;
        pass(&nightshift, 2 * Duration::from_secs(3600)).await;
        assert_eq!(there(&nightshift, 1..=3), Vec::<u64>::new());

        let acme = "/api/admin/legacy/companies/acme/erase".to_owned();
        let mut erasures = Vec::new();
        for (path, batches) in
            [(format!("{SESSIONS}/chat-1/erase"), 2), (format!("{SESSIONS}/chat-2/erase"), 2), (acme, 1)]
        {
            erasures.push((ordered(&nightshift, &path, &json!({ "confirm": "acme" })).await, batches));
        }
        for (id, batches) in &erasures {
            let waiting = trouble(&nightshift, *id).await;
            assert_eq!((&waiting["for"], &waiting["batches"]), (&json!("batches"), &json!(batches)));
        }
        provider.open();
        for (id, batches) in &erasures {
            assert_eq!(done(&nightshift, *id).await["batches"], *batches);
        }
        for file in ["input-1", "output-1", "error-1", "output-5", "error-5", "input-3", "output-3"] {
            assert!(provider.calls(&format!("DELETE /v1/files/file-{file}")) > 1, "{file}");
        }
        assert_eq!(nightshift.store().verify().await.unwrap().violations, []);
    });
}

#[test]
fn an_erasure_sees_to_the_files_of_a_shadow_that_surfaced_only_once_what_it_answered_was_gone_for_its_age() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(folder.path(), "{}", |_| ());
    provider.refuse_to_delete();
    let base_url = provider.url.clone();
    polling_and_keeping(&base_url, kept("1h", "", "1h"), async |nightshift| {
        nightshift.session(1, "demo").await;
        nightshift.request(2, "demo", |_| ()).await;
        nightshift.request(3, "acme", |_| ()).await;
        let mut late = Vec::new();
        for (number, of, lines) in [(1, "demo", 1..3), (2, "acme", 3..4)] {
            let mut batch = nightshift.open_batch(number, of, lines.end - lines.start).await;
            batch.send().await;
            let analysis = |line| (line == 1).then_some("{}");
            let good = lines.clone().map(|line| good_line(line, analysis(line)));
            batch.finish(good.collect(), Vec::new()).await;
            late.push((batch.batch, lines));
        }
        pass(&nightshift, 2 * Duration::from_secs(3600)).await;
        assert_eq!(there(&nightshift, 1..=3), Vec::<u64>::new());
        for (number, (batch, lines)) in (5..).zip(late) {
            let mut shadow = nightshift.shadow(number, &batch).await;
            shadow.finish(lines.map(|line| good_line(line, None)).collect(), Vec::new()).await;
        }
        let mut erasures = Vec::new();
        for path in [format!("{SESSIONS}/chat-1/erase"), "/api/admin/legacy/companies/acme/erase".to_owned()]
        {
            let id = ordered(&nightshift, &path, &json!({ "confirm": "acme" })).await;
            assert_eq!(trouble(&nightshift, id).await["batches"], 2, "{path}");
            erasures.push(id);
        }
        provider.open();
        for id in erasures {
            assert_eq!(done(&nightshift, id).await["batches"], 2);
        }
        assert_eq!(nightshift.store().verify().await.unwrap().violations, []);
    });
}

#[test]
fn a_session_with_very_many_requests_goes_over_several_passes() {
    keeping(kept("", "", "10d"), async |nightshift| {
        let (store, reader) = (nightshift.store(), nightshift.store().reader());
        for number in 1..=60 {
            let hash = u8::try_from(number).unwrap();
            // Not before the test asks for it: else the intake would do so by itself.
            let settles_at = nightshift.now().plus(5000 * DAY);
            let version = SessionIn { id: session_id(1), settles_at, ..chat(1, hash) };
            store.accept_sessions(vec![version], nightshift.now()).await.unwrap();
            let source = Source::Session { session: session_id(1), version: u32::from(hash), prompt: 1 };
            let asked = NewRequest { id: request_id(number), source, key: None, body: None, ..order(number) };
            let asked = vec![(session_id(1), u32::from(hash), asked)];
            assert_eq!(store.request_analyses(asked, nightshift.now()).await.unwrap(), 1);
            let mut batch = nightshift.open_batch(number, "demo", 1).await;
            batch.send().await;
            batch.finish(vec![good_line(number, Some("{}"))], Vec::new()).await;
        }
        assert_eq!(pass(&nightshift, 11 * DAY).await, json!({ "requests": 50, "sessions": 0 }));
        assert_eq!(pass(&nightshift, DAY).await, json!({ "requests": 60, "sessions": 1 }));
        assert_eq!(reader.analysis(session_id(1), 60).unwrap(), None);
    });
}

#[test]
fn a_company_may_keep_longer_or_for_ever_and_a_mistake_is_told() {
    keeping(kept("1d", "", ""), async |nightshift| {
        for (number, id) in [(1, "demo"), (2, "acme")] {
            nightshift.request(number, id, |_| ()).await;
            let mut batch = nightshift.open_batch(number, id, 1).await;
            batch.send().await;
            batch.finish(vec![good_line(number, None)], Vec::new()).await;
        }
        let put = async |id: &str, body: Value| {
            let call = Call::json(format!("/api/admin/legacy/companies/{id}"), &body);
            nightshift.call(call.method("PUT")).await
        };
        let acme = put("acme", json!({ "retention": { "complete": "never", "sessions": "90d" } })).await;
        let acme = acme.good()["company"]["retention"].clone();
        assert_eq!(acme, json!({ "complete": "never", "failed": null, "sessions": "90d" }));
        // What is not said stays.
        let renamed = put("acme", json!({ "name": "Acme Ltd" })).await.good();
        assert_eq!(renamed["company"]["retention"], acme);
        for keep in ["1s", "soon", "", "200years"] {
            let reply = put("acme", json!({ "retention": { "complete": keep } })).await;
            assert_eq!(reply.problem(422), "bad_retention", "{keep}");
        }
        let reply = put("acme", json!({ "retention": { "all": "90d" } })).await;
        assert_eq!(reply.problem(422), "invalid_body");
        assert_eq!(pass(&nightshift, 2 * DAY).await["requests"], 1);
        assert_eq!(there(&nightshift, 1..=2), [2]);
        // Null is as for all.
        let reply = put("acme", json!({ "retention": { "complete": null } })).await.good();
        assert_eq!(reply["company"]["retention"]["complete"], Value::Null);
        assert_eq!(pass(&nightshift, DAY).await["requests"], 2);
    });
}

#[test]
fn nothing_is_removed_while_something_stands_in_the_way() {
    keeping(kept("1d", "", ""), async |nightshift| {
        nightshift.request(1, "demo", |_| ()).await;
        let mut batch = nightshift.open_batch(1, "demo", 1).await;
        batch.send().await;
        batch.finish(vec![good_line(1, None)], Vec::new()).await;
        nightshift.shared.condition.raise(Hindrance::Disk, "full");
        nightshift.get(RETENTION).await;
        nightshift.clock.advance(2 * DAY);
        // A pass that was not held would be over long before.
        for _ in 0..200 {
            nightshift.get(RETENTION).await;
        }
        assert_eq!(nightshift.get(RETENTION).await["running"], true);
        assert_eq!(there(&nightshift, [1]), [1]);
        nightshift.shared.condition.clear(Hindrance::Disk);
        assert_eq!(pass(&nightshift, Duration::from_secs(60)).await["requests"], 1);
    });
}
