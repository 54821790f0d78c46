//! Linearizability of single registers, judged from outside.
//!
//! Every operation must seem to happen at one moment between its call and its answer (Herlihy &
//! Wing, 1990). The search for such an order is Wing & Gong's (1993) with Lowe's memo ("Testing
//! for linearizability", 2017), key by key, as in Porcupine: take an operation that no other one
//! must precede, apply it, go on; where nothing fits, go back; never enter the same set of
//! applied operations with the same value twice.
//!
//! ```text
//!  write 1   |-----|                      read 1 before read nothing? Read 1 ended before the
//!  read 1       |-----|                   other read began, so write 1, read 1, read nothing is
//!  read -                 |----|          the only order, and the last does not fit: a violation
//! ```
//!
//! Values are unique for each key, and that keeps the search almost straight:
//!
//! * A value that is gone does not return. It may be replaced only once all who read it are done.
//! * A read that fits now may be taken now: it changes nothing for those behind it. So may a
//!   refused compare-and-set, and only writes need to be tried one after the other.
//! * A write happens before the first answer that shows its value. So an unanswered write that
//!   somebody read is bounded like any other.
//! * An unanswered write whose value nobody read can be left out: in an order that has it, nothing
//!   between it and the next write depends on it, so the order without it is as good. One thing
//!   does depend: a compare-and-set that was refused because this write stood in its way. Keys
//!   with refused ones keep such writes, as fillers that are put in only where a refusal needs
//!   one, the earliest first, since one is as good as the other.
//!
//! Never asked: what a read without an answer would have shown. The search is bounded; a key on
//! which it gives up is named in [`Report::undecided`], neither good nor bad.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// The register of a key is `None` until the first write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read(Option<u64>),
    Write(u64),
    /// `worked` is what the answer said; without an answer it says nothing.
    CompareAndSet {
        from: u64,
        to: u64,
        worked: bool,
    },
}

/// `begun` and `ended` are the client's virtual time in ns. Without an answer `ended` is
/// `u64::MAX`: the operation takes effect at any time later, or never. Values written to a key are
/// unique, those of refused compare-and-sets aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub key: u64,
    pub begun: u64,
    pub ended: u64,
    pub action: Action,
}

impl Operation {
    fn is_answered(&self) -> bool {
        self.ended != u64::MAX
    }

    /// What the operation surely saw, if it has to have a place in the order.
    fn seen(&self) -> Option<u64> {
        match self.action {
            Action::Read(value) => value,
            Action::CompareAndSet { from, worked: true, .. } => Some(from),
            Action::Write(_) | Action::CompareAndSet { .. } => None,
        }
    }

    /// What the operation wrote, if it took effect.
    fn written(&self) -> Option<u64> {
        match self.action {
            Action::Write(value) => Some(value),
            Action::CompareAndSet { to, worked, .. } if worked || !self.is_answered() => Some(to),
            Action::Read(_) | Action::CompareAndSet { .. } => None,
        }
    }

    /// The value that was not there when a compare-and-set was refused.
    fn refused(&self) -> Option<u64> {
        match self.action {
            Action::CompareAndSet { from, worked: false, .. } if self.is_answered() => Some(from),
            _ => None,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_answered() {
            true => write!(f, "{}..{} ", self.begun, self.ended)?,
            false => write!(f, "{}.. ", self.begun)?,
        }
        match self.action {
            Action::Read(None) => write!(f, "read nothing")?,
            Action::Read(Some(value)) => write!(f, "read {value}")?,
            Action::Write(value) => write!(f, "write {value}")?,
            Action::CompareAndSet { from, to, .. } => write!(f, "compare {from} and set {to}")?,
        }
        if self.refused().is_some() {
            write!(f, ", refused")?;
        }
        if self.is_answered() { Ok(()) } else { write!(f, ", no answer") }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub n_operations: usize,
    pub n_keys: usize,
    /// States in which the search had to choose, over all keys.
    pub n_states: usize,
    /// Keys on which the search gave up.
    pub undecided: Vec<u64>,
}

/// Operations on one key that no order explains. None can be left out: it takes part in the
/// contradiction, or wrote what another one saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub key: u64,
    pub reason: &'static str,
    /// In order of their beginnings.
    pub window: Vec<Operation>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}: {}", self.key, self.reason)?;
        self.window.iter().try_for_each(|operation| write!(f, "\n  {operation}"))
    }
}

