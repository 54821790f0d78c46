//! Refuses what the grammar reads and nobody carries out.
//!
//! The parser reads the words of many databases. What PostgreSQL does not know is a syntax error (42601); what it knows
//! and we do not do is refused by name (0A000). Nothing that a statement says is dropped.
//!
//! Two nets, one behind the other. The first names each clause. The second compares the tree with one that holds the
//! carried parts only: a clause that a newer parser adds, and that nobody here has heard of, differs there.

use crate::error::{Error, Result, state};
use sqlparser::ast::{self, Visit, Visitor};
use std::ops::ControlFlow;

/// A clause: whether it is there, and how it is refused.
type Clause = (bool, Refusal);

#[derive(Clone, Copy)]
enum Refusal {
    /// PostgreSQL has it, under this name.
    Missing(&'static str),
    /// Another database's.
    Foreign(&'static str),
}

use Refusal::{Foreign, Missing};

impl Refusal {
    fn error(self) -> Error {
        match self {
            Missing(what) => Error::unsupported(what),
            Foreign(what) => {
                Error::new(state::SYNTAX_ERROR, format!("syntax error at or near \"{what}\""))
            }
        }
    }
}

fn first(clauses: &[Clause]) -> Result<()> {
    match clauses.iter().find(|(is_there, _)| *is_there) {
        Some((_, refusal)) => Err(refusal.error()),
        None => Ok(()),
    }
}

/// The second net.
fn same<T: PartialEq>(given: &T, carried: &T, what: &str) -> Result<()> {
    if given == carried {
        return Ok(());
    }
    Err(Error::new(state::SYNTAX_ERROR, format!("a clause of this {what} is not understood")))
}

/// Checks a statement as it was parsed.
pub fn check(tree: &ast::Statement) -> Result<()> {
    match tree {
        ast::Statement::Insert(insert) => check_insert(insert)?,
        ast::Statement::Update(update) => check_update(update)?,
        ast::Statement::Delete(delete) => check_delete(delete)?,
        ast::Statement::CreateTable(create) => check_create_table(create)?,
        ast::Statement::CreateIndex(create) => first(&[
            (create.nulls_distinct == Some(false), Missing("NULLS NOT DISTINCT")),
            (!create.with.is_empty(), Missing("a storage parameter of an index")),
            (!create.index_options.is_empty(), Foreign("USING")),
            (!create.alter_options.is_empty(), Foreign("ALGORITHM")),
        ])?,
        // There is no inheritance, so that ONLY says nothing.
        ast::Statement::AlterTable(alter) => {
            first(&[
                (alter.location.is_some(), Foreign("LOCATION")),
                (alter.on_cluster.is_some(), Foreign("ON CLUSTER")),
                (alter.table_type.is_some(), Foreign("TABLE")),
            ])?;
            alter.operations.iter().try_for_each(|operation| match operation {
                ast::AlterTableOperation::AddConstraint { constraint, .. } => {
                    check_constraint(constraint)
                }
                ast::AlterTableOperation::AddColumn { column_def, .. } => column_def
                    .options
                    .iter()
                    .try_for_each(|option| check_column_option(&option.option)),
                _ => Ok(()),
            })?;
        }
        ast::Statement::Truncate(truncate) => first(&[
            (truncate.partitions.is_some(), Foreign("PARTITION")),
            (truncate.if_exists, Foreign("IF")),
            (truncate.on_cluster.is_some(), Foreign("ON")),
        ])?,
        _ => {}
    }
    let mut visitor = Clauses::default();
    match tree.visit(&mut visitor) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(*error),
    }
}

fn check_insert(insert: &ast::Insert) -> Result<()> {
    first(&[
        (insert.or.is_some(), Foreign("OR")),
        (insert.ignore, Foreign("IGNORE")),
        (insert.overwrite, Foreign("OVERWRITE")),
        (insert.replace_into, Foreign("REPLACE")),
        (!insert.into, Foreign("INSERT")),
        (insert.has_table_keyword, Foreign("TABLE")),
        (!insert.assignments.is_empty(), Foreign("SET")),
        (insert.partitioned.is_some(), Foreign("PARTITION")),
        (!insert.after_columns.is_empty(), Foreign("(")),
        (insert.priority.is_some(), Foreign("INTO")),
        (insert.insert_alias.is_some(), Foreign("AS")),
        (insert.output.is_some(), Foreign("OUTPUT")),
        (insert.settings.is_some(), Foreign("SETTINGS")),
        (insert.format_clause.is_some(), Foreign("FORMAT")),
        (insert.multi_table_insert_type.is_some(), Foreign("ALL")),
        (matches!(insert.on, Some(ast::OnInsert::DuplicateKeyUpdate(_))), Foreign("DUPLICATE")),
    ])
}

fn check_update(update: &ast::Update) -> Result<()> {
    first(&[
        (update.or.is_some(), Foreign("OR")),
        (update.output.is_some(), Foreign("OUTPUT")),
        (!update.order_by.is_empty(), Foreign("ORDER")),
        (update.limit.is_some(), Foreign("LIMIT")),
        (!update.table.joins.is_empty(), Foreign("JOIN")),
        (matches!(update.from, Some(ast::UpdateTableFromKind::BeforeSet(_))), Foreign("FROM")),
    ])
}

fn check_delete(delete: &ast::Delete) -> Result<()> {
    first(&[
        (!delete.tables.is_empty(), Foreign("FROM")),
        (matches!(delete.from, ast::FromTable::WithoutKeyword(_)), Foreign("DELETE")),
        (delete.output.is_some(), Foreign("OUTPUT")),
        (!delete.order_by.is_empty(), Foreign("ORDER")),
        (delete.limit.is_some(), Foreign("LIMIT")),
    ])
}

fn check_create_table(create: &ast::CreateTable) -> Result<()> {
    let options = &create.table_options;
    let others = matches!(
        options,
        ast::CreateTableOptions::Options(_)
            | ast::CreateTableOptions::Plain(_)
            | ast::CreateTableOptions::TableProperties(_)
    );
    if let ast::CreateTableOptions::With(list) = options {
        storage_parameters(list)?;
    }
    first(&[
        (create.temporary, Missing("a temporary table")),
        (create.like.is_some(), Missing("CREATE TABLE LIKE")),
        (create.inherits.is_some(), Missing("INHERITS")),
        (create.partition_by.is_some() || create.partition_of.is_some(), Missing("PARTITION BY")),
        (create.on_commit.is_some(), Missing("ON COMMIT")),
        (create.or_replace, Foreign("OR")),
        (create.external, Foreign("EXTERNAL")),
        (create.clone.is_some(), Foreign("CLONE")),
        (others, Foreign("ENGINE")),
    ])?;
    let carried = ast::CreateTable {
        if_not_exists: create.if_not_exists,
        columns: create.columns.clone(),
        constraints: create.constraints.clone(),
        query: create.query.clone(),
        table_options: create.table_options.clone(),
        ..bare_table(create.name.clone())?
    };
    same(create, &carried, "CREATE TABLE")?;
    create.columns.iter().try_for_each(|column| {
        column.options.iter().try_for_each(|option| check_column_option(&option.option))
    })?;
    create.constraints.iter().try_for_each(check_constraint)
}

/// `WITH (fillfactor = 70)`: kept and shown as PostgreSQL does, `fillfactor=70`. They change no answer there, and the
/// store here has no use for them.
pub fn storage_parameters(list: &[ast::SqlOption]) -> Result<Vec<String>> {
    let one = |option: &ast::SqlOption| {
        let ast::SqlOption::KeyValue { key, value } = option else {
            return Err(Error::new(
                state::INVALID_PARAMETER,
                format!("unrecognized parameter \"{option}\""),
            ));
        };
        let (name, value) = (super::ident(key), value.to_string());
        let range = match name.as_str() {
            "fillfactor" => 10..=100,
            "parallel_workers" => 0..=1024,
            "toast_tuple_target" => 128..=8160,
            // Whose values are numbers and booleans of many kinds.
            other if other.starts_with("autovacuum_") => return Ok(format!("{name}={value}")),
            _ => {
                let message = format!("unrecognized parameter \"{name}\"");
                return Err(Error::new(state::INVALID_PARAMETER, message));
            }
        };
        let number: i64 = value.trim_matches('\'').parse().map_err(|_| {
            let message = format!("invalid value for integer option \"{name}\": {value}");
            Error::new(state::INVALID_PARAMETER, message)
        })?;
        if !range.contains(&number) {
            let (least, most) = (range.start(), range.end());
            let message = format!("value {number} out of bounds for option \"{name}\"");
            return Err(Error::new(state::INVALID_PARAMETER, message)
                .detail(format!("Valid values are between \"{least}\" and \"{most}\".")));
        }
        Ok(format!("{name}={number}"))
    };
    list.iter().map(one).collect()
}

/// What the parser makes of a CREATE TABLE that says nothing but the name.
fn bare_table(name: ast::ObjectName) -> Result<ast::CreateTable> {
    let dialect = sqlparser::dialect::PostgreSqlDialect {};
    let trees = sqlparser::parser::Parser::parse_sql(&dialect, "CREATE TABLE t ()");
    match trees.ok().and_then(|mut trees| trees.pop()) {
        Some(ast::Statement::CreateTable(bare)) => Ok(ast::CreateTable { name, ..bare }),
        _ => Err(Error::internal("a bare CREATE TABLE cannot be read")),
    }
}

fn check_column_option(option: &ast::ColumnOption) -> Result<()> {
    use ast::ColumnOption as O;
    match option {
        O::Null | O::NotNull | O::Default(_) => Ok(()),
        O::PrimaryKey(key) => check_key(key.characteristics.as_ref()),
        O::Unique(key) => {
            let distinct = matches!(key.nulls_distinct, ast::NullsDistinctOption::NotDistinct);
            first(&[(distinct, Missing("NULLS NOT DISTINCT"))])?;
            check_key(key.characteristics.as_ref())
        }
        O::Check(check) => first(&[(check.enforced.is_some(), Foreign("ENFORCED"))]),
        O::ForeignKey(_) => Err(Missing("FOREIGN KEY").error()),
        O::Collation(name) => check_collation(name),
        // Whether it is an identity or an expression is decided where it is carried out.
        O::Generated { .. } => Ok(()),
        O::Comment(_) => Err(Foreign("COMMENT").error()),
        O::CharacterSet(_) => Err(Foreign("CHARACTER").error()),
        O::OnUpdate(_) => Err(Foreign("ON").error()),
        O::DialectSpecific(tokens) => {
            let word = tokens.first().map(ToString::to_string).unwrap_or_default();
            Err(Error::new(state::SYNTAX_ERROR, format!("syntax error at or near \"{word}\"")))
        }
        other => {
            let text = other.to_string();
            let word = text.split_whitespace().next().unwrap_or_default();
            Err(Error::new(state::SYNTAX_ERROR, format!("syntax error at or near \"{word}\"")))
        }
    }
}

/// All keys are checked at once, which is what IMMEDIATE and NOT DEFERRABLE ask for.
fn check_key(characteristics: Option<&ast::ConstraintCharacteristics>) -> Result<()> {
    let Some(asked) = characteristics else { return Ok(()) };
    first(&[
        (asked.deferrable == Some(true), Missing("DEFERRABLE")),
        (
            matches!(asked.initially, Some(ast::DeferrableInitial::Deferred)),
            Missing("INITIALLY DEFERRED"),
        ),
        (asked.enforced.is_some(), Foreign("ENFORCED")),
    ])
}

fn check_constraint(constraint: &ast::TableConstraint) -> Result<()> {
    use ast::TableConstraint as C;
    match constraint {
        C::PrimaryKey(key) => {
            first(&[
                (key.index_type.is_some() || key.index_name.is_some(), Foreign("KEY")),
                (!key.index_options.is_empty(), Missing("an option of a constraint's index")),
            ])?;
            check_key(key.characteristics.as_ref())
        }
        C::Unique(key) => {
            let distinct = matches!(key.nulls_distinct, ast::NullsDistinctOption::NotDistinct);
            first(&[
                (distinct, Missing("NULLS NOT DISTINCT")),
                (key.index_type.is_some() || key.index_name.is_some(), Foreign("KEY")),
                (!key.index_options.is_empty(), Missing("an option of a constraint's index")),
            ])?;
            check_key(key.characteristics.as_ref())
        }
        C::Check(check) => first(&[(check.enforced.is_some(), Foreign("ENFORCED"))]),
        _ => Ok(()),
    }
}

fn check_collation(name: &ast::ObjectName) -> Result<()> {
    let name = super::last_part(name)?;
    match name.as_str() {
        // All texts are compared byte by byte.
        "C" | "POSIX" | "default" | "ucs_basic" => Ok(()),
        _ => Err(Error::unsupported(format!("the collation \"{name}\""))),
    }
}

/// Looks at the clauses inside of a statement.
#[derive(Default)]
struct Clauses {
    depth: usize,
}

impl Clauses {
    fn said(outcome: Result<()>) -> ControlFlow<Box<Error>> {
        match outcome {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Box::new(error)),
        }
    }
}

