//! PostgreSQL's `numeric` in DataFusion: operators, functions, `sum` and `avg`.
//!
//! DataFusion types decimals statically; PostgreSQL's quotients and averages choose their scale by
//! the values. So whatever divides answers [`NUMERIC`](shape::NUMERIC), whose values carry
//! their display scale, and whatever meets such a value computes with our own [`Numeric`]. Sums
//! and products of plain decimal columns, which have the same scales in both, stay with Arrow's
//! kernels.
//!
//! Integers add, subtract and multiply checked: DataFusion's own operators wrap around.

use super::{failure, shape};
use arrow::array::*;
use arrow::compute::{cast, kernels};
use arrow::datatypes::{DataType, Decimal256Type, Field, FieldRef, Int64Type, i256};
use datafusion_common::DataFusionError;
use datafusion_common::ScalarValue;
use datafusion_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion_expr::utils::AggregateOrderSensitivity;
use datafusion_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, EmitTo, GroupsAccumulator,
    ReversedUDAF, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion_functions_aggregate::{average, sum};
use sql::error::{Error, Result, state};
use sql::expr::{Arithmetic, float};
use sql::types::Numeric;
use std::sync::Arc;

type Df<T> = Result<T, DataFusionError>;

/// Unary and binary operations on numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Neg,
}

/// An operation that answers [`NUMERIC`](shape::NUMERIC).
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Operation {
    op: Op,
    name: &'static str,
    signature: Signature,
}

pub fn operation(op: Op) -> Arc<ScalarUDF> {
    let name = match op {
        Op::Add => "numeric_add",
        Op::Sub => "numeric_sub",
        Op::Mul => "numeric_mul",
        Op::Div => "numeric_div",
        Op::Rem => "numeric_mod",
        Op::Neg => "numeric_neg",
    };
    let signature = Signature::variadic_any(Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(Operation { op, name, signature }))
}

pub fn is_decimal(ty: &DataType) -> bool {
    matches!(ty, DataType::Decimal128(..) | DataType::Decimal256(..))
}

pub fn is_integer(ty: &DataType) -> bool {
    matches!(ty, DataType::Int16 | DataType::Int32 | DataType::Int64)
}

pub fn is_float(ty: &DataType) -> bool {
    matches!(ty, DataType::Float32 | DataType::Float64)
}

impl ScalarUDFImpl for Operation {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Df<DataType> {
        let n_wanted = match self.op {
            Op::Neg => 1..=1,
            _ => 2..=2,
        };
        if !n_wanted.contains(&types.len()) {
            return Err(failure::through(no_such_function(self.name, types)));
        }
        Ok(shape::NUMERIC)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Df<ColumnarValue> {
        let all_scalars = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let result = self.numeric(&arrays).map_err(failure::through)?;
        match all_scalars {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
            false => Ok(ColumnarValue::Array(result)),
        }
    }
}

impl Operation {
    fn numeric(&self, arrays: &[ArrayRef]) -> Result<ArrayRef> {
        let numbers = arrays.iter().map(reader).collect::<Result<Vec<_>>>()?;
        let n_rows = arrays[0].len();
        let mut out = Decimal256Builder::with_capacity(n_rows).with_data_type(shape::NUMERIC);
        for row in 0..n_rows {
            let a = numbers[0](row)?;
            let b = match numbers.get(1) {
                Some(second) => Some(second(row)?),
                None => None,
            };
            let (Some(a), None | Some(Some(_))) = (a, b) else {
                out.append_null();
                continue;
            };
            out.append_value(shape::pack(&self.apply(a, b.flatten())?)?);
        }
        Ok(Arc::new(out.finish()))
    }

