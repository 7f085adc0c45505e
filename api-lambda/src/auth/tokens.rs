//! Access and refresh tokens: opaque, 256 bits, kept only as hashes.

use ckrv_core::id::UserId;
use ckrv_core::wire::TokenResponse;
use ckrv_store::{AccessToken, PreviousRefresh, RefreshFamily, ServiceToken, User};
use jiff::{SignedDuration, Timestamp};

use crate::access::{Authenticated, Token};
use crate::audit::{ANONYMOUS, Origin, audit};
use crate::auth::keys;
use crate::error::{ApiError, chain};
use crate::state::ApiState;

/// What every access token begins with, so that one in a log or a commit is recognised.
pub const ACCESS_PREFIX: &str = "ckrv_at_";
/// The same of service tokens.
pub const SERVICE_PREFIX: &str = "ckrv_st_";
const REFRESH_PREFIX: &str = "ckrv_rt_";
const MAX_TOKEN_BYTES: usize = 512;

/// Whose good token this is. A disabled user has none, whatever the store still holds.
pub(crate) async fn authenticate(state: &ApiState, token: &str) -> Result<Option<Authenticated>, ApiError> {
    let found = match token {
        token if token.len() > MAX_TOKEN_BYTES => None,
        token if token.starts_with(ACCESS_PREFIX) => of_login(state, token).await?,
        token if token.starts_with(SERVICE_PREFIX) => of_service(state, token).await?,
        _ => None,
    };
    let Some((owner, token)) = found else { return Ok(None) };
    Ok(good_user(state, owner).await?.map(|user| Authenticated { user, token }))
}

async fn of_login(state: &ApiState, token: &str) -> Result<Option<(UserId, Token)>, ApiError> {
    let found = state.stores.accounts.access_token(&keys::sha256_hex(token.as_bytes())).await?;
    let access = found.filter(|access| state.now() < access.expires_at);
    Ok(access.map(|access| (access.user, Token::Login { family: access.family })))
}

async fn of_service(state: &ApiState, token: &str) -> Result<Option<(UserId, Token)>, ApiError> {
    let now = state.now();
    let found = state.stores.accounts.service_token(&keys::sha256_hex(token.as_bytes())).await?;
    let Some(service) = found.filter(|service| service.expires_at.is_none_or(|end| now < end)) else { return Ok(None) };
    // Nice to know, but no reason to refuse what is good.
    if let Err(error) = state.stores.accounts.service_token_used(&service, now).await {
        tracing::warn!(error = chain(&error), token = service.id, "a service token's use could not be noted");
    }
    Ok(Some((service.owner, Token::Service { id: service.id, scopes: service.scopes })))
}

/// A user who may have tokens.
pub(crate) async fn good_user(state: &ApiState, id: UserId) -> Result<Option<User>, ApiError> {
    Ok(state.stores.accounts.user(id).await?.filter(|user| !user.disabled))
}

/// What a token that somebody holds would end.
pub(crate) enum Revocable {
    Family(RefreshFamily),
    Service(ServiceToken),
}

pub(crate) async fn revocable(state: &ApiState, token: &str) -> Result<Option<Revocable>, ApiError> {
    let accounts = &state.stores.accounts;
    let sha256 = keys::sha256_hex(token.as_bytes());
    if token.len() > MAX_TOKEN_BYTES {
        return Ok(None);
    }
    if token.starts_with(SERVICE_PREFIX) {
        return Ok(accounts.service_token(&sha256).await?.map(Revocable::Service));
    }
    let family = if token.starts_with(ACCESS_PREFIX) {
        match accounts.access_token(&sha256).await? {
            Some(access) => accounts.family(&access.family).await?,
            None => None,
        }
    } else {
        match family_id(token) {
            Some(id) => accounts.family(id).await?.filter(|family| is_of(family, &sha256)),
            None => None,
        }
    };
    Ok(family.filter(|family| !family.revoked).map(Revocable::Family))
}

/// The refresh token that is good now, or the one before it.
fn is_of(family: &RefreshFamily, sha256: &str) -> bool {
    let previous = family.previous.as_ref().is_some_and(|previous| keys::same(previous.sha256.as_bytes(), sha256.as_bytes()));
    previous || keys::same(family.current_sha256.as_bytes(), sha256.as_bytes())
}

/// Which login a refresh token says that it is of.
fn family_id(token: &str) -> Option<&str> {
    let (id, _) = token.strip_prefix(REFRESH_PREFIX)?.split_once('.')?;
    (id.len() == 32 && token.len() <= MAX_TOKEN_BYTES).then_some(id)
}

/// Begins a refresh family: one login of one client.
pub(crate) async fn issue(state: &ApiState, user: UserId, client: &str, origin: &Origin) -> Result<TokenResponse, ApiError> {
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
    audit(state, &origin.who(user, Some(user)).via(&family), "token.issue", client).await;
    let expires_at = now + seconds(state.config.access_ttl_seconds);
    answer(state, &record, access, refresh, expires_at).await
}

/// Exchanges a refresh token. Its successors are derived from it, so that the same token within the grace gives the same pair
/// to a client that lost the first answer; later it has been stolen, by one side or the other, and the whole family ends.
pub(crate) async fn rotate(state: &ApiState, token: &str, origin: &Origin) -> Result<TokenResponse, ApiError> {
    let Some(id) = family_id(token) else { return Err(invalid_grant()) };
    let presented = keys::sha256_hex(token.as_bytes());
    // Twice at most: a family that was rotated between read and write has this token as its previous one then.
    for _ in 0..2 {
        let now = state.now();
        let Some(family) = state.stores.accounts.family(id).await? else { return Err(invalid_grant()) };
        if family.revoked || now >= family.expires_at || good_user(state, family.user).await?.is_none() {
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
        // Which of the two who hold it is the thief, nobody can tell.
        audit(state, &origin.who(ANONYMOUS, Some(family.user)).via(id), "token.reuse", id).await;
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
