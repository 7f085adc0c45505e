//! Publish: diff, transcript, log and manifest go to the blob store under the attempt's own prefix; the end then makes them visible.

use bytes::Bytes;
use ckrv_core::job::{Artifact, DiffStat, Facts, Outcome, OutcomeClass, Verification};
use serde::Serialize;

use super::Context;
use super::failure::Failure;
use super::prepare::Prepared;
use crate::gateway::LARGEST_ARTIFACT;
use crate::git::{diff, host_of};

/// What a result is made of and where it came from.
#[derive(Serialize)]
struct Manifest<'a> {
    version: u32,
    job: String,
    attempt: u32,
    spec_sha256: String,
    repository: &'a str,
    base_branch: &'a str,
    facts: &'a Facts,
    agent: &'a str,
    artifacts: Vec<Listed<'a>>,
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    bytes: u64,
    sha256: &'a str,
}

pub async fn publish(context: &Context, prepared: &Prepared, facts: &mut Facts) -> Result<Vec<Artifact>, Failure> {
    let head = facts.head_sha.clone().unwrap_or_else(|| prepared.base.clone());
    let made = diff(&prepared.git, &prepared.base, &head, LARGEST_ARTIFACT).await?;
    facts.diff_stat = Some(made.stat);
    // The commit was searched file by file; this looks at the whole once more, context lines and names too.
    if let Some(found) = context.log.needles().find(&made.content) {
        return Err(Failure::Ends(
            Outcome::new(OutcomeClass::SecretInResult, format!("the diff holds one of the job's secrets, line {}", found.line))
                .hint("nothing was published"),
        ));
    }
    let mut artifacts = vec![context.gateway.artifact("diff", Bytes::from(made.content)).await?];
    artifacts.extend(story(context, facts).await);
    let manifest = manifest(context, facts, &artifacts);
    artifacts.push(context.gateway.artifact("manifest", Bytes::from(manifest)).await?);
    Ok(artifacts)
}

/// Transcript and log: kept also of a job that did not succeed. What can't be stored is left out and said.
pub async fn story(context: &Context, _facts: &Facts) -> Vec<Artifact> {
    let mut artifacts = Vec::new();
    for (name, file) in [("transcript", "transcript.ndjson"), ("log", "log.ndjson")] {
        let Ok(content) = std::fs::read(context.dir.join(file)) else { continue };
        match context.gateway.artifact(name, Bytes::from(content)).await {
            Ok(artifact) => artifacts.push(artifact),
            Err(error) => context.log.warn("ckrv", format!("the {name} could not be stored: {error}")),
        }
    }
    artifacts
}

fn manifest(context: &Context, facts: &Facts, artifacts: &[Artifact]) -> Vec<u8> {
    let job = &context.view.job;
    let manifest = Manifest {
        version: 1,
        job: job.id.to_string(),
        attempt: job.attempt,
        spec_sha256: crate::gateway::sha256_hex(context.view.spec.as_bytes()),
        // A path of the server's machine says nothing to anybody else.
        repository: if host_of(&job.request.git_repo_url).is_some() { &job.request.git_repo_url } else { "(local)" },
        base_branch: &job.request.git_base_branch,
        facts,
        agent: &job.request.agent,
        artifacts: artifacts
            .iter()
            .map(|artifact| Listed { name: &artifact.name, bytes: artifact.bytes, sha256: &artifact.sha256 })
            .collect(),
    };
    serde_json::to_vec_pretty(&manifest).unwrap_or_default()
}

/// What a job that succeeded says of itself.
pub fn summary(stat: &DiffStat, verification: Verification) -> Outcome {
    let changes = match stat.files {
        0 => "the agent made no changes".to_owned(),
        1 => format!("1 file changed, +{} -{}", stat.insertions, stat.deletions),
        files => format!("{files} files changed, +{} -{}", stat.insertions, stat.deletions),
    };
    let checks = match verification {
        Verification::Passed => "the spec's checks passed",
        _ => "the spec has no checks, so nothing was verified",
    };
    Outcome::new(OutcomeClass::Success, format!("{changes}; {checks}"))
}
