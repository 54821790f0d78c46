//! The simulated cluster: hosts in zones, a supervisor and a worker on each.
//!
//! The worker is the product's own, started by `node::worker::start` in a process of the machine.
//! The supervisor is the product's decision table (`cluster::supervision`) with the machine's
//! means to act: where the real one kills and waits for a child, this one does it to a process.

use crate::machine::disk::{self, Disk};
use crate::machine::threads::{self, Host, Mishap, Process};
use crate::net::SimNet;
use crate::task;
use base::{Env, KeyRange, Limits, NodeId, TabletId, Zone};
use cluster::supervision::{Action, EXIT_MISUSED, End, Event, Supervision};
use cluster::{DeathReport, NodeRow, Topology};
use node::config::{AuthMethod, Config};
use node::identity::Home;
use parking_lot::Mutex;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use storage::{At, Options, Store};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub const PEER_PORT: u16 = 7401;
pub const SQL_PORT: u16 = 5433;
const CLUSTER: u64 = 7;
const TICK: Duration = Duration::from_millis(250);
const BEAT: Duration = Duration::from_millis(500);
const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;
/// How often a supervisor on a host that stands still looks whether it goes on.
const THAW: Duration = Duration::from_millis(20);
/// Deeply nested statements are planned by recursion.
const STACK_BYTES: usize = 16 << 20;

/// How the cluster is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub n_zones: usize,
    /// Hosts a zone; the first of each founds the cluster, the others join.
    pub n_per_zone: usize,
    /// Hosts beyond those, without a node at first.
    pub n_spare: usize,
}

impl Shape {
    pub fn n_hosts(&self) -> usize {
        self.n_zones * self.n_per_zone + self.n_spare
    }
}

/// What the world asks of a worker, beside what SQL can do.
pub enum Ask {
    Stop,
    /// Hand the leadership of a group that it leads to another member, drawn by the number.
    Transfer(u64),
    /// Hand the leadership of this tablet to that member.
    HandOver {
        tablet: TabletId,
        to: NodeId,
    },
    /// How many rows it holds whose value contains this.
    Holds(Vec<u8>, oneshot::Sender<usize>),
    /// How its groups stand.
    Groups(oneshot::Sender<Vec<Standing>>),
}

/// One group, as one of its replicas sees it.
#[derive(Clone, Debug)]
pub struct Standing {
    pub tablet: TabletId,
    pub is_led_here: bool,
    pub applied: u64,
    pub voters: Vec<NodeId>,
}

pub struct Node {
    pub number: usize,
    pub zone: usize,
    pub ip: IpAddr,
    pub host: Host,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    worker: Option<Worker>,
    supervisor: Option<JoinHandle<()>>,
    /// The supervisor has given up with this code.
    exited: Option<i32>,
    is_dark: bool,
    is_paused: bool,
    is_frozen: bool,
    was_started: bool,
}

struct Worker {
    process: Process,
    boot: Arc<AtomicU64>,
    asks: mpsc::Sender<Ask>,
    heard: mpsc::Sender<Event>,
}

/// How a node is, for those who break it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Up,
    Paused,
    /// Its host stands still, clocks included.
    Frozen,
    /// Its supervisor ended, with this code.
    Exited(i32),
    /// Supervisor and worker are dead, or were never there.
    Down,
    /// No power.
    Dark,
}

pub struct Cluster {
    pub shape: Shape,
    pub net: SimNet,
    pub nodes: Vec<Node>,
    seed: u64,
    n_starts: AtomicU64,
    notes: Box<dyn Fn(String) + Send + Sync>,
}

/// Small sizes, so that an hour of light load flushes, merges, turns segments and purges logs as
/// weeks of a heavy one would.
pub fn options(config: &Config) -> Options {
    Options {
        memtable_bytes: 128 << 10,
        cache_bytes: 1 << 20,
        open_files: 64,
        log_bytes: 256 << 10,
        log_file_bytes: 64 << 10,
        log_cache_bytes: 64 << 10,
        ..node::worker::options(config)
    }
}

