//! Two nodes talk, and the channel between them misbehaves.
// The test stands outside of what is simulated.
#![allow(clippy::disallowed_methods)]

use base::env::{FaultyNet, MemoryNet, Net, TcpNet};
use base::{Env, NodeId};
use bytes::{Bytes, BytesMut};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use transport::frame::{Frame, Shape, Writer};
use transport::{Error, Identity, MessageKind, Transport, tls::Tls};

const LONG: Duration = Duration::from_secs(10);

fn address(node: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7400 + node as u16))
}

fn node(net: &MemoryNet, id: u64, cluster: u64) -> Transport {
    let env = Env::seeded(id, Arc::new(net.clone()));
    Transport::new(env, Identity { node: NodeId(id), cluster, boot: 1 }, None)
}

/// Answers with what it was asked, except that "sleep" never answers.
fn echo(transport: &Transport) {
    for kind in [MessageKind::Tablet, MessageKind::RaftAppend, MessageKind::RaftSnapshot] {
        transport.handle(kind, |_from, payload: Bytes| -> transport::Answer {
            Box::pin(async move {
                if &payload[..] == b"sleep" {
                    std::future::pending::<()>().await;
                }
                payload
            })
        });
    }
}

async fn pair() -> (MemoryNet, Transport, Transport) {
    let net = MemoryNet::default();
    let (one, two) = (node(&net, 1, 7), node(&net, 2, 7));
    echo(&two);
    two.serve(address(2)).await.unwrap();
    one.set_address(NodeId(2), address(2));
    (net, one, two)
}

async fn ask(from: &Transport, kind: MessageKind, text: &'static str) -> Result<Bytes, Error> {
    from.call(NodeId(2), kind, LONG, Bytes::from_static(text.as_bytes())).await
}

#[tokio::test(start_paused = true)]
async fn a_request_is_answered_and_a_deadline_is_kept() {
    let (_net, one, _two) = pair().await;
    assert_eq!(ask(&one, MessageKind::Tablet, "hello").await.unwrap(), "hello");
    let late = ask(&one, MessageKind::Tablet, "sleep").await;
    assert!(matches!(late, Err(Error::Deadline { .. })), "{late:?}");
    assert_eq!(one.counters().n_deadlines_passed, 1);
    let none = ask(&one, MessageKind::Inspect, "?").await;
    assert!(matches!(none, Err(Error::NoHandler { .. })), "{none:?}");
    let unknown = one.call(NodeId(9), MessageKind::Tablet, LONG, Bytes::new()).await;
    assert!(matches!(unknown, Err(Error::UnknownNode(NodeId(9)))), "{unknown:?}");
}

#[tokio::test(start_paused = true)]
async fn bulk_that_nobody_takes_does_not_stand_before_control() {
    let (_net, one, _two) = pair().await;
    let mut stuck = vec![];
    for _ in 0..2000 {
        let one = one.clone();
        stuck.push(tokio::task::spawn(async move {
            ask(&one, MessageKind::RaftSnapshot, "sleep").await
        }));
    }
    tokio::task::yield_now().await;
    assert_eq!(ask(&one, MessageKind::RaftAppend, "vote").await.unwrap(), "vote");
    assert_eq!(ask(&one, MessageKind::Tablet, "read").await.unwrap(), "read");
    stuck.iter().for_each(|task| task.abort());
}

#[tokio::test(start_paused = true)]
async fn strangers_and_mistaken_identities_are_refused() {
    let (net, one, two) = pair().await;
    let foreign = node(&net, 1, 8);
    foreign.set_address(NodeId(2), address(2));
    assert!(ask(&foreign, MessageKind::Tablet, "x").await.is_err());
    one.set_address(NodeId(3), address(2));
    let wrong = one.call(NodeId(3), MessageKind::Tablet, LONG, Bytes::new()).await;
    assert!(wrong.is_err(), "node 2 answered for node 3");
    assert_eq!(two.counters().n_connections_refused, 2);
}

/// Greets as node 1, then sends `bytes`; true when the server closes the connection.
async fn closes_after(net: &MemoryNet, bytes: &[u8], greeted: bool) -> bool {
    let mut stream = net.connect(address(2)).await.unwrap();
    if greeted {
        stream.write_all(&greeting(&mut Writer::default())).await.unwrap();
    }
    stream.write_all(bytes).await.unwrap();
    let mut rest = vec![];
    tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await.is_ok()
}

