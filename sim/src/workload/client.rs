//! A client that lives with a cluster that breaks: it reconnects, it loses patience, and it knows
//! what it does not know.
//!
//! What an error means depends on what was asked:
//!
//! ```text
//!                       inside a transaction     COMMIT, or a statement on its own
//!   ERROR <state>       it is over, nothing      nothing happened
//!   ERROR 08007         the same                 unknown
//!   FATAL, closed,      the same: what is never  unknown: the server may have done it and
//!     out of patience   committed is undone      only its answer is lost
//! ```
//!
//! After the last line the connection is dropped: what it still might answer belongs to no
//! question any more.
//!
//! What is read while a host goes on that had stood still with its clocks may be as old as that host
//! ([`World::is_doubtful`]). It is counted and not shown: outside of a transaction it is as if there had
//! been no answer, a transaction shows nothing of what its body returns. That something was committed
//! or refused counts as ever.
//!
//! A few states belong to life in a cluster ([`EXPECTED`]). Any other that a workload has not
//! announced is a violation by itself, because a client would have no idea what to do about it.

use crate::world::{Dice, World};
use std::collections::BTreeMap;
use std::error::Error as _;
use std::time::Duration;
use tokio_postgres::types::{FromSqlOwned, ToSql};
use tokio_postgres::{Client, Error, Row, Statement};

/// Run the transaction again, elsewhere if need be.
const EXPECTED: [&str; 7] = ["40001", "40P01", "57P01", "08006", "57014", "55P03", "72000"];
const OUTCOME_UNKNOWN: &str = "08007";
/// The transaction has failed before.
const FAILED_BEFORE: &str = "25P02";
/// What stands for a refusal whose reason is in doubt.
const DOUBTFUL: &str = "40001";
/// What aborts are filed under when there was no answer at all.
const CONNECTION_LOST: &str = "08006";
/// How long a judge tries a node: long after the faults it must answer.
const JUDGE_PATIENCE: Duration = Duration::from_secs(60);

pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Level {
    const ALL: [Level; 3] = [Level::ReadCommitted, Level::RepeatableRead, Level::Serializable];

    fn begin(self) -> &'static str {
        match self {
            Level::ReadCommitted => "BEGIN ISOLATION LEVEL READ COMMITTED",
            Level::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Level::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        }
    }
}

/// Which levels a run's transactions use: one and the same, or all in turn.
#[derive(Clone, Copy, Debug)]
pub struct Levels(Option<Level>);

impl Levels {
    pub fn new(dice: &mut Dice) -> Levels {
        Levels(if dice.one_in(2) { Some(*dice.pick(&Level::ALL)) } else { None })
    }

    pub fn pick(&self, dice: &mut Dice) -> Level {
        self.0.unwrap_or_else(|| *dice.pick(&Level::ALL))
    }
}

/// How long clients rest between transactions.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    ms_max: u64,
    /// Writing comes and goes with this period, while reading goes on. Leases live, and logs rest.
    tide_ms: Option<u64>,
}

const REST_MS_MIN: u64 = 20;

impl Pace {
    pub fn new(dice: &mut Dice) -> Pace {
        let ms_max = *dice.pick(&[60, 300, 1_000, 3_000]);
        Pace { ms_max, tide_ms: *dice.pick(&[None, Some(3_000), Some(6_000)]) }
    }

    /// Whether nobody writes just now.
    pub fn is_ebb(&self, world: &World) -> bool {
        let now_ms = world.now().as_millis() as u64;
        self.tide_ms.is_some_and(|period| now_ms % period < period * 2 / 3)
    }

    pub async fn rest(&self, world: &World, dice: &mut Dice) {
        let ms = REST_MS_MIN + dice.below(self.ms_max - REST_MS_MIN);
        world.sleep(Duration::from_millis(ms)).await;
    }
}

/// Why a statement has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The server said no, with this state: nothing of the statement happened, and a transaction
    /// around it is over.
    Refused(String),
    /// Nobody said how it ended.
    Lost,
    /// The client itself wants its transaction undone.
    Withdrawn,
}

