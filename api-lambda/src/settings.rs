//! What of a server's configuration concerns the API: the same keys in `ckrv serve`'s file and in the function's `CKRV_CONFIG`.

use ckrv_core::policy::Policy;
use ckrv_core::repo_url::RepoUrlPolicy;
use ckrv_core::wire::{AgentInfo, Tier};
use serde::Deserialize;
use url::Url;

use crate::auth::oidc::OidcConfig;
use crate::config::{ApiConfig, Tiers};

/// Every key may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiSettings {
    /// Where clients reach the service.
    pub public_url: Option<Url>,
    /// Further names by which it may be called.
    pub allowed_hosts: Vec<String>,
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
    /// For specs that name no agent.
    pub default_agent: String,
    pub upgrade_url: Option<String>,
    pub tiers: Tiers,
    /// Of who signs in for the first time.
    pub new_user_tier: Tier,
    /// `[[oidc]]`: where people sign in.
    pub oidc: Vec<OidcConfig>,
    /// `[[agents]]`: the operator's own adapters at the dispatchers, as `GET /v1/agents` of a server with them tells of them. Nothing here
    /// could ask an adapter itself.
    pub agents: Vec<AgentInfo>,
    /// Whether jobs may name repositories by a path of the dispatchers' machine.
    pub local_repositories: bool,
    /// Of the policy the API needs how long jobs may take, where repositories may be and what webhooks may call; the rest is the
    /// dispatcher's.
    pub policy: Policy,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            public_url: None,
            allowed_hosts: Vec::new(),
            retention_days: 7,
            retention_seconds: None,
            login_interval_seconds: 5,
            access_token_seconds: 3600,
            refresh_grace_seconds: 30,
            default_agent: "claude".to_owned(),
            upgrade_url: None,
            tiers: Tiers::default(),
            new_user_tier: Tier::Free,
            oidc: Vec::new(),
            agents: Vec::new(),
            local_repositories: false,
            policy: Policy::default(),
        }
    }
}

impl ApiSettings {
    /// How long results and logs are kept, in seconds.
    #[must_use]
    pub fn retention(&self) -> u32 {
        self.retention_seconds.unwrap_or_else(|| self.retention_days.saturating_mul(86_400))
    }

    /// Puts these settings into a configuration; the identity providers are left to [`crate::oidc_issuers`], which fetches secrets.
    pub fn apply(&self, config: &mut ApiConfig) {
        config.allowed_hosts.extend(self.allowed_hosts.iter().cloned());
        config.retention_seconds = self.retention();
        config.device_interval_seconds = self.login_interval_seconds;
        config.access_ttl_seconds = self.access_token_seconds;
        config.refresh_grace_seconds = self.refresh_grace_seconds;
        config.default_agent.clone_from(&self.default_agent);
        config.default_timeout_seconds = self.policy.time.default_seconds;
        config.max_timeout_seconds = self.policy.time.max_seconds;
        config.repo_urls = RepoUrlPolicy {
            local_paths: config.repo_urls.local_paths || self.local_repositories,
            private_addresses: self.policy.private_git_hosts,
        };
        config.notify = self.policy.notify;
        config.tiers = self.tiers;
        config.new_user_tier = self.new_user_tier;
        if let Some(url) = &self.upgrade_url {
            config.upgrade_url.clone_from(url);
        }
    }
}
