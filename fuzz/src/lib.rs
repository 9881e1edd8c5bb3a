//! The fuzz targets share what must hold with the replay of the corpus in `tests/it/fuzz_corpus.rs`.

#[path = "../../tests/it/fuzz_corpus/targets.rs"]
pub mod targets;
