//! The macros: calls that the parser replaces by comprehensions and presence tests.

use crate::{
    ast::{ACCU, Expr, Fold, Kind, Literal},
    parser::{Parser, Stop},
};

/// What `optMap` calls the optional it works on; no source can say it.
const TARGET: &str = "@target";

type Parsed<T = Expr> = Result<T, Stop>;
type Function = fn(&mut Parser, usize, Vec<Expr>) -> Parsed;
type Method = fn(&mut Parser, usize, Expr, Vec<Expr>) -> Parsed;

/// A macro that looks like a function.
pub fn function(name: &str, args: usize) -> Option<Function> {
    (name == "has" && args == 1).then_some(has)
}

/// A macro that looks like a method.
pub fn method(name: &str, target: &Expr, args: usize) -> Option<Method> {
    if matches!(&target.kind, Kind::Ident(t) if t == "cel") {
        return (name == "bind" && args == 3).then_some(bind);
    }
    Some(match (name, args) {
        ("all", 2 | 3) => |p, at, t, a| quantifier(p, at, t, a, Quantifier::All),
        ("exists", 2 | 3) => |p, at, t, a| quantifier(p, at, t, a, Quantifier::Exists),
        ("exists_one", 2 | 3) | ("existsOne", 2 | 3) => |p, at, t, a| quantifier(p, at, t, a, Quantifier::ExistsOne),
        ("map", 2 | 3) => |p, at, t, a| list(p, at, t, a, 1),
        ("filter", 2) => filter,
        ("transformList", 3 | 4) => |p, at, t, a| list(p, at, t, a, 2),
        ("transformMap", 3 | 4) => |p, at, t, a| map(p, at, t, a, false),
        ("transformMapEntry", 3 | 4) => |p, at, t, a| map(p, at, t, a, true),
        ("optMap", 2) => |p, at, t, a| optional(p, at, t, a, false),
        ("optFlatMap", 2) => |p, at, t, a| optional(p, at, t, a, true),
        _ => return None,
    })
}

fn has(p: &mut Parser, at: usize, mut args: Vec<Expr>) -> Parsed {
    let Some(e) = args.pop() else { return Err(Stop) };
    match e.kind {
        Kind::Select { operand, field, test: false } => p.node(at, Kind::Select { operand, field, test: true }),
        _ => {
            // Where the argument's own place is.
            let at = p.offsets[e.id];
            p.fail(at, "invalid argument to has() macro")
        }
    }
}

fn simple_name(p: &mut Parser, e: &Expr) -> Parsed<String> {
    let at = p.offsets[e.id];
    match &e.kind {
        Kind::Ident(name) if name == ACCU => p.fail(at, "iteration variable overwrites accumulator variable"),
        Kind::Ident(name) => Ok(name.clone()),
        _ => p.fail(at, "argument must be a simple name"),
    }
}

/// The one or two variables before the last `rest` arguments.
fn variables(p: &mut Parser, args: &mut Vec<Expr>, count: usize) -> Parsed<(String, Option<String>)> {
    let rest = args.split_off(count);
    let names = std::mem::replace(args, rest);
    let first = match names.first() {
        Some(e) => simple_name(p, e)?,
        None => return Err(Stop),
    };
    let second = match names.get(1) {
        Some(e) => {
            let name = simple_name(p, e)?;
            if name == first {
                let at = p.offsets[e.id];
                return p.fail(at, format!("duplicate variable name: {name}"));
            }
            Some(name)
        }
        None => None,
    };
    Ok((first, second))
}

fn ident(p: &mut Parser, at: usize, name: &str) -> Parsed {
    p.node(at, Kind::Ident(name.into()))
}

fn accu(p: &mut Parser, at: usize) -> Parsed {
    ident(p, at, ACCU)
}

fn literal(p: &mut Parser, at: usize, l: Literal) -> Parsed {
    p.node(at, Kind::Literal(l))
}

#[derive(Clone, Copy, PartialEq)]
enum Quantifier {
    All,
    Exists,
    ExistsOne,
}

fn quantifier(p: &mut Parser, at: usize, range: Expr, mut args: Vec<Expr>, q: Quantifier) -> Parsed {
    let count = args.len() - 1;
    let (var, var2) = variables(p, &mut args, count)?;
    let Some(test) = args.pop() else { return Err(Stop) };
    let current = accu(p, at)?;
    let (init, condition, step, result) = match q {
        Quantifier::All => (
            literal(p, at, Literal::Bool(true))?,
            p.call(at, "@not_strictly_false", vec![current.clone()])?,
            p.call(at, "_&&_", vec![current.clone(), test])?,
            current,
        ),
        Quantifier::Exists => {
            let not = p.call(at, "!_", vec![current.clone()])?;
            (
                literal(p, at, Literal::Bool(false))?,
                p.call(at, "@not_strictly_false", vec![not])?,
                p.call(at, "_||_", vec![current.clone(), test])?,
                current,
            )
        }
        Quantifier::ExistsOne => {
            let one = literal(p, at, Literal::Int(1))?;
            let more = p.call(at, "_+_", vec![current.clone(), one.clone()])?;
            (
                literal(p, at, Literal::Int(0))?,
                literal(p, at, Literal::Bool(true))?,
                p.call(at, "_?_:_", vec![test, more, current.clone()])?,
                p.call(at, "_==_", vec![current, one])?,
            )
        }
    };
    fold(p, at, Fold { range, var, var2, accu: ACCU.into(), init, condition, step, result })
}

