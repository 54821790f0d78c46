//! Names and operators, as DataFusion's planner asks for them.
//!
//! [`Names`] answers what a table, function or type is; [`Operators`] chooses what an operator does by
//! the types of its sides. Rules that differ from DataFusion's own:
//!
//! - A string literal beside a value of another type is read as that type (PostgreSQL's unknown).
//! - `/` on decimals is PostgreSQL's division; `+ - *` on integers are checked.
//! - `date - date` is a number of days, `date ± integer` a date, and `date ± interval` a
//!   timestamp.

use super::batch::BatchRows;
use super::expr::call;
use super::numeric::{self, Op, is_decimal, is_float, is_integer};
use super::series::Series;
use super::setup::Setup;
use super::source::{LastRound, source};
use super::virtual_table::Virtual;
use super::{
    House, evaluated, failure, functions, no_relation, operator, rewrite, shape, single, table,
};
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion_common::DataFusionError;
use datafusion_common::config::ConfigOptions;
use datafusion_common::{DFSchema, ScalarValue, TableReference};
use datafusion_expr::expr::Cast;
use datafusion_expr::planner::{
    ContextProvider, ExprPlanner, PlannerResult, RawBinaryExpr, TypePlanner,
};
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::{
    AggregateUDF, BinaryExpr, Expr, ExprSchemable, HigherOrderUDF, ScalarUDF, TableSource,
    WindowUDF, lit,
};
use datafusion_optimizer::simplify_expressions::ExprSimplifier;
use datafusion_session::Session;
use sql::error::{Error, Result};
use sql::expr::Arithmetic;
use sql::types::{Type, Zone, cast, text};
use sql::views;
use sql::wide::QueryContext;
use sqlparser::ast::{self, BinaryOperator};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

type Df<T> = Result<T, DataFusionError>;

/// What a query's names mean.
pub struct Names<'a> {
    cx: &'a QueryContext,
    house: &'a House,
    setup: Arc<Setup>,
    /// The catalog, when the query asks about it.
    snapshot: Arc<views::Snapshot>,
    planners: Vec<Arc<dyn ExprPlanner>>,
    functions: HashMap<String, Arc<ScalarUDF>>,
    batch_rows: BatchRows,
    /// What a row of all tables together takes, about.
    row_bytes: AtomicUsize,
}

