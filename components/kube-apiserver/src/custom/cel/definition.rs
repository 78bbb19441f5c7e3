//! The rules of a definition, when it is written: do they compile, are they of use, can they cost too much.

use super::{RULE_LIMIT, SCHEMA_LIMIT, declare, field_path, rules};
use crate::{
    custom::structural::{Additional, Rule, Schema},
    validation::{ErrorList, FieldError, child, index, key},
};

const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// So many of the costly rules are named.
const NAMED: usize = 4;

#[derive(Default)]
struct Total {
    cost: u64,
    /// Those with at least a hundredth of the limit, the costliest first.
    expensive: Vec<(String, u64)>,
}

impl Total {
    fn add(&mut self, path: String, cost: u64) {
        self.cost = self.cost.saturating_add(cost);
        if cost >= SCHEMA_LIMIT / 100 {
            let at = self.expensive.partition_point(|(_, c)| *c >= cost);
            self.expensive.insert(at, (path, cost));
            self.expensive.truncate(NAMED);
        }
    }
}

struct Walk<'e> {
    errors: &'e mut ErrorList,
    total: Total,
}

/// Where a schema stands.
#[derive(Clone)]
struct Place {
    path: String,
    /// How often there can be such a value; unknown below a list or map without a limit.
    count: Option<u64>,
    /// The part of the schema whose elements cannot be found again in an old object.
    uncorrelatable: Option<String>,
    root: bool,
}

