//! Each check of the scan, made to fire by a record that a bug could write.

use super::super::tests::{NOW, batch_id, full_store, new_request, request_id, tamper};
use super::*;
use crate::domain::batch::Closing;
use crate::domain::id::{KeyId, ProviderBatchId};
use crate::domain::step::{Change, Step};
use crate::store::anomalies::Anomaly;
use crate::store::{NewRequest, Role, requests};

const SESSION: SessionId = SessionId::from_bytes([4; 16]);

/// The full store with a key, and with a request for its session.
async fn fuller_store() -> Store {
    let store = full_store().await;
    let key = StoredToken::new(KeyId::from_bytes([3; 16]), [5; 32], Role::Viewer, "a key".to_owned(), NOW);
    store.put_token(key, false).await.unwrap();
    let source = Source::Session { session: SESSION, version: 1, prompt: 1 };
    let analysis = NewRequest { source, ..new_request(6) };
    assert_eq!(store.request_analyses(vec![(SESSION, 1, analysis)], NOW).await.unwrap(), 1);
    assert_eq!(store.verify().await.unwrap().violations, []);
    store
}

/// Puts an entry, or removes it.
fn put(tree: Tree, key: &[u8], value: Option<&[u8]>) -> Tampering {
    let (key, value) = (key.to_vec(), value.map(<[u8]>::to_vec));
    Box::new(move |_| (tree, key.clone(), value.clone()))
}

/// Changes the one record under a key, or the first of its tree.
fn edit<T>(tree: Tree, key: &[u8], change: impl Fn(&mut T) + 'static) -> Tampering
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let key = key.to_vec();
    Box::new(move |store| {
        let (key, value) = store.reader.engine.scan(tree, &key, None, 1).unwrap().pop().unwrap();
        let mut record: T = codec::decode(&value).unwrap();
        change(&mut record);
        (tree, key, Some(codec::encode(&record).unwrap()))
    })
}

type Tampering = Box<dyn Fn(&Store) -> (Tree, Vec<u8>, Option<Vec<u8>>)>;

