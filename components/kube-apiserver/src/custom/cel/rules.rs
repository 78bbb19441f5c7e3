//! The rules of a schema, compiled. Only places that have rules, or are on the way to some, are kept.

use std::collections::BTreeMap;

use cel::{Checked, Env, Program, Type, cost, schema::Decl};

use super::{declare, field_path};
use crate::custom::structural::{Additional, Rule, Schema};

/// Rules and what is below.
#[derive(Debug)]
pub struct Rules {
    pub decl: Option<Decl>,
    pub own: Vec<Compiled>,
    pub properties: BTreeMap<String, Rules>,
    pub additional: Option<Box<Rules>>,
    pub items: Option<Box<Rules>>,
    /// What finds an element of a list, or a property of a map, again in the old object.
    pub list_type: String,
    pub map_keys: Vec<String>,
    pub atomic_map: bool,
}

/// A rule ready to run, or why it is not.
#[derive(Debug)]
pub struct Compiled {
    pub rule: Rule,
    pub program: Result<Program, String>,
    pub message: Option<Program>,
    pub uses_old: bool,
    /// What is appended to the field that is blamed.
    pub field_path: Option<String>,
}

/// A compiled expression and the most it can cost.
pub struct Judged {
    pub checked: Checked,
    pub max_cost: u64,
}

fn env(decl: &Decl, rule: &Rule) -> Env {
    let old = if rule.optional_old_self == Some(true) { Type::optional(decl.ty.clone()) } else { decl.ty.clone() };
    Env::new([("self", decl.ty.clone()), ("oldSelf", old)])
}

/// Compiles the rule itself; the error is what upstream says of it.
pub fn compile_rule(decl: &Decl, rule: &Rule) -> Result<Judged, String> {
    let checked = cel::compile(&rule.rule, &env(decl, rule)).map_err(|e| format!("compilation failed: {e}"))?;
    if *checked.result() != Type::Bool {
        return Err("cel expression must evaluate to a bool".into());
    }
    let max_cost = cost::estimate(&checked, decl).max;
    Ok(Judged { checked, max_cost })
}

/// Compiles the expression of the message.
pub fn compile_message(decl: &Decl, rule: &Rule) -> Result<Judged, String> {
    let checked =
        cel::compile(&rule.message_expression, &env(decl, rule)).map_err(|e| format!("messageExpression compilation failed: {e}"))?;
    if *checked.result() != Type::String {
        return Err("messageExpression must evaluate to a string".into());
    }
    let max_cost = cost::estimate(&checked, decl).max;
    Ok(Judged { checked, max_cost })
}

impl Rules {
    /// The rules of a schema; none if it has none.
    pub fn of(s: &Schema, root: bool) -> Option<Self> {
        if !s.has_rules() {
            return None;
        }
        let decl = (!s.rules.is_empty()).then(|| declare::declare(s, "selfType", root)).flatten();
        let own = s.rules.iter().filter(|r| !r.rule.trim().is_empty()).map(|r| Compiled::of(r, decl.as_ref(), s)).collect();
        Some(Self {
            own,
            decl,
            properties: s.properties.iter().filter_map(|(n, p)| Some((n.clone(), Self::of(p, false)?))).collect(),
            additional: match &s.additional {
                Additional::Of(a) => Self::of(a, false).map(Box::new),
                _ => None,
            },
            items: s.items.as_deref().and_then(|i| Self::of(i, false)).map(Box::new),
            list_type: s.list_type.clone(),
            map_keys: s.map_keys.clone(),
            atomic_map: s.map_type == "atomic",
        })
    }
}

impl Compiled {
    fn of(rule: &Rule, decl: Option<&Decl>, s: &Schema) -> Self {
        let none = || "unable to convert structural schema to CEL declarations".to_owned();
        let judged = decl.ok_or_else(none).and_then(|d| compile_rule(d, rule));
        let uses_old = judged.as_ref().is_ok_and(|j| j.checked.ast.root.mentions("oldSelf"));
        let message = decl.filter(|_| !rule.message_expression.trim().is_empty()).and_then(|d| compile_message(d, rule).ok());
        Self {
            uses_old,
            program: judged.map(|j| Program::new(j.checked)),
            message: message.map(|j| Program::new(j.checked)),
            field_path: field_path::normalized(&rule.field_path, s),
            rule: rule.clone(),
        }
    }
}
