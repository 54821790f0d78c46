//! Queries beyond the fast path, answered by DataFusion over one snapshot.
//!
//! DataFusion plans and executes; PostgreSQL decides what an answer is. The differences are settled
//! in four places, each with its header: [`rewrite`] works on the syntax tree (parameters, names of
//! columns, forms that DataFusion does not parse), [`planner`] chooses operators and functions by
//! their operands' types, [`numeric`] is PostgreSQL's `numeric`, and [`shape`] maps types
//! and values to Arrow and back. [`table`] reads stored rows at the statement's snapshot.
//!
//! One DataFusion state is built per process; a query clones nothing of it. Memory of all
//! queries of a process together is bounded; what goes beyond fails with 53200. Dropping the
//! stream of rows stops the query.
//!
//! Absent: writing, locks (`FOR UPDATE` never comes here), temporary files, plans kept between executions.

mod expr;
mod failure;
mod functions;
mod numeric;
mod planner;
mod rewrite;
pub(crate) mod shape;
mod single;
mod table;

use crate::engine::Engine;
use crate::error::{Error, Result, state};
use crate::session::{Column, RowStream, View};
use crate::types::{Datum, Type};
use crate::views;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, displayable, execute_stream};
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast::{Query, Statement};
use futures::StreamExt;
use std::sync::Arc;

/// What a query is run with.
#[derive(Clone)]
pub struct QueryContext {
    pub engine: Engine,
    /// The statement's snapshot. None to describe a query, which reads nothing.
    pub reader: Option<txn::Reader>,
    /// The session's side: its user and settings, and the tables that the statement names.
    pub view: Arc<View>,
}

/// The types of the parameters and the columns of the answer. `hints` are what the client says
/// of the parameters; the context decides the others.
pub async fn describe(
    cx: &QueryContext,
    query: &Query,
    hints: &[Option<Type>],
) -> Result<(Vec<Type>, Vec<Column>)> {
    let n = rewrite::n_parameters(query)?.max(hints.len());
    let mut types: Vec<Option<Type>> = hints.to_vec();
    types.resize(n, None);
    rewrite::infer_from_syntax(query, &mut types);
    if types.iter().any(Option::is_none) {
        // A plan with holes says what its context wants in them. It may fail for want of types;
        // then they are text, as PostgreSQL's unknown becomes text in the end.
        if let Ok(plan) = plan(cx, query, &rewrite::Parameters::Types(&types)).await {
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
    let plan = plan(cx, query, &rewrite::Parameters::Values(&types, &nulls)).await?;
    Ok((types, columns(&plan)))
}

/// Runs a query. `types` and `params` go together; see [`describe`].
pub async fn run(
    cx: &QueryContext,
    query: &Query,
    types: &[Type],
    params: &[Datum],
) -> Result<(Arc<[Column]>, RowStream)> {
    let plan = plan(cx, query, &rewrite::Parameters::Values(types, params)).await?;
    let columns: Arc<[Column]> = columns(&plan).into();
    let physical = physical(cx, plan).await?;
    let rows = rows(physical, columns.iter().map(|column| column.ty.clone()).collect())?;
    Ok((columns, rows))
}

/// The plan as text, one line each; with `analyze` it is run first and tells what it took.
pub async fn explain(
    cx: &QueryContext,
    query: &Query,
    types: &[Type],
    params: &[Datum],
    analyze: bool,
) -> Result<Vec<String>> {
    let plan = plan(cx, query, &rewrite::Parameters::Values(types, params)).await?;
    let types = columns(&plan).into_iter().map(|column| column.ty).collect();
    let physical = physical(cx, plan).await?;
    let mut lines = Vec::new();
    if analyze {
        let env = cx.engine.env();
        let begin = env.now();
        let mut rows = rows(physical.clone(), types)?;
        let mut n_rows = 0;
        while let Some(batch) = rows.next().await {
            n_rows += batch?.len();
        }
        let ms = env.now().duration_since(begin).as_secs_f64() * 1e3;
        let tree = datafusion::physical_plan::display::DisplayableExecutionPlan::with_metrics(
            physical.as_ref(),
        );
        lines.extend(tree.indent(false).to_string().lines().map(rewrite::without_marks));
        lines.push(format!("Rows: {n_rows}"));
        lines.push(format!("Execution Time: {ms:.3} ms"));
    } else {
        let tree = displayable(physical.as_ref()).indent(false).to_string();
        lines.extend(tree.lines().map(rewrite::without_marks));
    }
    Ok(lines)
}

/// Runs work that may take long without holding up what else its thread has to do.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    let flavor = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Names resolved, types settled: a plan that says what its answer looks like.
async fn plan(
    cx: &QueryContext,
    query: &Query,
    parameters: &rewrite::Parameters<'_>,
) -> Result<LogicalPlan> {
    let rewritten = aside(|| rewrite::rewrite(query, parameters, &cx.view))?;
    let snapshot = match (&cx.reader, rewritten.asks_catalog) {
        (Some(reader), true) => views::Snapshot::load(cx, reader).await?,
        _ => views::Snapshot::default(),
    };
    aside(|| plan_rewritten(cx, rewritten.query, parameters, snapshot))
}

fn plan_rewritten(
    cx: &QueryContext,
    query: Query,
    parameters: &rewrite::Parameters<'_>,
    snapshot: views::Snapshot,
) -> Result<LogicalPlan> {
    let names = planner::Names::new(cx, Arc::new(snapshot))?;
    let options = ParserOptions::new()
        .with_parse_float_as_decimal(true)
        .with_map_string_types_to_utf8view(false);
    let planner = SqlToRel::new_with_options(&names, options);
    let statement = Statement::Query(Box::new(query));
    let plan = planner.sql_statement_to_plan_with_context(statement, &mut PlannerContext::new());
    let plan = plan.map_err(failure::from)?;
    if matches!(parameters, rewrite::Parameters::Types(_)) {
        return Ok(plan);
    }
    let state = planner::state()?;
    let analyzed = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {});
    expr::correct(analyzed.map_err(failure::from)?, &cx.view.zone).map_err(failure::from)
}

async fn physical(cx: &QueryContext, plan: LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
    if cx.reader.is_none() {
        return Err(Error::internal("a query is run without a snapshot"));
    }
    let state = planner::state()?;
    let optimized = aside(|| state.optimizer().optimize(plan, state, |_, _| {}));
    let optimized = optimized.map_err(failure::from)?;
    state.query_planner().create_physical_plan(&optimized, state).await.map_err(failure::from)
}

/// The plan's answer in batches of rows.
fn rows(plan: Arc<dyn ExecutionPlan>, types: Vec<Type>) -> Result<RowStream> {
    let stream = execute_stream(plan, planner::state()?.task_ctx()).map_err(failure::from)?;
    Ok(Box::pin(stream.map(move |batch| shape::rows(&batch.map_err(failure::from)?, &types))))
}

fn columns(plan: &LogicalPlan) -> Vec<Column> {
    let column = |field: &datafusion::arrow::datatypes::FieldRef| {
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
