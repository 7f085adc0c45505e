//! What every handler may reach.

use std::sync::Arc;

use ckrv_core::Timestamp;
use ckrv_core::trace::TraceParent;
use ckrv_core::wire::AgentInfo;
use ckrv_store::Stores;
use tokio::sync::{Semaphore, watch};

use crate::auth::oidc::Providers;
use crate::auth::owner_code::OwnerCodes;
use crate::auth::rate::Window;
use crate::config::ApiConfig;
use crate::health::Probe;
use crate::jobs::watching::Watching;
use crate::metrics::ApiMetrics;

/// Tells the time; tests tell their own.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
}

#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// The agents on offer.
pub trait AgentCatalog: Send + Sync {
    fn agents(&self) -> Vec<AgentInfo>;

    fn agent(&self, name: &str) -> Option<AgentInfo> {
        self.agents().into_iter().find(|agent| agent.name == name)
    }
}

/// Puts a span of that name under its parent in a trace that leaves this process; gives the span's own place in it.
/// Without an exporter the parent itself goes on.
pub type LinkSpan = fn(&tracing::Span, &str, TraceParent) -> TraceParent;

#[derive(Clone)]
pub struct ApiState {
    pub stores: Stores,
    pub config: Arc<ApiConfig>,
    pub clock: Arc<dyn Clock>,
    pub agents: Arc<dyn AgentCatalog>,
    pub owner_codes: Arc<OwnerCodes>,
    pub metrics: ApiMetrics,
    pub link_span: LinkSpan,
    pub(crate) probe: Arc<Probe>,
    pub(crate) oidc: Arc<Providers>,
    pub(crate) device_window: Arc<Window>,
    pub(crate) followers: Arc<Semaphore>,
    pub(crate) watching: Arc<Watching>,
    closing: watch::Sender<bool>,
}

impl ApiState {
    #[must_use]
    pub fn new(
        stores: Stores,
        config: ApiConfig,
        clock: Arc<dyn Clock>,
        agents: Arc<dyn AgentCatalog>,
        owner_codes: Arc<OwnerCodes>,
    ) -> Self {
        Self {
            stores,
            oidc: Arc::new(Providers::new(&config.oidc)),
            device_window: Arc::new(Window::per_minute(config.device_logins_per_minute)),
            followers: Arc::new(Semaphore::new(config.max_followers)),
            watching: Arc::default(),
            config: Arc::new(config),
            clock,
            agents,
            owner_codes,
            metrics: ApiMetrics::default(),
            link_span: |_, _, parent| parent,
            probe: Arc::default(),
            closing: watch::Sender::new(false),
        }
    }

    /// Ends open log streams, without `[DONE]`: their clients come back to the next server. Called by [`crate::serve`].
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

impl std::fmt::Debug for ApiState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiState").field("config", &self.config).finish_non_exhaustive()
    }
}
