//! Exact decimal numbers: an integer and how many of its digits stand after the point.
//!
//! PostgreSQL's `numeric` has no practical limit; ours holds 38 digits, as much as Arrow's
//! Decimal128, so that query operators work on it without conversion. What does not fit is an
//! error, except for digits after the point that an operation makes beyond its operands' scales,
//! which are rounded away. Scales of results follow PostgreSQL: the larger one for `+ - %`, the
//! sum for `*`, and for `/` at least sixteen significant digits (`select_div_scale` in
//! PostgreSQL's numeric.c).

use crate::error::{Error, Result, state};
use arrow_buffer::i256;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

pub const MAX_DIGITS: u8 = 38;

/// `mantissa / 10^scale`. 24 bytes: the mantissa is kept in halves, so that a [`super::Datum`]
/// needs no sixteen-byte alignment.
#[derive(Clone, Copy)]
pub struct Numeric {
    high: i64,
    low: u64,
    scale: u8,
}

const POWERS: [i128; 39] = {
    let mut powers = [1i128; 39];
    let mut idx = 1;
    while idx < 39 {
        powers[idx] = powers[idx - 1] * 10;
        idx += 1;
    }
    powers
};

/// 10^n for `n <= 38`.
pub fn power_of_ten(n: u8) -> i128 {
    POWERS[usize::from(n.min(MAX_DIGITS))]
}

fn wide_power(n: u32) -> Option<i256> {
    let mut power = i256::ONE;
    let ten = i256::from_i128(10);
    for _ in 0..n {
        power = power.checked_mul(ten)?;
    }
    Some(power)
}

fn overflow() -> Error {
    Error::new(state::OUT_OF_RANGE, "value overflows numeric format")
        .detail("A numeric holds up to 38 digits.")
}

pub fn division_by_zero() -> Error {
    Error::new(state::DIVISION_BY_ZERO, "division by zero")
}

/// `n / d`, rounded half away from zero.
fn divide_rounded(n: i256, d: i256) -> Option<i256> {
    let quotient = n.checked_div(d)?;
    let rest = n.checked_rem(d)?;
    let twice = rest.wrapping_abs().checked_mul(i256::from_i128(2))?;
    if twice < d.wrapping_abs() {
        return Some(quotient);
    }
    let negative = n.is_negative() != d.is_negative();
    let one = i256::ONE;
    if negative { quotient.checked_sub(one) } else { quotient.checked_add(one) }
}

impl Numeric {
    pub const ZERO: Numeric = Numeric::raw(0, 0);

    const fn raw(mantissa: i128, scale: u8) -> Numeric {
        Numeric { high: (mantissa >> 64) as i64, low: mantissa as u64, scale }
    }

    /// `mantissa / 10^scale`; an error where the mantissa has more than 38 digits.
    pub fn new(mantissa: i128, scale: u8) -> Result<Numeric> {
        if mantissa.unsigned_abs() >= POWERS[38].unsigned_abs() || scale > MAX_DIGITS {
            return Err(overflow());
        }
        Ok(Numeric::raw(mantissa, scale))
    }

    pub fn mantissa(&self) -> i128 {
        (i128::from(self.high) << 64) | i128::from(self.low)
    }

    /// Digits after the point, `0..=38`.
    pub fn scale(&self) -> u8 {
        self.scale
    }

    pub fn is_zero(&self) -> bool {
        self.mantissa() == 0
    }

    pub fn is_negative(&self) -> bool {
        self.high < 0
    }

    /// The same value with `scale` digits after the point, rounded half away from zero.
    pub fn rescale(&self, scale: u8) -> Result<Numeric> {
        let mantissa = self.mantissa();
        match scale.cmp(&self.scale) {
            Ordering::Equal => Ok(*self),
            Ordering::Greater => {
                let factor = power_of_ten(scale - self.scale);
                Numeric::new(mantissa.checked_mul(factor).ok_or_else(overflow)?, scale)
            }
            Ordering::Less => {
                let factor = power_of_ten(self.scale - scale);
                let (quotient, rest) = (mantissa / factor, mantissa % factor);
                let up = rest.unsigned_abs() >= factor.unsigned_abs().div_ceil(2);
                Numeric::new(quotient + if up { mantissa.signum() } else { 0 }, scale)
            }
        }
    }

