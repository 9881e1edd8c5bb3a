//! Webhooks: who may do what with them, and what arrives at real receivers on loopback, when and how often.

use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use actix::Actor;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nightshift::actors::deliverer::Deliverer;
use nightshift::clock::Clock as _;
use nightshift::condition::Hindrance;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{
    self, ACME, Call, DEMO, Nightshift, VIEWER, good_line, refused_line, request_id, with_actors,
};
use crate::process::{PATIENCE, Server, free_port};
use crate::web::{Answer, Asked, Shape, Web};

const HOOKS: &str = "/api/v1/companies/demo/webhooks";
const DAY: Duration = Duration::from_secs(86_400);

fn wish(url: &str) -> Value {
    json!({ "url": url, "events": ["request.finished", "batch.finished"] })
}

async fn make(nightshift: &Nightshift, wish: &Value) -> Value {
    nightshift.call(Call::json(HOOKS, wish).token(DEMO)).await.made()["webhook"].clone()
}

fn id(of: &Value) -> &str {
    of["id"].as_str().unwrap()
}

/// Runs a test beside receivers that answer as it says, with the real deliverer.
fn with_receivers<const N: usize>(
    answers: [fn(&Asked) -> Answer; N],
    test: impl AsyncFnOnce(Nightshift, [Web; N]),
) {
    actix::System::new().block_on(async {
        let mut webs = Vec::new();
        for answer in answers {
            webs.push(Web::start(answer).await);
        }
        let hosts: Vec<String> = webs.iter().map(Web::host).collect();
        let nightshift = Nightshift::reaching(&hosts).await;
        Deliverer::new(nightshift.shared.clone()).start();
        test(nightshift, webs.try_into().unwrap_or_else(|_| panic!("so many as asked"))).await;
    });
}

/// Waits for what happens beside the test.
async fn until<T>(look: impl AsyncFnMut() -> Option<T>) -> T {
    harness::until("a webhook is told", look).await
}

async fn deliveries(nightshift: &Nightshift, hook: &Value) -> Vec<Value> {
    let list = nightshift.get(&format!("{HOOKS}/{}/deliveries", id(hook))).await;
    list["deliveries"].as_array().unwrap().clone()
}

/// The newest delivery of a webhook, once it was tried so often.
async fn tried(nightshift: &Nightshift, hook: &Value, times: usize) -> Value {
    until(async || {
        let newest = deliveries(nightshift, hook).await.into_iter().next()?;
        (newest["attempts"].as_array().unwrap().len() >= times).then_some(newest)
    })
    .await
}

async fn send_test(nightshift: &Nightshift, hook: &Value) -> String {
    let sent =
        nightshift.call(Call::new("POST", format!("{HOOKS}/{}/test", id(hook))).token(DEMO)).await.good();
    sent["deliveryId"].as_str().unwrap().to_owned()
}

/// HMAC-SHA256 from its definition, by no library.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    assert!(key.len() <= 64);
    let padded = |pad: u8| (0..64).map(|at| key.get(at).unwrap_or(&0) ^ pad).collect::<Vec<u8>>();
    let inner = Sha256::digest([&padded(0x36), message].concat());
    Sha256::digest([padded(0x5c), inner.to_vec()].concat()).to_vec()
}

/// What a receiver does: whether one of the signatures is that of the secret.
fn is_signed(asked: &Asked, secret: &str) -> bool {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let head = |name: &str| asked.headers[name].as_bytes();
    let signed = [head("webhook-id"), b".", head("webhook-timestamp"), b".", &asked.body].concat();
    let expected = format!("v1,{}", STANDARD.encode(hmac(&key, &signed)));
    asked.headers["webhook-signature"].split(' ').any(|signature| signature == expected)
}

fn said(asked: &Asked) -> Value {
    serde_json::from_slice(&asked.body).unwrap()
}

