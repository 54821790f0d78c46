//! Who may do what.
//!
//! Roles, databases, and access lists are few, read by every statement and changed seldom. So a node keeps all of them
//! as one value, an [`Authority`], as of one snapshot; a change replaces the whole. [`Identity`] is that value seen by
//! one role in one database: what the role holds is worked out once and asked many times.
//!
//! ```text
//!   rows: roles, databases, schemas, access lists, defaults ─► Authority (a node's copy)
//!                                            + role + database ─► Identity (a session's)
//!                              statement ─► needs ─► Identity::check ─► 42501, or go on
//! ```
//!
//! Every transaction that changes such a row raises [`rows::authority_version_key`]. The node where it commits tells
//! all others before it answers, so the next statement anywhere goes by the new rows. A node that did not hear it
//! compares the version with its own once a second.
//!
//! The rows are [`crate::catalog::roles`] and [`crate::catalog::acl`]; [`needs`] reads from a statement's tree what the
//! statement needs.
//!
//! Pure but for [`Authority::load`]. The rules are those of PostgreSQL 15.
//!
//! [`rows::authority_version_key`]: crate::catalog::rows::authority_version_key

pub mod needs;

pub use crate::catalog::acl::{Acl, Class, Database, DefaultAcl, ObjectAcl, Privileges};
pub use crate::catalog::roles::{Membership, Role, RoleId, Roles};
pub use needs::Needs;

use crate::catalog::{Schema, Sequence, Table, rows};
use crate::error::{Error, Result, state};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Everything that decides who may do what.
#[derive(Debug, Default)]
pub struct Authority {
    pub version: u64,
    pub roles: Roles,
    pub databases: Vec<Arc<Database>>,
    pub schemas: Vec<Arc<Schema>>,
    lists: HashMap<(Class, u32), ObjectAcl>,
    pub defaults: Vec<DefaultAcl>,
}

/// An object as far as privileges go.
#[derive(Clone, Copy, Debug)]
pub struct Owned {
    pub class: Class,
    pub id: u32,
    pub owner: RoleId,
}

impl Owned {
    pub fn table(table: &Table) -> Owned {
        Owned { class: Class::Table, id: table.id, owner: table.owner }
    }

    pub fn sequence(sequence: &Sequence) -> Owned {
        Owned { class: Class::Sequence, id: sequence.id, owner: sequence.owner }
    }

    pub fn schema(schema: &Schema) -> Owned {
        Owned { class: Class::Schema, id: schema.id, owner: schema.owner }
    }

    pub fn database(database: &Database) -> Owned {
        Owned { class: Class::Database, id: database.id, owner: database.owner }
    }
}

impl Authority {
    pub fn new(
        version: u64,
        stored: Vec<Role>,
        databases: Vec<Database>,
        schemas: Vec<Schema>,
        lists: Vec<ObjectAcl>,
        defaults: Vec<DefaultAcl>,
    ) -> Authority {
        Authority {
            version,
            roles: Roles::new(stored),
            databases: databases.into_iter().map(Arc::new).collect(),
            schemas: schemas.into_iter().map(Arc::new).collect(),
            lists: lists.into_iter().map(|list| ((list.class, list.id), list)).collect(),
            defaults,
        }
    }

    /// All of it as of the reader's snapshot.
    pub async fn load(reader: &txn::Reader) -> Result<Authority> {
        let version = rows::list(reader, rows::AUTHORITY_VERSION).await?;
        Ok(Authority::new(
            version.into_iter().next().unwrap_or_default(),
            rows::list(reader, rows::ROLES).await?,
            rows::list(reader, rows::DATABASES).await?,
            rows::list(reader, rows::SCHEMAS).await?,
            rows::list(reader, rows::ACLS).await?,
            rows::list(reader, rows::DEFAULT_ACLS).await?,
        ))
    }

    pub fn database(&self, name: &str) -> Option<&Arc<Database>> {
        self.databases.iter().find(|database| database.name == name)
    }

    pub fn schema(&self, database: u32, name: &str) -> Option<&Arc<Schema>> {
        self.schemas.iter().find(|schema| schema.database == database && schema.name == name)
    }

    /// The stored list, if the object has one.
    pub fn list(&self, class: Class, id: u32) -> Option<&ObjectAcl> {
        self.lists.get(&(class, id))
    }

    pub fn lists(&self) -> impl Iterator<Item = &ObjectAcl> {
        self.lists.values()
    }

    /// The list in force.
    pub fn acl(&self, object: Owned) -> Acl {
        let stored = self.list(object.class, object.id).and_then(|list| list.acl.clone());
        stored.unwrap_or_else(|| object.class.default_acl(object.owner))
    }

