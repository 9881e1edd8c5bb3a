//! Stand-in until the branch with the real one is merged.
use super::batch::Problem;
use super::request::FailureClass;
use std::time::Duration;
/// x
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// x
    pub max_attempts: u32,
    /// x
    pub backoff: Duration,
    /// x
    pub capacity_backoff: Duration,
}
/// x
pub enum Decision {
    /// x
    Retry {
        /// x
        after: Duration,
    },
    /// x
    Fail,
}
impl Policy {
    /// x
    pub fn next(&self, attempts: u32, class: FailureClass, _seed: u64) -> Decision {
        if attempts < self.max_attempts && class == FailureClass::Transient {
            Decision::Retry { after: self.backoff }
        } else {
            Decision::Fail
        }
    }
}
/// x
pub fn counts(_class: FailureClass) -> bool {
    true
}
/// x
pub enum BatchFailure {
    /// x
    Capacity,
    /// x
    Account,
    /// x
    InputGone,
    /// x
    Lines(Vec<u64>),
    /// x
    Unknown,
}
/// x
pub fn batch_failure(_p: &[Problem]) -> BatchFailure {
    BatchFailure::Unknown
}
