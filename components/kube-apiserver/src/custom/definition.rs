//! A CustomResourceDefinition as the server uses it: what to serve, under which names, in which versions.

use std::sync::{Arc, OnceLock};

use k8s_schema::{Doc, Ref, Schema as Table, TypeId};
use serde_json::Value;

use super::{
    cel,
    conversion::{Conversion, ConversionError},
    jsonpath::Path,
    shape::{self, BadMetadata},
    structural::Schema,
    types,
};
use crate::registry::{Resource, Subresource};

/// A column of `kubectl get`.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub type_: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
    pub path: Path,
    pub text: String,
}

/// Where the scale subresource finds its numbers.
#[derive(Debug, Clone)]
pub struct Scale {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub selector: Option<String>,
}

#[derive(Debug)]
pub struct Version {
    pub name: String,
    pub served: bool,
    pub storage: bool,
    pub deprecated: bool,
    pub deprecation_warning: Option<String>,
    pub schema: Schema,
    /// The schema as it was written, for OpenAPI.
    pub schema_json: Value,
    pub status: bool,
    pub scale: Option<Scale>,
    pub columns: Vec<Column>,
    pub selectable: Vec<String>,
    /// The rules of `x-kubernetes-validations`, compiled when first needed.
    rules: OnceLock<Option<cel::Rules>>,
    /// The types that server-side apply merges by, made when first needed.
    types: OnceLock<Option<(Table, TypeId)>>,
}

/// What was read from one definition.
#[derive(Debug)]
pub struct Definition {
    pub name: String,
    pub group: String,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub versions: Vec<Version>,
    pub conversion: Conversion,
    /// Established with accepted names: its resources are served.
    pub established: bool,
    /// Being deleted: nothing new may be created.
    pub terminating: bool,
    /// What a change of makes this another definition.
    fingerprint: Vec<u8>,
}

fn strings(r: Ref<'_>) -> Vec<String> {
    r.iter().map(|s| s.str().to_owned()).collect()
}

/// Whether a condition of a definition is true.
pub fn is_true(crd: &Doc, condition: &str) -> bool {
    crd.at("status.conditions").find("type", condition).get("status").str() == "True"
}

impl Version {
    fn of(v: Ref<'_>) -> Self {
        let schema_json = v.get("schema").get("openAPIV3Schema").to_value();
        let schema = Schema::of(&schema_json);
        let scale = v.at("subresources.scale");
        let text = |r: Ref<'_>| Some(r.str().to_owned()).filter(|s| !s.is_empty());
        Self {
            name: v.get("name").str().to_owned(),
            served: v.get("served").bool(),
            storage: v.get("storage").bool(),
            deprecated: v.get("deprecated").bool(),
            deprecation_warning: v.get("deprecationWarning").as_str().map(str::to_owned),
            status: v.at("subresources.status").exists(),
            scale: scale.exists().then(|| Scale {
                spec_replicas: scale.get("specReplicasPath").str().to_owned(),
                status_replicas: scale.get("statusReplicasPath").str().to_owned(),
                selector: text(scale.get("labelSelectorPath")),
            }),
            columns: columns(v.get("additionalPrinterColumns")),
            selectable: v.get("selectableFields").iter().map(|f| f.get("jsonPath").str().trim_start_matches('.').to_owned()).collect(),
            rules: OnceLock::new(),
            schema,
            schema_json,
            types: OnceLock::new(),
        }
    }
}

fn columns(list: Ref<'_>) -> Vec<Column> {
    let columns: Vec<Column> = list
        .iter()
        .filter_map(|c| {
            let text = c.get("jsonPath").str().to_owned();
            Some(Column {
                name: c.get("name").str().to_owned(),
                type_: c.get("type").str().to_owned(),
                format: c.get("format").str().to_owned(),
                description: c.get("description").str().to_owned(),
                priority: c.get("priority").int(),
                path: Path::parse(&text).ok()?,
                text,
            })
        })
        .collect();
    if !columns.is_empty() {
        return columns;
    }
    let text = ".metadata.creationTimestamp".to_owned();
    let path = Path::parse(&text).into_iter();
    path.map(|path| Column {
        name: "Age".into(),
        type_: "date".into(),
        format: String::new(),
        description: AGE.into(),
        priority: 0,
        path,
        text: text.clone(),
    })
    .collect()
}

/// The description of the age of anything, taken from the columns of a built-in kind.
const AGE: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

