//! `ckrv cloud logout`

use clap::Args;
use serde_json::json;

use crate::App;
use crate::error::{Exit, Outcome};
use crate::tokens::Sessions;

/// Forget the session at the service
#[derive(Debug, Args)]
pub struct LogoutArgs {}

/// # Errors
/// The session can't be removed.
pub async fn run(_args: LogoutArgs, app: &App) -> Outcome {
    let service = app.settings.service()?;
    let was_logged_in = Sessions::new(&app.settings.env, service.as_str()).delete().await?;
    if app.ui.is_json() {
        app.ui.value(&json!({ "service": service, "was_logged_in": was_logged_in }))?;
    } else {
        app.ui.note(&if was_logged_in {
            format!("logged out of {service}")
        } else {
            format!("you were not logged in at {service}")
        });
    }
    if app.settings.env.token.is_some() {
        app.ui.warn("CKRV_TOKEN is still set, and goes on working");
    }
    Ok(Exit::OK)
}
