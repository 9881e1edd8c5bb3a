//! What a failure means and when a request is tried again: classes, batch failures, back-off, attempts.
//!
//! Pure: the codes and statuses of the provider come in as text and numbers, the jitter as a seed.

use std::time::Duration;

use super::request::{Failure, FailureClass};

/// Codes that say that money or quota is the trouble, whatever the HTTP status.
const BILLING_CODES: [&str; 6] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
];

/// Codes that say that the key is the trouble.
const KEY_CODES: [&str; 6] = [
    "invalid_api_key",
    "authentication_error",
    "auth_error",
    "account_deactivated",
    "permission_error",
    "permission_denied",
];

/// Codes that say that the provider has no room for our tokens just now.
const CAPACITY_CODES: [&str; 2] = ["token_limit_exceeded", "enqueued_request_limit_reached"];

/// Codes of trouble that passes, whatever the status beside them.
const TRANSIENT_CODES: [&str; 15] = [
    "batch_expired",
    "batch_cancelled",
    "request_timeout",
    "timeout",
    "rate_limit_exceeded",
    "rate_limit_error",
    "slow_down",
    "server_error",
    "server_is_overloaded",
    "service_unavailable_error",
    "overloaded_error",
    "internal_error",
    "internal_server_error",
    "output_failed",
    "api_connection_error",
];

/// Codes that say what is wrong with a request: it fails every time, alone as well as in a batch that is refused for
/// it. Nor do they count beside a 5xx: proxies put them there when a back end is away.
const REQUEST_CODES: [&str; 14] = [
    "context_length_exceeded",
    "string_above_max_length",
    "invalid_value",
    "invalid_type",
    "invalid_prompt",
    "invalid_image",
    "invalid_json_schema",
    "unsupported_parameter",
    "unsupported_value",
    "unknown_parameter",
    "missing_required_parameter",
    "streaming_unsupported",
    "content_policy_violation",
    "content_filter",
];

/// Codes of a line that fails every time and that, of a whole batch, may mean something else than its lines.
const PERMANENT_CODES: [&str; 5] =
    ["model_not_found", "invalid_request", "invalid_request_error", "not_found_error", "badrequesterror"];

/// Codes of a batch that speak of a line, whether or not it is named, and that no line has by itself.
const LINE_CODES: [&str; 8] = [
    "invalid_json_line",
    "duplicate_custom_id",
    "missing_custom_id",
    "invalid_method",
    "invalid_url",
    "url_mismatch",
    "mismatched_model",
    "model_mismatch",
];

fn listed(list: &[&str], word: &str) -> bool {
    list.iter().any(|entry| entry.eq_ignore_ascii_case(word))
}

/// Whether a code says that money or quota is the trouble.
pub fn is_billing(code: &str) -> bool {
    listed(&BILLING_CODES, code)
}

/// Whether a code says that the key is the trouble; some gateways say so with a 400.
pub fn is_key_trouble(code: &str) -> bool {
    listed(&KEY_CODES, code)
}

/// Its batch was not admitted because of other lines, as far as is known.
pub const REFUSED: &str = "batch_refused";
/// Its batch was not admitted because of its size.
pub const TOO_LARGE: &str = "batch_too_large";
/// Its batch was refused for what may be one of its lines, and none is named: its requests are tried in halves.
pub const NOT_NAMED: &str = "batch_refused_for_a_line";

/// Whether a refusal says that there is no room at the provider just now.
pub fn is_no_room(failure: &Failure) -> bool {
    let (code, message) = (Some(failure.code.as_str()), Some(failure.detail.as_str()));
    BatchFault { code, message, ..BatchFault::default() }.is_capacity()
}

