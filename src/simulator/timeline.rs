//! Where a batch is at a moment: its status, stamps and counts, and which work is due. Pure.
//!
//! All of it follows from when the batch was created, what was found and asked since, and the time, so that a restart
//! goes on as if there had been none.

use super::faults::BatchFault;
use super::world::{BatchRecord, Ending, Verdict};

/// The status of a batch at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl Status {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    pub(super) fn is_terminal(self) -> bool {
        match self {
            Self::Failed | Self::Completed | Self::Expired | Self::Cancelled => true,
            Self::Validating | Self::InProgress | Self::Finalizing | Self::Cancelling => false,
        }
    }
}

/// Work on a batch that is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Work {
    /// Read the input and judge it, as of `at`.
    Validate { at: i64 },
    /// Run `share` of the lines and end as `ending`, as of `at`.
    Run { share: f64, ending: Ending, at: i64 },
}

/// The longest that a cancel takes.
const CANCEL_MAX_MS: i64 = 10 * 60 * 1000;

impl BatchRecord {
    /// When validation ends, never later than half the window.
    fn validated_at(&self) -> i64 {
        self.created_at + (self.turnaround * 15 / 100).min(self.window / 2)
    }

    fn finalizing_at(&self) -> i64 {
        self.created_at + self.turnaround * 85 / 100
    }

    fn completed_at(&self) -> i64 {
        self.created_at + self.turnaround
    }

    pub(super) fn expires_at(&self) -> i64 {
        self.created_at + self.window
    }

    fn cancelled_at(&self, requested_at: i64) -> i64 {
        requested_at + (self.turnaround / 20).min(CANCEL_MAX_MS)
    }

    /// Which share of the lines is done at `now`.
    fn share(&self, now: i64) -> f64 {
        let (from, to) = (self.validated_at(), self.finalizing_at());
        if now >= to {
            return 1.0;
        }
        #[allow(clippy::cast_precision_loss, reason = "a share need not be exact")]
        let share = (now - from) as f64 / (to - from) as f64;
        share.clamp(0.0, 1.0)
    }

    /// When this share of the lines is done.
    fn at_share(&self, share: f64) -> i64 {
        let (from, to) = (self.validated_at(), self.finalizing_at());
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "a time within the run"
        )]
        let passed = ((to - from) as f64 * share) as i64;
        from + passed
    }

    /// What has to be computed before the batch may show what it is at `now`.
    pub(super) fn due(&self, now: i64) -> Option<Work> {
        let Some(verdict) = &self.verdict else {
            let at = self.validated_at();
            // A batch that is cancelled while it is validated never runs.
            return (self.cancel_requested_at.is_none() && now >= at).then_some(Work::Validate { at });
        };
        if matches!(verdict, Verdict::Failed { .. }) || self.results.is_some() {
            return None;
        }
        let (share, ending, at) = self.end();
        (now >= at).then_some(Work::Run { share, ending, at })
    }

    /// How and when this valid batch ends.
    fn end(&self) -> (f64, Ending, i64) {
        if let Some(requested_at) = self.cancel_requested_at {
            return (self.share(requested_at), Ending::Cancelled, self.cancelled_at(requested_at));
        }
        for (_, fault) in &self.faults {
            match fault {
                BatchFault::Expire { share } => return (*share, Ending::Expired, self.at_share(*share)),
                BatchFault::Cancel { share } => return (*share, Ending::Cancelled, self.at_share(*share)),
                BatchFault::Invisible { .. }
                | BatchFault::Fail { .. }
                | BatchFault::Refuse { .. }
                | BatchFault::Gone { .. }
                | BatchFault::NullOutput { .. }
                | BatchFault::EmptyIds {}
                | BatchFault::SkipStates {}
                | BatchFault::WrongCounts {}
                | BatchFault::NoCounts {}
                | BatchFault::UnknownStatus { .. }
                | BatchFault::IsoTimes {}
                | BatchFault::UnknownFields {} => {}
            }
        }
        if self.expires_at() < self.finalizing_at() {
            return (self.share(self.expires_at()), Ending::Expired, self.expires_at());
        }
        (1.0, Ending::Completed, self.finalizing_at())
    }

    /// The status at `now`, given that no work is due.
    pub(super) fn status(&self, now: i64) -> Status {
        match (&self.verdict, &self.results, self.cancel_requested_at) {
            (Some(Verdict::Failed { .. }), _, _) => Status::Failed,
            (None, _, Some(requested_at)) if now >= self.cancelled_at(requested_at) => Status::Cancelled,
            (None, _, Some(_)) | (Some(Verdict::Passed { .. }), None, Some(_)) => Status::Cancelling,
            (None, _, None) => Status::Validating,
            (Some(Verdict::Passed { .. }), None, None) => Status::InProgress,
            (Some(Verdict::Passed { .. }), Some(results), _) => match results.ending {
                Ending::Completed if now < self.completed_at() => Status::Finalizing,
                Ending::Completed => Status::Completed,
                Ending::Expired => Status::Expired,
                Ending::Cancelled => Status::Cancelled,
            },
        }
    }

    /// The moments that the batch has passed at `now`.
    pub(super) fn stamps(&self, now: i64) -> Stamps {
        let status = self.status(now);
        let mut stamps = Stamps { cancelling_at: self.cancel_requested_at, ..Stamps::default() };
        match &self.verdict {
            Some(Verdict::Failed { at, .. }) => stamps.failed_at = Some(*at),
            Some(Verdict::Passed { at, .. }) => stamps.in_progress_at = Some(*at),
            None => {}
        }
        let ended_at = self.results.as_ref().map(|results| results.at);
        match status {
            Status::Finalizing => stamps.finalizing_at = ended_at,
            Status::Completed => {
                stamps.finalizing_at = ended_at;
                stamps.completed_at = Some(self.completed_at());
            }
            Status::Expired => stamps.expired_at = ended_at,
            Status::Cancelled => {
                let requested_at = self.cancel_requested_at.or(ended_at);
                stamps.cancelling_at = requested_at;
                stamps.cancelled_at = ended_at.or(requested_at.map(|at| self.cancelled_at(at)));
            }
            Status::Validating | Status::Failed | Status::InProgress | Status::Cancelling => {}
        }
        stamps
    }

    /// `total`, `completed` and `failed` at `now`.
    pub(super) fn counts(&self, now: i64) -> (u64, u64, u64) {
        let Some(Verdict::Passed { total, .. }) = self.verdict else { return (0, 0, 0) };
        if let Some(results) = &self.results {
            return (total, results.completed, results.failed);
        }
        let until = self.cancel_requested_at.unwrap_or(now);
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of at most 50,000 lines"
        )]
        let completed = (total as f64 * self.share(until)) as u64;
        (total, completed, 0)
    }

    pub(super) fn has_fault(&self, fault: &BatchFault) -> bool {
        self.faults.iter().any(|(_, planned)| planned == fault)
    }
}

