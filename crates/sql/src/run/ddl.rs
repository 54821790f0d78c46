//! Definitions: tables, indexes, sequences, schemas; databases, roles and who may do what.
//!
//! A definition is changed by rewriting its catalog row in the user's own transaction and, for a
//! table, raising its version ([`txn::Txn::change_schema`]): that waits for all who work with the
//! older definition and refuses all who come with it after the commit. Nothing here is visible to
//! others before the commit, and a rollback undoes it.

pub mod alter;
pub mod comments;
mod databases;
mod grants;
pub mod index;
pub mod objects;
pub mod roles;
pub mod table;

use super::Exec;
use crate::authority::{Owned, Privileges};
use crate::catalog::{Catalog, Kind, Name, Place, Table, VIRTUAL_SCHEMAS};
use crate::error::{Error, Result, state};
use crate::parse;
use crate::plan::undefined_table;
use base::KeyRange;
use sqlparser::ast;
use std::sync::Arc;

/// PostgreSQL cuts names at 63 bytes; a made-up one is cut here.
const NAME_BYTES_MAX: usize = 63;

impl Exec<'_> {
    /// The schema for a new object, checked to exist, and its name.
    pub fn new_name(&self, name: &ast::ObjectName) -> Result<(String, String)> {
        let (schema, short) = parse::qualified(name)?;
        let schema = match schema {
            Some(schema) => {
                self.check_schema(&schema)?;
                schema
            }
            None => self.first_schema()?,
        };
        if short.len() > NAME_BYTES_MAX {
            return Err(Error::new(
                "42622",
                format!("identifier \"{short}\" is longer than {NAME_BYTES_MAX} bytes"),
            ));
        }
        Ok((schema, short))
    }

    /// The first schema of the search path that there is.
    fn first_schema(&self) -> Result<String> {
        let path = self.view.search_path.clone();
        let mut stored = path.iter().filter(|schema| !VIRTUAL_SCHEMAS.contains(&schema.as_str()));
        if let Some(schema) = stored.next() {
            self.check_schema(schema)?;
            return Ok(schema.clone());
        }
        Err(Error::new(state::NO_SUCH_SCHEMA, "no schema has been selected to create in"))
    }

    fn check_schema(&self, schema: &str) -> Result<()> {
        if VIRTUAL_SCHEMAS.contains(&schema) {
            return Err(Error::new(
                state::INSUFFICIENT_PRIVILEGE,
                format!("permission denied to create in schema \"{schema}\""),
            )
            .detail("Its tables are computed by the system."));
        }
        let place = self.view.place(schema);
        // One that this very transaction created is known too.
        if self.identity().authority.schema(place.database, schema).is_none() {
            let message = format!("schema \"{schema}\" does not exist");
            return Err(Error::new(state::NO_SUCH_SCHEMA, message));
        }
        self.identity().require_schema(schema, Privileges::CREATE)
    }

    /// Locks an existing name by the search path; none: there is no such object.
    pub async fn lock_existing(
        &mut self,
        name: &ast::ObjectName,
    ) -> Result<Option<(String, String, Name)>> {
        let (schema, short) = parse::qualified(name)?;
        let schemas: Vec<String> = match schema {
            Some(schema) => {
                self.identity().require_schema(&schema, Privileges::USAGE)?;
                vec![schema]
            }
            None => self.view.search_path.to_vec(),
        };
        for schema in schemas {
            if VIRTUAL_SCHEMAS.contains(&schema.as_str()) {
                continue;
            }
            // A cheap look first: locking the names of all schemas of the path would serialise
            // unrelated work.
            let place = self.view.place(&schema);
            if self.engine.catalog().find(self.overlay, place, &short).await?.is_none() {
                continue;
            }
            if let Some(entry) = Catalog::lock_name(self.txn, place, &short).await? {
                return Ok(Some((schema, short, entry)));
            }
        }
        Ok(None)
    }

    /// Locks a table's name and row, and returns its newest definition.
    pub async fn lock_table(&mut self, name: &ast::ObjectName) -> Result<Option<Table>> {
        match self.lock_existing(name).await? {
            None => Ok(None),
            Some((_, _, Name { kind: Kind::Table, id, .. })) => {
                Ok(Catalog::lock_table(self.txn, id).await?)
            }
            Some((_, short, _)) => {
                Err(Error::new(state::WRONG_OBJECT_TYPE, format!("\"{short}\" is not a table")))
            }
        }
    }

    pub async fn lock_table_or_fail(&mut self, name: &ast::ObjectName) -> Result<Table> {
        match self.lock_table(name).await? {
            Some(table) => Ok(table),
            None => {
                let (schema, short) = parse::qualified(name)?;
                Err(undefined_table(schema.as_deref(), &short))
            }
        }
    }

    /// The same of a table that the current role owns.
    pub async fn lock_own_table(&mut self, name: &ast::ObjectName) -> Result<Table> {
        let table = self.lock_table_or_fail(name).await?;
        self.identity().require_owner(Owned::table(&table), &table.name)?;
        Ok(table)
    }

    /// What an object's owner may do to it, its schema's owner may do as well.
    pub fn require_owner_or_schema(&self, object: Owned, schema: &str, name: &str) -> Result<()> {
        let identity = self.identity();
        let of_schema = identity.authority.schema(identity.database, schema);
        if of_schema.is_some_and(|schema| identity.owns(Owned::schema(schema))) {
            return Ok(());
        }
        identity.require_owner(object, name)
    }

    /// Claims a name for a new object; an error if it is taken.
    pub async fn claim(&mut self, schema: &str, name: &str, entry: Name) -> Result<()> {
        let place = self.view.place(schema);
        if Catalog::lock_name(self.txn, place, name).await?.is_some() {
            return Err(Error::new(
                state::DUPLICATE_TABLE,
                format!("relation \"{name}\" already exists"),
            ));
        }
        Catalog::put_name(self.txn, self.overlay, place, name, Some(entry))
    }

    pub async fn release(&mut self, place: Place<'_>, name: &str) -> Result<()> {
        Catalog::lock_name(self.txn, place, name).await?;
        Catalog::put_name(self.txn, self.overlay, place, name, None)
    }

    /// A name made of parts that nobody uses yet: `t_a_key`, `t_a_key1`, …
    pub async fn free_name(
        &mut self,
        schema: &str,
        parts: &[&str],
        suffix: &str,
    ) -> Result<String> {
        for attempt in 0..1_000 {
            let number = if attempt == 0 { String::new() } else { attempt.to_string() };
            let mut stem = parts.join("_");
            let room = NAME_BYTES_MAX.saturating_sub(suffix.len() + number.len() + 1);
            while stem.len() > room {
                stem.pop();
            }
            let name = format!("{stem}_{suffix}{number}");
            let place = self.view.place(schema);
            if self.engine.catalog().find(self.overlay, place, &name).await?.is_none()
                && Catalog::lock_name(self.txn, place, &name).await?.is_none()
            {
                return Ok(name);
            }
        }
        Err(Error::internal("no free name was found in a thousand tries"))
    }

    /// Puts a changed definition into force: `before` are the ranges of the older one.
    pub async fn redefine(&mut self, mut table: Table, before: &[KeyRange]) -> Result<Arc<Table>> {
        table.version += 1;
        let table = Catalog::put_table(self.txn, self.overlay, table)?;
        let mut ranges = before.to_vec();
        ranges.extend(table.ranges.iter().filter(|range| !before.contains(range)).cloned());
        self.txn.change_schema(table.id, table.version, &ranges).await?;
        self.txn.use_table(table.id, table.version, &table.ranges);
        Ok(table)
    }

    /// Takes the table for this transaction alone, so that what is read next stays true. The
    /// current version keeps its force until [`Exec::redefine`].
    pub async fn exclude(&mut self, table: &Table) -> Result<()> {
        let ranges = ranges_of(table);
        self.txn.use_table(table.id, table.version, &ranges);
        for range in ranges {
            self.txn.lock_range(range, txn::LockMode::Exclusive).await?;
        }
        if self.txn.isolation() != txn::Isolation::ReadCommitted {
            return Err(Error::new(
                state::FEATURE_NOT_SUPPORTED,
                "this change of a table reads all its rows and runs at READ COMMITTED only",
            )
            .hint("Begin the transaction with ISOLATION LEVEL READ COMMITTED."));
        }
        // A snapshot from before the lock might miss what committed while it was waited for.
        self.txn.begin_statement();
        Ok(())
    }
}

/// The ranges of a definition that was read but not sealed.
pub fn ranges_of(table: &Table) -> Vec<KeyRange> {
    std::iter::once(table.relation)
        .chain(table.indexes.iter().map(|index| index.relation))
        .map(|relation| relation.range())
        .collect()
}
