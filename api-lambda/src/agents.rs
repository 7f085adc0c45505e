//! `GET /v1/agents`, and what the built-in adapters say of themselves.

use axum::extract::State;
use ckrv_core::wire::{AgentInfo, AgentList};

use crate::extract::Caller;
use crate::state::{AgentCatalog, ApiState};

/// The agents on offer.
#[utoipa::path(get, path = "/v1/agents", tag = "agents", responses((status = 200, body = AgentList)))]
pub(crate) async fn list_agents(State(state): State<ApiState>, _: Caller) -> axum::Json<AgentList> {
    axum::Json(AgentList { agents: state.agents.agents() })
}

/// The built-in adapters, described when they were built: for a server that has no WebAssembly in it. `ckrv internal agent-catalog`
/// writes the file.
#[derive(Debug)]
pub struct BuiltinAgents(Vec<AgentInfo>);

impl BuiltinAgents {
    #[must_use]
    pub fn new() -> Self {
        let file = include_str!("../../agents-wasm/prebuilt/agents.json");
        Self(serde_json::from_str::<AgentList>(file).map(|list| list.agents).unwrap_or_default())
    }
}

impl Default for BuiltinAgents {
    fn default() -> Self {
        Self::new()
    }
}

impl AgentCatalog for BuiltinAgents {
    fn agents(&self) -> Vec<AgentInfo> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_built_in_agents_can_be_read() {
        assert!(BuiltinAgents::new().agent("claude").is_some());
    }
}
