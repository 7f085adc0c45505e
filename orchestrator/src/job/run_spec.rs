//! What an adapter planned and policy granted, as the command that a sandbox runs.

use std::time::Duration;

use ckrv_core::plan;

use super::failure::Failure;
use super::plan::{Planned, seconds_left};
use super::sandbox::Sandbox;
use super::{Context, egress};
use crate::launch::{self, PlacedFile, Route, RunSpec, StopSignal, Watchdog};
use crate::launch_choice::LauncherChoice;

/// The plan in the launcher's words; paths of the plan become those of the session.
pub async fn run_spec(context: &Context, planned: &Planned, sandbox: &Sandbox) -> Result<RunSpec, Failure> {
    let request = &planned.granted.request;
    let place = |text: &String| sandbox.placed(text);
    let mut argv: Vec<String> = request.command.iter().chain(&request.args).map(place).collect();
    if let LauncherChoice::Process { path, .. } = &context.view.launcher
        && let Some(program) = argv.first_mut()
    {
        let local = context.view.policy.local_command(&request.image)?;
        super::local_command::check(local, path).await?;
        local.program.clone_into(program);
    }
    let mut env: std::collections::BTreeMap<String, String> =
        request.env.iter().map(|(name, value)| (name.clone(), place(value))).collect();
    for secret in &request.secrets {
        if let Some(value) = planned.secrets.get(&secret.slot) {
            env.insert(secret.env.clone(), secrecy::ExposeSecret::expose_secret(value).to_owned());
        }
    }
    // For the agent's own telemetry; one that knows nothing of it is not disturbed.
    if let Some(trace) = context.view.job.trace.as_ref().filter(|_| context.view.policy.trace_agents) {
        env.entry("TRACEPARENT".to_owned()).or_insert_with(|| trace.clone());
    }
    let routes = planned.granted.routes.iter().filter_map(|granted| {
        let route = &granted.route;
        Some(Route {
            base_url_env: route.base_url_env.clone(),
            path: route.path.clone(),
            placeholder_env: route.placeholder_env.clone(),
            upstream: granted.url.clone(),
            header: route.header.clone(),
            prefix: route.prefix.clone(),
            secret: planned.secrets.get(&route.slot)?.clone(),
        })
    });
    let egress = egress::proxy(context, "the agent", &request.egress, !request.routes.is_empty());
    let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
    Ok(RunSpec {
        argv,
        env,
        cwd: launch::BytePath::default(),
        files: request
            .files
            .iter()
            .map(|file| PlacedFile {
                place: placement(file.place),
                path: file.path.clone(),
                content: place(&file.content),
                executable: file.executable,
            })
            .collect(),
        stdin: request.stdin.clone(),
        stop_signal: match request.stop.signal {
            plan::StopSignal::Term => StopSignal::Term,
            plan::StopSignal::Int => StopSignal::Int,
            plan::StopSignal::Hup => StopSignal::Hup,
        },
        grace_seconds: request.stop.grace_seconds,
        deadline_seconds: seconds_left(context),
        watchdog: Some(Watchdog {
            first_output: seconds(request.watchdog.first_output_seconds),
            idle: seconds(request.watchdog.idle_seconds),
        }),
        routes: routes.collect(),
        egress,
    })
}

fn placement(place: plan::Place) -> launch::Place {
    match place {
        plan::Place::Home => launch::Place::Home,
        plan::Place::Context => launch::Place::Context,
    }
}
