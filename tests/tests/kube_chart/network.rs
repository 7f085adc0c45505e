//! Who may reach whom, as a table, and every way in which the policies could be wider or narrower.

use anyhow::Result;
use ckrv_tests::kube_policy::{Party, Policies, Verdict};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

const JOBS: &str = "ckrv-jobs";
/// `(from, to, protocol, port, what becomes of it)`
type Row = (&'static str, &'static str, &'static str, u16, Verdict);

/// With the values of `ci/eks-values.yaml`.
pub const TABLE: [Row; 73] = {
    use Verdict::{Neither, NotIn, NotOut, Open};
    [
        // An agent reaches the door of a job pod and nothing else.
        ("agent", "job pod", "TCP", 7443, Open),
        // Doors take their own guests only: the policies can't tell one job from another.
        ("agent", "another job pod", "TCP", 7443, Open),
        ("agent", "job pod", "TCP", 22, Neither),
        ("agent", "job pod", "UDP", 7443, Neither),
        ("agent", "another agent", "TCP", 7443, Neither),
        ("agent", "stranger among jobs", "TCP", 7443, Neither),
        ("agent", "gateway", "TCP", 8443, Neither),
        ("agent", "gateway", "TCP", 9464, Neither),
        ("agent", "pod elsewhere", "TCP", 7443, NotOut),
        ("agent", "false job pod elsewhere", "TCP", 7443, NotOut),
        ("agent", "names", "UDP", 53, NotOut),
        ("agent", "names", "TCP", 53, NotOut),
        ("agent", "names on the node", "UDP", 53, NotOut),
        ("agent", "API server", "TCP", 443, NotOut),
        ("agent", "metadata", "TCP", 80, NotOut),
        ("agent", "public", "TCP", 443, NotOut),
        ("agent", "public, IPv6", "TCP", 443, NotOut),
        ("agent", "node", "TCP", 10250, NotOut),
        ("agent", "git host of ours", "TCP", 443, NotOut),
        // A job pod reaches the gateway, names, the API server, git hosts and model APIs.
        ("job pod", "gateway", "TCP", 8443, Open),
        ("job pod", "gateway", "TCP", 9464, Neither),
        ("job pod", "gateway", "UDP", 8443, Neither),
        ("job pod", "pod beside the gateway", "TCP", 8443, NotOut),
        ("job pod", "false gateway", "TCP", 8443, NotOut),
        ("job pod", "names", "UDP", 53, Open),
        ("job pod", "names", "TCP", 53, Open),
        ("job pod", "names", "TCP", 9153, NotOut),
        ("job pod", "names", "UDP", 9153, NotOut),
        ("job pod", "names on the node", "UDP", 53, Open),
        ("job pod", "names on the node", "TCP", 53, Open),
        ("job pod", "names on the node", "TCP", 80, NotOut),
        ("job pod", "false names", "UDP", 53, NotOut),
        ("job pod", "another of kube-system", "UDP", 53, NotOut),
        ("job pod", "API server", "TCP", 443, Open),
        ("job pod", "second API server", "TCP", 443, Open),
        ("job pod", "API server", "TCP", 10250, NotOut),
        ("job pod", "API server", "UDP", 443, NotOut),
        ("job pod", "public", "TCP", 443, Open),
        ("job pod", "public", "TCP", 22, Open),
        ("job pod", "public", "TCP", 80, NotOut),
        ("job pod", "public", "UDP", 443, NotOut),
        ("job pod", "public", "UDP", 53, NotOut),
        ("job pod", "public, IPv6", "TCP", 443, Open),
        ("job pod", "git host of ours", "TCP", 443, Open),
        ("job pod", "git host of ours", "TCP", 22, NotOut),
        ("job pod", "job pod", "TCP", 7443, Neither),
        ("job pod", "another job pod", "TCP", 443, Neither),
        ("job pod", "agent", "TCP", 443, Neither),
        ("job pod", "node", "TCP", 443, NotOut),
        ("job pod", "node", "UDP", 53, NotOut),
        ("job pod", "metadata", "TCP", 80, NotOut),
        // The gateway takes job pods, its metrics the monitoring.
        ("stranger among jobs", "gateway", "TCP", 8443, Neither),
        ("pod elsewhere", "gateway", "TCP", 8443, NotIn),
        ("false job pod elsewhere", "gateway", "TCP", 8443, NotIn),
        ("node", "gateway", "TCP", 8443, NotIn),
        ("monitoring", "gateway", "TCP", 9464, Open),
        ("monitoring", "gateway", "TCP", 8443, NotIn),
        ("pod elsewhere", "gateway", "TCP", 9464, NotIn),
        ("pod elsewhere", "pod beside the gateway", "TCP", 8443, Open),
        ("gateway", "API server", "TCP", 443, Open),
        ("gateway", "public", "TCP", 443, Open),
        // Nobody reaches in.
        ("gateway", "job pod", "TCP", 7443, NotIn),
        ("gateway", "agent", "TCP", 7443, NotIn),
        ("pod elsewhere", "job pod", "TCP", 7443, NotIn),
        ("false agent elsewhere", "job pod", "TCP", 7443, NotIn),
        ("pod elsewhere", "agent", "TCP", 7443, NotIn),
        ("public", "job pod", "TCP", 7443, NotIn),
        ("public", "agent", "TCP", 7443, NotIn),
        ("stranger among jobs", "job pod", "TCP", 7443, Neither),
        ("stranger among jobs", "agent", "TCP", 7443, Neither),
        ("stranger among jobs", "public", "TCP", 443, NotOut),
        ("pod elsewhere", "stranger among jobs", "TCP", 7443, NotIn),
        ("pod elsewhere", "public", "TCP", 443, Open),
    ]
};

/// Addresses that a job pod must not reach on ports that are open to the world: of each range that is left out, and what stands there.
pub const CLOSED: [&str; 18] = [
    "0.1.2.3",
    "10.99.0.1",
    "100.100.100.200", // Alibaba's metadata
    "127.0.0.1",
    "168.63.129.16", // Azure's platform
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192", // Oracle's metadata
    "192.168.1.1",
    "198.18.0.1",
    "203.0.113.7",
    "224.0.0.1",
    "240.0.0.1",
    "fd00:ec2::254", // AWS's metadata
    "fe80::1",
    "64:ff9b::a9fe:a9fe", // the metadata address behind NAT64
    "2002:a9fe:a9fe::1",  // ... and 6to4
    "2001:0:1:2::3",      // Teredo
];
pub const CLOSED_TOO: &str = "2600:1f14:1:2::3";

fn party(name: &str) -> Party {
    let dispatcher = [
        ("app.kubernetes.io/name", "ckrv"),
        ("app.kubernetes.io/instance", "dispatcher"),
        ("app.kubernetes.io/component", "dispatcher"),
    ];
    let (job, agent, dns) = ([("ckrv.dev/role", "job")], [("ckrv.dev/role", "agent")], [("k8s-app", "kube-dns")]);
    match name {
        "agent" => Party::pod(JOBS, &agent, "10.1.0.2"),
        "another agent" => Party::pod(JOBS, &agent, "10.1.0.3"),
        "job pod" => Party::pod(JOBS, &job, "10.1.0.10"),
        "another job pod" => Party::pod(JOBS, &job, "10.1.0.11"),
        "stranger among jobs" => Party::pod(JOBS, &[("app", "x")], "10.1.0.12"),
        "gateway" => Party::pod("ckrv-system", &dispatcher, "10.2.0.5"),
        "pod beside the gateway" => Party::pod("ckrv-system", &[("app", "x")], "10.2.0.6"),
        "false gateway" => Party::pod("apps", &dispatcher, "10.3.0.1"),
        "pod elsewhere" => Party::pod("apps", &[("app", "x")], "10.3.0.2"),
        "false job pod elsewhere" => Party::pod("apps", &job, "10.3.0.3"),
        "false agent elsewhere" => Party::pod("apps", &agent, "10.3.0.4"),
        "false names" => Party::pod("apps", &dns, "10.3.0.5"),
        "monitoring" => Party::pod("monitoring", &[("app", "prometheus")], "10.4.0.1"),
        "names" => Party::pod("kube-system", &dns, "10.5.0.1"),
        "another of kube-system" => Party::pod("kube-system", &[("app", "x")], "10.5.0.2"),
        "names on the node" => Party::outside("169.254.20.10"),
        "API server" => Party::outside("10.0.0.10"),
        "second API server" => Party::outside("10.0.1.10"),
        "node" => Party::outside("10.6.0.1"),
        "git host of ours" => Party::outside("10.20.0.9"),
        "metadata" => Party::outside("169.254.169.254"),
        "public" => Party::outside("93.184.216.34"),
        "public, IPv6" => Party::outside("2606:2800:220:1::1"),
        other => Party::outside(other),
    }
}

/// The policies of a rendered chart.
pub fn policies(documents: &[Value]) -> Result<Policies> {
    let all = documents.iter().filter(|document| document["kind"] == "NetworkPolicy");
    let policies = all.map(|document| Ok(serde_json::from_value(document.clone())?)).collect::<Result<_>>()?;
    Ok(Policies { policies, ..Default::default() })
}

/// The rows that aren't as the table says.
pub fn wrong(policies: &Policies) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut row = |from: &str, to: &str, protocol: &str, port: u16, expected: Verdict| -> Result<()> {
        let verdict = policies.verdict(&party(from), &party(to), protocol, port)?;
        if verdict != expected {
            wrong.push(format!("{from} -> {to}:{port}/{protocol} is {verdict:?}, not {expected:?}"));
        }
        Ok(())
    };
    for (from, to, protocol, port, expected) in TABLE {
        row(from, to, protocol, port, expected)?;
    }
    for address in CLOSED.into_iter().chain([CLOSED_TOO]) {
        for port in [443, 22, 53] {
            row("job pod", address, "TCP", port, Verdict::NotOut)?;
        }
        row("agent", address, "TCP", 443, Verdict::NotOut)?;
    }
    Ok(wrong)
}