    fn apply(&self, a: Numeric, b: Option<Numeric>) -> Result<Numeric> {
        let b_or_zero = b.unwrap_or(Numeric::ZERO);
        match self.op {
            Op::Add => a.add(&b_or_zero),
            Op::Sub => a.sub(&b_or_zero),
            Op::Mul => a.mul(&b_or_zero),
            Op::Div => a.div(&b_or_zero),
            Op::Rem => a.rem(&b_or_zero),
            Op::Neg => Ok(a.neg()),
        }
    }
}

pub fn no_such_function(name: &str, types: &[DataType]) -> Error {
    let types: Vec<String> = types.iter().map(|ty| shape::type_of_arrow(ty).name()).collect();
    let message = format!("function {name}({}) does not exist", types.join(", "));
    Error::new(state::UNDEFINED_FUNCTION, message)
        .hint("No function matches the given name and argument types.")
}

type Numbers<'a> = Box<dyn Fn(usize) -> Result<Option<Numeric>> + 'a>;

/// Reads an array of any exact numbers.
pub fn reader(array: &ArrayRef) -> Result<Numbers<'_>> {
    use arrow::datatypes::{Decimal128Type, Int16Type, Int32Type};
    macro_rules! numbers {
        ($kind:ty, $make:expr) => {{
            let values = array.as_primitive::<$kind>();
            let make = $make;
            Box::new(move |row| match values.is_null(row) {
                true => Ok(None),
                false => make(values.value(row)).map(Some),
            })
        }};
    }
    Ok(match array.data_type() {
        DataType::Null => Box::new(|_| Ok(None)),
        DataType::Int16 => numbers!(Int16Type, |v| Ok(Numeric::from(i64::from(v)))),
        DataType::Int32 => numbers!(Int32Type, |v| Ok(Numeric::from(i64::from(v)))),
        DataType::Int64 => numbers!(Int64Type, |v| Ok(Numeric::from(v))),
        DataType::Decimal128(_, scale) => {
            let scale = u8::try_from(*scale)
                .map_err(|_| Error::unsupported("a numeric with a negative scale"))?;
            numbers!(Decimal128Type, move |v| Numeric::new(v, scale))
        }
        ty if *ty == shape::NUMERIC => numbers!(Decimal256Type, shape::unpack),
        other => {
            let ty = shape::type_of_arrow(other);
            return Err(Error::new(
                state::DATATYPE_MISMATCH,
                format!("a value of type {ty} is not an exact number"),
            ));
        }
    })
}

/// `+ - *` on integers, failing where the result does not fit the wider operand's type, and `+ - * /` on
/// floats, failing where finite operands make what is infinite or zero.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Checked {
    op: Op,
    name: &'static str,
    signature: Signature,
}

