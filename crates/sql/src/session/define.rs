//! Definitions, and what goes with them: SPLIT AT, CREATE TABLE AS.

use super::execute::{PLANS_MAX, exec_of};
use super::transaction::Open;
use super::{Outcome, Session};
use crate::catalog::Overlay;
use crate::codec;
use crate::error::{Error, Result, state};
use crate::parse::{self, DropKind, Statement};
use crate::plan::Planner;
use crate::plan::change::quoted;
use crate::run::Exec;
use crate::run::ddl::index::{Building, build_online};
use crate::types::Type;
use sqlparser::ast;
use std::sync::Arc;

impl Session {
    /// ALTER TABLE … SPLIT AT: no part of the transaction, it changes where rows are, not what
    /// they are.
    pub(super) async fn split_table(
        &mut self,
        name: &ast::ObjectName,
        rows: &[Vec<ast::Expr>],
    ) -> Result<Outcome> {
        // A tablet that is cut drops its locks, those of this very transaction among them.
        let in_use = |open: &Open| open.block || open.n_statements > 0 || open.txn.has_writes();
        if self.open.as_ref().is_some_and(in_use) {
            return Err(Error::new(
                state::ACTIVE_TRANSACTION,
                "ALTER TABLE ... SPLIT AT cannot run inside a transaction block",
            )
            .hint("Send it by itself."));
        }
        let engine = self.engine.clone();
        let empty = Overlay::default();
        let view = self.view();
        let overlay = self.open.as_ref().map_or(&empty, |open| &open.overlay);
        let table = Planner::new(&engine, overlay, &view, &[]).target(name).await?;
        let idxs = table.primary_idxs();
        if table.is_keyless() {
            return Err(Error::new(
                state::INVALID_TABLE_DEFINITION,
                format!("table \"{}\" has no primary key to split by", table.name),
            ));
        }
        for row in rows {
            if row.is_empty() || row.len() > idxs.len() {
                return Err(Error::new(
                    state::SYNTAX_ERROR,
                    format!(
                        "SPLIT AT takes 1 to {} values, those of the first columns of the primary key",
                        idxs.len()
                    ),
                ));
            }
            let types: Vec<Type> =
                idxs.iter().take(row.len()).map(|idx| table.columns[*idx].ty.clone()).collect();
            let values = self.constants(row, &types)?;
            let mut key = codec::key_prefix(table.relation, 16);
            values.iter().for_each(|value| codec::encode_key(value, &mut key));
            let key = base::Key::from(key);
            crate::run::rows::check_key(&key, &table.primary_name)?;
            engine.client().split(key).await?;
        }
        Ok(Outcome::Done { tag: "ALTER TABLE".to_owned() })
    }

    /// CREATE TABLE … AS: a table of the query's columns, then an INSERT of its rows.
    pub(super) async fn create_table_as(&mut self, create: &ast::CreateTable) -> Result<Outcome> {
        let Some(query) = &create.query else {
            return Err(Error::internal("CREATE TABLE AS has no query"));
        };
        self.open();
        let empty = Overlay::default();
        let view = self.view();
        let overlay = self.open.as_ref().map_or(&empty, |open| &open.overlay);
        let mut planner = Planner::new(&self.engine, overlay, &view, &[]);
        planner.snapshot = self.snapshot();
        let (_, columns) = planner.describe(query).await?;
        let given = &create.columns;
        if given.len() > columns.len() {
            return Err(Error::new(
                state::SYNTAX_ERROR,
                "CREATE TABLE AS specifies too many column names",
            ));
        }
        let definitions: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(idx, column)| {
                let name = given.get(idx).map_or(column.name.clone(), |c| parse::ident(&c.name));
                let ty = if column.ty == Type::Name { Type::Text } else { column.ty.clone() };
                format!("{} {}", quoted(&name), ty.name())
            })
            .collect();
        let exists = if create.if_not_exists { "IF NOT EXISTS " } else { "" };
        let sql = format!("CREATE TABLE {exists}{} ({})", create.name, definitions.join(", "));
        let outcome = Box::pin(self.define(&parse::parse(&sql)?)).await?;
        let existed = self.notices.iter().any(|notice| {
            matches!(notice, super::Notice::Message { message, .. } if message.ends_with("already exists, skipping"))
        });
        if existed {
            return Ok(outcome);
        }
        let sql = format!("INSERT INTO {} {query}", create.name);
        match self.run_tree(Arc::new(parse::parse(&sql)?)).await? {
            Outcome::Done { tag } => {
                let count = tag.rsplit(' ').next().unwrap_or("0");
                Ok(Outcome::Done { tag: format!("SELECT {count}") })
            }
            other => Ok(other),
        }
    }

    /// Runs a definition, again if another one came between.
    pub(super) async fn define(&mut self, tree: &Statement) -> Result<Outcome> {
        let tag = tag_of(tree);
        // Built online only where the statement is alone: its steps commit one by one.
        let online = self.open.is_none();
        if let Statement::CreateIndex(create) = tree
            && create.concurrently
            && !online
        {
            return Err(Error::new(
                state::ACTIVE_TRANSACTION,
                "CREATE INDEX CONCURRENTLY cannot run inside a transaction block",
            ));
        }
        let mut attempt = 0;
        let defined = loop {
            attempt += 1;
            match self.define_once(tree, tag, online).await {
                Err(error) if attempt < PLANS_MAX && self.may_run_again(&error) => {}
                outcome => break outcome?,
            }
        };
        defined.notices.into_iter().for_each(|notice| self.note(notice));
        if let Some((table, index)) = defined.building {
            self.finish(false).await?;
            build_online(&self.engine, table, index).await?;
        }
        Ok(Outcome::Done { tag: tag.to_owned() })
    }

    async fn define_once(&mut self, tree: &Statement, tag: &str, online: bool) -> Result<Defined> {
        let lock_timeout = self.settings.lock_timeout;
        self.open();
        self.refuse_read_only(tag)?;
        let engine = self.engine.clone();
        let Some(open) = &mut self.open else {
            return Err(Error::internal("a statement lost its transaction"));
        };
        open.txn.begin_statement();
        let savepoint = open.txn.savepoint();
        let overlay = open.overlay.clone();
        let view = open.view.clone();
        let mut exec = exec_of(&engine, &view, open, &mut self.drawn, lock_timeout);
        match define(&mut exec, tree, online).await {
            Ok(defined) => {
                open.txn.release(savepoint);
                open.n_statements += 1;
                Ok(defined)
            }
            Err(error) => {
                open.txn.rollback_to(savepoint);
                open.txn.release(savepoint);
                open.overlay = overlay;
                Err(error)
            }
        }
    }
}

