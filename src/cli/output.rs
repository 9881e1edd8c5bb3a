//! Everything that a command prints: data to standard output, talk to standard error.

use std::io::Write;

use super::CliError;

/// A line of data.
pub fn data(line: &str) {
    // Nobody reads any more: there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Data as JSON on one line.
pub fn json(value: &serde_json::Value) {
    data(&value.to_string());
}

/// A line of talk.
pub fn talk(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Why a command failed.
pub fn error(err: &CliError, json: bool) {
    let mut text = err.to_string();
    if text.is_empty() {
        return;
    }
    let mut source = std::error::Error::source(err);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    if json {
        let line = serde_json::json!({"type": "error", "detail": text, "exitCode": err.exit_code()});
        talk(&line.to_string());
    } else {
        talk(&format!("nightshift: {text}"));
    }
}

/// Columns side by side.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = head.iter().map(|name| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> =
            widths.iter().zip(cells).map(|(width, cell)| format!("{cell:<width$}")).collect();
        data(padded.join("  ").trim_end());
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}