impl<'a> Names<'a> {
    pub fn new(
        cx: &'a QueryContext,
        house: &'a House,
        snapshot: Arc<views::Snapshot>,
    ) -> Names<'a> {
        let setup = &house.setup;
        let zone = cx.view.zone;
        let mut planners: Vec<Arc<dyn ExprPlanner>> = vec![Arc::new(Operators {
            zone,
            extract: evaluated::one("extract", &cx.view),
            power: evaluated::one("power", &cx.view),
            substring: evaluated::one("substring", &cx.view),
        })];
        planners.extend(setup.planners().iter().cloned());
        let functions = functions::of(cx, setup, &snapshot);
        Names {
            cx,
            house,
            setup: setup.clone(),
            snapshot,
            planners,
            functions,
            batch_rows: BatchRows::default(),
            row_bytes: AtomicUsize::new(0),
        }
    }

    /// The size of the query's batches, once all its names were asked for. Expressions add `grown_bytes` to a row.
    pub fn batch_rows(&self, grown_bytes: usize) -> BatchRows {
        let row_bytes = self.row_bytes.load(Ordering::Relaxed).saturating_add(grown_bytes);
        self.batch_rows.fit(row_bytes);
        self.batch_rows.clone()
    }

    fn table(&self, schema: Option<&str>, name: &str) -> Df<Arc<dyn TableSource>> {
        let view = &self.cx.view;
        if let Some(table) = view.table(schema, name) {
            let seen = self.house.seen.clone();
            self.row_bytes.fetch_add(seen.row_bytes(table.relation), Ordering::Relaxed);
            let (reader, batch_rows) = (self.cx.reader.clone(), self.batch_rows.clone());
            let stored = table::Stored::new(table, reader, seen, batch_rows);
            return Ok(source(stored));
        }
        match views::find(schema, name) {
            Some(found) => {
                let cx = self.cx.clone();
                let provider = Virtual::new(found, cx, self.snapshot.clone());
                Ok(source(provider))
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
        if name != "generate_series" {
            let what = format!("the function {name} in FROM");
            return Err(failure::through(Error::unsupported(what)));
        }
        let context = SimplifyContext::builder()
            .with_config_options(self.setup.config().options().clone())
            .build();
        let simplifier = ExprSimplifier::new(context);
        let schema = DFSchema::empty();
        let value = |arg: Expr| match simplifier.simplify(simplifier.coerce(arg, &schema)?)? {
            Expr::Literal(value, _) => Ok(value),
            _ => {
                let what = "generate_series in FROM of values that other rows have";
                Err(failure::through(Error::unsupported(what)))
            }
        };
        let args = args.into_iter().map(value).collect::<Df<Vec<_>>>()?;
        let series = Series::new(&args, self.cx.view.zone, self.batch_rows.clone());
        let series = series.map_err(failure::through)?;
        Ok(source(series))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Df<Arc<dyn TableSource>> {
        Ok(source(LastRound { name: name.to_owned(), schema }))
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
        ours.or_else(|| self.setup.scalar_functions().get(&name).cloned())
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.setup.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        match name {
            "sum" => Some(numeric::total(false)),
            "avg" => Some(numeric::total(true)),
            "single_value" => Some(single::single_value()),
            "every" => self.setup.aggregate_functions().get("bool_and").cloned(),
            "variance" => self.setup.aggregate_functions().get("var_samp").cloned(),
            name => self.setup.aggregate_functions().get(name).cloned(),
        }
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.setup.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.setup.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.setup.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.setup.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.setup.window_functions().keys().cloned().collect()
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
                let state = sql::error::state::UNDEFINED_OBJECT;
                Err(failure::through(Error::new(state, message)))
            }
        }
    }
}

#[derive(Debug)]
struct Operators {
    zone: Zone,
    extract: Arc<ScalarUDF>,
    power: Arc<ScalarUDF>,
    substring: Arc<ScalarUDF>,
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
        if let (DataType::Decimal128(_, scale), sql::types::Datum::Numeric(value)) = (other, &datum)
            && let Ok(exact) = value.rescale(*scale as u8)
            && exact == *value
        {
            return Ok(lit(ScalarValue::Decimal128(Some(exact.mantissa()), 38, *scale)));
        }
        Ok(lit(shape::scalar(&datum, &ty).map_err(failure::through)?))
    }
}