/// What a definition left to say and to do.
#[derive(Default)]
struct Defined {
    notices: Vec<String>,
    /// Table and index, to be built online once this transaction has committed.
    building: Option<(u32, u32)>,
}

async fn define(exec: &mut Exec<'_>, tree: &Statement, online: bool) -> Result<Defined> {
    let mut defined = Defined::default();
    let notice = match tree {
        Statement::CreateTable(create) => exec.create_table(create).await?,
        Statement::AlterTable(alter) => exec.alter_table(alter).await?,
        Statement::CreateIndex(create) => match exec.create_index(create, online).await? {
            Building::Done(notice) => notice,
            Building::Online { table, index } => {
                defined.building = Some((table, index));
                None
            }
        },
        Statement::Truncate { tables, restart } => {
            for name in tables {
                let table = exec.lock_table_or_fail(name).await?;
                exec.truncate(table, *restart).await?;
            }
            None
        }
        Statement::Drop { kind, names, if_exists, cascade } => {
            defined.notices = exec.drop_objects(*kind, names, *if_exists, *cascade).await?;
            None
        }
        Statement::CreateSchema { name, if_not_exists } => {
            exec.create_schema(name, *if_not_exists).await?
        }
        Statement::CreateSequence { name, if_not_exists, options } => {
            exec.create_sequence(name, *if_not_exists, options).await?
        }
        Statement::AlterSequence { name, if_exists, options } => {
            exec.alter_sequence(name, *if_exists, options).await?
        }
        Statement::RenameIndex { name, to } => {
            exec.rename_index(name, to).await?;
            None
        }
        Statement::CreateUser { name, options } => exec.create_user(name, options).await?,
        Statement::AlterUser { name, options } => exec.alter_user(name, options).await?,
        Statement::DropUser { names, if_exists } => {
            defined.notices = exec.drop_users(names, *if_exists).await?;
            None
        }
        other => return Err(Error::internal(format!("no one runs {other:?}"))),
    };
    defined.notices.extend(notice);
    Ok(defined)
}

fn tag_of(tree: &Statement) -> &'static str {
    match tree {
        Statement::CreateTable(_) => "CREATE TABLE",
        Statement::AlterTable(_) => "ALTER TABLE",
        Statement::CreateIndex(_) => "CREATE INDEX",
        Statement::Truncate { .. } => "TRUNCATE TABLE",
        Statement::Drop { kind, .. } => match kind {
            DropKind::Table => "DROP TABLE",
            DropKind::Index => "DROP INDEX",
            DropKind::Sequence => "DROP SEQUENCE",
            DropKind::Schema => "DROP SCHEMA",
            DropKind::View => "DROP VIEW",
        },
        Statement::CreateSchema { .. } => "CREATE SCHEMA",
        Statement::CreateSequence { .. } => "CREATE SEQUENCE",
        Statement::AlterSequence { .. } => "ALTER SEQUENCE",
        Statement::RenameIndex { .. } => "ALTER INDEX",
        Statement::CreateUser { .. } => "CREATE ROLE",
        Statement::AlterUser { .. } => "ALTER ROLE",
        Statement::DropUser { .. } => "DROP ROLE",
        _ => "OK",
    }
}
