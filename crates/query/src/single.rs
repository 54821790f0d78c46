//! `single_value`: what a scalar subquery answers, as an aggregate.
//!
//! No row is NULL, one row is its value, more are the error 21000. As an aggregate, a correlated
//! subquery can be joined to the row outside, which DataFusion does for nothing else.

use super::failure;
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type};
use datafusion_common::DataFusionError;
use datafusion_common::ScalarValue;
use datafusion_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion_expr::utils::AggregateOrderSensitivity;
use datafusion_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};
use sql::error::{Error, state};
use std::sync::Arc;

type Df<T> = Result<T, DataFusionError>;

pub fn single_value() -> Arc<AggregateUDF> {
    let signature = Signature::any(1, Volatility::Immutable);
    Arc::new(AggregateUDF::new_from_impl(SingleValue { signature }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SingleValue {
    signature: Signature,
}

impl AggregateUDFImpl for SingleValue {
    fn name(&self) -> &str {
        "single_value"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Df<DataType> {
        Ok(types[0].clone())
    }

    /// The value's own SQL type goes with it.
    fn return_field(&self, fields: &[FieldRef]) -> Df<FieldRef> {
        Ok(Arc::new(fields[0].as_ref().clone().with_name(self.name()).with_nullable(true)))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Df<Vec<FieldRef>> {
        let value = Field::new(format!("{}[value]", args.name), args.return_type().clone(), true);
        let n_rows = Field::new(format!("{}[rows]", args.name), DataType::Int64, true);
        Ok(vec![Arc::new(value), Arc::new(n_rows)])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Df<Box<dyn Accumulator>> {
        let value = ScalarValue::try_from(args.return_field.data_type())?;
        Ok(Box::new(Single { value, n_rows: 0 }))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

#[derive(Debug)]
struct Single {
    value: ScalarValue,
    n_rows: usize,
}

impl Single {
    fn take(&mut self, array: &ArrayRef, row: usize, n_rows: usize) -> Df<()> {
        self.n_rows += n_rows;
        if self.n_rows > 1 {
            let message = "more than one row returned by a subquery used as an expression";
            return Err(failure::through(Error::new(state::CARDINALITY_VIOLATION, message)));
        }
        if n_rows == 1 {
            self.value = ScalarValue::try_from_array(array, row)?;
        }
        Ok(())
    }
}

impl Accumulator for Single {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Df<()> {
        self.take(&values[0], 0, values[0].len())
    }

    fn evaluate(&mut self) -> Df<ScalarValue> {
        Ok(self.value.clone())
    }

    fn size(&self) -> usize {
        size_of::<Single>() + self.value.size()
    }

    fn state(&mut self) -> Df<Vec<ScalarValue>> {
        Ok(vec![self.value.clone(), ScalarValue::Int64(Some(self.n_rows as i64))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Df<()> {
        let counts = states[1].as_primitive::<Int64Type>();
        (0..counts.len()).try_for_each(|row| {
            let n_rows = if counts.is_null(row) { 0 } else { counts.value(row) as usize };
            self.take(&states[0], row, n_rows)
        })
    }
}
