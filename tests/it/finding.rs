//! What a batch in the provider's list is taken for.

use std::time::Duration;

use nightshift::actors::{Finding, Intents, judge};
use nightshift::provider::wire::BatchObject;
use serde_json::json;

use crate::harness::{Driven, Nightshift, with_actors};

/// A batch with one request that the provider has.
async fn sent(nightshift: &Nightshift) -> Driven<'_> {
    nightshift.request(1, "demo", |_| ()).await;
    let mut batch = nightshift.open_batch(1, "demo", 1).await;
    batch.send().await;
    batch
}

#[test]
fn where_metadata_is_dropped_a_second_batch_of_one_call_is_a_shadow() {
    with_actors(async |nightshift| {
        let batch = sent(&nightshift).await;
        let (store, now) = (nightshift.store(), nightshift.now());
        let reader = store.reader();
        let listed = |id: &str, file: &str| {
            let object = json!({"id": id, "object": "batch", "status": "in_progress", "input_file_id": file});
            let object = BatchObject::from_json(object.to_string().as_bytes()).unwrap();
            let noted = reader.intents_since(now.minus(Duration::from_secs(3600)), 10).unwrap();
            judge(&reader, store.instance(), now, &object, &Intents::new(noted)).unwrap()
        };
        let of = batch.batch.id;
        let twin = listed("batch_twin", "file-input-1");
        assert!(
            matches!(&twin, Finding::Shadow { of: found, .. } if *found == of),
            "another came of its call"
        );
        let own = batch.batch.provider_batch.clone().unwrap();
        assert!(matches!(listed(own.as_str(), "file-input-1"), Finding::Nothing), "it is known");
        assert!(
            matches!(listed("batch_other", "file-input-2"), Finding::Nothing),
            "nobody here sent that file"
        );
    });
}

#[test]
fn a_call_that_is_noted_nowhere_came_after_a_backup_however_long_ago_it_was() {
    with_actors(async |nightshift| {
        let batch = sent(&nightshift).await;
        let (store, now) = (nightshift.store(), nightshift.now());
        let reader = store.reader();
        let of = batch.batch.id;
        let noted = || Intents::new(reader.intents_since(now.minus(Duration::from_secs(3600)), 10).unwrap());
        let listed = |nonce: &str, days: u64, noted: Intents| {
            let at = now.minus(Duration::from_secs(days * 24 * 3600)).as_millis() / 1000;
            let metadata = json!({"ns_instance": store.instance(), "ns_batch": of, "ns_nonce": nonce});
            let object = json!({"id": "batch_late", "object": "batch", "status": "in_progress", "created_at": at,
                "input_file_id": "file-other", "metadata": metadata});
            let object = BatchObject::from_json(object.to_string().as_bytes()).unwrap();
            judge(&reader, store.instance(), now, &object, &noted).unwrap()
        };
        // The batch here was turned away after the backup, and ran with another intent.
        let other = "00000000-0000-4000-8000-0000000000aa";
        for days in [0, 5] {
            let found = listed(other, days, noted());
            assert!(
                matches!(&found, Finding::Unknown { unsent: Some(id), .. } if *id == of),
                "{days}: {found:?}"
            );
        }
        // Its own call had its effect twice; the batch stands by it also where the list of intents has forgotten it.
        let own = batch.batch.state.intent().unwrap().nonce.to_string();
        for noted in [noted(), Intents::new(Vec::new())] {
            let found = listed(&own, 0, noted);
            assert!(matches!(&found, Finding::Shadow { of: id, .. } if *id == of), "{found:?}");
        }
    });
}