#[test]
fn what_is_finished_is_told_signed_and_without_a_word_of_it() {
    with_receivers([|_| Answer::new(204, "")], async |nightshift, [web]| {
        let hook = make(&nightshift, &wish(&web.url("/hook"))).await;
        nightshift.session(1, "demo").await;
        nightshift.request(2, "demo", |_| ()).await;
        nightshift.request(3, "demo", |_| ()).await;
        let mut batch = nightshift.open_batch(1, "demo", 3).await;
        batch.send().await;
        batch.finish(vec![good_line(1, None), good_line(2, None)], vec![refused_line(3)]).await;
        let told = until(async || (web.asked().len() >= 3).then(|| web.asked())).await;
        assert_eq!(told.len(), 3);
        for asked in &told {
            assert!(is_signed(asked, hook["secret"].as_str().unwrap()));
            assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/hook"));
            assert_eq!(asked.headers["content-type"], "application/json");
            let text = String::from_utf8(asked.body.clone()).unwrap();
            assert!(!text.contains("chatcmpl") && !text.contains("When do I work"), "{text}");
        }
        let of = |kind: &str| told.iter().map(said).filter(|said| said["type"] == kind).collect::<Vec<_>>();
        let bundles = of("request.finished");
        let requests = |number: usize| bundles[number]["data"]["requests"].as_array().unwrap();
        assert_eq!((bundles.len(), requests(0).len(), requests(1).len()), (2, 2, 1));
        let first = requests(0).iter().find(|one| one["id"] == request_id(1).to_string()).unwrap();
        assert_eq!(
            (&first["externalId"], &first["status"]),
            (&"chat-1".into(), &"processing_complete".into())
        );
        assert_eq!(
            (&requests(1)[0]["clientId"], &requests(1)[0]["errorClass"]),
            (&"order-3".into(), &"permanent".into())
        );
        assert_eq!(requests(1)[0]["status"], "processing_failed");
        let ends = of("batch.finished");
        assert_eq!(
            ends[0]["data"]["counts"],
            json!({ "members": 3, "completed": 2, "failed": 1, "returned": 0, "erased": 0 })
        );
        until(async || {
            deliveries(&nightshift, &hook).await.iter().all(|one| one["status"] == "delivered").then_some(())
        })
        .await;
        assert_eq!(nightshift.store().verify().await.unwrap().violations, []);
    });
}

#[test]
fn what_is_not_taken_is_tried_again_later_as_the_same_message() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let second_time = |_: &Asked| match CALLS.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::new(500, ""),
        1 => Answer::new(302, "").header("location", "/elsewhere"),
        _ => Answer::ok("thanks"),
    };
    with_receivers([second_time], async |nightshift, [web]| {
        let hook = make(&nightshift, &wish(&web.url("/hook"))).await;
        let sent = send_test(&nightshift, &hook).await;
        let first = tried(&nightshift, &hook, 1).await;
        assert_eq!((&first["status"], &first["attempts"][0]["httpStatus"]), (&"pending".into(), &500.into()));
        nightshift.clock.advance(Duration::from_secs(4));
        assert_eq!(web.asked().len(), 1, "it comes too early");
        nightshift.clock.advance(Duration::from_secs(1));
        tried(&nightshift, &hook, 2).await;
        nightshift.clock.advance(Duration::from_secs(30));
        let last = tried(&nightshift, &hook, 3).await;
        assert_eq!(last["status"], "delivered");
        let asked = web.asked();
        assert!(asked.iter().all(|asked| asked.path == "/hook"), "a redirection was followed");
        assert!(asked.iter().all(|asked| asked.headers["webhook-id"] == sent));
        assert!(asked.iter().all(|asked| is_signed(asked, hook["secret"].as_str().unwrap())));
        assert!(asked.iter().all(|one| one.body == asked[0].body));
        let times: Vec<i64> =
            asked.iter().map(|asked| asked.headers["webhook-timestamp"].parse().unwrap()).collect();
        assert_eq!((times[1] - times[0], times[2] - times[1]), (5, 30), "each try has its own time");
        let shown = nightshift.get(&format!("{HOOKS}/{}/deliveries/{sent}", id(&hook))).await;
        assert_eq!(shown["delivery"]["payload"], said(&asked[0]));
    });
}

