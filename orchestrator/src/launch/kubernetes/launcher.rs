//! Making agent pods, and telling why one never came up.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable as _};
use ckrv_shim::protocol::ShimPaths;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{EnvVar, Pod, PodDNSConfig};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use secrecy::ExposeSecret as _;
use tokio::io::AsyncRead;
use tokio::time::{sleep, timeout};
use tokio_util::io::{ReaderStream, StreamReader};

use super::KubernetesConfig;
use super::create::{client, create_or_adopt, delete, in_cluster, refused};
use super::fault::{Trouble, describe, ended, is_over, is_refusal, is_scheduled, trouble};
use super::instance::PodInstance;
use super::pods::{FENCE, JOB, MANAGED_BY, MANAGER, ROLE, Role, base, container, mount, scratch};
use super::watching::{Seen, Watching};
use crate::launch::door::{Door, Guest, Halves};
use crate::launch::{Instance as _, LaunchError, LaunchSpec, Launched, Launcher, check_name};
use crate::launch_choice::Cluster;

/// Where the shim and its folders are.
const ROOT: &str = "/ckrv";
const MAIN: &str = "agent";
/// Differs from one launch to the next: the pod of another one knows another ticket.
const LAUNCH: &str = "ckrv.dev/launch";
/// For an image that can't be pulled, or a container that can't be made.
const STUCK_WITHIN: Duration = Duration::from_secs(60);
/// For a pod that a node took, with all its images.
const UP_WITHIN: Duration = Duration::from_secs(600);
/// A pod that isn't up by then is asked for: the watch may have gone silent.
const ASKED_AFTER: Duration = Duration::from_secs(10);
/// An API server that is away for so long costs an attempt with all its work; what is shorter is waited for.
const OUTAGE: Duration = Duration::from_secs(300);
/// For what a pod sent before its end to be read.
const LAST_WORDS: Duration = Duration::from_secs(5);
const CHUNK: usize = 64 * 1024;
/// For the shim of an evicted pod to save what there is.
const GRACE_SECONDS: i64 = 60;
/// For the shim of a pod that we end: it ends what runs beneath it at once.
pub(super) const STOP_SECONDS: u32 = 1;

#[derive(Clone, Debug)]
pub struct KubernetesLauncher(Arc<Launching>);

#[derive(Debug)]
pub(super) struct Launching {
    pub api: Api<Pod>,
    config: KubernetesConfig,
    door: Door,
    pub watching: Watching,
}

impl KubernetesLauncher {
    /// Opens the door for shims and begins to watch the attempt's pods.
    ///
    /// # Errors
    /// [`LaunchError::Local`] when the pod's address can't be listened on.
    pub async fn open(client: Client, config: KubernetesConfig) -> Result<Self, LaunchError> {
        let address = SocketAddr::new(config.owner.ip, config.port);
        let door = Door::open(address).await;
        let door = door.map_err(|source| LaunchError::Local { step: "listening for shims", source })?;
        let api = Api::namespaced(client, &config.cluster.namespace);
        let selector = selector(&[(JOB, &config.belongs.job.to_string()), (FENCE, &config.belongs.fence.to_string())]);
        let watching = Watching::start(api.clone(), &selector);
        Ok(Self(Arc::new(Launching { api, config, door, watching })))
    }

    /// The client of a pod, with the token that is mounted at the usual place.
    ///
    /// # Errors
    /// [`LaunchError::Local`] outside a pod.
    pub fn client_in_pod(cluster: &Cluster) -> Result<Client, LaunchError> {
        client(in_cluster(cluster.api_server.as_ref())?, "ckrv-job-runner")
    }
}

