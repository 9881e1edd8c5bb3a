//! What a company reads of its own: lists, single views, timelines and exports.

use std::time::Duration;

use nightshift::actors::creator::Nudge;
use nightshift::domain::id::Timestamp;
use nightshift::domain::session::SessionFacts;
use nightshift::store::{NewRequest, SessionIn};
use serde_json::{Value, json};

use crate::harness::{
    ACME, ADMIN, Call, DEMO, Nightshift, VIEWER, batch_id, company, golden, good_line, refused_line,
    request_id, session_id, until, with_a_creator, with_actors,
};
use crate::legacy_api::world;

const OWN: &str = "/api/v1/companies/demo";

fn own(path: &str) -> String {
    format!("{OWN}/{path}")
}

fn ids<'a>(list: &'a Value, name: &str) -> Vec<&'a str> {
    list[name].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect()
}

/// The rows of a list, page by page, and how many pages there were.
async fn pages(nightshift: &Nightshift, path: &str, name: &str) -> (Vec<Value>, usize) {
    let (mut rows, mut cursor, mut count) = (Vec::new(), String::new(), 0);
    loop {
        let page = nightshift.get(&format!("{path}{cursor}")).await;
        rows.extend(page[name].as_array().unwrap().iter().cloned());
        count += 1;
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (rows, count),
        }
    }
}

async fn numbers(nightshift: &Nightshift, filter: &str) -> Vec<u64> {
    let list = nightshift.get(&own(&format!("requests?{filter}"))).await;
    let number = |id: &str| u64::from_str_radix(&id[24..], 16).unwrap();
    ids(&list, "requests").into_iter().map(number).collect()
}

#[test]
fn every_view_of_a_company_replies_as_it_always_did() {
    with_actors(async |nightshift| {
        world(&nightshift).await;
        let views = [
            ("own_requests", own("requests")),
            ("own_requests_failed", own("requests?status=processing_failed&error=TOO%20LONG")),
            ("own_request", own("requests/order-2")),
            ("own_sessions", own("sessions")),
            ("session", own("sessions/chat-1")),
            ("session_with_messages", own("sessions/chat-1?include=messages")),
            ("timeline_complete", own("requests/order-2/timeline")),
            ("timeline_failed", own("requests/order-3/timeline")),
            ("timeline_in_a_batch", own("requests/order-4/timeline")),
            ("timeline_pending", own("requests/order-5/timeline")),
        ];
        for (name, path) in views {
            golden(name, &nightshift.get(&path).await);
        }
        for (name, path) in [
            ("export_requests_ndjson", own("export/requests")),
            ("export_requests_csv", own("export/requests?format=csv")),
            ("export_sessions_ndjson", own("export/sessions?include=messages")),
            ("export_sessions_csv", own("export/sessions?format=csv")),
        ] {
            let reply = nightshift.raw(Call::get(path).token(DEMO)).await;
            let header = |name: &str| reply.headers[name].to_str().unwrap();
            let lines: Vec<_> = reply.body.split_inclusive('\n').collect();
            let headers = [header("content-type"), header("content-disposition"), header("cache-control")];
            golden(name, &json!({ "status": reply.status, "headers": headers, "lines": lines }));
        }
        let path = format!("/api/admin/legacy/requests/{}/timeline", request_id(2));
        let of_operators = nightshift.get(&path).await;
        assert_eq!(of_operators, nightshift.get(&own("requests/order-2/timeline")).await);
    });
}

