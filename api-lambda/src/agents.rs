//! `GET /v1/agents`, and what the built-in adapters say of themselves.

use std::collections::BTreeMap;

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

    /// With the operator's own, which are taken before built-in ones of the same name.
    #[must_use]
    pub fn with(own: &[AgentInfo]) -> Self {
        let all = Self::new().0.into_iter().chain(own.iter().cloned());
        let by_name: BTreeMap<_, _> = all.map(|agent| (agent.name.clone(), agent)).collect();
        Self(by_name.into_values().collect())
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

    #[test]
    fn an_operators_own_agent_is_listed_and_taken_before_a_built_in_one() {
        let own = |name: &str| AgentInfo {
            name: name.to_owned(),
            version: "9".to_owned(),
            display_name: "Own".to_owned(),
            image: None,
            secrets: Vec::new(),
        };
        let listed = BuiltinAgents::with(&[own("zebra"), own("claude")]).agents();
        let listed: Vec<_> = listed.iter().map(|agent| (agent.name.as_str(), agent.version == "9")).collect();
        assert_eq!(listed, [("claude", true), ("gemini", false), ("script", false), ("zebra", true)]);
    }
}
