//! Sequences, schemas, and dropping things.

use super::roles::refused;
use crate::authority::{Class, Owned};
use crate::catalog::{Catalog, Kind, Name, PUBLIC, Schema, Sequence, VIRTUAL_SCHEMAS, rows};
use crate::error::{Error, Result, state};
use crate::parse::{self, DropKind, RoleSpec, SequenceOptions};
use crate::plan::undefined_table;
use crate::run::Exec;
use crate::types::Type;
use sqlparser::ast;

impl Exec<'_> {
    // ---- sequences

    pub async fn create_sequence(
        &mut self,
        name: &ast::ObjectName,
        if_not_exists: bool,
        options: &SequenceOptions,
    ) -> Result<Option<String>> {
        let (schema, short) = self.new_name(name)?;
        let place = self.view.place(&schema);
        if if_not_exists && Catalog::lock_name(self.txn, place, &short).await?.is_some() {
            return Ok(Some(format!("relation \"{short}\" already exists, skipping")));
        }
        let owner = self.owner_of(options).await?.flatten();
        self.make_sequence(&schema, &short, options, owner).await?;
        Ok(None)
    }

    /// The id of a fresh sequence.
    pub async fn make_sequence(
        &mut self,
        schema: &str,
        name: &str,
        options: &SequenceOptions,
        owned_by: Option<(u32, u32)>,
    ) -> Result<u32> {
        let id = self.engine.catalog().allocate(1).await?;
        let mut sequence = Sequence {
            id,
            database: self.identity().database,
            schema: schema.to_owned(),
            name: name.to_owned(),
            owner: self.identity().role,
            ty: Type::Int8,
            start: 0,
            increment: 1,
            min: 0,
            max: 0,
            cycle: false,
            cache: 1,
            owned_by,
            last: 0,
            is_called: false,
        };
        apply(&mut sequence, options, true)?;
        self.claim(schema, name, Name { kind: Kind::Sequence, id, table: 0 }).await?;
        Catalog::lock_sequence(self.txn, id).await?;
        let owned = Owned::sequence(&sequence);
        Catalog::put_sequence(self.txn, self.overlay, sequence)?;
        self.new_acl(owned, schema).await?;
        Ok(id)
    }

    pub async fn alter_sequence(
        &mut self,
        name: &ast::ObjectName,
        if_exists: bool,
        options: &SequenceOptions,
    ) -> Result<Option<String>> {
        let (schema, short) = parse::qualified(name)?;
        let Some((schema, short, entry)) = self.lock_existing(name).await? else {
            return if if_exists {
                Ok(Some(format!("relation \"{short}\" does not exist, skipping")))
            } else {
                Err(undefined_table(schema.as_deref(), &short))
            };
        };
        if entry.kind != Kind::Sequence {
            return Err(Error::new(
                state::WRONG_OBJECT_TYPE,
                format!("\"{short}\" is not a sequence"),
            ));
        }
        let Some(mut sequence) = Catalog::lock_sequence(self.txn, entry.id).await? else {
            return Err(undefined_table(Some(&schema), &short));
        };
        self.identity().require_owner(Owned::sequence(&sequence), &short)?;
        apply(&mut sequence, options, false)?;
        if let Some(owner) = &options.owner {
            let to = self.role_of(owner)?;
            self.require_new_owner(Owned::sequence(&sequence), &short, to, Some(&schema))?;
            if sequence.owned_by.is_some() {
                let message = format!("cannot change owner of sequence \"{short}\"");
                return Err(Error::unsupported(message).detail("It belongs to a table's column."));
            }
            self.owner_changed(Owned::sequence(&sequence), to).await?;
            sequence.owner = to;
        }
        if let Some(owner) = self.owner_of(options).await? {
            sequence.owned_by = owner;
        }
        if let Some(new) = &options.rename {
            self.claim(&schema, new, entry).await?;
            self.release(sequence.place(), &short).await?;
            sequence.name.clone_from(new);
        }
        Catalog::put_sequence(self.txn, self.overlay, sequence)?;
        Ok(None)
    }

    /// OWNED BY's table and column; `Some(None)` is nobody.
    #[allow(clippy::option_option)]
    async fn owner_of(&mut self, options: &SequenceOptions) -> Result<Option<Option<(u32, u32)>>> {
        let Some(owner) = &options.owned_by else { return Ok(None) };
        let Some((parts, column)) = owner else { return Ok(Some(None)) };
        let (schema, name) = match &parts[..] {
            [name] => (None, name.as_str()),
            [.., schema, name] => (Some(schema.as_str()), name.as_str()),
            [] => return Err(Error::new(state::SYNTAX_ERROR, "invalid OWNED BY option")),
        };
        let found = crate::plan::find(self.engine, self.overlay, self.view, schema, name).await?;
        let Some(crate::catalog::Object::Table(table)) = found else {
            return Err(undefined_table(schema, name));
        };
        self.identity().require_owner(Owned::table(&table), &table.name)?;
        let idx = crate::plan::change::column_idx(&table, column)?;
        Ok(Some(Some((table.id, table.columns[idx].id))))
    }

    pub async fn drop_sequence_by_id(&mut self, id: u32) -> Result<()> {
        let Some(sequence) = Catalog::lock_sequence(self.txn, id).await? else { return Ok(()) };
        self.release(sequence.place(), &sequence.name).await?;
        self.drop_acl(Class::Sequence, id).await?;
        self.txn.delete(rows::sequence_key(id))?;
        self.engine.sequences().forget(id);
        Ok(())
    }

    pub async fn restart_sequence(&mut self, id: u32) -> Result<()> {
        let Some(mut sequence) = Catalog::lock_sequence(self.txn, id).await? else { return Ok(()) };
        sequence.last = sequence.start;
        sequence.is_called = false;
        Catalog::put_sequence(self.txn, self.overlay, sequence)
    }

    // ---- dropping

    /// The notices to send.
    pub async fn drop_objects(
        &mut self,
        kind: DropKind,
        names: &[ast::ObjectName],
        if_exists: bool,
        cascade: bool,
    ) -> Result<Vec<String>> {
        let mut notices = Vec::new();
        for name in names {
            let (schema, short) = parse::qualified(name)?;
            let word = match kind {
                DropKind::Table => "table",
                DropKind::Index => "index",
                DropKind::Sequence => "sequence",
                DropKind::Schema => "schema",
                DropKind::View => "view",
            };
            let missing = || {
                if if_exists {
                    Ok(format!("{word} \"{short}\" does not exist, skipping"))
                } else {
                    Err(Error::new(
                        match kind {
                            DropKind::Schema => state::NO_SUCH_SCHEMA,
                            DropKind::Index => state::UNDEFINED_OBJECT,
                            _ => state::UNDEFINED_TABLE,
                        },
                        format!("{word} \"{short}\" does not exist"),
                    ))
                }
            };
            match kind {
                DropKind::Table => match self.lock_table(name).await? {
                    Some(table) => {
                        let (owned, schema) = (Owned::table(&table), table.schema.clone());
                        self.require_owner_or_schema(owned, &schema, &table.name)?;
                        self.drop_table(table).await?;
                    }
                    None => notices.push(missing()?),
                },
                DropKind::Index => notices.extend(self.drop_index(name, if_exists).await?),
                DropKind::Sequence => match self.lock_existing(name).await? {
                    Some((schema, _, entry)) if entry.kind == Kind::Sequence => {
                        if let Some(row) = Catalog::lock_sequence(self.txn, entry.id).await? {
                            let owned = Owned::sequence(&row);
                            self.require_owner_or_schema(owned, &schema, &short)?;
                        }
                        self.refuse_owned(entry.id, cascade).await?;
                        self.drop_sequence_by_id(entry.id).await?;
                    }
                    Some(_) => {
                        return Err(Error::new(
                            state::WRONG_OBJECT_TYPE,
                            format!("\"{short}\" is not a sequence"),
                        ));
                    }
                    None => notices.push(missing()?),
                },
                DropKind::View => notices.push(missing()?),
                DropKind::Schema => {
                    let known = PUBLIC == short || VIRTUAL_SCHEMAS.contains(&short.as_str());
                    if known || schema.is_some() {
                        return Err(Error::unsupported(format!("dropping the schema \"{short}\"")));
                    }
                    let place = self.view.place(&short);
                    match Catalog::lock_schema(self.txn, place).await? {
                        None => notices.push(missing()?),
                        Some(schema) => {
                            self.identity().require_owner(Owned::schema(&schema), &short)?;
                            Catalog::change_authority(self.txn, self.overlay).await?;
                            self.drop_schema(&short, cascade).await?;
                        }
                    }
                }
            }
        }
        Ok(notices)
    }

    async fn refuse_owned(&mut self, id: u32, cascade: bool) -> Result<()> {
        let Some(sequence) = Catalog::lock_sequence(self.txn, id).await? else { return Ok(()) };
        let Some((table, column)) = sequence.owned_by else { return Ok(()) };
        let Some(mut table) = Catalog::lock_table(self.txn, table).await? else { return Ok(()) };
        let Some(idx) = table.idx_of_id(column) else { return Ok(()) };
        let uses = |column: &crate::catalog::Column| {
            column.default.as_ref().and_then(|default| default.owned_sequence) == Some(id)
        };
        if !uses(&table.columns[idx]) {
            return Ok(());
        }
        if !cascade {
            return Err(Error::new(
                "2BP01",
                format!(
                    "cannot drop sequence {} because other objects depend on it",
                    sequence.name
                ),
            )
            .detail(format!(
                "default value for column {} of table {} depends on sequence {}",
                table.columns[idx].name, table.name, sequence.name
            ))
            .hint("Use DROP ... CASCADE to drop the dependent objects too."));
        }
        let before = super::ranges_of(&table);
        self.txn.use_table(table.id, table.version, &before);
        table.columns[idx].default = None;
        table.columns[idx].identity = None;
        self.redefine(table, &before).await?;
        Ok(())
    }

    pub(super) async fn drop_schema(&mut self, name: &str, cascade: bool) -> Result<()> {
        let reader = self.txn.reader().await?;
        let catalog = self.engine.catalog();
        let tables = catalog.tables(&reader).await?;
        let sequences = catalog.sequences(&reader).await?;
        let place = self.view.place(name);
        let tables: Vec<_> = tables.into_iter().filter(|table| table.place() == place).collect();
        let sequences: Vec<_> =
            sequences.into_iter().filter(|sequence| sequence.place() == place).collect();
        if !cascade && (!tables.is_empty() || !sequences.is_empty()) {
            return Err(Error::new(
                "2BP01",
                format!("cannot drop schema {name} because other objects depend on it"),
            )
            .hint("Use DROP ... CASCADE to drop the dependent objects too."));
        }
        for table in tables {
            if let Some(table) = Catalog::lock_table(self.txn, table.id).await? {
                self.drop_table(table).await?;
            }
        }
        for sequence in sequences {
            self.drop_sequence_by_id(sequence.id).await?;
        }
        let Some(schema) = Catalog::lock_schema(self.txn, place).await? else { return Ok(()) };
        self.forget_schema(schema.id, place).await
    }

    // ---- schemas

    /// The notice to send.
    pub async fn create_schema(
        &mut self,
        name: Option<&str>,
        owner: Option<&RoleSpec>,
        if_not_exists: bool,
    ) -> Result<Option<String>> {
        let owner = match owner {
            Some(owner) => self.role_of(owner)?,
            None => self.identity().role,
        };
        let of_owner = self.identity().authority.roles.name(owner);
        let name = name.unwrap_or(&of_owner);
        self.require_create_in_database()?;
        if !self.identity().may_become(owner) {
            return Err(refused(format!("must be member of role \"{of_owner}\"")));
        }
        if name.starts_with("pg_") && !VIRTUAL_SCHEMAS.contains(&name) {
            return Err(Error::new(
                state::RESERVED_NAME,
                format!("unacceptable schema name \"{name}\""),
            )
            .detail("The prefix \"pg_\" is reserved for system schemas."));
        }
        Catalog::change_authority(self.txn, self.overlay).await?;
        let place = self.view.place(name);
        let taken = VIRTUAL_SCHEMAS.contains(&name)
            || Catalog::lock_schema(self.txn, place).await?.is_some();
        if taken {
            return if if_not_exists {
                Ok(Some(format!("schema \"{name}\" already exists, skipping")))
            } else {
                Err(schema_exists(name))
            };
        }
        let id = self.engine.catalog().allocate(1).await?;
        let schema = Schema { id, database: place.database, name: name.to_owned(), owner };
        self.txn.put(rows::schema_key(place), rows::encode(&schema)?)?;
        self.new_acl(Owned::schema(&schema), name).await?;
        Ok(None)
    }

    /// Every object in it is keyed by its name, and moves.
    pub async fn rename_schema(&mut self, name: &str, to: &str) -> Result<()> {
        let schema = self.schema_named(name)?;
        self.identity().require_owner(Owned::schema(&schema), name)?;
        self.require_create_in_database()?;
        if name == PUBLIC || VIRTUAL_SCHEMAS.contains(&to) {
            return Err(Error::unsupported(format!("renaming the schema \"{name}\" to \"{to}\"")));
        }
        let reader = self.txn.reader().await?;
        let catalog = self.engine.catalog();
        let (tables, sequences) =
            (catalog.tables(&reader).await?, catalog.sequences(&reader).await?);
        let place = self.view.place(name);
        let is_used = tables.iter().any(|table| table.place() == place)
            || sequences.iter().any(|sequence| sequence.place() == place);
        if is_used {
            return Err(Error::unsupported("renaming a schema that is not empty"));
        }
        Catalog::change_authority(self.txn, self.overlay).await?;
        if Catalog::lock_schema(self.txn, self.view.place(to)).await?.is_some() {
            return Err(schema_exists(to));
        }
        let Some(mut row) = Catalog::lock_schema(self.txn, place).await? else { return Ok(()) };
        self.txn.delete(rows::schema_key(place))?;
        row.name = to.to_owned();
        self.txn.put(rows::schema_key(self.view.place(to)), rows::encode(&row)?)?;
        Ok(())
    }
}

