//! nightshift sends AI requests that can wait through OpenAI's Batch API and brings every result home.
//!
//! The map, in dependency order; a module uses only those above it, as `tests/it/architecture.rs` checks:
//!
//! - [`crash_points`]: named moments at which a test ends the process; nothing in a release.
//! - [`panics`]: counts panics and keeps each to the work it was in.
//! - [`domain`]: the nouns and the pure rules: state machine, retries, prices, what an analysis is.
//! - [`clock`]: the only place that asks the machine for the time, and the source of new ids.
//! - [`condition`]: what stands in the way of the work just now; every part reports to it and asks it.
//! - [`disk`]: the room below the data folder, and what is done before there is none.
//! - [`tls`]: the cryptography below every HTTP client.
//! - [`fetch`]: what comes from, and goes to, addresses that somebody else may have chosen.
//! - [`config`]: defaults, file, environment and flags become checked settings.
//! - [`telemetry`]: how logs leave the process.
//! - [`serving`]: the accept loop that every HTTP server here stands behind.
//! - [`store`]: the embedded database; the only place that names sled or bincode.
//! - [`provider`]: OpenAI's Files and Batch API as a client sees it.
//! - [`import`]: CSV exports and transcripts, read as streams.
//! - [`actors`]: intake, creator, batches, poller, registry, deliverer, importer, transcripts.
//! - [`http`]: the admin and ingest API.
//! - [`simulator`]: an OpenAI-compatible Files and Batch server of our own.
//! - [`app`]: puts the parts together, runs them, drains them.
//! - [`cli`]: the commands.

#[macro_use]
pub mod crash_points;

pub mod actors;
pub mod app;
pub mod cli;
pub mod clock;
pub mod condition;
pub mod config;
pub mod disk;
pub mod domain;
pub mod fetch;
pub mod http;
pub mod import;
pub mod panics;
pub mod provider;
pub mod serving;
pub mod simulator;
pub mod store;
pub mod telemetry;
pub mod tls;
