//! OpenAPI documents, version 2 and 3, made from the table and a list of resources.
//!
//! Clients find kinds through the paths' `x-kubernetes-group-version-kind`, learn from the parameters of `patch` whether the
//! server validates fields, and merge and explain by the definitions. Texts for people are given by the caller
//! ([`Descriptions`]); without them the documents are complete but silent.

pub mod binary;
mod custom;
mod definitions;
mod paths;

use crate::table::{Schema, TypeId};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

pub use definitions::definition_name;

/// A resource that the server serves.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    /// Such as `v1`.
    pub version: String,
    /// Such as `pods`.
    pub plural: String,
    /// Such as `Pod`.
    pub kind: String,
    /// Whether objects are in namespaces.
    pub namespaced: bool,
    /// As in discovery: `create`, `delete`, `deletecollection`, `get`, `list`, `patch`, `update`, `watch`.
    pub verbs: Vec<String>,
    /// Such as `status`.
    pub subresources: Vec<Subresource>,
    /// What a custom resource looks like, which no table has.
    pub custom: Option<Custom>,
}

/// The definition of a custom resource.
#[derive(Debug, Clone)]
pub struct Custom {
    /// The OpenAPI v3 schema as it was written.
    pub schema: Value,
    /// Such as `CronTabList`.
    pub list_kind: String,
}

/// A subresource of a [`Resource`].
#[derive(Debug, Clone)]
pub struct Subresource {
    /// Such as `scale`.
    pub name: String,
    /// Group, version and kind of what it serves.
    pub group: String,
    /// Its version.
    pub version: String,
    /// Its kind.
    pub kind: String,
    /// `get`, `update`, `patch`, `create`, or `connect:get` and the like for what upgrades or proxies.
    pub verbs: Vec<String>,
}

/// Texts for people: of a definition (no field) or of a field of one.
pub type Descriptions<'a> = &'a dyn Fn(&str, Option<&str>) -> Option<String>;

/// Which dialect is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        match self {
            Dialect::V2 => json!({ "$ref": format!("#/definitions/{name}") }),
            Dialect::V3 => json!({ "$ref": format!("#/components/schemas/{name}") }),
        }
    }
}

/// What documents are made of.
pub struct Documents<'a> {
    /// The table of built-in types.
    pub schema: &'a Schema,
    /// Everything that is served.
    pub resources: &'a [Resource],
    /// `info.version`, such as `v1.36.4`.
    pub version: &'a str,
    /// Texts for people.
    pub descriptions: Option<Descriptions<'a>>,
}

impl Documents<'_> {
    /// The document of `/openapi/v2`.
    pub fn v2(&self) -> Value {
        let mut builder = definitions::Builder::new(self, Dialect::V2);
        let mut all = Map::new();
        for (path, item) in self.discovery_paths(&mut builder) {
            all.insert(path, item);
        }
        for resource in self.resources {
            all.extend(paths::of(resource, &mut builder));
        }
        all.sort_keys();
        json!({
            "swagger": "2.0",
            "info": {"title": "Kubernetes", "version": self.version},
            "paths": all,
            "definitions": builder.finish(),
            "securityDefinitions": {"BearerToken": {"description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header"}},
            "security": [{"BearerToken": []}],
        })
    }

    /// The paths below `/openapi/v3` that have a document: `api/v1`, `apis/apps/v1`, `apis/apps` and so on, sorted.
    pub fn v3_paths(&self) -> Vec<String> {
        let mut paths: BTreeSet<String> = ["api", "apis", "version"].into_iter().map(str::to_owned).collect();
        for r in self.resources {
            if !r.group.is_empty() {
                paths.insert(format!("apis/{}", r.group));
            }
            paths.insert(paths::group_path(&r.group, &r.version).trim_start_matches('/').to_owned());
        }
        paths.into_iter().collect()
    }

    /// The document of one of [`Self::v3_paths`].
    pub fn v3(&self, path: &str) -> Option<Value> {
        let mut builder = definitions::Builder::new(self, Dialect::V3);
        let mut all = Map::new();
        for (p, item) in self.discovery_paths(&mut builder) {
            if p.trim_matches('/') == path {
                all.insert(p, item);
            }
        }
        for resource in self.resources {
            if paths::group_path(&resource.group, &resource.version).trim_start_matches('/') == path {
                all.extend(paths::of(resource, &mut builder));
            }
        }
        if all.is_empty() {
            return None;
        }
        all.sort_keys();
        Some(json!({
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": self.version},
            "paths": all,
            "components": {
                "schemas": builder.finish(),
                "securitySchemes": {"BearerToken": {"description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header"}},
            },
        }))
    }

    /// Paths of discovery: `/api/`, `/apis/`, `/apis/<group>/`, `/apis/<group>/<version>/`, `/version/`.
    fn discovery_paths(&self, builder: &mut definitions::Builder<'_>) -> Vec<(String, Value)> {
        let mut out = Vec::new();
        let mut add = |path: String, id: String, tag: String, kind: &str, builder: &mut definitions::Builder<'_>| {
            let body = match self.schema.type_named(&format!("meta/v1.{kind}")) {
                Some(ty) => builder.reference(ty),
                None => json!({"type": "object"}),
            };
            out.push((path, json!({ "get": paths::read_operation(builder.dialect(), &id, &tag, body) })));
        };
        add("/api/".into(), "getCoreAPIVersions".into(), "core".into(), "APIVersions", builder);
        add("/apis/".into(), "getAPIVersions".into(), "apis".into(), "APIGroupList", builder);
        let mut seen = BTreeSet::new();
        for r in self.resources {
            let group = paths::group_name(&r.group);
            if !r.group.is_empty() && seen.insert((r.group.clone(), String::new())) {
                add(format!("/apis/{}/", r.group), format!("get{group}APIGroup"), paths::group_tag(&r.group), "APIGroup", builder);
            }
            if seen.insert((r.group.clone(), r.version.clone())) {
                let id = format!("get{group}{}APIResources", paths::title(&r.version));
                let tag = format!("{}_{}", paths::group_tag(&r.group), r.version);
                add(format!("{}/", paths::group_path(&r.group, &r.version)), id, tag, "APIResourceList", builder);
            }
        }
        out.push((
            "/version/".into(),
            json!({ "get": paths::read_operation(builder.dialect(), "getCodeVersion", "version", version_info(builder)) }),
        ));
        out
    }
}

