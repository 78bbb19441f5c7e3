//! Kubernetes' lists and sets libraries, and those names that strings, quantities and versions share.

use std::cmp::Ordering;

use super::{Function, NONE, quantity, semver, standard, strings};
use crate::value::{EvalError, Ext, List, Result, Value};

pub fn lookup(name: &str) -> Option<Function> {
    Some(match name {
        "isSorted" => |a| {
            let items: Vec<_> = list(a)?.iter().collect();
            for w in items.windows(2) {
                if w[0].compare(&w[1])? == Some(Ordering::Greater) {
                    return Ok(Value::Bool(false));
                }
            }
            Ok(Value::Bool(true))
        },
        "sum" => |a| {
            let mut all = list(a)?.iter();
            let Some(first) = all.next() else { return Ok(Value::Int(0)) };
            all.try_fold(first, |sum, v| standard::add(&[sum, v]))
        },
        "min" => |a| extreme(a, Ordering::Less, "min"),
        "max" => |a| extreme(a, Ordering::Greater, "max"),
        "indexOf" => |a| match a {
            [Value::List(l), v] => Ok(l.iter().position(|x| x.equals(v)).map_or(Value::Int(-1), standard::count)),
            a => strings::index_of(a, false),
        },
        "lastIndexOf" => |a| match a {
            [Value::List(l), v] => {
                let all: Vec<_> = l.iter().collect();
                Ok(all.iter().rposition(|x| x.equals(v)).map_or(Value::Int(-1), standard::count))
            }
            a => strings::index_of(a, true),
        },
        "isLessThan" => |a| Ok(Value::Bool(compared(a)? == Ordering::Less)),
        "isGreaterThan" => |a| Ok(Value::Bool(compared(a)? == Ordering::Greater)),
        "compareTo" => |a| Ok(Value::Int(compared(a)? as i64)),
        "sets.contains" => |a| sets(a, |a, b| b.iter().all(|x| has(a, &x))),
        "sets.intersects" => |a| sets(a, |a, b| b.iter().any(|x| has(a, &x))),
        "sets.equivalent" => |a| sets(a, |a, b| b.iter().all(|x| has(a, &x)) && a.iter().all(|x| has(b, &x))),
        "semver" | "isSemver" | "major" | "minor" | "patch" => return semver::lookup(name),
        _ => return None,
    })
}

fn list<'x, 'a>(args: &'x [Value<'a>]) -> Result<&'x List<'a>> {
    args.first().ok_or(NONE)?.as_list()
}

fn has<'a>(l: &List<'a>, v: &Value<'a>) -> bool {
    l.iter().any(|x| x.equals(v))
}

fn sets<'a>(args: &[Value<'a>], f: fn(&List<'a>, &List<'a>) -> bool) -> Result<Value<'a>> {
    let (a, b) = standard::two(args)?;
    Ok(Value::Bool(f(a.as_list()?, b.as_list()?)))
}

fn extreme<'a>(args: &[Value<'a>], wanted: Ordering, name: &str) -> Result<Value<'a>> {
    let mut all = list(args)?.iter();
    let mut best = all.next().ok_or_else(|| EvalError::other(format!("{name} called on empty list")))?;
    for v in all {
        if v.compare(&best)? == Some(wanted) {
            best = v;
        }
    }
    Ok(best)
}

fn compared(args: &[Value<'_>]) -> Result<Ordering> {
    match args {
        [Value::Ext(Ext::Quantity(a)), Value::Ext(Ext::Quantity(b))] => Ok(quantity::compare(a, b)),
        [Value::Ext(Ext::Semver(a)), Value::Ext(Ext::Semver(b))] => Ok(a.compare(b)),
        _ => Err(NONE),
    }
}
