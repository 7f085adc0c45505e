//! One launched shim with its session, and the list of all of them, so that nothing of an agent outlives the attempt.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ckrv_core::job::{JobRecord, OutcomeClass};
use ckrv_core::plan::Resources;
use ckrv_shim::protocol::ShimPaths;

use super::Context;
use super::failure::{self, Failure};
use super::prepare::Start;
use crate::git::{CheckoutOptions, Git, Repository, write_checkout};
use crate::launch::kubernetes::{Belongs, KubernetesConfig, KubernetesLauncher, SHIM_PORT};
use crate::launch::proxy::ProxyClient;
use crate::launch::{
    CollectLimits, ContainerConfig, ContainerLauncher, Engine, Instance, LaunchSpec, Launcher, ProcessConfig, ProcessLauncher,
    PullPolicy, SessionConfig, SessionError, ShimSession,
};
use crate::launch_choice::{Cluster, LauncherChoice};

/// A label by which what a dead job runner left is found again.
pub const JOB_LABEL: &str = "dev.ckrv.job";
/// For a platform to say why a shim went away.
const END_WITHIN: Duration = Duration::from_secs(10);
/// What a checkout may hold.
const CHECKOUT: CollectLimits = CollectLimits { max_entries: 2_000_000, max_bytes: 16 << 30 };

/// Everything that was launched in this attempt.
#[derive(Clone, Default)]
pub struct Sandboxes(Arc<Mutex<Vec<Arc<dyn Instance>>>>);

impl Sandboxes {
    fn add(&self, instance: Arc<dyn Instance>) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(instance);
    }

    /// Ends and removes all of them, side by side. A launcher that hangs is waited for so long; then it goes on beside the caller: the task.
    pub async fn stop_all(&self, patience: Duration) -> Option<tokio::task::JoinHandle<()>> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let mut stopping = tokio::spawn(async move {
            futures::future::join_all(all.iter().map(|instance| instance.stop())).await;
        });
        tokio::time::timeout(patience, &mut stopping).await.err().map(|_| stopping)
    }
}

/// A place in which commands run on a checkout.
pub struct Sandbox {
    pub session: ShimSession,
    pub paths: ShimPaths,
    instance: Arc<dyn Instance>,
    /// For what its end means.
    job: JobRecord,
}

/// What is put in, and where.
pub struct Place<'a> {
    /// `plan1`, `verify1`: part of the container's name.
    pub name: String,
    pub image: &'a str,
    pub resources: Resources,
}

impl Sandbox {
    /// Launches a shim and gives it the checkout, on a fresh branch of that name.
    pub async fn open(context: &Context, git: &Git, start: &Start, branch: &str, place: Place<'_>) -> Result<Self, Failure> {
        let tar = checkout_file(context, git, start, branch).await?;
        let launcher = launcher(context).await?;
        let job = &context.view.job;
        let spec = LaunchSpec {
            name: format!("ckrv-{}-{}-{}", job.id.short(), job.fence, place.name),
            image: place.image.to_owned(),
            labels: BTreeMap::from([(JOB_LABEL.to_owned(), job.id.to_string())]),
            resources: limited(context, place.resources),
            run_dir: context.dir.clone(),
        };
        let launched = launcher.launch(&spec).await.map_err(|error| failure::of_launch(&error, &context.view.job))?;
        context.sandboxes.add(Arc::clone(&launched.instance));
        let proxy = ProxyClient::new().map_err(|error| Failure::infrastructure("the proxy", &error))?;
        let (paths, instance) = (launched.paths, launched.instance);
        let connected = ShimSession::connect(launched.read, launched.write, SessionConfig::default(), proxy).await;
        let session = match connected {
            Ok(session) => session,
            Err(error) => return Err(lost(&error, instance.as_ref(), job).await),
        };
        let mut sandbox = Self { session, paths, instance, job: job.clone() };
        let file = tokio::fs::File::open(&tar).await.map_err(|error| Failure::infrastructure("the checkout", &error))?;
        let prepared = sandbox.session.prepare(sandbox.paths.clone(), file, CHECKOUT).await;
        let _ = std::fs::remove_file(&tar);
        match prepared {
            Ok((entries, bytes)) => tracing::debug!(entries, bytes, "the checkout is in place"),
            Err(error) => return Err(sandbox.failure(error).await),
        }
        Ok(sandbox)
    }

    /// What a session's error means for the job.
    pub async fn failure(&self, error: SessionError) -> Failure {
        match error {
            SessionError::Failed(message) => Failure::ends(OutcomeClass::Result, message),
            SessionError::Protocol(message) => {
                Failure::ends(OutcomeClass::Result, format!("what came back from the agent's container is not valid: {message}"))
            }
            error @ SessionError::Local(_) => Failure::infrastructure("the agent's container", &error),
            error @ SessionError::Lost(_) => lost(&error, self.instance.as_ref(), &self.job).await,
        }
    }

    /// What it means that the platform asked the shim to end.
    pub async fn evicted(&self) -> Failure {
        let asked = SessionError::Lost("the platform asked the agent's container to end".to_owned());
        lost(&asked, self.instance.as_ref(), &self.job).await
    }