#[test]
fn after_a_day_it_is_given_up_and_can_be_sent_again_by_hand() {
    static STATUS: AtomicU16 = AtomicU16::new(500);
    with_receivers([|_| Answer::new(STATUS.load(Ordering::SeqCst), "")], async |nightshift, [web]| {
        let hook = make(&nightshift, &wish(&web.url("/hook"))).await;
        let sent = send_test(&nightshift, &hook).await;
        let began = nightshift.clock.now();
        let mut tries = 0;
        let given_up = loop {
            tries += 1;
            let delivery = tried(&nightshift, &hook, tries).await;
            let Some(due) = delivery["dueAt"].as_str() else { break delivery };
            let due: jiff::Timestamp = due.parse().unwrap();
            let wait = due.as_millisecond() - nightshift.clock.now().as_millis();
            // In steps, as time passes: a lane looks again now and then.
            for _ in 0..wait / 500_000 {
                nightshift.clock.advance(Duration::from_secs(500));
                tokio::task::yield_now().await;
            }
            nightshift.clock.advance(Duration::from_millis(u64::try_from(wait % 500_000).unwrap()));
        };
        assert_eq!((tries, &given_up["status"]), (11, &"failed".into()));
        assert!(nightshift.clock.now().since(began) <= DAY);
        let failed = nightshift.get(&format!("{HOOKS}/{}/deliveries?status=failed", id(&hook))).await;
        assert_eq!(failed["deliveries"][0]["id"], sent.as_str());
        STATUS.store(200, Ordering::SeqCst);
        let again = format!("{HOOKS}/{}/deliveries/{sent}/redeliver", id(&hook));
        nightshift.call(Call::new("POST", again).token(DEMO)).await.good();
        assert_eq!(tried(&nightshift, &hook, 12).await["status"], "delivered");
        assert!(web.asked().iter().all(|asked| asked.headers["webhook-id"] == sent));
    });
}

#[test]
fn a_receiver_that_never_answers_delays_nobody_else() {
    let silent = |_: &Asked| Answer::ok("").shape(Shape::Silent);
    with_receivers([silent, |_| Answer::ok("")], async |nightshift, [slow, fast]| {
        let stuck = make(&nightshift, &wish(&slow.url("/slow"))).await;
        let quick = make(&nightshift, &wish(&fast.url("/fast"))).await;
        for _ in 0..3 {
            send_test(&nightshift, &stuck).await;
        }
        until(async || (slow.asked().len() == 1).then_some(())).await;
        for _ in 0..5 {
            send_test(&nightshift, &quick).await;
        }
        until(async || (fast.asked().len() == 5).then_some(())).await;
        assert_eq!(slow.asked().len(), 1, "one at a time");
        let waiting = deliveries(&nightshift, &stuck).await;
        assert!(waiting.iter().all(|one| one["status"] == "pending" && one["tries"] == 0), "{waiting:?}");
    });
}

