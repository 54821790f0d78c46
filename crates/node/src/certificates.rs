//! The cluster's own authority, and the certificates that it signs.
//!
//! ```text
//! DIR/authority.pem   what each node gets: whom it believes
//! DIR/authority.key   what no node gets: whoever has it makes members
//! DIR/NAME.pem, DIR/NAME.key   what the node NAME gets
//! ```
//!
//! A certificate is renewed by making it again: with a new key, for the same name and hosts. A node reads its files
//! at each handshake, so it takes up what is copied over them without a restart.

use base::Env;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use transport::certificate::{Facts, check_name, read_chain};

pub const AUTHORITY: &str = "authority";
pub const AUTHORITY_DAYS: u32 = 3650;
pub const NODE_DAYS: u32 = 365;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The two files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

pub fn pair(dir: &Path, name: &str) -> Pair {
    Pair { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) }
}

/// Makes the authority of a new cluster.
pub fn make_authority(env: &Env, dir: &Path, days: u32) -> Result<Pair, String> {
    let files = pair(dir, AUTHORITY);
    if let Some(there) = [&files.certificate, &files.key].into_iter().find(|path| path.exists()) {
        return Err(format!(
            "{} is there: an authority is made once, and `atoll cert node` uses it; choose another --dir for \
             another cluster",
            there.display()
        ));
    }
    // Two clusters' authorities are told apart in the lines of their logs.
    let name = format!("Atoll authority {:08x}", env.random() as u32);
    let mut params = params(env, &name, &[], days)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(wrong)?;
    let certificate = params.self_signed(&key).map_err(wrong)?;
    write(&files, &certificate.pem(), &key.serialize_pem())?;
    Ok(files)
}

/// Makes, or makes again, the certificate of the node `name`. Without `hosts` it gets those that it had.
pub fn make_node(
    env: &Env,
    dir: &Path,
    name: &str,
    hosts: &[String],
    days: u32,
) -> Result<Pair, String> {
    check_name(name)?;
    if name == AUTHORITY {
        return Err(format!("{name:?} is the name of the authority's own files: choose another"));
    }
    let authority = pair(dir, AUTHORITY);
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| {
            format!(
                "{}: {error} (the directory of the authority is named by --dir; `atoll cert authority` makes one)",
                path.display()
            )
        })
    };
    let key = KeyPair::from_pem(&read(&authority.key)?)
        .map_err(|error| format!("{}: {error}", authority.key.display()))?;
    let issuer = Issuer::from_ca_cert_pem(&read(&authority.certificate)?, key)
        .map_err(|error| format!("{}: {error}", authority.certificate.display()))?;
    let files = pair(dir, name);
    let mut hosts = hosts.to_vec();
    if hosts.is_empty() && files.certificate.exists() {
        hosts = facts(&files.certificate)?.hosts;
    }
    if hosts.is_empty() {
        return Err(format!(
            "at which hosts do SQL clients reach the node {name:?}? Give --host NAME-OR-ADDRESS, once for each"
        ));
    }
    let mut params = params(env, name, &hosts, days)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().map_err(wrong)?;
    let certificate = params.signed_by(&key, &issuer).map_err(wrong)?;
    write(&files, &certificate.pem(), &key.serialize_pem())?;
    Ok(files)
}

/// What the first certificate of a file says.
pub fn facts(path: &Path) -> Result<Facts, String> {
    let chain = read_chain(path)?;
    let first = chain.first().ok_or_else(|| format!("{}: it is empty", path.display()))?;
    Facts::read(first).map_err(|reason| format!("{}: {reason}", path.display()))
}

/// Whether it is good for so many days from now on.
pub fn is_good_for(env: &Env, path: &Path, days: u32) -> bool {
    let until = env.wall_us() / 1_000_000 + i64::from(days) * DAY.as_secs().cast_signed();
    facts(path).is_ok_and(|facts| facts.expires.timestamp() > until)
}

fn params(env: &Env, name: &str, hosts: &[String], days: u32) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::new(hosts.to_vec())
        .map_err(|error| format!("a host of {hosts:?} cannot stand in a certificate: {error}"))?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now_s = u64::try_from(env.wall_us() / 1_000_000).unwrap_or(0);
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now_s);
    // The clocks of hosts differ.
    params.not_before = now - DAY;
    params.not_after = now + DAY * days;
    Ok(params)
}

fn wrong(error: rcgen::Error) -> String {
    format!("a certificate cannot be made: {error}")
}

/// The key first: whoever reads the two in between finds that they do not fit, and looks again.
fn write(files: &Pair, certificate: &str, key: &str) -> Result<(), String> {
    put(&files.key, key, 0o600)?;
    put(&files.certificate, certificate, 0o644)
}

/// The old content or the new, never half of it.
fn put(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    let draft = path.with_extension("new");
    let write = || {
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        // A draft that an ended process left might be readable for others.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(|error| format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_authority_signs_nodes_which_keep_their_hosts_when_they_are_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let (env, dir) = (Env::real(), dir.path());
        let error = make_node(&env, dir, "n1", &["db1".into()], 1).unwrap_err();
        assert!(error.contains("`atoll cert authority` makes one"), "{error}");
        let authority = make_authority(&env, dir, 10).unwrap();
        assert!(make_authority(&env, dir, 10).unwrap_err().contains("made once"));
        let mode = fs::metadata(&authority.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(make_node(&env, dir, "n1", &[], 1).unwrap_err().contains("--host"));
        assert!(make_node(&env, dir, "../n1", &["db1".into()], 1).is_err());
        let hosts = ["db1".to_owned(), "10.0.0.1".to_owned()];
        let files = make_node(&env, dir, "n1", &hosts, 1).unwrap();
        let first = fs::read_to_string(&files.certificate).unwrap();
        assert!(
            is_good_for(&env, &files.certificate, 0) && !is_good_for(&env, &files.certificate, 2)
        );
        make_node(&env, dir, "n1", &[], 3).unwrap();
        assert_ne!(fs::read_to_string(&files.certificate).unwrap(), first);
        let known = facts(&files.certificate).unwrap();
        assert_eq!((known.name.as_str(), &known.hosts[..]), ("n1", &hosts[..]));
        assert_eq!(known.authority, facts(&authority.certificate).unwrap().name);
        transport::tls::Tls::load(&authority.certificate, &files.certificate, &files.key).unwrap();
    }
}
