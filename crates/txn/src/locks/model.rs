//! The lock table against a model that is slow and obviously right, over random schedules.
//!
//! The model keeps two lists, of locks and of requests. A request has to wait if it conflicts with
//! another's lock, or (unless it is a holder's) with another's request before it. Each grant of the
//! table must be possible in the model at that moment. After each call no request may wait in the
//! table that does not have to wait in the model.

use super::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::time::Duration;

fn overlap(a: &Target, b: &Target) -> bool {
    match (a, b) {
        (Target::Key(a), Target::Key(b)) => a == b,
        (Target::Key(key), Target::Range(range)) | (Target::Range(range), Target::Key(key)) => {
            range.contains(key)
        }
        (Target::Range(a), Target::Range(b)) => a.overlaps(b),
    }
}

fn covers(held: &Target, target: &Target) -> bool {
    match (held, target) {
        (Target::Key(_), Target::Range(_)) => false,
        (Target::Range(a), Target::Range(b)) => a.covers(b),
        _ => overlap(held, target),
    }
}

#[derive(Clone)]
struct Lock {
    txn: TxnId,
    target: Target,
    mode: LockMode,
}

#[derive(Default)]
struct Model {
    held: Vec<Lock>,
    waiting: BTreeMap<Ticket, (Lock, Place)>,
}

impl Model {
    fn holds(&self, wanted: &Lock) -> bool {
        self.held.iter().any(|own| {
            own.txn == wanted.txn && own.mode >= wanted.mode && covers(&own.target, &wanted.target)
        })
    }

    fn place(&self, wanted: &Lock, since: Instant, ticket: Ticket) -> Place {
        let own = |own: &Lock| own.txn == wanted.txn && overlap(&own.target, &wanted.target);
        Place { fresh: !self.held.iter().any(own), since, ticket }
    }

    fn blockers(&self, wanted: &Lock, place: Place) -> Vec<TxnId> {
        let clash = |other: &Lock| {
            conflict(other.mode, wanted.mode) && overlap(&other.target, &wanted.target)
        };
        let held = self.held.iter().filter(|other| other.txn != wanted.txn && clash(other));
        // In the queue of one key even one's own requests keep their order.
        let counts = |other: &Lock| {
            other.txn != wanted.txn
                || matches!((&other.target, &wanted.target), (Target::Key(_), Target::Key(_)))
        };
        let before = self
            .waiting
            .values()
            .filter(|(other, at)| place.fresh && *at < place && counts(other) && clash(other));
        held.chain(before.map(|(other, _)| other)).map(|other| other.txn).collect()
    }

    fn granted(&mut self, tickets: &[Ticket], story: &str) {
        for ticket in tickets {
            let (lock, place) = self.waiting.remove(ticket).expect("it does not wait");
            let blockers = self.blockers(&lock, place);
            assert!(blockers.is_empty(), "{story}: granted in spite of {blockers:?}");
            self.held.push(lock);
        }
        for (lock, place) in self.waiting.values() {
            let blockers = self.blockers(lock, *place);
            assert!(!blockers.is_empty(), "{story}: {} waits for nobody", lock.txn);
        }
    }

    /// All pairs of a waiting transaction and one that it waits for, directly or over others.
    fn reaches(edges: &BTreeMap<TxnId, BTreeSet<TxnId>>) -> BTreeMap<TxnId, BTreeSet<TxnId>> {
        let mut all = edges.clone();
        loop {
            let before: usize = all.values().map(BTreeSet::len).sum();
            for txn in edges.keys() {
                let next: BTreeSet<TxnId> =
                    all[txn].iter().filter_map(|next| all.get(next)).flatten().copied().collect();
                all.get_mut(txn).unwrap().extend(next);
            }
            if all.values().map(BTreeSet::len).sum::<usize>() == before {
                return all;
            }
        }
    }
}

fn letter(n: u8) -> Key {
    Key::from(vec![b'a' + n])
}

fn random_target(rng: &mut SmallRng) -> Target {
    let start = rng.random_range(0..8u8);
    match rng.random_range(0..10) {
        0 => Target::Range(KeyRange { start: letter(start), end: None }),
        1 | 2 => {
            Target::Range(KeyRange::new(letter(start), letter(start + rng.random_range(0..4))))
        }
        _ => Target::Key(letter(start)),
    }
}

