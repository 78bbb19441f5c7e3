//! The operators and conversions of the standard library.

use std::{cmp::Ordering, sync::Arc};

use super::{Function, NONE, regexes, time};
use crate::value::{EvalError, Ext, Map, Result, Text, Value};

pub fn lookup(name: &str) -> Option<Function> {
    Some(match name {
        "!_" => |a| match a {
            [Value::Bool(b)] => Ok(Value::Bool(!b)),
            _ => Err(NONE),
        },
        "-_" => |a| match a {
            [Value::Int(i)] => i.checked_neg().map(Value::Int).ok_or(INT),
            [Value::Double(d)] => Ok(Value::Double(-d)),
            _ => Err(NONE),
        },
        "_==_" => |a| Ok(Value::Bool(two(a)?.0.equals(two(a)?.1))),
        "_!=_" => |a| Ok(Value::Bool(!two(a)?.0.equals(two(a)?.1))),
        "_<_" => |a| ordered(a, |o| o == Ordering::Less),
        "_<=_" => |a| ordered(a, |o| o != Ordering::Greater),
        "_>_" => |a| ordered(a, |o| o == Ordering::Greater),
        "_>=_" => |a| ordered(a, |o| o != Ordering::Less),
        "_+_" => add,
        "_-_" => subtract,
        "_*_" => |a| match a {
            [Value::Int(a), Value::Int(b)] => a.checked_mul(*b).map(Value::Int).ok_or(INT),
            [Value::Uint(a), Value::Uint(b)] => a.checked_mul(*b).map(Value::Uint).ok_or(UINT),
            [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a * b)),
            _ => Err(NONE),
        },
        "_/_" => |a| match a {
            [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => Err(EvalError::DivisionByZero),
            [Value::Int(a), Value::Int(b)] => a.checked_div(*b).map(Value::Int).ok_or(INT),
            [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a / b)),
            [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a / b)),
            _ => Err(NONE),
        },
        "_%_" => |a| match a {
            [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => Err(EvalError::ModulusByZero),
            [Value::Int(a), Value::Int(b)] => a.checked_rem(*b).map(Value::Int).ok_or(INT),
            [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a % b)),
            _ => Err(NONE),
        },
        "@in" => |a| match a {
            [v, Value::List(l)] => Ok(Value::Bool(l.iter().any(|x| x.equals(v)))),
            [v, Value::Map(m)] => Ok(Value::Bool(m.get(v).is_some())),
            _ => Err(NONE),
        },
        "_[_]" => |a| index(a, false),
        "_[?_]" | "_?._" => |a| index(a, true),
        "size" => |a| match a {
            [Value::String(t)] => Ok(count(t.as_str().chars().count())),
            [Value::Bytes(b)] => Ok(count(b.len())),
            [Value::List(l)] => Ok(count(l.len())),
            [Value::Map(m)] => Ok(count(m.len())),
            _ => Err(NONE),
        },
        "type" => |a| Ok(Value::Type(Arc::new(one(a)?.type_of()))),
        "dyn" => |a| one(a).cloned(),
        "int" => to_int,
        "uint" => to_uint,
        "double" => |a| match one(a)? {
            Value::Double(d) => Ok(Value::Double(*d)),
            Value::Int(i) => Ok(Value::Double(*i as f64)),
            Value::Uint(u) => Ok(Value::Double(*u as f64)),
            Value::String(t) => t.as_str().parse().map(Value::Double).map_err(|_| EvalError::other("type conversion error")),
            _ => Err(NONE),
        },
        "bool" => |a| match one(a)? {
            Value::Bool(b) => Ok(Value::Bool(*b)),
            Value::String(t) => match t.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
                other => Err(EvalError::other(format!("Type conversion error: '{other}' to 'bool'"))),
            },
            _ => Err(NONE),
        },
        "string" => to_string,
        "bytes" => |a| match one(a)? {
            Value::Bytes(b) => Ok(Value::Bytes(Arc::clone(b))),
            Value::String(t) => Ok(Value::Bytes(t.as_str().as_bytes().into())),
            _ => Err(NONE),
        },
        "startsWith" => |a| Ok(Value::Bool(two(a)?.0.str()?.starts_with(two(a)?.1.str()?))),
        "endsWith" => |a| Ok(Value::Bool(two(a)?.0.str()?.ends_with(two(a)?.1.str()?))),
        "contains" => |a| Ok(Value::Bool(two(a)?.0.str()?.contains(two(a)?.1.str()?))),
        "matches" => regexes::matches,
        "find" => regexes::find,
        "findAll" => regexes::find_all,
        "cel.@mapInsert" => insert,
        _ => return None,
    })
}

