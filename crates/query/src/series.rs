//! `generate_series(start, stop [, step])` in FROM, as PostgreSQL's: integers, numeric, timestamps.
//!
//! Rows are made a batch at a time, as they are asked for, so that a series has no length that costs
//! memory. A timestamptz walks by the session's calendar: a day across a change of clocks is one of 23 or 25 hours.

use super::batch::BatchRows;
use super::{failure, shape};
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion_common::{DataFusionError, ScalarValue};
use datafusion_expr::{Expr, TableType};
use datafusion_physical_plan::ExecutionPlan;
use datafusion_physical_plan::memory::{LazyBatchGenerator, LazyMemoryExec};
use datafusion_session::{Session, TableProvider};
use parking_lot::RwLock;
use sql::error::{Error, Result, state};
use sql::expr::Arithmetic;
use sql::types::{Datum, Type, Zone, cast};
use std::any::Any;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// A series as a table of one column.
#[derive(Debug)]
pub struct Series {
    ty: Type,
    schema: SchemaRef,
    walk: Walk,
    batch_rows: BatchRows,
}

/// From here to there.
#[derive(Clone, Debug)]
struct Walk {
    /// None: it is over.
    next: Option<Datum>,
    stop: Datum,
    step: Datum,
    falls: bool,
    zone: Zone,
}

impl Series {
    /// `args` are the values in parentheses.
    pub fn new(args: &[ScalarValue], zone: Zone, batch_rows: BatchRows) -> Result<Series> {
        let mut values = Vec::with_capacity(args.len());
        for arg in args {
            let ty = match arg.data_type() {
                DataType::Null => Type::Text,
                ty => shape::type_of_arrow(&ty),
            };
            let array = arg.to_array().map_err(failure::from)?;
            values.push((shape::datum(&array, 0, &ty)?, ty));
        }
        let types: Vec<&Type> = values.iter().map(|(_, ty)| ty).collect();
        let (ty, step_ty) = types_of(&types).ok_or_else(|| no_such(&values))?;
        let is_null = values.iter().any(|(value, _)| value.is_null());
        let mut values = values.into_iter();
        let mut take = |to: &Type| match values.next() {
            Some((value, from)) if !value.is_null() => cast::cast(value, &from, to, &zone, false),
            _ => Ok(Datum::Null),
        };
        let (start, stop) = (take(&ty)?, take(&ty)?);
        let step = if args.len() == 3 { take(&step_ty)? } else { one(&ty) };
        let falls = match (is_null, sign(&step)) {
            (false, Ordering::Equal) => {
                let message = "step size cannot equal zero";
                return Err(Error::new(state::INVALID_PARAMETER, message));
            }
            (_, sign) => sign == Ordering::Less,
        };
        let next = (!is_null).then_some(start);
        let field = shape::field("generate_series", &ty, true, None);
        let schema = Arc::new(Schema::new(vec![field]));
        Ok(Series { ty, schema, walk: Walk { next, stop, step, falls, zone }, batch_rows })
    }
}

/// The type of the column and that of the step. A text is a literal whose type the others tell.
fn types_of(types: &[&Type]) -> Option<(Type, Type)> {
    let all = |types: &[&Type], fits: fn(&Type) -> bool| {
        let mut known = types.iter().filter(|ty| !ty.is_text()).peekable();
        known.peek().is_some() && known.all(|ty| fits(ty))
    };
    let is_time = |ty: &Type| matches!(ty, Type::Date | Type::Timestamp | Type::TimestampTz);
    if !matches!(types.len(), 2 | 3) {
        return None;
    }
    if all(types, Type::is_integer) {
        let is_wide = types.iter().any(|ty| **ty == Type::Int8);
        let ty = if is_wide { Type::Int8 } else { Type::Int4 };
        return Some((ty.clone(), ty));
    }
    if all(types, |ty| ty.is_integer() || matches!(ty, Type::Numeric(_))) {
        return Some((Type::Numeric(None), Type::Numeric(None)));
    }
    let [start, stop, step] = types else { return None };
    if !all(&[start, stop], is_time) || !(step.is_text() || **step == Type::Interval) {
        return None;
    }
    let is_local = all(&[start, stop], |ty| *ty == Type::Timestamp);
    Some((if is_local { Type::Timestamp } else { Type::TimestampTz }, Type::Interval))
}

