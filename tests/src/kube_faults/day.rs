//! A server whose dispatchers and jobs ask the cluster's API through the proxy, and a user's jobs on it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{ApiProxy, Fault, On, When};
use crate::api::Api;
use crate::bench;
use crate::git::git;
use crate::repo::Repo;
use crate::scene::Scene;
use crate::server::Setup;
use crate::witness::{Told, Witness};

/// For one job among others on a slow node, with another attempt if need be.
const END: Duration = Duration::from_secs(400);

#[derive(Debug)]
pub struct Day {
    pub proxy: ApiProxy,
    pub scene: Scene,
    pub api: Api,
    repository: String,
}

impl Day {
    /// The rules hold from the dispatcher's first call on.
    pub async fn begin(config: toml::Table, rules: &[(On, When, Fault)]) -> Result<Self> {
        bench::always_in_cluster();
        let proxy = ApiProxy::start(bench::seed()).await?;
        for (on, when, fault) in rules {
            proxy.rule(*on, *when, *fault);
        }
        let setup = Setup { config, api_server: Some(proxy.url.clone()), ..Setup::default() };
        let scene = Scene::with(setup, Repo::small(&[("README.md", "# A project\n")])?).await?;
        let api = Api::login(&scene.server).await?;
        let repository = git(&scene.project, &["remote", "get-url", "origin"])?.trim().to_owned();
        Ok(Self { proxy, scene, api, repository })
    }

    pub async fn submit(&self, tag: &str) -> Result<Witness> {
        Witness::submit(&self.api, &self.repository, tag, 3, Duration::from_millis(10)).await
    }

    /// Waits for its end: it has succeeded, with everything that it should have told.
    pub async fn succeeded(&self, job: &Witness) -> Result<Told> {
        self.api.ended(&job.id, END).await.with_context(|| self.told())?;
        job.check(&self.api, &self.scene.server).await.with_context(|| self.told())
    }

    /// The same by its first attempt; and no pod of it is left.
    pub async fn succeeded_at_once(&self, job: &Witness) -> Result<()> {
        let told = self.succeeded(job).await?;
        ensure!(told.attempts == 1, "{} attempts: {}", told.attempts, self.told());
        self.scene.server.cluster()?.gone(&job.id).await.with_context(|| self.told())
    }

    /// What is to be read when something went wrong.
    pub fn told(&self) -> String {
        format!("{}\n{}", self.scene.server.log(), self.proxy.calls())
    }
}
