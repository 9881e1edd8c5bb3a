//! Room for tokens at the provider, kept per provider and model: what is held, what was learned from refusals, and
//! the gate that closes after one.
//!
//! The provider counts the input tokens of all batches that it has not finished, and tells its limit only by
//! turning a batch away (contract section 4). So the limit is learned, and tried again with small batches.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::batch::Batch;
use super::cut::Waiting;
use super::event::Event;
use super::id::{BatchId, Timestamp};
use super::request::{Failure, FailureClass};
use super::retry;

/// After the terminal status the provider may count a batch's tokens for so long.
pub const RELEASE_AFTER: Duration = Duration::from_secs(600);
/// A batch that waits for room looks again after so long, unless it knows better.
pub const LOOK_AGAIN: Duration = Duration::from_secs(30);

const DAY: Duration = Duration::from_secs(24 * 3600);
/// A larger correction would be a sign of another mistake.
const CORRECTION_MAX: u64 = 4;
/// Fewer measured tokens say nothing yet.
const MEASURED_MIN: u64 = 1000;
/// Old measurements lose weight once so many tokens are measured.
const MEASURED_MAX: u64 = 50_000_000;

/// Fewer answers do not tell how long they usually are.
const ANSWERS_MIN: u64 = 20;
/// Old answers lose weight once there are so many.
const ANSWERS_MAX: u64 = 100_000;
/// Tokens of an answer of which nothing is known.
const OUTPUT_UNKNOWN: u64 = 1000;

/// What a refusal taught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// Tokens that are thought to fit.
    pub tokens: u64,
    /// When that was learned.
    pub at: Timestamp,
}

/// Closed after a refusal, until a small batch has gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Nothing is tried before.
    pub until: Timestamp,
    /// Refusals in a row.
    pub times: u32,
    /// How many tokens the batch may have that tries whether there is room again.
    pub probe_max: u64,
    /// The batch that is trying.
    pub probe: Option<BatchId>,
}

/// Room for one model at one provider. Counts in estimated tokens, corrected by what the provider counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Room {
    /// Held by batches that are cut and not yet at the provider.
    pub reserved: u64,
    /// Held by batches that the provider has, may have, or had a short time ago.
    pub enqueued: u64,
    /// The limit, where there was a refusal.
    pub learned: Option<Learned>,
    /// Whether the gate is closed.
    pub closed: Option<Closed>,
    /// Estimated tokens of answered requests.
    pub estimated: u64,
    /// What the provider counted for them.
    pub counted: u64,
    /// Answers whose tokens were counted.
    pub answers: u64,
    /// The tokens of these answers.
    pub answered: u64,
    /// When a batch was last admitted.
    pub admitted_at: Option<Timestamp>,
}

/// Whether a batch may be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Now,
    /// Not before.
    NotBefore(Timestamp),
    /// Never at this size: its requests go back and are cut smaller.
    TooBig,
}

impl Room {
    /// Estimated tokens as the provider will count them, by what it counted so far.
    pub fn corrected(&self, estimated: u64) -> u64 {
        if self.estimated < MEASURED_MIN || self.counted == 0 {
            return estimated;
        }
        let (estimated, by, of) =
            (u128::from(estimated), u128::from(self.counted), u128::from(self.estimated));
        let corrected = (estimated * by).div_ceil(of);
        let bound = u128::from(CORRECTION_MAX);
        u64::try_from(corrected.clamp(estimated / bound, estimated * bound)).unwrap_or(u64::MAX)
    }

    /// The provider counted `counted` tokens for what was estimated as `estimated`.
    pub fn measured(&mut self, estimated: u64, counted: u64) {
        self.estimated = self.estimated.saturating_add(estimated);
        self.counted = self.counted.saturating_add(counted);
        while self.estimated > MEASURED_MAX {
            self.estimated /= 2;
            self.counted /= 2;
        }
    }

    /// The provider counted `tokens` for an answer.
    pub fn answered(&mut self, tokens: u64) {
        self.answers = self.answers.saturating_add(1);
        self.answered = self.answered.saturating_add(tokens);
        if self.answers > ANSWERS_MAX {
            self.answers /= 2;
            self.answered /= 2;
        }
    }