/// What to do about a failed line, from its HTTP status, its `error.code` and its `error.type`.
///
/// A status of 0 is what some servers write where there was none. What we do not know is transient where
/// the status may pass or is absent, which the limit of attempts bounds, and permanent for other 4xx.
pub fn classify(http_status: Option<u16>, code: Option<&str>, kind: Option<&str>) -> FailureClass {
    let words = || [code, kind].into_iter().flatten();
    // Some servers put the HTTP status into the code, as text.
    let status = http_status
        .filter(|status| *status != 0 && !(200..300).contains(status))
        .or_else(|| code.and_then(|code| code.parse().ok()).filter(|status| (300..600).contains(status)));
    let says = |list: &[&str]| words().any(|word| listed(list, word));
    let is_ours = matches!(status, None | Some(400..500));
    if says(&BILLING_CODES) || matches!(status, Some(401 | 403)) || (is_ours && says(&KEY_CODES)) {
        return FailureClass::Account;
    }
    if says(&CAPACITY_CODES) {
        return FailureClass::Capacity;
    }
    if says(&TRANSIENT_CODES) {
        return FailureClass::Transient;
    }
    match status {
        Some(408 | 409 | 425 | 429) => FailureClass::Transient,
        Some(400..500) => FailureClass::Permanent,
        Some(_) => FailureClass::Transient,
        None if says(&REQUEST_CODES) || says(&PERMANENT_CODES) => FailureClass::Permanent,
        None => FailureClass::Transient,
    }
}

/// One entry of a failed batch's `errors`, as the provider gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchFault<'a> {
    /// For instance `token_limit_exceeded`.
    pub code: Option<&'a str>,
    /// The provider's words.
    pub message: Option<&'a str>,
    /// For instance `body.model`.
    pub param: Option<&'a str>,
    /// The line of the input file, from 1.
    pub line: Option<u64>,
}

impl BatchFault<'_> {
    fn failure(&self, class: FailureClass) -> Failure {
        Failure::new(
            class,
            self.code.unwrap_or("batch_failed"),
            self.message.or(self.param).unwrap_or_default(),
        )
    }

    fn has_code(&self, list: &[&str]) -> bool {
        self.code.is_some_and(|code| listed(list, code))
    }

    /// Whether the words name room at the provider: embeddings have no code for it.
    fn is_capacity(&self) -> bool {
        let message = self.message.unwrap_or_default().to_ascii_lowercase();
        self.has_code(&CAPACITY_CODES) || (message.contains("enqueued") && message.contains("limit"))
    }

    fn is_input_gone(&self) -> bool {
        let about_file = matches!(self.param, Some("file_id" | "input_file_id"));
        // A file that was found and is empty, or is no JSONL, does not get better by another upload.
        let gone =
            self.has_code(&["invalid_request", "invalid_request_error", "not_found"]) || self.code.is_none();
        (about_file && gone) || self.has_code(&["input_modified", "file_not_found"])
    }
}

/// One line that the provider refused when it looked at the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineFault {
    /// The line of the input file, from 1.
    pub line: u64,
    /// Why; always permanent.
    pub failure: Failure,
}

/// What a batch with the status `failed` and no result files means. It ran nothing and cost nothing. Where nothing
/// tells this batch's lines from the next one's (`TooLarge`, `Unknown`) the tries are counted all the same, or the
/// same work would be refused for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchFailure {
    /// Quota, billing or key: the account pauses, the members go back.
    Account(Failure),
    /// No room for the tokens: the same work later, with the model's gate closed meanwhile.
    Capacity(Failure),
    /// The provider does not find the input file, or finds it changed: upload again.
    InputGone(Failure),
    /// The whole group is refused (the model cannot be batched): every member fails so.
    Group(Failure),
    /// Too many lines or bytes: a new batch, as often as a request may be tried.
    TooLarge(Failure),
    /// These lines are refused, ascending and each once; the others go back.
    Lines(Vec<LineFault>),
    /// A line is refused and none is named: smaller batches, until the line is alone.
    SomeLine(Failure),
    /// The provider's own trouble, or words that we do not know and that name no line: the same batch a few times, then
    /// halves of it, as far as others are admitted meanwhile.
    Unknown(Failure),
}

