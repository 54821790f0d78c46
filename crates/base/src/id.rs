//! Identities. Each is a plain number on the wire and on disk.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One node's life with one data directory. A node whose data was wiped comes back under a new
/// id, because it can no longer keep the promises (votes, acknowledged entries) of the old one.
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

/// One transaction, unique over the life of the cluster. Its first 16 bits are the id of the node that
/// runs it; `txn::ids` says how the other bits are given out.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct TxnId(pub u64);

impl TxnId {
    const NUMBER_BITS: u32 = 48;

    /// The node that began the transaction and coordinates its commit.
    pub fn node(self) -> NodeId {
        NodeId(self.0 >> Self::NUMBER_BITS)
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
