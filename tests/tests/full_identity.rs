//! Sign-in with a real identity provider (npm's `oidc-provider`), a real browser (Chromium) and the real `ckrv`. What a provider that lies
//! sends, is tested in `api-lambda/tests/identity.rs`.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::browser::Browser;
use ckrv_tests::oidc::{Account, Client, Oidc};
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::user::User;
use ckrv_tests::wait::{PATIENCE, wait_until};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

struct Scene {
    oidc: Oidc,
    server: Server,
}

impl Scene {
    /// A service whose people sign in at the provider; only the API of it, since no job runs.
    async fn new() -> Result<Self> {
        let setup = Setup { args: vec!["--role".to_owned(), "api".to_owned()], ..Setup::default() };
        let mut server = Server::start_embedded(setup).await?;
        let client = Client {
            id: "ckrv".to_owned(),
            secret: Some("a-secret-of-the-tests-0123456789".to_owned()),
            redirect_uri: format!("{}/activate/callback", server.url()),
        };
        let oidc = Oidc::start(&client).await?;
        server.stop().await?;
        let secret = server.data().join("oidc-secret");
        std::fs::write(&secret, client.secret.as_deref().unwrap_or_default())?;
        let provider: toml::Table = format!(
            "name = 'corp'\nlabel = 'Corp'\nissuer = '{}'\nclient_id = 'ckrv'\nclient_secret_file = '{}'\n\
             scopes = ['openid', 'profile', 'email', 'groups']\nallowed_domains = ['example.org']\nadmin_group = 'ops'",
            oidc.issuer,
            secret.display()
        )
        .parse()?;
        server.configure(|config| drop(config.insert("oidc".to_owned(), vec![provider].into())))?;
        server.start_again().await?;
        Ok(Self { oidc, server })
    }

    async fn login(&self, user: &User) -> Result<Login> {
        let mut command = user.command(user.home(), &["cloud", "login", "--json"]);
        let mut process = command.stderr(Stdio::null()).spawn()?;
        let mut events = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        let event = next(&mut events).await?;
        let text = |name: &str| event[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {event}"));
        Ok(Login { page: text("verification_uri_complete")?, code: text("user_code")?, process, _events: events })
    }
}

/// `ckrv cloud login` that waits.
struct Login {
    page: String,
    code: String,
    process: Child,
    _events: Lines<BufReader<ChildStdout>>,
}

async fn next(events: &mut Lines<BufReader<ChildStdout>>) -> Result<Value> {
    Ok(serde_json::from_str(&events.next_line().await?.context("it says nothing")?)?)
}

/// Waits for a page that says this: a click doesn't wait for the next one.
async fn shows(browser: &Browser, said: &str) -> Result<()> {
    let page = async || browser.text("main").await.ok().filter(|page| page.contains(said));
    wait_until(&format!("the page says {said}"), PATIENCE, page).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_signs_in_at_the_provider_and_confirms_in_the_browser() -> Result<()> {
    let scene = Scene::new().await?;
    scene.oidc.log_in(&Account::new("ada", "ada@example.org").groups(&["ops"])).await?;
    let user = User::of(&scene.server)?;
    let mut login = scene.login(&user).await?;
    let browser = Browser::start().await?;
    browser.open(&login.page).await?;
    browser.click("button[value=corp]").await?;
    let url = browser.at("/activate/oidc/confirm").await?;
    assert!(!url.contains("code=") && !url.contains("state="), "nothing of the sign-in is in the address: {url}");
    let question = browser.text("main").await?;
    for shown in [login.code.as_str(), "ckrv-cli", "ada of the tests", "ada@example.org", "Corp"] {
        assert!(question.contains(shown), "{shown}: {question}");
    }
    browser.click("button[value=approve]").await?;
    shows(&browser, "Approved").await?;
    let status = login.process.wait().await?;
    ensure!(status.success(), "ckrv cloud login ended with {status}");
    assert_eq!(user.run(user.home(), &["cloud", "whoami"]).await?.ok()?, "ada of the tests <ada@example.org>");
    // Only an admin can give this scope, and ada's group makes her one.
    user.run(user.home(), &["cloud", "tokens", "create", "x", "--scope", "admin"]).await?.ok()?;
    let log = scene.server.log();
    assert!(!log.contains("a-secret-of-the-tests") && !log.contains("code="), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_come_in_reads_why_and_the_program_goes_on_waiting() -> Result<()> {
    let scene = Scene::new().await?;
    let user = User::of(&scene.server)?;
    let mut login = scene.login(&user).await?;
    let browser = Browser::start().await?;
    let unverified = Account { email_verified: false, ..Account::new("eve", "eve@example.org") };
    for (account, said) in
        [(Some(Account::new("mallory", "m@evil.example")), "domain"), (Some(unverified), "verif"), (None, "cancelled")]
    {
        match &account {
            Some(account) => scene.oidc.log_in(account).await?,
            None => scene.oidc.refuse().await?,
        }
        browser.open(&login.page).await?;
        browser.click("button[value=corp]").await?;
        browser.at("/activate/callback").await?;
        shows(&browser, said).await?;
    }
    assert_eq!(login.process.try_wait()?, None, "it still waits");
    // And with an account that may, somebody can say no.
    scene.oidc.log_in(&Account::new("ada", "ada@example.org")).await?;
    browser.open(&login.page).await?;
    browser.click("button[value=corp]").await?;
    browser.at("/activate/oidc/confirm").await?;
    browser.click("button[value=deny]").await?;
    shows(&browser, "Denied").await?;
    assert!(!login.process.wait().await?.success());
    assert_eq!(user.run(user.home(), &["cloud", "whoami"]).await?.code, 3);
    Ok(())
}
