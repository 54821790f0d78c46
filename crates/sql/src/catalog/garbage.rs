//! Relations that no table uses any more, and their removal.
//!
//! TRUNCATE, DROP and ADD PRIMARY KEY delete no row: they note the old relation as garbage, in the
//! same transaction. Older snapshots may still read it. Once nobody can, because reads at the SCN of
//! that transaction are refused as too old, a sweep removes the rows and deletes the note. Few rows go
//! by a transaction. Of many, every replica takes out its own, whole files at a time
//! ([`txn::Client::discard`]); the note goes when all have done it. That takes as long for a billion rows
//! as for a thousand: seconds. Which way it goes is noted before the first replica begins: what the leader has
//! then says nothing any more of what the others have. A relation that a rebuild is filling is noted too, until the rebuild commits; the
//! rebuild holds the note's lock, which keeps sweeps away.

use super::{Catalog, RelationId, rows};
use crate::error::{Result, state};
use base::{Key, Scn};
use txn::{Isolation, LockMode, Locked, Txn, Wait};

/// A relation of no more rows is emptied by a transaction.
const FEW_ROWS: usize = 1_000;

/// Whether a note says that the replicas take the rows out. One that is new names the relation only.
fn is_for_replicas(note: &[u8]) -> bool {
    rows::decode::<(RelationId, bool)>(note).is_ok_and(|(_, is_so)| is_so)
}

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
        txn.put(key, rows::encode(&relation)?)?;
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
            match self.sweep_one(relation).await? {
                true => sweep.n_relations += 1,
                false => sweep.n_waiting += 1,
            }
        }
        Ok(sweep)
    }

    /// Few rows are deleted in the transaction itself; many are taken out by the replicas. False: a replica has not
    /// done it yet, or the relation is not to be swept now.
    async fn sweep_one(&self, relation: RelationId) -> Result<bool> {
        let note = rows::garbage_key(relation);
        loop {
            let mut txn = self.client().begin(Isolation::ReadCommitted);
            // Locked: a table is being rebuilt into this relation, or somebody else sweeps it. Gone:
            // it is in use now.
            let locked =
                txn.lock(std::slice::from_ref(&note), LockMode::Exclusive, Wait::Skip).await?;
            let [Locked::Held { row: Some(row) }] = &locked[..] else { return Ok(false) };
            if is_for_replicas(&row.value) {
                if !self.client().discard(relation.range()).await? {
                    return Ok(false);
                }
            } else if !self.delete_few(&mut txn, relation).await? {
                txn.put(note.clone(), rows::encode(&(relation, true))?)?;
                txn.commit().await?;
                continue;
            }
            txn.delete(note)?;
            txn.commit().await?;
            return Ok(true);
        }
    }

    /// False: there are too many.
    async fn delete_few(&self, txn: &mut Txn, relation: RelationId) -> Result<bool> {
        let mut scan = txn.reader().await?.scan(relation.range(), false, Some(FEW_ROWS + 1));
        let mut keys: Vec<Key> = Vec::new();
        loop {
            // A batch ends at a tablet's border, if not before.
            let batch = scan.next_batch().await?;
            if batch.is_empty() {
                break;
            }
            keys.extend(batch.into_iter().map(|(key, _)| key));
            if keys.len() > FEW_ROWS {
                return Ok(false);
            }
        }
        txn.lock(&keys, LockMode::Exclusive, Wait::Block).await?;
        keys.into_iter().try_for_each(|key| txn.delete(key))?;
        Ok(true)
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