fn greeting(writer: &mut Writer) -> BytesMut {
    let numbers = [7u64, 1, 2, 1].map(u64::to_le_bytes);
    let fields = [&5u32.to_le_bytes()[..], &numbers.concat()];
    let payload = Bytes::from(fields.concat());
    let mut out = BytesMut::new();
    let frame = Frame { shape: Shape::Hello, kind: 1, request: 0, deadline_ms: 0, payload };
    writer.write(&mut out, &frame);
    out
}

fn request(writer: &mut Writer) -> BytesMut {
    let payload = Bytes::from_static(b"ping");
    let kind = MessageKind::Tablet.number();
    let mut out = BytesMut::new();
    let frame = Frame { shape: Shape::Request, kind, request: 1, deadline_ms: 1000, payload };
    writer.write(&mut out, &frame);
    out
}

#[tokio::test(start_paused = true)]
async fn garbage_corruption_and_gaps_close_one_connection_and_hurt_nobody() {
    let (net, one, two) = pair().await;
    assert!(closes_after(&net, b"GET / HTTP/1.1\r\n\r\n", false).await);
    let mut writer = Writer::default();
    drop(greeting(&mut writer));
    let good = request(&mut writer);
    let after_gap = request(&mut writer);
    let mut corrupt = good.clone();
    *corrupt.last_mut().unwrap() ^= 1;
    assert!(closes_after(&net, &corrupt, true).await);
    assert!(closes_after(&net, &after_gap, true).await);
    let seen = two.counters();
    assert_eq!((seen.n_frames_corrupt, seen.n_frames_out_of_order), (2, 1));
    assert_eq!(ask(&one, MessageKind::Tablet, "still here").await.unwrap(), "still here");
}

#[tokio::test(start_paused = true)]
async fn a_repeated_request_is_answered_once() {
    let (net, _one, two) = pair().await;
    let mut writer = Writer::default();
    let hello = greeting(&mut writer);
    let once = request(&mut writer);
    let mut stream = net.connect(address(2)).await.unwrap();
    stream.write_all(&[&hello[..], &once, &once, &once].concat()).await.unwrap();
    let mut answers = vec![0; 4096];
    let mut n = 0;
    while let Ok(Ok(more)) =
        tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answers[n..])).await
        && more > 0
    {
        n += more;
    }
    let pings = answers[..n].windows(4).filter(|window| window == b"ping").count();
    assert_eq!((pings, two.counters().n_frames_repeated), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_went_away_is_unreachable_and_found_again() {
    let net = MemoryNet::default();
    let one = node(&net, 1, 7);
    one.set_address(NodeId(2), address(2));
    let gone = ask(&one, MessageKind::Tablet, "x").await;
    assert!(matches!(gone, Err(Error::Unreachable { .. })), "{gone:?}");
    let two = node(&net, 2, 7);
    echo(&two);
    two.serve(address(2)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(ask(&one, MessageKind::Tablet, "back").await.unwrap(), "back");
}

/// A peer that asks for much and reads nothing: its answers are made as far as there is room for them.
#[tokio::test(start_paused = true)]
async fn answers_that_nobody_reads_are_not_made_without_end() {
    const N_REQUESTS: u64 = 3000;
    let net = MemoryNet::default();
    let limits = base::Limits { reply_bytes: 100_000, ..base::Limits::default() };
    let env = Env::seeded(2, Arc::new(net.clone())).limited(limits);
    let two = Transport::new(env, Identity { node: NodeId(2), cluster: 7, boot: 1 }, None);
    let n_asked = Arc::new(AtomicU64::new(0));
    let count = n_asked.clone();
    two.handle(MessageKind::Tablet, move |_from, _| -> transport::Answer {
        count.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Bytes::from(vec![7; 10_000])))
    });
    two.serve(address(2)).await.unwrap();
    let mut writer = Writer::default();
    let mut stream = net.connect(address(2)).await.unwrap();
    stream.write_all(&greeting(&mut writer)).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let asks = async move {
        let kind = MessageKind::Tablet.number();
        for n in 1..=N_REQUESTS {
            let mut out = BytesMut::new();
            let (deadline_ms, payload) = (600_000, Bytes::new());
            let frame = Frame { shape: Shape::Request, kind, request: n, deadline_ms, payload };
            writer.write(&mut out, &frame);
            write.write_all(&out).await.unwrap();
        }
    };
    let asking = tokio::task::spawn(asks);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let n = n_asked.load(Ordering::Relaxed);
    assert!((10..2000).contains(&n), "{n} answers were made");
    // Who reads gets them all.
    let mut n_bytes = 0;
    let mut input = vec![0; 64 << 10];
    while n_bytes < N_REQUESTS as usize * 10_000 {
        n_bytes += read.read(&mut input).await.unwrap();
    }
    asking.await.unwrap();
}

