//! Evaluation, with its cost counted while it runs.

use std::{collections::HashMap, sync::Arc};

use crate::{
    ast::{ACCU, Expr, Fold, Item, Kind, Literal},
    check::{Checked, type_value},
    cost::{AUTHORIZE, PATTERN, STRING, scaled},
    functions::{self, Function},
    value::{EvalError, List, Map, Result, Text, Value},
};

/// Values of variables.
pub type Variables<'a> = HashMap<&'static str, Value<'a>>;

/// A checked expression, ready to run as often as wanted.
#[derive(Debug)]
pub struct Program {
    pub checked: Checked,
    functions: Vec<Option<Function>>,
}

/// What a run gave and what it cost.
#[derive(Debug)]
pub struct Outcome<'a> {
    pub value: Result<Value<'a>>,
    pub cost: u64,
}

impl Program {
    pub fn new(checked: Checked) -> Self {
        let mut functions = vec![None; checked.types.len()];
        link(&checked.ast.root, &mut functions);
        Self { checked, functions }
    }

    /// Runs with the given variables, and stops when it costs more than `limit`.
    pub fn run<'a>(&self, variables: &Variables<'a>, limit: u64) -> Outcome<'a> {
        let mut r = Run { program: self, variables, locals: Vec::new(), cost: 0, limit };
        let value = r.eval(&self.checked.ast.root);
        Outcome { value, cost: r.cost }
    }
}

fn link(e: &Expr, out: &mut [Option<Function>]) {
    match &e.kind {
        Kind::Literal(_) | Kind::Ident(_) => {}
        Kind::Select { operand, .. } => link(operand, out),
        Kind::Call { function, target, args } => {
            out[e.id] = functions::lookup(function);
            target.iter().for_each(|t| link(t, out));
            args.iter().for_each(|a| link(a, out));
        }
        Kind::List(items) => items.iter().for_each(|i| link(&i.value, out)),
        Kind::Map(entries) => entries.iter().for_each(|x| {
            link(&x.key, out);
            link(&x.value, out);
        }),
        Kind::Struct { fields, .. } => fields.iter().for_each(|f| link(&f.value, out)),
        Kind::Fold(f) => [&f.range, &f.init, &f.condition, &f.step, &f.result].into_iter().for_each(|x| link(x, out)),
    }
}

/// A list that an expression makes has at most this many elements.
const MAX_LIST: usize = 1 << 20;

struct Run<'p, 'v, 'a> {
    program: &'p Program,
    variables: &'v Variables<'a>,
    locals: Vec<(&'p str, Value<'a>)>,
    cost: u64,
    limit: u64,
}

fn no_field(name: &str) -> EvalError {
    EvalError::NoSuchKey(name.to_owned())
}

