//! docs/many-machines.md, followed word by word by hosts in namespaces of their own: each has its own
//! network, its own processes, its own `/etc` and `/var/lib`. What a machine has and a namespace has not
//! (apt, scp, systemd) is played by small scripts; `systemctl` starts what the unit says.
//!
//! Beside what the page says, the test looks whether it is true: who gets in and who does not, what a
//! renewal does to connections, and that another host may be lost the moment the replicas are back.
// The test stands outside of what is simulated.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/many-machines.md");
const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/debian");
const PASSWORD: &str = "correct horse";
const YOURS: &str = "your machine";
/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A step of the page.
#[derive(Debug)]
enum Step {
    Run { host: String, commands: String },
    File { host: String, path: String, text: String },
}

/// The indented blocks of the page, by the line before each: `On HOST:` or ``The file `PATH` on HOST:``.
fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = page.lines().peekable();
    let mut before = String::new();
    while let Some(line) = lines.next() {
        if let Some(first) = line.strip_prefix("    ") {
            let mut text = format!("{first}\n");
            while let Some(next) = lines.peek().and_then(|line| line.strip_prefix("    ")) {
                text.push_str(next);
                text.push('\n');
                lines.next();
            }
            let told =
                before.strip_suffix(':').unwrap_or_else(|| panic!("{before:?} before {text}"));
            steps.push(match told.strip_prefix("On ") {
                Some(host) => Step::Run { host: host.into(), commands: text },
                None => {
                    let told = told.strip_prefix("The file `").expect(told);
                    let (path, host) = told.split_once("` on ").expect(told);
                    Step::File { host: host.into(), path: path.into(), text }
                }
            });
        } else if !line.trim().is_empty() {
            before = line.to_owned();
        }
    }
    steps
}

/// A host: what runs in it ends when it is dropped.
struct Host {
    holder: Child,
    /// The first process inside.
    init: u32,
    dir: PathBuf,
}

