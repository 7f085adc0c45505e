//! The certificate as its files had it when they were last good.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::TlsFiles;

/// How often the files are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Certificate {
    files: TlsFiles,
    now: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    pub fn read(files: TlsFiles) -> io::Result<Self> {
        let now = RwLock::new(Arc::new(certified(&files)?));
        Ok(Self { files, now })
    }

    fn now(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at the files again; gives whether they had changed.
    fn look_again(&self) -> io::Result<bool> {
        let found = certified(&self.files)?;
        let changed = found.cert != self.now().cert;
        if changed {
            *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
        }
        Ok(changed)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

pub(crate) async fn renew(certificate: Arc<Certificate>) {
    let path = certificate.files.certificates.display();
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        match certificate.look_again() {
            Ok(true) => tracing::info!(%path, "a certificate was renewed"),
            Ok(false) => {}
            // Half written, perhaps: the old one serves on.
            Err(error) => tracing::warn!(%error, "a certificate can't be read again"),
        }
    }
}

fn certified(files: &TlsFiles) -> io::Result<CertifiedKey> {
    let bad = |path: &Path, error: &dyn std::fmt::Display| io::Error::other(format!("{} can't be used: {error}", path.display()));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificates)
        .and_then(Iterator::collect)
        .map_err(|error| bad(&files.certificates, &error))?;
    if chain.is_empty() {
        return Err(bad(&files.certificates, &"it holds no certificate"));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| bad(&files.key, &error))?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(|error| bad(&files.key, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(files: &TlsFiles) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        std::fs::write(&files.certificates, made.cert.pem()).unwrap();
    }

    #[test]
    fn a_renewed_certificate_is_served_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles { certificates: folder.path().join("tls.crt"), key: folder.path().join("tls.key") };
        write(&files);
        let certificate = Certificate::read(files.clone()).unwrap();
        let first = certificate.now();
        assert!(!certificate.look_again().unwrap(), "nothing has changed");
        write(&files);
        assert!(certificate.look_again().unwrap());
        let second = certificate.now();
        assert_ne!(first.cert, second.cert);
        std::fs::write(&files.certificates, "half a fi").unwrap();
        let text = certificate.look_again().unwrap_err().to_string();
        assert!(text.contains("tls.crt can't be used"), "{text}");
        write(&files);
        write(&TlsFiles { certificates: folder.path().join("other.crt"), key: files.key.clone() });
        assert!(certificate.look_again().is_err(), "a key of another certificate");
        assert_eq!(certificate.now().cert, second.cert, "the last good one serves on");
    }
}