/// Judges all rules of a structural schema.
pub fn check(s: &Schema, path: &str, errors: &mut ErrorList) {
    if !s.has_rules() {
        return;
    }
    let mut w = Walk { errors, total: Total::default() };
    w.schema(s, &Place { path: path.to_owned(), count: Some(1), uncorrelatable: None, root: true });
    if w.total.cost > SCHEMA_LIMIT {
        for (path, _) in w.total.expensive {
            let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            w.errors.push(FieldError::forbidden(path, why));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        w.errors.push(FieldError::forbidden(path, too_costly(what, w.total.cost, SCHEMA_LIMIT)));
    }
}

fn too_costly(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// A string as Go's JSON has it: what HTML would read is escaped.
fn go_json(s: &str) -> String {
    serde_json::Value::from(s).to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// A rule as upstream's errors show it.
fn shown(r: &Rule) -> String {
    let reason = if r.reason.is_empty() { "null".to_owned() } else { go_json(&r.reason) };
    let old = r.optional_old_self.map_or("null".to_owned(), |b| b.to_string());
    format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{reason},\"FieldPath\":{},\"OptionalOldSelf\":{old}}}",
        go_json(&r.rule),
        go_json(&r.message),
        go_json(&r.message_expression),
        go_json(&r.field_path)
    )
}

fn broken(s: &str) -> bool {
    s.contains(['\n', '\r'])
}

/// What can be said of a rule without compiling it.
fn form(r: &Rule, s: &Schema, at: &str, e: &mut ErrorList) {
    let (rule, message) = (r.rule.trim(), r.message.trim());
    if rule.is_empty() {
        e.push(FieldError::required(child(at, "rule"), "rule is not specified"));
    } else if !r.message.is_empty() && message.is_empty() {
        e.push(FieldError::invalid(child(at, "message"), &r.message, "must be non-empty if specified"));
    } else if broken(message) {
        e.push(FieldError::invalid(child(at, "message"), &r.message, "must not contain line breaks"));
    } else if broken(rule) && message.is_empty() {
        e.push(FieldError::required(child(at, "message"), "message must be specified if rule contains line breaks"));
    }
    if !r.message_expression.is_empty() && r.message_expression.trim().is_empty() {
        e.push(FieldError::required(child(at, "messageExpression"), "must be non-empty if specified"));
    }
    if !r.reason.is_empty() && !REASONS.contains(&r.reason.as_str()) {
        e.push(FieldError::not_supported(child(at, "reason"), &r.reason, &REASONS));
    }
    if r.field_path.is_empty() {
        return;
    }
    let at = child(at, "fieldPath");
    if r.field_path.trim().is_empty() {
        e.push(FieldError::invalid(at, &r.field_path, "must be non-empty if specified"));
    } else if broken(&r.field_path) {
        e.push(FieldError::invalid(at, &r.field_path, "must not contain line breaks"));
    } else if field_path::normalized(&r.field_path, s).is_none() {
        e.push(FieldError::invalid(at, &r.field_path, "must be a valid path"));
    }
}

impl Walk<'_> {
    fn schema(&mut self, s: &Schema, at: &Place) {
        let times = |n: Option<i64>| at.count.and_then(|c| n.map(|n| c.saturating_mul(u64::try_from(n).unwrap_or(0))));
        let hidden = |here: bool| at.uncorrelatable.clone().or_else(|| here.then(|| at.path.clone()));
        let below = |path, count, here| Place { path, count, uncorrelatable: hidden(here), root: false };
        let atomic = s.map_type == "atomic";
        if let Additional::Of(of) = &s.additional {
            self.schema(of, &below(child(&at.path, "additionalProperties"), times(s.max_properties), atomic));
        }
        for (name, p) in &s.properties {
            self.schema(p, &below(key(&child(&at.path, "properties"), name), at.count, atomic));
        }
        if let Some(items) = &s.items {
            self.schema(items, &below(child(&at.path, "items"), times(s.max_items), s.list_type != "map"));
        }
        if !s.rules.is_empty() {
            self.rules(s, at);
        }
    }

    fn rules(&mut self, s: &Schema, at: &Place) {
        let field = child(&at.path, "x-kubernetes-validations");
        let before = self.errors.len();
        for (i, r) in s.rules.iter().enumerate() {
            form(r, s, &index(&field, i), self.errors);
        }
        if self.errors.len() > before {
            return;
        }
        let Some(decl) = declare::declare(s, "selfType", at.root) else {
            let why = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations";
            self.errors.push(FieldError::internal(field, why));
            return;
        };
        let count = at.count.unwrap_or_else(|| decl.max_cardinality());
        for (i, r) in s.rules.iter().enumerate() {
            let here = index(&field, i);
            let path = child(&here, "rule");
            let mut uses_old = false;
            match rules::compile_rule(&decl, r) {
                Ok(judged) => {
                    uses_old = judged.checked.ast.root.mentions("oldSelf");
                    self.cost(path.clone(), "estimated rule cost", judged.max_cost.saturating_mul(count));
                }
                Err(why) => self.errors.push(FieldError::invalid_raw(path.clone(), &shown(r), why)),
            }
            if !r.message_expression.is_empty() {
                let path = child(&here, "messageExpression");
                match rules::compile_message(&decl, r) {
                    Ok(judged) => self.cost(path, "estimated messageExpression cost", judged.max_cost),
                    Err(why) => self.errors.push(FieldError::invalid_raw(path, &shown(r), why)),
                }
            }
            if uses_old {
                if let Some(part) = &at.uncorrelatable {
                    let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {part}");
                    self.errors.push(FieldError::invalid(path, &r.rule, why));
                }
            } else if let Some(set) = r.optional_old_self {
                self.errors.push(FieldError::invalid(
                    child(&here, "optionalOldSelf"),
                    set,
                    "may not be set if oldSelf is not used in rule",
                ));
            }
        }
    }

    fn cost(&mut self, path: String, what: &str, cost: u64) {
        if cost > RULE_LIMIT {
            self.errors.push(FieldError::forbidden(path.clone(), too_costly(what, cost, RULE_LIMIT)));
        }
        self.total.add(path, cost);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn errors(schema: Value) -> Vec<String> {
        let mut e = ErrorList::new();
        check(&Schema::of(&schema), "V", &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    fn with(rule: Value) -> Value {
        json!({"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}, "b": {"type": "string", "maxLength": 10},
            "l": {"type": "array", "items": {"type": "string"}},
            "p": {"x-kubernetes-preserve-unknown-fields": true}, "a-b": {"type": "integer"}}, "x-kubernetes-validations": [rule]})
    }

    #[test]
    fn good_rules_pass() {
        for rule in [
            json!({"rule": "self.a > 0"}),
            json!({"rule": "self.a__dash__b > 0", "message": "m", "reason": "FieldValueForbidden", "fieldPath": ".a"}),
            json!({"rule": "self.a >= oldSelf.a"}),
            json!({"rule": "oldSelf.hasValue() || self.a > 0", "optionalOldSelf": true}),
            json!({"rule": "self.metadata.name.startsWith('a') && self.kind == 'K'"}),
            json!({"rule": "self.a > 0", "messageExpression": "'b is ' + self.b"}),
        ] {
            assert_eq!(errors(with(rule.clone())), [""; 0], "{rule}");
        }
    }

    #[test]
    fn bad_rules_are_told_in_upstreams_words() {
        for (rule, want) in [
            (json!({"rule": " "}), "V.x-kubernetes-validations[0].rule: Required value: rule is not specified"),
            (json!({"rule": "self.a"}), "cel expression must evaluate to a bool"),
            (json!({"rule": "self.p == 1"}), "undefined field 'p'"),
            (json!({"rule": "true", "messageExpression": "self.a"}), "messageExpression must evaluate to a string"),
            (json!({"rule": "true", "optionalOldSelf": true}), "true: may not be set if oldSelf is not used in rule"),
            (json!({"rule": "self.metadata.labels.size() == 0"}), "undefined field 'labels'"),
            (json!({"rule": "self.a > 0", "message": "a\nb"}), "must not contain line breaks"),
            (json!({"rule": "self.a > 0", "fieldPath": ".zz"}), "Invalid value: \".zz\": must be a valid path"),
        ] {
            let got = errors(with(rule.clone()));
            assert!(got.len() == 1 && got[0].contains(want), "{rule}: {got:?}");
        }
    }

    #[test]
    fn costs_are_limited_for_each_rule_and_for_all() {
        let got = errors(with(json!({"rule": "self.a > 0", "messageExpression": "'a is ' + string(self.a)"})));
        assert_eq!(got.len(), 3, "{got:?}");
        assert!(
            got[0].contains("messageExpression: Forbidden: estimated messageExpression cost exceeds budget by factor of more than 100x")
        );
        assert!(got[1].starts_with("V.x-kubernetes-validations[0].messageExpression: Forbidden: contributed to"));
        assert!(got[2].starts_with("V: Forbidden: x-kubernetes-validations estimated rule cost total"));
        // Rules below a list count as often as it can have elements.
        let below = |max: Value| {
            json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": max, "items": {"type": "string", "maxLength": 100,
                "x-kubernetes-validations": [{"rule": "self.matches('^[a-z]+$') && self.contains('a')"}]}}}})
        };
        assert_eq!(errors(below(json!(100))), [""; 0]);
        assert_eq!(errors(below(Value::Null)).len(), 3);
    }

    #[test]
    fn transitions_need_values_that_can_be_found_again() {
        let list = |extra: Value| {
            let mut l = json!({"type": "array", "maxItems": 5, "items": {"type": "object", "required": ["k"], "properties": {
                "k": {"type": "string"}, "x": {"type": "integer"}}, "x-kubernetes-validations": [{"rule": "self.x >= oldSelf.x"}]}});
            l.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            errors(json!({"type": "object", "properties": {"l": l}}))
        };
        let got = list(json!({}));
        let want = "oldSelf cannot be used on the uncorrelatable portion of the schema within V.properties[l]";
        assert!(got.len() == 1 && got[0].ends_with(want), "{got:?}");
        assert_eq!(list(json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]})), [""; 0]);
    }
}
