//! The strings library. Positions count characters.

use super::{Function, NONE, standard};
use crate::value::{EvalError, List, Result, Value};

/// A result of `replace`, `join` or `format` has at most this many bytes.
const MAX: usize = 8 << 20;

pub fn lookup(name: &str) -> Option<Function> {
    Some(match name {
        "charAt" => |a| {
            let (s, i) = standard::two(a)?;
            let (s, i) = (s.str()?, i.int()?);
            let at = usize::try_from(i).map_err(|_| out_of_range(i))?;
            match s.chars().nth(at) {
                Some(c) => Ok(Value::string(c.to_string())),
                None if s.chars().count() == at => Ok(Value::borrowed("")),
                None => Err(out_of_range(i)),
            }
        },
        "lowerAscii" => |a| Ok(Value::string(text(a)?.to_ascii_lowercase())),
        "upperAscii" => |a| Ok(Value::string(text(a)?.to_ascii_uppercase())),
        "trim" => |a| Ok(Value::string(text(a)?.trim())),
        "replace" => replace,
        "split" => split,
        "substring" => substring,
        "join" => join,
        "format" => format,
        "strings.quote" => |a| Ok(Value::string(quote(text(a)?))),
        "jsonpatch.escapeKey" => |a| Ok(Value::string(text(a)?.replace('~', "~0").replace('/', "~1"))),
        _ => return None,
    })
}

fn text<'x>(args: &'x [Value<'_>]) -> Result<&'x str> {
    args.first().ok_or(NONE)?.str()
}

fn out_of_range(i: i64) -> EvalError {
    EvalError::other(format!("index out of range: {i}"))
}

fn bounded<'a>(s: String) -> Result<Value<'a>> {
    if s.len() > MAX { Err(EvalError::other("string is too long")) } else { Ok(Value::string(s)) }
}

/// `indexOf` and `lastIndexOf` of strings.
pub fn index_of<'a>(args: &[Value<'a>], last: bool) -> Result<Value<'a>> {
    let [s, part, rest @ ..] = args else { return Err(NONE) };
    let (s, part): (Vec<char>, Vec<char>) = (s.str()?.chars().collect(), part.str()?.chars().collect());
    let from = match rest {
        [] => None,
        [i] => {
            let i = i.int()?;
            Some(usize::try_from(i).ok().filter(|i| *i <= s.len()).ok_or_else(|| out_of_range(i))?)
        }
        _ => return Err(NONE),
    };
    let fits = |i: &usize| s.get(*i..*i + part.len()) == Some(&part[..]);
    let end = s.len().checked_sub(part.len());
    let found = match (end, last) {
        (None, _) => None,
        (Some(end), false) => (from.unwrap_or(0)..=end).find(fits),
        (Some(end), true) => (0..=from.unwrap_or(end).min(end)).rev().find(fits),
    };
    Ok(found.map_or(Value::Int(-1), standard::count))
}

fn replace<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    let [s, from, to, rest @ ..] = args else { return Err(NONE) };
    let (s, from, to) = (s.str()?, from.str()?, to.str()?);
    let limit = match rest {
        [n] => usize::try_from(n.int()?).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let times = if from.is_empty() { s.chars().count() + 1 } else { s.matches(from).count() }.min(limit);
    if s.len().saturating_add(times.saturating_mul(to.len())) > MAX {
        return Err(EvalError::other("string is too long"));
    }
    Ok(Value::string(s.replacen(from, to, limit)))
}

fn split<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    let [s, by, rest @ ..] = args else { return Err(NONE) };
    let (s, by) = (s.str()?, by.str()?);
    let limit = match rest {
        [n] => usize::try_from(n.int()?).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let parts: Vec<Value<'a>> = match limit {
        0 => Vec::new(),
        n if by.is_empty() => {
            let mut rest = s;
            let mut out = Vec::new();
            while let Some(c) = rest.chars().next() {
                if out.len() + 1 == n {
                    break;
                }
                out.push(Value::string(&rest[..c.len_utf8()]));
                rest = &rest[c.len_utf8()..];
            }
            if !rest.is_empty() {
                out.push(Value::string(rest));
            }
            out
        }
        n => s.splitn(n, by).map(Value::string).collect(),
    };
    Ok(Value::list(parts))
}

fn substring<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    let [s, from, rest @ ..] = args else { return Err(NONE) };
    let (s, from) = (s.str()?, from.int()?);
    let len = s.chars().count();
    let place = |i: i64| usize::try_from(i).ok().filter(|i| *i <= len).ok_or_else(|| out_of_range(i));
    let begin = place(from)?;
    let end = match rest {
        [to] => {
            let to = to.int()?;
            if to < from {
                return Err(EvalError::other(format!("invalid substring range. start: {from}, end: {to}")));
            }
            place(to)?
        }
        _ => len,
    };
    Ok(Value::string(s.chars().skip(begin).take(end - begin).collect::<String>()))
}

