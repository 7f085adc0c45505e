//! What the suite for every backend can't show of the AWS one: signatures, URLs, checksums, KMS contexts, references, lost answers.
//!
//! Not tested here, because no stand-in does it: permissions of roles, a bucket's default encryption, deletion by TTL.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumMode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ckrv_core::id::UserId;
use ckrv_store::contract::at;
use ckrv_store::{
    AccessToken, AwsConfig, Login, Put, Reference, ReferenceError, RefreshFamily, SealContext, Sealed, Secret, SecretValue,
    ServiceToken, Signals, StoreError, Stores, open_aws,
};
use ckrv_tests::aws::Aws;
use ckrv_tests::fault_proxy::{Fault, FaultProxy, On, When};
use futures::{StreamExt, stream};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Set in a process that a test starts of itself, with other credentials: the bucket that it is to try.
const BUCKET: &str = "CKRV_TEST_CHILD_BUCKET";

#[expect(clippy::disallowed_methods, reason = "how a test speaks to the process that it starts")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn config(aws: &Aws) -> AwsConfig {
    let mut table = aws.store_config().unwrap();
    table.remove("backend");
    table.try_into().unwrap()
}

/// For KMS, Secrets Manager and Parameter Store, beside the stores.
fn sdk(aws: &Aws) -> SdkConfig {
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new("test", "test", None, None, "test")))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(&aws.other)
        .build()
}

async fn open(aws: &Aws) -> Stores {
    open_aws(&config(aws), Signals::default()).await.unwrap()
}

/// The status and the whole text of the answer to a GET without any credentials.
async fn get(url: &str) -> (u16, String) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

fn hex(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

#[tokio::test]
async fn a_wrong_secret_key_is_refused_and_told_as_a_failure() {
    if let Some(bucket) = variable(BUCKET) {
        let mut aws = Aws::make().await.unwrap();
        aws.bucket = bucket;
        let stores = open(&aws).await;
        for error in [
            stores.blobs.ping().await.unwrap_err(),
            stores.blobs.get("jobs/1/spec").await.unwrap_err(),
            stores.blobs.delete_prefix("jobs/1").await.unwrap_err(),
        ] {
            let StoreError::Backend { source, .. } = error else { panic!("{error:?}") };
            assert!(source.to_string().contains("SignatureDoesNotMatch"), "{source}");
        }
        assert!(stores.blobs.put("jobs/1/other", Bytes::from_static(b"x")).await.is_err());
        return;
    }
    let aws = Aws::make().await.unwrap();
    open(&aws).await.blobs.put("jobs/1/spec", Bytes::from_static(b"x")).await.unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_wrong_secret_key_is_refused_and_told_as_a_failure"])
        .env(BUCKET, &aws.bucket)
        .env("AWS_SECRET_ACCESS_KEY", "another")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
}

#[tokio::test]
async fn a_url_gives_its_one_blob_as_a_download() {
    let aws = Aws::make().await.unwrap();
    let stores = open(&aws).await;
    for name in ["diff", "log"] {
        stores.blobs.put(&format!("jobs/1/1/{name}"), Bytes::from(format!("the {name}"))).await.unwrap();
    }
    let url = stores.blobs.presign("jobs/1/1/diff", Duration::from_secs(60)).await.unwrap().unwrap();
    let url = url.expose_secret();
    let (status, answer) = get(url).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.ends_with("\r\n\r\nthe diff"), "{answer}");
    assert!(answer.to_lowercase().contains("content-disposition: attachment; filename=\"diff\""), "{answer}");
    for (part, other) in [("/1/1/diff?", "/1/1/log?"), ("Expires=60&", "Expires=900&"), ("attachment", "inline")] {
        assert!(url.contains(part), "{part} is not in the URL");
        assert_eq!(get(&url.replace(part, other)).await.0, 403, "{other}");
    }
    let (unsigned, _) = url.split_once('?').unwrap();
    assert_eq!(get(unsigned).await.0, 403);
}

#[tokio::test]
async fn a_url_dies_with_its_time_which_is_at_most_a_quarter_of_an_hour() {
    let aws = Aws::make().await.unwrap();
    let stores = open(&aws).await;
    stores.blobs.put("jobs/1/1/diff", Bytes::from_static(b"x")).await.unwrap();
    let sign = async |seconds| stores.blobs.presign("jobs/1/1/diff", Duration::from_secs(seconds)).await.unwrap().unwrap();
    assert!(sign(24 * 3600).await.expose_secret().contains("X-Amz-Expires=900&"));
    let short = sign(1).await;
    while get(short.expose_secret()).await.0 != 403 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(stores.blobs.presign("../other", Duration::from_secs(1)).await.is_err());
}

