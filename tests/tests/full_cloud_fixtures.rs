//! The fixtures that stand before the bench's cloud servers, the identity provider and the browser. Not tested here: ckrv.

use anyhow::{Context as _, Result};
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{AttributeValue, Put, ReturnConsumedCapacity, TransactWriteItem};
use axum::Router;
use axum::extract::RawQuery;
use axum::response::Html;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ckrv_tests::aws::Aws;
use ckrv_tests::browser::Browser;
use ckrv_tests::fault_proxy::{Fault, FaultProxy, On, ServiceError, When};
use ckrv_tests::http::{Http, client};
use ckrv_tests::oidc::{Account, Client, Oidc, parameter};
use serde_json::Value;

const VERIFIER: &str = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz";
/// Base64url of the verifier's SHA-256.
const CHALLENGE: &str = "I3jTFKmOI5T-yXt4CqWHBKZnt9uhdpRzxJT0qz9n4jY";

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

/// A backend whose DynamoDB is behind a proxy.
async fn behind() -> Result<(FaultProxy, Aws)> {
    let mut aws = Aws::make().await?;
    let proxy = FaultProxy::start(&aws.dynamodb, 1).await?;
    aws.dynamodb.clone_from(&proxy.url);
    Ok((proxy, aws))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_there_when_the_sdk_tries_again() -> Result<()> {
    let (proxy, aws) = behind().await?;
    let dynamodb = aws.dynamodb_client();
    proxy.rule(On::Operation("PutItem"), When::Times(1), Fault::CommitThenCut);
    let put = dynamodb.put_item().table_name(&aws.table).item("PK", text("a")).item("SK", text("b"));
    let put = put.condition_expression("attribute_not_exists(PK)").return_consumed_capacity(ReturnConsumedCapacity::Total);
    let error = put.send().await.unwrap_err().into_service_error();
    assert!(error.is_conditional_check_failed_exception(), "{error:?}");
    let get = dynamodb.get_item().table_name(&aws.table).key("PK", text("a")).key("SK", text("b")).consistent_read(true);
    get.return_consumed_capacity(ReturnConsumedCapacity::Total).send().await?.item.context("nothing was written")?;
    let counts = proxy.counts();
    let put = counts.of("PutItem");
    assert_eq!((put.asked, put.faults, put.answered), (2, 1, 2), "{counts}");
    assert_eq!((counts.write_units(), counts.read_units()), (1.0, 1.0), "{counts}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_understands_what_no_stand_in_says() -> Result<()> {
    let (proxy, aws) = behind().await?;
    let dynamodb = aws.dynamodb_client();
    let put = |key: &str| -> Result<TransactWriteItem> {
        let put = Put::builder().table_name(&aws.table).item("PK", text(key)).item("SK", text("b")).build()?;
        Ok(TransactWriteItem::builder().put(put).build())
    };
    let write = || -> Result<_> { Ok(dynamodb.transact_write_items().transact_items(put("a")?).transact_items(put("c")?)) };
    proxy.rule(On::Operation("TransactWriteItems"), When::Always, Fault::Fail(ServiceError::TransactionConflict));
    let error = write()?.send().await.unwrap_err().into_service_error();
    let TransactWriteItemsError::TransactionCanceledException(cancelled) = &error else { panic!("{error:?}") };
    let codes: Vec<_> = cancelled.cancellation_reasons().iter().map(|reason| reason.code().unwrap_or_default()).collect();
    assert_eq!(codes, ["TransactionConflict", "None"]);
    proxy.heal();
    write()?.send().await?;

    proxy.rule(On::Operation("GetItem"), When::Times(1), Fault::Fail(ServiceError::ThroughputExceeded));
    let get = dynamodb.get_item().table_name(&aws.table).key("PK", text("c")).key("SK", text("b"));
    get.clone().send().await.context("the SDK tries again by itself")?.item.context("nothing was written")?;
    proxy.rule(On::Operation("GetItem"), When::Always, Fault::Fail(ServiceError::ThroughputExceeded));
    let error = get.send().await.unwrap_err();
    let SdkError::ServiceError(error) = &error else { panic!("{error:?}") };
    assert!(error.err().is_provisioned_throughput_exceeded_exception(), "{error:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_hold_behind_the_proxy_and_a_cut_download_is_no_download() -> Result<()> {
    let mut aws = Aws::make().await?;
    let proxy = FaultProxy::start(&aws.s3, 1).await?;
    aws.s3.clone_from(&proxy.url);
    let s3 = aws.s3_client();
    let (key, content) = ("jobs/a b/ü+%2F", "x".repeat(300_000));
    s3.put_object().bucket(&aws.bucket).key(key).body(content.clone().into_bytes().into()).send().await?;
    let get = s3.get_object().bucket(&aws.bucket).key(key);
    assert_eq!(get.clone().send().await?.body.collect().await?.to_vec(), content.as_bytes());
    proxy.rule(On::Path("GET", "/jobs/"), When::Times(1), Fault::CutAnswer);
    get.clone().send().await?.body.collect().await.unwrap_err();
    proxy.rule(On::Path("GET", "/jobs/"), When::Times(1), Fault::Fail(ServiceError::Throttling));
    get.send().await.context("the SDK tries again by itself")?;
    assert_eq!(proxy.counts().of("GET").asked, 4);
    Ok(())
}

fn confidential() -> Client {
    let redirect_uri = "http://127.0.0.1:1/back".to_owned();
    Client { id: "ckrv".to_owned(), secret: Some("only for the tests".to_owned()), redirect_uri }
}

fn authorization(oidc: &Oidc, client: &Client, pkce: &str) -> String {
    format!(
        "{}/auth?client_id={}&response_type=code&redirect_uri={}&scope=openid%20email%20profile%20groups&state=s&nonce=n{pkce}",
        oidc.issuer, client.id, client.redirect_uri
    )
}

/// What the ID token says, its signature not looked at.
async fn claims(oidc: &Oidc, rp: &Client, code: &str) -> Result<Value> {
    let form = format!("grant_type=authorization_code&code={code}&redirect_uri={}&code_verifier={VERIFIER}", rp.redirect_uri);
    let request = client()?.post(format!("{}/token", oidc.issuer)).basic_auth(&rp.id, rp.secret.as_ref());
    let response = request.header("content-type", "application/x-www-form-urlencoded").body(form).send().await?;
    let tokens: Value = response.error_for_status()?.json().await?;
    let token = tokens["id_token"].as_str().context("no ID token")?;
    let payload = token.split('.').nth(1).context("not a JWT")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_provider_logs_in_whom_the_test_has_named() -> Result<()> {
    let client = confidential();
    let oidc = Oidc::start(&client).await?;
    let url = authorization(&oidc, &client, &format!("&code_challenge={CHALLENGE}&code_challenge_method=S256"));
    assert_eq!(parameter(&oidc.visit(&url).await?, "error")?, "access_denied");
    for (subject, group) in [("ada", "engineers"), ("eve", "guests")] {
        oidc.log_in(&Account::new(subject, &format!("{subject}@example.test")).groups(&[group])).await?;
        let back = oidc.visit(&url).await?;
        assert!(back.starts_with(&client.redirect_uri) && parameter(&back, "state")? == "s", "{back}");
        let claims = claims(&oidc, &client, &parameter(&back, "code")?).await?;
        assert_eq!(
            (&claims["sub"], &claims["iss"], &claims["nonce"]),
            (&subject.into(), &oidc.issuer.clone().into(), &"n".into())
        );
        assert_eq!((&claims["email"], &claims["groups"][0]), (&format!("{subject}@example.test").into(), &group.into()));
    }
    oidc.refuse().await?;
    assert_eq!(parameter(&oidc.visit(&url).await?, "error")?, "access_denied");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_provider_wants_pkce() -> Result<()> {
    let client = confidential();
    let oidc = Oidc::start(&client).await?;
    oidc.log_in(&Account::new("ada", "ada@example.test")).await?;
    let back = oidc.visit(&authorization(&oidc, &client, "")).await?;
    assert!(parameter(&back, "error_description")?.contains("PKCE"), "{back}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_fills_a_form_in_and_arrives() -> Result<()> {
    let form = "<title>form</title><form action='/done'><input name='word'><button>Go</button></form>";
    let done = async |RawQuery(query): RawQuery| {
        // Comes a little later, as a script's doing.
        let script = "setTimeout(() => document.body.innerHTML += '<p id=late>late</p>', 200)";
        Html(format!("<p id=query>{}</p><script>{script}</script>", query.unwrap_or_default()))
    };
    let router = Router::new().route("/", get(async move || Html(form))).route("/done", get(done));
    let server = Http::start(router, None).await?;
    let (browser, folder) = (Browser::start().await?, tempfile::tempdir()?);
    browser.open(&server.url).await?;
    assert_eq!(browser.title().await?, "form");
    browser.fill("input[name=word]", "hello").await?;
    browser.click("button").await?;
    assert_eq!(browser.at("/done").await?, format!("{}/done?word=hello", server.url));
    assert_eq!((browser.text("#query").await?, browser.text("#late").await?), ("word=hello".to_owned(), "late".to_owned()));
    assert!(browser.source().await?.contains("id=\"late\""));
    assert_eq!(browser.run("return document.querySelectorAll('p').length").await?, 2);
    // A page that puts new elements in its old ones' places all the time.
    browser.run("setInterval(() => document.body.innerHTML = document.body.innerHTML, 25)").await?;
    for _ in 0..50 {
        assert_eq!(browser.text("#query").await?, "word=hello");
    }
    let picture = folder.path().join("page.png");
    browser.screenshot(&picture).await?;
    assert!(std::fs::read(picture)?.starts_with(b"\x89PNG"));
    let error = browser.open("http://stranger.test/").await.unwrap_err().to_string();
    assert!(error.contains("ERR_NAME_NOT_RESOLVED"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_logged_in_anew_each_time() -> Result<()> {
    let server = Http::start(Router::new().fallback(async || "back"), None).await?;
    let client = Client { redirect_uri: format!("{}/back", server.url), ..confidential() };
    let (oidc, browser) = (Oidc::start(&client).await?, Browser::start().await?);
    let url = authorization(&oidc, &client, &format!("&code_challenge={CHALLENGE}&code_challenge_method=S256"));
    for subject in ["ada", "eve"] {
        oidc.log_in(&Account::new(subject, &format!("{subject}@example.test"))).await?;
        browser.open(&url).await?;
        let back = browser.at("/back?").await?;
        assert_eq!(claims(&oidc, &client, &parameter(&back, "code")?).await?["sub"], subject);
    }
    Ok(())
}
