//! Access and refresh tokens: opaque, 256 bits, kept only as hashes.

use ckrv_core::id::UserId;
use ckrv_core::wire::TokenResponse;
use ckrv_store::{AccessToken, PreviousRefresh, RefreshFamily, User};
use jiff::{SignedDuration, Timestamp};

use crate::auth::keys;
use crate::error::ApiError;
use crate::state::ApiState;

/// What every access token begins with, so that one in a log or a commit is recognised.
pub const ACCESS_PREFIX: &str = "ckrv_at_";
const REFRESH_PREFIX: &str = "ckrv_rt_";
const MAX_TOKEN_BYTES: usize = 512;

/// The user whose good access token this is.
pub(crate) async fn user_of(state: &ApiState, token: &str) -> Result<Option<User>, ApiError> {
    if token.len() > MAX_TOKEN_BYTES || !token.starts_with(ACCESS_PREFIX) {
        return Ok(None);
    }
    let found = state.stores.accounts.access_token(&keys::sha256_hex(token.as_bytes())).await?;
    match found {
        Some(access) if state.now() < access.expires_at => Ok(state.stores.accounts.user(access.user).await?),
        _ => Ok(None),
    }
}

/// Begins a refresh family: one login of one client.
pub(crate) async fn issue(state: &ApiState, user: UserId) -> Result<TokenResponse, ApiError> {
    let now = state.now();
    let family = uuid::Uuid::new_v4().simple().to_string();
    let refresh = format!("{REFRESH_PREFIX}{family}.{}", keys::random_token());
    let access = format!("{ACCESS_PREFIX}{}", keys::random_token());
    let record = RefreshFamily {
        id: family.clone(),
        user,
        current_sha256: keys::sha256_hex(refresh.as_bytes()),
        previous: None,
        created_at: now,
        expires_at: now + seconds(state.config.refresh_ttl_seconds),
        revoked: false,
    };
    state.stores.accounts.put_family(&record).await?;
    let expires_at = now + seconds(state.config.access_ttl_seconds);
    answer(state, &record, access, refresh, expires_at).await
}

/// Exchanges a refresh token. Its successors are derived from it, so that the same token within the grace gives the same pair
/// to a client that lost the first answer; later it has been stolen, by one side or the other, and the whole family ends.
pub(crate) async fn rotate(state: &ApiState, token: &str) -> Result<TokenResponse, ApiError> {
    let id = token.strip_prefix(REFRESH_PREFIX).and_then(|rest| rest.split_once('.')).map(|(id, _)| id);
    let Some(id) = id.filter(|id| id.len() == 32 && token.len() <= MAX_TOKEN_BYTES) else {
        return Err(invalid_grant());
    };
    let presented = keys::sha256_hex(token.as_bytes());
    // Twice at most: a family that was rotated between read and write has this token as its previous one then.
    for _ in 0..2 {
        let now = state.now();
        let Some(family) = state.stores.accounts.family(id).await? else { return Err(invalid_grant()) };
        if family.revoked || now >= family.expires_at {
            return Err(invalid_grant());
        }
        let (access, refresh) = successors(state, id, token);
        if keys::same(presented.as_bytes(), family.current_sha256.as_bytes()) {
            let access_expires_at = now + seconds(state.config.access_ttl_seconds);
            let next = RefreshFamily {
                current_sha256: keys::sha256_hex(refresh.as_bytes()),
                previous: Some(PreviousRefresh { sha256: presented.clone(), rotated_at: now, access_expires_at }),
                expires_at: now + seconds(state.config.refresh_ttl_seconds),
                ..family
            };
            if state.stores.accounts.rotate_family(&next, &presented).await? {
                return answer(state, &next, access, refresh, access_expires_at).await;
            }
            continue;
        }
        if let Some(previous) = &family.previous
            && keys::same(presented.as_bytes(), previous.sha256.as_bytes())
            && now.duration_since(previous.rotated_at) <= seconds(state.config.refresh_grace_seconds)
        {
            return answer(state, &family, access, refresh, previous.access_expires_at).await;
        }
        tracing::warn!(user = %family.user, "a used refresh token was presented: its login is revoked");
        state.stores.accounts.revoke_family(id).await?;
        return Err(invalid_grant());
    }
    Err(ApiError::internal("a refresh family changed twice while its token was exchanged"))
}

fn successors(state: &ApiState, family: &str, token: &str) -> (String, String) {
    let derive = |purpose| keys::token_text(&keys::keyed(&state.config.hmac_key, purpose, token));
    (
        format!("{ACCESS_PREFIX}{}", derive("access-successor")),
        format!("{REFRESH_PREFIX}{family}.{}", derive("refresh-successor")),
    )
}

async fn answer(
    state: &ApiState,
    family: &RefreshFamily,
    access: String,
    refresh: String,
    expires_at: Timestamp,
) -> Result<TokenResponse, ApiError> {
    // Also when the pair is given again: the first try may have ended before this.
    let token =
        AccessToken { sha256: keys::sha256_hex(access.as_bytes()), user: family.user, family: family.id.clone(), expires_at };
    state.stores.accounts.put_access_token(&token).await?;
    let left = expires_at.duration_since(state.now()).as_secs().max(0);
    Ok(TokenResponse {
        access_token: access,
        refresh_token: refresh,
        token_type: "Bearer".to_owned(),
        expires_in: u32::try_from(left).unwrap_or(u32::MAX),
    })
}

fn invalid_grant() -> ApiError {
    ApiError::oauth("invalid_grant", "The refresh token is not valid, has expired or was revoked.")
        .hint("log in again with `ckrv cloud login`")
}

pub(crate) fn seconds(count: u32) -> SignedDuration {
    SignedDuration::from_secs(i64::from(count))
}
