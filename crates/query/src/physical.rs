//! From an optimized logical plan to operators that run.
//!
//! DataFusion's own planner for this stands behind its facade, which brings file formats, object
//! stores and a session of its own with it. What a database needs of it is one operator a node:
//!
//! ```text
//! Projection ─ ProjectionExec        Join on equal keys ─ HashJoinExec
//! Filter     ─ FilterExec            Join by a condition ─ NestedLoopJoinExec
//! Aggregate  ─ partial, then final   Join on nothing     ─ CrossJoinExec
//! ```
//!
//! How data is spread over partitions, where it is sorted and which side of a join is kept in memory
//! is not decided here: the physical optimizer's rules do that afterwards.
//!
//! The tree is walked with a stack of its own, so that a deep plan needs no deep call stack. Only
//! subqueries that stand for one value recurse; the parser bounds how deep they can be.
//!
//! Absent: plans that write, EXPLAIN, extension nodes, asynchronous functions, merge joins.

use super::setup::Setup;
use super::source::table_of;
use arrow::compute::SortOptions;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_common::{Column, DFSchema, DataFusionError, JoinType, ScalarValue};
use datafusion_datasource::memory::MemorySourceConfig;
use datafusion_expr::expr::{GroupingSet, NullTreatment, WindowFunctionParams, physical_name};
use datafusion_expr::expr_rewriter::unnormalize_cols;
use datafusion_expr::logical_plan::Subquery;
use datafusion_expr::physical_planning_context::{
    PhysicalPlanningContext, ScalarSubqueryResults, SubqueryIndex,
};
use datafusion_expr::{Aggregate, Expr, FetchType, Join, Limit, LogicalPlan, SkipType, TableScan};
use datafusion_physical_expr::aggregate::LoweredAggregateBuilder;
use datafusion_physical_expr::expressions::{self, Literal};
use datafusion_physical_expr::{
    LexOrdering, PhysicalExpr, create_physical_expr, create_physical_exprs,
    create_physical_sort_exprs,
};
use datafusion_physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion_physical_plan::empty::EmptyExec;
use datafusion_physical_plan::execution_plan::InvariantLevel;
use datafusion_physical_plan::filter::FilterExecBuilder;
use datafusion_physical_plan::joins::utils::JoinFilter;
use datafusion_physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode, SortMergeJoinExec,
};
use datafusion_physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion_physical_plan::placeholder_row::PlaceholderRowExec;
use datafusion_physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion_physical_plan::recursive_query::RecursiveQueryExec;
use datafusion_physical_plan::scalar_subquery::{ScalarSubqueryExec, ScalarSubqueryLink};
use datafusion_physical_plan::sorts::sort::SortExec;
use datafusion_physical_plan::union::UnionExec;
use datafusion_physical_plan::unnest::{ListUnnest, UnnestExec};
use datafusion_physical_plan::windows::{BoundedWindowAggExec, WindowAggExec, create_window_expr};
use datafusion_physical_plan::{
    ExecutionPlan, ExecutionPlanProperties, InputOrderMode, WindowExpr,
};
use datafusion_session::{PhysicalOptimizerContext, Session};
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;

type Df<T> = Result<T, DataFusionError>;
type Operator = Arc<dyn ExecutionPlan>;
type Computed = Arc<dyn PhysicalExpr>;

/// Columns that CUBE takes: each one more doubles the groupings. PostgreSQL's limit.
const CUBE_COLUMNS_MAX: usize = 12;

/// How joins on equal keys are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joins {
    /// One side is kept in memory: the fastest, where there is room.
    Hashed,
    /// Both sides are sorted, with files for what does not fit.
    Sorted,
}

/// The operators for `plan`, optimized and ready to run.
pub async fn plan(
    plan: &LogicalPlan,
    setup: &Setup,
    joins: Joins,
    batch_rows: usize,
) -> Df<Operator> {
    let mut operators = initial(plan, setup, (joins, batch_rows)).await?;
    checked(&operators, InvariantLevel::Always)?;
    let context = Rules { setup };
    for rule in setup.physical_optimizers() {
        operators = rule
            .optimize_with_context(operators, &context)
            .map_err(|error| error.context(rule.name()))?;
    }
    checked(&operators, InvariantLevel::Executable)?;
    Ok(operators)
}

