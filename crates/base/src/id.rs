//! Identities. Each is a plain number on the wire and on disk.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One node's life with one data directory. A node whose data was wiped comes back under a new
/// id: the old one made promises (votes, acknowledged entries) that the new one cannot keep.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct NodeId(pub u64);

/// One tablet, which is one Raft group and one interval of the ordered key space.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct TabletId(pub u64);

impl TabletId {
    /// The tablet that holds the catalog, the topology and the SCN counter.
    pub const ROOT: TabletId = TabletId(1);
    /// The tablet in which all tables begin.
    pub const FIRST_DATA: TabletId = TabletId(2);
}

/// One transaction, unique over the life of the cluster: the id of the node that runs it, how
/// often that node has started, and a counter.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct TxnId(pub u64);

impl TxnId {
    const COUNTER_BITS: u32 = 31;
    const BOOT_BITS: u32 = 16;

    /// `boot` is the number of this start of the node (it wraps after 65,536 starts), `counter`
    /// the transaction's number within it.
    pub fn new(node: NodeId, boot: u64, counter: u64) -> TxnId {
        let counter = counter & ((1 << Self::COUNTER_BITS) - 1);
        let boot = boot & ((1 << Self::BOOT_BITS) - 1);
        TxnId(
            (node.0 << (Self::COUNTER_BITS + Self::BOOT_BITS))
                | (boot << Self::COUNTER_BITS)
                | counter,
        )
    }

    /// The node that began the transaction and coordinates its commit.
    pub fn node(self) -> NodeId {
        NodeId(self.0 >> (Self::COUNTER_BITS + Self::BOOT_BITS))
    }
}

/// A failure domain: machines that share power, switch or room share a zone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Zone(pub String);

macro_rules! show {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
show!(NodeId, TabletId, TxnId, Zone);
