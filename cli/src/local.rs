//! `ckrv run` without `--cloud`: the same engine, for one job, in a temporary folder.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ckrv_core::id::UserId;
use ckrv_store::AccessToken;
use jiff::SignedDuration;
use rand::Rng as _;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::config::Env;
use crate::engine::server_config::ServerConfig;
use crate::engine::{Engine, EngineOptions, Role};
use crate::error::CliError;

/// What the engine is started with.
#[derive(Debug)]
pub struct LocalOptions {
    /// Run the agent as a process of the user's, beside their files.
    pub unsandboxed: bool,
    pub data_dir: PathBuf,
    /// The user's own `server.toml`, for its policy.
    pub config: Option<PathBuf>,
}

/// A service inside this process. Its jobs are ended before it is dropped.
#[derive(Debug)]
pub struct LocalServer {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    pub token: SecretString,
    pub engine: Engine,
}

/// # Errors
/// No container engine and not `--unsandboxed`; an engine that doesn't start.
pub async fn start(options: LocalOptions, env: &Env) -> Result<LocalServer, CliError> {
    let config = match &options.config {
        Some(path) => ServerConfig::read(path)?,
        None => ServerConfig::default(),
    };
    let engine_options = EngineOptions {
        role: Role::All,
        data: options.data_dir,
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        unsandboxed: options.unsandboxed,
        behind_proxy: false,
        tls: None,
        config,
        operator_secrets: keys_of_agents(env),
        // Nobody logs in to it: its one client gets a token at once.
        on_owner_code: Box::new(drop),
    };
    let engine = Engine::start(engine_options, env).await?;
    let Some(api) = engine.api.clone() else { return Err(CliError::other("no_api", "the engine serves no API")) };
    let token = mint(&engine, api.owner).await?;
    Ok(LocalServer { url: api.url.as_str().to_owned(), token, engine })
}

/// A local job uses the keys that the user's own agents would: slot `anthropic-api-key` is `ANTHROPIC_API_KEY`.
fn keys_of_agents(env: &Env) -> BTreeMap<String, SecretString> {
    env.agent_keys.iter().map(|(name, value)| (name.to_ascii_lowercase().replace('_', "-"), value.clone())).collect()
}

async fn mint(engine: &Engine, owner: UserId) -> Result<SecretString, CliError> {
    let mut bytes = zeroize::Zeroizing::new([0_u8; 32]);
    rand::rng().fill_bytes(bytes.as_mut_slice());
    let token = SecretString::from(format!("{}{}", ckrv_api::ACCESS_PREFIX, hex::encode(bytes.as_slice())));
    let stored = AccessToken {
        sha256: hex::encode(Sha256::digest(token.expose_secret().as_bytes())),
        user: owner,
        family: "local".to_owned(),
        expires_at: ckrv_orchestrator::clock::now() + SignedDuration::from_hours(24 * 7),
    };
    engine
        .stores
        .accounts
        .put_access_token(&stored)
        .await
        .map_err(|error| CliError::other("store", "the local job's token can't be stored").source(error))?;
    Ok(token)
}