#[tokio::test]
async fn each_check_names_what_does_not_fit() {
    let (batch, request) = (batch_id(), request_id(2));
    let batch_key = batch.as_bytes();
    let member = |number| keys::member(batch, request_id(number));
    let asked = keys::session_request(SESSION, request_id(6));
    let unknown = keys::session_request(SESSION, request_id(99));
    let elsewhere = keys::session_request(SessionId::from_bytes([8; 16]), request_id(6));
    let token = [5; 32];
    let token_id =
        |store: &Store| store.reader.engine.scan(Tree::TokenIds, &[], None, 1).unwrap().pop().unwrap().0;
    let company = "acme".parse().unwrap();
    let gone = Gone { company, session: None, model: "m".to_owned(), at: NOW, cost: None };
    let gone = codec::encode(&gone).unwrap();
    let erasure = codec::encode(&ErasureId::from_bytes([7; 16])).unwrap();
    let tombstone = Key::new().text("acme").byte(1).done();
    let provider = |id: &str| Key::new().text(id).done();
    let own = codec::encode(&batch).unwrap();
    let nobody = codec::encode(&BatchId::from_bytes([8; 16])).unwrap();
    let anomaly = codec::encode(&Anomaly { at: NOW, what: "why".to_owned() }).unwrap();
    let completed = [Fate::Completed as u8];
    let cases: Vec<(u8, &str, Tampering)> = vec![
        (
            4,
            "closed with 1 outstanding",
            edit(Tree::Batches, batch_key, |batch: &mut Batch| {
                batch.state = BatchState::Cleaning { closing: Closing::Processed };
            }),
        ),
        (
            1,
            "a room says 9 tokens reserved and 0 enqueued, its batches hold 2 and 0",
            edit(Tree::Rooms, &[], |room: &mut Room| room.reserved = 9),
        ),
        (
            1,
            "a room of which 2 tokens are held is missing",
            Box::new(|store| {
                let key = store.reader.engine.scan(Tree::Rooms, &[], None, 1).unwrap().pop().unwrap().0;
                (Tree::Rooms, key, None)
            }),
        ),
        (1, "is not listed in token_ids", Box::new(move |store| (Tree::TokenIds, token_id(store), None))),
        (
            1,
            "is not listed in token_ids",
            Box::new(move |store| (Tree::TokenIds, token_id(store), Some(vec![6; 32]))),
        ),
        (1, "a key is listed and not there", put(Tree::Tokens, &token, None)),
        (1, "is not listed in session_requests", put(Tree::SessionRequests, &asked, None)),
        (1, "a session has a request that is not there", put(Tree::SessionRequests, &unknown, Some(b""))),
        (
            1,
            "session_requests has 2 entries, and there are 1 requests of sessions",
            put(Tree::SessionRequests, &elsewhere, Some(b"")),
        ),
        (
            1,
            "was removed for its age and has contents",
            edit(Tree::Sessions, SESSION.as_bytes(), |session: &mut Session| {
                session.state = SessionState::Expired;
            }),
        ),
        (1, "a request is there and is removed", put(Tree::Gone, request_id(5).as_bytes(), Some(&gone))),
        (1, "keeps something out and is not there", put(Tree::Tombstones, &tombstone, Some(&erasure))),
        (1, "an erasure is under way and is not there", put(Tree::Erasing, &[7; 16], Some(b""))),
        (1, "an erasure is under way and is not there", put(Tree::Erasing, &[7; 3], Some(b""))),
        (1, "a group says 7 requests", edit(Tree::Groups, &[], |stat: &mut GroupStat| stat.requests = 7)),
        (
            1,
            "a group says 3 requests of 9 bytes",
            edit(Tree::Groups, &[], |stat: &mut GroupStat| stat.bytes = 9),
        ),
        (
            4,
            "ends are counted of a batch that is not there",
            put(Tree::Endings, &[7; 16], Some(&1_u64.to_be_bytes())),
        ),
        (
            4,
            "something was removed of a batch that is not there",
            put(Tree::AgedBatches, &[7; 40], Some(b"")),
        ),
        (4, "aged_of does not say so", put(Tree::AgedBatches, batch.as_bytes(), Some(b""))),
        (4, "aged_batches does not say so", put(Tree::AgedOf, batch.as_bytes(), Some(b""))),
        (4, "a file is to be deleted of a batch that is not there", put(Tree::Deletions, &[7; 9], Some(b""))),
        (
            3,
            "a shadow is listed of a batch, and is none of it",
            put(Tree::Shadows, &keys::shadow(BatchId::from_bytes([8; 16]), batch), Some(b"")),
        ),
        (
            3,
            "and not listed as one",
            edit(Tree::Batches, batch_key, |batch: &mut Batch| {
                batch.origin = Origin::Shadow { of: BatchId::from_bytes([8; 16]) };
            }),
        ),
        (5, "was completed by batch", put(Tree::Members, &member(2), Some(&completed))),
        (5, "and is not there", put(Tree::Members, &member(99), Some(&completed))),
        (
            3,
            "batch_1 of the provider belongs to batch 08080808",
            put(Tree::ProviderBatches, &provider("batch_1"), Some(&nobody)),
        ),
        (3, "which does not name it", put(Tree::ProviderBatches, &provider("batch_1"), Some(&own))),
        (3, "a key of 2 bytes names a batch", put(Tree::ProviderBatches, &[9, 9], Some(&own))),
        (
            3,
            "which is not listed as its own",
            edit(Tree::Batches, batch_key, |batch: &mut Batch| {
                batch.provider_batch = Some(ProviderBatchId::new("batch_1"));
            }),
        ),
        (
            4,
            "has no members and counts",
            Box::new(move |store| {
                let mut other = store.reader().batch(batch).unwrap().unwrap();
                other.id = BatchId::from_bytes([8; 16]);
                other.counts = Counts { completed: 1, ..Counts::default() };
                (Tree::Batches, vec![8; 16], Some(codec::encode(&other).unwrap()))
            }),
        ),
        (
            5,
            "is over and 7 are still set aside for it",
            edit(Tree::Batches, batch_key, |batch: &mut Batch| {
                batch.state = BatchState::Closed { closing: Closing::Processed };
                batch.purse.reserved = 7;
            }),
        ),
        (4, "is said not to close, and is not live", put(Tree::Anomalies, &[8; 16], Some(&anomaly))),
        (4, "a key of 2 bytes says", put(Tree::Anomalies, &[9, 9], Some(&anomaly))),
        (
            5,
            "is complete without a result",
            put(Tree::Results, &keys::part(request_id(1).as_bytes(), 0), None),
        ),
        (
            2,
            "disagree on whether it is outstanding",
            put(Tree::Outstanding, &keys::member(batch, request), None),
        ),
    ];
    let mut silent = Vec::new();
    for (number, (invariant, says, change)) in cases.into_iter().enumerate() {
        let store = fuller_store().await;
        let (tree, key, value) = change(&store);
        tamper(&store, tree, key, value).await;
        let found = store.verify().await.unwrap().violations;
        if !found.iter().any(|found| found.invariant == invariant && found.what.contains(says)) {
            silent.push(format!("case {number}, {tree:?}: {invariant}, {says:?} is not in {found:?}"));
        }
    }
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}

