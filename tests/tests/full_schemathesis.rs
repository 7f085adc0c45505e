//! The running API against its own OpenAPI document, by schemathesis: no fault of the server, no status, media type, header or body that the
//! document doesn't tell of, nothing accepted that the document forbids, no endpoint that forgets to ask for a token.

use std::path::Path;

use anyhow::{Result, ensure};
use ckrv_tests::bench;
use ckrv_tests::scene::Scene;
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn the_api_does_what_its_document_says() -> Result<()> {
    let scene = Scene::start().await?;
    // Something to be found, so that not every address answers 404.
    scene.succeed("echo done > done.txt").await?;
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/schemathesis");
    let document = format!("{}/v1/openapi.json", scene.server.url());
    let mut command = Command::new(bench::variable("CKRV_TEST_SCHEMATHESIS")?);
    command.arg("--config-file").arg(fixtures.join("schemathesis.toml")).args(["run", &document]);
    command.args(["--checks", "all", "--phases", "coverage,fuzzing,stateful", "--max-examples", "25", "--no-color"]);
    command.args(["--seed", &bench::seed().to_string(), "--suppress-health-check", "all"]);
    // A revoked token would end the test of everything behind it.
    command.args(["--exclude-path", "/v1/auth/revoke", "--exclude-path-regex", "^/v1/sessions/.+"]);
    command.env("CKRV_TOKEN", scene.server.login().await?.access).current_dir(scene.folder()).kill_on_drop(true);
    let output = command.output().await?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    // Green with nothing tried would be no result.
    ensure!(told.contains("generated") && told.contains("API Operations"), "{told}");
    Ok(())
}