#[test]
fn requests_of_all_statuses_stand_in_one_order_of_time_and_every_filter_filters() {
    with_actors(async |nightshift| {
        world(&nightshift).await;
        nightshift.clock.advance(Duration::from_secs(1800));
        let (before, after) = (nightshift.now().minus(Duration::from_secs(60)), nightshift.now());
        let other = |request: &mut NewRequest| request.group.model = "gpt-5".to_owned();
        nightshift.request(7, "demo", other).await;
        assert_eq!(numbers(&nightshift, "").await, [7, 5, 4, 3, 2, 1]);
        let session = session_id(1);
        for (filter, expected) in [
            ("status=pending_batching", &[7, 5][..]),
            ("status=processing_complete", &[2, 1]),
            ("model=gpt-5", &[7]),
            ("endpoint=%2Fv1%2Fembeddings", &[]),
            ("endpoint=/v1/chat/completions&limit=2", &[7, 5]),
            ("error=CONTEXT_length", &[3]),
            ("error=context&status=processing_complete", &[]),
            ("class=permanent", &[3]),
            ("class=lost", &[]),
            (&format!("sessionId={session}"), &[1]),
            (&format!("from={after}"), &[7]),
            (&format!("to={after}"), &[5, 4, 3, 2, 1]),
            (&format!("from={before}&to={after}"), &[]),
        ] {
            assert_eq!(numbers(&nightshift, filter).await, expected, "{filter}");
        }
    });
}

