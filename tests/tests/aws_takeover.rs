//! A dispatcher and its job runner that stand still past their lease, as on a machine that was suspended, while another takes over.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aws_sdk_dynamodb::types::AttributeValue;
use ckrv_tests::api::Api;
use ckrv_tests::aws::Aws;
use ckrv_tests::processes::{gone, runner, signal};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::Scene;
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::wait::wait_until;
use nix::sys::signal::Signal;

/// A lease of 60 s, a skew of 5 s, and the 90 s in which a new dispatcher reaps nobody.
const TAKEOVER: Duration = Duration::from_secs(240);

/// Every item and every object of one job.
async fn stored(aws: &Aws, id: &str) -> Result<(BTreeMap<String, String>, BTreeMap<String, i64>)> {
    let mut items = BTreeMap::new();
    let mut pages = aws.dynamodb_client().scan().table_name(&aws.table).into_paginator().items().send();
    while let Some(item) = pages.next().await {
        let item = item?;
        let key = |name: &str| item.get(name).and_then(|value: &AttributeValue| value.as_s().ok()).cloned().unwrap_or_default();
        if key("PK").contains(id) {
            let sorted: BTreeMap<_, _> = item.iter().map(|(name, value)| (name.clone(), format!("{value:?}"))).collect();
            items.insert(format!("{}/{}", key("PK"), key("SK")), format!("{sorted:?}"));
        }
    }
    let listed = aws.s3_client().list_objects_v2().bucket(&aws.bucket).prefix(format!("jobs/{id}/")).send().await?;
    let objects =
        listed.contents().iter().map(|object| (object.key().unwrap_or_default().to_owned(), object.size().unwrap_or(0)));
    Ok((items, objects.collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stood_still_past_its_lease_changes_nothing() -> Result<()> {
    let aws = Aws::make().await?;
    let server = Server::start_on_aws(Setup::unsandboxed(), aws.clone()).await?;
    let scene = Scene::of(server, Repo::small(&[("README.md", "x\n")])?).await?;
    let api = Api::at(scene.server.url(), &scene.server.login().await?.access)?;
    let gate = scene.gate();
    let id = scene.submit(&format!("echo before\n{}\necho after\necho done > done.txt", gate.wait())).await?;
    gate.reached().await?;
    let runner = runner(&scene.server.data().join("runs").join(format!("{id}-1"))).await?;
    let dispatcher = scene.server.dispatcher_pid().context("no dispatcher")?;
    for process in [runner, dispatcher] {
        signal(process, Signal::SIGSTOP)?;
    }
    // From here on only the second one can take it.
    let second = scene.server.second_dispatcher().await?;
    gate.open()?;
    let job = api.ended(&id, TAKEOVER).await?;
    ensure!((job["state"].as_str(), job["attempt"].as_u64()) == (Some("succeeded"), Some(2)), "{job:#}");
    // Its log's compaction comes behind the end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = stored(&aws, &id).await?;
    let log = api.log(&id).await?;
    for process in [dispatcher, runner] {
        signal(process, Signal::SIGCONT)?;
    }
    gone(runner, Duration::from_secs(60)).await?;
    let after = stored(&aws, &id).await?;
    // A chunk of the old fence may still arrive where nobody reads; nothing else may differ.
    let relevant = |items: &BTreeMap<String, String>| {
        let kept = items.iter().filter(|(key, _)| !key.starts_with(&format!("L#{id}#1/")) && !key.starts_with("W#"));
        kept.map(|(key, item)| (key.clone(), item.clone())).collect::<BTreeMap<_, _>>()
    };
    ensure!(relevant(&before.0) == relevant(&after.0), "{before:#?}\n{after:#?}");
    ensure!(api.log(&id).await? == log, "the log changed");
    ensure!(api.get(&format!("/v1/jobs/{id}/artifacts/diff")).await?.contains("done.txt"), "no diff");
    let quiet = async || (api.job(&id).await.ok()?["state"] == "succeeded").then_some(());
    wait_until("the job stays as it ended", Duration::from_secs(5), quiet).await?;
    drop(second);
    Ok(())
}
