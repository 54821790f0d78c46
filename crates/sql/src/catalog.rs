//! The catalog: which tables, indexes, sequences and schemas there are in which database.
//!
//! Its truth is rows of system relations in the root tablet, changed inside the users' own
//! transactions, so a schema change commits or vanishes with everything else the transaction did.
//! A node keeps what it has read in a [`Catalog`]; looking a cached name up costs no round trip.
//!
//! A cached definition may be old. That is safe because the tablets check it: each statement
//! declares the version of the table that it goes by, and a schema change raises the version that
//! the table's key ranges demand from its own commit on. Whoever comes with an older one is told
//! [`txn::Error::SchemaChanged`], forgets the definition and plans anew:
//!
//! ```text
//!   node A   ALTER TABLE t …: X-locks t's ranges, waits for t's writers; commits: t demands v8
//!   node B   UPDATE t … by v7  ->  SchemaChanged  ->  reads v8 from the root tablet, plans again
//! ```
//!
//! An old snapshot may meet a definition that is newer than itself, whose index was filled and whose
//! rows were moved by later commits. The catalog's rows have versions like any others, so it is
//! read as of that snapshot ([`Catalog::as_of`]): SELECT finds what there was, where it was, and a
//! write is refused like any write to what has changed since.
//!
//! An error may come before any tablet was asked: a column that is not known here yet, a CHECK
//! that is not there any more. It is told only after a look at the definition ([`Catalog::judge`]).
//!
//! A sequence has no tablet that would refuse, because its values come from a block in memory. One
//! that a column owns goes with the table's definition; one that a statement names is looked up by
//! its name once a statement ([`Catalog::is_named`]).
//!
//! Because a change waits for every writer that goes by the older version, two versions never
//! write at once. An index under construction thus needs one intermediate state only (kept up by
//! writers, not read yet), where designs with leases need two.
//!
//! Invariants: a name is a row keyed (database, schema, name) and locked by whoever creates, renames or drops
//! it; a table's row is locked by whoever changes it; a version only grows.

pub mod acl;
pub mod descriptor;
mod garbage;
pub mod roles;
pub mod rows;

pub use descriptor::{
    Check, Column, ColumnDefault, Identity, Index, IndexState, RelationId, Schema, Sequence, Table,
};
pub use garbage::Sweep;
pub use rows::{Kind, Name};

use crate::error::{Error, Result, state};
use acl::{Class, Database, ObjectAcl};
use base::Scn;
use parking_lot::RwLock;
use roles::Role;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use txn::{Isolation, LockMode, Locked, Txn, Wait};

/// The database that a fresh cluster has first.
pub const FIRST_DATABASE: &str = "atoll";
pub const FIRST_DATABASE_ID: u32 = 5;
/// The one that tools expect to find.
pub const SECOND_DATABASE: &str = "postgres";
pub const SECOND_DATABASE_ID: u32 = 6;
/// The schema of tables whose name has no other.
pub const PUBLIC: &str = "public";
/// Schemas whose tables are computed, not stored.
pub const VIRTUAL_SCHEMAS: [&str; 3] = ["pg_catalog", "information_schema", "atoll"];
/// Tries of a short internal transaction before its conflict is reported.
const TRIES: usize = 50;

/// Where names are: a schema of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    pub database: u32,
    pub schema: &'a str,
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Object {
    Table(Arc<Table>),
    Sequence(Arc<Sequence>),
    /// An index of this table.
    Index(Arc<Table>),
}

/// A node's copy of the catalog.
pub struct Catalog {
    client: txn::Client,
    cache: RwLock<Cache>,
    /// Grows whenever a cached definition is forgotten: plans made before may be out of date.
    generation: AtomicU64,
}

#[derive(Default)]
struct Cache {
    /// By database and schema.
    schemas: HashMap<u32, HashMap<String, HashMap<String, Object>>>,
}

impl Cache {
    fn names(&mut self) -> impl Iterator<Item = &mut HashMap<String, Object>> {
        self.schemas.values_mut().flat_map(HashMap::values_mut)
    }

