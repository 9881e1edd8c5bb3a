//! One change to the store while it is being made: reads see what it and those before it in the group wrote.
//!
//! There is one writer, so nothing can come between a read and the write that rests on it.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use super::codec;
use super::engine::{Engine, Entry, Writes};
use super::keys::{self, Tree};

pub struct Tx<'a> {
    engine: &'a Engine,
    /// What earlier operations of the group wrote.
    group: &'a Writes,
    /// What this operation wrote.
    own: Writes,
    anchored: bool,
    /// The length of a value that is longer than it may be.
    oversize: Option<usize>,
}

impl<'a> Tx<'a> {
    pub fn new(engine: &'a Engine, group: &'a Writes) -> Self {
        Self { engine, group, own: Writes::new(), anchored: false, oversize: None }
    }

    /// What this operation wrote, and whether it is to be anchored.
    pub fn into_writes(self) -> (Writes, bool) {
        (self.own, self.anchored)
    }

    /// Whether every value is as short as it must be.
    pub const fn check(&self) -> Result<(), StoreError> {
        match self.oversize {
            Some(bytes) => Err(StoreError::TooLong { bytes, max: codec::VALUE_BYTES_MAX }),
            None => Ok(()),
        }
    }

    /// Has the anchor moved behind this operation before it is acknowledged.
    pub fn anchor(&mut self) {
        self.anchored = true;
    }

    pub fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        for layer in [&self.own, self.group] {
            if let Some(value) = layer.get(&tree).and_then(|changes| changes.get(key)) {
                return Ok(value.clone());
            }
        }
        self.engine.get(tree, key)
    }

    pub fn has(&self, tree: Tree, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.get(tree, key)?.is_some())
    }

    /// Writes a value; one above [`codec::VALUE_BYTES_MAX`] fails the whole operation at its end.
    pub fn put(&mut self, tree: Tree, key: Vec<u8>, value: Vec<u8>) {
        if value.len() > codec::VALUE_BYTES_MAX {
            self.oversize = Some(value.len());
        }
        self.own.entry(tree).or_default().insert(key, Some(value));
    }

    pub fn remove(&mut self, tree: Tree, key: Vec<u8>) {
        self.own.entry(tree).or_default().insert(key, None);
    }

    /// Removes all entries that begin with `prefix`: the parts of one text.
    pub fn remove_prefix(&mut self, tree: Tree, prefix: &[u8]) -> Result<(), StoreError> {
        for (key, _) in self.scan_prefix(tree, prefix, usize::MAX)? {
            self.remove(tree, key);
        }
        Ok(())
    }

    pub fn read<T: DeserializeOwned>(&self, tree: Tree, key: &[u8]) -> Result<Option<T>, StoreError> {
        self.get(tree, key)?.map(|bytes| codec::decode(&bytes)).transpose()
    }

    pub fn write<T: Serialize>(&mut self, tree: Tree, key: Vec<u8>, record: &T) -> Result<(), StoreError> {
        let bytes = codec::encode(record)?;
        self.put(tree, key, bytes);
        Ok(())
    }

    /// At most `limit` entries that begin with `prefix`, in order.
    pub fn scan_prefix(&self, tree: Tree, prefix: &[u8], limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.scan(tree, prefix, keys::after_prefix(prefix).as_deref(), limit)
    }

    /// At most `limit` entries from `from` on (included) up to `end` (excluded), in order.
    pub fn scan(
        &self,
        tree: Tree,
        from: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        use std::ops::Bound;
        // The changes on top of the engine in this range: what is removed may hide as many entries.
        let mut changes = std::collections::BTreeMap::new();
        for layer in [self.group, &self.own] {
            if let Some(layer) = layer.get(&tree) {
                let upper = match end {
                    Some(end) if end <= from => continue,
                    Some(end) => Bound::Excluded(end.to_vec()),
                    None => Bound::Unbounded,
                };
                for (key, value) in layer.range((Bound::Included(from.to_vec()), upper)) {
                    changes.insert(key, value);
                }
            }
        }
        let stored = self.engine.scan(tree, from, end, limit.saturating_add(changes.len()))?;
        let mut merged: std::collections::BTreeMap<Vec<u8>, Vec<u8>> = stored.into_iter().collect();
        for (key, value) in changes {
            match value {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().take(limit).collect())
    }

    /// Stores a long text in parts under `prefix`, packed. Texts are never replaced, only written once.
    pub fn put_text(&mut self, tree: Tree, prefix: &[u8], text: &[u8]) -> Result<(), StoreError> {
        let packed = codec::pack(text)?;
        for (number, piece) in packed.chunks(codec::PART_BYTES).enumerate() {
            let number = u32::try_from(number).map_err(|err| StoreError::Codec(err.to_string()))?;
            self.put(tree, keys::part(prefix, number), piece.to_vec());
        }
        Ok(())
    }

    /// Adds to a counter, which may not fall below zero.
    pub fn count(&mut self, key: Vec<u8>, change: i64) -> Result<(), StoreError> {
        let before = number(self.get(Tree::Counters, &key)?.as_deref())?;
        let after = before
            .checked_add_signed(change)
            .ok_or_else(|| StoreError::Broken("a counter would fall below zero".to_owned()))?;
        self.put(Tree::Counters, key, after.to_be_bytes().to_vec());
        Ok(())
    }
}

