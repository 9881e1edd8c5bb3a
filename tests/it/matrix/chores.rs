//! What clients and operators do in a lane: all that is sent, changed and erased while the program is ended.

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::hearer::TRANSCRIPT;
use super::lane::{CANARY, DONE_WITHIN, LOOK, Lane, known};
use super::program::Process;
use super::work::Work;
use crate::process::TOKEN;

const JSON: &str = "application/json";
const REQUESTS: &str = "/api/v1/companies/demo/requests";
const SESSIONS: &str = "/api/v1/companies/demo/sessions";
const SOURCES: &str = "/api/v1/companies/demo/sources";
const WEBHOOKS: &str = "/api/v1/companies/demo/webhooks";
const COMPANIES: &str = "/api/admin/legacy/companies";
/// So long a request waits that wants to be sent later.
const LATER: Duration = Duration::from_secs(1);

impl Lane {
    /// All that is finished has been told, at least once.
    pub(super) fn hear_all(&mut self, process: &mut Process) {
        let Some(receiver) = self.receiver.as_ref().filter(|_| self.work == Work::Told) else { return };
        let end = Instant::now() + DONE_WITHIN;
        while Instant::now() < end {
            let listed = process.call("GET", WEBHOOKS, "application/json", String::new());
            let listed = listed.and_then(|listed| listed["webhooks"].as_array().cloned()).unwrap_or_default();
            if !listed.is_empty() && listed.iter().all(|webhook| webhook["pendingDeliveries"] == 0) {
                break;
            }
            let _ = process.read_until("never said", LOOK);
        }
        let all: BTreeSet<_> = (0..self.sent).map(|number| format!("r{number}")).collect();
        let told = receiver.told.lock().unwrap();
        if *told != all {
            let missing: Vec<_> = all.difference(&told).collect();
            self.wrong.push(format!("{}: the receiver was not told of {missing:?}", self.name));
        }
    }

    pub(super) fn grow_export(&mut self) {
        let path = self.folder.path().join("sessions.csv");
        let mut export = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        let row = |id: &str, transcript: &str| {
            format!(
                "{id},02.11.2026 08:12:05,02.11.2026 08:13:05,192.0.2.1,NL,dutch,2,neutral,false,false,\
                 {transcript},3.333,245,0.000514,SCHEDULE_HOURS,When do I work?\n"
            )
        };
        if let Some(receiver) = &self.receiver {
            // There is no such transcript, and nothing ever comes of this session.
            let number = self.sessions;
            let row = row(&format!("gone-{number}"), &format!("http://{}/gone{number}", receiver.host));
            export.write_all(row.as_bytes()).unwrap();
        }
        for number in self.sessions..self.sessions + self.work.wave() {
            std::fs::write(self.folder.path().join(format!("t{number}.txt")), TRANSCRIPT).unwrap();
            let transcript = match &self.receiver {
                Some(receiver) if number % 2 == 1 => format!("http://{}/t{number}", receiver.host),
                Some(_) | None => format!("t{number}.txt"),
            };
            // In one write: the importer may be reading.
            export.write_all(row(&format!("chat-{number}"), &transcript).as_bytes()).unwrap();
        }
        self.sessions += self.work.wave();
    }

    fn lines(&self, from: usize, to: usize) -> String {
        (from..to)
            .map(|number| {
                let question = json!({ "role": "user", "content": format!("Question {number}?") });
                let body = json!({ "model": "gpt-4o-mini", "messages": [question] });
                let mut line = json!({ "id": format!("r{number}"), "body": body });
                if let Some(later) = self.later.get(&number) {
                    line["notBefore"] = json!(later);
                }
                format!("{line}\n")
            })
            .collect()
    }

    pub(super) fn post(&self, process: &Process, from: usize, to: usize) -> Option<Value> {
        process.call("POST", REQUESTS, "application/x-ndjson", self.lines(from, to))
    }

    pub(super) fn send_wave(&mut self, process: &Process) {
        if self.work == Work::Told {
            self.run_the_webhooks(process);
            // The last of them waits a moment by its own wish.
            let soon = nightshift::clock::Clock::now(&nightshift::clock::SystemClock::new());
            self.later.insert(self.sent + self.work.wave() - 1, soon.plus(LATER).to_string());
        }
        if self.work.is_old() {
            self.send_besides(process);
        }
        if self.work == Work::Import {
            Self::have_read(process);
        } else {
            let from = self.sent;
            self.sent += self.work.wave();
            // Whether it is answered or not: it is sent once more at the end.
            if self.post(process, from, self.sent).is_some_and(|answer| known(&answer) == self.sent - from) {
                self.acknowledged.push(from..self.sent);
            }
        }
        if self.work == Work::Office {
            self.run_the_office(process);
        }
    }

    /// An operator has the export read.
    pub(super) fn have_read(process: &Process) {
        let listed = process.call("GET", SOURCES, JSON, String::new());
        let Some(id) = listed.and_then(|listed| listed["sources"][0]["id"].as_str().map(str::to_owned))
        else {
            return;
        };
        process.call("POST", &format!("{SOURCES}/{id}/read"), JSON, String::new());
    }

