//! `POST /v1/jobs`

use axum::extract::State;
use axum::http::StatusCode;
use ckrv_core::job::JobRequest;
use ckrv_core::repo_url::{RepoUrl, Transport, check_branch, parse_repo_url};
use ckrv_core::spec::{Spec, SpecError};
use ckrv_core::webhook::parse_notify_url;
use ckrv_core::wire::{CreateJob, CredentialType, Job, MAX_LABELS, Problem};
use ckrv_store::User;

use super::submit::{Submission, submit};
use crate::audit::Who;
use crate::error::ApiError;
use crate::extract::{Caller, IdempotencyKey, Json};
use crate::state::ApiState;

/// Makes a job. The same `Idempotency-Key` with the same body gives the same job again, with 200.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", request_body = CreateJob, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = Job), (status = 200, description = "Replayed", body = Job),
        (status = 402, description = "The quota is used up", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn create_job(
    State(state): State<ApiState>,
    Caller(user): Caller,
    who: Who,
    key: IdempotencyKey,
    Json(body): Json<CreateJob>,
) -> Result<(StatusCode, axum::Json<Job>), ApiError> {
    let body_text = serde_json::to_vec(&body).map_err(ApiError::internal)?;
    let submission = Submission {
        request: check(&state, &user, &body).await?,
        spec: body.spec_content.into(),
        idempotency_key: key.0,
        body: body_text,
    };
    submit(&state, &user, &who, submission).await
}

async fn check(state: &ApiState, user: &User, body: &CreateJob) -> Result<JobRequest, ApiError> {
    not_yet(body)?;
    let spec = Spec::parse(&body.spec_content, body.spec_name.as_deref()).map_err(|error| spec_error(&error))?;
    let repo = parse_repo_url(&body.git_repo_url, state.config.repo_urls)
        .map_err(|error| ApiError::invalid("invalid_repo_url", sentence(&error.to_string())).hint(error.hint()))?;
    check_branch(&body.git_base_branch).map_err(|error| ApiError::invalid("invalid_branch", sentence(&error.to_string())))?;
    check_texts(body)?;
    let agent = body.agent.clone().or(spec.agent).unwrap_or_else(|| state.config.default_agent.clone());
    check_agent(state, &agent, body)?;
    if agent == "script" && spec.command.is_none() && spec.task.is_empty() {
        return Err(ApiError::invalid("invalid_spec", "Agent `script` needs a `command` in the spec."));
    }
    let timeout_seconds = body.timeout_seconds.or(spec.timeout_seconds).unwrap_or(state.config.default_timeout_seconds);
    if !(1..=state.config.max_timeout_seconds).contains(&timeout_seconds) {
        return Err(ApiError::invalid(
            "invalid_timeout",
            format!("The time limit must be 1 to {} seconds.", state.config.max_timeout_seconds),
        ));
    }
    if let Some(name) = &body.git_credential_name {
        check_credential(state, user, name, &repo).await?;
    }
    for name in body.secrets.values() {
        if state.stores.accounts.secret(user.id, name).await?.is_none() {
            return Err(ApiError::invalid("unknown_secret", "There is no secret of the name that `secrets` gives.")
                .hint("`ckrv cloud secrets list` shows yours"));
        }
    }
    Ok(JobRequest {
        git_repo_url: body.git_repo_url.clone(),
        git_base_branch: body.git_base_branch.clone(),
        git_credential_name: body.git_credential_name.clone(),
        spec_id: spec.id,
        spec_name: body.spec_name.clone(),
        agent,
        model: body.model.clone().or(spec.model),
        timeout_seconds,
        secrets: body.secrets.clone(),
        labels: body.labels.clone(),
        push: false,
        max_cost_micro_usd: max_cost(body.max_cost_usd)?,
        notify_url: notify_url(state, body)?,
        retry_of: None,
    })
}

fn not_yet(body: &CreateJob) -> Result<(), ApiError> {
    let asked = [("best_of", body.best_of.is_some_and(|count| count != 1)), ("push", body.push == Some(true))];
    match asked.into_iter().find(|(_, asked)| *asked) {
        Some((name, _)) => Err(ApiError::invalid("not_available", format!("`{name}` is not yet available in this version."))),
        None => Ok(()),
    }
}

fn spec_error(error: &SpecError) -> ApiError {
    let detail = sentence(&error.to_string());
    match error {
        SpecError::TooLarge { .. } => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "spec_too_large", detail)
            .hint("put long material into the repository and refer to it"),
        SpecError::Empty => ApiError::invalid("spec_empty", detail),
        _ => ApiError::invalid("invalid_spec", detail),
    }
}

