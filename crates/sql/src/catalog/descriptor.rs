//! What the catalog says of one table, sequence or schema.
//!
//! A descriptor is one row of a system relation, replaced whole by each change. A [`Table`]'s
//! `version` grows with every change; a statement tells the tablets which version it goes by and is
//! refused when a newer one is in force (see [`crate::catalog`]).
//!
//! Columns have ids that are never used again, and stored rows name columns by id. So a rename
//! touches no row, a dropped column's values are skipped, and a column added later is absent from
//! older rows, which then read as its `missing` value.

use super::roles::RoleId;
use crate::types::{Datum, Type};
use base::{KeyRange, NodeId, Scn};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The first four bytes of a key, big endian: which table's rows, or which index's entries.
/// Below 100: the system's own, in the root tablet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelationId(pub u32);

impl RelationId {
    /// The first relation of a user's table.
    pub const FIRST_USER: RelationId = RelationId(100);

    pub fn prefix(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    /// Every key of the relation.
    pub fn range(self) -> KeyRange {
        KeyRange::prefix(self.prefix().to_vec())
    }
}

/// One table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// Stays the same for the table's life; also its `pg_class.oid`.
    pub id: u32,
    pub version: u64,
    pub database: u32,
    pub schema: String,
    pub name: String,
    pub owner: RoleId,
    /// Where the rows are. TRUNCATE and ADD PRIMARY KEY choose a fresh one.
    pub relation: RelationId,
    /// In the order of their creation, without the dropped ones.
    pub columns: Vec<Column>,
    /// One more than the highest column id ever used here.
    pub next_column: u32,
    /// Ids of the primary key's columns in key order; empty: a hidden row id is the key.
    pub primary: Vec<u32>,
    /// The name of the primary key's constraint and index; empty when there is none.
    pub primary_name: String,
    /// The index id of the primary key in `pg_class`.
    pub primary_id: u32,
    pub indexes: Vec<Index>,
    /// `CHECK` constraints: name and the condition's SQL text.
    pub checks: Vec<Check>,
    /// Storage parameters, `fillfactor=70`: kept for those who look.
    pub options: Vec<String>,
    /// The commit that put this definition into force: where an older snapshot is read, its indexes
    /// may lack entries and its relations rows. Zero for one that has not committed.
    #[serde(skip)]
    pub since: Scn,
    /// Read as of an older snapshot: another definition is in force by now.
    #[serde(skip)]
    pub is_past: bool,
    /// The key ranges of the rows and of every index; made by [`Table::seal`].
    #[serde(skip)]
    pub ranges: Arc<[KeyRange]>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Column {
    /// Also its `attnum`. From 1.
    pub id: u32,
    pub name: String,
    pub ty: Type,
    pub not_null: bool,
    pub default: Option<ColumnDefault>,
    pub identity: Option<Identity>,
    /// What rows written before the column existed hold in it.
    #[serde(with = "crate::codec::missing")]
    pub missing: Datum,
}

/// A column's default: the expression's SQL text, and the sequence that it owns (serial, identity).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ColumnDefault {
    pub sql: String,
    pub owned_sequence: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    Always,
    ByDefault,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub sql: String,
}

/// A secondary index. Its entries are `relation ++ columns [++ row key]` -> row key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Index {
    /// Also its `pg_class.oid`.
    pub id: u32,
    pub name: String,
    pub relation: RelationId,
    /// Column ids in key order.
    pub columns: Vec<u32>,
    pub unique: bool,
    /// Made by a UNIQUE constraint rather than by CREATE INDEX.
    pub constraint: bool,
    pub state: IndexState,
    /// Whose work the building is: a node, and which start of it. None once it is public.
    pub builder: Option<(NodeId, u64)>,
}

/// How far an index's building has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IndexState {
    /// Every writer keeps it up, nobody reads it: older rows may still lack their entries.
    Building,
    Public,
}

impl Table {
    pub fn place(&self) -> super::Place<'_> {
        super::Place { database: self.database, schema: &self.schema }
    }

    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Position in `columns`.
    pub fn column_idx(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    pub fn idx_of_id(&self, id: u32) -> Option<usize> {
        self.columns.iter().position(|column| column.id == id)
    }

    /// Positions in `columns` of the primary key's columns, in key order.
    pub fn primary_idxs(&self) -> Vec<usize> {
        self.primary.iter().filter_map(|id| self.idx_of_id(*id)).collect()
    }

    /// True where rows are keyed by a hidden row id.
    pub fn is_keyless(&self) -> bool {
        self.primary.is_empty()
    }

    /// Finishes a descriptor that was read or changed.
    pub fn seal(mut self) -> Arc<Table> {
        self.ranges = std::iter::once(self.relation)
            .chain(self.indexes.iter().map(|index| index.relation))
            .map(RelationId::range)
            .collect();
        Arc::new(self)
    }

    /// A table of these columns without a key.
    #[cfg(test)]
    pub(crate) fn for_tests(columns: &[(&str, Type)]) -> Table {
        let column = |(idx, (name, ty)): (usize, &(&str, Type))| Column {
            id: idx as u32 + 1,
            name: (*name).to_owned(),
            ty: ty.clone(),
            not_null: false,
            default: None,
            identity: None,
            missing: Datum::Null,
        };
        Table {
            id: 1000,
            version: 1,
            database: super::FIRST_DATABASE_ID,
            schema: "public".into(),
            name: "t".into(),
            owner: RoleId::FIRST,
            relation: RelationId(1000),
            columns: columns.iter().enumerate().map(column).collect(),
            next_column: columns.len() as u32 + 1,
            primary: Vec::new(),
            primary_name: String::new(),
            primary_id: 0,
            indexes: Vec::new(),
            checks: Vec::new(),
            options: Vec::new(),
            since: Scn::ZERO,
            is_past: false,
            ranges: Arc::default(),
        }
    }
}

impl Index {
    /// Positions in the table's `columns`, in key order.
    pub fn column_idxs(&self, table: &Table) -> Vec<usize> {
        self.columns.iter().filter_map(|id| table.idx_of_id(*id)).collect()
    }
}

impl Sequence {
    pub fn place(&self) -> super::Place<'_> {
        super::Place { database: self.database, schema: &self.schema }
    }
}

/// A sequence, its position included: drawing values locks the row that DDL would change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sequence {
    pub id: u32,
    pub database: u32,
    pub schema: String,
    pub name: String,
    pub owner: RoleId,
    pub ty: Type,
    pub start: i64,
    pub increment: i64,
    pub min: i64,
    pub max: i64,
    pub cycle: bool,
    /// Values a node draws at once.
    pub cache: i64,
    /// Table and column ids, when a column owns it.
    pub owned_by: Option<(u32, u32)>,
    /// The last value drawn, or the one to draw next while `is_called` is false.
    pub last: i64,
    pub is_called: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Schema {
    /// Also its `pg_namespace.oid`.
    pub id: u32,
    pub database: u32,
    pub name: String,
    pub owner: RoleId,
}
