//! An API server of a test's own: it answers as the test says, or never.

use axum::Router;
use kube::{Client, Config};

/// A client whose requests this router answers, until the test ends.
pub(crate) async fn cluster(router: Router) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    super::create::client(Config::new(url), "ckrv-test").unwrap()
}
