//! `ckrv cloud whoami`

use clap::Args;

use crate::App;
use crate::client::Client;
use crate::error::{Exit, Outcome};
use crate::text::clean;

/// Show who you are at the service, and what is left of your quota
#[derive(Debug, Args)]
pub struct WhoamiArgs {}

/// # Errors
/// Not logged in; the service can't be reached.
pub async fn run(_args: WhoamiArgs, app: &App) -> Outcome {
    let client = Client::new(&app.settings)?;
    let user = client.me().await?;
    if app.ui.is_json() {
        app.ui.value(&user)?;
        return Ok(Exit::OK);
    }
    app.ui.line(&format!("{} <{}>", clean(&user.name), clean(&user.email)))?;
    let tier = format!("{:?}", user.subscription_tier).to_lowercase();
    app.ui.note(&format!(
        "at {}; {tier} tier, {} jobs left until {}",
        client.service(),
        user.job_quota_remaining,
        user.billing_cycle_end
    ));
    Ok(Exit::OK)
}
