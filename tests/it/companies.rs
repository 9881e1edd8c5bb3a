//! Companies and their keys: made, changed, suspended, rotated, revoked, and who is let in after that.

use std::time::Duration;

use nightshift::domain::company::{Company, CompanyChange, ConfiguredCompany};
use nightshift::store::Store;
use serde_json::{Value, json};

use crate::harness::{Call, MODEL, Nightshift, body_in_pieces, company, until, with_a_creator, with_actors};
use crate::process::free_port;
use crate::trouble::bench;

const COMPANIES: &str = "/api/admin/legacy/companies";
const KEYS: &str = "/api/v1/companies/demo/keys";
const ADMIN_KEYS: &str = "/api/admin/legacy/keys";

/// Tokens of calls live as long as the test program.
fn token(key: &Value) -> &'static str {
    key["key"]["key"].as_str().unwrap().to_owned().leak()
}

async fn made(nightshift: &Nightshift, path: &str, body: &Value) -> Value {
    let reply = nightshift.call(Call::json(path, body)).await;
    assert_eq!(reply.status, 201, "{:#}", reply.body);
    reply.body
}

async fn reads(nightshift: &Nightshift, token: &'static str) -> u16 {
    let path = "/api/v1/companies/demo/sessions/none";
    nightshift.call(Call::get(path).token(token)).await.status
}

#[test]
fn a_company_is_made_once_changed_suspended_and_goes_on() {
    with_actors(async |nightshift| {
        let reply = made(&nightshift, COMPANIES, &json!({ "id": "new", "name": "New" })).await;
        assert_eq!(reply["company"]["model"], MODEL);
        let again = Call::json(COMPANIES, &json!({ "id": "new" }));
        assert_eq!(nightshift.call(again).await.problem(409), "company_exists");
        let one = format!("{COMPANIES}/new");
        let change = Call::json(&one, &json!({ "model": "gpt-5-mini" })).method("PUT");
        let changed = nightshift.call(change).await.good();
        let company = &changed["company"];
        assert_eq!((&company["name"], &company["model"]), (&json!("New"), &json!("gpt-5-mini")));
        for (word, suspended) in [("suspend", true), ("resume", false)] {
            let reply = nightshift.call(Call::new("POST", format!("{one}/{word}"))).await.good();
            assert_eq!(reply["company"]["suspended"], suspended);
            assert_eq!(nightshift.get(&one).await["company"]["suspended"], suspended);
        }
        for (status, code, method, path, body) in [
            (422, "bad_company_id", "POST", COMPANIES.to_owned(), json!({ "id": "a b" })),
            (422, "bad_text", "POST", COMPANIES.to_owned(), json!({ "id": "b", "name": " " })),
            (422, "invalid_body", "PUT", one, json!({ "colour": "red" })),
            (404, "unknown_company", "PUT", format!("{COMPANIES}/none"), json!({ "name": "None" })),
        ] {
            let reply = nightshift.call(Call::json(&path, &body).method(method)).await;
            assert_eq!(reply.problem(status), code, "{path}");
        }
    });
}

#[test]
fn nothing_new_is_cut_for_a_suspended_company() {
    with_a_creator(async |nightshift| {
        nightshift.call(Call::new("POST", format!("{COMPANIES}/demo/suspend"))).await.good();
        made(&nightshift, COMPANIES, &json!({ "id": "zeta" })).await;
        nightshift.request(1, "demo", |_| ()).await;
        nightshift.request(2, "zeta", |_| ()).await;
        // Both are due for their age, and one look goes through them by their names.
        nightshift.clock.advance(Duration::from_secs(7200));
        let reader = &nightshift.shared.reader;
        let of = |id: &str| reader.list_batches(Some(&company(id)), None, None, 9).unwrap().0.len();
        until("a batch of zeta's", async || (of("zeta") > 0).then_some(())).await;
        assert_eq!(of("demo"), 0);
    });
}

