//! Prepare: fetch the base branch into the job's own bare repository and pin its commit.

use ckrv_core::repo_url::{RepoUrlPolicy, Transport, parse_repo_url};

use super::{Access, Git, GitError, finish};
use crate::git::access::AccessError;

/// How much of the base branch's past an agent gets to see.
pub const HISTORY_DEPTH: u32 = 50;
const BASE_REF: &str = "refs/ckrv/base";

#[derive(Clone, Debug)]
pub struct CloneRequest {
    /// https, ssh, scp-like, or on the embedded default an absolute path.
    pub url: String,
    /// Branch or tag.
    pub base: String,
}

/// The commit that the job starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    pub sha: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    #[error("the repository has no branch or tag `{base}`{}", near_text(.near))]
    UnknownBase { base: String, near: Vec<String> },
    #[error("the repository is empty: it has no commit to start from")]
    Empty,
    #[error("the repository refused access: {detail}")]
    Refused { detail: String },
    #[error("the ssh host key of {host} is not known, or is not the one that is known")]
    UnknownHostKey { host: String },
    #[error("the repository answered with a redirect to another place, which is not followed")]
    Redirected,
    #[error("the repository can't be reached: {detail}")]
    Unreachable { detail: String },
    #[error("this kind of repository URL is not allowed here")]
    Forbidden,
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Git(#[from] GitError),
}

fn near_text(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; it has: {}", near.join(", ")) }
}

impl CloneError {
    /// Whether the same try may go well a little later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// What the job's owner can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::UnknownBase { .. } => "push the branch, or name another with `--base`",
            Self::Empty => "push a first commit",
            Self::Refused { .. } | Self::Access(_) => {
                "check the URL and the credential: `ckrv cloud credentials list`, then `--credential NAME`"
            }
            Self::UnknownHostKey { .. } => {
                "give the host's key with the credential: `ckrv cloud credentials add NAME --known-hosts FILE` (`ssh-keyscan HOST` prints it; compare it with what the host publishes)"
            }
            Self::Redirected => "use the URL that the repository redirects to",
            Self::Unreachable { .. } => "check the host's name and that the service may reach it, then `ckrv retry`",
            Self::Forbidden => "use an https or ssh URL",
            Self::Git(_) => "try `ckrv retry`; if it fails again, tell the service's operator",
        }
    }
}

/// Host, with its port where one is given, and whether it is reached over ssh. `None` for a path.
#[must_use]
pub fn host_of(url: &str) -> Option<(String, bool)> {
    // The API has held the URL against policy when the job was made.
    let repo = parse_repo_url(url, RepoUrlPolicy { local_paths: true, private_addresses: true }).ok()?;
    if repo.transport == Transport::File {
        return None;
    }
    let host = if repo.host.contains(':') { format!("[{}]", repo.host) } else { repo.host };
    let host = repo.port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
    Some((host, repo.transport == Transport::Ssh))
}

/// Fetches the base and pins its commit.
///
/// # Errors
/// See [`CloneError`]; each says what the job's owner can do.
pub async fn clone_base(git: &Git, access: &Access, request: &CloneRequest) -> Result<Base, CloneError> {
    git.init().await?;
    let url = address(request);
    let mut last = None;
    for kind in ["heads", "tags"] {
        let refspec = format!("+refs/{kind}/{}:{BASE_REF}", request.base);
        match fetch(git, access, &url, &refspec).await {
            Ok(()) => {
                let sha = git.line(["rev-parse", "--verify", "--quiet", &format!("{BASE_REF}^{{commit}}")]).await?;
                return Ok(Base { sha });
            }
            Err(CloneError::UnknownBase { .. }) => last = Some(kind),
            Err(error) => return Err(error),
        }
    }
    debug_assert!(last.is_some());
    Err(missing_base(git, access, &url, &request.base).await)
}

/// Fetches one more commit: the one that an earlier attempt began at, where the branch has gone on since.
///
/// # Errors
/// Servers need not give a commit that no branch is at.
pub async fn fetch_commit(git: &Git, access: &Access, request: &CloneRequest, sha: &str) -> Result<(), CloneError> {
    fetch(git, access, &address(request), &format!("+{sha}:{BASE_REF}")).await
}

fn address(request: &CloneRequest) -> String {
    if request.url.starts_with('/') { format!("file://{}", request.url) } else { request.url.clone() }
}

