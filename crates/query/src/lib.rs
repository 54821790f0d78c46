//! Queries beyond the fast path, answered by DataFusion over one snapshot.
//!
//! DataFusion plans and executes; PostgreSQL decides what an answer is. The differences are settled
//! in four places, each with its header: [`rewrite`] works on the syntax tree (parameters, names of
//! columns, forms that DataFusion does not parse), [`planner`] chooses operators and functions by
//! their operands' types, [`numeric`] is PostgreSQL's `numeric`, and [`shape`] maps types
//! and values to Arrow and back. [`table`] reads stored rows at the statement's snapshot,
//! [`virtual_table`] the views of the catalog and the cluster. [`physical`] turns plans into operators.
//!
//! The rest of the house sees [`sql::wide::Wide`] alone, so that it is compiled beside DataFusion and not
//! behind it. A query is planned and run [`aside`], so that whoever waits for it can stop waiting at any moment.
//! One [`setup`] is built per node. [`memory`] bounds what a query keeps: sorts and groupings write to temporary files
//! beyond `work_mem`, joins are planned anew to do so; what still finds no room fails with 53200. Dropping the stream of
//! rows stops the query.
//!
//! Absent: writing, locks (`FOR UPDATE` never comes here), plans kept between executions.

mod aside;
mod batch;
mod evaluated;
mod expr;
mod failure;
mod functions;
mod interrupt;
mod memory;
mod numeric;
mod operator;
mod physical;
mod planner;
mod privileges;
mod rewrite;
mod series;
mod setup;
mod shape;
mod single;
mod source;
mod table;
mod virtual_table;

use aside::{Aside, Places, Stop};
use base::Env;
use batch::{BatchRows, RowsSeen};
use datafusion_execution::TaskContext;
use datafusion_expr::LogicalPlan;
use datafusion_physical_plan::display::DisplayableExecutionPlan;
use datafusion_physical_plan::{ExecutionPlan, displayable, execute_stream};
use datafusion_sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use futures::StreamExt;
use memory::Share;
use physical::Joins;
use setup::Setup;
use sql::error::{Error, Result, state};
use sql::session::{Column, RowStream};
use sql::types::{Datum, Type};
use sql::views;
use sql::wide::{Described, QueryContext, Wide};
use sqlparser::ast::{Query, Statement};
use std::path::PathBuf;
use std::sync::Arc;

/// The engine of wide queries, one for each node. Cheap to clone.
#[derive(Clone)]
pub struct DataFusion {
    house: Arc<House>,
}

/// What all queries of a node share.
struct House {
    setup: Arc<Setup>,
    places: Arc<Places>,
    seen: Arc<RowsSeen>,
}

impl DataFusion {
    /// `files` is a directory for what queries cannot keep in memory.
    pub fn new(env: &Env, files: PathBuf) -> Result<DataFusion> {
        let setup = Setup::new(files, env.limits().query_file_bytes)
            .map_err(|error| Error::internal(format!("queries cannot run: {error}")))?;
        let (places, seen) = (Arc::new(Places::new(env.limits().queries)), Arc::default());
        Ok(DataFusion { house: Arc::new(House { setup: Arc::new(setup), places, seen }) })
    }

    fn aside(&self, cx: &QueryContext) -> Aside {
        let env = cx.engine.env().clone();
        let locks = cx.reader.as_ref().is_some_and(txn::Reader::locks);
        Aside { env, places: self.house.places.clone(), locks, stop: Stop::default() }
    }
}

/// A query with its values, on its way.
struct Asked {
    house: Arc<House>,
    cx: QueryContext,
    query: Query,
    types: Vec<Type>,
    params: Vec<Datum>,
    stop: Stop,
}

#[async_trait::async_trait]
impl Wide for DataFusion {
    async fn describe(
        &self,
        cx: &QueryContext,
        query: &Query,
        hints: &[Option<Type>],
    ) -> Result<Described> {
        let (house, cx, query) = (self.house.clone(), cx.clone(), query.clone());
        let hints = hints.to_vec();
        self.aside(&cx).ask(async move { house.describe(&cx, &query, hints).await }).await
    }

