//! What a job runner is told when the gateway says no.

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use ckrv_store::{PutBlobError, ReferenceError, StoreError, VerbError};

use super::wire::Denial;

#[derive(Debug)]
pub(super) struct Denied(pub Denial);

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            Denial::Unauthorized => StatusCode::UNAUTHORIZED,
            Denial::Missing(_) => StatusCode::NOT_FOUND,
            Denial::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Denial::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Denial::Busy | Denial::Fault => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::CONFLICT,
        };
        if self.0 == Denial::Busy {
            return (status, [(RETRY_AFTER, "1")], Json(self.0)).into_response();
        }
        (status, Json(self.0)).into_response()
    }
}

impl From<StoreError> for Denied {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = ckrv_store::chain(&error), "the store failed a job runner's request");
        Self(Denial::Fault)
    }
}

impl From<PutBlobError> for Denied {
    fn from(error: PutBlobError) -> Self {
        match error {
            PutBlobError::Conflict(_) => Self(Denial::ArtifactConflict),
            PutBlobError::Store(error) => error.into(),
        }
    }
}

impl From<ReferenceError> for Denied {
    fn from(error: ReferenceError) -> Self {
        match error {
            ReferenceError::Store(error) => error.into(),
            ReferenceError::NotFound(name) => Self(Denial::Missing(format!("the secret `{name}` of the secrets manager"))),
            ReferenceError::Refused(_) => Self(Denial::Missing("the secret that a reference names".to_owned())),
        }
    }
}

impl From<VerbError> for Denied {
    fn from(error: VerbError) -> Self {
        match error {
            VerbError::NotFound => Self(Denial::Missing("the job".to_owned())),
            VerbError::Refused { refusal, .. } => Self(Denial::Refused(refusal)),
            VerbError::Store(error) => error.into(),
        }
    }
}