fn join<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    let [list, rest @ ..] = args else { return Err(NONE) };
    let by = match rest {
        [by] => by.str()?,
        _ => "",
    };
    let mut out = String::new();
    for (i, v) in list.as_list()?.iter().enumerate() {
        if i > 0 {
            out.push_str(by);
        }
        out.push_str(v.str()?);
        if out.len() > MAX {
            return Err(EvalError::other("string is too long"));
        }
    }
    Ok(Value::string(out))
}

fn quote(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value as `%s` shows it.
fn plain(v: &Value<'_>) -> String {
    match v {
        Value::String(t) => t.as_str().to_owned(),
        Value::Double(d) => standard::double(*d),
        Value::Bytes(b) => String::from_utf8_lossy(b).into_owned(),
        Value::Null => "null".into(),
        Value::List(l) => list(l),
        Value::Map(m) => {
            let mut all: Vec<String> = m.entries().iter().map(|(k, v)| format!("{}: {}", plain(k), plain(v))).collect();
            all.sort();
            format!("{{{}}}", all.join(", "))
        }
        Value::Timestamp(t) => super::time::format_timestamp(t),
        Value::Duration(d) => super::time::format_duration(*d),
        Value::Type(t) => t.to_string(),
        v => super::shown(v),
    }
}

fn list(l: &List<'_>) -> String {
    let all: Vec<String> = l.iter().map(|v| plain(&v)).collect();
    format!("[{}]", all.join(", "))
}

fn format<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    let (pattern, values) = standard::two(args)?;
    let (pattern, mut values) = (pattern.str()?, values.as_list()?.iter());
    let mut out = String::new();
    let mut chars = pattern.chars().peekable();
    let mut used = 0;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut n = 0usize;
            while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
                n = n * 10 + d as usize;
                if n > 100 {
                    return Err(EvalError::other("precision is too large"));
                }
                chars.next();
            }
            precision = Some(n);
        }
        let verb = chars.next().ok_or_else(|| EvalError::other("unexpected end of string"))?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let v = values.next().ok_or_else(|| EvalError::other(format!("index {used} out of range")))?;
        used += 1;
        out.push_str(&clause(verb, precision, &v)?);
        if out.len() > MAX {
            break;
        }
    }
    bounded(out)
}

fn clause(verb: char, precision: Option<usize>, v: &Value<'_>) -> Result<String> {
    let wrong = || EvalError::other(format!("error during formatting: {verb} clause cannot be used on {}", v.type_of()));
    Ok(match (verb, v) {
        ('s', v) => plain(v),
        ('d', Value::Int(i)) => i.to_string(),
        ('d', Value::Uint(u)) => u.to_string(),
        ('d', Value::Double(d)) if d.is_nan() || d.is_infinite() => standard::double(*d),
        ('f' | 'e', v) => {
            let d = match v {
                Value::Double(d) => *d,
                Value::Int(i) => *i as f64,
                Value::Uint(u) => *u as f64,
                _ => return Err(wrong()),
            };
            let p = precision.unwrap_or(6);
            if verb == 'f' {
                format!("{d:.p$}")
            } else {
                let text = format!("{d:.p$e}");
                let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
                format!("{mantissa}e{sign}{digits:0>2}")
            }
        }
        ('b', Value::Int(i)) if *i < 0 => format!("-{:b}", i.unsigned_abs()),
        ('b', Value::Int(i)) => format!("{i:b}"),
        ('b', Value::Uint(u)) => format!("{u:b}"),
        ('b', Value::Bool(b)) => u8::from(*b).to_string(),
        ('o', Value::Int(i)) if *i < 0 => format!("-{:o}", i.unsigned_abs()),
        ('o', Value::Int(i)) => format!("{i:o}"),
        ('o', Value::Uint(u)) => format!("{u:o}"),
        ('x' | 'X', v) => {
            let text = match v {
                Value::Int(i) if *i < 0 => format!("-{:x}", i.unsigned_abs()),
                Value::Int(i) => format!("{i:x}"),
                Value::Uint(u) => format!("{u:x}"),
                Value::String(t) => t.as_str().bytes().map(|b| format!("{b:02x}")).collect(),
                Value::Bytes(b) => b.iter().map(|b| format!("{b:02x}")).collect(),
                _ => return Err(wrong()),
            };
            if verb == 'X' { text.to_uppercase() } else { text }
        }
        ('d' | 'b' | 'o', _) => return Err(wrong()),
        (other, _) => {
            return Err(EvalError::other(format!("could not parse formatting clause: unrecognized formatting clause \"{other}\"")));
        }
    })
}
