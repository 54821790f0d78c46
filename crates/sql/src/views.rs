//! Tables that are not stored: PostgreSQL's own catalog, the standard's, and the state of the
//! cluster.
//!
//! A view is a name, its columns written as `name:type`, and a function that makes all its rows from a
//! [`Snapshot`] of our catalog. It is small, so it is made whole for each query that names it
//! and the query engine filters and joins it like any table. [`pg`] has what psql, pgbench and the
//! drivers ask for, [`standard`] the part of `information_schema` that tools read, and [`atoll`] the
//! cluster's state, most of which the node answers through [`Source`].
//!
//! Catalogs of features that Atoll does not have (triggers, policies, foreign tables …) are there
//! and empty: that is what they say on a PostgreSQL without any.

mod atoll;
mod pg;
mod roles;
mod standard;

use crate::authority::{Authority, RoleId};
use crate::catalog::{Changed, IndexState, Sequence, Table, rows};
use crate::error::Result;
use crate::run::ddl::comments::Comment;
use crate::types::{Datum, Row, Type};
use crate::wide::QueryContext;
use std::sync::{Arc, LazyLock};

/// The views that a node answers from its own memory or its peers'. The columns are in
/// [`atoll`]'s definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AtollView {
    Nodes,
    Tablets,
    Transactions,
    Locks,
    RollbackSegments,
    Settings,
    Access,
}

impl AtollView {
    /// Names and types of the columns, in order.
    pub fn columns(self) -> Vec<(String, Type)> {
        parse_columns(atoll::columns(self))
    }
}

/// The node's side of the schema `atoll`: rows in the order of the view's columns.
#[async_trait::async_trait]
pub trait Source: Send + Sync {
    async fn rows(&self, view: AtollView) -> Vec<Vec<Datum>>;

    /// Tells the other nodes to forget their copies of these definitions, so that the next statement
    /// there goes by the new ones. Best effort: whoever does not hear it is refused by the tablets, and
    /// plans anew.
    async fn definitions_changed(&self, changed: &Changed);
}

/// The catalog of one database as of one query.
#[derive(Default)]
pub struct Snapshot {
    pub tables: Vec<Arc<Table>>,
    pub sequences: Vec<Arc<Sequence>>,
    pub comments: Vec<Comment>,
    pub authority: Arc<Authority>,
}

impl Snapshot {
    pub async fn load(cx: &QueryContext, reader: &txn::Reader) -> Result<Snapshot> {
        let catalog = cx.engine.catalog();
        let database = cx.view.identity.database;
        let mut tables = catalog.tables(reader).await?;
        tables.retain(|table| table.database == database);
        let mut sequences = catalog.sequences(reader).await?;
        sequences.retain(|sequence| sequence.database == database);
        Ok(Snapshot {
            tables,
            sequences,
            comments: rows::list(reader, rows::COMMENTS).await?,
            authority: cx.view.identity.authority.clone(),
        })
    }
}

/// What a view's rows are made from.
struct Facts<'a> {
    snapshot: &'a Snapshot,
    view: &'a crate::session::View,
}

/// One view.
pub struct Definition {
    schema: &'static str,
    name: &'static str,
    /// `name:type` with blanks between; see [`parse_columns`].
    columns: &'static str,
    rows: Rows,
}

impl Definition {
    /// Whether it never has a row.
    pub fn is_empty(&self) -> bool {
        matches!(self.rows, Rows::None)
    }

    /// `schema.name`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Names and types of the columns, in order.
    pub fn columns(&self) -> Vec<(String, Type)> {
        parse_columns(self.columns)
    }

    /// All rows, as the session that asks may see them.
    pub async fn rows(&self, cx: &QueryContext, snapshot: &Snapshot) -> Vec<Row> {
        match &self.rows {
            Rows::None => Vec::new(),
            Rows::Catalog(rows) => rows(&Facts { snapshot, view: &cx.view }),
            Rows::Node(view) => cx.engine.node().rows(*view).await,
            Rows::Statements => atoll::statements(&cx.engine),
        }
    }
}

