//! The machine and the store against the simulator's own world: one seed decides everything.
//!
//! The real `step`, the real store functions over memory, and the rules of the simulator that the program is shipped
//! with. The driver stands for the actors and may lose all it holds at any moment. `NIGHTSHIFT_SIM_SEED=n` plays one
//! seed and prints its trace, `NIGHTSHIFT_SIM_SEEDS` says how many are played.

mod acting;
mod checks;
pub mod plan;
mod reconciling;
mod sim;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use plan::Dice;
use sim::{Broken, Checked, Sim};

/// What a seed came to: the hash over its trace and the final store, and its steps.
fn play(seed: u64, broken: Broken, prints: bool) -> (Result<u64, String>, u64) {
    let mut dice = Dice::new(seed);
    let mut plan = plan::plan(seed, &mut dice);
    broken.needs(&mut plan);
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
    is_noticed_within(200, broken, as_what);
}

fn is_noticed_within(seeds: u64, broken: Broken, as_what: &str) {
    let noticed = failures(seeds, broken, 1);
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
    is_noticed_within(1000, Broken::TakesStrangersForShadows, "invariant 2");
}

#[test]
fn a_request_that_is_run_again_after_a_final_failure_is_noticed() {
    is_noticed(Broken::RetriesWhatIsFinal, "invariant 2");
}

#[test]
fn a_list_that_broke_off_and_counts_as_a_search_is_noticed() {
    is_noticed_within(1000, Broken::TakesPartsForWhole, "invariant 2");
}

#[test]
fn an_input_file_that_is_left_for_a_late_call_is_noticed() {
    is_noticed_within(1000, Broken::SkipsTheFence, "invariant 2");
}

#[test]
fn a_batch_without_metadata_that_is_not_told_by_its_file_is_noticed() {
    is_noticed_within(1000, Broken::ForgetsFiles, "invariant 2");
}

/// Rare by chance, so told: what the seeds found once.
fn told(turns_away: bool, broken: Broken, story: impl Fn(&mut Sim) -> Checked) -> Checked {
    let mut all = Ok(());
    for seed in 0..10 {
        let mut sim = Sim::new(plan::calm(turns_away), Dice::new(seed), broken, false);
        all = all.and(story(&mut sim));
    }
    all
}

fn is_invariant_2(noticed: &Checked) -> bool {
    noticed.as_ref().is_err_and(|what| what.contains("invariant 2"))
}

#[test]
fn the_last_batch_of_a_request_has_it_after_a_restore() {
    assert_eq!(told(true, Broken::Nothing, Sim::play_sent_again), Ok(()));
    let noticed = told(true, Broken::TakesOverTheOldestFirst, Sim::play_sent_again);
    assert!(is_invariant_2(&noticed), "{noticed:?}");
}

#[test]
fn what_had_a_request_in_the_backup_gives_it_back_before_the_batch_that_it_moved_on_to_is_taken_over() {
    assert_eq!(told(false, Broken::Nothing, Sim::play_moved_on), Ok(()));
    let noticed = told(false, Broken::LeavesRequestsWhereTheyWere, Sim::play_moved_on);
    assert!(is_invariant_2(&noticed), "{noticed:?}");
}
