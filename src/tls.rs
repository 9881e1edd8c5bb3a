//! The TLS of every HTTP client of this program.
//!
//! rustls leaves the cryptography to a provider. Ours is ring: its C is built in a small part of the time that the
//! default one, aws-lc, takes. reqwest panics where none is installed, so every client begins here.

use std::sync::Once;

/// What builds an HTTP client, with the TLS provider in its place.
pub fn client_builder() -> reqwest::ClientBuilder {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // It fails only if another one is there already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder()
}
