//! How often members of a batch ended without a result, by what was said of it, and why lines of its files could not be
//! read: so that it is seen at the batch, and not only at each request.

use std::collections::BTreeMap;

use super::keys::{Key, Tree};
use super::tx::{self, Tx};
use super::{StoreError, StoreReader};
use crate::domain::id::BatchId;

/// Different words that are counted for a batch; what else is said counts as [`OTHERS`].
const WORDS_MAX: usize = 50;
const OTHERS: &str = "others";
/// More of a word is cut: the provider may say what it likes.
const WORD_CHARS_MAX: usize = 64;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The code of a failure with which a member ended or went back.
    Failure = 1,
    /// Why a line cannot be read.
    Unreadable = 2,
    /// The same of a line that does not even say whose it is.
    Nameless = 3,
}

/// Counts one more.
pub(super) fn note(tx: &mut Tx<'_>, batch: BatchId, kind: Kind, word: &str) -> Result<(), StoreError> {
    let of_kind = Key::new().bytes(batch.as_bytes()).byte(kind as u8);
    let key = |word: &str| Key::new().bytes(batch.as_bytes()).byte(kind as u8).text(word).done();
    let mut place = key(&word.chars().take(WORD_CHARS_MAX).collect::<String>());
    if !tx.has(Tree::Endings, &place)?
        && tx.scan_prefix(Tree::Endings, &of_kind.done(), WORDS_MAX)?.len() >= WORDS_MAX
    {
        place = key(OTHERS);
    }
    let before = tx::number(tx.get(Tree::Endings, &place)?.as_deref())?;
    tx.put(Tree::Endings, place, before.saturating_add(1).to_be_bytes().to_vec());
    Ok(())
}

/// Whether a line cannot be read that may be anybody's.
pub(super) fn has_nameless(tx: &Tx<'_>, batch: BatchId) -> Result<bool, StoreError> {
    let prefix = Key::new().bytes(batch.as_bytes()).byte(Kind::Nameless as u8).done();
    Ok(!tx.scan_prefix(Tree::Endings, &prefix, 1)?.is_empty())
}

/// How members of a batch ended without a result, and why lines cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endings {
    /// By the code of the failure, also of those that went back and were tried again.
    pub failures: BTreeMap<String, u64>,
    /// By what was wrong.
    pub unreadable: BTreeMap<String, u64>,
}

impl StoreReader {
    /// What is counted of a batch.
    pub fn endings(&self, batch: BatchId) -> Result<Endings, StoreError> {
        let mut endings = Endings::default();
        for kind in [Kind::Failure, Kind::Unreadable] {
            let prefix = Key::new().bytes(batch.as_bytes()).byte(kind as u8).done();
            let end = super::keys::after_prefix(&prefix);
            let entries = self.engine.scan(Tree::Endings, &prefix, end.as_deref(), WORDS_MAX + 1)?;
            for (key, value) in entries {
                let word = key.get(prefix.len()..).and_then(super::keys::text_at_start);
                let Some((word, _)) = word else { continue };
                let counts =
                    if kind == Kind::Failure { &mut endings.failures } else { &mut endings.unreadable };
                counts.insert(word, tx::number(Some(&value))?);
            }
        }
        Ok(endings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn words_are_counted_apart_and_no_more_of_them_than_there_may_be() {
        let store = Store::in_memory(uuid::Uuid::nil()).await.unwrap();
        let (one, other) = (BatchId::from_bytes([1; 16]), BatchId::from_bytes([2; 16]));
        let noted = store.committer.commit(1, move |tx| {
            for _ in 0..3 {
                note(tx, one, Kind::Failure, "length")?;
            }
            note(tx, one, Kind::Failure, &"x".repeat(999))?;
            note(tx, one, Kind::Unreadable, "it is too long")?;
            for number in 0..100 {
                note(tx, other, Kind::Failure, &format!("code_{number}"))?;
            }
            note(tx, other, Kind::Failure, "code_0")
        });
        noted.await.unwrap();
        let endings = store.reader().endings(one).unwrap();
        assert_eq!(endings.failures, [("length".to_owned(), 3), ("x".repeat(64), 1)].into());
        assert_eq!(endings.unreadable, [("it is too long".to_owned(), 1)].into());
        let many = store.reader().endings(other).unwrap().failures;
        assert_eq!((many.len(), many["others"], many["code_0"]), (WORDS_MAX + 1, 50, 2));
    }
}