    /// How many tokens an answer is thought to have: as many as the request allows, else twice the usual.
    pub fn output(&self, stated: Option<u32>) -> u64 {
        match stated {
            Some(stated) => u64::from(stated),
            None if self.answers < ANSWERS_MIN => OUTPUT_UNKNOWN,
            None => (self.answered / self.answers).saturating_mul(2).max(1),
        }
    }

    /// The learned limit at `now`: a tenth more for each day without a refusal. One that was learned by a clock that was
    /// far ahead would not grow for years, so it counts for nothing; the next refusal teaches it anew.
    pub fn limit(&self, now: Timestamp) -> Option<u64> {
        let learned = self.learned.filter(|learned| learned.at <= now.plus(DAY))?;
        let days = now.since(learned.at).as_secs() / DAY.as_secs();
        // After a year it has grown to what no provider has.
        (0..days.min(365)).try_fold(learned.tokens, |tokens, _| tokens.checked_add(tokens / 10 + 1))
    }

    /// How many tokens a batch that is cut now may have, `sharers` companies wanting some; none where there is no
    /// known limit, zero where there is no room. A tenth of the room is for companies that hold nothing of it yet
    /// (`newcomer`), so that one that comes late need not wait until the others have ended.
    pub fn for_a_cut(&self, now: Timestamp, sharers: u64, newcomer: bool) -> Option<u64> {
        let held = self.reserved.saturating_add(self.enqueued);
        let free = self.limit(now).map(|limit| {
            let limit = if newcomer { limit } else { limit - limit / 10 };
            let free = limit.saturating_sub(held);
            // Crumbs are not worth a batch while something larger will be free soon.
            if held > 0 && free < limit / 20 { 0 } else { free / sharers.max(1) }
        });
        match self.closed {
            None => free,
            Some(closed) if self.is_shut(closed, now) || closed.probe.is_some() => Some(0),
            Some(closed) => Some(free.map_or(closed.probe_max, |free| free.min(closed.probe_max)).max(1)),
        }
    }

    /// The same for a batch of what waits; zero, too, where it would not do for a single request. What is too little for
    /// one would only wait once it is cut.
    pub fn for_these(&self, waiting: &Waiting, now: Timestamp, sharers: u64, newcomer: bool) -> Option<u64> {
        let max = self.for_a_cut(now, sharers, newcomer)?;
        // Four bytes are a token, more or less.
        let one = self.corrected(waiting.bytes / waiting.requests.max(1) / 4);
        let held = self.reserved.saturating_add(self.enqueued) > 0;
        if max >= one || !held {
            return Some(max);
        }
        // Those that have their own already share nothing of what is kept for newcomers: it does for one, at least.
        let for_one = newcomer && self.for_a_cut(now, 1, true).is_some_and(|whole| whole >= one);
        Some(if for_one { one } else { 0 })
    }

    /// Whether the gate waits still. What was learned after `now` was learned by a clock that was turned back since.
    fn is_shut(&self, closed: Closed, now: Timestamp) -> bool {
        closed.until > now && self.learned.is_none_or(|learned| learned.at <= now)
    }

    /// Whether `batch` with its `tokens` may be created at `now`. A batch of one request cannot be made smaller.
    pub fn admits(&self, batch: BatchId, tokens: u64, single: bool, now: Timestamp) -> Admission {
        if let Some(closed) = self.closed {
            return match closed.probe {
                Some(probe) if probe == batch => Admission::Now,
                Some(_) => Admission::NotBefore(now.plus(LOOK_AGAIN)),
                None if self.is_shut(closed, now) => Admission::NotBefore(closed.until),
                None if tokens <= closed.probe_max || single => Admission::Now,
                None => Admission::TooBig,
            };
        }
        match self.limit(now) {
            None => Admission::Now,
            Some(limit) if tokens > limit && !single => Admission::TooBig,
            Some(limit) if self.enqueued > 0 && self.enqueued.saturating_add(tokens) > limit => {
                Admission::NotBefore(now.plus(LOOK_AGAIN))
            }
            Some(_) => Admission::Now,
        }
    }

    /// What happens to a batch that would be created at `now`, where there is no room for it.
    pub fn turns_away(&self, batch: &Batch, now: Timestamp) -> Option<Event> {
        match self.admits(batch.id, batch.held_tokens, batch.counts.members == 1, now) {
            Admission::Now => None,
            Admission::NotBefore(until) => Some(Event::RoomShut { until }),
            Admission::TooBig => {
                let detail =
                    "the provider has no room for so many tokens at once: its requests are cut smaller";
                Some(Event::GivenBack(Failure::new(FailureClass::Capacity, "too_large_for_room", detail)))
            }
        }
    }

