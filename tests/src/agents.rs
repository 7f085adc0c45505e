//! Servers that run the real Claude Code and Gemini CLI, in containers or as processes, on a scripted model.

use std::path::Path;

use anyhow::Result;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::bench;
use crate::server::Setup;

/// A machine with two processors runs two agents at once; a third would only make all of them slow.
static AGENTS: Semaphore = Semaphore::const_new(2);

/// Held by a test for as long as it has an agent.
pub async fn turn() -> Result<SemaphorePermit<'static>> {
    Ok(AGENTS.acquire().await?)
}

/// Where agents run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In containers of the bench's engine, or in pods of the test cluster, from the image that the adapter itself asks for.
    Container,
    /// As processes, by `--unsandboxed`.
    Process,
}

/// A server whose agents reach the model at `model`. Repositories may be on this machine; `ca_file` is trusted when cloning.
pub fn setup(place: Place, model: &str, ca_file: Option<&Path>) -> Result<Setup> {
    let ca_file = ca_file.map(|path| format!("ca_file = '{}'\n", path.display())).unwrap_or_default();
    let mut text = format!("{ca_file}[policy]\nprivate_git_hosts = true\n");
    for upstream in ["api.anthropic.com:443", "generativelanguage.googleapis.com:443"] {
        text.push_str(&format!("[policy.routes.\"{upstream}\"]\nurl = '{model}'\n"));
    }
    let mut setup = Setup::default();
    match place {
        Place::Container if bench::in_cluster() => {}
        Place::Container => {
            // Without it the server would look for the machine's own engine.
            bench::engine()?;
        }
        Place::Process => {
            let (claude, gemini) = (bench::claude()?, bench::gemini()?);
            let commands = [
                ("claude:2.1.330", claude.display().to_string()),
                ("gemini:0.61.0", gemini.display().to_string()),
                ("script:1", "/bin/sh".to_owned()),
            ];
            for (image, program) in commands {
                text.push_str(&format!("[policy.local.\"localhost/ckrv/{image}\"]\nprogram = '{program}'\n"));
            }
            setup.args.push("--unsandboxed".to_owned());
        }
    }
    setup.config = text.parse()?;
    Ok(setup)
}

/// The slot in which this agent's key is stored.
pub fn slot(agent: &str) -> &'static str {
    if agent == "gemini" { "gemini-api-key" } else { "anthropic-api-key" }
}
