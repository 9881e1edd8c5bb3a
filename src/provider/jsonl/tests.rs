//! Tests of the result lines.
