//! Resource quantities (`100m`, `128Mi`, `1.5`, `2e3`), kept as written and parsed when a number is needed.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A quantity as written. Numbers in a manifest are taken as their text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Quantity(pub String);

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a quantity")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Quantity, E> {
                Ok(Quantity(v.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Quantity, E> {
                Ok(Quantity(v.to_string()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Quantity, E> {
                Ok(Quantity(v.to_string()))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Quantity, E> {
                Ok(Quantity(v.to_string()))
            }
        }
        d.deserialize_any(Visitor)
    }
}

impl Quantity {
    /// The value in thousandths, rounded up. `None` when the text is not a quantity or does not fit.
    pub fn milli(&self) -> Option<i64> {
        self.scaled(1000)
    }

    /// The value in whole units, rounded up.
    pub fn value(&self) -> Option<i64> {
        self.scaled(1)
    }

    fn scaled(&self, unit: i128) -> Option<i64> {
        let text = self.0.trim();
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits_end);
        let (negative, number) = match number.as_bytes().first()? {
            b'-' => (true, &number[1..]),
            b'+' => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || whole.len() + fraction.len() > 24 {
            return None;
        }
        let mut numerator: i128 = 0;
        for digit in whole.bytes().chain(fraction.bytes()) {
            numerator = numerator * 10 + i128::from(digit.is_ascii_digit().then(|| digit - b'0')?);
        }
        let mut denominator = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        match suffix {
            "" => {}
            "n" => denominator = denominator.checked_mul(1_000_000_000)?,
            "u" => denominator = denominator.checked_mul(1_000_000)?,
            "m" => denominator = denominator.checked_mul(1000)?,
            "k" => numerator = numerator.checked_mul(1000)?,
            "M" => numerator = numerator.checked_mul(1_000_000)?,
            "G" => numerator = numerator.checked_mul(1_000_000_000)?,
            "T" => numerator = numerator.checked_mul(10i128.pow(12))?,
            "P" => numerator = numerator.checked_mul(10i128.pow(15))?,
            "E" => numerator = numerator.checked_mul(10i128.pow(18))?,
            "Ki" => numerator = numerator.checked_mul(1 << 10)?,
            "Mi" => numerator = numerator.checked_mul(1 << 20)?,
            "Gi" => numerator = numerator.checked_mul(1 << 30)?,
            "Ti" => numerator = numerator.checked_mul(1 << 40)?,
            "Pi" => numerator = numerator.checked_mul(1 << 50)?,
            "Ei" => numerator = numerator.checked_mul(1 << 60)?,
            exponent => {
                let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
                if !(-24..=24).contains(&power) {
                    return None;
                }
                let factor = 10i128.pow(power.unsigned_abs());
                if power >= 0 { numerator = numerator.checked_mul(factor)? } else { denominator = denominator.checked_mul(factor)? }
            }
        }
        let numerator = numerator.checked_mul(unit)?;
        let rounded = numerator / denominator + i128::from(numerator % denominator != 0);
        i64::try_from(if negative { -rounded } else { rounded }).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_thousandths() {
        for (text, milli, value) in [
            ("100m", 100, 1),
            ("1", 1000, 1),
            ("1.5", 1500, 2),
            ("128Mi", 134_217_728_000, 134_217_728),
            ("2e3", 2_000_000, 2000),
            ("1k", 1_000_000, 1000),
            ("100n", 1, 1),
            ("0", 0, 0),
            ("-1", -1000, -1),
            (".5", 500, 1),
        ] {
            let q = Quantity(text.into());
            assert_eq!((q.milli(), q.value()), (Some(milli), Some(value)), "{text}");
        }
        for text in ["", "m", "1x", "1.2.3", "1e99", "9999999999999999999E", "--1", "."] {
            assert_eq!(Quantity(text.into()).milli(), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_taken_as_text() {
        assert_eq!(serde_json::from_str::<Quantity>("2").unwrap().0, "2");
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,30}") {
            let _ = Quantity(text).milli();
        }
    }
}
