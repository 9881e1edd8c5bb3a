//! A seeded plan of what goes wrong. With the empty plan nothing ever does.
//!
//! A plan is JSON with `seed`, `calls`, `lines` and `batches`. Each rule says what goes wrong and when: with a
//! `probability`, or at the `nth` times counted from 1 (calls since the start, batches since the state folder was
//! new), and at most `times` times. The first rule that applies wins. A decision is a hash of the seed and of what
//! is decided about, so a plan replays.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dice;

/// What goes wrong, and when.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FaultPlan {
    seed: u64,
    calls: Vec<CallRule>,
    lines: Vec<LineRule>,
    batches: Vec<BatchRule>,
}

/// A plan that cannot be followed; `place` is where it goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the fault plan is wrong at {place}: {reason}")]
pub struct PlanError {
    /// Such as `calls[2]`.
    pub place: String,
    /// What is wrong there.
    pub reason: String,
}

/// A call that faults can be planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Call {
    #[serde(rename = "files.create")]
    FilesCreate,
    #[serde(rename = "files.get")]
    FilesGet,
    #[serde(rename = "files.list")]
    FilesList,
    #[serde(rename = "files.content")]
    FilesContent,
    #[serde(rename = "files.delete")]
    FilesDelete,
    #[serde(rename = "batches.create")]
    BatchesCreate,
    #[serde(rename = "batches.get")]
    BatchesGet,
    #[serde(rename = "batches.list")]
    BatchesList,
    #[serde(rename = "batches.cancel")]
    BatchesCancel,
}

impl Call {
    const COUNT: usize = 9;

    fn label(self) -> &'static str {
        match self {
            Self::FilesCreate => "files.create",
            Self::FilesGet => "files.get",
            Self::FilesList => "files.list",
            Self::FilesContent => "files.content",
            Self::FilesDelete => "files.delete",
            Self::BatchesCreate => "batches.create",
            Self::BatchesGet => "batches.get",
            Self::BatchesList => "batches.list",
            Self::BatchesCancel => "batches.cancel",
        }
    }
}

/// When a rule applies.
#[derive(Debug, Clone, Default, PartialEq)]
struct When {
    probability: f64,
    nth: Vec<u64>,
    times: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
struct CallRule {
    call: Call,
    when: When,
    fault: CallFault,
}

#[derive(Debug, Clone, PartialEq)]
struct LineRule {
    when: When,
    custom_ids: Vec<String>,
    /// Only in these batches, counted from 1 as they were created; in all of them where there are none.
    batches: Vec<u64>,
    sticky: bool,
    fault: LineFault,
}

#[derive(Debug, Clone, PartialEq)]
struct BatchRule {
    when: When,
    fault: BatchFault,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum CallFault {
    /// The connection is cut and nothing was done.
    DropBefore {},
    /// What was asked is done, then the connection is cut.
    DropAfter {},
    /// An error is answered; with `effect` what was asked is done all the same.
    Status {
        status: u16,
        code: Option<String>,
        retry_after: Option<RetryAfter>,
        #[serde(default)]
        effect: bool,
    },
    /// A body stops after this share of its bytes, without its end.
    Truncate {
        #[serde(default = "half")]
        share: f64,
    },
    /// A body stops after this share of its bytes and the connection stays open.
    Stall {
        #[serde(default = "half")]
        share: f64,
    },
    /// A list answers an empty page that claims that there is more.
    EmptyPage {},
    /// What was asked is done, and the answer is a page of HTML with status 200, as of a proxy in between.
    Garbled {},
}

/// How an error says when to come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RetryAfter {
    /// `Retry-After` in seconds.
    Seconds(u64),
    /// `Retry-After` as an HTTP date so many seconds ahead.
    DateIn(u64),
    /// `retry-after-ms`.
    Milliseconds(u64),
}

/// What goes wrong with a line.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum LineFault {
    /// The endpoint answered this status; 0 stands in the output file, as was seen in the wild.
    Status { status: u16, code: Option<String> },
    /// The request never got an answer; `code` says why.
    Error {
        #[serde(default = "request_timeout")]
        code: String,
    },
    /// The line is in no file and did not run.
    Missing {},
    /// The line is there twice.
    Duplicate {},
    /// The line ran, but what stands in the file is not JSON.
    Corrupt {},
    /// The line begins with a byte order mark.
    Bom {},
    /// The answer was cut off by the token limit.
    Length {},
    /// The answer was withheld by the content filter.
    ContentFilter {},
    /// The model refused.
    Refusal {},
    /// The body is a text that holds the JSON.
    BodyText {},
    /// The line has a byte in it that is no UTF-8.
    NotUtf8 {},
    /// The body is nested deeper than readers of JSON follow.
    Deep {},
    /// The line is longer than readers of result files take: 100 MB.
    Oversized {},
    /// Blank lines stand before the line, and every line end is CRLF.
    Blank {},
    /// The answer is text that does not fit the schema.
    Nonsense {},
    /// A line of a custom id that nobody asked for is there besides.
    Stranger {},
}

