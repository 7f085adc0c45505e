//! The fault-injecting proxy, before a server that keeps what it was asked. Not tested here: ckrv.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::Request;
use ckrv_tests::fault_proxy::{Fault, FaultProxy, On, ServiceError, When};
use ckrv_tests::http::{Http, client};
use ckrv_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

const LENGTH: usize = 10_000;

/// A service that answers with `LENGTH` bytes and with what the last write used, and the requests that it carried out.
struct Service {
    http: Http,
    done: Arc<Mutex<Vec<String>>>,
}

impl Service {
    async fn start() -> Result<Self> {
        let done = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&done);
        let router = Router::new().fallback(async move |request: Request| {
            let host = request.headers()["host"].to_str().unwrap_or_default();
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{} {} {host}", request.method(), request.uri()));
            let capacity = json!([{ "TableName": "t", "CapacityUnits": 2.0 }, { "TableName": "u", "CapacityUnits": 0.5 }]);
            json!({ "ConsumedCapacity": capacity, "Filler": "x".repeat(LENGTH) }).to_string()
        });
        Ok(Self { http: Http::start(router, None).await?, done })
    }

    fn done(&self) -> Vec<String> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn both() -> Result<(Service, FaultProxy)> {
    let service = Service::start().await?;
    let proxy = FaultProxy::start(&service.http.url, 7).await?;
    Ok((service, proxy))
}

/// Asks for an operation; gives status and body, or the error of a broken connection.
async fn ask(proxy: &FaultProxy, operation: &str, body: Value) -> Result<(u16, String)> {
    let target = format!("DynamoDB_20120810.{operation}");
    let response = client()?.post(&proxy.url).header("x-amz-target", target).body(body.to_string()).send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_rule_wants_passes_as_it_was_signed_and_is_counted() -> Result<()> {
    let (service, proxy) = both().await?;
    let path = "/bucket/a%2Fb%20c//d?x-id=GetObject&versions";
    let response = client()?.get(format!("{}{path}", proxy.url)).send().await?;
    assert!(response.status() == 200 && response.text().await?.len() > LENGTH);
    assert_eq!(service.done(), [format!("GET {path} {}", proxy.url.replace("http://", ""))]);
    ask(&proxy, "PutItem", json!({})).await?;
    ask(&proxy, "Query", json!({})).await?;
    let counts = proxy.take_counts();
    assert_eq!((counts.of("PutItem").asked, counts.of("GET").asked, counts.asked(), counts.faults()), (1, 1, 3, 0));
    assert_eq!((counts.write_units(), counts.read_units()), (2.5, 2.5), "{counts}");
    assert_eq!(proxy.counts().asked(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_carried_out_and_never_answered() -> Result<()> {
    let (service, proxy) = both().await?;
    proxy.rule(On::Operation("PutItem"), When::Times(1), Fault::CommitThenCut);
    ask(&proxy, "GetItem", json!({})).await?;
    ask(&proxy, "PutItem", json!({})).await.unwrap_err();
    assert_eq!(service.done().len(), 2);
    let put = proxy.counts().of("PutItem");
    assert_eq!((put.asked, put.faults, put.answered), (1, 1, 1));
    ask(&proxy, "PutItem", json!({})).await.context("the rule was for one time")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_told_in_the_services_own_words() -> Result<()> {
    let (service, proxy) = both().await?;
    let cases = [
        (ServiceError::ThroughputExceeded, 400, "#ProvisionedThroughputExceededException"),
        (ServiceError::Throttling, 400, "#ThrottlingException"),
        (ServiceError::Internal, 500, "#InternalServerError"),
        (ServiceError::TransactionConflict, 400, "#TransactionConflictException"),
    ];
    for (error, status, name) in cases {
        proxy.rule(On::Any, When::Times(1), Fault::Fail(error));
        let (got, text) = ask(&proxy, "UpdateItem", json!({})).await?;
        assert!(got == status && text.contains(name), "{got} {text}");
    }
    proxy.rule(On::Operation("TransactWriteItems"), When::Always, Fault::Fail(ServiceError::TransactionConflict));
    let (_, text) = ask(&proxy, "TransactWriteItems", json!({ "TransactItems": [{}, {}, {}] })).await?;
    let reasons = serde_json::from_str::<Value>(&text)?["CancellationReasons"].clone();
    let codes: Vec<_> = reasons.as_array().context("no reasons")?.iter().map(|reason| reason["Code"].clone()).collect();
    assert_eq!(codes, ["TransactionConflict", "None", "None"]);
    proxy.rule(On::Path("PUT", "/bucket/"), When::Always, Fault::Fail(ServiceError::Throttling));
    let response = client()?.put(format!("{}/bucket/key", proxy.url)).body("x").send().await?;
    assert!(response.status() == 503 && response.text().await?.contains("<Code>SlowDown</Code>"));
    assert_eq!(service.done(), [""; 0]);
    proxy.heal();
    client()?.put(format!("{}/bucket/key", proxy.url)).body("x").send().await?;
    assert_eq!(service.done().len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_request_is_carried_out_though_its_client_has_gone() -> Result<()> {
    let (service, proxy) = both().await?;
    proxy.rule(On::Any, When::Times(1), Fault::Delay(Duration::from_millis(300)));
    let request = client()?.get(format!("{}/late", proxy.url)).timeout(Duration::from_millis(50));
    assert!(request.send().await.unwrap_err().is_timeout());
    wait_until("it is carried out", PATIENCE, async || (service.done().len() == 1).then_some(())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_carries_nothing_out() -> Result<()> {
    let (service, proxy) = both().await?;
    proxy.rule(On::Path("GET", "/lost"), When::Always, Fault::BlackHole);
    let request = client()?.get(format!("{}/lost", proxy.url)).timeout(Duration::from_millis(200));
    assert!(request.send().await.unwrap_err().is_timeout());
    client()?.get(format!("{}/found", proxy.url)).send().await?;
    assert_eq!(service.done().len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_cuts_answers_at_the_same_bytes() -> Result<()> {
    let service = Service::start().await?;
    let mut lengths = Vec::new();
    for _ in 0..2 {
        let proxy = FaultProxy::start(&service.http.url, 42).await?;
        proxy.rule(On::Any, When::Always, Fault::CutAnswer);
        let mut response = client()?.get(&proxy.url).send().await?;
        let mut length = 0;
        let end = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => length += chunk.len(),
                end => break end,
            }
        };
        assert!(end.is_err(), "a client must see that something is missing");
        lengths.push(length);
    }
    assert!(lengths[0] > 0 && lengths[0] < LENGTH && lengths[0] == lengths[1], "{lengths:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_meets_the_same_requests() -> Result<()> {
    let service = Service::start().await?;
    let mut met = Vec::new();
    for _ in 0..2 {
        let proxy = FaultProxy::start(&service.http.url, 3).await?;
        // The first rule that decides is the only one.
        proxy.rule(On::Operation("GetItem"), When::Times(1), Fault::Pass);
        proxy.rule(On::Any, When::Chance(0.5), Fault::Fail(ServiceError::Internal));
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(ask(&proxy, "GetItem", json!({})).await?.0);
        }
        assert!(statuses[0] == 200 && statuses.contains(&500) && statuses[1..].contains(&200), "{statuses:?}");
        met.push(statuses);
    }
    assert_eq!(met[0], met[1]);
    Ok(())
}
