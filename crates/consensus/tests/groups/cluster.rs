//! The cluster under test: nodes, their faulty network, and a key-value machine.

use base::env::{FaultyNet, Instant, MemoryNet};
use base::{Env, KeyRange, NodeId, Scn, TabletId};
use bytes::Bytes;
use consensus::{Config, Death, Entry, Error, Group, Groups, Machine, Position, Role};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use storage::{Batch, Options, Store, TabletRanges};
use tokio::runtime::Runtime;
use transport::{Identity, Transport};

pub const TABLET: TabletId = TabletId(7);
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// One cluster at a time: times are measured.
static ALONE: Mutex<()> = Mutex::new(());

/// For tests in which time-outs pass. A machine that stands still for a second elects nobody.
pub fn config() -> Config {
    Config {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(1500),
        election_max: Duration::from_millis(2100),
        lease: Duration::from_millis(1300),
        ..Config::default()
    }
}

/// For tests in which none may pass: a test that waits for a time-out waits in vain ([`wait_for`]). So "at once" is
/// judged without measuring a time.
pub fn patient() -> Config {
    Config {
        election_min: PATIENCE * 4,
        election_max: PATIENCE * 5,
        lease: PATIENCE * 3,
        ..config()
    }
}

#[derive(Serialize, Deserialize)]
pub enum Op {
    Put(Bytes, Bytes),
    Meta(Bytes, Bytes),
    Expiring(Bytes, Bytes),
    Seed(TabletId),
}

pub fn op(op: &Op) -> Bytes {
    postcard::to_stdvec(op).unwrap().into()
}

pub fn put(key: &str, value: &str) -> Bytes {
    op(&Op::Put(row(TABLET, key), Bytes::copy_from_slice(value.as_bytes())))
}

pub fn row(tablet: TabletId, key: &str) -> Bytes {
    format!("{tablet}/{key}").into()
}

/// Rows get the index of their entry as SCN.
pub struct Kv {
    tablet: TabletId,
    store: Store,
    applied: Mutex<Position>,
    pub roles: Mutex<Vec<(Instant, Role)>>,
    env: Env,
    /// While it is held, a snapshot that arrived is not installed.
    pub hold_install: Arc<AtomicBool>,
    pub wrong: Arc<Mutex<Vec<String>>>,
}

impl Kv {
    pub fn applied_index(&self) -> u64 {
        self.applied.lock().index
    }
}

impl Machine for Kv {
    fn apply(&self, entry: &Entry<'_>, batch: &mut Batch) -> Result<Bytes, storage::Error> {
        let index = entry.position.index;
        match postcard::from_bytes(entry.command).unwrap() {
            Op::Put(key, value) => batch.put(key, Scn(index), value),
            Op::Meta(key, value) => batch.meta_put(key, value),
            Op::Expiring(key, value) => batch.expiring_put(key, value),
            Op::Seed(child) => {
                batch.meta_put(row(child, "born"), Bytes::from_static(b"yes"));
                consensus::seed(batch, child, entry.members);
            }
        }
        Ok(Bytes::copy_from_slice(&index.to_be_bytes()))
    }

    fn applied(&self, position: Position) {
        let mut applied = self.applied.lock();
        if position.index <= applied.index && applied.index > 0 {
            self.wrong.lock().push(format!("{position:?} applied after {applied:?}"));
        }
        *applied = position;
    }

    fn snapshot_scope(&self) -> TabletRanges {
        let range = KeyRange::prefix(row(self.tablet, ""));
        TabletRanges { rows: range.clone(), meta: vec![range.clone()], expiring: vec![range] }
    }

    fn replacing(&self) {
        while self.hold_install.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn restored(&self) {
        let index = self.store.durable_index(self.tablet).unwrap_or(0);
        *self.applied.lock() = Position { term: 0, index };
    }

    fn role(&self, role: Role) {
        if let Role::Leader { term } = role
            && self.applied.lock().term != term
        {
            self.wrong
                .lock()
                .push(format!("leads in term {term} before it applied an entry of it"));
        }
        self.roles.lock().push((self.env.now(), role));
    }
}

pub struct Node {
    pub id: NodeId,
    pub env: Env,
    pub store: Store,
    pub groups: Groups,
    pub kv: Arc<Kv>,
    runtime: Runtime,
}

impl Node {
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.handle().spawn(future)
    }

    pub fn group(&self) -> Group {
        self.groups.get(TABLET).expect("the group runs")
    }

    pub fn leads(&self) -> Option<u64> {
        match *self.groups.get(TABLET)?.role().borrow() {
            Role::Leader { term } => Some(term),
            Role::Follower { .. } => None,
        }
    }

    pub fn propose(&self, command: Bytes) -> Result<Bytes, Error> {
        let term = self.leads().ok_or(Error::NotLeader { leader: None })?;
        let group = self.group();
        self.run(async move { group.propose(term, command).await })
    }

    pub fn get(&self, key: &str) -> Option<String> {
        let row = self.store.get(&row(TABLET, key), storage::At::Newest).unwrap();
        row.map(|(_, value)| String::from_utf8(value.to_vec()).unwrap())
    }

    pub fn start(&self, tablet: TabletId, wrong: &Arc<Mutex<Vec<String>>>) -> (Group, Arc<Kv>) {
        let kv = machine(&self.env, &self.store, tablet, wrong);
        let group = self.run(self.groups.start(tablet, kv.clone())).unwrap();
        (group, kv)
    }
}

fn machine(env: &Env, store: &Store, tablet: TabletId, wrong: &Arc<Mutex<Vec<String>>>) -> Arc<Kv> {
    Arc::new(Kv {
        tablet,
        store: store.clone(),
        applied: Mutex::default(),
        roles: Mutex::default(),
        env: env.clone(),
        hold_install: Arc::default(),
        wrong: wrong.clone(),
    })
}

