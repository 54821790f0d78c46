//! Relations that no table uses any more, and their slow removal.
//!
//! TRUNCATE, DROP and ADD PRIMARY KEY delete no row: they note the old relation as garbage, in the
//! same transaction. Older snapshots may still read it. Once nobody can, because reads at the SCN of
//! that transaction are refused as too old, a sweep deletes the rows in short transactions, and at
//! last the note. A relation that a rebuild is filling is noted too, until the rebuild commits; the
//! rebuild holds the note's lock, which keeps sweeps away.

use super::{Catalog, RelationId, rows};
use crate::error::{Result, state};
use base::{Key, Scn};
use txn::{Isolation, LockMode, Locked, Txn, Wait};

/// Rows that one transaction deletes.
const BATCH_ROWS: usize = 2_000;

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    pub n_rows: u64,
    pub n_relations: u64,
    /// Relations that an older snapshot may still read, or that have rows left.
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

    /// One step: deletes up to some thousand rows of garbage.
    pub async fn sweep(&self) -> Result<Sweep> {
        let mut sweep = Sweep::default();
        for (scn, relation) in self.garbage().await? {
            if !self.is_past(scn).await? || sweep.n_rows >= BATCH_ROWS as u64 {
                sweep.n_waiting += 1;
                continue;
            }
            let mut txn = self.client().begin(Isolation::ReadCommitted);
            // Locked: a table is being rebuilt into this relation, or somebody else sweeps it. Gone:
            // it is in use now.
            let note = rows::garbage_key(relation);
            let locked = txn.lock(&[note], LockMode::Exclusive, Wait::Skip).await?;
            if !matches!(locked[..], [Locked::Held { row: Some(_) }]) {
                sweep.n_waiting += 1;
                continue;
            }
            let batch = txn
                .reader()
                .await?
                .scan(relation.range(), false, Some(BATCH_ROWS))
                .next_batch()
                .await?;
            let mut keys: Vec<Key> = batch.into_iter().map(|(key, _)| key).collect();
            let n_rows = keys.len();
            if n_rows == 0 {
                keys.push(rows::garbage_key(relation));
            }
            txn.lock(&keys, LockMode::Exclusive, Wait::Block).await?;
            keys.into_iter().for_each(|key| txn.delete(key));
            txn.commit().await?;
            sweep.n_rows += n_rows as u64;
            if n_rows == 0 {
                sweep.n_relations += 1;
            } else {
                sweep.n_waiting += 1;
            }
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