impl Visitor for Clauses {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<Box<Error>> {
        self.depth += 1;
        let ties = query.fetch.as_ref().is_some_and(|fetch| fetch.with_ties);
        let percent = query.fetch.as_ref().is_some_and(|fetch| fetch.percent);
        let (by, comma) = match &query.limit_clause {
            Some(ast::LimitClause::LimitOffset { limit_by, .. }) => (!limit_by.is_empty(), false),
            Some(ast::LimitClause::OffsetCommaLimit { .. }) => (false, true),
            None => (false, false),
        };
        Clauses::said(first(&[
            (self.depth > 1 && !query.locks.is_empty(), Missing("FOR UPDATE in a subquery")),
            (ties, Missing("FETCH FIRST ... WITH TIES")),
            (percent, Foreign("PERCENT")),
            (by, Foreign("BY")),
            (comma, Foreign(",")),
            (query.for_clause.is_some(), Foreign("FOR")),
            (query.settings.is_some(), Foreign("SETTINGS")),
            (query.format_clause.is_some(), Foreign("FORMAT")),
            (!query.pipe_operators.is_empty(), Foreign("|>")),
        ]))
    }

    fn post_visit_query(&mut self, _query: &ast::Query) -> ControlFlow<Box<Error>> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &ast::Select) -> ControlFlow<Box<Error>> {
        let modifiers = match &select.group_by {
            ast::GroupByExpr::All(_) => true,
            ast::GroupByExpr::Expressions(_, modifiers) => !modifiers.is_empty(),
        };
        let from_first = !matches!(select.flavor, ast::SelectFlavor::Standard);
        Clauses::said(first(&[
            (select.into.is_some(), Missing("SELECT INTO")),
            (select.top.is_some(), Foreign("TOP")),
            (select.select_modifiers.is_some(), Foreign("SELECT")),
            (select.exclude.is_some(), Foreign("EXCLUDE")),
            (!select.lateral_views.is_empty(), Foreign("VIEW")),
            (select.prewhere.is_some(), Foreign("PREWHERE")),
            (!select.connect_by.is_empty(), Foreign("CONNECT")),
            (!select.cluster_by.is_empty(), Foreign("CLUSTER")),
            (!select.distribute_by.is_empty(), Foreign("DISTRIBUTE")),
            (!select.sort_by.is_empty(), Foreign("SORT")),
            (select.qualify.is_some(), Foreign("QUALIFY")),
            (select.value_table_mode.is_some(), Foreign("AS")),
            (from_first, Foreign("FROM")),
            (modifiers, Foreign("WITH")),
        ]))
    }

    fn pre_visit_table_factor(&mut self, factor: &ast::TableFactor) -> ControlFlow<Box<Error>> {
        use ast::TableFactor as T;
        Clauses::said(match factor {
            T::Table {
                with_hints,
                version,
                with_ordinality,
                partitions,
                json_path,
                sample,
                index_hints,
                ..
            } => first(&[
                (sample.is_some(), Missing("TABLESAMPLE")),
                (*with_ordinality, Missing("WITH ORDINALITY")),
                (!with_hints.is_empty(), Foreign("(")),
                (version.is_some(), Foreign("FOR")),
                (!partitions.is_empty(), Foreign("PARTITION")),
                (json_path.is_some(), Foreign(":")),
                (!index_hints.is_empty(), Foreign("INDEX")),
            ]),
            T::Derived { sample, .. } => first(&[(sample.is_some(), Foreign("TABLESAMPLE"))]),
            T::Function { with_ordinality, .. } => {
                first(&[(*with_ordinality, Missing("WITH ORDINALITY"))])
            }
            T::UNNEST { with_ordinality, with_offset, .. } => first(&[
                (*with_ordinality, Missing("WITH ORDINALITY")),
                (*with_offset, Foreign("OFFSET")),
            ]),
            T::JsonTable { .. } | T::XmlTable { .. } => {
                Err(Missing("a table function of JSON or XML").error())
            }
            T::OpenJsonTable { .. } | T::SemanticView { .. } => Err(Foreign("OPENJSON").error()),
            T::Pivot { .. } => Err(Foreign("PIVOT").error()),
            T::Unpivot { .. } => Err(Foreign("UNPIVOT").error()),
            T::MatchRecognize { .. } => Err(Foreign("MATCH_RECOGNIZE").error()),
            T::TableFunction { .. } | T::NestedJoin { .. } => Ok(()),
        })
    }

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<Box<Error>> {
        Clauses::said(match expr {
            ast::Expr::Collate { collation, .. } => check_collation(collation),
            ast::Expr::Function(function) => {
                let extends = matches!(
                    &function.over,
                    Some(ast::WindowType::WindowSpec(spec)) if spec.window_name.is_some()
                );
                first(&[
                    (extends, Missing("a window that extends another")),
                    (function.null_treatment.is_some(), Missing("RESPECT NULLS or IGNORE NULLS")),
                    (function.uses_odbc_syntax, Foreign("{")),
                    (!matches!(function.parameters, ast::FunctionArguments::None), Foreign("(")),
                ])
            }
            _ => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::parse::parse;

    fn outcome(sql: &str) -> String {
        match parse(sql) {
            Ok(_) => "ok".into(),
            Err(error) => error.state().to_owned(),
        }
    }

    #[test]
    fn what_nobody_carries_out_is_refused() {
        for sql in [
            "CREATE TEMP TABLE t (a int)",
            "CREATE TEMP TABLE t AS SELECT 1",
            "CREATE TABLE t (LIKE u)",
            "CREATE TABLE t (a int) INHERITS (u)",
            "CREATE TABLE t (a int) PARTITION BY RANGE (a)",
            "CREATE TABLE t (a int UNIQUE DEFERRABLE)",
            "CREATE TABLE t (a int, UNIQUE (a) DEFERRABLE INITIALLY DEFERRED)",
            "CREATE TABLE t (a int, PRIMARY KEY (a) DEFERRABLE)",
            "CREATE TABLE t (a int, UNIQUE NULLS NOT DISTINCT (a))",
            "CREATE TABLE t (a text COLLATE \"de_DE\")",
            "CREATE TABLE t (a int REFERENCES u)",
            "CREATE UNIQUE INDEX ON t (a) NULLS NOT DISTINCT",
            "CREATE INDEX ON t (a) WITH (fillfactor = 70)",
            "SELECT * FROM (SELECT * FROM t FOR UPDATE) x",
            "WITH x AS (SELECT 1 FROM t FOR UPDATE SKIP LOCKED) SELECT * FROM x",
            "SELECT * FROM t TABLESAMPLE BERNOULLI (10)",
            "SELECT a INTO b FROM t",
            "SELECT a FROM t ORDER BY a FETCH FIRST 3 ROWS WITH TIES",
            "SELECT * FROM generate_series(1, 3) WITH ORDINALITY",
            "SELECT * FROM unnest(ARRAY[1]) WITH ORDINALITY",
            "SELECT a COLLATE \"en_US\" FROM t",
            "SELECT a FROM t ORDER BY a COLLATE \"en_US\"",
            "SELECT sum(a) OVER (w ORDER BY b) FROM t WINDOW w AS (PARTITION BY c)",
            "SELECT lag(a) IGNORE NULLS OVER (ORDER BY a) FROM t",
        ] {
            assert_eq!(outcome(sql), "0A000", "{sql}");
        }
    }

    #[test]
    fn other_databases_words_are_syntax_errors() {
        for sql in [
            "INSERT OVERWRITE t VALUES (1)",
            "INSERT OR IGNORE INTO t VALUES (1)",
            "INSERT IGNORE INTO t VALUES (1)",
            "REPLACE INTO t VALUES (1)",
            "INSERT INTO t SET a = 1",
            "INSERT INTO t VALUES (1) ON DUPLICATE KEY UPDATE a = 1",
            "CREATE TABLE f CLONE t",
            "CREATE TABLE t (a int) ENGINE = InnoDB",
            "CREATE OR REPLACE TABLE t (a int)",
            "CREATE TABLE t (a int COMMENT 'x')",
            "CREATE TABLE t (a int AUTO_INCREMENT)",
            "CREATE TABLE t (a int AUTOINCREMENT)",
            "CREATE TABLE t (a int IDENTITY)",
            "CREATE TABLE t (a int DESC)",
            "SELECT * FROM t WITH (NOLOCK)",
            "SELECT TOP 3 * FROM t",
            "SELECT a FROM t LIMIT 1, 2",
            "SELECT a, count(*) FROM t GROUP BY a WITH ROLLUP",
            "SELECT a FROM t QUALIFY row_number() OVER (ORDER BY a) = 1",
            "FROM t SELECT a",
            "UPDATE t SET a = 1 LIMIT 3",
            "DELETE FROM t LIMIT 3",
            "DELETE t WHERE a = 1",
        ] {
            assert_eq!(outcome(sql), "42601", "{sql}");
        }
    }

    #[test]
    fn what_is_carried_passes() {
        for sql in [
            "CREATE TABLE IF NOT EXISTS s.t (a serial PRIMARY KEY, b text NOT NULL DEFAULT 'x', CHECK (a > 0))",
            "CREATE TABLE t (a int UNIQUE NOT DEFERRABLE INITIALLY IMMEDIATE)",
            "CREATE TABLE t (a text COLLATE \"C\", b int GENERATED ALWAYS AS IDENTITY)",
            "CREATE TABLE t AS SELECT 1",
            "CREATE TABLE t (a int) WITH (fillfactor = 70)",
            "ALTER TABLE ONLY t ADD PRIMARY KEY (a)",
            "INSERT INTO t AS x (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET a = x.a RETURNING *",
            "UPDATE t AS x SET a = 1 FROM u WHERE u.a = x.a RETURNING x.*",
            "DELETE FROM ONLY t USING u WHERE t.a = u.a",
            "SELECT DISTINCT ON (a) a COLLATE \"C\" FROM t ORDER BY a LIMIT 1 OFFSET 2 FOR UPDATE SKIP LOCKED",
            "SELECT sum(a) OVER w FROM t WINDOW w AS (PARTITION BY b)",
            "SELECT a FROM t GROUP BY ROLLUP (a) FETCH FIRST 2 ROWS ONLY",
            "WITH RECURSIVE x AS (SELECT 1 UNION ALL SELECT 2) SELECT * FROM x",
            "TRUNCATE t, u RESTART IDENTITY CASCADE",
        ] {
            assert_eq!(outcome(sql), "ok", "{sql}");
        }
    }
}