const INT: EvalError = EvalError::Overflow("integer");
const UINT: EvalError = EvalError::Overflow("unsigned integer");
const DURATION: EvalError = EvalError::Overflow("duration");
const TIMESTAMP: EvalError = EvalError::Overflow("timestamp");

pub fn count<'a>(n: usize) -> Value<'a> {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn one<'x, 'a>(args: &'x [Value<'a>]) -> Result<&'x Value<'a>> {
    args.first().ok_or(NONE)
}

pub fn two<'x, 'a>(args: &'x [Value<'a>]) -> Result<(&'x Value<'a>, &'x Value<'a>)> {
    match args {
        [a, b] => Ok((a, b)),
        _ => Err(NONE),
    }
}

fn ordered<'a>(args: &[Value<'a>], wanted: fn(Ordering) -> bool) -> Result<Value<'a>> {
    let (a, b) = two(args)?;
    Ok(Value::Bool(a.compare(b)?.is_some_and(wanted)))
}

fn shifted<'a>(t: &jiff::Timestamp, by: i64, back: bool) -> Result<Value<'a>> {
    let d = jiff::SignedDuration::from_nanos(by);
    let moved = if back { t.checked_sub(d) } else { t.checked_add(d) };
    moved.ok().filter(time::in_range).map(Value::Timestamp).ok_or(TIMESTAMP)
}

pub fn add<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    match args {
        [Value::Int(a), Value::Int(b)] => a.checked_add(*b).map(Value::Int).ok_or(INT),
        [Value::Uint(a), Value::Uint(b)] => a.checked_add(*b).map(Value::Uint).ok_or(UINT),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a + b)),
        [Value::String(a), Value::String(b)] => Ok(Value::string([a.as_str(), b.as_str()].concat())),
        [Value::Bytes(a), Value::Bytes(b)] => Ok(Value::Bytes([&**a, &**b].concat().into())),
        [Value::List(a), Value::List(b)] => Ok(a.plus(b)),
        [Value::Timestamp(t), Value::Duration(d)] | [Value::Duration(d), Value::Timestamp(t)] => shifted(t, *d, false),
        [Value::Duration(a), Value::Duration(b)] => a.checked_add(*b).map(Value::Duration).ok_or(DURATION),
        _ => Err(NONE),
    }
}

fn subtract<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    match args {
        [Value::Int(a), Value::Int(b)] => a.checked_sub(*b).map(Value::Int).ok_or(INT),
        [Value::Uint(a), Value::Uint(b)] => a.checked_sub(*b).map(Value::Uint).ok_or(UINT),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a - b)),
        [Value::Timestamp(a), Value::Timestamp(b)] => {
            let nanos = a.as_nanosecond() - b.as_nanosecond();
            i64::try_from(nanos).map(Value::Duration).map_err(|_| DURATION)
        }
        [Value::Timestamp(t), Value::Duration(d)] => shifted(t, *d, true),
        [Value::Duration(a), Value::Duration(b)] => a.checked_sub(*b).map(Value::Duration).ok_or(DURATION),
        _ => Err(NONE),
    }
}

