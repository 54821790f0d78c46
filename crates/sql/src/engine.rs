//! One node's SQL engine: what all its sessions share.
//!
//! The catalog's cache, blocks of sequence values, plans by their text, statistics of statements,
//! and the list of sessions that a cancel request looks in. Everything here is a cache or a
//! count: losing it costs time, never data.

mod plans;
mod sequences;
mod statistics;

pub use sequences::Sequences;
pub use statistics::{Lexeme, Lexer, StatementStat, Stopwatch, normalise};

use crate::catalog::{Catalog, Changed, PUBLIC, Schema, User, retry, rows};
use crate::error::{Error, Result, state};
use crate::session::{Canceler, Session};
use crate::wide::Wide;
use crate::wire::access::Access;
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

/// The user that a fresh cluster has.
pub const FIRST_USER: &str = "atoll";

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
    node: Arc<dyn crate::views::Source>,
    access: Access,
    secret: tokio::sync::OnceCell<Secret>,
    sequences: Sequences,
    plans: Plans,
    statistics: Statistics,
    sessions: Mutex<HashMap<i32, (i32, Canceler)>>,
    next_pid: AtomicI32,
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

    pub fn session(&self, user: String, database: String) -> Session {
        let pid = self.inner.next_pid.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        let secret = self.inner.env.random() as i32;
        let session = Session::new(self.clone(), user, database, pid, secret);
        self.inner.sessions.lock().insert(pid, (secret, session.canceler()));
        session
    }

    pub(crate) fn forget_session(&self, pid: i32) {
        self.inner.sessions.lock().remove(&pid);
    }

    /// Creates the catalog's first rows. Idempotent; any node may call it.
    pub fn bootstrap(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            retry(|| async {
                let mut txn = self.inner.client.begin(Isolation::ReadCommitted);
                let mut is_new = false;
                if Catalog::lock_schema(&mut txn, PUBLIC).await?.is_none() {
                    let schema = Schema { id: 2200, name: PUBLIC.into(), owner: FIRST_USER.into() };
                    txn.put(rows::schema_key(PUBLIC), rows::encode(&schema)?)?;
                    is_new = true;
                }
                if Catalog::lock_user(&mut txn, FIRST_USER).await?.is_none() && is_new {
                    let user = User {
                        id: 10,
                        name: FIRST_USER.into(),
                        verifier: None,
                        superuser: true,
                        login: true,
                    };
                    txn.put(rows::user_key(FIRST_USER), rows::encode(&user)?)?;
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

    /// A user's SCRAM verifier and right to log in; none: no such user.
    pub async fn user(&self, name: &str) -> Result<Option<Arc<User>>> {
        Ok(self.inner.catalog.user(name).await?.map(Arc::new))
    }

    /// Cancels what the session with this process number runs, if the secret is right.
    pub fn cancel(&self, pid: i32, secret: i32) {
        if let Some((known, canceler)) = self.inner.sessions.lock().get(&pid)
            && *known == secret
        {
            canceler.cancel();
        }
    }
}
