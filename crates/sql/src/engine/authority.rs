//! A node's copy of who may do what.

use crate::authority::Authority;
use crate::catalog::Catalog;
use crate::error::Result;
use base::Env;
use base::env::Instant;
use parking_lot::RwLock;
use std::sync::Arc;
use std::time::Duration;
use txn::Isolation;

/// A node that was not told of a change goes by its old copy for so long at most, while it reaches the root tablet.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Held {
    copy: Option<Arc<Authority>>,
    /// When the copy was last compared with the rows.
    looked: Option<Instant>,
    /// Grows when the copy is forgotten: what was read before may be older than what was told.
    generation: u64,
}

/// The copy, and when it is looked at again.
#[derive(Default)]
pub struct Authorities {
    held: RwLock<Held>,
}

impl Authorities {
    pub fn forget(&self) {
        let mut held = self.held.write();
        (held.copy, held.looked) = (None, None);
        held.generation += 1;
    }

    /// The copy that is in force. Reads the rows if there is none, and their version once a second.
    pub async fn current(&self, env: &Env, catalog: &Catalog) -> Result<Arc<Authority>> {
        let now = env.now();
        {
            let held = self.held.read();
            let is_fresh = held.looked.is_some_and(|at| now < at + LOOK_EVERY);
            if let Some(copy) = held.copy.as_ref().filter(|_| is_fresh) {
                return Ok(copy.clone());
            }
        }
        Box::pin(self.look(env, catalog)).await
    }

    async fn look(&self, env: &Env, catalog: &Catalog) -> Result<Arc<Authority>> {
        let (copy, generation) = {
            let mut held = self.held.write();
            // One statement looks; the others go on with what there is.
            if held.copy.is_some() {
                held.looked = Some(env.now());
            }
            (held.copy.clone(), held.generation)
        };
        let copy = match copy {
            Some(copy) => match catalog.authority_version().await {
                Ok(version) if version != copy.version => None,
                // Where the rows cannot be read, the copy stands: nothing new is committed either.
                _ => Some(copy),
            },
            None => None,
        };
        let copy = match copy {
            Some(copy) => copy,
            None => Arc::new(load(catalog).await?),
        };
        let mut held = self.held.write();
        if held.generation == generation {
            (held.copy, held.looked) = (Some(copy.clone()), Some(env.now()));
        }
        Ok(copy)
    }
}

async fn load(catalog: &Catalog) -> Result<Authority> {
    let mut txn = catalog.client().begin(Isolation::ReadCommitted);
    let reader = txn.reader().await?;
    let loaded = Authority::load(&reader).await;
    txn.rollback().await;
    loaded
}
