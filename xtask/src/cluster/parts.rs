//! The parts of a cluster: which programs run in it, and how each is configured.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::image::PAUSE_IMAGE;
use super::layout::{Layout, PORT};
use crate::packages::which;

/// Folders under the cluster's own.
pub const FOLDERS: [&str; 8] = ["logs", "hold", "etcd", "kubelet", "pod-logs", "cni", "containerd", "state"];

/// A program that is started, and started again when it ends.
#[derive(Clone, Debug)]
pub struct Part {
    pub name: &'static str,
    program: std::path::PathBuf,
    args: Vec<String>,
}

impl Part {
    pub fn command(&self, layout: &Layout) -> Command {
        let mut command = Command::new(&self.program);
        // Nothing of the user's: no configuration from a home folder, no proxy.
        command.args(&self.args).env_clear().current_dir(layout.folder()).env("HOME", layout.folder());
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LANG", "C.UTF-8");
        command
    }
}

/// What the others need to be there.
pub fn first(layout: &Layout) -> Result<Vec<Part>> {
    Ok(vec![
        debian(
            "etcd",
            [
                ("data-dir", &shown(&layout.path("etcd"))),
                ("listen-client-urls", "http://127.0.0.1:2379"),
                ("advertise-client-urls", "http://127.0.0.1:2379"),
                ("listen-peer-urls", "http://127.0.0.1:2380"),
                // Nothing in it outlives the cluster.
                ("unsafe-no-fsync", "true"),
            ],
        )?,
        api_server(layout),
        debian("containerd", [("config", &shown(&layout.path("containerd.toml")))])?,
    ])
}

/// What wants an API server that answers, or ends.
pub fn second(layout: &Layout) -> Vec<Part> {
    let pki = |name: &str| shown(&layout.path("pki").join(name));
    let config = |name: &str| shown(&layout.kubeconfig(name));
    vec![
        ours(
            layout,
            "kube-controller-manager",
            [
                ("kubeconfig", &config("controller-manager")),
                ("root-ca-file", &pki("ca.crt")),
                ("service-account-private-key-file", &pki("service-accounts.key")),
                ("use-service-account-credentials", "true"),
                ("bind-address", "127.0.0.1"),
                ("leader-elect", "false"),
            ],
        ),
        ours(
            layout,
            "kube-scheduler",
            [("kubeconfig", &config("scheduler")), ("bind-address", "127.0.0.1"), ("leader-elect", "false")],
        ),
        ours(
            layout,
            "kubelet",
            [
                ("kubeconfig", &config("kubelet")),
                ("config", &shown(&layout.path("kubelet.json"))),
                ("root-dir", &shown(&layout.path("kubelet"))),
                ("cert-dir", &shown(&layout.path("kubelet/pki"))),
                ("hostname-override", &layout.node_name()),
                ("node-ip", &layout.node()),
            ],
        ),
        ours(layout, "kube-proxy", [("config", &shown(&layout.path("proxy.json")))]),
        Part {
            name: "coredns",
            program: layout.programs.server("coredns"),
            args: vec!["-conf".into(), shown(&layout.path("Corefile"))],
        },
    ]
}

fn api_server(layout: &Layout) -> Part {
    let pki = |name: &str| shown(&layout.path("pki").join(name));
    ours(
        layout,
        "kube-apiserver",
        [
            ("etcd-servers", "http://127.0.0.1:2379"),
            ("bind-address", "0.0.0.0"),
            ("secure-port", &PORT.to_string()),
            ("advertise-address", &layout.node()),
            ("tls-cert-file", &pki("apiserver.crt")),
            ("tls-private-key-file", &pki("apiserver.key")),
            ("client-ca-file", &pki("ca.crt")),
            ("kubelet-client-certificate", &pki("apiserver-client.crt")),
            ("kubelet-client-key", &pki("apiserver-client.key")),
            ("kubelet-preferred-address-types", "InternalIP"),
            ("service-cluster-ip-range", &layout.services()),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
            ("service-account-key-file", &pki("service-accounts.pub")),
            ("service-account-signing-key-file", &pki("service-accounts.key")),
            // Beside the defaults: PodSecurity, ValidatingAdmissionPolicy, ResourceQuota, Priority, LimitRanger and more.
            ("enable-admission-plugins", "NodeRestriction"),
            ("authorization-mode", "Node,RBAC"),
            ("allow-privileged", "true"),
            // Who asks how often: the bench counts it.
            ("audit-policy-file", &shown(&layout.path("audit.json"))),
            ("audit-log-path", &shown(&layout.path("logs/audit.log"))),
            ("audit-log-maxsize", "100"),
            ("audit-log-maxbackup", "1"),
        ],
    )
}

