//! The invariants, checked on a whole store by full scan and never from its own counters.
//!
//! The numbers are those of the design's list, which `docs/state-machine.md` repeats.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::batches::Fate;
use super::keys::{self, Key, Tree};
use super::requests::GroupStat;
use super::tx;
use super::{StoreError, StoreReader, codec};
use crate::domain::batch::{Batch, BatchState, Counts};
use crate::domain::id::{BatchId, RequestId};
use crate::domain::request::{Cost, Request, RequestStatus};

/// One sentence of the invariants that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant, by its number.
    pub invariant: u8,
    /// What is wrong, with the ids.
    pub what: String,
}

/// What a check of the whole store found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Requests read.
    pub requests: u64,
    /// Batches read.
    pub batches: u64,
    /// Members read.
    pub members: u64,
    /// Booked lines read.
    pub bookings: u64,
    /// What is wrong, at most [`Report::VIOLATIONS_MAX`].
    pub violations: Vec<Violation>,
}

impl Report {
    /// More are not kept: the first ones tell enough.
    pub const VIOLATIONS_MAX: usize = 1000;

    fn blame(&mut self, invariant: u8, what: String) {
        if self.violations.len() < Self::VIOLATIONS_MAX {
            self.violations.push(Violation { invariant, what });
        }
    }
}

const PAGE: usize = 1000;

impl StoreReader {
    /// Checks every invariant. Reads the whole store, page by page; nothing may write meanwhile.
    pub fn verify(&self) -> Result<Report, StoreError> {
        let mut report = Report::default();
        let batches = self.check_batches(&mut report)?;
        let outstanding = self.check_members(&batches, &mut report)?;
        self.check_requests(&batches, &outstanding, &mut report)?;
        self.check_bookings(&mut report)?;
        Ok(report)
    }

