//! What functions do. Arguments come with the target of a method first.

pub mod authorizer;
pub mod format;
mod lists;
pub mod net;
mod optional;
mod quantity;
pub mod regexes;
pub mod semver;
mod standard;
mod strings;
pub mod time;
pub mod url;

use crate::value::{EvalError, Result, Value};

pub type Function = for<'a> fn(&[Value<'a>]) -> Result<Value<'a>>;

/// The implementation of a function of the library; the few that decide what to evaluate have none.
pub fn lookup(name: &str) -> Option<Function> {
    standard::lookup(name)
        .or_else(|| strings::lookup(name))
        .or_else(|| lists::lookup(name))
        .or_else(|| time::lookup(name))
        .or_else(|| optional::lookup(name))
        .or_else(|| url::lookup(name))
        .or_else(|| quantity::lookup(name))
        .or_else(|| net::lookup(name))
        .or_else(|| format::lookup(name))
        .or_else(|| authorizer::lookup(name))
}

const NONE: EvalError = EvalError::NoSuchOverload;

/// A value as messages show it.
pub fn shown(v: &Value<'_>) -> String {
    match v {
        Value::String(t) => t.as_str().to_owned(),
        Value::Double(d) => format!("{d}"),
        v => v.to_json().map_or_else(|| v.type_of().to_string(), |j| j.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::Library;

    #[test]
    fn every_function_is_there() {
        let elsewhere = ["_&&_", "_||_", "_?_:_", "@not_strictly_false", "or", "orValue"];
        for name in Library::get().names() {
            assert!(elsewhere.contains(name) || lookup(name).is_some(), "{name}");
        }
    }
}
