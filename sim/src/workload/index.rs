//! An index and its table tell the same story.
//!
//! Rows come, change and go; their colour has an index, their tag a unique one, and their weight
//! one that is built and dropped again and again while all this goes on. A reader takes one
//! snapshot and reads the table by its primary key and by each index: the rows must be the same.
//!
//! ```text
//!   by key     (1, red, 7) (2, blue, 9) (3, red, 4)
//!   by colour  red: (1, red, 7) (3, red, 4)      blue: (2, blue, 9)
//!   by tag     4: (3, red, 4)   7: (1, red, 7)   9: (2, blue, 9)
//! ```
//!
//! Promised, and how a violation would show:
//!
//! * An index has an entry for each row and none besides: a row is missing from a read by index, or
//!   shows under a value that it no longer has, or twice.
//! * A tag is unique: two rows of one snapshot share one. Tags move between rows, too.
//! * An index that is built while rows change misses none of those changes, and a snapshot from
//!   before it was built reads the same with it as without it.
//! * What was acknowledged is there: each row has one client that writes it, which knows what it
//!   must find (until an outcome is unknown; from then on the row is compared with its index only).
//!
//! Left out: several columns, text and NULLs in keys, which are codecs' matters and tested there.

use super::client::{Answer, Level, Levels, Outcome, Pace, Session, Trouble, read_at};
use crate::world::{Dice, World};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;

const DUPLICATE: &str = "23505";
const N_COLOURS: i64 = 5;
const N_WEIGHTS: i64 = 7;
const N_ROWS_EACH: i64 = 8;
/// Scarce enough that writers meet.
const N_TAGS: i64 = 30;
/// Snapshots that a reader goes back to.
const N_SNAPSHOTS: usize = 16;
const BY_KEY: &str = "SELECT id, colour, tag, weight FROM index_things ORDER BY id";
const BY_COLOUR: &str = "SELECT id, colour, tag, weight FROM index_things WHERE colour = $1";
const BY_COLOUR_RANGE: &str = "SELECT id, colour, tag, weight FROM index_things WHERE colour >= 0";
const BY_TAG: &str = "SELECT id, colour, tag, weight FROM index_things WHERE tag = $1";
const BY_TAG_RANGE: &str = "SELECT id, colour, tag, weight FROM index_things WHERE tag >= 0";
/// By the index that comes and goes, or else by all rows.
const BY_WEIGHT: &str = "SELECT id, colour, tag, weight FROM index_things WHERE weight = $1";

type Thing = (i64, i64, i64, i64);

pub struct Index {
    n_writers: usize,
    builds: bool,
    levels: Levels,
    pace: Pace,
    /// What must be there, by id; ids of unknown contents are absent.
    expected: Mutex<BTreeMap<i64, Option<Thing>>>,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Insert(Thing),
    Colour(i64, i64),
    Tag(i64, i64),
    Weight(i64, i64),
    Delete(i64),
    /// The tag of the first row goes to the second, which gives its own to the first.
    Swap(Thing, Thing),
}

impl Index {
    pub fn new(dice: &mut Dice) -> Index {
        let n_writers = 2 + dice.below(2) as usize;
        let ids = 0..n_writers as i64 * N_ROWS_EACH;
        Index {
            n_writers,
            builds: dice.one_in(2),
            levels: Levels::new(dice),
            pace: Pace::new(dice),
            expected: Mutex::new(ids.map(|id| (id, None)).collect()),
        }
    }

    // ---- writers

