//! A sequence never says the same number twice, on no node, before and after no crash.
//!
//! Nodes take numbers in blocks and hand them out from memory. What a node had left when it died is
//! lost, so there are gaps; but a block that was taken is taken for ever. Clients draw numbers by
//! `nextval` and let a `bigserial` column draw them.
//!
//! Promised, and how a violation would show:
//!
//! * A number is drawn once: two draws have the same, or an INSERT meets a duplicate key that only
//!   the sequence could have made.
//! * Numbers lie on the sequence's grid (its start, plus a multiple of its increment).
//! * Numbers of one session rise, because its node's blocks do; and `currval` says what the session
//!   drew last.
//! * A row that was acknowledged with a number is there with it; one that was refused is not.
//!
//! Left out: `setval` and ALTER SEQUENCE, which are meant to repeat numbers; CYCLE.

use super::client::{Answer, Pace, Session, Trouble, read_at};
use crate::world::{Dice, World};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::BTreeMap;

pub struct Sequences {
    start: i64,
    increment: i64,
    /// The block that a node takes.
    cache: i64,
    n_clients: usize,
    pace: Pace,
    drawn: Mutex<Drawn>,
}

#[derive(Default)]
struct Drawn {
    /// Each number, and who drew it.
    numbers: BTreeMap<i64, String>,
    /// By token, which is the position.
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
enum Row {
    /// With this id.
    Inserted(i64),
    Refused,
    Unknown,
}

impl Sequences {
    pub fn new(dice: &mut Dice) -> Sequences {
        Sequences {
            start: 1 + dice.below(1000) as i64,
            increment: *dice.pick(&[1, 1, 3, -2]),
            cache: *dice.pick(&[1, 40, 200]),
            n_clients: 2 + dice.below(2) as usize,
            pace: Pace::new(dice),
            drawn: Mutex::default(),
        }
    }

    /// Notes a number of the sequence, and whether it can be.
    fn drew(&self, number: i64, last: Option<i64>, by: String) -> Result<(), String> {
        let offset = number - self.start;
        if offset % self.increment != 0 || offset / self.increment < 0 {
            return Err(format!("{number} is no number of this sequence (drawn by {by})"));
        }
        if let Some(last) = last
            && (number - last) / self.increment <= 0
        {
            return Err(format!("{number} was drawn after {last} in one session ({by})"));
        }
        match self.drawn.lock().numbers.insert(number, by.clone()) {
            Some(other) => Err(format!("{number} was drawn twice, by {other} and by {by}")),
            None => Ok(()),
        }
    }

    async fn draw(&self, session: &mut Session, dice: &mut Dice, last: &mut Option<i64>) {
        let texts = [
            "SELECT nextval('sequence_numbers')",
            "SELECT nextval('sequence_numbers') FROM sequence_three",
        ];
        let text = *dice.pick(&texts);
        let drawn: Answer<Vec<(i64,)>> = session.read(text, &[]).await;
        let Ok(numbers) = drawn else {
            // Numbers may have been drawn that nobody saw.
            *last = None;
            session.leave();
            return;
        };
        for (number,) in numbers {
            if let Err(error) = self.drew(number, *last, session.node()) {
                session.wrong(error);
            }
            *last = Some(number);
        }
        if dice.one_in(8)
            && let Ok((current,)) =
                session.read_one::<(i64,)>("SELECT currval('sequence_numbers')", &[]).await
            && Some(current) != *last
        {
            session.wrong(format!("currval is {current} after {last:?} was drawn"));
        }
    }

    async fn insert(&self, session: &mut Session) {
        let token = {
            let mut drawn = self.drawn.lock();
            drawn.rows.push(Row::Unknown);
            drawn.rows.len() - 1
        };
        let text = "INSERT INTO sequence_rows (token) VALUES ($1) RETURNING id";
        let row = match session.read_one::<(i64,)>(text, &[&(token as i64)]).await {
            Ok((id,)) => Row::Inserted(id),
            Err(Trouble::Lost) => return,
            Err(_) => Row::Refused,
        };
        if let Some(slot) = self.drawn.lock().rows.get_mut(token) {
            *slot = row;
        }
    }
}

/// What the table has, against what was told.
fn check(told: &[Row], rows: &[(i64, i64)]) -> Result<(), String> {
    let mut ids: BTreeMap<i64, i64> = BTreeMap::new();
    for &(id, token) in rows {
        if let Some(other) = ids.insert(token, id) {
            return Err(format!("row {token} is there twice, under {other} and {id}"));
        }
        match usize::try_from(token).ok().and_then(|token| told.get(token)) {
            Some(Row::Unknown) => {}
            Some(Row::Inserted(own)) if *own == id => {}
            other => return Err(format!("row {token} has id {id}, and was told {other:?}")),
        }
    }
    for (token, row) in told.iter().enumerate() {
        if let Row::Inserted(id) = row
            && ids.get(&(token as i64)) != Some(id)
        {
            return Err(format!("row {token} was inserted with id {id} and is not there"));
        }
    }
    Ok(())
}

#[async_trait]
impl super::Workload for Sequences {
    fn name(&self) -> &'static str {
        "sequences"
    }

    async fn lay_out(&self, sql: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
        let (start, increment, cache) = (self.start, self.increment, self.cache);
        let bounds = match increment < 0 {
            true => "MINVALUE -1000000000 MAXVALUE 1000000000",
            false => "",
        };
        sql.batch_execute(&format!(
            "CREATE SEQUENCE IF NOT EXISTS sequence_numbers INCREMENT BY {increment} {bounds} \
             START WITH {start} CACHE {cache}"
        ))
        .await?;
        sql.batch_execute(
            "CREATE TABLE IF NOT EXISTS sequence_rows (
                 id bigserial PRIMARY KEY, token bigint NOT NULL
             );
             CREATE TABLE IF NOT EXISTS sequence_three (id bigint PRIMARY KEY);
             INSERT INTO sequence_three VALUES (1), (2), (3) ON CONFLICT DO NOTHING",
        )
        .await
    }

    fn n_clients(&self) -> usize {
        self.n_clients
    }

    async fn client(&self, world: &World, number: usize) {
        let mut dice = world.dice("sequences", number);
        let mut session = Session::new(world, "sequences", number);
        let mut last = None;
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            let before = session.lives();
            if !session.ready().await {
                continue;
            }
            if session.lives() != before {
                last = None;
            }
            if dice.one_in(2) {
                self.draw(&mut session, &mut dice, &mut last).await;
            } else {
                self.insert(&mut session).await;
            }
            world.count("draws", 1);
        }
    }

    async fn judge(&self, world: &World) -> Result<(), String> {
        let told = self.drawn.lock().rows.clone();
        for node in 0..world.n_nodes() {
            let read = async |sql: &mut Session| {
                let next = "SELECT nextval('sequence_numbers')";
                let (number,): (i64,) = sql.read_one(next, &[]).await?;
                let all = "SELECT id, token FROM sequence_rows ORDER BY id";
                Ok((number, sql.read::<(i64, i64)>(all, &[]).await?))
            };
            let (number, rows) = read_at(world, "sequences", node, read).await?;
            self.drew(number, None, format!("the judge at node {node}"))
                .and_then(|()| check(&told, &rows))
                .map_err(|error| format!("{error} (node {node})"))?;
        }
        Ok(())
    }
}