impl BatchFailure {
    /// Reads the provider's list. Where it names several troubles the one that holds for the whole batch
    /// wins, since a batch without it may still be admitted.
    pub fn from_faults(faults: &[BatchFault<'_>]) -> Self {
        let find = |is: &dyn Fn(&BatchFault<'_>) -> bool| faults.iter().find(|fault| is(fault));
        if let Some(fault) = find(&|fault| fault.has_code(&BILLING_CODES) || fault.has_code(&KEY_CODES)) {
            return Self::Account(fault.failure(FailureClass::Account));
        }
        if let Some(fault) = find(&|fault| fault.is_capacity()) {
            return Self::Capacity(fault.failure(FailureClass::Capacity));
        }
        if let Some(fault) = find(&|fault| fault.is_input_gone()) {
            return Self::InputGone(fault.failure(FailureClass::Transient));
        }
        // One group shares one model, so what is said of one line holds for all, and the list may be cut short.
        if let Some(fault) = find(&|fault| fault.has_code(&["model_not_found"])) {
            return Self::Group(fault.failure(FailureClass::Permanent));
        }
        if let Some(fault) =
            find(&|fault| fault.has_code(&["too_many_tasks", "batch_request_limit_exceeded"]))
        {
            return Self::TooLarge(fault.failure(FailureClass::Transient));
        }
        let lines = Self::lines(faults);
        if !lines.is_empty() {
            return Self::Lines(lines);
        }
        if let Some(fault) = find(&|fault| fault.has_code(&REQUEST_CODES) || fault.has_code(&LINE_CODES)) {
            return Self::SomeLine(fault.failure(FailureClass::Transient));
        }
        let first = faults.first().copied().unwrap_or_default();
        Self::Unknown(first.failure(FailureClass::Transient))
    }

    fn lines(faults: &[BatchFault<'_>]) -> Vec<LineFault> {
        let mut lines: Vec<LineFault> = faults
            .iter()
            // A line that the provider stumbled over is not itself at fault.
            .filter(|fault| !fault.has_code(&TRANSIENT_CODES))
            .filter_map(|fault| {
                let line = fault.line.filter(|line| *line > 0)?;
                Some(LineFault { line, failure: fault.failure(FailureClass::Permanent) })
            })
            .collect();
        lines.sort_by_key(|fault| fault.line);
        lines.dedup_by_key(|fault| fault.line);
        lines
    }

    /// A short name for logs and metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Account(_) => "account",
            Self::Capacity(_) => "capacity",
            Self::InputGone(_) => "input_gone",
            Self::Group(_) => "group",
            Self::TooLarge(_) => "too_large",
            Self::Lines(_) => "lines",
            Self::SomeLine(_) => "some_line",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// Whether a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Back to pending; not to be batched before so long has passed.
    Retry {
        /// How long to wait.
        after: Duration,
    },
    /// Not again, unless an operator says so.
    Fail,
}

/// How often and how late a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Attempts in all, the first included.
    pub max_attempts: u32,
    /// The wait after the first failed attempt; doubled after each further one.
    pub backoff: Duration,
    /// How long a model's gate stays closed the first time that there is no room.
    pub capacity_backoff: Duration,
}

impl Policy {
    /// No request waits longer than this between two attempts.
    pub const BACKOFF_MAX: Duration = Duration::from_secs(3600);
    /// A wait for room is at most so many times as long as the first one.
    pub const CAPACITY_FACTOR_MAX: u32 = 60;

    /// Whether a failure of this class counts as an attempt. Trouble with the account or with room says
    /// nothing about the request.
    pub const fn uses_attempt(class: FailureClass) -> bool {
        match class {
            FailureClass::Account | FailureClass::Capacity => false,
            FailureClass::Transient
            | FailureClass::Permanent
            | FailureClass::Unusable
            | FailureClass::Lost => true,
        }
    }

    /// What becomes of a request that failed so. `times` is how often: attempts that count ([`Policy::uses_attempt`]),
    /// or, for a class that uses none, failures of that class in a row; this one included. `seed` spreads requests
    /// that failed together.
    pub fn next(&self, times: u32, class: FailureClass, seed: u64) -> Decision {
        match class {
            // It says nothing about the request, which never fails by it; but the wait grows, so that what is refused
            // for ever is not sent every minute.
            FailureClass::Account => Decision::Retry { after: doubled(self.backoff, times, seed) },
            FailureClass::Capacity => Decision::Retry { after: doubled(self.capacity_backoff, times, seed) },
            FailureClass::Transient if times < self.max_attempts => {
                Decision::Retry { after: doubled(self.backoff, times, seed) }
            }
            // An unusable or lost answer was paid for; to buy it again is for an operator to say.
            FailureClass::Transient
            | FailureClass::Permanent
            | FailureClass::Unusable
            | FailureClass::Lost => Decision::Fail,
        }
    }
}

/// How long a batch waits when there was no room `times` times in a row (1 the first time), by the first wait.
pub fn capacity_wait(first: Duration, times: u32) -> Duration {
    let factor = 1_u32 << times.saturating_sub(1).min(31);
    first.saturating_mul(factor.min(Policy::CAPACITY_FACTOR_MAX))
}

/// `first`, doubled for each time before this one, at most [`Policy::BACKOFF_MAX`], spread by the seed.
fn doubled(first: Duration, times: u32, seed: u64) -> Duration {
    let doublings = times.saturating_sub(1).min(31);
    jittered(first.saturating_mul(1 << doublings).min(Policy::BACKOFF_MAX), seed)
}

/// Between three quarters and all of `wait`, the same for the same seed.
fn jittered(wait: Duration, seed: u64) -> Duration {
    // The finalizer of splitmix64: neighbouring seeds give unrelated fractions.
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let quarter = wait / 4;
    let part = u32::try_from(mixed >> 54).unwrap_or(0);
    wait - quarter.saturating_mul(part) / 1024
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use FailureClass as C;

    const POLICY: Policy = Policy {
        max_attempts: 3,
        backoff: Duration::from_secs(60),
        capacity_backoff: Duration::from_secs(60),
    };

    #[test]
    fn each_row_of_the_contract_gets_its_class() {
        let rows = [
            (None, Some("batch_expired"), C::Transient),
            (None, Some("batch_cancelled"), C::Transient),
            (None, Some("request_timeout"), C::Transient),
            (Some(0), None, C::Transient),
            (Some(408), None, C::Transient),
            (Some(409), None, C::Transient),
            (Some(425), None, C::Transient),
            (Some(429), Some("rate_limit_exceeded"), C::Transient),
            (Some(500), None, C::Transient),
            (Some(503), Some("server_is_overloaded"), C::Transient),
            (Some(429), Some("insufficient_quota"), C::Account),
            (Some(400), Some("billing_hard_limit_reached"), C::Account),
            (Some(401), None, C::Account),
            (Some(403), Some("unsupported_country"), C::Account),
            (Some(400), Some("context_length_exceeded"), C::Permanent),
            (Some(400), Some("content_policy_violation"), C::Permanent),
            (Some(404), Some("model_not_found"), C::Permanent),
            (Some(413), None, C::Permanent),
            (Some(422), Some("never_heard_of"), C::Permanent),
            (None, Some("never_heard_of"), C::Transient),
            (None, None, C::Transient),
            (None, Some("token_limit_exceeded"), C::Capacity),
            (None, Some("400"), C::Permanent),
            (Some(0), Some("429"), C::Transient),
            (Some(503), Some("model_not_found"), C::Transient),
            (Some(400), Some("invalid_api_key"), C::Account),
            (Some(500), Some("authentication_error"), C::Transient),
        ];
        for (status, code, class) in rows {
            assert_eq!(classify(status, code, None), class, "{status:?} {code:?}");
        }
    }

    #[test]
    fn a_kind_counts_where_there_is_no_status() {
        assert_eq!(classify(None, None, Some("invalid_request_error")), C::Permanent);
        assert_eq!(classify(None, None, Some("BadRequestError")), C::Permanent);
        assert_eq!(classify(None, None, Some("authentication_error")), C::Account);
        assert_eq!(classify(Some(429), Some("x"), Some("insufficient_quota")), C::Account);
        assert_eq!(classify(Some(429), None, Some("invalid_request_error")), C::Transient);
    }

    fn fault(code: &'static str, param: &'static str, line: Option<u64>) -> BatchFault<'static> {
        BatchFault { code: Some(code), message: None, param: Some(param), line }
    }

    #[test]
    fn a_failed_batch_without_room_waits_even_if_lines_are_named() {
        let faults = [fault("invalid_value", "body", Some(3)), fault("token_limit_exceeded", "", None)];
        assert_eq!(BatchFailure::from_faults(&faults).label(), "capacity");
        let words = BatchFault { message: Some("Enqueued request limit reached"), ..BatchFault::default() };
        assert_eq!(BatchFailure::from_faults(&[words]).label(), "capacity");
    }

    #[test]
    fn a_failed_batch_names_its_bad_lines_once_and_in_order() {
        let faults = [
            fault("missing_required_parameter", "body.messages", Some(17)),
            fault("duplicate_custom_id", "custom_id", Some(4)),
            fault("never_heard_of", "body", Some(17)),
            fault("internal_error", "", Some(2)),
        ];
        let BatchFailure::Lines(lines) = BatchFailure::from_faults(&faults) else { panic!("no lines") };
        assert_eq!(lines.iter().map(|fault| fault.line).collect::<Vec<_>>(), [4, 17]);
        assert_eq!(lines[1].failure.code, "missing_required_parameter");
        assert!(lines.iter().all(|fault| fault.failure.class == C::Permanent));
    }

    #[test]
    fn a_failed_batch_says_what_holds_for_the_whole_of_it() {
        let label = |code, param, line| BatchFailure::from_faults(&[fault(code, param, line)]).label();
        assert_eq!(label("invalid_request", "file_id", None), "input_gone");
        assert_eq!(label("input_modified", "", None), "input_gone");
        assert_eq!(label("model_not_found", "body.model", Some(1)), "group");
        assert_eq!(label("too_many_tasks", "", None), "too_large");
        assert_eq!(label("billing_hard_limit_reached", "", None), "account");
        assert_eq!(label("internal_error", "", Some(1)), "unknown");
        assert_eq!(label("empty_file", "input_file_id", None), "unknown");
        assert_eq!(BatchFailure::from_faults(&[]).label(), "unknown");
    }

    #[test]
    fn a_transient_failure_is_tried_again_until_the_attempts_are_used_up() {
        let Decision::Retry { after } = POLICY.next(2, C::Transient, 1) else { panic!("gave up") };
        assert!(after > Duration::from_secs(89) && after <= Duration::from_secs(120), "{after:?}");
        assert_eq!(POLICY.next(3, C::Transient, 1), Decision::Fail);
        assert_eq!(POLICY.next(1, C::Permanent, 1), Decision::Fail);
        assert_eq!(POLICY.next(1, C::Unusable, 1), Decision::Fail);
        assert_eq!(POLICY.next(1, C::Lost, 1), Decision::Fail);
    }

    #[test]
    fn trouble_with_the_account_waits_longer_each_time() {
        let wait = |times| match POLICY.next(times, C::Account, 1) {
            Decision::Retry { after } => after,
            Decision::Fail => panic!("it failed"),
        };
        assert!(wait(1) < wait(2) && wait(2) < wait(4) && wait(99) <= Policy::BACKOFF_MAX);
    }

    #[test]
    fn a_gate_stays_closed_twice_as_long_each_time_up_to_sixty_times() {
        let waits: Vec<u64> =
            [1, 2, 3, 6, 7, 99].map(|times| capacity_wait(POLICY.capacity_backoff, times).as_secs()).to_vec();
        assert_eq!(waits, [60, 120, 240, 1920, 3600, 3600]);
    }

    proptest! {
        #[test]
        fn trouble_with_the_account_or_with_room_never_fails_a_request(done: u32, seed: u64) {
            for class in [C::Account, C::Capacity] {
                prop_assert!(!Policy::uses_attempt(class));
                prop_assert_ne!(POLICY.next(done, class, seed), Decision::Fail);
            }
        }

        #[test]
        fn a_wait_is_bounded_and_the_same_for_the_same_seed(done in 1_u32..200, seed: u64, secs in 0_u64..1 << 40) {
            let backoff = Duration::from_secs(secs);
            let policy = Policy { max_attempts: u32::MAX, backoff, ..POLICY };
            let Decision::Retry { after } = policy.next(done, C::Transient, seed) else { panic!("gave up") };
            prop_assert!(after <= Policy::BACKOFF_MAX);
            prop_assert!(after >= backoff.min(Policy::BACKOFF_MAX) * 3 / 4);
            prop_assert_eq!(policy.next(done, C::Transient, seed), Decision::Retry { after });
        }

        #[test]
        fn no_words_of_the_provider_upset_the_reading(status: Option<u16>, code: Option<String>, line: Option<u64>) {
            let class = classify(status, code.as_deref(), None);
            prop_assert!(class != C::Lost && class != C::Unusable);
            let fault = BatchFault { code: code.as_deref(), line, ..BatchFault::default() };
            let _ = BatchFailure::from_faults(&[fault]).label();
        }
    }

    #[test]
    fn a_line_that_is_not_named_is_told_from_words_that_may_mean_the_account() {
        let judged =
            |code| BatchFailure::from_faults(&[BatchFault { code: Some(code), ..Default::default() }]);
        for code in
            ["invalid_json_line", "missing_required_parameter", "content_policy_violation", "model_mismatch"]
        {
            assert!(matches!(judged(code), BatchFailure::SomeLine(_)), "{code}");
        }
        for code in ["invalid_request", "server_error", "something_new"] {
            assert!(matches!(judged(code), BatchFailure::Unknown(_)), "{code}");
        }
    }
}
