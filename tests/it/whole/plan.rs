//! What a seed decides beforehand: the provider's faults, and how rough its operators and its machine are.

use std::time::Duration;

use serde_json::{Value, json};

use crate::simulation::plan::Dice;

/// What holds for a whole run.
#[derive(Debug)]
pub struct Plan {
    /// For the simulator.
    pub faults: String,
    pub turnaround: Duration,
    pub window: Duration,
    pub token_limit: Option<u64>,
    pub requests: usize,
    /// Of a hundred steps, those that begin a kill in the midst of things.
    pub kills: usize,
    /// And those on which the wall clock jumps.
    pub turns: usize,
    pub cancels: usize,
    /// And those on which the provider says something by itself, or somebody in its name.
    pub messages: usize,
    pub max_requests: usize,
    /// How many requests a transaction cuts or closes, so that small batches are in several.
    pub chunk: usize,
}

const CALLS: [&str; 9] = [
    "files.create",
    "files.get",
    "files.list",
    "files.content",
    "files.delete",
    "batches.create",
    "batches.get",
    "batches.list",
    "batches.cancel",
];

fn percent(most: usize, dice: &mut Dice) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a number up to 100")]
    let share = (1 + dice.below(most)) as f64;
    share / 100.0
}

/// Each kind of fault is there or not, so that the rare ones are not hidden by the frequent ones. Those of calls and
/// batches end after some times: everything has to come to its end then.
pub fn plan(seed: u64, dice: &mut Dice) -> Plan {
    let mut calls = Vec::new();
    for call in CALLS {
        let mut kinds = vec![
            json!({"fault": "drop_before"}),
            json!({"fault": "drop_after"}),
            json!({"fault": "garbled"}),
            json!({"fault": "status", "status": 500}),
            json!({"fault": "status", "status": 502, "effect": true}),
            json!({"fault": "status", "status": 429, "retry_after": {"seconds": 30}}),
            json!({"fault": "status", "status": 429, "retry_after": {"date_in": 400}}),
            json!({"fault": "status", "status": 503, "retry_after": {"milliseconds": 1500}}),
            json!({"fault": "status", "status": 408}),
            json!({"fault": "status", "status": 409}),
            json!({"fault": "status", "status": 403, "code": "unsupported_country_region_territory"}),
            json!({"fault": "status", "status": 429, "code": "insufficient_quota"}),
            json!({"fault": "status", "status": 401, "code": "invalid_api_key"}),
        ];
        if call == "files.content" {
            kinds.push(json!({"fault": "truncate", "share": 0.6}));
            kinds.push(json!({"fault": "stall", "share": 0.3}));
        }
        if call == "batches.create" {
            kinds.push(json!({"fault": "status", "status": 400, "code": "token_limit_exceeded"}));
            kinds.push(json!({"fault": "status", "status": 400, "code": "something_new"}));
        }
        if call == "batches.cancel" {
            kinds.push(json!({"fault": "status", "status": 404}));
            kinds.push(json!({"fault": "status", "status": 400}));
        }
        if call.ends_with("list") {
            kinds.push(json!({"fault": "empty_page"}));
        }
        for mut kind in kinds {
            if dice.chance(25) {
                kind["call"] = json!(call);
                kind["probability"] = json!(percent(40, dice));
                kind["times"] = json!(1 + dice.below(6));
                calls.push(kind);
            }
        }
    }
    // 100 MB take their time: it is rare.
    let oversized = if dice.chance(10) { 0.03 } else { 0.0 };
    let mut rule = |mut fault: Value, most: usize, times: Option<usize>| {
        fault["probability"] = json!(if dice.chance(30) { percent(most, dice) } else { 0.0 });
        if let Some(times) = times {
            fault["times"] = json!(1 + dice.below(times));
        }
        fault
    };
    let lines = vec![
        rule(json!({"fault": "status", "status": 429}), 20, None),
        rule(json!({"fault": "status", "status": 500}), 20, None),
        rule(json!({"fault": "status", "status": 400, "code": "invalid_value"}), 10, None),
        rule(json!({"fault": "status", "status": 0}), 10, None),
        rule(json!({"fault": "error", "code": "server_error"}), 20, None),
        rule(json!({"fault": "missing"}), 20, None),
        rule(json!({"fault": "duplicate"}), 20, None),
        rule(json!({"fault": "corrupt"}), 15, None),
        rule(json!({"fault": "bom"}), 15, None),
        rule(json!({"fault": "length"}), 10, None),
        rule(json!({"fault": "content_filter"}), 10, None),
        rule(json!({"fault": "refusal"}), 10, None),
        rule(json!({"fault": "body_text"}), 15, None),
        rule(json!({"fault": "not_utf8"}), 10, None),
        rule(json!({"fault": "deep"}), 10, None),
        rule(json!({"fault": "blank"}), 20, None),
        rule(json!({"fault": "stranger"}), 20, None),
        json!({"fault": "oversized", "batches": [1, 2], "probability": oversized}),
    ];
    let batches = vec![
        rule(json!({"fault": "invisible", "lists": 1}), 60, None),
        rule(json!({"fault": "fail", "code": "token_limit_exceeded"}), 60, Some(4)),
        rule(json!({"fault": "fail", "code": "server_error"}), 60, Some(3)),
        rule(json!({"fault": "fail", "code": "something_new"}), 60, Some(3)),
        rule(json!({"fault": "fail", "code": "insufficient_quota"}), 60, Some(2)),
        rule(json!({"fault": "fail", "code": "missing_required_parameter", "line": 1}), 60, Some(2)),
        rule(json!({"fault": "gone", "after": 2, "reads": 4}), 60, Some(2)),
        rule(json!({"fault": "expire", "share": 0.5}), 60, Some(3)),
        rule(json!({"fault": "cancel", "share": 0.4}), 60, Some(3)),
        rule(json!({"fault": "null_output", "polls": 3}), 60, Some(3)),
        rule(json!({"fault": "null_output", "polls": 3, "output_only": true}), 60, Some(3)),
        rule(json!({"fault": "no_counts"}), 60, None),
        rule(json!({"fault": "empty_ids"}), 60, None),
        rule(json!({"fault": "skip_states"}), 60, None),
        rule(json!({"fault": "wrong_counts"}), 30, None),
        rule(json!({"fault": "unknown_status", "status": "thinking", "polls": 3}), 60, Some(3)),
        rule(json!({"fault": "iso_times"}), 60, None),
        rule(json!({"fault": "unknown_fields"}), 60, None),
    ];
    let faults = json!({"seed": seed, "calls": calls, "lines": lines, "batches": batches}).to_string();
    let minutes = [1, 5, 30, 120][dice.below(4)];
    Plan {
        faults,
        turnaround: Duration::from_secs(minutes * 60),
        window: Duration::from_secs(if dice.chance(15) { minutes * 30 } else { 86_400 }),
        token_limit: dice.chance(25).then_some(400),
        requests: 20 + dice.below(60),
        kills: [0, 1, 3, 10][dice.below(4)],
        turns: [0, 0, 1, 4][dice.below(4)],
        cancels: [0, 1, 3][dice.below(3)],
        messages: [0, 2, 10][dice.below(3)],
        max_requests: [5, 20, 1000][dice.below(3)],
        chunk: [250, 1, 7, 30][(seed % 4) as usize],
    }
}
