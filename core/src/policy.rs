//! What the operator allows. An adapter asks, [`clamp`] grants: what runs is the request, within what the adapter's descriptor
//! promises, within this. Each rule has a test that states it.

mod clamp;
mod local;
mod name;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use url::Url;

pub use clamp::{Clamped, Denied, Granted, GrantedRoute, clamp, clamp_for};
pub use local::LocalCommand;
pub use name::{env_matches, is_private_name, parse_endpoint, repository_of};

use crate::plan::{EgressRule, Resources};
use crate::webhook::NotifyPolicy;

/// The operator's policy, as a TOML file gives it; every key may be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Exact image repositories, without tag: those of adapters and those that a spec may name.
    pub allowed_images: Vec<String>,
    /// `[images."SPEC_IMAGE:AGENT"]`: the image that has both the project's toolchain and the agent.
    pub images: BTreeMap<String, CombinedImage>,
    /// Names of variables that no adapter may set; `*` stands for anything at the beginning or the end. Case does not matter.
    pub denied_env: Vec<String>,
    pub max_resources: MaxResources,
    /// Files that a plan may bring.
    pub max_files: usize,
    /// Their bytes in all.
    pub max_file_bytes: usize,
    /// `host:port` that agents may reach besides their model APIs, if their adapter declares it.
    pub egress: Vec<String>,
    /// `host:port` of the model APIs that routes may lead to; those in `routes` are allowed too.
    pub upstreams: Vec<String>,
    /// `[routes."api.example.com:443"]`: where a model API is really reached, for example a company's gateway.
    pub routes: BTreeMap<String, RouteOverride>,
    /// Whether an agent may get a secret in its environment, where its adapter has no route for it.
    pub secrets_in_env: bool,
    /// `[local."IMAGE"]`: the command that stands for an image where agents run as processes of this machine.
    pub local: BTreeMap<String, LocalCommand>,
    pub time: TimeLimits,
    pub watchdog: WatchdogBounds,
    /// `host:port` that verification may reach.
    pub verify_hosts: Vec<String>,
    /// Whether repositories may be on hosts with private addresses.
    pub private_git_hosts: bool,
    /// What webhooks may call.
    pub notify: NotifyPolicy,
    /// Whether an agent is told the job's trace, in `TRACEPARENT`, so that its own telemetry can join it.
    pub trace_agents: bool,
}

/// An image made for one toolchain and one agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CombinedImage {
    pub image: String,
}

/// The most that one agent gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaxResources {
    pub cpu_millis: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
}

impl Default for MaxResources {
    fn default() -> Self {
        Self { cpu_millis: 4000, memory_mib: 8192, disk_mib: 20480 }
    }
}

impl From<MaxResources> for Resources {
    fn from(max: MaxResources) -> Self {
        Self { cpu_millis: max.cpu_millis, memory_mib: max.memory_mib, disk_mib: max.disk_mib }
    }
}

/// Another address for a model API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteOverride {
    /// `http` or `https`; a path is put before the request's own.
    pub url: Url,
}

/// A job's time, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeLimits {
    pub default_seconds: u32,
    pub max_seconds: u32,
}

impl Default for TimeLimits {
    fn default() -> Self {
        Self { default_seconds: 30 * 60, max_seconds: 6 * 3600 }
    }
}

/// How long an agent may be silent, and how long it may take to end, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchdogBounds {
    /// Less is raised to this: a busy machine is slow.
    pub min_seconds: u32,
    pub max_first_output_seconds: u32,
    pub max_idle_seconds: u32,
    pub max_grace_seconds: u32,
}

impl Default for WatchdogBounds {
    fn default() -> Self {
        // A job's deadline comes on top, so that silence alone need not be short.
        Self { min_seconds: 30, max_first_output_seconds: 6 * 3600, max_idle_seconds: 6 * 3600, max_grace_seconds: 60 }
    }
}

impl Default for Policy {
    fn default() -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            allowed_images: texts(&["localhost/ckrv/claude", "localhost/ckrv/gemini", "localhost/ckrv/script"]),
            images: BTreeMap::new(),
            denied_env: texts(&[
                "LD_*",
                "DYLD_*",
                "*_PROXY",
                "KUBERNETES_*",
                "CKRV_*",
                "PATH",
                "HOME",
                "NODE_OPTIONS",
                "BASH_ENV",
                "ENV",
            ]),
            max_resources: MaxResources::default(),
            max_files: 32,
            max_file_bytes: 1024 * 1024,
            egress: Vec::new(),
            upstreams: texts(&["api.anthropic.com:443", "generativelanguage.googleapis.com:443"]),
            routes: BTreeMap::new(),
            secrets_in_env: false,
            local: local::defaults(),
            time: TimeLimits::default(),
            watchdog: WatchdogBounds::default(),
            verify_hosts: Vec::new(),
            private_git_hosts: false,
            notify: NotifyPolicy::default(),
            trace_agents: true,
        }
    }
}