    /// Cut towards zero.
    pub fn truncate(&self, scale: u8) -> Result<Numeric> {
        if scale >= self.scale {
            return self.rescale(scale);
        }
        Numeric::new(self.mantissa() / power_of_ten(self.scale - scale), scale)
    }

    /// `round(n, digits)`; negative digits round before the point: `round(12345.6, -2)` is 12300.
    pub fn round_to(&self, digits: i64) -> Result<Numeric> {
        self.cut_to(digits, Numeric::rescale, divide_rounded)
    }

    /// `trunc(n, digits)`.
    pub fn truncate_to(&self, digits: i64) -> Result<Numeric> {
        self.cut_to(digits, Numeric::truncate, i256::checked_div)
    }

    fn cut_to(
        &self,
        digits: i64,
        cut: fn(&Numeric, u8) -> Result<Numeric>,
        divide: fn(i256, i256) -> Option<i256>,
    ) -> Result<Numeric> {
        if digits >= 0 {
            let digits = digits.min(i64::from(MAX_DIGITS)) as u8;
            return match cut(self, digits) {
                // Zeros that do not fit say nothing.
                Err(_) if digits > self.scale => Ok(*self),
                cut => cut,
            };
        }
        let n_zeros = digits.unsigned_abs();
        if n_zeros > u64::from(MAX_DIGITS) {
            return Ok(Numeric::ZERO);
        }
        let n_zeros = n_zeros as u8;
        let factor = wide_power(u32::from(self.scale) + u32::from(n_zeros)).ok_or_else(overflow)?;
        let units = divide(i256::from_i128(self.mantissa()), factor).ok_or_else(overflow)?;
        let units = units.to_i128().ok_or_else(overflow)?;
        Numeric::new(units.checked_mul(power_of_ten(n_zeros)).ok_or_else(overflow)?, 0)
    }

    pub fn floor(&self) -> Result<Numeric> {
        let factor = power_of_ten(self.scale);
        Numeric::new(self.mantissa().div_euclid(factor), 0)
    }

    pub fn ceil(&self) -> Result<Numeric> {
        self.neg().floor().map(|value| value.neg())
    }

    pub fn neg(&self) -> Numeric {
        Numeric::raw(-self.mantissa(), self.scale)
    }

    pub fn abs(&self) -> Numeric {
        Numeric::raw(self.mantissa().abs(), self.scale)
    }

    /// Both mantissas at the larger scale.
    fn align(&self, other: &Numeric) -> Option<(i128, i128, u8)> {
        let scale = self.scale.max(other.scale);
        let a = self.mantissa().checked_mul(power_of_ten(scale - self.scale))?;
        let b = other.mantissa().checked_mul(power_of_ten(scale - other.scale))?;
        Some((a, b, scale))
    }

    pub fn add(&self, other: &Numeric) -> Result<Numeric> {
        let (a, b, scale) = self.align(other).ok_or_else(overflow)?;
        Numeric::new(a.checked_add(b).ok_or_else(overflow)?, scale)
    }

    pub fn sub(&self, other: &Numeric) -> Result<Numeric> {
        self.add(&other.neg())
    }

    pub fn mul(&self, other: &Numeric) -> Result<Numeric> {
        let product = i256::from_i128(self.mantissa())
            .checked_mul(i256::from_i128(other.mantissa()))
            .ok_or_else(overflow)?;
        let scale = u32::from(self.scale) + u32::from(other.scale);
        fit(product, scale, u32::from(self.scale.max(other.scale)))
    }

    pub fn div(&self, other: &Numeric) -> Result<Numeric> {
        if other.is_zero() {
            return Err(division_by_zero());
        }
        let mut scale = u32::from(division_scale(self, other));
        let floor = u32::from(self.scale.max(other.scale));
        loop {
            let shift = scale + u32::from(other.scale) - u32::from(self.scale);
            let numerator = wide_power(shift)
                .and_then(|power| i256::from_i128(self.mantissa()).checked_mul(power));
            match numerator {
                Some(numerator) => {
                    let divisor = i256::from_i128(other.mantissa());
                    let quotient = divide_rounded(numerator, divisor).ok_or_else(overflow)?;
                    return fit(quotient, scale, floor.min(scale));
                }
                None if scale > floor => scale -= 1,
                None => return Err(overflow()),
            }
        }
    }