impl Operators {
    /// What neither Arrow nor DataFusion does as PostgreSQL does.
    fn computed(
        &self,
        op: &BinaryOperator,
        left: &Expr,
        right: &Expr,
        a: &DataType,
        b: &DataType,
    ) -> Option<Expr> {
        let op = match op {
            BinaryOperator::Plus => Arithmetic::Add,
            BinaryOperator::Minus => Arithmetic::Subtract,
            BinaryOperator::Multiply => Arithmetic::Multiply,
            BinaryOperator::Divide => Arithmetic::Divide,
            BinaryOperator::PGBitwiseShiftLeft => Arithmetic::ShiftLeft,
            BinaryOperator::PGBitwiseShiftRight => Arithmetic::ShiftRight,
            _ => return None,
        };
        let (mut lt, mut rt) = (shape::type_of_arrow(a), shape::type_of_arrow(b));
        let (mut left, mut right) = (left.clone(), right.clone());
        let turn =
            |expr: Expr, ty: &Type| Expr::Cast(Cast::new(Box::new(expr), shape::arrow_type(ty)));
        let answer = if matches!(op, Arithmetic::ShiftLeft | Arithmetic::ShiftRight) {
            if !is_integer(a) || !matches!(rt, Type::Int2 | Type::Int4) {
                return None;
            }
            (right, rt) = (turn(right, &Type::Int4), Type::Int4);
            lt.clone()
        } else {
            let is_known = |ty: &DataType| !matches!(ty, DataType::Null | DataType::Utf8);
            // Days from a plain date on are left as they are: what they are compared with may be a column.
            let is_plain =
                matches!(a, DataType::Date32) && is_plain_date(&left) && whole_days(&right);
            if is_plain || !is_known(a) || !is_known(b) {
                return None;
            }
            sql::bind::temporal(op, &lt, &rt)?
        };
        let is_instant = |ty: &Type| matches!(ty, Type::Date | Type::Timestamp | Type::TimestampTz);
        if answer == Type::Interval && is_instant(&lt) && lt != rt {
            let common = cast::common(&lt, &rt)?;
            (left, right) = (turn(left, &common), turn(right, &common));
            (lt, rt) = (common.clone(), common);
        }
        let computed = operator::computed(op, lt, rt, answer, self.zone);
        Some(call(computed, vec![left, right]))
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
        if compares {
            // What a cast would refuse stands for the nearest timestamp there is.
            let nearest = |expr: Expr, to: &DataType| {
                let udf = operator::nearest(to.clone(), self.zone);
                call(udf, vec![expr])
            };
            match (&a, &b) {
                (DataType::Date32, DataType::Timestamp(..))
                    if still_a_date(right.clone()) == right =>
                {
                    left = nearest(left, &b);
                }
                (DataType::Timestamp(..), DataType::Date32)
                    if still_a_date(left.clone()) == left =>
                {
                    right = nearest(right, &a);
                }
                (DataType::Timestamp(_, None), DataType::Timestamp(_, Some(_))) => {
                    left = nearest(left, &b);
                }
                (DataType::Timestamp(_, Some(_)), DataType::Timestamp(_, None)) => {
                    right = nearest(right, &a);
                }
                _ => {}
            }
            (a, b) = (left.get_type(schema)?, right.get_type(schema)?);
        }
        if op == PGExp {
            return Ok(PlannerResult::Planned(call(self.power.clone(), vec![left, right])));
        }
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
        if matches!(op, Plus | Minus | Multiply | Divide)
            && (is_float(&a) || is_float(&b))
            && (is_float(&a) || is_number(&a))
            && (is_float(&b) || is_number(&b))
        {
            let ty = match a == DataType::Float32 && b == DataType::Float32 {
                true => DataType::Float32,
                false => DataType::Float64,
            };
            let op = match op {
                Plus => Op::Add,
                Minus => Op::Sub,
                Multiply => Op::Mul,
                _ => Op::Div,
            };
            let wide = |expr: Expr| match expr.get_type(schema) {
                Ok(known) if known == ty => expr,
                _ => Expr::Cast(Cast::new(Box::new(expr), ty.clone())),
            };
            return Ok(planned(call(numeric::checked(op), vec![wide(left), wide(right)])));
        }
        if let Some(computed) = self.computed(&op, &left, &right, &a, &b) {
            return Ok(planned(computed));
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
    fn plan_extract(&self, mut args: Vec<Expr>) -> Df<PlannerResult<Vec<Expr>>> {
        // A word in quotes comes with them.
        if let Some(Expr::Literal(ScalarValue::Utf8(Some(field)), _)) = args.first_mut() {
            *field = field.trim_matches('"').to_owned();
        }
        Ok(PlannerResult::Planned(call(self.extract.clone(), args)))
    }

    fn plan_substring(&self, args: Vec<Expr>) -> Df<PlannerResult<Vec<Expr>>> {
        Ok(PlannerResult::Planned(call(self.substring.clone(), args)))
    }
}

/// A literal of a day that people have calendars for, and not of the ends of time.
fn is_plain_date(expr: &Expr) -> bool {
    const N_DAYS: u32 = 1_000 * 366;
    // The least date, which is -infinity, has no positive counterpart.
    let near = |days: i32| days.unsigned_abs() < N_DAYS;
    match expr {
        Expr::Literal(ScalarValue::Date32(Some(days)), _) => near(*days),
        Expr::Literal(ScalarValue::Utf8(Some(date)), _) => {
            sql::types::datetime::parse_date(date).is_ok_and(near)
        }
        Expr::Cast(Cast { expr, .. }) => is_plain_date(expr),
        _ => false,
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
