//! `ckrv serve`'s configuration file: read and checked here, once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ckrv_api::OidcConfig;
use ckrv_api::Tiers;
use ckrv_core::policy::Policy;
use ckrv_core::wire::Tier;
use ckrv_orchestrator::gateway::LARGEST_ARTIFACT;
use ckrv_orchestrator::launch_choice::Cluster;
use ckrv_orchestrator::settings::Checkpoints;
use ckrv_store::StoreConfig;
use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

use crate::error::{CliError, Kind};

/// The file; every key may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Where clients reach the service; by default where it listens.
    pub public_url: Option<Url>,
    /// Further names by which it may be called.
    pub allowed_hosts: Vec<String>,
    /// Where jobs and accounts are kept; by default in the data folder.
    pub store: StoreConfig,
    /// Names the Secrets Manager secret that keys tokens and user codes, where several API servers must agree on it. By default each server
    /// has its own key in its data folder.
    pub server_key_secret: Option<String>,
    /// Where Prometheus may fetch `/metrics`; by default nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Certificates to trust beside the system's when cloning, PEM.
    pub ca_file: Option<PathBuf>,
    /// Jobs that run at once; by default twice the processors.
    pub capacity: Option<usize>,
    /// Jobs of one user that run at once.
    pub max_running: u32,
    /// What the gateway holds in memory of uploads at once; who finds no room comes again.
    pub upload_memory_mib: u32,
    /// `[checkpoints]`: how often what an agent has changed is kept for the next attempt.
    pub checkpoints: Checkpoints,
    /// Days for which results and logs are kept.
    pub retention_days: u32,
    /// Seconds instead, for tests of the retention itself.
    pub retention_seconds: Option<u32>,
    /// Seconds between two polls of a device login.
    pub login_interval_seconds: u32,
    /// How long an access token is good.
    pub access_token_seconds: u32,
    /// For how long a refresh token that was just exchanged gives the same successors again.
    pub refresh_grace_seconds: u32,
    /// `[[oidc]]`: where people sign in, instead of the owner's one-time code.
    pub oidc: Vec<OidcConfig>,
    /// Of who signs in there for the first time.
    pub new_user_tier: Tier,
    /// For specs that name no agent.
    pub default_agent: String,
    pub upgrade_url: Option<String>,
    pub owner: Owner,
    /// `[tiers.NAME]`: jobs a month, and what happens beyond.
    pub tiers: Tiers,
    /// `[secrets.SLOT] file = "/path"`: the operator's own, for users who have none of that name.
    pub secrets: BTreeMap<String, SecretFile>,
    /// `[adapters.NAME] file = "/path/adapter.wasm"`: agents beside the built-in ones, or instead of one of that name.
    pub adapters: BTreeMap<String, AdapterFile>,
    pub policy: Policy,
    /// Names this installation in leases. Every replica of a dispatcher has the same, so that each looks after all their jobs. By default a
    /// data folder's own; with `[kubernetes]` it must be given.
    pub worker: Option<String>,
    /// Where this server runs, for `GET /v1/workers`; by default as `AWS_REGION` says, or where the store is.
    pub region: Option<String>,
    /// `[kubernetes]`: jobs run as pods of this cluster, not beside the server.
    pub kubernetes: Option<Cluster>,
    /// `[gateway]`: where job pods report.
    pub gateway: Option<GatewayConfig>,
}

/// With `[kubernetes]`: the gateway's listener. Its certificate may be replaced while it runs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    pub listen: SocketAddr,
    /// PEM files; `gateway_ca` of `[kubernetes]` names who signed it.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// After SIGTERM nothing more is claimed, but for so long job pods may report, until they have found another replica.
    #[serde(default = "drain_seconds")]
    pub drain_seconds: u64,
}

fn drain_seconds() -> u64 {
    15
}

/// The one user of the embedded default.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Owner {
    pub email: String,
    pub name: String,
    pub tier: Tier,
}