fn fold(p: &mut Parser, at: usize, f: Fold) -> Parsed {
    p.node(at, Kind::Fold(Box::new(f)))
}

fn one(p: &mut Parser, at: usize, value: Expr) -> Parsed {
    p.node(at, Kind::List(vec![crate::ast::Item { value, optional: false }]))
}

/// Folds into what `step` makes of the accumulator, for elements that pass `test`.
fn collect(p: &mut Parser, at: usize, range: Expr, names: (String, Option<String>), init: Expr, step: Expr, test: Option<Expr>) -> Parsed {
    let current = accu(p, at)?;
    let step = match test {
        Some(test) => p.call(at, "_?_:_", vec![test, step, current.clone()])?,
        None => step,
    };
    let condition = literal(p, at, Literal::Bool(true))?;
    fold(p, at, Fold { range, var: names.0, var2: names.1, accu: ACCU.into(), init, condition, step, result: current })
}

fn list(p: &mut Parser, at: usize, range: Expr, mut args: Vec<Expr>, count: usize) -> Parsed {
    let names = variables(p, &mut args, count)?;
    let Some(element) = args.pop() else { return Err(Stop) };
    let test = args.pop();
    let init = p.node(at, Kind::List(Vec::new()))?;
    let current = accu(p, at)?;
    let element = one(p, at, element)?;
    let step = p.call(at, "_+_", vec![current, element])?;
    collect(p, at, range, names, init, step, test)
}

fn filter(p: &mut Parser, at: usize, range: Expr, mut args: Vec<Expr>) -> Parsed {
    let names = variables(p, &mut args, 1)?;
    let test = args.pop();
    let init = p.node(at, Kind::List(Vec::new()))?;
    let current = accu(p, at)?;
    let element = ident(p, at, &names.0)?;
    let element = one(p, at, element)?;
    let step = p.call(at, "_+_", vec![current, element])?;
    collect(p, at, range, names, init, step, test)
}

fn map(p: &mut Parser, at: usize, range: Expr, mut args: Vec<Expr>, entry: bool) -> Parsed {
    let names = variables(p, &mut args, 2)?;
    let Some(value) = args.pop() else { return Err(Stop) };
    let test = args.pop();
    let init = p.node(at, Kind::Map(Vec::new()))?;
    let mut insert = vec![accu(p, at)?];
    if !entry {
        insert.push(ident(p, at, &names.0)?);
    }
    insert.push(value);
    let step = p.call(at, "cel.@mapInsert", insert)?;
    collect(p, at, range, names, init, step, test)
}

fn bound(p: &mut Parser, at: usize, name: String, value: Expr, body: Expr) -> Parsed {
    let range = p.node(at, Kind::List(Vec::new()))?;
    let condition = literal(p, at, Literal::Bool(false))?;
    let step = ident(p, at, &name)?;
    fold(p, at, Fold { range, var: "#unused".into(), var2: None, accu: name, init: value, condition, step, result: body })
}

fn bind(p: &mut Parser, at: usize, _: Expr, mut args: Vec<Expr>) -> Parsed {
    let (name, _) = variables(p, &mut args, 1)?;
    let (Some(body), Some(value)) = (args.pop(), args.pop()) else { return Err(Stop) };
    bound(p, at, name, value, body)
}

fn optional(p: &mut Parser, at: usize, target: Expr, mut args: Vec<Expr>, flat: bool) -> Parsed {
    let (name, _) = variables(p, &mut args, 1)?;
    let Some(body) = args.pop() else { return Err(Stop) };
    // The target is bound to a name, as it is needed twice.
    let on = |p: &mut Parser, function: &str| {
        let target = ident(p, at, TARGET)?;
        p.node(at, Kind::Call { function: function.into(), target: Some(Box::new(target)), args: Vec::new() })
    };
    let (there, value) = (on(p, "hasValue")?, on(p, "value")?);
    let mut some = bound(p, at, name, value, body)?;
    if !flat {
        some = p.call(at, "optional.of", vec![some])?;
    }
    let none = p.call(at, "optional.none", Vec::new())?;
    let whole = p.call(at, "_?_:_", vec![there, some, none])?;
    bound(p, at, TARGET.into(), target, whole)
}
