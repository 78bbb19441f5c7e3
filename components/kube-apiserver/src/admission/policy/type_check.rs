//! Tells in the status of a ValidatingAdmissionPolicy (`status.typeChecking`) where its expressions do not fit the kinds it is about.
//!
//! Upstream's controller manager does this; here the server does, which has the types at hand. A policy is checked once in each generation,
//! and nothing that is found here changes what the policy does. Several servers come to the same result, and write it on condition that nobody
//! else did.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use cel::Type;
use k8s_schema::{Doc, Ref, Schema, split_api_version};
use serde_json::{Value, json};

use super::{compiled::Compiled, declare_variables, environment, types::Types};
use crate::{
    handlers::{load, write},
    http::ApiError,
    kinds::meta,
    registry::Resource,
    server::Server,
    storage::StoreError,
};

/// The name under which the fields of the status are managed, as upstream's controller.
const MANAGER: &str = "validatingadmissionpolicy-status-controller";
const POLICIES: &str = super::Policy::POLICIES;
/// Kinds that one rule of a policy is checked against, at most.
const MAX_KINDS: usize = 10;
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the server stops.
pub async fn run(server: Arc<Server>) {
    let Some(cache) = server.objects.reflector.cache(POLICIES) else { return };
    let mut heads = cache.subscribe();
    loop {
        heads.borrow_and_update();
        let failed = match step(&server).await {
            Ok(()) => false,
            Err(e) => {
                tracing::warn!(error = %e, "the types of admission policies cannot be checked; trying again");
                true
            }
        };
        tokio::select! {
            r = heads.changed() => if r.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
            () = server.stop.cancelled() => return,
        }
    }
}