/// The configuration files of the node's parts.
pub fn configure(layout: &Layout) -> Result<()> {
    let write = |name: &str, text: String| std::fs::write(layout.path(name), text).with_context(|| format!("can't write {name}"));
    write("containerd.toml", containerd(layout))?;
    write("cni/10-pods.conflist", pod_network(layout).to_string())?;
    write("kubelet.json", kubelet(layout).to_string())?;
    write("proxy.json", proxy(layout).to_string())?;
    write("audit.json", audit_policy().to_string())?;
    // What pods of the host's DNS policy get: a name server that knows the cluster and nothing else.
    write("resolv.conf", format!("nameserver {}\n", layout.node()))?;
    let corefile = format!(
        ".:53 {{\n  bind {}\n  errors\n  ready 127.0.0.1:8181\n  kubernetes cluster.local in-addr.arpa {{\n    kubeconfig {}\n  }}\n}}\n",
        layout.node(),
        layout.kubeconfig("dns").display()
    );
    write("Corefile", corefile)
}

fn containerd(layout: &Layout) -> String {
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
# Not every machine lets root lower an OOM score, and then no sandbox starts.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/cni"
"#,
        root = layout.path("containerd").display(),
        state = layout.path("state").display(),
        socket = layout.socket().display(),
        folder = layout.folder().display(),
    )
}

/// Each pod on a cable of its own, so that all of its traffic passes the node's routes and the services' rules. On a bridge, two pods
/// would see each other's answers past them, unless the kernel has `br_netfilter`.
fn pod_network(layout: &Layout) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": layout.pods() }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
                "dataDir": layout.path("state/addresses"),
            },
        }],
    })
}

fn kubelet(layout: &Layout) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": layout.node(),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": layout.path("pki/ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", layout.name()),
        "containerRuntimeEndpoint": format!("unix://{}", layout.socket().display()),
        "clusterDNS": [layout.node()],
        "clusterDomain": "cluster.local",
        "resolvConf": layout.path("resolv.conf"),
        "podLogsDir": layout.path("pod-logs"),
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "maxPods": 240,
        // A fork bomb ends here, as on every cluster that hosts strangers.
        "podPidsLimit": 1024,
        // Nothing of disks: where other things fill this machine's, the kubelet would delete the images that no registry gives back. What a
        // pod writes is counted against its own limit all the same.
        "evictionHard": { "memory.available": "100Mi" },
        "imageGCHighThresholdPercent": 100,
    })
}

fn proxy(layout: &Layout) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": { "kubeconfig": layout.kubeconfig("proxy") },
        "hostnameOverride": layout.node_name(),
        "mode": "iptables",
        "clusterCIDR": layout.pods(),
        "oomScoreAdj": 0,
        // Limits of the whole machine, which only its first network namespace may set.
        "conntrack": { "maxPerCore": 0, "min": 0 },
        "iptables": { "minSyncPeriod": "100ms" },
    })
}

/// Every request once, without its body: but for those of the control plane about itself.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "omitManagedFields": true,
        "rules": [
            { "level": "None", "resources": [{ "group": "coordination.k8s.io" }] },
            { "level": "None", "nonResourceURLs": ["/*"] },
            { "level": "Metadata" },
        ],
    })
}

fn ours<const N: usize>(layout: &Layout, name: &'static str, options: [(&str, &str); N]) -> Part {
    Part { name, program: layout.programs.server(name), args: arguments(options) }
}

fn debian<const N: usize>(name: &'static str, options: [(&str, &str); N]) -> Result<Part> {
    Ok(Part { name, program: which(name).with_context(|| format!("{name} is missing"))?, args: arguments(options) })
}

fn arguments<const N: usize>(options: [(&str, &str); N]) -> Vec<String> {
    options.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
