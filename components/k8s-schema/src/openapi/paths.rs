//! Paths and operations of a resource.

use super::definitions::Builder;
use super::{Dialect, Resource, Subresource, kind_type};
use serde_json::{Map, Value, json};

const MEDIA: [&str; 4] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"];
const STREAMS: [&str; 3] = ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch", "application/cbor-seq"];
const PATCHES: [&str; 5] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/apply-patch+cbor",
];

/// `/api/v1` or `/apis/<group>/<version>`.
pub fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// `v1` → `V1`.
pub fn title(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
}

/// `rbac.authorization.k8s.io` → `RbacAuthorization`.
pub fn group_name(group: &str) -> String {
    if group.is_empty() {
        return "Core".to_owned();
    }
    group.trim_end_matches(".k8s.io").split(['.', '-']).map(title).collect()
}

/// `rbac.authorization.k8s.io` → `rbacAuthorization`.
pub fn group_tag(group: &str) -> String {
    let name = group_name(group);
    let mut chars = name.chars();
    chars.next().map_or(String::new(), |c| c.to_lowercase().chain(chars).collect())
}

/// An operation that reads something that is no resource.
pub fn read_operation(dialect: Dialect, id: &str, tag: &str, body: Value) -> Value {
    let mut operation = json!({ "operationId": id, "tags": [tag] });
    respond(dialect, &mut operation, &[("200", body)], &MEDIA[..3]);
    operation
}

/// All paths of a resource.
pub fn of(resource: &Resource, builder: &mut Builder<'_>) -> Map<String, Value> {
    let mut p = Paths { resource, builder, out: Map::new() };
    p.collection();
    p.item();
    p.watches();
    for sub in &resource.subresources {
        p.subresource(sub);
    }
    p.out
}

struct Paths<'r, 'b, 'd> {
    resource: &'r Resource,
    builder: &'b mut Builder<'d>,
    out: Map<String, Value>,
}

