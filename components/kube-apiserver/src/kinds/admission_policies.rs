//! Admission policies and their bindings: their form, and whether their expressions compile.

use std::collections::HashSet;

use cel::{Env, Type};
use k8s_schema::{Doc, Ref};

use super::{
    Action, GENERATION, SPEC_AND_STATUS, Strategy,
    webhook_configs::{conditions, rule},
    workload_status,
};
use crate::{
    admission::policy::{declare_variables, environment, mutation_environment},
    validation::{ErrorList, FieldError, child, index, names, values},
};

pub const VALIDATING: Strategy = Strategy {
    unconditional_update: false,
    validate_create: validating,
    validate_update: |a, d, _, e| {
        if a == Action::Main { validating(d, e) } else { workload_status::conditions(d, e) }
    },
    ..SPEC_AND_STATUS
};
pub const VALIDATING_BINDING: Strategy = Strategy {
    unconditional_update: false,
    validate_create: |d, e| binding(d, true, e),
    validate_update: |_, d, _, e| binding(d, true, e),
    ..GENERATION
};
pub const MUTATING: Strategy = Strategy { validate_create: mutating, validate_update: |_, d, _, e| mutating(d, e), ..GENERATION };
pub const MUTATING_BINDING: Strategy =
    Strategy { validate_create: |d, e| binding(d, false, e), validate_update: |_, d, _, e| binding(d, false, e), ..GENERATION };

const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];

fn one_of(r: Ref<'_>, path: &str, known: &[&str], e: &mut ErrorList) {
    if let Some(v) = r.as_str().filter(|v| !known.contains(v)) {
        e.push(FieldError::not_supported(path, v, known));
    }
}

/// Compiles an expression that is to have one of some types; the first names them in errors.
pub(super) fn expression(source: &str, path: &str, env: &Env, want: &[Type], e: &mut ErrorList) {
    match cel::compile(source, env) {
        Err(issues) => e.push(FieldError::invalid(path, source, format!("compilation failed: {issues}"))),
        Ok(checked) => {
            let got = checked.result();
            if !want.is_empty() && !got.is_dyn() && !want.contains(got) {
                e.push(FieldError::invalid(path, source, format!("must evaluate to {} but got {got}", want[0])));
            }
        }
    }
}

fn validating(d: &Doc, e: &mut ErrorList) {
    let spec = d.at("spec");
    let mut env = common(spec, e);
    let (validations, annotations) = (spec.get("validations"), spec.get("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        for field in ["validations", "auditAnnotations"] {
            e.push(FieldError::required(child("spec", field), "validations or auditAnnotations must be non-empty"));
        }
        return;
    }
    declared(spec.get("variables"), &mut env, e);
    for (i, v) in validations.iter().enumerate() {
        validation(v, &index("spec.validations", i), &env, e);
    }
    let mut seen = HashSet::new();
    for (i, a) in annotations.iter().enumerate() {
        let path = index("spec.auditAnnotations", i);
        let key = a.get("key").str();
        if key.is_empty() {
            e.push(FieldError::required(child(&path, "key"), ""));
        } else {
            e.all_invalid(&child(&path, "key"), key, names::qualified_name(key));
            if !seen.insert(key) {
                e.push(FieldError::duplicate(child(&path, "key"), key));
            }
        }
        let (value, at) = (a.get("valueExpression").str(), child(&path, "valueExpression"));
        if value.trim().is_empty() {
            e.push(FieldError::required(at, "valueExpression is not specified"));
        } else {
            expression(value, &at, &env, &[Type::String, Type::Null], e);
        }
    }
}

/// What both kinds of policies have; the environment of the expressions comes back.
fn common(spec: Ref<'_>, e: &mut ErrorList) -> Env {
    one_of(spec.get("failurePolicy"), "spec.failurePolicy", &["Fail", "Ignore"], e);
    let kind = spec.get("paramKind");
    if kind.exists() {
        let (at, version) = ("spec.paramKind.apiVersion", kind.get("apiVersion").str());
        match version.split('/').collect::<Vec<_>>()[..] {
            [""] => e.push(FieldError::required(at, "")),
            [_] | [_, _] => {}
            _ => e.push(FieldError::invalid(at, version, format!("unexpected GroupVersion string: {version}"))),
        }
        if kind.get("kind").str().is_empty() {
            e.push(FieldError::required("spec.paramKind.kind", ""));
        }
    }
    let constraints = spec.get("matchConstraints");
    if constraints.exists() {
        resources(constraints, "spec.matchConstraints", e);
        if constraints.get("resourceRules").is_empty() {
            e.push(FieldError::required("spec.matchConstraints.resourceRules", ""));
        }
    } else {
        e.push(FieldError::required("spec.matchConstraints", ""));
    }
    let env = environment(kind.exists(), true);
    conditions(spec.get("matchConditions"), "spec.matchConditions", &env, e);
    env
}