impl Default for Owner {
    fn default() -> Self {
        Self { email: "owner@localhost".to_owned(), name: "Owner".to_owned(), tier: Tier::Pro }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretFile {
    pub file: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterFile {
    pub file: PathBuf,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            public_url: None,
            allowed_hosts: Vec::new(),
            store: StoreConfig::Embedded { folder: None },
            server_key_secret: None,
            metrics_listen: None,
            ca_file: None,
            capacity: None,
            max_running: 8,
            upload_memory_mib: 128,
            checkpoints: Checkpoints::default(),
            retention_days: 7,
            retention_seconds: None,
            login_interval_seconds: 5,
            access_token_seconds: 3600,
            refresh_grace_seconds: 30,
            oidc: Vec::new(),
            new_user_tier: Tier::Free,
            default_agent: "claude".to_owned(),
            upgrade_url: None,
            owner: Owner::default(),
            tiers: Tiers::default(),
            secrets: BTreeMap::new(),
            adapters: BTreeMap::new(),
            policy: Policy::default(),
            worker: None,
            region: None,
            kubernetes: None,
            gateway: None,
        }
    }
}

impl ServerConfig {
    /// # Errors
    /// A file that can't be read, an unknown key, a value that makes no sense; file and line are named.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        let text =
            std::fs::read_to_string(path).map_err(|error| CliError::io(format!("can't read {}", path.display()), error))?;
        let bad = |message: String| CliError::new(Kind::Usage, "bad_config", message).hint("docs/serve.md lists every key");
        let mut config: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            bad(format!("{}:{line}: {}", path.display(), error.message()))
        })?;
        // A mapping of one's own is beside the built-in ones, not in place of all of them.
        for (image, command) in Policy::default().local {
            config.policy.local.entry(image).or_insert(command);
        }
        config.policy.check().map_err(|error| bad(format!("{}: {error}", path.display())))?;
        config.check_uploads().map_err(|error| bad(format!("{}: {error}", path.display())))?;
        config.check_cluster().map_err(|error| bad(format!("{}: {error}", path.display())))?;
        Ok(config)
    }

    fn check_uploads(&self) -> Result<(), String> {
        let least = LARGEST_ARTIFACT >> 20;
        if u64::from(self.upload_memory_mib) < least {
            return Err(format!("`upload_memory_mib` must be at least {least}: the largest artifact"));
        }
        self.checkpoints.check()
    }

    fn check_cluster(&self) -> Result<(), String> {
        match (&self.kubernetes, &self.gateway, &self.worker) {
            (Some(_), None, _) => return Err("[kubernetes] needs [gateway]: where job pods report".to_owned()),
            (None, Some(_), _) => return Err("[gateway] is for [kubernetes] only".to_owned()),
            (Some(_), _, None) => return Err("[kubernetes] needs `worker`, the same for each replica".to_owned()),
            _ => {}
        }
        if let Some(cluster) = &self.kubernetes
            && cluster.gateway_url.scheme() != "https"
        {
            return Err("`gateway_url` must begin with https://".to_owned());
        }
        if let Some(cluster) = &self.kubernetes
            && let Some(url) = &cluster.api_server
            && (url.scheme() != "https" || cluster.kubeconfig.is_some())
        {
            return Err("`api_server` must begin with https://, and is for dispatchers inside the cluster: without `kubeconfig`"
                .to_owned());
        }
        // It stands in labels of pods.
        let is_good = |worker: &str| {
            let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            worker.len() <= 63
                && worker.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
                && end(worker.chars().next())
                && end(worker.chars().last())
        };
        match &self.worker {
            Some(worker) if !is_good(worker) => {
                Err("`worker` must have letters, digits, dashes, underscores and dots, at most 63".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// How long results and logs are kept, in seconds.
    #[must_use]
    pub fn retention(&self) -> u32 {
        self.retention_seconds.unwrap_or_else(|| self.retention_days.saturating_mul(86_400))
    }

    /// The operator's own adapters, each with the whole path of its file: job runners have a folder of their own.
    ///
    /// # Errors
    /// A file that isn't there.
    pub fn adapter_files(&self) -> Result<BTreeMap<String, PathBuf>, CliError> {
        let find = |(name, adapter): (&String, &AdapterFile)| {
            let path = adapter.file.canonicalize();
            let failed = |error| CliError::io(format!("can't find {} of the adapter `{name}`", adapter.file.display()), error);
            Ok((name.clone(), path.map_err(failed)?))
        };
        self.adapters.iter().map(find).collect()
    }

    /// # Errors
    /// A file that can't be read or is empty.
    pub fn operator_secrets(&self) -> Result<BTreeMap<String, SecretString>, CliError> {
        let read = |(slot, secret): (&String, &SecretFile)| {
            let text = std::fs::read_to_string(&secret.file)
                .map_err(|error| CliError::io(format!("can't read {} for the secret `{slot}`", secret.file.display()), error))?;
            let value = text.trim_end_matches(['\r', '\n']);
            if value.is_empty() {
                return Err(CliError::new(Kind::Usage, "bad_config", format!("the file of the secret `{slot}` is empty")));
            }
            Ok((slot.clone(), SecretString::from(value.to_owned())))
        };
        self.secrets.iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_needs_a_gateway_and_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ServerConfig::read(&path).map_err(|error| format!("{error}"))
        };
        let cluster = "[kubernetes]\nnamespace = 'jobs'\nimage = 'i'\ngateway_url = 'https://gateway.ckrv:7421'\n";
        let gateway = "[gateway]\nlisten = '0.0.0.0:7421'\ncertificate = '/c'\nkey = '/k'\n";
        let refused = |text: &str, why: &str| {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(cluster, "[gateway]");
        refused(gateway, "only");
        refused(&format!("{cluster}{gateway}"), "`worker`");
        refused(&format!("worker = '-a'\n{cluster}{gateway}"), "letters");
        refused(&format!("worker = 'a'\n{}{gateway}", cluster.replace("https", "http")), "https");
        let with = |more: &str| format!("worker = 'a'\n{cluster}{more}\n{gateway}");
        refused(&with("api_server = 'http://10.0.0.1:6443'"), "api_server");
        refused(&with("api_server = 'https://10.0.0.1:6443'\nkubeconfig = '/k'"), "api_server");
        assert!(read(&with("api_server = 'https://10.0.0.1:6443'")).is_ok());
        let config = read(&with("")).unwrap();
        assert_eq!(config.kubernetes.unwrap().job_service_account, "ckrv-job");
    }

    #[test]
    fn a_local_command_of_ones_own_stands_beside_the_built_in_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        std::fs::write(&path, "[policy.local.\"example.com/tool:1\"]\nprogram = \"tool\"\n").unwrap();
        let local = ServerConfig::read(&path).unwrap().policy.local;
        assert_eq!(local["example.com/tool:1"].program, "tool");
        assert_eq!(local["localhost/ckrv/script:1"].program, "/bin/sh");
    }
}
