//! TLS towards one certificate that is known beforehand, by its fingerprint. There's no authority and no name to check: the launcher
//! says which certificate it is, over a channel of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme, version};

pub type Fingerprint = [u8; 32];

/// Of a certificate in DER.
pub fn fingerprint(certificate: &[u8]) -> Fingerprint {
    Sha256::digest(certificate).into()
}

pub struct Pinned {
    connector: TlsConnector,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    /// # Errors
    /// None with the built-in provider, which speaks TLS 1.3.
    pub fn new(fingerprint: Fingerprint) -> io::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(Verifier { fingerprint, provider: Arc::clone(&provider) });
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&version::TLS13]);
        let config = config.map_err(io::Error::other)?.dangerous().with_custom_certificate_verifier(verifier);
        Ok(Self { connector: TlsConnector::from(Arc::new(config.with_no_client_auth())), provider })
    }

    pub async fn connect(&self, to: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let connection = TcpStream::connect(to).await?;
        connection.set_nodelay(true)?;
        self.connector.connect(ServerName::IpAddress(to.ip().into()), connection).await
    }

    /// From the same source as TLS takes it.
    pub fn random<const N: usize>(&self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.provider.secure_random.fill(&mut bytes).map_err(|_| io::Error::other("the system gives no randomness"))?;
        Ok(bytes)
    }
}

#[derive(Debug)]
struct Verifier {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if fingerprint(end_entity) == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    /// The certificate is public: that the other end has its key is what this shows.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
