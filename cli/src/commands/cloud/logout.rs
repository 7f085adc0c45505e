//! `ckrv cloud logout`

use clap::Args;
use serde_json::json;

use crate::App;
use crate::client::Client;
use crate::error::{Exit, Outcome};
use crate::tokens::Sessions;

/// End the session, at the service and here
#[derive(Debug, Args)]
pub struct LogoutArgs {}

/// # Errors
/// The session can't be removed. One that the service could not be told of is forgotten here all the same.
pub async fn run(_args: LogoutArgs, app: &App) -> Outcome {
    let service = app.settings.service()?;
    let sessions = Sessions::new(&app.settings.env, service.as_str());
    // One that can't be read is no reason to keep it.
    let refresh = sessions.refresh_token().await.ok().flatten();
    let was_logged_in = sessions.delete().await?;
    let ended = match &refresh {
        Some(refresh) => match Client::new(&app.settings) {
            Ok(client) => client.revoke(refresh).await.is_ok(),
            Err(_) => false,
        },
        None => false,
    };
    if app.ui.is_json() {
        app.ui.value(&json!({ "service": service, "was_logged_in": was_logged_in, "ended_at_service": ended }))?;
    } else {
        app.ui.note(&if was_logged_in {
            format!("logged out of {service}")
        } else {
            format!("you were not logged in at {service}")
        });
    }
    if was_logged_in && !ended {
        app.ui.warn("the service could not be told: the login ends there by itself after some weeks");
    }
    if app.settings.env.token.is_some() {
        app.ui.warn("CKRV_TOKEN is still set, and goes on working");
    }
    Ok(Exit::OK)
}
