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
            "all" => {
                let keys: Vec<Key> = (0..300u32).map(|n| Key::from(format!("k{n:04}"))).collect();
                let taken = self.table.request_all(self.now, txn, &keys, LockMode::Exclusive);
                if taken { "ok".into() } else { "refused".into() }
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
                        let blockers = waits.last().unwrap().blockers.keys();
                        let names: Vec<String> = blockers.map(|txn| format!("T{txn}")).collect();
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
fn many_keys_are_taken_at_once_and_nothing_in_between() {
    check(
        "T1 all -> ok
         T2 x! k0150 -> refused
         T2 x! k0150a -> ok
         T2 s k0100a-k0101 -> ok
         T2 s k0100-k0102 -> waits T1
         T3 x k0007 -> waits T1
         T4 x k0007 -> waits T1,T3
         T1 done -> T3,T2
         T3 done -> T4",
    );
    check(
        "T1 x k0150a -> ok
         T2 all -> ok
         T1 x! k0150 -> refused",
    );
    check(
        "T1 s k0150 -> ok
         T2 all -> refused",
    );
    check(
        "T1 x k0150 -> ok
         T2 s k0149-k0151 -> waits T1
         T3 all -> refused",
    );
}

#[test]
fn who_asks_again_comes_back_to_where_it_stood() {
    let now = base::Env::seeded(1, std::sync::Arc::new(base::env::MemoryNet::default())).now();
    let later = now + std::time::Duration::from_secs(5);
    let mut table = LockTable::default();
    let ask = |table: &mut LockTable, since, txn| {
        let target = Target::Key(Key::from_static(b"k"));
        table.request(since, TxnId(txn), target, LockMode::Exclusive, Wait::Block)
    };
    assert_eq!(ask(&mut table, now, 1), Answer::Granted);
    let Answer::Waits(lost) = ask(&mut table, now, 2) else { panic!() };
    let Answer::Waits(behind) = ask(&mut table, later, 3) else { panic!() };
    assert!(table.cancel(lost).is_empty());
    let Answer::Waits(again) = ask(&mut table, now, 2) else { panic!() };
    assert_eq!(table.release(TxnId(1)), [again]);
    assert_eq!(table.release(TxnId(2)), [behind]);
}

#[test]
fn a_load_that_outgrows_its_memory_locks_ranges_but_nobody_elses_keys() {
    let now = base::Env::seeded(1, std::sync::Arc::new(base::env::MemoryNet::default())).now();
    let mut table = LockTable::default();
    table.n_bulk_bytes = table.limits.bytes_max;
    let (load, other) = (TxnId(1), TxnId(2));
    let key =
        |relation: u8, n: u16| Key::from([&[0, 0, 0, relation][..], &n.to_be_bytes()].concat());
    let ask = |table: &mut LockTable, key: &Key, wait| {
        table.request(now, other, Target::Key(key.clone()), LockMode::Exclusive, wait)
    };
    assert_eq!(ask(&mut table, &key(7, 301), Wait::NoWait), Answer::Granted);
    for call in 0..3 {
        let of = |relation| (0..200).map(move |n| key(relation, call * 400 + n * 2));
        let keys: Vec<Key> = of(7).chain(of(9)).collect();
        assert!(table.request_all(now, load, &keys, LockMode::Exclusive));
    }
    // Cut where the other one is, and between the relations.
    let mut ranges: Vec<_> = table.holds.values().map(|hold| hold.range.clone()).collect();
    ranges.sort_unstable_by(|a, b| a.start.cmp(&b.start));
    let hull = |first: Key, last: Key| KeyRange::new(first, base::key::successor(&last));
    let expected = [
        hull(key(7, 0), key(7, 300)),
        hull(key(7, 302), key(7, 1198)),
        hull(key(9, 0), key(9, 1198)),
    ];
    assert_eq!(ranges, expected);
    assert_eq!(ask(&mut table, &key(7, 303), Wait::NoWait), Answer::Refused, "truly locked");
    assert_eq!(ask(&mut table, &key(8, 1), Wait::NoWait), Answer::Granted);
    assert_eq!(ask(&mut table, &key(9, 1199), Wait::NoWait), Answer::Granted);
    let Answer::Waits(ticket) = ask(&mut table, &key(9, 5), Wait::Block) else { panic!() };
    assert_eq!(table.release(load), [ticket]);
    assert_eq!(table.n_bulk_bytes, table.limits.bytes_max);
}

/// What calls cost, in requests, locks and keys looked at.
mod cost {
    use super::*;

    const N: u64 = 1000;

    fn now() -> Instant {
        base::Env::seeded(1, std::sync::Arc::new(base::env::MemoryNet::default())).now()
    }

    fn ask(table: &mut LockTable, now: Instant, txn: u64, target: &Target) -> Answer {
        table.request(now, TxnId(txn), target.clone(), LockMode::Exclusive, Wait::Block)
    }

    fn steps(table: &LockTable) -> u64 {
        table.steps.n.take()
    }

    #[test]
    fn a_release_looks_at_the_head_of_a_queue_only() {
        let whole = KeyRange::new(&b"a"[..], &b"z"[..]);
        for target in [Target::Key(Key::from_static(b"k")), Target::Range(whole)] {
            let (mut table, now) = (LockTable::default(), now());
            for txn in 0..N {
                ask(&mut table, now, txn, &target);
            }
            steps(&table);
            for txn in 1..N {
                let waits = table.waits_for(TxnId(N - 1));
                assert_eq!(waits[0].blockers.len(), if txn == N - 1 { 1 } else { 2 });
                drop(waits);
                steps(&table);
                assert_eq!(table.release(TxnId(txn - 1)).len(), 1);
                let n = steps(&table);
                assert!(n <= 8, "{n} looks for one grant of {target:?}");
            }
        }
    }

    #[test]
    fn whom_one_waits_for_is_few() {
        let (mut table, now) = (LockTable::default(), now());
        let target = Target::Key(Key::from_static(b"k"));
        for txn in 0..N {
            ask(&mut table, now, txn, &target);
        }
        steps(&table);
        (1..N).for_each(|txn| drop(table.waits_for(TxnId(txn))));
        let n = steps(&table);
        assert!(n <= 4 * N, "{n} looks for the edges of {N}");
    }

    #[test]
    fn a_release_of_many_keys_is_linear_in_them_while_ranges_wait() {
        const N_KEYS: u32 = 100_000;
        let (mut table, now) = (LockTable::default(), now());
        let key = |n: u32| Key::copy_from_slice(&n.to_be_bytes());
        for n in 0..N_KEYS {
            ask(&mut table, now, u64::from(n % 2), &Target::Key(key(n)));
        }
        for txn in 2..12 {
            ask(&mut table, now, txn, &Target::Range(KeyRange::new(key(0), key(N_KEYS))));
        }
        steps(&table);
        assert!(table.release(TxnId(0)).is_empty());
        let n = steps(&table);
        assert!(n <= u64::from(N_KEYS), "{n} looks for half of {N_KEYS} keys");
        assert_eq!(table.release(TxnId(1)).len(), 1);
        let n = steps(&table);
        assert!(n <= u64::from(N_KEYS), "{n} looks for the other half");
    }
}
