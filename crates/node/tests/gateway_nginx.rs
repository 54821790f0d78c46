//! The gateway before nginx, as it stands in most houses: connections that are closed after some
//! requests, reloads, stops at once and in peace, large files, compressed answers.

#![allow(clippy::disallowed_methods)]

#[path = "gateway/mod.rs"]
mod support;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::{Gateway, Traffic, assert_good, free_port, until};

const CONFIG: &str = r#"
daemon off;
user root;
worker_processes 1;
pid PREFIX.pid;
error_log PREFIX.error;
events {}
http {
    access_log off;
    client_body_temp_path PREFIX.body;
    proxy_temp_path PREFIX.proxy;
    fastcgi_temp_path PREFIX.fastcgi;
    uwsgi_temp_path PREFIX.uwsgi;
    scgi_temp_path PREFIX.scgi;
    # Idle connections go away under the gateway's hands.
    keepalive_requests 20;
    gzip on;
    gzip_types *;
    gzip_min_length 1;
    server {
        listen 127.0.0.1:PORT;
        root FOLDER;
        location = / { return 200 NAME; }
        location /files/ { }
    }
}
"#;

/// One nginx, its name the answer.
struct Nginx {
    name: char,
    port: u16,
    dir: PathBuf,
    master: Child,
}

impl Nginx {
    fn start(dir: &Path, name: char, port: u16) -> Nginx {
        let prefix = dir.join(format!("nginx-{name}"));
        let text = CONFIG
            .replace("PREFIX", prefix.to_str().unwrap())
            .replace("FOLDER", dir.to_str().unwrap())
            .replace("PORT", &port.to_string())
            .replace("NAME", &name.to_string());
        let file = prefix.with_extension("conf");
        fs::write(&file, text).unwrap();
        let master = Command::new("/usr/sbin/nginx")
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(prefix.with_extension("error"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("nginx", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Nginx { name, port, dir: dir.to_owned(), master }
    }

    fn signal(&self, name: &str) {
        let pid = self.master.id().to_string();
        Command::new("kill").args(["-s", name, &pid]).status().unwrap();
    }

    /// Ends it by this signal, and starts it anew on the same port.
    fn restart(&mut self, signal: &str, between: impl Fn()) {
        self.signal(signal);
        self.master.wait().unwrap();
        between();
        *self = Nginx::start(&self.dir.clone(), self.name, self.port);
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if self.master.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        // Its workers end with the master that is asked, not with one that is killed.
        self.signal("TERM");
        self.master.wait().ok();
    }
}

#[test]
fn nginx_is_reloaded_stopped_and_started_without_a_lost_request() {
    let dir = tempfile::tempdir().unwrap();
    let mut zones = ['a', 'b', 'c'].map(|name| Nginx::start(dir.path(), name, free_port()));
    let specs = zones.iter().map(|zone| format!("\"{}=127.0.0.1:{}\"", zone.name, zone.port));
    let specs: Vec<String> = specs.collect();
    let web = format!("[services.web]\nservers = [{}]", specs.join(", "));
    let gateway = Gateway::start(dir.path(), &web);
    let traffic = Traffic::start(gateway.port, 4);
    traffic.pass(500);
    for _ in 0..3 {
        zones[0].signal("HUP");
        traffic.pass(200);
    }
    for signal in ["QUIT", "TERM"] {
        zones[0].restart(signal, || traffic.pass(500));
        until("zone a again", || gateway.get("/").is_ok_and(|(_, zone)| zone == "a"));
    }
    let answers = traffic.end();
    assert_good(&answers);
    assert!(answers["a"] >= 500 && answers["b"] >= 500, "{answers:?}");
    assert!(!answers.contains_key("c"), "{answers:?}");
}

#[test]
fn what_nginx_serves_arrives_whole() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("files")).unwrap();
    // Nothing repeats, so that nothing can be lost unseen; half of it is worth compressing.
    let lines: Vec<String> = (0..500_000).map(|n| format!("{n:016x}")).collect();
    let text = lines.concat();
    fs::write(dir.path().join("files/large"), &text).unwrap();
    let nginx = Nginx::start(dir.path(), 'a', free_port());
    let web = format!("[services.web]\nservers = [\"127.0.0.1:{}\"]", nginx.port);
    let gateway = Gateway::start(dir.path(), &web);
    let url = format!("http://127.0.0.1:{}/files/large", gateway.port);
    let fetch = |words: &[&str]| {
        let client = "import sys, gzip, urllib.request as u\n\
            url, *headers = sys.argv[1:]\n\
            answer = u.urlopen(u.Request(url, headers=dict(h.split(': ') for h in headers)))\n\
            body = answer.read()\n\
            kind = answer.headers.get('content-encoding') or 'plain'\n\
            text = gzip.decompress(body) if kind == 'gzip' else body\n\
            sys.stdout.buffer.write(('%d %s\\n' % (answer.status, kind)).encode() + text)";
        let output =
            Command::new("python3").args(["-c", client, &url]).args(words).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let (head, body) = output.split_once('\n').unwrap();
        (head.to_owned(), body.to_owned())
    };
    let whole = fetch(&[]);
    assert!(whole == ("200 plain".into(), text.clone()), "{}: {}", whole.0, whole.1.len());
    // In chunks, as what is compressed on the way has no length.
    let compressed = fetch(&["accept-encoding: gzip"]);
    assert!(compressed == ("200 gzip".into(), text.clone()), "{}", compressed.0);
    let part = fetch(&["range: bytes=16-47"]);
    assert_eq!(part, ("206 plain".into(), text[16..48].into()));
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(gateway.get("/files/none").unwrap().0, 404);
    }
    let state = gateway.state();
    assert_eq!(state["services"][0]["servers"][0]["n_failed"], 0, "{state}");
}
