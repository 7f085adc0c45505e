//! Stores on AWS: one DynamoDB table, one S3 bucket, one KMS key.

mod blobs;
mod client;
mod failure;
mod references;
mod table;
mod vault;

use crate::config::AwsConfig;
use crate::error::StoreError;
use crate::{Signals, Stores};

/// Connects to the stores that an operator made from the cloud templates. Makes no call: what is missing shows at the first one.
///
/// # Errors
/// None yet.
pub async fn open_aws(_config: &AwsConfig, _signals: Signals) -> Result<Stores, StoreError> {
    Err(StoreError::backend("opening the stores on AWS", "not built yet"))
}
