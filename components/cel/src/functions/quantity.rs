//! Kubernetes' quantities.

use std::cmp::Ordering;

use k8s_schema::Quantity;

use super::{Function, NONE};
use crate::value::{EvalError, Ext, Result, Value};

pub fn lookup(name: &str) -> Option<Function> {
    Some(match name {
        "quantity" => |a| {
            let s = a.first().ok_or(NONE)?.str()?;
            Quantity::parse(s).map(made).map_err(|e| EvalError::other(e.to_string()))
        },
        "isQuantity" => |a| Ok(Value::Bool(Quantity::parse(a.first().ok_or(NONE)?.str()?).is_ok())),
        "sign" => |a| Ok(Value::Int(quantity(a)?.sign().into())),
        "isInteger" => |a| Ok(Value::Bool(quantity(a)?.is_integer())),
        "asInteger" => |a| {
            let q = quantity(a)?;
            let whole = q.is_integer().then(|| q.value());
            whole.map(Value::Int).ok_or_else(|| EvalError::other("cannot convert value to integer"))
        },
        "asApproximateFloat" => |a| Ok(Value::Double(quantity(a)?.as_f64())),
        "add" => |a| arithmetic(a, |x, y| x.add(y)),
        "sub" => |a| arithmetic(a, |x, y| x.sub(y)),
        _ => return None,
    })
}

fn made<'a>(q: Quantity) -> Value<'a> {
    Value::Ext(Ext::Quantity(Box::new(q)))
}

fn quantity<'x>(args: &'x [Value<'_>]) -> Result<&'x Quantity> {
    match args.first() {
        Some(Value::Ext(Ext::Quantity(q))) => Ok(q),
        _ => Err(NONE),
    }
}

fn arithmetic<'a>(args: &[Value<'a>], f: fn(&mut Quantity, &Quantity)) -> Result<Value<'a>> {
    let mut q = quantity(args)?.clone();
    match args.get(1) {
        Some(Value::Ext(Ext::Quantity(o))) => f(&mut q, o),
        Some(Value::Int(i)) => f(&mut q, &Quantity::new(*i, k8s_schema::quantity::Format::DecimalSi)),
        _ => return Err(NONE),
    }
    Ok(made(q))
}

pub fn compare(a: &Quantity, b: &Quantity) -> Ordering {
    a.cmp(b)
}