async fn sessions(nightshift: &Nightshift) {
    for number in 1..=4 {
        nightshift.session(number, "demo").await;
    }
    let mut batch = nightshift.open_batch(1, "demo", 4).await;
    batch.send().await;
    let analysis = |language: &str, sentiment: &str, category: &str| {
        format!(r#"{{"language":"{language}","sentiment":"{sentiment}","category":"{category}"}}"#)
    };
    let good = vec![
        good_line(1, Some(&analysis("nl", "NEGATIVE", "ONBOARDING"))),
        good_line(2, Some(&analysis("en", "POSITIVE", "ONBOARDING"))),
    ];
    batch.finish(good, vec![refused_line(3), refused_line(4)]).await;
    nightshift.session(9, "acme").await;
    let silent = SessionIn {
        fetch: None,
        line: None,
        company: company("demo"),
        external_id: "chat-5".to_owned(),
        id: session_id(5),
        facts: SessionFacts { country: Some("NL".to_owned()), ..SessionFacts::default() },
        messages: Some(Vec::new()),
        content_hash: [5; 32],
        settles_at: nightshift.now(),
    };
    nightshift.store().accept_sessions(vec![silent], nightshift.now()).await.unwrap();
}

#[test]
fn sessions_are_found_by_what_their_analysis_says() {
    with_actors(async |nightshift| {
        sessions(&nightshift).await;
        let now: Timestamp = nightshift.now();
        for (filter, expected) in [
            ("", &[5, 4, 3, 2, 1][..]),
            ("state=analysed", &[2, 1]),
            ("state=empty", &[5]),
            ("sentiment=negative", &[1]),
            ("sentiment=Positive&category=onboarding", &[2]),
            ("sentiment=neutral", &[]),
            ("category=ONBOARDING", &[2, 1]),
            ("language=NL", &[1]),
            ("country=nl", &[5]),
            ("error=too%20long", &[4, 3]),
            (&format!("from={now}"), &[]),
            (&format!("to={now}&state=empty"), &[5]),
        ] {
            let list = nightshift.get(&own(&format!("sessions?{filter}"))).await;
            let expected: Vec<_> = expected.iter().map(|number| session_id(*number).to_string()).collect();
            assert_eq!(ids(&list, "sessions"), expected, "{filter}");
        }
        assert!(nightshift.store().verify().await.unwrap().is_whole());
    });
}

#[test]
fn a_filter_that_is_misspelt_means_neither_everything_nor_nothing() {
    with_actors(async |nightshift| {
        world(&nightshift).await;
        let cursor =
            nightshift.get(&own("requests?limit=1")).await["nextCursor"].as_str().unwrap().to_owned();
        for (path, code) in [
            ("requests?status=done", "unknown_status"),
            ("requests?endpoint=/v1/images", "unknown_endpoint"),
            ("requests?class=odd", "unknown_class"),
            ("requests?sessionId=7", "bad_parameter"),
            ("requests?from=yesterday", "bad_parameter"),
            ("requests?from=2026-01-02T00:00:00Z&to=2026-01-02T00:00:00Z", "bad_range"),
            ("requests?sentiment=positive", "unknown_parameter"),
            ("requests?limit=501", "bad_limit"),
            (&format!("requests?limit=1&model=x&cursor={cursor}"), "bad_cursor"),
            (&format!("sessions?cursor={cursor}"), "bad_cursor"),
            ("sessions?state=done", "unknown_state"),
            ("sessions?sentiment=angry", "unknown_sentiment"),
            ("sessions?category=misc", "unknown_category"),
            ("sessions?status=analysed", "unknown_parameter"),
            ("sessions/chat-1?include=everything", "unknown_include"),
            ("requests/order-2?include=messages", "unknown_include"),
            ("export/requests?format=xlsx", "unknown_format"),
            ("export/requests?limit=5", "unknown_parameter"),
            ("export/sessions?include=x", "unknown_include"),
        ] {
            assert_eq!(nightshift.call(Call::get(own(path))).await.problem(422), code, "{path}");
        }
        // A page of one company is none of another's.
        let of_acme = format!("/api/v1/companies/acme/requests?limit=1&cursor={cursor}");
        assert_eq!(nightshift.call(Call::get(of_acme)).await.problem(422), "bad_cursor");
    });
}

#[test]
fn ours_and_the_clients_own_ids_name_a_request_and_a_foreign_one_is_like_one_that_is_not_there() {
    with_actors(async |nightshift| {
        world(&nightshift).await;
        let theirs = request_id(6).to_string();
        // A client may well use UUIDs as its keys, even one that is an id of ours elsewhere.
        nightshift
            .request(8, "demo", |request| {
                let key = nightshift::store::ClientKey::Id(theirs.clone());
                let source = nightshift::domain::request::Source::Generic { client_id: Some(theirs.clone()) };
                (request.key, request.source) = (Some(key), source);
            })
            .await;
        for (asked, found) in [
            (request_id(2).to_string(), 2),
            ("order-2".to_owned(), 2),
            (request_id(1).to_string(), 1),
            (theirs.clone(), 8),
        ] {
            let shown = nightshift.get(&own(&format!("requests/{asked}"))).await;
            assert_eq!(shown["request"]["id"], request_id(found).to_string(), "{asked}");
        }
        let detail = |reply: &crate::harness::Reply, id: &str| {
            assert_eq!(reply.problem(404), "unknown_request");
            reply.body["detail"].as_str().unwrap().replace(id, "…")
        };
        let unknown = nightshift.call(Call::get(own("requests/order-99")).token(DEMO)).await;
        let unknown = detail(&unknown, "order-99");
        for id in ["order-6".to_owned(), request_id(99).to_string()] {
            for view in ["", "/timeline"] {
                let call = Call::get(own(&format!("requests/{id}{view}"))).token(DEMO);
                assert_eq!(detail(&nightshift.call(call).await, &id), unknown);
            }
        }
        let of_acme = "/api/v1/companies/acme/requests";
        let foreign = Call::get(format!("{of_acme}/{}", request_id(2)));
        nightshift.call(foreign.token(ACME)).await.problem(404);
        assert_eq!(nightshift.call(Call::get(of_acme).token(ACME)).await.good()["requests"][0]["id"], theirs);
        // Sessions go by both ids, too.
        let by_ours = nightshift.get(&own(&format!("sessions/{}", session_id(1)))).await;
        assert_eq!(by_ours, nightshift.get(&own("sessions/chat-1")).await);
        let foreign = format!("/api/v1/companies/acme/sessions/{}", session_id(1));
        nightshift.call(Call::get(foreign).token(ACME)).await.problem(404);
    });
}

/// Many requests, stored without a body.
async fn many(nightshift: &Nightshift, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        nightshift.request(number, "demo", |request| request.body = None).await;
    }
}

