//! What an expression can cost at most, found before it runs.
//!
//! The unit is upstream's: about one simple operation. Strings cost a tenth per byte, patterns a quarter per byte of theirs, loops what
//! their body costs for each element. What is known of sizes comes from the caller.

use std::collections::HashMap;

use crate::{
    ast::{Expr, Fold, Id, Kind, Literal},
    check::Checked,
    library::Library,
    types::Type,
};

/// The largest size of what a path such as `self.list.@items` names; none if nothing is known of it.
pub trait Sizes {
    fn max_size(&self, path: &[String]) -> Option<u64>;
}

/// Nothing is known.
pub struct Unknown;

impl Sizes for Unknown {
    fn max_size(&self, _: &[String]) -> Option<u64> {
        None
    }
}

/// From the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

/// Bytes of a string are this much of an operation.
pub const STRING: f64 = 0.1;
/// Bytes of a pattern.
pub const PATTERN: f64 = 0.25;
/// What asking an authorizer costs.
pub const AUTHORIZE: u64 = 350_000;
const LIST: u64 = 10;
const MAP: u64 = 30;
const STRUCT: u64 = 40;

pub fn scaled(n: u64, factor: f64) -> u64 {
    let x = (n as f64 * factor).ceil();
    // The cast saturates, as it should.
    x as u64
}

impl Range {
    const ZERO: Self = Self::of(0);
    const ONE: Self = Self::of(1);
    const ANY: Self = Self { min: 0, max: u64::MAX };

    const fn of(n: u64) -> Self {
        Self { min: n, max: n }
    }

    fn plus(self, o: Self) -> Self {
        Self { min: self.min.saturating_add(o.min), max: self.max.saturating_add(o.max) }
    }

    fn times(self, o: Self) -> Self {
        Self { min: self.min.saturating_mul(o.min), max: self.max.saturating_mul(o.max) }
    }

    fn scaled(self, factor: f64) -> Self {
        Self { min: scaled(self.min, factor), max: scaled(self.max, factor) }
    }

    fn or(self, o: Self) -> Self {
        Self { min: self.min.min(o.min), max: self.max.max(o.max) }
    }
}

struct Coster<'a> {
    checked: &'a Checked,
    sizes: &'a dyn Sizes,
    computed: HashMap<Id, Range>,
    paths: HashMap<Id, Vec<String>>,
    locals: Vec<(String, Option<Vec<String>>, Option<Range>)>,
}

/// The estimate for a checked expression.
pub fn estimate(checked: &Checked, sizes: &dyn Sizes) -> Range {
    let mut c = Coster { checked, sizes, computed: HashMap::new(), paths: HashMap::new(), locals: Vec::new() };
    c.cost(&checked.ast.root)
}

