//! This dispatcher among the workers of `GET /v1/workers`.

use std::sync::Arc;
use std::time::Duration;

use ckrv_core::wire::WorkerInfo;
use ckrv_orchestrator::clock;
use ckrv_orchestrator::dispatch::Runners;
use ckrv_orchestrator::settings::Settings;
use ckrv_store::{AccountStore, StoreConfig};
use tokio_util::sync::CancellationToken;

use super::server_config::ServerConfig;

/// A worker that wasn't seen for four times as long isn't listed.
const EVERY: Duration = Duration::from_secs(15);

pub(super) struct Worker {
    about: WorkerInfo,
    runners: Arc<dyn Runners>,
}

/// Where this runs: as the environment of most clouds says, else the store's region.
pub(super) fn region(config: &ServerConfig) -> Option<String> {
    let of_store = match &config.store {
        StoreConfig::Aws(store) => store.region.clone(),
        StoreConfig::Embedded { .. } => None,
    };
    config.region.clone().or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION")).or(of_store)
}

#[expect(clippy::disallowed_methods, reason = "what the platform says of this process, for its one line in a list")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Worker {
    pub(super) fn new(settings: &Settings, runners: Arc<dyn Runners>, region: Option<String>) -> Self {
        let now = clock::now();
        // Of a pod its name. The rest tells a restarted process from the one before.
        let host = variable("HOSTNAME");
        let nonce = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let about = WorkerInfo {
            name: settings.worker.clone(),
            instance: host.map_or_else(|| nonce.to_owned(), |host| format!("{host}-{nonce}")),
            region,
            launcher: settings.launcher.name().to_owned(),
            capacity: u32::try_from(settings.capacity).unwrap_or(u32::MAX),
            load: 0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: now,
            last_seen: now,
        };
        Self { about, runners }
    }

    /// Tells the store, now and again, until `shutdown`.
    pub(super) async fn show(self, accounts: Arc<dyn AccountStore>, shutdown: CancellationToken) {
        let telling = async {
            loop {
                let load = u32::try_from(self.runners.running().await).unwrap_or(u32::MAX);
                let seen = WorkerInfo { load, last_seen: clock::now(), ..self.about.clone() };
                if let Err(error) = accounts.put_worker(&seen).await {
                    tracing::debug!(error = ckrv_store::chain(&error), "this worker could not be noted");
                }
                tokio::time::sleep(EVERY).await;
            }
        };
        shutdown.run_until_cancelled(telling).await;
    }
}