impl Definition {
    pub fn of(crd: &Doc) -> Self {
        let (spec, accepted) = (crd.at("spec"), crd.at("status.acceptedNames"));
        let name = |f: &str| {
            let accepted = accepted.get(f).str();
            if accepted.is_empty() { spec.get("names").get(f).str().to_owned() } else { accepted.to_owned() }
        };
        let mut fingerprint = spec.to_json();
        fingerprint.extend(accepted.to_json());
        let (established, terminating) = (is_true(crd, "Established"), is_true(crd, "Terminating"));
        fingerprint.extend([u8::from(established), u8::from(terminating)]);
        Self {
            name: crd.meta().name().to_owned(),
            group: spec.get("group").str().to_owned(),
            plural: name("plural"),
            singular: name("singular"),
            kind: name("kind"),
            list_kind: name("listKind"),
            short_names: strings(accepted.get("shortNames")),
            categories: strings(accepted.get("categories")),
            namespaced: spec.get("scope").str() == "Namespaced",
            versions: spec.get("versions").iter().map(Version::of).collect(),
            conversion: Conversion::of(spec.get("conversion")),
            established,
            terminating,
            fingerprint,
        }
    }

    /// Whether nothing that is served differs.
    pub fn same(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }

    /// Below the storage root.
    pub fn prefix(&self) -> String {
        format!("{}/{}", self.group, self.plural)
    }

