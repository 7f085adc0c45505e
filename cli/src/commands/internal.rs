//! `ckrv internal`: what ckrv's own parts and its developers call. No interface.

mod job_pod;

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _, Subcommand};

use crate::App;
use crate::error::{CliError, Exit, Outcome};
use crate::logging::Log;

/// The shim that is copied into containers: static, for any image.
pub static SHIM: &[u8] = include_bytes!(env!("CKRV_SHIM_PATH"));

#[derive(Debug, Args)]
pub struct InternalArgs {
    #[command(subcommand)]
    pub command: Internal,
}

#[derive(Debug, Subcommand)]
pub enum Internal {
    /// Print docs/cli.md
    CliReference,
    /// Print docs/openapi.json
    Openapi,
    /// Print agents-wasm/prebuilt/agents.json
    AgentCatalog,
    /// Run one attempt of one job; the folder holds its task
    JobRunner {
        #[arg(long)]
        dir: PathBuf,
    },
    /// Run one attempt of one job as the program of a pod; variables tell which
    JobPod,
    /// Run an agent for a job runner at the other end of stdin and stdout
    Shim,
    /// Put the shim and the agent's folders into a folder that a pod's containers share
    ShimInstall { dir: PathBuf },
    /// Answer git's question for a password
    Askpass { prompt: String },
}

/// # Errors
/// As the part that is called.
pub async fn run(args: InternalArgs, app: &App) -> Outcome {
    match args.command {
        Internal::CliReference => app.ui.bytes(reference().as_bytes())?,
        Internal::Openapi => app.ui.bytes(openapi()?.as_bytes())?,
        Internal::AgentCatalog => app.ui.bytes(agent_catalog().await?.as_bytes())?,
        Internal::JobRunner { dir } => {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let log = Log::start(&app.settings.env, "info");
            let ran = ckrv_orchestrator::job::run(&dir, SHIM, crate::logging::link_span()).await;
            log.end().await;
            ran.map_err(|error| CliError::other("job_runner", "the attempt could not be run").source(error))?;
        }
        Internal::JobPod => return job_pod::run(app).await,
        // Runs before there is a runtime: see `main`.
        Internal::Shim => {}
        Internal::ShimInstall { dir } => {
            install_shim(&dir).map_err(|error| CliError::io(format!("the shim can't be put into {}", dir.display()), error))?;
        }
        Internal::Askpass { prompt } => {
            let mut out = Vec::new();
            ckrv_orchestrator::git::askpass(&prompt, &mut out).map_err(|error| CliError::io("no password", error))?;
            app.ui.bytes(&out)?;
        }
    }
    Ok(Exit::OK)
}

/// For any user that the pod's containers run as: it is the one that installs, too.
fn install_shim(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
    if SHIM.is_empty() {
        return Err(std::io::Error::other("this build has no shim for containers"));
    }
    for folder in ["workspace", "home", "context", "tmp"] {
        std::fs::DirBuilder::new().mode(0o700).recursive(true).create(dir.join(folder))?;
    }
    let path = dir.join("shim");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path)?;
    std::io::Write::write_all(&mut file, SHIM)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o555))
}

/// The HTTP contract of this build.
///
/// # Errors
/// None in practice: the document is made of plain types.
pub fn openapi() -> Result<String, CliError> {
    let text = ckrv_api::openapi().to_pretty_json().map_err(|error| CliError::other("openapi", error.to_string()))?;
    Ok(format!("{text}\n"))
}

/// What the built-in adapters say of themselves, for a server that has no WebAssembly in it.
async fn agent_catalog() -> Result<String, CliError> {
    use ckrv_api::AgentCatalog as _;
    let agents = crate::engine::catalog(None, std::collections::BTreeMap::new()).await?.agents();
    let text = serde_json::to_string_pretty(&ckrv_core::wire::AgentList { agents });
    Ok(format!("{}\n", text.map_err(|error| CliError::other("agents", error.to_string()))?))
}

/// The reference of the command line in Markdown, from the commands' own help.
#[must_use]
pub fn reference() -> String {
    let options = clap_markdown::MarkdownOptions::new().title("The command line".to_owned()).show_footer(false);
    let mut command = crate::args::Cli::command();
    // Global options reach the subcommands only then, and some of those name them as conflicts.
    command.build();
    let text = clap_markdown::help_markdown_command_custom(&command, &options);
    format!("{}\n", text.trim_end())
}
