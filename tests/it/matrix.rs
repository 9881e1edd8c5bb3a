//! Ends the real binary at every crash point, and lets it panic there, and counts what the provider ran.
//!
//! The binary is one of its own, built with the feature `crash-points` (`NIGHTSHIFT_CRASH_POINTS_BIN` names it, else
//! it is built here). The simulator runs as a process of its own, so it lives on as a provider does. Several lanes
//! run beside each other; each goes through its points with one data folder: end there, start again with the next
//! point and more work, and at last come to the end without one.

mod chores;
mod hearer;
mod journeys;
mod lane;
mod program;
mod proof;
mod work;

use nightshift::crash_points::CRASH_POINTS;

use crate::process::read;
use lane::{Case, Lane};
use program::{binary, root};
use work::{
    ACCEPTED, AGED, COMPACTED, CREATED, DOUBTED, ENDS_THE_PROCESS, EVERYWHERE, OFTEN, ON_STOP, Work, is_alike,
};

/// Points that no work passes yet, and why. `nothing_calls_what_is_said_not_to_be_called` watches the reasons.
const UNREACHED: &[(&str, &str)] = &[];

fn is_long() -> bool {
    std::env::var("NIGHTSHIFT_TEST_LONG").is_ok()
}

/// Runs lanes beside each other and gathers what was wrong.
fn beside(lanes: Vec<Box<dyn FnOnce() -> Vec<String> + Send>>) {
    binary();
    let threads: Vec<_> = lanes.into_iter().map(std::thread::spawn).collect();
    let ended: Vec<_> = threads.into_iter().map(std::thread::JoinHandle::join).collect();
    let wrong: Vec<String> = ended
        .into_iter()
        .flat_map(|lane| {
            lane.unwrap_or_else(|panic| {
                vec![
                    panic.downcast_ref::<String>().map_or_else(|| "a lane panicked".to_owned(), Clone::clone),
                ]
            })
        })
        .collect();
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Which passages of a point are tried.
fn passages(point: &str) -> Vec<u64> {
    let once = ON_STOP.contains(&point) || COMPACTED.contains(&point) || is_alike(point);
    match (is_long(), OFTEN.contains(&point), once) {
        (_, _, true) => vec![1],
        (false, true, _) => vec![1, 2, 4, 7, 11, 16],
        (true, true, _) => (1..=30).collect(),
        (false, false, _) => vec![1, 2],
        (true, false, _) => vec![1, 2, 3],
    }
}

fn reachable() -> impl Iterator<Item = &'static str> {
    CRASH_POINTS.iter().copied().filter(|point| UNREACHED.iter().all(|(unreached, _)| unreached != point))
}

#[test]
fn an_end_at_any_point_loses_nothing_and_pays_for_nothing_twice() {
    let cases: Vec<Case> =
        reachable().flat_map(|point| passages(point).into_iter().map(move |nth| (point, nth))).collect();
    let mut lanes: Vec<(String, Work, Vec<Case>)> = Vec::new();
    for work in Work::ALL {
        let of_work: Vec<Case> = cases.iter().copied().filter(|(point, _)| Work::of(point) == work).collect();
        for lane in 0..work.lanes() {
            let share = of_work.iter().copied().skip(lane).step_by(work.lanes()).collect();
            lanes.push((format!("{work:?} {}", lane + 1), work, share));
        }
    }
    assert_eq!(lanes.iter().map(|(_, _, cases)| cases.len()).sum::<usize>(), cases.len());
    // Calm work has these at every passage, and new folders have lanes of their own; what the others commit is cut off
    // there, too.
    let left_out = |work: &Work| matches!(work, Work::Starting | Work::Calm | Work::Shadowed | Work::Aged);
    for work in Work::ALL.into_iter().filter(|work| !left_out(work)) {
        let (_, _, cases) = lanes.iter_mut().rfind(|(_, of, _)| *of == work).unwrap();
        cases.extend(EVERYWHERE);
    }
    // A start that finds no anchor passes these; here the provider's list is what the doubt comes from.
    let (_, _, cases) = lanes.iter_mut().find(|(_, of, _)| *of == Work::Restored).unwrap();
    cases.extend(DOUBTED.iter().map(|point| (*point, 1)));
    // The very first commits of a new folder are another matter than those of a later start.
    let first = [
        "commit.after_apply_before_sync",
        "commit.after_sync_before_anchor",
        "anchor.after_tmp",
        "anchor.after_fsync",
        "anchor.after_rename",
    ];
    lanes.extend(
        first
            .into_iter()
            .map(|point| (format!("new folder, {point}"), Work::Alone, vec![(point, 1), (point, 2)])),
    );
    println!(
        "{} ends at {} points",
        lanes.iter().map(|(_, _, cases)| cases.len()).sum::<usize>(),
        reachable().count()
    );
    let run = |(name, work, cases): (String, Work, Vec<Case>)| -> Box<dyn FnOnce() -> Vec<String> + Send> {
        Box::new(move || {
            let mut lane = Lane::new(&name, work);
            for case in cases {
                lane.crash_at(case);
            }
            lane.finish()
        })
    };
    beside(lanes.into_iter().map(run).collect());
}

