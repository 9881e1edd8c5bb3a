//! Each company's money by month: set aside at the cut, booked with each answer, given back at the close.

use super::batches::{CHUNK, LOOKED_AT_MAX};
use super::keys::{self, Key, Tree};
use super::tx::Tx;
use super::{Store, StoreError, StoreReader, codec};
use crate::domain::batch::Batch;
use crate::domain::budget::{Affordable, Money, Month};
use crate::domain::company::Company;
use crate::domain::id::CompanyId;
use crate::domain::request::Request;
use crate::domain::room::Room;

pub(super) fn key(company: &CompanyId, month: Month) -> Vec<u8> {
    Key::new().company(company).u32(month.number()).done()
}

pub(super) fn key_of(batch: &Batch) -> Vec<u8> {
    key(&batch.group.company, batch.purse.month)
}

fn change(tx: &mut Tx<'_>, batch: &Batch, change: impl FnOnce(&mut Money)) -> Result<(), StoreError> {
    let key = key_of(batch);
    let mut money: Money = tx.read(Tree::Budgets, &key)?.unwrap_or_default();
    change(&mut money);
    tx.write(Tree::Budgets, key, &money)
}

/// What a request is thought to cost in this batch; none where its model has no price.
fn estimate(batch: &Batch, room: &Room, request: &Request) -> Option<u64> {
    let price = batch.price?;
    Some(price.estimate(room.corrected(u64::from(request.estimated_tokens)), room.output(request.output_max)))
}

/// Whether a request may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reserved {
    /// What it is thought to cost is set aside.
    Yes,
    /// The month has no room for it now.
    Not,
    /// It costs more than a whole month may: it is passed over, so that those behind it are not held up.
    TooDear,
}

/// What a batch's company may spend in a month.
fn limit_of(tx: &Tx<'_>, batch: &Batch) -> Result<Option<u64>, StoreError> {
    let company = Key::new().company(&batch.group.company).done();
    let company: Option<Company> = tx.read(Tree::Companies, &company)?;
    Ok(company.and_then(|company| company.budget_micros))
}

/// Whether a request costs more than a whole month may.
pub(super) fn is_too_dear(
    tx: &Tx<'_>,
    batch: &Batch,
    room: &Room,
    request: &Request,
) -> Result<bool, StoreError> {
    let limit = limit_of(tx, batch)?;
    Ok(matches!((limit, estimate(batch, room, request)), (Some(limit), Some(cost)) if cost > limit))
}

/// Sets aside what one more request of a batch is thought to cost, if the company's month has room for it.
pub(super) fn reserve(
    tx: &mut Tx<'_>,
    batch: &mut Batch,
    room: &Room,
    request: &Request,
) -> Result<Reserved, StoreError> {
    let limit = limit_of(tx, batch)?;
    let money: Money = tx.read(Tree::Budgets, &key_of(batch))?.unwrap_or_default();
    let cost = estimate(batch, room, request);
    match (limit, cost) {
        (Some(_), None) => return Ok(Reserved::Not),
        (Some(limit), Some(cost)) if cost > limit => return Ok(Reserved::TooDear),
        (Some(limit), Some(cost)) if !money.allows(cost, limit) => return Ok(Reserved::Not),
        (None | Some(_), _) => {}
    }
    if let Some(cost) = cost.filter(|cost| *cost > 0) {
        batch.purse.reserved = batch.purse.reserved.saturating_add(cost);
        change(tx, batch, |money| money.reserved = money.reserved.saturating_add(cost))?;
    }
    Ok(Reserved::Yes)
}

/// Books what a line cost: no longer set aside, as far as it was.
pub(super) fn spend(tx: &mut Tx<'_>, batch: &mut Batch, micros: u64) -> Result<(), StoreError> {
    let aside = micros.min(batch.purse.reserved);
    batch.purse.reserved -= aside;
    change(tx, batch, |money| {
        money.spent = money.spent.saturating_add(micros);
        money.reserved = money.reserved.saturating_sub(aside);
    })
}

