//! `nightshift key`

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::Client;
use super::{CliError, block_on, output};
use crate::config::Settings;
use crate::domain::id::{CompanyId, KeyId};

/// What to do with access keys.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The keys of a company, or those of admins and viewers; never the keys themselves.
    List {
        /// The company; without one the keys of admins and viewers.
        #[arg(long)]
        company: Option<CompanyId>,
    },
    /// Make one and print it, this once.
    Create {
        /// The company that it is for.
        #[arg(long, conflicts_with = "role", required_unless_present = "role")]
        company: Option<CompanyId>,
        /// For all companies instead.
        #[arg(long, value_parser = ["admin", "viewer"])]
        role: Option<String>,
        /// What people call it.
        #[arg(long, default_value = "")]
        label: String,
    },
    /// End one at once.
    Revoke {
        /// The key's id.
        id: KeyId,
        /// The company that it is for, if it is for one.
        #[arg(long)]
        company: Option<CompanyId>,
    },
    /// Make a new one in its place and print it, this once.
    Rotate {
        /// The key's id.
        id: KeyId,
        /// The company that it is for, if it is for one.
        #[arg(long)]
        company: Option<CompanyId>,
        /// How long the old one works on, as in 24h.
        #[arg(long, default_value = "0s")]
        overlap: String,
    },
}

fn keys_of(company: Option<&CompanyId>) -> String {
    match company {
        Some(company) => format!("/api/v1/companies/{company}/keys"),
        None => "/api/admin/legacy/keys".to_owned(),
    }
}

pub fn run(command: &KeyArgs, settings: &Settings, server: Option<&str>, json: bool) -> Result<(), CliError> {
    let client = Client::new(settings, server)?;
    let answer = block_on(async {
        match &command.what {
            What::List { company } => client.get(&keys_of(company.as_ref()), &[]).await,
            What::Create { company: Some(company), label, .. } => {
                client.post(&keys_of(Some(company)), &json!({ "label": label })).await
            }
            What::Create { company: None, role, label } => {
                client.post(&keys_of(None), &json!({ "role": role, "label": label })).await
            }
            What::Revoke { id, company } => {
                client.delete(&format!("{}/{id}", keys_of(company.as_ref()))).await
            }
            What::Rotate { id, company, overlap } => {
                let path = format!("{}/{id}/rotate", keys_of(company.as_ref()));
                client.post(&path, &json!({ "overlap": overlap })).await
            }
        }
    })?;
    if json {
        output::json(&answer);
        return Ok(());
    }
    if let Some(key) = answer["key"]["key"].as_str() {
        output::talk("shown this once; only its hash is kept");
        output::data(key);
        return Ok(());
    }
    let one = std::slice::from_ref(&answer["key"]);
    let keys = answer["keys"].as_array().map_or(one, Vec::as_slice);
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|key| {
            let text = |name: &str| key[name].as_str().unwrap_or("-").to_owned();
            ["id", "role", "label", "createdAt", "endsAt", "lastUsedOn"].map(text).to_vec()
        })
        .collect();
    output::table(&["KEY", "ROLE", "LABEL", "MADE", "ENDS", "LAST USED"], &rows);
    Ok(())
}
