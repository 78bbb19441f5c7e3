//! Semantic versions.

use std::{cmp::Ordering, sync::Arc};

use super::{Function, NONE};
use crate::value::{EvalError, Ext, Result, Value};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<String>,
}

pub fn lookup(name: &str) -> Option<Function> {
    Some(match name {
        "semver" => |a| parsed(a)?.map(|v| Value::Ext(Ext::Semver(Arc::new(v)))).map_err(EvalError::other),
        "isSemver" => |a| Ok(Value::Bool(parsed(a)?.is_ok())),
        "major" => |a| number(a, 0),
        "minor" => |a| number(a, 1),
        "patch" => |a| number(a, 2),
        _ => return None,
    })
}

fn number<'a>(args: &[Value<'a>], i: usize) -> Result<Value<'a>> {
    match args {
        [Value::Ext(Ext::Semver(v))] => i64::try_from(v.numbers[i]).map(Value::Int).map_err(|_| EvalError::Overflow("integer")),
        _ => Err(NONE),
    }
}

fn parsed(args: &[Value<'_>]) -> Result<std::result::Result<Semver, &'static str>> {
    match args {
        [s] | [s, Value::Bool(false)] => Ok(parse(s.str()?)),
        [s, Value::Bool(true)] => Ok(parse(&normalized(s.str()?))),
        _ => Err(NONE),
    }
}

/// Without a `v` in front, with three numbers that have no leading zeroes.
fn normalized(s: &str) -> String {
    let s = s.trim();
    let s = s.strip_prefix('v').unwrap_or(s);
    let end = s.find(['-', '+']).unwrap_or(s.len());
    let (core, rest) = s.split_at(end);
    let mut parts: Vec<String> = core
        .split('.')
        .map(|p| {
            let short = p.trim_start_matches('0');
            if short.is_empty() && !p.is_empty() { "0".to_owned() } else { short.to_owned() }
        })
        .collect();
    while parts.len() < 3 {
        parts.push("0".into());
    }
    format!("{}{rest}", parts.join("."))
}

/// The version that the text is, of which nothing may be missing.
pub fn parse(s: &str) -> std::result::Result<Semver, &'static str> {
    if s.is_empty() {
        return Err("Version string empty");
    }
    let (s, build) = s.split_once('+').map_or((s, None), |(a, b)| (a, Some(b)));
    let (core, pre) = s.split_once('-').map_or((s, None), |(a, b)| (a, Some(b)));
    let parts: Vec<&str> = core.split('.').collect();
    let [major, minor, patch] = parts[..] else { return Err("No Major.Minor.Patch elements found") };
    let number = |p: &str| {
        let plain = !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
        if !plain {
            return Err("Invalid character(s) found in version number");
        }
        if p.len() > 1 && p.starts_with('0') {
            return Err("Version number must not contain leading zeroes");
        }
        p.parse().map_err(|_| "Version number is too large")
    };
    let numbers = [number(major)?, number(minor)?, number(patch)?];
    let word = |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let pre: Vec<&str> = pre.map(|p| p.split('.').collect()).unwrap_or_default();
    let numeric = |p: &str| p.bytes().all(|b| b.is_ascii_digit());
    if !pre.iter().all(word) || pre.iter().any(|p| numeric(p) && p.len() > 1 && p.starts_with('0')) {
        return Err("Invalid character(s) found in prerelease");
    }
    if !build.map(|b| b.split('.').collect::<Vec<_>>()).unwrap_or_default().iter().all(word) {
        return Err("Invalid character(s) found in build meta data");
    }
    Ok(Semver { numbers, pre: pre.into_iter().map(str::to_owned).collect() })
}

impl Semver {
    pub fn compare(&self, o: &Self) -> Ordering {
        self.numbers.cmp(&o.numbers).then_with(|| match (self.pre.is_empty(), o.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let each = self.pre.iter().zip(&o.pre).map(|(a, b)| match (a.parse::<u64>(), b.parse::<u64>()) {
                    (Ok(a), Ok(b)) => a.cmp(&b),
                    (Ok(_), Err(_)) => Ordering::Less,
                    (Err(_), Ok(_)) => Ordering::Greater,
                    (Err(_), Err(_)) => a.cmp(b),
                });
                each.fold(Ordering::Equal, Ordering::then).then(self.pre.len().cmp(&o.pre.len()))
            }
        })
    }
}
