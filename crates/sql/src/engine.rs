//! One node's SQL engine: what all its sessions share.
//!
//! The catalog's cache, blocks of sequence values, plans by their text, statistics of statements,
//! and the list of sessions that a cancel request looks in. Everything here is a cache or a
//! count: losing it costs time, never data.

mod authority;
mod plans;
mod sequences;
mod statistics;

pub use sequences::Sequences;
pub use statistics::{Lexeme, Lexer, StatementStat, Stopwatch, normalise};

use crate::authority::{
    Authority, Class, Database, Identity, ObjectAcl, Owned, Privileges, Role, RoleId,
};
use crate::catalog::{
    Catalog, Changed, FIRST_DATABASE, FIRST_DATABASE_ID, Overlay, PUBLIC, Place, SECOND_DATABASE,
    SECOND_DATABASE_ID, Schema, retry, rows,
};
use crate::error::{Error, Result, state};
use crate::session::{Canceler, Session, Start};
use crate::wide::Wide;
use crate::wire::access::Access;
use authority::Authorities;
use base::{Env, Key};
use futures::future::BoxFuture;
use parking_lot::Mutex;
pub(crate) use plans::PlanKey;
use plans::Plans;
use statistics::Statistics;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use txn::{Isolation, LockMode, Wait};

/// How clients prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Whoever connects is who they say.
    Trust,
    /// SCRAM-SHA-256 against the verifier stored with the user.
    Scram,
}

/// Bytes that no client ever sees.
pub type Secret = [u8; 32];

/// The relation of the cluster's secret, of one row. No name leads to it.
const SECRET: u32 = 3;

fn secret_key() -> Key {
    Key::copy_from_slice(&SECRET.to_be_bytes())
}

/// The role that a fresh cluster has.
pub const FIRST_USER: &str = "atoll";

/// The oids of `public` in the databases that a fresh cluster has.
const FIRST_PUBLIC_ID: u32 = 2200;
const SECOND_PUBLIC_ID: u32 = 2201;

/// Writes a new database, whose name is locked, with its schema `public`: everybody may use it, and the database's
/// owner create in it.
pub(crate) async fn put_database(
    txn: &mut txn::Txn,
    database: &Database,
    public: u32,
) -> Result<()> {
    let place = Place { database: database.id, schema: PUBLIC };
    Catalog::lock_schema(txn, place).await?;
    Catalog::lock_acl(txn, Class::Schema, public).await?;
    txn.put(rows::database_key(&database.name), rows::encode(database)?)?;
    let owner = RoleId::DATABASE_OWNER;
    let schema = Schema { id: public, database: database.id, name: PUBLIC.into(), owner };
    txn.put(rows::schema_key(place), rows::encode(&schema)?)?;
    let mut acl = Class::Schema.default_acl(owner);
    acl.grant(RoleId::PUBLIC, owner, Privileges::USAGE, false);
    let list = ObjectAcl { acl: Some(acl), ..ObjectAcl::new(Class::Schema, public) };
    txn.put(rows::acl_key(Class::Schema, public), rows::encode(&list)?)?;
    Ok(())
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    client: txn::Client,
    wide: Arc<dyn Wide>,
    catalog: Catalog,
    authorities: Authorities,
    node: Arc<dyn crate::views::Source>,
    access: Access,
    secret: tokio::sync::OnceCell<Secret>,
    sequences: Sequences,
    plans: Plans,
    statistics: Statistics,
    /// By process number.
    sessions: Mutex<HashMap<i32, Entry>>,
    next_pid: AtomicI32,
}

/// An open session.
struct Entry {
    secret: i32,
    canceler: Canceler,
    role: RoleId,
    database: u32,
}

impl Engine {
    pub fn new(
        env: Env,
        client: txn::Client,
        wide: Arc<dyn Wide>,
        node: Arc<dyn crate::views::Source>,
        access: impl Into<Access>,
    ) -> Engine {
        Engine {
            inner: Arc::new(Inner {
                catalog: Catalog::new(client.clone()),
                authorities: Authorities::default(),
                sequences: Sequences::new(client.clone()),
                plans: Plans::default(),
                statistics: Statistics::default(),
                sessions: Mutex::default(),
                next_pid: AtomicI32::new(1),
                env,
                client,
                wide,
                node,
                access: access.into(),
                secret: tokio::sync::OnceCell::new(),
            }),
        }
    }

