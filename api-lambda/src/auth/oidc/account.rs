//! From an identity to a user of ours.

use ckrv_core::id::UserId;
use ckrv_store::{Login, Put, Role, User};

use super::claims::Identity;
use super::provider::Provider;
use crate::audit::{Origin, audit};
use crate::error::ApiError;
use crate::state::ApiState;

/// Why somebody whom the provider knows may not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NoEmail,
    EmailNotVerified,
    Domain,
    Disabled,
}

impl Refusal {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::NoEmail => "Your account at the identity provider has no e-mail address, and this service needs one.",
            Self::EmailNotVerified => {
                "Your identity provider has not verified your e-mail address. Verify it there, then try again."
            }
            Self::Domain => "Accounts of your e-mail domain may not use this service. Ask its operator.",
            Self::Disabled => "Your account was disabled. Ask the service's operator.",
        }
    }
}

/// The user of this identity, made at the first sign-in and brought up to date at each.
///
/// Found by issuer and subject, never by e-mail: an address can be given to somebody else, at this provider or at another.
pub(super) async fn sign_in(
    state: &ApiState,
    origin: &Origin,
    provider: &Provider,
    identity: Identity,
) -> Result<Result<User, Refusal>, ApiError> {
    let email = match admitted(provider, &identity) {
        Ok(email) => email,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let accounts = &state.stores.accounts;
    let login = Login { issuer: provider.config().issuer.clone(), subject: identity.subject.clone() };
    let id = match accounts.user_by_login(&login).await? {
        Some(id) => id,
        None => link(state, &login).await?,
    };
    // The link comes first, so that two first sign-ins at once make one user; one whose maker died in between is made now.
    let found = accounts.user(id).await?;
    let old = found.clone().unwrap_or_else(|| User {
        id,
        email: String::new(),
        name: String::new(),
        tier: state.config.new_user_tier,
        role: Role::User,
        created_at: state.now(),
        disabled: false,
    });
    let role = provider.config().admin_group.as_ref().map(|group| match identity.groups.contains(group) {
        true => Role::Admin,
        false => Role::User,
    });
    let name = identity.name.unwrap_or_else(|| email.clone());
    let user = User { email, name: name.chars().take(200).collect(), role: role.unwrap_or(old.role), ..old.clone() };
    if user.disabled {
        return Ok(Err(Refusal::Disabled));
    }
    if found.as_ref() != Some(&user) {
        accounts.put_user(&user).await?;
        let action = if found.is_some() { "user.update" } else { "user.create" };
        let role = format!("{:?}", user.role).to_lowercase();
        audit(state, &origin.who(id, Some(id)), action, format!("{id} by {} role={role}", provider.name())).await;
    }
    Ok(Ok(user))
}

async fn link(state: &ApiState, login: &Login) -> Result<UserId, ApiError> {
    let id = UserId(uuid::Uuid::now_v7());
    if state.stores.accounts.link_login(login, id).await? == Put::Done {
        return Ok(id);
    }
    let winner = state.stores.accounts.user_by_login(login).await?;
    winner.ok_or_else(|| ApiError::internal("a login is linked, and with nobody"))
}

fn admitted(provider: &Provider, identity: &Identity) -> Result<String, Refusal> {
    let email = identity.email.clone().filter(|email| email.len() <= 320).ok_or(Refusal::NoEmail)?;
    if !identity.email_verified {
        return Err(Refusal::EmailNotVerified);
    }
    let Some(allowed) = &provider.config().allowed_domains else { return Ok(email) };
    // The part behind the last `@`: a quoted local part may hold one too.
    let domain = email.rsplit_once('@').map(|(_, domain)| domain).ok_or(Refusal::Domain)?;
    match allowed.iter().any(|entry| entry.eq_ignore_ascii_case(domain)) {
        true => Ok(email),
        false => Err(Refusal::Domain),
    }
}
