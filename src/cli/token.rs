//! `nightshift token`

use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};

use super::{CliError, block_on, data_folder, output};
use crate::app;
use crate::clock::{Ids, SharedClock, SystemClock};
use crate::config::Settings;
use crate::disk;
use crate::domain::id::{CompanyId, KeyId};
use crate::http::auth;
use crate::store::{Role, Store, StoredToken};

/// What to do with tokens.
#[derive(Debug, Args)]
pub struct Token {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Replace every admin token by a new one.
    Reset,
    /// Make one more token and print it; it is stored as a hash only.
    Create {
        /// What it may do.
        #[arg(long, value_enum)]
        role: RoleName,
        /// The company, for the role company.
        #[arg(long, required_if_eq("role", "company"))]
        company: Option<CompanyId>,
        /// What people call it.
        #[arg(long, default_value = "")]
        label: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    Admin,
    Viewer,
    Company,
}

pub fn run(command: &Token, settings: &Settings, json: bool) -> Result<(), CliError> {
    block_on(async {
        let clock: SharedClock = Arc::new(SystemClock::new());
        let ids = Ids::new(clock.clone());
        disk::make_openable(data_folder(settings));
        let store = Store::open(data_folder(settings), ids.next(), Arc::new(|_| {})).await?;
        let (token, role) = match &command.what {
            What::Reset => {
                let (token, path) = app::new_admin_token(data_folder(settings), &store, &clock, &ids).await?;
                output::talk(&format!("all admin tokens are replaced; the new one is in {}", path.display()));
                (token, "admin")
            }
            What::Create { role, company, label } => {
                let role = match (role, company) {
                    (RoleName::Admin, _) => Role::Admin,
                    (RoleName::Viewer, _) => Role::Viewer,
                    (RoleName::Company, Some(company)) => Role::Company(company.clone()),
                    (RoleName::Company, None) => {
                        return Err(CliError::Failed("--company is needed for this role".to_owned()));
                    }
                };
                let token = auth::new_token().map_err(|err| CliError::Failed(err.to_string()))?;
                let name = role.label();
                let (id, hash) = (KeyId::new(ids.next()), auth::hash(&token));
                let stored = StoredToken::new(id, hash, role, label.clone(), clock.now());
                crash_point!("token.create.before_commit");
                let stored = store.create_token(stored, clock.now()).await;
                stored.map_err(|err| CliError::Failed(err.to_string()))?;
                crash_point!("token.create.after_commit");
                (token, name)
            }
        };
        if json {
            output::json(&serde_json::json!({"ok": true, "token": token, "role": role}));
        } else {
            output::data(&token);
        }
        Ok(())
    })
}
