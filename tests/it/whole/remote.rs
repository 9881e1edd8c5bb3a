//! The provider: the simulator on a thread of its own, with a clock that nobody but the test turns.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nightshift::clock::ManualClock;
use nightshift::simulator::{FaultPlan, Options, Simulator};
use serde_json::Value;
use tokio::sync::oneshot;

use super::plan::Plan;
use crate::process::read;

pub struct Remote {
    pub url: String,
    state: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Remote {
    pub fn start(state: &Path, plan: &Plan, seed: u64, clock: Arc<ManualClock>) -> Self {
        let mut options = Options::new(state);
        options.turnaround = plan.turnaround;
        options.window = plan.window;
        options.tick = Duration::from_millis(20);
        options.enqueued_token_limit = plan.token_limit;
        options.instance = Some(seed);
        options.faults = FaultPlan::parse(&plan.faults).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (told, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let simulator = Simulator::open(options, clock).unwrap();
                let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
                let listener = tokio::net::TcpListener::bind(loopback).await.unwrap();
                told.send(listener.local_addr().unwrap()).unwrap();
                let stop = async {
                    let _ = stopped.await;
                };
                simulator.serve(listener, stop).await;
            });
        });
        let url = format!("http://{}/v1", address.recv().unwrap());
        Self { url, state: state.to_owned(), stop: Some(stop), thread: Some(thread) }
    }

    /// What the provider booked.
    pub fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::default();
        for line in read(&self.state.join("ledger.jsonl")).lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| line[name].as_str().unwrap().to_owned();
            match line["event"].as_str() {
                Some("batch_created") => ledger.created.push(text("batch")),
                Some("line_run") => ledger.runs.entry(text("custom_id")).or_default().push(text("batch")),
                _ => {}
            }
        }
        ledger
    }
}

#[derive(Default)]
pub struct Ledger {
    /// The batches that were created.
    pub created: Vec<String>,
    /// What was run, by custom id: the batches in which it was.
    pub runs: BTreeMap<String, Vec<String>>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let (Some(stop), Some(thread)) = (self.stop.take(), self.thread.take()) {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}
