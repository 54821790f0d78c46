//! CREATE TABLE, DROP TABLE, TRUNCATE, and the rebuilding of a table.

use super::comments::PG_CLASS;
use super::ranges_of;
use crate::authority::{Class, Owned};
use crate::bind::{Params, Scope};
use crate::catalog::{
    Catalog, Check, Column, ColumnDefault, Identity, Index, IndexState, Kind, Name, RelationId,
    Table, rows,
};
use crate::error::{Error, Result, state};
use crate::expr::{Context, Expr};
use crate::parse::{self, SequenceOptions};
use crate::plan::change::NamedCheck;
use crate::plan::{Plan, Planner};
use crate::run::Exec;
use crate::run::memory::{Chunk, Kept};
use crate::run::select::Finder;
use crate::types::cast::{self, Context as CastContext};
use crate::types::{Datum, Row, Type};
use base::Scn;
use sqlparser::ast;
use std::collections::HashMap;
use std::sync::Arc;
use txn::{Isolation, LockMode, Wait};

/// A UNIQUE constraint or a primary key as the statement gives it.
struct Key {
    name: Option<String>,
    columns: Vec<String>,
    primary: bool,
}

impl Exec<'_> {
    /// The notice to send when the table exists and that is no error.
    pub async fn create_table(&mut self, create: &ast::CreateTable) -> Result<Option<String>> {
        let (schema, name) = self.new_name(&create.name)?;
        let place = self.view.place(&schema);
        if Catalog::lock_name(self.txn, place, &name).await?.is_some() {
            return if create.if_not_exists {
                Ok(Some(format!("relation \"{name}\" already exists, skipping")))
            } else {
                Err(Error::new(
                    state::DUPLICATE_TABLE,
                    format!("relation \"{name}\" already exists"),
                ))
            };
        }
        let first = self.engine.catalog().allocate(3).await?;
        let mut table = Table {
            id: first,
            version: 1,
            database: place.database,
            schema: schema.clone(),
            name: name.clone(),
            owner: self.identity().role,
            relation: RelationId(first + 1),
            columns: Vec::new(),
            next_column: 1,
            primary: Vec::new(),
            primary_name: String::new(),
            primary_id: 0,
            indexes: Vec::new(),
            checks: Vec::new(),
            options: match &create.table_options {
                ast::CreateTableOptions::With(list) => parse::storage_parameters(list)?,
                _ => Vec::new(),
            },
            since: Scn::ZERO,
            is_past: false,
            ranges: Arc::default(),
        };
        Catalog::lock_table(self.txn, table.id).await?;
        let entry = Name { kind: Kind::Table, id: table.id, table: 0 };
        Catalog::put_name(self.txn, self.overlay, place, &name, Some(entry))?;
        self.new_acl(Owned::table(&table), &schema).await?;
        let mut keys = Vec::new();
        for definition in &create.columns {
            let column = self.column(&mut table, definition, &mut keys).await?;
            table.columns.push(column);
        }
        for constraint in &create.constraints {
            match constraint {
                ast::TableConstraint::PrimaryKey(key) => keys.push(Key {
                    name: key.name.as_ref().map(parse::ident),
                    columns: key_columns(&key.columns)?,
                    primary: true,
                }),
                ast::TableConstraint::Unique(key) => keys.push(Key {
                    name: key.name.as_ref().map(parse::ident),
                    columns: key_columns(&key.columns)?,
                    primary: false,
                }),
                ast::TableConstraint::Check(check) => {
                    add_check(&mut table, check.name.as_ref(), &check.expr, None)?;
                }
                ast::TableConstraint::ForeignKey(_) => {
                    return Err(Error::unsupported("FOREIGN KEY"));
                }
                other => return Err(Error::unsupported(format!("the constraint {other}"))),
            }
        }
        for key in keys {
            if key.primary {
                if !table.primary.is_empty() {
                    return Err(Error::new(
                        state::INVALID_TABLE_DEFINITION,
                        format!("multiple primary keys for table \"{name}\" are not allowed"),
                    ));
                }
                self.set_primary(&mut table, key.name, &key.columns, first + 2).await?;
            } else {
                self.add_unique(&mut table, key.name, &key.columns).await?;
            }
        }
        self.check_expressions(&table)?;
        let table = Catalog::put_table(self.txn, self.overlay, table)?;
        self.txn.use_table(table.id, table.version, &table.ranges);
        Ok(None)
    }

    /// Makes these columns the primary key of a definition.
    pub async fn set_primary(
        &mut self,
        table: &mut Table,
        name: Option<String>,
        columns: &[String],
        id: u32,
    ) -> Result<()> {
        let ids = column_ids(table, columns)?;
        let schema = table.schema.clone();
        let name = match name {
            Some(name) => name,
            None => self.free_name(&schema, &[&table.name], "pkey").await?,
        };
        let entry = Name { kind: Kind::Index, id, table: table.id };
        self.claim(&schema, &name, entry).await?;
        for column in &mut table.columns {
            column.not_null |= ids.contains(&column.id);
        }
        table.primary = ids;
        table.primary_name = name;
        table.primary_id = id;
        Ok(())
    }

    /// Adds an empty unique index to a definition.
    pub async fn add_unique(
        &mut self,
        table: &mut Table,
        name: Option<String>,
        columns: &[String],
    ) -> Result<()> {
        let ids = column_ids(table, columns)?;
        let schema = table.schema.clone();
        let name = match name {
            Some(name) => name,
            None => {
                let mut parts = vec![table.name.as_str()];
                parts.extend(columns.iter().map(String::as_str));
                self.free_name(&schema, &parts, "key").await?
            }
        };
        let first = self.engine.catalog().allocate(2).await?;
        let entry = Name { kind: Kind::Index, id: first, table: table.id };
        self.claim(&schema, &name, entry).await?;
        table.indexes.push(Index {
            id: first,
            name,
            relation: RelationId(first + 1),
            columns: ids,
            unique: true,
            constraint: true,
            builder: None,
            state: IndexState::Public,
        });
        Ok(())
    }

    /// A column by its definition; its keys are added to `keys`.
    async fn column(
        &mut self,
        table: &mut Table,
        definition: &ast::ColumnDef,
        keys: &mut Vec<Key>,
    ) -> Result<Column> {
        let (column, unique, primary) = self.define_column(table, definition).await?;
        let names = || vec![column.name.clone()];
        if let Some(name) = primary {
            keys.push(Key { name, columns: names(), primary: true });
        }
        if let Some(name) = unique {
            keys.push(Key { name, columns: names(), primary: false });
        }
        Ok(column)
    }

    /// A column by its definition, and the names (if given) of its UNIQUE and PRIMARY KEY.
    #[allow(clippy::type_complexity)]
    pub async fn define_column(
        &mut self,
        table: &mut Table,
        definition: &ast::ColumnDef,
    ) -> Result<(Column, Option<Option<String>>, Option<Option<String>>)> {
        let name = parse::ident(&definition.name);
        if table.column(&name).is_some() {
            return Err(Error::new(
                state::DUPLICATE_COLUMN,
                format!("column \"{name}\" of relation \"{}\" already exists", table.name),
            ));
        }
        let ty = parse::type_of(&definition.data_type)?;
        storable(&name, &ty)?;
        let id = table.next_column;
        if id > 1_600 {
            return Err(Error::new("54011", "tables can have at most 1600 columns"));
        }
        table.next_column += 1;
        let mut column = Column {
            id,
            name: name.clone(),
            ty,
            not_null: false,
            default: None,
            identity: None,
            missing: Datum::Null,
        };
        if parse::serial_of(&definition.data_type).is_some() {
            column.not_null = true;
            let options = SequenceOptions { ty: Some(column.ty.clone()), ..Default::default() };
            column.default = Some(self.owned_sequence(table, &column, &options).await?);
        }
        let (mut unique, mut primary) = (None, None);
        for option in &definition.options {
            let given = option.name.as_ref().map(parse::ident);
            match &option.option {
                ast::ColumnOption::Null => {}
                ast::ColumnOption::NotNull => column.not_null = true,
                ast::ColumnOption::Default(expr) => {
                    column.default = Some(self.default_of(&column, expr)?);
                }
                ast::ColumnOption::PrimaryKey(_) => {
                    column.not_null = true;
                    primary = Some(given);
                }
                ast::ColumnOption::Unique(_) => unique = Some(given),
                ast::ColumnOption::Check(check) => {
                    let named = option.name.as_ref().or(check.name.as_ref());
                    add_check(table, named, &check.expr, Some(&name))?;
                }
                ast::ColumnOption::Generated {
                    generated_as,
                    sequence_options,
                    generation_expr: None,
                    ..
                } => {
                    column.identity = Some(match generated_as {
                        ast::GeneratedAs::Always => Identity::Always,
                        ast::GeneratedAs::ByDefault => Identity::ByDefault,
                        ast::GeneratedAs::ExpStored => {
                            return Err(Error::unsupported("a generated column"));
                        }
                    });
                    column.not_null = true;
                    let mut options = match sequence_options {
                        None => SequenceOptions::default(),
                        Some(list) => sequence_options_of(list)?,
                    };
                    options.ty = Some(column.ty.clone());
                    column.default = Some(self.owned_sequence(table, &column, &options).await?);
                }
                ast::ColumnOption::ForeignKey(_) => return Err(Error::unsupported("FOREIGN KEY")),
                ast::ColumnOption::Collation(collation) => {
                    let collation = parse::last_part(collation)?;
                    if !matches!(collation.as_str(), "C" | "POSIX" | "default" | "ucs_basic") {
                        return Err(Error::unsupported(format!("the collation \"{collation}\"")));
                    }
                }
                other => return Err(Error::unsupported(format!("the column option {other}"))),
            }
        }
        Ok((column, unique, primary))
    }

    /// A sequence for a serial or identity column, and the default that draws from it.
    async fn owned_sequence(
        &mut self,
        table: &Table,
        column: &Column,
        options: &SequenceOptions,
    ) -> Result<ColumnDefault> {
        if !column.ty.is_integer() {
            return Err(Error::new(
                state::INVALID_PARAMETER,
                "identity column type must be smallint, integer, or bigint",
            ));
        }
        let schema = table.schema.clone();
        let name = self.free_name(&schema, &[&table.name, &column.name], "seq").await?;
        let owner = Some((table.id, column.id));
        let id = self.make_sequence(&schema, &name, options, owner).await?;
        let shown = crate::plan::change::quoted(&name);
        let shown =
            if name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
                name
            } else {
                shown
            };
        Ok(ColumnDefault { sql: format!("nextval('{shown}'::regclass)"), owned_sequence: Some(id) })
    }

    /// Checks that a default fits its column, and keeps its text.
    pub fn default_of(&self, column: &Column, expr: &ast::Expr) -> Result<ColumnDefault> {
        let default = ColumnDefault { sql: expr.to_string(), owned_sequence: None };
        let mut probe = column.clone();
        probe.default = Some(default.clone());
        let mut planner = Planner::new(self.engine, self.overlay, self.view, &[]);
        planner.default(&probe)?;
        Ok(default)
    }

    /// Checks that CHECK constraints can be evaluated.
    pub fn check_expressions(&self, table: &Table) -> Result<()> {
        let mut planner = Planner::new(self.engine, self.overlay, self.view, &[]);
        planner.checks(table).map(|_| ())
    }

    pub async fn drop_table(&mut self, table: Table) -> Result<()> {
        let ranges = ranges_of(&table);
        self.txn.use_table(table.id, table.version, &ranges);
        self.txn.change_schema(table.id, table.version + 1, &ranges).await?;
        self.release(table.place(), &table.name).await?;
        if !table.is_keyless() {
            self.release(table.place(), &table.primary_name).await?;
        }
        Catalog::discard(self.txn, table.relation).await?;
        for index in &table.indexes {
            self.release(table.place(), &index.name).await?;
            Catalog::discard(self.txn, index.relation).await?;
        }
        let owned =
            table.columns.iter().filter_map(|column| column.default.as_ref()?.owned_sequence);
        for id in owned {
            self.drop_sequence_by_id(id).await?;
        }
        for index in table.indexes.iter().map(|index| index.id).chain([table.primary_id]) {
            self.drop_comments(PG_CLASS, index).await?;
        }
        self.drop_acl(Class::Table, table.id).await?;
        Catalog::lock_table(self.txn, table.id).await?;
        self.txn.delete(rows::table_key(table.id))?;
        Ok(())
    }

    /// Gives the table fresh, empty relations.
    pub async fn truncate(&mut self, mut table: Table, restart: bool) -> Result<()> {
        let before = ranges_of(&table);
        self.txn.use_table(table.id, table.version, &before);
        self.renew(&mut table).await?;
        if restart {
            let owned: Vec<u32> = table
                .columns
                .iter()
                .filter_map(|column| column.default.as_ref()?.owned_sequence)
                .collect();
            for id in owned {
                self.restart_sequence(id).await?;
            }
        }
        self.redefine(table, &before).await?;
        Ok(())
    }

    /// Fresh relations for the rows and every index; the old ones become garbage.
    pub async fn renew(&mut self, table: &mut Table) -> Result<()> {
        let n = 1 + table.indexes.len() as u32;
        let first = self.engine.catalog().allocate(n).await?;
        Catalog::discard(self.txn, table.relation).await?;
        table.relation = RelationId(first);
        for (idx, index) in table.indexes.iter_mut().enumerate() {
            Catalog::discard(self.txn, index.relation).await?;
            index.relation = RelationId(first + 1 + idx as u32);
        }
        Ok(())
    }

    /// Rewrites all rows of `old` into `new`, which differs in its key or its columns.
    ///
    /// This transaction keeps writers off the old rows and, by its commit, puts the new definition
    /// into force. The rows themselves are written by short transactions of their own into
    /// relations that nobody knows yet, so a big table makes no big commit. Until then these
    /// relations are noted as garbage: whatever ends this transaction early, they are swept.
    pub async fn rebuild(
        &mut self,
        old: &Table,
        mut new: Table,
        rewrite: Rewrite<'_>,
    ) -> Result<()> {
        self.exclude(old).await?;
        let before = ranges_of(old);
        self.renew(&mut new).await?;
        let fresh: Vec<RelationId> = std::iter::once(new.relation)
            .chain(new.indexes.iter().map(|index| index.relation))
            .collect();
        self.note_fresh(&fresh).await?;
        let reader = self.txn.reader().await?;
        let sealed = Arc::new(old.clone());
        let ranges = vec![old.relation.range()];
        let mut finder = Finder::over(reader, sealed, None, false, false, None, ranges);
        let new = new.seal();
        let checks = Planner::new(self.engine, self.overlay, self.view, &[]).checks(&new)?;
        let mut chunk = Chunk::new(self.chunk_rows());
        while let Some(batch) = finder.next().await? {
            for (_, _, row) in batch {
                if let Some(full) = chunk.push(self.rewritten(row, &new, &rewrite).await?) {
                    self.append_apart(&new, &checks, full).await?;
                }
            }
        }
        self.append_apart(&new, &checks, chunk.take()).await?;
        for relation in fresh {
            self.txn.delete(rows::garbage_key(relation))?;
        }
        self.redefine((*new).clone(), &before).await?;
        Ok(())
    }

    /// Notes relations as garbage in a transaction of its own, and locks the notes, so that no
    /// sweep takes them while they are filled.
    async fn note_fresh(&mut self, relations: &[RelationId]) -> Result<()> {
        let mut txn = self.engine.client().begin(Isolation::ReadCommitted);
        for relation in relations {
            Catalog::discard(&mut txn, *relation).await?;
        }
        txn.commit().await?;
        let notes: Vec<_> = relations.iter().map(|relation| rows::garbage_key(*relation)).collect();
        self.lock(&notes, LockMode::Exclusive, Wait::Block).await?;
        Ok(())
    }

    /// Appends rows in a transaction of its own.
    async fn append_apart(
        &mut self,
        table: &Arc<Table>,
        checks: &[NamedCheck],
        chunk: Vec<Row>,
    ) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        let mut txn = self.engine.client().begin(Isolation::ReadCommitted);
        let mut apart = Exec {
            engine: self.engine,
            view: self.view,
            txn: &mut txn,
            overlay: &mut *self.overlay,
            drawn: &mut *self.drawn,
            sequences: HashMap::new(),
            lock_timeout: self.lock_timeout,
            may_restart: false,
            kept: Kept::new(self.engine.env()),
            read_only: false,
            set_config: Vec::new(),
            notices: Vec::new(),
        };
        apart.append(table, checks, chunk).await?;
        txn.commit().await?;
        Ok(())
    }

    async fn rewritten(&mut self, mut row: Row, new: &Table, rewrite: &Rewrite<'_>) -> Result<Row> {
        match rewrite {
            Rewrite::Same => {
                let null = new.primary_idxs().into_iter().find(|idx| row[*idx].is_null());
                if let Some(idx) = null {
                    return Err(contains_nulls(new, &new.columns[idx].name));
                }
            }
            Rewrite::Cast { idx, from, to } => {
                let datum = std::mem::take(&mut row[*idx]);
                row[*idx] = cast::cast(datum, from, to, &self.view.zone, false)?;
            }
            Rewrite::Append { default, plan } => {
                let slots = self.slots(plan, &[]).await?;
                let cx = Context { row: &[], params: &[], slots: &slots, view: self.view };
                row.push(default.value(&cx)?);
            }
        }
        Ok(row)
    }

    /// A constant expression's value as a column's type.
    pub fn constant(&self, expr: &ast::Expr, ty: &Type) -> Result<Datum> {
        let scope = Scope::empty();
        let mut planner = Planner::new(self.engine, self.overlay, self.view, &[]);
        planner.params = Params::default();
        let bound = planner.binder(&scope).bind_as(expr, ty, CastContext::Assignment)?;
        if !planner.slots.is_empty() {
            return Err(Error::unsupported("this expression here"));
        }
        let cx = Context { row: &[], params: &[], slots: &[], view: self.view };
        bound.value(&cx)
    }
}