    fn names_of(&mut self, place: Place<'_>) -> Option<&mut HashMap<String, Object>> {
        self.schemas.get_mut(&place.database)?.get_mut(place.schema)
    }
}

/// Definitions that a transaction has changed and not committed: only it sees them.
#[derive(Clone, Default)]
pub struct Overlay {
    /// By database, schema and name.
    names: HashMap<(u32, String, String), Option<Name>>,
    tables: HashMap<u32, Arc<Table>>,
    sequences: HashMap<u32, Arc<Sequence>>,
    /// Roles, databases, schemas or access lists.
    authority: bool,
}

/// Definitions that a transaction has changed: whoever keeps copies of them forgets these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Databases, schemas and names.
    pub names: Vec<(u32, String, String)>,
    pub tables: Vec<u32>,
    pub sequences: Vec<u32>,
    /// Roles, databases, schemas or access lists.
    pub authority: bool,
}

impl Overlay {
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
            && self.tables.is_empty()
            && self.sequences.is_empty()
            && !self.authority
    }

    /// Whether the transaction has changed who may do what.
    pub fn has_authority(&self) -> bool {
        self.authority
    }

    pub fn has_table(&self, id: u32) -> bool {
        self.tables.contains_key(&id)
    }

    pub fn sequence(&self, id: u32) -> Option<&Arc<Sequence>> {
        self.sequences.get(&id)
    }

    pub fn sequence_ids(&self) -> impl Iterator<Item = u32> {
        self.sequences.keys().copied()
    }

    /// What others must forget once it is committed.
    pub fn changed(&self) -> Changed {
        Changed {
            names: self.names.keys().cloned().collect(),
            tables: self.tables.keys().copied().collect(),
            sequences: self.sequences.keys().copied().collect(),
            authority: self.authority,
        }
    }

    /// Ids of the tables changed.
    pub fn table_ids(&self) -> impl Iterator<Item = u32> {
        self.tables.keys().copied()
    }
}

