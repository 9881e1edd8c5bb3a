//! Replays the corpus of the fuzz targets, and thousands of variants of it, where no fuzzer is at hand (T10).
//!
//! `NIGHTSHIFT_FUZZ_SEED` repeats a run; a failure names the file that it began with and keeps the bytes.

mod targets;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use targets::{Check, TARGETS};

/// What breaks readers, put into seeds at random places.
const PIECES: [&[u8]; 30] = [
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    "\u{2028}".as_bytes(),
    b"\\ud800",
    b"\\u0000",
    b"\xff\xfe",
    b"\xc3",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[[[[[[[[",
    b",",
    b":",
    b";",
    b"null",
    b"true",
    b"1e999",
    b"-0",
    b"18446744073709551616",
    b"99999999999999999999999999999999999999",
    b"0.1",
    b"\"custom_id\":",
    b"\"id\":\"\"",
    b"%+f",
    b"=",
    b"&",
];

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % end.max(1)
    }
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 3, "{} has nearly nothing in it", folder.display());
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn vary(seed: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + dice.below(16)).min(bytes.len());
        match dice.below(7) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, PIECES[dice.below(PIECES.len())].iter().copied())),
            3 => {
                let copy = bytes[at..end].repeat(1 + dice.below(20));
                drop(bytes.splice(at..at, copy));
            }
            4 => {
                let cut = dice.below(other.len() + 1);
                drop(bytes.splice(at.., other[cut..].iter().copied()));
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            _ => bytes.push(u8::try_from(dice.below(256)).unwrap()),
        }
    }
    bytes
}

fn hold(target: &str, check: Check, from: &Path, bytes: &[u8]) {
    if std::panic::catch_unwind(AssertUnwindSafe(|| check(bytes))).is_err() {
        let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}"));
        std::fs::write(&kept, bytes).unwrap();
        panic!("{target} does not stand what came of {}; kept as {}", from.display(), kept.display());
    }
}

#[test]
fn every_reader_stands_its_corpus_and_what_is_like_it() {
    let variants = if std::env::var_os("NIGHTSHIFT_TEST_LONG").is_some() { 100_000 } else { 1_500 };
    let seed = match std::env::var("NIGHTSHIFT_FUZZ_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from(std::process::id()) | 1 << 40,
    };
    println!("seed {seed}");
    for (target, check) in TARGETS {
        let files = corpus(target);
        for (path, bytes) in &files {
            hold(target, check, path, bytes);
        }
        let mut dice = Dice(seed);
        for _ in 0..variants {
            let (path, bytes) = &files[dice.below(files.len())];
            let (_, other) = &files[dice.below(files.len())];
            hold(target, check, path, &vary(bytes, other, &mut dice));
        }
    }
}

#[test]
fn the_corpus_is_small_and_each_of_its_folders_has_a_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut bytes = 0;
    for entry in std::fs::read_dir(root.join("tests/corpus")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(TARGETS.iter().any(|(target, _)| *target == name), "{name} has no target");
        bytes += corpus(&name).iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    }
    assert!(bytes < 300_000, "{bytes} bytes");
    for (target, _) in TARGETS {
        let binary = root.join(format!("fuzz/fuzz_targets/{target}.rs"));
        assert!(binary.exists(), "{} is missing", binary.display());
    }
}

#[test]
fn the_corpus_has_records_as_they_are_written_now() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/records.hex");
    let golden = std::fs::read_to_string(golden).unwrap();
    let corpus = corpus("record");
    for (kind, name) in (0_u8..).zip(["request", "batch", "session"]) {
        let hex = golden.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        let seed = corpus.iter().find(|(path, _)| path.ends_with(name)).map(|(_, bytes)| bytes).unwrap();
        let seed: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            seed,
            format!("{kind:02x}{}", hex.trim()),
            "write tests/corpus/record/{name} anew from the golden file"
        );
    }
}