#[tokio::test]
async fn content_that_arrives_damaged_is_not_stored_and_not_read() {
    let aws = Aws::make().await.unwrap();
    let (stores, s3) = (open(&aws).await, aws.s3_client());
    stores.blobs.put("jobs/1/spec", Bytes::from_static(b"content")).await.unwrap();
    // The checksum goes along, so the server compares.
    let head = s3.head_object().bucket(&aws.bucket).key("jobs/1/spec").checksum_mode(ChecksumMode::Enabled).send().await.unwrap();
    assert_eq!(head.checksum_sha256(), Some(BASE64.encode(Sha256::digest(b"content")).as_str()));
    let other = BASE64.encode(Sha256::digest(b"other"));
    let put = s3.put_object().bucket(&aws.bucket).key("jobs/1/damaged").checksum_sha256(other);
    put.body(ByteStream::from_static(b"content")).send().await.unwrap_err();
    assert_eq!(stores.blobs.get("jobs/1/damaged").await.unwrap(), None);
    // What is stored is not what was put.
    let put = s3.put_object().bucket(&aws.bucket).key("jobs/1/spec").metadata("sha256", hex(b"content"));
    put.body(ByteStream::from_static(b"CONTENT")).send().await.unwrap();
    assert!(matches!(stores.blobs.get("jobs/1/spec").await, Err(StoreError::Unreadable { .. })));
}

/// The SDK counts an upload into the time that it waits for an answer.
#[tokio::test]
async fn a_put_may_take_longer_than_a_read() {
    let aws = Aws::make().await.unwrap();
    let proxy = FaultProxy::start(&aws.s3, 1).await.unwrap();
    proxy.rule(On::Path("PUT", "jobs/1/spec"), When::Always, Fault::Delay(Duration::from_secs(4)));
    let mut config = config(&aws);
    config.endpoints.s3 = Some(proxy.url.parse().unwrap());
    let stores = open_aws(&config, Signals::default()).await.unwrap();
    stores.blobs.put("jobs/1/spec", Bytes::from_static(b"x")).await.unwrap();
}

#[tokio::test]
async fn a_prefix_of_ten_thousand_blobs_is_deleted() {
    let aws = Aws::make().await.unwrap();
    let (stores, s3) = (open(&aws).await, aws.s3_client());
    let put = async |key: String| {
        s3.put_object().bucket(&aws.bucket).key(key).body(ByteStream::from_static(b"x")).send().await.map(drop)
    };
    let keys = (0..10_000).map(|index| format!("jobs/1/{}/{index}", index % 7)).chain(["jobs/10/spec".to_owned()]);
    let puts: Vec<_> = stream::iter(keys).map(put).buffer_unordered(32).collect().await;
    assert!(puts.into_iter().all(|put| put.is_ok()));
    stores.blobs.delete_prefix("jobs/1").await.unwrap();
    let left = s3.list_objects_v2().bucket(&aws.bucket).send().await.unwrap();
    let left: Vec<_> = left.contents().iter().filter_map(|object| object.key()).collect();
    assert_eq!(left, ["jobs/10/spec"]);
}

#[tokio::test]
async fn kms_itself_refuses_a_data_key_in_another_context() {
    let aws = Aws::make().await.unwrap();
    let stores = open(&aws).await;
    let context = SealContext { owner: "user-1", kind: "credential", name: "forge" };
    let stranger = SealContext { owner: "user-2", ..context };
    let sealed = stores.sealer.seal(context, &SecretString::from("value")).await.unwrap();
    let theirs = stores.sealer.seal(stranger, &SecretString::from("theirs")).await.unwrap();
    let swapped = [
        (stranger, sealed.clone()),
        (context, theirs.clone()),
        (stranger, Sealed { wrapped_key: theirs.wrapped_key.clone(), ..sealed.clone() }),
        (context, Sealed { wrapped_key: theirs.wrapped_key, ..sealed.clone() }),
    ];
    for (context, sealed) in swapped {
        let answer = stores.opener.open(context, &sealed).await;
        assert!(matches!(answer, Err(StoreError::Sealed(_))), "{answer:?}");
    }
    // Without our own check, and with the key at hand: by KMS alone.
    let decrypt = async |owner: &str| {
        let wrapped = aws_sdk_kms::primitives::Blob::new(BASE64.decode(&sealed.wrapped_key).unwrap());
        let mut decrypt = aws_sdk_kms::Client::new(&sdk(&aws)).decrypt().ciphertext_blob(wrapped);
        for (name, value) in [("app", "ckrv"), ("owner", owner), ("kind", "credential"), ("name", "forge")] {
            decrypt = decrypt.encryption_context(name, value);
        }
        decrypt.send().await
    };
    assert_eq!(decrypt("user-1").await.unwrap().plaintext.unwrap().as_ref().len(), 32);
    assert!(decrypt("user-2").await.unwrap_err().into_service_error().is_invalid_ciphertext_exception());
    assert_eq!(stores.opener.open(context, &sealed).await.unwrap().expose_secret(), "value");
}

