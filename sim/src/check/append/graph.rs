//! The graph of points in time, and the shortest forbidden cycle in each of its tangles.
//!
//! It knows nothing of levels and lists: whoever builds it draws only edges that a promise
//! backs, so every cycle is forbidden, and the search is the same for all of them. Cycles are
//! looked for in stages, each with one more [`Class`] of edge; a tangle that an earlier stage
//! explained is left alone later, because what it also breaks follows from what it breaks first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// What an edge rests on; a stage of the search draws the edges up to its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// From one point of a transaction to its next.
    Step,
    /// Appended right before.
    Ww,
    /// Read what the other appended.
    Wr,
    /// Did not see what the other appended.
    Rw,
    /// Ended before the other began.
    Rt,
    /// As `Ww`, of an append that nobody read. Late, since most often the append was lost, and
    /// real time says so in fewer words.
    WwUnread,
    /// As `Rw`, for one statement of a READ COMMITTED transaction.
    RwStatement,
}

const STAGES: [Class; 6] =
    [Class::Ww, Class::Wr, Class::Rw, Class::Rt, Class::WwUnread, Class::RwStatement];

/// The values that show an edge, for its explanation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    Time,
    Before { key: u64, first: u64, second: u64 },
    Saw { key: u64, value: u64 },
    Missed { key: u64, value: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub from: usize,
    pub class: Class,
    pub to: usize,
    pub why: Why,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    /// The transaction of each node; none for the joints that stand for many edges at once.
    owners: Vec<Option<usize>>,
    edges: Vec<Edge>,
    /// Where each node's edges begin in `edges`, once sorted.
    begins: Vec<usize>,
}

/// Edges that one stage may try in search of shorter cycles. A tangle's first start is always
/// searched to its end, so a cycle is found whatever this says; it is only not the shortest.
const N_TRIED_MAX: usize = 2_000_000;

/// Fewest rw edges first, then fewest edges.
type Cost = (u32, u32);

impl Graph {
    pub fn node(&mut self, owner: Option<usize>) -> usize {
        self.owners.push(owner);
        self.owners.len() - 1
    }

    pub fn edge(&mut self, from: usize, to: usize, class: Class, why: Why) {
        self.edges.push(Edge { from, class, to, why });
    }

    pub fn owner(&self, node: usize) -> Option<usize> {
        self.owners[node]
    }

    pub fn count(&self, classes: &[Class]) -> usize {
        self.edges.iter().filter(|edge| classes.contains(&edge.class)).count()
    }

    /// Sorts the edges, each once; to be called after the last [`Graph::edge`].
    pub fn seal(&mut self) {
        self.edges.sort_unstable();
        self.edges.dedup_by_key(|edge| (edge.from, edge.class, edge.to));
        self.begins = vec![0; self.owners.len() + 1];
        for edge in &self.edges {
            self.begins[edge.from + 1] += 1;
        }
        for node in 0..self.owners.len() {
            self.begins[node + 1] += self.begins[node];
        }
    }

    /// One cycle for each tangle, from the weakest class of edges up. Every edge starts where the
    /// one before it ends.
    pub fn cycles(&self) -> Vec<Vec<Edge>> {
        let mut explained = vec![false; self.owners.len()];
        let mut cycles = Vec::new();
        for stage in STAGES {
            let (component_of, tangles) = self.tangles(stage);
            let mut n_tried = 0;
            for tangle in tangles {
                if tangle.iter().any(|node| explained[*node]) {
                    continue;
                }
                let mut best: Option<(Cost, Vec<Edge>)> = None;
                for start in &tangle {
                    if best.is_some() && n_tried > N_TRIED_MAX {
                        break;
                    }
                    let bound = best.as_ref().map(|(cost, _)| *cost);
                    let found = self.shortest(*start, stage, bound, &component_of, &mut n_tried);
                    best = found.or(best);
                }
                for node in tangle {
                    explained[node] = true;
                }
                cycles.extend(best.map(|(_, cycle)| cycle));
            }
        }
        cycles
    }

