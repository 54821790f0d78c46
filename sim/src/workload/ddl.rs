//! Tables come, change and go while others write to them.
//!
//! One client creates, widens, splits and drops a handful of small tables, and creates some only to
//! roll back; the others insert into whatever name they pick. Names are used again, so that a plan
//! or a cached definition of the last table of that name would show.
//!
//! ```text
//!   definer    CREATE t ............ DROP t ......... CREATE t
//!   inserter      a ok     b ok   c ?     d 42P01       e ok       t in the end: e, perhaps c
//! ```
//!
//! Promised, and how a violation would show:
//!
//! * Definitions are transactional and seen by every node at once: between an acknowledged CREATE
//!   and the DROP that follows an INSERT is never told that there is no such table, and between
//!   that and the next CREATE none succeeds.
//! * The catalog holds what was acknowledged: tables, and their columns.
//! * A row that was acknowledged to the table that is there in the end is in it, with the default
//!   in every column that was added before or after. No row is there that was refused.
//!
//! * Some runs fill a larger table and drop it at once. When no snapshot can read it any more, every
//!   replica takes its rows out of its own files; none is left with any, and what else is there stays
//!   the same everywhere, which the comparison of the replicas tells.
//!
//! A name whose CREATE or DROP has an unknown outcome is left alone from then on, by everybody:
//! that statement may take effect at any time. Left out: indexes (`index` builds some), sequences
//! behind columns, DROP COLUMN, types.

use super::client::{Answer, Level, Outcome, Pace, Session, Trouble, rows_at};
use crate::world::{Dice, World};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const NO_SUCH_TABLE: &str = "42P01";
const N_SLOTS: usize = 3;
const N_COLUMNS_MAX: usize = 4;
/// Tablets stay when their table goes, and each costs something.
const N_SPLITS_MAX: u64 = 4;
const DEFINER_PATIENCE: Duration = Duration::from_secs(20);
/// More rows than a transaction deletes.
const N_BULK_ROWS: i64 = 1_200;
/// In all their values, and in no others.
const BULK_MARK: &str = "a row of the dropped table";
/// A minute's retention, and the look for such tables, which comes twice a minute and may fail once.
const BULK_GONE: Duration = Duration::from_secs(140);
/// After the storm there are two such looks at least: the first may find a replica that has just started.
const BULK_LOOK: Duration = Duration::from_secs(75);
/// Later it is not begun, so that the judge need not wait long.
const BULK_BEGUN: Duration = Duration::from_secs(45);

pub struct Ddl {
    n_inserters: usize,
    has_bulk: bool,
    /// When the larger table was dropped.
    bulk_dropped: Mutex<Option<Duration>>,
    pace: Pace,
    known: Mutex<Known>,
}

struct Known {
    n_names: u64,
    n_tables: u64,
    n_splits: u64,
    slots: Vec<Slot>,
    /// Names that nobody can tell about any more.
    left: BTreeSet<String>,
    /// By row id, which is the position.
    rows: Vec<Row>,
}

/// A name, and what is there under it.
#[derive(Clone, Debug)]
struct Slot {
    name: String,
    /// Changes whenever a CREATE or DROP begins or ends.
    epoch: u64,
    table: Option<Table>,
}

#[derive(Clone, Debug)]
struct Table {
    /// Never used again, unlike the name.
    number: u64,
    columns: Vec<Column>,
    n_columns_tried: usize,
}

/// An added column and its default.
#[derive(Clone, Debug)]
struct Column {
    number: usize,
    certain: bool,
}

impl Column {
    fn name(&self) -> String {
        format!("c{}", self.number)
    }

    fn default(&self) -> i64 {
        100 + self.number as i64
    }
}

#[derive(Clone, Debug)]
struct Row {
    name: String,
    /// The table that was there for certain when it was inserted.
    table: Option<u64>,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Refused,
    Unknown,
}

impl From<&Outcome> for Fate {
    fn from(outcome: &Outcome) -> Fate {
        match outcome {
            Outcome::Committed => Fate::Acknowledged,
            Outcome::Aborted(_) => Fate::Refused,
            Outcome::Unknown => Fate::Unknown,
        }
    }
}

/// What an inserter knows before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Glimpse {
    name: String,
    epoch: u64,
    table: Option<u64>,
    /// A CREATE or DROP is under way.
    moving: bool,
}