    /// The list that a new object of `owner` gets; none: the one of its kind.
    pub fn default_acl(
        &self,
        database: u32,
        owner: RoleId,
        schema: u32,
        class: Class,
    ) -> Option<Acl> {
        let find = |schema: Option<u32>| {
            self.defaults.iter().find(|default| {
                default.database == database
                    && default.role == owner
                    && default.schema == schema
                    && default.class == class
            })
        };
        let (everywhere, here) = (find(None), find(Some(schema)));
        if everywhere.is_none() && here.is_none() {
            return None;
        }
        let mut acl =
            everywhere.map_or_else(|| class.default_acl(owner), |default| default.acl.clone());
        for grant in here.iter().flat_map(|default| &default.acl.0) {
            acl.grant(grant.grantee, grant.grantor, grant.privileges, false);
            acl.grant(grant.grantee, grant.grantor, grant.grantable, true);
        }
        Some(acl)
    }
}

/// One role in one database, with all that it holds.
#[derive(Debug)]
pub struct Identity {
    pub authority: Arc<Authority>,
    pub role: RoleId,
    pub name: Arc<str>,
    pub database: u32,
    pub is_superuser: bool,
    /// The roles whose privileges it has; everybody's among them.
    held: BTreeSet<RoleId>,
}

impl Identity {
    pub fn new(authority: Arc<Authority>, role: RoleId, database: u32) -> Identity {
        let owner = authority.databases.iter().find(|known| known.id == database);
        let mut held = authority.roles.held(role, true, owner.map(|database| database.owner));
        held.insert(RoleId::PUBLIC);
        Identity {
            is_superuser: authority.roles.get(role).is_some_and(|role| role.superuser),
            name: Arc::from(authority.roles.name(role)),
            authority,
            role,
            database,
            held,
        }
    }

    /// For work that no session asked for: nothing is refused to it.
    pub fn of_the_system(database: u32) -> Identity {
        Identity {
            authority: Arc::default(),
            role: RoleId::FIRST,
            name: Arc::from(crate::engine::FIRST_USER),
            database,
            is_superuser: true,
            held: BTreeSet::new(),
        }
    }

    /// Whether it has the privileges of that role.
    pub fn has(&self, role: RoleId) -> bool {
        self.is_superuser || self.held.contains(&role)
    }

    pub fn owns(&self, object: Owned) -> bool {
        self.has(object.owner)
    }

    fn as_role(&self) -> Option<&Arc<Role>> {
        self.authority.roles.get(self.role)
    }

    pub fn may_create_roles(&self) -> bool {
        self.is_superuser || self.as_role().is_some_and(|role| role.createrole)
    }

    pub fn may_create_databases(&self) -> bool {
        self.is_superuser || self.as_role().is_some_and(|role| role.createdb)
    }

    /// Whether it may act as that role.
    pub fn may_become(&self, role: RoleId) -> bool {
        self.is_superuser || self.authority.roles.is_member(self.role, role)
    }

    /// What it may do with an object.
    pub fn privileges(&self, object: Owned) -> Privileges {
        if self.is_superuser {
            return object.class.privileges();
        }
        let listed = match self.authority.list(object.class, object.id).and_then(|l| l.acl.as_ref())
        {
            Some(acl) => acl.of(|role| self.held.contains(&role)),
            None if self.held.contains(&object.owner) => object.class.privileges(),
            None => object.class.of_public(),
        };
        listed.union(self.predefined(object.class))
    }

    /// What pg_read_all_data and pg_write_all_data give.
    fn predefined(&self, class: Class) -> Privileges {
        use Privileges as P;
        let (reads, writes) = (
            self.held.contains(&RoleId::READ_ALL_DATA),
            self.held.contains(&RoleId::WRITE_ALL_DATA),
        );
        let read = match class {
            Class::Table | Class::Sequence => P::SELECT,
            Class::Schema => P::USAGE,
            _ => P::NONE,
        };
        let write = match class {
            Class::Table => P::INSERT.union(P::UPDATE).union(P::DELETE),
            Class::Sequence => P::UPDATE,
            Class::Schema => P::USAGE,
            _ => P::NONE,
        };
        let or_none = |is_held: bool, set| if is_held { set } else { P::NONE };
        or_none(reads, read).union(or_none(writes, write))
    }

    /// What it may do with one column, by the table's list or the column's own.
    pub fn column_privileges(&self, table: &Table, column: u32) -> Privileges {
        let of_table = self.privileges(Owned::table(table)).common(Class::Column.privileges());
        let own = self.authority.list(Class::Table, table.id);
        let own = own.and_then(|list| list.columns.get(&column));
        let of_column = own.map(|acl| acl.of(|role| self.held.contains(&role)));
        of_table.union(of_column.unwrap_or_default())
    }

