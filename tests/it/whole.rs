//! The whole application under a clock that the test turns, against the simulator as a server of its own.
//!
//! Everything is real but the time: actors, store, spool, HTTP on both sides. A seed decides what the provider does
//! wrong, when the program is killed or stopped, what operators do and how the wall clock jumps. The threads of the
//! database and the network keep their own order, so a seed replays its plan and not each interleaving.
//! `NIGHTSHIFT_WHOLE_SEED=n` plays one seed and prints its trace, `NIGHTSHIFT_WHOLE_SEEDS` says how many are played.

mod checks;
mod life;
mod plan;
mod watched;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use life::Seed;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What a seed came to.
#[derive(Debug, Default)]
struct Sum {
    lives: u64,
    steps: u64,
    /// Milliseconds by the provider's clock.
    millis: u64,
    calls: u64,
    /// While no time passed.
    most_calls: u64,
    turns: u64,
    killed_in: BTreeSet<&'static str>,
    turned_in: BTreeSet<&'static str>,
}

fn play(seed: u64, prints: bool) -> Result<Sum, String> {
    let mut seed = Seed::new(seed, prints);
    let played = seed.play().and_then(|()| checks::all(&seed));
    played.map(|()| seed.sum()).map_err(|what| format!("{what}\n{}", seed.trace()))
}

#[test]
fn the_whole_application_pays_for_nothing_twice_and_loses_nothing() {
    if let Some(seed) = number("NIGHTSHIFT_WHOLE_SEED") {
        println!("{:?}", play(seed, true).unwrap_or_else(|what| panic!("seed {seed}: {what}")));
        return;
    }
    let seeds = number("NIGHTSHIFT_WHOLE_SEEDS").unwrap_or(60);
    let (next, began) = (AtomicU64::new(0), Instant::now());
    let (sums, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || failures.lock().unwrap().len() >= 3 {
                        return;
                    }
                    match play(seed, false) {
                        Ok(sum) => sums.lock().unwrap().push(sum),
                        Err(what) => failures.lock().unwrap().push((seed, what)),
                    }
                }
            });
        }
    });
    let (sums, failures) = (sums.into_inner().unwrap(), failures.into_inner().unwrap());
    let total = |of: fn(&Sum) -> u64| sums.iter().map(of).sum::<u64>();
    println!(
        "{} seeds in {:?}: {} lives, {} steps, {} calls (at most {} at once), {} jumps of the clock, {} hours",
        sums.len(),
        began.elapsed(),
        total(|sum| sum.lives),
        total(|sum| sum.steps),
        total(|sum| sum.calls),
        sums.iter().map(|sum| sum.most_calls).max().unwrap_or(0),
        total(|sum| sum.turns),
        total(|sum| sum.millis) / 3_600_000
    );
    let states = |of: fn(&Sum) -> &BTreeSet<&'static str>| -> BTreeSet<_> {
        sums.iter().flat_map(|sum| of(sum).iter().copied()).collect()
    };
    let [killed_in, turned_in] = [states(|sum| &sum.killed_in), states(|sum| &sum.turned_in)];
    println!("killed with batches in {killed_in:?}, the clock jumped with batches in {turned_in:?}");
    for (seed, what) in &failures {
        println!("NIGHTSHIFT_WHOLE_SEED={seed}: {what}\n");
    }
    assert!(failures.is_empty(), "{} seeds failed", failures.len());
}