fn selector(also: &[(&str, &str)]) -> String {
    let ours = [(MANAGED_BY, MANAGER), (ROLE, Role::Agent.name())];
    ours.iter().chain(also).map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

impl Launching {
    fn pod(&self, spec: &LaunchSpec, guest: &Guest) -> Pod {
        let KubernetesConfig { cluster, owner, belongs, .. } = &self.config;
        let mut metadata = belongs.metadata(&spec.name, &cluster.namespace, Role::Agent);
        let own = metadata.labels.take().unwrap_or_default();
        metadata.labels = Some(spec.labels.clone().into_iter().chain(own).collect());
        metadata.annotations.get_or_insert_default().insert(LAUNCH.to_owned(), uuid::Uuid::new_v4().to_string());
        metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }]);
        let disk = spec.resources.disk_mib;
        let mut install = container("shim", &cluster.image, cluster, spec.resources);
        install.command = Some(["ckrv", "internal", "shim-install", ROOT].map(str::to_owned).to_vec());
        install.volume_mounts = Some(vec![mount("ckrv", ROOT), mount("tmp", "/tmp")]);
        let mut main = container(MAIN, &spec.image, cluster, spec.resources);
        main.command = Some(vec![format!("{ROOT}/shim"), "connect".to_owned()]);
        main.working_dir = Some("/".to_owned());
        main.env = Some(self.shim_env(guest));
        main.volume_mounts = Some(vec![mount("ckrv", ROOT), mount("tmp", "/tmp"), mount("var-tmp", "/var/tmp")]);
        let mut pod = base(cluster, Role::Agent, belongs.deadline, GRACE_SECONDS);
        pod.hostname = Some("ckrv".to_owned());
        // A name is resolved by the job runner's proxy, and by nobody else: no query leaves this pod.
        pod.dns_policy = Some("None".to_owned());
        pod.dns_config = Some(PodDNSConfig { nameservers: Some(vec!["127.0.0.1".to_owned()]), ..Default::default() });
        pod.volumes = Some(["ckrv", "tmp", "var-tmp"].map(|name| scratch(name, disk)).to_vec());
        pod.init_containers = Some(vec![install]);
        pod.containers = vec![main];
        Pod { metadata, spec: Some(pod), status: None }
    }

    /// The ticket is burned at its first use and taken from this pod's address only: it may stand in a pod's specification.
    fn shim_env(&self, guest: &Guest) -> Vec<EnvVar> {
        let runner = SocketAddr::new(self.config.owner.ip, self.door.port());
        let variables = [
            ("CKRV_SHIM_RUNNER", runner.to_string()),
            ("CKRV_SHIM_CERT", self.door.fingerprint().to_owned()),
            ("CKRV_SHIM_TICKET", guest.ticket().expose_secret().to_owned()),
        ];
        let var = |(name, value): (&str, String)| EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
        variables.map(var).to_vec()
    }

    /// The quota still counts pods that are on their way out: what it refuses may fit in a moment.
    async fn create(&self, pod: &Pod) -> Result<Pod, LaunchError> {
        let pauses = ExponentialBuilder::default().with_min_delay(Duration::from_secs(1)).with_max_times(4).with_jitter();
        let made = (|| create_or_adopt(&self.api, pod, OUTAGE)).retry(pauses);
        made.when(|error| matches!(error, LaunchError::Quota { .. })).await
    }

    /// The shim is let in from the pod's address only, once that is known.
    async fn arrival(&self, uid: &str, image: &str, guest: &mut Guest) -> Result<Halves, LaunchError> {
        let mut never_up = pin!(self.never_up(uid, image));
        let address = |seen: &Seen| seen.pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok();
        tokio::select! {
            biased;
            address = self.watching.until(uid, address) => guest.from(address),
            error = &mut never_up => return Err(error),
        }
        tokio::select! {
            biased;
            arrived = guest.arrived() => arrived.map_err(|source| LaunchError::Local { step: "letting the shim in", source }),
            error = never_up => Err(error),
        }
    }

    /// Beside the watch, which a fault may keep silent for a minute.
    async fn ask(&self, uid: &str) -> LaunchError {
        let mut pause = ASKED_AFTER;
        loop {
            sleep(pause).await;
            pause = (pause * 2).min(STUCK_WITHIN);
            let Some(name) = self.watching.get(uid).map(|seen| seen.pod.name_any()) else { continue };
            match timeout(ASKED_AFTER, self.api.get_opt(&name)).await {
                Ok(Ok(Some(pod))) if pod.uid().as_deref() == Some(uid) => self.watching.correct(pod),
                // The watch tells of an end, with the last state.
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(%error, "the cluster could not say how a pod is"),
                Err(_) => tracing::debug!("the cluster did not say in time how a pod is"),
            }
        }
    }

    /// Comes back only if the shim never will.
    async fn never_up(&self, uid: &str, image: &str) -> LaunchError {
        tokio::select! {
            error = self.ask(uid) => error,
            error = self.ends_early(uid) => error,
            error = self.no_node(uid) => error,
            error = self.stuck(uid, image) => error,
            error = self.too_slow(uid) => error,
        }
    }

    async fn ends_early(&self, uid: &str) -> LaunchError {
        let seen = self.watching.until(uid, end_of).await;
        let ended = ended(&seen.pod, seen.gone);
        let mut message = describe(&seen.pod);
        if !ended.said.is_empty() && !message.contains(&ended.said) {
            message = format!("{message} ({})", ended.said);
        }
        LaunchError::NeverUp { fault: ended.fault, message }
    }

    async fn no_node(&self, uid: &str) -> LaunchError {
        let seconds = self.config.cluster.unscheduled_seconds;
        let scheduled = self.watching.until(uid, |seen| is_scheduled(&seen.pod).then_some(()));
        if timeout(Duration::from_secs(seconds), scheduled).await.is_ok() {
            return std::future::pending().await;
        }
        let message = match self.watching.get(uid).and_then(|seen| trouble(&seen.pod)) {
            Some(Trouble::Unschedulable(message)) => message,
            _ => "the scheduler said nothing of it".to_owned(),
        };
        LaunchError::Unschedulable { seconds, message }
    }

    async fn stuck(&self, uid: &str, image: &str) -> LaunchError {
        let in_trouble = |seen: &Seen| trouble(&seen.pod).filter(|trouble| !matches!(trouble, Trouble::Unschedulable(_)));
        loop {
            let trouble = self.watching.until(uid, in_trouble).await;
            let error = match trouble {
                Trouble::Image { container, message, lasting } => {
                    let error = image_error(&container, image, message, lasting);
                    if lasting {
                        return error;
                    }
                    error
                }
                Trouble::Container(message) | Trouble::Unschedulable(message) => LaunchError::NeverUp { fault: None, message },
            };
            let over = self.watching.until(uid, |seen| in_trouble(seen).is_none().then_some(()));
            if timeout(STUCK_WITHIN, over).await.is_err() {
                return error;
            }
        }
    }

    async fn too_slow(&self, uid: &str) -> LaunchError {
        self.watching.until(uid, |seen| is_scheduled(&seen.pod).then_some(())).await;
        sleep(UP_WITHIN).await;
        let state = self.watching.get(uid).map(|seen| describe(&seen.pod)).unwrap_or_default();
        LaunchError::NeverUp { fault: None, message: format!("not up within {} s: {state}", UP_WITHIN.as_secs()) }
    }
}

