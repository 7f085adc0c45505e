//! A namespace of a real cluster for one test, with a pod that stands in for the job's, and an API server that loses answers.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use ckrv_core::id::{ClaimId, Fence, JobId};
use ckrv_orchestrator::launch::kubernetes::{Belongs, KubernetesConfig, KubernetesLauncher, PodIdentity, client};
use ckrv_orchestrator::launch_choice::Cluster;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

#[expect(clippy::disallowed_methods, reason = "the cluster is named by environment variables")]
pub fn given(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this by `cargo xtask test`, which starts a cluster"))
}

pub struct Bench {
    pub client: Client,
    pub namespace: String,
    pub owner: Pod,
    job: JobId,
}

impl Bench {
    /// Removed again when the bench is dropped.
    pub async fn new(test: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = Kubeconfig::read_from(given("CKRV_TEST_KUBECONFIG")).expect("a kubeconfig");
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a cluster");
        let client = client(config, "ckrv-test").expect("a client");
        let job = JobId(Uuid::now_v7());
        let namespace = format!("ckrv-{test}-{}", job.short());
        let labels =
            json!({ "pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest" });
        let made: Namespace = object(json!({ "metadata": { "name": namespace, "labels": labels } }));
        Api::all(client.clone()).create(&PostParams::default(), &made).await.expect("a namespace");
        let account: ServiceAccount = object(json!({ "metadata": { "name": "ckrv-agent" } }));
        Api::namespaced(client.clone(), &namespace).create(&PostParams::default(), &account).await.expect("an account");
        let owner = Api::namespaced(client.clone(), &namespace).create(&PostParams::default(), &stand_in()).await;
        Self { client, namespace, owner: owner.expect("the job's pod"), job }
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Within a minute.
    pub async fn gone(&self, name: &str) {
        for _ in 0..120 {
            if self.pods().get_opt(name).await.expect("an answer").is_none() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
        panic!("{name} is still there");
    }

    pub async fn launcher(&self) -> KubernetesLauncher {
        self.launcher_with(self.client.clone(), json!({})).await
    }

    /// With some settings of its own.
    pub async fn launcher_with(&self, client: Client, settings: Value) -> KubernetesLauncher {
        let mut cluster = json!({ "namespace": self.namespace, "image": given("CKRV_TEST_KUBE_IMAGE"), "image_pull_policy": "Never",
            "gateway_url": "https://nowhere.invalid" });
        cluster.as_object_mut().expect("a map").extend(settings.as_object().expect("a map").clone());
        let owner = PodIdentity {
            name: self.owner.name_any(),
            uid: self.owner.uid().expect("a uid"),
            ip: given("CKRV_TEST_KUBE_HOST_IP").parse::<IpAddr>().expect("an address"),
        };
        let belongs = Belongs {
            job: self.job,
            fence: Fence(1),
            attempt: 1,
            claim: ClaimId(Uuid::new_v4()),
            install: "test".to_owned(),
            deadline: Some(jiff::Timestamp::now() + jiff::SignedDuration::from_mins(30)),
        };
        let config = KubernetesConfig { cluster: object::<Cluster>(cluster), owner, belongs, port: 0 };
        KubernetesLauncher::open(client, config).await.expect("a launcher")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let mut kubectl = std::process::Command::new(given("CKRV_TEST_KUBECTL"));
        kubectl.args(["--kubeconfig", &given("CKRV_TEST_KUBECONFIG"), "delete", "namespace", &self.namespace, "--wait=false"]);
        let _ = kubectl.stdout(std::process::Stdio::null()).status();
    }
}

pub fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of that kind")
}

/// Stands in for the job's pod: agent pods belong to it, and nothing of it is asked.
fn stand_in() -> Pod {
    let context = json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    object(json!({ "metadata": { "name": "job" }, "spec": {
        "serviceAccountName": "ckrv-agent", "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
        "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{ "name": "sleep", "image": given("CKRV_TEST_KUBE_TINY"), "imagePullPolicy": "Never",
            "command": ["/bin/busybox", "sleep", "3600"], "securityContext": context }] } }))
}

/// What happens to the creation of a pod.
#[derive(Clone, Copy)]
pub enum Mishap {
    Refused(StatusCode),
    /// It is done, and the answer doesn't come.
    AnswerLost,
}

/// What went through to the API server, and what did not come back.
#[derive(Default)]
pub struct Line {
    mishaps: Vec<Mishap>,
    /// `POST`, `DELETE`, `watch`, ...
    pub requests: Vec<String>,
    /// Uids of the pods that were made without an answer.
    pub lost: Vec<String>,
}

type Shared = Arc<Mutex<Line>>;

/// A client whose requests to create pods meet these mishaps, one after the other.
pub async fn unlucky(client: Client, mishaps: &[Mishap]) -> (Client, Shared) {
    let mishaps = mishaps.iter().rev().copied().collect();
    let line = Arc::new(Mutex::new(Line { mishaps, ..Line::default() }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let app = axum::Router::new().fallback(forward).with_state((client, Arc::clone(&line)));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = ckrv_orchestrator::launch::kubernetes::client(kube::Config::new(url.parse().expect("a URL")), "ckrv-test");
    (client.expect("a client"), line)
}

async fn forward(State((client, line)): State<(Client, Shared)>, request: Request) -> Response {
    let mishap = {
        let mut line = line.lock().expect("no panic");
        let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        line.requests.push(if watches { "watch".to_owned() } else { request.method().to_string() });
        let creates = request.method() == Method::POST && request.uri().path().ends_with("/pods");
        creates.then(|| line.mishaps.pop()).flatten()
    };
    if let Some(Mishap::Refused(status)) = mishap {
        return status.into_response();
    }
    let (mut parts, body) = request.into_parts();
    parts.headers.remove("host");
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body").to_vec();
    let answer = client.send(Request::from_parts(parts, kube::client::Body::from(body))).await;
    let Ok(answer) = answer.map(|answer| answer.map(Body::new)) else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    if mishap.is_none() {
        return answer;
    }
    let made = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("an answer");
    let made: Pod = serde_json::from_slice(&made).expect("a pod");
    line.lock().expect("no panic").lost.extend(made.uid());
    StatusCode::GATEWAY_TIMEOUT.into_response()
}
