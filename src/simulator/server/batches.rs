//! `/v1/batches`: create, show, list, cancel.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::super::answers::Endpoint;
use super::super::engine::Engine;
use super::super::wire::{Refusal, batch_view, page};
use super::super::world::{BatchRecord, Entry};
use super::{BatchFault, CancelRule, LIFE_SECONDS, internal, limit};

const MAX_PAIRS: usize = 16;
const MAX_KEY: usize = 64;
const MAX_VALUE: usize = 512;
const FIELDS: [&str; 5] =
    ["input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"];

/// `POST /v1/batches`. Whether its input file exists is found out later, as at OpenAI.
pub(super) fn create(engine: &Engine, body: &[u8]) -> Result<Value, Refusal> {
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else {
        return Err(Refusal::new(400, "We could not parse the JSON body of your request."));
    };
    if let Some(key) = body.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(Refusal::unknown(key));
    }
    let input_file_id = text(&body, "input_file_id")?;
    let endpoint = text(&body, "endpoint")?;
    if Endpoint::of(endpoint).is_none() {
        let known = Endpoint::ALL.map(|endpoint| format!("'{}'", endpoint.path())).join(", ");
        let message = format!("Invalid value: '{endpoint}'. Supported values are: {known}.");
        return Err(Refusal::invalid_value("endpoint", message));
    }
    let window = text(&body, "completion_window")?;
    if window != "24h" {
        let message = format!("Invalid value: '{window}'. Supported values are: '24h'.");
        return Err(Refusal::invalid_value("completion_window", message));
    }
    let metadata = metadata(body.get("metadata"))?;
    let output_expires_after = life(body.get("output_expires_after"))?;
    let mut world = engine.world();
    let now = engine.now();
    let serial = world.take_serial();
    let ordinal = world.batches_made() + 1;
    let millis =
        |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 1000);
    let batch = BatchRecord {
        serial,
        ordinal,
        id: engine.new_id("batch_", serial),
        input_file_id: input_file_id.to_owned(),
        endpoint: endpoint.to_owned(),
        metadata,
        output_expires_after,
        created_at: now,
        turnaround: millis(engine.options.turnaround),
        window: millis(engine.options.window),
        faults: engine.faults.on_batch(ordinal, |rule| world.fault_uses(rule)),
        verdict: None,
        cancel_requested_at: None,
        results: None,
    };
    engine
        .commit(&mut world, Entry::Batch { batch: Box::new(batch.clone()) })
        .map_err(|error| internal(&error))?;
    drop(world);
    // A kill right here leaves a batch that nobody was told of; the next start books it.
    engine.disk.book_created(&batch).map_err(|error| internal(&error))?;
    Ok(batch_view(&batch, now, engine.shown(&batch.id, |_| ())))
}

fn text<'a>(body: &'a Map<String, Value>, name: &str) -> Result<&'a str, Refusal> {
    match body.get(name) {
        None | Some(Value::Null) => Err(Refusal::missing(name)),
        Some(value) => value.as_str().ok_or_else(|| Refusal::invalid_type(name, "a string")),
    }
}

fn metadata(metadata: Option<&Value>) -> Result<Option<Map<String, Value>>, Refusal> {
    let pairs = match metadata {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_object().ok_or_else(|| Refusal::invalid_type("metadata", "an object"))?,
    };
    if pairs.len() > MAX_PAIRS {
        let message = format!("'metadata' has more than {MAX_PAIRS} pairs.");
        return Err(Refusal::new(400, message).param("metadata").code("object_above_max_properties"));
    }
    for (key, value) in pairs {
        let param = format!("metadata.{key}");
        let value = value.as_str().ok_or_else(|| Refusal::invalid_type(&param, "a string"))?;
        if key.chars().count() > MAX_KEY || value.chars().count() > MAX_VALUE {
            let message = format!("A key has at most {MAX_KEY} characters and a value {MAX_VALUE}.");
            return Err(Refusal::new(400, message).param(&param).code("string_above_max_length"));
        }
    }
    Ok(Some(pairs.clone()))
}

