//! Making and removing pods, where an answer may be lost and a name may be taken.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::Status;
use kube::{Api, Client, Error, ResourceExt as _};

use super::fault::is_over;
use super::pods::{JOB, MANAGED_BY, MANAGER, ROLE};
use super::watching::WATCH_SECONDS;
use crate::launch::LaunchError;

/// For one request with everything that it is tried again for, by whoever has other pods to look after.
pub(crate) const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 30 });

/// An API server that hangs is as good as one that isn't there: whoever asks has other pods to look after.
const ANSWER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Of a connection on which somebody waits for the API server.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);

async fn answered<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(ANSWER, call)
        .await
        .unwrap_or_else(|_| Err(Error::Service("the cluster's API did not answer in time".into())))
}

/// The way to the cluster of a pod that is in it.
///
/// # Errors
/// [`LaunchError::Local`] outside a pod, and with an address of the API that is none.
pub(crate) fn in_cluster(api_server: Option<&url::Url>) -> Result<kube::Config, LaunchError> {
    let unusable = |error: Box<dyn std::error::Error + Send + Sync>| LaunchError::Local {
        step: "reading the pod's service account",
        source: std::io::Error::other(error),
    };
    let mut config = kube::Config::incluster().map_err(|error| unusable(error.into()))?;
    if let Some(url) = api_server {
        config.cluster_url = url.as_str().parse().map_err(|error: hyper::http::uri::InvalidUri| unusable(error.into()))?;
    }
    Ok(config)
}

/// A client that says who it is, and leaves it to us when to ask again: the library's own patience is minutes.
///
/// # Errors
/// A configuration that can't be used.
pub fn client(config: kube::Config, name: &'static str) -> Result<Client, LaunchError> {
    client_with(config, name, SILENCE)
}

fn client_with(mut config: kube::Config, name: &'static str, silence: Duration) -> Result<Client, LaunchError> {
    config.default_retry = false;
    // A list or the beginning of a watch that is never answered: whoever follows pods would be blind for good. A watch that is as it should be is
    // never so long without a word, since it ends before.
    config.read_timeout = Some(silence);
    config.reset_reader_on_write = true;
    config.headers.push((hyper::header::USER_AGENT, hyper::header::HeaderValue::from_static(name)));
    Client::try_from(config).map_err(|error| refused("take a client", error))
}

pub(crate) fn refused(step: &'static str, error: Error) -> LaunchError {
    match error {
        Error::Api(status) if is_quota(&status) => LaunchError::Quota { message: status.message },
        error => LaunchError::Cluster { step, source: Box::new(error) },
    }
}

fn is_quota(status: &Status) -> bool {
    status.is_forbidden() && status.message.contains("exceeded quota")
}

/// Whether the same request may go better in a moment. A conflict is one of the quota's own book-keeping.
pub(crate) fn is_passing(error: &Error) -> bool {
    match error {
        Error::Api(status) => status.code == 429 || status.code >= 500 || (status.is_conflict() && !status.is_already_exists()),
        Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => true,
        _ => false,
    }
}

/// Creates a pod, or gives the one that an earlier request made whose answer never came.
///
/// A pod of that name that is ours, but dead or of another claim, is removed first.
///
/// # Errors
/// [`LaunchError::Quota`] at once; another refusal when it was tried for so long. A stranger's pod is left alone.
pub(crate) async fn create_or_adopt(api: &Api<Pod>, pod: &Pod, patience: Duration) -> Result<Pod, LaunchError> {
    let until = tokio::time::Instant::now() + patience;
    let mut pauses = pauses();
    loop {
        let error = match answered(api.create(&PostParams::default(), pod)).await {
            Ok(made) => return Ok(made),
            Err(Error::Api(status)) if status.is_already_exists() => match settle(api, pod, status).await? {
                Settled::Ours(found) => return Ok(*found),
                Settled::NotYet(error) => error,
            },
            Err(error) if is_passing(&error) => error,
            Err(error) => return Err(refused("create the pod", error)),
        };
        let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
        if tokio::time::Instant::now() + pause > until {
            return Err(refused("create the pod", error));
        }
        tracing::debug!(%error, "the pod is created again in a moment");
        tokio::time::sleep(pause).await;
    }
}

