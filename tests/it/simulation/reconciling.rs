//! What the reconciler does, with the same store functions: it compares the provider's list with the store.

use std::collections::HashMap;
use std::time::Duration;

use nightshift::actors::observation;
use nightshift::domain::batch::{
    Batch, BatchState, Cancel, InputFile, Intent, Origin, ProviderIdentity, Running, Then,
};
use nightshift::domain::effect::Effect;
use nightshift::domain::event::{Event, ObservedStatus};
use nightshift::domain::id::{BatchId, FileId, Nonce, RequestId, Timestamp};
use nightshift::domain::request::{Failure, FailureClass};
use nightshift::domain::step::{Change, Step};
use nightshift::provider::jsonl;
use nightshift::provider::wire::BatchObject;
use nightshift::store::{NotedIntent, WATCHED_FOR};

use super::acting::{mark, read};
use super::sim::{Broken, Checked, Sim, now, text};

enum Finding {
    Nothing,
    Shadow { of: BatchId, intent: Intent },
    Unknown { unsent: Option<BatchId>, intent: Intent },
}

impl Sim {
    /// One look. Only one that comes through lets things be sent after a start.
    pub fn reconcile(&mut self) -> Checked {
        if self.dice.chance(self.rates.later) {
            return Ok(());
        }
        let since = Timestamp::from_secs(0);
        let noted = self.store.reader().intents_since(since, 10_000).map_err(text)?;
        let noted: HashMap<Nonce, NotedIntent> =
            noted.into_iter().map(|noted| (noted.intent.nonce, noted)).collect();
        let mut through = true;
        // The newest first; all are judged before anything is done.
        let mut found = Vec::new();
        for batch in self.listed().iter().map(read) {
            let finding = self.finding(&batch, &noted)?;
            found.push((batch, finding));
        }
        for (batch, finding) in found {
            match finding {
                Finding::Nothing => {}
                Finding::Shadow { of, intent } => self.open_shadow(&batch, of, intent)?,
                Finding::Unknown { unsent, intent } => {
                    through = through && self.take_over(&batch, unsent, intent)?
                }
            }
        }
        if through {
            self.compared = true;
            let at = self.at().minus(Duration::from_secs(3600));
            now(self.store.note_reconciled(at)).map_err(text)?;
        }
        Ok(())
    }

    fn finding(&self, batch: &BatchObject, noted: &HashMap<Nonce, NotedIntent>) -> Result<Finding, String> {
        let reader = self.store.reader();
        if reader.batch_of_provider(&batch.id).map_err(text)?.is_some() {
            return Ok(Finding::Nothing);
        }
        let nonce: Nonce = mark(batch, "ns_nonce").ok_or("no nonce")?.parse().map_err(text)?;
        let of: BatchId = mark(batch, "ns_batch").ok_or("no batch")?.parse().map_err(text)?;
        let at = batch.created_at.ok_or("no time")?;
        let input = batch.input_file_id.clone().unwrap_or_else(|| FileId::new("unknown"));
        let intent = Intent { nonce, input: InputFile { id: input, upload: 0, created_at: at }, at };
        let Some(here) = reader.batch(of).map_err(text)? else {
            return Ok(Finding::Unknown { unsent: None, intent });
        };
        let is_looked_for = !matches!(here.state, BatchState::Observing { .. })
            && here.state.intent().is_some_and(|now| now.nonce == nonce);
        if here.provider_batch.as_ref() == Some(&batch.id) || is_looked_for {
            return Ok(Finding::Nothing);
        }
        let is_noted = noted.contains_key(&nonce) || here.superseded.iter().any(|old| old.nonce == nonce);
        let is_watched = at > self.at().minus(WATCHED_FOR).plus(Duration::from_secs(3600));
        let is_sent_from_here = self.broken == Broken::TakesStrangersForShadows && !here.state.is_unsent();
        if here.origin == Origin::Cut
            && !is_noted
            && (here.state.is_unsent() || is_watched)
            && !is_sent_from_here
        {
            return Ok(Finding::Unknown { unsent: Some(of), intent });
        }
        Ok(Finding::Shadow { of, intent })
    }

