//! What a statement needs to be allowed: which privileges on which columns of which tables.
//!
//! It is read from the tree and not from a plan: a column that an optimiser leaves out was named all the same.
//!
//! ```text
//!   UPDATE t SET a = b WHERE c = 1 RETURNING d
//!       UPDATE on a; SELECT on b, c, d
//!   SELECT count(*) FROM t
//!       SELECT on any column
//! ```
//!
//! Names are resolved as PostgreSQL does: the innermost query first, tables of a query by their aliases, a name of WITH
//! before a table's from its definition on. Where a name could mean columns of several tables, it needs all of them:
//! the statement is then wrong, or needs more than it would have to.
//!
//! Pure. Source: PostgreSQL 15's `parse_relation.c` (markVarForSelectPriv) and `execMain.c` (ExecCheckRTEPerms).

use super::Privileges;
use crate::catalog::{Table, VIRTUAL_SCHEMAS};
use crate::parse::{self, Statement};
use sqlparser::ast::{self, Visit, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// What one table must grant.
#[derive(Clone, Debug)]
pub struct TableNeed {
    pub table: Arc<Table>,
    /// On the table as a whole: DELETE, TRUNCATE.
    pub whole: Privileges,
    /// On columns, by their ids. No column: on any.
    pub columns: BTreeMap<Privileges, BTreeSet<u32>>,
}

#[derive(Clone, Debug, Default)]
pub struct Needs {
    pub tables: Vec<TableNeed>,
    /// Schemas that stand before a table's name.
    pub schemas: BTreeSet<String>,
    /// Computed tables: schema and name.
    pub views: Vec<(&'static str, &'static str)>,
}

/// A stored table by schema, if one is named, and name.
type FindTable<'a> = dyn Fn(Option<&str>, &str) -> Option<Arc<Table>> + 'a;
/// The same of a computed one: its schema and name.
type FindView = fn(Option<&str>, &str) -> Option<(&'static str, &'static str)>;

/// What a name in FROM may mean.
#[derive(Clone, Copy)]
pub struct Find<'a> {
    pub table: &'a FindTable<'a>,
    pub view: FindView,
}

impl Needs {
    /// What `tree` needs, which is a query or a change.
    pub fn of(tree: &Statement, find: Find<'_>) -> Needs {
        let mut walker =
            Walker { find, needs: Needs::default(), scopes: Vec::new(), with: Vec::new() };
        match tree {
            Statement::Query(query) => walker.query(query),
            Statement::Insert(insert) => walker.insert(insert),
            Statement::Update(update) => walker.update(update),
            Statement::Delete(delete) => walker.delete(delete),
            _ => {}
        }
        walker.needs
    }

    /// `columns`: by their ids.
    pub fn add(
        &mut self,
        table: &Arc<Table>,
        privilege: Privileges,
        columns: impl IntoIterator<Item = u32>,
    ) {
        let need = self.need(table);
        need.columns.entry(privilege).or_default().extend(columns);
    }

    pub fn add_whole(&mut self, table: &Arc<Table>, privilege: Privileges) {
        let need = self.need(table);
        need.whole = need.whole.union(privilege);
    }

    fn need(&mut self, table: &Arc<Table>) -> &mut TableNeed {
        let at = self.tables.iter().position(|need| need.table.id == table.id);
        let at = at.unwrap_or_else(|| {
            let (table, whole) = (table.clone(), Privileges::NONE);
            self.tables.push(TableNeed { table, whole, columns: BTreeMap::new() });
            self.tables.len() - 1
        });
        &mut self.tables[at]
    }
}

/// A table of a FROM clause.
struct Source {
    /// What columns are qualified by.
    alias: String,
    /// None: a subquery, a name of WITH, a function, a computed table.
    table: Option<Arc<Table>>,
    /// Its columns' names where an alias renames them, the first ones first.
    renamed: Vec<String>,
}

impl Source {
    /// The id of the column that goes by this name here.
    fn column(&self, name: &str) -> Option<u32> {
        let table = self.table.as_ref()?;
        if let Some(at) = self.renamed.iter().position(|renamed| renamed == name) {
            return table.columns.get(at).map(|column| column.id);
        }
        let at = table.column_idx(name).filter(|at| *at >= self.renamed.len())?;
        Some(table.columns[at].id)
    }
}

struct Walker<'a> {
    find: Find<'a>,
    needs: Needs,
    /// The tables of the queries around, the innermost last.
    scopes: Vec<Vec<Source>>,
    /// Names of WITH that are defined here.
    with: Vec<String>,
}

