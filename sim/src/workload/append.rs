//! Histories of appends to lists, from which the order of all transactions can be read back.
//!
//! A list that is only appended to shows by itself the order in which its writers committed, and
//! each read of it shows after whom the reader comes. `check::append` puts these facts together,
//! over all lists, and looks for circles and for reads that no order explains; it knows what each
//! isolation level promises (after Kingsbury and Alvaro, "Elle", VLDB 2020).
//!
//! ```text
//!   T1: append 7 to x    T2: read x = [3, 7], append 8 to y    T3: read y = [], read x = [3, 7]
//!       T1 before T2 (x);  T3 before T2 (y);  T1 before T3 (x)     fine: T1, T3, T2
//! ```
//!
//! A violation shows as an anomaly with a name: a lost append, a read of an aborted one, a list
//! that is no prefix of the final one, a circle. Clients here only keep the record straight. What
//! was aborted keeps its operations in the history, because nobody may have read them.
//!
//! Left out: ranges and predicates (no phantom shows in lists that always exist), and SELECT ...
//! FOR UPDATE.

use super::client::{Answer, Level, Levels, Outcome, Pace, Session, Trouble, ns, rows_at};
use crate::check::append::{self as check, Op, Txn};
use crate::world::{Dice, World};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;

const APPEND: &str = "UPDATE append_lists SET list = list || ',' || $2 WHERE k = $1";
/// Long enough for a leader to be lost and another elected.
const THINKING_MAX: Duration = Duration::from_millis(1_500);
const N_ANOMALIES_TOLD: usize = 3;

pub struct Append {
    n_keys: u64,
    n_ops_max: u64,
    n_clients: usize,
    levels: Levels,
    pace: Pace,
    /// Clients think between two steps, and what they have read grows old.
    thinks: bool,
    history: Mutex<History>,
}

#[derive(Default)]
struct History {
    last_value: u64,
    txns: Vec<Txn>,
}

enum Step {
    Append { key: u64, value: u64, returning: bool },
    Read { key: u64 },
    Think(Duration),
}

impl Append {
    pub fn new(dice: &mut Dice) -> Append {
        Append {
            n_keys: *dice.pick(&[3, 6, 12]),
            n_ops_max: 2 + dice.below(3),
            n_clients: 3 + dice.below(2) as usize,
            levels: Levels::new(dice),
            pace: Pace::new(dice),
            thinks: dice.one_in(2),
            history: Mutex::default(),
        }
    }

    fn steps(&self, dice: &mut Dice) -> Vec<Step> {
        let n_ops = 1 + dice.below(self.n_ops_max);
        let mut steps = Vec::new();
        for _ in 0..n_ops {
            if self.thinks && !steps.is_empty() && dice.one_in(2) {
                steps.push(Step::Think(dice.between(Duration::ZERO, THINKING_MAX)));
            }
            steps.push(self.step(dice));
        }
        steps
    }

    fn step(&self, dice: &mut Dice) -> Step {
        let key = dice.below(self.n_keys);
        if dice.one_in(2) {
            return Step::Read { key };
        }
        let mut history = self.history.lock();
        history.last_value += 1;
        Step::Append { key, value: history.last_value, returning: dice.one_in(4) }
    }

    fn record(
        &self,
        level: Level,
        (begun, ended): (u64, u64),
        ops: Vec<Op>,
        outcome: check::Outcome,
    ) {
        let level = match level {
            Level::ReadCommitted => check::Level::ReadCommitted,
            Level::RepeatableRead => check::Level::RepeatableRead,
            Level::Serializable => check::Level::Serializable,
        };
        let mut history = self.history.lock();
        let number = history.txns.len();
        history.txns.push(Txn { number, level, begun, ended, ops, outcome });
    }
}