    /// `batch` is about to be created: where the gate waits for one that tries, it is this one.
    pub fn trying(&mut self, batch: BatchId) {
        if let Some(closed) = &mut self.closed
            && closed.probe.is_none()
        {
            closed.probe = Some(batch);
        }
    }

    /// A batch of `tokens` was turned away at `now`, while `enqueued` still counts it. `first` is the first wait.
    pub fn refused(&mut self, tokens: u64, now: Timestamp, first: Duration) {
        let times = self.closed.map_or(0, |closed| closed.times).saturating_add(1);
        let there = self.enqueued.max(tokens);
        let tokens_now = there / 5 * 4 + there % 5 * 4 / 5;
        let learned = self.limit(now).map_or(tokens_now, |limit| limit.min(tokens_now)).max(1);
        self.learned = Some(Learned { tokens: learned, at: now });
        let until = now.plus(retry::capacity_wait(first, times));
        self.closed = Some(Closed { until, times, probe_max: (tokens / 2).max(1), probe: None });
    }

    /// A batch was admitted at `now`: the gate opens, if it was that batch's to open.
    pub fn admitted(&mut self, batch: BatchId, now: Timestamp) {
        self.admitted_at = Some(now);
        if self.closed.is_some_and(|closed| closed.probe == Some(batch)) {
            self.closed = None;
        }
    }