pub fn checked(op: Op) -> Arc<ScalarUDF> {
    let name = match op {
        Op::Sub => "checked_sub",
        Op::Mul => "checked_mul",
        Op::Div => "checked_div",
        _ => "checked_add",
    };
    let signature = Signature::any(2, Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(Checked { op, name, signature }))
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Df<DataType> {
        let widest = types.iter().max_by_key(|ty| ty.primitive_width());
        Ok(widest.cloned().unwrap_or(DataType::Int64))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Df<ColumnarValue> {
        let ty = args.return_type().clone();
        let all_scalars = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let sides = args
            .args
            .iter()
            .map(|arg| arg.cast_to(&ty, None))
            .collect::<Df<Vec<ColumnarValue>>>()?;
        let arrays = ColumnarValue::values_to_arrays(&sides)?;
        if is_float(&ty) {
            let result = self.floats(&arrays, &ty).map_err(failure::through)?;
            return match all_scalars {
                true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
                false => Ok(ColumnarValue::Array(result)),
            };
        }
        let result = match self.op {
            Op::Sub => kernels::numeric::sub(&arrays[0], &arrays[1]),
            Op::Mul => kernels::numeric::mul(&arrays[0], &arrays[1]),
            _ => kernels::numeric::add(&arrays[0], &arrays[1]),
        };
        let result = result.map_err(|_| {
            let name = shape::type_of_arrow(&ty).base_name();
            failure::through(Error::new(state::OUT_OF_RANGE, format!("{name} out of range")))
        })?;
        match all_scalars {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
            false => Ok(ColumnarValue::Array(result)),
        }
    }
}

impl Checked {
    fn floats(&self, arrays: &[ArrayRef], ty: &DataType) -> Result<ArrayRef> {
        use arrow::datatypes::{Float32Type, Float64Type};
        let op = match self.op {
            Op::Sub => Arithmetic::Subtract,
            Op::Mul => Arithmetic::Multiply,
            Op::Div => Arithmetic::Divide,
            _ => Arithmetic::Add,
        };
        Ok(match ty {
            DataType::Float32 => {
                let sides = [0, 1].map(|idx| arrays[idx].as_primitive::<Float32Type>());
                let pairs = sides[0].iter().zip(sides[1].iter());
                let each = pairs.map(|(a, b)| match (a, b) {
                    (Some(a), Some(b)) => {
                        let value = float(op, f64::from(a), f64::from(b))?;
                        sql::types::cast::narrow_float(value).map(Some)
                    }
                    _ => Ok(None),
                });
                Arc::new(each.collect::<Result<Float32Array>>()?)
            }
            _ => {
                let sides = [0, 1].map(|idx| arrays[idx].as_primitive::<Float64Type>());
                let pairs = sides[0].iter().zip(sides[1].iter());
                let each = pairs.map(|(a, b)| match (a, b) {
                    (Some(a), Some(b)) => float(op, a, b).map(Some),
                    _ => Ok(None),
                });
                Arc::new(each.collect::<Result<Float64Array>>()?)
            }
        })
    }
}

/// `sum` and `avg` with PostgreSQL's types: `sum(int4)` is `int8`, `sum(int8)` and `avg` of whatever
/// is exact are `numeric`. Floats are left to DataFusion's own.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Total {
    average: bool,
    inner: Arc<AggregateUDF>,
    signature: Signature,
}

pub fn total(average: bool) -> Arc<AggregateUDF> {
    let inner = if average { average::avg_udaf() } else { sum::sum_udaf() };
    let signature = Signature::user_defined(Volatility::Immutable);
    Arc::new(AggregateUDF::new_from_impl(Total { average, inner, signature }))
}

impl Total {
    /// Whether we compute it ourselves, given the type of its argument.
    fn is_ours(&self, ty: &DataType) -> bool {
        // DataFusion's own sum wraps around beyond 38 digits.
        let may_overflow = matches!(ty, DataType::Decimal128(precision, _) if *precision > 28);
        *ty == shape::NUMERIC || may_overflow || (self.average && is_decimal(ty))
    }

    fn ours(&self, args: &AccumulatorArgs) -> Df<Option<Groups>> {
        let ty = args.expr_fields[0].data_type();
        if !self.is_ours(ty) {
            return Ok(None);
        }
        if args.is_distinct {
            let message = format!("{}(DISTINCT …) beside other aggregates", self.name());
            return Err(failure::through(Error::unsupported(message)));
        }
        Ok(Some(Groups::new(self.average, ty)))
    }

    fn is_narrow(args: &AccumulatorArgs) -> bool {
        matches!(args.expr_fields[0].data_type(), DataType::Int16 | DataType::Int32)
    }
}

impl AggregateUDFImpl for Total {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    /// What it gives is kept when it is asked again.
    fn coerce_types(&self, types: &[DataType]) -> Df<Vec<DataType>> {
        let [ty] = types else {
            return Err(failure::through(no_such_function(self.name(), types)));
        };
        let coerced = match ty {
            DataType::Int16 | DataType::Int32 if !self.average => ty.clone(),
            DataType::Int8 | DataType::UInt8 | DataType::UInt16 if !self.average => DataType::Int32,
            ty if ty.is_integer() => DataType::Decimal128(20, 0),
            DataType::Decimal256(..) => shape::NUMERIC,
            DataType::Decimal128(..) => ty.clone(),
            DataType::Null => DataType::Decimal128(20, 0),
            ty if is_float(ty) => DataType::Float64,
            DataType::Duration(_) => ty.clone(),
            DataType::Interval(_) if !self.average => ty.clone(),
            _ => return Err(failure::through(no_such_function(self.name(), types))),
        };
        Ok(vec![coerced])
    }