/// What is sent over a cut link is lost without a word, and TCP would take minutes to say so.
#[tokio::test(start_paused = true)]
async fn a_connection_that_only_swallows_is_given_up_and_one_that_is_slow_is_not() {
    let net = FaultyNet::default();
    let on = |id: u64| {
        let env = Env::seeded(id, Arc::new(net.of(address(id))));
        Transport::new(env, Identity { node: NodeId(id), cluster: 7, boot: 1 }, None)
    };
    let (one, two) = (on(1), on(2));
    echo(&two);
    two.serve(address(2)).await.unwrap();
    one.set_address(NodeId(2), address(2));
    let late = ask(&one, MessageKind::Tablet, "sleep").await;
    assert!(matches!(late, Err(Error::Deadline { .. })), "{late:?}");
    tokio::time::sleep(LONG).await;
    assert_eq!(one.counters().n_connections_given_up, 0, "the other side said that it is late");

    net.cut(address(1), address(2));
    let lost = ask(&one, MessageKind::Tablet, "hello").await;
    assert!(matches!(lost, Err(Error::Deadline { .. })), "{lost:?}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(one.counters().n_connections_given_up, 1);
    net.heal();
    assert_eq!(ask(&one, MessageKind::Tablet, "again").await.unwrap(), "again");
    assert_eq!(one.counters().n_connections_opened, 2);
}

struct Authority(rcgen::Issuer<'static, rcgen::KeyPair>, rcgen::Certificate);

fn authority(name: &str) -> Authority {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    Authority(rcgen::Issuer::new(params, key), certificate)
}

/// A certificate and its key, in PEM. `until`: the year in which it expires.
fn signed(by: &Authority, name: &str, until: i32) -> (rcgen::Certificate, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["node".into()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    (params.signed_by(&key, &by.0).unwrap(), key)
}

const NEVER: i32 = 4000;
const LONG_AGO: i32 = 2001;

fn member(trusted: &Authority, by: &Authority, name: &str, until: i32) -> Tls {
    let (certificate, key) = signed(by, name, until);
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    Tls::new(vec![trusted.1.der().clone()], vec![certificate.der().clone()], key).unwrap()
}

fn over_tls(id: u64, tls: Tls) -> Transport {
    let env = Env::seeded(id, Arc::new(TcpNet));
    Transport::new(env, Identity { node: NodeId(id), cluster: 7, boot: 1 }, Some(tls))
}

const ANYWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Why the asker is not answered, in its own words.
async fn refused(asker: &Transport, at: SocketAddr) -> String {
    asker.set_address(NodeId(2), at);
    match ask(asker, MessageKind::Tablet, "let me in").await {
        Err(error) => error.to_string(),
        Ok(answer) => panic!("{answer:?}"),
    }
}

#[tokio::test]
async fn only_members_of_the_authority_speak_over_tls_and_others_are_told_why_not() {
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let two = over_tls(2, member(&ours, &ours, "b", NEVER));
    echo(&two);
    let at = two.serve(ANYWHERE).await.unwrap();
    let friend = over_tls(1, member(&ours, &ours, "a", NEVER));
    friend.set_address(NodeId(2), at);
    assert_eq!(ask(&friend, MessageKind::Tablet, "secret").await.unwrap(), "secret");

    let told = refused(&over_tls(3, member(&ours, &theirs, "c", NEVER)), at).await;
    assert!(told.contains("\"c\"") && told.contains("atoll cert node c"), "{told}");
    assert!(
        told.contains("signed by an authority that is not the other side's (\"theirs\")"),
        "{told}"
    );
    let told = refused(&over_tls(4, member(&theirs, &ours, "d", NEVER)), at).await;
    assert!(
        told.contains("127.0.0.1 shows the certificate \"b\" of the authority \"ours\""),
        "{told}"
    );
    let told = refused(&over_tls(5, member(&ours, &ours, "e", LONG_AGO)), at).await;
    assert!(told.contains("\"e\"") && told.contains("expired on"), "{told}");
    let late = over_tls(6, member(&ours, &ours, "f", LONG_AGO));
    let late_at = late.serve(ANYWHERE).await.unwrap();
    let told = refused(&over_tls(7, member(&ours, &ours, "g", NEVER)), late_at).await;
    assert!(told.contains("\"f\", which expired on"), "{told}");

    // Without TLS nobody is heard at all.
    let env = Env::seeded(9, Arc::new(TcpNet));
    let plain = Transport::new(env, Identity { node: NodeId(1), cluster: 7, boot: 1 }, None);
    refused(&plain, at).await;
    assert_eq!(two.counters().n_connections_accepted, 1);
}

#[tokio::test]
async fn a_member_speaks_only_as_itself() {
    let ours = authority("ours");
    let two = over_tls(2, member(&ours, &ours, "b", NEVER));
    echo(&two);
    let at = two.serve(ANYWHERE).await.unwrap();
    for (id, name) in [(1, "a"), (2, "b"), (3, "c")] {
        two.set_name(NodeId(id), name);
    }
    let as_whom = |id, name| over_tls(id, member(&ours, &ours, name, NEVER));
    // Another's id; an older id than one's own.
    refused(&as_whom(1, "c"), at).await;
    refused(&as_whom(3, "unheard-of"), at).await;
    two.set_name(NodeId(7), "c");
    refused(&as_whom(6, "c"), at).await;
    assert_eq!(two.counters().n_connections_refused, 3);
    for (id, name) in [(1, "a"), (7, "c"), (3, "c"), (8, "c"), (9, "new")] {
        let asker = as_whom(id, name);
        asker.set_address(NodeId(2), at);
        ask(&asker, MessageKind::Tablet, "it is me").await.unwrap();
    }
    // The asker looks too: whom it reaches must be whom it means.
    let asker = as_whom(1, "a");
    asker.set_name(NodeId(2), "another");
    let told = refused(&asker, at).await;
    assert!(told.contains("the certificate \"b\" speaks as node 2"), "{told}");
}

#[tokio::test]
async fn handlers_hear_the_name_in_the_certificate() {
    let ours = authority("ours");
    let two = over_tls(2, member(&ours, &ours, "b", NEVER));
    two.handle_named(MessageKind::Join, |from, _| -> transport::Answer {
        let name = from.name.unwrap_or_default().as_bytes().to_vec();
        Box::pin(std::future::ready(Bytes::from(name)))
    });
    let at = two.serve(ANYWHERE).await.unwrap();
    let env = Env::seeded(1, Arc::new(TcpNet));
    let nobody = Identity { node: NodeId(0), cluster: 0, boot: 0 };
    let newcomer = Transport::new(env, nobody, Some(member(&ours, &ours, "new", NEVER)));
    let heard = newcomer.call_address(at, MessageKind::Join, LONG, Bytes::new()).await;
    assert_eq!(heard.unwrap(), "new");
    let none = newcomer.call_address(at, MessageKind::Tablet, LONG, Bytes::new()).await;
    assert!(matches!(none, Err(Error::NoHandler { .. })), "{none:?}");
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up_in_place() {
    let ours = authority("ours");
    let dir = tempfile::tempdir().unwrap();
    let [root, certificate, key] = ["root", "certificate", "key"].map(|name| dir.path().join(name));
    std::fs::write(&root, ours.1.pem()).unwrap();
    let put = |until| {
        let (made, made_key) = signed(&ours, "b", until);
        std::fs::write(&key, made_key.serialize_pem()).unwrap();
        std::fs::write(&certificate, made.pem()).unwrap();
    };
    put(LONG_AGO);
    let two = over_tls(2, Tls::load(&root, &certificate, &key).unwrap());
    echo(&two);
    let at = two.serve(ANYWHERE).await.unwrap();
    let asker = over_tls(1, member(&ours, &ours, "a", NEVER));
    assert!(refused(&asker, at).await.contains("which expired on"));
    put(NEVER);
    let asker = over_tls(1, member(&ours, &ours, "a", NEVER));
    asker.set_address(NodeId(2), at);
    assert_eq!(ask(&asker, MessageKind::Tablet, "well").await.unwrap(), "well");
    // What is broken is not taken up.
    std::fs::write(&certificate, "broken").unwrap();
    let asker = over_tls(3, member(&ours, &ours, "c", NEVER));
    asker.set_address(NodeId(2), at);
    assert_eq!(ask(&asker, MessageKind::Tablet, "well").await.unwrap(), "well");
    let error = Tls::load(&root, &certificate, &key).map(drop).unwrap_err().to_string();
    assert!(error.contains("there is no certificate in it"), "{error}");
}