fn life(expires: Option<&Value>) -> Result<Option<i64>, Refusal> {
    let name = "output_expires_after";
    let members = match expires {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_object().ok_or_else(|| Refusal::invalid_type(name, "an object"))?,
    };
    if let Some(key) = members.keys().find(|key| !["anchor", "seconds"].contains(&key.as_str())) {
        return Err(Refusal::unknown(&format!("{name}.{key}")));
    }
    if members.get("anchor").and_then(Value::as_str) != Some("created_at") {
        let message = "The anchor has to be 'created_at'.";
        return Err(Refusal::invalid_value("output_expires_after.anchor", message));
    }
    let seconds = members.get("seconds").and_then(Value::as_i64);
    let message = "The seconds have to be a whole number from 3600 to 2592000.";
    let seconds = seconds.filter(|seconds| LIFE_SECONDS.contains(seconds));
    seconds.map(Some).ok_or_else(|| Refusal::invalid_value("output_expires_after.seconds", message))
}

/// `GET /v1/batches/{id}`, once what was due is done.
pub(super) fn show(engine: &Engine, id: &str) -> Result<Value, Refusal> {
    let now = engine.now();
    let world = engine.world();
    let batch = world.batch(id).ok_or_else(|| Refusal::no_batch(id))?;
    if is_gone(engine, batch) {
        return Err(Refusal::no_batch(id));
    }
    let has_ended = batch.status(now).is_terminal();
    let shown = engine.shown(id, |shown| {
        shown.reads += 1;
        shown.reads_after_end += u64::from(has_ended);
    });
    Ok(batch_view(batch, now, shown))
}

/// `GET /v1/batches`, newest first.
pub(super) async fn list(engine: &Arc<Engine>, query: &HashMap<String, String>) -> Result<Value, Refusal> {
    let limit = limit(query, &(1..=100), 20)?;
    let (ids, has_more) = {
        let world = engine.world();
        let after = match query.get("after") {
            None => u64::MAX,
            Some(id) => world.batch(id).ok_or_else(|| Refusal::no_batch(id).param("after"))?.serial,
        };
        let next = world.batches().rev().filter(|batch| batch.serial < after);
        let mut ids: Vec<String> = next
            .filter(|batch| is_listed(engine, batch))
            .take(limit + 1)
            .map(|batch| batch.id.clone())
            .collect();
        let has_more = ids.len() > limit;
        ids.truncate(limit);
        (ids, has_more)
    };
    let mut data = Vec::with_capacity(ids.len());
    for id in ids {
        engine.advance(&id).await.map_err(|error| internal(&error))?;
        data.extend(show(engine, &id).ok());
    }
    Ok(page(&data, has_more))
}

/// Whether a list shows the batch; one that is planned to be invisible comes later.
fn is_listed(engine: &Engine, batch: &BatchRecord) -> bool {
    let lists = batch
        .faults
        .iter()
        .find_map(|(_, fault)| if let BatchFault::Invisible { lists } = fault { Some(*lists) } else { None });
    lists.is_none_or(|lists| engine.shown(&batch.id, |shown| shown.left_out += 1).left_out > lists)
        && !is_gone(engine, batch)
}

/// Whether this read does not find the batch, because it is planned to be gone for a while.
fn is_gone(engine: &Engine, batch: &BatchRecord) -> bool {
    let gone = batch.faults.iter().find_map(|(_, fault)| {
        if let BatchFault::Gone { after, reads } = fault { Some((*after, *reads)) } else { None }
    });
    let Some((after, reads)) = gone else { return false };
    let shown = engine.shown(&batch.id, |_| ());
    shown.reads >= after && engine.shown(&batch.id, |shown| shown.missed += 1).missed <= reads
}

/// `POST /v1/batches/{id}/cancel`
pub(super) async fn cancel(engine: &Arc<Engine>, id: &str) -> Result<Value, Refusal> {
    match engine.cancel(id).await.map_err(|error| internal(&error))? {
        None => Err(Refusal::no_batch(id)),
        Some((CancelRule::Request | CancelRule::Already, _)) => show(engine, id),
        Some((CancelRule::Refuse, status)) => {
            let message = format!("Cannot cancel a batch with status '{}'.", status.label());
            Err(Refusal::new(409, message))
        }
    }
}
