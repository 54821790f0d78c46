//! Money moves between accounts and none is made or lost.
//!
//! Every transfer takes from one account, gives to another and writes a line into a journal, in
//! one transaction over several tablets, at any isolation level.
//!
//! Promised, and how a violation would show:
//!
//! * *Whole or not at all.* A half transfer changes the total that an auditor sees at one snapshot,
//!   or makes an account differ from what the journal makes of it.
//! * *What was acknowledged stays.* Its line is missing from an audit that began later, or at the
//!   end. What was refused or withdrawn never happened: its line is there.
//! * *No lost update.* Half of the tellers read the balance and write back what they computed. At
//!   READ COMMITTED they lock what they read; above it the database has to notice. A lost update
//!   leaves an account other than its journal.
//! * *The past does not change.* The accounts as of an SCN, read again minutes later through any
//!   node, differ in no byte.
//! * *The cluster knows what became of a commit.* Its answer for a transaction's id contradicts the
//!   journal.
//!
//! Left out: overdrafts (no constraint over rows is promised below SERIALIZABLE; `append` looks
//! for write skew), and how long anything takes.

use super::client::{Answer, Level, Levels, Outcome, Pace, Session, Trouble, read_at};
use crate::world::{Dice, World};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;

const START: i64 = 1000;
const ACCOUNTS: &str = "SELECT id, balance FROM bank_accounts ORDER BY id";
const JOURNAL: &str = "SELECT id, source, target, amount FROM bank_transfers ORDER BY id";
/// Journal lines from here on live in another tablet.
const FAR: i64 = 1_000_000_000;
/// Between two looks at the same snapshot in one transaction.
const AGAIN_MAX: Duration = Duration::from_millis(300);
/// Snapshots that auditors go back to, and how many of them the judge reads through every node.
const N_SNAPSHOTS: usize = 48;
const N_SNAPSHOTS_JUDGED: usize = 6;

pub struct Bank {
    n_accounts: i64,
    n_tellers: usize,
    levels: Levels,
    pace: Pace,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    n_transfers: i64,
    transfers: BTreeMap<i64, Entry>,
    snapshots: BTreeMap<u64, Accounts>,
}