/// Every policy with one piece of it gone, wider or elsewhere.
pub fn mutants(original: &Policies) -> Vec<(String, Policies)> {
    let mut all = Vec::new();
    for (index, policy) in original.policies.iter().enumerate() {
        let name = policy.metadata.name.clone().unwrap_or_default();
        let mut without = original.clone();
        without.policies.remove(index);
        all.push((format!("{name}: gone"), without));
        for (what, mutant) in mutants_of(policy) {
            let mut changed = original.clone();
            changed.policies[index] = mutant;
            all.push((format!("{name}: {what}"), changed));
        }
    }
    all
}

fn mutants_of(policy: &NetworkPolicy) -> Vec<(String, NetworkPolicy)> {
    let spec = policy.spec.clone().unwrap_or_default();
    let mut specs: Vec<(String, NetworkPolicySpec)> = Vec::new();
    if spec.pod_selector.as_ref().is_some_and(|selector| *selector != LabelSelector::default()) {
        specs.push(("selects every pod".to_owned(), NetworkPolicySpec { pod_selector: None, ..spec.clone() }));
    }
    let egress = spec.egress.clone().unwrap_or_default();
    let ingress = spec.ingress.clone().unwrap_or_default();
    for (direction, rules) in [("Egress", egress.len()), ("Ingress", ingress.len())] {
        // A type without a rule of its own says what the policy for all pods says already.
        let types = spec.policy_types.clone().unwrap_or_default();
        if types.iter().any(|one| one == direction) && (rules > 0 || spec.pod_selector == Some(LabelSelector::default())) {
            let policy_types = types.into_iter().filter(|one| one != direction).collect();
            specs.push((format!("not of {direction}"), NetworkPolicySpec { policy_types: Some(policy_types), ..spec.clone() }));
        }
    }
    for (index, rule) in egress.iter().enumerate() {
        for (what, mutant) in mutants_of_rule(rule.to.as_deref(), rule.ports.as_deref()) {
            let mut rules = egress.clone();
            match mutant {
                Some((to, ports)) => rules[index] = NetworkPolicyEgressRule { to: Some(to), ports: Some(ports) },
                None => drop(rules.remove(index)),
            }
            specs.push((format!("egress {index}: {what}"), NetworkPolicySpec { egress: Some(rules), ..spec.clone() }));
        }
    }
    for (index, rule) in ingress.iter().enumerate() {
        for (what, mutant) in mutants_of_rule(rule.from.as_deref(), rule.ports.as_deref()) {
            let mut rules = ingress.clone();
            match mutant {
                Some((from, ports)) => rules[index] = NetworkPolicyIngressRule { from: Some(from), ports: Some(ports) },
                None => drop(rules.remove(index)),
            }
            specs.push((format!("ingress {index}: {what}"), NetworkPolicySpec { ingress: Some(rules), ..spec.clone() }));
        }
    }
    specs.into_iter().map(|(what, spec)| (what, NetworkPolicy { spec: Some(spec), ..policy.clone() })).collect()
}