fn version_info(builder: &mut definitions::Builder<'_>) -> Value {
    let text = json!({"type": "string"});
    let names = ["buildDate", "compiler", "gitCommit", "gitTreeState", "gitVersion", "goVersion", "major", "minor", "platform"];
    let properties: Map<String, Value> = names.iter().map(|n| ((*n).to_owned(), text.clone())).collect();
    builder.add("io.k8s.apimachinery.pkg.version.Info", json!({"type": "object", "required": names, "properties": properties}))
}

/// The type of a kind, if the table has it.
pub(crate) fn kind_type(schema: &Schema, group: &str, version: &str, kind: &str) -> Option<TypeId> {
    schema.kind(group, version, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources() -> Vec<Resource> {
        let all = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"].map(str::to_owned).to_vec();
        vec![
            Resource {
                group: String::new(),
                version: "v1".into(),
                plural: "pods".into(),
                kind: "Pod".into(),
                namespaced: true,
                verbs: all.clone(),
                subresources: vec![
                    Subresource {
                        name: "status".into(),
                        group: String::new(),
                        version: "v1".into(),
                        kind: "Pod".into(),
                        verbs: vec!["get".into(), "patch".into(), "update".into()],
                    },
                    Subresource {
                        name: "exec".into(),
                        group: String::new(),
                        version: "v1".into(),
                        kind: "PodExecOptions".into(),
                        verbs: vec!["connect:get".into(), "connect:post".into()],
                    },
                ],
                custom: None,
            },
            Resource {
                group: "rbac.authorization.k8s.io".into(),
                version: "v1".into(),
                plural: "clusterroles".into(),
                kind: "ClusterRole".into(),
                namespaced: false,
                verbs: all,
                subresources: Vec::new(),
                custom: None,
            },
        ]
    }

    #[test]
    fn custom_resources_are_described_by_their_schema() {
        let schema = Schema::builtin();
        let text = json!({"type": "object", "description": "A tab.", "properties": {
            "spec": {"type": "object", "properties": {"cron": {"type": "string", "nullable": true}, "n": {"x-kubernetes-int-or-string": true}}}}});
        let tab = Resource {
            group: "stable.example.com".into(),
            version: "v1".into(),
            plural: "crontabs".into(),
            kind: "CronTab".into(),
            namespaced: true,
            verbs: ["create", "get", "list", "patch"].map(str::to_owned).to_vec(),
            subresources: Vec::new(),
            custom: Some(Custom { schema: text, list_kind: "CronTabList".into() }),
        };
        let resources = [tab];
        let d = Documents { schema: &schema, resources: &resources, version: "v1.36.4", descriptions: None };
        let v3 = d.v3("apis/stable.example.com/v1").unwrap();
        let definition = &v3["components"]["schemas"]["com.example.stable.v1.CronTab"];
        assert_eq!(definition["properties"]["spec"]["properties"]["cron"]["type"], "string");
        assert_eq!(definition["x-kubernetes-group-version-kind"][0]["kind"], "CronTab");
        assert_eq!(v3["components"]["schemas"]["com.example.stable.v1.CronTabList"]["required"], json!(["items"]));
        let v2 = d.v2();
        let spec = &v2["definitions"]["com.example.stable.v1.CronTab"]["properties"]["spec"]["properties"];
        assert_eq!(spec["cron"], json!({"type": "string"}));
        assert!(v2["definitions"].get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").is_some());
    }

    #[test]
    fn what_takes_any_field_says_nothing_of_fields_in_version_2() {
        let schema = Schema::builtin();
        let free = Resource {
            group: "stable.example.com".into(),
            version: "v1".into(),
            plural: "bags".into(),
            kind: "Bag".into(),
            namespaced: true,
            verbs: vec!["get".into()],
            subresources: Vec::new(),
            custom: Some(Custom {
                schema: json!({"type": "object", "description": "x", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string"}}}),
                list_kind: "BagList".into(),
            }),
        };
        let resources = [free];
        let d = Documents { schema: &schema, resources: &resources, version: "v1.36.4", descriptions: None };
        let gvk = json!([{"group": "stable.example.com", "version": "v1", "kind": "Bag"}]);
        let bag = &d.v2()["definitions"]["com.example.stable.v1.Bag"];
        assert_eq!(*bag, json!({"type": "object", "x-kubernetes-group-version-kind": gvk}));
        let v3 = d.v3("apis/stable.example.com/v1").unwrap();
        let bag = &v3["components"]["schemas"]["com.example.stable.v1.Bag"];
        assert_eq!(bag["properties"]["a"], json!({"type": "string"}));
        assert_eq!(bag["x-kubernetes-preserve-unknown-fields"], true);
    }

    #[test]
    fn documents_have_what_clients_look_for() {
        let (schema, resources) = (Schema::builtin(), resources());
        let d = Documents { schema: &schema, resources: &resources, version: "v1.36.4", descriptions: None };
        let v2 = d.v2();
        let pods = &v2["paths"]["/api/v1/namespaces/{namespace}/pods"];
        assert_eq!(pods["get"]["operationId"], "listCoreV1NamespacedPod");
        assert_eq!(pods["post"]["x-kubernetes-group-version-kind"], json!({"group": "", "version": "v1", "kind": "Pod"}));
        assert_eq!(v2["paths"]["/api/v1/pods"]["get"]["operationId"], "listCoreV1PodForAllNamespaces");
        assert_eq!(
            v2["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/exec"]["post"]["operationId"],
            "connectCoreV1PostNamespacedPodExec"
        );
        assert_eq!(
            v2["paths"]["/apis/rbac.authorization.k8s.io/v1/clusterroles"]["delete"]["operationId"],
            "deleteRbacAuthorizationV1CollectionClusterRole"
        );
        let port = &v2["definitions"]["io.k8s.api.core.v1.ContainerPort"];
        assert_eq!(port["required"], json!(["containerPort"]));
        assert_eq!(port["properties"]["containerPort"], json!({"type": "integer", "format": "int32"}));
        let containers = &v2["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");

        assert_eq!(
            d.v3_paths(),
            ["api", "api/v1", "apis", "apis/rbac.authorization.k8s.io", "apis/rbac.authorization.k8s.io/v1", "version"]
        );
        let v3 = d.v3("api/v1").unwrap();
        let patch = &v3["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
        assert_eq!(
            v3["components"]["schemas"]["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"],
            json!({"type": "string", "default": "TCP", "enum": ["SCTP", "TCP", "UDP"]})
        );
        assert!(v3["components"]["schemas"].get("io.k8s.api.rbac.v1.ClusterRole").is_none());
        assert!(d.v3("apis/apps/v1").is_none());
        for (doc, at) in [(&v2, "definitions"), (&v3, "components")] {
            let text = doc.to_string();
            let names = if at == "definitions" { &doc[at] } else { &doc[at]["schemas"] };
            for part in text.split("\"$ref\":\"").skip(1) {
                let name = part.split('"').next().unwrap().rsplit('/').next().unwrap();
                assert!(names.get(name).is_some(), "{name} is referred to and not defined");
            }
        }
    }
}
