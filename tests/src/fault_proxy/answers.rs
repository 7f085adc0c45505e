//! Errors in the services' own words: JSON 1.0 with `__type` for DynamoDB and its like, XML for S3.

use anyhow::Result;
use bytes::Bytes;
use hyper::{Response, StatusCode, header};
use serde_json::{Value, json};

use super::Asked;

/// An error that a stand-in never makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceError {
    /// DynamoDB's `ProvisionedThroughputExceededException`; S3's `SlowDown`.
    ThroughputExceeded,
    /// `ThrottlingException`; S3's `SlowDown`.
    Throttling,
    /// Status 500. The real service may have carried the request out all the same: see `CommitThenCut`.
    Internal,
    /// Another transaction has one of the items: `TransactionCanceledException` with a reason for each item, and
    /// `TransactionConflictException` where the request itself is none.
    TransactionConflict,
}

impl ServiceError {
    pub(super) fn answer(self, asked: &Asked, request: &Bytes) -> Result<Response<Bytes>> {
        let response = Response::builder().status(self.status(asked.has_target));
        if asked.has_target {
            let body = self.json(&asked.operation, request).to_string();
            return Ok(response.header(header::CONTENT_TYPE, "application/x-amz-json-1.0").body(body.into())?);
        }
        let code = if self == Self::Internal { "InternalError" } else { "SlowDown" };
        let body =
            format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>by a rule</Message></Error>");
        Ok(response.header(header::CONTENT_TYPE, "application/xml").body(body.into())?)
    }

    fn status(self, has_target: bool) -> StatusCode {
        match self {
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            _ if has_target => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn json(self, operation: &str, request: &Bytes) -> Value {
        let dynamodb = |name: &str| format!("com.amazonaws.dynamodb.v20120810#{name}");
        match self {
            Self::ThroughputExceeded => json!({
                "__type": dynamodb("ProvisionedThroughputExceededException"),
                "message": "The level of configured provisioned throughput for the table was exceeded.",
            }),
            Self::Throttling => {
                json!({ "__type": "com.amazon.coral.availability#ThrottlingException", "message": "Rate of requests exceeds the allowed throughput." })
            }
            Self::Internal => {
                json!({ "__type": dynamodb("InternalServerError"), "message": "The request processing has failed because of an unknown error" })
            }
            Self::TransactionConflict if operation.starts_with("Transact") => {
                canceled(&dynamodb("TransactionCanceledException"), request)
            }
            Self::TransactionConflict => {
                json!({ "__type": dynamodb("TransactionConflictException"), "message": "Transaction is ongoing for the item" })
            }
        }
    }
}

/// The first item is the one that another transaction has.
fn canceled(name: &str, request: &Bytes) -> Value {
    let request: Value = serde_json::from_slice(request).unwrap_or_default();
    let items = request["TransactItems"].as_array().map_or(1, Vec::len);
    let mut codes = vec!["TransactionConflict"];
    codes.resize(items, "None");
    let reason = |code: &&str| match *code {
        "None" => json!({ "Code": code }),
        _ => json!({ "Code": code, "Message": "Transaction is ongoing for the item" }),
    };
    let reasons: Vec<Value> = codes.iter().map(reason).collect();
    let message = format!("Transaction cancelled, please refer cancellation reasons for specific reasons [{}]", codes.join(", "));
    json!({ "__type": name, "Message": message, "CancellationReasons": reasons })
}