    fn each(
        &self,
        tree: Tree,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut from = Vec::new();
        loop {
            let page = self.engine.scan(tree, &from, None, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from = [last.as_slice(), &[0]].concat();
            for (key, value) in &page {
                visit(key, value)?;
            }
        }
    }

    fn check_batches(&self, report: &mut Report) -> Result<HashMap<BatchId, Batch>, StoreError> {
        let mut batches = HashMap::new();
        let mut live = HashSet::new();
        self.each(Tree::LiveBatches, |key, _| {
            live.extend(keys::batch_at_start(key));
            Ok(())
        })?;
        self.each(Tree::Batches, |_, value| {
            let batch: Batch = codec::decode(value)?;
            report.batches += 1;
            if batch.state.is_live() != live.contains(&batch.id) {
                report.blame(2, format!("batch {} and the list of live ones disagree", batch.id));
            }
            batches.insert(batch.id, batch);
            Ok(())
        })?;
        self.each(Tree::ProviderBatches, |key, value| {
            let id: BatchId = codec::decode(value)?;
            if !batches.contains_key(&id) {
                report.blame(3, format!("the provider's batch {key:?} belongs to no batch"));
            }
            Ok(())
        })?;
        Ok(batches)
    }

    /// Invariant 4, and who is outstanding where.
    fn check_members(
        &self,
        batches: &HashMap<BatchId, Batch>,
        report: &mut Report,
    ) -> Result<HashMap<RequestId, Vec<BatchId>>, StoreError> {
        let mut outstanding: HashMap<RequestId, Vec<BatchId>> = HashMap::new();
        self.each(Tree::Outstanding, |key, _| {
            if let (Some(batch), Some(request)) = (keys::batch_at_start(key), keys::request_at_end(key)) {
                outstanding.entry(request).or_default().push(batch);
            }
            Ok(())
        })?;
        let mut counts: HashMap<BatchId, Counts> = HashMap::new();
        self.each(Tree::Members, |key, value| {
            report.members += 1;
            let (Some(batch), Some(request)) = (keys::batch_at_start(key), keys::request_at_end(key)) else {
                report.blame(4, format!("a member key of {} bytes", key.len()));
                return Ok(());
            };
            let count = counts.entry(batch).or_default();
            count.members += 1;
            let waits = outstanding.get(&request).is_some_and(|batches| batches.contains(&batch));
            match value.first().copied().and_then(Fate::from_byte) {
                None => report.blame(4, format!("request {request} has no known fate in batch {batch}")),
                Some(fate) => {
                    super::requests::counted(count, fate);
                    if (fate == Fate::Outstanding) != waits {
                        report.blame(
                            2,
                            format!(
                                "request {request} and batch {batch} disagree on whether it is outstanding"
                            ),
                        );
                    }
                }
            }
            Ok(())
        })?;
        for batch in batches.values() {
            let full = counts.remove(&batch.id).unwrap_or_default();
            if full != batch.counts {
                report.blame(
                    4,
                    format!("batch {} counts {:?}, its members are {full:?}", batch.id, batch.counts),
                );
            }
            let over = matches!(batch.state, BatchState::Cleaning { .. } | BatchState::Closed { .. });
            if over && full.outstanding() > 0 {
                report.blame(4, format!("batch {} closed with {} outstanding", batch.id, full.outstanding()));
            }
        }
        for id in counts.keys() {
            report.blame(4, format!("batch {id} has members but is not there"));
        }
        Ok(outstanding)
    }

    /// Invariants 1, 2 and 3.
    fn check_requests(
        &self,
        batches: &HashMap<BatchId, Batch>,
        outstanding: &HashMap<RequestId, Vec<BatchId>>,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        let mut counters: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let mut groups: BTreeMap<Vec<u8>, (u64, u64)> = BTreeMap::new();
        let mut seen = 0u64;
        self.each(Tree::Requests, |_, value| {
            let request: Request = codec::decode(value)?;
            seen += 1;
            for company in [None, Some(&request.group.company)] {
                *counters.entry(keys::counter(company, request.status)).or_default() += 1;
            }
            self.check_indexes(&request, report)?;
            let home: Vec<BatchId> = outstanding.get(&request.id).cloned().unwrap_or_default();
            match (request.status, home.as_slice()) {
                (RequestStatus::BatchingInProgress, [batch]) => {
                    let live = batches.get(batch).is_some_and(|batch| batch.state.is_live());
                    if !live || request.batch != Some(*batch) {
                        report.blame(
                            2,
                            format!(
                                "request {} is outstanding in batch {batch}, which is not its live one",
                                request.id
                            ),
                        );
                    }
                }
                (RequestStatus::BatchingInProgress, homes) => {
                    report.blame(
                        2,
                        format!("request {} is outstanding in {} batches", request.id, homes.len()),
                    );
                }
                (_, []) => {}
                (status, homes) => report.blame(
                    3,
                    format!(
                        "request {} is {} and outstanding in {} batches",
                        request.id,
                        status.label(),
                        homes.len()
                    ),
                ),
            }
            if request.status == RequestStatus::PendingBatching && request.not_before.is_none() {
                let group = groups.entry(Key::new().group(&request.group).done()).or_default();
                group.0 += 1;
                group.1 += u64::from(request.line_bytes);
            }
            if request.status == RequestStatus::ProcessingComplete
                && self.engine.get(Tree::Results, &keys::part(request.id.as_bytes(), 0))?.is_none()
            {
                report.blame(5, format!("request {} is complete without a result", request.id));
            }
            Ok(())
        })?;
        report.requests = seen;
        self.check_counters(counters, groups, seen, report)
    }

    fn check_indexes(&self, request: &Request, report: &mut Report) -> Result<(), StoreError> {
        for status in RequestStatus::ALL {
            let by_status = Key::new().status(status).bytes(request.id.as_bytes()).done();
            let company = Key::new().company(&request.group.company);
            let by_company = company.status(status).bytes(request.id.as_bytes()).done();
            for (tree, key) in [(Tree::ByStatus, by_status), (Tree::ByCompany, by_company)] {
                if self.engine.get(tree, &key)?.is_some() != (status == request.status) {
                    report.blame(
                        1,
                        format!("request {} and {} disagree on {}", request.id, tree.name(), status.label()),
                    );
                }
            }
        }
        Ok(())
    }

    fn check_counters(
        &self,
        mut counters: BTreeMap<Vec<u8>, u64>,
        mut groups: BTreeMap<Vec<u8>, (u64, u64)>,
        requests: u64,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        self.each(Tree::Counters, |key, value| {
            let stored = tx::number(Some(value))?;
            let full = counters.remove(key).unwrap_or(0);
            if stored != full {
                report.blame(1, format!("a counter says {stored}, the requests are {full}"));
            }
            Ok(())
        })?;
        if let Some(full) = counters.values().next() {
            report.blame(1, format!("a counter is missing, the requests are {full}"));
        }
        let mut entries = 0u64;
        for tree in [Tree::ByStatus, Tree::ByCompany] {
            self.each(tree, |_, _| {
                entries += 1;
                Ok(())
            })?;
        }
        if entries != 2 * requests {
            report.blame(1, format!("the indexes have {entries} entries for {requests} requests"));
        }
        self.each(Tree::Groups, |key, value| {
            let stat: GroupStat = codec::decode(value)?;
            let (full, bytes) = groups.remove(key).unwrap_or_default();
            if (stat.requests, stat.bytes) != (full, bytes) {
                report.blame(
                    1,
                    format!(
                        "a group says {} requests of {} bytes, they are {full} of {bytes}",
                        stat.requests, stat.bytes
                    ),
                );
            }
            Ok(())
        })?;
        if !groups.is_empty() {
            report.blame(1, format!("{} groups with waiting requests are not listed", groups.len()));
        }
        Ok(())
    }

    /// Invariant 5: what requests cost is what was booked for them.
    fn check_bookings(&self, report: &mut Report) -> Result<(), StoreError> {
        let mut booked: HashMap<RequestId, u64> = HashMap::new();
        self.each(Tree::Bookings, |key, value| {
            report.bookings += 1;
            let cost: Cost = codec::decode(value)?;
            match key.first_chunk::<16>() {
                Some(id) => *booked.entry(RequestId::from_bytes(*id)).or_default() += cost.micros,
                None => report.blame(5, format!("a booking key of {} bytes", key.len())),
            }
            Ok(())
        })?;
        self.each(Tree::Requests, |_, value| {
            let request: Request = codec::decode(value)?;
            let sum = booked.remove(&request.id).unwrap_or(0);
            let cost = request.cost.as_ref().map_or(0, |cost| cost.micros);
            if sum != cost {
                report.blame(5, format!("request {} cost {cost}, booked are {sum}", request.id));
            }
            Ok(())
        })?;
        for id in booked.keys() {
            report.blame(5, format!("something is booked for request {id}, which is not there"));
        }
        Ok(())
    }
}
