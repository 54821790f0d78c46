//! What a certificate says: the name of its node, who signed it, until when it is good.
//!
//! A node's **name** is the common name of its certificate. It is how other nodes know whom they speak
//! to: ids are given out by the cluster, names by the person who holds the authority's key.

use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use std::path::Path;
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

/// A name longer than this is nobody's; what is shown of it is cut.
pub const NAME_CHARS_MAX: usize = 64;

/// What people want to know of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The subject's common name; empty where there is none.
    pub name: String,
    /// The common name of the authority that signed it.
    pub authority: String,
    /// Host names and addresses.
    pub hosts: Vec<String>,
    pub is_authority: bool,
    pub begins: ASN1Time,
    pub expires: ASN1Time,
}

impl Facts {
    pub fn read(der: &[u8]) -> Result<Facts, String> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| format!("not a certificate: {error}"))?;
        let common = |name: &x509_parser::x509::X509Name<'_>| {
            let first = name.iter_common_name().next().and_then(|name| name.as_str().ok());
            first.unwrap_or_default().to_owned()
        };
        let hosts = match certificate.subject_alternative_name() {
            Ok(Some(names)) => names.value.general_names.iter().filter_map(host).collect(),
            _ => Vec::new(),
        };
        Ok(Facts {
            name: common(certificate.subject()),
            authority: common(certificate.issuer()),
            hosts,
            is_authority: certificate.is_ca(),
            begins: certificate.validity().not_before,
            expires: certificate.validity().not_after,
        })
    }

    /// Its name, if it is one that a node can have.
    pub fn node_name(&self) -> Result<&str, String> {
        check_name(&self.name).map(|()| self.name.as_str())
    }
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(host) => Some((*host).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(four) => Some(std::net::IpAddr::from(four).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|sixteen| std::net::IpAddr::from(sixteen).to_string()),
        },
        _ => None,
    }
}

/// Names stand in file names, lines of logs and rows.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if name.is_empty() || name.len() > NAME_CHARS_MAX || name.starts_with('.') {
        return Err(format!(
            "{name:.64?} is no name for a node: it needs 1 to {NAME_CHARS_MAX} letters"
        ));
    }
    match name.chars().all(is_plain) {
        true => Ok(()),
        false => {
            Err(format!("{name:?} is no name for a node: use letters, digits, `-`, `_` and `.`"))
        }
    }
}

/// The certificates of a PEM file.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
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

/// A chain and its key, from PEM files. They must belong together.
pub fn read_certified(certificate: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let chain = read_chain(certificate)?;
    let pem = std::fs::read(key).map_err(|error| fault(key, error))?;
    let der = rustls_pemfile::private_key(&mut &pem[..])
        .map_err(|error| fault(key, error))?
        .ok_or_else(|| fault(key, "there is no private key in it"))?;
    CertifiedKey::from_der(chain, der, &rustls::crypto::ring::default_provider()).map_err(|error| {
        let why = match error {
            rustls::Error::InconsistentKeys(_) => "it is not the key of the certificate".into(),
            other => other.to_string(),
        };
        format!("{}: {why} in {}", key.display(), certificate.display())
    })
}

pub(crate) fn fault(path: &Path, why: impl std::fmt::Display) -> String {
    format!("{}: {why}", path.display())
}

/// `tls-server-end-point` of RFC 5929: the hash of the certificate by the hash of its signature, SHA-256
/// instead of MD5 and SHA-1. None where the signature has no hash of its own, as Ed25519.
pub fn end_point(der: &[u8]) -> Option<Vec<u8>> {
    use ring::digest::{SHA256, SHA384, SHA512, digest};
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let oid = certificate.signature_algorithm.algorithm.to_id_string();
    let algorithm = match oid.as_str() {
        // RSA with MD5 and SHA-1, ECDSA with SHA-1; then both with SHA-256.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => &SHA256,
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => &SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &SHA512,
        _ => return None,
    };
    Some(digest(algorithm, der).as_ref().to_vec())
}