type Accounts = Vec<(i64, i64)>;
type Line = (i64, i64, i64, i64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transfer {
    source: i64,
    target: i64,
    amount: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Refused,
    Unknown,
}

#[derive(Debug)]
struct Entry {
    transfer: Transfer,
    fate: Fate,
    /// What `atoll.transactions` said: committed, or aborted.
    told: Option<bool>,
}

impl Bank {
    pub fn new(dice: &mut Dice) -> Bank {
        Bank {
            n_accounts: *dice.pick(&[8, 16, 32]),
            n_tellers: 2 + dice.below(2) as usize,
            levels: Levels::new(dice),
            pace: Pace::new(dice),
            books: Mutex::default(),
        }
    }

    /// Where the accounts' tablets begin, beyond the first. The last one goes on to the near half
    /// of the journal.
    fn cuts(&self) -> (i64, i64) {
        (self.n_accounts / 3, 2 * self.n_accounts / 3)
    }

    // ---- tellers

    async fn teller(&self, world: &World, number: usize) {
        let mut dice = world.dice("bank", number);
        let mut session = Session::new(world, "bank", number);
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            if session.ready().await {
                self.one(world, &mut session, &mut dice).await;
            }
        }
    }

    async fn one(&self, world: &World, session: &mut Session, dice: &mut Dice) {
        // Some stay within one tablet: they commit by one entry.
        let is_near = dice.one_in(3);
        let first = if is_near { self.cuts().1 } else { 0 };
        let n = self.n_accounts - first;
        let from = dice.below(n as u64) as i64;
        let to = (from + 1 + dice.below(n as u64 - 1) as i64) % n;
        let (source, target) = (first + from, first + to);
        let transfer = Transfer { source, target, amount: 1 + dice.below(9) as i64 };
        let level = self.levels.pick(dice);
        let reads_first = dice.one_in(2);
        let withdraws = dice.one_in(12);
        let asks = dice.one_in(2);
        let id = self.open(transfer, is_near);
        let mut txn_id = None;
        let (outcome, _) = session
            .transaction(level, async |sql: &mut Session| {
                if asks {
                    let (own,): (i64,) = sql.read_one("SELECT pg_current_xact_id()", &[]).await?;
                    txn_id = Some(own);
                }
                move_money(sql, transfer, level, reads_first).await?;
                let insert = "INSERT INTO bank_transfers VALUES ($1, $2, $3, $4)";
                let Transfer { source, target, amount } = transfer;
                sql.execute_one(insert, &[&id, &source, &target, &amount]).await?;
                if withdraws { Err(Trouble::Withdrawn) } else { Ok(()) }
            })
            .await;
        let fate = match outcome {
            Outcome::Committed => Fate::Acknowledged,
            Outcome::Aborted(_) => Fate::Refused,
            Outcome::Unknown => Fate::Unknown,
        };
        if fate == Fate::Unknown {
            world.note(format!("bank: the outcome of transfer {id} is unknown ({txn_id:?})"));
        }
        self.change(id, |entry| entry.fate = fate);
        if let Some(txn_id) = txn_id
            && (fate == Fate::Unknown || dice.one_in(24))
        {
            self.inquire(world, session, dice, id, txn_id).await;
        }
    }

    /// Enters a transfer before anybody else can see it.
    fn open(&self, transfer: Transfer, is_near: bool) -> i64 {
        let mut books = self.books.lock();
        books.n_transfers += 1;
        let n = books.n_transfers;
        let id = if is_near || n % 2 == 0 { n } else { FAR + n };
        books.transfers.insert(id, Entry { transfer, fate: Fate::Unknown, told: None });
        id
    }

    fn change(&self, id: i64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.books.lock().transfers.get_mut(&id) {
            change(entry);
        }
    }

    /// Asks the cluster how a transfer ended, and whether the journal agrees.
    async fn inquire(
        &self,
        world: &World,
        session: &mut Session,
        dice: &mut Dice,
        id: i64,
        txn_id: i64,
    ) {
        for _ in 0..6 {
            session.leave();
            world.sleep(Duration::from_millis(dice.below(1500))).await;
            if !session.ready().await {
                continue;
            }
            let ask = "SELECT state FROM atoll.transactions WHERE id = $1";
            let Ok(states) = session.read::<(String,)>(ask, &[&txn_id]).await else { continue };
            // Its tablet may not answer, and then there is no line; or it is not decided yet.
            let told = match states.first().map(|(state,)| state.as_str()) {
                Some("committed") => true,
                Some("aborted") => false,
                _ => continue,
            };
            world.count("outcomes asked for", 1);
            world.note(format!("bank: transfer {id} is told to be committed: {told}"));
            self.change(id, |entry| entry.told = Some(told));
            let find = "SELECT id FROM bank_transfers WHERE id = $1";
            if let Ok(found) = session.read::<(i64,)>(find, &[&id]).await
                && found.is_empty() == told
            {
                let seen = if told { "missing" } else { "there" };
                let node = session.node();
                session.wrong(format!(
                    "transaction {txn_id} is committed: {told}, and at {node} its transfer {id} \
                     is {seen}"
                ));
            }
            return;
        }
    }

    // ---- auditors

    async fn auditor(&self, world: &World, number: usize) {
        let mut dice = world.dice("bank", number);
        let mut session = Session::new(world, "bank", number);
        while world.storming() {
            self.pace.rest(world, &mut dice).await;
            if dice.one_in(3) {
                session.leave();
            }
            if !session.ready().await {
                continue;
            }
            match dice.below(8) {
                0..4 => self.audit(world, &mut session, &mut dice).await,
                4 => self.glance(world, &mut session).await,
                _ => self.look_back(world, &mut session, &mut dice).await,
            }
        }
    }

    /// One snapshot: the total, sometimes the journal with it, and a note for later.
    async fn audit(&self, world: &World, session: &mut Session, dice: &mut Dice) {
        let acknowledged = self.acknowledged();
        let with_journal = dice.one_in(4);
        let again_after = dice.one_in(2).then(|| dice.between(Duration::ZERO, AGAIN_MAX));
        let (_, seen) = session
            .transaction(Level::RepeatableRead, async |sql: &mut Session| {
                let accounts: Accounts = sql.read(ACCOUNTS, &[]).await?;
                let scn = sql.snapshot().await?;
                let lines = match with_journal {
                    true => Some(sql.read::<Line>(JOURNAL, &[]).await?),
                    false => None,
                };
                let again = match again_after {
                    Some(time) => {
                        sql.think(time).await;
                        Some(sql.read::<(i64, i64)>(ACCOUNTS, &[]).await?)
                    }
                    None => None,
                };
                Ok((scn, accounts, lines, again))
            })
            .await;
        let Some((scn, accounts, lines, again)) = seen else { return };
        if let Some(again) = again
            && again != accounts
        {
            session.wrong(differ(scn, &accounts, &again, &session.node()));
        }
        world.count("audits", 1);
        if let Err(error) = self.check_total(&accounts) {
            session.wrong(format!("{error} (SCN {scn}, {})", session.node()));
        }
        if let Some(lines) = lines
            && let Err(error) = self.check_books(&accounts, &lines, &acknowledged)
        {
            session.wrong(format!("{error} (SCN {scn}, {})", session.node()));
        }
        let mut books = self.books.lock();
        if let Some(before) = books.snapshots.get(&scn)
            && *before != accounts
        {
            session.wrong(differ(scn, before, &accounts, &session.node()));
        }
        books.snapshots.insert(scn, accounts);
        if books.snapshots.len() > N_SNAPSHOTS {
            let victim = dice.below(books.snapshots.len() as u64) as usize;
            let scn = books.snapshots.keys().nth(victim).copied();
            scn.map(|scn| books.snapshots.remove(&scn));
        }
    }

    /// A single statement sees one moment too, at the default level.
    async fn glance(&self, world: &World, session: &mut Session) {
        let Ok(accounts) = session.read::<(i64, i64)>(ACCOUNTS, &[]).await else { return };
        world.count("audits", 1);
        if let Err(error) = self.check_total(&accounts) {
            session.wrong(format!("{error} (in one statement, {})", session.node()));
        }
    }

    /// An old snapshot again.
    async fn look_back(&self, world: &World, session: &mut Session, dice: &mut Dice) {
        let known = {
            let books = self.books.lock();
            if books.snapshots.is_empty() {
                return;
            }
            let n = dice.below(books.snapshots.len() as u64) as usize;
            books.snapshots.iter().nth(n).map(|(scn, accounts)| (*scn, accounts.clone()))
        };
        let Some((scn, before)) = known else { return };
        let Some((own, now)) = session.past(scn, at_snapshot).await else { return };
        world.count("audits of the past", 1);
        if own != scn {
            session.wrong(format!("a transaction set to SCN {scn} says that it reads at {own}"));
        }
        if now != before {
            session.wrong(differ(scn, &before, &now, &session.node()));
        }
    }

    // ---- what must hold

    fn acknowledged(&self) -> Vec<i64> {
        let books = self.books.lock();
        let done = |entry: &Entry| entry.fate == Fate::Acknowledged;
        books.transfers.iter().filter(|(_, entry)| done(entry)).map(|(id, _)| *id).collect()
    }

    fn check_total(&self, accounts: &Accounts) -> Result<(), String> {
        let total: i64 = accounts.iter().map(|(_, balance)| balance).sum();
        let (n, expected) = (accounts.len() as i64, self.n_accounts * START);
        if n != self.n_accounts || total != expected {
            return Err(format!("{n} accounts hold {total}, not {expected}: {accounts:?}"));
        }
        Ok(())
    }

    /// `acknowledged` were so before the snapshot was drawn.
    fn check_books(
        &self,
        accounts: &Accounts,
        lines: &[Line],
        acknowledged: &[i64],
    ) -> Result<(), String> {
        let mut balances: BTreeMap<i64, i64> = (0..self.n_accounts).map(|id| (id, START)).collect();
        let books = self.books.lock();
        let mut found = BTreeMap::new();
        for &(id, source, target, amount) in lines {
            let transfer = Transfer { source, target, amount };
            *balances.entry(source).or_default() -= amount;
            *balances.entry(target).or_default() += amount;
            let Some(entry) = books.transfers.get(&id) else {
                return Err(format!("transfer {id} is in the journal and nobody made it"));
            };
            if entry.transfer != transfer {
                return Err(format!("transfer {id} is {transfer:?}, not {:?}", entry.transfer));
            }
            if entry.fate == Fate::Refused {
                return Err(format!("transfer {id} was refused and is in the journal"));
            }
            if entry.told == Some(false) {
                return Err(format!("transfer {id} was told to be aborted and is in the journal"));
            }
            if found.insert(id, transfer).is_some() {
                return Err(format!("transfer {id} is in the journal twice"));
            }
        }
        if let Some(id) = acknowledged.iter().find(|id| !found.contains_key(id)) {
            return Err(format!("transfer {id} was acknowledged and is not in the journal"));
        }
        for (id, balance) in accounts {
            let expected = balances.get(id);
            if expected != Some(balance) {
                return Err(format!(
                    "account {id} holds {balance}, and the journal makes it {expected:?}"
                ));
            }
        }
        Ok(())
    }
}