impl Known {
    fn fresh_name(&mut self) -> String {
        self.n_names += 1;
        format!("ddl_{}", self.n_names)
    }

    fn glimpse(&self, at: usize) -> Option<Glimpse> {
        let slot = self.slots.get(at)?;
        Some(Glimpse {
            name: slot.name.clone(),
            epoch: slot.epoch,
            table: slot.table.as_ref().map(|table| table.number),
            moving: slot.epoch % 2 == 1,
        })
    }

    fn new_row(&mut self, name: &str, table: Option<u64>) -> i64 {
        self.rows.push(Row { name: name.to_owned(), table, fate: Fate::Unknown });
        self.rows.len() as i64 - 1
    }

    fn end_row(&mut self, id: i64, fate: Fate) {
        if let Some(row) = usize::try_from(id).ok().and_then(|id| self.rows.get_mut(id)) {
            row.fate = fate;
        }
    }
}

/// A row's value follows from its id.
fn value(id: i64) -> i64 {
    id * 7 + 3
}

impl Ddl {
    pub fn new(dice: &mut Dice) -> Ddl {
        let mut known = Known {
            n_names: 0,
            n_tables: 0,
            n_splits: 0,
            slots: Vec::new(),
            left: BTreeSet::new(),
            rows: Vec::new(),
        };
        for _ in 0..N_SLOTS {
            let name = known.fresh_name();
            known.slots.push(Slot { name, epoch: 0, table: None });
        }
        Ddl {
            n_inserters: 2 + dice.below(2) as usize,
            has_bulk: dice.one_in(3),
            bulk_dropped: Mutex::default(),
            pace: Pace::new(dice),
            known: Mutex::new(known),
        }
    }

    // ---- the larger table

    /// A statement of unknown outcome is asked again until it is certain.
    async fn fill_and_drop(&self, world: &World, session: &mut Session) {
        let steps = [
            "CREATE TABLE IF NOT EXISTS bulk (id bigint PRIMARY KEY, t text NOT NULL)".to_owned(),
            format!(
                "INSERT INTO bulk SELECT n, '{BULK_MARK}' FROM generate_series(1, {N_BULK_ROWS}) AS s(n) \
                 ON CONFLICT DO NOTHING"
            ),
            "DROP TABLE IF EXISTS bulk".to_owned(),
        ];
        for step in steps {
            loop {
                if !world.storming() || world.now() > BULK_BEGUN {
                    return;
                }
                if session.ready().await && session.command(&step).await.is_ok() {
                    break;
                }
                world.sleep(Duration::from_millis(200)).await;
            }
        }
        world.note("ddl: the larger table is dropped");
        *self.bulk_dropped.lock() = Some(world.now());
        let world = world.clone();
        crate::task::spawn(async move { follow(&world).await });
    }

    async fn check_bulk(&self, world: &World) -> Result<(), String> {
        let Some(dropped) = *self.bulk_dropped.lock() else { return Ok(()) };
        let cluster = world.cluster();
        let end = (dropped + BULK_GONE).max(world.now() + BULK_LOOK);
        let mut left = Vec::new();
        while world.now() < end {
            left.clear();
            for node in 0..cluster.nodes.len() {
                match cluster.n_holding(node, BULK_MARK.as_bytes()).await {
                    Some(0) => {}
                    n => left.push((node + 1, n)),
                }
            }
            if left.is_empty() {
                world.count("dropped tables taken out", 1);
                return Ok(());
            }
            world.sleep(Duration::from_secs(2)).await;
        }
        Err(format!("{BULK_GONE:?} after its DROP rows of a table are left on nodes {left:?}"))
    }

    // ---- the definer