fn declared(list: Ref<'_>, env: &mut Env, e: &mut ErrorList) {
    for (i, v) in list.iter().enumerate() {
        let path = index("spec.variables", i);
        let (name, source) = (v.get("name").str(), v.get("expression").str());
        let plain =
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() {
            e.push(FieldError::required(child(&path, "name"), "name is not specified"));
        } else if !plain {
            e.push(FieldError::invalid(child(&path, "name"), name, "name is not a valid CEL identifier"));
        }
        if source.trim().is_empty() {
            e.push(FieldError::required(child(&path, "expression"), "expression is not specified"));
        }
    }
    for (i, v) in declare_variables(list, env).iter().enumerate().filter(|(_, v)| !v.expression.source.trim().is_empty()) {
        if let Err(why) = &v.expression.program {
            e.push(FieldError::invalid(child(&index("spec.variables", i), "expression"), &v.expression.source, why.as_str()));
        }
    }
}

fn validation(v: Ref<'_>, path: &str, env: &Env, e: &mut ErrorList) {
    let broken = |s: &str| s.contains(['\n', '\r']);
    let (source, message, made) = (v.get("expression").str(), v.get("message").str(), v.get("messageExpression").str());
    if source.trim().is_empty() {
        e.push(FieldError::required(child(path, "expression"), "expression is not specified"));
    } else {
        expression(source, &child(path, "expression"), env, &[Type::Bool], e);
    }
    let at = child(path, "messageExpression");
    if !made.is_empty() && made.trim().is_empty() {
        e.push(FieldError::invalid(at, made, "must be non-empty if specified"));
    } else if !made.is_empty() {
        expression(made, &at, env, &[Type::String], e);
    }
    let at = child(path, "message");
    if !message.is_empty() && message.trim().is_empty() {
        e.push(FieldError::invalid(at, message, "message must be non-empty if specified"));
    } else if broken(message.trim()) {
        e.push(FieldError::invalid(at, message, "message must not contain line breaks"));
    } else if broken(source.trim()) && message.trim().is_empty() {
        e.push(FieldError::required(at, "message must be specified if expression contains line breaks"));
    }
    one_of(v.get("reason"), &child(path, "reason"), REASONS, e);
}

/// Which requests a policy or a binding is about.
fn resources(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    one_of(r.get("matchPolicy"), &child(path, "matchPolicy"), &["Equivalent", "Exact"], e);
    for selector in ["namespaceSelector", "objectSelector"] {
        values::label_selector(r.get(selector), &child(path, selector), e);
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (i, x) in r.get(field).iter().enumerate() {
            let at = index(&child(path, field), i);
            let mut seen = HashSet::new();
            for (n, name) in x.get("resourceNames").strings().enumerate() {
                if !seen.insert(name) {
                    e.push(FieldError::duplicate(index(&child(&at, "resourceNames"), n), name));
                }
            }
            rule(x, &at, true, e);
        }
    }
}

fn mutating(d: &Doc, e: &mut ErrorList) {
    let spec = d.at("spec");
    let env = common(spec, e);
    for r in spec.at("matchConstraints.resourceRules").iter() {
        const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];
        // Other unknown ones were told of with their place.
        for o in r.get("operations").strings().filter(|o| *o == "DELETE") {
            e.push(FieldError::not_supported("spec.matchConstraints.resourceRules.operations", o, OPERATIONS));
        }
    }
    let mut env = mutation_environment(env);
    declared(spec.get("variables"), &mut env, e);
    let mutations = spec.get("mutations");
    if mutations.is_empty() {
        e.push(FieldError::required("spec.mutations", "mutations must contain at least one item"));
    }
    for (i, m) in mutations.iter().enumerate() {
        mutation(m, &index("spec.mutations", i), &env, e);
    }
    match spec.get("reinvocationPolicy").str() {
        "" => e.push(FieldError::required("spec.reinvocationPolicy", "")),
        _ => one_of(spec.get("reinvocationPolicy"), "spec.reinvocationPolicy", &["IfNeeded", "Never"], e),
    }
}

