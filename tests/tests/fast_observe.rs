//! What an operator sees of a service: its log, its traces, its metrics, its health.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::aws::Aws;
use ckrv_tests::bench;
use ckrv_tests::http::client;
use ckrv_tests::otlp::{Collector, Span};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::{Scene, script_spec};
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::wait::{PATIENCE, wait_until};
use serde_json::Value;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const STEP: &str = "00f067aa0ba902b7";

fn setup(env: &[(&str, &str)], args: &[&str]) -> Setup {
    let mut setup = Setup::unsandboxed();
    setup.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    setup.args.extend(args.iter().map(|arg| (*arg).to_owned()));
    setup
}

/// A scene whose user's commands are steps of our trace.
async fn traced(setup: Setup) -> Result<Scene> {
    traced_of(Server::start(setup).await?).await
}

/// A function exports neither spans nor metrics: on the AWS backend the API is a process here, beside the dispatcher's.
async fn without_function(setup: Setup) -> Result<Server> {
    if bench::on_aws() { Server::start_on_aws(setup, Aws::make().await?).await } else { Server::start(setup).await }
}

async fn traced_of(server: Server) -> Result<Scene> {
    let mut scene = Scene::of(server, Repo::small(&[("README.md", "# A project\n")])?).await?;
    scene.user.set("TRACEPARENT", &format!("00-{TRACE}-{STEP}-01"));
    Ok(scene)
}