impl Drop for Host {
    fn drop(&mut self) {
        // What is first in a namespace of processes takes all others with it.
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}

struct Lab {
    base: tempfile::TempDir,
    switch: Host,
    hosts: BTreeMap<String, Host>,
    n_ports: u32,
}

fn permitted() -> bool {
    let words = ["--net", "--mount", "--pid", "--fork", "--mount-proc", "ip", "link"];
    Command::new("unshare").args(words).output().is_ok_and(|output| output.status.success())
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

/// A process that holds namespaces; `script` runs in them first.
fn hold(dir: &Path, script: &str) -> Host {
    std::fs::create_dir_all(dir).unwrap();
    let ready = dir.join("ready");
    let script = format!("{script}\ntouch {}\nexec sleep 1000000", ready.display());
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    let mut holder = command.args(["sh", "-ec", &script]).stdin(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !ready.exists() {
        assert!(begun.elapsed() < PATIENCE && holder.try_wait().unwrap().is_none(), "{script}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = holder.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let init = children.split_whitespace().next().unwrap().parse().unwrap();
    Host { holder, init, dir: dir.into() }
}

impl Lab {
    fn new() -> Lab {
        let base = tempfile::Builder::new().prefix("atoll").tempdir().unwrap();
        let switch =
            hold(&base.path().join("switch"), "ip link add br0 type bridge; ip link set br0 up");
        let bin = base.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let base_dir = base.path().display().to_string();
        let tool = |name: &str, text: &str| {
            let path = bin.join(name);
            std::fs::write(&path, format!("#!/bin/sh\nset -e\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let atoll = env!("CARGO_BIN_EXE_atoll");
        tool("atoll", &format!("exec {atoll} \"$@\""));
        tool("apt", &format!("mkdir -p /etc/atoll/tls\ncp {UNITS}/atoll.toml /etc/atoll/"));
        // Into the other host's files, as scp does: what is there already is written over in place.
        tool(
            "scp",
            &format!("host=${{2%%:*}}\ncat \"$1\" > \"{base_dir}/${{host#root@}}${{2#*:}}\""),
        );
        tool(
            "systemctl",
            &format!(
                "for name; do :; done\nunit={UNITS}/$name.service\n\
                 line=$(sed -n 's|^ExecStart=/usr/bin/||p' $unit)\n\
                 if grep -q ^Type=oneshot $unit; then exec $line; fi\n\
                 setsid $line < /dev/null >> /var/lib/log.txt 2>&1 &"
            ),
        );
        Lab { base, switch, hosts: BTreeMap::new(), n_ports: 0 }
    }

    fn add(&mut self, name: &str, address: &str) {
        let dir = self.base.path().join(name.replace(' ', "-"));
        std::fs::create_dir_all(dir.join("var/lib")).unwrap();
        std::fs::create_dir_all(dir.join("work")).unwrap();
        sh(&format!("cp -a /etc {}/etc; rm -rf {0}/etc/atoll", dir.display()));
        let shown = dir.display();
        let host = hold(
            &dir,
            &format!("mount --bind {shown}/etc /etc; mount --bind {shown}/var/lib /var/lib"),
        );
        self.n_ports += 1;
        let (port, switch, init) = (self.n_ports, self.switch.init, host.init);
        sh(&format!(
            "nsenter -t {switch} -n ip link add p{port} type veth peer name eth0 netns {init}
             nsenter -t {switch} -n ip link set p{port} master br0 up
             nsenter -t {init} -n ip addr add {address}/16 dev eth0
             nsenter -t {init} -n ip link set eth0 up
             nsenter -t {init} -n ip link set lo up"
        ));
        self.hosts.insert(name.to_owned(), host);
        self.name(name, address);
    }

    /// Who is called `name` from now on, on all hosts.
    fn name(&self, name: &str, address: &str) {
        for host in self.hosts.values() {
            let path = host.dir.join("etc/hosts");
            let text = std::fs::read_to_string(&path).unwrap();
            let others: Vec<&str> =
                text.lines().filter(|line| !line.ends_with(&format!(" {name}"))).collect();
            std::fs::write(&path, format!("{}\n{address} {name}\n", others.join("\n"))).unwrap();
        }
        // Who came later knows those who were there.
        let known: Vec<String> = self
            .hosts
            .values()
            .flat_map(|host| {
                let text = std::fs::read_to_string(host.dir.join("etc/hosts")).unwrap();
                text.lines()
                    .filter(|line| line.starts_with("10.77."))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect();
        let newest: BTreeMap<&str, &str> = known
            .iter()
            .filter_map(|line| line.split_once(' ').map(|(address, name)| (name, address)))
            .collect();
        let path = self.hosts[name].dir.join("etc/hosts");
        let text = std::fs::read_to_string(&path).unwrap();
        let missing = newest.iter().filter(|(name, _)| !text.contains(&format!(" {name}\n")));
        let missing: String = missing.map(|(name, at)| format!("{at} {name}\n")).collect();
        std::fs::write(&path, text + &missing).unwrap();
    }

    /// Runs a script on a host; the answer is its success, and what it said.
    fn try_on(&self, host: &str, script: &str) -> (bool, String) {
        let host = &self.hosts[host];
        let path = format!(
            "{}:{}",
            self.base.path().join("bin").display(),
            std::env::var("PATH").unwrap()
        );
        let mut command = Command::new("nsenter");
        command.args(["-t", &host.init.to_string(), "--net", "--mount", "--pid"]);
        command.args(["sh", "-ec", &format!("cd {}/work\n{script}", host.dir.display())]);
        command.env("PATH", path).env("PGPASSWORD", PASSWORD).env("PGCONNECT_TIMEOUT", "10");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Whoever asks for a password gets it.
        writeln!(child.stdin.take().unwrap(), "{PASSWORD}").ok();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    fn on(&self, host: &str, script: &str) -> String {
        let (done, said) = self.try_on(host, script);
        assert!(done, "on {host}:\n{script}\n{said}\n{}", self.logs());
        said
    }

    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
        let begun = Instant::now();
        loop {
            match look() {
                Ok(found) => return found,
                Err(seen) => {
                    assert!(begun.elapsed() < PATIENCE, "{what}: {seen}\n{}", self.logs());
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn logs(&self) -> String {
        let mut all = String::new();
        for (name, host) in &self.hosts {
            let log = std::fs::read_to_string(host.dir.join("var/lib/log.txt")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(30)..];
            all.push_str(&format!("--- {name}\n{}\n", last.join("\n")));
        }
        all
    }

    fn log(&self, host: &str) -> String {
        std::fs::read_to_string(self.hosts[host].dir.join("var/lib/log.txt")).unwrap_or_default()
    }

    /// `replicas` of each tablet, as node db1 has them.
    fn replicas(&self) -> Vec<String> {
        let json = self.try_on(
            "db1",
            "atoll sql --json --data /var/lib/atoll -c 'SELECT replicas FROM atoll.tablets'",
        );
        json.1
            .lines()
            .filter_map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).ok()?;
                line["replicas"].as_str().map(str::to_owned)
            })
            .collect()
    }

    fn until_replicated(&self, wanted: &str) {
        self.until(&format!("replicas on {wanted}"), || {
            let seen = self.replicas();
            match !seen.is_empty() && seen.iter().all(|replicas| replicas == wanted) {
                true => Ok(()),
                false => Err(format!("{seen:?}")),
            }
        });
    }
}

/// As the page has it for db2, with another host, role or options.
fn psql(host: &str, more: &str, sql: &str) -> String {
    format!(
        "psql \"host={host} port=5433 user=atoll dbname=atoll sslrootcert=authority/authority.pem {more}\" \
         -Atc \"{sql}\""
    )
}

const STRICT: &str = "sslmode=verify-full channel_binding=require";

#[test]
fn the_page_is_true_word_by_word() {
    if !permitted() {
        eprintln!("skipped: this machine permits no network namespaces (run it as root)");
        return;
    }
    let page = std::fs::read_to_string(PAGE).unwrap();
    let mut lab = Lab::new();
    lab.add(YOURS, "10.77.0.100");
    for (n, name) in ["db1", "db2", "db3"].into_iter().enumerate() {
        lab.add(name, &format!("10.77.0.{}", n + 1));
    }
    let mut n_status = 0;
    let mut is_replaced = false;
    for step in steps(&page) {
        let new_host = match &step {
            Step::Run { host, .. } | Step::File { host, .. } => host == "the new db3",
        };
        if new_host && !is_replaced {
            lose_db3(&mut lab);
            is_replaced = true;
        }
        match step {
            Step::File { host, path, text } => {
                let host = host.strip_prefix("the new ").unwrap_or(&host);
                let path = lab.hosts[host].dir.join(path.trim_start_matches('/'));
                std::fs::write(path, text).unwrap();
            }
            Step::Run { host, commands } => {
                let host = host.strip_prefix("the new ").unwrap_or(&host).to_owned();
                if commands.contains("atoll password") {
                    before_the_first_password(&lab);
                }
                let renews =
                    commands.contains("db1 --dir") && !commands.contains("authority --dir");
                let shown = renews.then(|| certificate(&lab));
                lab.on(&host, &commands);
                if commands.contains("atoll password") {
                    after_the_first_password(&lab);
                }
                if let Some(old) = shown {
                    assert_ne!(certificate(&lab), old, "the renewed certificate is not shown");
                    assert!(!lab.log("db1").contains("worker is stuck"));
                }
                if commands.contains("atoll status") {
                    n_status += 1;
                    match n_status {
                        1 => lab.until_replicated("1,2,3"),
                        _ => replicas_that_are_shown_count(&lab),
                    }
                }
            }
        }
    }
    assert!(is_replaced && n_status == 2, "the page has changed: so must this test");
}

/// What the SQL port of db1 shows.
fn certificate(lab: &Lab) -> String {
    lab.on(
        YOURS,
        "echo | openssl s_client -connect db1:5433 -alpn postgresql 2> /dev/null | openssl x509 -noout -fingerprint",
    )
}

fn before_the_first_password(lab: &Lab) {
    lab.until("db1 listens", || match lab.try_on(YOURS, &psql("db1", STRICT, "SELECT 1")) {
        (false, said) if said.contains("password authentication failed") => Ok(()),
        (_, said) => Err(said),
    });
}

fn after_the_first_password(lab: &Lab) {
    assert_eq!(lab.on(YOURS, &psql("db1", STRICT, "SELECT 1")).trim(), "1");
    // TLS at once, without asking for it; only for who says what it speaks.
    let alpn = "echo | openssl s_client -connect db1:5433 -CAfile authority/authority.pem -verify_return_error";
    assert!(
        lab.on(YOURS, &format!("{alpn} -alpn postgresql 2>&1"))
            .contains("ALPN protocol: postgresql")
    );
    // Under a name that does not stand in the certificate; under a wrong password.
    let (done, said) = lab.try_on(
        YOURS,
        &format!("echo 10.77.0.1 other >> /etc/hosts\n{}", psql("other", STRICT, "SELECT 1")),
    );
    assert!(!done && said.contains("does not match host name"), "{said}");
    let wrong = format!("PGPASSWORD=wrong {}", psql("db1", STRICT, "SELECT 1"));
    let (done, said) = lab.try_on(YOURS, &wrong);
    assert!(!done && said.contains("password authentication failed"), "{said}");
    // The password is in no statement.
    let statements = lab.on(YOURS, &psql("db1", STRICT, "SELECT query FROM atoll.statements"));
    assert!(
        !statements.contains("SCRAM-SHA-256$") && !statements.contains(PASSWORD),
        "{statements}"
    );
}

/// The host is gone, and a stranger who tries to be it is not let in.
fn lose_db3(lab: &mut Lab) {
    // A living node's name is nobody else's.
    lab.on(
        YOURS,
        "mkdir -p stranger
         atoll cert authority --dir stranger > /dev/null
         atoll cert node db9 --host db9 --dir stranger > /dev/null",
    );
    let node = |dir: &str, name: &str, data: &str| {
        format!(
            "timeout 4 atoll node --zone c --data {data} --listen 10.77.0.100:7401 --sql-listen 127.0.0.1:5433 \
             --join db1 --tls-authority {dir}/authority.pem --tls-certificate {dir}/{name}.pem --tls-key {dir}/{name}.key"
        )
    };
    let (_, said) = lab.try_on(YOURS, &node("authority", "db2", "d1"));
    assert!(said.contains("node 2 is alive and has the name"), "{said}");
    let (_, said) = lab.try_on(YOURS, &node("stranger", "db9", "d2"));
    assert!(said.contains("shows the certificate") && said.contains("atoll cert node"), "{said}");

    let lost = lab.hosts.remove("db3").unwrap();
    let dir = lost.dir.clone();
    drop(lost);
    std::fs::remove_dir_all(dir).unwrap();
    lab.until("writes go on without db3", || {
        match lab
            .try_on(YOURS, &psql("db1", STRICT, "INSERT INTO t VALUES (3) ON CONFLICT DO NOTHING"))
        {
            (true, _) => Ok(()),
            (false, said) => Err(said),
        }
    });
    lab.add("db3", "10.77.0.4");
}

/// At the moment when the view shows three replicas again, another host goes. Nothing is lost.
fn replicas_that_are_shown_count(lab: &Lab) {
    lab.until_replicated("1,2,4");
    let db2 = lab.hosts["db2"].init;
    sh(&format!("nsenter -t {db2} -n ip link set eth0 down"));
    lab.until("writes go on without db2", || {
        match lab
            .try_on(YOURS, &psql("db1", STRICT, "INSERT INTO t VALUES (4) ON CONFLICT DO NOTHING"))
        {
            (true, _) => Ok(()),
            (false, said) => Err(said),
        }
    });
    let rows = lab.on(YOURS, &psql("db3", STRICT, "SELECT count(*) FROM t"));
    assert_eq!(rows.trim(), "4");
}