impl Node {
    pub fn peer_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, PEER_PORT)
    }

    pub fn sql_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, SQL_PORT)
    }

    pub fn health(&self) -> Health {
        let slot = self.slot.lock();
        match (&slot.supervisor, slot.exited) {
            _ if slot.is_dark => Health::Dark,
            _ if slot.is_frozen => Health::Frozen,
            (_, Some(code)) => Health::Exited(code),
            (None, None) => Health::Down,
            _ if slot.is_paused => Health::Paused,
            _ => Health::Up,
        }
    }

    pub fn zone_name(&self) -> String {
        format!("zone-{}", self.zone + 1)
    }
}

impl Cluster {
    /// Hosts with disks in the working directory, and the homes of the founders on them.
    pub fn create(
        shape: Shape,
        seed: u64,
        net: SimNet,
        notes: impl Fn(String) + Send + Sync + 'static,
    ) -> anyhow::Result<Arc<Cluster>> {
        net.know_frames_at(PEER_PORT);
        let mut nodes = Vec::new();
        for number in 0..shape.n_hosts() {
            let zone = number % shape.n_zones;
            let ip = IpAddr::V4(Ipv4Addr::new(127, 0, zone as u8 + 1, number as u8 + 1));
            let host = threads::add_host(Disk::create(format!("host-{}", number + 1))?);
            nodes.push(Node { number, zone, ip, host, slot: Mutex::default() });
        }
        let founders = nodes.iter().take(shape.n_zones).map(|node| NodeRow {
            id: NodeId(node.number as u64 + 1),
            zone: Zone(node.zone_name()),
            peer_address: node.peer_address(),
            sql_address: node.sql_address(),
            boot: 0,
            since_us: 0,
            ticket: 0,
            replaced_by: None,
            name: None,
        });
        let founders = Topology::of(founders);
        for (node, own) in nodes.iter().zip(founders.members()) {
            let home = Home::open(&disk::files(node.host))?;
            home.found(CLUSTER, own, &founders)?;
            disk::settle(node.host)?;
        }
        Ok(Arc::new(Cluster {
            shape,
            net,
            nodes,
            seed,
            n_starts: AtomicU64::new(0),
            notes: Box::new(notes),
        }))
    }

    fn note(&self, text: String) {
        (self.notes)(text);
    }

    fn config(&self, node: &Node) -> Config {
        let others = self.nodes.iter().filter(|other| other.number != node.number);
        Config {
            zone: node.zone_name(),
            data: disk::files(node.host),
            join: others.take(3).map(|node| node.peer_address().into()).collect(),
            listen: node.peer_address(),
            sql_listen: node.sql_address(),
            auth: AuthMethod::Trust,
            retention_s: 60,
            cache_mib: 1,
            memory_mib: 64,
            log: String::new(),
            tls: None,
            sql_tls: None,
            access: Vec::new(),
        }
    }

    /// A fresh env for a process on the node's host.
    pub fn env(&self, node: &Node) -> Env {
        let start = self.n_starts.fetch_add(1, Ordering::Relaxed);
        let seed = self.seed ^ (start + 1).wrapping_mul(0xd1b5_4a32_d192_ed03);
        Env::seeded(seed, Arc::new(self.net.of(node.ip)))
    }

    /// Starts the node's supervisor, which starts its worker.
    pub fn start(self: &Arc<Self>, number: usize) {
        let node = &self.nodes[number];
        let cluster = self.clone();
        let mut slot = node.slot.lock();
        if slot.is_dark || (slot.supervisor.is_some() && slot.exited.is_none()) {
            return;
        }
        slot.exited = None;
        slot.was_started = true;
        slot.supervisor = Some(task::spawn(async move { cluster.supervise(number).await }));
    }

    /// Whether the host ever had a node.
    pub fn was_started(&self, number: usize) -> bool {
        self.nodes[number].slot.lock().was_started
    }