    /// What it may give on, and in whose name: the owner's where it has the owner's rights, else its own.
    pub fn grantable(&self, object: Owned, column: Option<u32>) -> (RoleId, Privileges) {
        let class = if column.is_some() { Class::Column } else { object.class };
        if self.owns(object) {
            return (object.owner, class.privileges());
        }
        let list = self.authority.list(object.class, object.id);
        let lists = list.into_iter().flat_map(|list| {
            let of_column = column.and_then(|column| list.columns.get(&column));
            list.acl.iter().chain(of_column)
        });
        let may_give = |acl: &Acl, role: RoleId| acl.grantable_of(|grantee| grantee == role);
        let lists: Vec<&Acl> = lists.collect();
        // The role that may give the most, itself before others.
        let candidates = std::iter::once(self.role).chain(self.held.iter().copied());
        let of = |role: RoleId| {
            lists.iter().fold(Privileges::NONE, |all, acl| all.union(may_give(acl, role)))
        };
        let best = candidates
            .filter(|role| *role != RoleId::PUBLIC)
            .max_by_key(|role| (of(*role).0.count_ones(), *role == self.role));
        let role = best.unwrap_or(self.role);
        (role, of(role).common(class.privileges()))
    }

    /// The schemas of a search path that are there and that it may use.
    pub fn usable_path(&self, path: &[String]) -> Vec<String> {
        let usable = |name: &&String| {
            crate::catalog::VIRTUAL_SCHEMAS.contains(&name.as_str())
                || self.authority.schema(self.database, name).is_some_and(|schema| {
                    self.privileges(Owned::schema(schema)).contains(Privileges::USAGE)
                })
        };
        path.iter().filter(usable).cloned().collect()
    }

    // ---- refusals

    pub fn require(&self, object: Owned, wanted: Privileges, name: &str) -> Result<()> {
        if self.is_superuser || self.privileges(object).contains(wanted) {
            return Ok(());
        }
        Err(denied(object.class.word(), name))
    }

    pub fn require_owner(&self, object: Owned, name: &str) -> Result<()> {
        if self.owns(object) { Ok(()) } else { Err(not_owner(object.class.word(), name)) }
    }

    /// A schema that is named: there, and open to this role.
    pub fn require_schema(&self, name: &str, wanted: Privileges) -> Result<()> {
        match self.authority.schema(self.database, name) {
            Some(schema) => self.require(Owned::schema(schema), wanted, name),
            None => Ok(()),
        }
    }

    /// Refuses a statement whose needs this role does not meet.
    pub fn check(&self, needs: &Needs) -> Result<()> {
        if self.is_superuser {
            return Ok(());
        }
        for schema in &needs.schemas {
            self.require_schema(schema, Privileges::USAGE)?;
        }
        for view in &needs.views {
            self.require_view(view.0, view.1)?;
        }
        needs.tables.iter().try_for_each(|need| self.check_table(need))
    }

    fn check_table(&self, need: &needs::TableNeed) -> Result<()> {
        let table = &need.table;
        let of_table = self.privileges(Owned::table(table));
        let refused = || Err(denied("table", &table.name));
        if !of_table.contains(need.whole) {
            return refused();
        }
        for (privilege, columns) in &need.columns {
            if of_table.contains(*privilege) {
                continue;
            }
            let has = |column: u32| self.column_privileges(table, column).contains(*privilege);
            let is_met = match columns.is_empty() {
                // No column is named: one that is open will do.
                true => table.columns.iter().any(|column| has(column.id)),
                false => columns.iter().all(|column| has(*column)),
            };
            if !is_met {
                return refused();
            }
        }
        Ok(())
    }

    /// The computed tables that are not for everybody.
    pub fn require_view(&self, schema: &str, name: &str) -> Result<()> {
        if self.is_superuser {
            return Ok(());
        }
        let wanted = match (schema, name) {
            ("pg_catalog", "pg_authid") => return Err(denied("table", name)),
            ("pg_catalog", "pg_shadow") => return Err(denied("view", name)),
            ("atoll", "statements" | "locks") => RoleId::READ_ALL_STATS,
            _ => return Ok(()),
        };
        if self.has(wanted) { Ok(()) } else { Err(denied("view", name)) }
    }
}

pub fn denied(kind: &str, name: &str) -> Error {
    Error::new(state::INSUFFICIENT_PRIVILEGE, format!("permission denied for {kind} {name}"))
}

pub fn not_owner(kind: &str, name: &str) -> Error {
    Error::new(state::INSUFFICIENT_PRIVILEGE, format!("must be owner of {kind} {name}"))
}
