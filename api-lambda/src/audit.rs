//! The audit record: who changed what, when, from where.
//!
//! Invariant: a change is made first and recorded before its answer leaves. The other way round the record could tell of a change that never
//! was, and of its result (an id, a refusal) it could tell nothing. When the record can't be written the change stands, and the log gets
//! at level error what the record would have said: nobody is told that a change failed which did take place.

use std::convert::Infallible;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use ckrv_core::id::UserId;
use ckrv_store::AuditRecord;

use crate::access::{Authenticated, authorized};
use crate::error::{ApiError, chain};
use crate::middleware::RequestId;
use crate::state::ApiState;

/// For requests that come without a token.
pub(crate) const ANONYMOUS: &str = "anonymous";
const MAX_TARGET: usize = 200;

/// The other end of the connection. The listener puts it into each request as [`ConnectInfo`], and so does Lambda's front.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub IpAddr);

/// Where a request came from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    from: Option<IpAddr>,
    request_id: Option<String>,
}

impl Origin {
    pub(crate) fn of(parts: &Parts, state: &ApiState) -> Self {
        let peer = parts.extensions.get::<ConnectInfo<Peer>>().map(|info| info.0.0.to_canonical());
        let forwarded = if state.config.behind_proxy { forwarded_for(&parts.headers) } else { None };
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone());
        Self { from: forwarded.or(peer), request_id }
    }

    /// Somebody at this place, without a token of ours.
    pub(crate) fn who(&self, actor: impl Display, owner: Option<UserId>) -> Who {
        Who { actor: actor.to_string(), via: None, owner, origin: self.clone() }
    }
}

/// The last entry is the one that our own proxy added; what stands before it is the client's to invent.
fn forwarded_for(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?.rsplit(',').next()?.trim();
    let with_port = || last.parse::<SocketAddr>().ok().map(|address| address.ip());
    last.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

impl FromRequestParts<ApiState> for Origin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Infallible> {
        Ok(Self::of(parts, state))
    }
}

/// Who makes a change, by which token, from where, and whose thing it is.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub actor: String,
    pub via: Option<String>,
    pub owner: Option<UserId>,
    origin: Origin,
}

impl Who {
    pub(crate) fn new(caller: &Authenticated, origin: Origin) -> Self {
        let actor = caller.user.id.to_string();
        Self { actor, via: Some(caller.token.id().to_owned()), owner: Some(caller.user.id), origin }
    }

    pub(crate) fn via(self, token: &str) -> Self {
        Self { via: Some(token.to_owned()), ..self }
    }

    /// A thing of somebody else, which an admin may change.
    pub(crate) fn on(self, owner: UserId) -> Self {
        Self { owner: Some(owner), ..self }
    }
}

/// The caller; 401 and 403 as for [`crate::extract::Caller`].
impl FromRequestParts<ApiState> for Who {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let caller = authorized(parts, state).await?;
        Ok(Self::new(&caller, Origin::of(parts, state)))
    }
}

/// Records a change that was made.
pub(crate) async fn audit(state: &ApiState, who: &Who, action: &str, target: impl Display) {
    let target: String = target.to_string().chars().filter(|c| !c.is_control()).take(MAX_TARGET).collect();
    let record = AuditRecord {
        id: uuid::Uuid::now_v7().to_string(),
        at: state.now(),
        actor: who.actor.clone(),
        via: who.via.clone(),
        action: action.to_owned(),
        target,
        from: who.origin.from.map(|address| address.to_string()),
        request_id: who.origin.request_id.clone(),
        owner: who.owner,
    };
    if let Err(error) = state.stores.accounts.audit(&record).await {
        state.metrics.audit_failed();
        let AuditRecord { actor, via, action, target, from, .. } = &record;
        let error = chain(&error);
        tracing::error!(
            error,
            actor,
            ?via,
            action,
            target,
            ?from,
            "a change was made, and its audit record could not be written"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_forwarded_addresses_only_the_proxys_own_is_believed() {
        let parse = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            forwarded_for(&headers).map(|address| address.to_string())
        };
        assert_eq!(parse(&["6.6.6.6, 192.0.2.1"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(parse(&["6.6.6.6", "192.0.2.1:1234"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(parse(&["[2001:db8::1]:80"]).as_deref(), Some("2001:db8::1"));
        assert_eq!(parse(&["192.0.2.1, unknown"]), None);
        assert_eq!(parse(&[]), None);
    }
}
