//! The container launcher: the shim as process 1 of a container without network, host folders, capabilities or a log.
//!
//! The engine's API carries everything: the shim goes in as an archive, the session over the attached stdin and stdout.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder, InspectContainerOptions,
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    UploadToContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use bytes::Bytes;
use ckrv_shim::protocol::ShimPaths;
use futures::StreamExt as _;
use tar::{Builder, EntryType, Header};

use super::engine::{Engine, status};
use super::{Ended, Fault, Instance, LaunchError, LaunchSpec, Launched, Launcher, Tail, attach, check_name};

/// Where the shim and its folders are: a volume of the container's own, the one place on its disk that can be written to. Podman
/// gives it to the container's user as a whole; the shim runs already by then, and is never started again.
const ROOT: &str = "/ckrv";
/// Marks every container that is ours.
const MANAGED: &str = "dev.ckrv.managed";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Never,
    IfMissing,
}

#[derive(Clone, Debug)]
pub struct ContainerConfig {
    /// The static binary; empty in a build without one.
    pub shim: Bytes,
    /// User and group of the agent, as numbers.
    pub uid: u32,
    pub gid: u32,
    pub pids_limit: u32,
    /// Size of `/tmp`, which is memory.
    pub tmpfs_mib: u32,
    pub pull: PullPolicy,
}

impl ContainerConfig {
    pub fn new(shim: impl Into<Bytes>) -> Self {
        Self { shim: shim.into(), uid: 1000, gid: 1000, pids_limit: 512, tmpfs_mib: 512, pull: PullPolicy::IfMissing }
    }
}

#[derive(Clone, Debug)]
pub struct ContainerLauncher {
    engine: Engine,
    config: ContainerConfig,
}

impl ContainerLauncher {
    pub fn new(engine: Engine, config: ContainerConfig) -> Self {
        Self { engine, config }
    }

    async fn ensure_image(&self, image: &str) -> Result<(), LaunchError> {
        match self.engine.docker.inspect_image(image).await {
            Ok(_) => return Ok(()),
            Err(error) if status(&error) == Some(404) => {}
            Err(error) => return Err(self.engine.refused("look for the image", error)),
        }
        if self.config.pull == PullPolicy::Never {
            return Err(LaunchError::ImageNotFound { image: image.to_owned() });
        }
        let options = CreateImageOptionsBuilder::default().from_image(image).build();
        let mut progress = std::pin::pin!(self.engine.docker.create_image(Some(options), None, None));
        while let Some(step) = progress.next().await {
            step.map_err(|error| LaunchError::ImagePull { image: image.to_owned(), message: error.to_string() })?;
        }
        Ok(())
    }

    fn body(&self, spec: &LaunchSpec) -> ContainerCreateBody {
        let mut labels: HashMap<String, String> = spec.labels.clone().into_iter().collect();
        labels.insert(MANAGED.to_owned(), "true".to_owned());
        ContainerCreateBody {
            image: Some(spec.image.clone()),
            hostname: Some("ckrv".to_owned()),
            user: Some(format!("{}:{}", self.config.uid, self.config.gid)),
            entrypoint: Some(vec![format!("{ROOT}/shim")]),
            cmd: Some(Vec::new()),
            working_dir: Some("/".to_owned()),
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            open_stdin: Some(true),
            // The end of the attached stream is the end of stdin: the shim sees at once that its runner is gone.
            stdin_once: Some(true),
            tty: Some(false),
            network_disabled: Some(true),
            labels: Some(labels),
            volumes: Some(vec![ROOT.to_owned()]),
            host_config: Some(self.host_config(spec)),
            ..Default::default()
        }
    }

    fn host_config(&self, spec: &LaunchSpec) -> HostConfig {
        let limit = |value: u32, unit: i64| (value > 0).then(|| i64::from(value) * unit);
        let memory = limit(spec.resources.memory_mib, 1 << 20);
        let tmp = format!("rw,exec,nosuid,nodev,mode=1777,size={}m", self.config.tmpfs_mib);
        HostConfig {
            network_mode: Some("none".to_owned()),
            readonly_rootfs: Some(true),
            tmpfs: Some(HashMap::from([("/tmp".to_owned(), tmp.clone()), ("/var/tmp".to_owned(), tmp)])),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            privileged: Some(false),
            ipc_mode: Some("private".to_owned()),
            memory,
            // No swap: the limit is the limit.
            memory_swap: memory,
            nano_cpus: limit(spec.resources.cpu_millis, 1_000_000),
            pids_limit: Some(self.config.pids_limit.into()),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            // We remove it ourselves: first it has to be asked whether it ran out of memory.
            auto_remove: Some(false),
            ..Default::default()
        }
    }

    async fn create(&self, spec: &LaunchSpec) -> Result<String, LaunchError> {
        let options = || Some(CreateContainerOptionsBuilder::default().name(&spec.name).build());
        let created = match self.engine.docker.create_container(options(), self.body(spec)).await {
            // The same run of the same attempt: the leftover of a runner that died in between.
            Err(error) if matches!(status(&error), Some(409)) && self.is_ours(&spec.name).await => {
                remove(&self.engine, &spec.name).await.map_err(|error| self.engine.refused("remove a leftover", error))?;
                self.engine.docker.create_container(options(), self.body(spec)).await
            }
            created => created,
        };
        match created {
            Ok(created) => Ok(created.id),
            Err(error) if status(&error) == Some(404) => Err(LaunchError::ImageNotFound { image: spec.image.clone() }),
            Err(error) => Err(self.engine.refused("create the container", error)),
        }
    }

