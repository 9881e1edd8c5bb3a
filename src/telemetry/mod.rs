//! How logs leave the process: for people on a terminal, one JSON object a line otherwise, always on stderr.
//!
//! What is logged names ids and counts; never a key, a token, or what somebody said in a conversation.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::debug_fn;

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people on a terminal, else JSON.
    Auto,
    /// For people.
    Human,
    /// One object a line.
    Json,
}

/// Starts logging at `level` (`error`, `warn`, `info`, `debug` or `trace`); a second call changes nothing.
pub fn init(level: &str, format: Format) {
    // The libraries below us are quiet unless something is wrong; sled says nothing of use at any level.
    let filter = EnvFilter::new(format!("warn,nightshift={level},sled=error"));
    let human = match format {
        Format::Auto => std::io::stderr().is_terminal(),
        Format::Human => true,
        Format::Json => false,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // It fails only where a subscriber is set already, and then that one is meant.
    let _ = if human {
        // People read sentences, which hold what the fields say; the fields are for programs.
        let sentence = debug_fn(|writer, field, value| match field.name() {
            "message" => write!(writer, "{value:?}"),
            _ => Ok(()),
        });
        builder.with_target(false).compact().fmt_fields(sentence).try_init().map_err(drop)
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init()
            .map_err(drop)
    };
}
