//! Defaults, file, environment and flags become checked settings.
