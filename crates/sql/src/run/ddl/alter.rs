//! ALTER TABLE.
//!
//! Most changes touch the definition alone: rows name columns by id and read what they lack as the
//! column's `missing` value. What changes keys or stored values rebuilds the table into fresh
//! relations, inside the transaction.

use super::ranges_of;
use super::table::{
    Rewrite, add_check, column_ids, contains_nulls, key_columns, mentions, storable,
};
use crate::authority::Owned;
use crate::catalog::{Catalog, Identity, IndexState, Kind, Name, Table};
use crate::error::{Error, Result, state};
use crate::expr::Context;
use crate::parse;
use crate::plan::change::column_idx;
use crate::plan::{Plan, Planner};
use crate::run::Exec;
use crate::run::select::Finder;
use crate::types::Datum;
use crate::types::cast::{self, Context as CastContext};
use sqlparser::ast::{self, AlterColumnOperation, AlterTableOperation as Op};
use std::sync::{Arc, OnceLock};

impl Exec<'_> {
    /// A notice, if there is something to say.
    pub async fn alter_table(&mut self, alter: &ast::AlterTable) -> Result<Option<String>> {
        let Some(mut table) = self.lock_table(&alter.name).await? else {
            let (schema, name) = parse::qualified(&alter.name)?;
            return if alter.if_exists {
                Ok(Some(format!("relation \"{name}\" does not exist, skipping")))
            } else {
                Err(crate::plan::undefined_table(schema.as_deref(), &name))
            };
        };
        self.identity().require_owner(Owned::table(&table), &table.name)?;
        let mut notice = None;
        for operation in &alter.operations {
            let said = self.alter_one(table.clone(), operation).await?;
            notice = said.or(notice);
            // Each operation starts from what the one before left.
            match Catalog::lock_table(self.txn, table.id).await? {
                Some(next) => table = next,
                None => break,
            }
        }
        Ok(notice)
    }

    async fn alter_one(&mut self, mut table: Table, operation: &Op) -> Result<Option<String>> {
        let before = ranges_of(&table);
        self.txn.use_table(table.id, table.version, &before);
        match operation {
            Op::AddColumn { if_not_exists, column_def, column_position: None, .. } => {
                let name = parse::ident(&column_def.name);
                if *if_not_exists && table.column(&name).is_some() {
                    return Ok(Some(format!(
                        "column \"{name}\" of relation \"{}\" already exists, skipping",
                        table.name
                    )));
                }
                self.add_column(table, column_def).await?;
                return Ok(None);
            }
            Op::DropColumn { column_names, if_exists, .. } => {
                for name in column_names {
                    let name = parse::ident(name);
                    if table.column(&name).is_none() && *if_exists {
                        return Ok(Some(format!(
                            "column \"{name}\" of relation \"{}\" does not exist, skipping",
                            table.name
                        )));
                    }
                    self.drop_column(&mut table, &name).await?;
                }
            }
            Op::RenameColumn { old_column_name, new_column_name } => {
                let idx = column_idx(&table, &parse::ident(old_column_name))?;
                let new = parse::ident(new_column_name);
                if table.column(&new).is_some() {
                    return Err(Error::new(
                        state::DUPLICATE_COLUMN,
                        format!("column \"{new}\" of relation \"{}\" already exists", table.name),
                    ));
                }
                if !table.checks.is_empty() {
                    return Err(Error::unsupported(
                        "renaming a column of a table with CHECK constraints",
                    ));
                }
                table.columns[idx].name = new;
            }
            Op::RenameTable { table_name } => {
                let (ast::RenameTableNameKind::To(name) | ast::RenameTableNameKind::As(name)) =
                    table_name;
                let name = parse::last_part(name)?;
                let schema = table.schema.clone();
                let entry = Name { kind: Kind::Table, id: table.id, table: 0 };
                self.claim(&schema, &name, entry).await?;
                self.release(table.place(), &table.name).await?;
                table.name = name;
            }
            Op::AlterColumn { column_name, op } => {
                let idx = column_idx(&table, &parse::ident(column_name))?;
                return self.alter_column(table, idx, op).await.map(|()| None);
            }
            Op::AddConstraint { constraint, .. } => {
                return self.add_constraint(table, constraint).await.map(|()| None);
            }
            Op::DropConstraint { if_exists, name, .. } => {
                let name = parse::ident(name);
                let check = table.checks.iter().position(|check| check.name == name);
                let index = table.indexes.iter().position(|index| index.name == name);
                match (check, index) {
                    (Some(at), _) => {
                        table.checks.remove(at);
                    }
                    (None, Some(at)) => {
                        let index = table.indexes.remove(at);
                        self.release(table.place(), &index.name).await?;
                        Catalog::discard(self.txn, index.relation).await?;
                    }
                    (None, None) if !table.is_keyless() && table.primary_name == name => {
                        let mut new = table.clone();
                        self.release(table.place(), &name).await?;
                        new.primary.clear();
                        new.primary_name.clear();
                        new.primary_id = 0;
                        self.rebuild(&table, new, Rewrite::Same).await?;
                        return Ok(None);
                    }
                    (None, None) if *if_exists => {
                        return Ok(Some(format!(
                            "constraint \"{name}\" of relation \"{}\" does not exist, skipping",
                            table.name
                        )));
                    }
                    (None, None) => {
                        return Err(Error::new(
                            state::UNDEFINED_OBJECT,
                            format!(
                                "constraint \"{name}\" of relation \"{}\" does not exist",
                                table.name
                            ),
                        ));
                    }
                }
            }
            Op::RenameConstraint { old_name, new_name } => {
                let (old, new) = (parse::ident(old_name), parse::ident(new_name));
                if let Some(check) = table.checks.iter_mut().find(|check| check.name == old) {
                    check.name = new;
                } else {
                    self.rename_index_of(&mut table, &old, &new).await?;
                }
            }
            Op::OwnerTo { new_owner } => {
                self.table_owner(table, new_owner).await?;
                return Ok(None);
            }
            Op::SetOptionsParens { options } => {
                for option in parse::storage_parameters(options)? {
                    let name = option.split('=').next().unwrap_or_default().to_owned();
                    table.options.retain(|known| known.split('=').next() != Some(&name));
                    table.options.push(option);
                }
            }
            other => return Err(Error::unsupported(format!("ALTER TABLE … {other}"))),
        }
        self.redefine(table, &before).await?;
        Ok(None)
    }

    async fn add_column(&mut self, mut table: Table, definition: &ast::ColumnDef) -> Result<()> {
        let before = ranges_of(&table);
        let old = table.clone();
        let n_checks = table.checks.len();
        let (mut column, unique, primary) = self.define_column(&mut table, definition).await?;
        if primary.is_some() {
            return Err(Error::unsupported("ADD COLUMN … PRIMARY KEY")
                .hint("Add the column first, then the primary key."));
        }
        // A default that is the same for every row is computed once; another fills each row.
        let mut planner = Planner::new(self.engine, self.overlay, self.view, &[]);
        let default = planner.default(&column)?;
        let plan = slots_only(planner);
        let same_for_all = default.is_row_free() && plan.slots.is_empty();
        if same_for_all {
            let cx = Context { row: &[], params: &[], slots: &[], view: self.view };
            column.missing = default.value(&cx)?;
            let is_needed = column.not_null && column.missing.is_null();
            let (not_null, name) = (is_needed, column.name.clone());
            table.columns.push(column);
            if not_null && self.has_rows(&old).await? {
                return Err(contains_nulls(&table, &name));
            }
            let checked = table.checks.len() > n_checks;
            if unique.is_none() && !checked {
                self.redefine(table, &before).await?;
                return Ok(());
            }
        } else {
            table.columns.push(column);
        }
        if let Some(name) = unique {
            let columns = vec![parse::ident(&definition.name)];
            self.add_unique(&mut table, name, &columns).await?;
        }
        self.check_expressions(&table)?;
        let rewrite = Rewrite::Append { default: &default, plan: &plan };
        self.rebuild(&old, table, rewrite).await
    }

    async fn drop_column(&mut self, table: &mut Table, name: &str) -> Result<()> {
        let idx = column_idx(table, name)?;
        let id = table.columns[idx].id;
        if table.primary.contains(&id) {
            return Err(Error::unsupported("dropping a column of the primary key")
                .hint("Drop the primary key's constraint first."));
        }
        if table.checks.iter().any(|check| mentions(&check.sql, name)) {
            return Err(Error::unsupported("dropping a column that a CHECK constraint reads")
                .hint("Drop the constraint first."));
        }
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut table.indexes).into_iter().partition(|i| i.columns.contains(&id));
        table.indexes = kept;
        for index in gone {
            self.release(table.place(), &index.name).await?;
            Catalog::discard(self.txn, index.relation).await?;
        }
        let column = table.columns.remove(idx);
        if let Some(sequence) = column.default.and_then(|default| default.owned_sequence) {
            self.drop_sequence_by_id(sequence).await?;
        }
        Ok(())
    }

    async fn alter_column(
        &mut self,
        mut table: Table,
        idx: usize,
        operation: &AlterColumnOperation,
    ) -> Result<()> {
        let before = ranges_of(&table);
        let column = &table.columns[idx];
        match operation {
            AlterColumnOperation::SetDefault { value } => {
                if column.identity.is_some() {
                    return Err(Error::new(
                        state::SYNTAX_ERROR,
                        format!(
                            "column \"{}\" of relation \"{}\" is an identity column",
                            column.name, table.name
                        ),
                    ));
                }
                let default = self.default_of(column, value)?;
                table.columns[idx].default = Some(default);
            }
            AlterColumnOperation::DropDefault => table.columns[idx].default = None,
            AlterColumnOperation::DropNotNull => {
                if table.primary.contains(&column.id) {
                    return Err(Error::new(
                        state::INVALID_TABLE_DEFINITION,
                        format!("column \"{}\" is in a primary key", column.name),
                    ));
                }
                table.columns[idx].not_null = false;
            }
            AlterColumnOperation::SetNotNull => {
                self.exclude(&table).await?;
                let name = column.name.clone();
                self.each_row(&table, |row| {
                    if row[idx].is_null() { Err(contains_nulls(&table, &name)) } else { Ok(()) }
                })
                .await?;
                table.columns[idx].not_null = true;
            }
            AlterColumnOperation::SetDataType { data_type, using, .. } => {
                if using.is_some() {
                    return Err(Error::unsupported("ALTER COLUMN … TYPE … USING"));
                }
                let (from, to) = (column.ty.clone(), parse::type_of(data_type)?);
                storable(&column.name, &to)?;
                if cast::context(&from, &to).is_none_or(|needed| needed > CastContext::Assignment) {
                    return Err(Error::new(
                        state::DATATYPE_MISMATCH,
                        format!(
                            "column \"{}\" cannot be cast automatically to type {}",
                            column.name,
                            to.name()
                        ),
                    ));
                }
                let mut new = table.clone();
                new.columns[idx].ty = to.clone();
                let missing = new.columns[idx].missing.clone();
                new.columns[idx].missing = cast::cast(missing, &from, &to, &self.view.zone, false)?;
                return self.rebuild(&table, new, Rewrite::Cast { idx, from, to }).await;
            }
            AlterColumnOperation::AddGenerated { generated_as, .. } => {
                if column.default.is_some() || column.identity.is_some() {
                    return Err(Error::unsupported("ADD GENERATED on a column with a default"));
                }
                let always = !matches!(generated_as, Some(ast::GeneratedAs::ByDefault));
                let identity = if always { Identity::Always } else { Identity::ByDefault };
                let default = self.identity_default(&table, idx).await?;
                table.columns[idx].identity = Some(identity);
                table.columns[idx].default = Some(default);
            }
        }
        self.redefine(table, &before).await?;
        Ok(())
    }

    async fn identity_default(
        &mut self,
        table: &Table,
        idx: usize,
    ) -> Result<crate::catalog::ColumnDefault> {
        let column = &table.columns[idx];
        let schema = table.schema.clone();
        let name = self.free_name(&schema, &[&table.name, &column.name], "seq").await?;
        let options = parse::SequenceOptions { ty: Some(column.ty.clone()), ..Default::default() };
        let id = self.make_sequence(&schema, &name, &options, Some((table.id, column.id))).await?;
        let sql = format!("nextval('{name}'::regclass)");
        Ok(crate::catalog::ColumnDefault { sql, owned_sequence: Some(id) })
    }

    async fn add_constraint(
        &mut self,
        mut table: Table,
        constraint: &ast::TableConstraint,
    ) -> Result<()> {
        let before = ranges_of(&table);
        match constraint {
            ast::TableConstraint::PrimaryKey(key) => {
                if !table.is_keyless() {
                    return Err(Error::new(
                        state::INVALID_TABLE_DEFINITION,
                        format!(
                            "multiple primary keys for table \"{}\" are not allowed",
                            table.name
                        ),
                    ));
                }
                let columns = key_columns(&key.columns)?;
                let old = table.clone();
                let id = self.engine.catalog().allocate(1).await?;
                let name = key.name.as_ref().map(parse::ident);
                self.set_primary(&mut table, name, &columns, id).await?;
                self.rebuild(&old, table, Rewrite::Same).await
            }
            ast::TableConstraint::Unique(key) => {
                let columns = key_columns(&key.columns)?;
                column_ids(&table, &columns)?;
                self.add_unique(&mut table, key.name.as_ref().map(parse::ident), &columns).await?;
                let at = table.indexes.len() - 1;
                self.build_inside(table, at).await
            }
            ast::TableConstraint::Check(check) => {
                add_check(&mut table, check.name.as_ref(), &check.expr, None)?;
                let mut planner = Planner::new(self.engine, self.overlay, self.view, &[]);
                let checks = planner.checks(&table)?;
                self.exclude(&table).await?;
                let view = self.view.clone();
                let last = &checks[checks.len() - 1];
                self.each_row(&table, |row| {
                    let cx = Context { row, params: &[], slots: &[], view: &view };
                    match *last.condition.eval(&cx)? {
                        Datum::Bool(false) => Err(Error::new(
                            state::CHECK_VIOLATION,
                            format!(
                                "check constraint \"{}\" of relation \"{}\" is violated by some row",
                                last.name, table.name
                            ),
                        )),
                        _ => Ok(()),
                    }
                })
                .await?;
                self.redefine(table, &before).await?;
                Ok(())
            }
            ast::TableConstraint::ForeignKey(_) => Err(Error::unsupported("FOREIGN KEY")),
            other => Err(Error::unsupported(format!("the constraint {other}"))),
        }
    }

    pub async fn rename_index_of(&mut self, table: &mut Table, old: &str, new: &str) -> Result<()> {
        let schema = table.schema.clone();
        let id = if !table.is_keyless() && table.primary_name == old {
            table.primary_name = new.to_owned();
            table.primary_id
        } else {
            let index =
                table.indexes.iter_mut().find(|index| index.name == old).ok_or_else(|| {
                    Error::new(
                        state::UNDEFINED_OBJECT,
                        format!(
                            "constraint \"{old}\" of relation \"{}\" does not exist",
                            table.name
                        ),
                    )
                })?;
            index.name = new.to_owned();
            index.id
        };
        let entry = Name { kind: Kind::Index, id, table: table.id };
        self.claim(&schema, new, entry).await?;
        self.release(table.place(), old).await
    }

    /// ALTER INDEX … RENAME TO.
    pub async fn rename_index(&mut self, name: &ast::ObjectName, to: &str) -> Result<()> {
        let (schema, short) = parse::qualified(name)?;
        let (short, entry) = match self.lock_existing(name).await? {
            Some((_, short, entry)) if entry.kind == Kind::Index => (short, entry),
            _ => return Err(crate::plan::undefined_table(schema.as_deref(), &short)),
        };
        let Some(mut table) = Catalog::lock_table(self.txn, entry.table).await? else {
            return Err(Error::internal(format!("index \"{short}\" belongs to no table")));
        };
        self.identity().require_owner(Owned::table(&table), &short)?;
        let before = ranges_of(&table);
        self.txn.use_table(table.id, table.version, &before);
        self.rename_index_of(&mut table, &short, to).await?;
        self.redefine(table, &before).await?;
        Ok(())
    }

    /// Builds the index at this position inside the transaction, the table being locked.
    pub async fn build_inside(&mut self, mut table: Table, at: usize) -> Result<()> {
        let mut old = table.clone();
        old.indexes.remove(at);
        self.exclude(&old).await?;
        let before = ranges_of(&old);
        table.indexes[at].state = IndexState::Public;
        let reader = self.txn.reader().await?;
        let ranges = vec![table.relation.range()];
        let mut finder = Finder::over(reader, Arc::new(old), None, false, false, None, ranges);
        let table = self.redefine(table, &before).await?;
        while let Some(batch) = finder.next().await? {
            let rows = batch.into_iter().map(|(key, _, row)| (key, row)).collect();
            self.put_entries(&table, at, rows).await?;
        }
        Ok(())
    }

    pub async fn has_rows(&mut self, table: &Table) -> Result<bool> {
        self.exclude(table).await?;
        let reader = self.txn.reader().await?;
        let first = reader.scan(table.relation.range(), false, Some(1)).next_batch().await?;
        Ok(!first.is_empty())
    }

    async fn each_row(
        &mut self,
        table: &Table,
        mut visit: impl FnMut(&[Datum]) -> Result<()>,
    ) -> Result<()> {
        let reader = self.txn.reader().await?;
        let ranges = vec![table.relation.range()];
        let mut finder =
            Finder::over(reader, Arc::new(table.clone()), None, false, false, None, ranges);
        while let Some(batch) = finder.next().await? {
            for (_, _, row) in &batch {
                visit(row)?;
            }
        }
        Ok(())
    }
}

/// A plan that holds nothing but the slots of one expression.
fn slots_only(planner: Planner<'_>) -> Plan {
    Plan {
        kind: crate::plan::Kind::Utility,
        params: Vec::new(),
        columns: None,
        slots: planner.slots,
        tables: Vec::new(),
        needs: OnceLock::new(),
        generation: 0,
        is_private: true,
        tree: Arc::new(parse::Statement::Empty),
    }
}