    /// Opens a session for a role that has proved who it is; refuses one that may not come in here.
    pub async fn session(&self, role: &str, database: &str) -> Result<Session> {
        let authority = self.authority().await?;
        let invalid = |message: String| Error::new(state::INVALID_AUTHORIZATION, message);
        let Some(known) = authority.roles.named(role) else {
            return Err(invalid(format!("role \"{role}\" does not exist")));
        };
        if !known.login {
            return Err(invalid(format!("role \"{role}\" is not permitted to log in")));
        }
        let Some(place) = authority.database(database) else {
            let message = format!("database \"{database}\" does not exist");
            return Err(Error::new(state::NO_SUCH_DATABASE, message));
        };
        if !place.allow_connections {
            let message = format!("database \"{database}\" is not currently accepting connections");
            return Err(Error::new(state::NOT_IN_PREREQUISITE_STATE, message));
        }
        let identity = Identity::new(authority.clone(), known.id, place.id);
        if !identity.privileges(Owned::database(place)).contains(Privileges::CONNECT) {
            let message = format!("permission denied for database \"{database}\"");
            return Err(Error::new(state::INSUFFICIENT_PRIVILEGE, message)
                .detail("User does not have CONNECT privilege."));
        }
        let pid = self.inner.next_pid.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        let secret = self.inner.env.random() as i32;
        let canceler = Canceler::default();
        {
            let mut sessions = self.inner.sessions.lock();
            if !known.superuser {
                let of = |wanted: fn(&Entry, &Entry) -> bool, own: &Entry| {
                    sessions.values().filter(|entry| wanted(entry, own)).count()
                };
                let own = Entry {
                    secret,
                    canceler: canceler.clone(),
                    role: known.id,
                    database: place.id,
                };
                let limits = [
                    (known.connection_limit, of(|a, b| a.role == b.role, &own), "role", role),
                    (
                        place.connection_limit,
                        of(|a, b| a.database == b.database, &own),
                        "database",
                        database,
                    ),
                ];
                for (limit, n_open, what, name) in limits {
                    if usize::try_from(limit).is_ok_and(|limit| n_open >= limit) {
                        let message = format!("too many connections for {what} \"{name}\"");
                        return Err(Error::new(state::TOO_MANY_CONNECTIONS, message));
                    }
                }
            }
            let entry =
                Entry { secret, canceler: canceler.clone(), role: known.id, database: place.id };
            sessions.insert(pid, entry);
        }
        let start = Start {
            role: known.id,
            database_id: place.id,
            database: database.to_owned(),
            authority: authority.clone(),
            canceler,
            pid,
            secret,
        };
        Ok(Session::new(self.clone(), start))
    }

    /// Sends the sessions of this node away that are in a database.
    pub(crate) fn end_sessions_in(&self, database: u32) {
        for entry in self.inner.sessions.lock().values().filter(|e| e.database == database) {
            entry.canceler.terminate();
        }
    }

    /// Sessions of this node in a database.
    pub(crate) fn n_sessions_in(&self, database: u32) -> usize {
        self.inner.sessions.lock().values().filter(|entry| entry.database == database).count()
    }

    pub(crate) fn forget_session(&self, pid: i32) {
        self.inner.sessions.lock().remove(&pid);
    }