enum Rows {
    None,
    Catalog(fn(&Facts) -> Vec<Row>),
    Node(AtollView),
    Statements,
}

/// The view of that name. Without a schema, PostgreSQL's own catalog is looked through.
pub fn find(schema: Option<&str>, name: &str) -> Option<&'static Definition> {
    let schema = schema.unwrap_or("pg_catalog");
    all().find(|definition| definition.schema == schema && definition.name == name)
}

/// Schema and name of the view that a query means.
pub fn name_of(schema: Option<&str>, name: &str) -> Option<(&'static str, &'static str)> {
    find(schema, name).map(|view| (view.schema, view.name))
}

fn all() -> impl Iterator<Item = &'static Definition> {
    pg::VIEWS.iter().chain(roles::VIEWS).chain(standard::VIEWS).chain(atoll::VIEWS)
}

/// Reads a list of columns. Types are PostgreSQL's short names; `[]` makes an array.
fn parse_columns(columns: &str) -> Vec<(String, Type)> {
    let column = |column: &str| {
        let (name, ty) = column.split_once(':').unwrap_or((column, "text"));
        (name.to_owned(), parse_type(ty))
    };
    columns.split_whitespace().map(column).collect()
}

fn parse_type(name: &str) -> Type {
    if let Some(element) = name.strip_suffix("[]") {
        return Type::Array(Box::new(parse_type(element)));
    }
    match name {
        "bool" => Type::Bool,
        "int2" => Type::Int2,
        "int4" => Type::Int4,
        "int8" => Type::Int8,
        "float4" => Type::Float4,
        "float8" => Type::Float8,
        "oid" => Type::Oid,
        "name" => Type::Name,
        "char" => Type::InternalChar,
        "timestamptz" => Type::TimestampTz,
        _ => Type::Text,
    }
}

/// Anything that has a row in `pg_class`.
pub struct Relation<'a> {
    pub id: u32,
    pub schema: &'a str,
    pub name: &'a str,
    /// `pg_class.relkind`.
    pub kind: char,
    pub owner: RoleId,
    pub n_columns: usize,
    pub has_index: bool,
    pub n_checks: usize,
    /// The index's `pg_am` row, or the table's.
    pub access_method: u32,
}

/// The first oid of the views; those before are PostgreSQL's own and those of tables begin above.
const FIRST_VIEW_OID: u32 = 12_000;
pub const HEAP_AM: u32 = 2;
pub const BTREE_AM: u32 = 403;

/// Tables, indexes, sequences and views.
pub fn relations(snapshot: &Snapshot) -> impl Iterator<Item = Relation<'_>> {
    let tables = snapshot.tables.iter().map(|table| Relation {
        id: table.id,
        schema: &table.schema,
        name: &table.name,
        kind: 'r',
        owner: table.owner,
        n_columns: table.columns.len(),
        has_index: indexes(table).next().is_some(),
        n_checks: table.checks.len(),
        access_method: HEAP_AM,
    });
    let indexes = snapshot.tables.iter().flat_map(|table| {
        indexes(table).map(|index| Relation {
            id: index.id,
            schema: &table.schema,
            name: index.name,
            kind: 'i',
            owner: table.owner,
            n_columns: index.columns.len(),
            has_index: false,
            n_checks: 0,
            access_method: BTREE_AM,
        })
    });
    let sequences = snapshot.sequences.iter().map(|sequence| Relation {
        id: sequence.id,
        schema: &sequence.schema,
        name: &sequence.name,
        kind: 'S',
        owner: sequence.owner,
        n_columns: 3,
        has_index: false,
        n_checks: 0,
        access_method: 0,
    });
    let views = view_oids().iter().map(|(id, view, n_columns)| Relation {
        id: *id,
        schema: view.schema,
        name: view.name,
        kind: 'v',
        owner: RoleId::FIRST,
        n_columns: *n_columns,
        has_index: false,
        n_checks: 0,
        access_method: 0,
    });
    tables.chain(indexes).chain(sequences).chain(views)
}