#[test]
fn calls_have_a_company_told_sixty_times_a_minute_and_no_oftener() {
    with_receivers([|_| Answer::ok("")], async |nightshift, [web]| {
        let hooks =
            [make(&nightshift, &wish(&web.url("/a"))).await, make(&nightshift, &wish(&web.url("/b"))).await];
        let sent = send_test(&nightshift, &hooks[0]).await;
        tried(&nightshift, &hooks[0], 1).await;
        let again = format!("{HOOKS}/{}/deliveries/{sent}/redeliver", id(&hooks[0]));
        for _ in 0..29 {
            nightshift.call(Call::new("POST", again.as_str()).token(DEMO)).await.good();
        }
        for _ in 0..30 {
            send_test(&nightshift, &hooks[1]).await;
        }
        nightshift.clock.advance(Duration::from_secs(20));
        for path in [again.clone(), format!("{HOOKS}/{}/test", id(&hooks[0]))] {
            let refused = nightshift.call(Call::new("POST", path).token(DEMO)).await;
            assert_eq!(refused.problem(429), "rate_limited");
            let header = |name: &str| refused.headers[name].to_str().unwrap().to_owned();
            assert_eq!(header("retry-after"), "40");
            assert_eq!(header("ratelimit-policy"), "\"messages\";q=60;w=60");
            assert_eq!(header("ratelimit"), "\"messages\";r=0;t=40");
        }
        // Another company has its own, and this one may again when it was told.
        let path = HOOKS.replace("demo", "acme");
        let others = nightshift.call(Call::json(&path, &wish(&web.url("/c"))).token(ACME)).await.made();
        let test = Call::new("POST", format!("{path}/{}/test", id(&others["webhook"]))).token(ACME);
        nightshift.call(test).await.good();
        nightshift.clock.advance(Duration::from_secs(40));
        send_test(&nightshift, &hooks[0]).await;
    });
}

#[test]
fn what_waits_for_its_place_goes_where_its_webhook_is_by_then() {
    let held = |_: &Asked| Answer::ok("").shape(Shape::Held);
    with_receivers([held, |_| Answer::ok("")], async |nightshift, [slow, web]| {
        // All places of the company are taken.
        for number in 0..4 {
            let hook = make(&nightshift, &wish(&slow.url(&format!("/{number}")))).await;
            send_test(&nightshift, &hook).await;
        }
        until(async || (slow.asked().len() == 4).then_some(())).await;
        let moved = make(&nightshift, &wish(&web.url("/moved"))).await;
        let disabled = make(&nightshift, &wish(&web.url("/disabled"))).await;
        let put = async |hook: &Value, path: &str, enabled: bool| {
            let body = json!({ "url": web.url(path), "events": ["batch.finished"], "enabled": enabled });
            let call = Call::json(format!("{HOOKS}/{}", id(hook)), &body);
            nightshift.call(call.method("PUT").token(DEMO)).await.good()
        };
        for hook in [&moved, &disabled] {
            send_test(&nightshift, hook).await;
        }
        // They would be on their way long before, were there a place.
        for _ in 0..200 {
            deliveries(&nightshift, &moved).await;
        }
        put(&moved, "/new", true).await;
        put(&disabled, "/disabled", false).await;
        slow.open();
        until(async || (web.count("/new") == 1).then_some(())).await;
        put(&disabled, "/enabled", true).await;
        until(async || (web.count("/enabled") == 1).then_some(())).await;
        assert_eq!((web.count("/moved"), web.count("/disabled")), (0, 0));
    });
}