/// Runs the steps, and writes down what was tried and what was seen, also of one that fails.
async fn play(sql: &mut Session, steps: &[Step], ops: &mut Vec<Op>) -> Answer<()> {
    for step in steps {
        match *step {
            Step::Think(time) => sql.think(time).await,
            Step::Read { key } => {
                let read = "SELECT list FROM append_lists WHERE k = $1";
                let (list,): (String,) = sql.read_one(read, &[&(key as i64)]).await?;
                ops.push(read_list(sql, key, &list)?);
            }
            Step::Append { key, value, returning } => {
                ops.push(Op::Append { key, value });
                let (k, value) = (key as i64, value.to_string());
                if returning {
                    let text = format!("{APPEND} RETURNING list");
                    let (list,): (String,) = sql.read_one(&text, &[&k, &value]).await?;
                    ops.push(read_list(sql, key, &list)?);
                } else {
                    sql.execute_one(APPEND, &[&k, &value]).await?;
                }
            }
        }
    }
    Ok(())
}

fn read_list(sql: &Session, key: u64, list: &str) -> Answer<Op> {
    match parse(list) {
        Ok(list) => Ok(Op::Read { key, list }),
        Err(error) => {
            sql.wrong(error);
            Err(Trouble::Withdrawn)
        }
    }
}

/// `,3,7` is the list of 3 and 7.
fn parse(list: &str) -> Result<Vec<u64>, String> {
    let items = list.split(',').skip(1).map(str::parse).collect::<Result<Vec<u64>, _>>();
    items.map_err(|error| format!("a list reads {list:?}: {error}"))
}

#[async_trait]
impl super::Workload for Append {
    fn name(&self) -> &'static str {
        "append"
    }

    async fn lay_out(&self, sql: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
        let create =
            "CREATE TABLE IF NOT EXISTS append_lists (k bigint PRIMARY KEY, list text NOT NULL)";
        sql.batch_execute(create).await?;
        let rows: Vec<String> = (0..self.n_keys).map(|key| format!("({key}, '')")).collect();
        let insert =
            format!("INSERT INTO append_lists VALUES {} ON CONFLICT DO NOTHING", rows.join(", "));
        sql.batch_execute(&insert).await?;
        let half = self.n_keys / 2;
        sql.batch_execute(&format!("ALTER TABLE append_lists SPLIT AT VALUES ({half})")).await
    }

    fn n_clients(&self) -> usize {
        self.n_clients
    }

    async fn client(&self, world: &World, number: usize) {
        let mut dice = world.dice("append", number);
        let mut session = Session::new(world, "append", number);
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            if !session.ready().await {
                continue;
            }
            let level = self.levels.pick(&mut dice);
            let steps = self.steps(&mut dice);
            let mut ops = Vec::new();
            let begun = ns(world);
            let (outcome, _) = session
                .transaction(level, async |sql: &mut Session| play(sql, &steps, &mut ops).await)
                .await;
            if world.is_doubtful(Duration::from_nanos(begun)) {
                ops.retain(|op| matches!(op, Op::Append { .. }));
            }
            let (ended, outcome) = match outcome {
                Outcome::Committed => (ns(world), check::Outcome::Committed),
                Outcome::Aborted(_) => (ns(world), check::Outcome::Aborted),
                Outcome::Unknown => (u64::MAX, check::Outcome::Unknown),
            };
            self.record(level, (begun, ended), ops, outcome);
        }
    }

    async fn judge(&self, world: &World) -> Result<(), String> {
        let txns = std::mem::take(&mut self.history.lock().txns);
        let report = check::check(&txns);
        let mut anomalies = match report {
            Ok(report) => {
                world.note(format!("append: {report:?}"));
                Vec::new()
            }
            Err(anomalies) => anomalies,
        };
        for node in 0..world.n_nodes() {
            let all = "SELECT k, list FROM append_lists ORDER BY k";
            let mut last: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            for (key, list) in rows_at::<(i64, String)>(world, "append", node, all).await? {
                last.insert(key as u64, parse(&list)?);
            }
            anomalies.extend(check::check_final(&txns, &last));
        }
        if anomalies.is_empty() {
            return Ok(());
        }
        let told: Vec<String> =
            anomalies.iter().take(N_ANOMALIES_TOLD).map(|anomaly| anomaly.to_string()).collect();
        Err(format!("{} anomalies: {}", anomalies.len(), told.join("; ")))
    }
}
