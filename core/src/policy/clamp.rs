//! From what an adapter asks for to what runs.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use url::Url;

use super::Policy;
use super::name::{env_matches, is_dns_name, is_env_name, is_inner_path, is_private_name, repository_of};
use crate::plan::{ContainerRequest, Descriptor, EgressRule, ModelRoute, Resources};

/// Longest command line with its arguments, in bytes; Linux takes 128 KiB a word and 2 MiB in all.
const MAX_COMMAND: usize = 1 << 20;
/// Longest environment of an adapter's, in bytes.
const MAX_ENV: usize = 128 << 10;
/// Longest input, in bytes.
const MAX_STDIN: usize = 4 << 20;

/// Something that was asked for and granted otherwise; for the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clamped {
    pub what: String,
    pub requested: String,
    pub granted: String,
}

impl fmt::Display for Clamped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: asked for {}, granted {}", self.what, self.requested, self.granted)
    }
}

/// Something that policy denies: the run does not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("policy denies {what}: {reason}")]
pub struct Denied {
    pub what: String,
    pub reason: String,
    /// What somebody can do about it.
    pub hint: String,
}

impl Denied {
    pub(super) fn new(what: impl Into<String>, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), reason: reason.into(), hint: hint.into() }
    }

    /// What the adapter itself has to put right.
    fn adapter(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(what, reason, "this is for the adapter's author to put right")
    }
}

/// A model route with the address that it really leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedRoute {
    pub route: ModelRoute,
    /// `http` or `https`; a path is put before the request's own.
    pub url: Url,
}

/// A run as it will be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Granted {
    /// The request within its bounds; its routes are those of `routes`.
    pub request: ContainerRequest,
    pub routes: Vec<GrantedRoute>,
    pub clamped: Vec<Clamped>,
}

/// Grants a request that runs in the adapter's own image.
///
/// # Errors
/// Names the first thing that is denied.
pub fn clamp(request: &ContainerRequest, descriptor: &Descriptor, policy: &Policy) -> Result<Granted, Denied> {
    clamp_for(request, descriptor, policy, None)
}

/// Grants a request. Where the spec names an image, the agent runs in the one that policy says has both, or in the spec's own
/// where the agent is part of any image.
///
/// # Errors
/// Names the first thing that is denied.
pub fn clamp_for(
    request: &ContainerRequest,
    descriptor: &Descriptor,
    policy: &Policy,
    spec_image: Option<&str>,
) -> Result<Granted, Denied> {
    let mut granted = request.clone();
    let mut clamped = Vec::new();
    granted.image = image(request, descriptor, policy, spec_image)?;
    command(request)?;
    env(request, policy)?;
    files(request, policy)?;
    let routes = routes(request, descriptor, policy)?;
    granted.secrets = secrets(request, descriptor, policy, &mut clamped)?;
    granted.egress = egress(request, descriptor, policy, &mut clamped)?;
    granted.resources = resources(request.resources, descriptor.max_resources, policy.max_resources.into(), &mut clamped);
    silence(&mut granted, policy, &mut clamped);
    Ok(Granted { request: granted, routes, clamped })
}

fn image(
    request: &ContainerRequest,
    descriptor: &Descriptor,
    policy: &Policy,
    spec_image: Option<&str>,
) -> Result<String, Denied> {
    let what = || format!("image `{}`", request.image);
    let repository = repository_of(&request.image).ok_or_else(|| Denied::adapter(what(), "this is not an image's name"))?;
    if !descriptor.images.iter().any(|declared| declared == repository) {
        return Err(Denied::adapter(what(), "the adapter does not declare its repository"));
    }
    let Some(wanted) = spec_image else {
        policy.check_image(&request.image)?;
        return Ok(request.image.clone());
    };
    if let Some(combined) = policy.images.get(&format!("{wanted}:{}", descriptor.id)) {
        // The operator wrote this entry: that allows it.
        return Ok(combined.image.clone());
    }
    // The hint only picks between two of the user's images; policy still has the word.
    if descriptor.extra.get("any-image").is_some_and(|value| value == "true") {
        policy.check_image(wanted)?;
        return Ok(wanted.to_owned());
    }
    Err(Denied::new(
        format!("image `{wanted}` for {}", descriptor.id),
        "no image is known that has both",
        format!("add [images.\"{wanted}:{}\"] to the policy, or leave `image` out of the spec", descriptor.id),
    ))
}

