//! Names and operators, as DataFusion's planner asks for them.
//!
//! [`Names`] answers what a table, function or type is; [`Operators`] chooses what an operator does by
//! the types of its sides. Rules that differ from DataFusion's own:
//!
//! - A string literal beside a value of another type is read as that type (PostgreSQL's unknown).
//! - `/` on decimals is PostgreSQL's division; `+ - *` on integers are checked.
//! - `date - date` is a number of days, `date ± integer` a date, and `date ± interval` a
//!   timestamp.

use super::expr::call;
use super::numeric::{self, Op, is_decimal, is_integer};
use super::{QueryContext, failure, functions, no_relation, rewrite, shape, single, table};
use crate::error::{Error, Result};
use crate::types::{Type, Zone, text};
use crate::views;
use datafusion::arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::common::{DFSchema, ScalarValue, TableReference};
use datafusion::config::ConfigOptions;
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{GreedyMemoryPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::expr::Cast;
use datafusion::logical_expr::planner::{
    ContextProvider, ExprPlanner, PlannerResult, RawBinaryExpr, TypePlanner,
};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    AggregateUDF, BinaryExpr, Expr, ExprSchemable, HigherOrderUDF, ScalarUDF, TableSource,
    WindowUDF, lit,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::prelude::SessionConfig;
use datafusion::sql::sqlparser::ast::{self, BinaryOperator};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock};

type Df<T> = Result<T, DataFusionError>;

/// For all queries of the process together.
const MEMORY_BYTES_MAX: usize = 512 << 20;
const N_PARTITIONS: usize = 2;
/// How many of the largest consumers an out-of-memory error names.
const N_CONSUMERS_NAMED: NonZeroUsize = NonZeroUsize::new(3).expect("not zero");

/// Functions, rules and limits: made once, never changed.
static STATE: LazyLock<Result<SessionState, String>> = LazyLock::new(|| {
    let mut config = SessionConfig::new()
        .with_target_partitions(N_PARTITIONS)
        .with_information_schema(false)
        .with_create_default_catalog_and_schema(false);
    let options = config.options_mut();
    options.sql_parser.parse_float_as_decimal = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    // A constant that cannot be computed is the user's error, at the user's time: not a rule's.
    options.optimizer.skip_failed_rules = false;
    // A union's branches differ in their fields' metadata, where one is a column and one is none.
    options.execution.skip_physical_aggregate_schema_check = true;
    let pool = TrackConsumersPool::new(GreedyMemoryPool::new(MEMORY_BYTES_MAX), N_CONSUMERS_NAMED);
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(disk)
        .build_arc()
        .map_err(|error| error.to_string())?;
    Ok(SessionStateBuilder::new_with_default_features()
        .with_config(config)
        .with_runtime_env(runtime)
        .build())
});

pub fn state() -> Result<&'static SessionState> {
    let unusable = |error: &String| Error::internal(format!("queries cannot run: {error}"));
    STATE.as_ref().map_err(unusable)
}

pub fn is_aggregate(name: &str) -> bool {
    matches!(name, "every" | "variance" | "single_value")
        || state().is_ok_and(|state| state.aggregate_functions().contains_key(name))
}

/// What a query's names mean.
pub struct Names<'a> {
    cx: &'a QueryContext,
    state: &'static SessionState,
    /// The catalog, when the query asks about it.
    snapshot: Arc<views::Snapshot>,
    planners: Vec<Arc<dyn ExprPlanner>>,
    functions: HashMap<String, Arc<ScalarUDF>>,
}