/// What goes wrong with a batch. It is decided at creation and kept with the batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum BatchFault {
    /// The next `lists` lists do not show it.
    Invisible { lists: u64 },
    /// It fails validation.
    Fail { code: String, message: Option<String>, param: Option<String>, line: Option<u64> },
    /// It fails validation when a line contains this text; with `named` the first such line is named.
    Refuse {
        containing: String,
        code: String,
        #[serde(default)]
        named: bool,
    },
    /// After so many reads that showed it, the next `reads` do not find it, lists included.
    Gone { after: u64, reads: u64 },
    /// It expires when this share of its lines is done.
    Expire {
        #[serde(default = "half")]
        share: f64,
    },
    /// It is cancelled by somebody else when this share of its lines is done.
    Cancel {
        #[serde(default = "half")]
        share: f64,
    },
    /// Once it has ended, this many reads still show no file ids, or with `output_only` that of the error file alone.
    NullOutput {
        polls: u64,
        #[serde(default)]
        output_only: bool,
    },
    /// Ids that are unset are `""`.
    EmptyIds {},
    /// It shows `validating` until it has ended.
    SkipStates {},
    /// Its counts do not add up.
    WrongCounts {},
    /// It counts nothing.
    NoCounts {},
    /// This many reads show a status that nobody knows.
    UnknownStatus { status: String, polls: u64 },
    /// Its times are RFC 3339 text.
    IsoTimes {},
    /// It has members that nobody knows.
    UnknownFields {},
}

fn half() -> f64 {
    0.5
}

fn request_timeout() -> String {
    "request_timeout".to_owned()
}

impl FaultPlan {
    /// Reads a plan; an error names the rule that is wrong.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let wrong = |place: &str, reason: &dyn std::fmt::Display| PlanError {
            place: place.to_owned(),
            reason: reason.to_string(),
        };
        let plan: Value = serde_json::from_str(text).map_err(|error| wrong("the text", &error))?;
        let Value::Object(plan) = plan else {
            return Err(wrong("the text", &"it is not a JSON object"));
        };
        let known = ["seed", "calls", "lines", "batches"];
        if let Some(key) = plan.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(wrong(key, &"the keys are seed, calls, lines and batches"));
        }
        let seed = match plan.get("seed") {
            None => 0,
            Some(seed) => seed.as_u64().ok_or_else(|| wrong("seed", &"it is not a whole number"))?,
        };
        Ok(Self {
            seed,
            calls: rules(&plan, "calls", call_rule)?,
            lines: rules(&plan, "lines", line_rule)?,
            batches: rules(&plan, "batches", batch_rule)?,
        })
    }
}

fn rules<T>(
    plan: &serde_json::Map<String, Value>,
    key: &str,
    read: fn(Value) -> Result<T, String>,
) -> Result<Vec<T>, PlanError> {
    let Some(list) = plan.get(key) else { return Ok(Vec::new()) };
    let Value::Array(list) = list else {
        return Err(PlanError { place: key.to_owned(), reason: "it is not a list".to_owned() });
    };
    let numbered = list.iter().enumerate();
    numbered
        .map(|(index, rule)| {
            read(rule.clone()).map_err(|reason| PlanError { place: format!("{key}[{index}]"), reason })
        })
        .collect()
}

/// Takes `key` out of a rule, so that what remains is the fault alone.
fn take<T: serde::de::DeserializeOwned>(rule: &mut Value, key: &str) -> Result<Option<T>, String> {
    let Value::Object(members) = rule else { return Err("a rule is a JSON object".to_owned()) };
    match members.remove(key) {
        None => Ok(None),
        Some(value) => serde_json::from_value(value).map(Some).map_err(|error| format!("{key}: {error}")),
    }
}

