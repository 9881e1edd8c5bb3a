//! Tokens to money.
