//! The part of an engine that runs jobs: dispatcher, gateway, and where job runners run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ckrv_orchestrator::clock;
use ckrv_orchestrator::dispatch::{Dispatcher, JobPods, LocalRunners, PodRunners, Runners, connect, housekeeping};
use ckrv_orchestrator::gateway::{GatewayServer, PodIdentity, TlsFiles, serve_tls, serve_unix};
use ckrv_orchestrator::launch_choice::{Cluster, LauncherChoice};
use ckrv_orchestrator::settings::Settings;
use ckrv_store::Stores;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::server_config::{GatewayConfig, ServerConfig};
use super::{Drain, Engine, keys, registry, settings};
use crate::error::{CliError, Kind};

impl Engine {
    pub(super) async fn run_jobs(
        &mut self,
        data: &Path,
        config: &ServerConfig,
        launcher: LauncherChoice,
        mut operator_secrets: BTreeMap<String, SecretString>,
        key: &SecretString,
    ) -> Result<(), CliError> {
        operator_secrets.extend(config.operator_secrets()?);
        let settings = Arc::new(settings(data, config, launcher, operator_secrets, key)?);
        let gateway = GatewayServer::new(self.stores.clone(), Arc::clone(&settings), keys::derive(key, "gateway"), clock::now);
        gateway.metrics().register(&mut self.counted.registry);
        self.counted.jobs = Some(gateway.metrics().clone());
        let runners: Arc<dyn Runners> = match (&settings.launcher, &config.gateway) {
            (LauncherChoice::Kubernetes(cluster), Some(listener)) => {
                self.enter_cluster(cluster, listener, &settings, &gateway).await?
            }
            (LauncherChoice::Kubernetes(_), None) => {
                return Err(CliError::new(Kind::Usage, "bad_config", "[kubernetes] needs [gateway]: where job pods report"));
            }
            _ => self.run_beside(&settings, &gateway)?,
        };
        let worker = registry::Worker::new(&settings, Arc::clone(&runners), registry::region(config));
        let dispatcher = Dispatcher::new(self.stores.clone(), Arc::clone(&settings), Arc::clone(&gateway), runners, clock::now);
        self.tasks.extend([
            tokio::spawn(dispatcher.run(self.drain.token.clone(), self.shutdown.clone())),
            tokio::spawn(housekeeping_task(self.stores.clone(), self.shutdown.clone())),
            tokio::spawn(worker.show(Arc::clone(&self.stores.accounts), self.shutdown.clone())),
        ]);
        Ok(())
    }

    /// Job runners as processes beside the server.
    fn run_beside(&mut self, settings: &Arc<Settings>, gateway: &Arc<GatewayServer>) -> Result<Arc<dyn Runners>, CliError> {
        let runners =
            LocalRunners::new(Arc::clone(settings)).map_err(|error| CliError::io("can't make the folder for runs", error))?;
        self.tasks.push(tokio::spawn(gateway_task(Arc::clone(gateway), settings.socket.clone(), self.shutdown.clone())));
        self.socket = Some(settings.socket.clone());
        Ok(Arc::new(runners))
    }

    /// Job runners as pods.
    async fn enter_cluster(
        &mut self,
        cluster: &Cluster,
        listener: &GatewayConfig,
        settings: &Settings,
        gateway: &Arc<GatewayServer>,
    ) -> Result<Arc<dyn Runners>, CliError> {
        let client = connect(cluster).await.map_err(|error| {
            CliError::other("cluster", "the cluster can't be used").source(error).hint(
                "in a pod its service account is used; elsewhere `kubeconfig` of [kubernetes], or KUBECONFIG, names the way",
            )
        })?;
        let pods = JobPods::new(client.clone(), &cluster.namespace, &settings.worker);
        let identity = PodIdentity::new(client, cluster, Arc::clone(&pods));
        let tcp = tokio::net::TcpListener::bind(listener.listen)
            .await
            .map_err(|error| CliError::io(format!("the gateway can't listen on {}", listener.listen), error))?;
        let files = TlsFiles { certificates: listener.certificate.clone(), key: listener.key.clone() };
        let jobs = Arc::clone(&self.stores.jobs);
        let runners = Arc::new(PodRunners::new(
            cluster.clone(),
            settings.worker.clone(),
            Arc::clone(&pods),
            jobs,
            gateway.metrics().clone(),
            clock::now,
        ));
        let serving = serve_tls(Arc::clone(gateway), tcp, files, identity, self.shutdown.clone().cancelled_owned());
        let (keeping, shutdown) = (Arc::clone(&runners), self.shutdown.clone());
        self.tasks.extend([
            tokio::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "the gateway can't be served; jobs can't report");
                }
            }),
            tokio::spawn(async move {
                shutdown.run_until_cancelled(keeping.keep()).await;
            }),
        ]);
        self.drain = Drain { token: CancellationToken::new(), time: Duration::from_secs(listener.drain_seconds) };
        self.pods = Some(pods);
        Ok(runners)
    }
}

async fn gateway_task(gateway: Arc<GatewayServer>, socket: PathBuf, shutdown: CancellationToken) {
    if let Err(error) = serve_unix(gateway, &socket, shutdown.cancelled_owned()).await {
        tracing::error!(%error, "the gateway can't listen; jobs can't report");
    }
}

async fn housekeeping_task(stores: Stores, shutdown: CancellationToken) {
    shutdown.run_until_cancelled(housekeeping(stores, clock::now)).await;
}
