//! The table of contents.

use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi as _;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::state::ApiState;
use crate::{
    admin, agents, artifacts, auth, credentials, health, jobs, ledger, middleware, secrets, service_tokens, sessions, usage,
    users, webhooks, workers,
};

/// A spec of 256 KiB whose every character is escaped, and the rest of the request.
const JOB_BODY: usize = 2 * 1024 * 1024;
/// A credential of 64 KiB, escaped.
const CREDENTIAL_BODY: usize = 512 * 1024;
const SMALL_BODY: usize = 16 * 1024;

/// The whole service, ready to be served.
pub fn router(state: ApiState) -> axum::Router {
    let (router, _) = routes().split_for_parts();
    router
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn_with_state(state.clone(), middleware::frame))
        .with_state(state)
}

/// The OpenAPI 3.1 document of [`router`].
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    crate::document::complete(routes().into_openapi())
}

fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(base_document())
        .merge(json_routes())
        // Each of these says by itself which media types it has.
        .routes(routes!(jobs::logs::read_logs))
        .routes(routes!(artifacts::get_diff))
        .routes(routes!(artifacts::get_transcript))
        .routes(routes!(artifacts::get_log))
        .routes(routes!(artifacts::get_manifest))
        .routes(routes!(ledger::get_ledger))
        .routes(routes!(auth::activate::show_activation, auth::activate::submit_activation).map_body(SMALL_BODY))
        .routes(routes!(auth::oidc::pages::start_sign_in).map_body(SMALL_BODY))
        .routes(routes!(auth::oidc::pages::finish_sign_in))
        .routes(routes!(auth::oidc::pages::show_confirmation, auth::oidc::pages::submit_confirmation).map_body(SMALL_BODY))
        .routes(routes!(admin::read_audit))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::show_status))
}

fn json_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(auth::device::start_device_login).map_body(SMALL_BODY))
        .routes(routes!(auth::device::fetch_token).map_body(SMALL_BODY))
        .routes(routes!(auth::refresh::refresh_token).map_body(SMALL_BODY))
        .routes(routes!(auth::revoke::revoke_token).map_body(SMALL_BODY))
        .routes(routes!(users::get_me))
        .routes(routes!(service_tokens::list_tokens, service_tokens::create_token).map_body(SMALL_BODY))
        .routes(routes!(service_tokens::delete_token))
        .routes(routes!(sessions::list_sessions))
        .routes(routes!(sessions::delete_session))
        .routes(routes!(admin::list_users))
        .routes(routes!(admin::update_user).map_body(SMALL_BODY))
        .routes(routes!(credentials::list_credentials, credentials::create_credential).map_body(CREDENTIAL_BODY))
        .routes(routes!(credentials::delete_credential))
        .routes(routes!(secrets::list_secrets, secrets::create_secret).map_body(CREDENTIAL_BODY))
        .routes(routes!(secrets::delete_secret))
        .routes(routes!(jobs::list::list_jobs, jobs::create::create_job).map_body(JOB_BODY))
        .routes(routes!(jobs::read::get_job))
        .routes(routes!(jobs::change::cancel_job))
        .routes(routes!(jobs::change::retry_job))
        .routes(routes!(artifacts::list_artifacts))
        .routes(routes!(agents::list_agents))
        .routes(routes!(workers::list_workers))
        .routes(routes!(health::get_openapi))
        .routes(routes!(usage::get_usage))
        .routes(routes!(webhooks::get_webhook_secret))
        .layer(from_fn(middleware::json_only))
}

/// Sets the body limit of one group of methods.
trait MapBody {
    fn map_body(self, bytes: usize) -> Self;
}

impl MapBody for utoipa_axum::router::UtoipaMethodRouter<ApiState> {
    fn map_body(self, bytes: usize) -> Self {
        let (schemas, paths, methods) = self;
        (schemas, paths, methods.layer(DefaultBodyLimit::max(bytes)))
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "ckrv", version = "1", description = "Runs coding-agent jobs somewhere else. Errors are RFC 9457 problems.", license(name = "Apache-2.0")),
    components(schemas(ckrv_core::wire::Problem)),
    security(("bearer" = []))
)]
struct Base;

fn base_document() -> utoipa::openapi::OpenApi {
    let mut document = Base::openapi();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()));
    document
}
