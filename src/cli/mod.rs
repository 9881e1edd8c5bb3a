//! The commands. Data goes to standard output, talk to standard error.

mod client;
mod company;
mod config;
mod control;
mod erase;
mod export;
mod import;
mod key;
mod output;
mod serve;
mod simulate;
mod status;
mod store;
mod token;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app::{self, AppError};
use crate::config::{ConfigErrors, Settings};
use crate::store::StoreError;

/// Sends AI requests that can wait through OpenAI's Batch API, at half price, and never pays for one twice.
#[derive(Debug, Parser)]
#[command(name = "nightshift", version, about, after_help = EXIT_CODES, propagate_version = true)]
struct Args {
    /// The configuration file; without one ./config.toml is read, if there is one.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets a key for this run, as in --set creation.interval=1s.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Print data as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// The running server, if it is not where the configuration says.
    #[arg(long, global = true, value_name = "URL")]
    server: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 74 the disk failed, 75 the store is in use, \
78 the configuration or the store was refused.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service (this is what happens without a command, too).
    Serve,
    /// Run an OpenAI-compatible Files and Batch server for trials.
    Simulate(simulate::Simulate),
    /// Send an export to the running server.
    Import(import::Import),
    /// Write requests or sessions of a company, all or by filters, as lines of JSON or as CSV.
    Export(export::Export),
    /// Show how far the work is.
    Status(status::Status),
    /// List requests, or show one.
    Requests(status::Requests),
    /// List batches, or show one with its story.
    Batches(status::Batches),
    /// Put failed requests back to wait for a batch.
    Requeue(status::Requeue),
    /// Cancel a batch, in whatever state it is; what it has finished is kept.
    Cancel(control::Cancel),
    /// Let a paused account at the provider go on at once, and try parked batches again.
    Resume,
    /// List, make, suspend or resume companies.
    Company(company::CompanyArgs),
    /// List, make, rotate or revoke access keys of the running server.
    Key(key::KeyArgs),
    /// Erase a session or a company for good, or list what was erased.
    Erase(erase::Erase),
    /// Make or replace access tokens (with the server stopped).
    Token(token::Token),
    /// Check every invariant of the store by a full scan; a running server does it itself.
    Verify,
    /// Take a store that cannot be believed, or make its files anew (with the server stopped).
    Store(store::StoreArgs),
    /// Look at the configuration.
    Config(config::Config),
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing needs to be said any more.
    #[error("")]
    Told,
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 78,
            Self::App(AppError::Store(err)) | Self::Store(err) => store_code(err),
            Self::App(AppError::Folder { source, .. }) if crate::disk::is_no_room(source) => app::EXIT_DISK,
            Self::App(AppError::Folder { .. } | AppError::Provider(_) | AppError::Faults { .. }) => 78,
            Self::App(AppError::Simulator(crate::simulator::SimulatorError::InUse { .. })) => 75,
            Self::App(
                AppError::Bind { .. } | AppError::Simulator(_) | AppError::System(_) | AppError::Ended(_),
            )
            | Self::Told
            | Self::Failed(_) => 1,
        }
    }
}

fn store_code(err: &StoreError) -> u8 {
    match err {
        StoreError::InUse { .. } => 75,
        StoreError::Folder { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Damaged { .. }
        | StoreError::Codec(_) => 78,
        StoreError::Full(_) | StoreError::Io(_) | StoreError::SyncFailed(_) => app::EXIT_DISK,
        StoreError::Stopped
        | StoreError::TooLong { .. }
        | StoreError::Stale { .. }
        | StoreError::NotFound { .. }
        | StoreError::Unproven { .. }
        | StoreError::Broken(_) => 1,
    }
}

/// Parses the command line, runs the command, and says how it went.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let json = args.json;
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            output::error(&err, json);
            ExitCode::from(err.exit_code())
        }
    }
}

fn run(args: Args) -> Result<(), CliError> {
    let needs_key = matches!(args.command, None | Some(Command::Serve | Command::Config(_)));
    let settings = || crate::config::from_process(args.config.as_deref(), needs_key, args.set.clone());
    let (json, server) = (args.json, args.server.as_deref());
    match args.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(settings()?),
        Command::Simulate(command) => simulate::run(&command, settings()?.log),
        Command::Import(command) => import::run(&command, &settings()?, server, json),
        Command::Export(command) => export::run(&command, &settings()?, server),
        Command::Status(command) => status::status(&command, &settings()?, server, json),
        Command::Requests(command) => status::requests(&command, &settings()?, server, json),
        Command::Batches(command) => status::batches(&command, &settings()?, server, json),
        Command::Requeue(command) => status::requeue(&command, &settings()?, server, json),
        Command::Cancel(command) => control::cancel(&command, &settings()?, server, json),
        Command::Resume => control::resume(&settings()?, server, json),
        Command::Company(command) => company::run(&command, &settings()?, server, json),
        Command::Key(command) => key::run(&command, &settings()?, server, json),
        Command::Erase(command) => erase::run(&command, &settings()?, server, json),
        Command::Token(command) => token::run(&command, &settings()?, json),
        Command::Verify => verify::run(&settings()?, server, json),
        Command::Store(command) => store::run(&command, &settings()?, json),
        Command::Config(command) => config::run(&command, settings, json),
    }
}

/// Runs a future that needs no actors.
fn block_on<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|err| CliError::Failed(err.to_string()))?;
    runtime.block_on(future)
}

fn start_log(log: crate::config::Log) {
    use crate::config::LogFormat;
    use crate::telemetry::{Format, init};
    let format = match log.format {
        LogFormat::Auto => Format::Auto,
        LogFormat::Human => Format::Human,
        LogFormat::Json => Format::Json,
    };
    init(log.level.label(), format);
}

fn data_folder(settings: &Settings) -> &std::path::Path {
    &settings.data.path
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn no_command_means_serve() {
        assert!(Args::parse_from(["nightshift"]).command.is_none());
        assert!(matches!(Args::parse_from(["nightshift", "serve"]).command, Some(Command::Serve)));
    }
}