/// A policy that says something impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy's `{key}` is wrong: {why}")]
pub struct PolicyError {
    pub key: String,
    pub why: String,
}

impl Policy {
    /// Checks what the types cannot say. Called once, where the policy is read.
    ///
    /// # Errors
    /// Names the first key whose value makes no sense.
    pub fn check(&self) -> Result<(), PolicyError> {
        let wrong = |key: &str, why: String| Err(PolicyError { key: key.to_owned(), why });
        for (key, endpoints) in [("egress", &self.egress), ("upstreams", &self.upstreams), ("verify_hosts", &self.verify_hosts)] {
            if let Some(bad) = endpoints.iter().find(|text| parse_endpoint(text).is_none()) {
                return wrong(key, format!("`{bad}` is not an exact host and port, like `example.com:443`"));
            }
        }
        for (upstream, route) in &self.routes {
            if parse_endpoint(upstream).is_none() {
                return wrong("routes", format!("`{upstream}` is not an exact host and port"));
            }
            if !matches!(route.url.scheme(), "http" | "https") || route.url.host().is_none() {
                return wrong("routes", format!("`{}` is not an http or https address", route.url));
            }
            if !route.url.username().is_empty() || route.url.password().is_some() {
                return wrong("routes", "an address must not hold a user or a password".to_owned());
            }
        }
        for image in
            self.allowed_images.iter().chain(self.images.values().map(|combined| &combined.image)).chain(self.local.keys())
        {
            if repository_of(image).is_none() {
                return wrong("allowed_images", format!("`{image}` is not an image's name"));
            }
        }
        if self.time.default_seconds == 0 || self.time.default_seconds > self.time.max_seconds {
            return wrong("time", "the default must be at least 1 and at most the maximum".to_owned());
        }
        Ok(())
    }

    /// Whether an image may run at all: its repository is allowed, whatever its tag.
    ///
    /// # Errors
    /// Names the repository, and how to allow it.
    pub fn check_image(&self, image: &str) -> Result<(), Denied> {
        let Some(repository) = repository_of(image) else {
            return Err(Denied::new(
                format!("image `{image}`"),
                "this is not an image's name",
                "write it as REPOSITORY:TAG or REPOSITORY@DIGEST",
            ));
        };
        if self.allowed_images.iter().any(|allowed| allowed == repository) {
            return Ok(());
        }
        Err(Denied::new(
            format!("image `{image}`"),
            "its repository is not allowed",
            format!("add \"{repository}\" to `allowed_images` of the policy"),
        ))
    }

    /// A job's time in seconds, from what its owner asked for.
    ///
    /// # Errors
    /// Says the limit when it is more than policy allows, or nothing at all.
    pub fn timeout(&self, asked: Option<u32>) -> Result<u32, Denied> {
        match asked {
            None => Ok(self.time.default_seconds),
            Some(0) => Err(Denied::new("a timeout of 0 s", "a job needs time", "leave `timeout` out, or give it at least 1s")),
            Some(seconds) if seconds > self.time.max_seconds => Err(Denied::new(
                format!("a timeout of {seconds} s"),
                format!("the limit is {} s", self.time.max_seconds),
                "ask for less, or raise `time.max_seconds` of the policy",
            )),
            Some(seconds) => Ok(seconds),
        }
    }

    /// Where a model API is really reached.
    #[must_use]
    pub fn route_url(&self, upstream: &EgressRule) -> Option<Url> {
        let name = upstream.to_string();
        if let Some(route) = self.routes.get(&name) {
            return Some(route.url.clone());
        }
        if self.upstreams.contains(&name) { Url::parse(&format!("https://{name}")).ok() } else { None }
    }

    /// The hosts that verification may reach.
    #[must_use]
    pub fn verify_egress(&self) -> Vec<EgressRule> {
        self.verify_hosts.iter().filter_map(|text| parse_endpoint(text)).collect()
    }

    /// The command that stands for an image where agents run as processes.
    ///
    /// # Errors
    /// Says how to map an image that is not mapped.
    pub fn local_command(&self, image: &str) -> Result<&LocalCommand, Denied> {
        self.local.get(image).ok_or_else(|| {
            Denied::new(
                format!("image `{image}` without containers"),
                "no local command stands for it",
                format!("use the container launcher, or add [local.\"{image}\"] to the policy"),
            )
        })
    }
}

#[cfg(test)]
mod tests;
