//! A private repository behind a real server, over https or ssh, and the credential that opens it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::git::git;
use crate::git_http::{GitHttp, Rules};
use crate::http::Authority;
use crate::repo::Repo;
use crate::scene::Scene;
use crate::sshd::Sshd;
use crate::user::Ran;

/// Dropped, its server is gone.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a test has one or two of them")]
pub enum Forge {
    Https { server: GitHttp, authority: Authority, token: String },
    Ssh(Sshd),
}

impl Forge {
    /// `git http-backend` behind TLS and a token.
    pub async fn https(repo: &Repo) -> Result<Self> {
        Self::https_with(repo, Rules { token: secret("git"), redirect_to: None }).await
    }

    pub async fn https_with(repo: &Repo, rules: Rules) -> Result<Self> {
        let (authority, token) = (Authority::new()?, rules.token.clone());
        let server = GitHttp::start(repo.root(), rules, Some(&authority)).await?;
        Ok(Self::Https { server, authority, token })
    }

    /// `sshd` with a deploy key.
    pub async fn ssh(repo: &Repo) -> Result<Self> {
        Ok(Self::Ssh(Sshd::start(&repo.path()).await?))
    }

    pub fn url(&self) -> String {
        match self {
            Self::Https { server, .. } => server.url("project.git"),
            Self::Ssh(sshd) => sshd.url(),
        }
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> Result<String> {
        let url = self.url();
        let authority = url.split('/').nth(2).context("the URL has no host")?;
        Ok(authority.rsplit('@').next().unwrap_or(authority).to_owned())
    }

    pub fn ca_file(&self) -> Option<PathBuf> {
        match self {
            Self::Https { authority, .. } => Some(authority.ca_file()),
            Self::Ssh(_) => None,
        }
    }

    /// The token or the private key.
    pub fn secret(&self) -> Result<String> {
        match self {
            Self::Https { token, .. } => Ok(token.clone()),
            Self::Ssh(sshd) => sshd.deploy_key(),
        }
    }

    /// The user's clone comes from here from now on.
    pub fn is_origin_of(&self, project: &Path) -> Result<()> {
        git(project, &["remote", "set-url", "origin", &self.url()]).map(drop)
    }

    /// Stores the credential that opens it, under the name `forge`.
    pub async fn add_credential(&self, scene: &Scene) -> Result<()> {
        let known_hosts = match self {
            Self::Https { .. } => None,
            Self::Ssh(sshd) => Some(sshd.known_hosts()?),
        };
        self.add_credential_with(scene, &self.host()?, &self.secret()?, known_hosts.as_deref()).await?.ok().map(drop)
    }

    /// Stores any credential of the right kind under the name `forge`, whatever comes of it.
    pub async fn add_credential_with(&self, scene: &Scene, host: &str, value: &str, known_hosts: Option<&str>) -> Result<Ran> {
        let kind = if matches!(self, Self::Ssh(_)) { "deploy-key" } else { "pat" };
        let args = ["cloud", "credentials", "add", "forge", "--provider", "generic", "--type", kind, "--host", host];
        let mut args = args.map(str::to_owned).to_vec();
        if let Some(lines) = known_hosts {
            let path = scene.folder().join("known_hosts");
            std::fs::write(&path, lines)?;
            args.extend(["--known-hosts".to_owned(), path.display().to_string()]);
        }
        scene.user.run_with_input(scene.folder(), &args, value.as_bytes()).await
    }
}

/// A secret that nothing else in the world spells.
pub fn secret(what: &str) -> String {
    format!("{what}-secret-{:032x}", rand::random::<u128>())
}
