//! Tiers, usage and the ledger by the CLI; cost limits; a reference that leads nowhere.

use std::path::Path;

use anyhow::{Context as _, Result};
use ckrv_tests::records::Records;
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, error, script_spec};
use ckrv_tests::server::{Server, Setup};

async fn scene(config: &str) -> Result<Scene> {
    let setup = Setup { config: config.parse()?, ..Setup::unsandboxed() };
    Scene::with(setup, Repo::small(&[("README.md", "x\n")])?).await
}

/// An agent that says what it costs: `cost MICRO_USD` while it runs, `late MICRO_USD` with its result.
async fn costly() -> Result<Scene> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agents-wasm/prebuilt/testing/hostile.wasm");
    scene(&format!("[adapters.hostile]\nfile = '{}'\n", file.display())).await
}

async fn submit(scene: &Scene, limit: &str, script: &str) -> Result<String> {
    let spec = scene.spec(format!("---\nagent: hostile\n---\n: hostile: cost\n{script}\n"))?;
    scene.ckrv(&["run", "--cloud", "--max-cost", limit, &spec]).await?.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_passes_its_cost_limit_is_stopped_while_it_runs() -> Result<()> {
    let scene = costly().await?;
    let id = submit(&scene, "1", "echo a > a.txt\necho cost 400000\necho cost 700000\nwhile :; do sleep 0.1; done").await?;
    let waited = scene.ckrv(&["wait", &id]).await?;
    assert_eq!((waited.code, waited.stdout.as_str()), (5, "failed\n"), "{waited:?}");
    let job = scene.job(&id).await?;
    assert_eq!((&job["outcome"], &job["attempt"]), (&"cost-limit".into(), &1.into()), "{job}");
    let expected = "the job passed its cost limit: its agent has cost $1.1000 of at most $1.0000; the agent was stopped";
    assert_eq!(job["error_message"], expected);
    assert!(job["hint"].as_str().is_some_and(|hint| hint.contains("--max-cost")), "{job}");
    assert!(job["result_url"].is_null() && job["diff_stat"].is_null(), "{job}");
    assert_eq!(job["usage"]["cost_usd"], 1.1);
    let artifacts = scene.ckrv(&["pull", &id]).await?;
    assert_eq!(artifacts.code, 5, "{artifacts:?}");
    let usage = scene.ckrv(&["cloud", "usage", "--json"]).await?.json()?;
    assert_eq!(usage["agent_cost_usd"], 1.1, "{usage}");
    // The same again, within a higher limit.
    let id = submit(&scene, "1.2", "echo a > a.txt\necho cost 400000\necho cost 700000").await?;
    scene.ckrv(&["wait", &id]).await?.ok()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_made_that_ended_by_itself_is_kept_whatever_it_cost() -> Result<()> {
    let scene = costly().await?;
    let id = submit(&scene, "1", "echo a > a.txt\necho late 5000000").await?;
    scene.ckrv(&["wait", &id]).await?.ok()?;
    let log = scene.ckrv(&["logs", &id]).await?.ok()?;
    assert!(log.contains("the agent cost $5.0000, more than the job's limit of $1.0000; it had ended by then"), "{log}");
    assert_eq!(scene.ckrv(&["pull", &id]).await?.ok()?, "A a.txt");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tiers_are_configuration_and_what_is_beyond_them_is_in_usage_and_ledger() -> Result<()> {
    let scene = scene("[tiers.pro]\nincluded = 1\noverage = { up_to = 1, usd_per_job = 0.5 }\n").await?;
    let first = scene.submit("true").await?;
    let second = scene.submit("true").await?;
    let spec = scene.spec(script_spec("", "true"))?;
    let (code, said) = error(&scene.ckrv(&["run", "--cloud", "--json", &spec]).await?)?;
    assert_eq!((code, &said["code"]), (8, &"quota_exceeded".into()), "{said}");
    for id in [&first, &second] {
        scene.ckrv(&["wait", id]).await?.ok()?;
    }
    let usage = scene.ckrv(&["cloud", "usage", "--json"]).await?.json()?;
    let figures = ["jobs_used", "jobs_included", "overage_jobs", "overage_cost_usd", "agent_cost_usd"].map(|name| &usage[name]);
    assert_eq!(figures.map(|figure| figure.as_f64().unwrap_or(-1.0)), [2.0, 1.0, 1.0, 0.5, 0.0], "{usage}");
    let month = usage["month"].as_str().context("no month")?;
    let table = scene.ckrv(&["cloud", "usage", "--month", month]).await?.ok()?;
    let row: Vec<&str> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row, [month, "2", "1", "1", "$0.50", "$0.00"], "{table}");
    let csv = scene.ckrv(&["cloud", "usage", "--all"]).await?.ok()?;
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("month,owner,job,at,cost_usd,voided"), "{csv}");
    assert!(lines[1].contains(&second) && lines[1].contains(",0.500000,false,"), "{csv}");
    let json = scene.ckrv(&["cloud", "usage", "--all", "--format", "json"]).await?.json()?;
    assert_eq!((&json["total_usd"], &json["entries"][0]["job"]), (&0.5.into(), &second.into()));
    let (code, said) = error(&scene.ckrv(&["cloud", "usage", "--json", "--month", "2026-13"]).await?)?;
    assert_eq!((code, &said["code"]), (1, &"invalid_month".into()), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_a_tier_that_makes_no_sense_stops_the_start_with_its_line() -> Result<()> {
    let config = "[tiers.pro]\nincluded = 1\noverage = { up_to = 0, usd_per_job = 0.5 }\n";
    let setup = Setup { config: config.parse()?, ..Setup::unsandboxed() };
    let error = Server::start(setup).await.err().map(|error| format!("{error:#}"));
    assert!(error.as_ref().is_some_and(|error| error.contains("say overage = \"blocked\"")), "{error:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_a_reference_that_leads_nowhere_ends_the_job_with_what_to_do() -> Result<()> {
    let scene = scene("").await?;
    let added = scene.ckrv(&["cloud", "secrets", "add", "anthropic-api-key", "--reference", "aws-ssm:/ckrv/shared/key"]).await?;
    if scene.server.aws().is_some() {
        added.ok()?;
    } else {
        assert!(added.code == 1 && added.stderr.contains("no secrets manager"), "{added:?}");
        // As after a move from a service that has one.
        scene.user.run_with_input(scene.folder(), &["cloud", "secrets", "add", "anthropic-api-key"], b"sk-x").await?.ok()?;
        Records::of(&scene.server).refer("anthropic-api-key", "aws-ssm:/ckrv/shared/key")?;
    }
    let listed = scene.ckrv(&["cloud", "secrets", "list"]).await?.ok()?;
    assert!(listed.contains("aws-ssm:/ckrv/shared/key"), "{listed}");
    let id = scene.submit_spec("---\nagent: claude\n---\nDo it.\n").await?;
    let waited = scene.ckrv(&["wait", &id]).await?;
    assert_eq!((waited.code, waited.stdout.as_str()), (5, "failed\n"), "{waited:?}");
    let job = scene.job(&id).await?;
    assert_eq!((&job["outcome"], &job["attempt"]), (&"policy".into(), &1.into()), "{job}");
    let said = format!("{} {}", job["error_message"], job["hint"]);
    let missing =
        if scene.server.aws().is_some() { "of the secrets manager does not exist" } else { "the secret that a reference names" };
    assert!(said.contains(missing) && said.contains("ckrv cloud secrets list"), "{said}");
    Ok(())
}