    async fn writer(&self, world: &World, number: usize) {
        let mut dice = world.dice("index", number);
        let mut session = Session::new(world, "index", number).expecting(&[DUPLICATE]);
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            if session.ready().await {
                self.one(world, number, &mut session, &mut dice).await;
            }
        }
    }

    async fn one(&self, world: &World, number: usize, session: &mut Session, dice: &mut Dice) {
        // Rows of different writers are neighbours.
        let own = |dice: &mut Dice| {
            dice.below(N_ROWS_EACH as u64) as i64 * self.n_writers as i64 + number as i64
        };
        let (id, other) = (own(dice), own(dice));
        let known = |id: i64| self.expected.lock().get(&id).copied();
        let tag = dice.below(N_TAGS as u64) as i64;
        let colour = dice.below(N_COLOURS as u64) as i64;
        let weight = dice.below(N_WEIGHTS as u64) as i64;
        let change = match (known(id).flatten(), dice.below(8)) {
            (None, 0..7) => Change::Insert((id, colour, tag, weight)),
            (_, 0 | 1) => Change::Colour(id, colour),
            (_, 2 | 3) => Change::Tag(id, tag),
            (_, 4) => Change::Weight(id, weight),
            (Some(first), 5 | 6) => match known(other).flatten() {
                Some(second) if other != id => Change::Swap(first, second),
                _ => Change::Weight(id, weight),
            },
            _ => Change::Delete(id),
        };
        let level = self.levels.pick(dice);
        let outcome = match change {
            Change::Swap(first, second) => {
                let body = async |sql: &mut Session| swap(sql, first, second).await;
                session.transaction(level, body).await.0
            }
            _ if dice.one_in(2) => {
                let body = async |sql: &mut Session| apply(sql, change).await;
                session.transaction(level, body).await.0
            }
            _ => match apply(session, change).await {
                Ok(_) => Outcome::Committed,
                Err(Trouble::Lost) => Outcome::Unknown,
                Err(_) => Outcome::Aborted(String::new()),
            },
        };
        world.count("changes", 1);
        self.learn(change, &outcome);
    }

    /// Brings what must be there up to date.
    fn learn(&self, change: Change, outcome: &Outcome) {
        let mut expected = self.expected.lock();
        match outcome {
            Outcome::Aborted(_) => {}
            Outcome::Unknown => match change {
                Change::Insert((id, ..))
                | Change::Colour(id, _)
                | Change::Tag(id, _)
                | Change::Weight(id, _)
                | Change::Delete(id) => drop(expected.remove(&id)),
                Change::Swap(first, second) => {
                    expected.remove(&first.0);
                    expected.remove(&second.0);
                }
            },
            Outcome::Committed => {
                let mut put = |id: i64, change: &dyn Fn(Thing) -> Option<Thing>| {
                    if let Some(slot) = expected.get_mut(&id) {
                        *slot = slot.and_then(change);
                    }
                };
                match change {
                    Change::Insert(thing) => {
                        expected.entry(thing.0).and_modify(|slot| *slot = Some(thing));
                    }
                    Change::Colour(id, colour) => {
                        put(id, &|(id, _, tag, weight)| Some((id, colour, tag, weight)));
                    }
                    Change::Tag(id, tag) => {
                        put(id, &|(id, colour, _, weight)| Some((id, colour, tag, weight)));
                    }
                    Change::Weight(id, weight) => {
                        put(id, &|(id, colour, tag, _)| Some((id, colour, tag, weight)));
                    }
                    Change::Delete(id) => put(id, &|_| None),
                    Change::Swap(first, second) => {
                        put(first.0, &|(id, colour, _, weight)| {
                            Some((id, colour, second.2, weight))
                        });
                        put(second.0, &|(id, colour, _, weight)| {
                            Some((id, colour, first.2, weight))
                        });
                    }
                }
            }
        }
    }

    // ---- readers

    async fn reader(&self, world: &World, number: usize) {
        let mut dice = world.dice("index", number);
        let mut session = Session::new(world, "index", number);
        let mut builder =
            Session::new(world, "index builder", number).patience(Duration::from_secs(20));
        let mut snapshots: Vec<u64> = Vec::new();
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            if self.builds && dice.one_in(20) && builder.ready().await {
                let text = *dice.pick(&[
                    "CREATE INDEX IF NOT EXISTS index_weight ON index_things (weight)",
                    "DROP INDEX IF EXISTS index_weight",
                ]);
                if builder.command(text).await.is_ok() {
                    world.count("indexes built or dropped", 1);
                }
            }
            if !session.ready().await {
                continue;
            }
            let (colour, weight) = (dice.below(N_COLOURS as u64), dice.below(N_WEIGHTS as u64));
            let tags: Vec<i64> = (0..3).map(|_| dice.below(N_TAGS as u64) as i64).collect();
            let looks = Looks {
                colours: vec![colour as i64],
                weights: vec![weight as i64],
                tags,
                ranges: dice.one_in(2),
            };
            let old = match snapshots.is_empty() || dice.one_in(2) {
                true => None,
                false => Some(*dice.pick(&snapshots)),
            };
            let body = async |sql: &mut Session| {
                let scn = sql.snapshot().await?;
                Ok((scn, look(sql, &looks).await?))
            };
            let found = match old {
                Some(scn) => session.past(scn, body).await,
                None => session.transaction(Level::RepeatableRead, body).await.1,
            };
            let Some((scn, found)) = found else { continue };
            if snapshots.len() == N_SNAPSHOTS {
                snapshots.remove(dice.below(N_SNAPSHOTS as u64) as usize);
            }
            snapshots.push(scn);
            world.count("index reads", found.len() as u64);
            if let Err(error) = compare(&found) {
                session.wrong(format!("{error} (SCN {scn}, {})", session.node()));
            }
        }
    }
}