fn play(seed: u64, since: Instant) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut table, mut model) = (LockTable::default(), Model::default());
    for step in 0..200 {
        let story = format!("seed {seed}, step {step}");
        let txn = TxnId(rng.random_range(1..9));
        let roll = rng.random_range(0..20);
        if roll < 4 {
            let woken = table.release(txn);
            model.held.retain(|lock| lock.txn != txn);
            model.waiting.retain(|_, (lock, _)| lock.txn != txn);
            model.granted(&woken, &story);
        } else if roll == 4 {
            let n = rng.random_range(0..model.waiting.len().max(1));
            let Some(ticket) = model.waiting.keys().nth(n).copied() else { continue };
            let woken = table.cancel(ticket);
            model.waiting.remove(&ticket);
            model.granted(&woken, &story);
        } else if roll == 5 {
            // As many keys as make a set: some of the letters, and others that nobody asks for.
            let mut keys: Vec<Key> = (0..8).filter(|_| rng.random_bool(0.3)).map(letter).collect();
            keys.extend((0..300u16).map(|n| Key::from([&b"zz"[..], &n.to_be_bytes()].concat())));
            let txn_only = TxnId(txn.0);
            let mode = [LockMode::Shared, LockMode::Exclusive][rng.random_range(0..2)];
            let lock = |key: &Key| Lock { txn: txn_only, target: Target::Key(key.clone()), mode };
            let taken = table.request_all(since, txn, &keys, mode);
            let place = Place { fresh: true, since, ticket: Ticket(u64::MAX) };
            let mut locks = keys.iter().map(lock);
            let is_others = |txn: &TxnId| *txn != txn_only;
            let free = locks.all(|lock| !model.blockers(&lock, place).iter().any(is_others));
            // A set may be refused where single keys would be granted, and never the other way.
            assert!(free || !taken, "{story}: taken though somebody is in the way");
            let alone = model.held.is_empty() && model.waiting.is_empty();
            assert!(taken || !alone, "{story}: refused though nobody is there");
            if taken {
                model.held.extend(keys.iter().map(lock));
            }
            model.granted(&[], &story);
        } else {
            let target = random_target(&mut rng);
            let mode = [LockMode::Shared, LockMode::Exclusive][rng.random_range(0..2)];
            let wait = [Wait::Block, Wait::Block, Wait::Block, Wait::NoWait, Wait::Skip]
                [rng.random_range(0..5)];
            // Some have waited elsewhere before they come.
            let since = since + Duration::from_millis(100 - rng.random_range(0..2) * 50);
            let lock = Lock { txn, target: target.clone(), mode };
            let is_empty = matches!(&target, Target::Range(range) if range.is_empty());
            let answer = table.request(since, txn, target, mode, wait);
            if is_empty || model.holds(&lock) {
                assert_eq!(answer, Answer::Granted, "{story}: it has that");
                continue;
            }
            let place = model.place(&lock, since, Ticket(table.last_number));
            let blockers = model.blockers(&lock, place);
            match answer {
                Answer::Granted => {
                    assert!(blockers.is_empty(), "{story}: granted in spite of {blockers:?}");
                    model.held.push(lock);
                }
                Answer::Refused => assert!(!blockers.is_empty() && wait != Wait::Block, "{story}"),
                Answer::Waits(ticket) => {
                    assert!(!blockers.is_empty() && wait == Wait::Block, "{story}");
                    let place = Place { ticket, ..place };
                    model.waiting.insert(ticket, (lock, place));
                }
            }
            model.granted(&[], &story);
        }
        same_edges(&table, &model, &story);
        assert_eq!(
            table.transactions().len(),
            (1..9).filter(|n| has(&model, *n)).count(),
            "{story}"
        );
    }
    (1..9).for_each(|txn| drop(table.release(TxnId(txn))));
    let left = (table.points.len(), table.holds.len(), table.waiters.len(), table.parked.len());
    assert_eq!((left, table.n_bulk_bytes), ((0, 0, 0, 0), 0), "seed {seed}: something is left");
    assert!(table.held.is_empty() && table.asked.is_empty() && table.owned.is_empty());
}

fn has(model: &Model, txn: u64) -> bool {
    let own = |lock: &Lock| lock.txn == TxnId(txn);
    model.held.iter().any(own) || model.waiting.values().any(|(lock, _)| own(lock))
}

/// The few edges that the table names lead to the same transactions as all pairs do.
fn same_edges(table: &LockTable, model: &Model, story: &str) {
    let mut all: BTreeMap<TxnId, BTreeSet<TxnId>> = BTreeMap::new();
    for (lock, place) in model.waiting.values() {
        let mut blockers = model.blockers(lock, *place);
        blockers.retain(|txn| *txn != lock.txn);
        all.entry(lock.txn).or_default().extend(blockers);
    }
    let few: BTreeMap<TxnId, BTreeSet<TxnId>> = all
        .keys()
        .map(|txn| {
            let waits = table.waits_for(*txn);
            (*txn, waits.iter().flat_map(|wait| wait.blockers.keys().copied()).collect())
        })
        .collect();
    for (txn, blockers) in &few {
        assert!(blockers.is_subset(&all[txn]), "{story}: {txn} does not wait for all {blockers:?}");
    }
    assert_eq!(Model::reaches(&few), Model::reaches(&all), "{story}: {few:?} for {all:?}");
}

#[test]
fn random_schedules_are_granted_as_the_model_grants_them() {
    let now = base::Env::seeded(1, std::sync::Arc::new(base::env::MemoryNet::default())).now();
    (0..500).for_each(|seed| play(seed, now));
}
