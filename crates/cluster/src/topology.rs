//! The nodes of the cluster.

use base::{NodeId, Zone};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// One node, a row that it writes itself when it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    pub id: NodeId,
    pub zone: Zone,
    /// Where it listens for its peers.
    pub peer_address: SocketAddr,
    /// Where it listens for SQL.
    pub sql_address: SocketAddr,
    /// How often it has started on its data.
    pub boot: u64,
    /// When it started, by its wall clock, in microseconds since 1970. For people.
    pub since_us: i64,
    /// Another node has taken its place: its data was lost, and it never comes back.
    pub replaced_by: Option<NodeId>,
}

/// All nodes that ever belonged to the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    pub nodes: BTreeMap<NodeId, NodeRow>,
}

impl Topology {
    pub fn of(rows: impl IntoIterator<Item = NodeRow>) -> Topology {
        Topology { nodes: rows.into_iter().map(|row| (row.id, row)).collect() }
    }

    /// The nodes that still count.
    pub fn members(&self) -> impl Iterator<Item = &NodeRow> {
        self.nodes.values().filter(|row| row.replaced_by.is_none())
    }

    pub fn ids(&self) -> BTreeSet<NodeId> {
        self.members().map(|row| row.id).collect()
    }

    /// Which member a newcomer at this address takes the place of: nobody else can listen there.
    pub fn replaced_at(&self, address: SocketAddr) -> Option<NodeId> {
        self.members().find(|row| row.peer_address == address).map(|row| row.id)
    }
}
