//! A primary key is unique, whoever inserts it where.
//!
//! Clients insert ids that nobody has, ids that others want at the same moment, and ids that are
//! surely there already; alone, several in one statement, and one by one in a transaction. Each
//! attempt writes its own token beside its ids, so that a row tells which attempt made it. Rows
//! are never changed or deleted, so what was seen once must be seen for ever.
//!
//! ```text
//!   attempt 5: (id 12) ok          attempt 6: (id 12) 23505        row (12, 5), and no token 6
//! ```
//!
//! Promised, and how a violation would show:
//!
//! * An acknowledged row is there, with the token of its attempt. Two acknowledged attempts for one
//!   id cannot both be.
//! * A refused attempt left nothing behind: no row has its token. If it was refused as a duplicate,
//!   somebody else's row is there.
//! * A statement or transaction of several rows is there as a whole, or not at all.
//! * ON CONFLICT DO NOTHING inserts those that are missing and none of the others.
//!
//! Left out: unique secondary indexes (`index`), deletes, and ON CONFLICT DO UPDATE (`registers`).

use super::client::{Answer, Level, Levels, Outcome, Pace, Session, Trouble, rows_at};
use crate::world::{Dice, World};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::BTreeMap;

const DUPLICATE: &str = "23505";
const ALL: &str = "SELECT id, token FROM unique_ids ORDER BY id";

pub struct Unique {
    n_clients: usize,
    /// How many attempts an id gets that several clients want.
    rivals: u64,
    levels: Levels,
    pace: Pace,
    attempts: Mutex<Attempts>,
}

#[derive(Default)]
struct Attempts {
    n_fresh: i64,
    n_contested: u64,
    list: Vec<Attempt>,
    /// Ids that were acknowledged.
    there: Vec<i64>,
}

#[derive(Clone, Debug)]
struct Attempt {
    ids: Vec<i64>,
    style: Style,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// INSERT of all rows.
    Plain,
    /// INSERT of all rows ON CONFLICT DO NOTHING.
    Lenient,
    /// A transaction with one INSERT a row.
    OneByOne,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// These were inserted; the others were in the way of a lenient one.
    Inserted(Vec<i64>),
    Duplicate,
    Refused,
    Unknown,
}

impl Unique {
    pub fn new(dice: &mut Dice) -> Unique {
        Unique {
            n_clients: 3 + dice.below(2) as usize,
            rivals: 2 + dice.below(2),
            levels: Levels::new(dice),
            pace: Pace::new(dice),
            attempts: Mutex::default(),
        }
    }

