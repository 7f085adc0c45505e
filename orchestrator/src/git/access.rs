//! How a git credential reaches git: a token through an askpass program that asks this process over a socket, a deploy key through an
//! ssh-agent of the job's own. Never by argument, environment variable, URL or a file with the key in it.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use ckrv_core::wire::{CredentialType, Provider};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::known_hosts;

/// Where askpass finds the socket. Names a place, not a secret.
const ASKPASS_SOCKET: &str = "CKRV_ASKPASS_SOCKET";

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("the credential `{name}` belongs to {hosts}; it is not offered to {host}")]
    OtherHost { name: String, hosts: String, host: String },
    #[error("the credential `{name}` is a {is}, but {url_kind} needs a {needs}")]
    WrongKind { name: String, is: &'static str, needs: &'static str, url_kind: &'static str },
    #[error("the deploy key `{name}` can't be loaded: {reason}")]
    BadKey { name: String, reason: String },
    #[error("{context}")]
    Io {
        context: String,
        #[source]
        source: std::io::Error,
    },
}

fn io(context: &'static str) -> impl FnOnce(std::io::Error) -> AccessError {
    move |source| AccessError::Io { context: context.to_owned(), source }
}

/// A credential as the gateway hands it over.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct GitCredential {
    pub name: String,
    pub provider: Provider,
    pub credential_type: CredentialType,
    pub hosts: Vec<String>,
    #[serde(default)]
    pub known_hosts: Option<String>,
    #[serde(serialize_with = "expose")]
    pub value: SecretString,
}

/// The gateway's answer is the one place where the value is meant to be written out.
fn expose<S: serde::Serializer>(value: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.expose_secret())
}

/// What git is given beside its rules; dropped, it takes agent and socket with it.
#[derive(Debug, Default)]
pub struct Access {
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    askpass: Option<tokio::task::JoinHandle<()>>,
    agent: Option<Child>,
}

impl Drop for Access {
    fn drop(&mut self) {
        if let Some(task) = self.askpass.take() {
            task.abort();
        }
        if let Some(agent) = &mut self.agent {
            // kill_on_drop is set too; this asks at once.
            let _ = agent.start_kill();
        }
    }
}

impl Access {
    /// Prepares access to `host` (`name` or `name:port`). `folder` is private to the job runner (mode 0700) and its path is short.
    ///
    /// # Errors
    /// When the credential belongs to another host, is of the wrong kind, or can't be loaded.
    pub async fn prepare(
        url_is_ssh: bool,
        host: &str,
        credential: Option<&GitCredential>,
        folder: &Path,
        askpass: &Path,
    ) -> Result<Self, AccessError> {
        let mut access = Self::default();
        if let Some(credential) = credential {
            check_host(credential, host)?;
            check_kind(credential, url_is_ssh)?;
        }
        if url_is_ssh {
            access.use_ssh(credential, folder).await?;
        } else if let Some(credential) = credential {
            access.use_askpass(credential, host, folder, askpass)?;
        }
        Ok(access)
    }

    /// Adds access to a git command.
    pub fn apply(&self, command: &mut Command) {
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
    }

    /// Settings to be given with `-c`.
    #[must_use]
    pub fn settings(&self) -> &[String] {
        &self.settings
    }

    fn use_askpass(&mut self, credential: &GitCredential, host: &str, folder: &Path, askpass: &Path) -> Result<(), AccessError> {
        let socket = folder.join("askpass");
        let _ = std::fs::remove_file(&socket);
        let listener = tokio::net::UnixListener::bind(&socket).map_err(io("can't make the askpass socket"))?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))
            .map_err(io("can't protect the askpass socket"))?;
        let value = Arc::new(credential.value.clone());
        let expected = format!("@{}':", host.to_ascii_lowercase());
        self.askpass = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (value, expected) = (Arc::clone(&value), expected.clone());
                tokio::spawn(async move {
                    // A prompt for another host gets no answer; git then fails with an authentication error.
                    let _ = answer_prompt(stream, &value, &expected).await;
                });
            }
        }));
        self.settings.push(format!("credential.username={}", user_name(credential.provider)));
        // A wrapper script is what git can call with the prompt as its only argument.
        let wrapper = folder.join("askpass.sh");
        let script =
            format!("#!/bin/sh\nexec '{}' internal askpass \"$1\"\n", askpass.display().to_string().replace('\'', "'\\''"));
        std::fs::write(&wrapper, script).map_err(io("can't write the askpass wrapper"))?;
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o700))
            .map_err(io("can't protect the askpass wrapper"))?;
        self.environment.push(("GIT_ASKPASS".to_owned(), wrapper.display().to_string()));
        self.environment.push((ASKPASS_SOCKET.to_owned(), socket.display().to_string()));
        Ok(())
    }

    async fn use_ssh(&mut self, credential: Option<&GitCredential>, folder: &Path) -> Result<(), AccessError> {
        let known = folder.join("known_hosts");
        let mut lines = known_hosts::FORGES.to_owned();
        if let Some(own) = credential.and_then(|credential| credential.known_hosts.as_deref()) {
            lines.push_str(own.trim());
            lines.push('\n');
        }
        std::fs::write(&known, lines).map_err(io("can't write known_hosts"))?;
        let mut agent_socket = PathBuf::from("none");
        if let Some(credential) = credential {
            agent_socket = folder.join("agent");
            self.agent = Some(start_agent(credential, &agent_socket).await?);
        }
        let options = [
            "-F /dev/null".to_owned(),
            "-o BatchMode=yes".to_owned(),
            "-o StrictHostKeyChecking=yes".to_owned(),
            "-o UpdateHostKeys=no".to_owned(),
            "-o GlobalKnownHostsFile=/dev/null".to_owned(),
            format!("-o UserKnownHostsFile={}", known.display()),
            format!("-o IdentityAgent={}", agent_socket.display()),
            "-o IdentityFile=none".to_owned(),
            "-o ForwardAgent=no".to_owned(),
            "-o ClearAllForwardings=yes".to_owned(),
            "-o ConnectTimeout=20".to_owned(),
            "-o ServerAliveInterval=15".to_owned(),
        ];
        self.environment.push(("GIT_SSH_COMMAND".to_owned(), format!("ssh {}", options.join(" "))));
        self.environment.push(("GIT_SSH_VARIANT".to_owned(), "ssh".to_owned()));
        Ok(())
    }
}

