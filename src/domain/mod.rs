//! The nouns and the pure rules. No I/O, no clock, no randomness: what is needed of them comes in as a value.

pub mod analysis;
pub mod batch;
pub mod budget;
pub mod company;
pub mod cut;
pub mod effect;
pub mod ended;
pub mod entries;
pub mod erasure;
pub mod event;
pub mod fingerprint;
pub mod id;
pub mod line_ends;
pub mod nesting;
pub mod price;
pub mod request;
pub mod retention;
pub mod retry;
pub mod room;
pub mod session;
pub mod source;
pub mod step;
pub mod webhook;
