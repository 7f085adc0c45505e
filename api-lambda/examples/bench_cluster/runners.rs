//! Stand-ins for job runners, whose pods have no containers: each with a token of its pod and connections of its own, it beats every twenty
//! seconds and waits in between for what the gateway has to tell, as the real one does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ckrv_core::job::JobRecord;
use ckrv_tests::kwok::Direct;
use futures::StreamExt as _;
use tokio::task::JoinSet;

use crate::dispatcher::Dispatcher;

const BEAT: Duration = Duration::from_secs(20);
const TOKENS_AT_ONCE: usize = 16;
const AUDIENCE: &str = "ckrv-gateway";

/// Dropped, they are gone.
#[derive(Debug, Default)]
pub struct Runners {
    tasks: JoinSet<()>,
    pub beats: Arc<AtomicUsize>,
    pub failures: Arc<AtomicUsize>,
}

impl Runners {
    /// One for each of these jobs.
    pub async fn start(&mut self, dispatcher: &Dispatcher, jobs: &[JobRecord]) -> Result<()> {
        let direct = Direct::new(&dispatcher.namespace).await?;
        let tokens = jobs.iter().map(|job| {
            let direct = direct.clone();
            let pod = format!("ckrv-{}-{}", job.id.0.simple(), job.fence);
            async move { Ok::<_, anyhow::Error>((job, direct.token("ckrv-job", &pod, AUDIENCE).await?)) }
        });
        let mut tokens = futures::stream::iter(tokens).buffer_unordered(TOKENS_AT_ONCE);
        let tls = tls(&dispatcher.ca)?;
        while let Some(token) = tokens.next().await {
            let (job, token) = token?;
            let claim = job.lease.as_ref().context("a job without a lease")?.claim;
            let url = format!("https://{}/attempts/{}/{}/{claim}", dispatcher.gateway, job.id, job.fence);
            let client = reqwest::Client::builder().tls_backend_preconfigured(tls.clone()).no_proxy().build()?;
            let (beats, failures) = (Arc::clone(&self.beats), Arc::clone(&self.failures));
            self.tasks.spawn(async move {
                tokio::join!(beat(&client, &url, &token, &beats, &failures), attend(&client, &url, &token));
            });
        }
        Ok(())
    }
}

async fn beat(client: &reqwest::Client, url: &str, token: &str, beats: &AtomicUsize, failures: &AtomicUsize) {
    // They don't all begin in the same moment.
    tokio::time::sleep(BEAT.mul_f64(rand::random())).await;
    loop {
        let sent = client.post(format!("{url}/beat")).bearer_auth(token).json(&()).send().await;
        let counter = if sent.is_ok_and(|answer| answer.status().is_success()) { beats } else { failures };
        counter.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(BEAT).await;
    }
}

async fn attend(client: &reqwest::Client, url: &str, token: &str) {
    loop {
        let told = client.get(format!("{url}/attention?watched=false")).bearer_auth(token).send().await;
        if !told.is_ok_and(|answer| answer.status().is_success()) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

fn tls(ca: &str) -> Result<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(ca.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
