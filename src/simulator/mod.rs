//! An OpenAI-compatible Files and Batch server of our own.