    /// A text of the plan with its workspace where this launcher has it.
    pub fn placed(&self, text: &str) -> String {
        if self.paths.workspace == super::plan::WORKSPACE {
            text.to_owned()
        } else {
            text.replace(super::plan::WORKSPACE, &self.paths.workspace)
        }
    }

    pub async fn close(self) {
        self.session.bye().await;
        self.instance.stop().await;
    }
}

/// A shim that went away. Its platform says why, a moment later than its stream does.
async fn lost(error: &SessionError, instance: &dyn Instance, job: &JobRecord) -> Failure {
    let by_itself = tokio::time::timeout(END_WITHIN, instance.watch()).await;
    let stopped = instance.stop().await;
    failure::of_end(&by_itself.unwrap_or(stopped), &error.to_string(), job)
}

async fn launcher(context: &Context) -> Result<Box<dyn Launcher>, Failure> {
    match &context.view.launcher {
        LauncherChoice::Container { engine } => {
            let engine = Engine::connect(engine).await.map_err(|error| failure::of_launch(&error, &context.view.job))?;
            let mut config = ContainerConfig::new(Bytes::from_static(context.shim));
            config.pull = PullPolicy::Never;
            Ok(Box::new(ContainerLauncher::new(engine, config)))
        }
        LauncherChoice::Kubernetes(cluster) => {
            let launcher = context.pods.get_or_try_init(|| pods(context, cluster)).await?;
            Ok(Box::new(launcher.clone()))
        }
        LauncherChoice::Process { path, shim } => {
            let program = shim.clone().unwrap_or_else(|| context.program.clone());
            let shim = vec![program.into_os_string(), "internal".into(), "shim".into()];
            Ok(Box::new(ProcessLauncher::new(ProcessConfig { shim, path: path.into() })))
        }
    }
}

/// A cluster has neighbours: what the plan leaves open is policy's most, there.
fn limited(context: &Context, asked: Resources) -> Resources {
    if !matches!(context.view.launcher, LauncherChoice::Kubernetes(_)) {
        return asked;
    }
    let most = context.view.policy.max_resources;
    let or = |asked: u32, most: u32| if asked == 0 { most } else { asked };
    Resources {
        cpu_millis: or(asked.cpu_millis, most.cpu_millis),
        memory_mib: or(asked.memory_mib, most.memory_mib),
        disk_mib: or(asked.disk_mib, most.disk_mib),
    }
}

async fn pods(context: &Context, cluster: &Cluster) -> Result<KubernetesLauncher, Failure> {
    let job = &context.view.job;
    let (Some(owner), Some(lease)) = (context.pod.clone(), &job.lease) else {
        return Err(Failure::Infrastructure("this job runner is not in a pod, or holds no lease: it can't make pods".to_owned()));
    };
    let belongs = Belongs {
        job: job.id,
        fence: job.fence,
        attempt: job.attempt,
        claim: lease.claim,
        install: lease.worker.clone(),
        deadline: job.deadline,
    };
    let config = KubernetesConfig { cluster: cluster.clone(), owner, belongs, port: SHIM_PORT };
    let opened = async { KubernetesLauncher::open(KubernetesLauncher::client_in_pod(cluster)?, config).await };
    opened.await.map_err(|error| failure::of_launch(&error, job))
}

async fn checkout_file(context: &Context, git: &Git, start: &Start, branch: &str) -> Result<std::path::PathBuf, Failure> {
    let path = context.dir.join("checkout.tar");
    let file = create(&path).map_err(|error| Failure::infrastructure("the checkout", &error))?;
    let repository = Repository { branch: branch.to_owned(), head: start.head.clone() };
    let options = CheckoutOptions { commit: start.tree.clone(), repository: Some(repository) };
    let (writer, refused) = write_checkout(git, &options, std::io::BufWriter::new(file)).await?;
    writer.into_inner().map_err(|error| Failure::infrastructure("the checkout", error.error()))?;
    for path in refused {
        context.log.warn("git", format!("left out of the checkout: {path}"));
    }
    Ok(path)
}

fn create(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::launch::Ended;

    /// Counts its stop, or never comes back from it.
    #[derive(Default)]
    struct Counting {
        stopped: AtomicUsize,
        hangs: bool,
    }

    #[async_trait::async_trait]
    impl Instance for Counting {
        async fn watch(&self) -> Ended {
            std::future::pending().await
        }

        async fn stop(&self) -> Ended {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            self.stopped.fetch_add(1, Ordering::SeqCst);
            Ended::default()
        }
    }

    #[tokio::test]
    async fn a_launcher_that_hangs_holds_neither_the_report_nor_the_others_up() {
        let sandboxes = Sandboxes::default();
        let (hanging, other) = (Arc::new(Counting { hangs: true, ..Counting::default() }), Arc::new(Counting::default()));
        sandboxes.add(hanging);
        sandboxes.add(other.clone());
        let late = sandboxes.stop_all(Duration::from_millis(20)).await;
        assert!(late.is_some_and(|late| !late.is_finished()));
        assert_eq!(other.stopped.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn what_is_stopped_in_time_leaves_nothing_to_wait_for() {
        let sandboxes = Sandboxes::default();
        sandboxes.add(Arc::new(Counting::default()));
        assert!(sandboxes.stop_all(Duration::from_secs(60)).await.is_none());
    }
}
