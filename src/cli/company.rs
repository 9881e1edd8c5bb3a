//! `nightshift company`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::Client;
use super::{CliError, block_on, output};
use crate::config::Settings;
use crate::domain::id::CompanyId;

const COMPANIES: &str = "/api/admin/legacy/companies";

/// What to do with companies.
#[derive(Debug, Args)]
pub struct CompanyArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// All of them, with the counts of their requests.
    List,
    /// Make one.
    Create {
        /// Its id, part of every path of its data.
        id: CompanyId,
        /// What people call it.
        #[arg(long)]
        name: Option<String>,
        /// The model that its sessions are analysed with.
        #[arg(long)]
        model: Option<String>,
    },
    /// Cut no new batches for it; what is in one already finishes.
    Suspend {
        /// The company.
        id: CompanyId,
    },
    /// Cut batches for it again.
    Resume {
        /// The company.
        id: CompanyId,
    },
}

pub fn run(
    command: &CompanyArgs,
    settings: &Settings,
    server: Option<&str>,
    json: bool,
) -> Result<(), CliError> {
    let client = Client::new(settings, server)?;
    let answer = block_on(async {
        match &command.what {
            What::List => client.get(COMPANIES, &[]).await,
            What::Create { id, name, model } => {
                let mut body = json!({ "id": id.as_str() });
                for (key, value) in [("name", name), ("model", model)] {
                    if let Some(value) = value {
                        body[key] = Value::from(value.as_str());
                    }
                }
                client.post(COMPANIES, &body).await
            }
            What::Suspend { id } => client.post(&format!("{COMPANIES}/{id}/suspend"), &json!({})).await,
            What::Resume { id } => client.post(&format!("{COMPANIES}/{id}/resume"), &json!({})).await,
        }
    })?;
    if json {
        output::json(&answer);
        return Ok(());
    }
    let one = std::slice::from_ref(&answer["company"]);
    let companies = answer["companies"].as_array().map_or(one, Vec::as_slice);
    let rows: Vec<Vec<String>> = companies
        .iter()
        .map(|company| {
            let text = |name: &str| company[name].as_str().unwrap_or("-").to_owned();
            let state = if company["suspended"].as_bool() == Some(true) { "suspended" } else { "active" };
            vec![text("id"), text("name"), text("model"), state.to_owned()]
        })
        .collect();
    output::table(&["COMPANY", "NAME", "MODEL", "STATE"], &rows);
    Ok(())
}
