//! What the cluster tests take for granted of a cluster, asked of the one that they run on.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::bench;
use serde_json::{Value, json};

/// A namespace of its own; dropped, it is deleted.
struct Namespace(String);

impl Namespace {
    fn new(test: &str) -> Result<Self> {
        let name = format!("ckrv-bench-{}-{test}", std::process::id());
        let labels = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
        create(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } }))?;
        Ok(Self(name))
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        kubectl(&[&["--namespace", &self.0], args].concat(), "")
    }

    /// A pod as narrow as Pod Security `restricted` wants it, with a token for the gateway.
    fn pod(&self, name: &str, script: &str) -> Result<()> {
        let token = json!({ "serviceAccountToken": { "audience": "ckrv-gateway", "path": "token", "expirationSeconds": 600 } });
        let narrow =
            json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } });
        create(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": self.0, "labels": { "name": name } },
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" } },
                "containers": [{
                    "name": "one",
                    "image": bench::kube_tiny()?,
                    "imagePullPolicy": "Never",
                    "command": ["sh", "-c", script],
                    "securityContext": narrow,
                    "volumeMounts": [{ "name": "token", "mountPath": "/gateway", "readOnly": true }],
                }],
                "volumes": [{ "name": "token", "projected": { "sources": [token] } }],
            },
        }))
        .map(drop)
    }

    /// Runs a script in a pod of its own, and gives what it printed.
    fn run(&self, name: &str, script: &str) -> Result<String> {
        self.pod(name, script)?;
        let pod = format!("pod/{name}");
        let done = self.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", &pod]);
        let printed = self.kubectl(&["logs", name])?;
        done.with_context(|| format!("{name} printed: {printed}"))?;
        Ok(printed)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = kubectl(&["delete", "namespace", "--wait=false", &self.0], "");
    }
}

fn kubectl(args: &[&str], stdin: &str) -> Result<String> {
    let mut command = Command::new(bench::kubectl()?);
    command.arg("--kubeconfig").arg(bench::kubeconfig()?).args(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(stdin.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Gives the object as the API server has it.
fn create(object: &Value) -> Result<Value> {
    Ok(serde_json::from_str(&kubectl(&["create", "--output=json", "--filename=-"], &object.to_string())?)?)
}

fn review(token: &str, audience: &str) -> Result<Value> {
    let spec = json!({ "token": token, "audiences": [audience] });
    Ok(create(&json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec }))?["status"].clone())
}

#[test]
fn a_token_of_a_pod_names_the_pod_and_is_good_for_one_audience() -> Result<()> {
    let namespace = Namespace::new("tokens")?;
    let token = namespace.run("asks", "cat /gateway/token")?;
    // The pod has ended, but is not gone: its token is good until then.
    let status = review(&token, "ckrv-gateway")?;
    assert_eq!(status["authenticated"], true, "{status}");
    let uid = namespace.kubectl(&["get", "pod", "asks", "--output=jsonpath={.metadata.uid}"])?;
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-uid"], json!([uid]), "{status}");
    assert_ne!(review(&token, "somebody-else")?["authenticated"], true);
    Ok(())
}

#[test]
fn pods_reach_each_other_a_service_by_its_name_and_this_machine() -> Result<()> {
    let namespace = Namespace::new("reach")?;
    namespace.pod("serves", "while true; do echo it answers | nc -l -p 8080; done")?;
    namespace.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/serves"])?;
    namespace.kubectl(&["expose", "pod", "serves", "--port=80", "--target-port=8080"])?;
    let address = namespace.kubectl(&["get", "pod", "serves", "--output=jsonpath={.status.podIP}"])?;
    let service = format!("serves.{}.svc.cluster.local", namespace.0);
    // Rules and names follow a moment after the objects.
    let asks = |host: &str, port| format!("until nc -w 2 {host} {port} </dev/null | grep answers; do sleep 0.1; done");
    assert_eq!(namespace.run("asks-pod", &asks(&address, 8080))?, "it answers");
    assert_eq!(namespace.run("asks-service", &asks(&service, 80))?, "it answers");

    let here = TcpListener::bind((bench::kube_host()?, 0))?;
    let port = here.local_addr()?.port();
    let answers = std::thread::spawn(move || -> Result<()> { Ok(here.accept()?.0.write_all(b"so does this machine\n")?) });
    let script = format!("nc {} {port} </dev/null", bench::kube_host()?);
    assert_eq!(namespace.run("asks-here", &script)?, "so does this machine");
    answers.join().map_err(|_| anyhow::anyhow!("the listener panicked"))?
}

#[test]
fn a_pod_that_is_not_narrow_is_refused() -> Result<()> {
    let namespace = Namespace::new("narrow")?;
    let wide = json!({ "containers": [{ "name": "one", "image": bench::kube_tiny()? }] });
    let pod =
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "wide", "namespace": namespace.0 }, "spec": wide });
    let refused = create(&pod).unwrap_err().to_string();
    assert!(refused.contains("violates PodSecurity"), "{refused}");
    Ok(())
}
