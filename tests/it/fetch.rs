//! The guarded client over real sockets: where it goes, where it does not, and what bounds it.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use nightshift::fetch::{
    Body, Bytes, FetchError, Fetched, Fetcher, Get, Guard, Limits, Login, Names, NotAllowed, SystemNames,
    Url, Version,
};

use crate::web::{Answer, Shape, Web};

/// Names of a test's own; each answer of a name is used once, and the last one for ever.
#[derive(Default)]
struct Book(Mutex<HashMap<String, Vec<Vec<IpAddr>>>>);

impl Book {
    fn of(entries: &[(&str, &[&[&str]])]) -> Arc<Self> {
        let parse = |answer: &&[&str]| answer.iter().map(|ip| ip.parse().unwrap()).collect();
        let entries = entries
            .iter()
            .map(|(name, answers)| ((*name).to_owned(), answers.iter().map(parse).collect::<Vec<_>>()));
        Arc::new(Self(Mutex::new(entries.collect())))
    }
}

impl Names for Book {
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let mut book = self.0.lock().unwrap();
        let answer = match book.get_mut(host) {
            Some(answers) if answers.len() > 1 => Ok(answers.remove(0)),
            Some(answers) => Ok(answers[0].clone()),
            None => Err(io::Error::other("no such name")),
        };
        async move { answer }.boxed()
    }
}

fn fetcher(allowed: &[&str], names: Arc<dyn Names>) -> Fetcher {
    Fetcher::new(Guard::new(allowed).unwrap(), names).unwrap()
}

const LIMITS: Limits = Limits { timeout: Duration::from_secs(10), bytes: 100_000 };

async fn get_with(
    fetcher: &Fetcher,
    url: &str,
    login: Option<&Login>,
    have: &Version,
    limits: Limits,
) -> Result<Fetched, FetchError> {
    fetcher.get(Get { url: &Url::parse(url).unwrap(), login, have, limits }).await
}

async fn open(fetcher: &Fetcher, url: &str, limits: Limits) -> Result<Box<Body>, FetchError> {
    match get_with(fetcher, url, None, &Version::default(), limits).await? {
        Fetched::Body(body) => Ok(body),
        Fetched::NotModified => panic!("not modified"),
    }
}

async fn text(fetcher: &Fetcher, url: &str) -> Result<String, FetchError> {
    Ok(String::from_utf8(open(fetcher, url, LIMITS).await?.bytes().await?).unwrap())
}

