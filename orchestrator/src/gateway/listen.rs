//! Where the gateway listens: on a unix socket, or with TLS inside a cluster.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ckrv_store::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::pod_identity::PodIdentity;
use super::proof::{Proof, router};
use super::server::GatewayServer;

const HANDSHAKE: Duration = Duration::from_secs(10);
const HANDSHAKES_AT_ONCE: usize = 64;
/// How often the certificate's files are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// PEM files; whoever renews the certificate replaces them.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub certificates: PathBuf,
    pub key: PathBuf,
}

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
    let certificate = Arc::new(Certificate::read(files)?);
    let listener = TlsListener::new(listener, Arc::clone(&certificate))?;
    let renewing = tokio::spawn(renew(certificate));
    let noting = tokio::spawn(note_watched(Arc::clone(&gateway)));
    let served = axum::serve(listener, router(gateway, Proof::Pod(pods))).with_graceful_shutdown(shutdown).await;
    renewing.abort();
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

/// The certificate as its files had it when they were last good.
#[derive(Debug)]
struct Certificate {
    files: TlsFiles,
    now: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    fn read(files: TlsFiles) -> io::Result<Self> {
        let now = RwLock::new(Arc::new(certified(&files)?));
        Ok(Self { files, now })
    }

    fn now(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at the files again; gives whether they had changed.
    fn look_again(&self) -> io::Result<bool> {
        let found = certified(&self.files)?;
        let changed = found.cert != self.now().cert;
        if changed {
            *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
        }
        Ok(changed)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

async fn renew(certificate: Arc<Certificate>) {
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        match certificate.look_again() {
            Ok(true) => tracing::info!("the gateway's certificate was renewed"),
            Ok(false) => {}
            // Half written, perhaps: the old one serves on.
            Err(error) => tracing::warn!(%error, "the gateway's certificate can't be read again"),
        }
    }
}

fn certified(files: &TlsFiles) -> io::Result<CertifiedKey> {
    let bad = |path: &Path, error: &dyn std::fmt::Display| io::Error::other(format!("{} can't be used: {error}", path.display()));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificates)
        .and_then(Iterator::collect)
        .map_err(|error| bad(&files.certificates, &error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| bad(&files.key, &error))?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(|error| bad(&files.key, &error))
}

/// Accepts connections whose handshake is done; a slow one holds up nobody.
struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

impl TlsListener {
    fn new(listener: TcpListener, certificate: Arc<Certificate>) -> io::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(HANDSHAKES_AT_ONCE);
        let accepting = tokio::spawn(accept_all(listener, TlsAcceptor::from(Arc::new(config)), sender));
        Ok(Self { ready, address, accepting })
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept_all(mut listener: TcpListener, acceptor: TlsAcceptor, sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        // axum's own accept logs failures and waits where the process is out of files.
        let (stream, peer) = axum::serve::Listener::accept(&mut listener).await;
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let _ = sender.send((stream, peer)).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
            }
            drop(slot);
        });
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The accepting task ends only with this listener.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
