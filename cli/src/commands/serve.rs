//! `ckrv serve`

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ckrv_api::TlsFiles;
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use secrecy::ExposeSecret as _;

use crate::App;
use crate::engine::server_config::ServerConfig;
use crate::engine::{Engine, EngineOptions, Role};
use crate::error::{CliError, Exit, Outcome};
use crate::logging::Log;

/// Run a service of your own: API, queue, store and workers in one process
///
/// It prints where it listens and a one-time code; the code proves on the activation page that you sit at this machine. Agents run in
/// containers (Docker or Podman); with --unsandboxed as processes of yours, beside your files.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Which parts to run; several processes share the work where their store is shared
    #[arg(long, value_enum, default_value_t)]
    pub role: Role,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7420")]
    pub listen: SocketAddr,
    /// Where jobs, logs and secrets are kept [env: CKRV_DATA]
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// Configuration, TOML; by default server.toml in the data folder, where there is one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run agents as processes of yours, in no container
    #[arg(long)]
    pub unsandboxed: bool,
    /// A proxy before this service does TLS
    #[arg(long)]
    pub behind_proxy: bool,
    /// Certificate chain for TLS, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key for TLS, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Where Prometheus may fetch `/metrics`; not for the public
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
}

/// # Errors
/// The service can't be started.
pub async fn run(args: ServeArgs, app: &App) -> Outcome {
    let log = Log::start(&app.settings.env, "info");
    open_more_files();
    let data = args.data.unwrap_or_else(|| app.settings.env.data_dir.clone());
    let own = data.join("server.toml");
    let config = match args.config.or_else(|| own.exists().then_some(own)) {
        Some(path) => ServerConfig::read(&path)?,
        None => ServerConfig::default(),
    };
    let metrics = args.metrics_listen.or(config.metrics_listen);
    let ui = Arc::new(app.ui);
    let tls = args.tls_cert.zip(args.tls_key).map(|(cert, key)| TlsFiles { certificates: cert, key });
    let (codes, mut new_codes) = tokio::sync::mpsc::unbounded_channel();
    let on_owner_code = Box::new(move |code| {
        let _ = codes.send(code);
    });
    let options = EngineOptions {
        role: args.role,
        data: data.clone(),
        listen: args.listen,
        unsandboxed: args.unsandboxed,
        behind_proxy: args.behind_proxy,
        tls,
        config,
        operator_secrets: BTreeMap::new(),
        on_owner_code,
    };
    let mut engine = Engine::start(options, &app.settings.env).await?;
    let version = env!("CARGO_PKG_VERSION");
    match &engine.api {
        Some(api) => ui.line(&format!("ckrv {version} serves at {}", api.url.as_str().trim_end_matches('/')))?,
        None => ui.line(&format!("ckrv {version} takes jobs from the queue"))?,
    }
    match engine.launcher {
        Some(launcher) => ui.line(&format!("data in {}; agents run by the {launcher} launcher", data.display()))?,
        None => ui.line(&format!("data in {}; jobs are run elsewhere", data.display()))?,
    }
    if let Some(listen) = metrics {
        let address = engine.serve_metrics(listen).await?;
        ui.line(&format!("metrics at http://{address}/metrics"))?;
    }
    if engine.launcher == Some("process") {
        ui.warn("agents run as you, beside your files: only for repositories and agents that you trust");
    }
    let printing = tokio::spawn(async move {
        while let Some(code) = new_codes.recv().await {
            // Meant for the eyes at this terminal: it is the owner's proof.
            let _ = ui.line(&format!("one-time code: {}", code.expose_secret()));
        }
    });
    stopped().await.map_err(|error| CliError::io("can't wait for signals", error))?;
    app.ui.note("stopping; jobs under way go on, and the next start finds them");
    // Asked again, it goes at once.
    tokio::select! {
        () = engine.drain() => {}
        again = stopped() => again.map_err(|error| CliError::io("can't wait for signals", error))?,
    }
    engine.stop().await;
    printing.abort();
    log.end().await;
    Ok(Exit::OK)
}

async fn stopped() -> std::io::Result<()> {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted,
    }
}

/// Each job's runner keeps a connection or two, and many systems begin with 1,024 files for a process.
fn open_more_files() {
    const MOST: u64 = 65_536;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = MOST.min(hard);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
