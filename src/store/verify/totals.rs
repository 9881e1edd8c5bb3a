//! Totals that are stored, compared with what they are the totals of.

use std::collections::BTreeMap;

use super::super::engine::hex;
use super::super::{codec, tx};
use super::{Engine, Group, GroupStat, Money, Report, Room, Scan, StoreError, Tree};

impl Scan {
    /// What batches hold, and ended ones held a short time ago, is what their rooms say.
    pub(super) fn rooms(&mut self, engine: &Engine) -> Result<(), StoreError> {
        let mut held = std::mem::take(&mut self.tally.held);
        for found in engine.look(Tree::Releases, &[], usize::MAX)? {
            let value = found.value.and_then(|value| codec::decode::<(Vec<u8>, u64)>(&value).ok());
            let Some((room, tokens)) = value else { continue };
            held.entry(room).or_default().1 += i64::try_from(tokens).unwrap_or(i64::MAX);
        }
        for found in engine.look(Tree::Rooms, &[], usize::MAX)? {
            let full = held.remove(&found.key).unwrap_or_default();
            let Some(room) = found.value.and_then(|value| codec::decode::<Room>(&value).ok()) else {
                // That is blamed where it stands.
                self.report.set(Tree::Rooms, &found.key, &holding(Room::default(), full))?;
                continue;
            };
            let stored = (i64::try_from(room.reserved), i64::try_from(room.enqueued));
            if stored != (Ok(full.0), Ok(full.1)) {
                let what = format!(
                    "a room says {} tokens reserved and {} enqueued, its batches hold {} and {}",
                    room.reserved, room.enqueued, full.0, full.1
                );
                let place = format!("{}/{}", Tree::Rooms.name(), hex(&found.key));
                let value = codec::encode(&holding(room, full))?;
                self.mend((1, place, what), (Tree::Rooms, found.key, Some(value)));
            }
        }
        for (key, full) in held.into_iter().filter(|(_, full)| *full != (0, 0)) {
            let place = format!("{}/{}", Tree::Rooms.name(), hex(&key));
            let what = format!("a room of which {} tokens are held is missing", full.0 + full.1);
            let value = codec::encode(&holding(Room::default(), full))?;
            self.mend((1, place, what), (Tree::Rooms, key, Some(value)));
        }
        Ok(())
    }

    pub(super) fn counters(&mut self, engine: &Engine) -> Result<(), StoreError> {
        let mut counters = std::mem::take(&mut self.tally.counters);
        let mut groups = std::mem::take(&mut self.tally.groups);
        // Both are as many as there are companies and groups.
        for found in engine.look(Tree::Counters, &[], usize::MAX)? {
            let full = counters.remove(&found.key).unwrap_or(0);
            let value = Some(unsigned(full).to_be_bytes().to_vec());
            let Some(stored) = found.value.and_then(|value| tx::number(Some(&value)).ok()) else {
                self.report.mends.entry(Tree::Counters).or_default().insert(found.key, value);
                continue;
            };
            if u64::try_from(full) != Ok(stored) {
                let place = format!("{}/{}", Tree::Counters.name(), hex(&found.key));
                let what = format!("a counter says {stored}, the requests are {full}");
                self.mend((1, place, what), (Tree::Counters, found.key, value));
            }
        }
        for found in engine.look(Tree::Groups, &[], usize::MAX)? {
            let full = groups.remove(&found.key);
            let stored = found.value.and_then(|value| codec::decode::<GroupStat>(&value).ok());
            let Some(stat) = stored else {
                // That is blamed where it stands.
                if let Some((group, requests, bytes)) = full {
                    self.report.set(Tree::Groups, &found.key, &anew(group, requests, bytes))?;
                }
                continue;
            };
            let (requests, bytes) = full.map_or((0, 0), |(_, requests, bytes)| (requests, bytes));
            if (u64::try_from(requests), u64::try_from(bytes)) != (Ok(stat.requests), Ok(stat.bytes)) {
                let what = format!(
                    "a group says {} requests of {} bytes, they are {requests} of {bytes}",
                    stat.requests, stat.bytes
                );
                let place = format!("{}/{}", Tree::Groups.name(), hex(&found.key));
                let stat = GroupStat { requests: unsigned(requests), bytes: unsigned(bytes), ..stat };
                self.mend((1, place, what), (Tree::Groups, found.key, Some(codec::encode(&stat)?)));
            }
        }
        for (key, full) in counters.into_iter().filter(|(_, full)| *full != 0) {
            let place = format!("{}/{}", Tree::Counters.name(), hex(&key));
            let what = format!("a counter is missing, the requests are {full}");
            let value = unsigned(full).to_be_bytes().to_vec();
            self.mend((1, place, what), (Tree::Counters, key, Some(value)));
        }
        for (key, (group, requests, bytes)) in groups {
            if (requests, bytes) != (0, 0) {
                let place = format!("{}/{}", Tree::Groups.name(), hex(&key));
                let what = format!("a group with {requests} waiting requests is not listed");
                let value = codec::encode(&anew(group, requests, bytes))?;
                self.mend((1, place, what), (Tree::Groups, key, Some(value)));
            }
        }
        Ok(())
    }