impl Trouble {
    pub fn is(&self, state: &str) -> bool {
        matches!(self, Trouble::Refused(own) if own == state)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    /// By this SQLSTATE.
    Aborted(String),
    Unknown,
}

struct Connection {
    node: usize,
    client: Client,
    prepared: BTreeMap<String, Statement>,
}

pub struct Session {
    world: World,
    dice: Dice,
    owner: &'static str,
    number: usize,
    /// Stays with this node.
    only: Option<usize>,
    expected: &'static [&'static str],
    patience: Duration,
    /// Keeps statements prepared, as drivers with a cache do.
    prepares: bool,
    n_connections: u64,
    connection: Option<Connection>,
    /// When the open transaction began.
    since: Option<Duration>,
}

impl Session {
    /// `owner` and `number` name it in the timeline.
    pub fn new(world: &World, owner: &'static str, number: usize) -> Session {
        let mut dice = world.dice(&format!("{owner} session"), number);
        Session {
            world: world.clone(),
            owner,
            number,
            only: None,
            expected: &[],
            patience: Duration::from_millis(2000 + dice.below(4000)),
            prepares: dice.one_in(2),
            dice,
            n_connections: 0,
            connection: None,
            since: None,
        }
    }

    /// Whether what was seen since `begun`, or since the open transaction began, tells nothing.
    fn is_doubtful(&self, begun: Duration) -> bool {
        let is_doubtful = self.world.is_doubtful(self.since.unwrap_or(begun));
        if is_doubtful {
            self.world.count("answers in doubt", 1);
        }
        is_doubtful
    }

    /// The answer to what should be otherwise, if it is certain.
    fn odd(&self, begun: Duration, text: impl FnOnce() -> String) -> Trouble {
        if self.is_doubtful(begun) {
            return if self.since.is_some() { Trouble::Withdrawn } else { Trouble::Lost };
        }
        self.wrong(text());
        Trouble::Withdrawn
    }

    /// One that talks to this node only.
    pub fn at(world: &World, owner: &'static str, node: usize) -> Session {
        Session { only: Some(node), ..Session::new(world, owner, 1_000 + node) }
    }

