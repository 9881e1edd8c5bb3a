//! What the reconciler does, with the same store functions: it compares the provider's list with the store.

use nightshift::actors::reconciler::{compared_at, compared_since, holders, watched_since};
use nightshift::actors::{Finding, Intents, Reading, Turn, judge, observation};
use nightshift::domain::batch::{Batch, BatchState, Cancel, Intent, Origin, ProviderIdentity, Running, Then};
use nightshift::domain::effect::Effect;
use nightshift::domain::event::{Event, ObservedStatus};
use nightshift::domain::id::{BatchId, FileId, ProviderBatchId, RequestId, Timestamp};
use nightshift::domain::request::{Failure, FailureClass};
use nightshift::domain::step::{Change, Step};
use nightshift::provider::jsonl;
use nightshift::provider::wire::{BatchObject, Page};
use serde_json::json;

use super::sim::{Broken, Checked, Sim, now, text};

impl Sim {
    /// One look. Only one that comes through lets things be sent after a start.
    pub fn reconcile(&mut self) -> Checked {
        if self.dice.chance(self.rates.later) {
            return Ok(());
        }
        let (wall, mono) = (self.at(), u64::try_from(self.mono().as_millis()).unwrap());
        let began = self.theirs.cap(wall, mono);
        if self.compared {
            while now(self.store.forget_intents(began)).map_err(text)? > 0 {}
        }
        let noted = self.store.reader().intents_since(Timestamp::from_secs(0), 10_000).map_err(text)?;
        let since = if self.compared {
            watched_since(&noted, began)
        } else {
            Some(compared_since(self.store.reader().reconciled().map_err(text)?, wall))
        };
        let Some(since) = since else { return Ok(()) };
        let (list, whole) = self.look_back(since);
        if !whole {
            return Ok(());
        }
        let intents = Intents::new(noted);
        let mut through = true;
        // All are judged before anything is done.
        let mut found = Vec::new();
        self.theirs.saw(list.first().and_then(|batch| batch.created_at), mono);
        let began = self.theirs.cap(wall, mono);
        for batch in list {
            let finding = self.finding(&batch, began, &intents)?;
            found.push((batch, finding));
        }
        if self.broken == Broken::TakesOverTheOldestFirst {
            found.reverse();
        }
        for (batch, finding) in found {
            match finding {
                Finding::Nothing => {}
                Finding::Shadow { of, intent } => self.open_shadow(&batch, of, intent)?,
                Finding::Unknown { unsent, intent } => {
                    through = through && self.take_over(&batch, unsent, intent)?;
                }
            }
        }
        if through {
            self.compared = true;
            now(self.store.note_reconciled(compared_at(began))).map_err(text)?;
        }
        Ok(())
    }

    /// Reads the list back to `since`, newest first; says whether it came so far.
    pub fn look_back(&mut self, since: Timestamp) -> (Vec<BatchObject>, bool) {
        const SHOWN: usize = 2;
        // The program reads more of them before it gives up.
        const PAGES: usize = 60;
        let all = self.listed();
        let trouble = self.dice.chance(self.rates.lists).then_some(self.broken_list);
        let (mut seen, mut reading, mut from): (Vec<BatchObject>, Reading<ProviderBatchId>, usize) =
            (Vec::new(), Reading::since(since), 0);
        for number in 0..PAGES {
            let next = all.len().min(from + SHOWN);
            let has_more = next < all.len();
            let shown = match trouble.filter(|(at, _)| has_more && number >= *at) {
                None => from..next,
                // A call fails in the middle, and with it the search.
                Some((_, 0)) => return (Vec::new(), false),
                // Nothing is there, and more is to come.
                Some((_, 1)) => from..from,
                // The page before comes again, and again.
                Some((_, 2)) => from.saturating_sub(SHOWN)..from.max(SHOWN),
                // It begins anew.
                Some(_) => 0..SHOWN,
            };
            from = shown.end;
            let page = json!({"object": "list", "data": all[shown], "has_more": has_more}).to_string();
            let page = Page::<BatchObject>::from_json(page.as_bytes(), 100).unwrap();
            let turn =
                reading.turn(page.data.iter().map(|batch| (&batch.id, batch.created_at)), page.has_more);
            seen.extend(page.data);
            if let Turn::Ended { whole } = turn {
                return (seen, whole || self.broken == Broken::TakesPartsForWhole);
            }
        }
        (seen, false)
    }

    fn finding(&self, batch: &BatchObject, at: Timestamp, intents: &Intents) -> Result<Finding, String> {
        let reader = self.store.reader();
        let finding = judge(&reader, self.store.instance(), at, batch, intents).map_err(text)?;
        if let (Broken::TakesStrangersForShadows, Finding::Unknown { unsent: Some(of), intent }) =
            (self.broken, &finding)
            && reader.batch(*of).map_err(text)?.is_some_and(|here| !here.state.is_unsent())
        {
            return Ok(Finding::Shadow { of: *of, intent: intent.clone() });
        }
        Ok(finding)
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

    fn give_back(&mut self, id: BatchId) -> Checked {
        let here = self.store.reader().batch(id).map_err(text)?;
        let dissolving = |state: &BatchState| matches!(state, BatchState::Dissolving { .. });
        if here.is_some_and(|batch| batch.state.is_unsent() && !dissolving(&batch.state)) {
            let failure = Failure::new(FailureClass::Transient, "batch_known_elsewhere", "");
            self.happened(id, Event::GivenBack(failure))?;
        }
        Ok(())
    }

    /// False where that has to wait.
    fn take_over(
        &mut self,
        found: &BatchObject,
        unsent: Option<BatchId>,
        intent: Intent,
    ) -> Result<bool, String> {
        if let Some(id) = unsent {
            self.give_back(id)?;
            if self.store.reader().batch(id).map_err(text)?.is_some_and(|batch| batch.state.is_live()) {
                return Ok(false);
            }
        }
        let Some(ids) = self.requests_of(found) else { return Ok(false) };
        let holders = holders(&self.store.reader(), &ids).map_err(text)?;
        if !holders.is_empty() && self.broken != Broken::LeavesRequestsWhereTheyWere {
            for id in holders {
                self.give_back(id)?;
            }
            return Ok(false);
        }
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