impl Paths<'_, '_, '_> {
    fn has(&self, verb: &str) -> bool {
        self.resource.verbs.iter().any(|v| v == verb)
    }

    fn dialect(&self) -> Dialect {
        self.builder.dialect()
    }

    fn base(&self) -> String {
        let r = self.resource;
        let group = group_path(&r.group, &r.version);
        if r.namespaced { format!("{group}/namespaces/{{namespace}}/{}", r.plural) } else { format!("{group}/{}", r.plural) }
    }

    fn scope(&self) -> &'static str {
        if self.resource.namespaced { "Namespaced" } else { "" }
    }

    fn id(&self, verb: &str, middle: &str, rest: &str) -> String {
        let r = self.resource;
        format!("{verb}{}{}{middle}{}{}{rest}", group_name(&r.group), title(&r.version), self.scope(), r.kind)
    }

    fn body_of(&mut self, group: &str, version: &str, kind: &str) -> Value {
        match kind_type(self.builder.documents().schema, group, version, kind) {
            Some(ty) => self.builder.reference(ty),
            None => super::custom::reference(self.builder, group, version, kind).unwrap_or_else(|| json!({"type": "object"})),
        }
    }

    fn meta(&mut self, kind: &str) -> Value {
        match self.builder.documents().schema.type_named(&format!("meta/v1.{kind}")) {
            Some(ty) => self.builder.reference(ty),
            None => json!({"type": "object"}),
        }
    }

    fn object(&mut self) -> Value {
        let r = self.resource;
        self.body_of(&r.group, &r.version, &r.kind)
    }

    fn list_body(&mut self) -> Value {
        let r = self.resource;
        let kind = r.custom.as_ref().map_or_else(|| format!("{}List", r.kind), |c| c.list_kind.clone());
        self.body_of(&r.group, &r.version, &kind)
    }

    fn operation(&self, id: String, action: &str, kind: Option<&Subresource>) -> Value {
        let r = self.resource;
        let (group, version, kind) = kind.map_or((&r.group, &r.version, &r.kind), |s| (&s.group, &s.version, &s.kind));
        json!({
            "operationId": id,
            "tags": [format!("{}_{}", group_tag(&r.group), r.version)],
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        })
    }

    fn query(&self, names: &[&str]) -> Vec<Value> {
        names.iter().map(|n| parameter(self.dialect(), "query", n)).collect()
    }

    fn finish(&self, operation: &mut Value, parameters: Vec<Value>, body: Option<(Value, bool)>, media: &[&str], patch: bool) {
        let consumes: &[&str] = if patch { &PATCHES } else { &["*/*"] };
        let mut parameters = parameters;
        match self.dialect() {
            Dialect::V2 => {
                if let Some((schema, required)) = body {
                    let mut p = json!({"name": "body", "in": "body", "schema": schema});
                    if required {
                        p["required"] = true.into();
                    }
                    parameters.insert(0, p);
                }
                operation["consumes"] = json!(consumes);
                operation["produces"] = json!(media);
                operation["schemes"] = json!(["https"]);
            }
            Dialect::V3 => {
                if let Some((schema, required)) = body {
                    let content: Map<String, Value> = consumes.iter().map(|c| ((*c).to_owned(), json!({ "schema": schema }))).collect();
                    operation["requestBody"] = json!({ "content": content });
                    if required {
                        operation["requestBody"]["required"] = true.into();
                    }
                }
            }
        }
        if !parameters.is_empty() {
            operation["parameters"] = Value::Array(parameters);
        }
    }

    fn put(&mut self, path: String, methods: Vec<(&str, Value)>, extra: &[&str]) {
        if methods.is_empty() {
            return;
        }
        let mut item: Map<String, Value> = methods.into_iter().map(|(m, o)| (m.to_owned(), o)).collect();
        let mut parameters: Vec<Value> = Vec::new();
        for name in ["name", "namespace", "path"] {
            if path.contains(&format!("{{{name}}}")) {
                parameters.push(parameter(self.dialect(), "path", name));
            }
        }
        parameters.extend(self.query(extra));
        if !parameters.is_empty() {
            item.insert("parameters".to_owned(), Value::Array(parameters));
        }
        self.out.insert(path, Value::Object(item));
    }

    fn collection(&mut self) {
        let (dialect, base) = (self.dialect(), self.base());
        let media: Vec<&str> = MEDIA.iter().chain(&STREAMS).copied().collect();
        let mut methods = Vec::new();
        if self.has("list") {
            let mut o = self.operation(self.id("list", "", ""), "list", None);
            let body = self.list_body();
            self.finish(&mut o, self.query(&LIST), None, &media, false);
            respond(dialect, &mut o, &[("200", body)], &media);
            methods.push(("get", o));
        }
        if self.has("create") {
            let mut o = self.operation(self.id("create", "", ""), "post", None);
            let body = self.object();
            self.finish(&mut o, self.query(&WRITE), Some((body.clone(), true)), &MEDIA, false);
            respond(dialect, &mut o, &[("200", body.clone()), ("201", body.clone()), ("202", body)], &MEDIA);
            methods.push(("post", o));
        }
        if self.has("deletecollection") {
            let mut o = self.operation(self.id("delete", "Collection", ""), "deletecollection", None);
            let (options, status) = (self.meta("DeleteOptions"), self.meta("Status"));
            let names: Vec<&str> = DELETE.iter().chain(&LIST[1..9]).copied().collect();
            self.finish(&mut o, self.query(&names), Some((options, false)), &MEDIA, false);
            respond(dialect, &mut o, &[("200", status)], &MEDIA);
            methods.push(("delete", o));
        }
        self.put(base, methods, &["pretty"]);
        if self.resource.namespaced && self.has("list") {
            let r = self.resource;
            let id = format!("list{}{}{}ForAllNamespaces", group_name(&r.group), title(&r.version), r.kind);
            let mut o = self.operation(id, "list", None);
            let body = self.list_body();
            self.finish(&mut o, Vec::new(), None, &media, false);
            respond(dialect, &mut o, &[("200", body)], &media);
            let names: Vec<&str> = LIST.iter().chain(&["pretty"]).copied().collect();
            self.put(format!("{}/{}", group_path(&r.group, &r.version), r.plural), vec![("get", o)], &names);
        }
    }

    fn item(&mut self) {
        let dialect = self.dialect();
        let path = format!("{}/{{name}}", self.base());
        let mut methods = Vec::new();
        if self.has("get") {
            methods.push(("get", self.read("", None)));
        }
        if self.has("update") {
            methods.push(("put", self.replace("", None)));
        }
        if self.has("patch") {
            methods.push(("patch", self.patch("", None)));
        }
        if self.has("delete") {
            let mut o = self.operation(self.id("delete", "", ""), "delete", None);
            let (options, status) = (self.meta("DeleteOptions"), self.meta("Status"));
            self.finish(&mut o, self.query(&DELETE), Some((options, false)), &MEDIA, false);
            respond(dialect, &mut o, &[("200", status.clone()), ("202", status)], &MEDIA);
            methods.push(("delete", o));
        }
        self.put(path, methods, &["pretty"]);
    }

    fn read(&mut self, rest: &str, sub: Option<&Subresource>) -> Value {
        let mut o = self.operation(self.id("read", "", rest), "get", sub);
        let body = match sub {
            Some(s) if s.name == "log" => json!({"type": "string"}),
            Some(s) => self.body_of(&s.group, &s.version, &s.kind),
            None => self.object(),
        };
        let dialect = self.dialect();
        self.finish(&mut o, Vec::new(), None, &MEDIA, false);
        respond(dialect, &mut o, &[("200", body)], &MEDIA);
        o
    }

    fn replace(&mut self, rest: &str, sub: Option<&Subresource>) -> Value {
        let mut o = self.operation(self.id("replace", "", rest), "put", sub);
        let body = match sub {
            Some(s) => self.body_of(&s.group, &s.version, &s.kind),
            None => self.object(),
        };
        let dialect = self.dialect();
        self.finish(&mut o, self.query(&WRITE), Some((body.clone(), true)), &MEDIA, false);
        respond(dialect, &mut o, &[("200", body.clone()), ("201", body)], &MEDIA);
        o
    }

    fn patch(&mut self, rest: &str, sub: Option<&Subresource>) -> Value {
        let mut o = self.operation(self.id("patch", "", rest), "patch", sub);
        let (body, patch) = match sub {
            Some(s) => (self.body_of(&s.group, &s.version, &s.kind), self.meta("Patch")),
            None => (self.object(), self.meta("Patch")),
        };
        let dialect = self.dialect();
        let names: Vec<&str> = WRITE.iter().chain(&["force"]).copied().collect();
        self.finish(&mut o, self.query(&names), Some((patch, true)), &MEDIA, true);
        respond(dialect, &mut o, &[("200", body.clone()), ("201", body)], &MEDIA);
        o
    }

    fn watches(&mut self) {
        if !self.has("watch") {
            return;
        }
        let (dialect, r) = (self.dialect(), self.resource);
        let group = group_path(&r.group, &r.version);
        let media: Vec<&str> = MEDIA.iter().chain(&STREAMS).copied().collect();
        let inner = self.base().trim_start_matches(&group).to_owned();
        let prefix = format!("{}{}", group_name(&r.group), title(&r.version));
        let mut all = vec![
            (format!("{group}/watch{inner}"), format!("watch{prefix}{}{}List", self.scope(), r.kind), "watchlist"),
            (format!("{group}/watch{inner}/{{name}}"), format!("watch{prefix}{}{}", self.scope(), r.kind), "watch"),
        ];
        if r.namespaced {
            all.push((format!("{group}/watch/{}", r.plural), format!("watch{prefix}{}ListForAllNamespaces", r.kind), "watchlist"));
        }
        for (path, id, action) in all {
            let mut o = self.operation(id, action, None);
            let body = self.meta("WatchEvent");
            self.finish(&mut o, Vec::new(), None, &media, false);
            respond(dialect, &mut o, &[("200", body)], &media);
            let names: Vec<&str> = LIST.iter().chain(&["pretty"]).copied().collect();
            self.put(path, vec![("get", o)], &names);
        }
    }

    fn subresource(&mut self, sub: &Subresource) {
        let path = format!("{}/{{name}}/{}", self.base(), sub.name);
        let rest: String = sub.name.split('/').map(title).collect();
        let dialect = self.dialect();
        let mut methods = Vec::new();
        let mut proxied = Vec::new();
        for verb in &sub.verbs {
            match verb.as_str() {
                "get" => methods.push(("get", self.read(&rest, Some(sub)))),
                "update" => methods.push(("put", self.replace(&rest, Some(sub)))),
                "patch" => methods.push(("patch", self.patch(&rest, Some(sub)))),
                "create" => {
                    let mut o = self.operation(self.id("create", "", &rest), "post", Some(sub));
                    let body = self.body_of(&sub.group, &sub.version, &sub.kind);
                    self.finish(&mut o, Vec::new(), Some((body.clone(), true)), &MEDIA, false);
                    respond(dialect, &mut o, &[("200", body.clone()), ("201", body.clone()), ("202", body)], &MEDIA);
                    methods.push(("post", o));
                }
                other => {
                    let Some(method) = other.strip_prefix("connect:") else { continue };
                    let Some(method) = ["get", "post", "put", "patch", "delete", "head", "options"].into_iter().find(|m| *m == method)
                    else {
                        continue;
                    };
                    let one = |suffix: &str| {
                        let id = self.id("connect", &title(method), &format!("{rest}{suffix}"));
                        let mut o = self.operation(id, "connect", Some(sub));
                        self.finish(&mut o, Vec::new(), None, &["*/*"], false);
                        respond(dialect, &mut o, &[("200", json!({"type": "string"}))], &["*/*"]);
                        o
                    };
                    methods.push((method, one("")));
                    if sub.name == "proxy" {
                        proxied.push((method, one("WithPath")));
                    }
                }
            }
        }
        let extra: &[&str] = match sub.name.as_str() {
            "log" => &[
                "container",
                "follow",
                "insecureSkipTLSVerifyBackend",
                "limitBytes",
                "pretty",
                "previous",
                "sinceSeconds",
                "stream",
                "tailLines",
                "timestamps",
            ],
            "exec" => &["command", "container", "stderr", "stdin", "stdout", "tty"],
            "attach" => &["container", "stderr", "stdin", "stdout", "tty"],
            "portforward" => &["ports"],
            "proxy" => &["path"],
            "binding" | "eviction" | "token" => &["dryRun", "fieldManager", "fieldValidation", "pretty"],
            _ => &["pretty"],
        };
        self.put(path.clone(), methods, extra);
        self.put(format!("{path}/{{path}}"), proxied, extra);
    }
}

