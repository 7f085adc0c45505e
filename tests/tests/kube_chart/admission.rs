//! What the admission policies refuse, and that each of their rules is needed.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ckrv_tests::wait::{PATIENCE, wait_until};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::{Value, json};

use super::chart::{Installed, NAME, PodRef};
use super::pods::{Breach, JOB, OTHER_JOB, agent_breaches, agent_pod, job_breaches, job_pod, job_pod_name};

/// What somebody tries.
pub enum Try {
    Create(Value),
    Delete(String),
    /// A subresource of a pod, by method.
    Enter(&'static str, String),
}

/// A try that a rule of a policy must refuse.
pub struct Case {
    pub what: &'static str,
    pub who: Client,
    /// The policy's name without the installation's.
    pub policy: &'static str,
    pub rule: &'static str,
    pub attempt: Try,
}

/// An installation with the pods of two jobs, and everybody who acts in it.
pub struct Scene {
    pub installed: Installed,
    pub dispatcher: Client,
    pub job: PodRef,
    pub other: PodRef,
    pub as_job: Client,
    pub as_other: Client,
    runtime_class: String,
}

impl Scene {
    pub async fn new() -> Result<Self> {
        let installed = Installed::new(&json!({})).await?;
        let runtime_class = installed.jobs.clone();
        let classes: Api<RuntimeClass> = Api::all(installed.admin.clone());
        let class = json!({"metadata": {"name": runtime_class}, "handler": "runc"});
        classes.create(&PostParams::default(), &serde_json::from_value(class)?).await?;
        let dispatcher = installed.acting_as(&installed.system, NAME, None).await?;
        let pods: Api<Pod> = Api::namespaced(dispatcher.clone(), &installed.jobs);
        let mut made = Vec::new();
        for job in [JOB, OTHER_JOB] {
            let pod = pods.create(&PostParams::default(), &serde_json::from_value(job_pod(&installed, job))?).await?;
            made.push(PodRef { name: job_pod_name(job), uid: pod.metadata.uid.context("no uid")? });
        }
        let [job, other] = <[PodRef; 2]>::try_from(made).map_err(|_| anyhow::anyhow!("two pods were made"))?;
        let as_job = installed.acting_as(&installed.jobs, "ckrv-job", Some(&job)).await?;
        let as_other = installed.acting_as(&installed.jobs, "ckrv-job", Some(&other)).await?;
        Ok(Self { installed, dispatcher, job, other, as_job, as_other, runtime_class })
    }

