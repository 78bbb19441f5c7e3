//! Whether the expressions of a policy fit the kinds that it is about. Pure: the types are given.

use std::collections::{BTreeMap, BTreeSet};

use cel::{
    Type,
    admission::{declare_variables, environment},
};

use super::{Policy, Spec};

/// Kinds that one rule of a policy is checked against, at most.
const MAX_KINDS: usize = 10;

/// A resource that a rule names outright.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    pub group: String,
    pub version: String,
    pub resource: String,
}

/// The resources that each rule names: wildcards say nothing of a type, and what is sent to a subresource is of another one.
pub fn wanted(policy: &Policy) -> Vec<Vec<Wanted>> {
    let one = |rule: &super::Rule| {
        let sorted = |list: &Vec<String>| list.iter().cloned().collect::<BTreeSet<String>>();
        let (groups, versions, resources) = (sorted(&rule.api_groups), sorted(&rule.api_versions), sorted(&rule.resources));
        if groups.iter().chain(&versions).any(|s| s.contains('*')) {
            return Vec::new();
        }
        let mut out = Vec::new();
        for (group, version) in groups.iter().flat_map(|g| versions.iter().map(move |v| (g, v))) {
            for resource in resources.iter().filter(|r| !r.contains(['*', '/'])) {
                out.push(Wanted { group: group.clone(), version: version.clone(), resource: resource.clone() });
            }
        }
        out
    };
    policy.spec.match_constraints.resource_rules.iter().map(one).collect()
}

/// A kind, as warnings name it, sorted by group, version and kind, with its type.
pub type Kinds = BTreeMap<(String, String, String), Type>;

/// Takes the kinds of each rule's resources, as far as they are known.
pub fn kinds(wanted: &[Vec<Wanted>], known: impl Fn(&Wanted) -> Option<(String, Type)>) -> Kinds {
    let mut out = Kinds::new();
    for rule in wanted {
        let found = rule.iter().filter_map(|w| known(w).map(|(kind, ty)| (w, kind, ty)));
        out.extend(found.take(MAX_KINDS).map(|(w, kind, ty)| ((w.group.clone(), w.version.clone(), kind), ty)));
    }
    out
}

/// The expressions that do not fit, by their place in the policy, each with what is wrong for which kind.
pub fn warnings(policy: &Policy, kinds: &Kinds, params: Option<&Type>) -> Vec<(String, String)> {
    let check = |source: &str| {
        let wrong = kinds.iter().filter_map(|((group, version, kind), ty)| {
            Some(format!("{group}/{version}, Kind={kind}: {}\n", mistakes(source, ty, params, &policy.spec)?))
        });
        let wrong: Vec<String> = wrong.collect();
        (!wrong.is_empty()).then(|| wrong.join("\n"))
    };
    let mut out = Vec::new();
    for (i, v) in policy.spec.validations.iter().enumerate() {
        for (field, source) in [("expression", &v.expression), ("messageExpression", &v.message_expression)] {
            if !source.is_empty()
                && let Some(warning) = check(source)
            {
                out.push((format!("spec.validations[{i}].{field}"), warning));
            }
        }
    }
    out
}

