//! The HTTP API of `ckrv`, version 1. [`router`] is its table of contents; a handler extracts, authorises, takes one step in the store, answers.
//!
//! Invariant: no handler builds an error body. All say [`ApiError`], and one middleware makes an RFC 9457 answer of it.
//! Invariant: what failed inside goes to the log and never to a client.

mod access;
mod admin;
mod agents;
mod artifacts;
mod audit;
mod auth;
mod config;
mod credentials;
mod document;
mod error;
mod extract;
mod health;
mod jobs;
#[cfg(feature = "lambda")]
pub mod lambda;
mod ledger;
mod metrics;
mod middleware;
mod router;
mod secrets;
mod serve;
mod service_tokens;
mod sessions;
mod settings;
mod state;
mod usage;
mod users;
mod webhooks;
mod workers;

pub use agents::BuiltinAgents;
pub use auth::oidc::{OidcConfig, OidcIssuer, oidc_issuers};
pub use auth::owner_code::OwnerCodes;
pub use auth::tokens::{ACCESS_PREFIX, SERVICE_PREFIX};
pub use ckrv_tls::TlsFiles;
pub use config::{ApiConfig, FollowMode, Overage, TierRule, Tiers};
pub use error::ApiError;
pub use metrics::ApiMetrics;
pub use router::{openapi, router};
pub use serve::{check_listen, serve};
pub use settings::ApiSettings;
pub use state::{AgentCatalog, ApiState, Clock, LinkSpan, SystemClock};
pub use users::ensure_owner;