/// Judges every key; the first broken one is reported. Linear in practice, exponential in the
/// number of concurrent writes at worst, and bounded.
pub fn check(history: &[Operation]) -> Result<Report, Violation> {
    let mut by_key: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    for operation in history {
        by_key.entry(operation.key).or_default().push(*operation);
    }
    let mut report =
        Report { n_operations: history.len(), n_keys: by_key.len(), ..Report::default() };
    for (key, mut operations) in by_key {
        operations.sort_by_key(|operation| (operation.begun, operation.ended));
        if let Some(violation) = malformed(key, &operations) {
            return Err(violation);
        }
        let (verdict, n_states) = judge(&operations, N_STATES_MAX);
        report.n_states += n_states;
        match verdict {
            Verdict::Good => {}
            Verdict::Undecided => report.undecided.push(key),
            Verdict::Broken => {
                let reason = "no order explains these operations";
                return Err(Violation { key, reason, window: narrow(&operations) });
            }
        }
    }
    Ok(report)
}

fn malformed(key: u64, operations: &[Operation]) -> Option<Violation> {
    let mut writers: BTreeMap<u64, &Operation> = BTreeMap::new();
    for operation in operations {
        if operation.ended < operation.begun {
            let reason = "malformed history: an operation ended before it began";
            return Some(Violation { key, reason, window: vec![*operation] });
        }
        let Some(value) = operation.written() else { continue };
        if let Some(other) = writers.insert(value, operation) {
            let reason = "malformed history: a value is written twice";
            return Some(Violation { key, reason, window: vec![*other, *operation] });
        }
    }
    None
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Broken,
    Undecided,
}

/// A value of the register, numbered; [`NOTHING`] and [`OTHER`] are always there.
type Value = usize;

/// Before the first write.
const NOTHING: Value = 0;
/// All values that no operation names but the one that writes it.
const OTHER: Value = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Read(Value),
    Write(Value),
    Swap(Value, Value),
    Refused(Value),
}

/// An operation that has a place in the order.
#[derive(Clone, Copy, Debug)]
struct Call {
    begun: u64,
    /// The answer, or an earlier one that shows this operation's effect.
    ended: u64,
    what: What,
}

/// An unanswered write of which nobody saw anything, unless it made a compare-and-set fail.
#[derive(Clone, Copy, Debug)]
struct Filler {
    begun: u64,
    /// For a compare-and-set, the value that it needs.
    from: Option<Value>,
    to: Value,
}

#[derive(Debug, Default)]
struct Problem {
    /// By beginning.
    calls: Vec<Call>,
    /// Writes of [`OTHER`], by beginning.
    plain: Vec<Filler>,
    /// Fillers that differ: compare-and-sets, and values that somebody names.
    special: Vec<Filler>,
    n_values: usize,
    /// An answer shows a write that began later.
    is_absurd: bool,
}

impl Problem {
    fn of(operations: &[Operation]) -> Problem {
        let named: BTreeSet<u64> = operations
            .iter()
            .filter_map(|operation| match operation.action {
                Action::Read(value) => value.filter(|_| operation.is_answered()),
                Action::CompareAndSet { from, .. } => Some(from),
                Action::Write(_) => None,
            })
            .collect();
        let numbers: BTreeMap<u64, Value> = named.into_iter().zip(OTHER + 1..).collect();
        let number = |value: u64| numbers.get(&value).copied().unwrap_or(OTHER);
        let bounds = bounds(operations);
        let has_refused = operations.iter().any(|operation| operation.refused().is_some());
        let mut problem = Problem { n_values: OTHER + 1 + numbers.len(), ..Problem::default() };
        for operation in operations {
            let (begun, from) = (operation.begun, operation.refused());
            let shown = operation.written().and_then(|value| bounds.get(&value)).copied();
            let ended = operation.ended.min(shown.unwrap_or(u64::MAX));
            let what = match operation.action {
                Action::Read(None) => What::Read(NOTHING),
                Action::Read(Some(value)) => What::Read(number(value)),
                Action::Write(value) => What::Write(number(value)),
                Action::CompareAndSet { .. } if from.is_some() => {
                    What::Refused(from.map_or(OTHER, number))
                }
                Action::CompareAndSet { from, to, .. } => What::Swap(number(from), number(to)),
            };
            if ended != u64::MAX {
                problem.is_absurd |= ended < begun;
                problem.calls.push(Call { begun, ended, what });
                continue;
            }
            match what {
                _ if !has_refused => {}
                What::Write(OTHER) => {
                    problem.plain.push(Filler { begun, from: None, to: OTHER });
                }
                What::Write(to) => problem.special.push(Filler { begun, from: None, to }),
                What::Swap(from, to) => {
                    problem.special.push(Filler { begun, from: Some(from), to });
                }
                What::Read(_) | What::Refused(_) => {}
            }
        }
        problem
    }
}

