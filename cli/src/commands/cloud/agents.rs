//! `ckrv cloud agents`

use clap::Args;

use crate::App;
use crate::client::Client;
use crate::error::{Exit, Outcome};
use crate::text::{clean, table};

/// List the agents that the service offers, and the secrets that they want
#[derive(Debug, Args)]
pub struct AgentsArgs {}

/// # Errors
/// Not logged in; the service can't be reached.
pub async fn run(_args: AgentsArgs, app: &App) -> Outcome {
    let list = Client::new(&app.settings)?.agents().await?;
    if app.ui.is_json() {
        app.ui.value(&list)?;
        return Ok(Exit::OK);
    }
    let rows: Vec<Vec<String>> = list
        .agents
        .iter()
        .map(|agent| {
            let secrets: Vec<String> = agent
                .secrets
                .iter()
                .map(|secret| format!("{}{}", secret.slot, if secret.required { "" } else { " (optional)" }))
                .collect();
            [agent.name.clone(), agent.version.clone(), agent.display_name.clone(), secrets.join(", ")]
                .map(|cell| clean(&cell).into_owned())
                .to_vec()
        })
        .collect();
    for line in table(&["AGENT", "VERSION", "NAME", "SECRETS"], &rows) {
        app.ui.line(&line)?;
    }
    Ok(Exit::OK)
}