pub struct Cluster {
    pub nodes: BTreeMap<u64, Node>,
    pub net: FaultyNet,
    pub config: Config,
    pub wrong: Arc<Mutex<Vec<String>>>,
    dir: tempfile::TempDir,
    boot: AtomicU64,
    /// The newest start of each node, dead or alive.
    boots: Mutex<BTreeMap<u64, u64>>,
    _alone: MutexGuard<'static, ()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        ids.into_iter().for_each(|id| self.kill(id));
        let wrong = std::mem::take(&mut *self.wrong.lock());
        if !std::thread::panicking() {
            assert_eq!(wrong, Vec::<String>::new());
        }
    }
}

impl Cluster {
    /// Nodes `1..=n`, all voters of the group.
    pub fn new(n: u64, config: Config) -> Cluster {
        let mut cluster = Cluster {
            nodes: BTreeMap::new(),
            net: FaultyNet::default(),
            config,
            wrong: Arc::default(),
            dir: tempfile::tempdir().unwrap(),
            boot: AtomicU64::new(1),
            boots: Mutex::default(),
            _alone: ALONE.lock(),
        };
        let members: Vec<NodeId> = (1..=n).map(NodeId).collect();
        for id in 1..=n {
            let node = cluster.open(id);
            let mut batch = storage::Batch::default();
            consensus::seed(&mut batch, TABLET, &members);
            node.store.apply(batch).unwrap();
            node.store.flush().unwrap();
            node.run(node.groups.start(TABLET, node.kv.clone())).unwrap();
            cluster.nodes.insert(id, node);
        }
        let first = cluster.node(1).group();
        cluster.node(1).run(async move { first.campaign().await }).unwrap();
        cluster.leader();
        cluster
    }

    pub fn dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    /// Starts a node on its directory, and its replica of the group.
    pub fn start(&mut self, id: u64) {
        let node = self.open(id);
        let started = node.run(node.groups.start(TABLET, node.kv.clone()));
        started.unwrap();
        self.nodes.insert(id, node);
    }

    /// Starts a node without any group.
    pub fn open(&self, id: u64) -> Node {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        let entered = runtime.enter();
        let boot = self.boot.fetch_add(1, Ordering::Relaxed);
        self.boots.lock().insert(id, boot);
        let env = Env::seeded(boot, Arc::new(self.net.of(address(id))));
        let options = Options { log_bytes: 1 << 30, ..Options::default() };
        // A killed node's last tasks may still be letting go of the files.
        let store =
            wait_for("the store's lock", || Store::open(&env, &self.dir(id), options.clone()).ok());
        let transport =
            Transport::new(env.clone(), Identity { node: NodeId(id), cluster: 1, boot }, None);
        for peer in 1..=5 {
            transport.set_address(NodeId(peer), address(peer));
        }
        let groups =
            Groups::new(env.clone(), store.clone(), transport.clone(), self.config.clone());
        wait_for("the address", || runtime.block_on(transport.serve(address(id))).ok());
        let kv = machine(&env, &store, TABLET, &self.wrong);
        drop(entered);
        Node { id: NodeId(id), env, store, groups, kv, runtime }
    }

    /// Ends a node where it stands.
    pub fn kill(&mut self, id: u64) {
        if let Some(Node { runtime, store, groups, kv, .. }) = self.nodes.remove(&id) {
            drop((groups, kv, store));
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }

    pub fn is_leader(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.leads().is_some())
    }

    /// Waits for a leader that all live nodes know.
    pub fn leader(&self) -> u64 {
        wait_for("a leader", || {
            let leader = self.nodes.values().find(|node| node.leads().is_some())?;
            let known = |node: &Node| node.group().status().leader == Some(leader.id);
            self.nodes.values().all(known).then_some(leader.id.0)
        })
    }

    pub fn move_leader(&self, to: u64) {
        let leader = self.leader();
        if leader != to {
            let node = self.node(leader);
            node.run(node.group().transfer(NodeId(to))).unwrap();
            assert_eq!(self.leader(), to);
        }
    }

    /// The newest start of node `id`, as a death names it.
    pub fn death(&self, id: u64) -> Death {
        Death { node: NodeId(id), boot: self.boots.lock()[&id] }
    }

    /// Tells all that live that node `id` does not.
    pub fn report_death(&self, id: u64) {
        self.nodes.keys().for_each(|to| self.tell(*to, self.death(id)));
    }

    /// Tells node `to` of a death.
    pub fn tell(&self, to: u64, death: Death) {
        let node = self.node(to);
        node.run(async { node.groups.report_death(death) });
    }

    pub fn cut(&self, a: u64, b: u64) {
        self.net.cut(address(a), address(b));
    }

    /// Cuts the two once `n_bytes` more have gone from `a` to `b` and back.
    pub fn cut_after(&self, a: u64, b: u64, n_bytes: u64) {
        self.net.cut_after(address(a), address(b), n_bytes);
    }

    pub fn is_cut(&self, a: u64, b: u64) -> bool {
        self.net.is_cut(address(a), address(b))
    }

    pub fn heal(&self) {
        self.net.heal();
    }

    pub fn wait_applied(&self, id: u64, index: u64) {
        let what = format!("node {id} to apply entry {index}");
        wait_for(&what, || (self.node(id).kv.applied_index() >= index).then_some(()));
    }
}

pub fn index(answer: &Bytes) -> u64 {
    u64::from_be_bytes(answer[..].try_into().unwrap())
}

#[track_caller]
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let env = Env::seeded(0, Arc::new(MemoryNet::default()));
    let start = env.now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(env.now() < start + PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn address(id: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7400 + id as u16))
}
