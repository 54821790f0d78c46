//! The small process that starts, watches and reports the worker. What it does when is decided
//! in [`cluster::supervision`]; here it is done.
//!
//! The worker's standard output is its line to the supervisor: `beat` while it is well, and `ready`
//! once it serves. Its standard input is the supervisor's to it: `stop` asks, and its end means that
//! the supervisor is gone, whereupon the worker ends itself. So no worker outlives its supervisor.
//!
//! A death is told at once to all peers. A peer that does not take the report may be between two
//! starts of its own, so it is told again for a few seconds. Nothing but time depends on that.

use crate::config::Config;
use crate::identity::Home;
use base::Env;
use base::NodeId;
use bytes::Bytes;
use cluster::DeathReport;
use cluster::supervision::{Action, EXIT_MISUSED, End, Event, Supervision};
use futures::FutureExt;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use transport::{Identity, MessageKind, Transport};

const TICK: Duration = Duration::from_millis(250);
/// A peer has this long to take a report.
const REPORT: Duration = Duration::from_millis(500);
/// A peer that did not take a report is told again this often, and for this long.
const TELL_AGAIN: Duration = Duration::from_millis(100);
const TELL_FOR: Duration = Duration::from_secs(5);

/// How the worker is handed its configuration.
pub const CONFIG_VARIABLE: &str = "ATOLL_WORKER_CONFIG";

struct Worker {
    child: Child,
    stdin: ChildStdin,
    boot: u64,
}

/// Runs until the node is stopped. `tethered`: also when standard input ends.
pub async fn run(config: Config, tethered: bool) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let env = Env::real();
    let home = Home::open(&config.data)?;
    let _lock = home.lock()?;
    home.write_pid("supervisor.pid")?;
    let tls = config.load_tls()?;
    if let (Some(tls), Some(identity)) = (&tls, home.identity()?) {
        check_name(&home, identity.node, &tls.name())?;
    }
    let (heard, mut hears) = mpsc::channel::<Event>(64);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Fused: it ends once, and the worker's own end is waited for after that.
    let mut tether = std::pin::pin!(untethered(tethered).fuse());
    let mut supervision = Supervision::new(env.now());
    let mut worker: Option<Worker> = None;
    let mut reporting: Option<JoinHandle<()>> = None;
    let mut event = Event::Tick;
    loop {
        for action in supervision.step(env.now(), event) {
            match action {
                Action::Start => worker = Some(start(&env, &config, &home, heard.clone())?),
                Action::AskToStop => {
                    if let Some(worker) = &mut worker {
                        // If it cannot be asked it has ended, which we will hear.
                        worker.stdin.write_all(b"stop\n").await.ok();
                    }
                }
                Action::Kill => {
                    if let Some(worker) = &mut worker {
                        eprintln!("atoll: the worker is stuck, killing it");
                        worker.child.start_kill()?;
                    }
                }
                Action::Report => {
                    if let Some(worker) = worker.take() {
                        // Beside what comes next: a peer that does not answer delays no start.
                        let (clock, home, tls) = (env.clone(), home.clone(), tls.clone());
                        let report = async move { report(&clock, home, tls, worker.boot).await };
                        reporting = Some(env.spawn("death report", report));
                    }
                }
                Action::Exit(code) => {
                    if let Some(reporting) = reporting {
                        // A report that failed has no consequence but time.
                        reporting.await.ok();
                    }
                    return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
                }
            }
        }
        let ended = async {
            match &mut worker {
                Some(worker) => worker.child.wait().await,
                None => std::future::pending().await,
            }
        };
        let now = env.now();
        let due = supervision.starts_at().map(|at| at.saturating_duration_since(now));
        event = tokio::select! {
            biased;
            status = ended => Event::Ended(end_of(status?)),
            _ = terminate.recv() => Event::Stop,
            _ = interrupt.recv() => Event::Stop,
            () = &mut tether => Event::Stop,
            Some(event) = hears.recv() => event,
            () = env.sleep(due.unwrap_or(TICK).min(TICK)) => Event::Tick,
        };
    }
}

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Code(code),
        (None, Some(signal)) => End::Signal(signal),
        // Such a status tells of a process that is stopped, and `wait` does not ask for those.
        (None, None) => End::Code(1),
    }
}

