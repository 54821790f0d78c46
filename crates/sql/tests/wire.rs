//! Frames in, frames out: what clients and strangers send, and what the server answers.

use base::Limits;
use base::TabletId;
use base::env::{FaultyNet, Net, TcpNet};
use sql::views::{AtollView, Source};
use sql::wire::{self, Patience};
use sql::{Auth, Datum, Engine};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use txn::testing::{TestNode, address, member, solo, solo_within};

struct Alone;

#[async_trait::async_trait]
impl Source for Alone {
    async fn rows(&self, _: AtollView) -> Vec<Vec<Datum>> {
        Vec::new()
    }

    async fn definitions_changed(&self, _: &sql::catalog::Changed) {}
}

struct Served {
    at: SocketAddr,
    stop: watch::Sender<bool>,
    engine: Engine,
    env: base::Env,
}

async fn serve(auth: Auth, patience: Patience) -> (Served, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let node = solo(dir.path()).await.unwrap();
    (serve_at(&node, auth, patience).await, dir)
}

async fn serve_within(limits: Limits) -> (Served, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let node = solo_within(dir.path(), limits).await.unwrap();
    (serve_at(&node, Auth::Trust, Patience::default()).await, dir)
}

async fn serve_at(node: &TestNode, auth: Auth, patience: Patience) -> Served {
    let engine = Engine::new(
        node.env.clone(),
        node.client.clone(),
        Arc::new(query::DataFusion::new(&node.env, node.store.temporary_dir()).unwrap()),
        Arc::new(Alone),
        auth,
    );
    engine.bootstrap().await.unwrap();
    let listener = TcpNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at = listener.local();
    let (stop, stopped) = watch::channel(false);
    let serving = wire::serve(engine.clone(), listener, None, patience, stopped);
    node.env.spawn("server", serving);
    Served { at, stop, engine, env: node.env.clone() }
}

/// A client that speaks in bytes.
struct Raw {
    stream: TcpStream,
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend((body.len() as u32 + 4).to_be_bytes());
    message.extend(body);
    message
}

fn startup(settings: &[u8]) -> Vec<u8> {
    let mut message = (settings.len() as u32 + 9).to_be_bytes().to_vec();
    message.extend(196_608_u32.to_be_bytes());
    message.extend(settings);
    message.push(0);
    message
}

impl Raw {
    async fn connect(served: &Served) -> Raw {
        Raw { stream: TcpStream::connect(served.at).await.unwrap() }
    }

    async fn login(served: &Served) -> Raw {
        let mut raw = Raw::connect(served).await;
        raw.send(&startup(b"user\0atoll\0database\0atoll\0")).await;
        raw.until(b'Z').await;
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// One message: its tag and its body. None at the end.
    async fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let wait = Duration::from_secs(20);
        let tag = tokio::time::timeout(wait, self.stream.read_u8()).await.expect("an answer");
        let tag = tag.ok()?;
        let length = self.stream.read_u32().await.ok()? as usize;
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body).await.ok()?;
        Some((tag, body))
    }

    /// Everything up to a message with this tag, each as its tag and, for some, its content.
    async fn until(&mut self, last: u8) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some((tag, body)) = self.receive().await {
            seen.push(shown(tag, &body));
            if tag == last {
                break;
            }
        }
        seen
    }

    async fn until_closed(&mut self) -> Vec<String> {
        self.until(0).await
    }

    /// After the startup message: what a cancel request must have.
    async fn key(&mut self) -> Vec<u8> {
        let key = loop {
            match self.receive().await.unwrap() {
                (b'K', key) => break key,
                _ => continue,
            }
        };
        self.until(b'Z').await;
        key
    }

    /// True where nothing comes for a while.
    async fn is_quiet(&self) -> bool {
        let mut byte = [0];
        tokio::time::timeout(Duration::from_millis(300), self.stream.peek(&mut byte)).await.is_err()
    }
}