/// What is wrong with an expression about objects of one type.
fn mistakes(source: &str, object: &Type, params: Option<&Type>, spec: &Spec) -> Option<String> {
    let mut env = environment(params.is_some(), true);
    for name in ["object", "oldObject"] {
        env.variables.insert(name.into(), object.clone());
    }
    if let Some(t) = params {
        env.variables.insert("params".into(), t.clone());
    }
    let mut fields = BTreeMap::new();
    declare_variables(&fields, &mut env);
    for v in &spec.variables {
        // A variable that does not fit may be anything, so that only the expression that uses it wrongly is told of.
        let ty = cel::compile(&v.expression, &env).map_or(Type::Dyn, |checked| checked.result().clone());
        fields.insert(v.name.clone(), ty);
        declare_variables(&fields, &mut env);
    }
    cel::compile(source, &env).err().map(|issues| issues.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::types::Types, *};

    /// Two kinds as the API server's documents describe them, cut short.
    fn document() -> Value {
        let kind = |kind: &str, spec: Value| {
            json!({"type": "object", "x-kubernetes-group-version-kind": [{"group": "apps", "version": "v1", "kind": kind}], "properties": {
                "metadata": {"type": "object", "properties": {"name": {"type": "string"}, "namespace": {"type": "string"},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "creationTimestamp": {"type": "string", "format": "date-time"}}},
                "spec": {"type": "object", "properties": spec}}})
        };
        json!({"components": {"schemas": {
            "d": kind("Deployment", json!({"replicas": {"type": "integer"}, "surge": {"format": "int-or-string"},
                "containers": {"type": "array", "items": {"type": "object", "properties": {"image": {"type": "string"}}}}})),
            "s": kind("StatefulSet", json!({"replicas": {"type": "integer"}}))}}})
    }

    fn checked(rules: Value, rest: Value) -> Vec<(String, String)> {
        let mut spec = rest;
        spec["matchConstraints"] = json!({ "resourceRules": rules });
        let policy: Policy = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let document = document();
        let known = |w: &Wanted| {
            let kind = match w.resource.as_str() {
                "deployments" => "Deployment",
                "statefulsets" => "StatefulSet",
                _ => return None,
            };
            Some((kind.to_owned(), Types::new(&document).of_kind(&w.group, &w.version, kind)?))
        };
        let params = policy.spec.param_kind.as_ref().map(|_| Type::map(Type::String, Type::String));
        warnings(&policy, &kinds(&wanted(&policy), known), params.as_ref())
    }

    fn rule(group: &str, resources: &[&str]) -> Value {
        json!([{"apiGroups": [group], "apiVersions": ["v1"], "operations": ["*"], "resources": resources}])
    }

    fn one(resource: &str, expression: &str) -> Option<String> {
        checked(rule("apps", &[resource]), json!({"validations": [{ "expression": expression }]})).into_iter().next().map(|(_, w)| w)
    }

    #[test]
    fn expressions_are_told_apart_by_the_types_of_what_they_are_about() {
        for fits in [
            "object.spec.replicas > 1",
            "object.metadata.namespace == 'x' && oldObject == null",
            "object.spec.containers.all(c, has(c.image))",
            "object.metadata.labels['a'] == 'b' && object.metadata.creationTimestamp < timestamp('2030-01-01T00:00:00Z')",
            "object.spec.surge == 1 || object.spec.surge == '25%'",
            "request.operation == 'CREATE' && namespaceObject.metadata.name != 'x' && authorizer.requestResource.check('get').allowed()",
        ] {
            assert_eq!(one("deployments", fits), None, "{fits}");
        }
        let wrong = one("deployments", "object.spec.replicas > '1'").unwrap();
        let want = "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'";
        assert!(wrong.starts_with(want) && wrong.ends_with("^\n"), "{wrong:?}");
        assert!(one("deployments", "object.spec.nope == 1").unwrap().contains("undefined field 'nope'"));
    }

    #[test]
    fn every_kind_and_every_expression_is_told_of() {
        let bad = "object.spec.replicas > '1'";
        let found = checked(
            rule("apps", &["statefulsets", "deployments"]),
            json!({"variables": [{"name": "n", "expression": "object.spec.replicas"}], "validations": [
                {"expression": bad}, {"expression": "variables.n > 1"}, {"expression": "variables.n == 'x'", "messageExpression": "object.nope"}]}),
        );
        let fields: Vec<&str> = found.iter().map(|(f, _)| f.as_str()).collect();
        assert_eq!(fields, ["spec.validations[0].expression", "spec.validations[2].expression", "spec.validations[2].messageExpression"]);
        let (first, second) = found[0].1.split_once("\n\n").unwrap();
        assert!(first.starts_with("apps/v1, Kind=Deployment") && second.starts_with("apps/v1, Kind=StatefulSet"), "{}", found[0].1);
    }

    #[test]
    fn wildcards_subresources_and_unknown_kinds_are_passed_over() {
        let bad = json!({"validations": [{"expression": "object.spec.replicas > '1'"}]});
        for (group, resource) in
            [("*", "deployments"), ("apps", "*"), ("apps", "deployments/status"), ("nope.io", "deployments"), ("apps", "nope")]
        {
            assert_eq!(checked(rule(group, &[resource]), bad.clone()), [], "{group} {resource}");
        }
    }

    #[test]
    fn parameters_have_their_type() {
        let found = |expression: &str| {
            let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "X"}, "validations": [{ "expression": expression }]});
            checked(rule("apps", &["deployments"]), spec).len()
        };
        assert_eq!((found("params['x'] == 'y'"), found("params == 1")), (0, 1));
    }
}
