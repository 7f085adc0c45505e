//! Jobs that bear witness: their agent writes numbered lines and one file, so that afterwards every loss and every repetition can be seen.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::api::Api;
use crate::records::Records;
use crate::server::Server;

/// A job that was submitted.
#[derive(Clone, Debug)]
pub struct Witness {
    pub id: String,
    tag: String,
    lines: usize,
}

/// What it came to.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub attempts: u64,
    pub entries: usize,
}

impl Witness {
    /// Writes `lines` lines, a pause after each, and then its file.
    pub async fn submit(api: &Api, repository: &str, tag: &str, lines: usize, pause: Duration) -> Result<Self> {
        Self::submit_with(api, json!({ "git_repo_url": repository }), tag, lines, pause).await
    }

    /// With all of the request but its spec.
    pub async fn submit_with(api: &Api, request: Value, tag: &str, lines: usize, pause: Duration) -> Result<Self> {
        let seconds = pause.as_secs_f64();
        let script = format!(
            "i=1; while [ $i -le {lines} ]; do echo \"{tag} line $i\"; i=$((i+1)); sleep {seconds}; done\necho {tag} > {tag}.txt"
        );
        let id = api.submit_with(request, &format!("verify:\n  - test -s {tag}.txt"), &script).await?;
        Ok(Self { id, tag: tag.to_owned(), lines })
    }

    /// It succeeded, once, with its whole log, and its diff was published once.
    pub async fn check(&self, api: &Api, server: &Server) -> Result<Told> {
        self.check_all(api, server)
            .await
            .with_context(|| format!("job {} ({}); server's log:\n{}", self.id, self.tag, server.log()))
    }

    async fn check_all(&self, api: &Api, server: &Server) -> Result<Told> {
        let records = Records::of(server);
        let record = records.job(&self.id).await?;
        ensure!(record["state"] == "succeeded", "it ended otherwise: {record:#}");
        one_end(&records.events(&self.id).await?)?;
        let log = log_is_whole(api, &self.id, &record).await?;
        self.all_lines(&log, &record)?;
        self.one_diff(api, &record).await?;
        Ok(Told { attempts: record["attempt"].as_u64().context("no attempt")?, entries: log.len() })
    }

    /// The final attempt's own lines, each once and in order.
    fn all_lines(&self, log: &[Value], record: &Value) -> Result<()> {
        let start = format!("{} line ", self.tag);
        let own = log.iter().filter(|entry| entry["fence"] == record["fence"] && entry["event"]["type"] == "message");
        let told: Vec<&str> = own.filter_map(|entry| entry["message"].as_str()?.strip_prefix(&start)).collect();
        let wanted: Vec<String> = (1..=self.lines).map(|line| line.to_string()).collect();
        ensure!(told == wanted, "the agent's lines: {told:?}\n{log:#?}");
        Ok(())
    }

    async fn one_diff(&self, api: &Api, record: &Value) -> Result<()> {
        let artifacts = record["artifacts"].as_array().context("no artifacts")?;
        let diffs: Vec<&Value> = artifacts.iter().filter(|artifact| artifact["name"] == "diff").collect();
        let [diff] = diffs[..] else { bail!("diffs: {diffs:?}") };
        let key = format!("jobs/{}/{}/diff", self.id, record["fence"]);
        ensure!(diff["key"] == key.as_str(), "the diff of another attempt: {diff}");
        let text = api.get(&format!("/v1/jobs/{}/artifacts/diff", self.id)).await?;
        ensure!(text.matches(&format!("\n+{}\n", self.tag)).count() == 1, "not the diff that was to be: {text}");
        ensure!(diff["bytes"].as_u64() == Some(text.len() as u64), "{diff} says another length than {}", text.len());
        Ok(())
    }
}

/// Exactly one event ends the job, it is the last one, and versions rise.
pub fn one_end(events: &[Value]) -> Result<()> {
    let is_final = |event: &&Value| ["succeeded", "failed", "timeout", "cancelled"].iter().any(|state| event["state"] == *state);
    let ends = events.iter().filter(is_final).count();
    ensure!(ends == 1 && events.last().as_ref().is_some_and(is_final), "{ends} ends: {events:#?}");
    let versions: Vec<u64> = events.iter().filter_map(|event| event["version"].as_u64()).collect();
    ensure!(versions.windows(2).all(|pair| pair[0] < pair[1]), "versions do not rise: {versions:?}");
    Ok(())
}

/// Each attempt's entries count from 1 without a gap, the last one stands where the record says that the log ends, `[DONE]` comes
/// behind it, and pages and stream tell the same. Gives the entries.
pub async fn log_is_whole(api: &Api, id: &str, record: &Value) -> Result<Vec<Value>> {
    let followed = api.follow(id).await?;
    ensure!(followed.done, "the stream ends without [DONE]");
    let (mut fence, mut seq) = (0, 0);
    for entry in &followed.entries {
        let at = (entry["fence"].as_u64().unwrap_or(0), entry["seq"].as_u64().unwrap_or(0));
        ensure!(at == (fence, seq + 1) || (at.0 > fence && at.1 == 1), "entry {at:?} comes behind {:?}", (fence, seq));
        (fence, seq) = at;
    }
    ensure!(record["log_end"] == format!("{fence}.{seq}").as_str(), "{} is not {fence}.{seq}", record["log_end"]);
    ensure!(api.log(id).await? == followed.entries, "pages and stream differ");
    Ok(followed.entries)
}
