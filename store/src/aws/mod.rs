//! Stores on AWS: one DynamoDB table, one S3 bucket, one KMS key.

mod accounts;
mod aside;
mod blobs;
mod changes;
mod client;
mod compact;
mod create;
mod edit;
mod failure;
mod jobs;
mod lists;
mod logs;
mod meta;
mod pack;
mod queue;
mod reading;
mod references;
mod table;
mod usage;
mod vault;

use std::sync::Arc;

use self::accounts::DynamoAccounts;
use self::blobs::S3Blobs;
use self::jobs::AwsJobs;
use self::references::AwsReferences;
use self::table::Table;
use self::vault::{KmsOpener, KmsSealer};
use crate::config::AwsConfig;
use crate::error::StoreError;
use crate::{Blobs, Signals, Stores};

/// Connects to the stores that an operator made from the cloud templates. Makes no call: what is missing shows at the first one.
///
/// # Errors
/// [`StoreError::Backend`] where no region is known.
pub async fn open_aws(config: &AwsConfig, signals: Signals) -> Result<Stores, StoreError> {
    let clients = client::connect(config).await?;
    let table = Table { client: clients.dynamodb, name: config.table.clone() };
    let blobs: Arc<dyn Blobs> = Arc::new(S3Blobs::new(clients.s3, config.bucket.clone()));
    Ok(Stores {
        jobs: Arc::new(AwsJobs::new(table.clone(), blobs.clone(), signals.clone())),
        accounts: Arc::new(DynamoAccounts::new(table)),
        blobs,
        sealer: Arc::new(KmsSealer::new(clients.kms.clone(), config.kms_key.clone())),
        opener: Arc::new(KmsOpener::new(clients.kms, config.kms_key.clone())),
        references: Arc::new(AwsReferences::new(clients.secrets_manager, clients.ssm)),
        signals,
    })
}