#[test]
fn the_running_batches_of_a_suspended_company_come_home_and_the_rest_waits_until_it_is_resumed() {
    let folder = bench::folder();
    // By its clock the provider runs nothing until the test says so.
    let (simulator, clock) = bench::Provider::start_still(&folder.path().join("provider"), "{}");
    let mut server = bench::serve(folder.path(), &simulator, free_port(), &[]);
    let summary = |server: &crate::process::Server, company: &str| {
        let reply = server.get(&format!("/api/admin/legacy/summary?companyId={company}"));
        ["pending_batching", "batching_in_progress", "processing_complete", "processing_failed"]
            .map(|status| reply["summary"][status].as_u64().unwrap())
    };
    let order = |server: &crate::process::Server, word: &str| {
        let path = format!("{COMPANIES}/demo/{word}");
        server.post(&path, "application/json", String::new())
    };
    bench::send(&server, "demo", 10, bench::question);
    bench::until(&mut server, "a running batch", |_| {
        (simulator.calls("POST /v1/batches") == 1).then_some(())
    });
    assert_eq!(order(&server, "suspend")["company"]["suspended"], true);
    bench::send_from(&server, "demo", 10, 5, bench::question);
    bench::send(&server, "other", 5, bench::question);
    // One look of the creator goes through both.
    bench::until(&mut server, "a batch of the other's", |_| {
        (simulator.calls("POST /v1/batches") == 2).then_some(())
    });
    assert_eq!(summary(&server, "demo"), [5, 10, 0, 0]);
    let timeline = server.get("/api/v1/companies/demo/requests/demo-12/timeline")["timeline"].clone();
    assert_eq!(timeline["waiting"]["for"], "company_suspended", "{timeline:#}");
    bench::until(&mut server, "the results", |server| {
        clock.advance(bench::HALF);
        let both = [summary(server, "demo"), summary(server, "other")];
        (both == [[5, 0, 10, 0], [0, 0, 5, 0]]).then_some(())
    });
    assert_eq!(simulator.calls("POST /v1/batches"), 2);
    assert_eq!(order(&server, "resume")["company"]["suspended"], false);
    bench::until(&mut server, "the rest", |server| {
        clock.advance(bench::HALF);
        (summary(server, "demo") == [0, 0, 15, 0]).then_some(())
    });
    assert_eq!(simulator.calls("POST /v1/batches"), 3);
    assert!(server.terminate().success());
    bench::assert_once(&simulator.runs(), 20);
    bench::assert_whole(folder.path());
}

#[tokio::test]
async fn the_configuration_holds_for_what_it_says_and_leaves_the_rest() {
    let store = Store::in_memory(uuid::Uuid::nil()).await.unwrap();
    let new = Company {
        id: company("acme"),
        name: "acme".to_owned(),
        model: MODEL.to_owned(),
        suspended: false,
        budget_micros: None,
        retention: Default::default(),
    };
    let says = CompanyChange { model: Some(MODEL.to_owned()), ..CompanyChange::default() };
    let configured = vec![ConfiguredCompany { new, says }];
    store.configure_companies(configured.clone()).await.unwrap();
    let change = CompanyChange {
        budget_micros: None,
        name: Some("Acme Ltd".to_owned()),
        model: Some("other".to_owned()),
        suspended: Some(true),
        retention: None,
    };
    store.change_company(company("acme"), change).await.unwrap();
    store.configure_companies(configured).await.unwrap();
    let found = store.reader().company(&company("acme")).unwrap().unwrap();
    assert_eq!((found.name.as_str(), found.model.as_str(), found.suspended), ("Acme Ltd", MODEL, true));
}

#[test]
fn a_key_is_shown_once_and_ends_with_the_call_after_it_is_revoked() {
    with_actors(async |nightshift| {
        let reply = made(&nightshift, KEYS, &json!({ "label": "shop" })).await;
        let (key, id) = (token(&reply), reply["key"]["id"].as_str().unwrap().to_owned());
        assert_eq!(reads(&nightshift, key).await, 404, "it is let in, and there is no such session");
        let listed = nightshift.get(KEYS).await;
        assert!(!listed.to_string().contains(key));
        let own = |listed: &Value| {
            let keys = listed["keys"].as_array().unwrap().iter();
            keys.clone().find(|key| key["id"] == id.as_str()).unwrap().clone()
        };
        assert_eq!((&own(&listed)["label"], &own(&listed)["live"]), (&json!("shop"), &json!(true)));
        // Another company has no such key, not even to end.
        let elsewhere = Call::new("DELETE", format!("/api/v1/companies/acme/keys/{id}"));
        assert_eq!(nightshift.call(elsewhere).await.problem(404), "unknown_key");
        nightshift.call(Call::new("DELETE", format!("{KEYS}/{id}"))).await.good();
        assert_eq!(reads(&nightshift, key).await, 401);
        assert_eq!(own(&nightshift.get(KEYS).await)["live"], false);
        let rotate = Call::new("POST", format!("{KEYS}/{id}/rotate"));
        assert_eq!(nightshift.call(rotate).await.problem(409), "key_ended");
    });
}

