//! One seed: every decision of a run, and what the provider does wrong in it.

use nightshift::simulator::FaultPlan;
use nightshift::simulator::testing::Behaviour;
use serde_json::{Value, json};

/// Numbers that follow from a seed (splitmix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x6e69_6768_7473_6866)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// How often something goes wrong, in percent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// A call did not go through and had no effect.
    pub later: usize,
    /// Nobody knows whether a call had its effect.
    pub uncertain: usize,
    /// A call is refused for good.
    pub refused: usize,
    /// The account is refused.
    pub account: usize,
    /// The disk here fails.
    pub local: usize,
    /// A call has two effects.
    pub twins: usize,
    /// Everything but the store and the provider is lost after an effect.
    pub crash: usize,
    /// A download is torn.
    pub torn: usize,
    /// The provider loses a file.
    pub file_gone: usize,
    /// The provider does not know a batch for a while, or for ever.
    pub batch_gone: usize,
    /// An old word of the provider comes again.
    pub stale: usize,
    /// A result file has lines that nobody asked for.
    pub odd_lines: usize,
    /// A list of batches does not come to its end.
    pub lists: usize,
    /// A request that no batch with it is admitted for.
    pub poison: usize,
}

/// What holds for a whole run.
pub struct Plan {
    pub rates: Rates,
    pub behaviour: Behaviour,
    /// Whether an old backup is restored once.
    pub restores: bool,
    /// Whether batches come back without their metadata.
    pub drops_metadata: bool,
    /// At which page a list breaks off, and how.
    pub broken_list: (usize, usize),
    /// Whether our wall clock is set now and then.
    pub jumps: bool,
    /// Whether the whole store is checked after every turn.
    pub thorough: bool,
    /// How many requests a transaction cuts or closes, so that small batches are in several.
    pub chunk: usize,
}

/// How many requests a transaction cuts or closes: batches of some requests are in one, or in several.
pub fn chunk(seed: u64) -> usize {
    [250, 1, 2, 4][(seed / 3 % 4) as usize]
}

/// Draws the faults of a run: each kind is there or not, so that the rare ones are not hidden by the frequent ones.
pub fn plan(seed: u64, dice: &mut Dice) -> Plan {
    let mut rate = |most: usize| if dice.chance(50) { 1 + dice.below(most) } else { 0 };
    let rates = Rates {
        later: rate(15),
        uncertain: rate(40),
        refused: rate(40),
        account: rate(6),
        local: rate(8),
        twins: rate(15),
        crash: rate(12),
        torn: rate(30),
        file_gone: rate(8),
        batch_gone: rate(8),
        stale: rate(15),
        odd_lines: rate(40),
        poison: rate(8),
        lists: rate(100),
    };
    let mut rule = |mut fault: Value, most: usize| {
        let percent = if dice.chance(40) { 1 + dice.below(most) } else { 0 };
        #[allow(clippy::cast_precision_loss, reason = "a number up to 100")]
        let probability = percent as f64 / 100.0;
        fault["probability"] = json!(probability);
        fault
    };
    let lines = vec![
        rule(json!({"fault": "status", "status": 429}), 20),
        rule(json!({"fault": "status", "status": 500}), 20),
        rule(json!({"fault": "status", "status": 400, "code": "invalid_value"}), 10),
        rule(json!({"fault": "status", "status": 0}), 10),
        rule(json!({"fault": "status", "status": 429, "code": "insufficient_quota"}), 4),
        rule(json!({"fault": "status", "status": 500}), 100),
        rule(json!({"fault": "error", "code": "server_error"}), 20),
        rule(json!({"fault": "missing"}), 20),
        rule(json!({"fault": "duplicate"}), 20),
        rule(json!({"fault": "corrupt"}), 15),
        rule(json!({"fault": "bom"}), 15),
        rule(json!({"fault": "length"}), 10),
        rule(json!({"fault": "content_filter"}), 10),
        rule(json!({"fault": "refusal"}), 10),
        rule(json!({"fault": "body_text"}), 15),
        rule(json!({"fault": "not_utf8"}), 10),
        rule(json!({"fault": "deep"}), 10),
        rule(json!({"fault": "blank"}), 20),
        rule(json!({"fault": "stranger"}), 20),
    ];
    let batches = vec![
        rule(json!({"fault": "invisible", "lists": 1}), 60),
        rule(json!({"fault": "invisible", "lists": 2}), 60),
        rule(json!({"fault": "fail", "code": "token_limit_exceeded", "times": 4}), 60),
        rule(json!({"fault": "fail", "code": "server_error"}), 40),
        rule(json!({"fault": "fail", "code": "something_new"}), 60),
        rule(json!({"fault": "fail", "code": "insufficient_quota"}), 10),
        rule(json!({"fault": "fail", "code": "missing_required_parameter", "line": 1}), 15),
        rule(json!({"fault": "fail", "code": "too_many_tasks"}), 10),
        rule(json!({"fault": "fail", "code": "invalid_request", "param": "file_id"}), 10),
        rule(json!({"fault": "expire", "share": 0.5}), 30),
        rule(json!({"fault": "cancel", "share": 0.4}), 30),
        rule(json!({"fault": "null_output", "polls": 3}), 40),
        rule(json!({"fault": "null_output", "polls": 3, "output_only": true}), 40),
        rule(json!({"fault": "no_counts"}), 60),
        rule(json!({"fault": "empty_ids"}), 60),
        rule(json!({"fault": "skip_states"}), 60),
        rule(json!({"fault": "wrong_counts"}), 30),
        rule(json!({"fault": "unknown_status", "status": "thinking", "polls": 3}), 40),
        rule(json!({"fault": "iso_times"}), 60),
        rule(json!({"fault": "unknown_fields"}), 60),
    ];
    let text = json!({"seed": seed, "lines": lines, "batches": batches}).to_string();
    let minutes = [1, 5, 30, 120][dice.below(4)];
    let behaviour = Behaviour {
        instance: seed,
        turnaround: minutes * 60_000,
        window: if dice.chance(20) { minutes * 30_000 } else { 86_400_000 },
        enqueued_token_limit: dice.chance(25).then_some(60),
        faults: FaultPlan::parse(&text).unwrap(),
    };
    let (restores, drops_metadata, jumps) = (dice.chance(30), dice.chance(20), dice.chance(30));
    // Where metadata is dropped, nothing tells a store from an old backup which batches came after it.
    let restores = restores && !drops_metadata;
    let broken_list = (dice.below(3), dice.below(4));
    let (thorough, chunk) = (seed.is_multiple_of(20), chunk(seed));
    Plan { rates, behaviour, restores, drops_metadata, broken_list, jumps, thorough, chunk }
}

/// A run in which nothing goes wrong but for the first batch, which may be turned away, and the restore of a backup.
pub fn calm(turns_away: bool) -> Plan {
    let fault = json!({"fault": "fail", "code": "something_new", "times": 1, "probability": 1.0});
    let text = if turns_away { json!({"batches": [fault]}) } else { json!({}) }.to_string();
    let behaviour = Behaviour {
        instance: 1,
        turnaround: 7_200_000,
        window: 86_400_000,
        enqueued_token_limit: None,
        faults: FaultPlan::parse(&text).unwrap(),
    };
    let (rates, broken_list) = (Rates::default(), (0, 0));
    Plan {
        rates,
        behaviour,
        restores: true,
        drops_metadata: false,
        broken_list,
        jumps: false,
        thorough: false,
        chunk: chunk(1),
    }
}
