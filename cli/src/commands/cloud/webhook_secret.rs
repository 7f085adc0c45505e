//! `ckrv cloud webhook-secret`

use clap::Args;

use crate::App;
use crate::client::Client;
use crate::error::{Exit, Outcome};
use crate::text::clean;

/// Print the secret that the deliveries of your webhooks (`ckrv run --notify`) are signed with
#[derive(Debug, Args)]
pub struct WebhookSecretArgs {}

/// # Errors
/// Not logged in; the service can't be reached.
pub async fn run(_args: WebhookSecretArgs, app: &App) -> Outcome {
    let answer = Client::new(&app.settings)?.webhook_secret().await?;
    if app.ui.is_json() {
        app.ui.value(&answer)?;
    } else {
        app.ui.line(&clean(&answer.secret))?;
        app.ui.note("keep it where the receiver runs, and nowhere else; docs/webhooks.md shows how to check a signature");
    }
    Ok(Exit::OK)
}
