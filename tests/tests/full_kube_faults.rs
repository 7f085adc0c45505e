//! The cluster's API on bad days, from a seed: calls refused, answers lost, watches cut, expired and silent, the API server away. Each job ends
//! rightly and once, by its first attempt, and leaves no pod. `full_kube_sc004` has the long version.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::kube_faults::{DISPATCHER, Day, Fault, On, RUNNER, WatchEnd, When};
use ckrv_tests::wait::{PATIENCE, wait_until};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The node has two processors.
static NODE: Semaphore = Semaphore::const_new(4);

async fn day(rules: &[(On, When, Fault)]) -> Result<(Day, SemaphorePermit<'static>)> {
    let turn = NODE.acquire().await?;
    // They wait for the cluster's clocks, most of the time.
    let config = toml::toml! {
        [policy.max_resources]
        cpu_millis = 100
    };
    Ok((Day::begin(config, rules).await?, turn))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_in_five_is_refused_and_each_job_succeeds_by_its_first_attempt() -> Result<()> {
    let (day, _turn) = day(&[(On::any(), When::Chance(0.2), Fault::RefuseSomehow)]).await?;
    let jobs = [day.submit("a").await?, day.submit("b").await?, day.submit("c").await?];
    for job in &jobs {
        day.succeeded_at_once(job).await?;
    }
    let calls = day.proxy.calls();
    ensure!(calls.total().faults >= 5, "too few to show anything: {calls}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_answer_was_lost_is_not_made_twice() -> Result<()> {
    let lost = |agent, verb| (On::pods(agent, verb), When::Times(1), Fault::AnswerLost);
    let (day, _turn) = day(&[lost(DISPATCHER, "create"), lost(RUNNER, "create"), lost(RUNNER, "delete")]).await?;
    let job = day.submit("lost").await?;
    day.succeeded_at_once(&job).await?;
    let calls = day.proxy.calls();
    // One job pod; one pod of the agent, one of the checks.
    for (agent, pods) in [(DISPATCHER, 1), (RUNNER, 2)] {
        let made = calls.pods(agent, "create");
        ensure!((made.faults, made.done) == (1, pods), "{agent}: {calls}");
    }
    ensure!(calls.pods(RUNNER, "delete").faults == 1, "{calls}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_break_expire_or_fall_silent_keep_no_job_from_its_end() -> Result<()> {
    let ends = |agent, times, end, seconds| {
        (On::pods(agent, "watch"), When::Times(times), Fault::Ends(end, Duration::from_secs(seconds)))
    };
    let (day, _turn) = day(&[
        ends(DISPATCHER, 1, WatchEnd::Expires, 3),
        ends(DISPATCHER, 3, WatchEnd::Cut, 3),
        // One job each.
        ends(RUNNER, 1, WatchEnd::Stalls, 0),
        ends(RUNNER, 1, WatchEnd::Expires, 2),
        ends(RUNNER, 3, WatchEnd::Cut, 1),
    ])
    .await?;
    let jobs = [day.submit("a").await?, day.submit("b").await?, day.submit("c").await?];
    for job in &jobs {
        day.succeeded_at_once(job).await?;
    }
    let calls = day.proxy.calls();
    for fault in ["watch stalled", "watch 410", "watch cut"] {
        ensure!(calls.by_fault.contains_key(fault), "no {fault}: {calls}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_while_the_api_server_is_away_and_others_begin_when_it_is_back() -> Result<()> {
    let (day, _turn) = day(&[]).await?;
    let (scene, proxy) = (&day.scene, &day.proxy);
    let gate = scene.gate();
    let under_way = scene.submit(&format!("echo made > made.txt; {}", gate.wait())).await?;
    gate.reached().await.with_context(|| day.told())?;
    proxy.refuse();
    let waiting = day.submit("refused").await?;
    gate.open()?;
    let ended = day.api.ended(&under_way, PATIENCE * 3).await.with_context(|| day.told())?;
    ensure!(ended["state"] == "succeeded", "{ended}\n{}", day.told());
    proxy.heal();
    day.succeeded_at_once(&waiting).await?;
    scene.server.cluster()?.gone(&under_way).await.with_context(|| day.told())?;
    // The same without a word: whoever asks waits.
    proxy.hang();
    let waiting = day.submit("hung").await?;
    let claimed = async || day.api.job(&waiting.id).await.ok().filter(|job| job["state"] != "queued").map(drop);
    wait_until("the job is claimed", PATIENCE, claimed).await.with_context(|| day.told())?;
    proxy.heal();
    day.succeeded_at_once(&waiting).await
}
