//! The invariants: what a step touched after each step, everything now and then and at the end.

use std::collections::{BTreeMap, BTreeSet};

use nightshift::domain::id::RequestId;
use nightshift::domain::request::RequestStatus;
use nightshift::provider::jsonl::{self, Decoded};
use serde_json::json;

use super::sim::{Checked, Sim, text};

fn custom_ids(lines: &[u8]) -> impl Iterator<Item = RequestId> {
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.filter_map(|line| jsonl::custom_id_in(line)?.parse().ok())
}

impl Sim {
    /// Moves the provider on, and looks at what it has run.
    pub fn tick(&mut self) -> Checked {
        let millis = self.millis();
        self.remote.tick(millis).map_err(text)?;
        for batch in self.remote.take_ended() {
            self.note(format_args!("{batch} has run"));
            self.look_at_results(&batch)?;
        }
        Ok(())
    }

    /// I2: whoever got a good answer is not run again.
    fn look_at_results(&mut self, batch: &str) -> Checked {
        let millis = self.millis();
        let [output, error] = self.remote.results(batch);
        let content = output.as_ref().and_then(|file| self.remote.content(file, millis)).unwrap_or_default();
        let mut good = BTreeSet::new();
        for line in content.split(|byte| *byte == b'\n') {
            if let Decoded::Line { custom_id, outcome, .. } = jsonl::decode_line(line)
                && outcome.result.is_ok()
                && let Ok(id) = custom_id.parse::<RequestId>()
            {
                good.insert(id);
            }
        }
        for id in good {
            let before = self.good.entry(id).or_default();
            before.push(batch.to_owned());
            let known = self.accepted.contains(&id);
            let counted = before.iter().filter(|batch| !self.excused.contains(*batch)).count();
            let again = self.bought_again.get(&id).copied().unwrap_or(0);
            if known && counted > 1 + again {
                return Err(format!("invariant 2: {id} was run again after a good answer: {before:?}"));
            }
        }
        if self.dice.chance(self.rates.odd_lines) {
            self.odd_lines(output, error);
        }
        Ok(())
    }

    /// Lines that nobody asked for: of another company's request, and a failure beside a success.
    fn odd_lines(&mut self, output: Option<String>, error: Option<String>) {
        let accepted: Vec<_> = self.accepted.iter().copied().collect();
        let (Some(output), false) = (output, accepted.is_empty()) else { return };
        let foreign = accepted[self.dice.below(accepted.len())];
        let failed =
            json!({"custom_id": foreign.to_string(), "response": null, "error": {"code": "server_error"}});
        self.remote.edit(&output, |bytes| {
            let mut lines = failed.to_string().into_bytes();
            lines.extend_from_slice(b"\n\nno json\n");
            bytes.splice(0..0, lines);
        });
        if let Some(error) = error {
            let content = self.remote.content(&output, self.millis()).unwrap_or_default();
            let first = custom_ids(content).last().unwrap_or(foreign);
            let failed =
                json!({"custom_id": first.to_string(), "response": {"status_code": 500, "body": {}}});
            self.remote.edit(&error, |bytes| bytes.extend(format!("{failed}\n").into_bytes()));
        }
    }

    /// What the last step touched.
    pub fn check_step(&mut self) -> Checked {
        let reader = self.store.reader();
        // I1, by the counters, which the full check compares with the entries.
        let there: u64 = reader.summary(None).map_err(text)?.iter().sum();
        if there != self.accepted.len() as u64 {
            return Err(format!("invariant 1: {there} of {} requests are there", self.accepted.len()));
        }
        for id in std::mem::take(&mut self.touched) {
            let Some(batch) = reader.batch(id).map_err(text)? else { continue };
            let counts = batch.counts;
            let ended = counts.completed + counts.failed + counts.returned + counts.erased;
            if ended > counts.members || (!batch.state.is_live() && ended != counts.members) {
                return Err(format!("invariant 4: batch {id} does not add up: {counts:?}"));
            }
            for member in reader.members(batch.members_of(), None, 1000).map_err(text)? {
                self.check_request(member)?;
            }
        }
        self.check_running()
    }

    fn check_request(&mut self, id: RequestId) -> Checked {
        let reader = self.store.reader();
        let request =
            reader.request(id).map_err(text)?.ok_or_else(|| format!("invariant 1: {id} is gone"))?;
        if request.status != RequestStatus::ProcessingComplete {
            if self.results.contains_key(&id) {
                return Err(format!("invariant 3: the result of {id} was taken back"));
            }
            return Ok(());
        }
        let result =
            reader.result(id).map_err(text)?.ok_or_else(|| format!("invariant 3: {id} has no result"))?;
        if !String::from_utf8_lossy(&result).contains(&id.to_string()) {
            return Err(format!("invariant 5: {id} has the result of another request"));
        }
        if !self.remote.ledger().contains_key(&id.to_string()) {
            return Err(format!("invariant 5: {id} is complete and never ran"));
        }
        match self.results.insert(id, result.clone()) {
            Some(before) if before != result => {
                Err(format!("invariant 3: the result of {id} was overwritten"))
            }
            _ => Ok(()),
        }
    }

    /// No request is in two batches that run.
    fn check_running(&mut self) -> Checked {
        let millis = self.millis();
        let mut running: BTreeMap<RequestId, &str> = BTreeMap::new();
        for (batch, input) in self.remote.running(millis) {
            if self.excused.contains(batch) {
                continue;
            }
            for id in custom_ids(input).filter(|id| self.accepted.contains(id)) {
                if let Some(other) = running.insert(id, batch) {
                    return Err(format!("invariant 2: {id} is in {other} and {batch}, which both run"));
                }
            }
        }
        Ok(())
    }

    /// Everything.
    pub fn check_all(&mut self) -> Checked {
        let report = self.store.reader().verify().map_err(text)?;
        if let Some(violation) = report.violations.first() {
            return Err(format!("invariant {} of the store: {}", violation.invariant, violation.what));
        }
        if report.requests != self.accepted.len() as u64 {
            return Err(format!("invariant 1: {} of {} requests", report.requests, self.accepted.len()));
        }
        for id in self.accepted.clone() {
            self.check_request(id)?;
        }
        Ok(())
    }
}
