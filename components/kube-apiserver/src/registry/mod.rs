//! What this server serves: resources by group, version and plural name. The built-in ones are rows of [`table`]; those of definitions
//! come and go in [`dynamic`].

mod dynamic;
mod table;

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use k8s_schema::{Schema, TypeId};

pub use dynamic::{Dynamic, priority};

use crate::custom::{Custom, Definition};

/// A row of the table of built-in resources.
pub struct Row {
    gv: (&'static str, &'static str),
    kind: &'static str,
    names: (&'static str, &'static str),
    short: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    verbs: &'static [&'static str],
    prefix: &'static str,
    storage: (&'static str, &'static str),
    subs: &'static [RowSub],
}

/// A subresource; an empty version means: the parent's group and version.
pub struct RowSub {
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
}

/// A resource as it is served in one version.
#[derive(Debug)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    /// Below the storage root; empty for what is not stored.
    pub prefix: String,
    pub storage_group: String,
    pub storage_version: String,
    pub subresources: Vec<Subresource>,
    /// The type in the schema, when it has one.
    pub type_id: Option<TypeId>,
    pub storage_type: Option<TypeId>,
    /// The definition behind a custom resource.
    pub custom: Option<Custom>,
}

#[derive(Debug)]
pub struct Subresource {
    pub name: String,
    /// Empty: the parent's.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
}

impl Resource {
    /// Whether clients of this version get objects as they are stored.
    pub fn is_storage_version(&self) -> bool {
        self.group == self.storage_group && self.version == self.storage_version
    }

    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployments.apps`, as error messages name it.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The key of an object below the prefix.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
    }
}

/// All resources, and the groups in discovery order.
#[derive(Debug)]
pub struct Registry {
    resources: Vec<Arc<Resource>>,
    by_name: HashMap<(String, String, String), Arc<Resource>>,
    groups: Vec<(String, Vec<String>)>,
    /// What definitions add. Replaced as a whole.
    dynamic: ArcSwap<Dynamic>,
    /// Held while it is replaced.
    changing: parking_lot::Mutex<()>,
}

impl Registry {
    pub fn builtin(schema: &Schema) -> Self {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let resources: Vec<Arc<Resource>> = table::ROWS
            .iter()
            .map(|r| {
                Arc::new(Resource {
                    group: r.gv.0.into(),
                    version: r.gv.1.into(),
                    kind: r.kind.into(),
                    plural: r.names.0.into(),
                    singular: r.names.1.into(),
                    short_names: own(r.short),
                    categories: own(r.categories),
                    namespaced: r.namespaced,
                    verbs: own(r.verbs),
                    prefix: r.prefix.into(),
                    storage_group: r.storage.0.into(),
                    storage_version: r.storage.1.into(),
                    subresources: r
                        .subs
                        .iter()
                        .map(|s| Subresource {
                            name: s.name.into(),
                            group: s.group.into(),
                            version: s.version.into(),
                            kind: s.kind.into(),
                            verbs: own(s.verbs),
                        })
                        .collect(),
                    type_id: schema.kind(r.gv.0, r.gv.1, r.kind),
                    storage_type: schema.kind(r.storage.0, r.storage.1, r.kind),
                    custom: None,
                })
            })
            .collect();
        let by_name = resources.iter().map(|r| ((r.group.clone(), r.version.clone(), r.plural.clone()), Arc::clone(r))).collect();
        let groups = table::GROUPS.iter().map(|(g, v)| ((*g).to_owned(), own(v))).collect();
        Self { resources, by_name, groups, dynamic: ArcSwap::default(), changing: parking_lot::Mutex::default() }
    }

    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let builtin = self.by_name.get(&(group.to_owned(), version.to_owned(), plural.to_owned()));
        builtin.cloned().or_else(|| self.dynamic.load().resource(group, version, plural))
    }

    /// What definitions add, as it is now.
    pub fn dynamic(&self) -> Arc<Dynamic> {
        self.dynamic.load_full()
    }

    /// Serves what a definition says. Whether anything that is served changed.
    pub fn define(&self, definition: Definition) -> bool {
        let _changing = self.changing.lock();
        match self.dynamic.load().with(definition) {
            Some(new) => {
                self.dynamic.store(Arc::new(new));
                true
            }
            None => false,
        }
    }

    /// Serves a definition no longer; gives the storage prefix of its objects.
    pub fn undefine(&self, name: &str) -> Option<String> {
        let _changing = self.changing.lock();
        let (new, prefix) = self.dynamic.load().without(name)?;
        self.dynamic.store(Arc::new(new));
        Some(prefix)
    }

    /// The built-in resource that stores kind `kind` of `group`, in its storage version.
    pub fn stored(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|r| r.group == group && r.plural == plural && !r.prefix.is_empty())
    }

    /// The same resource in its other versions and groups.
    pub fn equivalents(&self, res: &Resource) -> Vec<Arc<Resource>> {
        let other = |r: &&Arc<Resource>| r.prefix == res.prefix && (&r.group, &r.version) != (&res.group, &res.version);
        if res.prefix.is_empty() {
            return Vec::new();
        }
        let dynamic = self.dynamic.load();
        self.resources.iter().chain(dynamic.all()).filter(other).cloned().collect()
    }

    /// The built-in resources.
    pub fn all(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    /// Named groups (not core) with their versions, the preferred first; built-in ones come first.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut all = self.groups.clone();
        for (group, versions) in self.dynamic.load().groups() {
            match all.iter_mut().find(|(g, _)| g == group) {
                Some((_, known)) => known.extend(versions.iter().filter(|v| !known.contains(v)).cloned().collect::<Vec<_>>()),
                None => all.push((group.clone(), versions.clone())),
            }
        }
        all
    }

    /// The named groups that are there without any definition.
    pub fn builtin_groups(&self) -> &[(String, Vec<String>)] {
        &self.groups
    }

    pub fn of_group_version(&self, group: &str, version: &str) -> Vec<Arc<Resource>> {
        let mut all: Vec<Arc<Resource>> = self.resources.iter().filter(|r| r.group == group && r.version == version).cloned().collect();
        all.extend(self.dynamic.load().all().iter().filter(|r| r.group == group && r.version == version).cloned());
        all
    }

    /// Every storage prefix once.
    pub fn prefixes(&self) -> Vec<String> {
        let mut p: Vec<String> = self.resources.iter().map(|r| r.prefix.clone()).filter(|p| !p.is_empty()).collect();
        p.sort();
        p.dedup();
        p
    }
}
