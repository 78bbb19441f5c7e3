//! Times and durations as Go writes and reads them: RFC 3339 with Go's parsing errors, `1h0m0s` durations.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::fmt::Write;

/// Go's zero time, year 1, in Unix seconds. It stands for "no time".
pub const ZERO_SECONDS: i64 = -62_135_596_800;

/// Seconds as `2006-01-02T15:04:05Z`. Years outside 0–9999 are clamped (Go refuses to write them).
pub fn format_seconds(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds.clamp(ZERO_SECONDS, 253_402_300_799)) {
        Ok(t) => {
            let d = TimeZone::UTC.to_datetime(t);
            format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", d.year(), d.month(), d.day(), d.hour(), d.minute(), d.second())
        }
        Err(_) => "9999-12-31T23:59:59Z".to_owned(),
    }
}

/// Microseconds as `2006-01-02T15:04:05.000000Z`.
pub fn format_micros(micros: i64) -> String {
    let seconds = micros.div_euclid(1_000_000);
    let mut text = format_seconds(seconds);
    text.pop();
    let _ = write!(text, ".{:06}Z", micros.rem_euclid(1_000_000));
    text
}

/// Parses RFC 3339 into (seconds, nanoseconds). The error is the one of Go's `time.Parse` with the given layout name.
pub fn parse(text: &str, layout: &str) -> Result<(i64, u32), String> {
    Parser { text, rest: text, layout }.run()
}

/// The layout that `metav1.Time` parses.
pub const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
/// The layout that `metav1.MicroTime` parses.
pub const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    layout: &'a str,
}

impl Parser<'_> {
    fn fail<T>(&self, element: &str) -> Result<T, String> {
        Err(format!("parsing time {} as {}: cannot parse {} as {}", quote(self.text), quote(self.layout), quote(self.rest), quote(element)))
    }

    fn range<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("parsing time {}: {what} out of range", quote(self.text)))
    }

    fn digits(&mut self, count: usize, element: &str) -> Result<i64, String> {
        match self.rest.as_bytes().get(..count) {
            Some(d) if d.iter().all(u8::is_ascii_digit) => {
                let value = d.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0'));
                self.rest = &self.rest[count..];
                Ok(value)
            }
            _ => self.fail(element),
        }
    }

    fn literal(&mut self, c: char) -> Result<(), String> {
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => self.fail(&c.to_string()),
        }
    }

    fn run(mut self) -> Result<(i64, u32), String> {
        let year = self.digits(4, "2006")?;
        self.literal('-')?;
        let month = self.digits(2, "01")?;
        if !(1..=12).contains(&month) {
            return self.range("month");
        }
        self.literal('-')?;
        let day = self.digits(2, "02")?;
        self.literal('T')?;
        // Go's hour takes one digit or two.
        let two = self.rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        let hour = self.digits(if two { 2 } else { 1 }, "15")?;
        if hour > 23 {
            return self.range("hour");
        }
        self.literal(':')?;
        let minute = self.digits(2, "04")?;
        if minute > 59 {
            return self.range("minute");
        }
        self.literal(':')?;
        let second = self.digits(2, "05")?;
        if second > 59 {
            return self.range("second");
        }
        let nanos = self.fraction()?;
        let offset = self.zone()?;
        if !self.rest.is_empty() {
            return Err(format!("parsing time {}: extra text: {}", quote(self.text), quote(self.rest)));
        }
        let Ok(civil) = DateTime::new(year as i16, month as i8, day as i8, hour as i8, minute as i8, second as i8, 0) else {
            return self.range("day");
        };
        match TimeZone::UTC.to_timestamp(civil) {
            Ok(t) => Ok((t.as_second() - offset, nanos)),
            Err(_) => self.range("day"),
        }
    }

    fn fraction(&mut self) -> Result<u32, String> {
        let fixed = self.layout == RFC3339_MICRO;
        let bytes = self.rest.as_bytes();
        if !matches!(bytes.first(), Some(b'.' | b',')) || !bytes.get(1).is_some_and(u8::is_ascii_digit) {
            return if fixed { self.fail(".000000") } else { Ok(0) };
        }
        let count = bytes[1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if fixed && count < 6 {
            return self.fail(".000000");
        }
        let take = if fixed { 6 } else { count };
        let mut nanos = 0u32;
        for i in 0..9 {
            nanos = nanos * 10 + if i < take { u32::from(bytes[1 + i] - b'0') } else { 0 };
        }
        self.rest = &self.rest[1 + take..];
        Ok(nanos)
    }

    fn zone(&mut self) -> Result<i64, String> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let number = |at: usize| -> Option<i64> {
            let d = self.rest.as_bytes().get(at..at + 2)?;
            d.iter().all(u8::is_ascii_digit).then(|| i64::from(d[0] - b'0') * 10 + i64::from(d[1] - b'0'))
        };
        let sign = match self.rest.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return self.fail("Z07:00"),
        };
        let (Some(hours), Some(b':'), Some(minutes)) = (number(1), self.rest.as_bytes().get(3), number(4)) else {
            return self.fail("Z07:00");
        };
        if hours > 24 {
            return self.range("time zone offset hour");
        }
        if minutes > 60 {
            return self.range("time zone offset minute");
        }
        self.rest = &self.rest[6..];
        Ok(sign * (hours * 3600 + minutes * 60))
    }
}