impl Coster<'_> {
    fn ty(&self, e: &Expr) -> &Type {
        &self.checked.types[e.id]
    }

    fn size(&self, e: &Expr) -> Range {
        if let Some(r) = self.computed.get(&e.id) {
            return *r;
        }
        match &e.kind {
            Kind::Literal(Literal::String(s)) => return Range::of(s.len() as u64),
            Kind::Literal(Literal::Bytes(b)) => return Range::of(b.len() as u64),
            Kind::Literal(_) => return Range::ONE,
            Kind::List(items) => return Range::of(items.len() as u64),
            Kind::Map(entries) => return Range::of(entries.len() as u64),
            _ => {}
        }
        let known = self.paths.get(&e.id).and_then(|p| self.sizes.max_size(p));
        match known {
            Some(max) => Range { min: 0, max },
            None if self.ty(e).is_scalar() => Range::ONE,
            None => Range::ANY,
        }
    }

    /// The size of the elements of a list.
    fn elements(&self, e: &Expr) -> Range {
        if let Kind::List(items) = &e.kind {
            return items.iter().map(|i| self.size(&i.value)).reduce(Range::or).unwrap_or(Range::ZERO);
        }
        let known = self.paths.get(&e.id).and_then(|p| self.sizes.max_size(&[p.as_slice(), &["@items".to_owned()]].concat()));
        known.map_or(Range::ANY, |max| Range { min: 0, max })
    }

    fn extend(&mut self, id: Id, of: Id, name: &str) {
        if let Some(p) = self.paths.get(&of) {
            let mut p = p.clone();
            p.push(name.to_owned());
            self.paths.insert(id, p);
        }
    }

    fn cost(&mut self, e: &Expr) -> Range {
        match &e.kind {
            Kind::Literal(_) => Range::ZERO,
            Kind::Ident(name) => {
                let local = self.locals.iter().rev().find(|(n, ..)| n == name).cloned();
                match local {
                    Some((_, path, size)) => {
                        if let Some(path) = path {
                            self.paths.insert(e.id, path);
                        }
                        if let Some(size) = size {
                            self.computed.insert(e.id, size);
                        }
                    }
                    None => {
                        self.paths.insert(e.id, vec![name.clone()]);
                    }
                }
                Range::ONE
            }
            Kind::Select { operand, field, test } => {
                let inner = self.cost(operand);
                if *test {
                    return inner;
                }
                let counts = matches!(self.ty(operand), Type::Map(..) | Type::Object(_) | Type::Param(_));
                // The values of a map are known by what all of them are.
                let name = if matches!(self.ty(operand), Type::Map(..)) { "@values" } else { field };
                self.extend(e.id, operand.id, name);
                if counts { inner.plus(Range::ONE) } else { inner }
            }
            Kind::List(items) => items.iter().fold(Range::of(LIST), |sum, i| sum.plus(self.cost(&i.value))),
            Kind::Map(entries) => entries.iter().fold(Range::of(MAP), |sum, x| sum.plus(self.cost(&x.key)).plus(self.cost(&x.value))),
            Kind::Struct { fields, .. } => fields.iter().fold(Range::of(STRUCT), |sum, f| sum.plus(self.cost(&f.value))),
            Kind::Fold(f) => self.fold(e.id, f),
            Kind::Call { function, target, args } => self.call(e.id, function, target.as_deref(), args),
        }
    }

    fn fold(&mut self, id: Id, f: &Fold) -> Range {
        let before = self.cost(&f.range).plus(self.cost(&f.init));
        let depth = self.locals.len();
        let init = (self.paths.get(&f.init.id).cloned(), self.computed.get(&f.init.id).copied());
        let literal = matches!(f.init.kind, Kind::Literal(Literal::String(_) | Literal::Bytes(_))).then(|| self.size(&f.init));
        self.locals.push((f.accu.clone(), init.0, init.1.or(literal)));
        let path = self.paths.get(&f.range.id).cloned();
        let below = |name: &str| path.as_ref().map(|p| [p.as_slice(), &[name.to_owned()]].concat());
        let map = matches!(self.ty(&f.range), Type::Map(..));
        let (first, second) = if map { (below("@keys"), below("@values")) } else { (None, below("@items")) };
        match &f.var2 {
            Some(v2) => {
                self.locals.push((f.var.clone(), first, (!map).then_some(Range::ONE)));
                self.locals.push((v2.clone(), second, None));
            }
            None => {
                let of_literal = matches!(f.range.kind, Kind::List(_)).then(|| self.elements(&f.range));
                self.locals.push((f.var.clone(), if map { first } else { second }, of_literal));
            }
        }
        let each = self.cost(&f.condition).plus(self.cost(&f.step));
        self.locals.truncate(depth + 1);
        let result = self.cost(&f.result);
        self.locals.truncate(depth);
        let count = self.size(&f.range);
        match &f.init.kind {
            _ if f.accu != crate::ast::ACCU => {
                let size = self.size(&f.result);
                self.computed.insert(id, size);
            }
            Kind::Literal(_) => {
                self.computed.insert(id, Range::ONE);
            }
            Kind::List(_) | Kind::Map(_) => {
                self.computed.insert(id, Range { min: 0, max: count.max });
            }
            _ => {}
        }
        before.plus(result).plus(count.times(each))
    }

    fn call(&mut self, id: Id, function: &str, target: Option<&Expr>, args: &[Expr]) -> Range {
        let costs: Vec<Range> = args.iter().map(|a| self.cost(a)).collect();
        let on = target.map_or(Range::ZERO, |t| self.cost(t));
        match (function, costs.as_slice()) {
            ("_&&_" | "_||_", [l, r]) => return Range { min: l.min, max: l.max.saturating_add(r.max) },
            ("_?_:_", [c, y, n]) => {
                let size = self.size(&args[1]).or(self.size(&args[2]));
                self.computed.insert(id, size);
                return c.plus(y.or(*n));
            }
            ("dyn", [c]) => {
                // The value stays what it is.
                if let Some(p) = self.paths.get(&args[0].id).cloned() {
                    self.paths.insert(id, p);
                }
                return Range::ONE.plus(*c);
            }
            _ => {}
        }
        if matches!(function, "_[_]" | "_[?_]" | "_?._")
            && let Some(first) = args.first()
        {
            let name = match (self.ty(first), args.get(1).map(|a| &a.kind)) {
                (Type::List(_), _) => Some("@items"),
                (Type::Map(..), _) => Some("@values"),
                (_, Some(Kind::Literal(Literal::String(s)))) => Some(&**s),
                _ => None,
            };
            if let Some(name) = name {
                self.extend(id, first.id, name);
            }
        }
        let sum = costs.iter().fold(on, |a, b| a.plus(*b));
        let all: Vec<&Expr> = target.into_iter().chain(args).collect();
        let matched = self.checked.overloads[id].clone();
        let overloads = Library::get().overloads(function).unwrap_or(&[]);
        let mut own: Option<Range> = None;
        let mut size: Option<Range> = None;
        for i in matched {
            let Some(o) = overloads.get(i) else { continue };
            let (c, s) = self.function(function, &o.args, &all);
            own = Some(own.map_or(c, |x| x.or(c)));
            size = match (size, s) {
                (Some(a), Some(b)) => Some(a.or(b)),
                (a, b) => a.or(b),
            };
        }
        if let Some(s) = size {
            self.computed.insert(id, s);
        }
        sum.plus(own.unwrap_or(Range::ONE))
    }

    /// The cost of a function by itself, and the size of its result where that is known.
    fn function(&self, function: &str, types: &[Type], args: &[&Expr]) -> (Range, Option<Range>) {
        let size = |i: usize| args.get(i).map_or(Range::ZERO, |a| self.size(a));
        let text = |i: usize| size(i).scaled(STRING);
        let up_to = |max: u64| Some(Range { min: 0, max });
        match (function, types) {
            ("bytes", [Type::String]) => (text(0), Some(Range { min: size(0).min, max: size(0).max.saturating_mul(4) })),
            ("string", [Type::Bytes]) => (text(0), Some(Range { min: size(0).min / 4, max: size(0).max })),
            ("string", [Type::String]) | ("bytes", [Type::Bytes]) => (Range::ONE, Some(size(0))),
            ("string", [Type::Bool]) => (Range::ONE, Some(Range { min: 4, max: 5 })),
            ("strings.quote", _) => {
                let s = size(0);
                (text(0), Some(Range { min: s.min.saturating_add(2), max: s.max.saturating_mul(2).saturating_add(2) }))
            }
            ("startsWith" | "endsWith", _) => (text(1), None),
            ("@in", [_, Type::List(_)]) => (size(1), None),
            ("matches", _) => (size(0).plus(Range::ONE).scaled(STRING).times(size(1).scaled(PATTERN)), None),
            ("find" | "findAll", _) => {
                let cost = size(0).plus(Range::ONE).scaled(STRING).times(size(1).scaled(PATTERN));
                (cost, up_to(size(0).max))
            }
            ("contains", _) | ("indexOf" | "lastIndexOf", [Type::String, ..]) => (text(0).times(text(1)), None),
            ("_+_", [Type::String, _] | [Type::Bytes, _]) => {
                let sum = size(0).plus(size(1));
                (sum.scaled(STRING), Some(sum))
            }
            ("_+_", [Type::List(_), _]) => (Range::ONE, Some(size(0).plus(size(1)))),
            ("_<_" | "_<=_" | "_>_" | "_>=_", [Type::String | Type::Bytes, _]) | ("_==_" | "_!=_", _) => {
                let most = size(0).max.min(size(1).max);
                (Range { min: u64::from(most > 0), max: most }.scaled(STRING), None)
            }
            ("isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf", _) => {
                let mut each = Range::ONE;
                if let Type::List(t) = self.ty(args[0])
                    && matches!(**t, Type::String | Type::Bytes)
                {
                    each = each.plus(self.elements(args[0]).scaled(STRING));
                }
                (size(0).times(each), None)
            }
            ("url" | "quantity" | "isURL" | "isQuantity" | "isIP" | "isCIDR" | "semver" | "isSemver", _) => (text(0), None),
            ("ip" | "cidr", [Type::String]) => (text(0), None),
            ("ip.isCanonical", _) => (text(0).times(Range::of(2)), None),
            ("containsIP" | "containsCIDR", [_, Type::String]) => (text(1).plus(Range::ONE), None),
            ("validate", _) => (text(1), None),
            ("lowerAscii" | "upperAscii" | "substring" | "trim" | "charAt", _) => (text(0), up_to(size(0).max)),
            ("replace", _) => {
                let (s, from, to) = (size(0), size(1), size(2));
                let parts = |n: u64, by: u64| if by == 0 { n } else { n.div_ceil(by) };
                let min = parts(s.min, from.max).saturating_mul(to.min);
                let max = parts(s.max, from.min).saturating_mul(to.max).max(s.max);
                (s.scaled(2.0 * STRING), Some(Range { min: min.min(max), max }))
            }
            ("split", _) => {
                let limit = args.get(2).and_then(|a| match a.kind {
                    Kind::Literal(Literal::Int(n)) => u64::try_from(n).ok(),
                    _ => None,
                });
                (text(0), up_to(limit.unwrap_or(size(0).max)))
            }
            ("join", _) => {
                let (n, each) = (size(0), self.elements(args[0]));
                let whole = n.times(each).plus(n.times(size(1)));
                (whole.scaled(STRING), Some(whole))
            }
            ("format", _) => {
                let whole = size(0).max.saturating_add(size(1).max.saturating_mul(self.elements(args[1]).max));
                (Range { min: scaled(size(0).min, STRING), max: scaled(whole, STRING) }, up_to(whole))
            }
            ("sets.contains" | "sets.equivalent" | "sets.intersects", _) => (size(0).times(size(1)).plus(Range::ONE), None),
            ("check", _) => (Range::of(AUTHORIZE), None),
            _ => (Range::ONE, None),
        }
    }
}
