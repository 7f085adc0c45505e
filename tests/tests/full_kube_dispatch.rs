//! A dispatcher outside the cluster whose jobs run inside: job pods, the gateway over TLS, and what happens when one of them dies.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::bench;
use ckrv_tests::git::git;
use ckrv_tests::git_http::{GitHttp, Rules};
use ckrv_tests::http::Authority;
use ckrv_tests::kube::{kubectl, kubectl_with};
use ckrv_tests::relay::Relay;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, script_spec};
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::wait::wait_until;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};

/// A job waits for two pods, and after a loss for another two.
const PATIENCE: Duration = Duration::from_secs(120);
const AUDIENCE: &str = "ckrv-gateway";

/// A namespace for jobs, as the chart makes one. Dropped, it is deleted.
struct Namespace(String);

impl Namespace {
    async fn make() -> Result<Self> {
        let namespace = Self(format!("ckrv-dispatch-{:08x}", rand::random::<u32>()));
        let of = |kind: &str, name: &str| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "namespace": namespace.0 } });
        let mut home = of("Namespace", &namespace.0);
        home["metadata"]["labels"] = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
        let (mut role, mut binding) = (of("Role", "ckrv-job"), of("RoleBinding", "ckrv-job"));
        for object in [&mut role, &mut binding] {
            object["apiVersion"] = json!("rbac.authorization.k8s.io/v1");
        }
        role["rules"] =
            json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "create", "delete"] }]);
        binding["roleRef"] = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "ckrv-job" });
        binding["subjects"] = json!([{ "kind": "ServiceAccount", "name": "ckrv-job", "namespace": namespace.0 }]);
        let items = [home, of("ServiceAccount", "ckrv-job"), of("ServiceAccount", "ckrv-agent"), role, binding];
        apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items })).await?;
        Ok(namespace)
    }

    async fn kubectl(&self, args: &[&str]) -> Result<String> {
        kubectl(&[&["--namespace", &self.0], args].concat()).await
    }

    /// The job pods of a job, as the API server tells them.
    async fn job_pods(&self, job: &str) -> Result<Vec<Value>> {
        self.pods(&format!("ckrv.dev/role=job,ckrv.dev/job={job}")).await
    }

    async fn pods(&self, selector: &str) -> Result<Vec<Value>> {
        let text = self.kubectl(&["get", "pods", "--selector", selector, "--output", "json"]).await?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// A pod that differs from this one by its account alone. It never starts.
    async fn make_impostor(&self, mut pod: Value) -> Result<()> {
        let metadata = json!({ "name": "impostor", "namespace": self.0, "labels": pod["metadata"]["labels"],
            "annotations": pod["metadata"]["annotations"] });
        let spec = pod["spec"].as_object_mut().context("no pod")?;
        spec.retain(|name, _| !["nodeName", "serviceAccount"].contains(&name.as_str()));
        spec.insert("serviceAccountName".to_owned(), json!("ckrv-agent"));
        spec.insert("schedulingGates".to_owned(), json!([{ "name": "ckrv.dev/never" }]));
        apply(&json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })).await
    }

    async fn gone(&self, job: &str) -> Result<()> {
        let selector = format!("ckrv.dev/job={job}");
        let left = async || self.pods(&selector).await.ok().filter(Vec::is_empty).map(drop);
        wait_until("no pod of an ended job is left", PATIENCE, left).await
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let (Ok(kubectl), Ok(kubeconfig)) = (bench::kubectl(), bench::kubeconfig()) else { return };
        let mut command = Command::new(kubectl);
        command.arg("--kubeconfig").arg(kubeconfig).args(["delete", "namespace", &self.0, "--wait=false"]);
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

async fn apply(object: &Value) -> Result<()> {
    kubectl_with(&["apply", "--filename", "-"], Some(&object.to_string())).await.map(drop)
}

/// Signs the gateway's certificate.
struct GatewayCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
    host: IpAddr,
}

impl GatewayCa {
    fn new(host: IpAddr) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "the gateway's test authority");
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)?, host })
    }

    /// Writes a new certificate and its key, as whoever renews them does.
    fn write(&self, folder: &Path) -> Result<()> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![self.host.to_string()])?.signed_by(&key, &self.issuer)?;
        std::fs::write(folder.join("tls.key"), key.serialize_pem())?;
        Ok(std::fs::write(folder.join("tls.crt"), certificate.pem())?)
    }
}

