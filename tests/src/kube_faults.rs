//! A proxy in front of the test cluster's API server that does what API servers do on bad days, by rules that a test sets: refuses, carries
//! out and never answers, ends watches or lets them go silent, is away. And it counts what was asked, by whom.
//!
//! It speaks TLS with the API server's own certificate, which names this machine's address too, and passes tokens on as they are: whoever has
//! no token is nobody.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::bench;

mod answers;
mod calls;
mod day;
mod rules;
mod serving;

pub use self::calls::{Call, Calls, Count, DISPATCHER, RUNNER};
pub use self::day::Day;
use self::rules::Rule;
pub use self::rules::{Fault, On, Refusal, WatchEnd};
pub use crate::fault_proxy::When;

/// A running proxy; dropped, its connections end.
#[derive(Debug)]
pub struct ApiProxy {
    /// `https://ADDRESS:PORT`, as pods reach it.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// How it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Here,
    /// Nobody listens.
    Refuses,
    /// Connections are taken, and nothing comes.
    Hangs,
}

struct Shared {
    upstream: String,
    client: reqwest::Client,
    acceptor: TlsAcceptor,
    reach: watch::Sender<Reach>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

struct State {
    rules: Vec<Rule>,
    random: StdRng,
    calls: Calls,
}

impl ApiProxy {
    /// In front of the bench's cluster. What chances come to is decided by the seed.
    pub async fn start(seed: u64) -> Result<Self> {
        let config = Kubeconfig::read_from(bench::kubeconfig()?)?;
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let roots = config.root_cert.context("the kubeconfig names no authority")?;
        let roots = roots.iter().map(|der| reqwest::Certificate::from_der(der)).collect::<Result<Vec<_>, _>>()?;
        // An error says that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().tls_certs_only(roots).no_proxy().build()?;
        let state = State { rules: Vec::new(), random: StdRng::seed_from_u64(seed), calls: Calls::default() };
        let shared = Arc::new(Shared {
            upstream: config.cluster_url.to_string().trim_end_matches('/').to_owned(),
            client,
            acceptor: acceptor()?,
            reach: watch::Sender::new(Reach::Here),
            state: Mutex::new(state),
        });
        let host: IpAddr = bench::kube_host()?;
        let listener = tokio::net::TcpListener::bind((host, 0)).await.with_context(|| format!("can't listen on {host}"))?;
        let address: SocketAddr = listener.local_addr()?;
        let task = tokio::spawn(serving::listen(listener, address, Arc::clone(&shared)));
        Ok(Self { url: format!("https://{address}"), shared, task })
    }

    /// From now on. The first rule that fits a call and whose time has come decides; what none of them wants passes.
    pub fn rule(&self, on: On, when: When, fault: Fault) {
        self.shared.state().rules.push(Rule::new(on, when, fault));
    }

    /// From now on it is there and everything passes. What is held back already stays so.
    pub fn heal(&self) {
        self.shared.state().rules.clear();
        self.shared.reach.send_replace(Reach::Here);
    }

    /// From now on nobody listens; whoever is connected no longer is.
    pub fn refuse(&self) {
        self.shared.reach.send_replace(Reach::Refuses);
    }

    /// Every connection breaks; new ones are taken.
    pub async fn cut(&self) {
        self.refuse();
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.shared.reach.send_replace(Reach::Here);
    }

    /// From now on nothing comes any more, on no connection.
    pub fn hang(&self) {
        self.shared.reach.send_replace(Reach::Hangs);
    }

    /// What was asked since the start.
    pub fn calls(&self) -> Calls {
        self.shared.state().calls.clone()
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call, and says what is to happen to it.
    fn decide(&self, call: &Call) -> Fault {
        let mut state = self.state();
        let State { rules, random, calls } = &mut *state;
        let fault = rules.iter_mut().find_map(|rule| rule.decide(call, random)).unwrap_or(Fault::Pass);
        calls.count_asked(call, &fault);
        fault
    }

    /// Waits until it doesn't hang.
    async fn here(&self) {
        // The sender is ours: it is there as long as we are.
        let _ = self.reach.subscribe().wait_for(|reach| *reach != Reach::Hangs).await;
    }
}

/// With the certificate of the API server itself.
fn acceptor() -> Result<TlsAcceptor> {
    let pki = bench::kube_folder().context("only in front of a cluster of `cargo xtask cluster`")?.join("pki");
    let chain = CertificateDer::pem_file_iter(pki.join("apiserver.crt"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(pki.join("apiserver.key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_no_client_auth();
    Ok(TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key)?)))
}
