//! What an operator decides.

use ckrv_core::Timestamp;
use ckrv_core::id::UserId;
use ckrv_core::repo_url::RepoUrlPolicy;
use ckrv_core::webhook::NotifyPolicy;
use ckrv_core::wire::Tier;
use ckrv_store::QuotaRule;
use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

use crate::auth::oidc::OidcIssuer;

/// What happens when a month's included jobs are used up.
/// In TOML `"blocked"`, `{ usd_per_job = 0.5 }`, or with a limit `{ up_to = 50, usd_per_job = 0.5 }`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "OverageText")]
pub enum Overage {
    Blocked,
    /// At most so many more, each at this price.
    UpTo {
        jobs: u32,
        usd_per_job: f64,
    },
    Unlimited {
        usd_per_job: f64,
    },
}

/// The highest price of one job that is taken for meant.
const MAX_USD_PER_JOB: f64 = 10_000.0;

#[derive(Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "`overage` is \"blocked\", { usd_per_job = PRICE } or { up_to = JOBS, usd_per_job = PRICE }"
)]
enum OverageText {
    Word(String),
    Priced { up_to: Option<u32>, usd_per_job: f64 },
}

impl TryFrom<OverageText> for Overage {
    type Error = String;

    fn try_from(text: OverageText) -> Result<Self, String> {
        match text {
            OverageText::Word(word) if word == "blocked" => Ok(Self::Blocked),
            OverageText::Word(word) => Err(format!("`{word}` is no overage: \"blocked\", or a table with `usd_per_job`")),
            OverageText::Priced { usd_per_job, .. } if !(0.0..=MAX_USD_PER_JOB).contains(&usd_per_job) => {
                Err(format!("`usd_per_job` must be 0 to {MAX_USD_PER_JOB}"))
            }
            OverageText::Priced { up_to: Some(0), .. } => Err("`up_to = 0` allows nothing: say overage = \"blocked\"".to_owned()),
            OverageText::Priced { up_to: Some(jobs), usd_per_job } => Ok(Self::UpTo { jobs, usd_per_job }),
            OverageText::Priced { up_to: None, usd_per_job } => Ok(Self::Unlimited { usd_per_job }),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierRule {
    /// Jobs a month.
    pub included: u32,
    pub overage: Overage,
}

impl TierRule {
    /// Included jobs and allowed overage; `None` is no limit.
    #[must_use]
    pub fn cap(&self) -> Option<u32> {
        match self.overage {
            Overage::Blocked => Some(self.included),
            Overage::UpTo { jobs, .. } => Some(self.included.saturating_add(jobs)),
            Overage::Unlimited { .. } => None,
        }
    }
}

/// `[tiers.NAME]`; a tier that is left out is the reference one.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tiers {
    pub free: TierRule,
    pub pro: TierRule,
    pub enterprise: TierRule,
}

impl Default for Tiers {
    /// The reference tiers of the HTTP contract.
    fn default() -> Self {
        Self {
            free: TierRule { included: 10, overage: Overage::Blocked },
            pro: TierRule { included: 100, overage: Overage::Unlimited { usd_per_job: 0.5 } },
            enterprise: TierRule { included: 1000, overage: Overage::Unlimited { usd_per_job: 0.25 } },
        }
    }
}

impl Tiers {
    #[must_use]
    pub fn rule(&self, tier: Tier) -> TierRule {
        match tier {
            Tier::Free => self.free,
            Tier::Pro => self.pro,
            Tier::Enterprise => self.enterprise,
        }
    }

    #[must_use]
    pub(crate) fn quota(&self, tier: Tier, now: Timestamp) -> QuotaRule {
        let (month, resets_at) = month_of(now);
        let rule = self.rule(tier);
        let overage_micro_usd = match rule.overage {
            Overage::Blocked => 0,
            Overage::UpTo { usd_per_job, .. } | Overage::Unlimited { usd_per_job } => micro_usd(usd_per_job),
        };
        QuotaRule { month, included: Some(rule.included), cap: rule.cap(), overage_micro_usd, resets_at }
    }
}

/// A price as whole millionths.
fn micro_usd(usd: f64) -> u64 {
    (usd.max(0.0) * 1e6).round() as u64
}

/// The month `yyyy-mm` (UTC) of a time, and the moment at which the next one begins.
pub(crate) fn month_of(now: Timestamp) -> (String, Timestamp) {
    let date = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    let month = format!("{:04}-{:02}", date.year(), date.month());
    let next = if date.month() == 12 { (date.year() + 1, 1) } else { (date.year(), date.month() + 1) };
    let resets_at = format!("{:04}-{:02}-01T00:00:00Z", next.0, next.1).parse().unwrap_or(Timestamp::MAX);
    (month, resets_at)
}

/// How a followed log is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowMode {
    /// The reply stays open: a server of our own.
    Open,
    /// A function is paid for as long as it answers, and so it gives what there is and lets its client come back. `streams`: a client that
    /// doesn't ask for that gets one open reply, up to the invocation's deadline.
    Lambda { streams: bool },
}

#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Where clients reach this service, for example `http://127.0.0.1:7850/`.
    pub public_url: Url,
    /// `host` (any port) or `host:port`; a request for any other host is refused, which stops DNS rebinding.
    pub allowed_hosts: Vec<String>,
    /// Keys the hashes of user codes, refresh successors and CSRF tokens. At least 32 random bytes, in any encoding; kept over restarts.
    pub hmac_key: SecretString,
    /// Whom the activation page logs in: the embedded default's one user.
    pub owner: UserId,
    pub tiers: Tiers,
    /// Told to who used up the quota.
    pub upgrade_url: String,
    /// `file:` and absolute paths as repositories, private addresses.
    pub repo_urls: RepoUrlPolicy,
    /// Whether secrets may refer to the cloud's own secrets manager: whether the dispatchers have one.
    pub references: bool,
    /// What webhooks may call.
    pub notify: NotifyPolicy,
    /// For specs and requests that name no agent.
    pub default_agent: String,
    pub default_timeout_seconds: u32,
    pub max_timeout_seconds: u32,
    /// How long results and logs are kept after a job's end.
    pub retention_seconds: u32,
    /// Between two polls of a device login.
    pub device_interval_seconds: u32,
    pub device_ttl_seconds: u32,
    pub device_logins_per_minute: u32,
    pub access_ttl_seconds: u32,
    pub refresh_ttl_seconds: u32,
    /// For how long a refresh token that was just exchanged gives the same successors again.
    pub refresh_grace_seconds: u32,
    /// Whether a proxy of the operator's stands before this server, whose `X-Forwarded-For` tells where a request came from.
    pub behind_proxy: bool,
    /// Where people sign in on the activation page; without any, the owner's one-time code is asked for.
    pub oidc: Vec<OidcIssuer>,
    /// Of who signs in for the first time.
    pub new_user_tier: Tier,
    /// Logs followed at once.
    pub max_followers: usize,
    pub follow: FollowMode,
}