fn when(rule: &mut Value) -> Result<When, String> {
    let probability: Option<f64> = take(rule, "probability")?;
    if probability.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
        return Err("probability: it is not between 0 and 1".to_owned());
    }
    let nth = match take::<Value>(rule, "nth")? {
        None => Vec::new(),
        Some(Value::Array(list)) => {
            list.iter().map(Value::as_u64).collect::<Option<Vec<_>>>().ok_or("nth: not whole numbers")?
        }
        Some(one) => vec![one.as_u64().ok_or("nth: it is not a whole number")?],
    };
    let times = take(rule, "times")?;
    let always = probability.is_none() && nth.is_empty();
    Ok(When { probability: probability.unwrap_or(if always { 1.0 } else { 0.0 }), nth, times })
}

fn fault<T: serde::de::DeserializeOwned>(rule: Value) -> Result<T, String> {
    serde_json::from_value(rule).map_err(|error| error.to_string())
}

fn share_is_possible(share: f64) -> Result<(), String> {
    if (0.0..=1.0).contains(&share) { Ok(()) } else { Err("share: it is not between 0 and 1".to_owned()) }
}

fn call_rule(mut rule: Value) -> Result<CallRule, String> {
    let when = when(&mut rule)?;
    let call = take(&mut rule, "call")?.ok_or("call: it is missing")?;
    let fault = fault(rule)?;
    match &fault {
        CallFault::Truncate { share } | CallFault::Stall { share } => {
            share_is_possible(*share)?;
            if call != Call::FilesContent {
                return Err("truncate and stall are for files.content".to_owned());
            }
        }
        CallFault::EmptyPage {} if !matches!(call, Call::BatchesList | Call::FilesList) => {
            return Err("empty_page is for lists".to_owned());
        }
        CallFault::Status { status, .. } if !(400..600).contains(status) => {
            return Err(format!("status: {status} is not an error"));
        }
        CallFault::DropBefore {}
        | CallFault::DropAfter {}
        | CallFault::Status { .. }
        | CallFault::EmptyPage {}
        | CallFault::Garbled {} => {}
    }
    Ok(CallRule { call, when, fault })
}

fn line_rule(mut rule: Value) -> Result<LineRule, String> {
    let when = when(&mut rule)?;
    if !when.nth.is_empty() || when.times.is_some() {
        return Err("a line is chosen by probability or custom_ids".to_owned());
    }
    let custom_ids = take(&mut rule, "custom_ids")?.unwrap_or_default();
    let batches = take(&mut rule, "batches")?.unwrap_or_default();
    let sticky = take(&mut rule, "sticky")?.unwrap_or(false);
    Ok(LineRule { when, custom_ids, batches, sticky, fault: fault(rule)? })
}

fn batch_rule(mut rule: Value) -> Result<BatchRule, String> {
    let when = when(&mut rule)?;
    let fault = fault(rule)?;
    if let BatchFault::Expire { share } | BatchFault::Cancel { share } = &fault {
        share_is_possible(*share)?;
    }
    Ok(BatchRule { when, fault })
}

/// Decides, and counts what `nth` and `times` need.
#[derive(Debug)]
pub(super) struct Faults {
    plan: FaultPlan,
    /// Which start of the simulator this is, or a call that is cut at every first try would never succeed.
    start: String,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    calls: [u64; Call::COUNT],
    used_calls: Vec<u64>,
}

impl Faults {
    pub(super) fn new(plan: FaultPlan, start: u64) -> Self {
        let used_calls = vec![0; plan.calls.len()];
        let counts = Mutex::new(Counts { calls: [0; Call::COUNT], used_calls });
        Self { plan, start: start.to_string(), counts }
    }

