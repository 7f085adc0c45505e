//! The job pod: one container of our own image, with two tokens and no secret.

use ckrv_core::id::{Fence, JobId};
use ckrv_core::job::JobRecord;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, DownwardAPIProjection, DownwardAPIVolumeFile, EnvVar, EnvVarSource, KeyToPath, ObjectFieldSelector, Pod,
    ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use crate::gateway::{AUDIENCE, POD_GATEWAY, Task};
use crate::launch::kubernetes::pods::{Belongs, Role, base, container, mount, scratch};
use crate::launch_choice::Cluster;

/// The variables that tell `ckrv internal job-pod` which attempt it is.
pub mod env {
    pub const JOB: &str = "CKRV_JOB";
    pub const FENCE: &str = "CKRV_FENCE";
    pub const CLAIM: &str = "CKRV_CLAIM";
    pub const GATEWAY_URL: &str = "CKRV_GATEWAY_URL";
    pub const TRACE: &str = "TRACEPARENT";
    pub const POD_NAME: &str = "CKRV_POD_NAME";
    pub const POD_UID: &str = "CKRV_POD_UID";
    pub const POD_IP: &str = "CKRV_POD_IP";
}

/// Where the attempt works.
pub const WORK: &str = "/work";
const TMP: &str = "/tmp";
const TMP_MIB: u32 = 256;
/// For the API server, where every client looks for it.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Time to give the job back when the pod is asked to go.
const GRACE_SECONDS: i64 = 30;
const TOKEN_SECONDS: i64 = 3600;

pub(super) fn name(job: JobId, fence: Fence) -> String {
    format!("ckrv-{}-{fence}", job.0.simple())
}

pub(super) fn job_pod(cluster: &Cluster, install: &str, job: &JobRecord, task: &Task) -> Pod {
    let belongs = Belongs {
        job: task.job,
        fence: task.fence,
        attempt: job.attempt,
        claim: task.claim,
        install: install.to_owned(),
        deadline: job.deadline,
    };
    let mut runner = container("job", &cluster.image, cluster, cluster.job_resources);
    // What it doesn't use others may; it must not be slow where a node is idle.
    if let Some(limits) = runner.resources.as_mut().and_then(|resources| resources.limits.as_mut()) {
        limits.remove("cpu");
    }
    runner.command = Some(["ckrv", "internal", "job-pod"].map(str::to_owned).to_vec());
    runner.working_dir = Some(WORK.to_owned());
    runner.env = Some(environment(cluster, task));
    runner.volume_mounts =
        Some(vec![mount("work", WORK), mount("tmp", TMP), read_only("gateway", POD_GATEWAY), read_only("account", ACCOUNT)]);
    let mut spec = base(cluster, Role::Job, job.deadline, GRACE_SECONDS);
    spec.containers = vec![runner];
    spec.volumes = Some(vec![
        scratch("work", cluster.job_resources.disk_mib),
        scratch("tmp", TMP_MIB),
        projected("gateway", vec![token(Some(AUDIENCE)), ca(&cluster.gateway_ca)]),
        projected("account", vec![token(None), ca("kube-root-ca.crt"), namespace()]),
    ]);
    Pod { metadata: belongs.metadata(&name(task.job, task.fence), &cluster.namespace, Role::Job), spec: Some(spec), status: None }
}

fn environment(cluster: &Cluster, task: &Task) -> Vec<EnvVar> {
    let plain = |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
    let mut all = vec![
        plain(env::JOB, task.job.to_string()),
        plain(env::FENCE, task.fence.to_string()),
        plain(env::CLAIM, task.claim.to_string()),
        plain(env::GATEWAY_URL, cluster.gateway_url.to_string()),
        plain("TMPDIR", TMP.to_owned()),
        plain("HOME", WORK.to_owned()),
    ];
    all.extend(task.trace.iter().map(|trace| plain(env::TRACE, trace.clone())));
    all.extend(logging().map(|(name, value)| plain(&name, value)));
    all.extend(
        [(env::POD_NAME, "metadata.name"), (env::POD_UID, "metadata.uid"), (env::POD_IP, "status.podIP")]
            .map(|(name, path)| from_field(name, path)),
    );
    all
}

/// Of our environment, what makes a job pod log and trace as we do. An exporter's headers may hold a key, and pods are for many to read.
fn logging() -> impl Iterator<Item = (String, String)> {
    const NAMES: [&str; 4] = ["RUST_LOG", "RUST_BACKTRACE", "CKRV_LOG", "CKRV_LOG_FORMAT"];
    let wanted = |name: &str| NAMES.contains(&name) || (name.starts_with("OTEL_") && !name.ends_with("_HEADERS"));
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(move |(name, _)| wanted(name))
}

fn from_field(name: &str, path: &str) -> EnvVar {
    let field_ref = Some(ObjectFieldSelector { field_path: path.to_owned(), api_version: None });
    let value_from = Some(EnvVarSource { field_ref, ..Default::default() });
    EnvVar { name: name.to_owned(), value: None, value_from }
}

fn read_only(volume: &str, path: &str) -> k8s_openapi::api::core::v1::VolumeMount {
    k8s_openapi::api::core::v1::VolumeMount { read_only: Some(true), ..mount(volume, path) }
}

fn projected(name: &str, sources: Vec<VolumeProjection>) -> Volume {
    let projected = Some(ProjectedVolumeSource { sources: Some(sources), default_mode: Some(0o440) });
    Volume { name: name.to_owned(), projected, ..Default::default() }
}

/// Bound to the pod: it is worth nothing once that is gone. Without an audience it is for the API server.
fn token(audience: Option<&str>) -> VolumeProjection {
    let token = ServiceAccountTokenProjection {
        audience: audience.map(str::to_owned),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: "token".to_owned(),
    };
    VolumeProjection { service_account_token: Some(token), ..Default::default() }
}

fn ca(config_map: &str) -> VolumeProjection {
    let item = KeyToPath { key: "ca.crt".to_owned(), path: "ca.crt".to_owned(), mode: None };
    let config_map = ConfigMapProjection { name: config_map.to_owned(), items: Some(vec![item]), optional: None };
    VolumeProjection { config_map: Some(config_map), ..Default::default() }
}

fn namespace() -> VolumeProjection {
    let field_ref = Some(ObjectFieldSelector { field_path: "metadata.namespace".to_owned(), api_version: None });
    let item = DownwardAPIVolumeFile { path: "namespace".to_owned(), field_ref, ..Default::default() };
    VolumeProjection { downward_api: Some(DownwardAPIProjection { items: Some(vec![item]) }), ..Default::default() }
}