#[test]
fn a_page_looks_at_so_many_rows_and_no_more_and_the_next_one_goes_on() {
    with_actors(async |nightshift| {
        let other = |request: &mut NewRequest| request.group.model = "rare".to_owned();
        nightshift.request(1, "demo", other).await;
        many(&nightshift, 2..=5400).await;
        let rare = own("requests?model=rare");
        let first = nightshift.get(&rare).await;
        assert_eq!(ids(&first, "requests"), Vec::<&str>::new());
        assert!(first["nextCursor"].is_string(), "{first}");
        let (rows, count) = pages(&nightshift, &rare, "requests").await;
        assert_eq!((rows.len(), count), (1, 2));
        // An export goes on by itself.
        let export = nightshift.raw(Call::get(own("export/requests?model=rare"))).await;
        assert_eq!(export.body.lines().count(), 1);
        assert!(export.body.contains(&request_id(1).to_string()));
    });
}

#[test]
fn a_company_has_so_many_exports_under_way_and_each_until_its_reader_has_it_all_or_is_gone() {
    with_actors(async |nightshift| {
        nightshift.request(1, "demo", |_| {}).await;
        let ask = |token| Call::get(own("export/requests")).token(token);
        let mut open = Vec::new();
        for token in [DEMO, DEMO, ADMIN, VIEWER] {
            let begun = nightshift.begin(ask(token)).await;
            assert_eq!(begun.status().as_u16(), 200);
            open.push(begun);
        }
        // Whoever asks, they are the company's.
        for token in [DEMO, ADMIN] {
            let refused = nightshift.call(ask(token)).await;
            assert_eq!((refused.problem(429), refused.header("retry-after")), ("rate_limited", Some("5")));
        }
        let other = nightshift.raw(Call::get("/api/v1/companies/acme/export/sessions")).await;
        assert_eq!(other.status, 200);
        // One that is gone, and one that has it all.
        let begun = async || {
            let begun = nightshift.begin(ask(DEMO)).await;
            (begun.status().as_u16() == 200).then_some(begun)
        };
        drop(open.pop());
        open.push(until("the place of one that is gone", begun).await);
        assert_eq!(nightshift.call(ask(DEMO)).await.problem(429), "rate_limited");
        let whole = open.swap_remove(0).text().await.unwrap();
        assert_eq!(whole.lines().count(), 1);
        for _ in 0..10 {
            let whole = until("the place of one that has it all", begun).await.text().await.unwrap();
            assert_eq!(whole.lines().count(), 1);
        }
    });
}

#[test]
fn an_export_is_what_the_lists_are() {
    with_actors(async |nightshift| {
        many(&nightshift, 1..=700).await;
        let mut batch = nightshift.open_batch(1, "demo", 300).await;
        batch.send().await;
        let lines = (1..=200).map(|number| good_line(number, None)).collect();
        batch.finish(lines, (201..=250).map(refused_line).collect()).await;
        nightshift.open_batch(2, "demo", 100).await;
        for (filter, some) in [("x=&", 700), ("status=processing_failed&", 50), ("class=permanent&", 50)] {
            let filter = filter.strip_prefix("x=&").unwrap_or(filter);
            let (listed, _) =
                pages(&nightshift, &own(&format!("requests?{filter}limit=99")), "requests").await;
            let export = nightshift.raw(Call::get(own(&format!("export/requests?{filter}")))).await;
            let mut exported: Vec<Value> =
                export.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            for row in &mut exported {
                let result = row.as_object_mut().unwrap().remove("result").unwrap();
                assert_eq!(result.is_object(), row["status"] == "processing_complete");
            }
            assert_eq!(exported.len(), listed.len());
            assert!(exported == listed && listed.len() >= some, "{filter} {}", listed.len());
            let csv = nightshift.raw(Call::get(own(&format!("export/requests?{filter}format=csv")))).await;
            assert_eq!(csv.body.matches("\r\n").count(), listed.len() + 1);
        }
    });
}