#[test]
fn after_a_rotation_two_secrets_sign_for_a_day() {
    with_receivers([|_| Answer::ok("")], async |nightshift, [web]| {
        let hook = make(&nightshift, &wish(&web.url("/hook"))).await;
        let rotate = Call::new("POST", format!("{HOOKS}/{}/rotate", id(&hook))).token(DEMO);
        let rotated = nightshift.call(rotate).await.good()["webhook"].clone();
        let (old, new) = (hook["secret"].as_str().unwrap(), rotated["secret"].as_str().unwrap());
        assert_ne!(old, new);
        assert!(rotated["oldSecretSignsUntil"].is_string());
        send_test(&nightshift, &hook).await;
        tried(&nightshift, &hook, 1).await;
        nightshift.clock.advance(DAY);
        send_test(&nightshift, &hook).await;
        tried(&nightshift, &hook, 1).await;
        let asked = until(async || (web.asked().len() == 2).then(|| web.asked())).await;
        assert!(is_signed(&asked[0], old) && is_signed(&asked[0], new));
        assert!(!is_signed(&asked[1], old) && is_signed(&asked[1], new));
        assert!(!asked[1].headers["webhook-signature"].contains(' '));
        // Rotated twice, as after a reply that was lost: what receivers have goes on signing.
        let again = || Call::new("POST", format!("{HOOKS}/{}/rotate", id(&hook))).token(DEMO);
        nightshift.call(again()).await.good();
        let newest = nightshift.call(again()).await.good()["webhook"]["secret"].as_str().unwrap().to_owned();
        send_test(&nightshift, &hook).await;
        let asked = until(async || (web.asked().len() == 3).then(|| web.asked())).await;
        assert!(is_signed(&asked[2], new) && is_signed(&asked[2], &newest) && !is_signed(&asked[2], old));
        assert_eq!(asked[2].headers["webhook-signature"].split(' ').count(), 3);
        // However often: there is an end to what a message carries.
        for _ in 0..10 {
            nightshift.call(again()).await.good();
        }
        send_test(&nightshift, &hook).await;
        let asked = until(async || (web.asked().len() == 4).then(|| web.asked())).await;
        assert_eq!(asked[3].headers["webhook-signature"].split(' ').count(), 5);
        let mut forged = asked[1].clone();
        forged.body.push(b' ');
        assert!(!is_signed(&forged, new));
    });
}

#[test]
fn a_receiver_is_heard_when_it_wants_nothing_more_or_a_rest() {
    let tired = |_: &Asked| Answer::new(429, "").header("retry-after", "600");
    with_receivers([|_| Answer::new(410, ""), tired], async |nightshift, [gone, busy]| {
        let hook = make(&nightshift, &wish(&gone.url("/hook"))).await;
        send_test(&nightshift, &hook).await;
        assert_eq!(tried(&nightshift, &hook, 1).await["status"], "failed");
        let path = format!("{HOOKS}/{}", id(&hook));
        let shown = nightshift.get(&path).await["webhook"].clone();
        assert_eq!(
            (&shown["enabled"], shown["disabledBecause"].as_str().unwrap().contains("410")),
            (&false.into(), true)
        );
        let test = nightshift.call(Call::new("POST", format!("{path}/test")).token(DEMO)).await;
        assert_eq!(test.problem(409), "webhook_disabled");

        let hook = make(&nightshift, &wish(&busy.url("/hook"))).await;
        send_test(&nightshift, &hook).await;
        tried(&nightshift, &hook, 1).await;
        // The next one waits, too: it was the receiver that asked.
        send_test(&nightshift, &hook).await;
        nightshift.clock.advance(Duration::from_secs(599));
        tokio::task::yield_now().await;
        assert_eq!(busy.asked().len(), 1);
        nightshift.clock.advance(Duration::from_secs(1));
        until(async || (busy.asked().len() > 1).then_some(())).await;
    });
}

#[test]
fn what_waits_for_a_webhook_that_is_disabled_goes_once_it_is_enabled() {
    with_receivers([|_| Answer::ok("")], async |nightshift, [web]| {
        let hook = make(&nightshift, &wish(&web.url("/hook"))).await;
        let put = |enabled: bool| {
            let path = format!("{HOOKS}/{}", id(&hook));
            let body = json!({ "url": web.url("/other"), "events": ["batch.finished"], "enabled": enabled });
            let call = Call::json(path, &body);
            async { nightshift.call(call.method("PUT").token(DEMO)).await.good()["webhook"].clone() }
        };
        assert_eq!(put(false).await["enabled"], false);
        nightshift.request(1, "demo", |_| ()).await;
        let mut batch = nightshift.open_batch(1, "demo", 1).await;
        batch.send().await;
        assert_eq!(put(true).await["disabledBecause"], Value::Null);
        batch.finish(vec![good_line(1, None)], Vec::new()).await;
        let asked = until(async || web.asked().first().cloned()).await;
        assert_eq!((asked.path.as_str(), &said(&asked)["type"]), ("/other", &"batch.finished".into()));
    });
}

