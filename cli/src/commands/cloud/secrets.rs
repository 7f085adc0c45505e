//! `ckrv cloud secrets`

use std::path::PathBuf;

use ckrv_core::wire::CreateSecret;
use clap::{Args, Subcommand};
use serde_json::json;

use super::value;
use crate::App;
use crate::client::Client;
use crate::error::{Exit, Outcome};
use crate::text::{clean, table};

/// Manage the agents' API keys
#[derive(Debug, Args)]
pub struct SecretsArgs {
    #[command(subcommand)]
    pub command: Secrets,
}

#[derive(Debug, Subcommand)]
pub enum Secrets {
    /// Store a secret, read from standard input, a file, or the terminal without echo
    ///
    /// A secret with the name of an agent's slot fills that slot; any other is chosen with `ckrv run --secret SLOT=NAME`.
    Add {
        /// a to z, 0 to 9 and `-`, at most 50 characters
        name: String,
        /// Read the value from this file
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// List the stored secrets, without their values
    List,
    /// Remove a secret
    Remove {
        /// Its name
        name: String,
    },
}

/// # Errors
/// A bad name or value; a name that is taken or unknown; the service can't be reached.
pub async fn run(args: SecretsArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    match args.command {
        Secrets::Add { name, file } => {
            let value = value::read(file.as_deref(), "Secret", false)?.to_string();
            let stored = client.add_secret(&CreateSecret { name, value }).await?;
            if app.ui.is_json() { app.ui.value(&stored)? } else { app.ui.note(&format!("stored secret {}", clean(&stored.name))) }
        }
        Secrets::List => {
            let list = client.secrets().await?;
            if app.ui.is_json() {
                app.ui.value(&list)?;
            } else if list.secrets.is_empty() {
                app.ui.note("no secrets; store one with `ckrv cloud secrets add NAME`");
            } else {
                let rows: Vec<Vec<String>> = list
                    .secrets
                    .iter()
                    .map(|secret| vec![clean(&secret.name).into_owned(), secret.created_at.to_string()])
                    .collect();
                for line in table(&["NAME", "CREATED"], &rows) {
                    app.ui.line(&line)?;
                }
            }
        }
        Secrets::Remove { name } => {
            client.remove_secret(&name).await?;
            if app.ui.is_json() {
                app.ui.value(&json!({ "removed": name }))?
            } else {
                app.ui.note(&format!("removed secret {name}"))
            }
        }
    }
    Ok(Exit::OK)
}