#[test]
fn texts_of_others_are_no_formulas_in_an_exported_table() {
    with_actors(async |nightshift| {
        let evil = "=HYPERLINK(\"http://x\",\"y\")";
        let named = SessionIn {
            fetch: None,
            line: None,
            company: company("demo"),
            external_id: evil.to_owned(),
            id: session_id(1),
            facts: SessionFacts { first_message: Some("＠SUM(A1)".to_owned()), ..SessionFacts::default() },
            messages: None,
            content_hash: [5; 32],
            settles_at: nightshift.now(),
        };
        nightshift.store().accept_sessions(vec![named], nightshift.now()).await.unwrap();
        nightshift.request(2, "demo", |request| request.priority = -3).await;
        let sessions = nightshift.raw(Call::get(own("export/sessions?format=csv"))).await.body;
        assert!(
            sessions.contains("\"'=HYPERLINK(\"\"http://x\"\",\"\"y\"\")\"")
                && sessions.contains(",'＠SUM(A1)")
        );
        let requests = nightshift.raw(Call::get(own("export/requests?format=csv"))).await.body;
        assert!(requests.contains(",-3,"), "a number of ours stays one: {requests}");
    });
}

async fn waits_for(nightshift: &Nightshift, id: &str) -> (String, Option<String>) {
    let shown = nightshift.get(&own(&format!("requests/{id}/timeline"))).await;
    let waiting = &shown["timeline"]["waiting"];
    let word = waiting["for"].as_str().unwrap_or_default().to_owned();
    (word, waiting["until"].as_str().map(str::to_owned))
}

/// Lets the creator look, by a nudge or by its timer, and says how many batches there are then.
async fn looked(nightshift: &Nightshift) -> usize {
    nightshift.creator.send(Nudge).await.unwrap();
    // Its look runs beside the mailbox; a second message is answered behind the turn in which it began.
    for _ in 0..200 {
        nightshift.creator.send(Nudge).await.unwrap();
        tokio::task::yield_now().await;
    }
    nightshift.shared.reader.live_batches().unwrap().len()
}

#[test]
fn what_the_timeline_says_of_waiting_is_what_the_creator_does() {
    with_a_creator(async |nightshift| {
        nightshift.request(1, "demo", |_| ()).await;
        let age_ends = nightshift.now().plus(Duration::from_secs(1800)).to_string();
        assert_eq!(waits_for(&nightshift, "order-1").await, ("count_or_age".to_owned(), Some(age_ends)));
        assert_eq!(looked(&nightshift).await, 0);
        // It is old enough; what holds the creator up is told, and nothing is opened.
        let condition = &nightshift.shared.condition;
        condition.raise(nightshift::condition::Hindrance::Checking, "the store is being checked");
        nightshift.clock.advance(Duration::from_secs(1801));
        assert_eq!(waits_for(&nightshift, "order-1").await.0, "hindrance");
        assert_eq!(looked(&nightshift).await, 0);
        condition.clear(nightshift::condition::Hindrance::Checking);
        let reader = &nightshift.shared.reader;
        until("nothing stands in its way", async || reader.live_batches().unwrap().pop()).await;
        // What is suspended is told so and stays, however old it is.
        nightshift.request(2, "acme", |_| ()).await;
        nightshift.clock.advance(Duration::from_secs(1801));
        looked(&nightshift).await;
        let shown = nightshift.get("/api/v1/companies/acme/requests/order-2/timeline").await;
        assert_eq!(shown["timeline"]["waiting"]["for"], "company_suspended");
        assert_eq!(shown["timeline"]["status"], "pending_batching");
    });
}