    /// Creates the catalog's first rows. Idempotent; any node may call it.
    pub fn bootstrap(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            retry(|| async {
                let mut txn = self.inner.client.begin(Isolation::ReadCommitted);
                if Catalog::lock_database(&mut txn, FIRST_DATABASE).await?.is_some() {
                    txn.rollback().await;
                    return Ok(());
                }
                let mut overlay = Overlay::default();
                Catalog::change_authority(&mut txn, &mut overlay).await?;
                Catalog::lock_role(&mut txn, FIRST_USER).await?;
                let first = Role {
                    superuser: true,
                    createrole: true,
                    createdb: true,
                    login: true,
                    replication: true,
                    bypassrls: true,
                    ..Role::new(RoleId::FIRST, FIRST_USER)
                };
                txn.put(rows::role_key(FIRST_USER), rows::encode(&first)?)?;
                let databases = [
                    (FIRST_DATABASE, FIRST_DATABASE_ID, FIRST_PUBLIC_ID),
                    (SECOND_DATABASE, SECOND_DATABASE_ID, SECOND_PUBLIC_ID),
                ];
                for (name, id, public) in databases {
                    Catalog::lock_database(&mut txn, name).await?;
                    let database = Database {
                        id,
                        name: name.into(),
                        owner: RoleId::FIRST,
                        connection_limit: -1,
                        allow_connections: true,
                        is_template: false,
                    };
                    put_database(&mut txn, &database, public).await?;
                }
                self.make_secret(&mut txn).await?;
                txn.commit().await?;
                Ok(())
            })
            .await
        })
    }

    async fn make_secret(&self, txn: &mut txn::Txn) -> Result<()> {
        let key = secret_key();
        let locked = txn.lock(std::slice::from_ref(&key), LockMode::Exclusive, Wait::Block).await?;
        if let Some(txn::Locked::Held { row: None }) = locked.first() {
            let draws: [u64; 4] = std::array::from_fn(|_| self.inner.env.random());
            let secret: Vec<u8> = draws.iter().flat_map(|draw| draw.to_be_bytes()).collect();
            txn.put(key, secret.into())?;
        }
        Ok(())
    }

    /// One step of removing what dropped and truncated tables left; see [`crate::catalog::Sweep`].
    pub fn sweep(&self) -> BoxFuture<'_, Result<crate::catalog::Sweep>> {
        Box::pin(async move {
            match self.inner.catalog.sweep().await {
                // Somebody else sweeps at the same time.
                Err(error)
                    if matches!(error.state(), state::SERIALIZATION_FAILURE | state::DEADLOCK) =>
                {
                    Ok(crate::catalog::Sweep::default())
                }
                outcome => outcome,
            }
        })
    }

    pub fn env(&self) -> &Env {
        &self.inner.env
    }

    pub fn client(&self) -> &txn::Client {
        &self.inner.client
    }

    /// The engine of wide queries.
    pub fn wide(&self) -> &dyn Wide {
        &*self.inner.wide
    }

    /// Who may connect.
    pub fn access(&self) -> &Access {
        &self.inner.access
    }

    /// The secret that makes up what strangers see of roles that do not exist: the same on each node.
    pub async fn secret(&self) -> Result<Secret> {
        let read = || async {
            let mut txn = self.inner.client.begin(Isolation::ReadCommitted);
            let found = txn.get_only(&[secret_key()]).await;
            txn.rollback().await;
            let row = found?.into_iter().next().flatten();
            let secret = row.and_then(|row| Secret::try_from(&row.value[..]).ok());
            secret.ok_or_else(|| {
                Error::new(
                    state::UNAVAILABLE,
                    "the cluster is starting: its secret is not there yet",
                )
            })
        };
        self.inner.secret.get_or_try_init(read).await.copied()
    }

    pub fn node(&self) -> &Arc<dyn crate::views::Source> {
        &self.inner.node
    }

    pub fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    pub fn sequences(&self) -> &Sequences {
        &self.inner.sequences
    }

    pub(crate) fn plans(&self) -> &Plans {
        &self.inner.plans
    }

    pub(crate) fn statistics(&self) -> &Statistics {
        &self.inner.statistics
    }

    /// Forgets what a committed transaction defined anew, on this node or on another.
    pub fn forget(&self, changed: &Changed) {
        self.inner.catalog.forget(changed);
        if changed.authority {
            self.inner.authorities.forget();
        }
        changed.sequences.iter().for_each(|id| self.inner.sequences.forget(*id));
    }

    /// After a commit that defined something anew: forgets it here, and tells the other nodes.
    pub async fn redefined(&self, changed: &Changed) {
        self.forget(changed);
        self.inner.node.definitions_changed(changed).await;
    }

    /// What `atoll.statements` shows.
    pub fn statements(&self) -> Vec<StatementStat> {
        self.inner.statistics.all()
    }

    /// A role as it is stored, with its SCRAM verifier; none: no such role.
    pub async fn role(&self, name: &str) -> Result<Option<Arc<Role>>> {
        Ok(self.inner.catalog.role(name).await?.map(Arc::new))
    }

    /// Who may do what, as far as is committed.
    pub async fn authority(&self) -> Result<Arc<Authority>> {
        self.inner.authorities.current(&self.inner.env, &self.inner.catalog).await
    }

    /// Cancels what the session with this process number runs, if the secret is right.
    pub fn cancel(&self, pid: i32, secret: i32) {
        if let Some(entry) = self.inner.sessions.lock().get(&pid)
            && entry.secret == secret
        {
            entry.canceler.cancel();
        }
    }
}
