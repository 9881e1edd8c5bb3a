//! Puts the parts together, runs them, drains them.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::actors::account::Account;
use crate::actors::creator::{Creator, Nudge};
use crate::actors::deliverer::Deliverer;
use crate::actors::download;
use crate::actors::eraser::Eraser;
use crate::actors::importer::{Importer, Place, Remote, Source};
use crate::actors::intake::Intake;
use crate::actors::poller::Poller;
use crate::actors::reconciler::Reconciler;
use crate::actors::registry::{Registry, Resume};
use crate::actors::transcripts::{self, Transcripts};
use crate::actors::{Shared, Switches};
use crate::clock::{Ids, SharedClock, SystemClock};
use crate::condition::{Condition, Hindrance, safe_mode};
use crate::config::{ImportSource, Location, ProviderKind, Settings};
use crate::disk::{self, Bounds, Disk};
use crate::domain::cut::Limits;
use crate::domain::id::KeyId;
use crate::domain::{retry, step};
use crate::fetch::{Fetcher, Guard, Login, SystemNames, Url};
use crate::http;
use crate::import;
use crate::panics;
use crate::provider::Provider;
use crate::provider::openai::OptionsError;
use crate::serving;
use crate::simulator::{PlanError, SimulatorError};
use crate::store::{CHUNK, Role, Store, StoreError, StoreReader, StoredToken};

mod provider;

pub use provider::{client, fault_plan, identity, provider_url};
use provider::{credentials, look_for_another_provider, pace};

/// The process leaves with this code when the disk let it down; the next start checks itself.
pub const EXIT_DISK: u8 = 74;

/// Name of the file in the data folder that holds the first admin token.
pub const TOKEN_FILE: &str = "admin-token";

/// How long a stop waits for running requests and create calls.
const DRAIN: Duration = Duration::from_secs(7);
/// After so long the process leaves, whatever still runs: every state is safe to leave in.
const LEAVE: Duration = Duration::from_secs(9);

/// The system's number of the signal for a file that grows beyond its limit, on Linux.
const SIGXFSZ: i32 = 25;

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
    let ended = system.block_on(panics::caught(serve(settings)));
    // Taking the actors apart one by one, some of them in the midst of a call, would gain nothing and may panic. What
    // was acknowledged is synced, and the process ends now.
    std::mem::forget(system);
    ended.map_err(|_| AppError::Ended("main part"))?
}

async fn serve(settings: Settings) -> Result<(), AppError> {
    let mut asked_to_stop = signals()?;
    let surroundings = Surroundings {
        clock: Arc::new(SystemClock::new()),
        around_provider: Box::new(in_place),
        chunk: CHUNK,
    };
    let application = start(&settings, surroundings).await?;
    let stopping = |is_asked: bool| {
        // Of one that was asked for the signal sees to that.
        if !is_asked {
            leave_at_last(1);
        }
    };
    let ended = application.run(stop_asked(&mut asked_to_stop), stopping).await;
    System::current().stop();
    ended
}

/// Something that is laid around the provider's client.
pub type Around = Box<dyn FnOnce(Arc<dyn Provider>) -> Arc<dyn Provider>>;

/// What the program stands in; a test brings its own.
pub struct Surroundings {
    /// The time.
    pub clock: SharedClock,
    /// What is laid around the provider's client.
    pub around_provider: Around,
    /// A transaction cuts or closes so many requests.
    pub chunk: usize,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Surroundings")
    }
}

/// The client as it is, but for the crash points of the tests.
fn in_place(client: Arc<dyn Provider>) -> Arc<dyn Provider> {
    #[cfg(feature = "crash-points")]
    let client: Arc<dyn Provider> = Arc::new(crate::provider::crashing::Crashing::new(client));
    client
}

