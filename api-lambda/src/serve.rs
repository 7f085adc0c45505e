//! Listening: plain on loopback or behind a proxy, TLS everywhere else.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::audit::Peer;
use crate::router::router;
use crate::state::ApiState;

/// How long requests under way may take to end after the shutdown.
const DRAIN: Duration = Duration::from_secs(10);
const HANDSHAKE: Duration = Duration::from_secs(10);
const HANDSHAKES_AT_ONCE: usize = 64;

/// PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub certificates: PathBuf,
    pub key: PathBuf,
}

/// Beyond loopback, tokens would cross the network in the clear.
///
/// # Errors
/// What to do instead.
pub fn check_listen(addr: SocketAddr, tls: bool, behind_proxy: bool) -> Result<(), String> {
    if addr.ip().to_canonical().is_loopback() || tls || behind_proxy {
        return Ok(());
    }
    Err(format!(
        "{addr} can be reached from other machines, and tokens would cross the network in the clear: give a certificate (`--tls-cert`, `--tls-key`), or say `--behind-proxy` where a proxy does TLS"
    ))
}

/// Serves until `shutdown`; then ends log streams, and gives other requests 10 seconds.
///
/// # Errors
/// TLS files that can't be read.
pub async fn serve(
    listener: TcpListener,
    state: ApiState,
    tls: Option<TlsFiles>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let app = router(state.clone()).into_make_service_with_connect_info::<Peer>();
    let (began, closing) = tokio::sync::oneshot::channel();
    let shutdown = async move {
        shutdown.await;
        state.close();
        let _ = began.send(());
    };
    let limit = async move {
        // Never answered: the server itself has ended.
        if closing.await.is_ok() { tokio::time::sleep(DRAIN).await } else { std::future::pending().await }
    };
    let serving = async move {
        match tls {
            Some(files) => axum::serve(TlsListener::bind(listener, &files)?, app).with_graceful_shutdown(shutdown).await,
            None => axum::serve(PlainListener(listener), app).with_graceful_shutdown(shutdown).await,
        }
    };
    tokio::select! {
        served = serving => served,
        () = limit => Ok(()),
    }
}

/// Plain connections.
struct PlainListener(TcpListener);

impl axum::serve::Listener for PlainListener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // axum's own accept logs failures and waits where the process is out of files.
        let (stream, peer) = axum::serve::Listener::accept(&mut self.0).await;
        // Log lines are small and must not wait for each other.
        let _ = stream.set_nodelay(true);
        (stream, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Connected<IncomingStream<'_, PlainListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, PlainListener>) -> Self {
        Self(stream.remote_addr().ip())
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        Self(stream.remote_addr().ip())
    }
}

/// Accepts connections whose handshake is done; a slow one holds up nobody.
struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    addr: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
}

impl TlsListener {
    fn bind(listener: TcpListener, files: &TlsFiles) -> io::Result<Self> {
        let acceptor = TlsAcceptor::from(Arc::new(tls_config(files)?));
        let addr = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(HANDSHAKES_AT_ONCE);
        let accepting = tokio::spawn(accept_all(listener, acceptor, sender));
        Ok(Self { ready, addr, accepting })
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
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
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
        Ok(self.addr)
    }
}

fn tls_config(files: &TlsFiles) -> io::Result<rustls::ServerConfig> {
    let bad = |path: &PathBuf, error: rustls::pki_types::pem::Error| {
        io::Error::other(format!("{} can't be used: {error}", path.display()))
    };
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificates)
        .and_then(Iterator::collect)
        .map_err(|error| bad(&files.certificates, error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| bad(&files.key, error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
