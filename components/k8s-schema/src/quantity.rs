//! `resource.Quantity`: decimal numbers with SI or binary suffixes, in upstream's canonical form.
//!
//! A quantity is a mantissa times a power of ten. Mantissas keep up to 38 digits; what is longer is refused, while
//! upstream goes on with arbitrary precision. Limits and roundings (to nano, upwards; binary ones capped) are upstream's.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// How a quantity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    #[default]
    DecimalSi,
}

/// Why a text is no quantity; the texts are upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The whole does not look like one.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number is none, or too long.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is unknown.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// A quantity. Comparison is by amount: `1` equals `1000m`.
#[derive(Debug, Clone, Default)]
pub struct Quantity {
    mantissa: i128,
    exponent: i32,
    format: Format,
    /// The text it came from, when upstream would keep it as the canonical one.
    text: Option<Box<str>>,
}

const NANO: i32 = -9;

impl Quantity {
    /// `value` in the given format.
    pub fn new(value: i64, format: Format) -> Self {
        Self { mantissa: i128::from(value), exponent: 0, format, text: None }
    }

    /// Thousandths, in decimal format.
    pub fn from_milli(value: i64) -> Self {
        Self { mantissa: i128::from(value), exponent: -3, format: Format::DecimalSi, text: None }
    }