/// An error's text as a sentence.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect::<String>() + ".")
}

fn check_texts(body: &CreateJob) -> Result<(), ApiError> {
    let line = |text: &str, most: usize| text.len() <= most && !text.chars().any(char::is_control);
    if body.labels.len() > MAX_LABELS {
        return Err(ApiError::invalid("too_many_labels", format!("At most {MAX_LABELS} labels.")));
    }
    let key_ok = |key: &str| {
        (1..=63).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte))
    };
    if !body.labels.iter().all(|(key, value)| key_ok(key) && line(value, 256)) {
        let detail = "A label's key is 1 to 63 letters, digits and `._/-`; its value one line of at most 256 bytes.";
        return Err(ApiError::invalid("invalid_label", detail));
    }
    if body.model.as_ref().is_some_and(|model| model.is_empty() || !line(model, 200)) {
        return Err(ApiError::invalid("invalid_model", "`model` must be one line of 1 to 200 bytes."));
    }
    if body.spec_name.as_ref().is_some_and(|name| !line(name, 500)) {
        return Err(ApiError::invalid("invalid_spec_name", "`spec_name` must be one line of at most 500 bytes."));
    }
    Ok(())
}

fn check_agent(state: &ApiState, name: &str, body: &CreateJob) -> Result<(), ApiError> {
    let Some(agent) = state.agents.agent(name) else {
        let known: Vec<String> = state.agents.agents().into_iter().map(|agent| format!("`{}`", agent.name)).collect();
        let shown: String = name.chars().take(50).collect();
        return Err(ApiError::invalid("unknown_agent", format!("There is no agent `{shown}`. On offer: {}.", known.join(", "))));
    };
    let slots: Vec<&str> = agent.secrets.iter().map(|secret| secret.slot.as_str()).collect();
    if body.secrets.keys().any(|slot| !slots.contains(&slot.as_str())) {
        return Err(ApiError::invalid(
            "unknown_secret_slot",
            format!("Agent `{name}` has these secret slots: {}.", slots.join(", ")),
        ));
    }
    Ok(())
}

fn max_cost(usd: Option<f64>) -> Result<Option<u64>, ApiError> {
    match usd {
        None => Ok(None),
        Some(usd) if usd > 0.0 && usd <= 1e6 => Ok(Some((usd * 1e6).round() as u64)),
        Some(_) => Err(ApiError::invalid("invalid_max_cost", "`max_cost_usd` must be above 0 and at most 1000000.")),
    }
}

fn notify_url(state: &ApiState, body: &CreateJob) -> Result<Option<String>, ApiError> {
    let Some(text) = &body.notify_url else { return Ok(None) };
    match parse_notify_url(text, state.config.notify) {
        Ok(url) => Ok(Some(url.to_string())),
        Err(error) => Err(ApiError::invalid("invalid_notify_url", sentence(&error.to_string())).hint(error.hint())),
    }
}

async fn check_credential(state: &ApiState, user: &User, name: &str, repo: &RepoUrl) -> Result<(), ApiError> {
    let Some(credential) = state.stores.accounts.credential(user.id, name).await? else {
        return Err(ApiError::invalid(
            "unknown_credential",
            "There is no credential of the name that `git_credential_name` gives.",
        )
        .hint("`ckrv cloud credentials list` shows yours"));
    };
    let (wanted, kind, way) = match repo.transport {
        Transport::Https => (CredentialType::Pat, "token", "https"),
        Transport::Ssh => (CredentialType::DeployKey, "deploy key", "ssh"),
        Transport::File => return Ok(()),
    };
    if credential.credential_type != wanted {
        return Err(ApiError::invalid(
            "credential_mismatch",
            format!("A repository over {way} needs a {kind}; `{name}` is none."),
        ));
    }
    let with_port = repo.port.map(|port| format!("{}:{port}", repo.host));
    if !credential.hosts.iter().any(|host| *host == repo.host || Some(host) == with_port.as_ref()) {
        let detail = format!("Credential `{name}` is not for this repository's host.");
        return Err(ApiError::invalid("credential_mismatch", detail)
            .hint("a credential is offered only to the hosts that it was stored with"));
    }
    Ok(())
}