/// Checks every policy that was not checked in its generation.
async fn step(server: &Arc<Server>) -> Result<(), ApiError> {
    let stored = server.objects.list(POLICIES, "");
    if stored.is_empty() {
        return Ok(());
    }
    let Some(res) = server.registry.stored("admissionregistration.k8s.io", POLICIES).cloned() else { return Ok(()) };
    for s in stored {
        let old = load(server, &res, &s)?;
        let generation = old.at("metadata.generation").int();
        if old.at("status.observedGeneration").int() == generation {
            continue;
        }
        let mut new = old.clone();
        let found = warnings(&old, &server.objects.schema, |group, version| server.registry.of_group_version(group, version));
        let list: Vec<Value> = found.into_iter().map(|(field, warning)| json!({"fieldRef": field, "warning": warning})).collect();
        let checked = if list.is_empty() { json!({}) } else { json!({ "expressionWarnings": list }) };
        write::set(&mut new, "status.observedGeneration", generation)?;
        write::set(&mut new, "status.typeChecking", checked)?;
        meta::track(&res, &mut new, &old, MANAGER, "status", &["metadata", "spec"]);
        let value = write::to_storage(&server.objects.schema, &res, &new)?;
        let key = format!("{}{POLICIES}/{}", server.root, s.key);
        match server.etcd.update(&key, s.rev, value, 0).await {
            Ok(_) | Err(StoreError::Changed { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The expressions that do not fit, by their place in the policy, each with what is wrong for which kind.
pub fn warnings(policy: &Doc, schema: &Schema, served: impl Fn(&str, &str) -> Vec<Arc<Resource>>) -> Vec<(String, String)> {
    let spec = policy.at("spec");
    let mut types = Types::new(schema);
    let kinds = kinds(spec.at("matchConstraints.resourceRules"), &served);
    let kinds: Vec<(String, Type)> = kinds
        .into_iter()
        .filter_map(|((group, version, kind), res)| Some((format!("{group}/{version}, Kind={kind}"), types.of_resource(&res)?)))
        .collect();
    let param = spec.get("paramKind");
    let params = param.exists().then(|| {
        let (group, version) = split_api_version(param.get("apiVersion").str()).unwrap_or_default();
        let resource = served(group, version).into_iter().find(|r| r.kind == param.get("kind").str());
        // Of a kind that is not served nothing is known, which is no fault of the expressions.
        resource.and_then(|r| types.of_resource(&r)).unwrap_or(Type::Dyn)
    });
    let check = |source: &str| {
        let wrong = kinds.iter().filter_map(|(kind, ty)| Some(format!("{kind}: {}\n", mistakes(source, ty, params.as_ref(), spec)?)));
        let wrong: Vec<String> = wrong.collect();
        (!wrong.is_empty()).then(|| wrong.join("\n"))
    };
    let mut out = Vec::new();
    for (i, v) in spec.get("validations").iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            if let Some(source) = v.get(field).as_str().filter(|s| !s.is_empty())
                && let Some(warning) = check(source)
            {
                out.push((format!("spec.validations[{i}].{field}"), warning));
            }
        }
    }
    out
}

/// What is wrong with an expression about objects of one type.
fn mistakes(source: &str, object: &Type, params: Option<&Type>, spec: Ref<'_>) -> Option<String> {
    let mut env = environment(params.is_some(), true);
    for name in ["object", "oldObject"] {
        env.variables.insert(name.into(), object.clone());
    }
    if let Some(t) = params {
        env.variables.insert("params".into(), t.clone());
    }
    // A variable that does not fit may be anything, so that only the expression that uses it wrongly is told of.
    declare_variables(spec.get("variables"), &mut env);
    cel::compile(source, &env).err().map(|issues| issues.to_string())
}

type Named = (String, String, String);

/// The kinds that rules name outright, sorted: wildcards say nothing of a type, and what is sent to a subresource is of another one.
fn kinds(rules: Ref<'_>, served: &impl Fn(&str, &str) -> Vec<Arc<Resource>>) -> BTreeMap<Named, Arc<Resource>> {
    let mut out = BTreeMap::new();
    for rule in rules.iter() {
        let sorted = |field: &str| rule.get(field).strings().collect::<BTreeSet<_>>();
        let (groups, versions) = (sorted("apiGroups"), sorted("apiVersions"));
        if groups.iter().chain(&versions).any(|s| s.contains('*')) {
            continue;
        }
        let mut resources = sorted("resources");
        resources.retain(|r| !r.contains(['*', '/']));
        let mut left = MAX_KINDS;
        for (group, version) in groups.iter().flat_map(|g| versions.iter().map(move |v| (*g, *v))) {
            if left == 0 {
                break;
            }
            let all = served(group, version);
            for res in resources.iter().filter_map(|name| all.iter().find(|r| r.plural == *name)).take(left) {
                out.insert((group.to_owned(), version.to_owned(), res.kind.clone()), Arc::clone(res));
                left -= 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;

    use super::*;
    use crate::{custom::Definition, registry::Registry};

    fn resources(schema: &Schema) -> Vec<Arc<Resource>> {
        let mut all = Registry::builtin(schema).all().to_vec();
        let ty = schema.kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
        let tab = json!({"metadata": {"name": "tabs.g.io"}, "spec": {"group": "g.io", "scope": "Namespaced",
            "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {"replicas": {"type": "integer"}}}}}}}]},
            "status": {"acceptedNames": {"plural": "tabs", "kind": "Tab"}, "conditions": [{"type": "Established", "status": "True"}]}});
        let definition = Definition::of(&Doc::from_value(schema, ty, &tab).unwrap().doc);
        all.extend(Arc::new(definition).resources());
        all
    }

    fn checked(rules: Value, rest: Value) -> Vec<(String, String)> {
        let schema = Schema::builtin();
        let all = resources(&schema);
        let ty = schema.kind("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy").unwrap();
        let mut spec = rest;
        spec["matchConstraints"] = json!({ "resourceRules": rules });
        let policy = Doc::from_value(&schema, ty, &json!({"metadata": {"name": "p"}, "spec": spec})).unwrap().doc;
        warnings(&policy, &schema, |g, v| all.iter().filter(|r| r.group == g && r.version == v).cloned().collect())
    }

    fn rule(group: &str, resources: &[&str]) -> Value {
        json!([{"apiGroups": [group], "apiVersions": ["v1"], "operations": ["*"], "resources": resources}])
    }

    fn one(group: &str, resources: &[&str], expression: &str) -> Option<String> {
        let found = checked(rule(group, resources), json!({"validations": [{ "expression": expression }]}));
        found.into_iter().next().map(|(_, warning)| warning)
    }

    #[test]
    fn expressions_are_told_apart_by_the_types_of_what_they_are_about() {
        for fits in [
            "object.spec.replicas > 1",
            "object.metadata.namespace == 'x' && oldObject == null",
            "object.spec.template.spec.containers.all(c, has(c.image) && c.ports.exists(p, p.containerPort > 1))",
            "object.metadata.labels['a'] == 'b' && object.metadata.creationTimestamp < timestamp('2030-01-01T00:00:00Z')",
            "object.spec.strategy.rollingUpdate.maxSurge == 1 || object.spec.strategy.rollingUpdate.maxSurge == '25%'",
            "request.operation == 'CREATE' && namespaceObject.metadata.name != 'x' && authorizer.requestResource.check('get').allowed()",
        ] {
            assert_eq!(one("apps", &["deployments"], fits), None, "{fits}");
        }
        let wrong = one("apps", &["deployments"], "object.spec.replicas > '1'").unwrap();
        assert!(
            wrong.starts_with(
                "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'"
            )
        );
        assert!(wrong.ends_with("^\n"), "{wrong:?}");
        assert!(one("apps", &["deployments"], "object.spec.nope == 1").unwrap().contains("undefined field 'nope'"));
        assert!(one("", &["pods"], "object.spec.replicas > 1").unwrap().starts_with("/v1, Kind=Pod: "));
    }

    #[test]
    fn custom_resources_have_their_own_fields_and_all_metadata() {
        assert_eq!(one("g.io", &["tabs"], "object.spec.replicas > 1 && has(object.metadata.labels)"), None);
        assert!(one("g.io", &["tabs"], "object.spec.foo > 1").unwrap().contains("undefined field 'foo'"));
        assert!(one("g.io", &["tabs"], "object.spec.replicas > '1'").unwrap().contains("'(int, string)'"));
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
        let bad = "object.spec.replicas > '1'";
        for (group, resource) in
            [("*", "deployments"), ("apps", "*"), ("apps", "deployments/status"), ("nope.io", "deployments"), ("apps", "nope")]
        {
            assert_eq!(one(group, &[resource], bad), None, "{group} {resource}");
        }
    }

    #[test]
    fn parameters_are_of_their_kind() {
        let found = |kind: &str, expression: &str| {
            let spec = json!({"paramKind": {"apiVersion": "v1", "kind": kind}, "validations": [{ "expression": expression }]});
            checked(rule("apps", &["deployments"]), spec).len()
        };
        assert_eq!(found("ConfigMap", "params.data['x'] == 'y'"), 0);
        assert_eq!(found("ConfigMap", "params.spec == 'y'"), 1);
        assert_eq!(found("Unserved", "params.spec == 'y'"), 0);
    }
}
