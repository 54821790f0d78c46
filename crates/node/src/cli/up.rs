//! `atoll up`: a cluster of real processes on this machine.

use super::local::{Plan, PlannedNode, node_dir, process, requests_dir, tls_dir};
use super::{Result, client, password};
use crate::certificates;
use crate::config::AuthMethod;
use crate::identity::Home;
use crate::supervisor;
use base::Env;
use clap::Args;
use cluster::DeathReport;
use nix::sys::signal::{Signal, kill};
use sql::wire::scram::Verifier;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Args)]
pub struct Up {
    /// Zones, each a failure domain: 1, 3 or 5.
    #[arg(long, value_parser = parse_zones)]
    zones: Option<u16>,
    /// Nodes in each zone.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=20))]
    nodes: Option<u16>,
    /// Where the cluster keeps its data.
    #[arg(long, env = "ATOLL_DATA", default_value = "atoll-data", value_name = "DIR")]
    data: PathBuf,
    /// Added to all ports, so that several clusters fit on one machine.
    #[arg(long, default_value_t = 0)]
    port_offset: u16,
    /// Ask SQL clients for passwords from now on, and set that of the first role: read from
    /// ATOLL_PASSWORD or the terminal.
    #[arg(long)]
    password: bool,
    /// The same, with the password from a file.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// What the nodes log.
    #[arg(long, env = "ATOLL_LOG")]
    log: Option<String>,
}

fn parse_zones(text: &str) -> std::result::Result<u16, String> {
    match text {
        "1" | "3" | "5" => Ok(text.parse().unwrap_or(1)),
        _ => Err("a majority needs an odd number of zones: 1, 3 or 5".into()),
    }
}

/// The addresses are printed after this long even if no node answers yet.
const SHOW_AFTER: Duration = Duration::from_millis(1500);
const POLL: Duration = Duration::from_millis(200);
/// How long setting the first password is tried.
const SETTING: Duration = Duration::from_secs(120);
/// How long the nodes may take to stop.
const STOPPING: Duration = Duration::from_secs(20);

struct Running {
    node: PlannedNode,
    child: Child,
    /// Closing it tells the supervisor to stop.
    _tether: Option<ChildStdin>,
}

impl Up {
    pub async fn run(self) -> Result<ExitCode> {
        let env = Env::real();
        let data = std::path::absolute(&self.data)?;
        let home = Home::open(&data)?;
        let _lock = home.lock().map_err(|error| match error {
            crate::identity::Error::InUse(dir) => {
                format!(
                    "a cluster already runs in {}: stop it first, or choose another --data",
                    dir.display()
                )
            }
            other => other.to_string(),
        })?;
        let mut plan = self.plan(&env, &data)?;
        let mut verifier = None;
        if self.password || self.password_file.is_some() {
            verifier = Some(password::verifier(&env, self.password_file.as_deref())?);
            plan.auth = Some(AuthMethod::Scram);
            plan.save(&data)?;
        }
        plan.certify(&env, &data)?;
        std::fs::create_dir_all(requests_dir(&data))?;
        for stale in std::fs::read_dir(requests_dir(&data))? {
            std::fs::remove_file(stale?.path())?;
        }
        let mut running = Vec::new();
        for node in &plan.nodes {
            running.push(self.start(&plan, &data, node)?);
        }
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let ready = async {
            show(&env, &plan, &data).await;
            match &verifier {
                Some(verifier) => set_password(&env, &plan, &data, verifier).await,
                None => Ok(()),
            }
        };
        tokio::select! {
            done = ready => done?,
            _ = interrupt.recv() => return stop(&env, running).await,
            _ = terminate.recv() => return stop(&env, running).await,
        }
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = env.sleep(POLL) => {}
            }
            // Asked for before the dead are buried: who asks has seen that the node is dead.
            let asked_for = requests(&data)?;
            let mut n = 0;
            while n < running.len() {
                match running[n].child.try_wait()? {
                    Some(status) => {
                        let ended = running.remove(n);
                        bury(&env, &plan, &data, &ended.node, status).await;
                    }
                    None => n += 1,
                }
            }
            for number in asked_for {
                if running.iter().all(|run| run.node.number != number) {
                    let node = plan.node(number)?;
                    println!("starting node {number}");
                    running.push(self.start(&plan, &data, node)?);
                }
            }
        }
        stop(&env, running).await
    }

    fn plan(&self, env: &Env, data: &Path) -> Result<Plan> {
        let Some(plan) = Plan::load(data)? else {
            return Plan::found(
                env,
                data,
                self.zones.unwrap_or(3),
                self.nodes.unwrap_or(1),
                self.port_offset,
            );
        };
        let mut zones: Vec<&str> = plan.nodes.iter().map(|node| node.zone.as_str()).collect();
        zones.sort_unstable();
        zones.dedup();
        let (zones, nodes) = (zones.len(), plan.nodes.len());
        if self.zones.is_some_and(|asked| usize::from(asked) != zones)
            || self.nodes.is_some_and(|asked| usize::from(asked) * zones != nodes)
        {
            return Err(format!(
                "{} holds a cluster of {nodes} nodes in {zones} zones: start it without --zones and --nodes, or choose another --data",
                data.display()
            )
            .into());
        }
        Ok(plan)
    }

    fn start(&self, plan: &Plan, data: &Path, node: &PlannedNode) -> Result<Running> {
        let dir = node_dir(data, node.number);
        std::fs::create_dir_all(&dir)?;
        let log = File::options().create(true).append(true).open(dir.join("log.txt"))?;
        let others = plan.nodes.iter().filter(|other| other.number != node.number);
        let others: Vec<String> = others.map(|other| other.peer_address.to_string()).collect();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("node").arg("--tethered").arg("--data").arg(&dir);
        command.arg("--zone").arg(&node.zone);
        command.arg("--listen").arg(node.peer_address.to_string());
        command.arg("--sql-listen").arg(node.sql_address.to_string());
        let own = certificates::pair(&tls_dir(data), &node.name());
        let authority = certificates::pair(&tls_dir(data), certificates::AUTHORITY);
        command.arg("--tls-authority").arg(authority.certificate);
        command.arg("--tls-certificate").arg(own.certificate).arg("--tls-key").arg(own.key);
        if plan.auth == Some(AuthMethod::Scram) {
            command.arg("--auth").arg("scram");
        }
        command.env_remove(password::VARIABLE);
        if !others.is_empty() {
            command.arg("--join").arg(others.join(","));
        }
        if let Some(log) = &self.log {
            command.arg("--log").arg(log);
        }
        // In a process group of its own: the terminal's Ctrl-C is for us, who then stop the nodes.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn()?;
        let tether = child.stdin.take();
        Ok(Running { node: node.clone(), child, _tether: tether })
    }
}

