//! A whole cluster of one node in a temporary directory, for tests: the real log, the real
//! groups, no network.

use crate::{Client, Error, Node, Parts};
use base::env::MemoryNet;
use base::{Env, NodeId};
use consensus::{Config, Groups};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use storage::{Options, Store};
use tokio::sync::watch;
use transport::{Identity, Transport};

/// A running node. Dropping it leaves the data where it is; starting on it again goes on.
pub struct Solo {
    pub env: Env,
    pub store: Store,
    pub node: Arc<Node>,
    pub client: Client,
}

/// Starts a cluster of one node on `dir`.
pub async fn solo(dir: &Path) -> Result<Solo, Error> {
    let env = Env::seeded(1, Arc::new(MemoryNet::default()));
    let store = Store::open(&env, dir, Options::default())?;
    let me = NodeId(1);
    let transport = Transport::new(env.clone(), Identity { node: me, cluster: 1, boot: 1 }, None);
    let groups = Groups::new(env.clone(), store.clone(), transport.clone(), Config::default());
    let members = BTreeSet::from([me]);
    let (_, watched) = watch::channel(members.clone());
    let boot = env.wall_us() as u64;
    let parts =
        Parts { env: env.clone(), store: store.clone(), groups, transport, boot, members: watched };
    let node = Node::start(parts, Some(&members)).await?;
    let client = Client::new(node.clone());
    Ok(Solo { env, store, node, client })
}

impl Solo {
    /// Ends the groups, so that another start on the same directory finds it unused.
    pub async fn stop(self) {
        let groups = self.node.groups.clone();
        drop((self.client, self.node));
        groups.shutdown().await;
    }
}