    /// Parses; the error is upstream's.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        if text == "0" {
            return Ok(Self { text: Some("0".into()), ..Self::default() });
        }
        let parts = split(text)?;
        let (base, exponent, format) = interpret(parts.suffix).ok_or(QuantityError::Suffix)?;
        let (digits, decimals) = (parts.num.len() as i32, parts.denom.len() as i32);
        let (precision, mut scale, factor) = match format {
            Format::DecimalExponent | Format::DecimalSi => (18 - digits - decimals, exponent, 1i128),
            Format::BinarySi if decimals == 0 => (15 - digits - (exponent as f32 * 3.0 / 10.0) as i32 - 1, 0, 1i128 << exponent),
            Format::BinarySi => (-1, 0, 1),
        };
        let shifted: String = [parts.num, parts.denom].concat();
        if precision >= 0 {
            scale = scale.saturating_sub(decimals);
            if scale >= NANO {
                let value: i64 = shifted.parse().map_err(|_| QuantityError::Numeric)?;
                let product = i128::from(value) * factor;
                if i64::try_from(product).is_ok() {
                    let canonical = match format {
                        Format::BinarySi => exponent % 10 == 0 && value & 7 != 0,
                        _ => scale % 3 == 0 && !shifted.ends_with("000") && !shifted.starts_with('0'),
                    };
                    let mantissa = if parts.negative { -product } else { product };
                    return Ok(Self { mantissa, exponent: scale, format, text: canonical.then(|| text.into()) });
                }
            }
        }
        let mut format = format;
        let mut mantissa: i128 = if shifted.is_empty() { 0 } else { shifted.parse().map_err(|_| QuantityError::Numeric)? };
        let mut exp = -decimals;
        if base == 10 {
            exp = exp.saturating_add(exponent);
        } else {
            mantissa = mantissa.checked_mul(1i128 << exponent).ok_or(QuantityError::Numeric)?;
        }
        if mantissa != 0 && exp < NANO {
            mantissa = divide_up(mantissa, (NANO - exp) as u32);
            exp = NANO;
        }
        let amount = Self { mantissa, exponent: exp, format, text: None };
        if format == Format::BinarySi {
            if amount > Self::new(i64::MAX, format) {
                (mantissa, exp) = (i128::from(i64::MAX), 0);
            }
            if mantissa != 0 && amount < Self::new(1, format) {
                format = Format::DecimalSi;
            }
        }
        Ok(Self { mantissa: if parts.negative { -mantissa } else { mantissa }, exponent: exp, format, text: None })
    }

    /// How it is written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// The amount rounded up to a whole number; saturates.
    pub fn value(&self) -> i64 {
        self.scaled(0)
    }

    /// The amount in thousandths, rounded up; saturates.
    pub fn milli_value(&self) -> i64 {
        self.scaled(-3)
    }

    /// The amount divided by ten to the `scale`, rounded up; saturates.
    pub fn scaled(&self, scale: i32) -> i64 {
        let difference = self.exponent.saturating_sub(scale);
        let v = if difference >= 0 {
            times_ten(self.mantissa, difference as u32)
        } else {
            divide_ceil(self.mantissa, difference.unsigned_abs())
        };
        v.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// Whether it is a whole number.
    pub fn is_integer(&self) -> bool {
        self.exponent >= 0 || {
            let divisor = 10i128.checked_pow(self.exponent.unsigned_abs());
            self.mantissa == 0 || divisor.is_some_and(|d| self.mantissa % d == 0)
        }
    }

    /// The amount as a float, for ratios.
    pub fn as_f64(&self) -> f64 {
        self.mantissa as f64 * 10f64.powi(self.exponent)
    }

    /// Adds; a zero takes the other's format. Saturates.
    pub fn add(&mut self, other: &Quantity) {
        self.combine(other, i128::saturating_add);
    }

    /// Subtracts; a zero takes the other's format. Saturates.
    pub fn sub(&mut self, other: &Quantity) {
        self.combine(other, i128::saturating_sub);
    }

    fn combine(&mut self, other: &Quantity, f: fn(i128, i128) -> i128) {
        if self.mantissa == 0 {
            self.format = other.format;
        }
        self.text = None;
        let exponent = if self.mantissa == 0 {
            other.exponent
        } else if other.mantissa == 0 {
            self.exponent
        } else {
            self.exponent.min(other.exponent)
        };
        let left = times_ten(self.mantissa, self.exponent.saturating_sub(exponent).max(0) as u32);
        let right = times_ten(other.mantissa, other.exponent.saturating_sub(exponent).max(0) as u32);
        self.mantissa = f(left, right);
        self.exponent = exponent;
    }

    /// The negative amount.
    pub fn neg(&self) -> Quantity {
        Quantity { mantissa: -self.mantissa, exponent: self.exponent, format: self.format, text: None }
    }

    fn canonical(&self) -> String {
        if self.mantissa == 0 {
            return "0".to_owned();
        }
        if self.format == Format::BinarySi && self.is_integer() {
            let whole = if self.exponent >= 0 {
                times_ten(self.mantissa, self.exponent as u32)
            } else {
                self.mantissa / 10i128.pow(self.exponent.unsigned_abs())
            };
            if !(-1024 < whole && whole < 1024) {
                let (mut amount, mut times) = (whole, 0usize);
                while amount % 1024 == 0 && times < 6 {
                    amount /= 1024;
                    times += 1;
                }
                return format!("{amount}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][times]);
            }
        }
        let (mut amount, mut exponent) = (self.mantissa, self.exponent);
        while amount % 10 == 0 {
            amount /= 10;
            exponent += 1;
        }
        match exponent.rem_euclid(3) {
            1 => (amount, exponent) = (amount.saturating_mul(10), exponent - 1),
            2 => (amount, exponent) = (amount.saturating_mul(100), exponent - 2),
            _ => {}
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { amount.to_string() } else { format!("{amount}e{exponent}") };
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            18 => "E",
            _ => "",
        };
        format!("{amount}{suffix}")
    }
}

struct Parts<'a> {
    negative: bool,
    num: &'a str,
    denom: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let (negative, rest) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let rest = rest.trim_start_matches('0');
    if rest.is_empty() {
        return Ok(Parts { negative, num: "0", denom: "", suffix: "" });
    }
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let (num, rest) = rest.split_at(digits(rest));
    let num = if num.is_empty() { "0" } else { num };
    let (denom, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = suffix.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let tail = &suffix[letters..];
    let tail = tail.strip_prefix(['+', '-']).unwrap_or(tail);
    if digits(tail) != tail.len() {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative, num, denom, suffix })
}

