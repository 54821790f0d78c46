//! TLS on both sides: a node shows its certificate whether it asks or answers, and both must be
//! signed by the cluster's own authority. The name in a certificate says whose it is; which node may have
//! which name is compared at the greeting. Host names are not looked at, because addresses move.
//!
//! Each handshake has a configuration of its own, made from certificates that are read anew when their
//! files change. So no session is resumed, and each connection is judged by the certificates of its
//! begin; a connection that stands is not judged again.
//!
//! Who is refused is told so by TLS's alerts, which name neither a certificate nor a remedy. Each side
//! therefore says in its own words what it knows: who refuses, whose certificate it was and from where;
//! who is refused, which certificate of its own it showed and what to do.

use crate::Error;
use crate::certificate::{Facts, end_point, fault, read_certified, read_chain};
use crate::files::Files;
use base::env::Stream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    RootCertStore, ServerConfig, SignatureScheme,
};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tokio::io::AsyncReadExt;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Bytes of a refused peer that are read, so that the alert reaches it before its connection is reset.
const LAST_BYTES_MAX: u64 = 64 * 1024;

/// A node's certificates. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Source);

#[derive(Clone)]
enum Source {
    Files(Arc<Files<Credentials>>),
    Given(Arc<Credentials>),
}

/// An encrypted stream and the name in the certificate of who is at its other end.
pub type Known = (Stream, Arc<str>);

impl Tls {
    /// Reads PEM files: the authority's certificates, this node's chain and its key. They are read anew
    /// when they change.
    pub fn load(authority: &Path, certificate: &Path, key: &Path) -> Result<Tls, Error> {
        let paths = [authority, certificate, key].map(Path::to_path_buf);
        let [authority, certificate, key] = paths.clone();
        let read = move || {
            let certified = read_certified(&certificate, &key)?;
            let credentials = Credentials::new(read_chain(&authority)?, certified)
                .map_err(|reason| fault(&certificate, reason))?;
            Ok(credentials)
        };
        let files = Files::open(paths.to_vec(), read).map_err(Error::Tls)?;
        Ok(Tls(Source::Files(Arc::new(files))))
    }

