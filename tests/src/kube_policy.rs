//! Who may reach whom, by Kubernetes' NetworkPolicies: the semantics of the API, evaluated without a cluster. What a network plugin makes
//! of them, and what it lets through before it knows a pod, is another matter.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

type Labels = BTreeMap<String, String>;

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct Party {
    address: IpAddr,
    /// Namespace and labels, if it is a pod.
    pod: Option<(String, Labels)>,
}

impl Party {
    #[must_use]
    pub fn pod(namespace: &str, labels: &[(&str, &str)], address: &str) -> Self {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self { pod: Some((namespace.to_owned(), labels)), ..Self::outside(address) }
    }

    /// # Panics
    /// What is no address.
    #[must_use]
    pub fn outside(address: &str) -> Self {
        Self { address: address.parse().expect("an address"), pod: None }
    }
}

/// All policies of a cluster, and the labels of its namespaces.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    pub policies: Vec<NetworkPolicy>,
    /// Besides `kubernetes.io/metadata.name`, which each namespace has.
    pub namespaces: BTreeMap<String, Labels>,
}

/// Which end's policies stop a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Open,
    /// Those of where it comes from.
    NotOut,
    /// Those of where it goes.
    NotIn,
    Neither,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// A rule of either direction: with whom, on which ports. Nothing named is everything.
struct Rule<'a> {
    peers: &'a [NetworkPolicyPeer],
    ports: &'a [NetworkPolicyPort],
}

impl Policies {
    /// Whether `from` may open a connection to this port of `to`.
    ///
    /// # Errors
    /// A policy that the API server would refuse, or a port by name.
    pub fn verdict(&self, from: &Party, to: &Party, protocol: &str, port: u16) -> Result<Verdict> {
        let port = (protocol, port);
        let out = self.passes(Direction::Egress, from, to, port)?;
        Ok(match (out, self.passes(Direction::Ingress, to, from, port)?) {
            (true, true) => Verdict::Open,
            (false, true) => Verdict::NotOut,
            (true, false) => Verdict::NotIn,
            (false, false) => Verdict::Neither,
        })
    }

    /// The union of all policies that select `own`; without one everything passes.
    fn passes(&self, direction: Direction, own: &Party, other: &Party, port: (&str, u16)) -> Result<bool> {
        let Some((namespace, labels)) = &own.pod else { return Ok(true) };
        let mut selected = false;
        for policy in &self.policies {
            let spec = policy.spec.as_ref().context("a policy without spec")?;
            let home = policy.metadata.namespace.as_deref().context("a policy without namespace")?;
            let selector = spec.pod_selector.clone().unwrap_or_default();
            if home != namespace || !directions(policy).contains(&direction) || !selects(&selector, labels)? {
                continue;
            }
            selected = true;
            for rule in rules(policy, direction) {
                if rule.has_port(port)? && self.has_peer(&rule, home, other)? {
                    return Ok(true);
                }
            }
        }
        Ok(!selected)
    }

    fn has_peer(&self, rule: &Rule<'_>, home: &str, other: &Party) -> Result<bool> {
        if rule.peers.is_empty() {
            return Ok(true);
        }
        for peer in rule.peers {
            if self.is_peer(peer, home, other)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_peer(&self, peer: &NetworkPolicyPeer, home: &str, other: &Party) -> Result<bool> {
        if let Some(block) = &peer.ip_block {
            // Whether a block means pods, too, is left to the plugin: here it does, which lets more through.
            return contains(block, other.address);
        }
        if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
            bail!("a peer that names nobody");
        }
        let Some((namespace, labels)) = &other.pod else { return Ok(false) };
        let right_namespace = match &peer.namespace_selector {
            Some(selector) => selects(selector, &self.labels(namespace))?,
            None => namespace == home,
        };
        let right_pod = peer.pod_selector.as_ref().map_or(Ok(true), |selector| selects(selector, labels))?;
        Ok(right_namespace && right_pod)
    }

    fn labels(&self, namespace: &str) -> Labels {
        let mut labels = self.namespaces.get(namespace).cloned().unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
        labels
    }
}

impl Rule<'_> {
    fn has_port(&self, (protocol, port): (&str, u16)) -> Result<bool> {
        let port = i32::from(port);
        for allowed in self.ports {
            let right = allowed.protocol.as_deref().unwrap_or("TCP") == protocol;
            let within = match (&allowed.port, allowed.end_port) {
                (None, None) => true,
                (Some(IntOrString::Int(first)), last) => (*first..=last.unwrap_or(*first)).contains(&port),
                other => bail!("only ports by number are evaluated, not {other:?}"),
            };
            if right && within {
                return Ok(true);
            }
        }
        Ok(self.ports.is_empty())
    }
}

fn directions(policy: &NetworkPolicy) -> Vec<Direction> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    match &spec.policy_types {
        Some(types) => {
            let named = |(direction, name): (Direction, &str)| types.iter().any(|one| one == name).then_some(direction);
            [(Direction::Ingress, "Ingress"), (Direction::Egress, "Egress")].into_iter().filter_map(named).collect()
        }
        None if spec.egress.is_some() => vec![Direction::Ingress, Direction::Egress],
        None => vec![Direction::Ingress],
    }
}

fn rules(policy: &NetworkPolicy, direction: Direction) -> Vec<Rule<'_>> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    match direction {
        Direction::Ingress => spec.ingress.iter().flatten().map(|rule| rule_of(&rule.from, &rule.ports)).collect(),
        Direction::Egress => spec.egress.iter().flatten().map(|rule| rule_of(&rule.to, &rule.ports)).collect(),
    }
}

