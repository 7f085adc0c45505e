//! The HTTP API without the CLI, for tests of what the service itself says.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::http::client;
use crate::server::Server;
use crate::wait::wait_until;

/// A user's access to one server; lives through the server's restarts.
#[derive(Clone, Debug)]
pub struct Api {
    client: reqwest::Client,
    url: String,
    token: String,
}

/// A log that was followed to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    pub entries: Vec<Value>,
    /// The stream's last event was `[DONE]`.
    pub done: bool,
}

impl Api {
    pub async fn login(server: &Server) -> Result<Self> {
        Ok(Self { client: client()?, url: server.url().to_owned(), token: server.login().await?.access })
    }

    /// With a token, at another entrance of the same service.
    pub fn at(url: &str, token: &str) -> Result<Self> {
        Ok(Self { client: client()?, url: url.to_owned(), token: token.to_owned() })
    }

    async fn text(&self, request: reqwest::RequestBuilder) -> Result<String> {
        let response = request.bearer_auth(&self.token).send().await?;
        let (status, url) = (response.status(), response.url().clone());
        let text = response.text().await?;
        if status.is_success() { Ok(text) } else { bail!("{url} answers {status}: {text}") }
    }

    pub async fn get(&self, path: &str) -> Result<String> {
        self.text(self.client.get(format!("{}{path}", self.url))).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.client.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        serde_json::from_str(&self.text(request.body(body.to_string())).await?).context("no JSON")
    }

    /// Makes a job of agent `script`; `keys` are further lines of its front matter. Gives its id.
    pub async fn submit(&self, repository: &str, keys: &str, script: &str) -> Result<String> {
        self.submit_with(json!({ "git_repo_url": repository }), keys, script).await
    }

    /// The same, with all of the request but its spec.
    pub async fn submit_with(&self, mut request: Value, keys: &str, script: &str) -> Result<String> {
        request["spec_content"] = crate::scene::script_spec(keys, script).into();
        let job = self.post("/v1/jobs", &request).await?;
        job["id"].as_str().map(str::to_owned).context("a job without an id")
    }

    pub async fn job(&self, id: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.get(&format!("/v1/jobs/{id}")).await?)?)
    }

    /// Waits until a job has ended, through the server's restarts.
    pub async fn ended(&self, id: &str, limit: Duration) -> Result<Value> {
        wait_until(&format!("job {id} has ended"), limit, async || {
            self.job(id).await.ok().filter(|job| job["completed_at"].is_string())
        })
        .await
    }

    /// All pages of a log.
    pub async fn log(&self, id: &str) -> Result<Vec<Value>> {
        let mut entries = Vec::new();
        let mut after = "0.0".to_owned();
        loop {
            let page: Value = serde_json::from_str(&self.get(&format!("/v1/jobs/{id}/logs?after={after}&limit=500")).await?)?;
            entries.extend(page["logs"].as_array().context("no logs")?.iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => next.clone_into(&mut after),
                None => return Ok(entries),
            }
        }
    }

    /// Follows a log until the server closes the stream.
    pub async fn follow(&self, id: &str) -> Result<Followed> {
        let request = self.client.get(format!("{}/v1/jobs/{id}/logs?follow=true", self.url));
        let text = self.text(request.header("accept", "text/event-stream")).await?;
        let mut followed = Followed { entries: Vec::new(), done: false };
        for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
            if followed.done {
                bail!("an event behind [DONE]: {data}");
            }
            match data {
                "[DONE]" => followed.done = true,
                entry => followed.entries.push(serde_json::from_str(entry)?),
            }
        }
        Ok(followed)
    }
}
