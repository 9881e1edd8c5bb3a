//! Puts the parts together, runs them, drains them.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::actors::creator::Creator;
use crate::actors::importer::{Importer, Source};
use crate::actors::intake::Intake;
use crate::actors::poller::Poller;
use crate::actors::registry::{Registry, Resume};
use crate::actors::{Shared, Switches};
use crate::clock::{Ids, SharedClock, SystemClock};
use crate::condition::{Condition, Hindrance};
use crate::config::{ImportSource, Location, ProviderKind, Settings};
use crate::domain::batch::ProviderIdentity;
use crate::domain::cut::Limits;
use crate::domain::{retry, step};
use crate::http;
use crate::import;
use crate::panics;
use crate::provider::Provider;
use crate::provider::openai::{OpenAi, Options as ProviderOptions, OptionsError};
use crate::serving;
use crate::simulator::{FaultPlan, Options as SimulatorOptions, PlanError, Simulator, SimulatorError};
use crate::store::{Role, Store, StoreError, StoreReader, StoredToken};

/// The process leaves with this code when the disk let it down; the next start checks itself.
pub const EXIT_DISK: u8 = 74;

/// Name of the file in the data folder that holds the first admin token.
pub const TOKEN_FILE: &str = "admin-token";

/// How long a stop may take: running requests end, then the process leaves.
const DRAIN: Duration = Duration::from_secs(8);

/// Why the program cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}. Stop what uses it, or set [server] bind to another port")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A folder or file of the data folder cannot be used.
    #[error("{path} cannot be used: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The provider's client cannot be made.
    #[error("the provider cannot be used: {0}")]
    Provider(#[from] OptionsError),
    /// The simulator cannot start.
    #[error("the simulator cannot start: {0}")]
    Simulator(#[from] SimulatorError),
    /// Its plan of faults is wrong.
    #[error("simulator.faults ({path}): {source}")]
    Faults {
        /// The plan's file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: PlanError,
    },
    /// The system gives no threads, or no random numbers.
    #[error("the system does not give what is needed: {0}")]
    System(String),
    /// A part that nothing can replace has ended.
    #[error("the {0} has ended; nothing is lost, start again")]
    Ended(&'static str),
}

/// Runs until a signal says stop.
pub fn run(settings: Settings) -> Result<(), AppError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|err| AppError::System(err.to_string()))?;
    // actix and warp share one multi-threaded runtime, so HTTP does not wait behind the actors.
    let system = System::with_tokio_rt(move || runtime);
    panics::install();
    // One in this very future ends it, with a code like that of any part that nothing can replace.
    system.block_on(panics::caught(serve(settings))).map_err(|_| AppError::Ended("main part"))?
}

