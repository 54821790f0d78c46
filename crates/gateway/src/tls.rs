//! TLS towards clients (SNI, ALPN, certificates read anew when the files change) and towards
//! servers.

use crate::config::{Certificate, Clients, UpstreamTls};
use base::env::Stream;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {reason}", path.display())]
    Wrong { path: PathBuf, reason: String },
}

fn wrong(path: &Path, reason: impl ToString) -> Error {
    Error::Wrong { path: path.into(), reason: reason.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = rustls_pemfile::certs(&mut &pem[..]).collect();
    let found = found.map_err(|error| wrong(path, error))?;
    if found.is_empty() {
        return Err(wrong(path, "there is no certificate in it"));
    }
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let pem = read(path)?;
    rustls_pemfile::private_key(&mut &pem[..])
        .map_err(|error| wrong(path, error))?
        .ok_or_else(|| wrong(path, "there is no private key in it"))
}

fn roots(authority: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(authority)? {
        roots.add(certificate).map_err(|error| wrong(authority, error))?;
    }
    Ok(roots)
}

/// Whom a certificate names, as Envoy's `x-forwarded-client-cert` tells it.
fn named(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    // A quote in a name would end it.
    let quoted = |text: &str| {
        let is_plain = |c: &char| !c.is_control() && *c != '"' && *c != '\\' && c.is_ascii();
        format!("\"{}\"", text.chars().filter(is_plain).collect::<String>())
    };
    let mut told = format!("Subject={}", quoted(&parsed.subject().to_string()));
    if let Ok(Some(alternative)) = parsed.subject_alternative_name() {
        for name in &alternative.value.general_names {
            match name {
                GeneralName::DNSName(name) => told += &format!(";DNS={}", quoted(name)),
                GeneralName::URI(uri) => told += &format!(";URI={}", quoted(uri)),
                _ => {}
            }
        }
    }
    Some(told)
}

/// One certificate that this gateway shows.
#[derive(Debug)]
pub struct Shown {
    /// The names that it holds, lower-case.
    pub names: Vec<String>,
    /// Seconds since 1970 after which clients refuse it.
    pub expires_s: i64,
    key: Arc<CertifiedKey>,
}

impl Shown {
    pub fn load(files: &Certificate) -> Result<Shown, Error> {
        let path = &files.certificate;
        let chain = chain(path)?;
        let own = chain.first().ok_or_else(|| wrong(path, "there is no certificate in it"))?;
        let (_, parsed) = X509Certificate::from_der(own).map_err(|error| wrong(path, error))?;
        let expires_s = parsed.validity().not_after.timestamp();
        let mut names = Vec::new();
        if let Ok(Some(alternative)) = parsed.subject_alternative_name() {
            for name in &alternative.value.general_names {
                if let GeneralName::DNSName(name) = name {
                    names.push(name.to_ascii_lowercase());
                }
            }
        }
        let provider = rustls::crypto::ring::default_provider();
        let signer = CertifiedKey::from_der(chain.clone(), key(&files.key)?, &provider)
            .map_err(|error| wrong(&files.key, error))?;
        Ok(Shown { names, expires_s, key: Arc::new(signer) })
    }

    /// RFC 6125: `*` stands for one whole first label.
    fn is_for(&self, name: &str) -> bool {
        self.names.iter().any(|own| match own.strip_prefix("*.") {
            Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest == parent),
            None => own == name,
        })
    }
}

/// Shows the certificate that holds the asked name; the first one where none does.
#[derive(Debug)]
struct BySni(Arc<Vec<Shown>>);

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let fitting = name.and_then(|name| self.0.iter().find(|shown| shown.is_for(&name)));
        fitting.or(self.0.first()).map(|shown| shown.key.clone())
    }
}

/// What a listener needs to speak TLS.
#[derive(Clone)]
pub struct Acceptor {
    acceptor: TlsAcceptor,
    pub shown: Arc<Vec<Shown>>,
}

impl Acceptor {
    pub fn load(
        certificates: &[Certificate],
        clients: Option<&Clients>,
    ) -> Result<Acceptor, Error> {
        let shown: Result<Vec<Shown>, Error> = certificates.iter().map(Shown::load).collect();
        let shown = Arc::new(shown?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(Path::new("TLS"), error))?;
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(Clients { authority, is_needed }) => {
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let roots = Arc::new(roots(authority)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = match is_needed {
                    true => verifier,
                    false => verifier.allow_unauthenticated(),
                };
                let verifier = verifier.build().map_err(|error| wrong(authority, error))?;
                config.with_client_cert_verifier(verifier)
            }
        };
        let mut config = config.with_cert_resolver(Arc::new(BySni(shown.clone())));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Acceptor { acceptor: TlsAcceptor::from(Arc::new(config)), shown })
    }

    /// The stream, and who its client's certificate says that it is.
    pub async fn accept(&self, stream: Stream) -> io::Result<(Stream, Option<String>)> {
        let stream = self.acceptor.accept(stream).await?;
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(|chain| named(chain.first()?));
        Ok((Box::new(stream), shown))
    }
}

/// What a service needs to speak TLS to its servers.
#[derive(Clone)]
pub struct Connector {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Connector {
    pub fn load(tls: &UpstreamTls, is_http2: bool) -> Result<Connector, Error> {
        let roots = roots(&tls.authority)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(Path::new("TLS"), error))?
            .with_root_certificates(roots);
        let mut config = match &tls.certificate {
            Some(own) => builder
                .with_client_auth_cert(chain(&own.certificate)?, key(&own.key)?)
                .map_err(|error| wrong(&own.certificate, error))?,
            None => builder.with_no_client_auth(),
        };
        let protocol: &[u8] = if is_http2 { b"h2" } else { b"http/1.1" };
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from(tls.server_name.clone())
            .map_err(|error| wrong(&tls.authority, format!("{:?}: {error}", tls.server_name)))?;
        Ok(Connector { connector: TlsConnector::from(Arc::new(config)), name })
    }

    pub async fn connect(&self, stream: Stream) -> io::Result<Stream> {
        Ok(Box::new(self.connector.connect(self.name.clone(), stream).await?))
    }
}
