//! The same router as everywhere, behind Lambda: function URLs and HTTP APIs, whose events have one form (payload format 2.0).
//!
//! What a request needs is made while the sandbox starts: configuration, clients, router. No panic aborts: a handler's is a 500 of that
//! request, and the sandbox takes the next one.

mod env;
mod service;

use std::sync::Arc;

use ckrv_store::{Manager, Reference, Signals, Stores};
use lambda_http::Error;
use secrecy::SecretString;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::agents::BuiltinAgents;
use crate::auth::oidc::oidc_issuers;
use crate::auth::owner_code::OwnerCodes;
use crate::config::{ApiConfig, FollowMode};
use crate::router::router;
use crate::state::{ApiState, SystemClock};
use env::{Environment, Invoke};
use service::Function;

/// Serves invocations until Lambda ends the sandbox.
///
/// # Errors
/// What is wrong with the environment, or a server key that can't be read. Lambda's log has it, and the invocation fails.
pub async fn run() -> Result<(), Error> {
    log();
    let environment = Environment::read(variable).inspect_err(|error| tracing::error!(%error, "the function can't start"))?;
    let invoke = environment.invoke;
    let function = start(environment).await.inspect_err(|error| tracing::error!(%error, "the function can't start"))?;
    match invoke {
        Invoke::Buffered => lambda_http::run(service::buffered(function)).await,
        Invoke::Stream => lambda_http::run_with_streaming_response(service::streaming(function)).await,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a function's configuration is its environment; this is the one place where it is read"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// One JSON object a line, which is what Lambda's log takes apart.
fn log() {
    let level = ["CKRV_LOG", "AWS_LAMBDA_LOG_LEVEL"].iter().find_map(|name| variable(name)?.parse().ok());
    let level: LevelFilter = level.unwrap_or(LevelFilter::INFO);
    // Beyond that, libraries tell whole events and answers: tokens, and secrets on their way in.
    let fits = move |about: &Metadata<'_>| {
        *about.level() <= level && (about.target().starts_with("ckrv") || *about.level() <= Level::INFO)
    };
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stdout);
    let filter = filter_fn(fits).with_max_level_hint(level);
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
}

async fn start(environment: Environment) -> Result<Arc<Function>, Error> {
    // Another may have been installed before: the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stores = ckrv_store::open_aws(&environment.store, Signals::default()).await?;
    let key = server_key(&stores, &environment.server_key_secret).await?;
    let oidc = oidc_issuers(&environment.settings.oidc, stores.references.as_ref()).await?;
    let public_url = environment.settings.public_url.clone();
    let serve = move |url| {
        let mut config = ApiConfig::hosted(url, key.clone());
        environment.settings.apply(&mut config);
        config.oidc.clone_from(&oidc);
        config.follow = FollowMode::Lambda { streams: environment.invoke == Invoke::Stream };
        router(state(config, stores.clone(), BuiltinAgents::with(&environment.settings.agents)))
    };
    Ok(Arc::new(Function::new(Box::new(serve), public_url)))
}

/// Shared by all sandboxes, and by API servers on the same stores.
async fn server_key(stores: &Stores, name: &str) -> Result<SecretString, Error> {
    let reference = Reference { manager: Manager::SecretsManager, name: name.to_owned() };
    Ok(stores.references.resolve(&reference).await?)
}

fn state(config: ApiConfig, stores: Stores, agents: BuiltinAgents) -> ApiState {
    // Nobody sits at a function to read a code: sign-in is the identity provider's.
    let owner_codes = Arc::new(OwnerCodes::new(drop));
    ApiState::new(stores, config, Arc::new(SystemClock), Arc::new(agents), owner_codes)
}