    async fn supervise(self: Arc<Self>, number: usize) {
        let node = &self.nodes[number];
        let env = self.env(node);
        let (heard, mut hears) = mpsc::channel::<Event>(256);
        let mut supervision = Supervision::new(env.now());
        let mut reporting: Option<JoinHandle<()>> = None;
        let mut event = Event::Tick;
        loop {
            for action in supervision.step(env.now(), event) {
                match action {
                    Action::Start => self.start_worker(node, heard.clone()),
                    Action::AskToStop => {
                        if let Some(worker) = &node.slot.lock().worker {
                            // One that cannot be asked is killed after the grace period.
                            worker.asks.try_send(Ask::Stop).ok();
                        }
                    }
                    Action::Kill => {
                        self.note(format!("node {}: the worker is stuck, killing it", number + 1));
                        self.kill_worker(number);
                    }
                    Action::Report => {
                        let boot = self.bury(node);
                        let (cluster, env) = (self.clone(), env.clone());
                        reporting = Some(task::spawn(async move {
                            cluster.report(&cluster.nodes[number], &env, boot).await;
                        }));
                    }
                    Action::Exit(code) => {
                        if let Some(reporting) = reporting {
                            // A report that failed has no consequence but time.
                            reporting.await.ok();
                        }
                        self.note(format!("node {} ended with code {code}", number + 1));
                        node.slot.lock().exited = Some(code);
                        return;
                    }
                }
            }
            event = tokio::select! {
                biased;
                Some(event) = hears.recv() => event,
                () = env.sleep(TICK) => Event::Tick,
            };
            // It is on the same host. What it has not heard meanwhile is no silence of its worker's: for
            // both no time has passed.
            if self.is_frozen(number) {
                while self.is_frozen(number) {
                    env.sleep(THAW).await;
                }
                supervision.step(env.now(), Event::Beat);
            }
        }
    }

    /// After the end of a worker, whatever ended it.
    fn bury(&self, node: &Node) -> u64 {
        let worker = node.slot.lock().worker.take();
        let Some(worker) = worker else { return 0 };
        threads::kill(worker.process);
        self.net.process_died(node.ip, &[PEER_PORT, SQL_PORT]);
        self.close_files(node);
        worker.boot.load(Ordering::Relaxed)
    }

    fn close_files(&self, node: &Node) {
        if let Err(error) = disk::after_kill(node.host) {
            self.note(format!("cannot close the files of node {}: {error}", node.number + 1));
        }
    }

    async fn report(&self, node: &Node, env: &Env, boot: u64) {
        let Ok(home) = Home::open(&disk::files(node.host)) else { return };
        let (Ok(Some(identity)), Ok(topology)) = (home.identity(), home.topology()) else { return };
        let report = DeathReport { node: identity.node, boot };
        let peers = topology.members().filter(|row| row.id != identity.node);
        let addresses: Vec<_> = peers.map(|row| row.peer_address).collect();
        node::supervisor::tell(env, &None, identity.cluster, report, &addresses).await;
    }

    fn start_worker(&self, node: &Node, heard: mpsc::Sender<Event>) {
        let (asks, asked) = mpsc::channel(16);
        let boot = Arc::new(AtomicU64::new(0));
        let (config, env) = (self.config(node), self.env(node));
        let name = format!("node {}", node.number + 1);
        let (told, says) = (boot.clone(), heard.clone());
        let process = threads::start(node.host, name, STACK_BYTES, move || {
            let code = work(env, config, &told, asked, &says);
            // The supervisor finds a worker that cannot tell its end by its silence.
            says.try_send(Event::Ended(End::Code(code))).ok();
            threads::exit();
        });
        let mut slot = node.slot.lock();
        slot.is_paused = false;
        slot.worker = Some(Worker { process, boot, asks, heard });
    }

    /// `kill -9` for the worker alone.
    pub fn kill_worker(&self, number: usize) {
        let node = &self.nodes[number];
        let slot = node.slot.lock();
        if let Some(worker) = &slot.worker {
            threads::kill(worker.process);
            // A supervisor that is full of news finds out by the worker's silence.
            worker.heard.try_send(Event::Ended(End::Signal(SIGKILL))).ok();
        }
        drop(slot);
        self.net.process_died(node.ip, &[PEER_PORT, SQL_PORT]);
        self.close_files(node);
    }

    /// `kill -9` for supervisor and worker: nobody reports it.
    pub fn kill_node(&self, number: usize) {
        let node = &self.nodes[number];
        if let Some(supervisor) = node.slot.lock().supervisor.take() {
            supervisor.abort();
        }
        node.slot.lock().exited = None;
        self.bury(node);
    }