#[test]
fn a_panic_at_any_point_is_counted_and_the_work_comes_to_its_end() {
    let ends = |point: &str| ENDS_THE_PROCESS.iter().any(|(ends, _)| *ends == point);
    let survived: Vec<_> = reachable().filter(|point| !ends(point)).collect();
    let mut lanes: Vec<Box<dyn FnOnce() -> Vec<String> + Send>> = Vec::new();
    for work in Work::ALL {
        // A command that panics is over; and what is removed by age begins a minute after a start.
        let left_out = |point: &str| [ACCEPTED, CREATED, AGED].iter().any(|points| points.contains(&point));
        let points = survived.iter().copied().filter(|point| Work::of(point) == work && !left_out(point));
        let points = points.chain(DOUBTED.iter().copied().filter(|_| work == Work::Restored));
        // One of these ends a compaction, and the next one is a start or an hour away.
        let (alone, points): (Vec<_>, Vec<_>) = points.partition(|point| COMPACTED.contains(point));
        if points.is_empty() && alone.is_empty() {
            continue;
        }
        lanes.push(Box::new(move || {
            let mut lane = Lane::new(&format!("panics, {work:?}"), work);
            lane.survive(&points);
            for point in alone {
                lane.survive(&[point]);
            }
            lane.finish()
        }));
    }
    for work in Work::ALL {
        if ENDS_THE_PROCESS.iter().all(|(point, _)| Work::of(point) != work) {
            continue;
        }
        lanes.push(Box::new(move || {
            let mut lane = Lane::new(&format!("panics that end the process, {work:?}"), work);
            for (point, code) in ENDS_THE_PROCESS.iter().filter(|(point, _)| Work::of(point) == work) {
                lane.leave_at(point, *code);
            }
            lane.finish()
        }));
    }
    beside(lanes);
}

#[test]
fn nothing_calls_what_is_said_not_to_be_called() {
    for entry in std::fs::read_dir(root().join("src/actors")).unwrap() {
        let path = entry.unwrap().path();
        for (point, call) in UNREACHED {
            assert!(
                !read(&path).contains(call),
                "{} calls {call}: take {point} off the list",
                path.display()
            );
        }
    }
}

#[test]
#[cfg(not(feature = "crash-points"))]
fn a_binary_without_the_feature_knows_no_crash_point() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_nightshift")).unwrap();
    let has = |words: &[u8]| program.windows(words.len()).any(|window| window == words);
    assert!(has(b"NIGHTSHIFT_ADMIN_TOKEN"));
    assert!(!has(b"NIGHTSHIFT_CRASH_AT") && !has(b"NIGHTSHIFT_PANIC_AT") && !has(b"fence.before_delete"));
}
