//! Who may do what, asked of the API server for everything that it has.

use std::collections::BTreeSet;

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};

const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
/// Verbs that no discovery tells of.
const OTHERS: [(&str, &str, &str); 12] = [
    ("", "users", "impersonate"),
    ("", "groups", "impersonate"),
    ("", "serviceaccounts", "impersonate"),
    ("authentication.k8s.io", "uids", "impersonate"),
    ("rbac.authorization.k8s.io", "roles", "bind"),
    ("rbac.authorization.k8s.io", "roles", "escalate"),
    ("rbac.authorization.k8s.io", "clusterroles", "bind"),
    ("rbac.authorization.k8s.io", "clusterroles", "escalate"),
    ("certificates.k8s.io", "signers", "approve"),
    ("certificates.k8s.io", "signers", "sign"),
    ("scheduling.k8s.io", "priorityclasses", "use"),
    ("node.k8s.io", "runtimeclasses", "use"),
];

/// `namespace: verb group/resource`; no namespace is the whole cluster.
pub type Rights = BTreeSet<String>;

#[derive(Clone, Debug)]
pub struct Right {
    group: String,
    resource: String,
    verb: &'static str,
}

/// Everything that one could have a right to.
pub async fn everything(admin: &Client) -> Result<Vec<Right>> {
    let mut lists = vec![(String::new(), admin.list_core_api_resources("v1").await?)];
    for group in admin.list_api_groups().await?.groups {
        for version in &group.versions {
            lists.push((group.name.clone(), admin.list_api_group_resources(&version.group_version).await?));
        }
    }
    let mut names: BTreeSet<(String, String)> = BTreeSet::new();
    for (group, list) in lists {
        names.extend(list.resources.into_iter().map(|resource| (group.clone(), resource.name)));
    }
    let mut all: Vec<_> = names
        .into_iter()
        .flat_map(|(group, resource)| VERBS.map(|verb| Right { group: group.clone(), resource: resource.clone(), verb }))
        .collect();
    all.extend(OTHERS.map(|(group, resource, verb)| Right { group: group.to_owned(), resource: resource.to_owned(), verb }));
    Ok(all)
}

/// All that this service account may do in these namespaces.
pub async fn of(admin: &Client, account: (&str, &str), namespaces: &[&str], everything: &[Right]) -> Result<Rights> {
    let reviews: Api<SubjectAccessReview> = Api::all(admin.clone());
    let asked = namespaces.iter().flat_map(|namespace| everything.iter().map(move |right| (*namespace, right)));
    let asked = futures::stream::iter(asked).map(|(namespace, right)| {
        let (reviews, review) = (reviews.clone(), review(account, namespace, right));
        async move {
            let answer = reviews.create(&PostParams::default(), &review).await?;
            let allowed = answer.status.is_some_and(|status| status.allowed);
            Ok::<_, anyhow::Error>(allowed.then(|| {
                let slash = if right.group.is_empty() { "" } else { "/" };
                format!("{namespace}: {} {}{slash}{}", right.verb, right.group, right.resource)
            }))
        }
    });
    asked.buffer_unordered(32).try_filter_map(async |right| Ok(right)).try_collect().await
}

fn review((namespace, name): (&str, &str), inside: &str, right: &Right) -> SubjectAccessReview {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (right.resource.as_str(), None),
    };
    let attributes = ResourceAttributes {
        group: Some(right.group.clone()),
        resource: Some(resource.to_owned()),
        subresource,
        verb: Some(right.verb.to_owned()),
        namespace: (!inside.is_empty()).then(|| inside.to_owned()),
        ..Default::default()
    };
    let groups =
        ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}"), "system:authenticated".to_owned()];
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{namespace}:{name}")),
            groups: Some(groups.to_vec()),
            resource_attributes: Some(attributes),
            ..Default::default()
        },
        ..Default::default()
    }
}
