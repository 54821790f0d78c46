//! Operators on dates, times and intervals, and shifts: computed by [`sql::expr::Arithmetic`], as on the
//! fast path, row by row. Arrow's kernels know neither PostgreSQL's infinite times nor its ends of time,
//! and a zone's clocks no more.

use super::{failure, shape};
use arrow::datatypes::DataType;
use datafusion_common::{DataFusionError, ScalarValue};
use datafusion_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use sql::Type;
use sql::error::Result;
use sql::expr::Arithmetic;
use sql::types::Zone;
use std::sync::Arc;

type Df<T> = std::result::Result<T, DataFusionError>;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Computed {
    op: Arithmetic,
    left: Type,
    right: Type,
    answer: Type,
    zone: Zone,
    name: String,
    signature: Signature,
}

/// The operator for sides of these types, of which it answers a value of the type `answer`.
pub fn computed(
    op: Arithmetic,
    left: Type,
    right: Type,
    answer: Type,
    zone: Zone,
) -> Arc<ScalarUDF> {
    let (a, b) = (left.short_name(), right.short_name());
    let name = format!("{op:?}_{a}_{b}").to_lowercase();
    let signature = Signature::any(2, Volatility::Stable);
    let computed = Computed { op, left, right, answer, zone, name, signature };
    Arc::new(ScalarUDF::new_from_impl(computed))
}

/// A date or timestamp as another type of timestamp: see [`sql::expr::Function::NearestTimestamp`].
#[derive(Debug, PartialEq, Eq, Hash)]
struct Nearest {
    to: DataType,
    zone: Zone,
    signature: Signature,
}

pub fn nearest(to: DataType, zone: Zone) -> Arc<ScalarUDF> {
    let signature = Signature::any(1, Volatility::Stable);
    Arc::new(ScalarUDF::new_from_impl(Nearest { to, zone, signature }))
}

impl ScalarUDFImpl for Nearest {
    fn name(&self) -> &str {
        "nearest_timestamp"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Df<DataType> {
        Ok(self.to.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Df<ColumnarValue> {
        let is_scalar = matches!(args.args[0], ColumnarValue::Scalar(_));
        let array = args.args[0].to_array(if is_scalar { 1 } else { args.number_rows })?;
        let from = shape::type_of_arrow(array.data_type());
        let to = shape::type_of_arrow(&self.to);
        let build = || -> Result<arrow::array::ArrayRef> {
            let mut out = shape::Builder::new(&to, array.len());
            let mut failed = Ok(());
            shape::each(&array, &from, &mut |datum| {
                if failed.is_ok() {
                    failed = out.push(&datum.nearest_timestamp(&to, &self.zone));
                }
            })?;
            failed?;
            out.finish()
        };
        let result = build().map_err(failure::through)?;
        match is_scalar {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
            false => Ok(ColumnarValue::Array(result)),
        }
    }
}

impl Computed {
    fn rows(&self, args: &[ColumnarValue], n_rows: usize) -> Result<arrow::array::ArrayRef> {
        let mut sides = Vec::with_capacity(2);
        for (arg, ty) in args.iter().zip([&self.left, &self.right]) {
            let array = arg.to_array(n_rows).map_err(failure::from)?;
            let mut datums = Vec::with_capacity(n_rows);
            shape::each(&array, ty, &mut |datum| datums.push(datum))?;
            sides.push(datums);
        }
        let mut out = shape::Builder::new(&self.answer, n_rows);
        for (left, right) in sides[0].iter().zip(&sides[1]) {
            out.push(&self.op.apply(left, right, &self.zone)?)?;
        }
        out.finish()
    }
}

impl ScalarUDFImpl for Computed {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Df<DataType> {
        Ok(shape::arrow_type(&self.answer))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Df<ColumnarValue> {
        let all_scalars = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let n_rows = if all_scalars { 1 } else { args.number_rows };
        let result = self.rows(&args.args, n_rows).map_err(failure::through)?;
        match all_scalars {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
            false => Ok(ColumnarValue::Array(result)),
        }
    }
}
