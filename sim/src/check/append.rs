//! Isolation, judged from outside: histories of transactions that append to lists and read them.
//!
//! A list shows its own past. Who reads `[1, 2, 5]` has seen that 1 came before 2 and 2 before 5,
//! so the order of the writes need not be guessed (Kingsbury & Alvaro, "Elle: Inferring Isolation
//! Anomalies from Experimental Observations", VLDB 2020). Three kinds of edges follow from it
//! (Adya, "Weak Consistency", 1999): `A -ww-> B`, B appended right after A; `A -wr-> B`, B read a
//! list that ends with A's element; `A -rw-> B`, A read a list that does not yet hold B's. A
//! fourth is the wall clock's: `A -rt-> B`, A's answer came before B began.
//!
//! Levels mix in one history, so an edge does not join whole transactions but points in time:
//! the unfolded graph of Adya's PL-2L, drawn for every level.
//!
//! ```text
//!                     points                    an append or a read    a list read without
//!                                               after A's commit       W's element
//!  READ COMMITTED     one per statement, commit  A's commit -> statement  statement -> W's commit
//!  REPEATABLE READ    snapshot, commit           A's commit -> snapshot   snapshot  -> W's commit
//!  SERIALIZABLE       commit                     A's commit -> commit     commit    -> W's commit
//! ```
//!
//! An rt edge goes from A's commit to B's first point. Every edge is one promise: that statements
//! draw rising snapshots, that the first updater wins (a REPEATABLE READ transaction appends only
//! after what its snapshot shows), that SERIALIZABLE holds all its locks until the commit, that
//! an acknowledged commit has a smaller SCN than whatever begins later. So a cycle of any kind is
//! a broken promise, and none is needed to tell which cycles which level allows: write skew
//! between two SERIALIZABLE transactions closes,
//!
//! ```text
//!  T1 reads x = [], appends 1 to y       T1 -rw-> T2   T1 read x before 2
//!  T2 reads y = [], appends 2 to x       T2 -rw-> T1   T2 read y before 1
//! ```
//!
//! while at REPEATABLE READ the edges go from two snapshots to two commits, and nothing leads back.
//!
//! The rest is seen without a graph: elements twice or from nowhere, reads of which neither begins
//! with the other, reads of aborted (G1a) or half-done (G1b) transactions, own appends that are not
//! the tail of an own read, two reads of one key that differ within a snapshot, and lost updates.
//!
//! **Who counts.** A committed transaction; and one whose COMMIT got no answer, as soon as another
//! read one of its appends. The others have no place in the order; their reads answer for what each
//! shows alone (elements, G1a, G1b, order, own appends), since even a transaction that will abort
//! is only ever shown committed rows.
//!
//! **What is left out.** Snapshots of the past (SET TRANSACTION SNAPSHOT) break the rt edges and do
//! not belong into a history. Predicates are not covered: no read here can meet a phantom. An
//! append that nobody read is known to come after the longest list read, no more: let the history
//! end with one transaction that reads every key, and each append has its place.

mod graph;

use graph::{Class, Edge, Graph, Why};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    ReadCommitted,
    /// Snapshot isolation, the first updater wins: PostgreSQL's, and Oracle's SERIALIZABLE.
    RepeatableRead,
    Serializable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    Aborted,
    /// No answer to COMMIT came.
    Unknown,
}

/// One statement. Values are unique over the whole history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Append { key: u64, value: u64 },
    Read { key: u64, list: Vec<u64> },
}

/// `begun` and `ended` are the client's virtual time in ns: before BEGIN was sent, and after the
/// answer to COMMIT came (`u64::MAX` if none did).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    pub number: usize,
    pub level: Level,
    pub begun: u64,
    pub ended: u64,
    pub ops: Vec<Op>,
    pub outcome: Outcome,
}

