//! The past is one, and the present is never behind it.
//!
//! A writer counts up, in two rows of two tablets that always agree. What they show at an SCN is
//! what the world was at that moment: a function of the SCN alone, whoever reads it where. Nodes
//! serve old snapshots from their own replicas without asking a leader, which is where this could
//! go wrong.
//!
//! ```text
//!   SCN      100    120    140    160        known so far: 100 -> 3, 140 -> 5
//!   counter    3   3..5      5    5..        a read at 120 that shows 2 or 6 is wrong
//! ```
//!
//! Promised, and how a violation would show:
//!
//! * At one SCN the two rows agree, and every node gives the same value at any time.
//! * The value does not fall as the SCN rises. SCNs in between are read too, not only those that
//!   somebody exported.
//! * Causality: a read of the newest state, or a snapshot drawn, after an increment was
//!   acknowledged shows at least that increment, on every node. So does a read after another read.
//!
//! Left out: how far behind a replica may be (that is speed, not truth), and several writers, which
//! the bank has.

use super::client::{Answer, Level, Levels, Outcome, Pace, Session, read_at};
use crate::world::{Dice, World};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::BTreeMap;

const FIRST: i64 = 1;
const SECOND: i64 = 1_000;
const BOTH: &str = "SELECT id, n FROM follower_pairs ORDER BY id";
const N_JUDGED: usize = 24;

pub struct Followers {
    n_readers: usize,
    levels: Levels,
    pace: Pace,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// No read that begins from now on may show less: acknowledged, or shown to somebody.
    floor: i64,
    /// Increments that may have happened.
    n_tried: i64,
    /// The counter at each SCN that was read.
    past: BTreeMap<u64, i64>,
}

impl Followers {
    pub fn new(dice: &mut Dice) -> Followers {
        Followers {
            n_readers: 2 + dice.below(2) as usize,
            levels: Levels::new(dice),
            pace: Pace::new(dice),
            seen: Mutex::default(),
        }
    }

    fn floor(&self) -> i64 {
        self.seen.lock().floor
    }

    /// Somebody was shown `n`, after having known that it is `floor` at least.
    fn show(&self, n: i64, floor: i64) -> Result<(), String> {
        let mut seen = self.seen.lock();
        if n < floor {
            return Err(format!("the counter is {n}, after it was {floor}"));
        }
        if n > seen.n_tried {
            return Err(format!("the counter is {n}, and only {} were tried", seen.n_tried));
        }
        seen.floor = seen.floor.max(n);
        Ok(())
    }

    /// The counter at `scn` is `n`: does that fit with the rest of the past?
    fn learn(&self, scn: u64, n: i64) -> Result<(), String> {
        let mut seen = self.seen.lock();
        if let Some(&before) = seen.past.get(&scn)
            && before != n
        {
            return Err(format!("at SCN {scn} the counter was {before}, and now it is {n}"));
        }
        if let Some((earlier, &lower)) = seen.past.range(..scn).next_back()
            && lower > n
        {
            return Err(format!("the counter is {lower} at SCN {earlier} and {n} at {scn}"));
        }
        if let Some((later, &higher)) = seen.past.range(scn..).next()
            && higher < n
        {
            return Err(format!("the counter is {n} at SCN {scn} and {higher} at {later}"));
        }
        seen.past.insert(scn, n);
        Ok(())
    }