enum Settled {
    Ours(Box<Pod>),
    NotYet(Error),
}

/// Looks at the pod that has the name already.
async fn settle(api: &Api<Pod>, wanted: &Pod, taken: Box<Status>) -> Result<Settled, LaunchError> {
    let found = match answered(api.get_opt(&wanted.name_any())).await {
        Ok(found) => found,
        Err(error) if is_passing(&error) => return Ok(Settled::NotYet(error)),
        Err(error) => return Err(refused("look for the pod", error)),
    };
    match found {
        // Gone meanwhile.
        None => {}
        Some(found) if is_same(&found, wanted) && is_usable(&found) => return Ok(Settled::Ours(Box::new(found))),
        Some(found) if is_related(&found, wanted) => delete(api, &found, 1).await?,
        Some(_) => {
            let error = Error::Api(taken);
            return Err(refused("create the pod: its name is taken by one that isn't ours", error));
        }
    }
    Ok(Settled::NotYet(Error::Api(taken)))
}

fn is_usable(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !is_over(pod)
}

/// Made by the same call: every label and annotation that it was to have, and the same owner. What admission added counts for nothing.
fn is_same(found: &Pod, wanted: &Pod) -> bool {
    let owners = |pod: &Pod| pod.owner_references().iter().map(|owner| owner.uid.clone()).collect::<Vec<_>>();
    wanted.labels().iter().all(|(key, value)| found.labels().get(key) == Some(value))
        && wanted.annotations().iter().all(|(key, value)| found.annotations().get(key) == Some(value))
        && owners(found) == owners(wanted)
}

/// Of the same job and kind: ours to remove.
fn is_related(found: &Pod, wanted: &Pod) -> bool {
    let same = |key: &str| found.labels().get(key).is_some_and(|value| wanted.labels().get(key) == Some(value));
    found.labels().get(MANAGED_BY).is_some_and(|value| value == MANAGER) && same(JOB) && same(ROLE)
}

/// Deletes this very pod, not another one of its name. One that is gone is no error.
pub(crate) async fn delete(api: &Api<Pod>, pod: &Pod, grace_seconds: u32) -> Result<(), LaunchError> {
    let mut pauses = pauses();
    loop {
        match try_to_delete(api, pod, grace_seconds).await {
            Err(error) if is_passing(&error) => match pauses.next() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(refused("delete the pod", error)),
            },
            done => return done.map_err(|error| refused("delete the pod", error)),
        }
    }
}

/// The same, tried once: for whoever comes by again.
pub(crate) async fn delete_once(api: &Api<Pod>, pod: &Pod, grace_seconds: u32) -> Result<(), LaunchError> {
    try_to_delete(api, pod, grace_seconds).await.map_err(|error| refused("delete the pod", error))
}

