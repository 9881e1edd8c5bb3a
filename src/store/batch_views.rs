//! Batches and what waits for them, as they are read.

use super::batches::{Fate, GroupWaiting, StoryLine};
use super::keys::{self, Key, Tree};
use super::requests::GroupStat;
use super::{StoreError, StoreReader, codec};
use crate::domain::batch::{Batch, BatchStatus, ProviderIdentity};
use crate::domain::cut;
use crate::domain::id::{BatchId, CompanyId, FileId, ProviderBatchId, RequestId, Timestamp};
use crate::domain::request::Group;

impl StoreReader {
    /// One batch.
    pub fn batch(&self, id: BatchId) -> Result<Option<Batch>, StoreError> {
        self.read(Tree::Batches, id.as_bytes())
    }

    /// The batch that a provider's batch belongs to.
    pub fn batch_of_provider(&self, id: &ProviderBatchId) -> Result<Option<BatchId>, StoreError> {
        self.read(Tree::ProviderBatches, &Key::new().text(id.as_str()).done())
    }

    /// The ids of all live batches.
    pub fn live_batches(&self) -> Result<Vec<BatchId>, StoreError> {
        let entries = self.engine.scan(Tree::LiveBatches, &[], None, usize::MAX)?;
        Ok(entries.iter().filter_map(|(key, _)| keys::batch_at_start(key)).collect())
    }

    /// At most `limit` batches, newest first, older than `before`, of one company or of all; and where the
    /// next page begins, if there may be one.
    pub fn list_batches(
        &self,
        company: Option<&CompanyId>,
        status: Option<BatchStatus>,
        before: Option<BatchId>,
        limit: usize,
    ) -> Result<(Vec<Batch>, Option<BatchId>), StoreError> {
        // A page looks at no more than this, so that a rare filter cannot make it slow.
        const LOOKED_AT_MAX: usize = 5000;
        let mut found = Vec::new();
        let mut before = before;
        let mut looked_at = 0;
        loop {
            let end = before.map(|id| id.as_bytes().to_vec());
            let entries = self.engine.scan_back(Tree::Batches, &[], end.as_deref(), 100)?;
            let last_page = entries.len() < 100;
            looked_at += entries.len();
            for (_, value) in entries {
                let batch: Batch = codec::decode(&value)?;
                before = Some(batch.id);
                let wanted = company.is_none_or(|company| *company == batch.group.company)
                    && status.is_none_or(|status| status == batch.state.status());
                if !wanted {
                    continue;
                }
                if found.len() == limit {
                    let next = found.last().map(|batch: &Batch| batch.id);
                    return Ok((found, next));
                }
                found.push(batch);
            }
            if last_page {
                return Ok((found, None));
            }
            if looked_at >= LOOKED_AT_MAX {
                return Ok((found, before));
            }
        }
    }

    /// The story of a batch, oldest first.
    pub fn story(&self, id: BatchId) -> Result<Vec<StoryLine>, StoreError> {
        let prefix = id.as_bytes();
        let end = keys::after_prefix(prefix);
        let entries = self.engine.scan(Tree::Story, prefix, end.as_deref(), usize::MAX)?;
        entries.into_iter().map(|(_, value)| codec::decode(&value)).collect()
    }

    /// The first `first` lines of a batch's story and, of those behind them, the last `last`; oldest first.
    pub fn story_ends(&self, id: BatchId, first: usize, last: usize) -> Result<Vec<StoryLine>, StoreError> {
        let end = keys::after_prefix(id.as_bytes());
        let mut entries = self.engine.scan(Tree::Story, id.as_bytes(), end.as_deref(), first)?;
        if entries.len() == first {
            let behind = match entries.last() {
                Some((key, _)) => Key::new().bytes(key).byte(0).done(),
                None => id.as_bytes().to_vec(),
            };
            let mut rest = self.engine.scan_back(Tree::Story, &behind, end.as_deref(), last)?;
            rest.reverse();
            entries.append(&mut rest);
        }
        entries.into_iter().map(|(_, value)| codec::decode(&value)).collect()
    }

    /// At most `limit` members of a batch after `after`, in the order of its input file; without those that
    /// have left it since: they were erased, or had their result from elsewhere before it was sent.
    pub fn members(
        &self,
        id: BatchId,
        after: Option<RequestId>,
        limit: usize,
    ) -> Result<Vec<RequestId>, StoreError> {
        self.members_of(id, after, limit, |fate| !matches!(fate, Fate::Erased | Fate::Left))
    }

    /// Those of them that have no end yet: whose lines are to be sent, in the order in which they are sent.
    pub fn outstanding(
        &self,
        id: BatchId,
        after: Option<RequestId>,
        limit: usize,
    ) -> Result<Vec<RequestId>, StoreError> {
        self.members_of(id, after, limit, |fate| fate == Fate::Outstanding)
    }