/// For each value that an answer shows, when at the latest it was written: at the first such
/// answer, and for the `from` of a compare-and-set no later than its `to`.
fn bounds(operations: &[Operation]) -> BTreeMap<u64, u64> {
    let mut swapped_from: BTreeMap<u64, u64> = BTreeMap::new();
    let mut shown: Vec<(u64, u64)> = Vec::new();
    for operation in operations {
        if let (Action::CompareAndSet { from, .. }, Some(to)) =
            (operation.action, operation.written())
        {
            swapped_from.insert(to, from);
        }
        if let Some(value) = operation.seen().filter(|_| operation.is_answered()) {
            shown.push((operation.ended, value));
        }
    }
    // Earliest first: what is reached once is not reached better.
    shown.sort_unstable();
    let mut bounds = BTreeMap::new();
    for (ended, value) in shown {
        let mut next = Some(value);
        while let Some(value) = next.filter(|value| !bounds.contains_key(value)) {
            bounds.insert(value, ended);
            next = swapped_from.get(&value).copied();
        }
    }
    bounds
}

/// States that the search of one key may enter: some 100 bytes each.
const N_STATES_MAX: usize = 500_000;

#[derive(Clone, Copy, Debug)]
enum Move {
    Call(usize),
    Plain,
    Special(usize),
}

/// A state with several ways on, and how to come back to it.
struct Fork {
    moves: Vec<Move>,
    n_tried: usize,
    n_trail: usize,
    value: Value,
    first_open: usize,
}

struct Search<'a> {
    problem: &'a Problem,
    value: Value,
    is_done: Vec<bool>,
    n_done: usize,
    /// Calls before it are done.
    first_open: usize,
    /// Open calls that need each value, and refusals of it.
    n_wanted: Vec<usize>,
    n_refusals: Vec<usize>,
    n_plain: usize,
    is_used: Vec<bool>,
    trail: Vec<Move>,
}

/// The verdict, and the states that it took.
fn judge(operations: &[Operation], n_states_max: usize) -> (Verdict, usize) {
    let is_refused = |operation: &Operation| operation.refused().is_some();
    let rest: Vec<Operation> = operations.iter().filter(|o| !is_refused(o)).copied().collect();
    // What is broken without the refusals is broken, and that is soon seen: they are what makes
    // one order of unseen writes differ from another.
    let without = search(&rest, n_states_max);
    if without.0 == Verdict::Broken || rest.len() == operations.len() {
        return without;
    }
    let with = search(operations, n_states_max);
    (with.0, without.1 + with.1)
}

fn search(operations: &[Operation], n_states_max: usize) -> (Verdict, usize) {
    let problem = Problem::of(operations);
    if problem.is_absurd {
        return (Verdict::Broken, 0);
    }
    let mut n_wanted = vec![0; problem.n_values];
    let mut n_refusals = vec![0; problem.n_values];
    for call in &problem.calls {
        match call.what {
            What::Read(value) | What::Swap(value, _) => n_wanted[value] += 1,
            What::Refused(value) => n_refusals[value] += 1,
            What::Write(_) => {}
        }
    }
    let mut search = Search {
        problem: &problem,
        value: NOTHING,
        is_done: vec![false; problem.calls.len()],
        n_done: 0,
        first_open: 0,
        n_wanted,
        n_refusals,
        n_plain: 0,
        is_used: vec![false; problem.special.len()],
        trail: Vec::new(),
    };
    search.run(n_states_max)
}

