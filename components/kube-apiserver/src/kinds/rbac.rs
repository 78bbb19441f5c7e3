//! Roles and bindings.

use k8s_schema::{Doc, Ref};

use super::{Action, PLAIN, Strategy};
use crate::validation::{ErrorList, FieldError, child, index, names, values};

pub const ROLE: Strategy = Strategy {
    name: names::path_segment,
    create_on_update: true,
    validate_create: role,
    validate_update: |_, n, _, e| role(n, e),
    ..PLAIN
};
pub const CLUSTER_ROLE: Strategy = Strategy {
    name: names::path_segment,
    create_on_update: true,
    validate_create: cluster_role,
    validate_update: |_, n, _, e| cluster_role(n, e),
    ..PLAIN
};
pub const ROLE_BINDING: Strategy =
    Strategy { name: names::path_segment, create_on_update: true, validate_create: role_binding, validate_update: binding_update, ..PLAIN };
pub const CLUSTER_ROLE_BINDING: Strategy = Strategy {
    name: names::path_segment,
    create_on_update: true,
    validate_create: cluster_role_binding,
    validate_update: binding_update,
    ..PLAIN
};

fn rule(r: Ref<'_>, namespaced: bool, p: &str, e: &mut ErrorList) {
    if r.get("verbs").is_empty() {
        e.push(FieldError::required(child(p, "verbs"), "verbs must contain at least one value"));
    }
    if !r.get("nonResourceURLs").is_empty() {
        let shown = r.get("nonResourceURLs").to_value();
        if namespaced {
            e.push(FieldError::invalid(child(p, "nonResourceURLs"), shown.clone(), "namespaced rules cannot apply to non-resource URLs"));
        }
        if !r.get("apiGroups").is_empty() || !r.get("resources").is_empty() || !r.get("resourceNames").is_empty() {
            e.push(FieldError::invalid(
                child(p, "nonResourceURLs"),
                shown,
                "rules cannot apply to both regular resources and non-resource URLs",
            ));
        }
        return;
    }
    if r.get("apiGroups").is_empty() {
        e.push(FieldError::required(child(p, "apiGroups"), "resource rules must supply at least one api group"));
    }
    if r.get("resources").is_empty() {
        e.push(FieldError::required(child(p, "resources"), "resource rules must supply at least one resource"));
    }
}

fn role(d: &Doc, e: &mut ErrorList) {
    for (i, r) in d.at("rules").iter().enumerate() {
        rule(r, true, &index("rules", i), e);
    }
}

fn cluster_role(d: &Doc, e: &mut ErrorList) {
    for (i, r) in d.at("rules").iter().enumerate() {
        rule(r, false, &index("rules", i), e);
    }
    if d.at("aggregationRule").exists() {
        let path = "aggregationRule.clusterRoleSelectors";
        if d.at(path).is_empty() {
            e.push(FieldError::required(path, "at least one clusterRoleSelector required if aggregationRule is non-nil"));
        }
        for (i, s) in d.at(path).iter().enumerate() {
            let before = e.len();
            values::label_selector(s, &index(path, i), e);
            if e.len() > before {
                e.push(FieldError::invalid(index(path, i), serde_json::Value::Null, "invalid label selector."));
            }
        }
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

fn binding(d: &Doc, kinds: &[&str], namespaced: bool, e: &mut ErrorList) {
    let r = d.at("roleRef");
    if r.get("apiGroup").str() != RBAC {
        e.push(FieldError::not_supported("roleRef.apiGroup", r.get("apiGroup").str(), &[RBAC]));
    }
    if !kinds.contains(&r.get("kind").str()) {
        e.push(FieldError::not_supported("roleRef.kind", r.get("kind").str(), kinds));
    }
    if r.get("name").str().is_empty() {
        e.push(FieldError::required("roleRef.name", ""));
    } else {
        e.all_invalid("roleRef.name", r.get("name").str(), names::path_segment(r.get("name").str(), false));
    }
    for (i, s) in d.at("subjects").iter().enumerate() {
        let p = index("subjects", i);
        let (kind, name, group) = (s.get("kind").str(), s.get("name").str(), s.get("apiGroup").str());
        if name.is_empty() {
            e.push(FieldError::required(child(&p, "name"), ""));
        }
        match kind {
            "ServiceAccount" => {
                if !name.is_empty() {
                    e.all_invalid(&child(&p, "name"), name, names::subdomain_name(name, false));
                }
                if !group.is_empty() {
                    e.push(FieldError::not_supported(child(&p, "apiGroup"), group, &[""]));
                }
                if !namespaced && s.get("namespace").str().is_empty() {
                    e.push(FieldError::required(child(&p, "namespace"), ""));
                }
            }
            "User" | "Group" => {
                if group != RBAC {
                    e.push(FieldError::not_supported(child(&p, "apiGroup"), group, &[RBAC]));
                }
            }
            other => e.push(FieldError::not_supported(child(&p, "kind"), other, &["ServiceAccount", "User", "Group"])),
        }
    }
}

fn role_binding(d: &Doc, e: &mut ErrorList) {
    binding(d, &["Role", "ClusterRole"], true, e);
}

fn cluster_role_binding(d: &Doc, e: &mut ErrorList) {
    binding(d, &["ClusterRole"], false, e);
}

fn binding_update(_: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    if new.kind() == "RoleBinding" {
        role_binding(new, e)
    } else {
        cluster_role_binding(new, e)
    }
    if !new.at("roleRef").semantic_eq(old.at("roleRef")) {
        let of = |f: &str| new.at("roleRef").get(f).str();
        // By the names it has in upstream's code.
        let shown = serde_json::json!({"APIGroup": of("apiGroup"), "Kind": of("kind"), "Name": of("name")});
        e.push(FieldError::invalid("roleRef", shown, "cannot change roleRef"));
    }
}
