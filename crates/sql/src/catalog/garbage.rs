//! Relations that no table uses any more, and their removal.
//!
//! TRUNCATE, DROP and ADD PRIMARY KEY delete no row: they note the old relation as garbage, in the
//! same transaction. Older snapshots may still read it. Once nobody can, because reads at the SCN of
//! that transaction are refused as too old, a sweep has every replica take the rows out of its files, whole
//! files at a time ([`txn::Client::discard`]), and deletes the note when all have done it. That takes as
//! long for a billion rows as for a thousand: seconds. A relation that a rebuild is filling is noted too, until the rebuild commits; the
//! rebuild holds the note's lock, which keeps sweeps away.

use super::{Catalog, RelationId, rows};
use crate::error::{Result, state};
use base::Scn;
use txn::{Isolation, LockMode, Locked, Txn, Wait};

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    pub n_relations: u64,
    /// Relations that an older snapshot may still read, or of which a replica has rows left.
    pub n_waiting: u64,
}

impl Catalog {
    /// Notes `relation` as garbage from this transaction's commit on.
    pub async fn discard(txn: &mut Txn, relation: RelationId) -> Result<()> {
        let key = rows::garbage_key(relation);
        txn.lock(std::slice::from_ref(&key), LockMode::Exclusive, Wait::Block).await?;
        txn.put(key, rows::encode(&relation)?);
        Ok(())
    }

    /// Removes all garbage that nobody can read any more.
    pub async fn sweep(&self) -> Result<Sweep> {
        let mut sweep = Sweep::default();
        for (scn, relation) in self.garbage().await? {
            if !self.is_past(scn).await? {
                sweep.n_waiting += 1;
                continue;
            }
            let mut txn = self.client().begin(Isolation::ReadCommitted);
            // Locked: a table is being rebuilt into this relation, or somebody else sweeps it. Gone:
            // it is in use now.
            let note = rows::garbage_key(relation);
            let locked = txn.lock(&[note.clone()], LockMode::Exclusive, Wait::Skip).await?;
            if !matches!(locked[..], [Locked::Held { row: Some(_) }])
                || !self.client().discard(relation.range()).await?
            {
                sweep.n_waiting += 1;
                continue;
            }
            txn.delete(note);
            txn.commit().await?;
            sweep.n_relations += 1;
        }
        Ok(sweep)
    }

    async fn garbage(&self) -> Result<Vec<(Scn, RelationId)>> {
        let mut txn = self.client().begin(Isolation::ReadCommitted);
        let mut scan = txn.reader().await?.scan(rows::GARBAGE.range(), false, None);
        let mut found = Vec::new();
        loop {
            let batch = scan.next_batch().await?;
            if batch.is_empty() {
                return Ok(found);
            }
            for (_, row) in batch {
                found.push((row.scn, rows::decode(&row.value)?));
            }
        }
    }

    /// True once no snapshot before `scn` can be read: the store itself is asked.
    async fn is_past(&self, scn: Scn) -> Result<bool> {
        let mut txn = self.client().begin(Isolation::RepeatableRead);
        let probe = async {
            txn.read_as_of(Scn(scn.0.saturating_sub(1))).await?;
            txn.get(&[rows::next_id_key()]).await
        };
        match probe.await.map_err(crate::Error::from) {
            Ok(_) => Ok(false),
            Err(error) if error.state() == state::SNAPSHOT_TOO_OLD => Ok(true),
            Err(error) => Err(error),
        }
    }
}
