//! Optional values.

use std::sync::Arc;

use super::{Function, NONE};
use crate::value::{EvalError, Value};

pub fn lookup(name: &str) -> Option<Function> {
    Some(match name {
        "optional.of" => |a| a.first().map(|v| Value::some(v.clone())).ok_or(NONE),
        "optional.none" => |_| Ok(Value::Optional(None)),
        "optional.ofNonZeroValue" => |a| {
            let v = a.first().ok_or(NONE)?;
            let zero = match v {
                Value::Null => true,
                Value::Bool(b) => !b,
                Value::Int(i) | Value::Duration(i) => *i == 0,
                Value::Uint(u) => *u == 0,
                Value::Double(d) => *d == 0.0,
                Value::String(t) => t.as_str().is_empty(),
                Value::Bytes(b) => b.is_empty(),
                Value::List(l) => l.is_empty(),
                Value::Map(m) => m.is_empty(),
                _ => false,
            };
            Ok(if zero { Value::Optional(None) } else { Value::some(v.clone()) })
        },
        "hasValue" => |a| match a {
            [Value::Optional(o)] => Ok(Value::Bool(o.is_some())),
            _ => Err(NONE),
        },
        "value" => |a| match a {
            [Value::Optional(Some(v))] => Ok(Value::clone(Arc::as_ref(v))),
            [Value::Optional(None)] => Err(EvalError::other("optional.none() dereference")),
            _ => Err(NONE),
        },
        _ => return None,
    })
}
