//! Timestamps and durations.

use jiff::{Timestamp, civil::Weekday, tz::TimeZone};

use super::{Function, NONE};
use crate::value::{EvalError, Result, Value};

const SECOND: i64 = 1_000_000_000;

pub fn lookup(name: &str) -> Option<Function> {
    Some(match name {
        "timestamp" => |a| match a {
            [Value::Timestamp(t)] => Ok(Value::Timestamp(*t)),
            [Value::Int(s)] => {
                let t = Timestamp::from_second(*s).ok().filter(in_range);
                t.map(Value::Timestamp).ok_or(EvalError::Overflow("timestamp"))
            }
            [Value::String(t)] => match parse_timestamp(t.as_str()) {
                Some(t) => Ok(Value::Timestamp(t)),
                None => Err(EvalError::other(format!("parsing time {:?} as \"2006-01-02T15:04:05Z07:00\"", t.as_str()))),
            },
            _ => Err(NONE),
        },
        "duration" => |a| match a {
            [Value::Duration(d)] => Ok(Value::Duration(*d)),
            [Value::Int(n)] => Ok(Value::Duration(*n)),
            [Value::String(t)] => match parse_duration(t.as_str()) {
                Some(d) => Ok(Value::Duration(d)),
                None => Err(EvalError::other(format!("time: invalid duration {:?}", t.as_str()))),
            },
            _ => Err(NONE),
        },
        "getFullYear" => |a| part(a, |z| z.year().into()),
        "getMonth" => |a| part(a, |z| i64::from(z.month()) - 1),
        "getDayOfYear" => |a| part(a, |z| i64::from(z.day_of_year()) - 1),
        "getDayOfMonth" => |a| part(a, |z| i64::from(z.day()) - 1),
        "getDate" => |a| part(a, |z| z.day().into()),
        "getDayOfWeek" => |a| part(a, |z| weekday(z.weekday())),
        "getHours" => |a| match a {
            [Value::Duration(d)] => Ok(Value::Int(d / (3600 * SECOND))),
            a => part(a, |z| z.hour().into()),
        },
        "getMinutes" => |a| match a {
            [Value::Duration(d)] => Ok(Value::Int(d / (60 * SECOND))),
            a => part(a, |z| z.minute().into()),
        },
        "getSeconds" => |a| match a {
            [Value::Duration(d)] => Ok(Value::Int(d / SECOND)),
            a => part(a, |z| z.second().into()),
        },
        "getMilliseconds" => |a| match a {
            [Value::Duration(d)] => Ok(Value::Int(d / 1_000_000 % 1000)),
            a => part(a, |z| i64::from(z.subsec_nanosecond()) / 1_000_000),
        },
        _ => return None,
    })
}

fn weekday(d: Weekday) -> i64 {
    d.to_sunday_zero_offset().into()
}

/// Timestamps are of the years 1 to 9999.
pub fn in_range(t: &Timestamp) -> bool {
    (-62_135_596_800..=253_402_300_799).contains(&t.as_second())
}

fn part<'a>(args: &[Value<'a>], f: fn(&jiff::Zoned) -> i64) -> Result<Value<'a>> {
    let (t, zone) = match args {
        [Value::Timestamp(t)] => (t, TimeZone::UTC),
        [Value::Timestamp(t), Value::String(z)] => (t, zone(z.as_str())?),
        _ => return Err(NONE),
    };
    Ok(Value::Int(f(&t.to_zoned(zone))))
}

/// `UTC`, an offset such as `-08:00`, or a name if the machine knows it.
fn zone(name: &str) -> Result<TimeZone> {
    if name.is_empty() || name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    let (sign, digits) = match name.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, name.strip_prefix('+').unwrap_or(name)),
    };
    if let Some((h, m)) = digits.split_once(':')
        && let (Ok(h), Ok(m)) = (h.parse::<i32>(), m.parse::<i32>())
        && (0..24).contains(&h)
        && (0..60).contains(&m)
        && let Ok(offset) = jiff::tz::Offset::from_seconds(sign * (h * 3600 + m * 60))
    {
        return Ok(TimeZone::fixed(offset));
    }
    TimeZone::get(name).map_err(|_| EvalError::other(format!("unknown time zone {name}")))
}

/// RFC 3339, strictly.
pub fn parse_timestamp(s: &str) -> Option<Timestamp> {
    let ok = s.len() >= 20 && s.as_bytes()[10] == b'T' && s.as_bytes()[4] == b'-' && !s.contains('[');
    ok.then(|| s.parse::<Timestamp>().ok()).flatten().filter(in_range)
}

/// A timestamp or a date, as the formats of schemas have them.
pub fn parse_loose(s: &str) -> Option<Timestamp> {
    parse_timestamp(s).or_else(|| {
        let date: jiff::civil::Date = s.parse().ok()?;
        date.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp())
    })
}

pub fn format_timestamp(t: &Timestamp) -> String {
    t.to_string()
}

/// Go's durations: `1h30m`, `-1.5s`, `100ms`.
pub fn parse_duration(s: &str) -> Option<i64> {
    let (negative, mut rest) = match s.strip_prefix('-') {
        Some(r) => (true, r),
        None => (false, s.strip_prefix('+').unwrap_or(s)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || whole.len() > 19 {
            return None;
        }
        total += whole.parse::<i128>().unwrap_or(0) * scale;
        let mut unit = scale;
        for d in fraction.bytes().take(18) {
            total += unit * i128::from(d - b'0') / 10;
            unit /= 10;
        }
        if total > i128::from(i64::MAX) {
            return None;
        }
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Seconds, as the language shows durations: `90s`, `1.5s`.
pub fn format_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let (whole, rest) = (n / 1_000_000_000, n % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{whole}s");
    }
    let fraction = format!("{rest:09}");
    format!("{sign}{whole}.{}s", fraction.trim_end_matches('0'))
}
