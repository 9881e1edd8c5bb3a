//! The accept loop that every HTTP server here stands behind.