/// What was judged, for the reader who asks whether a pass means anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub n_txns: usize,
    /// Those that have a place in the order.
    pub n_counted: usize,
    pub n_reads: usize,
    pub n_ww: usize,
    pub n_wr: usize,
    pub n_rw: usize,
    /// Of the reduced graph, which has a few for each transaction.
    pub n_rt: usize,
    pub list_len_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The history is no history: a value appended twice, an end before its beginning.
    Malformed,
    /// An element twice in one list.
    Duplicate,
    /// An element that nobody appended to this key.
    Garbage,
    /// Two reads of a key of which neither begins with the other.
    IncompatibleOrder,
    /// Own appends are not the tail of an own read, or a transaction's appends stand in a list
    /// with some missing or out of order.
    Internal,
    /// Two reads of a key in one snapshot differ.
    UnrepeatableRead,
    /// G1a.
    AbortedRead,
    /// G1b.
    IntermediateRead,
    /// G0: a cycle of ww edges.
    WriteCycle,
    /// G1c: a cycle of ww and wr edges.
    CircularInformation,
    /// Two transactions above READ COMMITTED read one version of a key and both append to it.
    LostUpdate,
    /// A cycle with one rw edge, out of a snapshot or out of a SERIALIZABLE transaction.
    GSingle,
    /// A cycle with several rw edges, some out of snapshots, no two of them adjacent there: long
    /// fork and its like (Cerone & Gotsman, "Analysing Snapshot Isolation", PODC 2016).
    GNonadjacent,
    /// A cycle with several rw edges, all out of SERIALIZABLE transactions: write skew.
    G2,
    /// A cycle that needs real time: somebody did not see what was acknowledged before.
    RealTime,
    /// A cycle that needs an rw edge out of a READ COMMITTED statement (G-monotonic): a snapshot
    /// older than an earlier statement's, or older than the transaction.
    Monotonic,
    /// [`check_final`]: a committed append is not there.
    LostAppend,
    /// [`check_final`]: one part of an unanswered transaction is there, another is not.
    Torn,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Malformed => "malformed history",
            Kind::Duplicate => "duplicate element",
            Kind::Garbage => "garbage read",
            Kind::IncompatibleOrder => "incompatible order",
            Kind::Internal => "internal inconsistency",
            Kind::UnrepeatableRead => "unrepeatable read",
            Kind::AbortedRead => "aborted read (G1a)",
            Kind::IntermediateRead => "intermediate read (G1b)",
            Kind::WriteCycle => "write cycle (G0)",
            Kind::CircularInformation => "circular information flow (G1c)",
            Kind::LostUpdate => "lost update",
            Kind::GSingle => "G-single",
            Kind::GNonadjacent => "G-nonadjacent",
            Kind::G2 => "G2",
            Kind::RealTime => "real-time violation",
            Kind::Monotonic => "statement out of order (G-monotonic)",
            Kind::LostAppend => "lost append",
            Kind::Torn => "torn transaction",
        }
    }
}

/// A broken promise. The explanation is one line; in it, `T7/RR` is transaction number 7 at
/// REPEATABLE READ (RC, S: the other levels).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Anomaly {
    pub kind: Kind,
    pub explanation: String,
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.explanation)
    }
}

/// Judges a history by the promises of each transaction's level. O(n log n) in operations, plus
/// the lists' total length; the search for short cycles in a broken history is bounded.
pub fn check(history: &[Txn]) -> Result<Report, Vec<Anomaly>> {
    let mut case = Case::open(history);
    case.judge_elements();
    case.judge_agreement();
    case.judge_updates();
    let graph = case.graph();
    for cycle in graph.cycles() {
        case.explain(&graph, &cycle);
    }
    if !case.anomalies.is_empty() {
        return Err(case.verdict());
    }
    Ok(Report {
        n_txns: history.len(),
        n_counted: case.counts.iter().filter(|counts| **counts).count(),
        n_reads: case.sights.values().map(Vec::len).sum(),
        n_ww: graph.count(&[Class::Ww, Class::WwUnread]),
        n_wr: graph.count(&[Class::Wr]),
        n_rw: graph.count(&[Class::Rw, Class::RwStatement]),
        n_rt: graph.count(&[Class::Rt]),
        list_len_max: case.orders.values().map(|order| order.list.len()).max().unwrap_or(0),
    })
}