fn command(request: &ContainerRequest) -> Result<(), Denied> {
    let mut words = request.command.iter().chain(&request.args);
    if request.command.first().is_none_or(String::is_empty) {
        return Err(Denied::adapter("an empty command", "there is nothing to run"));
    }
    if words.clone().map(|word| word.len() + 1).sum::<usize>() > MAX_COMMAND {
        return Err(Denied::adapter("the command", format!("it is longer than {MAX_COMMAND} bytes")));
    }
    if words.any(|word| word.contains('\0')) {
        return Err(Denied::adapter("the command", "it has a NUL byte"));
    }
    if request.stdin.as_ref().is_some_and(|stdin| stdin.len() > MAX_STDIN) {
        return Err(Denied::adapter("the input", format!("it is longer than {MAX_STDIN} bytes")));
    }
    Ok(())
}

/// Every name that ends up in the agent's environment, from whatever part of the plan.
fn env(request: &ContainerRequest, policy: &Policy) -> Result<(), Denied> {
    let routes = request.routes.iter().flat_map(|route| std::iter::once(&route.base_url_env).chain(&route.placeholder_env));
    let hosts: Vec<&String> = routes.chain(request.secrets.iter().map(|secret| &secret.env)).collect();
    for name in request.env.keys().chain(hosts.iter().copied()) {
        let what = || format!("variable `{}`", name.escape_default());
        if !is_env_name(name) {
            return Err(Denied::adapter(what(), "this is not a variable's name"));
        }
        if let Some(pattern) = policy.denied_env.iter().find(|pattern| env_matches(pattern, name)) {
            return Err(Denied::new(what(), format!("`{pattern}` belongs to the host"), "the adapter has to do without it"));
        }
    }
    let mut set = BTreeSet::new();
    if let Some(name) = hosts.iter().find(|name| request.env.contains_key(**name) || !set.insert(**name)) {
        return Err(Denied::adapter(format!("variable `{name}`"), "a route or a secret sets it already"));
    }
    if request.env.values().any(|value| value.contains('\0')) {
        return Err(Denied::adapter("the environment", "it has a NUL byte"));
    }
    if request.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>() > MAX_ENV {
        return Err(Denied::adapter("the environment", format!("it is longer than {MAX_ENV} bytes")));
    }
    Ok(())
}

fn files(request: &ContainerRequest, policy: &Policy) -> Result<(), Denied> {
    if request.files.len() > policy.max_files {
        return Err(Denied::new(
            format!("{} files", request.files.len()),
            format!("a plan brings at most {}", policy.max_files),
            "raise `max_files` of the policy if you trust the adapter",
        ));
    }
    let bytes: usize = request.files.iter().map(|file| file.content.len()).sum();
    if bytes > policy.max_file_bytes {
        return Err(Denied::new(
            format!("files of {bytes} bytes"),
            format!("a plan brings at most {}", policy.max_file_bytes),
            "raise `max_file_bytes` of the policy if you trust the adapter",
        ));
    }
    let mut seen = BTreeSet::new();
    for file in &request.files {
        let what = || format!("file `{}`", file.path.escape_default());
        if !is_inner_path(&file.path) {
            return Err(Denied::adapter(what(), "its path must be relative and without `..`"));
        }
        if !seen.insert((file.place == crate::plan::Place::Home, &file.path)) {
            return Err(Denied::adapter(what(), "the plan brings it twice"));
        }
    }
    Ok(())
}

fn routes(request: &ContainerRequest, descriptor: &Descriptor, policy: &Policy) -> Result<Vec<GrantedRoute>, Denied> {
    let grant = |route: &ModelRoute| {
        let what = || format!("a route to `{}`", route.upstream);
        if !descriptor.routes.contains(route) {
            return Err(Denied::adapter(what(), "the adapter does not declare it"));
        }
        if !descriptor.secrets.iter().any(|slot| slot.name == route.slot) {
            return Err(Denied::adapter(what(), format!("the adapter does not declare its secret `{}`", route.slot)));
        }
        check_host(&route.upstream)?;
        let url = policy.route_url(&route.upstream).ok_or_else(|| {
            Denied::new(
                what(),
                "it is not an allowed model API",
                format!("add \"{}\" to `upstreams` of the policy", route.upstream),
            )
        })?;
        Ok(GrantedRoute { route: route.clone(), url })
    };
    request.routes.iter().map(grant).collect()
}