fn no_such(values: &[(Datum, Type)]) -> Error {
    let types: Vec<String> = values.iter().map(|(_, ty)| ty.name()).collect();
    let message = format!("function generate_series({}) does not exist", types.join(", "));
    Error::new(state::UNDEFINED_FUNCTION, message)
        .hint("It takes integers, numeric, or two timestamps and an interval.")
}

fn one(ty: &Type) -> Datum {
    match ty {
        Type::Int4 => Datum::Int4(1),
        Type::Numeric(_) => Datum::Numeric(1.into()),
        _ => Datum::Int8(1),
    }
}

fn sign(step: &Datum) -> Ordering {
    match step {
        Datum::Interval(step) => step.span_us().cmp(&0),
        Datum::Numeric(step) if step.is_zero() => Ordering::Equal,
        Datum::Numeric(step) if step.is_negative() => Ordering::Less,
        step => step.as_i64().map_or(Ordering::Greater, |step| step.cmp(&0)),
    }
}

impl Walk {
    /// The next value; none at the end.
    fn step(&mut self) -> Result<Option<Datum>> {
        let Some(value) = self.next.take() else { return Ok(None) };
        let over = if self.falls { Ordering::Less } else { Ordering::Greater };
        if value.order(&self.stop) == over {
            return Ok(None);
        }
        self.next = match Arithmetic::Add.apply(&value, &self.step, &self.zone) {
            Ok(next) => Some(next),
            // The series ends where its type does.
            Err(_) if !matches!(self.step, Datum::Interval(_)) => None,
            Err(error) => return Err(error),
        };
        Ok(Some(value))
    }
}

#[async_trait::async_trait]
impl TableProvider for Series {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let rows = Rows {
            batch_rows: self.batch_rows.clone(),
            ty: self.ty.clone(),
            schema: self.schema.clone(),
            whole: self.walk.clone(),
            walk: self.walk.clone(),
        };
        let rows: Arc<RwLock<dyn LazyBatchGenerator>> = Arc::new(RwLock::new(rows));
        let exec = LazyMemoryExec::try_new(self.schema.clone(), vec![rows])?;
        Ok(Arc::new(exec.with_projection(projection.cloned())))
    }
}

/// A walk under way.
#[derive(Debug)]
struct Rows {
    batch_rows: BatchRows,
    ty: Type,
    schema: SchemaRef,
    whole: Walk,
    walk: Walk,
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generate_series of {}", self.ty.name())
    }
}

impl LazyBatchGenerator for Rows {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn generate_next_batch(&mut self) -> Result<Option<RecordBatch>, DataFusionError> {
        let most = self.batch_rows.get();
        let mut column = shape::Builder::new(&self.ty, most);
        let mut n_rows = 0;
        while n_rows < most {
            let Some(value) = self.walk.step().map_err(failure::through)? else { break };
            column.push(&value).map_err(failure::through)?;
            n_rows += 1;
        }
        if n_rows == 0 {
            return Ok(None);
        }
        let column = column.finish().map_err(failure::through)?;
        let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), vec![column], &options)?;
        Ok(Some(batch))
    }

    fn reset_state(&self) -> Arc<RwLock<dyn LazyBatchGenerator>> {
        let rows = Rows {
            batch_rows: self.batch_rows.clone(),
            ty: self.ty.clone(),
            schema: self.schema.clone(),
            whole: self.whole.clone(),
            walk: self.whole.clone(),
        };
        Arc::new(RwLock::new(rows))
    }
}
