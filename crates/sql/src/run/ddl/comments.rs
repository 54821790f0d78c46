//! COMMENT ON: texts that people read, kept beside what they are about.

use super::roles::no_role;
use crate::authority::Owned;
use crate::catalog::{Catalog, Kind, rows};
use crate::error::{Error, Result, state};
use crate::parse::{self, CommentOn, RoleSpec};
use crate::plan::undefined_table;
use crate::run::Exec;
use crate::views;
use base::KeyRange;
use serde::{Deserialize, Serialize};
use sqlparser::ast;
use txn::{LockMode, Wait};

/// Catalogues by their oids, as `pg_description.classoid` names them.
pub const PG_CLASS: u32 = 1259;
pub const PG_NAMESPACE: u32 = 2615;
pub const PG_CONSTRAINT: u32 = 2606;
pub const PG_DATABASE: u32 = 1262;
pub const PG_AUTHID: u32 = 1260;

/// One comment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comment {
    /// The catalogue that the object is in.
    pub class: u32,
    pub object: u32,
    /// A column's number, or 0.
    pub part: u32,
    pub text: String,
}

impl Exec<'_> {
    pub async fn comment(&mut self, on: &CommentOn, text: Option<&str>) -> Result<()> {
        let (class, object, part) = self.commented(on).await?;
        let key = rows::comment_key(class, object, part);
        self.txn.lock(std::slice::from_ref(&key), LockMode::Exclusive, Wait::Block).await?;
        match text {
            None => self.txn.delete(key)?,
            Some(text) => {
                let comment = Comment { class, object, part, text: text.to_owned() };
                self.txn.put(key, rows::encode(&comment)?)?;
            }
        }
        Ok(())
    }

    /// What the comment is about; only its owner may comment on it.
    async fn commented(&mut self, on: &CommentOn) -> Result<(u32, u32, u32)> {
        match on {
            CommentOn::Table(name) => Ok((PG_CLASS, self.own_table(name).await?.id, 0)),
            CommentOn::Column(name, column) => {
                let table = self.own_table(name).await?;
                let known = table.column(column).ok_or_else(|| {
                    let message = format!(
                        "column \"{column}\" of relation \"{}\" does not exist",
                        table.name
                    );
                    Error::new(state::UNDEFINED_COLUMN, message)
                })?;
                Ok((PG_CLASS, table.id, known.id))
            }
            CommentOn::Constraint(name, of) => {
                let table = self.own_table(of).await?;
                let known = views::constraints(&table).find(|known| known.name == name);
                let known = known.ok_or_else(|| {
                    let message = format!(
                        "constraint \"{name}\" for table \"{}\" does not exist",
                        table.name
                    );
                    Error::new(state::UNDEFINED_OBJECT, message)
                })?;
                Ok((PG_CONSTRAINT, known.id, 0))
            }
            CommentOn::Index(name) | CommentOn::Sequence(name) => {
                let wanted = match on {
                    CommentOn::Index(_) => Kind::Index,
                    _ => Kind::Sequence,
                };
                let (schema, short) = parse::qualified(name)?;
                let Some((_, _, entry)) = self.lock_existing(name).await? else {
                    return Err(undefined_table(schema.as_deref(), &short));
                };
                if entry.kind != wanted {
                    let what = if wanted == Kind::Index { "an index" } else { "a sequence" };
                    let message = format!("\"{short}\" is not {what}");
                    return Err(Error::new(state::WRONG_OBJECT_TYPE, message));
                }
                let owned = if wanted == Kind::Index {
                    Catalog::lock_table(self.txn, entry.table).await?.map(|t| Owned::table(&t))
                } else {
                    let sequence = Catalog::lock_sequence(self.txn, entry.id).await?;
                    sequence.map(|sequence| Owned::sequence(&sequence))
                };
                if let Some(owned) = owned {
                    self.identity().require_owner(owned, &short)?;
                }
                Ok((PG_CLASS, entry.id, 0))
            }
            CommentOn::Schema(name) => {
                let schema = self.schema_named(name)?;
                self.identity().require_owner(Owned::schema(&schema), name)?;
                Ok((PG_NAMESPACE, schema.id, 0))
            }
            CommentOn::Database(name) => {
                let known = self.identity().authority.database(name).cloned();
                let database = known.ok_or_else(|| super::databases::no_database(name))?;
                self.identity().require_owner(Owned::database(&database), name)?;
                Ok((PG_DATABASE, database.id, 0))
            }
            CommentOn::Role(name) => {
                let id = self.role_of(&RoleSpec::Named(name.clone()))?;
                let identity = self.identity();
                let role = identity.authority.roles.get(id).ok_or_else(|| no_role(name))?;
                if role.superuser && !identity.is_superuser {
                    return Err(super::roles::refused("must be superuser"));
                }
                if !identity.may_create_roles() {
                    return Err(super::roles::refused("must have CREATEROLE privilege"));
                }
                Ok((PG_AUTHID, id.0, 0))
            }
        }
    }

    async fn own_table(&mut self, name: &ast::ObjectName) -> Result<crate::catalog::Table> {
        let table = self.lock_table_or_fail(name).await?;
        self.identity().require_owner(Owned::table(&table), &table.name)?;
        Ok(table)
    }

    /// An object is gone, and what was said about it with it.
    pub async fn drop_comments(&mut self, class: u32, object: u32) -> Result<()> {
        let first = rows::comment_key(class, object, 0);
        let end = rows::comment_key(class, object, u32::MAX);
        let reader = self.txn.reader().await?;
        let mut scan = reader.scan(KeyRange::new(first, end), false, None);
        loop {
            let batch = scan.next_batch().await?;
            if batch.is_empty() {
                return Ok(());
            }
            for (key, _) in batch {
                self.txn.lock(std::slice::from_ref(&key), LockMode::Exclusive, Wait::Block).await?;
                self.txn.delete(key)?;
            }
        }
    }
}