    async fn definer(&self, world: &World) {
        let mut dice = world.dice("ddl", 0);
        let mut session = Session::new(world, "ddl", 0).patience(DEFINER_PATIENCE);
        // Who was left out of a tablet keeps what there was: where nodes are added, it may be there for ever.
        if self.has_bulk && world.cluster().shape.n_spare == 0 {
            self.fill_and_drop(world, &mut session).await;
        }
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            // Definitions are rare next to rows.
            let ms = dice.below(1500);
            world.sleep(Duration::from_millis(ms)).await;
            if !session.ready().await {
                continue;
            }
            let at = dice.below(N_SLOTS as u64) as usize;
            let Some(slot) = self.known.lock().slots.get(at).cloned() else { continue };
            match (&slot.table, dice.below(6)) {
                (None, 0) => self.create_and_withdraw(&mut session, &slot).await,
                (None, _) => self.create(&mut session, &mut dice, at, &slot).await,
                (Some(table), 0 | 1) => self.widen(&mut session, at, &slot.name, table).await,
                (Some(_), 2) => self.split(&mut session, &mut dice, &slot.name).await,
                (Some(_), 3) => self.drop_table(&mut session, at, &slot.name).await,
                (Some(_), _) => continue,
            }
            world.count("definitions", 1);
        }
    }

    /// A CREATE or DROP begins: until [`Ddl::settle`] nobody can say what is there.
    fn unsettle(&self, at: usize) {
        if let Some(slot) = self.known.lock().slots.get_mut(at) {
            slot.epoch += 1;
        }
    }

    fn settle(&self, at: usize, fate: Fate, table: Option<Table>) {
        let mut known = self.known.lock();
        let fresh = if fate == Fate::Unknown { Some(known.fresh_name()) } else { None };
        let Some(slot) = known.slots.get_mut(at) else { return };
        slot.epoch += 1;
        match (fate, fresh) {
            (Fate::Acknowledged, _) => slot.table = table,
            (Fate::Unknown, Some(fresh)) => {
                let old = std::mem::replace(&mut slot.name, fresh);
                slot.table = None;
                known.left.insert(old);
            }
            _ => {}
        }
    }

    /// By itself, or together with a first row.
    async fn create(&self, session: &mut Session, dice: &mut Dice, at: usize, slot: &Slot) {
        let name = &slot.name;
        let text = create_text(name);
        let (number, row) = {
            let mut known = self.known.lock();
            known.n_tables += 1;
            let number = known.n_tables;
            (number, dice.one_in(2).then(|| known.new_row(name, Some(number))))
        };
        self.unsettle(at);
        let fate = match row {
            None => autocommit(session.command(&text).await),
            Some(id) => {
                let body = async |sql: &mut Session| {
                    sql.command(&text).await?;
                    insert(sql, name, id).await
                };
                let (outcome, _) = session.transaction(Level::ReadCommitted, body).await;
                self.known.lock().end_row(id, Fate::from(&outcome));
                Fate::from(&outcome)
            }
        };
        let table = Table { number, columns: Vec::new(), n_columns_tried: 0 };
        self.settle(at, fate, Some(table));
    }

    /// Nobody else ever sees it.
    async fn create_and_withdraw(&self, session: &mut Session, slot: &Slot) {
        let id = self.known.lock().new_row(&slot.name, None);
        let body = async |sql: &mut Session| {
            sql.command(&create_text(&slot.name)).await?;
            insert(sql, &slot.name, id).await?;
            Err::<(), Trouble>(Trouble::Withdrawn)
        };
        session.transaction(Level::ReadCommitted, body).await;
        self.known.lock().end_row(id, Fate::Refused);
    }

    async fn drop_table(&self, session: &mut Session, at: usize, name: &str) {
        self.unsettle(at);
        let fate = autocommit(session.command(&format!("DROP TABLE {name}")).await);
        self.settle(at, fate, None);
    }

    async fn widen(&self, session: &mut Session, at: usize, name: &str, table: &Table) {
        if table.n_columns_tried >= N_COLUMNS_MAX {
            return;
        }
        let mut column = Column { number: table.n_columns_tried + 1, certain: true };
        let (added, default) = (column.name(), column.default());
        let text =
            format!("ALTER TABLE {name} ADD COLUMN {added} bigint NOT NULL DEFAULT {default}");
        let fate = autocommit(session.command(&text).await);
        let mut known = self.known.lock();
        let slot = known.slots.get_mut(at);
        let Some(table) = slot.and_then(|slot| slot.table.as_mut()) else { return };
        if fate != Fate::Refused {
            table.n_columns_tried += 1;
            column.certain = fate == Fate::Acknowledged;
            table.columns.push(column);
        }
    }

    async fn split(&self, session: &mut Session, dice: &mut Dice, name: &str) {
        let value = {
            let mut known = self.known.lock();
            if known.n_splits >= N_SPLITS_MAX {
                return;
            }
            known.n_splits += 1;
            dice.below(known.rows.len() as u64 + 100)
        };
        // Whether it worked changes nothing that anybody can see.
        let text = format!("ALTER TABLE {name} SPLIT AT VALUES ({value})");
        if session.command(&text).await == Err(Trouble::Lost) {
            session.leave();
        }
    }

    // ---- inserters

    async fn inserter(&self, world: &World, number: usize) {
        let mut dice = world.dice("ddl", number);
        let mut session = Session::new(world, "ddl", number).expecting(&[NO_SUCH_TABLE]);
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            if session.ready().await {
                self.one(&mut session, &mut dice).await;
            }
        }
    }

    async fn one(&self, session: &mut Session, dice: &mut Dice) {
        let at = dice.below(N_SLOTS as u64) as usize;
        let begun = {
            let mut known = self.known.lock();
            let Some(glimpse) = known.glimpse(at) else { return };
            let certain = if glimpse.moving { None } else { glimpse.table };
            let id = known.new_row(&glimpse.name, certain);
            (glimpse, id)
        };
        let (before, id) = begun;
        let name = &before.name;
        let (fate, refused) = if dice.one_in(3) {
            let body = async |sql: &mut Session| insert(sql, name, id).await;
            let (outcome, _) = session.transaction(Level::ReadCommitted, body).await;
            let missing = outcome == Outcome::Aborted(NO_SUCH_TABLE.to_owned());
            (Fate::from(&outcome), missing)
        } else {
            let answer = insert(session, name, id).await;
            let missing = matches!(&answer, Err(trouble) if trouble.is(NO_SUCH_TABLE));
            (autocommit(answer), missing)
        };
        let steady = {
            let mut known = self.known.lock();
            known.end_row(id, fate);
            !before.moving && known.glimpse(at).as_ref() == Some(&before)
        };
        if !steady {
            return;
        }
        let node = session.node();
        match (before.table, fate) {
            (None, Fate::Acknowledged) => {
                session.wrong(format!("{node} took row {id} into {name}, which is not there"));
            }
            (Some(_), _) if refused => {
                session.wrong(format!("{node} does not know {name}, which is there (row {id})"));
            }
            (Some(_), Fate::Acknowledged) if dice.one_in(4) => {
                self.look_up(session, at, &before, id).await;
            }
            _ => {}
        }
    }

    async fn look_up(&self, session: &mut Session, at: usize, before: &Glimpse, id: i64) {
        session.leave();
        if !session.ready().await {
            return;
        }
        let text = format!("SELECT v FROM {} WHERE id = $1", before.name);
        let answer: Answer<Vec<(i64,)>> = session.read(&text, &[&id]).await;
        let found = match answer {
            Ok(rows) => rows == [(value(id),)],
            Err(trouble) => !trouble.is(NO_SUCH_TABLE),
        };
        if !found && self.known.lock().glimpse(at).as_ref() == Some(before) {
            let node = session.node();
            session.wrong(format!("row {id} went into {} and {node} has it not", before.name));
        }
    }

    // ---- what must hold

    fn check_catalog(&self, columns: &BTreeMap<String, BTreeSet<String>>) -> Result<(), String> {
        let known = self.known.lock();
        for slot in &known.slots {
            let (name, there) = (&slot.name, columns.get(&slot.name));
            match (&slot.table, there) {
                (None, None) => {}
                (None, Some(_)) => return Err(format!("{name} is there and should not be")),
                (Some(_), None) => return Err(format!("{name} should be there and is not")),
                (Some(table), Some(there)) => check_columns(name, table, there)?,
            }
        }
        let used = |name: &String| {
            known.left.contains(name) || known.slots.iter().any(|slot| slot.name == *name)
        };
        match columns.keys().find(|name| !used(name)) {
            Some(name) => Err(format!("{name} is there, and nobody made it")),
            None => Ok(()),
        }
    }

    fn check_rows(&self, slot: &Slot, table: &Table, found: &[(i64, i64)]) -> Result<(), String> {
        let known = self.known.lock();
        let name = &slot.name;
        let mut ids = BTreeSet::new();
        for &(id, v) in found {
            let row = usize::try_from(id).ok().and_then(|id| known.rows.get(id));
            let fits = row.is_some_and(|row| row.name == *name && row.fate != Fate::Refused);
            if !fits || v != value(id) || !ids.insert(id) {
                return Err(format!("{name} holds row ({id}, {v}), and that was {row:?}"));
            }
        }
        for (id, row) in known.rows.iter().enumerate() {
            let is_own = row.table == Some(table.number) && row.fate == Fate::Acknowledged;
            if is_own && !ids.contains(&(id as i64)) {
                return Err(format!("{name} has lost row {id}"));
            }
        }
        Ok(())
    }
}