/// Judges the lists as they are in the end, when nothing runs any more; a key that `finals` lacks
/// is empty. Every committed append is there once and no aborted one is. An unanswered
/// transaction is there as a whole or not at all, and as a whole if anybody read of it.
pub fn check_final(history: &[Txn], finals: &BTreeMap<u64, Vec<u64>>) -> Vec<Anomaly> {
    let mut case = Case::open(history);
    // What is wrong within the history is for `check` to say.
    case.anomalies.clear();
    let mut present: BTreeSet<u64> = BTreeSet::new();
    for (key, list) in finals {
        case.judge_list(*key, list, "the final list");
        present.extend(list);
    }
    let is_there = |case: &Case<'_>, value: &u64, key: &u64| {
        present.contains(value) && case.places.get(value).is_some_and(|place| place.key == *key)
    };
    for (txn, own) in case.own.clone().iter().enumerate() {
        let appends = || own.iter().flat_map(|(key, list)| list.iter().map(move |v| (*key, *v)));
        let there: Vec<_> = appends().filter(|(key, value)| is_there(&case, value, key)).collect();
        let missing: Vec<_> = appends().filter(|append| !there.contains(append)).collect();
        let name = case.name(txn);
        match history[txn].outcome {
            Outcome::Aborted => {
                for (key, value) in there {
                    let line = format!("{name} aborted, key {key} ends with its {value} in it");
                    case.find(Kind::AbortedRead, line);
                }
            }
            Outcome::Committed => {
                for (key, value) in missing {
                    let line = format!("{name} committed, key {key} ends without its {value}");
                    case.find(Kind::LostAppend, line);
                }
            }
            Outcome::Unknown => match (there.first(), missing.first()) {
                (Some((key, value)), Some((other, lost))) => {
                    let line = format!(
                        "{name} got no answer; key {key} ends with its {value}, \
                         key {other} without its {lost}"
                    );
                    case.find(Kind::Torn, line);
                }
                (None, Some((key, value))) if case.counts[txn] => {
                    let line = format!(
                        "{name} got no answer but was read; key {key} ends without its {value}"
                    );
                    case.find(Kind::LostAppend, line);
                }
                _ => {}
            },
        }
    }
    if case.anomalies.is_empty() {
        let empty = Vec::new();
        for (key, order) in case.orders.clone() {
            let list = finals.get(&key).unwrap_or(&empty);
            if !list.starts_with(&order.list) {
                let line = format!(
                    "{} read key {key} as {}, it ends as {}",
                    case.name(order.reader),
                    around(&order.list, list),
                    around(list, &order.list)
                );
                case.find(Kind::IncompatibleOrder, line);
            }
        }
    }
    case.verdict()
}

/// Where a value was appended.
#[derive(Clone, Copy, Debug)]
struct Place {
    txn: usize,
    op: usize,
    key: u64,
    /// The how manieth of the transaction's appends to the key, and whether there are more.
    nth: usize,
    last: bool,
}

/// A read: what it shows of others is `list[..n_foreign]`, the rest are its own appends.
#[derive(Clone, Copy, Debug)]
struct Sight<'a> {
    txn: usize,
    op: usize,
    list: &'a [u64],
    n_foreign: usize,
}

impl<'a> Sight<'a> {
    fn foreign(&self) -> &'a [u64] {
        &self.list[..self.n_foreign]
    }
}

/// The order of a key's elements, as far as anybody saw it.
#[derive(Clone, Debug)]
struct Order {
    list: Vec<u64>,
    /// The transaction that saw the longest list.
    reader: usize,
    /// Nothing contradicts it, so edges may be drawn from it.
    sound: bool,
}

struct Case<'a> {
    history: &'a [Txn],
    places: BTreeMap<u64, Place>,
    /// Each transaction's appends by key, in its order.
    own: Vec<BTreeMap<u64, Vec<u64>>>,
    /// Everybody's by key, transaction after transaction.
    appends: BTreeMap<u64, Vec<u64>>,
    sights: BTreeMap<u64, Vec<Sight<'a>>>,
    /// Whether each transaction has a place in the order.
    counts: Vec<bool>,
    orders: BTreeMap<u64, Order>,
    anomalies: Vec<Anomaly>,
}