    pub fn rem(&self, other: &Numeric) -> Result<Numeric> {
        if other.is_zero() {
            return Err(division_by_zero());
        }
        let (a, b, scale) = self.align(other).ok_or_else(overflow)?;
        Numeric::new(a % b, scale)
    }

    /// Rounded half away from zero; none when it does not fit.
    pub fn to_i64(&self) -> Option<i64> {
        i64::try_from(self.rescale(0).ok()?.mantissa()).ok()
    }

    pub fn to_f64(&self) -> f64 {
        let mantissa = self.mantissa();
        const EXACT: u128 = 1 << 53;
        if mantissa.unsigned_abs() <= EXACT && self.scale <= 22 {
            // Both operands are exact, so IEEE division rounds once: the nearest float.
            return mantissa as f64 / power_of_ten(self.scale) as f64;
        }
        self.to_string().parse().unwrap_or(f64::NAN)
    }

    /// The fifteen significant digits that PostgreSQL keeps of a float8; none for NaN and infinity.
    pub fn from_f64(value: f64) -> Result<Numeric> {
        Numeric::from_digits(value, &format!("{value:.14e}"))
    }

    /// Six significant digits.
    pub fn from_f32(value: f32) -> Result<Numeric> {
        Numeric::from_digits(f64::from(value), &format!("{value:.5e}"))
    }

    fn from_digits(value: f64, digits: &str) -> Result<Numeric> {
        if !value.is_finite() {
            let message = "NaN and infinity are not supported in type numeric";
            return Err(Error::new(state::FEATURE_NOT_SUPPORTED, message));
        }
        let parsed = Numeric::parse_rounded(digits).map_err(|_| overflow())?;
        Ok(parsed.without_trailing_zeros())
    }

    pub fn without_trailing_zeros(&self) -> Numeric {
        let (mut mantissa, mut scale) = (self.mantissa(), self.scale);
        while scale > 0 && mantissa % 10 == 0 {
            mantissa /= 10;
            scale -= 1;
        }
        Numeric::raw(mantissa, scale)
    }

    /// Fits the value into `numeric(precision, scale)`.
    pub fn fit(&self, precision: u8, scale: u8) -> Result<Numeric> {
        let error = || {
            Error::new(state::OUT_OF_RANGE, "numeric field overflow").detail(format!(
                "A field with precision {precision}, scale {scale} must round to an absolute value less than {}.",
                match precision - scale.min(precision) {
                    0 => "1".to_owned(),
                    digits => format!("10^{digits}"),
                }
            ))
        };
        let fitted = self.rescale(scale).map_err(|_| error())?;
        if fitted.mantissa().unsigned_abs() >= power_of_ten(precision).unsigned_abs() {
            return Err(error());
        }
        Ok(fitted)
    }

    /// PostgreSQL's groups of four digits: the weight of the first group that is not zero, and it.
    fn leading_group(&self) -> (i32, i128) {
        let mut rest = self.mantissa().abs();
        if rest == 0 {
            return (0, 0);
        }
        // Align the digits after the point to whole groups.
        let pad = (4 - self.scale % 4) % 4;
        let mut weight = -(i32::from(self.scale + pad) / 4);
        let first_group = match pad {
            0 => 10_000,
            pad => power_of_ten(4 - pad),
        };
        if rest >= first_group {
            rest /= first_group;
            weight += 1;
        } else {
            return (weight, rest * power_of_ten(pad));
        }
        while rest >= 10_000 {
            rest /= 10_000;
            weight += 1;
        }
        (weight, rest)
    }
}

/// Digits after the point of a quotient: enough for sixteen significant ones, and not fewer than
/// either operand has.
fn division_scale(a: &Numeric, b: &Numeric) -> u8 {
    let (weight_a, first_a) = a.leading_group();
    let (weight_b, first_b) = b.leading_group();
    let weight = weight_a - weight_b - i32::from(first_a <= first_b);
    let scale = 16 - weight * 4;
    let scale = scale.max(i32::from(a.scale)).max(i32::from(b.scale));
    u8::try_from(scale.clamp(0, i32::from(MAX_DIGITS))).unwrap_or(MAX_DIGITS)
}

