//! The engine, and adapters loaded into it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ckrv_core::plan::{AdapterJob, ContainerRequest, Decision, Descriptor, PastRun};
use sha2::{Digest as _, Sha256};
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine};

use super::bindings::{AgentAdapter, AgentAdapterPre};
use super::cache::Cache;
use super::error::AdapterError;
use super::instance::{Instance, State, escaped};
use super::transcript::Transcript;

/// How often running adapters look at the clock.
pub(super) const TICK: Duration = Duration::from_millis(10);
/// What an adapter may import.
const ALLOWED_IMPORT: &str = "ckrv:agent/";

/// What one adapter may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of all memories of an instance together.
    pub memory_bytes: usize,
    /// Wall time of one call. Generous, because a busy machine is slow; a call of a real adapter takes microseconds.
    pub call_time: Duration,
    /// What one call may return.
    pub output_bytes: usize,
    /// An adapter's file.
    pub file_bytes: usize,
    /// Raw output that is kept for a replay after a trap.
    pub replay_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            call_time: Duration::from_secs(5),
            output_bytes: 8 << 20,
            file_bytes: 32 << 20,
            replay_bytes: 32 << 20,
        }
    }
}

/// One engine for all adapters of a process.
pub struct AdapterHost {
    engine: Engine,
    linker: Linker<State>,
    limits: Limits,
    cache: Option<Cache>,
}

impl fmt::Debug for AdapterHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterHost").field("limits", &self.limits).field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl AdapterHost {
    /// Starts the engine and its clock. With a folder, compiled code is kept there; a folder that cannot be used is only slower.
    ///
    /// # Errors
    /// [`AdapterError::Engine`] where this machine cannot run WebAssembly.
    pub fn new(limits: Limits, cache_dir: Option<PathBuf>) -> Result<Self, AdapterError> {
        let mut config = Config::new();
        config
            .wasm_component_model(true)
            .concurrency_support(false)
            .wasm_memory64(false)
            .wasm_relaxed_simd(false)
            // The same input gives the same output on every machine.
            .cranelift_nan_canonicalization(true)
            .epoch_interruption(true);
        let engine = Engine::new(&config).map_err(AdapterError::engine)?;
        let mut linker = Linker::new(&engine);
        AgentAdapter::add_to_linker::<_, HasSelf<_>>(&mut linker, |state: &mut State| state).map_err(AdapterError::engine)?;
        start_clock(&engine)?;
        let cache = cache_dir.and_then(|folder| match Cache::open(&folder) {
            Ok(cache) => Some(cache),
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "adapters are compiled each time, because their cache cannot be used");
                None
            }
        });
        Ok(Self { engine, linker, limits, cache })
    }

    /// Admits and compiles an adapter.
    ///
    /// # Errors
    /// [`AdapterError::RefusedImport`] names what it must not ask for; [`AdapterError::NotAnAdapter`] says what else is wrong.
    pub fn load(&self, bytes: &[u8]) -> Result<Adapter, AdapterError> {
        if bytes.len() > self.limits.file_bytes {
            return Err(AdapterError::FileTooLarge { bytes: bytes.len(), limit: self.limits.file_bytes });
        }
        let digest: [u8; 32] = Sha256::digest(bytes).into();
        let component = self.compile(bytes, &digest)?;
        for (name, _) in component.component_type().imports(&self.engine) {
            if !name.starts_with(ALLOWED_IMPORT) {
                return Err(AdapterError::RefusedImport(escaped(name)));
            }
        }
        let not_an_adapter = |error: wasmtime::Error| AdapterError::NotAnAdapter(escaped(&format!("{error:#}")));
        let pre = self.linker.instantiate_pre(&component).and_then(AgentAdapterPre::new).map_err(not_an_adapter)?;
        let digest: String = hex::encode(digest);
        Ok(Adapter { pre, digest: digest.into(), config: Arc::default(), limits: self.limits })
    }

    fn compile(&self, bytes: &[u8], digest: &[u8; 32]) -> Result<Component, AdapterError> {
        if let Some(found) = self.cache.as_ref().and_then(|cache| cache.get(&self.engine, digest)) {
            return Ok(found);
        }
        let component = Component::from_binary(&self.engine, bytes)
            .map_err(|error| AdapterError::NotAnAdapter(escaped(&format!("{error:#}"))))?;
        if let Some(cache) = &self.cache
            && let Err(error) = cache.put(&self.engine, digest, &component)
        {
            tracing::warn!(%error, "a compiled adapter could not be kept");
        }
        Ok(component)
    }
}

