//! One client's session: its transaction, its settings, its prepared statements.
//!
//! The wire layer hands over one statement at a time. [`Session::prepare`] parses and plans it,
//! [`Session::execute`] runs it inside the open transaction block or, outside of one, in an
//! implicit transaction that [`Session::finish`] ends: after the last statement of a simple query,
//! at Sync in the extended protocol.
//!
//! ```text
//!           execute                        BEGIN
//!   idle ------------> implicit      idle -------> block --- error ---> failed block
//!    ^                    |            ^             |                      |
//!    +------ finish ------+            +--- COMMIT --+------- ROLLBACK -----+
//! ```
//!
//! A statement that was planned with a definition that has changed since is planned and run again,
//! which nobody sees: its writes are taken back to where it began, and no row of it has been sent.

mod copy;
mod define;
mod execute;
mod settings;
mod transaction;

pub use crate::parse::ParsedStatement;
pub use copy::{CopyIn, CopyOut, CopyStream};
pub use settings::Settings;

use crate::authority::{Authority, Identity, RoleId};
use crate::catalog::{FIRST_DATABASE, FIRST_DATABASE_ID, Place, Table};
use crate::engine::{Engine, Stopwatch};
use crate::error::{Error, Result, state};
use crate::parse;
use crate::plan::Plan;
use crate::run::Drawn;
use crate::types::{Row, Type, Zone};
use base::{Env, Scn, TxnId};
use futures::Stream;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use transaction::Open;

/// A column of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub ty: Type,
    /// The table's id and the column's number in it, when the column is one of a table's.
    pub table: Option<u32>,
    pub attnum: i16,
}

/// Batches of rows.
pub type RowStream = Pin<Box<dyn Stream<Item = Result<Vec<Row>>> + Send>>;

/// How a statement that returned rows ends: the wire counts the rows and writes the tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagKind {
    /// `SELECT 5`.
    Select,
    /// `INSERT 0 5`, `UPDATE 5`, `DELETE 5`: the rows returned are the rows changed.
    Insert,
    Update,
    Delete,
    /// A fixed tag: `EXPLAIN`, `SHOW`.
    Fixed(&'static str),
}

impl TagKind {
    pub fn tag(&self, n_rows: u64) -> String {
        match self {
            TagKind::Select => format!("SELECT {n_rows}"),
            TagKind::Insert => format!("INSERT 0 {n_rows}"),
            TagKind::Update => format!("UPDATE {n_rows}"),
            TagKind::Delete => format!("DELETE {n_rows}"),
            TagKind::Fixed(tag) => (*tag).to_owned(),
        }
    }
}

/// What a statement answers.
pub enum Outcome {
    Rows {
        columns: Arc<[Column]>,
        rows: RowStream,
        tag: TagKind,
    },
    Done {
        tag: String,
    },
    CopyIn(Box<CopyIn>),
    CopyOut(CopyOut),
    /// The empty statement.
    Empty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    Idle,
    InBlock,
    Failed,
}

impl TransactionStatus {
    /// ReadyForQuery's letter.
    pub fn letter(self) -> u8 {
        match self {
            TransactionStatus::Idle => b'I',
            TransactionStatus::InBlock => b'T',
            TransactionStatus::Failed => b'E',
        }
    }
}

/// What the client is told beside the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// `severity` is NOTICE, WARNING, INFO…
    Message { severity: &'static str, state: &'static str, message: String },
    /// ParameterStatus: a reported setting has a new value.
    Setting { name: String, value: String },
}

/// A planned statement. Cheap to clone.
#[derive(Clone)]
pub struct Prepared {
    pub params: Vec<Type>,
    /// None: it returns no rows.
    pub columns: Option<Arc<[Column]>>,
    source: ParsedStatement,
    hints: Vec<Option<Type>>,
    /// The client counts on these columns.
    is_promised: bool,
    plan: Arc<Plan>,
    watch: Arc<Stopwatch>,
}

/// Cancels what a session runs, from anywhere.
#[derive(Clone, Default)]
pub struct Canceler {
    inner: Arc<CancelState>,
}

#[derive(Default)]
struct CancelState {
    requested: AtomicBool,
    /// The session is to end.
    terminated: AtomicBool,
    /// The transaction whose commit is under way. It goes on whatever becomes of the session, so
    /// nothing that the session itself decides breaks off the wait for its outcome.
    committing: Mutex<Option<TxnId>>,
    notify: Notify,
}

