//! Functions of numbers. What finite arguments make infinite or zero is an error, as with operators.

use super::Function;
use crate::error::{Error, Result, state};
use crate::expr::operators::{self, Arithmetic};
use crate::types::{Datum, Numeric};
use std::borrow::Cow;

const INVALID_FOR_LOGARITHM: &str = "2201E";
const INVALID_FOR_POWER: &str = "2201F";

fn overflow() -> Error {
    Error::new(state::OUT_OF_RANGE, "value out of range: overflow")
}

fn underflow() -> Error {
    Error::new(state::OUT_OF_RANGE, "value out of range: underflow")
}

pub fn call(function: Function, args: &[Cow<'_, Datum>]) -> Result<Datum> {
    use Function::*;
    let float = |idx: usize| args[idx].as_f64().unwrap_or_default();
    let digits = || args[1].as_i64().unwrap_or_default();
    if let Datum::Numeric(value) = &*args[0] {
        return Ok(Datum::Numeric(match function {
            Abs => value.abs(),
            Round => value.rescale(0)?,
            RoundTo => value.round_to(digits())?,
            Truncate => value.truncate(0)?,
            TruncateTo => value.truncate_to(digits())?,
            Floor => value.floor()?,
            Ceil => value.ceil()?,
            Sign => Numeric::new(value.mantissa().signum(), 0)?,
            _ => return Err(Error::internal("a function of floats is given a numeric")),
        }));
    }
    Ok(Datum::Float8(match function {
        Abs => {
            return Ok(match &*args[0] {
                Datum::Float4(value) => Datum::Float4(value.abs()),
                Datum::Float8(value) => Datum::Float8(value.abs()),
                other if other.as_i64().is_some_and(|value| value < 0) => operators::negate(other)?,
                other => other.clone(),
            });
        }
        Round => float(0).round_ties_even(),
        Truncate => float(0).trunc(),
        Floor => float(0).floor(),
        Ceil => float(0).ceil(),
        Sign if float(0) > 0.0 => 1.0,
        Sign if float(0) < 0.0 => -1.0,
        // NaN, too, is neither.
        Sign => 0.0,
        Sqrt if float(0) < 0.0 => {
            let message = "cannot take square root of a negative number";
            return Err(Error::new(INVALID_FOR_POWER, message));
        }
        Sqrt => float(0).sqrt(),
        CubeRoot => float(0).cbrt(),
        Power => power(float(0), float(1))?,
        Exp => {
            let value = float(0).exp();
            if value.is_infinite() && float(0).is_finite() {
                return Err(overflow());
            }
            if value == 0.0 && float(0).is_finite() {
                return Err(underflow());
            }
            value
        }
        Ln => logarithm(float(0), f64::ln)?,
        Log10 => logarithm(float(0), f64::log10)?,
        Sin => of_angle(float(0), f64::sin)?,
        Cos => of_angle(float(0), f64::cos)?,
        Tan => of_angle(float(0), f64::tan)?,
        Cot => of_angle(float(0), |value| 1.0 / value.tan())?,
        Asin | Acos if float(0).abs() > 1.0 => return Err(out_of_domain()),
        Asin => float(0).asin(),
        Acos => float(0).acos(),
        Atan => float(0).atan(),
        Atan2 => float(0).atan2(float(1)),
        Degrees => operators::float(Arithmetic::Divide, float(0), RADIANS_PER_DEGREE)?,
        Radians => operators::float(Arithmetic::Multiply, float(0), RADIANS_PER_DEGREE)?,
        _ => return Err(Error::internal("no function of numbers")),
    }))
}

const RADIANS_PER_DEGREE: f64 = 0.017_453_292_519_943_295;

fn out_of_domain() -> Error {
    Error::new(state::OUT_OF_RANGE, "input is out of range")
}

fn of_angle(value: f64, function: fn(f64) -> f64) -> Result<f64> {
    if value.is_infinite() { Err(out_of_domain()) } else { Ok(function(value)) }
}

fn logarithm(value: f64, log: fn(f64) -> f64) -> Result<f64> {
    let wrong =
        |of: &str| Err(Error::new(INVALID_FOR_LOGARITHM, format!("cannot take logarithm of {of}")));
    if value == 0.0 {
        return wrong("zero");
    }
    if value < 0.0 {
        return wrong("a negative number");
    }
    Ok(log(value))
}

/// `base ^ exponent` on floats (`dpow` in PostgreSQL's float.c).
pub fn power(base: f64, exponent: f64) -> Result<f64> {
    if base == 0.0 && exponent < 0.0 {
        let message = "zero raised to a negative power is undefined";
        return Err(Error::new(INVALID_FOR_POWER, message));
    }
    if base < 0.0 && exponent.floor() != exponent && !exponent.is_nan() {
        let message = "a negative number raised to a non-integer power yields a complex result";
        return Err(Error::new(INVALID_FOR_POWER, message));
    }
    let value = base.powf(exponent);
    if base.is_finite() && exponent.is_finite() {
        if value.is_infinite() {
            return Err(overflow());
        }
        if value == 0.0 && base != 0.0 {
            return Err(underflow());
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_and_logarithms_are_postgres_ones() {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        for (base, exponent, want) in [
            (0.0, -1.0, Err("2201F")),
            (-8.0, 0.5, Err("2201F")),
            (2.0, 2000.0, Err("22003")),
            (2.0, -2000.0, Err("22003")),
            (nan, 0.0, Ok(1.0)),
            (1.0, nan, Ok(1.0)),
            (-1.0, inf, Ok(1.0)),
            (0.5, inf, Ok(0.0)),
            (-inf, 3.0, Ok(-inf)),
        ] {
            let got = power(base, exponent).map_err(|error| error.state());
            assert_eq!(got, want, "{base} ^ {exponent}");
        }
        let ln = |value: f64| call(Function::Ln, &[Cow::Owned(Datum::Float8(value))]);
        assert_eq!(ln(0.0).unwrap_err().state(), "2201E");
        assert_eq!(ln(inf).unwrap(), Datum::Float8(inf));
    }
}