    fn edges_of(&self, node: usize, stage: Class) -> &[Edge] {
        let all = &self.edges[self.begins[node]..self.begins[node + 1]];
        &all[..all.partition_point(|edge| edge.class <= stage)]
    }

    /// The strongly connected components of more than one node (Tarjan, 1972), without recursion,
    /// and the component of every node.
    fn tangles(&self, stage: Class) -> (Vec<usize>, Vec<Vec<usize>>) {
        const NEW: usize = usize::MAX;
        let n = self.owners.len();
        let (mut index, mut low) = (vec![NEW; n], vec![0; n]);
        let mut component_of = vec![NEW; n];
        let (mut n_seen, mut n_components) = (0, 0);
        let (mut open, mut tangles) = (Vec::new(), Vec::new());
        let mut path: Vec<(usize, usize)> = Vec::new();
        for root in 0..n {
            if index[root] == NEW {
                path.push((root, 0));
            }
            while let Some((node, at)) = path.pop() {
                if at == 0 {
                    index[node] = n_seen;
                    low[node] = n_seen;
                    n_seen += 1;
                    open.push(node);
                }
                if let Some(edge) = self.edges_of(node, stage).get(at) {
                    path.push((node, at + 1));
                    if index[edge.to] == NEW {
                        path.push((edge.to, 0));
                    } else if component_of[edge.to] == NEW {
                        low[node] = low[node].min(index[edge.to]);
                    }
                    continue;
                }
                if let Some((parent, _)) = path.last() {
                    low[*parent] = low[*parent].min(low[node]);
                }
                if low[node] == index[node] {
                    let from = open.iter().rposition(|other| *other == node).unwrap_or(0);
                    let mut members = open.split_off(from);
                    for member in &members {
                        component_of[*member] = n_components;
                    }
                    n_components += 1;
                    if members.len() > 1 {
                        members.sort_unstable();
                        tangles.push(members);
                    }
                }
            }
        }
        (component_of, tangles)
    }

    /// The cheapest cycle through `start` below `bound` (Dijkstra), inside its component. Only
    /// edges that leave a transaction cost: steps and the ways between joints are free.
    fn shortest(
        &self,
        start: usize,
        stage: Class,
        bound: Option<Cost>,
        component_of: &[usize],
        n_tried: &mut usize,
    ) -> Option<(Cost, Vec<Edge>)> {
        let mut reached: BTreeMap<usize, (Cost, Edge)> = BTreeMap::new();
        let mut heap = BinaryHeap::from([Reverse(((0, 0), start))]);
        while let Some(Reverse((cost, node))) = heap.pop() {
            // Only the way back to the start costs anything there.
            if node == start && cost > (0, 0) {
                break;
            }
            if reached.get(&node).is_some_and(|(known, _)| *known < cost) {
                continue;
            }
            for edge in self.edges_of(node, stage) {
                *n_tried += 1;
                if component_of[edge.to] != component_of[start] {
                    continue;
                }
                let next = match edge.class {
                    Class::Step => cost,
                    _ if self.owners[node].is_none() => cost,
                    Class::Rw | Class::RwStatement => (cost.0 + 1, cost.1 + 1),
                    Class::Ww | Class::WwUnread | Class::Wr | Class::Rt => (cost.0, cost.1 + 1),
                };
                let beaten = |known: &(Cost, Edge)| known.0 <= next;
                if bound.is_some_and(|bound| bound <= next)
                    || reached.get(&edge.to).is_some_and(beaten)
                {
                    continue;
                }
                reached.insert(edge.to, (next, *edge));
                heap.push(Reverse((next, edge.to)));
            }
        }
        let (cost, last) = *reached.get(&start)?;
        let mut cycle = vec![last];
        let mut node = last.from;
        while node != start {
            let (_, edge) = reached.get(&node)?;
            cycle.push(*edge);
            node = edge.from;
        }
        cycle.reverse();
        Some((cost, cycle))
    }
}
