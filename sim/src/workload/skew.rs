//! Two may not both be there: what SERIALIZABLE promises and snapshots alone do not.
//!
//! ```text
//!   T1: is the other there? no. Thinks. Puts its own.
//!   T2: is the first there? no. Thinks. Puts its own.      both are there: no order explains it
//! ```
//!
//! Each pair has a place in either of two tablets. A client looks at one place, thinks, and fills
//! the other if the first was empty; later somebody empties it. Looking is a read of one absent row
//! or of a range, so that what is locked is nothing at all; and since the tablet that was only read
//! from is another than the one that is written to, its leader must be asked again in the end: it
//! may have lost its locks meanwhile.
//!
//! Promised: no snapshot ever shows both places of a pair filled, and so does no node at the end.
//!
//! Left out: whose fault it was, and longer circles, which `append` finds.

use super::client::{Answer, Level, Pace, Session, Trouble, rows_at};
use crate::world::{Dice, World};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::time::Duration;

const ALL: &str = "SELECT id FROM skew_places ORDER BY id";
/// The other place of a pair, in another tablet.
const FAR: i64 = 1_000;
/// Long enough for a leader to be lost and another elected.
const THINKING_MAX: Duration = Duration::from_millis(1_500);

pub struct Skew {
    n_pairs: u64,
    n_clients: usize,
    pace: Pace,
    /// Places that may be filled.
    filled: Mutex<BTreeSet<i64>>,
}

impl Skew {
    pub fn new(dice: &mut Dice) -> Skew {
        Skew {
            n_pairs: 1 + dice.below(3),
            n_clients: 3 + dice.below(2) as usize,
            pace: Pace::new(dice),
            filled: Mutex::default(),
        }
    }

    async fn fill(&self, session: &mut Session, dice: &mut Dice) {
        let first = dice.below(self.n_pairs) as i64;
        let (own, other) = if dice.one_in(2) { (first, first + FAR) } else { (first + FAR, first) };
        let by_range = dice.one_in(2);
        let thinks = dice.between(Duration::ZERO, THINKING_MAX);
        self.filled.lock().insert(own);
        let body = async |sql: &mut Session| -> Answer<()> {
            let look = if by_range {
                "SELECT id FROM skew_places WHERE id BETWEEN $1 AND $1"
            } else {
                "SELECT id FROM skew_places WHERE id = $1"
            };
            if !sql.read::<(i64,)>(look, &[&other]).await?.is_empty() {
                return Err(Trouble::Withdrawn);
            }
            sql.think(thinks).await;
            let put = "INSERT INTO skew_places VALUES ($1) ON CONFLICT DO NOTHING";
            sql.execute(put, &[&own]).await.map(drop)
        };
        // Whether it worked shows in the places themselves.
        drop(session.transaction(Level::Serializable, body).await);
    }

    async fn empty(&self, session: &mut Session, dice: &mut Dice) {
        let filled: Vec<i64> = self.filled.lock().iter().copied().collect();
        if filled.is_empty() {
            return;
        }
        let place = *dice.pick(&filled);
        let body = async |sql: &mut Session| -> Answer<()> {
            sql.execute("DELETE FROM skew_places WHERE id = $1", &[&place]).await.map(drop)
        };
        // As above.
        drop(session.transaction(Level::Serializable, body).await);
    }
}

fn check(places: &[(i64,)]) -> Result<(), String> {
    let both = |(id,): &&(i64,)| places.contains(&(id + FAR,));
    match places.iter().find(both) {
        Some((id,)) => Err(format!("places {id} and {} are both filled", id + FAR)),
        None => Ok(()),
    }
}

#[async_trait]
impl super::Workload for Skew {
    fn name(&self) -> &'static str {
        "skew"
    }

    async fn lay_out(&self, sql: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
        let create = "CREATE TABLE IF NOT EXISTS skew_places (id bigint PRIMARY KEY)";
        sql.batch_execute(create).await?;
        sql.batch_execute(&format!("ALTER TABLE skew_places SPLIT AT VALUES ({FAR})")).await
    }

    fn n_clients(&self) -> usize {
        self.n_clients
    }

    async fn client(&self, world: &World, number: usize) {
        let mut dice = world.dice("skew", number);
        let mut session = Session::new(world, "skew", number);
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            if !session.ready().await {
                continue;
            }
            match dice.below(4) {
                0 => self.empty(&mut session, &mut dice).await,
                1 => {
                    let Ok(places) = session.read::<(i64,)>(ALL, &[]).await else { continue };
                    world.count("looks at pairs", 1);
                    if let Err(error) = check(&places) {
                        session.wrong(format!("{error} ({})", session.node()));
                    }
                }
                _ => self.fill(&mut session, &mut dice).await,
            }
        }
    }

    async fn judge(&self, world: &World) -> Result<(), String> {
        for node in 0..world.n_nodes() {
            let places: Vec<(i64,)> = rows_at(world, "skew", node, ALL).await?;
            check(&places).map_err(|error| format!("{error} (node {node})"))?;
        }
        Ok(())
    }
}
