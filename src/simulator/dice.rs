//! Chance that replays: every decision is a hash of a seed and of what is decided about.
//!
//! No random numbers are drawn here. The same words give the same decision on every machine and in every run.

use sha2::{Digest, Sha256};

/// A hash of `seed` and `words`; each word is hashed with its length, so that no two lists run together.
pub(super) fn hash(seed: u64, words: &[&str]) -> u64 {
    let digest = digest(seed, words);
    digest.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// A number in `0.0..1.0`.
pub(super) fn fraction(seed: u64, words: &[&str]) -> f64 {
    // 53 bits are what an f64 holds exactly.
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
    let numerator = (hash(seed, words) >> 11) as f64;
    numerator / 9_007_199_254_740_992.0
}

/// `length` hexadecimal digits, at most 64.
pub(super) fn hex(seed: u64, words: &[&str], length: usize) -> String {
    let mut text: String = digest(seed, words).iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(length);
    text
}

/// Puts `items` into an order that depends on `seed` and `words` alone.
pub(super) fn shuffle<T>(items: &mut [T], seed: u64, words: &[&str]) {
    let mut state = hash(seed, words);
    for index in (1..items.len()).rev() {
        state = mixed(state);
        let bound = u64::try_from(index + 1).unwrap_or(u64::MAX);
        let other = usize::try_from(state % bound).unwrap_or(0);
        items.swap(index, other);
    }
}

fn digest(seed: u64, words: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_be_bytes());
    for word in words {
        hasher.update(u64::try_from(word.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(word.as_bytes());
    }
    hasher.finalize().into()
}

/// One step of a counter that is mixed well enough to shuffle with.
fn mixed(state: u64) -> u64 {
    let mut word = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_decide_the_same_and_other_words_something_else() {
        assert_eq!(hash(1, &["a", "b"]), hash(1, &["a", "b"]));
        assert_ne!(hash(1, &["ab"]), hash(1, &["a", "b"]));
        assert_ne!(hash(1, &["a"]), hash(2, &["a"]));
        assert!((0.0..1.0).contains(&fraction(3, &["x"])));
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        shuffle(&mut items, 5, &["order"]);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