impl Search<'_> {
    fn run(&mut self, n_states_max: usize) -> (Verdict, usize) {
        // With the plain fillers used: who comes with fewer can do all that the other could.
        let mut entered: HashMap<Vec<u64>, usize> = HashMap::new();
        let mut forks: Vec<Fork> = Vec::new();
        loop {
            self.settle();
            if self.n_done == self.problem.calls.len() {
                return (Verdict::Good, entered.len());
            }
            if entered.len() >= n_states_max {
                return (Verdict::Undecided, entered.len());
            }
            let n_known = entered.entry(self.state()).or_insert(usize::MAX);
            if self.n_plain < *n_known {
                *n_known = self.n_plain;
                forks.push(Fork {
                    moves: self.moves(),
                    n_tried: 0,
                    n_trail: self.trail.len(),
                    value: self.value,
                    first_open: self.first_open,
                });
            }
            let next = loop {
                let Some(fork) = forks.last_mut() else {
                    return (Verdict::Broken, entered.len());
                };
                let Some(next) = fork.moves.get(fork.n_tried).copied() else {
                    forks.pop();
                    continue;
                };
                fork.n_tried += 1;
                self.value = fork.value;
                self.first_open = fork.first_open;
                let n_trail = fork.n_trail;
                self.undo(n_trail);
                break next;
            };
            self.apply(next);
        }
    }

    /// Calls that no open one must precede.
    fn candidates(&self) -> impl Iterator<Item = usize> {
        let calls = &self.problem.calls;
        let open = || (self.first_open..calls.len()).filter(|at| !self.is_done[*at]);
        let horizon = self.horizon();
        open().take_while(move |at| calls[*at].begun <= horizon)
    }

    /// The first end of an open call: what begins later comes after it.
    fn horizon(&self) -> u64 {
        let mut horizon = u64::MAX;
        for (at, call) in self.problem.calls.iter().enumerate().skip(self.first_open) {
            if call.begun > horizon {
                break;
            }
            if !self.is_done[at] {
                horizon = horizon.min(call.ended);
            }
        }
        horizon
    }

    /// Takes what can be taken at no risk.
    fn settle(&mut self) {
        while let Some(at) = self.safe() {
            self.apply(Move::Call(at));
        }
    }

    fn safe(&self) -> Option<usize> {
        self.candidates().find(|at| match self.problem.calls[*at].what {
            What::Read(value) => value == self.value,
            What::Refused(from) => from != self.value,
            // Nobody sees it, so it is best done before others.
            What::Write(OTHER) => self.n_wanted[self.value] == 0 && !self.may_hide(*at),
            What::Write(_) | What::Swap(..) => false,
        })
    }

    /// Whether a later place could let the write `at` replace a value that is refused after that.
    /// The value is yet to be written; fillers do not count, for none is needed before such a one.
    fn may_hide(&self, at: usize) -> bool {
        let is_refused = |value: Value| self.n_refusals[value] > 0;
        let calls = (self.first_open..).zip(&self.problem.calls[self.first_open..]);
        let before = calls.take_while(|(_, call)| call.begun <= self.problem.calls[at].ended);
        let mut open = before.filter(|(at, _)| !self.is_done[*at]);
        open.any(|(_, call)| match call.what {
            What::Write(value) | What::Swap(_, value) => is_refused(value),
            What::Read(_) | What::Refused(_) => false,
        })
    }

    fn moves(&self) -> Vec<Move> {
        let n_wanted = self.n_wanted[self.value];
        let mut moves = Vec::new();
        let mut is_blocked = false;
        for at in self.candidates() {
            match self.problem.calls[at].what {
                What::Write(_) if n_wanted == 0 => moves.push(Move::Call(at)),
                What::Swap(from, _) if from == self.value && n_wanted == 1 => {
                    moves.push(Move::Call(at));
                }
                What::Refused(_) => is_blocked = true,
                What::Read(_) | What::Write(_) | What::Swap(..) => {}
            }
        }
        if !is_blocked || n_wanted > 0 {
            return moves;
        }
        // Settled as the state is, the open refusal is of this very value.
        let horizon = self.horizon();
        let has_begun = |filler: &Filler| filler.begun <= horizon;
        if self.problem.plain.get(self.n_plain).is_some_and(has_begun) {
            moves.push(Move::Plain);
        }
        for (at, filler) in self.problem.special.iter().enumerate() {
            let fits = filler.from.is_none_or(|from| from == self.value);
            if fits && !self.is_used[at] && has_begun(filler) {
                moves.push(Move::Special(at));
            }
        }
        moves
    }

    fn apply(&mut self, step: Move) {
        self.trail.push(step);
        match step {
            Move::Plain => {
                self.n_plain += 1;
                self.value = OTHER;
            }
            Move::Special(at) => {
                self.is_used[at] = true;
                self.value = self.problem.special[at].to;
            }
            Move::Call(at) => {
                self.is_done[at] = true;
                self.n_done += 1;
                while self.is_done.get(self.first_open) == Some(&true) {
                    self.first_open += 1;
                }
                match self.problem.calls[at].what {
                    What::Read(value) => self.n_wanted[value] -= 1,
                    What::Refused(value) => self.n_refusals[value] -= 1,
                    What::Write(value) => self.value = value,
                    What::Swap(from, to) => {
                        self.n_wanted[from] -= 1;
                        self.value = to;
                    }
                }
            }
        }
    }

    /// Takes back all but the first `n_trail` moves; the caller restores the rest.
    fn undo(&mut self, n_trail: usize) {
        for step in self.trail.drain(n_trail..) {
            match step {
                Move::Plain => self.n_plain -= 1,
                Move::Special(at) => self.is_used[at] = false,
                Move::Call(at) => {
                    self.is_done[at] = false;
                    self.n_done -= 1;
                    match self.problem.calls[at].what {
                        What::Read(value) | What::Swap(value, _) => self.n_wanted[value] += 1,
                        What::Refused(value) => self.n_refusals[value] += 1,
                        What::Write(_) => {}
                    }
                }
            }
        }
    }

    /// The memo's key: the value, which calls are done, and which special fillers are used. Calls
    /// before the first open one are a number, those behind the last done one are nothing. A
    /// compare-and-set need not be told: what it is from is there before it and never after.
    fn state(&self) -> Vec<u64> {
        let mut state = vec![self.value as u64, self.first_open as u64];
        let fillers = self.problem.special.iter().zip(&self.is_used);
        let writes = fillers.filter(|(filler, _)| filler.from.is_none()).map(|(_, used)| used);
        let n_behind = self.n_done - self.first_open;
        let mut n_seen = 0;
        let calls = self.is_done[self.first_open..].iter().take_while(|is_done| {
            let goes_on = n_seen < n_behind;
            n_seen += usize::from(**is_done);
            goes_on
        });
        let bits: Vec<bool> = writes.chain(calls).copied().collect();
        for chunk in bits.chunks(64) {
            state.push(chunk.iter().rev().fold(0, |word, bit| word << 1 | u64::from(*bit)));
        }
        state
    }
}