fn rule_of<'a>(peers: &'a Option<Vec<NetworkPolicyPeer>>, ports: &'a Option<Vec<NetworkPolicyPort>>) -> Rule<'a> {
    Rule { peers: peers.as_deref().unwrap_or_default(), ports: ports.as_deref().unwrap_or_default() }
}

fn contains(block: &IPBlock, address: IpAddr) -> Result<bool> {
    let range = |text: &str| text.parse::<IpNet>().with_context(|| format!("{text} is no range"));
    let whole = range(&block.cidr)?;
    let mut inside = whole.contains(&address);
    for except in block.except.iter().flatten() {
        let except = range(except)?;
        if !whole.contains(&except) {
            bail!("{except} is not within {whole}");
        }
        inside &= !except.contains(&address);
    }
    Ok(inside)
}

fn selects(selector: &LabelSelector, labels: &Labels) -> Result<bool> {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let mut all = equal;
    for requirement in selector.match_expressions.iter().flatten() {
        all &= meets(requirement, labels)?;
    }
    Ok(all)
}

fn meets(requirement: &LabelSelectorRequirement, labels: &Labels) -> Result<bool> {
    let value = labels.get(&requirement.key);
    let listed = value.is_some_and(|value| requirement.values.iter().flatten().any(|one| one == value));
    Ok(match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        other => bail!("no such operator: {other}"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policies(specs: &[Value]) -> Policies {
        let policy = |spec: &Value| serde_json::from_value(json!({"metadata": {"namespace": "home"}, "spec": spec})).unwrap();
        let namespaces = BTreeMap::from([("near".to_owned(), BTreeMap::from([("team".to_owned(), "a".to_owned())]))]);
        Policies { policies: specs.iter().map(policy).collect(), namespaces }
    }

    fn verdicts(specs: &[Value], flows: &[(&Party, &Party, u16)]) -> Vec<Verdict> {
        let policies = policies(specs);
        flows.iter().map(|(from, to, port)| policies.verdict(from, to, "TCP", *port).unwrap()).collect()
    }

    #[test]
    fn a_pod_that_no_policy_selects_is_open_and_one_that_is_selected_has_what_its_policies_allow_together() {
        let web = Party::pod("home", &[("app", "web")], "10.0.0.1");
        let other = Party::pod("home", &[("app", "other")], "10.0.0.2");
        let deny = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]});
        assert_eq!(verdicts(&[], &[(&other, &web, 80)]), [Verdict::Open]);
        let flows = [(&other, &web, 80), (&web, &other, 80), (&other, &web, 81)];
        assert_eq!(verdicts(std::slice::from_ref(&deny), &flows), [Verdict::NotIn, Verdict::Open, Verdict::NotIn]);
        let allow = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "other"}}}],
                           "ports": [{"port": 80}]}]});
        assert_eq!(verdicts(&[deny, allow], &flows), [Verdict::Open, Verdict::NotIn, Verdict::NotIn]);
    }

    #[test]
    fn a_pod_selector_alone_means_its_own_namespace_and_both_selectors_mean_both() {
        let web = Party::pod("home", &[], "10.0.0.1");
        let [here, near, far] = ["home", "near", "far"].map(|home| Party::pod(home, &[("app", "x")], "10.0.0.3"));
        let flows = [(&here, &web, 1), (&near, &web, 1), (&far, &web, 1)];
        let from = |peer: Value| json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [peer]}]});
        let pods = json!({"matchLabels": {"app": "x"}});
        let team = json!({"matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]});
        let (open, shut) = (Verdict::Open, Verdict::NotIn);
        assert_eq!(verdicts(&[from(json!({"podSelector": pods}))], &flows), [open, shut, shut]);
        assert_eq!(verdicts(&[from(json!({"namespaceSelector": {}}))], &flows), [open, open, open]);
        assert_eq!(verdicts(&[from(json!({"namespaceSelector": team, "podSelector": pods}))], &flows), [shut, open, shut]);
        let none = json!({"matchLabels": {"app": "y"}});
        assert_eq!(verdicts(&[from(json!({"namespaceSelector": team, "podSelector": none}))], &flows), [shut, shut, shut]);
    }

    #[test]
    fn blocks_have_holes_and_ports_have_ends() {
        let pod = Party::pod("home", &[], "10.0.0.1");
        let [public, hole, six] = ["192.0.2.1", "10.1.2.3", "2001:db8::1"].map(Party::outside);
        let spec = json!({"podSelector": {}, "egress": [{
            "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}], "ports": [{"port": 20, "endPort": 22}]}]});
        let flows = [(&pod, &public, 22), (&pod, &public, 23), (&pod, &hole, 22), (&pod, &six, 22), (&public, &pod, 22)];
        let (open, shut) = (Verdict::Open, Verdict::NotOut);
        // Rules for what goes out, and no word of types: it is selected in both directions.
        assert_eq!(verdicts(std::slice::from_ref(&spec), &flows), [open, shut, shut, shut, Verdict::NotIn]);
        assert_eq!(policies(&[spec]).verdict(&pod, &public, "UDP", 22).unwrap(), shut);
    }

    #[test]
    fn what_the_api_server_would_refuse_is_an_error() {
        let pod = Party::pod("home", &[], "10.0.0.1");
        for peer in [
            json!({}),
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["192.168.0.0/16"]}}),
            json!({"ipBlock": {"cidr": "x"}}),
        ] {
            let policies = policies(&[json!({"podSelector": {}, "egress": [{"to": [peer]}]})]);
            assert!(policies.verdict(&pod, &Party::outside("10.0.0.9"), "TCP", 1).is_err());
        }
    }
}