    pub fn new(
        authority: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Tls, Error> {
        let certified =
            CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
                .map_err(|error| Error::Tls(error.to_string()))?;
        let credentials = Credentials::new(authority, certified).map_err(Error::Tls)?;
        Ok(Tls(Source::Given(Arc::new(credentials))))
    }

    fn now(&self) -> Arc<Credentials> {
        match &self.0 {
            Source::Files(files) => files.get(),
            Source::Given(credentials) => credentials.clone(),
        }
    }

    /// The name in this node's own certificate.
    pub fn name(&self) -> String {
        self.now().facts.name.clone()
    }

    /// When it expires, in seconds since 1970.
    pub fn expires_s(&self) -> i64 {
        self.now().facts.expires.timestamp()
    }

    pub(crate) async fn connect(&self, stream: Stream, to: IpAddr) -> Result<Known, String> {
        let own = self.now();
        let judge = Arc::new(Judge::new(&own, to));
        let config = ClientConfig::builder_with_provider(own.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(judge.clone())
            .with_client_cert_resolver(own.shown.clone());
        let name = ServerName::try_from("atoll.invalid").map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(Arc::new(config));
        match connector.connect(name, stream).await {
            Ok(stream) => {
                let name = peer_name(stream.get_ref().1.peer_certificates())?;
                Ok((Box::new(stream), name))
            }
            Err(error) => Err(match judge.refused.get() {
                Some(reason) => reason.clone(),
                None => own.explain(&error).unwrap_or_else(|| error.to_string()),
            }),
        }
    }

    /// `refused` hears why at once: who is refused may take its time to go.
    pub(crate) async fn accept(
        &self,
        stream: Stream,
        from: IpAddr,
        refused: impl Fn(&str),
    ) -> Result<Known, String> {
        let own = self.now();
        let judge = Arc::new(Judge::new(&own, from));
        let config = ServerConfig::builder_with_provider(own.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(judge.clone())
            .with_cert_resolver(own.shown.clone());
        match TlsAcceptor::from(Arc::new(config)).accept(stream).into_fallible().await {
            Ok(stream) => {
                let name = peer_name(stream.get_ref().1.peer_certificates())?;
                Ok((Box::new(stream), name))
            }
            Err((error, stream)) => {
                let reason = match judge.refused.get() {
                    Some(reason) => reason.clone(),
                    None => match own.explain(&error) {
                        Some(reason) => format!("{from}: {reason}"),
                        None => format!("{from} is refused: {error}"),
                    },
                };
                refused(&reason);
                let mut last = tokio::io::sink();
                // Whatever comes of it, the peer is refused.
                drop(tokio::io::copy(&mut stream.take(LAST_BYTES_MAX), &mut last).await);
                Err(reason)
            }
        }
    }

    /// What an error on an open connection says about certificates, if it does.
    pub(crate) fn explain(&self, error: &std::io::Error) -> Option<String> {
        self.now().explain(error)
    }
}

fn peer_name(chain: Option<&[CertificateDer<'_>]>) -> Result<Arc<str>, String> {
    let first =
        chain.and_then(|chain| chain.first()).ok_or("the other side shows no certificate")?;
    let facts = Facts::read(first)?;
    Ok(facts.node_name()?.into())
}

/// What a node shows and whom it believes.
struct Credentials {
    provider: Arc<CryptoProvider>,
    shown: Arc<SingleCertAndKey>,
    facts: Facts,
    /// The authority's name.
    authority: String,
    servers: Arc<dyn ServerCertVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Credentials {
    fn new(
        authority: Vec<CertificateDer<'static>>,
        certified: CertifiedKey,
    ) -> Result<Credentials, String> {
        let text = |error: rustls::Error| error.to_string();
        let first = authority.first().ok_or("there is no authority")?;
        let authority_name = Facts::read(first)?.name;
        let own = certified.cert.first().ok_or("there is no certificate")?;
        let facts = Facts::read(own)?;
        facts.node_name()?;
        let mut roots = RootCertStore::empty();
        for certificate in authority {
            roots.add(certificate).map_err(text)?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| error.to_string())?;
        let servers =
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
                .build()
                .map_err(|error| error.to_string())?;
        let shown = Arc::new(SingleCertAndKey::from(certified));
        Ok(Credentials { provider, shown, facts, authority: authority_name, servers, clients })
    }

    /// An alert of the other side, in words.
    fn explain(&self, error: &std::io::Error) -> Option<String> {
        let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        let Facts { name, authority, expires, .. } = &self.facts;
        let renew = format!("`atoll cert node {name}` makes a new one, which is taken up in place");
        match error {
            rustls::Error::AlertReceived(AlertDescription::UnknownCA) => Some(format!(
                "the other side refuses this node's certificate {name:?}, because it was signed by an \
                 authority that is not the other side's ({authority:?}): both need certificates of one \
                 authority; {renew}"
            )),
            rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => Some(format!(
                "the other side refuses this node's certificate {name:?}, because it expired on \
                 {expires}: {renew}"
            )),
            rustls::Error::AlertReceived(
                alert @ (AlertDescription::CertificateUnknown
                | AlertDescription::BadCertificate
                | AlertDescription::DecryptError
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRequired),
            ) => Some(format!(
                "the other side refuses this node's certificate {name:?} of {authority:?} ({alert:?}): {renew}"
            )),
            rustls::Error::InvalidMessage(_) => {
                Some("the other side does not speak TLS as nodes of Atoll do".into())
            }
            rustls::Error::NoCertificatesPresented => {
                Some("the other side shows no certificate".into())
            }
            _ => None,
        }
    }
}

/// Judges one peer's certificate: the whole chain up to the cluster's authority, and leaves out the
/// host name alone. Keeps in words why it was refused.
struct Judge {
    own: Arc<Credentials>,
    peer: IpAddr,
    refused: OnceLock<String>,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Judge {
    fn new(own: &Arc<Credentials>, peer: IpAddr) -> Judge {
        Judge { own: own.clone(), peer, refused: OnceLock::new() }
    }

    fn refuse(&self, der: &[u8], error: rustls::Error) -> rustls::Error {
        let peer = self.peer;
        let reason = match Facts::read(der) {
            Err(reason) => format!("{peer} shows what is {reason}"),
            Ok(facts) => {
                let Facts { name, authority, expires, begins, .. } = facts;
                let ours = &self.own.authority;
                match &error {
                    rustls::Error::InvalidCertificate(
                        CertificateError::UnknownIssuer | CertificateError::BadSignature,
                    ) => format!(
                        "{peer} shows the certificate {name:.64?} of the authority {authority:.64?}, which is \
                         not this node's authority {ours:?}: make a certificate for it with the authority \
                         of this cluster (`atoll cert node`), and give it that authority.pem too"
                    ),
                    rustls::Error::InvalidCertificate(
                        CertificateError::Expired | CertificateError::ExpiredContext { .. },
                    ) => format!(
                        "{peer} shows the certificate {name:.64?}, which expired on {expires}: renew it with \
                         `atoll cert node {name:.64}`; a node takes it up in place"
                    ),
                    rustls::Error::InvalidCertificate(
                        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
                    ) => format!(
                        "{peer} shows the certificate {name:.64?}, which is good from {begins} on: compare the \
                         clocks of the two hosts"
                    ),
                    other => format!(
                        "{peer} shows the certificate {name:.64?} of {authority:.64?}: {other}"
                    ),
                }
            }
        };
        // One handshake judges one certificate.
        self.refused.set(reason).ok();
        error
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        match self.own.servers.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict.map_err(|error| self.refuse(certificate, error)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.own.servers.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.own.servers.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.own.servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.own.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verdict = self.own.clients.verify_client_cert(certificate, intermediates, now);
        verdict.map_err(|error| self.refuse(certificate, error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.own.clients.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.own.clients.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.own.clients.supported_verify_schemes()
    }
}

/// TLS towards clients, who show no certificate: a chain and its key from PEM files, read anew when they
/// change, and the hash by which a client may tie its password to this very channel.
pub struct Front(Files<Shown>);

/// What a client is shown.
#[derive(Clone)]
pub struct Shown {
    pub config: Arc<ServerConfig>,
    /// `tls-server-end-point`.
    pub end_point: Option<Vec<u8>>,
}

impl Front {
    /// `protocol`: what the two sides may agree on by ALPN.
    pub fn load(certificate: &Path, key: &Path, protocol: &'static [u8]) -> Result<Front, Error> {
        let paths = [certificate, key].map(Path::to_path_buf);
        let [certificate, key] = paths.clone();
        let read = move || {
            let certified = read_certified(&certificate, &key)?;
            let end_point = certified.cert.first().and_then(|first| end_point(first));
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok(Shown { config: Arc::new(config), end_point })
        };
        Files::open(paths.to_vec(), read).map(Front).map_err(Error::Tls)
    }

    pub fn now(&self) -> Arc<Shown> {
        self.0.get()
    }
}
