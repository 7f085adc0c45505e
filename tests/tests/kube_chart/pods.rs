//! Pods as dispatcher and job runner make them, and the ways in which they must not be.

use ckrv_tests::bench;
use serde_json::{Value, json};

use super::chart::{Installed, NAME, PodRef};

pub const JOB: &str = "0198a7c4-5d2e-7b31-9c3f-2a44c1d0e5f6";
pub const OTHER_JOB: &str = "0198a7c4-5d2e-7b31-9c3f-2a44c1d0e5f7";

/// One breach of one rule.
pub struct Breach {
    pub what: &'static str,
    /// Of the rule's message.
    pub rule: &'static str,
    pub pod: Value,
}

pub fn job_pod_name(job: &str) -> String {
    format!("ckrv-{}-1", job.replace('-', ""))
}

fn labels(installed: &Installed, job: &str, role: &str) -> Value {
    json!({
        "app.kubernetes.io/managed-by": "ckrv", "ckrv.dev/job": job, "ckrv.dev/fence": "1", "ckrv.dev/role": role,
        "ckrv.dev/install": format!("{}.{NAME}", installed.system),
    })
}

fn container(name: &str, image: &str) -> Value {
    json!({
        "name": name, "image": image, "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", "sleep 600"],
        "resources": {
            "limits": {"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "64Mi"},
            "requests": {"cpu": "10m", "memory": "64Mi", "ephemeral-storage": "64Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

fn spec(installed: &Installed, account: &str) -> Value {
    json!({
        "serviceAccountName": account, "automountServiceAccountToken": false, "enableServiceLinks": false,
        "restartPolicy": "Never", "activeDeadlineSeconds": 600, "terminationGracePeriodSeconds": 0,
        "priorityClassName": format!("{}-{NAME}-jobs", installed.system),
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000,
                            "seccompProfile": {"type": "RuntimeDefault"}},
    })
}

pub fn job_pod(installed: &Installed, job: &str) -> Value {
    let mut spec = spec(installed, "ckrv-job");
    spec["containers"] = json!([container("job", &installed.image)]);
    spec["containers"][0]["env"] = json!([{"name": "CKRV_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    let ca = |name: &str| json!({"configMap": {"name": name, "items": [{"key": "ca.crt", "path": "ca.crt"}]}});
    spec["volumes"] = json!([
        {"name": "work", "emptyDir": {"sizeLimit": "64Mi"}},
        {"name": "gateway", "projected": {"defaultMode": 0o440, "sources": [
            {"serviceAccountToken": {"audience": "ckrv-gateway", "expirationSeconds": 3600, "path": "token"}}, ca("ckrv-gateway-ca")]}},
        {"name": "account", "projected": {"defaultMode": 0o440, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3600, "path": "token"}}, ca("kube-root-ca.crt"),
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}},
    ]);
    json!({"metadata": {"name": job_pod_name(job), "labels": labels(installed, job, "job")}, "spec": spec})
}

pub fn agent_pod(installed: &Installed, job: &str, owner: &PodRef, name: &str) -> Value {
    let mut spec = spec(installed, "ckrv-agent");
    let agents = bench::kube_agents().unwrap_or_default();
    spec["initContainers"] = json!([container("shim", &installed.image)]);
    spec["containers"] = json!([container("agent", &agents)]);
    spec["containers"][0]["env"] = json!([{"name": "CKRV_SHIM_RUNNER", "value": "10.0.0.1:7443"}]);
    spec["nodeSelector"] = json!({"kubernetes.io/os": "linux"});
    spec["dnsPolicy"] = json!("None");
    spec["dnsConfig"] = json!({"nameservers": ["127.0.0.1"]});
    spec["volumes"] = json!([{"name": "ckrv", "emptyDir": {"sizeLimit": "64Mi"}}, {"name": "tmp", "emptyDir": {}}]);
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": owner.name, "uid": owner.uid, "controller": true});
    json!({"metadata": {"name": name, "labels": labels(installed, job, "agent"), "ownerReferences": [owner]}, "spec": spec})
}

/// The pod with one place of it set; `null` takes it away.
fn with(pod: &Value, pointer: &str, value: Value) -> Value {
    let mut pod = pod.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
    let key = key.replace("~1", "/");
    match pod.pointer_mut(parent) {
        Some(Value::Object(object)) if value.is_null() => drop(object.remove(&key)),
        Some(Value::Object(object)) => drop(object.insert(key, value)),
        Some(Value::Array(array)) => array.push(value),
        other => panic!("{pointer}: {other:?}"),
    }
    pod
}

/// Breaches of the rules that both kinds of pods have.
fn common(pod: &Value, runtime_class: &str) -> Vec<Breach> {
    let secret = json!({"secretKeyRef": {"name": "s", "key": "k"}});
    let config = json!({"configMapKeyRef": {"name": "c", "key": "k"}});
    let privileged = with(pod, "/spec/containers/0/securityContext/allowPrivilegeEscalation", Value::Null);
    let node = "uses nothing of its node";
    let place = "leaves its place to the scheduler";
    let rows = [
        ("another role", "has the labels", with(pod, "/metadata/labels/ckrv.dev~1role", json!("other"))),
        ("another installation", "has the labels", with(pod, "/metadata/labels/ckrv.dev~1install", json!("other"))),
        ("not managed", "has the labels", with(pod, "/metadata/labels/app.kubernetes.io~1managed-by", Value::Null)),
        ("another account", "runs as the service account", with(pod, "/spec/serviceAccountName", json!("default"))),
        ("a mounted token", "runs as the service account", with(pod, "/spec/automountServiceAccountToken", Value::Null)),
        (
            "a secret's variable",
            "takes no environment",
            with(pod, "/spec/containers/0/env/-", json!({"name": "A", "valueFrom": secret})),
        ),
        (
            "a config's variable",
            "takes no environment",
            with(pod, "/spec/containers/0/env/-", json!({"name": "A", "valueFrom": config})),
        ),
        (
            "a secret's variables",
            "takes no environment",
            with(pod, "/spec/containers/0/envFrom", json!([{"secretRef": {"name": "s"}}])),
        ),
        ("host network", node, with(pod, "/spec/hostNetwork", json!(true))),
        ("host processes", node, with(pod, "/spec/hostPID", json!(true))),
        ("host IPC", node, with(pod, "/spec/hostIPC", json!(true))),
        ("a host port", node, with(pod, "/spec/containers/0/ports", json!([{"containerPort": 7443, "hostPort": 7443}]))),
        ("privileged", node, with(&privileged, "/spec/containers/0/securityContext/privileged", json!(true))),
        ("a device", node, with(pod, "/spec/resourceClaims", json!([{"name": "gpu", "resourceClaimName": "gpu"}]))),
        ("a node of its choice", place, with(pod, "/spec/nodeName", json!("some-node"))),
        ("every node", place, with(pod, "/spec/tolerations", json!([{"operator": "Exists"}]))),
        (
            "control plane",
            place,
            with(pod, "/spec/tolerations", json!([{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}])),
        ),
        (
            "top priority",
            "the priority and the runtime class",
            with(pod, "/spec/priorityClassName", json!("system-node-critical")),
        ),
        ("another runtime", "the priority and the runtime class", with(pod, "/spec/runtimeClassName", json!(runtime_class))),
        ("a pull secret", "pulls with no other Secrets", with(pod, "/spec/imagePullSecrets", json!([{"name": "s"}]))),
        ("a finalizer", "has no finalizer", with(pod, "/metadata/finalizers", json!(["example.com/stay"]))),
    ];
    rows.map(|(what, rule, pod)| Breach { what, rule, pod }).into()
}

pub fn agent_breaches(installed: &Installed, owner: &PodRef, other: &PodRef, runtime_class: &str) -> Vec<Breach> {
    let pod = agent_pod(installed, JOB, owner, "breach");
    let reference = |pod: &PodRef| json!({"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid});
    let owners = |owners: Value| with(&pod, "/metadata/ownerReferences", owners);
    let renamed = PodRef { name: other.name.clone(), ..owner.clone() };
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": owner.name, "uid": owner.uid});
    let volume = |volume: Value| with(&pod, "/spec/volumes/-", volume);
    let image = |at: &str, image: &str| with(&pod, &format!("/spec/{at}/0/image"), json!(image));
    let agents = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default().replace(':', "-evil:");
    let limits = |at: &str, limits: Value| with(&pod, &format!("/spec/{at}/0/resources/limits"), limits);
    let bare = with(&with(&pod, "/spec/containers/0/resources", json!({})), "/spec/containers/0/env", json!([]));
    let (one, volumes, images, most) = ("has one owner", "no volumes but empty", "is of an allowed registry", "has limits");
    let mut all = common(&pod, runtime_class);
    let rows = [
        ("nobody's", one, owners(Value::Null)),
        ("another's", "labelled with the job", with(&pod, "/metadata/labels/ckrv.dev~1job", json!(OTHER_JOB))),
        ("another fence", "labelled with the job", with(&pod, "/metadata/labels/ckrv.dev~1fence", json!("2"))),
        ("another owner", one, owners(json!([reference(other)]))),
        ("two owners", one, owners(json!([reference(owner), reference(other)]))),
        ("an owner by a wrong name", one, owners(json!([reference(&renamed)]))),
        ("an owner of another kind", one, owners(json!([deployment]))),
        ("the host's files", volumes, volume(json!({"name": "v", "hostPath": {"path": "/"}}))),
        ("a secret", volumes, volume(json!({"name": "v", "secret": {"secretName": "s"}}))),
        ("a config map", volumes, volume(json!({"name": "v", "configMap": {"name": "ckrv-gateway-ca"}}))),
        ("a claim", volumes, volume(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}))),
        ("a driver", volumes, volume(json!({"name": "v", "csi": {"driver": "example.com"}}))),
        ("a file server", volumes, volume(json!({"name": "v", "nfs": {"server": "example.com", "path": "/"}}))),
        ("a token", volumes, volume(json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}))),
        ("a foreign image", images, image("containers", "example.com/agent:1")),
        ("a look-alike", images, image("containers", &agents)),
        ("a look-alike of ours", images, image("initContainers", &installed.image.replace(':', "-evil:"))),
        ("a foreign image first", images, image("initContainers", "example.com/agent:1")),
        ("no limits", most, bare),
        ("no limit on disk", most, limits("containers", json!({"cpu": "1", "memory": "64Mi"}))),
        ("too much memory", most, limits("containers", json!({"cpu": "1", "memory": "9Gi", "ephemeral-storage": "64Mi"}))),
        ("too much at first", most, limits("initContainers", json!({"cpu": "5", "memory": "64Mi", "ephemeral-storage": "64Mi"}))),
        ("no deadline", "has a deadline", with(&pod, "/spec/activeDeadlineSeconds", Value::Null)),
        ("restarts", "has a deadline", with(&pod, "/spec/restartPolicy", json!("Always"))),
        ("any node", "leaves its place", with(&pod, "/spec/nodeSelector", Value::Null)),
    ];
    all.extend(rows.map(|(what, rule, pod)| Breach { what, rule, pod }));
    all
}

pub fn job_breaches(installed: &Installed, runtime_class: &str) -> Vec<Breach> {
    let pod = job_pod(installed, "0198a7c4-5d2e-7b31-9c3f-2a44c1d0e5f8");
    let volume = |volume: Value| with(&pod, "/spec/volumes/-", volume);
    let volumes = "no volumes but empty folders, tokens";
    let projected = json!({"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}});
    let mut all = common(&pod, runtime_class);
    let rows = [
        ("any name", "named after its job", with(&pod, "/metadata/name", json!("ckrv-1"))),
        ("a secret", volumes, volume(json!({"name": "v", "secret": {"secretName": "s"}}))),
        ("a secret among tokens", volumes, volume(projected)),
        ("a foreign config map", volumes, volume(json!({"name": "v", "configMap": {"name": "other"}}))),
        ("a foreign image", "runs our own image", with(&pod, "/spec/containers/0/image", json!("example.com/agent:1"))),
        (
            "a look-alike of ours",
            "runs our own image",
            with(&pod, "/spec/containers/0/image", json!(installed.image.replace(':', "-evil:"))),
        ),
        ("no limits", "has limits on memory", with(&pod, "/spec/containers/0/resources", json!({}))),
        ("no deadline", "has a deadline", with(&pod, "/spec/activeDeadlineSeconds", Value::Null)),
    ];
    all.extend(rows.map(|(what, rule, pod)| Breach { what, rule, pod }));
    all
}
