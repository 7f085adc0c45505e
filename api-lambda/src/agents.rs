//! `GET /v1/agents`

use axum::extract::State;
use ckrv_core::wire::AgentList;

use crate::extract::Caller;
use crate::state::ApiState;

/// The agents on offer.
#[utoipa::path(get, path = "/v1/agents", tag = "agents", responses((status = 200, body = AgentList)))]
pub(crate) async fn list_agents(State(state): State<ApiState>, _: Caller) -> axum::Json<AgentList> {
    axum::Json(AgentList { agents: state.agents.agents() })
}
