//! Puts the parts together, runs them, drains them.