#[test]
fn with_creation_off_everything_pending_waits_for_the_switch_and_a_running_batch_for_the_provider() {
    with_actors(async |nightshift| {
        world(&nightshift).await;
        assert_eq!(waits_for(&nightshift, "order-5").await.0, "switched_off");
        assert_eq!(waits_for(&nightshift, "order-4").await.0, "provider");
        assert_eq!(waits_for(&nightshift, "order-3").await, (String::new(), None));
        let story = nightshift.get(&own("requests/order-4/timeline")).await;
        let events = story["timeline"]["events"].as_array().unwrap();
        assert!(events.iter().any(|event| event["batchId"] == batch_id(2).to_string()), "{story}");
        assert_eq!(events[0]["what"], "accepted");
        let mut settling = nightshift.get(&own("sessions/chat-1")).await;
        assert_eq!(settling["session"]["waiting"].take(), Value::Null);
        let viewer = nightshift.call(Call::get(own("requests/order-4/timeline")).token(VIEWER)).await;
        viewer.good();
    });
}

#[test]
fn all_that_is_stored_of_a_session_and_of_a_request_can_be_read() {
    with_actors(async |nightshift| {
        let own = |path: &str| format!("/api/v1/companies/demo/{path}");
        nightshift.request(2, "demo", |_| ()).await;
        let asked = "/body/messages/0/content";
        let one = nightshift.get(&own("requests/order-2?include=body,misfits")).await;
        assert_eq!(one["request"].pointer(asked).unwrap(), "2");
        assert_eq!(one["request"]["misfits"], json!([]));
        assert!(nightshift.get(&own("requests/order-2")).await["request"].get("body").is_none());
        let lines = nightshift.raw(Call::get(own("export/requests?include=body"))).await.body;
        let row: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!(row.pointer(asked).unwrap(), "2");

        let said = |text: &str| json!({ "externalId": "s", "metadata": { "shop": text }, "messages": [{ "role": "user", "content": text }] });
        for text in ["one", "two", "three"] {
            nightshift.call(Call::json(own("sessions"), &said(text))).await.good();
        }
        let first = nightshift.get(&own("sessions/s?version=1&include=messages")).await["session"].clone();
        assert_eq!((&first["state"], &first["version"]), (&json!("superseded"), &json!(1)));
        assert_eq!(
            (&first["metadata"]["shop"], &first["conversation"][0]["content"]),
            (&json!("one"), &json!("one"))
        );
        let now = nightshift.get(&own("sessions/s?version=3")).await["session"].clone();
        assert_eq!((&now["state"], &now["waiting"]["for"]), (&json!("settling"), &json!("settle")));
        for (version, status) in [("0", 404), ("4", 404), ("x", 422), ("-1", 422)] {
            nightshift.call(Call::get(own(&format!("sessions/s?version={version}")))).await.problem(status);
        }
        let all = nightshift.raw(Call::get(own("export/sessions?include=messages,versions"))).await.body;
        let rows: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told =
            |row: &Value| (row["version"].as_u64().unwrap(), row["conversation"][0]["content"].clone());
        let expected = [(3, json!("three")), (2, json!("two")), (1, json!("one"))];
        assert_eq!(rows.iter().map(told).collect::<Vec<_>>(), expected);
        let csv = nightshift.raw(Call::get(own("export/sessions?format=csv&include=versions"))).await.body;
        let total = async |path: &str| {
            let reply = nightshift.raw(Call::get(own(path))).await;
            reply.headers.get("x-total-rows").map(|total| total.to_str().unwrap().to_owned())
        };
        assert_eq!(total("export/sessions").await.as_deref(), Some("1"));
        assert_eq!(total("export/requests").await.as_deref(), Some("1"));
        assert_eq!(total("export/requests?status=processing_complete").await.as_deref(), Some("0"));
        assert_eq!(
            (total("export/sessions?include=versions").await, total("export/requests?model=x").await),
            (None, None)
        );
        let names = csv.lines().next().unwrap();
        assert!(csv.lines().count() == 4 && names.ends_with(",metadata"), "{csv}");
    });
}