#[tokio::test]
async fn kms_that_is_away_is_a_failure_and_no_verdict_on_the_value() {
    let aws = Aws::make().await.unwrap();
    let stores = open(&aws).await;
    let context = SealContext { owner: "user-1", kind: "credential", name: "forge" };
    let sealed = stores.sealer.seal(context, &SecretString::from("value")).await.unwrap();
    let mut config = config(&aws);
    config.endpoints.kms = Some("http://127.0.0.1:1".parse().unwrap());
    let stores = open_aws(&config, Signals::default()).await.unwrap();
    assert!(matches!(stores.opener.open(context, &sealed).await, Err(StoreError::Backend { .. })));
    assert!(matches!(stores.sealer.seal(context, &SecretString::from("value")).await, Err(StoreError::Backend { .. })));
}

#[tokio::test]
async fn a_reference_gives_the_value_that_the_cloud_keeps() {
    let aws = Aws::make().await.unwrap();
    let stores = open(&aws).await;
    let owner = UserId(Uuid::new_v4());
    let secrets = aws_sdk_secretsmanager::Client::new(&sdk(&aws));
    let (json, own) = ("{\"key\":\"v\"}", format!("ckrv/users/{owner}/model"));
    for (name, value) in
        [(format!("{own}/key"), "value\n"), (format!("{own}/json"), json), (format!("{own}/windows"), "two\nlines\r\n")]
    {
        secrets.create_secret().name(name).secret_string(value).send().await.unwrap();
    }
    let put = aws_sdk_ssm::Client::new(&sdk(&aws)).put_parameter().name(format!("/{own}/key")).value("parameter");
    put.r#type(aws_sdk_ssm::types::ParameterType::SecureString).send().await.unwrap();
    let resolve = async |text: String| stores.references.resolve(&Reference::parse(owner, &text).unwrap()).await;
    for (text, value) in [
        (format!("aws-secrets-manager:{own}/key"), "value"),
        (format!("aws-secrets-manager:{own}/json"), json),
        (format!("aws-secrets-manager:{own}/windows"), "two\nlines"),
        (format!("aws-ssm:/{own}/key"), "parameter"),
    ] {
        assert_eq!(resolve(text).await.unwrap().expose_secret(), value);
    }
    for missing in [format!("aws-secrets-manager:{own}/missing"), format!("aws-ssm:/{own}/missing")] {
        let answer = resolve(missing.clone()).await;
        assert!(matches!(&answer, Err(ReferenceError::NotFound(name)) if missing.ends_with(name)), "{answer:?}");
    }
    let deleted = secrets.delete_secret().secret_id(format!("{own}/key"));
    deleted.recovery_window_in_days(7).send().await.unwrap();
    let answer = resolve(format!("aws-secrets-manager:{own}/key")).await;
    assert!(matches!(answer, Err(ReferenceError::NotFound(_))), "{answer:?}");
}

#[tokio::test]
async fn a_secrets_manager_that_is_away_is_a_failure_and_no_missing_value() {
    let aws = Aws::make().await.unwrap();
    let mut config = config(&aws);
    config.endpoints.secrets_manager = Some("http://127.0.0.1:1".parse().unwrap());
    config.endpoints.ssm = config.endpoints.secrets_manager.clone();
    let stores = open_aws(&config, Signals::default()).await.unwrap();
    let owner = UserId(Uuid::new_v4());
    for text in ["aws-secrets-manager:ckrv/shared/key", "aws-ssm:/ckrv/shared/key"] {
        let answer = stores.references.resolve(&Reference::parse(owner, text).unwrap()).await;
        assert!(matches!(answer, Err(ReferenceError::Store(StoreError::Backend { .. }))), "{answer:?}");
    }
}

