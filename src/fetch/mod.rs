//! Fetches from addresses that somebody else may have chosen, and goes only where it may.
//!
//! [`Guard`] says what may be reached; [`Fetcher`] reaches it: no proxy, no compressed bodies, redirects followed by
//! hand and each checked anew, a password sent to its own origin only, and a bound on time and size. Exports,
//! transcripts and outgoing webhooks go through here.

mod client;
mod error;
mod guard;
mod names;

pub use bytes::Bytes;
pub use url::Url;

pub use client::{Body, Fetched, Fetcher, Get, Limits, Login, Reply, Version};
pub use error::FetchError;
pub use guard::{BadHost, Guard, NotAllowed, URL_BYTES_MAX, is_public};
pub use names::{Names, SystemNames};
