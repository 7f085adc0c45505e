//! Prepare: clone, pin the base commit, name the feature branch.

use ckrv_core::address::is_public;
use ckrv_core::job::{Facts, Outcome, OutcomeClass};
use ckrv_core::repo_url::host_is_private;
use secrecy::ExposeSecret;

use super::failure::Failure;
use super::{Context, checkpoint};
use crate::git::{Access, CloneError, CloneRequest, Git, clone_base, fetch_commit, host_of};

/// The job's own repository, with the commit that it starts from.
pub struct Prepared {
    pub git: Git,
    pub base: String,
    pub branch: String,
    /// The base with what an interrupted attempt had changed.
    pub resumed: Option<String>,
}

/// What a run starts from.
#[derive(Clone, Debug)]
pub struct Start {
    /// Whose files are put in place, and what changes are told from.
    pub tree: String,
    /// Where the agent's own repository is.
    pub head: String,
}

impl Start {
    /// Of a commit, with nothing changed.
    pub fn at(commit: &str) -> Self {
        Self { tree: commit.to_owned(), head: commit.to_owned() }
    }

    /// The earlier run's result, else what an interrupted attempt left, else the base.
    pub fn of(prepared: &Prepared, facts: &Facts) -> Self {
        match (&facts.head_sha, &prepared.resumed) {
            (Some(head), _) => Self::at(head),
            (None, Some(tree)) => Self { tree: tree.clone(), head: prepared.base.clone() },
            (None, None) => Self::at(&prepared.base),
        }
    }
}

/// Tries for a repository that can't be reached.
const TRIES: u32 = 3;

pub async fn prepare(context: &Context, facts: &mut Facts) -> Result<Prepared, Failure> {
    let request = &context.view.job.request;
    let credential = context.gateway.credential().await?;
    if let Some(credential) = &credential {
        context.log.hide(credential.value.expose_secret());
    }
    let git = Git::new(context.dir.join("repo.git"), context.view.allow_paths, context.view.ca_file.clone());
    let host = host_of(&request.git_repo_url);
    if let Some((host, _)) = &host {
        check_host(context, host).await?;
    }
    let access = match &host {
        Some((host, is_ssh)) => Access::prepare(*is_ssh, host, credential.as_ref(), context.sockets.path(), &context.program)
            .await
            .map_err(CloneError::from)?,
        None => Access::default(),
    };
    let left = checkpoint::fetch(context).await;
    let wanted = CloneRequest { url: request.git_repo_url.clone(), base: request.git_base_branch.clone() };
    let mut tries = 1;
    let mut base = loop {
        match clone_base(&git, &access, &wanted).await {
            Ok(base) => break base,
            Err(error) if error.is_passing() && tries < TRIES => {
                context.log.warn("git", format!("{error}; trying again"));
                tokio::time::sleep(std::time::Duration::from_secs(2 * u64::from(tries))).await;
                tries += 1;
            }
            Err(error) => return Err(error.into()),
        }
    };
    if let Some(left) = left.as_ref().filter(|left| left.base != base.sha) {
        match fetch_commit(&git, &access, &wanted, &left.base).await {
            Ok(()) => base.sha.clone_from(&left.base),
            Err(error) => tracing::debug!(%error, "the commit that an earlier attempt began at can't be fetched"),
        }
    }
    drop(access);
    let branch = format!("ckrv/{}-{}", context.spec.id, context.view.job.id.short());
    context.log.info(
        "git",
        format!(
            "starts from {} of `{}`; the feature branch is {branch}",
            &base.sha[..base.sha.len().min(12)],
            request.git_base_branch
        ),
    );
    facts.base_sha = Some(base.sha.clone());
    facts.feature_branch = Some(branch.clone());
    let resumed = match left {
        Some(left) => checkpoint::restore(context, &git, &base.sha, left).await,
        None => None,
    };
    Ok(Prepared { git, base: base.sha, branch, resumed })
}

/// A repository's host must not lead into the operator's own network, unless policy allows that.
async fn check_host(context: &Context, host: &str) -> Result<(), Failure> {
    if context.view.policy.private_git_hosts {
        return Ok(());
    }
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let refuse = || {
        Failure::Ends(
            Outcome::new(
                OutcomeClass::Policy,
                format!("the repository's host {name} has a private address, which this service does not reach"),
            )
            .hint("the service's operator can allow it: `private_git_hosts = true` of the policy"),
        )
    };
    if host_is_private(name.trim_matches(['[', ']'])) {
        return Err(refuse());
    }
    match tokio::net::lookup_host((name, 443)).await {
        Ok(addresses) => {
            if addresses.map(|address| address.ip()).any(|address| !is_public(address)) {
                return Err(refuse());
            }
        }
        // Git will say it better.
        Err(error) => tracing::debug!(%error, "the repository's host was not found"),
    }
    Ok(())
}
