//! Regular expressions in RE2's dialect, which match in linear time. Compiled ones are kept for a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use regex::Regex;

use super::NONE;
use crate::value::{EvalError, Result, Value};

/// A compiled pattern may take this much memory.
const SIZE: usize = 1 << 20;
/// So many compiled patterns are kept.
const KEPT: usize = 256;

/// RE2's dialect to that of the `regex` crate: classes are of ASCII, brackets in classes are plain characters.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    let mut class = false;
    let mut first = false;
    while let Some(c) = chars.next() {
        let was_first = std::mem::take(&mut first);
        match c {
            '\\' => match chars.next() {
                Some('d') => out.push_str("[0-9]"),
                Some('w') => out.push_str("[0-9A-Za-z_]"),
                Some('s') => out.push_str(r"[\t\n\f\r ]"),
                Some('D') => out.push_str("[^0-9]"),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('S') => out.push_str(r"[^\t\n\f\r ]"),
                Some('b') if !class => out.push_str(r"(?-u:\b)"),
                Some('Q') => {
                    let mut literal: String = chars.by_ref().collect();
                    let rest = literal.find(r"\E").map(|end| {
                        let rest = literal.split_off(end);
                        rest[2..].to_owned()
                    });
                    out.push_str(&regex::escape(&literal));
                    if let Some(rest) = rest {
                        out.push_str(&translate(&rest));
                    }
                    return out;
                }
                Some(other) => {
                    out.push('\\');
                    out.push(other);
                }
                None => out.push('\\'),
            },
            '[' if !class => {
                class = true;
                first = true;
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
            }
            '[' if chars.peek() == Some(&':') => out.push('['),
            '[' => out.push_str(r"\["),
            ']' if class && was_first => out.push_str(r"\]"),
            ']' if class => {
                // The end of `[:alpha:]` is none of the class.
                if !out.ends_with(':') || !out[out.rfind('[').unwrap_or(0)..].starts_with("[:") {
                    class = false;
                }
                out.push(']');
            }
            '&' | '~' if class => {
                out.push('\\');
                out.push(c);
            }
            '-' if class && chars.peek() == Some(&'-') => out.push_str(r"\-"),
            c => out.push(c),
        }
    }
    out
}

pub fn compile(pattern: &str) -> std::result::Result<Arc<Regex>, regex::Error> {
    static CACHE: OnceLock<Mutex<HashMap<String, Arc<Regex>>>> = OnceLock::new();
    let cache = CACHE.get_or_init(Mutex::default);
    // A panic while the lock was held leaves a map that is as good as before.
    if let Some(r) = cache.lock().unwrap_or_else(PoisonError::into_inner).get(pattern) {
        return Ok(Arc::clone(r));
    }
    let r = Arc::new(regex::RegexBuilder::new(&translate(pattern)).size_limit(SIZE).build()?);
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if cache.len() >= KEPT {
        cache.clear();
    }
    cache.insert(pattern.to_owned(), Arc::clone(&r));
    Ok(r)
}

fn compiled(pattern: &str) -> Result<Arc<Regex>> {
    compile(pattern).map_err(|e| EvalError::other(format!("error parsing regexp: {e}")))
}

pub fn matches<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    let [s, p] = args else { return Err(NONE) };
    Ok(Value::Bool(compiled(p.str()?)?.is_match(s.str()?)))
}

pub fn find<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    let [s, p] = args else { return Err(NONE) };
    Ok(Value::string(compiled(p.str()?)?.find(s.str()?).map_or("", |m| m.as_str())))
}

pub fn find_all<'a>(args: &[Value<'a>]) -> Result<Value<'a>> {
    let limit = match args.get(2) {
        Some(n) => usize::try_from(n.int()?).unwrap_or(usize::MAX),
        None => usize::MAX,
    };
    let [s, p, ..] = args else { return Err(NONE) };
    let r = compiled(p.str()?)?;
    Ok(Value::list(r.find_iter(s.str()?).take(limit).map(|m| Value::string(m.as_str())).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dialect_is_re2s() {
        for (pattern, text, want) in [
            (r"^\d+$", "12", true),
            (r"^\d+$", "٣", false),
            (r"^[\w.-]+$", "a-b.c", true),
            (r"^[[a]$", "[", true),
            (r"^[]a]+$", "]a", true),
            (r"^[[:alpha:]]+$", "abc", true),
            (r"^[a&&b]+$", "a&b", true),
            (r"^\Qa.b\E+$", "a.bb", true),
            (r"\bfoo\b", "a foo b", true),
        ] {
            assert_eq!(compile(pattern).unwrap().is_match(text), want, "{pattern}");
        }
        assert!(compile("[").is_err());
        assert!(compile("(?=a)").is_err());
    }
}
