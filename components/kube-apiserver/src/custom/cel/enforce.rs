//! Rules kept by objects: every rule is asked of every value it stands at, within a budget for the whole object.
//!
//! On updates a value that did not change keeps being accepted (ratcheting): what is wrong with it is only warned of. Rules that look at
//! `oldSelf` are asked where there is an old value.

use cel::{EvalError, Program, Value, Variables};
use serde_json::Value as Json;

use super::{CALL_LIMIT, OBJECT_BUDGET, Rules, rules::Compiled};
use crate::{
    custom::{structural::Rule, validate::NO_FIELD},
    validation::{ErrorList, FieldError, errors::Kind},
};

/// A message made by an expression has at most this many bytes.
const MAX_MESSAGE: usize = 5 * 1024;

struct Run<'e> {
    errors: &'e mut ErrorList,
    warnings: Vec<String>,
    budget: u64,
}

/// Nothing more is asked.
struct Stop;

/// Asks the rules of `value`, which stands at the field `base` (empty: it is the object). Warnings are handed back.
pub fn validate(rules: &Rules, value: &Json, old: Option<&Json>, base: &str, errors: &mut ErrorList) -> Vec<String> {
    let mut run = Run { errors, warnings: Vec::new(), budget: OBJECT_BUDGET };
    // Stopping early has said why.
    let _ = run.value(rules, value, old, false, base);
    run.warnings
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        _ if name.starts_with('[') => format!("{path}{name}"),
        _ => format!("{path}.{name}"),
    }
}

/// An element of a keyed list in the old list.
fn correlated<'a>(rules: &Rules, item: &Json, old: Option<&'a Json>) -> Option<&'a Json> {
    if rules.list_type != "map" {
        return None;
    }
    let keys = |v: &Json| rules.map_keys.iter().map(|k| v.get(k).cloned()).collect::<Vec<_>>();
    let wanted = keys(item);
    let mut same = old?.as_array()?.iter().filter(|o| keys(o) == wanted);
    same.next().filter(|_| same.next().is_none())
}