/// The operator's columns at these places.
fn only(operator: Operator, places: &[usize]) -> Df<Operator> {
    let schema = operator.schema();
    let column = |place: &usize| {
        let alias = schema.field(*place).name().clone();
        let expr: Computed = Arc::new(expressions::Column::new(&alias, *place));
        ProjectionExpr { expr, alias }
    };
    let columns: Vec<ProjectionExpr> = places.iter().map(column).collect();
    Ok(Arc::new(ProjectionExec::try_new(columns, operator)?))
}

/// What the optimizer's rules may know.
struct Rules<'a> {
    setup: &'a Setup,
}

impl PhysicalOptimizerContext for Rules<'_> {
    fn config_options(&self) -> &datafusion_common::config::ConfigOptions {
        self.setup.config_options()
    }
}

/// Each operator's own word that it can do what it was made for.
fn checked(operators: &Operator, level: InvariantLevel) -> Df<()> {
    operators.apply(|operator| {
        operator.check_invariants(level)?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// Operators before any optimizing. Subqueries that stand for one value are planned by themselves
/// and run first; expressions read their results.
fn initial<'a>(
    plan: &'a LogicalPlan,
    setup: &'a Setup,
    how: (Joins, usize),
) -> BoxFuture<'a, Df<Operator>> {
    Box::pin(async move {
        let (joins, batch_rows) = how;
        let mut links = Vec::new();
        let mut indexes = datafusion_common::HashMap::new();
        for subquery in scalar_subqueries(plan)? {
            if indexes.contains_key(&subquery) {
                continue;
            }
            let index = SubqueryIndex::new(links.len());
            let plan = initial(&subquery.subquery, setup, how).await?;
            links.push(ScalarSubqueryLink { plan, index });
            indexes.insert(subquery, index);
        }
        if links.is_empty() {
            let subqueries = PhysicalPlanningContext::default();
            return Planner { setup, subqueries, joins, batch_rows }.tree(plan).await;
        }
        let results = ScalarSubqueryResults::new(links.len());
        let subqueries = PhysicalPlanningContext::new(indexes, results.clone());
        let operators = Planner { setup, subqueries, joins, batch_rows }.tree(plan).await?;
        Ok(Arc::new(ScalarSubqueryExec::new(operators, links, results)) as Operator)
    })
}

/// The subqueries in the plan's own expressions that depend on no row outside.
fn scalar_subqueries(plan: &LogicalPlan) -> Df<Vec<Subquery>> {
    let mut found = Vec::new();
    plan.apply(|node| {
        for expr in node.expressions() {
            expr.apply(|expr| {
                if let Expr::ScalarSubquery(subquery) = expr
                    && subquery.outer_ref_columns.is_empty()
                {
                    found.push(subquery.clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

struct Planner<'a> {
    setup: &'a Setup,
    /// Where the results of subqueries will be found.
    subqueries: PhysicalPlanningContext,
    joins: Joins,
    batch_rows: usize,
}

enum Step<'a> {
    /// Plan the inputs, then the node.
    Enter(&'a LogicalPlan),
    /// The inputs are the last operators that are done.
    Leave(&'a LogicalPlan),
}

impl Planner<'_> {
    async fn tree(&self, root: &LogicalPlan) -> Df<Operator> {
        let mut steps = vec![Step::Enter(root)];
        let mut done: Vec<Operator> = Vec::new();
        while let Some(step) = steps.pop() {
            match step {
                Step::Enter(node) => {
                    steps.push(Step::Leave(node));
                    steps.extend(node.inputs().into_iter().rev().map(Step::Enter));
                }
                Step::Leave(node) => {
                    let n_inputs = node.inputs().len();
                    let inputs = done.split_off(done.len().saturating_sub(n_inputs));
                    let operator = self.node(node, inputs).await?;
                    done.push(operator);
                }
            }
        }
        done.pop().ok_or_else(|| broken("a plan without a node"))
    }

    async fn node(&self, node: &LogicalPlan, inputs: Vec<Operator>) -> Df<Operator> {
        if let LogicalPlan::TableScan(scan) = node {
            return self.table(scan).await;
        }
        let mut inputs = inputs.into_iter();
        let mut input = || inputs.next().ok_or_else(|| broken("a node lacks an input"));
        Ok(match node {
            LogicalPlan::Values(values) => {
                let rows = values.values.iter().map(|row| self.exprs(row, &values.schema));
                let rows = rows.collect::<Df<Vec<_>>>()?;
                MemorySourceConfig::try_new_as_values(values.schema.inner().clone(), rows)?
            }
            LogicalPlan::EmptyRelation(empty) => {
                let schema = empty.schema.inner().clone();
                match empty.produce_one_row {
                    true => Arc::new(PlaceholderRowExec::new(schema)),
                    false => Arc::new(EmptyExec::new(schema)),
                }
            }
            LogicalPlan::Projection(projection) => {
                self.projection(&projection.expr, &projection.input, node.schema(), input()?)?
            }
            LogicalPlan::Filter(filter) => {
                let predicate = self.expr(&filter.predicate, filter.input.schema())?;
                let config = self.setup.config();
                let selectivity = config.options().optimizer.default_filter_selectivity;
                let filter = FilterExecBuilder::new(predicate, input()?)
                    .with_batch_size(self.batch_rows)
                    .build()?;
                Arc::new(filter.with_default_selectivity(selectivity)?)
            }
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate, input()?)?,
            LogicalPlan::Window(window) => {
                self.windows(&window.window_expr, window.input.schema(), input()?)?
            }
            LogicalPlan::Sort(sort) => {
                let order = create_physical_sort_exprs(
                    &sort.expr,
                    sort.input.schema(),
                    self.setup.execution_props(),
                    &self.subqueries,
                )?;
                let order = LexOrdering::new(order).ok_or_else(|| broken("a sort by nothing"))?;
                Arc::new(SortExec::new(order, input()?).with_fetch(sort.fetch))
            }
            LogicalPlan::Limit(limit) => limited(limit, input()?)?,
            LogicalPlan::SubqueryAlias(_) => input()?,
            LogicalPlan::Union(_) => UnionExec::try_new(inputs.collect())?,
            LogicalPlan::Join(join) => {
                let (left, right) = (input()?, input()?);
                self.join(join, left, right)?
            }
            LogicalPlan::RecursiveQuery(query) => {
                let (first, step) = (input()?, input()?);
                let schema = query.schema.inner().clone();
                let name = query.name.clone();
                Arc::new(RecursiveQueryExec::try_new(name, schema, first, step, query.is_distinct)?)
            }
            LogicalPlan::Unnest(unnest) => {
                let lists = unnest.list_type_columns.iter().map(|(idx, list)| ListUnnest {
                    index_in_input_schema: *idx,
                    depth: list.depth,
                });
                Arc::new(UnnestExec::new(
                    input()?,
                    lists.collect(),
                    unnest.struct_type_columns.clone(),
                    unnest.schema.inner().clone(),
                    unnest.options.clone(),
                )?)
            }
            LogicalPlan::Subquery(_) => {
                let what = "a correlated subquery of this form";
                return Err(DataFusionError::NotImplemented(what.to_owned()));
            }
            other => {
                let what = other.display().to_string();
                return Err(DataFusionError::NotImplemented(what));
            }
        })
    }

    fn expr(&self, expr: &Expr, schema: &DFSchema) -> Df<Computed> {
        create_physical_expr(expr, schema, self.setup.execution_props(), &self.subqueries)
    }

    fn exprs(&self, exprs: &[Expr], schema: &DFSchema) -> Df<Vec<Computed>> {
        create_physical_exprs(exprs, schema, self.setup.execution_props(), &self.subqueries)
    }

    async fn table(&self, scan: &TableScan) -> Df<Operator> {
        let table = table_of(scan.source.as_ref())?;
        // A table does not know by which name the query calls it.
        let filters = unnormalize_cols(scan.filters.iter().cloned());
        table.scan(self.setup, scan.projection.as_ref(), &filters, scan.fetch).await
    }

    fn projection(
        &self,
        exprs: &[Expr],
        input: &LogicalPlan,
        schema: &DFSchema,
        operator: Operator,
    ) -> Df<Operator> {
        let known = input.schema();
        let below = operator.schema();
        let project = |expr: &Expr| {
            // A column that was computed below has the name there that it was computed under.
            let position = match expr {
                Expr::Column(column) => known.index_of_column(column).ok(),
                _ => None,
            };
            let alias = match position {
                Some(idx) => below.field(idx).name().clone(),
                None => physical_name(expr)?,
            };
            Ok(ProjectionExpr { expr: self.expr(expr, known)?, alias })
        };
        let projected = exprs.iter().map(project).collect::<Df<Vec<_>>>()?;
        let schema = schema.as_arrow();
        Ok(Arc::new(ProjectionExec::try_new_with_schema_metadata(projected, operator, schema)?))
    }

    /// Each partition by itself first, then all together.
    fn aggregate(&self, aggregate: &Aggregate, input: Operator) -> Df<Operator> {
        let known = aggregate.input.schema();
        let schema = input.schema();
        let groups = self.groups(&aggregate.group_expr, known, &schema)?;
        let (mut functions, mut filters) = (Vec::new(), Vec::new());
        for expr in &aggregate.aggr_expr {
            let props = self.setup.execution_props();
            let lowered =
                LoweredAggregateBuilder::new(expr, known, &schema, props, &self.subqueries);
            let lowered = lowered.build()?;
            functions.push(lowered.aggregate);
            filters.push(lowered.filter);
        }
        let partial = Arc::new(AggregateExec::try_new(
            AggregateMode::Partial,
            groups,
            functions,
            filters.clone(),
            input,
            schema.clone(),
        )?);
        let config = self.setup.config();
        let spread = !partial.group_expr().is_empty()
            && config.target_partitions() > 1
            && config.repartition_aggregations();
        let mode = match spread {
            true => AggregateMode::FinalPartitioned,
            false => AggregateMode::Final,
        };
        // The first stage may have turned a function round; the second must do the same.
        let functions = partial.aggr_expr().to_vec();
        let groups = partial.group_expr().as_final();
        Ok(Arc::new(AggregateExec::try_new(mode, groups, functions, filters, partial, schema)?))
    }

    fn groups(&self, exprs: &[Expr], known: &DFSchema, schema: &Schema) -> Df<PhysicalGroupBy> {
        let named = |expr: &Expr| Ok((self.expr(expr, known)?, physical_name(expr)?));
        let [Expr::GroupingSet(sets)] = exprs else {
            let named = exprs.iter().map(named).collect::<Df<Vec<_>>>()?;
            return Ok(match named.is_empty() {
                true => PhysicalGroupBy::new(Vec::new(), Vec::new(), Vec::new(), false),
                false => PhysicalGroupBy::new_single(named),
            });
        };
        let (columns, left_out) = groupings(sets)?;
        let named = columns.iter().map(named).collect::<Df<Vec<_>>>()?;
        let null = |(expr, name): &(Computed, String)| {
            let null = ScalarValue::try_from(&expr.data_type(schema)?)?;
            Ok((Arc::new(Literal::new(null)) as Computed, name.clone()))
        };
        let nulls = named.iter().map(null).collect::<Df<Vec<_>>>()?;
        Ok(PhysicalGroupBy::new(named, nulls, left_out, true))
    }

    fn windows(&self, exprs: &[Expr], known: &DFSchema, input: Operator) -> Df<Operator> {
        let windows = exprs.iter().map(|expr| self.window(expr, known));
        let windows = windows.collect::<Df<Vec<_>>>()?;
        if windows.is_empty() {
            return Err(broken("a window node without a window"));
        }
        let config = self.setup.config();
        let spread = config.target_partitions() > 1 && config.repartition_window_functions();
        Ok(match windows.iter().all(|window| window.uses_bounded_memory()) {
            true => {
                let order = InputOrderMode::Sorted;
                Arc::new(BoundedWindowAggExec::try_new(windows, input, order, spread)?)
            }
            false => Arc::new(WindowAggExec::try_new(windows, input, spread)?),
        })
    }

    fn window(&self, expr: &Expr, known: &DFSchema) -> Df<Arc<dyn WindowExpr>> {
        let (name, expr) = match expr {
            Expr::Alias(alias) => {
                (alias.name.clone(), alias.expr.as_ref().clone().unalias_nested().data)
            }
            other => (other.schema_name().to_string(), other.clone()),
        };
        let Expr::WindowFunction(window) = &expr else {
            return Err(broken("a window that is no window function"));
        };
        let WindowFunctionParams {
            args,
            partition_by,
            order_by,
            window_frame,
            null_treatment,
            filter,
            distinct,
        } = &window.params;
        let props = self.setup.execution_props();
        let order = create_physical_sort_exprs(order_by, known, props, &self.subqueries)?;
        let filter = filter.as_ref().map(|filter| self.expr(filter, known)).transpose()?;
        create_window_expr(
            &window.fun,
            name,
            &self.exprs(args, known)?,
            &self.exprs(partition_by, known)?,
            &order,
            Arc::new(window_frame.clone()),
            known.inner().clone(),
            *null_treatment == Some(NullTreatment::IgnoreNulls),
            *distinct,
            filter,
        )
    }

    fn join(&self, join: &Join, left: Operator, right: Operator) -> Df<Operator> {
        let filter = match &join.filter {
            Some(condition) => Some(self.condition(condition, join, &left, &right)?),
            None => None,
        };
        if join.on.is_empty() {
            return Ok(match filter {
                None if join.join_type == JoinType::Inner => {
                    Arc::new(CrossJoinExec::new(left, right))
                }
                filter => Arc::new(NestedLoopJoinExec::try_new(
                    left,
                    right,
                    filter,
                    &join.join_type,
                    None,
                )?),
            });
        }
        let (left_keys, right_keys): (Vec<&Expr>, Vec<&Expr>) =
            join.on.iter().map(|(left, right)| (left, right)).unzip();
        let (n_left, n_right) = (left.schema().fields().len(), right.schema().fields().len());
        let (left, left_keys) = self.with_keys(left, &left_keys, join.left.schema())?;
        let (right, right_keys) = self.with_keys(right, &right_keys, join.right.schema())?;
        let (wide_left, wide_right) = (left.schema().fields().len(), right.schema().fields().len());
        let kept = match (wide_left, wide_right) == (n_left, n_right) {
            true => None,
            false => Some(without_keys(join.join_type, (n_left, wide_left), (n_right, wide_right))),
        };
        let mark = matches!(join.join_type, JoinType::LeftMark | JoinType::RightMark);
        if self.joins == Joins::Sorted && !join.null_aware && !mark {
            let on: Vec<_> = left_keys.into_iter().zip(right_keys).collect();
            let order = vec![SortOptions::default(); on.len()];
            let (null_equality, join_type) = (join.null_equality, join.join_type);
            let joined: Operator = Arc::new(SortMergeJoinExec::try_new(
                left,
                right,
                on,
                filter,
                join_type,
                order,
                null_equality,
            )?);
            return match kept {
                None => Ok(joined),
                Some(kept) => only(joined, &kept),
            };
        }
        let config = self.setup.config();
        let spread =
            config.target_partitions() > 1 && config.repartition_joins() && !join.null_aware;
        let mode = if spread { PartitionMode::Auto } else { PartitionMode::CollectLeft };
        Ok(Arc::new(HashJoinExec::try_new(
            left,
            right,
            left_keys.into_iter().zip(right_keys).collect(),
            filter,
            &join.join_type,
            kept,
            mode,
            join.null_equality,
            join.null_aware,
        )?))
    }

    /// The operator with the keys among its columns: those that are computed are put behind.
    fn with_keys(
        &self,
        operator: Operator,
        keys: &[&Expr],
        known: &DFSchema,
    ) -> Df<(Operator, Vec<Computed>)> {
        let schema = operator.schema();
        let column =
            |idx: usize, name: &str| -> Computed { Arc::new(expressions::Column::new(name, idx)) };
        let mut columns: Vec<ProjectionExpr> = schema
            .fields()
            .iter()
            .enumerate()
            .map(|(idx, field)| {
                let alias = field.name().clone();
                ProjectionExpr { expr: column(idx, &alias), alias }
            })
            .collect();
        let mut found = Vec::with_capacity(keys.len());
        for (n, key) in keys.iter().enumerate() {
            let computed = self.expr(key, known)?;
            if matches!(key, Expr::Column(_)) {
                found.push(computed);
                continue;
            }
            let alias = format!("join key {n}");
            found.push(column(columns.len(), &alias));
            columns.push(ProjectionExpr { expr: computed, alias });
        }
        if columns.len() == schema.fields().len() {
            return Ok((operator, found));
        }
        Ok((Arc::new(ProjectionExec::try_new(columns, operator)?), found))
    }

    /// A join's further condition, over the columns of both sides that it names.
    fn condition(
        &self,
        condition: &Expr,
        join: &Join,
        left: &Operator,
        right: &Operator,
    ) -> Df<JoinFilter> {
        let named = condition.column_refs();
        let positions = |schema: &DFSchema| {
            let found =
                named.iter().filter_map(|column: &&Column| schema.index_of_column(column).ok());
            let mut found: Vec<usize> = found.collect();
            found.sort_unstable();
            found.dedup();
            found
        };
        let (left_idxs, right_idxs) =
            (positions(join.left.schema()), positions(join.right.schema()));
        let (mut qualified, mut fields) = (Vec::new(), Vec::new());
        for (idxs, known, operator) in
            [(&left_idxs, join.left.schema(), left), (&right_idxs, join.right.schema(), right)]
        {
            let schema = operator.schema();
            for &idx in idxs {
                let (qualifier, field) = known.qualified_field(idx);
                qualified.push((qualifier.cloned(), Arc::clone(field)));
                fields.push(schema.field(idx).clone());
            }
        }
        let known = DFSchema::new_with_metadata(qualified, HashMap::new())?;
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let condition = self.expr(condition, &known)?;
        let columns = JoinFilter::build_column_indices(left_idxs, right_idxs);
        Ok(JoinFilter::new(condition, columns, schema))
    }
}

/// The columns of a join's answer, without the keys that were put behind the sides' own columns.
/// Of each side: how many columns are its own, and how many it has with the keys.
fn without_keys(
    kind: JoinType,
    (n_left, wide_left): (usize, usize),
    (n_right, wide_right): (usize, usize),
) -> Vec<usize> {
    match kind {
        JoinType::LeftSemi | JoinType::LeftAnti => (0..n_left).collect(),
        JoinType::RightSemi | JoinType::RightAnti => (0..n_right).collect(),
        // Behind the side's columns stands the mark: was there a partner?
        JoinType::LeftMark => (0..n_left).chain([wide_left]).collect(),
        JoinType::RightMark => (0..n_right).chain([wide_right]).collect(),
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
            (0..n_left).chain(wide_left..wide_left + n_right).collect()
        }
    }
}

/// What is grouped by, and for each grouping which of it is left out.
fn groupings(sets: &GroupingSet) -> Df<(Vec<Expr>, Vec<Vec<bool>>)> {
    Ok(match sets {
        GroupingSet::GroupingSets(sets) => {
            let mut columns: Vec<Expr> = Vec::new();
            for expr in sets.iter().flatten() {
                if !columns.contains(expr) {
                    columns.push(expr.clone());
                }
            }
            let left_out = |set: &Vec<Expr>| columns.iter().map(|c| !set.contains(c)).collect();
            let left_out = sets.iter().map(left_out).collect();
            (columns, left_out)
        }
        GroupingSet::Rollup(columns) => {
            let left_out = |n_kept| (0..columns.len()).map(|idx| idx >= n_kept).collect();
            (columns.clone(), (0..=columns.len()).map(left_out).collect())
        }
        GroupingSet::Cube(columns) => {
            if columns.len() > CUBE_COLUMNS_MAX {
                let what = format!("CUBE is limited to {CUBE_COLUMNS_MAX} elements");
                return Err(DataFusionError::Plan(what));
            }
            let left_out =
                |bits: usize| (0..columns.len()).map(|idx| bits >> idx & 1 == 1).collect();
            (columns.clone(), (0..1 << columns.len()).map(left_out).collect())
        }
    })
}

fn limited(limit: &Limit, input: Operator) -> Df<Operator> {
    let (SkipType::Literal(skip), FetchType::Literal(fetch)) =
        (limit.get_skip_type()?, limit.get_fetch_type()?)
    else {
        let what = "LIMIT or OFFSET by an expression over rows";
        return Err(DataFusionError::NotImplemented(what.to_owned()));
    };
    // Each partition need not bring more than what all together may.
    let input: Operator = match fetch {
        Some(fetch) if input.output_partitioning().partition_count() > 1 => {
            Arc::new(LocalLimitExec::new(input, fetch.saturating_add(skip)))
        }
        _ => input,
    };
    Ok(Arc::new(GlobalLimitExec::new(input, skip, fetch)))
}

fn broken(what: &str) -> DataFusionError {
    DataFusionError::Internal(what.to_owned())
}