    async fn is_ours(&self, name: &str) -> bool {
        let found = self.engine.docker.inspect_container(name, None::<InspectContainerOptions>).await.ok();
        found.and_then(|found| found.config?.labels).is_some_and(|labels| labels.contains_key(MANAGED))
    }

    async fn bring_up(&self, id: &str, said: Tail) -> Result<Launched, LaunchError> {
        let engine = &self.engine;
        let archive = archive(&self.config).map_err(|source| LaunchError::Local { step: "packing the shim", source })?;
        let options = UploadToContainerOptionsBuilder::default().path(ROOT).build();
        let uploaded = engine.docker.upload_to_container(id, Some(options), bollard::body_full(archive.into())).await;
        uploaded.map_err(|error| engine.refused("take the shim in", error))?;
        let options = AttachContainerOptionsBuilder::default().stream(true).stdin(true).stdout(true).stderr(true).build();
        let attached = engine.docker.attach_container(id, Some(options)).await;
        let attached = attached.map_err(|error| engine.refused("attach to the container", error))?;
        let started = engine.docker.start_container(id, None::<StartContainerOptions>).await;
        started.map_err(|error| engine.refused("start the container", error))?;
        let (read, write) = attach::streams(attached, said.clone());
        let instance = Arc::new(ContainerInstance { engine: engine.clone(), id: id.to_owned(), said, removed: false.into() });
        let at = |name: &str| format!("{ROOT}/{name}");
        let paths = ShimPaths { workspace: at("workspace"), home: at("home"), context: at("context"), tmp: at("tmp") };
        Ok(Launched { read, write, paths, instance })
    }
}

#[async_trait]
impl Launcher for ContainerLauncher {
    fn name(&self) -> &'static str {
        "container"
    }

    async fn launch(&self, spec: &LaunchSpec) -> Result<Launched, LaunchError> {
        check_name(&spec.name)?;
        if self.config.shim.is_empty() {
            return Err(LaunchError::NoShim);
        }
        self.ensure_image(&spec.image).await?;
        let id = self.create(spec).await?;
        let launched = self.bring_up(&id, Tail::default()).await;
        if launched.is_err() {
            let _ = remove(&self.engine, &id).await;
        }
        launched
    }

    async fn sweep(&self, label: &str, value: &str) -> Result<usize, LaunchError> {
        let wanted = vec![format!("{label}={value}"), format!("{MANAGED}=true")];
        let filters = HashMap::from([("label".to_owned(), wanted)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.engine.docker.list_containers(Some(options)).await;
        let found = found.map_err(|error| self.engine.refused("list containers", error))?;
        let ids: Vec<_> = found.into_iter().filter_map(|container| container.id).collect();
        for id in &ids {
            remove(&self.engine, id).await.map_err(|error| self.engine.refused("remove a leftover", error))?;
        }
        Ok(ids.len())
    }
}

/// The shim, owned by root and not writable, and the agent's folders.
fn archive(config: &ContainerConfig) -> std::io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::with_capacity(config.shim.len() + 8192));
    let mut header = Header::new_gnu();
    header.set_mode(0o555);
    header.set_size(config.shim.len() as u64);
    tar.append_data(&mut header, "shim", &config.shim[..])?;
    for folder in ["workspace/", "home/", "context/", "tmp/"] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o700);
        header.set_uid(config.uid.into());
        header.set_gid(config.gid.into());
        header.set_size(0);
        tar.append_data(&mut header, folder, std::io::empty())?;
    }
    tar.into_inner()
}

/// With its volume. One that is gone already is no error.
async fn remove(engine: &Engine, id: &str) -> Result<(), bollard::errors::Error> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match engine.docker.remove_container(id, Some(options)).await {
        Err(error) if status(&error) != Some(404) => Err(error),
        _ => Ok(()),
    }
}

struct ContainerInstance {
    engine: Engine,
    id: String,
    said: Tail,
    removed: std::sync::atomic::AtomicBool,
}

impl ContainerInstance {
    async fn end(&self) -> Ended {
        let inspected = self.engine.docker.inspect_container(&self.id, None::<InspectContainerOptions>).await;
        let state = inspected.ok().and_then(|container| container.state).unwrap_or_default();
        Ended {
            code: state.exit_code.and_then(|code| i32::try_from(code).ok()),
            fault: state.oom_killed.unwrap_or(false).then_some(Fault::OutOfMemory),
            said: self.said.text(),
        }
    }
}

#[async_trait]
impl Instance for ContainerInstance {
    async fn watch(&self) -> Ended {
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let mut waiting = std::pin::pin!(self.engine.docker.wait_container(&self.id, Some(options)));
        // Its answer is an error for every code but zero; the inspection says which.
        let _ = waiting.next().await;
        self.end().await
    }

    async fn stop(&self) -> Ended {
        let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        let _ = self.engine.docker.kill_container(&self.id, Some(options)).await;
        let ended = self.end().await;
        match remove(&self.engine, &self.id).await {
            Ok(()) => self.removed.store(true, std::sync::atomic::Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, container = %self.id, "the container could not be removed"),
        }
        ended
    }
}

impl Drop for ContainerInstance {
    /// A run that was given up half-way leaves no container behind, as far as there is still somebody to remove it.
    fn drop(&mut self) {
        if self.removed.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (engine, id) = (self.engine.clone(), std::mem::take(&mut self.id));
            runtime.spawn(async move { remove(&engine, &id).await });
        }
    }
}
