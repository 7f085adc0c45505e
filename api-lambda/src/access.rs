//! Who is calling, and what their token may do: one rule for each group of endpoints, checked before a handler runs.

use axum::extract::MatchedPath;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use ckrv_core::wire::Scope;
use ckrv_store::{Role, User};

use crate::audit::{Origin, Who, audit};
use crate::auth::tokens;
use crate::error::ApiError;
use crate::middleware;
use crate::state::ApiState;

/// A good token's user, and what kind of token it was.
#[derive(Clone, Debug)]
pub(crate) struct Authenticated {
    pub user: User,
    pub token: Token,
}

#[derive(Clone, Debug)]
pub(crate) enum Token {
    /// Of a login: may do all that its user may.
    Login { family: String },
    Service {
        id: String,
        /// As stored; what this version does not know gives nothing.
        scopes: Vec<String>,
    },
}

impl Token {
    /// What the audit record says of it.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Login { family } => family,
            Self::Service { id, .. } => id,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    AnyToken,
    Scope(Scope),
    /// A login, never a service token.
    Login,
    /// An admin, and of a service token the scope `admin` too.
    Admin,
}

/// What an endpoint wants. An endpoint that nobody thought of here is for logins only.
fn need(method: &Method, route: &str) -> Need {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let group = route.strip_prefix("/v1/").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    match (group, is_read) {
        ("users" | "agents" | "workers", true) => Need::AnyToken,
        ("jobs", true) => Need::Scope(Scope::JobsRead),
        ("jobs", false) => Need::Scope(Scope::JobsWrite),
        ("credentials" | "secrets", true) => Need::Scope(Scope::CredentialsRead),
        ("credentials" | "secrets", false) => Need::Scope(Scope::CredentialsWrite),
        ("usage", true) => Need::Scope(Scope::UsageRead),
        ("admin", _) => Need::Admin,
        // Tokens and sessions among them: so no service token makes another, or one that may do more.
        _ => Need::Login,
    }
}

/// The caller, if the token is good and may do this. However many extractors ask, the store is read once.
pub(crate) async fn authorized(parts: &mut Parts, state: &ApiState) -> Result<Authenticated, ApiError> {
    if let Some(known) = parts.extensions.get::<Authenticated>() {
        return Ok(known.clone());
    }
    let Some(header) = parts.headers.get(header::AUTHORIZATION) else {
        return Err(ApiError::unauthorized(false));
    };
    let token = header.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let found = match token {
        Some(token) => tokens::authenticate(state, token).await?,
        None => None,
    };
    let caller = found.ok_or_else(|| ApiError::unauthorized(true))?;
    middleware::note_user(caller.user.id);
    let route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let need = need(&parts.method, &route);
    if let Err(error) = check(&caller, need) {
        if need == Need::Admin {
            let who = Who::new(&caller, Origin::of(parts, state));
            audit(state, &who, "admin.refuse", format!("{} {route}", parts.method)).await;
        }
        return Err(error);
    }
    parts.extensions.insert(caller.clone());
    Ok(caller)
}

fn check(caller: &Authenticated, need: Need) -> Result<(), ApiError> {
    let scope = match need {
        Need::AnyToken => return Ok(()),
        Need::Scope(scope) => Some(scope),
        Need::Login => None,
        Need::Admin => Some(Scope::Admin),
    };
    if let Token::Service { scopes, .. } = &caller.token
        && !scope.is_some_and(|scope| scopes.iter().any(|given| given == scope.as_str()))
    {
        return Err(insufficient_scope(scope));
    }
    if need == Need::Admin && caller.user.role != Role::Admin {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "admin_only", "Only an admin of this service may do that."));
    }
    Ok(())
}

/// 403 as RFC 6750 says it. `None`: no scope is enough.
fn insufficient_scope(scope: Option<Scope>) -> ApiError {
    let (detail, challenge) = match scope {
        Some(scope) => (
            format!("This service token does not have the scope `{scope}`."),
            format!("Bearer realm=\"ckrv\", error=\"insufficient_scope\", scope=\"{scope}\""),
        ),
        None => (
            "A service token may not do this; it takes a login.".to_owned(),
            "Bearer realm=\"ckrv\", error=\"insufficient_scope\"".to_owned(),
        ),
    };
    let error = ApiError::new(StatusCode::FORBIDDEN, "insufficient_scope", detail);
    let error = match scope {
        Some(scope) => error.hint(format!("make a token with `ckrv cloud tokens create NAME --scope {scope}`")),
        None => error.hint("log in with `ckrv cloud login`"),
    };
    match HeaderValue::from_str(&challenge) {
        Ok(challenge) => error.header(header::WWW_AUTHENTICATE, challenge),
        Err(_) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_is_for_logins_only() {
        for route in ["/v1/tokens", "/v1/sessions/{id}", "/v1/new", "", "/v1/users/me/x"] {
            assert_eq!(need(&Method::POST, route), Need::Login, "{route}");
        }
        assert_eq!(need(&Method::GET, "/v1/admin/users"), Need::Admin);
        assert_eq!(need(&Method::HEAD, "/v1/jobs/{id}"), Need::Scope(Scope::JobsRead));
        assert_eq!(need(&Method::DELETE, "/v1/secrets/{name}"), Need::Scope(Scope::CredentialsWrite));
    }
}
