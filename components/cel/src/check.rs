//! The type checker: finds what every name and call means, or says why it cannot mean anything.

use std::{collections::HashMap, sync::Arc};

use crate::{
    ast::{Entry, Expr, Fold, Id, Item, Kind, Literal},
    functions::regexes,
    issue::{Issue, Issues},
    library::Library,
    parser::Ast,
    types::{Bindings, ObjectType, Type},
};

/// What names mean outside of the expression.
#[derive(Debug, Clone, Default)]
pub struct Env {
    pub variables: HashMap<String, Type>,
    /// Structures that may be written as `Name{…}`, by name. An open one stands for those whose names go on with a dot, too.
    pub structures: HashMap<String, Arc<ObjectType>>,
}

impl Env {
    pub fn new(variables: impl IntoIterator<Item = (&'static str, Type)>) -> Self {
        Self { variables: variables.into_iter().map(|(n, t)| (n.to_owned(), t)).collect(), structures: HashMap::new() }
    }

    /// The structure of a name.
    pub fn structure(&self, name: &str) -> Option<Arc<ObjectType>> {
        if let Some(s) = self.structures.get(name) {
            return Some(Arc::clone(s));
        }
        let parent = self.structures.get(name.split('.').next()?).filter(|p| p.open)?;
        Some(Arc::new(ObjectType { name: name.to_owned(), fields: parent.fields.clone(), open: true }))
    }
}

/// A checked expression.
#[derive(Debug, Clone)]
pub struct Checked {
    pub ast: Ast,
    pub types: Vec<Type>,
    /// Of each call, the overloads that it may be, as indices of [`Library::overloads`].
    pub overloads: Vec<Vec<usize>>,
}

impl Checked {
    pub fn result(&self) -> &Type {
        &self.types[self.ast.root.id]
    }
}

struct Checker<'a> {
    env: &'a Env,
    scopes: Vec<(String, Type)>,
    bindings: Bindings,
    types: Vec<Type>,
    overloads: Vec<Vec<usize>>,
    offsets: &'a [usize],
    issues: Vec<Issue>,
}

/// Checks a parsed expression. Qualified function names become functions in the tree.
pub fn check(mut ast: Ast, env: &Env) -> Result<Checked, Issues> {
    let count = ast.offsets.len();
    let mut c = Checker {
        env,
        scopes: Vec::new(),
        bindings: Bindings::default(),
        types: vec![Type::Dyn; count],
        overloads: vec![Vec::new(); count],
        offsets: &ast.offsets,
        issues: Vec::new(),
    };
    c.expr(&mut ast.root);
    if !c.issues.is_empty() {
        return Err(Issues::new(&ast.source, c.issues));
    }
    let types: Vec<Type> = c.types.iter().map(|t| c.bindings.settle(t)).collect();
    let overloads = c.overloads;
    let mut found = Vec::new();
    literals(&ast.root, &types, &ast.offsets, &mut found);
    if !found.is_empty() {
        return Err(Issues::new(&ast.source, found));
    }
    Ok(Checked { ast, types, overloads })
}

/// The type that a name stands for, as in `type(x) == int`.
fn type_named(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "null_type" => Type::Null,
        "type" => Type::Type(Arc::new(Type::Dyn)),
        "optional_type" => Type::optional(Type::Dyn),
        "google.protobuf.Timestamp" => Type::Timestamp,
        "google.protobuf.Duration" => Type::Duration,
        "net.IP" | "net.CIDR" | "kubernetes.URL" | "kubernetes.Quantity" => {
            [crate::library::IP, crate::library::CIDR, crate::library::URL, crate::library::QUANTITY]
                .into_iter()
                .find(|o| *o == name)
                .map(Type::Opaque)?
        }
        _ => return None,
    })
}

/// `name` as a type's value, for the evaluator.
pub fn type_value(name: &str) -> Option<Type> {
    type_named(name)
}