type RuleParts = (Vec<NetworkPolicyPeer>, Vec<NetworkPolicyPort>);

/// `None` is the rule gone.
fn mutants_of_rule(peers: Option<&[NetworkPolicyPeer]>, ports: Option<&[NetworkPolicyPort]>) -> Vec<(String, Option<RuleParts>)> {
    let (peers, ports) = (peers.unwrap_or_default().to_vec(), ports.unwrap_or_default().to_vec());
    let mut all = vec![
        ("gone".to_owned(), None),
        ("with everybody".to_owned(), Some((Vec::new(), ports.clone()))),
        ("on every port".to_owned(), Some((peers.clone(), Vec::new()))),
    ];
    for (index, port) in ports.iter().enumerate() {
        let changed = |new: NetworkPolicyPort| {
            let mut ports = ports.clone();
            ports[index] = new;
            Some((peers.clone(), ports))
        };
        if let Some(IntOrString::Int(number)) = port.port {
            let next = NetworkPolicyPort { port: Some(IntOrString::Int(number + 1)), ..port.clone() };
            all.push((format!("port {number} is the next"), changed(next)));
            let wider = NetworkPolicyPort { port: Some(IntOrString::Int(1)), end_port: Some(65535), ..port.clone() };
            all.push((format!("port {number} is all"), changed(wider)));
            let protocol = if port.protocol.as_deref() == Some("UDP") { "TCP" } else { "UDP" };
            let other = NetworkPolicyPort { protocol: Some(protocol.to_owned()), ..port.clone() };
            all.push((format!("port {number} is {protocol}'s"), changed(other)));
        }
    }
    for (index, peer) in peers.iter().enumerate() {
        for (what, mutant) in mutants_of_peer(peer) {
            let mut peers = peers.clone();
            peers[index] = mutant;
            all.push((format!("peer {index}: {what}"), Some((peers, ports.clone()))));
        }
    }
    all
}

