//! A planned query's expressions, corrected after DataFusion has settled their types.
//!
//! DataFusion inserts casts and compares decimals by their digits. Two things must change before
//! its optimizer runs: values of the type [`NUMERIC`](shape::NUMERIC) lose their display scale where
//! they are compared, and casts that Arrow does differently from PostgreSQL (text to and from
//! anything, rounding to integers, time zones) are done by [`sql::types::cast`].

use super::{failure, numeric, operator, shape};
use arrow::datatypes::{DataType, FieldRef};
use datafusion_common::DataFusionError;
use datafusion_common::tree_node::{Transformed, TreeNode};
use datafusion_common::{DFSchema, ScalarValue};
use datafusion_expr::expr::{Between, InList, ScalarFunction};
use datafusion_expr::expr_rewriter::NamePreserver;
use datafusion_expr::utils::merge_schema;
use datafusion_expr::{
    BinaryExpr, Cast, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TryCast, Volatility,
};
use sql::error::{Error, state};
use sql::expr::Arithmetic;
use sql::types::{Datum, Interval, Type, Zone, cast, text};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

type Df<T> = Result<T, DataFusionError>;

/// Corrects every expression of an analyzed plan.
pub fn correct(plan: LogicalPlan, zone: &Zone) -> Df<LogicalPlan> {
    let corrected = plan.transform_up_with_subqueries(|plan| {
        let mut schema = merge_schema(&plan.inputs());
        if let LogicalPlan::TableScan(scan) = &plan {
            let source = scan.source.schema();
            schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &source)?);
        }
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let expr = expr.transform_up(|expr| correct_one(expr, &schema, zone))?;
            Ok(expr.update_data(|expr| name.restore(expr)))
        })?
        .map_data(LogicalPlan::recompute_schema)
    })?;
    Ok(corrected.data)
}

fn correct_one(expr: Expr, schema: &DFSchema, zone: &Zone) -> Df<Transformed<Expr>> {
    let is_numeric =
        |expr: &Expr| Ok::<_, DataFusionError>(expr.get_type(schema)? == shape::NUMERIC);
    let strip = |expr: Expr| match is_numeric(&expr)? {
        true => Ok::<_, DataFusionError>(call(numeric::strip(), vec![expr])),
        false => Ok(expr),
    };
    Ok(match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if compares(op) && (is_numeric(&left)? || is_numeric(&right)?) =>
        {
            let (left, right) = (strip(*left)?, strip(*right)?);
            Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right))))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if compares(op) => {
            let (new_left, new_right) =
                (respelled(&left, &right, schema)?, respelled(&right, &left, schema)?);
            let is_new = new_left.is_some() || new_right.is_some();
            let (left, right) =
                (new_left.map_or(left, Box::new), new_right.map_or(right, Box::new));
            let expr = Expr::BinaryExpr(BinaryExpr::new(left, op, right));
            if is_new { Transformed::yes(expr) } else { Transformed::no(expr) }
        }
        Expr::Negative(inner) if is_numeric(&inner)? => {
            Transformed::yes(call(numeric::operation(numeric::Op::Neg), vec![*inner]))
        }
        Expr::Negative(inner) if numeric::is_integer(&inner.get_type(schema)?) => {
            let zero = ScalarValue::new_zero(&inner.get_type(schema)?)?;
            let zero = Expr::Literal(zero, None);
            Transformed::yes(call(numeric::checked(numeric::Op::Sub), vec![zero, *inner]))
        }
        Expr::Negative(inner) if matches!(inner.get_type(schema)?, DataType::Interval(_)) => {
            let zero = shape::scalar(&Datum::Interval(Interval::default()), &Type::Interval);
            let zero = Expr::Literal(zero.map_err(failure::through)?, None);
            let (ty, op) = (Type::Interval, Arithmetic::Subtract);
            let minus = operator::computed(op, ty.clone(), ty.clone(), ty, *zone);
            Transformed::yes(call(minus, vec![zero, *inner]))
        }
        Expr::Between(Between { expr, negated, low, high }) if is_numeric(&expr)? => {
            let (expr, low, high) = (strip(*expr)?, strip(*low)?, strip(*high)?);
            let between = Between::new(Box::new(expr), negated, Box::new(low), Box::new(high));
            Transformed::yes(Expr::Between(between))
        }
        Expr::InList(InList { expr, list, negated }) if is_numeric(&expr)? => {
            let list = list.into_iter().map(&strip).collect::<Df<Vec<_>>>()?;
            Transformed::yes(Expr::InList(InList::new(Box::new(strip(*expr)?), list, negated)))
        }
        Expr::InList(InList { expr, mut list, negated }) => {
            let mut is_new = false;
            for item in &mut list {
                if let Some(new) = respelled(item, &expr, schema)? {
                    *item = new;
                    is_new = true;
                }
            }
            let expr = Expr::InList(InList::new(expr, list, negated));
            if is_new { Transformed::yes(expr) } else { Transformed::no(expr) }
        }
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field }) => {
            let from = expr.get_type(schema)?;
            if is_arrows(&from, field.data_type()) {
                return Ok(Transformed::no(Expr::Cast(Cast { expr, field })));
            }
            let (_, from) = expr.to_field(schema)?;
            Transformed::yes(call(Conversion::udf(&from, &field, zone)?, vec![*expr]))
        }
        other => Transformed::no(other),
    })
}

