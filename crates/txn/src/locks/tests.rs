//! Each story is a list of steps with the answer expected beside it.
//!
//! `T1 x b` asks for an exclusive lock on key b, `T1 s a-c` for a shared one on the range,
//! `T1 x! b` does not wait, `T1 done` releases. Answers: `ok`, `waits T2,T3`, `refused`, and for
//! releases the transactions that go on.

use super::*;
use std::collections::HashMap;

struct Story {
    table: LockTable,
    now: Instant,
    tickets: HashMap<Ticket, TxnId>,
}

impl Story {
    fn step(&mut self, step: &str) -> String {
        let words: Vec<&str> = step.split_whitespace().collect();
        let txn = TxnId(words[0][1..].parse().unwrap());
        match words[1] {
            "done" => {
                let woken = self.table.release(txn);
                self.names(woken)
            }
            "cancel" => {
                let own = self.tickets.iter().filter(|(_, owner)| **owner == txn);
                let ticket = *own.map(|(ticket, _)| ticket).max().unwrap();
                let woken = self.table.cancel(ticket);
                self.names(woken)
            }
            "escalate" => {
                let keys: Vec<Key> = (0..300u32).map(|n| Key::from(format!("k{n:04}"))).collect();
                if self.table.escalate(txn, &keys) { "ok".into() } else { "refused".into() }
            }
            ask => {
                let mode =
                    if ask.starts_with('x') { LockMode::Exclusive } else { LockMode::Shared };
                let wait = if ask.ends_with('!') { Wait::NoWait } else { Wait::Block };
                let target = match words[2].split_once('-') {
                    Some((start, end)) => {
                        Target::Range(KeyRange::new(start.to_owned(), end.to_owned()))
                    }
                    None => Target::Key(words[2].to_owned().into()),
                };
                match self.table.request(self.now, txn, target, mode, wait) {
                    Answer::Granted => "ok".into(),
                    Answer::Refused => "refused".into(),
                    Answer::Waits(ticket) => {
                        self.tickets.insert(ticket, txn);
                        let waits = self.table.waits_for(txn);
                        let mut blockers = waits.last().unwrap().2.clone();
                        blockers.sort_unstable();
                        let names: Vec<String> =
                            blockers.iter().map(|txn| format!("T{txn}")).collect();
                        format!("waits {}", names.join(","))
                    }
                }
            }
        }
    }

    fn names(&self, tickets: Vec<Ticket>) -> String {
        let names: Vec<String> =
            tickets.iter().map(|ticket| format!("T{}", self.tickets[ticket])).collect();
        names.join(",")
    }
}

#[allow(clippy::disallowed_methods)]
fn check(script: &str) {
    let mut story =
        Story { table: LockTable::default(), now: Instant::now(), tickets: HashMap::new() };
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (step, expected) = line.split_once("->").unwrap();
        assert_eq!(story.step(step.trim()), expected.trim(), "at {line:?}");
    }
}

#[test]
fn shared_locks_share_and_exclusive_ones_wait_in_order() {
    check(
        "T1 s b -> ok
         T2 s b -> ok
         T3 x b -> waits T1,T2
         T4 s b -> waits T3
         T1 done ->
         T2 done -> T3
         T3 done -> T4
         T4 done ->",
    );
}

#[test]
fn a_holder_that_wants_more_goes_before_those_who_wait() {
    check(
        "T1 s b -> ok
         T2 x b -> waits T1
         T1 x b -> ok
         T1 done -> T2",
    );
}

#[test]
fn ranges_keep_phantoms_out() {
    check(
        "T1 s a-m -> ok
         T2 x c -> waits T1
         T2 x! n -> ok
         T3 s c -> waits T2
         T4 x! d -> refused
         T1 done -> T2
         T2 done -> T3",
    );
}

#[test]
fn a_range_waits_for_the_keys_in_it_and_later_keys_wait_for_the_range() {
    check(
        "T1 x c -> ok
         T2 s a-m -> waits T1
         T3 x d -> waits T2
         T3 x! z -> ok
         T1 done -> T2
         T2 done -> T3",
    );
}

#[test]
fn giving_up_lets_those_behind_go_on() {
    check(
        "T1 s b -> ok
         T2 x b -> waits T1
         T3 s b -> waits T2
         T2 cancel -> T3
         T1 done ->
         T3 done ->",
    );
    check(
        "T1 x c -> ok
         T2 s a-m -> waits T1
         T3 x d -> waits T2
         T2 cancel -> T3",
    );
}

#[test]
fn what_is_held_is_granted_again() {
    check(
        "T1 x a-m -> ok
         T1 s c -> ok
         T1 x c -> ok
         T1 s b-d -> ok
         T2 s! c -> refused",
    );
}

#[test]
fn many_keys_become_one_range_unless_somebody_is_in_between() {
    check(
        "T1 escalate -> ok
         T2 x! k0150 -> refused
         T2 x! k0150a -> refused
         T2 x! k0300 -> ok",
    );
    check(
        "T1 x k0150a -> ok
         T2 escalate -> refused",
    );
}

/// Random requests against a model that knows only "no two conflicting holders" and "nobody who
/// could be granted is left waiting".
#[test]
#[allow(clippy::disallowed_methods)]
fn random_requests_never_conflict_and_never_hang() {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut table = LockTable::default();
        let now = Instant::now();
        for _ in 0..300 {
            let txn = TxnId(rng.random_range(1..7));
            let letter = |n: u8| Key::from(vec![b'a' + n]);
            let start = rng.random_range(0..8u8);
            let target = if rng.random_bool(0.3) {
                Target::Range(KeyRange::new(
                    letter(start),
                    letter(start + rng.random_range(1..4u8)),
                ))
            } else {
                Target::Key(letter(start))
            };
            let mode = if rng.random_bool(0.5) { LockMode::Shared } else { LockMode::Exclusive };
            if rng.random_bool(0.25) || !table.waits_for(txn).is_empty() {
                table.release(txn);
            } else {
                table.request(now, txn, target, mode, Wait::Block);
            }
            let rows = table.rows(now);
            for (n, a) in rows.iter().enumerate() {
                for b in &rows[n + 1..] {
                    let clash = a.granted && b.granted && a.txn != b.txn;
                    let clash = clash && conflict(a.mode, b.mode) && a.target.overlaps(&b.target);
                    assert!(!clash, "seed {seed}: {a:?} and {b:?} are both granted");
                }
                assert!(
                    a.granted || !a.blocked_by.is_empty(),
                    "seed {seed}: {a:?} waits for nobody"
                );
            }
        }
    }
}
