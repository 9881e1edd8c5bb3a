//! The tests that need more than one module.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    missing_docs,
    reason = "tests may fail where they stand"
)]

mod architecture;
mod companies;
mod crash;
mod creating;
mod damage;
mod deleting;
mod disk;
mod disk_faults;
mod docs;
mod drain;
mod erasing;
mod exports;
mod fetch;
mod finding;
mod fuzz_corpus;
mod harness;
mod hints;
mod ingest;
mod legacy_api;
mod matrix;
mod power_cut;
mod process;
mod results;
mod retention;
mod running;
mod sdk;
mod service;
mod simulation;
mod sources;
mod trouble;
mod turns;
mod web;
mod webhooks;
mod whole;
