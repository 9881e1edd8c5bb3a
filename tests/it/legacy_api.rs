//! The legacy admin API: golden replies, every error, paging while rows move, requeueing, and who may do what.

use std::collections::BTreeSet;
use std::time::Duration;

use nightshift::actors::registry::Host;
use nightshift::domain::batch::{BatchState, Closing};
use nightshift::domain::id::RequestId;
use nightshift::domain::step::{Change, Step};
use nightshift::http;
use nightshift::store::{Report, StoreError};
use serde_json::{Map, Value, json};

use crate::harness::{
    ACME, ADMIN, Call, DEMO, Nightshift, Reply, VIEWER, batch_id, golden, good_line, refused_line,
    request_id, session_id, with_actors,
};

const LEGACY: &str = "/api/admin/legacy";
const ANALYSIS: &str = r#"{"language":"en","sentiment":"NEUTRAL"}"#;

fn legacy(path: &str) -> String {
    format!("{LEGACY}/{path}")
}

fn requeue(ids: &[String]) -> Call {
    Call::json(legacy("requests/requeue"), &json!({ "requestIds": ids }))
}

/// A request in each status: 1 (of a session), 2 complete, 3 failed, 4 in a running batch, 5 and 6 pending.
pub async fn world(nightshift: &Nightshift) {
    nightshift.session(1, "demo").await;
    let metadata = r#"{"orderId":"A-7","team":"south"}"#.to_owned();
    nightshift.request(2, "demo", |request| request.metadata = Some(metadata)).await;
    nightshift.request(3, "demo", |_| ()).await;
    let mut first = nightshift.open_batch(1, "demo", 3).await;
    first.send().await;
    first.finish(vec![good_line(1, Some(ANALYSIS)), good_line(2, None)], vec![refused_line(3)]).await;
    nightshift.request(4, "demo", |_| ()).await;
    let mut second = nightshift.open_batch(2, "demo", 3).await;
    second.send().await;
    let later = nightshift.now().plus(Duration::from_secs(86_400));
    nightshift.request(5, "demo", |request| request.not_before = Some(later)).await;
    nightshift.request(6, "acme", |request| request.priority = 3).await;
}

#[test]
fn every_view_replies_as_it_always_did() {
    with_actors(async |nightshift| {
        world(&nightshift).await;
        let views = [
            ("summary", legacy("summary")),
            ("summary_of_a_company", legacy("summary?companyId=acme")),
            ("requests_pending", legacy("requests?status=pending_batching")),
            ("requests_in_progress", legacy("requests?status=batching_in_progress")),
            ("requests_complete", legacy("requests?status=processing_complete")),
            ("requests_complete_first_page", legacy("requests?status=processing_complete&limit=1")),
            ("requests_failed", legacy("requests?status=processing_failed")),
            ("requests_none", legacy("requests?status=processing_failed&companyId=acme")),
            ("request_of_a_session", legacy(&format!("requests/{}", request_id(1)))),
            ("request_generic", legacy(&format!("requests/{}", request_id(2)))),
            ("request_failed", legacy(&format!("requests/{}", request_id(3)))),
            ("batches", legacy("batches")),
            ("batches_in_progress", legacy("batches?status=in_progress&companyId=demo&limit=1")),
            ("batch", legacy(&format!("batches/{}", batch_id(1)))),
            ("companies", legacy("companies")),
            ("switches", legacy("switches")),
            ("health", legacy("health")),
            ("session", "/api/v1/companies/demo/sessions/chat-1".to_owned()),
            ("healthz", "/healthz".to_owned()),
            ("readyz", "/readyz".to_owned()),
        ];
        for (name, path) in views {
            golden(name, &nightshift.get(&path).await);
        }
        let ids = [1, 3, 9].map(|number| request_id(number).to_string());
        golden("requeue", &nightshift.call(requeue(&ids)).await.good());
    });
}

#[test]
fn a_reply_is_not_kept_by_anybody_and_names_the_call() {
    with_actors(async |nightshift| {
        let reply = nightshift.call(Call::get(legacy("summary"))).await;
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("x-request-id"), Some("a-test"));
        // Without an id of the caller's, or with one that could do harm in a log, there is one of ours.
        let long = "x".repeat(65);
        let calls = [
            Call::get("/nowhere").without_header("x-request-id"),
            Call::get("/nowhere").header("x-request-id", "a b"),
            Call::get("/nowhere").header("x-request-id", &long),
        ];
        for call in calls {
            let reply = nightshift.call(call).await;
            reply.problem(404);
            assert!(reply.header("x-request-id").unwrap().parse::<RequestId>().is_ok());
        }
    });
}

