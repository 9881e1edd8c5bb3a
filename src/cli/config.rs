//! `nightshift config`

use clap::{Args, Subcommand};

use super::{CliError, output};
use crate::config::{ConfigErrors, Settings};

/// What to look at.
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Check the configuration as a whole and list what is in force and where it comes from.
    Check,
}

pub fn run(
    command: &Config,
    settings: impl Fn() -> Result<Settings, ConfigErrors>,
    json: bool,
) -> Result<(), CliError> {
    let What::Check = command.what;
    let settings = settings()?;
    let rows: Vec<_> = settings
        .describe()
        .iter()
        .map(|listed| [listed.key.clone(), listed.value.clone(), listed.origin.to_string()])
        .collect();
    if json {
        let list = |row: &[String; 3]| serde_json::json!({"key": row[0], "value": row[1], "origin": row[2]});
        let settings: Vec<_> = rows.iter().map(list).collect();
        output::json(&serde_json::json!({ "ok": true, "settings": settings }));
    } else {
        output::table(&["KEY", "VALUE", "FROM"], &rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>());
        output::talk("the configuration is good");
    }
    for note in &settings.notes {
        output::talk(&format!("note: {note}"));
    }
    Ok(())
}
