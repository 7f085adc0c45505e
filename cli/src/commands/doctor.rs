//! `ckrv doctor`

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::Args;
use owo_colors::OwoColorize as _;
use serde::Serialize;

use crate::App;
use crate::client::Client;
use crate::config::Env;
use crate::error::{Exit, Outcome};
use crate::git::{Git, here};
use crate::pull::require_version;
use crate::text::clean;
use crate::tokens::Sessions;

/// Check what ckrv needs on this machine: git, a container engine, the service, your login
///
/// Exit 1 if git is missing or too old. Without a container engine or a service only a part of ckrv can be used: a warning.
#[derive(Debug, Args)]
pub struct DoctorArgs {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    message: String,
}

/// # Errors
/// None but a stdout that can't be written; what is found is in the exit code.
pub async fn run(_args: DoctorArgs, app: &App) -> Outcome {
    let mut checks = vec![git()?, engine(&app.settings.env)];
    checks.extend(service(app).await);
    if app.ui.is_json() {
        app.ui.value(&serde_json::json!({ "checks": checks }))?;
    } else {
        for check in &checks {
            let mark = match check.verdict {
                Verdict::Ok => "ok".green().to_string(),
                Verdict::Warning => "warning".yellow().to_string(),
                Verdict::Failed => "failed".red().to_string(),
            };
            app.ui.line(&format!("{mark}: {}: {}", check.name, clean(&check.message)))?;
        }
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Failed);
    Ok(Exit(u8::from(failed)))
}

fn git() -> Result<Check, crate::error::CliError> {
    let found = Git::at(here()?).version().and_then(|version| require_version(version).map(|()| version));
    Ok(match found {
        Ok((major, minor)) => Check { name: "git", verdict: Verdict::Ok, message: format!("version {major}.{minor}") },
        Err(error) => Check { name: "git", verdict: Verdict::Failed, message: error.message },
    })
}

/// Whether somebody listens where Docker or Podman do.
fn engine(env: &Env) -> Check {
    let mut sockets: Vec<PathBuf> =
        env.container_host.iter().filter_map(|host| host.strip_prefix("unix://")).map(PathBuf::from).collect();
    sockets.extend(["/var/run/docker.sock", "/run/podman/podman.sock"].map(PathBuf::from));
    if let Some(folder) = &env.runtime_dir {
        sockets.extend([folder.join("docker.sock"), folder.join("podman/podman.sock")]);
    }
    let name = "container engine";
    match sockets.iter().find(|socket| UnixStream::connect(socket).is_ok()) {
        Some(socket) => Check { name, verdict: Verdict::Ok, message: format!("answers at {}", socket.display()) },
        None => Check {
            name,
            verdict: Verdict::Warning,
            message: "neither Docker nor Podman answers; jobs on this machine need one, or --unsandboxed".to_owned(),
        },
    }
}

async fn service(app: &App) -> Vec<Check> {
    let failed = |name, message| Check { name, verdict: Verdict::Warning, message };
    let client = match Client::new(&app.settings) {
        Ok(client) => client,
        Err(error) => return vec![Check { name: "service", verdict: Verdict::Failed, message: error.message }],
    };
    let reached = match client.health().await {
        Ok(()) => Check { name: "service", verdict: Verdict::Ok, message: format!("{} answers", client.service()) },
        Err(error) => return vec![failed("service", error.message), login(app, &client).await],
    };
    let parts = match client.down_parts().await {
        Ok(down) if down.is_empty() => None,
        Ok(down) => {
            Some(failed("service", format!("down there: {}; its operator finds why in its log", clean(&down.join(", ")))))
        }
        Err(error) => Some(failed("service", error.message)),
    };
    let login = match client.me().await {
        Ok(user) => Check { name: "login", verdict: Verdict::Ok, message: user.email },
        Err(error) => failed("login", error.message),
    };
    [Some(reached), parts, Some(login)].into_iter().flatten().collect()
}

/// What can be said without the service.
async fn login(app: &App, client: &Client) -> Check {
    let session = Sessions::new(&app.settings.env, client.service().as_str()).load().await;
    let (verdict, message) = match session {
        _ if app.settings.env.token.is_some() => (Verdict::Ok, "by CKRV_TOKEN"),
        Ok(Some(_)) => (Verdict::Ok, "a session is stored"),
        Ok(None) => (Verdict::Warning, "not logged in"),
        Err(_) => (Verdict::Warning, "the stored session can't be read"),
    };
    Check { name: "login", verdict, message: message.to_owned() }
}