fn check_host(credential: &GitCredential, host: &str) -> Result<(), AccessError> {
    let bare = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if credential.hosts.iter().any(|own| own.eq_ignore_ascii_case(host) || own.eq_ignore_ascii_case(bare)) {
        return Ok(());
    }
    Err(AccessError::OtherHost { name: credential.name.clone(), hosts: credential.hosts.join(", "), host: host.to_owned() })
}

fn check_kind(credential: &GitCredential, url_is_ssh: bool) -> Result<(), AccessError> {
    let name = credential.name.clone();
    match (credential.credential_type, url_is_ssh) {
        (CredentialType::Pat, true) => {
            Err(AccessError::WrongKind { name, is: "token", needs: "deploy key", url_kind: "an ssh URL" })
        }
        (CredentialType::DeployKey, false) => {
            Err(AccessError::WrongKind { name, is: "deploy key", needs: "token", url_kind: "an https URL" })
        }
        _ => Ok(()),
    }
}

/// What each forge wants as the user's name beside a token.
fn user_name(provider: Provider) -> &'static str {
    match provider {
        Provider::Github => "x-access-token",
        Provider::Gitlab => "oauth2",
        Provider::Bitbucket => "x-token-auth",
        Provider::Generic => "git",
    }
}

async fn answer_prompt(mut stream: tokio::net::UnixStream, value: &SecretString, expected: &str) -> std::io::Result<()> {
    let mut prompt = Vec::new();
    (&mut stream).take(4096).read_to_end(&mut prompt).await?;
    let prompt = String::from_utf8_lossy(&prompt);
    // `Password for 'https://USER@HOST': ` and nothing else: HOST is compared with the one that the credential was checked for.
    if prompt.starts_with("Password for 'https://") && prompt.trim_end().to_ascii_lowercase().ends_with(expected) {
        stream.write_all(value.expose_secret().as_bytes()).await?;
    }
    stream.shutdown().await
}

/// The askpass program: passes git's prompt on to the job runner and prints its answer.
///
/// # Errors
/// When there is no job runner to ask, or it has no answer for this prompt.
pub fn askpass(prompt: &str, out: &mut dyn Write) -> std::io::Result<()> {
    let socket = std::env::var_os(ASKPASS_SOCKET).ok_or_else(|| std::io::Error::other("not called by a job runner"))?;
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.write_all(prompt.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = zeroize::Zeroizing::new(Vec::new());
    stream.read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(std::io::Error::other("no answer for this prompt"));
    }
    out.write_all(&answer)?;
    out.write_all(b"\n")
}

async fn start_agent(credential: &GitCredential, socket: &Path) -> Result<Child, AccessError> {
    let _ = std::fs::remove_file(socket);
    let bad = |reason: String| AccessError::BadKey { name: credential.name.clone(), reason };
    // The agent lives as long as `cat`, and `cat` as long as this process holds its pipe: also a kill -9 takes the key away.
    let agent = Command::new("ssh-agent")
        .arg("-a")
        .arg(socket)
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| bad(format!("ssh-agent can't be started ({error}); install OpenSSH's client on the server")))?;
    let listening = async {
        while tokio::net::UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), listening)
        .await
        .map_err(|_| bad("ssh-agent does not answer".to_owned()))?;
    let mut add = Command::new("ssh-add")
        .args(["-q", "-"])
        .env("SSH_AUTH_SOCK", socket)
        // Without a terminal ssh-add would otherwise start a program that asks for a passphrase.
        .env("SSH_ASKPASS_REQUIRE", "never")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| bad(format!("ssh-add can't be started ({error})")))?;
    if let Some(mut stdin) = add.stdin.take() {
        let mut key = zeroize::Zeroizing::new(credential.value.expose_secret().replace("\r\n", "\n"));
        if !key.ends_with('\n') {
            key.push('\n');
        }
        stdin.write_all(key.as_bytes()).await.map_err(io("can't hand the key to ssh-add"))?;
    }
    let output = add.wait_with_output().await.map_err(io("ssh-add"))?;
    if !output.status.success() {
        return Err(bad(format!("ssh-add refused it: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(agent)
}
