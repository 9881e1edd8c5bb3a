//! CSV exports and transcripts, read as streams.
