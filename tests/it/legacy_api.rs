//! The legacy admin API, exact in every field.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::golden;
use crate::harness::{COMPANY, Harness, Reply, VIEWER, run};
use crate::process::TOKEN;

const BASE: &str = "/api/admin/legacy";

fn assert_problem(reply: &Reply, status: u16, code: &str) {
    assert_eq!((reply.status, &reply.body["code"]), (status, &Value::from(code)), "{}", reply.body);
    assert_eq!(reply.headers["content-type"], "application/problem+json");
    assert_eq!(reply.body["ok"], false);
    assert_eq!(reply.body["status"], status);
    assert!(!reply.body["detail"].as_str().unwrap().is_empty());
    assert_eq!(reply.body["requestId"], reply.headers["x-request-id"].to_str().unwrap());
}

#[test]
fn every_view_is_as_it_was_agreed() {
    run(async {
        let api = Harness::new().await;
        api.ingest("acme", 3).await;
        let batch = api.batch("acme", 1, 1).await;
        golden::check("summary", &api.get(&format!("{BASE}/summary")).await.body);
        golden::check("summary-company", &api.get(&format!("{BASE}/summary?companyId=beta")).await.body);
        for status in ["pending_batching", "batching_in_progress", "processing_complete", "processing_failed"]
        {
            let reply = api.get(&format!("{BASE}/requests?status={status}")).await;
            assert_eq!(reply.status, 200);
            golden::check(&format!("requests-{status}"), &reply.body);
        }
        let page = api.get(&format!("{BASE}/requests?status=processing_failed")).await.body;
        let failed = page["requests"][0]["id"].as_str().unwrap();
        golden::check("request", &api.get(&format!("{BASE}/requests/{failed}")).await.body);
        golden::check("batches", &api.get(&format!("{BASE}/batches")).await.body);
        golden::check("batch", &api.get(&format!("{BASE}/batches/{}", batch.id)).await.body);
        golden::check("companies", &api.get(&format!("{BASE}/companies")).await.body);
        golden::check("switches", &api.get(&format!("{BASE}/switches")).await.body);
        golden::check("healthz", &api.get("/healthz").await.body);
        golden::check("readyz", &api.get("/readyz").await.body);
        let body = json!({ "requestIds": [failed] }).to_string();
        golden::check("requeue", &api.post(&format!("{BASE}/requests/requeue"), &body).await.body);
    });
}

#[test]
fn a_requeue_counts_each_id_once_and_takes_only_what_failed() {
    run(async {
        let api = Harness::new().await;
        let ids = api.ingest("acme", 4).await;
        api.batch("acme", 1, 2).await;
        let (complete, failed) = (&ids[0], &ids[1]);
        let unknown = "01a20e00-79fc-74ef-8ba1-a7d9a27a5632";
        let body =
            json!({"requestIds": [failed, failed, complete, unknown, unknown, "not-an-id", "not-an-id"]});
        let reply = api.post(&format!("{BASE}/requests/requeue"), &body.to_string()).await;
        assert_eq!(
            reply.body,
            json!({"ok": true, "requeuedCount": 1, "notFoundCount": 2, "skippedCount": 1})
        );
        let request = api.get(&format!("{BASE}/requests/{failed}")).await.body["request"].clone();
        assert_eq!((&request["status"], &request["attempts"]), (&json!("pending_batching"), &json!(0)));
        assert_eq!(request["history"].as_array().unwrap().len(), 1, "the history is kept");
        let again = api.post(&format!("{BASE}/requests/requeue"), &body.to_string()).await;
        assert_eq!(again.body["requeuedCount"], 0);
        assert!(api.shared.reader.verify().unwrap().violations.is_empty());
    });
}

