//! Refusals in the API server's own words: an object `Status`.

use bytes::Bytes;
use hyper::{Response, StatusCode, header};
use serde_json::{Value, json};

use super::Refusal;

impl Refusal {
    pub(super) fn answer(self) -> Result<Response<Bytes>, hyper::http::Error> {
        let (code, reason, message) = match self {
            Self::Conflict => (
                StatusCode::CONFLICT,
                "Conflict",
                "Operation cannot be fulfilled on resourcequotas \"ckrv\": the object has been modified; please apply your changes to the latest version and try again",
            ),
            Self::TooManyRequests => {
                (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "too many requests, please try again later")
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "Internal error occurred: by a rule"),
        };
        let mut response = Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
        if self == Self::TooManyRequests {
            response = response.header(header::RETRY_AFTER, "1");
        }
        response.body(status(code.as_u16(), reason, message).to_string().into())
    }
}

/// The last event of a watch whose resource version the API server has forgotten.
pub(super) fn expired() -> Bytes {
    let event = json!({ "type": "ERROR", "object": status(410, "Expired", "too old resource version: 1 (2)") });
    format!("{event}\n").into()
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code })
}
