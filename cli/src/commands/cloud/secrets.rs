//! `ckrv cloud secrets`

use std::path::PathBuf;

use ckrv_core::wire::{CreateSecret, SecretInfo};
use clap::{Args, Subcommand};
use serde_json::json;

use super::value;
use crate::App;
use crate::client::Client;
use crate::error::{CliError, Exit, Outcome};
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
        #[arg(long, value_name = "FILE", conflicts_with = "reference")]
        file: Option<PathBuf>,
        /// Store no value, but where the cloud's secrets manager has it, for example aws-ssm:/ckrv/shared/NAME
        #[arg(long)]
        reference: Option<String>,
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
        Secrets::Add { name, file, reference } => {
            let value = match reference {
                Some(_) => None,
                None => Some(value::read(file.as_deref(), "Secret", false)?.to_string()),
            };
            let stored = client.add_secret(&CreateSecret { name, value, reference }).await?;
            if app.ui.is_json() { app.ui.value(&stored)? } else { app.ui.note(&format!("stored secret {}", clean(&stored.name))) }
        }
        Secrets::List => {
            let list = client.secrets().await?;
            if app.ui.is_json() { app.ui.value(&list)? } else { show(&list.secrets, app)? }
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

fn show(secrets: &[SecretInfo], app: &App) -> Result<(), CliError> {
    if secrets.is_empty() {
        app.ui.note("no secrets; store one with `ckrv cloud secrets add NAME`");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = secrets
        .iter()
        .map(|secret| {
            let place = secret.reference.as_deref().unwrap_or_default();
            vec![clean(&secret.name).into_owned(), secret.created_at.to_string(), clean(place).into_owned()]
        })
        .collect();
    for line in table(&["NAME", "CREATED", "REFERENCE"], &rows) {
        app.ui.line(&line)?;
    }
    Ok(())
}