#[test]
fn pages_show_each_request_once_while_rows_move() {
    run(async {
        let api = Harness::new().await;
        let ids: BTreeSet<_> = api.ingest("acme", 120).await.into_iter().collect();
        let mut seen = Vec::new();
        let mut cursor = String::new();
        let mut pages = 0;
        loop {
            let path = format!("{BASE}/requests?status=pending_batching&companyId=acme&limit=50{cursor}");
            let page = api.get(&path).await.body;
            for request in page["requests"].as_array().unwrap() {
                seen.push(request["id"].as_str().unwrap().to_owned());
            }
            pages += 1;
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!((pages, seen.len()), (3, 120));
        assert_eq!(seen.iter().cloned().collect::<BTreeSet<_>>(), ids);

        // All rows leave the status between two pages: the rest of the list is empty, and nothing doubles.
        let first = api.get(&format!("{BASE}/requests?status=pending_batching&limit=50")).await.body;
        let next = first["nextCursor"].as_str().unwrap();
        api.batch("acme", 120, 0).await;
        let rest = api.get(&format!("{BASE}/requests?status=pending_batching&limit=50&cursor={next}")).await;
        assert_eq!((rest.status, &rest.body["requests"]), (200, &json!([])));
        let batches = api.get(&format!("{BASE}/batches")).await.body;
        let batch = batches["batches"][0]["id"].as_str().unwrap();
        let path = format!("{BASE}/requests?status=processing_complete&batchId={batch}&limit=500");
        let page = api.get(&path).await.body;
        assert_eq!(page["requests"].as_array().unwrap().len(), 120);
    });
}

#[test]
fn a_cursor_that_is_not_from_this_list_is_refused() {
    run(async {
        let api = Harness::new().await;
        api.ingest("acme", 3).await;
        let list = format!("{BASE}/requests?status=pending_batching&limit=1");
        let cursor = api.get(&list).await.body["nextCursor"].as_str().unwrap().to_owned();
        assert_eq!(api.get(&format!("{list}&cursor={cursor}")).await.status, 200);
        let mut tampered = cursor.clone();
        tampered.replace_range(3..4, if &cursor[3..4] == "A" { "B" } else { "A" });
        let other = format!("{BASE}/requests?status=processing_failed&limit=1&cursor={cursor}");
        for path in [
            format!("{list}&cursor={tampered}"),
            format!("{list}&cursor=x"),
            format!("{list}&cursor=%00%ff"),
            format!("{list}&companyId=acme&cursor={cursor}"),
            format!("{BASE}/batches?cursor={cursor}"),
            other,
        ] {
            let reply = api.get(&path).await;
            let code = if path.contains("%ff") { "bad_encoding" } else { "bad_cursor" };
            assert_problem(&reply, 422, code);
        }
    });
}

#[test]
fn every_error_is_a_problem_that_says_what_to_do() {
    run(async {
        let api = Harness::new().await;
        let requests = format!("{BASE}/requests");
        for (path, code) in [
            (requests.clone(), "status_required"),
            (format!("{requests}?status=done"), "unknown_status"),
            (format!("{requests}?status=processing_failed&limit=0"), "bad_limit"),
            (format!("{requests}?status=processing_failed&limit=501"), "bad_limit"),
            (format!("{requests}?status=processing_failed&limt=5"), "unknown_parameter"),
            (format!("{requests}?status=processing_failed&status=processing_failed"), "repeated_parameter"),
            (format!("{requests}?status=processing_failed&batchId=7"), "bad_parameter"),
            (format!("{requests}?status=processing_failed&companyId=a%2Fb"), "bad_parameter"),
            (format!("{BASE}/batches?status=gone"), "unknown_status"),
        ] {
            assert_problem(&api.get(&path).await, 422, code);
        }
        for path in ["/nowhere", "/api/admin/legacy", "/api/admin/legacy/summary/", "/"] {
            assert_problem(&api.get(path).await, 404, "not_found");
        }
        for id in ["x", "01a20e00-79fc-74ef-8ba1-a7d9a27a5632", "..%2f..%2fetc", "%00"] {
            assert_problem(&api.get(&format!("{requests}/{id}")).await, 404, "unknown_request");
            assert_problem(&api.get(&format!("{BASE}/batches/{id}")).await, 404, "unknown_batch");
        }
        let reply = api.call("DELETE", &format!("{BASE}/summary"), Some(TOKEN), &[], "").await;
        assert_problem(&reply, 405, "method_not_allowed");
        assert_eq!(reply.headers["allow"], "GET");

        let requeue = format!("{requests}/requeue");
        assert_problem(&api.post(&requeue, "{").await, 400, "invalid_json");
        assert_problem(&api.post(&requeue, "{\"requestIds\":[],\"all\":true}").await, 422, "invalid_body");
        assert_problem(&api.post(&requeue, "{\"requestIds\":[]}").await, 422, "bad_request_ids");
        let many = json!({ "requestIds": vec!["x"; 10_001] }).to_string();
        assert_problem(&api.post(&requeue, &many).await, 422, "bad_request_ids");
        let huge = format!("{{\"requestIds\":[\"{}\"]}}", "x".repeat(1 << 20));
        assert_problem(&api.post(&requeue, &huge).await, 413, "too_large");
        let reply = api.call("POST", &requeue, Some(TOKEN), &[("content-type", "text/plain")], "{}").await;
        assert_problem(&reply, 415, "unsupported_media_type");
    });
}

#[test]
fn an_address_that_guesses_tokens_is_told_to_wait_and_a_right_token_still_works() {
    run(async {
        let api = Harness::new().await;
        let summary = format!("{BASE}/summary");
        assert_problem(&api.call("GET", &summary, None, &[], "").await, 401, "unauthorized");
        for _ in 0..10 {
            let reply = api.call("GET", &summary, Some("guess"), &[], "").await;
            assert_problem(&reply, 401, "unauthorized");
            assert!(reply.headers.contains_key("www-authenticate"));
        }
        let reply = api.call("GET", &summary, Some("guess"), &[], "").await;
        assert_problem(&reply, 429, "too_many_failures");
        assert!(reply.headers.contains_key("retry-after"));
        assert_eq!(api.get(&summary).await.status, 200);
        api.clock.advance(std::time::Duration::from_secs(61));
        assert_problem(&api.call("GET", &summary, Some("guess"), &[], "").await, 401, "unauthorized");
    });
}

#[test]
fn every_route_is_for_those_who_may_and_for_nobody_else() {
    let open = [200, 200, 200];
    // Without a token, as a viewer, as company acme.
    let read = [401, 200, 403];
    let routes = [
        ("GET", "/healthz", open),
        ("GET", "/readyz", open),
        ("GET", "/api/admin/legacy/summary", read),
        ("GET", "/api/admin/legacy/requests?status=pending_batching", read),
        ("GET", "/api/admin/legacy/batches", read),
        ("GET", "/api/admin/legacy/companies", read),
        ("GET", "/api/admin/legacy/switches", read),
        ("GET", "/api/admin/legacy/requests/01a20e00-79fc-74ef-8ba1-a7d9a27a5632", [401, 404, 403]),
        ("GET", "/api/admin/legacy/batches/01a20e00-79fc-74ef-8ba1-a7d9a27a5632", [401, 404, 403]),
        ("POST", "/api/admin/legacy/requests/requeue", [401, 403, 403]),
        ("POST", "/api/v1/companies/acme/requests", [401, 403, 415]),
        ("POST", "/api/v1/companies/acme/sessions", [401, 403, 415]),
        ("POST", "/api/v1/companies/beta/requests", [401, 403, 404]),
        ("POST", "/api/v1/companies/none/requests", [401, 403, 404]),
        ("GET", "/api/v1/companies/acme/sessions/s1", [401, 404, 404]),
        ("GET", "/api/v1/companies/beta/sessions/s1", [401, 404, 404]),
        ("GET", "/nowhere", [401, 404, 404]),
    ];
    run(async {
        let api = Harness::new().await;
        for (method, path, expected) in routes {
            for (token, expected) in [None, Some(VIEWER), Some(COMPANY)].into_iter().zip(expected) {
                let reply = api.call(method, path, token, &[], "").await;
                assert_eq!(reply.status, expected, "{method} {path} as {token:?}: {}", reply.body);
            }
        }
    });
}
