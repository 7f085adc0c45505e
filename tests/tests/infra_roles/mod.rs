//! What `full_infra_roles.rs` stands on: a deployment of its own, and the table of calls.

pub mod calls;
pub mod scene;
