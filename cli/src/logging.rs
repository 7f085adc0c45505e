//! What a service, a job runner or a command tells about itself: lines on stderr, as text or as JSON, and spans over OTLP where the
//! environment names a collector.
//!
//! Invariant: other crates are never heard below `info`: some of them write requests with their headers then, and so tokens.

#[cfg(feature = "otel")]
mod otel;

use std::io::IsTerminal as _;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::Env;

/// The form of the log's lines: `CKRV_LOG_FORMAT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// The log of this process; spans that are not sent yet go out with [`Log::end`].
#[derive(Debug, Default)]
#[must_use = "what was not sent yet is sent by `end`"]
pub struct Log {
    #[cfg(feature = "otel")]
    exporter: Option<otel::Exporter>,
}

impl Log {
    /// Of a process that runs for long: as `CKRV_LOG` says, else by `default`; with spans where a collector is named.
    pub fn start(env: &Env, default: &str) -> Self {
        let lines = lines(env, env.log.as_deref().unwrap_or(default));
        #[cfg(feature = "otel")]
        {
            let (layer, exporter, failure) = match otel::start(&env.otel) {
                Ok(Some((layer, exporter))) => (Some(layer), Some(exporter), None),
                Ok(None) => (None, None, None),
                Err(error) => (None, None, Some(error)),
            };
            install(tracing_subscriber::registry().with(lines).with(layer));
            if let Some(error) = failure {
                tracing::warn!(error = ckrv_store::chain(&*error), "spans are not exported; everything else goes on");
            }
            Self { exporter }
        }
        #[cfg(not(feature = "otel"))]
        {
            install(tracing_subscriber::registry().with(lines));
            Self::default()
        }
    }

    /// Sends what is left, for at most two seconds.
    pub async fn end(self) {
        #[cfg(feature = "otel")]
        if let Some(exporter) = self.exporter {
            exporter.end().await;
        }
    }
}

/// Of a command: silent unless `CKRV_LOG` is set.
pub fn start_for_command(env: &Env) {
    if let Some(filter) = &env.log {
        install(tracing_subscriber::registry().with(lines(env, filter)));
    }
}

/// Puts spans into the traces that they belong to, if they are exported.
#[must_use]
pub fn link_span() -> ckrv_orchestrator::trace::LinkSpan {
    #[cfg(feature = "otel")]
    if otel::is_on() {
        return otel::link;
    }
    ckrv_orchestrator::trace::UNLINKED
}

/// The first log of a process is its log; a test's harness may have one already.
fn install(subscriber: impl Subscriber + Send + Sync) {
    let _ = tracing::subscriber::set_global_default(subscriber);
}

fn lines<S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync>(env: &Env, filter: &str) -> Box<dyn Layer<S> + Send + Sync> {
    // A line's spans are shown whatever its level, since they say whose it is.
    let filter = EnvFilter::new(filter).or(filter_fn(is_own_span)).and(filter_fn(is_fit_to_log));
    let lines = fmt::layer().with_writer(std::io::stderr);
    match env.log_format {
        Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_filter(filter).boxed(),
    }
}

fn is_own(about: &Metadata<'_>) -> bool {
    about.target().starts_with("ckrv")
}

fn is_own_span(about: &Metadata<'_>) -> bool {
    about.is_span() && *about.level() <= Level::INFO && is_own(about)
}

fn is_fit_to_log(about: &Metadata<'_>) -> bool {
    is_own(about) || *about.level() <= Level::INFO
}
