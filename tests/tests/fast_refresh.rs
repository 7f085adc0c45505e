//! Logins and tokens with the real service and the real command line: renewal by many processes at once, the end of a login, `CKRV_TOKEN`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use ckrv_tests::http::client;
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::tap::Tap;
use ckrv_tests::user::User;
use futures::future::try_join_all;
use serde_json::{Value, json};

const REFRESH: &str = "POST /v1/auth/refresh";

fn setup(config: &[(&str, i64)]) -> Setup {
    let mut setup = Setup::unsandboxed();
    setup.config.extend(config.iter().map(|(key, value)| ((*key).to_owned(), toml::Value::Integer(*value))));
    setup
}

/// In front of a server, to see what is asked of it.
async fn tapped(server: &Server) -> Result<(Tap, User)> {
    let upstream: SocketAddr = server.url().split_once("://").context("no address")?.1.parse()?;
    let tap = Tap::start(upstream).await?;
    let mut user = User::new()?;
    user.set("CKRV_URL", &format!("http://{}", tap.address));
    Ok((tap, user))
}

async fn ask(server: &Server, path: &str, token: &str) -> Result<Value> {
    let response = client()?.get(format!("{}{path}", server.url())).bearer_auth(token).send().await?;
    Ok(serde_json::from_str(&response.error_for_status()?.text().await?)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_processes_with_one_used_up_token_renew_it_once_and_none_is_logged_out() -> Result<()> {
    // Shorter than the time that the command line renews ahead: every token is used up as soon as it is there.
    let mut server = Server::start(setup(&[("access_token_seconds", 20)])).await?;
    let (tap, user) = tapped(&server).await?;
    user.login(&server).await?;
    server.stop().await?;
    server.configure(|config| drop(config.insert("access_token_seconds".to_owned(), toml::Value::Integer(3600))))?;
    server.start_again().await?;
    let before = tap.bodies(REFRESH)?.len();
    let runs = try_join_all((0..8).map(|_| user.run(user.home(), &["cloud", "whoami"]))).await?;
    for run in runs {
        run.ok()?;
    }
    assert_eq!(tap.bodies(REFRESH)?.len() - before, 1);
    user.run(user.home(), &["cloud", "whoami"]).await?.ok()?;
    assert_eq!(tap.bodies(REFRESH)?.len() - before, 1, "the new one is still good");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_used_again_after_the_grace_ends_the_login() -> Result<()> {
    let server = Server::start(setup(&[("refresh_grace_seconds", 0)])).await?;
    let tokens = server.login().await?;
    let refresh = async |token: &str| -> Result<(u16, Value)> {
        let body = json!({"refresh_token": token, "grant_type": "refresh_token"});
        let response = client()?.post(format!("{}/v1/auth/refresh", server.url())).json(&body).send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    };
    let (status, next) = refresh(&tokens.refresh).await?;
    assert_eq!(status, 200, "{next}");
    let access = next["access_token"].as_str().context("no token")?;
    ask(&server, "/v1/users/me", access).await?;
    let (status, error) = refresh(&tokens.refresh).await?;
    assert_eq!((status, &error["error"]), (400, &json!("invalid_grant")));
    let (status, error) = refresh(next["refresh_token"].as_str().context("no token")?).await?;
    assert_eq!((status, &error["error"]), (400, &json!("invalid_grant")), "the successor went with it");
    assert!(ask(&server, "/v1/users/me", access).await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_token_does_what_it_may_without_a_login_until_it_is_revoked() -> Result<()> {
    let server = Server::start(setup(&[])).await?;
    let (tap, owner) = tapped(&server).await?;
    owner.login(&server).await?;
    let made = owner.run(owner.home(), &["cloud", "tokens", "create", "ci", "--scope", "jobs:read", "--expires", "90d"]).await?;
    let token = made.stdout.trim_end().to_owned();
    assert!(token.starts_with("ckrv_st_") && !token.contains('\n'), "stdout is the token and nothing else");
    assert!(!made.stderr.contains(&token), "it is said once");
    let listed = owner.run(owner.home(), &["cloud", "tokens", "list", "--json"]).await?.json()?;
    assert!(!listed.to_string().contains(&token));
    let id = listed["tokens"][0]["id"].as_str().context("no id")?.to_owned();

    let (own_tap, mut robot) = tapped(&server).await?;
    robot.set("CKRV_TOKEN", &token);
    robot.run(robot.home(), &["list"]).await?.ok()?;
    robot.run(robot.home(), &["cloud", "whoami"]).await?.ok()?;
    let refused = robot.run(robot.home(), &["cloud", "credentials", "list", "--json"]).await?;
    assert_eq!((refused.code, &refused.json()?["error"]["code"]), (1, &json!("insufficient_scope")));
    let refused = robot.run(robot.home(), &["cloud", "tokens", "create", "x", "--scope", "jobs:read"]).await?;
    assert_eq!(refused.code, 1, "{refused:?}");

    owner.run(owner.home(), &["cloud", "tokens", "revoke", &id]).await?.ok()?;
    let ended = robot.run(robot.home(), &["list"]).await?;
    assert!(ended.code == 3 && !ended.stderr.contains(&token), "{ended:?}");
    assert_eq!(own_tap.bodies(REFRESH)?.len(), 0, "a service token is never renewed");
    drop(tap);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_ends_the_login_at_the_service_and_here_even_if_the_service_is_away() -> Result<()> {
    let mut server = Server::start(setup(&[])).await?;
    let user = User::of(&server)?;
    user.login(&server).await?;
    let watcher = server.login().await?.access;
    let sessions = async || -> Result<usize> {
        Ok(ask(&server, "/v1/sessions", &watcher).await?["sessions"].as_array().context("no list")?.len())
    };
    assert_eq!(sessions().await?, 2);
    user.run(user.home(), &["cloud", "logout"]).await?.ok()?;
    assert_eq!(sessions().await?, 1);
    let audit = ask(&server, "/v1/admin/audit", &watcher).await?;
    let last = audit["records"].as_array().and_then(|records| records.last()).context("no record")?;
    assert_eq!((&last["action"], &last["from"]), (&json!("session.revoke"), &json!("127.0.0.1")));

    user.login(&server).await?;
    server.kill().await?;
    let away = user.run(user.home(), &["cloud", "logout"]).await?;
    assert!(away.code == 0 && away.stderr.contains("could not be told"), "{away:?}");
    server.start_again().await?;
    assert_eq!(user.run(user.home(), &["cloud", "whoami"]).await?.code, 3);
    Ok(())
}