/// Tells people who replay when each node's rows of the dropped table go, or come back.
async fn follow(world: &World) {
    let cluster = world.cluster();
    let mut known: BTreeMap<usize, usize> = BTreeMap::new();
    loop {
        for node in 0..cluster.nodes.len() {
            let Some(n) = cluster.n_holding(node, BULK_MARK.as_bytes()).await else { continue };
            if known.insert(node, n) != Some(n) {
                world.note(format!("ddl: node {} holds {n} rows of the dropped table", node + 1));
            }
        }
        world.sleep(Duration::from_secs(1)).await;
    }
}

/// Those acknowledged are there, and no others than those tried.
fn check_columns(name: &str, table: &Table, there: &BTreeSet<String>) -> Result<(), String> {
    let base = ["id".to_owned(), "v".to_owned()];
    let certain = table.columns.iter().filter(|column| column.certain).map(Column::name);
    let needed: BTreeSet<String> = base.iter().cloned().chain(certain).collect();
    let possible: BTreeSet<String> =
        base.iter().cloned().chain(table.columns.iter().map(Column::name)).collect();
    if needed.is_subset(there) && there.is_subset(&possible) {
        return Ok(());
    }
    Err(format!("{name} has the columns {there:?}, of {possible:?}; {needed:?} are certain"))
}