    fn session(number: usize) -> Value {
        let text = format!("When do I work, {CANARY} {number}?");
        json!({ "externalId": format!("{CANARY}-{number}"), "messages": [{ "role": "user", "content": text }] })
    }

    /// New sessions come, those of the wave before are erased, and something of each kind is changed.
    fn run_the_office(&mut self, process: &Process) {
        let from = self.sessions;
        self.sessions += self.work.wave();
        if Self::post_sessions(process, from..self.sessions)
            .is_some_and(|answer| known(&answer) == self.sessions - from)
        {
            self.acknowledged_sessions.push(from..self.sessions);
        }
        self.erase(process, from.saturating_sub(self.work.wave())..from);
        let name = json!({ "name": format!("Demo {from}") });
        process.call("PUT", "/api/admin/legacy/companies/demo", JSON, name.to_string());
        let limit = json!({ "monthlyMicros": 1_000_000_000 });
        process.call("PUT", "/api/v1/companies/demo/budget", JSON, limit.to_string());
        self.change_keys(process);
        // Another company comes, and goes for good.
        let company = json!({ "id": format!("guest-{from}") });
        process.call("POST", COMPANIES, JSON, company.to_string());
        let sure = json!({ "confirm": format!("guest-{from}") });
        process.call("POST", &format!("{COMPANIES}/guest-{from}/erase"), JSON, sure.to_string());
    }

    /// A key is made, used, replaced by another one, and that one revoked.
    fn change_keys(&self, process: &Process) {
        let keys = "/api/v1/companies/demo/keys";
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let Some(made) = process.call("POST", keys, JSON, json!({ "label": "lane" }).to_string()) else {
            return;
        };
        process.call_as(&text(&made["key"]["key"]), "GET", REQUESTS, &[], String::new());
        let rotate = format!("{keys}/{}/rotate", text(&made["key"]["id"]));
        let Some(new) = process.call("POST", &rotate, JSON, json!({}).to_string()) else { return };
        process.call("DELETE", &format!("{keys}/{}", text(&new["key"]["id"])), JSON, String::new());
    }

    /// One webhook stays and is changed in every way; another one comes and goes.
    fn run_the_webhooks(&self, process: &Process) {
        let Some(receiver) = &self.receiver else { return };
        let wish = json!({ "url": format!("http://{}/", receiver.host), "events": ["request.finished"] });
        let call = |method: &str, path: &str| process.call(method, path, JSON, wish.to_string());
        let listed = || -> Option<Vec<String>> {
            let listed = process.call("GET", WEBHOOKS, JSON, String::new())?;
            let mut ids: Vec<_> = listed["webhooks"]
                .as_array()?
                .iter()
                .filter_map(|one| one["id"].as_str().map(str::to_owned))
                .collect();
            ids.sort();
            Some(ids)
        };
        if listed().is_some_and(|ids| ids.is_empty()) {
            call("POST", WEBHOOKS);
        }
        call("POST", WEBHOOKS);
        let Some((first, others)) = listed().and_then(|ids| Some((ids.first()?.clone(), ids[1..].to_vec())))
        else {
            return;
        };
        let first = format!("{WEBHOOKS}/{first}");
        call("PUT", &first);
        call("POST", &format!("{first}/rotate"));
        if let Some(tested) = call("POST", &format!("{first}/test")) {
            let delivery = tested["deliveryId"].as_str().unwrap_or_default();
            call("POST", &format!("{first}/deliveries/{delivery}/redeliver"));
        }
        for other in others {
            call("DELETE", &format!("{WEBHOOKS}/{other}"));
        }
    }

    /// A request of another company, under an `Idempotency-Key`; where it is removed by age, after an hour.
    fn send_besides(&mut self, process: &Process) {
        if self.work == Work::Aged {
            let keeps = json!({ "retention": { "complete": "1h" } });
            process.call("PUT", &format!("{COMPANIES}/old"), JSON, keeps.to_string());
        }
        self.besides += 1;
        let key = format!("key-{}", self.besides);
        let headers = [("content-type", "application/x-ndjson"), ("idempotency-key", key.as_str())];
        let body = json!({ "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": "And you?" }] });
        let line = format!("{}\n", json!({ "body": body }));
        process.call_as(TOKEN, "POST", "/api/v1/companies/old/requests", &headers, line);
    }

    pub(super) fn post_sessions(process: &Process, numbers: Range<usize>) -> Option<Value> {
        let sessions: Vec<_> = numbers.map(Self::session).collect();
        process.call("POST", SESSIONS, JSON, json!(sessions).to_string())
    }

    pub(super) fn erase(&mut self, process: &Process, sessions: Range<usize>) {
        self.erase_asked = self.erase_asked.max(sessions.end);
        for number in sessions {
            let path = format!("{SESSIONS}/{CANARY}-{number}/erase");
            if process.call("POST", &path, JSON, String::new()).is_some_and(|answer| answer["ok"] == true) {
                self.erase_ordered.insert(number);
            }
        }
    }
}
