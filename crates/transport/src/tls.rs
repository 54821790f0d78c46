//! TLS on both sides: a node shows its certificate whether it asks or answers, and both must be
//! signed by the cluster's own authority. A holder of such a certificate is a member. Host names are not
//! looked at, because addresses move and node ids are checked in the greeting.

use crate::Error;
use base::env::Stream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Reads PEM files: the authority's certificates, this node's chain and its key.
    pub fn load(authority: &Path, certificate: &Path, key: &Path) -> Result<Tls, Error> {
        let roots = read(authority)?;
        let chain = read(certificate)?;
        let key_pem = std::fs::read(key).map_err(|error| fault(key, error))?;
        let key_der = rustls_pemfile::private_key(&mut &key_pem[..])
            .map_err(|error| fault(key, error))?
            .ok_or_else(|| fault(key, "there is no private key in it"))?;
        Tls::new(roots, chain, key_der)
    }

    pub fn new(
        authority: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Tls, Error> {
        let wrong = |error: rustls::Error| Error::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in authority {
            roots.add(certificate).map_err(wrong)?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| Error::Tls(error.to_string()))?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(wrong)?;
        let members =
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
                .build()
                .map_err(|error| Error::Tls(error.to_string()))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Members { chain: members }))
            .with_client_auth_cert(chain, key)
            .map_err(wrong)?;
        Ok(Tls {
            connector: TlsConnector::from(Arc::new(client)),
            acceptor: TlsAcceptor::from(Arc::new(server)),
        })
    }

    pub(crate) async fn connect(&self, stream: Stream) -> std::io::Result<Stream> {
        let name = ServerName::try_from("atoll.invalid").map_err(std::io::Error::other)?;
        Ok(Box::new(self.connector.connect(name, stream).await?))
    }

    pub(crate) async fn accept(&self, stream: Stream) -> std::io::Result<Stream> {
        Ok(Box::new(self.acceptor.accept(stream).await?))
    }
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = std::fs::read(path).map_err(|error| fault(path, error))?;
    let found: Result<Vec<_>, _> = rustls_pemfile::certs(&mut &pem[..]).collect();
    match found {
        Ok(certificates) if certificates.is_empty() => {
            Err(fault(path, "there is no certificate in it"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(fault(path, error)),
    }
}

fn fault(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::Tls(format!("{}: {why}", path.display()))
}

/// Checks the whole chain up to the cluster's authority, and leaves out the host name alone.
#[derive(Debug)]
struct Members {
    chain: Arc<rustls::client::WebPkiServerVerifier>,
}

impl ServerCertVerifier for Members {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        match self.chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