fn refusal(result: Result<String, FetchError>) -> NotAllowed {
    match result {
        Err(FetchError::NotAllowed(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn login() -> Login {
    Login { username: "ann".to_owned(), password: "s3cret".to_owned().into() }
}

#[tokio::test]
async fn it_reaches_a_named_host_only_on_its_named_port() {
    let web = Web::start(|_| Answer::ok("hello")).await;
    let allowed = fetcher(&[&web.host()], Arc::new(SystemNames));
    assert_eq!(text(&allowed, &web.url("/a")).await.unwrap(), "hello");
    let asked = &web.asked()[0];
    assert_eq!(asked.headers["accept-encoding"], "identity");
    assert!(!asked.headers.contains_key("authorization"));

    let elsewhere = fetcher(&["127.0.0.1:1"], Arc::new(SystemNames));
    let loopback = NotAllowed::NotPublic("127.0.0.1".parse().unwrap());
    assert_eq!(refusal(text(&elsewhere, &web.url("/a")).await), loopback);
    assert_eq!(web.asked().len(), 1);
}

#[tokio::test]
async fn a_name_is_as_good_as_every_address_that_it_has() {
    let web = Web::start(|_| Answer::ok("inside")).await;
    let port = web.address.port();
    let names = Book::of(&[
        ("inside.example", &[&["127.0.0.1"]]),
        ("mixed.example", &[&["93.184.216.34", "10.0.0.1"]]),
        ("mapped.example", &[&["::ffff:127.0.0.1"]]),
    ]);
    let guarded = fetcher(&[&format!("named.example:{port}")], names.clone());
    for (name, ip) in [("inside", "127.0.0.1"), ("mixed", "10.0.0.1"), ("mapped", "::ffff:127.0.0.1")] {
        let why = refusal(text(&guarded, &format!("http://{name}.example/")).await);
        assert_eq!(why, NotAllowed::NotPublic(ip.parse().unwrap()), "{name}");
    }
    // No port but the usual ones, or our server would have been found at the name.
    let why = refusal(text(&guarded, &format!("http://inside.example:{port}/")).await);
    assert_eq!(why, NotAllowed::Port(port));
    // The operator vouches for it.
    let named = fetcher(&[&format!("inside.example:{port}")], names);
    assert_eq!(text(&named, &format!("http://inside.example:{port}/")).await.unwrap(), "inside");
    assert!(matches!(text(&named, "http://nobody.example/").await, Err(FetchError::Connect(_))));
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_the_second_time_is_checked_the_second_time() {
    // A net that was given back: public as far as we know, and nobody is there.
    let names = Book::of(&[("rebound.example", &[&["3ffe::1"], &["127.0.0.1"]])]);
    let guarded = fetcher(&[], names);
    let first = text(&guarded, "http://rebound.example/").await.unwrap_err();
    assert!(!matches!(first, FetchError::NotAllowed(_)), "{first:?}");
    let second = refusal(text(&guarded, "http://rebound.example/").await);
    assert_eq!(second, NotAllowed::NotPublic("127.0.0.1".parse().unwrap()));
}

#[tokio::test]
async fn a_redirect_is_checked_like_the_first_address() {
    let web = Web::start(|asked| {
        let to = |place: &str| Answer::new(302, "").header("location", place);
        match asked.path.as_str() {
            "/inside" => to("http://127.0.0.1:9/secret"),
            "/cloud" => to("http://169.254.169.254/latest"),
            "/file" => to("file:///etc/passwd"),
            "/user" => to("http://a:b@example.com/"),
            "/near" => to("far"),
            "/far" => Answer::ok("there"),
            "/nowhere" => Answer::new(302, ""),
            _ => to("/loop"),
        }
    })
    .await;
    let guarded = fetcher(&[&web.host()], Arc::new(SystemNames));
    let why = async |path: &str| refusal(text(&guarded, &web.url(path)).await);
    assert_eq!(why("/inside").await, NotAllowed::NotPublic("127.0.0.1".parse().unwrap()));
    assert_eq!(why("/cloud").await, NotAllowed::NotPublic("169.254.169.254".parse().unwrap()));
    assert_eq!(why("/file").await, NotAllowed::Scheme);
    assert_eq!(why("/user").await, NotAllowed::User);
    assert_eq!(why("/nowhere").await, NotAllowed::Nowhere);
    assert_eq!(why("/loop").await, NotAllowed::Redirects);
    assert_eq!(web.count("/loop"), 6);
    assert_eq!(text(&guarded, &web.url("/near")).await.unwrap(), "there");
}

#[tokio::test]
async fn a_password_goes_to_its_own_origin_only() {
    let other = Web::start(|_| Answer::ok("other")).await;
    let elsewhere = other.url("/b");
    let web = Web::start(move |asked| match asked.path.as_str() {
        "/away" => Answer::new(307, "").header("location", &elsewhere),
        "/a" => Answer::new(301, "").header("location", "/here"),
        _ => Answer::ok("here"),
    })
    .await;
    let guarded = fetcher(&[&web.host(), &other.host()], Arc::new(SystemNames));
    let login = login();
    let none = Version::default();
    assert!(!format!("{login:?}").contains("s3cret"));
    get_with(&guarded, &web.url("/a"), Some(&login), &none, LIMITS).await.unwrap();
    get_with(&guarded, &web.url("/away"), Some(&login), &none, LIMITS).await.unwrap();
    assert!(web.asked().iter().all(|asked| asked.headers["authorization"] == "Basic YW5uOnMzY3JldA=="));
    assert_eq!(web.asked().len(), 3);
    assert!(!other.asked()[0].headers.contains_key("authorization"));
}

#[tokio::test]
async fn what_has_not_changed_does_not_come_again() {
    let web = Web::start(|asked| match asked.headers.get("if-none-match").map(String::as_str) {
        Some("\"1\"") => Answer::new(304, ""),
        _ => {
            Answer::ok("one").header("etag", "\"1\"").header("last-modified", "Fri, 27 Nov 2026 00:00:00 GMT")
        }
    })
    .await;
    let guarded = fetcher(&[&web.host()], Arc::new(SystemNames));
    let body = open(&guarded, &web.url("/"), LIMITS).await.unwrap();
    let have = body.version.clone();
    assert_eq!(have.last_modified.as_deref(), Some("Fri, 27 Nov 2026 00:00:00 GMT"));
    let again = get_with(&guarded, &web.url("/"), None, &have, LIMITS).await.unwrap();
    assert!(matches!(again, Fetched::NotModified));
    assert_eq!(web.asked()[1].headers["if-modified-since"], "Fri, 27 Nov 2026 00:00:00 GMT");
}

#[tokio::test]
async fn sizes_and_times_are_bounded() {
    let web = Web::start(|asked| match asked.path.as_str() {
        "/length" => Answer::ok(vec![b'x'; 3000]),
        "/chunked" => Answer::ok(vec![b'x'; 3000]).shape(Shape::Chunked),
        "/drip" => Answer::ok("").shape(Shape::Drip),
        "/silent" => Answer::ok("").shape(Shape::Silent),
        "/half" => Answer::ok(vec![b'x'; 1000]).shape(Shape::Half),
        "/gzip" => Answer::ok(vec![b'x'; 10]).header("content-encoding", "gzip"),
        "/later" => Answer::new(503, "").header("retry-after", "120"),
        "/busy" => Answer::new(429, "")
            .header("date", "Fri, 27 Nov 2026 00:00:00 GMT")
            .header("retry-after", "Fri, 27 Nov 2026 00:01:00 GMT"),
        "/304" => Answer::new(304, ""),
        _ => Answer::new(404, "no such thing"),
    })
    .await;
    let guarded = fetcher(&[&web.host()], Arc::new(SystemNames));
    let small = Limits { bytes: 2999, ..LIMITS };
    let short = Limits { timeout: Duration::from_millis(300), ..LIMITS };
    let fetch =
        async |path: &str, limits: Limits| open(&guarded, &web.url(path), limits).await?.bytes().await;
    for path in ["/length", "/chunked"] {
        let error = fetch(path, small).await.unwrap_err();
        assert!(matches!(error, FetchError::TooLarge { limit: 2999 }) && error.is_permanent(), "{path}");
        assert_eq!(fetch(path, LIMITS).await.unwrap().len(), 3000, "{path}");
    }
    for path in ["/drip", "/silent"] {
        let error = fetch(path, short).await.unwrap_err();
        assert!(matches!(error, FetchError::TooSlow) && !error.is_permanent(), "{path} {error:?}");
    }
    let error = fetch("/half", LIMITS).await.unwrap_err();
    assert!(matches!(error, FetchError::Broken(_)) && !error.is_permanent(), "{error:?}");
    assert!(matches!(fetch("/gzip", LIMITS).await, Err(FetchError::Encoded)));
    let error = fetch("/later", LIMITS).await.unwrap_err();
    assert!(error.retry_after() == Some(Duration::from_secs(120)) && !error.is_permanent());
    let error = fetch("/busy", LIMITS).await.unwrap_err();
    assert!(error.retry_after() == Some(Duration::from_secs(60)) && !error.is_permanent());
    let error = fetch("/none?token=abc", LIMITS).await.unwrap_err();
    assert!(matches!(error, FetchError::Status { status: 404, .. }) && error.is_permanent());
    // Nothing was offered that could be unchanged.
    assert!(matches!(fetch("/304", LIMITS).await, Err(FetchError::Status { status: 304, .. })));
    let gone = format!("http://{}/x?token=abc", web.host());
    drop(web);
    let closed = fetcher(&["127.0.0.1:1"], Arc::new(SystemNames));
    let error = text(&closed, "http://127.0.0.1:1/x?token=abc").await.unwrap_err();
    assert!(matches!(error, FetchError::Connect(_)) && !error.is_permanent(), "{error:?} {gone}");
    assert!(!error.to_string().contains("abc") && !error.to_string().contains("/x"), "{error}");
}

#[tokio::test]
async fn a_post_is_sent_once_and_its_reply_is_cut() {
    let web = Web::start(|asked| match asked.path.as_str() {
        "/long" => Answer::ok(vec![b'x'; 10_000]),
        "/drip" => Answer::new(202, "").shape(Shape::Drip),
        "/moved" => Answer::new(307, "").header("location", "/long"),
        _ => Answer::new(503, "later").header("retry-after", "7"),
    })
    .await;
    let guarded = fetcher(&[&web.host()], Arc::new(SystemNames));
    let post = async |path: &str, timeout: u64| {
        let url = Url::parse(&web.url(path)).unwrap();
        let headers = [("content-type", "application/json"), ("webhook-id", "1")];
        guarded.post(&url, &headers, Bytes::from_static(b"{}"), Duration::from_millis(timeout)).await
    };
    let reply = post("/long", 10_000).await.unwrap();
    assert!(reply.is_success() && reply.body.len() == 4096);
    assert_eq!((web.asked()[0].method.as_str(), web.asked()[0].body.as_slice()), ("POST", b"{}".as_slice()));
    assert_eq!(web.asked()[0].headers["webhook-id"], "1");
    let reply = post("/moved", 10_000).await.unwrap();
    assert!(!reply.is_success() && reply.status == 307 && web.count("/long") == 1);
    let reply = post("/else", 10_000).await.unwrap();
    assert_eq!((reply.status, reply.retry_after), (503, Some(Duration::from_secs(7))));
    // The status came in time, and it is the answer.
    assert!(post("/drip", 3000).await.unwrap().is_success());
    let url = Url::parse("http://10.0.0.1/").unwrap();
    let refused = guarded.post(&url, &[], Bytes::new(), Duration::from_secs(1)).await;
    assert!(matches!(refused, Err(FetchError::NotAllowed(_))));
    let url = Url::parse(&web.url("/")).unwrap();
    let bad = guarded.post(&url, &[("a", "b\r\nc: d")], Bytes::new(), Duration::from_secs(1)).await;
    assert!(matches!(bad, Err(FetchError::Header(_))));
}