    fn return_type(&self, types: &[DataType]) -> Df<DataType> {
        match &types[0] {
            ty if self.is_ours(ty) => Ok(shape::NUMERIC),
            DataType::Int16 | DataType::Int32 => Ok(DataType::Int64),
            // All the room there is: a sum must not overflow for want of declared digits.
            DataType::Decimal128(_, scale) => Ok(DataType::Decimal128(38, *scale)),
            ty => self.inner.return_type(std::slice::from_ref(ty)),
        }
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Df<Box<dyn Accumulator>> {
        if let Some(groups) = self.ours(&args)? {
            return Ok(Box::new(One(groups)));
        }
        let narrow = Total::is_narrow(&args);
        let inner = self.inner.accumulator(args)?;
        Ok(if narrow { Box::new(Widened(inner)) } else { inner })
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Df<Box<dyn Accumulator>> {
        if let Some(groups) = self.ours(&args)? {
            return Ok(Box::new(One(groups)));
        }
        let narrow = Total::is_narrow(&args);
        let inner = self.inner.create_sliding_accumulator(args)?;
        Ok(if narrow { Box::new(Widened(inner)) } else { inner })
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Df<Vec<FieldRef>> {
        if !self.is_ours(args.input_fields[0].data_type()) {
            return self.inner.state_fields(args);
        }
        let field =
            |part: &str, ty| Arc::new(Field::new(format!("{}[{part}]", args.name), ty, true));
        Ok(vec![
            field("sum", SUM_TYPE),
            field("count", DataType::Int64),
            field("scale", DataType::Int64),
        ])
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.is_ours(args.expr_fields[0].data_type())
            || self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Df<Box<dyn GroupsAccumulator>> {
        if let Some(groups) = self.ours(&args)? {
            return Ok(Box::new(groups));
        }
        let narrow = Total::is_narrow(&args);
        let inner = self.inner.create_groups_accumulator(args)?;
        Ok(if narrow { Box::new(WidenedGroups(inner)) } else { inner })
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

fn widen(values: &[ArrayRef]) -> Df<Vec<ArrayRef>> {
    Ok(vec![cast(&values[0], &DataType::Int64)?])
}

/// Sums `int2` and `int4` as `int8`.
#[derive(Debug)]
struct Widened(Box<dyn Accumulator>);

impl Accumulator for Widened {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Df<()> {
        self.0.update_batch(&widen(values)?)
    }

    fn evaluate(&mut self) -> Df<ScalarValue> {
        self.0.evaluate()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn state(&mut self) -> Df<Vec<ScalarValue>> {
        self.0.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Df<()> {
        self.0.merge_batch(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Df<()> {
        self.0.retract_batch(&widen(values)?)
    }

    fn supports_retract_batch(&self) -> bool {
        self.0.supports_retract_batch()
    }
}

struct WidenedGroups(Box<dyn GroupsAccumulator>);

impl GroupsAccumulator for WidenedGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        n_groups: usize,
    ) -> Df<()> {
        self.0.update_batch(&widen(values)?, group_indices, filter, n_groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Df<ArrayRef> {
        self.0.evaluate(emit_to)
    }

    fn state(&mut self, emit_to: EmitTo) -> Df<Vec<ArrayRef>> {
        self.0.state(emit_to)
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        n_groups: usize,
    ) -> Df<()> {
        self.0.merge_batch(values, group_indices, n_groups)
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Df<Vec<ArrayRef>> {
        self.0.convert_to_state(&widen(values)?, filter)
    }

    fn size(&self) -> usize {
        self.0.size()
    }
}

/// How partial sums travel: as plain integers, the scale being known to both ends.
const SUM_TYPE: DataType = DataType::Decimal256(76, 0);

/// Sums and counts per group.
#[derive(Debug)]
struct Groups {
    average: bool,
    /// The input's declared scale; none for [`shape::NUMERIC`], whose values say their own.
    scale: Option<u8>,
    sums: Vec<i256>,
    counts: Vec<i64>,
    /// The largest display scale seen.
    scales: Vec<u8>,
}

impl Groups {
    fn new(average: bool, ty: &DataType) -> Groups {
        let scale = match ty {
            DataType::Decimal128(_, scale) => Some(u8::try_from(*scale).unwrap_or(0)),
            _ => None,
        };
        Groups { average, scale, sums: Vec::new(), counts: Vec::new(), scales: Vec::new() }
    }

    fn resize(&mut self, n_groups: usize) {
        self.sums.resize(n_groups, i256::ZERO);
        self.counts.resize(n_groups, 0);
        self.scales.resize(n_groups, self.scale.unwrap_or(0));
    }

    fn add(&mut self, group: usize, value: i256, sign: i64) {
        let (value, scale) = match self.scale {
            Some(scale) => (value, scale),
            None => {
                let bare = shape::strip(value);
                (bare, value.wrapping_sub(bare).as_i128() as u8)
            }
        };
        // 256 bits hold the sum of more rows than there can be.
        self.sums[group] = match sign {
            1 => self.sums[group].wrapping_add(value),
            _ => self.sums[group].wrapping_sub(value),
        };
        self.counts[group] += sign;
        self.scales[group] = self.scales[group].max(scale);
    }

    fn each(array: &ArrayRef, mut take: impl FnMut(usize, i256)) -> Df<()> {
        match array.data_type() {
            DataType::Decimal128(..) => {
                let values = array.as_primitive::<arrow::datatypes::Decimal128Type>();
                for (row, value) in values.iter().enumerate() {
                    if let Some(value) = value {
                        take(row, i256::from_i128(value));
                    }
                }
            }
            DataType::Decimal256(..) => {
                for (row, value) in array.as_primitive::<Decimal256Type>().iter().enumerate() {
                    if let Some(value) = value {
                        take(row, value);
                    }
                }
            }
            other => {
                let error = Error::internal(format!("a sum of {other} is not planned so"));
                return Err(failure::through(error));
            }
        }
        Ok(())
    }

    fn result(&self, sum: i256, count: i64, scale: u8) -> Result<Option<i256>> {
        if count == 0 {
            return Ok(None);
        }
        let too_large = || Error::new(state::OUT_OF_RANGE, "value overflows numeric format");
        let sum = match self.scale {
            Some(scale) => Numeric::new(sum.to_i128().ok_or_else(too_large)?, scale)?,
            None => {
                let packed = sum.wrapping_add(i256::from_i128(i128::from(scale)));
                if !self.average {
                    return Ok(Some(packed));
                }
                shape::unpack(packed)?
            }
        };
        if !self.average {
            return shape::pack(&sum).map(Some);
        }
        shape::pack(&sum.div(&Numeric::from(count))?).map(Some)
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        n_groups: usize,
    ) -> Df<()> {
        self.resize(n_groups);
        Groups::each(&values[0], |row, value| {
            if filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                self.add(group_indices[row], value, 1);
            }
        })
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Df<ArrayRef> {
        let sums = emit_to.take_needed(&mut self.sums);
        let counts = emit_to.take_needed(&mut self.counts);
        let scales = emit_to.take_needed(&mut self.scales);
        let mut out = Decimal256Builder::with_capacity(sums.len()).with_data_type(shape::NUMERIC);
        for ((sum, count), scale) in sums.into_iter().zip(counts).zip(scales) {
            out.append_option(self.result(sum, count, scale).map_err(failure::through)?);
        }
        Ok(Arc::new(out.finish()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Df<Vec<ArrayRef>> {
        let sums = emit_to.take_needed(&mut self.sums);
        let counts = emit_to.take_needed(&mut self.counts);
        let scales = emit_to.take_needed(&mut self.scales);
        let sums = Decimal256Array::from_iter_values(sums).with_data_type(SUM_TYPE);
        let scales = Int64Array::from_iter_values(scales.into_iter().map(i64::from));
        Ok(vec![Arc::new(sums), Arc::new(Int64Array::from(counts)), Arc::new(scales)])
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        n_groups: usize,
    ) -> Df<()> {
        self.resize(n_groups);
        let sums = values[0].as_primitive::<Decimal256Type>();
        let counts = values[1].as_primitive::<Int64Type>();
        let scales = values[2].as_primitive::<Int64Type>();
        for (row, &group) in group_indices.iter().enumerate() {
            if sums.is_valid(row) {
                self.sums[group] = self.sums[group].wrapping_add(sums.value(row));
                self.counts[group] += counts.value(row);
                self.scales[group] = self.scales[group].max(scales.value(row) as u8);
            }
        }
        Ok(())
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Df<Vec<ArrayRef>> {
        let mut each = Groups { sums: vec![], counts: vec![], scales: vec![], ..*self };
        let n_rows = values[0].len();
        let own: Vec<usize> = (0..n_rows).collect();
        each.update_batch(values, &own, filter, n_rows)?;
        each.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        self.sums.capacity() * 32 + self.counts.capacity() * 8 + self.scales.capacity()
    }
}

/// The same for a single group.
#[derive(Debug)]
struct One(Groups);

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Df<()> {
        self.0.resize(1);
        Groups::each(&values[0], |_, value| self.0.add(0, value, 1))
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Df<()> {
        self.0.resize(1);
        Groups::each(&values[0], |_, value| self.0.add(0, value, -1))
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Df<ScalarValue> {
        self.0.resize(1);
        let result = self.0.result(self.0.sums[0], self.0.counts[0], self.0.scales[0]);
        Ok(ScalarValue::Decimal256(result.map_err(failure::through)?, 76, 40))
    }

    fn size(&self) -> usize {
        size_of::<Groups>()
    }

    fn state(&mut self) -> Df<Vec<ScalarValue>> {
        self.0.resize(1);
        Ok(vec![
            ScalarValue::Decimal256(Some(self.0.sums[0]), 76, 0),
            ScalarValue::Int64(Some(self.0.counts[0])),
            ScalarValue::Int64(Some(i64::from(self.0.scales[0]))),
        ])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Df<()> {
        let all_in_one = vec![0; states[0].len()];
        self.0.merge_batch(states, &all_in_one, 1)
    }
}

/// Takes the display scale off, where values are compared.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Strip {
    signature: Signature,
}

pub fn strip() -> Arc<ScalarUDF> {
    let signature = Signature::any(1, Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(Strip { signature }))
}

impl ScalarUDFImpl for Strip {
    fn name(&self) -> &str {
        "numeric_strip"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Df<DataType> {
        Ok(shape::NUMERIC)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Df<ColumnarValue> {
        match &args.args[0] {
            ColumnarValue::Scalar(ScalarValue::Decimal256(value, precision, scale)) => {
                let value = value.map(shape::strip);
                Ok(ColumnarValue::Scalar(ScalarValue::Decimal256(value, *precision, *scale)))
            }
            other => {
                let array = other.to_array(args.number_rows)?;
                let values = array.as_primitive::<Decimal256Type>();
                let bare: Decimal256Array = values.unary(shape::strip);
                Ok(ColumnarValue::Array(Arc::new(bare.with_data_type(shape::NUMERIC))))
            }
        }
    }
}
