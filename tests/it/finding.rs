//! What a batch in the provider's list is taken for.

use std::time::Duration;

use nightshift::actors::{Finding, Intents, Reading, Turn, judge};
use nightshift::domain::id::Timestamp;
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

/// Reads pages of entries that were made so many seconds after the time that is wanted; how many were read, and whether that
/// is the whole list.
fn read(pages: &[&[i64]]) -> (usize, Option<bool>) {
    let mut reading = Reading::since(Timestamp::from_secs(10_000));
    for (number, page) in pages.iter().enumerate() {
        let ids: Vec<_> = page.iter().map(|at| at.to_string()).collect();
        let at = page.iter().map(|at| Some(Timestamp::from_secs(10_000 + at)));
        if let Turn::Ended { whole } = reading.turn(ids.iter().zip(at), number + 1 < pages.len()) {
            return (number + 1, Some(whole));
        }
    }
    (pages.len(), None)
}

#[test]
fn an_old_entry_ends_the_reading_of_a_list_only_where_it_is_newest_first() {
    assert_eq!(read(&[&[900, 800], &[700, -100], &[-200, -300]]), (2, Some(true)));
    assert_eq!(read(&[&[900, 800], &[700, -1], &[-2, -3]]), (3, Some(true)), "clocks are not that exact");
    assert_eq!(read(&[&[-900, -800], &[-700, 100], &[200, 300]]), (3, Some(true)), "oldest first");
    assert_eq!(read(&[&[900, -800, 950, -900], &[100, 50]]), (2, Some(true)), "in no order");
    assert_eq!(read(&[&[900, 930, -100], &[-200, 50]]), (1, Some(true)), "in order, nearly");
    assert_eq!(read(&[&[900, 800], &[900, 800], &[700]]), (2, Some(false)), "in a circle");
    assert_eq!(read(&[&[900], &[], &[700]]), (2, Some(false)), "an empty page in its midst");
    assert_eq!(read(&[&[]]), (1, Some(true)));
}
