//! `nightshift erase`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, part};
use super::{CliError, block_on, output};
use crate::config::Settings;
use crate::domain::id::CompanyId;

/// What to erase.
#[derive(Debug, Args)]
pub struct Erase {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One session: its facts, messages, analysis, requests and results.
    Session {
        /// Whose it is.
        #[arg(long)]
        company: CompanyId,
        /// Its id in the export.
        external_id: String,
    },
    /// Everything of a company, and the company itself. Its running batches are cancelled.
    Company {
        /// The company.
        id: CompanyId,
        /// The same id again: this cannot be undone.
        #[arg(long, value_name = "ID")]
        confirm: String,
    },
    /// What was erased, newest first, and how far it is.
    List,
}

pub fn run(command: &Erase, settings: &Settings, server: Option<&str>, json: bool) -> Result<(), CliError> {
    let client = Client::new(settings, server)?;
    let answer = block_on(async {
        match &command.what {
            What::Session { company, external_id } => {
                let path = format!("/api/v1/companies/{company}/sessions/{}/erase", part(external_id));
                client.post(&path, &json!({})).await
            }
            What::Company { id, confirm } => {
                let path = format!("/api/admin/legacy/companies/{id}/erase");
                client.post(&path, &json!({ "confirm": confirm })).await
            }
            What::List => client.get("/api/admin/legacy/erasures", &[]).await,
        }
    })?;
    if json {
        output::json(&answer);
        return Ok(());
    }
    let one = std::slice::from_ref(&answer["erasure"]);
    let erasures = answer["erasures"].as_array().map_or(one, Vec::as_slice);
    let row = |erasure: &Value| {
        let text = |name: &str| erasure[name].as_str().unwrap_or("-").to_owned();
        ["id", "what", "companyId", "state", "orderedAt", "doneAt"].map(text).to_vec()
    };
    let rows: Vec<Vec<String>> = erasures.iter().map(row).collect();
    output::table(&["ERASURE", "WHAT", "COMPANY", "STATE", "ORDERED", "DONE"], &rows);
    Ok(())
}