#[tokio::test]
async fn a_batch_that_was_created_more_than_once_has_each_of_its_ids_and_no_other() {
    let store = full_store().await;
    for named in ["batch_1", "batch_2"] {
        let batch = store.reader().batch(batch_id()).unwrap().unwrap();
        let step = Step {
            next: batch.state.clone(),
            changes: vec![Change::Adopt(ProviderBatchId::new(named))],
            effects: Vec::new(),
            story: Some(format!("found at the provider as {named}, adopted")),
        };
        store.commit_step(batch.id, batch.revision, step, NOW).await.unwrap();
        assert_eq!(store.verify().await.unwrap().violations, []);
    }
    let own = codec::encode(&batch_id()).unwrap();
    tamper(&store, Tree::ProviderBatches, Key::new().text("batch_").done(), Some(own)).await;
    let found = store.verify().await.unwrap().violations;
    assert!(found.iter().any(|found| found.what.contains("does not name it")), "{found:?}");
}

#[tokio::test]
async fn what_a_batch_completed_may_be_gone() {
    let store = full_store().await;
    let id = request_id(1);
    let remove = move |tx: &mut tx::Tx<'_>| {
        let request = requests::load(tx, id)?;
        requests::remove(tx, request, NOW)
    };
    store.committer.commit(1, remove).await.unwrap();
    assert_eq!(store.verify().await.unwrap().violations, []);
}

#[tokio::test]
async fn what_is_wrong_beyond_what_is_kept_is_counted() {
    const MORE: usize = 5;
    let store = full_store().await;
    let strays = |tx: &mut tx::Tx<'_>| {
        for number in 0..Report::VIOLATIONS_MAX + MORE {
            tx.put(
                Tree::TokenIds,
                Key::new().text("acme").u32(u32::try_from(number).unwrap()).done(),
                vec![9; 32],
            );
        }
        Ok(())
    };
    store.committer.commit(1, strays).await.unwrap();
    let report = store.check().await.unwrap();
    assert_eq!((report.violations.len(), report.more), (Report::VIOLATIONS_MAX, MORE as u64));
    assert_eq!(report.found(), (Report::VIOLATIONS_MAX + MORE) as u64);
    assert!(store.doubt().unwrap().ends_with("and 1004 more"), "{:?}", store.doubt());
    assert!(matches!(store.accept(&report, NOW).await, Err(StoreError::Broken(_))));
}