/// A counter's value; what is not there is zero.
pub fn number(bytes: Option<&[u8]>) -> Result<u64, StoreError> {
    match bytes {
        None => Ok(0),
        Some(bytes) => bytes
            .try_into()
            .map(u64::from_be_bytes)
            .map_err(|_| StoreError::Codec("a counter is not eight bytes".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Digest;

    #[test]
    fn a_scan_sees_the_engine_the_group_and_the_operation_in_one_order() {
        let engine = Engine::memory();
        let put = |key: &[u8], value: Option<&[u8]>| {
            let mut writes = Writes::new();
            writes.entry(Tree::Meta).or_default().insert(key.to_vec(), value.map(<[u8]>::to_vec));
            writes
        };
        for key in [b"a1", b"a2", b"a3", b"b1"] {
            engine.apply(&put(key, Some(b"engine"))).unwrap();
        }
        let group = put(b"a2", None);
        let mut tx = Tx::new(&engine, &group);
        tx.put(Tree::Meta, b"a0".to_vec(), b"own".to_vec());
        tx.put(Tree::Meta, b"a3".to_vec(), b"own".to_vec());
        let seen = |limit| -> Vec<(String, String)> {
            let text = |bytes| String::from_utf8(bytes).unwrap();
            let entries = tx.scan_prefix(Tree::Meta, b"a", limit).unwrap();
            entries.into_iter().map(|(key, value)| (text(key), text(value))).collect()
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(seen(9), [pair("a0", "own"), pair("a1", "engine"), pair("a3", "own")]);
        assert_eq!(seen(2), [pair("a0", "own"), pair("a1", "engine")]);
        assert_eq!(tx.get(Tree::Meta, b"a2").unwrap(), None);
    }

    #[test]
    fn a_long_text_is_stored_in_parts() {
        let engine = Engine::memory();
        let group = Writes::new();
        let mut tx = Tx::new(&engine, &group);
        // Not compressible, so that it really takes several parts.
        let long: Vec<u8> = (0..8000u32).flat_map(|n| sha2::Sha256::digest(n.to_be_bytes())).collect();
        tx.put_text(Tree::Bodies, b"id", &long).unwrap();
        assert!(tx.scan_prefix(Tree::Bodies, b"id", 99).unwrap().len() > 1);
        let parts: Vec<u8> =
            tx.scan_prefix(Tree::Bodies, b"id", 99).unwrap().into_iter().flat_map(|(_, part)| part).collect();
        assert_eq!(codec::unpack(&parts).unwrap(), long);
    }
}
