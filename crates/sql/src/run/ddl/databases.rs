//! Databases, each with schemas of its own.

use super::roles::refused;
use crate::authority::{Class, Database, Owned, Privileges, RoleId};
use crate::catalog::{Catalog, Place, rows};
use crate::engine::put_database;
use crate::error::{Error, Result, state};
use crate::parse::DatabaseOptions;
use crate::run::Exec;
use std::sync::Arc;

impl Exec<'_> {
    pub async fn create_database(&mut self, name: &str, options: &DatabaseOptions) -> Result<()> {
        if !self.identity().may_create_databases() {
            return Err(refused("permission denied to create database"));
        }
        let owner = match &options.owner {
            Some(owner) => self.role_of(owner)?,
            None => self.identity().role,
        };
        if !self.identity().may_become(owner) {
            let role = self.identity().authority.roles.name(owner);
            return Err(refused(format!("must be member of role \"{role}\"")));
        }
        Catalog::change_authority(self.txn, self.overlay).await?;
        if Catalog::lock_database(self.txn, name).await?.is_some() {
            return Err(exists(name));
        }
        let id = self.engine.catalog().allocate(2).await?;
        let database = Database {
            id,
            name: name.to_owned(),
            owner,
            connection_limit: options.connection_limit.unwrap_or(-1),
            allow_connections: options.allow_connections.unwrap_or(true),
            is_template: options.is_template.unwrap_or(false),
        };
        put_database(self.txn, &database, id + 1).await
    }

    fn database_named(&self, name: &str) -> Result<Arc<Database>> {
        let known = self.identity().authority.database(name).cloned();
        known.ok_or_else(|| no_database(name))
    }

    pub async fn alter_database(&mut self, name: &str, options: &DatabaseOptions) -> Result<()> {
        let known = self.database_named(name)?;
        self.identity().require_owner(Owned::database(&known), name)?;
        if let Some(owner) = &options.owner {
            let to = self.role_of(owner)?;
            self.require_new_owner(Owned::database(&known), name, to, None)?;
            if !self.identity().may_create_databases() {
                return Err(refused("permission denied to change owner of database"));
            }
            self.give_database(name, to).await?;
        }
        Catalog::change_authority(self.txn, self.overlay).await?;
        let locked = Catalog::lock_database(self.txn, name).await?;
        let mut database = locked.ok_or_else(|| no_database(name))?;
        database.connection_limit = options.connection_limit.unwrap_or(database.connection_limit);
        database.allow_connections =
            options.allow_connections.unwrap_or(database.allow_connections);
        database.is_template = options.is_template.unwrap_or(database.is_template);
        if let Some(to) = &options.rename {
            if !self.identity().may_create_databases() {
                return Err(refused("permission denied to rename database"));
            }
            if known.id == self.identity().database {
                return Err(Error::unsupported("current database cannot be renamed"));
            }
            self.require_unused(&known)?;
            if Catalog::lock_database(self.txn, to).await?.is_some() {
                return Err(exists(to));
            }
            self.txn.delete(rows::database_key(name))?;
            database.name.clone_from(to);
        }
        self.txn.put(rows::database_key(&database.name), rows::encode(&database)?)?;
        Ok(())
    }

    pub async fn give_database(&mut self, name: &str, to: RoleId) -> Result<()> {
        Catalog::change_authority(self.txn, self.overlay).await?;
        let locked = Catalog::lock_database(self.txn, name).await?;
        let mut database = locked.ok_or_else(|| no_database(name))?;
        self.owner_changed(Owned::database(&database), to).await?;
        database.owner = to;
        self.txn.put(rows::database_key(name), rows::encode(&database)?)?;
        Ok(())
    }

    /// Sessions of other nodes are not seen: they go on to the end of their statement, and then find nothing.
    fn require_unused(&self, database: &Database) -> Result<()> {
        let n_others = self.engine.n_sessions_in(database.id);
        if n_others == 0 {
            return Ok(());
        }
        let message = format!("database \"{}\" is being accessed by other users", database.name);
        let noun = if n_others == 1 { "session" } else { "sessions" };
        Err(Error::new(state::OBJECT_IN_USE, message)
            .detail(format!("There are {n_others} other {noun} using the database.")))
    }

    /// The notice to send.
    pub async fn drop_database(
        &mut self,
        name: &str,
        if_exists: bool,
        force: bool,
    ) -> Result<Option<String>> {
        let known = match self.database_named(name) {
            Ok(known) => known,
            Err(_) if if_exists => {
                return Ok(Some(format!("database \"{name}\" does not exist, skipping")));
            }
            Err(error) => return Err(error),
        };
        self.identity().require_owner(Owned::database(&known), name)?;
        if known.id == self.identity().database {
            return Err(Error::new(
                state::OBJECT_IN_USE,
                "cannot drop the currently open database",
            ));
        }
        if force {
            self.engine.end_sessions_in(known.id);
        } else {
            self.require_unused(&known)?;
        }
        Catalog::change_authority(self.txn, self.overlay).await?;
        let locked = Catalog::lock_database(self.txn, name).await?;
        let database = locked.ok_or_else(|| no_database(name))?;
        let reader = self.txn.reader().await?;
        let tables = self.engine.catalog().tables(&reader).await?;
        let sequences = self.engine.catalog().sequences(&reader).await?;
        for table in tables.iter().filter(|table| table.database == database.id) {
            if let Some(table) = Catalog::lock_table(self.txn, table.id).await? {
                self.drop_table(table).await?;
            }
        }
        for sequence in sequences.iter().filter(|sequence| sequence.database == database.id) {
            self.drop_sequence_by_id(sequence.id).await?;
        }
        let authority = self.identity().authority.clone();
        for schema in authority.schemas.iter().filter(|schema| schema.database == database.id) {
            self.forget_schema(schema.id, Place { database: database.id, schema: &schema.name })
                .await?;
        }
        for default in authority.defaults.iter().filter(|known| known.database == database.id) {
            let key = rows::default_acl_key(
                database.id,
                default.role,
                default.schema.unwrap_or(0),
                default.class,
            );
            self.txn
                .lock(std::slice::from_ref(&key), txn::LockMode::Exclusive, txn::Wait::Block)
                .await?;
            self.txn.delete(key)?;
        }
        self.drop_acl(Class::Database, database.id).await?;
        self.txn.delete(rows::database_key(name))?;
        Ok(None)
    }

    /// Removes a schema's rows; what was in it is gone.
    pub async fn forget_schema(&mut self, id: u32, place: Place<'_>) -> Result<()> {
        Catalog::lock_schema(self.txn, place).await?;
        self.drop_acl(Class::Schema, id).await?;
        self.txn.delete(rows::schema_key(place))?;
        Ok(())
    }

    /// CREATE on the current database.
    pub fn require_create_in_database(&self) -> Result<()> {
        let identity = self.identity();
        let known = identity.authority.databases.iter().find(|d| d.id == identity.database);
        match known {
            Some(database) => {
                identity.require(Owned::database(database), Privileges::CREATE, &database.name)
            }
            None => Err(no_database(&self.view.database)),
        }
    }
}

pub fn no_database(name: &str) -> Error {
    Error::new(state::NO_SUCH_DATABASE, format!("database \"{name}\" does not exist"))
}

fn exists(name: &str) -> Error {
    Error::new(state::DUPLICATE_DATABASE, format!("database \"{name}\" already exists"))
}
