//! `ckrv cloud tokens`

use ckrv_core::wire::{CreateServiceToken, Scope, ServiceTokenInfo};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::App;
use crate::client::Client;
use crate::error::{CliError, Exit, Outcome};
use crate::text::{clean, table};

/// Manage tokens for automation, each with the scopes that it is given
#[derive(Debug, Args)]
pub struct TokensArgs {
    #[command(subcommand)]
    pub command: Tokens,
}

#[derive(Debug, Subcommand)]
pub enum Tokens {
    /// Make a token and print it, this once
    ///
    /// Give it to a program as CKRV_TOKEN. It can't make other tokens.
    Create(CreateArgs),
    /// List your tokens, without the tokens themselves
    List,
    /// Revoke a token: it is worth nothing from then on
    Revoke {
        /// Its id, as `list` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// For you to know it by
    pub name: String,
    /// What it may do: jobs:read, jobs:write, credentials:read, credentials:write, usage:read, admin
    #[arg(long = "scope", value_name = "SCOPE", required = true, value_delimiter = ',')]
    pub scopes: Vec<Scope>,
    /// When it ends by itself, in days, like 90d; without it, it is good until it is revoked
    #[arg(long, value_name = "DAYS", value_parser = days)]
    pub expires: Option<u32>,
}

fn days(text: &str) -> Result<u32, String> {
    let count = text.strip_suffix('d').and_then(|count| count.parse().ok());
    count.filter(|count| (1..=3650).contains(count)).ok_or_else(|| "write it in days, 1d to 3650d".to_owned())
}

/// # Errors
/// A name or a scope that is refused; an unknown id; the service can't be reached.
pub async fn run(args: TokensArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    match args.command {
        Tokens::Create(args) => {
            let asked = CreateServiceToken { name: args.name, scopes: args.scopes, expires_in_days: args.expires };
            let made = client.create_service_token(&asked).await?;
            if app.ui.is_json() {
                app.ui.value(&made)?;
                return Ok(Exit::OK);
            }
            app.ui.line(&clean(&made.token))?;
            let end = made.info.expires_at.map_or_else(|| "until it is revoked".to_owned(), |at| format!("until {at}"));
            app.ui.note(&format!("token {} ({}) is good {end}", clean(&made.info.id), clean(&made.info.name)));
            app.ui.note("keep it now: it is not shown again. Programs take it from CKRV_TOKEN");
        }
        Tokens::List => {
            let list = client.service_tokens().await?;
            if app.ui.is_json() { app.ui.value(&list)? } else { show(&list.tokens, app)? }
        }
        Tokens::Revoke { id } => {
            client.revoke_service_token(&id).await?;
            if app.ui.is_json() { app.ui.value(&json!({ "revoked": id }))? } else { app.ui.note(&format!("revoked token {id}")) }
        }
    }
    Ok(Exit::OK)
}

fn show(tokens: &[ServiceTokenInfo], app: &App) -> Result<(), CliError> {
    if tokens.is_empty() {
        app.ui.note("no tokens; make one with `ckrv cloud tokens create NAME --scope jobs:read`");
        return Ok(());
    }
    let time = |at: Option<jiff::Timestamp>| at.map_or_else(|| "never".to_owned(), |at| at.to_string());
    let row = |token: &ServiceTokenInfo| {
        let cells = [
            &token.id,
            &token.name,
            &token.scopes.join(" "),
            &token.created_at.to_string(),
            &time(token.expires_at),
            &time(token.last_used_at),
        ];
        cells.map(|cell: &String| clean(cell).into_owned()).to_vec()
    };
    let rows: Vec<Vec<String>> = tokens.iter().map(row).collect();
    for line in table(&["ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "LAST USED"], &rows) {
        app.ui.line(&line)?;
    }
    Ok(())
}