impl ApiConfig {
    /// The embedded default: one owner, local repositories allowed, reached at `public_url` and by its loopback names.
    #[must_use]
    pub fn embedded(public_url: Url, hmac_key: SecretString, owner: UserId) -> Self {
        let mut allowed_hosts: Vec<String> = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).into();
        allowed_hosts.extend(public_url.host_str().map(str::to_owned));
        Self {
            upgrade_url: format!("{}/upgrade", public_url.as_str().trim_end_matches('/')),
            public_url,
            allowed_hosts,
            hmac_key,
            owner,
            tiers: Tiers::default(),
            repo_urls: RepoUrlPolicy { local_paths: true, private_addresses: true },
            references: true,
            notify: NotifyPolicy::default(),
            default_agent: "claude".to_owned(),
            default_timeout_seconds: 30 * 60,
            max_timeout_seconds: 24 * 3600,
            retention_seconds: 7 * 86_400,
            device_interval_seconds: 5,
            device_ttl_seconds: 600,
            device_logins_per_minute: 60,
            access_ttl_seconds: 3600,
            refresh_ttl_seconds: 90 * 86_400,
            refresh_grace_seconds: 30,
            behind_proxy: false,
            oidc: Vec::new(),
            new_user_tier: Tier::Free,
            max_followers: 1000,
            follow: FollowMode::Open,
        }
    }

    /// A service for many users, reached by the names that its operator gives it and by no other.
    #[must_use]
    pub fn hosted(public_url: Url, hmac_key: SecretString) -> Self {
        let allowed_hosts = public_url.host_str().map(str::to_owned).into_iter().collect();
        let nobody = UserId(uuid::Uuid::nil());
        Self {
            allowed_hosts,
            repo_urls: RepoUrlPolicy::default(),
            references: true,
            ..Self::embedded(public_url, hmac_key, nobody)
        }
    }

    /// `path` begins with a slash; the public URL may have a path of its own, for example a stage.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.public_url.as_str().trim_end_matches('/'))
    }

    pub(crate) fn is_https(&self) -> bool {
        self.public_url.scheme() == "https"
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