impl<'a> Case<'a> {
    fn open(history: &'a [Txn]) -> Case<'a> {
        let mut case = Case {
            history,
            places: BTreeMap::new(),
            own: Vec::new(),
            appends: BTreeMap::new(),
            sights: BTreeMap::new(),
            counts: history.iter().map(|txn| txn.outcome == Outcome::Committed).collect(),
            orders: BTreeMap::new(),
            anomalies: Vec::new(),
        };
        case.gather_appends();
        case.gather_reads();
        case.order();
        case
    }

    fn find(&mut self, kind: Kind, explanation: String) {
        self.anomalies.push(Anomaly { kind, explanation });
    }

    fn verdict(mut self) -> Vec<Anomaly> {
        self.anomalies.sort_unstable();
        self.anomalies.dedup();
        self.anomalies
    }

    fn name(&self, txn: usize) -> String {
        let txn = &self.history[txn];
        let level = match txn.level {
            Level::ReadCommitted => "RC",
            Level::RepeatableRead => "RR",
            Level::Serializable => "S",
        };
        format!("T{}/{level}", txn.number)
    }

    fn gather_appends(&mut self) {
        for (at, txn) in self.history.iter().enumerate() {
            if txn.outcome == Outcome::Committed && txn.ended < txn.begun {
                self.find(Kind::Malformed, format!("{} ended before it began", self.name(at)));
            }
            let mut own: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            for (op, what) in txn.ops.iter().enumerate() {
                let Op::Append { key, value } = what else { continue };
                let list = own.entry(*key).or_default();
                let place = Place { txn: at, op, key: *key, nth: list.len(), last: false };
                list.push(*value);
                self.appends.entry(*key).or_default().push(*value);
                if let Some(other) = self.places.insert(*value, place) {
                    let names = (self.name(other.txn), self.name(at));
                    let line = format!("{} and {} both append {value}", names.0, names.1);
                    self.find(Kind::Malformed, line);
                }
            }
            for value in own.values().filter_map(|list| list.last()) {
                if let Some(place) = self.places.get_mut(value) {
                    place.last = true;
                }
            }
            self.own.push(own);
        }
    }

    /// Parts every read into what it shows of others and the own tail.
    fn gather_reads(&mut self) {
        let history = self.history;
        for (at, txn) in history.iter().enumerate() {
            let mut n_own: BTreeMap<u64, usize> = BTreeMap::new();
            for (op, what) in txn.ops.iter().enumerate() {
                let (key, list) = match what {
                    Op::Append { key, .. } => {
                        *n_own.entry(*key).or_default() += 1;
                        continue;
                    }
                    Op::Read { key, list } => (*key, list),
                };
                let all = self.own[at].get(&key).map_or(&[][..], Vec::as_slice);
                let own = &all[..n_own.get(&key).copied().unwrap_or(0)];
                let n_foreign = list.len().saturating_sub(own.len());
                let (foreign, tail) = list.split_at(n_foreign);
                if tail == own && !foreign.iter().any(|value| all.contains(value)) {
                    let sight = Sight { txn: at, op, list, n_foreign };
                    self.sights.entry(key).or_default().push(sight);
                    continue;
                }
                let line = format!(
                    "{} had appended {own:?} to key {key} and read it as {}",
                    self.name(at),
                    around(list, foreign)
                );
                self.find(Kind::Internal, line);
            }
        }
    }

    /// The longest list of each key. A read of own appends by a transaction that counts shows
    /// where they are, and those that follow in the transaction: the row is locked meanwhile.
    fn order(&mut self) {
        let mut seen: BTreeSet<usize> = BTreeSet::new();
        for (key, sights) in &self.sights {
            let Some(longest) = longest(sights) else { continue };
            let order =
                Order { list: longest.foreign().to_vec(), reader: longest.txn, sound: true };
            let odd = sights.iter().filter(|sight| !order.list.starts_with(sight.foreign()));
            let values = odd.flat_map(|sight| sight.foreign()).chain(&order.list);
            seen.extend(values.filter_map(|value| self.places.get(value)).map(|place| place.txn));
            self.orders.insert(*key, order);
        }
        for txn in seen {
            self.counts[txn] |= self.history[txn].outcome == Outcome::Unknown;
        }
        let mut found = Vec::new();
        for (key, sights) in &self.sights {
            let Some(order) = self.orders.get_mut(key) else { continue };
            for sight in sights.iter().filter(|sight| sight.n_foreign < sight.list.len()) {
                let own = self.own[sight.txn].get(key).filter(|_| self.counts[sight.txn]);
                let Some(own) = own else { continue };
                let list = [sight.foreign(), own].concat();
                if list.len() > order.list.len() && list.starts_with(&order.list) {
                    (order.list, order.reader) = (list, sight.txn);
                }
            }
            for sight in sights {
                let shown = if self.counts[sight.txn] { sight.list } else { sight.foreign() };
                if order.sound && !order.list.starts_with(shown) {
                    order.sound = false;
                    found.push((*key, order.clone(), *sight, shown));
                }
            }
        }
        for (key, order, sight, shown) in found {
            let line = format!(
                "{} read key {key} as {}, {} as {}",
                self.name(order.reader),
                around(&order.list, shown),
                self.name(sight.txn),
                around(shown, &order.list)
            );
            self.find(Kind::IncompatibleOrder, line);
        }
    }

    /// Elements that are there twice or from nowhere, and a transaction's appends that are not
    /// in its order.
    fn judge_list(&mut self, key: u64, list: &[u64], whose: &str) -> bool {
        let n_before = self.anomalies.len();
        let mut elements = BTreeSet::new();
        let mut n_of: BTreeMap<usize, usize> = BTreeMap::new();
        for value in list {
            if !elements.insert(*value) {
                let line = format!("{whose} of key {key} has {value} twice");
                self.find(Kind::Duplicate, line);
                continue;
            }
            let Some(place) = self.places.get(value).filter(|place| place.key == key) else {
                let line = format!("{whose} of key {key} has {value}, which nobody appended there");
                self.find(Kind::Garbage, line);
                continue;
            };
            let n = n_of.entry(place.txn).or_default();
            if *n != place.nth {
                let own = &self.own[place.txn][&key];
                let line = format!(
                    "{} appended {own:?} to key {key}, {whose} has {value} at the place of {}",
                    self.name(place.txn),
                    own[*n]
                );
                self.find(Kind::Internal, line);
            }
            *n += 1;
        }
        self.anomalies.len() == n_before
    }

    /// What each read shows alone. Reads that the order begins with need a look at their end only.
    fn judge_elements(&mut self) {
        for (key, sights) in std::mem::take(&mut self.sights) {
            let Some(order) = self.orders.get(&key).cloned() else { continue };
            let is_good = self.judge_list(key, &order.list, "the longest read");
            for sight in &sights {
                if !order.list.starts_with(sight.foreign()) {
                    let whose = format!("{}'s read", self.name(sight.txn));
                    self.judge_list(key, sight.foreign(), &whose);
                    self.judge_aborted(key, sight.foreign(), &[*sight]);
                }
                self.judge_last(key, sight);
            }
            self.judge_aborted(key, &order.list, &sights);
            if let Some(order) = self.orders.get_mut(&key) {
                order.sound &= is_good;
            }
            self.sights.insert(key, sights);
        }
    }

    /// G1a, one line for an element: the first who read it.
    fn judge_aborted(&mut self, key: u64, list: &[u64], sights: &[Sight<'_>]) {
        for (at, value) in list.iter().enumerate() {
            let Some(writer) = self.places.get(value).map(|place| place.txn) else { continue };
            let saw = |sight: &&Sight<'_>| {
                sight.n_foreign > at && sight.list[at] == *value && sight.txn != writer
            };
            if self.history[writer].outcome == Outcome::Aborted
                && let Some(sight) = sights.iter().find(saw)
            {
                let line = format!(
                    "{} read {value} of key {key}, which {} appended and then aborted",
                    self.name(sight.txn),
                    self.name(writer)
                );
                self.find(Kind::AbortedRead, line);
            }
        }
    }

    /// G1b.
    fn judge_last(&mut self, key: u64, sight: &Sight<'_>) {
        let Some(value) = sight.foreign().last() else { return };
        let Some(place) = self.places.get(value) else { return };
        if place.key == key && !place.last {
            let line = format!(
                "{} read key {key} up to {value}, while {} appended {:?} to it",
                self.name(sight.txn),
                self.name(place.txn),
                self.own[place.txn][&key]
            );
            self.find(Kind::IntermediateRead, line);
        }
    }

    /// Above READ COMMITTED, what two reads of a key show of others is the same.
    fn judge_agreement(&mut self) {
        let mut found = Vec::new();
        for (key, sights) in &self.sights {
            for pair in sights.windows(2) {
                let [one, two] = pair else { continue };
                let is_bound = self.history[one.txn].level != Level::ReadCommitted
                    && self.counts[one.txn]
                    && one.txn == two.txn;
                if is_bound && one.foreign() != two.foreign() {
                    found.push(format!(
                        "{} read key {key} as {} and then as {}",
                        self.name(one.txn),
                        around(one.list, two.list),
                        around(two.list, one.list)
                    ));
                }
            }
        }
        for line in found {
            self.find(Kind::UnrepeatableRead, line);
        }
    }

    /// Lost updates, whether or not anybody read what became of them.
    fn judge_updates(&mut self) {
        let mut found = Vec::new();
        for (key, sights) in &self.sights {
            let mut first_of: BTreeMap<usize, usize> = BTreeMap::new();
            for sight in sights {
                let updates = self.counts[sight.txn]
                    && self.history[sight.txn].level != Level::ReadCommitted
                    && self.own[sight.txn].contains_key(key);
                if !updates || !self.orders.get(key).is_some_and(|order| order.sound) {
                    continue;
                }
                let first = *first_of.entry(sight.n_foreign).or_insert(sight.txn);
                if first != sight.txn {
                    found.push(format!(
                        "{} and {} both read key {key} up to {}, then appended {:?} and {:?}",
                        self.name(first),
                        self.name(sight.txn),
                        last(sight.foreign()),
                        self.own[first][key],
                        self.own[sight.txn][key]
                    ));
                }
            }
        }
        for line in found {
            self.find(Kind::LostUpdate, line);
        }
    }

    fn graph(&self) -> Graph {
        let mut graph = Graph::default();
        let points = Points::lay(self, &mut graph);
        for key in self.orders.iter().filter(|(_, order)| order.sound).map(|(key, _)| *key) {
            self.draw_key(key, &points, &mut graph);
        }
        self.draw_time(&points, &mut graph);
        graph.seal();
        graph
    }

    fn draw_key(&self, key: u64, points: &Points, graph: &mut Graph) {
        let placed = |value: &u64| {
            let place = self.places.get(value).filter(|place| self.counts[place.txn])?;
            Some((*value, *place))
        };
        let list = &self.orders[&key].list;
        let elements: Vec<Option<(u64, Place)>> = list.iter().map(placed).collect();
        let chain: Vec<(u64, Place)> = elements.iter().flatten().copied().collect();
        let before = |graph: &mut Graph, class: Class, one: (u64, Place), two: (u64, Place)| {
            if one.1.txn != two.1.txn {
                let why = Why::Before { key, first: one.0, second: two.0 };
                let to = points.of(two.1.txn, two.1.op);
                graph.edge(points.commit(one.1.txn), to, class, why);
            }
        };
        for pair in chain.windows(2) {
            before(graph, Class::Ww, pair[0], pair[1]);
        }

        // Committed, and not in the longest list: they follow it, in an order not known. All
        // edges from readers of the whole list to them go through one joint.
        let in_list: BTreeSet<u64> = list.iter().copied().collect();
        let appends = self.appends.get(&key).into_iter().flatten();
        let later: Vec<(u64, Place)> =
            appends.filter(|value| !in_list.contains(*value)).filter_map(placed).collect();
        let later_txns: BTreeSet<usize> = later.iter().map(|(_, place)| place.txn).collect();
        let joint = graph.node(None);
        for (value, place) in &later {
            if let Some(end) = chain.last() {
                before(graph, Class::WwUnread, *end, (*value, *place));
            }
            let why = Why::Missed { key, value: *value };
            graph.edge(joint, points.commit(place.txn), Class::Rw, why);
        }

        let mut has_detour = false;
        for sight in self.sights[&key].iter().filter(|sight| self.counts[sight.txn]) {
            let reader = points.of(sight.txn, sight.op);
            let level = self.history[sight.txn].level;
            let class = if level == Level::ReadCommitted { Class::RwStatement } else { Class::Rw };
            let end = sight.n_foreign.checked_sub(1).and_then(|at| elements[at]);
            // An intermediate read is no read of a commit.
            if let Some((value, place)) = end.filter(|(_, place)| place.last) {
                graph.edge(points.commit(place.txn), reader, Class::Wr, Why::Saw { key, value });
            }
            if let Some(next) = elements.get(sight.n_foreign) {
                if let Some((value, place)) = next.filter(|(_, place)| place.txn != sight.txn) {
                    let why = Why::Missed { key, value };
                    graph.edge(reader, points.commit(place.txn), class, why);
                }
                continue;
            }
            if level != Level::Serializable || !later_txns.contains(&sight.txn) {
                graph.edge(reader, joint, class, Why::Time);
                continue;
            }
            // Reader and commit are one point here, and the joint would lead back to it. One
            // such transaction is legal; a second is a lost update.
            if !std::mem::replace(&mut has_detour, true) {
                for (value, place) in later.iter().filter(|(_, place)| place.txn != sight.txn) {
                    let why = Why::Missed { key, value: *value };
                    graph.edge(reader, points.commit(place.txn), class, why);
                }
            }
        }
    }

    /// Real time, with a joint for every end: each leads to the next, so that a beginning hangs
    /// on the last end before it, and n transactions need 3n edges instead of n².
    fn draw_time(&self, points: &Points, graph: &mut Graph) {
        let counted = || (0..self.history.len()).filter(|txn| self.counts[*txn]);
        let is_answered = |txn: &usize| {
            let txn = &self.history[*txn];
            txn.outcome == Outcome::Committed && txn.begun <= txn.ended
        };
        let mut ends: Vec<(u64, usize)> =
            counted().filter(is_answered).map(|txn| (self.history[txn].ended, txn)).collect();
        ends.sort_unstable();
        let mut joints: Vec<usize> = Vec::new();
        for (_, txn) in &ends {
            let joint = graph.node(None);
            graph.edge(points.commit(*txn), joint, Class::Rt, Why::Time);
            if let Some(previous) = joints.last() {
                graph.edge(*previous, joint, Class::Rt, Why::Time);
            }
            joints.push(joint);
        }
        for txn in counted() {
            let n_before = ends.partition_point(|(ended, _)| *ended < self.history[txn].begun);
            if let Some(joint) = n_before.checked_sub(1).map(|at| joints[at]) {
                graph.edge(joint, points.of(txn, 0), Class::Rt, Why::Time);
            }
        }
    }

    fn explain(&mut self, graph: &Graph, cycle: &[Edge]) {
        // A joint stands between two transactions: the edge into it says what kind of step this
        // is, the edge out of it why.
        let mut steps: Vec<(usize, Class, Why, usize)> = Vec::new();
        let Some(turn) = cycle.iter().position(|edge| graph.owner(edge.from).is_some()) else {
            return;
        };
        let mut open: Option<(usize, Class)> = None;
        for edge in cycle[turn..].iter().chain(&cycle[..turn]) {
            let (from, class) = match (open, graph.owner(edge.from)) {
                (_, Some(from)) => (from, edge.class),
                (Some(open), None) => open,
                (None, None) => continue,
            };
            match graph.owner(edge.to) {
                None => open = Some((from, class)),
                Some(_) if class == Class::Step => {}
                Some(to) => steps.push((from, class, edge.why, to)),
            }
        }
        let is = |class: Class| steps.iter().filter(move |step| step.1 == class);
        let all_serializable =
            is(Class::Rw).all(|step| self.history[step.0].level == Level::Serializable);
        let kind = match is(Class::Rw).count() {
            _ if is(Class::RwStatement).count() > 0 => Kind::Monotonic,
            _ if is(Class::Rt).count() > 0 => Kind::RealTime,
            0 if is(Class::Wr).count() > 0 => Kind::CircularInformation,
            0 => Kind::WriteCycle,
            1 => Kind::GSingle,
            _ if all_serializable => Kind::G2,
            _ => Kind::GNonadjacent,
        };
        let steps: Vec<String> = steps.iter().map(|step| self.describe(*step)).collect();
        self.find(kind, steps.join("; "));
    }

    fn describe(&self, (from, class, why, to): (usize, Class, Why, usize)) -> String {
        let arrow = match class {
            Class::Ww | Class::WwUnread => "ww",
            Class::Wr => "wr",
            Class::Rw | Class::RwStatement => "rw",
            Class::Rt | Class::Step => "rt",
        };
        let (a, b) = (self.name(from), self.name(to));
        let reason = match why {
            Why::Before { key, first, second } => {
                format!("key {key} has {first} of {a} before {second} of {b}")
            }
            Why::Saw { key, value } => format!("{b} read key {key} up to {value} of {a}"),
            Why::Missed { key, value } => format!("{a} read key {key} without {value} of {b}"),
            Why::Time => {
                let (from, to) = (&self.history[from], &self.history[to]);
                format!("{a} ended at {}, {b} began at {}", from.ended, to.begun)
            }
        };
        format!("{a} -{arrow}-> {b} ({reason})")
    }
}

/// The nodes of the transactions that count: see the table above. A transaction's are numbered in
/// a row, from `first`.
struct Points {
    first: Vec<usize>,
    commit: Vec<usize>,
}

impl Points {
    fn lay(case: &Case<'_>, graph: &mut Graph) -> Points {
        let mut points = Points { first: Vec::new(), commit: Vec::new() };
        for (at, txn) in case.history.iter().enumerate() {
            let n_points = match txn.level {
                _ if !case.counts[at] => 0,
                Level::ReadCommitted => txn.ops.len() + 1,
                Level::RepeatableRead => 2,
                Level::Serializable => 1,
            };
            let nodes: Vec<usize> = (0..n_points).map(|_| graph.node(Some(at))).collect();
            for pair in nodes.windows(2) {
                graph.edge(pair[0], pair[1], Class::Step, Why::Time);
            }
            points.first.push(nodes.first().copied().unwrap_or(usize::MAX));
            points.commit.push(nodes.last().copied().unwrap_or(usize::MAX));
        }
        points
    }