async fn fetch(git: &Git, access: &Access, url: &str, refspec: &str) -> Result<(), CloneError> {
    let depth = format!("--depth={HISTORY_DEPTH}");
    let mut args: Vec<&str> = Vec::new();
    for setting in access.settings() {
        args.extend(["-c", setting]);
    }
    args.extend(["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", &depth, "--", url, refspec]);
    let mut command = git.command(&args);
    access.apply(&mut command);
    let output = finish("fetch", command).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(classify(&String::from_utf8_lossy(&output.stderr), url))
}

/// Tells an empty repository from one that lacks the branch, and names what there is.
async fn missing_base(git: &Git, access: &Access, url: &str, base: &str) -> CloneError {
    let mut args: Vec<&str> = Vec::new();
    for setting in access.settings() {
        args.extend(["-c", setting]);
    }
    args.extend(["ls-remote", "--heads", "--", url]);
    let mut command = git.command(&args);
    access.apply(&mut command);
    let heads: Vec<String> = match finish("ls-remote", command).await {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.split_once("refs/heads/").map(|(_, name)| name.to_owned()))
            .collect(),
        _ => return CloneError::UnknownBase { base: base.to_owned(), near: Vec::new() },
    };
    if heads.is_empty() {
        return CloneError::Empty;
    }
    CloneError::UnknownBase { base: base.to_owned(), near: heads.into_iter().take(5).collect() }
}

/// Git tells its failures in words only; `LC_ALL=C` keeps those words the same everywhere.
fn classify(stderr: &str, url: &str) -> CloneError {
    let has = |needles: &[&str]| needles.iter().any(|needle| stderr.contains(needle));
    let detail = || {
        let line =
            stderr.lines().rfind(|line| line.starts_with("fatal:") || line.contains("error:")).or_else(|| stderr.lines().last());
        line.unwrap_or("no reason was given").trim_start_matches("fatal: ").chars().take(300).collect::<String>()
    };
    let host = || host_of(url).map_or_else(|| url.to_owned(), |(host, _)| host);
    if has(&["couldn't find remote ref", "Couldn't find remote ref"]) {
        return CloneError::UnknownBase { base: String::new(), near: Vec::new() };
    }
    if has(&["Host key verification failed", "REMOTE HOST IDENTIFICATION HAS CHANGED", "host key is known for"]) {
        return CloneError::UnknownHostKey { host: host() };
    }
    if has(&[
        "Authentication failed",
        "could not read Password",
        "could not read Username",
        "Permission denied",
        "Repository not found",
        "requested URL returned error: 40",
        "not found",
        "Access denied",
        "does not appear to be a git repository",
        "does not exist",
    ]) {
        return CloneError::Refused { detail: detail() };
    }
    if has(&["requested URL returned error: 30", "unable to update url base from redirection"]) {
        return CloneError::Redirected;
    }
    if has(&["transport '", "not allowed"]) {
        return CloneError::Forbidden;
    }
    if has(&[
        "Could not resolve host",
        "Failed to connect",
        "Connection refused",
        "Connection reset",
        "Connection timed out",
        "timed out",
        "early EOF",
        "requested URL returned error: 5",
        "Could not read from remote repository",
        "unexpected disconnect",
        "SSL",
        "server certificate",
    ]) {
        return CloneError::Unreachable { detail: detail() };
    }
    CloneError::Git(GitError::Failed { command: "fetch".to_owned(), code: None, stderr: detail() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_from_every_form_of_url() {
        assert_eq!(host_of("https://git.example.com/a/b.git"), Some(("git.example.com".to_owned(), false)));
        assert_eq!(host_of("https://git.example.com:8443/a"), Some(("git.example.com:8443".to_owned(), false)));
        assert_eq!(host_of("ssh://git@git.example.com:2222/a"), Some(("git.example.com:2222".to_owned(), true)));
        assert_eq!(host_of("git@git.example.com:a/b.git"), Some(("git.example.com".to_owned(), true)));
        assert_eq!(host_of("/srv/repo.git"), None);
    }

    #[test]
    fn what_git_says_is_told_apart() {
        let class = |text: &str| classify(text, "https://h.example/r");
        assert!(matches!(class("fatal: couldn't find remote ref refs/heads/x"), CloneError::UnknownBase { .. }));
        assert!(matches!(class("fatal: Authentication failed for 'https://h.example/r/'"), CloneError::Refused { .. }));
        assert!(matches!(
            class("No ED25519 host key is known for h and you have requested strict checking.\nHost key verification failed."),
            CloneError::UnknownHostKey { .. }
        ));
        assert!(matches!(
            class("fatal: unable to access 'https://h/': Could not resolve host: h"),
            CloneError::Unreachable { .. }
        ));
        assert!(matches!(class("fatal: transport 'file' not allowed"), CloneError::Forbidden));
    }
}