/// Our own image is not the job's to choose: that it is missing is nothing that its owner could change.
fn image_error(container: &str, image: &str, message: String, lasting: bool) -> LaunchError {
    let image = image.to_owned();
    if container == MAIN && (lasting || is_refusal(&message)) {
        return LaunchError::ImagePull { image, message };
    }
    if container == MAIN {
        return LaunchError::RegistryAway { image, message };
    }
    LaunchError::NeverUp { fault: None, message: format!("the image that brings the shim: {message}") }
}

/// What a shim says, until its pod is seen to be no more: nobody has to wait then for a connection to come back.
fn until_gone(read: Box<dyn AsyncRead + Send + Unpin>, launching: Arc<Launching>, uid: String) -> impl AsyncRead + Send + Unpin {
    let gone = Box::pin(async move {
        launching.watching.until(&uid, end_of).await;
        sleep(LAST_WORDS).await;
    });
    StreamReader::new(ReaderStream::with_capacity(read, CHUNK).take_until(gone))
}

pub(super) fn end_of(seen: &Seen) -> Option<Seen> {
    (seen.gone || is_over(&seen.pod)).then(|| seen.clone())
}

#[async_trait]
impl Launcher for KubernetesLauncher {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    async fn launch(&self, spec: &LaunchSpec) -> Result<Launched, LaunchError> {
        check_name(&spec.name)?;
        let launching = &self.0;
        let mut guest = launching.door.expect();
        let pod = launching.create(&launching.pod(spec, &guest)).await?;
        let uid = pod.uid().unwrap_or_default();
        launching.watching.note(&pod);
        let instance = Arc::new(PodInstance::new(Arc::clone(launching), pod));
        let (read, write) = match launching.arrival(&uid, &spec.image, &mut guest).await {
            Ok(halves) => halves,
            Err(error) => {
                instance.stop().await;
                return Err(error);
            }
        };
        let read = until_gone(read, Arc::clone(launching), uid);
        let at = |name: &str| format!("{ROOT}/{name}");
        let paths = ShimPaths { workspace: at("workspace"), home: at("home"), context: at("context"), tmp: at("tmp") };
        Ok(Launched { read: Box::new(read), write, paths, instance })
    }

    async fn sweep(&self, label: &str, value: &str) -> Result<usize, LaunchError> {
        let params = ListParams::default().labels(&selector(&[(label, value)]));
        let found = self.0.api.list(&params).await.map_err(|error| refused("list pods", error))?;
        for pod in &found.items {
            delete(&self.0.api, pod, STOP_SECONDS).await?;
        }
        Ok(found.items.len())
    }
}
