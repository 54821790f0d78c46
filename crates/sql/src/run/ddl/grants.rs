//! GRANT, REVOKE, default privileges, and what becomes of a role's objects.

use super::roles::refused;
use crate::authority::{Acl, Class, DefaultAcl, ObjectAcl, Owned, Privileges, RoleId};
use crate::catalog::{Catalog, Kind, Place, Schema, Table, VIRTUAL_SCHEMAS, rows};
use crate::error::{Error, Result, state};
use crate::parse::{self, AlterDefaults, GrantObjects, GrantTarget, RoleSpec};
use crate::plan::undefined_table;
use crate::run::Exec;
use sqlparser::ast;
use std::collections::BTreeMap;

/// An object that GRANT names: its owner and list, its name for messages, and, of a table, its columns.
struct Target {
    owned: Owned,
    name: String,
    columns: BTreeMap<String, u32>,
}

impl Exec<'_> {
    // ---- the objects

    async fn grant_targets(&mut self, target: &GrantTarget) -> Result<Vec<Target>> {
        let mut targets = Vec::new();
        match target {
            GrantTarget::Tables(names) => {
                for name in names {
                    targets.push(self.grant_relation(name, false).await?);
                }
            }
            GrantTarget::Sequences(names) => {
                for name in names {
                    targets.push(self.grant_relation(name, true).await?);
                }
            }
            GrantTarget::AllTables(schemas) | GrantTarget::AllSequences(schemas) => {
                let reader = self.txn.reader().await?;
                let database = self.identity().database;
                for name in schemas {
                    self.schema_named(name)?;
                }
                let is_in = |of: u32, schema: &String| of == database && schemas.contains(schema);
                let catalog = self.engine.catalog();
                if let GrantTarget::AllTables(_) = target {
                    let tables = catalog.tables(&reader).await?;
                    let tables = tables.iter().filter(|t| is_in(t.database, &t.schema));
                    targets.extend(tables.map(|table| of_table(table)));
                } else {
                    let sequences = catalog.sequences(&reader).await?;
                    let sequences = sequences.iter().filter(|s| is_in(s.database, &s.schema));
                    targets.extend(sequences.map(|sequence| Target {
                        owned: Owned::sequence(sequence),
                        name: sequence.name.clone(),
                        columns: BTreeMap::new(),
                    }));
                }
            }
            GrantTarget::Schemas(names) => {
                for name in names {
                    let schema = self.schema_named(name)?;
                    let owned = Owned::schema(&schema);
                    targets.push(Target { owned, name: name.clone(), columns: BTreeMap::new() });
                }
            }
            GrantTarget::Databases(names) => {
                for name in names {
                    let known = self.identity().authority.database(name).cloned();
                    let database = known.ok_or_else(|| super::databases::no_database(name))?;
                    let owned = Owned::database(&database);
                    targets.push(Target { owned, name: name.clone(), columns: BTreeMap::new() });
                }
            }
        }
        Ok(targets)
    }

    async fn grant_relation(
        &mut self,
        name: &ast::ObjectName,
        is_sequence: bool,
    ) -> Result<Target> {
        let (schema, short) = parse::qualified(name)?;
        if schema.as_deref().is_some_and(|schema| VIRTUAL_SCHEMAS.contains(&schema)) {
            return Err(Error::unsupported("privileges on a system catalog"));
        }
        let Some((schema, short, entry)) = self.lock_existing(name).await? else {
            return Err(undefined_table(schema.as_deref(), &short));
        };
        let gone = || undefined_table(Some(&schema), &short);
        match entry.kind {
            Kind::Table if is_sequence => {
                Err(Error::new(state::WRONG_OBJECT_TYPE, format!("\"{short}\" is not a sequence")))
            }
            Kind::Table => {
                let table = Catalog::lock_table(self.txn, entry.id).await?.ok_or_else(gone)?;
                Ok(of_table(&table))
            }
            Kind::Sequence => {
                let locked = Catalog::lock_sequence(self.txn, entry.id).await?;
                let sequence = locked.ok_or_else(gone)?;
                let owned = Owned::sequence(&sequence);
                Ok(Target { owned, name: short, columns: BTreeMap::new() })
            }
            Kind::Index => {
                let message = format!("\"{short}\" is an index");
                Err(Error::new(state::WRONG_OBJECT_TYPE, message))
            }
        }
    }

    pub(super) fn schema_named(&self, name: &str) -> Result<std::sync::Arc<Schema>> {
        if VIRTUAL_SCHEMAS.contains(&name) {
            return Err(Error::unsupported(format!("privileges on the schema {name}")));
        }
        let identity = self.identity();
        identity.authority.schema(identity.database, name).cloned().ok_or_else(|| {
            Error::new(state::NO_SUCH_SCHEMA, format!("schema \"{name}\" does not exist"))
        })
    }

    // ---- GRANT and REVOKE

    /// The warnings to send.
    pub async fn grant_objects(&mut self, grant: &GrantObjects) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let mut grantees = Vec::new();
        for spec in &grant.grantees {
            grantees.push(self.grantee_of(spec)?);
        }
        if let Some(by) = &grant.granted_by
            && self.role_of(by)? != self.identity().role
        {
            return Err(Error::unsupported("grantor must be current user"));
        }
        if grant.option && grant.is_grant && grantees.contains(&RoleId::PUBLIC) {
            return Err(Error::new(
                state::INVALID_GRANT_OPERATION,
                "grant options can only be granted to roles",
            ));
        }
        Catalog::change_authority(self.txn, self.overlay).await?;
        for target in self.grant_targets(&grant.target).await? {
            let Target { owned, name, columns } = target;
            let mut list = Catalog::lock_acl(self.txn, owned.class, owned.id).await?;
            let whole = grant.privileges.iter().filter(|(_, columns)| columns.is_empty());
            let all = owned.class.privileges();
            let wanted =
                whole.fold(Privileges::NONE, |sum, (one, _)| sum.union(one.unwrap_or(all)));
            check_kind(wanted, owned.class)?;
            if !wanted.is_empty()
                && let Some((grantor, given)) =
                    self.may_grant(owned, None, &name, wanted, grant, &mut warnings)?
            {
                let acl = list.acl.get_or_insert_with(|| owned.class.default_acl(owned.owner));
                change(acl, &grantees, grantor, given, grant)?;
                // What is taken from the table is taken from its columns.
                if !grant.is_grant {
                    for acl in list.columns.values_mut() {
                        change(acl, &grantees, grantor, given, grant)?;
                    }
                }
            }
            let of_columns = grant.privileges.iter().filter(|(_, columns)| !columns.is_empty());
            for (wanted, of_columns) in of_columns {
                if owned.class != Class::Table {
                    return Err(Error::new(
                        state::INVALID_GRANT_OPERATION,
                        "column privileges are only valid for relations",
                    ));
                }
                let wanted = wanted.unwrap_or(Class::Column.privileges());
                check_kind(wanted, Class::Column)?;
                for column in of_columns {
                    let id = *columns.get(column).ok_or_else(|| {
                        let message =
                            format!("column \"{column}\" of relation \"{name}\" does not exist");
                        Error::new(state::UNDEFINED_COLUMN, message)
                    })?;
                    let may =
                        self.may_grant(owned, Some(id), &name, wanted, grant, &mut warnings)?;
                    let Some((grantor, given)) = may else { continue };
                    let acl = list.columns.entry(id).or_default();
                    change(acl, &grantees, grantor, given, grant)?;
                }
            }
            list.columns.retain(|_, acl| !acl.0.is_empty());
            self.put_acl(&list)?;
        }
        Ok(warnings)
    }

    /// In whose name, and which of the privileges. Who may give none of them is refused if he holds none of them, and
    /// warned otherwise.
    fn may_grant(
        &self,
        owned: Owned,
        column: Option<u32>,
        name: &str,
        wanted: Privileges,
        grant: &GrantObjects,
        warnings: &mut Vec<String>,
    ) -> Result<Option<(RoleId, Privileges)>> {
        let identity = self.identity();
        let (grantor, may) = identity.grantable(owned, column);
        let given = may.common(wanted);
        if given == wanted {
            return Ok(Some((grantor, given)));
        }
        let word = if grant.is_grant { "granted" } else { "revoked" };
        if given.is_empty() {
            if identity.privileges(owned).common(owned.class.privileges()).is_empty() {
                return Err(crate::authority::denied(owned.class.word(), name));
            }
            let not = if grant.is_grant {
                "no privileges were granted"
            } else {
                "no privileges could be revoked"
            };
            warnings.push(format!("{not} for \"{name}\""));
            return Ok(None);
        }
        // ALL means all that one may give.
        if grant.privileges.iter().any(|(privilege, _)| privilege.is_some()) {
            warnings.push(format!("not all privileges were {word} for \"{name}\""));
        }
        Ok(Some((grantor, given)))
    }

    fn put_acl(&mut self, list: &ObjectAcl) -> Result<()> {
        let key = rows::acl_key(list.class, list.id);
        if list.is_default() {
            self.txn.delete(key)?;
        } else {
            self.txn.put(key, rows::encode(list)?)?;
        }
        Ok(())
    }

    /// An object is gone, and its list with it.
    pub async fn drop_acl(&mut self, class: Class, id: u32) -> Result<()> {
        if self.identity().authority.list(class, id).is_some() {
            Catalog::change_authority(self.txn, self.overlay).await?;
            Catalog::lock_acl(self.txn, class, id).await?;
            self.txn.delete(rows::acl_key(class, id))?;
        }
        self.drop_comments(class.catalog_oid(), id).await
    }

    /// Gives a new object the list that its maker's default privileges say.
    pub async fn new_acl(&mut self, owned: Owned, schema: &str) -> Result<()> {
        let identity = self.identity();
        let schema = identity.authority.schema(identity.database, schema).map_or(0, |s| s.id);
        let default =
            identity.authority.default_acl(identity.database, owned.owner, schema, owned.class);
        let Some(acl) = default else { return Ok(()) };
        Catalog::change_authority(self.txn, self.overlay).await?;
        let mut list = Catalog::lock_acl(self.txn, owned.class, owned.id).await?;
        list.acl = Some(acl);
        self.put_acl(&list)
    }

    // ---- default privileges

    pub async fn alter_defaults(&mut self, alter: &AlterDefaults) -> Result<()> {
        let mut roles = Vec::new();
        for spec in &alter.roles {
            roles.push(self.role_of(spec)?);
        }
        if roles.is_empty() {
            roles.push(self.identity().role);
        }
        let mut grantees = Vec::new();
        for spec in &alter.grantees {
            grantees.push(self.grantee_of(spec)?);
        }
        for role in &roles {
            if !self.identity().may_become(*role) {
                let name = self.identity().authority.roles.name(*role);
                return Err(refused(format!("must be member of role \"{name}\"")));
            }
        }
        let mut schemas = Vec::new();
        for name in &alter.schemas {
            schemas.push(Some(self.schema_named(name)?.id));
        }
        if schemas.is_empty() {
            schemas.push(None);
        } else if alter.class == Class::Schema {
            return Err(Error::new(
                state::INVALID_GRANT_OPERATION,
                "cannot use IN SCHEMA clause when using GRANT/REVOKE ON SCHEMAS",
            ));
        }
        let mut wanted = Privileges::NONE;
        for privilege in &alter.privileges {
            let privilege = privilege.unwrap_or(alter.class.privileges());
            check_kind(privilege, alter.class)?;
            wanted = wanted.union(privilege);
        }
        Catalog::change_authority(self.txn, self.overlay).await?;
        let (database, class) = (self.identity().database, alter.class);
        for role in roles {
            for schema in &schemas {
                let key = rows::default_acl_key(database, role, schema.unwrap_or(0), class);
                let stored = self.identity().authority.defaults.iter().find(|default| {
                    default.database == database
                        && default.role == role
                        && default.schema == *schema
                        && default.class == class
                });
                let empty = || match schema {
                    Some(_) => Acl::default(),
                    None => class.default_acl(role),
                };
                let mut acl = stored.map_or_else(empty, |default| default.acl.clone());
                for grantee in &grantees {
                    if alter.is_grant {
                        acl.grant(*grantee, role, wanted, alter.option);
                    } else {
                        let revoked = acl.revoke(*grantee, role, wanted, alter.option, true);
                        revoked.map_err(|_| dependent())?;
                    }
                }
                self.txn
                    .lock(std::slice::from_ref(&key), txn::LockMode::Exclusive, txn::Wait::Block)
                    .await?;
                if acl == empty() {
                    self.txn.delete(key)?;
                } else {
                    let default = DefaultAcl { database, role, schema: *schema, class, acl };
                    self.txn.put(key, rows::encode(&default)?)?;
                }
            }
        }
        Ok(())
    }

    // ---- owners

    /// Who may give an object to `owner`: its owner, who is a member of the new one, which may create there.
    pub fn require_new_owner(
        &self,
        object: Owned,
        name: &str,
        owner: RoleId,
        schema: Option<&str>,
    ) -> Result<()> {
        let identity = self.identity();
        identity.require_owner(object, name)?;
        if identity.is_superuser {
            return Ok(());
        }
        if !identity.may_become(owner) {
            let role = identity.authority.roles.name(owner);
            return Err(refused(format!("must be member of role \"{role}\"")));
        }
        let next =
            crate::authority::Identity::new(identity.authority.clone(), owner, identity.database);
        match schema {
            Some(schema) => next.require_schema(schema, Privileges::CREATE),
            None => Ok(()),
        }
    }

    /// The list of an object follows its owner.
    pub async fn owner_changed(&mut self, object: Owned, to: RoleId) -> Result<()> {
        Catalog::change_authority(self.txn, self.overlay).await?;
        let mut list = Catalog::lock_acl(self.txn, object.class, object.id).await?;
        if list.is_default() {
            return Ok(());
        }
        let lists = list.acl.iter_mut().chain(list.columns.values_mut());
        lists.for_each(|acl| acl.change_owner(object.owner, to));
        self.put_acl(&list)
    }

    pub async fn schema_owner(&mut self, name: &str, owner: &RoleSpec) -> Result<()> {
        let to = self.role_of(owner)?;
        let schema = self.schema_named(name)?;
        self.require_new_owner(Owned::schema(&schema), name, to, None)?;
        if !self.identity().is_superuser {
            self.require_create_in_database()?;
        }
        self.give_schema(&schema, to).await
    }

    async fn give_schema(&mut self, schema: &Schema, to: RoleId) -> Result<()> {
        self.owner_changed(Owned::schema(schema), to).await?;
        let place = Place { database: schema.database, schema: &schema.name };
        let Some(mut row) = Catalog::lock_schema(self.txn, place).await? else { return Ok(()) };
        row.owner = to;
        self.txn.put(rows::schema_key(place), rows::encode(&row)?)?;
        Ok(())
    }

    async fn give_table(&mut self, mut table: Table, to: RoleId) -> Result<()> {
        self.owner_changed(Owned::table(&table), to).await?;
        // Its own sequences go with it.
        let owned = table.columns.iter().filter_map(|c| c.default.as_ref()?.owned_sequence);
        for id in owned.collect::<Vec<_>>() {
            self.give_sequence(id, to).await?;
        }
        let before = super::ranges_of(&table);
        self.txn.use_table(table.id, table.version, &before);
        table.owner = to;
        self.redefine(table, &before).await?;
        Ok(())
    }

    /// ALTER TABLE … OWNER TO.
    pub async fn table_owner(&mut self, table: Table, owner: &ast::Owner) -> Result<()> {
        let spec = match owner {
            ast::Owner::Ident(name) => RoleSpec::Named(parse::ident(name)),
            ast::Owner::CurrentRole | ast::Owner::CurrentUser => RoleSpec::CurrentUser,
            ast::Owner::SessionUser => RoleSpec::SessionUser,
        };
        let to = self.role_of(&spec)?;
        let schema = table.schema.clone();
        self.require_new_owner(Owned::table(&table), &table.name, to, Some(&schema))?;
        self.give_table(table, to).await
    }

    pub async fn give_sequence(&mut self, id: u32, to: RoleId) -> Result<()> {
        let Some(mut sequence) = Catalog::lock_sequence(self.txn, id).await? else { return Ok(()) };
        self.owner_changed(Owned::sequence(&sequence), to).await?;
        sequence.owner = to;
        Catalog::put_sequence(self.txn, self.overlay, sequence)
    }

    /// What keeps a role from being dropped, a line each.
    pub(super) async fn dependents(&mut self, role: RoleId) -> Result<Vec<String>> {
        let reader = self.txn.reader().await?;
        let catalog = self.engine.catalog();
        let tables = catalog.tables(&reader).await?;
        let sequences = catalog.sequences(&reader).await?;
        let identity = self.identity();
        let authority = &identity.authority;
        let mut lines = Vec::new();
        let own = |database: u32, line: String| match database == identity.database {
            true => line,
            false => {
                let name = authority.databases.iter().find(|known| known.id == database);
                format!("1 object in database {}", name.map_or("", |known| known.name.as_str()))
            }
        };
        for database in authority.databases.iter().filter(|database| database.owner == role) {
            lines.push(format!("owner of database {}", database.name));
        }
        for schema in authority.schemas.iter().filter(|schema| schema.owner == role) {
            lines.push(own(schema.database, format!("owner of schema {}", schema.name)));
        }
        let shown = |schema: &str, name: &str| match schema {
            crate::catalog::PUBLIC => name.to_owned(),
            schema => format!("{schema}.{name}"),
        };
        let mut known: BTreeMap<(Class, u32), (u32, String)> = BTreeMap::new();
        for table in &tables {
            let name = shown(&table.schema, &table.name);
            if table.owner == role {
                lines.push(own(table.database, format!("owner of table {name}")));
            }
            known.insert((Class::Table, table.id), (table.database, name));
        }
        for sequence in &sequences {
            let name = shown(&sequence.schema, &sequence.name);
            if sequence.owner == role {
                lines.push(own(sequence.database, format!("owner of sequence {name}")));
            }
            known.insert((Class::Sequence, sequence.id), (sequence.database, name));
        }
        for schema in &authority.schemas {
            known.insert((Class::Schema, schema.id), (schema.database, schema.name.clone()));
        }
        for database in &authority.databases {
            let name = database.name.clone();
            known.insert((Class::Database, database.id), (identity.database, name));
        }
        for list in authority.lists() {
            let mut acls = list.acl.iter().chain(list.columns.values());
            if acls.any(|acl| acl.names(role))
                && let Some((database, name)) = known.get(&(list.class, list.id))
            {
                lines.push(own(*database, format!("privileges for {} {name}", list.class.word())));
            }
        }
        for default in &authority.defaults {
            if default.role == role || default.acl.names(role) {
                let of = authority.roles.name(default.role);
                let line = format!("default privileges on new objects belonging to role {of}");
                lines.push(own(default.database, line));
            }
        }
        lines.sort();
        lines.dedup();
        Ok(lines)
    }

    pub async fn reassign_owned(&mut self, roles: &[RoleSpec], to: &RoleSpec) -> Result<()> {
        let roles = self.own_roles(roles)?;
        let to = self.role_of(to)?;
        if !self.identity().may_become(to) {
            return Err(refused("permission denied to reassign objects"));
        }
        Catalog::change_authority(self.txn, self.overlay).await?;
        let reader = self.txn.reader().await?;
        let (tables, sequences) = (
            self.engine.catalog().tables(&reader).await?,
            self.engine.catalog().sequences(&reader).await?,
        );
        let database = self.identity().database;
        for table in tables.iter().filter(|t| t.database == database && roles.contains(&t.owner)) {
            if let Some(table) = Catalog::lock_table(self.txn, table.id).await? {
                self.give_table(table, to).await?;
            }
        }
        for sequence in
            sequences.iter().filter(|s| s.database == database && roles.contains(&s.owner))
        {
            self.give_sequence(sequence.id, to).await?;
        }
        let authority = self.identity().authority.clone();
        for schema in
            authority.schemas.iter().filter(|s| s.database == database && roles.contains(&s.owner))
        {
            self.give_schema(schema, to).await?;
        }
        for known in authority.databases.iter().filter(|known| roles.contains(&known.owner)) {
            self.give_database(&known.name, to).await?;
        }
        Ok(())
    }

    fn own_roles(&self, specs: &[RoleSpec]) -> Result<Vec<RoleId>> {
        let mut roles = Vec::new();
        for spec in specs {
            let role = self.role_of(spec)?;
            if !self.identity().may_become(role) {
                return Err(refused("permission denied to drop objects"));
            }
            if role == RoleId::FIRST {
                return Err(Error::new(
                    state::DEPENDENT_OBJECTS,
                    "cannot drop or reassign objects that are required by the database system",
                ));
            }
            roles.push(role);
        }
        Ok(roles)
    }

    /// Drops what the roles own in this database, and takes their privileges there.
    pub async fn drop_owned(&mut self, roles: &[RoleSpec], cascade: bool) -> Result<()> {
        let roles = self.own_roles(roles)?;
        Catalog::change_authority(self.txn, self.overlay).await?;
        let reader = self.txn.reader().await?;
        let (tables, sequences) = (
            self.engine.catalog().tables(&reader).await?,
            self.engine.catalog().sequences(&reader).await?,
        );
        let database = self.identity().database;
        for table in tables.iter().filter(|t| t.database == database && roles.contains(&t.owner)) {
            if let Some(table) = Catalog::lock_table(self.txn, table.id).await? {
                self.drop_table(table).await?;
            }
        }
        for sequence in
            sequences.iter().filter(|s| s.database == database && roles.contains(&s.owner))
        {
            self.drop_sequence_by_id(sequence.id).await?;
        }
        let authority = self.identity().authority.clone();
        for schema in
            authority.schemas.iter().filter(|s| s.database == database && roles.contains(&s.owner))
        {
            self.drop_schema(&schema.name, cascade).await?;
        }
        for known in authority.lists() {
            let mut list = Catalog::lock_acl(self.txn, known.class, known.id).await?;
            let lists = list.acl.iter_mut().chain(list.columns.values_mut());
            for acl in lists {
                acl.0.retain(|grant| !roles.contains(&grant.grantee));
            }
            list.columns.retain(|_, acl| !acl.0.is_empty());
            self.put_acl(&list)?;
        }
        for default in authority.defaults.iter().filter(|default| default.database == database) {
            let key = rows::default_acl_key(
                database,
                default.role,
                default.schema.unwrap_or(0),
                default.class,
            );
            let mut next = default.clone();
            next.acl.0.retain(|grant| !roles.contains(&grant.grantee));
            self.txn
                .lock(std::slice::from_ref(&key), txn::LockMode::Exclusive, txn::Wait::Block)
                .await?;
            if roles.contains(&default.role) || next.acl.0.is_empty() {
                self.txn.delete(key)?;
            } else {
                self.txn.put(key, rows::encode(&next)?)?;
            }
        }
        Ok(())
    }
}

