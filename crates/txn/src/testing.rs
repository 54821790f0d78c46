//! Whole nodes in temporary directories, for tests: the real log, the real groups, and a network
//! in memory.

use crate::ids::Blocks;
use crate::{Client, Error, Node, Parts};
use base::env::{FaultyNet, MemoryNet};
use base::{Env, Limits, NodeId, Scn, TabletId};
use consensus::{Config, Groups, Role};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use storage::{Options, Store};
use tokio::sync::watch;
use transport::{Identity, Transport};

/// What the tasks of a node that has ended may need to end too.
const LETTING_GO: Duration = Duration::from_secs(10);

/// A running node. Dropping it leaves the data where it is; starting on it again goes on.
pub struct TestNode {
    pub env: Env,
    pub store: Store,
    pub node: Arc<Node>,
    pub client: Client,
}

/// Starts a cluster of one node on `dir`.
pub async fn solo(dir: &Path) -> Result<TestNode, Error> {
    solo_within(dir, Limits::default()).await
}

/// The same with other limits.
pub async fn solo_within(dir: &Path, limits: Limits) -> Result<TestNode, Error> {
    let env = Env::seeded(1, Arc::new(MemoryNet::default())).limited(limits);
    let me = NodeId(1);
    let transport = Transport::new(env.clone(), Identity { node: me, cluster: 1, boot: 1 }, None);
    let me = BTreeSet::from([me]);
    start(dir, env, transport, me.clone(), Some(me)).await
}

/// Starts node `me` of a cluster of nodes `1..=n` on `dir`; all of them must be started.
pub async fn member(dir: &Path, net: &FaultyNet, me: u64, n: u64) -> Result<TestNode, Error> {
    let members: BTreeSet<NodeId> = (1..=n).map(NodeId).collect();
    join(dir, net, me, members.clone(), Some(members)).await
}

/// Starts node `n + 1` of that cluster, which has no replica of anything.
pub async fn guest(dir: &Path, net: &FaultyNet, n: u64) -> Result<TestNode, Error> {
    join(dir, net, n + 1, (1..=n + 1).map(NodeId).collect(), None).await
}

async fn join(
    dir: &Path,
    net: &FaultyNet,
    me: u64,
    members: BTreeSet<NodeId>,
    founders: Option<BTreeSet<NodeId>>,
) -> Result<TestNode, Error> {
    let env = Env::seeded(me, Arc::new(net.of(address(me))));
    let identity = Identity { node: NodeId(me), cluster: 1, boot: 1 };
    let transport = Transport::new(env.clone(), identity, None);
    for peer in &members {
        transport.set_address(*peer, address(peer.0));
    }
    let served = transport.serve(address(me)).await;
    served.map_err(|error| Error::Internal { reason: error.to_string() })?;
    start(dir, env, transport, members, founders).await
}

/// Where node `id` of a cluster listens.
pub fn address(id: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7400 + id as u16))
}

async fn start(
    dir: &Path,
    env: Env,
    transport: Transport,
    members: BTreeSet<NodeId>,
    founders: Option<BTreeSet<NodeId>>,
) -> Result<TestNode, Error> {
    let store = open(&env, dir).await?;
    let groups = Groups::new(env.clone(), store.clone(), transport.clone(), Config::default());
    let (_, watched) = watch::channel(members);
    let boot = env.wall_us() as u64;
    let parts = Parts {
        env: env.clone(),
        store: store.clone(),
        groups,
        transport,
        boot,
        blocks: blocks(dir),
        members: watched,
    };
    let node = Node::start(parts, founders.as_ref()).await?;
    let client = Client::new(node.clone());
    Ok(TestNode { env, store, node, client })
}

/// Blocks of ids, noted in the directory.
fn blocks(dir: &Path) -> Blocks {
    let path = dir.join("blocks");
    Arc::new(move || {
        let noted = std::fs::read_to_string(&path).ok().and_then(|text| text.parse().ok());
        let block = noted.unwrap_or(0_u64) + 1;
        std::fs::write(&path, block.to_string()).map_err(|error| error.to_string())?;
        Ok(block)
    })
}

/// Opens the store, once the last tasks of the node that ran on it before have let go of it.
async fn open(env: &Env, dir: &Path) -> Result<Store, Error> {
    let deadline = env.now() + LETTING_GO;
    loop {
        match Store::open(env, dir, Options::default()) {
            Err(_) if env.now() < deadline => env.sleep(Duration::from_millis(5)).await,
            opened => return Ok(opened?),
        }
    }
}

impl TestNode {
    pub fn id(&self) -> NodeId {
        self.node.me
    }

    /// The term in which this node leads `tablet`, if it does.
    pub fn term(&self, tablet: TabletId) -> Option<u64> {
        let group = self.node.groups.get(tablet)?;
        match *group.role().borrow() {
            Role::Leader { term } => Some(term),
            Role::Follower { .. } => None,
        }
    }

    /// Asks node `to` to lead `tablet`, which this node leads.
    pub async fn hand_over(&self, tablet: TabletId, to: NodeId) -> Result<(), Error> {
        let internal = |reason: String| Error::Internal { reason };
        let group = self.node.groups.get(tablet);
        let group = group.ok_or_else(|| internal(format!("no replica of {tablet}")))?;
        group.transfer(to).await.map_err(|error| internal(error.to_string()))
    }

    /// Changes the members of `tablet`, which this node leads. Broken off where it is dropped.
    pub async fn change_members(&self, tablet: TabletId, voters: &[NodeId]) -> Result<(), Error> {
        let internal = |reason: String| Error::Internal { reason };
        let group = self.node.groups.get(tablet);
        let group = group.ok_or_else(|| internal(format!("no replica of {tablet}")))?;
        let changed = group.change_members(voters.iter().copied().collect()).await;
        changed.map_err(|error| internal(error.to_string()))
    }

    /// The members of `tablet` as this node's replica knows them; none where there is none.
    pub fn members(&self, tablet: TabletId) -> Vec<NodeId> {
        let status = self.node.groups.get(tablet).map(|group| group.status()).unwrap_or_default();
        status.voters.into_iter().chain(status.learners).collect()
    }

    /// Tells this node where the guest with that id listens.
    pub fn meet(&self, guest: NodeId) {
        self.node.transport.set_address(guest, address(guest.0));
    }

    /// Makes this node believe that `leader` leads `tablet`, which has no replica here.
    pub fn mislead(&self, tablet: TabletId, leader: NodeId) {
        self.node.routes.write().leads(tablet, leader);
    }

    /// The SCN up to which this node's replica of `tablet` has all commits, as far as it knows.
    pub fn closed(&self, tablet: TabletId) -> Scn {
        self.node.tablet(tablet).map_or(Scn::ZERO, |tablet| tablet.closed_scn())
    }

    /// Ends the groups; another start on the same directory may follow at once.
    pub async fn stop(self) {
        let groups = self.node.groups.clone();
        drop((self.client, self.node));
        groups.shutdown().await;
    }
}
