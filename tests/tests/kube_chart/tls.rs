//! A TLS handshake with what the chart made, both ends in this process.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// `certificate`, `key`: the server's; `ca`: what the client trusts.
pub async fn handshake(certificate: &[u8], key: &[u8], ca: &[u8], host: &str) -> Result<()> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let server = server.with_no_client_auth().with_single_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?;
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(ca) {
        roots.add(root?)?;
    }
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let (near, far) = tokio::io::duplex(1 << 16);
    let serving = tokio::spawn(TlsAcceptor::from(Arc::new(server)).accept(far));
    let name = ServerName::try_from(host.to_owned()).context("no host's name")?;
    let _open = TlsConnector::from(Arc::new(client)).connect(name, near).await?;
    serving.await??;
    Ok(())
}
