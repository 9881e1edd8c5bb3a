//! What must be true of a lane at its end: nothing that was acknowledged is lost, and all of it was run once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Instant;

use serde_json::Value;

use super::lane::{CANARY, DONE_WITHIN, LOOK, Lane, known};
use super::program::Process;
use super::work::Work;
use crate::process::read;

/// So many requests go with one call.
const AT_ONCE: usize = 200;

/// Cuts ranges into pieces of one call each.
fn pieces(ranges: &[Range<usize>]) -> impl Iterator<Item = Range<usize>> {
    ranges
        .iter()
        .flat_map(|range| range.clone().step_by(AT_ONCE).map(|from| from..range.end.min(from + AT_ONCE)))
}

impl Lane {
    /// Sends everything once more, as a client does that got no answer, and waits until all is complete. What was
    /// acknowledged goes first: were any of it lost, it would be taken in anew here.
    pub(super) fn come_to_the_end(&mut self, process: &mut Process) {
        for range in pieces(&self.acknowledged) {
            let answer = self.post(process, range.start, range.end).unwrap();
            assert_eq!(
                answer["duplicate"],
                range.len(),
                "{}: some of {range:?} were acknowledged and are lost: {answer}",
                self.name
            );
        }
        let all = 0..self.sent;
        for range in pieces(std::slice::from_ref(&all)) {
            let answer = self.post(process, range.start, range.end).unwrap();
            assert_eq!(known(&answer), range.len(), "{}: {answer}", self.name);
        }
        self.acknowledged = vec![all];
        if self.work == Work::Office {
            self.send_sessions_again(process);
        }
        let end = Instant::now() + DONE_WITHIN;
        loop {
            let summary = process.summary();
            let mut missing = BTreeSet::new();
            if let Some([0, 0, _, 0]) = summary {
                missing = self.incomplete(process);
                if missing.is_empty() {
                    return;
                }
            }
            assert!(
                Instant::now() < end,
                "{}: {summary:?}, and {missing:?} are not complete\n{}",
                self.name,
                process.tail()
            );
            process.requeue_failed();
            if let Err(Some(ended)) = process.read_until("progress", LOOK) {
                panic!("{}: {ended}\n{}", self.name, process.tail());
            }
        }
    }

    /// A session that was acknowledged is there, unless it was to be erased; one whose erasure was acknowledged is
    /// never taken in again.
    fn send_sessions_again(&mut self, process: &Process) {
        let stays = |number: &usize| *number >= self.erase_asked;
        for range in self.acknowledged_sessions.iter().filter(|range| stays(&range.start)) {
            let answer = Self::post_sessions(process, range.clone()).unwrap();
            assert_eq!(
                answer["duplicate"],
                range.len(),
                "{}: some of the sessions {range:?} were acknowledged and are lost: {answer}",
                self.name
            );
        }
        for number in &self.erase_ordered {
            let answer = Self::post_sessions(process, *number..*number + 1).unwrap();
            let code = &answer["errors"][0]["code"];
            assert_eq!(code, "erased", "{}: the erasure of session {number} is lost: {answer}", self.name);
        }
        let answer = Self::post_sessions(process, 0..self.sessions).unwrap();
        assert_eq!(answer["ok"], true, "{}: {answer}", self.name);
        let stay = self.erase_asked..self.sessions;
        self.acknowledged_sessions = vec![stay];
    }

    /// Whoever is not complete, by the names that the client gave: one that is lost hides behind no other one.
    fn incomplete(&self, process: &Process) -> BTreeSet<String> {
        let complete = |path: &str, name: &str, field: &str, word: &str| -> Option<BTreeSet<String>> {
            let rows = process.lines(&format!("/api/v1/companies/demo/export/{path}"))?;
            let done = rows.iter().filter(|row| row[field] == word);
            Some(done.filter_map(|row| row[name].as_str().map(str::to_owned)).collect())
        };
        let requests = complete("requests", "clientId", "status", "processing_complete").unwrap_or_default();
        let sessions = complete("sessions", "externalId", "state", "analysed").unwrap_or_default();
        let named = |number: usize| match self.work {
            Work::Import => format!("chat-{number}"),
            _ => format!("{CANARY}-{number}"),
        };
        let mut all: BTreeSet<String> = (0..self.sent).map(|number| format!("r{number}")).collect();
        all.extend((self.erase_asked..self.sessions).map(named));
        all.retain(|name| !requests.contains(name) && !sessions.contains(name));
        all
    }

    /// Keeps our names of the requests that must have been run.
    pub(super) fn known_by_id(&mut self, process: &Process) {
        let rows = process.lines("/api/v1/companies/demo/export/requests").unwrap_or_default();
        self.to_be_run = rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
        let batches = process.batches().unwrap_or_default();
        let shadows = batches.iter().filter(|batch| batch["origin"] == "shadow");
        self.shadows = shadows.map(|batch| batch["openaiBatchId"].as_str().unwrap().to_owned()).collect();
        if self.shadows.is_empty() == (self.work == Work::Shadowed) {
            // Elsewhere one would be excused for a request that was run twice.
            self.wrong.push(format!("{}: {} shadows were seen", self.name, self.shadows.len()));
        }
    }

    /// The provider ran each of them once, and nothing besides but what is erased by now.
    pub(super) fn look_at_the_ledger(&mut self) {
        let ledger = read(&self.folder.path().join("provider/ledger.jsonl"));
        let mut runs: BTreeMap<String, u32> = BTreeMap::new();
        for line in ledger.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            // What a shadow did besides is booked apart.
            let shadow = line["batch"].as_str().is_some_and(|batch| self.shadows.contains(batch));
            if line["event"] == "line_run" && !shadow {
                *runs.entry(line["custom_id"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        let twice: Vec<_> = runs.iter().filter(|(_, runs)| **runs > 1).collect();
        let never: Vec<_> = self.to_be_run.iter().filter(|id| !runs.contains_key(*id)).collect();
        let (ran, all) = (runs.len(), self.sent + self.sessions + self.besides);
        if !twice.is_empty() || !never.is_empty() || !(self.to_be_run.len()..=all).contains(&ran) {
            self.wrong.push(format!(
                "{}: {ran} of {all} were run, more than once: {twice:?}, never: {never:?}",
                self.name
            ));
        }
    }
}
