//! API, dispatcher, gateway and store in one process: what `ckrv serve` runs, and `ckrv run` without `--cloud` for one job.

mod dispatching;
pub mod keys;
mod metrics;
mod registry;
pub mod server_config;
mod webhooks;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ckrv_api::{AgentCatalog, ApiConfig, ApiState, OidcIssuer, OwnerCodes, SystemClock, TlsFiles};
use ckrv_core::id::UserId;
use ckrv_core::repo_url::RepoUrlPolicy;
use ckrv_core::wire::{AgentInfo, AgentSecret};
use ckrv_orchestrator::adapter::{AdapterError, AdapterHost, Limits, builtin, builtin_names};
use ckrv_orchestrator::clock;
use ckrv_orchestrator::dispatch::JobPods;
use ckrv_orchestrator::launch::Engine as ContainerEngine;
use ckrv_orchestrator::launch_choice::LauncherChoice;
use ckrv_orchestrator::settings::{Pace, Settings};
use ckrv_store::{Manager, Reference, Signals, StoreConfig, Stores};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::config::Env;
use crate::error::{CliError, Kind};
use server_config::ServerConfig;

/// Jobs that run at once in a cluster whose configuration doesn't say.
const CLUSTER_CAPACITY: usize = 100;

/// Which parts a server runs. They meet in the store, so they may be processes on several machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Everything in one process
    #[default]
    All,
    /// Only the HTTP API
    Api,
    /// Only what takes jobs from the queue and runs them
    Dispatcher,
}

/// What an engine is started with.
pub struct EngineOptions {
    pub role: Role,
    pub data: PathBuf,
    pub listen: SocketAddr,
    pub unsandboxed: bool,
    pub behind_proxy: bool,
    pub tls: Option<TlsFiles>,
    pub config: ServerConfig,
    /// Beside those of the configuration.
    pub operator_secrets: BTreeMap<String, SecretString>,
    /// Gets each one-time code.
    pub on_owner_code: Box<dyn Fn(SecretString) + Send + Sync>,
}

impl std::fmt::Debug for EngineOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineOptions").field("data", &self.data).field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// How clients come in.
struct Front {
    listen: SocketAddr,
    behind_proxy: bool,
    tls: Option<TlsFiles>,
}

/// A running engine.
pub struct Engine {
    pub stores: Stores,
    /// Absent where only jobs are run.
    pub api: Option<Api>,
    /// The launcher's name; absent where only the API is served.
    pub launcher: Option<&'static str>,
    shutdown: CancellationToken,
    drain: Drain,
    /// What is known of the cluster, where jobs run in one.
    pods: Option<Arc<JobPods>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    socket: Option<PathBuf>,
    counted: metrics::Counted,
    /// Held for as long as the data folder is ours.
    _lock: File,
}

/// How the part that runs jobs takes its leave.
#[derive(Debug, Default)]
struct Drain {
    /// Once cancelled, no job is claimed and `/readyz` says no.
    token: CancellationToken,
    time: Duration,
}

/// The API of a running engine.
#[derive(Clone, Debug)]
pub struct Api {
    pub url: Url,
    pub owner: UserId,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("api", &self.api).field("launcher", &self.launcher).finish_non_exhaustive()
    }
}

impl Engine {
    /// Claims no more jobs, and goes on for a while with those under way, so that job pods find another replica.
    pub async fn drain(&self) {
        self.drain.token.cancel();
        tokio::time::sleep(self.drain.time).await;
    }

