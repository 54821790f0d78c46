//! TLS towards clients and servers: names, protocols, new certificates, and those that no longer
//! hold.

mod support;

use base::env::Stream;
use bytes::Bytes;
use gateway::config::{Certificate, Clients, UpstreamTls};
use gateway::front::serve;
use gateway::tls::{Acceptor, Connector};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use support::{World, handler, says};
use tokio_rustls::TlsConnector;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: PathBuf,
}

fn authority(dir: &Path) -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let pem = dir.join("authority.pem");
    std::fs::write(&pem, certificate.pem()).unwrap();
    let der = certificate.der().clone();
    Authority { issuer: Issuer::new(params, key), certificate: der, pem }
}

/// A certificate for the names, valid until the first of January of the year.
fn certificate(authority: &Authority, dir: &Path, names: &[&str], year: i32) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names.clone()).unwrap();
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let signed = params.signed_by(&key, &authority.issuer).unwrap();
    let stem = names.join("-").replace('*', "any");
    let files = Certificate {
        certificate: dir.join(format!("{stem}.pem")),
        key: dir.join(format!("{stem}.key")),
    };
    std::fs::write(&files.certificate, signed.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

fn trusting(authority: &Authority, protocols: &[&[u8]]) -> TlsConnector {
    showing(authority, protocols, None)
}

/// A client that trusts the authority, and shows a certificate if it has one.
fn showing(authority: &Authority, protocols: &[&[u8]], own: Option<&Certificate>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let read = |path| std::fs::read(path).unwrap();
            let pem = read(&own.certificate);
            let chain: Result<Vec<_>, _> = rustls_pemfile::certs(&mut &pem[..]).collect();
            let chain = chain.unwrap();
            let key = rustls_pemfile::private_key(&mut &read(&own.key)[..]).unwrap().unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Greets the gateway under a name; the certificate it shows and the protocol it takes.
async fn greet(
    world: &World,
    acceptor: &Acceptor,
    connector: &TlsConnector,
    name: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::io::DuplexStream>> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let stream: Stream = Box::new(far);
    let from = ([192, 0, 2, 1], 4000).into();
    let serving =
        serve::connection(world.gateway.clone(), 0, stream.into(), from, Some(acceptor.clone()));
    world.env.spawn("connection", serving);
    connector.connect(ServerName::try_from(name.to_owned()).unwrap(), near).await
}

const ONE: &str = r#"
    listen = "127.0.0.1:1"
    [services.web]
    servers = ["10.0.0.1:1"]
"#;

#[tokio::test]
async fn the_asked_name_decides_which_certificate_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let world = World::new(ONE);
    let files = [
        certificate(&authority, dir.path(), &["first.example"], 2100),
        certificate(&authority, dir.path(), &["second.example", "*.second.example"], 2100),
    ];
    let acceptor = Acceptor::load(&files, None).unwrap();
    let connector = trusting(&authority, &[b"h2", b"http/1.1"]);
    for name in ["first.example", "second.example", "a.second.example"] {
        let stream = greet(&world, &acceptor, &connector, name).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "{name}");
    }
    // `*` is one label; nobody's name is answered with the first certificate.
    for name in ["a.b.second.example", "third.example"] {
        let error = greet(&world, &acceptor, &connector, name).await.unwrap_err();
        assert!(error.to_string().contains("certificate not valid for name"), "{name}: {error}");
    }
    assert_eq!(acceptor.shown[1].names, ["second.example", "*.second.example"]);
}

#[tokio::test]
async fn requests_go_through_and_say_that_they_came_by_tls() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let world = World::new(ONE);
    let told =
        handler(
            |request| async move { says(request.headers()["x-forwarded-proto"].to_str().unwrap()) },
        );
    world.server(1, told).await;
    let files = certificate(&authority, dir.path(), &["site.example"], 2100);
    let acceptor = Acceptor::load(std::slice::from_ref(&files), None).unwrap();
    let connector = trusting(&authority, &[b"http/1.1"]);
    let stream = greet(&world, &acceptor, &connector, "site.example").await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    world.env.spawn("client", async move {
        connection.await.ok();
    });
    let request = Request::get("/").header("host", "site.example");
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "https");
}

