//! What is known of the pods of one attempt: one watch for all of them, for as long as the job runner lives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The cluster ends a watch after this time, and one that has gone silent is noticed five seconds later.
pub(crate) const WATCH_SECONDS: u32 = 60;

/// The last that was seen of a pod, also when it is gone.
#[derive(Clone, Debug)]
pub struct Seen {
    pub pod: Arc<Pod>,
    pub gone: bool,
}

type All = BTreeMap<String, Seen>;

/// By uid. Drops the watch with the last handle on it.
#[derive(Debug)]
pub struct Watching {
    all: watch::Sender<All>,
    task: JoinHandle<()>,
}

impl Watching {
    pub fn start(api: Api<Pod>, selector: &str) -> Self {
        let all = watch::Sender::new(All::new());
        let task = tokio::spawn(follow(api, selector.to_owned(), all.clone()));
        Self { all, task }
    }

    /// What a request answered, which the watch may not have heard of yet.
    pub fn note(&self, pod: &Pod) {
        let Some(uid) = pod.uid() else { return };
        self.all.send_modify(|all| {
            all.entry(uid).or_insert_with(|| Seen { pod: Arc::new(pod.clone()), gone: false });
        });
    }

    /// What the cluster said when it was asked because the watch said nothing. Counts if it is newer.
    pub fn correct(&self, pod: Pod) {
        self.all.send_modify(|all| correct(pod, all));
    }

    /// Waits for the first state of a pod that `wanted` takes. Only for one that was noted.
    pub async fn until<T>(&self, uid: &str, mut wanted: impl FnMut(&Seen) -> Option<T>) -> T {
        let mut all = self.all.subscribe();
        loop {
            let found = all.borrow_and_update().get(uid).and_then(&mut wanted);
            if let Some(found) = found {
                return found;
            }
            if all.changed().await.is_err() {
                // The sender is ours: it is there as long as we are.
                std::future::pending::<()>().await;
            }
        }
    }

    pub fn get(&self, uid: &str) -> Option<Seen> {
        self.all.borrow().get(uid).cloned()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn correct(pod: Pod, all: &mut All) {
    let Some(uid) = pod.uid() else { return };
    // Opaque by its contract, a rising number in every API server.
    let version = |pod: &Pod| pod.resource_version().and_then(|version| version.parse::<u64>().ok());
    if all.get(&uid).is_none_or(|seen| !seen.gone && version(&pod) > version(&seen.pod)) {
        all.insert(uid, Seen { pod: Arc::new(pod), gone: false });
    }
}

async fn follow(api: Api<Pod>, selector: String, all: watch::Sender<All>) {
    let config = watcher::Config::default().labels(&selector).timeout(WATCH_SECONDS);
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut listing = Listing::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => all.send_modify(|all| take(event, &mut listing, all)),
            Err(error) => tracing::debug!(%error, "the watch on pods begins anew"),
        }
    }
}

/// A list in the making. What was made after it was asked for need not be in it.
#[derive(Debug, Default)]
struct Listing {
    known_before: BTreeSet<String>,
    found: All,
}

fn take(event: Event<Pod>, listing: &mut Listing, all: &mut All) {
    let seen = |pod: Pod, gone| (pod.uid().unwrap_or_default(), Seen { pod: Arc::new(pod), gone });
    match event {
        Event::Apply(pod) => all.extend([seen(pod, false)]),
        Event::Delete(pod) => all.extend([seen(pod, true)]),
        Event::Init => *listing = Listing { known_before: all.keys().cloned().collect(), found: All::new() },
        Event::InitApply(pod) => listing.found.extend([seen(pod, false)]),
        Event::InitDone => {
            let Listing { known_before, found } = std::mem::take(listing);
            for (_, vanished) in all.iter_mut().filter(|(uid, _)| known_before.contains(*uid) && !found.contains_key(*uid)) {
                vanished.gone = true;
            }
            all.extend(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        pod
    }

    fn relist(all: &mut All, made_meanwhile: &str, found: &[&str]) {
        let mut listing = Listing::default();
        take(Event::Init, &mut listing, all);
        all.insert(made_meanwhile.to_owned(), Seen { pod: Arc::new(pod(made_meanwhile)), gone: false });
        for uid in found {
            take(Event::InitApply(pod(uid)), &mut listing, all);
        }
        take(Event::InitDone, &mut listing, all);
    }

    #[test]
    fn a_pod_that_went_while_the_watch_was_broken_is_gone_and_one_made_meanwhile_is_not() {
        let mut all = All::new();
        for uid in ["stays", "goes"] {
            take(Event::Apply(pod(uid)), &mut Listing::default(), &mut all);
        }
        relist(&mut all, "new", &["stays"]);
        let gone = |all: &All| all.iter().filter(|(_, seen)| seen.gone).map(|(uid, _)| uid.clone()).collect::<Vec<_>>();
        assert_eq!(gone(&all), ["goes"]);
        relist(&mut all, "newer", &["stays"]);
        assert_eq!(gone(&all), ["goes", "new"]);
    }

    #[test]
    fn an_answer_that_is_older_than_what_the_watch_said_changes_nothing() {
        let at = |version: &str| {
            let mut pod = pod("a");
            pod.metadata.resource_version = Some(version.to_owned());
            pod
        };
        let known = |all: &All| all["a"].pod.resource_version();
        let mut all = All::new();
        correct(at("9"), &mut all);
        correct(at("10"), &mut all);
        assert_eq!(known(&all).as_deref(), Some("10"));
        correct(at("9"), &mut all);
        assert_eq!(known(&all).as_deref(), Some("10"));
        take(Event::Delete(at("11")), &mut Listing::default(), &mut all);
        correct(at("12"), &mut all);
        assert!(all["a"].gone && known(&all).as_deref() == Some("11"));
    }

    #[test]
    fn the_last_state_of_a_deleted_pod_is_kept() {
        let mut all = All::new();
        let mut last = pod("a");
        last.status = Some(k8s_openapi::api::core::v1::PodStatus { phase: Some("Failed".to_owned()), ..Default::default() });
        take(Event::Delete(last), &mut Listing::default(), &mut all);
        let seen = &all["a"];
        assert!(seen.gone && seen.pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Failed")));
    }
}
