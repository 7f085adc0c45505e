//! `ckrv cloud credentials`

use std::path::PathBuf;

use ckrv_core::wire::{CreateCredential, CredentialInfo, CredentialType, Provider};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::value;
use crate::App;
use crate::client::Client;
use crate::error::{CliError, Exit, Outcome};
use crate::text::{clean, table};

/// Manage the git credentials that jobs clone private repositories with
#[derive(Debug, Args)]
pub struct CredentialsArgs {
    #[command(subcommand)]
    pub command: Credentials,
}

#[derive(Debug, Subcommand)]
pub enum Credentials {
    /// Store a token or a deploy key, read from standard input, a file, or the terminal without echo
    ///
    /// It is encrypted at the service, never shown again, and offered to its hosts only.
    Add(AddArgs),
    /// List the stored credentials, without their values
    List,
    /// Remove a credential
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// a to z, 0 to 9 and `-`, at most 50 characters
    pub name: String,
    #[arg(long, default_value = "github")]
    pub provider: ProviderArg,
    /// A personal access token, or a private ssh key without passphrase
    #[arg(long = "type", default_value = "pat")]
    pub kind: KindArg,
    /// Read the value from this file
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Offer it to this host (`host` or `host:port`), instead of the provider's
    #[arg(long = "host", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Accept these host keys, a file in known_hosts format
    #[arg(long, value_name = "FILE")]
    pub known_hosts: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ProviderArg {
    Github,
    Gitlab,
    Bitbucket,
    Generic,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum KindArg {
    Pat,
    DeployKey,
}

/// # Errors
/// A bad name or value; a name that is taken or unknown; the service can't be reached.
pub async fn run(args: CredentialsArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    match args.command {
        Credentials::Add(args) => {
            let credential = credential(args)?;
            let stored = client.add_credential(&credential).await?;
            if app.ui.is_json() {
                app.ui.value(&stored)?
            } else {
                app.ui.note(&format!("stored credential {}", clean(&stored.name)))
            }
        }
        Credentials::List => {
            let list = client.credentials().await?;
            if app.ui.is_json() { app.ui.value(&list)? } else { show(&list.credentials, app)? }
        }
        Credentials::Remove { name } => {
            client.remove_credential(&name).await?;
            if app.ui.is_json() {
                app.ui.value(&json!({ "removed": name }))?
            } else {
                app.ui.note(&format!("removed credential {name}"))
            }
        }
    }
    Ok(Exit::OK)
}

fn credential(args: AddArgs) -> Result<CreateCredential, CliError> {
    if matches!(args.provider, ProviderArg::Generic) && args.hosts.is_empty() {
        return Err(
            CliError::usage("a generic credential needs a host").hint("name where it may be offered: --host git.example.com")
        );
    }
    let is_key = matches!(args.kind, KindArg::DeployKey);
    let known_hosts = args.known_hosts.map(|path| {
        std::fs::read_to_string(&path).map_err(|error| CliError::io(format!("can't read {}", path.display()), error))
    });
    Ok(CreateCredential {
        value: value::read(args.file.as_deref(), if is_key { "Private key" } else { "Token" }, is_key)?.to_string(),
        name: args.name,
        provider: match args.provider {
            ProviderArg::Github => Provider::Github,
            ProviderArg::Gitlab => Provider::Gitlab,
            ProviderArg::Bitbucket => Provider::Bitbucket,
            ProviderArg::Generic => Provider::Generic,
        },
        credential_type: if is_key { CredentialType::DeployKey } else { CredentialType::Pat },
        hosts: (!args.hosts.is_empty()).then_some(args.hosts),
        known_hosts: known_hosts.transpose()?,
    })
}

fn show(credentials: &[CredentialInfo], app: &App) -> Result<(), CliError> {
    if credentials.is_empty() {
        app.ui.note("no credentials; store one with `ckrv cloud credentials add NAME`");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = credentials
        .iter()
        .map(|credential| {
            let kind = match credential.credential_type {
                CredentialType::Pat => "pat",
                CredentialType::DeployKey => "deploy-key",
            };
            let used = credential.last_used_at.map_or_else(|| "never".to_owned(), |at| at.to_string());
            let provider = format!("{:?}", credential.provider).to_lowercase();
            let cells =
                [&credential.name, &provider, kind, &credential.hosts.join(", "), &credential.created_at.to_string(), &used];
            cells.map(|cell: &str| clean(cell).into_owned()).to_vec()
        })
        .collect();
    for line in table(&["NAME", "PROVIDER", "TYPE", "HOSTS", "CREATED", "LAST USED"], &rows) {
        app.ui.line(&line)?;
    }
    Ok(())
}