    fn commit(&self, txn: usize) -> usize {
        self.commit[txn]
    }

    /// Where an operation takes place; at most at the commit, which a snapshot is never past.
    fn of(&self, txn: usize, op: usize) -> usize {
        match self.commit[txn] - self.first[txn] {
            0 | 1 => self.first[txn],
            n_statements => self.first[txn] + op.min(n_statements),
        }
    }
}

fn longest<'s, 'a>(sights: &'s [Sight<'a>]) -> Option<&'s Sight<'a>> {
    // The first of the longest, so that a report does not depend on who read last.
    sights.iter().rev().max_by_key(|sight| sight.n_foreign)
}

fn common<'a>(list: &'a [u64], other: &[u64]) -> &'a [u64] {
    &list[..list.iter().zip(other).take_while(|(a, b)| a == b).count()]
}

fn last(list: &[u64]) -> String {
    list.last().map_or("nothing".into(), u64::to_string)
}

/// A list as a report shows it: a few elements on both sides of where it parts from `other`.
fn around(list: &[u64], other: &[u64]) -> String {
    const N_SHOWN: usize = 4;
    let parting = common(list, other).len();
    let from = parting.saturating_sub(N_SHOWN);
    let to = list.len().min(parting + N_SHOWN);
    let shown: Vec<String> = list[from..to].iter().map(u64::to_string).collect();
    let dots = |hidden: bool, text: &'static str| if hidden { text } else { "" };
    let (left, right) = (dots(from > 0, ".., "), dots(to < list.len(), ", .."));
    format!("[{left}{}{right}]", shown.join(", "))
}

#[cfg(test)]
mod tests;
