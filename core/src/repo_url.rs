//! Which repositories and branches may be named. Pure: a name that turns out to lead to a private address is the worker's to refuse.

use std::net::IpAddr;

use url::{Host, Url};

use crate::address::is_public;
use crate::wire::MAX_URL_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Https,
    Ssh,
    /// A folder of this machine; embedded default only.
    File,
}

/// A repository URL that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoUrl {
    pub transport: Transport,
    /// Lower case, IPv6 addresses without brackets. Empty for a folder.
    pub host: String,
    pub port: Option<u16>,
    /// As given; of a folder: its absolute path.
    pub path: String,
}

/// What a service allows beyond https and ssh to public hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepoUrlPolicy {
    /// `file:` and absolute paths.
    pub local_paths: bool,
    pub private_addresses: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepoUrlError {
    #[error("the repository's URL is empty")]
    Empty,
    #[error("the repository's URL is longer than {MAX_URL_BYTES} bytes")]
    TooLong,
    #[error("this is not a repository URL: {0}")]
    Malformed(&'static str),
    #[error("the repository's URL holds a user name or password")]
    UserInfo,
    #[error("`{0}` is not a way to a repository; use https or ssh")]
    Scheme(String),
    #[error("a repository on the service's own disk can't be used")]
    LocalPath,
    #[error("`{0}` is a private address")]
    Private(String),
}

impl RepoUrlError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::UserInfo => {
                "store the token with `ckrv cloud credentials add` and name it with `--credential`; take it out of the URL"
            }
            Self::LocalPath => "push the repository to a git server that the service can reach",
            Self::Private(_) => "the service's operator can allow private addresses by policy",
            Self::Scheme(scheme) if scheme == "http" => "plain http would send the credential in the clear; use the https URL",
            _ => "for example https://github.com/owner/name.git or git@github.com:owner/name.git",
        }
    }
}

/// Checks a repository URL: `https://`, `ssh://`, `user@host:path`, and where the policy allows it a local path.
///
/// # Errors
/// Why it was refused; never with the part of the URL that may be a secret.
pub fn parse_repo_url(text: &str, policy: RepoUrlPolicy) -> Result<RepoUrl, RepoUrlError> {
    if text.is_empty() {
        return Err(RepoUrlError::Empty);
    }
    if text.len() > MAX_URL_BYTES {
        return Err(RepoUrlError::TooLong);
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(RepoUrlError::Malformed("it holds spaces or control characters"));
    }
    if text.starts_with('-') {
        return Err(RepoUrlError::Malformed("it begins with a hyphen"));
    }
    // A URL parser takes a backslash for a slash where git takes it for part of a name: they would see different hosts.
    if text.contains('\\') {
        return Err(RepoUrlError::Malformed("it holds a backslash"));
    }
    if text.contains(":///") && !text.to_ascii_lowercase().starts_with("file:") {
        return Err(RepoUrlError::Malformed("it names no host"));
    }
    let repo = if let Some((scheme, _)) = text.split_once("://") {
        match scheme.to_ascii_lowercase().as_str() {
            "https" => https(text)?,
            "ssh" => ssh(text)?,
            "file" => file_url(text)?,
            other => return Err(RepoUrlError::Scheme(other.chars().take(20).collect())),
        }
    } else if text.starts_with('/') {
        RepoUrl { transport: Transport::File, host: String::new(), port: None, path: text.to_owned() }
    } else if text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("file:")) {
        return Err(if policy.local_paths { RepoUrlError::Malformed("write file:///path") } else { RepoUrlError::LocalPath });
    } else {
        scp_like(text)?
    };
    if repo.transport == Transport::File {
        return if policy.local_paths { Ok(repo) } else { Err(RepoUrlError::LocalPath) };
    }
    if !policy.private_addresses && host_is_private(&repo.host) {
        return Err(RepoUrlError::Private(repo.host));
    }
    Ok(repo)
}

fn https(text: &str) -> Result<RepoUrl, RepoUrlError> {
    let url = Url::parse(text).map_err(|_| RepoUrlError::Malformed("it can't be read as a URL"))?;
    if !url.username().is_empty() || url.password().is_some() || authority(text).contains('@') {
        return Err(RepoUrlError::UserInfo);
    }
    no_query(&url)?;
    let host = url.host_str().ok_or(RepoUrlError::Malformed("it names no host"))?;
    Ok(RepoUrl { transport: Transport::Https, host: normal_host(host)?, port: url.port(), path: some_path(url.path())? })
}

fn ssh(text: &str) -> Result<RepoUrl, RepoUrlError> {
    let url = Url::parse(text).map_err(|_| RepoUrlError::Malformed("it can't be read as a URL"))?;
    if url.password().is_some() || authority(text).split_once('@').is_some_and(|(user, _)| user.contains(':')) {
        return Err(RepoUrlError::UserInfo);
    }
    check_user(url.username())?;
    no_query(&url)?;
    let host = url.host_str().ok_or(RepoUrlError::Malformed("it names no host"))?;
    Ok(RepoUrl { transport: Transport::Ssh, host: normal_host(host)?, port: url.port(), path: some_path(url.path())? })
}