/// `E 42601`, `C SELECT 1`, `D 1 x`, `Z I`, or just the tag.
fn shown(tag: u8, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body).into_owned();
    let content = match tag {
        b'E' => text.split('\0').find_map(|field| field.strip_prefix('C')).unwrap_or("").to_owned(),
        b'C' | b'Z' => text.trim_end_matches('\0').to_owned(),
        b'D' => {
            let n = u16::from_be_bytes([body[0], body[1]]);
            let mut at = 2;
            let mut values = Vec::new();
            for _ in 0..n {
                let length = i32::from_be_bytes(body[at..at + 4].try_into().unwrap());
                at += 4;
                let length = usize::try_from(length).unwrap_or(0);
                values.push(String::from_utf8_lossy(&body[at..at + length]).into_owned());
                at += length;
            }
            values.join(" ")
        }
        _ => String::new(),
    };
    format!("{} {content}", tag as char).trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_told_once_and_closed() {
    let patience = Patience { startup: Duration::from_millis(300), ..Patience::default() };
    let (served, _dir) = serve(Auth::Trust, patience).await;
    for (bytes, state) in [
        (&b"GET / HTTP/1.0\r\n\r\n"[..], "08P01"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", "08P01"),
        (b"\0\0\0\x08\0\x03\0\0", "08P01"),
        (b"\0\0\0\x09\0\x02\0\0\0", "0A000"),
        (b"\0\0\0\x09\0\x03\0\0\0", "28000"),
        // Half a message, and no more.
        (b"\0\0\0\x20\0\x03\0\0use", "57014"),
        (b"", "57014"),
    ] {
        let mut raw = Raw::connect(&served).await;
        raw.send(bytes).await;
        assert_eq!(raw.until_closed().await, [format!("E {state}")], "{bytes:?}");
    }
    let mut raw = Raw::connect(&served).await;
    raw.send(&startup(b"user\0nobody\0")).await;
    assert_eq!(raw.until_closed().await, ["E 28000"]);

    for (bytes, state) in
        [(&b"Q\x7f\xff\xff\xff"[..], "08P01"), (b"Q\0\0\0\x03", "08P01"), (b"!\0\0\0\x04", "08P01")]
    {
        let mut raw = Raw::login(&served).await;
        raw.send(bytes).await;
        assert_eq!(raw.until_closed().await, [format!("E {state}")], "{bytes:?}");
    }
    let mut raw = Raw::login(&served).await;
    raw.send(&message(b'Q', b"SELECT 1\0")).await;
    assert_eq!(raw.until(b'Z').await, ["T", "D 1", "C SELECT 1", "Z I"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encryption_is_declined_and_the_connection_goes_on() {
    let (served, _dir) = serve(Auth::Trust, Patience::default()).await;
    let mut raw = Raw::connect(&served).await;
    for code in [80_877_104_u32, 80_877_103] {
        let mut request = 8_u32.to_be_bytes().to_vec();
        request.extend(code.to_be_bytes());
        raw.send(&request).await;
        assert_eq!(raw.stream.read_u8().await.unwrap(), b'N');
    }
    raw.send(&startup(b"user\0atoll\0options\0-c search_path=public\0")).await;
    assert_eq!(raw.until(b'Z').await.last().map(String::as_str), Some("Z I"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simple_queries_share_one_transaction() {
    let (served, _dir) = serve(Auth::Trust, Patience::default()).await;
    let mut raw = Raw::login(&served).await;
    for (sql, answer) in [
        ("", &["I", "Z I"][..]),
        (" ; ", &["I", "Z I"]),
        ("CREATE TABLE t (a int PRIMARY KEY)", &["C CREATE TABLE", "Z I"]),
        // The first insert goes with the second.
        ("INSERT INTO t VALUES (1); INSERT INTO t VALUES (1)", &["C INSERT 0 1", "E 23505", "Z I"]),
        ("SELECT * FROM t", &["T", "C SELECT 0", "Z I"]),
        ("BEGIN; INSERT INTO t VALUES (1)", &["C BEGIN", "C INSERT 0 1", "Z T"]),
        ("SELECT 1/0", &["E 22012", "Z E"]),
        ("SELECT 1", &["E 25P02", "Z E"]),
        ("COMMIT", &["C ROLLBACK", "Z I"]),
        ("INSERT INTO t VALUES (2), (3) RETURNING a", &["T", "D 2", "D 3", "C INSERT 0 2", "Z I"]),
        (
            "SELECT a FROM t GROUP BY a ORDER BY a; SELECT 'x', NULL",
            &["T", "D 2", "D 3", "C SELECT 2", "T", "D x ", "C SELECT 1", "Z I"],
        ),
    ] {
        raw.send(&message(b'Q', format!("{sql}\0").as_bytes())).await;
        let mut seen = raw.until(b'Z').await;
        for line in &mut seen {
            if line == "D x" {
                line.push(' ');
            }
        }
        assert_eq!(seen, answer, "{sql}");
    }
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn bind(portal: &str, statement: &str, values: &[&str]) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0\0\0").into_bytes();
    body.extend((values.len() as u16).to_be_bytes());
    for value in values {
        body.extend((value.len() as u32).to_be_bytes());
        body.extend(value.as_bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

fn execute(portal: &str, n_rows_max: u32) -> Vec<u8> {
    let mut body = format!("{portal}\0").into_bytes();
    body.extend(n_rows_max.to_be_bytes());
    message(b'E', &body)
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_extended_protocol_pipelines_suspends_and_skips() {
    let (served, _dir) = serve(Auth::Trust, Patience::default()).await;
    let mut raw = Raw::login(&served).await;
    raw.send(&message(b'Q', b"CREATE TABLE t (a int PRIMARY KEY)\0")).await;
    raw.until(b'Z').await;

    // A whole pipeline in one write.
    let insert = parse("ins", "INSERT INTO t VALUES ($1)");
    let mut pipeline = insert.clone();
    for value in ["1", "2", "3"] {
        pipeline.extend([bind("", "ins", &[value]), execute("", 0)].concat());
    }
    pipeline.extend(sync());
    raw.send(&pipeline).await;
    let answer = raw.until(b'Z').await;
    assert_eq!(answer[..3], ["1", "2", "C INSERT 0 1"]);
    assert_eq!((answer.len(), answer.last().unwrap().as_str()), (8, "Z I"));

    // After an error everything up to Sync is skipped, and what came before is undone.
    let broken = [
        bind("", "ins", &["4"]),
        execute("", 0),
        bind("", "ins", &["1"]),
        execute("", 0),
        bind("", "ins", &["5"]),
        execute("", 0),
        sync(),
    ];
    raw.send(&broken.concat()).await;
    assert_eq!(raw.until(b'Z').await, ["2", "C INSERT 0 1", "2", "E 23505", "Z I"]);

    // A portal gives its rows in portions.
    let portions = [
        parse("", "SELECT a FROM t ORDER BY a"),
        bind("p", "", &[]),
        message(b'D', b"Pp\0"),
        execute("p", 2),
        execute("p", 2),
        sync(),
    ];
    raw.send(&portions.concat()).await;
    let answer = raw.until(b'Z').await;
    assert_eq!(answer, ["1", "2", "T", "D 1", "D 2", "s", "D 3", "C SELECT 1", "Z I"]);

    // Names that are not there, twice a name, a wrong count.
    for (messages, state) in [
        (vec![bind("", "nowhere", &[])], "26000"),
        (vec![execute("nowhere", 0)], "34000"),
        (vec![insert.clone()], "42P05"),
        (vec![bind("", "ins", &[])], "08P01"),
        (vec![bind("", "ins", &["x"])], "22P02"),
        (vec![parse("", "SELEC 1")], "42601"),
    ] {
        raw.send(&[messages.concat(), sync()].concat()).await;
        assert_eq!(raw.until(b'Z').await, [format!("E {state}"), "Z I".to_owned()]);
    }
    // Flush answers without Sync.
    raw.send(&[parse("f", "SELECT 1"), message(b'H', b"")].concat()).await;
    assert_eq!(raw.until(b'1').await, ["1"]);
    raw.send(&[message(b'D', b"Sf\0"), message(b'C', b"Sf\0"), sync()].concat()).await;
    assert_eq!(raw.until(b'Z').await, ["t", "T", "3", "Z I"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_goes_in_and_out_and_survives_errors() {
    let (served, _dir) = serve(Auth::Trust, Patience::default()).await;
    let mut raw = Raw::login(&served).await;
    raw.send(&message(b'Q', b"CREATE TABLE t (a int PRIMARY KEY, b text)\0")).await;
    raw.until(b'Z').await;
    let copy_in = || message(b'Q', b"COPY t FROM STDIN\0");
    let data = |text: &str| message(b'd', text.as_bytes());
    let done = || message(b'c', b"");

    // Lines may be cut anywhere.
    raw.send(&[copy_in(), data("1\tx\n2"), data("\ty\n"), done()].concat()).await;
    assert_eq!(raw.until(b'Z').await, ["G", "C COPY 2", "Z I"]);
    raw.send(&[copy_in(), data("3\tz\n"), message(b'f', b"enough\0")].concat()).await;
    assert_eq!(raw.until(b'Z').await, ["G", "E 57014", "Z I"]);
    // What still comes after the error is passed over.
    raw.send(&[copy_in(), data("no number\tz\n"), data("4\tq\n"), done()].concat()).await;
    let answer = raw.until(b'Z').await;
    assert_eq!((answer[0].as_str(), answer[1].as_str()), ("G", "E 22P02"));
    raw.send(&message(b'Q', b"COPY t TO STDOUT\0")).await;
    assert_eq!(raw.until(b'Z').await, ["H", "d", "d", "c", "C COPY 2", "Z I"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_needs_the_secret() {
    let (served, _dir) = serve(Auth::Trust, Patience::default()).await;
    let mut raw = Raw::connect(&served).await;
    raw.send(&startup(b"user\0atoll\0")).await;
    let key = raw.key().await;
    let long = "SELECT count(*) FROM generate_series(1::bigint, 100000) a(x), generate_series(1, 100000) b(y) \
                WHERE a.x * b.y = 7";
    raw.send(&message(b'Q', format!("{long}\0").as_bytes())).await;
    let mut wrong = key.clone();
    wrong[7] ^= 1;
    cancel(&served, &wrong).await;
    assert!(raw.is_quiet().await, "a wrong secret must not cancel");
    cancel(&served, &key).await;
    assert_eq!(raw.until(b'Z').await, ["E 57014", "Z I"]);
}

async fn cancel(served: &Served, key: &[u8]) {
    let mut request = 16_u32.to_be_bytes().to_vec();
    request.extend(80_877_102_u32.to_be_bytes());
    request.extend(key);
    let mut other = Raw::connect(served).await;
    other.send(&request).await;
    assert_eq!(other.until_closed().await, [""; 0]);
}

/// A commit that has begun ends by itself. Whoever breaks off the wait for it must not say that
/// nothing was changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_under_way_is_not_denied() {
    let net = FaultyNet::default();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let starting = (1..=3).zip(&dirs).map(|(id, dir)| member(dir.path(), &net, id, 3));
    let nodes = futures::future::try_join_all(starting).await.unwrap();
    let leader = loop {
        match nodes.iter().find(|node| node.term(TabletId::FIRST_DATA).is_some()) {
            Some(leader) => break leader,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let patience = Patience { shutdown_grace: Duration::from_millis(100), ..Patience::default() };
    let served = serve_at(leader, Auth::Trust, patience).await;
    let mut block = Raw::connect(&served).await;
    block.send(&startup(b"user\0atoll\0")).await;
    let key = block.key().await;
    let create = b"CREATE TABLE t (a int PRIMARY KEY)\0";
    block.send(&message(b'Q', create)).await;
    block.until(b'Z').await;
    let begin = b"BEGIN; INSERT INTO t VALUES (1); SET statement_timeout = 50\0";
    block.send(&message(b'Q', begin)).await;
    assert_eq!(block.until(b'Z').await, ["C BEGIN", "C INSERT 0 1", "C SET", "Z T"]);
    let mut single = Raw::login(&served).await;
    let insert = [parse("", "INSERT INTO t VALUES (2)"), bind("", "", &[]), execute("", 0)];
    single.send(&[insert.concat(), message(b'H', b"")].concat()).await;
    assert_eq!(single.until(b'C').await, ["1", "2", "C INSERT 0 1"]);
    let mut reader = Raw::login(&served).await;
    reader.send(&message(b'Q', b"SELECT pg_sleep(100)\0")).await;

    for (a, b) in [(1, 2), (1, 3), (2, 3)] {
        net.cut(address(a), address(b));
    }
    block.send(&message(b'Q', b"COMMIT\0")).await;
    single.send(&sync()).await;
    assert!(block.is_quiet().await, "a time-out does not end a commit");
    cancel(&served, &key).await;
    assert!(block.is_quiet().await, "nor does a cancel request");
    served.stop.send(true).unwrap();
    let (tag, body) = block.receive().await.unwrap();
    assert_eq!(shown(tag, &body), "E 08007");
    let body = String::from_utf8(body).unwrap();
    assert!(body.contains("SELECT state FROM atoll.transactions WHERE id = "), "{body}");
    assert_eq!(single.until_closed().await, ["E 08007"]);
    assert_eq!(reader.until_closed().await, ["E 57P01"]);
}

/// asyncpg, for one, asks with Flush and sends nothing more before it has the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_does_not_wait_for_sync() {
    let (served, _dir) = serve(Auth::Trust, Patience::default()).await;
    let mut raw = Raw::login(&served).await;
    let execute = |portal: &str| message(b'E', &[portal.as_bytes(), &[0; 5]].concat());
    let wrong = [
        ("42P01", parse("", "SELECT * FROM nowhere")),
        ("42601", parse("", "SELEC")),
        ("26000", bind("", "none", &[])),
        ("26000", message(b'D', b"Snone\0")),
        ("34000", message(b'D', b"Pnone\0")),
        ("34000", execute("none")),
        ("08P01", message(b'D', b"?\0")),
        ("22012", [parse("", "SELECT 1 / 0"), bind("", "", &[]), execute("")].concat()),
        ("22023", [parse("", "SET ROLE nobody"), bind("", "", &[]), execute("")].concat()),
    ];
    for (state, messages) in wrong {
        raw.send(&messages).await;
        let answers = raw.until(b'E').await;
        assert_eq!(answers.last(), Some(&format!("E {state}")), "{answers:?}");
        raw.send(&sync()).await;
        assert_eq!(raw.until(b'Z').await, ["Z I"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_proved_not_sent() {
    let (served, _dir) = serve(Auth::Scram, Patience::default()).await;
    let mut session = served.engine.session("atoll", "atoll").await.unwrap();
    for sql in [
        "CREATE USER ann PASSWORD 'pencil'",
        "CREATE USER bob",
        "CREATE USER eve PASSWORD ''",
        "CREATE USER dan PASSWORD 'x'",
        "ALTER USER dan PASSWORD ''",
    ] {
        let prepared = session.prepare(sql, &[]).await.unwrap();
        session.execute(&prepared, Vec::new()).await.unwrap();
        session.finish(false).await.unwrap();
    }
    let login = async |user: &str, password: &str| {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(served.at.port())
            .user(user)
            .password(password)
            .dbname("atoll");
        let (client, connection) = match config.connect(tokio_postgres::NoTls).await {
            Ok(connected) => connected,
            Err(error) => return Err(error.code().map(|code| code.code().to_owned())),
        };
        served.env.spawn("client", async move { drop(connection.await) });
        Ok(client.query_one("SELECT 1 + $1::int", &[&1_i32]).await.unwrap().get::<_, i32>(0))
    };
    assert_eq!(login("ann", "pencil").await, Ok(2));
    // A wrong password, a user without one, and nobody: one answer.
    for (user, password) in [
        ("ann", "pencils"),
        ("bob", ""),
        ("bob", "x"),
        ("nobody", "pencil"),
        ("eve", ""),
        ("dan", ""),
        ("dan", "x"),
    ] {
        assert_eq!(login(user, password).await, Err(Some("28P01".to_owned())), "{user}");
    }
}

/// What a client that asks for SCRAM is told first: mechanisms, then nonce, salt and rounds.
async fn challenge(served: &Served, user: &str) -> String {
    let mut raw = Raw::connect(served).await;
    raw.send(&startup(format!("user\0{user}\0").as_bytes())).await;
    let (tag, body) = raw.receive().await.unwrap();
    assert_eq!((tag, &body[..4]), (b'R', &10_u32.to_be_bytes()[..]));
    let first = b"n,,n=,r=abc";
    let mut answer = b"SCRAM-SHA-256\0".to_vec();
    answer.extend((first.len() as u32).to_be_bytes());
    answer.extend(first);
    raw.send(&message(b'p', &answer)).await;
    let (_, body) = raw.receive().await.unwrap();
    let text = String::from_utf8(body[4..].to_vec()).unwrap();
    text.split(',').find_map(|part| part.strip_prefix("s=")).unwrap().to_owned()
}

/// Names cannot be told apart by asking twice, here and there: a made-up salt stays what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pretended_salt_is_the_same_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let node = solo(dir.path()).await.unwrap();
    let here = serve_at(&node, Auth::Scram, Patience::default()).await;
    let there = serve_at(&node, Auth::Scram, Patience::default()).await;
    let mut session = here.engine.session("atoll", "atoll").await.unwrap();
    for sql in ["CREATE USER ann PASSWORD 'pencil'", "CREATE USER bob"] {
        let prepared = session.prepare(sql, &[]).await.unwrap();
        session.execute(&prepared, Vec::new()).await.unwrap();
        session.finish(false).await.unwrap();
    }
    let mut seen = Vec::new();
    for user in ["ann", "bob", "nobody", "anybody"] {
        let salt = challenge(&here, user).await;
        assert_eq!(salt, challenge(&here, user).await, "{user}");
        assert_eq!(salt, challenge(&there, user).await, "{user}");
        assert!(!seen.contains(&salt), "{user}");
        seen.push(salt);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_in_no_view_and_no_error() {
    let (served, _dir) = serve(Auth::Trust, Patience::default()).await;
    let mut raw = Raw::login(&served).await;
    for (n, sql) in [
        "CREATE ROLE r1 LOGIN PASSWORD $$geheim$$",
        "CREATE ROLE r2 LOGIN PASSWORD 'geheim'",
        "ALTER ROLE r1 PASSWORD E'\\'geheim'",
        "ALTER ROLE r1 /* geheim */ PASSWORD $a$geheim$a$",
        "ALTER ROLE r1 PASSWORD geheim",
        "ALTER ROLE r1 PASSWORD \"geheim\"",
        "ALTER ROLE r1 PASSWORD $a$geheim$b$",
        "ALTER ROLE r1 PASSWORD 'geheim",
        "ALTER ROLE r1 PASSWORD 'x' geheim",
        "ALTER ROLE r1 PASSWORD 'x' 'geheim'",
        "ALTER ROLE r1 PASSWORD = 'geheim'",
        "ALTER ROLE nobody PASSWORD 'geheim'",
    ]
    .into_iter()
    .enumerate()
    {
        for text in [simple(sql), [parse("", sql), sync()].concat()] {
            raw.send(&text).await;
            loop {
                let (tag, body) = raw.receive().await.unwrap();
                let told = String::from_utf8_lossy(&body);
                assert!(!told.contains("geheim"), "{n}: {sql}: {told}");
                if tag == b'Z' {
                    break;
                }
            }
        }
    }
    for stat in served.engine.statements() {
        assert!(!stat.query.contains("geheim"), "{}", stat.query);
    }
    drop(raw);
    served.stop.send(true).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_says_so_and_a_stopping_one_too() {
    let (served, _dir) = serve_within(Limits { connections: 2, ..Limits::default() }).await;
    let mut first = Raw::login(&served).await;
    let second = Raw::login(&served).await;
    let mut third = Raw::connect(&served).await;
    third.send(&startup(b"user\0atoll\0")).await;
    assert_eq!(third.until_closed().await, ["E 53300"]);
    drop((second, third));
    // The places are free again once the server has seen them go.
    loop {
        let mut raw = Raw::connect(&served).await;
        raw.send(&startup(b"user\0atoll\0")).await;
        if raw.until(b'Z').await.last().is_some_and(|last| last == "Z I") {
            break;
        }
    }
    served.stop.send(true).unwrap();
    assert_eq!(first.until_closed().await, ["E 57P01"]);
}

fn simple(sql: &str) -> Vec<u8> {
    message(b'Q', [sql.as_bytes(), b"\0"].concat().as_slice())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_may_make_the_node_keep_is_limited() {
    let limits = Limits {
        memory_bytes: 8 << 20,
        connection_memory_bytes: 1 << 20,
        statement_bytes: 1_000,
        message_bytes: 100_000,
        portals: 2,
        ..Limits::default()
    };
    let (served, _dir) = serve_within(limits).await;
    let mut raw = Raw::login(&served).await;
    let long = format!("SELECT 1 -- {}", "x".repeat(1_000));
    raw.send(&simple(&long)).await;
    assert_eq!(raw.until(b'Z').await, ["E 54000", "Z I"]);
    raw.send(&[parse("", &long), sync()].concat()).await;
    assert_eq!(raw.until(b'Z').await, ["E 54000", "Z I"]);
    raw.send(
        &[
            simple("BEGIN"),
            parse("", "SELECT 1"),
            bind("a", "", &[]),
            bind("b", "", &[]),
            bind("c", "", &[]),
            sync(),
        ]
        .concat(),
    )
    .await;
    raw.until(b'Z').await;
    assert_eq!(raw.until(b'Z').await, ["1", "2", "2", "E 54000", "Z E"]);
    raw.send(&simple("ROLLBACK")).await;
    raw.until(b'Z').await;
    // Prepared statements take memory until there is none; then they cost the one who asks an error.
    let mut n_prepared = 0;
    loop {
        raw.send(&[parse(&format!("s{n_prepared}"), "SELECT 1"), sync()].concat()).await;
        match &raw.until(b'Z').await[0][..] {
            "1" => n_prepared += 1,
            "E 53200" => break,
            other => panic!("{other} after {n_prepared}"),
        }
    }
    assert!((50..200).contains(&n_prepared), "{n_prepared}");
    raw.send(&simple("SELECT 1")).await;
    assert_eq!(raw.until(b'Z').await, ["T", "D 1", "C SELECT 1", "Z I"]);
    // A message that is longer than any may be ends its connection, and no other.
    let mut other = Raw::login(&served).await;
    other.send(&[b'Q', 0, 2, 0, 0]).await;
    assert_eq!(other.until_closed().await, ["E 08P01"]);
    raw.send(&simple("SELECT 1")).await;
    assert_eq!(raw.until(b'Z').await.last().unwrap(), "Z I");
    drop((raw, other));
    served.stop.send(true).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_keep_what_they_may_and_go_on_where_there_are_files() {
    let limits = Limits {
        memory_bytes: 12 << 20,
        write_memory_bytes: 1 << 20,
        transaction_memory_bytes: 64 << 10,
        statement_memory_bytes: 1 << 20,
        transaction_bytes: 20 << 20,
        ..Limits::default()
    };
    let (served, _dir) = serve_within(limits).await;
    let mut raw = Raw::login(&served).await;
    let mut run = async |sql: &str| {
        raw.send(&simple(sql)).await;
        let mut seen = raw.until(b'Z').await;
        seen.retain(|line| !line.starts_with(['T', 'N', 'Z']));
        seen
    };
    assert_eq!(run("CREATE TABLE t (id int PRIMARY KEY, r int, s text)").await, ["C CREATE TABLE"]);
    // Writes beyond their share of memory go to a file, and are read from there.
    run("BEGIN").await;
    let fill = "INSERT INTO t SELECT n, n * 7919 % 20011, repeat('x', 100) FROM generate_series(1, 20000) n";
    assert_eq!(run(fill).await, ["C INSERT 0 20000"]);
    run("SAVEPOINT one").await;
    assert_eq!(run("UPDATE t SET s = 'y' WHERE id % 2 = 0").await, ["C UPDATE 10000"]);
    assert_eq!(run("SELECT count(*), sum(length(s)) FROM t").await[0], "D 20000 1010000");
    run("ROLLBACK TO one").await;
    assert_eq!(run("SELECT count(*), sum(length(s)) FROM t").await[0], "D 20000 2000000");
    assert_eq!(run("DELETE FROM t WHERE id > 10000").await, ["C DELETE 10000"]);
    assert_eq!(run("COMMIT").await, ["C COMMIT"]);
    assert_eq!(run("SELECT count(*), sum(id) FROM t").await[0], "D 10000 50005000");
    // Sorts, groupings and joins too.
    run("SET work_mem = '256kB'").await;
    let sorted = run("SELECT r, s FROM t WHERE id > 0 ORDER BY r").await;
    assert_eq!(sorted.len(), 10_001);
    let numbers =
        sorted.iter().filter_map(|line| line.strip_prefix("D ")?.split(' ').next()?.parse().ok());
    let numbers: Vec<i32> = numbers.collect();
    assert!(numbers.is_sorted() && numbers.len() == 10_000, "{} in order", numbers.len());
    let grouped =
        "SELECT count(*), max(c) FROM (SELECT s || r AS k, count(*) AS c FROM t GROUP BY 1) g";
    assert_eq!(run(grouped).await[0], "D 10000 1");
    let joined = "SELECT count(*) FROM t a JOIN t b ON a.s || a.id = b.s || b.id JOIN t c ON c.s || c.r = b.s || b.r";
    assert_eq!(run(joined).await[0], "D 10000");
    // A sort that may keep more than its statement may goes the same way.
    run("SET work_mem = '1GB'").await;
    assert_eq!(run("SELECT r, s FROM t WHERE id > 0 ORDER BY r").await.len(), 10_001);
    run("SET work_mem = '256kB'").await;
    // What must be in memory is refused, and the session goes on.
    assert_eq!(run("UPDATE t SET r = r RETURNING s, s, s").await, ["E 53200"]);
    assert_eq!(run("SELECT string_agg(repeat(s, 300), ',') FROM t").await, ["E 53200"]);
    assert_eq!(run("SELECT count(*) FROM t").await[0], "D 10000");
    let huge =
        "INSERT INTO t SELECT n, n, repeat('x', 10000) FROM generate_series(100000, 103000) n";
    assert_eq!(run(huge).await, ["E 54000"]);
    assert_eq!(run("SELECT count(*) FROM t").await[0], "D 10000");
    drop(raw);
    served.stop.send(true).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_transaction_is_ended_when_the_session_asks_for_it() {
    let (served, _dir) = serve(Auth::Trust, Patience::default()).await;
    let mut raw = Raw::login(&served).await;
    raw.send(&simple("CREATE TABLE t (id int PRIMARY KEY)")).await;
    raw.until(b'Z').await;
    raw.send(&simple("SET idle_in_transaction_session_timeout = '100ms'")).await;
    raw.until(b'Z').await;
    raw.send(&simple("BEGIN; INSERT INTO t VALUES (1)")).await;
    raw.until(b'Z').await;
    assert_eq!(raw.until_closed().await, ["E 25P03"]);
    let mut other = Raw::login(&served).await;
    other.send(&simple("INSERT INTO t VALUES (1)")).await;
    assert_eq!(other.until(b'Z').await, ["C INSERT 0 1", "Z I"]);
    drop(other);
    served.stop.send(true).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_cancelled_while_it_waits_and_while_it_works() {
    let (served, _dir) = serve(Auth::Trust, Patience::default()).await;
    let mut raw = Raw::connect(&served).await;
    raw.send(&startup(b"user\0atoll\0database\0atoll\0")).await;
    let key = raw.key().await;
    raw.send(&simple("CREATE TABLE t (id int PRIMARY KEY)")).await;
    raw.until(b'Z').await;
    let cancel = async || {
        let mut other = Raw::connect(&served).await;
        let code = 80_877_102_u32.to_be_bytes();
        other.send(&[&16_u32.to_be_bytes()[..], &code, &key].concat()).await;
        other.until_closed().await;
    };
    // It waits for its client.
    raw.send(&simple("COPY t FROM STDIN")).await;
    raw.until(b'G').await;
    raw.send(&message(b'd', b"1\n")).await;
    cancel().await;
    assert_eq!(raw.until(b'Z').await, ["E 57014", "Z I"]);
    // It waits for a lock.
    let mut holder = Raw::login(&served).await;
    holder.send(&simple("BEGIN; INSERT INTO t VALUES (7)")).await;
    holder.until(b'Z').await;
    raw.send(&simple("COPY t FROM STDIN")).await;
    raw.until(b'G').await;
    raw.send(&[message(b'd', b"7\n"), message(b'c', b"")].concat()).await;
    assert!(raw.is_quiet().await);
    cancel().await;
    assert_eq!(raw.until(b'Z').await, ["E 57014", "Z I"]);
    // And a time ends it.
    raw.send(&simple("SET statement_timeout = '100ms'")).await;
    raw.until(b'Z').await;
    raw.send(&simple("COPY t FROM STDIN")).await;
    raw.until(b'G').await;
    assert_eq!(raw.until(b'Z').await, ["E 57014", "Z I"]);
    raw.send(&simple("SELECT count(*) FROM t")).await;
    assert_eq!(raw.until(b'Z').await, ["T", "D 0", "C SELECT 1", "Z I"]);
    drop((raw, holder));
    served.stop.send(true).unwrap();
}