fn of_table(table: &Table) -> Target {
    let columns = table.columns.iter().map(|column| (column.name.clone(), column.id)).collect();
    Target { owned: Owned::table(table), name: table.name.clone(), columns }
}

fn check_kind(wanted: Privileges, class: Class) -> Result<()> {
    let odd = wanted.without(class.privileges());
    match odd.names().next() {
        None => Ok(()),
        Some(name) => {
            let message = format!("invalid privilege type {name} for {}", kind(class));
            Err(Error::new(state::INVALID_GRANT_OPERATION, message))
        }
    }
}

fn kind(class: Class) -> &'static str {
    match class {
        Class::Table => "relation",
        other => other.word(),
    }
}

fn change(
    acl: &mut Acl,
    grantees: &[RoleId],
    grantor: RoleId,
    given: Privileges,
    grant: &GrantObjects,
) -> Result<()> {
    for grantee in grantees {
        if grant.is_grant {
            acl.grant(*grantee, grantor, given, grant.option);
        } else {
            let revoked = acl.revoke(*grantee, grantor, given, grant.option, grant.cascade);
            revoked.map_err(|_| dependent())?;
        }
    }
    Ok(())
}

fn dependent() -> Error {
    Error::new(state::DEPENDENT_OBJECTS, "dependent privileges exist")
        .hint("Use CASCADE to revoke them too.")
}