fn secrets(
    request: &ContainerRequest,
    descriptor: &Descriptor,
    policy: &Policy,
    clamped: &mut Vec<Clamped>,
) -> Result<Vec<crate::plan::SecretRef>, Denied> {
    let mut granted = Vec::new();
    for secret in &request.secrets {
        if !descriptor.secrets.iter().any(|slot| slot.name == secret.slot) {
            return Err(Denied::adapter(format!("secret `{}`", secret.slot.escape_default()), "the adapter does not declare it"));
        }
        if policy.secrets_in_env {
            granted.push(secret.clone());
        } else {
            let what = format!("secret `{}` in the environment", secret.slot);
            clamped.push(Clamped { what, requested: secret.env.clone(), granted: "nothing".to_owned() });
        }
    }
    Ok(granted)
}

fn egress(
    request: &ContainerRequest,
    descriptor: &Descriptor,
    policy: &Policy,
    clamped: &mut Vec<Clamped>,
) -> Result<Vec<EgressRule>, Denied> {
    let mut granted = Vec::new();
    for rule in &request.egress {
        check_host(rule)?;
        if !descriptor.egress.contains(rule) {
            return Err(Denied::adapter(format!("host `{rule}`"), "the adapter does not declare it"));
        }
        if policy.egress.contains(&rule.to_string()) {
            granted.push(rule.clone());
        } else {
            clamped.push(Clamped { what: "host".to_owned(), requested: rule.to_string(), granted: "nothing".to_owned() });
        }
    }
    Ok(granted)
}

/// No operator's list makes an address or a private name right for an adapter to ask for.
fn check_host(rule: &EgressRule) -> Result<(), Denied> {
    let what = || format!("host `{}:{}`", rule.host.escape_default(), rule.port);
    if !is_dns_name(&rule.host) || rule.port == 0 {
        return Err(Denied::adapter(what(), "only an exact DNS name and a port may be asked for"));
    }
    if is_private_name(&rule.host) {
        return Err(Denied::adapter(what(), "private names and a cloud's own services are never reached"));
    }
    Ok(())
}

fn resources(asked: Resources, declared: Resources, allowed: Resources, clamped: &mut Vec<Clamped>) -> Resources {
    let mut least = |what: &str, unit: &str, asked: u32, declared: u32, allowed: u32| {
        let granted = asked.min(declared).min(allowed);
        if granted != asked {
            clamped.push(Clamped {
                what: what.to_owned(),
                requested: format!("{asked} {unit}"),
                granted: format!("{granted} {unit}"),
            });
        }
        granted
    };
    Resources {
        cpu_millis: least("processors", "thousandths", asked.cpu_millis, declared.cpu_millis, allowed.cpu_millis),
        memory_mib: least("memory", "MiB", asked.memory_mib, declared.memory_mib, allowed.memory_mib),
        disk_mib: least("disk", "MiB", asked.disk_mib, declared.disk_mib, allowed.disk_mib),
    }
}

fn silence(granted: &mut ContainerRequest, policy: &Policy, clamped: &mut Vec<Clamped>) {
    let bounds = policy.watchdog;
    let mut within = |what: &str, seconds: &mut u32, least: u32, most: u32| {
        let kept = (*seconds).max(least).min(most);
        if kept != *seconds {
            clamped.push(Clamped { what: what.to_owned(), requested: format!("{seconds} s"), granted: format!("{kept} s") });
            *seconds = kept;
        }
    };
    let watchdog = &mut granted.watchdog;
    within(
        "time until the first output",
        &mut watchdog.first_output_seconds,
        bounds.min_seconds,
        bounds.max_first_output_seconds,
    );
    within("time without output", &mut watchdog.idle_seconds, bounds.min_seconds, bounds.max_idle_seconds);
    within("time to end", &mut granted.stop.grace_seconds, 0, bounds.max_grace_seconds);
}
