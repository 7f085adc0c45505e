//! The Helm chart on a real cluster: what it makes is taken by the API server, roles allow what they must and nothing else, the admission
//! policies refuse what they are there for, and each of their rules is needed.
//!
//! Not shown here: that a network plugin enforces the NetworkPolicies (none can be installed on the test cluster). They are evaluated, and
//! the probe that an admin runs is seen to fail where nothing enforces them.

mod kube_chart;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::bench;
use ckrv_tests::wait::{PATIENCE, wait_until};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::kube_chart::admission::{Scene, Try};
use crate::kube_chart::chart::{Installed, NAME, documents, examples, folder, helm, path, render, said};
use crate::kube_chart::pods::{JOB, agent_pod};
use crate::kube_chart::{network, rights};

/// Kinds of operators that a bare cluster doesn't have.
const FOREIGN: [&str; 3] = ["Certificate", "Issuer", "ServiceMonitor"];

#[tokio::test]
async fn the_chart_lints_and_the_api_server_takes_all_that_it_makes() -> Result<()> {
    let admin = kube_chart::chart::admin().await?;
    let namespaces: Api<Namespace> = Api::all(admin);
    let id = format!("t{:08x}", rand::random::<u32>());
    let (system, jobs) = (format!("{id}-system"), format!("{id}-jobs"));
    let scratch = tempfile::tempdir()?;
    for name in [&system, &jobs] {
        let namespace = json!({"metadata": {"name": name, "labels": {"pod-security.kubernetes.io/warn": "restricted"}}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    }
    for values in examples()? {
        let lint = helm(&["lint", "--strict", path(&folder())?, "--values", path(&values)?]).await?;
        ensure!(lint.status.success(), "{}: {}", values.display(), said(&lint));
        let text = render(&values, &system, &[&format!("jobs.namespace={jobs}"), "jobs.createNamespace=false"]).await?;
        let (foreign, own): (Vec<_>, Vec<_>) =
            documents(&text)?.into_iter().partition(|document| FOREIGN.iter().any(|kind| document["kind"] == *kind));
        let expected = if values.ends_with("cert-manager-values.yaml") { 3 } else { 0 };
        assert_eq!(foreign.len(), expected, "{}", values.display());
        let file = scratch.path().join("all.json");
        std::fs::write(&file, json!({"apiVersion": "v1", "kind": "List", "items": own}).to_string())?;
        let mut kubectl = Command::new(bench::kubectl()?);
        kubectl.args(["apply", "--dry-run=server", "--warnings-as-errors", "--validate=strict", "--filename", path(&file)?]);
        let output = kubectl.arg("--kubeconfig").arg(bench::kubeconfig()?).output().await?;
        ensure!(output.status.success(), "{}: {}", values.display(), said(&output));
    }
    for name in [&system, &jobs] {
        namespaces.delete(name, &DeleteParams::default()).await?;
    }
    Ok(())
}

/// What would be a hole rather than an error must not get as far as a cluster.
#[tokio::test]
async fn values_that_would_open_everything_are_refused() -> Result<()> {
    let plain = folder().join("ci/plain-values.yaml");
    let refused = [
        ("network.apiServer.cidrs=null", "cidrs"),
        ("network.apiServer.url=http://10.0.0.1:6443", "url"),
        ("network.public.ports=null", "ports"),
        ("network.dns.podLabels=null", "podLabels"),
        ("agents.images=null", "images"),
        ("agents.images={x'] + ['}", "images"),
        ("agents.maxResources.memory=null", "memory"),
        ("jobs.namespace=ckrv-system", "must not be the release's own"),
        ("gateway.tls.mode=secret", "gateway.tls"),
        ("dispatcher.replica=3", "replica"),
        ("worker=two words", "worker"),
    ];
    for (set, why) in refused {
        let error = render(&plain, "ckrv-system", &[set]).await.err().with_context(|| format!("{set} was taken"))?;
        ensure!(error.to_string().contains(why), "{set}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn roles_allow_what_they_must_and_nothing_else_that_the_api_server_has() -> Result<()> {
    let installed = Installed::new(&json!({})).await?;
    let (admin, system, jobs) = (&installed.admin, installed.system.as_str(), installed.jobs.as_str());
    let everything = rights::everything(admin).await?;
    ensure!(everything.len() > 500, "only {} rights", everything.len());
    let namespaces = ["", jobs, system, "kube-system"];
    // Every account of a cluster may ask who it is and what it may do.
    let of_everybody = [
        "authentication.k8s.io/selfsubjectreviews",
        "authorization.k8s.io/selfsubjectaccessreviews",
        "authorization.k8s.io/selfsubjectrulesreviews",
    ];
    let everywhere = |resources: &[&str]| -> BTreeSet<String> {
        namespaces.iter().flat_map(|namespace| resources.iter().map(move |what| format!("{namespace}: create {what}"))).collect()
    };
    let agent = everywhere(&of_everybody);
    let pods = ["get", "list", "watch", "create", "delete"].map(|verb| format!("{jobs}: {verb} pods"));
    let job: BTreeSet<_> = agent.iter().cloned().chain(pods.clone()).collect();
    let review = everywhere(&["authentication.k8s.io/tokenreviews"]);
    let dispatcher: BTreeSet<_> = job.union(&review).cloned().collect();
    let accounts =
        [((jobs, "ckrv-agent"), &agent), ((jobs, "ckrv-job"), &job), ((system, NAME), &dispatcher), ((jobs, "default"), &agent)];
    for (account, expected) in accounts {
        let found = rights::of(admin, account, &namespaces, &everything).await?;
        assert_eq!(&found, expected, "{account:?}");
    }
    // The table would show a right too many.
    let binding = json!({
        "metadata": {"name": "mistake"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "ckrv-job"},
        "subjects": [{"kind": "ServiceAccount", "name": "ckrv-agent", "namespace": jobs}],
    });
    let bindings: Api<RoleBinding> = Api::namespaced(admin.clone(), jobs);
    bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
    wait_until("the agent's account has what the mistake gives", PATIENCE, async || {
        let found = rights::of(admin, (jobs, "ckrv-agent"), &[jobs], &everything).await.ok()?;
        pods.iter().all(|right| found.contains(right)).then_some(())
    })
    .await
}

#[tokio::test]
async fn the_admission_policies_take_what_is_right_and_refuse_each_breach_and_each_rule_is_needed() -> Result<()> {
    let scene = Scene::new().await?;
    scene.type_checked().await?;
    let good = agent_pod(&scene.installed, JOB, &scene.job, "good");
    let mut hostile = good.clone();
    hostile["spec"]["hostNetwork"] = json!(true);
    let refusal = scene.refusal(&scene.as_job, &Try::Create(hostile)).await?.unwrap_or_default();
    ensure!(refusal.contains("violates PodSecurity \"restricted"), "{refusal}");
    scene.pod_security("privileged").await?;
    let cases = scene.cases().await?;
    // Stored rules are in force a moment later; from the first refusals on everything is judged by all of them.
    for policy in ["agent-pods", "agent-ends", "job-pods", "job-ends", "accounts", "entering"] {
        let mut mine = cases.iter().filter(|case| case.policy == policy);
        let last = mine.next_back().with_context(|| format!("no case of {policy}"))?;
        scene.until(last, true).await?;
    }
    assert_eq!(scene.refusal(&scene.as_job, &Try::Create(good.clone())).await?, None);
    for case in &cases {
        let refusal = scene.refusal(&case.who, &case.attempt).await.with_context(|| case.what)?;
        let refusal = refusal.with_context(|| format!("{}: `{}` was let in", case.policy, case.what))?;
        let by = format!("{}-{NAME}-{}'", scene.installed.system, case.policy);
        ensure!(refusal.contains(case.rule) && refusal.contains(&by), "{}: `{}`: {refusal}", case.policy, case.what);
    }
    // What is right goes on to work, to the very end.
    let pods: Api<Pod> = Api::namespaced(scene.as_job.clone(), &scene.installed.jobs);
    pods.create(&PostParams::default(), &serde_json::from_value(good)?).await?;
    assert_eq!(scene.refusal(&scene.as_job, &Try::Delete("good".to_owned())).await?, None);
    assert_eq!(scene.refusal(&scene.as_other, &Try::Delete("theirs".to_owned())).await?, None);
    assert_eq!(scene.refusal(&scene.dispatcher, &Try::Delete(scene.job.name.clone())).await?, None);
    let mut rules = 0;
    for policy in ["agent-pods", "agent-ends", "job-pods", "job-ends", "accounts", "entering"] {
        rules += scene.without_each_rule(policy, &cases).await.context(policy)?;
    }
    ensure!(rules >= 30, "only {rules} rules");
    Ok(())
}

#[tokio::test]
async fn the_network_policies_allow_the_table_and_no_piece_of_them_could_be_wider_or_missing() -> Result<()> {
    let text = render(&folder().join("ci/eks-values.yaml"), "ckrv-system", &[]).await?;
    let policies = network::policies(&documents(&text)?)?;
    assert_eq!(policies.policies.len(), 4);
    assert_eq!(network::wrong(&policies)?, [""; 0]);
    let mutants = network::mutants(&policies);
    ensure!(mutants.len() > 80, "only {} mutants", mutants.len());
    // Nothing but this ties the port that the policies open to the one on which job pods listen.
    let code = std::fs::read_to_string(folder().join("../../../orchestrator/src/launch/kubernetes.rs"))?;
    ensure!(code.contains("pub const SHIM_PORT: u16 = 7443;"), "the table's 7443 must be where job pods take shims in");
    let unseen = mutants.iter().filter(|(_, mutant)| network::wrong(mutant).is_ok_and(|wrong| wrong.is_empty()));
    let unseen: Vec<_> = unseen.map(|(what, _)| what).collect();
    assert!(unseen.is_empty(), "changes that the table doesn't see: {unseen:#?}");
    Ok(())
}

/// The gateway's certificate as job pods check it, over an upgrade.
#[tokio::test]
async fn an_upgrade_keeps_the_gateways_certificate_and_job_pods_trust_it() -> Result<()> {
    let installed = Installed::new(&json!({})).await?;
    let secrets: Api<Secret> = Api::namespaced(installed.admin.clone(), &installed.system);
    let name = format!("{NAME}-gateway-tls");
    let before = secrets.get(&name).await?.data.context("an empty Secret")?;
    installed.helm("upgrade", &["--set", "dispatcher.drainSeconds=20"]).await?;
    let after = secrets.get(&name).await?.data.context("an empty Secret")?;
    assert!(before == after, "an upgrade made another certificate");
    let maps: Api<ConfigMap> = Api::namespaced(installed.admin.clone(), &installed.jobs);
    let ca = maps.get("ckrv-gateway-ca").await?.data.and_then(|mut data| data.remove("ca.crt")).context("no ca.crt")?;
    let (certificate, key) = (&before["tls.crt"].0, &before["tls.key"].0);
    let host = format!("{NAME}.{}.svc", installed.system);
    kube_chart::tls::handshake(certificate, key, ca.as_bytes(), &host).await?;
    let stranger = kube_chart::tls::handshake(certificate, key, ca.as_bytes(), "example.com").await;
    ensure!(stranger.is_err(), "the certificate is good for any name");
    // A deleted one is made anew, and job pods are told.
    secrets.delete(&name, &DeleteParams::default()).await?;
    installed.helm("upgrade", &[]).await?;
    let renewed = maps.get("ckrv-gateway-ca").await?.data.and_then(|mut data| data.remove("ca.crt")).context("no ca.crt")?;
    ensure!(renewed != ca, "the deleted certificate is still trusted");
    Ok(())
}

/// Nothing enforces network policies here: what the probe reaches, it must report. Its targets are stand-ins of this machine.
#[tokio::test]
async fn the_admins_probe_fails_where_nothing_enforces_the_policies() -> Result<()> {
    let listener = tokio::net::TcpListener::bind((bench::kube_host()?, 0)).await?;
    let public = listener.local_addr()?;
    let listening = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let closed = format!("{}:1", bench::kube_host()?);
    let probe = json!({"probe": {"public": public.to_string(), "targets": [{"name": "nobody", "address": closed}]}});
    let installed = Installed::new(&probe).await?;
    let output = helm(&["test", NAME, "--namespace", &installed.system, "--timeout", "180s"]).await?;
    ensure!(!output.status.success(), "{}", said(&output));
    let log = async |namespace: &str, pod: &str| -> Result<String> {
        Ok(Api::<Pod>::namespaced(installed.admin.clone(), namespace).logs(pod, &Default::default()).await?)
    };
    let agent = log(&installed.jobs, &format!("{NAME}-probe-agent")).await?;
    for line in [format!("public {public}: REACHED"), format!("nobody {closed}: denied")] {
        ensure!(agent.lines().any(|found| found == line), "{line}: {agent}");
    }
    ensure!(agent.lines().any(|line| line.starts_with("api-server ") && line.ends_with(": REACHED")), "{agent}");
    ensure!(agent.lines().any(|line| line.starts_with("neighbour ") && line.ends_with(": REACHED")), "{agent}");
    let control = log(&installed.system, &format!("{NAME}-probe-control")).await?;
    ensure!(control.lines().any(|found| found == format!("public {public}: reached")), "{control}");
    listening.abort();
    Ok(())
}

/// What the installation has outside its namespaces, and the jobs' namespace itself.
async fn outside(installed: &Installed) -> Result<Vec<String>> {
    let mut kubectl = Command::new(bench::kubectl()?);
    let kinds = "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,priorityclasses,namespaces";
    kubectl.args(["get", kinds, "--selector", "app.kubernetes.io/part-of=ckrv", "--output", "json"]);
    let output = kubectl.arg("--kubeconfig").arg(bench::kubeconfig()?).output().await?;
    let found: Value = serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
    let names = found["items"].as_array().into_iter().flatten().filter_map(|item| item["metadata"]["name"].as_str());
    Ok(names.filter(|name| name.starts_with(&installed.system) || **name == installed.jobs).map(str::to_owned).collect())
}

#[tokio::test]
async fn what_was_installed_goes_with_the_release() -> Result<()> {
    let installed = Installed::new(&json!({})).await?;
    // Two of roles, twelve of admission, two priorities, a namespace.
    assert_eq!(outside(&installed).await?.len(), 17);
    let output = helm(&["uninstall", NAME, "--namespace", &installed.system, "--wait", "--timeout", "120s"]).await?;
    ensure!(output.status.success(), "{}", said(&output));
    assert_eq!(outside(&installed).await?, [""; 0]);
    Ok(())
}
