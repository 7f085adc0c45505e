//! The gateway: the only way from a job runner to the service. A job runner holds a token for one job and one fence, and gets what belongs to
//! that job and nothing else: its record, beat, log, artifacts, the one git credential and the secrets of its slots, the end.
//!
//! Invariant: whatever a job runner asks is checked against job, fence and claim; a captured job runner reaches one job.

mod bearer;
mod client;
mod denied;
mod intake;
mod listen;
mod pod_identity;
mod proof;
mod secrets;
mod server;
#[cfg(test)]
mod tests;
mod uploads;
mod wire;

pub use bearer::OnToken;
pub use ckrv_tls::TlsFiles;
pub use client::{ClientError, Gateway, GatewayError};
pub use listen::{serve_tls, serve_unix};
pub use pod_identity::{AUDIENCE, PodIdentity};
pub use server::{GatewayServer, sha256_hex};
pub use wire::*;

/// Names the trace that a job runner works for.
const TRACEPARENT: reqwest::header::HeaderName = reqwest::header::HeaderName::from_static("traceparent");
