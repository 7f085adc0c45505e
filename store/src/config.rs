//! Which backend, and where it is: one type for every program that opens stores.

use std::path::PathBuf;

use serde::Deserialize;
use url::Url;

/// Where jobs, accounts and artifacts are kept. In a configuration file: `[store] backend = "aws"` with the keys of [`AwsConfig`].
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase", deny_unknown_fields)]
pub enum StoreConfig {
    /// SQLite and files in one folder; by default the program's own data folder.
    Embedded {
        #[serde(default)]
        folder: Option<PathBuf>,
    },
    Aws(Box<AwsConfig>),
}

/// DynamoDB, S3, KMS and the secrets managers. Credentials come from where the SDK finds them: environment, profile, the role of a function,
/// a pod or a machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsConfig {
    pub table: String,
    pub bucket: String,
    /// Id, ARN or alias of the key that wraps data keys.
    pub kms_key: String,
    /// By default the environment's.
    #[serde(default)]
    pub region: Option<String>,
    /// By default AWS's own.
    #[serde(default)]
    pub endpoints: Endpoints,
    /// `http://host/bucket/key` instead of a host name for each bucket, for S3 servers other than AWS.
    #[serde(default)]
    pub force_path_style: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Endpoints {
    pub dynamodb: Option<Url>,
    pub s3: Option<Url>,
    pub kms: Option<Url>,
    pub secrets_manager: Option<Url>,
    pub ssm: Option<Url>,
}