fn mutation(m: Ref<'_>, path: &str, env: &Env, e: &mut ErrorList) {
    let kind = m.get("patchType").str();
    let (field, other) = match kind {
        "" => return e.push(FieldError::required(child(path, "patchType"), "")),
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
        "JSONPatch" => ("jsonPatch", "applyConfiguration"),
        _ => return one_of(m.get("patchType"), &child(path, "patchType"), &["ApplyConfiguration", "JSONPatch"], e),
    };
    let structure = |name: &str| env.structure(name).map(Type::Object).unwrap_or(Type::Dyn);
    if m.get(field).exists() {
        let (source, at) = (m.get(field).get("expression").str(), format!("{path}.{field}.expression"));
        let want = if field == "jsonPatch" { Type::list(structure("JSONPatch")) } else { structure("Object") };
        if source.trim().is_empty() {
            e.push(FieldError::required(at, ""));
        } else {
            expression(source, &at, env, &[want], e);
        }
    } else {
        e.push(FieldError::required(child(path, field), format!("must be specified when patchType is {kind}")));
    }
    if m.get(other).exists() {
        let shown = format!("{{{other}}}");
        e.push(FieldError::invalid(child(path, other), shown, format!("must not be specified when patchType is {kind}")));
    }
}

fn binding(d: &Doc, validating: bool, e: &mut ErrorList) {
    let spec = d.at("spec");
    let policy = spec.get("policyName").str();
    if policy.is_empty() {
        e.push(FieldError::required("spec.policyName", ""));
    } else {
        e.all_invalid("spec.policyName", policy, names::dns1123_subdomain(policy));
    }
    let param = spec.get("paramRef");
    if param.exists() {
        let (name, selector) = (param.get("name").str(), param.get("selector"));
        if name.is_empty() && !selector.exists() {
            e.push(FieldError::required("spec.paramRef", "one of name or selector must be specified"));
        }
        if !name.is_empty() && selector.exists() {
            for field in ["name", "selector"] {
                e.push(FieldError::forbidden(child("spec.paramRef", field), "name and selector are mutually exclusive"));
            }
        }
        values::label_selector(selector, "spec.paramRef.selector", e);
        let at = "spec.paramRef.parameterNotFoundAction";
        match param.get("parameterNotFoundAction").str() {
            "" => e.push(FieldError::required(at, "")),
            _ => one_of(param.get("parameterNotFoundAction"), at, &["Allow", "Deny"], e),
        }
    }
    if spec.get("matchResources").exists() {
        resources(spec.get("matchResources"), "spec.matchResources", e);
    }
    if validating {
        actions(spec.get("validationActions"), "spec.validationActions", e);
    }
}