    /// Pod Security is another gate, and stands before ours: with it, a breach of both would never reach ours.
    pub async fn pod_security(&self, level: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.installed.admin.clone());
        let patch = Patch::Merge(json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}}));
        namespaces.patch(&self.installed.jobs, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// What the admission policies say to it; nothing is really made or removed. `None`: they let it through.
    pub async fn refusal(&self, who: &Client, attempt: &Try) -> Result<Option<String>> {
        let pods: Api<Pod> = Api::namespaced(who.clone(), &self.installed.jobs);
        let dry = PostParams { dry_run: true, ..Default::default() };
        let result = match attempt {
            Try::Create(pod) => pods.create(&dry, &serde_json::from_value(pod.clone())?).await.map(drop),
            Try::Delete(name) => pods.delete(name, &DeleteParams { dry_run: true, ..Default::default() }).await.map(drop),
            Try::Enter(method, path) => {
                let uri = format!("/api/v1/namespaces/{}/pods/{path}", self.installed.jobs);
                let body = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "e"}]}}).to_string().into_bytes();
                let request = hyper::Request::builder().method(*method).uri(uri);
                let request = request.header("content-type", "application/strategic-merge-patch+json").body(body)?;
                who.request_text(request).await.map(drop)
            }
        };
        match (result, attempt) {
            (Ok(()), _) => Ok(None),
            (Err(Error::Api(status)), _) if status.message.contains("denied request") => Ok(Some(status.message.clone())),
            (Err(Error::Api(status)), _) if status.message.contains("violates PodSecurity") => Ok(Some(status.message.clone())),
            // Let through, as far as admission goes: what follows wants a stream, or a kubelet.
            (Err(Error::Api(status)), Try::Enter(..)) if status.code != 403 => Ok(None),
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Everything that must be refused.
    pub async fn cases(&self) -> Result<Vec<Case>> {
        let installed = &self.installed;
        let case = |who: &Client, policy, breach: Breach| {
            let Breach { what, rule, pod } = breach;
            Case { what, who: who.clone(), policy, rule, attempt: Try::Create(pod) }
        };
        let agents = agent_breaches(installed, &self.job, &self.other, &self.runtime_class);
        let mut cases: Vec<_> = agents.into_iter().map(|breach| case(&self.as_job, "agent-pods", breach)).collect();
        let unbound = installed.acting_as(&installed.jobs, "ckrv-job", None).await?;
        let pod = agent_pod(installed, JOB, &self.job, "unbound");
        cases.push(case(&unbound, "agent-pods", Breach { what: "a token of no pod", rule: "has one owner", pod }));
        let jobs = job_breaches(installed, &self.runtime_class);
        cases.extend(jobs.into_iter().map(|breach| case(&self.dispatcher, "job-pods", breach)));
        let admin = &installed.admin;
        let others = "are for pods that the dispatcher and job pods make";
        let mut agent = agent_pod(installed, JOB, &self.job, "strangers");
        cases.push(case(admin, "accounts", Breach { what: "an agent's account", rule: others, pod: agent.clone() }));
        let pod = job_pod(installed, "0198a7c4-5d2e-7b31-9c3f-2a44c1d0e5f9");
        cases.push(case(admin, "accounts", Breach { what: "a job pod's account", rule: others, pod }));
        agent["spec"]["serviceAccountName"] = json!("default");
        agent["metadata"]["labels"]["ckrv.dev/role"] = json!("job");
        cases.push(case(admin, "accounts", Breach { what: "a job pod's role", rule: "is made by the dispatcher", pod: agent }));
        cases.extend(self.ends().await?);
        cases.extend(self.entering().await?);
        Ok(cases)
    }

    async fn ends(&self) -> Result<[Case; 4]> {
        let installed = &self.installed;
        let theirs: Api<Pod> = Api::namespaced(self.as_other.clone(), &installed.jobs);
        let agent = agent_pod(installed, OTHER_JOB, &self.other, "theirs");
        theirs.create(&PostParams::default(), &serde_json::from_value(agent)?).await.context("the other job's agent pod")?;
        let mut stranger = agent_pod(installed, JOB, &self.job, "stranger");
        stranger["spec"]["serviceAccountName"] = json!("default");
        stranger["metadata"]["labels"] = json!({});
        let all: Api<Pod> = Api::namespaced(installed.admin.clone(), &installed.jobs);
        all.create(&PostParams::default(), &serde_json::from_value(stranger)?).await.context("a stranger's pod")?;
        let case = |what, who: &Client, policy, rule, name: &str| Case {
            what,
            who: who.clone(),
            policy,
            rule,
            attempt: Try::Delete(name.to_owned()),
        };
        let own = "deletes its own agent pods only";
        Ok([
            case("another job's agent", &self.as_job, "agent-ends", own, "theirs"),
            case("another job's pod", &self.as_job, "agent-ends", own, &self.other.name),
            case("its own job's pod", &self.as_job, "agent-ends", own, &self.job.name),
            case("a stranger's pod", &self.dispatcher, "job-ends", "deletes pods of its own installation only", "stranger"),
        ])
    }

    /// A role that somebody granted by mistake.
    async fn entering(&self) -> Result<Vec<Case>> {
        let (admin, jobs) = (&self.installed.admin, &self.installed.jobs);
        let ways = ["pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "pods/ephemeralcontainers"];
        let role = json!({"metadata": {"name": "mistake"}, "rules": [{"apiGroups": [""], "resources": ways, "verbs": ["*"]}]});
        let binding = json!({
            "metadata": {"name": "mistake"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "mistake"},
            "subjects": [{"kind": "ServiceAccount", "name": "ckrv-job", "namespace": jobs},
                         {"kind": "ServiceAccount", "name": "ckrv-agent", "namespace": jobs},
                         {"kind": "ServiceAccount", "name": NAME, "namespace": self.installed.system}],
        });
        let dry = PostParams::default();
        Api::<Role>::namespaced(admin.clone(), jobs).create(&dry, &serde_json::from_value(role)?).await?;
        Api::<RoleBinding>::namespaced(admin.clone(), jobs).create(&dry, &serde_json::from_value(binding)?).await?;
        let agent = self.installed.acting_as(jobs, "ckrv-agent", None).await?;
        let mut cases = Vec::new();
        for who in [&self.as_job, &agent, &self.dispatcher] {
            let tries = [
                ("exec", "POST", "exec?command=true&stdout=true"),
                ("attach", "POST", "attach?stdout=true"),
                ("port forwarding", "POST", "portforward?ports=1"),
                ("the proxy", "GET", "proxy/"),
                ("another container", "PATCH", "ephemeralcontainers"),
            ];
            cases.extend(tries.map(|(what, method, path)| Case {
                what,
                who: who.clone(),
                policy: "entering",
                rule: "nobody of ours enters a pod",
                attempt: Try::Enter(method, format!("{}/{path}", self.job.name)),
            }));
        }
        Ok(cases)
    }

    /// Policies and roles reach the API server's memory a moment after they were stored.
    pub async fn until(&self, case: &Case, refused: bool) -> Result<()> {
        let what = format!("{} is {}", case.what, if refused { "refused" } else { "let in" });
        let mut last = None;
        let waited = wait_until(&what, PATIENCE, async || {
            last = Some(self.refusal(&case.who, &case.attempt).await);
            matches!(&last, Some(Ok(refusal)) if refusal.is_some() == refused).then_some(())
        });
        waited.await.with_context(|| format!("at last: {last:?}"))
    }

    /// Makes each rule of a policy true, one after the other, and sees that what it refused is let in.
    pub async fn without_each_rule(&self, name: &str, cases: &[Case]) -> Result<usize> {
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(self.installed.admin.clone());
        let full = format!("{}-{NAME}-{name}", self.installed.system);
        let original = policies.get(&full).await?;
        let rules = original.spec.clone().and_then(|spec| spec.validations).context("no rules")?;
        let mut first = None;
        for (index, rule) in rules.iter().enumerate() {
            let message = rule.message.as_deref().context("a rule without a message")?;
            let mut mine = cases.iter().filter(|case| case.policy == name && message.contains(case.rule));
            let Some(case) = mine.next() else { bail!("nothing breaks the rule `{message}`") };
            let mut mutant = policies.get(&full).await?;
            let mut changed = rules.clone();
            "true".clone_into(&mut changed[index].expression);
            mutant.spec.get_or_insert_default().validations = Some(changed);
            policies.replace(&full, &PostParams::default(), &mutant).await?;
            self.until(case, false).await.with_context(|| format!("without `{message}`"))?;
            first.get_or_insert(case);
        }
        let mut restored = policies.get(&full).await?;
        restored.spec = original.spec;
        policies.replace(&full, &PostParams::default(), &restored).await?;
        self.until(first.context("no rules")?, true).await?;
        Ok(rules.len())
    }

    /// No expression that the API server doubts.
    pub async fn type_checked(&self) -> Result<()> {
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(self.installed.admin.clone());
        for name in ["agent-pods", "agent-ends", "job-pods", "job-ends", "accounts", "entering"] {
            let full = format!("{}-{NAME}-{name}", self.installed.system);
            let checked = wait_until("the policy is type-checked", Duration::from_secs(30), async || {
                policies.get(&full).await.ok()?.status?.type_checking
            });
            let warnings = checked.await?.expression_warnings.unwrap_or_default();
            ensure!(warnings.is_empty(), "{full}: {warnings:?}");
        }
        Ok(())
    }
}
