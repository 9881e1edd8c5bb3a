//! An OpenAI-compatible Files and Batch server of our own.
//!
//! It refuses what OpenAI refuses, takes its time like OpenAI, and can be told to fail in every way that OpenAI was
//! seen to fail. It follows the provider's contract and shares nothing with the client but the clock, so that a
//! mistake of ours is not hidden by the same mistake here. Its state is in a folder and survives a kill.
//!
//! - `world`: the state and its rules, pure; `timeline`: where a batch is at a moment. `faults`: the plan of what goes wrong. `dice`: chance that replays.
//! - `validation`, `running`: what happens to an input file. `answers`, `schema`, `conversation`: what is answered.
//! - `disk`: journal, ledger and bytes. `engine`: moves batches on as time passes.
//! - `server`, `uploads`, `wire`: OpenAI's paths and shapes.
//! - `testing`: the same rules without server and disk, for simulations.

mod answers;
mod conversation;
mod dice;
mod disk;
mod engine;
mod faults;
mod running;
mod schema;
mod server;
#[doc(hidden)]
pub mod testing;
mod timeline;
mod uploads;
mod validation;
mod wire;
mod world;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::net::TcpListener;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::clock::SharedClock;
use crate::serving;

pub use faults::{FaultPlan, PlanError};

/// How the simulator behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder that its state is kept in.
    pub state_dir: PathBuf,
    /// How long a batch takes from its creation to its end.
    pub turnaround: Duration,
    /// After which time a batch expires; OpenAI's is 24 hours.
    pub window: Duration,
    /// How often batches are moved on while nobody asks for them.
    pub tick: Duration,
    /// What goes wrong.
    pub faults: FaultPlan,
    /// Prompt tokens at most of one model that may be under way; none is no limit.
    pub enqueued_token_limit: Option<u64>,
    /// The only key that is accepted; with none any key is.
    pub required_key: Option<SecretString>,
    /// Bytes at most in a batch's input file.
    pub max_input_bytes: u64,
    /// What ids are made from in a new folder; none draws a number, so that no two folders share an id.
    pub instance: Option<u64>,
    /// The bounds of the HTTP server.
    pub serving: serving::Options,
}

impl Options {
    /// The usual behaviour, with state in `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            turnaround: Duration::from_secs(60),
            window: Duration::from_secs(24 * 60 * 60),
            tick: Duration::from_secs(1),
            faults: FaultPlan::default(),
            enqueued_token_limit: None,
            required_key: None,
            max_input_bytes: 209_715_200,
            instance: None,
            // All clients of a simulator tend to sit at one address.
            serving: serving::Options { max_per_address: 512, ..serving::Options::default() },
        }
    }
}

/// Why the simulator cannot start, or cannot keep what it has to.
#[derive(Debug, thiserror::Error)]
pub enum SimulatorError {
    /// Another process holds the folder.
    #[error("the simulator's folder {} is in use by another process", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// A file could not be read or written.
    #[error("the simulator cannot use {}", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A line that is not the last is not what was written.
    #[error("{} is damaged in line {line}", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// Why it cannot be read.
        #[source]
        source: serde_json::Error,
    },
    /// The system gave no random number for a new folder's ids.
    #[error("no random number could be had for the ids of a new folder")]
    NoRandom(#[source] getrandom::Error),
    /// A part of the simulator ended early.
    #[error("a task of the simulator broke off")]
    BrokeOff,
}

/// The simulator; clones are the same one.
#[derive(Debug, Clone)]
pub struct Simulator {
    engine: Arc<engine::Engine>,
}

impl Simulator {
    /// Opens the state folder, or makes it, and takes up what is under way in it.
    pub fn open(options: Options, clock: SharedClock) -> Result<Self, SimulatorError> {
        Ok(Self { engine: Arc::new(engine::Engine::open(options, clock)?) })
    }

    /// OpenAI's paths, for a server of one's own. Nothing moves batches on but reads and [`Simulator::tick`].
    pub fn routes(&self) -> BoxedFilter<(Response,)> {
        server::routes(self.engine.clone())
    }

    /// Moves every batch on to where it is by now, and forgets files that have expired.
    pub async fn tick(&self) {
        self.engine.tick().await;
    }

    /// Serves until `shutdown` completes, moving batches on meanwhile.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> serving::Drained {
        self.serve_routes(listener, self.routes(), shutdown).await
    }

    /// The same with routes around [`Simulator::routes`], for whoever wants to see or turn away calls.
    pub async fn serve_routes(
        &self,
        listener: TcpListener,
        routes: BoxedFilter<(Response,)>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> serving::Drained {
        let options = &self.engine.options;
        let mut interval = tokio::time::interval(options.tick.max(Duration::from_millis(1)));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ticking = async {
            loop {
                interval.tick().await;
                self.tick().await;
            }
        };
        let serving = serving::serve(listener, routes, options.serving.clone(), shutdown);
        let drained = tokio::select! {
            drained = serving => drained,
            never = ticking => never,
        };
        // Then the folder is free for the next one; what does not end in time goes on without a server.
        let settling = tokio::time::timeout(options.serving.drain_timeout, self.engine.settle());
        if settling.await.is_err() {
            tracing::warn!("the simulator stops while a batch is still computed");
        }
        drained
    }
}

#[cfg(test)]
mod tests;