impl<'a> Names<'a> {
    pub fn new(cx: &'a QueryContext, snapshot: Arc<views::Snapshot>) -> Result<Names<'a>> {
        let state = state()?;
        let zone = cx.view.zone;
        let mut planners: Vec<Arc<dyn ExprPlanner>> = vec![Arc::new(Operators { zone, state })];
        planners.extend(state.expr_planners().iter().cloned());
        let functions = functions::of(cx, &snapshot);
        Ok(Names { cx, state, snapshot, planners, functions })
    }

    fn table(&self, schema: Option<&str>, name: &str) -> Df<Arc<dyn TableSource>> {
        let view = &self.cx.view;
        if let Some(table) = view.table(schema, name) {
            let stored = table::Stored::new(table, self.cx.reader.clone());
            return Ok(provider_as_source(Arc::new(stored)));
        }
        match views::find(schema, name) {
            Some(found) => {
                let cx = self.cx.clone();
                let provider = views::Virtual::new(found, cx, self.snapshot.clone());
                Ok(provider_as_source(Arc::new(provider)))
            }
            None => Err(failure::through(no_relation(schema, name))),
        }
    }
}

impl ContextProvider for Names<'_> {
    fn get_table_source(&self, name: TableReference) -> Df<Arc<dyn TableSource>> {
        self.table(name.schema(), name.table())
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> Df<Arc<dyn TableSource>> {
        let function = self.state.table_functions().get(name).cloned().ok_or_else(|| {
            failure::through(Error::unsupported(format!("the function {name} in FROM")))
        })?;
        let context = SimplifyContext::builder()
            .with_config_options(self.state.config_options().clone())
            .build();
        let simplifier = ExprSimplifier::new(context);
        let schema = DFSchema::empty();
        let args = args
            .into_iter()
            .map(|arg| {
                // Literals are int4 here and int8 there.
                let arg = match arg.get_type(&schema)? {
                    ty if is_integer(&ty) => arg.cast_to(&DataType::Int64, &schema)?,
                    _ => arg,
                };
                simplifier.simplify(simplifier.coerce(arg, &schema)?)
            })
            .collect::<Df<Vec<_>>>()?;
        let args = datafusion::catalog::TableFunctionArgs::new(&args, self.state);
        Ok(provider_as_source(function.create_table_provider_with_args(args)?))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Df<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(Types))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let name = name.to_ascii_lowercase();
        let ours = self.functions.get(&name).cloned();
        ours.or_else(|| self.state.scalar_functions().get(&name).cloned())
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        match name {
            "sum" => Some(numeric::total(false)),
            "avg" => Some(numeric::total(true)),
            "single_value" => Some(single::single_value()),
            "every" => self.state.aggregate_functions().get("bool_and").cloned(),
            "variance" => self.state.aggregate_functions().get("var_samp").cloned(),
            name => self.state.aggregate_functions().get(name).cloned(),
        }
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}

/// SQL's type names.
#[derive(Debug)]
struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, ty: &ast::DataType) -> Df<Option<FieldRef>> {
        let field = |ty: &Type| Some(Arc::new(shape::field("", ty, true, None)));
        match rewrite::type_of(ty) {
            Some(ty) => Ok(field(&ty)),
            None => {
                let message = format!("type \"{ty}\" does not exist");
                let state = crate::error::state::UNDEFINED_OBJECT;
                Err(failure::through(Error::new(state, message)))
            }
        }
    }
}

#[derive(Debug)]
struct Operators {
    zone: Zone,
    state: &'static SessionState,
}

impl Operators {
    /// Reads a string literal as the type of the other side.
    fn resolve(&self, literal: Expr, other: &DataType) -> Df<Expr> {
        let Expr::Literal(ScalarValue::Utf8(Some(value)), _) = &literal else { return Ok(literal) };
        let ty = match other {
            DataType::Decimal128(..) => Type::Numeric(None),
            DataType::Boolean
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Float32
            | DataType::Float64
            | DataType::Date32
            | DataType::Timestamp(..)
            | DataType::Time64(_)
            | DataType::Binary
            | DataType::Interval(_)
            | DataType::List(_) => shape::type_of_arrow(other),
            ty if *ty == shape::NUMERIC => Type::Numeric(None),
            _ => return Ok(literal),
        };
        let datum = text::parse(value, &ty, &self.zone).map_err(failure::through)?;
        // As a plain decimal where that is what it meets, so that key ranges can be told from it.
        if let (DataType::Decimal128(_, scale), crate::types::Datum::Numeric(value)) =
            (other, &datum)
            && let Ok(exact) = value.rescale(*scale as u8)
            && exact == *value
        {
            return Ok(lit(ScalarValue::Decimal128(Some(exact.mantissa()), 38, *scale)));
        }
        Ok(lit(shape::scalar(&datum, &ty).map_err(failure::through)?))
    }
}