async fn move_money(
    sql: &mut Session,
    transfer: Transfer,
    level: Level,
    reads_first: bool,
) -> Answer<()> {
    let Transfer { source, target, amount } = transfer;
    if !reads_first {
        let add = "UPDATE bank_accounts SET balance = balance + $2 WHERE id = $1";
        sql.execute_one(add, &[&source, &-amount]).await?;
        return sql.execute_one(add, &[&target, &amount]).await;
    }
    let read = match level {
        Level::ReadCommitted => "SELECT balance FROM bank_accounts WHERE id = $1 FOR UPDATE",
        _ => "SELECT balance FROM bank_accounts WHERE id = $1",
    };
    let (held,): (i64,) = sql.read_one(read, &[&source]).await?;
    let (other,): (i64,) = sql.read_one(read, &[&target]).await?;
    let set = "UPDATE bank_accounts SET balance = $2 WHERE id = $1";
    sql.execute_one(set, &[&source, &(held - amount)]).await?;
    sql.execute_one(set, &[&target, &(other + amount)]).await
}

async fn at_snapshot(sql: &mut Session) -> Answer<(u64, Accounts)> {
    let own = sql.snapshot().await?;
    Ok((own, sql.read(ACCOUNTS, &[]).await?))
}

fn differ(scn: u64, before: &Accounts, now: &Accounts, node: &str) -> String {
    format!("the accounts at SCN {scn} were {before:?}, and {node} says {now:?}")
}