impl Walker<'_> {
    fn query(&mut self, query: &ast::Query) {
        let n_outer = self.with.len();
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            let name = parse::ident(&cte.alias.name);
            let is_recursive = query.with.as_ref().is_some_and(|with| with.recursive);
            if is_recursive {
                self.with.push(name.clone());
            }
            self.query(&cte.query);
            if !is_recursive {
                self.with.push(name);
            }
        }
        match &*query.body {
            // Its ORDER BY may name what it does not put out.
            ast::SetExpr::Select(select) => {
                let begin = self.select_scope(select);
                self.expressions(select);
                self.items(&select.projection);
                self.rest_of(query);
                self.lock(query);
                self.scopes.truncate(begin);
            }
            body => {
                self.body(body);
                self.rest_of(query);
            }
        }
        self.with.truncate(n_outer);
    }

    fn rest_of(&mut self, query: &ast::Query) {
        if let Some(order_by) = &query.order_by {
            self.expressions(order_by);
        }
        if let Some(limit) = &query.limit_clause {
            self.expressions(limit);
        }
        if let Some(fetch) = &query.fetch {
            self.expressions(fetch);
        }
    }

    /// FOR UPDATE and its kin.
    fn lock(&mut self, query: &ast::Query) {
        for lock in &query.locks {
            let of = lock.of.as_ref().and_then(|name| parse::last_part(name).ok());
            let Some(scope) = self.scopes.last() else { return };
            let locked =
                scope.iter().filter(|source| of.as_ref().is_none_or(|of| *of == source.alias));
            let tables: Vec<_> = locked.filter_map(|source| source.table.clone()).collect();
            for table in tables {
                self.needs.add(&table, Privileges::UPDATE, []);
            }
        }
    }

    fn body(&mut self, body: &ast::SetExpr) {
        match body {
            ast::SetExpr::Select(select) => {
                let begin = self.select_scope(select);
                self.expressions(select);
                self.items(&select.projection);
                self.scopes.truncate(begin);
            }
            ast::SetExpr::Query(query) => self.query(query),
            ast::SetExpr::SetOperation { left, right, .. } => {
                self.body(left);
                self.body(right);
            }
            ast::SetExpr::Values(values) => self.expressions(values),
            ast::SetExpr::Table(table) => {
                if let Some(name) = &table.table_name {
                    let schema = table.schema_name.as_deref();
                    let source = self.named(schema, name, name.clone(), Vec::new());
                    self.everything(&source);
                }
            }
            // Changes inside of queries are refused elsewhere; what is in them is read all the same.
            ast::SetExpr::Insert(tree)
            | ast::SetExpr::Update(tree)
            | ast::SetExpr::Delete(tree)
            | ast::SetExpr::Merge(tree) => match tree {
                ast::Statement::Insert(insert) => self.insert(insert),
                ast::Statement::Update(update) => self.update(update),
                ast::Statement::Delete(delete) => self.delete(delete),
                other => self.expressions(other),
            },
        }
    }

    /// Opens the scope of a SELECT. Returns how many there were before.
    fn select_scope(&mut self, select: &ast::Select) -> usize {
        let begin = self.scopes.len();
        self.scopes.push(Vec::new());
        select.from.iter().for_each(|from| self.from(from));
        begin
    }

    /// Adds the tables of a FROM item to the innermost scope. The expressions in it are looked at by the caller.
    fn from(&mut self, from: &ast::TableWithJoins) {
        self.factor(&from.relation);
        for join in &from.joins {
            let n_left = self.scopes.last().map_or(0, Vec::len);
            self.factor(&join.relation);
            use ast::JoinOperator as J;
            let (J::Join(constraint)
            | J::Inner(constraint)
            | J::Left(constraint)
            | J::LeftOuter(constraint)
            | J::Right(constraint)
            | J::RightOuter(constraint)
            | J::FullOuter(constraint)
            | J::CrossJoin(constraint)
            | J::Semi(constraint)
            | J::LeftSemi(constraint)
            | J::RightSemi(constraint)
            | J::Anti(constraint)
            | J::LeftAnti(constraint)
            | J::RightAnti(constraint)
            | J::StraightJoin(constraint)
            | J::AsOf { constraint, .. }) = &join.join_operator
            else {
                continue;
            };
            match constraint {
                ast::JoinConstraint::Using(names) => {
                    for name in names.iter().filter_map(|name| parse::last_part(name).ok()) {
                        self.column_of_scope(&name);
                    }
                }
                ast::JoinConstraint::Natural => {
                    let Some(scope) = self.scopes.last() else { continue };
                    let names = |sources: &[Source]| -> BTreeSet<String> {
                        let tables = sources.iter().filter_map(|source| source.table.as_ref());
                        let columns = tables.flat_map(|table| &table.columns);
                        columns.map(|column| column.name.clone()).collect()
                    };
                    let (left, right) = scope.split_at(n_left.min(scope.len()));
                    let common: Vec<String> =
                        names(left).intersection(&names(right)).cloned().collect();
                    common.iter().for_each(|name| self.column_of_scope(name));
                }
                ast::JoinConstraint::On(_) | ast::JoinConstraint::None => {}
            }
        }
    }

    fn factor(&mut self, factor: &ast::TableFactor) {
        use ast::TableFactor as T;
        let opaque = |alias: &Option<ast::TableAlias>| Source {
            alias: alias.as_ref().map(|alias| parse::ident(&alias.name)).unwrap_or_default(),
            table: None,
            renamed: Vec::new(),
        };
        let source = match factor {
            T::Table { name, alias, args, .. } => {
                let Ok((schema, short)) = parse::qualified(name) else { return };
                let shown = alias.as_ref().map_or(short.clone(), |alias| parse::ident(&alias.name));
                let renamed = alias.iter().flat_map(|alias| &alias.columns);
                let renamed = renamed.map(|column| parse::ident(&column.name)).collect();
                match args {
                    Some(_) => Source { alias: shown, table: None, renamed },
                    None => self.named(schema.as_deref(), &short, shown, renamed),
                }
            }
            T::NestedJoin { table_with_joins, alias } => {
                self.from(table_with_joins);
                if let (Some(alias), Some(scope)) = (alias, self.scopes.last_mut()) {
                    // The alias stands for all of them.
                    let alias = parse::ident(&alias.name);
                    scope.iter_mut().for_each(|source| source.alias.clone_from(&alias));
                }
                return;
            }
            T::Derived { alias, .. }
            | T::TableFunction { alias, .. }
            | T::UNNEST { alias, .. }
            | T::JsonTable { alias, .. }
            | T::OpenJsonTable { alias, .. }
            | T::XmlTable { alias, .. }
            | T::SemanticView { alias, .. }
            | T::Function { alias, .. } => opaque(alias),
            T::Pivot { table, .. } | T::Unpivot { table, .. } | T::MatchRecognize { table, .. } => {
                return self.factor(table);
            }
        };
        if let Some(scope) = self.scopes.last_mut() {
            scope.push(source);
        }
    }

    /// A name in FROM. A stored table needs SELECT from now on, on any column at least.
    fn named(
        &mut self,
        schema: Option<&str>,
        name: &str,
        alias: String,
        renamed: Vec<String>,
    ) -> Source {
        let is_with = schema.is_none() && self.with.iter().any(|with| with == name);
        if is_with {
            return Source { alias, table: None, renamed };
        }
        let is_computed = schema.is_some_and(|schema| VIRTUAL_SCHEMAS.contains(&schema));
        let table = if is_computed { None } else { (self.find.table)(schema, name) };
        match (&table, schema) {
            (Some(table), _) => self.needs.add(table, Privileges::SELECT, []),
            (None, schema) => self.needs.views.extend((self.find.view)(schema, name)),
        }
        if let Some(schema) = schema.filter(|_| !is_computed) {
            self.needs.schemas.insert(schema.to_owned());
        }
        Source { alias, table, renamed }
    }

    // ---- columns

    fn everything(&mut self, source: &Source) {
        self.whole_row(source.table.clone());
    }

    fn items(&mut self, items: &[ast::SelectItem]) {
        for item in items {
            let wanted = match item {
                ast::SelectItem::Wildcard(_) => None,
                ast::SelectItem::QualifiedWildcard(
                    ast::SelectItemQualifiedWildcardKind::ObjectName(name),
                    _,
                ) => parse::last_part(name).ok(),
                _ => continue,
            };
            let Some(scope) = self.scopes.pop() else { return };
            for source in &scope {
                if wanted.as_ref().is_none_or(|wanted| *wanted == source.alias) {
                    self.everything(source);
                }
            }
            self.scopes.push(scope);
        }
    }

    /// A column of the innermost scope.
    fn column_of_scope(&mut self, name: &str) {
        let Some(scope) = self.scopes.last() else { return };
        let found = found_in(scope, name);
        self.select(found);
    }

    fn select(&mut self, found: Vec<(Arc<Table>, u32)>) {
        for (table, column) in found {
            self.needs.add(&table, Privileges::SELECT, [column]);
        }
    }

    /// A name in an expression.
    fn reference(&mut self, parts: &[ast::Ident]) {
        let parts: Vec<String> = parts.iter().map(parse::ident).collect();
        match &parts[..] {
            [name] => {
                for at in (0..self.scopes.len()).rev() {
                    let found = found_in(&self.scopes[at], name);
                    if !found.is_empty() {
                        return self.select(found);
                    }
                    let whole = self.scopes[at].iter().find(|source| source.alias == *name);
                    if let Some(table) = whole.map(|source| source.table.clone()) {
                        return self.whole_row(table);
                    }
                }
            }
            [.., table, column] => {
                for scope in self.scopes.iter().rev() {
                    let own: Vec<_> =
                        scope.iter().filter(|source| source.alias == *table).collect();
                    if own.is_empty() {
                        continue;
                    }
                    let found = own
                        .iter()
                        .filter_map(|source| Some((source.table.clone()?, source.column(column)?)));
                    let found: Vec<_> = found.collect();
                    return self.select(found);
                }
            }
            [] => {}
        }
    }

    /// A table's alias stands for its whole row.
    fn whole_row(&mut self, table: Option<Arc<Table>>) {
        if let Some(table) = table {
            let all: Vec<u32> = table.columns.iter().map(|column| column.id).collect();
            self.needs.add(&table, Privileges::SELECT, all);
        }
    }

    fn expressions<T: Visit>(&mut self, tree: &T) {
        let mut visitor = Expressions { walker: self, depth: 0 };
        // It never breaks.
        let ControlFlow::Continue(()) = tree.visit(&mut visitor) else { return };
    }

    // ---- changes

    /// The table that a statement changes, as the first source of a scope of its own.
    fn target(&mut self, name: &ast::ObjectName, alias: Option<String>) -> Option<Arc<Table>> {
        let (schema, short) = parse::qualified(name).ok()?;
        if let Some(schema) = schema.as_ref().filter(|s| !VIRTUAL_SCHEMAS.contains(&s.as_str())) {
            self.needs.schemas.insert(schema.clone());
        }
        let table = (self.find.table)(schema.as_deref(), &short);
        let alias = alias.unwrap_or(short);
        self.scopes.push(vec![Source { alias, table: table.clone(), renamed: Vec::new() }]);
        table
    }

    fn returning(&mut self, items: Option<&Vec<ast::SelectItem>>) {
        let Some(items) = items else { return };
        self.expressions(items);
        self.items(items);
    }

    fn insert(&mut self, insert: &ast::Insert) {
        if let Some(source) = &insert.source {
            self.query(source);
        }
        let ast::TableObject::TableName(name) = &insert.table else { return };
        let alias = insert.table_alias.as_ref().map(|alias| parse::ident(&alias.alias));
        let begin = self.scopes.len();
        if let Some(table) = self.target(name, alias) {
            let named = insert.columns.iter().filter_map(|name| parse::last_part(name).ok());
            let named: Vec<u32> = named.filter_map(|name| Some(table.column(&name)?.id)).collect();
            let all = || table.columns.iter().map(|column| column.id).collect();
            let columns = if insert.columns.is_empty() { all() } else { named };
            self.needs.add(&table, Privileges::INSERT, columns);
            if let Some(ast::OnInsert::OnConflict(conflict)) = &insert.on {
                match &conflict.conflict_target {
                    Some(ast::ConflictTarget::Columns(columns)) => {
                        columns.iter().for_each(|name| self.column_of_scope(&parse::ident(name)));
                    }
                    Some(ast::ConflictTarget::OnConstraint(_)) | None => {}
                }
                if let ast::OnConflictAction::DoUpdate(update) = &conflict.action {
                    self.assignments(&table, &update.assignments);
                    // The row that was to be inserted is nobody's secret.
                    let alias = "excluded".to_owned();
                    let excluded = Source { alias, table: None, renamed: Vec::new() };
                    if let Some(scope) = self.scopes.last_mut() {
                        scope.push(excluded);
                    }
                    self.expressions(&update.assignments);
                    self.expressions(&update.selection);
                }
            }
        }
        self.returning(insert.returning.as_ref());
        self.scopes.truncate(begin);
    }

    fn update(&mut self, update: &ast::Update) {
        let begin = self.scopes.len();
        let ast::TableFactor::Table { name, alias, .. } = &update.table.relation else { return };
        let alias = alias.as_ref().map(|alias| parse::ident(&alias.name));
        if let Some(table) = self.target(name, alias) {
            self.assignments(&table, &update.assignments);
        }
        if let Some(
            ast::UpdateTableFromKind::BeforeSet(from) | ast::UpdateTableFromKind::AfterSet(from),
        ) = &update.from
        {
            from.iter().for_each(|from| self.from(from));
            self.expressions(from);
        }
        self.expressions(&update.assignments);
        self.expressions(&update.selection);
        self.returning(update.returning.as_ref());
        self.scopes.truncate(begin);
    }

    fn assignments(&mut self, table: &Arc<Table>, assignments: &[ast::Assignment]) {
        let names = assignments.iter().flat_map(|assignment| match &assignment.target {
            ast::AssignmentTarget::ColumnName(name) => std::slice::from_ref(name),
            ast::AssignmentTarget::Tuple(names) => names,
        });
        let names = names.filter_map(|name| parse::last_part(name).ok());
        let columns: Vec<u32> = names.filter_map(|name| Some(table.column(&name)?.id)).collect();
        self.needs.add(table, Privileges::UPDATE, columns);
    }

    fn delete(&mut self, delete: &ast::Delete) {
        let (ast::FromTable::WithFromKeyword(from) | ast::FromTable::WithoutKeyword(from)) =
            &delete.from;
        let Some(ast::TableFactor::Table { name, alias, .. }) = from.first().map(|t| &t.relation)
        else {
            return;
        };
        let begin = self.scopes.len();
        let alias = alias.as_ref().map(|alias| parse::ident(&alias.name));
        if let Some(table) = self.target(name, alias) {
            self.needs.add_whole(&table, Privileges::DELETE);
        }
        for using in delete.using.iter().flatten() {
            self.from(using);
            self.expressions(using);
        }
        self.expressions(&delete.selection);
        self.returning(delete.returning.as_ref());
        self.scopes.truncate(begin);
    }
}