/// What rebuilding does with each row.
pub enum Rewrite<'a> {
    /// Nothing: the key is new. Its columns must not be NULL.
    Same,
    Cast {
        idx: usize,
        from: Type,
        to: Type,
    },
    /// A value for the new last column.
    Append {
        default: &'a Expr,
        plan: &'a Plan,
    },
}

pub fn contains_nulls(table: &Table, name: &str) -> Error {
    Error::new(
        state::NOT_NULL_VIOLATION,
        format!("column \"{name}\" of relation \"{}\" contains null values", table.name),
    )
    .column(&table.name, name)
}

/// Types that a column may have.
pub fn storable(name: &str, ty: &Type) -> Result<()> {
    match ty {
        Type::Array(_)
        | Type::Void
        | Type::Unknown
        | Type::Oid
        | Type::Name
        | Type::InternalChar => {
            Err(Error::unsupported(format!("the type {} of column \"{name}\"", ty.name())))
        }
        _ => Ok(()),
    }
}

pub fn column_ids(table: &Table, names: &[String]) -> Result<Vec<u32>> {
    let mut ids = Vec::with_capacity(names.len());
    for name in names {
        let column = table.column(name).ok_or_else(|| {
            Error::new(
                state::UNDEFINED_COLUMN,
                format!("column \"{name}\" named in key does not exist"),
            )
        })?;
        if ids.contains(&column.id) {
            return Err(Error::new(
                state::DUPLICATE_COLUMN,
                format!("column \"{name}\" appears twice in a key"),
            ));
        }
        if column.ty == Type::Json {
            return Err(Error::new(
                state::UNDEFINED_OBJECT,
                "data type json has no default operator class for access method \"btree\"",
            ));
        }
        ids.push(column.id);
    }
    Ok(ids)
}