async fn serve(settings: Settings) -> Result<(), AppError> {
    let clock: SharedClock = Arc::new(SystemClock::new());
    let ids = Ids::new(clock.clone());
    let data = settings.data.path.clone();
    let store = Store::open(&data, ids.next(), Box::new(leave)).await?;
    let spool = data.join("spool");
    std::fs::create_dir_all(&spool).map_err(|source| AppError::Folder { path: spool.clone(), source })?;
    store.put_companies(settings.companies.clone()).await?;
    let address = settings.server.bind;
    let listener = TcpListener::bind(address).await.map_err(|source| AppError::Bind { address, source })?;
    let address = listener.local_addr().map_err(|source| AppError::Bind { address, source })?;
    first_token(&settings, &store, &clock).await?;

    let (stop, stopping) = watch::channel(false);
    let (lost, mut a_lost_part) = mpsc::channel(8);
    let base_url = provider_url(&settings, &data, &clock, stopping.clone(), &lost).await?;
    let condition = Arc::new(Condition::new());
    let shared =
        Arc::new(share(&settings, store.clone(), clock.clone(), condition.clone(), ids, spool, base_url)?);
    let registry = Registry::new(shared.clone()).start();
    let creator = Creator::new(shared.clone(), registry.clone()).start();
    let resume = Resume { creator: creator.clone() };
    let resumed = registry.send(resume).await.map_err(|_| AppError::Ended("registry"))??;
    let intake = Intake::new(shared.clone(), creator.clone()).start();
    let poller = Poller::new(shared.clone(), registry.clone()).start();
    let sources = settings.imports.iter().filter_map(source);
    let _importers: Vec<_> = sources.map(|source| Importer::new(source, intake.clone()).start()).collect();

    // Before it says that it is up: who waits for that may tell it to stop at once.
    let told_to_stop = stop_signal()?;
    announce(&settings, address, resumed);
    let parts = [
        ("registry", alive(&registry)),
        ("creator", alive(&creator)),
        ("intake", alive(&intake)),
        ("poller", alive(&poller)),
    ];
    let api = http::Api::new(registry.clone(), intake, shared.clone(), settings.server.admin_token.clone())?;
    let routes = http::routes(api);
    let options = serving::Options { max_per_address: 256, drain_timeout: DRAIN, ..Default::default() };
    let mut stop_serving = stopping.clone();
    let serve = async move {
        serving::serve(listener, routes, options, async move {
            // The sender going away means stop, too.
            let _ = stop_serving.wait_for(|stop| *stop).await;
        })
        .await
    };
    let server = tokio::spawn(missed(lost.clone(), "HTTP server", serve));
    actix::spawn(missed(lost.clone(), "teller of progress", tell_progress(store.reader(), address)));
    actix::spawn(missed(lost.clone(), "keeper of the anchor", keep_anchored(store.clone())));
    let ended = tokio::select! {
        () = told_to_stop => Ok(()),
        ended = watch_over(&parts) => Err(AppError::Ended(ended)),
        Some(lost) = a_lost_part.recv() => Err(AppError::Ended(lost)),
    };
    tracing::info!("stopping: running requests end, everything else goes on with the next start");
    condition.raise(Hindrance::Draining, "the program is stopping");
    stop.send_replace(true);
    actix::spawn(async {
        if let Ok(again) = stop_signal() {
            again.await;
            // A second signal: every state is safe to leave in.
            std::process::exit(1);
        }
    });
    if tokio::time::timeout(DRAIN, server).await.is_err() {
        tracing::warn!("some requests did not end in time and were cut");
    }
    // A store that cannot any more has said so, and the process is leaving.
    crash_point!("drain.before_anchor");
    let _ = store.anchor().await;
    System::current().stop();
    ended
}

/// Runs a part that has to run as long as the process does, and tells when it ended, by a panic, too.
async fn missed<T>(lost: mpsc::Sender<&'static str>, part: &'static str, work: impl Future<Output = T>) {
    // What it came to is of no use: it has ended.
    drop(panics::caught(work).await);
    // The first one that is missed is enough to leave for.
    let _ = lost.try_send(part);
}

/// Moves the anchor after the last change of a busy stretch, too.
async fn keep_anchored(store: Store) {
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if store.anchor().await.is_err() {
            return;
        }
    }
}

/// The committer cannot write or sync: what the disk has is not known any more, so nothing may go on.
fn leave(err: &StoreError) {
    tracing::error!(error = %err, "the store cannot go on: {err}. Leaving; what was acknowledged is safe");
    std::process::exit(i32::from(EXIT_DISK));
}

