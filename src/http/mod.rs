//! The admin and ingest API.