    /// The states that are answers to this workload's statements, beside those of a cluster.
    pub fn expecting(self, expected: &'static [&'static str]) -> Session {
        Session { expected, ..self }
    }

    pub fn patience(self, patience: Duration) -> Session {
        Session { patience, ..self }
    }

    /// Sees to it that there is a connection. False: not this time; it has waited a little.
    pub async fn ready(&mut self) -> bool {
        let closed = self.connection.as_ref().is_some_and(|open| open.client.is_closed());
        if closed || self.dice.one_in(12) {
            self.leave();
        }
        if self.connection.is_some() {
            return true;
        }
        let n_nodes = self.world.n_nodes() as u64;
        let node = self.only.unwrap_or_else(|| self.dice.below(n_nodes) as usize);
        match self.world.connect(node).await {
            Ok(client) => {
                self.n_connections += 1;
                self.connection = Some(Connection { node, client, prepared: BTreeMap::new() });
                true
            }
            Err(_) => {
                self.world.count("connections refused", 1);
                let ms = 50 + self.dice.below(200);
                self.world.sleep(Duration::from_millis(ms)).await;
                false
            }
        }
    }

    /// Drops the connection; the next one may be to another node. An open transaction is undone.
    pub fn leave(&mut self) {
        self.connection = None;
    }

    /// Does nothing for a while, with its transaction open.
    pub async fn think(&self, time: Duration) {
        self.world.sleep(time).await;
    }

    /// How many connections it has had: what the server keeps for a session ends with each.
    pub fn lives(&self) -> u64 {
        self.n_connections
    }

    /// Which node it talks to, for messages.
    pub fn node(&self) -> String {
        match &self.connection {
            Some(connection) => format!("node {}", connection.node + 1),
            None => "no node".to_owned(),
        }
    }

    /// Rows of a query.
    pub async fn read<R: Decode>(&mut self, text: &str, params: Params<'_>) -> Answer<Vec<R>> {
        let begun = self.world.now();
        let Reply { rows, .. } = self.run(Ask::Rows(params), text, self.patience).await?;
        if self.since.is_none() && self.is_doubtful(begun) {
            return Err(Trouble::Lost);
        }
        let mut decoded = Vec::with_capacity(rows.len());
        for row in &rows {
            match R::decode(row) {
                Ok(value) => decoded.push(value),
                Err(error) => {
                    self.wrong(format!("{text} answered a row that cannot be: {error}"));
                    return Err(Trouble::Withdrawn);
                }
            }
        }
        Ok(decoded)
    }

    /// A query of exactly one row.
    pub async fn read_one<R: Decode>(&mut self, text: &str, params: Params<'_>) -> Answer<R> {
        let begun = self.world.now();
        let mut rows = self.read(text, params).await?;
        match (rows.len(), rows.pop()) {
            (1, Some(row)) => Ok(row),
            (n, _) => {
                Err(self
                    .odd(begun, || format!("{text} with {params:?} answered {n} rows, not one")))
            }
        }
    }

    /// A change; how many rows it changed.
    pub async fn execute(&mut self, text: &str, params: Params<'_>) -> Answer<u64> {
        let begun = self.world.now();
        let n_changed = self.run(Ask::Change(params), text, self.patience).await?.n_changed;
        if n_changed == 0 && self.since.is_none() && self.is_doubtful(begun) {
            return Err(Trouble::Lost);
        }
        Ok(n_changed)
    }

    /// A change of exactly one row.
    pub async fn execute_one(&mut self, text: &str, params: Params<'_>) -> Answer<()> {
        let begun = self.world.now();
        match self.execute(text, params).await? {
            1 => Ok(()),
            n => {
                Err(self.odd(begun, || format!("{text} with {params:?} changed {n} rows, not one")))
            }
        }
    }

    /// A statement without parameters whose rows nobody wants.
    pub async fn command(&mut self, text: &str) -> Answer<()> {
        self.command_within(text, self.patience).await
    }

    /// The SCN that the transaction (or, outside of one, this statement) reads at.
    pub async fn snapshot(&mut self) -> Answer<u64> {
        let (text,): (String,) = self.read_one("SELECT pg_export_snapshot()", &[]).await?;
        text.parse().map_err(|_| {
            self.wrong(format!("pg_export_snapshot() answered {text:?}, which is no SCN"));
            Trouble::Withdrawn
        })
    }

    /// Runs a transaction: BEGIN, what `body` does, and COMMIT unless that failed. What `body`
    /// returns comes along unless it is known to have been undone, or is in doubt.
    pub async fn transaction<T>(
        &mut self,
        level: Level,
        body: impl AsyncFnOnce(&mut Session) -> Answer<T>,
    ) -> (Outcome, Option<T>) {
        let begun = self.world.now();
        self.since = Some(begun);
        let worked = match self.command(level.begin()).await {
            Ok(()) => body(self).await,
            Err(trouble) => Err(trouble),
        };
        let (outcome, value) = match worked {
            Ok(value) => match self.commit().await {
                Ok(()) => (Outcome::Committed, Some(value)),
                Err(Trouble::Lost) => (Outcome::Unknown, Some(value)),
                Err(trouble) => (aborted(trouble), None),
            },
            Err(trouble) => {
                self.undo(&trouble).await;
                (aborted(trouble), None)
            }
        };
        self.since = None;
        let value = value.filter(|_| !self.is_doubtful(begun));
        let took_ms = (self.world.now() - begun).as_millis();
        let (owner, number, node) = (self.owner, self.number, self.node());
        self.world
            .note(format!("{owner} {number}: {level:?} {outcome:?} after {took_ms} ms, {node}"));
        self.world.count(
            match outcome {
                Outcome::Committed => "transactions",
                Outcome::Aborted(_) => "aborts",
                Outcome::Unknown => "unknown outcomes",
            },
            1,
        );
        (outcome, value)
    }

    /// The same as of an older snapshot, for reading only.
    pub async fn past<T>(
        &mut self,
        scn: u64,
        body: impl AsyncFnOnce(&mut Session) -> Answer<T>,
    ) -> Option<T> {
        let read = self.transaction(Level::RepeatableRead, async |sql: &mut Session| {
            sql.command(&format!("SET TRANSACTION SNAPSHOT '{scn}'")).await?;
            body(sql).await
        });
        match read.await {
            (Outcome::Aborted(state), _) if state == "72000" => {
                self.world.count("snapshots too old", 1);
                None
            }
            (_, value) => value,
        }
    }

    async fn commit(&mut self) -> Answer<()> {
        // Some think before they commit, while others wait for their locks.
        if self.dice.one_in(6) {
            let ms = self.dice.below(150);
            self.world.sleep(Duration::from_millis(ms)).await;
        }
        // Some are gone before the answer is.
        if self.dice.one_in(60) {
            let patience = Duration::from_millis(self.dice.below(6));
            return self.command_within("COMMIT", patience).await;
        }
        self.command("COMMIT").await
    }

    async fn undo(&mut self, trouble: &Trouble) {
        if *trouble != Trouble::Lost && self.command("ROLLBACK").await.is_err() {
            self.leave();
        }
    }

    async fn command_within(&mut self, text: &str, patience: Duration) -> Answer<()> {
        self.run(Ask::Command, text, patience).await.map(drop)
    }

    /// Every statement goes through here: with bounded patience, its error judged.
    async fn run(&mut self, ask: Ask<'_>, text: &str, patience: Duration) -> Answer<Reply> {
        let begun = self.world.now();
        let Some(connection) = &mut self.connection else { return Err(Trouble::Lost) };
        let asked = connection.ask(ask, text, self.prepares);
        let error = match self.world.within(patience, asked).await {
            Some(Ok(reply)) => return Ok(reply),
            Some(Err(error)) => error,
            None => {
                self.world.count("statements given up", 1);
                self.leave();
                return Err(Trouble::Lost);
            }
        };
        let Some(refusal) = error.as_db_error() else {
            let broken = error.source().is_some_and(|source| source.is::<std::io::Error>());
            if !(error.is_closed() || broken) {
                self.wrong(format!("{text} failed at {}: {error:?}", self.node()));
            }
            self.leave();
            return Err(Trouble::Lost);
        };
        let state = refusal.code().code();
        let known = EXPECTED.contains(&state) || state == OUTCOME_UNKNOWN;
        // A node that has read a flipped bit stops, and may be heard saying so.
        let is_damage = state == "XX000" && self.world.damaged().is_some();
        // A bug in the statement, which the nemesis has ordered.
        let is_ordered = state == "XX000"
            && refusal.message().contains(base::rehearsal::ON_PURPOSE)
            || state == FAILED_BEFORE && self.world.has_lost_statements();
        // By definitions and numbers that are as old as the host's sleep.
        let is_of_old = state != "XX000" && self.is_doubtful(begun);
        let is_announced = self.expected.contains(&state) || is_of_old;
        if !known && !is_damage && !is_ordered && !is_announced {
            let what = format!("{state} {} ({:?})", refusal.message(), refusal.detail());
            self.wrong(format!("{text} was refused by {} with {what}", self.node()));
        }
        if refusal.severity() != "ERROR" || state == OUTCOME_UNKNOWN {
            self.leave();
            return Err(Trouble::Lost);
        }
        // That it was refused is certain; why, was perhaps read.
        let is_known = !is_announced || !self.is_doubtful(begun);
        Err(Trouble::Refused(if is_known { state.to_owned() } else { DOUBTFUL.to_owned() }))
    }

    pub fn wrong(&self, text: impl AsRef<str>) {
        self.world.wrong(format!("{} client {}: {}", self.owner, self.number, text.as_ref()));
    }
}

