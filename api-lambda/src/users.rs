//! `GET /v1/users/me`, and the embedded default's one user.

use axum::extract::State;
use ckrv_core::Timestamp;
use ckrv_core::id::UserId;
use ckrv_core::wire::{Tier, UserInfo};
use ckrv_store::{Role, StoreError, Stores, User};

use crate::config::month_of;
use crate::error::ApiError;
use crate::extract::Caller;
use crate::state::ApiState;

/// Who the token stands for.
#[utoipa::path(get, path = "/v1/users/me", tag = "users", responses((status = 200, body = UserInfo)))]
pub(crate) async fn get_me(State(state): State<ApiState>, Caller(user): Caller) -> Result<axum::Json<UserInfo>, ApiError> {
    let (month, billing_cycle_end) = month_of(state.now());
    let used = state.stores.accounts.quota_used(user.id, &month).await?;
    Ok(axum::Json(UserInfo {
        id: user.id.to_string(),
        email: user.email,
        name: user.name,
        subscription_tier: user.tier,
        job_quota_remaining: state.config.tiers.rule(user.tier).included.saturating_sub(used),
        billing_cycle_end,
    }))
}

/// The embedded default's owner: found, or made at the first start. Its tier is `tier` from then on.
///
/// # Errors
/// The store's.
pub async fn ensure_owner(stores: &Stores, tier: Tier, now: Timestamp) -> Result<User, StoreError> {
    if let Some(mut owner) = stores.accounts.users().await?.into_iter().min_by_key(|user| (user.created_at, user.id)) {
        if owner.tier != tier {
            owner.tier = tier;
            stores.accounts.put_user(&owner).await?;
        }
        return Ok(owner);
    }
    let owner = User {
        id: UserId(uuid::Uuid::now_v7()),
        email: "owner@localhost".to_owned(),
        name: "Owner".to_owned(),
        tier,
        role: Role::Admin,
        created_at: now,
        disabled: false,
    };
    stores.accounts.put_user(&owner).await?;
    Ok(owner)
}
