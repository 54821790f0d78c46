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
    /// The number of its newest start on its data.
    pub boot: u64,
    /// When it started, by its wall clock, in microseconds since 1970. For people.
    pub since_us: i64,
    /// The ticket with which it asked to be let in, so that a node that asks twice is let in once. 0: a founder.
    #[serde(default)]
    pub ticket: u64,
    /// Another node has taken its place: its data was lost, and it never comes back.
    pub replaced_by: Option<NodeId>,
    /// The name in its certificate. None in a network without TLS, and in rows that an older program wrote.
    #[serde(default)]
    pub name: Option<String>,
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

    /// Adds what another node knows, which may be less. A node that was replaced stays replaced; of two rows
    /// of a node the one with the later start is newer.
    pub fn hear(&mut self, other: Topology) {
        for (id, row) in other.nodes {
            let known = self.nodes.get(&id).map(|known| (known.replaced_by, known.boot));
            if known < Some((row.replaced_by, row.boot)) {
                self.nodes.insert(id, row);
            }
        }
    }

    /// The nodes that still count.
    pub fn members(&self) -> impl Iterator<Item = &NodeRow> {
        self.nodes.values().filter(|row| row.replaced_by.is_none())
    }

    pub fn ids(&self) -> BTreeSet<NodeId> {
        self.members().map(|row| row.id).collect()
    }

    /// The member that was let in for this ticket.
    pub fn holder(&self, ticket: u64) -> Option<NodeId> {
        self.members().find(|row| row.ticket == ticket && ticket != 0).map(|row| row.id)
    }

    /// The member with this name in its certificate. A newcomer with that name takes its place.
    pub fn named(&self, name: &str) -> Option<NodeId> {
        self.members().find(|row| row.name.as_deref() == Some(name)).map(|row| row.id)
    }

    /// The member whose place a newcomer at this address takes: two nodes cannot listen at one address.
    pub fn replaced_at(&self, address: SocketAddr) -> Option<NodeId> {
        self.members().find(|row| row.peer_address == address).map(|row| row.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64, boot: u64, replaced_by: Option<u64>) -> NodeRow {
        NodeRow {
            id: NodeId(id),
            zone: Zone("a".into()),
            peer_address: SocketAddr::from(([127, 0, 0, 1], id as u16)),
            sql_address: SocketAddr::from(([127, 0, 0, 1], boot as u16)),
            boot,
            since_us: 0,
            ticket: 0,
            replaced_by: replaced_by.map(NodeId),
            name: None,
        }
    }

    #[test]
    fn hearsay_adds_and_never_takes_back() {
        let mut known = Topology::of([row(1, 5, None), row(2, 3, Some(4))]);
        known.hear(Topology::of([row(1, 4, None), row(2, 9, None), row(3, 1, None)]));
        assert_eq!(known, Topology::of([row(1, 5, None), row(2, 3, Some(4)), row(3, 1, None)]));
        known.hear(Topology::of([row(1, 6, None), row(3, 1, Some(7))]));
        assert_eq!(known, Topology::of([row(1, 6, None), row(2, 3, Some(4)), row(3, 1, Some(7))]));
    }
    #[test]
    fn who_asks_twice_is_let_in_once() {
        let with = |id, ticket, by| NodeRow { ticket, ..row(id, 1, by) };
        let known = Topology::of([row(1, 1, None), with(2, 7, Some(3)), with(3, 8, None)]);
        assert_eq!(known.holder(8), Some(NodeId(3)));
        // Its place was taken since; founders have no ticket.
        assert_eq!((known.holder(7), known.holder(0)), (None, None));
    }
}