fn share(
    settings: &Settings,
    store: Store,
    clock: SharedClock,
    condition: Arc<Condition>,
    ids: Ids,
    spool: PathBuf,
    base_url: String,
) -> Result<Shared, AppError> {
    let provider = &settings.provider;
    let mut options = ProviderOptions::new(base_url);
    options.api_key = Some(SecretString::from(match &provider.api_key {
        Some(key) if provider.kind == ProviderKind::OpenAi => key.expose().to_owned(),
        // The simulator takes any key.
        Some(_) | None => "simulator".to_owned(),
    }));
    options.organization.clone_from(&provider.organization);
    options.project.clone_from(&provider.project);
    let client: Arc<dyn Provider> = Arc::new(OpenAi::new(options)?);
    #[cfg(feature = "crash-points")]
    let client: Arc<dyn Provider> = Arc::new(crate::provider::crashing::Crashing::new(client));
    Ok(Shared {
        reader: store.reader(),
        store,
        provider: client,
        identity: ProviderIdentity {
            kind: provider.kind.label().to_owned(),
            base_url: match provider.kind {
                ProviderKind::Simulator => String::new(),
                ProviderKind::OpenAi => provider.base_url.clone(),
            },
            organization: provider.organization.clone(),
            project: provider.project.clone(),
        },
        clock,
        ids,
        condition,
        switches: Switches::new(settings.creation.enabled, settings.polling.enabled),
        prices: settings.prices.clone(),
        spool,
        limits: Limits {
            requests_max: u64::from(settings.creation.max_requests),
            bytes_max: settings.creation.max_file_size,
            age_max: settings.creation.max_age,
        },
        retry: retry::Policy {
            max_attempts: settings.retry.max_attempts,
            backoff: settings.retry.backoff,
            capacity_backoff: settings.retry.capacity_backoff,
        },
        policy: step::Policy {
            backoff: settings.retry.backoff.clamp(Duration::from_secs(1), Duration::from_secs(60)),
            capacity_backoff: settings.retry.capacity_backoff,
            sweeps_min: 3,
        },
        grace: settings.submission.grace,
        creation_interval: settings.creation.interval,
        polling_interval: settings.polling.interval,
        polling_calls_max: usize::try_from(settings.polling.max_calls).unwrap_or(usize::MAX),
        settle: settings.analysis.settle,
    })
}

/// Where the provider is; the embedded simulator is started for it.
async fn provider_url(
    settings: &Settings,
    data: &Path,
    clock: &SharedClock,
    mut stopping: watch::Receiver<bool>,
    lost: &mpsc::Sender<&'static str>,
) -> Result<String, AppError> {
    match settings.provider.kind {
        ProviderKind::OpenAi => Ok(settings.provider.base_url.clone()),
        ProviderKind::Simulator => {
            let mut options = SimulatorOptions::new(data.join("simulator"));
            options.turnaround = settings.simulator.turnaround;
            options.enqueued_token_limit = settings.simulator.token_limit;
            options.faults = fault_plan(settings.simulator.faults.as_deref())?;
            let simulator = Simulator::open(options, clock.clone())?;
            let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
            let bind = |source| AppError::Bind { address: loopback, source };
            let listener = TcpListener::bind(loopback).await.map_err(bind)?;
            let address = listener.local_addr().map_err(bind)?;
            let serve = async move {
                let stop = async move {
                    // The sender going away means stop, too.
                    let _ = stopping.wait_for(|stop| *stop).await;
                };
                simulator.serve(listener, stop).await
            };
            tokio::spawn(missed(lost.clone(), "simulator", serve));
            Ok(format!("http://{address}/v1"))
        }
    }
}

/// Reads a plan of faults for the simulator; without a path nothing goes wrong.
pub fn fault_plan(path: Option<&Path>) -> Result<FaultPlan, AppError> {
    let Some(path) = path else { return Ok(FaultPlan::default()) };
    let text =
        std::fs::read_to_string(path).map_err(|source| AppError::Folder { path: path.to_owned(), source })?;
    FaultPlan::parse(&text).map_err(|source| AppError::Faults { path: path.to_owned(), source })
}

fn source(configured: &ImportSource) -> Option<Source> {
    let csv = match &configured.csv {
        Location::Path(path) => path.clone(),
        Location::Url(_) => {
            tracing::error!(company.id = %configured.company, "the export {} is not read: exports are read from files", configured.csv);
            return None;
        }
    };
    let folder = csv.parent().map(Path::to_path_buf).unwrap_or_default();
    Some(Source {
        company: configured.company.clone(),
        transcripts: configured.transcripts.clone().unwrap_or(folder),
        csv,
        options: import::Options { time_zone: configured.time_zone.clone() },
        every: configured.every,
    })
}

