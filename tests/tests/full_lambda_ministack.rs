//! The packaged function as an operator deploys it: the templates, the zip, a function URL and an HTTP API with a named stage, under the
//! role that the template gives it, on an emulator that enforces IAM.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::aws::Aws;
use ckrv_tests::ministack::{Ministack, templates};
use ckrv_tests::repo::Repo;
use ckrv_tests::scene::script_spec;
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::{bench, http, wait};
use serde_json::{Value, json};

/// Where one deployed function answers: the emulator's address, with the name that it knows the function by.
struct Deployed {
    base: String,
    host: String,
    client: reqwest::Client,
}

struct Answer {
    status: u16,
    text: String,
}

impl Answer {
    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text).with_context(|| self.text.clone())
    }
}

impl Deployed {
    async fn ask(&self, method: &str, path: &str, token: &str, body: Option<Value>) -> Result<Answer> {
        let mut request = self.client.request(method.parse()?, format!("{}{path}", self.base)).header("host", &self.host);
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await?;
        Ok(Answer { status: response.status().as_u16(), text: response.text().await? })
    }
}

/// Deploys the API's stack and tells its function where the emulated services are; on AWS itself the SDK knows.
async fn deploy(ministack: &Ministack, data: &str, name: &str, entrance: &str) -> Result<Deployed> {
    let config = "local_repositories = true";
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };
    let own = [("DataStack", data), ("CodeKey", "code/ckrv-api.zip"), ("Release", "first"), ("Architecture", arch)];
    let more = [("Entrance", entrance), ("StageName", "prod"), ("Config", config)];
    ministack.deploy(name, &templates().join("api.yaml"), &[own.as_slice(), more.as_slice()].concat()).await?;
    let outputs = ministack.outputs(name).await?;
    let output = |name: &str| outputs.get(name).cloned().with_context(|| format!("no output {name}"));
    let function = output("FunctionName")?;
    let lambda = async |args: &[&str]| ministack.aws(&[&["lambda"], args, &["--function-name", &function]].concat()).await;
    let found: Value = serde_json::from_str(&lambda(&["get-function-configuration", "--output", "json"]).await?)?;
    let mut environment = found["Environment"].clone();
    for service in ["DYNAMODB", "S3", "KMS", "SECRETS_MANAGER", "SSM"] {
        environment["Variables"][format!("CKRV_ENDPOINT_{service}")] = ministack.url.clone().into();
    }
    lambda(&["update-function-configuration", "--environment", &environment.to_string()]).await?;
    let version =
        lambda(&["publish-version", "--description", "with endpoints", "--query", "Version", "--output", "text"]).await?;
    lambda(&["update-alias", "--name", "live", "--function-version", version.trim()]).await?;
    let url = reqwest::Url::parse(&output("Url")?)?;
    let host = url.host_str().context("no host")?;
    let host = url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
    Ok(Deployed { base: format!("{}{}", ministack.url, url.path().trim_end_matches('/')), host, client: http::client()? })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_package_serves_behind_a_function_url_and_an_http_api() -> Result<()> {
    let ministack = Ministack::from_bench()?;
    let id = format!("f{:08x}", rand::random::<u32>());
    let data = format!("{id}-data");
    ministack.deploy(&data, &templates().join("data.yaml"), &[]).await?;
    let outputs = ministack.outputs(&data).await?;
    let aws = Aws::deployed(&ministack.url, &outputs)?;
    // It asks for TLS, which the emulator doesn't speak.
    ministack.aws(&["s3api", "delete-bucket-policy", "--bucket", &aws.bucket]).await?;
    let zip = bench::package()?;
    let zip = zip.to_str().context("a path that is no text")?;
    ministack.aws(&["s3api", "put-object", "--bucket", &aws.bucket, "--key", "code/ckrv-api.zip", "--body", zip]).await?;
    // Runs the jobs, and lets its owner log in; jobs are made by the function.
    let server = Server::start_on_aws(Setup::unsandboxed(), aws).await?;
    let token = server.login().await?.access;
    let repo = Repo::small(&[("README.md", "# A project\n")])?;
    for entrance in ["FunctionUrl", "HttpApi"] {
        let name = format!("{id}-{}", entrance.to_lowercase());
        let deployed = deploy(&ministack, &data, &name, entrance).await?;
        serves(&deployed, &token, &repo).await.with_context(|| format!("{entrance}:\n{}", server.log()))?;
        ministack.aws(&["cloudformation", "delete-stack", "--stack-name", &name]).await?;
    }
    Ok(())
}

async fn serves(deployed: &Deployed, token: &str, repo: &Repo) -> Result<()> {
    let alive = deployed.ask("GET", "/healthz", "", None).await?;
    assert_eq!((alive.status, &alive.json()?["status"]), (200, &json!("ok")));
    let page = deployed.ask("GET", "/activate", "", None).await?;
    assert!(page.status == 200 && page.text.contains("<form"), "{}", page.text);
    assert_eq!(deployed.ask("GET", "/v1/jobs", "", None).await?.status, 401);
    let secret = json!({"name": "key", "value": "sealed under KMS"});
    let sealed = deployed.ask("POST", "/v1/secrets", token, Some(secret)).await?;
    assert_eq!(sealed.status, 201, "{}", sealed.text);
    let removed = deployed.ask("DELETE", "/v1/secrets/key", token, None).await?;
    assert_eq!((removed.status, removed.text.as_str()), (204, ""));
    let spec = script_spec("", "echo hello > hello.txt");
    let body = json!({"spec_content": spec, "git_repo_url": repo.path()});
    let made = deployed.ask("POST", "/v1/jobs", token, Some(body)).await?;
    ensure!(made.status == 201, "{}", made.text);
    let id = made.json()?["id"].as_str().context("a job without an id")?.to_owned();
    let ended = wait::wait_until("the job has ended", Duration::from_secs(120), async || {
        let job = deployed.ask("GET", &format!("/v1/jobs/{id}"), token, None).await.ok()?.json().ok()?;
        job["completed_at"].is_string().then_some(job)
    });
    assert_eq!(ended.await?["state"], "succeeded");
    let diff = deployed.ask("GET", &format!("/v1/jobs/{id}/artifacts/diff"), token, None).await?;
    assert!(diff.status == 200 && diff.text.contains("hello.txt"), "{}", diff.text);
    Ok(())
}