async fn apply(sql: &mut Session, change: Change) -> Answer<u64> {
    match change {
        Change::Insert((id, colour, tag, weight)) => {
            let text = "INSERT INTO index_things (id, colour, tag, weight) VALUES ($1, $2, $3, $4)";
            sql.execute(text, &[&id, &colour, &tag, &weight]).await
        }
        Change::Colour(id, colour) => {
            let text = "UPDATE index_things SET colour = $2 WHERE id = $1";
            sql.execute(text, &[&id, &colour]).await
        }
        Change::Tag(id, tag) => {
            let text = "UPDATE index_things SET tag = $2 WHERE id = $1";
            sql.execute(text, &[&id, &tag]).await
        }
        Change::Weight(id, weight) => {
            let text = "UPDATE index_things SET weight = $2 WHERE id = $1";
            sql.execute(text, &[&id, &weight]).await
        }
        Change::Delete(id) => sql.execute("DELETE FROM index_things WHERE id = $1", &[&id]).await,
        Change::Swap(..) => Err(Trouble::Withdrawn),
    }
}

/// By way of a tag that nobody uses.
async fn swap(sql: &mut Session, first: Thing, second: Thing) -> Answer<()> {
    let text = "UPDATE index_things SET tag = $2 WHERE id = $1";
    let aside = 1_000_000 + first.0;
    sql.execute_one(text, &[&first.0, &aside]).await?;
    sql.execute_one(text, &[&second.0, &first.2]).await?;
    sql.execute_one(text, &[&first.0, &second.2]).await
}

struct Looks {
    colours: Vec<i64>,
    tags: Vec<i64>,
    weights: Vec<i64>,
    ranges: bool,
}

impl Looks {
    fn everywhere() -> Looks {
        Looks {
            colours: (0..N_COLOURS).collect(),
            tags: (0..N_TAGS).collect(),
            weights: (0..N_WEIGHTS).collect(),
            ranges: true,
        }
    }
}

/// What one way to look for rows gave, and which rows it should have given.
struct Found {
    way: String,
    wanted: Box<dyn Fn(&Thing) -> bool + Send + Sync>,
    things: Vec<Thing>,
}