    fn open_shadow(&mut self, found: &BatchObject, of: BatchId, intent: Intent) -> Checked {
        let original = self.store.reader().batch(of).map_err(text)?.ok_or("no batch for a shadow")?;
        let id = BatchId::from_bytes(self.id());
        let mut batch = Batch::open(id, original.group, ProviderIdentity::default(), self.at());
        batch.origin = Origin::Shadow { of };
        batch.provider_batch = Some(found.id.clone());
        batch.cancel = Some(Cancel { by: "shadow".to_owned(), at: self.at(), then: Then::Requeue });
        batch.state = observing(intent, found);
        self.note(format_args!("{} is a shadow of {of}: {id}", found.id));
        now(self.store.open_batch(batch)).map_err(text)?;
        self.host(id, None)
    }

    /// False where that has to wait.
    fn take_over(
        &mut self,
        found: &BatchObject,
        unsent: Option<BatchId>,
        intent: Intent,
    ) -> Result<bool, String> {
        if let Some(id) = unsent {
            let here = |sim: &Self| sim.store.reader().batch(id).map_err(text);
            let dissolving = |state: &BatchState| matches!(state, BatchState::Dissolving { .. });
            if here(self)?.is_some_and(|batch| batch.state.is_unsent() && !dissolving(&batch.state)) {
                let failure = Failure::new(FailureClass::Transient, "batch_known_elsewhere", "");
                self.happened(id, Event::GivenBack(failure))?;
            }
            if here(self)?.is_some_and(|batch| batch.state.is_live()) {
                return Ok(false);
            }
        }
        let Some(ids) = self.requests_of(found) else { return Ok(false) };
        let reader = self.store.reader();
        let first = ids.iter().find_map(|id| reader.request(*id).ok().flatten());
        let Some(first) = first else { return Ok(true) };
        let id = BatchId::from_bytes(self.id());
        let mut batch = Batch::open(id, first.group, ProviderIdentity::default(), self.at());
        batch.origin = Origin::Adopted;
        now(self.store.open_batch(batch.clone())).map_err(text)?;
        for chunk in ids.chunks(4) {
            batch = now(self.store.take_over_members(id, batch.revision, chunk.to_vec())).map_err(text)?;
            if self.dice.chance(self.rates.crash) {
                self.crash()?;
                return Ok(false);
            }
        }
        let step = Step {
            next: observing(intent, found),
            changes: vec![Change::Adopt(found.id.clone())],
            effects: vec![Effect::Observe],
            story: Some("taken over".to_owned()),
        };
        self.note(format_args!("{} is taken over as {id} with {}", found.id, batch.counts.members));
        now(self.store.commit_step(id, batch.revision, step, self.at())).map_err(text)?;
        self.host(id, None)?;
        Ok(true)
    }

    fn requests_of(&self, found: &BatchObject) -> Option<Vec<RequestId>> {
        let named = |files: Vec<&FileId>| -> Vec<RequestId> {
            let contents =
                files.into_iter().filter_map(|file| self.remote.content(file.as_str(), self.millis()));
            let lines = contents.flat_map(|content| content.split(|byte| *byte == b'\n'));
            lines.filter_map(|line| jsonl::custom_id_in(line)?.parse().ok()).collect()
        };
        let mut ids = named(found.input_file_id.iter().collect());
        if ids.is_empty() {
            if !found.status.is_terminal() {
                return None;
            }
            ids = named(found.output_file_id.iter().chain(&found.error_file_id).collect());
        }
        ids.sort_unstable();
        ids.dedup();
        Some(ids)
    }
}

fn observing(intent: Intent, batch: &BatchObject) -> BatchState {
    let running = match observation(batch.clone()).status {
        Some(ObservedStatus::Running(running)) => running,
        Some(ObservedStatus::Ended(_)) | None => Running::Validating,
    };
    BatchState::Observing { intent, running, wait: Default::default(), missing: None }
}