impl<'p, 'a> Run<'p, '_, 'a> {
    fn spend(&mut self, cost: u64) -> Result<()> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(EvalError::CostExceeded) } else { Ok(()) }
    }

    fn eval(&mut self, e: &'p Expr) -> Result<Value<'a>> {
        match &e.kind {
            Kind::Literal(l) => Ok(match l {
                Literal::Null => Value::Null,
                Literal::Bool(b) => Value::Bool(*b),
                Literal::Int(i) => Value::Int(*i),
                Literal::Uint(u) => Value::Uint(*u),
                Literal::Double(d) => Value::Double(*d),
                Literal::String(s) => Value::String(Text::Shared(Arc::clone(s))),
                Literal::Bytes(b) => Value::Bytes(Arc::clone(b)),
            }),
            Kind::Ident(name) => {
                self.spend(1)?;
                let local = self.locals.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v);
                match local.or_else(|| self.variables.get(name.as_str())) {
                    Some(Value::Failed(e)) => Err((**e).clone()),
                    Some(v) => Ok(v.clone()),
                    None => match type_value(name) {
                        Some(t) => Ok(Value::Type(Arc::new(t))),
                        None => Err(EvalError::NoSuchAttribute(name.clone())),
                    },
                }
            }
            Kind::Select { operand, field, test } => self.select(operand, field, *test),
            Kind::Call { function, target, args } => self.call(e, function, target.as_deref(), args),
            Kind::List(items) => {
                self.spend(10)?;
                self.items(items).map(Value::list)
            }
            Kind::Map(entries) => {
                self.spend(30)?;
                let mut out = std::collections::BTreeMap::new();
                for x in entries {
                    let k = self.eval(&x.key)?;
                    let mut v = self.eval(&x.value)?;
                    if x.optional {
                        match v {
                            Value::Optional(Some(some)) => v = (*some).clone(),
                            Value::Optional(None) => continue,
                            _ => return Err(EvalError::NoSuchOverload),
                        }
                    }
                    if out.insert(k.key()?, (k, v)).is_some() {
                        return Err(EvalError::other("Failed with repeated key"));
                    }
                }
                Ok(Value::Map(Map::Owned(Arc::new(out))))
            }
            Kind::Struct { fields, .. } => {
                self.spend(40)?;
                let mut out = Vec::new();
                for f in fields {
                    match self.eval(&f.value)? {
                        Value::Optional(None) if f.optional => {}
                        Value::Optional(Some(v)) if f.optional => out.push((f.name.clone(), (*v).clone())),
                        v => out.push((f.name.clone(), v)),
                    }
                }
                Ok(Value::map(out))
            }
            Kind::Fold(f) => self.fold(f),
        }
    }

    fn items(&mut self, items: &'p [Item]) -> Result<Vec<Value<'a>>> {
        let mut out = Vec::with_capacity(items.len());
        for i in items {
            match self.eval(&i.value)? {
                Value::Optional(v) if i.optional => out.extend(v.map(|v| (*v).clone())),
                v => out.push(v),
            }
        }
        Ok(out)
    }

    fn select(&mut self, operand: &'p Expr, field: &str, test: bool) -> Result<Value<'a>> {
        let of = self.eval(operand)?;
        if !test {
            self.spend(1)?;
        }
        match &of {
            Value::Map(m) => match m.field(field) {
                _ if test => Ok(Value::Bool(m.field(field).is_some())),
                Some(Value::Failed(e)) => Err((*e).clone()),
                Some(v) => Ok(v),
                None => Err(no_field(field)),
            },
            Value::Optional(inner) => {
                let found = match inner.as_deref() {
                    Some(Value::Map(m)) => m.field(field),
                    Some(_) => return Err(EvalError::NoSuchOverload),
                    None => None,
                };
                Ok(if test { Value::Bool(found.is_some()) } else { Value::Optional(found.map(Arc::new)) })
            }
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    fn call(&mut self, e: &'p Expr, function: &str, target: Option<&'p Expr>, args: &'p [Expr]) -> Result<Value<'a>> {
        match (function, args) {
            ("_&&_", [l, r]) => return self.logical(l, r, false),
            ("_||_", [l, r]) => return self.logical(l, r, true),
            ("_?_:_", [c, y, n]) => {
                return match self.eval(c)? {
                    Value::Bool(true) => self.eval(y),
                    Value::Bool(false) => self.eval(n),
                    _ => Err(EvalError::NoSuchOverload),
                };
            }
            ("@not_strictly_false", [c]) => {
                return match self.eval(c) {
                    Ok(Value::Bool(b)) => Ok(Value::Bool(b)),
                    Err(EvalError::CostExceeded) => Err(EvalError::CostExceeded),
                    _ => Ok(Value::Bool(true)),
                };
            }
            // `a.or(b)` and `a.orValue(b)` look at `b` only when `a` has nothing.
            ("or" | "orValue", [other]) if target.is_some() => {
                let Some(target) = target else { return Err(EvalError::NoSuchOverload) };
                self.spend(1)?;
                return match self.eval(target)? {
                    Value::Optional(None) => self.eval(other),
                    v @ Value::Optional(_) if function == "or" => Ok(v),
                    Value::Optional(Some(v)) => Ok((*v).clone()),
                    _ => Err(EvalError::NoSuchOverload),
                };
            }
            _ => {}
        }
        let mut values = Vec::with_capacity(args.len() + 1);
        if let Some(t) = target {
            values.push(self.eval(t)?);
        }
        for a in args {
            values.push(self.eval(a)?);
        }
        self.spend(price(function, &values))?;
        if matches!(
            function,
            "_==_" | "_!=_" | "@in" | "format" | "indexOf" | "lastIndexOf" | "sets.contains" | "sets.equivalent" | "sets.intersects"
        ) {
            // These look at all there is, however deep.
            let left = self.limit.saturating_sub(self.cost);
            let hidden = values.iter().map(|v| v.hidden_cost(left.saturating_add(1))).fold(0, u64::saturating_add);
            self.spend(hidden)?;
        }
        let f = self.program.functions[e.id].ok_or(EvalError::NoSuchOverload)?;
        let value = f(&values)?;
        // What grows costs what it grew by, or small expressions could make very large values.
        if matches!(value, Value::String(_) | Value::Bytes(_) | Value::List(List::Owned { .. })) {
            let given = values.iter().map(Value::size).fold(0, u64::saturating_add);
            self.spend(value.size().saturating_sub(given) / 10)?;
        }
        if matches!(&value, Value::List(l) if l.len() > MAX_LIST) {
            return Err(EvalError::other("list is too long"));
        }
        Ok(value)
    }

    /// `&&` and `||`: what decides wins, whatever became of the other side.
    fn logical(&mut self, l: &'p Expr, r: &'p Expr, decides: bool) -> Result<Value<'a>> {
        let left = self.eval(l);
        match &left {
            Ok(Value::Bool(b)) if *b == decides => return left,
            Err(EvalError::CostExceeded) => return left,
            _ => {}
        }
        let right = self.eval(r);
        match (left, right) {
            (_, Ok(Value::Bool(b))) if b == decides => Ok(Value::Bool(decides)),
            (_, Err(EvalError::CostExceeded)) => Err(EvalError::CostExceeded),
            (Err(e), _) | (Ok(Value::Bool(_)), Err(e)) => Err(e),
            (Ok(Value::Bool(_)), Ok(Value::Bool(b))) => Ok(Value::Bool(b)),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    fn fold(&mut self, f: &'p Fold) -> Result<Value<'a>> {
        let range = self.eval(&f.range)?;
        let mut accu = self.eval(&f.init);
        if matches!(accu, Err(EvalError::CostExceeded)) {
            return accu;
        }
        let depth = self.locals.len();
        match &range {
            Value::List(l) => {
                for i in 0..l.len() {
                    let Some(v) = l.get(i) else { break };
                    let first = if f.var2.is_some() { Value::Int(i64::try_from(i).unwrap_or(i64::MAX)) } else { v.clone() };
                    if !self.turn(f, &mut accu, first, v)? {
                        break;
                    }
                }
            }
            Value::Map(m) => {
                for (k, v) in m.entries() {
                    if !self.turn(f, &mut accu, k, v)? {
                        break;
                    }
                }
            }
            _ => return Err(EvalError::NoSuchOverload),
        }
        self.locals.truncate(depth);
        if f.accu == ACCU && matches!(&f.result.kind, Kind::Ident(n) if n == ACCU) {
            return accu;
        }
        self.locals.push((&f.accu, accu?));
        let result = self.eval(&f.result);
        self.locals.truncate(depth);
        result
    }

    /// One element. An error in the accumulator stays there: a later element may still decide.
    fn turn(&mut self, f: &'p Fold, accu: &mut Result<Value<'a>>, first: Value<'a>, second: Value<'a>) -> Result<bool> {
        if let Err(EvalError::CostExceeded) = accu {
            return Err(EvalError::CostExceeded);
        }
        let depth = self.locals.len();
        let current = std::mem::replace(accu, Ok(Value::Null));
        let current = current.unwrap_or_else(|e| Value::Failed(Arc::new(e)));
        self.locals.push((&f.accu, current));
        let go_on = self.eval(&f.condition)?;
        if !matches!(go_on, Value::Bool(true)) {
            if let Some((_, v)) = self.locals.pop() {
                *accu = settled(v);
            }
            return Ok(false);
        }
        self.locals.push((&f.var, first));
        if let Some(v2) = &f.var2 {
            self.locals.push((v2, second));
        }
        let next = self.step(&f.step, depth);
        *accu = match next {
            // The accumulator was changed in its place.
            Ok(None) => match self.locals.get_mut(depth) {
                Some((_, v)) => settled(std::mem::replace(v, Value::Null)),
                None => Err(EvalError::NoSuchOverload),
            },
            Ok(Some(v)) => Ok(v),
            Err(e) => Err(e),
        };
        self.locals.truncate(depth);
        if let Err(EvalError::CostExceeded) = accu {
            return Err(EvalError::CostExceeded);
        }
        // Only quantifiers go on after an error.
        let quantifier = matches!(&f.condition.kind, Kind::Call { .. });
        Ok(quantifier || accu.is_ok())
    }

    /// A step; none when the accumulator at `slot` was left or changed in its place, so that growing lists are not copied.
    fn step(&mut self, e: &'p Expr, slot: usize) -> Result<Option<Value<'a>>> {
        let is_accu = |e: &Expr| matches!(&e.kind, Kind::Ident(n) if n == ACCU);
        match &e.kind {
            _ if is_accu(e) => {
                self.spend(1)?;
                Ok(None)
            }
            Kind::Call { function, args, .. } if function == "_?_:_" => match self.eval(&args[0])? {
                Value::Bool(true) => self.step(&args[1], slot),
                Value::Bool(false) => self.step(&args[2], slot),
                _ => Err(EvalError::NoSuchOverload),
            },
            Kind::Call { function, args, .. } if function == "_+_" && is_accu(&args[0]) => {
                let Kind::List(items) = &args[1].kind else { return self.eval(e).map(Some) };
                self.spend(12)?;
                let more = self.items(items)?;
                match self.locals.get_mut(slot) {
                    Some((_, Value::List(List::Owned { items, .. }))) => {
                        Arc::make_mut(items).extend(more);
                        Ok(None)
                    }
                    _ => Err(EvalError::NoSuchOverload),
                }
            }
            Kind::Call { function, args, .. } if function == "cel.@mapInsert" && is_accu(&args[0]) => {
                self.spend(2)?;
                let mut pairs = Vec::new();
                match args.get(1..) {
                    Some([k, v]) => pairs.push((self.eval(k)?, self.eval(v)?)),
                    Some([entry]) => match self.eval(entry)? {
                        Value::Map(m) => pairs = m.entries(),
                        _ => return Err(EvalError::NoSuchOverload),
                    },
                    _ => return Err(EvalError::NoSuchOverload),
                }
                let Some((_, Value::Map(Map::Owned(map)))) = self.locals.get_mut(slot) else { return Err(EvalError::NoSuchOverload) };
                let map = Arc::make_mut(map);
                for (k, v) in pairs {
                    let key = k.key()?;
                    if map.contains_key(&key) {
                        return Err(EvalError::other(format!("insert failed: key {} already exists", functions::shown(&k))));
                    }
                    map.insert(key, (k, v));
                }
                Ok(None)
            }
            _ => self.eval(e).map(Some),
        }
    }
}

fn settled(v: Value<'_>) -> Result<Value<'_>> {
    match v {
        Value::Failed(e) => Err((*e).clone()),
        v => Ok(v),
    }
}

/// What a call costs with these arguments.
fn price(function: &str, args: &[Value<'_>]) -> u64 {
    let size = |i: usize| args.get(i).map_or(0, Value::size);
    let text = |i: usize| scaled(size(i), STRING);
    let texts = matches!(args.first(), Some(Value::String(_) | Value::Bytes(_)));
    match function {
        "_==_" | "_!=_" => scaled(size(0).min(size(1)), STRING),
        "_<_" | "_<=_" | "_>_" | "_>=_" if texts => scaled(size(0).min(size(1)), STRING),
        "_+_" if texts => scaled(size(0).saturating_add(size(1)), STRING),
        "startsWith" | "endsWith" | "validate" => text(1),
        "@in" if matches!(args.get(1), Some(Value::List(_))) => size(1),
        "matches" | "find" | "findAll" => scaled(size(0) + 1, STRING).saturating_mul(scaled(size(1), PATTERN)),
        "contains" => text(0).saturating_mul(text(1)),
        "indexOf" | "lastIndexOf" if texts => text(0).saturating_mul(text(1)),
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" => {
            let texts = match args.first() {
                Some(Value::List(l)) => l.iter().filter(|v| v.as_str().is_some()).map(|v| scaled(v.size(), STRING)).sum(),
                _ => 0,
            };
            size(0).saturating_add(texts)
        }
        "url" | "quantity" | "isURL" | "isQuantity" | "isIP" | "isCIDR" | "ip" | "cidr" | "semver" | "isSemver" | "bytes" | "string"
        | "lowerAscii" | "upperAscii" | "substring" | "trim" | "split" | "strings.quote"
            if texts =>
        {
            text(0).max(1)
        }
        "ip.isCanonical" => text(0).saturating_mul(2),
        "replace" => scaled(size(0), 2.0 * STRING),
        "join" => match args.first() {
            Some(Value::List(l)) => scaled(l.iter().map(|v| v.size().saturating_add(size(1))).fold(0, u64::saturating_add), STRING),
            _ => 1,
        },
        "format" => text(0).saturating_add(size(1)),
        "sets.contains" | "sets.equivalent" | "sets.intersects" => size(0).saturating_mul(size(1)).saturating_add(1),
        "check" => AUTHORIZE,
        _ => 1,
    }
}