impl Checker<'_> {
    fn fail(&mut self, id: Id, message: String) -> Type {
        self.issues.push(Issue { offset: self.offsets.get(id).copied().unwrap_or(0), message });
        Type::Error
    }

    fn expr(&mut self, e: &mut Expr) -> Type {
        let t = self.kind(e);
        self.types[e.id] = t.clone();
        t
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let local = self.scopes.iter().rev().find(|(n, _)| n == name).map(|(_, t)| t);
        local.or_else(|| self.env.variables.get(name)).cloned()
    }

    fn kind(&mut self, e: &mut Expr) -> Type {
        let id = e.id;
        // A dotted name may be that of a variable or of a type.
        if let Kind::Select { test: false, .. } = &e.kind
            && let Some(name) = e.qualified()
        {
            let first = name.split('.').next().unwrap_or("");
            let local = self.scopes.iter().any(|(n, _)| n == first);
            if let Some(t) = self.env.variables.get(&name).filter(|_| !local).cloned() {
                e.kind = Kind::Ident(name);
                return t;
            }
            if let Some(t) = type_named(&name).filter(|_| self.variable(first).is_none()) {
                e.kind = Kind::Ident(name);
                return Type::Type(Arc::new(t));
            }
        }
        match &mut e.kind {
            Kind::Literal(l) => match l {
                Literal::Null => Type::Null,
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) => Type::Int,
                Literal::Uint(_) => Type::Uint,
                Literal::Double(_) => Type::Double,
                Literal::String(_) => Type::String,
                Literal::Bytes(_) => Type::Bytes,
            },
            Kind::Ident(name) => match self.variable(name).or_else(|| type_named(name).map(|t| Type::Type(Arc::new(t)))) {
                Some(t) => t,
                None => {
                    let message = format!("undeclared reference to '{name}' (in container '')");
                    self.fail(id, message)
                }
            },
            Kind::Select { operand, field, test } => {
                let of = self.expr(operand);
                let found = self.select(id, &of, field);
                if *test { Type::Bool } else { found }
            }
            Kind::Call { .. } => self.call(e),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct { name, fields } => {
                let Some(object) = self.env.structure(name) else {
                    for f in fields.iter_mut() {
                        self.expr(&mut f.value);
                    }
                    let message = format!("undeclared reference to '{name}' (in container '')");
                    return self.fail(id, message);
                };
                for f in fields {
                    let given = self.expr(&mut f.value);
                    match object.fields.get(&f.name) {
                        None if object.open => {}
                        None => {
                            let given = self.bindings.settle(&given);
                            self.fail(f.id, format!("expected type of field '{}' is '' but provided type is '{given}'", f.name));
                        }
                        Some(want) => {
                            let want = if f.optional { Type::optional(want.clone()) } else { want.clone() };
                            if !self.bindings.assign(&given, &want) {
                                let given = self.bindings.settle(&given);
                                self.fail(f.id, format!("expected type of field '{}' is '{want}' but provided type is '{given}'", f.name));
                            }
                        }
                    }
                }
                Type::Object(object)
            }
            Kind::Fold(f) => self.fold(f),
        }
    }

    fn select(&mut self, id: Id, of: &Type, field: &str) -> Type {
        match self.bindings.resolve(of) {
            Type::Dyn | Type::Error => Type::Dyn,
            Type::Map(_, v) => (*v).clone(),
            Type::Object(o) => match o.fields.get(field) {
                Some(t) => t.clone(),
                None if o.open => Type::Dyn,
                None => self.fail(id, format!("undefined field '{field}'")),
            },
            Type::Optional(inner) => {
                let t = self.select(id, &inner, field);
                if t == Type::Error { t } else { Type::optional(t) }
            }
            Type::Param(_) => {
                self.bindings.assign(of, &Type::Dyn);
                Type::Dyn
            }
            t => self.fail(id, format!("type '{t}' does not support field selection")),
        }
    }

    fn list(&mut self, items: &mut [Item]) -> Type {
        let mut joined: Option<Type> = None;
        let mut mixed = false;
        for item in items {
            let mut t = self.expr(&mut item.value);
            if item.optional {
                t = self.unwrapped(item.value.id, &t);
            }
            joined = Some(self.joined(joined, t, &mut mixed));
        }
        let of = if mixed { Type::Dyn } else { joined.unwrap_or_else(|| self.bindings.fresh()) };
        Type::list(of)
    }

    fn unwrapped(&mut self, id: Id, t: &Type) -> Type {
        match self.bindings.resolve(t) {
            Type::Optional(t) => (*t).clone(),
            t if t.is_dyn() => Type::Dyn,
            t => self.fail(id, format!("expected type 'optional_type({t})' but found '{t}'")),
        }
    }

    fn joined(&mut self, so_far: Option<Type>, t: Type, mixed: &mut bool) -> Type {
        let Some(so_far) = so_far else { return t };
        match self.bindings.join(&so_far, &t) {
            Some(t) => t,
            None => {
                *mixed = true;
                so_far
            }
        }
    }

    fn map(&mut self, entries: &mut [Entry]) -> Type {
        let (mut key, mut value) = (None, None);
        let (mut mixed_keys, mut mixed_values) = (false, false);
        for entry in entries {
            let k = self.expr(&mut entry.key);
            key = Some(self.joined(key, k, &mut mixed_keys));
            let mut v = self.expr(&mut entry.value);
            if entry.optional {
                v = self.unwrapped(entry.value.id, &v);
            }
            value = Some(self.joined(value, v, &mut mixed_values));
        }
        let mut one = |t: Option<Type>, mixed| if mixed { Type::Dyn } else { t.unwrap_or_else(|| self.bindings.fresh()) };
        let key = one(key, mixed_keys);
        Type::map(key, one(value, mixed_values))
    }

    fn fold(&mut self, f: &mut Fold) -> Type {
        let range = self.expr(&mut f.range);
        let init = self.expr(&mut f.init);
        let (first, second) = match self.bindings.resolve(&range) {
            Type::List(e) => (Type::Int, (*e).clone()),
            Type::Map(k, v) => ((*k).clone(), (*v).clone()),
            Type::Dyn | Type::Error | Type::Param(_) => (Type::Dyn, Type::Dyn),
            t => {
                self.fail(
                    f.range.id,
                    format!("expression of type '{t}' cannot be range of a comprehension (must be list, map, or dynamic)"),
                );
                (Type::Error, Type::Error)
            }
        };
        let is_list = matches!(self.bindings.resolve(&range), Type::List(_));
        let depth = self.scopes.len();
        self.scopes.push((f.accu.clone(), init.clone()));
        match &f.var2 {
            Some(v2) => {
                self.scopes.push((f.var.clone(), first));
                self.scopes.push((v2.clone(), second));
            }
            None => self.scopes.push((f.var.clone(), if is_list { second } else { first })),
        }
        self.expr(&mut f.condition);
        let step = self.expr(&mut f.step);
        if !self.bindings.assign(&step, &init) {
            let (init, step) = (self.bindings.settle(&init), self.bindings.settle(&step));
            self.fail(f.step.id, format!("expected type '{init}' but found '{step}'"));
        }
        self.scopes.truncate(depth + 1);
        let result = self.expr(&mut f.result);
        self.scopes.truncate(depth);
        result
    }

    fn call(&mut self, e: &mut Expr) -> Type {
        let id = e.id;
        let Kind::Call { function, target, args } = &mut e.kind else { return Type::Error };
        // `sets.contains(a, b)` looks like a method, and is a function with a dotted name.
        if let Some(t) = target
            && let Some(prefix) = t.qualified()
        {
            let whole = format!("{prefix}.{function}");
            if Library::get().has_function(&whole) {
                *function = whole;
                *target = None;
            }
        }
        if function == "_?._" {
            return self.optional_select(id, args);
        }
        let mut types = Vec::with_capacity(args.len() + 1);
        if let Some(t) = target {
            types.push(self.expr(t));
        }
        for a in args.iter_mut() {
            types.push(self.expr(a));
        }
        let method = target.is_some();
        let Some(overloads) = Library::get().overloads(function) else {
            let message = format!("undeclared reference to '{function}' (in container '')");
            return self.fail(id, message);
        };
        let mut result: Option<Type> = None;
        for (i, o) in overloads.iter().enumerate() {
            if o.method != method || o.args.len() != types.len() {
                continue;
            }
            let fresh: Vec<Type> = (0..o.params).map(|_| self.bindings.fresh()).collect();
            let want: Vec<Type> = o.args.iter().map(|t| instantiate(t, &fresh)).collect();
            if self.bindings.assign_all(&types, &want) {
                self.overloads[id].push(i);
                let t = self.bindings.resolve(&instantiate(&o.result, &fresh));
                result = Some(match result {
                    None => t,
                    Some(before) if before == t => before,
                    Some(_) => Type::Dyn,
                });
            }
        }
        result.unwrap_or_else(|| {
            if types.contains(&Type::Error) {
                return Type::Error;
            }
            let shown: Vec<String> = types.iter().map(|t| self.bindings.settle(t).to_string()).collect();
            let applied = match method {
                true => format!("{}.({})", shown[0], shown[1..].join(", ")),
                false => format!("({})", shown.join(", ")),
            };
            let message = format!("found no matching overload for '{function}' applied to '{applied}'");
            self.fail(id, message)
        })
    }

    fn optional_select(&mut self, id: Id, args: &mut [Expr]) -> Type {
        let [operand, field] = args else { return Type::Error };
        let of = self.expr(operand);
        self.expr(field);
        let Kind::Literal(Literal::String(name)) = &field.kind else { return Type::Error };
        match self.select(id, &of, name) {
            Type::Error => Type::Error,
            t @ Type::Optional(_) if matches!(self.bindings.resolve(&of), Type::Optional(_)) => t,
            t => Type::optional(t),
        }
    }
}