/// Every view with its oid and its number of columns.
fn view_oids() -> &'static [(u32, &'static Definition, usize)] {
    static OIDS: LazyLock<Vec<(u32, &'static Definition, usize)>> = LazyLock::new(|| {
        let oids = FIRST_VIEW_OID..;
        oids.zip(all()).map(|(id, view)| (id, view, parse_columns(view.columns).len())).collect()
    });
    &OIDS
}

/// One index of a table, its primary key's included.
pub struct Index<'a> {
    pub id: u32,
    pub name: &'a str,
    /// Positions in the table's columns, in key order.
    pub columns: Vec<usize>,
    pub unique: bool,
    pub primary: bool,
    pub constraint: bool,
    pub ready: bool,
}

pub fn indexes(table: &Table) -> impl Iterator<Item = Index<'_>> {
    let primary = (!table.is_keyless()).then(|| Index {
        id: table.primary_id,
        name: &table.primary_name,
        columns: table.primary_idxs(),
        unique: true,
        primary: true,
        constraint: true,
        ready: true,
    });
    primary.into_iter().chain(table.indexes.iter().map(|index| Index {
        id: index.id,
        name: &index.name,
        columns: index.column_idxs(table),
        unique: index.unique,
        primary: false,
        constraint: index.constraint,
        ready: index.state == IndexState::Public,
    }))
}

/// One constraint of a table.
pub struct Constraint<'a> {
    pub id: u32,
    pub name: &'a str,
    /// `pg_constraint.contype`.
    pub kind: char,
    pub index: u32,
    pub columns: Vec<usize>,
    check: &'a str,
}

impl Constraint<'_> {
    /// As `pg_get_constraintdef` shows it.
    pub fn definition(&self, table: &Table) -> String {
        let columns: Vec<&str> =
            self.columns.iter().map(|&idx| table.columns[idx].name.as_str()).collect();
        match self.kind {
            'p' => format!("PRIMARY KEY ({})", columns.join(", ")),
            'u' => format!("UNIQUE ({})", columns.join(", ")),
            _ => format!("CHECK ({})", self.check),
        }
    }
}

/// Set in the oids of check constraints, which have no other: no table's oid grows this far.
const CHECK_OID: u32 = 1 << 31;

pub fn constraints(table: &Table) -> impl Iterator<Item = Constraint<'_>> {
    let keys = indexes(table).filter(|index| index.constraint).map(|index| Constraint {
        id: index.id,
        name: index.name,
        kind: if index.primary { 'p' } else { 'u' },
        index: index.id,
        columns: index.columns,
        check: "",
    });
    let checks = table.checks.iter().enumerate().map(|(idx, check)| Constraint {
        id: CHECK_OID | (table.id.wrapping_mul(64).wrapping_add(idx as u32) & (CHECK_OID - 1)),
        name: &check.name,
        kind: 'c',
        index: 0,
        columns: Vec::new(),
        check: &check.sql,
    });
    keys.chain(checks)
}

/// Shorthands for rows.
mod put {
    use crate::types::Datum;

    pub fn oid(value: u32) -> Datum {
        Datum::Int8(i64::from(value))
    }

    pub fn text(value: impl AsRef<str>) -> Datum {
        Datum::text(value)
    }

    pub fn ch(value: char) -> Datum {
        Datum::text(value.encode_utf8(&mut [0; 4]))
    }

    pub fn int2(value: usize) -> Datum {
        Datum::Int2(i16::try_from(value).unwrap_or(i16::MAX))
    }

    pub fn int4(value: i32) -> Datum {
        Datum::Int4(value)
    }

    pub fn is(value: bool) -> Datum {
        Datum::Bool(value)
    }

    pub fn yes_no(value: bool) -> Datum {
        Datum::text(if value { "YES" } else { "NO" })
    }

    pub const NULL: Datum = Datum::Null;
}