/// Makes the first admin token where there is none, prints it once, and leaves it where the commands find it.
async fn first_token(settings: &Settings, store: &Store, clock: &SharedClock) -> Result<(), AppError> {
    let known = store.reader().tokens()?;
    if settings.server.admin_token.is_some() || known.iter().any(|token| token.role == Role::Admin) {
        return Ok(());
    }
    let (token, path) = new_admin_token(&settings.data.path, store, clock).await?;
    let mut out = std::io::stdout();
    // Whoever closed our standard output finds it in the file.
    let _ = writeln!(out, "admin token, shown this once and kept in {}: {token}", path.display());
    Ok(())
}

/// Makes an admin token, the only one from now on, and writes it to its file.
pub async fn new_admin_token(
    data: &Path,
    store: &Store,
    clock: &SharedClock,
) -> Result<(String, PathBuf), AppError> {
    let token = http::auth::new_token().map_err(|err| AppError::System(err.to_string()))?;
    let path = data.join(TOKEN_FILE);
    // The file first: a token that is valid and nowhere to be read would be of use to nobody.
    write_secret(&path, &token).map_err(|source| AppError::Folder { path: path.clone(), source })?;
    let stored = StoredToken {
        hash: http::auth::hash(&token),
        role: Role::Admin,
        label: "first admin".to_owned(),
        created_at: clock.now(),
    };
    store.put_token(stored, true).await?;
    Ok((token, path))
}

fn write_secret(path: &Path, secret: &str) -> std::io::Result<()> {
    let part = path.with_extension("part");
    // A part left by a kill may have another mode.
    let _ = std::fs::remove_file(&part);
    let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&part)?;
    writeln!(file, "{secret}")?;
    file.sync_all()?;
    std::fs::rename(&part, path)
}

fn announce(settings: &Settings, address: SocketAddr, resumed: usize) {
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
    let provider = match settings.provider.kind {
        ProviderKind::Simulator => {
            "the embedded simulator (nothing leaves this machine, nothing is paid)".to_owned()
        }
        ProviderKind::OpenAi => settings.provider.base_url.clone(),
    };
    tracing::info!(
        address = %address, provider = settings.provider.kind.label(), data = %settings.data.path.display(), resumed,
        "nightshift is up: API on http://{address}, data in {}, batches go to {provider}, {resumed} batches resumed",
        settings.data.path.display(),
    );
}

/// Tells how far the work is, whenever that changes, at most every two seconds.
async fn tell_progress(reader: StoreReader, address: SocketAddr) {
    let mut told = [0; 4];
    let mut interval = tokio::time::interval(Duration::from_secs(2));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Ok(counts) = reader.summary(None) else { continue };
        if counts == told {
            continue;
        }
        told = counts;
        let [waiting, in_batches, complete, failed] = counts;
        let all: u64 = counts.iter().sum();
        tracing::info!(
            waiting,
            in_batches,
            complete,
            failed,
            "progress: {complete} of {all} requests complete, {failed} failed, {in_batches} in batches, {waiting} waiting"
        );
        if waiting + in_batches == 0 {
            tracing::info!(
                "all work is done: see `nightshift status`, or http://{address}/api/admin/legacy/summary with the admin token"
            );
        }
    }
}

/// Listens from now on; what it gives ends when the process is told to stop.
fn stop_signal() -> Result<impl Future<Output = ()>, AppError> {
    use tokio::signal::unix::{SignalKind, signal};
    let fail = |err: std::io::Error| AppError::System(err.to_string());
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

type IsAlive = Box<dyn Fn() -> bool>;

fn alive<A: Actor<Context = Context<A>>>(actor: &Addr<A>) -> IsAlive {
    let actor = actor.clone();
    Box::new(move || actor.connected())
}

/// Returns when one of the parts is gone that nothing revives but a start, with its name.
async fn watch_over(parts: &[(&'static str, IsAlive)]) -> &'static str {
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    loop {
        interval.tick().await;
        if let Some((name, _)) = parts.iter().find(|(_, is_alive)| !is_alive()) {
            return name;
        }
    }
}