pub type Answer<T> = Result<T, Trouble>;

/// The time as histories have it.
pub fn ns(world: &World) -> u64 {
    world.now().as_nanos() as u64
}

enum Ask<'a> {
    Rows(Params<'a>),
    Change(Params<'a>),
    /// By the simple protocol.
    Command,
}

#[derive(Default)]
struct Reply {
    rows: Vec<Row>,
    n_changed: u64,
}

impl Connection {
    async fn ask(&mut self, ask: Ask<'_>, text: &str, prepares: bool) -> Result<Reply, Error> {
        let mut reply = Reply::default();
        match (ask, prepares) {
            (Ask::Command, _) => self.client.batch_execute(text).await?,
            (Ask::Rows(params), false) => reply.rows = self.client.query(text, params).await?,
            (Ask::Rows(params), true) => {
                let statement = self.prepare(text).await?;
                reply.rows = self.client.query(&statement, params).await?;
            }
            (Ask::Change(params), false) => {
                reply.n_changed = self.client.execute(text, params).await?;
            }
            (Ask::Change(params), true) => {
                let statement = self.prepare(text).await?;
                reply.n_changed = self.client.execute(&statement, params).await?;
            }
        }
        Ok(reply)
    }

    async fn prepare(&mut self, text: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.prepared.get(text) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(text).await?;
        self.prepared.insert(text.to_owned(), statement.clone());
        Ok(statement)
    }
}

fn aborted(trouble: Trouble) -> Outcome {
    Outcome::Aborted(match trouble {
        Trouble::Refused(state) => state,
        Trouble::Lost => CONNECTION_LOST.to_owned(),
        Trouble::Withdrawn => "withdrawn".to_owned(),
    })
}

/// A row's columns as a tuple.
pub trait Decode: Sized {
    fn decode(row: &Row) -> Result<Self, Error>;
}

macro_rules! decode {
    ($($column:ident $idx:literal),+) => {
        impl<$($column: FromSqlOwned),+> Decode for ($($column,)+) {
            fn decode(row: &Row) -> Result<Self, Error> {
                Ok(($(row.try_get::<_, $column>($idx)?,)+))
            }
        }
    };
}

decode!(A 0);
decode!(A 0, B 1);
decode!(A 0, B 1, C 2);
decode!(A 0, B 1, C 2, D 3);

/// A judge's questions to one node. Nothing is broken any more: a node that does not answer in
/// good time is a finding.
struct Patient {
    session: Session,
    node: usize,
    deadline: Duration,
    last: String,
}

impl Patient {
    fn new(world: &World, owner: &'static str, node: usize) -> Patient {
        Patient {
            session: Session::at(world, owner, node).patience(Duration::from_secs(10)),
            node,
            deadline: world.now() + JUDGE_PATIENCE,
            last: "no connection".to_owned(),
        }
    }

    /// One try, at one snapshot. None: ask again.
    async fn read<T>(
        &mut self,
        body: impl AsyncFnOnce(&mut Session) -> Answer<T>,
    ) -> Result<Option<T>, String> {
        let session = &mut self.session;
        if session.ready().await {
            match session.transaction(Level::RepeatableRead, body).await {
                (Outcome::Committed, Some(value)) => return Ok(Some(value)),
                (outcome, _) => self.last = format!("{outcome:?}"),
            }
            session.world.sleep(Duration::from_millis(200)).await;
        }
        if session.world.now() < self.deadline {
            return Ok(None);
        }
        let (node, last) = (self.node, &self.last);
        Err(format!("node {node} does not answer {JUDGE_PATIENCE:?} after the storm: {last}"))
    }
}

/// What a judge reads through `node`, at one snapshot.
pub async fn read_at<T>(
    world: &World,
    owner: &'static str,
    node: usize,
    body: impl AsyncFn(&mut Session) -> Answer<T>,
) -> Result<T, String> {
    let mut patient = Patient::new(world, owner, node);
    loop {
        if let Some(value) = patient.read(&body).await? {
            return Ok(value);
        }
    }
}

/// The rows of one query, likewise.
pub async fn rows_at<R: Decode>(
    world: &World,
    owner: &'static str,
    node: usize,
    text: &str,
) -> Result<Vec<R>, String> {
    let mut patient = Patient::new(world, owner, node);
    loop {
        let body = async |sql: &mut Session| sql.read::<R>(text, &[]).await;
        if let Some(rows) = patient.read(body).await? {
            return Ok(rows);
        }
    }
}