    /// Ids for one attempt, in the three tablets, and whether all of them are surely free.
    fn ids(&self, dice: &mut Dice) -> (Vec<i64>, bool) {
        let n_ids = if dice.one_in(3) { 3 } else { 1 };
        let mut attempts = self.attempts.lock();
        let mut ids = Vec::with_capacity(n_ids);
        let mut all_fresh = true;
        for _ in 0..n_ids {
            let id = match dice.below(8) {
                0 if !attempts.there.is_empty() => {
                    all_fresh = false;
                    *dice.pick(&attempts.there)
                }
                1..5 => {
                    all_fresh = false;
                    attempts.n_contested += 1;
                    (attempts.n_contested / self.rivals) as i64
                }
                _ => {
                    attempts.n_fresh += 1;
                    let n = attempts.n_fresh;
                    if n % 2 == 0 { CONTESTED_MAX + n } else { FAR + n }
                }
            };
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        (ids, all_fresh)
    }

    fn begin(&self, ids: &[i64], style: Style) -> usize {
        let mut attempts = self.attempts.lock();
        attempts.list.push(Attempt { ids: ids.to_vec(), style, verdict: Verdict::Unknown });
        attempts.list.len() - 1
    }

    fn end(&self, token: usize, verdict: Verdict) {
        let mut attempts = self.attempts.lock();
        if let Verdict::Inserted(ids) = &verdict {
            attempts.there.extend(ids);
        }
        if let Some(attempt) = attempts.list.get_mut(token) {
            attempt.verdict = verdict;
        }
    }

    async fn attempt(&self, session: &mut Session, dice: &mut Dice) {
        let (ids, all_fresh) = self.ids(dice);
        let style = *dice.pick(&[Style::Plain, Style::Lenient, Style::OneByOne]);
        let level = self.levels.pick(dice);
        let token = self.begin(&ids, style);
        let verdict = insert(session, &ids, token as i64, style, level).await;
        if verdict == Verdict::Duplicate && all_fresh {
            session.wrong(format!("{ids:?} are said to be duplicates, and nobody had them"));
        }
        self.end(token, verdict.clone());
        let Verdict::Inserted(inserted) = verdict else { return };
        if all_fresh && inserted != ids {
            session.wrong(format!("of {ids:?}, which nobody had, only {inserted:?} went in"));
        }
        // Somebody else's eyes.
        if dice.one_in(4)
            && let Some(id) = inserted.first()
        {
            session.leave();
            if session.ready().await {
                look_up(session, *id, token as i64).await;
            }
        }
    }
}

/// Ids from here on are wanted by one client only; below, by several.
const CONTESTED_MAX: i64 = 1_000_000;
const FAR: i64 = 2_000_000;

async fn insert(
    session: &mut Session,
    ids: &[i64],
    token: i64,
    style: Style,
    level: Level,
) -> Verdict {
    let answer = match style {
        Style::OneByOne => {
            let all = async |sql: &mut Session| {
                for id in ids {
                    let insert = "INSERT INTO unique_ids VALUES ($1, $2)";
                    sql.execute_one(insert, &[id, &token]).await?;
                }
                Ok(())
            };
            return match session.transaction(level, all).await.0 {
                Outcome::Committed => Verdict::Inserted(ids.to_vec()),
                Outcome::Aborted(state) if state == DUPLICATE => Verdict::Duplicate,
                Outcome::Aborted(_) => Verdict::Refused,
                Outcome::Unknown => Verdict::Unknown,
            };
        }
        Style::Plain => insert_all(session, ids, token, "RETURNING id").await,
        Style::Lenient => {
            insert_all(session, ids, token, "ON CONFLICT DO NOTHING RETURNING id").await
        }
    };
    match answer {
        Ok(inserted) => {
            if style == Style::Plain && inserted != ids {
                session.wrong(format!("an INSERT of {ids:?} returned {inserted:?}"));
            }
            Verdict::Inserted(inserted)
        }
        Err(Trouble::Lost) => Verdict::Unknown,
        Err(trouble) if trouble.is(DUPLICATE) => Verdict::Duplicate,
        Err(_) => Verdict::Refused,
    }
}

async fn insert_all(
    session: &mut Session,
    ids: &[i64],
    token: i64,
    tail: &str,
) -> Answer<Vec<i64>> {
    // The text depends on the number of rows only, so that few are prepared.
    let rows: Vec<String> = (0..ids.len()).map(|n| format!("(${}, $1)", n + 2)).collect();
    let text = format!("INSERT INTO unique_ids (id, token) VALUES {} {tail}", rows.join(", "));
    let mut params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = vec![&token];
    params.extend(ids.iter().map(|id| id as &(dyn tokio_postgres::types::ToSql + Sync)));
    let rows: Vec<(i64,)> = session.read(&text, &params).await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

async fn look_up(session: &mut Session, id: i64, token: i64) {
    let find = "SELECT token FROM unique_ids WHERE id = $1";
    let Ok(rows) = session.read::<(i64,)>(find, &[&id]).await else { return };
    if rows != [(token,)] {
        let node = session.node();
        session.wrong(format!("{id} was inserted by attempt {token}, and {node} has {rows:?}"));
    }
}

/// What the table has, against what the attempts were told.
fn check(attempts: &[Attempt], rows: &[(i64, i64)]) -> Result<(), String> {
    let mut of_token: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    let mut of_id: BTreeMap<i64, i64> = BTreeMap::new();
    for &(id, token) in rows {
        if let Some(other) = of_id.insert(id, token) {
            return Err(format!("id {id} is there twice, by attempts {other} and {token}"));
        }
        let known = usize::try_from(token).ok().and_then(|token| attempts.get(token));
        if !known.is_some_and(|attempt| attempt.ids.contains(&id)) {
            return Err(format!("id {id} has token {token}, whose attempt is {known:?}"));
        }
        of_token.entry(token).or_default().push(id);
    }
    for (token, attempt) in attempts.iter().enumerate() {
        let told = format!("attempt {token} ({attempt:?})");
        let mut made = of_token.remove(&(token as i64)).unwrap_or_default();
        made.sort();
        match &attempt.verdict {
            Verdict::Inserted(ids) => {
                let mut ids = ids.clone();
                ids.sort();
                if ids != made {
                    return Err(format!("{told} made {made:?}"));
                }
            }
            Verdict::Duplicate | Verdict::Refused if !made.is_empty() => {
                return Err(format!("{told} made {made:?}"));
            }
            Verdict::Unknown
                if attempt.style != Style::Lenient
                    && !(made.is_empty() || made.len() == attempt.ids.len()) =>
            {
                return Err(format!("{told} made a part only: {made:?}"));
            }
            _ => {}
        }
        // Whoever was in the way is there, because nothing is ever deleted.
        let in_the_way = |id: &i64| of_id.get(id).is_some_and(|other| *other != token as i64);
        let missing = match &attempt.verdict {
            Verdict::Duplicate => !attempt.ids.iter().any(in_the_way),
            Verdict::Inserted(_) => {
                !attempt.ids.iter().all(|id| made.contains(id) || in_the_way(id))
            }
            _ => false,
        };
        if missing {
            return Err(format!("{told} met a row that is not there"));
        }
    }
    Ok(())
}

#[async_trait]
impl super::Workload for Unique {
    fn name(&self) -> &'static str {
        "unique"
    }

    async fn lay_out(&self, sql: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
        sql.batch_execute(
            "CREATE TABLE IF NOT EXISTS unique_ids (id bigint PRIMARY KEY, token bigint NOT NULL)",
        )
        .await?;
        let split = format!("ALTER TABLE unique_ids SPLIT AT VALUES ({CONTESTED_MAX}), ({FAR})");
        sql.batch_execute(&split).await
    }

    fn n_clients(&self) -> usize {
        self.n_clients
    }

    async fn client(&self, world: &World, number: usize) {
        let mut dice = world.dice("unique", number);
        let mut session = Session::new(world, "unique", number).expecting(&[DUPLICATE]);
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            if session.ready().await {
                self.attempt(&mut session, &mut dice).await;
                world.count("inserts", 1);
            }
        }
    }

    async fn judge(&self, world: &World) -> Result<(), String> {
        let attempts = self.attempts.lock().list.clone();
        for node in 0..world.n_nodes() {
            let rows = rows_at(world, "unique", node, ALL).await?;
            check(&attempts, &rows)
                .map_err(|error| format!("{error} (read through node {node})"))?;
        }
        Ok(())
    }
}