    /// What goes wrong with this call, which is counted by this.
    pub(super) fn on_call(&self, call: Call) -> Option<CallFault> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let nth = counts.calls.get_mut(call as usize)?;
        *nth += 1;
        let nth = *nth;
        for (index, rule) in self.plan.calls.iter().enumerate().filter(|(_, rule)| rule.call == call) {
            let words = [call.label(), &index.to_string(), &self.start, &nth.to_string()];
            let used = counts.used_calls.get_mut(index)?;
            if rule.when.times.is_none_or(|times| *used < times) && self.applies(&rule.when, nth, &words) {
                *used += 1;
                return Some(rule.fault.clone());
            }
        }
        None
    }

    /// What goes wrong with the `ordinal`th batch (from 1); `had` is how often each rule was used before.
    ///
    /// Several rules may apply to one batch: each is decided alone.
    pub(super) fn on_batch(&self, ordinal: u64, had: impl Fn(usize) -> u64) -> Vec<(usize, BatchFault)> {
        let rules = self.plan.batches.iter().enumerate();
        rules
            .filter(|(index, rule)| {
                let words = ["batch", &index.to_string(), &ordinal.to_string()];
                rule.when.times.is_none_or(|times| had(*index) < times)
                    && self.applies(&rule.when, ordinal, &words)
            })
            .map(|(index, rule)| (index, rule.fault.clone()))
            .collect()
    }

    /// What goes wrong with a line. Unless the rule is `sticky`, the same id in a later batch is decided anew.
    pub(super) fn on_line(&self, ordinal: u64, custom_id: &str) -> Option<&LineFault> {
        let rules = self.plan.lines.iter().enumerate();
        let mut rules = rules.filter(|(index, rule)| {
            let batch = if rule.sticky { String::new() } else { ordinal.to_string() };
            let words = ["line", &index.to_string(), &batch, custom_id];
            (rule.batches.is_empty() || rule.batches.contains(&ordinal))
                && (rule.custom_ids.is_empty() || rule.custom_ids.iter().any(|id| id == custom_id))
                && self.applies(&rule.when, 0, &words)
        });
        rules.next().map(|(_, rule)| &rule.fault)
    }

    fn applies(&self, when: &When, nth: u64, words: &[&str]) -> bool {
        when.nth.contains(&nth)
            || (when.probability > 0.0 && dice::fraction(self.plan.seed, words) < when.probability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Faults {
        Faults::new(FaultPlan::parse(text).unwrap(), 1)
    }

    #[test]
    fn without_a_plan_nothing_goes_wrong() {
        let faults = Faults::new(FaultPlan::default(), 1);
        assert!((0..1000).all(|_| faults.on_call(Call::BatchesCreate).is_none()));
        assert!(faults.on_line(1, "a").is_none() && faults.on_batch(1, |_| 0).is_empty());
    }

    #[test]
    fn a_plan_replays() {
        let text = r#"{"seed":7,"calls":[{"call":"batches.create","fault":"drop_after","probability":0.3}]}"#;
        let run = || -> Vec<bool> {
            let faults = faults(text);
            (0..200).map(|_| faults.on_call(Call::BatchesCreate).is_some()).collect()
        };
        assert_eq!(run(), run());
        let dropped = run().into_iter().filter(|dropped| *dropped).count();
        assert!((30..90).contains(&dropped), "{dropped}");
    }

    #[test]
    fn nth_and_times_count() {
        let faults = faults(
            r#"{"calls":[{"call":"files.get","fault":"status","status":429,"retry_after":{"seconds":2},"nth":[2]},
                         {"call":"files.get","fault":"drop_before","times":1}]}"#,
        );
        assert_eq!(faults.on_call(Call::FilesGet), Some(CallFault::DropBefore {}));
        assert!(matches!(faults.on_call(Call::FilesGet), Some(CallFault::Status { status: 429, .. })));
        assert_eq!(faults.on_call(Call::FilesGet), None);
    }

    #[test]
    fn a_line_that_failed_may_do_better_in_its_next_batch() {
        let loose = faults(r#"{"lines":[{"fault":"status","status":500,"probability":0.5}]}"#);
        assert!((0..50).any(|n| loose.on_line(n, "a").is_some()));
        assert!((0..50).any(|n| loose.on_line(n, "a").is_none()));
        let sticky = faults(r#"{"lines":[{"fault":"missing","custom_ids":["a"],"sticky":true}]}"#);
        assert!((0..50).all(|n| sticky.on_line(n, "a").is_some() && sticky.on_line(n, "b").is_none()));
    }

    #[test]
    fn a_wrong_plan_names_the_place() {
        for (text, place) in [
            ("{", "the text"),
            (r#"{"sed":1}"#, "sed"),
            (r#"{"seed":-1}"#, "seed"),
            (
                r#"{"calls":[{"call":"files.get","fault":"drop_before"},{"call":"x","fault":"drop_after"}]}"#,
                "calls[1]",
            ),
            (r#"{"calls":[{"call":"files.get","fault":"truncate"}]}"#, "calls[0]"),
            (r#"{"lines":[{"fault":"missing","probability":2}]}"#, "lines[0]"),
            (r#"{"lines":[{"fault":"missing","odd":2}]}"#, "lines[0]"),
            (r#"{"batches":[{"fault":"expire","share":7}]}"#, "batches[0]"),
        ] {
            assert_eq!(FaultPlan::parse(text).unwrap_err().place, place, "{text}");
        }
    }
}
