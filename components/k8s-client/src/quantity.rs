//! resource.Quantity: numbers with SI or binary suffixes, kept as nano-units so that `100m`, `1.5Gi` and `3e3` compare exactly.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const NANO: i128 = 1_000_000_000;

/// A quantity in nano-units. Finer digits round up, as upstream does; the range is upstream's (±2^63−1 units) and saturates there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(i128);

/// Why a string is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity (a number with an optional suffix n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei or exponent)")]
pub struct QuantityError(String);

impl Quantity {
    /// Whole units.
    pub const fn units(value: i64) -> Self {
        Self(value as i128 * NANO)
    }

    /// Thousandths, as CPU is counted.
    pub const fn milli(value: i64) -> Self {
        Self(value as i128 * (NANO / 1000))
    }

    /// Whole units, rounded up.
    pub fn value(self) -> i64 {
        saturate(div_up(self.0, NANO))
    }

    /// Thousandths, rounded up.
    pub fn milli_value(self) -> i64 {
        saturate(div_up(self.0, NANO / 1000))
    }

    /// True for zero.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Sum, saturating.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Difference, saturating.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

fn div_up(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// Numerator and decimal exponent of a suffix, so that the value is number × factor × 10^exponent.
fn suffix(text: &str) -> Option<(i128, i32)> {
    Some(match text {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        _ => {
            let digits = text.strip_prefix(['e', 'E'])?;
            let exponent: i32 = digits.strip_prefix('+').unwrap_or(digits).parse().ok()?;
            (1, exponent)
        }
    })
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let bad = || QuantityError(text.chars().take(64).collect());
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let (factor, exponent) = suffix(tail).ok_or_else(bad)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(bad());
        }
        // Digits beyond i128 are far outside the range; 30 significant digits are enough to saturate or round correctly.
        let digits: String = whole.chars().chain(fraction.chars()).collect();
        let digits = digits.trim_start_matches('0');
        if digits.len() > 512 {
            return Err(bad());
        }
        let kept = digits.len().min(19);
        let dropped_non_zero = digits[kept..].bytes().any(|b| b != b'0');
        let mut mantissa: i128 = if kept == 0 { 0 } else { digits[..kept].parse().map_err(|_| bad())? };
        let mut scale = 9_i64 + i64::from(exponent) - fraction.len() as i64 + (digits.len() - kept) as i64;
        if dropped_non_zero {
            mantissa += 1;
        }
        mantissa = mantissa.saturating_mul(factor);
        let limit = i64::MAX as i128 * NANO;
        while scale > 0 && mantissa != 0 {
            mantissa = mantissa.saturating_mul(10).min(limit);
            scale -= 1;
            if mantissa == limit {
                break;
            }
        }
        while scale < 0 && mantissa != 0 {
            // Past this point one unit is left of any positive number, and rounding up keeps it.
            let step = u32::try_from((-scale).min(18)).unwrap_or(18);
            mantissa = div_up(mantissa, 10_i128.pow(step));
            scale += i64::from(step);
            if mantissa == 1 && scale < 0 {
                break;
            }
        }
        let mantissa = mantissa.min(limit);
        Ok(Self(if negative { -mantissa } else { mantissa }))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0;
        if value % NANO == 0 {
            let units = value / NANO;
            for (shift, name) in [(60, "Ei"), (50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")] {
                if units != 0 && units % (1_i128 << shift) == 0 {
                    return write!(f, "{}{name}", units >> shift);
                }
            }
            write!(f, "{units}")
        } else if value % (NANO / 1000) == 0 {
            write!(f, "{}m", value / (NANO / 1000))
        } else if value % 1000 == 0 {
            write!(f, "{}u", value / 1000)
        } else {
            write!(f, "{value}n")
        }
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Quantity, E> {
                Ok(Quantity::units(value))
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Quantity, E> {
                Ok(Quantity::units(i64::try_from(value).unwrap_or(i64::MAX)))
            }
            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Quantity, E> {
                format!("{value}").parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_mean_what_upstream_says() {
        for (text, milli) in [
            ("0", 0),
            ("100m", 100),
            ("1", 1000),
            ("1.5", 1500),
            (".5", 500),
            ("1.", 1000),
            ("2k", 2_000_000),
            ("1Ki", 1_024_000),
            ("1.5Gi", 1_610_612_736_000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("1E", 1_000_000_000_000_000_000_i64.saturating_mul(1000)),
            ("12e-1", 1200),
            ("1n", 1),
            ("100u", 1),
            ("-1", -1000),
            ("+1", 1000),
            ("0.0000000001", 1),
        ] {
            assert_eq!(text.parse::<Quantity>().unwrap().milli_value(), milli, "{text}");
        }
        for text in ["", "m", "1x", "1.2.3", "--1", "1 ", "0x10", "1KiB", "e3"] {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
        assert_eq!(serde_json::from_str::<Quantity>("3").unwrap(), Quantity::units(3));
        assert_eq!("9223372036854775808".parse::<Quantity>().unwrap().value(), i64::MAX);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[-+0-9.eEkKmMiunGTP ]{0,24}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn printing_reads_back(nano in -1_000_000_000_000_000_000_i128..1_000_000_000_000_000_000_i128) {
            let quantity = Quantity(nano);
            prop_assert_eq!(quantity.to_string().parse::<Quantity>().unwrap(), quantity);
        }
    }
}