fn file_url(text: &str) -> Result<RepoUrl, RepoUrlError> {
    match text.get("file://".len()..) {
        Some(path) if path.starts_with('/') => {
            Ok(RepoUrl { transport: Transport::File, host: String::new(), port: None, path: path.to_owned() })
        }
        _ => Err(RepoUrlError::Malformed("write file:///path")),
    }
}

fn scp_like(text: &str) -> Result<RepoUrl, RepoUrlError> {
    let malformed = RepoUrlError::Malformed("it is neither a URL nor user@host:path");
    let (place, path) = match text.find(']') {
        // user@[::1]:path
        Some(bracket) if text.contains('[') => match text[bracket + 1..].strip_prefix(':') {
            Some(path) => (&text[..=bracket], path),
            None => return Err(malformed),
        },
        _ => text.split_once(':').ok_or(malformed.clone())?,
    };
    let (user, host) = place.split_once('@').unwrap_or(("", place));
    // `C:\repo` is a folder of another machine; `ext::sh` runs a command in git.
    if place.contains('/') || host.len() < 2 || path.starts_with([':', '-']) {
        return Err(malformed);
    }
    check_user(user)?;
    Ok(RepoUrl { transport: Transport::Ssh, host: normal_host(host)?, port: None, path: some_path(path)? })
}

fn authority(text: &str) -> &str {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or(rest)
}

fn check_user(user: &str) -> Result<(), RepoUrlError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if user.starts_with('-') || !user.chars().all(fine) {
        return Err(RepoUrlError::Malformed("its user name has characters that ssh would misread"));
    }
    Ok(())
}

fn no_query(url: &Url) -> Result<(), RepoUrlError> {
    if url.query().is_some() || url.fragment().is_some() {
        return Err(RepoUrlError::Malformed("it has a `?` or `#` part"));
    }
    Ok(())
}

fn some_path(path: &str) -> Result<String, RepoUrlError> {
    if path.trim_matches('/').is_empty() {
        return Err(RepoUrlError::Malformed("it names a host but no repository"));
    }
    Ok(path.to_owned())
}

/// One spelling for every host: `0x7f.1` is 127.0.0.1 in ssh URLs too.
fn normal_host(host: &str) -> Result<String, RepoUrlError> {
    if host.starts_with('-') {
        return Err(RepoUrlError::Malformed("its host begins with a hyphen"));
    }
    match Host::parse(host) {
        Ok(Host::Domain(name)) => Ok(name.trim_end_matches('.').to_owned())
            .and_then(|name| if name.is_empty() { Err(RepoUrlError::Malformed("it names no host")) } else { Ok(name) }),
        Ok(Host::Ipv4(ip)) => Ok(ip.to_string()),
        Ok(Host::Ipv6(ip)) => Ok(ip.to_string()),
        Err(_) => Err(RepoUrlError::Malformed("its host is not a host name")),
    }
}

/// Whether a host, as in [`RepoUrl::host`], is an address or a name that leads inward.
#[must_use]
pub fn host_is_private(host: &str) -> bool {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return !is_public(ip);
    }
    let inward = ["localhost", "local", "internal", "localdomain", "home.arpa"];
    inward.iter().any(|name| host == *name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')))
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a branch name: {0}")]
pub struct BranchError(pub &'static str);

/// Checks a branch name by the rules of `git check-ref-format --branch`, and at most 250 bytes.
///
/// # Errors
/// The rule that it breaks.
pub fn check_branch(name: &str) -> Result<(), BranchError> {
    let bad = |reason| Err(BranchError(reason));
    if name.is_empty() {
        return bad("it is empty");
    }
    if name.len() > 250 {
        return bad("it is longer than 250 bytes");
    }
    if name.starts_with('-') {
        return bad("it begins with a hyphen");
    }
    if name == "@" || name == "HEAD" {
        return bad("that name is git's own");
    }
    if name.bytes().any(|byte| byte < 0x20 || byte == 0x7f || b" ~^:?*[\\".contains(&byte)) {
        return bad("it holds a space, a control character, or one of ~ ^ : ? * [ \\");
    }
    if name.contains("..") || name.contains("@{") {
        return bad("it holds `..` or `@{`");
    }
    if name.ends_with('.') {
        return bad("it ends with a dot");
    }
    let bad_part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
    if name.split('/').any(bad_part) {
        return bad("a part between slashes is empty, begins with a dot, or ends with `.lock`");
    }
    Ok(())
}

#[cfg(test)]
#[path = "repo_url_tests.rs"]
mod tests;