impl Canceler {
    /// The statement that runs now, if there is one, fails with 57014.
    pub fn cancel(&self) {
        self.inner.requested.store(true, Ordering::Release);
        self.inner.notify.notify_waiters();
    }

    /// The statement that runs now is canceled, and the session ends.
    pub fn terminate(&self) {
        self.inner.terminated.store(true, Ordering::Release);
        self.cancel();
    }

    /// Returns once the session is to end.
    pub async fn terminated(&self) {
        loop {
            let notified = self.inner.notify.notified();
            if self.inner.terminated.load(Ordering::Acquire) {
                return;
            }
            notified.await;
        }
    }

    /// A new statement begins: an older request is not meant for it.
    fn arm(&self) {
        self.inner.requested.store(false, Ordering::Release);
    }

    async fn requested(&self) {
        self.allowed(|state| state.requested.load(Ordering::Acquire)).await;
    }

    /// Returns once `wanted` holds and no commit is under way.
    async fn allowed(&self, wanted: impl Fn(&CancelState) -> bool) {
        loop {
            let notified = self.inner.notify.notified();
            if wanted(&self.inner) && self.inner.committing.lock().is_none() {
                return;
            }
            notified.await;
        }
    }

    fn set_committing(&self, txn: Option<TxnId>) {
        *self.inner.committing.lock() = txn;
        self.inner.notify.notify_waiters();
    }
}

fn canceled() -> Error {
    Error::new(state::QUERY_CANCELED, "canceling statement due to user request")
}

/// What a statement may know of the session that asks: see [`crate::wide::QueryContext`].
#[derive(Clone)]
pub struct View {
    /// The current role, with all that it may do.
    pub identity: Arc<Identity>,
    pub session_user: Arc<str>,
    pub database: Arc<str>,
    /// The schemas that names are looked for in: those of the setting that are there and open to the role.
    pub search_path: Arc<[String]>,
    pub zone: Zone,
    /// The transaction's start, microseconds since 1970.
    pub now_us: i64,
    pub pid: i32,
    pub txn_id: u64,
    pub env: Env,
    settings: Arc<Settings>,
    /// The stored tables that the statement names, by schema and name.
    tables: HashMap<(String, String), Arc<Table>>,
}

impl View {
    /// A table that the statement names; own uncommitted definitions included. Without a schema the
    /// search path is followed.
    pub fn table(&self, schema: Option<&str>, name: &str) -> Option<Arc<Table>> {
        let find = |schema: &str| {
            self.tables.values().find(|table| table.name == name && table.schema == schema).cloned()
        };
        match schema {
            Some(schema) => find(schema),
            None => self.search_path.iter().find_map(|schema| find(schema)),
        }
    }

    /// What sorts and groupings of one query may keep in memory.
    pub fn work_mem_bytes(&self) -> usize {
        self.settings.work_mem_bytes
    }

    pub fn setting(&self, name: &str) -> Option<String> {
        match own_setting(name, &self.settings, &self.identity, &self.session_user) {
            Some(value) => Some(value),
            None => self.settings.get(name),
        }
    }

    /// What a setting would be shown as once it is set to `value`; none: to its default.
    pub fn setting_after(&self, name: &str, value: Option<&str>) -> Result<String> {
        let mut settings = (*self.settings).clone();
        settings.set(name, value)?;
        Ok(settings.get(name).unwrap_or_default())
    }

    /// The current role's name.
    pub fn user(&self) -> &Arc<str> {
        &self.identity.name
    }