    /// The host loses its power: processes, connections, and what was not synced.
    pub fn cut_power(&self, number: usize) {
        let node = &self.nodes[number];
        self.net.set_power(node.ip, false);
        self.kill_node(number);
        // What comes back is a fresh start.
        self.freeze(number, false);
        node.slot.lock().is_dark = true;
        if let Err(error) = disk::cut_power(node.host) {
            self.note(format!("the disk of node {} cannot lose its power: {error}", number + 1));
        }
    }

    pub fn restore_power(self: &Arc<Self>, number: usize) {
        let node = &self.nodes[number];
        self.net.set_power(node.ip, true);
        node.slot.lock().is_dark = false;
        self.start(number);
    }

    pub fn pause(&self, number: usize, is_paused: bool) {
        let mut slot = self.nodes[number].slot.lock();
        if let Some(worker) = &slot.worker {
            threads::pause(worker.process, is_paused);
            slot.is_paused = is_paused;
        }
    }

    /// The host stands still, its supervisor and its clocks too, or goes on from where it stood. False:
    /// it does already.
    pub fn freeze(&self, number: usize, is_frozen: bool) -> bool {
        let node = &self.nodes[number];
        let mut slot = node.slot.lock();
        if slot.is_frozen == is_frozen {
            return false;
        }
        slot.is_frozen = is_frozen;
        drop(slot);
        threads::freeze(node.host, is_frozen);
        true
    }

    fn is_frozen(&self, number: usize) -> bool {
        self.nodes[number].slot.lock().is_frozen
    }

    /// Lets a bug happen in the worker, or takes the order back. False: there is none.
    pub fn set_mishap(&self, number: usize, mishap: Option<Mishap>) -> bool {
        let slot = self.nodes[number].slot.lock();
        let Some(worker) = &slot.worker else { return false };
        threads::set_mishap(worker.process, mishap);
        true
    }

    /// Which life of the worker it is: another number after each start.
    pub fn life(&self, number: usize) -> Option<Process> {
        self.nodes[number].slot.lock().worker.as_ref().map(|worker| worker.process)
    }

    /// Whose worker the calling thread belongs to.
    pub fn here(&self) -> Option<usize> {
        let process = threads::my_process();
        (0..self.nodes.len()).find(|number| self.life(*number) == Some(process))
    }

    /// Ends the calling worker as SIGABRT would, which is how a panic ends that no statement pays for.
    /// Returns only to who is no worker.
    pub fn end_by_bug(&self) {
        let Some(number) = self.here() else { return };
        if let Some(worker) = &self.nodes[number].slot.lock().worker {
            // A supervisor that is full of news finds out by the worker's silence.
            worker.heard.try_send(Event::Ended(End::Signal(SIGABRT))).ok();
        }
        threads::exit();
    }

    /// The data of a node that does not run is gone; it will join anew.
    pub fn wipe(&self, number: usize) -> std::io::Result<()> {
        self.kill_node(number);
        disk::wipe(self.nodes[number].host)
    }

    /// How the groups of a node stand; none if it does not say at once.
    pub async fn standings(&self, number: usize) -> Option<Vec<Standing>> {
        let (answer, answered) = oneshot::channel();
        if !self.ask(number, Ask::Groups(answer)) {
            return None;
        }
        tokio::time::timeout(Duration::from_millis(100), answered).await.ok()?.ok()
    }

    /// How many rows with `marker` in their value a node has on its disk; none if it does not say soon.
    pub async fn n_holding(&self, number: usize, marker: &[u8]) -> Option<usize> {
        let (answer, answered) = oneshot::channel();
        if !self.ask(number, Ask::Holds(marker.to_vec(), answer)) {
            return None;
        }
        tokio::time::timeout(Duration::from_secs(1), answered).await.ok()?.ok()
    }

    /// Who the node of this host is in the cluster, once it has joined.
    pub fn id(&self, number: usize) -> Option<NodeId> {
        let home = Home::open(&disk::files(self.nodes[number].host)).ok()?;
        Some(home.identity().ok()??.node)
    }

    pub fn ask(&self, number: usize, ask: Ask) -> bool {
        match &self.nodes[number].slot.lock().worker {
            Some(worker) => worker.asks.try_send(ask).is_ok(),
            None => false,
        }
    }