/// When a batch reached its states, in milliseconds; none where it did not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stamps {
    pub(super) in_progress_at: Option<i64>,
    pub(super) finalizing_at: Option<i64>,
    pub(super) completed_at: Option<i64>,
    pub(super) failed_at: Option<i64>,
    pub(super) expired_at: Option<i64>,
    pub(super) cancelling_at: Option<i64>,
    pub(super) cancelled_at: Option<i64>,
}

/// Whether a batch may be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CancelRule {
    /// It is running: ask it to stop.
    Request,
    /// It is being or was cancelled: nothing changes.
    Already,
    /// It has come too far.
    Refuse,
}

/// What cancelling means for a batch of this status.
pub(super) fn cancel_rule(status: Status) -> CancelRule {
    match status {
        Status::Validating | Status::InProgress => CancelRule::Request,
        Status::Cancelling | Status::Cancelled => CancelRule::Already,
        Status::Finalizing | Status::Failed | Status::Completed | Status::Expired => CancelRule::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::batch;
    use super::super::world::{Results, Usage};
    use super::*;

    fn passed(mut batch: BatchRecord) -> BatchRecord {
        batch.verdict = Some(Verdict::Passed { at: 15_000, total: 10, model: "m".to_owned(), tokens: 5 });
        batch
    }

    fn ended(mut batch: BatchRecord, work: Option<Work>) -> BatchRecord {
        let Some(Work::Run { ending, at, .. }) = work else { panic!("{work:?}") };
        let usage = Usage::default();
        batch.results =
            Some(Results { ending, at, output: None, error: None, completed: 0, failed: 0, usage });
        batch
    }

    #[test]
    fn a_batch_goes_through_its_states_as_time_passes() {
        let batch = batch();
        assert_eq!((batch.due(14_999), batch.status(14_999)), (None, Status::Validating));
        assert_eq!(batch.due(15_000), Some(Work::Validate { at: 15_000 }));
        let batch = passed(batch);
        assert_eq!((batch.due(50_000), batch.status(50_000)), (None, Status::InProgress));
        assert_eq!(batch.counts(50_000), (10, 5, 0));
        let work = batch.due(500_000);
        assert_eq!(work, Some(Work::Run { share: 1.0, ending: Ending::Completed, at: 85_000 }));
        let batch = ended(batch, work);
        assert_eq!(batch.status(99_999), Status::Finalizing);
        assert_eq!(batch.status(100_000), Status::Completed);
        assert_eq!(batch.stamps(100_000).completed_at, Some(100_000));
    }

    #[test]
    fn a_batch_cancelled_half_way_keeps_half_and_one_cancelled_early_never_runs() {
        let mut early = batch();
        early.cancel_requested_at = Some(1_000);
        assert_eq!((early.due(80_000), early.status(5_999)), (None, Status::Cancelling));
        assert_eq!(early.status(6_000), Status::Cancelled);
        let mut later = passed(batch());
        later.cancel_requested_at = Some(50_000);
        assert_eq!((later.due(54_999), later.status(54_999)), (None, Status::Cancelling));
        let work = later.due(55_000);
        assert_eq!(work, Some(Work::Run { share: 0.5, ending: Ending::Cancelled, at: 55_000 }));
        assert_eq!(ended(later, work).status(55_000), Status::Cancelled);
    }

    #[test]
    fn a_batch_that_outlasts_its_window_expires_with_what_it_has() {
        let slow = BatchRecord { window: 50_000, ..passed(batch()) };
        let work = slow.due(50_000);
        assert_eq!(work, Some(Work::Run { share: 0.5, ending: Ending::Expired, at: 50_000 }));
        assert_eq!(ended(slow, work).stamps(60_000).expired_at, Some(50_000));
    }

    #[test]
    fn what_has_ended_cannot_be_cancelled_and_what_was_cancelled_stays_so() {
        assert_eq!(cancel_rule(Status::Completed), CancelRule::Refuse);
        assert_eq!(cancel_rule(Status::Cancelled), CancelRule::Already);
        assert_eq!(cancel_rule(Status::InProgress), CancelRule::Request);
    }
}