async fn try_to_delete(api: &Api<Pod>, pod: &Pod, grace_seconds: u32) -> Result<(), Error> {
    let preconditions = Some(Preconditions { uid: pod.uid(), resource_version: None });
    let params = DeleteParams { grace_period_seconds: Some(grace_seconds), preconditions, ..Default::default() };
    match answered(api.delete(&pod.name_any(), &params)).await {
        Ok(_) => Ok(()),
        Err(Error::Api(status)) if status.is_not_found() => Ok(()),
        // Another pod has its name by now.
        Err(Error::Api(status)) if status.is_conflict() && status.message.contains("UID") => Ok(()),
        Err(error) => Err(error),
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(LONGEST_PAUSE)
        .with_max_times(8)
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};

    use super::*;
    use crate::launch::kubernetes::pods::{CLAIM, FENCE};

    fn pod(fence: &str, claim: &str, owner: &str) -> Pod {
        let mut pod = Pod::default();
        for (key, value) in [(MANAGED_BY, MANAGER), (JOB, "a-job"), (ROLE, "agent"), (FENCE, fence)] {
            pod.labels_mut().insert(key.to_owned(), value.to_owned());
        }
        pod.annotations_mut().insert(CLAIM.to_owned(), claim.to_owned());
        pod.owner_references_mut().push(OwnerReference { uid: owner.to_owned(), ..Default::default() });
        pod
    }

    #[test]
    fn only_a_pod_of_the_same_attempt_claim_and_owner_is_adopted() {
        let wanted = pod("2", "claim", "owner");
        let mut with_more = wanted.clone();
        with_more.annotations_mut().insert("admission".to_owned(), "was here".to_owned());
        assert!(is_same(&with_more, &wanted) && is_usable(&with_more));
        for other in [pod("1", "claim", "owner"), pod("2", "another", "owner"), pod("2", "claim", "another")] {
            assert!(!is_same(&other, &wanted) && is_related(&other, &wanted), "{other:?}");
        }
        let mut leaving = wanted.clone();
        leaving.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        assert!(!is_usable(&leaving));
    }

    #[test]
    fn a_strangers_pod_is_neither_adopted_nor_removed() {
        let wanted = pod("2", "claim", "owner");
        let mut stranger = wanted.clone();
        stranger.labels_mut().insert(JOB.to_owned(), "another job".to_owned());
        assert!(!is_same(&stranger, &wanted) && !is_related(&stranger, &wanted));
        let mut unmanaged = wanted.clone();
        unmanaged.labels_mut().remove(MANAGED_BY);
        assert!(!is_same(&unmanaged, &wanted) && !is_related(&unmanaged, &wanted));
    }

    #[tokio::test]
    async fn a_server_that_takes_a_question_and_never_answers_is_not_waited_for_without_end() {
        // Nobody takes the connections out of its queue.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let client = client_with(kube::Config::new(url.parse().unwrap()), "ckrv-test", Duration::from_secs(1)).unwrap();
        let pods: Api<Pod> = Api::namespaced(client, "jobs");
        let long = Duration::from_secs(30);
        let listed = tokio::time::timeout(long, pods.list(&kube::api::ListParams::default())).await;
        assert!(listed.is_ok_and(|listed| is_passing(&listed.unwrap_err())));
        let watched = tokio::time::timeout(long, pods.watch(&kube::api::WatchParams::default(), "1")).await;
        assert!(watched.is_ok_and(|watched| watched.is_err()));
    }

    #[test]
    fn a_full_quota_is_told_from_missing_rights_and_passing_errors_from_both() {
        let api = |code: u16, reason: &str, message: &str| Error::Api(Status::failure(message, reason).with_code(code).boxed());
        let quota = api(
            403,
            "Forbidden",
            "pods \"p\" is forbidden: exceeded quota: ckrv, requested: pods=1, used: pods=9, limited: pods=9",
        );
        assert!(!is_passing(&quota));
        assert!(matches!(refused("create the pod", quota), LaunchError::Quota { .. }));
        let rights = api(403, "Forbidden", "pods is forbidden: User \"x\" cannot create resource \"pods\"");
        assert!(!is_passing(&rights));
        assert!(matches!(refused("create the pod", rights), LaunchError::Cluster { .. }));
        for passing in [
            api(409, "Conflict", "Operation cannot be fulfilled on resourcequotas \"ckrv\": the object has been modified"),
            api(429, "TooManyRequests", "too many requests"),
            api(503, "ServiceUnavailable", "apiserver is shutting down"),
        ] {
            assert!(is_passing(&passing), "{passing}");
        }
        assert!(!is_passing(&api(409, "AlreadyExists", "pods \"p\" already exists")));
    }
}