/// The smallest broken part of a broken history. First its shortest beginning, by time; then what
/// the contradiction does not need goes, in ever smaller pieces (Zeller & Hildebrandt's ddmin,
/// 2002). What takes too long to judge counts as needed.
fn narrow(operations: &[Operation]) -> Vec<Operation> {
    let is_broken = |kept: &[(Operation, usize)]| {
        let operations: Vec<Operation> = kept.iter().map(|(operation, _)| *operation).collect();
        judge(&operations, N_STATES_MAX / 20).0 == Verdict::Broken
    };
    let mut ends: Vec<u64> = operations.iter().map(|operation| operation.ended).collect();
    ends.sort_unstable();
    ends.dedup();
    let n_good = ends.partition_point(|end| !is_broken(&beginning(operations, *end)));
    let mut kept = beginning(operations, ends.get(n_good).copied().unwrap_or(u64::MAX));
    loop {
        let n_before = kept.len();
        for needless in [is_pure, is_unseen] {
            let mut n_piece = kept.len();
            while n_piece > 0 {
                let may_go: Vec<usize> =
                    (0..kept.len()).filter(|at| needless(&kept, *at)).collect();
                for piece in may_go.chunks(n_piece).rev() {
                    let rest = (0..kept.len()).filter(|at| !piece.contains(at));
                    let rest: Vec<(Operation, usize)> = rest.map(|at| kept[at]).collect();
                    if is_broken(&rest) {
                        kept = rest;
                    }
                }
                n_piece /= 2;
            }
        }
        if kept.len() == n_before {
            break;
        }
    }
    kept.into_iter().map(|(_, at)| operations[at]).collect()
}

/// The history as it was at time `end`, with the places in the whole: what was under way then has
/// no answer yet. If it has an order then so has every beginning of it.
fn beginning(operations: &[Operation], end: u64) -> Vec<(Operation, usize)> {
    let mut begun = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        let is_over = operation.ended <= end;
        if operation.begun > end || !is_over && operation.refused().is_some() {
            continue;
        }
        let ended = if is_over { operation.ended } else { u64::MAX };
        begun.push((Operation { ended, ..*operation }, at));
    }
    begun
}

/// Operations that change nothing: without them, an order of all is an order of the rest.
fn is_pure(kept: &[(Operation, usize)], at: usize) -> bool {
    kept[at].0.written().is_none()
}

/// Writes that nobody saw: the same holds for them. Refusals need care, since without the write
/// the value before it would stand on, and must not be the one that was refused.
fn is_unseen(kept: &[(Operation, usize)], at: usize) -> bool {
    let write = &kept[at].0;
    let Some(value) = write.written() else { return false };
    let sees = |other: &Operation| match other.action {
        Action::CompareAndSet { from, .. } => from == value && other.written().is_some(),
        _ => other.seen() == Some(value),
    };
    let misses = |other: &Operation| {
        let Some(from) = other.refused() else { return false };
        let writer = kept.iter().find(|(writer, _)| writer.written() == Some(from));
        let may_precede = writer.is_some_and(|(writer, _)| writer.begun <= write.ended);
        may_precede && other.ended >= write.begun
    };
    !kept.iter().any(|(other, _)| sees(other) || misses(other))
}

#[cfg(test)]
mod tests;