#[test]
fn nothing_is_sent_while_the_work_stands_still() {
    with_receivers([|_| Answer::ok("")], async |nightshift, [web]| {
        make(&nightshift, &wish(&web.url("/hook"))).await;
        nightshift.request(1, "demo", |_| ()).await;
        let mut batch = nightshift.open_batch(1, "demo", 1).await;
        batch.send().await;
        nightshift.shared.condition.raise(Hindrance::Disk, "a test");
        let slept = nightshift.clock.slept();
        batch.finish(vec![good_line(1, None)], Vec::new()).await;
        until(async || (nightshift.clock.slept() > slept).then_some(())).await;
        assert!(web.asked().is_empty());
        nightshift.shared.condition.clear(Hindrance::Disk);
        nightshift.clock.advance(Duration::from_secs(10));
        until(async || (web.asked().len() == 2).then_some(())).await;
    });
}

#[test]
fn a_secret_is_shown_once_and_to_whoever_made_it() {
    with_actors(async |nightshift| {
        let hook = make(&nightshift, &wish("https://example.com/hook?key=1")).await;
        assert!(hook["secret"].as_str().unwrap().starts_with("whsec_"));
        let path = format!("{HOOKS}/{}", id(&hook));
        for token in [DEMO, VIEWER] {
            for path in [path.as_str(), HOOKS] {
                let reply = nightshift.call(Call::get(path).token(token)).await.good();
                assert!(!reply.to_string().contains("whsec_"), "{reply}");
            }
        }
        // Others have neither it nor its deliveries, nor does it lie below another company.
        assert_eq!(nightshift.call(Call::get(&path).token(ACME)).await.problem(404), "unknown_company");
        let elsewhere = path.replace("demo", "acme");
        for path in [elsewhere.clone(), format!("{elsewhere}/deliveries")] {
            assert_eq!(nightshift.call(Call::get(path).token(ACME)).await.problem(404), "unknown_webhook");
        }
        nightshift.call(Call::new("DELETE", elsewhere).token(ACME)).await.problem(404);
        nightshift.call(Call::new("DELETE", path.as_str()).token(DEMO)).await.good();
        assert_eq!(nightshift.call(Call::get(&path)).await.problem(404), "unknown_webhook");
        assert_eq!(nightshift.get(HOOKS).await["webhooks"], json!([]));
    });
}

#[test]
fn what_a_webhook_cannot_be_is_said_with_its_reason() {
    with_actors(async |nightshift| {
        let url = "https://example.com/hook";
        let with_url = |url: &str| json!({ "url": url, "events": ["batch.finished"] });
        let long = "x".repeat(5000);
        let wrong = [
            ("bad_url", with_url("http://127.0.0.1/hook")),
            ("bad_url", with_url("http://169.254.169.254/latest/meta-data")),
            ("bad_url", with_url("http://[::1]/")),
            ("bad_url", with_url("https://user:secret@example.com/")),
            ("bad_url", with_url("https://example.com:8443/")),
            ("bad_url", with_url("ftp://example.com/")),
            ("bad_url", with_url("example.com")),
            ("bad_url", with_url(&format!("https://example.com/{long}"))),
            ("no_events", json!({ "url": url, "events": [] })),
            ("unknown_event", json!({ "url": url, "events": ["batch.completed"] })),
            ("unknown_event", json!({ "url": url, "events": ["webhook.test"] })),
            ("invalid_body", json!({ "url": url })),
            ("invalid_body", json!({ "url": url, "events": ["batch.finished"], "secret": "whsec_AAAA" })),
            (
                "description_too_long",
                json!({ "url": url, "events": ["batch.finished"], "description": long }),
            ),
        ];
        for (code, wish) in wrong {
            let reply = nightshift.call(Call::json(HOOKS, &wish).token(DEMO)).await;
            assert_eq!(reply.problem(422), code, "{}", reply.body);
            assert!(!reply.body.to_string().contains("secret@"), "a password is repeated");
        }
        assert_eq!(
            nightshift.call(Call::post(HOOKS, "application/json", "{")).await.problem(400),
            "invalid_json"
        );
        for number in 0..10 {
            make(&nightshift, &with_url(&format!("https://example.com/{number}"))).await;
        }
        assert_eq!(
            nightshift.call(Call::json(HOOKS, &with_url(url))).await.problem(409),
            "too_many_webhooks"
        );
        let list = nightshift.get(HOOKS).await;
        let first = id(&list["webhooks"][0]).to_owned();
        let of = |rest: &str| Call::get(format!("{HOOKS}/{first}/deliveries{rest}"));
        for (rest, code) in
            [("?status=done", "unknown_status"), ("?limit=0", "bad_limit"), ("?cursor=AAAA", "bad_cursor")]
        {
            assert_eq!(nightshift.call(of(rest)).await.problem(422), code);
        }
        for rest in
            ["/msg_7", "/018f0000-0000-7000-8000-000000000001", "/msg_018f0000-0000-7000-8000-000000000001"]
        {
            assert_eq!(nightshift.call(of(rest)).await.problem(404), "unknown_delivery");
        }
    });
}

