//! The fast path's functions in wide queries: a call means the same whoever computes it.
//!
//! What a call means is told by [`sql::expr::lookup`], by the types of its arguments; its value is computed
//! row by row by [`sql::expr::call`]. Three things are looser here. A literal has lost its being of unknown type:
//! a text stands for whatever the function wants (`left('abc', '2')`). This engine's own functions, and what
//! it writes for `varchar(3)`, answer bigints where PostgreSQL's answer integers: so a bigint passes for an
//! integer. And what the fast path leaves to this engine because it is exact (`ln(2.5)`) is computed in floats.

use super::{failure, shape};
use arrow::datatypes::DataType;
use datafusion_common::ScalarValue;
use datafusion_common::error::DataFusionError;
use datafusion_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use sql::bind::no_function;
use sql::error::{Error, Result};
use sql::expr::{Context, Function, Lookup, lookup};
use sql::session::View;
use sql::types::cast;
use sql::{Datum, Type};
use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

type Df<T> = Result<T, DataFusionError>;

/// A name, with all that it means.
pub struct Evaluated {
    name: &'static str,
    view: Arc<View>,
    signature: Signature,
}

/// The functions that depend on nothing but their arguments and the session, by name.
pub fn of(view: &Arc<View>) -> impl Iterator<Item = (&'static str, Arc<ScalarUDF>)> {
    let pure = |name: &&str| !matches!(lookup(name, &[]), Lookup::Here(..));
    sql::expr::names().filter(pure).map(|name| (name, one(name, view)))
}

pub fn one(name: &'static str, view: &Arc<View>) -> Arc<ScalarUDF> {
    let signature = Signature::variadic_any(Volatility::Stable);
    Arc::new(ScalarUDF::new_from_impl(Evaluated { name, view: view.clone(), signature }))
}

impl std::fmt::Debug for Evaluated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Evaluated {
    fn eq(&self, other: &Evaluated) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.view, &other.view)
    }
}

impl Eq for Evaluated {}

impl Hash for Evaluated {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// NULL is of no known type.
fn type_of(ty: &DataType) -> Type {
    match ty {
        DataType::Null => Type::Unknown,
        ty => shape::type_of_arrow(ty),
    }
}

struct Meaning {
    function: Function,
    given: Vec<Type>,
    wanted: Vec<Type>,
    answer: Type,
}

impl Evaluated {
    fn meaning(&self, types: &[DataType]) -> Result<Meaning> {
        let given: Vec<Type> = types.iter().map(type_of).collect();
        let plain = |ty: &Type| match ty {
            Type::Numeric(_) => Type::Numeric(None),
            other => other.clone(),
        };
        let given: Vec<Type> = given.iter().map(plain).collect();
        let any_text = |ty: &Type| match ty {
            Type::Text => Type::Unknown,
            other => other.clone(),
        };
        let in_floats = |ty: &Type| match ty {
            Type::Numeric(_) => Type::Float8,
            other => other.clone(),
        };
        let narrow = |ty: &Type| match ty {
            Type::Int8 => Type::Int4,
            other => any_text(other),
        };
        let ways: [&dyn Fn(&Type) -> Type; 4] = [&plain, &any_text, &narrow, &in_floats];
        let mut is_known = true;
        for way in ways {
            let types: Vec<Type> = given.iter().map(way).collect();
            match lookup(self.name, &types) {
                Lookup::Here(function, wanted, answer) => {
                    return Ok(Meaning { function, given, wanted, answer });
                }
                Lookup::Elsewhere => is_known = false,
                Lookup::NoSuch => {}
            }
        }
        match is_known {
            true => Err(no_function(self.name, &given)),
            false => Err(Error::unsupported(format!("the function {} here", self.name))),
        }
    }

    fn compute(&self, args: &ScalarFunctionArgs, n_rows: usize) -> Result<arrow::array::ArrayRef> {
        let types: Vec<DataType> = args.args.iter().map(ColumnarValue::data_type).collect();
        let Meaning { function, given, wanted, answer } = self.meaning(&types)?;
        let mut columns = Vec::with_capacity(types.len());
        for ((arg, given), wanted) in args.args.iter().zip(&given).zip(&wanted) {
            let array = arg.to_array(n_rows).map_err(failure::from)?;
            let mut datums = Vec::with_capacity(n_rows);
            shape::each(&array, given, &mut |datum| datums.push(datum))?;
            if std::mem::discriminant(given) != std::mem::discriminant(wanted) {
                for datum in &mut datums {
                    let taken = std::mem::take(datum);
                    *datum = cast::cast(taken, given, wanted, &self.view.zone, false)?;
                }
            }
            columns.push(datums);
        }
        let cx = Context { row: &[], params: &[], slots: &[], view: &self.view };
        let mut out = shape::Builder::new(&answer, n_rows);
        for row in 0..n_rows {
            let args: Vec<Cow<'_, Datum>> =
                columns.iter().map(|column| Cow::Borrowed(&column[row])).collect();
            out.push(&sql::expr::call(function, &args, &cx)?)?;
        }
        out.finish()
    }
}

impl ScalarUDFImpl for Evaluated {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Df<DataType> {
        let meaning = self.meaning(types).map_err(failure::through)?;
        Ok(shape::arrow_type(&meaning.answer))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Df<ColumnarValue> {
        let all_scalars = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let n_rows = if all_scalars { 1 } else { args.number_rows };
        let result = self.compute(&args, n_rows).map_err(failure::through)?;
        match all_scalars {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
            false => Ok(ColumnarValue::Array(result)),
        }
    }
}
