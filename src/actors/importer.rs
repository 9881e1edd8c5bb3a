//! The importer.
