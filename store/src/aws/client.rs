//! The SDK's clients: one of each for a process, with every wait bounded on purpose.

use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use url::Url;

use crate::config::AwsConfig;
use crate::error::StoreError;

/// A host within the region answers a SYN in milliseconds; a second is a lost packet sent again twice.
const CONNECT: Duration = Duration::from_secs(1);
/// From the request's last byte to the answer's first. It bounds an S3 or KMS call; a DynamoDB call has its attempt's bound before.
const READ: Duration = Duration::from_secs(2);
/// DynamoDB answers in single milliseconds; an attempt that takes this long is lost, and a second one should still fit a caller's patience.
const TABLE_ATTEMPT: Duration = Duration::from_millis(1500);
/// Three attempts with their back-offs; a lease is 60 s, so its holder can fail this often and still knows in time.
const TABLE_OPERATION: Duration = Duration::from_secs(5);
/// A key operation crosses one more network than DynamoDB's, and Secrets Manager calls KMS itself.
const VAULT_ATTEMPT: Duration = Duration::from_secs(3);
const VAULT_OPERATION: Duration = Duration::from_secs(10);
/// Up to an answer's first byte; a body that stands still is ended by the SDK's protection against stalled streams. Puts and deletions set
/// their own, by size.
const BLOB_ATTEMPT: Duration = Duration::from_secs(40);
const BLOB_OPERATION: Duration = Duration::from_secs(120);
/// The first and two more. What is still refused then is throttled for longer than a request should wait.
const ATTEMPTS: u32 = 3;
/// The first back-off: the time of some calls, so that a burst thins out, and far below an attempt's bound.
const BACK_OFF: Duration = Duration::from_millis(50);
/// S3 closes an idle connection after about 20 s, and a frozen function wakes up with connections that are long gone: what is older
/// than this is opened again, not tried.
const POOL_IDLE: Duration = Duration::from_secs(12);
/// As many as one claimer's look through all shards keeps busy, twice. More are opened when needed and closed afterwards.
const POOL_IDLE_PER_HOST: usize = 32;

/// The clients. Cheap to clone: all share one pool of connections.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    pub dynamodb: aws_sdk_dynamodb::Client,
    pub s3: aws_sdk_s3::Client,
    pub kms: aws_sdk_kms::Client,
    pub secrets_manager: aws_sdk_secretsmanager::Client,
    pub ssm: aws_sdk_ssm::Client,
}

/// Makes the clients. Makes no call: credentials are fetched by the first request that needs them.
pub(super) async fn connect(config: &AwsConfig) -> Result<Clients, StoreError> {
    let shared = shared_config(config).await?;
    let endpoints = &config.endpoints;
    let vault = |endpoint| at(&shared, endpoint, VAULT_ATTEMPT, VAULT_OPERATION);
    let s3 = at(&shared, &endpoints.s3, BLOB_ATTEMPT, BLOB_OPERATION);
    Ok(Clients {
        dynamodb: aws_sdk_dynamodb::Client::new(&at(&shared, &endpoints.dynamodb, TABLE_ATTEMPT, TABLE_OPERATION)),
        s3: aws_sdk_s3::Client::from_conf(
            aws_sdk_s3::config::Builder::from(&s3).force_path_style(config.force_path_style).build(),
        ),
        kms: aws_sdk_kms::Client::new(&vault(&endpoints.kms)),
        secrets_manager: aws_sdk_secretsmanager::Client::new(&vault(&endpoints.secrets_manager)),
        ssm: aws_sdk_ssm::Client::new(&vault(&endpoints.ssm)),
    })
}

/// The shared configuration with one service's address and waits.
fn at(shared: &SdkConfig, endpoint: &Option<Url>, attempt: Duration, operation: Duration) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .read_timeout(READ)
        .operation_attempt_timeout(attempt)
        .operation_timeout(operation);
    let mut config = shared.to_builder().timeout_config(timeouts.build());
    config.set_endpoint_url(endpoint.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned()));
    config.build()
}

async fn shared_config(config: &AwsConfig) -> Result<SdkConfig, StoreError> {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(POOL_IDLE_PER_HOST)
        .build_https();
    let region = region(config).await?;
    let loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .region(region)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(BACK_OFF));
    Ok(loader.load().await)
}

/// Functions and pods have it in their environment. The SDK's default chain would go on to ask the machine's metadata service: a call, and
/// one that hangs where there is none.
async fn region(config: &AwsConfig) -> Result<Region, StoreError> {
    let found = RegionProviderChain::first_try(config.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new())
        .region()
        .await;
    found.ok_or_else(|| {
        StoreError::backend("opening the stores on AWS", "no region is known: set `region` under [store], or AWS_REGION")
    })
}
