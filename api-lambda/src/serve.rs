//! Listening: plain on loopback or behind a proxy, TLS everywhere else.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use ckrv_tls::{TlsFiles, TlsListener};
use tokio::net::{TcpListener, TcpStream};

use crate::audit::Peer;
use crate::router::router;
use crate::state::ApiState;

/// How long requests under way may take to end after the shutdown.
const DRAIN: Duration = Duration::from_secs(10);

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
            Some(files) => axum::serve(TlsListener::new(listener, files)?, app).with_graceful_shutdown(shutdown).await,
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