fn interpret(suffix: &str) -> Option<(u32, i32, Format)> {
    let decimal = |e| Some((10, e, Format::DecimalSi));
    let binary = |e| Some((2, e, Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E']).filter(|d| !d.is_empty())?;
            Some((10, digits.parse::<i64>().ok()? as i32, Format::DecimalExponent))
        }
    }
}

fn times_ten(value: i128, power: u32) -> i128 {
    if value == 0 {
        return 0;
    }
    10i128.checked_pow(power).and_then(|p| value.checked_mul(p)).unwrap_or(if value < 0 { i128::MIN } else { i128::MAX })
}

/// Divides a non-negative value by ten to the `power`, rounding away from zero.
fn divide_up(value: i128, power: u32) -> i128 {
    match 10i128.checked_pow(power) {
        Some(p) => value / p + i128::from(value % p != 0),
        None => i128::from(value != 0),
    }
}

/// Divides rounding away from zero on both sides, as upstream's int64 path does.
fn divide_ceil(value: i128, power: u32) -> i128 {
    if value < 0 { -divide_up(-value, power) } else { divide_up(value, power) }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.sign() != other.sign() || self.mantissa == 0 {
            return self.sign().cmp(&other.sign());
        }
        let (mut a, mut b) = (self.mantissa, other.mantissa);
        let difference = i64::from(self.exponent) - i64::from(other.exponent);
        let side = if difference > 0 { &mut a } else { &mut b };
        match 10i128.checked_pow(difference.unsigned_abs().min(64) as u32).and_then(|p| side.checked_mul(p)) {
            Some(v) => {
                *side = v;
                a.cmp(&b)
            }
            // The side with the larger exponent outgrows 38 digits, so it is the larger in magnitude.
            None => {
                let left_larger = difference > 0;
                if left_larger == (self.mantissa > 0) { Ordering::Greater } else { Ordering::Less }
            }
        }
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => f.write_str(text),
            None => f.write_str(&self.canonical()),
        }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(s: &str) -> Result<Self, QuantityError> {
        Self::parse(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms_are_upstreams() {
        for (text, want) in [
            ("0", "0"),
            ("00", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("100m", "100m"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1E3", "1E3"),
            ("12e6", "12e6"),
            ("1.2e6", "1200e3"),
            ("100Mi", "100Mi"),
            ("128974848", "128974848"),
            ("0.1n", "1n"),
            ("1.0001n", "2n"),
            ("+5", "+5"),
            ("-1", "-1"),
            ("01", "01"),
            ("2500000m", "2500"),
            ("1.1Ki", "1126400m"),
            ("9Ei", "9223372036854775807"),
            ("64Mi", "64Mi"),
            ("1e100", "10e99"),
            (".5", "500m"),
            ("5.", "5."),
        ] {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_in_upstreams_words() {
        for (text, want) in [
            ("", QuantityError::Format),
            ("x", QuantityError::Format),
            ("1x", QuantityError::Format),
            ("1mm", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1 ", QuantityError::Format),
            ("1.1.1", QuantityError::Format),
            ("1K", QuantityError::Suffix),
        ] {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Err(want), "{text}");
        }
    }

    #[test]
    fn arithmetic_and_comparison() {
        let q = |s: &str| Quantity::parse(s).unwrap();
        let mut a = q("1Gi");
        a.add(&q("512Mi"));
        assert_eq!(a.to_string(), "1536Mi");
        a.sub(&q("1536Mi"));
        assert!(a.is_zero());
        assert_eq!(q("100m").milli_value(), 100);
        assert_eq!(q("100m").value(), 1);
        assert_eq!(q("1k"), q("1000"));
        assert!(q("1Ki") > q("1k") && q("-1") < q("1m") && q("1e100") > q("1E"));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_canonical_text_is_stable(text in "[+-]?[0-9]{0,22}[.]?[0-9]{0,12}[a-zA-Z]{0,2}[0-9]{0,3}") {
            if let Ok(q) = Quantity::parse(&text) {
                let once = q.to_string();
                let again = Quantity::parse(&once).map(|q| q.to_string());
                prop_assert_eq!(again, Ok(once));
            }
        }
    }
}