    async fn writer(&self, world: &World, number: usize) {
        let mut dice = world.dice("followers", number);
        let mut session = Session::new(world, "followers", number);
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            if self.pace.is_ebb(world) || !session.ready().await {
                continue;
            }
            let level = self.levels.pick(&mut dice);
            self.seen.lock().n_tried += 1;
            let (outcome, pair) = session.transaction(level, count_up).await;
            match (outcome, pair) {
                (Outcome::Committed, Some((first, second))) if first == second => {
                    if let Err(error) = self.show(first, first) {
                        session.wrong(error);
                    }
                }
                (_, Some((first, second))) if first != second => {
                    session.wrong(format!("an increment made {first} and {second} of the pair"));
                }
                // It did not happen, and no later one can.
                (Outcome::Aborted(_), _) => self.seen.lock().n_tried -= 1,
                _ => {}
            }
        }
    }

    async fn reader(&self, world: &World, number: usize) {
        let mut dice = world.dice("followers", number);
        let mut session = Session::new(world, "followers", number);
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            if dice.one_in(2) {
                session.leave();
            }
            if !session.ready().await {
                continue;
            }
            let seen = match dice.below(6) {
                0 | 1 => self.newest(&mut session).await,
                2 => self.snapshot(&mut session).await,
                3 => self.export(&mut session).await,
                _ => self.back_then(&mut session, &mut dice).await,
            };
            world.count("reads", 1);
            if let Err(error) = seen {
                session.wrong(format!("{error} ({})", session.node()));
            }
        }
    }

    /// One statement at READ COMMITTED.
    async fn newest(&self, session: &mut Session) -> Result<(), String> {
        let floor = self.floor();
        let Ok(rows) = session.read(BOTH, &[]).await else { return Ok(()) };
        self.show(agree(&rows)?, floor)
    }

    /// The newest state, and its SCN.
    async fn snapshot(&self, session: &mut Session) -> Result<(), String> {
        let floor = self.floor();
        let body =
            async |sql: &mut Session| Ok((sql.snapshot().await?, sql.read(BOTH, &[]).await?));
        let (_, read) = session.transaction(Level::RepeatableRead, body).await;
        let Some((scn, rows)) = read else { return Ok(()) };
        let n = agree(&rows)?;
        self.show(n, floor)?;
        self.learn(scn, n)
    }

    /// Only the SCN, on one node; what it shows is asked elsewhere.
    async fn export(&self, session: &mut Session) -> Result<(), String> {
        let floor = self.floor();
        let Ok(scn) = session.snapshot().await else { return Ok(()) };
        session.leave();
        if !session.ready().await {
            return Ok(());
        }
        let Some((_, rows)) = session.past(scn, at_snapshot).await else { return Ok(()) };
        let n = agree(&rows)?;
        self.show(n, floor)?;
        self.learn(scn, n)
    }

    /// An SCN that was read before, or one between two that were.
    async fn back_then(&self, session: &mut Session, dice: &mut Dice) -> Result<(), String> {
        let scn = {
            let seen = self.seen.lock();
            let Some((&newest, _)) = seen.past.last_key_value() else { return Ok(()) };
            let nth = dice.below(seen.past.len() as u64) as usize;
            let known = seen.past.keys().nth(nth).copied().unwrap_or(newest);
            let next = seen.past.range(known + 1..).next().map_or(known, |(scn, _)| *scn);
            if dice.one_in(2) { known } else { known + (next - known) / 2 }
        };
        let Some((own, rows)) = session.past(scn, at_snapshot).await else { return Ok(()) };
        if own != scn {
            return Err(format!("a transaction set to SCN {scn} says that it reads at {own}"));
        }
        self.learn(scn, agree(&rows)?)
    }
}

async fn count_up(sql: &mut Session) -> Answer<(i64, i64)> {
    let text = "UPDATE follower_pairs SET n = n + 1 WHERE id = $1 RETURNING n";
    let (first,): (i64,) = sql.read_one(text, &[&FIRST]).await?;
    let (second,): (i64,) = sql.read_one(text, &[&SECOND]).await?;
    Ok((first, second))
}

async fn at_snapshot(sql: &mut Session) -> Answer<(u64, Vec<(i64, i64)>)> {
    Ok((sql.snapshot().await?, sql.read(BOTH, &[]).await?))
}

/// The value that both rows have.
fn agree(rows: &[(i64, i64)]) -> Result<i64, String> {
    match rows {
        [(FIRST, first), (SECOND, second)] if first == second => Ok(*first),
        rows => Err(format!("the pair reads {rows:?}")),
    }
}

#[async_trait]
impl super::Workload for Followers {
    fn name(&self) -> &'static str {
        "followers"
    }

    async fn lay_out(&self, sql: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
        sql.batch_execute(
            "CREATE TABLE IF NOT EXISTS follower_pairs (id bigint PRIMARY KEY, n bigint NOT NULL)",
        )
        .await?;
        let insert = format!(
            "INSERT INTO follower_pairs VALUES ({FIRST}, 0), ({SECOND}, 0) ON CONFLICT DO NOTHING"
        );
        sql.batch_execute(&insert).await?;
        sql.batch_execute(&format!("ALTER TABLE follower_pairs SPLIT AT VALUES ({SECOND})")).await
    }

    fn n_clients(&self) -> usize {
        self.n_readers + 1
    }

    async fn client(&self, world: &World, number: usize) {
        if number < self.n_readers {
            self.reader(world, number).await;
        } else {
            self.writer(world, number).await;
        }
    }

    async fn judge(&self, world: &World) -> Result<(), String> {
        let past: Vec<u64> = {
            let seen = self.seen.lock();
            let step = seen.past.len() / N_JUDGED + 1;
            seen.past.keys().step_by(step).copied().collect()
        };
        for node in 0..world.n_nodes() {
            let at = |error: String| format!("{error} (node {node})");
            let floor = self.floor();
            let (scn, rows) = read_at(world, "followers", node, at_snapshot).await?;
            let n = agree(&rows).map_err(at)?;
            self.show(n, floor).and_then(|()| self.learn(scn, n)).map_err(at)?;
            let mut session = Session::at(world, "followers", node);
            for scn in &past {
                if !session.ready().await {
                    continue;
                }
                let Some((_, rows)) = session.past(*scn, at_snapshot).await else { continue };
                agree(&rows).and_then(|n| self.learn(*scn, n)).map_err(at)?;
            }
        }
        Ok(())
    }
}