struct Bench {
    scene: Scene,
    namespace: Namespace,
    gateway: SocketAddr,
    ca: GatewayCa,
    folder: tempfile::TempDir,
    _git: (GitHttp, Relay, Authority),
}

impl Bench {
    async fn start() -> Result<Self> {
        let (host, namespace) = (bench::kube_host()?, Namespace::make().await?);
        let (folder, ca, git_ca) = (tempfile::tempdir()?, GatewayCa::new(host)?, Authority::new()?);
        ca.write(folder.path())?;
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "ckrv-gateway-ca", "namespace": namespace.0 },
            "data": { "ca.crt": ca.issuer.pem() } });
        apply(&map).await?;
        let repo = Repo::small(&[("README.md", "# A project\n")])?;
        let server = GitHttp::start(repo.root(), Rules::default(), Some(&git_ca)).await?;
        let (relay, url) = Relay::to_url(host, &server.url("project.git")).await?;
        // Free a moment ago; the server must find it again when it is started anew.
        let gateway = std::net::TcpListener::bind((host, 0))?.local_addr()?;
        let config = toml::toml! {
            worker = "a-test"
            [policy]
            private_git_hosts = true
            [policy.max_resources]
            cpu_millis = 100
            memory_mib = 256
            disk_mib = 512
        };
        let setup = Setup { config: complete(config, &namespace, gateway, folder.path(), &git_ca)?, ..Setup::default() };
        let scene = Scene::of(Server::start_embedded(setup).await?, repo).await?;
        git(&scene.project, &["remote", "set-url", "origin", &format!("{url}/project.git")])?;
        Ok(Self { scene, namespace, gateway, ca, folder, _git: (server, relay, git_ca) })
    }

    /// What a script prints in the agent's pod of this attempt.
    async fn in_agent(&self, job: &str, attempt: u32, script: &str) -> Option<String> {
        let pods = self.namespace.pods(&format!("ckrv.dev/role=agent,ckrv.dev/job={job}")).await.ok()?;
        let wanted = |pod: &&Value| pod["metadata"]["annotations"]["ckrv.dev/attempt"] == attempt.to_string().as_str();
        let name = pods.iter().find(wanted)?["metadata"]["name"].as_str()?;
        self.namespace.kubectl(&["exec", name, "--container", "agent", "--", "/bin/sh", "-c", script]).await.ok()
    }

    /// Waits until the agent of this attempt runs, and gives the name of its job pod.
    async fn agent_runs(&self, job: &str, attempt: u32) -> Result<String> {
        let ran = async || self.in_agent(job, attempt, "test -e /tmp/here && echo yes").await;
        wait_until("the agent runs", PATIENCE, ran).await.with_context(|| self.scene.server.log())?;
        let pods = self.namespace.job_pods(job).await?;
        Ok(pods.last().and_then(|pod| pod["metadata"]["name"].as_str()).context("it has no job pod")?.to_owned())
    }

    async fn let_go(&self, job: &str, attempt: u32) -> Result<()> {
        self.agent_runs(job, attempt).await?;
        // Whoever goes on at once may end before kubectl has its answer.
        let ended = async || self.scene.job(job).await.ok().filter(|job| job["completed_at"].is_string()).map(drop);
        let touched = async || match self.in_agent(job, attempt, "touch /tmp/go && echo yes").await {
            Some(_) => Some(()),
            None => ended().await,
        };
        wait_until("the agent is told to go on", PATIENCE, touched).await.with_context(|| self.scene.server.log())
    }

    async fn success(&self, job: &str) -> Result<Value> {
        self.scene.ckrv(&["wait", job]).await?.ok().with_context(|| self.scene.server.log())?;
        self.scene.job(job).await
    }

    /// What the gateway answers to a job pod's question with this token.
    async fn ask(&self, attempt: &str, token: &str) -> Result<u16> {
        let root = reqwest::Certificate::from_pem(self.ca.issuer.pem().as_bytes())?;
        let client = reqwest::Client::builder().tls_certs_only([root]).no_proxy().build()?;
        let url = format!("https://{}/attempts/{attempt}/job", self.gateway);
        Ok(client.get(url).bearer_auth(token).send().await?.status().as_u16())
    }

    async fn token(&self, account: &str, pod: Option<&str>, audience: &str) -> Result<String> {
        let audience = format!("--audience={audience}");
        let mut args = vec!["create", "token", account, &audience];
        args.extend(pod.into_iter().flat_map(|pod| ["--bound-object-kind", "Pod", "--bound-object-name", pod]));
        Ok(self.namespace.kubectl(&args).await?.trim().to_owned())
    }
}

