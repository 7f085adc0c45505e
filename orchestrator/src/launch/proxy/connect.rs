//! The CONNECT proxy: granted hosts by exact name and port, at addresses looked up here and nowhere else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ckrv_core::address::is_public;
use ckrv_shim::mux::MuxStream;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Denied, DeniedReason, Egress};

const CONNECT_WITHIN: Duration = Duration::from_secs(15);

/// Serves one connection of the agent; its tunnel ends with the run at the latest.
pub async fn serve(egress: Arc<Egress>, over: CancellationToken, stream: MuxStream) {
    let service = service_fn(move |request| {
        let (egress, over) = (Arc::clone(&egress), over.clone());
        async move { Ok::<_, Infallible>(answer(&egress, over, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.with_upgrades().await {
        tracing::debug!(%error, "a connection to the proxy broke off");
    }
}

async fn answer(egress: &Egress, over: CancellationToken, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let uri = request.uri();
    let host = uri.host().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if request.method() == Method::CONNECT { 443 } else { 80 });
    let tunnel = if request.method() == Method::CONNECT { open(egress, &host, port).await } else { Err(DeniedReason::PlainHttp) };
    match tunnel {
        Ok(upstream) => {
            tokio::spawn(async move { over.run_until_cancelled(carry(request, upstream)).await });
            Response::new(Full::default())
        }
        Err(reason) => {
            let text = format!("ckrv: {host}:{port} {reason}\n");
            (egress.on_denied)(Denied { host, port, reason });
            let mut response = Response::new(Full::from(text));
            let unreachable = reason == DeniedReason::Unreachable;
            *response.status_mut() = if unreachable { StatusCode::BAD_GATEWAY } else { StatusCode::FORBIDDEN };
            response
        }
    }
}

async fn open(egress: &Egress, host: &str, port: u16) -> Result<TcpStream, DeniedReason> {
    if !egress.allow.iter().any(|rule| rule.port == port && rule.host.eq_ignore_ascii_case(host)) {
        return Err(DeniedReason::NotGranted);
    }
    let found = timeout(CONNECT_WITHIN, lookup_host((host, port))).await;
    let Ok(Ok(found)) = found else { return Err(DeniedReason::Unreachable) };
    // What was judged is what is connected to: the name isn't looked up again.
    let (allowed, denied): (Vec<SocketAddr>, Vec<SocketAddr>) = found.partition(|a| egress.allow_private || is_public(a.ip()));
    if allowed.is_empty() {
        return Err(if denied.is_empty() { DeniedReason::Unreachable } else { DeniedReason::NotPublic });
    }
    match timeout(CONNECT_WITHIN, TcpStream::connect(&allowed[..])).await {
        Ok(Ok(upstream)) => Ok(upstream),
        _ => Err(DeniedReason::Unreachable),
    }
}

async fn carry(request: Request<Incoming>, mut upstream: TcpStream) {
    if let Ok(agent) = hyper::upgrade::on(request).await {
        let _ = copy_bidirectional(&mut TokioIo::new(agent), &mut upstream).await;
    }
}