/// All rows by key, then by the indexes, at one snapshot.
async fn look(sql: &mut Session, looks: &Looks) -> Answer<Vec<Found>> {
    let mut all = Vec::new();
    let mut add = |way: String, wanted: Box<dyn Fn(&Thing) -> bool + Send + Sync>, things| {
        all.push(Found { way, wanted, things });
    };
    add("key".into(), Box::new(|_| true), sql.read(BY_KEY, &[]).await?);
    for &colour in &looks.colours {
        let things = sql.read(BY_COLOUR, &[&colour]).await?;
        add(format!("colour {colour}"), Box::new(move |thing| thing.1 == colour), things);
    }
    for &tag in &looks.tags {
        let things = sql.read(BY_TAG, &[&tag]).await?;
        add(format!("tag {tag}"), Box::new(move |thing| thing.2 == tag), things);
    }
    for &weight in &looks.weights {
        let things = sql.read(BY_WEIGHT, &[&weight]).await?;
        add(format!("weight {weight}"), Box::new(move |thing| thing.3 == weight), things);
    }
    if looks.ranges {
        add("all colours".into(), Box::new(|_| true), sql.read(BY_COLOUR_RANGE, &[]).await?);
        add("all tags".into(), Box::new(|_| true), sql.read(BY_TAG_RANGE, &[]).await?);
    }
    Ok(all)
}

/// The first has all rows by key.
fn compare(found: &[Found]) -> Result<(), String> {
    let Some((by_key, rest)) = found.split_first() else { return Ok(()) };
    let mut tags: BTreeMap<i64, i64> = BTreeMap::new();
    for (id, _, tag, _) in &by_key.things {
        if let Some(other) = tags.insert(*tag, *id) {
            return Err(format!("rows {other} and {id} both have the unique tag {tag}"));
        }
    }
    for found in rest {
        let wanted: Vec<&Thing> =
            by_key.things.iter().filter(|thing| (found.wanted)(thing)).collect();
        let mut things: Vec<&Thing> = found.things.iter().collect();
        things.sort();
        if things != wanted {
            let way = &found.way;
            return Err(format!("by {way} there are {things:?}, and by key {wanted:?}"));
        }
    }
    Ok(())
}

#[async_trait]
impl super::Workload for Index {
    fn name(&self) -> &'static str {
        "index"
    }

    async fn lay_out(&self, sql: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
        sql.batch_execute(
            "CREATE TABLE IF NOT EXISTS index_things (
                 id bigint PRIMARY KEY, colour bigint NOT NULL, tag bigint NOT NULL,
                 weight bigint NOT NULL
             )",
        )
        .await?;
        sql.batch_execute("CREATE INDEX IF NOT EXISTS index_colour ON index_things (colour)")
            .await?;
        sql.batch_execute("CREATE UNIQUE INDEX IF NOT EXISTS index_tag ON index_things (tag)")
            .await?;
        let half = self.n_writers as i64 * N_ROWS_EACH / 2;
        sql.batch_execute(&format!("ALTER TABLE index_things SPLIT AT VALUES ({half})")).await
    }

    fn n_clients(&self) -> usize {
        self.n_writers + 1
    }

    async fn client(&self, world: &World, number: usize) {
        if number < self.n_writers {
            self.writer(world, number).await;
        } else {
            self.reader(world, number).await;
        }
    }

    async fn judge(&self, world: &World) -> Result<(), String> {
        let expected = self.expected.lock().clone();
        for node in 0..world.n_nodes() {
            let everywhere = async |sql: &mut Session| look(sql, &Looks::everywhere()).await;
            let found = read_at(world, "index", node, everywhere).await?;
            compare(&found).map_err(|error| format!("{error} (node {node})"))?;
            let Some(by_key) = found.first() else { continue };
            for (id, thing) in &expected {
                let is = by_key.things.iter().find(|thing| thing.0 == *id);
                if is != thing.as_ref() {
                    return Err(format!(
                        "row {id} is {is:?} and was last acknowledged as {thing:?} \
                         (node {node})"
                    ));
                }
            }
        }
        Ok(())
    }
}
