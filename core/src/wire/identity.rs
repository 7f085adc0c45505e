//! Service tokens, logins, and their revocation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Timestamp;

/// What a service token may do. A login may do all that its user may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    #[serde(rename = "jobs:read")]
    JobsRead,
    #[serde(rename = "jobs:write")]
    JobsWrite,
    /// Git credentials and secrets, without their values.
    #[serde(rename = "credentials:read")]
    CredentialsRead,
    #[serde(rename = "credentials:write")]
    CredentialsWrite,
    #[serde(rename = "usage:read")]
    UsageRead,
    /// What an admin may; worth nothing to anybody else.
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    pub const ALL: [Self; 6] =
        [Self::JobsRead, Self::JobsWrite, Self::CredentialsRead, Self::CredentialsWrite, Self::UsageRead, Self::Admin];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobsRead => "jobs:read",
            Self::JobsWrite => "jobs:write",
            Self::CredentialsRead => "credentials:read",
            Self::CredentialsWrite => "credentials:write",
            Self::UsageRead => "usage:read",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or_else(|| format!("a scope is one of {}", all()))
    }
}

/// `POST /v1/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateServiceToken {
    /// For its owner to know it by; one line of 1 to 100 characters.
    #[schema(max_length = 100, pattern = r"^[^\s\x00-\x20\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$")]
    pub name: String,
    #[schema(min_items = 1)]
    pub scopes: Vec<Scope>,
    /// Days until it ends by itself; without it, it is good until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3650)]
    pub expires_in_days: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceTokenInfo {
    pub id: String,
    pub name: String,
    /// As they were given; `Scope` names those of this version.
    pub scopes: Vec<String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_used_at: Option<Timestamp>,
}

/// The one answer that holds the token itself.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedServiceToken {
    #[serde(flatten)]
    pub info: ServiceTokenInfo,
    /// Shown once, never again.
    pub token: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceTokenList {
    pub tokens: Vec<ServiceTokenInfo>,
}

/// A login of one client, with all tokens that came from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionInfo {
    pub id: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it last fetched new tokens.
    #[schema(value_type = String, format = DateTime)]
    pub renewed_at: Timestamp,
    /// When it ends, unless it is renewed before.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// The login that this very request came with.
    pub current: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionList {
    pub sessions: Vec<SessionInfo>,
}

/// `POST /v1/auth/revoke` (RFC 7009), as a form.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct RevokeRequest {
    /// A refresh token, an access token or a service token.
    #[schema(min_length = 1)]
    pub token: String,
    /// Taken and not needed: our tokens say themselves what they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_type_hint: Option<String>,
}

redacted_debug!(CreatedServiceToken, RevokeRequest);
