//! `ckrv cloud`

mod agents;
mod credentials;
mod login;
mod logout;
mod secrets;
mod tokens;
mod usage;
mod value;
mod webhook_secret;
mod whoami;

use clap::{Args, Subcommand};

use crate::App;
use crate::error::Outcome;

/// Log in to the service, and manage what it keeps for you
#[derive(Debug, Args)]
pub struct CloudArgs {
    #[command(subcommand)]
    pub command: Cloud,
}

#[derive(Debug, Subcommand)]
pub enum Cloud {
    Login(login::LoginArgs),
    Logout(logout::LogoutArgs),
    Whoami(whoami::WhoamiArgs),
    Credentials(credentials::CredentialsArgs),
    Secrets(secrets::SecretsArgs),
    Tokens(tokens::TokensArgs),
    Agents(agents::AgentsArgs),
    Usage(usage::UsageArgs),
    WebhookSecret(webhook_secret::WebhookSecretArgs),
}

/// # Errors
/// As the subcommands.
pub async fn run(args: CloudArgs, app: &App) -> Outcome {
    match args.command {
        Cloud::Login(args) => login::run(args, app).await,
        Cloud::Logout(args) => logout::run(args, app).await,
        Cloud::Whoami(args) => whoami::run(args, app).await,
        Cloud::Credentials(args) => credentials::run(args, app).await,
        Cloud::Secrets(args) => secrets::run(args, app).await,
        Cloud::Tokens(args) => tokens::run(args, app).await,
        Cloud::Agents(args) => agents::run(args, app).await,
        Cloud::Usage(args) => usage::run(args, app).await,
        Cloud::WebhookSecret(args) => webhook_secret::run(args, app).await,
    }
}
