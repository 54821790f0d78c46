//! Who is let in: peers by their certificates, SQL clients by rules, and the owner of a node always.
// The test stands outside of what is simulated.
#![allow(clippy::disallowed_methods)]

mod support;

use base::env::TcpNet;
use base::{Env, NodeId};
use bytes::Bytes;
use cluster::DeathReport;
use node::certificates::{self, AUTHORITY};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::Cluster;
use transport::{Identity, MessageKind, Transport, tls::Tls};

const PATIENCE: Duration = Duration::from_secs(60);

/// Tablet, leader and term of each.
async fn terms(cluster: &Cluster) -> Vec<(i64, Option<i64>, i64)> {
    let sql = cluster.connect(1).await;
    let rows =
        sql.query("SELECT id, leader, term FROM atoll.tablets ORDER BY id", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Tells all nodes that this start of that node is over, with a certificate of this name.
async fn report(cluster: &Cluster, name: &str, death: DeathReport) {
    let dir = cluster.data().join("tls");
    let own = certificates::pair(&dir, name);
    let authority = certificates::pair(&dir, AUTHORITY).certificate;
    let tls = Tls::load(&authority, &own.certificate, &own.key).unwrap();
    let text = std::fs::read_to_string(cluster.data().join("cluster.json")).unwrap();
    let plan: serde_json::Value = serde_json::from_str(&text).unwrap();
    let env = Env::seeded(7, Arc::new(TcpNet));
    let nobody = Identity { node: NodeId(0), cluster: plan["cluster"].as_u64().unwrap(), boot: 0 };
    let transport = Transport::new(env, nobody, Some(tls));
    for node in plan["nodes"].as_array().unwrap() {
        let at: SocketAddr = node["peer_address"].as_str().unwrap().parse().unwrap();
        let payload = Bytes::from(postcard::to_stdvec(&death).unwrap());
        let kind = MessageKind::DeathReport;
        transport.call_address(at, kind, Duration::from_secs(5), payload).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_is_believed_from_its_own_supervisor_alone() {
    let cluster = Cluster::start(3).await;
    let sql = cluster.connect(1).await;
    sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let leaders = sql.query("SELECT leader FROM atoll.tablets ORDER BY id", &[]).await.unwrap();
    let leader = leaders[0].get::<_, i64>(0) as u64;
    let boots = sql.query("SELECT boot FROM atoll.nodes WHERE id = $1", &[&(leader as i64)]).await;
    let boot = boots.unwrap()[0].get::<_, i64>(0) as u64;
    let death = DeathReport { node: NodeId(leader), boot };
    let before = terms(&cluster).await;
    let env = Env::real();
    let dir = cluster.data().join("tls");
    certificates::make_node(&env, &dir, "intruder", &["localhost".into()], 1).unwrap();
    let another = format!("node-{}", leader % 3 + 1);
    for name in ["intruder", &another] {
        report(&cluster, name, death).await;
    }
    // What is believed makes the others elect at once.
    sql.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(terms(&cluster).await, before);
    let told = cluster.logs();
    assert_eq!(told.matches("is not believed").count(), 4, "two nodes, two liars: {told}");
    // The same word from whom it concerns.
    report(&cluster, &format!("node-{leader}"), death).await;
    let begun = Instant::now();
    while terms(&cluster).await == before {
        assert!(begun.elapsed() < PATIENCE, "a true report changes nothing: {before:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

struct Node {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).ok();
        self.child.wait().ok();
    }
}

fn atoll(dir: &Path, words: &[&str]) -> Output {
    // A node that should have refused to start would run for ever.
    let mut command = Command::new("timeout");
    command.args(["30", env!("CARGO_BIN_EXE_atoll")]).args(words);
    command.current_dir(dir).env("ATOLL_PASSWORD", "pencil").output().unwrap()
}

fn done(output: &Output) -> String {
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Node {
    /// One node, founded with these rules.
    fn found(rules: &str) -> (Node, u16) {
        let dir = tempfile::tempdir().unwrap();
        done(&atoll(dir.path(), &["cert", "authority", "--dir", "ca"]));
        done(&atoll(dir.path(), &["cert", "node", "n1", "--host", "localhost", "--dir", "ca"]));
        let (peers, port) = (free_port(), free_port());
        let text = format!(
            "zone = \"a\"\ndata = \"data\"\nlisten = \"127.0.0.1:{peers}\"\nsql_listen = \"127.0.0.1:{port}\"\n\
             tls_authority = \"ca/authority.pem\"\ntls_certificate = \"ca/n1.pem\"\ntls_key = \"ca/n1.key\"\n{rules}"
        );
        std::fs::write(dir.path().join("atoll.toml"), text).unwrap();
        let log = std::fs::File::create(dir.path().join("log.txt")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
        command.args(["init", "--config", "atoll.toml"]).current_dir(dir.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        (Node { child, dir }, port)
    }

    /// What psql gets, or is told.
    fn psql(&self, port: u16, role: &str, more: &str, password: &str, sql: &str) -> String {
        let to = format!(
            "host=localhost port={port} user={role} dbname=atoll connect_timeout=10 {more}"
        );
        let mut command = Command::new("psql");
        command.args(["-w", "-At", &to, "-c", sql]).env("PGPASSWORD", password);
        let output = command.current_dir(self.dir.path()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).trim().to_owned()
    }
}

#[test]
fn rules_say_who_gets_in_and_the_owner_always_does() {
    let (node, port) = Node::found(
        "[[access]]\nrole = \"atoll\"\ntls = \"required\"\nmethod = \"scram\"\n\
         [[access]]\naddress = \"127.0.0.0/8\"\nrole = \"watcher\"\nmethod = \"trust\"\n\
         [[access]]\naddress = \"::1\"\nrole = \"watcher\"\nmethod = \"trust\"\n\
         [[access]]\nrole = \"banned\"\nmethod = \"reject\"\n",
    );
    let begun = Instant::now();
    loop {
        let output = atoll(node.dir.path(), &["password", "atoll", "--data", "data"]);
        if output.status.success() {
            break;
        }
        let log = std::fs::read_to_string(node.dir.path().join("log.txt")).unwrap();
        assert!(begun.elapsed() < PATIENCE, "{output:?}\n{log}");
        std::thread::sleep(Duration::from_millis(50));
    }
    done(&atoll(node.dir.path(), &["sql", "--data", "data", "-c", "CREATE ROLE watcher LOGIN"]));
    let ask =
        |role: &str, more: &str, password: &str| node.psql(port, role, more, password, "SELECT 1");
    let strict = "sslmode=verify-full sslrootcert=ca/authority.pem channel_binding=require";
    assert_eq!(ask("atoll", strict, "pencil"), "1");
    let told = ask("atoll", "sslmode=disable", "pencil");
    assert!(
        told.contains("no pg_hba.conf entry for host \"127.0.0.1\", user \"atoll\", database \"atoll\", no encryption"),
        "{told}"
    );
    let told = ask("atoll", "sslmode=require", "pen");
    assert!(told.contains("password authentication failed for user \"atoll\""), "{told}");
    assert_eq!(ask("watcher", "sslmode=disable", ""), "1");
    let told = ask("banned", "sslmode=require", "pencil");
    assert!(told.contains("pg_hba.conf rejects connection for host"), "{told}");
    let told = ask("stranger", "sslmode=require", "pencil");
    assert!(told.contains("no pg_hba.conf entry for host"), "{told}");
    let rules = node.psql(
        port,
        "atoll",
        strict,
        "pencil",
        "SELECT role, tls, method FROM atoll.access ORDER BY position",
    );
    assert_eq!(
        rules,
        "atoll|required|scram\nwatcher|any|trust\nwatcher|any|trust\nbanned|any|reject"
    );
    // The password is in no statement, in no log and in no file.
    let seen = node.psql(port, "atoll", strict, "pencil", "SELECT query FROM atoll.statements");
    assert!(!seen.contains("pencil") && !seen.contains("SCRAM-SHA-256$"), "{seen}");
    let found =
        Command::new("grep").args(["-rl", "pencil", "."]).current_dir(node.dir.path()).output();
    assert_eq!(String::from_utf8_lossy(&found.unwrap().stdout), "");
}

#[test]
fn a_cluster_is_founded_once_and_what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let said = |words: &[&str]| {
        let output = atoll(dir.path(), words);
        assert!(!output.status.success(), "{words:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let bare = ["init", "--zone", "a", "--data", "d", "--no-start"];
    assert!(said(&bare).contains("`atoll cert` makes them"));
    done(&atoll(dir.path(), &["cert", "authority", "--dir", "ca"]));
    done(&atoll(dir.path(), &["cert", "node", "n1", "--host", "h", "--dir", "ca"]));
    done(&atoll(dir.path(), &["cert", "node", "n2", "--host", "h", "--dir", "ca"]));
    let with = |name: &str, key: &str| {
        [
            "--tls-authority",
            "ca/authority.pem",
            "--tls-certificate",
            &format!("ca/{name}.pem"),
            "--tls-key",
            &format!("ca/{key}.key"),
        ]
        .map(str::to_owned)
    };
    let words = |certificates: &[String], first: &[&str]| -> Vec<String> {
        first.iter().map(|word| (*word).to_owned()).chain(certificates.iter().cloned()).collect()
    };
    let run =
        |words: &[String]| atoll(dir.path(), &words.iter().map(String::as_str).collect::<Vec<_>>());
    let output = run(&words(&with("n1", "n2"), &bare));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("it is not the key of the certificate"), "{told}");
    done(&run(&words(&with("n1", "n1"), &bare)));
    let output = run(&words(&with("n1", "n1"), &bare));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("is the data of node 1 of a cluster already"), "{told}");
    // A node keeps its name.
    let output = run(&words(&with("n2", "n2"), &["node", "--zone", "a", "--data", "d"]));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("whose name is \"n1\", and the certificate has the name \"n2\""),
        "{told}"
    );
    let output = run(&words(
        &with("n1", "n1"),
        &["node", "--zone", "a", "--data", "e", "--listen", "127.0.0.1:0"],
    ));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("found a cluster with `atoll init`"), "{told}");
    assert!(done(&atoll(dir.path(), &["cert", "show", "ca/n1.pem"])).contains("n1"));
}