/// The program with all its parts, at work from the start.
pub struct Application {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Parts that nothing replaces.
    parts: [(&'static str, IsAlive); 7],
    _importers: Vec<Addr<Importer>>,
    _transcripts: Option<Addr<Transcripts>>,
    stop: watch::Sender<bool>,
    lost: mpsc::Receiver<&'static str>,
    server: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for Application {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Application").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Opens the store and starts everything, within an actix system.
pub async fn start(settings: &Settings, surroundings: Surroundings) -> Result<Application, AppError> {
    let Surroundings { clock, around_provider, chunk } = surroundings;
    let ids = Ids::new(clock.clone());
    let data = settings.data.path.clone();
    let bounds = Bounds {
        folder: data.clone(),
        floor: settings.data.free_space_floor,
        ballast: settings.data.ballast,
    };
    disk::make_openable(&data);
    let leaving = data.clone();
    let store = Store::open(&data, ids.next(), Arc::new(move |err| leave(err, &leaving))).await?;
    let store = store.with_chunk(chunk);
    let spool = data.join("spool");
    std::fs::create_dir_all(&spool)
        .and_then(|()| disk::check_writable(&spool))
        .map_err(|source| AppError::Folder { path: spool.clone(), source })?;
    download::clean(&spool);
    crash_point!("configure.before_commit");
    store.configure_companies(settings.companies.clone()).await?;
    crash_point!("configure.after_commit");
    let address = settings.server.bind;
    let listener = TcpListener::bind(address).await.map_err(|source| AppError::Bind { address, source })?;
    let address = listener.local_addr().map_err(|source| AppError::Bind { address, source })?;
    first_token(settings, &store, &clock, &ids).await?;

    let (stop, stopping) = watch::channel(false);
    let (lost, a_lost_part) = mpsc::channel(8);
    let base_url = provider_url(settings, &data, &clock, stopping.clone(), &lost).await?;
    let condition = Arc::new(Condition::new());
    let disk = Arc::new(Disk::new(bounds, condition.clone(), Box::new(leave_unsynced)));
    disk.look();
    look_for_another_provider(&store, &identity(settings)).await?;
    if let Some(why) = store.doubt() {
        condition.raise(Hindrance::SafeMode, safe_mode(&why));
    }
    condition
        .raise(Hindrance::Checking, "the store is being checked; until that has ended no batch is created");
    let provider = around_provider(client(settings, base_url, clock.clone())?);
    let shared = Arc::new(share(settings, store.clone(), provider, clock, disk.clone(), ids, spool)?);
    let registry = Registry::new(shared.clone()).start();
    let creator = Creator::new(shared.clone(), registry.clone()).start();
    let resume = Resume { creator: Some(creator.clone()) };
    let resumed = registry.send(resume).await.map_err(|_| AppError::Ended("registry"))??;
    let intake = Intake::new(shared.clone(), creator.clone()).start();
    let reconciler = Reconciler::new(shared.clone(), registry.clone()).start();
    let poller = Poller::new(shared.clone(), registry.clone()).start();
    let eraser = Eraser::new(shared.clone(), registry.clone()).start();
    let deliverer = Deliverer::new(shared.clone()).start();
    let read = |source: &Arc<Source>| Importer::new(source.clone(), intake.clone(), shared.clone()).start();
    let importers: Vec<_> = shared.sources.iter().map(read).collect();
    let transcripts = Transcripts::new(intake.clone(), shared.clone());
    let transcripts = (!importers.is_empty()).then(|| transcripts.start());

    announce(settings, address, resumed);
    let parts = [
        ("registry", alive(&registry)),
        ("creator", alive(&creator)),
        ("intake", alive(&intake)),
        ("poller", alive(&poller)),
        ("reconciler", alive(&reconciler)),
        ("deliverer", alive(&deliverer)),
        ("eraser", alive(&eraser)),
    ];
    let options = http::Options {
        admin_token: settings.server.admin_token.clone(),
        quotas: settings.ingest,
        webhook_secret: settings.provider.webhook_secret.clone(),
    };
    let api = http::Api::new(http::Parts { registry, intake, eraser, poller }, shared.clone(), options);
    let routes = http::routes(api);
    let options = serving::Options { max_per_address: 256, drain_timeout: DRAIN, ..Default::default() };
    let mut stop_serving = stopping;
    let serve = async move {
        let drained = serving::serve(listener, routes, options, async move {
            // The sender going away means stop, too.
            let _ = stop_serving.wait_for(|stop| *stop).await;
        });
        if drained.await != serving::Drained::Fully {
            tracing::warn!("some requests did not end in time and were cut");
        }
    };
    let server = tokio::spawn(missed(lost.clone(), "HTTP server", serve));
    actix::spawn(missed(lost.clone(), "teller of progress", tell_progress(store.reader(), address, data)));
    actix::spawn(missed(lost.clone(), "watcher of the disk", disk.watch()));
    actix::spawn(missed(lost, "keeper of the anchor", keep_anchored(store.clone())));
    actix::spawn(check_store(store, condition, creator));
    Ok(Application {
        address,
        shared,
        parts,
        _importers: importers,
        _transcripts: transcripts,
        stop,
        lost: a_lost_part,
        server,
    })
}

impl Application {
    /// Where the API listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the actors share.
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Runs until `asked_to_stop` returns, or a part is lost that nothing can replace; then `stopping` is told whether it
    /// was asked for, and everything ends in order.
    pub async fn run(
        mut self,
        asked_to_stop: impl Future<Output = ()>,
        stopping: impl FnOnce(bool),
    ) -> Result<(), AppError> {
        let ended = tokio::select! {
            () = asked_to_stop => Ok(()),
            ended = watch_over(&self.parts) => Err(AppError::Ended(ended)),
            Some(lost) = self.lost.recv() => Err(AppError::Ended(lost)),
        };
        tracing::info!("stopping: running requests end, everything else goes on with the next start");
        stopping(ended.is_ok());
        self.shared.condition.raise(Hindrance::Draining, "the program is stopping");
        self.stop.send_replace(true);
        let ends = async {
            let served = self.server.await;
            // What such a call did would otherwise have to be searched for at the provider.
            while self.shared.creating.count() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            served
        };
        if tokio::time::timeout(DRAIN + Duration::from_millis(500), ends).await.is_err() {
            tracing::warn!("some calls did not end in time and were cut");
        }
        // A store that cannot any more has said so, and the process is leaving.
        crash_point!("drain.before_anchor");
        let _ = self.shared.store.anchor().await;
        ended
    }
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
        match store.anchor().await {
            // Without room for the small file the store is merely ahead of it, which is normal.
            Ok(()) | Err(StoreError::Full(_)) => {}
            Err(_) => return,
        }
    }
}

/// Reads the whole store once after the start. What it finds means safe mode.
async fn check_store(store: Store, condition: Arc<Condition>, creator: Addr<Creator>) {
    let started = std::time::Instant::now();
    match store.check().await {
        Ok(report) => tracing::info!(
            entries = report.entries,
            requests = report.requests,
            violations = report.found(),
            millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the store is checked: {} entries, {} requests, {} violations",
            report.entries,
            report.requests,
            report.found()
        ),
        // The doubt holds although it cannot be written down: the next check finds the same again.
        Err(err) => {
            condition.raise(Hindrance::SafeMode, safe_mode(&format!("the check of it failed: {err}")))
        }
    }
    if let Some(why) = store.doubt() {
        condition.raise(Hindrance::SafeMode, safe_mode(&why));
    }
    condition.clear(Hindrance::Checking);
    // What filled up meanwhile need not wait for the timer.
    creator.do_send(Nudge);
}

/// The committer cannot write or sync: what the disk has is not known any more, so nothing may go on.
fn leave(err: &StoreError, data: &Path) {
    tracing::error!(error = %err, "the store cannot go on: {err}. Leaving; what was acknowledged is safe, start again");
    disk::make_openable(data);
    std::process::exit(i32::from(EXIT_DISK));
}

/// A file of the spool could not be synced: the next sync of anything may lie, so nothing goes on.
fn leave_unsynced(why: &str) {
    tracing::error!("{why}. Leaving; what was acknowledged is safe, see to the disk and start again");
    std::process::exit(i32::from(EXIT_DISK));
}

/// Sees to it that the process is gone in time, with this code, although something hangs: a disk, or a thread.
fn leave_at_last(code: i32) {
    let spawned = std::thread::Builder::new().name("leave".to_owned()).spawn(move || {
        std::thread::sleep(LEAVE);
        tracing::warn!("not everything ended in time; leaving all the same, which is safe");
        std::process::exit(code);
    });
    if let Err(err) = spawned {
        tracing::warn!(error = %err, "nothing watches over the stop");
    }
}

fn share(
    settings: &Settings,
    store: Store,
    provider: Arc<dyn Provider>,
    clock: SharedClock,
    disk: Arc<Disk>,
    ids: Ids,
    spool: PathBuf,
) -> Result<Shared, AppError> {
    let pace = pace(settings, &store.reader(), clock.as_ref())?;
    let store_instance = store.instance();
    Ok(Shared {
        reader: store.reader(),
        store,
        provider,
        fetcher: Arc::new(fetcher(settings)?),
        identity: identity(settings),
        made_with: credentials(settings, store_instance),
        clock,
        ids,
        condition: disk.condition(),
        disk,
        creating: Arc::default(),
        switches: Switches::new(settings.creation.enabled, settings.polling.enabled),
        account: Account::new(settings.retry.backoff.clamp(Duration::from_secs(1), Duration::from_secs(30))),
        pace,
        prices: settings.prices.clone(),
        spool,
        limits: Limits {
            requests_max: u64::from(settings.creation.max_requests),
            bytes_max: settings.creation.max_file_size,
            tokens_max: None,
            age_max: settings.creation.max_age,
        },
        retry: retry::Policy {
            max_attempts: settings.retry.max_attempts,
            backoff: settings.retry.backoff,
            capacity_backoff: settings.retry.capacity_backoff,
        },
        capacity_hold: settings.retry.capacity_hold,
        policy: step::Policy {
            backoff: settings.retry.backoff.clamp(Duration::from_secs(1), Duration::from_secs(60)),
            capacity_backoff: settings.retry.capacity_backoff,
            sweeps_min: 3,
        },
        grace: settings.submission.grace,
        creation_interval: settings.creation.interval,
        polling_interval: settings.polling.interval,
        polling_calls_max: usize::try_from(settings.polling.max_calls).unwrap_or(usize::MAX),
        model_default: settings.analysis.model.clone(),
        settle: settings.analysis.settle,
        time_zone: settings.import.time_zone.clone(),
        repair_rounds: settings.analysis.repair_rounds,
        sources: settings
            .imports
            .iter()
            .map(|import| source(import).map(Arc::new))
            .collect::<Result<_, _>>()?,
        retention: settings.retention,
        fetching: transcripts::Bounds {
            timeout: settings.fetch.timeout,
            export_bytes_max: settings.fetch.max_export_size,
            transcript_bytes_max: settings.fetch.max_transcript_size,
            attempts: settings.fetch.attempts,
        },
    })
}

fn fetcher(settings: &Settings) -> Result<Fetcher, AppError> {
    let guard = Guard::new(&settings.fetch.allow_hosts)
        .map_err(|err| AppError::System(format!("[fetch] allow_hosts: {err}")))?;
    Fetcher::new(guard, Arc::new(SystemNames)).map_err(|err| AppError::System(err.to_string()))
}

fn source(configured: &ImportSource) -> Result<Source, AppError> {
    let place = match &configured.csv {
        Location::Path(path) => {
            let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
            Place::File { csv: path.clone(), transcripts: configured.transcripts.clone().unwrap_or(folder) }
        }
        Location::Url(url) => Place::Remote(Remote {
            url: Url::parse(url).map_err(|err| AppError::System(format!("{}: {err}", configured.csv)))?,
            login: configured.login.as_ref().map(|(username, password)| Login {
                username: username.clone(),
                password: password.expose().into(),
            }),
        }),
    };
    let options = import::Options { time_zone: configured.time_zone.clone() };
    let label = configured.csv.to_string();
    let mut source = Source::new(configured.company.clone(), place, label, options, configured.every);
    source.transcript_concurrency = usize::try_from(configured.transcript_concurrency).unwrap_or(1);
    Ok(source)
}

/// Makes the first admin token where there is none, prints it once, and leaves it where the commands find it.
async fn first_token(
    settings: &Settings,
    store: &Store,
    clock: &SharedClock,
    ids: &Ids,
) -> Result<(), AppError> {
    let known = store.reader().tokens(None)?;
    let good = |token: &StoredToken| token.role == Role::Admin && token.is_live(clock.now());
    if settings.server.admin_token.is_some() || known.iter().any(good) {
        return Ok(());
    }
    let (token, path) = new_admin_token(&settings.data.path, store, clock, ids).await?;
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
    ids: &Ids,
) -> Result<(String, PathBuf), AppError> {
    let token = http::auth::new_token().map_err(|err| AppError::System(err.to_string()))?;
    let path = data.join(TOKEN_FILE);
    // The file first: a token that is valid and nowhere to be read would be of use to nobody.
    write_secret(&path, &token).map_err(|source| AppError::Folder { path: path.clone(), source })?;
    let (id, hash) = (KeyId::new(ids.next()), http::auth::hash(&token));
    let stored = StoredToken::new(id, hash, Role::Admin, "first admin".to_owned(), clock.now());
    crash_point!("token.admin.before_commit");
    store.put_token(stored, true).await?;
    crash_point!("token.admin.after_commit");
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
async fn tell_progress(reader: StoreReader, address: SocketAddr, data: PathBuf) {
    let mut told = [0; 4];
    let mut interval = tokio::time::interval(Duration::from_secs(2));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let counts = match reader.summary(None) {
            Ok(counts) => counts,
            Err(err) => {
                // Its handle is dead also where no write has found out yet.
                if err.is_fatal() {
                    leave(&err, &data);
                }
                continue;
            }
        };
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

/// Counts the signals that ask the process to stop. A second one ends it at once: every state is safe to leave in.
fn signals() -> Result<watch::Receiver<u32>, AppError> {
    use tokio::signal::unix::{SignalKind, signal};
    let fail = |err: std::io::Error| AppError::System(err.to_string());
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    // With a handler, whatever it does, a write beyond a limit on the size of files (ulimit -f) is an error that can be
    // told; without one the system ends the process at once.
    drop(signal(SignalKind::from_raw(SIGXFSZ)).map_err(fail)?);
    let (count, counted) = watch::channel(0);
    // On a thread of the runtime's own: opening the store blocks this one.
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            count.send_modify(|count| *count += 1);
            if *count.borrow() == 1 {
                // From here, for a start may take longer than that: it reads the whole store.
                leave_at_last(0);
            }
            if *count.borrow() > 1 {
                tracing::warn!("told to stop again: leaving at once");
                std::process::exit(1);
            }
        }
    });
    Ok(counted)
}

async fn stop_asked(signals: &mut watch::Receiver<u32>) {
    // The sender lives as long as the runtime.
    let _ = signals.wait_for(|count| *count > 0).await;
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