fn mutants_of_peer(peer: &NetworkPolicyPeer) -> Vec<(String, NetworkPolicyPeer)> {
    let mut all = Vec::new();
    if let Some(block) = &peer.ip_block {
        let except = block.except.clone().unwrap_or_default();
        for index in 0..except.len() {
            let mut fewer = except.clone();
            let gone = fewer.remove(index);
            let mut wider = peer.clone();
            wider.ip_block.get_or_insert_default().except = Some(fewer);
            all.push((format!("{gone} is let in"), wider));
        }
        if except.is_empty() {
            let mut wider = peer.clone();
            wider.ip_block.get_or_insert_default().cidr = "0.0.0.0/0".to_owned();
            all.push((format!("{} is everywhere", block.cidr), wider));
        }
        let mut elsewhere = peer.clone();
        elsewhere.ip_block.get_or_insert_default().cidr = "192.0.2.1/32".to_owned();
        elsewhere.ip_block.get_or_insert_default().except = None;
        all.push((format!("{} is elsewhere", block.cidr), elsewhere));
        return all;
    }
    if peer.pod_selector.is_some() {
        let every = Some(LabelSelector::default());
        all.push(("every pod".to_owned(), NetworkPolicyPeer { pod_selector: every, ..peer.clone() }));
        all.push(("in its own namespace".to_owned(), NetworkPolicyPeer { namespace_selector: None, ..peer.clone() }));
    }
    let everywhere = NetworkPolicyPeer { namespace_selector: Some(LabelSelector::default()), ..peer.clone() };
    all.push(("in every namespace".to_owned(), everywhere));
    all.retain(|(_, mutant)| mutant != peer);
    all
}