fn create_text(name: &str) -> String {
    format!("CREATE TABLE {name} (id bigint PRIMARY KEY, v bigint NOT NULL)")
}

async fn insert(sql: &mut Session, name: &str, id: i64) -> Answer<()> {
    let text = format!("INSERT INTO {name} (id, v) VALUES ($1, $2)");
    sql.execute_one(&text, &[&id, &value(id)]).await
}

fn autocommit(answer: Answer<()>) -> Fate {
    match answer {
        Ok(()) => Fate::Acknowledged,
        Err(Trouble::Lost) => Fate::Unknown,
        Err(_) => Fate::Refused,
    }
}

#[async_trait]
impl super::Workload for Ddl {
    fn name(&self) -> &'static str {
        "ddl"
    }

    async fn lay_out(&self, _: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
        Ok(())
    }

    fn n_clients(&self) -> usize {
        1 + self.n_inserters
    }

    async fn client(&self, world: &World, number: usize) {
        if number == 0 {
            self.definer(world).await;
        } else {
            self.inserter(world, number).await;
        }
    }

    async fn judge(&self, world: &World) -> Result<(), String> {
        let slots = self.known.lock().slots.clone();
        for node in 0..world.n_nodes() {
            let at = |error: String| format!("{error} (node {node})");
            let catalog = "SELECT table_name::text, column_name::text \
                           FROM information_schema.columns WHERE table_name LIKE 'ddl%'";
            let mut columns: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (name, column) in rows_at::<(String, String)>(world, "ddl", node, catalog).await? {
                columns.entry(name).or_default().insert(column);
            }
            self.check_catalog(&columns).map_err(at)?;
            for slot in &slots {
                let Some(table) = &slot.table else { continue };
                let name = &slot.name;
                let all = format!("SELECT id, v FROM {name} ORDER BY id");
                let rows = rows_at(world, "ddl", node, &all).await?;
                self.check_rows(slot, table, &rows).map_err(at)?;
                let there = columns.get(name);
                let is_there =
                    |column: &Column| there.is_some_and(|columns| columns.contains(&column.name()));
                for column in table.columns.iter().filter(|column| is_there(column)) {
                    let (own, default) = (column.name(), column.default());
                    let odd = format!("SELECT id FROM {name} WHERE {own} <> {default} ORDER BY id");
                    let odd: Vec<(i64,)> = rows_at(world, "ddl", node, &odd).await?;
                    if !odd.is_empty() {
                        return Err(at(format!("{name}.{own} is not {default} in rows {odd:?}")));
                    }
                }
            }
        }
        self.check_bulk(world).await
    }
}