    pub fn storage(&self) -> &Version {
        // Validation lets no definition without a storage version in; one that came another way stores in its first.
        self.versions.iter().find(|v| v.storage).unwrap_or(&self.versions[0])
    }

    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|v| v.name == name)
    }

    /// The fields that selectors may ask for in some version.
    pub fn selectable(&self) -> impl Iterator<Item = &str> {
        self.versions.iter().flat_map(|v| v.selectable.iter().map(String::as_str))
    }

    /// The resources of the served versions.
    pub fn resources(self: &Arc<Self>) -> Vec<Arc<Resource>> {
        if !self.established || self.versions.is_empty() {
            return Vec::new();
        }
        let served = self.versions.iter().enumerate().filter(|(_, v)| v.served);
        served.map(|(i, v)| Arc::new(self.resource(i, v))).collect()
    }

    /// The resource in its storage version, whether that is served or not.
    pub fn storage_resource(self: &Arc<Self>) -> Option<Arc<Resource>> {
        let index = self.versions.iter().position(|v| v.storage)?;
        Some(Arc::new(self.resource(index, &self.versions[index])))
    }

    fn resource(self: &Arc<Self>, index: usize, v: &Version) -> Resource {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let mut subresources = Vec::new();
        let mut add = |name: &str, group: &str, version: &str, kind: &str| {
            subresources.push(Subresource {
                name: name.into(),
                group: group.into(),
                version: version.into(),
                kind: kind.into(),
                verbs: own(&["get", "patch", "update"]),
            });
        };
        if v.status {
            add("status", "", "", &self.kind);
        }
        if v.scale.is_some() {
            add("scale", "autoscaling", "v1", "Scale");
        }
        Resource {
            group: self.group.clone(),
            version: v.name.clone(),
            kind: self.kind.clone(),
            plural: self.plural.clone(),
            singular: self.singular.clone(),
            short_names: self.short_names.clone(),
            categories: self.categories.clone(),
            namespaced: self.namespaced,
            verbs: own(&["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]),
            prefix: self.prefix(),
            storage_group: self.group.clone(),
            storage_version: self.storage().name.clone(),
            subresources,
            type_id: Some(TypeId::ANY),
            storage_type: Some(TypeId::ANY),
            custom: Some(Custom { definition: Arc::clone(self), index }),
        }
    }
}

/// What makes a [`Resource`] a custom one: a version of a definition.
#[derive(Debug, Clone)]
pub struct Custom {
    pub definition: Arc<Definition>,
    index: usize,
}

impl Custom {
    pub fn version(&self) -> &Version {
        &self.definition.versions[self.index]
    }

    pub fn api_version(&self) -> String {
        format!("{}/{}", self.definition.group, self.version().name)
    }

    /// The rules of the schema; none if it has none.
    pub fn rules(&self) -> Option<&cel::Rules> {
        let v = self.version();
        v.rules.get_or_init(|| cel::Rules::of(&v.schema, true)).as_ref()
    }

    /// The types for server-side apply.
    pub fn types(&self) -> Option<(&Table, TypeId)> {
        let v = self.version();
        v.types.get_or_init(|| types::compile(&v.schema)).as_ref().map(|(t, id)| (t, *id))
    }

    /// What a client sent, without what the schema does not know; the paths of that come along.
    pub fn admit(&self, doc: &Doc) -> Result<(Doc, Vec<String>), BadMetadata> {
        let (mut v, mut unknown) = (doc.to_value(), Vec::new());
        shape::coerce_metadata(&mut v, &self.version().schema, &mut unknown)?;
        shape::prune(&mut v, &self.version().schema, true, &mut unknown);
        unknown.sort();
        Ok((to_doc(&v), unknown))
    }

    pub fn default(&self, doc: &mut Doc) {
        let mut v = doc.to_value();
        shape::default(&mut v, &self.version().schema);
        *doc = to_doc(&v);
    }

    /// The version that objects are stored in.
    pub fn in_storage_version(&self) -> Self {
        let index = self.definition.versions.iter().position(|v| v.storage).unwrap_or(0);
        Self { definition: Arc::clone(&self.definition), index }
    }

    /// An object as it was stored, in the version it was stored in: pruned and defaulted as that one.
    pub fn as_written(&self, doc: &Doc) -> Value {
        let name = doc.api_version().rsplit('/').next().unwrap_or("");
        let schema = &self.definition.version(name).unwrap_or_else(|| self.definition.storage()).schema;
        let mut v = doc.to_value();
        shape::prune(&mut v, schema, true, &mut Vec::new());
        shape::default(&mut v, schema);
        v
    }

    /// Without what this version does not know.
    pub fn pruned(&self, mut v: Value) -> Value {
        shape::prune(&mut v, &self.version().schema, true, &mut Vec::new());
        v
    }

    /// A stored object in this version: defaulted as the version it was stored in, pruned as this one.
    pub fn read(&self, doc: &Doc) -> Result<Doc, ConversionError> {
        let mut v = self.as_written(doc);
        let api_version = self.api_version();
        if doc.api_version() != api_version {
            self.by_name(doc)?;
            v = self.pruned(v);
        }
        v["apiVersion"] = api_version.into();
        Ok(to_doc(&v))
    }

    /// The object as it goes to etcd.
    pub fn to_storage(&self, doc: &Doc) -> Result<Doc, ConversionError> {
        let storage = self.in_storage_version();
        if storage.version().name == self.version().name {
            return Ok(doc.clone());
        }
        self.by_name(doc)?;
        let mut v = storage.pruned(doc.to_value());
        v["apiVersion"] = storage.api_version().into();
        Ok(to_doc(&v))
    }

    /// Refuses what only the definition's webhook can convert.
    fn by_name(&self, doc: &Doc) -> Result<(), ConversionError> {
        match self.definition.conversion {
            Conversion::ByName => Ok(()),
            Conversion::Webhook(_) => Err(ConversionError::failed(doc, "the object was not converted")),
        }
    }

    /// What clients of a deprecated version are told.
    pub fn deprecation(&self) -> Option<String> {
        let v = self.version();
        let plain = || format!("{} {} is deprecated", self.api_version(), self.definition.kind);
        v.deprecated.then(|| v.deprecation_warning.clone().unwrap_or_else(plain))
    }
}

/// Any JSON value is an untyped document.
pub fn to_doc(v: &Value) -> Doc {
    let table = Table::builtin();
    Doc::from_value(&table, TypeId::ANY, v).map_or_else(|_| Doc::new(&table, TypeId::ANY), |d| d.doc)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `v1` is stored, `v2` served too; both know only their own field.
    fn custom(strategy: &str, version: usize) -> Custom {
        let version_of = |name: &str, field: &str| {
            let schema = json!({"type": "object", "properties": {field: {"type": "string"}}});
            json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": schema}})
        };
        let table = Table::builtin();
        let ty = table.kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
        let crd = json!({"metadata": {"name": "as.g.io"}, "spec": {"group": "g.io", "scope": "Cluster", "names": {"plural": "as", "kind": "A"},
            "conversion": {"strategy": strategy}, "versions": [version_of("v1", "old"), version_of("v2", "new")]}});
        let definition = Definition::of(&Doc::from_value(&table, ty, &crd).unwrap().doc);
        Custom { definition: Arc::new(definition), index: version }
    }

    fn object(version: &str, field: &str) -> Doc {
        to_doc(&json!({"apiVersion": format!("g.io/{version}"), "kind": "A", "metadata": {"name": "a"}, field: "x"}))
    }

    #[test]
    fn by_name_only_the_version_changes() {
        let v2 = custom("None", 1);
        let read = v2.read(&object("v1", "old")).unwrap();
        assert_eq!((read.api_version(), read.at("old").exists()), ("g.io/v2", false));
        assert_eq!(v2.to_storage(&object("v2", "new")).unwrap().api_version(), "g.io/v1");
    }

    #[test]
    fn what_a_webhook_has_to_convert_is_not_converted_by_name() {
        let (v1, v2) = (custom("Webhook", 0), custom("Webhook", 1));
        let refused = v2.read(&object("v1", "old")).unwrap_err().to_string();
        assert!(refused.starts_with("conversion webhook for g.io/v1, Kind=A failed: "), "{refused}");
        assert!(v2.to_storage(&object("v2", "new")).is_err());
        // Nothing is to convert between a version and itself.
        assert_eq!(v1.read(&object("v1", "old")).unwrap().at("old").str(), "x");
        assert_eq!(v1.to_storage(&object("v1", "old")).unwrap().at("old").str(), "x");
    }
}
