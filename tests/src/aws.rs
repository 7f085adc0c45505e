//! The AWS backend of one test: a table, a bucket, a key and a secret of its own, on the bench's servers.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection, ProjectionType,
    ScalarAttributeType,
};
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};

use crate::{bench, ministack};

const REGION: &str = "us-east-1";
/// What the API keys its tokens with, by this name in Secrets Manager.
const SERVER_KEY: &str = "a test's key of the API: 32 bytes or more, the same for each server";

/// Where the parts of the backend answer, and what this test's are called.
#[derive(Clone, Debug)]
pub struct Aws {
    pub table: String,
    pub bucket: String,
    pub kms_key: String,
    /// The Secrets Manager secret of the API's own key.
    pub server_key: String,
    pub dynamodb: String,
    pub s3: String,
    /// KMS, Secrets Manager, Parameter Store.
    pub other: String,
    access: String,
    secret: String,
}

impl Aws {
    /// Makes them. They end with the bench's servers, which keep nothing.
    pub async fn make() -> Result<Self> {
        let name = format!("ckrv-{:016x}", rand::random::<u64>());
        let mut aws = Self {
            table: name.clone(),
            bucket: name.clone(),
            kms_key: String::new(),
            server_key: format!("{name}-server-key"),
            dynamodb: bench::variable("CKRV_TEST_DYNAMODB")?,
            s3: bench::variable("CKRV_TEST_S3")?,
            other: bench::variable("CKRV_TEST_AWS")?,
            access: bench::variable("CKRV_TEST_S3_KEY")?,
            secret: bench::variable("CKRV_TEST_S3_SECRET")?,
        };
        aws.make_table().await?;
        aws.s3_client().create_bucket().bucket(&aws.bucket).send().await.context("can't make a bucket")?;
        let kms = aws_sdk_kms::Client::from_conf(
            aws_sdk_kms::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new(REGION))
                .credentials_provider(aws.credentials())
                .endpoint_url(&aws.other)
                .http_client(plain_http())
                .build(),
        );
        let key = kms.create_key().send().await.context("can't make a key")?;
        aws.kms_key = key.key_metadata.context("a key without metadata")?.key_id;
        let secrets = aws_sdk_secretsmanager::Client::from_conf(
            aws_sdk_secretsmanager::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new(REGION))
                .credentials_provider(aws.credentials())
                .endpoint_url(&aws.other)
                .http_client(plain_http())
                .build(),
        );
        secrets.create_secret().name(&aws.server_key).secret_string(SERVER_KEY).send().await.context("can't make a secret")?;
        Ok(aws)
    }

    /// What a stack of the data template has made in ministack, as its outputs name it.
    pub fn deployed(url: &str, outputs: &BTreeMap<String, String>) -> Result<Self> {
        let output = |name: &str| outputs.get(name).cloned().with_context(|| format!("no output {name}"));
        Ok(Self {
            table: output("TableName")?,
            bucket: output("BucketName")?,
            kms_key: output("KeyArn")?,
            server_key: output("ServerKeyArn")?,
            dynamodb: url.to_owned(),
            s3: url.to_owned(),
            other: url.to_owned(),
            access: ministack::ROOT.to_owned(),
            secret: ministack::ROOT.to_owned(),
        })
    }

    async fn make_table(&self) -> Result<()> {
        let attribute =
            |name: &str| AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S).build();
        let part = |name: &str, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
        let index = GlobalSecondaryIndex::builder()
            .index_name("by_queue")
            .key_schema(part("QPK", KeyType::Hash)?)
            .key_schema(part("QSK", KeyType::Range)?)
            .projection(Projection::builder().projection_type(ProjectionType::KeysOnly).build())
            .build()?;
        let mut create = self.dynamodb_client().create_table().table_name(&self.table).billing_mode(BillingMode::PayPerRequest);
        for name in ["PK", "SK", "QPK", "QSK"] {
            create = create.attribute_definitions(attribute(name)?);
        }
        create = create.key_schema(part("PK", KeyType::Hash)?).key_schema(part("SK", KeyType::Range)?);
        create.global_secondary_indexes(index).send().await.context("can't make a table")?;
        Ok(())
    }

    pub fn dynamodb_client(&self) -> aws_sdk_dynamodb::Client {
        aws_sdk_dynamodb::Client::from_conf(
            aws_sdk_dynamodb::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new(REGION))
                .credentials_provider(self.credentials())
                .endpoint_url(&self.dynamodb)
                .http_client(plain_http())
                .build(),
        )
    }

    pub fn s3_client(&self) -> aws_sdk_s3::Client {
        aws_sdk_s3::Client::from_conf(
            aws_sdk_s3::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new(REGION))
                .credentials_provider(self.credentials())
                .endpoint_url(&self.s3)
                .http_client(plain_http())
                .force_path_style(true)
                .build(),
        )
    }

    fn credentials(&self) -> Credentials {
        Credentials::new(&self.access, &self.secret, None, None, "the bench")
    }

    /// `[store]` of a server's configuration.
    pub fn store_config(&self) -> Result<toml::Table> {
        let text = toml::toml! {
            backend = "aws"
            region = "us-east-1"
            force_path_style = true
        };
        let mut table = text;
        for (name, value) in [("table", &self.table), ("bucket", &self.bucket), ("kms_key", &self.kms_key)] {
            table.insert(name.to_owned(), value.clone().into());
        }
        let mut endpoints = toml::Table::new();
        endpoints.insert("dynamodb".to_owned(), self.dynamodb.clone().into());
        endpoints.insert("s3".to_owned(), self.s3.clone().into());
        for name in ["kms", "secrets_manager", "ssm"] {
            endpoints.insert(name.to_owned(), self.other.clone().into());
        }
        table.insert("endpoints".to_owned(), endpoints.into());
        Ok(table)
    }

    /// What the SDK finds its credentials by.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs = [("AWS_ACCESS_KEY_ID", &self.access), ("AWS_SECRET_ACCESS_KEY", &self.secret)];
        let own = pairs.map(|(name, value)| (name.to_owned(), value.clone()));
        let region = ("AWS_REGION".to_owned(), REGION.to_owned());
        own.into_iter().chain([region]).collect()
    }
}

/// The bench's servers speak plain HTTP on loopback.
fn plain_http() -> aws_sdk_dynamodb::config::SharedHttpClient {
    aws_smithy_http_client::Builder::new().build_http()
}
