//! From the settings to the provider: which one it is, its client, our limits toward it; the embedded simulator.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::{AppError, missed};
use crate::actors::pace::{Pace, Paces};
use crate::clock::{Clock, SharedClock};
use crate::config::{ProviderKind, Secret, Settings};
use crate::domain::batch::{Credentials, ProviderIdentity};
use crate::provider::Provider;
use crate::provider::openai::{OpenAi, Options as ProviderOptions};
use crate::simulator::{FaultPlan, Options as SimulatorOptions, Simulator};
use crate::store::{Store, StoreError, StoreReader};

/// With what calls are made. The store's own id is in it, so that it says nothing outside of this store.
pub(super) fn credentials(settings: &Settings, instance: Uuid) -> Credentials {
    let provider = &settings.provider;
    let key = provider.api_key.as_ref().filter(|_| provider.kind == ProviderKind::OpenAi);
    let mut print = Sha256::new();
    print.update(instance.as_bytes());
    for part in [key.map(Secret::expose), provider.organization.as_deref(), provider.project.as_deref()] {
        let part = part.unwrap_or_default();
        print.update((part.len() as u64).to_be_bytes());
        print.update(part);
    }
    let print: [u8; 32] = print.finalize().into();
    let mut credentials = Credentials::default();
    for (to, from) in credentials.0.iter_mut().zip(print) {
        *to = from;
    }
    credentials
}

/// Which provider is configured.
pub fn identity(settings: &Settings) -> ProviderIdentity {
    let provider = &settings.provider;
    ProviderIdentity {
        kind: provider.kind.label().to_owned(),
        base_url: match provider.kind {
            // Its port changes with every start.
            ProviderKind::Simulator => String::new(),
            ProviderKind::OpenAi => provider.base_url.clone(),
        },
        organization: provider.organization.clone(),
        project: provider.project.clone(),
    }
}

/// Batches that another provider has, or may have, while this one is configured: that is more often a mistake than not,
/// and what they hold is neither asked about nor bought again until an operator has looked.
pub(super) async fn look_for_another_provider(
    store: &Store,
    identity: &ProviderIdentity,
) -> Result<(), StoreError> {
    let reader = store.reader();
    if reader.accepted_provider()?.is_some_and(|accepted| accepted == identity.key()) {
        return Ok(());
    }
    for id in reader.live_batches()? {
        if let Some(batch) = reader.batch(id)?
            && batch.provider != *identity
            && !batch.state.is_unsent()
        {
            let why = format!(
                "batch {id} is open at another provider ({} {}) than the one that is configured now",
                batch.provider.kind, batch.provider.base_url
            );
            return store.distrust(why).await;
        }
    }
    Ok(())
}

/// Our own limits, with what was created in the last hour.
pub(super) fn pace(settings: &Settings, reader: &StoreReader, clock: &dyn Clock) -> Result<Pace, StoreError> {
    let limits = &settings.submission;
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let paces = Paces {
        batches_per_hour: count(limits.batches_per_hour),
        uploads_per_minute: count(limits.uploads_per_minute),
        transfers: count(limits.transfers),
    };
    let now = clock.now();
    let created = reader.intents_since(now.minus(Duration::from_secs(3600)), paces.batches_per_hour)?;
    let mut by_company = Vec::with_capacity(created.len());
    for noted in created {
        if let Some(batch) = reader.batch(noted.batch)? {
            by_company.push((now.since(noted.intent.at), batch.group.company));
        }
    }
    Ok(Pace::new(paces, by_company))
}

/// The client of the configured provider, which is at `base_url`.
pub fn client(
    settings: &Settings,
    base_url: String,
    clock: SharedClock,
) -> Result<Arc<dyn Provider>, AppError> {
    let provider = &settings.provider;
    let mut options = ProviderOptions::new(base_url);
    options.api_key = Some(SecretString::from(match &provider.api_key {
        Some(key) if provider.kind == ProviderKind::OpenAi => key.expose().to_owned(),
        // The simulator takes any key.
        Some(_) | None => "simulator".to_owned(),
    }));
    options.organization.clone_from(&provider.organization);
    options.project.clone_from(&provider.project);
    Ok(Arc::new(OpenAi::new(options, clock)?))
}

/// Where the provider is; the embedded simulator is started for it.
pub async fn provider_url(
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