fn instantiate(t: &Type, fresh: &[Type]) -> Type {
    match t {
        Type::Param(i) => fresh[*i].clone(),
        Type::List(e) => Type::list(instantiate(e, fresh)),
        Type::Optional(e) => Type::optional(instantiate(e, fresh)),
        Type::Map(k, v) => Type::map(instantiate(k, fresh), instantiate(v, fresh)),
        t => t.clone(),
    }
}

/// Literals that can be judged before anything runs: patterns, times, and lists of mixed types.
fn literals(e: &Expr, types: &[Type], offsets: &[usize], out: &mut Vec<Issue>) {
    let mut bad = |e: &Expr, what: String| out.push(Issue { offset: offsets[e.id], message: what });
    let text = |e: &Expr| match &e.kind {
        Kind::Literal(Literal::String(s)) => Some(s.clone()),
        _ => None,
    };
    match &e.kind {
        Kind::Call { function, target, args } => {
            let all: Vec<&Expr> = target.iter().map(|t| &**t).chain(args).collect();
            let last = all.last().and_then(|a| text(a).map(|s| (*a, s)));
            match (function.as_str(), last) {
                ("matches", Some((a, s))) if regexes::compile(&s).is_err() => bad(a, "invalid matches argument".into()),
                ("timestamp", Some((a, s))) if crate::functions::time::parse_timestamp(&s).is_none() => {
                    bad(a, "invalid timestamp argument".into());
                }
                ("duration", Some((a, s))) if crate::functions::time::parse_duration(&s).is_none() => {
                    bad(a, "invalid duration argument".into());
                }
                _ => {}
            }
            for a in all {
                match &a.kind {
                    // What is formatted may be of any types.
                    Kind::List(items) if function == "format" => items.iter().for_each(|i| literals(&i.value, types, offsets, out)),
                    _ => literals(a, types, offsets, out),
                }
            }
        }
        Kind::List(items) => {
            let mut seen = items.iter().filter(|i| !i.optional).map(|i| (&i.value, &types[i.value.id])).filter(|(_, t)| !t.is_dyn());
            if let Some((_, first)) = seen.next()
                && let Some((other, t)) = seen.find(|(_, t)| *t != first && !compatible(first, t))
            {
                bad(other, format!("expected type '{first}' but found '{t}'"));
            }
            items.iter().for_each(|i| literals(&i.value, types, offsets, out));
        }
        Kind::Map(entries) => {
            let part = |value: bool| {
                let exprs = entries.iter().filter(|e| !(value && e.optional)).map(|e| if value { &e.value } else { &e.key });
                let mut seen = exprs.map(|e| (e, &types[e.id])).filter(|(_, t)| !t.is_dyn());
                let (_, first) = seen.next()?;
                let (other, t) = seen.find(|(_, t)| *t != first && !compatible(first, t))?;
                Some((other, format!("expected type '{first}' but found '{t}'")))
            };
            for (e, what) in [part(false), part(true)].into_iter().flatten() {
                bad(e, what);
            }
            for e in entries {
                literals(&e.key, types, offsets, out);
                literals(&e.value, types, offsets, out);
            }
        }
        Kind::Select { operand, .. } => literals(operand, types, offsets, out),
        Kind::Struct { fields, .. } => fields.iter().for_each(|f| literals(&f.value, types, offsets, out)),
        Kind::Fold(f) => {
            for e in [&f.range, &f.init, &f.condition, &f.step, &f.result] {
                literals(e, types, offsets, out);
            }
        }
        Kind::Literal(_) | Kind::Ident(_) => {}
    }
}

fn compatible(a: &Type, b: &Type) -> bool {
    let mut bindings = Bindings::default();
    bindings.assign(a, b) || bindings.assign(b, a)
}
