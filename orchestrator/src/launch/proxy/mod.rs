//! What the agent's connections end in: model routes, which get the key here, and the CONNECT proxy, which lets granted hosts through.
//!
//! Invariant: the agent's side never sees a secret; it sees a token that is worth nothing outside its own run.

mod connect;
mod mask;
mod route;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ckrv_core::plan::EgressRule;
use ckrv_shim::mux::MuxStream;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use url::Url;

/// One model API that a run may call.
#[derive(Clone, Debug)]
pub struct Route {
    /// Variable that gets the loopback address, and what is appended to it, for example `/v1`.
    pub base_url_env: String,
    pub path: String,
    /// Variable that gets the run's token; without it nothing is checked.
    pub placeholder_env: Option<String>,
    /// `https://HOST:PORT`, with a path that is put before the request's where there is one.
    pub upstream: Url,
    /// Header that carries the secret, and what stands before it there.
    pub header: String,
    pub prefix: String,
    pub secret: SecretString,
}

/// What a run may reach through the CONNECT proxy.
#[derive(Clone)]
pub struct Egress {
    pub allow: Vec<EgressRule>,
    /// Lets names resolve to private and loopback addresses. For tests, and for admins whose mirrors are inside.
    pub allow_private: bool,
    /// Told of each connection that was denied.
    pub on_denied: Arc<dyn Fn(Denied) + Send + Sync>,
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").field("allow", &self.allow).field("allow_private", &self.allow_private).finish_non_exhaustive()
    }
}

/// A connection that the agent wanted and didn't get. The host is what the agent wrote: escape it before it's shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    pub host: String,
    pub port: u16,
    pub reason: DeniedReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeniedReason {
    /// Not in the run's list.
    NotGranted,
    /// The name leads to addresses that aren't public.
    NotPublic,
    /// The name doesn't resolve, or nobody answers there.
    Unreachable,
    /// Not a CONNECT request.
    PlainHttp,
}

/// What stands behind `HOST:PORT`.
impl fmt::Display for DeniedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotGranted => "is not granted to this run",
            Self::NotPublic => "is not a public address",
            Self::Unreachable => "can't be reached",
            Self::PlainHttp => "was asked for without TLS; only CONNECT is served",
        })
    }
}

/// The HTTP client that forwards to model APIs. One per job runner.
#[derive(Clone, Debug)]
pub struct ProxyClient {
    http: reqwest::Client,
}

impl ProxyClient {
    /// # Errors
    /// When the TLS roots of the machine can't be loaded.
    pub fn new() -> Result<Self, reqwest::Error> {
        // Somebody may have been first; it's the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            // The environment's proxy is the user's, not the job's; a redirect would carry the key to another host.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(15))
            .pool_idle_timeout(Duration::from_secs(30));
        Ok(Self { http: builder.build()? })
    }
}

/// What one run may do.
#[derive(Debug)]
pub(super) struct Rules {
    run: u32,
    routes: Vec<Arc<route::Target>>,
    egress: Option<Arc<Egress>>,
    over: CancellationToken,
}

impl Rules {
    pub fn new(run: u32, routes: Vec<Route>, egress: Option<Egress>) -> Self {
        let routes = routes.into_iter().map(|route| Arc::new(route::Target::new(route))).collect();
        Self { run, routes, egress: egress.map(Arc::new), over: CancellationToken::new() }
    }

    pub fn has_egress(&self) -> bool {
        self.egress.is_some()
    }

    pub fn shim_routes(&self) -> Vec<ckrv_shim::protocol::Route> {
        self.routes.iter().map(|target| target.for_shim()).collect()
    }
}

/// The rules of the run that is going on. Connections end with it.
#[derive(Clone, Debug, Default)]
pub(super) struct RulesSlot(Arc<Mutex<Option<Arc<Rules>>>>);

impl RulesSlot {
    pub fn set(&self, rules: Rules) {
        self.replace(Some(Arc::new(rules)));
    }

    pub fn clear(&self) {
        self.replace(None);
    }

    fn replace(&self, rules: Option<Arc<Rules>>) {
        let before = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), rules);
        if let Some(before) = before {
            before.over.cancel();
        }
    }

    fn of(&self, run: u32) -> Option<Arc<Rules>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|rules| rules.run == run)
    }

    pub async fn serve_route(&self, run: u32, index: u32, stream: MuxStream, client: &ProxyClient) {
        let Some(rules) = self.of(run) else { return };
        let Some(target) = rules.routes.get(index as usize) else { return };
        let serving = route::serve(Arc::clone(target), client.http.clone(), stream);
        rules.over.run_until_cancelled(serving).await;
    }

    pub async fn serve_connect(&self, run: u32, stream: MuxStream) {
        let Some(rules) = self.of(run) else { return };
        let Some(egress) = &rules.egress else { return };
        rules.over.run_until_cancelled(connect::serve(Arc::clone(egress), rules.over.clone(), stream)).await;
    }
}