/// Prints where to connect, as soon as somebody answers there.
async fn show(env: &Env, plan: &Plan, data: &Path) {
    let answers = async {
        loop {
            for node in &plan.nodes {
                if client::answers(data, node).await {
                    return;
                }
            }
            env.sleep(Duration::from_millis(50)).await;
        }
    };
    let ready = env.timeout(SHOW_AFTER, answers).await.is_some();
    let state = if ready { "is up" } else { "is starting" };
    println!("Atoll {state}: {} nodes, data in {}", plan.nodes.len(), data.display());
    for node in &plan.nodes {
        println!(
            "  node {}  {}  SQL {}  peers {}",
            node.number, node.zone, node.sql_address, node.peer_address
        );
    }
    if let Some(first) = plan.nodes.first() {
        let user = sql::engine::FIRST_USER;
        println!(
            "Connect with: psql -h 127.0.0.1 -p {} -U {user} {user}",
            first.sql_address.port()
        );
    }
    println!("Ctrl-C stops the cluster; the next `atoll up` goes on with its data.");
}

/// Gives the first role its password, as soon as that can be written.
async fn set_password(env: &Env, plan: &Plan, data: &Path, verifier: &Verifier) -> Result<()> {
    let user = sql::engine::FIRST_USER;
    let until = env.now() + SETTING;
    loop {
        let mut done = Err("no node answers".into());
        for node in &plan.nodes {
            if let Ok(connection) = client::connect_node(data, node).await {
                done = password::set(&connection, user, verifier).await;
            }
            if done.is_ok() {
                println!("The role {user} has its password.");
                return Ok(());
            }
        }
        if env.now() > until {
            let Err(error) = done else { return Ok(()) };
            eprintln!(
                "atoll: the role {user} has no password yet ({error}): set it with `atoll password {user}`"
            );
            return Ok(());
        }
        env.sleep(POLL).await;
    }
}

/// The nodes that somebody wants started. Each request is taken once.
fn requests(data: &Path) -> Result<Vec<u16>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(requests_dir(data))? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("start-"));
        numbers.extend(number.and_then(|number| number.parse::<u16>().ok()));
        std::fs::remove_file(entry.path())?;
    }
    Ok(numbers)
}

/// A supervisor has ended. If it was killed, its worker is made sure to be dead, and told so.
async fn bury(
    env: &Env,
    plan: &Plan,
    data: &Path,
    node: &PlannedNode,
    status: std::process::ExitStatus,
) {
    let dir = node_dir(data, node.number);
    println!(
        "node {} has stopped ({status}); `atoll chaos start {}` starts it again",
        node.number, node.number
    );
    if status.code() == Some(i32::from(supervisor::MISUSED)) || status.code() == Some(70) {
        println!("  see the end of {}", dir.join("log.txt").display());
    }
    while let Some(worker) = process(&dir, "worker.pid") {
        // It may end by itself between the look and the kill.
        kill(worker, Signal::SIGKILL).ok();
        env.sleep(Duration::from_millis(2)).await;
    }
    let Ok(home) = Home::open(&dir) else { return };
    let (Ok(Some(identity)), Ok(boot)) = (home.identity(), home.boot()) else { return };
    let peers = plan.nodes.iter().filter(|peer| peer.number != node.number);
    let peers: Vec<_> = peers.map(|peer| peer.peer_address).collect();
    let report = DeathReport { node: identity.node, boot };
    let own = certificates::pair(&tls_dir(data), &node.name());
    let authority = certificates::pair(&tls_dir(data), certificates::AUTHORITY).certificate;
    match transport::tls::Tls::load(&authority, &own.certificate, &own.key) {
        Ok(tls) => drop(supervisor::tell(env, &Some(tls), plan.cluster, report, &peers).await),
        // The others notice by themselves, a second later.
        Err(error) => eprintln!("atoll: the end of node {} is not told: {error}", node.number),
    }
}

async fn stop(env: &Env, mut running: Vec<Running>) -> Result<ExitCode> {
    println!("stopping");
    for run in &running {
        if let Some(pid) = run.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            // One that is paused must go on to hear it. One that has ended is what we want.
            kill(pid, Signal::SIGTERM).ok();
            kill(pid, Signal::SIGCONT).ok();
        }
    }
    let mut code = ExitCode::SUCCESS;
    for run in &mut running {
        if env.timeout(STOPPING, run.child.wait()).await.is_none() {
            eprintln!("atoll: node {} does not stop, killing it", run.node.number);
            run.child.kill().await?;
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