pub fn key_columns(columns: &[ast::IndexColumn]) -> Result<Vec<String>> {
    columns
        .iter()
        .map(|column| {
            let order = &column.column;
            let plain = order.options.asc != Some(false) && order.options.nulls_first != Some(true);
            match &order.expr {
                ast::Expr::Identifier(name) if plain => Ok(parse::ident(name)),
                ast::Expr::Identifier(_) => Err(Error::unsupported("a descending index column")
                    .hint("An ascending index is read backward just as well.")),
                _ => Err(Error::unsupported("an index on an expression")),
            }
        })
        .collect()
}

pub fn add_check(
    table: &mut Table,
    name: Option<&ast::Ident>,
    expr: &ast::Expr,
    column: Option<&str>,
) -> Result<()> {
    let name = match name {
        Some(name) => parse::ident(name),
        None => {
            // A condition on one column alone bears its name.
            let sql = expr.to_string();
            let mut read = table.columns.iter().filter(|column| mentions(&sql, &column.name));
            let alone = match (read.next(), read.next()) {
                (Some(only), None) => Some(only.name.as_str()),
                _ => None,
            };
            let stem = match column.or(alone) {
                Some(column) => format!("{}_{column}_check", table.name),
                None => format!("{}_check", table.name),
            };
            let taken = |name: &str| table.checks.iter().any(|check| check.name == name);
            let mut name = stem.clone();
            let mut number = 0;
            while taken(&name) {
                number += 1;
                name = format!("{stem}{number}");
            }
            name
        }
    };
    if table.checks.iter().any(|check| check.name == name) {
        return Err(Error::new(
            state::DUPLICATE_OBJECT,
            format!("constraint \"{name}\" for relation \"{}\" already exists", table.name),
        ));
    }
    table.checks.push(Check { name, sql: expr.to_string() });
    Ok(())
}

/// True where an expression's text has the name as a word.
pub fn mentions(sql: &str, name: &str) -> bool {
    sql.split(|letter: char| !(letter.is_alphanumeric() || letter == '_')).any(|word| word == name)
}

fn sequence_options_of(list: &[ast::SequenceOptions]) -> Result<SequenceOptions> {
    let mut sql = String::from("ALTER SEQUENCE s");
    list.iter().for_each(|option| sql.push_str(&option.to_string()));
    match parse::parse(&sql)? {
        parse::Statement::AlterSequence { options, .. } => Ok(*options),
        _ => Err(Error::internal("sequence options were read as something else")),
    }
}