/// `a[i]`, and what `a[?i]` and `a.?i` give.
fn index<'a>(args: &[Value<'a>], optional: bool) -> Result<Value<'a>> {
    let (of, i) = two(args)?;
    let (of, chained) = match of {
        Value::Optional(None) => return Ok(Value::Optional(None)),
        Value::Optional(Some(v)) => (&**v, true),
        v => (v, false),
    };
    let wrap = optional || chained;
    let found = match of {
        Value::List(l) => {
            let at = match i {
                Value::Int(i) => *i,
                Value::Uint(u) => i64::try_from(*u).map_err(|_| NONE)?,
                Value::Double(d) if d.fract() == 0.0 => *d as i64,
                _ => return Err(NONE),
            };
            match usize::try_from(at).ok().and_then(|at| l.get(at)) {
                None if !wrap => return Err(EvalError::OutOfBounds(at)),
                found => found,
            }
        }
        Value::Map(m) => match m.get(i) {
            Some(Value::Failed(e)) => return Err((*e).clone()),
            None if !wrap => return Err(EvalError::NoSuchKey(super::shown(i))),
            found => found,
        },
        _ => return Err(NONE),
    };
    match found {
        found if wrap => Ok(Value::Optional(found.map(Arc::new))),
        Some(v) => Ok(v),
        None => Err(NONE),
    }
}

fn to_int<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    match one(args)? {
        Value::Int(i) => Ok(Value::Int(*i)),
        Value::Uint(u) => i64::try_from(*u).map(Value::Int).map_err(|_| INT),
        Value::Double(d) if d.abs() < 9_223_372_036_854_775_807.0 => Ok(Value::Int(*d as i64)),
        Value::Double(_) => Err(INT),
        Value::String(t) => t.as_str().parse().map(Value::Int).map_err(|_| EvalError::other("type conversion error")),
        Value::Timestamp(t) => Ok(Value::Int(t.as_second())),
        Value::Duration(d) => Ok(Value::Int(*d)),
        _ => Err(NONE),
    }
}

fn to_uint<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    match one(args)? {
        Value::Uint(u) => Ok(Value::Uint(*u)),
        Value::Int(i) => u64::try_from(*i).map(Value::Uint).map_err(|_| UINT),
        Value::Double(d) if *d >= 0.0 && *d < 18_446_744_073_709_551_615.0 => Ok(Value::Uint(*d as u64)),
        Value::Double(_) => Err(UINT),
        Value::String(t) => t.as_str().parse().map(Value::Uint).map_err(|_| EvalError::other("type conversion error")),
        _ => Err(NONE),
    }
}

fn to_string<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    Ok(match one(args)? {
        Value::String(t) => Value::String(t.clone()),
        Value::Bool(b) => Value::string(b.to_string()),
        Value::Int(i) => Value::string(i.to_string()),
        Value::Uint(u) => Value::string(u.to_string()),
        Value::Double(d) => Value::string(double(*d)),
        Value::Bytes(b) => {
            let text = std::str::from_utf8(b).map_err(|_| EvalError::other("invalid UTF-8 in bytes, cannot convert to string"))?;
            Value::String(Text::Shared(text.into()))
        }
        Value::Timestamp(t) => Value::string(time::format_timestamp(t)),
        Value::Duration(d) => Value::string(time::format_duration(*d)),
        Value::Ext(Ext::Url(u)) => Value::string(u.text.as_str()),
        Value::Ext(Ext::Ip(ip)) => Value::string(ip.to_string()),
        Value::Ext(Ext::Cidr(c)) => Value::string(c.to_string()),
        _ => return Err(NONE),
    })
}

/// A double as Go's `%g` shows it: large and small ones with an exponent.
pub fn double(d: f64) -> String {
    if d.is_nan() {
        return "NaN".into();
    }
    if d.is_infinite() {
        return if d > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let magnitude = d.abs();
    if d != 0.0 && !(1e-4..1e21).contains(&magnitude) {
        let text = format!("{d:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{d}")
}

fn insert<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    let Some(Value::Map(m)) = args.first() else { return Err(NONE) };
    let mut out = std::collections::BTreeMap::new();
    let more = match args.get(1..) {
        Some([k, v]) => vec![(k.clone(), v.clone())],
        Some([Value::Map(x)]) => x.entries(),
        _ => return Err(NONE),
    };
    for (k, v) in m.entries().into_iter().chain(more) {
        if out.insert(k.key()?, (k, v)).is_some() {
            return Err(EvalError::other("insert failed: key already exists"));
        }
    }
    Ok(Value::Map(Map::Owned(Arc::new(out))))
}
