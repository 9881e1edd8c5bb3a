//! `nightshift simulate`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;

use super::{CliError, block_on, output, start_log};
use crate::app::{AppError, fault_plan};
use crate::clock::SystemClock;
use crate::config::Log;
use crate::simulator::{Options, Simulator};

/// The simulator's own flags.
#[derive(Debug, Args)]
pub struct Simulate {
    /// The port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 8090)]
    port: u16,
    /// The folder that its state is kept in.
    #[arg(long, value_name = "DIR", default_value = "data/simulator")]
    state: PathBuf,
    /// How long a batch takes from its creation to its end.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    turnaround: Duration,
    /// After which time a batch expires.
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    window: Duration,
    /// A JSON file with the faults that it is to have.
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// Tokens at most of one model that may be enqueued.
    #[arg(long, value_name = "TOKENS")]
    token_limit: Option<u64>,
}

pub fn run(command: &Simulate, log: Log) -> Result<(), CliError> {
    start_log(log);
    block_on(async {
        let mut options = Options::new(&command.state);
        options.turnaround = command.turnaround;
        options.window = command.window;
        options.enqueued_token_limit = command.token_limit;
        options.faults = fault_plan(command.faults.as_deref())?;
        let simulator = Simulator::open(options, Arc::new(SystemClock::new())).map_err(AppError::from)?;
        let address = SocketAddr::from(([127, 0, 0, 1], command.port));
        let bind = |source| AppError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        output::data(&format!("http://{address}/v1"));
        tracing::info!(address = %address, state = %command.state.display(),
            "the simulator answers at http://{address}/v1 with any key; its ledger is {}",
            command.state.join("ledger.jsonl").display());
        let stop = async {
            use tokio::signal::unix::{SignalKind, signal};
            match signal(SignalKind::terminate()) {
                Ok(mut terminate) => tokio::select! {
                    _ = terminate.recv() => {}
                    _ = tokio::signal::ctrl_c() => {}
                },
                Err(_) => drop(tokio::signal::ctrl_c().await),
            }
        };
        simulator.serve(listener, stop).await;
        Ok(())
    })
}