impl Run<'_> {
    fn value(&mut self, rules: &Rules, v: &Json, old: Option<&Json>, unchanged: bool, path: &str) -> Result<(), Stop> {
        if v.is_null() {
            return Ok(());
        }
        let unchanged = unchanged || old == Some(v);
        self.own(rules, v, old.filter(|o| !o.is_null()), unchanged, path)?;
        match v {
            Json::Array(list) => {
                if let Some(items) = &rules.items {
                    for (i, item) in list.iter().enumerate() {
                        self.value(items, item, correlated(rules, item, old), unchanged, &format!("{path}[{i}]"))?;
                    }
                }
            }
            Json::Object(m) => {
                for (name, item) in m {
                    let before = old.filter(|_| !rules.atomic_map).and_then(|o| o.get(name));
                    match (rules.properties.get(name), &rules.additional) {
                        (Some(r), _) => self.value(r, item, before, unchanged, &join(path, name))?,
                        (None, Some(r)) => self.value(r, item, before, unchanged, &format!("{path}[{name}]"))?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Runs a program within what is left.
    fn run<'a>(&mut self, p: &Program, variables: &Variables<'a>) -> (Result<Value<'a>, EvalError>, bool) {
        let out = p.run(variables, CALL_LIMIT);
        let within = out.cost <= self.budget;
        self.budget = self.budget.saturating_sub(out.cost);
        (out.value, within)
    }

    fn own(&mut self, rules: &Rules, v: &Json, old: Option<&Json>, unchanged: bool, path: &str) -> Result<(), Stop> {
        let field = if path.is_empty() { NO_FIELD } else { path };
        for c in &rules.own {
            let program = match &c.program {
                Ok(p) => p,
                Err(why) => {
                    self.errors.push(invalid(field, v, format!("rule compile error: {why}")));
                    continue;
                }
            };
            let optional = c.rule.optional_old_self == Some(true);
            if c.uses_old && old.is_none() && !optional {
                continue;
            }
            let decl = rules.decl.as_ref();
            let mut variables: Variables<'_> = [("self", Value::json(v, decl))].into_iter().collect();
            match old.map(|o| Value::json(o, decl)) {
                Some(o) if optional => variables.insert("oldSelf", Value::some(o)),
                None if optional => variables.insert("oldSelf", Value::Optional(None)),
                Some(o) => variables.insert("oldSelf", o),
                None => None,
            };
            let (result, within) = self.run(program, &variables);
            if !within {
                let why = "validation failed due to running out of cost budget, no further validation rules will be run";
                self.errors.push(invalid(field, v, why.to_owned()));
                return Err(Stop);
            }
            let rule = described(&c.rule);
            match result {
                Ok(Value::Bool(true)) => {}
                Err(EvalError::NoSuchOverload) => {
                    let why = format!(
                        "'no such overload': call arguments did not match a supported operator, function or macro signature for rule: {rule}"
                    );
                    self.errors.push(invalid(field, v, why));
                }
                Err(e @ EvalError::CostExceeded) => {
                    let why = format!("'{e}': no further validation rules will be run due to call cost exceeds limit for rule: {rule}");
                    self.errors.push(invalid(field, v, why));
                    return Err(Stop);
                }
                Err(e) => self.errors.push(invalid(field, v, format!("{e} evaluating rule: {rule}"))),
                Ok(_) => {
                    let message = self.message(c, &variables, field, v)?;
                    let field = c.field_path.as_ref().map_or_else(|| field.to_owned(), |p| join(path, p));
                    let e = for_reason(&field, v, message, &c.rule.reason);
                    if unchanged && !c.uses_old {
                        self.warnings.push(e.to_string());
                    } else {
                        self.errors.push(e);
                    }
                }
            }
        }
        Ok(())
    }

    /// What is said when a rule fails: what its message expression makes, else its message, else the rule.
    fn message(&mut self, c: &Compiled, variables: &Variables<'_>, field: &str, v: &Json) -> Result<String, Stop> {
        let plain = || match c.rule.message.trim() {
            "" => format!("failed rule: {}", described(&c.rule)),
            m => m.to_owned(),
        };
        let Some(p) = &c.message else { return Ok(plain()) };
        let (result, within) = self.run(p, variables);
        if !within {
            let why = "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run";
            self.errors.push(invalid(field, v, why.to_owned()));
            return Err(Stop);
        }
        let text = result.ok().and_then(|r| r.as_str().map(|s| s.trim().to_owned()));
        let usable = |s: &String| !s.is_empty() && s.len() <= MAX_MESSAGE && !s.contains(['\n', '\r']);
        Ok(text.filter(usable).unwrap_or_else(plain))
    }
}

fn described(r: &Rule) -> &str {
    match r.message.trim() {
        "" => r.rule.trim(),
        m => m,
    }
}

/// Values that are structures are not shown.
fn invalid(field: &str, v: &Json, detail: String) -> FieldError {
    for_reason(field, v, detail, "")
}

fn for_reason(field: &str, v: &Json, detail: String, reason: &str) -> FieldError {
    match reason {
        "FieldValueForbidden" => FieldError::forbidden(field, detail),
        "FieldValueRequired" => FieldError::required(field, detail),
        "FieldValueDuplicate" => FieldError::of_value(Kind::Duplicate, field, v, detail),
        _ => FieldError::of_value(Kind::Invalid, field, v, detail),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::custom::structural::Schema;

    fn told(schema: Json, v: Json, old: Option<Json>) -> (Vec<String>, Vec<String>) {
        let rules = Rules::of(&Schema::of(&schema), true).unwrap();
        let mut e = ErrorList::new();
        let warnings = validate(&rules, &v, old.as_ref(), "", &mut e);
        (e.iter().map(ToString::to_string).collect(), warnings)
    }

    fn errors(schema: Json, v: Json, old: Option<Json>) -> Vec<String> {
        told(schema, v, old).0
    }

    #[test]
    fn failing_rules_are_told_with_their_message_reason_and_field() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "lo": {"type": "integer"}, "hi": {"type": "integer"}, "im": {"type": "string"},
            "im2": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]},
            "m": {"type": "object", "additionalProperties": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0"}]}}},
            "x-kubernetes-validations": [
                {"rule": "!has(self.lo) || !has(self.hi) || self.lo <= self.hi", "message": "lo must not exceed hi", "fieldPath": ".lo"},
                {"rule": "!has(self.im) || !has(oldSelf.im) || self.im == oldSelf.im", "messageExpression": "\"im was \" + oldSelf.im",
                    "reason": "FieldValueForbidden"}]}},
            "x-kubernetes-validations": [{"rule": "!self.metadata.name.startsWith('bad')"}]});
        let object = |name: &str, spec: Json| json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": name}, "spec": spec});
        for (v, old, want) in [
            (object("a", json!({"lo": 5, "hi": 1})), None, "spec.lo: Invalid value: lo must not exceed hi"),
            (object("a", json!({"lo": 1, "hi": 5})), None, ""),
            (object("bad", json!({})), None, "<nil>: Invalid value: failed rule: !self.metadata.name.startsWith('bad')"),
            (object("a", json!({"im": "two"})), Some(object("a", json!({"im": "one"}))), "spec: Forbidden: im was one"),
            (
                object("a", json!({"im2": "r"})),
                Some(object("a", json!({"im2": "q"}))),
                "spec.im2: Invalid value: \"r\": failed rule: self == oldSelf",
            ),
            (object("a", json!({"im2": "r"})), None, ""),
            (object("a", json!({"m": {"k": 0}})), None, "spec.m[k]: Invalid value: 0: failed rule: self > 0"),
        ] {
            assert_eq!(errors(schema.clone(), v, old).join(", "), want);
        }
    }

    #[test]
    fn what_did_not_change_is_only_warned_of() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 5"}]},
            "b": {"type": "integer"}}});
        let (errors, warnings) = told(schema.clone(), json!({"a": 1, "b": 2}), Some(json!({"a": 1, "b": 1})));
        assert_eq!((errors, warnings), (vec![], vec!["a: Invalid value: 1: failed rule: self > 5".to_owned()]));
        assert_eq!(told(schema, json!({"a": 2}), Some(json!({"a": 1}))).0.len(), 1);
    }

    #[test]
    fn old_values_are_found_by_key_and_may_be_optional() {
        let schema = json!({"type": "object", "properties": {
            "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object",
                "properties": {"k": {"type": "string"}, "x": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.x >= oldSelf.x"}]}},
            "o": {"type": "integer", "x-kubernetes-validations": [
                {"rule": "oldSelf.hasValue() ? self > oldSelf.value() : self == 0", "optionalOldSelf": true}]}}});
        let old = json!({"l": [{"k": "a", "x": 5}, {"k": "b", "x": 1}], "o": 3});
        let new = json!({"l": [{"k": "b", "x": 2}, {"k": "a", "x": 4}, {"k": "c", "x": 0}], "o": 4});
        assert_eq!(errors(schema.clone(), new, Some(old)), ["l[1]: Invalid value: failed rule: self.x >= oldSelf.x"]);
        assert_eq!(errors(schema.clone(), json!({"o": 0}), None), [""; 0]);
        assert_eq!(errors(schema, json!({"o": 1}), None).len(), 1);
    }

    #[test]
    fn errors_while_evaluating_fail_the_rule() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"x-kubernetes-int-or-string": true}},
            "x-kubernetes-validations": [{"rule": "self.a > 0"}, {"rule": "!has(self.b) || self.b > 5"}]});
        assert_eq!(errors(schema.clone(), json!({}), None), ["<nil>: Invalid value: no such key: a evaluating rule: self.a > 0"]);
        assert_eq!(
            errors(schema, json!({"a": 1, "b": "x"}), None),
            [
                "<nil>: Invalid value: 'no such overload': call arguments did not match a supported operator, function or macro signature for rule: !has(self.b) || self.b > 5"
            ]
        );
    }

    #[test]
    fn an_object_has_one_budget() {
        let schema = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}},
            "x-kubernetes-validations": [{"rule": "self.l.all(a, self.l.all(b, self.l.all(c, a + b + c >= 0)))"}]});
        let got = errors(schema, json!({"l": (0..300).collect::<Vec<i64>>()}), None);
        assert!(got.len() == 1 && got[0].contains("actual cost limit exceeded"), "{got:?}");
        let many = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}},
            "x-kubernetes-validations": (0..30).map(|_| json!({"rule": "self.l.all(a, self.l.all(b, a + b >= 0))"})).collect::<Vec<_>>()});
        let got = errors(many, json!({"l": (0..300).collect::<Vec<i64>>()}), None);
        assert!(got.len() == 1 && got[0].contains("running out of cost budget"), "{got:?}");
    }
}