const LIST: [&str; 11] = [
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "shardSelector",
    "timeoutSeconds",
    "watch",
];
const WRITE: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];
const DELETE: [&str; 5] =
    ["dryRun", "gracePeriodSeconds", "ignoreStoreReadErrorWithClusterBreakingPotential", "orphanDependents", "propagationPolicy"];

fn parameter(dialect: Dialect, place: &str, name: &str) -> Value {
    let ty = match name {
        "allowWatchBookmarks"
        | "sendInitialEvents"
        | "watch"
        | "force"
        | "orphanDependents"
        | "follow"
        | "previous"
        | "timestamps"
        | "stdin"
        | "stdout"
        | "stderr"
        | "tty"
        | "insecureSkipTLSVerifyBackend"
        | "ignoreStoreReadErrorWithClusterBreakingPotential" => "boolean",
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" | "limitBytes" | "sinceSeconds" | "tailLines" | "ports" => "integer",
        _ => "string",
    };
    let mut p = json!({"name": name, "in": place});
    match dialect {
        Dialect::V2 => {
            p["type"] = ty.into();
            p["uniqueItems"] = true.into();
        }
        Dialect::V3 => p["schema"] = json!({"type": ty, "uniqueItems": true}),
    }
    if place == "path" {
        p["required"] = true.into();
    }
    p
}

fn respond(dialect: Dialect, operation: &mut Value, bodies: &[(&str, Value)], media: &[&str]) {
    let mut responses = Map::new();
    for (code, schema) in bodies {
        let description = match *code {
            "201" => "Created",
            "202" => "Accepted",
            _ => "OK",
        };
        let response = match dialect {
            Dialect::V2 => json!({"description": description, "schema": schema}),
            Dialect::V3 => {
                let content: Map<String, Value> = media.iter().map(|m| ((*m).to_owned(), json!({ "schema": schema }))).collect();
                json!({"description": description, "content": content})
            }
        };
        responses.insert((*code).to_owned(), response);
    }
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    operation["responses"] = Value::Object(responses);
    if dialect == Dialect::V2 && operation.get("produces").is_none() {
        operation["consumes"] = json!(MEDIA[..3]);
        operation["produces"] = json!(media);
        operation["schemes"] = json!(["https"]);
    }
}
