//! What lies around an agent's pod, and who stands in for the cloud's metadata service.

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::bench;
use ckrv_tests::kube::{Installed, kubectl};
use ckrv_tests::kube_policy::{Party, Policies, Verdict};
use serde_json::{Value, json};

const METADATA: &str = "169.254.169.254";

/// Addresses as the attacked job's cluster has them.
pub struct Around {
    api: String,
    gateway: String,
    /// Of the neighbour's job pod.
    door: String,
    neighbour: String,
}

impl Around {
    pub async fn of(cluster: &Installed, neighbour: &str) -> Result<Self> {
        let pods = cluster.pods("job").await?;
        let pod = pods.iter().find(|pod| pod["metadata"]["labels"]["ckrv.dev/job"] == neighbour).context("no job pod")?;
        let door = format!("{}:7443", pod["status"]["podIP"].as_str().context("it has no address")?);
        let api = format!("{}:443", service("default", "kubernetes").await?);
        let gateway = format!("{}:8443", service(&cluster.namespace, "ckrv").await?);
        Ok(Self { api, gateway, door, neighbour: neighbour.to_owned() })
    }

    /// Asked for at the agent's proxy.
    pub fn through(&self) -> [String; 5] {
        [format!("{METADATA}:80"), self.api.clone(), self.gateway.clone(), self.door.clone(), "denied.example:443".to_owned()]
    }

    /// What asks for a token itself.
    pub fn guarded(&self) -> [String; 2] {
        let neighbour = &self.neighbour;
        [format!("https://{}/api/v1/pods", self.api), format!("https://{}/attempts/{neighbour}/1/{neighbour}/job", self.gateway)]
    }

    /// The agent's script; `then` is run while connections to the neighbour's door are left hanging.
    pub fn attack(&self, then: &str) -> Result<String> {
        let mut past = self.guarded().to_vec();
        past.push(format!("http://{METADATA}/past-the-proxy"));
        let plain = format!("http://{METADATA}/through-the-proxy");
        let around = json!({ "through": self.through(), "plain": plain, "past": past, "door": self.door }).to_string();
        ensure!(!around.contains('\''), "{around}");
        let program = include_str!("reach.js");
        Ok(format!(
            "ls /var/run/secrets/kubernetes.io || echo no token\ncat > /tmp/reach.js <<'END'\n{program}END\n\
             node /tmp/reach.js '{around}' &\nwhile [ ! -e /tmp/tried ]; do kill -0 $! || exit 1; sleep 0.1; done\n{then}; echo tried > tried.txt\n"
        ))
    }

    /// The installed network policies, for the attacker's pod as it is: its own job pod's door is all that it reaches.
    pub async fn judge(&self, cluster: &Installed, attacker: &str) -> Result<()> {
        let policies = policies(cluster).await?;
        let (agents, jobs) = (cluster.pods("agent").await?, cluster.pods("job").await?);
        let of = |pods: &[Value], job: &str| {
            let found = pods.iter().find(|pod| pod["metadata"]["labels"]["ckrv.dev/job"] == job);
            party(found.with_context(|| format!("no pod of {job}"))?)
        };
        let agent = of(&agents, attacker)?;
        let (own, other) = (of(&jobs, attacker)?, of(&agents, &self.neighbour)?);
        let gateway = list(&["pods", "--namespace", &cluster.namespace]).await?;
        let gateway = party(gateway.first().context("no dispatcher")?)?;
        let open = |to: &Party, port: u16| anyhow::Ok(policies.verdict(&agent, to, "TCP", port)? == Verdict::Open);
        ensure!(open(&own, 7443)?, "an agent doesn't reach its own job pod");
        let api = Party::outside(self.api.split(':').next().unwrap_or_default());
        for (what, to, ports) in [
            ("its job pod elsewhere", &own, [22, 8080]),
            ("the API server", &api, [443, 6443]),
            ("the metadata service", &Party::outside(METADATA), [80, 443]),
            ("the gateway", &gateway, [8443, 9464]),
            ("another agent", &other, [7443, 80]),
            ("a public address", &Party::outside("93.184.216.34"), [443, 53]),
        ] {
            for port in ports {
                ensure!(!open(to, port)?, "the network policies let an agent reach {what}:{port}");
            }
        }
        Ok(())
    }
}

/// Whether an answer is none that anybody could use.
pub fn is_closed(answer: &str) -> bool {
    answer.parse::<u16>().map_or(!answer.is_empty(), |status| matches!(status, 401 | 403))
}

async fn service(namespace: &str, name: &str) -> Result<String> {
    kubectl(&["get", "service", name, "--namespace", namespace, "--output", "jsonpath={.spec.clusterIP}"]).await
}

async fn list(what: &[&str]) -> Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&kubectl(&[&["get"], what, &["--output", "json"]].concat()).await?)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

async fn policies(cluster: &Installed) -> Result<Policies> {
    let mut found = list(&["networkpolicies", "--namespace", &cluster.jobs]).await?;
    found.extend(list(&["networkpolicies", "--namespace", &cluster.namespace]).await?);
    let policies = found.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
    Ok(Policies { policies, ..Policies::default() })
}

fn party(pod: &Value) -> Result<Party> {
    let text = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("incomplete: {pod}"));
    let labels = pod["metadata"]["labels"].as_object().context("no labels")?;
    let labels: Vec<(&str, &str)> = labels.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect();
    Ok(Party::pod(&text(&pod["metadata"]["namespace"])?, &labels, &text(&pod["status"]["podIP"])?))
}

/// A web server at the metadata service's address, on the cluster's node. Not there in somebody else's cluster.
pub struct Metadata(Option<StandIn>);

struct StandIn {
    netns: String,
    server: Child,
    folder: tempfile::TempDir,
}

impl Metadata {
    pub fn start() -> Result<Self> {
        let Ok(netns) = bench::kube_netns() else { return Ok(Self(None)) };
        ip(&netns, "replace")?;
        let (folder, at) = (tempfile::tempdir()?, format!("{METADATA}:80"));
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &netns, "busybox", "httpd", "-f", "-vv", "-p", &at, "-h"]).arg(folder.path());
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let server = server.context("can't start ip")?;
        Ok(Self(Some(StandIn { netns, server, folder })))
    }

    /// It was there to be asked, and no proxy did. Gives whether it was asked past the proxy: nothing but a network plugin prevents that.
    pub fn was_not_asked_by_a_proxy(mut self) -> Result<bool> {
        let Some(stand_in) = &mut self.0 else { return Ok(false) };
        let asked = std::fs::read_to_string(stand_in.folder.path().join("log"))?;
        ensure!(stand_in.server.try_wait()?.is_none(), "the stand-in for the metadata service ended: {asked}");
        ensure!(!asked.contains("through-the-proxy"), "the proxy asked the metadata service: {asked}");
        Ok(asked.contains("past-the-proxy"))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = ip(&self.netns, "del");
    }
}

fn ip(netns: &str, verb: &str) -> Result<()> {
    let status = Command::new("ip").args(["-n", netns, "addr", verb, &format!("{METADATA}/32"), "dev", "lo"]).status();
    ensure!(status.context("can't start ip")?.success(), "ip addr {verb} failed in {netns}");
    Ok(())
}
