//! HTTP and HTTPS servers of the tests, on a port of the system's choice.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::serve::Listener;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::bench;

/// A certificate authority that nobody knows but who is given its file.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("ca_file", &self.ca_file()).finish_non_exhaustive()
    }
}

impl Authority {
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ckrv test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("ca.pem"), issuer.pem())?;
        Ok(Self { issuer, folder })
    }

    /// PEM, for git's `http.sslCAInfo`, `SSL_CERT_FILE` and the like.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A server's side for these names and for the address that it listens on.
    fn acceptor(&self, names: &[&str]) -> Result<TlsAcceptor> {
        // Where pods reach this machine, with a cluster.
        let host = bench::kube_host().or_else(|_| bench::host())?.to_string();
        let always = ["localhost", "127.0.0.1", host.as_str()];
        let names = names.iter().chain(&always).map(|name| (*name).to_owned());
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names.collect::<Vec<_>>())?.signed_by(&key, &self.issuer)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_no_client_auth();
        let chain = vec![CertificateDer::from(certificate)];
        Ok(TlsAcceptor::from(Arc::new(config.with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())?)))
    }
}

/// A running server; dropped, it is gone.
#[derive(Debug)]
pub struct Http {
    /// `http://127.0.0.1:PORT` or `https://…`, without a slash at the end.
    pub url: String,
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Http {
    /// Over TLS when there is an authority to sign for it.
    pub async fn start(router: Router, authority: Option<&Authority>) -> Result<Self> {
        let listener = TcpListener::bind((bench::host()?, 0)).await?;
        let address = listener.local_addr()?;
        let task = match authority {
            None => tokio::spawn(run(listener, router)),
            Some(authority) => tokio::spawn(run(Tls { listener, acceptor: authority.acceptor(&[])? }, router)),
        };
        let scheme = if authority.is_some() { "https" } else { "http" };
        Ok(Self { url: format!("{scheme}://{address}"), address, task })
    }
}

async fn run<L: Listener<Addr = SocketAddr>>(listener: L, router: Router) {
    // Ends only by being dropped.
    let _ = axum::serve(listener, router).await;
}

impl Drop for Http {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    /// A handshake that fails or dawdles is dropped: the next connection is as good.
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Ok((stream, address)) = self.listener.accept().await
                && let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(5), self.acceptor.accept(stream)).await
            {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A client that takes each redirect as an answer. Installs the process's TLS provider, which reqwest wants even for `http:`.
pub fn client() -> Result<reqwest::Client> {
    // An error says that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(30))
        .no_proxy()
        .build()?)
}

/// Pages, cookies, redirects; no scripts.
#[derive(Debug)]
pub struct Browser {
    client: reqwest::Client,
    cookies: Vec<String>,
}

impl Browser {
    pub fn new() -> Result<Self> {
        Ok(Self { client: client()?, cookies: Vec::new() })
    }

    /// A page, or what a form's body is answered with; `url` follows the redirects.
    pub async fn open(&mut self, url: &mut reqwest::Url, mut form: Option<String>) -> Result<String> {
        for _ in 0..5 {
            let request = match form.take() {
                Some(body) => {
                    let request = self.client.post(url.clone()).header("origin", url.origin().ascii_serialization());
                    request.header("content-type", "application/x-www-form-urlencoded").body(body)
                }
                None => self.client.get(url.clone()),
            };
            let response = request.header("cookie", self.cookies.join("; ")).send().await?;
            for cookie in response.headers().get_all("set-cookie") {
                self.cookies.push(cookie.to_str()?.split(';').next().unwrap_or_default().to_owned());
            }
            let status = response.status();
            if status.is_redirection() {
                let location = response.headers().get("location").context("a redirect to nowhere")?.to_str()?.to_owned();
                *url = url.join(&location)?;
                continue;
            }
            let page = response.text().await?;
            if !status.is_success() {
                bail!("{url} answers {status}: {page}");
            }
            return Ok(page);
        }
        bail!("{url} redirects without end")
    }
}