/// The real program, killed while a message is under way.
#[test]
fn a_kill_between_outcome_and_delivery_loses_nothing_and_keeps_the_id() {
    static SILENT: AtomicUsize = AtomicUsize::new(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let web = runtime.block_on(Web::start(|_| {
        let shape = if SILENT.load(Ordering::SeqCst) == 1 { Shape::Silent } else { Shape::Whole };
        Answer::ok("").shape(shape)
    }));
    let folder = tempfile::tempdir().unwrap();
    let allow = format!("fetch.allow_hosts={}", web.host());
    let start = |folder: &Path| {
        let fast =
            ["creation.interval=1s", "creation.max_age=0s", "polling.interval=1s", "simulator.turnaround=1s"];
        let settings: Vec<&str> = fast.into_iter().chain([allow.as_str()]).collect();
        Server::start(folder, free_port(), &settings)
    };
    let mut server = start(folder.path());
    let wish = json!({ "url": web.url("/hook"), "events": ["request.finished"] });
    let hook = server.post(HOOKS, "application/json", wish.to_string())["webhook"].clone();
    let request = json!({ "id": "order-1", "body": {
        "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": "Name a river." }],
    } });
    server.post("/api/v1/companies/demo/requests", "application/json", request.to_string());
    server.wait_until_done(1, PATIENCE);
    let first = runtime.block_on(until(async || web.asked().first().cloned()));
    server.kill();
    SILENT.store(0, Ordering::SeqCst);
    let server = start(folder.path());
    let asked = runtime.block_on(until(async || (web.asked().len() > 1).then(|| web.asked())));
    assert_eq!(asked[1].headers["webhook-id"], first.headers["webhook-id"]);
    assert_eq!(asked[1].body, first.body);
    assert!(is_signed(&asked[1], hook["secret"].as_str().unwrap()));
    assert_eq!(said(&asked[1])["data"]["requests"][0]["clientId"], "order-1");
    let list = format!("{HOOKS}/{}/deliveries", id(&hook));
    let ended = runtime.block_on(until(async || {
        // In a thread of its own: the call brings its own runtime.
        let (url, path) = (server.url.clone(), list.clone());
        let listed = std::thread::spawn(move || crate::process::call(&url, "GET", &path, None));
        let list = listed.join().unwrap().ok()?.1;
        (list["deliveries"][0]["status"] == "delivered").then(|| list["deliveries"].clone())
    }));
    assert_eq!(
        (ended.as_array().unwrap().len(), ended[0]["id"].as_str()),
        (1, asked[1].headers.get("webhook-id").map(String::as_str))
    );
    assert!(!server.seen.join("\n").contains("/hook"), "an address stands in the log");
}