/// Each call is carried out once and never answered; what is sent again must find its own work done.
#[tokio::test]
async fn a_write_whose_answer_was_lost_is_told_as_done_and_done_once() {
    let aws = Aws::make().await.unwrap();
    let proxy = FaultProxy::start(&aws.dynamodb, 1).await.unwrap();
    let mut config = config(&aws);
    config.endpoints.dynamodb = Some(proxy.url.parse().unwrap());
    let accounts = open_aws(&config, Signals::default()).await.unwrap().accounts;
    let lose = |operation| proxy.rule(On::Operation(operation), When::Times(1), Fault::CommitThenCut);
    let user = UserId(Uuid::new_v4());

    lose("TransactWriteItems");
    accounts.put_family(&family(user, "t0")).await.unwrap();
    lose("PutItem");
    assert!(accounts.rotate_family(&family(user, "t1"), "t0").await.unwrap());
    assert_eq!(accounts.family("f").await.unwrap(), Some(family(user, "t1")));
    assert!(!accounts.rotate_family(&family(user, "t2"), "t0").await.unwrap(), "somebody else's token is not ours");
    lose("UpdateItem");
    accounts.revoke_family("f").await.unwrap();
    assert!(accounts.family("f").await.unwrap().unwrap().revoked);

    let login = Login { issuer: "https://id.example.org".to_owned(), subject: "1".to_owned() };
    lose("PutItem");
    assert_eq!(accounts.link_login(&login, user).await.unwrap(), Put::Done);
    assert_eq!(accounts.link_login(&login, user).await.unwrap(), Put::Exists);

    lose("PutItem");
    assert_eq!(accounts.put_secret(user, &secret()).await.unwrap(), Put::Done);
    assert_eq!(accounts.put_secret(user, &secret()).await.unwrap(), Put::Exists);
    lose("TransactWriteItems");
    assert!(accounts.delete_secret(user, "s").await.unwrap());
    assert!(!accounts.delete_secret(user, "s").await.unwrap());

    lose("TransactWriteItems");
    assert_eq!(accounts.put_service_token(&service_token(user)).await.unwrap(), Put::Done);
    assert_eq!(accounts.put_service_token(&service_token(user)).await.unwrap(), Put::Exists);
    lose("TransactWriteItems");
    assert!(accounts.delete_service_token(user, "t").await.unwrap());
    assert_eq!(accounts.service_tokens(user).await.unwrap(), []);
}

#[tokio::test]
async fn a_login_that_is_revoked_while_its_refresh_is_under_way_stays_revoked() {
    let aws = Aws::make().await.unwrap();
    let accounts = open(&aws).await.accounts;
    let user = UserId(Uuid::new_v4());
    accounts.put_family(&family(user, "t0")).await.unwrap();
    let mut races = JoinSet::new();
    for index in 0..16 {
        let accounts = accounts.clone();
        races.spawn(async move {
            if index == 8 {
                accounts.revoke_family("f").await.unwrap();
            } else {
                accounts.rotate_family(&family(user, &format!("t-{index}")), "t0").await.unwrap();
                let token = AccessToken { sha256: format!("a-{index}"), user, family: "f".to_owned(), expires_at: at(100) };
                accounts.put_access_token(&token).await.unwrap();
            }
        });
    }
    races.join_all().await;
    assert!(accounts.family("f").await.unwrap().unwrap().revoked);
    for index in 0..16 {
        assert_eq!(accounts.access_token(&format!("a-{index}")).await.unwrap(), None);
        assert!(!accounts.rotate_family(&family(user, "late"), &format!("t-{index}")).await.unwrap());
    }
    assert_eq!(accounts.families_of(user).await.unwrap(), []);
}

#[tokio::test]
async fn a_user_with_more_logins_than_one_read_takes_sees_them_all() {
    let aws = Aws::make().await.unwrap();
    let accounts = open(&aws).await.accounts;
    let user = UserId(Uuid::new_v4());
    for index in 0..130 {
        accounts.put_family(&RefreshFamily { id: format!("f{index:03}"), ..family(user, "t0") }).await.unwrap();
    }
    let ids: Vec<_> = accounts.families_of(user).await.unwrap().into_iter().map(|family| family.id).collect();
    assert_eq!(ids, (0..130).map(|index| format!("f{index:03}")).collect::<Vec<_>>());
}

fn family(user: UserId, current: &str) -> RefreshFamily {
    RefreshFamily {
        id: "f".to_owned(),
        user,
        current_sha256: current.to_owned(),
        previous: None,
        created_at: at(0),
        expires_at: at(1000),
        revoked: false,
    }
}

fn secret() -> Secret {
    let value = SecretValue::Reference { reference: "aws-ssm:/ckrv/shared/key".to_owned() };
    Secret { name: "s".to_owned(), value, created_at: at(0), last_used_at: None }
}

fn service_token(owner: UserId) -> ServiceToken {
    ServiceToken {
        id: "t".to_owned(),
        sha256: "hash".to_owned(),
        owner,
        name: "ci".to_owned(),
        scopes: Vec::new(),
        created_at: at(0),
        expires_at: None,
        last_used_at: None,
    }
}