    /// A batch is over without having been admitted: another one may try.
    pub fn gave_up(&mut self, batch: BatchId) {
        if let Some(closed) = &mut self.closed
            && closed.probe == Some(batch)
        {
            closed.probe = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const FIRST: Duration = Duration::from_secs(60);

    fn batch(number: u128) -> BatchId {
        BatchId::new(Uuid::from_u128(number))
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    #[test]
    fn without_a_refusal_there_is_no_limit() {
        let room = Room { enqueued: 1 << 50, ..Room::default() };
        assert_eq!(room.for_a_cut(at(0), 3, true), None);
        assert_eq!(room.admits(batch(1), 1 << 50, false, at(0)), Admission::Now);
    }

    #[test]
    fn what_is_kept_for_newcomers_does_for_one_request_however_many_share_the_rest() {
        let learned = Some(Learned { tokens: 90_000, at: at(0) });
        let room = Room { learned, enqueued: 81_000, ..Room::default() };
        let waiting =
            |requests, tokens: u64| Waiting { requests, bytes: 4 * requests * tokens, oldest: at(0) };
        let for_these =
            |tokens, sharers, newcomer| room.for_these(&waiting(10, tokens), at(0), sharers, newcomer);
        assert_eq!(for_these(5_000, 2, true), Some(5_000), "a half of it would not do");
        assert_eq!(for_these(1_500, 11, true), Some(1_500));
        assert_eq!(for_these(100, 9, true), Some(1_000), "a share that does is no more than that");
        assert_eq!(for_these(9_001, 2, true), Some(0), "it is not there");
        assert_eq!(for_these(100, 2, false), Some(0));
    }

    #[test]
    fn a_refusal_closes_the_gate_longer_each_time_and_one_probe_of_half_the_size_opens_it() {
        let mut room = Room { enqueued: 1000, ..Room::default() };
        room.refused(400, at(0), FIRST);
        room.enqueued = 600;
        assert_eq!(room.limit(at(0)), Some(800));
        assert_eq!(room.for_a_cut(at(59), 1, true), Some(0));
        assert_eq!(room.admits(batch(2), 10, false, at(59)), Admission::NotBefore(at(60)));
        assert_eq!(room.for_a_cut(at(60), 1, true), Some(200));
        assert_eq!(room.admits(batch(2), 201, false, at(60)), Admission::TooBig);
        room.trying(batch(3));
        assert_eq!(room.for_a_cut(at(60), 1, true), Some(0), "one tries at a time");
        assert_eq!(room.admits(batch(2), 10, false, at(60)), Admission::NotBefore(at(90)));
        assert_eq!(room.admits(batch(3), 200, false, at(60)), Admission::Now);
        room.refused(200, at(60), FIRST);
        assert_eq!(room.closed.unwrap().until, at(180));
        assert_eq!(room.closed.unwrap().probe_max, 100);
        room.trying(batch(4));
        room.admitted(batch(9), at(60));
        assert!(room.closed.is_some());
        room.admitted(batch(4), at(60));
        assert_eq!(room.closed, None);
    }

    #[test]
    fn a_gate_that_was_closed_by_a_clock_that_is_turned_back_does_not_stay_closed() {
        let mut room = Room::default();
        room.refused(100, at(1_000_000), FIRST);
        assert_eq!(room.admits(batch(1), 10, false, at(1_000_030)), Admission::NotBefore(at(1_000_060)));
        assert_eq!(room.admits(batch(1), 10, false, at(30)), Admission::Now);
        assert_eq!(room.for_a_cut(at(30), 1, true), Some(50));
    }

    #[test]
    fn the_wait_is_bounded() {
        let mut room = Room::default();
        for _ in 0..40 {
            room.refused(100, at(0), FIRST);
        }
        assert_eq!(room.closed.unwrap().until, at(3600));
        assert!(room.learned.unwrap().tokens >= 1);
    }

    #[test]
    fn a_probe_that_gives_up_leaves_its_place() {
        let mut room = Room::default();
        room.refused(100, at(0), FIRST);
        room.trying(batch(1));
        room.gave_up(batch(2));
        assert_eq!(room.closed.unwrap().probe, Some(batch(1)));
        room.gave_up(batch(1));
        assert_eq!(room.closed.unwrap().probe, None);
    }

    #[test]
    fn the_limit_grows_by_a_tenth_a_day_and_is_shared() {
        let learned = Some(Learned { tokens: 1000, at: at(0) });
        let room = Room { learned, enqueued: 500, ..Room::default() };
        assert_eq!(room.limit(at(86_399)), Some(1000));
        assert_eq!(room.limit(at(86_400)), Some(1101));
        assert_eq!(room.for_a_cut(at(0), 2, true), Some(250));
        assert_eq!(room.admits(batch(1), 501, false, at(0)), Admission::NotBefore(at(30)));
        assert_eq!(room.admits(batch(1), 1001, false, at(0)), Admission::TooBig);
        assert_eq!(room.for_a_cut(at(0), 2, false), Some(200), "a tenth is for others");
        let crumbs = Room { enqueued: 980, ..room };
        assert_eq!(crumbs.for_a_cut(at(0), 1, true), Some(0));
    }

    #[test]
    fn what_a_clock_learned_that_was_far_ahead_counts_for_nothing() {
        let learned = |at| Room { learned: Some(Learned { tokens: 10, at }), ..Room::default() };
        assert_eq!(learned(at(60)).limit(at(0)), Some(10), "two clocks may differ a little");
        assert_eq!(learned(at(0).plus(DAY * 300)).limit(at(0)), None);
    }

    #[test]
    fn what_fits_nowhere_and_cannot_be_cut_is_tried_alone() {
        let room = Room { learned: Some(Learned { tokens: 10, at: at(0) }), ..Room::default() };
        assert_eq!(room.admits(batch(1), 50, true, at(0)), Admission::Now);
        assert_eq!(room.admits(batch(1), 50, false, at(0)), Admission::TooBig);
    }

    #[test]
    fn an_answer_is_as_long_as_it_may_be_or_twice_the_usual() {
        let mut room = Room::default();
        assert_eq!((room.output(None), room.output(Some(7))), (1000, 7));
        for _ in 0..ANSWERS_MIN {
            room.answered(50);
        }
        assert_eq!((room.output(None), room.output(Some(7))), (100, 7));
        for _ in 0..3 * ANSWERS_MAX {
            room.answered(10);
        }
        assert!(room.answers <= ANSWERS_MAX && room.output(None) == 20);
    }

    #[test]
    fn estimates_are_corrected_by_what_was_counted_within_bounds() {
        let mut room = Room::default();
        room.measured(500, 1000);
        assert_eq!(room.corrected(100), 100, "too little to tell");
        room.measured(1500, 3000);
        assert_eq!(room.corrected(100), 200);
        room.measured(2000, 400_000);
        assert_eq!(room.corrected(100), 400);
        let mut low = Room::default();
        low.measured(100_000, 1);
        assert_eq!(low.corrected(100), 25);
        low.measured(u64::MAX / 2, u64::MAX / 2);
        assert!(low.estimated <= MEASURED_MAX);
    }
}