impl ExprPlanner for Operators {
    fn plan_binary_op(
        &self,
        raw: RawBinaryExpr,
        schema: &DFSchema,
    ) -> Df<PlannerResult<RawBinaryExpr>> {
        use BinaryOperator::*;
        let RawBinaryExpr { op, mut left, mut right } = raw;
        let (Ok(mut a), Ok(mut b)) = (left.get_type(schema), right.get_type(schema)) else {
            return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right }));
        };
        let compares = matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq);
        let computes = matches!(op, Plus | Minus | Multiply | Divide | Modulo);
        if compares || computes {
            if !matches!(b, DataType::Date32 | DataType::Timestamp(..)) || compares {
                left = self.resolve(left, &b)?;
            }
            if !matches!(a, DataType::Date32 | DataType::Timestamp(..)) || compares {
                right = self.resolve(right, &a)?;
            }
            (a, b) = (left.get_type(schema)?, right.get_type(schema)?);
        }
        let planned = PlannerResult::Planned;
        let is_number = |ty: &DataType| is_integer(ty) || is_decimal(ty);
        if computes && is_number(&a) && is_number(&b) {
            let both_integers = is_integer(&a) && is_integer(&b);
            let any_numeric = a == shape::NUMERIC || b == shape::NUMERIC;
            let numeric_op = match op {
                Plus => Op::Add,
                Minus => Op::Sub,
                Multiply => Op::Mul,
                Divide => Op::Div,
                _ => Op::Rem,
            };
            if both_integers && matches!(op, Plus | Minus | Multiply) {
                return Ok(planned(call(numeric::checked(numeric_op), vec![left, right])));
            }
            let scale = |ty: &DataType| match ty {
                DataType::Decimal128(_, scale) => i32::from(*scale),
                _ => 0,
            };
            // Arrow multiplies within 38 digits after the point.
            let too_long = op == Multiply && scale(&a) + scale(&b) > 30;
            if any_numeric || (op == Divide && !both_integers) || too_long {
                return Ok(planned(call(numeric::operation(numeric_op), vec![left, right])));
            }
        }
        let as_days = |expr: Expr| Expr::Cast(Cast::new(Box::new(expr), DataType::Int32));
        let as_date = |expr: Expr| Expr::Cast(Cast::new(Box::new(expr), DataType::Date32));
        match (&op, &a, &b) {
            (Minus, DataType::Date32, DataType::Date32) => {
                let days = numeric::checked(Op::Sub);
                return Ok(planned(call(days, vec![as_days(left), as_days(right)])));
            }
            (Plus | Minus, DataType::Date32, ty) if is_integer(ty) => {
                let op = numeric::checked(if op == Plus { Op::Add } else { Op::Sub });
                let right = Expr::Cast(Cast::new(Box::new(right), DataType::Int32));
                return Ok(planned(as_date(call(op, vec![as_days(left), right]))));
            }
            (Plus, ty, DataType::Date32) if is_integer(ty) => {
                let left = Expr::Cast(Cast::new(Box::new(left), DataType::Int32));
                let sum = call(numeric::checked(Op::Add), vec![as_days(right), left]);
                return Ok(planned(as_date(sum)));
            }
            (Plus | Minus, DataType::Date32, DataType::Interval(_)) => {
                left = Expr::Cast(Cast::new(Box::new(left), shape::arrow_type(&Type::Timestamp)));
            }
            (Plus, DataType::Interval(_), DataType::Date32) => {
                right = Expr::Cast(Cast::new(Box::new(right), shape::arrow_type(&Type::Timestamp)));
            }
            // What is compared with a date stays a date where it can: then the column is not cast.
            (_, DataType::Date32, DataType::Timestamp(..)) if compares => {
                right = still_a_date(right);
            }
            (_, DataType::Timestamp(..), DataType::Date32) if compares => {
                left = still_a_date(left);
            }
            _ => {}
        }
        Ok(PlannerResult::Original(RawBinaryExpr { op, left, right }))
    }

    /// PostgreSQL's `extract` is numeric, and its seconds have fractions.
    fn plan_extract(&self, args: Vec<Expr>) -> Df<PlannerResult<Vec<Expr>>> {
        let Some(date_part) = self.state.scalar_functions().get("date_part").cloned() else {
            return Ok(PlannerResult::Original(args));
        };
        let [Expr::Literal(ScalarValue::Utf8(Some(field)), _), source] = &args[..] else {
            return Ok(PlannerResult::Original(args));
        };
        let part = |field: &str, ty| {
            let part = call(date_part.clone(), vec![lit(field), source.clone()]);
            Expr::Cast(Cast::new(Box::new(part), ty))
        };
        let field = field.to_ascii_lowercase();
        let whole = DataType::Decimal128(20, 0);
        Ok(PlannerResult::Planned(match field.as_str() {
            "second" | "seconds" => {
                let us = part("microsecond", whole);
                us * lit(ScalarValue::Decimal128(Some(1), 6, 6))
            }
            "millisecond" | "milliseconds" => {
                let us = part("microsecond", whole);
                us * lit(ScalarValue::Decimal128(Some(1), 3, 3))
            }
            "epoch" => part("epoch", DataType::Decimal128(20, 6)),
            field => part(field, whole),
        }))
    }
}

/// Undoes the cast of a date to which whole days are added.
fn still_a_date(expr: Expr) -> Expr {
    if let Expr::BinaryExpr(BinaryExpr { left, op, right }) = &expr
        && let Expr::Cast(Cast { expr: date, .. }) = &**left
        && whole_days(right)
    {
        let (date, right) = (date.clone(), right.clone());
        return Expr::BinaryExpr(BinaryExpr::new(date, *op, right));
    }
    expr
}

/// Whether an interval is a literal of months and days alone.
fn whole_days(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(value)), _) => value.nanoseconds == 0,
        Expr::Literal(ScalarValue::IntervalYearMonth(_), _) => true,
        Expr::Negative(inner) => whole_days(inner),
        _ => false,
    }
}