/// Brings a wide mantissa down to 38 digits, giving up digits after the point down to `floor`.
fn fit(mantissa: i256, scale: u32, floor: u32) -> Result<Numeric> {
    let (mut mantissa, mut scale) = (mantissa, scale);
    let limit = i256::from_i128(POWERS[38]);
    let fits = |m: i256, s: u32| m.wrapping_abs() < limit && s <= u32::from(MAX_DIGITS);
    let mut drop = 0;
    let mut probe = mantissa;
    while !fits(probe, scale - drop) {
        if scale - drop <= floor {
            return Err(overflow());
        }
        drop += 1;
        probe = probe.wrapping_div(i256::from_i128(10));
    }
    if drop > 0 {
        let power = wide_power(drop).ok_or_else(overflow)?;
        mantissa = divide_rounded(mantissa, power).ok_or_else(overflow)?;
        scale -= drop;
    }
    let narrow = mantissa.to_i128().ok_or_else(overflow)?;
    Numeric::new(narrow, scale as u8)
}

impl From<i64> for Numeric {
    fn from(value: i64) -> Numeric {
        Numeric::raw(i128::from(value), 0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    Syntax,
    Overflow,
}

impl FromStr for Numeric {
    type Err = ParseError;

    /// The very value that is written; an error where 38 digits do not hold it.
    fn from_str(text: &str) -> Result<Numeric, ParseError> {
        match Numeric::read(text)? {
            (value, true) => Ok(value),
            (_, false) => Err(ParseError::Overflow),
        }
    }
}

impl Numeric {
    /// Reads what is rounded anyway: digits after the point that do not fit may go.
    pub fn parse_rounded(text: &str) -> Result<Numeric, ParseError> {
        Numeric::read(text).map(|(value, _)| value)
    }

    /// The value, and whether it is all that was written.
    fn read(text: &str) -> Result<(Numeric, bool), ParseError> {
        let text = text.trim().as_bytes();
        let (negative, digits) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        let mut mantissa: i128 = 0;
        let mut scale: i64 = 0;
        let mut seen_point = false;
        let mut n_digits = 0usize;
        let mut rounded_up = false;
        let mut full = false;
        let mut exact = true;
        let mut exponent: i64 = 0;
        let mut bytes = digits.iter().copied().enumerate();
        for (at, byte) in &mut bytes {
            match byte {
                b'0'..=b'9' => {
                    n_digits += 1;
                    let digit = i128::from(byte - b'0');
                    if !full && mantissa < POWERS[37] {
                        mantissa = mantissa * 10 + digit;
                        scale += i64::from(seen_point);
                    } else {
                        exact &= digit == 0;
                        if !full {
                            rounded_up = digit >= 5;
                            full = true;
                        }
                        // A digit before the point that no longer fits.
                        scale -= i64::from(!seen_point);
                    }
                }
                b'.' if !seen_point => seen_point = true,
                b'e' | b'E' if n_digits > 0 => {
                    let rest = std::str::from_utf8(&digits[at + 1..]);
                    let rest = rest.map_err(|_| ParseError::Syntax)?;
                    exponent = rest.parse().map_err(|_| ParseError::Syntax)?;
                    if exponent.abs() > 100_000 {
                        return Err(ParseError::Overflow);
                    }
                    break;
                }
                _ => return Err(ParseError::Syntax),
            }
        }
        if n_digits == 0 {
            return Err(ParseError::Syntax);
        }
        mantissa += i128::from(rounded_up);
        scale -= exponent;
        while scale < 0 {
            if mantissa == 0 {
                scale = 0;
                break;
            }
            mantissa = mantissa.checked_mul(10).ok_or(ParseError::Overflow)?;
            scale += 1;
        }
        while scale > i64::from(MAX_DIGITS) {
            exact &= mantissa % 10 == 0;
            mantissa = if scale == i64::from(MAX_DIGITS) + 1 {
                (mantissa + 5) / 10
            } else {
                mantissa / 10
            };
            scale -= 1;
            if mantissa == 0 {
                scale = scale.min(i64::from(MAX_DIGITS));
            }
        }
        let mantissa = if negative { -mantissa } else { mantissa };
        let value = Numeric::new(mantissa, scale as u8).map_err(|_| ParseError::Overflow)?;
        Ok((value, exact))
    }
}

impl fmt::Display for Numeric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mantissa = self.mantissa();
        if self.scale == 0 {
            return write!(f, "{mantissa}");
        }
        let sign = if mantissa < 0 { "-" } else { "" };
        let factor = power_of_ten(self.scale).unsigned_abs();
        let (whole, rest) = (mantissa.unsigned_abs() / factor, mantissa.unsigned_abs() % factor);
        write!(f, "{sign}{whole}.{rest:0width$}", width = usize::from(self.scale))
    }
}