    async fn run(
        &self,
        cx: &QueryContext,
        query: &Query,
        types: &[Type],
        params: &[Datum],
    ) -> Result<(Arc<[Column]>, RowStream)> {
        let aside = self.aside(cx);
        let asked = self.asked(cx, query, types, params, &aside);
        let run = async move {
            let (columns, mut rows) = asked.rows(Joins::Hashed).await?;
            let mut first = rows.next().await;
            if matches!(&first, Some(Err(error)) if error.state() == state::OUT_OF_MEMORY) {
                // Nothing was sent yet: another way may need less.
                drop(rows);
                (_, rows) = asked.rows(Joins::Sorted).await?;
                first = rows.next().await;
            }
            let rows: RowStream = Box::pin(futures::stream::iter(first).chain(rows));
            Ok((columns, rows))
        };
        let (columns, rows) = aside.ask(run).await?;
        Ok((columns, aside.rows(rows)))
    }

    async fn explain(
        &self,
        cx: &QueryContext,
        query: &Query,
        types: &[Type],
        params: &[Datum],
        analyze: bool,
    ) -> Result<Vec<String>> {
        let aside = self.aside(cx);
        let asked = self.asked(cx, query, types, params, &aside);
        aside.ask(async move { asked.explain(analyze).await }).await
    }
}

impl DataFusion {
    fn asked(
        &self,
        cx: &QueryContext,
        query: &Query,
        types: &[Type],
        params: &[Datum],
        aside: &Aside,
    ) -> Asked {
        Asked {
            house: self.house.clone(),
            cx: cx.clone(),
            query: query.clone(),
            types: types.to_vec(),
            params: params.to_vec(),
            stop: aside.stop.clone(),
        }
    }
}

impl Asked {
    /// The columns and rows of the answer.
    async fn rows(&self, joins: Joins) -> Result<(Arc<[Column]>, RowStream)> {
        let (columns, operators, batch_rows) = self.operators(joins).await?;
        let types = columns.iter().map(|column| column.ty.clone()).collect();
        Ok((columns, rows(operators, types, self.task(batch_rows))?))
    }

    fn task(&self, batch_rows: usize) -> Arc<TaskContext> {
        let memory = self.cx.engine.env().memory();
        let share = Share::new(memory, self.cx.view.work_mem_bytes());
        self.house.setup.task(share, batch_rows)
    }

    /// The columns of the answer, what is to be run, and how many rows its batches have.
    async fn operators(
        &self,
        joins: Joins,
    ) -> Result<(Arc<[Column]>, Arc<dyn ExecutionPlan>, usize)> {
        if self.cx.reader.is_none() {
            return Err(Error::internal("a query is run without a snapshot"));
        }
        let values = rewrite::Parameters::Values(&self.types, &self.params);
        let (plan, batch_rows) = self.house.plan(&self.cx, &self.query, &values).await?;
        let batch_rows = batch_rows.get();
        let columns: Arc<[Column]> = columns(&plan).into();
        let setup = &*self.house.setup;
        let plan = setup.optimize_whole(plan).map_err(failure::from)?;
        let operators = physical::plan(&plan, setup, joins, batch_rows).await;
        let operators = operators.map_err(failure::from)?;
        let operators = interrupt::interruptible(operators, &self.stop).map_err(failure::from)?;
        Ok((columns, operators, batch_rows))
    }

    async fn explain(&self, analyze: bool) -> Result<Vec<String>> {
        let (columns, operators, batch_rows) = self.operators(Joins::Hashed).await?;
        let mut lines = Vec::new();
        if analyze {
            let env = self.cx.engine.env();
            let begin = env.now();
            let types = columns.iter().map(|column| column.ty.clone()).collect();
            let mut rows = rows(operators.clone(), types, self.task(batch_rows))?;
            let mut n_rows = 0;
            while let Some(batch) = rows.next().await {
                n_rows += batch?.len();
            }
            let ms = env.now().duration_since(begin).as_secs_f64() * 1e3;
            let tree = DisplayableExecutionPlan::with_metrics(operators.as_ref());
            lines.extend(tree.indent(false).to_string().lines().map(rewrite::without_marks));
            lines.push(format!("Rows: {n_rows}"));
            lines.push(format!("Execution Time: {ms:.3} ms"));
        } else {
            let tree = displayable(operators.as_ref()).indent(false).to_string();
            lines.extend(tree.lines().map(rewrite::without_marks));
        }
        Ok(lines)
    }
}

