//! The fixtures themselves, as far as they need nothing but git. Not tested here: ckrv.

use std::time::Duration;

use anyhow::Result;
use ckrv_tests::faults::Faults;
use ckrv_tests::git::{git, output};
use ckrv_tests::git_http::{GitHttp, Rules};
use ckrv_tests::http::{Authority, Http, client};
use ckrv_tests::model::{DONE, Model, Script, Step};
use ckrv_tests::repo::{ODD_NAMES, Repo};
use ckrv_tests::wait::wait_until;
use serde_json::{Value, json};

fn rules(token: &str) -> Rules {
    Rules { token: token.to_owned(), redirect_to: None }
}

/// git's options and URL to clone with a token, the way a user would write it.
fn clone(server: &GitHttp, authority: &Authority, token: &str, to: &str) -> Vec<String> {
    let url = server.url("project.git").replace("https://", &format!("https://user:{token}@"));
    let ca = format!("http.sslCAInfo={}", authority.ca_file().display());
    ["-c", &ca, "clone", "--quiet", &url, to].map(str::to_owned).to_vec()
}

#[test]
fn a_large_repository_has_files_history_and_odd_names() -> Result<()> {
    let repo = Repo::large(1)?;
    let count: u32 = git(&repo.path(), &["rev-list", "--count", "main"])?.parse()?;
    assert_eq!(count, 400);
    let files = output(&repo.path(), &["ls-tree", "-r", "-z", "--name-only", "main"])?.stdout;
    let files: Vec<&[u8]> = files.split(|byte| *byte == 0).collect();
    assert!(files.len() > 2000, "{}", files.len());
    for name in ODD_NAMES {
        assert!(files.contains(&name), "{}", String::from_utf8_lossy(name));
    }
    let modes = git(&repo.path(), &["ls-tree", "main", "bin/run", "docs/link"])?;
    assert!(modes.contains("100755") && modes.contains("120000"), "{modes}");
    git(&repo.path(), &["fsck", "--strict"])?;
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_repository() -> Result<()> {
    assert_eq!(Repo::large(7)?.head()?, Repo::large(7)?.head()?);
    assert_ne!(Repo::large(7)?.head()?, Repo::large(8)?.head()?);
    Ok(())
}

#[test]
fn a_hostile_repository_can_be_cloned_without_harm() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let trap = folder.path().join("trap");
    let repo = Repo::hostile(&trap, "http://127.0.0.1:1")?;
    let tree = folder.path().join("tree");
    repo.clone_to(&tree, None)?;
    assert!(tree.join(".claude/settings.json").exists() && tree.join("outward").is_symlink());
    assert!(!trap.exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_opens_to_its_token_over_tls() -> Result<()> {
    let (repo, authority, folder) = (Repo::large(1)?, Authority::new()?, tempfile::tempdir()?);
    let server = GitHttp::start(repo.root(), rules("s3cret"), Some(&authority)).await?;
    git(folder.path(), &clone(&server, &authority, "s3cret", "tree"))?;
    assert_eq!(git(&folder.path().join("tree"), &["rev-parse", "HEAD"])?, repo.head()?);
    assert!(server.offers().contains(&Some(("user".to_owned(), "s3cret".to_owned()))));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_stays_shut_without_token_or_authority() -> Result<()> {
    let (repo, authority, folder) = (Repo::small(&[("a", "b")])?, Authority::new()?, tempfile::tempdir()?);
    let server = GitHttp::start(repo.root(), rules("s3cret"), Some(&authority)).await?;
    let wrong = output(folder.path(), &clone(&server, &authority, "wrong", "tree"))?;
    assert!(!wrong.status.success());
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(text.contains("Authentication failed"), "{text}");
    let stranger = Authority::new()?;
    let text = String::from_utf8(output(folder.path(), &clone(&server, &stranger, "s3cret", "tree"))?.stderr)?;
    assert!(text.contains("certificate"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_server_can_send_its_guests_elsewhere() -> Result<()> {
    let (repo, authority, folder) = (Repo::small(&[("a", "b")])?, Authority::new()?, tempfile::tempdir()?);
    let other = GitHttp::start(repo.root(), rules("s3cret"), Some(&authority)).await?;
    let redirect = Rules { token: String::new(), redirect_to: Some(other.base_url().to_owned()) };
    let server = GitHttp::start(repo.root(), redirect, Some(&authority)).await?;
    let with = |follow: &str| {
        let mut args = clone(&server, &authority, "s3cret", "tree");
        args.splice(0..0, ["-c".to_owned(), format!("http.followRedirects={follow}")]);
        output(folder.path(), &args)
    };
    let stayed = with("false")?;
    assert!(!stayed.status.success() && other.offers().is_empty());
    with("initial")?;
    assert!(!other.offers().is_empty(), "a git that follows arrives at the other server");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_reaches_the_repository() -> Result<()> {
    let (repo, authority, folder) = (Repo::small(&[("a", "b")])?, Authority::new()?, tempfile::tempdir()?);
    let server = GitHttp::start(repo.root(), rules("s3cret"), Some(&authority)).await?;
    git(folder.path(), &clone(&server, &authority, "s3cret", "tree"))?;
    let tree = folder.path().join("tree");
    git(&tree, &["commit", "--quiet", "--allow-empty", "-m", "More"])?;
    git(
        &tree,
        &["-c", &format!("http.sslCAInfo={}", authority.ca_file().display()), "push", "--quiet", "origin", "HEAD:pushed"],
    )?;
    assert_eq!(git(&repo.path(), &["rev-parse", "pushed"])?, git(&tree, &["rev-parse", "HEAD"])?);
    Ok(())
}

async fn post(url: &str, header: (&str, &str), body: &Value) -> Result<(u16, String)> {
    let request = client()?.post(url).header(header.0, header.1).body(body.to_string());
    let response = request.send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_calls_a_tool_and_then_is_done() -> Result<()> {
    let script = Script::Steps(vec![Step::shell("echo 1"), Step::write("a.txt", "x")]);
    let model = Model::start([("two", script)], None).await?;
    let url = format!("{}/v1/messages", model.url("two"));
    let tools = json!([{"name": "Bash"}, {"name": "Write"}]);
    let system = "Working directory: /workspace\n";
    let mut messages = vec![json!({"role": "user", "content": "go"})];
    for (tool, field, value) in [("Bash", "command", "echo 1"), ("Write", "file_path", "/workspace/a.txt")] {
        let (_, text) = post(&url, ("x-api-key", "k1"), &json!({"system": system, "tools": tools, "messages": messages})).await?;
        let reply: Value = serde_json::from_str(&text)?;
        assert_eq!(
            (&reply["content"][1]["name"], &reply["content"][1]["input"][field]),
            (&json!(tool), &json!(value)),
            "{reply}"
        );
        messages.push(json!({"role": "assistant", "content": reply["content"]}));
    }
    let (_, text) = post(&url, ("x-api-key", "k2"), &json!({"tools": tools, "messages": messages, "stream": true})).await?;
    assert!(text.contains("event: message_stop") && text.contains(DONE), "{text}");
    let keys: Vec<_> = model.requests().into_iter().map(|request| request.key.unwrap_or_default()).collect();
    assert_eq!(keys, ["k1", "k1", "k2"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_fails_as_it_is_told() -> Result<()> {
    let script = Script::FailFirst { times: 1, status: 529, then: Box::new(Script::write("a", "b")) };
    let model = Model::start([("retry", script)], None).await?;
    let url = format!("{}/v1beta/models/gemini-2.5-flash:generateContent", model.url("retry"));
    let ask = json!({"contents": [], "tools": [{"functionDeclarations": [{"name": "write_file"}]}]});
    let header = ("x-goog-api-key", "g");
    assert_eq!(post(&url, header, &ask).await?.0, 529);
    let (status, text) = post(&url, header, &ask).await?;
    assert!(status == 200 && text.contains("write_file"), "{status} {text}");
    assert_eq!(post(&format!("{}/v1/messages", model.url("e401")), header, &json!({})).await?.0, 401);
    assert_eq!(post(&format!("{}/v1/messages", model.url("nothing")), header, &json!({})).await?.0, 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_line_breaks_where_its_seed_says() -> Result<()> {
    let router = axum::Router::new().fallback(async || "x".repeat(100_000));
    let server = Http::start(router, None).await?;
    let mut lengths = Vec::new();
    for _ in 0..2 {
        let line = Faults::start(server.address, 42, 1_000..50_000).await?;
        let mut response = client()?.get(format!("http://{}/", line.address)).send().await?;
        let mut length = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            length += chunk.len();
        }
        wait_until("the line is cut", Duration::from_secs(10), async || (line.cuts() == 1).then_some(())).await?;
        lengths.push(length);
        line.heal();
        assert_eq!(client()?.get(format!("http://{}/", line.address)).send().await?.text().await?.len(), 100_000);
    }
    assert!(lengths[0] < 50_000 && lengths[0] == lengths[1], "{lengths:?}");
    Ok(())
}

#[tokio::test]
async fn waiting_ends_with_the_name_of_what_never_came() {
    let error = wait_until::<()>("the moon", Duration::from_millis(50), async || None).await.unwrap_err();
    assert!(error.to_string().contains("the moon"));
}