/// Go's `strconv.Quote` for what stands in errors.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A duration as Go writes it: `1h2m3.5s`, `1.5ms`, `0s`.
pub fn format_duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".to_owned();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let fraction = |whole: u64, part: u64, width: usize| -> String {
        let digits = format!("{part:0width$}");
        let digits = digits.trim_end_matches('0');
        if digits.is_empty() { whole.to_string() } else { format!("{whole}.{digits}") }
    };
    if n < 1_000 {
        return format!("{sign}{n}ns");
    }
    if n < 1_000_000 {
        return format!("{sign}{}µs", fraction(n / 1_000, n % 1_000, 3));
    }
    if n < 1_000_000_000 {
        return format!("{sign}{}ms", fraction(n / 1_000_000, n % 1_000_000, 6));
    }
    let (seconds, part) = (n / 1_000_000_000, n % 1_000_000_000);
    let tail = format!("{}s", fraction(seconds % 60, part, 9));
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{sign}{tail}"),
        (0, m) => format!("{sign}{m}m{tail}"),
        (h, m) => format!("{sign}{h}h{m}m{tail}"),
    }
}

/// Parses a Go duration into nanoseconds; the error is Go's.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole = rest.bytes().take_while(u8::is_ascii_digit).count();
        let mut value: i128 = if whole == 0 { 0 } else { rest[..whole].parse().map_err(|_| invalid())? };
        let mut divisor: i128 = 1;
        let mut at = whole;
        if rest[at..].starts_with('.') {
            let digits = rest[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
            if whole == 0 && digits == 0 {
                return Err(invalid());
            }
            for d in rest[at + 1..at + 1 + digits].bytes().take(18) {
                value = value.checked_mul(10).and_then(|v| v.checked_add(i128::from(d - b'0'))).ok_or_else(invalid)?;
                divisor *= 10;
            }
            at += 1 + digits;
        } else if whole == 0 {
            return Err(invalid());
        }
        let letters = rest[at..].bytes().take_while(|b| *b != b'.' && !b.is_ascii_digit()).count();
        let unit: i128 = match &rest[at..at + letters] {
            "" => return Err(format!("time: missing unit in duration {}", quote(text))),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            other => return Err(format!("time: unknown unit {} in duration {}", quote(other), quote(text))),
        };
        total = value.checked_mul(unit).map(|v| v / divisor).and_then(|v| total.checked_add(v)).ok_or_else(invalid)?;
        rest = &rest[at + letters..];
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_read_as_go_reads_them() {
        for (text, want) in [
            ("2020-01-01T00:00:00Z", Ok((1_577_836_800, 0))),
            ("2020-01-01T02:00:00+02:00", Ok((1_577_836_800, 0))),
            ("2020-01-01T00:00:00.5Z", Ok((1_577_836_800, 500_000_000))),
            ("0001-01-01T00:00:00Z", Ok((ZERO_SECONDS, 0))),
            ("yesterday", Err(r#"parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#)),
            ("", Err(r#"parsing time "" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "2006""#)),
            ("2020-13-01T00:00:00Z", Err(r#"parsing time "2020-13-01T00:00:00Z": month out of range"#)),
            ("2020-02-30T00:00:00Z", Err(r#"parsing time "2020-02-30T00:00:00Z": day out of range"#)),
            ("2020-01-01", Err(r#"parsing time "2020-01-01" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#)),
            ("2020-01-01T00:00:00Zx", Err(r#"parsing time "2020-01-01T00:00:00Zx": extra text: "x""#)),
        ] {
            assert_eq!(parse(text, RFC3339), want.map_err(str::to_owned), "{text}");
        }
        assert_eq!(format_seconds(1_577_836_800), "2020-01-01T00:00:00Z");
        assert_eq!(format_micros(1_577_836_800_000_001), "2020-01-01T00:00:00.000001Z");
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, want) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (1_500_000, "1.5ms"),
            (1_000_000_000, "1s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (-1_500_000_000, "-1.5s"),
        ] {
            assert_eq!(format_duration(nanos), want);
            assert_eq!(parse_duration(want), Ok(nanos));
        }
        assert_eq!(parse_duration("x").unwrap_err(), "time: invalid duration \"x\"");
        assert_eq!(parse_duration("1").unwrap_err(), "time: missing unit in duration \"1\"");
    }

    proptest! {
        #[test]
        fn durations_round_trip(nanos: i64) {
            prop_assume!(nanos != i64::MIN);
            prop_assert_eq!(parse_duration(&format_duration(nanos)), Ok(nanos));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = parse(&text, RFC3339);
            let _ = parse(&text, RFC3339_MICRO);
            let _ = parse_duration(&text);
        }
    }
}