fn schema_exists(name: &str) -> Error {
    Error::new(state::DUPLICATE_SCHEMA, format!("schema \"{name}\" already exists"))
}

/// Changes a sequence as its options say, and checks the outcome.
fn apply(sequence: &mut Sequence, options: &SequenceOptions, is_new: bool) -> Result<()> {
    let bad = |message: String| Error::new(state::INVALID_PARAMETER, message);
    if let Some(ty) = &options.ty {
        if !ty.is_integer() || *ty == Type::Oid {
            return Err(bad("sequence type must be smallint, integer, or bigint".into()));
        }
        sequence.ty = ty.clone();
    }
    if let Some(increment) = options.increment {
        if increment == 0 {
            return Err(bad("INCREMENT must not be zero".into()));
        }
        sequence.increment = increment;
    }
    let (type_min, type_max) = match sequence.ty {
        Type::Int2 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        Type::Int4 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    let up = sequence.increment > 0;
    if is_new || options.min.is_some() {
        let default = if up { 1 } else { type_min };
        sequence.min = options.min.flatten().unwrap_or(default);
    }
    if is_new || options.max.is_some() || options.ty.is_some() {
        let default = if up { type_max } else { -1 };
        sequence.max = options.max.flatten().unwrap_or(default);
    }
    if sequence.min < type_min || sequence.max > type_max {
        return Err(bad(format!(
            "MINVALUE or MAXVALUE is out of range for sequence data type {}",
            sequence.ty.base_name()
        )));
    }
    if sequence.min >= sequence.max {
        return Err(bad(format!(
            "MINVALUE ({}) must be less than MAXVALUE ({})",
            sequence.min, sequence.max
        )));
    }
    if is_new || options.start.is_some() {
        let default = if up { sequence.min } else { sequence.max };
        sequence.start = options.start.unwrap_or(default);
    }
    if !(sequence.min..=sequence.max).contains(&sequence.start) {
        return Err(bad(format!(
            "START value ({}) must lie between MINVALUE ({}) and MAXVALUE ({})",
            sequence.start, sequence.min, sequence.max
        )));
    }
    if let Some(cache) = options.cache {
        if cache < 1 {
            return Err(bad(format!("CACHE ({cache}) must be greater than zero")));
        }
        sequence.cache = cache;
    }
    if let Some(cycle) = options.cycle {
        sequence.cycle = cycle;
    }
    if is_new {
        sequence.last = sequence.start;
        sequence.is_called = false;
    }
    if let Some(restart) = options.restart {
        sequence.last = restart.unwrap_or(sequence.start);
        sequence.is_called = false;
        if !(sequence.min..=sequence.max).contains(&sequence.last) {
            return Err(bad(format!(
                "RESTART value ({}) must lie between MINVALUE ({}) and MAXVALUE ({})",
                sequence.last, sequence.min, sequence.max
            )));
        }
    }
    Ok(())
}
