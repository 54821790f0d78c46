//! Single rows as registers: each of them behaves as if all its clients shared one memory.
//!
//! Reads, writes and compare-and-sets of one row, each a statement of its own at READ COMMITTED,
//! through any node. Promised is linearizability: every operation takes effect at one moment
//! between its question and its answer. `check::register` looks for such moments, one row at a
//! time (Wing and Gong's search, as Knossos and Porcupine have it).
//!
//! ```text
//!   A: write 1 |-------|
//!   B:    read 1 |--|     read 1 |--|      fine, also before A has its answer
//!   C:                                read none |--|      a stale read: no moment explains it
//! ```
//!
//! A violation shows as a row whose operations have no such moments: a stale read from a leader
//! that lost its lease, a write that was acknowledged and forgotten, a compare-and-set that two
//! clients won.
//!
//! A write of unknown outcome may take effect at any time from its question on, or never. A read
//! of unknown outcome tells nothing and is dropped, as is whatever was refused. Left out:
//! transactions, for which `append` is there, and deletes.

use super::client::{Answer, Pace, Session, Trouble, ns, rows_at};
use crate::check::register::{self as check, Action, Operation};
use crate::world::{Dice, World};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::BTreeMap;

pub struct Registers {
    n_keys: u64,
    n_clients: usize,
    pace: Pace,
    history: Mutex<History>,
}

#[derive(Default)]
struct History {
    last_value: u64,
    operations: Vec<Operation>,
}

impl Registers {
    pub fn new(dice: &mut Dice) -> Registers {
        Registers {
            n_keys: *dice.pick(&[2, 4, 8]),
            n_clients: 3 + dice.below(2) as usize,
            pace: Pace::new(dice),
            history: Mutex::default(),
        }
    }

    fn fresh(&self) -> u64 {
        let mut history = self.history.lock();
        history.last_value += 1;
        history.last_value
    }

    /// One operation, and the value that its client knows of afterwards.
    async fn operate(
        &self,
        world: &World,
        session: &mut Session,
        dice: &mut Dice,
        (key, known): (u64, Option<u64>),
    ) -> Option<u64> {
        let begun = ns(world);
        let draw = if self.pace.is_ebb(world) { 0 } else { dice.below(5) };
        let (action, known) = match (draw, known) {
            (0 | 1, _) => {
                let value = read(session, key).await.ok()?;
                (Action::Read(value), value)
            }
            (2 | 3, Some(from)) => {
                let to = self.fresh();
                let action = |worked| Action::CompareAndSet { from, to, worked };
                match compare_and_set(session, key, from, to).await {
                    Ok(true) => (action(true), Some(to)),
                    Ok(false) => (action(false), None),
                    Err(Trouble::Lost) => return self.unknown(key, begun, action(true)),
                    Err(_) => return known,
                }
            }
            _ => {
                let value = self.fresh();
                match write(session, key, value).await {
                    Ok(()) => (Action::Write(value), Some(value)),
                    Err(Trouble::Lost) => return self.unknown(key, begun, Action::Write(value)),
                    Err(_) => return known,
                }
            }
        };
        world.count("operations", 1);
        self.history.lock().operations.push(Operation { key, begun, ended: ns(world), action });
        known
    }

    fn unknown(&self, key: u64, begun: u64, action: Action) -> Option<u64> {
        let operation = Operation { key, begun, ended: u64::MAX, action };
        self.history.lock().operations.push(operation);
        None
    }
}

async fn read(session: &mut Session, key: u64) -> Answer<Option<u64>> {
    let text = "SELECT v FROM registers WHERE k = $1";
    let rows: Vec<(i64,)> = session.read(text, &[&(key as i64)]).await?;
    if rows.len() > 1 {
        session.wrong(format!("key {key} has {} rows", rows.len()));
    }
    Ok(rows.first().map(|(value,)| *value as u64))
}

async fn write(session: &mut Session, key: u64, value: u64) -> Answer<()> {
    let text = "INSERT INTO registers VALUES ($1, $2) ON CONFLICT (k) DO UPDATE SET v = excluded.v";
    session.execute_one(text, &[&(key as i64), &(value as i64)]).await
}

async fn compare_and_set(session: &mut Session, key: u64, from: u64, to: u64) -> Answer<bool> {
    let text = "UPDATE registers SET v = $3 WHERE k = $1 AND v = $2";
    let n = session.execute(text, &[&(key as i64), &(from as i64), &(to as i64)]).await?;
    if n > 1 {
        session.wrong(format!("a compare-and-set of key {key} changed {n} rows"));
    }
    Ok(n > 0)
}

#[async_trait]
impl super::Workload for Registers {
    fn name(&self) -> &'static str {
        "registers"
    }

    async fn lay_out(&self, sql: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
        sql.batch_execute(
            "CREATE TABLE IF NOT EXISTS registers (k bigint PRIMARY KEY, v bigint NOT NULL)",
        )
        .await?;
        let half = self.n_keys / 2;
        sql.batch_execute(&format!("ALTER TABLE registers SPLIT AT VALUES ({half})")).await
    }

    fn n_clients(&self) -> usize {
        self.n_clients
    }

    async fn client(&self, world: &World, number: usize) {
        let mut dice = world.dice("registers", number);
        let mut session = Session::new(world, "registers", number);
        // What this client last saw in each row; compare-and-sets start from there.
        let mut known: Vec<Option<u64>> = vec![None; self.n_keys as usize];
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            if !session.ready().await {
                continue;
            }
            let key = dice.below(self.n_keys);
            let Some(slot) = known.get_mut(key as usize) else { continue };
            *slot = self.operate(world, &mut session, &mut dice, (key, *slot)).await;
        }
    }

    async fn judge(&self, world: &World) -> Result<(), String> {
        // What every node says now is part of the history.
        for node in 0..world.n_nodes() {
            let begun = ns(world);
            let all = "SELECT k, v FROM registers ORDER BY k";
            let rows: Vec<(i64, i64)> = rows_at(world, "registers", node, all).await?;
            let rows: BTreeMap<i64, i64> = rows.into_iter().collect();
            let ended = ns(world);
            for key in 0..self.n_keys {
                let action = Action::Read(rows.get(&(key as i64)).map(|value| *value as u64));
                self.history.lock().operations.push(Operation { key, begun, ended, action });
            }
        }
        let operations = std::mem::take(&mut self.history.lock().operations);
        match check::check(&operations) {
            Ok(report) => {
                world.note(format!("registers: {report:?}"));
                Ok(())
            }
            Err(violation) => Err(violation.to_string()),
        }
    }
}
