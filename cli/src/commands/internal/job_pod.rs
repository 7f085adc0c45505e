//! `ckrv internal job-pod`: the job runner as the program of a pod.
//!
//! Exit code 0: the attempt was reported, given back, or was over before it began. 1: it could not be run; its dispatcher sees the pod's end
//! and lets the next attempt begin.

use std::path::Path;
use std::str::FromStr;

use ckrv_core::id::Fence;
use ckrv_orchestrator::dispatch::{WORK, env};
use ckrv_orchestrator::gateway::{GatewayAddress, Task};
use ckrv_orchestrator::job::Surroundings;
use ckrv_orchestrator::launch::kubernetes::PodIdentity;
use tokio_util::sync::CancellationToken;

use crate::App;
use crate::error::{CliError, Exit, Outcome};
use crate::logging::Log;

/// # Errors
/// A variable that the dispatcher didn't set, a gateway that can't be called.
pub async fn run(app: &App) -> Outcome {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let log = Log::start(&app.settings.env, "info");
    let ran = attempt().await;
    log.end().await;
    ran.map(|()| Exit::OK)
}

async fn attempt() -> Result<(), CliError> {
    let task = task(&variable)?;
    let surroundings = Surroundings { leave: asked_to_leave()?, pod: PodIdentity::from_variables(variable) };
    ckrv_orchestrator::job::run_task(task, Path::new(WORK), super::SHIM, crate::logging::link_span(), surroundings)
        .await
        .map_err(|error| CliError::other("job_runner", "the attempt could not be run").source(error))
}

#[expect(clippy::disallowed_methods, reason = "a job pod's only configuration, read here and nowhere else")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn task(variable: &impl Fn(&str) -> Option<String>) -> Result<Task, CliError> {
    fn read<T: FromStr>(variable: &impl Fn(&str) -> Option<String>, name: &str) -> Result<T, CliError> {
        let value = variable(name).and_then(|value| value.parse().ok());
        value.ok_or_else(|| {
            CliError::other("no_task", format!("{name} is missing or can't be read"))
                .hint("only a dispatcher starts this, as a pod")
        })
    }
    Ok(Task {
        job: read(variable, env::JOB)?,
        fence: Fence(read(variable, env::FENCE)?),
        claim: read(variable, env::CLAIM)?,
        gateway: GatewayAddress::in_pod(read(variable, env::GATEWAY_URL)?),
        trace: variable(env::TRACE),
    })
}

/// A node that is emptied, an eviction: the kubelet asks once and waits half a minute.
fn asked_to_leave() -> Result<CancellationToken, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).map_err(|error| CliError::io("can't wait for signals", error))?;
    let leave = CancellationToken::new();
    let asked = leave.clone();
    tokio::spawn(async move {
        term.recv().await;
        asked.cancel();
    });
    Ok(leave)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_is_made_of_variables_and_a_missing_one_is_named() {
        let all = |name: &str| {
            Some(match name {
                "CKRV_FENCE" => "3".to_owned(),
                "CKRV_GATEWAY_URL" => "https://gateway.example:7421".to_owned(),
                "CKRV_JOB" | "CKRV_CLAIM" => "01900000-0000-7000-8000-000000000001".to_owned(),
                _ => return None,
            })
        };
        let task = task(&all).unwrap();
        assert_eq!(task.fence, Fence(3));
        assert!(matches!(task.gateway, GatewayAddress::Tls { .. }));
        let without = |name: &str| all(name).filter(|_| name != "CKRV_CLAIM");
        let error = super::task(&without).unwrap_err();
        assert!(format!("{error}").contains("CKRV_CLAIM"), "{error}");
    }
}