fn actions(list: Ref<'_>, path: &str, e: &mut ErrorList) {
    if list.is_empty() {
        e.push(FieldError::required(path, ""));
    }
    let mut seen = HashSet::new();
    for (i, a) in list.strings().enumerate() {
        if !["Audit", "Deny", "Warn"].contains(&a) {
            e.push(FieldError::not_supported(index(path, i), a, &["Audit", "Deny", "Warn"]));
        }
        if !seen.insert(a) {
            e.push(FieldError::duplicate(index(path, i), a));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        e.push(FieldError::invalid(path, list.to_value(), why));
    }
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;
    use serde_json::{Value, json};

    use super::*;

    fn errors(kind: &str, check: fn(&Doc, &mut ErrorList), spec: Value) -> Vec<String> {
        let schema = Schema::builtin();
        let ty = schema.kind("admissionregistration.k8s.io", "v1", kind).unwrap();
        let mut e = ErrorList::new();
        check(&Doc::from_value(&schema, ty, &json!({"metadata": {"name": "x"}, "spec": spec})).unwrap().doc, &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    fn constraints() -> Value {
        json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]})
    }

    #[test]
    fn expressions_of_policies_have_to_compile() {
        let policy = |v: Value| {
            let spec = json!({"matchConstraints": constraints(), "variables": [{"name": "n", "expression": "object.metadata.name"}],
                "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [v]});
            errors("ValidatingAdmissionPolicy", validating, spec)
        };
        for expression in [
            "object.metadata.name != params.data.x",
            "variables.n.startsWith('a') || request.operation == 'CREATE' && request.userInfo.groups.exists(g, g == 'x')",
            "authorizer.group('').resource('pods').namespace('x').check('get').allowed()",
            "authorizer.requestResource.check('get').allowed()",
            "namespaceObject.metadata.labels.env == 'prod' || !has(oldObject.spec)",
        ] {
            assert_eq!(policy(json!({"expression": expression})), [""; 0], "{expression}");
        }
        for (v, want) in [
            (json!({"expression": " "}), "spec.validations[0].expression: Required value: expression is not specified"),
            (json!({"expression": "1"}), "spec.validations[0].expression: Invalid value: \"1\": must evaluate to bool but got int"),
            (json!({"expression": "variables.zz == 1"}), "undefined field 'zz'"),
            (json!({"expression": "request.zz == 1"}), "undefined field 'zz'"),
            (json!({"expression": "true", "messageExpression": "1"}), "must evaluate to string but got int"),
            (json!({"expression": "true", "reason": "Nope"}), "Unsupported value: \"Nope\""),
            (json!({"expression": "true &&\ntrue"}), "message must be specified if expression contains line breaks"),
        ] {
            let got = policy(v.clone());
            assert!(got.len() == 1 && got[0].contains(want), "{v}: {got:?}");
        }
    }

    #[test]
    fn mutations_make_objects_or_patches() {
        let policy = |m: Value| {
            let spec = json!({"matchConstraints": constraints(), "mutations": [m], "reinvocationPolicy": "Never"});
            errors("MutatingAdmissionPolicy", mutating, spec)
        };
        let apply = |x: &str| policy(json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": x}}));
        let patch = |x: &str| policy(json!({"patchType": "JSONPatch", "jsonPatch": {"expression": x}}));
        assert_eq!(apply("Object{metadata: Object.metadata{labels: {'added': 'yes'}}}"), [""; 0]);
        assert_eq!(apply("has(object.data) ? Object{} : Object{data: {'a': request.operation}}"), [""; 0]);
        assert_eq!(patch("[JSONPatch{op: 'add', path: '/data/' + jsonpatch.escapeKey('a/b'), value: 'y'}]"), [""; 0]);
        assert!(apply("'x'")[0].ends_with("must evaluate to Object but got string"));
        assert!(apply("Object{")[0].contains("mismatched input '<EOF>' expecting {'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}"));
        assert!(apply("Object{metadata: Object.metadata{labels: {'v': params.x}}}")[0].contains("undeclared reference to 'params'"));
        assert!(patch("[]")[0].ends_with("must evaluate to list(JSONPatch) but got list(dyn)"));
        assert!(patch("JSONPatch{op: 'add'}")[0].ends_with("must evaluate to list(JSONPatch) but got JSONPatch"));
        assert!(patch("[JSONPatch{zz: 'add'}]")[0].contains("expected type of field 'zz' is '' but provided type is 'string'"));
        assert!(policy(json!({"patchType": "JSONPatch"}))[0].ends_with("Required value: must be specified when patchType is JSONPatch"));
    }

    #[test]
    fn bindings_say_what_happens() {
        let vap = |spec: Value| errors("ValidatingAdmissionPolicyBinding", |d, e| binding(d, true, e), spec);
        assert_eq!(vap(json!({"policyName": "p", "validationActions": ["Deny", "Audit"]})), [""; 0]);
        assert_eq!(vap(json!({"policyName": "p"})), ["spec.validationActions: Required value"]);
        assert!(vap(json!({"policyName": "p", "validationActions": ["Deny", "Warn"]}))[0].contains("must not contain both Deny and Warn"));
        assert_eq!(
            vap(json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {}})),
            [
                "spec.paramRef: Required value: one of name or selector must be specified",
                "spec.paramRef.parameterNotFoundAction: Required value"
            ]
        );
    }
}