impl fmt::Debug for Numeric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Ord for Numeric {
    fn cmp(&self, other: &Numeric) -> Ordering {
        if self.scale == other.scale {
            return self.mantissa().cmp(&other.mantissa());
        }
        match self.align(other) {
            Some((a, b, _)) => a.cmp(&b),
            // Beyond 38 digits only in the widened comparison.
            None => {
                let widen = |value: &Numeric, by: u8| {
                    let power = i256::from_i128(power_of_ten(by));
                    i256::from_i128(value.mantissa()).wrapping_mul(power)
                };
                let scale = self.scale.max(other.scale);
                widen(self, scale - self.scale).cmp(&widen(other, scale - other.scale))
            }
        }
    }
}

impl PartialOrd for Numeric {
    fn partial_cmp(&self, other: &Numeric) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Numeric {
    fn eq(&self, other: &Numeric) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Numeric {}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(text: &str) -> Numeric {
        text.parse().unwrap()
    }

    #[test]
    fn quotients_have_postgres_scales() {
        // Each right side is what PostgreSQL 15 prints.
        for (a, b, want) in [
            ("1", "3", "0.33333333333333333333"),
            ("2", "3", "0.66666666666666666667"),
            ("10", "3", "3.3333333333333333"),
            ("10000", "3", "3333.3333333333333333"),
            ("1", "30000", "0.000033333333333333333333"),
            ("100.00", "7", "14.2857142857142857"),
            ("-7", "2.0", "-3.5000000000000000"),
            ("0", "5", "0.00000000000000000000"),
            ("12345678901234567890", "3", "4115226300411522630"),
        ] {
            assert_eq!(n(a).div(&n(b)).unwrap().to_string(), want, "{a} / {b}");
        }
        assert_eq!(n("1").div(&n("0.0")).unwrap_err().state(), "22012");
    }

    #[test]
    fn sums_products_and_rounding() {
        assert_eq!(n("1.10").add(&n("2.205")).unwrap().to_string(), "3.305");
        assert_eq!(n("1.10").mul(&n("2.205")).unwrap().to_string(), "2.42550");
        assert_eq!(n("-2.5").rescale(0).unwrap().to_string(), "-3");
        assert_eq!(n("2.4").rescale(0).unwrap().to_string(), "2");
        assert_eq!(n("-7.5").floor().unwrap().to_string(), "-8");
        assert_eq!(n("-7.5").ceil().unwrap().to_string(), "-7");
        assert_eq!(n("7.5").rem(&n("-2")).unwrap().to_string(), "1.5");
        for (text, digits, want) in [
            ("12345.678", -2, "12300"),
            ("5.5", -1, "10"),
            ("-50", -2, "-100"),
            ("1.5", 3, "1.500"),
            ("1.5", -40, "0"),
            ("0.00000000000000000000000000000000000001", -38, "0"),
            (
                "99999999999999999999999999999999999999",
                i64::MAX,
                "99999999999999999999999999999999999999",
            ),
        ] {
            assert_eq!(n(text).round_to(digits).unwrap().to_string(), want, "{text} to {digits}");
        }
        assert_eq!(n("-199.9").truncate_to(-2).unwrap().to_string(), "-100");
        assert_eq!(n("1e3").to_string(), "1000");
        assert_eq!(n("1.5e-3").to_string(), "0.0015");
        assert_eq!(n("999.995").fit(5, 2).unwrap_err().state(), "22003");
        assert_eq!(n("1.0"), n("1.000"));
        assert!(
            n("99999999999999999999999999999999999999")
                > n("0.00000000000000000000000000000000000001")
        );
        assert_eq!(Numeric::from_f64(0.1).unwrap().to_string(), "0.1");
        assert_eq!("1.2.3".parse::<Numeric>(), Err(ParseError::Syntax));
        assert_eq!("".parse::<Numeric>(), Err(ParseError::Syntax));
        let long = "123456789012345678901234567890.123456789";
        assert_eq!(long.parse::<Numeric>(), Err(ParseError::Overflow));
        let rounded = Numeric::parse_rounded(long).unwrap();
        assert_eq!(rounded.to_string(), "123456789012345678901234567890.12345679");
        assert_eq!(n("1.0000000000000000000000000000000000000000"), n("1"));
    }
}
