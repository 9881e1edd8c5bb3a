//! How logs leave the process.
