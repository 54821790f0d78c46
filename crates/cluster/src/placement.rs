//! Which nodes should hold a tablet's replicas.
//!
//! A tablet has a replica in every zone, so that the loss of a zone leaves a majority. Replicas that stand
//! well are left alone, because a change of members copies a whole tablet. There are three reasons to
//! change them: a replica is on a node that was replaced, two replicas are in one zone, or new zones make
//! a larger odd number of them. Example: the voters are 1 in zone a, 2 in b, 3 in c, and node 2 was
//! replaced by node 4 in b: the voters become 1, 3 and 4.

use crate::Topology;
use base::{NodeId, TabletId, Zone};
use std::collections::{BTreeMap, BTreeSet};

/// More voters cost more messages and save nothing more.
const N_VOTERS_MAX: usize = 5;

/// The voters that `tablet` should have; none if the present ones are as good.
pub fn wanted(
    tablet: TabletId,
    voters: &BTreeSet<NodeId>,
    topology: &Topology,
) -> Option<BTreeSet<NodeId>> {
    let mut by_zone: BTreeMap<&Zone, Vec<NodeId>> = BTreeMap::new();
    for row in topology.members() {
        by_zone.entry(&row.zone).or_default().push(row.id);
    }
    // An even number of zones would add a voter that adds no safety.
    let n_zones = by_zone.len().min(N_VOTERS_MAX);
    let n_voters = if n_zones.is_multiple_of(2) { n_zones.saturating_sub(1) } else { n_zones };
    let holds = |nodes: &Vec<NodeId>| nodes.iter().any(|node| voters.contains(node));
    let mut zones: Vec<&Vec<NodeId>> = by_zone.values().collect();
    zones.sort_by_key(|nodes| !holds(nodes));
    let mut wanted = BTreeSet::new();
    for nodes in zones.into_iter().take(n_voters) {
        let kept = nodes.iter().find(|node| voters.contains(node));
        let spread = nodes.get(usize::try_from(tablet.0).unwrap_or(0) % nodes.len().max(1));
        wanted.extend(kept.or(spread).copied());
    }
    // A voter that the topology does not know may stand in a zone that it does not know either, and counts
    // as one zone. The voters may be those of two configurations, if a change was left half done.
    let n_unheard = voters.iter().filter(|voter| !topology.nodes.contains_key(voter)).count();
    let n_held = by_zone.values().filter(|nodes| holds(nodes)).count() + n_unheard;
    (wanted != *voters && wanted.len() >= n_held).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeRow;
    use std::net::SocketAddr;

    fn topology(nodes: &[(u64, &str, Option<u64>)]) -> Topology {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        Topology::of(nodes.iter().map(|(id, zone, replaced_by)| NodeRow {
            id: NodeId(*id),
            zone: Zone((*zone).into()),
            peer_address: address,
            sql_address: address,
            boot: 1,
            since_us: 0,
            ticket: 0,
            replaced_by: replaced_by.map(NodeId),
            name: None,
        }))
    }

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn what_stands_well_is_left_alone() {
        let three = topology(&[(1, "a", None), (2, "b", None), (3, "c", None), (4, "c", None)]);
        assert_eq!(wanted(TabletId(2), &ids(&[1, 2, 3]), &three), None);
        assert_eq!(wanted(TabletId(2), &ids(&[1, 2, 4]), &three), None);
    }

    #[test]
    fn a_replaced_node_gives_way_to_one_of_its_zone() {
        let wiped = topology(&[(1, "a", None), (2, "b", Some(4)), (3, "c", None), (4, "b", None)]);
        assert_eq!(wanted(TabletId(2), &ids(&[1, 2, 3]), &wiped), Some(ids(&[1, 3, 4])));
    }

    #[test]
    fn a_change_left_half_done_is_done() {
        let wiped = topology(&[(1, "a", None), (2, "b", Some(4)), (3, "c", None), (4, "b", None)]);
        assert_eq!(wanted(TabletId(2), &ids(&[1, 2, 3, 4]), &wiped), Some(ids(&[1, 3, 4])));
        let three = topology(&[(1, "a", None), (2, "b", None), (3, "c", None), (4, "b", None)]);
        assert_eq!(wanted(TabletId(2), &ids(&[1, 2, 3, 4]), &three), Some(ids(&[1, 2, 3])));
        // Node 9's zone is not heard of.
        assert_eq!(wanted(TabletId(2), &ids(&[1, 2, 3, 4, 9]), &three), None);
    }

    #[test]
    fn a_new_zone_grows_a_tablet_to_an_odd_number() {
        let two = topology(&[(1, "a", None), (2, "b", None)]);
        assert_eq!(wanted(TabletId(2), &ids(&[1]), &two), None);
        let three = topology(&[(1, "a", None), (2, "b", None), (3, "c", None)]);
        assert_eq!(wanted(TabletId(2), &ids(&[1]), &three), Some(ids(&[1, 2, 3])));
    }

    #[test]
    fn a_zone_not_heard_of_takes_no_replica_away() {
        let partial = topology(&[(1, "a", None)]);
        assert_eq!(wanted(TabletId(2), &ids(&[1, 2, 3]), &partial), None);
    }
}
