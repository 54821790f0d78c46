//! Whether all replicas of a tablet are the same, read from their files.
//!
//! The nodes have been stopped. Their stores are opened, and every tablet's rows are read from
//! end to end, now and at a few SCNs of the past; every block's checksum is looked at on the way.

use crate::cluster::Cluster;
use crate::machine::disk;
use base::{KeyRange, NodeId, Scn, TabletId};
use std::collections::BTreeMap;
use storage::{At, Store};
use txn::command::Descriptor;
use txn::keyspace;

pub struct Compared {
    pub n_replicas: u64,
    pub n_rows: u64,
    /// Nodes that were found damaged only now.
    pub n_damaged: u64,
}

struct Replica {
    node: usize,
    store: Store,
}

/// Points of the past that are compared, beside the present.
const N_PAST: u64 = 4;

/// `voters`: whose replicas of each tablet must be the same. Whoever was left out of a tablet keeps
/// what there was on that day.
///
/// `damaged`: a node one of whose bits was flipped. It is left out if it says so: a node that has
/// not read the bit yet could not know.
pub fn compare(
    cluster: &Cluster,
    voters: &BTreeMap<TabletId, Vec<NodeId>>,
    damaged: Option<usize>,
) -> anyhow::Result<Compared> {
    let mut n_damaged = 0;
    if let Some(number) = damaged {
        n_damaged = u64::from(read_all(cluster, number).is_err());
    }
    let left_out = damaged.filter(|_| n_damaged > 0);
    let mut replicas: BTreeMap<TabletId, Vec<(Descriptor, Replica)>> = BTreeMap::new();
    let mut horizon = Scn::ZERO;
    let mut newest = Scn::ZERO;
    for node in &cluster.nodes {
        if !cluster.was_started(node.number) || left_out == Some(node.number) {
            continue;
        }
        let store = open(cluster, node.number)?;
        let id = cluster.id(node.number);
        let votes = |tablet| {
            voters.get(&tablet).is_some_and(|voters| voters.iter().any(|voter| Some(*voter) == id))
        };
        horizon = horizon.max(store.horizon());
        for row in store.meta_scan(&keyspace::descriptors()) {
            let (_, value) = row?;
            let descriptor: Descriptor = postcard::from_bytes(&value)?;
            let replica = Replica { node: node.number, store: store.clone() };
            let known = replicas.entry(descriptor.tablet).or_default();
            if votes(descriptor.tablet) {
                known.push((descriptor, replica));
            }
        }
        for row in store.scan(&KeyRange::all(), At::Newest, false) {
            newest = newest.max(row?.1);
        }
    }
    let mut compared = Compared { n_replicas: 0, n_rows: 0, n_damaged };
    let step = newest.0.saturating_sub(horizon.0) / (N_PAST + 1);
    let past = (1..=N_PAST).map(|n| At::Scn(Scn(horizon.0 + n * step)));
    let moments: Vec<At> = past.filter(|_| step > 0).chain([At::Newest]).collect();
    let n_voters = cluster.shape.n_zones - n_damaged as usize;
    for (tablet, replicas) in replicas {
        let generation = replicas.iter().map(|(d, _)| d.generation).max().unwrap_or(0);
        let current: Vec<_> = replicas.iter().filter(|(d, _)| d.generation == generation).collect();
        if current.len() < n_voters {
            let nodes: Vec<usize> = current.iter().map(|(_, r)| r.node + 1).collect();
            anyhow::bail!("tablet {tablet} has replicas on nodes {nodes:?} only");
        }
        for at in &moments {
            let Some(((descriptor, first), others)) = current.split_first() else { continue };
            let known = rows(&first.store, &descriptor.range, *at)?;
            compared.n_rows += known.len() as u64;
            for (_, other) in others {
                let index = |replica: &Replica| replica.store.durable_index(tablet);
                if *at == At::Newest && index(first) != index(other) {
                    // They had the same a moment before all nodes were stopped: the last entry
                    // came while they stopped.
                    continue;
                }
                let found = rows(&other.store, &descriptor.range, *at)?;
                if let Some(what) = difference(&known, &found) {
                    anyhow::bail!(
                        "tablet {tablet} at {at:?} differs between node {} (entry {}) and node {} \
                         (entry {}): {what}",
                        first.node + 1,
                        first.store.durable_index(tablet).unwrap_or(0),
                        other.node + 1,
                        other.store.durable_index(tablet).unwrap_or(0),
                    );
                }
            }
        }
        compared.n_replicas += current.len() as u64;
    }
    Ok(compared)
}

fn open(cluster: &Cluster, number: usize) -> anyhow::Result<Store> {
    let node = &cluster.nodes[number];
    let dir = disk::files(node.host);
    Store::open(&cluster.env(node), &dir, storage::Options::default())
        .map_err(|error| anyhow::anyhow!("node {}: {error}", number + 1))
}

fn read_all(cluster: &Cluster, number: usize) -> anyhow::Result<()> {
    let store = open(cluster, number)?;
    let horizon = store.horizon();
    for at in [At::Newest, At::Scn(horizon)] {
        rows(&store, &KeyRange::all(), at)?;
    }
    store.meta_scan(&KeyRange::all()).collect::<Result<Vec<_>, _>>()?;
    Ok(())
}

type Rows = Vec<(base::Key, Scn, bytes::Bytes)>;

fn rows(store: &Store, range: &KeyRange, at: At) -> anyhow::Result<Rows> {
    Ok(store.scan(range, at, false).collect::<Result<_, _>>()?)
}

fn difference(known: &Rows, found: &Rows) -> Option<String> {
    if known == found {
        return None;
    }
    let differs = known.iter().zip(found).find(|(a, b)| a != b);
    Some(match differs {
        Some((a, b)) => format!(
            "key {} at SCN {} here, key {} at SCN {} there",
            base::key::Hex(&a.0),
            a.1,
            base::key::Hex(&b.0),
            b.1
        ),
        None => format!("{} rows here, {} there", known.len(), found.len()),
    })
}
