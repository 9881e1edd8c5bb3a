//! The machine and the store against the simulator's own world: one seed decides everything.
//!
//! The real `step`, the real store functions over memory, and the rules of the simulator that the program is shipped
//! with. The driver stands for the actors and may lose all it holds at any moment. `NIGHTSHIFT_SIM_SEED=n` plays one
//! seed and prints its trace, `NIGHTSHIFT_SIM_SEEDS` says how many are played.

mod acting;
mod checks;
mod plan;
mod reconciling;
mod sim;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use plan::Dice;
use sim::{Broken, Sim};

/// What a seed came to: the hash over its trace and the final store, and its steps.
fn play(seed: u64, broken: Broken, prints: bool) -> (Result<u64, String>, u64) {
    let mut dice = Dice::new(seed);
    let plan = plan::plan(seed, &mut dice);
    let mut sim = Sim::new(plan, dice, broken, prints);
    let played = std::panic::catch_unwind(AssertUnwindSafe(|| sim.play()));
    let played = played.unwrap_or_else(|_| Err("a panic".to_owned()));
    (played.map(|()| sim.hash()), sim.steps)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays seeds on all cores until `enough` have failed; the seeds and what was noticed.
fn failures(seeds: u64, broken: Broken, enough: usize) -> Vec<(u64, String)> {
    let (next, steps) = (AtomicU64::new(0), AtomicU64::new(0));
    let failures = Mutex::new(Vec::new());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || failures.lock().unwrap().len() >= enough {
                        return;
                    }
                    let (played, made) = play(seed, broken, false);
                    steps.fetch_add(made, Ordering::Relaxed);
                    if let Err(what) = played {
                        failures.lock().unwrap().push((seed, what));
                    }
                }
            });
        }
    });
    println!("{broken:?}: {} steps in {:?}", steps.into_inner(), began.elapsed());
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    failures
}

#[test]
fn no_seed_breaks_an_invariant() {
    if let Some(seed) = number("NIGHTSHIFT_SIM_SEED") {
        let (played, steps) = play(seed, Broken::Nothing, true);
        println!("seed {seed}: {played:?} after {steps} steps");
        assert!(played.is_ok(), "{played:?}");
        return;
    }
    let seeds = number("NIGHTSHIFT_SIM_SEEDS").unwrap_or(2000);
    let failed = failures(seeds, Broken::Nothing, 10);
    let told = failed.iter().map(|(seed, what)| format!("\nNIGHTSHIFT_SIM_SEED={seed}: {what}"));
    assert!(failed.is_empty(), "{}", told.collect::<String>());
}

#[test]
fn a_seed_replays_bit_for_bit() {
    for seed in [3, 1_000_003, 77_777] {
        let (first, second) = (play(seed, Broken::Nothing, false), play(seed, Broken::Nothing, false));
        assert_eq!(first, second, "seed {seed}");
    }
}

fn is_noticed(broken: Broken, as_what: &str) {
    let noticed = failures(200, broken, 1);
    assert!(noticed.iter().any(|(_, what)| what.contains(as_what)), "{noticed:?}");
}

#[test]
fn a_call_that_is_sent_again_without_a_search_is_noticed() {
    is_noticed(Broken::ResendsWithoutSearch, "invariant 2");
}

#[test]
fn an_intent_that_is_forgotten_at_a_restart_is_noticed() {
    is_noticed(Broken::ForgetsIntents, "invariant 2");
}

#[test]
fn a_line_that_is_applied_to_another_request_is_noticed() {
    is_noticed(Broken::TakesLinesOfOthers, "invariant");
}

#[test]
fn a_restored_store_that_sends_before_it_has_compared_is_noticed() {
    is_noticed(Broken::SendsBeforeComparing, "invariant 2");
}

#[test]
fn a_batch_from_after_the_backup_that_is_taken_for_a_shadow_is_noticed() {
    is_noticed(Broken::TakesStrangersForShadows, "invariant 2");
}

#[test]
fn a_request_that_is_run_again_after_a_final_failure_is_noticed() {
    is_noticed(Broken::RetriesWhatIsFinal, "invariant 2");
}