fn complete(
    mut config: toml::Table,
    namespace: &Namespace,
    gateway: SocketAddr,
    tls: &Path,
    git: &Authority,
) -> Result<toml::Table> {
    let path = |path: &Path| path.display().to_string();
    let part = |value: Value| Ok::<_, anyhow::Error>(toml::Value::try_from(value)?);
    config.insert("ca_file".to_owned(), path(&git.ca_file()).into());
    config.insert("gateway".to_owned(), part(json!({
        "listen": gateway.to_string(), "certificate": path(&tls.join("tls.crt")), "key": path(&tls.join("tls.key")), "drain_seconds": 1,
    }))?);
    config.insert(
        "kubernetes".to_owned(),
        part(json!({
            "namespace": namespace.0, "image": bench::kube_image()?, "image_pull_policy": "Never",
            "kubeconfig": path(&bench::kubeconfig()?), "gateway_url": format!("https://{gateway}"),
            "job_resources": { "cpu_millis": 50, "memory_mib": 512, "disk_mib": 1024 },
        }))?,
    );
    Ok(config)
}

/// Says that it runs, and waits until it may end.
const HOLD: &str = "echo made > made.txt; touch /tmp/here; while [ ! -e /tmp/go ]; do sleep 0.1; done";

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_through_its_pods_and_nothing_of_it_is_left() -> Result<()> {
    let bench = Bench::start().await?;
    let id = bench.scene.submit_spec(&script_spec("verify:\n  - test -s made.txt", HOLD)).await?;
    let pod = bench.agent_runs(&id, 1).await?;
    let pod: Value = serde_json::from_str(&bench.namespace.kubectl(&["get", "pod", &pod, "--output", "json"]).await?)?;
    let spec = pod["spec"].to_string();
    assert_eq!(pod["spec"]["automountServiceAccountToken"], false, "{spec}");
    assert!(pod["spec"]["activeDeadlineSeconds"].as_i64().is_some(), "{spec}");
    bench.let_go(&id, 1).await?;
    bench.success(&id).await?;
    bench.scene.ckrv(&["pull", &id]).await?.ok()?;
    assert_eq!(std::fs::read_to_string(bench.scene.project.join("made.txt"))?, "made\n");
    bench.namespace.gone(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_pod_that_is_killed_is_followed_by_another_attempt() -> Result<()> {
    let bench = Bench::start().await?;
    let id = bench.scene.submit(HOLD).await?;
    let first = bench.agent_runs(&id, 1).await?;
    bench.namespace.kubectl(&["delete", "pod", &first, "--grace-period=0", "--force"]).await?;
    let second = async || {
        let pods = bench.namespace.job_pods(&id).await.ok()?;
        pods.into_iter().find(|pod| pod["metadata"]["name"] != first.as_str() && pod["status"]["phase"] == "Running")
    };
    wait_until("another job pod runs", PATIENCE, second).await.with_context(|| bench.scene.server.log())?;
    bench.let_go(&id, 2).await?;
    assert_eq!(bench.success(&id).await?["attempt"], 2);
    bench.namespace.gone(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_node_is_emptied_gives_its_job_back() -> Result<()> {
    let bench = Bench::start().await?;
    let id = bench.scene.submit(HOLD).await?;
    let first = bench.agent_runs(&id, 1).await?;
    bench.namespace.kubectl(&["delete", "pod", &first, "--wait=false"]).await?;
    wait_until("the next attempt is claimed", PATIENCE, async || {
        bench.scene.job(&id).await.ok().filter(|job| job["attempt"] == 2)
    })
    .await
    .with_context(|| bench.scene.server.log())?;
    let log = bench.scene.ckrv(&["logs", &id]).await?.ok()?;
    assert!(log.contains("asked to leave its machine"), "{log}");
    bench.let_go(&id, 2).await?;
    bench.success(&id).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_dispatcher_finds_its_job_going_on() -> Result<()> {
    let mut bench = Bench::start().await?;
    let id = bench.scene.submit(HOLD).await?;
    let pod = bench.agent_runs(&id, 1).await?;
    bench.scene.server.kill().await?;
    bench.scene.server.start_again().await?;
    bench.let_go(&id, 1).await?;
    let job = bench.success(&id).await?;
    assert_eq!(job["attempt"], 1, "{job}");
    ensure!(pod.ends_with("-1"), "{pod}");
    bench.namespace.gone(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_knows_one_job_by_the_token_of_its_own_pod_only() -> Result<()> {
    let bench = Bench::start().await?;
    let ids = [bench.scene.submit(HOLD).await?, bench.scene.submit(HOLD).await?];
    let (mut pods, mut impostor) = (Vec::new(), Value::Null);
    for id in &ids {
        let running =
            async || bench.namespace.job_pods(id).await.ok()?.into_iter().find(|pod| pod["status"]["phase"] == "Running");
        let pod = wait_until("its job pod runs", PATIENCE, running).await.with_context(|| bench.scene.server.log())?;
        let claim = pod["metadata"]["annotations"]["ckrv.dev/claim"].as_str().context("it has no claim")?.to_owned();
        pods.push((pod["metadata"]["name"].as_str().context("it has no name")?.to_owned(), format!("{id}/1/{claim}")));
        if impostor.is_null() {
            impostor = pod;
        }
    }
    let [(mine, attempt), (others, another)] = pods.as_slice() else { unreachable!("two jobs") };
    let token = bench.token("ckrv-job", Some(mine), AUDIENCE).await?;
    assert_eq!(bench.ask(attempt, &token).await?, 200);
    assert_eq!(bench.ask(another, &token).await?, 401, "another job's");
    assert_eq!(bench.ask(&attempt.replace("/1/", "/2/"), &token).await?, 401, "another attempt's");
    let (_, claim) = another.rsplit_once('/').context("no claim")?;
    assert_eq!(bench.ask(&format!("{}/1/{claim}", ids[0]), &token).await?, 401, "another claim's");
    bench.namespace.make_impostor(impostor).await?;
    for (what, wrong) in [
        ("another pod", bench.token("ckrv-job", Some(others), AUDIENCE).await?),
        ("no pod", bench.token("ckrv-job", None, AUDIENCE).await?),
        ("another account", bench.token("ckrv-agent", Some("impostor"), AUDIENCE).await?),
        ("another audience", bench.token("ckrv-job", Some(mine), "https://kubernetes.default.svc.cluster.local").await?),
        ("nobody", "x".repeat(600)),
    ] {
        assert_eq!(bench.ask(attempt, &wrong).await?, 401, "the token of {what}");
    }
    // Renewed, the certificate is another one; who trusts the authority notices nothing.
    let served = || certificate(bench.gateway);
    let before = served()?;
    bench.ca.write(bench.folder.path())?;
    wait_until("the new certificate is served", PATIENCE, async || served().ok().filter(|now| *now != before)).await?;
    assert_eq!(bench.ask(attempt, &token).await?, 200);
    Ok(())
}

/// What the server at this address shows, as text.
fn certificate(address: SocketAddr) -> Result<String> {
    let output = Command::new("openssl").args(["s_client", "-connect", &address.to_string()]).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let begin = text.find("-----BEGIN CERTIFICATE-----").context("no certificate")?;
    let end = text.find("-----END CERTIFICATE-----").context("no certificate")?;
    Ok(text[begin..end].to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_are_listed() -> Result<()> {
    let bench = Bench::start().await?;
    let token = bench.scene.server.login().await?.access;
    let listed = async || {
        let request = ckrv_tests::http::client().ok()?.get(format!("{}/v1/workers", bench.scene.server.url()));
        let list: Value = request.bearer_auth(&token).send().await.ok()?.json().await.ok()?;
        list["workers"].get(0).cloned()
    };
    let worker = wait_until("the dispatcher is listed", PATIENCE, listed).await?;
    assert_eq!((worker["name"].as_str(), worker["launcher"].as_str()), (Some("a-test"), Some("kubernetes")), "{worker}");
    assert!(worker["capacity"].as_u64().is_some_and(|capacity| capacity > 0) && worker["load"] == 0, "{worker}");
    Ok(())
}