    /// A schema of this session's database.
    pub fn place<'a>(&self, schema: &'a str) -> Place<'a> {
        Place { database: self.identity.database, schema }
    }

    /// Name, value and description of all settings.
    pub fn settings(&self) -> Vec<(String, String, String)> {
        self.settings.all()
    }

    pub fn with_tables(&self, tables: HashMap<(String, String), Arc<Table>>) -> View {
        View { tables, ..self.clone() }
    }

    /// For work that no session asked for, in the first database.
    pub fn internal(engine: &Engine) -> View {
        View::of(engine.env().clone(), FIRST_DATABASE_ID)
    }

    /// For work on a table of any database.
    pub fn internal_for(engine: &Engine, table: &Table) -> View {
        View::of(engine.env().clone(), table.database)
    }

    fn of(env: Env, database: u32) -> View {
        let settings = Arc::new(Settings::new(Arc::from(crate::engine::FIRST_USER)));
        View {
            identity: Arc::new(Identity::of_the_system(database)),
            session_user: Arc::from(crate::engine::FIRST_USER),
            database: Arc::from(FIRST_DATABASE),
            search_path: settings.search_path.clone(),
            zone: settings.zone,
            now_us: env.wall_us(),
            pid: 0,
            txn_id: 0,
            env,
            settings,
            tables: HashMap::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> View {
        let net = Arc::new(base::env::MemoryNet::default());
        View { session_user: Arc::from("ada"), ..View::of(Env::seeded(1, net), FIRST_DATABASE_ID) }
    }
}

/// Settings whose value is not stored as such.
fn own_setting(
    name: &str,
    settings: &Settings,
    identity: &Identity,
    session_user: &str,
) -> Option<String> {
    let on = |on: bool| (if on { "on" } else { "off" }).to_owned();
    Some(match name.to_ascii_lowercase().as_str() {
        "is_superuser" => on(identity.is_superuser),
        "session_authorization" => session_user.to_owned(),
        "role" if settings.role.is_none() => "none".to_owned(),
        "role" => identity.name.to_string(),
        _ => return None,
    })
}

/// What a session begins with: who was let in, and where.
pub(crate) struct Start {
    pub authority: Arc<Authority>,
    pub role: RoleId,
    pub database_id: u32,
    pub database: String,
    pub canceler: Canceler,
    pub pid: i32,
    pub secret: i32,
}

pub struct Session {
    engine: Engine,
    /// Who logged in.
    login: RoleId,
    /// Who acts now.
    identity: Arc<Identity>,
    /// The schemas of a search path that the identity may use, and that path.
    usable_path: Arc<[String]>,
    path_of: Arc<[String]>,
    database: Arc<str>,
    pid: i32,
    secret: i32,
    settings: Arc<Settings>,
    open: Option<Open>,
    prepared: HashMap<String, Prepared>,
    drawn: Drawn,
    notices: Vec<Notice>,
    cancel: Canceler,
}

impl Session {
    pub(crate) fn new(engine: Engine, start: Start) -> Session {
        let Start { authority, role, database_id, database, canceler, pid, secret } = start;
        let name: Arc<str> = Arc::from(authority.roles.name(role));
        let identity = Arc::new(Identity::new(authority, role, database_id));
        let settings = Arc::new(Settings::new(name));
        Session {
            usable_path: identity.usable_path(&settings.search_path).into(),
            path_of: settings.search_path.clone(),
            settings,
            engine,
            login: role,
            identity,
            database: Arc::from(database),
            pid,
            secret,
            open: None,
            prepared: HashMap::new(),
            drawn: Drawn::default(),
            notices: Vec::new(),
            cancel: canceler,
        }
    }

    /// Before each statement: who acts, and what that role may do now.
    async fn renew_identity(&mut self) -> Result<()> {
        let authority = match &mut self.open {
            Some(open) if open.failed => return Ok(()),
            // Its own changes count for the transaction that made them.
            Some(open) if open.overlay.has_authority() => {
                let reader = open.txn.reader().await?;
                Arc::new(Box::pin(Authority::load(&reader)).await?)
            }
            _ => self.engine.authority().await?,
        };
        let role = self.settings.role.or(self.settings.session_role).unwrap_or(self.login);
        let is_same =
            self.identity.role == role && (Arc::ptr_eq(&self.identity.authority, &authority));
        if !is_same {
            let database = self.identity.database;
            self.identity = Arc::new(Identity::new(authority, role, database));
        }
        if !is_same || !Arc::ptr_eq(&self.path_of, &self.settings.search_path) {
            self.path_of = self.settings.search_path.clone();
            self.usable_path = self.identity.usable_path(&self.path_of).into();
            self.renew_view();
        }
        Ok(())
    }

    fn session_user(&self) -> Arc<str> {
        let role = self.settings.session_role.unwrap_or(self.login);
        Arc::from(self.identity.authority.roles.name(role))
    }

    /// A simple-query string's statements.
    pub fn split(sql: &str) -> Result<Vec<ParsedStatement>> {
        parse::split(sql)
    }

    pub fn status(&self) -> TransactionStatus {
        match &self.open {
            Some(open) if open.block && open.failed => TransactionStatus::Failed,
            Some(open) if open.block => TransactionStatus::InBlock,
            _ => TransactionStatus::Idle,
        }
    }

    /// What sorts and groupings of one query may keep in memory.
    pub fn work_mem_bytes(&self) -> usize {
        self.settings.work_mem_bytes
    }

    pub fn setting(&self, name: &str) -> Option<String> {
        match name.to_ascii_lowercase().as_str() {
            "transaction_isolation" => {
                let isolation =
                    self.open.as_ref().map_or(self.settings.isolation, |open| open.txn.isolation());
                Some(settings::isolation_name(isolation).to_owned())
            }
            "transaction_read_only" => {
                let on = self.open.as_ref().map_or(self.settings.read_only, |open| open.read_only);
                Some((if on { "on" } else { "off" }).to_owned())
            }
            _ => match own_setting(name, &self.settings, &self.identity, &self.session_user()) {
                Some(value) => Some(value),
                None => self.settings.get(name),
            },
        }
    }

    /// A setting from the startup message. One that is not known is passed over with a warning, so
    /// that drivers which send more than they need still connect.
    pub fn set_at_start(&mut self, name: &str, value: &str) -> Result<()> {
        let mut settings = (*self.settings).clone();
        match settings.set(name, Some(value)) {
            Ok(_) => {
                self.settings = Arc::new(settings);
                Ok(())
            }
            Err(error) if error.state() == state::UNDEFINED_OBJECT => {
                self.warn(error.message.clone());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub fn zone(&self) -> Zone {
        self.settings.zone
    }

    /// How long the client may be silent now, and what it is told when it was for longer. None: as long
    /// as it likes.
    pub fn silence(&self) -> Option<(Duration, Error)> {
        let (patience, state, what) = match self.status() {
            TransactionStatus::Idle => (self.settings.idle, "57P05", "idle-session"),
            _ => (self.settings.idle_in_transaction, "25P03", "idle-in-transaction"),
        };
        let message = || format!("terminating connection due to {what} timeout");
        (!patience.is_zero()).then(|| (patience, Error::new(state, message())))
    }

    /// What to tell the client before the answer to what it just asked.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    pub fn canceler(&self) -> Canceler {
        self.cancel.clone()
    }

    /// What a client is told that is sent away in the middle of its commit.
    pub fn unfinished_commit(&self) -> Option<Error> {
        let txn = (*self.cancel.inner.committing.lock())?;
        Some(txn::Error::OutcomeUnknown { txn }.into())
    }

    /// `pg_backend_pid()`, and the secret that a cancel request must know.
    pub fn pid(&self) -> (i32, i32) {
        (self.pid, self.secret)
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    fn note(&mut self, message: impl Into<String>) {
        let (severity, state) = ("NOTICE", state::SUCCESSFUL);
        self.notices.push(Notice::Message { severity, state, message: message.into() });
    }

    fn warn(&mut self, message: impl Into<String>) {
        self.warn_as(state::WARNING, message);
    }

    fn warn_as(&mut self, state: &'static str, message: impl Into<String>) {
        let severity = "WARNING";
        self.notices.push(Notice::Message { severity, state, message: message.into() });
    }

    /// The snapshot of the open transaction's next statement, if it is drawn already.
    fn snapshot(&self) -> Option<Scn> {
        self.open.as_ref()?.txn.lasting_snapshot()
    }

    /// The session as its next statement sees it.
    fn view(&self) -> Arc<View> {
        match &self.open {
            Some(open) => open.view.clone(),
            None => Arc::new(self.make_view(0, self.engine.env().wall_us())),
        }
    }

    fn make_view(&self, txn_id: u64, now_us: i64) -> View {
        View {
            identity: self.identity.clone(),
            session_user: self.session_user(),
            database: self.database.clone(),
            search_path: self.usable_path.clone(),
            zone: self.settings.zone,
            now_us,
            pid: self.pid,
            txn_id,
            env: self.engine.env().clone(),
            settings: self.settings.clone(),
            tables: HashMap::new(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.engine.forget_session(self.pid);
    }
}