#[test]
fn a_stream_ends_with_the_key_that_it_came_with() {
    with_actors(async |nightshift| {
        let reply = made(&nightshift, KEYS, &json!({ "label": "shop" })).await;
        let (key, id) = (token(&reply), reply["key"]["id"].as_str().unwrap().to_owned());
        let lines = || -> String {
            let body = json!({ "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": "x" }] });
            (0..250).map(|_| format!("{{\"body\":{body}}}\n")).collect()
        };
        let (pieces, body) = body_in_pieces();
        pieces.send(Ok(lines())).unwrap();
        let call = Call::streamed("/api/v1/companies/demo/requests", "application/x-ndjson", body).token(key);
        let stored =
            async || nightshift.get("/api/admin/legacy/summary").await["summary"]["pending_batching"].clone();
        let revoke = async {
            until("the first chunk is stored", async || (stored().await == 250).then_some(())).await;
            nightshift.call(Call::new("DELETE", format!("{KEYS}/{id}"))).await.good();
            pieces.send(Ok(lines())).unwrap();
            drop(pieces);
        };
        let (reply, ()) = tokio::join!(nightshift.call(call), revoke);
        assert_eq!(reply.problem(401), "unauthorized");
        let done = ["accepted", "rejected", "lastLine"].map(|name| reply.body[name].as_u64());
        assert_eq!(done, [Some(250), Some(0), Some(250)], "{:#}", reply.body);
        assert_eq!(stored().await, 250);
    });
}

#[test]
fn a_rotated_key_works_on_for_as_long_as_was_said() {
    with_actors(async |nightshift| {
        let first = made(&nightshift, KEYS, &json!({ "label": "shop" })).await;
        let path = |key: &Value| format!("{KEYS}/{}/rotate", key["key"]["id"].as_str().unwrap());
        let rotate = Call::json(path(&first), &json!({ "overlap": "24h" }));
        let second = nightshift.call(rotate).await.good();
        assert_eq!(second["key"]["label"], "shop");
        assert_eq!(
            (reads(&nightshift, token(&first)).await, reads(&nightshift, token(&second)).await),
            (404, 404)
        );
        nightshift.clock.advance(Duration::from_secs(24 * 3600));
        assert_eq!(
            (reads(&nightshift, token(&first)).await, reads(&nightshift, token(&second)).await),
            (401, 404)
        );
        let third = nightshift.call(Call::new("POST", path(&second))).await.good();
        assert_eq!(
            (reads(&nightshift, token(&second)).await, reads(&nightshift, token(&third)).await),
            (401, 404)
        );
        for overlap in ["a while", "31days"] {
            let rotate = Call::json(path(&third), &json!({ "overlap": overlap }));
            assert_eq!(nightshift.call(rotate).await.problem(422), "bad_overlap");
        }
        assert_eq!(nightshift.store().verify().await.unwrap().violations, []);
    });
}

#[test]
fn keys_of_admins_and_viewers_are_made_by_admins_only_and_a_hundred_at_most() {
    with_actors(async |nightshift| {
        let admin = token(&made(&nightshift, ADMIN_KEYS, &json!({ "role": "admin" })).await);
        let with_it = Call::json(ADMIN_KEYS, &json!({ "role": "viewer", "label": "wall" })).token(admin);
        let viewer = nightshift.call(with_it).await;
        assert_eq!(viewer.status, 201);
        let by_a_viewer = Call::json(ADMIN_KEYS, &json!({ "role": "admin" })).token(token(&viewer.body));
        assert_eq!(nightshift.call(by_a_viewer).await.problem(403), "forbidden");
        let of_a_company = Call::json(ADMIN_KEYS, &json!({ "role": "company" }));
        assert_eq!(nightshift.call(of_a_company).await.problem(422), "unknown_role");
        let listed = nightshift.get(ADMIN_KEYS).await["keys"].as_array().unwrap().len();
        for _ in listed..100 {
            made(&nightshift, ADMIN_KEYS, &json!({ "role": "viewer" })).await;
        }
        let one_more = Call::json(ADMIN_KEYS, &json!({ "role": "viewer" }));
        assert_eq!(nightshift.call(one_more).await.problem(409), "too_many_keys");
    });
}

#[test]
fn the_day_of_a_keys_last_use_is_known() {
    with_actors(async |nightshift| {
        let key = token(&made(&nightshift, KEYS, &json!({})).await);
        reads(&nightshift, key).await;
        // It is noted beside the call.
        let used = until("its use is noted", async || {
            let keys = nightshift.get(KEYS).await["keys"].as_array().unwrap().clone();
            keys.last().unwrap()["lastUsedOn"].as_str().map(str::to_owned)
        })
        .await;
        assert_eq!(used, nightshift.now().to_string()[..10]);
    });
}
