//! The invariants: what a step touched after each step, everything now and then and at the end.

use std::collections::BTreeMap;

use nightshift::domain::id::RequestId;
use nightshift::domain::request::RequestStatus;
use nightshift::provider::jsonl;
use serde_json::{Value, json};

use super::sim::{Checked, Run, Sim, text};

/// What a planned refusal for a line says.
const NAMED: &str = "missing_required_parameter";

pub fn custom_ids(lines: &[u8]) -> impl Iterator<Item = RequestId> {
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.filter_map(|line| jsonl::custom_id_in(line)?.parse().ok())
}

/// What the provider says of a request, in its own words: the later word counts where it says several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reported {
    /// There is no line, or none that can be read.
    Nothing,
    /// It may go well another time.
    Again,
    /// An answer, or a failure that stays one.
    Final,
}

/// Read without the program's own reader, by the contract: 408, 409, 429, 5xx, no status at all and what has no
/// answer may be tried again. A broken line that names its request was an answer, and paid for.
fn reported_in(line: &[u8]) -> Option<(RequestId, Reported)> {
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    let Ok(line) = serde_json::from_slice::<Value>(line) else {
        return Some((jsonl::custom_id_in(line)?.parse().ok()?, Reported::Final));
    };
    let id = line["custom_id"].as_str()?.parse().ok()?;
    let said = match line["response"]["status_code"].as_u64() {
        None | Some(0 | 408 | 409 | 429 | 500..=599) => Reported::Again,
        Some(_) => Reported::Final,
    };
    Some((id, said))
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

    /// I2, by the provider's ledger: a request is run once, and once more for each run that the provider itself
    /// reported as one to be tried again.
    fn look_at_results(&mut self, batch: &str) -> Checked {
        let millis = self.millis();
        let files = self.remote.results(batch);
        let mut reported: BTreeMap<RequestId, Reported> = BTreeMap::new();
        for file in files.iter().flatten() {
            for line in self.remote.content(file, millis).unwrap_or_default().split(|byte| *byte == b'\n') {
                if let Some((id, said)) = reported_in(line) {
                    let all = reported.entry(id).or_insert(said);
                    *all = (*all).max(said);
                }
            }
        }
        for id in self.remote.runs_of(batch) {
            let id: RequestId = id.parse().map_err(text)?;
            let said = reported.get(&id).copied().unwrap_or(Reported::Nothing);
            let run = Run { batch: batch.to_owned(), explained: said < Reported::Final };
            self.runs.entry(id).or_default().push(run);
            self.check_paid(id)?;
        }
        if self.dice.chance(self.rates.odd_lines) {
            let [output, error] = files;
            self.odd_lines(batch, output, error);
        }
        Ok(())
    }

    /// Whether the last run of a request was due.
    fn check_paid(&self, id: RequestId) -> Checked {
        // What came after a backup is forgotten with it; nobody here can send that again.
        let (Some(runs), true) = (self.runs.get(&id), self.accepted.contains(&id)) else { return Ok(()) };
        let before = &runs[..runs.len() - 1];
        let is_explained = |run: &&Run| {
            run.explained
                || self.denied.contains(&run.batch)
                || self.cut_off.contains(&(run.batch.clone(), id))
        };
        let explained = before.iter().filter(is_explained).count();
        // A pair is the provider's fault, and allows for one run more, whichever of the two that is.
        let ran_in = |batch: &String| runs.iter().any(|run| run.batch == *batch);
        let pairs = self.twins.iter().filter(|pair| pair.iter().any(ran_in)).count();
        if runs.len() > 1 + explained + pairs {
            let batches: Vec<_> = runs.iter().map(|run| (&run.batch, run.explained)).collect();
            return Err(format!("invariant 2: {id} was run again without a reason: {batches:?}"));
        }
        Ok(())
    }

    /// Lines that nobody asked for: of another company's request, and a failure beside a success.
    fn odd_lines(&mut self, batch: &str, output: Option<String>, error: Option<String>) {
        let accepted: Vec<_> = self.accepted.iter().copied().collect();
        let (Some(output), false) = (output, accepted.is_empty()) else { return };
        let foreign = accepted[self.dice.below(accepted.len())];
        self.contradicted.insert((batch.to_owned(), foreign));
        let failed =
            json!({"custom_id": foreign.to_string(), "response": null, "error": {"code": "server_error"}});
        self.remote.edit(&output, |bytes| {
            let mut lines = failed.to_string().into_bytes();
            lines.extend_from_slice(b"\n\nno json\n");
            bytes.splice(0..0, lines);
        });
        // Where the success is not to be had, the failure is all that anybody can know.
        let shown = self.remote.batch(batch, self.millis());
        let hidden = shown
            .is_some_and(|shown| shown["output_file_id"].is_null() && shown["error_file_id"].is_string());
        if let Some(error) = error.filter(|_| !hidden) {
            let content = self.remote.content(&output, self.millis()).unwrap_or_default();
            let first = custom_ids(content).last().unwrap_or(foreign);
            self.contradicted.insert((batch.to_owned(), first));
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
            let failed = request.failure.filter(|_| request.status == RequestStatus::ProcessingFailed);
            return if failed.is_some_and(|failure| failure.code == NAMED) && !self.is_named(id) {
                Err(format!("{id} failed for a line that the provider did not name"))
            } else {
                Ok(())
            };
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

    /// Whether the provider refused a batch for the line of this request.
    fn is_named(&mut self, id: RequestId) -> bool {
        let millis = self.millis();
        let batches: Vec<_> = self.first_lines.iter().filter(|(_, first)| **first == id).collect();
        batches.into_iter().any(|(batch, _)| {
            let batch = self.remote.batch(batch, millis);
            batch.is_some_and(|batch| batch["errors"]["data"][0]["code"] == NAMED)
        })
    }

    /// No request is in two batches that run.
    fn check_running(&mut self) -> Checked {
        let millis = self.millis();
        let mut running: BTreeMap<RequestId, Vec<&str>> = BTreeMap::new();
        for (batch, input) in self.remote.running(millis) {
            if self.denied.contains(batch) {
                continue;
            }
            for id in custom_ids(input).filter(|id| self.accepted.contains(id)) {
                running.entry(id).or_default().push(batch);
            }
        }
        for (id, batches) in running.into_iter().filter(|(_, batches)| batches.len() > 1) {
            let runs = |batch: &String| batches.contains(&batch.as_str());
            let pairs = self.twins.iter().filter(|pair| pair.iter().any(runs)).count();
            if batches.len() > 1 + pairs {
                return Err(format!("invariant 2: {id} is in several that run: {batches:?}"));
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
