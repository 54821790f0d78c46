//! Which tablet holds a key, as far as this node knows.
//!
//! A route is a hint and never a truth: a tablet refuses keys that are not its own, and the asker learns
//! the new routes and asks again. A descriptor of a higher generation replaces the ranges that it overlaps.

use crate::message::ReplicaRow;
use base::{KeyRange, NodeId, TabletId};
use std::collections::HashMap;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) tablet: TabletId,
    pub(crate) generation: u64,
    pub(crate) range: KeyRange,
    pub(crate) term: u64,
    pub(crate) leader: Option<NodeId>,
    pub(crate) members: Vec<NodeId>,
}

#[derive(Debug, Default)]
pub(crate) struct Routes {
    by_tablet: HashMap<TabletId, Route>,
    /// In key order, without overlaps.
    sorted: Vec<(KeyRange, TabletId)>,
}

impl Routes {
    pub(crate) fn learn(&mut self, row: &ReplicaRow) {
        let route = Route {
            tablet: row.tablet,
            generation: row.generation,
            range: row.range.clone(),
            term: row.term,
            leader: row.leader,
            members: row.members.clone(),
        };
        if route.generation == 0 {
            return;
        }
        let known = self.by_tablet.get(&route.tablet);
        let newer = known.is_none_or(|known| {
            let who = |route: &Route| (route.generation, route.term, route.leader.is_some());
            who(&route) > who(known) || (who(&route) == who(known) && route != *known)
        });
        if newer {
            let same_borders = known.is_some_and(|known| known.range == route.range);
            self.by_tablet.insert(route.tablet, route);
            if !same_borders {
                self.sort();
            }
        }
    }

    fn sort(&mut self) {
        let mut routes: Vec<&Route> = self.by_tablet.values().collect();
        routes.sort_by_key(|route| (std::cmp::Reverse(route.generation), route.tablet));
        let mut sorted: Vec<(KeyRange, TabletId)> = Vec::with_capacity(routes.len());
        for route in routes {
            if sorted.iter().all(|(range, _)| !range.overlaps(&route.range)) {
                sorted.push((route.range.clone(), route.tablet));
            }
        }
        sorted.sort_by(|(a, _), (b, _)| a.start.cmp(&b.start));
        self.sorted = sorted;
    }

    pub(crate) fn forget_leader(&mut self, tablet: TabletId) {
        if let Some(route) = self.by_tablet.get_mut(&tablet) {
            route.leader = None;
        }
    }

    pub(crate) fn leads(&mut self, tablet: TabletId, leader: NodeId) {
        if let Some(route) = self.by_tablet.get_mut(&tablet) {
            route.leader = Some(leader);
        }
    }

    pub(crate) fn get(&self, tablet: TabletId) -> Option<&Route> {
        self.by_tablet.get(&tablet)
    }

    /// The tablet that holds `key`.
    pub(crate) fn of(&self, key: &[u8]) -> Option<(&KeyRange, TabletId)> {
        let after = self.sorted.partition_point(|(range, _)| &range.start[..] <= key);
        let (range, tablet) = self.sorted.get(after.checked_sub(1)?)?;
        range.contains(key).then_some((range, *tablet))
    }

    /// The tablet that holds the keys just before `end`.
    pub(crate) fn before(&self, end: Option<&base::Key>) -> Option<(&KeyRange, TabletId)> {
        let (range, tablet) = match end {
            None => self.sorted.last()?,
            Some(end) => {
                let after = self.sorted.partition_point(|(range, _)| range.start < *end);
                self.sorted.get(after.checked_sub(1)?)?
            }
        };
        let reaches = match (end, &range.end) {
            (_, None) => true,
            (Some(end), Some(own)) => end <= own,
            (None, Some(_)) => false,
        };
        reaches.then_some((range, *tablet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tablet: u64, generation: u64, start: &str, end: Option<&str>) -> ReplicaRow {
        let end = end.map(|end| end.to_owned().into());
        ReplicaRow {
            node: NodeId(1),
            tablet: TabletId(tablet),
            generation,
            range: KeyRange { start: start.to_owned().into(), end },
            term: 1,
            leader: None,
            members: vec![],
            counting: vec![],
            applied_index: 0,
            closed: base::Scn::ZERO,
        }
    }

    #[test]
    fn a_split_is_learned_in_any_order_and_old_news_change_nothing() {
        let news = [row(2, 1, "", None), row(2, 2, "", Some("m")), row(9, 2, "m", None)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
            let mut routes = Routes::default();
            for n in order {
                routes.learn(&news[n]);
            }
            let tablet = |key: &str| routes.of(key.as_bytes()).map(|(_, tablet)| tablet.0);
            assert_eq!((tablet("a"), tablet("m"), tablet("z")), (Some(2), Some(9), Some(9)));
            let before = |end: Option<&str>| {
                let end = end.map(|end| end.to_owned().into());
                routes.before(end.as_ref()).map(|(_, tablet)| tablet.0)
            };
            assert_eq!(
                (before(Some("m")), before(Some("m0")), before(None)),
                (Some(2), Some(9), Some(9))
            );
        }
    }

    #[test]
    fn a_child_not_heard_of_is_a_gap() {
        let mut routes = Routes::default();
        routes.learn(&row(2, 2, "", Some("m")));
        assert_eq!(routes.of(b"z"), None);
        assert_eq!(routes.before(None), None);
    }
}