    /// Invariant 5: what is booked for a company in a month is what its ledger says is spent.
    pub(super) fn booked(&mut self, engine: &Engine) -> Result<(), StoreError> {
        let booked = std::mem::take(&mut self.tally.booked);
        self.money(engine, booked, "spent", "its bookings come to", |money| &mut money.spent)
    }

    /// Invariant 5: what batches have set aside is what the ledger says is set aside.
    pub(super) fn aside(&mut self, engine: &Engine) -> Result<(), StoreError> {
        let aside = std::mem::take(&mut self.tally.aside);
        self.money(engine, aside, "set aside", "its batches hold", |money| &mut money.reserved)
    }

    fn money(
        &mut self,
        engine: &Engine,
        mut full: BTreeMap<Vec<u8>, i64>,
        kind: &str,
        sum: &str,
        of: fn(&mut Money) -> &mut u64,
    ) -> Result<(), StoreError> {
        let place = |key: &[u8]| format!("{}/{}", Tree::Budgets.name(), hex(key));
        // As many as companies and months.
        for found in engine.look(Tree::Budgets, &[], usize::MAX)? {
            let full = full.remove(&found.key).unwrap_or_default();
            let stored = found.value.and_then(|value| codec::decode::<Money>(&value).ok());
            let Some(stored) = stored.map(|mut money| *of(&mut money)) else {
                // That is blamed where it stands.
                let money = self.month(engine, &found.key, full, of);
                self.report.set(Tree::Budgets, &found.key, &money)?;
                continue;
            };
            if u64::try_from(full) != Ok(stored) {
                let what = format!("a month's money says {stored} {kind}, {sum} {full}");
                let value = codec::encode(&self.month(engine, &found.key, full, of))?;
                self.mend((5, place(&found.key), what), (Tree::Budgets, found.key, Some(value)));
            }
        }
        for (key, full) in full.into_iter().filter(|(_, full)| *full != 0) {
            let what = format!("a month's money of which {full} is {kind} is missing");
            let value = codec::encode(&self.month(engine, &key, full, of))?;
            self.mend((5, place(&key), what), (Tree::Budgets, key, Some(value)));
        }
        Ok(())
    }

    /// A month's money with one of its sums as it is to be, and the other one as it was, or is to be, too.
    fn month(&self, engine: &Engine, key: &[u8], full: i64, of: fn(&mut Money) -> &mut u64) -> Money {
        let mended =
            self.report.mends.get(&Tree::Budgets).and_then(|changes| changes.get(key)).cloned().flatten();
        let stored = || engine.get(Tree::Budgets, key).ok().flatten();
        let mut money: Money =
            mended.or_else(stored).and_then(|value| codec::decode(&value).ok()).unwrap_or_default();
        *of(&mut money) = unsigned(full);
        money
    }
}

impl Report {
    /// Notes what a record is to be.
    fn set<T: serde::Serialize>(&mut self, tree: Tree, key: &[u8], record: &T) -> Result<(), StoreError> {
        self.mends.entry(tree).or_default().insert(key.to_vec(), Some(codec::encode(record)?));
        Ok(())
    }
}

fn unsigned(full: i64) -> u64 {
    u64::try_from(full).unwrap_or(0)
}

fn holding(room: Room, (reserved, enqueued): (i64, i64)) -> Room {
    Room { reserved: unsigned(reserved), enqueued: unsigned(enqueued), ..room }
}

/// A group of which nothing is known but what waits in it.
fn anew(group: Group, requests: i64, bytes: i64) -> GroupStat {
    GroupStat { group, requests: unsigned(requests), bytes: unsigned(bytes), filling: None }
}