/// The log's lines that a search for `text` finds.
fn found(log: &str, text: &str) -> Result<Vec<Value>> {
    let lines = log.lines().filter(|line| line.contains(text));
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_id_finds_a_job_from_its_submission_to_its_end_over_all_processes() -> Result<()> {
    let scene = traced(setup(&[("CKRV_LOG_FORMAT", "json")], &[])).await?;
    let id = scene.succeed("echo \"$TRACEPARENT\" > trace.txt").await?;
    let steps = ["a job was submitted", "claimed a job", "launched its job runner", "runs an attempt"];
    let steps = [&steps[..], &["reports the end of an attempt", "a job ended"]].concat();
    let complete = wait_until("the log tells the whole story of the trace", PATIENCE, async || {
        let lines = found(&scene.server.log(), TRACE).ok()?;
        let has = |step: &&&str| lines.iter().any(|line| line["message"] == **step);
        (steps.iter().filter(has).count() == steps.len()).then_some(lines)
    });
    let lines = complete.await.with_context(|| scene.server.log())?;
    let log = scene.server.log();
    for step in &steps[1..] {
        let line = lines.iter().find(|line| line["message"] == *step).context("it was there")?;
        let spans = line["spans"].as_array().context("a line has spans")?;
        let span = spans.iter().find(|span| span["name"] == "attempt").context("of an attempt")?;
        ensure!(span["job"] == id && span["fence"] == 1 && span["trace_id"] == TRACE, "{line}");
        ensure!(span["attempt"] == 1 || *step == "a job was submitted", "{line}");
    }
    let submitted = lines.iter().find(|line| line["message"] == steps[0]).context("it was there")?;
    let request = request_of(submitted)?;
    ensure!(request["route"] == "/v1/jobs" && request["user"].as_str().is_some_and(|user| user.len() == 36), "{submitted}");
    ensure!(request["request_id"].is_string() && submitted["job"] == id, "{submitted}");
    // Two processes wrote them.
    ensure!(log.contains("\"part\":\"run\"") && log.contains("\"part\":\"claim\""), "{log}");
    let diff = scene.ckrv(&["diff", &id]).await?.ok()?;
    assert!(diff.contains(&format!("+00-{TRACE}-")), "the agent's step of the trace: {diff}");
    assert!(!log.contains("owner@localhost"), "an e-mail address in the log: {log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_of_api_dispatcher_gateway_and_runner_reach_a_collector_as_one_trace() -> Result<()> {
    let collector = Collector::start().await?;
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=the-key-of-the-collector"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let scene = traced_of(without_function(setup(&env, &[])).await?).await?;
    scene.succeed("echo > a.txt").await?;
    let names = ["POST /v1/jobs", "claim", "run", "prepare", "execute", "publish", "finish"];
    let all = wait_until("the collector has the job's spans", PATIENCE, async || {
        let spans: BTreeMap<String, Span> =
            collector.spans().into_iter().filter(|span| span.trace == TRACE).map(|span| (span.name.clone(), span)).collect();
        names.iter().all(|name| spans.contains_key(*name)).then_some(spans)
    });
    let spans = all.await.with_context(|| format!("{:#?}\n{}", collector.spans(), scene.server.log()))?;
    assert_eq!(spans["claim"].parent, spans["POST /v1/jobs"].id, "the request made the job");
    assert_eq!(spans["run"].parent, spans["claim"].id, "the dispatcher started the job runner");
    assert_eq!(spans["execute"].parent, spans["run"].id);
    assert_eq!(spans["finish"].parent, spans["run"].id, "the job runner asked the gateway");
    assert!(spans["POST /v1/jobs"].kind == 2 && spans["claim"].kind == 1, "a server's span, and an internal one: {spans:#?}");
    let services: BTreeSet<_> = collector.services().into_iter().collect();
    assert_eq!(services, BTreeSet::from(["ckrv".to_owned()]));
    assert!(collector.headers().iter().all(|headers| headers["x-collector-key"] == "the-key-of-the-collector"));
    assert!(collector.spans().iter().all(|span| span.name != "beat, attention or log"), "what happens every second is no span");
    assert!(!scene.server.log().contains("the-key-of-the-collector"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_hurts_no_job_and_no_shutdown() -> Result<()> {
    // Nothing listens there.
    let mut scene =
        traced(setup(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"), ("OTEL_BSP_SCHEDULE_DELAY", "50")], &[])).await?;
    let id = scene.succeed("echo > a.txt").await?;
    assert_eq!(scene.job(&id).await?["state"], "succeeded");
    scene.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_request_is_ever_logged_however_much_is() -> Result<()> {
    for format in ["text", "json"] {
        let server = Server::start(setup(&[("CKRV_LOG", "trace"), ("CKRV_LOG_FORMAT", format)], &[])).await?;
        let tokens = server.login().await?;
        let secrets = ["hidden-in-a-query", "hidden-in-a-path", "hidden-in-a-cookie", "hidden-in-a-header", "hidden-in-a-body"];
        let url = |path: &str| format!("{}{path}", server.url());
        let requests = [
            client()?.get(url("/v1/jobs?status=failed&token=hidden-in-a-query")).bearer_auth(&tokens.access),
            client()?.get(url("/v1/users/me")).bearer_auth("hidden-in-a-header"),
            client()?.get(url("/hidden-in-a-path/x?token=hidden-in-a-query")).header("cookie", "session=hidden-in-a-cookie"),
            client()?.get(url("/v1/credentials")).header("x-api-key", "hidden-in-a-header").bearer_auth(&tokens.access),
            client()?
                .post(url("/v1/auth/refresh"))
                .header("content-type", "application/json")
                .body("{\"refresh_token\":\"hidden-in-a-body\"}"),
            client()?
                .post(url("/v1/secrets"))
                .bearer_auth(&tokens.access)
                .header("content-type", "application/json")
                .body("{\"value\": hidden-in-a-body}"),
            client()?
                .request("HIDDEN-IN-A-METHOD".parse()?, url("/v1/jobs"))
                .header("x-request-id", "\"onload=hidden-in-a-header"),
        ];
        for request in requests {
            request.send().await?;
        }
        let log = server.log();
        for secret in secrets.iter().copied().chain([tokens.access.as_str(), tokens.refresh.as_str()]) {
            assert!(!log.contains(secret), "{secret} is in the log ({format}):\n{log}");
        }
        assert!(log.contains("answered a request") && log.contains("/v1/users/me") && log.contains("(none)"), "{log}");
        assert!(!log.contains('\u{1b}'), "an escape sequence in the log: {log}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_service_names_its_request_as_the_log_does() -> Result<()> {
    let scene = traced(setup(&[("CKRV_LOG_FORMAT", "json")], &[])).await?;
    let ran = scene.ckrv(&["status", "--json", "01900000-0000-7000-8000-000000000000"]).await?;
    let id = ran.json()?["error"]["request_id"].as_str().context("an error has the request's id")?.to_owned();
    assert!(id.len() == 36, "{id}");
    // A route that is polled logs only some of its refusals; one that isn't logs each.
    let ran = scene.ckrv(&["cancel", "--json", "01900000-0000-7000-8000-000000000000"]).await?;
    let id = ran.json()?["error"]["request_id"].as_str().context("an error has the request's id")?.to_owned();
    let lines = found(&scene.server.log(), &id)?;
    let span = request_of(lines.first().context("the log knows the request")?)?;
    assert!(span["trace_id"] == TRACE && span["status"] == 404 && span["route"] == "/v1/jobs/{id}/cancel", "{lines:?}");
    Ok(())
}

/// The span of the request that a line stands in; a function's runtime has one of its own around it.
fn request_of(line: &Value) -> Result<&Value> {
    let spans = line["spans"].as_array().context("a line has spans")?;
    spans.iter().find(|span| span["route"].is_string()).with_context(|| format!("no request: {line}"))
}

/// Takes the place away where blobs are, or gives it back.
async fn blobs_away(scene: &Scene, away: bool) -> Result<()> {
    if let Some(aws) = scene.server.aws() {
        let (s3, bucket) = (aws.s3_client(), &aws.bucket);
        if away {
            s3.delete_bucket().bucket(bucket).send().await.context("the bucket")?;
        } else {
            s3.create_bucket().bucket(bucket).send().await.context("the bucket")?;
        }
        return Ok(());
    }
    let (blobs, aside) = (scene.server.data().join("blobs"), scene.server.data().join("blobs.aside"));
    let (from, to) = if away { (blobs, aside) } else { (aside, blobs) };
    std::fs::rename(from, to).context("where the blobs are")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_says_which_of_its_parts_is_down_and_no_more() -> Result<()> {
    let scene = Scene::start().await?;
    let get = async |path: &str, accept: &str| -> Result<(u16, String, String)> {
        let response = client()?.get(format!("{}{path}", scene.server.url())).header("accept", accept).send().await?;
        let kind = response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        Ok((response.status().as_u16(), kind, response.text().await?))
    };
    let (status, _, text) = get("/readyz", "*/*").await?;
    let ready: Value = serde_json::from_str(&text)?;
    assert_eq!((status, &ready), (200, &serde_json::json!({"status": "ready", "checks": {"jobs": "ok", "blobs": "ok"}})));
    let (status, kind, page) = get("/status", "text/html,*/*;q=0.8").await?;
    assert!(status == 200 && kind.starts_with("text/html") && page.contains("All is well"), "{kind} {page}");

    let reason = if scene.server.aws().is_some() { "NoSuchBucket" } else { "No such file" };
    blobs_away(&scene, true).await?;
    let (kind, text) = wait_until("/readyz says that it is not ready", PATIENCE, async || {
        get("/readyz", "*/*").await.ok().filter(|(status, ..)| *status == 503).map(|(_, kind, text)| (kind, text))
    })
    .await?;
    let problem: Value = serde_json::from_str(&text)?;
    assert_eq!(kind, "application/problem+json");
    assert_eq!(problem["checks"], serde_json::json!({"jobs": "ok", "blobs": "down"}), "{problem}");
    assert_eq!(problem["code"], "not_ready");
    assert!(!text.contains(reason) && !text.contains("ckrv-serve-"), "the reason is not for everybody: {text}");
    let (status, _, page) = get("/status", "text/html").await?;
    assert!(status == 503 && page.contains("blobs: <strong>down</strong>"), "{page}");
    let (status, kind, text) = get("/status", "application/json").await?;
    assert!(status == 503 && kind == "application/json" && text.contains("\"blobs\":\"down\""), "{kind} {text}");
    assert_eq!(get("/healthz", "*/*").await?.0, 200);
    let doctor = scene.ckrv(&["doctor"]).await?;
    assert!(doctor.stdout.contains("down there: blobs"), "{doctor:?}");
    assert!(scene.server.log().contains(reason), "the log has the reason: {}", scene.server.log());

    blobs_away(&scene, false).await?;
    wait_until("/readyz says that it is ready again", PATIENCE, async || {
        get("/readyz", "*/*").await.ok().filter(|(status, ..)| *status == 200)
    })
    .await?;
    Ok(())
}

/// One metric of the text format.
#[derive(Debug, Default)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
    samples: Vec<(String, String, f64)>,
}

/// Reads OpenMetrics strictly: each sample stands under its type, each value is a number, the end is marked.
fn parse(text: &str) -> Result<BTreeMap<String, Metric>> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    let mut current = String::new();
    let body = text.strip_suffix("# EOF\n").context("the end is not marked")?;
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (word, name, rest) =
                (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
            ensure!(["HELP", "TYPE", "UNIT"].contains(&word) && name.starts_with("ckrv_") && !rest.is_empty(), "{line}");
            if word == "TYPE" {
                let suffix = match rest {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                current = format!("{name}{suffix}");
                let metric = metrics.entry(current.clone()).or_default();
                ensure!(metric.kind.is_empty(), "{name} is there twice");
                rest.clone_into(&mut metric.kind);
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line}"))?;
        let (name, labels) = name.split_once('{').map_or((name, ""), |(name, labels)| (name, labels.trim_end_matches('}')));
        ensure!(name.starts_with(&current), "{line} stands under {current}");
        let metric = metrics.get_mut(&current).context("a sample before any type")?;
        let names = labels.split("\",").filter_map(|pair| pair.split_once('=')).map(|(name, _)| name.to_owned());
        metric.labels.extend(names.filter(|name| name != "le"));
        metric.samples.push((name.to_owned(), labels.to_owned(), value.parse().with_context(|| line.to_owned())?));
    }
    Ok(metrics)
}

/// What several processes say, as one.
fn together(texts: &[String]) -> Result<BTreeMap<String, Metric>> {
    let mut all: BTreeMap<String, Metric> = BTreeMap::new();
    for text in texts {
        for (name, metric) in parse(text)? {
            let sum = all.entry(name).or_default();
            sum.kind = metric.kind;
            sum.labels.extend(metric.labels);
            sum.samples.extend(metric.samples);
        }
    }
    Ok(all)
}

/// Name, type and labels of each metric in the document's table.
fn documented() -> Result<BTreeMap<String, (String, BTreeSet<String>)>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability.md");
    let text = std::fs::read_to_string(path)?;
    let rows = text.lines().filter(|line| line.starts_with("| `ckrv_"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let labels = cells[4].split(',').map(|label| label.trim().trim_matches('`').to_owned()).filter(|label| !label.is_empty());
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels.collect()))
    };
    Ok(rows.map(row).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_served_apart_and_are_exactly_those_of_the_document() -> Result<()> {
    let setup = setup(&[], &["--metrics-listen", "127.0.0.1:0"]);
    let scene = Scene::of(without_function(setup).await?, Repo::small(&[("README.md", "# A project\n")])?).await?;
    let processes = if scene.server.aws().is_some() { 2 } else { 1 };
    let said = |log: String| -> Vec<String> {
        log.lines().filter_map(|line| line.strip_prefix("metrics at ").map(str::to_owned)).collect()
    };
    let all = async || Some(said(scene.server.log())).filter(|urls| urls.len() == processes);
    let urls = wait_until("each process says where its metrics are", PATIENCE, all).await?;
    let good = scene.succeed("echo > a.txt").await?;
    let bad = scene.submit_spec(&script_spec("", "exit 3")).await?;
    scene.ckrv(&["wait", &bad]).await?;
    let scrape = async || -> Result<Vec<String>> {
        let mut texts = Vec::new();
        for url in &urls {
            texts.push(client()?.get(url).send().await?.error_for_status()?.text().await?);
        }
        Ok(texts)
    };
    let value = |metrics: &BTreeMap<String, Metric>, name: &str, label: &str| {
        let samples = metrics.values().flat_map(|metric| &metric.samples);
        let values = samples.filter(|(found, labels, _)| found == name && labels.contains(label)).map(|(.., value)| *value);
        values.reduce(|sum, value| sum + value)
    };
    // The dispatcher's next look sets the jobs that run.
    let metrics = wait_until("nothing runs any more", PATIENCE, async || {
        let metrics = together(&scrape().await.ok()?).ok()?;
        (value(&metrics, "ckrv_jobs_running", "agent=\"script\"") == Some(0.0)).then_some(metrics)
    });
    let metrics = metrics.await?;
    let text = scrape().await?.join("\n");
    let shown: BTreeMap<_, _> =
        metrics.iter().map(|(name, metric)| (name.clone(), (metric.kind.clone(), metric.labels.clone()))).collect();
    assert_eq!(shown, documented()?, "docs/observability.md and /metrics differ");
    for (name, label, expected) in [
        ("ckrv_claims_total", "", 2.0),
        ("ckrv_jobs_ended_total", "class=\"success\"", 1.0),
        ("ckrv_jobs_ended_total", "class=\"agent\"", 1.0),
        ("ckrv_job_attempts_count", "", 2.0),
        ("ckrv_job_wait_seconds_count", "", 2.0),
        ("ckrv_jobs_ended_total", "class=\"infrastructure\"", 0.0),
        ("ckrv_http_store_errors_total", "", 0.0),
    ] {
        assert_eq!(value(&metrics, name, label), Some(expected), "{name} {label}\n{text}");
    }
    assert!(
        value(&metrics, "ckrv_http_requests_total", "route=\"/v1/jobs\",method=\"POST\",status=\"201\"") == Some(2.0),
        "{text}"
    );
    assert!(value(&metrics, "ckrv_log_append_lag_seconds_count", "").is_some_and(|count| count > 0.0), "{text}");
    assert!(!text.contains(&good) && !text.contains(&bad), "a job's id in a label: {text}");
    let public = client()?.get(format!("{}/metrics", scene.server.url())).send().await?;
    assert_eq!(public.status(), 404, "metrics are not for the public");
    Ok(())
}
