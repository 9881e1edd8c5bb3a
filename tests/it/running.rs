//! The whole program within the test, with its store on the disk, its routes on a socket, and a clock that the test moves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nightshift::app::{self, Application, Surroundings};
use nightshift::clock::{Clock, ManualClock};
use nightshift::config::Settings;
use nightshift::domain::id::Timestamp;
use serde_json::Value;

use crate::process::{PATIENCE, TOKEN};

/// 2026-11-24T08:00:00Z
pub const START: i64 = 1_795_507_200_000;

/// The program, and its clock.
pub struct Running {
    pub application: Application,
    pub clock: Arc<ManualClock>,
    http: reqwest::Client,
}

impl Running {
    /// Within an actix system.
    pub async fn start(settings: &Settings) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(START)));
        let surroundings =
            Surroundings { clock: clock.clone(), around_provider: Box::new(|inner| inner), chunk: 250 };
        let application = app::start(settings, surroundings).await.unwrap();
        let http = nightshift::tls::client_builder().no_proxy().build().unwrap();
        Self { application, clock, http }
    }

    pub async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let url = format!("http://{}{path}", self.application.address());
        let mut request = self.http.request(method.parse().unwrap(), url).bearer_auth(TOKEN);
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap().json().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, None).await
    }

    /// Asks until it is as wanted; the clock stands meanwhile, and what the network does takes its own time.
    pub async fn until(&self, what: &str, wanted: impl AsyncFn(&Self) -> bool) {
        crate::harness::until(what, async || wanted(self).await.then_some(())).await;
    }

    /// The same while time goes on: what is seen in the store may not have come back to who waits next.
    pub async fn later(&self, what: &str, wanted: impl AsyncFn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !wanted(self).await {
            assert!(Instant::now() < end, "it does not come to this: {what}");
            self.advance(Duration::from_secs(1)).await;
        }
    }

    /// In steps, so that what sleeps on it wakes and sleeps again.
    pub async fn advance(&self, by: Duration) {
        let end = self.clock.now().plus(by);
        while self.clock.now() < end {
            let left = u64::try_from(end.as_millis() - self.clock.now().as_millis()).unwrap();
            let next = self.clock.until_next().unwrap_or(by);
            self.clock.advance(next.min(Duration::from_millis(left)).max(Duration::from_millis(1)));
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
    }
}