#[tokio::test]
async fn what_expires_is_known_and_what_has_expired_is_refused_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let world = World::new(ONE);
    let old = certificate(&authority, dir.path(), &["old.example"], 2020);
    let acceptor = Acceptor::load(std::slice::from_ref(&old), None).unwrap();
    assert_eq!(acceptor.shown[0].expires_s, 1_577_836_800);
    let connector = trusting(&authority, &[]);
    let error = greet(&world, &acceptor, &connector, "old.example").await.unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(world.gateway.counters.n_bad_greetings.load(SeqCst), 1);

    // A server whose certificate has expired, or is another's, is not spoken to.
    let good = certificate(&authority, dir.path(), &["good.example"], 2100);
    for (shown, name, is_well) in
        [(&good, "good.example", true), (&old, "old.example", false), (&good, "x.example", false)]
    {
        let server = Acceptor::load(std::slice::from_ref(shown), None).unwrap();
        let (near, far) = tokio::io::duplex(64 << 10);
        let tls = UpstreamTls {
            authority: authority.pem.clone(),
            server_name: name.to_owned(),
            certificate: None,
        };
        let connector = Connector::load(&tls, false).unwrap();
        let (greeted, _) =
            tokio::join!(connector.connect(Box::new(near)), server.accept(Box::new(far)));
        assert_eq!(greeted.is_ok(), is_well, "{name}");
    }
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let good = certificate(&authority, dir.path(), &["a.example"], 2100);
    let other = certificate(&authority, dir.path(), &["b.example"], 2100);
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let missing = dir.path().join("missing.pem");
    let load = |certificate: &Path, key: &Path| {
        let files = Certificate { certificate: certificate.into(), key: key.into() };
        Acceptor::load(&[files], None).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(load(&missing, &good.key).starts_with(&format!("cannot read {}", missing.display())));
    assert!(load(&empty, &good.key).ends_with("there is no certificate in it"));
    assert!(load(&good.certificate, &empty).ends_with("there is no private key in it"));
    assert!(load(&good.certificate, &other.key).starts_with(&other.key.display().to_string()));
    assert_eq!(load(&good.certificate, &good.key), "");
}

#[tokio::test]
async fn a_client_shows_who_it_is_where_the_listener_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    let strangers = tempfile::tempdir().unwrap();
    let (own, other) = (authority(dir.path()), authority(strangers.path()));
    let files = certificate(&own, dir.path(), &["site.example"], 2100);
    let alice = certificate(&own, dir.path(), &["alice.example"], 2100);
    let mallory = certificate(&other, strangers.path(), &["mallory.example"], 2100);
    let world = World::new(ONE);
    let told = handler(|request| async move {
        let told = request.headers().get("x-forwarded-client-cert");
        says(told.map_or("nobody", |told| told.to_str().unwrap()))
    });
    world.server(1, told).await;
    // What a server gets to see; none: the client was not let in.
    let ask = async |is_needed: bool, shown: Option<&Certificate>| {
        let clients = Clients { authority: own.pem.clone(), is_needed };
        let acceptor = Acceptor::load(std::slice::from_ref(&files), Some(&clients)).unwrap();
        let connector = showing(&own, &[b"http/1.1"], shown);
        let stream = greet(&world, &acceptor, &connector, "site.example").await.ok()?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        world.env.spawn("client", async move {
            connection.await.ok();
        });
        let request = Request::get("/").header("host", "h");
        let request = request.header("x-forwarded-client-cert", "Subject=\"CN=admin\"");
        let answer = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await;
        let body = answer.ok()?.into_body().collect().await.ok()?.to_bytes();
        Some(String::from_utf8(body.to_vec()).unwrap())
    };
    let told = ask(true, Some(&alice)).await.unwrap();
    assert!(told.starts_with("Subject=\"") && told.ends_with(";DNS=\"alice.example\""), "{told}");
    assert_eq!(ask(true, None).await, None);
    assert_eq!(ask(true, Some(&mallory)).await, None);
    assert_eq!(
        ask(false, None).await.as_deref(),
        Some("nobody"),
        "and what it says is not believed"
    );
    assert_eq!(ask(false, Some(&mallory)).await, None);
}