/// The part of an error that a program may rest on.
fn shown(reply: &Reply) -> Value {
    let mut shown = Map::new();
    for name in ["content-type", "allow", "retry-after", "www-authenticate"] {
        if let Some(value) = reply.header(name) {
            shown.insert(name.to_owned(), Value::from(value));
        }
    }
    shown.insert("body".to_owned(), reply.body.clone());
    Value::Object(shown)
}

async fn next_cursor(nightshift: &Nightshift, path: &str) -> String {
    nightshift.get(path).await["nextCursor"].as_str().unwrap().to_owned()
}

/// The errors that a client can make, each by a name that says what was wrong.
async fn mistakes(nightshift: &Nightshift) -> Vec<(&'static str, u16, Call)> {
    let complete = legacy("requests?status=processing_complete&limit=1");
    let cursor = next_cursor(nightshift, &complete).await;
    let of_batches = next_cursor(nightshift, &legacy("batches?limit=1")).await;
    let flipped = if cursor.starts_with('A') { "B" } else { "A" };
    let tampered = format!("{flipped}{}", &cursor[1..]);
    let list = |rest: &str| Call::get(legacy(&format!("requests?{rest}")));
    let with = |cursor: &str| list(&format!("status=processing_complete&limit=1&cursor={cursor}"));
    let requeueing = |body: &str| Call::post(legacy("requests/requeue"), "application/json", body);
    let many = vec!["x".to_owned(); 10_001];
    vec![
        ("no_token", 401, Call::get(legacy("summary")).without_token()),
        ("wrong_token", 401, Call::get(legacy("summary")).token("wrong")),
        ("no_token_and_no_such_path", 401, Call::get("/nowhere").without_token()),
        ("viewer_requeues", 403, requeueing("{}").token(VIEWER)),
        ("company_reads_the_summary", 403, Call::get(legacy("summary")).token(DEMO)),
        ("no_such_path", 404, Call::get("/nowhere")),
        ("path_with_a_slash_behind_it", 404, Call::get(legacy("summary/"))),
        ("unknown_request", 404, Call::get(legacy(&format!("requests/{}", request_id(99))))),
        ("request_id_that_is_none", 404, Call::get(legacy("requests/7"))),
        ("unknown_batch", 404, Call::get(legacy(&format!("batches/{}", batch_id(99))))),
        ("batch_id_that_is_none", 404, Call::get(legacy("batches/batch_1"))),
        ("unknown_session", 404, Call::get("/api/v1/companies/demo/sessions/chat-9")),
        ("session_of_another_company", 404, Call::get("/api/v1/companies/demo/sessions/chat-1").token(ACME)),
        ("method_that_a_view_has_not", 405, Call::new("DELETE", legacy("summary"))),
        ("requeue_with_get", 405, Call::get(legacy("requests/requeue"))),
        ("healthz_with_post", 405, Call::new("POST", "/healthz").without_token()),
        ("body_too_large", 413, requeueing(&" ".repeat((1 << 20) + 1))),
        ("wrong_content_type", 415, Call::post(legacy("requests/requeue"), "text/plain", "{}")),
        ("no_content_type", 415, Call::new("POST", legacy("requests/requeue"))),
        ("body_that_is_not_json", 400, requeueing("{")),
        ("no_status", 422, list("")),
        ("empty_status", 422, list("status=")),
        ("unknown_status", 422, list("status=done")),
        ("limit_0", 422, list("status=processing_failed&limit=0")),
        ("limit_501", 422, list("status=processing_failed&limit=501")),
        ("limit_x", 422, list("status=processing_failed&limit=x")),
        ("unknown_parameter", 422, list("status=processing_failed&company=demo")),
        ("unknown_parameter_where_there_are_none", 422, Call::get(legacy("companies?companyId=demo"))),
        ("repeated_parameter", 422, list("status=processing_failed&status=processing_failed")),
        ("bad_encoding", 422, list("status=%zz")),
        ("bad_company", 422, list("status=processing_failed&companyId=a%2Fb")),
        ("bad_batch", 422, list("status=processing_failed&batchId=7")),
        ("unknown_batch_status", 422, Call::get(legacy("batches?status=processing_complete"))),
        ("strange_cursor", 422, with("Zm9yZWlnbg")),
        ("cursor_that_is_not_base64", 422, with("a*b")),
        ("tampered_cursor", 422, with(&tampered)),
        ("cursor_of_another_status", 422, list(&format!("status=processing_failed&cursor={cursor}"))),
        (
            "cursor_of_another_company",
            422,
            list(&format!("status=processing_complete&companyId=demo&cursor={cursor}")),
        ),
        ("cursor_of_another_list", 422, with(&of_batches)),
        ("no_request_ids", 422, requeueing("{}")),
        ("empty_request_ids", 422, requeueing(r#"{"requestIds":[]}"#)),
        ("too_many_request_ids", 422, requeue(&many)),
        ("request_ids_of_another_kind", 422, requeueing(r#"{"requestIds":[7]}"#)),
        ("unknown_member", 422, requeueing(r#"{"requestIds":["a"],"all":true}"#)),
    ]
}

#[test]
fn every_mistake_has_its_error_and_every_error_one_form() {
    with_actors(async |nightshift| {
        world(&nightshift).await;
        let mut errors = Map::new();
        for (name, status, call) in mistakes(&nightshift).await {
            let reply = nightshift.call(call).await;
            reply.problem(status);
            assert!(errors.insert(name.to_owned(), shown(&reply)).is_none(), "{name} is there twice");
        }
        golden("errors", &Value::Object(errors));
        // None of it changed anything.
        golden("summary", &nightshift.get(&legacy("summary")).await);
    });
}

#[test]
fn after_ten_wrong_tokens_an_address_waits_and_a_right_token_still_works() {
    with_actors(async |nightshift| {
        let guess = || Call::get(legacy("summary")).token("guess").peer([203, 0, 113, 7]);
        for _ in 0..10 {
            assert_eq!(nightshift.call(guess()).await.problem(401), "unauthorized");
        }
        nightshift.clock.advance(Duration::from_secs(20));
        let refused = nightshift.call(guess()).await;
        assert_eq!(refused.problem(429), "too_many_failures");
        assert_eq!(refused.header("retry-after"), Some("40"));
        // A right token behind the same address is not to suffer, nor is anybody elsewhere.
        nightshift.call(Call::get(legacy("summary")).peer([203, 0, 113, 7])).await.good();
        nightshift.call(guess().peer([203, 0, 113, 8])).await.problem(401);
        nightshift.clock.advance(Duration::from_secs(40));
        nightshift.call(guess()).await.problem(401);
    });
}

#[test]
fn a_call_without_a_token_is_no_guess() {
    with_actors(async |nightshift| {
        for _ in 0..30 {
            nightshift.call(Call::get(legacy("summary")).without_token()).await.problem(401);
        }
    });
}

/// The ids of a list, page by page; `between` is run after each page with its number.
async fn read_pages(
    nightshift: &Nightshift,
    path: &str,
    mut between: impl AsyncFnMut(usize),
) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut cursor = None;
    loop {
        let next = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page = nightshift.get(&format!("{path}{next}")).await;
        let ids = page["requests"].as_array().unwrap().iter();
        pages.push(ids.map(|request| request["id"].as_str().unwrap().to_owned()).collect());
        between(pages.len()).await;
        match page["nextCursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => return pages,
        }
    }
}

fn ids(numbers: impl DoubleEndedIterator<Item = u64>) -> Vec<String> {
    numbers.rev().map(|number| request_id(number).to_string()).collect()
}

#[test]
fn pages_show_each_request_exactly_once_newest_first() {
    with_actors(async |nightshift| {
        for number in 1..=120 {
            nightshift.request(number, if number % 4 == 0 { "acme" } else { "demo" }, |_| ()).await;
        }
        let pending = legacy("requests?status=pending_batching");
        for (path, sizes) in [
            (pending.clone(), vec![50, 50, 20]),
            (format!("{pending}&limit=40"), vec![40, 40, 40]),
            (format!("{pending}&limit=500"), vec![120]),
        ] {
            let pages = read_pages(&nightshift, &path, async |_| ()).await;
            assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
            assert_eq!(pages.concat(), ids(1..=120));
        }
        let of_acme = format!("{pending}&companyId=acme&limit=7");
        let pages = read_pages(&nightshift, &of_acme, async |_| ()).await;
        assert_eq!(pages.concat(), ids((1..=30).map(|number| number * 4)));
        nightshift.open_batch(1, "demo", 60).await;
        let of_batch =
            legacy(&format!("requests?status=batching_in_progress&batchId={}&limit=9", batch_id(1)));
        let pages = read_pages(&nightshift, &of_batch, async |_| ()).await;
        assert_eq!(pages.concat(), ids((1..=80).filter(|number| number % 4 != 0)));
    });
}

#[test]
fn rows_that_move_while_they_are_paged_are_neither_doubled_nor_lost() {
    with_actors(async |nightshift| {
        // Every third goes first into a batch: among them the last row of the first page, which the cursor names.
        let moving = |number: u64| number % 3 == 2;
        for number in 1..=120 {
            let urgent =
                |request: &mut nightshift::store::NewRequest| request.priority = i8::from(moving(number));
            nightshift.request(number, "demo", urgent).await;
        }
        assert!(moving(71));
        let pending = legacy("requests?status=pending_batching&limit=50");
        let pages = read_pages(&nightshift, &pending, async |page| match page {
            1 => {
                let mut batch = nightshift.open_batch(1, "demo", 40).await;
                batch.send().await;
                let lines = (1..=120).filter(|number| moving(*number)).map(refused_line).collect();
                batch.finish(Vec::new(), lines).await;
            }
            2 => {
                let failed: Vec<_> = (1..=120).filter(|number| moving(*number)).map(request_id).collect();
                nightshift.store().requeue(failed, nightshift.now()).await.unwrap();
            }
            _ => {}
        })
        .await;
        let seen = pages.concat();
        let once: BTreeSet<_> = seen.iter().collect();
        assert_eq!(once.len(), seen.len(), "a row was shown twice");
        for number in (1..=120).filter(|number| !moving(*number)) {
            assert!(once.contains(&request_id(number).to_string()), "row {number} stayed and was not shown");
        }
        assert_eq!(pages[0], ids(71..=120));
    });
}

#[test]
fn paging_through_a_list_that_empties_ends() {
    with_actors(async |nightshift| {
        for number in 1..=60 {
            nightshift.request(number, "demo", |_| ()).await;
        }
        let pages = read_pages(&nightshift, &legacy("requests?status=pending_batching"), async |page| {
            if page == 1 {
                nightshift.open_batch(1, "demo", 60).await;
            }
        })
        .await;
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [50, 0]);
    });
}

#[test]
fn requeueing_counts_each_id_once_and_keeps_the_history() {
    with_actors(async |nightshift| {
        world(&nightshift).await;
        let failed = request_id(3).to_string();
        let asked = [
            failed.clone(),
            failed.clone(),
            request_id(1).to_string(),
            request_id(4).to_string(),
            request_id(5).to_string(),
            request_id(5).to_string(),
            request_id(77).to_string(),
            request_id(77).to_string(),
            "not-an-id".to_owned(),
            "not-an-id".to_owned(),
            String::new(),
        ];
        let counts = nightshift.call(requeue(&asked)).await.good();
        let expected = json!({ "ok": true, "requeuedCount": 1, "notFoundCount": 3, "skippedCount": 3 });
        assert_eq!(counts, expected);
        let before_and_after = nightshift.get(&legacy(&format!("requests/{failed}"))).await;
        let request = &before_and_after["request"];
        assert_eq!(request["status"], "pending_batching");
        assert_eq!(request["attempts"], 0);
        assert_eq!(request["completedAt"], Value::Null);
        let history = request["history"].as_array().unwrap();
        assert_eq!(history.len(), 1);
        assert_eq!(history[0]["code"], "context_length_exceeded");
        assert_eq!(history[0]["batchId"], batch_id(1).to_string());
        // Once more: it is not failed any more.
        let counts = nightshift.call(requeue(&[failed])).await.good();
        let expected = json!({ "ok": true, "requeuedCount": 0, "notFoundCount": 0, "skippedCount": 1 });
        assert_eq!(counts, expected);
        let summary = nightshift.get(&legacy("summary")).await;
        assert_eq!(summary["summary"]["processing_failed"], 0);
        assert_eq!(summary["summary"]["pending_batching"], 3);
    });
}

#[test]
fn ten_thousand_ids_can_be_requeued_in_one_call() {
    with_actors(async |nightshift| {
        let asked: Vec<_> = (1..=10_000).map(|number| request_id(number).to_string()).collect();
        let counts = nightshift.call(requeue(&asked)).await.good();
        assert_eq!(counts["notFoundCount"], 10_000);
    });
}

/// A requeued request goes its way again, and the second outcome stands beside the first in its history.
#[test]
fn a_requeued_request_can_complete() {
    with_actors(async |nightshift| {
        nightshift.request(1, "demo", |_| ()).await;
        let mut batch = nightshift.open_batch(1, "demo", 1).await;
        batch.send().await;
        batch.finish(Vec::new(), vec![refused_line(1)]).await;
        nightshift.call(requeue(&[request_id(1).to_string()])).await.good();
        let mut batch = nightshift.open_batch(2, "demo", 1).await;
        batch.send().await;
        batch.finish(vec![good_line(1, None)], Vec::new()).await;
        let shown = nightshift.get(&legacy(&format!("requests/{}", request_id(1)))).await;
        let request = &shown["request"];
        assert_eq!(request["status"], "processing_complete");
        assert_eq!(request["error"], Value::Null);
        assert_eq!(request["history"].as_array().unwrap().len(), 2);
        assert_eq!(request["batchId"], batch_id(2).to_string());
    });
}

/// Every route, with what it says to nobody, a viewer, the company `demo`, the company `acme`, and an admin.
fn routes() -> Vec<(&'static str, String, [u16; 5])> {
    let request = request_id(2);
    let batch = batch_id(1);
    let read = [401, 200, 403, 403, 200];
    let own_read = [401, 200, 200, 404, 200];
    // Two hundred would need a body: what is checked is who gets as far as to be told so.
    let ingest = [401, 403, 415, 404, 415];
    let hooks = |rest: &str| format!("/api/v1/companies/demo/webhooks{rest}");
    // There is none of that name: whoever may look is told so.
    let none = [401, 404, 404, 404, 404];
    vec![
        ("GET", "/healthz".to_owned(), [200; 5]),
        ("GET", "/readyz".to_owned(), [200; 5]),
        // Whoever calls: what counts is the signature.
        ("POST", "/webhooks/openai".to_owned(), [400; 5]),
        ("GET", legacy("summary"), read),
        ("GET", legacy("requests?status=pending_batching"), read),
        ("GET", legacy(&format!("requests/{request}")), read),
        ("POST", legacy("requests/requeue"), [401, 403, 403, 403, 415]),
        ("GET", legacy("batches"), read),
        ("GET", legacy(&format!("batches/{batch}")), read),
        ("POST", legacy(&format!("batches/{batch}/cancel")), [401, 403, 403, 403, 409]),
        ("GET", legacy("provider"), read),
        ("POST", legacy("provider/resume"), [401, 403, 403, 403, 200]),
        ("GET", legacy("companies"), read),
        ("GET", legacy("switches"), read),
        ("GET", legacy("health"), read),
        ("GET", legacy("verify"), read),
        ("POST", "/api/v1/companies/demo/requests".to_owned(), ingest),
        ("POST", "/api/v1/companies/demo/sessions".to_owned(), ingest),
        ("GET", "/api/v1/companies/demo/budget".to_owned(), [401, 200, 200, 404, 200]),
        ("PUT", "/api/v1/companies/demo/budget".to_owned(), [401, 403, 403, 403, 415]),
        ("GET", "/api/v1/companies/demo/sessions/chat-1".to_owned(), own_read),
        ("GET", legacy(&format!("requests/{request}/timeline")), read),
        ("GET", "/api/v1/companies/demo/requests".to_owned(), own_read),
        ("GET", "/api/v1/companies/demo/requests/order-2".to_owned(), own_read),
        ("GET", "/api/v1/companies/demo/requests/order-2/timeline".to_owned(), own_read),
        ("GET", "/api/v1/companies/demo/sessions".to_owned(), own_read),
        ("GET", "/api/v1/companies/demo/export/requests".to_owned(), own_read),
        ("GET", "/api/v1/companies/demo/export/sessions".to_owned(), own_read),
        ("POST", hooks(""), ingest),
        ("GET", hooks(""), [401, 200, 200, 404, 200]),
        ("GET", hooks("/none"), none),
        ("PUT", hooks("/none"), ingest),
        ("DELETE", hooks("/none"), [401, 403, 404, 404, 404]),
        ("POST", hooks("/none/rotate"), [401, 403, 404, 404, 404]),
        ("POST", hooks("/none/test"), [401, 403, 404, 404, 404]),
        ("GET", hooks("/none/deliveries"), none),
        ("GET", hooks("/none/deliveries/msg_none"), none),
        ("POST", hooks("/none/deliveries/msg_none/redeliver"), [401, 403, 404, 404, 404]),
        ("GET", "/api/v1/companies/demo/sources".to_owned(), [401, 200, 200, 404, 200]),
        (
            "POST",
            format!("/api/v1/companies/demo/sources/{}/read", "a5".repeat(16)),
            [401, 403, 403, 403, 404],
        ),
        ("POST", legacy("companies"), [401, 403, 403, 403, 422]),
        ("GET", legacy("companies/demo"), read),
        ("PUT", legacy("companies/demo"), [401, 403, 403, 403, 200]),
        ("POST", legacy("companies/demo/suspend"), [401, 403, 403, 403, 200]),
        ("POST", legacy("companies/demo/resume"), [401, 403, 403, 403, 200]),
        ("GET", "/api/v1/companies/demo/keys".to_owned(), read),
        ("POST", "/api/v1/companies/demo/keys".to_owned(), [401, 403, 403, 403, 201]),
        ("POST", format!("/api/v1/companies/demo/keys/{request}/rotate"), [401, 403, 403, 403, 404]),
        ("DELETE", format!("/api/v1/companies/demo/keys/{request}"), [401, 403, 403, 403, 404]),
        ("POST", "/api/v1/companies/demo/sessions/none/erase".to_owned(), [401, 403, 403, 403, 404]),
        ("POST", legacy("companies/demo/erase"), [401, 403, 403, 403, 422]),
        ("GET", legacy("retention"), read),
        ("GET", legacy("erasures"), read),
        ("GET", legacy(&format!("erasures/{request}")), [401, 404, 403, 403, 404]),
        ("GET", legacy("keys"), read),
        ("POST", legacy("keys"), [401, 403, 403, 403, 422]),
        ("POST", legacy(&format!("keys/{request}/rotate")), [401, 403, 403, 403, 404]),
        ("DELETE", legacy(&format!("keys/{request}")), [401, 403, 403, 403, 404]),
    ]
}

#[test]
fn every_route_lets_in_whom_it_should() {
    with_actors(async |nightshift| {
        world(&nightshift).await;
        for (method, path, expected) in routes() {
            let call = || Call::new(method, path.as_str());
            let callers = [
                call().without_token(),
                call().token(VIEWER),
                call().token(DEMO),
                call().token(ACME),
                call(),
            ];
            let mut found = Vec::new();
            for call in callers {
                found.push(nightshift.raw(call).await.status);
            }
            assert_eq!(found, expected, "{method} {path}");
        }
    });
}

#[test]
fn the_list_of_routes_here_is_the_one_of_the_program() {
    let here: Vec<_> = routes().into_iter().map(|(method, path, _)| (method, path)).collect();
    let mut left: Vec<_> = here.iter().collect();
    for entry in http::table::TABLE {
        let like = |(method, path): &&(&str, String)| {
            let path = path.split('?').next().unwrap().trim_start_matches('/');
            let parts: Vec<&str> = path.split('/').collect();
            let found = http::table::find(&parts).unwrap_or_else(|| panic!("{path} is no route"));
            found.of(method).is_some_and(|found| std::ptr::eq(found, entry))
        };
        let known = left.iter().position(like);
        let known = known.unwrap_or_else(|| panic!("say here who may call {} {}", entry.method, entry.path));
        left.remove(known);
    }
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_company_is_not_told_which_other_companies_there_are() {
    with_actors(async |nightshift| {
        for path in ["requests", "sessions", "webhooks"] {
            let to = |company: &str| format!("/api/v1/companies/{company}/{path}");
            let there = nightshift.call(Call::json(to("acme"), &json!({})).token(DEMO)).await;
            let not_there = nightshift.call(Call::json(to("none"), &json!({})).token(DEMO)).await;
            assert_eq!(there.problem(404), not_there.problem(404));
            let detail = |reply: &Reply| reply.body["detail"].as_str().unwrap().replace("acme", "none");
            assert_eq!(detail(&there), detail(&not_there));
        }
    });
}

/// Below its own path an id of somebody else's leads nowhere, whatever is done with it, and whoever does it.
#[test]
fn what_is_another_companys_is_not_there_below_ones_own_path() {
    with_actors(async |nightshift| {
        let theirs = |path: &str| format!("/api/v1/companies/acme/{path}");
        nightshift.session(1, "acme").await;
        nightshift.request(2, "acme", |_| ()).await;
        let wish = json!({ "url": "https://example.com/hook", "events": ["request.finished"] });
        let made = nightshift.call(Call::json(theirs("webhooks"), &wish)).await.made();
        let hook = made["webhook"]["id"].as_str().unwrap().to_owned();
        let test = nightshift.call(Call::post(theirs(&format!("webhooks/{hook}/test")), "", "")).await.good();
        let delivery = test["deliveryId"].as_str().unwrap().to_owned();
        let key = nightshift.call(Call::json(theirs("keys"), &json!({}))).await;
        let key = key.body["key"]["id"].as_str().unwrap().to_owned();
        let seen = async || {
            let paths = ["webhooks".to_owned(), format!("webhooks/{hook}/deliveries"), "keys".to_owned()];
            let mut seen = Vec::new();
            for path in paths {
                seen.push(nightshift.get(&theirs(&path)).await);
            }
            seen.push(nightshift.get(&legacy("summary")).await);
            seen
        };
        let before = seen().await;
        let ids = [
            hook.clone(),
            key,
            session_id(1).to_string(),
            request_id(2).to_string(),
            "chat-1".to_owned(),
            "order-2".to_owned(),
        ];
        let mut asked = 0;
        for entry in http::table::TABLE {
            if !(entry.path.contains("{companyId}") && entry.path.contains("{id}")) {
                continue;
            }
            for id in &ids {
                let path = entry.path.replace("{companyId}", "demo").replace("{id}", id);
                let path = path.replace("{otherId}", &delivery);
                let call = || match entry.method {
                    "PUT" => Call::json(path.as_str(), &wish).method("PUT"),
                    method => Call::new(method, path.as_str()),
                };
                let admin = nightshift.raw(call()).await.status;
                assert_eq!(admin, 404, "{} {path}", entry.method);
                let own = nightshift.raw(call().token(DEMO)).await.status;
                let may =
                    matches!(entry.access, http::table::Access::OwnRead | http::table::Access::OwnWrite);
                assert_eq!(own, if may { 404 } else { 403 }, "{} {path}", entry.method);
                asked += 1;
            }
        }
        assert!(asked >= 15 * ids.len(), "{asked}");
        assert_eq!(seen().await, before);
    });
}

/// The same where only the last id of a path is somebody else's: the webhook is the company's own, and so is the key.
#[test]
fn a_delivery_of_another_companys_webhook_is_not_there_below_ones_own_webhook() {
    with_actors(async |nightshift| {
        let wish = json!({ "url": "https://example.com/hook", "events": ["request.finished"] });
        let mut made = Vec::new();
        for company in ["demo", "acme"] {
            let hooks = format!("/api/v1/companies/{company}/webhooks");
            let hook =
                nightshift.call(Call::json(hooks.as_str(), &wish)).await.made()["webhook"]["id"].clone();
            let hook = hook.as_str().unwrap().to_owned();
            let test = nightshift.call(Call::post(format!("{hooks}/{hook}/test"), "", "")).await.good();
            made.push((hook, test["deliveryId"].as_str().unwrap().to_owned()));
        }
        let [(own_hook, own), (_, theirs)] = made.as_slice() else { panic!("two companies: {made:?}") };
        let key = nightshift.call(Call::json("/api/v1/companies/demo/keys", &json!({}))).await;
        let key: &'static str = key.body["key"]["key"].as_str().unwrap().to_owned().leak();
        let deliveries = async || {
            let mut seen = Vec::new();
            for (company, (hook, _)) in ["demo", "acme"].into_iter().zip(&made) {
                let path = format!("/api/v1/companies/{company}/webhooks/{hook}/deliveries");
                seen.push(nightshift.get(&path).await);
            }
            seen
        };
        let below: Vec<_> =
            http::table::TABLE.iter().filter(|entry| entry.path.contains("{otherId}")).collect();
        assert_eq!(below.len(), 2);
        let call = |entry: &http::table::Entry, delivery: &str| {
            let path = entry.path.replace("{companyId}", "demo").replace("{id}", own_hook);
            Call::new(entry.method, path.replace("{otherId}", delivery))
        };
        let before = deliveries().await;
        for entry in &below {
            for token in [ADMIN, key] {
                let reply = nightshift.call(call(entry, theirs).token(token)).await;
                assert_eq!(reply.problem(404), "unknown_delivery", "{} {}", entry.method, entry.path);
            }
        }
        assert_eq!(deliveries().await, before);
        // Nothing else is wrong with these paths.
        for entry in below {
            nightshift.call(call(entry, own).token(key)).await.good();
        }
    });
}

#[test]
fn what_a_check_found_and_did_not_keep_is_shown_as_a_number() {
    let mut report = Report::default();
    report.more = 5;
    let view = http::report_view(&report);
    assert_eq!(
        (&view["moreViolations"], &view["violations"], &view["doubt"]),
        (&json!(5), &json!([]), &Value::Null)
    );
}

#[test]
fn a_batch_that_does_not_close_is_seen_wherever_an_operator_looks() {
    with_actors(async |nightshift| {
        for number in 1..=2 {
            nightshift.request(number, "demo", |_| ()).await;
        }
        let mut driven = nightshift.open_batch(1, "demo", 2).await;
        driven.send().await;
        driven.read(vec![good_line(1, None)], Vec::new()).await;
        let (id, now) = (batch_id(1), nightshift.now());
        let batch = legacy(&format!("batches/{id}"));
        assert_eq!(nightshift.get(&batch).await["batch"]["anomaly"], Value::Null);

        // Somebody would close it although one of its two is still outstanding.
        for _ in 0..2 {
            let step = Step {
                next: BatchState::Cleaning { closing: Closing::Processed },
                changes: vec![Change::Processed(now)],
                effects: Vec::new(),
                story: Some("closed".to_owned()),
            };
            let closed = nightshift.store().commit_step(id, driven.batch.revision, step, now).await;
            assert!(matches!(closed, Err(StoreError::Unproven { .. })), "{closed:?}");
        }
        let shown = nightshift.get(&batch).await["batch"].clone();
        let what = shown["anomaly"]["what"].as_str().unwrap().to_owned();
        assert!(what.starts_with("it has 2 members, of which 1 completed"), "{what}");
        assert_eq!((&shown["anomaly"]["at"], &shown["step"]), (&json!(now.to_string()), &json!("closing")));
        let story = shown["story"].as_array().unwrap();
        let told = story.iter().filter(|line| line["text"].as_str().unwrap().contains(&what)).count();
        assert_eq!(told, 1, "{story:?}");
        let health = nightshift.get(&legacy("health")).await["health"].clone();
        let listed = json!([{ "batchId": id.to_string(), "at": now.to_string(), "what": what }]);
        assert_eq!(health["anomalies"], listed);
        let timeline = nightshift.get(&legacy(&format!("requests/{}/timeline", request_id(2)))).await;
        let waiting = &timeline["timeline"]["waiting"];
        assert_eq!((&waiting["for"], &waiting["since"]), (&json!("anomaly"), &json!(now.to_string())));
        assert!(waiting["detail"].as_str().unwrap().contains(&what), "{waiting}");
        let result = nightshift.get(&legacy(&format!("requests/{}", request_id(1)))).await;
        assert_eq!(result["request"]["status"], "processing_complete");

        // Its own actor closes it in order, and then nothing is the matter any more.
        nightshift.registry.send(Host { id, fresh: false }).await.unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while !nightshift.shared.reader.live_batches().unwrap().is_empty() {
            assert!(std::time::Instant::now() < end, "it does not close");
            tokio::task::yield_now().await;
        }
        assert_eq!(nightshift.get(&batch).await["batch"]["anomaly"], Value::Null);
        assert_eq!(nightshift.get(&legacy("health")).await["health"]["anomalies"], json!([]));
        assert!(nightshift.store().verify().await.unwrap().is_whole());
    });
}
