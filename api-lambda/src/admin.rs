//! `/v1/admin`: users and audit records, for admins.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use ckrv_core::Timestamp;
use ckrv_core::id::UserId;
use ckrv_core::wire::{Problem, Tier};
use ckrv_store::{AuditRecord, Role, User};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::audit::{Who, audit};
use crate::error::ApiError;
use crate::extract::{Caller, Json, Name, Query, require_accept};
use crate::state::ApiState;

const LINES: &str = "application/x-ndjson";

#[derive(Serialize, ToSchema)]
pub(crate) struct AdminUser {
    id: String,
    email: String,
    name: String,
    tier: Tier,
    /// `user` or `admin`.
    #[schema(value_type = String)]
    role: Role,
    /// No token of this user is good.
    disabled: bool,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<User> for AdminUser {
    fn from(user: User) -> Self {
        let User { id, email, name, tier, role, created_at, disabled } = user;
        Self { id: id.to_string(), email, name, tier, role, disabled, created_at }
    }
}

#[derive(Serialize, ToSchema)]
pub(crate) struct AdminUserList {
    users: Vec<AdminUser>,
}

/// What is left out stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateUser {
    disabled: Option<bool>,
    tier: Option<Tier>,
    /// `user` or `admin`. Where the identity provider's group decides, the next sign-in sets it anew.
    #[schema(value_type = Option<String>, pattern = "^(user|admin)$")]
    role: Option<Role>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditParams {
    /// `yyyy-mm-dd`, UTC; today by default.
    #[param(value_type = Option<String>, format = Date)]
    day: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct AuditList {
    day: String,
    #[schema(value_type = Vec<Object>)]
    records: Vec<AuditRecord>,
}

/// All users, by name.
#[utoipa::path(get, path = "/v1/admin/users", tag = "admin",
    responses((status = 200, body = AdminUserList), (status = 403, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list_users(State(state): State<ApiState>, _: Caller) -> Result<axum::Json<AdminUserList>, ApiError> {
    let mut users = state.stores.accounts.users().await?;
    users.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
    Ok(axum::Json(AdminUserList { users: users.into_iter().map(AdminUser::from).collect() }))
}

/// Disables a user, which ends all tokens at once, or changes tier or role.
#[utoipa::path(post, path = "/v1/admin/users/{id}", tag = "admin", params(("id" = String, Path)), request_body = UpdateUser,
    responses((status = 200, body = AdminUser), (status = 403, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"), (status = 422, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn update_user(
    State(state): State<ApiState>,
    Caller(admin): Caller,
    who: Who,
    Name(id): Name,
    Json(change): Json<UpdateUser>,
) -> Result<axum::Json<AdminUser>, ApiError> {
    let found = match id.parse::<UserId>().ok() {
        Some(id) => state.stores.accounts.user(id).await?,
        None => None,
    };
    let user = found.ok_or_else(|| ApiError::not_found("user_not_found", "There is no user of that id."))?;
    if user.id == admin.id && (change.disabled == Some(true) || change.role == Some(Role::User)) {
        return Err(ApiError::invalid("own_account", "You can't disable yourself or give up your own role.")
            .hint("ask another admin, so that there always is one"));
    }
    let changed = User {
        disabled: change.disabled.unwrap_or(user.disabled),
        tier: change.tier.unwrap_or(user.tier),
        role: change.role.unwrap_or(user.role),
        ..user.clone()
    };
    if changed != user {
        state.stores.accounts.put_user(&changed).await?;
        let what = describe(&user, &changed);
        audit(&state, &who.on(user.id), "user.update", format!("{} {what}", user.id)).await;
    }
    Ok(axum::Json(changed.into()))
}

fn describe(old: &User, new: &User) -> String {
    let mut parts = Vec::new();
    if old.disabled != new.disabled {
        parts.push(if new.disabled { "disabled".to_owned() } else { "enabled".to_owned() });
    }
    if old.tier != new.tier {
        parts.push(format!("tier={:?}", new.tier).to_lowercase());
    }
    if old.role != new.role {
        parts.push(format!("role={:?}", new.role).to_lowercase());
    }
    parts.join(" ")
}

/// Who changed what on a day, oldest first. With `Accept: application/x-ndjson` one record a line.
#[utoipa::path(get, path = "/v1/admin/audit", tag = "admin", params(AuditParams),
    responses((status = 200, content((AuditList = "application/json"), (String = "application/x-ndjson"))),
        (status = 403, body = Problem, content_type = "application/problem+json"), (status = 422, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn read_audit(
    State(state): State<ApiState>,
    headers: HeaderMap,
    _: Caller,
    Query(params): Query<AuditParams>,
) -> Result<Response, ApiError> {
    require_accept(&headers, &["application/json", LINES])?;
    let day = match params.day {
        Some(day) => day,
        None => state.now().to_zoned(jiff::tz::TimeZone::UTC).date().to_string(),
    };
    // Only in the one form in which the store keeps it.
    if day.parse::<jiff::civil::Date>().ok().is_none_or(|date| date.to_string() != day) {
        return Err(ApiError::invalid("invalid_day", "`day` must be a day as `yyyy-mm-dd`."));
    }
    let records = state.stores.accounts.audit_of(&day).await?;
    let wants_lines = headers.get(header::ACCEPT).is_some_and(|value| value.as_bytes().starts_with(LINES.as_bytes()));
    if !wants_lines {
        return Ok(axum::Json(AuditList { day, records }).into_response());
    }
    let mut text = String::new();
    for record in &records {
        text.push_str(&serde_json::to_string(record).map_err(ApiError::internal)?);
        text.push('\n');
    }
    Ok(([(header::CONTENT_TYPE, LINES)], text).into_response())
}
