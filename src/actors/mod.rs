//! Intake, creator, batches, poller, registry, importer.