async fn untethered(tethered: bool) {
    if !tethered {
        return std::future::pending().await;
    }
    // Whatever ends it, whoever held the other end is gone.
    let mut lines = stdin_lines();
    while lines.recv().await.is_some() {}
}

/// Standard input, line by line, until it ends. A thread of its own reads it, because such a
/// reading cannot be given up.
pub fn stdin_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn start(
    env: &Env,
    config: &Config,
    home: &Home,
    heard: mpsc::Sender<Event>,
) -> Result<Worker, Box<dyn std::error::Error>> {
    let boot = home.raise_boot()?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("worker")
        .arg("--data")
        .arg(home.dir())
        .env(CONFIG_VARIABLE, serde_json::to_string(config)?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take().ok_or("the worker has no standard input")?;
    let stdout = child.stdout.take().ok_or("the worker has no standard output")?;
    env.spawn("worker's word", async move {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let event = match line.as_str() {
                "beat" => Event::Beat,
                "ready" => Event::Ready,
                _ => continue,
            };
            if heard.send(event).await.is_err() {
                return;
            }
        }
    });
    Ok(Worker { child, stdin, boot })
}

/// A node keeps its name: the others believe no other certificate.
fn check_name(home: &Home, node: NodeId, name: &str) -> Result<(), String> {
    let known = home.topology().map_err(|error| error.to_string())?;
    match known.nodes.get(&node).and_then(|row| row.name.as_deref()) {
        Some(known) if known != name => Err(format!(
            "{} is the data of node {node}, whose name is {known:?}, and the certificate has the name {name:?}: \
             give it the certificate of {known:?} (`atoll cert node {known}` makes one)",
            home.dir().display()
        )),
        _ => Ok(()),
    }
}

/// Tells all peers that this node's worker is dead. Those that do not take it are told again,
/// beside what comes next.
async fn report(env: &Env, home: Home, tls: Option<transport::tls::Tls>, boot: u64) {
    let (Ok(Some(identity)), Ok(topology)) = (home.identity(), home.topology()) else { return };
    let report = DeathReport { node: identity.node, boot };
    let peers = topology.members().filter(|row| row.id != identity.node);
    let addresses: Vec<_> = peers.map(|row| row.peer_address).collect();
    let mut left = tell(env, &tls, identity.cluster, report, &addresses).await;
    let clock = env.clone();
    env.spawn("death report again", async move {
        let until = clock.now() + TELL_FOR;
        while !left.is_empty() && clock.now() < until {
            clock.sleep(TELL_AGAIN).await;
            left = tell(&clock, &tls, identity.cluster, report, &left).await;
        }
    });
}

/// Tells those who listen at `addresses` of a death that is certain; returns those that did not
/// take it.
pub async fn tell(
    env: &Env,
    tls: &Option<transport::tls::Tls>,
    cluster: u64,
    report: DeathReport,
    addresses: &[SocketAddr],
) -> Vec<SocketAddr> {
    let nobody = Identity { node: NodeId(0), cluster, boot: 0 };
    let transport = Transport::new(env.clone(), nobody, tls.clone());
    let Ok(payload) = postcard::to_stdvec(&report).map(Bytes::from) else { return Vec::new() };
    let calls = addresses.iter().map(|address| {
        transport.call_address(*address, MessageKind::DeathReport, REPORT, payload.clone())
    });
    let answers = futures::future::join_all(calls).await;
    let silent = addresses.iter().zip(answers).filter(|(_, answer)| answer.is_err());
    silent.map(|(address, _)| *address).collect()
}

/// The exit code for what cannot work however often it is tried.
pub const MISUSED: u8 = EXIT_MISUSED as u8;
