//! What can go wrong with an adapter.

use super::bindings::ckrv::agent::types;
use super::instance::escaped;
use super::limiter::Budget;

/// An adapter that cannot be loaded, or a call of it that gave nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    #[error("this is not an adapter for this version of ckrv: {0}")]
    NotAnAdapter(String),
    #[error("the adapter asks for `{0}`; an adapter may import `ckrv:agent/*` only, so it has to be built without WASI")]
    RefusedImport(String),
    #[error("the adapter's file has {bytes} bytes; at most {limit} are loaded")]
    FileTooLarge { bytes: usize, limit: usize },
    #[error("the adapter trapped in `{call}`: {detail}")]
    Trap { call: &'static str, detail: String },
    #[error("the adapter took more than {limit_ms} ms in `{call}` and was stopped")]
    OutOfTime { call: &'static str, limit_ms: u128 },
    #[error("the adapter needed more than {limit_mib} MiB of memory in `{call}` and was stopped")]
    OutOfMemory { call: &'static str, limit_mib: usize },
    #[error("the adapter returned more than {limit} bytes from `{call}`")]
    OutputTooLarge { call: &'static str, limit: usize },
    /// The operator's configuration or the job is wrong; the adapter says how.
    #[error("{0}")]
    InvalidConfig(String),
    /// The adapter cannot do what the job asks.
    #[error("the adapter cannot do this: {0}")]
    Unsupported(String),
    #[error("the adapter could not make sense of the agent's output: {0}")]
    Malformed(String),
    #[error("the adapter reports a fault of its own: {0}")]
    Internal(String),
    /// The engine itself failed; no fault of the adapter.
    #[error("the WebAssembly engine failed")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl AdapterError {
    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAnAdapter(_) => "adapter-not-an-adapter",
            Self::RefusedImport(_) => "adapter-refused-import",
            Self::FileTooLarge { .. } => "adapter-file-too-large",
            Self::Trap { .. } => "adapter-trap",
            Self::OutOfTime { .. } => "adapter-out-of-time",
            Self::OutOfMemory { .. } => "adapter-out-of-memory",
            Self::OutputTooLarge { .. } => "adapter-output-too-large",
            Self::InvalidConfig(_) => "adapter-invalid-config",
            Self::Unsupported(_) => "adapter-unsupported",
            Self::Malformed(_) => "adapter-malformed",
            Self::Internal(_) => "adapter-internal",
            Self::Engine(_) => "adapter-engine",
        }
    }

    pub(super) fn engine(error: wasmtime::Error) -> Self {
        Self::Engine(error.into())
    }

    /// What ended a call, from what the store saw.
    pub(super) fn of_call(call: &'static str, error: &wasmtime::Error, budget: &Budget) -> Self {
        if budget.exceeded {
            return Self::OutOfMemory { call, limit_mib: budget.limit >> 20 };
        }
        if let Some(wasmtime::Trap::Interrupt) = error.downcast_ref::<wasmtime::Trap>() {
            return Self::OutOfTime { call, limit_ms: budget.call_time.as_millis() };
        }
        // Its type is private to wasmtime; a test holds this text to what wasmtime says.
        if error.chain().any(|cause| cause.to_string().contains("fuel allocated for hostcalls has been exhausted")) {
            return Self::OutputTooLarge { call, limit: budget.output_bytes };
        }
        let last_words = budget.last_error.clone().unwrap_or_default();
        let detail = if last_words.is_empty() { error.root_cause().to_string() } else { last_words };
        Self::Trap { call, detail }
    }
}

impl From<types::Error> for AdapterError {
    fn from(error: types::Error) -> Self {
        match error {
            types::Error::InvalidConfig(text) => Self::InvalidConfig(escaped(&text)),
            types::Error::Unsupported(text) => Self::Unsupported(escaped(&text)),
            types::Error::MalformedOutput(text) => Self::Malformed(escaped(&text)),
            types::Error::Internal(text) => Self::Internal(escaped(&text)),
        }
    }
}