    fn members_of(
        &self,
        id: BatchId,
        after: Option<RequestId>,
        limit: usize,
        is_meant: impl Fn(Fate) -> bool,
    ) -> Result<Vec<RequestId>, StoreError> {
        let mut from = match after {
            // The first key that is greater than the member's own.
            Some(request) => Key::new().bytes(&keys::member(id, request)).byte(0).done(),
            None => id.as_bytes().to_vec(),
        };
        let end = keys::after_prefix(id.as_bytes());
        loop {
            let entries = self.engine.scan(Tree::Members, &from, end.as_deref(), limit)?;
            let kept = entries
                .iter()
                .filter(|(_, fate)| fate.first().copied().and_then(Fate::from_byte).is_some_and(&is_meant));
            let kept: Vec<RequestId> = kept.filter_map(|(key, _)| keys::request_at_end(key)).collect();
            // An empty page means the end, so one of others alone is passed over.
            let Some((last, _)) = entries.last().filter(|_| kept.is_empty()) else { return Ok(kept) };
            from = Key::new().bytes(last).byte(0).done();
        }
    }

    /// What waits, group by group.
    pub fn waiting(&self) -> Result<Vec<GroupWaiting>, StoreError> {
        self.waiting_below(&[], usize::MAX)
    }

    /// The same of at most `limit` groups.
    pub fn first_waiting(&self, limit: usize) -> Result<Vec<GroupWaiting>, StoreError> {
        self.waiting_below(&[], limit)
    }

    /// What waits of one company, group by group.
    pub fn waiting_of(&self, company: &CompanyId) -> Result<Vec<GroupWaiting>, StoreError> {
        self.waiting_below(&Key::new().company(company).done(), usize::MAX)
    }

    fn waiting_below(&self, prefix: &[u8], limit: usize) -> Result<Vec<GroupWaiting>, StoreError> {
        let groups = self.engine.scan(Tree::Groups, prefix, keys::after_prefix(prefix).as_deref(), limit)?;
        groups.iter().map(|(key, value)| self.group_waiting(key, value)).collect()
    }

    /// What waits in one group, if it is there.
    pub fn waiting_in(&self, group: &Group) -> Result<Option<GroupWaiting>, StoreError> {
        let key = Key::new().group(group).done();
        let value = self.engine.get(Tree::Groups, &key)?;
        value.map(|value| self.group_waiting(&key, &value)).transpose()
    }

    fn group_waiting(&self, key: &[u8], value: &[u8]) -> Result<GroupWaiting, StoreError> {
        let stat: GroupStat = codec::decode(value)?;
        let oldest = self.oldest(key)?;
        Ok(GroupWaiting {
            waiting: cut::Waiting {
                requests: stat.requests,
                bytes: stat.bytes,
                oldest: oldest.unwrap_or(Timestamp::from_millis(i64::MAX)),
            },
            group: stat.group,
            filling: stat.filling,
        })
    }

    /// Since when the oldest request of a group waits: the first of each priority that is there.
    fn oldest(&self, group: &[u8]) -> Result<Option<Timestamp>, StoreError> {
        let end = keys::after_prefix(group);
        let mut from = group.to_vec();
        let mut oldest: Option<Timestamp> = None;
        loop {
            let first = self.engine.scan(Tree::Pending, &from, end.as_deref(), 1)?;
            let Some((key, _)) = first.first() else { return Ok(oldest) };
            let Some((priority, rest)) = key.get(group.len()..).and_then(<[u8]>::split_first) else {
                return Ok(oldest);
            };
            let since = keys::time_at_start(rest);
            oldest = match (oldest, since) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let Some(next) = priority.checked_add(1) else { return Ok(oldest) };
            from = [group, &[next]].concat();
        }
    }

    /// At most `limit` files of ours whose deletion at this provider is due, each with the key to forget it by. Those at
    /// another one wait until that is configured again.
    pub fn due_deletions(
        &self,
        provider: &ProviderIdentity,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, FileId)>, StoreError> {
        const PAGE: usize = 250;
        /// So many of another provider's are passed over.
        const PAGES_MAX: usize = 40;
        let (end, of) = (Key::new().time(now).done(), provider.key());
        let (mut from, mut due) = (Vec::new(), Vec::new());
        for _ in 0..PAGES_MAX {
            let page = self.engine.scan(Tree::Deletions, &from, Some(&end), PAGE)?;
            let is_last = page.len() < PAGE;
            for (key, value) in page {
                from = [key.as_slice(), &[0]].concat();
                let file = key.get(10..).and_then(|file| String::from_utf8(file.to_vec()).ok());
                // Behind whose it is.
                if value.get(16..) == Some(of.as_bytes())
                    && due.len() < limit
                    && let Some(file) = file
                {
                    due.push((key, FileId::new(file)));
                }
            }
            if is_last || due.len() >= limit {
                break;
            }
        }
        Ok(due)
    }
}