impl Catalog {
    pub fn new(client: txn::Client) -> Catalog {
        Catalog { client, cache: RwLock::default(), generation: AtomicU64::new(1) }
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Forgets everything cached under the table's id.
    pub fn forget_table(&self, id: u32) {
        let mut cache = self.cache.write();
        for names in cache.names() {
            names.retain(|_, object| match object {
                Object::Table(table) | Object::Index(table) => table.id != id,
                Object::Sequence(_) => true,
            });
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Forgets what a committed transaction changed, here or on another node.
    pub fn forget(&self, changed: &Changed) {
        let mut cache = self.cache.write();
        for names in cache.names() {
            names.retain(|_, object| match object {
                Object::Table(table) | Object::Index(table) => !changed.tables.contains(&table.id),
                Object::Sequence(sequence) => !changed.sequences.contains(&sequence.id),
            });
        }
        for (database, schema, name) in &changed.names {
            if let Some(names) = cache.names_of(Place { database: *database, schema }) {
                names.remove(name);
            }
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Forgets one cached name, such as a sequence's that turned out to be gone.
    pub fn forget_name(&self, place: Place<'_>, name: &str) {
        if let Some(names) = self.cache.write().names_of(place) {
            names.remove(name);
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// What a name stands for, as far as this transaction sees.
    pub async fn find(
        &self,
        overlay: &Overlay,
        place: Place<'_>,
        name: &str,
    ) -> Result<Option<Object>> {
        if !overlay.is_empty() {
            let key = (place.database, place.schema.to_owned(), name.to_owned());
            match overlay.names.get(&key) {
                Some(None) => return Ok(None),
                Some(Some(entry)) => {
                    if let Some(object) = self.overlaid(overlay, entry) {
                        return Ok(Some(object));
                    }
                }
                None => {}
            }
        }
        let cached = self.cached(place, name);
        let object = match cached {
            Some(object) => object,
            None => match Box::pin(self.load(place, name)).await? {
                Some(object) => object,
                None => return Ok(None),
            },
        };
        // A change of this transaction may hide behind an unchanged name.
        Ok(Some(match object {
            Object::Table(table) => {
                Object::Table(overlay.tables.get(&table.id).cloned().unwrap_or(table))
            }
            Object::Index(table) => {
                Object::Index(overlay.tables.get(&table.id).cloned().unwrap_or(table))
            }
            Object::Sequence(sequence) => {
                Object::Sequence(overlay.sequences.get(&sequence.id).cloned().unwrap_or(sequence))
            }
        }))
    }

    /// A cached name, without any round trip.
    pub fn cached(&self, place: Place<'_>, name: &str) -> Option<Object> {
        let cache = self.cache.read();
        cache.schemas.get(&place.database)?.get(place.schema)?.get(name).cloned()
    }

    fn overlaid(&self, overlay: &Overlay, entry: &Name) -> Option<Object> {
        match entry.kind {
            Kind::Table => overlay.tables.get(&entry.id).cloned().map(Object::Table),
            Kind::Index => overlay.tables.get(&entry.table).cloned().map(Object::Index),
            Kind::Sequence => overlay.sequences.get(&entry.id).cloned().map(Object::Sequence),
        }
    }

    async fn load(&self, place: Place<'_>, name: &str) -> Result<Option<Object>> {
        let generation = self.generation();
        let mut txn = self.client.begin(Isolation::ReadCommitted);
        let loaded = Self::read_object(&mut txn, place, name).await;
        txn.rollback().await;
        let object = loaded?;
        if let Some(object) = &object {
            let mut cache = self.cache.write();
            // What was forgotten while it was read may be the older one.
            if self.generation() == generation {
                let schemas = cache.schemas.entry(place.database).or_default();
                let names = schemas.entry(place.schema.to_owned()).or_default();
                names.insert(name.to_owned(), object.clone());
            }
        }
        Ok(object)
    }

    async fn read_object(txn: &mut Txn, place: Place<'_>, name: &str) -> Result<Option<Object>> {
        // One snapshot for the name and for what it names.
        txn.snapshot().await?;
        let found = txn.get(&[rows::name_key(place, name)]).await?;
        let Some(Some(row)) = found.into_iter().next() else { return Ok(None) };
        let entry: Name = rows::decode(&row.value)?;
        let key = match entry.kind {
            Kind::Table => rows::table_key(entry.id),
            Kind::Index => rows::table_key(entry.table),
            Kind::Sequence => rows::sequence_key(entry.id),
        };
        let found = txn.get(&[key]).await?;
        let Some(Some(row)) = found.into_iter().next() else { return Ok(None) };
        Ok(Some(match entry.kind {
            Kind::Table => Object::Table(table_of(&row)?.seal()),
            Kind::Index => Object::Index(table_of(&row)?.seal()),
            Kind::Sequence => Object::Sequence(Arc::new(rows::decode(&row.value)?)),
        }))
    }

    /// What `table` stood for at a snapshot that is older than its definition: the table that had
    /// its name then, or the same one by another name. One that there was not yet stays what it is,
    /// and empty: all its rows are newer.
    pub async fn as_of(&self, table: Arc<Table>, at: Scn) -> Result<Arc<Table>> {
        let mut txn = self.client.begin(Isolation::RepeatableRead);
        txn.read_as_of(at).await?;
        let found = txn.get(&[rows::name_key(table.place(), &table.name)]).await?;
        let named = match found.into_iter().next().flatten() {
            Some(row) => Some(rows::decode::<Name>(&row.value)?),
            None => None,
        };
        let id = named.filter(|named| named.kind == Kind::Table).map_or(table.id, |named| named.id);
        let found = txn.get(&[rows::table_key(id)]).await?;
        let Some(row) = found.into_iter().next().flatten() else { return Ok(table) };
        let past = table_of(&row)?;
        let (schema, name) = (table.schema.clone(), table.name.clone());
        Ok(Table { schema, name, is_past: true, ..past }.seal())
    }

    /// Is this definition, which may be a cached one, the one in force?
    pub async fn is_in_force(&self, table: &Table) -> Result<bool> {
        // What this transaction itself has changed, nobody else has.
        if table.since == Scn::ZERO {
            return Ok(true);
        }
        let row = self.read_newest(rows::table_key(table.id)).await?;
        Ok(row.is_some_and(|row| row.scn == table.since))
    }

    /// Does a cached sequence's name still stand for it?
    pub async fn is_named(&self, sequence: &Sequence) -> Result<bool> {
        let key = rows::name_key(sequence.place(), &sequence.name);
        let named: Option<Name> = self.read_one(key).await?;
        Ok(named.is_some_and(|named| named.id == sequence.id))
    }

    /// What a statement that went by these definitions failed with. An error in names or values may
    /// come before any tablet was asked: it counts only if the definitions are in force, or else
    /// the statement is to be planned anew.
    pub async fn judge(&self, error: Error, tables: &[Arc<Table>]) -> Error {
        // Uniqueness is found under locks.
        let is_early = matches!(&error.state()[..2], "0A" | "22" | "23" | "42")
            && error.state() != state::UNIQUE_VIOLATION;
        for table in tables.iter().filter(|table| is_early && !table.is_past) {
            match self.is_in_force(table).await {
                Ok(true) => {}
                Ok(false) => return txn::Error::SchemaChanged { table: table.id }.into(),
                // Of two errors, the statement's own.
                Err(_) => return error,
            }
        }
        error
    }

    // ---- listing, for the views

    /// Every table as of the reader's snapshot.
    pub async fn tables(&self, reader: &txn::Reader) -> Result<Vec<Arc<Table>>> {
        let tables: Vec<Table> = rows::list(reader, rows::TABLES).await?;
        Ok(tables.into_iter().map(Table::seal).collect())
    }

    pub async fn sequences(&self, reader: &txn::Reader) -> Result<Vec<Arc<Sequence>>> {
        Ok(rows::list(reader, rows::SEQUENCES).await?.into_iter().map(Arc::new).collect())
    }

    pub async fn role(&self, name: &str) -> Result<Option<Role>> {
        self.read_one(rows::role_key(name)).await
    }

    pub async fn schema(&self, place: Place<'_>) -> Result<Option<Schema>> {
        self.read_one(rows::schema_key(place)).await
    }

    /// How often authority has changed.
    pub async fn authority_version(&self) -> Result<u64> {
        Ok(self.read_one(rows::authority_version_key()).await?.unwrap_or_default())
    }

    async fn read_one<T: serde::de::DeserializeOwned>(&self, key: base::Key) -> Result<Option<T>> {
        let row = self.read_newest(key).await?;
        row.map(|row| rows::decode(&row.value)).transpose()
    }

    async fn read_newest(&self, key: base::Key) -> Result<Option<txn::Row>> {
        let mut txn = self.client.begin(Isolation::ReadCommitted);
        let found = txn.get_only(&[key]).await;
        txn.rollback().await;
        Ok(found?.into_iter().next().flatten())
    }

    // ---- changing, inside the user's transaction

    /// Locks a name against others who would create, rename or drop it.
    pub async fn lock_name(txn: &mut Txn, place: Place<'_>, name: &str) -> Result<Option<Name>> {
        Self::lock_one(txn, rows::name_key(place, name)).await
    }

    pub async fn lock_table(txn: &mut Txn, id: u32) -> Result<Option<Table>> {
        Self::lock_one(txn, rows::table_key(id)).await
    }

    pub async fn lock_sequence(txn: &mut Txn, id: u32) -> Result<Option<Sequence>> {
        Self::lock_one(txn, rows::sequence_key(id)).await
    }

    pub async fn lock_role(txn: &mut Txn, name: &str) -> Result<Option<Role>> {
        Self::lock_one(txn, rows::role_key(name)).await
    }

    pub async fn lock_database(txn: &mut Txn, name: &str) -> Result<Option<Database>> {
        Self::lock_one(txn, rows::database_key(name)).await
    }

    pub async fn lock_schema(txn: &mut Txn, place: Place<'_>) -> Result<Option<Schema>> {
        Self::lock_one(txn, rows::schema_key(place)).await
    }

    pub async fn lock_acl(txn: &mut Txn, class: Class, id: u32) -> Result<ObjectAcl> {
        let locked = Self::lock_one(txn, rows::acl_key(class, id)).await?;
        Ok(locked.unwrap_or_else(|| ObjectAcl::new(class, id)))
    }

    /// Notes that this transaction changes who may do what. Such transactions come one after the other.
    pub async fn change_authority(txn: &mut Txn, overlay: &mut Overlay) -> Result<()> {
        if overlay.authority {
            return Ok(());
        }
        let key = rows::authority_version_key();
        let version: u64 = Self::lock_one(txn, key.clone()).await?.unwrap_or_default();
        txn.put(key, rows::encode(&(version + 1))?)?;
        overlay.authority = true;
        Ok(())
    }

    async fn lock_one<T: serde::de::DeserializeOwned>(
        txn: &mut Txn,
        key: base::Key,
    ) -> Result<Option<T>> {
        let locked = txn.lock(&[key], LockMode::Exclusive, Wait::Block).await?;
        match locked.into_iter().next() {
            Some(Locked::Held { row: Some(row) }) => rows::decode(&row.value).map(Some),
            _ => Ok(None),
        }
    }

    /// Writes a name that was locked; none removes it.
    pub fn put_name(
        txn: &mut Txn,
        overlay: &mut Overlay,
        place: Place<'_>,
        name: &str,
        entry: Option<Name>,
    ) -> Result<()> {
        let key = rows::name_key(place, name);
        match &entry {
            Some(entry) => txn.put(key, rows::encode(entry)?)?,
            None => txn.delete(key)?,
        }
        overlay.names.insert((place.database, place.schema.to_owned(), name.to_owned()), entry);
        Ok(())
    }

    /// Writes a table whose row was locked, or whose id is fresh and locked likewise.
    pub fn put_table(txn: &mut Txn, overlay: &mut Overlay, table: Table) -> Result<Arc<Table>> {
        txn.put(rows::table_key(table.id), rows::encode(&table)?)?;
        let table = table.seal();
        overlay.tables.insert(table.id, table.clone());
        Ok(table)
    }

    pub fn put_sequence(txn: &mut Txn, overlay: &mut Overlay, sequence: Sequence) -> Result<()> {
        txn.put(rows::sequence_key(sequence.id), rows::encode(&sequence)?)?;
        overlay.sequences.insert(sequence.id, Arc::new(sequence));
        Ok(())
    }

    /// Draws `n` fresh ids for tables, relations, indexes and sequences, in a transaction of its
    /// own: ids that the user's transaction gives up are not used again.
    pub async fn allocate(&self, n: u32) -> Result<u32> {
        retry(|| async {
            let mut txn = self.client.begin(Isolation::ReadCommitted);
            let next: u32 =
                Self::lock_one(&mut txn, rows::next_id_key()).await?.unwrap_or(rows::FIRST_ID);
            let after = next.checked_add(n).ok_or_else(|| {
                Error::new(state::LIMIT_EXCEEDED, "the catalog has run out of object ids")
            })?;
            txn.put(rows::next_id_key(), rows::encode(&after)?)?;
            txn.commit().await?;
            Ok(next)
        })
        .await
    }

    pub fn client(&self) -> &txn::Client {
        &self.client
    }
}

/// A committed definition.
fn table_of(row: &txn::Row) -> Result<Table> {
    Ok(Table { since: row.scn, ..rows::decode(&row.value)? })
}

/// Runs a short internal transaction again while it conflicts.
pub async fn retry<T, F, Fut>(mut attempt: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut tries = 0;
    loop {
        tries += 1;
        match attempt().await {
            Err(error)
                if tries < TRIES
                    && matches!(error.state(), state::SERIALIZATION_FAILURE | state::DEADLOCK) => {}
            outcome => return outcome,
        }
    }
}
