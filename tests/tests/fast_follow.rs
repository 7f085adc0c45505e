//! A followed log over a connection that breaks all the time.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::api::Api;
use ckrv_tests::bench;
use ckrv_tests::faults::Faults;
use ckrv_tests::scene::Scene;
use serde_json::Value;

/// A connection lives for so many bytes, in both directions together: a question about the job always fits, the log never does.
const BYTES: std::ops::Range<usize> = 4_500..12_000;

/// How much of it.
struct Size {
    cuts: usize,
    followers: usize,
    lines: usize,
}

/// A function reads the log anew after each cut, which takes it many minutes for a thousand: there it is a slice of the same.
fn size() -> Size {
    if bench::through_lambda() {
        Size { cuts: 60, followers: 2, lines: 3000 }
    } else {
        Size { cuts: 1000, followers: 8, lines: 5000 }
    }
}

/// Followers share the cuts, since each pauses before it comes back. What each wrote must be, byte for byte, what is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_followed_through_a_thousand_cuts_is_the_log_that_was_written() -> Result<()> {
    let mut scene = Scene::start().await?;
    let server: SocketAddr = scene.server.url().trim_start_matches("http://").parse()?;
    let faults = Faults::start(server, bench::seed(), BYTES).await?;
    let (size, gate) = (size(), scene.gate());
    let lines = |from: usize, to: usize| format!("i={from}; while [ $i -lt {to} ]; do i=$((i+1)); echo \"line $i é\"; done");
    let id =
        scene.submit(&format!("{}\n{}\n{}", lines(0, size.lines / 2), gate.wait(), lines(size.lines / 2, size.lines))).await?;
    gate.reached().await?;
    let token = scene.server.login().await?.access;
    scene.user.set("CKRV_URL", &format!("http://{}", faults.address));
    let mut followers = tokio::task::JoinSet::new();
    for _ in 0..size.followers {
        let follow = scene.user.command(&scene.project, &["logs", "--json", "-f", &id]).spawn()?;
        followers.spawn(async move { follow.wait_with_output().await });
    }
    gate.open()?;
    let direct = Api::at(scene.server.url(), &token)?;
    direct.ended(&id, std::time::Duration::from_secs(120)).await?;
    let mut told = Vec::new();
    while let Some(output) = followers.join_next().await {
        let output = output??;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "a follower gave up: {}", text.lines().next_back().unwrap_or_default());
        told.push(text);
    }
    let written = direct.log(&id).await?;
    for text in &told {
        let seen: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("no JSON")?;
        ensure!(seen == written, "{} entries arrived of {}", seen.len(), written.len());
    }
    let cuts = faults.cuts();
    ensure!(cuts >= size.cuts, "only {cuts} cuts: the test needs a longer log");
    Ok(())
}
