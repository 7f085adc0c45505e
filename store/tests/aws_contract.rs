//! The AWS backend passes the suite that every backend passes: each test on a table, a bucket and a key of its own.

#![expect(clippy::unwrap_used, reason = "tests")]

use ckrv_store::contract::Fixture;
use ckrv_store::{AwsConfig, Signals, open_aws};
use ckrv_tests::aws::Aws;

async fn fixture() -> Fixture {
    let aws = Aws::make().await.unwrap();
    let mut table = aws.store_config().unwrap();
    table.remove("backend");
    let config: AwsConfig = table.try_into().unwrap();
    Fixture { stores: open_aws(&config, Signals::default()).await.unwrap(), guard: Box::new(aws) }
}

ckrv_store::contract_tests!(fixture);