/// Adapters are stopped by a clock that ticks as long as the engine lives.
fn start_clock(engine: &Engine) -> Result<(), AdapterError> {
    let weak = engine.weak();
    let clock = move || {
        while let Some(engine) = weak.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    };
    std::thread::Builder::new()
        .name("adapter-clock".to_owned())
        .spawn(clock)
        .map(drop)
        .map_err(|error| AdapterError::Engine(error.into()))
}

/// A loaded adapter, with the operator's configuration. Cheap to clone; every call has an instance of its own.
#[derive(Clone)]
pub struct Adapter {
    pre: AgentAdapterPre<State>,
    digest: Arc<str>,
    config: Arc<BTreeMap<String, String>>,
    pub(super) limits: Limits,
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter").field("digest", &self.digest).field("config", &self.config).finish_non_exhaustive()
    }
}

impl Adapter {
    /// SHA-256 of the adapter's file, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The same adapter with this configuration.
    #[must_use]
    pub fn with_config(self, config: BTreeMap<String, String>) -> Self {
        Self { config: Arc::new(config), ..self }
    }

    pub(super) fn instance(&self) -> Result<Instance, AdapterError> {
        Instance::new(&self.pre, Arc::clone(&self.digest), Arc::clone(&self.config), &self.limits)
    }

    /// The most that it will ever ask for.
    ///
    /// # Errors
    /// Any of [`AdapterError`]'s.
    pub fn describe(&self) -> Result<Descriptor, AdapterError> {
        let found = self.instance()?.call("describe", |world, store| world.ckrv_agent_adapter().call_describe(store))?;
        let descriptor = Descriptor::from(found);
        let id = &descriptor.id;
        let fits = id.len() <= 32
            && id.starts_with(|c: char| c.is_ascii_lowercase())
            && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits { Ok(descriptor) } else { Err(AdapterError::NotAnAdapter(format!("`{}` is no name for an agent", escaped(id)))) }
    }

    /// Whether its configuration makes sense to it.
    ///
    /// # Errors
    /// [`AdapterError::InvalidConfig`] in the adapter's own words.
    pub fn validate_config(&self) -> Result<(), AdapterError> {
        let answer =
            self.instance()?.call("validate-config", |world, store| world.ckrv_agent_adapter().call_validate_config(store))?;
        Ok(answer?)
    }

    /// How it wants its agent to be started. A request: clamp it.
    ///
    /// # Errors
    /// Any of [`AdapterError`]'s.
    pub fn plan(&self, job: &AdapterJob) -> Result<ContainerRequest, AdapterError> {
        let job = job.into();
        let answer = self.instance()?.call("plan", |world, store| world.ckrv_agent_adapter().call_plan(store, &job))?;
        ContainerRequest::try_from(answer?)
    }

    /// A reader for one run's output.
    #[must_use]
    pub fn transcript(&self, job: &AdapterJob) -> Transcript {
        Transcript::new(self.clone(), job.clone())
    }

    /// What it advises after a run; `history` is oldest first and ends with the run that just finished. A failed verification is an entry
    /// too: phase verifying, outcome failure.
    ///
    /// # Errors
    /// Any of [`AdapterError`]'s.
    pub fn next(&self, job: &AdapterJob, history: &[PastRun]) -> Result<Decision, AdapterError> {
        let job = job.into();
        let history: Vec<_> = history.iter().map(Into::into).collect();
        let answer = self.instance()?.call("next", |world, store| world.ckrv_agent_adapter().call_next(store, &job, &history))?;
        Ok(answer?.into())
    }
}
