//! An identity provider: npm's certified `oidc-provider` on loopback, whose login has no page.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::{bench, http};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/oidc/provider.mjs");
/// There and back for login and consent takes five.
const MOST_REDIRECTS: usize = 10;

/// The one client that the provider knows. It must use PKCE.
#[derive(Clone, Debug)]
pub struct Client {
    pub id: String,
    /// None for a public client.
    pub secret: Option<String>,
    pub redirect_uri: String,
}

/// Somebody who can log in.
#[derive(Clone, Debug)]
pub struct Account {
    pub subject: String,
    pub email: String,
    pub email_verified: bool,
    pub name: String,
    pub groups: Vec<String>,
}

impl Account {
    /// With a verified address and no groups.
    pub fn new(subject: &str, email: &str) -> Self {
        let (subject, email) = (subject.to_owned(), email.to_owned());
        Self { name: format!("{subject} of the tests"), subject, email, email_verified: true, groups: Vec::new() }
    }

    pub fn groups(mut self, groups: &[&str]) -> Self {
        self.groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self
    }
}

/// A running provider; dropped, it is gone.
#[derive(Debug)]
pub struct Oidc {
    /// `http://127.0.0.1:PORT`
    pub issuer: String,
    _child: Child,
}

impl Oidc {
    /// Its scopes are `openid email profile groups`; until somebody is named, nobody logs in.
    pub async fn start(client: &Client) -> Result<Self> {
        let package = Path::new(&bench::variable("CKRV_TEST_OIDC")?).join("node_modules/oidc-provider");
        let mut told = json!({ "client_id": client.id, "redirect_uris": [client.redirect_uri] });
        match &client.secret {
            Some(secret) => told["client_secret"] = json!(secret),
            None => told["token_endpoint_auth_method"] = json!("none"),
        }
        let mut command = Command::new("node");
        command.arg(SCRIPT).env("PACKAGE", package).env("CLIENT", told.to_string());
        // It ends with its stdin, even when the test is killed.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("can't start node")?;
        let stdout = child.stdout.take().context("node has no stdout")?;
        let issuer = BufReader::new(stdout).lines().next_line().await?;
        Ok(Self { issuer: issuer.context("the provider ended at once; see above")?, _child: child })
    }

    /// Whoever is sent to the provider from now on is this account.
    pub async fn log_in(&self, account: &Account) -> Result<()> {
        self.name(&json!({
            "sub": account.subject,
            "email": account.email,
            "email_verified": account.email_verified,
            "name": account.name,
            "groups": account.groups,
        }))
        .await
    }

    /// Whoever is sent to the provider from now on refuses.
    pub async fn refuse(&self) -> Result<()> {
        self.name(&Value::Null).await
    }

    async fn name(&self, account: &Value) -> Result<()> {
        let response = http::client()?.put(format!("{}/test/account", self.issuer)).body(account.to_string()).send().await?;
        response.error_for_status()?;
        Ok(())
    }

    /// Goes from the URL that the client made to the one that the provider sends a browser back to, and gives that without opening it.
    pub async fn visit(&self, authorization_url: &str) -> Result<String> {
        let client = http::client()?;
        let mut cookies = BTreeMap::new();
        let mut url = authorization_url.to_owned();
        for _ in 0..MOST_REDIRECTS {
            let sent: Vec<String> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let response = client.get(&url).header(COOKIE, sent.join("; ")).send().await?;
            for cookie in response.headers().get_all(SET_COOKIE) {
                let pair = cookie.to_str()?.split(';').next().and_then(|pair| pair.split_once('='));
                let (name, value) = pair.context("a cookie without a value")?;
                cookies.insert(name.to_owned(), value.to_owned());
            }
            let Some(location) = response.headers().get(LOCATION) else {
                bail!("the provider shows a page, status {}:\n{}", response.status(), response.text().await?);
            };
            url = reqwest::Url::parse(&url)?.join(location.to_str()?)?.into();
            if !url.starts_with(&self.issuer) {
                return Ok(url);
            }
        }
        bail!("the provider sends its visitor around in circles")
    }
}

/// A parameter of a URL's query, as the one who is called back reads it.
pub fn parameter(url: &str, name: &str) -> Result<String> {
    let url = reqwest::Url::parse(url)?;
    let mut found = url.query_pairs().filter(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let value = found.next().with_context(|| format!("no {name} in {url}"))?;
    ensure!(found.next().is_none(), "{name} stands twice in {url}");
    Ok(value)
}
