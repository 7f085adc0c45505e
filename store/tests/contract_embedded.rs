//! The embedded backend passes the suite that every backend passes.

#![expect(clippy::unwrap_used, reason = "tests")]

use ckrv_store::contract::Fixture;

async fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let stores = tokio::task::spawn_blocking(move || ckrv_store::open_embedded(&path).unwrap()).await.unwrap();
    Fixture { stores, guard: Box::new(folder) }
}

ckrv_store::contract_tests!(fixture);