#[async_trait]
impl super::Workload for Bank {
    fn name(&self) -> &'static str {
        "bank"
    }

    async fn lay_out(&self, sql: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
        sql.batch_execute(
            "CREATE TABLE IF NOT EXISTS bank_accounts (
                 id bigint PRIMARY KEY, balance bigint NOT NULL
             );
             CREATE TABLE IF NOT EXISTS bank_transfers (
                 id bigint PRIMARY KEY, source bigint NOT NULL, target bigint NOT NULL,
                 amount bigint NOT NULL
             )",
        )
        .await?;
        let rows: Vec<String> = (0..self.n_accounts).map(|id| format!("({id}, {START})")).collect();
        let insert =
            format!("INSERT INTO bank_accounts VALUES {} ON CONFLICT DO NOTHING", rows.join(", "));
        sql.batch_execute(&insert).await?;
        let (third, rest) = self.cuts();
        let split = format!("ALTER TABLE bank_accounts SPLIT AT VALUES ({third}), ({rest})");
        sql.batch_execute(&split).await?;
        let split = format!("ALTER TABLE bank_transfers SPLIT AT VALUES ({FAR})");
        sql.batch_execute(&split).await
    }

    fn n_clients(&self) -> usize {
        self.n_tellers + 1
    }

    async fn client(&self, world: &World, number: usize) {
        if number < self.n_tellers {
            self.teller(world, number).await;
        } else {
            self.auditor(world, number).await;
        }
    }

    async fn judge(&self, world: &World) -> Result<(), String> {
        let acknowledged = self.acknowledged();
        let snapshots: Vec<(u64, Accounts)> = {
            let books = self.books.lock();
            let step = books.snapshots.len() / N_SNAPSHOTS_JUDGED + 1;
            let some = books.snapshots.iter().step_by(step);
            some.map(|(scn, accounts)| (*scn, accounts.clone())).collect()
        };
        for node in 0..world.n_nodes() {
            let both = async |sql: &mut Session| {
                let accounts: Accounts = sql.read(ACCOUNTS, &[]).await?;
                Ok((accounts, sql.read::<Line>(JOURNAL, &[]).await?))
            };
            let (accounts, lines) = read_at(world, "bank", node, both).await?;
            self.check_total(&accounts)
                .and_then(|()| self.check_books(&accounts, &lines, &acknowledged))
                .and_then(|()| self.check_told(&lines))
                .map_err(|error| format!("{error} (node {node})"))?;
            let mut session = Session::at(world, "bank", node);
            for (scn, before) in &snapshots {
                if !session.ready().await {
                    continue;
                }
                let Some((_, now)) = session.past(*scn, at_snapshot).await else { continue };
                if now != *before {
                    let node = format!("node {node}");
                    return Err(differ(*scn, before, &now, &node));
                }
            }
        }
        Ok(())
    }
}

impl Bank {
    /// Those told to be committed, against the whole journal.
    fn check_told(&self, lines: &[Line]) -> Result<(), String> {
        let books = self.books.lock();
        for (id, entry) in &books.transfers {
            let is_there = lines.binary_search_by_key(id, |line| line.0).is_ok();
            if entry.told == Some(true) && !is_there {
                return Err(format!("transfer {id} was told to be committed and is not there"));
            }
            if entry.told == Some(true) && entry.fate == Fate::Refused {
                return Err(format!("transfer {id} was refused and told to be committed"));
            }
            if entry.told == Some(false) && entry.fate == Fate::Acknowledged {
                return Err(format!("transfer {id} was acknowledged and told to be aborted"));
            }
        }
        Ok(())
    }
}
