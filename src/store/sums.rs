//! What each tree must contain, as a count and a sum over its entries, stored with each group.
//!
//! A checksum at every value does not tell that a value is gone, or that an older one came back: sled opens such
//! files without a word. The sums do, for every tree, and cost next to nothing: sled looks the old value up anyway,
//! and each value carries its checksum. `meta` itself is left out: the head, the anchor and the sums live there.

use super::keys::Tree;
use super::{StoreError, codec};

/// Where the sums are, in `meta`.
pub const KEY: &[u8] = b"sums";

/// The entries of one tree: how many, and a sum that does not depend on their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    pub entries: u64,
    mixed: u64,
}

impl Sum {
    /// One entry more.
    pub fn add(&mut self, print: Print) {
        self.entries = self.entries.wrapping_add(1);
        self.mixed = self.mixed.wrapping_add(print.0);
    }

    /// One entry less.
    pub fn remove(&mut self, print: Print) {
        self.entries = self.entries.wrapping_sub(1);
        self.mixed = self.mixed.wrapping_sub(print.0);
    }

    /// What has to be added to `self` to make it `other`.
    pub const fn until(self, other: Self) -> Self {
        Self {
            entries: other.entries.wrapping_sub(self.entries),
            mixed: other.mixed.wrapping_sub(self.mixed),
        }
    }

    const fn plus(self, other: Self) -> Self {
        Self {
            entries: self.entries.wrapping_add(other.entries),
            mixed: self.mixed.wrapping_add(other.mixed),
        }
    }
}

/// What stands for one entry in a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Print(u64);

impl Print {
    /// Of the checksum over tree, key and value, and the value's length.
    pub const fn new(checksum: u32, length: usize) -> Self {
        // The finish of splitmix64: without it sums of checksums, which are linear, would cancel out.
        let mut x = ((checksum as u64) << 32) ^ (length as u64);
        x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(x ^ (x >> 31))
    }
}

/// The sums of all trees but `meta`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums(Vec<Sum>);

impl Default for Sums {
    fn default() -> Self {
        Self(vec![Sum::default(); Tree::ALL.len()])
    }
}

impl Sums {
    /// The sum of one tree.
    pub fn of(&self, tree: Tree) -> Sum {
        self.0[usize::from(tree as u8)]
    }

    /// To change the sum of one tree.
    pub fn of_mut(&mut self, tree: Tree) -> &mut Sum {
        &mut self.0[usize::from(tree as u8)]
    }

    /// Makes the sums agree with what was found.
    pub fn add(&mut self, differences: &[(Tree, Sum)]) {
        for (tree, difference) in differences {
            let sum = self.of_mut(*tree);
            *sum = sum.plus(*difference);
        }
    }

    /// As stored with the group of this revision. Trees go by their names: their numbers may change.
    pub fn encode(&self, revision: u64) -> Result<Vec<u8>, StoreError> {
        let named: Vec<(&str, u64, u64)> = Tree::ALL
            .iter()
            .filter(|tree| **tree != Tree::Meta)
            .map(|tree| (tree.name(), self.of(*tree).entries, self.of(*tree).mixed))
            .collect();
        codec::encode(&(revision, named))
    }

    /// The sums of a store whose `meta` is this, and the revision that they belong to.
    pub fn read(
        meta: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<(u64, Self), StoreError> {
        meta(KEY)?.map_or_else(|| Ok((0, Self::default())), |bytes| Self::decode(&bytes))
    }

    /// The sums and the revision that they belong to.
    pub fn decode(bytes: &[u8]) -> Result<(u64, Self), StoreError> {
        let (revision, named): (u64, Vec<(String, u64, u64)>) = codec::decode(bytes)?;
        let mut sums = Self::default();
        for tree in Tree::ALL {
            if let Some((_, entries, mixed)) = named.iter().find(|(name, _, _)| name == tree.name()) {
                *sums.of_mut(*tree) = Sum { entries: *entries, mixed: *mixed };
            }
        }
        Ok((revision, sums))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_does_not_depend_on_the_order_and_notices_a_loss_and_an_exchange() {
        let [a, b, c] = [Print::new(1, 10), Print::new(2, 10), Print::new(3, 10)];
        let of = |prints: &[Print]| {
            let mut sum = Sum::default();
            prints.iter().for_each(|print| sum.add(*print));
            sum
        };
        assert_eq!(of(&[a, b, c]), of(&[c, a, b]));
        assert_ne!(of(&[a, b]), of(&[a, c]));
        assert_ne!(of(&[a, b, c]), of(&[a, b]));
        let mut sum = of(&[a, b, c]);
        sum.remove(b);
        assert_eq!(sum, of(&[a, c]));
    }

    #[test]
    fn sums_read_back_as_they_were_stored() {
        let mut sums = Sums::default();
        sums.of_mut(Tree::Bodies).add(Print::new(7, 7));
        assert_eq!(Sums::decode(&sums.encode(9).unwrap()).unwrap(), (9, sums));
    }
}
