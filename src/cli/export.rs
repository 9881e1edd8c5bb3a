//! `nightshift export`: writes what a company has to a file or to standard output.

use std::fs::OpenOptions;
use std::io::{BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::client::Client;
use super::{CliError, block_on, output};
use crate::config::Settings;
use crate::domain::id::CompanyId;

/// What to write.
#[derive(Debug, Args)]
pub struct Export {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Sessions with their analyses.
    Sessions(Sessions),
    /// Requests with their results.
    Requests(Requests),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object a line.
    Ndjson,
    /// For spreadsheets.
    Csv,
}

#[derive(Debug, Args)]
struct Common {
    /// Whose.
    #[arg(long)]
    company: CompanyId,
    /// How.
    #[arg(long, value_enum, default_value = "ndjson")]
    format: Format,
    /// Where to; it has its name only once it is whole. Without it: standard output.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only from this time on (RFC 3339).
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only before this time.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Only those whose error has this in it.
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
}

#[derive(Debug, Args)]
struct Sessions {
    #[command(flatten)]
    common: Common,
    /// Only in this state.
    #[arg(long)]
    state: Option<String>,
    /// Only with this sentiment.
    #[arg(long)]
    sentiment: Option<String>,
    /// Only of this category.
    #[arg(long)]
    category: Option<String>,
    /// Only in this language, as analysed.
    #[arg(long)]
    language: Option<String>,
    /// Only from this country.
    #[arg(long)]
    country: Option<String>,
    /// With what was said.
    #[arg(long)]
    messages: bool,
    /// And, behind each one, how it was before it changed.
    #[arg(long)]
    versions: bool,
}

#[derive(Debug, Args)]
struct Requests {
    #[command(flatten)]
    common: Common,
    /// Only with this status.
    #[arg(long)]
    status: Option<String>,
    /// Only for this endpoint.
    #[arg(long)]
    endpoint: Option<String>,
    /// Only for this model.
    #[arg(long)]
    model: Option<String>,
    /// Only those that failed like this.
    #[arg(long)]
    class: Option<String>,
    /// Only the analyses of this session.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// With what was asked, as the client sent it.
    #[arg(long)]
    body: bool,
    /// With the answers that did not fit.
    #[arg(long)]
    misfits: bool,
}

/// Writes the export.
pub fn run(command: &Export, settings: &Settings, server: Option<&str>) -> Result<(), CliError> {
    let client = Client::new(settings, server)?;
    let (what, common, more) = match &command.what {
        What::Sessions(of) => {
            let include = include(&[("messages", of.messages), ("versions", of.versions)]);
            let more = [
                ("state", of.state.clone()),
                ("sentiment", of.sentiment.clone()),
                ("category", of.category.clone()),
                ("language", of.language.clone()),
                ("country", of.country.clone()),
                ("include", include),
            ];
            ("sessions", &of.common, more.to_vec())
        }
        What::Requests(of) => {
            let more = [
                ("status", of.status.clone()),
                ("endpoint", of.endpoint.clone()),
                ("model", of.model.clone()),
                ("class", of.class.clone()),
                ("sessionId", of.session.clone()),
                ("include", include(&[("body", of.body), ("misfits", of.misfits)])),
            ];
            ("requests", &of.common, more.to_vec())
        }
    };
    let format = match common.format {
        Format::Ndjson => "ndjson",
        Format::Csv => "csv",
    };
    let common_filters =
        [("from", common.from.clone()), ("to", common.to.clone()), ("error", common.error.clone())];
    let mut query = vec![("format", format.to_owned())];
    let given = common_filters.into_iter().chain(more);
    query.extend(given.filter_map(|(key, value)| value.map(|value| (key, value))));
    let path = format!("/api/v1/companies/{}/export/{what}", common.company);
    match &common.output {
        Some(file) => to_file(&client, &path, &query, file),
        None => {
            let bar = bar();
            let mut out = BufWriter::new(std::io::stdout());
            download(&client, &path, &query, &mut out, &bar)?;
            out.flush().map_err(|err| unwritten("standard output", &err))
        }
    }
}

fn include(words: &[(&str, bool)]) -> Option<String> {
    let asked: Vec<&str> = words.iter().filter(|(_, asked)| *asked).map(|(word, _)| *word).collect();
    (!asked.is_empty()).then(|| asked.join(","))
}

/// Writes beside the file and renames: under its own name there is never half of it.
fn to_file(client: &Client, path: &str, query: &[(&str, String)], file: &Path) -> Result<(), CliError> {
    let shown = file.display().to_string();
    let failed = |err: &std::io::Error| unwritten(&shown, err);
    let Some(name) = file.file_name() else {
        return Err(CliError::Failed(format!("--output {shown}: that is no name of a file")));
    };
    let part = file.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
    let written = write_part(client, path, query, &part, &failed)
        .and_then(|()| std::fs::rename(&part, file).map_err(|err| failed(&err)));
    if written.is_err() {
        // What is left of it is of no use; that it cannot be removed changes nothing.
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn write_part(
    client: &Client,
    path: &str,
    query: &[(&str, String)],
    part: &Path,
    failed: &dyn Fn(&std::io::Error) -> CliError,
) -> Result<(), CliError> {
    // What people said is in it: for nobody else to read.
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part);
    let mut out = BufWriter::new(file.map_err(|err| failed(&err))?);
    let bar = bar();
    let (rows, bytes) = download(client, path, query, &mut out, &bar)?;
    let file = out.into_inner().map_err(|err| failed(err.error()))?;
    file.sync_all().map_err(|err| failed(&err))?;
    output::talk(&format!("{rows} rows written, {bytes} bytes"));
    Ok(())
}

/// Gives the rows and bytes that were written.
fn download(
    client: &Client,
    path: &str,
    query: &[(&str, String)],
    out: &mut impl Write,
    bar: &ProgressBar,
) -> Result<(u64, u64), CliError> {
    let is_csv = query.contains(&("format", "csv".to_owned()));
    let mut bytes = 0;
    let mut rows = Rows { is_csv, in_quotes: false, line_ends: 0 };
    let begun = |total: Option<u64>| {
        if let Some(total) = total {
            bar.set_length(total);
            bar.set_style(style("{bar:30} {pos}/{len} rows {msg} {elapsed}", ProgressStyle::default_bar));
        }
    };
    let ended = block_on(client.download(path, query, begun, |piece| {
        bytes += piece.len() as u64;
        rows.take(piece);
        bar.set_position(rows.count());
        bar.set_message(format!("{} {}/s", HumanBytes(bytes), HumanBytes(per_second(bytes, bar.elapsed()))));
        out.write_all(piece).map_err(|err| unwritten("the output", &err))
    }));
    bar.finish_and_clear();
    ended.map(|()| (rows.count(), bytes))
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1000) / millis
}

/// Counts rows as they come by, in whatever pieces.
struct Rows {
    is_csv: bool,
    in_quotes: bool,
    line_ends: u64,
}

impl Rows {
    fn take(&mut self, piece: &[u8]) {
        for byte in piece {
            match byte {
                // A quote within a text is doubled, so that it ends and begins anew.
                b'"' if self.is_csv => self.in_quotes = !self.in_quotes,
                b'\n' if !self.in_quotes => self.line_ends += 1,
                _ => {}
            }
        }
    }

    /// Without the line of names.
    const fn count(&self) -> u64 {
        if self.is_csv { self.line_ends.saturating_sub(1) } else { self.line_ends }
    }
}

fn unwritten(what: &str, err: &std::io::Error) -> CliError {
    CliError::Failed(format!("{what} cannot be written: {err}"))
}

/// A spinner, and a bar once it is known how much there is to come.
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.set_style(style("{spinner} {pos} rows {msg} {elapsed}", ProgressStyle::default_spinner));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn style(template: &str, otherwise: fn() -> ProgressStyle) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| otherwise())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_wherever_a_piece_ends() {
        let count = |is_csv, text: &str, length| {
            let mut rows = Rows { is_csv, in_quotes: false, line_ends: 0 };
            text.as_bytes().chunks(length).for_each(|piece| rows.take(piece));
            rows.count()
        };
        let csv = "id,text\r\n1,\"a\nb \"\"c\"\"\n\"\r\n2,\r\n";
        let lines = "{\"a\":\"\\\"\"}\n{}\n{}\n";
        for length in 1..=csv.len() {
            assert_eq!((count(true, csv, length), count(false, lines, length)), (2, 3), "{length}");
        }
        assert_eq!(Rows { is_csv: true, in_quotes: false, line_ends: 0 }.count(), 0);
    }
}