    /// Stops a node as an operator would: supervisor first told, worker asked.
    pub async fn stop(self: &Arc<Self>, number: usize) {
        let node = &self.nodes[number];
        let heard = node.slot.lock().worker.as_ref().map(|worker| worker.heard.clone());
        let Some(heard) = heard else { return self.kill_node(number) };
        // A supervisor that is gone has stopped.
        heard.send(Event::Stop).await.ok();
        let patience = Duration::from_secs(20);
        let gone = async {
            while node.slot.lock().worker.is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(patience, gone).await.is_err() {
            self.note(format!("node {} did not stop when asked", number + 1));
        }
        self.kill_node(number);
    }
}

/// A worker's life, from its first thread; the exit code.
fn work(
    env: Env,
    config: Config,
    boot: &AtomicU64,
    mut asked: mpsc::Receiver<Ask>,
    says: &mpsc::Sender<Event>,
) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let Ok(runtime) = runtime else { return EXIT_MISUSED };
    runtime.block_on(async {
        let started = async {
            let home = Home::open(&config.data)?;
            boot.store(home.raise_boot()?, Ordering::Relaxed);
            let (clock, says) = (env.clone(), says.clone());
            env.spawn("beat", async move {
                loop {
                    // The next one will do as well.
                    says.try_send(Event::Beat).ok();
                    clock.sleep(BEAT).await;
                }
            });
            let options = options(&config);
            // What only many rows would reach elsewhere is reached by a few.
            let env = env.clone().limited(Limits::tiny());
            node::worker::start(&env, config, &home, options).await
        };
        let running = match started.await {
            Ok(running) => running,
            Err(error) => {
                tracing::error!("cannot start: {error}");
                return node::worker::exit_code_of_start(&env, &error);
            }
        };
        // A supervisor that is full of news takes the worker for one that never served.
        says.try_send(Event::Ready).ok();
        loop {
            tokio::select! {
                biased;
                halt = env.halted() => {
                    tracing::error!("this node stops: {}", halt.reason);
                    return node::worker::exit_code(halt.cause);
                }
                ask = asked.recv() => match ask {
                    Some(Ask::Transfer(draw)) => transfer(&running, draw).await,
                    Some(Ask::HandOver { tablet, to }) => {
                        if let Some(group) = running.groups().get(tablet)
                            && let Err(error) = group.transfer(to).await
                        {
                            tracing::debug!(%tablet, %error, "no hand-over");
                        }
                    }
                    Some(Ask::Holds(marker, answer)) => {
                        // As below.
                        answer.send(n_holding(running.store(), &marker)).ok();
                    }
                    Some(Ask::Groups(answer)) => {
                        // Who asked may have lost patience.
                        answer.send(standings(&running)).ok();
                    }
                    Some(Ask::Stop) | None => {
                        running.stop().await;
                        return 0;
                    }
                }
            }
        }
    })
}

/// A row that cannot be read counts: it is there.
fn n_holding(store: &Store, marker: &[u8]) -> usize {
    let holds = |value: &[u8]| value.windows(marker.len()).any(|part| part == marker);
    let rows = store.scan(&KeyRange::all(), At::Newest, false);
    rows.filter(|row| row.as_ref().map_or(true, |(_, _, value)| holds(value))).count()
}

fn standings(running: &node::worker::Running) -> Vec<Standing> {
    let standing = |group: consensus::Group| {
        let consensus::Status { applied, voters, .. } = group.status();
        Standing { tablet: group.tablet(), is_led_here: group.is_led_here(), applied, voters }
    };
    running.groups().all().into_iter().map(standing).collect()
}

async fn transfer(running: &node::worker::Running, draw: u64) {
    let led: Vec<_> =
        running.groups().all().into_iter().filter(consensus::Group::is_led_here).collect();
    let Some(group) = led.get(draw as usize % led.len().max(1)) else { return };
    let voters = group.status().voters;
    let Some(to) = voters.get((draw >> 8) as usize % voters.len().max(1)) else { return };
    if let Err(error) = group.transfer(*to).await {
        tracing::debug!(tablet = %group.tablet(), %error, "no hand-over");
    }
}