impl House {
    async fn describe(
        &self,
        cx: &QueryContext,
        query: &Query,
        mut types: Vec<Option<Type>>,
    ) -> Result<Described> {
        let n = rewrite::n_parameters(query)?.max(types.len());
        types.resize(n, None);
        rewrite::infer_from_syntax(query, &mut types);
        if types.iter().any(Option::is_none) {
            // A plan with holes says what its context wants in them. It may fail for want of types;
            // then they are text, as PostgreSQL's unknown becomes text in the end.
            if let Ok((plan, _)) = self.plan(cx, query, &rewrite::Parameters::Types(&types)).await {
                let found = plan.get_parameter_types().map_err(failure::from)?;
                for (idx, ty) in types.iter_mut().enumerate() {
                    if let (None, Some(Some(found))) = (&ty, found.get(&format!("${}", idx + 1))) {
                        *ty = Some(shape::type_of_arrow(found));
                    }
                }
            }
        }
        let types: Vec<Type> = types.into_iter().map(|ty| ty.unwrap_or(Type::Text)).collect();
        let nulls = vec![Datum::Null; n];
        let (plan, _) = self.plan(cx, query, &rewrite::Parameters::Values(&types, &nulls)).await?;
        Ok((types, columns(&plan)))
    }

    /// Names resolved, types settled: a plan that says what its answer looks like.
    async fn plan(
        &self,
        cx: &QueryContext,
        query: &Query,
        parameters: &rewrite::Parameters<'_>,
    ) -> Result<(LogicalPlan, BatchRows)> {
        let rewritten = rewrite::rewrite(query, parameters, &cx.view)?;
        let snapshot = match (&cx.reader, rewritten.asks_catalog) {
            (Some(reader), true) => views::Snapshot::load(cx, reader).await?,
            _ => views::Snapshot::default(),
        };
        let names = planner::Names::new(cx, self, Arc::new(snapshot));
        let options = ParserOptions::new()
            .with_parse_float_as_decimal(true)
            .with_map_string_types_to_utf8view(false);
        let planner = SqlToRel::new_with_options(&names, options);
        let query = Statement::Query(Box::new(rewritten.query));
        let plan = planner.sql_statement_to_plan_with_context(query, &mut PlannerContext::new());
        let plan = plan.map_err(failure::from)?;
        let batch_rows = names.batch_rows(rewritten.grown_bytes);
        if matches!(parameters, rewrite::Parameters::Types(_)) {
            return Ok((plan, batch_rows));
        }
        let analyzed = self.setup.analyze(plan).map_err(failure::from)?;
        let plan = expr::correct(analyzed, &cx.view.zone).map_err(failure::from)?;
        Ok((plan, batch_rows))
    }
}

/// A plan's answer in batches of rows.
fn rows(
    operators: Arc<dyn ExecutionPlan>,
    types: Vec<Type>,
    task: Arc<TaskContext>,
) -> Result<RowStream> {
    let stream = execute_stream(operators, task).map_err(failure::from)?;
    Ok(Box::pin(stream.map(move |batch| shape::rows(&batch.map_err(failure::from)?, &types))))
}

fn columns(plan: &LogicalPlan) -> Vec<Column> {
    let column = |field: &arrow::datatypes::FieldRef| {
        let (ty, origin) = shape::type_of(field);
        let (table, attnum) = match origin {
            Some((table, attnum)) => (Some(table), attnum),
            None => (None, 0),
        };
        Column { name: rewrite::shown_name(field.name()).to_owned(), ty, table, attnum }
    };
    plan.schema().fields().iter().map(column).collect()
}

/// A relation that does not exist, as PostgreSQL says it.
fn no_relation(schema: Option<&str>, name: &str) -> Error {
    let name = match schema {
        Some(schema) => format!("{schema}.{name}"),
        None => name.to_owned(),
    };
    Error::new(state::UNDEFINED_TABLE, format!("relation \"{name}\" does not exist"))
}