fn found_in(scope: &[Source], name: &str) -> Vec<(Arc<Table>, u32)> {
    let found = |source: &Source| Some((source.table.clone()?, source.column(name)?));
    scope.iter().filter_map(found).collect()
}

/// Visits what a tree says outside of its subqueries; these are walked as queries of their own.
struct Expressions<'w, 'a> {
    walker: &'w mut Walker<'a>,
    depth: usize,
}

impl Visitor for Expressions<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<()> {
        if self.depth == 0 {
            self.walker.query(query);
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &ast::Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
        if self.depth == 0 {
            match expr {
                ast::Expr::Identifier(name) => self.walker.reference(std::slice::from_ref(name)),
                ast::Expr::CompoundIdentifier(parts) => self.walker.reference(parts),
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Type;

    /// `secret(id, word)` has number 1, `open(id, note)` has number 2.
    fn needs(sql: &str) -> Vec<String> {
        let table = |id, name: &str, second: &str| {
            let table = Table::for_tests(&[("id", Type::Int4), (second, Type::Text)]);
            Arc::new(Table { id, name: name.into(), ..table })
        };
        let tables = [table(1, "secret", "word"), table(2, "open", "note")];
        let find = |schema: Option<&str>, name: &str| {
            let is_there = schema.is_none_or(|schema| schema == "public");
            tables.iter().find(|table| is_there && table.name == name).cloned()
        };
        let view = |schema: Option<&str>, name: &str| match (schema, name) {
            (None, "pg_authid") => Some(("pg_catalog", "pg_authid")),
            (Some("atoll"), "statements") => Some(("atoll", "statements")),
            _ => None,
        };
        let find = Find { table: &find, view };
        let needs = Needs::of(&parse::parse(sql).unwrap(), find);
        let mut shown = Vec::new();
        for need in &needs.tables {
            for (privilege, columns) in &need.columns {
                let name = |id: &u32| need.table.columns[*id as usize - 1].name.as_str();
                let columns: Vec<&str> = columns.iter().map(name).collect();
                let what: Vec<&str> = privilege.names().collect();
                shown.push(format!("{} {} {}", need.table.name, what.join(), columns.join()));
            }
            shown.extend(need.whole.names().map(|name| format!("{} {name}", need.table.name)));
        }
        shown.extend(needs.views.iter().map(|(schema, name)| format!("{schema}.{name}")));
        shown
    }

    trait Join {
        fn join(&self) -> String;
    }

    impl Join for Vec<&str> {
        fn join(&self) -> String {
            self.as_slice().join(",")
        }
    }

    #[test]
    fn a_query_needs_the_columns_that_it_names() {
        for (sql, expected) in [
            ("SELECT id FROM secret", &["secret SELECT id"][..]),
            ("SELECT * FROM secret s", &["secret SELECT id,word"]),
            ("SELECT s.* FROM secret s", &["secret SELECT id,word"]),
            ("SELECT s FROM secret s", &["secret SELECT id,word"]),
            ("SELECT count(*) FROM secret", &["secret SELECT "]),
            ("SELECT 1 FROM secret WHERE word = 'x'", &["secret SELECT word"]),
            ("SELECT 1 FROM secret ORDER BY word", &["secret SELECT word"]),
            ("SELECT 1 FROM secret GROUP BY word HAVING max(id) > 1", &["secret SELECT id,word"]),
            ("SELECT b FROM secret AS s(a, b)", &["secret SELECT word"]),
            ("SELECT public.secret.id FROM public.secret", &["secret SELECT id"]),
            ("SELECT id FROM secret FOR UPDATE", &["secret SELECT id", "secret UPDATE "]),
            ("SELECT (SELECT max(word) FROM secret)", &["secret SELECT word"]),
            (
                "SELECT note FROM open WHERE EXISTS (SELECT 1 FROM secret WHERE word = note)",
                &["open SELECT note", "secret SELECT word"],
            ),
            (
                "SELECT 1 FROM open o, LATERAL (SELECT o.note, word FROM secret) x",
                &["open SELECT note", "secret SELECT word"],
            ),
            ("SELECT 1 FROM open JOIN secret USING (id)", &["open SELECT id", "secret SELECT id"]),
            ("SELECT 1 FROM open NATURAL JOIN secret", &["open SELECT id", "secret SELECT id"]),
            (
                "SELECT 1 FROM (open JOIN secret ON word = note)",
                &["open SELECT note", "secret SELECT word"],
            ),
            (
                "SELECT note FROM open UNION SELECT word FROM secret",
                &["open SELECT note", "secret SELECT word"],
            ),
            ("SELECT * FROM pg_authid", &["pg_catalog.pg_authid"]),
            ("SELECT * FROM atoll.statements", &["atoll.statements"]),
        ] {
            assert_eq!(needs(sql), expected, "{sql}");
        }
    }

    #[test]
    fn a_name_of_with_hides_a_table_from_its_definition_on() {
        for (sql, expected) in [
            ("WITH secret AS (SELECT 1 AS id) SELECT id FROM secret", &[][..]),
            (
                "WITH a AS (SELECT word FROM secret), secret AS (SELECT 1) SELECT * FROM a",
                &["secret SELECT word"],
            ),
            (
                "WITH secret AS (SELECT word FROM secret) SELECT * FROM secret",
                &["secret SELECT word"],
            ),
            (
                "SELECT * FROM (WITH secret AS (SELECT 1) SELECT * FROM secret) x, secret",
                &["secret SELECT id,word"],
            ),
        ] {
            assert_eq!(needs(sql), expected, "{sql}");
        }
    }

    #[test]
    fn a_change_needs_what_it_writes_and_what_it_reads() {
        for (sql, expected) in [
            ("INSERT INTO secret VALUES (1, 'x')", &["secret INSERT id,word"][..]),
            ("INSERT INTO secret (id) VALUES (1)", &["secret INSERT id"]),
            (
                "INSERT INTO secret (id) SELECT id FROM open RETURNING word",
                &["open SELECT id", "secret INSERT id", "secret SELECT word"],
            ),
            (
                "INSERT INTO secret VALUES (1) ON CONFLICT (id) DO UPDATE SET word = excluded.word",
                &["secret INSERT id,word", "secret SELECT id", "secret UPDATE word"],
            ),
            ("UPDATE secret SET word = 'x'", &["secret UPDATE word"]),
            (
                "UPDATE secret SET word = note FROM open WHERE open.id = secret.id",
                &["secret SELECT id", "secret UPDATE word", "open SELECT id,note"],
            ),
            ("DELETE FROM secret", &["secret DELETE"]),
            (
                "DELETE FROM secret s USING open WHERE s.id = open.id RETURNING s.*",
                &["secret SELECT id,word", "secret DELETE", "open SELECT id"],
            ),
        ] {
            assert_eq!(needs(sql), expected, "{sql}");
        }
    }
}
