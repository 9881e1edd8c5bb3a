//! What has to hold when a run has come to its end.

use std::collections::{BTreeMap, BTreeSet};

use nightshift::domain::batch::Origin;
use nightshift::domain::id::{BatchId, ProviderBatchId, RequestId};
use nightshift::domain::request::{Request, RequestStatus, Source};
use nightshift::store::{RequestFilter, Store, StoreReader};

use super::life::{Seed, text};
use crate::process::until_it_is_free;
use crate::trouble::bench::Ledger;

pub fn all(seed: &Seed) -> Result<(), String> {
    until_it_is_free(&seed.data());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store =
            Store::open(&seed.data(), uuid::Uuid::nil(), std::sync::Arc::new(|_| {})).await.map_err(text)?;
        let report = store.check().await.map_err(text)?;
        if let Some(violation) = report.violations.first() {
            return Err(format!("invariant {} of the store: {}", violation.invariant, violation.what));
        }
        if let Some(doubt) = store.doubt() {
            return Err(format!("the store is in doubt: {doubt}"));
        }
        let requests = requests(&store.reader())?;
        nothing_is_lost(seed, &requests)?;
        nothing_is_paid_twice(seed, &store.reader(), &requests)
    })?;
    let left: Vec<_> = std::fs::read_dir(seed.data().join("spool")).map_err(text)?.flatten().collect();
    if left.is_empty() { Ok(()) } else { Err(format!("invariant 12: the spool still has {left:?}")) }
}

fn requests(reader: &StoreReader) -> Result<BTreeMap<RequestId, Request>, String> {
    let mut all = BTreeMap::new();
    for status in RequestStatus::ALL {
        let filter = RequestFilter { status, company: None, batch: None };
        let mut before = None;
        loop {
            let (page, next) = reader.list_requests(&filter, before, 500).map_err(text)?;
            all.extend(page.into_iter().map(|request| (request.id, request)));
            before = next;
            if before.is_none() {
                break;
            }
        }
    }
    Ok(all)
}

/// I1 and I9: what was acknowledged is there and has come to an end.
fn nothing_is_lost(seed: &Seed, requests: &BTreeMap<RequestId, Request>) -> Result<(), String> {
    let mut there = BTreeSet::new();
    for request in requests.values() {
        if !matches!(request.status, RequestStatus::ProcessingComplete | RequestStatus::ProcessingFailed) {
            return Err(format!("invariant 9: {} is {}", request.id, request.status.label()));
        }
        if let Source::Generic { client_id: Some(id) } = &request.source
            && !there.insert(id.clone())
        {
            return Err(format!("invariant 1: {id} is there twice"));
        }
    }
    match seed.acknowledged.iter().find(|id| !there.contains(*id)) {
        Some(id) => Err(format!("invariant 1: {id} was acknowledged and is not there")),
        None => Ok(()),
    }
}

/// I2, to the last run: each batch at the provider is one of ours, each run of a line is one attempt in the history of
/// its request, and every attempt but one has an outcome that was worth another.
fn nothing_is_paid_twice(
    seed: &Seed,
    reader: &StoreReader,
    requests: &BTreeMap<RequestId, Request>,
) -> Result<(), String> {
    let ledger = Ledger::read(&seed.remote.state);
    let mut ours: BTreeMap<String, BatchId> = BTreeMap::new();
    for remote in ledger.created {
        let known = reader.batch_of_provider(&ProviderBatchId::new(&remote)).map_err(text)?;
        let id = known.ok_or_else(|| format!("invariant 2: nobody here knows batch {remote}"))?;
        let batch = reader.batch(id).map_err(text)?.ok_or_else(|| format!("batch {id} is not there"))?;
        // No call of this provider has two effects, and it hides no batch for as long as one is looked for.
        if batch.origin != Origin::Cut {
            return Err(format!("invariant 2: {remote} is one too many: {:?}", batch.origin));
        }
        ours.insert(remote, id);
    }
    for (custom_id, batches) in ledger.runs {
        let id: RequestId = custom_id.parse().map_err(|_| format!("{custom_id} is no id of ours"))?;
        let request = requests.get(&id).ok_or_else(|| format!("invariant 1: {id} ran and is not there"))?;
        let attempts = &request.history;
        let mut counted = BTreeSet::new();
        for remote in &batches {
            let batch = ours.get(remote).ok_or_else(|| format!("{remote} ran and was not created"))?;
            if !counted.insert(*batch) {
                return Err(format!("invariant 2: {id} ran twice in {remote}"));
            }
            if attempts.len() < Request::HISTORY_MAX && !attempts.iter().any(|tried| tried.batch == *batch) {
                return Err(format!("invariant 2: {id} ran in {batch}, and its history does not say so"));
            }
        }
        let good = attempts.iter().filter(|tried| tried.failure.is_none()).count();
        if good > 1 || (attempts.len() < Request::HISTORY_MAX && counted.len() > attempts.len()) {
            return Err(format!("invariant 2: {id} ran in {counted:?}, its history is {attempts:?}"));
        }
        let is_complete = request.status == RequestStatus::ProcessingComplete;
        if is_complete != attempts.last().is_some_and(|last| last.failure.is_none()) {
            return Err(format!("invariant 3: {id} is complete: {is_complete}, its history is {attempts:?}"));
        }
    }
    Ok(())
}