/// Gives back what a batch that is over did not cost.
pub(super) fn release(tx: &mut Tx<'_>, batch: &mut Batch) -> Result<(), StoreError> {
    let aside = std::mem::take(&mut batch.purse.reserved);
    if aside == 0 {
        return Ok(());
    }
    change(tx, batch, |money| money.reserved = money.reserved.saturating_sub(aside))
}

impl Store {
    /// Sets what a company may spend in a month, in millionths; none for no limit. Says whether there is the company.
    pub async fn set_budget(&self, company: CompanyId, micros: Option<u64>) -> Result<bool, StoreError> {
        self.committer
            .commit(1, move |tx| {
                let key = Key::new().company(&company).done();
                let Some(mut company) = tx.read::<Company>(Tree::Companies, &key)? else { return Ok(false) };
                company.budget_micros = micros;
                tx.write(Tree::Companies, key, &company)?;
                Ok(true)
            })
            .await
    }
}

impl StoreReader {
    /// A company's money in a month.
    pub fn money(&self, company: &CompanyId, month: Month) -> Result<Money, StoreError> {
        Ok(self.read(Tree::Budgets, &key(company, month))?.unwrap_or_default())
    }

    /// A company's money, newest month first, at most `limit` months.
    pub fn months(&self, company: &CompanyId, limit: usize) -> Result<Vec<(Month, Money)>, StoreError> {
        let prefix = Key::new().company(company).done();
        let entries =
            self.engine.scan_back(Tree::Budgets, &prefix, keys::after_prefix(&prefix).as_deref(), limit)?;
        let month =
            |key: &[u8]| key.last_chunk::<4>().map(|bytes| Month::from_number(u32::from_be_bytes(*bytes)));
        let read = entries.into_iter().filter_map(|(key, value)| Some((month(&key)?, value)));
        read.map(|(month, value)| Ok((month, codec::decode(&value)?))).collect()
    }

    /// Whether a request costs more than a whole month's limit, so that it is passed over until that is raised.
    pub fn too_dear(&self, batch: &Batch, request: &Request) -> Result<Option<Affordable>, StoreError> {
        let company = self.company(&batch.group.company)?;
        let Some(limit) = company.and_then(|company| company.budget_micros) else { return Ok(None) };
        let cost = estimate(batch, &self.room(batch)?, request);
        Ok(cost.filter(|cost| *cost > limit).map(|next| Affordable::TooDear { limit, next }))
    }

    /// Whether the first request that waits for a batch like this one may be cut. The cut itself decides anew.
    pub fn affordable(&self, batch: &Batch) -> Result<Affordable, StoreError> {
        let Some(limit) = self.company(&batch.group.company)?.and_then(|company| company.budget_micros)
        else {
            return Ok(Affordable::Yes);
        };
        let prefix = Key::new().group(&batch.group).done();
        let end = keys::after_prefix(&prefix);
        let room = self.room(batch)?;
        let (mut from, mut looked_at, mut dear) = (prefix, 0, None);
        // As the cut does, which passes over as many.
        // Where nothing may be spent a few tell as much as all.
        let looked_at_max = if limit == 0 { 1 } else { LOOKED_AT_MAX };
        while looked_at < looked_at_max {
            let page = self.engine.scan(Tree::Pending, &from, end.as_deref(), CHUNK)?;
            looked_at += page.len();
            for (key, _) in &page {
                let Some(request) =
                    keys::request_at_end(key).map(|id| self.request(id)).transpose()?.flatten()
                else {
                    continue;
                };
                let Some(next) = estimate(batch, &room, &request) else { return Ok(Affordable::NoPrice) };
                if next <= limit {
                    let money = self.money(&batch.group.company, batch.purse.month)?;
                    let enough = money.allows(next, limit);
                    return Ok(if enough {
                        Affordable::Yes
                    } else {
                        Affordable::Spent { limit, money, next }
                    });
                }
                dear.get_or_insert(next);
            }
            let Some((last, _)) = page.last().filter(|_| page.len() == CHUNK) else { break };
            from = [last.as_slice(), &[0]].concat();
        }
        Ok(match dear {
            Some(next) => Affordable::TooDear { limit, next },
            None => Affordable::Yes,
        })
    }
}
