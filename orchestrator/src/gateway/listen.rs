//! Where the gateway listens: on a unix socket, or with TLS inside a cluster.

use std::io;
use std::path::Path;
use std::sync::Arc;

use ckrv_store::Signal;
use ckrv_tls::{TlsFiles, TlsListener};
use tokio::net::TcpListener;

use super::pod_identity::PodIdentity;
use super::proof::{Proof, router};
use super::server::GatewayServer;

/// Serves the gateway on a unix socket until `shutdown` completes.
///
/// # Errors
/// When the socket can't be made.
pub async fn serve_unix(
    gateway: Arc<GatewayServer>,
    socket: &Path,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let _ = std::fs::remove_file(socket);
    let listener = tokio::net::UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    let noting = tokio::spawn(note_watched(Arc::clone(&gateway)));
    let served = axum::serve(listener, router(gateway, Proof::Own)).with_graceful_shutdown(shutdown).await;
    noting.abort();
    served
}

/// Serves the gateway with TLS, to the job pods that `pods` knows, until `shutdown` completes.
///
/// # Errors
/// TLS files that can't be used.
pub async fn serve_tls(
    gateway: Arc<GatewayServer>,
    listener: TcpListener,
    files: TlsFiles,
    pods: Arc<PodIdentity>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = TlsListener::new(listener, files)?;
    let noting = tokio::spawn(note_watched(Arc::clone(&gateway)));
    let served = axum::serve(listener, router(gateway, Proof::Pod(pods))).with_graceful_shutdown(shutdown).await;
    noting.abort();
    served
}

async fn note_watched(gateway: Arc<GatewayServer>) {
    let mut signals = gateway.signals();
    loop {
        match signals.recv().await {
            Ok(Signal::Watched(job)) => gateway.note_watched(job),
            Err(tokio::sync::broadcast::error::RecvError::Closed) => break,
            _ => {}
        }
    }
}