/// A text literal beside a column whose values have one spelling only, in that spelling.
fn respelled(literal: &Expr, column: &Expr, schema: &DFSchema) -> Df<Option<Expr>> {
    let (Expr::Literal(ScalarValue::Utf8(Some(written)), metadata), Expr::Column(_)) =
        (literal, column)
    else {
        return Ok(None);
    };
    let (_, field) = column.to_field(schema)?;
    let spelling = match shape::type_of(&field).0 {
        Type::Uuid => {
            let uuid = text::parse(written, &Type::Uuid, &Zone::UTC).map_err(failure::through)?;
            text::to_string(&uuid, &Type::Uuid, &Zone::UTC)
        }
        Type::Char(_) => written.trim_end_matches(' ').to_owned(),
        _ => return Ok(None),
    };
    let is_new = spelling != *written;
    Ok(is_new.then(|| Expr::Literal(ScalarValue::Utf8(Some(spelling)), metadata.clone())))
}

fn compares(op: Operator) -> bool {
    use Operator::*;
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// Whether Arrow's cast does what PostgreSQL's does.
fn is_arrows(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    let exact = |ty: &DataType| ty.is_integer() || matches!(ty, Decimal128(..));
    let float = |ty: &DataType| matches!(ty, Float32 | Float64);
    let width = |ty: &DataType| ty.primitive_width().unwrap_or_default();
    match (from, to) {
        (a, b) if a == b => true,
        (Null, _) => true,
        (a, b) if *a == shape::NUMERIC || *b == shape::NUMERIC => false,
        (a, b) if a.is_integer() && b.is_integer() => width(a) <= width(b),
        (a, Decimal128(..)) if a.is_integer() => true,
        (Decimal128(_, a), Decimal128(_, b)) => a <= b,
        (a, b) if exact(a) && float(b) => true,
        (Float32, Float64) => true,
        (Decimal128(..) | Decimal256(..), Decimal256(..)) => true,
        (Utf8, LargeUtf8 | Utf8View) | (LargeUtf8 | Utf8View, Utf8) => true,
        // Element by element.
        (List(a), List(b)) => is_arrows(a.data_type(), b.data_type()),
        // DataFusion's own business.
        (Timestamp(_, None), Timestamp(_, None)) => true,
        (Timestamp(_, Some(_)), Timestamp(_, Some(_))) => true,
        (Interval(_), Interval(_)) | (Duration(_), _) | (_, Duration(_)) => true,
        (Date32, Int32) | (Int32, Date32) => true,
        (Date32, Date64) | (Date64, Date32) => true,
        _ => false,
    }
}

pub fn call(function: Arc<ScalarUDF>, args: Vec<Expr>) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(function, args))
}

/// A cast done PostgreSQL's way, value by value.
#[derive(Debug, PartialEq, Eq)]
pub struct Conversion {
    from: Type,
    to: Type,
    to_arrow: DataType,
    zone: Zone,
    name: String,
    signature: Signature,
}

impl Hash for Conversion {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.to_arrow.hash(state);
    }
}

impl Conversion {
    pub fn udf(from: &FieldRef, to: &FieldRef, zone: &Zone) -> Df<Arc<ScalarUDF>> {
        let (from, _) = shape::type_of(from);
        // A cast's field keeps what it was cast from in its metadata: only the Arrow type counts.
        let to_arrow = to.data_type().clone();
        let to = match &to_arrow {
            ty if *ty == shape::NUMERIC => Type::Numeric(None),
            ty => shape::type_of_arrow(ty),
        };
        if cast::context(&from, &to).is_none() {
            let message = format!("cannot cast type {from} to {to}");
            return Err(failure::through(Error::new(state::CANNOT_COERCE, message)));
        }
        let name = format!("cast_{}_as_{}", from.short_name(), to.short_name());
        let signature = Signature::any(1, Volatility::Stable);
        let conversion = Conversion { from, to, to_arrow, zone: *zone, name, signature };
        Ok(Arc::new(ScalarUDF::new_from_impl(conversion)))
    }
}

impl ScalarUDFImpl for Conversion {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Df<DataType> {
        Ok(self.to_arrow.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Df<ColumnarValue> {
        let arg = &args.args[0];
        let is_scalar = matches!(arg, ColumnarValue::Scalar(_));
        let array = arg.to_array(if is_scalar { 1 } else { args.number_rows })?;
        let mut out = shape::Builder::new(&self.to, array.len());
        let mut failed = None;
        let mut take = |datum| {
            if failed.is_none() {
                let cast = cast::cast(datum, &self.from, &self.to, &self.zone, true);
                failed = cast.and_then(|datum| out.push(&datum)).err();
            }
        };
        shape::each(&array, &self.from, &mut take).map_err(failure::through)?;
        if let Some(error) = failed {
            return Err(failure::through(error));
        }
        let result = out.finish().map_err(failure::through)?;
        // Arrow types that share one SQL type (int4 and uint16, say).
        let result = arrow::compute::cast(&result, &self.to_arrow)?;
        match is_scalar {
            true => {
                let value = datafusion_common::ScalarValue::try_from_array(&result, 0)?;
                Ok(ColumnarValue::Scalar(value))
            }
            false => Ok(ColumnarValue::Array(result)),
        }
    }
}