    /// # Errors
    /// A data folder in use, an address that can't be listened on, no container engine and no `--unsandboxed`.
    pub async fn start(options: EngineOptions, env: &Env) -> Result<Self, CliError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        check_exposure(options.listen, options.unsandboxed, options.behind_proxy, options.tls.is_some())?;
        let launcher = match options.role {
            Role::Api => None,
            Role::All | Role::Dispatcher => Some(choose_launcher(options.unsandboxed, &options.config, env).await?),
        };
        let lock = take_data(&options.data)?;
        let key = keys::load(&options.data.join("server.key"))?;
        let stores = open(&options.data, &options.config.store).await?;
        for name in stores.jobs.set_aside().await.unwrap_or_default() {
            tracing::warn!(record = %name.name, reason = %name.reason, "a record can't be read and was set aside; everything else goes on");
        }
        // Whoever signs in there is a user, and agents would run as the one who started this.
        if options.unsandboxed && !options.config.oidc.is_empty() {
            return Err(CliError::new(Kind::Usage, "exposed", "--unsandboxed is refused where people sign in by [[oidc]]")
                .hint("start Docker or Podman and leave --unsandboxed out"));
        }
        if options.unsandboxed && stores.accounts.users().await.map_or(0, |users| users.len()) > 1 {
            return Err(CliError::new(
                Kind::Usage,
                "exposed",
                "--unsandboxed runs agents as you, so it is refused where there are several users",
            ));
        }
        let mut engine = Self {
            stores,
            api: None,
            launcher: launcher.as_ref().map(LauncherChoice::name),
            shutdown: CancellationToken::new(),
            drain: Drain::default(),
            pods: None,
            tasks: Vec::new(),
            socket: None,
            counted: metrics::Counted::default(),
            _lock: lock,
        };
        let EngineOptions { role, data, listen, behind_proxy, tls, config, operator_secrets, on_owner_code, .. } = options;
        if role != Role::Dispatcher {
            engine.serve_api(&data, Front { listen, behind_proxy, tls }, &config, &key, on_owner_code).await?;
        }
        if let Some(launcher) = launcher {
            engine.run_jobs(&data, &config, launcher, operator_secrets, &key).await?;
            engine.deliver_webhooks(&config, &key).await?;
        }
        Ok(engine)
    }

    async fn serve_api(
        &mut self,
        data: &Path,
        front: Front,
        config: &ServerConfig,
        key: &SecretString,
        on_owner_code: Box<dyn Fn(SecretString) + Send + Sync>,
    ) -> Result<(), CliError> {
        let Front { listen, behind_proxy, tls } = front;
        let owner = owner(&self.stores, config)
            .await
            .map_err(|error| CliError::other("store", "the owner's account can't be made").source(error))?;
        let listener = tokio::net::TcpListener::bind(listen).await.map_err(|error| {
            CliError::io(format!("can't listen on {listen}"), error)
                .hint("another service may have it; choose with `--listen 127.0.0.1:PORT`")
        })?;
        let address = listener.local_addr().map_err(|error| CliError::io("can't tell the address", error))?;
        let url = public_url(config, address, tls.is_some())?;
        let agents = Arc::new(catalog(Some(data.join("cache")), config.adapter_files()?).await?);
        let key = api_key(&self.stores, config, key).await?;
        let mut settings = api_config(config, &url, key, owner);
        settings.behind_proxy = behind_proxy;
        settings.oidc = oidc(&self.stores, config).await?;
        let owner_codes = Arc::new(OwnerCodes::new(on_owner_code));
        let mut api = ApiState::new(self.stores.clone(), settings, Arc::new(SystemClock), agents, owner_codes);
        api.link_span = crate::logging::link_span();
        api.metrics.register(&mut self.counted.registry);
        self.tasks.push(tokio::spawn(api_task(listener, api, tls, self.shutdown.clone())));
        self.api = Some(Api { url, owner });
        Ok(())
    }

    async fn deliver_webhooks(&mut self, config: &ServerConfig, key: &SecretString) -> Result<(), CliError> {
        let key = match api_key(&self.stores, config, key).await {
            Ok(key) => key,
            // A dispatcher of its own may not be allowed to read the API's key; its jobs run all the same.
            Err(error) => {
                tracing::error!(%error, "webhooks are not delivered from here: they could not be signed");
                return Ok(());
            }
        };
        let public_url = self.api.as_ref().map(|api| api.url.clone()).or_else(|| config.public_url.clone());
        let mut notifier = webhooks::notifier(self.stores.clone(), config, public_url, &key)?;
        if let Some(metrics) = &self.counted.jobs {
            notifier = notifier.counted(metrics.clone());
        }
        self.tasks.push(tokio::spawn(notifier.run(self.shutdown.clone())));
        Ok(())
    }

    /// Stops serving. Job runners go on; the next server on the same data finds them.
    pub async fn stop(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            let _ = tokio::time::timeout(Duration::from_secs(10), task).await;
        }
    }

    /// Stops an engine whose jobs have ended, for good: nothing of it is left outside its data folder.
    pub async fn end(self) {
        let socket = self.socket.clone();
        self.stop().await;
        if let Some(folder) = socket.as_deref().and_then(Path::parent) {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// The process launcher runs an agent as this user: nobody else may be able to make it do so.
fn check_exposure(listen: SocketAddr, unsandboxed: bool, behind_proxy: bool, tls: bool) -> Result<(), CliError> {
    let refuse = |message: String| CliError::new(Kind::Usage, "exposed", message);
    if unsandboxed && (behind_proxy || !listen.ip().is_loopback()) {
        return Err(refuse("--unsandboxed runs agents as you, so it is refused where others can reach the service".to_owned())
            .hint("listen on 127.0.0.1, or start Docker or Podman and leave --unsandboxed out"));
    }
    ckrv_api::check_listen(listen, tls, behind_proxy)
        .map_err(|message| refuse(message).hint("give --tls-cert and --tls-key, or --behind-proxy where a proxy does TLS"))
}

async fn choose_launcher(unsandboxed: bool, config: &ServerConfig, env: &Env) -> Result<LauncherChoice, CliError> {
    if let Some(cluster) = &config.kubernetes {
        if unsandboxed {
            return Err(CliError::new(Kind::Usage, "exposed", "--unsandboxed and [kubernetes] exclude each other"));
        }
        return Ok(LauncherChoice::Kubernetes(Box::new(cluster.clone())));
    }
    if unsandboxed {
        return Ok(LauncherChoice::Process { path: env.path.clone(), shim: None });
    }
    let runtime_dir = env.runtime_dir.as_ref().and_then(|folder| folder.to_str());
    match ContainerEngine::detect(env.container_host.as_deref(), runtime_dir).await {
        Some(engine) => Ok(LauncherChoice::Container { engine: format!("unix://{}", engine.socket) }),
        None => Err(CliError::other("no_container_engine", "no container engine answers")
            .hint("start Docker or Podman (`podman system service --time=0 unix:///run/podman/podman.sock`), or run agents as yourself with --unsandboxed")),
    }
}

/// One server for one data folder.
fn take_data(data: &Path) -> Result<File, CliError> {
    let failed = |error| CliError::io(format!("can't use the data folder {}", data.display()), error);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(failed)?;
    let lock =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(data.join("server.lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(CliError::other("data_in_use", format!("another ckrv serve uses {}", data.display()))
                .hint("stop it, or choose another folder with --data"))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

async fn open(data: &Path, config: &StoreConfig) -> Result<Stores, CliError> {
    let folder = match config {
        StoreConfig::Embedded { folder } => folder.clone().unwrap_or_else(|| data.to_owned()),
        StoreConfig::Aws(config) => {
            let opened = ckrv_store::open_aws(config, Signals::default()).await;
            return opened.map_err(|error| CliError::other("store", "the stores on AWS can't be used").source(error));
        }
    };
    let opened = tokio::task::spawn_blocking(move || ckrv_store::open_embedded(&folder)).await;
    opened
        .map_err(|error| CliError::other("store", error.to_string()))?
        .map_err(|error| CliError::other("store", format!("the data in {} can't be used: {error}", data.display())).source(error))
}

/// The one user, as the configuration names it.
async fn owner(stores: &Stores, config: &ServerConfig) -> Result<UserId, ckrv_store::StoreError> {
    let mut user = ckrv_api::ensure_owner(stores, config.owner.tier, clock::now()).await?;
    if user.email != config.owner.email || user.name != config.owner.name {
        user.email.clone_from(&config.owner.email);
        user.name.clone_from(&config.owner.name);
        stores.accounts.put_user(&user).await?;
    }
    Ok(user.id)
}

fn public_url(config: &ServerConfig, address: SocketAddr, tls: bool) -> Result<Url, CliError> {
    if let Some(url) = &config.public_url {
        return Ok(url.clone());
    }
    let scheme = if tls { "https" } else { "http" };
    Url::parse(&format!("{scheme}://{address}/")).map_err(|error| CliError::other("bad_url", error.to_string()))
}

/// Keys tokens and user codes: this server's own, or the one that several API servers share.
async fn api_key(stores: &Stores, config: &ServerConfig, own: &SecretString) -> Result<SecretString, CliError> {
    let Some(name) = &config.server_key_secret else { return Ok(keys::derive(own, "api")) };
    let reference = Reference { manager: Manager::SecretsManager, name: name.clone() };
    stores.references.resolve(&reference).await.map_err(|error| {
        CliError::other("server_key", format!("the secret `{name}` that `server_key_secret` names can't be read")).source(error)
    })
}

fn settings(
    data: &Path,
    config: &ServerConfig,
    launcher: LauncherChoice,
    operator_secrets: BTreeMap<String, SecretString>,
    key: &SecretString,
) -> Result<Settings, CliError> {
    let program = std::env::current_exe().map_err(|error| CliError::io("can't find this program", error))?;
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    Ok(Settings {
        // Of the data folder, since that is where a restarted server finds its job runners again.
        worker: match &config.worker {
            Some(worker) => worker.clone(),
            None => format!("worker-{}", &keys::derive(key, "worker").expose_secret()[..12]),
        },
        pace: match config.store {
            StoreConfig::Embedded { .. } => Pace::EMBEDDED,
            StoreConfig::Aws(_) => Pace::SHARED,
        },
        runs: data.join("runs"),
        socket: socket_folder(data)?.join("gateway"),
        program,
        policy: config.policy.clone(),
        // A path is one of this machine.
        allow_paths: config.kubernetes.is_none(),
        launcher,
        ca_file: config.ca_file.clone(),
        cache: Some(data.join("cache")),
        capacity: config.capacity.unwrap_or(if config.kubernetes.is_some() { CLUSTER_CAPACITY } else { processors * 2 }).max(1),
        max_running: config.max_running,
        upload_memory_mib: config.upload_memory_mib,
        checkpoints: config.checkpoints,
        operator_secrets,
        adapters: config.adapter_files()?,
        link_span: crate::logging::link_span(),
    })
}

/// A fixed short place for the gateway's socket: a socket's path is limited to some hundred bytes, a data folder's is not.
fn socket_folder(data: &Path) -> Result<PathBuf, CliError> {
    use sha2::Digest as _;
    let failed = |error| CliError::io("can't make a folder for the gateway's socket", error);
    let data = data.canonicalize().map_err(failed)?;
    let owner = std::fs::metadata(&data).map_err(failed)?.uid();
    let name = hex::encode(&sha2::Sha256::digest(data.as_os_str().as_encoded_bytes())[..8]);
    let folder = std::env::temp_dir().join(format!("ckrv-{owner}-{name}"));
    match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = std::fs::symlink_metadata(&folder).map_err(failed)?;
            // In a folder that all may write to, somebody else could have been first.
            if !found.is_dir() || found.uid() != owner || found.mode() & 0o077 != 0 {
                return Err(CliError::other("socket_folder", format!("{} is not ours", folder.display()))
                    .hint("remove it, or set TMPDIR to a folder of your own"));
            }
        }
        Err(error) => return Err(failed(error)),
    }
    Ok(folder)
}

async fn oidc(stores: &Stores, config: &ServerConfig) -> Result<Vec<OidcIssuer>, CliError> {
    let issuers = ckrv_api::oidc_issuers(&config.oidc, stores.references.as_ref()).await;
    issuers.map_err(|message| CliError::new(Kind::Usage, "bad_config", message).hint("docs/serve.md tells of [[oidc]]"))
}

fn api_config(config: &ServerConfig, url: &Url, key: SecretString, owner: UserId) -> ApiConfig {
    let mut api = ApiConfig::embedded(url.clone(), key, owner);
    api.repo_urls =
        RepoUrlPolicy { local_paths: config.kubernetes.is_none(), private_addresses: config.policy.private_git_hosts };
    api.allowed_hosts.extend(config.allowed_hosts.iter().cloned());
    api.retention_seconds = config.retention();
    api.device_interval_seconds = config.login_interval_seconds;
    api.access_ttl_seconds = config.access_token_seconds;
    api.refresh_grace_seconds = config.refresh_grace_seconds;
    api.new_user_tier = config.new_user_tier;
    api.tiers = config.tiers;
    api.notify = config.policy.notify;
    api.references = matches!(config.store, StoreConfig::Aws(_));
    api.default_agent.clone_from(&config.default_agent);
    api.default_timeout_seconds = config.policy.time.default_seconds;
    api.max_timeout_seconds = config.policy.time.max_seconds;
    if let Some(url) = &config.upgrade_url {
        api.upgrade_url.clone_from(url);
    }
    api
}

/// What the adapters say of themselves.
#[derive(Debug)]
pub struct Catalog(Vec<AgentInfo>);

impl AgentCatalog for Catalog {
    fn agents(&self) -> Vec<AgentInfo> {
        self.0.clone()
    }
}

/// Asks the adapters: the built-in ones, and the operator's own before them. `cache`: for what is compiled of them.
///
/// # Errors
/// An adapter that can't be used.
pub async fn catalog(cache: Option<PathBuf>, own: BTreeMap<String, PathBuf>) -> Result<Catalog, CliError> {
    let described = tokio::task::spawn_blocking(move || {
        let failed = |name: &str, error| CliError::other("adapters", format!("the adapter `{name}` can't be used")).source(error);
        let host = AdapterHost::new(Limits::default(), cache).map_err(|error| failed("host", error))?;
        let mut agents = BTreeMap::new();
        for (name, bytes) in
            builtin_names().filter_map(|name| Some((name, builtin(name)?))).filter(|(name, _)| !own.contains_key(*name))
        {
            agents.insert(name.to_owned(), describe(&host, name, bytes).map_err(|error| failed(name, error))?);
        }
        for (name, path) in &own {
            let bytes = std::fs::read(path).map_err(|error| CliError::io(format!("can't read {}", path.display()), error))?;
            agents.insert(name.clone(), describe(&host, name, &bytes).map_err(|error| failed(name, error))?);
        }
        Ok(Catalog(agents.into_values().collect()))
    });
    described.await.map_err(|error| CliError::other("adapters", error.to_string()))?
}

fn describe(host: &AdapterHost, name: &str, bytes: &[u8]) -> Result<AgentInfo, AdapterError> {
    let about = host.load(bytes)?.describe()?;
    let secrets = about.secrets.iter().map(|slot| AgentSecret {
        slot: slot.name.clone(),
        required: slot.required,
        description: slot.description.clone(),
    });
    Ok(AgentInfo {
        name: name.to_owned(),
        version: about.version,
        display_name: about.display_name,
        image: about.images.first().cloned(),
        secrets: secrets.collect(),
    })
}

async fn api_task(listener: tokio::net::TcpListener, api: ApiState, tls: Option<TlsFiles>, shutdown: CancellationToken) {
    if let Err(error) = ckrv_api::serve(listener, api, tls, shutdown.cancelled_owned()).await {
        tracing::error!(%error, "the API stopped");
    }
}
