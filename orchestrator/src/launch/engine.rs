//! Docker or Podman, whichever answers.

use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, Docker};

use super::LaunchError;

/// For one request that moves no data.
const REQUEST_SECONDS: u64 = 120;
/// For the first answer: a socket that exists may have nobody behind it.
const PING_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    Docker,
    Podman,
}

/// An engine that has answered.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(super) docker: Docker,
    pub kind: EngineKind,
    /// As the engine says it, for `doctor` and the log.
    pub version: String,
    pub socket: String,
}

impl Engine {
    /// Connects to a unix socket, with or without `unix://` before it.
    ///
    /// # Errors
    /// [`LaunchError::EngineUnreachable`].
    pub async fn connect(socket: &str) -> Result<Self, LaunchError> {
        let unreachable = |source| LaunchError::EngineUnreachable { socket: socket.to_owned(), source };
        let path = socket.strip_prefix("unix://").unwrap_or(socket);
        let docker = Docker::connect_with_unix(path, REQUEST_SECONDS, API_DEFAULT_VERSION).map_err(unreachable)?;
        let version = tokio::time::timeout(PING_WITHIN, docker.version());
        let version = version.await.map_err(|_elapsed| unreachable(Error::RequestTimeoutError))?.map_err(unreachable)?;
        let names = version.components.iter().flatten().map(|component| component.name.as_str());
        let kind = if names.into_iter().any(|name| name.contains("Podman")) { EngineKind::Podman } else { EngineKind::Docker };
        // An older engine refuses the API version of a newer client.
        let docker = docker.negotiate_version().await.map_err(unreachable)?;
        Ok(Self { docker, kind, version: version.version.unwrap_or_default(), socket: path.to_owned() })
    }

    /// The first engine that answers: `docker_host` (the value of `DOCKER_HOST`) if there is one and then no other, else Docker's and
    /// Podman's usual sockets. `runtime_dir` is the value of `XDG_RUNTIME_DIR`.
    pub async fn detect(docker_host: Option<&str>, runtime_dir: Option<&str>) -> Option<Self> {
        let candidates = match docker_host.filter(|host| !host.is_empty()) {
            Some(host) => vec![host.to_owned()],
            None => {
                let mut usual = vec!["/var/run/docker.sock".to_owned(), "/run/podman/podman.sock".to_owned()];
                usual.extend(runtime_dir.map(|folder| format!("{folder}/docker.sock")));
                usual.extend(runtime_dir.map(|folder| format!("{folder}/podman/podman.sock")));
                usual
            }
        };
        for socket in candidates {
            match Self::connect(&socket).await {
                Ok(engine) => return Some(engine),
                Err(error) => tracing::debug!(%socket, %error, "no container engine here"),
            }
        }
        None
    }

    /// Tells an engine that is gone from one that says no.
    pub(super) fn refused(&self, step: &'static str, source: Error) -> LaunchError {
        match source {
            Error::DockerResponseServerError { .. } => LaunchError::Refused { step, source },
            source => LaunchError::EngineUnreachable { socket: self.socket.clone(), source },
        }
    }
}

/// The HTTP status of an engine's refusal.
pub(super) fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}
