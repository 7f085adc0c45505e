//! Who an identity provider says that somebody is.

use openidconnect::AdditionalClaims;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::OidcConfig;

/// Every claim, whatever its name: which of them we need is configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct AnyClaims(pub Map<String, Value>);

impl AdditionalClaims for AnyClaims {}

/// Verified: it comes from an ID token of ours, or from the provider's own endpoint for the same subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub subject: String,
    pub email: Option<String>,
    pub email_verified: bool,
    pub name: Option<String>,
    pub groups: Vec<String>,
}

impl Identity {
    pub(super) fn read(subject: &str, claims: &Map<String, Value>, config: &OidcConfig) -> Self {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
        let groups = match claims.get(&config.group_claim) {
            Some(Value::Array(groups)) => groups.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::String(group)) => vec![group.clone()],
            _ => Vec::new(),
        };
        Self {
            subject: subject.to_owned(),
            email: text(&config.email_claim).map(str::to_owned),
            // Some providers send a string. Anything but true is not true.
            email_verified: matches!(claims.get("email_verified"), Some(Value::Bool(true)))
                || text("email_verified") == Some("true"),
            name: text("name").or_else(|| text("preferred_username")).map(str::to_owned),
            groups,
        }
    }
}

/// Whether these claims leave nothing to ask for.
pub(super) fn is_complete(claims: &Map<String, Value>, config: &OidcConfig) -> bool {
    let has = |name: &str| claims.contains_key(name);
    has(&config.email_claim) && has("email_verified") && (config.admin_group.is_none() || has(&config.group_claim))
}
